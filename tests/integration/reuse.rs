//! Passes that compute only what changed, against passes of whole frames.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use vitscope::explain::{Explainer, Explanations, Method, Parts, Reuse, Target};
use vitscope::models::{self, Model};
use vitscope::vit::{Record, Site, Tap, Vit};
use vitscope_core::explain::{StreamMemory, Streams, explain_all, follow_all};
use vitscope_core::frame::scene::Thumbnail;

use crate::common::{check_close, fixture, largest_difference};

/// Sums in another order.
const TOLERANCE: f32 = 1e-5;
/// Side of the fixture's images and patches.
const EDGE_PX: usize = 32;

fn model() -> Model {
    models::open(fixture("vit_a").to_str().unwrap(), &Device::Cpu).unwrap()
}

/// A picture of seeded noise, as RGB.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let bytes = (0..EDGE_PX * EDGE_PX * 3).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    });
    bytes.collect()
}

/// The picture with other content from pixel (x, y) on, `edge_px` wide and high.
fn with_spot(picture: &[u8], (x, y): (usize, usize), edge_px: usize, value: u8) -> Vec<u8> {
    let mut picture = picture.to_vec();
    for row in y..y + edge_px {
        picture[3 * (row * EDGE_PX + x)..][..3 * edge_px].fill(value);
    }
    picture
}

/// Replaces the keys and values of some tokens by those of another pass.
struct Foreign<'a> {
    of: &'a Record,
    tokens: Vec<usize>,
}

impl Tap for Foreign<'_> {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Key(_) | Site::Value(_))
    }

    fn at(&mut self, site: Site, xs: Tensor) -> candle_core::Result<Tensor> {
        let other = self.of.get(site)?;
        let rows = (0..xs.dim(1)?).map(|token| {
            let source = if self.tokens.contains(&token) {
                other
            } else {
                &xs
            };
            source.narrow(1, token, 1)
        });
        Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 1)
    }
}

fn keys_and_values(vit: &Vit) -> Vec<Site> {
    let of_block = |block| [Site::Key(block), Site::Value(block)];
    (0..vit.n_blocks()).flat_map(of_block).collect()
}

#[test]
fn computed_tokens_attend_to_what_is_held_of_the_others() {
    let model = model();
    let vit = &model.vit;
    let images = |seeds: [u32; 2]| model.images_from_rgb(&seeds.map(noise)).unwrap();
    let (before, after) = (images([1, 2]), images([3, 4]));
    let sites = BTreeSet::from([Site::Hidden(1), Site::Attention(1)]);
    let (_, mut held) = vit.forward_and_hold(&before, &sites).unwrap();

    let n_tokens = vit.n_patches(&after).unwrap() + vit.config().n_special_tokens();
    let computed = [vec![0, 1, 2, 7, 9], vec![0, 3, 5, 6, n_tokens as u32 - 1]];
    let mut held: Vec<_> = held.iter_mut().collect();
    let output = vit.forward_some(&after, &computed, &mut held).unwrap();
    assert_eq!(output.tokens.dims(), [2, n_tokens, 32]);

    for (image_idx, computed) in computed.iter().enumerate() {
        let one = |xs: &Tensor| xs.narrow(0, image_idx, 1).unwrap();
        let mut of_before = Record::new(
            keys_and_values(vit)
                .into_iter()
                .chain([Site::Tokens, Site::Hidden(1)]),
        );
        vit.forward_with(&one(&before), &mut of_before).unwrap();
        let is_held = |token: &usize| !computed.contains(&(*token as u32));
        let foreign = Foreign {
            of: &of_before,
            tokens: (0..n_tokens).filter(is_held).collect(),
        };
        let record = Record::new([Site::Hidden(1), Site::Attention(1), Site::Tokens]);
        let mut taps = (foreign, record);
        let expected = vit.forward_with(&one(&after), &mut taps).unwrap();
        let (_, record) = taps;
        for token in 0..n_tokens {
            let row = |xs: &Tensor| xs.narrow(1, token, 1).unwrap();
            let is_computed = computed.contains(&(token as u32));
            for site in [Site::Tokens, Site::Hidden(1)] {
                let of = if is_computed { &record } else { &of_before };
                let found = held[image_idx].get(site).unwrap();
                check_close(
                    &format!("{site:?} {token}"),
                    &row(found),
                    &row(of.get(site).unwrap()),
                    TOLERANCE,
                );
            }
            if is_computed {
                let attention = |xs: &Tensor| xs.narrow(2, token, 1).unwrap();
                let found = attention(held[image_idx].get(Site::Attention(1)).unwrap());
                check_close(
                    "attention",
                    &found,
                    &attention(record.get(Site::Attention(1)).unwrap()),
                    TOLERANCE,
                );
            }
        }
        // The classifier reads the class token, which is computed.
        let logits = one(output.logits.as_ref().unwrap());
        check_close("logits", &logits, &expected.logits.unwrap(), TOLERANCE);
    }
}

