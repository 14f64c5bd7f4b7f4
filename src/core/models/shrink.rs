//! Models with 8-bit weights, which take a quarter of the size of single precision.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Device;

use super::folder::{Files, GATES, HEAD, INTERPRETER, WEIGHTS};
use super::{Reference, files, head, open_files, read_weights};
use crate::vit::names;
use crate::weights::{
    bytes_in_8_bits, format_metadata, has_8_bits, sha256_hex, tensors_from_bytes, tensors_where,
};
use crate::{Error, Result};

/// The result of [`shrink`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shrunk {
    /// Hash of the new weights, as in [`Model`](super::Model).
    pub weights_sha256: String,
    /// Size of all files with weights before, in bytes.
    pub before: usize,
    /// Size of all files with weights in the new folder, in bytes.
    pub after: usize,
    /// Parts that were left out because they belong to the original weights.
    pub left_out: Vec<&'static str>,
}

/// Writes a model into a new folder with the weights of its blocks, patch embedding and classifier in 8 bits and the
/// rest in half precision. Configuration and preprocessing remain unchanged.
///
/// Gates, interpreter and familiarity are left out because they belong to the original weights. If the model's weights
/// are already in 8 bits, they remain unchanged, and its gates and interpreter are stored in 8 bits. The folder is
/// written atomically.
///
/// # Errors
/// As [`open`](super::open); [`Error::Model`] if the folder exists, or if nothing is left to shrink; [`Error::Io`] if
/// the folder cannot be written.
pub fn shrink<'a>(reference: impl Into<Reference<'a>>, folder: &Path) -> Result<Shrunk> {
    let reference = reference.into();
    if folder.symlink_metadata().is_ok() {
        return Err(Error::Model(format!(
            "output folder exists already: {folder:?}"
        )));
    }
    let whole = files(&reference)?;
    if whole.adapter.is_some() {
        return Err(Error::Model(format!(
            "the model has an adapter, but only complete weights can be shrunk; merge it with peft's \
             merge_and_unload: {:?}",
            reference.model
        )));
    }
    read_weights(&whole, &Device::Cpu)?;
    let before = whole.weight_bytes();
    let (shrunk, left_out) = if !has_8_bits(&whole.weights) {
        let parts = [
            whole.gates.as_ref().map(|_| "gates"),
            whole.interpreter.as_ref().map(|_| "interpreter"),
            whole.familiarity.as_ref().map(|_| "familiarity"),
        ];
        (with_small_weights(whole)?, parts)
    } else if whole.gates.is_some() || whole.interpreter.is_some() {
        (with_small_parts(whole)?, [None; 3])
    } else {
        return Err(Error::Model(format!(
            "the model's weights are 8-bit already: {:?}",
            reference.model
        )));
    };
    let shrunk = Files {
        origin: folder.to_owned(),
        additions: folder.to_owned(),
        ..shrunk
    };
    // Reads the result first, so that no unreadable folder is written.
    let weights_sha256 = open_files(reference.model, &shrunk, &Device::Cpu)?.weights_sha256;
    shrunk.write(folder)?;
    Ok(Shrunk {
        weights_sha256,
        before,
        after: shrunk.weight_bytes(),
        left_out: left_out.into_iter().flatten().collect(),
    })
}

/// Shrinks model and head, and leaves out the parts trained for them.
fn with_small_weights(whole: Files) -> Result<Files> {
    let weights = tensors_where(&whole.weights, &Device::Cpu, names::takes_part)
        .map(BTreeMap::from_iter)
        .and_then(|tensors| bytes_in_8_bits(&tensors, names::is_weight, format_metadata()))
        .map_err(|error| whole.blame(WEIGHTS, error))?;
    let backbone_sha256 = sha256_hex(&weights);
    let head = whole.head.as_ref().map(|head| {
        let head = head::in_8_bits(head, &backbone_sha256);
        head.map_err(|error| whole.blame(HEAD, error))
    });
    Ok(Files {
        head: head.transpose()?.map(Cow::Owned),
        weights: Cow::Owned(weights),
        gates: None,
        interpreter: None,
        familiarity: None,
        ..whole
    })
}

/// Shrinks gates and interpreter.
fn with_small_parts(whole: Files) -> Result<Files> {
    let small = |file, weights: &[u8]| {
        tensors_from_bytes(weights, &Device::Cpu)
            .map(BTreeMap::from_iter)
            .and_then(|tensors| bytes_in_8_bits(&tensors, |_| true, HashMap::new()))
            .map(Cow::Owned)
            .map_err(|error| whole.blame(file, error))
    };
    let gates = whole.gates.as_ref();
    let gates = gates.map(|(weights, card)| Ok::<_, Error>((small(GATES, weights)?, card.clone())));
    let interpreter = whole.interpreter.as_ref();
    let interpreter = interpreter
        .map(|(weights, card)| Ok::<_, Error>((small(INTERPRETER, weights)?, card.clone())));
    let (gates, interpreter) = (gates.transpose()?, interpreter.transpose()?);
    Ok(Files {
        gates,
        interpreter,
        ..whole
    })
}
