//! Trust in a model's prediction, from its probability and the familiarity of the image.
//!
//! Softmax distributes everything among the known classes, so a model can be certain about an image unlike any training
//! image. This module models the features of each class as Gaussian, with one covariance for all classes (Lee et al.,
//! NeurIPS 2018, arXiv:1807.03888). A logistic regression on held-out images (Platt, 1999) then estimates from distance
//! and probability how likely a prediction is correct.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | f | `class_token` | the class token after the final norm |
//! | Σ = L Lᵀ | `whitening`, L⁻ᵀ | covariance within classes |
//! | μ_c | `means`, L⁻¹ μ_c | mean of class c |
//! | d | distance | √((f − μ_c)ᵀ Σ⁻¹ (f − μ_c) / features), c the predicted class |
//! | trust | | σ(a·logit(p_c) + b·d + k) |
//!
//! The data is stored beside the model in `familiarity.safetensors`: `whitening`, `[features, features]`; `means`,
//! `[classes, features]`; `coefficients`, a, b and k; and `sure-from`, the smallest trust at which a prediction counts
//! as sure. The metadata holds `base_sha256`, the hash of the weights that the data was fitted for.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::folder::FAMILIARITY;
use crate::files::write_whole;
use crate::vit::VitConfig;
use crate::weights::{metadata, tensors_from_bytes};
use crate::{Error, Result};

const WHITENING: &str = "whitening";
const MEANS: &str = "means";
const COEFFICIENTS: &str = "coefficients";
const SURE_FROM: &str = "sure-from";
const BASE: &str = "base_sha256";
/// Probabilities are clamped to this distance from 0 and 1.
const EPS: f64 = 1e-6;

/// Statistics of the features that a model was trained on, and the trust derived from them.
#[derive(Clone, Debug)]
pub struct Familiarity {
    /// `[features, features]`
    whitening: Tensor,
    /// `[classes, features]`
    means: Tensor,
    /// a, b and k.
    coefficients: [f64; 3],
    /// Smallest trust at which a prediction counts as sure.
    pub sure_from: f32,
}

impl Familiarity {
    /// Creates the statistics from their tensors.
    ///
    /// # Shapes
    /// - `whitening`: `[features, features]`, L⁻ᵀ
    /// - `means`: `[classes, features]`, whitened: L⁻¹ μ_c
    pub fn new(whitening: Tensor, means: Tensor, coefficients: [f64; 3], sure_from: f32) -> Self {
        Self {
            whitening,
            means,
            coefficients,
            sure_from,
        }
    }

