//! A classifier of one's own, in a file beside the model: `head.safetensors`.
//!
//! It serves models that come without one (DINO, DINOv2, CLIP), and takes the place of one that is there.
//! The file holds `weight`, `[classes, width]`, and maybe `bias`, `[classes]`; in front of these names may
//! stand others and a dot, as in `linear.weight`. Its metadata may hold `labels`, the names of the classes
//! as a JSON list. The width says what is read:
//!
//! | width | reads |
//! |---|---|
//! | `dim` | the class token |
//! | 2 · `dim` | the class token, and behind it the mean of the patches |
//! | CLIP's `projection_dim` | the image embedding: each row is a class vector (of a text, or of pictures), whose length does not matter; there is no bias |

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, Device, Tensor};
use safetensors::tensor::SafeTensors;

use super::weights::tensors_from_bytes;
use crate::vit::{Head, VitConfig};
use crate::{Error, Result};

/// Field of the file's metadata.
const LABELS: &str = "labels";

/// The logarithm of the 100 at which CLIP's training holds the scale of its logits, for files without one.
const LOGIT_SCALE: f32 = 4.605_170_2;

/// A classifier in a file of its own.
pub(super) struct HeadFile {
    weight: Tensor,
    bias: Option<Tensor>,
    labels: Vec<String>,
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
        Ok(Self {
            labels: labels(bytes, classes)?,
            weight,
            bias,
        })
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

/// Names of the classes, from the file's metadata; `LABEL_0` and so on where it has none.
fn labels(bytes: &[u8], classes: usize) -> Result<Vec<String>> {
    let metadata = SafeTensors::read_metadata(bytes)
        .map_err(|error| Error::Model(format!("not a whole safetensors file ({error})")))?;
    let metadata = metadata.1.metadata().as_ref();
    let Some(text) = metadata.and_then(|metadata| metadata.get(LABELS)) else {
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
