//! Layer normalization over the last dimension (Ba et al., arXiv:1607.06450), with all gradients.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use multiversion::multiversion;

use super::quantized::Moments;
use super::{
    Spread, column_sums, f32_slice, for_row_blocks, is_fused, sum, sum_by, values, with_f32,
};

/// `(xs - mean) / sqrt(variance + eps) * weight + bias`, with mean and variance over the last dimension.
///
/// # Shapes
/// - `xs` and result: `[.., dim]`
/// - `weight`, `bias`: `[dim]`
///
/// # Errors
/// Fails if the shapes do not fit.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dim = weight.dims1()?;
    if xs.dims().last() != Some(&dim) || bias.dims() != [dim] {
        candle_core::bail!(
            "layer_norm: xs {:?}, weight {:?} and bias {:?} do not match",
            xs.shape(),
            weight.shape(),
            bias.shape()
        );
    }
    if is_fused(xs) {
        let op = LayerNormOp { eps: eps as f32 };
        return xs
            .contiguous()?
            .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
    }
    let centered = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

/// A layer normalization with its weight and bias, for repeated use.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Creates a layer normalization.
    ///
    /// # Shapes
    /// - `weight`, `bias`: `[dim]`
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// See [`layer_norm`].
    ///
    /// # Shapes
    /// - `xs` and result: `[.., dim]`
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        layer_norm(xs, &self.weight, &self.bias, self.eps)
    }

    /// Mean and standard deviation of each output.
    pub(super) fn moments(&self) -> Result<Vec<Moments>> {
        let (weight, bias) = (values(&self.weight)?, values(&self.bias)?);
        let moments = weight.iter().zip(bias).map(|(weight, mean)| Moments {
            mean,
            sd: weight.abs(),
        });
        Ok(moments.collect())
    }

    pub(super) fn is_frozen(&self) -> bool {
        !(self.weight.track_op() || self.bias.track_op())
    }

    pub(super) fn learns(&self) -> bool {
        self.weight.track_op() && self.bias.track_op()
    }

    /// Weight, bias and epsilon.
    pub fn parts(&self) -> (&Tensor, &Tensor, f32) {
        (&self.weight, &self.bias, self.eps as f32)
    }

    /// The same normalization on slices.
    pub(super) fn on_rows(&self) -> Result<NormRows> {
        with_f32(&self.weight, |weight| {
            with_f32(&self.bias, |bias| {
                Ok(NormRows::new(weight, bias, self.eps as f32))
            })
        })
    }
}

/// A layer normalization of rows in memory.
pub(super) struct NormRows {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl NormRows {
    pub(super) fn new(weight: &[f32], bias: &[f32], eps: f32) -> Self {
        Self {
            weight: weight.to_vec(),
            bias: bias.to_vec(),
            eps,
        }
    }

    /// Adds the gradients of weight and bias, computed from that of the outputs, to `sums`.
    pub(super) fn add_weight_gradients(&self, xs: &[f32], grad: &[f32], sums: [&mut [f32]; 2]) {
        let [weight_sums, bias_sums] = sums;
        let dim = self.dim();
        for (x, g) in xs.chunks_exact(dim).zip(grad.chunks_exact(dim)) {
            add_normalized(x, g, self.eps, weight_sums);
            super::add_assign(bias_sums, g);
        }
    }

    pub(super) fn dim(&self) -> usize {
        self.weight.len()
    }

    pub(super) fn forward(&self, xs: &[f32], ys: &mut [f32], spread: Spread) {
        let dim = self.dim();
        for_row_blocks(ys, dim, 32, spread, |row_idx, block| {
            let start = row_idx * dim;
            let xs = &xs[start..start + block.len()];
            forward(xs, &self.weight, &self.bias, self.eps, block);
        });
    }

