//! Ranking gates: one network scores each patch by its Shapley value for each class.
//!
//! Based on FastSHAP (Jethani et al., arXiv:2107.07436) and ViT-Shapley (Covert et al., arXiv:2206.05282), with the
//! inputs of DiffMask: the states and the output of a clean pass.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | hᵢ | states of a patch | layer-normalized, i from 0 to blocks + 1 |
//! | p | output | class probabilities of the whole image |
//! | w_c | class vector | row c of the classifier minus the mean of the rows, of length 1/√width |
//! | a | first layer | gelu(Σᵢ Wᵢ·hᵢ + U·Σ_c p_c w_c + b) |
//! | m | second layer | gelu(V·\[a; mean of a over patches\] + d) |
//! | φ̃ | raw score of class c | p_c·(g·m + w_c·A·h/√features) + w_c·S·m, h the last state |
//! | v(1), v(0) | value of the whole image and of none | p_c; mean output for emptied pictures |
//! | φ | score | φ̃ + (v(1) − v(0) − Σφ̃) / patches |
//!
//! The first term distributes the probability of a class among the patches: g·m independently of the class, w_c·A·h by
//! the patch's similarity to the class. The last term contributes where the probability is small. A class is
//! represented only by its row of the classifier, so the gates can also score the classes of another classifier on the
//! same features, see [`under`](RankingGates::under).
//!
//! The scores of an image thus sum to the class's gain over the empty image: a score above 0 speaks for the class, one
//! below 0 against it.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, DType, Device, Result as TensorResult, Tensor};
use candle_nn::ops::softmax;

use super::tensors::{check_names, tensor_of, uniform_by_inputs};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::vit::{Vit, VitConfig};
use vitscope_kernels::{Activation, Linear, layer_norm};

/// Tensor name of the mean output for emptied pictures, `[classes]`.
pub const EMPTY_ANSWER: &str = "empty.answer";
/// Added to the variances of states.
const EPS: f64 = 1e-6;
/// Tensor name of A, which gates of older releases lack.
const ALIKE: &str = "alike.weight";

/// The sizes of ranking gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankingSizes {
    /// States of the model: blocks + 2.
    pub states: usize,
    /// Features of a token.
    pub dim: usize,
    /// Hidden units of both layers.
    pub hidden: usize,
    /// Features that the model's classifier reads.
    pub width: usize,
    /// Classes of the model.
    pub classes: usize,
}

impl RankingSizes {
    /// The sizes of gates for a model.
    pub fn new(config: &VitConfig, hidden: usize) -> Self {
        let dim = config.hidden_size;
        Self {
            states: config.num_hidden_layers + 2,
            dim,
            hidden,
            width: config.head().map_or(0, |head| head.width(dim)),
            classes: config.n_classes(),
        }
    }

    /// Names and shapes of all tensors, in the order of initialization.
    fn shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Self {
            states,
            dim,
            hidden,
            width,
            classes,
        } = *self;
        vec![
            ("first.weight", vec![hidden, states * dim]),
            ("answer.weight", vec![hidden, width]),
            ("first.bias", vec![hidden]),
            ("second.weight", vec![hidden, 2 * hidden]),
            ("second.bias", vec![hidden]),
            ("share.weight", vec![1, hidden]),
            (ALIKE, vec![width, dim]),
            ("score.weight", vec![width, hidden]),
            (EMPTY_ANSWER, vec![classes]),
        ]
    }
}

/// Ranking gates.
#[derive(Clone, Debug)]
pub struct RankingGates {
    sizes: RankingSizes,
    /// One row per class, `[classes, width]`.
    class_vectors: Tensor,
    first: Linear,
    answer: Linear,
    second: Linear,
    share_weight: Tensor,
    alike_weight: Option<Tensor>,
    score_weight: Tensor,
    empty_answer: Tensor,
}

/// Features of each patch.
struct Seen {
    /// The last state, `[batch, patches, dim]`.
    last: Tensor,
    /// The second layer m, `[batch, patches, hidden]`.
    features: Tensor,
}

