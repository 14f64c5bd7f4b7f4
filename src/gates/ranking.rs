//! Gates that rank: one network scores each patch by its Shapley value for each class.
//!
//! After FastSHAP (Jethani et al., arXiv:2107.07436) and ViT-Shapley (Covert et al., arXiv:2206.05282), with DiffMask's
//! eyes: the states of a clean pass, and the clean answer.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | hᵢ | states of a patch | layer-normalized, i from 0 to blocks + 1 |
//! | p | answer | class probabilities of the whole image |
//! | a | first layer | gelu(Σᵢ Wᵢ·hᵢ + U·p + b) |
//! | m | second layer | gelu(V·\[a; mean of a over patches\] + d) |
//! | φ̃ | raw score of class c | w_c·m + e_c |
//! | v(1), v(0) | value of the whole image and of none | p_c; mean over pictures of the emptied picture's answer |
//! | φ | score | φ̃ + (v(1) − v(0) − Σφ̃) / patches |
//!
//! So the scores of an image add up to what the class gains by the image: a score above 0 speaks for the class, one
//! below 0 against it.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, DType, Device, Result as TensorResult, Tensor};
use candle_nn::ops::softmax;

use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear, layer_norm};
use crate::rng::Rng;
use crate::vit::VitConfig;

/// Tensor name of the mean answer to emptied pictures, `[classes]`.
pub const EMPTY_ANSWER: &str = "empty.answer";
/// Added to variances of states.
const EPS: f64 = 1e-6;

/// The sizes of ranking gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankingSizes {
    /// States of the model: blocks + 2.
    pub states: usize,
    /// Features of a token.
    pub dim: usize,
    /// Hidden units of both layers.
    pub hidden: usize,
    /// Classes of the model.
    pub classes: usize,
}

impl RankingSizes {
    /// The sizes for gates of a model.
    pub fn new(config: &VitConfig, hidden: usize) -> Self {
        Self {
            states: config.num_hidden_layers + 2,
            dim: config.hidden_size,
            hidden,
            classes: config.n_classes(),
        }
    }

    /// Names and shapes of all tensors, in the order of initialization.
    fn shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Self {
            states,
            dim,
            hidden,
            classes,
        } = *self;
        vec![
            ("first.weight", vec![hidden, states * dim]),
            ("answer.weight", vec![hidden, classes]),
            ("first.bias", vec![hidden]),
            ("second.weight", vec![hidden, 2 * hidden]),
            ("second.bias", vec![hidden]),
            ("score.weight", vec![classes, hidden]),
            ("score.bias", vec![classes]),
            (EMPTY_ANSWER, vec![classes]),
        ]
    }
}

/// Ranking gates over their tensors.
#[derive(Clone, Debug)]
pub struct RankingGates {
    sizes: RankingSizes,
    first: Linear,
    answer: Linear,
    second: Linear,
    score_weight: Tensor,
    score_bias: Tensor,
    empty_answer: Tensor,
}

impl RankingGates {
    /// Random starting values: uniform ±1/√inputs, scores close to 0.
    ///
    /// # Errors
    /// Fails where the device runs out of memory.
    pub fn initial_tensors(
        sizes: RankingSizes,
        rng: &mut Rng,
        device: &Device,
    ) -> TensorResult<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in sizes.shapes() {
            let tensor = if shape.len() == 1 {
                Tensor::zeros(shape, DType::F32, device)?
            } else {
                let bound = match name {
                    "score.weight" => 0.01,
                    _ => 1.0,
                } / (shape[1] as f64).sqrt();
                rng.uniform_tensor(shape, device)?
                    .affine(2.0 * bound, -bound)?
            };
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(tensors)
    }

    /// Gates over tensors by name; trained ones or the variables of a trainer.
    ///
    /// # Errors
    /// [`Error::Model`] naming the first tensor that is missing, has another shape or does not belong.
    pub fn load(sizes: RankingSizes, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let shapes = sizes.shapes();
        let known = |name: &str| shapes.iter().any(|(known, _)| *known == name);
        if let Some(name) = tensors.keys().filter(|name| !known(name)).min() {
            return Err(Error::Model(format!(
                "ranking gates have no tensor {name:?}"
            )));
        }
        let tensor = |name: &str| -> Result<Tensor> {
            let shape = shapes.iter().find(|(known, _)| *known == name);
            let shape = shape.map_or(&[][..], |(_, shape)| shape);
            let tensor = tensors
                .get(name)
                .ok_or_else(|| Error::Model(format!("gates lack tensor {name:?}")))?;
            if tensor.dims() != shape {
                return Err(Error::Model(format!(
                    "gate tensor {name:?} has shape {:?}, the model needs {shape:?}",
                    tensor.dims()
                )));
            }
            Ok(tensor.to_dtype(DType::F32)?)
        };
        let first_bias = tensor("first.bias")?;
        Ok(Self {
            sizes,
            answer: Linear::new(tensor("answer.weight")?, first_bias.zeros_like()?.detach()),
            first: Linear::new(tensor("first.weight")?, first_bias),
            second: Linear::new(tensor("second.weight")?, tensor("second.bias")?),
            score_weight: tensor("score.weight")?,
            score_bias: tensor("score.bias")?,
            empty_answer: tensor(EMPTY_ANSWER)?,
        })
    }

    /// What the gates were made for.
    pub fn sizes(&self) -> RankingSizes {
        self.sizes
    }

