//! GradMask: gradients of queries, keys and values vote for masks, which are weighted by the model's confidence.
//!
//! Paper: Marchetti et al., "Integrating Gradient and Mask-based Approaches for Vision Transformer
//! Explainability", IJCNN 2025, doi:10.1109/IJCNN64981.2025.11228361.
//! In each block, the gradient of the class logit with respect to Q, K and V is summed over groups of channels. The
//! patches at or above the mean of its positive part form a mask. The weight of each mask is the class's probability on
//! the image under that mask.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | D | gradient at Q, K or V | ∂z/∂(output of the projection) |
//! | s | `votes` of a group g | max(0, Σ_{d ∈ g} D\[n, d\]) |
//! | M | masks | s\[n\] ≥ mean s |
//! | w | weights | softmax(z(x ∘ M)) of the class |
//! | h | map | Σ w M |
//!
//! Cost: 1 forward, 1 backward, and one forward per mask: 3 · (blocks − 1) · `groups`, 132 for ViT-B. With
//! `occlusion = "token-drop"`, masked forwards process only the visible tokens and cost accordingly less.
//!
//! **Deviations**: none by default. The last block is left out as in the released code: the gradient at a patch's query
//! is zero there, because only the class token's query is read. Requires no trained weights.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::{Copies, Occlusion, Score, each_image, weighted_sum};
use super::memory::Remembered;
use super::methods::{Entry, Options, Pace};
use super::{Detailed, Explainer, Needs, Pass};
use crate::error::{Error, Result};
use crate::vit::{Site, Vit};

/// A projection whose gradients vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Matrix {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl Matrix {
    fn site(self, block_idx: usize) -> Site {
        match self {
            Self::Query => Site::Query(block_idx),
            Self::Key => Site::Key(block_idx),
            Self::Value => Site::Value(block_idx),
        }
    }
}

/// Blocks that vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layers {
    /// All of them.
    All,
    /// All but the last.
    #[default]
    DropLast,
    /// The last N blocks.
    Last(usize),
    /// Every Nth block, starting with the first.
    Stride(usize),
}

/// Values of a projection that vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Vote {
    /// Its gradient.
    #[default]
    Grad,
    /// Its gradient times its output, which does not depend on the basis of the channels.
    GradTimesAct,
}

/// Smallest vote at which a patch is kept.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Threshold {
    /// The mean of the patches' votes.
    #[default]
    Mean,
    /// A quantile of the votes, from 0 to 1.
    Quantile(f32),
    /// Several quantiles, one mask for each.
    MultiQuantile(Vec<f32>),
}

/// Weight of each mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// The class's probability under the mask.
    #[default]
    Prob,
    /// The logarithm of that probability.
    LogProb,
    /// The class's logit under the mask.
    Logit,
    /// The probability under the mask minus the probability with all patches hidden.
    ProbDrop,
    /// The same weight for all masks, so only the gradients count.
    One,
}

/// Correction for patches that many masks keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// They count as often as they are kept.
    #[default]
    None,
    /// The map is divided by the number of masks that keep a patch; patches that no mask keeps are 0.
    Divide,
}

/// Explains by masks derived from gradients.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GradMask {
    /// Channel groups per projection; must divide the model's width.
    pub groups: usize,
    /// Projections that vote.
    pub matrices: Vec<Matrix>,
    /// Blocks that vote.
    pub layers: Layers,
    /// Values that vote: gradients, or gradients times activations.
    pub vote: Vote,
    /// Ignore negative votes.
    pub relu: bool,
    /// Smallest vote at which a patch is kept.
    pub threshold: Threshold,
    /// How patches are hidden.
    pub occlusion: Occlusion,
    /// Weight of each mask.
    pub weight: Weight,
    /// Correction for patches that many masks keep.
    pub coverage: Coverage,
    /// Masks with an intersection over union above this value are merged, and the merged mask counts as often; 1 merges
    /// no masks.
    pub merge: f32,
    /// Number of video frames over which the masks are spread. Each frame runs its share of them and adds it to a
    /// moving sum; 1 runs all masks on every frame.
    pub spread: usize,
}

