//! The MLP of a block with trainable weights: one node of candle's graph instead of five.
//!
//! candle adds the gradient of every node to a tensor of zeros, so each node costs three passes over memory. The
//! weights are passed as one tensor, because candle's operations have at most three arguments.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::linear::Factor;
use super::mlp::{Forward, keep};
use super::norm::NormRows;
use super::packed::{Packed, RightHand, Start};
use super::workspace::{self, Workspace};
use super::{
    Activation, LayerNorm, Linear, MatrixView, Spread, activation, add_assign, f32_slice, with_f32,
};

/// Rows that one thread differentiates at a time.
const PIECE_ROWS: usize = 256;
/// Number of partial sums for the gradients of the weights, independent of the number of threads.
const LANES: usize = 8;

/// `xs + down(act(up(norm(xs))))`.
///
/// # Shapes
/// - `xs` and result: `[.., dim]`
///
/// # Errors
/// Fails if the shapes do not fit.
pub(super) fn forward(
    xs: &Tensor,
    norm: &LayerNorm,
    up: &Linear,
    activation: Activation,
    down: &Linear,
) -> Result<Tensor> {
    let (dim, hidden_dim) = up.dims()?;
    let (norm_weight, norm_bias, eps) = norm.parts();
    let fits = norm_weight.dims() == [dim] && norm_bias.dims() == [dim];
    if xs.dims().last() != Some(&dim) || !fits || down.dims()? != (hidden_dim, dim) {
        candle_core::bail!(
            "mlp: xs {:?}, norm {:?}, up {:?} and down {:?} do not match",
            xs.shape(),
            norm_weight.shape(),
            (dim, hidden_dim),
            down.dims()?
        );
    }
    let mut weights = vec![norm_weight.clone(), norm_bias.clone()];
    for part in [up.parts(), down.parts()].concat() {
        weights.push(part.flatten_all()?);
    }
    let op = LearningMlp {
        places: Places { dim, hidden_dim },
        eps,
        activation,
        kept: OnceLock::new(),
    };
    xs.contiguous()?.apply_op2(&Tensor::cat(&weights, 0)?, op)
}

/// Positions of the weights in their common tensor: norm, up and down, each weight before its bias.
#[derive(Clone, Copy)]
struct Places {
    dim: usize,
    hidden_dim: usize,
}

impl Places {
    fn lens(self) -> [usize; 6] {
        let Self { dim, hidden_dim } = self;
        let map = dim * hidden_dim;
        [dim, dim, map, hidden_dim, map, dim]
    }

    fn split(self, mut flat: &[f32]) -> [&[f32]; 6] {
        self.lens().map(|len| {
            let (part, rest) = flat.split_at(len);
            flat = rest;
            part
        })
    }

    fn split_mut(self, mut flat: &mut [f32]) -> [&mut [f32]; 6] {
        self.lens().map(|len| {
            let (part, rest) = std::mem::take(&mut flat).split_at_mut(len);
            flat = rest;
            part
        })
    }

    /// The weight of `up`, `[hidden, dim]`; that of `down` has the transposed shape.
    fn up(self) -> MatrixView {
        MatrixView::row_major(self.hidden_dim, self.dim)
    }

    fn down(self) -> MatrixView {
        MatrixView::row_major(self.dim, self.hidden_dim)
    }
}

struct LearningMlp {
    places: Places,
    eps: f32,
    activation: Activation,
    /// The hidden layer before the activation, `[rows, hidden]`.
    kept: OnceLock<Vec<f32>>,
}

impl CustomOp2 for LearningMlp {
    fn name(&self) -> &'static str {
        "learning-mlp"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        flat: &CpuStorage,
        flat_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, flat) = (f32_slice(xs, layout)?, f32_slice(flat, flat_layout)?);
        let [norm_weight, norm_bias, up, up_bias, down, down_bias] = self.places.split(flat);
        let up = Packed::new((up, self.places.up().transposed()));
        let down = Packed::new((down, self.places.down().transposed()));
        let (ys, kept) = Forward {
            norm: &NormRows::new(norm_weight, norm_bias, self.eps),
            up: (Factor::F32(&up), up_bias),
            activation: self.activation,
            down: (Factor::F32(&down), down_bias),
            scale: None,
        }
        .run(xs, true);
        keep(Some(&self.kept), kept);
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        flat: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else {
            candle_core::bail!("mlp: no values were saved for the backward pass");
        };
        let mut grad_xs = vec![0f32; xs.elem_count()];
        let grad_flat = with_f32(xs, |xs| {
            with_f32(flat, |flat| {
                with_f32(grad, |grad| {
                    let backward = Backward::new(self.places, self.eps, self.activation, flat);
                    Ok(backward.run((xs, kept, grad), &mut grad_xs))
                })
            })
        })?;
        Ok((
            Some(Tensor::from_vec(grad_xs, xs.shape(), xs.device())?),
            Some(Tensor::from_vec(grad_flat, flat.shape(), flat.device())?),
        ))
    }
}

