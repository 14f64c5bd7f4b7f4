//! DiffMask: the patches that suffice to preserve the model's output.
//!
//! Paper: Vision DiffMask (Nalmpantis et al., XAI4CV 2023), based on DiffMask (arXiv:2004.14992). Gates trained for the
//! model read all hidden states of a clean pass and vote for each patch; the product of the votes' keep probabilities
//! is the attribution. Trained gates keep few patches, and few values lie between 0 and 1.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | q⁽ᵏ⁾, k the last | cut `none` | ∏ᵢ P(zᵢ≠0) |
//! | ε | `margin` | KL(original ‖ masked) ≤ ε |
//! | P(zᵢ≠0) | votes | q⁽ᵏ⁾ = ∏ᵢ P(zᵢ≠0) |
//! | φ | cut `none` of [`RankingGates`] or [`OrderGates`] | Σφ = v(1) − v(0) |
//!
//! Masks of a video can be [smoothed](Smoother) along its motion. The model checks each smoothed mask: if its output
//! does not survive, the frame's own mask is shown and remembered instead.
//!
//! Cost: 1 forward and the gates, about 5 % of a ViT-B/16 forward, or 7 % of a ViT-S/14 forward for order gates. The
//! cut `margin` adds one masked pass per halving of the number of patches down to 0, 8 for 196 patches; `smooth` adds 2
//! masked passes.
//!
//! **Deviations** from the authors' code: the masked pass on a random sample beside the map is omitted, because its
//! class and divergence belong to another mask than the one shown. The cut `margin` is an addition: training enforces
//! the margin only on average, whereas the cut enforces it for each mask. Smoothing is also an addition.
//!
//! Requires gates trained for exactly this model's weights; see [`crate::gates`]. Ranking gates instead score each
//! patch by its Shapley value for a class, and order gates by what the class token takes from it. Their attribution is
//! this signed score, and the kept patches are those that support the class.
//!
//! [`RankingGates`]: crate::gates::RankingGates
//! [`OrderGates`]: crate::gates::OrderGates

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
    /// Keep probabilities remain unchanged.
    #[default]
    None,
    /// Patches that are more likely kept than not become 1, the others 0. With ranking and order gates, patches that
    /// support the class become 1. With `smooth`, the cut has hysteresis.
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

/// Data for smoothing: the normalization, to convert images to grayscale, and the smoother of a new video.
struct Smooths {
    normalization: Normalization,
    smoother: Smoother,
}

/// Explains by trained gates.
pub struct DiffMask {
    gates: FrozenGates,
    removal: Removal,
    options: DiffMaskOptions,
    /// Present if masks are smoothed.
    smooths: Option<Smooths>,
}

impl DiffMask {
    /// Creates an explainer from `gates`, for images normalized by `normalization`, if known.
    ///
    /// # Errors
    /// [`Error::Config`] if the margin is not a finite number above 0, or if smoothing is requested and `smooth` is not
    /// below 1 or the normalization is unknown; other errors if the device runs out of memory.
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

    /// Converts the gates' masks to the attribution: smooths and cuts them as requested.
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

    /// Smooths the masks of successive frames, and cuts them if requested.
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

    /// Checks that the model's output survives a smoothed mask, which may cost at most the margin more than the frame's
    /// own mask. Returns true for a model without a head, which has no output to preserve.
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

    /// Converts the gates' values to logits, which are 0 for patches that are neither kept nor dropped.
    fn logits(&self, own: &[f32]) -> Vec<f32> {
        match self.gates {
            FrozenGates::Voting(_) => own.iter().map(|&likely| logit(likely)).collect(),
            // Scaled by the number of patches, so that the magnitude does not depend on the model and the grid.
            FrozenGates::Ranking(_) | FrozenGates::Order(_) => {
                own.iter().map(|score| score * own.len() as f32).collect()
            }
        }
    }

    /// Converts smoothed logits back to an attribution.
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

    /// Which patches the gates keep.
    fn kept(&self, own: &[f32]) -> Vec<bool> {
        let logits = self.logits(own).into_iter();
        logits.map(|logit| logit >= 0.0).collect()
    }

    /// The gates' value for each patch of a pass.
    ///
    /// # Shapes
    /// - result: `[batch, patches]`
    fn own(&self, pass: &Pass<'_>) -> Result<Tensor> {
        match &self.gates {
            FrozenGates::Voting(gates) => Ok(gates.mask(&states_of(pass)?, pass.vit().products())?),
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

    /// Keeps the smallest number of patches, most likely ones first, that preserves the output.
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
                Some(gates.keep(&states_of(pass)?, pass.vit().products())?)
            }
            // The other gates have no parts that vote.
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

/// Brightness of an image, from 0 to 1: the mean of its channels.
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

/// The hidden states of a pass.
fn states_of(pass: &Pass<'_>) -> Result<Vec<Tensor>> {
    state_sites(pass.vit())
        .map(|site| pass.value(site))
        .collect()
}
