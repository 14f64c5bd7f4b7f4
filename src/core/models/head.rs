//! A custom classifier in a file beside the model: `head.safetensors`.
//!
//! It serves models without a classifier (DINO, DINOv2, CLIP), and replaces an existing one. The file holds `weight`,
//! `[classes, width]`, and optionally `bias`, `[classes]`. These names may have a prefix followed by a dot, as in
//! `linear.weight`. The metadata may hold `labels`, the class names as a JSON list, and `backbone_sha256`, the hash of
//! the `model.safetensors` that the head was trained for; it is refused for another model. A taught head
//! (`vitscope::train::taught`) also holds its examples: `examples.features`, `[examples, width]`, and the metadata
//! `examples`, JSON with the names of all classes and the class of each example. The width determines the input:
//!
//! | width | input |
//! |---|---|
//! | `dim` | the class token |
//! | 2 · `dim` | the class token, followed by the mean of the patches |
//! | CLIP's `projection_dim` | the image embedding; each row is a class vector (see below); no bias |
//!
//! A class vector is the embedding of a text or of pictures; its length does not matter.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::folder::{GATES, HEAD, INPUT, INTERPRETER, OWN};
use crate::files::write_whole;
use crate::vit::{Head, Vit, VitConfig};
use crate::weights::{bytes_in_8_bits, hex, metadata, tensors_from_bytes};
use crate::{Error, Result};

/// Keys of the file's metadata.
const LABELS: &str = "labels";
const BACKBONE: &str = "backbone_sha256";
const EXAMPLES: &str = "examples";

/// Tensor with the features of a taught head's examples.
const FEATURES: &str = "examples.features";

/// Logarithm of 100, the limit of the logit scale in CLIP's training. Used for files without a scale.
const LOGIT_SCALE: f32 = 4.605_170_2;

/// A classifier from a separate file.
pub(super) struct HeadFile {
    weight: Tensor,
    bias: Option<Tensor>,
    labels: Vec<String>,
    backbone_sha256: Option<String>,
    examples: Option<HeadExamples>,
}

impl HeadFile {
    pub(super) fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self> {
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        // Sorted, so that the first of several errors is deterministic.
        let mut found = BTreeMap::from_iter(tensors_from_bytes(bytes, device)?);
        let features = found.remove(FEATURES);
        for (name, tensor) in found {
            let leaf = name.rsplit('.').next().unwrap_or_default();
            if !matches!(leaf, "weight" | "bias") || tensors.insert(leaf.into(), tensor).is_some() {
                return refuse(format!(
                    "unexpected tensor {name:?}, expected one weight and at most one bias"
                ));
            }
        }
        let Some(weight) = tensors.remove("weight") else {
            return refuse("tensor \"weight\" is missing".into());
        };
        let &[classes, _] = weight.dims() else {
            return refuse(format!(
                "tensor \"weight\" has shape {:?}, expected [classes, width]",
                weight.dims()
            ));
        };
        let bias = tensors.remove("bias");
        if let Some(bias) = &bias
            && bias.dims() != [classes]
        {
            return refuse(format!(
                "tensor \"bias\" has shape {:?}, but \"weight\" has {classes} classes",
                bias.dims()
            ));
        }
        let metadata = metadata(bytes)?;
        let examples = features.map(|features| examples(&metadata, &features, weight.dim(1)?));
        Ok(Self {
            examples: examples.transpose()?,
            labels: labels(&metadata, classes)?,
            backbone_sha256: metadata.get(BACKBONE).cloned(),
            weight,
            bias,
        })
    }

    /// Fails if the head was trained for other weights.
    pub(super) fn check_backbone(&self, weights_sha256: &str) -> Result<()> {
        match &self.backbone_sha256 {
            Some(expected) if !expected.eq_ignore_ascii_case(weights_sha256) => refuse(format!(
                "the head was trained for weights with sha256 {expected:?}, but the model's weights have sha256 \
                 {weights_sha256:?}"
            )),
            _ => Ok(()),
        }
    }

    /// Installs the classifier in `config` and in the tensors, which have canonical names.
    pub(super) fn install(
        self,
        config: &mut VitConfig,
        tensors: &mut HashMap<String, Tensor>,
    ) -> Result<()> {
        let reads = reads(config, self.weight.dim(D::Minus1)?)?;
        for leaf in ["weight", "bias"] {
            tensors.remove(&format!("distillation_classifier.{leaf}"));
        }
        let (weight, bias) = match (reads, self.bias) {
            (Head::ImageEmbedding { .. }, Some(_)) => {
                return refuse(
                    "class vectors take no bias, but the file has a tensor \"bias\"".into(),
                );
            }
            (Head::ImageEmbedding { .. }, None) => {
                let scale = Tensor::new(LOGIT_SCALE, self.weight.device())?;
                tensors.entry("logit_scale".into()).or_insert(scale);
                let length = self.weight.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
                (self.weight.broadcast_div(&length)?, None)
            }
            (_, Some(bias)) => (self.weight, Some(bias)),
            (_, None) => {
                let zeros = self.weight.narrow(1, 0, 1)?.squeeze(1)?.zeros_like()?;
                (self.weight, Some(zeros))
            }
        };
        tensors.insert("classifier.weight".into(), weight);
        match bias {
            Some(bias) => tensors.insert("classifier.bias".into(), bias),
            None => tensors.remove("classifier.bias"),
        };
        config.set_classes(self.labels);
        config.reads = reads;
        Ok(())
    }
}

