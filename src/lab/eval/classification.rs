//! Accuracy of a classifier and its uncertainty.

use candle_core::Tensor;

use crate::data::{Dataset, Picture, images_from_pictures};
use vitscope_core::error::{Error, Result};
use vitscope_core::models::Model;
use vitscope_core::vit::{Link, Output, Vit};

/// Number of standard deviations around the mean that contain 95 % of a normal distribution.
const Z95: f64 = 1.959_963_984_540_054;

/// Counted predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of correct predictions.
    pub right: usize,
    /// Total number of predictions.
    pub of: usize,
}

impl Count {
    /// Share of correct predictions; 0 if there are no predictions.
    pub fn share(self) -> f64 {
        self.right as f64 / self.of.max(1) as f64
    }

    /// 95 % confidence interval of the share (Wilson, 1927).
    pub fn interval(self) -> (f64, f64) {
        let (n, p, z2) = (self.of.max(1) as f64, self.share(), Z95 * Z95);
        let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        (center - half, center + half)
    }
}

impl FromIterator<bool> for Count {
    /// Counts the true values as correct.
    fn from_iter<T: IntoIterator<Item = bool>>(answers: T) -> Self {
        let mut count = Self::default();
        for is_right in answers {
            count.of += 1;
            count.right += usize::from(is_right);
        }
        count
    }
}

/// A model's prediction for an image with a known class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Class of the image, as an index into the classes of the data.
    pub label: usize,
    /// The same class, as an index into the classes of the model.
    pub class: usize,
    /// Class that the model predicts, the first one among equal logits.
    pub named: usize,
    /// Probability of the predicted class.
    pub confidence: f64,
    /// Trust in the prediction: based on the model's familiarity with the image if available, else the probability.
    pub trust: f64,
    /// Rank of the image's class by logit: 0 if it is the predicted class.
    pub rank: usize,
    /// Negative log-likelihood of the image's class, in nats.
    pub nll: f64,
}

impl Prediction {
    /// Evaluates the logits of one image, `[classes]`, which `link` converts to probabilities.
    ///
    /// # Errors
    /// [`Error::Data`] if `class` is out of range or a logit is not finite.
    pub fn from_logits(link: Link, label: usize, class: usize, logits: &[f32]) -> Result<Self> {
        let Some(&own) = logits.get(class) else {
            return Err(Error::Data(format!(
                "the model has {} classes and none at index {class}",
                logits.len()
            )));
        };
        if let Some(logit) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Error::Data(format!("a logit of the model is {logit}")));
        }
        let named = greatest(logits);
        let log_probability = |class| link.log_probability(logits, class).unwrap_or_default();
        let is_before =
            |(index, &logit): (usize, &f32)| logit > own || (logit == own && index < class);
        Ok(Self {
            label,
            class,
            named,
            confidence: log_probability(named).exp(),
            trust: log_probability(named).exp(),
            rank: logits
                .iter()
                .enumerate()
                .filter(|&at| is_before(at))
                .count(),
            nll: -log_probability(class),
        })
    }

    /// Returns true if the model predicts the image's class.
    pub fn is_right(&self) -> bool {
        self.named == self.class
    }
}

/// Returns the model's predictions for all images whose class it knows, skipping unreadable images.
///
/// `classes` maps each class of the data to a class of the model; `on_picture` receives the number of processed images.
///
/// # Errors
/// Fails if the images do not fit the model, the model has no classifier, or no image can be read.
pub fn predictions(
    model: &Model,
    data: &dyn Dataset,
    classes: &[Option<usize>],
    batch: usize,
    on_picture: &mut dyn FnMut(usize),
) -> Result<Vec<Prediction>> {
    let mut predictions = Vec::new();
    let on_answer = &mut |prediction, _: &[f32]| {
        predictions.push(prediction);
        on_picture(predictions.len());
        Ok(())
    };
    for_each_prediction(model, data, classes, batch, on_answer)?;
    Ok(predictions)
}

/// Like [`predictions`], but also passes the class token, `[features]`, to `each`.
pub(crate) fn for_each_prediction(
    model: &Model,
    data: &dyn Dataset,
    classes: &[Option<usize>],
    batch: usize,
    each: &mut dyn FnMut(Prediction, &[f32]) -> Result<()>,
) -> Result<()> {
    let known = |index: usize| {
        let label = data.label(index)?;
        Some((label, (*classes.get(label)?)?))
    };
    let indices: Vec<usize> = (0..data.len())
        .filter(|&index| known(index).is_some())
        .collect();
    let link = model.vit.config().link();
    let normalization = (model.preprocessor.mean, model.preprocessor.std);
    let mut predict = |index: usize, answer: Answer<'_>| {
        let Some((label, class)) = known(index) else {
            return Ok(());
        };
        let Answer {
            logits,
            class_token,
        } = answer;
        let mut prediction = Prediction::from_logits(link, label, class, logits)?;
        if let Some(familiarity) = &model.familiarity {
            let class_token = Tensor::new(class_token, model.vit.device())?;
            let named = [(prediction.named, prediction.confidence as f32)];
            let trust = familiarity.trust(&class_token.unsqueeze(0)?, &named)?;
            prediction.trust = trust.first().map_or(0.0, |&trust| f64::from(trust));
        }
        each(prediction, class_token)
    };
    for_each_answer(
        &model.vit,
        data,
        &indices,
        normalization,
        batch,
        &mut predict,
    )
}

