//! The exact GELU: `x · Φ(x)`, Φ the normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use multiversion::multiversion;

use super::{Spread, exp, f32_slice, for_row_blocks, is_fused, values, with_f32};

/// 1 / √(2π)
const DENSITY: f32 = 0.398_942_3;

/// Elements that one piece of parallel work covers.
const BLOCK: usize = 8192;

/// `x · Φ(x)`, elementwise.
///
/// # Shapes
/// - `xs`: any; the result has the same
///
/// # Errors
/// Fails where candle cannot allocate.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    if is_fused(xs) {
        return xs.contiguous()?.apply_op1(Gelu);
    }
    xs.gelu_erf()
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = f32_slice(xs, layout)?;
        let mut ys = vec![0f32; xs.len()];
        for_row_blocks(&mut ys, 1, BLOCK, Spread::Pool, |start, block| {
            forward(&xs[start..start + block.len()], block);
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut grad_xs = values(grad)?;
        with_f32(xs, |x| {
            for_row_blocks(&mut grad_xs, 1, BLOCK, Spread::Pool, |start, block| {
                backward_in_place(&x[start..start + block.len()], block);
            });
            Ok(())
        })?;
        Tensor::from_vec(grad_xs, xs.shape(), xs.device()).map(Some)
    }
}

/// Φ(x) and e^(-x²/2).
///
/// Abramowitz and Stegun 7.1.26 with z = |x| / √2; the absolute error of erf is below 1.5e-7.
#[inline(always)]
fn normal_cdf(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = t
        * (0.254_829_6
            + t * (-0.284_496_72 + t * (1.421_413_8 + t * (-1.453_152 + t * 1.061_405_4))));
    let decay = exp(-z * z);
    let tail = 0.5 * poly * decay;
    (if x < 0.0 { tail } else { 1.0 - tail }, decay)
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn forward(xs: &[f32], ys: &mut [f32]) {
    for (y, &x) in ys.iter_mut().zip(xs) {
        *y = x * normal_cdf(x).0;
    }
}

/// The same where the values are.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn in_place(xs: &mut [f32]) {
    for x in xs {
        *x *= normal_cdf(*x).0;
    }
}

/// The outputs of `xs` and, from the gradient of the outputs, in place, that of the inputs.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn both(xs: &[f32], ys: &mut [f32], grad: &mut [f32]) {
    for ((y, g), &x) in ys.iter_mut().zip(grad).zip(xs) {
        let (cdf, decay) = normal_cdf(x);
        *y = x * cdf;
        *g *= cdf + x * DENSITY * decay;
    }
}

/// Turns the gradient of the outputs into that of the inputs `xs`, in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn backward_in_place(xs: &[f32], grad: &mut [f32]) {
    for (g, &x) in grad.iter_mut().zip(xs) {
        let (cdf, decay) = normal_cdf(x);
        *g *= cdf + x * DENSITY * decay;
    }
}
