//! Every method: against PyTorch, on a toy with a known answer, and what it refuses.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use vitscope::explain::Pace;
use vitscope::explain::gradmask::GradMask;
use vitscope::explain::{
    Explainer, Forward, Method, Needs, Parts, StreamMemory, Streams, Target, explain_all,
    follow_all, gradients, rise,
};
use vitscope::interpreter::Interpreter;
use vitscope::models::{self, Model};
use vitscope::rng::Rng;
use vitscope::vit::{Site, Stop, Vit, VitConfig, init};
use vitscope_core::gates::Gates;

use crate::common::{
    fixture, small_config, small_config_without_head, small_gates, small_images, small_interpreter,
    small_vit,
};

/// The class that the fixtures explain.
const CLASS: usize = 2;

/// Methods under the names and options of the fixtures, with the class that those explain.
const PARITY: &[(&str, Method, &str, usize)] = &[
    ("raw-attention", Method::RawAttention, "", CLASS),
    ("rollout", Method::Rollout, "", CLASS),
    ("gradient-rollout", Method::GradientRollout, "", CLASS),
    ("generic", Method::Chefer, "", CLASS),
    ("grad-sam", Method::GradSam, "", CLASS),
    ("gradcam-attention", Method::GradCamAttention, "", CLASS),
    ("gradcam-attention-other", Method::GradCamAttention, "", 1),
    ("gradcam", Method::GradCam, "", CLASS),
    ("gradcam-other", Method::GradCam, "", 1),
    ("agcam", Method::Agcam, "", CLASS),
    ("legrad", Method::LeGrad, "", CLASS),
    ("tam", Method::TransitionAttention, "", CLASS),
    ("beyond-intuition", Method::BeyondIntuition, "", CLASS),
    ("gradient-x-input", Method::GradientInput, "", CLASS),
    ("saliency", Method::Saliency, "", CLASS),
    (
        "integrated-gradients",
        Method::IntegratedGradients,
        "steps = 32\ntolerance = 0.0",
        CLASS,
    ),
    ("occlusion", Method::Occlusion, "", CLASS),
    (
        "token-occlusion",
        Method::Occlusion,
        "occlusion = 'token-drop'",
        CLASS,
    ),
    ("recipro-cam", Method::ReciproCam, "", CLASS),
    ("score-cam", Method::ScoreCam, "", CLASS),
    ("score-cam-other", Method::ScoreCam, "", 1),
    ("gradmask", Method::GradMask, "", CLASS),
    ("libragrad", Method::LibraGrad, "", CLASS),
    #[cfg(feature = "lrp")]
    ("attn-lrp", Method::AttnLrp, "", CLASS),
];

fn fixture_model(name: &str) -> (Model, Tensor) {
    let folder = fixture(name);
    let model = models::open(folder.to_str().unwrap(), &Device::Cpu).unwrap();
    let reference = folder.join("reference.safetensors");
    let mut reference = candle_core::safetensors::load(reference, &Device::Cpu).unwrap();
    (model, reference.remove("images").unwrap())
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("explain.safetensors"), &Device::Cpu).unwrap()
}

fn build(method: Method, options: &str) -> Box<dyn Explainer> {
    let options = options.parse().unwrap();
    method.build_with(Parts::default(), options).unwrap()
}

fn target_of(explainer: &dyn Explainer, class: usize) -> Target {
    if explainer.explains_classes() {
        Target::Class(class)
    } else {
        Target::Predicted
    }
}

fn largest(xs: &Tensor) -> f32 {
    let largest = xs.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    largest.to_scalar().unwrap()
}

/// Fails if `found` differs from `expected` by more than `tolerance` times its largest value.
fn assert_near(expected: &Tensor, found: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(expected.dims(), found.dims(), "{what}");
    let off = largest(&(expected - found).unwrap()) / largest(expected).max(1e-12);
    assert!(
        off < tolerance,
        "{what} is off by {off} of its largest value"
    );
}

