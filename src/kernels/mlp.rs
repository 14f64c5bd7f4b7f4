//! The second half of a block: `xs + scale ∘ down(act(up(norm(xs))))` (arXiv:2010.11929, Eq. 3).
//!
//! With frozen weights, this is one operation: the hidden layer, which is four times as wide as a token, is computed
//! for a few rows at a time and never leaves the cache. If a gradient is needed, the hidden layer before the activation
//! is stored once. Trainable weights have a separate operation.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::linear::Factor;
use super::norm::NormRows;
use super::packed::{RightHand, Start, TILE_ROWS};
use super::quantized::Moments;
use super::workspace::{self, Buffer, Workspace};
use super::{
    Activation, LayerNorm, Linear, MatrixView, SharedOutput, Spread, activation, add_assign,
    f32_slice, for_pieces, is_fused, learning_mlp, values, with_f32,
};

/// Values of the hidden layer that one thread computes at a time; they fit in the L2 cache.
const HIDDEN_VALUES: usize = 192 * 1024;

/// Exceeds the magnitude of everything negative that passes an activation: GELU is never below -0.17.
const LARGEST_NEGATIVE: f32 = 0.2;

/// Norm, two linear maps with an activation in between, optional layer scale, and residual.
#[derive(Clone, Debug)]
pub struct Mlp {
    norm: LayerNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
    scale: Option<Tensor>,
}

impl Mlp {
    /// Creates a multi-layer perceptron.
    ///
    /// # Shapes
    /// - `norm`: `[dim]`
    /// - `up`: `dim` to `hidden`
    /// - `down`: `hidden` to `dim`
    /// - `scale`: `[dim]`
    pub fn new(
        norm: LayerNorm,
        up: Linear,
        activation: Activation,
        down: Linear,
        scale: Option<Tensor>,
    ) -> Self {
        Self {
            norm,
            up,
            activation,
            down,
            scale,
        }
    }

    /// `xs + scale ∘ down(act(up(norm(xs))))`.
    ///
    /// # Shapes
    /// - `xs` and result: `[.., dim]`
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if is_fused(xs) && self.is_frozen() {
            let kept = xs.track_op().then(OnceLock::new);
            return xs.contiguous()?.apply_op1(FusedMlp {
                mlp: self.clone(),
                kept,
            });
        }
        if is_fused(xs) && self.learns() {
            return learning_mlp::forward(xs, &self.norm, &self.up, self.activation, &self.down);
        }
        let hidden = self.up.forward(&self.norm.forward(xs)?)?;
        self.finish(xs, &self.activation.forward(&hidden)?)
    }

    /// Returns the same MLP with products of bfloat16 numbers in forward passes.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub fn rounded(&self) -> Result<Self> {
        Ok(Self {
            up: self.up.rounded()?,
            down: self.down.rounded()?,
            ..self.clone()
        })
    }

    /// Returns the same MLP with products of 8-bit integers in forward passes; adds the names of
    /// the fields whose weights 8 bits cannot represent, and which stay as they are, to `kept`.
    ///
    /// # Errors
    /// Fails if a weight cannot be read.
    pub fn quantized(&self, kept: &mut Vec<&'static str>) -> Result<Self> {
        let normed = self.norm.moments()?;
        // Hardly anything negative passes the activation.
        let hidden = self.up.moments(&normed)?.into_iter();
        let hidden = hidden.map(|moments| moments.upper_reach().max(LARGEST_NEGATIVE));
        let normed = normed.into_iter().map(Moments::reach);
        let [up] = Linear::quantized([(&self.up, "up")], normed, kept)?;
        let [down] = Linear::quantized([(&self.down, "down")], hidden, kept)?;
        Ok(Self {
            up,
            down,
            ..self.clone()
        })
    }

    /// The norm before the maps.
    pub fn norm(&self) -> &LayerNorm {
        &self.norm
    }

    /// The activation after `up`.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// The map to the hidden layer.
    pub fn up(&self) -> &Linear {
        &self.up
    }

    /// The map from the hidden layer.
    #[cfg(feature = "lrp")]
    pub fn down(&self) -> &Linear {
        &self.down
    }

    /// Layer scale, if the model has it.
    #[cfg(feature = "lrp")]
    pub fn scale(&self) -> &Option<Tensor> {
        &self.scale
    }

    /// `xs + scale ∘ down(hidden)`, where `hidden` is the output of the activation.
    pub fn finish(&self, xs: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        let ys = self.down.forward(hidden)?;
        match &self.scale {
            Some(scale) => xs + ys.broadcast_mul(scale)?,
            None => xs + ys,
        }
    }

    fn is_frozen(&self) -> bool {
        let scale = self.scale.as_ref();
        self.norm.is_frozen()
            && self.up.is_frozen()
            && self.down.is_frozen()
            && !scale.is_some_and(Tensor::track_op)
    }

    /// True if every weight is differentiated and there is no layer scale.
    fn learns(&self) -> bool {
        self.norm.learns() && self.up.learns() && self.down.learns() && self.scale.is_none()
    }

    /// Number of rows per tile, and of rows that one thread computes at a time.
    fn rows(hidden_dim: usize) -> (usize, usize) {
        let piece_rows = HIDDEN_VALUES / hidden_dim.max(1);
        (TILE_ROWS, piece_rows.max(TILE_ROWS))
    }
}

