//! Evaluation of explanations.
//!
//! A mask keeps some patches of an image and removes the others. A forward pass with the mask, [`masked_answers`],
//! measures how much of the model's output survives. The modules below compare masks and maps with a known truth and
//! with each other.

pub mod batched;
pub mod calibration;
pub mod class_names;
pub mod classification;
pub mod comparison;
pub mod confusions;
pub mod controls;
mod examples;
pub mod fairness;
pub mod faithfulness;
pub mod gallery;
pub mod journal;
pub mod localization;
pub mod map_metrics;
pub mod masks;
pub mod perturbation;
pub mod report;
pub mod road;
pub mod segmentation;
pub mod similarity;
pub mod statistics;
pub mod suite;
pub mod summary;
pub mod temporal;
pub mod video;

use candle_core::{D, Tensor};

use vitscope_core::error::Result;
pub(crate) use vitscope_core::gates::logits;
pub use vitscope_core::gates::{MaskedAnswer, kl_from_logits, masked_answers, masks_within_margin};

/// Share of images for which both have the same most probable class.
///
/// # Shapes
/// - `a`, `b`: logits, `[batch, classes]`
///
/// # Errors
/// Fails if the logits have no classes.
pub fn agreement(a: &Tensor, b: &Tensor) -> Result<f64> {
    let a: Vec<u32> = a.argmax(D::Minus1)?.to_vec1()?;
    let b: Vec<u32> = b.argmax(D::Minus1)?.to_vec1()?;
    let same = a.iter().zip(&b).filter(|(a, b)| a == b).count();
    Ok(same as f64 / a.len().max(1) as f64)
}

/// Share of `true` values; 0 if there are none at all.
fn share(flags: impl ExactSizeIterator<Item = bool>) -> f64 {
    let n_flags = flags.len().max(1);
    flags.filter(|&flag| flag).count() as f64 / n_flags as f64
}

/// Mean of some numbers; 0 if there are none.
fn mean(numbers: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n_numbers = numbers.len().max(1);
    numbers.sum::<f64>() / n_numbers as f64
}

/// Resizes a grid of values, rows first: bilinear between cell centers, constant beyond the outermost ones, as torch's
/// `interpolate` with `align_corners=False`.
fn resized(values: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    let source = |idx: usize, from: usize, to: usize| {
        ((idx as f64 + 0.5) * from as f64 / to as f64 - 0.5) as f32
    };
    let places = (0..to.0).flat_map(|row| (0..to.1).map(move |column| (row, column)));
    let values = places.map(|(row, column)| {
        let place = (source(column, from.1, to.1), source(row, from.0, to.0));
        vitscope_core::flow::bilinear((from.1, from.0), place, |idx| values[idx])
    });
    values.collect()
}
