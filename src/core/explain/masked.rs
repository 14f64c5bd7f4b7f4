//! Runs masked copies of an image through the model, a bounded number at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::{D, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Pass;
use crate::error::{Error, Result};
use crate::vit::{Link, NoTap, Site, Vit};

/// Copies that go through the model at once. They take 77 MB in the widest layer of ViT-B.
const COPIES: usize = 32;

/// Time between log messages about the progress of one image.
const REPORT: Duration = Duration::from_secs(5);

/// Edge and standard deviation, in pixels, of the Gaussian of [`Occlusion::PixelBlur`].
const BLUR: (usize, f32) = (15, 7.0);

/// How patches are hidden by a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Occlusion {
    /// Their pixels become 0 after normalization: gray, or the training pictures' mean color.
    #[default]
    PixelZero,
    /// Their pixels take the image's mean color.
    PixelMean,
    /// Their pixels are blurred.
    PixelBlur,
    /// Their tokens are removed after the position embedding, so the model sees a shorter sequence.
    TokenDrop,
    /// Their tokens become zeros after the position embedding.
    TokenZero,
}

impl Occlusion {
    /// True if tokens rather than pixels are hidden.
    fn is_of_tokens(self) -> bool {
        matches!(self, Self::TokenDrop | Self::TokenZero)
    }

    /// Sites whose values the occlusion reads.
    pub(super) fn needs(self) -> super::Needs {
        super::Needs::values(self.is_of_tokens().then_some(Site::Hidden(0)))
    }
}

/// The score of a masked copy, computed from the model's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// The class's probability, or the logit if the model has only one class, because its probability saturates.
    #[default]
    Prob,
    /// The logarithm of that probability.
    LogProb,
    /// The logit.
    Logit,
}

impl Score {
    /// Computes the score of each output.
    ///
    /// # Shapes
    /// - `logits`: `[n, classes]`
    /// - `weights`: `[classes]`, weights of the logits in the explained score
    fn of(self, logits: &Tensor, weights: &Tensor, link: Link) -> candle_core::Result<Vec<f32>> {
        let scores = match self {
            _ if logits.dim(D::Minus1)? == 1 => logits.clone(),
            Self::Prob => link.probabilities_of(logits)?,
            Self::LogProb => link.log_probabilities_of(logits)?,
            Self::Logit => logits.clone(),
        };
        scores.broadcast_mul(weights)?.sum(D::Minus1)?.to_vec1()
    }
}

/// An image of a pass, from which masked copies are made.
pub(super) struct Copies<'a> {
    vit: &'a Vit,
    occlusion: Occlusion,
    /// `[channels, height, width]`
    image: Vec<f32>,
    /// Replacement of hidden pixels, of the same shape as `image`.
    fill: Vec<f32>,
    /// Channels, height and width.
    dims: (usize, usize, usize),
    grid: (usize, usize),
    /// `[1, tokens, dim]`, the input of block 0, if tokens are hidden.
    hidden: Option<Tensor>,
    /// `[classes]`
    weights: Tensor,
}

impl<'a> Copies<'a> {
    /// Copies of image `image_idx`.
    pub(super) fn new(pass: &Pass<'a>, image_idx: usize, occlusion: Occlusion) -> Result<Self> {
        let image = pass.images().get(image_idx)?;
        let dims = image.dims3()?;
        let image: Vec<f32> = image.flatten_all()?.to_vec1()?;
        let hidden = if occlusion.is_of_tokens() {
            Some(pass.value(Site::Hidden(0))?.narrow(0, image_idx, 1)?)
        } else {
            None
        };
        Ok(Self {
            vit: pass.vit(),
            occlusion,
            fill: fill(occlusion, &image, dims),
            image,
            dims,
            grid: pass.grid()?,
            hidden,
            weights: pass.weights()?.get(image_idx)?,
        })
    }

    /// Score of the unmasked image, from the logits of its pass.
    pub(super) fn whole(&self, pass: &Pass<'_>, image_idx: usize, score: Score) -> Result<f32> {
        let logits = pass.logits();
        let logits = logits.map(|logits| logits.narrow(0, image_idx, 1));
        Ok(self.score(logits.transpose()?, score)?[0])
    }

    /// Scores under masks of one value per patch. If tokens are hidden, a patch is hidden where its value is below one
    /// half.
    pub(super) fn scores(&self, masks: &[Vec<f32>], score: Score) -> Result<Vec<f32>> {
        match &self.hidden {
            Some(hidden) => self.scores_of_tokens(hidden, masks, score),
            None => self.scores_of_pixels(masks.iter().map(|mask| self.pixels(mask)), score),
        }
    }

