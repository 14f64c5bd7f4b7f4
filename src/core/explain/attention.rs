//! Raw attention: attention of the class token in the last block.
//!
//! Paper: none. This is the usual visualization of what the model attends to, and the weakest baseline.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | A_L | attention of the last block | meanₕ(A_L)\[class, patches\] |
//!
//! Cost: 1 forward. **Deviations**: none. Requires no trained weights.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, class_row, last_block};
use crate::error::Result;
use crate::vit::{Site, Vit};

/// Explains by the attention of the last block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAttention {}

impl Options for RawAttention {
    const ENTRY: Entry = Entry {
        name: "raw-attention",
        summary: "attention of the class token in the last block",
        paper: "none",
        forwards: "1",
        backwards: "0",
        pace: Pace::A,
    };
}

impl Explainer for RawAttention {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values(last_block(vit).map(Site::Attention))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let last = last_block(pass.vit())?;
        let attn = class_row(&pass.value(Site::Attention(last))?)?; // [batch, heads, tokens]
        pass.patches_of(&attn.mean(1)?, D::Minus1)
    }
}