#[test]
fn maps_are_those_of_pytorch() {
    let expected = expected();
    for name in ["vit_a", "vit_b", "deit_distilled"] {
        let (model, images) = fixture_model(name);
        for &(key, method, options, class) in PARITY {
            let what = format!("{name}/{key}");
            let explainer = build(method, options);
            let target = target_of(&*explainer, class);
            let found = explainer.explain(&model.vit, &images, target).unwrap();
            let expected = &expected[&what];
            if largest(expected) == 0.0 {
                assert_eq!(0.0, largest(&found.attribution), "{what}");
            } else {
                assert_near(expected, &found.attribution, 2e-4, &what);
            }
        }
    }
}

#[cfg(feature = "lrp")]
#[test]
fn relevance_of_attention_is_that_of_pytorch() {
    let expected = expected();
    let explainer = build(Method::CheferLrp, "");
    for name in ["vit_a", "vit_b"] {
        let (model, images) = fixture_model(name);
        let explanation = explainer.explain(&model.vit, &images, Target::Class(CLASS));
        let what = format!("{name}/chefer-lrp");
        // Quotients of small numbers: PyTorch in f32 differs by 1.6e-4 from its own f64 result.
        assert_near(
            &expected[&what],
            &explanation.unwrap().attribution,
            1e-3,
            &what,
        );
    }
    let (model, images) = fixture_model("deit_distilled");
    let refused = explainer.explain(&model.vit, &images, Target::Predicted);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("only the class token")
    );
}

#[test]
fn gradmask_draws_the_masks_of_pytorch() {
    let expected = expected();
    for name in ["vit_a", "vit_b", "deit_distilled"] {
        let (model, images) = fixture_model(name);
        let gradmask = GradMask::default();
        let forward = Forward::run(&model.vit, &images, gradmask.needs(&model.vit)).unwrap();
        let pass = forward.toward(Target::Class(CLASS)).unwrap();
        let masks = gradmask.masks(&pass).unwrap();
        let expected: Vec<Vec<Vec<f32>>> = expected[&format!("{name}/gradmask-masks")]
            .to_vec3()
            .unwrap();
        assert_eq!(expected, masks, "{name}");
    }
}

#[test]
fn noise_and_masks_of_ones_own_give_the_maps_of_pytorch() {
    let expected = expected();
    let (model, images) = fixture_model("vit_a");
    let forward = Forward::run(&model.vit, &images, Needs::default()).unwrap();
    let pass = forward.toward(Target::Class(CLASS)).unwrap();
    let noise = &expected["vit_a/smoothgrad-noise"];
    let noisy = (0..4).map(|copy| &images + noise.get(copy)?);
    let found = gradients::smooth(&pass, noisy).unwrap();
    assert_near(
        &expected["vit_a/smoothgrad-given"],
        &found,
        2e-4,
        "smoothgrad",
    );
    let masks: Vec<Vec<f32>> = expected["vit_a/rise-masks"]
        .flatten_from(1)
        .unwrap()
        .to_vec2()
        .unwrap();
    let found = rise::from_masks(&pass, masks.len(), |mask_idx| masks[mask_idx].clone()).unwrap();
    assert_near(&expected["vit_a/rise-given"], &found, 2e-4, "rise");
}

#[test]
fn gradients_of_keys_cancel_over_all_tokens() {
    // Adding one vector to all keys does not change the softmax.
    let (model, images) = fixture_model("vit_a");
    let sites = (0..model.vit.n_blocks()).map(Site::Key);
    let forward = Forward::run(&model.vit, &images, Needs::gradients(sites.clone())).unwrap();
    let pass = forward.toward(Target::Class(CLASS)).unwrap();
    for site in sites {
        let gradient = pass.gradient(site).unwrap();
        let sum = gradient.sum(1).unwrap();
        assert!(largest(&sum) < 1e-5 * largest(gradient), "{site:?}");
    }
}