    /// Replaces the gradient of the outputs by that of the inputs.
    pub(super) fn backward(&self, xs: &[f32], grad: &mut [f32], spread: Spread) {
        let dim = self.dim();
        for_row_blocks(grad, dim, 32, spread, |row_idx, block| {
            let start = row_idx * dim;
            let xs = &xs[start..start + block.len()];
            backward_in_place(xs, &self.weight, self.eps, block);
        });
    }
}

struct LayerNormOp {
    eps: f32,
}

impl CustomOp3 for LayerNormOp {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let xs = f32_slice(xs, xs_layout)?;
        let weight = f32_slice(weight, weight_layout)?;
        let bias = f32_slice(bias, bias_layout)?;
        let mut ys = vec![0f32; xs.len()];
        NormRows::new(weight, bias, self.eps).forward(xs, &mut ys, Spread::Pool);
        Ok((CpuStorage::F32(ys), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dim = weight.dims1()?;
        let device = xs.device();
        let (tracks_xs, tracks_params) = (xs.track_op(), weight.track_op() || bias.track_op());
        with_f32(xs, |x| {
            with_f32(grad, |g| {
                let grad_xs = tracks_xs
                    .then(|| {
                        let mut grad_xs = g.to_vec();
                        let norm = LayerNorm::new(weight.clone(), bias.clone(), self.eps.into());
                        norm.on_rows()?.backward(x, &mut grad_xs, Spread::Pool);
                        Tensor::from_vec(grad_xs, xs.shape(), device)
                    })
                    .transpose()?;
                if !tracks_params {
                    return Ok((grad_xs, None, None));
                }
                // Σ over rows of g ∘ x̂ and of g, concatenated.
                let mut sums = column_sums_of_pairs(x, g, dim, self.eps);
                let grad_bias = sums.split_off(dim);
                Ok((
                    grad_xs,
                    Some(Tensor::from_vec(sums, dim, device)?),
                    Some(Tensor::from_vec(grad_bias, dim, device)?),
                ))
            })
        })
    }
}

/// `[Σ g ∘ x̂, Σ g]` over all rows, `2 · dim` values.
fn column_sums_of_pairs(x: &[f32], g: &[f32], dim: usize, eps: f32) -> Vec<f32> {
    let weight_sums = column_sums(g, dim, |row_idx, g_row, sums| {
        let start = row_idx * dim;
        add_normalized(&x[start..start + dim], g_row, eps, sums);
    });
    let bias_sums = column_sums(g, dim, |_, g_row, sums| super::add_assign(sums, g_row));
    [weight_sums, bias_sums].concat()
}

/// Mean and 1 / sqrt(variance + eps) of a row.
#[inline(always)]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let len = row.len() as f32;
    let mean = sum(row) / len;
    let variance = sum_by(row.len(), |i| (row[i] - mean) * (row[i] - mean)) / len;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn forward(xs: &[f32], weight: &[f32], bias: &[f32], eps: f32, ys: &mut [f32]) {
    let dim = weight.len();
    for (x, y) in xs.chunks_exact(dim).zip(ys.chunks_exact_mut(dim)) {
        let (mean, inv_std) = moments(x, eps);
        for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * inv_std * w + b;
        }
    }
}

/// With x̂ the normalized row and h = g ∘ weight: (h − mean(h) − x̂ mean(h ∘ x̂)) / std.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn backward_in_place(xs: &[f32], weight: &[f32], eps: f32, grad: &mut [f32]) {
    let dim = weight.len();
    for (x, g) in xs.chunks_exact(dim).zip(grad.chunks_exact_mut(dim)) {
        let (mean, inv_std) = moments(x, eps);
        let mean_h = sum_by(dim, |i| g[i] * weight[i]) / dim as f32;
        let mean_hx = sum_by(dim, |i| g[i] * weight[i] * (x[i] - mean)) * inv_std / dim as f32;
        for ((g, &x), &w) in g.iter_mut().zip(x).zip(weight) {
            *g = (*g * w - mean_h - (x - mean) * inv_std * mean_hx) * inv_std;
        }
    }
}

/// `sums += g ∘ x̂`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn add_normalized(x: &[f32], g: &[f32], eps: f32, sums: &mut [f32]) {
    let (mean, inv_std) = moments(x, eps);
    for ((total, &x), &g) in sums.iter_mut().zip(x).zip(g) {
        *total += g * (x - mean) * inv_std;
    }
}
