//! Suites: each scores the maps of a method, picture by picture, by measures that belong together.
//!
//! | suite | asks |
//! |---|---|
//! | [`Perturbation`](super::perturbation::Perturbation) | how soon a class goes, or comes, in the order of the map |
//! | [`Road`] | the same, where what is hidden is filled in from its surroundings |
//! | [`SoftMask`] | what is left where the map is a mask of the patches |
//! | [`Saco`] | whether groups of pixels matter as much as their salience says |
//! | [`Sufficiency`] | what the best-rated patches are worth alone, and what is left without them |
//! | [`Pointing`], [`Segmenting`] | whether the map lies on the object |
//! | [`Sensitivity`] | how much the map changes where the picture hardly does |
//! | [`Sanity`] | whether the map depends on the model, and on the class |
//! | [`Sparseness`] | how concise the map is |
//! | [`Latency`] | what it costs |

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

/// A number that a suite finds for each picture, and what is said of many.
#[derive(Clone, Debug)]
pub struct Measure {
    /// What it is measured by: of a group of measures, in whose table it stands.
    pub protocol: String,
    /// What it is called.
    pub name: String,
    /// Whether a greater number is a better map, where there is a better one.
    pub higher_is_better: Option<bool>,
    /// All that decides the number.
    pub settings: String,
    /// Where the points of its curve lie; empty where it has none.
    pub axis: Vec<f64>,
    /// What lies along it.
    pub axis_name: &'static str,
    /// What is said of all pictures.
    pub statistic: Statistic,
}

impl Measure {
    /// A measure whose mean is told, and which has no curve.
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

/// One number for many pictures.
#[derive(Clone, Copy, Debug)]
pub enum Statistic {
    /// Mean of their values.
    Mean,
    /// The value below which this share of them lies.
    Quantile(f64),
    /// A function of their points, summed.
    Pooled(fn(&[f64]) -> f64),
}

/// What a measure says of one map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The number; nothing where it has no meaning for this picture.
    pub value: Option<f64>,
    /// The curve, or the counts, behind it.
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
    /// The mean of a curve.
    fn mean_of_curve(curve: &[f64]) -> Self {
        Self {
            value: Some(mean(curve.iter().copied())),
            points: curve.iter().map(|&point| point as f32).collect(),
        }
    }
}

impl Statistic {
    /// The number for these pictures; those that have no value are left out. `None` where none is left.
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

/// Scores maps.
pub trait Suite {
    /// What it measures.
    fn measures(&self) -> Vec<Measure>;

    /// One score a measure, in their order, for each picture of a batch.
    ///
    /// # Errors
    /// Fails where model, method, and pictures do not go together.
    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>>;

    /// Whether it needs the maps that are made for all suites; else [`Batch::maps`] may be empty.
    fn reads_maps(&self) -> bool {
        true
    }
}

/// All measures of the first suite, then those of the next one.
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

/// A picture that is measured on.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its index in the data.
    pub index: usize,
    /// `[3, height, width]`, normalized.
    pub image: Vec<f32>,
    /// The class that the model names.
    pub predicted: usize,
    /// The one that it names next; the same where there is but one.
    pub runner_up: usize,
    /// The right class, where it is known.
    pub label: Option<usize>,
}

/// Pictures with the maps of one method, or control.
pub struct Batch<'a> {
    /// The model that is explained.
    pub model: &'a BatchedModel<'a>,
    /// The same, for whoever masks inside of it.
    pub vit: &'a Vit,
    /// `[pictures, 3, height, width]`, normalized.
    pub images: &'a Tensor,
    /// One a picture.
    pub subjects: &'a [Subject],
    /// One score per patch, for each picture.
    pub maps: &'a [Vec<f32>],
    /// Seed of what is drawn.
    pub seed: u64,
}

