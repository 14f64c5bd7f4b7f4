//! Models by reference: an embedded name, a folder in Hugging Face's layout, or a model on the Hugging Face hub.
//!
//! A folder contains `config.json`, `preprocessor_config.json` or `processor_config.json`, and `model.safetensors`. It
//! may also contain a LoRA adapter for these weights (`adapter_config.json`, `adapter_model.safetensors`), its own
//! classifier ([`head.safetensors`](head)), DiffMask gates (`gates.safetensors`, `gates.json`), IA-ViT's interpreter
//! (`interpreter.safetensors`, `interpreter.json`) and statistics of familiar pictures
//! ([`familiarity.safetensors`](familiarity)). The last three are refused if they belong to other weights. A folder
//! with only such parts needs another model as its backbone and may specify that model's preprocessing. The backbone's
//! gates still apply if the folder has no gates and no adapter. Embedded models and models from the hub are read in the
//! same way.

mod adapter;
pub(crate) mod card;
mod device;
mod embedded;
pub mod familiarity;
mod folder;
pub mod head;
#[cfg(feature = "hub")]
mod hub;
pub(crate) mod preprocessor;
mod shrink;

pub use crate::weights::{self, Precision};
pub use card::ModelCard;
pub use device::DeviceChoice;
pub use familiarity::Familiarity;
pub use folder::{save_folder, save_preprocessor};
pub use head::{
    HeadExamples, LinearHead, check_head_folder, read_head, save_head, save_taught_head,
};
#[cfg(feature = "hub")]
pub use hub::{cache_folder, pull};
pub use preprocessor::{Input, Preprocessor};
pub use shrink::{Shrunk, shrink};

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::explain::{Method, Parts, Target};
use crate::gates::{GateCard, Gates};
use crate::interpreter::{Interpreter, InterpreterCard};
use crate::vit::fields::{self, Fields};
use crate::vit::{Arithmetic, Vit, VitConfig, names};
use crate::{Error, Result};
use adapter::{Adapter, Scale};
use folder::{
    ADAPTER, ADAPTER_CONFIG, CONFIG, FAMILIARITY, Files, GATES, HEAD, INTERPRETER, PREPROCESSOR,
    WEIGHTS,
};
use head::HeadFile;
use vitscope_kernels::Products;

/// Key of [`Model::not_sure_below`] in `config.json`.
const NOT_SURE_BELOW: &str = "not_sure_below";

/// Largest input size in patches per side; the memory of attention grows with its fourth power.
const MOST_PATCHES_ACROSS: usize = 64;

/// A model with everything in its folder.
pub struct Model {
    /// Embedded name, folder or hub id, as given.
    pub name: String,
    /// The Vision Transformer.
    pub vit: Vit,
    /// Preprocessing of pictures for the model.
    pub preprocessor: Preprocessor,
    /// Hash of `model.safetensors` followed by the adapter and `head.safetensors`, if present, in lower-case
    /// hexadecimal.
    pub weights_sha256: String,
    /// Hash without the head. Heads and the backbone's gates refer to this hash.
    pub backbone_sha256: String,
    /// Whether the classifier comes from a `head.safetensors`.
    pub own_head: bool,
    /// Probability of the most probable class below which the model's answer is "not sure", measured for its own
    /// classifier. It has no effect if the model has a [`familiarity`](Self::familiarity).
    pub not_sure_below: Option<f32>,
    /// Statistics of the pictures that the model's own classifier was trained on, and the trust in its predictions.
    pub familiarity: Option<Familiarity>,
    /// DiffMask gates for exactly these weights, or for those of the backbone under a head.
    pub gates: Option<Gates>,
    /// How the gates were trained.
    pub gate_card: Option<GateCard>,
    /// IA-ViT's interpreter for exactly these weights.
    pub interpreter: Option<Interpreter>,
    /// How the interpreter was trained.
    pub interpreter_card: Option<InterpreterCard>,
    /// The model as opened, if [`with_head`](Self::with_head) replaced its classifier.
    pub untaught: Option<Arc<Self>>,
}