    /// Scores under masks of one value per pixel, row by row.
    pub(super) fn scores_of_pixels(
        &self,
        masks: impl Iterator<Item = Vec<f32>>,
        score: Score,
    ) -> Result<Vec<f32>> {
        self.scores_of_images(masks.map(|mask| self.masked(&mask)), score)
    }

    /// Scores of images of the same size, each `[channels, height, width]`.
    pub(super) fn scores_of_images(
        &self,
        mut images: impl Iterator<Item = Vec<f32>>,
        score: Score,
    ) -> Result<Vec<f32>> {
        let (channels, height_px, width_px) = self.dims;
        let mut tally = Tally::new(images.size_hint().1);
        let mut scores = Vec::new();
        loop {
            let (mut pixels, mut n_copies) = (Vec::new(), 0);
            for image in images.by_ref().take(COPIES) {
                pixels.extend_from_slice(&image);
                n_copies += 1;
            }
            if n_copies == 0 {
                return Ok(scores);
            }
            let dims = (n_copies, channels, height_px, width_px);
            let copies = Tensor::from_vec(pixels, dims, &Device::Cpu)?;
            let copies = copies.to_device(self.weights.device())?;
            scores.extend(self.score(self.vit.forward(&copies)?.logits, score)?);
            tally.add(n_copies);
        }
    }

    /// Batches masks that hide the same number of tokens.
    fn scores_of_tokens(
        &self,
        hidden: &Tensor,
        masks: &[Vec<f32>],
        score: Score,
    ) -> Result<Vec<f32>> {
        let n_special = self.vit.config().n_special_tokens();
        let mut by_length: BTreeMap<usize, Vec<(usize, Vec<u32>)>> = BTreeMap::new();
        for (mask_idx, mask) in masks.iter().enumerate() {
            let kept = mask.iter().zip(n_special as u32..);
            let kept = kept.filter_map(|(&keep, token)| (keep >= 0.5).then_some(token));
            let tokens: Vec<u32> = (0..n_special as u32).chain(kept).collect();
            let length = match self.occlusion {
                Occlusion::TokenDrop => tokens.len(),
                _ => 0,
            };
            by_length
                .entry(length)
                .or_default()
                .push((mask_idx, tokens));
        }
        let mut tally = Tally::new(Some(masks.len()));
        let mut scores = vec![0.0; masks.len()];
        for chunk in by_length.values().flat_map(|masks| masks.chunks(COPIES)) {
            let copies = chunk
                .iter()
                .map(|(_, tokens)| self.with_tokens(hidden, tokens))
                .collect::<Result<Vec<_>>>()?;
            let copies = Tensor::cat(&copies, 0)?; // [n, tokens, dim]
            let logits = self.vit.forward_from(0, &copies, &mut NoTap)?.logits;
            for (&(mask_idx, _), found) in chunk.iter().zip(self.score(logits, score)?) {
                scores[mask_idx] = found;
            }
            tally.add(chunk.len());
        }
        Ok(scores)
    }

    /// The input of block 0 with only `tokens` left; `[1, tokens, dim]`.
    fn with_tokens(&self, hidden: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        if self.occlusion == Occlusion::TokenDrop {
            let tokens = Tensor::new(tokens, hidden.device())?;
            return Ok(hidden.index_select(&tokens, 1)?);
        }
        let mut keep = vec![0f32; hidden.dim(1)?];
        for &token in tokens {
            keep[token as usize] = 1.0;
        }
        let n_tokens = keep.len();
        let keep = Tensor::from_vec(keep, (1, n_tokens, 1), hidden.device())?;
        Ok(hidden.broadcast_mul(&keep)?)
    }

    fn score(&self, logits: Option<Tensor>, score: Score) -> Result<Vec<f32>> {
        let logits = logits.ok_or_else(|| Error::Model("the model has no head".into()))?;
        Ok(score.of(&logits, &self.weights, self.vit.config().link())?)
    }

    /// Expands a mask of patches to a mask of pixels.
    pub(super) fn pixels(&self, mask: &[f32]) -> Vec<f32> {
        let (_, height_px, width_px) = self.dims;
        let (grid_h, grid_w) = self.grid;
        let (patch_h, patch_w) = (height_px / grid_h.max(1), width_px / grid_w.max(1));
        let mut pixels = Vec::with_capacity(height_px * width_px);
        for row in mask.chunks(grid_w.max(1)) {
            let start = pixels.len();
            for &keep in row {
                pixels.extend(std::iter::repeat_n(keep, patch_w));
            }
            let end = pixels.len();
            for _ in 1..patch_h {
                pixels.extend_from_within(start..end);
            }
        }
        pixels
    }

    /// The image itself, `[channels, height, width]`.
    pub(super) fn image(&self) -> &[f32] {
        &self.image
    }

