//! Statistics of results: intervals, paired tests and areas under curves.
//!
//! Images are the sample, and two methods are compared on the same ones, so the difficulty that an image has for both
//! cancels out.
//!
//! | quantity | method | source |
//! |---|---|---|
//! | interval of a mean | percentile bootstrap, 95 % | Efron and Tibshirani, 1993 |
//! | paired difference | sign-flip permutation test, two-sided | Fisher, 1935; Phipson and Smyth, arXiv:1603.05766 |
//! | many differences | step-down correction | Holm, 1979 |
//! | area | trapezoids | RISE, arXiv:1806.07421 |
//!
//! For random permutations, the p value is p + 1 over n + 1 (Phipson and Smyth).
//!
//! No function owns a generator: `draw(n)` returns an index below `n`, as `Rng::below` does, and the caller seeds it.

use vitscope_core::error::{Error, Result};

/// Tail probability on either side of a 95 % interval.
const TAIL: f64 = 0.025;

/// Returns the ends of the 95 % percentile bootstrap interval of a statistic of `n_values` values. `statistic` receives
/// the indices of each of `n_resamples` resamples.
///
/// Percentiles are interpolated linearly, as by `scipy.stats.bootstrap(method="percentile")`.
///
/// # Errors
/// [`Error::Data`] if there are no values or a statistic is not finite; [`Error::Config`] if there are no resamples, or
/// if `draw` returns an index that is not below its argument.
pub fn bootstrap(
    n_values: usize,
    n_resamples: usize,
    draw: &mut impl FnMut(usize) -> usize,
    statistic: impl Fn(&[usize]) -> f64,
) -> Result<[f64; 2]> {
    if n_resamples == 0 {
        return Err(Error::Config("a bootstrap needs resamples".into()));
    }
    if n_values == 0 {
        return Err(Error::Data("there are no values".into()));
    }
    let mut found = Vec::with_capacity(n_resamples);
    let mut drawn = vec![0; n_values];
    for _ in 0..n_resamples {
        drawn.fill_with(|| draw(n_values));
        if let Some(idx) = drawn.iter().find(|&&idx| idx >= n_values) {
            return Err(Error::Config(format!(
                "drew index {idx} of {n_values} values"
            )));
        }
        found.push(statistic(&drawn));
    }
    check(&found)?;
    found.sort_by(f64::total_cmp);
    Ok([quantile(&found, TAIL), quantile(&found, 1.0 - TAIL)])
}

/// Returns the two-sided p value of the mean paired difference of two methods: the share of random sign flips of the
/// differences whose mean is at least as far from 0.
///
/// If there are at most `n_permutations` sign patterns, all are tried: the p value is exact and `draw` is not called.
/// Otherwise, it is (1 + number at least as far) / (1 + `n_permutations`), and never 0.
///
/// # Shapes
/// - `first`, `second`: one value per image, `[images]`, in the same order
///
/// # Errors
/// [`Error::Shape`] if the methods have different numbers of values; [`Error::Data`] if there are none or one is not
/// finite; [`Error::Config`] if there are no permutations.
pub fn sign_flip_p_value(
    first: &[f64],
    second: &[f64],
    n_permutations: usize,
    draw: &mut impl FnMut(usize) -> usize,
) -> Result<f64> {
    check_pair(first, second)?;
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    if n_permutations == 0 {
        return Err(Error::Config(
            "a permutation test needs permutations".into(),
        ));
    }
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order differ by rounding, and must count as equal.
    let rounding = 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let is_as_far = |sum: f64| sum.abs() >= observed - rounding;

    let n_patterns = u32::try_from(differences.len())
        .ok()
        .and_then(|n_images| 1_usize.checked_shl(n_images));
    if let Some(n_patterns) = n_patterns.filter(|&n_patterns| n_patterns <= n_permutations) {
        let as_far = (0..n_patterns).filter(|pattern| {
            let flipped = |idx: usize| pattern >> idx & 1 == 1;
            is_as_far(signed_sum(&differences, flipped))
        });
        return Ok(as_far.count() as f64 / n_patterns as f64);
    }
    let as_far = (0..n_permutations)
        .filter(|_| is_as_far(signed_sum(&differences, |_| draw(2) == 1)))
        .count();
    Ok((1 + as_far) as f64 / (1 + n_permutations) as f64)
}

/// Returns Holm's adjusted p values in the given order. Hypotheses with a value below a level `alpha` may be rejected
/// together, with a probability of at most `alpha` that any of them is true.
///
/// # Errors
/// [`Error::Data`] if a p value is not between 0 and 1.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>> {
    if let Some(p_value) = p_values.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return Err(Error::Data(format!("a p value is {p_value}")));
    }
    let mut ranked: Vec<(usize, f64)> = p_values.iter().copied().enumerate().collect();
    ranked.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut largest = 0.0_f64;
    for (rank, (_, p_value)) in ranked.iter_mut().enumerate() {
        // A hypothesis is not rejected if one with a smaller p value is not.
        largest = largest.max((p_values.len() - rank) as f64 * *p_value);
        *p_value = largest.min(1.0);
    }
    ranked.sort_by_key(|&(idx, _)| idx);
    Ok(ranked.into_iter().map(|(_, p_value)| p_value).collect())
}

