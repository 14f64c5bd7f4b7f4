//! Trains IA-ViT's interpreter: for a frozen model, or jointly with a model from scratch.
//!
//! Qiang et al., arXiv:2309.08035. The interpreter learns to reproduce the model's predictions, and its attention is
//! drawn toward the model's attention:
//!
//! ```text
//! loss = CE(u, y) + distillation · T² KL(softmax(u / T) ‖ softmax(v / T)) + alignment-weight · D(p, q)
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | u, v | logits of model and interpreter |
//! | p, q | attention to the patches of model and interpreter |
//! | CE | cross-entropy of the model; in joint training only, by [`super::classifier`] |
//!
//! **Deviations** from the authors' code: D is a distance (theirs drives p and q apart), p is a distribution, and the
//! model is not drawn toward its interpreter (`detach`). `alignment = "released"`, `unscaled = true` and `detach =
//! false` restore theirs.

mod alignment;
mod pupil;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::crop::random_crop;
use super::optim::{AdamW, AdamWOptions, Param};
use super::run::{Plan, Trainer, check_positive, finite_loss, recipe_options, recipe_text, run};
use super::{Batches, Checkpoint, OnProgress, Subject, cosine_schedule};
use crate::data::readable;
use crate::eval::class_names::meant_classes;
use vitscope_core::error::{Error, Result};
use vitscope_core::interpreter::{InterpreterCard, InterpreterShape, Pooling};
use vitscope_core::rng::Rng;
use vitscope_core::vit::{Record, VitConfig};
use vitscope_kernels::in_pool;

pub use pupil::Fidelity;
pub(in crate::train) use pupil::Pupil;

/// Columns of a run for a frozen model.
pub const COLUMNS: &[&str] = &[
    "loss",
    "lr",
    "distillation",
    "alignment",
    "agreement",
    "test kl",
    "test agreement",
    "test accuracy of interpreter",
];

/// How the interpreter's attention is aligned with the model's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alignment {
    /// No alignment.
    None,
    /// Maximum mean discrepancy over the batch.
    #[default]
    Mmd,
    /// Jensen-Shannon divergence, image by image.
    JensenShannon,
    /// The loss in the authors' code, which drives the two apart.
    Released,
}

/// Attention of the model that serves as the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// Attention of the class token in the last block, mean over heads.
    #[default]
    ClassToken,
    /// Attention of the patches, mean over blocks, heads and queries.
    Patches,
}

/// Initial weights of the interpreter's classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Random weights.
    #[default]
    Random,
    /// The model's own classifier, with the patches themselves as values. Requires a model with one linear classifier
    /// and `pooling = "mean"`; the better start with many classes and few images of each.
    Model,
}

/// Recipe for training an interpreter. Keys up to `test_pictures` apply only to frozen models; in joint training, the
/// classifier's recipe sets them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct IaVitRecipe {
    /// Number of optimizer updates.
    pub steps: u64,
    /// Images per step (batch size).
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Warmup steps until the peak learning rate.
    pub warmup_steps: u64,
    /// Area of the smallest random training crop, as a share of the image; half of the crops are mirrored. 1 leaves
    /// images unchanged.
    pub smallest_crop: f64,
    /// Largest global norm of the gradients; larger gradients are scaled down.
    pub max_norm: f64,
    /// Steps between measurements on test images.
    pub test_steps: u64,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
    /// Number of test images to measure on.
    pub test_pictures: usize,
    /// Seed of the interpreter and of the image order.
    pub seed: u64,
    /// Initial weights of the interpreter's classifier.
    pub start: Start,
    /// How logits are computed from the attended patches.
    pub pooling: Pooling,
    /// Whether to skip the division of scores by √dim.
    pub unscaled: bool,
    /// Weight of the distillation.
    pub distillation: f64,
    /// Temperature of the distillation.
    pub temperature: f64,
    /// How attention is aligned with the model's.
    pub alignment: Alignment,
    /// Weight of the alignment.
    pub alignment_weight: f64,
    /// The attention of the model to align with.
    pub teacher: Teacher,
    /// Whether these losses treat the model's output and attention as constants.
    pub detach: bool,
}

