//! Occlusion: drop of the class's probability when a window of patches is hidden.
//!
//! Paper: Zeiler and Fergus, arXiv:1311.2901.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | p | probability of the class | |
//! | map | mean over the windows that hide a patch | p(x) − p(x without the window) |
//!
//! Cost: 1 forward and one per window: 196 for windows of one patch on ViT-B/16. **Deviations**: windows cover whole
//! patches and lie inside the image. Requires no trained weights.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::{Copies, Occlusion, Score, each_image};
use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass};
use crate::error::{Error, Result};
use crate::vit::Vit;

/// Explains by hiding windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Occluding {
    /// Edge of the window in patches.
    pub window: usize,
    /// How patches are hidden.
    pub occlusion: Occlusion,
    /// Score whose drop is measured.
    pub score: Score,
}

impl Default for Occluding {
    fn default() -> Self {
        Self {
            window: 1,
            occlusion: Occlusion::default(),
            score: Score::default(),
        }
    }
}

impl Options for Occluding {
    const ENTRY: Entry = Entry {
        name: "occlusion",
        summary: "drop in the class's probability when patches are hidden",
        paper: "arXiv:1311.2901",
        forwards: "2 + N",
        backwards: "0",
        pace: Pace::C,
    };

    fn check(&self) -> Result<()> {
        if self.window == 0 {
            return Err(Error::Config(
                "window must be at least 1 patch, got 0".into(),
            ));
        }
        Ok(())
    }
}

impl Explainer for Occluding {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, _vit: &Vit) -> Needs {
        self.occlusion.needs()
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let (grid_h, grid_w) = pass.grid()?;
        let edge = |patches: usize| self.window.min(patches);
        let (window_h, window_w) = (edge(grid_h), edge(grid_w));
        let mut masks = vec![vec![1f32; grid_h * grid_w]]; // The first hides nothing.
        for top in 0..=grid_h - window_h {
            for left in 0..=grid_w - window_w {
                let mut mask = vec![1f32; grid_h * grid_w];
                for row in top..top + window_h {
                    mask[row * grid_w + left..][..window_w].fill(0.0);
                }
                masks.push(mask);
            }
        }
        each_image(pass, |image_idx| {
            let copies = Copies::new(pass, image_idx, self.occlusion)?;
            let scores = copies.scores(&masks, self.score)?;
            Ok(mean_fall(&masks, &scores))
        })
    }
}

/// Mean drop of the score over the masks that hide each patch; the first mask hides nothing.
fn mean_fall(masks: &[Vec<f32>], scores: &[f32]) -> Vec<f32> {
    let whole = scores.first().copied().unwrap_or(0.0);
    let n_patches = masks.first().map_or(0, Vec::len);
    (0..n_patches)
        .map(|patch| {
            let pairs = masks.iter().zip(scores);
            let hiding = pairs.filter(|(mask, _)| mask[patch] == 0.0);
            let falls = hiding.map(|(_, score)| whole - score);
            let (sum, n) = falls.fold((0.0, 0), |(sum, n), fall| (sum + fall, n + 1));
            if n == 0 { 0.0 } else { sum / n as f32 }
        })
        .collect()
}
