//! Tensors in and out of safetensors files.
//!
//! Reading takes bytes, so that embedded models and folders go the same way, and brings every float
//! type to f32. What the file claims is checked against what it holds before a tensor is made.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Half precision, 2 bytes a weight.
    F16,
    /// Single precision, 4 bytes a weight.
    F32,
}

/// Reads a safetensors file; every tensor becomes f32 on `device`.
///
/// # Errors
/// [`Error::Model`] if the file is truncated or lies about its contents, or if a tensor is not of
/// floating point or holds a value that is not finite.
pub fn tensors_from_bytes(bytes: &[u8], device: &Device) -> Result<HashMap<String, Tensor>> {
    tensors_where(bytes, device, |_| true)
}

/// The same for tensors of some names only.
pub(super) fn tensors_where(
    bytes: &[u8],
    device: &Device,
    wanted: impl Fn(&str) -> bool,
) -> Result<HashMap<String, Tensor>> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| Error::Model(format!("not a whole safetensors file ({error})")))?;
    let views = file.tensors().into_iter();
    views
        .filter(|(name, _)| wanted(name))
        .map(|(name, view)| {
            let tensor = f32_from_view(&name, &view)?.to_device(device)?;
            Ok((name, tensor))
        })
        .collect()
}

fn f32_from_view(name: &str, view: &TensorView) -> Result<Tensor> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F64 => DType::F64,
        other => {
            return Err(Error::Model(format!(
                "tensor {name:?} is of type {other:?}, supported are F32, F16, BF16 and F64"
            )));
        }
    };
    let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
    let tensor = tensor.to_dtype(DType::F32)?;
    // One infinite or undefined weight makes the sum so; a sum of finite weights cannot overflow
    // unless they are as useless.
    if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Err(Error::Model(format!(
            "tensor {name:?} holds values that are not finite"
        )));
    }
    Ok(tensor)
}

/// The bytes of a safetensors file; equal tensors give equal bytes.
///
/// # Errors
/// Fails where candle cannot convert a tensor.
pub fn bytes_from_tensors(
    tensors: &BTreeMap<String, Tensor>,
    precision: Precision,
) -> Result<Vec<u8>> {
    let (dtype, stored) = match precision {
        Precision::F16 => (DType::F16, Dtype::F16),
        Precision::F32 => (DType::F32, Dtype::F32),
    };
    let mut parts = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let mut bytes = Vec::with_capacity(tensor.elem_count() * dtype.size_in_bytes());
        tensor.to_dtype(dtype)?.write_bytes(&mut bytes)?;
        parts.push((name, tensor.dims(), bytes));
    }
    let invalid = |error| Error::Model(format!("weights cannot be stored ({error})"));
    let mut views = Vec::with_capacity(parts.len());
    for (name, dims, bytes) in &parts {
        let view = TensorView::new(stored, dims.to_vec(), bytes).map_err(invalid)?;
        views.push((name.as_str(), view));
    }
    // transformers wants to be told which framework's layout the tensors have.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(format)).map_err(invalid)
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// SHA-256 of `bytes`, and of `bytes` with `more` behind them; `bytes` are read once.
pub(super) fn sha256_hex_and_with(bytes: &[u8], more: &[u8]) -> (String, String) {
    let digest = Sha256::new_with_prefix(bytes);
    (hex(digest.clone()), hex(digest.chain_update(more)))
}

pub(super) fn hex(digest: Sha256) -> String {
    let digest = digest.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> BTreeMap<String, Tensor> {
        let tensor = Tensor::arange(0f32, 6., &Device::Cpu).unwrap();
        BTreeMap::from([("ramp".to_owned(), tensor.reshape((2, 3)).unwrap())])
    }

    fn check_refused(bytes: &[u8], expected: &str) {
        let error = tensors_from_bytes(bytes, &Device::Cpu).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length, header.as_bytes(), data].concat()
    }

    #[test]
    fn both_precisions_read_back_as_f32() {
        for precision in [Precision::F16, Precision::F32] {
            let bytes = bytes_from_tensors(&ramp(), precision).unwrap();
            let read = tensors_from_bytes(&bytes, &Device::Cpu).unwrap();
            let values: Vec<Vec<f32>> = read["ramp"].to_vec2().unwrap();
            assert_eq!(values, [[0., 1., 2.], [3., 4., 5.]]);
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = bytes_from_tensors(&ramp(), Precision::F32).unwrap();
        for end in 0..bytes.len() {
            check_refused(&bytes[..end], "not a whole safetensors file");
        }
    }

    #[test]
    fn a_file_that_lies_is_refused() {
        let claim = |info: &str| file(&format!("{{\"x\":{info}}}"), &[0; 8]);
        let lies = [
            r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#,
            r#"{"dtype":"F32","shape":[2],"data_offsets":[0,16]}"#,
            r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#,
            r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}"#,
            r#"{"dtype":"F77","shape":[2],"data_offsets":[0,8]}"#,
            "7",
        ];
        for lie in lies {
            check_refused(&claim(lie), "not a whole safetensors file");
        }
        check_refused(&[0xff; 64], "not a whole safetensors file");
        check_refused(
            &claim(r#"{"dtype":"I64","shape":[1],"data_offsets":[0,8]}"#),
            "\"x\" is of type I64",
        );
    }

    #[test]
    fn weights_that_are_not_finite_are_refused_by_name() {
        let header = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let data = [f32::NAN.to_le_bytes(), 1f32.to_le_bytes()].concat();
        check_refused(
            &file(header, &data),
            "\"x\" holds values that are not finite",
        );
    }

    #[test]
    fn the_digest_is_the_published_one() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), expected);
        let (of_first, of_both) = sha256_hex_and_with(b"a", b"bc");
        assert_eq!((of_first, of_both), (sha256_hex(b"a"), expected.to_owned()));
    }
}
