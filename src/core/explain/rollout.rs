//! Attention rollout: attention accumulated through all blocks, including residual connections.
//!
//! Paper: Abnar and Zuidema, arXiv:2005.00928.
//! A block mixes tokens by attention and preserves them by its residual connection, so half of each output token is
//! assumed to come from the same input token. The product of these mixtures over all blocks measures how much of each
//! input token reaches the class token.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | Aₗ | `fused` | heads of block l, fused |
//! | Ãₗ | `mixed` | rows of Aₗ + I, normalized |
//! | R | `reached` | class row of Ã_L ⋯ Ã₁ |
//!
//! Cost: 1 forward, and one vector–matrix product per block: only the class token's row is computed.
//!
//! **Deviations**: `discard` zeroes the smallest entries of Aₗ before I is added, separately for each image (widespread
//! code, including that of Vision DiffMask, does so only for the first image of a batch). It is off by default, as in
//! the paper. Requires no trained weights.
//!
//! [`GradientRollout`] explains one class: Aₗ becomes meanₕ((Aₗ ∘ ∂z/∂Aₗ)⁺), the variant of the widespread
//! `vit-explain` code, which takes 1 backward.

use candle_core::{D, Device, Tensor};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, attention_sites, no_blocks};
use crate::error::{Error, Result};
use crate::vit::{Site, Vit};

/// How the heads of a block are combined into one attention matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HeadFusion {
    /// Their mean, as in the paper.
    #[default]
    Mean,
    /// The strongest head of each entry.
    Max,
    /// The weakest head of each entry.
    Min,
}

/// Explains by attention rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// How the heads of a block are combined.
    fusion: HeadFusion,
    /// Share of the lowest attention values that are discarded, from 0 to below 1.
    discard: f64,
}

/// Explains one class by attention rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GradientRollout {}

impl Rollout {
    /// Creates a rollout that fuses heads by `fusion` and discards the share `discard` of each block's smallest
    /// entries.
    ///
    /// # Errors
    /// [`Error::Config`] if `discard` is not in [0, 1).
    pub fn new(fusion: HeadFusion, discard: f64) -> Result<Self> {
        let rollout = Self { fusion, discard };
        rollout.check()?;
        Ok(rollout)
    }

    /// Attention of one block as a row-stochastic mixture with the residual path.
    ///
    /// # Shapes
    /// - `attn`: `[batch, heads, tokens, tokens]`
    /// - result: `[batch, tokens, tokens]`
    fn mixture(&self, attn: &Tensor) -> candle_core::Result<Tensor> {
        let fused = match self.fusion {
            HeadFusion::Mean => attn.mean(1)?,
            HeadFusion::Max => attn.max(1)?,
            HeadFusion::Min => attn.min(1)?,
        }; // [batch, tokens, tokens]
        let fused = if self.discard > 0.0 {
            discard_weakest(&fused, self.discard)?
        } else {
            fused
        };
        with_residual(&fused)
    }
}

impl Options for Rollout {
    const ENTRY: Entry = Entry {
        name: "rollout",
        summary: "attention followed through all blocks to the class token",
        paper: "Attention Rollout, arXiv:2005.00928",
        forwards: "1",
        backwards: "0",
        pace: Pace::A,
    };

    fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.discard) {
            return Ok(());
        }
        Err(Error::Config(format!(
            "discarded share of attention must be at least 0 and below 1, got {}",
            self.discard
        )))
    }
}

impl Explainer for Rollout {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values(attention_sites(vit))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let mixture = |site| Ok(self.mixture(&pass.value(site)?)?);
        reached(pass, mixture)
    }
}

impl Options for GradientRollout {
    const ENTRY: Entry = Entry {
        name: "gradient-rollout",
        summary: "rollout of attention times its gradient",
        paper: "variant of arXiv:2005.00928",
        forwards: "1",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for GradientRollout {
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
        let mixture = |site| {
            let weighted = (pass.value(site)? * pass.gradient(site)?)?.relu()?;
            Ok(with_residual(&weighted.mean(1)?)?)
        };
        reached(pass, mixture)
    }
}

/// Ã of a block: attention plus the residual connection, with normalized rows.
///
/// # Shapes
/// - `fused` and result: `[batch, tokens, tokens]`
fn with_residual(fused: &Tensor) -> candle_core::Result<Tensor> {
    let eye = Tensor::eye(fused.dim(1)?, fused.dtype(), fused.device())?;
    let mixed = fused.broadcast_add(&eye)?;
    mixed.broadcast_div(&mixed.sum_keepdim(2)?)
}

/// How much of each patch reaches the class token through the mixtures of all blocks.
///
/// # Shapes
/// - a mixture: `[batch, tokens, tokens]`
/// - result: `[batch, patches]`
fn reached(pass: &Pass<'_>, mixture: impl Fn(Site) -> Result<Tensor>) -> Result<Tensor> {
    let mut reached: Option<Tensor> = None; // [batch, 1, tokens]
    for site in attention_sites(pass.vit()).rev() {
        let mixed = mixture(site)?;
        reached = Some(match reached {
            Some(reached) => reached.matmul(&mixed)?,
            None => mixed.narrow(1, 0, 1)?.contiguous()?,
        });
    }
    let reached = reached.ok_or_else(no_blocks)?.squeeze(1)?; // [batch, tokens]
    pass.patches_of(&reached, D::Minus1)
}

/// Zeroes the share `discard` of the smallest entries of each image's matrix.
fn discard_weakest(fused: &Tensor, discard: f64) -> candle_core::Result<Tensor> {
    let shape = fused.dims3()?;
    let mut rows: Vec<Vec<f32>> = fused.flatten_from(1)?.to_vec2()?;
    for row in &mut rows {
        let n_discarded = (row.len() as f64 * discard) as usize;
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[a].total_cmp(&row[b]));
        for &entry in order.iter().take(n_discarded) {
            row[entry] = 0.0;
        }
    }
    Tensor::from_vec(rows.concat(), shape, &Device::Cpu)?.to_device(fused.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_loses_its_own_weakest_entries() {
        let values = vec![0.1_f32, 0.2, 0.3, 0.4, 0.8, 0.7, 0.6, 0.5];
        let fused = Tensor::from_vec(values, (2, 2, 2), &Device::Cpu).unwrap();
        let left = discard_weakest(&fused, 0.5).unwrap();
        let left: Vec<f32> = left.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(left, [0.0, 0.0, 0.3, 0.4, 0.8, 0.7, 0.0, 0.0]);
    }

    #[test]
    fn a_mixture_without_attention_is_the_identity() {
        let attn = Tensor::zeros((1, 2, 3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let mixed = Rollout::default().mixture(&attn).unwrap();
        assert_eq!(
            mixed.squeeze(0).unwrap().to_vec2::<f32>().unwrap(),
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        );
    }

    #[test]
    fn rows_of_a_mixture_sum_to_one_and_half_stays() {
        let attn = Tensor::new(&[[[[0.25_f32, 0.75], [1.0, 0.0]]]], &Device::Cpu).unwrap();
        let mixed = Rollout::default().mixture(&attn).unwrap();
        assert_eq!(
            mixed.squeeze(0).unwrap().to_vec2::<f32>().unwrap(),
            [[0.625, 0.375], [0.5, 0.5]]
        );
    }

    #[test]
    fn a_discarded_share_of_one_is_refused() {
        assert!(Rollout::new(HeadFusion::Mean, 1.0).is_err());
    }
}
