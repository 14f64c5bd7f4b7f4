//! Suites: each scores the maps of a method, image by image, with a group of related measures.
//!
//! | suite | question |
//! |---|---|
//! | [`Perturbation`](super::perturbation::Perturbation) | how fast the class vanishes or appears in the map's order |
//! | [`Road`] | the same, with hidden pixels imputed from their surroundings |
//! | [`SoftMask`] | what remains if the map masks the patches |
//! | [`Saco`] | whether groups of pixels matter as much as their salience claims |
//! | [`Sufficiency`] | what the top-ranked patches contribute alone, and what remains without them |
//! | [`Pointing`], [`Segmenting`] | whether the map lies on the object |
//! | [`Sensitivity`] | how much the map changes if the image barely does |
//! | [`Sanity`] | whether the map depends on the model, and on the class |
//! | [`Sparseness`] | how concise the map is |
//! | [`Latency`] | what a map costs in time and memory |

mod latency;
mod pointing;
mod road;
mod saco;
mod sanity;
mod segmenting;
mod sensitivity;
mod soft_mask;
mod sparseness;
mod sufficiency;

pub use latency::Latency;
pub use pointing::Pointing;
pub use road::Road;
pub use saco::Saco;
pub use sanity::Sanity;
pub use segmenting::Segmenting;
pub use sensitivity::Sensitivity;
pub use soft_mask::SoftMask;
pub use sparseness::Sparseness;
pub use sufficiency::Sufficiency;

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::batched::BatchedModel;
use super::comparison::Row;
use super::controls::Control;
use super::journal::Journal;
use super::mean;
use super::perturbation::Substrate;
use super::statistics::quantile;
use vitscope_core::error::Result;
use vitscope_core::explain::{Explainer, StreamMemory, Streams, Target};
use vitscope_core::rng::Rng;
use vitscope_core::vit::Vit;
use vitscope_video::overlay::Range;

/// A number that a suite computes for each image, and the statistic that summarizes many of them.
#[derive(Clone, Debug)]
pub struct Measure {
    /// Protocol that it belongs to; the measures of one protocol share a table.
    pub protocol: String,
    /// Name of the measure.
    pub name: String,
    /// Whether a higher number means a better map; `None` if neither direction is better.
    pub higher_is_better: Option<bool>,
    /// All settings that determine the number.
    pub settings: String,
    /// Positions of the points of its curve; empty if it has none.
    pub axis: Vec<f64>,
    /// Quantity along the axis.
    pub axis_name: &'static str,
    /// Statistic reported over all images.
    pub statistic: Statistic,
}

impl Measure {
    /// Creates a measure that is reported as a mean and has no curve.
    pub(super) fn mean(
        protocol: &str,
        name: &str,
        higher_is_better: Option<bool>,
        settings: &str,
    ) -> Self {
        Self {
            protocol: protocol.into(),
            name: name.into(),
            higher_is_better,
            settings: settings.into(),
            axis: Vec::new(),
            axis_name: "",
            statistic: Statistic::Mean,
        }
    }
}

/// Statistic that reduces many images to one number.
#[derive(Clone, Copy, Debug)]
pub enum Statistic {
    /// Mean of the values.
    Mean,
    /// Value below which this share of the values lies.
    Quantile(f64),
    /// Function of the sum of the images' points.
    Pooled(fn(&[f64]) -> f64),
}

/// Result of a measure for one map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The number; `None` if it is undefined for this image.
    pub value: Option<f64>,
    /// The curve or the counts behind the number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<f32>,
}

impl From<f64> for Score {
    fn from(value: f64) -> Self {
        Some(value).into()
    }
}

impl From<Option<f64>> for Score {
    fn from(value: Option<f64>) -> Self {
        Self {
            value,
            points: Vec::new(),
        }
    }
}

impl Score {
    /// Creates a score from the mean of a curve.
    fn mean_of_curve(curve: &[f64]) -> Self {
        Self {
            value: Some(mean(curve.iter().copied())),
            points: curve.iter().map(|&point| point as f32).collect(),
        }
    }
}

