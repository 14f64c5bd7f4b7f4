//! The red-patches task: does an explanation find what the model must have used?
//!
//! A model that counts red cells without error uses the set of red cells and nothing else. A mask is therefore right if
//! it keeps exactly the red cells or exactly the others (Vision DiffMask, section 4.1; the paper shows images only, the
//! numbers are defined here). A threshold turns an attribution into a mask; the masked patches are removed in the same
//! way for every method, and the model predicts again.
//!
//! Equal divergence makes methods with and without a natural threshold comparable: [`Threshold::Margin`] keeps as many
//! of an image's top-ranked patches as the model needs to stay within [`MARGIN`].
//!
//! Attention has no natural threshold. Two are tried, Otsu's and the image's mean, and the one that scores better on
//! these very grids is reported, so the comparison favors attention.

use candle_core::Tensor;
use serde::Serialize;

use super::{logits, masked_answers, masks_within_margin, mean, share};
use crate::data::red_patches::RedPatches;
use crate::data::{Dataset, Picture, images_from_pictures};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::{Explainer, Target};
use vitscope_core::gates::{MARGIN, Removal};
use vitscope_core::vit::Vit;

/// Number of grids per forward pass.
const BATCH: usize = 64;

/// Threshold that turns an attribution into a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threshold {
    /// At 0.5: for masks.
    Half,
    /// Maximum variance between kept and masked patches of an image (Otsu, 1979).
    Otsu,
    /// Mean over the patches of an image.
    Mean,
    /// Per image, the threshold at which the divergence just stays within [`MARGIN`], found by bisection.
    Margin,
}

impl Threshold {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Half => "0.5",
            Self::Otsu => "otsu",
            Self::Mean => "mean",
            Self::Margin => "margin",
        }
    }

    /// Returns the kept patches of each image; all patches if all have the same score.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`
    /// - `original`: logits of the unmasked images, `[batch, classes]`
    /// - `attributions`: one per patch, image by image
    fn masks(
        self,
        vit: &Vit,
        images: &Tensor,
        original: &Tensor,
        attributions: &[Vec<f32>],
        removal: &Removal,
    ) -> Result<Vec<Vec<bool>>> {
        if self == Self::Margin {
            return masks_within_margin(vit, images, original, attributions, removal, MARGIN);
        }
        Ok(attributions
            .iter()
            .map(|scores| self.mask(scores))
            .collect())
    }

    /// Returns the kept patches of an image without querying the model.
    fn mask(self, attribution: &[f32]) -> Vec<bool> {
        let least = match self {
            Self::Half => 0.5,
            Self::Otsu => otsu(attribution),
            Self::Mean => attribution.iter().sum::<f32>() / attribution.len().max(1) as f32,
            Self::Margin => f32::NEG_INFINITY,
        };
        attribution.iter().map(|&score| score >= least).collect()
    }
}

/// Returns the lowest kept score of the split that separates the two groups best.
fn otsu(attribution: &[f32]) -> f32 {
    let mut sorted = attribution.to_vec();
    sorted.sort_by(f32::total_cmp);
    let total: f64 = sorted.iter().map(|&score| f64::from(score)).sum();
    let (mut below, mut best) = (0.0, (0.0, sorted.first().copied().unwrap_or(0.0)));
    for (n_below, pair) in sorted.windows(2).enumerate() {
        below += f64::from(pair[0]);
        let (n_below, n_all) = ((n_below + 1) as f64, sorted.len() as f64);
        let n_above = n_all - n_below;
        let distance = (total - below) / n_above - below / n_below;
        let between = n_below * n_above * distance * distance;
        if between > best.0 {
            best = (between, pair[1]);
        }
    }
    best.1
}

/// Method in the comparison.
pub struct Entry<'a> {
    /// Name in the table.
    pub name: String,
    /// The method itself.
    pub explainer: &'a dyn Explainer,
    /// Thresholds to try.
    pub thresholds: &'a [Threshold],
}

