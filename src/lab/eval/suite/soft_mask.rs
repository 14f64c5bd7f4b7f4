//! Second evaluation routine of Vision DiffMask's code: maps of any method as soft masks of patch embeddings.

use candle_core::Tensor;

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::eval::{kl_from_logits, logits};
use vitscope_core::error::Result;
use vitscope_core::gates::{Removal, masked_pass};
use vitscope_video::overlay::Range;

/// Model's output when each patch fades to the removal that the gates were trained with, the more the further its score
/// is below the maximum.
pub struct SoftMask {
    /// Removal of patches, as in the model's gates.
    pub removal: Removal,
}

impl Suite for SoftMask {
    fn measures(&self) -> Vec<Measure> {
        let settings = "soft mask on patch embeddings: scores from 0 to 1 unchanged, other scores divided by their \
                        map's maximum, negative scores set to 0";
        [
            ("KL", Some(false)),
            ("accuracy", Some(true)),
            ("masked %", None),
        ]
        .map(|(name, higher)| Measure::mean("soft-mask", name, higher, settings))
        .to_vec()
    }

    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let masks: Vec<Vec<f32>> = match mapper.range() {
            Some(Range::Unit) => batch.maps.to_vec(),
            _ => batch.maps.iter().map(|map| soft_mask(map)).collect(),
        };
        let n_patches = masks.first().map_or(0, Vec::len);
        let mask = Tensor::from_vec(
            masks.concat(),
            (masks.len(), n_patches),
            batch.images.device(),
        )?;
        let masked = logits(masked_pass(batch.vit, batch.images, &mask, &self.removal)?.logits)?;
        let kl = kl_from_logits(&batch.model.logits(batch.images)?, &masked)?.to_vec1::<f32>()?;
        let named = masked.argmax(1)?.to_vec1::<u32>()?;
        let of_picture = batch.subjects.iter().zip(kl).zip(named).zip(&masks);
        Ok(of_picture
            .map(|(((subject, kl), named), mask)| {
                let right = |label: usize| f64::from(u8::from(named as usize == label));
                let kept = mask.iter().sum::<f32>() / n_patches.max(1) as f32;
                vec![
                    // Rounding can make a zero divergence slightly negative.
                    f64::from(kl.max(0.0)).into(),
                    subject.label.map(right).into(),
                    f64::from(100.0 * (1.0 - kept)).into(),
                ]
            })
            .collect())
    }
}

/// Converts a map to a mask by dividing by its maximum, as in their code.
fn soft_mask(map: &[f32]) -> Vec<f32> {
    let greatest = map.iter().copied().fold(0.0, f32::max);
    let divisor = if greatest > 0.0 { greatest } else { 1.0 };
    map.iter().map(|score| score.max(0.0) / divisor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_mask_keeps_the_best_rated_patch_whole_and_nothing_below_zero() {
        assert_eq!(soft_mask(&[2.0, -1.0, 1.0]), [1.0, 0.0, 0.5]);
        assert_eq!(soft_mask(&[0.0, -1.0]), [0.0, 0.0]);
    }
}
