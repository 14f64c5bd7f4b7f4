//! Trains a Vision Transformer as a classifier from scratch.
//!
//! Cross-entropy with label smoothing, AdamW, linear warm-up and half a cosine. For photographs each
//! picture is shifted and mirrored at random, and for most of the run each step sees only a share of the
//! patches (PatchDropout, Liu et al., arXiv:2208.07220): that is faster in proportion, and a model that
//! has seen missing patches answers better when an explainer takes patches away.

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::optim::{AdamW, AdamWOptions, Muon, Param};
use super::{Batches, Checkpoint, History, OnProgress, Progress, cosine_schedule};
use crate::data::{Dataset, Picture, images_from_pictures};
use crate::error::{Error, Result};
use crate::frame::FrameSize;
use crate::kernels::in_pool;
use crate::rng::Rng;
use crate::vit::{NoTap, Replace, Site, Tap, Vit, VitConfig, init};

/// What a run measures.
pub const COLUMNS: &[&str] = &["loss", "lr", "train accuracy", "test accuracy"];

/// How a classifier is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClassifierRecipe {
    /// Seed of the weights, the order of the pictures and their augmentation.
    pub seed: u64,
    /// Edge of a patch, in pixels.
    pub patch_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Heads of the attention.
    pub heads: usize,
    /// Passes over the training pictures.
    pub epochs: usize,
    /// Pictures a step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Highest learning rate of the blocks' matrices, which Muon then trains; without it AdamW trains all.
    pub muon_lr: Option<f64>,
    /// Steps until the learning rate is at its highest.
    pub warmup_steps: u64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Largest random shift each way, in pixels.
    pub shift_px: usize,
    /// Whether pictures are mirrored at random.
    pub mirror: bool,
    /// Share of the patches that a step sees.
    pub keep_patches: f64,
    /// Share of the run, at its end, in which steps see all patches.
    pub whole_share: f64,
    /// Gradients are scaled down to this global norm.
    pub max_norm: f64,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
}

impl Default for ClassifierRecipe {
    fn default() -> Self {
        Self {
            seed: 0,
            patch_size: 4,
            hidden_size: 192,
            blocks: 6,
            heads: 3,
            epochs: 20,
            batch: 128,
            lr: 1e-3,
            muon_lr: None,
            warmup_steps: 400,
            weight_decay: 0.05,
            label_smoothing: 0.1,
            shift_px: 4,
            mirror: true,
            keep_patches: 0.5,
            whole_share: 0.2,
            max_norm: 1.0,
            checkpoint_steps: 200,
        }
    }
}

impl ClassifierRecipe {
    /// The model that the recipe trains on pictures of `size` with these classes.
    pub fn config(&self, size: FrameSize, classes: &[String]) -> VitConfig {
        VitConfig {
            image_size: size.height_px,
            patch_size: self.patch_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.blocks,
            num_attention_heads: self.heads,
            intermediate_size: 4 * self.hidden_size,
            labels: classes.to_vec(),
            ..VitConfig::default()
        }
    }

    fn validate(&self, train: &dyn Dataset) -> Result<()> {
        let refuse = |reason: String| Err(Error::Config(reason));
        if train.is_empty() {
            return Err(Error::Data(format!("{:?} has no pictures", train.name())));
        }
        if train.classes().len() < 2 {
            return Err(Error::Data(format!(
                "a classifier needs labels of at least two classes, {:?} has {}",
                train.name(),
                train.classes().len()
            )));
        }
        let size = train.size();
        if size.width_px != size.height_px {
            return refuse(format!("pictures must be square to train on, got {size:?}"));
        }
        if self.batch == 0 || self.epochs == 0 {
            return refuse("batch and epochs must be at least 1".into());
        }
        if !(self.keep_patches > 0.0 && self.keep_patches <= 1.0) {
            return refuse(format!(
                "keep-patches must be above 0 and at most 1, got {}",
                self.keep_patches
            ));
        }
        Ok(())
    }
}

/// A trained classifier.
#[derive(Debug)]
pub struct TrainedClassifier {
    /// The model's shape.
    pub config: VitConfig,
    /// Weights under canonical names.
    pub weights: HashMap<String, Tensor>,
    /// Share of the test pictures that are classified right.
    pub test_accuracy: f64,
    /// False where `on_progress` ended the run early.
    pub complete: bool,
}

