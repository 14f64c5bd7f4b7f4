//! The files of a model's folder, read and written.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::preprocessor::Preprocessor;
use super::weights::{Precision, bytes_from_tensors, sha256_hex};
use crate::files::write_whole;
use crate::vit::{VitConfig, names};
use crate::{Error, Result};

pub(super) const CONFIG: &str = "config.json";
pub(super) const PREPROCESSOR: &str = "preprocessor_config.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const GATES: &str = "gates.safetensors";
const GATE_CARD: &str = "gates.json";

type Bytes = Cow<'static, [u8]>;

/// What is in a model's folder, as it is in the files.
pub(super) struct Files {
    /// The folder, for messages.
    pub(super) origin: PathBuf,
    pub(super) config: Bytes,
    pub(super) preprocessor: Bytes,
    pub(super) weights: Bytes,
    /// Weights and card.
    pub(super) gates: Option<(Bytes, Bytes)>,
}

impl Files {
    /// Reads a folder. Gates may be absent, but not by half.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let config = required(folder, CONFIG, "")?;
        let preprocessor = required(
            folder,
            PREPROCESSOR,
            ", without which the size and scale of the model's input are unknown",
        )?;
        let weights = required(folder, WEIGHTS, weights_hint(folder))?;
        let gates = match (optional(folder, GATES)?, optional(folder, GATE_CARD)?) {
            (Some(gates), Some(card)) => Some((gates, card)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(missing(folder, GATE_CARD, &format!(", but {GATES}")));
            }
            (None, Some(_)) => {
                return Err(missing(folder, GATES, &format!(", but {GATE_CARD}")));
            }
        };
        Ok(Self {
            origin: folder.to_owned(),
            config,
            preprocessor,
            weights,
            gates,
        })
    }

    /// The text in `bytes`, which came from `file`.
    pub(super) fn text<'a>(&self, file: &str, bytes: &'a Bytes) -> Result<&'a str> {
        let text = std::str::from_utf8(bytes);
        text.map_err(|error| self.blame(file, Error::Model(format!("not UTF-8 text ({error})"))))
    }

    /// Says which file an error is about.
    pub(super) fn blame(&self, file: &str, error: Error) -> Error {
        Error::Model(format!("{error}: {:?}", self.origin.join(file)))
    }
}

fn optional(folder: &Path, file: &str) -> Result<Option<Bytes>> {
    let path = folder.join(file);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, error)),
    }
}

fn required(folder: &Path, file: &str, hint: &str) -> Result<Bytes> {
    optional(folder, file)?.ok_or_else(|| missing(folder, file, hint))
}

fn missing(folder: &Path, file: &str, hint: &str) -> Error {
    Error::Model(format!("model folder has no {file}{hint}: {folder:?}"))
}

/// What to do about weights in another form.
fn weights_hint(folder: &Path) -> &'static str {
    if folder.join("model.safetensors.index.json").exists() {
        ", only weights in several files, which are not supported"
    } else if folder.join("pytorch_model.bin").exists() {
        ", only pytorch_model.bin, which transformers can save as safetensors"
    } else {
        ""
    }
}

/// Writes `config.json`, `preprocessor_config.json` and `model.safetensors` into `folder`, which is
/// made if it is absent, and returns the hash of the weights.
///
/// `tensors` go by canonical names and are stored under those that `transformers` reads. Each file
/// appears whole or not at all.
///
/// # Errors
/// [`Error::Model`] if the tensors do not fit `config`; [`Error::Io`] if a file cannot be written.
pub fn save_folder(
    folder: &Path,
    config: &VitConfig,
    preprocessor: &Preprocessor,
    tensors: &HashMap<String, Tensor>,
    precision: Precision,
) -> Result<String> {
    config.validate()?;
    names::check(config, tensors)?;
    let published: BTreeMap<String, Tensor> = names::expected_shapes(config)
        .into_iter()
        .filter_map(|(name, _)| {
            let tensor = tensors.get(&name)?.clone();
            Some((names::published_name(config, &name), tensor))
        })
        .collect();
    let weights = bytes_from_tensors(&published, precision)?;
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    write_whole(&folder.join(CONFIG), config.to_json().as_bytes())?;
    write_whole(
        &folder.join(PREPROCESSOR),
        preprocessor.to_json().as_bytes(),
    )?;
    write_whole(&folder.join(WEIGHTS), &weights)?;
    Ok(sha256_hex(&weights))
}
