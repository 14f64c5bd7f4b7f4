//! The command-line options: clap structs and nothing else.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::Device;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use vitscope::explain::Method;
use vitscope::frame::placement::Fit;
use vitscope::models::{self, DeviceChoice, Input};
use vitscope::overlay::{Colormap, Mode, Overlay};
use vitscope::vit::Arithmetic;
use vitscope::{Error, Request};

use crate::bench::BenchArgs;
use crate::eval::EvalArgs;
use crate::file::FileArgs;
use crate::live::LiveArgs;
use crate::methods::MethodsArgs;
use crate::models::ModelsArgs;
use crate::outputs;
use crate::progress::ProgressMode;
use crate::run::RunArgs;
use crate::still::StillArgs;
use crate::teach::TeachArgs;
use crate::train::TrainArgs;

/// Maximum number of threads of a run; thousands of threads would only wait for each other.
const MOST_THREADS: usize = 512;

/// Explain Vision Transformers live on video.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Explain a video file: same frames, same timestamps, same sound, plus a heatmap.
    File(FileArgs),
    /// Explain a camera, a network stream or the screen, live.
    Live(Box<LiveArgs>),
    /// Explain pictures.
    Still(StillArgs),
    /// Run a command and its options from a TOML file.
    Run(RunArgs),
    /// Teach a model your own classes from a few pictures each.
    Teach(TeachArgs),
    /// Train a classifier, DiffMask gates or an IA-ViT interpreter.
    Train(TrainArgs),
    /// Evaluate explanations and classifiers.
    Eval(EvalArgs),
    /// Benchmark models and explanations on this machine.
    Bench(BenchArgs),
    /// List cameras.
    Devices,
    /// Check this machine for GStreamer, encoders, cameras, a GPU and models.
    Doctor,
    /// List methods with their source, requirements and cost.
    Methods(MethodsArgs),
    /// List, inspect, download or shrink models.
    Models(ModelsArgs),
}

impl Command {
    /// Returns whether a person is expected to read the output.
    pub fn is_chatty(&self) -> bool {
        let outputs = match self {
            Self::File(args) => &args.outputs,
            Self::Still(args) => &args.outputs,
            Self::Live(args) => return !args.quiet,
            Self::Teach(_)
            | Self::Train(_)
            | Self::Eval(_)
            | Self::Bench(_)
            | Self::Devices
            | Self::Doctor
            | Self::Methods(_)
            | Self::Models(_)
            | Self::Run(_) => return true,
        };
        let for_people = [ProgressMode::Auto, ProgressMode::Plain];
        !outputs.quiet && for_people.contains(&outputs.progress)
    }

    /// Returns the value of `--threads`.
    pub fn threads(&self) -> Option<NonZeroUsize> {
        match self {
            Self::File(args) => args.explain.threads,
            Self::Live(args) => args.explain.threads,
            Self::Still(args) => args.explain.threads,
            Self::Train(args) => args.threads(),
            Self::Eval(args) => args.threads,
            Self::Teach(_)
            | Self::Devices
            | Self::Doctor
            | Self::Methods(_)
            | Self::Models(_)
            | Self::Run(_) => None,
            Self::Bench(args) => args.threads,
        }
    }
}

/// What looks at the frames, and how it is asked what it saw.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Explaining")]
pub struct ExplainArgs {
    /// Embedded model, folder with config.json and model.safetensors, or OWNER/NAME on Hugging Face.
    #[arg(long, value_name = "MODEL", default_value = models::DEFAULT)]
    pub model: String,
    /// Backbone model, if --model holds only a head (head.safetensors), a LoRA adapter or gates.
    #[arg(long, value_name = "MODEL")]
    pub backbone: Option<String>,
    #[command(flatten)]
    pub input: InputArgs,
    /// Explanation methods, comma-separated; several are shown on a grid. `vitscope methods` lists them
    /// [default: diffmask if the model has gates, rollout if it has no classifier, else chefer].
    #[arg(long, value_name = "METHOD,…", value_delimiter = ',', hide_possible_values = true,
        value_parser = named::<Method, _>(
            Method::ALL.iter().map(|method| PossibleValue::new(method.name()).help(method.entry().summary))
        ))]
    pub method: Vec<Method>,
    /// Set an option of a method, e.g. `--set gradmask.groups=12`.
    #[arg(long, value_name = "METHOD.KEY=VALUE")]
    pub set: Vec<String>,
    /// Class to explain: `predicted`, a name, an index, or `contrast:A,B` for what favors A over B; repeat the option
    /// for one map per class.
    #[arg(long, value_name = "CLASS", default_value = "predicted")]
    pub target: Vec<String>,
    /// Batch size.
    #[arg(long, value_name = "N", default_value = "8", value_parser = one_or_more::<NonZeroUsize>)]
    pub batch: NonZeroUsize,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub arithmetic: ArithmeticArgs,
    /// Number of compute threads [default: one per core].
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<NonZeroUsize>,
}

