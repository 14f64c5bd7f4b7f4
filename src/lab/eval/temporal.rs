//! Measures of the temporal stability of a video's maps.
//!
//! No such measure is established. The definitions are the project's own and build on published parts: the warped error
//! and its visible pixels (Lai et al., ECCV 2018), ranks (Spearman, 1904), structural similarity (Wang et al., 2004).
//! Most compare a map with the next one, warped back along the optical flow ([`vitscope_core::flow::warp`]), on pixels
//! visible in both frames, so motion with the video does not count as flicker.
//!
//! [`Map::normalized`] and [`Map::ranged`] make maps of any sign comparable. Both start at the minimum and thus depend
//! on a single position: a map with one outlier far below the rest looks flatter, and steadier, than it is.
//!
//! A map that never changes scores perfectly on all of these measures: never show them without a faithfulness measure.
//!
//! Functions on slices return `None` if there is nothing to compare or the slices differ in length.

use std::array::from_fn;

use rayon::prelude::*;
use serde::Serialize;

use super::resized;
use super::similarity::{WINDOW, spearman, ssim_of_windows};
use super::statistics::quantile;
use vitscope_core::error::{Error, Result};
use vitscope_core::flow::{Flow, Gray, warp};

/// Map with one value of any sign per position.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    rows: usize,
    columns: usize,
    /// `rows * columns` values, at least one.
    values: Vec<f32>,
}

