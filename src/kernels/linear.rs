//! Matrix product with bias: `xs · weightᵀ + bias`.
//!
//! A frozen weight gets no gradient: only operands that candle tracks are differentiated, which halves the backward
//! pass of a frozen model. A frozen weight is packed once, on first use.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::bfloat::Bfloats;
use super::packed::{Packed, RightHand, Start};
use super::quantized::{self, Moments, Quantized};
use super::{
    MatrixView, Products, Spread, add_assign, column_sums, f32_slice, is_fused, matmul, values,
    with_f32, workspace,
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
/// Fails if the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Linear::new(weight.clone(), bias.clone()).forward(xs)
}

/// A weight with its bias, for repeated multiplication.
///
/// The values of a frozen weight, which is one that candle does not track, must not change.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    packs: Option<Arc<Packs>>,
}

impl Linear {
    /// Creates a linear map.
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
    /// Fails if the shapes do not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.check(xs)?;
        if !is_fused(xs) {
            return xs
                .broadcast_matmul(&self.weight.t()?)?
                .broadcast_add(&self.bias);
        }
        let op = Product {
            packs: self.packs.clone(),
        };
        xs.contiguous()?
            .apply_op3(&self.weight.contiguous()?, &self.bias.contiguous()?, op)
    }

    fn check(&self, xs: &Tensor) -> Result<()> {
        let (out_dim, in_dim) = self.weight.dims2()?;
        if xs.dims().last() != Some(&in_dim) || self.bias.dims() != [out_dim] {
            candle_core::bail!(
                "linear: xs {:?}, weight {:?} and bias {:?} do not match",
                xs.shape(),
                self.weight.shape(),
                self.bias.shape()
            );
        }
        Ok(())
    }

    /// Returns the map with products of bfloat16 numbers in forward passes; a map that learns, or is not f32 on the CPU,
    /// stays as it is. Backward passes use the weights as they are.
    ///
    /// # Errors
    /// Fails if the weight cannot be read.
    pub fn rounded(&self) -> Result<Self> {
        if self.packs.is_none() || !is_fused(&self.weight) {
            return Ok(self.clone());
        }
        let dims = self.weight.dims2()?;
        let rounded = with_f32(&self.weight, |weight| {
            Ok(Bfloats::new(for_inputs(weight, dims)))
        })?;
        Ok(self.with_forward(Forward::Bf16(rounded)))
    }

    fn with_forward(&self, forward: Forward) -> Self {
        Self {
            packs: Some(Arc::new(Packs {
                forward: OnceLock::from(forward),
                ..Packs::default()
            })),
            ..self.clone()
        }
    }

    /// Returns maps of the same inputs with products of 8-bit integers in forward passes, with a scale per output feature
    /// of the weights and per row of the inputs. Backward passes use the weights as they are.
    ///
    /// A map stays as it is if 8 bits cannot represent its weights, they learn, or they are not f32 on the CPU; its name
    /// is then added to `kept`.
    ///
    /// Input features of large magnitude are scaled down, and their weights up (SmoothQuant, arXiv:2211.10438, Eq. 4),
    /// by the magnitudes that they rarely exceed, `[in]`.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub(super) fn quantized<const N: usize>(
        maps: [(&Self, &'static str); N],
        reach: impl Iterator<Item = f32>,
        kept: &mut Vec<&'static str>,
    ) -> Result<[Self; N]> {
        let mut weights = Vec::with_capacity(N);
        for (map, _) in maps {
            let fits = map.packs.is_some() && is_fused(&map.weight);
            weights.push(fits.then(|| map.weight()).transpose()?);
        }
        let known: Vec<&[f32]> = weights.iter().flatten().map(Vec::as_slice).collect();
        let factors = quantized::factors(&known, &reach.collect::<Vec<f32>>());
        let mut results = maps.map(|(map, _)| map.clone());
        for ((weight, (_, name)), map) in weights.iter().zip(maps).zip(&mut results) {
            let dims = map.weight.dims2()?;
            let quantized = weight
                .as_ref()
                .and_then(|weight| Quantized::new(weight, dims, &factors));
            match quantized {
                Some(quantized) => *map = map.with_forward(Forward::Int8(quantized)),
                None => kept.push(name),
            }
        }
        Ok(results)
    }

    /// Mean and standard deviation of each output feature, if the inputs are independent.
    pub(super) fn moments(&self, inputs: &[Moments]) -> Result<Vec<Moments>> {
        let bias = self.bias()?;
        with_f32(&self.weight, |weight| {
            let rows = weight.chunks_exact(inputs.len().max(1)).zip(bias);
            let moments = rows.map(|(row, bias)| {
                let pairs = || row.iter().zip(inputs);
                let mean: f32 = pairs().map(|(w, input)| w * input.mean).sum();
                let variance: f32 = pairs().map(|(w, input)| (w * input.sd).powi(2)).sum();
                Moments {
                    mean: bias + mean,
                    sd: variance.sqrt(),
                }
            });
            Ok(moments.collect())
        })
    }

    /// True if neither weight nor bias is differentiated.
    pub(super) fn is_frozen(&self) -> bool {
        self.packs.is_some() && !self.bias.track_op()
    }

    /// True if both weight and bias are differentiated.
    pub(super) fn learns(&self) -> bool {
        self.weight.track_op() && self.bias.track_op()
    }

    /// Returns the map detached from the graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self::new(self.weight.detach(), self.bias.detach())
    }

    /// Weight and bias.
    pub fn parts(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    /// Number of input and output features.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        let (out_dim, in_dim) = self.weight.dims2()?;
        Ok((in_dim, out_dim))
    }

    pub(super) fn weight(&self) -> Result<Vec<f32>> {
        values(&self.weight)
    }

    pub(super) fn bias(&self) -> Result<Vec<f32>> {
        values(&self.bias)
    }

    /// The frozen weight of products with inputs, packed on first use.
    pub(super) fn forward_factor(&self) -> Result<Factor<'_>> {
        self.with_packs(|packs, weight, dims| packs.forward(weight, dims))
    }

    /// The frozen weight of products of these numbers, packed on first use.
    pub(super) fn factor(&self, products: Products) -> Result<Factor<'_>> {
        match products {
            Products::F32 => self.forward_factor(),
            Products::Bf16 => self.with_packs(|packs, weight, dims| {
                let round = || Bfloats::new(for_inputs(weight, dims));
                Factor::Bf16(packs.rounded.get_or_init(round))
            }),
        }
    }

    /// The frozen weight of products with gradients, packed on first use.
    pub(super) fn backward_factor(&self) -> Result<&Packed> {
        self.with_packs(|packs, weight, dims| packs.backward(weight, dims))
    }

    fn with_packs<'a, T>(
        &'a self,
        get: impl FnOnce(&'a Packs, &[f32], (usize, usize)) -> T,
    ) -> Result<T> {
        let Some(packs) = &self.packs else {
            candle_core::bail!("a weight that learns is packed at every use");
        };
        let dims = self.weight.dims2()?;
        with_f32(&self.weight, |weight| Ok(get(packs, weight, dims)))
    }
}

