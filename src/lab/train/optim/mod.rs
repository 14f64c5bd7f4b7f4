//! Optimizers with state that can be saved.
//!
//! A parameter without a gradient is skipped together with its state, as required for branches that a step does not
//! take.

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
    /// Variable to update.
    pub var: Var,
    /// Factor on the step's learning rate.
    pub lr_factor: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Param {
    /// Returns the tensor that a checkpoint stores as the `kind` of this parameter.
    fn saved<'a>(&self, kind: &str, state: &'a HashMap<String, Tensor>) -> Result<&'a Tensor> {
        let name = &self.name;
        state
            .get(&format!("{kind}.{name}"))
            .ok_or_else(|| Error::Config(format!("the checkpoint lacks {kind} of {name:?}")))
    }

    /// Restores the value from a checkpoint.
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
