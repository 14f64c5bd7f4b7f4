//! `vitscope eval`: scores of explanations and classifiers, as a table, a picture and JSON.

mod classifier;
mod curves;
mod gates;
mod objects;
mod suites;
mod tables;
mod temporal;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;

use anyhow::{Context, bail};
use candle_core::Device;
use serde::Serialize;
use vitscope::data::red_patches::RedPatches;
use vitscope::data::{self, Dataset, Split};
use vitscope::eval::faithfulness::{self, Entry, Example, Scores, Threshold};
use vitscope::eval::suite::{Latency, Road, Saco, Sanity, Sensitivity, Sparseness, Sufficiency};
use vitscope::explain::diffmask::{DiffMask, DiffMaskOptions};
use vitscope::explain::{Explainer, Method};
use vitscope::models::{self, Model, Preprocessor, Reference};
use vitscope::overlay::Range;
use vitscope_core::files::write_whole;
use vitscope_core::gates::{Gates, MARGIN, Removal};
use vitscope_lab::eval::class_names::classes_by_name;
use vitscope_lab::eval::fairness::{self, Fairness};
use vitscope_lab::eval::gallery::{self, Column};

pub use self::classifier::sure_line;
use self::suites::SuiteArgs;
pub use self::suites::bar;
use crate::args::{
    ArithmeticArgs, DeviceArgs, InputArgs, one_or_more, png, report_path, thread_count,
};
use crate::exit::Exit;
use crate::setup;
use crate::train::print_left_out;

/// Evaluate explanations and classifiers.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
    /// Number of compute threads [default: one per core].
    #[arg(long, value_name = "N", value_parser = thread_count, global = true)]
    pub threads: Option<NonZeroUsize>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Check whether methods find exactly the red cells of a grid.
    Faithfulness(FaithfulnessArgs),
    /// Measure how fast the class vanishes or appears as the top-rated pixels are deleted or inserted.
    InsertionDeletion(curves::InsertionDeletionArgs),
    /// Measure how long the class survives as the top-rated or lowest-rated patches are removed.
    Perturbation(curves::PerturbationArgs),
    /// Measure how fast the class vanishes as pixels are hidden and imputed from their surroundings.
    Road(SuiteArgs),
    /// Check whether groups of pixels matter as much as their salience suggests.
    Saco(SuiteArgs),
    /// Measure what remains of the answer with only the top-rated patches, and without them.
    Sufficiency(SuiteArgs),
    /// Check whether the map peaks and lies inside the object's box.
    Pointing(objects::PointingArgs),
    /// Measure how well the map segments the object.
    Segmentation(objects::SegmentationArgs),
    /// Measure how much the map changes when the picture hardly changes.
    Sensitivity(SuiteArgs),
    /// Check whether the map depends on the model's weights and on the class.
    Sanity(SuiteArgs),
    /// Measure how concise the map is.
    Sparseness(SuiteArgs),
    /// Measure how steady and how faithful the maps of a video are.
    Temporal(temporal::TemporalArgs),
    /// Measure the time and memory that a map takes.
    Latency(SuiteArgs),
    /// Measure the model's accuracy and calibration.
    Classifier(classifier::ClassifierArgs),
    /// Measure how the gates' masks change the model's answers.
    Gates(gates::GatesArgs),
    /// Check whether the classifier treats two groups alike.
    Fairness(FairnessArgs),
}

#[derive(Debug, clap::Args)]
struct FairnessArgs {
    /// Embedded model, folder, or OWNER/NAME on Hugging Face.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// `biased-patches`, or `celeba:FOLDER,CLASS,GROUP`, where CLASS and GROUP are attributes; uses the test half.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Favorable answer [default: the last class of the data].
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Batch size.
    #[arg(long, value_name = "N", default_value = "32", value_parser = one_or_more::<NonZeroUsize>)]
    batch: NonZeroUsize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Which model is asked, and how many pictures at once.
#[derive(Debug, clap::Args)]
struct AskedArgs {
    /// Embedded model, folder, or OWNER/NAME on Hugging Face.
    #[arg(long, value_name = "MODEL", default_value = models::DEFAULT)]
    model: String,
    /// Backbone model, if --model holds only a head, an adapter or gates.
    #[arg(long, value_name = "MODEL")]
    backbone: Option<String>,
    #[command(flatten)]
    input: InputArgs,
    /// Batch size.
    #[arg(long, value_name = "N", default_value = "32", value_parser = one_or_more::<NonZeroUsize>)]
    batch: NonZeroUsize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    arithmetic: ArithmeticArgs,
}

impl AskedArgs {
    fn reference(&self) -> Reference<'_> {
        Reference {
            input: self.input.asked(),
            arithmetic: self.arithmetic.arithmetic,
            ..Reference::over(&self.model, self.backbone.as_deref())
        }
    }

