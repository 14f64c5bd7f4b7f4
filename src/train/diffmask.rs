//! Trains DiffMask gates for a frozen model.
//!
//! Vision DiffMask (Nalmpantis et al., XAI4CV 2023): keep as few patches as possible while the model's
//! answer stays within a margin of the original one. Each step samples a depth k and one mask, and
//! plays both sides of
//!
//! ```text
//! max over λ_k ≥ 0, min over gates:  mean over images of  λ_k · (KL(original ‖ masked) − margin) + s_k
//! ```
//!
//! | symbol | name | meaning |
//! |---|---|---|
//! | k | `depth` | gates 0 to k vote; uniform over all depths |
//! | λ_k | `lambda` | multiplier of that depth; the authors' code: alpha |
//! | m | `margin` | largest divergence allowed, nats; the authors' code: eps |
//! | s_k | sparsity | mean over patches of Σᵢ₌₀..ₖ log P(zᵢ≠0) |
//!
//! **Deviations** from the authors' code, each because it was seen to fail:
//! - λ ascends. Theirs descends, for the negation of its gradient is lost in the framework's hooks.
//! - One pass serves gates and multiplier, at half the cost; theirs draws two.
//! - λ moves by plain steps, λ ← clamp(λ + rate·clip((KL − m)/m, −1, 1)), because Adam's second moment
//!   remembers the first huge divergences for a thousand steps.
//! - No Lookahead; the class token has no vote; the model's clean pass builds no graph.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{D, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::optim::{AdamW, AdamWOptions, Param};
use super::{Checkpoint, History, OnProgress, Progress};
use crate::data::{Dataset, images_from_pictures};
use crate::error::{Error, Result};
use crate::eval::{self, kl_from_logits, masked_answers};
use crate::gates::{
    BASELINE, GateCard, GateSizes, Gates, clean_pass, log_keep_from_logits, masked_pass,
    sample_from_logits,
};
use crate::rng::Rng;
use crate::vit::Vit;

/// What a run measures: at each step, for the sampled mask, and now and then for binary masks on test pictures.
pub const COLUMNS: &[&str] = &[
    "loss",
    "kl",
    "kept",
    "lambda",
    "depth",
    "agreement",
    "test kl",
    "test kept",
    "test agreement",
];

/// Before the names of the best gates' tensors in a checkpoint.
const BEST_PREFIX: &str = "best.";

/// A mask keeps a patch from this attribution on.
pub const THRESHOLD: f32 = 0.5;

/// How gates are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiffMaskRecipe {
    /// Seed of the gates, the order of the pictures, the depths and the samples.
    pub seed: u64,
    /// Updates of the gates.
    pub steps: u64,
    /// Pictures a step.
    pub batch: usize,
    /// Learning rate of the gates.
    pub lr: f64,
    /// Learning rate of the baseline.
    pub lr_baseline: f64,
    /// Decay of the optimizer's mean of squared gradients.
    pub beta2: f32,
    /// Steps until both are reached.
    pub warmup_steps: u64,
    /// Share of the run, at its end, in which both fall to zero.
    pub cooldown_share: f64,
    /// Half-width of the range of logits.
    pub stretch: f64,
    /// Middle of the range of logits at the start.
    pub offset: f64,
    /// Share of patches that is masked at the start; where given, `offset` is found from it on the first pictures.
    pub masked_share: Option<f64>,
    /// Largest divergence allowed, in nats.
    pub margin: f64,
    /// Multipliers at the start.
    pub lambda: f64,
    /// Largest change of a multiplier in one step.
    pub lambda_rate: f64,
    /// Lower bound of a multiplier: what the divergence always weighs.
    pub lambda_min: f64,
    /// Upper bound of a multiplier.
    pub lambda_max: f64,
    /// Slope that a vote of exactly 0 passes back to its logit.
    pub dead_gradient: f64,
    /// Steps between measurements on test pictures.
    pub test_steps: u64,
    /// Test pictures that are measured on.
    pub test_pictures: usize,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
}