impl Statistic {
    /// Computes the statistic, ignoring images without a value; `None` if no image has one.
    pub fn of<'a>(self, scores: impl Iterator<Item = &'a Score>) -> Option<f64> {
        let scores = scores.filter(|score| score.value.is_some());
        match self {
            Self::Mean => {
                let (mut sum, mut n) = (0.0, 0_usize);
                for value in scores.filter_map(|score| score.value) {
                    (sum, n) = (sum + value, n + 1);
                }
                (n > 0).then(|| sum / n as f64)
            }
            Self::Quantile(rank) => {
                let mut values: Vec<f64> = scores.filter_map(|score| score.value).collect();
                values.sort_by(f64::total_cmp);
                (!values.is_empty()).then(|| quantile(&values, rank))
            }
            Self::Pooled(pool) => {
                let mut sums: Vec<f64> = Vec::new();
                for score in scores {
                    sums.resize(score.points.len(), 0.0);
                    for (sum, point) in sums.iter_mut().zip(&score.points) {
                        *sum += f64::from(*point);
                    }
                }
                (!sums.is_empty()).then(|| pool(&sums))
            }
        }
    }
}

/// A suite that scores maps.
pub trait Suite {
    /// Returns the measures of the suite.
    fn measures(&self) -> Vec<Measure>;

    /// Returns one score per measure, in their order, for each image of a batch.
    ///
    /// # Errors
    /// Fails if model, method and images do not fit together.
    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>>;

    /// Whether the suite reads the maps that are shared by all suites; otherwise [`Batch::maps`] may be empty.
    fn reads_maps(&self) -> bool {
        true
    }
}

/// Measures of all suites, in order.
impl Suite for Vec<Box<dyn Suite>> {
    fn measures(&self) -> Vec<Measure> {
        self.iter().flat_map(|suite| suite.measures()).collect()
    }

    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let mut all = vec![Vec::new(); batch.subjects.len()];
        for suite in self {
            let scores = suite.score(batch, mapper)?;
            for (all, scores) in all.iter_mut().zip(scores) {
                all.extend(scores);
            }
        }
        Ok(all)
    }

    fn reads_maps(&self) -> bool {
        self.iter().any(|suite| suite.reads_maps())
    }
}

/// An image to evaluate on.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Index of the image in the data set.
    pub index: usize,
    /// `[3, height, width]`, normalized.
    pub image: Vec<f32>,
    /// Class that the model predicts.
    pub predicted: usize,
    /// Class with the second-highest score; equals `predicted` if there is only one class.
    pub runner_up: usize,
    /// True class, if known.
    pub label: Option<usize>,
}

/// Images with the maps of one method or control.
pub struct Batch<'a> {
    /// The explained model.
    pub model: &'a BatchedModel<'a>,
    /// The same model, for suites that mask inside it.
    pub vit: &'a Vit,
    /// `[images, 3, height, width]`, normalized.
    pub images: &'a Tensor,
    /// One per image.
    pub subjects: &'a [Subject],
    /// One score per patch for each image.
    pub maps: &'a [Vec<f32>],
    /// Seed of random draws.
    pub seed: u64,
}