    /// Returns the options as typed on the command line; the batch size does not affect the scores.
    fn typed(&self) -> String {
        let backbone = self.backbone.as_ref();
        let backbone = backbone.map(|backbone| format!(" --backbone {backbone}"));
        let (input, arithmetic) = (self.input.typed(), self.arithmetic.typed());
        format!(
            " --model {}{}{input}{arithmetic}",
            self.model,
            backbone.unwrap_or_default()
        )
    }

    fn open(&self) -> anyhow::Result<Model> {
        Ok(models::open(self.reference(), &self.device.open()?)?)
    }
}

#[derive(Debug, clap::Args)]
struct FaithfulnessArgs {
    /// Embedded model, folder, or the name of a folder in `models/`.
    #[arg(long, value_name = "MODEL", default_value = "red-patches")]
    model: String,
    /// Folder with gates from other training seeds [default: MODEL/seeds].
    #[arg(long, value_name = "FOLDER")]
    gates: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Methods to compare with the gates [default: all].
    #[arg(
        long,
        visible_alias = "methods",
        value_name = "METHOD,…",
        value_delimiter = ','
    )]
    method: Vec<Method>,
    /// Number of held-out grids.
    #[arg(
        long,
        visible_alias = "images",
        value_name = "N",
        default_value = "1000",
        value_parser = one_or_more::<NonZeroUsize>
    )]
    grids: NonZeroUsize,
    /// Random seed of the grids.
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Write a picture of example grids to this file.
    #[arg(long, value_name = "FILE.png", value_parser = png)]
    picture: Option<PathBuf>,
    /// Number of grids in the picture.
    #[arg(long, value_name = "N", default_value = "6")]
    examples: usize,
    /// Write the scores as JSON to this file.
    #[arg(long, value_name = "FILE.json", value_parser = report_path)]
    json: Option<PathBuf>,
}

/// Prefix of the rows of gates.
const GATES: &str = "diffmask";

/// Runs `vitscope eval`.
pub fn run(args: &EvalArgs) -> anyhow::Result<Exit> {
    match &args.what {
        What::Faithfulness(args) => run_faithfulness(args),
        What::InsertionDeletion(args) => curves::run_insertion_deletion(args),
        What::Perturbation(args) => curves::run_perturbation(args),
        What::Road(args) => suites::run_plain(args, "road", Road),
        What::Saco(args) => suites::run_plain(args, "saco", Saco::default()),
        What::Sufficiency(args) => suites::run_plain(args, "sufficiency", Sufficiency),
        What::Pointing(args) => objects::run_pointing(args),
        What::Segmentation(args) => objects::run_segmentation(args),
        What::Sensitivity(args) => suites::run_plain(args, "sensitivity", Sensitivity::default()),
        What::Sanity(args) => {
            let asked = &args.compared.asked;
            let weights = models::open_weights(asked.reference(), &asked.device.open()?)?;
            suites::run_plain(args, "sanity", Sanity::new(weights, args.compared.seed)?)
        }
        What::Temporal(args) => temporal::run(args),
        What::Sparseness(args) => suites::run_plain(args, "sparseness", Sparseness),
        What::Latency(args) => suites::run_plain(args, "latency", Latency),
        What::Classifier(args) => classifier::run(args),
        What::Gates(args) => gates::run(args),
        What::Fairness(args) => run_fairness(args),
    }
}

/// Opens the test half of the data, with pictures as the model sees them.
fn test_half(data: &str, preprocessor: &Preprocessor) -> anyhow::Result<Arc<dyn Dataset>> {
    let (rule, resampling) = (preprocessor.rule, preprocessor.resampling);
    Ok(data::open(data, rule, resampling, 0)?
        .at_size(rule, resampling)
        .test)
}

/// Builds a method and checks that it works with the model, at the cost of about one pass.
fn usable(method: Method, model: &Model) -> anyhow::Result<Box<dyn Explainer>> {
    let explainer = method.build(model.parts())?;
    setup::rehearse(slice::from_ref(&explainer), model)?;
    Ok(explainer)
}

/// Prints the pictures that could not be read.
fn tell_left_out(data: &dyn Dataset) {
    print_left_out(data.unreadable());
}

/// Returns the gates of the model called `name`.
fn gates_of<'a>(model: &'a Model, name: &str) -> anyhow::Result<&'a Gates> {
    let gates = model.gates.as_ref();
    gates.with_context(|| {
        format!("model has no gates; train them with `vitscope train diffmask`: {name:?}")
    })
}

