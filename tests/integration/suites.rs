//! Suites on models with a known answer, and on maps that are right, wrong, or uninformative.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use vitscope::data::boxes::{BOXES, Boxed};
use vitscope::data::masked::Masked;
use vitscope::eval::perturbation::Geometry;
use vitscope::eval::suite::{
    Batch, Latency, Mapper, Pointing, Road, Saco, Sanity, Score, Segmenting, Sensitivity, SoftMask,
    Sparseness, Statistic, Subject, Sufficiency, Suite,
};
use vitscope::explain::{Method, Parts};
use vitscope::frame::FrameSize;
use vitscope::frame::placement::ResizeRule;
use vitscope::frame::resize::Resampling;
use vitscope::models::{self, Preprocessor};
use vitscope::rng::Rng;
use vitscope_core::gates::Removal;
use vitscope_lab::eval::batched::BatchedModel;
use vitscope_lab::eval::controls::Control;

use crate::common::{small_config, small_vit};

const EDGE_PX: usize = 12;
const N_PIXELS: usize = EDGE_PX * EDGE_PX;
const GEOMETRY: Geometry = Geometry {
    height_px: EDGE_PX,
    width_px: EDGE_PX,
    grid: (3, 3),
};
/// The only patch that the model of these tests looks at.
const PATCH: usize = 3;

fn pixels_of(patch: usize) -> impl Iterator<Item = usize> {
    let (top, left) = (4 * (patch / 3), 4 * (patch % 3));
    (0..16).map(move |pixel| (top + pixel / 4) * EDGE_PX + left + pixel % 4)
}

/// Predicts class 1 with a probability that grows with the brightness of the patch.
fn looks_at_one_patch(images: &Tensor) -> vitscope::Result<Tensor> {
    let images = images.flatten_from(1)?.to_vec2::<f32>()?;
    let logits = images.iter().flat_map(|image| {
        let brightness: f32 = pixels_of(PATCH).map(|pixel| image[pixel]).sum();
        [0.0, brightness - 8.0]
    });
    let logits: Vec<f32> = logits.collect();
    Ok(Tensor::from_vec(logits, (images.len(), 2), &Device::Cpu)?)
}

/// Creates a picture that is bright in the relevant patch and random elsewhere.
fn subject(index: usize) -> Subject {
    let mut rng = Rng::new(index as u64);
    let mut image: Vec<f32> = (0..3 * N_PIXELS).map(|_| rng.normal()).collect();
    for pixel in pixels_of(PATCH) {
        image[pixel] = 1.0;
    }
    Subject {
        index,
        image,
        predicted: 1,
        runner_up: 0,
        label: Some(1),
    }
}

/// Returns the scores of one map by measure, on a model that looks at one patch.
fn scores(suite: &dyn Suite, map: &[f32]) -> Vec<Option<f64>> {
    on_picture(suite, map, 0)
}

/// Returns the same scores on the picture of this index.
fn on_picture(suite: &dyn Suite, map: &[f32], index: usize) -> Vec<Option<f64>> {
    scores_of(suite, &Mapper::Control(Control::Center, 0), map, index)
}

fn scores_of(
    suite: &dyn Suite,
    mapper: &Mapper<'_>,
    map: &[f32],
    index: usize,
) -> Vec<Option<f64>> {
    let vit = small_vit(small_config());
    let subjects = [subject(index)];
    let normalization = ([0.5; 3], [0.5; 3]);
    let model = BatchedModel::new(looks_at_one_patch, GEOMETRY, normalization, 4, &Device::Cpu);
    let images = Tensor::new(subjects[0].image.as_slice(), &Device::Cpu).unwrap();
    let batch = Batch {
        model: &model,
        vit: &vit,
        images: &images.reshape((1, 3, EDGE_PX, EDGE_PX)).unwrap(),
        subjects: &subjects,
        maps: &[map.to_vec()],
        seed: 0,
    };
    let scores: Vec<Score> = suite.score(&batch, mapper).unwrap().remove(0);
    assert_eq!(scores.len(), suite.measures().len());
    scores.into_iter().map(|score| score.value).collect()
}

/// Creates a map that rates the relevant patch `patch` and all others `others`.
fn naming(patch: f32, others: f32) -> Vec<f32> {
    (0..9)
        .map(|idx| if idx == PATCH { patch } else { others })
        .collect()
}

#[test]
fn saco_is_high_where_salience_is_what_it_costs_and_below_zero_for_the_opposite() {
    // One group per patch: between patches, pixels are mixed.
    let suite = Saco { n_groups: 9 };
    let right = scores(&suite, &naming(1.0, 0.0))[0].unwrap();
    let wrong = scores(&suite, &naming(-1.0, 0.0))[0].unwrap();
    assert!(right > 0.9, "{right}");
    // Around the patch, the map falls slowly, and any order of pixels that cost nothing is right.
    assert!(wrong < -0.2, "{wrong}");
    assert_eq!(scores(&suite, &naming(0.5, 0.5)), [None]);
}

