//! TiS: clusters of the features of all blocks as token masks, weighted by the class's probability under them.
//!
//! Paper: Englebert et al., "Explaining through Transformer Input Sampling", ICCV workshops 2023.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | f | channels of all blocks' outputs, one value per patch | |
//! | Mₖ | masks | the `keep` share of patches with the highest values of a k-means centroid of f |
//! | w | | p of the class if the sequence contains only the mask's tokens |
//! | map | | Σ w M / Σ M; 0 if no mask keeps a patch |
//!
//! Cost: 1 forward, k-means, and `clusters` forwards of sequences half as long. **Deviations**: k-means starts from
//! channels drawn by `seed`, the same for all images, and takes `iterations` steps. Models with fewer channels than
//! `clusters` have one cluster per channel. Requires no trained weights.

use candle_core::{D, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::{Copies, Occlusion, Score, each_image, weighted_sum};
use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::vit::{Site, Vit};

/// Explains by clusters of features.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tis {
    /// Largest number of masks.
    pub clusters: usize,
    /// Share of the patches that each mask keeps.
    pub keep: f32,
    /// Iterations of k-means.
    pub iterations: usize,
    /// Seed of the initial centroids.
    pub seed: u64,
}

impl Default for Tis {
    fn default() -> Self {
        Self {
            clusters: 1024,
            keep: 0.5,
            iterations: 10,
            seed: 0,
        }
    }
}

impl Options for Tis {
    const ENTRY: Entry = Entry {
        name: "tis",
        summary: "clusters of all blocks' features used as token masks",
        paper: "TiS, ICCV workshops 2023",
        forwards: "1 + 1024 / 2",
        backwards: "0",
        pace: Pace::C,
    };

    fn check(&self) -> Result<()> {
        if self.clusters > 0 && self.keep > 0.0 && self.keep <= 1.0 {
            return Ok(());
        }
        Err(Error::Config(format!(
            "tis: clusters must be at least 1, and keep must be above 0 and at most 1, got {} and {}",
            self.clusters, self.keep
        )))
    }
}

/// Outputs of all blocks.
fn outputs(vit: &Vit) -> impl Iterator<Item = Site> + use<> {
    (1..=vit.n_blocks()).map(Site::Hidden)
}

impl Explainer for Tis {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        let tokens = Needs::values([Site::Hidden(0)]);
        Needs::values(outputs(vit)).and(tokens)
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let features = outputs(pass.vit())
            .map(|site| pass.patches_of(&pass.value(site)?, 1))
            .collect::<Result<Vec<_>>>()?;
        let features = Tensor::cat(&features, D::Minus1)?
            .transpose(1, 2)?
            .contiguous()?
            .to_device(&Device::Cpu)?; // [batch, blocks · dim, patches]
        each_image(pass, |image_idx| {
            let centroids: Vec<Vec<f32>> = self.centroids(&features.get(image_idx)?)?.to_vec2()?;
            let masks: Vec<Vec<f32>> = centroids
                .iter()
                .map(|values| highest(values, self.keep))
                .collect();
            let copies = Copies::new(pass, image_idx, Occlusion::TokenDrop)?;
            let weights = copies.scores(&masks, Score::Prob)?;
            let (grid_h, grid_w) = pass.grid()?;
            let sum = |weights: &[f32]| weighted_sum(&masks, weights, grid_h * grid_w);
            let pairs = sum(&weights).into_iter().zip(sum(&vec![1.0; masks.len()]));
            Ok(pairs
                .map(|(sum, covered)| if covered > 0.0 { sum / covered } else { 0.0 })
                .collect())
        })
    }
}

impl Tis {
    /// K-means of the rows of `features` by Lloyd's algorithm; a centroid without rows remains unchanged.
    ///
    /// # Shapes
    /// - `features`: `[channels, patches]`
    /// - result: `[clusters, patches]`
    fn centroids(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        let (n_channels, n_patches) = features.dims2()?;
        let n_clusters = self.clusters.min(n_channels);
        let mut channels: Vec<u32> = (0..n_channels as u32).collect();
        Rng::new(self.seed).shuffle(&mut channels);
        channels.truncate(n_clusters);
        let mut centroids = features.index_select(&Tensor::new(channels, features.device())?, 0)?;
        for _ in 0..self.iterations {
            // ‖f − c‖² = ‖f‖² − 2 f · c + ‖c‖²; the first term is the same for all centroids.
            let lengths = centroids.sqr()?.sum(1)?; // [clusters]
            let dots = (features.matmul(&centroids.t()?)? * 2.0)?; // [channels, clusters]
            let nearest: Vec<u32> = dots.broadcast_sub(&lengths)?.argmax(1)?.to_vec1()?;
            let mut sizes = vec![0f32; n_clusters];
            nearest
                .iter()
                .for_each(|&cluster| sizes[cluster as usize] += 1.0);
            let nearest = Tensor::new(nearest, features.device())?;
            let sums = Tensor::zeros((n_clusters, n_patches), features.dtype(), features.device())?
                .index_add(&nearest, features, 0)?;
            let column =
                |values: Vec<f32>| Tensor::from_vec(values, (n_clusters, 1), features.device());
            let empty = column(sizes.iter().map(|&size| f32::from(size == 0.0)).collect())?;
            let sizes = column(sizes.iter().map(|size| size.max(1.0)).collect())?;
            centroids = (sums.broadcast_div(&sizes)? + centroids.broadcast_mul(&empty)?)?;
        }
        Ok(centroids)
    }
}

/// A mask of the share `keep` of highest values, at least one patch.
fn highest(values: &[f32], keep: f32) -> Vec<f32> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let n_kept = ((values.len() as f32 * keep).round() as usize).max(1);
    let mut mask = vec![0f32; values.len()];
    for &patch in order.iter().take(n_kept) {
        mask[patch] = 1.0;
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_means_finds_groups_that_lie_apart() {
        let rows = [[0f32, 0.1], [0.1, 0.0], [5.0, 5.1], [5.1, 5.0], [4.9, 4.9]];
        let features = Tensor::new(&rows, &Device::Cpu).unwrap();
        let tis = Tis {
            clusters: 2,
            ..Tis::default()
        };
        let mut centroids: Vec<Vec<f32>> = tis.centroids(&features).unwrap().to_vec2().unwrap();
        centroids.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let near = |a: f32, b: f32| (a - b).abs() < 1e-5;
        assert!(
            near(centroids[0][0], 0.05) && near(centroids[1][0], 5.0),
            "{centroids:?}"
        );
    }

    #[test]
    fn the_highest_values_are_kept() {
        assert_eq!(
            vec![0.0, 1.0, 0.0, 1.0],
            highest(&[1.0, 4.0, 2.0, 3.0], 0.5)
        );
        assert_eq!(vec![1.0, 0.0], highest(&[1.0, 1.0], 0.1));
    }
}
