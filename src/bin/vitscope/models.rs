//! `vitscope models`: lists, inspects, downloads and shrinks models.

use std::path::{Path, PathBuf};

use candle_core::Device;
use vitscope::explain::Method;
use vitscope::frame::placement::ResizeRule;
use vitscope::models::{self, Model, Reference, Shrunk};
use vitscope::vit::{Head, VitConfig};
use vitscope_core::gates::Objective;

use crate::exit::Exit;
use crate::setup;

/// Maximum number of labels that `inspect` shows.
const SHOWN_LABELS: usize = 12;

/// List, inspect, download or shrink models.
#[derive(Debug, clap::Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List the embedded models.
    List,
    /// Show a model's architecture, sizes, labels and gates, and the methods that can explain it.
    Inspect {
        /// Embedded model, folder with config.json and model.safetensors, or OWNER/NAME on Hugging Face.
        model: String,
        /// Backbone model, if MODEL holds only a head, an adapter or gates.
        #[arg(long, value_name = "MODEL")]
        backbone: Option<String>,
    },
    /// Write a copy of a model with 8-bit weights, a quarter of the size in single precision.
    ///
    /// Gates, interpreter and familiarity are left out because they depend on the original weights. Train new ones for
    /// the new folder. If MODEL already has 8-bit weights, its gates and interpreter are shrunk instead.
    Shrink {
        /// Embedded model, folder with config.json and model.safetensors, or OWNER/NAME on Hugging Face.
        model: String,
        /// Output folder.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Backbone model, if MODEL holds only a head.
        #[arg(long, value_name = "MODEL")]
        backbone: Option<String>,
    },
    /// Download a model from Hugging Face into the cache, and print its folder.
    #[cfg(feature = "hub")]
    Pull {
        /// OWNER/NAME.
        id: String,
    },
}

/// Runs `vitscope models`.
pub fn run(args: &ModelsArgs) -> anyhow::Result<Exit> {
    match &args.what {
        What::List => {
            for name in models::embedded_names() {
                println!("{}", summary(&models::open(name, &Device::Cpu)?));
            }
        }
        What::Inspect { model, backbone } => {
            let reference = Reference::over(model, backbone.as_deref());
            print!("{}", inspect(&models::open(reference, &Device::Cpu)?));
        }
        What::Shrink {
            model,
            out,
            backbone,
        } => {
            let shrunk = models::shrink(Reference::over(model, backbone.as_deref()), out)?;
            println!("{}", shrunk_summary(&shrunk, out));
        }
        #[cfg(feature = "hub")]
        What::Pull { id } => println!("{}", models::pull(id)?.display()),
    }
    Ok(Exit::Whole)
}

/// Describes a model in one line.
fn summary(model: &Model) -> String {
    let config = model.vit.config();
    let size = model.preprocessor.image_size();
    let gates = if model.gates.is_some() {
        "gates"
    } else {
        "no gates"
    };
    format!(
        "{:12}  {}, {} blocks of {} channels, {} x {} px, {} classes, {gates}",
        model.name,
        config.family.model_type(),
        config.num_hidden_layers,
        config.hidden_size,
        size.width_px,
        size.height_px,
        config.labels.len()
    )
}

/// Describes the result of shrinking a model.
fn shrunk_summary(shrunk: &Shrunk, folder: &Path) -> String {
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let left_out = match shrunk.left_out.as_slice() {
        [] => String::new(),
        parts => format!(
            "; left out: {}, which depend on the original weights",
            parts.join(" and ")
        ),
    };
    format!(
        "wrote {folder:?}: weights {:.1} MB (before: {:.1} MB), sha256 {}{left_out}",
        megabytes(shrunk.after),
        megabytes(shrunk.before),
        shrunk.weights_sha256
    )
}

