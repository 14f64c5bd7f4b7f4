//! Trains ranking gates: one network that predicts the Shapley value of each patch for each class from a clean pass.
//!
//! Amortized regression, after FastSHAP (Jethani et al., arXiv:2107.07436) and ViT-Shapley (Covert et al.,
//! arXiv:2206.05282). Each step draws subsets z of the patches of each image, in pairs with their complements, runs the
//! frozen model on the image with only those patches, and fits
//!
//! ```text
//! min over gates:  mean over images and z of  Σ_c ( v_c(0) + Σ_j z_j φ_jc − v_c(z) )²
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | v_c(z) | probability of class c when the patches outside of z are removed |
//! | φ_jc | score of patch j for class c, shifted so that Σ_j φ_jc = v_c(1) − v_c(0) |
//!
//! Training needs only forward passes of the model. The way of removing patches is drawn anew in each step.
//!
//! A pair of subsets says little about each patch, whereas a gradient says something about all of them at once. The
//! first `teacher-steps` of a run therefore learn from [`Chefer`](vitscope_core::explain::chefer::Chefer). Its
//! relevance r_j, as a share of the image's relevance, specifies how the scores of the predicted class differ from
//! their mean:
//!
//! ```text
//! min over gates:  mean over images of  N Σ_j ( φ_jc − mean φ_c − p_c (r_j − 1/N) )²
//! ```
//!
//! The rest of the run continues by regression; the teacher no longer appears in the objective.
//!
//! **Deviations** from those papers:
//! - Subset sizes are half uniform and half from the Shapley kernel, because protocols query every size.
//! - A share of the subsets are the best- or worst-rated patches by the current scores under noise, and a share are
//!   blobs: protocols query those, and a linear fit is best where it was fitted.
//! - Several ways of removal instead of one, so that the order holds for more than one protocol.

mod subsets;
mod trainer;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::diffmask::TrainedGates;
use super::run::{Plan, check_positive, run};
use super::{OnProgress, Subject};
use trainer::RankingTrainer;
use vitscope_core::error::{Error, Result};
use vitscope_core::gates::{MARGIN, Objective};

/// Columns of a run: at each step on its batch, and at intervals on test images.
pub const COLUMNS: &[&str] = &["loss", "explained", "test explained"];

/// How patches are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// Their pixels become 0 after normalization.
    Zeros,
    /// Their pixels become black.
    Black,
    /// Their pixels take the image's mean color.
    Mean,
    /// Their pixels are blurred.
    Blur,
    /// Their tokens are removed, so the model sees a shorter sequence.
    Drop,
}

/// Recipe for training ranking gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShapleyRecipe {
    /// [`Objective::Shapley`]; distinguishes this recipe from the published one.
    pub objective: Objective,
    /// Seed of the gates, the image order and the subsets.
    pub seed: u64,
    /// Number of gate updates.
    pub steps: u64,
    /// Number of updates, at the start, that learn from a gradient method.
    pub teacher_steps: u64,
    /// Images per step.
    pub batch: usize,
    /// Pairs of subsets per image and step.
    pub pairs: usize,
    /// Hidden units of both layers.
    pub hidden: usize,
    /// Weight of each kind of removal; one kind is drawn per step.
    pub fills: BTreeMap<Fill, f64>,
    /// Share of the pairs that are cut by the current scores.
    pub policy_share: f64,
    /// Share of the pairs that are blobs.
    pub blob_share: f64,
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

impl Default for ShapleyRecipe {
    fn default() -> Self {
        Self {
            objective: Objective::Shapley,
            seed: 0,
            steps: 5000,
            teacher_steps: 0,
            batch: 16,
            pairs: 2,
            hidden: 128,
            fills: BTreeMap::from([
                (Fill::Black, 0.4),
                (Fill::Blur, 0.25),
                (Fill::Zeros, 0.15),
                (Fill::Mean, 0.1),
                (Fill::Drop, 0.1),
            ]),
            policy_share: 0.25,
            blob_share: 0.25,
            lr: 1e-3,
            weight_decay: 0.01,
            warmup_steps: 100,
            margin: MARGIN,
            test_steps: 500,
            test_pictures: 256,
            checkpoint_steps: 250,
        }
    }
}

/// Trains ranking gates; writes checkpoints, `gates.csv` and `gates.png` into `folder`.
///
/// Resumes from the checkpoint in `folder`, if any.
///
/// # Errors
/// Fails if the data are empty, if the images or the recipe do not fit the model, or if `folder` cannot be written.
pub fn train(
    recipe: &ShapleyRecipe,
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
    let mut trainer = RankingTrainer::new(recipe, subject)?;
    let complete = run(&mut trainer, &plan, on_progress)?;
    trainer.finish(complete)
}

fn validate(recipe: &ShapleyRecipe, subject: Subject<'_>) -> Result<()> {
    subject.check()?;
    let wrong = |message: String| Err(Error::Config(message));
    if recipe.objective != Objective::Shapley {
        return wrong("objective must be \"shapley\" for ranking gates".into());
    }
    if subject.vit.config().head().is_none() {
        return Err(Error::Model(
            "the model has no classifier, so there is no class to score patches for".into(),
        ));
    }
    check_positive(&[("lr", recipe.lr), ("margin", recipe.margin)])?;
    if [recipe.batch, recipe.pairs, recipe.hidden].contains(&0) || recipe.steps == 0 {
        return wrong("batch, pairs, hidden and steps must be at least 1".into());
    }
    if recipe.teacher_steps >= recipe.steps {
        return wrong(format!(
            "teacher-steps are the first of all steps and must be fewer than steps, got {} of {}",
            recipe.teacher_steps, recipe.steps
        ));
    }
    if subject.n_patches() < 2 {
        return wrong("the model has only one patch, so there is nothing to rank".into());
    }
    let weights = || recipe.fills.values();
    if weights().any(|weight| !(*weight >= 0.0 && weight.is_finite()))
        || weights().sum::<f64>() <= 0.0
    {
        return wrong(format!(
            "fills need weights of at least 0 with a sum above 0, got {:?}",
            recipe.fills
        ));
    }
    let (policy, blobs) = (recipe.policy_share, recipe.blob_share);
    if !(policy >= 0.0 && blobs >= 0.0 && policy + blobs <= 1.0) {
        return wrong(format!(
            "policy-share and blob-share must each be at least 0 and sum to at most 1, got {policy} and {blobs}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_of_a_recipe_are_read_by_name() {
        let text = "objective = \"shapley\"\nfills = { black = 2.0, drop = 1.0 }";
        let recipe: ShapleyRecipe = toml::from_str(text).unwrap();
        let expected = BTreeMap::from([(Fill::Black, 2.0), (Fill::Drop, 1.0)]);
        assert_eq!(recipe.fills, expected);
        assert!(toml::from_str::<ShapleyRecipe>("fills = { green = 1.0 }").is_err());
        assert!(toml::from_str::<ShapleyRecipe>("learning-rate = 1.0").is_err());
    }
}
