//! `vitscope train`: trains a classifier, DiffMask gates for a model, IA-ViT's interpreter or a model's familiarity, or
//! performs many such runs.
//!
//! All take a recipe (TOML), whose keys are the fields of the trainers' recipe types; command-line options take
//! precedence. The output is a model folder with the loss curve. If the same command is given again, a killed run
//! resumes from its last checkpoint.

mod familiarity;
mod job;
mod recipe;
mod runs;
mod shown;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::bail;
use candle_core::Device;
use vitscope::models::{self, Reference};
use vitscope::train::Checkpoint;

use crate::args::{DeviceArgs, one_or_more, thread_count};
use crate::exit::Exit;
use crate::interrupt;
use job::{Job, Joint, Measured, range};

pub use job::{accuracy, print_left_out};

/// Train a classifier, DiffMask gates or an IA-ViT interpreter.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TrainArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    runs: RunsArgs,
}

#[derive(Debug, clap::Args)]
struct RunsArgs {
    /// Recipe with [[run]] tables; every run that is not complete yet is trained.
    #[arg(value_name = "FILE.toml")]
    file: Option<PathBuf>,
    /// Training data for all runs [default: the recipe's].
    #[arg(long, value_name = "DATA", requires = "file")]
    data: Option<String>,
    /// Output folder for all runs.
    #[arg(long, value_name = "FOLDER", requires = "file")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Number of compute threads; on the CPU, runs with equal numbers are bit-identical [default: one per core].
    #[arg(long, value_name = "N", requires = "file", value_parser = thread_count)]
    threads: Option<NonZeroUsize>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Train a Vision Transformer as a classifier, from scratch or from an existing model.
    Classifier(ClassifierArgs),
    /// Train DiffMask gates for a frozen model.
    Diffmask(DiffMaskArgs),
    /// Train an IA-ViT interpreter for a frozen model or, without --model, jointly with a new model.
    IaVit(IaVitArgs),
    /// Measure which pictures are familiar to a model, so that it calls others "unfamiliar".
    Familiarity(familiarity::FamiliarityArgs),
}

