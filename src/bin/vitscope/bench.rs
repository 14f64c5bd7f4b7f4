//! `vitscope bench`: how long models and their explanations take on this machine.
#![expect(
    clippy::print_stdout,
    reason = "what a command is asked for goes to standard output"
)]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use candle_core::{Device, Tensor};
use serde::Serialize;
use vitscope::explain::{Explainer, Method, Parts, Target};
use vitscope::files::write_whole;
use vitscope::gates::{DEFAULT_STRETCH, GateSizes, Gates};
use vitscope::models::{self, Model, Preprocessor};
use vitscope::rng::Rng;
use vitscope::vit::{Vit, VitConfig, init};

use crate::args::DeviceChoice;
use crate::exit::Exit;
use crate::setup;

/// Options of `vitscope bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Embedded models, folders, or vit-ti/16, vit-s/16 and vit-b/16, which get random weights.
    #[arg(
        long,
        value_name = "MODEL,…",
        value_delimiter = ',',
        default_value = "vit-ti/16,vit-s/16,vit-b/16"
    )]
    model: Vec<String>,
    /// `forward`, which is the bare model, and methods.
    #[arg(
        long,
        value_name = "METHOD,…",
        value_delimiter = ',',
        default_value = "forward,diffmask"
    )]
    method: Vec<String>,
    /// Pictures that go through the model at once.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8")]
    batch: Vec<NonZeroUsize>,
    /// Edge of the pictures of models with random weights, in pixels.
    #[arg(long, value_name = "PX", default_value = "224")]
    size: usize,
    /// How often each case is timed; the cases take turns.
    #[arg(long, value_name = "N", default_value = "20")]
    repeat: NonZeroUsize,
    /// Where the model runs: cpu, cuda, cuda:N, or auto.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Threads that compute [default: one a core].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
}

/// What a case is called that explains nothing.
const FORWARD: &str = "forward";

/// Runs of each case before the first that counts.
const WARM_UP: usize = 3;

/// One line of the table.
struct Case<'a> {
    model: &'a Model,
    explainer: Option<Box<dyn Explainer>>,
    images: Tensor,
    /// Seconds of each repetition.
    secs: Vec<f64>,
}

/// What was measured for a case.
#[derive(Debug, Serialize)]
struct Figures {
    model: String,
    method: String,
    batch: usize,
    repetitions: usize,
    /// Median over the repetitions.
    ms_per_image: f64,
    /// 95th percentile.
    ms_per_image_p95: f64,
    images_per_s: f64,
    /// Time over that of the bare model with the same batch, where that was timed too.
    over_forward: Option<f64>,
}

/// Runs `vitscope bench`.
pub fn run(args: &BenchArgs) -> anyhow::Result<Exit> {
    let device = setup::device(args.device)?;
    let models = args
        .model
        .iter()
        .map(|name| open(name, args.size, &device))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut cases = Vec::new();
    for model in &models {
        for &batch in &args.batch {
            for method in &args.method {
                cases.push(case(model, method, batch.get(), &device)?);
            }
        }
    }
    for round in 0..WARM_UP + args.repeat.get() {
        for case in &mut cases {
            let start = Instant::now();
            case.run(&device)?;
            if round >= WARM_UP {
                case.secs.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let mut figures: Vec<Figures> = cases.iter_mut().map(Case::figures).collect();
    for figure_idx in 0..figures.len() {
        let case = &figures[figure_idx];
        let bare = figures.iter().find(|other| {
            (&other.model, other.batch) == (&case.model, case.batch) && other.method == FORWARD
        });
        let ratio = bare.map(|bare| case.ms_per_image / bare.ms_per_image);
        figures[figure_idx].over_forward = ratio;
    }
    print!("{}", table(&figures));
    if let Some(path) = &args.json {
        write_whole(
            path,
            (serde_json::to_string_pretty(&figures)? + "\n").as_bytes(),
        )?;
        println!("figures in {path:?}");
    }
    Ok(Exit::Whole)
}

/// A model by reference, or one with random weights and gates.
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
    let gates = Gates::initial_tensors(sizes, 0.0, &mut rng, device)?;
    Ok(Model {
        name: name.to_owned(),
        vit: Vit::load(config, &weights)?,
        preprocessor: Preprocessor::square(size_px),
        weights_sha256: String::new(),
        gates: Some(Gates::load(
            sizes,
            DEFAULT_STRETCH,
            &gates.into_iter().collect(),
        )?),
        gate_card: None,
    })
}

fn case<'a>(
    model: &'a Model,
    method: &str,
    batch: usize,
    device: &Device,
) -> anyhow::Result<Case<'a>> {
    let explainer = if method == FORWARD {
        None
    } else {
        let known = || Method::ALL.map(Method::name).join(", ");
        let Ok(method) = method.parse::<Method>() else {
            bail!("unknown method {method:?}, expected {FORWARD}, {}", known());
        };
        let gates = model.gates.as_ref();
        Some(method.build(Parts { gates })?)
    };
    let size = model.preprocessor.image_size();
    let dims = (batch, 3, size.height_px, size.width_px);
    Ok(Case {
        model,
        explainer,
        images: Rng::new(1).normal_tensor(dims, device)?,
        secs: Vec::new(),
    })
}

impl Case<'_> {
    /// One pass, finished when its result has arrived in the processor's memory.
    fn run(&self, device: &Device) -> anyhow::Result<()> {
        let result = match &self.explainer {
            None => self.model.vit.forward(&self.images)?.tokens,
            Some(explainer) => {
                let explained = explainer.explain(&self.model.vit, &self.images, Target::Predicted);
                explained?.attribution
            }
        };
        std::hint::black_box(result);
        Ok(device.synchronize()?)
    }

    fn figures(&mut self) -> Figures {
        self.secs.sort_by(f64::total_cmp);
        let batch = self.images.dims().first().copied().unwrap_or(1);
        let at = |share: f64| {
            let last = self.secs.len().saturating_sub(1);
            let secs = self.secs.get((last as f64 * share).round() as usize);
            secs.copied().unwrap_or(f64::NAN) * 1e3 / batch as f64
        };
        let method = self
            .explainer
            .as_ref()
            .map_or(FORWARD, |explainer| explainer.name());
        Figures {
            model: self.model.name.clone(),
            method: method.to_owned(),
            batch,
            repetitions: self.secs.len(),
            ms_per_image: at(0.5),
            ms_per_image_p95: at(0.95),
            images_per_s: 1e3 / at(0.5),
            over_forward: None,
        }
    }
}

fn table(figures: &[Figures]) -> String {
    let width = |name: fn(&Figures) -> &str| {
        let longest = figures.iter().map(|row| name(row).len()).max();
        longest.unwrap_or(0).max(6)
    };
    let (model, method) = (width(|row| &row.model), width(|row| &row.method));
    let mut text = format!(
        "{:model$}  {:method$}  batch  ms/image      p95  images/s  of forward\n",
        "model", "method"
    );
    for row in figures {
        let ratio = row
            .over_forward
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        text += &format!(
            "{:model$}  {:method$}  {:5}  {:8.2}  {:7.2}  {:8.1}  {ratio:>10}\n",
            row.model,
            row.method,
            row.batch,
            row.ms_per_image,
            row.ms_per_image_p95,
            row.images_per_s
        );
    }
    text
}
