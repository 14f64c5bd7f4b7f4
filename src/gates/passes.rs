//! The two forward passes of DiffMask: a clean one that keeps every state, and one with patches masked.

use candle_core::{Result, Tensor};

use crate::vit::{Output, Record, Replace, Site, Vit};

/// Everything of a clean pass that the gates and the masked pass need; carries no graph.
#[derive(Clone, Debug)]
pub struct CleanPass {
    /// One a gate, `[batch, patches, dim]`; the first is the patch embeddings.
    pub states: Vec<Tensor>,
    /// What the model says of the unmasked images.
    pub output: Output,
}

/// Runs the model on unmasked images and keeps every state.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
///
/// # Errors
/// Fails where `images` does not fit the model.
pub fn clean_pass(vit: &Vit, images: &Tensor) -> Result<CleanPass> {
    let sites: Vec<Site> = std::iter::once(Site::PatchEmbeddings)
        .chain((0..=vit.n_blocks()).map(Site::Hidden))
        .collect();
    let mut record = Record::new(sites.iter().copied());
    let output = vit.forward_with(images, &mut record)?;
    let n_special = vit.config().n_special_tokens();
    let states = sites
        .into_iter()
        .map(|site| {
            let xs = record.get(site)?;
            // Class, distillation and register tokens stand before the patches.
            let n_front = if site == Site::PatchEmbeddings {
                0
            } else {
                n_special
            };
            let patches = xs.narrow(1, n_front, xs.dim(1)? - n_front)?;
            Ok(patches.contiguous()?.detach()) // [batch, patches, dim]
        })
        .collect::<Result<_>>()?;
    let output = Output {
        tokens: output.tokens.detach(),
        logits: output.logits.map(|logits| logits.detach()),
    };
    Ok(CleanPass { states, output })
}

/// Runs the model with patch embeddings faded to `baseline` where `mask` is below 1.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
/// - `mask`: `[batch, patches]`, 1 keeps
/// - `baseline`: `[dim]`
///
/// # Errors
/// Fails where a shape does not fit the model.
pub fn masked_pass(vit: &Vit, images: &Tensor, mask: &Tensor, baseline: &Tensor) -> Result<Output> {
    let mask = mask.unsqueeze(2)?; // [batch, patches, 1]
    // ê = z·e + (1−z)·b, written as b + z·(e−b).
    let mut fade = Replace::new(Site::PatchEmbeddings, |embeddings: Tensor| {
        embeddings
            .detach()
            .broadcast_sub(baseline)?
            .broadcast_mul(&mask)?
            .broadcast_add(baseline) // [batch, patches, dim]
    });
    vit.forward_with(images, &mut fade)
}
