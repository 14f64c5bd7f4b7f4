//! ViT-CX: clustered features of the last block as masks, weighted by the class's probability under them.
//!
//! Paper: Xie et al., "ViT-CX: Causal Explanation of Vision Transformers", IJCAI 2023, arXiv:2211.03064.
//! Similar channels of the last block's tokens are merged, so that few masks represent many.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | T_d | channel of the tokens after the last block's first norm, scaled to \[0, 1\] | |
//! | Mₖ | masks | sum of a cluster's channels, scaled to \[0, 1\] |
//! | ε | noise that replaces hidden pixels | N(0, 0.1²) |
//! | wₖ | | p(x M + ε (1 − M)) − p(x + ε (1 − M)) + p(x) |
//! | map | | (1/K) Σₖ wₖ Mₖ / Σⱼ Mⱼ\[k\], the sum over patches |
//!
//! Clusters are formed by complete linkage of cosine distances, cut at `distance`. Cost: 2 + 2K forwards, with K of a
//! few tens. **Deviations**: channels are clustered on the patch grid, and upsampled to pixels by nearest neighbor; the
//! authors upsample first. The noise is the same for all images. Requires no trained weights.

use candle_core::Tensor;
use kodama::{Method as Linkage, linkage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::{Copies, Occlusion, Score, each_image};
use super::methods::{Entry, Options, Pace};
use super::score_cam::{channels, channels_needed, unit};
use super::{Explainer, Needs, Pass};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::vit::Vit;

/// Explains by clusters of channels.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VitCx {
    /// Largest cosine distance at which channels belong to one cluster.
    pub distance: f32,
    /// Standard deviation of the noise, in normalized pixel values.
    pub noise: f32,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for VitCx {
    fn default() -> Self {
        Self {
            distance: 0.1,
            noise: 0.1,
            seed: 0,
        }
    }
}

impl Options for VitCx {
    const ENTRY: Entry = Entry {
        name: "vit-cx",
        summary: "clusters of channels used as masks, weighted by the class's probability",
        paper: "ViT-CX, arXiv:2211.03064",
        forwards: "2 + 2 × clusters",
        backwards: "0",
        pace: Pace::C,
    };

    fn check(&self) -> Result<()> {
        if (0.0..=2.0).contains(&self.distance) && (0.0..f32::INFINITY).contains(&self.noise) {
            return Ok(());
        }
        Err(Error::Config(format!(
            "vit-cx: distance must be between 0 and 2, and noise must be at least 0, got {} and {}",
            self.distance, self.noise
        )))
    }
}

impl Explainer for VitCx {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        channels_needed(vit)
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let channels = channels(pass)?;
        each_image(pass, |image_idx| {
            let channels: Vec<Vec<f32>> = channels.get(image_idx)?.to_vec2()?;
            let channels: Vec<Vec<f32>> = channels.iter().map(|channel| unit(channel)).collect();
            let masks = clustered(&channels, self.distance);
            let weights =
                self.weights(&Copies::new(pass, image_idx, Occlusion::PixelZero)?, &masks)?;
            Ok(mean_share(&masks, &weights))
        })
    }
}

impl VitCx {
    /// Weight of each mask: the class's probability under it, corrected for the effect of the noise alone.
    fn weights(&self, copies: &Copies<'_>, masks: &[Vec<f32>]) -> Result<Vec<f32>> {
        let image = copies.image();
        let mut rng = Rng::new(self.seed);
        let noise: Vec<f32> = image.iter().map(|_| self.noise * rng.normal()).collect();
        // The whole image, then a pair per mask: hidden pixels replaced by noise, and the image plus noise.
        let pairs = masks.iter().flat_map(|mask| {
            let mask = copies.pixels(mask);
            [1.0, 0.0].map(|hides| {
                let pixels = image.iter().zip(&noise).zip(mask.iter().cycle());
                pixels
                    .map(|((pixel, noise), keep)| {
                        pixel * (1.0 - hides * (1.0 - keep)) + noise * (1.0 - keep)
                    })
                    .collect()
            })
        });
        let images = std::iter::once(image.to_vec()).chain(pairs);
        let scores = copies.scores_of_images(images, Score::Prob)?;
        let (whole, pairs) = scores
            .split_first()
            .map_or((0.0, [].as_slice()), |(whole, pairs)| (*whole, pairs));
        Ok(pairs
            .chunks_exact(2)
            .map(|pair| pair[0] - pair[1] + whole)
            .collect())
    }
}

/// Sums of similar channels, scaled to [0, 1].
fn clustered(channels: &[Vec<f32>], distance: f32) -> Vec<Vec<f32>> {
    let n = channels.len();
    let mut distances = Vec::with_capacity(n * n.saturating_sub(1) / 2);
    for (channel_idx, channel) in channels.iter().enumerate() {
        let others = channels.iter().skip(channel_idx + 1);
        distances.extend(others.map(|other| cosine_distance(channel, other)));
    }
    // Clusters by kodama's numbering: channels first, then one per step; merged clusters become `None`.
    let mut clusters: Vec<Option<Vec<f32>>> = channels.iter().cloned().map(Some).collect();
    for step in linkage(&mut distances, n, Linkage::Complete).steps() {
        if step.dissimilarity > distance {
            break;
        }
        let take = |clusters: &mut Vec<Option<Vec<f32>>>, cluster: usize| clusters[cluster].take();
        let joined = take(&mut clusters, step.cluster1).zip(take(&mut clusters, step.cluster2));
        let sum = joined.map(|(a, b)| a.iter().zip(&b).map(|(a, b)| a + b).collect());
        clusters.push(sum);
    }
    clusters.iter().flatten().map(|sum| unit(sum)).collect()
}

/// 1 − cosine; a channel of zeros has distance 1 from all others.
fn cosine_distance(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        (1.0 - dot(a, b) / lengths).max(0.0)
    } else {
        1.0
    }
}

/// Distributes the weight of each mask among its patches, and averages over the masks.
fn mean_share(masks: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let mut map = vec![0f32; masks.first().map_or(0, Vec::len)];
    for (mask, weight) in masks.iter().zip(weights) {
        let total: f32 = mask.iter().sum();
        for (score, keep) in map.iter_mut().zip(mask) {
            if total > 0.0 {
                *score += weight * keep / (total * masks.len() as f32);
            }
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_that_are_alike_become_one_mask() {
        let channels = [
            vec![1.0, 0.0, 0.0],
            vec![0.9, 0.1, 0.0],
            vec![0.0, 0.0, 1.0],
        ];
        let masks = clustered(&channels, 0.1);
        assert_eq!(2, masks.len());
        assert_eq!(vec![0.0, 0.0, 1.0], masks[0]);
        assert_eq!((1.0, 0.0), (masks[1][0], masks[1][2]));
        assert_eq!(3, clustered(&channels, 0.0).len());
        assert_eq!(1, clustered(&channels, 1.0).len());
    }

    #[test]
    fn a_weight_is_shared_out_among_the_patches_of_its_mask() {
        let map = mean_share(&[vec![1.0, 1.0], vec![0.0, 1.0]], &[0.4, 0.6]);
        assert!(
            (map[0] - 0.1).abs() < 1e-6 && (map[1] - 0.4).abs() < 1e-6,
            "{map:?}"
        );
    }
}