    /// Blends the image, where `mask` is 1, with the fill, where it is 0.
    fn masked(&self, mask: &[f32]) -> Vec<f32> {
        let mix = |((&pixel, &fill), &keep): ((&f32, &f32), &f32)| fill + keep * (pixel - fill);
        let n_pixels = mask.len().max(1);
        let planes = self.image.chunks(n_pixels).zip(self.fill.chunks(n_pixels));
        planes
            .flat_map(|(image, fill)| image.iter().zip(fill).zip(mask).map(mix))
            .collect()
    }
}

/// Logs the progress of one image if it takes long.
struct Tally {
    done: usize,
    of: Option<usize>,
    told: Instant,
}

impl Tally {
    fn new(of: Option<usize>) -> Self {
        Self {
            done: 0,
            of,
            told: Instant::now(),
        }
    }

    fn add(&mut self, copies: usize) {
        self.done += copies;
        if self.told.elapsed() < REPORT {
            return;
        }
        self.told = Instant::now();
        match self.of {
            Some(of) => tracing::info!("one image: {} of {of} masked copies", self.done),
            None => tracing::info!("one image: {} masked copies", self.done),
        }
    }
}

/// Computes the replacement of hidden pixels.
fn fill(occlusion: Occlusion, image: &[f32], dims: (usize, usize, usize)) -> Vec<f32> {
    let (_, height_px, width_px) = dims;
    let planes = image.chunks((height_px * width_px).max(1));
    match occlusion {
        Occlusion::PixelMean => planes
            .flat_map(|plane| {
                let mean = plane.iter().sum::<f32>() / plane.len() as f32;
                std::iter::repeat_n(mean, plane.len())
            })
            .collect(),
        Occlusion::PixelBlur => planes
            .flat_map(|plane| blurred(plane, (height_px, width_px), BLUR, Beyond::Nearest))
            .collect(),
        Occlusion::PixelZero | Occlusion::TokenDrop | Occlusion::TokenZero => {
            vec![0.0; image.len()]
        }
    }
}

/// Values beyond the edge of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// The nearest pixel on the edge.
    Nearest,
    /// Zeros.
    Zeros,
}

/// Blurs a plane by a Gaussian with the given kernel edge and standard deviation.
pub fn blurred(
    plane: &[f32],
    (height_px, width_px): (usize, usize),
    (edge_px, sigma_px): (usize, f32),
    beyond: Beyond,
) -> Vec<f32> {
    let radius = edge_px / 2;
    let kernel: Vec<f32> = (0..edge_px)
        .map(|tap| {
            let distance = tap as f32 - radius as f32;
            (-distance * distance / (2.0 * sigma_px * sigma_px)).exp()
        })
        .collect();
    let total: f32 = kernel.iter().sum();
    let along = |plane: &[f32], n: usize, at: &dyn Fn(usize, usize) -> usize, lines: usize| {
        let mut out = vec![0f32; plane.len()];
        for line in 0..lines {
            for i in 0..n {
                let sum: f32 = kernel
                    .iter()
                    .enumerate()
                    .filter(|(tap, _)| {
                        let inside = radius..n + radius;
                        beyond == Beyond::Nearest || inside.contains(&(i + tap))
                    })
                    .map(|(tap, weight)| {
                        let from = (i + tap).saturating_sub(radius).min(n - 1);
                        weight * plane[at(line, from)]
                    })
                    .sum();
                out[at(line, i)] = sum / total;
            }
        }
        out
    };
    let rows = along(
        plane,
        width_px,
        &|row, column| row * width_px + column,
        height_px,
    );
    along(
        &rows,
        height_px,
        &|column, row| row * width_px + column,
        width_px,
    )
}

/// Weighted sum of masks, `Σ weight · mask`, one value per patch.
pub(super) fn weighted_sum(masks: &[Vec<f32>], weights: &[f32], n_patches: usize) -> Vec<f32> {
    let mut sum = vec![0f32; n_patches];
    for (mask, &weight) in masks.iter().zip(weights) {
        for (sum, &keep) in sum.iter_mut().zip(mask) {
            *sum += weight * keep;
        }
    }
    sum
}

/// Explains the images of a pass one by one, for methods that make many copies of each.
///
/// # Shapes
/// - result: `[batch, patches]`
pub(super) fn each_image(
    pass: &Pass<'_>,
    mut explain: impl FnMut(usize) -> Result<Vec<f32>>,
) -> Result<Tensor> {
    let batch = pass.images().dim(0)?;
    let (grid_h, grid_w) = pass.grid()?;
    let mut attributions = Vec::with_capacity(batch * grid_h * grid_w);
    for image_idx in 0..batch {
        attributions.extend(explain(image_idx)?);
    }
    let dims = (batch, grid_h * grid_w);
    Ok(Tensor::from_vec(
        attributions,
        dims,
        pass.images().device(),
    )?)
}
