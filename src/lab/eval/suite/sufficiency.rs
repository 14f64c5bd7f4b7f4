//! Contribution of the top-ranked patches alone, and what remains without them.

use candle_core::Tensor;

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::eval::map_metrics::{adcc, average_drop, comprehensiveness, increase, sufficiency};
use crate::eval::perturbation::{Substrate, change};
use crate::eval::similarity::{coherency, min_max};
use vitscope_core::error::Result;
use vitscope_core::explain::Target;
use vitscope_core::gates::ranking;

/// Shares of patches that count as top-ranked, as in ERASER.
const SHARES: [f64; 5] = [0.01, 0.05, 0.1, 0.2, 0.5];

/// Comprehensiveness and sufficiency on patches; average drop, increase and ADCC of the image multiplied by its map.
pub struct Sufficiency;

impl Suite for Sufficiency {
    fn measures(&self) -> Vec<Measure> {
        let shares = "mean over 1, 5, 10, 20 and 50 % of the patches, replaced by zeros";
        let under = "picture multiplied by its bilinear map, scaled to 0 to 1";
        [
            ("comprehensiveness", true, shares),
            ("sufficiency", false, shares),
            ("average drop", false, under),
            ("increase", true, under),
            ("ADCC", true, under),
        ]
        .map(|(name, higher, settings)| Measure::mean("sufficiency", name, Some(higher), settings))
        .to_vec()
    }

    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let geometry = batch.model.geometry;
        let zeros = batch.filled(Substrate::Zeros);
        let ranked: Vec<Vec<usize>> = batch.maps.iter().map(|map| ranking(map)).collect();
        // For each share, first with the top-ranked patches removed, then with the others removed.
        let changed = batch.probabilities(2 * SHARES.len(), &mut |picture, nth, pixels| {
            let patches = &ranked[picture];
            let share = SHARES[nth % SHARES.len()];
            let n_best = (share * patches.len() as f64).round().max(1.0) as usize;
            let (best, others) = patches.split_at(n_best.min(patches.len()));
            let removed = if nth < SHARES.len() { best } else { others };
            for &patch in removed {
                let of_patch: Vec<usize> = geometry.pixels_of_patch(patch).collect();
                change(pixels, &zeros[picture], &of_patch);
            }
        })?;
        let units: Vec<Vec<f32>> = batch.pixel_maps().iter().map(|map| min_max(map)).collect();
        let under = batch.probabilities(1, &mut |picture, _, pixels| {
            shade(pixels, &units[picture]);
        })?;
        let of_masked = self.maps_of_masked(batch, mapper, &units)?;
        let originals = batch.originals()?;
        let mut scores = Vec::with_capacity(originals.len());
        for (picture, &original) in originals.iter().enumerate() {
            let (without, only) = changed[picture].split_at(SHARES.len());
            let drop = average_drop(&[original], &under[picture])?;
            let complexity = units[picture].iter().copied().map(f64::from).sum::<f64>()
                / units[picture].len() as f64;
            let coherency = coherency(&batch.maps[picture], &of_masked[picture])?;
            let adcc = coherency.map(|coherency| adcc(coherency.clamp(0.0, 1.0), complexity, drop));
            scores.push(vec![
                comprehensiveness(original, without)?.into(),
                sufficiency(original, only)?.into(),
                drop.into(),
                increase(&[original], &under[picture])?.into(),
                adcc.transpose()?.into(),
            ]);
        }
        Ok(scores)
    }
}

impl Sufficiency {
    /// Computes the method's maps of the images multiplied by their own maps.
    fn maps_of_masked(
        &self,
        batch: &Batch<'_>,
        mapper: &Mapper<'_>,
        units: &[Vec<f32>],
    ) -> Result<Vec<Vec<f32>>> {
        let mut values = Vec::new();
        for (subject, unit) in batch.subjects.iter().zip(units) {
            let mut pixels = subject.image.clone();
            shade(&mut pixels, unit);
            values.extend(pixels);
        }
        let images = Tensor::from_vec(values, batch.images.shape(), batch.images.device())?;
        mapper.maps(
            batch.model,
            batch.vit,
            &images,
            batch.subjects,
            Target::Predicted,
        )
    }
}

/// Multiplies all channels of an image by a map from 0 to 1.
fn shade(pixels: &mut [f32], unit: &[f32]) {
    for channel in pixels.chunks_mut(unit.len().max(1)) {
        for (pixel, unit) in channel.iter_mut().zip(unit) {
            *pixel *= unit;
        }
    }
}