impl Batch<'_> {
    /// Returns the probability of the predicted class for each unmodified image.
    ///
    /// # Errors
    /// As for [`BatchedModel::probabilities`].
    pub fn originals(&self) -> Result<Vec<f64>> {
        Ok(self.probabilities(1, &mut |_, _, _| ())?.concat())
    }

    /// Returns the probabilities of the predicted class for `n` modified copies of each image. `change` receives the
    /// image, the copy and the values of the copy, `[3, height, width]`.
    ///
    /// # Shapes
    /// - result: `[images][n]`
    ///
    /// # Errors
    /// As for [`BatchedModel::probabilities`].
    pub fn probabilities(
        &self,
        n: usize,
        change: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> Result<Vec<Vec<f64>>> {
        let n = n.max(1);
        let copies = self
            .subjects
            .iter()
            .flat_map(|subject| vec![subject.predicted; n]);
        let classes: Vec<usize> = copies.collect();
        let found = self.model.probabilities(&classes, &mut |nth, pixels| {
            let start = pixels.len();
            pixels.extend_from_slice(&self.subjects[nth / n].image);
            change(nth / n, nth % n, &mut pixels[start..]);
        })?;
        Ok(found.chunks(n).map(<[f64]>::to_vec).collect())
    }

    /// Returns the maps resized bilinearly to the size of the images.
    pub fn pixel_maps(&self) -> Vec<Vec<f32>> {
        let maps = self.maps.iter();
        maps.map(|map| self.model.geometry.pixels_from_patches(map))
            .collect()
    }

    /// Returns a full-size replacement for removed parts of each image, `[3, height, width]`.
    pub(super) fn filled(&self, substrate: Substrate) -> Vec<Vec<f32>> {
        let subjects = self.subjects.iter();
        subjects
            .map(|subject| substrate.fill(&subject.image, self.model))
            .collect()
    }

    /// Returns a generator for one image, the same for every method; `purpose` separates several generators.
    pub fn rng(&self, subject: &Subject, purpose: u64) -> Rng {
        Rng::for_item(self.seed.wrapping_add(purpose << 32), subject.index as u64)
    }
}

/// Source of maps.
pub enum Mapper<'a> {
    /// A method with its name.
    Method(&'a str, &'a dyn Explainer),
    /// A control with the seed of its random draws.
    Control(Control, u64),
}

impl<'a> Mapper<'a> {
    /// Returns the methods, followed by all controls.
    pub fn all(explainers: &'a [(String, Box<dyn Explainer>)], seed: u64) -> Vec<Self> {
        let methods = explainers.iter();
        let methods = methods.map(|(name, explainer)| Self::Method(name, &**explainer));
        let controls = Control::ALL.iter();
        methods
            .chain(controls.map(|&control| Self::Control(control, seed)))
            .collect()
    }

    /// Collects its scores from a journal; unreadable images have none.
    pub fn row(&self, pictures: impl Iterator<Item = usize>, journal: &Journal) -> Row {
        let name = self.name();
        let known = pictures.filter_map(|picture| {
            let scores = journal.scores(&name, picture)?;
            Some((picture, scores.to_vec()))
        });
        Row {
            scores: known.collect(),
            is_control: self.is_control(),
            name,
        }
    }

    /// Returns the name of the method or control.
    pub fn name(&self) -> String {
        match self {
            Self::Method(name, _) => (*name).to_owned(),
            Self::Control(control, _) => control.to_string(),
        }
    }

    /// Returns true for a control.
    pub fn is_control(&self) -> bool {
        matches!(self, Self::Control(..))
    }

    /// Returns the range of a method's scores; `None` for a control.
    pub fn range(&self) -> Option<Range> {
        match self {
            Self::Method(_, explainer) => Some(explainer.range()),
            Self::Control(..) => None,
        }
    }

