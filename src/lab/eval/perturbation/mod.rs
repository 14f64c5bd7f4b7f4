//! Perturbation curves: the model's output while an image is gradually removed, or restored, in the order of a map.
//!
//! A good map ranks the most important parts first: the class becomes improbable at once when they are removed, and
//! probable at once when they are restored. Papers do this in different ways that are not comparable, so each way is a
//! named [`Protocol`], and every result is reported with it.
//!
//! | protocol | paper | points | replaced by | score | area |
//! |---|---|---|---|---|---|
//! | [`RISE`] | arXiv:1806.07421, code | every row of pixels | zeros, blur | predicted class | trapezoid |
//! | [`TIS`] | arXiv:2308.08510, code | as RISE, without the first | blur | true class | mean |
//! | [`IA_VIT`] | arXiv:2309.08035, code | every row of pixels | zeros | true class | mean |
//! | [`GRADMASK`] | IJCNN 2025, code | 1, 5, 10, 20 to 100 % | black, blur | predicted class | trapezoid |
//! | [`PATCHES`] | none | every patch | zeros, blur | predicted class | trapezoid |
//! | [`CHEFER`] | arXiv:2103.15679, code | 0 to 90 % | black | right or wrong | trapezoid to 0.9 |
//! | [`DIFFMASK`] | arXiv:2304.06391, code | 29 | noise | predicted class, and its KL | trapezoid, unit steps |
//!
//! Masked copies of many images go through the model together, in full batches.

mod protocol;

use super::batched::BatchedModel;
use super::suite::{Batch, Mapper, Measure, Score, Statistic, Subject, Suite};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::masked::{Beyond, blurred};
use vitscope_core::rng::Rng;

pub use protocol::*;

/// Seed of the noise, as in the code of Vision DiffMask.
const NOISE_SEED: u64 = 123;

/// Curves of one or more protocols.
pub struct Perturbation {
    /// The protocols.
    pub protocols: Vec<Protocol>,
    /// Size of the images and their patches.
    pub geometry: Geometry,
}

impl Suite for Perturbation {
    fn measures(&self) -> Vec<Measure> {
        let of_protocol = |protocol: &Protocol| {
            let protocol = *protocol;
            protocol.runs.iter().map(move |run| Measure {
                protocol: protocol.name.into(),
                name: run.name.into(),
                higher_is_better: Some(run.higher_is_better),
                settings: format!(
                    "{} {} scores first, {}; hidden pixels are replaced by {}; {} of {}; {}, times {}",
                    run.action,
                    run.first,
                    protocol.steps,
                    run.substrate,
                    run.quantity,
                    protocol.watched,
                    protocol.area,
                    protocol.scale
                ),
                axis: protocol.axis(self.geometry),
                axis_name: "share of pixels changed",
                statistic: Statistic::Mean,
            })
        };
        self.protocols.iter().flat_map(of_protocol).collect()
    }

    fn score(&self, batch: &Batch<'_>, _mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let mut scores: Vec<Vec<Score>> = batch.subjects.iter().map(|_| Vec::new()).collect();
        for protocol in &self.protocols {
            for curves in curves(batch.model, protocol, batch.subjects, batch.maps)? {
                for (scores, curve) in scores.iter_mut().zip(curves) {
                    scores.push(Score {
                        value: Some(protocol.area(&curve, self.geometry)?),
                        points: curve.into_iter().map(|point| point as f32).collect(),
                    });
                }
            }
        }
        Ok(scores)
    }
}