/// The MLP as an operation of candle's graph.
struct FusedMlp {
    mlp: Mlp,
    /// The hidden layer before the activation, `[rows, hidden]`; `None` if no gradient is needed.
    kept: Option<OnceLock<Vec<f32>>>,
}

/// The operands of both passes, in memory.
struct Operands {
    norm: NormRows,
    scale: Option<Vec<f32>>,
    dim: usize,
    hidden_dim: usize,
}

impl Operands {
    fn new(mlp: &Mlp, row_len: usize) -> Result<Self> {
        let norm = mlp.norm.on_rows()?;
        let (dim, hidden_dim) = mlp.up.dims()?;
        if row_len != dim || norm.dim() != dim || mlp.down.dims()? != (hidden_dim, dim) {
            candle_core::bail!(
                "mlp: rows of {row_len}, norm of {}, up {:?} and down {:?} do not match",
                norm.dim(),
                (dim, hidden_dim),
                mlp.down.dims()?
            );
        }
        Ok(Self {
            norm,
            scale: mlp.scale.as_ref().map(values).transpose()?,
            dim,
            hidden_dim,
        })
    }
}

/// The forward pass over rows in memory; each map has its bias.
pub(super) struct Forward<'a> {
    pub(super) norm: &'a NormRows,
    pub(super) up: (Factor<'a>, &'a [f32]),
    pub(super) activation: Activation,
    pub(super) down: (Factor<'a>, &'a [f32]),
    pub(super) scale: Option<&'a [f32]>,
}

impl Forward<'_> {
    /// Returns the outputs and, if `keeps`, the hidden layer before the activation; otherwise an empty vector.
    pub(super) fn run(&self, xs: &[f32], keeps: bool) -> (Vec<f32>, Vec<f32>) {
        let (dim, hidden_dim) = (self.norm.dim(), self.up.1.len());
        let mut ys = vec![0f32; xs.len()];
        let n_kept = if keeps {
            xs.len() / dim * hidden_dim
        } else {
            0
        };
        let mut kept = vec![0f32; n_kept];
        let keep = keeps.then_some(SharedOutput(kept.as_mut_ptr()));
        let sizes = Mlp::rows(hidden_dim);
        for_pieces(
            [(&mut ys, dim)],
            sizes,
            Spread::Pool,
            |first_row, [ys], spread| {
                let xs = &xs[first_row * dim..][..ys.len()];
                let rows = MatrixView::row_major(ys.len() / dim, dim);
                let wide = MatrixView::row_major(rows.rows, hidden_dim);
                workspace::with(|buffers| {
                    let Workspace { normed, hidden, .. } = buffers;
                    let (normed, hidden) = (normed.of(xs.len()), hidden.of(wide.end()));
                    self.norm.forward(xs, normed, spread);
                    let ((up, bias), normed) = (self.up, (&*normed, rows));
                    let bias = Start::Bias(bias);
                    up.multiply(normed, bias, hidden, spread, |row, first_col, piece| {
                        if let Some(keep) = keep {
                            let start = (first_row + row) * hidden_dim + first_col;
                            // SAFETY: `kept` holds all rows, and no other piece of work writes this part of a row.
                            unsafe {
                                let to = keep.ptr().add(start);
                                std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
                            }
                        }
                        activation::in_place(self.activation, piece);
                    });
                    let ((down, bias), hidden) = (self.down, (&*hidden, wide));
                    let bias = Start::Bias(bias);
                    down.multiply(hidden, bias, ys, spread, |row, first_col, piece| {
                        let start = row * dim + first_col;
                        let residual = &xs[start..start + piece.len()];
                        scale_and_add(piece, self.scale, first_col, residual);
                    });
                });
            },
        );
        (ys, kept)
    }
}