impl ExplainArgs {
    /// Returns the request without the options of methods.
    pub fn request(&self) -> Request {
        Request {
            model: self.model.clone(),
            backbone: self.backbone.clone(),
            gates: None,
            input: self.input.asked(),
            device: self.device.device,
            arithmetic: self.arithmetic.arithmetic,
            reuse: 0.0,
            methods: self.method.clone(),
            options: toml::Table::new(),
            targets: self.target.clone(),
            batch: self.batch,
        }
    }
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Device that runs the model: cpu, cuda, cuda:N, or auto.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
}

impl DeviceArgs {
    /// Opens the device.
    pub fn open(self) -> anyhow::Result<Device> {
        Ok(self.device.open()?)
    }
}

/// What the model computes with.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ArithmeticArgs {
    /// Numbers that the model computes with on the CPU: f32, or bf16 or int8 for less time and nearly the same answers and
    /// maps.
    #[arg(long = "precision", value_name = "NUMBERS", default_value = "f32", hide_possible_values = true,
        value_parser = numbers())]
    pub arithmetic: Arithmetic,
}

impl ArithmeticArgs {
    /// Returns the option as typed on the command line; empty if it is the default.
    pub fn typed(self) -> String {
        match self.arithmetic {
            Arithmetic::F32 => String::new(),
            numbers => format!(" --precision {numbers}"),
        }
    }
}

/// What is computed of the next frame.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Explaining")]
pub struct ReuseArgs {
    /// Compute only the patches that change from frame to frame while the others drift by no more than this, 0 to 1,
    /// e.g. 0.01 [default: 0, compute every patch].
    #[arg(long, value_name = "DRIFT", default_value = "0", hide_default_value = true, value_parser = share)]
    reuse: f32,
}

impl ReuseArgs {
    /// Returns the request with this option.
    pub fn added_to(self, request: Request) -> Request {
        Request {
            reuse: self.reuse,
            ..request
        }
    }
}

/// What the model sees of a picture.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct InputArgs {
    /// How to fit a picture of another shape to the model's input: crop it to its center, stretch it, or pad it with
    /// black bars [default: the model's own rule].
    #[arg(long = "input", alias = "resize", value_name = "HOW",
        value_parser = named::<Fit, _>(Fit::ALL.map(|fit| PossibleValue::new(fit.name()))))]
    pub fit: Option<Fit>,
    /// Side length of the model's square input, a multiple of its patch size; position embeddings are interpolated
    /// [default: the model's own size].
    #[arg(long, value_name = "PX", value_parser = one_or_more::<NonZeroUsize>)]
    pub input_size: Option<NonZeroUsize>,
}

impl InputArgs {
    /// Returns the requested input of the model.
    pub fn asked(self) -> Input {
        Input {
            fit: self.fit,
            edge_px: self.input_size.map(NonZeroUsize::get),
        }
    }

    /// Returns the options as typed on the command line.
    pub fn typed(self) -> String {
        let fit = self.fit.map(|fit| format!(" --input {fit}"));
        let size = self.input_size.map(|size| format!(" --input-size {size}"));
        fit.unwrap_or_default() + &size.unwrap_or_default()
    }
}

/// What the explanation looks like.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Drawing")]
pub struct DrawArgs {
    /// What to draw.
    #[arg(long, default_value_t = Overlay::default().mode, value_parser = named::<Mode, _>(
        Mode::ALL.map(|mode| PossibleValue::new(mode.name()))
    ))]
    pub mode: Mode,
    /// Colormap of the heatmap.
    #[arg(long, default_value_t = Overlay::default().colormap, value_parser = named::<Colormap, _>(
        Colormap::ALL.map(|colormap| PossibleValue::new(colormap.name()))
    ))]
    pub colormap: Colormap,
    /// Opacity of the hottest patch, 0 to 1.
    #[arg(long, default_value_t = Overlay::default().alpha, value_parser = share)]
    pub alpha: f32,
    /// Minimum heat of the patches that `--mode mask` keeps, 0 to 1.
    #[arg(long, default_value_t = Overlay::default().threshold, value_parser = share)]
    pub threshold: f32,
    /// How to upsample patches to pixels.
    #[arg(long, value_enum, default_value = "bilinear")]
    pub upsample: Upsample,
}

/// What is written beside the pictures.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Write one JSON record per frame to this file; `-` is standard output.
    #[arg(long, value_name = "FILE.jsonl")]
    pub scores: Option<PathBuf>,
    /// Write a contact sheet of explained frames to this PNG or JPEG file.
    #[arg(long, value_name = "FILE.png")]
    pub sheet: Option<PathBuf>,
    /// Overwrite existing outputs.
    #[arg(long)]
    pub overwrite: bool,
    /// Progress format on standard error; json and none also limit the log to warnings and errors.
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: ProgressMode,
    /// Print only errors and warnings.
    #[arg(long)]
    pub quiet: bool,
}

/// How patches become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Upsample {
    /// Interpolate between patch centers.
    Bilinear,
    /// Give each patch one color.
    Nearest,
}