fn run_fairness(args: &FairnessArgs) -> anyhow::Result<Exit> {
    let model = models::open(args.model.as_str(), &args.device.open()?)?;
    let Preprocessor {
        rule,
        resampling,
        mean,
        std,
    } = model.preprocessor;
    let data = data::open_grouped(&args.data, Split::Test, rule, resampling, 0)?;
    if data.size() != rule.image_size() {
        bail!(
            "the pictures are not of the model's input size: {:?}",
            args.data
        );
    }
    let names = data.classes();
    let favorable = match &args.class {
        None => names.len().saturating_sub(1),
        Some(name) => names
            .iter()
            .position(|known| known.eq_ignore_ascii_case(name))
            .with_context(|| {
                format!(
                    "unknown class {name:?}, expected one of {}",
                    names.join(", ")
                )
            })?,
    };
    let classes = classes_by_name(model.labels(), names)?;
    let batch = args.batch.get();
    let cases = fairness::cases(&model.vit, &*data, favorable, &classes, (mean, std), batch)?;
    let found = Fairness::of(&cases)?;
    println!(
        "favorable answer {:?}, group {:?}",
        names[favorable],
        data.attribute()
    );
    println!("group    pictures  accuracy  balanced  favorable  true pos.  false pos.");
    for (name, group) in ["without", "with"].into_iter().zip(found.groups) {
        println!(
            "{name:7}  {:8}  {:8.4}  {:8.4}  {:9.4}  {:9.4}  {:10.4}",
            group.pictures,
            group.accuracy,
            group.balanced_accuracy(),
            group.favorable,
            group.true_positive,
            group.false_positive
        );
    }
    println!("accuracy gap        {:.4}", found.accuracy_gap());
    println!("demographic parity  {:.4}", found.demographic_parity());
    println!("equalized odds      {:.4}", found.equalized_odds());
    Ok(Exit::Whole)
}

/// Contents of the file written by `--json`.
#[derive(Serialize)]
struct Report<'a> {
    command: String,
    model: &'a str,
    sha256: &'a str,
    scores: &'a [Scores],
    at_margin: &'a [Scores],
}

fn run_faithfulness(args: &FaithfulnessArgs) -> anyhow::Result<Exit> {
    let (model, folder) = open(&args.model, &args.device.open()?)?;
    let gates = gates_of(&model, &args.model)?;
    let patch_px = model.vit.config().patch_size;
    let (rows, columns) = model.grid();
    if rows != columns {
        bail!(
            "the red-patches task requires a square grid of patches, the model has {rows}×{columns}"
        );
    }
    let grids = RedPatches::new(rows, patch_px, args.grids.get(), args.seed, Split::Test)?;
    let more = more_gates(args, &model, folder.as_deref())?;
    let seed = model.gate_card.as_ref().map_or(0, |card| card.seed);
    let mut methods = vec![(
        seed,
        DiffMask::new(gates, None, DiffMaskOptions::default())?,
    )];
    for (seed, gates) in &more {
        methods.push((
            *seed,
            DiffMask::new(gates, None, DiffMaskOptions::default())?,
        ));
    }
    let mut entries: Vec<Entry<'_>> = methods
        .iter()
        .map(|(seed, method)| Entry {
            name: format!("{GATES}, seed {seed}"),
            explainer: method,
            thresholds: match method.range() {
                Range::Unit => &[Threshold::Half],
                _ => &[Threshold::Otsu, Threshold::Mean],
            },
        })
        .collect();
    let others = others(&args.method, &model)?;
    entries.extend(others.iter().map(|explainer| Entry {
        name: explainer.name().into(),
        explainer: &**explainer,
        thresholds: &[Threshold::Otsu, Threshold::Mean],
    }));
    // Remove patches as the gates in question learned it; for other methods, as the model's gates did.
    let removals = std::iter::once(gates)
        .chain(more.iter().map(|(_, gates)| gates))
        .chain(std::iter::repeat(gates))
        .map(Gates::removal);
    let (mut scores, mut at_margin, mut examples) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, removal) in entries.iter().zip(removals) {
        let outcome = faithfulness::score(&model.vit, removal, &grids, entry, args.examples)?;
        scores.push(outcome.best);
        at_margin.push(outcome.at_margin);
        examples.push(outcome.example);
    }
    println!(
        "{} held-out grids, masked patches {}",
        grids.len(),
        match gates.removal() {
            Removal::Baseline(_) => "filled with the learned baseline",
            Removal::Drop => "dropped",
        }
    );
    print!("{}", table(&scores));
    println!("\nFewest top-rated cells that keep the divergence within {MARGIN} nats");
    print!("{}", table(&at_margin));
    if let Some(path) = &args.picture {
        draw(args, &grids, (rows, columns), &scores, &examples, path)?;
        println!("wrote picture to {path:?}");
    }
    if let Some(path) = &args.json {
        let report = Report {
            command: command(args),
            model: &args.model,
            sha256: &model.weights_sha256,
            scores: &scores,
            at_margin: &at_margin,
        };
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        write_whole(path, text.as_bytes())?;
        println!("wrote scores to {path:?}");
    }
    Ok(Exit::Whole)
}

