//! Raw attention: where the class token looks in the last block.
//!
//! Paper: none; the usual picture of "what the model attends to", and the weakest baseline.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | A_L | attention of the last block | meanₕ(A_L)\[class, patches\] |
//!
//! Cost: 1 forward. **Deviations**: none. No weights are needed.

use candle_core::Tensor;

use super::{Explainer, Explanation, Target, refuse_class};
use crate::error::{Error, Result};
use crate::vit::{Record, Site, Vit};

/// Explains by the last block's attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawAttention;

impl Explainer for RawAttention {
    fn name(&self) -> &'static str {
        "raw-attention"
    }

    fn explain(&self, vit: &Vit, images: &Tensor, target: Target) -> Result<Explanation> {
        refuse_class(self.name(), target)?;
        let last = vit
            .n_blocks()
            .checked_sub(1)
            .ok_or_else(|| Error::Model("a model without blocks has no attention".into()))?;
        let site = Site::Attention(last);
        let mut record = Record::new([site]);
        let output = vit.forward_with(images, &mut record)?;
        let attn = record.get(site)?; // [batch, heads, tokens, tokens]
        let n_special = vit.config().n_special_tokens();
        let attribution = attn
            .narrow(2, 0, 1)?
            .narrow(3, n_special, attn.dim(3)? - n_special)?
            .mean(1)?
            .squeeze(1)?; // [batch, patches]
        Ok(Explanation {
            attribution,
            logits: output.logits,
        })
    }
}