/// The weights of a model by name, as a start for training.
#[derive(Debug)]
pub struct ModelWeights {
    /// The model's shape.
    pub config: VitConfig,
    /// Preprocessing of pictures for the model.
    pub preprocessor: Preprocessor,
    /// The weights under canonical names.
    pub tensors: HashMap<String, Tensor>,
    /// As in [`Model`].
    pub weights_sha256: String,
    /// As in [`Model`].
    pub backbone_sha256: String,
}

/// Name of the default model, included in builds with the feature `embedded-models`.
pub const DEFAULT: &str = "everyday";

/// Names of the models embedded in this build.
pub fn embedded_names() -> impl Iterator<Item = &'static str> {
    embedded::MODELS.iter().map(|model| model.name)
}

/// Reference to a model. A string refers to a model without a backbone, with all its trained parts.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// Embedded name, folder or hub id; `./NAME` is always a folder.
    pub model: &'a str,
    /// Backbone model, if `model` is a folder with only a head, an adapter, gates or an interpreter.
    pub backbone: Option<&'a str>,
    /// Whether to read gates, interpreter and familiarity. If false, parts that belong to other weights are not
    /// refused, so they can be replaced.
    pub trained_parts: bool,
    /// Settings of the model's input that override its preprocessor.
    pub input: Input,
    /// The numbers that the model computes with.
    pub arithmetic: Arithmetic,
}

impl<'a> From<&'a str> for Reference<'a> {
    fn from(model: &'a str) -> Self {
        Self {
            model,
            backbone: None,
            trained_parts: true,
            input: Input::default(),
            arithmetic: Arithmetic::default(),
        }
    }
}

impl<'a> Reference<'a> {
    /// References a model with all its trained parts, optionally over a backbone.
    pub fn over(model: &'a str, backbone: Option<&'a str>) -> Self {
        Self {
            backbone,
            ..model.into()
        }
    }
}

/// Opens a model. Downloads a model from the hub if it is not in the hub's cache.
///
/// # Errors
/// [`Error::Model`] if the model does not exist (the message lists what was tried), or if one of its files is missing,
/// malformed or contradicts another; [`Error::Io`] if a file cannot be read.
pub fn open<'a>(reference: impl Into<Reference<'a>>, device: &Device) -> Result<Model> {
    let reference = reference.into();
    let mut model = open_files(reference.model, &files(&reference)?, device)?;
    model.preprocessor = asked_of(&model, reference.input)?;
    model.compute_with(reference.arithmetic)?;
    Ok(model)
}

/// The preprocessor with the requested input settings.
fn asked_of(model: &Model, input: Input) -> Result<Preprocessor> {
    let patch_px = model.vit.config().patch_size;
    if let Some(edge_px) = input.edge_px {
        let fits = edge_px.is_multiple_of(patch_px) && edge_px <= MOST_PATCHES_ACROSS * patch_px;
        if edge_px == 0 || !fits {
            return Err(Error::Config(format!(
                "input size is {edge_px} px, expected a multiple of the model's patch size {patch_px}, from \
                 {patch_px} to {}",
                MOST_PATCHES_ACROSS * patch_px
            )));
        }
    }
    Ok(model.preprocessor.with_input(input))
}

fn files(reference: &Reference<'_>) -> Result<Files> {
    let &Reference {
        model,
        backbone,
        trained_parts,
        ..
    } = reference;
    let mut files = match backbone {
        Some(backbone) => find(backbone)?.under(folder(model)?)?,
        None => find(model)?,
    };
    if !trained_parts {
        (files.gates, files.backbone_gates, files.interpreter) = (None, None, None);
        files.familiarity = None;
    }
    Ok(files)
}

fn folder(reference: &str) -> Result<&Path> {
    let path = Path::new(reference);
    match path.is_dir() {
        true => Ok(path),
        false => Err(Error::Model(format!(
            "with a backbone, the model must be a folder with a head, an adapter or gates, and there is no such \
             folder: {reference:?}"
        ))),
    }
}

