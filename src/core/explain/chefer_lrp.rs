//! Transformer attribution: relevance of attention, propagated backward layer by layer, times the gradient of
//! attention.
//!
//! Paper: Chefer et al., "Transformer Interpretability Beyond Attention Visualization", CVPR 2021, arXiv:2012.09838.
//! Deep Taylor decomposition assigns each attention entry its relevance for the class. Weighted by the gradient, this
//! relevance is accumulated through the blocks as in [`chefer`](super::chefer).
//!
//! | place | rule |
//! |---|---|
//! | linear, without bias | Rⱼ = Σᵢ (w⁺ᵢⱼ x⁺ⱼ + w⁻ᵢⱼ x⁻ⱼ) Rᵢ / zᵢ, zᵢ the same sum over j, Eq. 6 |
//! | y = a + b | a R / y and b R / y, each scaled to its share of the total, Eq. 9–10 |
//! | O = A V, and Q Kᵀ | R_A = A ∘ (S Vᵀ) / 2, R_V = V ∘ (Aᵀ S) / 2, S = R_O / O, Eq. 8 |
//! | norm, softmax, GELU | identity |
//! | Âₗ | meanₕ((∇Aₗ ∘ R of Aₗ)⁺), Eq. 13 |
//! | map | class row of ∏ₗ (I + Âₗ), Eq. 14 |
//!
//! Cost: 1 forward, 1 backward, and the relevance pass, which costs as much as four forwards. **Deviations**: totals
//! are computed per image, so that batches work. As in the released code, rows of the product are not normalized. Heads
//! that read more than the class token have no rule and are refused. Requires no trained weights.
//!
//! Layer-wise relevance propagation is reported to be patented, so this method requires the feature `lrp`; see
//! [`lrp`](super::lrp).

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chefer::accumulated;
use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, attention_sites};
use crate::error::{Error, Result};
use crate::vit::{BlockParts, Head, Site, Vit};
use vitscope_kernels::Linear;

/// Keeps denominators away from zero, as in the released code.
const SMALL: f64 = 1e-9;

/// Explains by the relevance of attention entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheferLrp {}

impl Options for CheferLrp {
    const ENTRY: Entry = Entry {
        name: "chefer-lrp",
        summary: "relevance of attention times its gradient, accumulated through all blocks",
        paper: "Transformer attribution, arXiv:2012.09838",
        forwards: "5",
        backwards: "1",
        pace: Pace::B,
    };
}

impl Explainer for CheferLrp {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        let in_blocks = (0..vit.n_blocks()).flat_map(|block| {
            [
                Site::Hidden(block),
                Site::Normed(block),
                Site::Query(block),
                Site::Key(block),
                Site::Value(block),
                Site::Attention(block),
            ]
        });
        Needs::values(in_blocks.chain([Site::Tokens])).and(Needs::gradients(attention_sites(vit)))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let vit = pass.vit();
        if vit.config().head() != Some(Head::ClassToken) {
            return Err(Error::Model(
                "chefer-lrp requires a head that reads only the class token, but the model's head reads more".into(),
            ));
        }
        let mut relevance = of_tokens(pass)?; // [batch, tokens, dim]
        let mut of_attention = Vec::with_capacity(vit.n_blocks());
        for block_idx in (0..vit.n_blocks()).rev() {
            let (of_input, of_block) = through_block(pass, block_idx, &relevance)?;
            relevance = of_input;
            of_attention.push(of_block);
        }
        of_attention.reverse();
        accumulated(pass, 0, |site| {
            let Site::Attention(block_idx) = site else {
                return Err(Error::Model(format!("{site:?} has no relevance")));
            };
            let weighted = (pass.gradient(site)? * &of_attention[block_idx])?;
            Ok(weighted.relu()?.mean(1)?)
        })
    }
}

/// Relevance of the tokens that the head reads; all of it belongs to the class token.
fn of_tokens(pass: &Pass<'_>) -> Result<Tensor> {
    let tokens = pass.value(Site::Tokens)?; // [batch, tokens, dim]
    let head = pass
        .vit()
        .classifier_of_class_token()
        .ok_or_else(|| Error::Model("the model has no head".into()))?;
    let class_token = tokens.narrow(1, 0, 1)?.contiguous()?;
    let relevance = through_linear(head, &class_token, &pass.weights()?.unsqueeze(1)?)?;
    let others = tokens.narrow(1, 1, tokens.dim(1)? - 1)?.zeros_like()?;
    Ok(Tensor::cat(&[&relevance, &others], 1)?)
}