/// The shape of the result for inputs of shape `xs_dims`.
fn output_dims(xs_dims: &[usize], out_dim: usize) -> Vec<usize> {
    let mut dims = xs_dims.to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out_dim;
    }
    dims
}

/// The right-hand side of a product with inputs.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    F32(&'a Packed),
    Bf16(&'a Bfloats),
    Int8(&'a Quantized),
}

impl Factor<'_> {
    /// As [`RightHand::multiply`].
    pub(super) fn multiply(
        self,
        lhs: (&[f32], MatrixView),
        start: Start<'_>,
        out: &mut [f32],
        spread: Spread,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        match self {
            Self::F32(packed) => packed.multiply(lhs, start, out, spread, finish),
            Self::Bf16(packed) => packed.multiply(lhs, start, out, spread, finish),
            Self::Int8(quantized) => quantized.multiply(lhs, start, out, spread, finish),
        }
    }
}

/// `lhs · factor + bias` for each factor.
///
/// # Shapes
/// - `lhs`: `[rows, depth]`
/// - each output: `[rows, cols]`, row by row
pub(super) fn multiply_each<const N: usize>(
    factors: [Factor<'_>; N],
    lhs: (&[f32], MatrixView),
    biases: &[Vec<f32>; N],
    outs: [&mut [f32]; N],
    spread: Spread,
) {
    let (mut shared, mut together) = (None, Vec::with_capacity(N));
    for ((factor, bias), out) in factors.into_iter().zip(biases).zip(outs) {
        match factor {
            Factor::Int8(right) if right.shares(shared.get_or_insert(right.factors())) => {
                together.push((right, &bias[..], out));
            }
            _ => factor.multiply(lhs, Start::Bias(bias), out, spread, |_, _, _| ()),
        }
    }
    if let Some(shared) = shared {
        quantized::multiply_each(shared, lhs, &mut together, spread);
    }
}

/// A frozen weight, packed for both passes.
#[derive(Default)]
struct Packs {
    forward: OnceLock<Forward>,
    rounded: OnceLock<Bfloats>,
    backward: OnceLock<Packed>,
}

/// A frozen weight, packed for products with inputs.
enum Forward {
    F32(Packed),
    Bf16(Bfloats),
    Int8(Quantized),
}

/// A weight `[out, in]` as the right-hand side of products with inputs.
fn for_inputs(weight: &[f32], (out_dim, in_dim): (usize, usize)) -> (&[f32], MatrixView) {
    (weight, MatrixView::row_major(out_dim, in_dim).transposed())
}

/// A weight `[out, in]` as the right-hand side of products with gradients of the outputs.
fn for_gradients(weight: &[f32], (out_dim, in_dim): (usize, usize)) -> (&[f32], MatrixView) {
    (weight, MatrixView::row_major(out_dim, in_dim))
}

impl Packs {
    fn forward(&self, weight: &[f32], dims: (usize, usize)) -> Factor<'_> {
        let pack = || Forward::F32(Packed::new(for_inputs(weight, dims)));
        match self.forward.get_or_init(pack) {
            Forward::F32(packed) => Factor::F32(packed),
            Forward::Bf16(packed) => Factor::Bf16(packed),
            Forward::Int8(quantized) => Factor::Int8(quantized),
        }
    }

    fn backward(&self, weight: &[f32], dims: (usize, usize)) -> &Packed {
        let pack = || Packed::new(for_gradients(weight, dims));
        self.backward.get_or_init(pack)
    }
}

