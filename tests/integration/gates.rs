//! Gates on whole models: states, masked passes, files.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use vitscope::explain::{Explainer, Method, Parts, StreamMemory, Streams, Target, follow_all};
use vitscope::models;
use vitscope::rng::Rng;
use vitscope::vit::{Replace, Site, Vit, VitConfig, init};
use vitscope_core::gates::{
    ClassStream, EMPTY_ANSWER, GateCard, GateSizes, Gates, Objective, OrderGates, RankingGates,
    RankingSizes, Removal, VotingGates, clean_pass, masked_pass,
};
use vitscope_core::gates::{masked_answers, masks_within_margin};
use vitscope_kernels::Products;

use crate::common::{
    fixture, small_config, small_config_without_head, small_gates, small_images, small_order_gates,
    small_order_tensors, small_ranking_gates, small_vit, small_voting_gates,
};

/// Difference of f32 sums in a different order.
const TOLERANCE: f32 = 1e-4;

fn values(xs: &Tensor) -> Vec<f32> {
    xs.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims());
    for (a, b) in values(a).into_iter().zip(values(b)) {
        assert!((a - b).abs() < TOLERANCE, "{a} is not {b}");
    }
}

#[test]
fn a_model_has_two_more_states_than_blocks_and_only_patches_in_them() {
    for config in [small_config(), small_config_without_head()] {
        let clean = clean_pass(&small_vit(config), &small_images(2)).unwrap();
        assert_eq!(clean.states.len(), 5);
        assert!(clean.states.iter().all(|state| state.dims() == [2, 9, 16]));
    }
}