/// Area under a curve of evenly spaced points from 0 to 1: (Σ y − (y_0 + y_n) / 2) / n, RISE's `auc`.
///
/// # Errors
/// [`Error::Data`] if there are fewer than two points or one is not finite.
pub fn trapezoid_unit(curve: &[f64]) -> Result<f64> {
    let n_steps = curve.len().saturating_sub(1).max(1) as f64;
    let axis: Vec<f64> = (0..curve.len()).map(|idx| idx as f64 / n_steps).collect();
    trapezoid(&axis, curve)
}

/// Area under a curve with points at `axis`, in the unit of the axis (`numpy.trapezoid`).
///
/// # Shapes
/// - `axis`, `curve`: `[points]`
///
/// # Errors
/// [`Error::Shape`] if the two have different numbers of points; [`Error::Data`] if there are fewer than two, one is
/// not finite, or the axis decreases.
pub fn trapezoid(axis: &[f64], curve: &[f64]) -> Result<f64> {
    check_pair(axis, curve)?;
    if curve.len() < 2 {
        return Err(Error::Data("a curve of one point has no area".into()));
    }
    if !axis.is_sorted() {
        return Err(Error::Data("the axis of a curve falls".into()));
    }
    let widths = axis.windows(2).map(|ends| ends[1] - ends[0]);
    let heights = curve.windows(2).map(|ends| (ends[0] + ends[1]) / 2.0);
    Ok(widths
        .zip(heights)
        .map(|(width, height)| width * height)
        .sum())
}

fn signed_sum(differences: &[f64], mut is_flipped: impl FnMut(usize) -> bool) -> f64 {
    let signed = |(idx, difference): (usize, &f64)| {
        if is_flipped(idx) {
            -difference
        } else {
            *difference
        }
    };
    differences.iter().enumerate().map(signed).sum()
}

/// Value below which the share `rank` of the sorted values lies, interpolated between neighbors (NumPy's default).
pub(super) fn quantile(sorted: &[f64], rank: f64) -> f64 {
    let position = rank * sorted.len().saturating_sub(1) as f64;
    let at = |position: f64| sorted.get(position as usize).copied().unwrap_or(0.0);
    let (lower, upper) = (at(position.floor()), at(position.ceil()));
    lower + (upper - lower) * position.fract()
}

/// Rejects empty and non-finite input.
pub(super) fn check<T: Copy + Into<f64>>(values: &[T]) -> Result<()> {
    if values.is_empty() {
        return Err(Error::Data("there are no values".into()));
    }
    let mut values = values.iter().map(|&value| value.into()).enumerate();
    match values.find(|(_, value)| !value.is_finite()) {
        Some((idx, value)) => Err(Error::Data(format!("value {idx} is {value}"))),
        None => Ok(()),
    }
}