#[test]
fn a_pass_of_all_tokens_is_that_of_the_whole_image() {
    let model = model();
    let vit = &model.vit;
    let images = |seed| model.images_from_rgb(&[noise(seed)]).unwrap();
    let (_, mut held) = vit.forward_and_hold(&images(1), &BTreeSet::new()).unwrap();
    let n_tokens = (vit.n_patches(&images(2)).unwrap() + vit.config().n_special_tokens()) as u32;
    let mut held: Vec<_> = held.iter_mut().collect();
    let all = [(0..n_tokens).collect()];
    let output = vit.forward_some(&images(2), &all, &mut held).unwrap();
    let expected = vit.forward(&images(2)).unwrap();
    check_close("tokens", &output.tokens, &expected.tokens, TOLERANCE);
    check_close(
        "logits",
        &output.logits.unwrap(),
        &expected.logits.unwrap(),
        TOLERANCE,
    );
}

/// Explains frames by rollout in batches of `batch`, with reuse up to `limit`.
fn follow(
    model: &Model,
    frames: &[Vec<u8>],
    limit: f32,
    batch: usize,
    memory: &mut StreamMemory,
) -> Vec<(Tensor, Tensor)> {
    let explainers = [Method::Rollout.build(Parts::default()).unwrap()];
    let reuse = Reuse::up_to(limit, model.preprocessor.std).unwrap();
    let batches = frames.chunks(batch).flat_map(|frames| {
        let images = model.images_from_rgb(frames).unwrap();
        let mut streams = Streams::one(memory, frames.len());
        let thumbnails = frames.iter().map(|rgb| Thumbnail::of_rgb(rgb, EDGE_PX));
        streams.forget_at_cuts(thumbnails.collect());
        streams.reusing(reuse);
        let targets = [Target::Predicted];
        let found = follow_all(&explainers, &model.vit, &images, &targets, &mut streams);
        of_images(&found.unwrap(), frames.len())
    });
    batches.collect()
}

/// The map and the logits of each image.
fn of_images(found: &Explanations, n_images: usize) -> Vec<(Tensor, Tensor)> {
    let images = (0..n_images).map(|image_idx| {
        let one = |xs: &Tensor| xs.narrow(0, image_idx, 1).unwrap();
        (
            one(&found.attributions[0]),
            one(found.logits.as_ref().unwrap()),
        )
    });
    images.collect()
}

/// The map and the logits of each frame alone.
fn whole(model: &Model, frames: &[Vec<u8>]) -> Vec<(Tensor, Tensor)> {
    let explainers = [Method::Rollout.build(Parts::default()).unwrap()];
    let images = model.images_from_rgb(frames).unwrap();
    let found = explain_all(&explainers, &model.vit, &images, &[Target::Predicted]);
    of_images(&found.unwrap(), frames.len())
}

#[track_caller]
fn check_all(found: &[(Tensor, Tensor)], expected: &[(Tensor, Tensor)]) {
    assert_eq!(found.len(), expected.len());
    for (frame, (found, expected)) in found.iter().zip(expected).enumerate() {
        check_close(
            &format!("map of frame {frame}"),
            &found.0,
            &expected.0,
            TOLERANCE,
        );
        check_close(
            &format!("logits of frame {frame}"),
            &found.1,
            &expected.1,
            TOLERANCE,
        );
    }
}

#[test]
fn a_scene_that_stands_still_is_computed_once() {
    let model = model();
    let mut memory = StreamMemory::default();
    let frames = vec![noise(1); 30];
    let found = follow(&model, &frames, 0.01, 4, &mut memory);
    check_all(&found, &whole(&model, &frames));
    let computed = memory.computed_share().unwrap();
    assert!((0.05..0.15).contains(&computed), "{computed}");
}

/// As soon as what is kept drifts at all, the frame itself is computed whole.
#[test]
fn a_spot_that_blinks_is_seen() {
    let model = model();
    let scene = noise(5);
    let with = with_spot(&scene, (8, 8), 8, 255);
    let frames: Vec<Vec<u8>> = (0..12)
        .map(|idx| if idx % 2 == 0 { &scene } else { &with }.clone())
        .collect();
    for batch in [1, 5] {
        let mut memory = StreamMemory::default();
        let found = follow(&model, &frames, 1e-7, batch, &mut memory);
        check_all(&found, &whole(&model, &frames));
        let computed = memory.computed_share().unwrap();
        assert!(computed < 1.1, "{computed}");
    }
}

/// A program may change the model in the middle of a stream.
#[test]
fn nothing_is_reused_of_another_model() {
    let mut memory = StreamMemory::default();
    let frames = vec![noise(1); 4];
    for model in [model(), model()] {
        follow(&model, &frames, 0.01, 1, &mut memory);
    }
    // Of 16 patches, one is computed in turn.
    let computed = f64::from(2 * (16 + 3)) / f64::from(8 * 16);
    assert_eq!(memory.computed_share(), Some(computed));
}

