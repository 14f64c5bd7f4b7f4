//! Reads and writes the files of a model's folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::preprocessor::Preprocessor;
use crate::files::{part_path, write_whole};
use crate::vit::fields::{self, Fields};
use crate::vit::{VitConfig, names};
use crate::weights::{Precision, bytes_from_tensors, sha256_hex};
use crate::{Error, Result};

pub(super) const CONFIG: &str = "config.json";
pub(super) const PREPROCESSOR: &str = "preprocessor_config.json";
/// Written by transformers 5 beside or instead of [`PREPROCESSOR`]; takes precedence when read.
const PROCESSOR: &str = "processor_config.json";
/// The field of [`PROCESSOR`] with the contents of [`PREPROCESSOR`].
const IMAGE_PROCESSOR: &str = "image_processor";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const GATES: &str = "gates.safetensors";
const GATE_CARD: &str = "gates.json";
pub(super) const INTERPRETER: &str = "interpreter.safetensors";
const INTERPRETER_CARD: &str = "interpreter.json";
pub(super) const FAMILIARITY: &str = "familiarity.safetensors";
pub(super) const HEAD: &str = "head.safetensors";
pub(super) const ADAPTER: &str = "adapter_model.safetensors";
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Files that only a complete model has.
pub(super) const OWN: [&str; 2] = [CONFIG, WEIGHTS];
/// Files that describe the preprocessing. A head trained at another input size has its own.
pub(super) const INPUT: [&str; 2] = [PROCESSOR, PREPROCESSOR];

/// All files that are read; the weights are last.
#[cfg(feature = "hub")]
pub(super) const ALL: [&str; 12] = [
    CONFIG,
    PROCESSOR,
    PREPROCESSOR,
    ADAPTER_CONFIG,
    ADAPTER,
    GATE_CARD,
    GATES,
    INTERPRETER_CARD,
    INTERPRETER,
    FAMILIARITY,
    HEAD,
    WEIGHTS,
];

type Bytes = Cow<'static, [u8]>;

/// Contents of the files in a model's folder.
pub(super) struct Files {
    /// The folder, for messages.
    pub(super) origin: PathBuf,
    pub(super) config: Bytes,
    pub(super) preprocessor: Bytes,
    /// File name and folder of the preprocessor, for messages.
    pub(super) preprocessor_file: &'static str,
    pub(super) preprocessor_folder: PathBuf,
    pub(super) weights: Bytes,
    /// Weights and configuration of an adapter for the weights, and its folder, for messages.
    pub(super) adapter: Option<(Bytes, Bytes)>,
    pub(super) adapter_folder: PathBuf,
    /// Folder of the parts trained for the model, for messages.
    pub(super) additions: PathBuf,
    /// A separate classifier.
    pub(super) head: Option<Bytes>,
    /// Weights and card.
    pub(super) gates: Option<(Bytes, Bytes)>,
    /// Weights and card of gates that belong to the backbone of a head.
    pub(super) backbone_gates: Option<(Bytes, Bytes)>,
    /// Weights and card.
    pub(super) interpreter: Option<(Bytes, Bytes)>,
    /// Statistics of familiar pictures.
    pub(super) familiarity: Option<Bytes>,
}