impl Default for GradMask {
    fn default() -> Self {
        Self {
            groups: 4,
            matrices: vec![Matrix::Query, Matrix::Key, Matrix::Value],
            layers: Layers::default(),
            vote: Vote::default(),
            relu: true,
            threshold: Threshold::default(),
            occlusion: Occlusion::default(),
            weight: Weight::default(),
            coverage: Coverage::default(),
            merge: 1.0,
            spread: 1,
        }
    }
}

impl Options for GradMask {
    const ENTRY: Entry = Entry {
        name: "gradmask",
        summary: "masks of query, key and value gradients, weighted by the class's probability",
        paper: "IJCNN 2025, 10.1109/IJCNN64981.2025.11228361",
        forwards: "1 + 12 (L - 1)",
        backwards: "1",
        pace: Pace::C,
    };

    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::Config(format!("gradmask: {what}")));
        if self.groups == 0 {
            return refuse("groups must be at least 1, got 0");
        }
        if self.spread == 0 {
            return refuse("spread must be at least 1 frame, got 0");
        }
        if self.matrices.is_empty() {
            return refuse("matrices must name at least one of query, key and value");
        }
        if matches!(self.layers, Layers::Last(0) | Layers::Stride(0)) {
            return refuse("layers must be at least 1 block, got 0");
        }
        if !(0.0..=1.0).contains(&self.merge) {
            return refuse("merge must be between 0 and 1");
        }
        let quantiles = match &self.threshold {
            Threshold::Mean => return Ok(()),
            Threshold::Quantile(quantile) => std::slice::from_ref(quantile),
            Threshold::MultiQuantile(quantiles) => quantiles,
        };
        let all_shares = quantiles.iter().all(|share| (0.0..=1.0).contains(share));
        if quantiles.is_empty() || !all_shares {
            return refuse("quantiles must be between 0 and 1");
        }
        Ok(())
    }
}

impl GradMask {
    /// The blocks that vote, in order.
    fn blocks(&self, n_blocks: usize) -> Vec<usize> {
        match self.layers {
            Layers::All => (0..n_blocks).collect(),
            Layers::DropLast => (0..n_blocks.saturating_sub(1)).collect(),
            Layers::Last(n) => (n_blocks.saturating_sub(n)..n_blocks).collect(),
            Layers::Stride(stride) => (0..n_blocks).step_by(stride.max(1)).collect(),
        }
    }