/// Accepts only `values`, and lists them in the help and in the error for any other value.
fn named<T, I>(values: I) -> impl TypedValueParser<Value = T>
where
    I: IntoIterator<Item = PossibleValue>,
    T: FromStr<Err = Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(values).try_map(|name| name.parse::<T>())
}

/// Parses the name of the numbers that a model computes with.
pub fn numbers() -> impl TypedValueParser<Value = Arithmetic> {
    named(Arithmetic::ALL.map(|numbers| PossibleValue::new(numbers.name())))
}

/// Parses a whole number of at least 1.
pub fn one_or_more<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let is_zero = text.bytes().all(|byte| byte == b'0');
        match is_number && !is_zero {
            true => "the number is too large".into(),
            false => "expected 1 or more".into(),
        }
    })
}

/// Parses a number of compute threads.
pub fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let parsed = text.parse().ok();
    parsed
        .filter(|n_threads: &NonZeroUsize| n_threads.get() <= MOST_THREADS)
        .ok_or_else(|| format!("expected 1 to {MOST_THREADS}"))
}

/// Parses the path of a report in an existing folder, so that an hour of measurements does not end in an error.
pub fn report_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match outputs::folder_of(&path) {
        folder if folder.is_dir() => Ok(path),
        folder => Err(format!("its directory does not exist: {folder:?}")),
    }
}

/// Parses the path of a PNG file to write, in an existing folder.
pub fn png(text: &str) -> Result<PathBuf, String> {
    let path = report_path(text)?;
    match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("png") => Ok(path),
        _ => Err("expected a file name ending in .png".into()),
    }
}

/// Parses a number above 0, in seconds or nats.
pub fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| *number > 0.0 && number.is_finite())
        .ok_or_else(|| "expected a number greater than 0".into())
}

/// Parses a number from 0 to 1.
pub fn share(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Parses a number from 0 to 1, keeping the digits as typed.
pub fn probability(text: &str) -> Result<f64, String> {
    share(text)?;
    text.parse().map_err(|_| "expected a number".into())
}

/// Returns the number that a configuration states, without the digits added by f32.
pub fn decimal(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    /// Every option that takes a whole number of at least 1 refuses 0 in these words.
    #[test]
    fn zero_is_refused_where_one_is_the_least() {
        let refused = |line: &str| {
            let error = Args::try_parse_from(line.split(' ')).unwrap_err();
            let text = error.to_string();
            let expected = match line.ends_with("--threads 0") {
                true => "expected 1 to 512",
                false => "expected 1 or more",
            };
            assert!(text.contains(expected), "{line}: {text}");
        };
        for option in ["--every", "--batch", "--threads"] {
            refused(&format!("vitscope file a.mp4 b.mp4 {option} 0"));
        }
        for option in ["--every", "--fps"] {
            refused(&format!("vitscope live {option} 0"));
        }
        for option in ["--batch", "--threads", "--repeat"] {
            refused(&format!("vitscope bench {option} 0"));
        }
        refused("vitscope train file.toml --threads 0");
        refused("vitscope train diffmask --model a --seeds 0");
        refused("vitscope train diffmask --model a --threads 0");
        refused("vitscope eval classifier --data a --threads 0");
        refused("vitscope eval road --data a --images 0");
        refused("vitscope eval road --data a --batch 0");
        refused("vitscope eval gates --data a --pictures 0");
        refused("vitscope eval temporal --data a --frames 0");
        refused("vitscope eval faithfulness --grids 0");
    }

    #[test]
    fn numbers_without_end_are_too_large() {
        let batch = |text| one_or_more::<NonZeroUsize>(text).map(NonZeroUsize::get);
        assert_eq!(batch("12"), Ok(12));
        assert_eq!(
            batch("99999999999999999999999"),
            Err("the number is too large".into())
        );
        for text in ["", "0", "00", "-1", "1.5", "x"] {
            assert_eq!(batch(text), Err("expected 1 or more".into()), "{text}");
        }
    }

    #[test]
    fn more_threads_than_help_are_refused() {
        let threads = |text| thread_count(text).map(NonZeroUsize::get);
        assert_eq!(threads("512"), Ok(512));
        for text in ["513", "100000", "two", "-1"] {
            assert_eq!(threads(text), Err("expected 1 to 512".into()));
        }
    }

    #[test]
    fn a_picture_that_is_written_as_png_is_called_so() {
        for command in ["faithfulness --picture", "classifier --data a --confusions"] {
            let line = format!("vitscope eval {command} a.jpg");
            let error = Args::try_parse_from(line.split(' ')).unwrap_err();
            assert!(error.to_string().contains("ending in .png"), "{error}");
        }
        assert_eq!(png("a.PNG"), Ok("a.PNG".into()));
    }

    #[test]
    fn shares_lie_between_zero_and_one() {
        assert_eq!(Ok(0.25), share("0.25"));
        for text in ["-0.1", "1.1", "NaN", "half"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
