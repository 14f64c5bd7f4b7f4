//! Scalar measures of how faithful and how concise a map is.
//!
//! The functions take numbers that the caller has measured with the model. `map` is a raw attribution with one score
//! per patch or pixel, a *probability* is that of the explained class, and a *drop* is the original probability minus
//! that of a modified image.
//!
//! | measure | better | source |
//! |---|---|---|
//! | [`saco`] | 1 | Wu et al., arXiv:2404.01415 |
//! | [`faithfulness_correlation`] (μ-fidelity) | 1 | Bhatt et al., arXiv:2005.00631 |
//! | [`infidelity`] | 0 | Yeh et al., arXiv:1901.09392 (captum) |
//! | [`monotonicity`] | 1 | Arya et al., arXiv:1909.03012 |
//! | [`comprehensiveness`], [`sufficiency`] | high, low | DeYoung et al., arXiv:1911.03429 |
//! | [`average_drop`], [`increase`] | 0, 1 | Grad-CAM++, arXiv:1710.11063 |
//! | [`adcc`] | 1 | Poppi et al., arXiv:2104.10252 |
//! | [`sparseness`] | high | Chalasani et al., arXiv:1810.06583 (Quantus, TiS) |
//! | [`entropy`] | low | Bhatt et al., arXiv:2005.00631 (Quantus) |
//!
//! Undefined results are `None`, because a number would distort means. Every function returns [`Error::Shape`] for
//! lengths that differ and [`Error::Data`] for empty or non-finite input.

use super::similarity::pearson;
use super::statistics::{check, check_pair};
use super::{mean, share};
use vitscope_core::error::{Error, Result};

/// How [`sparseness`] makes scores non-negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsigned {
    /// Absolute values divided by their maximum: Quantus.
    Absolute,
    /// Scores minus their minimum: TiS with `shift=True`. The addend has more weight if the scores are tiny.
    Shifted,
}

/// Gini index of the scores: Σ (2i − n − 1) s_(i) / (n Σ s) over ascending s, each + 1e−7; 0 if all are equal,
/// approaching 1 if a single score holds all the mass.
///
/// # Errors
/// As described in the module documentation.
pub fn sparseness(map: &[f32], unsigned: Unsigned) -> Result<f64> {
    check(map)?;
    let scores = map.iter().map(|&score| f64::from(score));
    let mut sorted: Vec<f64> = match unsigned {
        Unsigned::Absolute => {
            let greatest = scores.clone().map(f64::abs).fold(0.0, f64::max);
            // Quantus leaves a map of zeros unchanged.
            let divisor = if greatest > 0.0 { greatest } else { 1.0 };
            scores.map(|score| score.abs() / divisor).collect()
        }
        Unsigned::Shifted => {
            let least = scores.clone().fold(f64::INFINITY, f64::min);
            scores.map(|score| score - least).collect()
        }
    };
    sorted.sort_by(f64::total_cmp);
    let n_scores = sorted.len() as f64;
    let (mut weighted, mut total) = (0.0, 0.0);
    for (rank, score) in (1..).zip(sorted) {
        let score = score + 1e-7;
        weighted += (2.0 * f64::from(rank) - n_scores - 1.0) * score;
        total += score;
    }
    Ok(weighted / (n_scores * total))
}

/// Shannon entropy in nats of the absolute scores, normalized to sum 1: Quantus's `Complexity`. Ranges from 0 for one
/// patch to ln n for equal patches. A map of zeros also has ln n, since no patch stands out (Quantus: NaN).
///
/// # Errors
/// As described in the module documentation.
pub fn entropy(map: &[f32]) -> Result<f64> {
    check(map)?;
    let masses = map.iter().map(|&score| f64::from(score).abs());
    let total: f64 = masses.clone().sum();
    if total == 0.0 {
        return Ok((map.len() as f64).ln());
    }
    let shares = masses.map(|mass| mass / total);
    // The addend is Quantus's.
    Ok(-shares
        .map(|share| share * (share + 1e-12).ln())
        .sum::<f64>())
}

/// Splits patches into groups of equal size for [`saco`], by descending score, the most salient group first. Sizes
/// differ by at most one if necessary; among equal scores, the first patch comes first.
///
/// # Errors
/// As described in the module documentation; [`Error::Config`] if there are no groups, or more groups than patches.
pub fn salience_groups(map: &[f32], n_groups: usize) -> Result<Vec<Vec<usize>>> {
    check(map)?;
    let n_patches = map.len();
    if n_groups == 0 || n_groups > n_patches {
        return Err(Error::Config(format!(
            "{n_patches} patches in {n_groups} groups"
        )));
    }
    let mut ranked: Vec<(usize, f32)> = map.iter().copied().enumerate().collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let mut groups = vec![Vec::new(); n_groups];
    for (rank, (patch, _)) in ranked.into_iter().enumerate() {
        groups[rank * n_groups / n_patches].push(patch);
    }
    Ok(groups)
}

