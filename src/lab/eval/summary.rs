//! Statistics over many images: means with intervals, and significant differences.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Serialize;

use super::comparison::Row;
use super::statistics::{bootstrap, holm, sign_flip_p_value};
use super::suite::{Measure, Score, Statistic};
use vitscope_core::error::Result;
use vitscope_core::rng::Rng;

/// Number of bootstrap resamples per interval.
const RESAMPLES: usize = 1000;
/// Number of sign patterns per test: large enough that the smallest p value stays below the level after Holm's
/// correction, which multiplies it by the number of pairs, 496 for all methods and controls.
const PERMUTATIONS: usize = 10_000;
/// Significance level of differences.
pub const LEVEL: f64 = 0.05;

/// One measure over all rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Protocol of the measure.
    pub protocol: String,
    /// Name of the measure.
    pub measure: String,
    /// Whether a higher number means a better map; `None` if neither direction is better.
    pub higher_is_better: Option<bool>,
    /// All settings that determine the number.
    pub settings: String,
    /// Positions of the points of its curve; empty if it has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub axis: Vec<f64>,
    /// Quantity along the axis.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub axis_name: &'static str,
    /// Methods, then controls.
    pub rows: Vec<Scored>,
    /// Rows whose numbers differ, with Holm's p value of a paired sign-flip test on the images' values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<Pair>,
}

/// One measure of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// Name of the method or control.
    pub name: String,
    /// True for a control.
    pub control: bool,
    /// Number of images with a value.
    pub images: usize,
    /// The number, a mean unless stated otherwise; not finite if no image has a value.
    pub mean: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end of its 95 % interval.
    pub high: f64,
    /// Mean curve.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<f64>,
}

/// A pair of rows that differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Row with the better mean.
    pub better: String,
    /// Row with the worse mean.
    pub worse: String,
    /// Probability of such a difference between equals.
    pub p: f64,
}

impl Summary {
    /// Summarizes the `place`-th measure over all rows.
    ///
    /// # Errors
    /// [`vitscope_core::Error::Data`] if a score is not finite.
    pub fn new(place: usize, measure: &Measure, rows: &[Row], seed: u64) -> Result<Self> {
        let seed = seed.wrapping_add((place as u64) << 32);
        let scored = rows.par_iter().enumerate().map(|(idx, row)| {
            let mut rng = Rng::for_item(seed, idx as u64);
            scored(place, measure, row, &mut rng)
        });
        let scored = scored.collect::<Result<Vec<_>>>()?;
        let pairs = match (measure.higher_is_better, measure.statistic) {
            (Some(higher), Statistic::Mean) => pairs(place, higher, rows, &scored, seed)?,
            _ => Vec::new(),
        };
        Ok(Self {
            protocol: measure.protocol.clone(),
            measure: measure.name.clone(),
            higher_is_better: measure.higher_is_better,
            settings: measure.settings.clone(),
            axis: measure.axis.clone(),
            axis_name: measure.axis_name,
            rows: scored,
            pairs,
        })
    }

    /// Returns true if a row is significantly better than each control.
    pub fn beats_controls(&self, row: &Scored) -> bool {
        let mut controls = self.rows.iter().filter(|row| row.control).peekable();
        let beats = |control: &Scored| {
            self.pairs
                .iter()
                .any(|pair| pair.better == row.name && pair.worse == control.name && pair.p < LEVEL)
        };
        !row.control && controls.peek().is_some() && controls.all(beats)
    }
}

fn scored(place: usize, measure: &Measure, row: &Row, rng: &mut Rng) -> Result<Scored> {
    let valued: Vec<&Score> = row.of_measure(place).map(|(_, score)| score).collect();
    let statistic = measure.statistic;
    let (mean, [low, high]) = match statistic.of(valued.iter().copied()) {
        None => (f64::NAN, [f64::NAN; 2]),
        Some(mean) => {
            let ends = bootstrap(valued.len(), RESAMPLES, &mut |n| rng.below(n), |drawn| {
                let drawn = drawn.iter().map(|&idx| valued[idx]);
                statistic.of(drawn).unwrap_or(mean)
            })?;
            (mean, ends)
        }
    };
    Ok(Scored {
        name: row.name.clone(),
        control: row.is_control,
        images: valued.len(),
        mean,
        low,
        high,
        points: match measure.axis.is_empty() {
            true => Vec::new(),
            false => mean_curve(&valued),
        },
    })
}

fn mean_curve(scores: &[&Score]) -> Vec<f64> {
    let n_points = scores.first().map_or(0, |score| score.points.len());
    let of_point = |point: usize| {
        let values = scores.iter().filter_map(|score| score.points.get(point));
        values.map(|value| f64::from(*value)).sum::<f64>() / scores.len() as f64
    };
    (0..n_points).map(of_point).collect()
}

