//! `vitscope train`: a classifier from scratch, DiffMask gates for a model, or IA-ViT's interpreter.
//!
//! All take a recipe (TOML), whose keys are the fields of the trainers' recipe types; options on the
//! command line win. What is written is a model's folder, with the loss curve beside it. A killed run
//! goes on from its last checkpoint when the same command is given again.
#![expect(
    clippy::print_stdout,
    reason = "what a command is asked for goes to standard output"
)]

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail};
use candle_core::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use vitscope::data::{self, Halves};
use vitscope::eval::classification::Count;
use vitscope::frame::FrameSize;
use vitscope::frame::placement::ResizeRule;
use vitscope::frame::resize::Resampling;
use vitscope::gates::Gates;
use vitscope::interpreter::Interpreter;
use vitscope::models::{self, Model, Precision, Preprocessor, Reference};
use vitscope::train::classifier::{self, ClassifierRecipe};
use vitscope::train::diffmask::{self, DiffMaskRecipe, TrainedGates};
use vitscope::train::iavit::{self, Fidelity, IaVitRecipe};
use vitscope::train::probe::{self, ProbeRecipe};
use vitscope::train::{Checkpoint, Progress, Subject};

use crate::changes;
use crate::exit::Exit;
use crate::interrupt;

/// Train a classifier, DiffMask gates for a model, or IA-ViT's interpreter.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Train a Vision Transformer from scratch.
    Classifier(ClassifierArgs),
    /// Train DiffMask gates for a frozen model.
    Diffmask(DiffMaskArgs),
    /// Train IA-ViT's interpreter: for a frozen model, or without --model jointly with one from scratch.
    IaVit(IaVitArgs),
}

