//! What the class token takes from each patch, block by block, for a score.
//!
//! Attention times its gradient, A ∘ ∂z/∂A (Chefer et al., arXiv:2103.15679, Eq. 5; Barkan et al., CIKM 2021), of the
//! rows that the classifier reads. The gradient is followed along those tokens alone: all others are held as the clean
//! pass left them. So the way back costs as little as the way of one token forth, not a backward pass of all of them.
//!
//! | symbol | here |
//! |---|---|
//! | z | sum of the logits by weights |
//! | A_bh | attention of head h of block b, the row of the class token |
//! | C_bh | `contributions`, A_bh ∘ ∂z/∂A_bh |
//!
//! In the last block nothing but those tokens is on the way to z, so C is exact there. Before, it leaves out what
//! the class token passes to patches and takes back from them later: on `everyday`, C of the last eight of twelve blocks
//! correlates with the exact one at 0.94 to 1.00.

use candle_core::{Result, Tensor};

use crate::kernels;
use crate::vit::{Head, Probe, Record, Site, Tap, Vit};

/// What the class token attends to in each block, and what it takes from there.
#[derive(Clone, Debug)]
pub struct ClassStream {
    /// `[batch, blocks, patches]`, mean of the heads.
    pub attention: Tensor,
    /// C, `[batch, blocks, heads, patches]`
    pub contributions: Tensor,
}

/// Where a clean pass has what [`ClassStream::follow`] needs.
pub(crate) fn stream_sites(vit: &Vit) -> impl Iterator<Item = Site> + use<> {
    let of_block = |block_idx| [Site::Key(block_idx), Site::Value(block_idx)];
    (0..vit.n_blocks())
        .flat_map(of_block)
        .chain([Site::Hidden(0), Site::Tokens])
}

impl ClassStream {
    /// Runs the model, and follows the tokens that the classifier reads.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`
    /// - `weights`: of the explained score, `[batch, classes]`
    ///
    /// # Errors
    /// Fails where the model has no classifier, or a shape does not fit.
    pub fn of(vit: &Vit, images: &Tensor, weights: &Tensor) -> Result<Self> {
        let mut record = Record::new(stream_sites(vit));
        vit.forward_with(images, &mut record)?;
        Self::follow(vit, |site| record.get(site).cloned(), weights)
    }

    /// Follows the tokens that the classifier reads through the model, and the gradient back.
    ///
    /// # Shapes
    /// - `weights`: of the explained score, `[batch, classes]`
    ///
    /// `value` gives what a clean pass had at each of the [`stream_sites`].
    ///
    /// # Errors
    /// Fails where the model has no classifier, or a shape does not fit.
    pub(crate) fn follow<E: From<candle_core::Error>>(
        vit: &Vit,
        value: impl Fn(Site) -> std::result::Result<Tensor, E>,
        weights: &Tensor,
    ) -> std::result::Result<Self, E> {
        let n_read = match vit.config().head() {
            Some(Head::ClassAndDistillationTokens) => 2,
            _ => 1,
        };
        let rest = |site| -> std::result::Result<Tensor, E> {
            let xs = value(site)?.detach();
            Ok(xs.narrow(1, n_read, xs.dim(1)? - n_read)?)
        };
        let mut held = Vec::with_capacity(vit.n_blocks());
        for block_idx in 0..vit.n_blocks() {
            held.push([rest(Site::Key(block_idx))?, rest(Site::Value(block_idx))?]);
        }
        let tokens = rest(Site::Tokens)?;
        let read = value(Site::Hidden(0))?.detach().narrow(1, 0, n_read)?;
        Ok(follow(vit, Held { held, tokens }, &read, weights)?)
    }
}

fn follow(vit: &Vit, held: Held, read: &Tensor, weights: &Tensor) -> Result<ClassStream> {
    let sites: Vec<Site> = (0..vit.n_blocks()).map(Site::Attention).collect();
    let record = Record::new(sites.iter().copied());
    let probe = Probe::new(sites.iter().copied());
    let mut taps = (held, (record, probe));
    let Some(logits) = vit.forward_from(0, &read.contiguous()?, &mut taps)?.logits else {
        candle_core::bail!("the model has no classifier, so no class to take from patches for");
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

/// Puts tokens that are held fixed behind those that go through the model.
struct Held {
    /// Keys and values of each block, `[batch, others, dim]`.
    held: Vec<[Tensor; 2]>,
    /// What the final norm made of them, `[batch, others, dim]`.
    tokens: Tensor,
}

impl Tap for Held {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Key(_) | Site::Value(_) | Site::Tokens)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        let of_block = |block_idx: usize, which: usize| match self.held.get(block_idx) {
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
