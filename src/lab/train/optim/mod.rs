//! Optimizers whose state can be saved.
//!
//! A parameter without a gradient is skipped together with its state, as a parameter of a branch that
//! this step did not take should be.

pub mod adamw;
pub mod muon;

pub use adamw::{AdamW, AdamWOptions};
pub use muon::Muon;

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use vitscope_core::error::{Error, Result};

/// A variable to train.
#[derive(Clone, Debug)]
pub struct Param {
    /// Name in checkpoints.
    pub name: String,
    /// What is changed.
    pub var: Var,
    /// Factor on the step's learning rate.
    pub lr_factor: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Param {
    /// What a checkpoint holds as the `kind` of this parameter.
    fn saved<'a>(&self, kind: &str, state: &'a HashMap<String, Tensor>) -> Result<&'a Tensor> {
        let name = &self.name;
        state
            .get(&format!("{kind}.{name}"))
            .ok_or_else(|| Error::Config(format!("the checkpoint lacks {kind} of {name:?}")))
    }

    /// Takes over the value that a checkpoint holds.
    fn restore(&self, state: &HashMap<String, Tensor>) -> Result<()> {
        let value = self.saved("param", state)?;
        if value.dims() != self.var.dims() {
            return Err(Error::Shape {
                expected: format!("{:?} for {:?}", self.var.dims(), self.name),
                got: format!("{:?}", value.dims()),
            });
        }
        Ok(self.var.set(&value.to_device(self.var.device())?)?)
    }
}
