//! How much maps change when images barely do (Yeh et al., arXiv:1901.09392; Agarwal et al., arXiv:2203.06877).

use candle_core::Tensor;

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::eval::similarity::{max_sensitivity, relative_input_stability};
use vitscope_core::error::Result;
use vitscope_core::explain::Target;

/// Maximum change of a map over images with a little noise, as measured by captum and Quantus.
pub struct Sensitivity {
    /// Number of noisy copies per image, 10 in captum.
    pub n_copies: usize,
    /// Maximum change of a normalized value, 0.02 in captum.
    pub radius: f32,
}

impl Default for Sensitivity {
    fn default() -> Self {
        Self {
            n_copies: 10,
            radius: 0.02,
        }
    }
}

impl Suite for Sensitivity {
    fn measures(&self) -> Vec<Measure> {
        let Self { n_copies, radius } = self;
        let settings = format!(
            "{n_copies} copies, uniform noise of at most {radius} on each normalized value"
        );
        ["max sensitivity", "relative input stability"]
            .map(|name| Measure::mean("sensitivity", name, Some(false), &settings))
            .to_vec()
    }

    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let mut changed: Vec<Vec<(Vec<f32>, Vec<f32>)>> = vec![Vec::new(); batch.subjects.len()];
        for copy in 0..self.n_copies {
            let noisy: Vec<Vec<f32>> = (batch.subjects.iter())
                .map(|subject| {
                    let mut rng = batch.rng(subject, 1 + copy as u64);
                    let mut noise = || self.radius * (2.0 * rng.uniform() - 1.0);
                    subject.image.iter().map(|value| value + noise()).collect()
                })
                .collect();
            let images =
                Tensor::from_vec(noisy.concat(), batch.images.shape(), batch.images.device())?;
            let maps = mapper.maps(
                batch.model,
                batch.vit,
                &images,
                batch.subjects,
                Target::Predicted,
            )?;
            for ((changed, map), image) in changed.iter_mut().zip(maps).zip(noisy) {
                changed.push((map, image));
            }
        }
        let of_picture = batch.subjects.iter().zip(batch.maps).zip(changed);
        of_picture
            .map(|((subject, map), changed)| {
                let maps: Vec<&Vec<f32>> = changed.iter().map(|(map, _)| map).collect();
                Ok(vec![
                    max_sensitivity(map, &maps)?.into(),
                    relative_input_stability(map, &subject.image, &changed)?.into(),
                ])
            })
            .collect()
    }
}
