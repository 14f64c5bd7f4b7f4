//! KernelSHAP: against the definition of Shapley values, against shap and numpy, its cost and what it refuses.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::collections::HashMap;

use candle_core::{D, Device, Tensor};
use proptest::prelude::*;
use serde::Deserialize;
use vitscope::Result;
use vitscope::explain::kernel_shap::KernelShap;
use vitscope::explain::shapley::Regression;
use vitscope::explain::{Explainer, Method, Parts, Target, rehearse_all};
use vitscope::models;
use vitscope::rng::Rng;
use vitscope::vit::{Vit, init};

use crate::common::{fixture, small_config, small_images};

/// Written by `tests/fixtures/kernel_shap.py`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Reference {
    all: AllSubsets,
    least_squares: LeastSquares,
}

#[derive(Deserialize)]
struct AllSubsets {
    scores: Vec<f64>,
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct LeastSquares {
    ridge: f64,
    empty: f64,
    whole: f64,
    subsets: Vec<Vec<f32>>,
    weights: Vec<f64>,
    scores: Vec<(f64, f64)>,
    values: Vec<f64>,
    errors: Vec<f64>,
}

fn reference() -> Reference {
    let text = std::fs::read_to_string(fixture("kernel_shap.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f64::max)
}

fn range(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most - values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Returns the index of a subset in a table of all subsets: its players are the bits.
fn bits(subset: &[f32]) -> usize {
    let players = subset.iter().enumerate();
    players
        .map(|(player, &z)| usize::from(z == 1.0) << player)
        .sum()
}

/// A game with known scores of all subsets, which counts how many of them were requested.
struct Game {
    scores: Vec<f32>,
    n_players: usize,
    n_asked: usize,
}

impl Game {
    fn new(n_players: usize, score: impl Fn(usize) -> f64) -> Self {
        Self {
            scores: (0..1 << n_players).map(|z| score(z) as f32).collect(),
            n_players,
            n_asked: 0,
        }
    }

    /// Creates players of different strengths, of which some pairs help and others hinder each other.
    fn of_friends_and_foes(n_players: usize) -> Self {
        let mut rng = Rng::new(5);
        let mut normal =
            |n: usize| -> Vec<f64> { (0..n).map(|_| f64::from(rng.normal())).collect() };
        let (strengths, ties) = (normal(n_players), normal(n_players * n_players));
        Self::new(n_players, |z| {
            let is_in = |player: usize| z >> player & 1 == 1;
            let mut sum = 0.0;
            for player in (0..n_players).filter(|&player| is_in(player)) {
                sum += strengths[player];
                let others = (0..player).filter(|&other| is_in(other));
                sum += others
                    .map(|other| 0.3 * ties[player * n_players + other])
                    .sum::<f64>();
            }
            1.0 / (1.0 + (-sum).exp())
        })
    }

    fn gain(&self) -> f64 {
        f64::from(self.scores[self.scores.len() - 1]) - f64::from(self.scores[0])
    }

    fn values(&mut self, search: KernelShap) -> Vec<f64> {
        let whole = self.scores[self.scores.len() - 1];
        self.n_asked = 0;
        let ask = |subsets: &[Vec<f32>]| -> Result<Vec<f32>> {
            self.n_asked += subsets.len();
            Ok(subsets
                .iter()
                .map(|subset| self.scores[bits(subset)])
                .collect())
        };
        search.values(self.n_players, whole, ask).unwrap()
    }

    /// Computes the values by definition: what a player adds to each subset of the others, weighted by the share of
    /// orders in which these come first.
    fn by_definition(&self) -> Vec<f64> {
        let factorial = |n: usize| (1..=n).map(|factor| factor as f64).product::<f64>();
        let of_player = |player: usize| {
            let others = (0..self.scores.len()).filter(|z| z >> player & 1 == 0);
            let added = others.map(|z| {
                let size = z.count_ones() as usize;
                let orders = factorial(size) * factorial(self.n_players - size - 1);
                let gain = f64::from(self.scores[z | 1 << player]) - f64::from(self.scores[z]);
                orders / factorial(self.n_players) * gain
            });
            added.sum()
        };
        (0..self.n_players).map(of_player).collect()
    }
}

#[test]
fn all_subsets_give_the_values_of_shap() {
    let expected = reference().all;
    let mut game = Game::new(8, |z| expected.scores[z]);
    let found = game.values(KernelShap {
        samples: 254,
        ..KernelShap::default()
    });
    assert!(
        largest_difference(&expected.values, &found) < 1e-6,
        "{found:?}"
    );
    assert_eq!(255, game.n_asked);
}

#[test]
fn least_squares_and_their_errors_are_those_of_numpy() {
    let expected = reference().least_squares;
    let mut regression = Regression::new(10, expected.empty, expected.whole);
    let pairs = expected.subsets.iter().zip(&expected.weights);
    for ((subset, &weight), &scores) in pairs.zip(&expected.scores) {
        regression.add(subset, weight, scores);
    }
    let found = regression.solve(expected.ridge);
    let off = largest_difference(&expected.values, &found.values());
    assert!(off < 1e-9, "values are off by {off}");
    let off = largest_difference(&expected.errors, &found.standard_errors());
    assert!(off < 1e-9, "errors are off by {off}");
}

/// Creates a model of 3 × 3 patches whose answer depends on what it sees; freshly initialized weights are too small for
/// that.
fn lively_vit() -> Vit {
    let weights = init::init(&small_config(), &mut Rng::new(1)).unwrap();
    let weights: HashMap<String, Tensor> = weights
        .into_iter()
        .map(|(name, weight)| {
            let is_matrix = weight.dims().len() > 1;
            let weight = if is_matrix {
                (weight * 15.0).unwrap()
            } else {
                weight
            };
            (name, weight)
        })
        .collect();
    Vit::load(small_config(), &weights).unwrap()
}

/// Computes the probability of `class` for every subset of the patches of an image, with zeros for the others.
fn game_of_patches(vit: &Vit, image: &Tensor, class: usize) -> Game {
    let mut pixels = Vec::new();
    for z in 0..1usize << 9 {
        for pixel in 0..3 * 12 * 12 {
            let (row, column) = (pixel / 12 % 12, pixel % 12);
            let patch = row / 4 * 3 + column / 4;
            pixels.push((z >> patch & 1) as f32);
        }
    }
    let masks = Tensor::from_vec(pixels, (1 << 9, 3, 12, 12), &Device::Cpu).unwrap();
    let logits = vit
        .forward(&masks.broadcast_mul(image).unwrap())
        .unwrap()
        .logits
        .unwrap();
    let probabilities = candle_nn::ops::softmax(&logits, D::Minus1).unwrap();
    let of_class: Vec<f32> = probabilities
        .transpose(0, 1)
        .unwrap()
        .get(class)
        .unwrap()
        .to_vec1()
        .unwrap();
    Game::new(9, |z| f64::from(of_class[z]))
}

fn build(options: &str) -> Result<Box<dyn Explainer>> {
    Method::KernelShap.build_with(Parts::default(), options.parse().unwrap())
}

#[test]
fn patches_of_a_model_have_the_values_of_the_definition() {
    let (vit, images) = (lively_vit(), small_images(2));
    let explain = |options: &str| -> Vec<Vec<f32>> {
        let explained = build(options)
            .unwrap()
            .explain(&vit, &images, Target::Class(1));
        explained.unwrap().attribution.to_vec2().unwrap()
    };
    // There are 510 subsets of nine patches: either all are evaluated, or 254 pairs are drawn.
    for (options, tolerance) in [("", 1e-4), ("samples = 508", 0.1)] {
        for (image_idx, found) in explain(options).into_iter().enumerate() {
            let game = game_of_patches(&vit, &images.get(image_idx).unwrap(), 1);
            let expected = game.by_definition();
            assert!(
                range(&expected) > 0.02,
                "hardly anything to explain: {expected:?}"
            );
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            let off = largest_difference(&expected, &found) / range(&expected);
            assert!(off < tolerance, "{options:?} is off by {off} of the range");
            let missing = found.iter().sum::<f64>() - game.gain();
            assert!(missing.abs() < 1e-5, "{options:?}: {missing}");
        }
    }
}

#[test]
fn drawn_subsets_come_closer_to_the_definition_the_more_they_are() {
    let mut game = Game::of_friends_and_foes(12);
    let expected = game.by_definition();
    let mut off = |samples: usize| {
        let found = game.values(KernelShap {
            samples,
            ..KernelShap::default()
        });
        assert_eq!(samples + 1, game.n_asked);
        largest_difference(&expected, &found) / range(&expected)
    };
    let (few, many) = (off(200), off(4000));
    assert!(many < 0.03 && many < few / 2.0, "{few}, {many}");
}

#[test]
fn a_seed_gives_one_answer_and_another_seed_a_close_one() {
    let mut game = Game::of_friends_and_foes(12);
    let mut values = |seed: u64| {
        game.values(KernelShap {
            samples: 2000,
            seed,
            ..KernelShap::default()
        })
    };
    let found = values(0);
    assert_eq!(found, values(0));
    let other = values(1);
    let apart = largest_difference(&found, &other) / range(&found);
    assert!(apart > 0.0 && apart < 0.1, "{apart}");
}

#[test]
fn a_search_ends_where_its_error_is_as_small_as_asked_for() {
    let mut game = Game::of_friends_and_foes(12);
    let expected = game.by_definition();
    let mut asked = Vec::new();
    for tolerance in [0.03, 0.01, 0.005] {
        let found = game.values(KernelShap {
            samples: 4000,
            ridge: 0.0,
            tolerance,
            ..KernelShap::default()
        });
        // The largest of twelve errors is within three standard errors.
        let off = largest_difference(&expected, &found) / range(&expected);
        assert!(off < 3.0 * tolerance, "{off} with {tolerance}");
        assert!((found.iter().sum::<f64>() - game.gain()).abs() < 1e-5);
        asked.push(game.n_asked);
    }
    assert!(
        asked.is_sorted() && asked[0] < asked[2] && asked[2] < 4001,
        "{asked:?}"
    );
}

/// Nothing is left to learn if every player adds the same to any subset.
#[test]
fn an_additive_game_is_known_once_there_are_as_many_pairs_as_players() {
    let strengths: Vec<f32> = (0..40).map(|player| player as f32 / 8.0 - 2.0).collect();
    let search = KernelShap {
        ridge: 0.0,
        tolerance: 0.01,
        ..KernelShap::default()
    };
    let mut n_asked = 0;
    let score = |subset: &Vec<f32>| subset.iter().zip(&strengths).map(|(z, a)| z * a).sum();
    let found = search.values(40, strengths.iter().sum(), |subsets| {
        n_asked += subsets.len();
        Ok(subsets.iter().map(score).collect())
    });
    let strengths: Vec<f64> = strengths.iter().copied().map(f64::from).collect();
    assert!(largest_difference(&strengths, &found.unwrap()) < 1e-5);
    // The empty subset, and two times 32 pairs.
    assert_eq!(1 + 128, n_asked);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let refused = |options: &str| build(options).err().unwrap().to_string();
    for samples in [0, 1] {
        assert_eq!(
            format!("kernel-shap: samples must be at least 2 (one pair), got {samples}"),
            refused(&format!("samples = {samples}"))
        );
    }
    assert_eq!(
        "kernel-shap: ridge must be at least 0 and finite, got -0.5",
        refused("ridge = -0.5")
    );
    assert_eq!(
        "kernel-shap: tolerance must be at least 0 and finite, got NaN",
        refused("tolerance = nan")
    );
    assert!(refused("ridge = inf").contains("got inf"));
    assert!(refused("occlusion = 'gray'").contains("unknown variant `gray`"));
}

/// DINOv2's head reads the mean of the patches, which is undefined without patches.
#[test]
fn a_model_that_says_nothing_of_no_patches_is_refused_before_a_run() {
    let folder = fixture("dinov2_reg");
    let model = models::open(folder.to_str().unwrap(), &Device::Cpu).unwrap();
    let images = model.gray_image().unwrap();
    let rehearse = |options: &str| {
        let explainers = [build(options).unwrap()];
        rehearse_all(&explainers, &model.vit, &images, &[Target::Predicted])
    };
    assert_eq!(
        "kernel-shap: the model's score without any patch is NaN; choose another occlusion",
        rehearse("occlusion = 'token-drop'")
            .unwrap_err()
            .to_string()
    );
    assert!(rehearse("").unwrap()[0].is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Holds for any number of samples, and wherever the search ends.
    #[test]
    fn values_sum_to_what_all_players_gain(
        n_players in 1usize..=10,
        samples in 2usize..300,
        ridge in 0.0..2.0f64,
        tolerance in 0.0..0.5f64,
        seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let scores: Vec<f64> = (0..1 << n_players).map(|_| f64::from(rng.normal())).collect();
        let mut game = Game::new(n_players, |z| scores[z]);
        for ridge in [0.0, ridge] {
            let found = game.values(KernelShap { samples, ridge, tolerance, seed, ..KernelShap::default() });
            prop_assert!((found.iter().sum::<f64>() - game.gain()).abs() < 1e-5, "{found:?}");
            prop_assert!(game.n_asked <= 1 + samples);
        }
    }

    /// Checks the dummy and symmetry axioms.
    #[test]
    fn a_player_without_influence_has_no_value_and_equal_players_have_equal_ones(
        n_players in 3usize..=8,
        seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let scores: Vec<f64> = (0..1 << n_players).map(|_| f64::from(rng.normal())).collect();
        // The first player does nothing; of the second and the third, only the number counts.
        let mut game = Game::new(n_players, |z| scores[(z & !7) + (z >> 1 & 1) + (z >> 2 & 1)]);
        let found = game.values(KernelShap::default());
        prop_assert!(found[0].abs() < 1e-6, "{found:?}");
        prop_assert!((found[1] - found[2]).abs() < 1e-6, "{found:?}");
    }
}
