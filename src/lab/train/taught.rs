//! Classification head taught by a few examples: fitted in closed form to the features of a frozen model, from scratch
//! after each example.
//!
//! Features are the inputs of the model's head: the class token, plus the mean of the patch tokens for DINOv2. Both are
//! taken after the final norm, which scales them to similar lengths. A ridge regression maps them to one target per
//! class: 1 for the example's own class, 0 for the others. With fewer examples than features, it is solved in dual
//! form, with an unpenalized bias b (Suykens and Vandewalle, 1999, for least squares as here):
//!
//! ```text
//! f(x) = Σᵢ αᵢ ⟨xᵢ, x⟩ + b        (K + λ W⁻¹) α + b 1 = Y,  1ᵀα = 0
//! ```
//!
//! K holds the inner products of the examples, W their weights. All classes have the same total weight, whatever their
//! number of examples. λ is a hundredth of the variance of the features. The leave-one-out prediction of an example, at
//! unchanged weights and λ, needs no second fit (Cawley, IJCNN 2006):
//!
//! ```text
//! f₋ᵢ(xᵢ) = yᵢ − αᵢ / Cᵢᵢ        C = M⁻¹ − M⁻¹1 1ᵀM⁻¹ / 1ᵀM⁻¹1,  M = K + λ W⁻¹
//! ```
//!
//! Logits are these predictions times a single factor: the maximum-likelihood factor for the leave-one-out predictions,
//! with targets softened as in Platt (1999). One of n examples has its own class with probability (n + 1) / (n + 2), so
//! a few examples never make the head certain.
//!
//! On frames of clips, with five neighboring frames per class, discriminant analysis with a shrunk covariance and the
//! nearest class mean were less accurate.

use candle_core::{Device, Tensor};

use super::cholesky::{dot, inverse_of_factor};
use crate::data::{Dataset, Picture, images_from_pictures, readable};
use crate::eval::classification::Count;
use vitscope_core::error::{Error, Result};
use vitscope_core::models::{HeadExamples, LinearHead, Model, Preprocessor};
use vitscope_core::vit::head;
use vitscope_core::vit::{Head, Vit, VitConfig};

/// λ as a fraction of the variance of the features. From 0.1 to 3 times this value, predictions are the same.
const RIDGE: f64 = 0.01;

/// Search range for the maximum-likelihood factor of the logits. Scores lie roughly between 0 and 1.
const FACTORS: (f64, f64) = (1.0, 100.0);

/// Maximum number of examples over all classes, for which learning takes at most a second.
pub const MOST_EXAMPLES: usize = 1000;

/// Maximum number of classes.
pub const MOST_CLASSES: usize = 64;

/// Maximum number of characters in a class name.
const MOST_LETTERS: usize = 60;

/// Returns the number of features per image that a head for this model reads.
///
/// # Errors
/// [`Error::Model`] if the model takes no linear head.
pub fn width(config: &VitConfig) -> Result<usize> {
    match config.reads {
        Head::ClassTokenAndPatchMean => Ok(2 * config.hidden_size),
        Head::ClassToken | Head::ClassAndDistillationTokens => Ok(config.hidden_size),
        Head::ImageEmbedding { .. } => Err(Error::Model(
            "CLIP classifies by class vectors and has no linear head to train".into(),
        )),
    }
}

/// Computes the features that a head reads from each image.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`, normalized
/// - result: `[batch][width]`
///
/// # Errors
/// As for [`width`], or if the images do not fit the model.
pub fn features(vit: &Vit, images: &Tensor) -> Result<Vec<Vec<f32>>> {
    let config = vit.config();
    width(config)?;
    let tokens = vit.forward(images)?.tokens;
    let read = head::features(config.reads, &tokens, config.n_special_tokens())?;
    Ok(read.to_vec2()?)
}

/// Number of images per forward pass.
const BATCH: usize = 8;

