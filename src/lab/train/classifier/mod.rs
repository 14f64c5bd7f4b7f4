//! Trains a Vision Transformer as a classifier, from scratch or from a trained model.
//!
//! Training uses cross-entropy with label smoothing, AdamW, linear warmup and half a cosine. For photographs, each
//! image is shifted and mirrored at random, and for most of the run, each step sees only a share of the patches
//! (PatchDropout, Liu et al., arXiv:2208.07220). This is proportionally faster, and a model trained with missing
//! patches predicts better when an explainer removes patches. Even better is a model whose output for some of the
//! patches is pulled toward its output for all of them (`consistency`).

mod augment;
mod optimizers;
mod start;
mod trainer;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::OnProgress;
use super::iavit::{Fidelity, IaVitRecipe};
use super::run::{Plan, recipe_text, run};
use crate::data::Dataset;
use trainer::ClassifierTrainer;
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::interpreter::InterpreterShape;
use vitscope_core::vit::VitConfig;

pub use start::Start;

/// Columns of a run.
pub const COLUMNS: &[&str] = &["loss", "lr", "train accuracy", "test accuracy"];

/// Columns of a run with an interpreter.
pub const JOINT_COLUMNS: &[&str] = &[
    "loss",
    "lr",
    "train accuracy",
    "distillation",
    "alignment",
    "agreement",
    "test accuracy",
    "test kl",
    "test agreement",
    "test accuracy of interpreter",
];

/// Recipe for training a classifier. `patch-size` to `heads` shape a model trained from scratch; a model that training
/// starts from keeps its own shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClassifierRecipe {
    /// Seed of the weights, the image order and the augmentation.
    pub seed: u64,
    /// Edge of a patch, in pixels.
    pub patch_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// When training starts from a model, number of last blocks to train, with the final norm and the classifier.
    /// Without it, the whole model is trained.
    pub last_blocks: Option<usize>,
    /// Epochs over the training images.
    pub epochs: usize,
    /// Images per step (batch size).
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Peak learning rate of the blocks' matrices, which are then trained by Muon. Without it, AdamW trains all
    /// parameters.
    pub muon_lr: Option<f64>,
    /// Warmup steps until the peak learning rate.
    pub warmup_steps: u64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Share of the target that is spread evenly over all classes.
    pub label_smoothing: f64,
    /// Largest random shift in each direction, in pixels.
    pub shift_px: usize,
    /// Whether to mirror images at random.
    pub mirror: bool,
    /// Share of the images in which a rectangle is replaced by another image (CutMix, Yun et al., arXiv:1905.04899).
    pub cutmix: f64,
    /// Share of the patches that each step sees.
    pub keep_patches: f64,
    /// Share of the run, at its end, during which steps see all patches.
    pub whole_share: f64,
    /// Weight of KL(all patches ‖ some patches). Above 0, steps that see all patches run a second pass on some of them,
    /// and its output is pulled toward the output for all.
    pub consistency: f64,
    /// Largest global norm of the gradients; larger gradients are scaled down.
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
            last_blocks: None,
            epochs: 20,
            batch: 128,
            lr: 1e-3,
            muon_lr: None,
            warmup_steps: 400,
            weight_decay: 0.05,
            label_smoothing: 0.1,
            shift_px: 4,
            mirror: true,
            cutmix: 0.0,
            keep_patches: 0.5,
            whole_share: 0.2,
            consistency: 0.0,
            max_norm: 1.0,
            checkpoint_steps: 200,
        }
    }
}

impl ClassifierRecipe {
    /// Returns the configuration of the model that the recipe trains on images of `size` with these classes.
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
                "a classifier needs labels of at least two classes, but {:?} has {}",
                train.name(),
                train.classes().len()
            )));
        }
        let size = train.size();
        if size.width_px != size.height_px {
            return refuse(format!("training requires square pictures, got {size:?}"));
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
    /// Shape of the model.
    pub config: VitConfig,
    /// Weights under canonical names.
    pub weights: HashMap<String, Tensor>,
    /// Accuracy on the test images.
    pub test_accuracy: f64,
    /// Interpreter that was trained jointly.
    pub interpreter: Option<JointInterpreter>,
    /// False if `on_progress` ended the run early.
    pub complete: bool,
}

/// An interpreter trained jointly with its model.
#[derive(Debug)]
pub struct JointInterpreter {
    /// Tensors by name, as taken by [`vitscope_core::interpreter::Interpreter::load`].
    pub tensors: BTreeMap<String, Tensor>,
    /// Shape of the interpreter.
    pub shape: InterpreterShape,
    /// Fidelity to the model on test images.
    pub fidelity: Fidelity,
}

/// Mean and standard deviation of the image normalization: pixels span -1 to 1.
pub const NORMALIZATION: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

/// Trains on `train` on the `device`, evaluates on `test`; writes checkpoints, `train.csv` and `train.png` into
/// `folder`.
///
/// With an IA-ViT recipe, an interpreter is trained jointly and shapes the model through its losses. Resumes from the
/// checkpoint in `folder`, if any.
///
/// # Errors
/// Fails if the data are empty, if the recipe does not fit the data or `start`, or if `folder` cannot be written.
pub fn train(
    recipe: &ClassifierRecipe,
    start: Option<&Start>,
    interpreter: Option<&IaVitRecipe>,
    (train, test): (&dyn Dataset, &dyn Dataset),
    device: &Device,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedClassifier> {
    recipe.validate(train)?;
    if let Some(interpreter) = interpreter {
        interpreter.validate()?;
    }
    let mut trainer = ClassifierTrainer::new(recipe, start, interpreter, (train, test), device)?;
    let columns = match interpreter {
        None => COLUMNS,
        Some(_) => JOINT_COLUMNS,
    };
    let plan = Plan {
        folder,
        curves: "train",
        title: "classifier",
        columns,
        recipe: recipe_text(&(recipe, start.map(|start| &start.sha256), interpreter))?,
        n_steps: trainer.n_steps(),
        checkpoint_steps: recipe.checkpoint_steps,
    };
    let complete = run(&mut trainer, &plan, on_progress)?;
    trainer.finish(complete)
}
