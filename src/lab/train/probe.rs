//! A linear probe: a classifier on the features of a frozen model.
//!
//! The features of all images are computed once and standardized to mean 0 and deviation 1. A linear map learns the
//! classes by cross-entropy. The standardization is then folded into the map, so that it reads the model's raw
//! features.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::optim::{AdamW, AdamWOptions, Param};
use super::run::{Plan, Trainer, finite_loss, recipe_text, run};
use super::{Batches, Checkpoint, OnProgress, Subject, cosine_schedule};
use crate::data::labeled_images;
use crate::eval::classification::Count;
use vitscope_core::error::{Error, Result};
use vitscope_core::rng::Rng;
use vitscope_core::vit::Head;
use vitscope_core::vit::head::features;
use vitscope_kernels::in_pool;

/// Columns of a run's measurements.
pub const COLUMNS: &[&str] = &["loss", "train accuracy", "test accuracy"];

/// Recipe for training a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProbeRecipe {
    /// Seed of the image order.
    pub seed: u64,
    /// Side of the square that images are resized to, in px; 0 uses the model's own size.
    pub input_px: usize,
    /// Number of training images, spread over the data; 0 uses all.
    pub pictures: usize,
    /// Number of test images; 0 uses all.
    pub test_pictures: usize,
    /// Epochs over the features.
    pub epochs: usize,
    /// Features per step (batch size).
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Images per forward pass of the model.
    pub feature_batch: usize,
    /// Steps between checkpoints, both while computing features and while training.
    pub checkpoint_steps: u64,
}

impl Default for ProbeRecipe {
    fn default() -> Self {
        Self {
            seed: 0,
            input_px: 0,
            pictures: 0,
            test_pictures: 0,
            epochs: 50,
            batch: 256,
            lr: 1e-3,
            weight_decay: 0.05,
            feature_batch: 16,
            checkpoint_steps: 100,
        }
    }
}

/// A trained classifier for a frozen model.
#[derive(Debug)]
pub struct TrainedProbe {
    /// `[classes, width]`
    pub weight: Tensor,
    /// `[classes]`
    pub bias: Tensor,
    /// Correct predictions on test images.
    pub test: Count,
    /// False if `on_progress` ended the run early.
    pub complete: bool,
}

/// Trains a classifier on the features of a frozen model; writes checkpoints, `probe.csv` and `probe.png` into
/// `folder`.
///
/// Reads the same features as the heads of the model's family: the class token, plus the mean of the patch tokens for
/// DINOv2. Resumes from the checkpoint in `folder`, if any.
///
/// # Errors
/// Fails if the data have no labels, the images do not fit the model, or `folder` cannot be written.
pub fn train(
    recipe: &ProbeRecipe,
    subject: Subject<'_>,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedProbe> {
    subject.check()?;
    let classes = subject.train.classes();
    if classes.len() < 2 || classes != subject.test.classes() {
        return Err(Error::Data(format!(
            "a classifier needs labels of at least two classes, the same in both splits, but {:?} has {}",
            subject.train.name(),
            classes.len()
        )));
    }
    if recipe.batch == 0 || recipe.epochs == 0 || recipe.feature_batch == 0 {
        return Err(Error::Config(
            "batches and epochs must be at least 1".into(),
        ));
    }
    let mut trainer = ProbeTrainer::new(recipe, subject)?;
    let plan = Plan {
        folder,
        curves: "probe",
        title: "linear probe",
        columns: COLUMNS,
        recipe: recipe_text(&(recipe, subject.base_sha256))?,
        n_steps: trainer.n_feature_steps() + trainer.n_learning_steps(),
        checkpoint_steps: recipe.checkpoint_steps,
    };
    let complete = run(&mut trainer, &plan, on_progress)?;
    trainer.finish(complete)
}

/// Features of images with their classes.
#[derive(Default)]
struct Features {
    /// `[images · width]`
    values: Vec<f32>,
    labels: Vec<u32>,
}

/// State of a run between two steps: first the features are computed, then the map learns.
struct ProbeTrainer<'a> {
    recipe: &'a ProbeRecipe,
    subject: Subject<'a>,
    width: usize,
    /// Indices of the images, chunk by chunk, training images first.
    chunks: Vec<(bool, Vec<usize>)>,
    train: Features,
    test: Features,
    weight: Var,
    bias: Var,
    optim: AdamW,
    batches: Batches,
    /// Mean and deviation of each feature, once all features are computed.
    scale: Option<(Tensor, Tensor)>,
    step: u64,
}

