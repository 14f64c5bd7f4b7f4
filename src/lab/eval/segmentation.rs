//! Segmentation of the object by maps: the ImageNet-Segmentation protocol of Chefer et al.
//!
//! Source: arXiv:2012.09838 and its code (`imagenet_seg_eval.py`, `utils/metrices.py`). There, images are stretched to
//! 224 x 224 and maps upsampled bilinearly; here, the caller does both.
//!
//! | score | computed over |
//! |---|---|
//! | pixel accuracy | all labeled pixels of the set |
//! | mean IoU | background and foreground, intersections and unions summed over the set |
//! | mean average precision | images; both channels of an image together |
//!
//! **Deviation**: their code uses a threshold of 0 for input gradients; here, it is the mean for every map.

use super::localization::PixelMap;
use super::mean;
use super::similarity::min_max;
use vitscope_core::error::{Error, Result};

/// Scores of maps used as segmentations, over a set of images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentationScores {
    /// Number of images.
    pub images: usize,
    /// Share of labeled pixels of the whole set that are correct.
    pub pixel_accuracy: f64,
    /// Mean intersection over union of background and foreground, with both parts summed over the set.
    pub mean_iou: f64,
    /// Mean over images of the average precision of both channels together.
    pub mean_average_precision: f64,
}

/// Chefer et al.'s ImageNet-Segmentation protocol, image by image.
#[derive(Clone, Debug, Default)]
pub struct Segmentation {
    average_precisions: Vec<f64>,
    /// Labeled pixels by \[label\]\[prediction\], background first.
    confusion: [[u64; 2]; 2],
}

impl Segmentation {
    /// Adds an image.
    ///
    /// The map is scaled to 0..1 and is foreground where it exceeds its mean over all pixels. Average precision ranks
    /// the scores (1 − map, map) of every labeled pixel against the labels (background, foreground).
    ///
    /// # Shapes
    /// - `labels`: whether a pixel is foreground, `None` if unknown (−1 in their files); `[height, width]`
    ///
    /// # Errors
    /// [`Error::Shape`] if labels and map differ in their number of pixels; [`Error::Data`] if all labels are unknown.
    pub fn add(&mut self, map: &PixelMap, labels: &[Option<bool>]) -> Result<()> {
        map.check_pixels(labels.len())?;
        let unit = min_max(map.scores);
        let threshold = mean(unit.iter().map(|&score| f64::from(score)));
        let n_labeled = labels.iter().flatten().count();
        if n_labeled == 0 {
            return Err(Error::Data("no pixel of the image is labeled".into()));
        }
        let mut scored = Vec::with_capacity(2 * n_labeled);
        for (&score, label) in unit.iter().zip(labels) {
            if let &Some(is_foreground) = label {
                let answer = f64::from(score) > threshold;
                self.confusion[usize::from(is_foreground)][usize::from(answer)] += 1;
                scored.push((1.0 - score, !is_foreground));
                scored.push((score, is_foreground));
            }
        }
        self.average_precisions.push(average_precision(scored));
        Ok(())
    }

    /// Returns the labeled pixels by \[label\]\[prediction\], background first.
    pub fn confusion(&self) -> [[u64; 2]; 2] {
        self.confusion
    }

    /// Returns the scores of all images so far; `None` if there are none.
    pub fn scores(&self) -> Option<SegmentationScores> {
        (!self.average_precisions.is_empty()).then(|| SegmentationScores {
            images: self.average_precisions.len(),
            pixel_accuracy: pixel_accuracy(&self.confusion),
            mean_iou: mean_iou(&self.confusion),
            mean_average_precision: mean(self.average_precisions.iter().copied()),
        })
    }
}

/// Share of correct pixels from labeled pixels by \[label\]\[prediction\]; 0 if there are none.
pub fn pixel_accuracy(confusion: &[[u64; 2]; 2]) -> f64 {
    let [
        [background, false_foreground],
        [false_background, foreground],
    ] = confusion;
    let right = background + foreground;
    right as f64 / (right + false_foreground + false_background).max(1) as f64
}

/// Mean intersection over union of background and foreground, from the same counts; an empty union counts as 0, as in
/// their code.
pub fn mean_iou(confusion: &[[u64; 2]; 2]) -> f64 {
    let [
        [background, false_foreground],
        [false_background, foreground],
    ] = confusion;
    let wrong = false_foreground + false_background;
    let iou = |common: &u64| *common as f64 / (common + wrong).max(1) as f64;
    (iou(background) + iou(foreground)) / 2.0
}