#[test]
fn the_first_state_knows_no_positions_and_the_second_does() {
    let gray = Tensor::ones((1, 3, 12, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
    let states = clean_pass(&small_vit(small_config()), &gray)
        .unwrap()
        .states;
    let patch = |state: &Tensor, index| values(&state.get(0).unwrap().get(index).unwrap());
    assert_eq!(patch(&states[0], 0), patch(&states[0], 8));
    assert_ne!(patch(&states[1], 0), patch(&states[1], 8));
}

#[test]
fn states_carry_no_graph() {
    let config = small_config();
    let vars: HashMap<String, candle_core::Var> = init::init(&config, &mut Rng::new(1))
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (name, candle_core::Var::from_tensor(&tensor).unwrap()))
        .collect();
    let weights = vars
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    let vit = Vit::load(config, &weights).unwrap();
    let clean = clean_pass(&vit, &small_images(1)).unwrap();
    assert!(clean.states.iter().all(|state| !state.track_op()));
    assert!(!clean.output.logits.unwrap().track_op());
}

/// Class and register tokens come before the patches and have no votes.
#[test]
fn gates_asked_during_a_pass_give_the_mask_of_its_states() {
    for config in [small_config(), small_config_without_head()] {
        let vit = small_vit(config);
        let gates = small_voting_gates(&vit);
        for batch in [1, 2, 9] {
            let images = small_images(batch);
            let clean = clean_pass(&vit, &images).unwrap();
            let voted = gates.freeze().unwrap().pass(&vit, &images).unwrap();
            assert_close(&voted.mask, &gates.mask(&clean.states).unwrap());
            assert_close(&voted.output.tokens, &clean.output.tokens);
        }
    }
}

#[test]
fn what_the_gates_say_multiplies_to_the_mask() {
    let vit = small_vit(small_config());
    let gates = small_voting_gates(&vit).freeze().unwrap();
    let states = clean_pass(&vit, &small_images(2)).unwrap().states;
    let keep = gates.keep(&states, Products::F32).unwrap();
    assert_eq!(keep.dims(), [states.len(), 2, 9]);
    let keep = keep.to_vec3::<f32>().unwrap();
    let mask = gates
        .mask(&states, Products::F32)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    for (image, patch) in (0..2).flat_map(|image| (0..9).map(move |patch| (image, patch))) {
        let product: f32 = keep.iter().map(|gate| gate[image][patch]).product();
        assert!((product - mask[image][patch]).abs() < 1e-5);
    }
    let differ = |gate: &Vec<Vec<f32>>| *gate != keep[0];
    assert!(keep.iter().any(differ), "gates have minds of their own");
}

#[test]
fn gates_of_another_depth_are_refused() {
    let shallow = VitConfig {
        num_hidden_layers: 2,
        ..small_config()
    };
    let gates = small_voting_gates(&small_vit(shallow)).freeze().unwrap();
    assert!(
        gates
            .pass(&small_vit(small_config()), &small_images(1))
            .is_err()
    );
    let deep = VitConfig {
        num_hidden_layers: 4,
        ..small_config()
    };
    assert!(gates.pass(&small_vit(deep), &small_images(1)).is_err());
}

#[test]
fn keeping_every_patch_changes_no_answer() {
    let vit = small_vit(small_config());
    let images = small_images(3);
    let clean = vit.forward(&images).unwrap().logits.unwrap();
    let ones = Tensor::ones((3, 9), candle_core::DType::F32, &Device::Cpu).unwrap();
    for removal in [baseline(7.0), Removal::Drop] {
        let masked = masked_pass(&vit, &images, &ones, &removal).unwrap();
        assert_close(&masked.logits.unwrap(), &clean);
        let answers =
            masked_answers(&vit, &images, &clean, &vec![vec![true; 9]; 3], &removal).unwrap();
        assert!(
            answers
                .iter()
                .all(|answer| answer.agrees && answer.kept == 1.0)
        );
        assert!(answers.iter().all(|answer| answer.kl.abs() < 1e-6));
    }
}

/// Returns a removal that sets patches to `value` throughout.
fn baseline(value: f32) -> Removal {
    Removal::Baseline(Tensor::full(value, 16, &Device::Cpu).unwrap())
}

#[test]
fn masking_every_patch_leaves_nothing_of_the_image() {
    let images = small_images(2);
    let zeros = Tensor::zeros((2, 9), candle_core::DType::F32, &Device::Cpu).unwrap();
    for config in [small_config(), with_patches_in_the_head()] {
        let vit = small_vit(config);
        for removal in [baseline(0.5), Removal::Drop] {
            let masked = masked_pass(&vit, &images, &zeros, &removal).unwrap();
            let logits = masked.logits.unwrap();
            assert_close(&logits.get(0).unwrap(), &logits.get(1).unwrap());
        }
    }
}

/// Returns the configuration of a model whose classifier also reads the mean of the patches.
fn with_patches_in_the_head() -> VitConfig {
    VitConfig {
        labels: small_config().labels,
        ..small_config_without_head()
    }
}

#[test]
fn a_dropped_patch_might_as_well_not_have_been_among_the_tokens() {
    let images = small_images(2);
    let mut mask = [1.0_f32; 9];
    for dropped in [0, 3, 7] {
        mask[dropped] = 0.0;
    }
    let of_both = Tensor::from_vec([mask, mask].concat(), (2, 9), &Device::Cpu).unwrap();
    for config in [small_config(), with_patches_in_the_head()] {
        let vit = small_vit(config);
        let masked = masked_pass(&vit, &images, &of_both, &Removal::Drop).unwrap();
        let n_special = vit.config().n_special_tokens() as u32;
        let kept: Vec<u32> = (0..n_special)
            .chain(
                (n_special..)
                    .zip(mask)
                    .filter_map(|(token, keep)| (keep == 1.0).then_some(token)),
            )
            .collect();
        let kept = Tensor::new(kept, &Device::Cpu).unwrap();
        let mut without = Replace::new(Site::Hidden(0), |xs: Tensor| xs.index_select(&kept, 1));
        let without = vit.forward_with(&images, &mut without).unwrap();
        assert_close(&masked.logits.unwrap(), &without.logits.unwrap());
    }
}

/// Even if nothing is left of a patch, the mask still learns whether it was needed.
#[test]
fn a_dropped_patch_passes_a_gradient_to_its_mask() {
    for config in [small_config(), with_patches_in_the_head()] {
        let vit = small_vit(config);
        let mask = Var::zeros((1, 9), candle_core::DType::F32, &Device::Cpu).unwrap();
        let masked = masked_pass(&vit, &small_images(1), mask.as_tensor(), &Removal::Drop).unwrap();
        let grads = masked.logits.unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = grads.backward().unwrap();
        let gradient = values(grads.get(&mask).unwrap());
        assert!(
            gradient
                .iter()
                .all(|value| value.is_finite() && *value != 0.0),
            "{gradient:?}"
        );
    }
}

#[test]
fn a_masked_patch_gets_the_baseline_and_the_others_stay() {
    let vit = small_vit(small_config());
    let images = small_images(1);
    let clean = clean_pass(&vit, &images).unwrap();
    let fourth = clean.states[0].get(0).unwrap().get(4).unwrap();
    let removal = Removal::Baseline(fourth);
    // The baseline equals the embedding of patch 4, so masking patch 4 changes nothing, but masking patch 5 does.
    let logits = clean.output.logits.unwrap();
    let masked = |patch: usize| {
        let mut mask = vec![1.0_f32; 9];
        mask[patch] = 0.0;
        let mask = Tensor::from_vec(mask, (1, 9), &Device::Cpu).unwrap();
        let output = masked_pass(&vit, &images, &mask, &removal).unwrap();
        output.logits.unwrap()
    };
    assert_close(&masked(4), &logits);
    let moved: f32 = values(&(masked(5) - logits).unwrap())
        .into_iter()
        .map(f32::abs)
        .sum();
    assert!(moved > 1e-3);
}

#[test]
fn within_the_margin_no_larger_mask_than_needed_is_kept() {
    let vit = small_vit(small_config());
    let images = small_images(4);
    let original = vit.forward(&images).unwrap().logits.unwrap();
    let removal = baseline(0.0);
    let attributions: Vec<Vec<f32>> = Rng::new(4)
        .uniform_tensor((4, 9), &Device::Cpu)
        .unwrap()
        .to_vec2()
        .unwrap();
    let kept = |margin| {
        let masks =
            masks_within_margin(&vit, &images, &original, &attributions, &removal, margin).unwrap();
        let answers = masked_answers(&vit, &images, &original, &masks, &removal).unwrap();
        assert!(
            answers
                .iter()
                .all(|answer| answer.kl <= margin && answer.agrees)
        );
        answers.iter().map(|answer| answer.kept).sum::<f64>()
    };
    // Whatever the margin allows, the class does not change.
    assert!(kept(1e9) <= kept(0.1) && kept(0.1) <= kept(1e-3));
    assert!(kept(1e-7) > kept(1e-2));
}

/// The likeliest patches are kept, and keeping one fewer would change the answer by more than the margin.
#[test]
fn diffmask_cut_at_the_margin_keeps_as_few_of_the_likeliest_patches_as_it_can() {
    let vit = small_vit(small_config());
    let gates = small_gates(&vit);
    let images = small_images(6);
    let original = vit.forward(&images).unwrap().logits.unwrap();
    let parts = Parts {
        gates: Some(&gates),
        ..Parts::default()
    };
    let explain = |options: &str| -> Vec<Vec<f32>> {
        let explainer = Method::DiffMask
            .build_with(parts, options.parse().unwrap())
            .unwrap();
        let explanation = explainer.explain(&vit, &images, Target::Predicted).unwrap();
        explanation.attribution.to_vec2().unwrap()
    };
    let likely = explain("");
    let cut = explain("cut = 'margin'\nmargin = 1e-4");
    let kept: Vec<Vec<bool>> = cut
        .iter()
        .map(|mask| mask.iter().map(|&keep| keep == 1.0).collect())
        .collect();
    assert!(cut.iter().flatten().all(|&keep| keep == 0.0 || keep == 1.0));
    let mut fewer = kept.clone();
    for (mask, likely) in fewer.iter_mut().zip(&likely) {
        let of = |mask: &[bool], keep: bool| -> Vec<usize> {
            (0..mask.len())
                .filter(|&patch| mask[patch] == keep)
                .collect()
        };
        let (inside, outside) = (of(mask, true), of(mask, false));
        let worst = inside
            .iter()
            .copied()
            .min_by(|&a, &b| likely[a].total_cmp(&likely[b]));
        let worst = worst.expect("a margin this small needs a patch at least");
        assert!(outside.iter().all(|&patch| likely[patch] <= likely[worst]));
        mask[worst] = false;
    }
    let divergences = |masks: &[Vec<bool>]| -> Vec<f64> {
        let answers = masked_answers(&vit, &images, &original, masks, gates.removal()).unwrap();
        answers.iter().map(|answer| answer.kl).collect()
    };
    assert!(divergences(&kept).into_iter().all(|kl| kl <= 1e-4));
    assert!(divergences(&fewer).into_iter().all(|kl| kl > 1e-4));
}

#[test]
fn a_cut_that_means_nothing_is_refused() {
    let vit = small_vit(small_config_without_head());
    let gates = small_gates(&vit);
    let parts = Parts {
        gates: Some(&gates),
        ..Parts::default()
    };
    let build = |options: &str| Method::DiffMask.build_with(parts, options.parse().unwrap());
    let message = build("margin = -0.1").err().unwrap().to_string();
    assert!(
        message.contains("margin must be above 0 nats, got -0.1"),
        "{message}"
    );
    let message = build("cut = 'half'").err().unwrap().to_string();
    assert!(
        message.contains("`half`") && message.contains("`margin`"),
        "{message}"
    );
    let explainer = build("cut = 'margin'").unwrap();
    let refused = explainer.explain(&vit, &small_images(1), Target::Predicted);
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("the model has no head"), "{message}");
}

