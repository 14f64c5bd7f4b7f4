//! Multi-head attention without splitting heads: `softmax(q kᵀ / sqrt(head_dim)) v` (arXiv:1706.03762, Eq. 1).
//!
//! Queries, keys and values keep the layout `[batch, tokens, heads · head_dim]`; a head is a range of columns, so
//! nothing is permuted. Probabilities are stored in a buffer for one head and recomputed in the backward pass. Callers
//! that need them as a tensor combine [`scores`], [`super::softmax()`] and [`mix`].

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::packed::{Packed, RightHand, Start, TILE_ROWS};
use super::softmax::{softmax_rows, softmax_rows_backward};
use super::workspace::{self, Buffer, Workspace};
use super::{
    LANES, MatrixView, Products, SharedOutput, Spread, f32_slice, for_images, images_mut, is_fused,
    with_f32,
};

/// Attention with `heads` heads.
///
/// # Shapes
/// - `q` and result: `[batch, queries, heads * head_dim]`
/// - `k`, `v`: `[batch, tokens, heads * head_dim]`
///
/// # Errors
/// Fails if the shapes do not fit or `heads` does not divide the last dimension.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let one = |xs: &Tensor| xs.narrow(1, 0, 1);
    check(&[&one(q)?, &one(k)?], heads)?;
    check(&[k, v], heads)?;
    let learns = [q, k, v].into_iter().any(Tensor::track_op);
    // The backward pass of the operation is for as many queries as tokens.
    if is_fused(q) && (q.dims() == k.dims() || !learns) {
        let op = Attention { heads };
        return q
            .contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    mix(&super::softmax(&scores(q, k, heads)?)?, v)
}

/// Scores of each query and key in each head: `q kᵀ / sqrt(head_dim)`.
///
/// # Shapes
/// - `q`: `[batch, queries, heads * head_dim]`
/// - `k`: `[batch, tokens, heads * head_dim]`
/// - result: `[batch, heads, queries, tokens]`, rows are queries
///
/// # Errors
/// Fails if the shapes do not fit or `heads` does not divide the last dimension.
pub fn scores(q: &Tensor, k: &Tensor, heads: usize) -> Result<Tensor> {
    let one = |xs: &Tensor| xs.narrow(1, 0, 1);
    let dim = check(&[&one(q)?, &one(k)?], heads)?;
    if is_fused(q) && q.dims() == k.dims() {
        return q
            .contiguous()?
            .apply_op2(&k.contiguous()?, Scores { heads });
    }
    let scale = ((dim / heads) as f64).powf(-0.5);
    split(q, heads)?.matmul(&split(k, heads)?.t()?)? * scale
}

/// The values of each head, weighted by the head's probabilities.
///
/// # Shapes
/// - `probabilities`: `[batch, heads, queries, tokens]`, rows are queries
/// - `v`: `[batch, tokens, heads * head_dim]`
/// - result: `[batch, queries, heads * head_dim]`
///
/// # Errors
/// Fails if the shapes do not fit.
pub fn mix(probabilities: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (batch, tokens, _) = v.dims3()?;
    let (_, heads, queries, _) = probabilities.dims4()?;
    let dim = check(&[v], heads)?;
    if probabilities.dims() != [batch, heads, queries, tokens] {
        candle_core::bail!(
            "attention: probabilities {:?} and v {:?} do not match",
            probabilities.shape(),
            v.shape()
        );
    }
    if is_fused(v) && queries == tokens {
        return probabilities
            .contiguous()?
            .apply_op2(&v.contiguous()?, Mix { heads });
    }
    probabilities
        .matmul(&split(v, heads)?)?
        .transpose(1, 2)?
        .reshape((batch, queries, dim))
}

/// Checks that all tensors have the same shape `[batch, tokens, heads * head_dim]`, and returns `heads * head_dim`.
fn check(xs: &[&Tensor], heads: usize) -> Result<usize> {
    let shapes: Vec<_> = xs.iter().map(|xs| xs.dims()).collect();
    match shapes.as_slice() {
        [first @ [_, _, dim], rest @ ..]
            if heads > 0 && dim.is_multiple_of(heads) && rest.iter().all(|dims| dims == first) =>
        {
            Ok(*dim)
        }
        _ => candle_core::bail!("attention: shapes {shapes:?} and {heads} heads do not match"),
    }
}

/// Splits `[batch, tokens, heads * head_dim]` into `[batch, heads, tokens, head_dim]`.
fn split(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, dim) = xs.dims3()?;
    xs.reshape((batch, tokens, heads, dim / heads))?
        .transpose(1, 2)?
        .contiguous()
}

struct Attention {
    heads: usize,
}

