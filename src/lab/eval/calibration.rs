//! Calibration of a classifier's probabilities, and accuracy of its sure predictions.
//!
//! | measure | definition | source |
//! |---|---|---|
//! | expected calibration error | mean gap to accuracy, equal-width bins | Guo et al., arXiv:1706.04599, section 2 |
//! | negative log-likelihood | mean of −ln p of the true class, in nats | the same, with a mean instead of the sum |
//! | coverage and accuracy | share at or above a trust, and its accuracy | El-Yaniv and Wiener, JMLR 11, 2010 |
//!
//! Confidence is the probability of the predicted class. Trust also accounts for the model's familiarity with the
//! image, if available, and is the quantity that thresholds apply to.

use super::classification::{Count, Prediction};

/// Bins of the expected calibration error, as in the paper's tables.
const BINS: usize = 15;
/// Minimum number of decimals of a chosen threshold.
const MIN_DECIMALS: i32 = 2;
/// Number of digits that distinguish an `f64` from its neighbors.
const MAX_DECIMALS: i32 = 17;

/// Gap between a model's confidence and its accuracy.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Predictions by confidence; bin `i` of `n` holds those in (i / n, (i + 1) / n].
    pub bins: Vec<Bin>,
    /// Expected calibration error, from 0 to 1.
    pub ece: f64,
    /// Mean negative log-likelihood of the true classes, in nats.
    pub nll: f64,
}

/// Predictions of similar confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Correct predictions among them.
    pub count: Count,
    /// Mean confidence; 0 if there are no predictions.
    pub confidence: f64,
}

impl Calibration {
    /// Evaluates all predictions; both numbers are 0 if there are none.
    pub fn of(predictions: &[Prediction]) -> Self {
        let mut bins = [Bin::default(); BINS];
        for prediction in predictions {
            let above = (prediction.confidence * BINS as f64).ceil() as usize;
            let bin = &mut bins[above.clamp(1, BINS) - 1];
            bin.count.of += 1;
            bin.count.right += usize::from(prediction.is_right());
            bin.confidence += prediction.confidence;
        }
        for bin in &mut bins {
            bin.confidence /= bin.count.of.max(1) as f64;
        }
        let n_predictions = predictions.len().max(1) as f64;
        let gaps = bins.iter().map(|bin| {
            let gap = (bin.confidence - bin.count.share()).abs();
            bin.count.of as f64 / n_predictions * gap
        });
        Self {
            ece: gaps.sum(),
            nll: super::mean(predictions.iter().map(|prediction| prediction.nll)),
            bins: bins.into(),
        }
    }
}

/// Counts the predictions whose trust is at least `threshold`, and how many of them are correct.
pub fn sure_answers(predictions: &[Prediction], threshold: f64) -> Count {
    let sure = predictions
        .iter()
        .filter(|prediction| prediction.trust >= threshold);
    sure.map(Prediction::is_right).collect()
}

/// Returns the smallest threshold at which the accuracy of sure predictions is at least `accuracy`: 0 if all
/// predictions reach it, `None` if no threshold does.
///
/// All thresholds between two trust values split the predictions alike; among those, a short decimal is chosen.
pub fn threshold_for(predictions: &[Prediction], accuracy: f64) -> Option<f64> {
    let mut by_trust: Vec<&Prediction> = predictions.iter().collect();
    by_trust.sort_by(|a, b| b.trust.total_cmp(&a.trust));
    let mut sure = Count::default();
    let mut smallest = None;
    let mut rest = by_trust.as_slice();
    while let [first, ..] = rest {
        let n_equal = rest.partition_point(|other| other.trust >= first.trust);
        let (equal, below) = rest.split_at(n_equal);
        sure.of += n_equal;
        sure.right += equal.iter().filter(|equal| equal.is_right()).count();
        if sure.share() >= accuracy {
            smallest = Some(
                below
                    .first()
                    .map_or(0.0, |next| short_between(next.trust, first.trust)),
            );
        }
        rest = below;
    }
    smallest
}

