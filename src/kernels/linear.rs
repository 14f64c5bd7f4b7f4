//! Matrix product with bias: `xs · weightᵀ + bias`.
//!
//! A frozen weight gets no gradient: only operands that candle tracks are differentiated, which for a
//! frozen model halves the backward pass. It is packed once, when it is first used.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::packed::{Packed, Strides};
use super::{
    Into, MatrixView, add_assign, all_threads, column_sums, f32_slice, gelu, is_fused, matmul,
    with_f32,
};

/// `xs · weightᵀ + bias`.
///
/// # Shapes
/// - `xs`: `[.., in]`
/// - `weight`: `[out, in]`
/// - `bias`: `[out]`
/// - result: `[.., out]`
///
/// # Errors
/// Fails where the shapes do not fit each other.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Linear::new(weight.clone(), bias.clone()).forward(xs)
}

/// A weight with its bias, to be multiplied with many times.
///
/// The values of a frozen weight, which is one that candle does not track, must not change any more.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    packs: Option<Arc<Packs>>,
}

impl Linear {
    /// A linear map.
    ///
    /// # Shapes
    /// - `weight`: `[out, in]`
    /// - `bias`: `[out]`
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        let packs = (!weight.track_op()).then(Arc::default);
        Self {
            weight,
            bias,
            packs,
        }
    }

    /// `xs · weightᵀ + bias`.
    ///
    /// # Shapes
    /// - `xs`: `[.., in]`
    /// - result: `[.., out]`
    ///
    /// # Errors
    /// Fails where the shapes do not fit each other.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.check(xs)?;
        if !is_fused(xs) {
            return xs
                .broadcast_matmul(&self.weight.t()?)?
                .broadcast_add(&self.bias);
        }
        if self.needs_no_graph(xs) {
            return self.forward_untracked(xs, |_, _, _| ());
        }
        let op = Product {
            packs: self.packs.clone(),
        };
        xs.contiguous()?
            .apply_op3(&self.weight.contiguous()?, &self.bias.contiguous()?, op)
    }

    /// `gelu(xs · weightᵀ + bias)`, at once where nothing is differentiated.
    ///
    /// # Shapes
    /// - `xs`: `[.., in]`
    /// - result: `[.., out]`
    ///
    /// # Errors
    /// Fails where the shapes do not fit each other.
    pub fn forward_gelu(&self, xs: &Tensor) -> Result<Tensor> {
        if self.needs_no_graph(xs) {
            self.check(xs)?;
            return self.forward_untracked(xs, |_, _, piece| gelu::in_place(piece));
        }
        super::gelu(&self.forward(xs)?)
    }

    /// `residual + xs · weightᵀ + bias`, at once where nothing is differentiated.
    ///
    /// # Shapes
    /// - `xs`: `[.., in]`
    /// - `residual`: `[.., out]`; the result has the same
    ///
    /// # Errors
    /// Fails where the shapes do not fit each other.
    pub fn forward_add(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if self.needs_no_graph(xs) && !residual.track_op() {
            self.check(xs)?;
            let out_dim = self.bias.elem_count();
            if residual.dims() == output_dims(xs.dims(), out_dim) {
                return with_f32(residual, |residual| {
                    self.forward_untracked(xs, |row, first_col, piece| {
                        let start = row * out_dim + first_col;
                        add_assign(piece, &residual[start..start + piece.len()]);
                    })
                });
            }
        }
        residual + self.forward(xs)?
    }

    fn check(&self, xs: &Tensor) -> Result<()> {
        let (out_dim, in_dim) = self.weight.dims2()?;
        if xs.dims().last() != Some(&in_dim) || self.bias.dims() != [out_dim] {
            candle_core::bail!(
                "linear: xs {:?}, weight {:?} and bias {:?} do not fit",
                xs.shape(),
                self.weight.shape(),
                self.bias.shape()
            );
        }
        Ok(())
    }

    /// True where the fused product applies and nothing is differentiated.
    fn needs_no_graph(&self, xs: &Tensor) -> bool {
        is_fused(xs) && !(xs.track_op() || self.weight.track_op() || self.bias.track_op())
    }

    /// The product without a graph, `finish` applied to every piece of a row.
    fn forward_untracked(
        &self,
        xs: &Tensor,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Result<Tensor> {
        let weight_dims = self.weight.dims2()?;
        let packs = self.packs.as_deref();
        let dims = output_dims(xs.dims(), weight_dims.0);
        let mut ys = vec![0f32; dims.iter().product()];
        with_f32(xs, |xs| {
            with_f32(&self.weight, |weight| {
                with_f32(&self.bias, |bias| {
                    with_packed(packs, Side::Forward, weight, weight_dims, |packed| {
                        packed.multiply(xs, Some(bias), &mut ys, finish);
                    });
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(ys, dims, xs.device())
    }
}

/// The shape of the result for inputs of this shape.
fn output_dims(xs_dims: &[usize], out_dim: usize) -> Vec<usize> {
    let mut dims = xs_dims.to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out_dim;
    }
    dims
}

/// A weight as both passes want it.
#[derive(Default)]
struct Packs {
    forward: OnceLock<Packed>,
    backward: OnceLock<Packed>,
}

impl std::fmt::Debug for Packs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packs")
    }
}

/// Which product a weight is packed for: with the inputs, or with the gradient of the outputs.
#[derive(Clone, Copy)]
enum Side {
    Forward,
    Backward,
}

/// Calls `work` with the packed weight, which is kept in `packs` where there are any.
fn with_packed<T>(
    packs: Option<&Packs>,
    side: Side,
    weight: &[f32],
    (out_dim, in_dim): (usize, usize),
    work: impl FnOnce(&Packed) -> T,
) -> T {
    let pack = || match side {
        Side::Forward => Packed::new(
            weight,
            (in_dim, out_dim),
            Strides {
                depth: 1,
                col: in_dim,
            },
        ),
        Side::Backward => Packed::new(
            weight,
            (out_dim, in_dim),
            Strides {
                depth: in_dim,
                col: 1,
            },
        ),
    };
    match (packs, side) {
        (None, _) => work(&pack()),
        (Some(packs), Side::Forward) => work(packs.forward.get_or_init(pack)),
        (Some(packs), Side::Backward) => work(packs.backward.get_or_init(pack)),
    }
}

/// The product as candle's graph knows it.
struct Product {
    packs: Option<Arc<Packs>>,
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weight_dims = weight_layout.shape().dims2()?;
        let xs = f32_slice(xs, xs_layout)?;
        let weight = f32_slice(weight, weight_layout)?;
        let bias = f32_slice(bias, bias_layout)?;
        let dims = output_dims(xs_layout.dims(), weight_dims.0);
        let mut ys = vec![0f32; dims.iter().product()];
        let packs = self.packs.as_deref();
        with_packed(packs, Side::Forward, weight, weight_dims, |packed| {
            packed.multiply(xs, Some(bias), &mut ys, |_, _, _| ());
        });
        Ok((CpuStorage::F32(ys), dims.into()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (out_dim, in_dim) = weight.dims2()?;
        let rows = grad.elem_count() / out_dim.max(1);
        let device = xs.device();
        with_f32(grad, |grad| {
            let grad_view = MatrixView::row_major(rows, out_dim);
            let grad_xs = xs
                .track_op()
                .then(|| {
                    let mut grad_xs = vec![0f32; rows * in_dim];
                    let packs = self.packs.as_deref();
                    with_f32(weight, |weight| {
                        let dims = (out_dim, in_dim);
                        with_packed(packs, Side::Backward, weight, dims, |packed| {
                            packed.multiply(grad, None, &mut grad_xs, |_, _, _| ());
                        });
                        Ok(())
                    })?;
                    Tensor::from_vec(grad_xs, xs.shape(), device)
                })
                .transpose()?;
            let grad_weight = weight
                .track_op()
                .then(|| {
                    let mut grad_weight = vec![0f32; out_dim * in_dim];
                    with_f32(xs, |xs| {
                        matmul(
                            (&mut grad_weight, MatrixView::row_major(out_dim, in_dim)),
                            (grad, grad_view.transposed()),
                            (xs, MatrixView::row_major(rows, in_dim)),
                            1.0,
                            Into::Overwrite,
                            all_threads(),
                        );
                        Ok(())
                    })?;
                    Tensor::from_vec(grad_weight, weight.shape(), device)
                })
                .transpose()?;
            let grad_bias = bias
                .track_op()
                .then(|| {
                    let sums = column_sums(grad, out_dim, |_, row, sums| add_assign(sums, row));
                    Tensor::from_vec(sums, bias.shape(), device)
                })
                .transpose()?;
            Ok((grad_xs, grad_weight, grad_bias))
        })
    }
}