/// Queries that are scored at a time, so that their scores stay in the L2 cache.
const QUERY_BLOCK: usize = 256;

/// Sizes of the attention in one image; each row holds all heads of a token.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) tokens: usize,
    pub(super) dim: usize,
}

impl Heads {
    fn scale(self) -> f32 {
        ((self.dim / self.heads) as f32).powf(-0.5)
    }

    /// The columns of a head.
    fn columns(self, head_idx: usize) -> MatrixView {
        self.columns_of(head_idx, self.tokens)
    }

    /// The columns of a head in a matrix with this number of rows.
    fn columns_of(self, head_idx: usize, rows: usize) -> MatrixView {
        let head_dim = self.dim / self.heads;
        MatrixView {
            start: head_idx * head_dim,
            cols: head_dim,
            ..MatrixView::row_major(rows, self.dim)
        }
    }

    /// Attention of one image.
    ///
    /// # Shapes
    /// - `q`, `out`: `[queries, dim]`
    /// - `k`, `v`: `[tokens, dim]`
    pub(super) fn forward(
        self,
        products: Products,
        qkv: [&[f32]; 3],
        out: &mut [f32],
        spread: Spread,
    ) {
        match products {
            Products::F32 => self.forward_with(qkv, out, spread, |buffers| {
                (&mut buffers.scores, &mut buffers.keys, &mut buffers.values)
            }),
            Products::Bf16 => self.forward_with(qkv, out, spread, |buffers| {
                let (keys, values) = (&mut buffers.rounded_keys, &mut buffers.rounded_values);
                (&mut buffers.scores, keys, values)
            }),
        }
    }

    /// [`forward`](Self::forward) with products by the right-hand sides that `select` takes from the buffers.
    fn forward_with<R: RightHand>(
        self,
        [q, k, v]: [&[f32]; 3],
        out: &mut [f32],
        spread: Spread,
        select: impl Fn(&mut Workspace) -> (&mut Buffer, &mut R, &mut R) + Sync,
    ) {
        assert_eq!(out.len(), q.len());
        let n_queries = q.len() / self.dim.max(1);
        let block_rows = match spread {
            Spread::Thread => QUERY_BLOCK,
            // Two blocks per head keep an even number of threads busy if the number of heads is odd.
            Spread::Pool => QUERY_BLOCK.min(n_queries.div_ceil(2)),
        };
        let block_rows = block_rows.next_multiple_of(TILE_ROWS);
        let n_blocks = n_queries.div_ceil(block_rows);
        let shared = SharedOutput(out.as_mut_ptr());
        let work = |unit: usize| {
            let (head_idx, block_idx) = (unit / n_blocks, unit % n_blocks);
            let first_row = block_idx * block_rows;
            let head = self.columns(head_idx);
            let queries = self
                .columns_of(head_idx, n_queries)
                .rows_from(first_row, block_rows.min(n_queries - first_row));
            workspace::with(|buffers| {
                let (scores, keys, values) = select(buffers);
                let row_len = self.tokens.next_multiple_of(LANES);
                keys.fill_wider((k, head.transposed()), row_len);
                let scores = scores.of(queries.rows * row_len);
                probabilities((q, queries), (keys, self.tokens), self.scale(), scores);
                let scores_view = MatrixView {
                    cols: self.tokens,
                    ..MatrixView::row_major(queries.rows, row_len)
                };
                let scores = (&*scores, scores_view);
                values.fill_wider((v, head), head.cols);
                // SAFETY: `queries` names elements of `out` that no other piece of work touches.
                unsafe {
                    values.multiply_into(
                        (shared, queries),
                        scores,
                        Start::Zeros,
                        Spread::Thread,
                        |_, _, _| (),
                    );
                }
            });
        };
        let n_units = self.heads * n_blocks;
        match spread {
            Spread::Thread => (0..n_units).for_each(work),
            Spread::Pool => (0..n_units).into_par_iter().for_each(work),
        }
    }