impl Default for DiffMaskRecipe {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 10_000,
            batch: 16,
            lr: 1e-4,
            lr_baseline: 1e-3,
            beta2: 0.999,
            warmup_steps: 200,
            cooldown_share: 0.2,
            stretch: 15.0,
            offset: 13.0,
            masked_share: None,
            margin: 0.1,
            lambda: 20.0,
            lambda_rate: 0.3,
            lambda_min: 0.0,
            lambda_max: 200.0,
            dead_gradient: 0.0,
            test_steps: 500,
            test_pictures: 256,
            checkpoint_steps: 500,
        }
    }
}

/// The frozen model that gates are trained for, with the pictures.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model, over plain tensors.
    pub vit: &'a Vit,
    /// Hash of its weights' file, for the gates' card.
    pub base_sha256: &'a str,
    /// Mean that pictures are normalized with, by channel.
    pub mean: [f32; 3],
    /// Standard deviation that pictures are normalized with, by channel.
    pub std: [f32; 3],
    /// Pictures to learn from; labels are not used.
    pub train: &'a dyn Dataset,
    /// Pictures to measure on.
    pub test: &'a dyn Dataset,
}

/// Trained gates.
#[derive(Debug)]
pub struct TrainedGates {
    /// By name, as [`Gates::load`] takes them.
    pub tensors: BTreeMap<String, Tensor>,
    /// What belongs beside them on disk.
    pub card: GateCard,
    /// Agreement of the answers with and without the binary mask, on test pictures.
    pub agreement: f64,
    /// False where `on_progress` ended the run early.
    pub complete: bool,
}

/// Trains gates; writes checkpoints, `gates.csv` and `gates.png` into `folder`.
///
/// Goes on from the checkpoint in `folder` where there is one.
///
/// # Errors
/// Fails on empty data, on pictures or a recipe that do not fit the model, and where `folder` cannot be
/// written.
pub fn train(
    recipe: &DiffMaskRecipe,
    subject: Subject<'_>,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedGates> {
    validate(recipe, subject)?;
    std::fs::create_dir_all(folder).map_err(|err| Error::io(folder, err))?;
    // The checkpoint also belongs to the model: other weights make another run.
    let recipe_text = serde_json::to_string(&(recipe, subject.base_sha256))
        .map_err(|err| Error::Config(format!("the recipe cannot be written: {err}")))?;
    let mut trainer = Trainer::new(recipe, subject)?;
    if let Some(checkpoint) = Checkpoint::load(folder, &recipe_text)? {
        trainer.restore(checkpoint)?;
    }
    let csv_path = folder.join("gates.csv");
    let mut history = History::load_csv(COLUMNS, &csv_path, trainer.step)?;
    let mut complete = true;
    while trainer.step < recipe.steps {
        let mut values = trainer.step()?.to_vec();
        let step = trainer.step;
        if step.is_multiple_of(recipe.test_steps.max(1)) || step == recipe.steps {
            let measured = trainer.measure()?;
            trainer.keep_best(measured)?;
            values.extend([measured.kl, measured.kept, measured.agreement]);
        }
        values.resize(COLUMNS.len(), f64::NAN);
        history.push(step, &values);
        let go_on = on_progress(&Progress {
            step,
            n_steps: recipe.steps,
            names: COLUMNS,
            values: &values,
        });
        if step.is_multiple_of(recipe.checkpoint_steps.max(1)) || step == recipe.steps || !go_on {
            trainer.checkpoint(&recipe_text)?.save(folder)?;
            history.save_csv(&csv_path)?;
        }
        if !go_on {
            complete = step == recipe.steps;
            break;
        }
    }
    history.save_csv(&csv_path)?;
    history.save_png(&folder.join("gates.png"), "gates")?;
    trainer.finish(complete)
}

