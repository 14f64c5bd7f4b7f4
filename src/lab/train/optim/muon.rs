//! Muon (Jordan et al., 2024), scaled as in Liu et al., arXiv:2502.16982: the momentum of a weight matrix is nearly
//! orthogonalized before it is applied, so every direction of the matrix learns at the same rate.
//!
//! For the matrices of hidden layers only; use [`super::AdamW`] for embeddings, norms, biases and heads.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use super::Param;
use vitscope_core::error::{Error, Result};

/// Decay of the mean of gradients.
const MOMENTUM: f64 = 0.95;

/// Coefficients of the Newton–Schulz step x ↦ a x + b x³ + c x⁵ on singular values, and the number of steps: five steps
/// map values from 0.01 to 1 to between roughly 0.7 and 1.2 (Jordan et al.).
const NEWTON_SCHULZ: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const NEWTON_SCHULZ_STEPS: usize = 5;

/// Root mean square of an update at learning rate 1: about that of AdamW (arXiv:2502.16982, Eq. 4).
const UPDATE_RMS: f64 = 0.2;

/// The Muon optimizer.
pub struct Muon {
    params: Vec<(Param, Tensor)>,
}

impl Muon {
    /// Creates an optimizer of matrices with empty momentum.
    ///
    /// # Errors
    /// Fails on the first parameter that is not a matrix, and names it.
    pub fn new(params: Vec<Param>) -> Result<Self> {
        let params = params
            .into_iter()
            .map(|param| {
                if param.var.rank() != 2 {
                    return Err(Error::Shape {
                        expected: format!("a matrix for {:?}", param.name),
                        got: format!("{:?}", param.var.dims()),
                    });
                }
                let momentum = param.var.zeros_like()?.detach();
                Ok((param, momentum))
            })
            .collect::<Result<_>>()?;
        Ok(Self { params })
    }

    /// Takes one step at learning rate `lr`, on the same scale as AdamW's.
    ///
    /// # Errors
    /// Fails if candle does.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<()> {
        for (param, momentum) in &mut self.params {
            let Some(grad) = grads.get(&param.var) else {
                continue;
            };
            let lr = lr * param.lr_factor;
            let fresh = (grad * (1.0 - MOMENTUM))?;
            *momentum = ((&*momentum * MOMENTUM)? + &fresh)?.detach();
            let ahead = ((&*momentum * MOMENTUM)? + fresh)?; // Nesterov
            let (rows, cols) = ahead.dims2()?;
            let scale = UPDATE_RMS * (rows.max(cols) as f64).sqrt();
            let update = (orthogonalized(&ahead)? * (lr * scale))?;
            let kept = (param.var.as_tensor() * (1.0 - lr * param.weight_decay))?;
            param.var.set(&(kept - update)?.detach())?;
        }
        Ok(())
    }

    /// Returns the values and momentum of every parameter, for a checkpoint.
    ///
    /// # Errors
    /// Fails if candle cannot allocate.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for (param, momentum) in &self.params {
            let value = param.var.as_tensor().detach().to_device(&Device::Cpu)?;
            state.insert(format!("param.{}", param.name), value.copy()?);
            let momentum = momentum.to_device(&Device::Cpu)?;
            state.insert(format!("mean.{}", param.name), momentum);
        }
        Ok(state)
    }

    /// Restores the state returned by [`Muon::state`].
    ///
    /// # Errors
    /// Fails on the first value that is missing or has another shape, and names it.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for (param, momentum) in &mut self.params {
            param.restore(state)?;
            let saved = param.saved("mean", state)?.reshape(param.var.shape())?;
            *momentum = saved.to_device(param.var.device())?;
        }
        Ok(())
    }
}

/// Returns the matrix with the same singular vectors and all singular values near 1.
fn orthogonalized(matrix: &Tensor) -> candle_core::Result<Tensor> {
    let (rows, cols) = matrix.dims2()?;
    if rows > cols {
        return orthogonalized(&matrix.t()?.contiguous()?)?
            .t()?
            .contiguous();
    }
    // The Frobenius norm is at least the largest singular value.
    let norm = matrix.sqr()?.sum_all()?.sqrt()?;
    let mut xs = matrix.broadcast_div(&(norm + 1e-7)?)?;
    let (a, b, c) = NEWTON_SCHULZ;
    for _ in 0..NEWTON_SCHULZ_STEPS {
        let gram = xs.matmul(&xs.t()?)?; // [rows, rows]
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        xs = ((&xs * a)? + polynomial.matmul(&xs)?)?;
    }
    Ok(xs)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn matrix(values: Tensor) -> Param {
        Param {
            name: "w".to_owned(),
            var: Var::from_tensor(&values).unwrap(),
            lr_factor: 1.0,
            weight_decay: 0.01,
        }
    }

    fn start() -> (Tensor, Tensor) {
        let values = [[1f32, -2.0, 0.5], [0.3, 0.8, -1.2]];
        let slopes = [[1f32, 2.0, 3.0], [0.5, 1.5, 2.5]];
        let tensor = |rows| Tensor::new(rows, &Device::Cpu).unwrap();
        (tensor(&values), tensor(&slopes))
    }

    fn step(optim: &mut Muon, w: &Param, slope: &Tensor) {
        let loss = (w.var.sqr().unwrap() * slope).unwrap().sum_all().unwrap();
        optim.step(&loss.backward().unwrap(), 0.1).unwrap();
    }

    fn values(w: &Param) -> Vec<f32> {
        w.var.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Expected values: tests/fixtures/muon.py.
    #[test]
    fn three_steps_equal_pytorch() {
        let expected = [
            0.969_195_84,
            -1.913_400_4,
            0.509_854_7,
            0.276_129_45,
            0.814_057_2,
            -1.098_463_5f32,
        ];
        let (start, slope) = start();
        for transposed in [false, true] {
            let turned = |xs: &Tensor| match transposed {
                true => xs.t().unwrap().contiguous().unwrap(),
                false => xs.clone(),
            };
            let w = matrix(turned(&start));
            let mut optim = Muon::new(vec![w.clone()]).unwrap();
            for _ in 0..3 {
                step(&mut optim, &w, &turned(&slope));
            }
            let got = turned(w.var.as_tensor()).flatten_all().unwrap();
            for (got, want) in got.to_vec1::<f32>().unwrap().iter().zip(expected) {
                assert!((got - want).abs() < 1e-5, "{got} != {want}");
            }
        }
    }

    #[test]
    fn a_restored_state_goes_on_as_the_old_one() {
        let (start, slope) = start();
        let (straight, resumed) = (matrix(start.copy().unwrap()), matrix(start));
        let mut optim = Muon::new(vec![straight.clone()]).unwrap();
        step(&mut optim, &straight, &slope);
        let state = optim.state().unwrap();
        step(&mut optim, &straight, &slope);

        let mut optim = Muon::new(vec![resumed.clone()]).unwrap();
        optim.restore(&state).unwrap();
        step(&mut optim, &resumed, &slope);
        assert_eq!(values(&straight), values(&resumed));
    }

    #[test]
    fn only_matrices_are_taken() {
        let vector = matrix(Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap());
        let error = Muon::new(vec![vector]).err().unwrap().to_string();
        assert!(error.contains("\"w\""), "{error}");
    }
}