    /// The sites that vote: block by block, and within each block the matrices in their order.
    fn sites(&self, n_blocks: usize) -> impl Iterator<Item = Site> + '_ {
        let blocks = self.blocks(n_blocks).into_iter();
        blocks.flat_map(|block_idx| {
            let matrices = self.matrices.iter();
            matrices.map(move |matrix| matrix.site(block_idx))
        })
    }

    /// Masks of each image, ordered by site, group and threshold.
    ///
    /// # Errors
    /// [`Error::Config`] if the groups do not divide the model's width, or if no block votes.
    pub fn masks(&self, pass: &Pass<'_>) -> Result<Vec<Vec<Vec<f32>>>> {
        let dim = pass.vit().config().hidden_size;
        if !dim.is_multiple_of(self.groups) {
            return Err(Error::Config(format!(
                "gradmask: the model's {dim} channels cannot be divided into {} equal groups",
                self.groups
            )));
        }
        let mut masks = vec![Vec::new(); pass.images().dim(0)?];
        if self.blocks(pass.vit().n_blocks()).is_empty() {
            return Err(Error::Config(format!(
                "gradmask: layers {:?} selects none of the model's {} blocks",
                self.layers,
                pass.vit().n_blocks()
            )));
        }
        for site in self.sites(pass.vit().n_blocks()) {
            for (masks, groups) in masks.iter_mut().zip(self.votes(pass, site)?) {
                masks.extend(groups.iter().flat_map(|votes| self.threshold.masks(votes)));
            }
        }
        Ok(masks)
    }

    /// `[batch][groups][patches]`
    fn votes(&self, pass: &Pass<'_>, site: Site) -> Result<Vec<Vec<Vec<f32>>>> {
        let gradient = pass.patches_of(pass.gradient(site)?, 1)?; // [batch, patches, dim]
        let voting = match self.vote {
            Vote::Grad => gradient,
            Vote::GradTimesAct => (gradient * pass.patches_of(&pass.value(site)?, 1)?)?,
        };
        let (batch, n_patches, dim) = voting.dims3()?;
        let votes = voting
            .reshape((batch, n_patches, self.groups, dim / self.groups))?
            .sum(3)?
            .transpose(1, 2)?; // [batch, groups, patches]
        let votes = if self.relu { votes.relu()? } else { votes };
        Ok(votes.to_vec3()?)
    }

    /// The weight of each mask.
    fn weights(&self, copies: &Copies<'_>, masks: &[Vec<f32>]) -> Result<Vec<f32>> {
        let score = match self.weight {
            Weight::One => return Ok(vec![1.0; masks.len()]),
            Weight::Prob | Weight::ProbDrop => Score::Prob,
            Weight::LogProb => Score::LogProb,
            Weight::Logit => Score::Logit,
        };
        let mut weights = copies.scores(masks, score)?;
        if self.weight == Weight::ProbDrop {
            let nothing = vec![0.0; masks.first().map_or(0, Vec::len)];
            let empty = copies.scores(&[nothing], score)?.into_iter().sum::<f32>();
            weights.iter_mut().for_each(|weight| *weight -= empty);
        }
        Ok(weights)
    }
}

impl Explainer for GradMask {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        let sites: Vec<Site> = self.sites(vit.n_blocks()).collect();
        let values = match self.vote {
            Vote::Grad => Needs::default(),
            Vote::GradTimesAct => Needs::values(sites.iter().copied()),
        };
        Needs::gradients(sites)
            .and(values)
            .and(self.occlusion.needs())
    }

    fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        self.masks(pass)?;
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let mut all_masks = self.masks(pass)?.into_iter();
        each_image(pass, |image_idx| {
            let masks = all_masks.next().unwrap_or_default();
            Ok(self.map(&self.sums(pass, image_idx, masks)?))
        })
    }

    fn follow(&self, pass: &Pass<'_>, remembered: &mut Remembered<'_>) -> Result<Detailed> {
        match self.spread {
            1 => self.detailed(pass),
            _ => self.spread_over(pass, remembered).map(Detailed::from),
        }
    }
}

/// Sums over the masks of an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    /// Σ w M, one value per patch.
    pub(super) weighted: Vec<f32>,
    /// Σ M, one value per patch.
    pub(super) covered: Vec<f32>,
}

impl GradMask {
    /// Runs the model on some masks of an image, and sums them.
    pub(super) fn sums(
        &self,
        pass: &Pass<'_>,
        image_idx: usize,
        masks: Vec<Vec<f32>>,
    ) -> Result<Sums> {
        let (masks, counts) = merged(masks, self.merge);
        let copies = Copies::new(pass, image_idx, self.occlusion)?;
        let weights = self.weights(&copies, &masks)?;
        let weights: Vec<f32> = weights.iter().zip(&counts).map(|(w, n)| w * n).collect();
        let (grid_h, grid_w) = pass.grid()?;
        Ok(Sums {
            weighted: weighted_sum(&masks, &weights, grid_h * grid_w),
            covered: weighted_sum(&masks, &counts, grid_h * grid_w),
        })
    }

