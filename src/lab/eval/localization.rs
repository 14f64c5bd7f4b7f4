//! Localization: whether a map lies on the object, measured by pointing games and share of mass.
//!
//! All measures compare a map at pixel resolution, [`PixelMap`], with boxes or masks of the explained class. The caller
//! upsamples patches to pixels (the protocols do so bilinearly). Parts of a box outside of the map do not count.
//!
//! | measure | of an image | source |
//! |---|---|---|
//! | [`PointingGame`] | highest score in a box of the class | Zhang et al., arXiv:1608.00507; TorchRay, TiS (code) |
//! | [`mass_in_boxes`] | Σ \|map\| in boxes / Σ \|map\| | Score-CAM arXiv:1910.01279; TiS `EnergyBasedPointingGame` |
//! | [`mass_in_mask`] | the same with a mask | Weighting Game, arXiv:2208.06175; Quantus, `RelevanceMassAccuracy` |
//!
//! **Deviations**: with TorchRay, no point hits at a tolerance of 0; here, points inside the box do. TorchRay's mean
//! over classes counts a class without images as 0; here, such classes are left out.

use super::{mean, share};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::placement::PixelRect;

/// Clips a box to the map; `None` if nothing remains.
fn clipped(object: PixelRect, height: usize, width: usize) -> Option<PixelRect> {
    let clipped = PixelRect {
        width: object.width.min(width.saturating_sub(object.left)),
        height: object.height.min(height.saturating_sub(object.top)),
        ..object
    };
    (clipped.width > 0 && clipped.height > 0).then_some(clipped)
}

/// Returns the squared distance in pixels from a point to the nearest pixel of a non-empty box.
fn squared_distance(object: PixelRect, row: usize, column: usize) -> usize {
    let away = |at: usize, first: usize, count: usize| {
        let last = first + count - 1;
        first.saturating_sub(at) + at.saturating_sub(last)
    };
    let down = away(row, object.top, object.height);
    let across = away(column, object.left, object.width);
    down * down + across * across
}

/// One finite score per pixel in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct PixelMap<'a> {
    pub(super) scores: &'a [f32],
    height: usize,
    width: usize,
}

impl<'a> PixelMap<'a> {
    /// Creates a map with this number of rows and columns.
    ///
    /// # Shapes
    /// - `scores`: `[height, width]`
    ///
    /// # Errors
    /// [`Error::Shape`] if the scores do not fill the map or there are none; [`Error::Data`] if one is not finite.
    pub fn new(scores: &'a [f32], height: usize, width: usize) -> Result<Self> {
        if scores.is_empty() || height.checked_mul(width) != Some(scores.len()) {
            return Err(Error::Shape {
                expected: format!("a score for each of {height} x {width} pixels"),
                got: format!("{} scores", scores.len()),
            });
        }
        if let Some(pixel) = scores.iter().position(|score| !score.is_finite()) {
            let score = scores[pixel];
            return Err(Error::Data(format!(
                "the score of pixel {pixel} is {score}"
            )));
        }
        Ok(Self {
            scores,
            height,
            width,
        })
    }

    /// Returns the row and column of the highest score, the first among ties (NumPy's `argmax`).
    pub fn peak(&self) -> (usize, usize) {
        let mut peak = (0, f32::NEG_INFINITY);
        for (pixel, &score) in self.scores.iter().enumerate() {
            if score > peak.1 {
                peak = (pixel, score);
            }
        }
        (peak.0 / self.width, peak.0 % self.width)
    }

    /// Marks the pixels that lie in any of the boxes.
    fn union(&self, boxes: &[PixelRect]) -> Vec<bool> {
        let mut inside = vec![false; self.scores.len()];
        for object in self.visible(boxes) {
            let rows = inside.chunks_mut(self.width).skip(object.top);
            for row in rows.take(object.height) {
                let columns = row.iter_mut().skip(object.left);
                columns.take(object.width).for_each(|pixel| *pixel = true);
            }
        }
        inside
    }

    /// Rejects inputs with another number of pixels.
    pub(super) fn check_pixels(&self, n_pixels: usize) -> Result<()> {
        if n_pixels == self.scores.len() {
            return Ok(());
        }
        Err(Error::Shape {
            expected: format!("{} x {} pixels", self.height, self.width),
            got: format!("{n_pixels} pixels"),
        })
    }

    fn visible(&self, boxes: &[PixelRect]) -> impl Iterator<Item = PixelRect> {
        let clip = |object: &PixelRect| clipped(*object, self.height, self.width);
        boxes.iter().filter_map(clip)
    }
}

/// Returns the share of the map's pixels that lie in any of the boxes.
pub fn coverage(map: &PixelMap, boxes: &[PixelRect]) -> f64 {
    share(map.union(boxes).into_iter())
}

/// Returns true if the highest score lies in a box, or closer than `tolerance_px` to one.
pub fn points_at(map: &PixelMap, boxes: &[PixelRect], tolerance_px: usize) -> bool {
    let (row, column) = map.peak();
    map.visible(boxes).any(|object| {
        let distance = squared_distance(object, row, column);
        distance == 0 || distance < tolerance_px.saturating_mul(tolerance_px)
    })
}