fn validate(recipe: &DiffMaskRecipe, subject: Subject<'_>) -> Result<()> {
    let Subject {
        vit, train, test, ..
    } = subject;
    for data in [train, test] {
        if data.is_empty() {
            return Err(Error::Data(format!("{:?} has no pictures", data.name())));
        }
        let (size, side_px) = (data.size(), vit.config().image_size);
        if size.width_px != side_px || size.height_px != side_px {
            return Err(Error::Data(format!(
                "the model sees {side_px}×{side_px} pixels, {:?} has {}×{}",
                data.name(),
                size.width_px,
                size.height_px
            )));
        }
    }
    let positive = [
        ("lr", recipe.lr),
        ("stretch", recipe.stretch),
        ("margin", recipe.margin),
        ("lambda-max", recipe.lambda_max),
    ];
    for (name, value) in positive {
        if !(value > 0.0 && value.is_finite()) {
            return Err(Error::Config(format!(
                "{name} must be above 0, got {value}"
            )));
        }
    }
    if recipe.batch == 0 || recipe.steps == 0 {
        return Err(Error::Config("batch and steps must be at least 1".into()));
    }
    if let Some(share) = recipe.masked_share
        && !(share > 0.0 && share < 1.0)
    {
        return Err(Error::Config(format!(
            "masked-share must be above 0 and below 1, got {share}"
        )));
    }
    Ok(())
}

/// Means over test pictures of what binary masks do.
#[derive(Clone, Copy, Debug)]
struct Measured {
    kl: f64,
    kept: f64,
    agreement: f64,
}

impl Measured {
    /// True where these gates are to be preferred: within the margin fewer patches are better, outside
    /// of it a smaller divergence.
    fn is_better_than(&self, other: &Self, margin: f64) -> bool {
        match (self.kl <= margin, other.kl <= margin) {
            (true, true) => (self.kept, self.kl) < (other.kept, other.kl),
            (false, false) => self.kl < other.kl,
            (within, _) => within,
        }
    }
}

/// The gates that measured best so far.
struct Best {
    measured: Measured,
    tensors: BTreeMap<String, Tensor>,
}

/// A run between two steps.
struct Trainer<'a> {
    recipe: &'a DiffMaskRecipe,
    subject: Subject<'a>,
    vars: BTreeMap<String, Var>,
    gates: Gates,
    optim: AdamW,
    /// One multiplier a depth.
    lambda: Vec<f32>,
    /// Draws depths and samples.
    rng: Rng,
    step: u64,
    /// The pictures' order in the epoch that was last asked for.
    order: (u64, Vec<usize>),
    best: Option<Best>,
}

impl<'a> Trainer<'a> {
    fn new(recipe: &'a DiffMaskRecipe, subject: Subject<'a>) -> Result<Self> {
        let sizes = GateSizes::new(subject.vit.config());
        let mut rng = Rng::new(recipe.seed);
        let mut tensors = Gates::initial_tensors(sizes, recipe.offset, &mut rng, &Device::Cpu)?;
        let mut order = (0, epoch_order(recipe.seed, 0, subject.train.len()));
        if let Some(share) = recipe.masked_share {
            let images = images_at(
                subject,
                subject.train,
                &batch_of(recipe, subject, &mut order, 0),
            )?;
            let offset = calibrated_offset(&tensors, recipe.stretch, subject.vit, &images, share)?;
            for (name, tensor) in &mut tensors {
                if name.ends_with("offset") {
                    *tensor = Tensor::full(offset as f32, 1, &Device::Cpu)?;
                }
            }
        }
        let vars = tensors
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(tensor)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let over_vars: HashMap<String, Tensor> = vars
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let params = vars
            .iter()
            .map(|(name, var)| Param {
                name: name.clone(),
                var: var.clone(),
                lr_factor: if name == BASELINE {
                    recipe.lr_baseline / recipe.lr
                } else {
                    1.0
                },
                weight_decay: 0.0,
            })
            .collect();
        let options = AdamWOptions {
            beta2: recipe.beta2,
            ..AdamWOptions::default()
        };
        Ok(Self {
            recipe,
            subject,
            gates: Gates::load(sizes, recipe.stretch, &over_vars)?,
            vars,
            optim: AdamW::new(params, options),
            lambda: vec![recipe.lambda as f32; sizes.states],
            rng,
            step: 0,
            order,
            best: None,
        })
    }