/// Computes one curve per subject for each run of a protocol, from maps of one score per patch.
///
/// Runs that change the same pixels in the same way share the model's outputs.
///
/// # Errors
/// [`Error::Shape`] if a map or image has another size; [`Error::Data`] if the protocol needs the true class and it is
/// unknown; any error of the model.
pub fn curves(
    model: &BatchedModel<'_>,
    protocol: &Protocol,
    subjects: &[Subject],
    maps: &[Vec<f32>],
) -> Result<Vec<Vec<Vec<f64>>>> {
    let classes = subjects.iter().map(|subject| match protocol.watched {
        Watched::Predicted => Ok(subject.predicted),
        Watched::Label => subject.label.ok_or_else(|| {
            Error::Data(format!(
                "protocol {:?} needs the true class, but some pictures have no label that the model knows",
                protocol.name
            ))
        }),
    });
    let classes = classes.collect::<Result<Vec<usize>>>()?;
    for (subject, map) in subjects.iter().zip(maps) {
        check(model.geometry, subject, map)?;
    }
    let mut answered: Vec<(&Run, Vec<Vec<f32>>)> = Vec::new();
    let mut curves = Vec::with_capacity(protocol.runs.len());
    let n_points = protocol.points(model.geometry).len();
    for run in protocol.runs {
        if !answered.iter().any(|(known, _)| known.changes_as(run)) {
            answered.push((run, answers(model, protocol, run, subjects, maps)?));
        }
        let known = answered.iter().find(|(known, _)| known.changes_as(run));
        let answers = known.map_or(&[][..], |(_, answers)| answers);
        let of_subject = answers.chunks(n_points.max(1)).zip(&classes);
        let of_subject = of_subject.map(|(answers, &class)| {
            let points = answers
                .iter()
                .map(|logits| measured(model, logits, class, run.quantity));
            points.collect::<Result<Vec<f64>>>()
        });
        curves.push(of_subject.collect::<Result<Vec<_>>>()?);
    }
    Ok(curves)
}