impl std::fmt::Debug for Packs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packs")
    }
}

/// The product as an operation of candle's graph.
struct Product {
    packs: Option<Arc<Packs>>,
}

impl Product {
    /// Calls `work` with the weight for products with inputs; a trainable weight is packed temporarily.
    fn forward(&self, weight: &[f32], dims: (usize, usize), work: impl FnOnce(Factor<'_>)) {
        match &self.packs {
            Some(packs) => work(packs.forward(weight, dims)),
            None => workspace::with(|workspace| {
                workspace.values.fill(for_inputs(weight, dims));
                work(Factor::F32(&workspace.values));
            }),
        }
    }

    /// Calls `work` with the weight for products with gradients; a trainable weight is packed temporarily.
    fn backward(&self, weight: &[f32], dims: (usize, usize), work: impl FnOnce(&Packed)) {
        match &self.packs {
            Some(packs) => work(packs.backward(weight, dims)),
            None => workspace::with(|workspace| {
                workspace.values.fill(for_gradients(weight, dims));
                work(&workspace.values);
            }),
        }
    }
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
        let rows = ys.len() / weight_dims.0.max(1);
        let xs = (xs, MatrixView::row_major(rows, weight_dims.1));
        self.forward(weight, weight_dims, |factor| {
            factor.multiply(xs, Start::Bias(bias), &mut ys, Spread::Pool, |_, _, _| ());
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
                    with_f32(weight, |weight| {
                        self.backward(weight, (out_dim, in_dim), |packed| {
                            let grad = (grad, grad_view);
                            let out = &mut grad_xs;
                            packed.multiply(grad, Start::Zeros, out, Spread::Pool, |_, _, _| ());
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