/// The operands of a backward pass.
struct Backward {
    places: Places,
    activation: Activation,
    norm: NormRows,
    up: Packed,
    down: Packed,
}

impl Backward {
    fn new(places: Places, eps: f32, activation: Activation, flat: &[f32]) -> Self {
        let [norm_weight, norm_bias, up, _, down, _] = places.split(flat);
        Self {
            places,
            activation,
            norm: NormRows::new(norm_weight, norm_bias, eps),
            up: Packed::new((up, places.up())),
            down: Packed::new((down, places.down())),
        }
    }

    /// Computes the gradient of the weights; writes that of the inputs to `grad_xs`.
    fn run(&self, (xs, kept, grad): (&[f32], &[f32], &[f32]), grad_xs: &mut [f32]) -> Vec<f32> {
        let Places { dim, hidden_dim } = self.places;
        let mut lanes: Vec<Vec<_>> = (0..LANES).map(|_| Vec::new()).collect();
        let pieces = grad_xs.chunks_mut(PIECE_ROWS * dim);
        for (piece_idx, (grad_xs, (xs, grad))) in pieces
            .zip(
                xs.chunks(PIECE_ROWS * dim)
                    .zip(grad.chunks(PIECE_ROWS * dim)),
            )
            .enumerate()
        {
            let start = piece_idx * PIECE_ROWS * hidden_dim;
            let kept = &kept[start..][..xs.len() / dim * hidden_dim];
            lanes[piece_idx % LANES].push((grad_xs, xs, kept, grad));
        }
        let sums: Vec<Vec<f32>> = lanes
            .into_par_iter()
            .map(|pieces| {
                let mut sums = vec![0f32; self.places.lens().iter().sum()];
                for (grad_xs, xs, kept, grad) in pieces {
                    self.add_piece((xs, kept, grad), grad_xs, &mut sums);
                }
                sums
            })
            .collect();
        let mut sums = sums.into_iter();
        let mut total = sums.next().unwrap_or_default();
        for lane in sums {
            add_assign(&mut total, &lane);
        }
        total
    }

    /// Adds the gradient of the weights for some rows to `sums`.
    fn add_piece(
        &self,
        (xs, kept, grad): (&[f32], &[f32], &[f32]),
        grad_xs: &mut [f32],
        sums: &mut [f32],
    ) {
        let Places { dim, hidden_dim } = self.places;
        let rows = MatrixView::row_major(xs.len() / dim, dim);
        let wide = MatrixView::row_major(rows.rows, hidden_dim);
        let [norm_weight, norm_bias, up, up_bias, down, down_bias] = self.places.split_mut(sums);
        workspace::with(|buffers| {
            let Workspace {
                normed,
                hidden,
                grad_hidden,
                values: packed,
                ..
            } = buffers;
            let (normed, hidden) = (normed.of(rows.end()), hidden.of(wide.end()));
            let grad_hidden = grad_hidden.of(wide.end());
            let (start, spread) = (Start::Zeros, Spread::Thread);
            self.down
                .multiply((grad, rows), start, grad_hidden, spread, |_, _, _| ());
            activation::both(self.activation, kept, hidden, grad_hidden);
            packed.fill((hidden, wide));
            let lhs = (grad, rows.transposed());
            packed.multiply(lhs, Start::Destination, down, spread, |_, _, _| ());
            add_rows(down_bias, grad);
            self.norm.forward(xs, normed, spread);
            packed.fill((normed, rows));
            let lhs = (&*grad_hidden, wide.transposed());
            packed.multiply(lhs, Start::Destination, up, spread, |_, _, _| ());
            add_rows(up_bias, grad_hidden);
            self.up
                .multiply((grad_hidden, wide), start, grad_xs, spread, |_, _, _| ());
            self.norm
                .add_weight_gradients(xs, grad_xs, [norm_weight, norm_bias]);
            self.norm.backward(xs, grad_xs, spread);
            add_assign(grad_xs, grad);
        });
    }
}

/// Adds all rows of `xs` to `sums`.
fn add_rows(sums: &mut [f32], xs: &[f32]) {
    for row in xs.chunks_exact(sums.len()) {
        add_assign(sums, row);
    }
}