/// Applies [`check`] to two lists, which must have the same length.
pub(super) fn check_pair<T: Copy + Into<f64>>(first: &[T], second: &[T]) -> Result<()> {
    if first.len() != second.len() {
        return Err(Error::Shape {
            expected: format!("{} values, as in the first", first.len()),
            got: second.len().to_string(),
        });
    }
    check(first)?;
    check(second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::mean;

    /// Reference values computed by `map_metrics.py` with NumPy and SciPy.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/map_metrics.json");

    fn expected(key: &str) -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(EXPECTED).unwrap();
        all["statistics"][key].clone()
    }

    fn numbers(key: &str) -> Vec<f64> {
        serde_json::from_value(expected(key)).unwrap()
    }

    /// A seeded generator (Knuth's MMIX), good enough for tests.
    fn generator(seed: u64) -> impl FnMut(usize) -> usize {
        let mut state = seed;
        move |n| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        }
    }

    /// A mean and its 95 % confidence interval.
    #[derive(Debug, PartialEq)]
    struct Interval {
        mean: f64,
        low: f64,
        high: f64,
    }

    fn bootstrap_mean(
        values: &[f64],
        n_resamples: usize,
        draw: &mut impl FnMut(usize) -> usize,
    ) -> Result<Interval> {
        let mean_of = |drawn: &[usize]| mean(drawn.iter().map(|&idx| values[idx]));
        let [low, high] = bootstrap(values.len(), n_resamples, draw, mean_of)?;
        let mean = mean(values.iter().copied());
        Ok(Interval { mean, low, high })
    }

    fn assert_close(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn equal_values_have_an_interval_of_one_point() {
        let found = bootstrap_mean(&[0.25; 9], 50, &mut generator(1)).unwrap();
        let point = Interval {
            mean: 0.25,
            low: 0.25,
            high: 0.25,
        };
        assert_eq!(found, point);
    }

    /// Indices are drawn in turn, so the means of the three resamples are exactly 0, 1 and 2.
    #[test]
    fn the_interval_ends_at_interpolated_percentiles_of_the_resampled_means() {
        let mut calls = 0;
        let mut draw = |_: usize| {
            calls += 1;
            (calls - 1) / 3
        };
        let found = bootstrap_mean(&[0.0, 1.0, 2.0], 3, &mut draw).unwrap();
        assert_close(found.mean, 1.0, 0.0);
        assert_close(found.low, 0.05, 1e-12);
        assert_close(found.high, 1.95, 1e-12);
    }

    /// SciPy drew other resamples: the ends agree as well as those of two SciPy runs.
    #[test]
    fn bootstrap_equals_scipy_up_to_chance() {
        let interval = numbers("bootstrap");
        let found = bootstrap_mean(&numbers("first"), 20_000, &mut generator(3)).unwrap();
        assert_close(found.mean, interval[0], 1e-12);
        assert_close(found.low, interval[1], 5e-3);
        assert_close(found.high, interval[2], 5e-3);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let of = |seed| bootstrap_mean(&numbers("first"), 100, &mut generator(seed)).unwrap();
        assert_eq!(of(5), of(5));
        assert_ne!(of(5), of(6));
    }

    /// Of the 16 sign patterns, only the observed one and its opposite are as far from 0.
    #[test]
    fn one_sided_differences_have_the_least_exact_p_value() {
        let found = sign_flip_p_value(&[1.0, 2.0, 3.0, 4.0], &[0.0; 4], 16, &mut |_| 0).unwrap();
        assert_eq!(found, 2.0 / 16.0);
        let twin = sign_flip_p_value(&[0.5; 4], &[0.5; 4], 16, &mut |_| 0).unwrap();
        assert_eq!(twin, 1.0);
    }

    #[test]
    fn sign_flips_equal_scipy_exactly_and_by_chance() {
        let (first, second) = (numbers("first"), numbers("second"));
        let exact = sign_flip_p_value(&first, &second, 1 << first.len(), &mut |_| 0).unwrap();
        assert_close(exact, expected("sign_flip").as_f64().unwrap(), 1e-12);
        let drawn = sign_flip_p_value(&first, &second, 4000, &mut generator(9)).unwrap();
        assert_close(drawn, exact, 0.02);
    }

    #[test]
    fn a_drawn_p_value_is_never_zero() {
        let first = vec![1.0; 40];
        let found = sign_flip_p_value(&first, &[0.0; 40], 99, &mut generator(2)).unwrap();
        assert_eq!(found, 0.01);
    }

    /// By hand: 0.01 · 3, then 0.03 · 2, then the larger of 0.04 · 1 and the previous value.
    #[test]
    fn holm_keeps_order_and_never_falls() {
        let found = holm(&[0.04, 0.01, 0.03]).unwrap();
        for (found, expected) in found.into_iter().zip([0.06, 0.03, 0.06]) {
            assert_close(found, expected, 1e-12);
        }
        assert_eq!(holm(&[0.6, 0.9]).unwrap(), [1.0, 1.0]);
        assert!(holm(&[1.5]).is_err());
    }

    #[test]
    fn areas_are_those_of_trapezoids() {
        assert_eq!(trapezoid_unit(&[0.0, 1.0]).unwrap(), 0.5);
        assert_close(trapezoid_unit(&[1.0, 0.5, 0.0]).unwrap(), 0.5, 1e-12);
        assert_eq!(
            trapezoid(&[0.0, 10.0, 100.0], &[1.0, 1.0, 0.0]).unwrap(),
            55.0
        );
        let found = trapezoid(&numbers("axis"), &numbers("curve")).unwrap();
        assert_close(found, expected("area").as_f64().unwrap(), 1e-12);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        assert!(bootstrap_mean(&[], 10, &mut |_| 0).is_err());
        assert!(bootstrap_mean(&[f64::NAN], 10, &mut |_| 0).is_err());
        assert!(bootstrap_mean(&[1.0], 0, &mut |_| 0).is_err());
        assert!(bootstrap_mean(&[1.0], 1, &mut |n| n).is_err());
        assert!(sign_flip_p_value(&[1.0], &[], 8, &mut |_| 0).is_err());
        assert!(trapezoid_unit(&[1.0]).is_err() && trapezoid_unit(&[]).is_err());
        assert!(trapezoid(&[1.0, 0.0], &[0.0, 0.0]).is_err());
    }
}
