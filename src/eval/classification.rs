//! How often a classifier is right, and how sure that is.

use candle_core::D;

use crate::data::{Dataset, images_from_pictures, readable};
use crate::error::{Error, Result};
use crate::vit::Vit;

/// Standard deviations of a normal distribution within which 95 % of it lie.
const Z95: f64 = 1.96;

/// Answers that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Right ones.
    pub right: usize,
    /// All of them.
    pub of: usize,
}

impl Count {
    /// Share of right answers; 0 where there are none at all.
    pub fn share(self) -> f64 {
        self.right as f64 / self.of.max(1) as f64
    }

    /// The 95 % interval of the share (Wilson, 1927).
    pub fn interval(self) -> (f64, f64) {
        let (n, p, z2) = (self.of.max(1) as f64, self.share(), Z95 * Z95);
        let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        (center - half, center + half)
    }
}

/// For each class of the data the class of the model that has its name.
///
/// # Errors
/// [`Error::Data`] naming the first class that the model does not know.
pub fn classes_by_name(labels: &[String], classes: &[String]) -> Result<Vec<usize>> {
    classes
        .iter()
        .map(|class| {
            let same = |label: &String| label.eq_ignore_ascii_case(class);
            labels.iter().position(same).ok_or_else(|| {
                Error::Data(format!(
                    "the model has no class {class:?}, which the data have"
                ))
            })
        })
        .collect()
}

/// Right answers by class of the data.
///
/// `classes` says which of the model's classes each class of the data is; pictures without a label are passed over.
///
/// # Errors
/// Fails where pictures do not fit the model, or it has no classifier.
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

/// The class that the model names for each picture that can be read, by the picture's index.
pub(super) fn answers(
    vit: &Vit,
    data: &dyn Dataset,
    (mean, std): ([f32; 3], [f32; 3]),
    batch: usize,
) -> Result<Vec<(usize, usize)>> {
    let indices: Vec<usize> = (0..data.len()).collect();
    let mut answers = Vec::with_capacity(indices.len());
    for chunk in indices.chunks(batch.max(1)) {
        let (chunk, pictures): (Vec<usize>, Vec<_>) = readable(data, chunk)?.into_iter().unzip();
        let device = vit.class_token().device();
        let images = images_from_pictures(&pictures, mean, std, device)?;
        let logits = super::logits(vit.forward(&images)?.logits)?;
        let named: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        answers.extend(
            chunk
                .into_iter()
                .zip(named.into_iter().map(|class| class as usize)),
        );
    }
    Ok(answers)
}

/// Right answers of all classes.
pub fn total(counts: &[Count]) -> Count {
    counts.iter().fold(Count::default(), |sum, count| Count {
        right: sum.right + count.right,
        of: sum.of + count.of,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of scipy's `binomtest(right, of).proportion_ci(method="wilson")`.
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

    #[test]
    fn classes_meet_by_name_whatever_their_order() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let labels = names(&["Dog", "cat", "owl"]);
        assert_eq!(
            classes_by_name(&labels, &names(&["cat", "dog"])).unwrap(),
            [1, 0]
        );
        let message = classes_by_name(&labels, &names(&["cat", "emu"])).unwrap_err();
        assert!(message.to_string().contains("\"emu\""));
    }
}