    /// Computes one map per image, with one score per patch.
    ///
    /// # Shapes
    /// - `images`: `[subjects, 3, height, width]`, the images of `subjects` or modified ones
    ///
    /// # Errors
    /// Fails if model and method do not fit together.
    pub fn maps(
        &self,
        model: &BatchedModel<'_>,
        vit: &Vit,
        images: &Tensor,
        subjects: &[Subject],
        target: Target,
    ) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Method(_, explainer) => {
                let target = match explainer.explains_classes() {
                    true => target,
                    false => Target::Predicted,
                };
                let explained = explainer.explain(vit, images, target)?;
                Ok(explained.attribution.to_vec2()?)
            }
            Self::Control(control, seed) => {
                let images = images.flatten_from(1)?.to_vec2::<f32>()?;
                let pairs = images.iter().zip(subjects);
                let maps = pairs.map(|(image, subject)| {
                    control.map_of_item(image, model.geometry, *seed, subject.index)
                });
                Ok(maps.collect())
            }
        }
    }

    /// Computes the maps of successive video frames. A method with memory may smooth them over time.
    ///
    /// # Shapes
    /// - `frames`: each `[3, height, width]`, normalized
    ///
    /// # Errors
    /// As for [`maps`](Self::maps).
    pub fn maps_in_order(
        &self,
        model: &BatchedModel<'_>,
        vit: &Vit,
        frames: &[Vec<f32>],
    ) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Method(_, explainer) => {
                let mut memory = StreamMemory::default();
                let mut maps = Vec::with_capacity(frames.len());
                for frames in frames.chunks(model.batch) {
                    let images = batch_of(frames, model)?;
                    let mut streams = Streams::one(&mut memory, frames.len());
                    let target = Target::Predicted;
                    let explained = explainer.explain_next(vit, &images, target, &mut streams)?;
                    maps.extend(explained.attribution.to_vec2::<f32>()?);
                }
                Ok(maps)
            }
            Self::Control(control, seed) => {
                let maps = (frames.iter().enumerate())
                    .map(|(nth, frame)| control.map_of_item(frame, model.geometry, *seed, nth));
                Ok(maps.collect())
            }
        }
    }
}

/// Stacks frames into one model input.
///
/// # Shapes
/// - `frames`: each `[3, height, width]`
/// - result: `[frames, 3, height, width]`
fn batch_of(frames: &[Vec<f32>], model: &BatchedModel<'_>) -> Result<Tensor> {
    let geometry = model.geometry;
    let shape = (frames.len(), 3, geometry.height_px, geometry.width_px);
    Ok(Tensor::from_vec(frames.concat(), shape, &model.device)?)
}

/// Pairs each image with the model's prediction and the true class. `label` maps the image's index to a class of the
/// model.
///
/// # Shapes
/// - `images`: `[images, 3, height, width]`
/// - `logits`: `[images, classes]`
///
/// # Errors
/// Fails if the logits have no classes.
pub(super) fn subjects(
    images: &Tensor,
    logits: &Tensor,
    indices: &[usize],
    label: &dyn Fn(usize) -> Option<usize>,
) -> Result<Vec<Subject>> {
    let pictures = images.flatten_from(1)?.to_vec2::<f32>()?;
    let ranked = logits.arg_sort_last_dim(false)?;
    let ranked = ranked.narrow(D::Minus1, 0, logits.dim(D::Minus1)?.min(2))?;
    let ranked = ranked.to_vec2::<u32>()?;
    let all = pictures.into_iter().zip(ranked).zip(indices);
    Ok(all
        .map(|((image, ranked), &index)| {
            let predicted = ranked.first().map_or(0, |class| *class as usize);
            Subject {
                index,
                image,
                predicted,
                runner_up: ranked.get(1).map_or(predicted, |class| *class as usize),
                label: label(index),
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_leave_out_what_has_no_value() {
        let scores = [Score::from(1.0), Score::from(None), Score::from(4.0)];
        assert_eq!(Statistic::Mean.of(scores.iter()), Some(2.5));
        assert_eq!(Statistic::Quantile(1.0).of(scores.iter()), Some(4.0));
        assert_eq!(Statistic::Mean.of([Score::from(None)].iter()), None);
    }

    #[test]
    fn a_pooled_statistic_is_of_the_sums() {
        let counted = |right, all| Score {
            value: Some(0.0),
            points: vec![right, all],
        };
        let share = Statistic::Pooled(|sums| sums[0] / sums[1]);
        // 1 of 1 and 1 of 9; pooled, not the mean of the two shares.
        let found = share.of([counted(1.0, 1.0), counted(1.0, 9.0)].iter());
        assert_eq!(found, Some(0.2));
    }
}
