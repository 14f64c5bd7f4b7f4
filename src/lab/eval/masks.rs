//! Effect of gates' masks on a model's predictions, on any images: labels are not needed.

use std::fmt;

use candle_core::Tensor;

use super::{MaskedAnswer, mean, share};
use vitscope_core::error::Result;
use vitscope_core::gates::{
    FrozenGates, Removal, binary_masks, logits, masked_answers, masks_within_margin,
};
use vitscope_core::rng::Rng;
use vitscope_core::vit::Vit;

/// Means over masked images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskScores {
    /// Number of images.
    pub pictures: usize,
    /// Share of patches that are kept.
    pub kept: f64,
    /// KL(original ‖ masked) in nats.
    pub kl: f64,
    /// Share of images whose divergence is within the margin.
    pub within: f64,
    /// Share of images for which the model predicts the same class with and without the mask.
    pub agreement: f64,
}

impl MaskScores {
    /// Averages `answers`; all values are 0 if there are none.
    pub fn of(answers: &[MaskedAnswer], margin: f64) -> Self {
        Self {
            pictures: answers.len(),
            kept: mean(answers.iter().map(|answer| answer.kept)),
            kl: mean(answers.iter().map(|answer| answer.kl)),
            within: share(answers.iter().map(|answer| answer.kl <= margin)),
            agreement: share(answers.iter().map(|answer| answer.agrees)),
        }
    }
}

/// Selection of the patches that a mask keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Patches that the gates are more likely to keep than not.
    Gates,
    /// The same number of patches per image, drawn at random.
    RandomAsMany,
    /// The fewest patches that stay within the margin, in the order of the gates' keep probability.
    GatesWithinMargin,
    /// The fewest patches that stay within the margin, in random order.
    RandomWithinMargin,
}

impl Choice {
    /// All choices, each random one after its counterpart.
    pub const ALL: [Self; 4] = [
        Self::Gates,
        Self::RandomAsMany,
        Self::GatesWithinMargin,
        Self::RandomWithinMargin,
    ];
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gates => "gates, from 0.5 on",
            Self::RandomAsMany => "random, as many",
            Self::GatesWithinMargin => "gates, cut at the margin",
            Self::RandomWithinMargin => "random, cut at the margin",
        })
    }
}

/// Returns the model's outputs under masks of each [`Choice`], in the order of [`Choice::ALL`].
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
///
/// # Errors
/// Fails if a shape does not fit the model, or the model has no classifier.
pub fn answers_by_choice(
    vit: &Vit,
    (gates, removal): (&FrozenGates, &Removal),
    images: &Tensor,
    margin: f64,
    rng: &mut Rng,
) -> Result<[Vec<MaskedAnswer>; 4]> {
    let voted = gates.pass(vit, images)?;
    let original = logits(voted.output.logits)?;
    let likeliness: Vec<Vec<f32>> = voted.mask.to_vec2()?;
    let random: Vec<Vec<f32>> = likeliness
        .iter()
        .map(|of_image| of_image.iter().map(|_| rng.uniform()).collect())
        .collect();

    let gated = binary_masks(&likeliness);
    let as_many: Vec<Vec<bool>> = gated
        .iter()
        .map(|mask| {
            let mut mask = mask.clone();
            rng.shuffle(&mut mask);
            mask
        })
        .collect();
    let within =
        |scores: &[Vec<f32>]| masks_within_margin(vit, images, &original, scores, removal, margin);
    let answers = |masks: &[Vec<bool>]| masked_answers(vit, images, &original, masks, removal);
    Ok([
        answers(&gated)?,
        answers(&as_many)?,
        answers(&within(&likeliness)?)?,
        answers(&within(&random)?)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_means_over_pictures() {
        let answer = |kl, agrees, kept| MaskedAnswer { kl, agrees, kept };
        let answers = [answer(0.1, true, 0.25), answer(0.3, false, 0.75)];
        let expected = MaskScores {
            pictures: 2,
            kept: 0.5,
            kl: 0.2,
            within: 0.5,
            agreement: 0.5,
        };
        assert_eq!(MaskScores::of(&answers, 0.1), expected);
        assert_eq!(MaskScores::of(&[], 0.1).kept, 0.0);
    }
}