fn card(sizes: GateSizes) -> GateCard {
    GateCard {
        base_sha256: "ab12".into(),
        objective: Objective::Published,
        states: sizes.states,
        dim: sizes.dim,
        hidden: sizes.hidden,
        stretch: 15.0,
        seed: 3,
        recipe: [("lr".to_owned(), 1e-4.into())].into(),
        l0: 0.5,
        kl: 0.01,
        explained: None,
    }
}

#[test]
fn saved_gates_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let config = small_config();
    let sizes = GateSizes::new(&config);
    let tensors = VotingGates::initial_tensors(sizes, 2.0, &mut Rng::new(3), &Device::Cpu).unwrap();
    Gates::save(&tensors, &card(sizes), folder.path()).unwrap();
    let vit = small_vit(config);
    let (back, back_card) = Gates::open(folder.path(), &vit, "AB12", &Device::Cpu).unwrap();
    assert_eq!(back_card, card(sizes));
    let states = clean_pass(&vit, &small_images(2)).unwrap().states;
    let Gates::Voting(after) = back else {
        panic!("gates of the published objective vote");
    };
    let before = small_voting_gates(&vit);
    assert_eq!(
        values(&before.mask(&states).unwrap()),
        values(&after.mask(&states).unwrap())
    );
}

#[test]
fn gates_of_other_weights_or_other_sizes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = GateSizes::new(&small_config());
    let tensors = VotingGates::initial_tensors(sizes, 2.0, &mut Rng::new(3), &Device::Cpu).unwrap();
    Gates::save(&tensors, &card(sizes), folder.path()).unwrap();
    let refused = |config: &VitConfig, sha256| {
        let error = Gates::open(
            folder.path(),
            &small_vit(config.clone()),
            sha256,
            &Device::Cpu,
        )
        .err();
        error.unwrap().to_string()
    };
    let message = refused(&small_config(), "cd34");
    assert!(
        message.contains("\"ab12\", but the model's weights have sha256 \"cd34\""),
        "{message}"
    );
    let deeper = VitConfig {
        num_hidden_layers: 4,
        ..small_config()
    };
    let message = refused(&deeper, "ab12");
    assert!(
        message.contains("5 states of 16 features, but the model has 6 states of 16 features"),
        "{message}"
    );
}