impl RankingGates {
    /// Initial values: hidden layers uniform in ±1/√inputs. Weights that multiply class vectors are 0, so that
    /// directions without classes have no effect.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn initial_tensors(
        sizes: RankingSizes,
        rng: &mut Rng,
        device: &Device,
    ) -> TensorResult<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in sizes.shapes() {
            let tensor = match name {
                "first.weight" | "second.weight" => uniform_by_inputs(shape, rng, device)?,
                _ => Tensor::zeros(shape, DType::F32, device)?,
            };
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(tensors)
    }

    /// Builds gates for a model from named tensors, which are trained or the variables of a trainer.
    ///
    /// # Errors
    /// [`Error::Model`] if the model has no classifier, or for the first tensor that is missing, has the wrong shape or
    /// does not belong.
    pub fn load(vit: &Vit, hidden: usize, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let sizes = RankingSizes::new(vit.config(), hidden);
        let Some(class_weights) = vit.class_weights()? else {
            return Err(Error::Model(
                "the model has no classifier, so there is no class to score patches for".into(),
            ));
        };
        let shapes = sizes.shapes();
        check_names("ranking gates", &shapes, tensors)?;
        let tensor = |name: &str| tensor_of(name, &shapes, tensors);
        let first_bias = tensor("first.bias")?;
        Ok(Self {
            sizes,
            class_vectors: class_vectors(&class_weights)?,
            answer: Linear::new(tensor("answer.weight")?, first_bias.zeros_like()?.detach()),
            first: Linear::new(tensor("first.weight")?, first_bias),
            second: Linear::new(tensor("second.weight")?, tensor("second.bias")?),
            share_weight: tensor("share.weight")?,
            alike_weight: match tensors.contains_key(ALIKE) {
                true => Some(tensor(ALIKE)?),
                false => None,
            },
            score_weight: tensor("score.weight")?,
            empty_answer: tensor(EMPTY_ANSWER)?,
        })
    }

    /// Builds gates from tensors that were trained for another classifier on the same features; `None` if the
    /// classifier of `vit` reads other features.
    ///
    /// The output for an emptied image is not known, so all classes count as equally likely.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_under(
        vit: &Vit,
        hidden: usize,
        tensors: &HashMap<String, Tensor>,
    ) -> Result<Option<Self>> {
        let sizes = RankingSizes::new(vit.config(), hidden);
        let width = tensors.get("score.weight").map(Tensor::dims);
        if width.is_some_and(|dims| dims.first() != Some(&sizes.width)) {
            return Ok(None);
        }
        let mut tensors = tensors.clone();
        let empty = uniform_answer(sizes.classes, vit.device())?;
        tensors.insert(EMPTY_ANSWER.into(), empty);
        Self::load(vit, hidden, &tensors).map(Some)
    }

    /// Returns the same gates for the classes of another classifier on the same features; see
    /// [`load_under`](Self::load_under).
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn under(&self, vit: &Vit) -> TensorResult<Option<Self>> {
        let sizes = RankingSizes::new(vit.config(), self.sizes.hidden);
        let class_weights = (vit.class_weights()?).filter(|_| sizes.width == self.sizes.width);
        let Some(class_weights) = class_weights else {
            return Ok(None);
        };
        Ok(Some(Self {
            sizes,
            class_vectors: class_vectors(&class_weights)?,
            empty_answer: uniform_answer(sizes.classes, class_weights.device())?,
            ..self.clone()
        }))
    }

    /// The sizes of the gates.
    pub fn sizes(&self) -> RankingSizes {
        self.sizes
    }

    /// Returns the gates detached from the graph.
    #[must_use]
    pub fn freeze(&self) -> Self {
        Self {
            sizes: self.sizes,
            class_vectors: self.class_vectors.clone(),
            first: self.first.detach(),
            answer: self.answer.detach(),
            second: self.second.detach(),
            share_weight: self.share_weight.detach(),
            alike_weight: self.alike_weight.as_ref().map(Tensor::detach),
            score_weight: self.score_weight.detach(),
            empty_answer: self.empty_answer.detach(),
        }
    }

    /// Computes the features of the patches of a clean pass.
    ///
    /// # Shapes
    /// - `states`: the first `[batch, patches, dim]`, the others `[batch, tokens, dim]`, patches last
    /// - `answer`: probabilities, `[batch, classes]`
    fn look(&self, states: &[Tensor], answer: &Tensor) -> TensorResult<Seen> {
        let RankingSizes { dim, hidden, .. } = self.sizes;
        let Some(first) = states.first() else {
            candle_core::bail!("gates require the states of an unmasked forward pass");
        };
        if states.len() != self.sizes.states {
            candle_core::bail!(
                "gates for {} states were given {} states",
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
        let answer = answer.matmul(&self.class_vectors)?; // [batch, width]
        let answered = self.answer.forward(&answer)?.unsqueeze(1)?; // [batch, 1, hidden]
        let first = self.first.forward(&seen)?.broadcast_add(&answered)?;
        let first = Activation::Gelu.forward(&first)?; // [batch, patches, hidden]
        let mean = first.mean_keepdim(1)?;
        let mean = mean.broadcast_as((batch, n_patches, hidden))?;
        let second = self
            .second
            .forward(&Tensor::cat(&[&first, &mean.contiguous()?], 2)?)?;
        let last = normalized.len() - 1;
        Ok(Seen {
            last: normalized[last].clone(),
            features: Activation::Gelu.forward(&second)?,
        })
    }

    /// Vectors whose dot product with a patch measures its similarity to a class, A·w/√features, `[batch, dim]`.
    ///
    /// # Shapes
    /// - `class`: weighted sums of class vectors, `[batch, width]`
    fn alike(&self, class: &Tensor) -> TensorResult<Option<Tensor>> {
        let Some(weight) = &self.alike_weight else {
            return Ok(None);
        };
        (class.matmul(weight)? / (self.sizes.dim as f64).sqrt()).map(Some)
    }

    /// Raw scores φ̃ of all classes.
    ///
    /// # Shapes
    /// - `states`: the first `[batch, patches, dim]`, the others `[batch, tokens, dim]`, patches last
    /// - `answer`: probabilities, `[batch, classes]`
    /// - result: `[batch, patches, classes]`
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn raw_scores(&self, states: &[Tensor], answer: &Tensor) -> TensorResult<Tensor> {
        let Seen { last, features } = self.look(states, answer)?;
        let classes = self.class_vectors.matmul(&self.score_weight)?; // [classes, hidden]
        let mut shares = features.broadcast_matmul(&self.share_weight.t()?)?; // [batch, patches, 1]
        if let Some(alike) = self.alike(&self.class_vectors)? {
            shares = shares.broadcast_add(&last.broadcast_matmul(&alike.t()?)?)?; // [batch, patches, classes]
        }
        shares
            .broadcast_mul(&answer.unsqueeze(1)?)?
            .add(&features.broadcast_matmul(&classes.t()?)?)
    }

    /// Scores φ of one class per image, or of the contrast of two.
    ///
    /// # Shapes
    /// - `states`: as in [`raw_scores`](Self::raw_scores)
    /// - `logits`: of the whole images, `[batch, classes]`
    /// - `weights`: weights of the logits in the explained score, `[batch, classes]`: 1 for the class, −1 for the other
    /// - result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn scores(
        &self,
        states: &[Tensor],
        logits: &Tensor,
        weights: &Tensor,
    ) -> TensorResult<Tensor> {
        let answer = softmax(logits, D::Minus1)?;
        let Seen { last, features } = self.look(states, &answer)?;
        let class = weights.matmul(&self.class_vectors)?; // [batch, width]
        let class = class.matmul(&self.score_weight)?; // [batch, hidden]
        let divided = answer.mul(weights)?; // [batch, classes]
        let shares = divided.sum_keepdim(1)?.matmul(&self.share_weight)?; // [batch, hidden]
        let read = (class + shares)?.unsqueeze(1)?; // [batch, 1, hidden]
        let mut raw = features.broadcast_mul(&read)?.sum(2)?; // [batch, patches]
        if let Some(alike) = self.alike(&divided.matmul(&self.class_vectors)?)? {
            raw = (raw + last.broadcast_mul(&alike.unsqueeze(1)?)?.sum(2)?)?;
        }
        let gain = answer
            .broadcast_sub(&self.empty_answer)?
            .mul(weights)?
            .sum_keepdim(1)?; // v(1) − v(0)
        let missing = ((gain - raw.sum_keepdim(1)?)? / raw.dim(1)? as f64)?;
        raw.broadcast_add(&missing)
    }

    /// Scores for the class with the highest logit, see [`scores`](Self::scores).
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn scores_of_predicted(&self, states: &[Tensor], logits: &Tensor) -> TensorResult<Tensor> {
        self.scores(states, logits, &weights_of_predicted(logits)?)
    }

    /// Maps scores monotonically to a mask in (0, 1), where 0 becomes one half: ½ + ½·x/(1 + |x|), with x as a multiple
    /// of the mean share.
    ///
    /// # Shapes
    /// - `scores` and result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn mask_from_scores(scores: &Tensor) -> TensorResult<Tensor> {
        let shares = (scores * scores.dim(1)? as f64)?;
        (&shares / (shares.abs()? + 1.0)?)?.affine(0.5, 0.5)
    }
}

