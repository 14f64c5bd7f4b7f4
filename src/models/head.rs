//! A classifier of one's own, in a file beside the model: `head.safetensors`.
//!
//! It serves models that come without one (DINO, DINOv2, CLIP), and takes the place of one that is there.
//! The file holds `weight`, `[classes, width]`, and maybe `bias`, `[classes]`; in front of these names may
//! stand others and a dot, as in `linear.weight`. Its metadata may hold `labels`, the names of the classes
//! as a JSON list, and `backbone_sha256`, the hash of the `model.safetensors` that it was trained for: over
//! another it is refused. The width says what is read:
//!
//! | width | reads |
//! |---|---|
//! | `dim` | the class token |
//! | 2 · `dim` | the class token, and behind it the mean of the patches |
//! | CLIP's `projection_dim` | the image embedding: each row is a class vector (of a text, or of pictures), whose length does not matter; there is no bias |

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use safetensors::tensor::SafeTensors;

use super::folder::HEAD;
use crate::files::write_whole;
use crate::vit::{Head, VitConfig};
use crate::weights::{bytes_in_8_bits, tensors_from_bytes};
use crate::{Error, Result};

/// Fields of the file's metadata.
const LABELS: &str = "labels";
const BACKBONE: &str = "backbone_sha256";

/// The logarithm of the 100 at which CLIP's training holds the scale of its logits, for files without one.
const LOGIT_SCALE: f32 = 4.605_170_2;

/// A classifier in a file of its own.
pub(super) struct HeadFile {
    weight: Tensor,
    bias: Option<Tensor>,
    labels: Vec<String>,
    backbone_sha256: Option<String>,
}

impl HeadFile {
    pub(super) fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self> {
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        // In order, so that of several errors always the same one is told.
        let found = BTreeMap::from_iter(tensors_from_bytes(bytes, device)?);
        for (name, tensor) in found {
            let leaf = name.rsplit('.').next().unwrap_or_default();
            if !matches!(leaf, "weight" | "bias") || tensors.insert(leaf.into(), tensor).is_some() {
                return refuse(format!(
                    "tensor {name:?} is none of one weight and one bias"
                ));
            }
        }
        let Some(weight) = tensors.remove("weight") else {
            return refuse("tensor \"weight\" is missing".into());
        };
        let &[classes, _] = weight.dims() else {
            return refuse(format!(
                "tensor \"weight\" has shape {:?}, not [classes, width]",
                weight.dims()
            ));
        };
        let bias = tensors.remove("bias");
        if let Some(bias) = &bias
            && bias.dims() != [classes]
        {
            return refuse(format!(
                "tensor \"bias\" has shape {:?}, and \"weight\" has {classes} classes",
                bias.dims()
            ));
        }
        let metadata = metadata(bytes)?;
        Ok(Self {
            labels: labels(&metadata, classes)?,
            backbone_sha256: metadata.get(BACKBONE).cloned(),
            weight,
            bias,
        })
    }

    /// Fails where it was trained for other weights.
    pub(super) fn check_backbone(&self, weights_sha256: &str) -> Result<()> {
        match &self.backbone_sha256 {
            Some(expected) if !expected.eq_ignore_ascii_case(weights_sha256) => refuse(format!(
                "the head belongs to weights with sha256 {expected:?}, the model's have {weights_sha256:?}"
            )),
            _ => Ok(()),
        }
    }

    /// Puts the classifier into a model, by `config` and tensors of canonical names.
    pub(super) fn install(
        self,
        config: &mut VitConfig,
        tensors: &mut HashMap<String, Tensor>,
    ) -> Result<()> {
        let (dim, width) = (config.hidden_size, self.weight.dim(D::Minus1)?);
        let reads = match config.reads {
            Head::ImageEmbedding { projection_dim } if width == projection_dim => config.reads,
            Head::ImageEmbedding { projection_dim } => {
                return refuse(format!(
                    "class vectors have {width} numbers, and the model's image embedding has {projection_dim}"
                ));
            }
            _ if width == dim => Head::ClassToken,
            _ if width == 2 * dim => Head::ClassTokenAndPatchMean,
            _ => {
                return refuse(format!(
                    "the classifier reads {width} features, and the model has {dim} a token: {dim} (class token) and \
                     {} (and mean of the patches) are supported",
                    2 * dim
                ));
            }
        };
        for leaf in ["weight", "bias"] {
            tensors.remove(&format!("distillation_classifier.{leaf}"));
        }
        let (weight, bias) = match (reads, self.bias) {
            (Head::ImageEmbedding { .. }, Some(_)) => {
                return refuse("class vectors have no bias, and there is a tensor \"bias\"".into());
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
        config.labels = self.labels;
        config.reads = reads;
        Ok(())
    }
}

/// Writes `head.safetensors` into `folder`, for the model whose weights hash to `backbone_sha256`.
///
/// # Shapes
/// - `weight`: `[classes, width]`
/// - `bias`: `[classes]`
///
/// # Errors
/// [`Error::Io`] where the file cannot be written.
pub fn save_head(
    folder: &Path,
    weight: &Tensor,
    bias: &Tensor,
    labels: &[String],
    backbone_sha256: &str,
) -> Result<()> {
    let invalid = |reason: String| Error::Model(format!("the head cannot be stored ({reason})"));
    let labels = serde_json::to_string(labels).map_err(|error| invalid(error.to_string()))?;
    let metadata = HashMap::from([
        (LABELS.to_owned(), labels),
        (BACKBONE.to_owned(), backbone_sha256.to_owned()),
    ]);
    let tensors = [("weight", weight), ("bias", bias)];
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .map_err(|error| invalid(error.to_string()))?;
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    write_whole(&folder.join(HEAD), &bytes)
}

/// A head's file with its weights in 8 bits, for a model whose weights hash to `backbone_sha256`.
pub(super) fn in_8_bits(bytes: &[u8], backbone_sha256: &str) -> Result<Vec<u8>> {
    let tensors = BTreeMap::from_iter(tensors_from_bytes(bytes, &Device::Cpu)?);
    let mut metadata = metadata(bytes)?;
    if let Some(stated) = metadata.get_mut(BACKBONE) {
        *stated = backbone_sha256.to_owned();
    }
    bytes_in_8_bits(&tensors, |_| true, metadata)
}

/// What the file says beside its tensors.
fn metadata(bytes: &[u8]) -> Result<HashMap<String, String>> {
    let (_, header) = SafeTensors::read_metadata(bytes)
        .map_err(|error| Error::Model(format!("not a whole safetensors file ({error})")))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

/// Names of the classes, from the file's metadata; `LABEL_0` and so on where it has none.
fn labels(metadata: &HashMap<String, String>, classes: usize) -> Result<Vec<String>> {
    let Some(text) = metadata.get(LABELS) else {
        return Ok((0..classes).map(|class| format!("LABEL_{class}")).collect());
    };
    let labels: Vec<String> = serde_json::from_str(text).map_err(|error| {
        Error::Model(format!(
            "metadata {LABELS:?} is not a JSON list of names ({error})"
        ))
    })?;
    if labels.len() != classes {
        return refuse(format!(
            "metadata {LABELS:?} names {} classes, and \"weight\" has {classes}",
            labels.len()
        ));
    }
    Ok(labels)
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::Model(message))
}