fn inspect(model: &Model) -> String {
    let config = model.vit.config();
    let size = model.preprocessor.image_size();
    let (grid_h, grid_w) = model.grid();
    let n_special = config.n_special_tokens();
    let head = match config.head() {
        None => "none",
        Some(Head::ClassToken) => "reads the class token",
        Some(Head::ClassTokenAndPatchMean) => "reads the class token and the mean of the patches",
        Some(Head::ClassAndDistillationTokens) => {
            "averages two heads, on the class token and on the distillation token"
        }
        Some(Head::ImageEmbedding { .. }) => "compares the image embedding with class vectors",
    };
    let gates = match (&model.gates, &model.gate_card) {
        (Some(gates), Some(card)) => {
            let kind = match gates.objective() {
                Objective::Published => "voting gates",
                Objective::Shapley => "ranking gates",
                Objective::Order => "ordering gates",
            };
            format!(
                "DiffMask, {kind} of {} states, seed {}",
                card.states, card.seed
            )
        }
        (Some(_), None) => "DiffMask".to_owned(),
        (None, _) => "none; train them with `vitscope train diffmask`".to_owned(),
    };
    let interpreter = match &model.interpreter_card {
        Some(card) => format!(
            "IA-ViT, agrees with the model on {:.1} % of its test pictures, KL {:.3} nats",
            100.0 * card.agreement,
            card.kl
        ),
        None => "none; train one with `vitscope train ia-vit`".to_owned(),
    };
    let methods: Vec<&str> = Method::ALL
        .iter()
        .filter(|method| explains(**method, model))
        .map(|method| method.name())
        .collect();
    let threshold = model.sure_from().map(|threshold| {
        let what = match model.familiarity {
            Some(_) => {
                "trust in the answer, from its probability and the picture's familiarity, is below"
            }
            None => "the probability of the best class is below",
        };
        ("threshold", format!("\"not sure\" if {what} {threshold}"))
    });
    let lines = [
        ("model", format!("{:?}", model.name)),
        ("family", config.family.model_type().to_owned()),
        (
            "blocks",
            format!(
                "{} of {} channels, {} heads, MLP of {}",
                config.num_hidden_layers,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size
            ),
        ),
        (
            "input",
            format!(
                "{} x {} px: {}",
                size.width_px,
                size.height_px,
                fitted(model.preprocessor.rule)
            ),
        ),
        (
            "tokens",
            format!(
                "{grid_h} x {grid_w} patches of {} px, plus {n_special} special",
                config.patch_size
            ),
        ),
        ("head", head.to_owned()),
        ("classes", classes(config)),
    ];
    let parts = [
        ("gates", gates),
        ("interpreter", interpreter),
        ("methods", methods.join(", ")),
        ("sha256", model.weights_sha256.clone()),
    ];
    let lines = lines.into_iter().chain(threshold).chain(parts);
    lines
        .map(|(name, value)| format!("{name:11}  {value}\n"))
        .collect()
}

/// Describes how a picture is fitted to the model's size.
fn fitted(rule: ResizeRule) -> String {
    match rule {
        ResizeRule::Stretch(_) => "the whole picture, stretched".to_owned(),
        ResizeRule::Pad(_) => "the whole picture, padded with black bars".to_owned(),
        ResizeRule::ShortestEdge { edge_px, .. } => {
            format!("the center of the picture, its shorter edge scaled to {edge_px} px")
        }
        ResizeRule::StretchThenCrop { resize, .. } => format!(
            "the picture stretched to {} x {} px, then cropped to its center",
            resize.width_px, resize.height_px
        ),
    }
}

/// Returns whether the method works on the model.
fn explains(method: Method, model: &Model) -> bool {
    let explainer = method.build(model.parts());
    explainer.is_ok_and(|explainer| setup::rehearse(&[explainer], model).is_ok())
}

/// Formats the number of classes and the first of them.
fn classes(config: &VitConfig) -> String {
    let labels = &config.labels;
    let shown = labels
        .iter()
        .take(SHOWN_LABELS)
        .cloned()
        .collect::<Vec<_>>();
    let more = if labels.len() > shown.len() {
        ", …"
    } else {
        ""
    };
    match labels.len() {
        0 => "none".to_owned(),
        n if config.multi_label => {
            format!(
                "{n}, any number of which may apply: {}{more}",
                shown.join(", ")
            )
        }
        n => format!("{n}: {}{more}", shown.join(", ")),
    }
}
