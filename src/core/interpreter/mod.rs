//! IA-ViT's interpreter: a single-head attention layer on the patch tokens, with its own classifier.
//!
//! Qiang et al., "Interpretability-Aware Vision Transformer", arXiv:2309.08035. The interpreter is trained to imitate
//! the model. By construction, its single attention layer determines its output.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | P | patch tokens | those after the special ones, after the final norm |
//! | S | `attention` | softmax(Q Kᵀ / √dim), Q, K, V linear in P |
//! | G | `mixed` | S V: no output projection, no residual, no norm |
//! | a | [`attribution`](Interpreter::attribution) | mean of S over queries |
//! | v | `logits` | mean: W·meanᵢ(Gᵢ) + b; position: W₂ s + b₂ with sᵢ = w₁·Gᵢ + b₁ |
//! | rᶜ | [`contributions`](Interpreter::contributions) | mean: (W\[c\]·Vⱼ) aⱼ; position: (w₁·Vⱼ) Σᵢ W₂\[c, i\] Sᵢⱼ |
//!
//! The logit of a class is the sum of its contributions plus a constant, because both classifiers are linear.
//!
//! **Deviations** from the authors' code: scores are divided by √dim, without which attention is nearly one-hot;
//! `unscaled` restores their behavior. The default pooling is the mean, as it supports any number of patches.

mod card;

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::vit::VitConfig;
use vitscope_kernels::{self as kernels, Linear};

pub use card::InterpreterCard;

/// Input of the interpreter's classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// A classifier of the mean over patches (the authors' Dog & Cat notebook).
    #[default]
    Mean,
    /// One number per patch, and a classifier of those (their CIFAR-10 notebook). Requires a fixed number of patches.
    Position,
}

/// Shape of an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterpreterShape {
    /// Features of a token.
    pub dim: usize,
    /// Classes of the model.
    pub classes: usize,
    /// Patches of the model's image.
    pub patches: usize,
    /// Pooling of the classifier.
    pub pooling: Pooling,
    /// Whether the division of scores by √dim is omitted.
    pub unscaled: bool,
}

impl InterpreterShape {
    /// The default shape for a model with this number of patches.
    pub fn new(config: &VitConfig, patches: usize) -> Self {
        Self {
            dim: config.hidden_size,
            classes: config.n_classes(),
            patches,
            pooling: Pooling::default(),
            unscaled: false,
        }
    }

    /// Name, inputs and outputs of each linear map.
    fn maps(&self) -> Vec<(&'static str, usize, usize)> {
        let Self {
            dim,
            classes,
            patches,
            ..
        } = *self;
        let mut maps = vec![("query", dim, dim), ("key", dim, dim), ("value", dim, dim)];
        match self.pooling {
            Pooling::Mean => maps.push(("classifier", dim, classes)),
            Pooling::Position => {
                maps.extend([("token", dim, 1), ("classifier", patches, classes)]);
            }
        }
        maps
    }
}

/// An interpreter with its weights.
#[derive(Clone, Debug)]
pub struct Interpreter {
    shape: InterpreterShape,
    query: Linear,
    key: Linear,
    value: Linear,
    token: Option<Linear>,
    classifier: Linear,
}

/// Intermediate results and logits of an interpreter for a batch of patch tokens.
#[derive(Clone, Debug)]
pub struct Reading {
    /// `[batch, patches, patches]`, rows are queries and sum to 1.
    pub attention: Tensor,
    /// `[batch, patches, dim]`
    pub values: Tensor,
    /// `[batch, classes]`
    pub logits: Tensor,
}

