//! Conversion of logits to probabilities.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{log_softmax, softmax};

/// How logits are converted to probabilities, as `transformers` determines it from `problem_type` and the number of
/// classes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Link {
    /// Softmax: exactly one class applies.
    #[default]
    Softmax,
    /// A sigmoid per class: each class applies independently of the others.
    Sigmoid,
}

impl Link {
    /// Probability of each class.
    pub fn probabilities(self, logits: &[f32]) -> Vec<f32> {
        match self {
            Self::Softmax => {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
                let sum: f32 = powers.iter().sum();
                powers.into_iter().map(|power| power / sum).collect()
            }
            Self::Sigmoid => (logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp()))).collect(),
        }
    }

    /// ln p of a class; `None` if there is no such class.
    pub fn log_probability(self, logits: &[f32], class: usize) -> Option<f64> {
        let own = f64::from(*logits.get(class)?);
        Some(match self {
            Self::Softmax => {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let largest = f64::from(largest);
                let sum: f64 = (logits.iter())
                    .map(|&logit| (f64::from(logit) - largest).exp())
                    .sum();
                own - largest - sum.ln()
            }
            // ln σ(z) = min(z, 0) - ln(1 + exp(-|z|)), which neither overflows nor becomes -∞.
            Self::Sigmoid => own.min(0.0) - (-own.abs()).exp().ln_1p(),
        })
    }

    /// Probabilities of a batch; differentiable.
    ///
    /// # Shapes
    /// - `logits` and result: `[batch, classes]`
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn probabilities_of(self, logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::Softmax => softmax(logits, D::Minus1),
            Self::Sigmoid => candle_nn::ops::sigmoid(logits),
        }
    }

    /// Logarithms of the probabilities of a batch; differentiable.
    ///
    /// # Shapes
    /// - `logits` and result: `[batch, classes]`
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn log_probabilities_of(self, logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::Softmax => log_softmax(logits, D::Minus1),
            Self::Sigmoid => logits.minimum(0.0)? - (logits.abs()?.neg()?.exp()? + 1.0)?.log()?,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn softmax_of_large_logits_stays_finite_and_sums_to_one() {
        let probabilities = Link::Softmax.probabilities(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(vec![0.5, 0.5, 0.0], probabilities);
    }

    /// Computed by `torch.sigmoid` and `torch.nn.functional.logsigmoid` in double precision.
    #[test]
    fn a_sigmoid_knows_nothing_of_the_other_classes_and_never_overflows() {
        let logits = [-200.0_f32, -1.5, 0.0, 2.0, 200.0];
        let expected = [0.0, 0.182_425_52, 0.5, 0.880_797_1, 1.0];
        for (found, expected) in Link::Sigmoid.probabilities(&logits).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-7, "{found} is not {expected}");
        }
        let ln_2 = std::f64::consts::LN_2;
        let logarithms = [-200.0, -1.701_413_28, -ln_2, -0.126_928_01, 0.0];
        let tensor = Tensor::new(&[logits], &Device::Cpu).unwrap();
        let tensor = Link::Sigmoid.log_probabilities_of(&tensor).unwrap();
        let of_tensor: Vec<Vec<f32>> = tensor.to_vec2().unwrap();
        for (class, expected) in logarithms.into_iter().enumerate() {
            let found = Link::Sigmoid.log_probability(&logits, class).unwrap();
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
            let found = f64::from(of_tensor[0][class]);
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
        assert_eq!(Link::Sigmoid.log_probability(&logits, 5), None);
    }
}