#[derive(Debug, clap::Args)]
struct ClassifierArgs {
    /// Output folder; a killed run resumes from there.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Start from this model instead of from scratch; its size is kept, its classes become those of the data.
    #[arg(long, value_name = "MODEL")]
    init: Option<String>,
    /// Freeze the model of --init and train only a linear head on it; use the result with --backbone.
    #[arg(long, requires = "init")]
    freeze: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
struct DiffMaskArgs {
    /// Folder of the model to train gates for.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Backbone model, if --model holds only a head or an adapter.
    #[arg(long, value_name = "MODEL")]
    backbone: Option<String>,
    /// Output folder for the gates and training files [default: the model's].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Train gates with N seeds; the first goes into the output folder, the others into its `seeds/SEED`.
    #[arg(long, value_name = "N", default_value = "1", value_parser = one_or_more::<NonZeroU64>)]
    seeds: NonZeroU64,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
struct IaVitArgs {
    /// Folder of the frozen model to train an interpreter for.
    #[arg(long, value_name = "FOLDER", required_unless_present = "out")]
    model: Option<PathBuf>,
    /// Backbone model, if --model holds only a head or an adapter.
    #[arg(long, value_name = "MODEL", requires = "model")]
    backbone: Option<String>,
    /// In joint training, start from this model instead of from scratch.
    #[arg(long, value_name = "MODEL", conflicts_with = "model")]
    init: Option<String>,
    /// Output folder for the interpreter, the training files and any new model [default: the model's].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// Training data: `red-patches`, a video, or a folder with CIFAR-10, with pictures and videos, or with one
    /// subfolder of pictures per class [default: the recipe's].
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Recipe: a TOML file with `data` and the tables `classifier`, `probe`, `diffmask` and `ia-vit`.
    #[arg(long, value_name = "FILE.toml")]
    recipe: Option<PathBuf>,
    /// Override a key of the recipe's table, e.g. `--set steps=2000`; in joint training, `ia-vit.KEY=VALUE` overrides a
    /// key of the interpreter's table.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Random seed [default: the recipe's, else 0].
    #[arg(long)]
    seed: Option<u64>,
    /// Steps between checkpoints [default: the recipe's].
    #[arg(long, value_name = "STEPS")]
    checkpoint: Option<u64>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Number of compute threads; on the CPU, runs with equal numbers are bit-identical [default: one per core].
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<NonZeroUsize>,
}

impl TrainArgs {
    /// Returns the value of `--threads`.
    pub fn threads(&self) -> Option<NonZeroUsize> {
        match &self.what {
            None => self.runs.threads,
            Some(What::Classifier(args)) => args.common.threads,
            Some(What::Diffmask(args)) => args.common.threads,
            Some(What::IaVit(args)) => args.common.threads,
            Some(What::Familiarity(args)) => args.threads,
        }
    }
}

/// Runs `vitscope train`.
pub fn run(args: &TrainArgs) -> anyhow::Result<Exit> {
    let Some(what) = &args.what else {
        return match &args.runs.file {
            Some(path) => runs::run(path, &args.runs),
            None => bail!(
                "nothing to train, expected a subcommand (see `vitscope train --help`) or a recipe with runs"
            ),
        };
    };
    match what {
        What::Classifier(args) => one(&args.common, &args.out, |job| match &args.init {
            Some(init) if args.freeze => job.head(init),
            init => job.classifier(Joint::Alone, init.as_deref()),
        }),
        What::Diffmask(args) => train_gates(args),
        What::Familiarity(args) => familiarity::run(args),
        What::IaVit(args) => match (&args.model, &args.out) {
            (Some(model), out) => {
                let reference = over(model, args.backbone.as_deref())?;
                let out = output_folder(out.as_deref(), model, reference)?;
                one(&args.common, out, |job| job.interpreter(reference))
            }
            (None, Some(out)) => one(&args.common, out, |job| {
                job.classifier(Joint::WithInterpreter, args.init.as_deref())
            }),
            (None, None) => bail!("--model or --out is required"),
        },
    }
}

/// Runs a single training.
fn one(
    common: &CommonArgs,
    out: &Path,
    train: impl FnOnce(Job<'_>) -> anyhow::Result<Option<Measured>>,
) -> anyhow::Result<Exit> {
    let file = recipe::read(common.recipe.as_deref())?;
    let stop = interrupt::flag(vec![Checkpoint::path(out)])?;
    match train(common.job(&file, out, &stop)?)? {
        Some(_) => Ok(Exit::Whole),
        None => Ok(interrupted(out)),
    }
}

/// Returns the folder for gates or an interpreter: the model's folder, unless the model is embedded or from the hub.
fn output_folder<'a>(
    out: Option<&'a Path>,
    model: &'a Path,
    reference: Reference<'_>,
) -> anyhow::Result<&'a Path> {
    if let Some(out) = out {
        return Ok(out);
    }
    if !model.is_dir() {
        // If there is no such model, report that instead.
        models::open(reference, &Device::Cpu)?;
        bail!("training for a model that is not a folder requires --out: {model:?}");
    }
    Ok(model)
}

fn train_gates(args: &DiffMaskArgs) -> anyhow::Result<Exit> {
    let file = recipe::read(args.common.recipe.as_deref())?;
    let reference = over(&args.model, args.backbone.as_deref())?;
    let out = output_folder(args.out.as_deref(), &args.model, reference)?;
    let changes = recipe::changed(&args.common.set)?;
    let first = recipe::gate_recipe(&file.diffmask, changes, args.common.seed, None)?.seed();
    let folders: Vec<(u64, PathBuf)> = (first..)
        .take(args.seeds.get() as usize)
        .map(|seed| match seed == first {
            true => (seed, out.to_owned()),
            false => (seed, out.join("seeds").join(seed.to_string())),
        })
        .collect();
    let checkpoints = folders.iter().map(|(_, folder)| Checkpoint::path(folder));
    let stop = interrupt::flag(checkpoints.collect())?;
    let mut all: Vec<Measured> = Vec::new();
    for (seed, folder) in &folders {
        let mut job = args.common.job(&file, folder, &stop)?;
        job.seed = Some(*seed);
        match job.gates(reference)? {
            Some(measured) => all.push(measured),
            None => return Ok(interrupted(folder)),
        }
    }
    if let (true, Some(first)) = (all.len() > 1, all.first()) {
        for name in first.keys() {
            let (low, high) = range(
                all.iter()
                    .filter_map(|measured| measured.get(name).copied()),
            );
            println!("{name} over {} seeds: {low:.4} to {high:.4}", all.len());
        }
    }
    Ok(Exit::Whole)
}

/// Returns a reference to a folder and the model under it.
fn over<'a>(folder: &'a Path, backbone: Option<&'a str>) -> anyhow::Result<Reference<'a>> {
    let Some(model) = folder.to_str() else {
        bail!("path is not UTF-8: {folder:?}");
    };
    Ok(Reference::over(model, backbone))
}

impl CommonArgs {
    fn job<'a>(
        &'a self,
        file: &'a recipe::RecipeFile,
        out: &'a Path,
        stop: &'a Arc<AtomicBool>,
    ) -> anyhow::Result<Job<'a>> {
        Ok(Job {
            file,
            data: self.data.as_deref(),
            changes: recipe::changed(&self.set)?,
            seed: self.seed,
            checkpoint: self.checkpoint,
            device: self.device.open()?,
            out,
            stop,
        })
    }
}

fn interrupted(folder: &Path) -> Exit {
    println!(
        "interrupted; repeat the command to resume from {:?}",
        Checkpoint::path(folder)
    );
    Exit::Interrupted
}
