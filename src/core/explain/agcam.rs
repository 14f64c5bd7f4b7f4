//! AGCAM: sigmoid of the attention scores, weighted by the gradient of attention.
//!
//! Paper: Leem and Seo, "Attention Guided CAM", AAAI 2024, arXiv:2402.04563.
//! Softmax lets peaks of attention suppress everything else; a sigmoid of the raw scores does not.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | Sₗ | attention before softmax | |
//! | map | sum over blocks and heads | Σₗ Σₕ σ(Sₗ\[h, class, patches\]) · (∂z/∂Aₗ)⁺ |
//!
//! Cost: 1 forward, 1 backward. **Deviations**: none. Requires no trained weights.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, attention_sites, class_row, no_blocks};
use crate::error::Result;
use crate::vit::{Site, Vit};

/// Explains by gradient-guided attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Agcam {}

impl Options for Agcam {
    const ENTRY: Entry = Entry {
        name: "agcam",
        summary: "sigmoid of attention scores, guided by gradients",
        paper: "AGCAM, arXiv:2402.04563",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for Agcam {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values((0..vit.n_blocks()).map(Site::Scores))
            .and(Needs::gradients(attention_sites(vit)))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let mut map: Option<Tensor> = None; // [batch, tokens]
        for block_idx in 0..pass.vit().n_blocks() {
            let scores = class_row(&pass.value(Site::Scores(block_idx))?)?; // [batch, heads, tokens]
            let gradient = class_row(pass.gradient(Site::Attention(block_idx))?)?.relu()?;
            let guided = (candle_nn::ops::sigmoid(&scores)? * gradient)?.sum(1)?;
            map = Some(match map {
                Some(map) => (map + guided)?,
                None => guided,
            });
        }
        pass.patches_of(&map.ok_or_else(no_blocks)?, D::Minus1)
    }
}
