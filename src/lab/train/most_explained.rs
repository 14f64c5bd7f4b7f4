//! The gates of a run that explain most of what test pictures are measured by.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::{Checkpoint, best_tensors};
use vitscope_core::error::{Error, Result};

/// Tensor name in a checkpoint of how much the best gates explain.
const EXPLAINED: &str = "best explained";

/// The best gates so far, and how much they explain.
#[derive(Default)]
pub(super) struct MostExplained(Option<(f64, BTreeMap<String, Tensor>)>);

impl MostExplained {
    /// Remembers the tensors of gates that explain more than any before.
    pub(super) fn offer(&mut self, explained: f64, tensors: BTreeMap<String, Tensor>) {
        if self.0.as_ref().is_none_or(|(most, _)| explained > *most) {
            self.0 = Some((explained, tensors));
        }
    }

    /// True before the first measurement.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How much the best gates explain, and these.
    pub(super) fn take(&mut self) -> Result<(f64, BTreeMap<String, Tensor>)> {
        let none = || Error::Model("no gates were measured".into());
        self.0.take().ok_or_else(none)
    }

    /// What a checkpoint holds of them.
    pub(super) fn saved(&self) -> Result<Vec<(String, Tensor)>> {
        let Some((explained, best)) = &self.0 else {
            return Ok(Vec::new());
        };
        let explained = Tensor::new(&[*explained as f32], &Device::Cpu)?;
        let mut saved: Vec<_> = best_tensors(best).collect();
        saved.push((EXPLAINED.into(), explained));
        Ok(saved)
    }

    /// What [`saved`](Self::saved) put into a checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let explained = checkpoint.tensors.get(EXPLAINED);
        let explained: Option<Vec<f32>> = explained.map(Tensor::to_vec1).transpose()?;
        Ok(Self(match explained.as_deref() {
            Some([explained]) => Some((f64::from(*explained), checkpoint.best())),
            _ => None,
        }))
    }
}