#[test]
fn damaged_gates_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = small_config();
    let sizes = GateSizes::new(&config);
    let tensors = VotingGates::initial_tensors(sizes, 2.0, &mut Rng::new(3), &Device::Cpu).unwrap();
    Gates::save(&tensors, &card(sizes), folder.path()).unwrap();
    let vit = small_vit(config);
    let open = || Gates::open(folder.path(), &vit, "ab12", &Device::Cpu);
    let path = folder.path().join("gates.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(open().err().unwrap().to_string().contains("malformed"));
    std::fs::write(&path, &whole).unwrap();
    std::fs::write(folder.path().join("gates.json"), "{}").unwrap();
    assert!(open().err().unwrap().to_string().contains("base_sha256"));
}

/// Returns frames of a static texture with a little sensor noise.
fn still_frames(n_frames: usize) -> Tensor {
    let mut rng = Rng::new(8);
    let values: Vec<f32> = (0..n_frames * 3 * 144)
        .map(|idx| {
            let (x, y) = ((idx % 12) as f32, (idx / 12 % 12) as f32);
            0.6 * (0.9 * x).sin() * (0.7 * y).cos() + 0.04 * rng.normal()
        })
        .collect();
    Tensor::from_vec(values, (n_frames, 3, 12, 12), &Device::Cpu).unwrap()
}

