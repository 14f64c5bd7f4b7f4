//! Gates of a run that explain most on the test images.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::{Checkpoint, best_tensors};
use vitscope_core::error::{Error, Result};

/// Name of the checkpoint tensor that holds the explained share of the best gates.
const EXPLAINED: &str = "best explained";

/// Best gates so far, with their explained share.
#[derive(Default)]
pub(super) struct MostExplained(Option<(f64, BTreeMap<String, Tensor>)>);

impl MostExplained {
    /// Stores the tensors of gates that explain more than any before.
    pub(super) fn offer(&mut self, explained: f64, tensors: BTreeMap<String, Tensor>) {
        if self.0.as_ref().is_none_or(|(most, _)| explained > *most) {
            self.0 = Some((explained, tensors));
        }
    }

    /// Returns true before the first measurement.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Takes the explained share and the tensors of the best gates.
    pub(super) fn take(&mut self) -> Result<(f64, BTreeMap<String, Tensor>)> {
        let none = || Error::Model("no gates were measured".into());
        self.0.take().ok_or_else(none)
    }

    /// Returns the tensors to store in a checkpoint.
    pub(super) fn saved(&self) -> Result<Vec<(String, Tensor)>> {
        let Some((explained, best)) = &self.0 else {
            return Ok(Vec::new());
        };
        let explained = Tensor::new(&[*explained as f32], &Device::Cpu)?;
        let mut saved: Vec<_> = best_tensors(best).collect();
        saved.push((EXPLAINED.into(), explained));
        Ok(saved)
    }

    /// Restores the tensors that [`saved`](Self::saved) put into a checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let explained = checkpoint.tensors.get(EXPLAINED);
        let explained: Option<Vec<f32>> = explained.map(Tensor::to_vec1).transpose()?;
        Ok(Self(match explained.as_deref() {
            Some([explained]) => Some((f64::from(*explained), checkpoint.best())),
            _ => None,
        }))
    }
}
