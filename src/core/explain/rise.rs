//! RISE: random masks, weighted by the class's probability under them.
//!
//! Paper: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation", BMVC 2018, arXiv:1806.07421.
//! A mask is a small random grid of kept and hidden cells, upsampled bilinearly and shifted by a part of a cell.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | Mᵢ | masks, of pixels | |
//! | S | map | Σᵢ p(x ∘ Mᵢ) Mᵢ / (N · E\[M\]), Eq. 6; its mean over each patch |
//!
//! Cost: `masks` forwards: offline only. **Deviations**: masks are the same for all images and frames, so that the maps
//! of neighboring frames differ only by content. E\[M\] is the mean of the masks, as in the authors' later code.
//! Requires no trained weights.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::{Copies, Occlusion, Score, each_image, weighted_sum};
use super::methods::{Entry, Options, Pace};
use super::{Explainer, Pass};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// Explains by random masks.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rise {
    /// Number of masks.
    pub masks: usize,
    /// Cells along each side of the random grid.
    pub cells: usize,
    /// Share of cells that are kept.
    pub keep: f32,
    /// Seed of the masks.
    pub seed: u64,
}

impl Default for Rise {
    fn default() -> Self {
        Self {
            masks: 2000,
            cells: 8,
            keep: 0.5,
            seed: 0,
        }
    }
}

impl Options for Rise {
    const ENTRY: Entry = Entry {
        name: "rise",
        summary: "random masks, weighted by the class's probability",
        paper: "RISE, arXiv:1806.07421",
        forwards: "2001",
        backwards: "0",
        pace: Pace::D,
    };

    fn check(&self) -> Result<()> {
        if self.masks == 0 || self.cells == 0 || !(self.keep > 0.0 && self.keep <= 1.0) {
            return Err(Error::Config(format!(
                "masks and cells must be at least 1, and keep must be above 0 and at most 1, got {}, {} and {}",
                self.masks, self.cells, self.keep
            )));
        }
        Ok(())
    }
}

impl Explainer for Rise {
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
        let (_, _, height_px, width_px) = pass.images().dims4()?;
        let mask = |mask_idx: usize| self.mask(mask_idx as u64, height_px, width_px);
        from_masks(pass, self.masks, mask)
    }
}

impl Rise {
    /// The mask with this index, one value per pixel, row by row.
    fn mask(&self, mask_idx: u64, height_px: usize, width_px: usize) -> Vec<f32> {
        let mut rng = Rng::for_item(self.seed, mask_idx);
        let cells: Vec<f32> = (0..self.cells * self.cells)
            .map(|_| f32::from(rng.uniform() < self.keep))
            .collect();
        let (cell_h, cell_w) = (
            height_px.div_ceil(self.cells),
            width_px.div_ceil(self.cells),
        );
        let (down, right) = (rng.below(cell_h.max(1)), rng.below(cell_w.max(1)));
        // One cell larger than the image, so that every shift fits.
        let rows = positions(height_px, down, (self.cells + 1) * cell_h, self.cells);
        let columns = positions(width_px, right, (self.cells + 1) * cell_w, self.cells);
        let mut mask = Vec::with_capacity(height_px * width_px);
        for &(row, low) in &rows {
            for &(column, left) in &columns {
                let at = |row: usize, column: usize| cells[row * self.cells + column];
                let (below, beside) = (
                    (row + 1).min(self.cells - 1),
                    (column + 1).min(self.cells - 1),
                );
                let upper = at(row, column) * (1.0 - left) + at(row, beside) * left;
                let lower = at(below, column) * (1.0 - left) + at(below, beside) * left;
                mask.push(upper * (1.0 - low) + lower * low);
            }
        }
        mask
    }
}

/// For each of `n` pixels, from `shift` on, along an edge of `length` pixels with `cells` cells: the index of the
/// preceding cell, and the distance from its center as a share of a cell.
fn positions(n: usize, shift: usize, length: usize, cells: usize) -> Vec<(usize, f32)> {
    (shift..shift + n)
        .map(|pixel| {
            let position = (pixel as f32 + 0.5) * cells as f32 / length as f32 - 0.5;
            let position = position.clamp(0.0, cells as f32 - 1.0);
            (position as usize, position.fract())
        })
        .collect()
}

/// RISE with given masks, numbered from 0, of one value per pixel, row by row.
///
/// # Shapes
/// - result: `[batch, patches]`
///
/// # Errors
/// Fails if the images do not fit the model.
pub fn from_masks(
    pass: &Pass<'_>,
    n_masks: usize,
    mask: impl Fn(usize) -> Vec<f32>,
) -> Result<Tensor> {
    let (_, _, height_px, width_px) = pass.images().dims4()?;
    let (grid_h, grid_w) = pass.grid()?;
    let (patch_h, patch_w) = (height_px / grid_h.max(1), width_px / grid_w.max(1));
    let patch_masks: Vec<Vec<f32>> = (0..n_masks)
        .map(|mask_idx| {
            let mut patches = vec![0f32; grid_h * grid_w];
            for (pixel, keep) in mask(mask_idx).into_iter().enumerate() {
                let (row, column) = (pixel / width_px / patch_h, pixel % width_px / patch_w);
                patches[row * grid_w + column] += keep / (patch_h * patch_w) as f32;
            }
            patches
        })
        .collect();
    let kept: f32 = patch_masks.iter().flatten().sum();
    let expected = kept / (grid_h * grid_w) as f32; // N · E[M]
    each_image(pass, |image_idx| {
        let copies = Copies::new(pass, image_idx, Occlusion::PixelZero)?;
        let scores = copies.scores_of_pixels((0..n_masks).map(&mask), Score::Prob)?;
        let sum = weighted_sum(&patch_masks, &scores, grid_h * grid_w);
        Ok(sum.into_iter().map(|sum| sum / expected).collect())
    })
}
