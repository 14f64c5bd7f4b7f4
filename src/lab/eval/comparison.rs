//! Methods beside each other, and beside maps that know nothing of the model, measured on the same pictures.

use candle_core::Tensor;

use super::batched::BatchedModel;
use super::class_names::meant_classes;
use super::journal::Journal;
use super::suite::{Batch, Mapper, Score, Subject, Suite, subjects};
use crate::data::{self, Dataset, Picture};
use vitscope_core::error::Result;
use vitscope_core::explain::{Explainer, Target};
use vitscope_core::models::Model;

/// What one method, or control, scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the method or control.
    pub name: String,
    /// True for a control.
    pub is_control: bool,
    /// The index of each picture, and one score a measure.
    pub scores: Vec<(usize, Vec<Score>)>,
}

impl Row {
    /// The index of each picture and its score by the `place`-th measure, of those that have a value.
    pub fn of_measure(&self, place: usize) -> impl Iterator<Item = (usize, &Score)> {
        self.scores.iter().filter_map(move |(picture, scores)| {
            let score = scores.get(place).filter(|score| score.value.is_some())?;
            Some((*picture, score))
        })
    }
}

/// Pictures as the model sees them.
pub(super) struct Shown {
    pub(super) pictures: Vec<Picture>,
    pub(super) images: Tensor,
    pub(super) subjects: Vec<Subject>,
}

/// What is compared.
pub struct Comparison<'a> {
    /// The model that is explained.
    pub model: &'a Model,
    /// The methods, and what each of them is called here.
    pub explainers: &'a [(String, Box<dyn Explainer>)],
    /// What is measured.
    pub suite: &'a dyn Suite,
    /// Pictures that go through the model at once.
    pub batch: usize,
    /// Seed of the random map, and of whatever else is drawn.
    pub seed: u64,
}

impl Comparison<'_> {
    /// Scores all methods and controls on the pictures at `indices`, but for what the journal knows; `done` is told how
    /// many pictures are.
    ///
    /// The same pictures and seed give the same scores, whatever the batch.
    ///
    /// # Errors
    /// Fails where model, methods, suite and pictures do not go together, or the journal cannot be written.
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

    /// The model's class that each class of the pictures is, where the model knows it.
    pub(super) fn meant_by(&self, pictures: &dyn Dataset) -> Vec<Option<usize>> {
        let config = self.model.vit.config();
        meant_classes(&config.labels, &config.label_aliases, pictures.classes())
    }

    /// The pictures at `indices`, without those that cannot be read; `classes` as of [`meant_by`](Self::meant_by).
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

    /// Measures a chunk of pictures by each method that has not all of them.
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