#[test]
fn frames_of_other_scenes_are_computed_whole() {
    let model = model();
    let flat = |value: u8| vec![value; EDGE_PX * EDGE_PX * 3];
    let cuts: Vec<Vec<u8>> = [0, 200, 90, 255, 20, 20].map(flat).to_vec();
    for batch in [1, 4, 6] {
        let mut memory = StreamMemory::default();
        let found = follow(&model, &cuts, 0.01, batch, &mut memory);
        check_all(&found, &whole(&model, &cuts));
        let noisy: Vec<Vec<u8>> = (1..8).map(noise).collect();
        let found = follow(&model, &noisy, 0.01, batch, &mut memory);
        check_all(&found, &whole(&model, &noisy));
    }
}

/// Frames with a spot that moves over a scene.
fn moving_spot() -> Vec<Vec<u8>> {
    let scene = noise(5);
    let spots = (0..20).map(|step| with_spot(&scene, (step, step / 2), 6, 255));
    spots.collect()
}

#[test]
fn a_lower_limit_computes_more_and_errs_less() {
    let (model, frames) = (model(), moving_spot());
    let expected = whole(&model, &frames);
    let error_and_share = |limit: f32| {
        let mut memory = StreamMemory::default();
        let found = follow(&model, &frames, limit, 1, &mut memory);
        let logits = found.iter().zip(&expected);
        let errors = logits.map(|(found, expected)| largest_difference(&found.1, &expected.1));
        (errors.sum::<f32>(), memory.computed_share().unwrap())
    };
    let (coarse, fine) = (error_and_share(1.0), error_and_share(0.001));
    assert!(
        coarse.0 > fine.0 && coarse.1 < fine.1,
        "{coarse:?} {fine:?}"
    );
}

#[test]
fn batches_and_other_streams_change_nothing() {
    let (model, frames) = (model(), moving_spot());
    let alone = follow(&model, &frames, 0.01, 1, &mut StreamMemory::default());
    let together = follow(&model, &frames, 0.01, 8, &mut StreamMemory::default());
    check_all(&together, &alone);

    // The second stream is computed whole, so no batch of the first one is filled up.
    let explainers = [Method::Rollout.build(Parts::default()).unwrap()];
    let reuse = Reuse::up_to(0.01, model.preprocessor.std).unwrap();
    let (mut first, mut second) = (StreamMemory::default(), StreamMemory::default());
    for (idx, frame) in frames.iter().enumerate() {
        let other = noise(100 + idx as u32);
        let images = model
            .images_from_rgb(&[other.clone(), frame.clone()])
            .unwrap();
        let mut streams = Streams::several(vec![&mut first, &mut second], vec![1, 0]);
        streams.reusing(reuse);
        let targets = [Target::Predicted];
        let found = follow_all(&explainers, &model.vit, &images, &targets, &mut streams);
        let found = of_images(&found.unwrap(), 2);
        check_all(
            &found,
            &[whole(&model, &[other]).remove(0), alone[idx].clone()],
        );
    }
    assert_eq!(second.computed_share(), Some(1.0));
    assert!(first.computed_share().unwrap() < 1.0);
}

#[test]
fn streams_that_change_differently_share_a_batch() {
    let model = model();
    let explainers = [Method::Rollout.build(Parts::default()).unwrap()];
    let reuse = Reuse::up_to(0.01, model.preprocessor.std).unwrap();
    let mut memories: Vec<StreamMemory> = vec![StreamMemory::default(); 3];
    for frame in moving_spot() {
        let frames = [frame, noise(7), noise(8)];
        let images = model.images_from_rgb(&frames).unwrap();
        let mut streams = Streams::several(memories.iter_mut().collect(), vec![0, 1, 2]);
        streams.reusing(reuse);
        let targets = [Target::Predicted];
        let found = follow_all(&explainers, &model.vit, &images, &targets, &mut streams);
        let found = of_images(&found.unwrap(), 3);
        // Nothing moves in the last two.
        check_all(&found[1..], &whole(&model, &frames[1..]));
    }
}

#[test]
fn methods_with_passes_of_their_own_and_limits_that_are_none_are_refused() {
    let model = model();
    let check = |method: Method| {
        let explainer: Box<dyn Explainer> = method.build(Parts::default()).unwrap();
        Reuse::check(&*explainer, &model.vit)
    };
    check(Method::Rollout).unwrap();
    check(Method::RawAttention).unwrap();
    for method in [Method::Chefer, Method::Occlusion, Method::Saliency] {
        let told = check(method).unwrap_err().to_string();
        assert!(
            told.contains(method.name()) && told.contains("rollout"),
            "{told}"
        );
    }
    let std = model.preprocessor.std;
    assert_eq!(Reuse::up_to(0.0, std).unwrap(), None);
    for limit in [-0.1, 1.5, f32::NAN] {
        let told = Reuse::up_to(limit, std).unwrap_err().to_string();
        assert!(told.contains("from 0 to 1"), "{told}");
    }
}