/// Salience-guided faithfulness coefficient: Σ w_ij / Σ |w_ij| over pairs i < j of groups of pixels, with
/// w_ij = s_i − s_j if d_i ≥ d_j, else −(s_i − s_j). From −1 to 1; `None` if all saliences are equal.
///
/// # Shapes
/// - `saliences`: s, sum of scores of each group, the most salient first; `[groups]`, 10 in the paper
/// - `drops`: d, from replacing only that group's pixels by their mean over the image; `[groups]`
///
/// # Errors
/// As described in the module documentation.
pub fn saco(saliences: &[f64], drops: &[f64]) -> Result<Option<f64>> {
    check_pair(saliences, drops)?;
    let groups: Vec<(f64, f64)> = saliences
        .iter()
        .copied()
        .zip(drops.iter().copied())
        .collect();
    let (mut faithful, mut total) = (0.0, 0.0);
    for (i, (salience_i, drop_i)) in groups.iter().enumerate() {
        for (salience_j, drop_j) in groups.iter().skip(i + 1) {
            let weight = salience_i - salience_j;
            faithful += if drop_i >= drop_j { weight } else { -weight };
            total += weight.abs();
        }
    }
    Ok((total > 0.0).then(|| faithful / total))
}

/// μ-fidelity: Pearson correlation over random subsets of patches.
///
/// # Shapes
/// - `sums`: sum of the map's scores in each subset, `[subsets]`
/// - `drops`: drop in logit or probability when the subset is removed, `[subsets]`
///
/// # Errors
/// As described in the module documentation.
pub fn faithfulness_correlation(sums: &[f64], drops: &[f64]) -> Result<Option<f64>> {
    pearson(sums, drops)
}

/// Mean over perturbations I of (β I·map − drop)². With `normalize`, β is Σ I·map drop / Σ (I·map)², which removes the
/// scale of the map; otherwise it is 1 (captum).
///
/// # Shapes
/// - `products`: I·map, `[perturbations]`
/// - `drops`: f(x) − f(x − I), `[perturbations]`
///
/// # Errors
/// As described in the module documentation.
pub fn infidelity(products: &[f64], drops: &[f64], normalize: bool) -> Result<f64> {
    check_pair(products, drops)?;
    let pairs = || products.iter().zip(drops);
    let squares: f64 = products.iter().map(|product| product * product).sum();
    let scale = if normalize && squares > 0.0 {
        pairs().map(|(product, drop)| product * drop).sum::<f64>() / squares
    } else {
        1.0
    };
    Ok(mean(
        pairs().map(|(product, drop)| (scale * product - drop).powi(2)),
    ))
}

/// Share of steps at which the probability does not fall while patches are restored, least important first. Quantus's
/// `Monotonicity` reports whether it is 1.
///
/// # Errors
/// As described in the module documentation; also [`Error::Data`] if there is no step.
pub fn monotonicity(probabilities: &[f64]) -> Result<f64> {
    check(probabilities)?;
    if probabilities.len() < 2 {
        return Err(Error::Data("a curve of one point has no step".into()));
    }
    Ok(share(
        probabilities.windows(2).map(|step| step[1] >= step[0]),
    ))
}

/// Mean drop when only the most important patches are removed, over several shares of them; ERASER uses 1, 5, 10, 20
/// and 50 %.
///
/// # Errors
/// As described in the module documentation.
pub fn comprehensiveness(original: f64, without_top: &[f64]) -> Result<f64> {
    check(&[original])?;
    check(without_top)?;
    Ok(mean(
        without_top.iter().map(|probability| original - probability),
    ))
}

/// Mean drop when only the most important patches are kept, over the same shares.
///
/// # Errors
/// As described in the module documentation.
pub fn sufficiency(original: f64, only_top: &[f64]) -> Result<f64> {
    comprehensiveness(original, only_top)
}

/// Mean over images of max(0, p(x) − p(x · map)) / p(x), as a fraction and not a percentage.
///
/// # Shapes
/// - `originals`, `masked`: probabilities, `[images]`
///
/// # Errors
/// As described in the module documentation; also [`Error::Data`] if an original probability is not above 0.
pub fn average_drop(originals: &[f64], masked: &[f64]) -> Result<f64> {
    check_pair(originals, masked)?;
    if let Some(original) = originals.iter().find(|&&original| original <= 0.0) {
        return Err(Error::Data(format!(
            "a drop from the probability {original}"
        )));
    }
    let pairs = originals.iter().zip(masked);
    Ok(mean(pairs.map(|(original, masked)| {
        (original - masked).max(0.0) / original
    })))
}

