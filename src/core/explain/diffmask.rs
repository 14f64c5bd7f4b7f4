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
//! | φ | cut `none` of gates that rank or order | Σφ = v(1) − v(0), see [`RankingGates`](crate::gates::RankingGates), [`OrderGates`](crate::gates::OrderGates) |
//!
//! Masks of a video can be [smoothed](Smoother) along its motion. Whether the model's answer survives a smoothed mask is
//! asked of the model, and where it does not, the frame's own mask is shown and remembered.
//!
//! Cost: 1 forward and the gates, about 5 % of a ViT-B/16 forward, and 7 % of a ViT-S/14 forward where they order; with
//! the cut `margin` as many masked passes more as it takes to halve the number of patches down to nothing, 8 for 196;
//! with `smooth` 2 masked passes.
//!
//! **Deviations** from the authors' code: the masked pass that it runs on a random sample beside the
//! map is left out, for its class and divergence belong to another mask than the one shown. The cut `margin` is ours:
//! gates are trained for the margin in the mean, and a cut makes each mask keep it. Smoothing is ours too.
//!
//! Needs gates trained for exactly this model's weights; see [`crate::gates`]. Gates that rank score each patch by its
//! Shapley value for a class instead, and gates that order by what the class token takes from it: their attribution is
//! that score, signed, and what is kept is what speaks for the class.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::memory::Remembered;
use super::methods::{Entry, Listed, Pace};
use super::motion::{Smoothed, Smoother, Smoothing, logit};
use super::{Detailed, Explainer, Needs, Parts, Pass};
use crate::error::{Error, Result};
use crate::explain::Range;
use crate::flow::Gray;
use crate::gates::{
    ClassStream, FrozenGates, Gates, MARGIN, Removal, logits, masked_answers, masks_within_margin,
    state_sites, stream_sites, tensor_from_masks,
};
use crate::vit::Vit;

/// How keep probabilities are turned into a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// They are shown as they are.
    #[default]
    None,
    /// Patches that are more likely kept than not become 1, the others 0. With ranking gates, patches that support the
    /// class become 1. With `smooth`, the cut has hysteresis.
    Likely,
    /// The smallest number of most likely patches that preserves the output, class and margin, becomes 1; the others
    /// become 0.
    Margin,
}

/// Options of [`DiffMask`].
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DiffMaskOptions {
    /// How keep probabilities are turned into a mask.
    pub cut: Cut,
    /// Largest divergence from the original output, in nats, at which a masked output counts as preserved.
    pub margin: f64,
    /// Also output the vote of each gate for each patch.
    pub votes: bool,
    /// Share of the previous frame's mask that is kept, for consecutive frames of one video; 0 turns smoothing off.
    pub smooth: f32,
}

impl Default for DiffMaskOptions {
    fn default() -> Self {
        Self {
            cut: Cut::default(),
            margin: MARGIN,
            votes: false,
            smooth: 0.0,
        }
    }
}

impl Listed for DiffMaskOptions {
    const ENTRY: Entry = Entry {
        name: "diffmask",
        summary: "patches that trained gates keep or rank by their contribution to the class",
        paper: "Vision DiffMask, arXiv:2304.06391",
        forwards: "1",
        backwards: "0",
        pace: Pace::A,
    };
    const TRAINED_PART: Option<&'static str> = Some("gates");

    fn build(self, parts: Parts<'_>) -> Result<Box<dyn Explainer>> {
        let gates = parts.gates.ok_or_else(|| {
            Error::Model(
                "model has no gates; train them with `vitscope train diffmask` or choose another method".into(),
            )
        })?;
        Ok(Box::new(DiffMask::new(gates, parts.normalization, self)?))
    }
}

/// Mean and standard deviation by which the model's images are normalized, channel by channel.
pub type Normalization = ([f32; 3], [f32; 3]);

/// What smoothing needs: how images become gray pictures, and what smooths a video from its first frame on.
struct Smooths {
    normalization: Normalization,
    smoother: Smoother,
}

/// Explains by trained gates.
pub struct DiffMask {
    gates: FrozenGates,
    removal: Removal,
    options: DiffMaskOptions,
    /// Where masks are smoothed.
    smooths: Option<Smooths>,
}

impl DiffMask {
    /// An explainer by `gates`, for images that are normalized by `normalization` where that is known.
    ///
    /// # Errors
    /// [`Error::Config`] where the margin is not a number above 0, or masks shall be smoothed and `smooth` is not below 1
    /// or the normalization not known; else where the device runs out of memory.
    pub fn new(
        gates: &Gates,
        normalization: Option<Normalization>,
        options: DiffMaskOptions,
    ) -> Result<Self> {
        if !(options.margin > 0.0 && options.margin.is_finite()) {
            return Err(Error::Config(format!(
                "diffmask: margin must be above 0 nats, got {}",
                options.margin
            )));
        }
        Ok(Self {
            gates: gates.freeze()?,
            removal: gates.removal().detach(),
            smooths: smooths(normalization, options.smooth)?,
            options,
        })
    }

