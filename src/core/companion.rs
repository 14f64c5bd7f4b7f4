//! Parts trained for a model and stored beside it: weights in a safetensors file, and a card with the same name.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::weights::tensors_from_bytes;

/// The card in `NAME.json`, which describes `NAME.safetensors`.
pub(crate) trait Card: Serialize + DeserializeOwned {
    /// Name of both files, also used in messages.
    const NAME: &'static str;

    /// Hash of the weights that the part was trained for, in hexadecimal.
    fn base_sha256(&self) -> &str;
}

/// Reads weights and card from the bytes of both files, for a model whose weights hash to `base_sha256`.
///
/// # Errors
/// [`Error::Model`] if either is damaged, or if they belong to other weights.
pub(crate) fn from_bytes<C: Card>(
    weights: &[u8],
    card: &[u8],
    base_sha256: &str,
    device: &Device,
) -> Result<(HashMap<String, Tensor>, C)> {
    let name = C::NAME;
    let card: C = serde_json::from_slice(card)
        .map_err(|err| Error::Model(format!("{name}.json is malformed: {err}")))?;
    if !card.base_sha256().eq_ignore_ascii_case(base_sha256) {
        return Err(Error::Model(format!(
            "{name}.safetensors was trained for weights with sha256 {:?}, but the model's weights have sha256 \
             {base_sha256:?}",
            card.base_sha256()
        )));
    }
    let tensors = tensors_from_bytes(weights, device)
        .map_err(|err| Error::Model(format!("{name}.safetensors is malformed: {err}")))?;
    Ok((tensors, card))
}

/// Reads the bytes of both files in a folder, weights first.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read.
pub(crate) fn read<C: Card>(folder: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let [weights, card] = files::<C>(folder);
    let read = |path: PathBuf| fs::read(&path).map_err(|err| Error::io(path, err));
    Ok((read(weights)?, read(card)?))
}

/// Paths of both files in a folder, weights first.
pub(crate) fn files<C: Card>(folder: &Path) -> [PathBuf; 2] {
    ["safetensors", "json"].map(|ending| folder.join(format!("{}.{ending}", C::NAME)))
}

/// Writes weights and card into a folder.
///
/// # Errors
/// [`Error::Io`] if a file cannot be written.
pub(crate) fn save<C: Card>(
    tensors: &BTreeMap<String, Tensor>,
    card: &C,
    folder: &Path,
) -> Result<()> {
    let name = C::NAME;
    let weights = safetensors::serialize(tensors, None)
        .map_err(|err| Error::Model(format!("{name} cannot be written: {err}")))?;
    let mut json = serde_json::to_string_pretty(card)
        .map_err(|err| Error::Model(format!("{name}.json cannot be written: {err}")))?;
    json.push('\n');
    let [weights_path, card_path] = files::<C>(folder);
    write_whole(&weights_path, &weights)?;
    write_whole(&card_path, json.as_bytes())
}