    /// Computes the map from the sums.
    pub(super) fn map(&self, sums: &Sums) -> Vec<f32> {
        let pairs = sums.weighted.iter().zip(&sums.covered);
        match self.coverage {
            Coverage::None => sums.weighted.clone(),
            Coverage::Divide => pairs
                .map(|(sum, covered)| if *covered > 0.0 { sum / covered } else { 0.0 })
                .collect(),
        }
    }
}

impl Threshold {
    /// The masks of patches whose votes reach the threshold.
    fn masks(&self, votes: &[f32]) -> Vec<Vec<f32>> {
        let from = |least: f32| votes.iter().map(|&vote| f32::from(vote >= least)).collect();
        let at = |&share: &f32| from(quantile(votes, share));
        match self {
            Self::Mean => {
                vec![from(votes.iter().sum::<f32>() / votes.len().max(1) as f32)]
            }
            Self::Quantile(share) => vec![at(share)],
            Self::MultiQuantile(shares) => shares.iter().map(at).collect(),
        }
    }
}

/// The quantile of the votes at `share`.
fn quantile(votes: &[f32], share: f32) -> f32 {
    let mut sorted = votes.to_vec();
    sorted.sort_by(f32::total_cmp);
    let rank = (share * sorted.len().saturating_sub(1) as f32).round() as usize;
    sorted.get(rank).copied().unwrap_or(0.0)
}

/// Removes masks that nearly equal an earlier one, and counts how many masks each remaining one represents.
fn merged(masks: Vec<Vec<f32>>, most_alike: f32) -> (Vec<Vec<f32>>, Vec<f32>) {
    let mut kept: Vec<Vec<f32>> = Vec::new();
    let mut counts: Vec<f32> = Vec::new();
    for mask in masks {
        let alike = kept.iter().position(|other| iou(other, &mask) > most_alike);
        match alike {
            Some(other) => counts[other] += 1.0,
            None => {
                kept.push(mask);
                counts.push(1.0);
            }
        }
    }
    (kept, counts)
}

/// Intersection over union of two masks of zeros and ones.
fn iou(a: &[f32], b: &[f32]) -> f32 {
    let common: f32 = a.iter().zip(b).map(|(a, b)| a.min(*b)).sum();
    let either: f32 = a.iter().zip(b).map(|(a, b)| a.max(*b)).sum();
    if either > 0.0 { common / either } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_of_at_least_the_mean_vote_are_kept() {
        let masks = Threshold::Mean.masks(&[0.0, 1.0, 3.0, 0.0]);
        assert_eq!(vec![vec![0.0, 1.0, 1.0, 0.0]], masks);
    }

    #[test]
    fn no_votes_at_all_keep_everything() {
        assert_eq!(vec![vec![1.0; 3]], Threshold::Mean.masks(&[0.0; 3]));
    }

    #[test]
    fn quantiles_make_a_mask_each() {
        let masks = Threshold::MultiQuantile(vec![0.0, 1.0]).masks(&[2.0, 1.0, 3.0]);
        assert_eq!(vec![vec![1.0; 3], vec![0.0, 0.0, 1.0]], masks);
    }

    #[test]
    fn masks_that_are_nearly_alike_become_one_that_counts_twice() {
        let masks = vec![
            vec![1.0, 1.0, 0.0],
            vec![1.0, 1.0, 1.0],
            vec![0.0, 0.0, 1.0],
        ];
        assert_eq!(3, merged(masks.clone(), 1.0).0.len());
        let (kept, counts) = merged(masks, 0.5);
        assert_eq!((2, vec![2.0, 1.0]), (kept.len(), counts));
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        let refused = |options: &str| {
            let options: GradMask = toml::from_str(options).unwrap();
            options.check().unwrap_err().to_string()
        };
        assert!(refused("groups = 0").contains("at least 1"));
        assert!(refused("matrices = []").contains("query, key and value"));
        assert!(refused("layers = { stride = 0 }").contains("at least 1 block"));
        assert!(refused("threshold = { quantile = 1.5 }").contains("between 0 and 1"));
    }
}