/// Taught classes and their examples.
#[derive(Clone, Debug)]
pub struct Taught {
    width: usize,
    known: HeadExamples,
    /// Inner products of each example with all examples up to and including itself.
    products: Vec<Vec<f64>>,
}

/// Result of learning from the examples.
#[derive(Clone, Debug)]
pub struct TaughtHead {
    /// Linear classifier over the classes that have at least one example, in their order.
    pub head: LinearHead,
    /// Correct leave-one-out predictions, counted over classes with at least two examples.
    pub leave_one_out: Count,
}

impl Taught {
    /// Creates an empty set of classes for features of length `width`.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            known: HeadExamples::default(),
            products: Vec::new(),
        }
    }

    /// Restores previously taught classes and examples.
    ///
    /// # Errors
    /// [`Error::Model`] if there are too many classes or examples, or if the width differs.
    pub fn from_examples(width: usize, known: HeadExamples) -> Result<Self> {
        let refused = |error| Error::Model(format!("the head cannot be taught further: {error}"));
        let mut taught = Self::new(width);
        for name in &known.classes {
            taught.add_class(name).map_err(refused)?;
        }
        for (features, class) in known.examples {
            taught.learn(features, class).map_err(refused)?;
        }
        Ok(taught)
    }

    /// Takes all readable images of `data` as examples. The images must have the model's input size.
    ///
    /// # Errors
    /// [`Error::Data`] if the images have no classes, there are too many, or a class has no readable image;
    /// [`Error::Model`] if the model takes no linear head.
    pub fn from_data(model: &Model, data: &dyn Dataset) -> Result<Self> {
        let mut taught = Self::new(width(model.vit.config())?);
        if data.classes().is_empty() {
            return Err(Error::Data(format!(
                "expected one folder of pictures per class, but {:?} has pictures without classes",
                data.name()
            )));
        }
        if data.len() > MOST_EXAMPLES {
            return Err(Error::Data(format!(
                "{:?} has {} pictures, but at most {MOST_EXAMPLES} can be taught; use `vitscope train classifier \
                 --freeze` for more",
                data.name(),
                data.len()
            )));
        }
        for class in data.classes() {
            taught.add_class(class)?;
        }
        let indices: Vec<usize> = (0..data.len()).collect();
        let device = model.vit.device();
        let Preprocessor { mean, std, .. } = model.preprocessor;
        for chunk in indices.chunks(BATCH) {
            let Ok(read) = readable(data, chunk) else {
                continue;
            };
            let (indices, pictures): (Vec<usize>, Vec<Picture>) = read.into_iter().unzip();
            let images = images_from_pictures(&pictures, mean, std, device)?;
            for (index, features) in indices.iter().zip(features(&model.vit, &images)?) {
                if let Some(class) = data.label(*index) {
                    taught.learn(features, class)?;
                }
            }
        }
        let empty = taught
            .counts()
            .into_iter()
            .find(|(_, n_examples)| *n_examples == 0);
        if let Some((name, _)) = empty {
            let unreadable = data.unreadable().join("; ");
            return Err(Error::Data(format!(
                "class {name:?} has no picture that can be read: {unreadable}"
            )));
        }
        Ok(taught)
    }

    /// Returns the classes and examples in the form in which they are stored.
    pub fn examples(&self) -> &HeadExamples {
        &self.known
    }

    /// Returns the name and number of examples of each class.
    pub fn counts(&self) -> Vec<(&str, usize)> {
        let of = |class| {
            let examples = self.known.examples.iter();
            examples.filter(|(_, its)| *its == class).count()
        };
        let names = self.known.classes.iter().enumerate();
        names
            .map(|(class, name)| (name.as_str(), of(class)))
            .collect()
    }

    /// Adds a class and returns its index.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is invalid or there are too many classes.
    pub fn add_class(&mut self, name: &str) -> Result<usize> {
        let name = self.good_name(name, None)?;
        if self.known.classes.len() >= MOST_CLASSES {
            return Err(Error::Config(format!(
                "at most {MOST_CLASSES} classes can be taught"
            )));
        }
        self.known.classes.push(name);
        Ok(self.known.classes.len() - 1)
    }

    /// Renames a class.
    ///
    /// # Errors
    /// [`Error::Config`] if the class does not exist or the name is invalid.
    pub fn rename(&mut self, class: usize, name: &str) -> Result<()> {
        self.check_class(class)?;
        self.known.classes[class] = self.good_name(name, Some(class))?;
        Ok(())
    }

    fn good_name(&self, name: &str, of: Option<usize>) -> Result<String> {
        let name = name.trim();
        let n_letters = name.chars().count();
        if n_letters == 0 || n_letters > MOST_LETTERS || name.chars().any(char::is_control) {
            return Err(Error::Config(format!(
                "class name {name:?} must have 1 to {MOST_LETTERS} characters and no control characters"
            )));
        }
        let lower = name.to_lowercase();
        let mut others = self.known.classes.iter().enumerate();
        if others.any(|(class, other)| Some(class) != of && other.to_lowercase() == lower) {
            return Err(Error::Config(format!(
                "two classes are called {name:?}; class names must differ"
            )));
        }
        Ok(name.to_owned())
    }

    fn check_class(&self, class: usize) -> Result<()> {
        let n_classes = self.known.classes.len();
        if class < n_classes {
            return Ok(());
        }
        Err(Error::Config(format!(
            "class {} does not exist, the head has {n_classes} classes",
            class + 1
        )))
    }

    /// Adds an example of a class.
    ///
    /// # Errors
    /// [`Error::Config`] if the class does not exist or there are too many examples, [`Error::Model`] if the features
    /// are not finite, [`Error::Shape`] if their number is not `width`.
    pub fn learn(&mut self, features: Vec<f32>, class: usize) -> Result<()> {
        self.check_class(class)?;
        if self.known.examples.len() >= MOST_EXAMPLES {
            return Err(Error::Config(format!(
                "at most {MOST_EXAMPLES} examples can be taught; use `vitscope train classifier --freeze` for more"
            )));
        }
        if features.len() != self.width {
            return Err(Error::Shape {
                expected: format!("[{}]", self.width),
                got: format!("[{}]", features.len()),
            });
        }
        if let Some(number) = features.iter().find(|number| !number.is_finite()) {
            return Err(Error::Model(format!(
                "the model computed {number} for an example"
            )));
        }
        self.known.examples.push((features, class));
        let (new, _) = &self.known.examples[self.known.examples.len() - 1];
        let examples = self.known.examples.iter();
        let products = examples
            .map(|(features, _)| product(features, new))
            .collect();
        self.products.push(products);
        Ok(())
    }

    /// Removes the last example and returns its class. The head learned afterwards is bit-identical to the one before
    /// that example.
    pub fn undo(&mut self) -> Option<usize> {
        self.products.pop();
        self.known.examples.pop().map(|(_, class)| class)
    }

    /// Describes what is missing before a head can be learned; `None` if nothing is.
    pub fn missing(&self) -> Option<String> {
        let counts = self.counts();
        let taught: Vec<&str> = (counts.iter())
            .filter(|(_, n_examples)| *n_examples > 0)
            .map(|(name, _)| *name)
            .collect();
        match taught.as_slice() {
            [] => Some("no class has an example yet, expected one for each of two classes".into()),
            [only] => Some(format!(
                "only {only:?} has examples, expected an example of another class"
            )),
            _ => None,
        }
    }

    /// Learns a head from all examples.
    ///
    /// # Errors
    /// [`Error::Config`] if fewer than two classes have an example; the message says what is missing.
    pub fn head(&self) -> Result<TaughtHead> {
        if let Some(missing) = self.missing() {
            return Err(Error::Config(missing));
        }
        let counts = self.counts();
        let mut rows = vec![None; counts.len()];
        let with_examples = (0..counts.len()).filter(|class| counts[*class].1 > 0);
        let mut sizes = Vec::new();
        let mut labels = Vec::new();
        for class in with_examples {
            rows[class] = Some(sizes.len());
            sizes.push(counts[class].1);
            labels.push(counts[class].0.to_owned());
        }
        let classes: Vec<usize> = (self.known.examples.iter())
            .filter_map(|(_, class)| rows[*class])
            .collect();
        let weights: Vec<f64> = (classes.iter())
            .map(|class| classes.len() as f64 / (sizes.len() * sizes[*class]) as f64)
            .collect();
        let fit = Fit::new(&self.products, &classes, &weights, self.ridge(&weights))?;
        let honest = fit.honest_scores(&classes, &sizes);
        let factor = likeliest_factor(&honest, &classes, sizes.len(), &weights);
        let leave_one_out = count(&fit.left_out, &classes, &sizes);
        Ok(TaughtHead {
            head: self.linear(&fit, factor, labels)?,
            leave_one_out,
        })
    }

    /// Returns λ: [`RIDGE`] times the weighted variance of the examples, tr(K) − 1ᵀWKW1 / n over n.
    fn ridge(&self, weights: &[f64]) -> f64 {
        let n = weights.len() as f64;
        let (mut squares, mut of_mean) = (0.0, 0.0);
        for (row, products) in self.products.iter().enumerate() {
            for (column, product) in products.iter().enumerate() {
                let twice = if row == column { 1.0 } else { 2.0 };
                of_mean += twice * weights[row] * weights[column] * product / (n * n);
            }
            squares += weights[row] * products[row] / n;
        }
        // Identical examples have no variance; any penalty works for them.
        RIDGE * (squares - of_mean).max(1e-3 * squares).max(1e-9)
    }

    /// Converts the fit to a linear classifier of the raw features, in f32.
    fn linear(&self, fit: &Fit, factor: f64, labels: Vec<String>) -> Result<LinearHead> {
        let n_classes = labels.len();
        let mut weight = Vec::with_capacity(n_classes * self.width);
        for class in 0..n_classes {
            let mut row = vec![0.0; self.width];
            for ((features, _), alphas) in self.known.examples.iter().zip(&fit.alphas) {
                for (sum, &value) in row.iter_mut().zip(features) {
                    *sum += factor * alphas[class] * f64::from(value);
                }
            }
            weight.extend(row.into_iter().map(|value| value as f32));
        }
        let bias: Vec<f32> = (fit.biases.iter())
            .map(|bias| (factor * bias) as f32)
            .collect();
        Ok(LinearHead {
            weight: Tensor::from_vec(weight, (n_classes, self.width), &Device::Cpu)?,
            bias: Tensor::from_vec(bias, n_classes, &Device::Cpu)?,
            labels,
        })
    }
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Solution of the regression.
struct Fit {
    /// `[examples][classes]`
    alphas: Vec<Vec<f64>>,
    /// `[classes]`
    biases: Vec<f64>,
    /// Scores of the examples, `[examples][classes]`.
    fitted: Vec<Vec<f64>>,
    /// Leave-one-out scores of the examples, `[examples][classes]`.
    left_out: Vec<Vec<f64>>,
}