    /// What becomes of the masks of the gates.
    ///
    /// # Shapes
    /// - `own` and result: `[batch, patches]`
    fn shown(
        &self,
        pass: &Pass<'_>,
        own: &Tensor,
        remembered: &mut Remembered<'_>,
    ) -> Result<Tensor> {
        let mask = match &self.smooths {
            Some(smooths) => self.smoothed(pass, own, smooths, remembered)?,
            None => own.clone(),
        };
        match (self.options.cut, &self.smooths) {
            (Cut::None, _) | (Cut::Likely, Some(_)) => Ok(mask),
            (Cut::Likely, None) => {
                let own: Vec<Vec<f32>> = mask.to_vec2()?;
                let masks: Vec<Vec<bool>> = own.iter().map(|own| self.kept(own)).collect();
                Ok(tensor_from_masks(&masks, mask.device())?)
            }
            (Cut::Margin, _) => self.cut(pass, &mask),
        }
    }

    /// The masks of successive frames, smoothed; cut where that is asked for.
    ///
    /// # Shapes
    /// - `mask` and result: `[batch, patches]`
    fn smoothed(
        &self,
        pass: &Pass<'_>,
        mask: &Tensor,
        smooths: &Smooths,
        remembered: &mut Remembered<'_>,
    ) -> Result<Tensor> {
        let images = pass.images();
        let (_, _, height_px, width_px) = images.dims4()?;
        let grid = pass.vit().grid(height_px, width_px);
        let own: Vec<Vec<f32>> = mask.to_vec2()?;
        let mut shown = Vec::with_capacity(own.len());
        for (idx, likely) in own.iter().enumerate() {
            let image = images.narrow(0, idx, 1)?;
            let logits = self.logits(likely);
            let memory = remembered.of_image(idx)?;
            let mut smoother = memory.take().unwrap_or_else(|| smooths.smoother.clone());
            let mut smoothed =
                smoother.next(&gray(&image, smooths.normalization)?, &logits, grid)?;
            if !smoothed.anew && !self.is_as_good(pass, idx, &smoothed, likely)? {
                smoothed = smoother.reset_to(&logits)?;
            }
            memory.keep(smoother);
            shown.extend(match self.options.cut {
                Cut::Likely => smoothed
                    .mask
                    .iter()
                    .map(|&keep| f32::from(u8::from(keep)))
                    .collect(),
                Cut::None | Cut::Margin => self.attribution_of(&smoothed),
            });
        }
        Ok(Tensor::from_vec(shown, mask.shape(), mask.device())?)
    }

    /// Whether the model's answer survives a smoothed mask: it costs at most the margin more than the frame's own mask. A
    /// model without a head has no answer to keep.
    fn is_as_good(
        &self,
        pass: &Pass<'_>,
        idx: usize,
        smoothed: &Smoothed,
        likely: &[f32],
    ) -> Result<bool> {
        let Some(original) = pass.logits() else {
            return Ok(true);
        };
        let pair = |tensor: &Tensor| {
            let one = tensor.narrow(0, idx, 1)?;
            Tensor::cat(&[&one, &one], 0)
        };
        let masks = [self.kept(likely), smoothed.mask.clone()];
        let images = pair(pass.images())?;
        let answers = masked_answers(
            pass.vit(),
            &images,
            &pair(&original)?,
            &masks,
            &self.removal,
        )?;
        Ok(answers[1].kl <= answers[0].kl + self.options.margin)
    }

    /// Logits of what gates say of each patch, 0 where they neither keep nor leave it.
    fn logits(&self, own: &[f32]) -> Vec<f32> {
        match self.gates {
            FrozenGates::Voting(_) => own.iter().map(|&likely| logit(likely)).collect(),
            // In mean shares of the whole, so that they are of the same size for any model and grid.
            FrozenGates::Ranking(_) | FrozenGates::Order(_) => {
                own.iter().map(|score| score * own.len() as f32).collect()
            }
        }
    }

    /// The attribution that smoothed logits are of.
    fn attribution_of(&self, smoothed: &Smoothed) -> Vec<f32> {
        match self.gates {
            FrozenGates::Voting(_) => smoothed.probabilities(),
            FrozenGates::Ranking(_) | FrozenGates::Order(_) => {
                let n_patches = smoothed.logits.len() as f32;
                let logits = smoothed.logits.iter();
                logits.map(|logit| logit / n_patches).collect()
            }
        }
    }

