//! Similarity of two maps, and how a map changes with its image, class or model.
//!
//! | measure | compared maps | better | source |
//! |---|---|---|---|
//! | [`max_sensitivity`] | an image and barely changed copies | 0 | Yeh et al., arXiv:1901.09392 (captum) |
//! | [`relative_input_stability`] | the same, relative to the change | 0 | Agarwal et al., arXiv:2203.06877 (Quantus) |
//! | [`class_sensitivity`] | two classes in one image | high | spec of this project, section 7.5 |
//! | [`coherency`] | an image and the image masked by its map | 1 | Poppi et al., arXiv:2104.10252 |
//! | [`pearson`], [`spearman`], [`ssim`] | a model and a randomized copy | low | Adebayo et al., arXiv:1810.03292 |
//!
//! A correlation with a constant map is undefined and `None`, because a number would distort means. Maps have one score
//! per patch or pixel; compared maps have the same patches in the same order. Every function returns [`Error::Shape`]
//! for lengths that differ and [`Error::Data`] for empty or non-finite input.

use super::mean;
use super::statistics::check_pair;
use vitscope_core::error::{Error, Result};

/// Scales scores to 0 to 1 by their minimum and maximum, in the precision of Chefer et al.'s code; 0.5 everywhere if
/// all are equal.
///
/// # Shapes
/// - `map`: one score per patch or pixel, finite
pub fn min_max(map: &[f32]) -> Vec<f32> {
    let low = map.iter().copied().fold(f32::INFINITY, f32::min);
    let high = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if low == high {
        return vec![0.5; map.len()];
    }
    // Halved, because the span of two finite scores may overflow.
    let (half_low, half_span) = (low / 2.0, high / 2.0 - low / 2.0);
    let unit = |score: &f32| (score / 2.0 - half_low) / half_span;
    map.iter().map(unit).collect()
}

/// Coherency as used by [`adcc`](super::map_metrics::adcc): (1 + Pearson) / 2 of a map and the map of the image masked
/// by it; `None` if one of them is constant.
///
/// # Errors
/// As described in the module documentation.
pub fn coherency(map: &[f32], of_masked: &[f32]) -> Result<Option<f64>> {
    Ok(pearson(map, of_masked)?.map(|correlation| (1.0 + correlation) / 2.0))
}

/// Maximum ‖map' − map‖ / ‖map‖ over slightly changed images; a map of zeros divides by 1 (captum, by default 10 images
/// with each value changed by at most 0.02).
///
/// # Shapes
/// - `perturbed`: map' of each changed image, each as long as `map`
///
/// # Errors
/// As described in the module documentation.
pub fn max_sensitivity(map: &[f32], perturbed: &[impl AsRef<[f32]>]) -> Result<f64> {
    let length = norm(map.iter().map(|&score| f64::from(score)));
    let divisor = if length > 0.0 { length } else { 1.0 };
    greatest(perturbed.iter().map(|perturbed| {
        let perturbed = perturbed.as_ref();
        check_pair(map, perturbed)?;
        let changes = map.iter().zip(perturbed);
        Ok(norm(changes.map(|(a, b)| f64::from(*a) - f64::from(*b))) / divisor)
    }))
}

/// Maximum ‖(map − map') / map‖ / ‖(x − x') / x‖ over slightly changed images; divisors of exactly 0 become 1e−6
/// (Quantus). The caller must leave out images whose predicted class changes; Quantus returns NaN for them.
///
/// # Shapes
/// - `image`: x, as the model receives it; any length
/// - `perturbed`: (map', x') of each changed image
///
/// # Errors
/// As described in the module documentation.
pub fn relative_input_stability(
    map: &[f32],
    image: &[f32],
    perturbed: &[(impl AsRef<[f32]>, impl AsRef<[f32]>)],
) -> Result<f64> {
    let or_least = |divisor: f64| if divisor == 0.0 { 1e-6 } else { divisor };
    let change = |from: &[f32], to: &[f32]| {
        check_pair(from, to)?;
        let pairs = from.iter().zip(to);
        let pairs = pairs.map(|(&from, &to)| (f64::from(from), f64::from(to)));
        Ok::<f64, Error>(norm(pairs.map(|(from, to)| (from - to) / or_least(from))))
    };
    greatest(perturbed.iter().map(|(perturbed_map, perturbed_image)| {
        let of_image = or_least(change(image, perturbed_image.as_ref())?);
        Ok(change(map, perturbed_map.as_ref())? / of_image)
    }))
}

