//! ROAD: remove and debias (Rong et al., arXiv:2202.00449).

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::eval::road::imputed;
use vitscope_core::error::Result;

/// Shares of hidden pixels.
const SHARES: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Standard deviation of the noise added to imputed pixels, as in Quantus.
const NOISE: f32 = 0.01;

/// Probability of the class when hidden pixels are imputed from their surroundings, so that the holes reveal nothing.
pub struct Road;

impl Suite for Road {
    fn measures(&self) -> Vec<Measure> {
        let settings = "10 to 90 % of the pixels in order of bilinear scores, imputed from their neighbors with \
                        noise of 0.01; probability of the predicted class, mean over the shares";
        let curve = |name, higher| Measure {
            axis: SHARES.to_vec(),
            axis_name: "share of pixels hidden",
            ..Measure::mean("road", name, Some(higher), settings)
        };
        vec![
            curve("most relevant first", false),
            curve("least relevant first", true),
        ]
    }

    fn score(&self, batch: &Batch<'_>, _mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let geometry = batch.model.geometry;
        let size_px = (geometry.height_px, geometry.width_px);
        // Ascending: the most relevant pixels are last.
        let orders: Vec<Vec<usize>> = (batch.pixel_maps().iter())
            .map(|map| {
                let mut order: Vec<usize> = (0..map.len()).collect();
                order.sort_by(|&a, &b| map[a].total_cmp(&map[b]));
                order
            })
            .collect();
        let mut failure = None;
        let found = batch.probabilities(2 * SHARES.len(), &mut |picture, nth, pixels| {
            let order = &orders[picture];
            let n_hidden = (SHARES[nth % SHARES.len()] * order.len() as f64).round() as usize;
            let least_first = nth >= SHARES.len();
            let gone = match least_first {
                true => &order[..n_hidden],
                false => &order[order.len() - n_hidden..],
            };
            let mut hidden = vec![false; order.len()];
            gone.iter().for_each(|&pixel| hidden[pixel] = true);
            let mut rng = batch.rng(&batch.subjects[picture], 1 + nth as u64);
            match imputed(pixels, size_px, &hidden, NOISE, &mut rng) {
                Ok(whole) => pixels.copy_from_slice(&whole),
                Err(error) => failure = Some(error),
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let halves = found.iter().map(|curves| curves.split_at(SHARES.len()));
        Ok(halves
            .map(|(most, least)| [most, least].map(Score::mean_of_curve).to_vec())
            .collect())
    }
}
