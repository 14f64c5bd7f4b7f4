//! Matrix product with bias: `xs · weightᵀ + bias`.
//!
//! A frozen weight gets no gradient: only operands that candle tracks are differentiated, which for a
//! frozen model halves the backward pass.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::{
    Into, MatrixView, add_assign, all_threads, column_sums, f32_slice, for_row_blocks, is_fused,
    matmul, with_f32,
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
    let (out_dim, in_dim) = weight.dims2()?;
    if xs.dims().last() != Some(&in_dim) || bias.dims() != [out_dim] {
        candle_core::bail!(
            "linear: xs {:?}, weight {:?} and bias {:?} do not fit",
            xs.shape(),
            weight.shape(),
            bias.shape()
        );
    }
    if is_fused(xs) {
        return xs
            .contiguous()?
            .apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear);
    }
    xs.broadcast_matmul(&weight.t()?)?.broadcast_add(bias)
}

struct Linear;

impl CustomOp3 for Linear {
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
        let (out_dim, in_dim) = weight_layout.shape().dims2()?;
        let xs = f32_slice(xs, xs_layout)?;
        let weight = f32_slice(weight, weight_layout)?;
        let bias = f32_slice(bias, bias_layout)?;
        let mut dims = xs_layout.dims().to_vec();
        let rows = dims[..dims.len() - 1].iter().product::<usize>();
        if let Some(last) = dims.last_mut() {
            *last = out_dim;
        }

        let mut ys = vec![0f32; rows * out_dim];
        for_row_blocks(&mut ys, out_dim, 64, |_, block| {
            for row in block.chunks_exact_mut(out_dim) {
                row.copy_from_slice(bias);
            }
        });
        matmul(
            (&mut ys, MatrixView::row_major(rows, out_dim)),
            (xs, MatrixView::row_major(rows, in_dim)),
            (weight, MatrixView::row_major(out_dim, in_dim).transposed()),
            1.0,
            Into::Add,
            all_threads(),
        );
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
                    with_f32(weight, |weight| {
                        matmul(
                            (&mut grad_xs, MatrixView::row_major(rows, in_dim)),
                            (grad, grad_view),
                            (weight, MatrixView::row_major(out_dim, in_dim)),
                            1.0,
                            Into::Overwrite,
                            all_threads(),
                        );
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