impl Map {
    /// Creates a map from `values` in row-major order, `[rows, columns]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the map is empty or has not one value per position, [`Error::Data`] if a value is not
    /// finite.
    pub fn new(rows: usize, columns: usize, values: Vec<f32>) -> Result<Self> {
        if values.is_empty() || rows.checked_mul(columns) != Some(values.len()) {
            return Err(Error::Shape {
                expected: format!("a value for each place of a {rows} x {columns} map"),
                got: format!("{} values", values.len()),
            });
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::Data(format!("a value of a map is {value}")));
        }
        Ok(Self {
            rows,
            columns,
            values,
        })
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Returns one value per position in row-major order, `[rows, columns]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Subtracts the minimum and scales the map to sum 1; a flat map becomes uniform.
    pub fn normalized(&self) -> Self {
        let (least, _) = self.extremes();
        let shifted = self.values.iter().map(|&value| f64::from(value) - least);
        // Subtract first: the sum of n equal values is not exactly n times the value.
        let sum = shifted.sum();
        let even = 1.0 / self.values.len() as f64;
        self.mapped(|value| ratio(value - least, sum, even))
    }

    /// Scales the map to a minimum of 0 and a maximum of 1; a flat map becomes all zeros.
    pub fn ranged(&self) -> Self {
        let (least, greatest) = self.extremes();
        self.mapped(|value| ratio(value - least, greatest - least, 0.0))
    }

    /// Resizes the map bilinearly between cell centers, constant beyond the outermost centers, as torch's `interpolate`
    /// with `align_corners=False`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the new size is empty.
    pub fn upsampled(&self, rows: usize, columns: usize) -> Result<Self> {
        let values = resized(&self.values, self.size(), (rows, columns));
        Self::new(rows, columns, values)
    }

    fn extremes(&self) -> (f64, f64) {
        let infinite = (f64::INFINITY, f64::NEG_INFINITY);
        let values = self.values.iter().map(|&value| f64::from(value));
        values.fold(infinite, |(least, greatest), value| {
            (least.min(value), greatest.max(value))
        })
    }

    fn mapped(&self, value: impl Fn(f64) -> f64) -> Self {
        let values = self.values.iter().map(|&old| value(old.into()) as f32);
        Self {
            values: values.collect(),
            ..*self
        }
    }

    /// Returns the column and row of the maximum, averaged over all positions that share it; `None` for flat maps.
    pub fn peak(&self) -> Option<(f64, f64)> {
        let (least, greatest) = self.extremes();
        let is_greatest = |idx: &usize| f64::from(self.values[*idx]) == greatest;
        let peaks = (0..self.values.len()).filter(is_greatest);
        let column = mean(peaks.clone().map(|idx| (idx % self.columns) as f64))?;
        let row = mean(peaks.map(|idx| (idx / self.columns) as f64))?;
        (least < greatest).then_some((column, row))
    }
}

/// The model's prediction for a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Class with the highest probability.
    pub class: usize,
    /// Its probability.
    pub probability: f32,
}

/// Scores of a video computed by [`score`]; means over pairs of frames unless stated otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TemporalScores {
    /// Number of frame pairs.
    pub pairs: usize,
    /// Fraction of pixels visible in both frames of a pair.
    pub visible: f64,
    /// [`total_variation`] of normalized maps, 0 to 1.
    pub flicker: f64,
    /// [`compensated_flicker`] of normalized maps, 0 to 1.
    pub compensated_flicker: Option<f64>,
    /// [`warped_error`] of normalized maps.
    pub warped_error: Option<f64>,
    /// [`Self::warped_error`] divided by the mean variance of these maps.
    pub scale_free_warped_error: Option<f64>,
    /// [`warped_error`] of maps scaled to 0 to 1.
    pub ranged_warped_error: Option<f64>,
    /// [`Self::ranged_warped_error`] divided by the mean variance of these maps.
    pub scale_free_ranged_warped_error: Option<f64>,
    /// [`rank_correlation`], −1 to 1.
    pub rank_stability: Option<f64>,
    /// [`top_overlap`], 0 to 1.
    pub top_overlap: Option<f64>,
    /// [`ssim`] of maps scaled to 0 to 1.
    pub ssim: Option<f64>,
    /// Median [`peak_jump_px`].
    pub median_peak_jump_px: Option<f64>,
    /// 95th percentile of [`peak_jump_px`].
    pub p95_peak_jump_px: Option<f64>,
}

/// Scores the maps of a video. `flows[t]` leads from frame `t` to the next, and `visible[t]` refers to the pixels of
/// frame `t` ([`vitscope_core::flow::visibility`]).
///
/// # Shapes
/// - `maps`: at least two, each `[height_px, width_px]` of the flows ([`Map::upsampled`])
/// - `flows`, `visible`: one fewer than `maps`
///
/// # Errors
/// [`Error::Shape`] if a count or a size does not match.
pub fn score(maps: &[Map], flows: &[Flow], visible: &[Vec<bool>]) -> Result<TemporalScores> {
    let pairs = flows.len();
    if pairs == 0 || maps.len() != pairs + 1 || visible.len() != pairs {
        return Err(Error::Shape {
            expected: "for each pair of successive maps a flow and its visible pixels".into(),
            got: format!(
                "{} maps, {pairs} flows, visible pixels of {}",
                maps.len(),
                visible.len()
            ),
        });
    }
    let found = (maps.par_windows(2).zip(flows).zip(visible))
        .map(|((maps, flow), visible)| score_pair(&maps[0], &maps[1], flow, visible))
        .collect::<Result<Vec<_>>>()?;
    let means = from_fn(|idx| mean(found.iter().filter_map(|measures| measures[idx])));
    let [visible, flicker, compensated_flicker, errors @ .., _]: [Option<f64>; 9] = means;
    let [warped_error, ranged_warped_error, similarities @ ..] = errors;
    let [rank_stability, top_overlap, ssim] = similarities;
    let jumps: Vec<f64> = found.iter().filter_map(|[.., jump]| *jump).collect();
    let scale_free = |error: Option<f64>, scaled: fn(&Map) -> Map| {
        // If all maps are flat, the error is 0 as well.
        let variance = mean(maps.iter().map(|map| variance(&scaled(map).values)))?;
        Some(ratio(error?, variance, 0.0))
    };
    Ok(TemporalScores {
        pairs,
        visible: visible.unwrap_or(0.0),
        flicker: flicker.unwrap_or(0.0),
        compensated_flicker,
        warped_error,
        scale_free_warped_error: scale_free(warped_error, Map::normalized),
        ranged_warped_error,
        scale_free_ranged_warped_error: scale_free(ranged_warped_error, Map::ranged),
        rank_stability,
        top_overlap,
        ssim,
        median_peak_jump_px: percentile(&jumps, 0.5),
        p95_peak_jump_px: percentile(&jumps, 0.95),
    })
}

/// For a pair of frames, returns the values that [`TemporalScores`] averages, in its order, and the peak jump.
fn score_pair(from: &Map, to: &Map, flow: &Flow, visible: &[bool]) -> Result<[Option<f64>; 9]> {
    let (width_px, height_px) = flow.size_px();
    let size = (height_px, width_px);
    if from.size() != size || to.size() != size || visible.len() != from.values.len() {
        return Err(Error::Shape {
            expected: format!("two maps of {size:?} and visible pixels"),
            got: format!("{:?}, {:?}, {}", from.size(), to.size(), visible.len()),
        });
    }
    let (mass, next_mass) = (from.normalized().values, to.normalized().values);
    let warped_mass = warp(&next_mass, flow)?;
    let (ranged, warped_ranged) = (from.ranged().values, warp(&to.ranged().values, flow)?);
    let (seen, warped_seen) = (seen(&ranged, visible), seen(&warped_ranged, visible));
    Ok([
        Some(seen.len() as f64 / visible.len() as f64),
        total_variation(&mass, &next_mass),
        compensated_flicker(&mass, &warped_mass, visible),
        warped_error(&mass, &warped_mass, visible),
        warped_error(&ranged, &warped_ranged, visible),
        rank_correlation(&seen, &warped_seen),
        top_overlap(&seen, &warped_seen),
        ssim(&ranged, &warped_ranged, visible, width_px),
        peak_jump_px(from, to, flow, visible),
    ])
}

/// Half the sum of absolute differences: 0 for equal maps of sum 1, 1 for maps without overlap.
pub fn total_variation(a: &[f32], b: &[f32]) -> Option<f64> {
    let differences = pairs(a, b)?.map(|(a, b)| (a - b).abs());
    Some(differences.sum::<f64>() / 2.0)
}

/// [`total_variation`] of a map and the warped next map, each normalized to sum 1 over visible pixels; `None` if one of
/// them has no mass there.
pub fn compensated_flicker(map: &[f32], warped: &[f32], visible: &[bool]) -> Option<f64> {
    let seen = seen_pairs(map, warped, visible)?;
    let map_sum: f64 = seen.iter().map(|(map, _)| map).sum();
    let warped_sum: f64 = seen.iter().map(|(_, warped)| warped).sum();
    let difference = |(map, warped): &(f64, f64)| (map / map_sum - warped / warped_sum).abs();
    (map_sum > 0.0 && warped_sum > 0.0).then(|| seen.iter().map(difference).sum::<f64>() / 2.0)
}

/// Mean squared difference between a map and the warped next map over visible pixels (Lai et al., ECCV 2018).
pub fn warped_error(map: &[f32], warped: &[f32], visible: &[bool]) -> Option<f64> {
    let seen = seen_pairs(map, warped, visible)?;
    mean(seen.iter().map(|(map, warped)| (map - warped).powi(2)))
}

/// Spearman's correlation, −1 to 1: Pearson's correlation of the ranks, where ties share their mean rank.
///
/// Two flat maps have 1, since nothing changed; a flat map and any other have 0.
pub fn rank_correlation(a: &[f32], b: &[f32]) -> Option<f64> {
    let flat = |values: &[f32]| values.iter().all(|value| Some(value) == values.first());
    let of_flat = if flat(a) && flat(b) { 1.0 } else { 0.0 };
    Some(spearman(a, b).ok()?.unwrap_or(of_flat))
}

/// Intersection over union of the positions in the top tenth of each map. Ties with the least of them count as well,
/// but positions at the map's minimum never do: a mask counts all that it keeps, a flat map nothing.
///
/// Two flat maps have 1.
pub fn top_overlap(a: &[f32], b: &[f32]) -> Option<f64> {
    same_len(a, b)?;
    let (mut common, mut either) = (0_usize, 0_usize);
    for (a, b) in greatest_tenth(a).into_iter().zip(greatest_tenth(b)) {
        common += usize::from(a && b);
        either += usize::from(a || b);
    }
    Some(ratio(common as f64, either as f64, 1.0))
}

/// Mean structural similarity of maps scaled to 0 to 1, over windows that lie inside the map and whose center is
/// `visible`: 11 x 11, Gaussian of sigma 1.5, K1 = 0.01, K2 = 0.03 (Wang et al., 2004, eq. 13).
///
/// # Shapes
/// - `a`, `b`, `visible`: `[rows, columns]`
pub fn ssim(a: &[f32], b: &[f32], visible: &[bool], columns: usize) -> Option<f64> {
    same_len(a, visible)?;
    let size = (a.len() / columns.max(1), columns);
    let windows = ssim_of_windows(a, b, size, 1.0).ok()?;
    // Windows are indexed by their upper left corner, half a window before the center.
    let half = WINDOW / 2;
    let places = (half..size.0 - half)
        .flat_map(|row| (half..columns - half).map(move |column| row * columns + column));
    let seen = windows
        .into_iter()
        .zip(places)
        .filter(|(_, center)| visible[*center]);
    mean(seen.map(|(similarity, _)| similarity))
}

/// Distance in pixels between the peak of a map and the position to which the flow moves the peak of the previous map.
/// `None` if that position is hidden, a map is flat, or sizes differ.
pub fn peak_jump_px(from: &Map, to: &Map, flow: &Flow, visible: &[bool]) -> Option<f64> {
    let ((x, y), (to_x, to_y)) = (from.peak()?, to.peak()?);
    let nearest = y.round() as usize * from.columns + x.round() as usize;
    let [right, down] = flow.at((x as f32, y as f32)).map(f64::from);
    let fits = from.size() == to.size() && visible.len() == from.values.len();
    let shown = fits && visible.get(nearest).copied()?;
    shown.then(|| (to_x - x - right).hypot(to_y - y - down))
}

/// Marks pairs of successive frames with the same prediction: the same class, and probabilities within 0.05. Where
/// predictions differ, a changing map is not flicker.
pub fn alike(answers: &[Answer]) -> Vec<bool> {
    let near = |a: f32, b: f32| (a - b).abs() < 0.05;
    let pairs = answers.iter().zip(answers.iter().skip(1));
    pairs
        .map(|(a, b)| a.class == b.class && near(a.probability, b.probability))
        .collect()
}

/// Mean flicker of maps divided by the mean change of their frames: of two methods on the same video, the steadier one
/// has the lower value.
///
/// Counts only pairs of successive frames that are `kept`: all pairs, or those of [`alike`]. The change is the mean
/// absolute difference of gray values from 0 to 1, not their sum, so the resolution does not matter. A quarter of a
/// gray level (1/255) is added to it to avoid division by zero on still frames.
pub fn relative_stability(maps: &[Map], frames: &[Gray], kept: &[bool]) -> Option<f64> {
    const EPSILON: f64 = 0.001;

    same_len(maps, frames)?;
    same_len(maps.get(1..)?, kept)?;
    let (mut flickers, mut changes) = (Vec::new(), Vec::new());
    let pairs_of_frames = maps.windows(2).zip(frames.windows(2)).zip(kept);
    for ((maps, frames), _) in pairs_of_frames.filter(|(_, kept)| **kept) {
        let (mass, next_mass) = (maps[0].normalized(), maps[1].normalized());
        flickers.push(total_variation(&mass.values, &next_mass.values)?);
        let differences = pairs(frames[0].values(), frames[1].values())?;
        changes.push(mean(differences.map(|(a, b)| (a - b).abs()))?);
    }
    Some(mean(flickers.into_iter())? / (mean(changes.into_iter())? + EPSILON))
}

/// Returns the value below which the fraction `rank` of all values lies, interpolated between neighbors.
pub fn percentile(values: &[f64], rank: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| quantile(&sorted, rank.clamp(0.0, 1.0)))
}

/// `None` if the lengths differ or are 0.
fn same_len<A, B>(a: &[A], b: &[B]) -> Option<()> {
    (a.len() == b.len() && !a.is_empty()).then_some(())
}

/// Pairs the values of each position.
fn pairs<'a>(a: &'a [f32], b: &'a [f32]) -> Option<impl Iterator<Item = (f64, f64)> + 'a> {
    same_len(a, b)?;
    Some(a.iter().zip(b).map(|(&a, &b)| (a.into(), b.into())))
}

/// Pairs the values of each visible position.
fn seen_pairs(a: &[f32], b: &[f32], visible: &[bool]) -> Option<Vec<(f64, f64)>> {
    same_len(a, visible)?;
    let seen = pairs(a, b)?.zip(visible).filter(|(_, visible)| **visible);
    Some(seen.map(|(pair, _)| pair).collect())
}

fn seen(values: &[f32], visible: &[bool]) -> Vec<f32> {
    let seen = values.iter().zip(visible).filter(|(_, visible)| **visible);
    seen.map(|(&value, _)| value).collect()
}

/// Divides two numbers; returns `otherwise` if the divisor is not positive.
fn ratio(part: f64, whole: f64, otherwise: f64) -> f64 {
    if whole > 0.0 { part / whole } else { otherwise }
}

fn mean(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n_numbers) = numbers.fold((0.0, 0.0), |(sum, n), number| (sum + number, n + 1.0));
    (n_numbers > 0.0).then(|| sum / n_numbers)
}

fn variance(values: &[f32]) -> f64 {
    let values = values.iter().map(|&value| f64::from(value));
    let middle = mean(values.clone()).unwrap_or(0.0);
    mean(values.map(|value| (value - middle).powi(2))).unwrap_or(0.0)
}

fn greatest_tenth(values: &[f32]) -> Vec<bool> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let first = sorted.len() - sorted.len().div_ceil(10);
    let (least, bound) = (sorted.first(), sorted.get(first));
    let is_great = |value| Some(value) >= bound && Some(value) > least;
    values.iter().map(is_great).collect()
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use vitscope_core::flow::visibility;

    const SIZE: (usize, usize) = (24, 32);

    fn check(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
    }

    fn map(value: impl Fn(usize, usize) -> f32) -> Map {
        let (rows, columns) = SIZE;
        let values = (0..rows * columns).map(|idx| value(idx % columns, idx / columns));
        Map::new(rows, columns, values.collect()).unwrap()
    }

    /// Returns a map with a bump around a position.
    fn hill(x: usize, y: usize) -> Map {
        map(|column, row| {
            let (right, down) = (column as f32 - x as f32, row as f32 - y as f32);
            (-(right * right + down * down) / 18.0).exp()
        })
    }

    /// Returns a uniform flow and its visible pixels.
    fn shift(right: f32, down: f32) -> (Flow, Vec<bool>) {
        let uniform = |x, y| Flow::new(SIZE.1, SIZE.0, vec![[x, y]; SIZE.0 * SIZE.1]).unwrap();
        let forward = uniform(right, down);
        let visible = visibility(&forward, &uniform(-right, -down)).unwrap();
        (forward, visible)
    }

    #[test]
    fn maps_become_comparable() {
        let signed = Map::new(1, 4, vec![-1.0, 0.0, 3.0, 0.0]).unwrap();
        let sixth = 1.0 / 6.0;
        assert_eq!(signed.normalized().values, [0.0, sixth, 4.0 / 6.0, sixth]);
        assert_eq!(signed.ranged().values, [0.0, 0.25, 1.0, 0.25]);
        let flat = Map::new(1, 10, vec![0.1; 10]).unwrap();
        assert_eq!(flat.normalized().values, [0.1; 10]);
        assert_eq!(flat.ranged().values, [0.0; 10]);
    }

    #[test]
    fn upsampling_is_torchs() {
        // torch 2.15: interpolate(size=(4, 5), mode="bilinear", align_corners=False)
        let expected = [
            0.0, 0.4, 1.0, 2.8, 4.0, 0.5, 1.4, 2.75, 2.45, 2.25, 1.5, 3.4, 6.25, 1.75, -1.25, 2.0,
            4.4, 8.0, 1.4, -3.0,
        ];
        let map = Map::new(2, 3, vec![0.0, 1.0, 4.0, 2.0, 8.0, -3.0]).unwrap();
        let found = map.upsampled(4, 5).unwrap();
        assert_eq!(found.size(), (4, 5));
        for (found, expected) in found.values.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        }
    }

    #[test]
    fn flicker_is_the_share_of_mass_that_moves() {
        check(total_variation(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
        check(total_variation(&[0.5, 0.5, 0.0], &[0.25, 0.5, 0.25]), 0.25);
        // The visible masses are 0.2 and 0.6. Scaled to 1, they are (1/2, 1/2) and (1/3, 2/3).
        let seen = [true, true, false];
        let (map, next) = ([0.1, 0.1, 0.8], [0.2, 0.4, 0.4]);
        check(compensated_flicker(&map, &next, &seen), 1.0 / 6.0);
        assert_eq!(compensated_flicker(&[0.0, 0.0, 1.0], &next, &seen), None);
        check(warped_error(&[0.0, 1.0, 9.0], &[3.0, 0.0, 0.0], &seen), 5.0);
    }

    #[test]
    fn rank_correlation_is_scipys() {
        // By hand: ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4.
        let (a, b) = ([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0]);
        check(rank_correlation(&a, &b), 4.5 / 22.5_f64.sqrt());
        // scipy 1.17: scipy.stats.spearmanr(a, b).statistic
        let a = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        let b = [2.0, 7.0, 1.0, 8.0, 2.0, 8.0, 1.0, 8.0];
        check(rank_correlation(&a, &b), 0.19885368120992467);
        check(rank_correlation(&a, &a.map(|value| -value)), -1.0);
        check(rank_correlation(&[2.0; 3], &[5.0; 3]), 1.0);
        check(rank_correlation(&[2.0; 3], &[1.0, 2.0, 3.0]), 0.0);
    }

    #[test]
    fn overlap_is_of_the_greatest_tenths() {
        // Two of twenty positions each, one of them in common.
        let a: [f32; 20] = from_fn(|idx| idx as f32);
        let mut b = a;
        b.swap(0, 19);
        check(top_overlap(&a, &b), 1.0 / 3.0);
        // For masks, all kept positions count; for a single peak, only the peak.
        let mask =
            |kept: std::ops::Range<usize>| a.map(|idx| f32::from(kept.contains(&(idx as usize))));
        check(top_overlap(&mask(0..10), &mask(5..15)), 1.0 / 3.0);
        check(top_overlap(&mask(3..4), &mask(4..5)), 0.0);
        check(top_overlap(&mask(0..0), &mask(0..20)), 1.0);
    }

    #[test]
    fn ssim_is_scikit_images() {
        let (columns, n_places) = (18, 16 * 18);
        let a = |y: usize, x: usize| ((3 * y + 5 * x) % 17) as f32 / 16.0;
        let b = |y: usize, x: usize| ((5 * y + 2 * x + y * x) % 13) as f32 / 12.0;
        let places = || (0..n_places).map(|idx| (idx / columns, idx % columns));
        let blend = places().map(|(y, x)| 0.8 * a(y, x) + 0.2 * b(y, x));
        let blend: Vec<f32> = blend.collect();
        let a: Vec<f32> = places().map(|(y, x)| a(y, x)).collect();
        // scikit-image 0.26: structural_similarity(a, blend, data_range=1.0, gaussian_weights=True, sigma=1.5,
        // use_sample_covariance=False), and the mean of its map (full=True) over [5:-5, 5:9].
        let all = vec![true; n_places];
        check(ssim(&a, &blend, &all, columns), 0.9527589622783288);
        let left: Vec<bool> = (0..n_places).map(|idx| idx % columns < 9).collect();
        check(ssim(&a, &blend, &left, columns), 0.9494790181737672);
        check(ssim(&a, &a, &left, columns), 1.0);
        assert_eq!(ssim(&a[..10], &a[..10], &left[..10], 10), None);
    }

    #[test]
    fn peaks_jump_beyond_what_the_flow_explains() {
        let (flow, visible) = shift(2.0, 1.0);
        let jump = |from: Map, to: Map| peak_jump_px(&from, &to, &flow, &visible);
        check(jump(hill(8, 6), hill(13, 11)), 5.0);
        // The peak of these maps lies between two positions.
        let two =
            |x: usize| map(|column, row| f32::from(row == 3 && (column == x || column == x + 1)));
        check(jump(two(4), two(6)), 1.0);
        assert_eq!(jump(hill(31, 6), hill(8, 6)), None);
        assert_eq!(jump(map(|_, _| 1.0), hill(8, 6)), None);
        // numpy 2: percentile([4, 1, 3, 2, 10], [50, 95])
        let jumps = [4.0, 1.0, 3.0, 2.0, 10.0];
        check(percentile(&jumps, 0.5), 3.0);
        check(percentile(&jumps, 0.95), 8.8);
    }

    #[test]
    fn a_map_that_moves_with_the_flow_is_steady() {
        let (flow, visible) = shift(6.0, 4.0);
        let scores = score(&[hill(9, 8), hill(15, 12)], &[flow], &[visible]).unwrap();
        assert!(scores.flicker > 0.5, "{scores:?}");
        check(Some(scores.visible), 26.0 * 20.0 / (32.0 * 24.0));
        for none in [scores.compensated_flicker, scores.scale_free_warped_error] {
            assert!(none.unwrap() < 0.01, "{scores:?}");
        }
        assert!(scores.scale_free_ranged_warped_error.unwrap() < 0.01);
        for one in [scores.rank_stability, scores.top_overlap, scores.ssim] {
            assert!(one.unwrap() > 0.99, "{scores:?}");
        }
        check(scores.p95_peak_jump_px, 0.0);
    }

    #[test]
    fn a_map_that_stays_where_things_move_is_not() {
        let ((flow, visible), map) = (shift(6.0, 4.0), hill(15, 12));
        let ranged = map.ranged();
        let warped = warp(&ranged.values, &flow).unwrap();
        let similarity = ssim(&ranged.values, &warped, &visible, SIZE.1);
        let error = warped_error(&ranged.values, &warped, &visible);
        let scores = score(&[map.clone(), map], &[flow], &[visible]).unwrap();
        assert_eq!(scores.flicker, 0.0);
        assert!(scores.compensated_flicker.unwrap() > 0.5, "{scores:?}");
        assert!(scores.scale_free_warped_error.unwrap() > 0.5, "{scores:?}");
        assert!(scores.rank_stability.unwrap() < 0.5 && scores.top_overlap.unwrap() < 0.05);
        assert!(scores.ssim == similarity && similarity.unwrap() < 0.5);
        assert_eq!(scores.ranged_warped_error, error);
        check(scores.median_peak_jump_px, 52.0_f64.sqrt());
    }

    #[test]
    fn flat_maps_are_perfectly_steady() {
        let (flow, visible) = shift(0.3, 0.0);
        let flat = |value| map(|_, _| value);
        let scores = score(&[flat(1.0), flat(3.0)], &[flow], &[visible]).unwrap();
        assert_eq!(scores.flicker, 0.0);
        check(scores.compensated_flicker, 0.0);
        check(scores.scale_free_warped_error, 0.0);
        for one in [scores.rank_stability, scores.top_overlap, scores.ssim] {
            check(one, 1.0);
        }
        assert_eq!(scores.median_peak_jump_px, None);
    }

    #[test]
    fn stability_is_relative_to_the_change_of_frames() {
        let spot =
            |column| Map::new(1, 2, [0, 1].map(|at| f32::from(at == column)).to_vec()).unwrap();
        let gray = |value: f32| Gray::new(1, 1, vec![value]).unwrap();
        let maps = [spot(0), spot(1), spot(1)];
        let frames = [gray(0.5), gray(0.75), gray(0.625)];
        let stability = |kept: &[bool]| relative_stability(&maps, &frames, kept);
        check(stability(&[true, true]), 0.5 / (0.1875 + 0.001));
        check(stability(&[true, false]), 1.0 / (0.25 + 0.001));
        assert_eq!(stability(&[false, false]).or(stability(&[true])), None);
        let answer = |(class, probability)| Answer { class, probability };
        let answers = [(3, 0.5), (3, 0.54), (3, 0.6), (4, 0.6)].map(answer);
        assert_eq!(alike(&answers), [true, false, false]);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let ((flow, visible), map) = (shift(0.0, 0.0), hill(8, 8));
        let small = Map::new(1, 1, vec![0.0]).unwrap();
        let refused = [
            score(from_ref(&map), &[], &[]).err(),
            score(&[map.clone(), small], from_ref(&flow), &[visible]).err(),
            score(&[map.clone(), map.clone()], &[flow], &[vec![true]]).err(),
            Map::new(2, 2, vec![0.0; 3]).err(),
            map.upsampled(0, 3).err(),
        ];
        let is_shape = |error| matches!(error, Some(Error::Shape { .. }));
        assert!(refused.into_iter().all(is_shape));
        let broken = Map::new(1, 1, vec![f32::NAN]);
        assert!(matches!(broken, Err(Error::Data(_))));
        assert_eq!(total_variation(&[1.0], &[]), None);
    }
}
