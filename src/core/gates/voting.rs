//! Voting gates: those of Vision DiffMask, one per state, whose keep probabilities are multiplied.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result as TensorResult, Tensor};

use super::hard_concrete::log_keep_from_logits;
use super::passes::Removal;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::vit::VitConfig;

/// Features of a token per hidden unit of a gate, as in the authors' code.
const FEATURES_PER_UNIT: usize = 4;
/// Half-width m of the range of a gate's logits, as in the authors' code.
pub const DEFAULT_STRETCH: f64 = 15.0;

/// The sizes of gates, determined by the model that they explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateSizes {
    /// Number of gates: blocks + 2.
    pub states: usize,
    /// Features of a token.
    pub dim: usize,
    /// Hidden units of a gate.
    pub hidden: usize,
}

impl GateSizes {
    /// The sizes of gates for a model.
    pub fn new(config: &VitConfig) -> Self {
        Self {
            states: config.num_hidden_layers + 2,
            dim: config.hidden_size,
            hidden: (config.hidden_size / FEATURES_PER_UNIT).max(1),
        }
    }

    /// Number of learned values of one gate.
    pub fn parameters_per_gate(&self) -> usize {
        // Direction, length and bias of each row of both layers, and the offset.
        self.hidden * 2 * self.dim + 2 * self.hidden + self.hidden + 1 + 1 + 1
    }

    /// Number of learned values of all gates and the baseline.
    pub fn parameters(&self) -> usize {
        self.states * self.parameters_per_gate() + self.dim
    }

    /// Names and shapes of all tensors, in the order of initialization.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let Self {
            states,
            dim,
            hidden,
        } = *self;
        let mut shapes = Vec::new();
        for state_idx in 0..states {
            for (name, shape) in [
                ("hidden.direction", vec![hidden, 2 * dim]),
                ("hidden.length", vec![hidden]),
                ("hidden.bias", vec![hidden]),
                ("vote.direction", vec![1, hidden]),
                ("vote.length", vec![1]),
                ("vote.bias", vec![1]),
                ("offset", vec![1]),
            ] {
                shapes.push((format!("gates.{state_idx}.{name}"), shape));
            }
        }
        shapes.push((BASELINE.into(), vec![dim]));
        shapes
    }
}

/// Tensor name of the baseline.
pub const BASELINE: &str = "baseline";

/// One gate: two weight-normalized layers with tanh.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) hidden_direction: Tensor,
    pub(super) hidden_length: Tensor,
    pub(super) hidden_bias: Tensor,
    pub(super) vote_direction: Tensor,
    pub(super) vote_length: Tensor,
    pub(super) vote_bias: Tensor,
    pub(super) offset: Tensor,
}

/// Scales each row of `direction` to the length in `length`.
pub fn weight_norm(direction: &Tensor, length: &Tensor) -> TensorResult<Tensor> {
    let norms = direction.sqr()?.sum_keepdim(1)?.sqrt()?; // [rows, 1]
    direction.broadcast_mul(&length.unsqueeze(1)?.div(&norms)?)
}

impl Gate {
    /// Logits of one state.
    ///
    /// # Shapes
    /// - `first`, `state`: `[rows, dim]`
    /// - result: `[rows]`
    fn logits(&self, first: &Tensor, state: &Tensor, stretch: f64) -> TensorResult<Tensor> {
        let (_, dim) = first.dims2()?;
        let weight = weight_norm(&self.hidden_direction, &self.hidden_length)?; // [hidden, 2·dim]
        let hidden = (first.matmul(&weight.narrow(1, 0, dim)?.t()?)?
            + state.matmul(&weight.narrow(1, dim, dim)?.t()?)?)?
        .broadcast_add(&self.hidden_bias)?
        .tanh()?; // [rows, hidden]
        let weight = weight_norm(&self.vote_direction, &self.vote_length)?; // [1, hidden]
        let vote = hidden
            .matmul(&weight.t()?)?
            .broadcast_add(&self.vote_bias)?
            .tanh()?
            .squeeze(1)?; // [rows]
        (vote * stretch)?.broadcast_add(&self.offset)
    }
}

