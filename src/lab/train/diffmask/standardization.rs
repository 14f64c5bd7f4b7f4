//! Standardization: gates learn from states of mean 0 and deviation 1, and are stored as gates for raw states.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use vitscope_core::gates::weight_norm;

/// Minimum deviation, as a fraction of the largest deviation of the state.
const LEAST_DEVIATION: f64 = 1e-3;

/// Mean and deviation of every feature of every state.
///
/// In some models, the patches of a state barely differ compared with their common part (DINOv2's middle blocks), or
/// states are a hundred times as large as others. Gates whose first layer is initialized for inputs of deviation 1 see
/// nothing in the former and are saturated by the latter.
pub(super) struct Standardization {
    /// One per state, `[dim]` each.
    states: Vec<Moments>,
}

struct Moments {
    mean: Tensor,
    deviation: Tensor,
}

impl Standardization {
    /// Computes the standardization of these states.
    ///
    /// # Shapes
    /// - `states`: each `[batch, patches, dim]`
    pub(super) fn of(states: &[Tensor]) -> Result<Self> {
        let moments = |state: &Tensor| {
            let rows = state.flatten(0, 1)?; // [batch·patches, dim]
            let mean = rows.mean(0)?;
            let deviation = rows.broadcast_sub(&mean)?.sqr()?.mean(0)?.sqrt()?;
            let largest = f64::from(deviation.max(0)?.to_scalar::<f32>()?);
            let least = (largest * LEAST_DEVIATION).max(f64::from(f32::MIN_POSITIVE));
            Ok(Moments {
                mean,
                deviation: deviation.maximum(least)?,
            })
        };
        Ok(Self {
            states: states.iter().map(moments).collect::<Result<_>>()?,
        })
    }

    /// Standardizes states for gates in training.
    pub(super) fn applied(&self, states: &[Tensor]) -> Result<Vec<Tensor>> {
        states
            .iter()
            .zip(&self.states)
            .map(|(state, Moments { mean, deviation })| {
                state.broadcast_sub(mean)?.broadcast_div(deviation)
            })
            .collect()
    }

    /// Returns the tensors of gates that respond to raw states as those of `tensors` respond to standardized ones: W((h
    /// − μ)/σ) + b = (W/σ)h + (b − (W/σ)μ).
    pub(super) fn folded(
        &self,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut folded = tensors.clone();
        let Some(first) = self.states.first() else {
            return Ok(folded);
        };
        for (state_idx, own) in self.states.iter().enumerate() {
            let name = |part: &str| format!("gates.{state_idx}.hidden.{part}");
            let parts = ["direction", "length", "bias"].map(|part| tensors.get(&name(part)));
            let [Some(direction), Some(length), Some(bias)] = parts else {
                candle_core::bail!("there is no gate {state_idx} for a state of that number");
            };
            let mean = Tensor::cat(&[&first.mean, &own.mean], 0)?; // [2·dim]
            let deviation = Tensor::cat(&[&first.deviation, &own.deviation], 0)?;
            let weight = weight_norm(direction, length)?.broadcast_div(&deviation)?; // [hidden, 2·dim]
            let shift = weight.matmul(&mean.unsqueeze(1)?)?.squeeze(1)?; // [hidden]
            folded.insert(name("length"), weight.sqr()?.sum(1)?.sqrt()?);
            folded.insert(name("bias"), (bias - shift)?);
            folded.insert(name("direction"), weight);
        }
        Ok(folded)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use vitscope_core::gates::{GateSizes, VotingGates};
    use vitscope_core::rng::Rng;

    const SIZES: GateSizes = GateSizes {
        states: 3,
        dim: 8,
        hidden: 4,
    };

    /// Returns states of very different scales, far from zero.
    fn states() -> Vec<Tensor> {
        let mut rng = Rng::new(1);
        let state = |(scale, shift): (f64, f64)| {
            let state = rng.normal_tensor((2, 5, 8), &Device::Cpu).unwrap();
            state.affine(scale, shift).unwrap()
        };
        [(0.05, 3.0), (1.0, -2.0), (20.0, 50.0)].map(state).into()
    }

    #[test]
    fn standardized_states_have_mean_0_and_deviation_1() {
        let states = states();
        let standardized = Standardization::of(&states).unwrap().applied(&states);
        for state in standardized.unwrap() {
            let rows = state.flatten(0, 1).unwrap();
            let close = |xs: Tensor, to: f32| {
                let xs: Vec<f32> = xs.to_vec1().unwrap();
                assert!(xs.iter().all(|x| (x - to).abs() < 1e-3), "{xs:?}");
            };
            close(rows.mean(0).unwrap(), 0.0);
            close(rows.sqr().unwrap().mean(0).unwrap(), 1.0);
        }
    }

    #[test]
    fn folded_gates_say_of_states_what_the_others_say_of_standardized_ones() {
        let states = states();
        let standardization = Standardization::of(&states).unwrap();
        let tensors =
            VotingGates::initial_tensors(SIZES, 1.0, &mut Rng::new(2), &Device::Cpu).unwrap();
        let logits = |tensors: BTreeMap<String, Tensor>, states: &[Tensor]| {
            let gates = VotingGates::load(SIZES, 15.0, &tensors.into_iter().collect()).unwrap();
            let logits = Tensor::stack(&gates.logits(states, 2).unwrap(), 0).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let folded = logits(standardization.folded(&tensors).unwrap(), &states);
        let plain = logits(tensors, &standardization.applied(&states).unwrap());
        for (folded, plain) in folded.iter().zip(&plain) {
            assert!((folded - plain).abs() < 2e-3, "{folded} is not {plain}");
        }
        let spread = plain.iter().map(|logit| (logit - plain[0]).abs());
        assert!(spread.fold(0.0, f32::max) > 1.0, "{plain:?}");
    }

    #[test]
    fn a_feature_that_never_changes_is_no_division_by_zero() {
        let flat = Tensor::ones((1, 4, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        let states = [flat.clone(), flat];
        let standardized = Standardization::of(&states).unwrap().applied(&states);
        for state in standardized.unwrap() {
            let values: Vec<f32> = state.flatten_all().unwrap().to_vec1().unwrap();
            assert!(values.iter().all(|value| *value == 0.0), "{values:?}");
        }
    }
}
