//! Gradients with respect to the image: saliency, gradient × input, integrated gradients, SmoothGrad.
//!
//! Papers: saliency, Simonyan et al., arXiv:1312.6034; gradient × input, Shrikumar et al., arXiv:1605.01713;
//! integrated gradients, Sundararajan et al., arXiv:1703.01365; SmoothGrad, Smilkov et al., arXiv:1706.03825.
//!
//! | method | pixel | patch |
//! |---|---|---|
//! | [`Saliency`] | max over channels of \|∂z/∂x\| | sum |
//! | [`GradientInput`] | x · ∂z/∂x | sum over channels and pixels |
//! | [`IntegratedGradients`] | x · mean over k of ∂z/∂x at x (k − ½)/n | sum over channels and pixels |
//! | [`SmoothGrad`] | \|mean over noisy copies of ∂z/∂x\| | sum over channels and pixels |
//!
//! The patch embedding is linear, so x · ∂z/∂x summed over a patch is (E(x) − E(0)) · ∂z/∂E for its embedding E.
//! Gradient × input and integrated gradients therefore need no gradient of the pixels.
//!
//! Integrated gradients sum to the difference of the score between the image and gray. If `steps` points are too few
//! for that, their number is tripled, which reuses the existing points, until the sum is off by at most `tolerance` of
//! the difference or `most-steps` would be exceeded. In the latter case, a warning is logged.
//!
//! Cost: 1 forward and 1 backward, times `steps` or `copies`; integrated gradients take one more forward, for gray.
//! **Deviations**: the baseline image is 0 after normalization, which is gray or the mean color of the training
//! pictures. Signed maps keep their sign. Requires no trained weights.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::each_image;
use super::methods::{Entry, Options, Pace};
use super::pass::Forward;
use super::{Explainer, Needs, Pass};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::vit::{Site, Vit};

/// Explains by the gradient's absolute value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Saliency {}

/// Explains by the gradient times the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GradientInput {}

/// Explains by gradients along the path from gray to the image.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct IntegratedGradients {
    /// Initial number of points on the path.
    pub steps: usize,
    /// Largest deviation of the sum from the rise of the score, as a share of the rise; 0 always uses `steps` points.
    pub tolerance: f64,
    /// Largest number of points on the path, used if the sum deviates too much.
    pub most_steps: usize,
}

impl Default for IntegratedGradients {
    fn default() -> Self {
        Self {
            steps: 50,
            tolerance: 0.05,
            most_steps: 450,
        }
    }
}

/// Explains by the mean gradient of noisy copies.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SmoothGrad {
    /// Noisy copies of each image.
    pub copies: usize,
    /// Standard deviation of the noise, as a share of the image's range.
    pub noise: f64,
    /// Seed of the noise; all images get the same noise.
    pub seed: u64,
}

impl Default for SmoothGrad {
    fn default() -> Self {
        Self {
            copies: 50,
            noise: 0.15,
            seed: 0,
        }
    }
}

impl Options for Saliency {
    const ENTRY: Entry = Entry {
        name: "saliency",
        summary: "absolute gradient of the image",
        paper: "arXiv:1312.6034",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for Saliency {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, _vit: &Vit) -> Needs {
        Needs::gradients([Site::Pixels])
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let strongest = pass.gradient(Site::Pixels)?.abs()?.max(1)?; // [batch, height, width]
        sum_of_patches(pass, &strongest.unsqueeze(1)?)
    }
}

impl Options for GradientInput {
    const ENTRY: Entry = Entry {
        name: "gradient-x-input",
        summary: "gradient times the image",
        paper: "arXiv:1605.01713",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for GradientInput {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, _vit: &Vit) -> Needs {
        Needs::values([Site::PatchEmbeddings]).and(Needs::gradients([Site::PatchEmbeddings]))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        times_embeddings(pass, pass.gradient(Site::PatchEmbeddings)?)
    }
}

impl Options for IntegratedGradients {
    const ENTRY: Entry = Entry {
        name: "integrated-gradients",
        summary: "gradients along the path from gray to the image",
        paper: "arXiv:1703.01365",
        forwards: "52 to 452",
        backwards: "50 to 450",
        pace: Pace::C,
    };

    fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        at_least_zero("tolerance", self.tolerance)
    }
}

/// Points on the path that go through the model in one batch.
const POINTS: usize = 10;

/// The path of one image from gray.
struct Way<'a> {
    vit: &'a Vit,
    /// `[1, 3, height, width]`
    image: Tensor,
    /// `[1, patches, dim]`: the embeddings minus those of gray.
    embeddings: Tensor,
    /// `[1, classes]`, weights of the logits in the explained score.
    weights: Tensor,
    /// Sum of the gradients at the points computed so far, `[1, patches, dim]`.
    sum: Option<Tensor>,
}

impl Way<'_> {
    /// Adds the gradients at the midpoints of `steps` equal parts of the path. If `is_tripled`, the sum already
    /// contains a third of them, which is every third point.
    fn walk(&mut self, steps: usize, is_tripled: bool) -> Result<()> {
        let is_new = |step: &usize| !(is_tripled && step % 3 == 1);
        let new: Vec<usize> = (0..steps).filter(is_new).collect();
        for steps_at_once in new.chunks(POINTS) {
            let at = |step: &usize| &self.image * ((*step as f64 + 0.5) / steps as f64);
            let points = steps_at_once.iter().map(at);
            let points = Tensor::cat(&points.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
            let needs = Needs::gradients([Site::PatchEmbeddings]);
            let forward = Forward::run(self.vit, &points, needs)?;
            let pass = forward.toward_weights(Some(self.weights.clone()))?;
            let gradient = pass.gradient(Site::PatchEmbeddings)?.sum_keepdim(0)?;
            self.sum = Some(match self.sum.take() {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            });
        }
        Ok(())
    }

    /// The attribution after `steps` points, `[patches]`.
    fn attribution(&self, steps: usize) -> Result<Vec<f32>> {
        let sum = self.sum.as_ref();
        let sum =
            sum.ok_or_else(|| Error::Config("there is no image to compute gradients for".into()))?;
        let mean = (sum / steps as f64)?;
        Ok((&self.embeddings * mean)?
            .sum(D::Minus1)?
            .squeeze(0)?
            .to_vec1()?)
    }

    /// Difference of the score between the image, whose logits are `[1, classes]`, and gray.
    fn rise(&self, logits: &Tensor) -> Result<f64> {
        let gray = self.vit.forward(&self.image.zeros_like()?)?.logits;
        let gray = gray.ok_or_else(|| Error::Model("the model has no head".into()))?;
        let rise = ((logits - gray)? * &self.weights)?.sum_all()?;
        Ok(f64::from(rise.to_scalar::<f32>()?))
    }
}

impl IntegratedGradients {
    /// Attribution of one image with the given `logits`.
    fn complete(&self, mut way: Way<'_>, logits: &Tensor) -> Result<Vec<f32>> {
        let mut steps = self.steps;
        way.walk(steps, false)?;
        let mut found = way.attribution(steps)?;
        if self.tolerance == 0.0 {
            return Ok(found);
        }
        let due = way.rise(logits)?;
        let total = |found: &[f32]| found.iter().copied().map(f64::from).sum::<f64>();
        let is_far = |found: &[f32]| (total(found) - due).abs() > self.tolerance * due.abs();
        while is_far(&found) && 3 * steps <= self.most_steps {
            steps *= 3;
            way.walk(steps, true)?;
            found = way.attribution(steps)?;
        }
        if is_far(&found) {
            tracing::warn!(
                "integrated gradients sum to {:.3} after {steps} steps, but the score rises by {due:.3}; raise \
                 integrated-gradients.most-steps to allow more steps",
                total(&found)
            );
        }
        Ok(found)
    }
}

impl Explainer for IntegratedGradients {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, _vit: &Vit) -> Needs {
        Needs::values([Site::PatchEmbeddings])
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let embeddings = pass.value(Site::PatchEmbeddings)?;
        let embeddings = embeddings.broadcast_sub(pass.vit().patch_bias())?;
        let logits = pass.logits();
        let logits = logits.ok_or_else(|| Error::Model("the model has no head".into()))?;
        each_image(pass, |image_idx| {
            let of_image = |batch: &Tensor| batch.narrow(0, image_idx, 1);
            let way = Way {
                vit: pass.vit(),
                image: of_image(pass.images())?,
                embeddings: of_image(&embeddings)?,
                weights: of_image(pass.weights()?)?,
                sum: None,
            };
            self.complete(way, &of_image(&logits)?)
        })
    }
}

