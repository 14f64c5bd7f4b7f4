//! The hard-concrete distribution: differentiable votes in [0, 1) with probability mass at exactly 0.
//!
//! Louizos et al., arXiv:1712.01312, with the constants of DiffMask's code. As r is 1, there is mass at 0 and none at
//! 1.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::sigmoid;

/// Temperature τ of the concrete distribution, as in the authors' code.
pub const TEMPERATURE: f64 = 0.2;
/// Lower end l of the stretched range; clamping then gives mass at 0.
pub const STRETCH_LO: f64 = -0.2;
/// Upper end r of the stretched range; no mass at 1.
pub const STRETCH_HI: f64 = 1.0;

/// log P(z≠0) of logits of any shape.
///
/// # Errors
/// Fails if the device runs out of memory.
pub fn log_keep_from_logits(logits: &Tensor) -> Result<Tensor> {
    // −softplus(−x) with x = u − τ·ln(−l/r); softplus(y) = max(y, 0) + ln(1 + exp(−|y|)) cannot overflow.
    let shift = -TEMPERATURE * (-STRETCH_LO / STRETCH_HI).ln();
    let ys = (logits + shift)?.neg()?;
    let tail = (ys.abs()?.neg()?.exp()? + 1.0)?.log()?;
    (ys.relu()? + tail)?.neg()
}

/// Draws hard-concrete samples from logits.
///
/// `uniform` holds one draw from the open interval (0, 1) per logit. No gradient would pass through samples of exactly
/// 0; `dead_gradient` is the slope in the logit that is used there instead.
///
/// # Shapes
/// - all: the shape of `logits`
///
/// # Errors
/// Fails if the shapes differ.
pub fn sample_from_logits(logits: &Tensor, uniform: &Tensor, dead_gradient: f64) -> Result<Tensor> {
    let noise = (uniform.log()? - (1.0 - uniform)?.log()?)?;
    let concrete = sigmoid(&((logits + noise)? / TEMPERATURE)?)?;
    let stretched = concrete.affine(STRETCH_HI - STRETCH_LO, STRETCH_LO)?;
    // The upper clamp is never reached, because r = 1.
    let samples = stretched.relu()?;
    if dead_gradient == 0.0 {
        return Ok(samples);
    }
    let dead = stretched.le(0.0)?.to_dtype(DType::F32)?.detach();
    let through = ((logits - logits.detach())? * dead_gradient)?; // zero, with a slope
    samples + (through * dead)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use candle_core::{Device, Var};

    #[test]
    fn keep_probabilities_are_those_of_the_authors_code() {
        // Computed by the authors' code at u = −5 to 5.
        let expected = [
            0.0092, 0.0246, 0.0643, 0.1573, 0.3367, 0.5798, 0.7895, 0.9107, 0.9652, 0.9869, 0.9951,
        ];
        let logits: Vec<f32> = (-5..=5).map(|logit| logit as f32).collect();
        let logits = Tensor::from_vec(logits, 11, &Device::Cpu).unwrap();
        let keep = log_keep_from_logits(&logits).unwrap().exp().unwrap();
        for (keep, expected) in keep.to_vec1::<f32>().unwrap().into_iter().zip(expected) {
            assert!((keep - expected).abs() < 6e-5, "{keep} is not {expected}");
        }
    }

    #[test]
    fn log_keep_stays_finite_at_the_ends() {
        let logits = Tensor::new(&[-500.0_f32, 500.0], &Device::Cpu).unwrap();
        let log_keep = log_keep_from_logits(&logits).unwrap();
        let log_keep: Vec<f32> = log_keep.to_vec1().unwrap();
        assert!((log_keep[0] + 499.678_1).abs() < 1e-3 && log_keep[1].abs() < 1e-30);
    }

    #[test]
    fn samples_are_zero_as_often_as_the_formula_says() {
        let n_samples = 20_000;
        for logit in [-2.0_f32, 0.0, 1.0] {
            let logits = Tensor::full(logit, n_samples, &Device::Cpu).unwrap();
            let uniform = Rng::new(3).uniform_tensor(n_samples, &Device::Cpu).unwrap();
            let uniform = uniform.clamp(1e-6, 1.0 - 1e-6).unwrap();
            let samples: Vec<f32> = sample_from_logits(&logits, &uniform, 0.0)
                .unwrap()
                .to_vec1()
                .unwrap();
            assert!(samples.iter().all(|&z| (0.0..=1.0).contains(&z)));
            let kept = samples.iter().filter(|&&z| z > 0.0).count() as f32 / n_samples as f32;
            let keep = log_keep_from_logits(&logits).unwrap().exp().unwrap();
            let keep: f32 = keep.get(0).unwrap().to_scalar().unwrap();
            // Four standard deviations.
            assert!((kept - keep).abs() < 0.015, "{kept} is not {keep}");
        }
    }

    #[test]
    fn dead_samples_have_the_slope_that_is_asked_for_and_stay_zero() {
        let logits = Var::new(&[-9.0_f32, 1.0], &Device::Cpu).unwrap();
        let uniform = Tensor::new(&[0.5_f32, 0.5], &Device::Cpu).unwrap();
        let slopes = |dead_gradient| {
            let samples = sample_from_logits(&logits, &uniform, dead_gradient).unwrap();
            assert_eq!(samples.get(0).unwrap().to_scalar::<f32>().unwrap(), 0.0);
            let grads = samples.sum_all().unwrap().backward().unwrap();
            grads.get(&logits).unwrap().to_vec1::<f32>().unwrap()
        };
        let (without, with) = (slopes(0.0), slopes(0.25));
        assert_eq!((without[0], with[0]), (0.0, 0.25));
        assert_eq!(without[1], with[1]);
    }
}