/// Results of one method; all numbers except `grids` are means over the grids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Name in the table.
    pub method: String,
    /// Threshold that turned attributions into masks.
    pub threshold: Threshold,
    /// Number of grids.
    pub grids: usize,
    /// Share of grids whose mask is exactly the red cells or exactly the others.
    pub exact: f64,
    /// Overlap with the closer of the two sets: intersection over union of cells.
    pub iou: f64,
    /// Share of grids that are closer to the set that most grids are closer to.
    pub consistency: f64,
    /// KL(original ‖ masked) in nats.
    pub kl: f64,
    /// Share of grids that get the same class with and without the mask.
    pub agreement: f64,
    /// Share of cells that are kept.
    pub kept: f64,
}

/// Maps and masks of one method for the first grids, for drawing.
pub struct Example {
    /// Attribution of each patch, grid by grid.
    pub attributions: Vec<Vec<f32>>,
    /// Kept patches, grid by grid.
    pub masks: Vec<Vec<bool>>,
}

/// Result of [`score`] for one method.
pub struct Outcome {
    /// Scores at the entry's threshold with the most exact masks.
    pub best: Scores,
    /// Scores at [`Threshold::Margin`].
    pub at_margin: Scores,
    /// Maps and masks for the first grids, at the best threshold.
    pub example: Example,
}

/// Scores one method on all of `grids`, and keeps its maps and masks for the first `n_examples`.
///
/// # Errors
/// Fails if the model's patches do not match the cells of the grids, the model has no classifier, or the method fails.
pub fn score(
    vit: &Vit,
    removal: &Removal,
    grids: &RedPatches,
    entry: &Entry<'_>,
    n_examples: usize,
) -> Result<Outcome> {
    let size = grids.size();
    let n_patches = {
        let (grid_h, grid_w) = vit.grid(size.height_px, size.width_px);
        grid_h * grid_w
    };
    let n_cells = grids.red_cells(0)?.len();
    if n_cells != n_patches {
        return Err(Error::Data(format!(
            "a grid has {n_cells} cells, but the model sees {n_patches} patches"
        )));
    }
    let mut found = Vec::with_capacity(grids.len());
    let indices: Vec<usize> = (0..grids.len()).collect();
    let thresholds = [entry.thresholds, &[Threshold::Margin]].concat();
    for chunk in indices.chunks(BATCH) {
        let explainer = entry.explainer;
        found.extend(explain_chunk(
            vit,
            removal,
            grids,
            explainer,
            &thresholds,
            chunk,
        )?);
    }
    let at_margin = summarize(entry, Threshold::Margin, entry.thresholds.len(), &found);
    let best = entry
        .thresholds
        .iter()
        .enumerate()
        .map(|(threshold_idx, &threshold)| {
            let scores = summarize(entry, threshold, threshold_idx, &found);
            (threshold_idx, scores)
        })
        .max_by(|(_, a), (_, b)| a.exact.total_cmp(&b.exact).then(a.iou.total_cmp(&b.iou)));
    let (threshold_idx, best) =
        best.ok_or_else(|| Error::Config(format!("no threshold was given for {:?}", entry.name)))?;
    let examples = found.into_iter().take(n_examples);
    let (attributions, masks) = examples
        .filter_map(|grid| {
            let mask = grid.masks.into_iter().nth(threshold_idx)?;
            Some((grid.attribution, mask.kept))
        })
        .unzip();
    let example = Example {
        attributions,
        masks,
    };
    Ok(Outcome {
        best,
        at_margin,
        example,
    })
}

/// Result for one grid.
struct Found {
    red: Vec<bool>,
    attribution: Vec<f32>,
    /// One per threshold.
    masks: Vec<FoundMask>,
}

struct FoundMask {
    kept: Vec<bool>,
    answer: super::MaskedAnswer,
}

