//! Multi-head self-attention (arXiv:1706.03762, section 3.2).

use candle_core::{Result, Tensor};

use super::tap::tapped;
use super::{Linear, Site, Tap, VitConfig, Weights};
use crate::kernels;

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
            if config.qkv_bias {
                Linear::load(&name, weights)
            } else {
                Linear::load_unbiased(&name, weights)
            }
        };
        Ok(Self {
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            output: Linear::load(&format!("{name}.output.dense"), weights)?,
            heads: config.num_attention_heads,
        })
    }

    pub(crate) fn forward(
        &self,
        xs: &Tensor,
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
        self.output.forward(&mixed)
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
