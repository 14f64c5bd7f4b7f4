//! What a full backward pass says of each patch, signed.

use candle_core::Tensor;

use crate::error::Result;
use crate::explain::rollout::GradientRollout;
use crate::explain::{Explainer, Needs, Pass};
use crate::vit::{Site, Vit};

/// What the teacher reads of a pass.
pub(super) fn needs(vit: &Vit) -> Needs {
    GradientRollout {}.needs(vit)
}

/// r, gradient rollout less what speaks against the class, as shares of each picture: rows add up to 1.
///
/// # Shapes
/// - result: `[batch, patches]`
///
/// # Errors
/// Fails where the pass lacks attention or its gradients.
pub fn signed_rollout(pass: &Pass<'_>, against: f64) -> Result<Tensor> {
    let speaks_for = shares(&GradientRollout {}.attribution(pass)?)?;
    let blocks = 0..pass.vit().n_blocks();
    let rows = blocks.map(|block_idx| {
        let site = Site::Attention(block_idx);
        let row = |xs: &Tensor| xs.narrow(2, 0, 1)?.squeeze(2); // [batch, heads, tokens]
        let weighted = (row(&pass.value(site)?)? * row(pass.gradient(site)?)?)?;
        Ok(weighted.neg()?.relu()?.mean(1)?)
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let speaks_against = pass.patches_of(&Tensor::stack(&rows, 0)?.mean(0)?, 1)?;
    let signed = (speaks_for - (shares(&speaks_against)? * against)?)?;
    Ok((signed / (1.0 - against))?)
}

/// Rows divided by their sums.
fn shares(rows: &Tensor) -> candle_core::Result<Tensor> {
    let total = (rows.sum_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?;
    rows.broadcast_div(&total)
}
