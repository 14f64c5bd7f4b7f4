//! Trains gates that order: they learn from a full backward pass what can be told of it from one token's.
//!
//! The teacher is [`GradientRollout`](crate::explain::rollout::GradientRollout) less what speaks against the class:
//!
//! | symbol | meaning |
//! |---|---|
//! | r⁺ | gradient rollout, as shares of the picture |
//! | r⁻ | class row of the mean of (−A ∘ ∇A)⁺ over blocks and heads, as shares of the picture |
//! | r | (r⁺ − α r⁻) / (1 − α), α = `against` |
//!
//! ```text
//! min over gates:  mean over pictures and patches of  ( f − (N r − 1) )²
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | f | order of a patch for the predicted class, see [`OrderGates`](crate::gates::OrderGates) |
//! | N | patches of a picture |
//!
//! The teacher is asked about each picture once; then the gates, which are small, learn from all that it said.
//!
//! Gradient methods keep what speaks for a class and drop the rest, so patches that do nothing and patches that speak
//! against the class tie at 0. Taking r⁻ off tells them apart, and what is to be kept longest is no longer drawn among
//! them.

mod teacher;
mod trainer;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::diffmask::TrainedGates;
use super::run::{Plan, check_positive, run};
use super::{OnProgress, Subject};
use crate::error::{Error, Result};
use crate::gates::{MARGIN, Objective};
pub use teacher::signed_rollout;
use trainer::OrderTrainer;

/// What a run measures: at each step on its batch, and now and then on test pictures.
pub const COLUMNS: &[&str] = &["loss", "explained", "test explained"];

/// How gates that order are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OrderRecipe {
    /// [`Objective::Order`]; tells this recipe from the others.
    pub objective: Objective,
    /// Seed of the gates and the order of the pictures.
    pub seed: u64,
    /// Pictures that the teacher is asked about, once each.
    pub pictures: usize,
    /// Updates of the gates, after the last of them.
    pub steps: u64,
    /// Pictures per update.
    pub batch: usize,
    /// Hidden units of both layers.
    pub hidden: usize,
    /// How much of what speaks against the class the teacher takes off, from 0 to below 1.
    pub against: f64,
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Steps until it is reached.
    pub warmup_steps: u64,
    /// Divergence of a masked answer, in nats, that counts as keeping it when the kept share is measured.
    pub margin: f64,
    /// Steps between measurements on test pictures.
    pub test_steps: u64,
    /// Test pictures that are measured on.
    pub test_pictures: usize,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
}

impl Default for OrderRecipe {
    fn default() -> Self {
        Self {
            objective: Objective::Order,
            seed: 0,
            pictures: 2000,
            steps: 2000,
            batch: 32,
            hidden: 32,
            against: 0.15,
            lr: 2e-3,
            weight_decay: 0.05,
            warmup_steps: 50,
            margin: MARGIN,
            test_steps: 500,
            test_pictures: 128,
            checkpoint_steps: 250,
        }
    }
}

impl OrderRecipe {
    /// Steps that ask the teacher, before the first update, with `n_pictures` to learn from.
    fn study_steps(&self, n_pictures: usize) -> u64 {
        n_pictures.min(self.pictures).div_ceil(trainer::CHUNK) as u64
    }
}

/// Trains gates that order; writes checkpoints, `gates.csv` and `gates.png` into `folder`.
///
/// Goes on from the checkpoint in `folder` where there is one.
///
/// # Errors
/// Fails on empty data, on pictures or a recipe that do not fit the model, and where `folder` cannot be written.
pub fn train(
    recipe: &OrderRecipe,
    subject: Subject<'_>,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedGates> {
    validate(recipe, subject)?;
    let plan = Plan::of_gates(
        folder,
        COLUMNS,
        (recipe, subject.base_sha256),
        recipe.study_steps(subject.train.len()) + recipe.steps,
        recipe.checkpoint_steps,
    )?;
    let mut trainer = OrderTrainer::new(recipe, subject)?;
    let complete = run(&mut trainer, &plan, on_progress)?;
    trainer.finish(complete)
}

fn validate(recipe: &OrderRecipe, subject: Subject<'_>) -> Result<()> {
    subject.check()?;
    let wrong = |message: String| Err(Error::Config(message));
    if recipe.objective != Objective::Order {
        return wrong("objective must be \"order\" for gates that order".into());
    }
    if subject.vit.config().head().is_none() {
        return Err(Error::Model(
            "the model has no classifier, so no class to order patches for".into(),
        ));
    }
    check_positive(&[("lr", recipe.lr), ("margin", recipe.margin)])?;
    if [recipe.pictures, recipe.batch, recipe.hidden].contains(&0) || recipe.steps == 0 {
        return wrong("pictures, batch, hidden and steps must be at least 1".into());
    }
    if !(0.0..1.0).contains(&recipe.against) {
        return wrong(format!(
            "against must be at least 0 and below 1, got {}",
            recipe.against
        ));
    }
    if subject.n_patches() < 2 {
        return wrong("a model of one patch has nothing to order".into());
    }
    Ok(())
}
