//! Shared code of small networks over named tensors: initialization and error messages for tensors that do not fit.

use std::collections::HashMap;

use candle_core::{DType, Device, Result as TensorResult, Tensor};

use crate::error::{Error, Result};
use crate::rng::Rng;

/// Names and shapes of all tensors of a network, in the order of initialization.
pub(super) type Shapes = [(&'static str, Vec<usize>)];

/// Initial values of a layer, uniform in ±1/√inputs.
///
/// # Shapes
/// - `shape`: `[outputs, inputs]`
pub(super) fn uniform_by_inputs(
    shape: Vec<usize>,
    rng: &mut Rng,
    device: &Device,
) -> TensorResult<Tensor> {
    let bound = 1.0 / (shape[1] as f64).sqrt();
    let drawn = rng.uniform_tensor(shape, device)?;
    drawn.affine(2.0 * bound, -bound)
}

/// Fails if a tensor does not belong to the network, which `whose` names.
pub(super) fn check_names(
    whose: &str,
    shapes: &Shapes,
    tensors: &HashMap<String, Tensor>,
) -> Result<()> {
    let known = |name: &str| shapes.iter().any(|(known, _)| *known == name);
    match tensors.keys().filter(|name| !known(name)).min() {
        Some(name) => Err(Error::Model(format!(
            "unexpected tensor {name:?} in {whose}"
        ))),
        None => Ok(()),
    }
}

/// The tensor of this name in f32; fails if it is missing or has the wrong shape.
pub(super) fn tensor_of(
    name: &str,
    shapes: &Shapes,
    tensors: &HashMap<String, Tensor>,
) -> Result<Tensor> {
    let shape = shapes.iter().find(|(known, _)| *known == name);
    let shape = shape.map_or(&[][..], |(_, shape)| shape);
    let tensor = tensors
        .get(name)
        .ok_or_else(|| Error::Model(format!("gates lack tensor {name:?}")))?;
    if tensor.dims() != shape {
        return Err(Error::Model(format!(
            "gate tensor {name:?} has shape {:?}, but the model needs {shape:?}",
            tensor.dims()
        )));
    }
    Ok(tensor.to_dtype(DType::F32)?)
}