    /// One update of the gates, the baseline and one multiplier; returns the first six of [`COLUMNS`].
    fn step(&mut self) -> Result<[f64; 6]> {
        let Self {
            recipe, subject, ..
        } = *self;
        let indices = batch_of(recipe, subject, &mut self.order, self.step);
        let images = images_at(subject, subject.train, &indices)?;
        let clean = clean_pass(subject.vit, &images)?;
        let original = eval::logits(clean.output.logits)?;
        let depth = self.rng.below(self.lambda.len());
        let (mask, log_mask) = self.sample(&clean.states, depth)?;
        let masked = masked_pass(subject.vit, &images, &mask, self.gates.baseline())?;
        let masked = eval::logits(masked.logits)?;
        let kl = kl_from_logits(&original, &masked)?.mean_all()?;
        let sparsity = log_mask.mean_all()?;
        let lambda = f64::from(self.lambda[depth]);
        // The margin is constant and leaves the gradient alone.
        let loss = (((&kl - recipe.margin)? * lambda)? + sparsity)?;
        let grads = loss.backward()?;
        self.optim
            .step(&grads, recipe.lr * schedule(recipe, self.step))?;
        let kl = f64::from(kl.to_scalar::<f32>()?);
        let loss = f64::from(loss.to_scalar::<f32>()?);
        if !loss.is_finite() {
            return Err(Error::Config(format!(
                "the loss is {loss} at step {}; lower the learning rate of {}",
                self.step, recipe.lr
            )));
        }
        self.lambda[depth] = ascended(recipe, lambda, kl) as f32;
        self.step += 1;
        let kept = log_mask.exp()?.mean_all()?.to_scalar::<f32>()?;
        Ok([
            loss,
            kl,
            f64::from(kept),
            f64::from(self.lambda[depth]),
            depth as f64,
            agreement(&original, &masked)?,
        ])
    }

    /// A mask sampled from gates 0 to `depth`, and the logarithm of its keep probabilities.
    ///
    /// # Shapes
    /// - result: two of `[batch, patches]`
    fn sample(&mut self, states: &[Tensor], depth: usize) -> Result<(Tensor, Tensor)> {
        let mut product: Option<(Tensor, Tensor)> = None;
        for logits in self.gates.logits(states, depth)? {
            // An f32 drawn from [0, 1) has 24 bits; half a step away from both ends the noise is finite.
            let uniform = self
                .rng
                .uniform_tensor(logits.shape(), logits.device())?
                .clamp(2f64.powi(-25), 1.0 - 2f64.powi(-24))?;
            let vote = sample_from_logits(&logits, &uniform, self.recipe.dead_gradient)?;
            let log_keep = log_keep_from_logits(&logits)?;
            product = Some(match product {
                Some((mask, log_mask)) => ((mask * vote)?, (log_mask + log_keep)?),
                None => (vote, log_keep),
            });
        }
        product.ok_or_else(|| Error::Model("a model has at least two states".into()))
    }

    /// Divergence, kept share and agreement of binary masks on test pictures.
    fn measure(&self) -> Result<Measured> {
        let Subject { vit, test, .. } = self.subject;
        let gates = self.gates.freeze()?;
        let baseline = self.gates.baseline().detach();
        let indices: Vec<usize> = (0..test.len().min(self.recipe.test_pictures.max(1))).collect();
        let mut answers = Vec::new();
        for chunk in indices.chunks(self.recipe.batch.max(32)) {
            let images = images_at(self.subject, test, chunk)?;
            let clean = clean_pass(vit, &images)?;
            let masks: Vec<Vec<f32>> = gates.mask(&clean.states)?.to_vec2()?;
            let masks: Vec<Vec<bool>> = masks
                .into_iter()
                .map(|mask| mask.into_iter().map(|keep| keep >= THRESHOLD).collect())
                .collect();
            let original = eval::logits(clean.output.logits)?;
            answers.extend(masked_answers(vit, &images, &original, &masks, &baseline)?);
        }
        // Rounded to what a checkpoint keeps, so that a resumed run compares the same numbers.
        let mean = |value: fn(&eval::MaskedAnswer) -> f64| {
            let sum = answers.iter().map(value).sum::<f64>();
            f64::from((sum / answers.len() as f64) as f32)
        };
        Ok(Measured {
            kl: mean(|answer| answer.kl),
            kept: mean(|answer| answer.kept),
            agreement: mean(|answer| f64::from(u8::from(answer.agrees))),
        })
    }

    /// Remembers the gates as they are if they measured better than any before.
    fn keep_best(&mut self, measured: Measured) -> Result<()> {
        let margin = self.recipe.margin;
        let beaten = |best: &Best| measured.is_better_than(&best.measured, margin);
        if self.best.as_ref().is_none_or(beaten) {
            let tensors = self.tensors()?;
            self.best = Some(Best { measured, tensors });
        }
        Ok(())
    }

