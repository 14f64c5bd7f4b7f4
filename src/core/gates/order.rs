//! Order gates: a small network reads what the class token takes from each patch, and predicts the order in which the
//! patches matter to a class.
//!
//! Their input is not the states of voting gates but the [`ClassStream`]: five numbers per block and patch instead of a
//! few hundred features. Two thousand pictures therefore suffice for training, and the gates explain classes that they
//! were not trained on.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | C⁺, C⁻ | evidence for/against the class | mean over heads of max(±C, 0), as a share of all blocks and patches |
//! | a | attention | mean over heads, as a share of the block's patches |
//! | x | features of a patch | C⁺, C⁻, a, 3×3 means of C⁺ and C⁻ per block; mean shares minus 1, over `scale` |
//! | m | second layer | gelu(V·\[u; mean of u over patches\] + d), u = gelu(W·x + b) |
//! | f | order | w·x + g·m, minus its mean over the patches |
//! | v(1), v(0) | value of the whole image and of none | p_c; the output for the emptied picture |
//! | φ | score | (p_c f + v(1) − v(0)) / patches |
//!
//! The scores of an image thus sum to the class's gain over the empty image. As f is learned from logarithms, most
//! patches are above 0; only the order is meaningful. For the contrast of two classes, p_c is the sum of both, and v
//! the difference.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, DType, Device, Result as TensorResult, Tensor};
use candle_nn::ops::softmax;

use super::EMPTY_ANSWER;
use super::class_stream::{ClassStream, first_followed, stream_sites};
use super::ranking::{uniform_answer, weights_of_predicted};
use super::tensors::{check_names, tensor_of, uniform_by_inputs};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::vit::{Output, Record, Vit, VitConfig};
use vitscope_kernels::{Activation, Linear};

/// Features of a patch per followed block.
const FEATURES_PER_BLOCK: usize = 5;
/// Features are clamped to this many deviations.
const LARGEST: f32 = 8.0;
/// Tensor name of the features' deviations, `[features]`.
pub const SCALE: &str = "scale";

/// The sizes of order gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderSizes {
    /// Features of a patch.
    pub features: usize,
    /// Hidden units of both layers.
    pub hidden: usize,
    /// Classes of the model.
    pub classes: usize,
}

impl OrderSizes {
    /// The sizes of gates for a model.
    pub fn new(config: &VitConfig, hidden: usize) -> Self {
        let n_blocks = config.num_hidden_layers;
        Self {
            features: FEATURES_PER_BLOCK * (n_blocks - first_followed(n_blocks)),
            hidden,
            classes: config.n_classes(),
        }
    }

    /// Names and shapes of all tensors, in the order of initialization.
    fn shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Self {
            features,
            hidden,
            classes,
        } = *self;
        vec![
            (SCALE, vec![features]),
            ("direct.weight", vec![1, features]),
            ("first.weight", vec![hidden, features]),
            ("first.bias", vec![hidden]),
            ("second.weight", vec![hidden, 2 * hidden]),
            ("second.bias", vec![hidden]),
            ("order.weight", vec![1, hidden]),
            (EMPTY_ANSWER, vec![classes]),
        ]
    }
}

/// Order gates.
#[derive(Clone, Debug)]
pub struct OrderGates {
    sizes: OrderSizes,
    scale: Tensor,
    direct_weight: Tensor,
    first: Linear,
    second: Linear,
    order_weight: Tensor,
    empty_answer: Tensor,
}

