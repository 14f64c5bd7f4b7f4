//! KernelSHAP: Shapley values of patches, estimated separately for each picture.
//!
//! Papers: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017, arXiv:1705.07874;
//! Covert and Lee, "Improving KernelSHAP", AISTATS 2021, arXiv:2012.01536.
//! A patch's share of the class's score is the amount that it adds to a set of other patches, averaged over all orders
//! in which patches can be uncovered. Shares sum to the score of the picture minus that of the empty set; negative
//! shares speak against the class.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | N, z | patches; a subset of n of them | |
//! | v(z) | score of the class if only the patches of z are visible | |
//! | k(n) | Shapley kernel: shares of the subset sizes, from 1 to N − 1 | ∝ 1 / (n (N − n)), Theorem 2 |
//! | q(n) | distribution of the drawn sizes: half by k, half uniform | (k(n) + 1 / (N − 1)) / 2 |
//! | w(z) | weight of a subset: kernel share divided by sampling probability | k(n) / q(n) |
//! | map | least squares with the efficiency constraint, see [`shapley`](super::shapley) | |
//!
//! Subsets are drawn in pairs with their complements, which have the same weight. The ridge counts as `ridge` pairs per
//! patch in which all patches have equal shares: λ = `ridge` · N / 4, as a pair adds 1/4 to the diagonal of the normal
//! matrix. Its influence decreases with the number of samples. If there are no more than `samples` subsets in total,
//! each is evaluated once, without a ridge, and the values are exact.
//!
//! Cost: 2 forwards and `samples` masked ones, or fewer with a `tolerance`: sampling ends when no standard error
//! exceeds that share of the map's range. This is checked every 64 samples once there are as many pairs as patches. The
//! standard errors come from a [jackknife over pairs](super::shapley::Solution::standard_errors). **Deviations**: half
//! of the sizes are drawn uniformly, as in regressions that are trained to explain; the authors draw by the kernel
//! alone. Subsets are the same for all images and frames. Requires no trained weights.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::{Copies, Occlusion, Score, each_image};
use super::methods::{Entry, Options, Pace};
use super::shapley::Regression;
use super::{Explainer, Needs, Pass};
use crate::error::{Error, Result};
use crate::explain::Range;
use crate::rng::Rng;
use crate::vit::Vit;

/// Pairs between two checks of the standard errors.
const PAIRS_AT_ONCE: usize = 32;

/// Explains by Shapley values.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KernelShap {
    /// Largest number of masked forward passes per picture; they run in pairs.
    pub samples: usize,
    /// How patches outside a subset are hidden.
    pub occlusion: Occlusion,
    /// Score that is divided among the patches.
    pub score: Score,
    /// Regularization toward equal shares, in pairs per patch.
    pub ridge: f64,
    /// Standard error at which sampling stops, as a share of the map's range; 0 always takes all samples.
    pub tolerance: f64,
    /// Seed of the subsets.
    pub seed: u64,
}

impl Default for KernelShap {
    fn default() -> Self {
        Self {
            samples: 768,
            occlusion: Occlusion::default(),
            score: Score::default(),
            ridge: 0.3,
            tolerance: 0.0,
            seed: 0,
        }
    }
}

impl Options for KernelShap {
    const ENTRY: Entry = Entry {
        name: "kernel-shap",
        summary: "each patch's share of the class's probability (Shapley values from masked copies)",
        paper: "KernelSHAP, arXiv:1705.07874, arXiv:2012.01536",
        forwards: "2 + 768",
        backwards: "0",
        pace: Pace::C,
    };

    fn check(&self) -> Result<()> {
        if self.samples < 2 {
            return Err(Error::Config(format!(
                "kernel-shap: samples must be at least 2 (one pair), got {}",
                self.samples
            )));
        }
        for (name, value) in [("ridge", self.ridge), ("tolerance", self.tolerance)] {
            if !(0.0..f64::INFINITY).contains(&value) {
                return Err(Error::Config(format!(
                    "kernel-shap: {name} must be at least 0 and finite, got {value}"
                )));
            }
        }
        Ok(())
    }
}

impl Explainer for KernelShap {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn range(&self) -> Range {
        Range::Signed
    }

    fn needs(&self, _vit: &Vit) -> Needs {
        self.occlusion.needs()
    }

    /// Evaluates the score of the empty set, which is not finite for some models.
    fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        let (grid_h, grid_w) = pass.grid()?;
        let copies = Copies::new(pass, 0, self.occlusion)?;
        let score = copies.scores(&[vec![0.0; grid_h * grid_w]], self.score);
        finite(score?, "without any patch").map(|_| None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let (grid_h, grid_w) = pass.grid()?;
        each_image(pass, |image_idx| {
            let copies = Copies::new(pass, image_idx, self.occlusion)?;
            let whole = copies.whole(pass, image_idx, self.score)?;
            let game = |subsets: &[Vec<f32>]| copies.scores(subsets, self.score);
            let values = self.values(grid_h * grid_w, whole, game)?;
            Ok(values.into_iter().map(|value| value as f32).collect())
        })
    }
}

/// A subset that is evaluated together with its complement.
struct Drawn {
    /// 1 for each patch in the subset, 0 for all others.
    subset: Vec<f32>,
    weight: f64,
}

