//! The Vision Transformer (Dosovitskiy et al., arXiv:2010.11929): tensors in, tensors out.
//!
//! One implementation serves training, inference and explanation. It is independent of frames, files and threads. A
//! [`Tap`] reads, probes and replaces its intermediate tensors, and every tap site passes gradients.
//!
//! Sizes in this module and throughout the crate:
//!
//! | name | meaning |
//! |---|---|
//! | `batch` | images in one forward pass |
//! | `patches` | `grid_h · grid_w` |
//! | `tokens` | special tokens (class, distillation, registers) followed by the patches |
//! | `dim` | width of a token |
//! | `heads`, `head_dim` | `dim = heads · head_dim` |
//! | `blocks` | transformer layers |
//! | `classes` | logits |

mod arithmetic;
pub mod attention;
pub mod block;
pub(crate) mod config;
mod family;
pub mod fields;
pub mod head;
pub mod init;
pub(crate) mod link;
pub mod names;
pub mod patches;
mod reuse;
pub(crate) mod rules;
pub(crate) mod stop;
pub(crate) mod tap;

pub use arithmetic::Arithmetic;
pub use config::{Head, VitConfig};
pub use family::Family;
pub use link::Link;
pub use reuse::Held;
pub use rules::Rules;
pub use stop::Stop;
pub use tap::{KeepPatches, NoTap, Probe, Record, Replace, Site, Tap};
pub use vitscope_kernels::Activation;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use block::Block;
#[cfg(feature = "lrp")]
pub(crate) use block::BlockParts;
use head::Classifier;
use patches::{PatchEmbedding, PositionEmbedding};
use tap::tapped;
use vitscope_kernels::{self as kernels, LayerNorm, Linear, Products};

/// The output of a forward pass.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[batch, tokens, dim]`, after the final norm.
    pub tokens: Tensor,
    /// `[batch, classes]`; `None` if the model has no classifier.
    pub logits: Option<Tensor>,
}

/// A Vision Transformer with its weights.
#[derive(Clone, Debug)]
pub struct Vit {
    config: Arc<VitConfig>,
    patch_embedding: PatchEmbedding,
    position_embedding: PositionEmbedding,
    class_token: Tensor,
    distillation_token: Option<Tensor>,
    register_tokens: Option<Tensor>,
    blocks: Vec<Block>,
    pre_norm: Option<LayerNorm>,
    norm: LayerNorm,
    classifier: Option<Classifier>,
    rules: Option<Rules>,
    stop: Stop,
    products: Products,
}

impl Vit {
    /// Builds the model from `weights`, under the canonical names of [`names`].
    ///
    /// Tensors are used as given: plain tensors make a frozen model, variables a trainable one.
    ///
    /// # Errors
    /// Reports the first tensor that is missing or whose shape differs from `config`, with both shapes.
    pub fn load(config: VitConfig, weights: &HashMap<String, Tensor>) -> crate::Result<Self> {
        config.validate()?;
        names::check(&config, weights)?;
        Ok(Self::from_checked(config, &Weights(weights))?)
    }

    fn from_checked(config: VitConfig, weights: &Weights<'_>) -> Result<Self> {
        let embeddings = |name: &str| weights.tensor(&format!("embeddings.{name}"));
        Ok(Self {
            patch_embedding: PatchEmbedding::load(&config, weights)?,
            position_embedding: PositionEmbedding::load(&config, weights)?,
            class_token: embeddings("cls_token")?,
            distillation_token: config
                .distilled
                .then(|| embeddings("distillation_token"))
                .transpose()?,
            register_tokens: (config.registers > 0)
                .then(|| embeddings("register_tokens"))
                .transpose()?,
            blocks: (0..config.num_hidden_layers)
                .map(|block_idx| Block::load(&config, block_idx, weights))
                .collect::<Result<_>>()?,
            pre_norm: config
                .pre_norm()
                .then(|| layer_norm("pre_layernorm", &config, weights))
                .transpose()?,
            norm: layer_norm("layernorm", &config, weights)?,
            classifier: Classifier::load(&config, weights)?,
            rules: None,
            stop: Stop::default(),
            products: Products::F32,
            config: Arc::new(config),
        })
    }

