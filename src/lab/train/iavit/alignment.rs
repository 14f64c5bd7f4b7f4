//! Distance between the attention of the interpreter and of the model: the alignment terms of IA-ViT.
//!
//! | symbol | here |
//! |---|---|
//! | p | attention of the model to its patches, one distribution per image, without gradient |
//! | q | attention of the interpreter, averaged over queries |
//!
//! The authors' code minimizes a single cross term of a kernel, which drives p and q apart; it is available as
//! [`released`] to reproduce their runs. The other terms implement what the paper describes.

use candle_core::{D, Result, Tensor};

/// Kernel widths, as factors of the mean squared distance.
const WIDTHS: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];

/// Addend that keeps logarithms finite.
const SMALL: f64 = 1e-12;

/// Squared maximum mean discrepancy between the batch's p and q, with a sum of Gaussian kernels (Gretton et al., JMLR
/// 2012, Eq. 5); zero if both are the same set.
///
/// # Shapes
/// - `p`, `q`: `[batch, patches]`
/// - result: `[]`
///
/// # Errors
/// Fails if the shapes differ.
pub(super) fn mmd(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let [pp, qq, pq] = [(p, p), (q, q), (p, q)].map(|(a, b)| squared_distances(a, b));
    let (pp, qq, pq) = (pp?, qq?, pq?);
    // Over all ordered pairs of the combined batches.
    let scale = ((pp.mean_all()? + qq.mean_all()?)? + (pq.mean_all()? * 2.0)?)?.detach();
    let scale = ((scale / 4.0)? + SMALL)?;
    let kernel = |distances: &Tensor| {
        let scaled = distances.broadcast_div(&scale)?;
        let mut sum = scaled.zeros_like()?;
        for width in WIDTHS {
            sum = (sum + (&scaled * (-0.5 / width))?.exp()?)?;
        }
        sum.mean_all()
    };
    (kernel(&pp)? + kernel(&qq)?)? - (kernel(&pq)? * 2.0)?
}

/// Jensen-Shannon divergence of each image's p and q, averaged over the batch; between 0 and ln 2.
///
/// # Shapes
/// - `p`, `q`: `[batch, patches]`
/// - result: `[]`
///
/// # Errors
/// Fails if the shapes differ.
pub(super) fn jensen_shannon(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let log_middle = (((p + q)? * 0.5)? + SMALL)?.log()?;
    let half = |xs: &Tensor| (xs * ((xs + SMALL)?.log()? - &log_middle)?)?.sum(D::Minus1);
    (half(p)? + half(q)?)?.mean_all()? * 0.5
}

/// Regularizer of the authors' code: a Gaussian kernel between all p and q, whose width is their mean distance.
///
/// # Shapes
/// - `p`, `q`: `[batch, patches]`
/// - result: `[]`
///
/// # Errors
/// Fails if the shapes differ.
pub(super) fn released(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let distances = squared_distances(p, q)?;
    let scale = (distances.mean_all()?.detach() + SMALL)?;
    (distances.broadcast_div(&scale)? * -0.5)?.exp()?.mean_all()
}

/// Squared distances between each row of `a` and each row of `b`, `[rows of a, rows of b]`.
fn squared_distances(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.unsqueeze(1)?
        .broadcast_sub(&b.unsqueeze(0)?)?
        .sqr()?
        .sum(D::Minus1)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use vitscope_core::rng::Rng;

    fn distributions(rng: &mut Rng, batch: usize, n_patches: usize) -> Tensor {
        let scores = rng.normal_tensor((batch, n_patches), &Device::Cpu).unwrap();
        candle_nn::ops::softmax(&scores, D::Minus1).unwrap()
    }

    fn scalar(xs: &Tensor) -> f32 {
        xs.to_scalar().unwrap()
    }

    fn mean_paired_distance(p: &Tensor, q: &Tensor) -> f32 {
        let distances = (p - q).unwrap().sqr().unwrap().sum(D::Minus1).unwrap();
        scalar(&distances.mean_all().unwrap())
    }

    /// Returns the ratio of the paired distance after and before a small step of `q` against the gradient of `loss`.
    fn after_a_step(loss: fn(&Tensor, &Tensor) -> Result<Tensor>) -> f32 {
        let mut rng = Rng::new(3);
        let p = distributions(&mut rng, 8, 16);
        let q = Var::from_tensor(&distributions(&mut rng, 8, 16)).unwrap();
        let grads = loss(&p, q.as_tensor()).unwrap().backward().unwrap();
        let step = (grads.get(&q).unwrap() * 1e-3).unwrap();
        let moved = (q.as_tensor() - step).unwrap();
        mean_paired_distance(&p, &moved) / mean_paired_distance(&p, q.as_tensor())
    }

    /// Reference values from `tests/fixtures/interpreter_parity.py`.
    #[test]
    fn the_terms_are_those_of_pytorch() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/interpreter.safetensors"
        );
        let reference = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let (p, q) = (&reference["p"], &reference["q"]);
        let terms = [
            ("mmd", mmd(p, q)),
            ("jensen_shannon", jensen_shannon(p, q)),
            ("released", released(p, q)),
        ];
        for (name, term) in terms {
            let (found, expected) = (scalar(&term.unwrap()), scalar(&reference[name]));
            assert!(
                (found - expected).abs() < 1e-5,
                "{name}: {found}, {expected}"
            );
        }
    }

    #[test]
    fn equal_attention_has_no_distance() {
        let p = distributions(&mut Rng::new(1), 6, 9);
        assert!(scalar(&mmd(&p, &p).unwrap()).abs() < 1e-6);
        assert!(scalar(&jensen_shannon(&p, &p).unwrap()).abs() < 1e-6);
    }

    #[test]
    fn the_divergence_of_disjoint_attention_is_ln_2() {
        let p = Tensor::new(&[[0.5f32, 0.5, 0.0, 0.0]], &Device::Cpu).unwrap();
        let q = Tensor::new(&[[0.0f32, 0.0, 1.0, 0.0]], &Device::Cpu).unwrap();
        let divergence = scalar(&jensen_shannon(&p, &q).unwrap());
        assert!((divergence - std::f32::consts::LN_2).abs() < 1e-5);
    }

    #[test]
    fn a_step_brings_attention_together_and_that_of_the_released_code_apart() {
        assert!(after_a_step(mmd) < 1.0);
        assert!(after_a_step(jensen_shannon) < 1.0);
        assert!(after_a_step(released) > 1.0);
    }

    /// e^(-1/2) if all distances are equal: the value barely changes.
    #[test]
    fn the_released_term_is_pinned() {
        let mut rng = Rng::new(5);
        let (p, q) = (
            distributions(&mut rng, 8, 196),
            distributions(&mut rng, 8, 196),
        );
        let value = scalar(&released(&p, &q).unwrap());
        assert!((value - 0.6065).abs() < 0.02, "{value}");
    }
}
