//! Pre-norm transformer block: attention and MLP, each behind a norm and beside a residual.

use candle_core::{Result, Tensor};

use super::attention::SelfAttention;
use super::tap::tapped;
use super::{LayerNorm, Linear, Site, Tap, VitConfig, Weights};
use crate::kernels;

/// One transformer layer.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    norm1: LayerNorm,
    attention: SelfAttention,
    scale1: Option<Tensor>,
    norm2: LayerNorm,
    mlp_in: Linear,
    mlp_out: Linear,
    scale2: Option<Tensor>,
}

impl Block {
    pub(crate) fn load(
        config: &VitConfig,
        block_idx: usize,
        weights: &Weights<'_>,
    ) -> Result<Self> {
        let at = |name: &str| format!("encoder.layer.{block_idx}.{name}");
        let norm = |name: &str| LayerNorm::load(&at(name), config.layer_norm_eps, weights);
        let scale = |name: &str| {
            config
                .layer_scale
                .then(|| weights.tensor(&at(name)))
                .transpose()
        };
        Ok(Self {
            norm1: norm("layernorm_before")?,
            attention: SelfAttention::load(config, &at("attention"), weights)?,
            scale1: scale("layer_scale1.lambda1")?,
            norm2: norm("layernorm_after")?,
            mlp_in: Linear::load(&at("intermediate.dense"), weights)?,
            mlp_out: Linear::load(&at("output.dense"), weights)?,
            scale2: scale("layer_scale2.lambda1")?,
        })
    }

    pub(crate) fn forward(
        &self,
        xs: &Tensor,
        block_idx: usize,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let normed = tapped(tap, Site::Normed(block_idx), self.norm1.forward(xs)?)?;
        let mixed = self.attention.forward(&normed, block_idx, tap)?;
        let xs = (xs + scaled(mixed, &self.scale1)?)?;
        let hidden = kernels::gelu(&self.mlp_in.forward(&self.norm2.forward(&xs)?)?)?;
        &xs + scaled(self.mlp_out.forward(&hidden)?, &self.scale2)?
    }
}

/// Layer scale (Touvron et al., arXiv:2103.17239, Eq. 5), where the model has it.
fn scaled(xs: Tensor, scale: &Option<Tensor>) -> Result<Tensor> {
    match scale {
        Some(scale) => xs.broadcast_mul(scale),
        None => Ok(xs),
    }
}