    /// Reads the file for a model with the given weights.
    ///
    /// # Errors
    /// [`Error::Model`] if a tensor is missing or has the wrong shape, or if the file belongs to other weights.
    pub(super) fn from_bytes(
        bytes: &[u8],
        config: &VitConfig,
        weights_sha256: &str,
        device: &Device,
    ) -> Result<Self> {
        let mut tensors = tensors_from_bytes(bytes, device)?;
        let refuse = |message: String| Err(Error::Model(message));
        match metadata(bytes)?.get(BASE) {
            Some(base) if base.eq_ignore_ascii_case(weights_sha256) => {}
            Some(base) => {
                return refuse(format!(
                    "the familiarity file was made for weights with sha256 {base:?}, but the model's weights have \
                     sha256 {weights_sha256:?}"
                ));
            }
            None => {
                return refuse(format!(
                    "the metadata lacks {BASE:?}, the hash of the model's weights"
                ));
            }
        }
        let (dim, n_classes) = (config.hidden_size, config.n_classes());
        let mut take = |name: &str, shape: &[usize]| match tensors.remove(name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.to_dtype(DType::F32)?),
            Some(tensor) => Err(Error::Model(format!(
                "tensor {name:?} has shape {:?}, but the model needs {shape:?}",
                tensor.dims()
            ))),
            None => Err(Error::Model(format!("tensor {name:?} is missing"))),
        };
        let whitening = take(WHITENING, &[dim, dim])?;
        let means = take(MEANS, &[n_classes, dim])?;
        let coefficients: Vec<f32> = take(COEFFICIENTS, &[3])?.to_vec1()?;
        let sure_from: Vec<f32> = take(SURE_FROM, &[1])?.to_vec1()?;
        if let Some(name) = tensors.keys().min() {
            return refuse(format!("unexpected tensor {name:?} in a familiarity file"));
        }
        let (&[a, b, k], &[sure_from]) = (coefficients.as_slice(), sure_from.as_slice()) else {
            return refuse("the familiarity file is damaged".into());
        };
        if !(0.0..=1.0).contains(&sure_from) {
            return refuse(format!(
                "{SURE_FROM:?} is {sure_from}, expected a number from 0 to 1"
            ));
        }
        let coefficients = [a, b, k].map(f64::from);
        Ok(Self::new(whitening, means, coefficients, sure_from))
    }

    /// Writes the file into `folder` atomically, with matrices in half precision.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, folder: &Path, weights_sha256: &str) -> Result<()> {
        let coefficients = self.coefficients.map(|value| value as f32);
        let tensors = [
            (WHITENING, self.whitening.to_dtype(DType::F16)?),
            (MEANS, self.means.to_dtype(DType::F16)?),
            (COEFFICIENTS, Tensor::new(&coefficients, &Device::Cpu)?),
            (SURE_FROM, Tensor::new(&[self.sure_from], &Device::Cpu)?),
        ];
        let metadata = HashMap::from([(BASE.to_owned(), weights_sha256.to_owned())]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|error| {
            Error::Model(format!("the familiarity file cannot be written ({error})"))
        })?;
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        write_whole(&folder.join(FAMILIARITY), &bytes)
    }

    /// Distance of each image from the predicted class's training features.
    ///
    /// # Shapes
    /// - `class_token`: `[batch, features]`
    /// - `named`: `[batch]`
    ///
    /// # Errors
    /// Fails if the model has no such class.
    pub fn distances(&self, class_token: &Tensor, named: &[usize]) -> Result<Vec<f32>> {
        let indices: Vec<u32> = named.iter().map(|&class| class as u32).collect();
        let indices = Tensor::new(indices.as_slice(), self.means.device())?;
        let means = self.means.index_select(&indices, 0)?; // [batch, features]
        let class_token = class_token.to_dtype(DType::F32)?.contiguous()?;
        let apart = (class_token.matmul(&self.whitening)? - means)?;
        Ok(apart.sqr()?.mean(1)?.sqrt()?.to_vec1()?)
    }

    /// Probability that a prediction with this probability and distance is correct.
    pub fn trust_at(&self, probability: f64, distance: f64) -> f64 {
        let [a, b, k] = self.coefficients;
        1.0 / (1.0 + (-(a * logit(probability) + b * distance + k)).exp())
    }

    /// Probability that each prediction is correct.
    ///
    /// # Shapes
    /// - `class_token`: `[batch, features]`
    /// - `named`: the predicted class and its probability, `[batch]`
    ///
    /// # Errors
    /// As [`distances`](Self::distances).
    pub fn trust(&self, class_token: &Tensor, named: &[(usize, f32)]) -> Result<Vec<f32>> {
        let classes: Vec<usize> = named.iter().map(|(class, _)| *class).collect();
        let distances = self.distances(class_token, &classes)?;
        let answers = named.iter().zip(distances);
        Ok(answers
            .map(|((_, probability), distance)| {
                self.trust_at(f64::from(*probability), f64::from(distance)) as f32
            })
            .collect())
    }
}

/// ln(p / (1 − p)), finite.
pub fn logit(probability: f64) -> f64 {
    let probability = probability.clamp(EPS, 1.0 - EPS);
    (probability / (1.0 - probability)).ln()
}
