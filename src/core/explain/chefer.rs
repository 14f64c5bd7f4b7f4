//! Generic attention explainability: attention times its gradient, accumulated through all blocks.
//!
//! Paper: Chefer et al., "Generic Attention-model Explainability", ICCV 2021, arXiv:2103.15679.
//! Token relevance starts as the identity; each block adds the relevance that its class-specific attention passes on.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | Āₗ | `relevant` | meanₕ((∇Aₗ ∘ Aₗ)⁺), Eq. 5 |
//! | R | `relevance` | R ← R + Āₗ R, Eq. 6; its class row |
//!
//! Cost: 1 forward, 1 backward, and one vector–matrix product per block: only the class row of the product ∏(I + Āₗ) is
//! computed, from the last block to the first. **Deviations**: none. Requires no trained weights.
//!
//! [`GradSam`] (Barkan et al., CIKM 2021) takes the class row of the mean of Aₗ ∘ (∇Aₗ)⁺ over blocks and heads.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, attention_sites, class_row, no_blocks};
use crate::error::Result;
use crate::vit::{Site, Vit};

/// Explains by attention times its gradient, accumulated through all blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Chefer {}

/// Explains by the mean of attention times its gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GradSam {}

impl Options for Chefer {
    const ENTRY: Entry = Entry {
        name: "chefer",
        summary: "attention times its gradient, accumulated through all blocks",
        paper: "Generic Attention, arXiv:2103.15679",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for Chefer {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values(attention_sites(vit)).and(Needs::gradients(attention_sites(vit)))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        accumulated(pass, 0, |site| {
            let weighted = (pass.value(site)? * pass.gradient(site)?)?;
            Ok(weighted.relu()?.mean(1)?)
        })
    }
}

/// Class row of ∏(I + Āₗ) over the blocks from `first` on. The other rows are not computed.
///
/// # Shapes
/// - `relevant`, Āₗ: `[batch, tokens, tokens]`
/// - result: `[batch, patches]`
pub(super) fn accumulated(
    pass: &Pass<'_>,
    first: usize,
    relevant: impl Fn(Site) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut relevance: Option<Tensor> = None; // [batch, 1, tokens]
    for site in attention_sites(pass.vit()).skip(first).rev() {
        let relevant = relevant(site)?;
        relevance = Some(match relevance {
            Some(relevance) => (&relevance + relevance.matmul(&relevant)?)?,
            None => {
                let row = relevant.narrow(1, 0, 1)?.contiguous()?;
                let eye = Tensor::eye(row.dim(2)?, row.dtype(), row.device())?;
                row.broadcast_add(&eye.narrow(0, 0, 1)?)?
            }
        });
    }
    let relevance = relevance.ok_or_else(no_blocks)?.squeeze(1)?;
    pass.patches_of(&relevance, D::Minus1)
}

impl Options for GradSam {
    const ENTRY: Entry = Entry {
        name: "grad-sam",
        summary: "mean of attention times its gradient",
        paper: "Grad-SAM, arXiv:2204.11073",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for GradSam {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Chefer {}.needs(vit)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let rows = attention_sites(pass.vit()).map(|site| {
            let attn = class_row(&pass.value(site)?)?; // [batch, heads, tokens]
            let gradient = class_row(pass.gradient(site)?)?.relu()?;
            Ok((attn * gradient)?.mean(1)?)
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let mean = Tensor::stack(&rows, 0)?.mean(0)?; // [batch, tokens]
        pass.patches_of(&mean, D::Minus1)
    }
}
