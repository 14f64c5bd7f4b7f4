//! Pre-norm transformer block: attention and MLP, each behind a norm and beside a residual.

use candle_core::{Result, Tensor};

use super::attention::SelfAttention;
use super::tap::tapped;
use super::{LayerNorm, Site, Tap, VitConfig, Weights, linear};
use crate::kernels::Linear;

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
            mlp_in: linear(&at("intermediate.dense"), true, weights)?,
            mlp_out: linear(&at("output.dense"), true, weights)?,
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
        let (scale1, scale2) = (self.scale1.as_ref(), self.scale2.as_ref());
        let xs = self
            .attention
            .forward_add(&normed, scale1, xs, block_idx, tap)?;
        let hidden = self.mlp_in.forward_gelu(&self.norm2.forward(&xs)?)?;
        add_scaled(&self.mlp_out, &hidden, scale2, &xs)
    }
}

/// `residual + map(xs)`, under a layer scale (Touvron et al., arXiv:2103.17239, Eq. 5) where the model has it.
pub(super) fn add_scaled(
    map: &Linear,
    xs: &Tensor,
    scale: Option<&Tensor>,
    residual: &Tensor,
) -> Result<Tensor> {
    match scale {
        Some(scale) => residual + map.forward(xs)?.broadcast_mul(scale)?,
        None => map.forward_add(xs, residual),
    }
}