/// Returns the logits of each subject at each point, subject by subject.
fn answers(
    model: &BatchedModel<'_>,
    protocol: &Protocol,
    run: &Run,
    subjects: &[Subject],
    maps: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>> {
    let points = protocol.points(model.geometry);
    let (mut order, mut now, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let mut n_changed = 0;
    model.answers(subjects.len() * points.len(), &mut |nth, pixels| {
        let point = nth % points.len();
        if point == 0 {
            let subject = &subjects[nth / points.len()];
            order = protocol.order(&maps[nth / points.len()], run.first, model.geometry);
            let replaced = run.substrate.fill(&subject.image, model);
            (now, after) = match run.action {
                Action::Delete => (subject.image.clone(), replaced),
                Action::Insert => (replaced, subject.image.clone()),
            };
            n_changed = 0;
        }
        change(&mut now, &after, &order[n_changed..points[point]]);
        n_changed = points[point];
        pixels.extend_from_slice(&now);
    })
}

fn check(geometry: Geometry, subject: &Subject, map: &[f32]) -> Result<()> {
    let expected = (3 * geometry.n_pixels(), geometry.grid.0 * geometry.grid.1);
    let got = (subject.image.len(), map.len());
    if expected != got {
        return Err(Error::Shape {
            expected: format!("{} values and a map of {} patches", expected.0, expected.1),
            got: format!("{} values and {} patches", got.0, got.1),
        });
    }
    Ok(())
}

/// Replaces pixels in all channels.
pub(crate) fn change(now: &mut [f32], after: &[f32], pixels: &[usize]) {
    let n_pixels = now.len() / 3;
    for channel in 0..3 {
        for pixel in pixels {
            now[channel * n_pixels + pixel] = after[channel * n_pixels + pixel];
        }
    }
}

impl Substrate {
    /// Returns a full-size replacement image for the parts removed from `image`, `[3, height, width]`.
    pub(crate) fn fill(self, image: &[f32], model: &BatchedModel<'_>) -> Vec<f32> {
        let geometry = model.geometry;
        let n_pixels = geometry.n_pixels();
        let of_color = |color: [f32; 3]| -> Vec<f32> {
            let channels = color.into_iter();
            channels
                .flat_map(|value| std::iter::repeat_n(value, n_pixels))
                .collect()
        };
        match self {
            Self::Zeros => of_color([0.0; 3]),
            Self::Black => of_color(model.black),
            Self::Mean => {
                let mut means = image
                    .chunks(n_pixels)
                    .map(|channel| channel.iter().sum::<f32>() / n_pixels as f32);
                of_color([(); 3].map(|()| means.next().unwrap_or_default()))
            }
            Self::Noise => {
                let mut rng = Rng::new(NOISE_SEED);
                let noise = (0..image.len()).map(|_| 2.0 * rng.uniform() - 1.0);
                noise.collect()
            }
            Self::Blur {
                kernel_px,
                sigma_px,
            } => {
                let size = (geometry.height_px, geometry.width_px);
                // Zero padding, as in PyTorch's convolution.
                let blur = |channel| blurred(channel, size, (kernel_px, sigma_px), Beyond::Zeros);
                image.chunks(n_pixels).flat_map(blur).collect()
            }
        }
    }
}

/// Computes the quantity that a measure derives from logits.
fn measured(
    model: &BatchedModel<'_>,
    logits: &[f32],
    class: usize,
    quantity: Quantity,
) -> Result<f64> {
    let log_probability = model.log_probability(logits, class)?;
    let is_greater = |other: (usize, &f32)| {
        let (idx, logit) = other;
        *logit > logits[class] || (*logit == logits[class] && idx < class)
    };
    Ok(match quantity {
        Quantity::Probability => log_probability.exp(),
        Quantity::Surprise => -log_probability,
        Quantity::Named => f64::from(u8::from(!logits.iter().enumerate().any(is_greater))),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use serde::Deserialize;

    use super::*;

    const GEOMETRY: Geometry = Geometry {
        height_px: 8,
        width_px: 8,
        grid: (4, 4),
    };
    /// The only patch that the model of these tests depends on.
    const PATCH: usize = 6;

    /// Predicts class 1 with certainty if the patch is bright throughout, else class 0.
    fn looks_at_one_patch(images: &Tensor) -> Result<Tensor> {
        let images = images.flatten_from(1)?.to_vec2::<f32>()?;
        let logits: Vec<f32> = images
            .iter()
            .flat_map(|image| {
                let mut pixels = GEOMETRY.pixels_of_patch(PATCH);
                let bright = pixels.all(|pixel| image[pixel] > 0.5);
                if bright { [0.0, 30.0] } else { [30.0, 0.0] }
            })
            .collect();
        let n_images = logits.len() / 2;
        Ok(Tensor::from_vec(logits, (n_images, 2), &Device::Cpu)?)
    }

    fn white() -> Subject {
        Subject {
            index: 0,
            image: vec![1.0; 3 * 64],
            predicted: 1,
            runner_up: 0,
            label: Some(1),
        }
    }

    fn model(batch: usize) -> BatchedModel<'static> {
        BatchedModel::new(
            looks_at_one_patch,
            GEOMETRY,
            ([0.5; 3], [0.5; 3]),
            batch,
            &Device::Cpu,
        )
    }

    fn curve(run_idx: usize, map: &[f32]) -> (Vec<f64>, f64) {
        let curves = curves(&model(5), &PATCHES, &[white()], &[map.to_vec()]);
        let curve = curves.unwrap().remove(run_idx).remove(0);
        let area = PATCHES.area(&curve, GEOMETRY).unwrap();
        (curve.iter().map(|value| value.round()).collect(), area)
    }

    /// Returns a map that ranks the patch at position `rank`.
    fn names(rank: usize) -> Vec<f32> {
        let mut order: Vec<usize> = (0..16).filter(|patch| *patch != PATCH).collect();
        order.insert(rank, PATCH);
        let mut map = vec![0.0; 16];
        for (place, patch) in order.into_iter().enumerate() {
            map[patch] = -(place as f32);
        }
        map
    }

    #[test]
    fn for_a_model_that_looks_at_one_patch_curves_are_steps() {
        for rank in [0, 5, 15] {
            let (deleted, area) = curve(0, &names(rank));
            let expected: Vec<f64> = (0..17).map(|n| f64::from(u8::from(n <= rank))).collect();
            assert_eq!(deleted, expected, "{rank}");
            // The falling edge adds half a step to the area.
            assert!((area - (rank as f64 + 0.5) / 16.0).abs() < 1e-9, "{area}");
        }
    }

    #[test]
    fn a_blurred_patch_is_bright_when_it_and_its_surroundings_are_back() {
        let (inserted, _) = curve(1, &names(0));
        // Blurred white is dark only at the image border; the patch lies inside.
        assert_eq!(inserted[1..], [1.0; 16]);
    }

    #[test]
    fn what_matters_least_is_missed_least() {
        let subjects = [white(), white()];
        let maps = [names(0), names(15)];
        let curves = curves(&model(7), &CHEFER, &subjects, &maps).unwrap();
        let areas = |run: usize| {
            let areas = curves[run].iter();
            let areas = areas.map(|curve| CHEFER.area(curve, GEOMETRY).unwrap());
            areas.collect::<Vec<f64>>()
        };
        let (positive, negative) = (areas(0), areas(1));
        assert!(positive[0] < positive[1] && negative[0] > negative[1]);
        // Scores are interpolated between patches, so the patch's own pixels are not quite the last ones.
        assert!(negative[0] >= 70.0, "{negative:?}");
        assert!(positive[0] <= 10.0, "{positive:?}");
    }

    #[test]
    fn a_batch_is_no_difference() {
        let maps = [names(3), names(9), names(12)];
        let subjects = [white(), white(), white()];
        let all = |batch| curves(&model(batch), &DIFFMASK, &subjects, &maps).unwrap();
        assert_eq!(all(1), all(64));
        assert_eq!(all(7), all(64));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |protocol: &Protocol, subject: Subject, map: Vec<f32>| {
            let curves = curves(&model(4), protocol, &[subject], &[map]);
            curves.unwrap_err().to_string()
        };
        let unknown = Subject {
            label: None,
            ..white()
        };
        let label = error(&TIS, unknown, names(0));
        assert!(
            label.contains("\"tis\"") && label.contains("have no label"),
            "{label}"
        );
        let short = error(&RISE, white(), vec![0.0; 3]);
        assert!(
            short.contains("16 patches") && short.contains("3 patches"),
            "{short}"
        );
        let other = Subject {
            predicted: 2,
            ..white()
        };
        assert!(error(&RISE, other, names(0)).contains("a class 2"));
        assert!(
            Protocol::named("nosuch", &INSERTION_DELETION)
                .unwrap_err()
                .to_string()
                .contains("rise, tis")
        );
    }

    /// Written by `tests/fixtures/perturbation.py`, a PyTorch reimplementation of the RISE code.
    #[derive(Deserialize)]
    struct Reference {
        image: Vec<f32>,
        map: Vec<f32>,
        weights: Vec<f32>,
        class: usize,
        deletion: Vec<f64>,
        insertion: Vec<f64>,
        deletion_auc: f64,
        insertion_auc: f64,
        pixels: Vec<f32>,
    }

    #[test]
    fn curves_of_rise_are_those_of_its_code() {
        let reference = include_str!("../../../../tests/fixtures/perturbation.json");
        let reference: Reference = serde_json::from_str(reference).unwrap();
        let geometry = Geometry {
            height_px: 16,
            width_px: 16,
            grid: (4, 4),
        };
        let pixels = geometry.pixels_from_patches(&reference.map);
        let worst = pixels.iter().zip(&reference.pixels);
        let worst = worst.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");

        let n_classes = reference.weights.len() / reference.image.len();
        let weights = reference.weights.clone();
        let weights = Tensor::from_vec(weights, (n_classes, 3 * 256), &Device::Cpu).unwrap();
        let linear = |images: &Tensor| Ok(images.flatten_from(1)?.matmul(&weights.t()?)?);
        let model = BatchedModel::new(linear, geometry, ([0.0; 3], [1.0; 3]), 5, &Device::Cpu);
        let subject = Subject {
            image: reference.image.clone(),
            predicted: reference.class,
            label: None,
            ..white()
        };
        let curves = curves(&model, &RISE, &[subject], &[reference.map]).unwrap();
        let expected = [
            (&reference.deletion, reference.deletion_auc),
            (&reference.insertion, reference.insertion_auc),
        ];
        for ((run, (expected, area)), curve) in RISE.runs.iter().zip(expected).zip(curves) {
            let curve = &curve[0];
            assert_eq!(curve.len(), expected.len());
            for (own, theirs) in curve.iter().zip(expected) {
                assert!((own - theirs).abs() < 1e-4, "{}: {own} {theirs}", run.name);
            }
            assert!(
                (RISE.area(curve, geometry).unwrap() - area).abs() < 1e-4,
                "{}",
                run.name
            );
        }
    }

    /// Table 1 of arXiv:2304.06391, recomputed from the curves that its authors published.
    #[test]
    fn the_area_of_the_published_curves_is_that_of_the_table() {
        let published = include_str!("../../../../tests/fixtures/vision_diffmask_table1.json");
        let published: serde_json::Value = serde_json::from_str(published).unwrap();
        let area = |method: &str, measure: &str| {
            let curve = &published["curves"][method][measure];
            let curve: Vec<f64> = serde_json::from_value(curve.clone()).unwrap();
            assert_eq!(curve.len(), 29);
            (10.0 * DIFFMASK.area(&curve, GEOMETRY).unwrap()).round() / 10.0
        };
        for (method, table) in [
            ("diffmask", [39.3, 17.4, 12.9, 21.8]),
            ("gradcam", [43.6, 37.8, 12.6, 14.7]),
            ("rollout", [23.5, 26.1, 18.8, 17.8]),
            ("chefer", [50.5, 31.2, 9.8, 17.1]),
        ] {
            let measures = [
                "positive_kl",
                "negative_kl",
                "positive_probability",
                "negative_probability",
            ];
            assert_eq!(
                measures.map(|measure| area(method, measure)),
                table,
                "{method}"
            );
        }
    }

    /// Written by `tests/fixtures/pixel_flipping.py`, which calls Quantus.
    #[derive(Deserialize)]
    struct PixelFlipping {
        height: usize,
        width: usize,
        grid: (usize, usize),
        weights: Vec<f32>,
        images: Vec<Vec<f32>>,
        classes: Vec<usize>,
        maps: Vec<Vec<f32>>,
        whole: Vec<f64>,
        curves: Vec<Vec<f64>>,
    }

    /// Quantus's curves begin after the first step, so the whole image (the first point here) is compared separately.
    #[test]
    fn deletion_curves_are_those_of_pixel_flipping_in_quantus() {
        let reference = include_str!("../../../../tests/fixtures/pixel_flipping.json");
        let reference: PixelFlipping = serde_json::from_str(reference).unwrap();
        let geometry = Geometry {
            height_px: reference.height,
            width_px: reference.width,
            grid: reference.grid,
        };
        let n_values = 3 * geometry.n_pixels();
        let shape = (reference.weights.len() / n_values, n_values);
        let weights = Tensor::from_vec(reference.weights, shape, &Device::Cpu).unwrap();
        let linear = |images: &Tensor| Ok(images.flatten_from(1)?.matmul(&weights.t()?)?);
        let model = BatchedModel::new(linear, geometry, ([0.0; 3], [1.0; 3]), 7, &Device::Cpu);
        let pictures = reference.images.into_iter().zip(reference.classes);
        let subjects: Vec<Subject> = pictures
            .map(|(image, predicted)| Subject {
                image,
                predicted,
                label: None,
                ..white()
            })
            .collect();
        assert_eq!(RISE.runs[0].name, "deletion");
        let found = curves(&model, &RISE, &subjects, &reference.maps);
        let found = found.unwrap().remove(0);
        assert_eq!(found.len(), reference.curves.len());
        for (idx, own) in found.iter().enumerate() {
            let mut expected = vec![reference.whole[idx]];
            expected.extend(&reference.curves[idx]);
            assert_eq!(own.len(), expected.len());
            for (point, (own, theirs)) in own.iter().zip(expected).enumerate() {
                assert!(
                    (own - theirs).abs() < 1e-5,
                    "{idx}, {point}: {own} {theirs}"
                );
            }
        }
    }
}