#[test]
fn what_matters_is_sufficient_and_without_it_nothing_is_left() {
    let [right, wrong] = [(1.0, 0.0), (0.0, 1.0)].map(|(patch, others)| {
        let found = scores(&Sufficiency, &naming(patch, others));
        found
            .into_iter()
            .take(4)
            .map(Option::unwrap)
            .collect::<Vec<f64>>()
    });
    // The probability falls from nearly 1 to nearly 0: 8 bright pixels above the threshold, or 8 below it.
    assert!(right[0] > 0.99 && right[1] < 0.01, "{right:?}");
    assert!(wrong[0] < 0.01 && wrong[1] > 0.99, "{wrong:?}");
    // Under its own map, the picture without the patch is a different one.
    assert!(right[2] < wrong[2], "{right:?} {wrong:?}");
    assert_eq!(wrong[3], 0.0);
}

#[test]
fn road_hides_the_patch_that_matters_at_once_or_at_last() {
    let found = |map: &[f32]| {
        let found = scores(&Road, map);
        (found[0].unwrap(), found[1].unwrap())
    };
    let (most, least) = found(&naming(1.0, 0.0));
    assert!(most < least, "{most} {least}");
    let (opposite_most, opposite_least) = found(&naming(0.0, 1.0));
    assert!((most - opposite_least).abs() < 0.1 && (least - opposite_most).abs() < 0.1);
}

#[test]
fn a_map_that_does_not_look_at_the_picture_is_not_sensitive_to_it() {
    let suite = Sensitivity::default();
    let of = |control| {
        let vit = small_vit(small_config());
        let normalization = ([0.5; 3], [0.5; 3]);
        let model = BatchedModel::new(looks_at_one_patch, GEOMETRY, normalization, 4, &Device::Cpu);
        let mapper = Mapper::Control(control, 0);
        let image = Tensor::new(subject(0).image.as_slice(), &Device::Cpu).unwrap();
        let image = image.reshape((1, 3, EDGE_PX, EDGE_PX)).unwrap();
        let map = mapper.maps(&model, &vit, &image, &[subject(0)], Default::default());
        scores_of(&suite, &mapper, &map.unwrap()[0], 0)[0].unwrap()
    };
    assert_eq!(of(Control::Center), 0.0);
    let edges = of(Control::Edges);
    assert!(edges > 0.0 && edges < 0.1, "{edges}");
}

#[test]
fn only_a_method_that_explains_the_model_changes_with_its_weights() {
    let model = models::open(fixture("vit_a").as_str(), &Device::Cpu).unwrap();
    let weights = models::open_weights(fixture("vit_a").as_str(), &Device::Cpu).unwrap();
    let suite = Sanity::new(weights, 5).unwrap();
    let batched = BatchedModel::of(&model, 4);
    let geometry = batched.geometry;
    let shape = (1, 3, geometry.height_px, geometry.width_px);
    let images = Rng::new(1).normal_tensor(shape, &Device::Cpu).unwrap();
    let subjects = [Subject {
        index: 0,
        image: images.flatten_all().unwrap().to_vec1().unwrap(),
        predicted: 0,
        runner_up: 1,
        label: None,
    }];
    let of = |mapper: &Mapper<'_>| -> Vec<f64> {
        let maps = mapper.maps(&batched, &model.vit, &images, &subjects, Default::default());
        let batch = Batch {
            model: &batched,
            vit: &model.vit,
            images: &images,
            subjects: &subjects,
            maps: &maps.unwrap(),
            seed: 0,
        };
        let scores = suite.score(&batch, mapper).unwrap().remove(0);
        assert_eq!(scores[0].points.len(), suite.measures()[0].axis.len());
        scores
            .into_iter()
            .map(|score| score.value.unwrap())
            .collect()
    };
    assert_eq!(of(&Mapper::Control(Control::Center, 0))[..2], [1.0, 1.0]);
    assert_eq!(of(&Mapper::Control(Control::Center, 0))[2], 0.0);
    let explainer = Method::Chefer.build(Parts::default()).unwrap();
    let chefer = of(&Mapper::Method("chefer", &*explainer));
    assert!(chefer[0] < 0.99 && chefer[1] < 0.99, "{chefer:?}");
}

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    folder.join(name).display().to_string()
}

#[test]
fn a_mask_that_keeps_everything_costs_nothing() {
    let vit = small_vit(small_config());
    let suite = SoftMask {
        removal: Removal::Drop,
    };
    let images = crate::common::small_images(2);
    let model = BatchedModel::new(
        |images| Ok(vit.forward(images)?.logits.unwrap()),
        GEOMETRY,
        ([0.5; 3], [0.5; 3]),
        4,
        &Device::Cpu,
    );
    let named = model.logits(&images).unwrap().argmax(1).unwrap();
    let named = named.to_vec1::<u32>().unwrap();
    let subjects: Vec<Subject> = (0..2)
        .map(|index| Subject {
            label: Some(named[index] as usize),
            ..subject(index)
        })
        .collect();
    let kl_and_masked = |maps: &[Vec<f32>]| {
        let batch = Batch {
            model: &model,
            vit: &vit,
            images: &images,
            subjects: &subjects,
            maps,
            seed: 0,
        };
        let mapper = Mapper::Control(Control::Constant, 0);
        let scores = suite.score(&batch, &mapper).unwrap().remove(1);
        [0, 1, 2].map(|place| scores[place].value.unwrap())
    };
    let [kl, accuracy, masked] = kl_and_masked(&[vec![1.0; 9], vec![3.0; 9]]);
    assert!(kl < 1e-6 && accuracy == 1.0 && masked == 0.0);
    let [kl, _, masked] = kl_and_masked(&[naming(1.0, 0.0), naming(2.0, 0.0)]);
    assert!(kl > 1e-6, "{kl}");
    assert!((masked - 100.0 * 8.0 / 9.0).abs() < 1e-4, "{masked}");
}