    /// Gradients of one image's queries, keys and values.
    ///
    /// # Shapes
    /// - all: `[tokens, dim]`
    pub(super) fn backward(
        self,
        [q, k, v]: [&[f32]; 3],
        grad: &[f32],
        grads: [&mut [f32]; 3],
        spread: Spread,
    ) {
        let [grad_q, grad_k, grad_v] = grads.map(|grad| {
            assert_eq!(grad.len(), self.tokens * self.dim);
            SharedOutput(grad.as_mut_ptr())
        });
        let square = MatrixView::row_major(self.tokens, self.tokens);
        let work = |head_idx: usize| {
            let head = self.columns(head_idx);
            let (scale, transposed) = (self.scale(), head.transposed());
            workspace::with(|buffers| {
                let Workspace {
                    scores,
                    grad_scores,
                    keys: packed,
                    ..
                } = buffers;
                let probs = scores.of(square.end());
                packed.fill((k, transposed));
                probabilities((q, head), (packed, self.tokens), scale, probs);
                let grad_scores = grad_scores.of(square.end());
                packed.fill((v, transposed));
                packed.multiply(
                    (grad, head),
                    Start::Zeros,
                    grad_scores,
                    Spread::Thread,
                    |_, _, _| (),
                );
                let probs_t = (&*probs, square.transposed());
                // SAFETY: `head` names columns that no other piece of work touches.
                unsafe { product((grad_v, head), probs_t, (grad, head), 1.0, packed) }
                softmax_rows_backward(probs, grad_scores, self.tokens);
                let grad_scores_t = (&*grad_scores, square.transposed());
                // SAFETY: as above.
                unsafe {
                    product(
                        (grad_q, head),
                        (grad_scores, square),
                        (k, head),
                        scale,
                        packed,
                    );
                    product((grad_k, head), grad_scores_t, (q, head), scale, packed);
                }
            });
        };
        match spread {
            Spread::Thread => (0..self.heads).for_each(work),
            Spread::Pool => (0..self.heads).into_par_iter().for_each(work),
        }
    }
}

/// Rows of `softmax(q kᵀ · scale)` over the first `n_keys` keys; all others get zeros.
fn probabilities(
    q: (&[f32], MatrixView),
    (keys, n_keys): (&impl RightHand, usize),
    scale: f32,
    scores: &mut [f32],
) {
    keys.multiply(q, Start::Zeros, scores, Spread::Thread, |_, _, _| ());
    for row in scores.chunks_exact_mut(keys.cols()) {
        row[n_keys..].fill(f32::NEG_INFINITY);
    }
    softmax_rows(scores, keys.cols(), scale);
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, queries, dim) = q_layout.shape().dims3()?;
        let (_, tokens, _) = k_layout.shape().dims3()?;
        let heads = Heads {
            heads: self.heads,
            tokens,
            dim,
        };
        let (q, k, v) = (
            f32_slice(q, q_layout)?,
            f32_slice(k, k_layout)?,
            f32_slice(v, v_layout)?,
        );
        let mut out = vec![0f32; q.len()];
        for_images(
            images_mut(&mut out, queries * dim),
            |image_idx, out, spread| {
                let rows = |rows: usize| image_idx * rows * dim..(image_idx + 1) * rows * dim;
                let qkv = [&q[rows(queries)], &k[rows(tokens)], &v[rows(tokens)]];
                heads.forward(Products::F32, qkv, out, spread);
            },
        );
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, tokens, dim) = q.dims3()?;
        let heads = Heads {
            heads: self.heads,
            tokens,
            dim,
        };
        let image_len = tokens * dim;
        let [mut grad_q, mut grad_k, mut grad_v] = [(); 3].map(|()| vec![0f32; q.elem_count()]);
        let outputs = images_mut(&mut grad_q, image_len)
            .into_iter()
            .zip(images_mut(&mut grad_k, image_len))
            .zip(images_mut(&mut grad_v, image_len))
            .map(|((grad_q, grad_k), grad_v)| [grad_q, grad_k, grad_v])
            .collect();
        with_f32(q, |q| {
            with_f32(k, |k| {
                with_f32(v, |v| {
                    with_f32(grad, |grad| {
                        for_images(outputs, |image_idx, grads, spread| {
                            let start = image_idx * image_len;
                            let range = start..start + image_len;
                            let qkv = [q, k, v].map(|xs| &xs[range.clone()]);
                            heads.backward(qkv, &grad[range], grads, spread);
                        });
                        Ok(())
                    })
                })
            })
        })?;
        let grad = |grad| Tensor::from_vec(grad, q.shape(), q.device()).map(Some);
        Ok((grad(grad_q)?, grad(grad_k)?, grad(grad_v)?))
    }
}

/// Calls `work(columns of a head within its image's rows, view of the head's square, buffers)` for every head of every
/// image.
fn for_heads(
    (batch, tokens, dim): (usize, usize, usize),
    heads: usize,
    work: impl Fn(MatrixView, MatrixView, &mut Packed) + Sync,
) {
    let sizes = Heads { heads, tokens, dim };
    (0..batch * heads).into_par_iter().for_each(|unit| {
        let (image_idx, head_idx) = (unit / heads, unit % heads);
        let columns = sizes.columns(head_idx);
        let columns = MatrixView {
            start: columns.start + image_idx * tokens * dim,
            ..columns
        };
        let square = MatrixView {
            start: unit * tokens * tokens,
            ..MatrixView::row_major(tokens, tokens)
        };
        workspace::with(|buffers| work(columns, square, &mut buffers.values));
    });
}

