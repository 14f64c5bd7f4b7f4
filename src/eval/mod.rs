//! How good explanations are, in numbers.
//!
//! A mask keeps some patches of an image and takes the others away. How much of the model's answer survives is
//! measured by a pass with that mask, [`masked_answers`]; the tasks that compare masks with a known truth are below.

pub mod classification;
pub mod comparison;
pub mod controls;
pub mod fairness;
pub mod faithfulness;
pub mod flow;
pub mod gallery;
pub mod localization;
pub mod map_metrics;
pub mod masks;
pub mod perturbation;
pub mod segmentation;
pub mod similarity;
pub mod statistics;
pub mod temporal;

use candle_core::{D, Tensor};

use crate::error::Result;
pub(crate) use crate::gates::logits;
pub use crate::gates::{MaskedAnswer, kl_from_logits, masked_answers, masks_within_margin};

/// Share of images whose greatest logits are of the same class.
///
/// # Shapes
/// - `a`, `b`: logits, `[batch, classes]`
///
/// # Errors
/// Fails where the logits have no classes.
pub fn agreement(a: &Tensor, b: &Tensor) -> Result<f64> {
    let a: Vec<u32> = a.argmax(D::Minus1)?.to_vec1()?;
    let b: Vec<u32> = b.argmax(D::Minus1)?.to_vec1()?;
    let same = a.iter().zip(&b).filter(|(a, b)| a == b).count();
    Ok(same as f64 / a.len().max(1) as f64)
}

/// Share of `true`, 0 for none at all.
fn share(flags: impl ExactSizeIterator<Item = bool>) -> f64 {
    let n_flags = flags.len().max(1);
    flags.filter(|&flag| flag).count() as f64 / n_flags as f64
}

/// Mean of some numbers, 0 for none at all.
fn mean(numbers: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n_numbers = numbers.len().max(1);
    numbers.sum::<f64>() / n_numbers as f64
}
