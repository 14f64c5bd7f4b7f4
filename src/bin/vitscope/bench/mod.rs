//! `vitscope bench`: how long models, their explanations and whole videos take on this machine.

mod passes;
mod video;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use serde::Serialize;
use vitscope::interpreter::{Interpreter, InterpreterShape};
use vitscope::models::{self, DeviceChoice, Model, Preprocessor};
use vitscope::rng::Rng;
use vitscope::vit::{Arithmetic, Vit, VitConfig, init};
use vitscope_core::files::write_whole;
use vitscope_core::gates::{DEFAULT_STRETCH, GateSizes, Gates, VotingGates};

use crate::args::{numbers, one_or_more, report_path, thread_count};
use crate::exit::Exit;

/// Options of `vitscope bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Embedded models, folders, or vit-ti/16, vit-s/16 and vit-b/16 with random weights.
    #[arg(
        long,
        value_name = "MODEL,…",
        value_delimiter = ',',
        default_value = "vit-ti/16,vit-s/16,vit-b/16"
    )]
    model: Vec<String>,
    /// Methods to time, or `forward` (the plain model), `backward` (with gradients throughout the model) or `masked`
    /// (masked copies of a picture, as for a deletion curve); `all` means `forward` and all methods.
    #[arg(
        long,
        value_name = "METHOD,…",
        value_delimiter = ',',
        default_value = "forward,diffmask"
    )]
    method: Vec<String>,
    /// Batch size.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8", value_parser = one_or_more::<NonZeroUsize>)]
    batch: Vec<NonZeroUsize>,
    /// Input size of models with random weights, in pixels.
    #[arg(long, value_name = "PX", default_value = "224")]
    size: usize,
    /// Repetitions of each case, interleaved.
    #[arg(long, value_name = "N", default_value = "20", value_parser = one_or_more::<NonZeroUsize>)]
    repeat: NonZeroUsize,
    /// Time limit per case in seconds; each case is timed at least once.
    #[arg(long, value_name = "SECS", default_value = "60")]
    limit: f64,
    /// Also run this video through the whole pipeline and time its stages.
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// Device that runs the model: cpu, cuda, cuda:N, or auto.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Numbers that each model computes with: f32, bf16, int8.
    #[arg(long, value_name = "NUMBERS,…", value_delimiter = ',', default_value = "f32", hide_possible_values = true,
        value_parser = numbers())]
    precision: Vec<Arithmetic>,
    /// Number of compute threads [default: one per core].
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<NonZeroUsize>,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE.json", value_parser = report_path)]
    json: Option<PathBuf>,
}

/// All results.
#[derive(Debug, Serialize)]
struct Figures {
    passes: Vec<passes::Figures>,
    videos: Vec<video::Figures>,
}

/// Runs `vitscope bench`.
pub fn run(args: &BenchArgs) -> anyhow::Result<Exit> {
    let device = args.device.open()?;
    let mut models = Vec::new();
    for name in &args.model {
        for numbers in &args.precision {
            let mut model = open(name, args.size, &device)?;
            model.compute_with(*numbers)?;
            if args.precision.len() > 1 {
                model.name = format!("{} {numbers}", model.name);
            }
            models.push(Arc::new(model));
        }
    }
    let passes = passes::measure(args, &models, &device)?;
    print!("{}", passes::table(&passes));
    let videos = match &args.video {
        Some(path) => video::measure(args, path, &models, &passes)?,
        None => Vec::new(),
    };
    if !videos.is_empty() {
        print!("\n{}", video::table(&videos));
    }
    if let Some(path) = &args.json {
        let figures = Figures { passes, videos };
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        write_whole(path, text.as_bytes())?;
        println!("wrote figures to {path:?}");
    }
    Ok(Exit::Whole)
}

/// Opens a model by reference, or creates one with random weights, gates and interpreter.
fn open(name: &str, size_px: usize, device: &Device) -> anyhow::Result<Model> {
    let Some(config) = VitConfig::preset(name) else {
        return Ok(models::open(name, device)?);
    };
    let config = VitConfig {
        image_size: size_px,
        ..config
    };
    let mut rng = Rng::new(0);
    let weights = init::init(&config, &mut rng)?
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_device(device)?)))
        .collect::<anyhow::Result<_>>()?;
    let sizes = GateSizes::new(&config);
    let gates = VotingGates::initial_tensors(sizes, 0.0, &mut rng, device)?;
    let shape = InterpreterShape::new(&config, config.n_patches());
    let interpreter = Interpreter::initial_tensors(&shape, &mut rng, device)?;
    let interpreter = Interpreter::load(shape, &interpreter.into_iter().collect())?;
    Ok(Model {
        name: name.to_owned(),
        vit: Vit::load(config, &weights)?,
        preprocessor: Preprocessor::square(size_px),
        weights_sha256: String::new(),
        backbone_sha256: String::new(),
        own_head: false,
        not_sure_below: None,
        familiarity: None,
        gates: Some(Gates::Voting(VotingGates::load(
            sizes,
            DEFAULT_STRETCH,
            &gates.into_iter().collect(),
        )?)),
        gate_card: None,
        interpreter: Some(interpreter),
        interpreter_card: None,
        untaught: None,
    })
}

/// Returns the length of the longest name, as the width of a column.
fn width<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(str::len).max().unwrap_or(0).max(6)
}
