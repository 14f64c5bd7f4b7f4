//! Trains ordering gates: they learn from a full backward pass what a single token's backward pass can predict of it.
//!
//! The teacher is [`GradientRollout`](vitscope_core::explain::rollout::GradientRollout) on random halves of the
//! patches:
//!
//! | symbol | meaning |
//! |---|---|
//! | r | gradient rollout of a half, as shares of it, averaged over halves; mean 1 |
//! | G r | r averaged over the surrounding patches with a Gaussian |
//! | a | attention of the class token in the last block, averaged over heads; mean 1 |
//! | t | log(r + ε) + β log(G r + ε) + γ log(a + ε), minus its mean over the patches |
//! | β, γ | `smoothness`, `attention-weight` |
//!
//! ```text
//! min over gates:  mean over images and patches of  ( f − t )²
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | f | order of a patch for the predicted class, see [`OrderGates`](vitscope_core::gates::OrderGates) |
//!
//! The teacher explains each image once; the gates, which are small, then learn from all its explanations.
//!
//! In a whole image, a patch seems unimportant if its neighbor carries the same information. In random halves, it is
//! missed about as often as while patches are being removed, which is what an order is used for. The patches that
//! remain longest should be connected, because an object is easier to recognize from one large piece than from
//! scattered ones; β serves this purpose. For the first patches, r outweighs it. Attention does not depend on the
//! class, yet it lies on the object more reliably than gradients do; γ draws the order there.

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

/// Columns of a run: at each step on its batch, and at intervals on test images.
pub const COLUMNS: &[&str] = &["loss", "explained", "test explained"];

/// Recipe for training ordering gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OrderRecipe {
    /// [`Objective::Order`]; distinguishes this recipe from the others.
    pub objective: Objective,
    /// Seed of the gates, the image order and the halves.
    pub seed: u64,
    /// Number of images that the teacher explains, once each.
    pub pictures: usize,
    /// Number of gate updates, after the teacher has explained all images.
    pub steps: u64,
    /// Images per update.
    pub batch: usize,
    /// Hidden units of both layers.
    pub hidden: usize,
    /// Number of times the teacher halves each image; each halving costs a forward and a backward pass of both halves.
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
    /// Steps between measurements on test images.
    pub test_steps: u64,
    /// Number of test images to measure on.
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
    /// Returns the number of teacher steps before the first update, for `n_pictures` training images.
    fn study_steps(&self, n_pictures: usize) -> u64 {
        n_pictures.min(self.pictures).div_ceil(trainer::CHUNK) as u64
    }
}

/// Trains ordering gates; writes checkpoints, `gates.csv` and `gates.png` into `folder`.
///
/// Resumes from the checkpoint in `folder`, if any.
///
/// # Errors
/// Fails if the data are empty, if the images or the recipe do not fit the model, or if `folder` cannot be written.
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