    /// Copies of all values by name.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let copied = |(name, var): (&String, &Var)| -> Result<_> {
            Ok((name.clone(), var.as_tensor().detach().copy()?))
        };
        self.vars.iter().map(copied).collect()
    }

    fn checkpoint(&self, recipe_text: &str) -> Result<Checkpoint> {
        let mut tensors = self.optim.state()?;
        let lambda = Tensor::from_slice(&self.lambda, self.lambda.len(), &Device::Cpu)?;
        tensors.insert("lambda".into(), lambda);
        if let Some(Best {
            measured,
            tensors: best,
        }) = &self.best
        {
            let Measured {
                kl,
                kept,
                agreement,
            } = *measured;
            let numbers = [kl, kept, agreement].map(|number| number as f32);
            tensors.insert("best measured".into(), Tensor::new(&numbers, &Device::Cpu)?);
            for (name, tensor) in best {
                tensors.insert(format!("{BEST_PREFIX}{name}"), tensor.clone());
            }
        }
        Ok(Checkpoint {
            step: self.step,
            rng: self.rng.clone(),
            recipe: recipe_text.to_owned(),
            tensors,
        })
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.optim.restore(&checkpoint.tensors)?;
        self.lambda = checkpoint
            .tensors
            .get("lambda")
            .ok_or_else(|| Error::Config("the checkpoint lacks the multipliers".into()))?
            .to_vec1()?;
        if let Some(measured) = checkpoint.tensors.get("best measured") {
            let numbers: Vec<f32> = measured.to_vec1()?;
            let [kl, kept, agreement] = numbers[..] else {
                return Err(Error::Config(
                    "the checkpoint's best measure is damaged".into(),
                ));
            };
            let best = checkpoint.tensors.iter().filter_map(|(name, tensor)| {
                let name = name.strip_prefix(BEST_PREFIX)?;
                let var = self.vars.get(name)?;
                Some(
                    tensor
                        .reshape(var.shape())
                        .map(|tensor| (name.to_owned(), tensor)),
                )
            });
            self.best = Some(Best {
                tensors: best.collect::<Result<_, _>>()?,
                measured: Measured {
                    kl: f64::from(kl),
                    kept: f64::from(kept),
                    agreement: f64::from(agreement),
                },
            });
        }
        self.rng = checkpoint.rng;
        self.step = checkpoint.step;
        Ok(())
    }

    fn finish(mut self, complete: bool) -> Result<TrainedGates> {
        if self.best.is_none() {
            let measured = self.measure()?;
            self.keep_best(measured)?;
        }
        let Some(Best { measured, tensors }) = self.best else {
            return Err(Error::Model("no gates were measured".into()));
        };
        let sizes = self.gates.sizes();
        let recipe = serde_json::to_value(self.recipe)
            .and_then(serde_json::from_value)
            .map_err(|err| Error::Config(format!("the recipe cannot be written: {err}")))?;
        Ok(TrainedGates {
            tensors,
            card: GateCard {
                base_sha256: self.subject.base_sha256.to_owned(),
                states: sizes.states,
                dim: sizes.dim,
                hidden: sizes.hidden,
                stretch: self.recipe.stretch,
                seed: self.recipe.seed,
                recipe,
                l0: measured.kept,
                kl: measured.kl,
            },
            agreement: measured.agreement,
            complete,
        })
    }
}

/// Factor on the learning rates: up over the first steps, down to zero over the last share of the run.
fn schedule(recipe: &DiffMaskRecipe, step: u64) -> f64 {
    let warm = (step + 1) as f64 / recipe.warmup_steps.max(1) as f64;
    let left = (recipe.steps - step.min(recipe.steps)) as f64 / recipe.steps.max(1) as f64;
    warm.min(left / recipe.cooldown_share.max(f64::MIN_POSITIVE))
        .min(1.0)
}

