//! SaCo: whether groups of pixels matter as much as their salience says (Wu et al., arXiv:2404.01415).

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::eval::map_metrics::{saco, salience_groups};
use crate::eval::perturbation::{Substrate, change};
use vitscope_core::error::Result;

/// Salience-guided faithfulness coefficient of the map at the size of the image.
pub struct Saco {
    /// Number of pixel groups, 10 in the paper.
    pub n_groups: usize,
}

impl Default for Saco {
    fn default() -> Self {
        Self { n_groups: 10 }
    }
}

impl Suite for Saco {
    fn measures(&self) -> Vec<Measure> {
        let settings = format!(
            "{} groups of pixels by bilinear scores, each replaced by the picture's mean color; probability of the \
             predicted class",
            self.n_groups
        );
        vec![Measure::mean("saco", "saco", Some(true), &settings)]
    }

    fn score(&self, batch: &Batch<'_>, _mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let pixel_maps = batch.pixel_maps();
        let groups = pixel_maps
            .iter()
            .map(|map| salience_groups(map, self.n_groups));
        let groups = groups.collect::<Result<Vec<Vec<Vec<usize>>>>>()?;
        let means = batch.filled(Substrate::Mean);
        let changed = batch.probabilities(self.n_groups, &mut |picture, nth, pixels| {
            change(pixels, &means[picture], &groups[picture][nth]);
        })?;
        let originals = batch.originals()?;
        let of_picture = originals.iter().zip(changed).zip(groups).zip(&pixel_maps);
        of_picture
            .map(|(((original, changed), groups), map)| {
                let sum =
                    |group: &Vec<usize>| group.iter().map(|&pixel| f64::from(map[pixel])).sum();
                let saliences: Vec<f64> = groups.iter().map(sum).collect();
                let drops: Vec<f64> = changed.iter().map(|changed| original - changed).collect();
                Ok(vec![saco(&saliences, &drops)?.into()])
            })
            .collect()
    }
}
