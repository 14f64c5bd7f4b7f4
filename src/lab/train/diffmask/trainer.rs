//! A run of DiffMask training: its steps, measurements and checkpoints.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::standardization::Standardization;
use super::{DiffMaskRecipe, RemovalKind, Sparsity, TrainedGates};
use crate::eval::masks::MaskScores;
use crate::eval::{self, agreement, kl_from_logits, masked_answers};
use crate::train::optim::{AdamW, AdamWOptions, Param};
use crate::train::run::{Trainer, finite_loss, recipe_options};
use crate::train::{Batches, Checkpoint, Subject, best_tensors, copies, over, variables};
use vitscope_core::error::{Error, Result};
use vitscope_core::gates::{
    BASELINE, GateCard, GateSizes, Objective, Removal, VotingGates, binary_masks, clean_pass,
    log_keep_from_logits, masked_pass, sample_from_logits,
};
use vitscope_core::rng::Rng;
use vitscope_kernels::in_pool;

/// Mean results of binary masks over test images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) kl: f64,
    pub(super) kept: f64,
    pub(super) agreement: f64,
    /// Share of images whose divergence is within the margin.
    pub(super) within: f64,
}

impl Measured {
    /// Returns true if these gates are preferable: within the margin, fewer kept patches are better; outside of it, a
    /// smaller divergence.
    fn is_better_than(&self, other: &Self, margin: f64) -> bool {
        match (self.kl <= margin, other.kl <= margin) {
            (true, true) => (self.kept, self.kl) < (other.kept, other.kl),
            (false, false) => self.kl < other.kl,
            (within, _) => within,
        }
    }
}

/// Share of a dropped patch's weight that remains during training. Without it, the slope of the output in the mask
/// describes the effect of an infinitesimal trace of the patch, which can be a thousand times that of the whole patch
/// (DINOv2 at 20 % masked). From 0.01 on, the slope agrees with finite differences.
const LEFT: f64 = 0.01;

/// Number of images whose states are inspected before the first step.
const FIRST_PICTURES: usize = 32;

/// Minimum decrease of the kept share that counts as an improvement.
const FLAT: f64 = 0.005;

/// Gates with the best measurement so far.
struct Best {
    measured: Measured,
    tensors: BTreeMap<String, Tensor>,
}

/// State of a run between two steps.
pub(super) struct GateTrainer<'a> {
    recipe: &'a DiffMaskRecipe,
    subject: Subject<'a>,
    vars: BTreeMap<String, Var>,
    /// Gates over `vars`; their inputs are standardized if the recipe asks for it.
    gates: VotingGates,
    standardization: Option<Standardization>,
    optim: AdamW,
    /// Divergence allowed for sampled masks, see [`steered`].
    margin: f32,
    /// One multiplier per depth, or one for all depths.
    lambda: Vec<f32>,
    /// Source of random depths and samples.
    rng: Rng,
    step: u64,
    batches: Batches,
    best: Option<Best>,
    /// Smallest kept share within the margin, and the number of measurements since then that did not improve on it.
    flat: (f64, u64),
}