/// Σ (recall_n − recall_{n−1}) · precision_n over descending scores, ties at once (scikit-learn's
/// `average_precision_score`); 0 if nothing is positive.
fn average_precision(mut scored: Vec<(f32, bool)>) -> f64 {
    scored.sort_unstable_by(|(a, _), (b, _)| b.total_cmp(a));
    let n_positive = scored
        .iter()
        .filter(|(_, is_positive)| *is_positive)
        .count();
    let (mut seen, mut found, mut sum) = (0_usize, 0_usize, 0.0);
    for equals in scored.chunk_by(|(a, _), (b, _)| a == b) {
        let newly_found = equals
            .iter()
            .filter(|(_, is_positive)| *is_positive)
            .count();
        seen += equals.len();
        found += newly_found;
        sum += newly_found as f64 * found as f64 / seen as f64;
    }
    sum / n_positive.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values computed by `map_metrics.py` with scikit-learn.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/map_metrics.json");

    /// Both Chefer et al. and this module scale maps in f32; sums are in f64 on both sides.
    const TOLERANCE: f64 = 1e-9;

    fn assert_close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < TOLERANCE,
            "{found} is not {expected}"
        );
    }

    /// Returns the scores of one row of pixels.
    fn scores(map: &[f32], labels: &[Option<bool>]) -> SegmentationScores {
        let mut segmentation = Segmentation::default();
        let map = PixelMap::new(map, 1, map.len()).unwrap();
        segmentation.add(&map, labels).unwrap();
        segmentation.scores().unwrap()
    }

    const LABELS: [Option<bool>; 4] = [Some(true), Some(true), Some(false), Some(false)];

    #[test]
    fn a_map_on_the_object_is_perfect_and_its_negative_useless() {
        let found = scores(&[7.0, 7.0, -1.0, -1.0], &LABELS);
        let perfect = SegmentationScores {
            images: 1,
            pixel_accuracy: 1.0,
            mean_iou: 1.0,
            mean_average_precision: 1.0,
        };
        assert_eq!(found, perfect);
        let found = scores(&[-7.0, -7.0, 1.0, 1.0], &LABELS);
        assert_eq!((found.pixel_accuracy, found.mean_iou), (0.0, 0.0));
        // The four wrong entries come first, then the four right ones, at a precision of 4 / 8.
        assert_close(found.mean_average_precision, 0.5);
    }

    /// Mean 0.45: pixels 0 and 2 are foreground. Foreground IoU: 1 of 3; background IoU: 1 of 3.
    #[test]
    fn intersection_over_union_is_that_counted_by_hand() {
        let found = scores(&[1.0, 0.2, 0.6, 0.0], &LABELS);
        assert_close(found.pixel_accuracy, 0.5);
        assert_close(found.mean_iou, 1.0 / 3.0);
        // Two right entries at 1, then 0.8 and 0.6 wrong, 0.4 and 0.2 right: 2/2 twice, at 0.8 pixel 1 is not
        // background, at 0.6 pixel 2 is not foreground, at 0.4 it is background (3/5), at 0.2 pixel 1 is foreground
        // (4/6).
        assert_close(
            found.mean_average_precision,
            (1.0 + 1.0 + 0.6 + 4.0 / 6.0) / 4.0,
        );
    }

    #[test]
    fn unknown_pixels_count_nowhere_but_in_the_threshold() {
        let labels = [Some(true), None, Some(false), Some(false)];
        let found = scores(&[1.0, 1.0, 0.4, 0.0], &labels);
        assert_eq!((found.pixel_accuracy, found.mean_iou), (1.0, 1.0));
        // Without the unknown pixel, the mean would be 0.5, which the third pixel reaches.
        let found = scores(&[1.0, 1.0, 0.5, 0.0], &labels);
        assert_eq!(found.pixel_accuracy, 1.0);
    }

    #[test]
    fn intersections_and_unions_are_summed_over_images() {
        let mut segmentation = Segmentation::default();
        let map = PixelMap::new(&[1.0, 1.0, 0.0, 0.0], 2, 2).unwrap();
        segmentation.add(&map, &LABELS).unwrap();
        segmentation.add(&map, &[Some(false); 4]).unwrap();
        let found = segmentation.scores().unwrap();
        assert_close(found.pixel_accuracy, 6.0 / 8.0);
        // Foreground 2 of 4, background 4 of 6.
        assert_close(found.mean_iou, (2.0 / 4.0 + 4.0 / 6.0) / 2.0);
    }

    #[test]
    fn a_constant_map_is_background_of_average_precision_one_half() {
        let found = scores(&[0.3; 4], &LABELS);
        assert_eq!((found.pixel_accuracy, found.mean_iou), (0.5, 0.25));
        assert_close(found.mean_average_precision, 0.5);
    }

    #[test]
    fn scores_equal_scikit_learn_on_the_protocol_of_chefer() {
        let all: serde_json::Value = serde_json::from_str(EXPECTED).unwrap();
        let case = &all["segmentation"];
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let mut whole = Segmentation::default();
        for image in case["images"].as_array().unwrap() {
            let map: Vec<f32> = serde_json::from_value(image["map"].clone()).unwrap();
            let map = PixelMap::new(&map, size("height"), size("width")).unwrap();
            let labels: Vec<i8> = serde_json::from_value(image["labels"].clone()).unwrap();
            let known = |label: i8| (label >= 0).then_some(label == 1);
            let labels: Vec<Option<bool>> = labels.into_iter().map(known).collect();
            let mut alone = Segmentation::default();
            for segmentation in [&mut alone, &mut whole] {
                segmentation.add(&map, &labels).unwrap();
            }
            let found = alone.scores().unwrap().mean_average_precision;
            assert_close(found, number(&image["precision"]));
        }
        let found = whole.scores().unwrap();
        assert_eq!(found.images, 3);
        assert_close(found.pixel_accuracy, number(&case["pixel_accuracy"]));
        assert_close(found.mean_iou, number(&case["mean_iou"]));
        assert_close(
            found.mean_average_precision,
            number(&case["mean_average_precision"]),
        );
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let map = PixelMap::new(&[1.0, 0.0], 1, 2).unwrap();
        let mut segmentation = Segmentation::default();
        assert!(segmentation.add(&map, &[Some(true)]).is_err());
        assert!(segmentation.add(&map, &[None, None]).is_err());
        assert_eq!(segmentation.scores(), None);
    }
}