impl Fit {
    /// `products`: lower triangle of K. `classes` and `weights`: one per example.
    fn new(products: &[Vec<f64>], classes: &[usize], weights: &[f64], ridge: f64) -> Result<Self> {
        let n = classes.len();
        let n_classes = classes.iter().max().map_or(0, |most| most + 1);
        let mut matrix: Vec<Vec<f64>> = products.to_vec();
        for (row, weight) in weights.iter().enumerate() {
            matrix[row][row] += ridge / weight;
        }
        let inverse = inverse_of_factor(matrix).ok_or_else(|| {
            Error::Model("the features of the examples are too large to learn from".into())
        })?; // L⁻¹, with M = L Lᵀ
        let solve = |ys: &[f64]| -> Vec<f64> {
            let inner: Vec<f64> = inverse.iter().map(|row| dot(row, ys)).collect();
            let mut xs = vec![0.0; n];
            for (row, value) in inverse.iter().zip(inner) {
                for (x, entry) in xs.iter_mut().zip(row) {
                    *x += entry * value;
                }
            }
            xs
        };
        let ones = solve(&vec![1.0; n]); // M⁻¹ 1
        let total: f64 = ones.iter().sum();
        let mut diagonal: Vec<f64> = ones.iter().map(|one| -one * one / total).collect(); // of C
        for row in &inverse {
            for (sum, entry) in diagonal.iter_mut().zip(row) {
                *sum += entry * entry;
            }
        }
        let mut fit = Self {
            alphas: vec![Vec::with_capacity(n_classes); n],
            biases: Vec::with_capacity(n_classes),
            fitted: vec![Vec::with_capacity(n_classes); n],
            left_out: vec![Vec::with_capacity(n_classes); n],
        };
        for class in 0..n_classes {
            let targets = classes.iter().map(|own| f64::from(u8::from(*own == class)));
            let targets: Vec<f64> = targets.collect();
            let bias = dot(&ones, &targets) / total;
            let residuals: Vec<f64> = targets.iter().map(|target| target - bias).collect();
            for (row, alpha) in solve(&residuals).into_iter().enumerate() {
                fit.alphas[row].push(alpha);
                fit.fitted[row].push(targets[row] - ridge / weights[row] * alpha);
                fit.left_out[row].push(targets[row] - alpha / diagonal[row]);
            }
            fit.biases.push(bias);
        }
        Ok(fit)
    }