/// Prepares `config` for a classifier, `[classes, width]`, without class names: the model's own names if their number
/// matches, otherwise `LABEL_0` and so on.
pub(super) fn announce(classifier: &Tensor, config: &mut VitConfig) -> Result<()> {
    let (n_classes, width) = classifier.dims2()?;
    if config.head().is_some() && config.n_classes() == n_classes {
        return Ok(());
    }
    config.reads = reads(config, width)?;
    config.set_classes(numbered(n_classes));
    Ok(())
}

/// The input of a classifier of this width.
fn reads(config: &VitConfig, width: usize) -> Result<Head> {
    let dim = config.hidden_size;
    match config.reads {
        Head::ImageEmbedding { projection_dim } if width == projection_dim => Ok(config.reads),
        Head::ImageEmbedding { projection_dim } => refuse(format!(
            "class vectors have {width} dimensions, but the model's image embedding has {projection_dim}"
        )),
        _ if width == dim => Ok(Head::ClassToken),
        _ if width == 2 * dim => Ok(Head::ClassTokenAndPatchMean),
        _ => refuse(format!(
            "the classifier reads {width} features, but the model has {dim} per token; {dim} (class token) and {} \
             (class token and mean of the patches) are supported",
            2 * dim
        )),
    }
}

/// A linear classifier on the features of a model.
#[derive(Clone, Debug)]
pub struct LinearHead {
    /// `[classes, width]`
    pub weight: Tensor,
    /// `[classes]`
    pub bias: Tensor,
    /// Names of the classes.
    pub labels: Vec<String>,
}

impl LinearHead {
    /// Returns the model with its classifier replaced by this one.
    pub(super) fn over(self, vit: &Vit) -> Result<Vit> {
        let (classes, width) = self.weight.dims2()?;
        let reads = match reads(vit.config(), width)? {
            Head::ImageEmbedding { .. } => {
                return refuse(
                    "CLIP classifies by class vectors and does not support a linear head".into(),
                );
            }
            reads => reads,
        };
        if self.bias.dims() != [classes] || self.labels.len() != classes {
            return refuse(format!(
                "the classifier has {classes} classes but {:?} biases and {} names",
                self.bias.dims(),
                self.labels.len()
            ));
        }
        let device = vit.device();
        let (weight, bias) = (self.weight.to_device(device)?, self.bias.to_device(device)?);
        Ok(vit.with_classifier(reads, weight, bias, self.labels))
    }

    /// Hash of the head's values, for the model whose weights hash to `backbone_sha256`.
    pub(super) fn sha256_over(&self, backbone_sha256: &str) -> Result<String> {
        let mut bytes = backbone_sha256.as_bytes().to_vec();
        for tensor in [&self.weight, &self.bias] {
            tensor.write_bytes(&mut bytes)?;
        }
        Ok(hex(Sha256::new_with_prefix(bytes)))
    }
}

/// Examples that a head was taught.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadExamples {
    /// Names of all classes, including those without an example.
    pub classes: Vec<String>,
    /// Features and class of each example, in the order in which they were added.
    pub examples: Vec<(Vec<f32>, usize)>,
}

/// The metadata `examples`.
#[derive(Serialize, Deserialize)]
struct ExamplesEntry {
    classes: Vec<String>,
    /// The class of each example.
    labels: Vec<usize>,
}

/// Fails if a head must not be written into `folder`, because it holds a model or parts trained for another head.
///
/// # Errors
/// [`Error::Model`] that names the conflicting file.
pub fn check_head_folder(folder: &Path) -> Result<()> {
    let mut others = OWN.iter().chain(&INPUT).chain(&[GATES, INTERPRETER]);
    match others.find(|file| folder.join(file).exists()) {
        Some(file) => refuse(format!(
            "a head needs a folder of its own, but this folder contains a {file}: {folder:?}"
        )),
        None => Ok(()),
    }
}

/// Reads the examples of the head in `folder`, for the model whose weights hash to `backbone_sha256`; `None` if the
/// folder has no head.
///
/// # Errors
/// [`Error::Model`] if the head is damaged, belongs to other weights or has no examples; [`Error::Io`] if it cannot be
/// read.
pub fn read_head(folder: &Path, backbone_sha256: &str) -> Result<Option<HeadExamples>> {
    let path = folder.join(HEAD);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    let read = || {
        let head = HeadFile::from_bytes(&bytes, &Device::Cpu)?;
        head.check_backbone(backbone_sha256)?;
        head.examples.map_or_else(
            || refuse("the head contains no examples, so it cannot be taught further".into()),
            Ok,
        )
    };
    let read = read().map_err(|error| Error::Model(format!("{error}: {path:?}")))?;
    Ok(Some(read))
}