/// Opens the model and returns it with its folder, if it has one.
fn open(reference: &str, device: &Device) -> anyhow::Result<(Model, Option<PathBuf>)> {
    let named = Path::new("models").join(reference);
    let folder = [PathBuf::from(reference), named]
        .into_iter()
        .find(|folder| folder.is_dir());
    let reference = folder
        .as_deref()
        .and_then(Path::to_str)
        .unwrap_or(reference);
    Ok((models::open(reference, device)?, folder))
}

/// Builds the requested methods except the gates, or all of them if none are requested.
///
/// In the latter case, methods that do not work with the model are left out.
fn others(asked: &[Method], model: &Model) -> anyhow::Result<Vec<Box<dyn Explainer>>> {
    let mut others = Vec::new();
    for method in Method::ALL
        .iter()
        .filter(|method| **method != Method::DiffMask)
    {
        if !asked.is_empty() && !asked.contains(method) {
            continue;
        }
        match usable(*method, model) {
            Ok(explainer) => others.push(explainer),
            Err(error) if asked.is_empty() => eprintln!("skipped: {error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(others)
}

/// Opens gates of other training seeds and returns them with their seeds.
fn more_gates(
    args: &FaithfulnessArgs,
    model: &Model,
    folder: Option<&Path>,
) -> anyhow::Result<Vec<(u64, Gates)>> {
    let mut folders = args.gates.clone();
    let seeds = folder.map(|folder| folder.join("seeds"));
    if let Some(seeds) = seeds.filter(|seeds| folders.is_empty() && seeds.is_dir()) {
        for entry in std::fs::read_dir(&seeds).with_context(|| format!("{seeds:?}"))? {
            folders.push(entry.with_context(|| format!("{seeds:?}"))?.path());
        }
        folders.sort();
    }
    folders
        .iter()
        .map(|folder| {
            let (gates, card) = Gates::open(
                folder,
                &model.vit,
                &model.weights_sha256,
                model.vit.device(),
            )?;
            Ok((card.seed, gates))
        })
        .collect()
}

fn table(scores: &[Scores]) -> String {
    let width = scores.iter().map(|row| row.method.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:width$}  threshold   exact     IoU  consistency      KL  agreement    kept\n",
        "method"
    );
    for row in scores {
        text += &line(&row.method, width, row.threshold.name(), row);
    }
    let gates: Vec<&Scores> = scores
        .iter()
        .filter(|row| row.method.starts_with(GATES))
        .collect();
    if let Some(worst) = worst(&gates) {
        text += &line(
            &format!("worst {GATES}"),
            width,
            worst.threshold.name(),
            &worst,
        );
    }
    text
}

fn line(name: &str, width: usize, threshold: &str, row: &Scores) -> String {
    format!(
        "{name:width$}  {threshold:>9}  {:6.4}  {:6.4}       {:6.4}  {:6.4}     {:6.4}  {:6.4}\n",
        row.exact, row.iou, row.consistency, row.kl, row.agreement, row.kept
    )
}

/// Returns the worst value of each column over several training seeds.
fn worst(rows: &[&Scores]) -> Option<Scores> {
    let mut worst = (*rows.first()?).clone();
    if rows.len() < 2 {
        return None;
    }
    for row in rows {
        worst.exact = worst.exact.min(row.exact);
        worst.iou = worst.iou.min(row.iou);
        worst.consistency = worst.consistency.min(row.consistency);
        worst.kl = worst.kl.max(row.kl);
        worst.agreement = worst.agreement.min(row.agreement);
        worst.kept = worst.kept.max(row.kept);
    }
    Some(worst)
}

fn draw(
    args: &FaithfulnessArgs,
    grids: &RedPatches,
    grid: (usize, usize),
    scores: &[Scores],
    examples: &[Example],
    path: &Path,
) -> anyhow::Result<()> {
    let pictures = (0..args.examples.min(grids.len()))
        .map(|index| grids.picture(index))
        .collect::<vitscope::Result<Vec<_>>>()?;
    let columns: Vec<Column<'_>> = scores
        .iter()
        .zip(examples)
        .map(|(row, example)| Column {
            name: &row.method,
            example,
            unit: row.threshold == Threshold::Half,
        })
        .collect();
    Ok(gallery::save(&pictures, &columns, grid, path)?)
}

/// Returns the command that reproduces these scores.
fn command(args: &FaithfulnessArgs) -> String {
    let mut command = format!(
        "vitscope eval faithfulness --model {} --grids {} --seed {}",
        args.model, args.grids, args.seed
    );
    for folder in &args.gates {
        command += &format!(" --gates {}", folder.display());
    }
    if !args.method.is_empty() {
        let names: Vec<&str> = args.method.iter().map(|method| method.name()).collect();
        command += &format!(" --method {}", names.join(","));
    }
    command
}
