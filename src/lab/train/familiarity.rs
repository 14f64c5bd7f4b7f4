//! Fits a model's familiarity with images, so that it can answer "not sure" for images unlike its training data.
//!
//! See [`Familiarity`] for the fitted quantities and their sources. One pass over images like the training data yields
//! the mean of each class and the covariance within classes. One pass over held-out images yields the logistic
//! regression of correct predictions, and the lowest trust at which predictions reach the requested accuracy.

use candle_core::{Device, Tensor};

use super::cholesky::{dot, inverse_of_factor};
use crate::data::Dataset;
use crate::eval::calibration::threshold_for;
use crate::eval::classification::{Prediction, for_each_prediction};
use vitscope_core::error::{Error, Result};
use vitscope_core::models::familiarity::logit;
use vitscope_core::models::{Familiarity, Model};

/// Amount added to each variance, as a fraction of the mean variance.
const SHRINKAGE: f64 = 1e-3;
/// Weight of the squared coefficients relative to the mean loss, so that a finite best fit exists even if all
/// predictions are correct.
const RIDGE: f64 = 1e-4;
/// Maximum number of Newton steps. The loss is convex, and fewer than ten suffice if there is anything to learn.
const NEWTON_STEPS: usize = 50;

/// Images with known classes.
#[derive(Clone, Copy)]
pub struct Labeled<'a> {
    /// The images.
    pub data: &'a dyn Dataset,
    /// Class of the model for each class of the data.
    pub classes: &'a [Option<usize>],
}

/// Fitted familiarity, and the held-out predictions that it was fitted to.
#[derive(Debug)]
pub struct Fitted {
    /// Fitted familiarity of the model.
    pub familiarity: Familiarity,
    /// Number of images that describe the classes.
    pub n_learned: usize,
    /// Held-out predictions with their trust.
    pub held: Vec<Prediction>,
}

/// Fits the familiarity of `model`.
///
/// - `learned`: images like the model's training data
/// - `held`: other images, to measure its predictions on
/// - `sure_accuracy`: required accuracy among predictions that count as sure
/// - `on_picture`: receives the number of processed images
///
/// # Errors
/// [`Error::Data`] if no image has a class that the model knows, or if no held-out prediction is sure enough; also
/// fails if the images do not fit the model.
pub fn fit(
    model: &Model,
    learned: Labeled<'_>,
    held: Labeled<'_>,
    sure_accuracy: f64,
    batch: usize,
    on_picture: &mut dyn FnMut(usize),
) -> Result<Fitted> {
    let dim = model.vit.config().hidden_size;
    let n_classes = model.labels().len();
    let mut classes = Classes::new(n_classes, dim);
    let of_learned = &mut |prediction: Prediction, token: &[f32]| {
        classes.add(prediction.class, token);
        on_picture(classes.n_pictures);
        Ok(())
    };
    for_each_prediction(model, learned.data, learned.classes, batch, of_learned)?;
    let n_learned = classes.n_pictures;
    let (whitening, means) = classes.whitened()?;

    let mut answers: Vec<(Prediction, Vec<f32>)> = Vec::new();
    let of_held = &mut |prediction: Prediction, token: &[f32]| {
        answers.push((prediction, token.to_vec()));
        on_picture(n_learned + answers.len());
        Ok(())
    };
    for_each_prediction(model, held.data, held.classes, batch, of_held)?;
    if answers.is_empty() {
        return Err(Error::Data(format!(
            "no held-out picture belongs to a class that the model knows: {:?}",
            held.data.name()
        )));
    }
    let tokens: Vec<f32> = answers
        .iter()
        .flat_map(|(_, token)| token.iter().copied())
        .collect();
    let tokens = Tensor::from_vec(tokens, (answers.len(), dim), &Device::Cpu)?;
    let mut held: Vec<Prediction> = answers
        .into_iter()
        .map(|(prediction, _)| prediction)
        .collect();
    let named: Vec<usize> = held.iter().map(|prediction| prediction.named).collect();
    let unfitted = Familiarity::new(whitening.clone(), means.clone(), [0.0; 3], 0.0);
    let distances = unfitted.distances(&tokens, &named)?;
    let rows = held.iter().zip(&distances);
    let rows: Vec<[f64; 3]> = rows
        .map(|(prediction, &distance)| [logit(prediction.confidence), f64::from(distance), 1.0])
        .collect();
    let right: Vec<bool> = held.iter().map(Prediction::is_right).collect();
    let coefficients = logistic(&rows, &right)?;
    let mut familiarity = Familiarity::new(whitening, means, coefficients, 0.0);
    for (prediction, &distance) in held.iter_mut().zip(&distances) {
        prediction.trust = familiarity.trust_at(prediction.confidence, f64::from(distance));
    }
    let Some(sure_from) = threshold_for(&held, sure_accuracy) else {
        return Err(Error::Data(format!(
            "no confidence threshold reaches an accuracy of {sure_accuracy} on the {} held-out pictures",
            held.len()
        )));
    };
    familiarity.sure_from = sure_from as f32;
    Ok(Fitted {
        familiarity,
        n_learned,
        held,
    })
}