impl Default for IaVitRecipe {
    fn default() -> Self {
        Self {
            steps: 3000,
            batch: 64,
            lr: 1e-3,
            warmup_steps: 100,
            smallest_crop: 1.0,
            max_norm: 1.0,
            test_steps: 500,
            checkpoint_steps: 500,
            test_pictures: 512,
            seed: 0,
            start: Start::Random,
            pooling: Pooling::Mean,
            unscaled: false,
            distillation: 1.0,
            temperature: 3.0,
            alignment: Alignment::Mmd,
            alignment_weight: 0.2,
            teacher: Teacher::ClassToken,
            detach: true,
        }
    }
}

impl IaVitRecipe {
    /// Returns the shape of an interpreter for a model with this number of patches.
    pub fn shape(&self, config: &VitConfig, patches: usize) -> InterpreterShape {
        InterpreterShape {
            pooling: self.pooling,
            unscaled: self.unscaled,
            ..InterpreterShape::new(config, patches)
        }
    }

    /// Returns the card of an interpreter trained by this recipe.
    ///
    /// # Errors
    /// Fails if the recipe cannot be serialized as JSON.
    pub fn card(
        &self,
        shape: InterpreterShape,
        base_sha256: &str,
        fidelity: Fidelity,
    ) -> Result<InterpreterCard> {
        Ok(InterpreterCard {
            base_sha256: base_sha256.to_owned(),
            shape,
            seed: self.seed,
            recipe: recipe_options(self)?,
            agreement: fidelity.agreement,
            kl: fidelity.kl,
        })
    }

    pub(in crate::train) fn validate(&self) -> Result<()> {
        check_positive(&[("lr", self.lr), ("temperature", self.temperature)])?;
        if self.batch == 0 || self.steps == 0 {
            return Err(Error::Config("batch and steps must be at least 1".into()));
        }
        if !(self.smallest_crop > 0.0 && self.smallest_crop <= 1.0) {
            return Err(Error::Config(format!(
                "smallest-crop must be above 0 and at most 1, got {}",
                self.smallest_crop
            )));
        }
        Ok(())
    }
}

/// A trained interpreter.
#[derive(Debug)]
pub struct TrainedInterpreter {
    /// Tensors by name, as taken by [`vitscope_core::interpreter::Interpreter::load`].
    pub tensors: BTreeMap<String, Tensor>,
    /// Metadata stored next to the tensors.
    pub card: InterpreterCard,
    /// Fidelity to the model on test images.
    pub fidelity: Fidelity,
    /// False if `on_progress` ended the run early.
    pub complete: bool,
}

/// Trains an interpreter for a frozen model; writes checkpoints, `interpreter.csv` and `interpreter.png` into `folder`.
/// Training does not use labels.
///
/// Resumes from the checkpoint in `folder`, if any.
///
/// # Errors
/// Fails if the data are empty, if the images or the recipe do not fit the model, or if `folder` cannot be written.
pub fn train(
    recipe: &IaVitRecipe,
    subject: Subject<'_>,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedInterpreter> {
    subject.check()?;
    recipe.validate()?;
    let plan = Plan {
        folder,
        curves: "interpreter",
        title: "interpreter",
        columns: COLUMNS,
        recipe: recipe_text(&(recipe, subject.base_sha256))?,
        n_steps: recipe.steps,
        checkpoint_steps: recipe.checkpoint_steps,
    };
    let mut trainer = InterpreterTrainer::new(recipe, subject)?;
    let complete = run(&mut trainer, &plan, on_progress)?;
    let fidelity = trainer.fidelity()?;
    Ok(TrainedInterpreter {
        tensors: trainer.pupil.tensors()?,
        card: recipe.card(*trainer.pupil.shape(), subject.base_sha256, fidelity)?,
        fidelity,
        complete,
    })
}

