//! Pre-norm transformer block: attention and MLP, each with a norm and a residual connection.

use candle_core::{Result, Tensor};

use super::attention::SelfAttention;
use super::{Rules, Tap, VitConfig, Weights, layer_norm, linear};
use vitscope_kernels::Mlp;
#[cfg(feature = "lrp")]
use vitscope_kernels::{Activation, FusedSelfAttention, LayerNorm, Linear};

/// One transformer layer.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    attention: SelfAttention,
    mlp: Mlp,
}

/// Weights of a block, for backward rules that need them.
#[cfg(feature = "lrp")]
pub(crate) struct BlockParts<'a> {
    pub(crate) attention: &'a FusedSelfAttention,
    pub(crate) mlp_norm: &'a LayerNorm,
    pub(crate) up: &'a Linear,
    pub(crate) activation: Activation,
    pub(crate) down: &'a Linear,
    pub(crate) mlp_scale: &'a Option<Tensor>,
}

impl Block {
    pub(crate) fn load(
        config: &VitConfig,
        block_idx: usize,
        weights: &Weights<'_>,
    ) -> Result<Self> {
        let block_name = format!("encoder.layer.{block_idx}");
        let at = |name: &str| format!("{block_name}.{name}");
        let scale = |name: &str| {
            config
                .layer_scale
                .then(|| weights.tensor(&at(name)))
                .transpose()
        };
        let scale1 = scale("layer_scale1.lambda1")?;
        Ok(Self {
            attention: SelfAttention::load(config, &block_name, scale1, weights)?,
            mlp: Mlp::new(
                layer_norm(&at("layernorm_after"), config, weights)?,
                linear(&at("intermediate.dense"), true, weights)?,
                config.hidden_act,
                linear(&at("output.dense"), true, weights)?,
                scale("layer_scale2.lambda1")?,
            ),
        })
    }

    /// As [`Vit::rounded`](super::Vit::rounded).
    pub(crate) fn rounded(&self) -> Result<Self> {
        Ok(Self {
            attention: self.attention.rounded()?,
            mlp: self.mlp.rounded()?,
        })
    }

    /// As [`Vit::quantized`](super::Vit::quantized); adds the names of the maps that stay as they are to `kept`.
    pub(crate) fn quantized(&self, kept: &mut Vec<&'static str>) -> Result<Self> {
        Ok(Self {
            attention: self.attention.quantized(kept)?,
            mlp: self.mlp.quantized(kept)?,
        })
    }

    pub(crate) fn forward(
        &self,
        xs: &Tensor,
        block_idx: usize,
        rules: Option<Rules>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        if let Some(rules) = rules {
            return rules.block(&self.attention, &self.mlp, xs, block_idx, tap);
        }
        self.mlp
            .forward(&self.attention.forward(xs, block_idx, tap)?)
    }

    /// The block's output, given values that attention has already mixed.
    pub(crate) fn finish(&self, xs: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        self.mlp.forward(&self.attention.finish(xs, mixed)?)
    }

    pub(crate) fn key_value_biases(&self) -> (Tensor, Tensor) {
        self.attention.key_value_biases()
    }

    /// Weights.
    #[cfg(feature = "lrp")]
    pub(crate) fn parts(&self) -> BlockParts<'_> {
        BlockParts {
            attention: self.attention.parts(),
            mlp_norm: self.mlp.norm(),
            up: self.mlp.up(),
            activation: self.mlp.activation(),
            down: self.mlp.down(),
            mlp_scale: self.mlp.scale(),
        }
    }
}
