//! Beyond Intuition: attention perceived head by head, times integrated gradients of the last block's attention.
//!
//! Paper: Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR/ICML 2023; the
//! head-wise variant (BT-H).
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | Iₕ | weight of a head | mean of \|Aₕᵀ ∇Aₕ\|, normalized over the heads of a block |
//! | Ā | `perceived` | Σₕ Iₕ Aₕ |
//! | R | `relevance` | R ← R + Ā R; its class row |
//! | map | | R ∘ class row of meanₕ of the gradient integrated from gray to the image |
//!
//! Cost: 21 forwards and 21 backwards, 20 of which run only part of the last block. **Deviations**: all blocks count by
//! default (`start` = 0); the authors' code skips the first 3. Requires no trained weights.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chefer::accumulated;
use super::methods::{Entry, Options, Pace};
use super::tam::integrated_gradient;
use super::{Explainer, Needs, Pass, attention_sites};
use crate::error::Result;
use crate::vit::Vit;

/// Explains by important heads and their integrated gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BeyondIntuition {
    /// Index of the first block that contributes, from 0.
    pub start: usize,
}

impl Options for BeyondIntuition {
    const ENTRY: Entry = Entry {
        name: "beyond-intuition",
        summary: "attention of important heads, times integrated gradients",
        paper: "Beyond Intuition, ICML 2023",
        forwards: "21",
        backwards: "21",
        pace: Pace::C,
    };
}

impl Explainer for BeyondIntuition {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values(attention_sites(vit)).and(Needs::gradients(attention_sites(vit)))
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let relevance = accumulated(pass, self.start, |site| {
            perceived(&pass.value(site)?, pass.gradient(site)?)
        })?;
        let integrated = pass.patches_of(&integrated_gradient(pass)?, D::Minus1)?;
        Ok((relevance * integrated)?)
    }
}

/// Sums the heads of a block, weighted by importance.
///
/// # Shapes
/// - `attn`, `gradient`: `[batch, heads, tokens, tokens]`
/// - result: `[batch, tokens, tokens]`
fn perceived(attn: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let effect = attn
        .t()?
        .contiguous()?
        .matmul(&gradient.contiguous()?)?
        .abs()?;
    let weights = effect.mean((2, 3))?; // [batch, heads]
    // Prevents a division by zero if the class does not depend on the block.
    let total = (weights.sum_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?;
    let weights = weights.broadcast_div(&total)?;
    let weights = weights.unsqueeze(2)?.unsqueeze(3)?;
    Ok(attn.broadcast_mul(&weights)?.sum(1)?)
}
