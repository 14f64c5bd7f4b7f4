//! Multi-head self-attention (arXiv:1706.03762, section 3.2).

use candle_core::{Result, Tensor};

use super::block::add_scaled;
use super::tap::tapped;
use super::{Site, Tap, VitConfig, Weights, linear};
use crate::kernels::{self, Linear};

/// Query, key and value projections, attention, output projection.
#[derive(Clone, Debug)]
pub(crate) struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

impl SelfAttention {
    pub(crate) fn load(config: &VitConfig, name: &str, weights: &Weights<'_>) -> Result<Self> {
        let projection = |which: &str| {
            let name = format!("{name}.attention.{which}");
            linear(&name, config.qkv_bias, weights)
        };
        Ok(Self {
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            output: linear(&format!("{name}.output.dense"), true, weights)?,
            heads: config.num_attention_heads,
        })
    }

    /// Attention among `xs`, times `scale` where there is one, added to `residual`.
    pub(crate) fn forward_add(
        &self,
        xs: &Tensor,
        scale: Option<&Tensor>,
        residual: &Tensor,
        block_idx: usize,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let q = tapped(tap, Site::Query(block_idx), self.query.forward(xs)?)?;
        let k = tapped(tap, Site::Key(block_idx), self.key.forward(xs)?)?;
        let v = tapped(tap, Site::Value(block_idx), self.value.forward(xs)?)?;
        let mixed = if tap.wants(Site::Scores(block_idx)) || tap.wants(Site::Attention(block_idx)) {
            self.mix_with_tap(&q, &k, &v, block_idx, tap)?
        } else {
            kernels::attention(&q, &k, &v, self.heads)?
        };
        add_scaled(&self.output, &mixed, scale, residual)
    }

    /// The same attention with scores and probabilities as tensors, for taps that want them.
    fn mix_with_tap(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        block_idx: usize,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let (batch, tokens, dim) = q.dims3()?;
        let head_dim = dim / self.heads;
        let split = |xs: &Tensor| {
            xs.reshape((batch, tokens, self.heads, head_dim))?
                .transpose(1, 2)?
                .contiguous() // [batch, heads, tokens, head_dim]
        };
        let scores = (split(q)?.matmul(&split(k)?.t()?)? * (head_dim as f64).powf(-0.5))?;
        let scores = tapped(tap, Site::Scores(block_idx), scores)?;
        let attn = kernels::softmax(&scores)?; // [batch, heads, tokens, tokens]
        let attn = tapped(tap, Site::Attention(block_idx), attn)?;
        attn.matmul(&split(v)?)?
            .transpose(1, 2)?
            .reshape((batch, tokens, dim))
    }
}
