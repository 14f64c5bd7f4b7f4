//! `vitscope eval pointing` and `vitscope eval segmentation`: maps compared with known objects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vitscope::data::boxes::Boxed;
use vitscope::data::masked::Masked;
use vitscope::eval::suite::{Pointing, Segmenting};

use super::suites::{self, Measured, SuiteArgs};
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct PointingArgs {
    /// `--data` must hold a `boxes.json`.
    #[command(flatten)]
    suite: SuiteArgs,
    /// Tolerance around the box for the map's peak, in pixels of the model's input.
    #[arg(long, value_name = "PX", default_value = "0")]
    tolerance: usize,
}

#[derive(Debug, clap::Args)]
pub(super) struct SegmentationArgs {
    #[command(flatten)]
    suite: SuiteArgs,
    /// Folder of PNG masks named like the pictures: 0 is background, 128 unlabeled, anything else the object.
    #[arg(long, value_name = "FOLDER")]
    masks: PathBuf,
}

pub(super) fn run_pointing(args: &PointingArgs) -> anyhow::Result<Exit> {
    let model = args.suite.compared.asked.open()?;
    let (rule, resampling) = (model.preprocessor.rule, model.preprocessor.resampling);
    let pictures = Arc::new(Boxed::open(Path::new(&args.suite.data), rule, resampling)?);
    let tolerance_px = args.tolerance;
    let measured = Measured {
        name: "pointing",
        options: format!(" --tolerance {tolerance_px}"),
        suite: Box::new(Pointing {
            pictures: Arc::clone(&pictures),
            tolerance_px,
        }),
    };
    suites::run(&args.suite, &model, &*pictures, &measured)
}

pub(super) fn run_segmentation(args: &SegmentationArgs) -> anyhow::Result<Exit> {
    let model = args.suite.compared.asked.open()?;
    let (rule, resampling) = (model.preprocessor.rule, model.preprocessor.resampling);
    let folder = Path::new(&args.suite.data);
    let pictures = Arc::new(Masked::open(folder, &args.masks, rule, resampling)?);
    let measured = Measured {
        name: "segmentation",
        options: format!(" --masks {}", args.masks.display()),
        suite: Box::new(Segmenting {
            pictures: Arc::clone(&pictures),
        }),
    };
    suites::run(&args.suite, &model, &*pictures, &measured)
}