#[test]
fn a_map_of_one_patch_is_sparse_and_one_of_all_is_not() {
    let one = scores(&Sparseness, &naming(1.0, 0.0));
    let all = scores(&Sparseness, &naming(1.0, 1.0));
    assert!(one[0].unwrap() > 0.88 && one[1].unwrap() < 1e-9, "{one:?}");
    assert!(all[0].unwrap().abs() < 1e-9);
    assert!((all[1].unwrap() - 9_f64.ln()).abs() < 1e-9);
}

#[test]
fn latency_is_told_by_quantiles_and_never_nothing() {
    let statistics: Vec<Statistic> = (Latency.measures().iter())
        .map(|measure| measure.statistic)
        .collect();
    assert!(matches!(statistics[1], Statistic::Quantile(0.95)));
    let found = scores(&Latency, &[]);
    assert!(found[0].is_some_and(|ms| ms > 0.0), "{found:?}");
    assert_eq!(found[2].is_some(), cfg!(target_os = "linux"));
}

/// Creates two pictures: one with a box in the middle, and one with a box that fills more than half.
fn boxed() -> (tempfile::TempDir, Arc<Boxed>) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png"] {
        let picture = image::RgbImage::new(24, 24);
        picture.save(folder.path().join(name)).unwrap();
    }
    let list = r#"[
        {"image": "a.png", "label": "cat", "width": 24, "height": 24, "boxes_px": [[8, 8, 16, 16]]},
        {"image": "b.png", "label": "cat", "width": 24, "height": 24, "boxes_px": [[0, 0, 24, 16]]}
    ]"#;
    fs::write(folder.path().join(BOXES), list).unwrap();
    let Preprocessor {
        rule, resampling, ..
    } = Preprocessor::square(EDGE_PX);
    let boxed = Boxed::open(folder.path(), rule, resampling).unwrap();
    (folder, Arc::new(boxed))
}

#[test]
fn a_peak_in_the_box_is_one_elsewhere_zero_and_a_box_too_large_is_left_out() {
    let (_folder, pictures) = boxed();
    let suite = Pointing {
        pictures,
        tolerance_px: 0,
    };
    let peak_at = |patch: usize| -> Vec<f32> {
        (0..9)
            .map(|idx| f32::from(u8::from(idx == patch)))
            .collect()
    };
    let hit = on_picture(&suite, &peak_at(4), 0);
    assert_eq!(hit[..2], [Some(1.0), Some(1.0)]);
    let miss = on_picture(&suite, &peak_at(0), 0);
    assert_eq!(miss[..2], [Some(0.0), Some(0.0)]);
    assert!(hit[2] > miss[2], "{hit:?} {miss:?}");
    let large = on_picture(&suite, &peak_at(0), 1);
    assert_eq!(large[..2], [Some(1.0), None]);
    let near = Pointing {
        tolerance_px: 5,
        ..suite
    };
    assert_eq!(on_picture(&near, &peak_at(1), 0)[0], Some(1.0));
}

#[test]
fn a_map_on_the_object_segments_it() {
    let (pictures, masks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    image::RgbImage::new(24, 24)
        .save(pictures.path().join("a.png"))
        .unwrap();
    // The object is the left half, so that bilinear maps are above their mean exactly there.
    let mask =
        image::GrayImage::from_fn(24, 24, |x, _| image::Luma([if x < 12 { 255 } else { 0 }]));
    mask.save(masks.path().join("a.png")).unwrap();
    let size = FrameSize {
        width_px: EDGE_PX,
        height_px: EDGE_PX,
    };
    let rule = ResizeRule::Stretch(size);
    let masked = Masked::open(pictures.path(), masks.path(), rule, Resampling::Bilinear);
    let suite = Segmenting {
        pictures: Arc::new(masked.unwrap()),
    };
    let falling: Vec<f32> = (0..9).map(|patch| 2.0 - (patch % 3) as f32).collect();
    let rising: Vec<f32> = falling.iter().map(|score| -score).collect();
    let [right, wrong] = [&falling, &rising].map(|map| on_picture(&suite, map, 0));
    assert_eq!(right, [Some(1.0), Some(1.0), Some(1.0)]);
    assert_eq!(wrong[..2], [Some(0.0), Some(0.0)]);
}
