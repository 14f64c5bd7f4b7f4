//! A small network that reads two tensors and returns one number per row, as in DiffMask's gates.

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

use super::packed::{Start, TILE_ROWS};
use super::workspace::{self, Workspace};
use super::{
    Linear, MatrixView, Products, Spread, exp, for_images, for_pieces, images_mut, is_fused,
    sum_by, with_f32,
};

/// `tanh(out(tanh(first(xs) + own(ys))))`, including the biases of both `first` and `own`.
#[derive(Clone, Debug)]
pub struct Vote {
    /// `dim` to `hidden`
    pub first: Linear,
    /// `dim` to `hidden`
    pub own: Linear,
    /// `hidden` to 1
    pub out: Linear,
}

impl Vote {
    /// Computes votes for the last `n` tokens of each image; `products` are those of the first layer on the CPU.
    ///
    /// No gradient is propagated: on the CPU the weights must be frozen, and the graphs of `xs` and `ys` are not
    /// differentiated.
    ///
    /// # Shapes
    /// - `xs`: `[batch, n, dim]`
    /// - `ys`: `[batch, tokens, dim]`, at least `n` tokens
    /// - result: `[batch, n]`
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn forward(&self, xs: &Tensor, ys: &Tensor, products: Products) -> Result<Tensor> {
        let (batch, n, dim) = xs.dims3()?;
        let (ys_batch, tokens, ys_dim) = ys.dims3()?;
        let (in_dim, hidden_dim) = self.first.dims()?;
        if (batch, dim) != (ys_batch, ys_dim) || tokens < n || dim != in_dim {
            candle_core::bail!(
                "vote: xs {:?} and ys {:?} do not match maps of {in_dim}",
                xs.shape(),
                ys.shape()
            );
        }
        let frozen = [&self.first, &self.own, &self.out]
            .into_iter()
            .all(Linear::is_frozen);
        if !(is_fused(xs) && is_fused(ys) && frozen) {
            let own = ys.narrow(1, tokens - n, n)?;
            let hidden = (self.first.forward(xs)? + self.own.forward(&own)?)?.tanh()?;
            let votes = self.out.forward(&hidden)?.squeeze(2)?.tanh()?;
            return Ok(votes.detach());
        }
        if self.own.dims()? != (dim, hidden_dim) || self.out.dims()? != (hidden_dim, 1) {
            candle_core::bail!(
                "vote: maps {:?}, {:?} and {:?} do not match",
                (in_dim, hidden_dim),
                self.own.dims()?,
                self.out.dims()?
            );
        }
        let mut votes = vec![0f32; batch * n];
        with_f32(xs, |xs| {
            with_f32(ys, |ys| {
                self.forward_rows((xs, ys), (n, tokens), products, &mut votes)
            })
        })?;
        Tensor::from_vec(votes, (batch, n), xs.device())
    }

    fn forward_rows(
        &self,
        (xs, ys): (&[f32], &[f32]),
        (n, tokens): (usize, usize),
        products: Products,
        votes: &mut [f32],
    ) -> Result<()> {
        let (dim, hidden_dim) = self.first.dims()?;
        let (first, own) = (self.first.factor(products)?, self.own.factor(products)?);
        let bias: Vec<f32> = self
            .first
            .bias()?
            .into_iter()
            .zip(self.own.bias()?)
            .map(|(first, own)| first + own)
            .collect();
        let weight = self.out.weight()?;
        let out_bias = self.out.bias()?.first().copied().unwrap_or(0.0);
        let vote = |(xs, ys): (&[f32], &[f32]), votes: &mut [f32], spread: Spread| {
            workspace::with(|buffers| {
                let Workspace { hidden, .. } = buffers;
                let hidden = hidden.of(votes.len() * hidden_dim);
                let view = MatrixView::row_major(votes.len(), dim);
                let start = Start::Bias(&bias);
                first.multiply((xs, view), start, hidden, spread, |_, _, _| ());
                let start = Start::Destination;
                own.multiply((ys, view), start, hidden, spread, |_, _, piece| tanh(piece));
                for (vote, row) in votes.iter_mut().zip(hidden.chunks_exact(hidden_dim)) {
                    *vote = out_bias + sum_by(hidden_dim, |i| row[i] * weight[i]);
                }
                tanh(votes);
            });
        };
        for_images(images_mut(votes, n), |image_idx, votes, spread| {
            let xs = &xs[image_idx * n * dim..][..n * dim];
            let ys = &ys[(image_idx * tokens + tokens - n) * dim..][..n * dim];
            for_pieces(
                [(votes, 1)],
                (TILE_ROWS, n),
                spread,
                |first_row, [votes], spread| {
                    let rows = first_row * dim..(first_row + votes.len()) * dim;
                    vote((&xs[rows.clone()], &ys[rows]), votes, spread);
                },
            );
        });
        Ok(())
    }
}

/// The hyperbolic tangent in place; the absolute error is below 2e-7.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn tanh(xs: &mut [f32]) {
    let fused = target_cfg_f!(any(target_feature = "fma", target_feature = "avx512f"));
    for x in xs {
        *x = 1.0 - 2.0 / (1.0 + exp(2.0 * *x, fused));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn tanh_is_that_of_the_standard_library() {
        for step in -2000..=2000 {
            let x = step as f32 * 0.05;
            let mut got = [x];
            super::tanh(&mut got);
            assert!((got[0] - x.tanh()).abs() < 2e-7, "tanh({x}) = {}", got[0]);
        }
    }
}
