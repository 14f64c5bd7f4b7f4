//! Multi-head attention on unsplit heads: `softmax(q kᵀ / sqrt(head_dim)) v` (arXiv:1706.03762, Eq. 1).
//!
//! Queries, keys and values keep the layout `[batch, tokens, heads · head_dim]`; a head is a range of
//! columns, so nothing is permuted or copied. Probabilities live in a scratch buffer of one head and are
//! computed again in the backward pass. Who needs them as a tensor composes [`super::softmax()`] instead.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use super::softmax::{softmax_rows, softmax_rows_backward};
use super::{Into, MatrixView, SharedOutput, f32_slice, is_fused, matmul, matmul_raw, with_f32};

/// Attention of `heads` heads.
///
/// # Shapes
/// - `q`, `k`, `v`: `[batch, tokens, heads * head_dim]`; the result has the same
///
/// # Errors
/// Fails where the shapes differ or `heads` does not divide the last dimension.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, dim) = q.dims3()?;
    if k.dims() != q.dims() || v.dims() != q.dims() || heads == 0 || dim % heads != 0 {
        candle_core::bail!(
            "attention: q {:?}, k {:?}, v {:?} and {heads} heads do not fit",
            q.shape(),
            k.shape(),
            v.shape()
        );
    }
    if is_fused(q) {
        let op = Attention { heads };
        return q
            .contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    let head_dim = dim / heads;
    let split = |xs: &Tensor| {
        xs.reshape((batch, tokens, heads, head_dim))?
            .transpose(1, 2)?
            .contiguous() // [batch, heads, tokens, head_dim]
    };
    let scores = (split(q)?.matmul(&split(k)?.t()?)? * (head_dim as f64).powf(-0.5))?;
    super::softmax(&scores)?
        .matmul(&split(v)?)?
        .transpose(1, 2)?
        .reshape((batch, tokens, dim))
}

struct Attention {
    heads: usize,
}

thread_local! {
    /// Scores of one head and their gradient; kept, so that a forward pass does not allocate for each head.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Runs `work(image and head as columns, scratch, scratch)` for every head of every image.
fn for_heads(
    (batch, tokens, dim): (usize, usize, usize),
    heads: usize,
    work: impl Fn(MatrixView, &mut [f32], &mut [f32]) + Sync,
) {
    let head_dim = dim / heads;
    (0..batch * heads).into_par_iter().for_each(|unit| {
        let (image_idx, head_idx) = (unit / heads, unit % heads);
        let columns = MatrixView::columns(
            image_idx * tokens * dim,
            tokens,
            dim,
            head_idx * head_dim,
            head_dim,
        );
        SCRATCH.with_borrow_mut(|(scores, grad_scores)| {
            scores.resize(tokens * tokens, 0.0);
            grad_scores.resize(tokens * tokens, 0.0);
            work(columns, scores, grad_scores);
        });
    });
}

/// Probabilities of one head: `softmax(q kᵀ · scale)`.
fn probabilities(q: &[f32], k: &[f32], head: MatrixView, scale: f32, scores: &mut [f32]) {
    let square = MatrixView::row_major(head.rows, head.rows);
    matmul(
        (scores, square),
        (q, head),
        (k, head.transposed()),
        scale,
        Into::Overwrite,
        Parallelism::None,
    );
    softmax_rows(scores, head.rows);
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
        let (batch, tokens, dim) = q_layout.shape().dims3()?;
        let (q, k, v) = (
            f32_slice(q, q_layout)?,
            f32_slice(k, k_layout)?,
            f32_slice(v, v_layout)?,
        );
        let scale = ((dim / self.heads) as f32).powf(-0.5);
        let mut out = vec![0f32; q.len()];
        let shared = SharedOutput(out.as_mut_ptr());
        for_heads((batch, tokens, dim), self.heads, |head, scores, _| {
            probabilities(q, k, head, scale, scores);
            // SAFETY: `head` names columns of `out` that no other piece of work touches.
            unsafe {
                matmul_raw(
                    (shared.ptr(), head),
                    (scores, MatrixView::row_major(tokens, tokens)),
                    (v, head),
                    1.0,
                    Into::Overwrite,
                    Parallelism::None,
                );
            }
        });
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
        let (batch, tokens, dim) = q.dims3()?;
        let scale = ((dim / self.heads) as f32).powf(-0.5);
        let mut grads = [(); 3].map(|()| vec![0f32; q.elem_count()]);
        let [grad_q, grad_k, grad_v] = grads.each_mut().map(|g| SharedOutput(g.as_mut_ptr()));
        let square = MatrixView::row_major(tokens, tokens);
        with_f32(q, |q| {
            with_f32(k, |k| {
                with_f32(v, |v| {
                    with_f32(grad, |grad| {
                        for_heads(
                            (batch, tokens, dim),
                            self.heads,
                            |head, probs, grad_probs| {
                                probabilities(q, k, head, scale, probs);
                                matmul(
                                    (grad_probs, square),
                                    (grad, head),
                                    (v, head.transposed()),
                                    1.0,
                                    Into::Overwrite,
                                    Parallelism::None,
                                );
                                let store = |dst: SharedOutput, lhs, rhs, scale| {
                                    // SAFETY: `head` names columns that no other piece of work touches.
                                    unsafe {
                                        matmul_raw(
                                            (dst.ptr(), head),
                                            lhs,
                                            (rhs, head),
                                            scale,
                                            Into::Overwrite,
                                            Parallelism::None,
                                        );
                                    }
                                };
                                store(grad_v, (&*probs, square.transposed()), grad, 1.0);
                                softmax_rows_backward(probs, grad_probs, tokens);
                                store(grad_q, (&*grad_probs, square), k, scale);
                                store(grad_k, (&*grad_probs, square.transposed()), q, scale);
                            },
                        );
                        Ok(())
                    })
                })
            })
        })?;
        let [grad_q, grad_k, grad_v] = grads.map(|g| Tensor::from_vec(g, q.shape(), q.device()));
        Ok((Some(grad_q?), Some(grad_k?), Some(grad_v?)))
    }
}
