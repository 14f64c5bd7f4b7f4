//! Access to the gradient at a point of the graph.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{f32_slice, is_fused};

/// Passes a tensor through and stores its gradient.
///
/// candle drops the gradients of intermediate tensors. Adding a zero variable also preserves the gradient, but costs
/// three more passes over memory.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    gradient: Arc<Mutex<Option<Tensor>>>,
}

impl Watch {
    /// True if `xs` can be watched: part of a graph, f32 on the CPU.
    pub fn applies_to(xs: &Tensor) -> bool {
        is_fused(xs) && xs.track_op()
    }

    /// Returns `xs`, watched.
    ///
    /// # Errors
    /// Fails if the operation does not [apply](Self::applies_to).
    pub fn watch(&self, xs: &Tensor) -> Result<Tensor> {
        xs.contiguous()?.apply_op1(self.clone())
    }

    /// The gradient from the last backward pass, if one reached this point.
    pub fn gradient(&self) -> Option<Tensor> {
        let gradient = self.gradient.lock();
        gradient.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CustomOp1 for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = f32_slice(xs, layout)?.to_vec();
        Ok((CpuStorage::F32(xs), layout.shape().clone()))
    }

    fn bwd(&self, _xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        *gradient = Some(grad.clone());
        Ok(Some(grad.clone()))
    }
}
