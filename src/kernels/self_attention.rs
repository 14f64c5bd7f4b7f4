//! The first half of a block: `xs + scale ∘ output(attention(norm(xs)))` (arXiv:2010.11929, Eq. 2).
//!
//! One operation over frozen weights. Queries, keys and values of an image are stored in buffers; the backward pass
//! recomputes them. Callers that need to access them combine [`Linear`] and [`attention`](super::attention()) instead.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::attention::Heads;
use super::linear::{Factor, multiply_each};
use super::mlp::{scale_and_add, scaled};
use super::norm::NormRows;
use super::packed::{Packed, RightHand, Start, TILE_ROWS};
use super::quantized::Moments;
use super::workspace::{self, Workspace};
use super::{
    LayerNorm, Linear, MatrixView, Products, Spread, add_assign, f32_slice, for_images, for_pieces,
    images_mut, is_fused, values, with_f32,
};

/// Norm, projections, attention, output projection, optional layer scale, and residual.
#[derive(Clone, Debug)]
pub struct FusedSelfAttention {
    /// `[dim]`
    pub norm: LayerNorm,
    /// `dim` to `dim`
    pub query: Linear,
    /// `dim` to `dim`
    pub key: Linear,
    /// `dim` to `dim`
    pub value: Linear,
    /// `dim` to `dim`
    pub output: Linear,
    /// `[dim]`
    pub scale: Option<Tensor>,
    /// Number of heads; divides `dim`.
    pub heads: usize,
    /// Numbers of the products of queries with keys, and of probabilities with values, in forward passes.
    pub products: Products,
}

impl FusedSelfAttention {
    /// True if the fused operation applies: f32 on the CPU, and only `xs` is differentiated.
    pub fn applies_to(&self, xs: &Tensor) -> bool {
        let maps = [&self.query, &self.key, &self.value, &self.output];
        is_fused(xs)
            && self.norm.is_frozen()
            && maps.into_iter().all(Linear::is_frozen)
            && !self.scale.as_ref().is_some_and(Tensor::track_op)
    }

    /// `xs + scale ∘ output(attention(norm(xs)))`.
    ///
    /// # Shapes
    /// - `xs` and result: `[batch, tokens, dim]`
    ///
    /// # Errors
    /// Fails if the operation does not [apply](Self::applies_to) or the shapes do not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.contiguous()?.apply_op1(self.clone())
    }

    /// Returns the same attention with products of bfloat16 numbers in forward passes.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub fn rounded(&self) -> Result<Self> {
        Ok(Self {
            query: self.query.rounded()?,
            key: self.key.rounded()?,
            value: self.value.rounded()?,
            output: self.output.rounded()?,
            products: Products::Bf16,
            ..self.clone()
        })
    }

    /// Returns the same attention with products of 8-bit integers in the projections of forward passes, and the
    /// [fastest](Products::fastest) products of queries with keys; adds the names of
    /// the fields whose weights 8 bits cannot represent, and which stay as they are, to `kept`.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub fn quantized(&self, kept: &mut Vec<&'static str>) -> Result<Self> {
        let normed = self.norm.moments()?;
        let values = self.value.moments(&normed)?;
        let normed = normed.into_iter().map(Moments::reach);
        let values = values.into_iter().map(Moments::reach);
        let qkv = [
            (&self.query, "query"),
            (&self.key, "key"),
            (&self.value, "value"),
        ];
        let [query, key, value] = Linear::quantized(qkv, normed, kept)?;
        let [output] = Linear::quantized([(&self.output, "output")], values, kept)?;
        Ok(Self {
            query,
            key,
            value,
            output,
            products: Products::fastest(),
            ..self.clone()
        })
    }

    fn projections(&self) -> [&Linear; 3] {
        [&self.query, &self.key, &self.value]
    }
}

/// The operands of both passes, in memory.
struct Operands<'a> {
    norm: NormRows,
    qkv: [Factor<'a>; 3],
    qkv_bias: [Vec<f32>; 3],
    scale: Option<Vec<f32>>,
    heads: Heads,
}

impl<'a> Operands<'a> {
    fn new(op: &'a FusedSelfAttention, (_, tokens, dim): (usize, usize, usize)) -> Result<Self> {
        let norm = op.norm.on_rows()?;
        let [q, k, v] = op.projections();
        let maps = [q, k, v, &op.output];
        let fits = |map: &Linear| map.dims().is_ok_and(|dims| dims == (dim, dim));
        let divides = op.heads > 0 && dim.is_multiple_of(op.heads);
        if norm.dim() != dim || !divides || !maps.into_iter().all(fits) {
            candle_core::bail!(
                "self-attention: norm of {}, {} heads and projections of {:?} do not match rows of {dim}",
                norm.dim(),
                op.heads,
                q.dims()?
            );
        }
        Ok(Self {
            norm,
            qkv: [
                q.forward_factor()?,
                k.forward_factor()?,
                v.forward_factor()?,
            ],
            qkv_bias: [q.bias()?, k.bias()?, v.bias()?],
            scale: op.scale.as_ref().map(values).transpose()?,
            heads: Heads {
                heads: op.heads,
                tokens,
                dim,
            },
        })
    }

    fn view(&self) -> MatrixView {
        MatrixView::row_major(self.heads.tokens, self.heads.dim)
    }

