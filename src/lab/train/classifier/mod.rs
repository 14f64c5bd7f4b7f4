//! Trains a Vision Transformer as a classifier: from scratch, or on from a trained one.
//!
//! Cross-entropy with label smoothing, AdamW, linear warm-up and half a cosine. For photographs each
//! picture is shifted and mirrored at random, and for most of the run each step sees only a share of the
//! patches (PatchDropout, Liu et al., arXiv:2208.07220): that is faster in proportion, and a model that
//! has seen missing patches answers better when an explainer takes patches away. Better still where its
//! answer to some of the patches is drawn to its answer to all of them (`consistency`).

mod augment;
mod optimizers;
mod start;
mod trainer;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Tensor;
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

/// What a run measures.
pub const COLUMNS: &[&str] = &["loss", "lr", "train accuracy", "test accuracy"];

/// What a run with an interpreter measures.
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
    /// Seed of the weights, the order of the pictures and the augmentation.
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
    /// Epochs over the training pictures.
    pub epochs: usize,
    /// Pictures per step (batch size).
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
    /// Whether to mirror pictures at random.
    pub mirror: bool,
    /// Share of the pictures in which a rectangle is replaced by another picture (CutMix, Yun et al.,
    /// arXiv:1905.04899).
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
    /// The model's shape.
    pub config: VitConfig,
    /// Weights under canonical names.
    pub weights: HashMap<String, Tensor>,
    /// Share of the test pictures that are classified right.
    pub test_accuracy: f64,
    /// The interpreter that was trained with it.
    pub interpreter: Option<JointInterpreter>,
    /// False where `on_progress` ended the run early.
    pub complete: bool,
}

/// An interpreter that was trained with its model.
#[derive(Debug)]
pub struct JointInterpreter {
    /// By name, as [`vitscope_core::interpreter::Interpreter::load`] takes them.
    pub tensors: BTreeMap<String, Tensor>,
    /// Its shape.
    pub shape: InterpreterShape,
    /// How well it answers as the model does, on test pictures.
    pub fidelity: Fidelity,
}

/// Mean and standard deviation that pictures are normalized with: pixels span -1 to 1.
pub const NORMALIZATION: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

/// Trains on `train`, measures on `test`; writes checkpoints, `train.csv` and `train.png` into `folder`.
///
/// With a recipe for IA-ViT an interpreter is trained jointly, and shapes the model with its losses.
/// Goes on from the checkpoint in `folder` where there is one.
///
/// # Errors
/// Fails on empty data, on a recipe that does not fit data or `start`, and where `folder` cannot be written.
pub fn train(
    recipe: &ClassifierRecipe,
    start: Option<&Start>,
    interpreter: Option<&IaVitRecipe>,
    train: &dyn Dataset,
    test: &dyn Dataset,
    folder: &Path,
    on_progress: &mut OnProgress<'_>,
) -> Result<TrainedClassifier> {
    recipe.validate(train)?;
    if let Some(interpreter) = interpreter {
        interpreter.validate()?;
    }
    let mut trainer = ClassifierTrainer::new(recipe, start, interpreter, train, test)?;
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
