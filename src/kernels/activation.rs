//! Elementwise nonlinearities of the MLP: `x` times a gate that increases with `x`.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

use super::{Spread, exp, f32_slice, for_row_blocks, is_fused, polynomial, values, with_f32};

/// 1 / √(2π)
const DENSITY: f32 = 0.398_942_3;

/// Steepness at which the logistic function approximates Φ.
const STEEPNESS: f32 = 1.702;

/// Elements per piece of parallel work.
const BLOCK: usize = 8192;

/// Nonlinearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact Gaussian error linear unit, `x · Φ(x)`, with Φ the normal distribution function (Hendrycks and Gimpel,
    /// arXiv:1606.08415).
    Gelu,
    /// Its approximation `x · σ(1.702 x)`, with σ the logistic function (the same paper, section 2), as in CLIP.
    QuickGelu,
}

impl Activation {
    /// Applies the nonlinearity.
    ///
    /// # Shapes
    /// - `xs` and result: the same, arbitrary shape
    ///
    /// # Errors
    /// Fails if candle cannot allocate memory.
    pub fn forward(self, xs: &Tensor) -> Result<Tensor> {
        if is_fused(xs) {
            return xs.contiguous()?.apply_op1(Fused(self));
        }
        match self {
            Self::Gelu => xs.gelu_erf(),
            Self::QuickGelu => xs * self.gate(xs)?,
        }
    }

    /// The factor of `xs`: Φ(x) or σ(1.702 x).
    ///
    /// # Shapes
    /// - `xs` and result: the same, arbitrary shape
    ///
    /// # Errors
    /// Fails if candle cannot allocate memory.
    pub fn gate(self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => ((xs * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5,
            // σ by the hyperbolic tangent, which cannot overflow and whose gradient candle implements.
            Self::QuickGelu => ((xs * f64::from(STEEPNESS / 2.0))?.tanh()? + 1.0)? * 0.5,
        }
    }
}

struct Fused(Activation);

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        match self.0 {
            Activation::Gelu => "gelu",
            Activation::QuickGelu => "quick-gelu",
        }
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = f32_slice(xs, layout)?;
        let mut ys = xs.to_vec();
        for_row_blocks(&mut ys, 1, BLOCK, Spread::Pool, |_, block| {
            in_place(self.0, block);
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut grad_xs = values(grad)?;
        with_f32(xs, |x| {
            for_row_blocks(&mut grad_xs, 1, BLOCK, Spread::Pool, |start, block| {
                backward_in_place(self.0, &x[start..start + block.len()], block);
            });
            Ok(())
        })?;
        Tensor::from_vec(grad_xs, xs.shape(), xs.device()).map(Some)
    }
}

/// Magnitude from which Φ is 0 or 1 to within 4e-8.
const REACH: f32 = 5.4;

/// Φ(x); the absolute error is below 2.5e-7.
///
/// Within [`REACH`], Φ(x) - 1/2 is x times a ratio of polynomials of x², fitted such that its largest error is smallest.
#[inline(always)]
fn normal_cdf(x: f32, fused: bool) -> f32 {
    const ABOVE: [f32; 6] = [
        2.338_668_7e-8,
        6.360_026_4e-6,
        1.643_226_6e-4,
        4.650_857_2e-3,
        3.337_232e-2,
        3.989_422_6e-1,
    ];
    const BELOW: [f32; 6] = [
        1.216_589_9e-6,
        7.240_05e-5,
        1.858_987e-3,
        2.837_874_1e-2,
        2.503_180_9e-1,
        1.0,
    ];
    let (above, below) = (
        polynomial(x * x, ABOVE, fused),
        polynomial(x * x, BELOW, fused),
    );
    let cdf = 0.5 + x * above / below;
    let cdf = if x > REACH { 1.0 } else { cdf };
    if x < -REACH { 0.0 } else { cdf }
}

/// Φ(x), and the derivative of x · Φ(x).
#[inline(always)]
fn gelu(x: f32, fused: bool) -> (f32, f32) {
    let cdf = normal_cdf(x, fused);
    (cdf, cdf + x * DENSITY * exp(-0.5 * x * x, fused))
}

/// σ(1.702 x), and the derivative of x · σ(1.702 x).
#[inline(always)]
fn quick_gelu(x: f32, fused: bool) -> (f32, f32) {
    let z = STEEPNESS * x;
    let gate = 1.0 / (1.0 + exp(-z, fused));
    (gate, gate * (1.0 + z * (1.0 - gate)))
}

/// Replaces the inputs `xs` by the outputs.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn in_place(activation: Activation, xs: &mut [f32]) {
    let fused = target_cfg_f!(any(target_feature = "fma", target_feature = "avx512f"));
    match activation {
        Activation::Gelu => multiply(xs, |x| normal_cdf(x, fused)),
        Activation::QuickGelu => multiply(xs, |x| quick_gelu(x, fused).0),
    }
}

#[inline(always)]
fn multiply(xs: &mut [f32], gate: impl Fn(f32) -> f32) {
    for x in xs {
        *x *= gate(*x);
    }
}

/// Computes the outputs of `xs`, and replaces the gradient of the outputs by that of the inputs.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn both(activation: Activation, xs: &[f32], ys: &mut [f32], grad: &mut [f32]) {
    let fused = target_cfg_f!(any(target_feature = "fma", target_feature = "avx512f"));
    match activation {
        Activation::Gelu => both_by(xs, ys, grad, |x| gelu(x, fused)),
        Activation::QuickGelu => both_by(xs, ys, grad, |x| quick_gelu(x, fused)),
    }
}

#[inline(always)]
fn both_by(xs: &[f32], ys: &mut [f32], grad: &mut [f32], gate: impl Fn(f32) -> (f32, f32)) {
    for ((y, g), &x) in ys.iter_mut().zip(grad).zip(xs) {
        let (gate, slope) = gate(x);
        *y = x * gate;
        *g *= slope;
    }
}

/// Replaces the gradient of the outputs by that of the inputs `xs`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn backward_in_place(activation: Activation, xs: &[f32], grad: &mut [f32]) {
    let fused = target_cfg_f!(any(target_feature = "fma", target_feature = "avx512f"));
    match activation {
        Activation::Gelu => backward_by(xs, grad, |x| gelu(x, fused).1),
        Activation::QuickGelu => backward_by(xs, grad, |x| quick_gelu(x, fused).1),
    }
}

#[inline(always)]
fn backward_by(xs: &[f32], grad: &mut [f32], slope: impl Fn(f32) -> f32) {
    for (g, &x) in grad.iter_mut().zip(xs) {
        *g *= slope(x);
    }
}