#[test]
fn smoothed_masks_change_less_and_what_the_gates_said_stays_known() {
    let vit = small_vit(small_config());
    let gates = small_gates(&vit);
    let parts = Parts {
        gates: Some(&gates),
        normalization: Some(([0.5; 3], [0.5; 3])),
        ..Parts::default()
    };
    let build = |options: &str| {
        Method::DiffMask
            .build_with(parts, options.parse().unwrap())
            .unwrap()
    };
    let frames = still_frames(8);
    let explain = |explainer: Box<dyn Explainer>| {
        let mut memory = StreamMemory::default();
        let mut streams = Streams::one(&mut memory, 8);
        let found = follow_all(
            &[explainer],
            &vit,
            &frames,
            &[Target::Predicted],
            &mut streams,
        );
        let found = found.unwrap();
        let shown: Vec<Vec<f32>> = found.attributions[0].to_vec2().unwrap();
        let own = found.unsmoothed[0]
            .as_ref()
            .map(|own| own.to_vec2::<f32>().unwrap());
        (shown, own)
    };
    let (plain, nothing) = explain(build(""));
    assert!(nothing.is_none());
    let (smoothed, own) = explain(build("smooth = 0.8"));
    assert_eq!(own.unwrap(), plain);
    let change = |maps: &[Vec<f32>]| -> f32 {
        let pairs = maps
            .windows(2)
            .flat_map(|pair| pair[0].iter().zip(&pair[1]));
        pairs.map(|(a, b)| (a - b).abs()).sum()
    };
    assert!(change(&plain) > 0.0);
    assert!(
        change(&smoothed) < 0.5 * change(&plain),
        "{} {}",
        change(&smoothed),
        change(&plain)
    );
    // The first frame has no past; logits are clamped where eight bits no longer tell them apart.
    for (smoothed, plain) in smoothed[0].iter().zip(&plain[0]) {
        assert!((smoothed - plain).abs() < 2e-3, "{smoothed} {plain}");
    }
    let explainer = build("smooth = 0.8");
    let one = |at: usize, memory: &mut StreamMemory| {
        let frame = frames.narrow(0, at, 1).unwrap();
        let mut streams = Streams::one(memory, 1);
        let found = explainer.explain_next(&vit, &frame, Target::Predicted, &mut streams);
        found
            .unwrap()
            .attribution
            .to_vec2::<f32>()
            .unwrap()
            .remove(0)
    };
    let mut memory = StreamMemory::default();
    assert_eq!(one(0, &mut memory), smoothed[0]);
    let other = one(5, &mut StreamMemory::default());
    assert_eq!(
        one(1, &mut memory),
        smoothed[1],
        "one by one, or in a batch"
    );
    assert_ne!(other, smoothed[5], "another video");
    let alone = explainer.explain(&vit, &frames, Target::Predicted).unwrap();
    let alone = alone.attribution.to_vec2::<f32>().unwrap();
    assert_eq!(alone[5], other, "a picture alone");
}

#[test]
fn smoothing_that_means_nothing_is_refused() {
    let vit = small_vit(small_config());
    let gates = small_gates(&vit);
    let error = |parts: Parts<'_>, options: &str| {
        let built = Method::DiffMask.build_with(parts, options.parse().unwrap());
        built.err().unwrap().to_string()
    };
    let unknown = Parts {
        gates: Some(&gates),
        ..Parts::default()
    };
    let message = error(unknown, "smooth = 0.5");
    assert!(
        message.contains("image normalization, which is unknown"),
        "{message}"
    );
    let known = Parts {
        normalization: Some(([0.5; 3], [0.5; 3])),
        ..unknown
    };
    let message = error(known, "smooth = 1.0");
    assert!(
        message.contains("smooth must be at least 0 and below 1, got 1"),
        "{message}"
    );
}

/// Returns φ of ranking gates on a batch, for class weights by row.
fn ranked(vit: &Vit, images: &Tensor, weights: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let clean = clean_pass(vit, images).unwrap();
    let shape = (weights.len(), weights[0].len());
    let weights = Tensor::from_vec(weights.concat(), shape, &Device::Cpu).unwrap();
    let logits = clean.output.logits.unwrap();
    let scores = small_ranking_gates(vit).scores(&clean.states, &logits, &weights);
    scores.unwrap().to_vec2().unwrap()
}

