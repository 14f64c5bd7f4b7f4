//! Score-CAM: each channel of the last block's tokens as a mask, weighted by the class's probability under it.
//!
//! Paper: Wang et al., "Score-CAM", arXiv:1910.01279.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | T_d | channel of the tokens after the last block's first norm | |
//! | w_d | | softmax over d of p(x ∘ T_d scaled to \[0, 1\]) |
//! | map | | (Σ_d w_d T_d)⁺ |
//!
//! Cost: 1 forward and one per channel: 769 for ViT-B. **Deviations**: channels are upsampled to pixels by nearest
//! neighbor, like all patch maps in this crate. Requires no trained weights.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::{Copies, Occlusion, Score, each_image, weighted_sum};
use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, last_block};
use crate::error::Result;
use crate::vit::{Site, Vit};

/// Explains by channels as masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreCam {}

impl Options for ScoreCam {
    const ENTRY: Entry = Entry {
        name: "score-cam",
        summary: "channels used as masks, weighted by the class's probability",
        paper: "Score-CAM, arXiv:1910.01279",
        forwards: "1 + D",
        backwards: "0",
        pace: Pace::C,
    };
}

impl Explainer for ScoreCam {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        channels_needed(vit)
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let channels = channels(pass)?;
        each_image(pass, |image_idx| {
            let channels: Vec<Vec<f32>> = channels.get(image_idx)?.to_vec2()?;
            let masks: Vec<Vec<f32>> = channels.iter().map(|channel| unit(channel)).collect();
            let copies = Copies::new(pass, image_idx, Occlusion::PixelZero)?;
            let mut weights = copies.scores(&masks, Score::Prob)?;
            let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights
                .iter_mut()
                .for_each(|weight| *weight = (*weight - largest).exp());
            let total: f32 = weights.iter().sum();
            let (grid_h, grid_w) = pass.grid()?;
            let sum = weighted_sum(&channels, &weights, grid_h * grid_w);
            Ok(sum.into_iter().map(|sum| (sum / total).max(0.0)).collect())
        })
    }
}

/// The tensors that [`channels`] reads.
pub(super) fn channels_needed(vit: &Vit) -> Needs {
    Needs::values(last_block(vit).map(Site::Normed))
}

/// Channels of the last block's normed patches, `[batch, dim, patches]`.
pub(super) fn channels(pass: &Pass<'_>) -> Result<Tensor> {
    let site = Site::Normed(last_block(pass.vit())?);
    let tokens = pass.patches_of(&pass.value(site)?, 1)?;
    Ok(tokens.transpose(1, 2)?)
}

/// Scales `values` to [0, 1]; equal values become 0.
pub(super) fn unit(values: &[f32]) -> Vec<f32> {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let span = high - low;
    let scaled = |&value: &f32| {
        if span > 0.0 {
            (value - low) / span
        } else {
            0.0
        }
    };
    values.iter().map(scaled).collect()
}
