//! `vitscope teach`: learns a head for a frozen model from a few pictures of each class.

use std::path::PathBuf;

use anyhow::bail;
use vitscope::data::Dataset;
use vitscope::data::folder::Folder;
use vitscope::models::{self, DeviceChoice, Preprocessor, Reference};
use vitscope::train::taught::{Taught, TaughtHead};
use vitscope_core::wording::counted;

use crate::exit::Exit;

/// Options of `vitscope teach`.
#[derive(Debug, clap::Args)]
pub struct TeachArgs {
    /// Folder with one subfolder of PNG or JPEG pictures per class, named after the class.
    #[arg(value_name = "FOLDER")]
    pictures: PathBuf,
    /// Write head.safetensors into this folder.
    #[arg(long, value_name = "HEAD")]
    out: PathBuf,
    /// Model whose features the head uses; it does not change.
    #[arg(long, value_name = "MODEL", default_value = models::DEFAULT)]
    model: String,
    /// Backbone model, if --model holds only a head, an adapter or gates.
    #[arg(long, value_name = "MODEL")]
    backbone: Option<String>,
    /// Device that runs the model: cpu, cuda, cuda:N, or auto.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Overwrite an existing head.
    #[arg(long)]
    overwrite: bool,
}

/// Learns the head and writes it.
pub fn run(args: &TeachArgs) -> anyhow::Result<Exit> {
    models::check_head_folder(&args.out)?;
    let path = args.out.join("head.safetensors");
    if path.exists() && !args.overwrite {
        bail!("the output already exists; use --overwrite to replace it: {path:?}");
    }
    let reference = Reference {
        trained_parts: false,
        ..Reference::over(&args.model, args.backbone.as_deref())
    };
    let model = models::open(reference, &args.device.open()?)?;
    let Preprocessor {
        rule, resampling, ..
    } = model.preprocessor;
    let folder = Folder::open(&args.pictures, rule, resampling)?;
    let taught = Taught::from_data(&model, &folder)?;
    let TaughtHead {
        head,
        leave_one_out,
    } = taught.head()?;
    let sha256 = &model.backbone_sha256;
    models::save_taught_head(&args.out, &head, taught.examples(), sha256)?;
    for (name, n_examples) in taught.counts() {
        println!("{name}: {}", counted(n_examples as u64, "example"));
    }
    match leave_one_out.of {
        0 => println!("no leave-one-out accuracy: no class has two examples"),
        _ => println!(
            "leave-one-out accuracy {}",
            crate::train::accuracy(leave_one_out)
        ),
    }
    println!("wrote {path:?}");
    println!("use it with: vitscope live {}", usage(args));
    let unreadable = folder.unreadable();
    for reason in &unreadable {
        eprintln!("skipped picture: {reason}");
    }
    Ok(match unreadable.len() {
        0 => Exit::Whole,
        _ => Exit::Incomplete,
    })
}

/// Returns the options for explaining with the head.
fn usage(args: &TeachArgs) -> String {
    let backbone = args.backbone.as_ref().unwrap_or(&args.model);
    format!("--model {} --backbone {backbone}", args.out.display())
}
