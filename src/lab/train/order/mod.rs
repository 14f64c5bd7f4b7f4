//! Trains gates that order: they learn from a full backward pass what can be told of it from one token's.
//!
//! The teacher is [`GradientRollout`](vitscope_core::explain::rollout::GradientRollout) of random halves of the patches:
//!
//! | symbol | meaning |
//! |---|---|
//! | r | gradient rollout of a half, as shares of it, averaged over halves; 1 in the mean |
//! | G r | r averaged over the patches around, by a Gaussian |
//! | a | attention of the class token in the last block, mean over heads; 1 in the mean |
//! | t | log(r + ε) + β log(G r + ε) + γ log(a + ε), less its mean over the patches; β = `smoothness`, γ = `attention-weight` |
//!
//! ```text
//! min over gates:  mean over pictures and patches of  ( f − t )²
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | f | order of a patch for the predicted class, see [`OrderGates`](vitscope_core::gates::OrderGates) |
//!
//! The teacher is asked about each picture once; then the gates, which are small, learn from all that it said.
//!
//! In a whole picture a patch seems worth little whose neighbor says the same. Of halves it is missed about as often as
//! it would be while patches are taken away, which is what an order is for.
//! What is left longest should hang together, for a thing is known by a whole piece of it better than by scattered ones:
//! that is what β is for. Among the first patches r outweighs it.
//! Attention knows no class, and yet it lies on the thing more surely than gradients do; γ draws the order there.

mod teacher;
mod trainer;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::diffmask::TrainedGates;
use super::run::{Plan, check_positive, run};
use super::{OnProgress, Subject};
pub use teacher::{order_of, rollout_of_halves, rollout_of_patches};
use trainer::OrderTrainer;
use vitscope_core::error::{Error, Result};
use vitscope_core::gates::{MARGIN, Objective};

/// Measurements of a run: at each step on its batch, and at intervals on test pictures.
pub const COLUMNS: &[&str] = &["loss", "explained", "test explained"];

/// Recipe for training ordering gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OrderRecipe {
    /// [`Objective::Order`]; distinguishes this recipe from the others.
    pub objective: Objective,
    /// Seed of the gates, the order of the pictures and the halves.
    pub seed: u64,
    /// Number of pictures that the teacher explains, once each.
    pub pictures: usize,
    /// Updates of the gates, after the teacher has explained all pictures.
    pub steps: u64,
    /// Pictures per update.
    pub batch: usize,
    /// Hidden units of both layers.
    pub hidden: usize,
    /// Number of times the teacher halves each picture; each halving costs a forward and a backward pass of both
    /// halves.
    pub halvings: usize,
    /// β, weight of the patches around a patch in the teacher's order, at least 0.
    pub smoothness: f64,
    /// γ, weight of the last block's attention in the teacher's order, at least 0.
    pub attention_weight: f64,
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Warmup steps until the learning rate is reached.
    pub warmup_steps: u64,
    /// Largest divergence from the original output, in nats, at which a masked output counts as preserved when the kept
    /// share is measured.
    pub margin: f64,
    /// Steps between measurements on test pictures.
    pub test_steps: u64,
    /// Number of test pictures to measure on.
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
            halvings: 4,
            smoothness: 0.5,
            attention_weight: 0.5,
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
        return wrong("objective must be \"order\" for ordering gates".into());
    }
    if subject.vit.config().head().is_none() {
        return Err(Error::Model(
            "the model has no classifier, so there is no class to order patches for".into(),
        ));
    }
    check_positive(&[("lr", recipe.lr), ("margin", recipe.margin)])?;
    let counts = [
        recipe.pictures,
        recipe.batch,
        recipe.hidden,
        recipe.halvings,
    ];
    if counts.contains(&0) || recipe.steps == 0 {
        return wrong("pictures, batch, hidden, halvings and steps must be at least 1".into());
    }
    let weights = [
        ("smoothness", recipe.smoothness),
        ("attention-weight", recipe.attention_weight),
    ];
    for (name, weight) in weights {
        if !(weight >= 0.0 && weight.is_finite()) {
            return wrong(format!(
                "{name} must be at least 0 and finite, got {weight}"
            ));
        }
    }
    if subject.n_patches() < 2 {
        return wrong("the model has only one patch, so there is nothing to order".into());
    }
    Ok(())
}
