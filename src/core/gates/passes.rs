//! The two forward passes of DiffMask: a clean one that keeps every state, and one with patches masked.

use candle_core::{Result, Tensor};

use crate::vit::{Head, Output, Record, Replace, Site, Tap, Vit};

/// How a masked patch is taken from the model.
#[derive(Clone, Debug)]
pub enum Removal {
    /// Its embedding fades to this vector, `[dim]`, before positions are added (Vision DiffMask).
    Baseline(Tensor),
    /// No token attends to it in any block and no head reads it, as if it had not been among the tokens (Jain et al.,
    /// arXiv:2204.08945, drop them; ViT-Shapley, arXiv:2206.05282, masks attention). In between, attention and the
    /// mean of the patches are weighed by the mask.
    Drop,
}

impl Removal {
    /// The same without the graph that it is part of.
    #[must_use]
    pub fn detach(&self) -> Self {
        match self {
            Self::Baseline(baseline) => Self::Baseline(baseline.detach()),
            Self::Drop => Self::Drop,
        }
    }
}

/// Everything of a clean pass that the gates and the masked pass need; carries no graph.
#[derive(Clone, Debug)]
pub struct CleanPass {
    /// One a gate, `[batch, patches, dim]`; the first is the patch embeddings.
    pub states: Vec<Tensor>,
    /// What the model says of the unmasked images.
    pub output: Output,
}

/// Where the states are that gates see.
pub fn state_sites(vit: &Vit) -> impl Iterator<Item = Site> + use<> {
    std::iter::once(Site::PatchEmbeddings).chain((0..=vit.n_blocks()).map(Site::Hidden))
}

/// Runs the model on unmasked images and keeps every state.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
///
/// # Errors
/// Fails where `images` does not fit the model.
pub fn clean_pass(vit: &Vit, images: &Tensor) -> Result<CleanPass> {
    let sites: Vec<Site> = state_sites(vit).collect();
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

/// Runs the model with patches taken away where `mask` is below 1, in part between 0 and 1.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
/// - `mask`: `[batch, patches]`, 1 keeps
///
/// # Errors
/// Fails where a shape does not fit the model.
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

/// What is left of a dropped patch, so that its logarithm and the gradient of that are numbers.
const LEAST_WEIGHT: f64 = 1e-18;

/// Weighs what all tokens attend to, in every block, and what is read of the patches in the end.
struct Inattention {
    /// `[batch, 1, 1, tokens]`
    log_weights: Tensor,
    /// `[batch, tokens, 1]`, where the head reads the mean of the patches.
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
            // The head divides Σ zⱼ tⱼ by the number of all patches, and shall by that of the kept ones; where less
            // than one is left in all, the mean fades with it.
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

    /// a'ᵢⱼ = zⱼ aᵢⱼ / Σₖ zₖ aᵢₖ = softmax(sᵢⱼ + ln zⱼ): before the softmax, because what a model attends to in the
    /// tokens that are left may be too little for an f32 beside what it attends to in the others.
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        match (site, &self.in_mean) {
            (Site::Tokens, Some(in_mean)) => value.broadcast_mul(in_mean), // [batch, tokens, dim]
            (Site::Tokens, None) => Ok(value),
            _ => value.broadcast_add(&self.log_weights), // [batch, heads, tokens, tokens]
        }
    }
}