impl<'a> GateTrainer<'a> {
    pub(super) fn new(recipe: &'a DiffMaskRecipe, subject: Subject<'a>) -> Result<Self> {
        let sizes = GateSizes::new(subject.vit.config());
        let mut rng = Rng::new(recipe.seed);
        let mut tensors =
            VotingGates::initial_tensors(sizes, recipe.offset, &mut rng, subject.device())?;
        if recipe.removal == RemovalKind::Drop {
            tensors.remove(BASELINE);
        }
        let mut batches = Batches::new(recipe.seed, subject.train.len(), recipe.batch);
        let states = match recipe.standardize || recipe.masked_share.is_some() {
            true => first_states(subject, &mut batches)?,
            false => Vec::new(),
        };
        let standardization = recipe.standardize.then(|| Standardization::of(&states));
        let standardization = standardization.transpose()?;
        if let Some(share) = recipe.masked_share {
            let states = seen_by_gates(standardization.as_ref(), states)?;
            let offset = calibrated_offset(&tensors, sizes, recipe.stretch, &states, share)?;
            for (name, tensor) in &mut tensors {
                if name.ends_with("offset") {
                    *tensor = Tensor::full(offset as f32, 1, tensor.device())?;
                }
            }
        }
        let vars: BTreeMap<String, Var> = variables(tensors, subject.device())?;
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
            beta2: recipe.beta2 as f32,
            ..AdamWOptions::default()
        };
        Ok(Self {
            recipe,
            subject,
            gates: VotingGates::load(sizes, recipe.stretch, &over(&vars))?,
            standardization,
            vars,
            optim: AdamW::new(params, options),
            margin: recipe.margin as f32,
            lambda: vec![recipe.lambda as f32; if recipe.per_depth { sizes.states } else { 1 }],
            rng,
            step: 0,
            batches,
            best: None,
            flat: (1.0, 0),
        })
    }

    /// Updates the gates, the baseline and one multiplier once; returns the first six of [`COLUMNS`].
    fn update(&mut self) -> Result<[f64; 6]> {
        let Self {
            recipe, subject, ..
        } = *self;
        let indices = self.batches.at(self.step);
        let images = subject.images(subject.train, &indices)?;
        let clean = clean_pass(subject.vit, &images)?;
        let original = eval::logits(clean.output.logits)?;
        let depth = self.draw_depth();
        let states = seen_by_gates(self.standardization.as_ref(), clean.states)?;
        let (mask, log_mask) = self.sample(&states, depth)?;
        let mask = match self.gates.removal() {
            Removal::Baseline(_) => mask,
            Removal::Drop => mask.affine(1.0 - LEFT, LEFT)?,
        };
        let masked = masked_pass(subject.vit, &images, &mask, self.gates.removal())?;
        let masked = eval::logits(masked.logits)?;
        let kl = kl_from_logits(&original, &masked)?.mean_all()?;
        let kept = log_mask.exp()?.mean_all()?;
        let sparsity = match recipe.sparsity {
            Sparsity::Log => log_mask.mean_all()?,
            Sparsity::Probability => kept.clone(),
        };
        let lambda_idx = if recipe.per_depth { depth } else { 0 };
        let lambda = f64::from(self.lambda[lambda_idx]);
        // The margin is constant and does not affect the gradient.
        let margin = f64::from(self.margin);
        let loss = (((&kl - margin)? * lambda)? + sparsity)?;
        let grads = loss.backward()?;
        self.optim
            .step(&grads, recipe.lr * schedule(recipe, self.step))?;
        let kl = f64::from(kl.to_scalar::<f32>()?);
        let loss = finite_loss(&loss, self.step, recipe.lr)?;
        self.lambda[lambda_idx] = ascended(recipe, lambda, kl, margin) as f32;
        self.step += 1;
        let kept = kept.to_scalar::<f32>()?;
        Ok([
            loss,
            kl,
            f64::from(kept),
            f64::from(self.lambda[lambda_idx]),
            depth as f64,
            agreement(&original, &masked)?,
        ])
    }

    /// Draws the number of gates that vote in this step, minus one.
    fn draw_depth(&mut self) -> usize {
        let n_depths = self.gates.sizes().states;
        let share = self.recipe.whole_depth_share;
        // No random number is drawn needlessly, so recipes without this option reproduce their earlier runs.
        if share > 0.0 && f64::from(self.rng.uniform()) < share {
            return n_depths - 1;
        }
        self.rng.below(n_depths)
    }

    /// Samples a mask from gates 0 to `depth`; also returns the logarithm of its keep probabilities.
    ///
    /// # Shapes
    /// - result: two of `[batch, patches]`
    fn sample(&mut self, states: &[Tensor], depth: usize) -> Result<(Tensor, Tensor)> {
        let mut product: Option<(Tensor, Tensor)> = None;
        for logits in self.gates.logits(states, depth)? {
            // An f32 drawn from [0, 1) has 24 bits; clamping half a step away from both ends keeps the noise finite.
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

    /// Returns the current tensors of the gates, for states that are not standardized.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensors = copies(&self.vars)?;
        Ok(match &self.standardization {
            Some(standardization) => standardization.folded(&tensors)?,
            None => tensors,
        })
    }

    /// Measures divergence, kept share and agreement of binary masks on test images.
    fn measure(&self) -> Result<Measured> {
        let vit = self.subject.vit;
        let tensors = self.tensors()?.into_iter().collect();
        let gates = VotingGates::load(self.gates.sizes(), self.recipe.stretch, &tensors)?;
        let (removal, gates) = (gates.removal().clone(), gates.freeze()?);
        let chunk = self.recipe.batch.max(32);
        let mut answers = Vec::new();
        for indices in self.subject.test_chunks(self.recipe.test_pictures, chunk) {
            let images = self.subject.images(self.subject.test, &indices)?;
            let voted = gates.pass(vit, &images)?;
            let masks = binary_masks(&voted.mask.to_vec2()?);
            let original = eval::logits(voted.output.logits)?;
            answers.extend(masked_answers(vit, &images, &original, &masks, &removal)?);
        }
        let scores = MaskScores::of(&answers, self.recipe.margin);
        // Rounded to the precision of a checkpoint, so that a resumed run compares the same numbers.
        let rounded = |value: f64| f64::from(value as f32);
        Ok(Measured {
            kl: rounded(scores.kl),
            kept: rounded(scores.kept),
            agreement: rounded(scores.agreement),
            within: rounded(scores.within),
        })
    }

    /// Processes a measurement: steers the margin, and stores the current gates if they measured better than any
    /// before.
    fn learn_from(&mut self, measured: Measured) -> Result<()> {
        self.margin = steered(self.margin, self.recipe.margin, measured.kl);
        let margin = self.recipe.margin;
        if measured.kl <= margin {
            let (smallest, since) = self.flat;
            self.flat = match measured.kept < smallest - FLAT {
                true => (measured.kept, 0),
                false => (smallest, since + 1),
            };
        }
        let beaten = |best: &Best| measured.is_better_than(&best.measured, margin);
        if self.best.as_ref().is_none_or(beaten) {
            let tensors = self.tensors()?;
            self.best = Some(Best { measured, tensors });
        }
        Ok(())
    }

    pub(super) fn finish(mut self, complete: bool) -> Result<TrainedGates> {
        if self.best.is_none() {
            let measured = self.measure()?;
            self.learn_from(measured)?;
        }
        let Some(Best { measured, tensors }) = self.best else {
            return Err(Error::Model("no gates were measured".into()));
        };
        let sizes = self.gates.sizes();
        Ok(TrainedGates {
            tensors,
            card: GateCard {
                base_sha256: self.subject.base_sha256.to_owned(),
                objective: Objective::Published,
                states: sizes.states,
                dim: sizes.dim,
                hidden: sizes.hidden,
                stretch: self.recipe.stretch,
                seed: self.recipe.seed,
                recipe: recipe_options(self.recipe)?,
                l0: measured.kept,
                kl: measured.kl,
                explained: None,
            },
            agreement: measured.agreement,
            within: measured.within,
            complete,
        })
    }
}
impl Trainer for GateTrainer<'_> {
    fn steps_done(&self) -> u64 {
        self.step
    }

    fn is_done(&self) -> bool {
        self.recipe.patience > 0 && self.flat.1 >= self.recipe.patience
    }

    fn step(&mut self) -> Result<Vec<f64>> {
        let mut values = in_pool(|| self.update())?.to_vec();
        let Self { recipe, step, .. } = *self;
        if step.is_multiple_of(recipe.test_steps.max(1)) || step == recipe.steps {
            let measured = self.measure()?;
            self.learn_from(measured)?;
            values.extend([
                measured.kl,
                measured.kept,
                measured.agreement,
                measured.within,
            ]);
        }
        Ok(values)
    }

    fn checkpoint(&self, recipe: &str) -> Result<Checkpoint> {
        let mut tensors = self.optim.state()?;
        let lambda = Tensor::from_slice(&self.lambda, self.lambda.len(), &Device::Cpu)?;
        tensors.insert("lambda".into(), lambda);
        tensors.insert("margin".into(), Tensor::new(&[self.margin], &Device::Cpu)?);
        let flat = [self.flat.0 as f32, self.flat.1 as f32];
        tensors.insert("flat".into(), Tensor::new(&flat, &Device::Cpu)?);
        if let Some(Best {
            measured,
            tensors: best,
        }) = &self.best
        {
            let Measured {
                kl,
                kept,
                agreement,
                within,
            } = *measured;
            let numbers = [kl, kept, agreement, within].map(|number| number as f32);
            tensors.insert("best measured".into(), Tensor::new(&numbers, &Device::Cpu)?);
            tensors.extend(best_tensors(best));
        }
        Ok(Checkpoint {
            step: self.step,
            rng: self.rng.clone(),
            recipe: recipe.to_owned(),
            tensors,
        })
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.optim.restore(&checkpoint.tensors)?;
        let saved = |name: &str| -> Result<Vec<f32>> {
            let tensor = checkpoint.tensors.get(name);
            let lacking = || Error::Config(format!("the checkpoint lacks the {name}"));
            Ok(tensor.ok_or_else(lacking)?.to_vec1()?)
        };
        self.lambda = saved("lambda")?;
        self.margin = saved("margin")?.first().copied().unwrap_or(self.margin);
        if let [smallest, since] = saved("flat")?[..] {
            self.flat = (f64::from(smallest), since as u64);
        }
        if let Some(measured) = checkpoint.tensors.get("best measured") {
            let numbers: Vec<f32> = measured.to_vec1()?;
            let [kl, kept, agreement, within] = numbers[..] else {
                return Err(Error::Config(
                    "the checkpoint's best measure is damaged".into(),
                ));
            };
            self.best = Some(Best {
                tensors: checkpoint.best(),
                measured: Measured {
                    kl: f64::from(kl),
                    kept: f64::from(kept),
                    agreement: f64::from(agreement),
                    within: f64::from(within),
                },
            });
        }
        self.rng = checkpoint.rng;
        self.step = checkpoint.step;
        Ok(())
    }
}