#[test]
fn in_the_last_block_only_queries_of_patches_have_no_gradient() {
    let (model, images) = fixture_model("vit_a");
    let last = model.vit.n_blocks() - 1;
    let sites = [Site::Query(last), Site::Key(last), Site::Value(last)];
    let forward = Forward::run(&model.vit, &images, Needs::gradients(sites)).unwrap();
    let pass = forward.toward(Target::Class(CLASS)).unwrap();
    let of_patches = |site| {
        let gradient = pass.gradient(site).unwrap();
        largest(&pass.patches_of(gradient, 1).unwrap())
    };
    assert_eq!(0.0, of_patches(Site::Query(last)));
    assert!(of_patches(Site::Key(last)) > 0.0 && of_patches(Site::Value(last)) > 0.0);
}

#[test]
fn integrated_gradients_are_complete() {
    let (model, images) = fixture_model("vit_a");
    let logit = |images: &Tensor| {
        let logits = model.vit.forward(images).unwrap().logits.unwrap();
        logits.narrow(1, CLASS, 1).unwrap().squeeze(1).unwrap()
    };
    let gray = images.zeros_like().unwrap();
    let rise = (logit(&images) - logit(&gray)).unwrap();
    let shares_off = |options: &str| -> Vec<f32> {
        let explainer = build(Method::IntegratedGradients, options);
        let found = explainer
            .explain(&model.vit, &images, Target::Class(CLASS))
            .unwrap();
        let sum = found.attribution.sum(D::Minus1).unwrap();
        let off = ((sum - &rise).unwrap() / &rise).unwrap();
        values(&off.abs().unwrap())
    };
    let coarse = shares_off("steps = 2\ntolerance = 0.0");
    assert!(coarse.iter().any(|&off| off > 0.05), "{coarse:?}");
    for options in ["", "steps = 2"] {
        let refined = shares_off(options);
        assert!(refined.iter().all(|&off| off <= 0.05), "{refined:?}");
    }
}

#[test]
fn with_nothing_hidden_every_mask_counts_as_the_class_does() {
    let (model, images) = fixture_model("vit_a");
    let logits = model.vit.forward(&images).unwrap().logits.unwrap();
    let probabilities = candle_nn::ops::softmax(&logits, D::Minus1).unwrap();
    // Every vote is at least the minimum, so every mask keeps every patch: 2 blocks of Q, K and V in 4 groups.
    let explainer = build(Method::GradMask, "threshold = { quantile = 0.0 }");
    let found = explainer
        .explain(&model.vit, &images, Target::Class(CLASS))
        .unwrap();
    let of_class = probabilities.narrow(1, CLASS, 1).unwrap();
    let expected = (of_class.broadcast_as((2, 16)).unwrap() * 24.0).unwrap();
    assert_near(&expected, &found.attribution, 1e-4, "24 full masks");
}

/// Creates gates and an interpreter.
fn parts_for(vit: &Vit) -> (Gates, Interpreter) {
    (small_gates(vit), small_interpreter(vit))
}

/// Builds every method, with options that make it cheap enough for many runs.
fn all_methods((gates, interpreter): &(Gates, Interpreter)) -> Vec<Box<dyn Explainer>> {
    let parts = Parts {
        gates: Some(gates),
        interpreter: Some(interpreter),
        ..Parts::default()
    };
    Method::ALL
        .iter()
        .map(|&method| {
            let options = match method {
                Method::Rise => "masks = 400\ncells = 3",
                Method::SmoothGrad => "copies = 3",
                Method::IntegratedGradients => "steps = 4\ntolerance = 0.0",
                _ => "",
            };
            method.build_with(parts, options.parse().unwrap()).unwrap()
        })
        .collect()
}