#[test]
fn scores_add_up_to_what_the_class_gains_by_the_image() {
    let vit = small_vit(small_config());
    let images = small_images(2);
    let logits = vit.forward(&images).unwrap().logits.unwrap();
    let answer: Vec<Vec<f32>> = candle_nn::ops::softmax(&logits, 1)
        .unwrap()
        .to_vec2()
        .unwrap();
    let n_classes = answer[0].len();
    // The gates' own record of the answer to emptied pictures, drawn in the same way as in `small_ranking_gates`.
    let mut rng = Rng::new(6);
    let sizes = small_ranking_gates(&vit).sizes();
    for drawn in [
        (sizes.width, sizes.dim),
        (sizes.width, sizes.hidden),
        (1, sizes.hidden),
        (sizes.hidden, 1),
    ] {
        rng.uniform_tensor(drawn, &Device::Cpu).unwrap();
    }
    let empty = values(&rng.uniform_tensor(n_classes, &Device::Cpu).unwrap());
    for class in 0..n_classes {
        let mut one_hot = vec![0.0; n_classes];
        one_hot[class] = 1.0;
        let scores = ranked(&vit, &images, &[one_hot.clone(), one_hot]);
        for (scores, answer) in scores.iter().zip(&answer) {
            let sum: f32 = scores.iter().sum();
            assert!((sum - (answer[class] - empty[class])).abs() < TOLERANCE);
            assert!(scores.iter().any(|score| (score - scores[0]).abs() > 1e-3));
        }
    }
}

/// A class is its row of the classifier: under a classifier with the same rows in another order, scaled and shifted by
/// the same amount, each class keeps its scores, except for the assumed answer to emptied pictures.
#[test]
fn another_classifier_of_the_same_classes_gets_the_same_order_of_patches() {
    let vit = small_vit(small_config());
    let gates = small_ranking_gates(&vit);
    let images = small_images(2);
    let clean = clean_pass(&vit, &images).unwrap();
    let logits = clean.output.logits.unwrap();
    let n_classes = logits.dim(1).unwrap();
    let order: Vec<u32> = (0..n_classes as u32).rev().collect();
    let order = Tensor::new(order.as_slice(), &Device::Cpu).unwrap();
    let rows = vit.class_weights().unwrap().unwrap();
    let moved = (rows.index_select(&order, 0).unwrap() * 3.0).unwrap();
    let moved = (moved + 0.7).unwrap();
    let bias = Tensor::zeros(n_classes, candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut weights = init::init(&small_config(), &mut Rng::new(1)).unwrap();
    weights.insert("classifier.weight".into(), moved);
    weights.insert("classifier.bias".into(), bias);
    let other = Vit::load(small_config(), &weights).unwrap();
    let under = gates.under(&other).unwrap().unwrap();
    let logits_of_other = logits.index_select(&order, 1).unwrap();
    let scores = |gates: &RankingGates, logits: &Tensor| -> Vec<Vec<f32>> {
        let found = gates.scores_of_predicted(&clean.states, logits).unwrap();
        found.to_vec2().unwrap()
    };
    let (own, found) = (scores(&gates, &logits), scores(&under, &logits_of_other));
    for (own, found) in own.iter().zip(&found) {
        let mean = |scores: &[f32]| scores.iter().sum::<f32>() / scores.len() as f32;
        let (of_own, of_found) = (mean(own), mean(found));
        assert!(own.iter().any(|score| (score - of_own).abs() > 1e-3));
        for (own, found) in own.iter().zip(found) {
            assert!(((own - of_own) - (found - of_found)).abs() < TOLERANCE);
        }
    }
}

#[test]
fn scores_of_a_contrast_are_those_of_one_class_less_those_of_the_other() {
    let vit = small_vit(small_config());
    let images = small_images(1);
    let n_classes = vit.config().n_classes();
    let of = |class: usize, other: Option<usize>| {
        let mut weights = vec![0.0; n_classes];
        weights[class] = 1.0;
        if let Some(other) = other {
            weights[other] = -1.0;
        }
        ranked(&vit, &images, &[weights]).remove(0)
    };
    let (one, two, both) = (of(0, None), of(2, None), of(0, Some(2)));
    for ((one, two), both) in one.iter().zip(&two).zip(&both) {
        assert!((one - two - both).abs() < TOLERANCE);
    }
}

#[test]
fn gates_that_rank_explain_any_class_and_the_predicted_one_by_default() {
    let vit = small_vit(small_config());
    let gates = Gates::Ranking(small_ranking_gates(&vit));
    let parts = Parts {
        gates: Some(&gates),
        ..Parts::default()
    };
    let images = small_images(1);
    let explain = |target| {
        let explainer = Method::DiffMask.build(parts).unwrap();
        values(
            &explainer
                .explain(&vit, &images, target)
                .unwrap()
                .attribution,
        )
    };
    let logits = values(&vit.forward(&images).unwrap().logits.unwrap());
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    let best = best.unwrap();
    assert_eq!(explain(Target::Predicted), explain(Target::Class(best)));
    assert_ne!(
        explain(Target::Predicted),
        explain(Target::Class((best + 1) % logits.len()))
    );
    // The mask keeps what supports the class.
    let scores = explain(Target::Predicted);
    let options = "cut = 'likely'".parse().unwrap();
    let likely = Method::DiffMask.build_with(parts, options).unwrap();
    let mask = values(
        &likely
            .explain(&vit, &images, Target::Predicted)
            .unwrap()
            .attribution,
    );
    let expected: Vec<f32> = scores
        .iter()
        .map(|&score| f32::from(u8::from(score >= 0.0)))
        .collect();
    assert_eq!(mask, expected);
    assert!(mask.contains(&0.0) && mask.contains(&1.0));
}

#[test]
fn saved_gates_that_rank_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let config = small_config();
    let sizes = RankingSizes::new(&config, 6);
    let tensors = RankingGates::initial_tensors(sizes, &mut Rng::new(5), &Device::Cpu).unwrap();
    let card = GateCard {
        objective: Objective::Shapley,
        hidden: 6,
        explained: Some(0.5),
        ..card(GateSizes::new(&config))
    };
    Gates::save(&tensors, &card, folder.path()).unwrap();
    let vit = small_vit(config);
    let (back, back_card) = Gates::open(folder.path(), &vit, "AB12", &Device::Cpu).unwrap();
    assert_eq!(back_card, card);
    let Gates::Ranking(back) = back else {
        panic!("gates of the objective \"shapley\" rank");
    };
    let clean = clean_pass(&vit, &small_images(2)).unwrap();
    let before = RankingGates::load(&vit, 6, &tensors.into_iter().collect()).unwrap();
    let logits = clean.output.logits.unwrap();
    let scores =
        |gates: &RankingGates| values(&gates.scores_of_predicted(&clean.states, &logits).unwrap());
    assert_eq!(scores(&before), scores(&back));
}

