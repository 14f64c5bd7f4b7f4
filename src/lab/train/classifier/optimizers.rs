//! Assignment of a classifier's weights to optimizers.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::ClassifierRecipe;
use crate::train::optim::{AdamW, AdamWOptions, Muon, Param};
use vitscope_core::error::{Error, Result};

/// Muon for the matrices of the blocks if the recipe asks for it, AdamW for all other weights.
pub(super) struct Optimizers {
    adamw: AdamW,
    muon: Option<(Muon, f64)>,
    lr: f64,
}

impl Optimizers {
    pub(super) fn new(recipe: &ClassifierRecipe, vars: &HashMap<String, Var>) -> Result<Self> {
        let mut params: Vec<Param> = vars
            .iter()
            .map(|(name, var)| Param {
                name: name.clone(),
                var: var.clone(),
                lr_factor: 1.0,
                // Biases, norms, tokens and positions are not decayed.
                weight_decay: if name.ends_with("weight") && var.rank() > 1 {
                    recipe.weight_decay
                } else {
                    0.0
                },
            })
            .collect();
        params.sort_by(|a, b| a.name.cmp(&b.name));
        let (matrices, others) = params.into_iter().partition(|param| {
            recipe.muon_lr.is_some() && param.var.rank() == 2 && param.name.starts_with("encoder.")
        });
        let options = AdamWOptions {
            max_norm: Some(recipe.max_norm),
            ..AdamWOptions::default()
        };
        Ok(Self {
            adamw: AdamW::new(others, options),
            muon: recipe
                .muon_lr
                .map(|lr| Ok::<_, Error>((Muon::new(matrices)?, lr)))
                .transpose()?,
            lr: recipe.lr,
        })
    }

    /// Takes one step at `schedule` times the peak learning rates.
    pub(super) fn step(&mut self, grads: &GradStore, schedule: f64) -> Result<()> {
        self.adamw.step(grads, self.lr * schedule)?;
        if let Some((muon, lr)) = &mut self.muon {
            muon.step(grads, *lr * schedule)?;
        }
        Ok(())
    }

    pub(super) fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = self.adamw.state()?;
        if let Some((muon, _)) = &self.muon {
            state.extend(muon.state()?);
        }
        Ok(state)
    }

    pub(super) fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.adamw.restore(state)?;
        match &mut self.muon {
            Some((muon, _)) => muon.restore(state),
            None => Ok(()),
        }
    }
}