impl<'a> ProbeTrainer<'a> {
    fn new(recipe: &'a ProbeRecipe, subject: Subject<'a>) -> Result<Self> {
        let config = subject.vit.config();
        let width = match config.reads {
            Head::ClassTokenAndPatchMean => 2 * config.hidden_size,
            Head::ClassToken | Head::ClassAndDistillationTokens => config.hidden_size,
            Head::ImageEmbedding { .. } => {
                return Err(Error::Model(
                    "CLIP classifies by class vectors and has no linear head to train".into(),
                ));
            }
        };
        let n_classes = subject.train.classes().len();
        let zeros = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu);
        let (weight, bias) = (zeros(&[n_classes, width])?, zeros(&[n_classes])?);
        let param = |name: &str, var: &Var, weight_decay| Param {
            name: name.to_owned(),
            var: var.clone(),
            lr_factor: 1.0,
            weight_decay,
        };
        let params = vec![
            param("weight", &weight, recipe.weight_decay),
            param("bias", &bias, 0.0),
        ];
        let spread = |len: usize, wanted: usize| -> Vec<usize> {
            let n = if wanted == 0 { len } else { wanted.min(len) };
            (0..n).map(|index| index * len / n).collect()
        };
        let train = spread(subject.train.len(), recipe.pictures);
        let test = spread(subject.test.len(), recipe.test_pictures);
        let chunks = [(true, &train), (false, &test)]
            .into_iter()
            .flat_map(|(learns, indices)| {
                let chunks = indices.chunks(recipe.feature_batch);
                chunks.map(move |chunk| (learns, chunk.to_vec()))
            })
            .collect();
        Ok(Self {
            batches: Batches::new(recipe.seed, train.len(), recipe.batch),
            optim: AdamW::new(params, AdamWOptions::default()),
            recipe,
            subject,
            width,
            chunks,
            train: Features::default(),
            test: Features::default(),
            weight,
            bias,
            scale: None,
            step: 0,
        })
    }

    fn n_feature_steps(&self) -> u64 {
        self.chunks.len() as u64
    }

    fn n_learning_steps(&self) -> u64 {
        self.batches.per_epoch() * self.recipe.epochs as u64
    }

    /// Computes the features of one chunk.
    fn look(&mut self) -> Result<()> {
        let Subject {
            vit,
            train,
            test,
            mean,
            std,
            ..
        } = self.subject;
        let (learns, indices) = &self.chunks[self.step as usize];
        let data = if *learns { train } else { test };
        let (images, labels) = labeled_images(data, indices, (mean, std), vit.device())?;
        let output = vit.forward(&images)?;
        let config = vit.config();
        let read = features(config.reads, &output.tokens, config.n_special_tokens())?;
        let features = if *learns {
            &mut self.train
        } else {
            &mut self.test
        };
        for (values, label) in read.to_vec2::<f32>()?.iter().zip(labels) {
            if let Some(label) = label {
                features.values.extend_from_slice(values);
                features.labels.push(label as u32);
            }
        }
        Ok(())
    }

    /// Returns the scaled features of the images at `indices`, and their classes.
    fn scaled(
        &mut self,
        features: fn(&Self) -> &Features,
        indices: &[usize],
    ) -> Result<(Tensor, Tensor)> {
        if self.scale.is_none() {
            self.scale = Some(mean_and_deviation(&self.train, self.width)?);
        }
        let found = features(self);
        let mut values = Vec::with_capacity(indices.len() * self.width);
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            values.extend_from_slice(&found.values[index * self.width..][..self.width]);
            labels.push(found.labels[index]);
        }
        let values = Tensor::from_vec(values, (indices.len(), self.width), &Device::Cpu)?;
        let values = match &self.scale {
            Some((mean, deviation)) => values.broadcast_sub(mean)?.broadcast_div(deviation)?,
            None => values,
        };
        Ok((values, Tensor::new(labels, &Device::Cpu)?))
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(features
            .matmul(&self.weight.as_tensor().t()?)?
            .broadcast_add(self.bias.as_tensor())?)
    }

    /// Updates the map once; returns the loss and accuracy of the batch.
    fn learn(&mut self) -> Result<Vec<f64>> {
        // Unreadable images have no features.
        let n_features = self.train.labels.len();
        let step = self.step - self.n_feature_steps();
        let mut indices = self.batches.at(step);
        indices.retain(|index| *index < n_features);
        let (features, labels) = self.scaled(|probe| &probe.train, &indices)?;
        let logits = self.logits(&features)?;
        let log_probabilities = log_softmax(&logits, D::Minus1)?;
        let of_label = log_probabilities.gather(&labels.unsqueeze(1)?, 1)?;
        let loss = of_label.mean_all()?.neg()?;
        let grads = loss.backward()?;
        let loss = finite_loss(&loss, self.step, self.recipe.lr)?;
        let schedule = cosine_schedule(step, self.batches.per_epoch(), self.n_learning_steps());
        self.optim.step(&grads, self.recipe.lr * schedule)?;
        Ok(vec![loss, count(&logits, &labels)?.share()])
    }

    fn measure(&mut self) -> Result<Count> {
        let all: Vec<usize> = (0..self.test.labels.len()).collect();
        let (features, labels) = self.scaled(|probe| &probe.test, &all)?;
        count(&self.logits(&features)?, &labels)
    }

    fn finish(mut self, complete: bool) -> Result<TrainedProbe> {
        if self.step < self.n_feature_steps() {
            return Ok(TrainedProbe {
                weight: self.weight.as_tensor().copy()?,
                bias: self.bias.as_tensor().copy()?,
                test: Count::default(),
                complete,
            });
        }
        let test = self.measure()?;
        let (mut weight, mut bias) = (
            self.weight.as_tensor().clone(),
            self.bias.as_tensor().clone(),
        );
        if let Some((mean, deviation)) = &self.scale {
            // w · (x - mean) / deviation + b = (w / deviation) · x + (b - (w / deviation) · mean)
            weight = weight.broadcast_div(deviation)?;
            bias = (bias - weight.matmul(&mean.t()?)?.squeeze(1)?)?;
        }
        Ok(TrainedProbe {
            weight: weight.detach(),
            bias: bias.detach(),
            test,
            complete,
        })
    }
}