/// `dst = scale * lhs · rhs` on the calling thread.
///
/// # Safety
/// As for [`RightHand::multiply_into`].
unsafe fn product(
    dst: (SharedOutput, MatrixView),
    lhs: (&[f32], MatrixView),
    rhs: (&[f32], MatrixView),
    scale: f32,
    packed: &mut Packed,
) {
    packed.fill(rhs);
    let finish = |_, _, piece: &mut [f32]| piece.iter_mut().for_each(|value| *value *= scale);
    // SAFETY: the caller upholds the same requirements.
    unsafe { packed.multiply_into(dst, lhs, Start::Zeros, Spread::Thread, finish) }
}

struct Scores {
    heads: usize,
}

impl CustomOp2 for Scores {
    fn name(&self) -> &'static str {
        "attention-scores"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims @ (batch, tokens, dim) = q_layout.shape().dims3()?;
        let (q, k) = (f32_slice(q, q_layout)?, f32_slice(k, k_layout)?);
        let scale = ((dim / self.heads) as f32).powf(-0.5);
        let mut scores = vec![0f32; batch * self.heads * tokens * tokens];
        let out = SharedOutput(scores.as_mut_ptr());
        for_heads(dims, self.heads, |head, square, packed| {
            // SAFETY: each head has its own square.
            unsafe {
                product(
                    (out, square),
                    (q, head),
                    (k, head.transposed()),
                    scale,
                    packed,
                )
            }
        });
        let shape = (batch, self.heads, tokens, tokens).into();
        Ok((CpuStorage::F32(scores), shape))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        _scores: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dims @ (_, _, dim) = q.dims3()?;
        let scale = ((dim / self.heads) as f32).powf(-0.5);
        let [mut grad_q, mut grad_k] = [(); 2].map(|()| vec![0f32; q.elem_count()]);
        let (out_q, out_k) = (
            SharedOutput(grad_q.as_mut_ptr()),
            SharedOutput(grad_k.as_mut_ptr()),
        );
        with_f32(q, |q| {
            with_f32(k, |k| {
                with_f32(grad, |grad| {
                    for_heads(dims, self.heads, |head, square, packed| {
                        // SAFETY: each head has its own columns.
                        unsafe {
                            product((out_q, head), (grad, square), (k, head), scale, packed);
                            let grad = (grad, square.transposed());
                            product((out_k, head), grad, (q, head), scale, packed);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        let grad = |grad| Tensor::from_vec(grad, q.shape(), q.device()).map(Some);
        Ok((grad(grad_q)?, grad(grad_k)?))
    }
}

struct Mix {
    heads: usize,
}

impl CustomOp2 for Mix {
    fn name(&self) -> &'static str {
        "attention-mix"
    }

    fn cpu_fwd(
        &self,
        probs: &CpuStorage,
        probs_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims = v_layout.shape().dims3()?;
        let (probs, v) = (f32_slice(probs, probs_layout)?, f32_slice(v, v_layout)?);
        let mut mixed = vec![0f32; v.len()];
        let out = SharedOutput(mixed.as_mut_ptr());
        for_heads(dims, self.heads, |head, square, packed| {
            // SAFETY: each head has its own columns.
            unsafe { product((out, head), (probs, square), (v, head), 1.0, packed) }
        });
        Ok((CpuStorage::F32(mixed), v_layout.shape().clone()))
    }

    fn bwd(
        &self,
        probs: &Tensor,
        v: &Tensor,
        _mixed: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dims = v.dims3()?;
        let mut grad_probs = vec![0f32; probs.elem_count()];
        let mut grad_v = vec![0f32; v.elem_count()];
        let (out_probs, out_v) = (
            SharedOutput(grad_probs.as_mut_ptr()),
            SharedOutput(grad_v.as_mut_ptr()),
        );
        with_f32(probs, |probs| {
            with_f32(v, |v| {
                with_f32(grad, |grad| {
                    for_heads(dims, self.heads, |head, square, packed| {
                        let v_transposed = (v, head.transposed());
                        // SAFETY: each head has its own square and columns.
                        unsafe {
                            product((out_probs, square), (grad, head), v_transposed, 1.0, packed);
                            let probs = (probs, square.transposed());
                            product((out_v, head), probs, (grad, head), 1.0, packed);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        Ok((
            Some(Tensor::from_vec(grad_probs, probs.shape(), probs.device())?),
            Some(Tensor::from_vec(grad_v, v.shape(), v.device())?),
        ))
    }
}