/// Rules of the pointing game.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PointingRules {
    /// Distance from a box, in pixels, at and beyond which the highest score misses.
    pub tolerance_px: usize,
    /// Share of the image at and above which its boxes are too large to miss, so that the image is skipped.
    pub max_coverage: Option<f64>,
}

impl PointingRules {
    /// Zhang et al., as in TorchRay.
    pub const ORIGINAL: Self = Self {
        tolerance_px: 15,
        max_coverage: None,
    };
    /// The code of TiS.
    pub const TIS: Self = Self {
        tolerance_px: 0,
        max_coverage: Some(0.5),
    };
}

/// Hits and misses over the images of one class, or of all classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PointingGame {
    /// Rules of the game.
    pub rules: PointingRules,
    /// Images whose highest score lies on the object.
    pub hits: usize,
    /// Images whose highest score lies elsewhere.
    pub misses: usize,
    /// Images skipped because their boxes are too large.
    pub skipped: usize,
}

impl PointingGame {
    /// Creates a game without images.
    pub fn new(rules: PointingRules) -> Self {
        Self {
            rules,
            hits: 0,
            misses: 0,
            skipped: 0,
        }
    }

    /// Plays one image and returns whether it is a hit; `None` if it is skipped.
    ///
    /// # Errors
    /// [`Error::Data`] if no box has a pixel on the map.
    pub fn add(&mut self, map: &PixelMap, boxes: &[PixelRect]) -> Result<Option<bool>> {
        let coverage = coverage(map, boxes);
        if coverage == 0.0 {
            return Err(no_box(map, boxes));
        }
        if self.rules.max_coverage.is_some_and(|max| coverage >= max) {
            self.skipped += 1;
            return Ok(None);
        }
        let is_hit = points_at(map, boxes, self.rules.tolerance_px);
        self.hits += usize::from(is_hit);
        self.misses += usize::from(!is_hit);
        Ok(Some(is_hit))
    }

    /// Returns hits / (hits + misses); `None` if no image was played.
    pub fn accuracy(&self) -> Option<f64> {
        let n_played = self.hits + self.misses;
        (n_played > 0).then(|| self.hits as f64 / n_played as f64)
    }
}

/// Returns the mean accuracy over all classes with played images, one game per class, as reported for VOC and COCO.
pub fn class_mean(games: &[PointingGame]) -> Option<f64> {
    let played: Vec<f64> = games.iter().filter_map(PointingGame::accuracy).collect();
    (!played.is_empty()).then(|| mean(played.into_iter()))
}

/// Energy pointing game: share of the map's mass inside the boxes; `None` if the map is 0 everywhere.
///
/// # Errors
/// [`Error::Data`] if no box has a pixel on the map.
pub fn mass_in_boxes(map: &PixelMap, boxes: &[PixelRect]) -> Result<Option<f64>> {
    if map.visible(boxes).next().is_none() {
        return Err(no_box(map, boxes));
    }
    mass_in_mask(map, &map.union(boxes))
}

/// Weighting game: share of the map's mass on the mask; `None` if the map is 0 everywhere.
///
/// # Shapes
/// - `mask`: `[height, width]`
///
/// # Errors
/// [`Error::Shape`] if mask and map differ in their number of pixels.
pub fn mass_in_mask(map: &PixelMap, mask: &[bool]) -> Result<Option<f64>> {
    map.check_pixels(mask.len())?;
    let (mut inside, mut total) = (0.0, 0.0);
    for (&score, &is_inside) in map.scores.iter().zip(mask) {
        let mass = f64::from(score).abs();
        total += mass;
        inside += if is_inside { mass } else { 0.0 };
    }
    Ok((total > 0.0).then(|| inside / total))
}

