//! Training loop shared by all trainers: step, report, checkpoint, resume.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Checkpoint, History, OnProgress, Progress};
use vitscope_core::error::{Error, Result};

/// Interface between a trainer and the loop.
pub(super) trait Trainer {
    /// Number of completed steps.
    fn steps_done(&self) -> u64;

    /// Returns true if more steps would not help.
    fn is_done(&self) -> bool {
        false
    }

    /// Takes one step and returns its measurements in column order; trailing ones may be omitted.
    fn step(&mut self) -> Result<Vec<f64>>;

    /// Captures everything that the next step reads.
    fn checkpoint(&self, recipe: &str) -> Result<Checkpoint>;

    /// Resumes from `checkpoint`.
    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()>;
}

/// Parameters of a run, apart from its trainer.
pub(super) struct Plan<'a> {
    /// Output folder of checkpoints and curves.
    pub(super) folder: &'a Path,
    /// File name of the curves, without extension.
    pub(super) curves: &'static str,
    /// Title of the curves.
    pub(super) title: &'static str,
    /// Names of the measurements.
    pub(super) columns: &'static [&'static str],
    /// Serialized inputs that determine the run.
    pub(super) recipe: String,
    /// Number of steps of the whole run.
    pub(super) n_steps: u64,
    /// Steps between checkpoints.
    pub(super) checkpoint_steps: u64,
}

impl<'a> Plan<'a> {
    /// Creates the plan of a gate run for the model whose weights hash to `base_sha256`.
    pub(super) fn of_gates(
        folder: &'a Path,
        columns: &'static [&'static str],
        (recipe, base_sha256): (&impl Serialize, &str),
        n_steps: u64,
        checkpoint_steps: u64,
    ) -> Result<Self> {
        Ok(Self {
            folder,
            curves: "gates",
            title: "gates",
            columns,
            // The checkpoint also belongs to the model: other weights make another run.
            recipe: recipe_text(&(recipe, base_sha256))?,
            n_steps,
            checkpoint_steps,
        })
    }
}

/// Serializes everything that determines a run.
pub(super) fn recipe_text(parts: &impl Serialize) -> Result<String> {
    serde_json::to_string(parts)
        .map_err(|err| Error::Config(format!("the recipe cannot be written: {err}")))
}

/// Returns every option of a recipe by name, for a card.
pub(super) fn recipe_options(recipe: &impl Serialize) -> Result<BTreeMap<String, Value>> {
    serde_json::to_value(recipe)
        .and_then(serde_json::from_value)
        .map_err(|err| Error::Config(format!("the recipe cannot be written: {err}")))
}

/// Fails on the first option that is not above 0.
pub(super) fn check_positive(options: &[(&str, f64)]) -> Result<()> {
    match options
        .iter()
        .find(|(_, value)| !(*value > 0.0 && value.is_finite()))
    {
        None => Ok(()),
        Some((name, value)) => Err(Error::Config(format!(
            "{name} must be above 0, got {value}"
        ))),
    }
}

/// Trains to the end, or until `on_progress` returns false; returns false in that case.
///
/// Resumes from the checkpoint in the folder, if any; writes `CURVES.csv` and `CURVES.png`.
///
/// # Errors
/// Fails if a step fails, or if the folder cannot be written.
pub(super) fn run(
    trainer: &mut dyn Trainer,
    plan: &Plan<'_>,
    on_progress: &mut OnProgress<'_>,
) -> Result<bool> {
    let Plan {
        folder, n_steps, ..
    } = *plan;
    std::fs::create_dir_all(folder).map_err(|err| Error::io(folder, err))?;
    if let Some(checkpoint) = Checkpoint::load(folder, &plan.recipe)? {
        trainer.restore(checkpoint)?;
    }
    let csv_path = folder.join(format!("{}.csv", plan.curves));
    let mut history = History::load_csv(plan.columns, &csv_path, trainer.steps_done())?;
    let mut complete = true;
    while trainer.steps_done() < n_steps && !trainer.is_done() {
        let mut values = trainer.step()?;
        values.resize(plan.columns.len(), f64::NAN);
        let step = trainer.steps_done();
        history.push(step, &values);
        let go_on = on_progress(&Progress {
            step,
            n_steps,
            names: plan.columns,
            values: &values,
        });
        let ends = step == n_steps || trainer.is_done();
        if step.is_multiple_of(plan.checkpoint_steps.max(1)) || ends || !go_on {
            trainer.checkpoint(&plan.recipe)?.save(folder)?;
            history.save_csv(&csv_path)?;
        }
        if !go_on {
            complete = ends;
            break;
        }
    }
    history.save_csv(&csv_path)?;
    history.save_png(&folder.join(format!("{}.png", plan.curves)), plan.title)?;
    Ok(complete)
}

/// Returns the loss as a number. A run with a non-finite loss ends and keeps its last checkpoint.
///
/// # Errors
/// [`Error::Config`] with the step and the learning rate to lower.
pub(super) fn finite_loss(loss: &candle_core::Tensor, step: u64, lr: f64) -> Result<f64> {
    let loss = f64::from(loss.to_scalar::<f32>()?);
    match loss.is_finite() {
        true => Ok(loss),
        false => Err(Error::Config(format!(
            "the loss is {loss} at step {step}; lower the learning rate of {lr}"
        ))),
    }
}