impl KernelShap {
    /// Shapley values of an arbitrary game. `game` returns the scores of subsets, each of which is 1 for every player
    /// in the subset and 0 for all others; the first call is for the empty subset. `whole` is the score of all players.
    ///
    /// # Errors
    /// Those of `game`; [`Error::Model`] if a score is not finite, or if `game` returns the wrong number of scores.
    pub fn values(
        &self,
        n_players: usize,
        whole: f32,
        mut game: impl FnMut(&[Vec<f32>]) -> Result<Vec<f32>>,
    ) -> Result<Vec<f64>> {
        let empty = finite(game(&[vec![0.0; n_players]])?, "without any patch")?;
        let [empty] = empty[..] else {
            return Err(miscounted(empty.len(), 1));
        };
        let mut regression = Regression::new(n_players, f64::from(empty), f64::from(whole));
        let all = all_subsets(n_players, self.samples);
        let is_exact = all.is_some();
        let drawn = all.unwrap_or_else(|| self.draw(n_players));
        let ridge = if is_exact {
            0.0
        } else {
            self.ridge * n_players as f64 / 4.0
        };
        let ends_early = self.tolerance > 0.0 && !is_exact;
        let at_once = if ends_early {
            PAIRS_AT_ONCE
        } else {
            drawn.len()
        };
        for chunk in drawn.chunks(at_once.max(1)) {
            let masks: Vec<Vec<f32>> = chunk.iter().flat_map(Drawn::pair).collect();
            let scores = finite(game(&masks)?, "of a masked copy")?;
            if scores.len() != masks.len() {
                return Err(miscounted(scores.len(), masks.len()));
            }
            for (drawn, pair) in chunk.iter().zip(scores.chunks_exact(2)) {
                let scores = (f64::from(pair[0]), f64::from(pair[1]));
                regression.add(&drawn.subset, drawn.weight, scores);
            }
            if ends_early && regression.n_pairs() >= n_players {
                let solution = regression.solve(ridge);
                if solution.is_within(self.tolerance) {
                    break;
                }
            }
        }
        tracing::debug!("kernel-shap: {} masked passes", 2 * regression.n_pairs());
        Ok(regression.solve(ridge).values())
    }

    /// Draws subsets by q, for a game of more than two players.
    fn draw(&self, n_players: usize) -> Vec<Drawn> {
        let kernel = size_kernel(n_players); // of sizes 1 to N − 1
        let even = 1.0 / kernel.len() as f64;
        (0..self.samples / 2)
            .map(|pair_idx| {
                let mut rng = Rng::for_item(self.seed, pair_idx as u64);
                let size_idx = if pair_idx % 2 == 0 {
                    rng.below(kernel.len())
                } else {
                    at_rank(&kernel, f64::from(rng.uniform()))
                };
                let mut players: Vec<usize> = (0..n_players).collect();
                rng.shuffle(&mut players);
                let mut subset = vec![0.0; n_players];
                for &player in &players[..=size_idx] {
                    subset[player] = 1.0;
                }
                let weight = kernel[size_idx] / ((kernel[size_idx] + even) / 2.0);
                Drawn { subset, weight }
            })
            .collect()
    }
}

impl Drawn {
    fn pair(&self) -> [Vec<f32>; 2] {
        let complement = self.subset.iter().map(|z| 1.0 - z).collect();
        [self.subset.clone(), complement]
    }
}

/// One of each pair of complementary subsets, weighted by the kernel, except the empty and the full set; `None` if
/// there are more than `most`.
fn all_subsets(n_players: usize, most: usize) -> Option<Vec<Drawn>> {
    let n_subsets = 1usize.checked_shl(n_players as u32)?.saturating_sub(2);
    if n_subsets > most {
        return None;
    }
    let kernel = size_kernel(n_players);
    // The last player is in none of these subsets, and thus in all of their complements.
    let subsets = 1..=n_subsets / 2;
    let drawn = subsets.map(|bits| {
        let size = bits.count_ones() as usize;
        let choices = (0..size).fold(1.0, |choices, idx| {
            choices * (n_players - idx) as f64 / (idx + 1) as f64
        });
        Drawn {
            subset: (0..n_players)
                .map(|player| f32::from(bits >> player & 1 == 1))
                .collect(),
            weight: kernel[size - 1] / choices,
        }
    });
    Some(drawn.collect())
}

/// k for the sizes from 1 to N − 1.
fn size_kernel(n_players: usize) -> Vec<f64> {
    let weight = |size: usize| 1.0 / (size * (n_players - size)) as f64;
    let total: f64 = (1..n_players).map(weight).sum();
    (1..n_players).map(|size| weight(size) / total).collect()
}

/// The first index at which the cumulative sum of `shares` exceeds `rank`.
fn at_rank(shares: &[f64], rank: f64) -> usize {
    let mut sum = 0.0;
    let exceeds = |share: &f64| {
        sum += share;
        sum > rank
    };
    let place = shares.iter().position(exceeds);
    place.unwrap_or(shares.len() - 1)
}

fn finite(scores: Vec<f32>, of_what: &str) -> Result<Vec<f32>> {
    match scores.iter().find(|score| !score.is_finite()) {
        None => Ok(scores),
        Some(score) => Err(Error::Model(format!(
            "kernel-shap: the model's score {of_what} is {score}; choose another occlusion"
        ))),
    }
}

fn miscounted(n_scores: usize, n_subsets: usize) -> Error {
    Error::Model(format!(
        "kernel-shap: got {n_scores} scores for {n_subsets} subsets, expected one per subset"
    ))
}
