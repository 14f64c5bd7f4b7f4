//! DiffMask: the patches that the model's whole answer can be kept with.
//!
//! Paper: Vision DiffMask (Nalmpantis et al., XAI4CV 2023), after DiffMask (arXiv:2004.14992).
//! Gates that were trained for the model look at all hidden states of a clean pass and vote for each
//! patch; the product of the votes' keep probabilities is the attribution. Trained gates keep few
//! patches, and few values lie between 0 and 1.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | q⁽ᵏ⁾, k the last | `attribution` | ∏ᵢ P(zᵢ≠0) |
//!
//! Cost: 1 forward and the gates, about 5 % of a ViT-B/16 forward.
//!
//! **Deviations** from the authors' code: the masked pass that it runs on a random sample beside the
//! map is left out, for its class and divergence belong to another mask than the one shown.
//!
//! Needs gates trained for exactly this model's weights; see [`crate::gates`].

use candle_core::Tensor;

use super::{Explainer, Needs, Pass};
use crate::error::Result;
use crate::gates::{FrozenGates, Gates};
use crate::overlay::Range;
use crate::vit::{Site, Vit};

/// Explains by trained gates.
pub struct DiffMask {
    gates: FrozenGates,
}

impl DiffMask {
    /// An explainer by `gates`.
    ///
    /// # Errors
    /// Fails where the device runs out of memory.
    pub fn new(gates: &Gates) -> Result<Self> {
        Ok(Self {
            gates: gates.freeze()?,
        })
    }
}

impl Explainer for DiffMask {
    fn name(&self) -> &'static str {
        "diffmask"
    }

    fn range(&self) -> Range {
        Range::Unit
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values(states(vit))
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let states = states(pass.vit())
            .map(|site| pass.value(site))
            .collect::<Result<Vec<_>>>()?;
        Ok(self.gates.mask(&states)?)
    }
}

/// The states that gates look at, in order.
fn states(vit: &Vit) -> impl Iterator<Item = Site> + use<> {
    let hidden = (0..=vit.n_blocks()).map(Site::Hidden);
    std::iter::once(Site::PatchEmbeddings).chain(hidden)
}