impl Options for SmoothGrad {
    const ENTRY: Entry = Entry {
        name: "smoothgrad",
        summary: "mean gradient over noisy copies of the image",
        paper: "arXiv:1706.03825",
        forwards: "51",
        backwards: "50",
        pace: Pace::C,
    };

    fn check(&self) -> Result<()> {
        at_least_one("copies", self.copies)?;
        at_least_zero("noise", self.noise)
    }
}

impl Explainer for SmoothGrad {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let images = pass.images();
        let (_, channels, height_px, width_px) = images.dims4()?;
        let flat = images.flatten_from(1)?;
        let range = (flat.max_keepdim(1)? - flat.min_keepdim(1)?)?;
        let sigma = (range * self.noise)?.unsqueeze(2)?.unsqueeze(3)?; // [batch, 1, 1, 1]
        let noisy = (0..self.copies as u64).map(|copy| {
            let mut rng = Rng::for_item(self.seed, copy);
            let dims = (1, channels, height_px, width_px);
            let noise = rng.normal_tensor(dims, images.device())?;
            images + noise.broadcast_mul(&sigma)?
        });
        smooth(pass, noisy)
    }
}

/// SmoothGrad of given noisy copies: absolute values of their mean gradient, summed over patches.
///
/// # Shapes
/// - `images`: each `[batch, 3, height, width]`
/// - result: `[batch, patches]`
///
/// # Errors
/// Fails if there are no copies, or if one does not fit the model.
pub fn smooth(
    pass: &Pass<'_>,
    images: impl Iterator<Item = candle_core::Result<Tensor>>,
) -> Result<Tensor> {
    sum_of_patches(pass, &mean_gradient(pass, images)?.abs()?)
}

/// Mean pixel gradient over `images`.
fn mean_gradient(
    pass: &Pass<'_>,
    images: impl Iterator<Item = candle_core::Result<Tensor>>,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    let mut n_images = 0_usize;
    for images in images {
        let images = images?;
        let forward = Forward::run(pass.vit(), &images, Needs::gradients([Site::Pixels]))?;
        let other = forward.toward_weights(Some(pass.weights()?.clone()))?;
        let gradient = other.gradient(Site::Pixels)?;
        sum = Some(match sum {
            Some(sum) => (sum + gradient)?,
            None => gradient.clone(),
        });
        n_images += 1;
    }
    let sum =
        sum.ok_or_else(|| Error::Config("there is no image to compute gradients for".into()))?;
    Ok((sum / n_images as f64)?)
}

/// Pixels times their gradient, summed over patches, computed from the patch embeddings.
///
/// # Shapes
/// - `gradient`: `[batch, patches, dim]`
/// - result: `[batch, patches]`
fn times_embeddings(pass: &Pass<'_>, gradient: &Tensor) -> Result<Tensor> {
    let embeddings = pass.value(Site::PatchEmbeddings)?;
    let of_pixels = embeddings.broadcast_sub(pass.vit().patch_bias())?;
    Ok((of_pixels * gradient)?.sum(D::Minus1)?)
}

/// Sums over channels and the pixels of each patch.
///
/// # Shapes
/// - `xs`: `[batch, channels, height, width]`
/// - result: `[batch, patches]`
fn sum_of_patches(pass: &Pass<'_>, xs: &Tensor) -> Result<Tensor> {
    let (batch, _, height_px, width_px) = xs.dims4()?;
    let (grid_h, grid_w) = pass.grid()?;
    let (patch_h, patch_w) = (height_px / grid_h, width_px / grid_w);
    let patches = xs
        .sum(1)?
        .reshape(vec![batch, grid_h, patch_h, grid_w, patch_w])?
        .sum((2, 4))?; // [batch, grid_h, grid_w]
    Ok(patches.reshape((batch, grid_h * grid_w))?)
}

fn at_least_zero(name: &str, value: f64) -> Result<()> {
    if !(value.is_finite() && value >= 0.0) {
        return Err(Error::Config(format!(
            "{name} must be at least 0, got {value}"
        )));
    }
    Ok(())
}

fn at_least_one(name: &str, count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::Config(format!("{name} must be at least 1, got 0")));
    }
    Ok(())
}
