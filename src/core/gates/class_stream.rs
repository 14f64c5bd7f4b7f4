//! The contribution of each patch to the class token, block by block, for a score.
//!
//! Attention times its gradient, A ∘ ∂z/∂A (Chefer et al., arXiv:2103.15679, Eq. 5; Barkan et al., CIKM 2021), for the
//! rows that the classifier reads. The gradient is propagated only along those tokens; all others are held fixed at the
//! values of the clean pass. The backward pass therefore costs as little as the forward pass of one token, not as much
//! as a backward pass of all tokens.
//!
//! | symbol | here |
//! |---|---|
//! | z | weighted sum of the logits |
//! | A_bh | attention of head h of block b, row of the class token |
//! | C_bh | `contributions`, A_bh ∘ ∂z/∂A_bh |
//!
//! In the last block, only those tokens lie on the path to z, so C is exact. In earlier blocks, C omits information
//! that the class token passes to patches and later takes back. On `everyday`, C of the last four of twelve blocks
//! correlates with the exact one at 0.99 to 1.00, of the four before at 0.94 to 0.98, and of the first four at 0.57 to
//! 0.84. Gates use only the last third of the blocks: one token requires few operations, but reads all weights.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use crate::vit::{Head, Probe, Record, Site, Tap, Vit};
use vitscope_kernels as kernels;

/// Inverse of the share of blocks that are followed.
const FOLLOWED: usize = 3;

/// Attention and contributions of patches to the class token in each of the last blocks.
#[derive(Clone, Debug)]
pub struct ClassStream {
    /// `[batch, followed, patches]`, mean over heads.
    pub attention: Tensor,
    /// C, `[batch, followed, heads, patches]`
    pub contributions: Tensor,
}

/// The first of `n_blocks` blocks through which gates follow the class token.
pub(super) fn first_followed(n_blocks: usize) -> usize {
    n_blocks - n_blocks.div_ceil(FOLLOWED)
}

/// Sites of a clean pass that [`ClassStream::follow`] reads.
pub fn stream_sites(vit: &Vit) -> impl Iterator<Item = Site> + use<> {
    sites_from(vit, first_followed(vit.n_blocks()))
}

fn sites_from(vit: &Vit, first_block: usize) -> impl Iterator<Item = Site> + use<> {
    let of_block = |block_idx| [Site::Key(block_idx), Site::Value(block_idx)];
    (first_block..vit.n_blocks())
        .flat_map(of_block)
        .chain([Site::Hidden(first_block), Site::Tokens])
}

impl ClassStream {
    /// Runs the model, and follows the tokens that the classifier reads through the blocks from `first_block` on.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`
    /// - `weights`: weights of the logits in the explained score, `[batch, classes]`
    ///
    /// # Errors
    /// Fails if the model has no classifier or no such block, or if a shape does not fit.
    pub fn of(vit: &Vit, images: &Tensor, weights: &Tensor, first_block: usize) -> Result<Self> {
        let mut record = Record::new(sites_from(vit, first_block));
        vit.forward_with(images, &mut record)?;
        follow_from(vit, first_block, |site| record.get(site).cloned(), weights)
    }

    /// Follows the tokens that the classifier reads through the last third of the blocks.
    ///
    /// # Shapes
    /// - `weights`: weights of the logits in the explained score, `[batch, classes]`
    ///
    /// `value` returns the tensor of a clean pass at each of the [`stream_sites`].
    ///
    /// # Errors
    /// Fails if the model has no classifier, or if a shape does not fit.
    pub fn follow<E: From<candle_core::Error>>(
        vit: &Vit,
        value: impl Fn(Site) -> std::result::Result<Tensor, E>,
        weights: &Tensor,
    ) -> std::result::Result<Self, E> {
        follow_from(vit, first_followed(vit.n_blocks()), value, weights)
    }
}

fn follow_from<E: From<candle_core::Error>>(
    vit: &Vit,
    first_block: usize,
    value: impl Fn(Site) -> std::result::Result<Tensor, E>,
    weights: &Tensor,
) -> std::result::Result<ClassStream, E> {
    let n_read = match vit.config().head() {
        Some(Head::ClassAndDistillationTokens) => 2,
        _ => 1,
    };
    let rest = |site| -> std::result::Result<Tensor, E> {
        let xs = value(site)?.detach();
        Ok(xs.narrow(1, n_read, xs.dim(1)? - n_read)?)
    };
    let read = value(Site::Hidden(first_block))?.detach();
    let mut keys_and_values = BTreeMap::new();
    for block_idx in first_block..vit.n_blocks() {
        let held = [rest(Site::Key(block_idx))?, rest(Site::Value(block_idx))?];
        keys_and_values.insert(block_idx, held);
    }
    let held = Held {
        keys_and_values,
        tokens: rest(Site::Tokens)?,
    };
    Ok(take(
        vit,
        first_block,
        held,
        &read.narrow(1, 0, n_read)?,
        weights,
    )?)
}

/// Runs `read`, `[batch, read, dim]`, from `first_block` on, attending to the held tokens.
fn take(
    vit: &Vit,
    first_block: usize,
    held: Held,
    read: &Tensor,
    weights: &Tensor,
) -> Result<ClassStream> {
    let sites: Vec<Site> = (first_block..vit.n_blocks()).map(Site::Attention).collect();
    let record = Record::new(sites.iter().copied());
    let probe = Probe::new(sites.iter().copied());
    let mut taps = (held, (record, probe));
    let Some(logits) = vit
        .forward_from(first_block, &read.contiguous()?, &mut taps)?
        .logits
    else {
        candle_core::bail!(
            "the model has no classifier, so there is no class to compute patch contributions for"
        );
    };
    let (_, (record, probe)) = taps;
    let grads = kernels::in_pool(|| logits.mul(weights)?.sum_all()?.backward())?;
    let n_special = vit.config().n_special_tokens();
    let mut attention = Vec::with_capacity(sites.len());
    let mut contributions = Vec::with_capacity(sites.len());
    for site in sites {
        let attn = record.get(site)?.detach(); // [batch, heads, read, tokens]
        let gradient = probe.gradient(site, &grads)?;
        let of_patches = |xs: &Tensor| -> Result<Tensor> {
            let patches = xs.narrow(3, n_special, xs.dim(3)? - n_special)?;
            patches.mean(2) // [batch, heads, patches]
        };
        attention.push(of_patches(&attn)?.mean(1)?);
        contributions.push(of_patches(&(&attn * gradient)?)?);
    }
    Ok(ClassStream {
        attention: Tensor::stack(&attention, 1)?,
        contributions: Tensor::stack(&contributions, 1)?,
    })
}

/// Appends the tokens that are held fixed to those that pass through the model.
struct Held {
    /// For each followed block, `[batch, others, dim]`.
    keys_and_values: BTreeMap<usize, [Tensor; 2]>,
    /// The fixed tokens after the final norm, `[batch, others, dim]`.
    tokens: Tensor,
}

impl Tap for Held {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Key(_) | Site::Value(_) | Site::Tokens)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        let of_block = |block_idx: usize, which: usize| match self.keys_and_values.get(&block_idx) {
            Some(held) => Ok(&held[which]),
            None => candle_core::bail!("nothing is held for block {block_idx}"),
        };
        let others = match site {
            Site::Key(block_idx) => of_block(block_idx, 0)?,
            Site::Value(block_idx) => of_block(block_idx, 1)?,
            _ => &self.tokens,
        };
        Tensor::cat(&[&xs, others], 1)
    }
}
