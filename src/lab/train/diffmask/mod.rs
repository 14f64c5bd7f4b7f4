//! Trains DiffMask gates for a frozen model.
//!
//! Vision DiffMask (Nalmpantis et al., XAI4CV 2023): keep as few patches as possible while the model's output stays
//! within a margin of the original one. Each step samples a depth k and one mask, and plays both sides of
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
//! **Deviations** from the authors' code, each because the original was observed to fail:
//! - λ ascends. Theirs descends, because the negation of its gradient is lost in the framework's hooks.
//! - One pass serves gates and multiplier, at half the cost; theirs draws two.
//! - λ moves by plain steps, λ ← clamp(λ + rate·clip((KL − m)/m, −1, 1)), because Adam's second moment remembers the
//!   initial large divergences for a thousand steps.
//! - The margin applies to binary masks on test images; the margin of sampled masks is steered until it is met.
//! - No Lookahead; the class token has no vote; the model's clean pass builds no graph.

mod report;
mod standardization;
mod trainer;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::run::{Plan, check_positive, run};
use super::{OnProgress, Subject};
use trainer::GateTrainer;
use vitscope_core::error::{Error, Result};
use vitscope_core::gates::{GateCard, MARGIN, Objective};

/// Columns of a run: at each step for the sampled mask, and at intervals for binary masks on test images.
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
    "test within margin",
];

/// How masked patches are removed, see [`vitscope_core::gates::Removal`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemovalKind {
    /// A learned vector replaces their embeddings, as in the paper.
    #[default]
    Baseline,
    /// Nothing attends to them.
    Drop,
}

/// Quantity to minimize as far as the divergence allows: a mean over patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sparsity {
    /// The logarithm of the keep probability, as in the paper. It has no lower bound, so a patch that is certainly
    /// masked keeps contributing to the loss.
    #[default]
    Log,
    /// The keep probability itself, which is the expected kept share.
    Probability,
}

/// Recipe for training gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiffMaskRecipe {
    /// [`Objective::Published`]; the recipe of the other objective is [`ShapleyRecipe`](super::shapley::ShapleyRecipe).
    pub objective: Objective,
    /// Seed of the gates, the image order, the depths and the samples.
    pub seed: u64,
    /// Number of gate updates.
    pub steps: u64,
    /// Images per step (batch size).
    pub batch: usize,
    /// How masked patches are removed.
    pub removal: RemovalKind,
    /// The sparsity term that training minimizes.
    pub sparsity: Sparsity,
    /// Whether gates learn from states standardized to mean 0 and standard deviation 1.
    pub standardize: bool,
    /// Learning rate of the gates.
    pub lr: f64,
    /// Learning rate of the baseline.
    pub lr_baseline: f64,
    /// Decay of the optimizer's mean of squared gradients; a larger value remembers the large divergences of the start
    /// longer.
    pub beta2: f64,
    /// Warmup steps of both learning rates.
    pub warmup_steps: u64,
    /// Share of the run, at its end, during which both learning rates fall to zero.
    pub cooldown_share: f64,
    /// Half-width of the range of logits.
    pub stretch: f64,
    /// Initial center of the range of logits.
    pub offset: f64,
    /// Share of patches masked at the start. If set, `offset` is computed from it on the first images.
    pub masked_share: Option<f64>,
    /// Share of the steps in which all gates vote; in the other steps, their number is drawn at random. The last gates
    /// cannot restore what the first gates, which see little of the image, remove.
    pub whole_depth_share: f64,
    /// Largest allowed divergence of binary masks on test images, in nats. If necessary, sampled masks on training
    /// images are held to a smaller one.
    pub margin: f64,
    /// Initial value of the multipliers.
    pub lambda: f64,
    /// Whether each depth has its own multiplier, as in the paper, or all depths share one.
    pub per_depth: bool,
    /// Whether multipliers rise when the divergence exceeds the margin; in the authors' code they fall.
    pub ascend: bool,
    /// Largest change of a multiplier in one step.
    pub lambda_rate: f64,
    /// Lower bound of a multiplier, the smallest weight of the divergence.
    pub lambda_min: f64,
    /// Upper bound of a multiplier.
    pub lambda_max: f64,
    /// Slope that a vote of exactly 0 passes back to its logit.
    pub dead_gradient: f64,
    /// Steps between measurements on test images.
    pub test_steps: u64,
    /// Number of test images to measure on.
    pub test_pictures: usize,
    /// Number of measurements within the margin, without a noticeably smaller kept share than before, after which the
    /// run ends; 0 turns early stopping off.
    pub patience: u64,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
}

impl Default for DiffMaskRecipe {
    fn default() -> Self {
        Self {
            objective: Objective::Published,
            seed: 0,
            steps: 10_000,
            batch: 16,
            removal: RemovalKind::default(),
            sparsity: Sparsity::default(),
            standardize: false,
            lr: 1e-4,
            lr_baseline: 1e-3,
            beta2: 0.99,
            warmup_steps: 200,
            cooldown_share: 0.2,
            stretch: 15.0,
            offset: 13.0,
            masked_share: None,
            whole_depth_share: 0.0,
            margin: MARGIN,
            lambda: 20.0,
            per_depth: true,
            ascend: true,
            lambda_rate: 0.3,
            lambda_min: 0.0,
            lambda_max: 200.0,
            dead_gradient: 0.1,
            test_steps: 500,
            test_pictures: 256,
            patience: 6,
            checkpoint_steps: 500,
        }
    }
}

/// Trained gates.
#[derive(Debug)]
pub struct TrainedGates {
    /// Tensors by name, as stored on disk.
    pub tensors: BTreeMap<String, Tensor>,
    /// Metadata stored next to the tensors.
    pub card: GateCard,
    /// Agreement of predictions with and without the binary mask on test images.
    pub agreement: f64,
    /// Share of test images whose divergence is within the margin.
    pub within: f64,
    /// False if `on_progress` ended the run early.
    pub complete: bool,
}

/// Trains gates; writes checkpoints, `gates.csv` and `gates.png` into `folder`, and finally `report.html`.
///
/// Resumes from the checkpoint in `folder`, if any.
///
/// # Errors
/// Fails if the data are empty, if the images or the recipe do not fit the model, or if `folder` cannot be written.
pub fn train(
    recipe: &DiffMaskRecipe,
    subject: Subject<'_>,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedGates> {
    validate(recipe, subject)?;
    let plan = Plan::of_gates(
        folder,
        COLUMNS,
        (recipe, subject.base_sha256),
        recipe.steps,
        recipe.checkpoint_steps,
    )?;
    let mut trainer = GateTrainer::new(recipe, subject)?;
    let complete = run(&mut trainer, &plan, on_progress)?;
    let done = trainer.finish(complete)?;
    if complete {
        report::write(&done, recipe, subject, folder)?;
    }
    Ok(done)
}

fn validate(recipe: &DiffMaskRecipe, subject: Subject<'_>) -> Result<()> {
    subject.check()?;
    check_positive(&[
        ("lr", recipe.lr),
        ("stretch", recipe.stretch),
        ("margin", recipe.margin),
        ("lambda-max", recipe.lambda_max),
    ])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_with_an_unknown_key_is_refused() {
        let text = "seed = 1\nlearning-rate = 0.1";
        assert!(toml::from_str::<DiffMaskRecipe>(text).is_err());
    }
}