/// Stores the hidden layer of a forward pass for the backward pass.
pub(super) fn keep(cell: Option<&OnceLock<Vec<f32>>>, kept: Vec<f32>) {
    if let Some(cell) = cell {
        // The operation runs once; a second run would store the same values.
        let _ = cell.set(kept);
    }
}

/// `piece = scale ∘ piece + rest`, where `piece` starts at column `first_col`.
pub(super) fn scale_and_add(
    piece: &mut [f32],
    scale: Option<&[f32]>,
    first_col: usize,
    rest: &[f32],
) {
    if let Some(scale) = scale {
        for (value, scale) in piece.iter_mut().zip(&scale[first_col..]) {
            *value *= scale;
        }
    }
    add_assign(piece, rest);
}

/// Rows of `grad ∘ scale`, in `buffer` if there is a scale.
pub(super) fn scaled<'a>(
    grad: &'a [f32],
    scale: Option<&[f32]>,
    buffer: &'a mut Buffer,
) -> &'a [f32] {
    let Some(scale) = scale else { return grad };
    let scaled = buffer.of(grad.len());
    let rows = grad.chunks_exact(scale.len());
    for (row, grad) in scaled.chunks_exact_mut(scale.len()).zip(rows) {
        for ((value, grad), scale) in row.iter_mut().zip(grad).zip(scale) {
            *value = grad * scale;
        }
    }
    scaled
}

impl CustomOp1 for FusedMlp {
    fn name(&self) -> &'static str {
        "mlp"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Mlp { up, down, .. } = &self.mlp;
        let xs = f32_slice(xs, layout)?;
        let operands = Operands::new(&self.mlp, layout.dims().last().copied().unwrap_or(0))?;
        let (ys, kept) = Forward {
            norm: &operands.norm,
            up: (up.forward_factor()?, &up.bias()?),
            activation: self.mlp.activation,
            down: (down.forward_factor()?, &down.bias()?),
            scale: operands.scale.as_deref(),
        }
        .run(xs, self.kept.is_some());
        keep(self.kept.as_ref(), kept);
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(kept) = self.kept.as_ref().and_then(OnceLock::get) else {
            candle_core::bail!("mlp: no values were saved for the backward pass");
        };
        let operands = Operands::new(&self.mlp, xs.dims().last().copied().unwrap_or(0))?;
        let up = self.mlp.up.backward_factor()?;
        let down = self.mlp.down.backward_factor()?;
        let Operands {
            dim, hidden_dim, ..
        } = operands;
        let scale = operands.scale.as_deref();
        let mut grad_xs = vec![0f32; xs.elem_count()];
        with_f32(xs, |xs| {
            with_f32(grad, |grad| {
                for_pieces(
                    [(&mut grad_xs, dim)],
                    Mlp::rows(hidden_dim),
                    Spread::Pool,
                    |first_row, [grad_xs], spread| {
                        let range = first_row * dim..first_row * dim + grad_xs.len();
                        let (xs, grad) = (&xs[range.clone()], &grad[range]);
                        let rows = MatrixView::row_major(xs.len() / dim, dim);
                        let wide = MatrixView::row_major(rows.rows, hidden_dim);
                        let kept = &kept[first_row * hidden_dim..][..wide.end()];
                        workspace::with(|buffers| {
                            let Workspace {
                                grad: scaled_grad,
                                grad_hidden,
                                ..
                            } = buffers;
                            let scaled_grad = (scaled(grad, scale, scaled_grad), rows);
                            let grad_hidden = grad_hidden.of(wide.end());
                            let through_activation = |row, first_col, piece: &mut [f32]| {
                                let start = row * hidden_dim + first_col;
                                let kept = &kept[start..start + piece.len()];
                                activation::backward_in_place(self.mlp.activation, kept, piece);
                            };
                            down.multiply(
                                scaled_grad,
                                Start::Zeros,
                                grad_hidden,
                                spread,
                                through_activation,
                            );
                            let grad_hidden = (&*grad_hidden, wide);
                            up.multiply(grad_hidden, Start::Zeros, grad_xs, spread, |_, _, _| ());
                            operands.norm.backward(xs, grad_xs, spread);
                            add_assign(grad_xs, grad);
                        });
                    },
                );
                Ok(())
            })
        })?;
        Tensor::from_vec(grad_xs, xs.shape(), xs.device()).map(Some)
    }
}