/// Returns one row per image that requests a class.
fn asking_for(class: usize, batch: usize, n_classes: usize) -> Tensor {
    let row = (0..n_classes).map(|c| f32::from(u8::from(c == class)));
    let rows: Vec<f32> = (0..batch).flat_map(|_| row.clone()).collect();
    Tensor::from_vec(rows, (batch, n_classes), &Device::Cpu).unwrap()
}

#[test]
fn the_class_token_takes_from_patches_what_pytorch_says() {
    const CLASS: usize = 2;
    let load = |path| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let expected = load(fixture("class_stream.safetensors"));
    for name in ["vit_a", "deit_distilled"] {
        let folder = fixture(name);
        let vit = models::open(folder.to_str().unwrap(), &Device::Cpu)
            .unwrap()
            .vit;
        let images = load(folder.join("reference.safetensors"))
            .remove("images")
            .unwrap();
        let weights = asking_for(CLASS, images.dim(0).unwrap(), vit.config().n_classes());
        let found = ClassStream::of(&vit, &images, &weights, 0).unwrap();
        for (key, found) in [
            ("contributions", &found.contributions),
            ("attention", &found.attention),
        ] {
            let expected = &expected[&format!("{name}/{key}")];
            assert_eq!(expected.dims(), found.dims());
            let largest = values(expected)
                .into_iter()
                .fold(0f32, |a, b| a.max(b.abs()));
            for (expected, found) in values(expected).into_iter().zip(values(found)) {
                let off = (expected - found).abs() / largest;
                assert!(off < 1e-4, "{name}/{key}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn scores_of_gates_that_order_add_up_to_what_the_class_gains_by_the_image() {
    let vit = small_vit(small_config());
    let images = small_images(2);
    let (_, _, height_px, width_px) = images.dims4().unwrap();
    let logits = vit.forward(&images).unwrap().logits.unwrap();
    let answer = candle_nn::ops::softmax(&logits, 1).unwrap();
    let answer: Vec<Vec<f32>> = answer.to_vec2().unwrap();
    let empty = values(&small_order_tensors(&vit)[EMPTY_ANSWER]);
    let gates = small_order_gates(&vit);
    for class in 0..empty.len() {
        let weights = asking_for(class, 2, empty.len());
        let stream =
            ClassStream::of(&vit, &images, &weights, OrderGates::first_block(&vit)).unwrap();
        let grid = vit.grid(height_px, width_px);
        let scores = gates.scores(&stream, grid, &logits, &weights).unwrap();
        let scores: Vec<Vec<f32>> = scores.to_vec2().unwrap();
        for (scores, answer) in scores.iter().zip(&answer) {
            let sum: f32 = scores.iter().sum();
            assert!((sum - (answer[class] - empty[class])).abs() < TOLERANCE);
            assert!(scores.iter().any(|score| (score - scores[0]).abs() > 1e-3));
        }
    }
}

#[test]
fn gates_that_order_explain_any_class_and_the_predicted_one_by_default() {
    let vit = small_vit(small_config());
    let gates = Gates::Order(small_order_gates(&vit));
    let parts = Parts {
        gates: Some(&gates),
        ..Parts::default()
    };
    let images = small_images(1);
    let explain = |target| {
        let explainer = Method::DiffMask.build(parts).unwrap();
        assert!(explainer.explains_classes());
        let found = explainer.explain(&vit, &images, target).unwrap();
        values(&found.attribution)
    };
    let logits = values(&vit.forward(&images).unwrap().logits.unwrap());
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    let (best, other) = (best.unwrap(), (best.unwrap() + 1) % logits.len());
    assert_eq!(explain(Target::Predicted), explain(Target::Class(best)));
    assert_ne!(explain(Target::Predicted), explain(Target::Class(other)));
    // Evaluations of gates request the same map, as a mask in the same order.
    let mask = gates.freeze().unwrap().pass(&vit, &images).unwrap().mask;
    let scores = explain(Target::Predicted);
    for (score, likely) in scores.iter().zip(values(&mask)) {
        let share = score * scores.len() as f32;
        let expected = 0.5 + 0.5 * share / (1.0 + share.abs());
        assert!((expected - likely).abs() < TOLERANCE, "{expected} {likely}");
    }
}

#[test]
fn saved_gates_that_order_come_back_as_they_were_and_serve_another_classifier() {
    let folder = tempfile::tempdir().unwrap();
    let config = small_config();
    let vit = small_vit(config.clone());
    let tensors = small_order_tensors(&vit);
    let card = GateCard {
        objective: Objective::Order,
        hidden: 6,
        explained: Some(0.5),
        ..card(GateSizes::new(&config))
    };
    Gates::save(&tensors, &card, folder.path()).unwrap();
    let (back, back_card) = Gates::open(folder.path(), &vit, "AB12", &Device::Cpu).unwrap();
    assert_eq!(back_card, card);
    let Gates::Order(back) = back else {
        panic!("gates of the objective \"order\" order");
    };
    let images = small_images(2);
    let logits = vit.forward(&images).unwrap().logits.unwrap();
    let weights = asking_for(1, 2, logits.dim(1).unwrap());
    let stream = ClassStream::of(&vit, &images, &weights, OrderGates::first_block(&vit)).unwrap();
    let grid = {
        let (_, _, height_px, width_px) = images.dims4().unwrap();
        vit.grid(height_px, width_px)
    };
    let scores = |gates: &OrderGates| {
        let scores = gates.scores(&stream, grid, &logits, &weights).unwrap();
        scores.to_vec2::<f32>().unwrap()
    };
    let own = scores(&small_order_gates(&vit));
    assert_eq!(own, scores(&back));
    // Only the assumed answer to emptied pictures differs, which shifts all patches by the same amount.
    let under = scores(&back.under(&vit).unwrap());
    for (own, under) in own.iter().zip(&under) {
        for (a, b) in own.iter().zip(under) {
            assert!(((a - own[0]) - (b - under[0])).abs() < TOLERANCE);
        }
    }
}

#[test]
fn gates_that_order_are_refused_where_a_tensor_is_missing_or_the_model_has_no_classifier() {
    let vit = small_vit(small_config());
    let mut tensors: HashMap<String, Tensor> = small_order_tensors(&vit).into_iter().collect();
    let headless = small_vit(small_config_without_head());
    let message = |vit: &Vit, tensors: &HashMap<String, Tensor>| {
        OrderGates::load(vit, 6, tensors).unwrap_err().to_string()
    };
    assert!(message(&headless, &tensors).contains("no classifier"));
    tensors.remove("scale");
    assert!(message(&vit, &tensors).contains("gates lack tensor \"scale\""));
    let odd = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
    tensors.insert("scale".into(), odd);
    let found = message(&vit, &tensors);
    assert!(found.contains("\"scale\" has shape [3]"), "{found}");
}