/// Writes a taught head with its examples into `folder`, like [`save_head`]; overwrites an existing head.
///
/// # Errors
/// As [`save_head`].
pub fn save_taught_head(
    folder: &Path,
    head: &LinearHead,
    taught: &HeadExamples,
    backbone_sha256: &str,
) -> Result<()> {
    let width = head.weight.dim(1)?;
    let features: Vec<f32> = (taught.examples.iter())
        .flat_map(|(features, _)| features.iter().copied())
        .collect();
    let features = Tensor::from_vec(features, (taught.examples.len(), width), &Device::Cpu)?;
    let entry = ExamplesEntry {
        classes: taught.classes.clone(),
        labels: taught.examples.iter().map(|(_, class)| *class).collect(),
    };
    let extra = (features, json(&entry)?);
    write_head(
        folder,
        (&head.weight, &head.bias),
        &head.labels,
        backbone_sha256,
        Some(extra),
    )
}

/// Writes `head.safetensors` into `folder`, for the model whose weights hash to `backbone_sha256`.
///
/// # Shapes
/// - `weight`: `[classes, width]`
/// - `bias`: `[classes]`
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn save_head(
    folder: &Path,
    weight: &Tensor,
    bias: &Tensor,
    labels: &[String],
    backbone_sha256: &str,
) -> Result<()> {
    write_head(folder, (weight, bias), labels, backbone_sha256, None)
}

/// Writes a head. `examples` are the tensor of features and its metadata.
fn write_head(
    folder: &Path,
    (weight, bias): (&Tensor, &Tensor),
    labels: &[String],
    backbone_sha256: &str,
    examples: Option<(Tensor, String)>,
) -> Result<()> {
    let mut metadata = HashMap::from([
        (LABELS.to_owned(), json(&labels)?),
        (BACKBONE.to_owned(), backbone_sha256.to_owned()),
    ]);
    let mut tensors = vec![("weight", weight.clone()), ("bias", bias.clone())];
    if let Some((features, entry)) = examples {
        tensors.push((FEATURES, features));
        metadata.insert(EXAMPLES.to_owned(), entry);
    }
    let bytes =
        safetensors::serialize(tensors, Some(metadata)).map_err(|error| not_stored(&error))?;
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    write_whole(&folder.join(HEAD), &bytes)
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| not_stored(&error))
}

fn not_stored(reason: &dyn std::fmt::Display) -> Error {
    Error::Model(format!("the head cannot be written ({reason})"))
}

/// Reads the examples of a head of this width.
fn examples(
    metadata: &HashMap<String, String>,
    features: &Tensor,
    width: usize,
) -> Result<HeadExamples> {
    let text = metadata.get(EXAMPLES).map_or("", String::as_str);
    let ExamplesEntry { classes, labels } = serde_json::from_str(text).map_err(|error| {
        Error::Model(format!(
            "metadata {EXAMPLES:?} does not describe the examples ({error})"
        ))
    })?;
    if features.dims() != [labels.len(), width] {
        return refuse(format!(
            "tensor {FEATURES:?} has shape {:?}, expected [{}, {width}]",
            features.dims(),
            labels.len()
        ));
    }
    if let Some(label) = labels.iter().find(|label| **label >= classes.len()) {
        return refuse(format!(
            "metadata {EXAMPLES:?} has {} classes but an example of class {label}",
            classes.len()
        ));
    }
    let rows = features.to_vec2()?;
    Ok(HeadExamples {
        classes,
        examples: rows.into_iter().zip(labels).collect(),
    })
}

/// Converts the weights of a head's file to 8 bits, for a model whose weights hash to `backbone_sha256`.
pub(super) fn in_8_bits(bytes: &[u8], backbone_sha256: &str) -> Result<Vec<u8>> {
    let tensors = BTreeMap::from_iter(tensors_from_bytes(bytes, &Device::Cpu)?);
    let mut metadata = metadata(bytes)?;
    if let Some(stated) = metadata.get_mut(BACKBONE) {
        *stated = backbone_sha256.to_owned();
    }
    bytes_in_8_bits(&tensors, |_| true, metadata)
}

/// Default class names of transformers.
fn numbered(n_classes: usize) -> Vec<String> {
    (0..n_classes)
        .map(|class| format!("LABEL_{class}"))
        .collect()
}

/// Class names from the file's metadata, or `LABEL_0` and so on if there are none.
fn labels(metadata: &HashMap<String, String>, classes: usize) -> Result<Vec<String>> {
    let Some(text) = metadata.get(LABELS) else {
        return Ok(numbered(classes));
    };
    let labels: Vec<String> = serde_json::from_str(text).map_err(|error| {
        Error::Model(format!(
            "metadata {LABELS:?} is not a JSON list of names ({error})"
        ))
    })?;
    if labels.len() != classes {
        return refuse(format!(
            "metadata {LABELS:?} names {} classes, but \"weight\" has {classes}",
            labels.len()
        ));
    }
    Ok(labels)
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::Model(message))
}
