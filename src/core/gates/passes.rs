//! The two forward passes of DiffMask: a clean one that records every state, and one with masked patches.

use candle_core::{Result, Tensor};

use crate::vit::{Head, Output, Record, Replace, Site, Tap, Vit};

/// How masked patches are hidden from the model.
#[derive(Clone, Debug)]
pub enum Removal {
    /// The embedding fades to this vector, `[dim]`, before adding positions (Vision DiffMask).
    Baseline(Tensor),
    /// No token attends to the patch in any block and no head reads it, as if it were not among the tokens (Jain et
    /// al., arXiv:2204.08945, drop tokens; ViT-Shapley, arXiv:2206.05282, masks attention). For fractional masks,
    /// attention and the mean of the patches are weighted by the mask.
    Drop,
}

impl Removal {
    /// Returns the removal detached from the graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        match self {
            Self::Baseline(baseline) => Self::Baseline(baseline.detach()),
            Self::Drop => Self::Drop,
        }
    }
}

/// The parts of a clean pass that the gates and the masked pass need; detached from the graph.
#[derive(Clone, Debug)]
pub struct CleanPass {
    /// One state per gate, `[batch, patches, dim]`; the first is the patch embeddings.
    pub states: Vec<Tensor>,
    /// The model's output for the unmasked images.
    pub output: Output,
}

/// Sites of the states that gates read.
pub fn state_sites(vit: &Vit) -> impl Iterator<Item = Site> + use<> {
    std::iter::once(Site::PatchEmbeddings).chain((0..=vit.n_blocks()).map(Site::Hidden))
}

/// Runs the model on unmasked images and records every state.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
///
/// # Errors
/// Fails if `images` does not fit the model.
pub fn clean_pass(vit: &Vit, images: &Tensor) -> Result<CleanPass> {
    let sites: Vec<Site> = state_sites(vit).collect();
    let mut record = Record::new(sites.iter().copied());
    let output = vit.forward_with(images, &mut record)?;
    let n_special = vit.config().n_special_tokens();
    let states = sites
        .into_iter()
        .map(|site| {
            let xs = record.get(site)?;
            // Class, distillation and register tokens precede the patches.
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

/// Runs the model with patches removed where `mask` is below 1; values between 0 and 1 remove a patch partially.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
/// - `mask`: `[batch, patches]`, 1 keeps
///
/// # Errors
/// Fails if a shape does not fit the model.
pub fn masked_pass(vit: &Vit, images: &Tensor, mask: &Tensor, removal: &Removal) -> Result<Output> {
    match removal {
        Removal::Baseline(baseline) => {
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
        Removal::Drop => vit.forward_with(images, &mut Inattention::new(vit, mask)?),
    }
}

/// Remaining weight of a dropped patch, so that its logarithm and gradient are finite.
const LEAST_WEIGHT: f64 = 1e-18;

/// Weights attention to each token in every block, and the patches that the head reads.
struct Inattention {
    /// `[batch, 1, 1, tokens]`
    log_weights: Tensor,
    /// `[batch, tokens, 1]`, if the head reads the mean of the patches.
    in_mean: Option<Tensor>,
}

impl Inattention {
    /// # Shapes
    /// - `mask`: `[batch, patches]`
    fn new(vit: &Vit, mask: &Tensor) -> Result<Self> {
        let shape = (mask.dim(0)?, vit.config().n_special_tokens());
        let special = Tensor::ones(shape, mask.dtype(), mask.device())?;
        let weights = (Tensor::cat(&[&special, mask], 1)? + LEAST_WEIGHT)?; // [batch, tokens]
        let in_mean = match vit.config().head() {
            // The head divides Σ zⱼ tⱼ by the number of all patches, but must divide by the number of kept ones. If
            // less than one is left in total, the mean fades out.
            Some(Head::ClassTokenAndPatchMean) => {
                let n_kept = mask.sum_keepdim(1)?.maximum(1.0)?;
                let kept = (mask.broadcast_div(&n_kept)? * mask.dim(1)? as f64)?;
                Some(Tensor::cat(&[&special, &kept], 1)?.unsqueeze(2)?)
            }
            _ => None,
        };
        Ok(Self {
            log_weights: weights.log()?.unsqueeze(1)?.unsqueeze(1)?,
            in_mean,
        })
    }
}

impl Tap for Inattention {
    fn wants(&self, site: Site) -> bool {
        match site {
            Site::Scores(_) => true,
            Site::Tokens => self.in_mean.is_some(),
            _ => false,
        }
    }

    /// a'ᵢⱼ = zⱼ aᵢⱼ / Σₖ zₖ aᵢₖ = softmax(sᵢⱼ + ln zⱼ), applied before the softmax. After it, attention to the
    /// remaining tokens might be too small for f32 relative to attention to the others.
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        match (site, &self.in_mean) {
            (Site::Tokens, Some(in_mean)) => value.broadcast_mul(in_mean), // [batch, tokens, dim]
            (Site::Tokens, None) => Ok(value),
            _ => value.broadcast_add(&self.log_weights), // [batch, heads, tokens, tokens]
        }
    }
}