#[derive(Debug, clap::Args)]
struct ClassifierArgs {
    /// Folder of the new model; a run that was killed goes on from there.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Begin with the features of this model, instead of from scratch.
    #[arg(long, value_name = "MODEL", requires = "freeze")]
    init: Option<String>,
    /// Leave the model of --init as it is and train a linear head for it, which needs it as its backbone.
    #[arg(long, requires = "init")]
    freeze: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
struct DiffMaskArgs {
    /// Folder of the model that gets gates.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// The model that stands under a folder which holds a head only.
    #[arg(long, value_name = "MODEL")]
    backbone: Option<String>,
    /// Folder of the gates and the run's files [default: the model's].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Train gates of so many seeds, the first in the folder, the others in `seeds/SEED` below it.
    #[arg(long, value_name = "N", default_value = "1")]
    seeds: NonZeroU64,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
struct IaVitArgs {
    /// Folder of the model that gets an interpreter and stays as it is.
    #[arg(long, value_name = "FOLDER", required_unless_present = "out")]
    model: Option<PathBuf>,
    /// The model that stands under a folder which holds a head only.
    #[arg(long, value_name = "MODEL", requires = "model")]
    backbone: Option<String>,
    /// Folder of the interpreter and the run's files, and of the new model where none is given [default: the model's].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// `red-patches`, a video, or a folder: CIFAR-10, or pictures and videos, or a sub-folder of pictures a class
    /// [default: the recipe's].
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// TOML file with `data` and the tables `classifier`, `probe`, `diffmask` and `ia-vit`.
    #[arg(long, value_name = "FILE.toml")]
    recipe: Option<PathBuf>,
    /// Change a key of the recipe's table, e.g. `--set steps=2000`; beside a classifier `ia-vit.KEY=VALUE`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of everything random [default: the recipe's, else 0].
    #[arg(long)]
    seed: Option<u64>,
    /// Steps between checkpoints [default: the recipe's].
    #[arg(long, value_name = "STEPS")]
    checkpoint: Option<u64>,
    /// Threads that compute; runs are equal bit by bit for equal numbers [default: one a core].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// A recipe file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct RecipeFile {
    /// What `--data` takes; a relative folder is looked for from where the program runs.
    data: Option<String>,
    /// Edge of the model's image, for pictures of a folder; pixels.
    image_size: Option<usize>,
    classifier: toml::Table,
    probe: toml::Table,
    diffmask: toml::Table,
    ia_vit: toml::Table,
}

/// Edge of the model's image where neither recipe nor data say one; pixels.
const DEFAULT_IMAGE_PX: usize = 64;

/// Name of IA-ViT's table in a recipe.
const IA_VIT: &str = "ia-vit";

impl TrainArgs {
    /// What `--threads` says.
    pub fn threads(&self) -> Option<NonZeroUsize> {
        match &self.what {
            What::Classifier(args) => args.common.threads,
            What::Diffmask(args) => args.common.threads,
            What::IaVit(args) => args.common.threads,
        }
    }
}

/// Runs `vitscope train`.
pub fn run(args: &TrainArgs) -> anyhow::Result<Exit> {
    match &args.what {
        What::Classifier(args) => match &args.init {
            Some(init) => train_head(init, &args.out, &args.common),
            None => train_classifier(&args.out, &args.common, Joint::Alone),
        },
        What::Diffmask(args) => train_gates(args),
        What::IaVit(args) => match (&args.model, &args.out) {
            (Some(model), out) => {
                let base = (model.as_path(), args.backbone.as_deref());
                train_interpreter(base, out.as_deref().unwrap_or(model), &args.common)
            }
            (None, Some(out)) => train_classifier(out, &args.common, Joint::WithInterpreter),
            (None, None) => bail!("--model or --out is needed"),
        },
    }
}

/// What is trained beside a classifier.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Joint {
    Alone,
    WithInterpreter,
}

fn train_classifier(out: &Path, common: &CommonArgs, joint: Joint) -> anyhow::Result<Exit> {
    let file = read_recipe(common)?;
    let mut changes = changed(common)?;
    let interpreter: Option<IaVitRecipe> = match joint {
        Joint::Alone => None,
        Joint::WithInterpreter => {
            let changes = match changes.remove(IA_VIT) {
                Some(toml::Value::Table(changes)) => changes,
                Some(other) => bail!("--set takes {IA_VIT}.KEY=VALUE, got {other}"),
                None => toml::Table::new(),
            };
            Some(recipe(&file.ia_vit, changes, common.seed, None, IA_VIT)?)
        }
    };
    let table = &file.classifier;
    let recipe: ClassifierRecipe =
        recipe(table, changes, common.seed, common.checkpoint, "classifier")?;
    let side_px = file.image_size.unwrap_or(DEFAULT_IMAGE_PX);
    let size = FrameSize {
        width_px: side_px,
        height_px: side_px,
    };
    let rule = ResizeRule::Stretch(size);
    let halves = open_data(common, &file, rule, Resampling::Bilinear, recipe.seed)?;
    let mut shown = Shown::new(interrupt::flag(vec![Checkpoint::path(out)])?);
    let done = classifier::train(
        &recipe,
        interpreter.as_ref(),
        &*halves.train,
        &*halves.test,
        out,
        &mut |progress| shown.step(progress),
    )?;
    shown.finish();
    if !done.complete {
        return Ok(interrupted(out));
    }
    let preprocessor = Preprocessor::square(done.config.image_size);
    let sha256 = models::save_folder(
        out,
        &done.config,
        &preprocessor,
        &done.weights,
        Precision::F16,
    )?;
    if let (Some(recipe), Some((tensors, fidelity))) = (interpreter, done.interpreter) {
        let shape = recipe.shape(&done.config, done.config.n_patches());
        let card = recipe.card(shape, &sha256, fidelity)?;
        Interpreter::save(&tensors, &card, out)?;
        print_fidelity(fidelity);
    }
    Checkpoint::remove(out)?;
    println!(
        "test accuracy {:.4} on {} pictures",
        done.test_accuracy,
        halves.test.len()
    );
    print_unreadable(&halves);
    println!("sha256 {sha256} of {:?}", out.join("model.safetensors"));
    Ok(Exit::Whole)
}

fn train_head(init: &str, out: &Path, common: &CommonArgs) -> anyhow::Result<Exit> {
    let file = read_recipe(common)?;
    let recipe: ProbeRecipe = recipe_for_frozen(&file.probe, common, "probe")?;
    let frozen = Frozen::open(init.into(), common, &file, recipe.seed)?;
    if frozen.model.head_sha256.is_some() {
        bail!("model has a head of its own beside it, and so is no backbone: {init:?}");
    }
    let mut shown = Shown::new(interrupt::flag(vec![Checkpoint::path(out)])?);
    let subject = frozen.subject();
    let done = probe::train(&recipe, subject, out, &mut |progress| shown.step(progress))?;
    shown.finish();
    if !done.complete {
        return Ok(interrupted(out));
    }
    let classes = subject.train.classes();
    models::save_head(out, &done.weight, &done.bias, classes, subject.base_sha256)?;
    Checkpoint::remove(out)?;
    println!("test accuracy {}", accuracy(done.test));
    print_unreadable(&frozen.halves);
    println!(
        "head in {:?}, for --backbone {init}",
        out.join("head.safetensors")
    );
    Ok(Exit::Whole)
}

fn train_gates(args: &DiffMaskArgs) -> anyhow::Result<Exit> {
    let file = read_recipe(&args.common)?;
    let first: DiffMaskRecipe = recipe_for_frozen(&file.diffmask, &args.common, "diffmask")?;
    let out = args.out.as_deref().unwrap_or(&args.model);
    let reference = over(&args.model, args.backbone.as_deref())?;
    let frozen = Frozen::open(reference, &args.common, &file, first.seed)?;
    let stop = interrupt::flag(vec![Checkpoint::path(out)])?;
    let mut cards = Vec::new();
    for seed in (first.seed..).take(args.seeds.get() as usize) {
        let folder = match seed == first.seed {
            true => out.to_owned(),
            false => out.join("seeds").join(seed.to_string()),
        };
        let recipe = DiffMaskRecipe {
            seed,
            ..first.clone()
        };
        let Some(done) = train_gates_of_a_seed(&recipe, &frozen, &folder, &stop)? else {
            return Ok(interrupted(&folder));
        };
        cards.push((done.card, done.agreement));
    }
    if cards.len() > 1 {
        let spread = |name: &str, values: Vec<f64>| {
            let (low, high) = values
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                    (low.min(*value), high.max(*value))
                });
            println!("{name} over {} seeds: {low:.4} to {high:.4}", values.len());
        };
        spread("kl", cards.iter().map(|(card, _)| card.kl).collect());
        spread("kept", cards.iter().map(|(card, _)| card.l0).collect());
        spread(
            "agreement",
            cards.iter().map(|(_, agreement)| *agreement).collect(),
        );
    }
    print_unreadable(&frozen.halves);
    Ok(Exit::Whole)
}