impl OrderGates {
    /// Initial values: hidden layers uniform in ±1/√inputs, `scale` 1, the rest 0.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn initial_tensors(
        sizes: OrderSizes,
        rng: &mut Rng,
        device: &Device,
    ) -> TensorResult<BTreeMap<String, Tensor>> {
        let tensor = |(name, shape): (&str, Vec<usize>)| {
            let tensor = match name {
                "first.weight" | "second.weight" => uniform_by_inputs(shape, rng, device)?,
                SCALE => Tensor::ones(shape, DType::F32, device)?,
                _ => Tensor::zeros(shape, DType::F32, device)?,
            };
            Ok((name.to_owned(), tensor))
        };
        sizes.shapes().into_iter().map(tensor).collect()
    }

    /// Builds gates for a model from named tensors, which are trained or the variables of a trainer.
    ///
    /// # Errors
    /// [`Error::Model`] if the model has no classifier, or for the first tensor that is missing, has the wrong shape or
    /// does not belong.
    pub fn load(vit: &Vit, hidden: usize, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        if vit.config().head().is_none() {
            return Err(Error::Model(
                "the model has no classifier, so there is no class to order patches for".into(),
            ));
        }
        let sizes = OrderSizes::new(vit.config(), hidden);
        let shapes = sizes.shapes();
        check_names("ordering gates", &shapes, tensors)?;
        let tensor = |name: &str| tensor_of(name, &shapes, tensors);
        let linear = |layer: &str| -> Result<Linear> {
            let part = |which: &str| tensor(&format!("{layer}.{which}"));
            Ok(Linear::new(part("weight")?, part("bias")?))
        };
        Ok(Self {
            sizes,
            scale: tensor(SCALE)?,
            direct_weight: tensor("direct.weight")?,
            first: linear("first")?,
            second: linear("second")?,
            order_weight: tensor("order.weight")?,
            empty_answer: tensor(EMPTY_ANSWER)?,
        })
    }

    /// Builds gates from tensors that were trained for another classifier of the same model.
    ///
    /// The output for an emptied image is not known, so all classes count as equally likely.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_under(vit: &Vit, hidden: usize, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let mut tensors = tensors.clone();
        let n_classes = vit.config().n_classes();
        let empty = uniform_answer(n_classes, vit.device())?;
        tensors.insert(EMPTY_ANSWER.into(), empty);
        Self::load(vit, hidden, &tensors)
    }

    /// Returns the same gates for the classes of another classifier; see [`load_under`](Self::load_under).
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn under(&self, vit: &Vit) -> TensorResult<Self> {
        let sizes = OrderSizes::new(vit.config(), self.sizes.hidden);
        Ok(Self {
            sizes,
            empty_answer: uniform_answer(sizes.classes, self.empty_answer.device())?,
            ..self.clone()
        })
    }

    /// The first block of a model through which gates follow the class token.
    pub fn first_block(vit: &Vit) -> usize {
        first_followed(vit.n_blocks())
    }

    /// The sizes of the gates.
    pub fn sizes(&self) -> OrderSizes {
        self.sizes
    }

    /// Returns the gates detached from the graph.
    #[must_use]
    pub fn freeze(&self) -> Self {
        Self {
            sizes: self.sizes,
            scale: self.scale.detach(),
            direct_weight: self.direct_weight.detach(),
            first: self.first.detach(),
            second: self.second.detach(),
            order_weight: self.order_weight.detach(),
            empty_answer: self.empty_answer.detach(),
        }
    }

    /// Runs the model on unmasked images, and scores their patches for the class with the highest logit.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`
    /// - result: the model's output, detached from the graph, and `[batch, patches]`
    ///
    /// # Errors
    /// Fails if `images` or the gates do not fit the model.
    pub fn pass(&self, vit: &Vit, images: &Tensor) -> Result<(Output, Tensor)> {
        let mut record = Record::new(stream_sites(vit));
        let output = vit.forward_with(images, &mut record)?;
        let logits = super::logits(output.logits)?.detach();
        let weights = weights_of_predicted(&logits)?;
        let stream = ClassStream::follow(vit, |site| record.get(site).cloned(), &weights)?;
        let (_, _, height_px, width_px) = images.dims4()?;
        let grid = vit.grid(height_px, width_px);
        let scores = self.scores(&stream, grid, &logits, &weights)?;
        let output = Output {
            tokens: output.tokens.detach(),
            logits: Some(logits),
        };
        Ok((output, scores))
    }

    /// The order f of the patches of each image.
    ///
    /// # Shapes
    /// - `features`: `[batch, patches, features]`, see [`features`]
    /// - result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn order(&self, features: &Tensor) -> TensorResult<Tensor> {
        let scaled = features.broadcast_div(&self.scale)?;
        let scaled = scaled.clamp(-LARGEST, LARGEST)?.detach();
        let first = Activation::Gelu.forward(&self.first.forward(&scaled)?)?;
        let mean = first.mean_keepdim(1)?.broadcast_as(first.shape())?;
        let both = Tensor::cat(&[&first, &mean.contiguous()?], 2)?;
        let second = Activation::Gelu.forward(&self.second.forward(&both)?)?;
        let direct = scaled.broadcast_matmul(&self.direct_weight.t()?)?;
        let order = (direct + second.broadcast_matmul(&self.order_weight.t()?)?)?.squeeze(2)?;
        order.broadcast_sub(&order.mean_keepdim(1)?)
    }

    /// Scores φ of one class per image, or of the contrast of two.
    ///
    /// # Shapes
    /// - `stream`: followed for `weights`
    /// - `grid`: rows and columns of patches
    /// - `logits`: of the whole images, `[batch, classes]`
    /// - `weights`: weights of the logits in the explained score, `[batch, classes]`: 1 for the class, −1 for the other
    /// - result: `[batch, patches]`
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn scores(
        &self,
        stream: &ClassStream,
        grid: (usize, usize),
        logits: &Tensor,
        weights: &Tensor,
    ) -> TensorResult<Tensor> {
        let answer = softmax(logits, D::Minus1)?;
        let order = self.order(&features(stream, grid)?)?; // [batch, patches]
        let present = answer.mul(&weights.abs()?)?.sum_keepdim(1)?; // [batch, 1]
        let gain = answer.broadcast_sub(&self.empty_answer)?;
        let gain = gain.mul(weights)?.sum_keepdim(1)?; // v(1) − v(0)
        let scores = order.broadcast_mul(&present)?.broadcast_add(&gain)?;
        let n_patches = scores.dim(1)?;
        scores / n_patches as f64
    }
}