/// Counts correct predictions by class of the data.
///
/// `classes` maps each class of the data to a class of the model; images without a label are skipped.
///
/// # Errors
/// Fails if the images do not fit the model, or the model has no classifier.
pub fn count_by_class(
    vit: &Vit,
    data: &dyn Dataset,
    classes: &[usize],
    normalization: ([f32; 3], [f32; 3]),
    batch: usize,
) -> Result<Vec<Count>> {
    let mut counts = vec![Count::default(); classes.len()];
    for (index, answer) in answers(vit, data, normalization, batch)? {
        let label = data.label(index);
        let of_label = label.and_then(|label| Some((counts.get_mut(label)?, classes[label])));
        if let Some((count, class)) = of_label {
            count.of += 1;
            count.right += usize::from(class == answer);
        }
    }
    Ok(counts)
}

/// Returns the predicted class of each readable image, with the image's index.
pub(super) fn answers(
    vit: &Vit,
    data: &dyn Dataset,
    normalization: ([f32; 3], [f32; 3]),
    batch: usize,
) -> Result<Vec<(usize, usize)>> {
    let indices: Vec<usize> = (0..data.len()).collect();
    let mut answers = Vec::with_capacity(indices.len());
    let mut answer = |index: usize, answer: Answer<'_>| {
        answers.push((index, greatest(answer.logits)));
        Ok(())
    };
    for_each_answer(vit, data, &indices, normalization, batch, &mut answer)?;
    Ok(answers)
}

/// A model's output for one image.
#[derive(Clone, Copy)]
struct Answer<'a> {
    /// `[classes]`
    logits: &'a [f32],
    /// `[features]`, after the final norm.
    class_token: &'a [f32],
}

/// Runs the model on the images at `indices`; `each` receives the index and the output of each readable image.
///
/// # Errors
/// Any error of `each`, an error if the images do not fit the model, or the first failure if no image can be read.
fn for_each_answer(
    vit: &Vit,
    data: &dyn Dataset,
    indices: &[usize],
    (mean, std): ([f32; 3], [f32; 3]),
    batch: usize,
    each: &mut dyn FnMut(usize, Answer<'_>) -> Result<()>,
) -> Result<()> {
    let device = vit.device();
    let (mut n_read, mut failure) = (0, None);
    for chunk in indices.chunks(batch.max(1)) {
        let mut read: Vec<usize> = Vec::with_capacity(chunk.len());
        let mut pictures: Vec<Picture> = Vec::with_capacity(chunk.len());
        for &index in chunk {
            match data.picture(index) {
                Ok(picture) => {
                    read.push(index);
                    pictures.push(picture);
                }
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        if pictures.is_empty() {
            continue;
        }
        n_read += pictures.len();
        let images = images_from_pictures(&pictures, mean, std, device)?;
        let Output { tokens, logits } = vit.forward(&images)?;
        let logits: Vec<Vec<f32>> = super::logits(logits)?.to_vec2()?;
        let class_tokens: Vec<Vec<f32>> = tokens.narrow(1, 0, 1)?.squeeze(1)?.to_vec2()?;
        for (index, (logits, class_token)) in read.into_iter().zip(logits.iter().zip(&class_tokens))
        {
            let answer = Answer {
                logits,
                class_token,
            };
            each(index, answer)?;
        }
    }
    match failure {
        Some(error) if n_read == 0 => Err(error),
        _ => Ok(()),
    }
}

/// Returns the index of the greatest value, the first one among ties; 0 if there is none.
fn greatest(values: &[f32]) -> usize {
    let mut greatest = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[greatest] {
            greatest = index;
        }
    }
    greatest
}

/// Sums the counts of all classes.
pub fn total(counts: &[Count]) -> Count {
    counts.iter().fold(Count::default(), |sum, count| Count {
        right: sum.right + count.right,
        of: sum.of + count.of,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values from scipy's `binomtest(right, of).proportion_ci(method="wilson")`.
    #[test]
    fn intervals_are_those_of_wilson() {
        let check = |right, of, expected: (f64, f64)| {
            let (low, high) = Count { right, of }.interval();
            let near = (low - expected.0).abs() < 1e-4 && (high - expected.1).abs() < 1e-4;
            assert!(near, "{right} of {of}: {low} to {high}");
        };
        check(8620, 10_000, (0.855_11, 0.868_62));
        check(10, 10, (0.722_47, 1.0));
        check(0, 20, (0.0, 0.161_13));
    }

    /// Softmax of the logarithms of 1, 2, 4 and 1: 1/8, 1/4, 1/2 and 1/8.
    #[test]
    fn a_prediction_has_the_softmax_of_its_logits() {
        let logits = [1.0_f32, 2.0, 4.0, 1.0].map(f32::ln);
        let found = |class| Prediction::from_logits(Link::Softmax, 7, class, &logits).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        for (class, rank, share) in [(2, 0, 0.5), (1, 1, 0.25), (0, 2, 0.125), (3, 3, 0.125)] {
            let found = found(class);
            assert_eq!((found.label, found.named, found.rank), (7, 2, rank));
            assert_eq!(found.is_right(), class == 2);
            assert!(near(found.confidence, 0.5) && near(found.nll, -f64::ln(share)));
        }
    }

    #[test]
    fn a_prediction_bears_great_logits_and_refuses_broken_ones() {
        let found = Prediction::from_logits(Link::Softmax, 0, 1, &[3e38, -3e38]).unwrap();
        assert_eq!((found.confidence, found.rank), (1.0, 1));
        assert!(found.nll > 1e38 && found.nll.is_finite());
        assert!(Prediction::from_logits(Link::Softmax, 0, 0, &[0.0, f32::NAN]).is_err());
        assert!(Prediction::from_logits(Link::Softmax, 0, 2, &[0.0, 1.0]).is_err());
    }
}