/// 1 − Pearson of the maps of two classes in an image that shows both. Identical maps have 0, so constant maps gain
/// nothing; otherwise `None` if one of them is constant.
///
/// # Errors
/// As described in the module documentation.
pub fn class_sensitivity(map: &[f32], of_other_class: &[f32]) -> Result<Option<f64>> {
    let correlation = pearson(map, of_other_class)?;
    if map == of_other_class {
        return Ok(Some(0.0));
    }
    Ok(correlation.map(|correlation| 1.0 - correlation))
}

/// Pearson's correlation; `None` if one of the two is constant (SciPy: NaN).
///
/// # Errors
/// As described in the module documentation.
pub fn pearson<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> Result<Option<f64>> {
    check_pair(a, b)?;
    let centered = |values: &[T]| -> Vec<f64> {
        let values: Vec<f64> = values.iter().map(|&value| value.into()).collect();
        // Rounding must not give equal values a nonzero variance.
        let center = if values.iter().all(|value| Some(value) == values.first()) {
            values.first().copied().unwrap_or(0.0)
        } else {
            mean(values.iter().copied())
        };
        values.iter().map(|value| value - center).collect()
    };
    let (a, b) = (centered(a), centered(b));
    let lengths = norm(a.iter().copied()) * norm(b.iter().copied());
    let product: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
    Ok((lengths > 0.0).then(|| (product / lengths).clamp(-1.0, 1.0)))
}

/// Spearman's correlation: Pearson's correlation of the ranks, where ties share their mean rank; `None` if one of the
/// two is constant.
///
/// # Errors
/// As described in the module documentation.
pub fn spearman<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> Result<Option<f64>> {
    check_pair(a, b)?;
    pearson(&ranks(a), &ranks(b))
}

fn ranks<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    let mut sorted: Vec<(usize, f64)> = values
        .iter()
        .map(|&value| value.into())
        .enumerate()
        .collect();
    sorted.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for equals in sorted.chunk_by(|(_, a), (_, b)| a == b) {
        for &(idx, _) in equals {
            ranks[idx] = below as f64 + (equals.len() + 1) as f64 / 2.0;
        }
        below += equals.len();
    }
    ranks
}

/// Structural similarity (Wang et al., 2004): windows of 11 x 11 weighted by a Gaussian of 1.5 pixels, averaged over
/// those that lie inside the maps; scikit-image with `gaussian_weights=True, use_sample_covariance=False`.
///
/// # Shapes
/// - `a`, `b`: `[height, width]`
/// - `range`: span of possible scores, 1 for maps scaled to 0..1
///
/// # Errors
/// As described in the module documentation; also [`Error::Shape`] if the maps do not have `size`, height first, or are
/// smaller than a window; [`Error::Config`] if the range is not above 0.
pub fn ssim(a: &[f32], b: &[f32], size: (usize, usize), range: f64) -> Result<f64> {
    Ok(mean(ssim_of_windows(a, b, size, range)?.into_iter()))
}

/// Structural similarity of each window, `[height - 10, width - 10]`.
pub(super) fn ssim_of_windows(
    a: &[f32],
    b: &[f32],
    size: (usize, usize),
    range: f64,
) -> Result<Vec<f64>> {
    let (height, width) = size;
    check_pair(a, b)?;
    if height.min(width) < WINDOW || height.checked_mul(width) != Some(a.len()) {
        return Err(Error::Shape {
            expected: format!("{height} x {width} scores, {WINDOW} x {WINDOW} at least"),
            got: format!("{} scores", a.len()),
        });
    }
    if !(range > 0.0 && range.is_finite()) {
        return Err(Error::Config(format!("a range of {range}")));
    }
    let blurred = |of: &dyn Fn(f64, f64) -> f64| {
        let pairs = a.iter().zip(b);
        let values: Vec<f64> = pairs.map(|(&a, &b)| of(a.into(), b.into())).collect();
        blurred(&values, width)
    };
    let means_a = blurred(&|a, _| a);
    let means_b = blurred(&|_, b| b);
    // The variances occur only as a sum.
    let squares = blurred(&|a, b| a * a + b * b);
    let products = blurred(&|a, b| a * b);
    let (c1, c2) = ((0.01 * range).powi(2), (0.03 * range).powi(2));
    let means = means_a.iter().zip(&means_b);
    let moments = means.zip(squares.iter().zip(&products));
    // Eq. 13 of the paper.
    let similarities = moments.map(|((&a, &b), (&square, &product))| {
        let of_means = (2.0 * a * b + c1) / (a * a + b * b + c1);
        of_means * (2.0 * (product - a * b) + c2) / (square - a * a - b * b + c2)
    });
    Ok(similarities.collect())
}