fn find(reference: &str) -> Result<Files> {
    let embedded = embedded::MODELS
        .iter()
        .find(|model| model.name == reference);
    if let Some(model) = embedded {
        return Ok(model.files());
    }
    let path = Path::new(reference);
    if path.is_dir() {
        return Files::read(path);
    }
    #[cfg(feature = "hub")]
    if is_hub_id(reference) {
        return Files::read(&hub::fetch(reference)?);
    }
    Err(Error::Model(not_found(reference)))
}

fn not_found(reference: &str) -> String {
    let path = Path::new(reference);
    if path.is_file() {
        return format!("expected a model folder, got a file: {path:?}");
    }
    let embedded: Vec<&str> = embedded_names().collect();
    let embedded = match embedded.as_slice() {
        [] => "this build has none".to_owned(),
        names => names.join(", "),
    };
    let tried = format!("neither an embedded model ({embedded}) nor a folder");
    if is_hub_id(reference) {
        return format!(
            "model is {tried}, and this program was built without the feature `hub`; save the model's {CONFIG}, \
             {PREPROCESSOR} and {WEIGHTS} in a folder and pass that folder: {reference:?}"
        );
    }
    format!("model is {tried}: {reference:?}")
}

/// Whether `reference` looks like `owner/name` on the hub.
fn is_hub_id(reference: &str) -> bool {
    let word = |part: &str| {
        let mut letters = part.chars();
        letters
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
            && letters.all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
    };
    reference
        .split_once('/')
        .is_some_and(|(owner, name)| word(owner) && word(name))
}

/// Opens a model's weights, as [`open`] opens a model.
///
/// # Errors
/// As [`open`].
pub fn open_weights<'a>(
    reference: impl Into<Reference<'a>>,
    device: &Device,
) -> Result<ModelWeights> {
    read_weights(&files(&reference.into())?, device)
}

fn read_weights(files: &Files, device: &Device) -> Result<ModelWeights> {
    let config = files.text(CONFIG, &files.config)?;
    let heads = names::heads_among(&weights::names(&files.weights));
    let mut config =
        VitConfig::from_json_with(config, heads).map_err(|error| files.blame(CONFIG, error))?;
    let preprocessor = files.text(files.preprocessor_file, &files.preprocessor)?;
    let preprocessor = Preprocessor::from_json(preprocessor, config.family)
        .and_then(|preprocessor| fit(preprocessor, &config))
        .map_err(|error| files.blame(files.preprocessor_file, error))?;
    let mut tensors = weights::tensors_where(&files.weights, device, names::takes_part)
        .and_then(names::renamed)
        .map_err(|error| files.blame(WEIGHTS, error))?;
    let mut backbone = vec![&*files.weights];
    if let Some((weights, config_of_adapter)) = &files.adapter {
        backbone.extend([&**weights, &**config_of_adapter]);
        let text = files.text(ADAPTER_CONFIG, config_of_adapter)?;
        let scale = Scale::from_json(text).map_err(|error| files.blame(ADAPTER_CONFIG, error))?;
        let adapter = Adapter::from_bytes(&scale, weights, device)
            .map_err(|error| files.blame(ADAPTER, error))?;
        let classifier = adapter.classifier().filter(|_| files.head.is_none());
        classifier
            .map_or(Ok(()), |weight| head::announce(weight, &mut config))
            .and_then(|()| adapter.apply(&mut tensors))
            .map_err(|error| files.blame(ADAPTER, error))?;
    }
    let (backbone_sha256, weights_sha256) = match &files.head {
        None => {
            let sha256 = weights::sha256_hex_of_all(&backbone);
            (sha256.clone(), sha256)
        }
        Some(head) => {
            let (of_weights, of_both) = weights::sha256_hex_and_with(&backbone, head);
            HeadFile::from_bytes(head, device)
                .and_then(|head| {
                    head.check_backbone(&of_weights)?;
                    head.install(&mut config, &mut tensors)
                })
                .map_err(|error| files.blame(HEAD, error))?;
            (of_weights, of_both)
        }
    };
    let tensors =
        names::canonical_weights(&config, tensors).map_err(|error| files.blame(WEIGHTS, error))?;
    Ok(ModelWeights {
        config,
        preprocessor,
        tensors,
        weights_sha256,
        backbone_sha256,
    })
}

