//! Differentiable softmax over the last dimension.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

use super::{
    LANES, Spread, exp, f32_slice, for_row_blocks, halved, is_fused, sum, sum_by, values, with_f32,
};

/// Softmax over the last dimension.
///
/// # Shapes
/// - `xs` and result: `[.., n]`
///
/// # Errors
/// Fails if the tensor has no dimensions.
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    if xs.rank() == 0 {
        candle_core::bail!("softmax needs at least one dimension");
    }
    if is_fused(xs) {
        return xs.contiguous()?.apply_op1(Softmax);
    }
    candle_nn::ops::softmax(xs, D::Minus1)
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let cols = layout.dims().last().copied().unwrap_or(1);
        let mut ys = f32_slice(xs, layout)?.to_vec();
        for_row_blocks(&mut ys, cols, 32, Spread::Pool, |_, block| {
            softmax_rows(block, cols, 1.0);
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let cols = xs.dims().last().copied().unwrap_or(1);
        with_f32(ys, |y| {
            let mut grad_xs = values(grad)?;
            for_row_blocks(&mut grad_xs, cols, 32, Spread::Pool, |row_idx, block| {
                let start = row_idx * cols;
                softmax_rows_backward(&y[start..start + block.len()], block, cols);
            });
            Tensor::from_vec(grad_xs, xs.shape(), xs.device()).map(Some)
        })
    }
}

/// Magnitude below which a probability or its gradient is flushed to zero.
///
/// Relative to significant probabilities, such values are lost in rounding. If attention is concentrated on one token,
/// most would be subnormal, and Intel processors take a hundred times as long to multiply subnormal numbers.
const NEGLIGIBLE: f32 = 7.888_609e-31; // 2^-100

/// `x`, or 0 if it is negligible.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < NEGLIGIBLE { 0.0 } else { x }
}

/// Replaces each row of `cols` scores, multiplied by `scale`, by probabilities; `scale` is positive.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn softmax_rows(rows: &mut [f32], cols: usize, scale: f32) {
    let fused = target_cfg_f!(any(target_feature = "fma", target_feature = "avx512f"));
    for row in rows.chunks_exact_mut(cols) {
        let max = max(row);
        for x in row.iter_mut() {
            *x = exp((*x - max) * scale, fused);
        }
        let share = 1.0 / sum(row);
        for x in row.iter_mut() {
            *x = flushed(*x * share);
        }
    }
}

/// The maximum, in [`LANES`] running maxima for vectorization.
#[inline(always)]
fn max(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let max = halved(lanes, f32::max);
    rest.iter().fold(max, |max, &x| max.max(x))
}

/// Replaces the gradient of each row of probabilities by that of its scores: y ∘ (g − Σ g ∘ y).
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn softmax_rows_backward(probabilities: &[f32], grad: &mut [f32], cols: usize) {
    for (y, g) in probabilities
        .chunks_exact(cols)
        .zip(grad.chunks_exact_mut(cols))
    {
        let dot = sum_by(cols, |i| y[i] * g[i]);
        for (g, &y) in g.iter_mut().zip(y) {
            *g = flushed(y * (*g - dot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_one_score_has_it_all_the_others_and_their_gradients_are_zero_not_subnormal() {
        let mut probabilities = [0.0, -60.0, -80.0, -200.0];
        softmax_rows(&mut probabilities, 4, 1.0);
        assert_eq!(
            [1.0, 0.0, 0.0],
            [probabilities[0], probabilities[2], probabilities[3]]
        );
        assert!((probabilities[1] / (-60f32).exp() - 1.0).abs() < 1e-5);
        let mut grad = [1.0, 2.0, 3.0, 1e-10];
        softmax_rows_backward(&probabilities, &mut grad, 4);
        assert!(
            grad.iter().all(|g| *g == 0.0 || g.abs() > 1e-30),
            "{grad:?}"
        );
    }
}
