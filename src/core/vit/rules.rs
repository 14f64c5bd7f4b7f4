//! Modified backward rules, which attribution methods use instead of the derivative.
//!
//! The forward pass does not change. Each rule is written as a product with a constant, so that candle's own backward
//! pass applies it: `x · sg(f(x) / x)` has the value f(x) and the slope f(x) / x, where sg stops the gradient.
//!
//! | place | LibraGrad (arXiv:2411.16760) | AttnLRP (arXiv:2402.05602) |
//! |---|---|---|
//! | layer norm | the standard deviation is a constant | the same |
//! | attention | probabilities are constants | gradients of q and k are divided by 4, of v by 2 |
//! | GELU | x · sg(Φ(x)), its gate | x · sg(GELU(x) / (x + 1e-10)) |

use candle_core::{D, Result, Tensor};

use super::Tap;
use super::attention::SelfAttention;
use super::tap::{Site, tapped};
use vitscope_kernels::{self as kernels, Activation, FusedSelfAttention, LayerNorm, Mlp};

/// A set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Mehri et al., "LibraGrad", CVPR 2025.
    LibraGrad,
    /// Achtibat et al., "AttnLRP", ICML 2024.
    #[cfg(feature = "lrp")]
    AttnLrp,
}

impl Rules {
    /// Runs one block; the forward result does not change.
    pub(super) fn block(
        self,
        attention: &SelfAttention,
        mlp: &Mlp,
        xs: &Tensor,
        block_idx: usize,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let FusedSelfAttention { norm, heads, .. } = attention.parts();
        let normed = tapped(tap, Site::Normed(block_idx), self.norm(norm, xs)?)?;
        let [q, k, v] = self.shared_out(attention.project(&normed, block_idx, tap)?)?;
        let scores = kernels::attention::scores(&q, &k, *heads)?;
        let scores = tapped(tap, Site::Scores(block_idx), scores)?;
        let attn = self.probabilities(kernels::softmax(&scores)?);
        let attn = tapped(tap, Site::Attention(block_idx), attn)?;
        let xs = attention.finish(xs, &kernels::attention::mix(&attn, &v)?)?;
        let hidden = mlp.up().forward(&self.norm(mlp.norm(), &xs)?)?;
        mlp.finish(&xs, &self.activate(mlp.activation(), &hidden)?)
    }

    /// Layer norm with the standard deviation as a constant.
    pub(super) fn norm(self, norm: &LayerNorm, xs: &Tensor) -> Result<Tensor> {
        let (weight, bias, eps) = norm.parts();
        let centered = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
        let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
        centered
            .broadcast_div(&(variance + f64::from(eps))?.sqrt()?.detach())?
            .broadcast_mul(weight)?
            .broadcast_add(bias)
    }

    /// Scales the gradients of queries, keys and values to their shares of the relevance; the values do not change.
    fn shared_out(self, qkv: [Tensor; 3]) -> Result<[Tensor; 3]> {
        match self {
            Self::LibraGrad => Ok(qkv),
            #[cfg(feature = "lrp")]
            Self::AttnLrp => {
                let part = |xs: &Tensor, share: f64| (xs * share)? + (xs * (1.0 - share))?.detach();
                let [q, k, v] = &qkv;
                Ok([part(q, 0.25)?, part(k, 0.25)?, part(v, 0.5)?])
            }
        }
    }

    fn probabilities(self, attn: Tensor) -> Tensor {
        match self {
            Self::LibraGrad => attn.detach(),
            #[cfg(feature = "lrp")]
            Self::AttnLrp => attn,
        }
    }

    fn activate(self, activation: Activation, xs: &Tensor) -> Result<Tensor> {
        let slope = match self {
            Self::LibraGrad => activation.gate(xs)?,
            #[cfg(feature = "lrp")]
            Self::AttnLrp => activation.forward(xs)?.div(&(xs + 1e-10)?)?,
        };
        xs * slope.detach()
    }
}