fn open_files(name: &str, files: &Files, device: &Device) -> Result<Model> {
    let ModelWeights {
        config,
        preprocessor,
        tensors,
        weights_sha256,
        backbone_sha256,
    } = read_weights(files, device)?;
    let vit = Vit::load(config, &tensors).map_err(|error| files.blame(WEIGHTS, error))?;
    let not_sure_below = files
        .text(CONFIG, &files.config)
        .and_then(not_sure_below)
        .map_err(|error| files.blame(CONFIG, error))?;
    let gates = files.gates.as_ref().map(|(tensors, card)| {
        Gates::from_bytes(tensors, card, &vit, &weights_sha256, device)
            .map_err(|error| files.blame(GATES, error))
    });
    let of_backbone = files.backbone_gates.as_ref().map(|(tensors, card)| {
        Gates::from_bytes_under(tensors, card, &vit, &backbone_sha256, device)
            .map_err(|error| folder::blamed(&files.origin, GATES, &error))
    });
    let gates = match gates.transpose()? {
        None => of_backbone.transpose()?.flatten(),
        gates => gates,
    };
    let (gates, gate_card) = gates.unzip();
    let interpreter = files.interpreter.as_ref().map(|(tensors, card)| {
        Interpreter::from_bytes(tensors, card, vit.config(), &weights_sha256, device)
            .map_err(|error| files.blame(INTERPRETER, error))
    });
    let (interpreter, interpreter_card) = interpreter.transpose()?.unzip();
    let familiarity = files.familiarity.as_ref().filter(|_| files.head.is_none());
    let familiarity = familiarity.map(|bytes| {
        Familiarity::from_bytes(bytes, vit.config(), &weights_sha256, device)
            .map_err(|error| files.blame(FAMILIARITY, error))
    });
    let familiarity = familiarity.transpose()?;
    Ok(Model {
        name: name.to_owned(),
        vit,
        preprocessor,
        weights_sha256,
        backbone_sha256,
        own_head: files.head.is_some(),
        not_sure_below: not_sure_below.filter(|_| files.head.is_none() && !files.is_adapted()),
        familiarity,
        gates,
        gate_card,
        interpreter,
        interpreter_card,
        untaught: None,
    })
}

/// Reads the threshold from a `config.json`; the key is specific to this crate.
fn not_sure_below(config: &str) -> Result<Option<f32>> {
    let root = fields::parse(config)?;
    let Some(value) = Fields(&root).value(NOT_SURE_BELOW) else {
        return Ok(None);
    };
    match value.as_f64().map(|threshold| threshold as f32) {
        Some(threshold) if (0.0..1.0).contains(&threshold) => Ok(Some(threshold)),
        _ => Err(Error::Model(format!(
            "field {NOT_SURE_BELOW:?} is {value}, expected a number of at least 0 and below 1"
        ))),
    }
}

/// Checks that the model accepts the preprocessor's output.
fn fit(preprocessor: Preprocessor, config: &VitConfig) -> Result<Preprocessor> {
    let size = preprocessor.image_size();
    let patch = config.patch_size;
    if config.num_channels != 3 {
        return Err(Error::Model(format!(
            "config specifies {} channels, but pictures have 3",
            config.num_channels
        )));
    }
    if !(size.width_px.is_multiple_of(patch) && size.height_px.is_multiple_of(patch)) {
        return Err(Error::Model(format!(
            "images are {} x {} px, which is not a multiple of config's patch size of {patch} px",
            size.width_px, size.height_px
        )));
    }
    Ok(preprocessor)
}