/// Gates in `folder`, or nothing where the run was interrupted.
fn train_gates_of_a_seed(
    recipe: &DiffMaskRecipe,
    frozen: &Frozen,
    folder: &Path,
    interrupted: &Arc<AtomicBool>,
) -> anyhow::Result<Option<TrainedGates>> {
    let mut shown = Shown::new(Arc::clone(interrupted));
    let done = diffmask::train(recipe, frozen.subject(), folder, &mut |progress| {
        shown.step(progress)
    })?;
    shown.finish();
    if !done.complete {
        return Ok(None);
    }
    Gates::save(&done.tensors, &done.card, folder)?;
    Checkpoint::remove(folder)?;
    println!(
        "seed {}: binary masks on test pictures: kl {:.4}, kept {:.4}, agreement {:.4}",
        recipe.seed, done.card.kl, done.card.l0, done.agreement
    );
    if done.card.kl > recipe.margin {
        println!(
            "the margin of {} is not met: train longer, or start with another masked-share",
            recipe.margin
        );
    }
    println!(
        "gates in {:?}, report in {:?}",
        folder.join("gates.safetensors"),
        folder.join("report.html")
    );
    Ok(Some(done))
}

fn train_interpreter(
    (model, backbone): (&Path, Option<&str>),
    out: &Path,
    common: &CommonArgs,
) -> anyhow::Result<Exit> {
    let file = read_recipe(common)?;
    let recipe: IaVitRecipe = recipe_for_frozen(&file.ia_vit, common, IA_VIT)?;
    let frozen = Frozen::open(over(model, backbone)?, common, &file, recipe.seed)?;
    let mut shown = Shown::new(interrupt::flag(vec![Checkpoint::path(out)])?);
    let done = iavit::train(&recipe, frozen.subject(), out, &mut |progress| {
        shown.step(progress)
    })?;
    shown.finish();
    if !done.complete {
        return Ok(interrupted(out));
    }
    Interpreter::save(&done.tensors, &done.card, out)?;
    Checkpoint::remove(out)?;
    print_fidelity(done.fidelity);
    print_unreadable(&frozen.halves);
    println!("interpreter in {:?}", out.join("interpreter.safetensors"));
    Ok(Exit::Whole)
}