/// Returns the factor of the learning rates: rising over the first steps, falling to zero over the last share of the
/// run.
fn schedule(recipe: &DiffMaskRecipe, step: u64) -> f64 {
    let warm = (step + 1) as f64 / recipe.warmup_steps.max(1) as f64;
    let left = (recipe.steps - step.min(recipe.steps)) as f64 / recipe.steps.max(1) as f64;
    warm.min(left / recipe.cooldown_share.max(f64::MIN_POSITIVE))
        .min(1.0)
}

/// Updates the multiplier by one ascent step: up if the divergence exceeds the margin, else down; reversed if the
/// recipe descends.
fn ascended(recipe: &DiffMaskRecipe, lambda: f64, kl: f64, margin: f64) -> f64 {
    let excess = ((kl - margin) / margin).clamp(-1.0, 1.0);
    let direction = if recipe.ascend { 1.0 } else { -1.0 };
    (lambda + direction * recipe.lambda_rate * excess).clamp(recipe.lambda_min, recipe.lambda_max)
}

/// Returns the margin of sampled masks after binary masks diverged by `kl` on test images, where `target` is allowed.
///
/// A model is more certain about its training images, so masks that preserve its output on those often fail on others.
/// The margin shrinks until binary masks of test images meet the target.
fn steered(margin: f32, target: f64, kl: f64) -> f32 {
    let factor = (target / kl.max(target / 100.0)).sqrt();
    (f64::from(margin) * factor).clamp(target / 10.0, target) as f32
}