impl Model {
    /// Makes a model that computes with f32 compute with these numbers, and warns of weights that it keeps in f32.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub fn compute_with(&mut self, arithmetic: Arithmetic) -> Result<()> {
        if arithmetic == Arithmetic::F32 {
            return Ok(());
        }
        if !self.vit.device().is_cpu() {
            tracing::warn!("only CPUs compute with {arithmetic}; this device computes with f32");
            return Ok(());
        }
        if arithmetic == Arithmetic::Bf16 {
            if Products::fastest() == Products::Bf16 {
                self.vit = self.vit.rounded()?;
            } else {
                tracing::warn!("this processor has no instructions for bf16; computing with f32");
            }
            return Ok(());
        }
        let (vit, kept) = self.vit.quantized()?;
        if !kept.is_empty() {
            tracing::warn!(
                "8 bits cannot represent the weights of {}; computing with f32 there",
                kept.join(", ")
            );
        }
        self.vit = vit;
        Ok(())
    }

    /// The parts trained for the model, for methods that need them.
    pub fn parts(&self) -> Parts<'_> {
        Parts {
            gates: self.gates.as_ref(),
            interpreter: self.interpreter.as_ref(),
            normalization: Some((self.preprocessor.mean, self.preprocessor.std)),
        }
    }

    /// Class names in the order of the logits; empty without a classifier.
    pub fn labels(&self) -> &[String] {
        &self.vit.config().labels
    }

    /// The smallest trust at which a prediction counts as sure, or the smallest probability without a
    /// [`familiarity`](Self::familiarity).
    pub fn sure_from(&self) -> Option<f32> {
        let trust = self.familiarity.as_ref();
        trust.map_or(self.not_sure_below, |familiarity| {
            Some(familiarity.sure_from)
        })
    }

    /// Rows and columns of the patch grid of the preprocessor's images.
    pub fn grid(&self) -> (usize, usize) {
        let size = self.preprocessor.image_size();
        self.vit.grid(size.height_px, size.width_px)
    }

    /// Converts pictures of the preprocessor's size to a normalized batch on the model's device.
    ///
    /// # Shapes
    /// - `rgb`: one `[height, width, 3]` per picture, red first
    /// - result: `[batch, 3, height, width]`
    ///
    /// # Errors
    /// [`Error::Shape`] if a picture has the wrong number of bytes.
    pub fn images_from_rgb(&self, rgb: &[Vec<u8>]) -> Result<Tensor> {
        let device = self.vit.device();
        self.preprocessor.images_from_rgb(rgb, device)
    }

    /// Returns the same model with another classifier over the same weights. Gates that explain the backbone remain.
    ///
    /// Tensors are shared. `weights_sha256` becomes the hash of the backbone's and head's values.
    ///
    /// # Errors
    /// [`Error::Model`] if the head does not fit the model.
    pub fn with_head(self: &Arc<Self>, head: LinearHead) -> Result<Self> {
        let weights_sha256 = head.sha256_over(&self.backbone_sha256)?;
        let vit = head.over(&self.vit)?;
        let card = (self.gate_card.as_ref())
            .filter(|card| card.base_sha256.eq_ignore_ascii_case(&self.backbone_sha256));
        let gates = match card.and(self.gates.as_ref()) {
            Some(gates) => gates.under(&vit)?,
            None => None,
        };
        Ok(Self {
            name: self.name.clone(),
            preprocessor: self.preprocessor.clone(),
            weights_sha256,
            backbone_sha256: self.backbone_sha256.clone(),
            own_head: true,
            // The threshold was measured for another classifier.
            not_sure_below: None,
            familiarity: None,
            gate_card: gates.as_ref().and(card).cloned(),
            gates,
            vit,
            interpreter: None,
            interpreter_card: None,
            untaught: Some(self.as_opened()),
        })
    }

    /// Returns the model without a classifier set by [`with_head`](Self::with_head).
    #[must_use]
    pub fn as_opened(self: &Arc<Self>) -> Arc<Self> {
        Arc::clone(self.untaught.as_ref().unwrap_or(self))
    }

    /// Whether the model has gates that were trained to preserve another classifier's output.
    fn has_foreign_gates(&self) -> bool {
        let own = |card: &GateCard| card.base_sha256.eq_ignore_ascii_case(&self.weights_sha256);
        self.gate_card.as_ref().is_some_and(|card| !own(card))
    }

    /// The default method: DiffMask if the model has gates that were trained for its outputs; otherwise a method that
    /// explains classes, or attention if the model has no classifier.
    pub fn default_method(&self) -> Method {
        match self.vit.config().head() {
            _ if self.gates.is_some() && !self.has_foreign_gates() => Method::DiffMask,
            None => Method::Rollout,
            Some(_) => Method::Chefer,
        }
    }

    /// Parses a target: `predicted`, a class by name or index, or `contrast:A,B` with two classes.
    ///
    /// # Errors
    /// [`Error::Model`] as for [`class_index`](Self::class_index); [`Error::Config`] if the contrast has no second
    /// class, or the same class twice.
    pub fn target(&self, text: &str) -> Result<Target> {
        if text == "predicted" {
            return Ok(Target::Predicted);
        }
        let Some(pair) = text.strip_prefix("contrast:") else {
            return Ok(Target::Class(self.class_index(text)?));
        };
        let Some((class, other)) = pair.split_once(',') else {
            return Err(Error::Config(format!(
                "expected contrast:A,B with two classes, got {text:?}"
            )));
        };
        let (class, other) = (self.class_index(class)?, self.class_index(other.trim())?);
        if class == other {
            return Err(Error::Config(format!(
                "a class has no contrast with itself, expected contrast:A,B with two classes, got {text:?}"
            )));
        }
        Ok(Target::Contrast(class, other))
    }

    /// Returns one gray picture, for trial runs that need no particular picture.
    ///
    /// # Shapes
    /// - result: `[1, 3, height, width]`
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn gray_image(&self) -> Result<Tensor> {
        let size = self.preprocessor.image_size();
        self.images_from_rgb(&[vec![128; 3 * size.width_px * size.height_px]])
    }

    /// Finds a class by name (ignoring case) or index.
    ///
    /// If a label lists synonyms, as in ImageNet (`"tabby, tabby cat"`), each synonym is a name.
    ///
    /// # Errors
    /// [`Error::Model`] if the model has no classifier or no such class. The message lists similar names or the valid
    /// range.
    pub fn class_index(&self, name_or_index: &str) -> Result<usize> {
        class_index(self.labels(), name_or_index).map_err(Error::Model)
    }
}

