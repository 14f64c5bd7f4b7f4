//! Comparison of methods with each other and with model-independent maps, on the same images.

use candle_core::Tensor;

use super::batched::BatchedModel;
use super::class_names::meant_classes;
use super::journal::Journal;
use super::suite::{Batch, Mapper, Score, Subject, Suite, subjects};
use crate::data::{self, Dataset, Picture};
use vitscope_core::error::Result;
use vitscope_core::explain::{Explainer, Target};
use vitscope_core::models::Model;

/// Scores of one method or control.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the method or control.
    pub name: String,
    /// True for a control.
    pub is_control: bool,
    /// Index of each image, and one score per measure.
    pub scores: Vec<(usize, Vec<Score>)>,
}

impl Row {
    /// Returns the index and score of each image for the `place`-th measure, omitting images without a value.
    pub fn of_measure(&self, place: usize) -> impl Iterator<Item = (usize, &Score)> {
        self.scores.iter().filter_map(move |(picture, scores)| {
            let score = scores.get(place).filter(|score| score.value.is_some())?;
            Some((*picture, score))
        })
    }
}

/// Images as model input.
pub(super) struct Shown {
    pub(super) pictures: Vec<Picture>,
    pub(super) images: Tensor,
    pub(super) subjects: Vec<Subject>,
}

/// A comparison of methods.
pub struct Comparison<'a> {
    /// The explained model.
    pub model: &'a Model,
    /// Methods with their names.
    pub explainers: &'a [(String, Box<dyn Explainer>)],
    /// Measures to apply.
    pub suite: &'a dyn Suite,
    /// Number of images per forward pass.
    pub batch: usize,
    /// Seed of the random map and of all other random draws.
    pub seed: u64,
}

impl Comparison<'_> {
    /// Scores all methods and controls on the images at `indices`, except for results that the journal already holds.
    /// `done` receives the number of processed images.
    ///
    /// The same images and seed give the same scores, whatever the batch size.
    ///
    /// # Errors
    /// Fails if model, methods, suite and images do not fit together, or if the journal cannot be written.
    pub fn run(
        &self,
        pictures: &dyn Dataset,
        indices: &[usize],
        journal: &mut Journal,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Row>> {
        let model = BatchedModel::of(self.model, self.batch);
        let mappers = Mapper::all(self.explainers, self.seed);
        let classes = self.meant_by(pictures);
        let mut n_done = 0;
        for chunk in indices.chunks(model.batch) {
            self.measure(&model, &mappers, (pictures, &classes), chunk, journal)?;
            n_done += chunk.len();
            done(n_done);
        }
        let rows = mappers.iter();
        Ok(rows
            .map(|mapper| mapper.row(indices.iter().copied(), journal))
            .collect())
    }

    /// Returns the model's class for each class of the images, if the model knows it.
    pub(super) fn meant_by(&self, pictures: &dyn Dataset) -> Vec<Option<usize>> {
        let config = self.model.vit.config();
        meant_classes(&config.labels, &config.label_aliases, pictures.classes())
    }

    /// Reads the images at `indices`, skipping unreadable ones; `classes` is the result of
    /// [`meant_by`](Self::meant_by).
    pub(super) fn shown(
        &self,
        model: &BatchedModel<'_>,
        pictures: &dyn Dataset,
        classes: &[Option<usize>],
        indices: &[usize],
    ) -> Result<Shown> {
        let read = data::readable(pictures, indices)?;
        let (indices, read): (Vec<usize>, Vec<Picture>) = read.into_iter().unzip();
        let preprocessor = &self.model.preprocessor;
        let (mean, std) = (preprocessor.mean, preprocessor.std);
        let images = data::images_from_pictures(&read, mean, std, &model.device)?;
        let label = |index| classes.get(pictures.label(index)?).copied().flatten();
        let subjects = subjects(&images, &model.logits(&images)?, &indices, &label)?;
        Ok(Shown {
            pictures: read,
            images,
            subjects,
        })
    }

    /// Measures a chunk of images with each method that has not yet processed all of them.
    fn measure(
        &self,
        model: &BatchedModel<'_>,
        mappers: &[Mapper<'_>],
        (pictures, classes): (&dyn Dataset, &[Option<usize>]),
        chunk: &[usize],
        journal: &mut Journal,
    ) -> Result<()> {
        let names: Vec<String> = mappers.iter().map(Mapper::name).collect();
        let is_known = |name: &String, journal: &Journal| {
            chunk
                .iter()
                .all(|&index| journal.scores(name, index).is_some())
        };
        if names.iter().all(|name| is_known(name, journal)) {
            return Ok(());
        }
        let Shown {
            images, subjects, ..
        } = self.shown(model, pictures, classes, chunk)?;
        for (mapper, name) in mappers.iter().zip(&names) {
            if is_known(name, journal) {
                continue;
            }
            let vit = &self.model.vit;
            let maps = match self.suite.reads_maps() {
                true => mapper.maps(model, vit, &images, &subjects, Target::Predicted)?,
                false => Vec::new(),
            };
            let batch = Batch {
                model,
                vit,
                images: &images,
                subjects: &subjects,
                maps: &maps,
                seed: self.seed,
            };
            let scores = self.suite.score(&batch, mapper)?;
            for (subject, scores) in subjects.iter().zip(scores) {
                journal.add(name, subject.index, scores)?;
            }
        }
        Ok(())
    }
}
