//! Whether maps depend on the learned weights of the model, and on the explained class.
//!
//! Adebayo et al. (arXiv:1810.03292) replace learned weights by random ones, from the classifier down to the first
//! layer: the map of a method that explains the model must change.

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::eval::similarity::{class_sensitivity, min_max, spearman, ssim};
use vitscope_core::error::Result;
use vitscope_core::explain::Target;
use vitscope_core::models::ModelWeights;
use vitscope_core::rng::Rng;
use vitscope_core::vit::Vit;
use vitscope_core::vit::init::init_missing;

/// Cascading randomization, and difference between classes.
pub struct Sanity {
    /// Copies of the model with more and more randomized weights.
    randomized: Vec<Vit>,
}

impl Sanity {
    /// Randomizes the classifier of a model, then its last block as well, and so on down to the patch embeddings. Gates
    /// and interpreter are unchanged.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn new(weights: ModelWeights, seed: u64) -> Result<Self> {
        let ModelWeights {
            config,
            mut tensors,
            ..
        } = weights;
        let blocks = (0..config.num_hidden_layers)
            .rev()
            .map(|block| format!("encoder.layer.{block}."));
        let mut randomized = Vec::new();
        let stages = ["classifier".to_owned()].into_iter().chain(blocks);
        for stage in stages.chain(["embeddings.".to_owned()]) {
            tensors.retain(|name, _| !name.starts_with(&stage));
            // Weights drawn at one stage stay the same at the next.
            tensors = init_missing(
                &config,
                tensors,
                &mut Rng::for_item(seed, randomized.len() as u64),
            )?;
            randomized.push(Vit::load(config.clone(), &tensors)?);
        }
        Ok(Self { randomized })
    }
}

impl Suite for Sanity {
    fn measures(&self) -> Vec<Measure> {
        let cascade = "the model's map and that of the model with weights randomized from the classifier down; mean \
                       over all stages";
        let n_stages = self.randomized.len();
        let axis: Vec<f64> = (1..=n_stages)
            .map(|stage| stage as f64 / n_stages as f64)
            .collect();
        let curve = |name, settings: String| Measure {
            axis: axis.clone(),
            axis_name: "share of layers randomized",
            ..Measure::mean("sanity", name, Some(false), &settings)
        };
        vec![
            curve(
                "rank correlation",
                format!("Spearman's rank correlation of {cascade}"),
            ),
            curve(
                "similarity",
                format!("SSIM, on bilinear maps scaled to 0 to 1, of {cascade}"),
            ),
            Measure::mean(
                "sanity",
                "class sensitivity",
                Some(true),
                "1 − correlation of the maps for the two most likely classes",
            ),
        ]
    }

    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let maps =
            |vit: &Vit, target| mapper.maps(batch.model, vit, batch.images, batch.subjects, target);
        let geometry = batch.model.geometry;
        let size = (geometry.height_px, geometry.width_px);
        let unit = |map: &[f32]| min_max(&geometry.pixels_from_patches(map));
        let mut ranks = vec![Vec::new(); batch.subjects.len()];
        let mut likenesses = vec![Vec::new(); batch.subjects.len()];
        for vit in &self.randomized {
            for (nth, random) in maps(vit, Target::Predicted)?.iter().enumerate() {
                let map = &batch.maps[nth];
                // A flat map has no ranks: it correlates fully with an equal map and not at all with any other.
                let flat = f64::from(u8::from(map == random));
                ranks[nth].push(spearman(map, random)?.unwrap_or(flat));
                likenesses[nth].push(ssim(&unit(map), &unit(random), size, 1.0)?);
            }
        }
        let mut scores = Vec::with_capacity(batch.subjects.len());
        for (nth, subject) in batch.subjects.iter().enumerate() {
            let one = batch.images.narrow(0, nth, 1)?;
            let other = mapper.maps(
                batch.model,
                batch.vit,
                &one,
                std::slice::from_ref(subject),
                Target::Class(subject.runner_up),
            )?;
            scores.push(vec![
                Score::mean_of_curve(&ranks[nth]),
                Score::mean_of_curve(&likenesses[nth]),
                class_sensitivity(&batch.maps[nth], &other[0])?.into(),
            ]);
        }
        Ok(scores)
    }
}