    /// Which patches gates keep.
    fn kept(&self, own: &[f32]) -> Vec<bool> {
        let logits = self.logits(own).into_iter();
        logits.map(|logit| logit >= 0.0).collect()
    }

    /// What gates say of each patch of a pass.
    ///
    /// # Shapes
    /// - result: `[batch, patches]`
    fn own(&self, pass: &Pass<'_>) -> Result<Tensor> {
        match &self.gates {
            FrozenGates::Voting(gates) => Ok(gates.mask(&states_of(pass)?)?),
            FrozenGates::Ranking(gates) => {
                let logits = logits(pass.logits())?;
                Ok(gates.scores(&states_of(pass)?, &logits, pass.weights()?)?)
            }
            FrozenGates::Order(gates) => {
                let logits = logits(pass.logits())?;
                let weights = pass.weights()?;
                let stream = ClassStream::follow(pass.vit(), |site| pass.value(site), weights)?;
                Ok(gates.scores(&stream, pass.grid()?, &logits, weights)?)
            }
        }
    }

    /// As few of the patches that gates keep likeliest as the answer can be kept with.
    ///
    /// # Shapes
    /// - `mask` and result: `[batch, patches]`
    fn cut(&self, pass: &Pass<'_>, mask: &Tensor) -> Result<Tensor> {
        let Some(original) = pass.logits() else {
            return Err(Error::Model(
                "diffmask.cut=margin preserves the model's output, but the model has no head; use diffmask.cut=none"
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
        DiffMaskOptions::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        !matches!(self.gates, FrozenGates::Voting(_))
    }

    fn range(&self) -> Range {
        match (&self.gates, self.options.cut) {
            (FrozenGates::Ranking(_) | FrozenGates::Order(_), Cut::None) => Range::Signed,
            _ => Range::Unit,
        }
    }

    fn needs(&self, vit: &Vit) -> Needs {
        match self.gates {
            FrozenGates::Order(_) => Needs::values(stream_sites(vit)),
            _ => Needs::values(state_sites(vit)),
        }
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let own = self.own(pass)?;
        Remembered::nothing(own.dim(0)?, |nothing| self.shown(pass, &own, nothing))
    }

    fn detailed(&self, pass: &Pass<'_>) -> Result<Detailed> {
        let n_images = pass.images().dim(0)?;
        Remembered::nothing(n_images, |nothing| self.follow(pass, nothing))
    }

    fn follow(&self, pass: &Pass<'_>, remembered: &mut Remembered<'_>) -> Result<Detailed> {
        let own = self.own(pass)?;
        let votes = match &self.gates {
            FrozenGates::Voting(gates) if self.options.votes => {
                Some(gates.keep(&states_of(pass)?)?)
            }
            // The networks of the others have no parts that vote.
            _ => None,
        };
        Ok(Detailed {
            attribution: self.shown(pass, &own, remembered)?,
            votes,
            unsmoothed: self.smooths.is_some().then_some(own),
        })
    }
}

fn smooths(normalization: Option<Normalization>, smooth: f32) -> Result<Option<Smooths>> {
    if smooth == 0.0 {
        return Ok(None);
    }
    let Some(normalization) = normalization else {
        return Err(Error::Config(
            "diffmask: smoothing masks requires the model's image normalization, which is unknown"
                .into(),
        ));
    };
    let smoother = Smoother::new(Smoothing {
        keep: smooth,
        ..Smoothing::default()
    });
    let smoother = smoother.map_err(|_| {
        Error::Config(format!(
            "diffmask: smooth must be at least 0 and below 1, got {smooth}"
        ))
    })?;
    Ok(Some(Smooths {
        normalization,
        smoother,
    }))
}

/// How bright an image is, from 0 to 1: the mean of its channels.
///
/// # Shapes
/// - `image`: `[1, 3, height, width]`, normalized
fn gray(image: &Tensor, (mean, std): Normalization) -> Result<Gray> {
    let (_, channels, height_px, width_px) = image.dims4()?;
    let channel = |values: [f32; 3]| Tensor::new(&values, image.device())?.reshape((1, 3, 1, 1));
    let colors = image
        .broadcast_mul(&channel(std)?)?
        .broadcast_add(&channel(mean)?)?;
    let gray = (colors.sum(1)? / channels as f64)?.clamp(0.0, 1.0)?;
    Gray::new(width_px, height_px, gray.flatten_all()?.to_vec1()?)
}

/// The states of a pass.
fn states_of(pass: &Pass<'_>) -> Result<Vec<Tensor>> {
    state_sites(pass.vit())
        .map(|site| pass.value(site))
        .collect()
}