/// Formats a class for error messages, with the index by which it can be requested.
fn numbered(index: usize, label: &str) -> String {
    format!("{label:?} ({index})")
}

/// Maximum number of names that an error message lists.
const MAX_LISTED: usize = 12;

fn class_index(labels: &[String], wanted: &str) -> Result<usize, String> {
    let Some(last) = labels.len().checked_sub(1) else {
        return Err(format!(
            "model has no classifier, so it has no class {wanted:?}"
        ));
    };
    let lower = wanted.trim().to_lowercase();
    if lower.is_empty() {
        return Err("expected the name or the index of a class, got nothing".into());
    }
    let names = |label: &str| -> Vec<String> {
        let label = label.to_lowercase();
        let synonyms = label.split(',').map(|name| name.trim().to_owned());
        synonyms.chain([label.clone()]).collect()
    };
    let is_whole = |index: &usize| labels[*index].trim().to_lowercase() == lower;
    let is_named = |index: &usize| names(&labels[*index]).contains(&lower);
    // An exact match takes precedence over a label that lists the name as a synonym.
    for called in [
        (0..labels.len()).filter(is_whole).collect(),
        (0..labels.len()).filter(is_named).collect::<Vec<_>>(),
    ] {
        match called.as_slice() {
            [index] => return Ok(*index),
            [] => (),
            several => {
                let several: Vec<String> = several
                    .iter()
                    .map(|&index| numbered(index, &labels[index]))
                    .collect();
                return Err(format!(
                    "{wanted:?} is the name of several classes: {}; pass an index instead",
                    several.join(", ")
                ));
            }
        }
    }
    if let Ok(index) = lower.parse::<i128>() {
        return match usize::try_from(index) {
            Ok(index) if index <= last => Ok(index),
            _ => Err(format!("class index must be from 0 to {last}, got {index}")),
        };
    }
    if labels.len() <= MAX_LISTED {
        let labels: Vec<String> = labels
            .iter()
            .enumerate()
            .map(|(index, label)| numbered(index, label))
            .collect();
        return Err(format!(
            "expected one of the classes {}, got {wanted:?}",
            labels.join(", ")
        ));
    }
    let mut near: Vec<(usize, String)> = labels
        .iter()
        .enumerate()
        .filter_map(|(index, label)| {
            let distances = names(label)
                .into_iter()
                .map(|name| match name.contains(&lower) {
                    true => 0,
                    false => strsim::levenshtein(&name, &lower),
                });
            let distance = distances.min().filter(|distance| *distance <= 2);
            distance.map(|distance| (distance, numbered(index, label)))
        })
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    let near: Vec<String> = near
        .into_iter()
        .take(MAX_LISTED)
        .map(|(_, label)| label)
        .collect();
    Err(match near.as_slice() {
        [] => format!("none of the {} classes is called {wanted:?}", labels.len()),
        near => format!(
            "no class is called {wanted:?}; did you mean {}?",
            near.join(" or ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn many() -> Vec<String> {
        let mut names: Vec<String> = (0..20).map(|i| format!("thing number {i}")).collect();
        names.extend(labels(&[
            "tabby, tabby cat",
            "Egyptian cat",
            "crane",
            "crane",
        ]));
        names
    }

    #[test]
    fn classes_are_found_by_name_synonym_and_index() {
        let few = labels(&["Bird", "7", "dog"]);
        assert_eq!(class_index(&few, "bird"), Ok(0));
        assert_eq!(class_index(&few, " DOG "), Ok(2));
        assert_eq!(class_index(&few, "2"), Ok(2));
        assert_eq!(class_index(&few, "7"), Ok(1), "a name goes before an index");
        assert_eq!(class_index(&many(), "Tabby Cat"), Ok(20));
        assert_eq!(class_index(&many(), "tabby, tabby cat"), Ok(20));
        // Classes 657 and 744 of ImageNet.
        let imagenet = labels(&["projectile, missile", "missile", "rocket, projectile"]);
        assert_eq!(class_index(&imagenet, "Missile"), Ok(1));
        let message = class_index(&imagenet, "projectile").unwrap_err();
        assert!(
            message.contains("\"projectile, missile\" (0), \"rocket, projectile\" (2)"),
            "{message}"
        );
    }

    #[test]
    fn an_unknown_class_is_answered_with_those_that_there_are() {
        let refused = |labels: &[String], wanted: &str| class_index(labels, wanted).unwrap_err();
        let few = labels(&["bird", "dog"]);
        assert_eq!(
            refused(&few, "cat"),
            "expected one of the classes \"bird\" (0), \"dog\" (1), got \"cat\""
        );
        assert_eq!(refused(&few, "2"), "class index must be from 0 to 1, got 2");
        assert_eq!(
            refused(&few, "-1"),
            "class index must be from 0 to 1, got -1"
        );
        assert!(refused(&[], "0").contains("no classifier"));
        assert!(refused(&many(), "egyptain cat").contains("\"Egyptian cat\" (21)"));
        assert!(refused(&many(), "crane").contains("\"crane\" (22), \"crane\" (23)"));
        assert!(refused(&many(), "zzzzzzz").contains("none of the 24"));
    }

    #[test]
    fn only_owner_and_name_make_a_hub_id() {
        assert!(is_hub_id("google/vit-base-patch16-224"));
        for reference in ["cifar10", "./a", "/a/b", "a/b/c", "../a", "a/"] {
            assert!(!is_hub_id(reference), "{reference:?}");
        }
    }
}
