//! DiffMask: the patches that the model's whole answer can be kept with.
//!
//! Paper: Vision DiffMask (Nalmpantis et al., XAI4CV 2023), after DiffMask (arXiv:2004.14992).
//! Gates that were trained for the model look at all hidden states of a clean pass and vote for each
//! patch; the product of the votes' keep probabilities is the attribution. Trained gates keep few
//! patches, and few values lie between 0 and 1.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | q⁽ᵏ⁾, k the last | cut `none` | ∏ᵢ P(zᵢ≠0) |
//! | ε | `margin` | KL(original ‖ masked) ≤ ε |
//! | P(zᵢ≠0) | votes | q⁽ᵏ⁾ = ∏ᵢ P(zᵢ≠0) |
//!
//! Cost: 1 forward and the gates, about 5 % of a ViT-B/16 forward; with the cut `margin` as many masked passes more as
//! it takes to halve the number of patches down to nothing, 8 for 196.
//!
//! **Deviations** from the authors' code: the masked pass that it runs on a random sample beside the
//! map is left out, for its class and divergence belong to another mask than the one shown. The cut `margin` is ours:
//! gates are trained for the margin in the mean, and a cut makes each mask keep it.
//!
//! Needs gates trained for exactly this model's weights; see [`crate::gates`].

use candle_core::Tensor;
use serde::Deserialize;

use super::{Explainer, Needs, Pass};
use crate::error::{Error, Result};
use crate::gates::{FrozenGates, Gates, MARGIN, Removal, masks_within_margin, tensor_from_masks};
use crate::overlay::Range;
use crate::vit::{Site, Vit};

/// What becomes of the keep probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// They are shown.
    #[default]
    None,
    /// As few of the likeliest patches are 1 as the answer can be kept with, the others 0.
    Margin,
}

/// Options of [`DiffMask`].
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffMaskOptions {
    /// What becomes of the keep probabilities.
    pub cut: Cut,
    /// Divergence of a masked answer, in nats, that counts as keeping it.
    pub margin: f64,
    /// Each gate tells what it says of each patch.
    pub votes: bool,
}

impl Default for DiffMaskOptions {
    fn default() -> Self {
        Self {
            cut: Cut::default(),
            margin: MARGIN,
            votes: false,
        }
    }
}

/// Explains by trained gates.
pub struct DiffMask {
    gates: FrozenGates,
    removal: Removal,
    options: DiffMaskOptions,
}

impl DiffMask {
    /// An explainer by `gates`.
    ///
    /// # Errors
    /// [`Error::Config`] where the margin is not a number above 0; else where the device runs out of memory.
    pub fn new(gates: &Gates, options: DiffMaskOptions) -> Result<Self> {
        if !(options.margin > 0.0 && options.margin.is_finite()) {
            return Err(Error::Config(format!(
                "diffmask: margin is {}, expected nats above 0",
                options.margin
            )));
        }
        Ok(Self {
            gates: gates.freeze()?,
            removal: gates.removal().detach(),
            options,
        })
    }

    /// As few of the patches that gates keep likeliest as the answer can be kept with.
    ///
    /// # Shapes
    /// - `mask` and result: `[batch, patches]`
    fn cut(&self, pass: &Pass<'_>, mask: &Tensor) -> Result<Tensor> {
        let Some(original) = pass.logits() else {
            return Err(Error::Model(
                "a cut at the margin keeps the model's answer, and the model has no head, expected diffmask.cut=none"
                    .into(),
            ));
        };
        let masks = masks_within_margin(
            pass.vit(),
            pass.images(),
            &original,
            &mask.to_vec2()?,
            &self.removal,
            self.options.margin,
        )?;
        Ok(tensor_from_masks(&masks, mask.device())?)
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
        let mask = self.gates.mask(&values(pass)?)?;
        match self.options.cut {
            Cut::None => Ok(mask),
            Cut::Margin => self.cut(pass, &mask),
        }
    }

    fn votes(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        match self.options.votes {
            true => Ok(Some(self.gates.keep(&values(pass)?)?)),
            false => Ok(None),
        }
    }
}

/// The states of a pass.
fn values(pass: &Pass<'_>) -> Result<Vec<Tensor>> {
    states(pass.vit()).map(|site| pass.value(site)).collect()
}

/// The states that gates look at, in order.
fn states(vit: &Vit) -> impl Iterator<Item = Site> + use<> {
    let hidden = (0..=vit.n_blocks()).map(Site::Hidden);
    std::iter::once(Site::PatchEmbeddings).chain(hidden)
}