/// Sums over the class tokens of images.
struct Classes {
    n_pictures: usize,
    counts: Vec<usize>,
    /// `[classes][features]`
    sums: Vec<Vec<f64>>,
    /// Lower triangle of Σ f fᵀ.
    products: Vec<Vec<f64>>,
}

impl Classes {
    fn new(n_classes: usize, dim: usize) -> Self {
        Self {
            n_pictures: 0,
            counts: vec![0; n_classes],
            sums: vec![vec![0.0; dim]; n_classes],
            products: (1..=dim).map(|length| vec![0.0; length]).collect(),
        }
    }

    fn add(&mut self, class: usize, token: &[f32]) {
        self.n_pictures += 1;
        self.counts[class] += 1;
        let token: Vec<f64> = token.iter().copied().map(f64::from).collect();
        for (sum, value) in self.sums[class].iter_mut().zip(&token) {
            *sum += value;
        }
        for (row, value) in self.products.iter_mut().zip(&token) {
            for (entry, other) in row.iter_mut().zip(&token) {
                *entry += value * other;
            }
        }
    }

    /// Returns L⁻ᵀ, `[features, features]`, and the class means times L⁻¹, `[classes, features]`; a class without
    /// images gets the overall mean.
    fn whitened(self) -> Result<(Tensor, Tensor)> {
        let Self {
            n_pictures,
            counts,
            sums,
            products: mut covariance,
        } = self;
        if n_pictures == 0 {
            return Err(Error::Data(
                "no training picture belongs to a class that the model knows".into(),
            ));
        }
        let dim = covariance.len();
        let mean_of = |sum: &[f64], count: usize| -> Vec<f64> {
            sum.iter().map(|sum| sum / count.max(1) as f64).collect()
        };
        let mut total = vec![0.0; dim];
        for sum in &sums {
            for (total, sum) in total.iter_mut().zip(sum) {
                *total += sum;
            }
        }
        let means: Vec<Vec<f64>> = (sums.iter().zip(&counts))
            .map(|(sum, &count)| match count {
                0 => mean_of(&total, n_pictures),
                _ => mean_of(sum, count),
            })
            .collect();
        // Σ = (Σ f fᵀ − Σ_c n_c μ_c μ_cᵀ) / n
        for (mean, &count) in means.iter().zip(&counts).filter(|(_, count)| **count > 0) {
            for (row, value) in covariance.iter_mut().zip(mean) {
                for (entry, other) in row.iter_mut().zip(mean) {
                    *entry -= count as f64 * value * other;
                }
            }
        }
        let variances = covariance.iter().filter_map(|row| row.last());
        let shrinkage = SHRINKAGE * variances.sum::<f64>() / dim as f64 + f64::from(f32::EPSILON);
        for row in &mut covariance {
            if let Some(variance) = row.last_mut() {
                *variance += shrinkage;
            }
            for entry in row {
                *entry /= n_pictures as f64;
            }
        }
        let inverse = inverse_of_factor(covariance).ok_or_else(|| {
            Error::Model("the features of the pictures are too large to compare".into())
        })?;
        let whitened: Vec<f32> = means
            .iter()
            .flat_map(|mean| inverse.iter().map(|row| dot(row, mean) as f32))
            .collect();
        let mut whitening = vec![0f32; dim * dim];
        for (column, row) in inverse.iter().enumerate() {
            for (feature, value) in row.iter().enumerate() {
                whitening[feature * dim + column] = *value as f32;
            }
        }
        Ok((
            Tensor::from_vec(whitening, (dim, dim), &Device::Cpu)?,
            Tensor::from_vec(whitened, (means.len(), dim), &Device::Cpu)?,
        ))
    }
}

