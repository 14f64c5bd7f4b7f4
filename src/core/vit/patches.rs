//! Patch embeddings of images, and position embeddings for any input size.

use candle_core::{Result, Tensor};

use super::{VitConfig, Weights, linear};
use vitscope_kernels::Linear;

/// A linear map of each patch's pixels; the checkpoint stores it as a convolution with stride = kernel.
#[derive(Clone, Debug)]
pub(crate) struct PatchEmbedding {
    projection: Linear,
    channels: usize,
    patch_px: usize,
}

impl PatchEmbedding {
    pub(crate) fn load(config: &VitConfig, weights: &Weights<'_>) -> Result<Self> {
        let convolution = linear(
            "embeddings.patch_embeddings.projection",
            config.patch_bias(),
            weights,
        )?;
        let [weight, bias] = convolution.parts();
        Ok(Self {
            // [dim, channels · patch · patch]
            projection: Linear::new(weight.flatten_from(1)?, bias.clone()),
            channels: config.num_channels,
            patch_px: config.patch_size,
        })
    }

    /// As [`Linear::rounded`].
    pub(crate) fn rounded(&self) -> Result<Self> {
        Ok(Self {
            projection: self.projection.rounded()?,
            ..self.clone()
        })
    }

    /// `[dim]`
    pub(crate) fn bias(&self) -> &Tensor {
        let [_, bias] = self.projection.parts();
        bias
    }

    /// `[batch, channels, height, width]` to `[batch, patches, dim]`.
    pub(crate) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, height_px, width_px) = images.dims4()?;
        let patch_px = self.patch_px;
        let fits = |edge_px: usize| edge_px > 0 && edge_px.is_multiple_of(patch_px);
        if channels != self.channels || !fits(height_px) || !fits(width_px) {
            candle_core::bail!(
                "the model expects images of {} channels and sides that are multiples of {patch_px} px, got {:?}",
                self.channels,
                images.shape()
            );
        }
        self.projection
            .forward(&pixels_of_patches(images, patch_px)?)
    }
}

/// Rearranges `[batch, channels, height, width]` to `[batch, patches, channels · patch · patch]`, patches row by row.
fn pixels_of_patches(images: &Tensor, patch_px: usize) -> Result<Tensor> {
    let (batch, channels, height_px, width_px) = images.dims4()?;
    let (grid_h, grid_w) = (height_px / patch_px, width_px / patch_px);
    images
        .reshape(vec![batch, channels, grid_h, patch_px, grid_w, patch_px])?
        .permute(vec![0, 2, 4, 1, 3, 5])? // [batch, grid_h, grid_w, channels, patch, patch]
        .reshape((batch, grid_h * grid_w, channels * patch_px * patch_px))
}

/// Learned position embeddings of the class (and distillation) token and of each patch.
#[derive(Clone, Debug)]
pub(crate) struct PositionEmbedding {
    positions: Tensor,
    grid: (usize, usize),
    antialias: bool,
}

impl PositionEmbedding {
    pub(crate) fn load(config: &VitConfig, weights: &Weights<'_>) -> Result<Self> {
        Ok(Self {
            positions: weights.tensor("embeddings.position_embeddings")?,
            grid: config.grid(),
            antialias: config.antialiased_positions(),
        })
    }

    /// `[1, positions, dim]` for a patch grid of this size; resampled bicubically if it differs from the model's own.
    pub(crate) fn at(&self, grid: (usize, usize)) -> Result<Tensor> {
        if grid == self.grid {
            return Ok(self.positions.clone());
        }
        let (from_h, from_w) = self.grid;
        let (to_h, to_w) = grid;
        let n_patches = from_h * from_w;
        let (_, n_positions, dim) = self.positions.dims3()?;
        let n_front = n_positions - n_patches;
        let front = self.positions.narrow(1, 0, n_front)?;
        let patches = self.positions.narrow(1, n_front, n_patches)?;
        let device = self.positions.device();
        let weights = |from: usize, to: usize| {
            Tensor::from_vec(cubic_weights(from, to, self.antialias), (to, from), device)
        };
        let rows = weights(from_h, to_h)?.matmul(&patches.reshape((from_h, from_w * dim))?)?; // [to_h, from_w · dim]
        let rows = rows
            .reshape((to_h, from_w, dim))?
            .transpose(0, 1)?
            .reshape((from_w, to_h * dim))?;
        let resized = weights(from_w, to_w)?
            .matmul(&rows)? // [to_w, to_h · dim]
            .reshape((to_w, to_h, dim))?
            .transpose(0, 1)?
            .reshape((1, to_h * to_w, dim))?;
        Tensor::cat(&[&front, &resized], 1)
    }
}

/// Weights of bicubic resampling from `from` to `to` samples, `[to, from]` row by row, as in PyTorch's
/// `interpolate(mode="bicubic", align_corners=False)`.
fn cubic_weights(from: usize, to: usize, antialias: bool) -> Vec<f32> {
    let scale = from as f64 / to as f64;
    // PyTorch uses Keys' a = -0.5 with antialiasing and -0.75 without.
    let (a, width) = if antialias {
        (-0.5, scale.max(1.0))
    } else {
        (-0.75, 1.0)
    };
    let kernel = |x: f64| {
        let x = x.abs();
        if x < 1.0 {
            ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * a
        } else {
            0.0
        }
    };
    let mut weights = vec![0f32; to * from];
    for (to_idx, row) in weights.chunks_exact_mut(from).enumerate() {
        let center = (to_idx as f64 + 0.5) * scale - 0.5;
        let first = (center - 2.0 * width).floor() as i64;
        let last = (center + 2.0 * width).ceil() as i64;
        let mut total = 0.0;
        for from_idx in first..=last {
            let inside = (0..from as i64).contains(&from_idx);
            // Samples outside repeat the edge; antialiasing instead omits them and renormalizes.
            if antialias && !inside {
                continue;
            }
            let weight = kernel((from_idx as f64 - center) / width);
            total += weight;
            row[from_idx.clamp(0, from as i64 - 1) as usize] += weight as f32;
        }
        for weight in row.iter_mut() {
            *weight /= total as f32;
        }
    }
    weights
}