/// Features of each patch, in mean shares minus their mean; detached from the graph.
///
/// # Shapes
/// - `grid`: rows and columns of patches
/// - result: `[batch, patches, 5 · followed]`
///
/// # Errors
/// Fails if the shapes do not fit.
pub fn features(stream: &ClassStream, grid: (usize, usize)) -> TensorResult<Tensor> {
    let (batch, n_blocks, _, n_patches) = stream.contributions.dims4()?;
    let contributions = stream.contributions.detach();
    let shares = |xs: &Tensor, of: &[usize]| -> TensorResult<Tensor> {
        let total = (xs.sum_keepdim(of)? + f64::from(f32::MIN_POSITIVE))?;
        xs.broadcast_div(&total)? * n_patches as f64
    };
    let speaking = |xs: Tensor| shares(&xs.relu()?.mean(2)?, &[1, 2]); // [batch, followed, patches]
    let speaks_for = speaking(contributions.clone())?;
    let against = speaking(contributions.neg()?)?;
    let attention = shares(&stream.attention.detach(), &[2])?;
    let around = neighborhood(grid, contributions.device())?; // [patches, patches]
    let blurred = |xs: &Tensor| {
        let rows = xs.reshape((batch * n_blocks, n_patches))?;
        rows.matmul(&around)?.reshape((batch, n_blocks, n_patches))
    };
    let (near_for, near_against) = (blurred(&speaks_for)?, blurred(&against)?);
    let all = [speaks_for, against, attention, near_for, near_against];
    let all = Tensor::cat(&all, 1)?; // [batch, 5 · followed, patches]
    let apart = all.broadcast_sub(&all.mean_keepdim(2)?)?;
    apart.transpose(1, 2)?.contiguous()
}

/// Column j averages over the 3×3 patches around patch j, clamped to the grid.
fn neighborhood((rows, columns): (usize, usize), device: &Device) -> TensorResult<Tensor> {
    let n_patches = rows * columns;
    let mut mean = vec![0f32; n_patches * n_patches];
    let near = |place: usize, step: usize, n: usize| (place + step).clamp(1, n) - 1;
    for patch in 0..n_patches {
        for step in 0..9 {
            let row = near(patch / columns, step / 3, rows);
            let column = near(patch % columns, step % 3, columns);
            mean[(row * columns + column) * n_patches + patch] += 1.0 / 9.0;
        }
    }
    Tensor::from_vec(mean, (n_patches, n_patches), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_at_the_corner_counts_itself_four_times() {
        let mean = neighborhood((3, 3), &Device::Cpu).unwrap();
        let columns: Vec<Vec<f32>> = mean.t().unwrap().to_vec2().unwrap();
        let ninths = |of: &[f32]| -> Vec<f32> { of.iter().map(|x| (x * 9.0).round()).collect() };
        let corner = [4.0, 2.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(ninths(&columns[0]), corner);
        assert_eq!(ninths(&columns[4]), [1.0; 9]);
    }
}
