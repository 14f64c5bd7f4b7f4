//! A run of classifier training: its steps, measurements and checkpoints.

use std::collections::HashMap;

use candle_core::{D, Device, Tensor, Var};

use super::augment::{Label, augmented_batch, drop_patches};
use super::optimizers::Optimizers;
use super::{ClassifierRecipe, JointInterpreter, NORMALIZATION, Start, TrainedClassifier};
use crate::data::{Dataset, labeled_images};
use crate::eval;
use crate::eval::classification::{count_by_class, total};
use crate::train::iavit::{Fidelity, IaVitRecipe, Pupil};
use crate::train::run::{Trainer, finite_loss};
use crate::train::{Batches, Checkpoint, copies, cosine_schedule, over, variables};
use vitscope_core::error::{Error, Result};
use vitscope_core::rng::Rng;
use vitscope_core::vit::{Record, Vit, VitConfig, init};
use vitscope_kernels::in_pool;

/// Prefix of the names of the interpreter's weights in checkpoints.
const PUPIL_PREFIX: &str = "interpreter.";

/// State of a run between two steps.
pub(super) struct ClassifierTrainer<'a> {
    recipe: &'a ClassifierRecipe,
    train: &'a dyn Dataset,
    test: &'a dyn Dataset,
    normalization: ([f32; 3], [f32; 3]),
    config: VitConfig,
    vars: HashMap<String, Var>,
    /// Weights of the model that are not trained.
    frozen: HashMap<String, Tensor>,
    vit: Vit,
    pupil: Option<Pupil<'a>>,
    optim: Optimizers,
    batches: Batches,
    /// Draws the patches of each step.
    rng: Rng,
    step: u64,
}

impl<'a> ClassifierTrainer<'a> {
    pub(super) fn new(
        recipe: &'a ClassifierRecipe,
        start: Option<&Start>,
        interpreter: Option<&'a IaVitRecipe>,
        (train, test): (&'a dyn Dataset, &'a dyn Dataset),
        device: &Device,
    ) -> Result<Self> {
        let mut rng = Rng::new(recipe.seed);
        let (config, weights) = match start {
            Some(start) => start.for_classes(train.classes(), &mut rng)?,
            None => {
                let config = recipe.config(train.size(), train.classes());
                let weights = init::init(&config, &mut rng)?;
                (config, weights)
            }
        };
        let (trained, frozen): (HashMap<_, _>, HashMap<_, _>) = weights
            .into_iter()
            .partition(|(name, _)| recipe.trains(name, config.num_hidden_layers));
        let vars: HashMap<String, Var> = variables(trained, device)?;
        let frozen = frozen
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_device(device)?)))
            .collect::<Result<HashMap<_, _>>>()?;
        let mut all = over(&vars);
        all.extend(frozen.clone());
        let vit = Vit::load(config.clone(), &all)?;
        let (rows, columns) = vit.grid(train.size().height_px, train.size().width_px);
        let pupil = interpreter
            .map(|interpreter| Pupil::new(interpreter, &vit, rows * columns))
            .transpose()?;
        let mut trained = vars.clone();
        for (name, var) in pupil.iter().flat_map(Pupil::vars) {
            trained.insert(format!("{PUPIL_PREFIX}{name}"), var.clone());
        }
        Ok(Self {
            optim: Optimizers::new(recipe, &trained)?,
            batches: Batches::new(recipe.seed, train.len(), recipe.batch),
            normalization: start.map_or(NORMALIZATION, |start| start.normalization),
            recipe,
            train,
            test,
            config,
            vars,
            frozen,
            vit,
            pupil,
            rng,
            step: 0,
        })
    }

    pub(super) fn n_steps(&self) -> u64 {
        self.batches.per_epoch() * self.recipe.epochs as u64
    }

    /// Updates the model once; returns the measurements taken at every step.
    fn update(&mut self, images: &Tensor, labels: &[Label], schedule: f64) -> Result<Vec<f64>> {
        let recipe = self.recipe;
        let whole = (self.step as f64) >= (1.0 - recipe.whole_share) * self.n_steps() as f64;
        let again = whole && recipe.consistency > 0.0;
        let dropped = ((!whole || again) && recipe.keep_patches < 1.0)
            .then(|| drop_patches(&self.vit, images, recipe.keep_patches, &mut self.rng))
            .transpose()?;
        let (dropped, apart) = match again {
            true => (None, dropped),
            false => (dropped, None),
        };
        let sites = self.pupil.iter().flat_map(|pupil| pupil.sites(&self.vit));
        let mut tap = (dropped, Record::new(sites));
        let output = self.vit.forward_with(images, &mut tap)?;
        let logits = eval::logits(output.logits.clone())?;
        let mut loss = cross_entropy(&logits, labels, recipe.label_smoothing)?;
        if let Some(mut dropped) = apart {
            let of_some = eval::logits(self.vit.forward_with(images, &mut dropped)?.logits)?;
            let divergence = eval::kl_from_logits(&logits.detach(), &of_some)?.mean_all()?;
            loss = (loss + (divergence * recipe.consistency)?)?;
        }
        let lesson = self
            .pupil
            .as_ref()
            .map(|pupil| pupil.lesson(&self.vit, &output, &tap.1))
            .transpose()?;
        if let Some(lesson) = &lesson {
            loss = (loss + &lesson.loss)?;
        }
        let grads = loss.backward()?;
        let loss = finite_loss(&loss, self.step, recipe.lr)?;
        self.optim.step(&grads, schedule)?;
        let predicted: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        let right = predicted.iter().zip(labels);
        let right = right.filter(|(a, label)| **a == label.class).count();
        let accuracy = right as f64 / labels.len().max(1) as f64;
        let mut values = vec![loss, recipe.lr * schedule, accuracy];
        values.extend(lesson.iter().flat_map(|lesson| lesson.measured));
        Ok(values)
    }

    /// Returns the accuracy on the test images.
    fn test_accuracy(&self) -> Result<f64> {
        let (vit, test) = (&self.vit, self.test);
        let classes: Vec<usize> = (0..self.config.n_classes()).collect();
        let counts = count_by_class(vit, test, &classes, self.normalization, self.recipe.batch)?;
        Ok(total(&counts).share())
    }

    /// Returns the interpreter's fidelity to the model on all test images.
    fn fidelity(&self, pupil: &Pupil<'_>) -> Result<Fidelity> {
        let indices: Vec<usize> = (0..self.test.len()).collect();
        let chunks = indices.chunks(self.recipe.batch);
        let chunks = chunks
            .map(|chunk| labeled_images(self.test, chunk, self.normalization, self.vit.device()));
        pupil.fidelity(&self.vit, chunks)
    }

    pub(super) fn finish(self, complete: bool) -> Result<TrainedClassifier> {
        let interpreter = self
            .pupil
            .as_ref()
            .map(|pupil| {
                Ok::<_, Error>(JointInterpreter {
                    tensors: pupil.tensors()?,
                    shape: *pupil.shape(),
                    fidelity: self.fidelity(pupil)?,
                })
            })
            .transpose()?;
        let mut weights: HashMap<String, Tensor> = copies(&self.vars)?;
        let test_accuracy = self.test_accuracy()?;
        weights.extend(self.frozen);
        Ok(TrainedClassifier {
            test_accuracy,
            weights,
            config: self.config,
            interpreter,
            complete,
        })
    }
}

