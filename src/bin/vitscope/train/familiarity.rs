//! `vitscope train familiarity`: which pictures a model finds familiar, and from which threshold its answers count as
//! sure.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use glob::Pattern;
use vitscope::data::{self, Dataset};
use vitscope::eval::calibration::threshold_for;
use vitscope::eval::classification::Prediction;
use vitscope::models::{self, Preprocessor, Reference};
use vitscope::train::familiarity::{Fitted, Labeled, fit};
use vitscope_lab::eval::class_names::matched_classes;

use super::{over, print_left_out};
use crate::args::{DeviceArgs, decimal, probability, thread_count};
use crate::eval::{bar, sure_line};
use crate::exit::Exit;

/// Batch size.
const BATCH: usize = 16;

/// Options of `vitscope train familiarity`.
#[derive(Debug, clap::Args)]
pub struct FamiliarityArgs {
    /// Folder of the model.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Output folder for familiarity.safetensors [default: the model's].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Pictures like the model's training data: a folder with one subfolder of pictures per class.
    #[arg(long, value_name = "FOLDER")]
    data: String,
    /// Pictures that the model was not trained on, in the same layout.
    #[arg(long, value_name = "FOLDER")]
    held_out: String,
    /// Skip held-out pictures whose file names match; repeat the option for more patterns.
    #[arg(long, value_name = "GLOB")]
    except: Vec<Pattern>,
    /// Choose the threshold at which sure answers reach this accuracy.
    #[arg(long, value_name = "SHARE", default_value = "0.95", value_parser = probability)]
    sure_accuracy: f64,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Number of compute threads [default: one per core].
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<NonZeroUsize>,
}

/// Fits the familiarity and writes it.
pub fn run(args: &FamiliarityArgs) -> anyhow::Result<Exit> {
    let reference = Reference {
        trained_parts: false,
        ..over(&args.model, None)?
    };
    let model = models::open(reference, &args.device.open()?)?;
    let Preprocessor {
        rule, resampling, ..
    } = model.preprocessor;
    let config = model.vit.config();
    let is_chosen = |name: &str| !args.except.iter().any(|pattern| pattern.matches(name));
    let is_chosen: Option<&dyn Fn(&str) -> bool> = (!args.except.is_empty()).then_some(&is_chosen);
    let learned = data::open_labeled(&args.data, rule, resampling, None)?;
    let held = data::open_labeled(&args.held_out, rule, resampling, is_chosen)?;
    let matched =
        |data: &dyn Dataset| matched_classes(&config.labels, &config.label_aliases, data.classes());
    let (learned_classes, held_classes) = (matched(&*learned)?, matched(&*held)?);
    let bar = bar(learned.len() + held.len());
    let fitted = fit(
        &model,
        Labeled {
            data: &*learned,
            classes: &learned_classes,
        },
        Labeled {
            data: &*held,
            classes: &held_classes,
        },
        args.sure_accuracy,
        BATCH,
        &mut |n_done| bar.set_position(n_done as u64),
    )?;
    bar.finish_and_clear();
    let out = args.out.as_deref().unwrap_or(&args.model);
    fitted.familiarity.save(out, &model.weights_sha256)?;
    print(&fitted, args.sure_accuracy);
    print_left_out([learned.unreadable(), held.unreadable()].concat());
    println!(
        "wrote familiarity to {:?}",
        out.join("familiarity.safetensors")
    );
    Ok(Exit::Whole)
}

/// Prints which answers count as sure at the threshold, and at one on the probability alone.
fn print(fitted: &Fitted, sure_accuracy: f64) {
    let Fitted {
        familiarity,
        n_learned,
        held,
    } = fitted;
    let by_probability: Vec<Prediction> = held
        .iter()
        .map(|prediction| Prediction {
            trust: prediction.confidence,
            ..*prediction
        })
        .collect();
    println!(
        "familiarity fitted on {n_learned} pictures, {} held out",
        held.len()
    );
    if let Some(threshold) = threshold_for(&by_probability, sure_accuracy) {
        let line = sure_line(
            "sure at a probability of at least",
            &by_probability,
            threshold,
        );
        println!("{line}");
    }
    let threshold = decimal(familiarity.sure_from);
    println!(
        "{}",
        sure_line("sure at a trust of at least", held, threshold)
    );
}