/// Side of the windows of [`ssim`].
pub(super) const WINDOW: usize = 11;

/// Computes weighted means over all windows that lie inside.
fn blurred(values: &[f64], width: usize) -> Vec<f64> {
    let mut weights = [0.0; WINDOW];
    for (weight, offset) in weights.iter_mut().zip(-5_i32..) {
        *weight = (f64::from(offset * offset) / (-2.0 * 1.5 * 1.5)).exp();
    }
    let total: f64 = weights.iter().sum();
    let weighted = |values: &mut dyn Iterator<Item = &f64>| {
        let products = values.zip(&weights).map(|(value, weight)| value * weight);
        products.sum::<f64>() / total
    };
    let rows: Vec<f64> = values
        .chunks_exact(width)
        .flat_map(|row| {
            row.windows(WINDOW)
                .map(|window| weighted(&mut window.iter()))
        })
        .collect(); // [height, width - 10]
    let width = width + 1 - WINDOW;
    let spans = rows.windows((WINDOW - 1) * width + 1);
    spans
        .map(|span| weighted(&mut span.iter().step_by(width)))
        .collect() // [height - 10, width - 10]
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn greatest(values: impl Iterator<Item = Result<f64>>) -> Result<f64> {
    let values = values.collect::<Result<Vec<f64>>>()?;
    let greatest = values.into_iter().reduce(f64::max);
    greatest.ok_or_else(|| Error::Data("no changed image was given".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values computed by `map_metrics.py` with SciPy, scikit-image, captum and Quantus.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/map_metrics.json");

    /// All sums are in f64 on both sides, except captum's.
    const TOLERANCE: f64 = 1e-9;

    fn case() -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(EXPECTED).unwrap();
        all["similarity"].clone()
    }

    fn read<T: serde::de::DeserializeOwned>(key: &str) -> T {
        serde_json::from_value(case()[key].clone()).unwrap()
    }

    fn assert_close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < TOLERANCE,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn correlations_are_one_for_the_same_order_and_minus_one_for_the_reverse() {
        let (rising, faster, falling) = ([1.0_f32, 2.0, 3.0], [1.0, 4.0, 90.0], [5.0, 3.0, 1.0]);
        assert_close(pearson(&rising, &falling).unwrap().unwrap(), -1.0);
        assert_close(spearman(&rising, &faster).unwrap().unwrap(), 1.0);
        assert!(pearson(&rising, &faster).unwrap().unwrap() < 0.95);
        assert_close(spearman(&faster, &falling).unwrap().unwrap(), -1.0);
    }

    #[test]
    fn correlations_with_a_constant_are_undefined() {
        // The mean of many copies of 0.1 is not exactly 0.1.
        let (constant, rising) = ([0.1_f64; 30], (0..30).map(f64::from).collect::<Vec<_>>());
        assert_eq!(pearson(&constant, &rising).unwrap(), None);
        assert_eq!(spearman(&rising, &constant).unwrap(), None);
    }

    #[test]
    fn correlations_equal_scipy() {
        let (a, b): (Vec<f32>, Vec<f32>) = (read("a"), read("b"));
        assert_close(pearson(&a, &b).unwrap().unwrap(), read("pearson"));
        assert_close(spearman(&a, &b).unwrap().unwrap(), read("spearman"));
        let (a, b): (Vec<i8>, Vec<i8>) = (read("tied_a"), read("tied_b"));
        assert_close(spearman(&a, &b).unwrap().unwrap(), read("tied_spearman"));
    }

    /// Without contrast, only the means count: (2 · 0.25 · 0.75 + c1) / (0.25² + 0.75² + c1).
    #[test]
    fn ssim_of_flat_maps_is_that_of_their_means_and_of_a_map_with_itself_one() {
        let found = ssim(&[0.25; 143], &[0.75; 143], (11, 13), 1.0).unwrap();
        assert_close(found, (0.375 + 1e-4) / (0.625 + 1e-4));
        let map: Vec<f32> = (0..143).map(|pixel| (pixel % 7) as f32).collect();
        assert_close(ssim(&map, &map, (13, 11), 6.0).unwrap(), 1.0);
    }

    #[test]
    fn ssim_equals_scikit_image() {
        let (a, b): (Vec<f32>, Vec<f32>) = (read("a"), read("b"));
        let size = (read("height"), read("width"));
        assert_close(ssim(&a, &b, size, read("span")).unwrap(), read("ssim"));
        assert_close(ssim(&a, &b, size, 1.0).unwrap(), read("ssim_unit"));
    }

    #[test]
    fn ssim_refuses_maps_smaller_than_its_window() {
        assert!(ssim(&[0.0; 110], &[0.0; 110], (10, 11), 1.0).is_err());
        assert!(ssim(&[0.0; 121], &[0.0; 121], (11, 12), 1.0).is_err());
        assert!(ssim(&[0.0; 121], &[0.0; 121], (11, 11), 0.0).is_err());
    }

    #[test]
    fn the_same_map_for_two_classes_has_no_sensitivity() {
        let (left, right) = ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5]);
        assert_close(class_sensitivity(&left, &right).unwrap().unwrap(), 2.0);
        assert_eq!(class_sensitivity(&left, &left).unwrap(), Some(0.0));
        assert_eq!(class_sensitivity(&[0.2; 3], &[0.2; 3]).unwrap(), Some(0.0));
        assert_eq!(class_sensitivity(&left, &[0.2; 3]).unwrap(), None);
        assert_close(coherency(&left, &right).unwrap().unwrap(), 0.0);
        assert_close(coherency(&left, &left).unwrap().unwrap(), 1.0);
    }

    /// ‖(3, 4)‖ = 5; the changes have lengths 1 and 5.
    #[test]
    fn the_greatest_change_of_a_map_counts() {
        let found = max_sensitivity(&[3.0, 4.0], &[[3.0, 5.0], [0.0, 0.0]]).unwrap();
        assert_eq!(found, 1.0);
        assert_eq!(max_sensitivity(&[0.0, 0.0], &[[0.0, 2.0]]).unwrap(), 2.0);
        assert_eq!(max_sensitivity(&[3.0, 4.0], &[[3.0, 4.0]]).unwrap(), 0.0);
        assert!(max_sensitivity(&[1.0], &Vec::<Vec<f32>>::new()).is_err());
        assert!(max_sensitivity(&[1.0], &[[1.0, 2.0]]).is_err());
    }

    /// The map's scores change by 1/2 and 0, the image's value by 1/4, all relative.
    #[test]
    fn stability_is_relative_change_of_the_map_over_that_of_the_image() {
        let found = relative_input_stability(&[2.0, 1.0], &[4.0], &[([1.0, 1.0], [5.0])]);
        assert_close(found.unwrap(), 2.0);
        let still = relative_input_stability(&[1.0], &[1.0], &[([2.0], [1.0])]);
        assert_close(still.unwrap() * 1e-6, 1.0);
    }

    #[test]
    fn sensitivity_equals_captum_and_stability_quantus() {
        let (mut map, mut image): (Vec<f32>, Vec<f32>) = (read("map"), read("image"));
        let maps: Vec<Vec<f32>> = read("changed_maps");
        let images: Vec<Vec<f32>> = read("changed_images");
        let found = max_sensitivity(&map, &maps).unwrap();
        // captum computes in f32.
        assert!(
            (found - read::<f64>("max_sensitivity")).abs() < 1e-6,
            "{found}"
        );
        let changed: Vec<(Vec<f32>, Vec<f32>)> = maps.into_iter().zip(images).collect();
        let found = relative_input_stability(&map, &image, &changed).unwrap();
        assert_close(found, read("relative_input_stability"));
        (map[5], image[3]) = (0.0, 0.0);
        let found = relative_input_stability(&map, &image, &changed).unwrap();
        assert_close(found, read("relative_input_stability_with_zeros"));
    }

    #[test]
    fn scores_are_scaled_by_their_least_and_greatest() {
        assert_eq!(min_max(&[-2.0, 0.0, 2.0]), [0.0, 0.5, 1.0]);
        assert_eq!(min_max(&[7.0; 2]), [0.5; 2]);
        assert_eq!(min_max(&[f32::MIN, f32::MAX]), [0.0, 1.0]);
    }
}
