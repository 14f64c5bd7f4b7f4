//! Conciseness of maps; the model is not queried.

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::eval::map_metrics::{Unsigned, entropy, sparseness};
use vitscope_core::error::Result;

/// Sparseness and entropy as computed by Quantus.
pub struct Sparseness;

impl Suite for Sparseness {
    fn measures(&self) -> Vec<Measure> {
        vec![
            Measure::mean(
                "sparseness",
                "gini",
                Some(true),
                "Gini index of absolute scores",
            ),
            Measure::mean(
                "sparseness",
                "entropy",
                Some(false),
                "in nats, of absolute scores divided by their sum",
            ),
        ]
    }

    fn score(&self, batch: &Batch<'_>, _mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let of_map = |map: &Vec<f32>| {
            let gini = sparseness(map, Unsigned::Absolute)?;
            Ok(vec![gini.into(), entropy(map)?.into()])
        };
        batch.maps.iter().map(of_map).collect()
    }
}