/// All gates of a model, and the removal of the patches that they mask.
#[derive(Clone)]
pub struct VotingGates {
    pub(super) sizes: GateSizes,
    pub(super) stretch: f64,
    pub(super) gates: Vec<Gate>,
    removal: Removal,
}

impl VotingGates {
    /// Random initial values: torch's uniform ±1/√inputs for both layers, `offset` for every gate, a Xavier-normal
    /// baseline.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn initial_tensors(
        sizes: GateSizes,
        offset: f64,
        rng: &mut Rng,
        device: &Device,
    ) -> TensorResult<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in sizes.shapes() {
            let inputs = if name.contains("hidden") {
                2 * sizes.dim
            } else {
                sizes.hidden
            };
            let bound = (inputs as f64).sqrt().recip();
            let tensor = if name == BASELINE {
                // Xavier on [1, 1, dim]: √(2/(dim + dim)).
                let std = (sizes.dim as f64).sqrt().recip();
                (rng.normal_tensor(shape, device)? * std)?
            } else if name.ends_with("offset") {
                Tensor::full(offset as f32, shape, device)?
            } else if let Some(layer) = name.strip_suffix(".length") {
                // The length of the direction, so that training starts from the plain layer.
                let direction: &Tensor = tensors
                    .get(&format!("{layer}.direction"))
                    .ok_or_else(|| candle_core::Error::Msg(format!("{name} before its layer")))?;
                direction.sqr()?.sum(1)?.sqrt()?
            } else {
                rng.uniform_tensor(shape, device)?
                    .affine(2.0 * bound, -bound)?
            };
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }

    /// Builds gates from named tensors, which are trained or the variables of a trainer. Without a baseline, masked
    /// patches are dropped.
    ///
    /// # Errors
    /// [`Error::Model`] for the first tensor that is missing, has the wrong shape or does not belong.
    pub fn load(sizes: GateSizes, stretch: f64, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let shapes = sizes.shapes();
        if let Some(name) = tensors
            .keys()
            .filter(|name| !shapes.iter().any(|(known, _)| known == *name))
            .min()
        {
            return Err(Error::Model(format!(
                "unexpected tensor {name:?} in gates for {} states",
                sizes.states
            )));
        }
        let mut found = Vec::with_capacity(shapes.len());
        for (name, shape) in &shapes {
            let tensor = match tensors.get(name) {
                Some(tensor) => tensor,
                None if name == BASELINE => continue,
                None => return Err(Error::Model(format!("gates lack tensor {name:?}"))),
            };
            if tensor.dims() != shape {
                return Err(Error::Model(format!(
                    "gate tensor {name:?} has shape {:?}, but the model needs {shape:?}",
                    tensor.dims()
                )));
            }
            found.push(tensor.to_dtype(DType::F32)?);
        }
        let mut found = found.into_iter();
        let mut next = || {
            found
                .next()
                .ok_or_else(|| Error::Model("gates lack a tensor".into()))
        };
        let mut gates = Vec::with_capacity(sizes.states);
        for _ in 0..sizes.states {
            gates.push(Gate {
                hidden_direction: next()?,
                hidden_length: next()?,
                hidden_bias: next()?,
                vote_direction: next()?,
                vote_length: next()?,
                vote_bias: next()?,
                offset: next()?,
            });
        }
        let removal = match next() {
            Ok(baseline) => Removal::Baseline(baseline),
            Err(_) => Removal::Drop,
        };
        Ok(Self {
            sizes,
            stretch,
            gates,
            removal,
        })
    }

    /// The sizes of the gates.
    pub fn sizes(&self) -> GateSizes {
        self.sizes
    }

    /// Half-width m of the range of logits.
    pub fn stretch(&self) -> f64 {
        self.stretch
    }

    /// How masked patches are removed.
    pub fn removal(&self) -> &Removal {
        &self.removal
    }

    /// Logits of gates 0 to `depth`, one tensor per gate.
    ///
    /// # Shapes
    /// - `states`: each `[batch, patches, dim]`, at least `depth + 1`
    /// - result: each `[batch, patches]`
    ///
    /// # Errors
    /// Fails if the states do not fit.
    pub fn logits(&self, states: &[Tensor], depth: usize) -> TensorResult<Vec<Tensor>> {
        let Some(first) = states.first() else {
            candle_core::bail!("gates require the states of an unmasked forward pass");
        };
        if states.len() <= depth || self.gates.len() <= depth {
            candle_core::bail!(
                "depth {depth} is out of range for {} gates and {} states",
                self.gates.len(),
                states.len()
            );
        }
        let (b, n_patches, dim) = first.dims3()?;
        let rows = (b * n_patches, dim);
        let first = first.reshape(rows)?; // [batch·patches, dim]
        self.gates
            .iter()
            .zip(states)
            .take(depth + 1)
            .map(|(gate, state)| {
                gate.logits(&first, &state.reshape(rows)?, self.stretch)?
                    .reshape((b, n_patches))
            })
            .collect()
    }

    /// Masks q⁽⁰⁾ to q⁽ᵏ⁾ of every depth; values never increase with depth.
    ///
    /// # Shapes
    /// - `states`: each `[batch, patches, dim]`
    /// - result: each `[batch, patches]`, in [0, 1]
    ///
    /// # Errors
    /// Fails if the states do not fit.
    pub fn masks(&self, states: &[Tensor], depth: usize) -> TensorResult<Vec<Tensor>> {
        let mut log_mask: Option<Tensor> = None;
        let mut masks = Vec::with_capacity(depth + 1);
        for logits in self.logits(states, depth)? {
            let log_keep = log_keep_from_logits(&logits)?;
            let sum = match log_mask {
                Some(log_mask) => (log_mask + log_keep)?,
                None => log_keep,
            };
            masks.push(sum.exp()?);
            log_mask = Some(sum);
        }
        Ok(masks)
    }

    /// The joint mask of all gates, which is DiffMask's attribution.
    ///
    /// # Shapes
    /// - `states`: each `[batch, patches, dim]`
    /// - result: `[batch, patches]`, in [0, 1]
    ///
    /// # Errors
    /// Fails if the states do not fit.
    pub fn mask(&self, states: &[Tensor]) -> TensorResult<Tensor> {
        let masks = self.masks(states, self.sizes.states - 1)?;
        masks
            .into_iter()
            .next_back()
            .ok_or_else(|| candle_core::Error::Msg("a model has at least two states".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use vitscope_kernels::Products;

    const SIZES: GateSizes = GateSizes {
        states: 4,
        dim: 8,
        hidden: 2,
    };

    fn gates(offset: f64) -> VotingGates {
        let tensors =
            VotingGates::initial_tensors(SIZES, offset, &mut Rng::new(5), &Device::Cpu).unwrap();
        VotingGates::load(SIZES, 15.0, &tensors.into_iter().collect()).unwrap()
    }

    fn states(batch: usize, n_patches: usize) -> Vec<Tensor> {
        let mut rng = Rng::new(6);
        (0..SIZES.states)
            .map(|_| {
                let shape = (batch, n_patches, SIZES.dim);
                rng.normal_tensor(shape, &Device::Cpu).unwrap()
            })
            .collect()
    }

    fn values(xs: &Tensor) -> Vec<f32> {
        xs.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_base_size_model_has_as_many_values_as_the_paper_s() {
        let sizes = GateSizes {
            states: 14,
            dim: 768,
            hidden: 192,
        };
        assert_eq!(sizes.parameters_per_gate(), 295_491);
        assert_eq!(sizes.parameters(), 4_137_642);
        let tensors =
            VotingGates::initial_tensors(SIZES, 0.0, &mut Rng::new(0), &Device::Cpu).unwrap();
        let counted: usize = tensors.values().map(Tensor::elem_count).sum();
        assert_eq!(counted, SIZES.parameters());
    }

    #[test]
    fn a_weight_normalized_layer_starts_as_the_plain_one() {
        let tensors =
            VotingGates::initial_tensors(SIZES, 0.0, &mut Rng::new(0), &Device::Cpu).unwrap();
        let direction = &tensors["gates.1.hidden.direction"];
        let weight = weight_norm(direction, &tensors["gates.1.hidden.length"]).unwrap();
        for (weight, direction) in values(&weight).into_iter().zip(values(direction)) {
            assert!((weight - direction).abs() < 1e-6);
        }
    }

    #[test]
    fn a_deeper_mask_is_nowhere_larger() {
        let masks = gates(1.0).masks(&states(2, 5), 3).unwrap();
        assert_eq!(masks.len(), 4);
        for pair in masks.windows(2) {
            let (shallow, deep) = (values(&pair[0]), values(&pair[1]));
            assert!(
                shallow
                    .iter()
                    .zip(&deep)
                    .all(|(shallow, deep)| deep <= shallow)
            );
            assert!(deep.iter().all(|q| (0.0..=1.0).contains(q)));
        }
    }

    #[test]
    fn logits_lie_within_the_stretch_around_the_offset() {
        let logits = gates(3.0).logits(&states(2, 5), 3).unwrap();
        let all = logits.iter().flat_map(values);
        assert!(all.into_iter().all(|logit| (logit - 3.0).abs() < 15.0));
    }

    #[test]
    fn frozen_gates_give_the_same_mask() {
        let gates = gates(2.0);
        let states = states(3, 7);
        let plain = values(&gates.mask(&states).unwrap());
        let frozen = values(
            &gates
                .freeze()
                .unwrap()
                .mask(&states, Products::F32)
                .unwrap(),
        );
        for (plain, frozen) in plain.into_iter().zip(frozen) {
            assert!((plain - frozen).abs() < 1e-5);
        }
    }

    #[test]
    fn too_few_states_are_an_error() {
        let gates = gates(2.0);
        let states = states(1, 2);
        assert!(gates.logits(&states[..2], 3).is_err());
        assert!(gates.logits(&[], 0).is_err());
        assert!(
            gates
                .freeze()
                .unwrap()
                .mask(&states[..2], Products::F32)
                .is_err()
        );
    }

    #[test]
    fn the_first_wrong_tensor_is_named_with_both_shapes() {
        let mut tensors: HashMap<String, Tensor> =
            VotingGates::initial_tensors(SIZES, 0.0, &mut Rng::new(0), &Device::Cpu)
                .unwrap()
                .into_iter()
                .collect();
        let wrong = Tensor::zeros(9, DType::F32, &Device::Cpu).unwrap();
        tensors.insert(BASELINE.into(), wrong);
        let message = VotingGates::load(SIZES, 15.0, &tensors)
            .err()
            .map(|err| err.to_string());
        assert_eq!(
            message.as_deref(),
            Some("gate tensor \"baseline\" has shape [9], but the model needs [8]")
        );
    }

    #[test]
    fn gradients_of_the_mask_are_those_of_finite_differences() {
        let tensors =
            VotingGates::initial_tensors(SIZES, 1.0, &mut Rng::new(5), &Device::Cpu).unwrap();
        let states = states(1, 3);
        let total = |tensors: &HashMap<String, Tensor>| {
            let gates = VotingGates::load(SIZES, 15.0, tensors).unwrap();
            gates.mask(&states).unwrap().sum_all().unwrap()
        };
        let vars: HashMap<String, Var> = tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
            .collect();
        let over_vars = vars
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let grads = total(&over_vars).backward().unwrap();
        for name in [
            "gates.0.hidden.direction",
            "gates.2.hidden.length",
            "gates.3.vote.bias",
            "gates.1.offset",
        ] {
            let grad = values(grads.get(&vars[name]).expect("a gradient"))[0];
            let step = 1e-2_f32;
            let moved = |by: f32| {
                let mut tensors: HashMap<String, Tensor> = tensors.clone().into_iter().collect();
                let mut entries = values(&tensors[name]);
                entries[0] += by;
                let shape = tensors[name].shape().clone();
                let tensor = Tensor::from_vec(entries, shape, &Device::Cpu).unwrap();
                tensors.insert(name.into(), tensor);
                total(&tensors).to_scalar::<f32>().unwrap()
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * step);
            assert!(
                (grad - expected).abs() < 1e-3 + 0.02 * expected.abs(),
                "{name}: {grad} {expected}"
            );
        }
    }
}