/// A folder, and the model under it.
fn over<'a>(folder: &'a Path, backbone: Option<&'a str>) -> anyhow::Result<Reference<'a>> {
    let Some(model) = folder.to_str() else {
        bail!("path is not UTF-8: {folder:?}");
    };
    Ok(Reference {
        backbone,
        ..model.into()
    })
}

/// A share of right answers with its interval, for people.
pub fn accuracy(count: Count) -> String {
    let (low, high) = count.interval();
    format!(
        "{:.4} on {} pictures (95 % interval {low:.4} to {high:.4})",
        count.share(),
        count.of
    )
}

/// Names what was left out of the pictures.
fn print_unreadable(halves: &Halves) {
    let mut unreadable = halves.train.unreadable();
    unreadable.extend(halves.test.unreadable());
    unreadable.sort();
    unreadable.dedup();
    if unreadable.is_empty() {
        return;
    }
    println!("left out, as unreadable: {}", unreadable.len());
    for reason in unreadable {
        println!("  {reason}");
    }
}

fn print_fidelity(fidelity: Fidelity) {
    println!(
        "interpreter on test pictures: kl {:.4}, agreement {:.4}, accuracy {:.4}",
        fidelity.kl, fidelity.agreement, fidelity.accuracy
    );
}

/// A frozen model that something is trained for, and the pictures.
struct Frozen {
    model: Model,
    halves: Halves,
}

impl Frozen {
    fn open(
        reference: Reference<'_>,
        common: &CommonArgs,
        file: &RecipeFile,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let reference = Reference {
            trained_parts: false,
            ..reference
        };
        let model = models::open(reference, &Device::Cpu)?;
        let Preprocessor {
            rule, resampling, ..
        } = model.preprocessor;
        let halves = open_data(common, file, rule, resampling, seed)?;
        let halves = halves.at_size(rule, resampling);
        Ok(Self { model, halves })
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            vit: &self.model.vit,
            size: self.model.preprocessor.image_size(),
            base_sha256: &self.model.weights_sha256,
            mean: self.model.preprocessor.mean,
            std: self.model.preprocessor.std,
            train: &*self.halves.train,
            test: &*self.halves.test,
        }
    }
}

fn read_recipe(args: &CommonArgs) -> anyhow::Result<RecipeFile> {
    let Some(path) = &args.recipe else {
        return Ok(RecipeFile::default());
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("{path:?}"))?;
    toml::from_str(&text).map_err(|err| {
        let before = err.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        anyhow!(
            "recipe is malformed: {}: {path:?}, line {line}",
            err.message()
        )
    })
}

/// What `--set` changes.
fn changed(args: &CommonArgs) -> anyhow::Result<toml::Table> {
    let mut table = toml::Table::new();
    for change in &args.set {
        for (key, value) in changes::parse(change)? {
            match (table.get_mut(&key), value) {
                (Some(toml::Value::Table(known)), toml::Value::Table(more)) => known.extend(more),
                (_, value) => _ = table.insert(key, value),
            }
        }
    }
    Ok(table)
}