/// Relevance of a block's input and of its attention, given the relevance of its output.
///
/// # Shapes
/// - `relevance` and the first result: `[batch, tokens, dim]`
/// - the second result: `[batch, heads, tokens, tokens]`
fn through_block(
    pass: &Pass<'_>,
    block_idx: usize,
    relevance: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let BlockParts {
        attention,
        mlp_norm,
        up,
        activation,
        down,
        mlp_scale,
    } = pass.vit().block_parts(block_idx)?;
    let heads = attention.heads;
    let at = |site: fn(usize) -> Site| pass.value(site(block_idx));
    let split = |xs: &Tensor| -> candle_core::Result<Tensor> {
        let (batch, tokens, dim) = xs.dims3()?;
        xs.reshape((batch, tokens, heads, dim / heads))?
            .transpose(1, 2)?
            .contiguous()
    };
    let joined = |xs: &Tensor| -> candle_core::Result<Tensor> {
        let (batch, heads, tokens, head_dim) = xs.dims4()?;
        xs.transpose(1, 2)?
            .reshape((batch, tokens, heads * head_dim))
    };
    let scaled = |xs: Tensor, scale: &Option<Tensor>| match scale {
        Some(scale) => xs.broadcast_mul(scale),
        None => Ok(xs),
    };

    // Recomputes intermediate values that have no tap site.
    let input = at(Site::Hidden)?;
    let (q, k, v) = (
        split(&at(Site::Query)?)?,
        split(&at(Site::Key)?)?,
        split(&at(Site::Value)?)?,
    );
    let attn = at(Site::Attention)?.contiguous()?;
    let mixed = attn.matmul(&v)?; // [batch, heads, tokens, head_dim]
    let attended = scaled(
        attention.output.forward(&joined(&mixed)?)?,
        &attention.scale,
    )?;
    let middle = (&input + &attended)?;
    let normed = mlp_norm.forward(&middle)?;
    let hidden = activation.forward(&up.forward(&normed)?)?;
    let branch = scaled(down.forward(&hidden)?, mlp_scale)?;

    let (of_middle, of_branch) = through_sum(&middle, &branch, relevance)?;
    let of_hidden = through_linear(down, &hidden, &of_branch)?;
    let of_middle = (of_middle + through_linear(up, &normed, &of_hidden)?)?;

    let (of_input, of_attended) = through_sum(&input, &attended, &of_middle)?;
    let of_mixed = split(&through_linear(
        &attention.output,
        &joined(&mixed)?,
        &of_attended,
    )?)?;
    let (of_attn, of_v) = through_product(&attn, &v, &mixed, &of_mixed)?;
    let keys = k.transpose(2, 3)?.contiguous()?;
    let (of_q, of_keys) = through_product(&q, &keys, &q.matmul(&keys)?, &of_attn)?;
    let normed = at(Site::Normed)?;
    let mut of_input = of_input;
    for (map, relevance) in [
        (&attention.query, of_q),
        (&attention.key, of_keys.transpose(2, 3)?),
        (&attention.value, of_v),
    ] {
        of_input = (of_input + through_linear(map, &normed, &joined(&relevance)?)?)?;
    }
    Ok((of_input, of_attn))
}

/// Relevance of the inputs of a linear map, given the relevance of its outputs. The bias receives none.
fn through_linear(map: &Linear, xs: &Tensor, relevance: &Tensor) -> Result<Tensor> {
    let [weight, _] = map.parts();
    let parts = |xs: &Tensor| {
        let positive = xs.relu()?;
        let negative = (xs - &positive)?;
        Ok::<_, candle_core::Error>((positive, negative))
    };
    let (x_positive, x_negative) = parts(xs)?;
    let (w_positive, w_negative) = parts(weight)?; // [out, in]
    let total = (x_positive.broadcast_matmul(&w_positive.t()?)?
        + x_negative.broadcast_matmul(&w_negative.t()?)?)?;
    let share = divided(relevance, &total)?;
    let of_positive = (x_positive * share.broadcast_matmul(&w_positive)?)?;
    let of_negative = (x_negative * share.broadcast_matmul(&w_negative)?)?;
    Ok((of_positive + of_negative)?)
}

/// Relevance of both terms of a sum, each scaled to its share of the total.
fn through_sum(a: &Tensor, b: &Tensor, relevance: &Tensor) -> Result<(Tensor, Tensor)> {
    let share = divided(relevance, &(a + b)?)?;
    let (of_a, of_b) = ((a * &share)?, (b * &share)?);
    let total = |xs: &Tensor| xs.sum_keepdim((1, 2));
    let (sum_a, sum_b, sum) = (total(&of_a)?, total(&of_b)?, total(relevance)?);
    let sizes = (sum_a.abs()? + sum_b.abs()?)?;
    let scaled = |of: Tensor, sum_of: &Tensor| -> Result<Tensor> {
        let wanted = (divided(&sum_of.abs()?, &sizes)? * &sum)?;
        Ok(of.broadcast_mul(&divided(&wanted, sum_of)?)?)
    };
    Ok((scaled(of_a, &sum_a)?, scaled(of_b, &sum_b)?))
}

/// Relevance of both factors of `product = a b`; each receives half.
fn through_product(
    a: &Tensor,
    b: &Tensor,
    product: &Tensor,
    relevance: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let share = divided(relevance, product)?.contiguous()?;
    let of_a = (a * share.matmul(&b.transpose(2, 3)?.contiguous()?)?)?;
    let of_b = (b * a.transpose(2, 3)?.contiguous()?.matmul(&share)?)?;
    Ok(((of_a * 0.5)?, (of_b * 0.5)?))
}

/// `a / b`, or 0 where `b` is 0.
fn divided(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // max(b, ε) + min(b, ε) equals b + ε, regardless of the sign of b.
    let quotient = a.broadcast_div(&(b + SMALL)?)?;
    let defined = b.ne(0.0)?.to_dtype(b.dtype())?;
    Ok(quotient.broadcast_mul(&defined)?)
}