fn explain_chunk(
    vit: &Vit,
    removal: &Removal,
    grids: &RedPatches,
    explainer: &dyn Explainer,
    thresholds: &[Threshold],
    chunk: &[usize],
) -> Result<Vec<Found>> {
    let pictures = chunk
        .iter()
        .map(|&index| grids.picture(index))
        .collect::<Result<Vec<Picture>>>()?;
    // Pixels are exactly −1 or 1, as in the paper's code.
    let images = images_from_pictures(&pictures, [0.5; 3], [0.5; 3], vit.device())?;
    let explanation = explainer.explain(vit, &images, Target::Predicted)?;
    let original = logits(explanation.logits)?;
    let attributions: Vec<Vec<f32>> = explanation.attribution.to_vec2()?;
    let mut found = chunk
        .iter()
        .zip(&attributions)
        .map(|(&index, attribution)| {
            Ok(Found {
                red: grids.red_cells(index)?,
                attribution: attribution.clone(),
                masks: Vec::new(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    for &threshold in thresholds {
        let masks = threshold.masks(vit, &images, &original, &attributions, removal)?;
        let answers = masked_answers(vit, &images, &original, &masks, removal)?;
        for ((grid, kept), answer) in found.iter_mut().zip(masks).zip(answers) {
            grid.masks.push(FoundMask { kept, answer });
        }
    }
    Ok(found)
}

fn summarize(
    entry: &Entry<'_>,
    threshold: Threshold,
    threshold_idx: usize,
    found: &[Found],
) -> Scores {
    let judged: Vec<(Overlap, super::MaskedAnswer)> = found
        .iter()
        .filter_map(|grid| {
            let mask = grid.masks.get(threshold_idx)?;
            Some((Overlap::new(&mask.kept, &grid.red), mask.answer))
        })
        .collect();
    let overlaps = || judged.iter().map(|(overlap, _)| overlap);
    let answers = || judged.iter().map(|(_, answer)| answer);
    let nearer_red = share(overlaps().map(|overlap| overlap.red > overlap.others));
    let nearer_others = share(overlaps().map(|overlap| overlap.others > overlap.red));
    Scores {
        method: entry.name.clone(),
        threshold,
        grids: judged.len(),
        exact: share(overlaps().map(|overlap| overlap.nearer() == 1.0)),
        iou: mean(overlaps().map(Overlap::nearer)),
        consistency: nearer_red.max(nearer_others),
        kl: mean(answers().map(|answer| answer.kl)),
        agreement: share(answers().map(|answer| answer.agrees)),
        kept: mean(answers().map(|answer| answer.kept)),
    }
}

/// Intersection over union of a mask with each of the two sets that explain a grid.
struct Overlap {
    red: f64,
    others: f64,
}

impl Overlap {
    fn new(kept: &[bool], red: &[bool]) -> Self {
        let iou = |of_red: bool| {
            let (mut common, mut either) = (0_usize, 0_usize);
            for (&kept, &red) in kept.iter().zip(red) {
                let wanted = red == of_red;
                common += usize::from(kept && wanted);
                either += usize::from(kept || wanted);
            }
            // Keeping nothing is right if nothing should be kept.
            if either == 0 {
                1.0
            } else {
                common as f64 / either as f64
            }
        };
        Self {
            red: iou(true),
            others: iou(false),
        }
    }

    fn nearer(&self) -> f64 {
        self.red.max(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: [bool; 4] = [true, false, false, true];

    #[test]
    fn the_red_cells_and_their_complement_overlap_fully() {
        assert_eq!(Overlap::new(&RED, &RED).red, 1.0);
        assert_eq!(Overlap::new(&RED.map(|red| !red), &RED).others, 1.0);
    }

    #[test]
    fn overlap_counts_common_cells_over_cells_of_either() {
        let overlap = Overlap::new(&[true, true, false, false], &RED);
        assert_eq!((overlap.red, overlap.others), (1.0 / 3.0, 1.0 / 3.0));
        assert_eq!(Overlap::new(&[true; 4], &RED).nearer(), 0.5);
    }

    #[test]
    fn keeping_nothing_is_right_where_nothing_is_red() {
        assert_eq!(Overlap::new(&[false; 3], &[false; 3]).nearer(), 1.0);
    }

    #[test]
    fn otsu_parts_two_groups_where_they_lie_apart() {
        assert_eq!(
            Threshold::Otsu.mask(&[0.1, 0.9, 0.12, 0.8, 0.11]),
            [false, true, false, true, false]
        );
    }

    #[test]
    fn thresholds_keep_everything_where_all_is_rated_alike() {
        for threshold in [Threshold::Otsu, Threshold::Mean] {
            assert_eq!(threshold.mask(&[0.25; 4]), [true; 4]);
        }
    }

    #[test]
    fn half_keeps_what_is_at_least_half() {
        assert_eq!(Threshold::Half.mask(&[0.49, 0.5, 1.0]), [false, true, true]);
    }
}