/// The only table of a run for a frozen model, with the command line's changes.
fn recipe_for_frozen<T: for<'de> Deserialize<'de>>(
    table: &toml::Table,
    args: &CommonArgs,
    name: &str,
) -> anyhow::Result<T> {
    recipe(table, changed(args)?, args.seed, args.checkpoint, name)
}

/// The table of a recipe file with the command line's changes.
fn recipe<T: for<'de> Deserialize<'de>>(
    table: &toml::Table,
    changes: toml::Table,
    seed: Option<u64>,
    checkpoint: Option<u64>,
    name: &str,
) -> anyhow::Result<T> {
    let mut table = table.clone();
    table.extend(changes);
    let numbers = [("seed", seed), ("checkpoint-steps", checkpoint)];
    for (key, value) in numbers {
        if let Some(value) = value {
            let value = i64::try_from(value).with_context(|| format!("{key} is too large"))?;
            table.insert(key.into(), value.into());
        }
    }
    toml::Value::Table(table)
        .try_into()
        .map_err(|err: toml::de::Error| {
            // Its second line names the key.
            let reason = err.to_string().trim().replace('\n', " ");
            anyhow!("recipe table {name:?}: {reason}")
        })
}

fn open_data(
    args: &CommonArgs,
    file: &RecipeFile,
    rule: ResizeRule,
    resampling: Resampling,
    seed: u64,
) -> anyhow::Result<Halves> {
    let Some(reference) = args.data.as_ref().or(file.data.as_ref()) else {
        bail!("no data: pass --data, or a recipe that names it");
    };
    Ok(data::open(reference, rule, resampling, seed)?)
}

fn interrupted(folder: &Path) -> Exit {
    println!(
        "interrupted; the same command goes on from {:?}",
        Checkpoint::path(folder)
    );
    Exit::Interrupted
}

/// Shows a run on standard error, and ends it at Ctrl-C.
struct Shown {
    bar: Option<ProgressBar>,
    interrupted: Arc<AtomicBool>,
    /// Running means of the values, for single steps are noisy.
    means: Vec<f64>,
}

/// Steps between two lines where standard error is no terminal.
const PLAIN_STEPS: u64 = 100;

/// Weight of the newest step in a running mean.
const NEWEST: f64 = 0.05;

impl Shown {
    fn new(interrupted: Arc<AtomicBool>) -> Self {
        Self {
            bar: None,
            interrupted,
            means: Vec::new(),
        }
    }

    fn step(&mut self, progress: &Progress<'_>) -> bool {
        self.means.resize(progress.values.len(), f64::NAN);
        let shown = self.means.iter_mut().zip(progress.values);
        for ((mean, value), name) in shown.zip(progress.names) {
            // What is measured now and then is shown as it was last measured.
            if mean.is_nan() || (name.starts_with("test") && value.is_finite()) {
                *mean = *value;
            } else if value.is_finite() {
                *mean += NEWEST * (value - *mean);
            }
        }
        let line: Vec<String> = progress
            .names
            .iter()
            .zip(&self.means)
            .filter(|(_, mean)| mean.is_finite())
            .map(|(name, mean)| format!("{name} {mean:.3}"))
            .collect();
        let line = line.join("  ");
        let bar = self.bar.get_or_insert_with(|| bar(progress));
        bar.set_position(progress.step);
        if bar.is_hidden() && progress.step.is_multiple_of(PLAIN_STEPS) {
            eprintln!("{}/{}  {line}", progress.step, progress.n_steps);
        }
        bar.set_message(line);
        !self.interrupted.load(Ordering::SeqCst)
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

fn bar(progress: &Progress<'_>) -> ProgressBar {
    let bar = ProgressBar::new(progress.n_steps);
    // A resumed run shall not count the steps of the first one into its speed.
    bar.set_position(progress.step.saturating_sub(1));
    bar.reset_eta();
    let template = "{wide_bar} {pos}/{len}  {per_sec}  {eta} left\n{msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