/// Mean and standard deviation that pictures are normalized with: pixels span -1 to 1.
pub const NORMALIZATION: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

/// Trains on `train`, measures on `test`; writes checkpoints, `train.csv` and `train.png` into `folder`.
///
/// Goes on from the checkpoint in `folder` where there is one.
///
/// # Errors
/// Fails on empty data, on a recipe that does not fit the data, and where `folder` cannot be written.
pub fn train(
    recipe: &ClassifierRecipe,
    train: &dyn Dataset,
    test: &dyn Dataset,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedClassifier> {
    recipe.validate(train)?;
    std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    let recipe_text = serde_json::to_string(recipe)
        .map_err(|error| Error::Config(format!("the recipe cannot be written: {error}")))?;
    let config = recipe.config(train.size(), train.classes());
    let mut rng = Rng::new(recipe.seed);
    let vars = init::init(&config, &mut rng)?
        .into_iter()
        .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
        .collect::<Result<HashMap<_, _>>>()?;
    let mut optim = Optimizers::new(recipe, &vars)?;
    let csv_path = folder.join("train.csv");

    let mut batches = Batches::new(recipe.seed, train.len(), recipe.batch);
    let n_batches = batches.per_epoch();
    let n_steps = n_batches * recipe.epochs as u64;
    let mut step = 0;
    if let Some(checkpoint) = Checkpoint::load(folder, &recipe_text)? {
        optim.restore(&checkpoint.tensors)?;
        step = checkpoint.step;
        rng = checkpoint.rng;
    }
    let mut history = History::load_csv(COLUMNS, &csv_path, step)?;
    let weights = vars
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    let vit = Vit::load(config.clone(), &weights)?;

    let mut complete = true;
    while step < n_steps {
        let epoch = step / n_batches;
        let indices = batches.at(step);
        let schedule = cosine_schedule(step, recipe.warmup_steps, n_steps);
        let whole = (step as f64) >= (1.0 - recipe.whole_share) * n_steps as f64;
        let keep = if whole { 1.0 } else { recipe.keep_patches };
        let (images, labels) = augmented_batch(recipe, train, &indices, epoch)?;
        let (loss, accuracy) = in_pool(|| {
            train_step(
                &vit, &mut optim, &images, &labels, recipe, keep, schedule, &mut rng,
            )
        })?;
        if !loss.is_finite() {
            return Err(Error::Config(format!(
                "the loss is {loss} at step {step}; lower the learning rate of {}",
                recipe.lr
            )));
        }
        step += 1;
        let end_of_epoch = step % n_batches == 0;
        let test_accuracy = if end_of_epoch {
            accuracy_on(&vit, test, recipe.batch)?
        } else {
            f64::NAN
        };
        let values = [loss, recipe.lr * schedule, accuracy, test_accuracy];
        history.push(step, &values);
        let go_on = on_progress(&Progress {
            step,
            n_steps,
            names: COLUMNS,
            values: &values,
        });
        if step % recipe.checkpoint_steps.max(1) == 0 || step == n_steps || !go_on {
            let checkpoint = Checkpoint {
                step,
                rng: rng.clone(),
                recipe: recipe_text.clone(),
                tensors: optim.state()?,
            };
            checkpoint.save(folder)?;
            history.save_csv(&csv_path)?;
        }
        if !go_on {
            complete = step == n_steps;
            break;
        }
    }
    history.save_csv(&csv_path)?;
    history.save_png(&folder.join("train.png"), "classifier")?;
    let test_accuracy = accuracy_on(&vit, test, recipe.batch)?;
    Ok(TrainedClassifier {
        config,
        weights: detached(&vars)?,
        test_accuracy,
        complete,
    })
}

/// Share of the labeled pictures of `data` that `vit` classifies right.
///
/// # Errors
/// Fails where a picture cannot be read or does not fit the model.
pub fn accuracy_on(vit: &Vit, data: &dyn Dataset, batch: usize) -> Result<f64> {
    let (mut right, mut seen) = (0usize, 0usize);
    let indices: Vec<usize> = (0..data.len()).collect();
    for chunk in indices.chunks(batch.max(1)) {
        let pictures = chunk
            .iter()
            .map(|&index| data.picture(index))
            .collect::<Result<Vec<_>>>()?;
        let (mean, std) = NORMALIZATION;
        let images = images_from_pictures(&pictures, mean, std, &Device::Cpu)?;
        let predicted = predictions(&vit.forward(&images)?.logits)?;
        for (&index, predicted) in chunk.iter().zip(predicted) {
            if let Some(label) = data.label(index) {
                seen += 1;
                right += usize::from(label == predicted as usize);
            }
        }
    }
    Ok(right as f64 / seen.max(1) as f64)
}

fn predictions(logits: &Option<Tensor>) -> Result<Vec<u32>> {
    let logits = logits
        .as_ref()
        .ok_or_else(|| Error::Model("the model has no classifier".into()))?;
    Ok(logits.argmax(D::Minus1)?.to_vec1()?)
}

/// Muon for the blocks' matrices where the recipe wants it, AdamW for everything else.
struct Optimizers {
    adamw: AdamW,
    muon: Option<(Muon, f64)>,
    lr: f64,
}

impl Optimizers {
    fn new(recipe: &ClassifierRecipe, vars: &HashMap<String, Var>) -> Result<Self> {
        let mut params: Vec<Param> = vars
            .iter()
            .map(|(name, var)| Param {
                name: name.clone(),
                var: var.clone(),
                lr_factor: 1.0,
                // Biases, norms, tokens and positions are not decayed.
                weight_decay: if name.ends_with("weight") && var.rank() > 1 {
                    recipe.weight_decay
                } else {
                    0.0
                },
            })
            .collect();
        params.sort_by(|a, b| a.name.cmp(&b.name));
        let (matrices, others) = params.into_iter().partition(|param| {
            recipe.muon_lr.is_some() && param.var.rank() == 2 && param.name.starts_with("encoder.")
        });
        let options = AdamWOptions {
            max_norm: Some(recipe.max_norm),
            ..AdamWOptions::default()
        };
        Ok(Self {
            adamw: AdamW::new(others, options),
            muon: recipe
                .muon_lr
                .map(|lr| Ok::<_, Error>((Muon::new(matrices)?, lr)))
                .transpose()?,
            lr: recipe.lr,
        })
    }

    /// One step at `schedule` times the highest learning rates.
    fn step(&mut self, grads: &GradStore, schedule: f64) -> Result<()> {
        self.adamw.step(grads, self.lr * schedule)?;
        if let Some((muon, lr)) = &mut self.muon {
            muon.step(grads, *lr * schedule)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = self.adamw.state()?;
        if let Some((muon, _)) = &self.muon {
            state.extend(muon.state()?);
        }
        Ok(state)
    }

    fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.adamw.restore(state)?;
        match &mut self.muon {
            Some((muon, _)) => muon.restore(state),
            None => Ok(()),
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one step of the loop, split off for reading; a struct would only rename its locals"
)]
fn train_step(
    vit: &Vit,
    optim: &mut Optimizers,
    images: &Tensor,
    labels: &[u32],
    recipe: &ClassifierRecipe,
    keep: f64,
    schedule: f64,
    rng: &mut Rng,
) -> Result<(f64, f64)> {
    let mut tap: Box<dyn Tap> = if keep < 1.0 {
        Box::new(drop_patches(vit, images, keep, rng)?)
    } else {
        Box::new(NoTap)
    };
    let logits = vit
        .forward_with(images, tap.as_mut())?
        .logits
        .ok_or_else(|| Error::Model("the model has no classifier".into()))?;
    let loss = cross_entropy(&logits, labels, recipe.label_smoothing)?;
    let grads = loss.backward()?;
    optim.step(&grads, schedule)?;
    let predicted = predictions(&Some(logits))?;
    let right = predicted.iter().zip(labels).filter(|(a, b)| a == b).count();
    let accuracy = right as f64 / labels.len().max(1) as f64;
    Ok((f64::from(loss.to_scalar::<f32>()?), accuracy))
}

/// Cross-entropy with a target that gives `smoothing` of its weight to all classes alike (arXiv:1512.00567, section 7).
fn cross_entropy(logits: &Tensor, labels: &[u32], smoothing: f64) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    let mut target = vec![(smoothing / classes as f64) as f32; batch * classes];
    for (row, &label) in target.chunks_exact_mut(classes).zip(labels) {
        if let Some(weight) = row.get_mut(label as usize) {
            *weight += (1.0 - smoothing) as f32;
        }
    }
    let target = Tensor::from_vec(target, (batch, classes), logits.device())?;
    let log_probabilities = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    Ok(((log_probabilities * target)?.sum_all()? * (-1.0 / batch as f64))?)
}

/// A tap that keeps the special tokens and a random share of the patches, the same for the whole batch.
fn drop_patches(vit: &Vit, images: &Tensor, keep: f64, rng: &mut Rng) -> Result<impl Tap + use<>> {
    let (_, _, height_px, width_px) = images.dims4()?;
    let (grid_h, grid_w) = vit.grid(height_px, width_px);
    let n_patches = grid_h * grid_w;
    let n_special = vit.config().n_special_tokens();
    let mut patches: Vec<u32> = (0..n_patches as u32).collect();
    rng.shuffle(&mut patches);
    patches.truncate(((n_patches as f64 * keep).round() as usize).max(1));
    patches.sort_unstable();
    let kept: Vec<u32> = (0..n_special as u32)
        .chain(patches.iter().map(|patch| patch + n_special as u32))
        .collect();
    let kept = Tensor::new(kept, images.device())?;
    Ok(Replace::new(Site::Hidden(0), move |xs: Tensor| {
        xs.index_select(&kept, 1)
    }))
}

fn augmented_batch(
    recipe: &ClassifierRecipe,
    data: &dyn Dataset,
    indices: &[usize],
    epoch: u64,
) -> Result<(Tensor, Vec<u32>)> {
    let (mut pictures, mut labels) = (Vec::new(), Vec::new());
    for &index in indices {
        let label = data.label(index).ok_or_else(|| {
            Error::Data(format!("picture {index} of {:?} has no label", data.name()))
        })?;
        let item = (epoch + 1) * data.len() as u64 + index as u64;
        let mut rng = Rng::for_item(recipe.seed, item);
        pictures.push(augment(recipe, data.picture(index)?, &mut rng));
        labels.push(label as u32);
    }
    let (mean, std) = NORMALIZATION;
    let images = images_from_pictures(&pictures, mean, std, &Device::Cpu)?;
    Ok((images, labels))
}

/// Shifts a picture at random, gray moving in, and mirrors every other one.
fn augment(recipe: &ClassifierRecipe, picture: Picture, rng: &mut Rng) -> Picture {
    if recipe.shift_px == 0 && !recipe.mirror {
        return picture;
    }
    const GRAY: u8 = 128;
    let FrameSize {
        width_px,
        height_px,
    } = picture.size;
    let mut shift = || rng.below(2 * recipe.shift_px + 1) as i64 - recipe.shift_px as i64;
    let (down, right) = (shift(), shift());
    let mirrored = recipe.mirror && rng.below(2) == 1;
    let mut rgb = vec![GRAY; picture.rgb.len()];
    for row in 0..height_px as i64 {
        for column in 0..width_px as i64 {
            let from_row = row - down;
            let from_column = if mirrored {
                width_px as i64 - 1 - column - right
            } else {
                column - right
            };
            if (0..height_px as i64).contains(&from_row)
                && (0..width_px as i64).contains(&from_column)
            {
                let from = 3 * (from_row as usize * width_px + from_column as usize);
                let to = 3 * (row as usize * width_px + column as usize);
                rgb[to..to + 3].copy_from_slice(&picture.rgb[from..from + 3]);
            }
        }
    }
    Picture {
        size: picture.size,
        rgb,
    }
}

fn detached(vars: &HashMap<String, Var>) -> Result<HashMap<String, Tensor>> {
    vars.iter()
        .map(|(name, var)| Ok((name.clone(), var.as_tensor().detach().copy()?)))
        .collect()
}