fn values(xs: &Tensor) -> Vec<f32> {
    xs.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_method_rates_every_patch_the_same_each_time() {
    let vit = small_vit(small_config());
    for explainer in all_methods(&parts_for(&vit)) {
        let explain = || {
            explainer
                .explain(&vit, &small_images(2), Target::Predicted)
                .unwrap()
        };
        let explanation = explain();
        let scores = values(&explanation.attribution);
        let name = explainer.name();
        assert_eq!([2, 9], explanation.attribution.dims(), "{name}");
        assert!(scores.iter().all(|score| score.is_finite()), "{name}");
        assert_eq!(scores, values(&explain().attribution), "{name}");
        assert_eq!(
            Some([2, 3].as_slice()),
            explanation.logits.as_ref().map(Tensor::dims)
        );
    }
}

#[test]
fn methods_of_many_passes_end_once_nobody_waits_for_them() {
    let vit = small_vit(small_config());
    let images = small_images(1);
    for (method, explainer) in Method::ALL.iter().zip(all_methods(&parts_for(&vit))) {
        let stop = Stop::default();
        let vit = vit.under(&stop);
        let forward = Forward::run(&vit, &images, explainer.needs(&vit)).unwrap();
        let pass = forward.toward(Target::Predicted).unwrap();
        stop.request();
        let ended = explainer.attribution(&pass).is_err();
        let is_long = matches!(method.entry().pace, Pace::C | Pace::D);
        assert!(ended || !is_long, "{} goes on", explainer.name());
    }
}

/// A head that reads class token and patch mean is not a class token head, the only one that Chefer's LRP has a rule
/// for.
const REFUSED: [(&str, &str); 4] = [
    ("chefer-lrp", "clip"),
    ("chefer-lrp", "deit_distilled"),
    ("chefer-lrp", "dinov2_reg"),
    ("recipro-cam", "dinov2_reg"),
];

#[test]
fn every_method_goes_with_models_of_every_family_or_says_why_not() {
    let mut refused = Vec::new();
    for name in ["clip", "deit_distilled", "dinov2_reg"] {
        let (model, images) = fixture_model(name);
        for explainer in all_methods(&parts_for(&model.vit)) {
            let explain = |images: &Tensor| {
                let target = target_of(&*explainer, 1);
                explainer.explain(&model.vit, images, target)
            };
            let method = explainer.name();
            match explain(&images) {
                Ok(found) => {
                    let scores = values(&found.attribution);
                    let finite = scores.iter().all(|score| score.is_finite());
                    // Score-CAM leaves nothing of a map that is negative everywhere.
                    let differ =
                        method == "score-cam" || scores.iter().any(|score| *score != scores[0]);
                    assert!(finite && differ, "{method} on {name}: {scores:?}");
                    let first = images.narrow(0, 0, 1).unwrap();
                    let alone = explain(&first).unwrap().attribution;
                    let first = found.attribution.narrow(0, 0, 1).unwrap();
                    assert_near(&first, &alone, 1e-4, &format!("{method} on {name}"));
                }
                Err(error) => {
                    assert!(error.to_string().contains("requires a head"), "{error}");
                    refused.push((method, name));
                }
            }
        }
    }
    refused.sort_unstable();
    let mut expected = REFUSED.to_vec();
    expected.retain(|(method, _)| cfg!(feature = "lrp") || *method != "chefer-lrp");
    assert_eq!(refused, expected);
}

#[test]
fn a_model_without_head_is_explained_by_methods_of_the_whole_answer_only() {
    let vit = small_vit(small_config_without_head());
    for explainer in all_methods(&parts_for(&vit)) {
        let explained = explainer.explain(&vit, &small_images(2), Target::Predicted);
        if explainer.explains_classes() {
            let error = explained.unwrap_err().to_string();
            assert!(error.contains("no head"), "{}: {error}", explainer.name());
        } else {
            assert_eq!([2, 9], explained.unwrap().attribution.dims());
        }
    }
}

#[test]
fn a_batch_is_explained_as_its_images_are() {
    let vit = small_vit(small_config());
    for explainer in all_methods(&parts_for(&vit)) {
        let images = small_images(3);
        let explain = |images: &Tensor| {
            let target = target_of(&*explainer, 1);
            explainer.explain(&vit, images, target).unwrap().attribution
        };
        let second = explain(&images).narrow(0, 1, 1).unwrap();
        let alone = explain(&images.narrow(0, 1, 1).unwrap());
        assert_near(&second, &alone, 1e-5, explainer.name());
    }
}

#[test]
fn methods_together_find_what_they_find_alone() {
    let vit = small_vit(small_config());
    let explainers = all_methods(&parts_for(&vit));
    let images = small_images(2);
    let together = explain_all(&explainers, &vit, &images, &[Target::Predicted]).unwrap();
    for (explainer, found) in explainers.iter().zip(&together.attributions) {
        let alone = explainer.explain(&vit, &images, Target::Predicted).unwrap();
        // A pass with more taps sums in a different order; Score-CAM takes small differences of these sums.
        assert_near(&alone.attribution, found, 1e-3, explainer.name());
    }
}

#[test]
fn several_targets_come_target_by_target_for_each_method() {
    let vit = small_vit(small_config());
    let methods = [Method::Chefer, Method::GradMask].map(|method| build(method, ""));
    let images = small_images(1);
    let targets = [Target::Class(0), Target::Class(2)];
    let together = explain_all(&methods, &vit, &images, &targets).unwrap();
    let mut found = together.attributions.iter();
    for explainer in &methods {
        for target in targets {
            let alone = explainer.explain(&vit, &images, target).unwrap();
            let found = found.next().unwrap();
            assert_near(&alone.attribution, found, 1e-5, explainer.name());
        }
    }
}

#[test]
fn a_contrast_is_the_difference_where_a_method_is_linear() {
    let vit = small_vit(small_config());
    for method in [
        Method::GradientInput,
        Method::Occlusion,
        Method::ReciproCam,
        Method::KernelShap,
    ] {
        let explainer = build(method, "");
        let explain = |target| {
            explainer
                .explain(&vit, &small_images(2), target)
                .unwrap()
                .attribution
        };
        let difference = explain(Target::Class(0)) - explain(Target::Class(2));
        assert_near(
            &difference.unwrap(),
            &explain(Target::Contrast(0, 2)),
            1e-4,
            explainer.name(),
        );
    }
}

#[test]
fn targets_that_have_no_meaning_are_refused() {
    let vit = small_vit(small_config());
    let refused = |method: Method, target| {
        let explained = build(method, "").explain(&vit, &small_images(1), target);
        explained.unwrap_err().to_string()
    };
    assert!(
        refused(Method::Rollout, Target::Class(1))
            .contains("not a single class, but class 1 was requested")
    );
    let contrast = Target::Contrast(0, 1);
    assert!(refused(Method::Rollout, contrast).contains("class 0 against class 1"));
    let error = refused(Method::Chefer, Target::Class(3));
    assert_eq!("target is class 3, but the model has only 3 classes", error);
    assert!(refused(Method::Occlusion, Target::Contrast(0, 9)).contains("class 9"));
}

#[test]
fn groups_that_do_not_divide_the_width_are_refused() {
    let vit = small_vit(small_config());
    let explained =
        build(Method::GradMask, "groups = 3").explain(&vit, &small_images(1), Target::Predicted);
    let error = explained.unwrap_err().to_string();
    assert_eq!(
        "gradmask: the model's 16 channels cannot be divided into 3 equal groups",
        error
    );
}

#[test]
fn masked_copies_are_the_same_in_bounded_chunks() {
    // 48 masks are more than go through the model at once; each occlusion hides a different part.
    let vit = small_vit(small_config());
    let map = |options: &str| {
        let explainer = build(Method::GradMask, options);
        let found = explainer
            .explain(&vit, &small_images(1), Target::Class(0))
            .unwrap();
        values(&found.attribution)
    };
    let mut maps: Vec<Vec<f32>> = [
        "pixel-zero",
        "pixel-mean",
        "pixel-blur",
        "token-drop",
        "token-zero",
    ]
    .map(|occlusion| map(&format!("groups = 8\nocclusion = '{occlusion}'")))
    .into();
    maps.push(map("groups = 8\nweight = 'one'"));
    for (map_idx, map) in maps.iter().enumerate() {
        assert!(
            maps[..map_idx].iter().all(|other| other != map),
            "{map_idx}"
        );
    }
}

#[test]
fn rollout_of_one_block_is_half_its_attention() {
    let vit = small_vit(VitConfig {
        num_hidden_layers: 1,
        ..small_config()
    });
    let explain = |method: Method| {
        let explainer = build(method, "");
        explainer
            .explain(&vit, &small_images(2), Target::Predicted)
            .unwrap()
            .attribution
    };
    // Rows of attention sum to 1, so those of A + I sum to 2.
    let doubled = (explain(Method::Rollout) * 2.0).unwrap();
    assert_near(&doubled, &explain(Method::RawAttention), 1e-5, "rollout");
}

#[test]
fn masks_spread_over_the_frames_of_a_still_video_give_the_same_map() {
    let vit = small_vit(small_config());
    let images = small_images(1);
    let whole = build(Method::GradMask, "");
    let whole = whole
        .explain(&vit, &images, Target::Class(0))
        .unwrap()
        .attribution;
    let spread = [build(Method::GradMask, "spread = 3")];
    let targets = [Target::Class(0), Target::Class(1)];
    let follow = |images: &Tensor, memory: &mut StreamMemory| {
        let mut streams = Streams::one(memory, images.dim(0).unwrap());
        let found = follow_all(&spread, &vit, images, &targets, &mut streams).unwrap();
        found.attributions
    };
    let mut memory = StreamMemory::default();
    let mut explain = |images: &Tensor| follow(images, &mut memory).remove(0);
    // The first frame is tested with all masks.
    assert_near(&whole, &explain(&images), 1e-6, "the first frame");
    // Turns of 3 frames: after many frames, the moving sum oscillates around the whole sum.
    let mut turn = whole.zeros_like().unwrap();
    for frame in 0..63 {
        let found = explain(&images);
        if frame >= 60 {
            turn = (turn + found).unwrap();
        }
    }
    assert_near(&whole, &(turn / 3.0).unwrap(), 1e-4, "the mean of a turn");
    // A batch is a sequence of frames.
    let other = small_images(2).narrow(0, 1, 1).unwrap();
    let both = Tensor::cat(&[&images, &other], 0).unwrap();
    assert_eq!([2, 9], explain(&both).dims());
    let again = follow(&images, &mut StreamMemory::default());
    assert_near(&whole, &again[0], 1e-6, "the first frame of another video");
    let alone = spread[0].explain(&vit, &images, targets[0]).unwrap();
    assert_near(&whole, &alone.attribution, 1e-6, "a picture alone");

    // Each target has its own sums, and so has each video that shares a batch.
    let (mut one, mut two) = (StreamMemory::default(), StreamMemory::default());
    let apart: Vec<Vec<Tensor>> = [&images, &other, &images, &other]
        .into_iter()
        .zip([0, 1, 0, 1])
        .map(|(image, stream)| follow(image, if stream == 0 { &mut one } else { &mut two }))
        .collect();
    let (mut one, mut two) = (StreamMemory::default(), StreamMemory::default());
    let batch = Tensor::cat(&[&images, &other, &images, &other], 0).unwrap();
    let mut streams = Streams::several(vec![&mut one, &mut two], vec![0, 1, 0, 1]);
    let together = follow_all(&spread, &vit, &batch, &targets, &mut streams).unwrap();
    for (target, maps) in together.attributions.iter().enumerate() {
        for (image_idx, alone) in apart.iter().enumerate() {
            let map = maps.narrow(0, image_idx, 1).unwrap();
            assert_near(&alone[target], &map, 1e-5, "two videos in one batch");
        }
    }
}

/// A patch of the toy, the only one that its logit depends on.
const SEEN_PATCH: usize = 5;

/// Creates a model of three blocks whose first logit grows with the brightness of one patch and depends on no other.
///
/// Channels come in pairs of opposite sign, so that no norm shifts them: brightness, place, seen (both of them),
/// a constant, class token, what the class token has read.
fn one_patch_vit() -> Vit {
    let config = VitConfig {
        labels: vec!["bright".into(), "dark".into()],
        ..small_config()
    };
    let drawn = init::init(&config, &mut Rng::new(0)).unwrap().into_iter();
    let plain = drawn.map(|(name, tensor)| {
        let is_norm = name.contains("norm") && name.ends_with("weight");
        let value = if is_norm { 1.0 } else { 0.0 };
        let tensor = Tensor::full(value, tensor.dims(), &Device::Cpu).unwrap();
        (name, tensor.to_dtype(DType::F32).unwrap())
    });
    let mut weights: HashMap<String, Tensor> = plain.collect();
    let mut set = |name: &str, entries: &[(usize, f32)]| {
        let tensor = weights.get_mut(name).unwrap();
        let mut values = values(tensor);
        for &(place, value) in entries {
            values[place] = value;
        }
        *tensor = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap();
    };
    let dim = 16;
    // Brightness is the mean of the red channel.
    let pixels = 3 * 16;
    let red = (0..16).flat_map(|pixel| [(pixel, 1.0 / 16.0), (pixels + pixel, -1.0 / 16.0)]);
    set(
        "embeddings.patch_embeddings.projection.weight",
        &red.collect::<Vec<_>>(),
    );
    set("embeddings.cls_token", &[(8, 1.0), (9, -1.0)]);
    let place = (SEEN_PATCH + 1) * dim;
    let there = (1..10).flat_map(|token| [(token * dim + 6, 1.0), (token * dim + 7, -1.0)]);
    let places: Vec<_> = there.chain([(place + 2, 1.0), (place + 3, -1.0)]).collect();
    set("embeddings.position_embeddings", &places);
    // Block 0: a patch that is bright and in its place is seen; GELU turns all others into zero.
    set(
        "encoder.layer.0.intermediate.dense.weight",
        &[(0, 20.0), (2, 20.0)],
    );
    set("encoder.layer.0.intermediate.dense.bias", &[(0, -50.0)]);
    let hidden = 32;
    set(
        "encoder.layer.0.output.dense.weight",
        &[(4 * hidden, 0.1), (5 * hidden, -0.1)],
    );
    // Blocks 1 and 2: the class token attends to what is seen, and reads it.
    for block in [1, 2] {
        let at = |name: &str| format!("encoder.layer.{block}.attention.{name}");
        let from_seen =
            |weight: f32| -> Vec<_> { (0..dim).map(|out| (out * dim + 4, weight)).collect() };
        let bias: Vec<_> = (0..dim).map(|out| (out, 0.3)).collect();
        set(&at("attention.query.bias"), &bias);
        set(&at("attention.key.weight"), &from_seen(0.3));
        set(&at("attention.value.weight"), &from_seen(1.0));
        let read = (0..dim).flat_map(|from| [(10 * dim + from, 0.1), (11 * dim + from, -0.1)]);
        set(&at("output.dense.weight"), &read.collect::<Vec<_>>());
    }
    set("classifier.weight", &[(10, 1.0)]);
    Vit::load(config, &weights).unwrap()
}

#[test]
fn every_method_of_a_class_finds_the_only_patch_that_the_class_depends_on() {
    let vit = one_patch_vit();
    let images = Tensor::ones((1, 3, 12, 12), DType::F32, &Device::Cpu).unwrap();
    let mut n_methods = 0;
    for explainer in all_methods(&parts_for(&vit)) {
        if !explainer.explains_classes() {
            continue;
        }
        n_methods += 1;
        let found = explainer.explain(&vit, &images, Target::Class(0)).unwrap();
        let scores = values(&found.attribution);
        let others = scores
            .iter()
            .enumerate()
            .filter(|(patch, _)| *patch != SEEN_PATCH);
        let others = others
            .map(|(_, score)| *score)
            .fold(f32::NEG_INFINITY, f32::max);
        assert!(
            scores[SEEN_PATCH] > others,
            "{}: {scores:?}",
            explainer.name()
        );
    }
    assert!(n_methods >= 17);
}