/// Returns a decimal above `low` and at most `high`, with as few digits as possible.
fn short_between(low: f64, high: f64) -> f64 {
    let candidates = (MIN_DECIMALS..=MAX_DECIMALS).map(|n_decimals| {
        let scale = 10_f64.powi(n_decimals);
        (high * scale).floor() / scale
    });
    let mut candidates = candidates.filter(|&decimal| low < decimal && decimal <= high);
    candidates.next().unwrap_or(high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use vitscope_core::vit::Link;

    /// Reference values computed by `calibration.py` with torchmetrics, PyTorch, scikit-learn and SciPy.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/calibration.json");
    /// torchmetrics counts in float32.
    const TOLERANCE: f64 = 1e-6;

    fn prediction(confidence: f64, is_right: bool) -> Prediction {
        Prediction {
            label: 0,
            class: 0,
            named: usize::from(!is_right),
            confidence,
            trust: confidence,
            rank: usize::from(!is_right),
            nll: if is_right { -confidence.ln() } else { 3.0 },
        }
    }

    fn assert_close(found: f64, expected: &Value) {
        let expected = expected.as_f64().unwrap();
        assert!(
            (found - expected).abs() <= TOLERANCE,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn measures_equal_those_of_public_packages() {
        let cases: Value = serde_json::from_str(EXPECTED).unwrap();
        for case in cases.as_array().unwrap() {
            let logits: Vec<Vec<f32>> = serde_json::from_value(case["logits"].clone()).unwrap();
            let classes: Vec<usize> = serde_json::from_value(case["classes"].clone()).unwrap();
            let predictions: Vec<Prediction> = logits
                .iter()
                .zip(classes)
                .map(|(logits, class)| {
                    Prediction::from_logits(Link::Softmax, 0, class, logits).unwrap()
                })
                .collect();
            let found = Calibration::of(&predictions);
            assert_close(found.ece, &case["ece"]);
            assert_close(found.nll, &case["nll"]);
            for (n_first, expected) in [(1, &case["top1"]), (5, &case["top5"])] {
                let is_among = |prediction: &Prediction| prediction.rank < n_first;
                let count: Count = predictions.iter().map(is_among).collect();
                assert_close(count.share(), &expected["share"]);
                let (low, high) = count.interval();
                assert_close(low, &expected["low"]);
                assert_close(high, &expected["high"]);
            }
            for expected in case["sure"].as_array().unwrap() {
                let threshold = expected["threshold"].as_f64().unwrap();
                let sure = sure_answers(&predictions, threshold);
                assert_eq!(Some(sure.of as u64), expected["answers"].as_u64());
                assert_eq!(Some(sure.right as u64), expected["right"].as_u64());
            }
        }
    }

    /// The last bin begins at 14/15 = 0.93; two of its three predictions are right. 0.2 is alone in its bin, and wrong.
    #[test]
    fn gaps_are_weighed_by_the_answers_in_their_bin() {
        let all = [
            prediction(0.95, true),
            prediction(0.94, false),
            prediction(0.2, false),
            prediction(1.0, true),
        ];
        let found = Calibration::of(&all);
        let expected = 3.0 / 4.0 * (2.89 / 3.0 - 2.0 / 3.0) + 1.0 / 4.0 * 0.2;
        assert!((found.ece - expected).abs() < 1e-12, "{found:?}");
        assert_eq!(found.bins[14].count, Count { right: 2, of: 3 });
    }

    /// From the top: 0.9 right, 0.8 wrong, 0.7 and another 0.7 right: 1, 1/2, 3/4; then wrong.
    #[test]
    fn the_smallest_threshold_is_found_below_a_dip_and_keeps_equals_together() {
        let all = [
            prediction(0.7, true),
            prediction(0.4321, false),
            prediction(0.9, true),
            prediction(0.7, true),
            prediction(0.8, false),
        ];
        assert_eq!(threshold_for(&all, 0.75), Some(0.7));
        assert_eq!(sure_answers(&all, 0.7), Count { right: 3, of: 4 });
        assert_eq!(threshold_for(&all, 0.76), Some(0.9));
        assert_eq!(threshold_for(&all, 0.6), Some(0.0));
        assert_eq!(threshold_for(&all[1..2], 0.5), None);
        assert_eq!(threshold_for(&[], 0.5), None);
    }

    #[test]
    fn a_threshold_has_no_more_digits_than_it_needs() {
        assert_eq!(short_between(0.431_9, 0.449_99), 0.44);
        assert_eq!(short_between(0.440_1, 0.449_99), 0.449);
        assert_eq!(short_between(0.443_21, 0.443_219), 0.443_219);
        let (low, high) = (0.3, 0.3_f64.next_up());
        assert_eq!(short_between(low, high), high);
    }

    fn some_predictions() -> impl Strategy<Value = Vec<Prediction>> {
        let one = (0.0..=1.0_f64, any::<bool>());
        let one = one.prop_map(|(confidence, is_right)| prediction(confidence.max(1e-9), is_right));
        prop::collection::vec(one, 1..60)
    }

    proptest! {
        #[test]
        fn the_order_of_pictures_does_not_matter(
            (all, shuffled) in some_predictions()
                .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            accuracy in 0.0..=1.0_f64,
        ) {
            let (found, again) = (Calibration::of(&all), Calibration::of(&shuffled));
            prop_assert!((0.0..=1.0 + 1e-12).contains(&found.ece));
            prop_assert!((found.ece - again.ece).abs() < 1e-12);
            prop_assert!((found.nll - again.nll).abs() < 1e-9);
            prop_assert_eq!(threshold_for(&all, accuracy), threshold_for(&shuffled, accuracy));
        }

        /// Every threshold worth trying is one of the confidences.
        #[test]
        fn no_smaller_threshold_reaches_the_accuracy(
            all in some_predictions(),
            accuracy in 0.0..=1.0_f64,
        ) {
            let chosen = threshold_for(&all, accuracy);
            if let Some(chosen) = chosen {
                prop_assert!(sure_answers(&all, chosen).share() >= accuracy);
            }
            for prediction in &all {
                let threshold = prediction.confidence;
                if chosen.is_none_or(|chosen| threshold < chosen) {
                    prop_assert!(sure_answers(&all, threshold).share() < accuracy);
                }
            }
        }
    }
}