impl Files {
    /// Reads a folder. Head, gates and interpreter are optional; gates and interpreter need both of their files.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        if folder.join(HEAD).exists() && !OWN.iter().any(|file| folder.join(file).exists()) {
            return Err(Error::Model(format!(
                "model folder contains only a head; pass the model that the head was made for as its backbone: \
                 {folder:?}"
            )));
        }
        if folder.join(ADAPTER_CONFIG).exists() && !folder.join(CONFIG).exists() {
            return Err(Error::Model(format!(
                "model folder contains only an adapter; pass the model that the adapter was trained for as its \
                 backbone: \
                 {folder:?}"
            )));
        }
        let config = required(folder, CONFIG, "")?;
        let (preprocessor_file, preprocessor) = match preprocessor(folder)? {
            Some(found) => found,
            None => return Err(no_preprocessor(folder, &config)),
        };
        let hint = weights_elsewhere(WEIGHTS, |file| folder.join(file).exists());
        let weights = required(folder, WEIGHTS, hint)?;
        let files = Self {
            origin: folder.to_owned(),
            config,
            preprocessor,
            preprocessor_file,
            preprocessor_folder: folder.to_owned(),
            weights,
            adapter: pair(folder, ADAPTER, ADAPTER_CONFIG)?,
            adapter_folder: folder.to_owned(),
            additions: PathBuf::new(),
            head: None,
            gates: None,
            backbone_gates: None,
            interpreter: None,
            familiarity: optional(folder, FAMILIARITY)?,
        };
        files.with_additions(folder)
    }

    /// The same model with the adapter, head, gates and interpreter of `folder`, which has no model of its own. Its
    /// preprocessing takes precedence over the model's.
    pub(super) fn under(self, folder: &Path) -> Result<Self> {
        if let Some(file) = OWN.into_iter().find(|file| folder.join(file).exists()) {
            return Err(Error::Model(format!(
                "model folder has its own {file} and cannot be combined with a backbone: {folder:?}"
            )));
        }
        // If the backbone has its own head, its gates belong to that head.
        let gates = self.gates.clone().filter(|_| self.head.is_none());
        let adapter = pair(folder, ADAPTER, ADAPTER_CONFIG)?;
        if adapter.is_some() && self.adapter.is_some() {
            return Err(Error::Model(format!(
                "the backbone already has an adapter, and only one is supported: {folder:?}"
            )));
        }
        let mut files = self.with_additions(folder)?;
        if adapter.is_some() {
            // Statistics of the original weights do not apply to the adapted ones.
            files.familiarity = None;
            files.adapter = adapter;
            files.adapter_folder = folder.to_owned();
        }
        if let Some((file, bytes)) = preprocessor(folder)? {
            files.preprocessor = bytes;
            files.preprocessor_file = file;
            files.preprocessor_folder = folder.to_owned();
        }
        let is_adapted = files.is_adapted();
        let has_parts = files.gates.is_some() || files.interpreter.is_some();
        if files.head.is_none() && !has_parts && !is_adapted {
            return Err(missing(
                folder,
                HEAD,
                &format!(", no {ADAPTER}, no {GATES} and no {INTERPRETER}"),
            ));
        }
        let has_own_gates = files.gates.is_some();
        let backbone_gates =
            gates.filter(|_| !has_own_gates && !is_adapted && files.head.is_some());
        Ok(Self {
            backbone_gates,
            ..files
        })
    }

    /// Whether an adapter from another folder changes the model, so that statements in its configuration about
    /// predictions do not hold.
    pub(super) fn is_adapted(&self) -> bool {
        self.adapter.is_some() && self.adapter_folder != self.origin
    }

    fn with_additions(self, folder: &Path) -> Result<Self> {
        Ok(Self {
            additions: folder.to_owned(),
            head: optional(folder, HEAD)?,
            gates: pair(folder, GATES, GATE_CARD)?,
            interpreter: pair(folder, INTERPRETER, INTERPRETER_CARD)?,
            ..self
        })
    }

    /// All present files, by name.
    fn all(&self) -> impl Iterator<Item = (&'static str, &Bytes)> {
        let required = [
            (CONFIG, &self.config),
            (PREPROCESSOR, &self.preprocessor),
            (WEIGHTS, &self.weights),
        ];
        let head = self.head.iter().map(|head| (HEAD, head));
        let familiarity = self.familiarity.iter();
        let familiarity = familiarity.map(|familiarity| (FAMILIARITY, familiarity));
        let gates = self.gates.iter();
        let gates = gates.flat_map(|(weights, card)| [(GATES, weights), (GATE_CARD, card)]);
        let interpreter = self.interpreter.iter();
        let interpreter = interpreter
            .flat_map(|(weights, card)| [(INTERPRETER, weights), (INTERPRETER_CARD, card)]);
        required
            .into_iter()
            .chain(head)
            .chain(gates)
            .chain(interpreter)
            .chain(familiarity)
    }

    /// Total size of all files with weights, in bytes.
    pub(super) fn weight_bytes(&self) -> usize {
        let of_weights = self
            .all()
            .filter(|(file, _)| file.ends_with(".safetensors"));
        of_weights.map(|(_, bytes)| bytes.len()).sum()
    }

    /// Writes all files into a new folder atomically.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let part = part_path(folder);
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        }
        fs::create_dir(&part).map_err(|error| Error::io(&part, error))?;
        let write = || {
            for (file, bytes) in self.all() {
                write_whole(&part.join(file), bytes)?;
            }
            fs::rename(&part, folder).map_err(|error| Error::io(folder, error))
        };
        write().inspect_err(|_| {
            // The error gives the reason; failing to remove the partial folder changes nothing.
            let _ = fs::remove_dir_all(&part);
        })
    }

    /// The text in `bytes`, read from `file`.
    pub(super) fn text<'a>(&self, file: &str, bytes: &'a Bytes) -> Result<&'a str> {
        text(bytes).map_err(|error| self.blame(file, error))
    }

    /// Adds the path of the file to an error.
    pub(super) fn blame(&self, file: &str, error: Error) -> Error {
        let folder = match file {
            HEAD | GATES | INTERPRETER => &self.additions,
            ADAPTER | ADAPTER_CONFIG => &self.adapter_folder,
            PROCESSOR | PREPROCESSOR => &self.preprocessor_folder,
            _ => &self.origin,
        };
        blamed(folder, file, &error)
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

/// Weights and card; both or neither must exist.
fn pair(folder: &Path, weights: &str, card: &str) -> Result<Option<(Bytes, Bytes)>> {
    match (optional(folder, weights)?, optional(folder, card)?) {
        (Some(weights), Some(card)) => Ok(Some((weights, card))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(missing(folder, card, &format!(", but it has {weights}"))),
        (None, Some(_)) => Err(missing(folder, weights, &format!(", but it has {card}"))),
    }
}

/// The first missing file that a model requires.
#[cfg(feature = "hub")]
pub(super) fn first_missing(exists: impl Fn(&str) -> bool) -> Option<&'static str> {
    if !exists(CONFIG) {
        Some(CONFIG)
    } else if !exists(PREPROCESSOR) && !exists(PROCESSOR) {
        Some(PREPROCESSOR)
    } else {
        (!exists(WEIGHTS)).then_some(WEIGHTS)
    }
}

/// Fails if a `config.json` does not describe a supported model.
pub(super) fn check_config(bytes: &[u8]) -> Result<()> {
    let text = text(bytes)?;
    VitConfig::from_json(text).map(|_| ())
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| Error::Model(format!("not UTF-8 text ({error})")))
}