/// Fits the coefficients of a logistic regression by Newton's method: correct predictions on rows of numbers.
fn logistic(rows: &[[f64; 3]], right: &[bool]) -> Result<[f64; 3]> {
    let n = rows.len() as f64;
    let mut coefficients = [0.0; 3];
    for _ in 0..NEWTON_STEPS {
        let mut gradient = coefficients.map(|value| 2.0 * RIDGE * value);
        let mut curvature = vec![vec![0.0; 1], vec![0.0; 2], vec![0.0; 3]];
        for (i, row) in curvature.iter_mut().enumerate() {
            row[i] = 2.0 * RIDGE;
        }
        for (row, &is_right) in rows.iter().zip(right) {
            let p = 1.0 / (1.0 + (-dot(row, &coefficients)).exp());
            let error = p - f64::from(u8::from(is_right));
            for i in 0..3 {
                gradient[i] += error * row[i] / n;
                for j in 0..=i {
                    curvature[i][j] += p * (1.0 - p) * row[i] * row[j] / n;
                }
            }
        }
        let inverse = inverse_of_factor(curvature).ok_or_else(|| {
            Error::Model("the predictions on the held-out pictures are too extreme to fit".into())
        })?;
        // H⁻¹ g = L⁻ᵀ (L⁻¹ g)
        let inner: Vec<f64> = inverse.iter().map(|row| dot(row, &gradient)).collect();
        let step: Vec<f64> = (0..3)
            .map(|i| {
                let rows = inverse.iter().zip(&inner);
                rows.map(|(row, inner)| row.get(i).map_or(0.0, |entry| entry * inner))
                    .sum()
            })
            .collect();
        for (value, step) in coefficients.iter_mut().zip(&step) {
            *value -= step;
        }
        if step.iter().all(|step| step.abs() < 1e-9) {
            break;
        }
    }
    Ok(coefficients)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Reference values computed by `familiarity.py` with SciPy and scikit-learn.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/familiarity.json");

    #[derive(Deserialize)]
    struct Expected {
        n_classes: usize,
        learned: Vec<Vec<f32>>,
        classes: Vec<usize>,
        held: Vec<Vec<f32>>,
        named: Vec<usize>,
        distances: Vec<f64>,
        rows: Vec<[f64; 3]>,
        right: Vec<bool>,
        coefficients: [f64; 3],
    }

    #[test]
    fn distances_equal_those_of_scipy() {
        let expected: Expected = serde_json::from_str(EXPECTED).unwrap();
        let mut classes = Classes::new(expected.n_classes, expected.learned[0].len());
        for (token, &class) in expected.learned.iter().zip(&expected.classes) {
            classes.add(class, token);
        }
        let (whitening, means) = classes.whitened().unwrap();
        let familiarity = Familiarity::new(whitening, means, [0.0; 3], 0.0);
        let held = Tensor::new(expected.held, &Device::Cpu).unwrap();
        let distances = familiarity.distances(&held, &expected.named).unwrap();
        for (found, expected) in distances.iter().zip(&expected.distances) {
            let gap = (f64::from(*found) - expected).abs();
            assert!(gap < 1e-4 * expected, "{found} is not {expected}");
        }
    }

    #[test]
    fn coefficients_equal_those_of_scikit_learn() {
        let expected: Expected = serde_json::from_str(EXPECTED).unwrap();
        let found = logistic(&expected.rows, &expected.right).unwrap();
        for (found, expected) in found.iter().zip(expected.coefficients) {
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
    }

    #[test]
    fn answers_that_are_all_right_have_a_finite_fit() {
        let rows = [[2.0, 1.0, 1.0], [4.0, 0.5, 1.0], [1.0, 2.0, 1.0]];
        let found = logistic(&rows, &[true; 3]).unwrap();
        assert!(found.iter().all(|value| value.is_finite()), "{found:?}");
        assert!(dot(&rows[0], &found) > 0.0, "{found:?}");
    }
}