/// Returns the states of the first images, enough to estimate the moments of the features.
fn first_states(subject: Subject<'_>, batches: &mut Batches) -> Result<Vec<Tensor>> {
    let n_pictures = FIRST_PICTURES.min(subject.train.len());
    let in_order = (0..).flat_map(|step| batches.at(step));
    let indices: Vec<usize> = in_order.take(n_pictures).collect();
    let images = subject.images(subject.train, &indices)?;
    Ok(clean_pass(subject.vit, &images)?.states)
}

/// Returns states as the gates see them in training.
fn seen_by_gates(
    standardization: Option<&Standardization>,
    states: Vec<Tensor>,
) -> Result<Vec<Tensor>> {
    Ok(match standardization {
        Some(standardization) => standardization.applied(&states)?,
        None => states,
    })
}

/// Returns the common offset of all gates that masks the share `masked_share` of the patches of `states`.
fn calibrated_offset(
    tensors: &BTreeMap<String, Tensor>,
    sizes: GateSizes,
    stretch: f64,
    states: &[Tensor],
    masked_share: f64,
) -> Result<f64> {
    let tensors = tensors.clone().into_iter().collect();
    let gates = VotingGates::load(sizes, stretch, &tensors)?;
    let logits = gates.logits(states, sizes.states - 1)?;
    let logits = Tensor::stack(&logits, 0)?; // [gates, batch, patches]
    // The share falls as the offset rises; offsets beyond any sensible choice bound the search.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers_rise_above_the_margin_and_fall_below_it_within_their_bounds() {
        let recipe = DiffMaskRecipe::default();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(ascended(&recipe, 20.0, 7.0, 0.1), 20.3));
        assert!(near(ascended(&recipe, 20.0, 0.15, 0.1), 20.15));
        assert!(near(ascended(&recipe, 20.0, 0.1, 0.1), 20.0));
        assert!(near(ascended(&recipe, 20.0, 0.0, 0.1), 19.7));
        assert!(near(ascended(&recipe, 199.9, 7.0, 0.1), 200.0));
        assert!(near(ascended(&recipe, 0.1, 0.0, 0.1), 0.0));
        let descending = DiffMaskRecipe {
            ascend: false,
            ..recipe
        };
        assert!(near(ascended(&descending, 20.0, 7.0, 0.1), 19.7));
        assert!(near(ascended(&descending, 20.0, 0.0, 0.1), 20.3));
    }

    #[test]
    fn rates_rise_hold_and_fall_to_zero() {
        let recipe = DiffMaskRecipe {
            steps: 100,
            warmup_steps: 10,
            cooldown_share: 0.2,
            ..DiffMaskRecipe::default()
        };
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(schedule(&recipe, 0), 0.1) && near(schedule(&recipe, 9), 1.0));
        assert!(near(schedule(&recipe, 80), 1.0) && near(schedule(&recipe, 90), 0.5));
        assert!(near(schedule(&recipe, 99), 0.05));
        let constant = DiffMaskRecipe {
            cooldown_share: 0.0,
            ..recipe
        };
        assert!(near(schedule(&constant, 99), 1.0));
    }

    #[test]
    fn the_margin_shrinks_while_binary_masks_exceed_it_and_comes_back() {
        let after = |margin, kl| steered(margin, 0.1, kl);
        assert!((after(0.1, 0.4) - 0.05).abs() < 1e-6);
        assert!((after(0.05, 0.1) - 0.05).abs() < 1e-6);
        assert!((after(0.05, 0.025) - 0.1).abs() < 1e-6);
        assert_eq!((after(0.1, 0.01), after(0.02, 9.0)), (0.1, 0.01));
    }

    #[test]
    fn fewer_patches_are_better_only_within_the_margin() {
        let measured = |kl, kept| Measured {
            kl,
            kept,
            agreement: 1.0,
            within: 1.0,
        };
        assert!(measured(0.05, 0.4).is_better_than(&measured(0.01, 0.5), 0.1));
        assert!(!measured(0.2, 0.1).is_better_than(&measured(0.05, 0.9), 0.1));
        assert!(measured(0.2, 0.9).is_better_than(&measured(0.3, 0.1), 0.1));
        assert!(measured(0.04, 0.4).is_better_than(&measured(0.05, 0.4), 0.1));
    }
}