/// The multiplier after a step of ascent: up where the divergence exceeds the margin, else down.
fn ascended(recipe: &DiffMaskRecipe, lambda: f64, kl: f64) -> f64 {
    let excess = ((kl - recipe.margin) / recipe.margin).clamp(-1.0, 1.0);
    (lambda + recipe.lambda_rate * excess).clamp(recipe.lambda_min, recipe.lambda_max)
}

fn agreement(original: &Tensor, masked: &Tensor) -> Result<f64> {
    let before: Vec<u32> = original.argmax(D::Minus1)?.to_vec1()?;
    let after: Vec<u32> = masked.argmax(D::Minus1)?.to_vec1()?;
    let same = before.iter().zip(&after).filter(|(a, b)| a == b).count();
    Ok(same as f64 / before.len().max(1) as f64)
}

/// The one offset of all gates at which the share `masked_share` of the patches of `images` is masked.
fn calibrated_offset(
    tensors: &BTreeMap<String, Tensor>,
    stretch: f64,
    vit: &Vit,
    images: &Tensor,
    masked_share: f64,
) -> Result<f64> {
    let sizes = GateSizes::new(vit.config());
    let tensors = tensors.clone().into_iter().collect();
    let gates = Gates::load(sizes, stretch, &tensors)?;
    let states = clean_pass(vit, images)?.states;
    let logits = gates.logits(&states, sizes.states - 1)?;
    let logits = Tensor::stack(&logits, 0)?; // [gates, batch, patches]
    // The share falls as the offset rises; offsets that nobody would ask for bound the search.
    let (mut low, mut high) = (-4.0 * stretch, 4.0 * stretch);
    for _ in 0..40 {
        let shift = (low + high) / 2.0;
        let log_keep = log_keep_from_logits(&(&logits + shift)?)?.sum(0)?;
        let kept = f64::from(log_keep.exp()?.mean_all()?.to_scalar::<f32>()?);
        if 1.0 - kept > masked_share {
            low = shift;
        } else {
            high = shift;
        }
    }
    let name = "gates.0.offset";
    let start: Vec<f32> = tensors
        .get(name)
        .ok_or_else(|| Error::Model(format!("gates lack tensor {name:?}")))?
        .to_vec1()?;
    Ok(start.iter().map(|&start| f64::from(start)).sum::<f64>() + (low + high) / 2.0)
}

/// The order of the pictures in an epoch, which depends on nothing but the seed.
fn epoch_order(seed: u64, epoch: u64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    Rng::for_item(seed, epoch).shuffle(&mut order);
    order
}

/// Indices of the pictures of a step; the last batch of an epoch may be smaller.
fn batch_of(
    recipe: &DiffMaskRecipe,
    subject: Subject<'_>,
    order: &mut (u64, Vec<usize>),
    step: u64,
) -> Vec<usize> {
    let len = subject.train.len();
    let n_batches = len.div_ceil(recipe.batch) as u64;
    let (epoch, batch_idx) = (step / n_batches, (step % n_batches) as usize);
    if order.0 != epoch {
        *order = (epoch, epoch_order(recipe.seed, epoch, len));
    }
    let start = batch_idx * recipe.batch;
    order.1[start..(start + recipe.batch).min(len)].to_vec()
}

fn images_at(subject: Subject<'_>, data: &dyn Dataset, indices: &[usize]) -> Result<Tensor> {
    let pictures = indices
        .iter()
        .map(|&index| data.picture(index))
        .collect::<Result<Vec<_>>>()?;
    images_from_pictures(&pictures, subject.mean, subject.std, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers_rise_above_the_margin_and_fall_below_it_within_their_bounds() {
        let recipe = DiffMaskRecipe::default();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(ascended(&recipe, 20.0, 7.0), 20.3));
        assert!(near(ascended(&recipe, 20.0, 0.15), 20.15));
        assert!(near(ascended(&recipe, 20.0, 0.1), 20.0));
        assert!(near(ascended(&recipe, 20.0, 0.0), 19.7));
        assert!(near(ascended(&recipe, 199.9, 7.0), 200.0));
        assert!(near(ascended(&recipe, 0.1, 0.0), 0.0));
    }

    #[test]
    fn a_recipe_with_an_unknown_key_is_refused() {
        let text = "seed = 1\nlearning-rate = 0.1";
        assert!(toml::from_str::<DiffMaskRecipe>(text).is_err());
    }
}