impl Interpreter {
    /// Random initial values: torch's uniform ±1/√inputs for query, key and value; Xavier-uniform weights and zero
    /// biases for the classifier.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn initial_tensors(
        shape: &InterpreterShape,
        rng: &mut Rng,
        device: &Device,
    ) -> TensorResult<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, inputs, outputs) in shape.maps() {
            let reads = matches!(name, "token" | "classifier");
            let bound = match reads {
                true => (6.0 / (inputs + outputs) as f64).sqrt(),
                false => (inputs as f64).sqrt().recip(),
            };
            let mut uniform = |shape: &[usize]| {
                rng.uniform_tensor(shape, device)?
                    .affine(2.0 * bound, -bound)
            };
            tensors.insert(format!("{name}.weight"), uniform(&[outputs, inputs])?);
            let bias = match reads {
                true => Tensor::zeros(outputs, DType::F32, device)?,
                false => uniform(&[outputs])?,
            };
            tensors.insert(format!("{name}.bias"), bias);
        }
        Ok(tensors)
    }

    /// Builds an interpreter from named tensors, which are trained or the variables of a trainer.
    ///
    /// # Errors
    /// [`Error::Model`] for the first tensor that is missing, has the wrong shape or does not belong.
    pub fn load(shape: InterpreterShape, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let mut maps = HashMap::new();
        for (name, inputs, outputs) in shape.maps() {
            let tensor = |leaf: &str, expected: &[usize]| {
                let name = format!("{name}.{leaf}");
                let tensor = tensors
                    .get(&name)
                    .ok_or_else(|| Error::Model(format!("interpreter lacks tensor {name:?}")))?;
                if tensor.dims() != expected {
                    return Err(Error::Model(format!(
                        "interpreter tensor {name:?} has shape {:?}, but the model needs {expected:?}",
                        tensor.dims()
                    )));
                }
                Ok(tensor.to_dtype(DType::F32)?)
            };
            let weight = tensor("weight", &[outputs, inputs])?;
            maps.insert(name, Linear::new(weight, tensor("bias", &[outputs])?));
        }
        if tensors.len() > 2 * maps.len() {
            return Err(Error::Model(format!(
                "interpreter has {} tensors, expected {}",
                tensors.len(),
                2 * maps.len()
            )));
        }
        let mut take = |name: &str| {
            maps.remove(name)
                .ok_or_else(|| Error::Model(format!("interpreter lacks {name:?}")))
        };
        Ok(Self {
            query: take("query")?,
            key: take("key")?,
            value: take("value")?,
            token: (shape.pooling == Pooling::Position)
                .then(|| take("token"))
                .transpose()?,
            classifier: take("classifier")?,
            shape,
        })
    }

    /// The interpreter's shape.
    pub fn shape(&self) -> &InterpreterShape {
        &self.shape
    }

    /// Attention of each patch to each patch.
    ///
    /// # Shapes
    /// - `patches`: tokens after the special ones, `[batch, patches, dim]`
    /// - result: `[batch, patches, patches]`, rows are queries and sum to 1
    ///
    /// # Errors
    /// Fails if the width does not match.
    pub fn attention(&self, patches: &Tensor) -> TensorResult<Tensor> {
        let (q, k) = (self.query.forward(patches)?, self.key.forward(patches)?);
        let scores = kernels::attention::scores(&q, &k, 1)?; // [batch, 1, patches, patches]
        let scores = match self.shape.unscaled {
            true => (scores * (self.shape.dim as f64).sqrt())?,
            false => scores,
        };
        kernels::softmax(&scores)?.squeeze(1)
    }

    /// Computes the interpreter's logits, with the attention and values that they come from.
    ///
    /// # Shapes
    /// - `patches`: `[batch, patches, dim]`
    ///
    /// # Errors
    /// Fails if the width does not match, or the number of patches if it is fixed.
    pub fn read(&self, patches: &Tensor) -> TensorResult<Reading> {
        let attention = self.attention(patches)?;
        let values = self.value.forward(patches)?;
        let mixed = kernels::attention::mix(&attention.unsqueeze(1)?, &values)?;
        let logits = match &self.token {
            None => self.classifier.forward(&mixed.mean(1)?)?,
            Some(token) => {
                let of_patches = token.forward(&mixed)?.squeeze(2)?; // [batch, patches]
                self.classifier.forward(&of_patches)?
            }
        };
        Ok(Reading {
            attention,
            values,
            logits,
        })
    }

    /// Mean attention to each patch, which is IA-ViT's attribution; sums to 1.
    ///
    /// # Shapes
    /// - `attention`: `[batch, patches, patches]`
    /// - result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn attribution(attention: &Tensor) -> TensorResult<Tensor> {
        attention.mean(1)
    }

    /// Exact contribution of each patch to a weighted sum of the interpreter's logits.
    ///
    /// # Shapes
    /// - `weights`: weights of the classes, `[batch, classes]`
    /// - result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails if the shapes differ.
    pub fn contributions(&self, reading: &Reading, weights: &Tensor) -> TensorResult<Tensor> {
        let [classifier, _] = self.classifier.parts();
        let weights = weights.matmul(classifier)?; // [batch, dim] or [batch, patches]
        match &self.token {
            None => {
                let of_values = reading.values.matmul(&weights.unsqueeze(2)?)?.squeeze(2)?;
                of_values * Self::attribution(&reading.attention)?
            }
            Some(token) => {
                let [token, _] = token.parts(); // [1, dim]
                let of_values = reading.values.broadcast_matmul(&token.t()?)?.squeeze(2)?;
                let of_attention = weights
                    .unsqueeze(1)?
                    .matmul(&reading.attention)?
                    .squeeze(1)?;
                of_values * of_attention
            }
        }
    }
}
