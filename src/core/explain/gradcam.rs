//! Grad-CAM on Vision Transformers: features or attention of the last block, weighted by gradients.
//!
//! Papers: Selvaraju et al., arXiv:1610.02391; on tokens as in `pytorch-grad-cam`, on attention as in the baselines of
//! Chefer et al., arXiv:2012.09838.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | T | tokens after the last block's first norm | |
//! | w | mean over patches of ∂z/∂T, per channel | |
//! | [`GradCam`] | | (Σ_d w_d T_d)⁺ |
//! | wₕ | mean over patches of the class row of ∂z/∂A_L, per head | |
//! | [`GradCamAttention`] | | (meanₕ wₕ A_L\[h, class, patches\])⁺ |
//!
//! If the model reads only the class token, patches have no gradient after the last block; therefore T is taken at the
//! norm before it. Cost: 1 forward, 1 backward through part of the last block. **Deviations**: the map is not scaled to
//! [0, 1]; the overlay does this. Requires no trained weights.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, class_row, last_block};
use crate::error::Result;
use crate::vit::{Site, Vit};

/// Explains by the tokens of the last block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GradCam {}

/// Explains by the last block's attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GradCamAttention {}

impl Options for GradCam {
    const ENTRY: Entry = Entry {
        name: "gradcam",
        summary: "channels of the last block's tokens, weighted by gradients",
        paper: "Grad-CAM, arXiv:1610.02391",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for GradCam {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        let site = last_block(vit).map(Site::Normed);
        Needs::values(site.iter().copied()).and(Needs::gradients(site))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let site = Site::Normed(last_block(pass.vit())?);
        let tokens = pass.patches_of(&pass.value(site)?, 1)?; // [batch, patches, dim]
        let weights = pass.patches_of(pass.gradient(site)?, 1)?.mean_keepdim(1)?; // [batch, 1, dim]
        Ok(tokens.broadcast_mul(&weights)?.sum(D::Minus1)?.relu()?)
    }
}

impl Options for GradCamAttention {
    const ENTRY: Entry = Entry {
        name: "gradcam-attention",
        summary: "heads of the last block's attention, weighted by gradients",
        paper: "baseline of arXiv:2012.09838",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for GradCamAttention {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        let site = last_block(vit).map(Site::Attention);
        Needs::values(site.iter().copied()).and(Needs::gradients(site))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let site = Site::Attention(last_block(pass.vit())?);
        let patches = |attn: &Tensor| pass.patches_of(&class_row(attn)?, D::Minus1); // [batch, heads, patches]
        let weights = patches(pass.gradient(site)?)?.mean_keepdim(D::Minus1)?;
        let attn = patches(&pass.value(site)?)?;
        Ok(attn.broadcast_mul(&weights)?.mean(1)?.relu()?)
    }
}