    /// Returns the leave-one-out scores of each example, or its fitted scores if it is the only example of its class.
    fn honest_scores(&self, classes: &[usize], sizes: &[usize]) -> Vec<&[f64]> {
        let rows = classes.iter().enumerate();
        rows.map(|(row, class)| match sizes[*class] {
            1 => self.fitted[row].as_slice(),
            _ => self.left_out[row].as_slice(),
        })
        .collect()
    }
}

/// Returns the factor of the scores with the maximum likelihood under Platt's targets. The loss is convex in the
/// factor.
fn likeliest_factor(
    scores: &[&[f64]],
    classes: &[usize],
    n_classes: usize,
    weights: &[f64],
) -> f64 {
    let n = classes.len() as f64;
    let own = (n + 1.0) / (n + 2.0);
    let other = (1.0 - own) / (n_classes - 1) as f64;
    let slope = |factor: f64| -> f64 {
        let examples = scores.iter().zip(classes).zip(weights);
        let slopes = examples.map(|((scores, class), weight)| {
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = (scores.iter())
                .map(|score| (factor * (score - most)).exp())
                .collect();
            let total: f64 = exps.iter().sum();
            let terms = scores.iter().zip(exps).enumerate();
            let slope = terms.map(|(index, (score, exp))| {
                let target = if index == *class { own } else { other };
                (exp / total - target) * score
            });
            weight * slope.sum::<f64>()
        });
        slopes.sum()
    };
    let (mut low, mut high) = FACTORS;
    // Each step halves the interval.
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        if slope(middle) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

/// Counts correct leave-one-out predictions among examples whose class has at least two.
fn count(scores: &[Vec<f64>], classes: &[usize], sizes: &[usize]) -> Count {
    let mut count = Count::default();
    for (scores, class) in scores.iter().zip(classes) {
        if sizes[*class] < 2 {
            continue;
        }
        let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        count.of += 1;
        count.right += usize::from(best == Some(*class));
    }
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use vitscope_core::rng::Rng;

    /// Reference values computed by tests/fixtures/taught_head.py.
    #[derive(Deserialize)]
    struct Reference {
        features: Vec<Vec<f32>>,
        classes: Vec<usize>,
        left_out: Vec<Vec<f64>>,
        factor: f64,
        weight: Vec<Vec<f32>>,
        bias: Vec<f32>,
        leave_one_out: [usize; 2],
    }

    fn reference() -> Reference {
        let json = include_str!("../../../tests/fixtures/taught_head.json");
        serde_json::from_str(json).unwrap()
    }

    fn taught(n_classes: usize, examples: &[(Vec<f32>, usize)]) -> Taught {
        let mut taught = Taught::new(examples[0].0.len());
        for class in 0..n_classes {
            taught.add_class(&format!("class {class}")).unwrap();
        }
        for (features, class) in examples {
            taught.learn(features.clone(), *class).unwrap();
        }
        taught
    }

    /// Returns points scattered around one center per class.
    fn points(seed: u64, sizes: &[usize]) -> Vec<(Vec<f32>, usize)> {
        let mut rng = Rng::new(seed);
        let mut draw = || -> Vec<f32> {
            let drawn = rng.normal_tensor((1, 8), &Device::Cpu).unwrap();
            drawn.squeeze(0).unwrap().to_vec1().unwrap()
        };
        let mut points = Vec::new();
        for (class, size) in sizes.iter().enumerate() {
            let center = draw();
            for _ in 0..*size {
                let around = center.iter().zip(draw());
                let point = around.map(|(center, noise)| 3.0 * center + 0.3 * noise);
                points.push((point.collect(), class));
            }
        }
        points
    }

    fn logits(head: &LinearHead, features: &[f32]) -> Vec<f32> {
        let features = Tensor::from_slice(features, (1, features.len()), &Device::Cpu).unwrap();
        let logits = features.matmul(&head.weight.t().unwrap()).unwrap();
        let logits = logits.broadcast_add(&head.bias).unwrap();
        logits.squeeze(0).unwrap().to_vec1().unwrap()
    }

    fn answer(head: &LinearHead, features: &[f32]) -> String {
        let logits = logits(head, features);
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        head.labels[best.unwrap()].clone()
    }

    fn bits(head: &LinearHead) -> Vec<u32> {
        let all = [&head.weight.flatten_all().unwrap(), &head.bias];
        let values = all.map(|tensor| tensor.to_vec1::<f32>().unwrap());
        values.concat().into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn examples_that_are_left_out_are_answered_as_by_another_fit() {
        let reference = reference();
        let examples: Vec<_> = reference
            .features
            .into_iter()
            .zip(reference.classes.clone())
            .collect();
        let taught = taught(3, &examples);
        let weights: Vec<f64> = (reference.classes.iter())
            .map(|class| 10.0 / [3.0, 9.0, 18.0][*class])
            .collect();
        let ridge = taught.ridge(&weights);
        let fit = Fit::new(&taught.products, &reference.classes, &weights, ridge).unwrap();
        for (found, expected) in fit
            .left_out
            .concat()
            .iter()
            .zip(reference.left_out.concat())
        {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn weights_biases_and_their_factor_are_those_of_numpy() {
        let reference = reference();
        let examples: Vec<_> = (reference.features.into_iter().zip(reference.classes)).collect();
        let learned = taught(3, &examples).head().unwrap();
        // numpy searched the factor in steps of 0.001.
        let tolerance = 2e-3 / reference.factor as f32;
        let found = learned.head.weight.to_vec2::<f32>().unwrap().concat();
        let found = [found, learned.head.bias.to_vec1().unwrap()].concat();
        let expected = [reference.weight.concat(), reference.bias].concat();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.into_iter().zip(expected) {
            let near = (found - expected).abs() <= tolerance * expected.abs() + 1e-5;
            assert!(near, "{found} {expected}");
        }
        let [right, of] = reference.leave_one_out;
        assert_eq!(learned.leave_one_out, Count { right, of });
    }

    #[test]
    fn what_is_missing_is_said_and_no_head_is_made_of_one_class() {
        let mut taught = Taught::new(2);
        assert!(
            taught
                .head()
                .unwrap_err()
                .to_string()
                .contains("no class has an example")
        );
        taught.add_class("cup").unwrap();
        taught.add_class("phone").unwrap();
        taught.learn(vec![1.0, 0.0], 0).unwrap();
        let message = taught.head().unwrap_err().to_string();
        assert!(message.contains("only \"cup\" has examples"), "{message}");
        taught.learn(vec![0.0, 1.0], 1).unwrap();
        assert_eq!(taught.head().unwrap().leave_one_out, Count::default());
        assert_eq!(taught.missing(), None);
    }

    #[test]
    fn names_features_and_numbers_that_are_no_good_are_refused() {
        let mut taught = Taught::new(2);
        taught.add_class(" cup ").unwrap();
        for (name, expected) in [
            ("", "1 to 60 characters"),
            ("a\nb", "1 to 60 characters"),
            ("CUP", "two classes are called \"CUP\""),
        ] {
            let message = taught.add_class(name).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        taught.rename(0, "Cup").unwrap();
        assert_eq!(taught.counts(), [("Cup", 0)]);
        assert!(
            taught
                .rename(1, "x")
                .unwrap_err()
                .to_string()
                .contains("class 2 does not exist")
        );
        assert!(taught.learn(vec![1.0, 2.0], 1).is_err());
        assert!(taught.learn(vec![1.0], 0).is_err());
        assert!(taught.learn(vec![f32::NAN, 0.0], 0).is_err());
        assert!(taught.examples().examples.is_empty());
    }

    #[test]
    fn equal_examples_of_two_classes_get_equal_answers() {
        let same = vec![1.0; 8];
        let learned = taught(2, &[(same.clone(), 0), (same.clone(), 1)])
            .head()
            .unwrap();
        let logits = logits(&learned.head, &same);
        assert!((logits[0] - logits[1]).abs() < 1e-3, "{logits:?}");
    }

    proptest! {
        #[test]
        fn the_order_of_examples_does_not_matter(seed in 0u64..1000, turn in 1usize..8) {
            let mut examples = points(seed, &[2, 5, 3]);
            let forward = taught(3, &examples).head().unwrap();
            examples.rotate_left(turn);
            let turned = taught(3, &examples).head().unwrap();
            prop_assert_eq!(forward.leave_one_out, turned.leave_one_out);
            for (features, _) in &examples {
                let pairs = logits(&forward.head, features).into_iter().zip(logits(&turned.head, features));
                for (one, other) in pairs {
                    prop_assert!((one - other).abs() < 1e-2, "{} {}", one, other);
                }
            }
        }

        #[test]
        fn another_class_lets_none_be_forgotten(seed in 0u64..1000, many in 1usize..12) {
            let sizes = [1, many, 2, 1];
            let examples = points(seed, &sizes);
            for n_classes in 2..=sizes.len() {
                let known: Vec<_> = (examples.iter()).filter(|(_, class)| *class < n_classes).cloned().collect();
                let learned = taught(n_classes, &known).head().unwrap();
                for (features, class) in &known {
                    prop_assert_eq!(answer(&learned.head, features), format!("class {}", class));
                }
            }
        }

        #[test]
        fn an_example_that_is_taken_back_leaves_no_trace(seed in 0u64..1000, extra in 0usize..3) {
            let examples = points(seed, &[2, 3, 1]);
            let mut taught = taught(3, &examples);
            let before = taught.head().unwrap();
            taught.learn(examples[0].0.iter().map(|x| x + 1.0).collect(), extra).unwrap();
            prop_assert_ne!(bits(&taught.head().unwrap().head), bits(&before.head));
            prop_assert_eq!(taught.undo(), Some(extra));
            let after = taught.head().unwrap();
            prop_assert_eq!(bits(&after.head), bits(&before.head));
            prop_assert_eq!(after.leave_one_out, before.leave_one_out);
        }
    }
}