/// Tests all pairs of rows, on the images where both have a value.
fn pairs(
    place: usize,
    higher_is_better: bool,
    rows: &[Row],
    scored: &[Scored],
    seed: u64,
) -> Result<Vec<Pair>> {
    let values: Vec<HashMap<usize, f64>> = rows
        .iter()
        .map(|row| {
            let scores = row.of_measure(place);
            let valued = scores.filter_map(|(picture, score)| Some((picture, score.value?)));
            valued.collect()
        })
        .collect();
    let mut asked = Vec::new();
    for first in 0..rows.len() {
        asked.extend((first + 1..rows.len()).map(|second| (first, second)));
    }
    let tested = asked.into_par_iter().map(|(first, second)| {
        let both = rows[first].of_measure(place).filter_map(|(picture, _)| {
            Some((values[first].get(&picture)?, values[second].get(&picture)?))
        });
        let (a, b): (Vec<f64>, Vec<f64>) = both.unzip();
        if a.is_empty() {
            return Ok(None);
        }
        let mut rng = Rng::for_item(seed, (1 + first * rows.len() + second) as u64);
        let p = sign_flip_p_value(&a, &b, PERMUTATIONS, &mut |n| rng.below(n))?;
        let first_wins = (scored[first].mean > scored[second].mean) == higher_is_better;
        let (better, worse) = match first_wins {
            true => (first, second),
            false => (second, first),
        };
        Ok(Some((better, worse, p)))
    });
    let tested = tested.collect::<Result<Vec<_>>>()?;
    let tested: Vec<_> = tested.into_iter().flatten().collect();
    let p_values: Vec<f64> = tested.iter().map(|(_, _, p)| *p).collect();
    let adjusted = holm(&p_values)?;
    let pairs = tested.into_iter().zip(adjusted);
    Ok(pairs
        .map(|((better, worse, _), p)| Pair {
            better: rows[better].name.clone(),
            worse: rows[worse].name.clone(),
            p,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(statistic: Statistic) -> Measure {
        Measure {
            protocol: "made up".into(),
            name: "error".into(),
            higher_is_better: Some(false),
            settings: String::new(),
            axis: vec![0.0, 1.0],
            axis_name: "share",
            statistic,
        }
    }

    fn row(name: &str, is_control: bool, shift: f64) -> Row {
        let score = |picture: usize| Score {
            value: Some(shift + (picture % 7) as f64 / 10.0),
            points: vec![0.0, picture as f32],
        };
        Row {
            name: name.into(),
            is_control,
            scores: (0..40)
                .map(|picture| (picture, vec![score(picture)]))
                .collect(),
        }
    }

    #[test]
    fn what_is_better_on_every_picture_beats_the_controls_and_what_is_not_does_not() {
        // As many rows as make as many pairs as there ever are.
        let mut rows = vec![row("good", false, -0.5), row("no better", false, 0.0)];
        rows.extend(
            (0..26).map(|nth| row(&format!("method {nth}"), false, f64::from(nth) / 100.0)),
        );
        rows.extend((0..4).map(|nth| row(&format!("control {nth}"), true, 0.0)));
        let summary = Summary::new(0, &measure(Statistic::Mean), &rows, 0).unwrap();
        assert!(summary.beats_controls(&summary.rows[0]));
        assert!(!summary.beats_controls(&summary.rows[1]));
        assert!(!summary.beats_controls(&summary.rows[30]), "a control");
        let Scored {
            mean, low, high, ..
        } = summary.rows[0];
        assert!(low < mean && mean < high);
        assert_eq!(summary.rows[0].points, [0.0, 19.5]);
    }

    #[test]
    fn pictures_without_a_value_are_left_out_of_means_and_pairs() {
        let mut half = row("half", false, -1.0);
        for (_, scores) in half.scores.iter_mut().skip(20) {
            scores[0] = Score::from(None);
        }
        let mut none = row("none", true, 0.0);
        for (_, scores) in &mut none.scores {
            scores[0] = Score::from(None);
        }
        let rows = [half, row("all", false, 0.0), none];
        let summary = Summary::new(0, &measure(Statistic::Mean), &rows, 0).unwrap();
        let images: Vec<usize> = summary.rows.iter().map(|row| row.images).collect();
        assert_eq!(images, [20, 40, 0]);
        assert!(summary.rows[2].mean.is_nan());
        assert_eq!(summary.pairs.len(), 1);
        assert_eq!(summary.pairs[0].better, "half");
    }

    #[test]
    fn the_same_seed_gives_the_same_summary_and_quantiles_have_no_pairs() {
        let rows = [row("a", false, 0.0), row("b", true, 0.1)];
        let summary = |seed| Summary::new(0, &measure(Statistic::Mean), &rows, seed).unwrap();
        assert_eq!(summary(1), summary(1));
        assert_ne!(summary(1), summary(2));
        let summary = Summary::new(0, &measure(Statistic::Quantile(0.5)), &rows, 0).unwrap();
        assert!(summary.pairs.is_empty());
        assert!((summary.rows[0].mean - 0.3).abs() < 1e-9);
    }
}