/// State of a run between two steps.
struct InterpreterTrainer<'a> {
    recipe: &'a IaVitRecipe,
    subject: Subject<'a>,
    pupil: Pupil<'a>,
    optim: AdamW,
    batches: Batches,
    step: u64,
}

impl<'a> InterpreterTrainer<'a> {
    fn new(recipe: &'a IaVitRecipe, subject: Subject<'a>) -> Result<Self> {
        let pupil = Pupil::new(recipe, subject.vit, subject.n_patches())?;
        let params = pupil.vars().iter().map(|(name, var)| Param {
            name: name.clone(),
            var: var.clone(),
            lr_factor: 1.0,
            weight_decay: 0.0,
        });
        let options = AdamWOptions {
            max_norm: Some(recipe.max_norm),
            ..AdamWOptions::default()
        };
        Ok(Self {
            optim: AdamW::new(params.collect(), options),
            batches: Batches::new(recipe.seed, subject.train.len(), recipe.batch),
            recipe,
            subject,
            pupil,
            step: 0,
        })
    }

    fn update(&mut self) -> Result<Vec<f64>> {
        let Self {
            recipe, subject, ..
        } = *self;
        let images = self.images_of_step()?;
        let mut record = Record::new(self.pupil.sites(subject.vit));
        let output = subject.vit.forward_with(&images, &mut record)?;
        let lesson = self.pupil.lesson(subject.vit, &output, &record)?;
        let grads = lesson.loss.backward()?;
        let loss = finite_loss(&lesson.loss, self.step, recipe.lr)?;
        let lr = recipe.lr * cosine_schedule(self.step, recipe.warmup_steps, recipe.steps);
        self.optim.step(&grads, lr)?;
        self.step += 1;
        let mut values = vec![loss, lr];
        values.extend(lesson.measured);
        Ok(values)
    }

    /// `[batch, 3, height, width]`
    fn images_of_step(&mut self) -> Result<Tensor> {
        let Self {
            recipe, subject, ..
        } = *self;
        let indices = self.batches.at(self.step);
        if recipe.smallest_crop == 1.0 {
            return subject.images(subject.train, &indices);
        }
        let mut rng = Rng::for_item(recipe.seed, self.step);
        let crops = readable(subject.train, &indices)?
            .into_iter()
            .map(|(_, picture)| random_crop(picture, recipe.smallest_crop, &mut rng))
            .collect::<Result<Vec<_>>>()?;
        subject.images_of(&crops)
    }

    fn fidelity(&self) -> Result<Fidelity> {
        let Self {
            recipe, subject, ..
        } = *self;
        let config = subject.vit.config();
        let classes = subject.test.classes();
        let meant = meant_classes(&config.labels, &config.label_aliases, classes);
        let chunks = subject
            .test_chunks(recipe.test_pictures, recipe.batch)
            .map(|indices| {
                let (images, mut labels) = subject.labeled_images(subject.test, &indices)?;
                for label in &mut labels {
                    *label = label.and_then(|class| meant.get(class).copied().flatten());
                }
                Ok((images, labels))
            });
        self.pupil.fidelity(subject.vit, chunks)
    }
}

impl Trainer for InterpreterTrainer<'_> {
    fn steps_done(&self) -> u64 {
        self.step
    }

    fn step(&mut self) -> Result<Vec<f64>> {
        let mut values = in_pool(|| self.update())?;
        let Self { recipe, step, .. } = *self;
        if step.is_multiple_of(recipe.test_steps.max(1)) || step == recipe.steps {
            let fidelity = self.fidelity()?;
            values.extend([fidelity.kl, fidelity.agreement, fidelity.accuracy]);
        }
        Ok(values)
    }

    fn checkpoint(&self, recipe: &str) -> Result<Checkpoint> {
        Ok(Checkpoint {
            step: self.step,
            // Random numbers after the start are derived anew at each step.
            rng: Rng::new(self.recipe.seed),
            recipe: recipe.to_owned(),
            tensors: self.optim.state()?,
        })
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.optim.restore(&checkpoint.tensors)?;
        self.step = checkpoint.step;
        Ok(())
    }
}