impl Trainer for ProbeTrainer<'_> {
    fn steps_done(&self) -> u64 {
        self.step
    }

    fn step(&mut self) -> Result<Vec<f64>> {
        if self.step < self.n_feature_steps() {
            self.look()?;
            self.step += 1;
            return Ok(Vec::new());
        }
        let mut values = in_pool(|| self.learn())?;
        self.step += 1;
        let learned = self.step - self.n_feature_steps();
        if learned.is_multiple_of(self.batches.per_epoch()) {
            values.push(self.measure()?.share());
        }
        Ok(values)
    }

    fn checkpoint(&self, recipe: &str) -> Result<Checkpoint> {
        let mut tensors = self.optim.state()?;
        for (name, features) in [("train", &self.train), ("test", &self.test)] {
            let labels: Vec<f32> = features.labels.iter().map(|label| *label as f32).collect();
            let vectors = [("features", features.values.clone()), ("labels", labels)];
            for (kind, values) in vectors {
                let len = values.len();
                let tensor = Tensor::from_vec(values, len, &Device::Cpu)?;
                tensors.insert(format!("{name} {kind}"), tensor);
            }
        }
        Ok(Checkpoint {
            step: self.step,
            // Nothing is drawn after the start.
            rng: Rng::new(self.recipe.seed),
            recipe: recipe.to_owned(),
            tensors,
        })
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.optim.restore(&checkpoint.tensors)?;
        let saved = |name: &str| restored(&checkpoint.tensors, name);
        for (name, features) in [("train", &mut self.train), ("test", &mut self.test)] {
            features.values = saved(&format!("{name} features"))?;
            let labels = saved(&format!("{name} labels"))?;
            features.labels = labels.into_iter().map(|label| label as u32).collect();
        }
        self.step = checkpoint.step;
        Ok(())
    }
}

fn restored(tensors: &HashMap<String, Tensor>, name: &str) -> Result<Vec<f32>> {
    let lacking = || Error::Config(format!("the checkpoint lacks the {name}"));
    Ok(tensors.get(name).ok_or_else(lacking)?.to_vec1()?)
}

/// Computes the mean and standard deviation of each feature, `[1, width]` each; constant features are not scaled.
fn mean_and_deviation(features: &Features, width: usize) -> Result<(Tensor, Tensor)> {
    let rows = features.labels.len();
    if rows == 0 {
        return Err(Error::Data("no picture could be read".into()));
    }
    let (mut mean, mut square) = (vec![0f64; width], vec![0f64; width]);
    for row in features.values.chunks_exact(width) {
        for ((mean, square), &value) in mean.iter_mut().zip(&mut square).zip(row) {
            *mean += f64::from(value) / rows as f64;
            *square += f64::from(value).powi(2) / rows as f64;
        }
    }
    let deviation: Vec<f32> = mean
        .iter()
        .zip(square)
        .map(|(mean, square)| match (square - mean * mean).sqrt() {
            deviation if deviation > 1e-6 => deviation as f32,
            _ => 1.0,
        })
        .collect();
    let mean: Vec<f32> = mean.into_iter().map(|mean| mean as f32).collect();
    let row = |values| Tensor::from_vec(values, (1, width), &Device::Cpu);
    Ok((row(mean)?, row(deviation)?))
}

fn count(logits: &Tensor, labels: &Tensor) -> Result<Count> {
    let predicted: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    let labels: Vec<u32> = labels.to_vec1()?;
    Ok(Count {
        right: predicted
            .iter()
            .zip(&labels)
            .filter(|(a, b)| a == b)
            .count(),
        of: labels.len(),
    })
}