    /// Queries, keys and values of one image.
    fn project(&self, xs: &[f32], normed: &mut [f32], qkv: [&mut [f32]; 3], spread: Spread) {
        let dim = self.heads.dim;
        let [q, k, v] = qkv;
        self.for_rows(
            [normed, q, k, v],
            spread,
            |first_row, [normed, q, k, v], spread| {
                let xs = &xs[first_row * dim..][..normed.len()];
                self.norm.forward(xs, normed, spread);
                let normed = (&*normed, MatrixView::row_major(normed.len() / dim, dim));
                multiply_each(self.qkv, normed, &self.qkv_bias, [q, k, v], spread);
            },
        );
    }

    /// Runs `work(first_row, rows_of_each_output, spread)` over all tokens, in one piece or one for each thread.
    fn for_rows<const N: usize>(
        &self,
        outs: [&mut [f32]; N],
        spread: Spread,
        work: impl Fn(usize, [&mut [f32]; N], Spread) + Sync,
    ) {
        let Heads { tokens, dim, .. } = self.heads;
        for_pieces(
            outs.map(|out| (out, dim)),
            (TILE_ROWS, tokens),
            spread,
            work,
        );
    }
}

impl CustomOp1 for FusedSelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = f32_slice(xs, layout)?;
        let operands = Operands::new(self, layout.shape().dims3()?)?;
        let (output, output_bias) = (self.output.forward_factor()?, self.output.bias()?);
        let dim = operands.heads.dim;
        let scale = operands.scale.as_deref();
        let view = operands.view();
        let mut ys = vec![0f32; xs.len()];
        for_images(images_mut(&mut ys, view.end()), |image_idx, ys, spread| {
            let xs = &xs[image_idx * ys.len()..][..ys.len()];
            workspace::with(|buffers| {
                let Workspace {
                    normed,
                    query,
                    key,
                    value,
                    mixed,
                    ..
                } = buffers;
                let len = xs.len();
                let (q, k, v) = (query.of(len), key.of(len), value.of(len));
                operands.project(xs, normed.of(len), [q, k, v], spread);
                let mixed = mixed.of(len);
                operands
                    .heads
                    .forward(self.products, [q, k, v], mixed, spread);
                let (mixed, bias) = (&*mixed, Start::Bias(&output_bias));
                operands.for_rows([ys], spread, |first_row, [ys], spread| {
                    let mixed = (mixed, view.rows_from(first_row, ys.len() / dim));
                    let xs = &xs[first_row * dim..];
                    output.multiply(mixed, bias, ys, spread, |row, first_col, piece| {
                        let start = row * dim + first_col;
                        let residual = &xs[start..start + piece.len()];
                        scale_and_add(piece, scale, first_col, residual);
                    });
                });
            });
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let operands = Operands::new(self, xs.dims3()?)?;
        let output = self.output.backward_factor()?;
        let [q_back, k_back, v_back] = self.projections().map(Linear::backward_factor);
        let back = [q_back?, k_back?, v_back?];
        let view = operands.view();
        let mut grad_xs = vec![0f32; xs.elem_count()];
        with_f32(xs, |xs| {
            with_f32(grad, |grad| {
                let outputs = images_mut(&mut grad_xs, view.end());
                for_images(outputs, |image_idx, grad_xs, spread| {
                    let start = image_idx * grad_xs.len();
                    let range = start..start + grad_xs.len();
                    let (xs, grad) = (&xs[range.clone()], &grad[range]);
                    operands.backward(xs, grad, (output, back), grad_xs, spread);
                });
                Ok(())
            })
        })?;
        Tensor::from_vec(grad_xs, xs.shape(), xs.device()).map(Some)
    }
}

impl Operands<'_> {
    /// The gradient of one image.
    fn backward(
        &self,
        xs: &[f32],
        grad: &[f32],
        (output, qkv): (&Packed, [&Packed; 3]),
        grad_xs: &mut [f32],
        spread: Spread,
    ) {
        let (view, len) = (self.view(), xs.len());
        workspace::with(|buffers| {
            let (q, k, v) = (
                buffers.query.of(len),
                buffers.key.of(len),
                buffers.value.of(len),
            );
            self.project(xs, buffers.normed.of(len), [q, k, v], spread);
            let scaled_grad = scaled(grad, self.scale.as_deref(), &mut buffers.grad);
            let grad_mixed = buffers.mixed.of(len);
            let scaled_grad = (scaled_grad, view);
            output.multiply(scaled_grad, Start::Zeros, grad_mixed, spread, |_, _, _| ());
            let (grad_q, grad_k, grad_v) = (
                buffers.grad_query.of(len),
                buffers.grad_key.of(len),
                buffers.grad_value.of(len),
            );
            let grads = [&mut *grad_q, &mut *grad_k, &mut *grad_v];
            self.heads.backward([q, k, v], grad_mixed, grads, spread);
            let mut start = Start::Zeros;
            for (packed, grad) in qkv.into_iter().zip([grad_q, grad_k, grad_v]) {
                packed.multiply((grad, view), start, grad_xs, spread, |_, _, _| ());
                start = Start::Destination;
            }
            self.norm.backward(xs, grad_xs, spread);
            add_assign(grad_xs, grad);
        });
    }
}