/// Rows of a classifier minus their mean, scaled to length 1/√width.
///
/// The common part of all classes does not distinguish them. This length lets an optimizer step change a score as much
/// as if classes were represented by one-hot vectors.
///
/// # Shapes
/// - `weights` and result: `[classes, width]`
fn class_vectors(weights: &Tensor) -> TensorResult<Tensor> {
    let weights = weights.detach().to_dtype(DType::F32)?;
    let apart = weights.broadcast_sub(&weights.mean_keepdim(0)?)?;
    let length = (apart.sqr()?.sum_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?.sqrt()?;
    let scale = (length * (weights.dim(1)? as f64).sqrt())?;
    apart.broadcast_div(&scale)
}

/// Weights of the logits that select the class with the highest logit; `logits` and result are `[batch, classes]`.
pub fn weights_of_predicted(logits: &Tensor) -> TensorResult<Tensor> {
    let best = logits.argmax_keepdim(D::Minus1)?; // [batch, 1]
    let ones = Tensor::ones(best.dims(), DType::F32, logits.device())?;
    let weights = Tensor::zeros(logits.dims(), DType::F32, logits.device())?;
    weights.scatter(&best, &ones, D::Minus1)
}

/// The same probability for every class, `[classes]`.
pub(super) fn uniform_answer(classes: usize, device: &Device) -> TensorResult<Tensor> {
    Tensor::full(1.0 / classes.max(1) as f32, classes, device)
}