impl Batch<'_> {
    /// Probability of the predicted class of each whole picture.
    ///
    /// # Errors
    /// As [`BatchedModel::probabilities`].
    pub fn originals(&self) -> Result<Vec<f64>> {
        Ok(self.probabilities(1, &mut |_, _, _| ())?.concat())
    }

    /// Probabilities of the predicted class of `n` changed copies of each picture; `change` is told the picture, the copy
    /// and the copy's values, `[3, height, width]`.
    ///
    /// # Shapes
    /// - result: `[pictures][n]`
    ///
    /// # Errors
    /// As [`BatchedModel::probabilities`].
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

    /// The maps at the size of the pictures, bilinear.
    pub fn pixel_maps(&self) -> Vec<Vec<f32>> {
        let maps = self.maps.iter();
        maps.map(|map| self.model.geometry.pixels_from_patches(map))
            .collect()
    }

    /// For each picture what stands where something of it is taken away, `[3, height, width]`.
    pub(super) fn filled(&self, substrate: Substrate) -> Vec<Vec<f32>> {
        let subjects = self.subjects.iter();
        subjects
            .map(|subject| substrate.fill(&subject.image, self.model))
            .collect()
    }

    /// A generator for one picture, the same for every method; `purpose` tells several of them apart.
    pub fn rng(&self, subject: &Subject, purpose: u64) -> Rng {
        Rng::for_item(self.seed.wrapping_add(purpose << 32), subject.index as u64)
    }
}

/// What makes maps.
pub enum Mapper<'a> {
    /// A method, and what it is called.
    Method(&'a str, &'a dyn Explainer),
    /// A control, with the seed of what it draws.
    Control(Control, u64),
}

impl<'a> Mapper<'a> {
    /// The methods, then all controls.
    pub fn all(explainers: &'a [(String, Box<dyn Explainer>)], seed: u64) -> Vec<Self> {
        let methods = explainers.iter();
        let methods = methods.map(|(name, explainer)| Self::Method(name, &**explainer));
        let controls = Control::ALL.iter();
        methods
            .chain(controls.map(|&control| Self::Control(control, seed)))
            .collect()
    }

    /// What a journal knows of it; pictures that could not be read are not in it.
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

    /// Name of the method or control.
    pub fn name(&self) -> String {
        match self {
            Self::Method(name, _) => (*name).to_owned(),
            Self::Control(control, _) => control.to_string(),
        }
    }

    /// True for a control.
    pub fn is_control(&self) -> bool {
        matches!(self, Self::Control(..))
    }

    /// How a method's scores are meant; nothing for a control.
    pub fn range(&self) -> Option<Range> {
        match self {
            Self::Method(_, explainer) => Some(explainer.range()),
            Self::Control(..) => None,
        }
    }

    /// One map of one score per patch for each of the images.
    ///
    /// # Shapes
    /// - `images`: `[subjects, 3, height, width]`, those of `subjects` or changed ones
    ///
    /// # Errors
    /// Fails where model and method do not go together.
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

    /// The maps of successive frames of a video, which a method with a memory may smooth.
    ///
    /// # Shapes
    /// - `frames`: each `[3, height, width]`, normalized
    ///
    /// # Errors
    /// As [`maps`](Self::maps).
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

/// Frames as one input of the model.
///
/// # Shapes
/// - `frames`: each `[3, height, width]`
/// - result: `[frames, 3, height, width]`
fn batch_of(frames: &[Vec<f32>], model: &BatchedModel<'_>) -> Result<Tensor> {
    let geometry = model.geometry;
    let shape = (frames.len(), 3, geometry.height_px, geometry.width_px);
    Ok(Tensor::from_vec(frames.concat(), shape, &model.device)?)
}

/// What the model says of each picture, beside what is right: the class of the model that `label` names by the picture's
/// index.
///
/// # Shapes
/// - `images`: `[pictures, 3, height, width]`
/// - `logits`: `[pictures, classes]`
///
/// # Errors
/// Fails where the logits have no classes.
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
        // 1 of 1 and 1 of 9: not the mean of both shares.
        let found = share.of([counted(1.0, 1.0), counted(1.0, 9.0)].iter());
        assert_eq!(found, Some(0.2));
    }
}