impl Trainer for ClassifierTrainer<'_> {
    fn steps_done(&self) -> u64 {
        self.step
    }

    fn step(&mut self) -> Result<Vec<f64>> {
        let Self { recipe, step, .. } = *self;
        let epoch = step / self.batches.per_epoch();
        let schedule = cosine_schedule(step, recipe.warmup_steps, self.n_steps());
        let indices = self.batches.at(step);
        let (images, labels) = augmented_batch(
            recipe,
            self.train,
            &indices,
            epoch,
            self.normalization,
            self.vit.device(),
        )?;
        let mut values = in_pool(|| self.update(&images, &labels, schedule))?;
        self.step += 1;
        if self.step.is_multiple_of(self.batches.per_epoch()) {
            values.push(self.test_accuracy()?);
            if let Some(pupil) = &self.pupil {
                let fidelity = self.fidelity(pupil)?;
                values.extend([fidelity.kl, fidelity.agreement, fidelity.accuracy]);
            }
        }
        Ok(values)
    }

    fn checkpoint(&self, recipe: &str) -> Result<Checkpoint> {
        Ok(Checkpoint {
            step: self.step,
            rng: self.rng.clone(),
            recipe: recipe.to_owned(),
            tensors: self.optim.state()?,
        })
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.optim.restore(&checkpoint.tensors)?;
        self.step = checkpoint.step;
        self.rng = checkpoint.rng;
        Ok(())
    }
}

/// Cross-entropy with a target that spreads `smoothing` of its weight evenly over all classes (arXiv:1512.00567,
/// section 7).
fn cross_entropy(logits: &Tensor, labels: &[Label], smoothing: f64) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    let mut target = vec![(smoothing / classes as f64) as f32; batch * classes];
    for (row, label) in target.chunks_exact_mut(classes).zip(labels) {
        for (class, share) in [
            (label.class, 1.0 - label.other_share),
            (label.other, label.other_share),
        ] {
            if let Some(weight) = row.get_mut(class as usize) {
                *weight += ((1.0 - smoothing) * share) as f32;
            }
        }
    }
    let target = Tensor::from_vec(target, (batch, classes), logits.device())?;
    let log_probabilities = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    Ok(((log_probabilities * target)?.sum_all()? * (-1.0 / batch as f64))?)
}