/// Share of images with p(x · map) > p(x).
///
/// # Shapes
/// - `originals`, `masked`: probabilities, `[images]`
///
/// # Errors
/// As described in the module documentation.
pub fn increase(originals: &[f64], masked: &[f64]) -> Result<f64> {
    check_pair(originals, masked)?;
    let pairs = originals.iter().zip(masked);
    Ok(share(pairs.map(|(original, masked)| masked > original)))
}

/// Harmonic mean of coherency, 1 − complexity and 1 − average drop of an image; 0 if any of them is 0.
///
/// `coherency` is the result of [`coherency`](super::similarity::coherency); `complexity` is not [`entropy`] but the
/// mean of the map scaled to 0..1.
///
/// # Errors
/// [`Error::Data`] if one of them is not between 0 and 1.
pub fn adcc(coherency: f64, complexity: f64, average_drop: f64) -> Result<f64> {
    let parts = [coherency, 1.0 - complexity, 1.0 - average_drop];
    if let Some(part) = parts.iter().find(|part| !(0.0..=1.0).contains(*part)) {
        return Err(Error::Data(format!("a part of ADCC is {part}")));
    }
    // 1 / 0 is infinite, and 3 divided by infinity is 0.
    Ok(3.0 / parts.iter().map(|part| 1.0 / part).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values computed by `map_metrics.py` with Quantus and captum.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/map_metrics.json");

    fn read<T: serde::de::DeserializeOwned>(key: &str) -> T {
        let all: serde_json::Value = serde_json::from_str(EXPECTED).unwrap();
        serde_json::from_value(all["map_metrics"][key].clone()).unwrap()
    }

    fn assert_close(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "{found} is not {expected}"
        );
    }

    /// One of n patches holds all the mass: Gini 1 − 1/n, except for the addend of 1e−7.
    #[test]
    fn sparseness_is_greatest_for_one_patch_and_zero_for_equal_ones() {
        let one = [0.0, 0.0, 0.0, -2.0];
        assert_close(sparseness(&one, Unsigned::Absolute).unwrap(), 0.75, 1e-6);
        for unsigned in [Unsigned::Absolute, Unsigned::Shifted] {
            for score in [0.0, 0.4, -3.0] {
                assert_close(sparseness(&[score; 5], unsigned).unwrap(), 0.0, 1e-12);
            }
        }
        // After the shift, three patches share the mass: Σ (2i − 5) s = −3 · 0 − 2 + 2 + 3 · 2 over 4 · 6.
        assert_close(sparseness(&one, Unsigned::Shifted).unwrap(), 0.25, 1e-6);
    }

    #[test]
    fn entropy_is_zero_for_one_patch_and_greatest_for_equal_ones() {
        assert_close(entropy(&[0.0, 3.0, 0.0]).unwrap(), 0.0, 1e-11);
        for score in [0.0, 0.4, -3.0] {
            assert_close(entropy(&[score; 8]).unwrap(), 8_f64.ln(), 1e-10);
        }
    }

    #[test]
    fn sparseness_and_entropy_equal_quantus() {
        let map: Vec<f32> = read("map");
        let absolute = sparseness(&map, Unsigned::Absolute).unwrap();
        assert_close(absolute, read("sparseness"), 1e-9);
        // Quantus received a map that was shifted in f32.
        let shifted = sparseness(&map, Unsigned::Shifted).unwrap();
        assert_close(shifted, read("sparseness_shifted"), 1e-6);
        assert_close(entropy(&map).unwrap(), read("entropy"), 1e-9);
    }

    #[test]
    fn saco_is_one_for_the_ideal_order_and_minus_one_for_the_reverse() {
        let saliences = [5.0, 3.0, 1.0, 0.5];
        assert_eq!(saco(&saliences, &[0.9, 0.5, 0.2, -0.1]).unwrap(), Some(1.0));
        assert_eq!(
            saco(&saliences, &[-0.1, 0.2, 0.5, 0.9]).unwrap(),
            Some(-1.0)
        );
        assert_eq!(saco(&[1.0; 3], &[0.3, 0.2, 0.1]).unwrap(), None);
    }

    #[test]
    fn saco_is_about_zero_where_drops_have_nothing_to_do_with_salience() {
        let mut rng = vitscope_core::rng::Rng::new(4);
        let mut draw = || -> Vec<f64> { (0..10).map(|_| rng.uniform().into()).collect() };
        let found = (0..2000).map(|_| {
            let mut saliences = draw();
            saliences.sort_by(|a, b| b.total_cmp(a));
            saco(&saliences, &draw()).unwrap().unwrap()
        });
        let mean = found.sum::<f64>() / 2000.0;
        assert!(mean.abs() < 0.03, "{mean}");
    }

    #[test]
    fn salience_groups_fall_and_are_of_equal_size() {
        let map = [0.1, 0.9, 0.5, 0.9, -1.0];
        let found = salience_groups(&map, 2).unwrap();
        assert_eq!(found, [vec![1, 3, 2], vec![0, 4]]);
        let sizes = |n_groups| {
            let groups = salience_groups(&[0.0; 196], n_groups).unwrap();
            groups.iter().map(Vec::len).collect::<Vec<usize>>()
        };
        assert_eq!(sizes(4), [49; 4]);
        assert!(sizes(10).iter().all(|size| [19, 20].contains(size)));
        assert!(salience_groups(&map, 0).is_err() && salience_groups(&map, 6).is_err());
    }

    /// Weights 2, −4 and −2 of 8: the first two groups are in order, the last exceeds both.
    #[test]
    fn saco_weighs_each_pair_by_its_difference_in_salience() {
        assert_eq!(
            saco(&[5.0, 3.0, 1.0], &[0.2, 0.1, 0.4]).unwrap(),
            Some(-0.5)
        );
        // Groups with equal drops count as in order.
        assert_eq!(saco(&[5.0, 3.0], &[0.2, 0.2]).unwrap(), Some(1.0));
    }

    #[test]
    fn a_map_that_tells_every_drop_is_faithful() {
        let (products, drops) = ([0.2, -0.4, 0.6], [0.1, -0.2, 0.3]);
        let correlation = faithfulness_correlation(&products, &drops)
            .unwrap()
            .unwrap();
        assert_close(correlation, 1.0, 1e-12);
        assert_close(infidelity(&drops, &drops, false).unwrap(), 0.0, 0.0);
        // Twice too large: only the scale is wrong.
        let found = infidelity(&products, &drops, false).unwrap();
        assert_close(found, (0.01 + 0.04 + 0.09) / 3.0, 1e-12);
        assert_close(infidelity(&products, &drops, true).unwrap(), 0.0, 1e-12);
        assert_eq!(infidelity(&[0.0; 2], &[1.0, 3.0], true).unwrap(), 5.0);
    }

    #[test]
    fn infidelity_equals_captum_and_correlation_quantus() {
        let (products, drops): (Vec<f64>, Vec<f64>) = (read("products"), read("drops"));
        let plain = infidelity(&products, &drops, false).unwrap();
        assert_close(plain, read("infidelity"), 1e-9);
        let normalized = infidelity(&products, &drops, true).unwrap();
        assert_close(normalized, read("infidelity_normalized"), 1e-9);
        let correlation = faithfulness_correlation(&products, &drops).unwrap();
        assert_close(correlation.unwrap(), read("faithfulness_correlation"), 1e-9);
    }

    #[test]
    fn monotonicity_is_the_share_of_steps_that_do_not_fall() {
        assert_eq!(monotonicity(&[0.1, 0.1, 0.5, 0.4, 0.9]).unwrap(), 0.75);
        assert_eq!(monotonicity(&[0.1, 0.9]).unwrap(), 1.0);
        assert!(monotonicity(&[0.1]).is_err());
    }

    #[test]
    fn drops_are_means_over_shares_and_over_images() {
        assert_close(comprehensiveness(0.9, &[0.8, 0.1]).unwrap(), 0.45, 1e-12);
        assert_close(sufficiency(0.9, &[0.9, 1.0]).unwrap(), -0.05, 1e-12);
        let (originals, masked) = ([0.8, 0.5, 0.4, 1.0], [0.4, 0.6, 0.4, 0.5]);
        assert_close(average_drop(&originals, &masked).unwrap(), 0.25, 1e-12);
        assert_eq!(increase(&originals, &masked).unwrap(), 0.25);
        assert!(average_drop(&[0.0], &[0.5]).is_err());
    }

    #[test]
    fn adcc_is_a_harmonic_mean() {
        assert_close(adcc(1.0, 0.0, 0.0).unwrap(), 1.0, 1e-12);
        assert_eq!(adcc(0.0, 0.3, 0.3).unwrap(), 0.0);
        // 3 / (1 / 0.5 + 1 / 0.25 + 1 / 1).
        assert_close(adcc(0.5, 0.75, 0.0).unwrap(), 3.0 / 7.0, 1e-12);
        assert!(adcc(0.5, 1.5, 0.0).is_err() && adcc(f64::NAN, 0.5, 0.0).is_err());
    }

    #[test]
    fn lengths_that_differ_and_what_is_not_finite_are_refused() {
        assert!(matches!(saco(&[1.0], &[]), Err(Error::Shape { .. })));
        assert!(matches!(entropy(&[]), Err(Error::Data(_))));
        assert!(matches!(
            sparseness(&[f32::NAN], Unsigned::Absolute),
            Err(Error::Data(_))
        ));
        assert!(matches!(
            infidelity(&[f64::INFINITY], &[0.0], false),
            Err(Error::Data(_))
        ));
        assert!(matches!(increase(&[], &[]), Err(Error::Data(_))));
    }
}