    /// The same without the graph that they may be part of.
    #[must_use]
    pub fn freeze(&self) -> Self {
        let frozen = |linear: &Linear| {
            let [weight, bias] = linear.parts();
            Linear::new(weight.detach(), bias.detach())
        };
        Self {
            sizes: self.sizes,
            first: frozen(&self.first),
            answer: frozen(&self.answer),
            second: frozen(&self.second),
            score_weight: self.score_weight.detach(),
            score_bias: self.score_bias.detach(),
            empty_answer: self.empty_answer.detach(),
        }
    }

    /// The second layer m.
    ///
    /// # Shapes
    /// - `states`: the first `[batch, patches, dim]`, each other `[batch, tokens, dim]`, its patches last
    /// - `answer`: probabilities, `[batch, classes]`
    /// - result: `[batch, patches, hidden]`
    fn features(&self, states: &[Tensor], answer: &Tensor) -> TensorResult<Tensor> {
        let RankingSizes { dim, hidden, .. } = self.sizes;
        let Some(first) = states.first() else {
            candle_core::bail!("gates need the states of a clean pass");
        };
        if states.len() != self.sizes.states {
            candle_core::bail!(
                "gates for {} states are asked about {}",
                self.sizes.states,
                states.len()
            );
        }
        let (batch, n_patches, _) = first.dims3()?;
        let one = Tensor::ones(dim, DType::F32, first.device())?;
        let zero = one.zeros_like()?;
        let normalized = states
            .iter()
            .map(|state| {
                let n_front = state.dim(1)? - n_patches;
                let patches = state.narrow(1, n_front, n_patches)?.contiguous()?;
                layer_norm(&patches.detach(), &one, &zero, EPS)
            })
            .collect::<TensorResult<Vec<_>>>()?;
        let seen = Tensor::cat(&normalized, 2)?; // [batch, patches, states·dim]
        let answered = self.answer.forward(answer)?.unsqueeze(1)?; // [batch, 1, hidden]
        let first = self.first.forward(&seen)?.broadcast_add(&answered)?;
        let first = Activation::Gelu.forward(&first)?; // [batch, patches, hidden]
        let mean = first.mean_keepdim(1)?;
        let mean = mean.broadcast_as((batch, n_patches, hidden))?;
        let second = self
            .second
            .forward(&Tensor::cat(&[&first, &mean.contiguous()?], 2)?)?;
        Activation::Gelu.forward(&second)
    }

    /// Raw scores φ̃ of all classes.
    ///
    /// # Shapes
    /// - `states`: the first `[batch, patches, dim]`, each other `[batch, tokens, dim]`, its patches last
    /// - `answer`: probabilities, `[batch, classes]`
    /// - result: `[batch, patches, classes]`
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn raw_scores(&self, states: &[Tensor], answer: &Tensor) -> TensorResult<Tensor> {
        let features = self.features(states, answer)?;
        Linear::new(self.score_weight.clone(), self.score_bias.clone()).forward(&features)
    }

    /// Scores φ of one class an image, or of one class less another.
    ///
    /// # Shapes
    /// - `states`: as in [`raw_scores`](Self::raw_scores)
    /// - `logits`: of the whole images, `[batch, classes]`
    /// - `weights`: of the explained score, `[batch, classes]`: 1 for the class, −1 for the other
    /// - result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn scores(
        &self,
        states: &[Tensor],
        logits: &Tensor,
        weights: &Tensor,
    ) -> TensorResult<Tensor> {
        let answer = softmax(logits, D::Minus1)?;
        let features = self.features(states, &answer)?;
        let class = weights.matmul(&self.score_weight)?.unsqueeze(1)?; // [batch, 1, hidden]
        let bias = weights.broadcast_mul(&self.score_bias)?.sum_keepdim(1)?; // [batch, 1]
        let raw = features
            .broadcast_mul(&class)?
            .sum(2)?
            .broadcast_add(&bias)?; // [batch, patches]
        let gain = answer
            .broadcast_sub(&self.empty_answer)?
            .mul(weights)?
            .sum_keepdim(1)?; // v(1) − v(0)
        let missing = ((gain - raw.sum_keepdim(1)?)? / raw.dim(1)? as f64)?;
        raw.broadcast_add(&missing)
    }

    /// Scores of the class with the highest logit, see [`scores`](Self::scores).
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn scores_of_predicted(&self, states: &[Tensor], logits: &Tensor) -> TensorResult<Tensor> {
        let best = logits.argmax_keepdim(D::Minus1)?; // [batch, 1]
        let ones = Tensor::ones(best.dims(), DType::F32, logits.device())?;
        let weights = Tensor::zeros(logits.dims(), DType::F32, logits.device())?;
        let weights = weights.scatter(&best, &ones, D::Minus1)?;
        self.scores(states, logits, &weights)
    }

    /// Scores as a mask in (0, 1) in the same order, one half where a score is 0: ½ + ½·x/(1 + |x|), x in mean shares
    /// of the whole.
    ///
    /// # Shapes
    /// - `scores` and result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails where the device runs out of memory.
    pub fn mask_from_scores(scores: &Tensor) -> TensorResult<Tensor> {
        let shares = (scores * scores.dim(1)? as f64)?;
        (&shares / (shares.abs()? + 1.0)?)?.affine(0.5, 0.5)
    }
}
