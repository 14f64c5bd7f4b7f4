//! Multi-head self-attention (arXiv:1706.03762, section 3.2) with pre-norm and residual connection.

use candle_core::{Result, Tensor};

use super::tap::tapped;
use super::{Site, Tap, VitConfig, Weights, layer_norm, linear};
use vitscope_kernels::{self as kernels, FusedSelfAttention, Linear, Products};

/// The first half of a block: norm, query, key and value projections, attention, output projection.
#[derive(Clone, Debug)]
pub(crate) struct SelfAttention {
    parts: FusedSelfAttention,
}

impl SelfAttention {
    pub(crate) fn load(
        config: &VitConfig,
        block_name: &str,
        scale: Option<Tensor>,
        weights: &Weights<'_>,
    ) -> Result<Self> {
        let projection = |which: &str| {
            let name = format!("{block_name}.attention.attention.{which}");
            linear(&name, config.qkv_bias, weights)
        };
        let output = format!("{block_name}.attention.output.dense");
        let parts = FusedSelfAttention {
            norm: layer_norm(&format!("{block_name}.layernorm_before"), config, weights)?,
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            output: linear(&output, true, weights)?,
            scale,
            heads: config.num_attention_heads,
            products: Products::F32,
        };
        Ok(Self { parts })
    }

    /// As [`FusedSelfAttention::rounded`].
    pub(super) fn rounded(&self) -> Result<Self> {
        let parts = self.parts.rounded()?;
        Ok(Self { parts })
    }

    /// As [`FusedSelfAttention::quantized`].
    pub(super) fn quantized(&self, kept: &mut Vec<&'static str>) -> Result<Self> {
        let parts = self.parts.quantized(kept)?;
        Ok(Self { parts })
    }

    /// Weights and sizes.
    pub(super) fn parts(&self) -> &FusedSelfAttention {
        &self.parts
    }

    /// `xs` plus attention among its tokens.
    pub(crate) fn forward(
        &self,
        xs: &Tensor,
        block_idx: usize,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let sites = Site::in_attention(block_idx);
        if self.parts.applies_to(xs) && !sites.into_iter().any(|site| tap.wants(site)) {
            return self.parts.forward(xs);
        }
        let FusedSelfAttention { norm, heads, .. } = &self.parts;
        let normed = tapped(tap, Site::Normed(block_idx), norm.forward(xs)?)?;
        let [q, k, v] = self.project(&normed, block_idx, tap)?;
        let mixed = if tap.wants(Site::Scores(block_idx)) || tap.wants(Site::Attention(block_idx)) {
            self.mix_with_tap(&q, &k, &v, block_idx, tap)?
        } else {
            kernels::attention(&q, &k, &v, *heads)?
        };
        self.finish(xs, &mixed)
    }

    /// Queries, keys and values of normed tokens, after the tap.
    pub(super) fn project(
        &self,
        normed: &Tensor,
        block_idx: usize,
        tap: &mut dyn Tap,
    ) -> Result<[Tensor; 3]> {
        let FusedSelfAttention {
            query, key, value, ..
        } = &self.parts;
        Ok([
            tapped(tap, Site::Query(block_idx), query.forward(normed)?)?,
            tapped(tap, Site::Key(block_idx), key.forward(normed)?)?,
            tapped(tap, Site::Value(block_idx), value.forward(normed)?)?,
        ])
    }

    /// `xs` plus the output projection of the mixed values.
    pub(crate) fn finish(&self, xs: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        let ys = self.parts.output.forward(mixed)?;
        // Layer scale (Touvron et al., arXiv:2103.17239, Eq. 5), if the model has it.
        match &self.parts.scale {
            Some(scale) => xs + ys.broadcast_mul(scale)?,
            None => xs + ys,
        }
    }

    /// Biases of keys and values, each `[dim]`.
    pub(crate) fn key_value_biases(&self) -> (Tensor, Tensor) {
        let bias = |projection: &Linear| {
            let [_, bias] = projection.parts();
            bias.clone()
        };
        (bias(&self.parts.key), bias(&self.parts.value))
    }

    /// Computes attention with scores and probabilities as tensors, for taps that request them.
    fn mix_with_tap(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        block_idx: usize,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let scores = kernels::attention::scores(q, k, self.parts.heads)?;
        let scores = tapped(tap, Site::Scores(block_idx), scores)?;
        let attn = kernels::softmax(&scores)?; // [batch, heads, tokens, tokens]
        let attn = tapped(tap, Site::Attention(block_idx), attn)?;
        kernels::attention::mix(&attn, v)
    }
}