/// The preprocessor's configuration and file name; `None` if there is none. As in transformers 5, the processor's file
/// takes precedence over that of the image processor.
fn preprocessor(folder: &Path) -> Result<Option<(&'static str, Bytes)>> {
    if let Some(bytes) = optional(folder, PROCESSOR)? {
        let root = text(&bytes).and_then(fields::parse);
        let root = root.map_err(|error| blamed(folder, PROCESSOR, &error))?;
        if let Some(processor) = Fields(&root).value(IMAGE_PROCESSOR) {
            let bytes = processor.to_string().into_bytes();
            return Ok(Some((PROCESSOR, Cow::Owned(bytes))));
        }
    }
    let bytes = optional(folder, PREPROCESSOR)?;
    Ok(bytes.map(|bytes| (PREPROCESSOR, bytes)))
}

/// An error with the path of the file that it is about.
pub(super) fn blamed(folder: &Path, file: &str, error: &Error) -> Error {
    Error::Model(format!("{error}: {:?}", folder.join(file)))
}

fn no_preprocessor(folder: &Path, config: &[u8]) -> Error {
    // If the model is not of a supported kind, that is the more accurate error.
    if let Err(error) = check_config(config) {
        return blamed(folder, CONFIG, &error);
    }
    let hint = format!(
        " and no {IMAGE_PROCESSOR:?} in a {PROCESSOR}, so the size and scale of the model's input are unknown"
    );
    missing(folder, PREPROCESSOR, &hint)
}

fn required(folder: &Path, file: &str, hint: &str) -> Result<Bytes> {
    optional(folder, file)?.ok_or_else(|| missing(folder, file, hint))
}

fn missing(folder: &Path, file: &str, hint: &str) -> Error {
    Error::Model(format!("model folder has no {file}{hint}: {folder:?}"))
}

/// Hint about weights in another format, if the `missing` file is the supported one.
pub(super) fn weights_elsewhere(missing: &str, exists: impl Fn(&str) -> bool) -> &'static str {
    if missing != WEIGHTS {
        ""
    } else if exists("model.safetensors.index.json") {
        ", only weights sharded over several files, which are not supported"
    } else if exists("pytorch_model.bin") {
        ", only pytorch_model.bin, which transformers can convert to safetensors"
    } else {
        ""
    }
}

/// Writes `config.json`, `preprocessor_config.json` and `model.safetensors` into `folder`, and returns the hash of the
/// weights. Creates the folder if it does not exist.
///
/// `tensors` have canonical names and are stored under the names that `transformers` reads. Each file is written
/// atomically.
///
/// # Errors
/// [`Error::Model`] if the tensors do not fit `config`, or if its family can only be read; [`Error::Io`] if a
/// file cannot be written.
pub fn save_folder(
    folder: &Path,
    config: &VitConfig,
    preprocessor: &Preprocessor,
    tensors: &HashMap<String, Tensor>,
    precision: Precision,
) -> Result<String> {
    config.validate()?;
    config.family.check_saved()?;
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
    save_preprocessor(folder, preprocessor)?;
    write_whole(&folder.join(WEIGHTS), &weights)?;
    Ok(sha256_hex(&weights))
}

/// Writes `preprocessor_config.json` into an existing `folder` of a model, or of a head trained at another input size
/// than its backbone.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn save_preprocessor(folder: &Path, preprocessor: &Preprocessor) -> Result<()> {
    write_whole(
        &folder.join(PREPROCESSOR),
        preprocessor.to_json()?.as_bytes(),
    )
}