fn no_box(map: &PixelMap, boxes: &[PixelRect]) -> Error {
    let (height, width) = (map.height, map.width);
    Error::Data(format!(
        "none of {} boxes lies on a map of {height} x {width} pixels",
        boxes.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values computed by `map_metrics.py` with Quantus.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/map_metrics.json");

    const fn pixel_box(left: usize, top: usize, width: usize, height: usize) -> PixelRect {
        PixelRect {
            left,
            top,
            width,
            height,
        }
    }

    /// 4 rows of 5 pixels with the value 1 at row 1, column 3, and −3 at row 3, column 0.
    const SCORES: [f32; 20] = {
        let mut scores = [0.0; 20];
        scores[8] = 1.0;
        scores[15] = -3.0;
        scores
    };

    fn map() -> PixelMap<'static> {
        PixelMap::new(&SCORES, 4, 5).unwrap()
    }

    #[test]
    fn the_peak_is_the_greatest_score_and_the_first_of_equals() {
        assert_eq!(map().peak(), (1, 3));
        assert_eq!(PixelMap::new(&[0.5; 6], 2, 3).unwrap().peak(), (0, 0));
    }

    #[test]
    fn a_peak_in_any_of_the_boxes_hits() {
        let (elsewhere, around) = (pixel_box(0, 0, 3, 4), pixel_box(3, 1, 1, 1));
        assert!(points_at(&map(), &[elsewhere, around], 0));
        assert!(!points_at(&map(), &[elsewhere], 0));
        assert!(!points_at(&map(), &[pixel_box(3, 2, 9, 9)], 0));
    }

    /// The nearest pixel of the box is 3 columns and 1 row away: √10, between 3 and 4.
    #[test]
    fn tolerance_is_the_distance_to_the_nearest_pixel_of_a_box() {
        let away = [pixel_box(0, 2, 1, 2)];
        assert!(!points_at(&map(), &away, 3));
        assert!(points_at(&map(), &away, 4));
        // A box to the right of the map has no pixel on it to be near to.
        assert!(!points_at(&map(), &[pixel_box(5, 1, 2, 2)], 15));
    }

    #[test]
    fn tis_skips_images_that_their_boxes_half_fill_and_the_original_none() {
        let (half, hit, miss) = (
            [pixel_box(0, 0, 5, 2)],
            [pixel_box(2, 0, 3, 2)],
            [pixel_box(0, 0, 1, 1)],
        );
        let play = |rules| {
            let mut game = PointingGame::new(rules);
            let answers = [half, hit, miss].map(|boxes| game.add(&map(), &boxes).unwrap());
            (game, answers)
        };
        let (game, answers) = play(PointingRules::TIS);
        assert_eq!(answers, [None, Some(true), Some(false)]);
        assert_eq!((game.hits, game.misses, game.skipped), (1, 1, 1));
        assert_eq!(game.accuracy(), Some(0.5));
        // All pixels are closer than 15 pixels here.
        assert_eq!(play(PointingRules::ORIGINAL).0.accuracy(), Some(1.0));
    }

    #[test]
    fn classes_weigh_alike_and_those_without_images_nothing() {
        let game = |hits, misses| PointingGame {
            hits,
            misses,
            ..PointingGame::new(PointingRules::TIS)
        };
        let found = class_mean(&[game(9, 1), game(0, 1), game(0, 0)]);
        assert_eq!(found, Some(0.45));
        assert_eq!(class_mean(&[game(0, 0)]), None);
    }

    /// The boxes overlap in 2 pixels, which count once: 4 + 4 − 2 of 20.
    #[test]
    fn coverage_counts_a_pixel_once_and_none_outside() {
        let boxes = [pixel_box(0, 0, 2, 2), pixel_box(1, 0, 2, 2)];
        assert_eq!(coverage(&map(), &boxes), 0.3);
        assert_eq!(coverage(&map(), &[pixel_box(4, 3, 7, 7)]), 0.05);
    }

    #[test]
    fn mass_is_absolute() {
        assert_eq!(
            mass_in_boxes(&map(), &[pixel_box(0, 3, 1, 1)]).unwrap(),
            Some(0.75)
        );
        let mask: Vec<bool> = (0..20).map(|pixel| pixel == 8).collect();
        assert_eq!(mass_in_mask(&map(), &mask).unwrap(), Some(0.25));
        let zeros = PixelMap::new(&[0.0; 20], 4, 5).unwrap();
        assert_eq!(mass_in_mask(&zeros, &mask).unwrap(), None);
    }

    #[test]
    fn mass_and_hit_equal_quantus() {
        let all: serde_json::Value = serde_json::from_str(EXPECTED).unwrap();
        let case = &all["localization"];
        let scores: Vec<f32> = serde_json::from_value(case["map"].clone()).unwrap();
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let map = PixelMap::new(&scores, size("height"), size("width")).unwrap();
        let boxes: Vec<[usize; 4]> = serde_json::from_value(case["boxes"].clone()).unwrap();
        let boxes: Vec<PixelRect> = boxes
            .into_iter()
            .map(|[left, top, width, height]| pixel_box(left, top, width, height))
            .collect();
        let mass = mass_in_boxes(&map, &boxes).unwrap().unwrap();
        // Quantus sums in f32.
        assert!(
            (mass - case["mass"].as_f64().unwrap()).abs() < 1e-6,
            "{mass}"
        );
        assert_eq!(Some(points_at(&map, &boxes, 0)), case["hit"].as_bool());
    }

    #[test]
    fn what_means_nothing_is_refused() {
        assert!(PixelMap::new(&[1.0; 5], 2, 3).is_err());
        assert!(PixelMap::new(&[], 0, 3).is_err());
        assert!(PixelMap::new(&[f32::NAN], 1, 1).is_err());
        let outside = [pixel_box(5, 0, 2, 2), pixel_box(0, 0, 0, 4)];
        assert!(
            PointingGame::new(PointingRules::TIS)
                .add(&map(), &outside)
                .is_err()
        );
        assert!(mass_in_boxes(&map(), &outside).is_err());
        assert!(mass_in_mask(&map(), &[true]).is_err());
    }
}