    /// Returns the same weights with other rules for the backward pass.
    #[must_use]
    pub fn with_rules(&self, rules: Rules) -> Self {
        Self {
            rules: Some(rules),
            ..self.clone()
        }
    }

    /// Returns the same weights, which all blocks multiply as bfloat16 numbers; on GPUs, as they are.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub(crate) fn rounded(&self) -> Result<Self> {
        Ok(Self {
            patch_embedding: self.patch_embedding.rounded()?,
            blocks: self
                .blocks
                .iter()
                .map(Block::rounded)
                .collect::<Result<_>>()?,
            products: Products::Bf16,
            ..self.clone()
        })
    }

    /// Returns the same weights, which all blocks multiply as 8-bit integers, and the linear maps whose weights 8 bits
    /// cannot represent, such as "query of block 3". They stay as they are; on GPUs, all do.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub(crate) fn quantized(&self) -> Result<(Self, Vec<String>)> {
        let mut kept = Vec::new();
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.map(|(block_idx, block)| {
            let mut maps = Vec::new();
            let quantized = block.quantized(&mut maps)?;
            kept.extend(maps.iter().map(|map| format!("{map} of block {block_idx}")));
            Ok(quantized)
        });
        let blocks = blocks.collect::<Result<_>>()?;
        let products = Products::fastest();
        let patch_embedding = match products {
            Products::F32 => self.patch_embedding.clone(),
            Products::Bf16 => self.patch_embedding.rounded()?,
        };
        Ok((
            Self {
                patch_embedding,
                blocks,
                products,
                ..self.clone()
            },
            kept,
        ))
    }

    /// Returns the same weights; once `stop` is requested, forward passes fail.
    #[must_use]
    pub fn under(&self, stop: &Stop) -> Self {
        Self {
            stop: stop.clone(),
            ..self.clone()
        }
    }

    /// Returns the same weights with a linear classifier of the features in `reads`: the class token, optionally with
    /// the mean of the patches.
    ///
    /// # Shapes
    /// - `weight`: `[classes, dim]` or `[classes, 2 · dim]`
    /// - `bias`: `[classes]`
    pub(crate) fn with_classifier(
        &self,
        reads: Head,
        weight: Tensor,
        bias: Tensor,
        labels: Vec<String>,
    ) -> Self {
        let classifier = Linear::new(weight, bias);
        let mut config = VitConfig::clone(&self.config);
        config.set_classes(labels);
        config.reads = reads;
        Self {
            config: Arc::new(config),
            classifier: Some(match reads {
                Head::ClassTokenAndPatchMean => Classifier::ClassTokenAndPatchMean(classifier),
                _ => Classifier::ClassToken(classifier),
            }),
            ..self.clone()
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Numbers of products that are neither of weights of the blocks nor of gradients, such as those of gates.
    pub(crate) fn products(&self) -> Products {
        self.products
    }

    /// Number of blocks.
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The class token, before position embedding.
    ///
    /// # Shapes
    /// - result: `[1, 1, dim]`
    pub fn class_token(&self) -> &Tensor {
        &self.class_token
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        self.class_token.device()
    }

    /// Rows and columns of the patch grid of images of this size.
    pub fn grid(&self, height_px: usize, width_px: usize) -> (usize, usize) {
        let patch_px = self.config.patch_size;
        (height_px / patch_px, width_px / patch_px)
    }

    /// Number of patches of each image.
    ///
    /// # Shapes
    /// - `images`: `[batch, channels, height, width]`
    ///
    /// # Errors
    /// Fails if `images` does not have four dimensions.
    pub fn n_patches(&self, images: &Tensor) -> Result<usize> {
        let (_, _, height_px, width_px) = images.dims4()?;
        let (rows, columns) = self.grid(height_px, width_px);
        Ok(rows * columns)
    }

    /// Runs the model.
    ///
    /// # Shapes
    /// - `images`: `[batch, channels, height, width]`, normalized; height and width are multiples of the patch size
    ///
    /// # Errors
    /// Fails if `images` has the wrong shape.
    pub fn forward(&self, images: &Tensor) -> Result<Output> {
        self.forward_with(images, &mut NoTap)
    }

    /// Runs the model with a tap, which reads the tensors it requests and may replace them.
    ///
    /// # Shapes
    /// - `images`: `[batch, channels, height, width]`, normalized; height and width are multiples of the patch size
    ///
    /// # Errors
    /// Fails if `images` has the wrong shape, or if the tap fails.
    pub fn forward_with(&self, images: &Tensor, tap: &mut dyn Tap) -> Result<Output> {
        kernels::in_pool(|| self.forward_here(images, tap))
    }

    /// Runs the model from the input of block `first_block`. After the last block, only the norm and the head run.
    ///
    /// The number of tokens is arbitrary, so tokens may have been removed.
    ///
    /// # Shapes
    /// - `xs`: `[batch, tokens, dim]`
    ///
    /// # Errors
    /// Fails if `xs` has the wrong width, or if the tap fails.
    pub fn forward_from(
        &self,
        first_block: usize,
        xs: &Tensor,
        tap: &mut dyn Tap,
    ) -> Result<Output> {
        kernels::in_pool(|| self.encode(first_block, xs.clone(), tap))
    }

    /// Completes block `block_idx` for tokens whose attention has already mixed the values.
    ///
    /// # Shapes
    /// - `xs`, the block's input, and `mixed`: `[batch, tokens, dim]`
    /// - result: `[batch, tokens, dim]`
    ///
    /// # Errors
    /// Fails if there is no such block or the shapes do not match.
    pub fn finish_block(&self, block_idx: usize, xs: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        kernels::in_pool(|| self.block(block_idx)?.finish(xs, mixed))
    }

    /// Biases of the key and value projections of block `block_idx`, each `[dim]`.
    ///
    /// # Errors
    /// Fails if there is no such block.
    pub fn key_value_biases(&self, block_idx: usize) -> Result<(Tensor, Tensor)> {
        Ok(self.block(block_idx)?.key_value_biases())
    }

    /// Bias of the patch embedding, `[dim]`: the embedding of zero pixels (black).
    pub fn patch_bias(&self) -> &Tensor {
        self.patch_embedding.bias()
    }

    /// Weights of block `block_idx`.
    #[cfg(feature = "lrp")]
    pub(crate) fn block_parts(&self, block_idx: usize) -> Result<BlockParts<'_>> {
        Ok(self.block(block_idx)?.parts())
    }

    /// The classifier's weights, one row per class; `None` without a classifier.
    ///
    /// # Shapes
    /// - result: `[classes, width]`, see [`Head::width`]
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn class_weights(&self) -> Result<Option<Tensor>> {
        self.classifier.as_ref().map(Classifier::weight).transpose()
    }

    /// The classifier, if it is a linear map of the class token, with or without the mean of the patches.
    pub fn linear_classifier(&self) -> Option<&Linear> {
        self.classifier.as_ref()?.linear()
    }

    /// The classifier, if it reads only the class token.
    #[cfg(feature = "lrp")]
    pub(crate) fn classifier_of_class_token(&self) -> Option<&Linear> {
        self.classifier.as_ref()?.of_class_token()
    }

    fn block(&self, block_idx: usize) -> Result<&Block> {
        match self.blocks.get(block_idx) {
            Some(block) => Ok(block),
            None => candle_core::bail!(
                "there is no block {block_idx}; the model has {} blocks",
                self.blocks.len()
            ),
        }
    }

    fn forward_here(&self, images: &Tensor, tap: &mut dyn Tap) -> Result<Output> {
        let (_, _, height_px, width_px) = images.dims4()?;
        let grid = self.grid(height_px, width_px);
        let images = tapped(tap, Site::Pixels, images.clone())?;
        let patches = self.patch_embedding.forward(&images)?; // [batch, patches, dim]
        let patches = tapped(tap, Site::PatchEmbeddings, patches)?;
        let xs = self.embed(&patches, grid)?; // [batch, tokens, dim]
        self.encode(0, xs, tap)
    }

    fn encode(&self, first_block: usize, mut xs: Tensor, tap: &mut dyn Tap) -> Result<Output> {
        for (block_idx, block) in self.blocks.iter().enumerate().skip(first_block) {
            self.stop.check()?;
            xs = tapped(tap, Site::Hidden(block_idx), xs)?;
            xs = block.forward(&xs, block_idx, self.rules, tap)?;
        }
        xs = tapped(tap, Site::Hidden(self.blocks.len()), xs)?;
        let normed = match self.rules {
            Some(rules) => rules.norm(&self.norm, &xs)?,
            None => self.norm.forward(&xs)?,
        };
        let tokens = tapped(tap, Site::Tokens, normed)?;
        let n_special = self.config.n_special_tokens();
        let classifier = self.classifier.as_ref();
        let logits = classifier
            .map(|classifier| classifier.forward(&tokens, n_special, self.rules))
            .transpose()?;
        Ok(Output { tokens, logits })
    }

    /// Adds position embeddings and prepends the special tokens.
    fn embed(&self, patches: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let (batch, _, dim) = patches.dims3()?;
        let repeat = |token: &Tensor| {
            let n_tokens = token.dim(1)?;
            token.broadcast_as((batch, n_tokens, dim))?.contiguous()
        };
        let mut placed = vec![repeat(&self.class_token)?];
        if let Some(token) = &self.distillation_token {
            placed.push(repeat(token)?);
        }
        placed.push(patches.clone());
        let xs = Tensor::cat(&placed, 1)?; // [batch, positions, dim]
        let xs = xs.broadcast_add(&self.position_embedding.at(grid)?)?;
        if let Some(norm) = &self.pre_norm {
            return norm.forward(&xs);
        }
        let Some(registers) = &self.register_tokens else {
            return Ok(xs);
        };
        // Registers have no position embedding; they are inserted between the class token and the patches.
        let n_front = placed.len() - 1;
        let front = xs.narrow(1, 0, n_front)?;
        let behind = xs.narrow(1, n_front, xs.dim(1)? - n_front)?;
        Tensor::cat(&[&front, &repeat(registers)?, &behind], 1) // [batch, tokens, dim]
    }
}

/// Validated weights by canonical name.
pub(crate) struct Weights<'a>(&'a HashMap<String, Tensor>);

impl Weights<'_> {
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.0.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("the weights lack {name:?}"),
        }
    }
}

/// Loads a linear map. The bias is zero if the checkpoint has none.
pub(crate) fn linear(name: &str, biased: bool, weights: &Weights<'_>) -> Result<Linear> {
    let weight = weights.tensor(&format!("{name}.weight"))?;
    let bias = if biased {
        weights.tensor(&format!("{name}.bias"))?
    } else {
        Tensor::zeros(weight.dim(0)?, weight.dtype(), weight.device())?
    };
    Ok(Linear::new(weight, bias))
}

/// Loads a layer normalization.
pub(crate) fn layer_norm(
    name: &str,
    config: &VitConfig,
    weights: &Weights<'_>,
) -> Result<LayerNorm> {
    Ok(LayerNorm::new(
        weights.tensor(&format!("{name}.weight"))?,
        weights.tensor(&format!("{name}.bias"))?,
        config.layer_norm_eps,
    ))
}
