//! AdamW (Loshchilov and Hutter, arXiv:1711.05101) with learning rates by group.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use multiversion::multiversion;
use rayon::prelude::*;

use super::Param;
use vitscope_core::error::{Error, Result};

/// Hyperparameters of the moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Term added to the root of the second moment.
    pub eps: f32,
    /// Maximum global norm of the gradients; larger gradients are scaled down.
    pub max_norm: Option<f64>,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_norm: None,
        }
    }
}

struct Moments {
    steps: u32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// The AdamW optimizer.
pub struct AdamW {
    params: Vec<(Param, Moments)>,
    options: AdamWOptions,
}

impl AdamW {
    /// Creates an optimizer of `params` with empty moments.
    pub fn new(params: Vec<Param>, options: AdamWOptions) -> Self {
        let params = params
            .into_iter()
            .map(|param| {
                let len = param.var.elem_count();
                let moments = Moments {
                    steps: 0,
                    mean: vec![0.0; len],
                    square: vec![0.0; len],
                };
                (param, moments)
            })
            .collect();
        Self { params, options }
    }

    /// Creates an optimizer of named variables that decays only matrices and clips gradients to a global norm of 1.
    pub fn decaying_matrices(vars: &BTreeMap<String, Var>, weight_decay: f64) -> Self {
        let param = |(name, var): (&String, &Var)| Param {
            name: name.clone(),
            var: var.clone(),
            lr_factor: 1.0,
            weight_decay: match var.rank() {
                2 => weight_decay,
                _ => 0.0,
            },
        };
        let options = AdamWOptions {
            max_norm: Some(1.0),
            ..AdamWOptions::default()
        };
        Self::new(vars.iter().map(param).collect(), options)
    }

    /// Takes one step at learning rate `lr`; returns the global norm of the gradients before clipping.
    ///
    /// # Errors
    /// Fails if a gradient is not f32.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<f64> {
        let gradient = |(param, _): &(Param, Moments)| -> Result<Option<Vec<f32>>> {
            let grad = grads.get(&param.var);
            Ok(grad.map(|grad| grad.flatten_all()?.to_vec1()).transpose()?)
        };
        let found: Vec<_> = self.params.iter().map(gradient).collect::<Result<_>>()?;
        let norm = found
            .iter()
            .flatten()
            .map(|grad| grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>())
            .sum::<f64>()
            .sqrt();
        let clip = match self.options.max_norm {
            Some(max_norm) if norm > max_norm => (max_norm / norm) as f32,
            _ => 1.0,
        };
        let options = self.options;
        self.params
            .par_iter_mut()
            .zip(found)
            .try_for_each(|((param, moments), grad)| {
                let Some(grad) = grad else { return Ok(()) };
                moments.steps += 1;
                let mut values: Vec<f32> = param.var.flatten_all()?.to_vec1()?;
                let lr = lr * param.lr_factor;
                // Both bias corrections are folded into one factor on the step and one on eps.
                let correct1 = 1.0 - f64::from(options.beta1).powi(moments.steps as i32);
                let correct2 = (1.0 - f64::from(options.beta2).powi(moments.steps as i32)).sqrt();
                let scales = Scales {
                    clip,
                    rate: (lr * correct2 / correct1) as f32,
                    eps: options.eps * correct2 as f32,
                    keep: (1.0 - lr * param.weight_decay) as f32,
                };
                update(&mut values, &grad, moments, options, scales);
                let updated = Tensor::from_vec(values, param.var.shape(), param.var.device())?;
                param.var.set(&updated)?;
                Ok::<_, Error>(())
            })?;
        Ok(norm)
    }

    /// Returns the values and moments of every parameter, for a checkpoint.
    ///
    /// # Errors
    /// Fails if candle cannot allocate.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for (param, moments) in &self.params {
            let name = &param.name;
            let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
            let value = param.var.as_tensor().detach().to_device(&Device::Cpu)?;
            state.insert(format!("param.{name}"), value.copy()?);
            state.insert(format!("mean.{name}"), vector(&moments.mean)?);
            state.insert(format!("square.{name}"), vector(&moments.square)?);
            state.insert(format!("steps.{name}"), vector(&[moments.steps as f32])?);
        }
        Ok(state)
    }

    /// Restores the state returned by [`AdamW::state`].
    ///
    /// # Errors
    /// Fails on the first value that is missing or has another shape, and names it.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for (param, moments) in &mut self.params {
            param.restore(state)?;
            moments.mean = param.saved("mean", state)?.to_vec1()?;
            moments.square = param.saved("square", state)?.to_vec1()?;
            let steps: Vec<f32> = param.saved("steps", state)?.to_vec1()?;
            moments.steps = steps.first().map_or(0, |steps| *steps as u32);
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Scales {
    clip: f32,
    rate: f32,
    eps: f32,
    keep: f32,
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn update(
    values: &mut [f32],
    grad: &[f32],
    moments: &mut Moments,
    options: AdamWOptions,
    scales: Scales,
) {
    let (beta1, beta2) = (options.beta1, options.beta2);
    let moments = moments.mean.iter_mut().zip(&mut moments.square);
    for ((value, &g), (mean, square)) in values.iter_mut().zip(grad).zip(moments) {
        let g = g * scales.clip;
        *mean = beta1 * *mean + (1.0 - beta1) * g;
        *square = beta2 * *square + (1.0 - beta2) * g * g;
        *value = *value * scales.keep - scales.rate * *mean / (square.sqrt() + scales.eps);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn param(name: &str, value: f32, weight_decay: f64) -> Param {
        Param {
            name: name.to_owned(),
            var: Var::new(&[value], &Device::Cpu).unwrap(),
            lr_factor: 1.0,
            weight_decay,
        }
    }

    fn value(param: &Param) -> f32 {
        param.var.to_vec1::<f32>().unwrap()[0]
    }

    /// Expected values: `torch.optim.AdamW([x], lr=0.1, weight_decay=0.01)` on x² from x = 1, PyTorch 2.15.
    #[test]
    fn three_steps_equal_pytorch() {
        let x = param("x", 1.0, 0.01);
        let mut optim = AdamW::new(vec![x.clone()], AdamWOptions::default());
        for expected in [0.899_000_05, 0.798_519_1, 0.698_911_25] {
            let grads = x.var.sqr().unwrap().backward().unwrap();
            optim.step(&grads, 0.1).unwrap();
            assert!(
                (value(&x) - expected).abs() < 1e-6,
                "{} != {expected}",
                value(&x)
            );
        }
    }

    #[test]
    fn a_parameter_without_gradient_keeps_its_value_and_its_state() {
        let (x, y) = (param("x", 1.0, 0.1), param("y", 1.0, 0.1));
        let mut optim = AdamW::new(vec![x.clone(), y.clone()], AdamWOptions::default());
        let grads = x.var.sqr().unwrap().backward().unwrap();
        optim.step(&grads, 0.1).unwrap();
        assert_eq!(value(&y), 1.0);
        let steps = &optim.state().unwrap()["steps.y"];
        assert_eq!(steps.to_vec1::<f32>().unwrap(), [0.0]);
    }
}
