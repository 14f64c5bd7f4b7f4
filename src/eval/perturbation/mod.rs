//! What a model says while more and more of a picture is taken away, or put back, in the order of a map.
//!
//! A good map names what matters first: taking that away makes the class improbable at once, putting it back makes it
//! probable at once. Papers do this in different ways that cannot be compared, so each way is a [`Protocol`] with a
//! name, and a result is told with it.
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
//! Masked copies of many pictures go through the model together, in full batches.

mod protocol;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::explain::masked::{Beyond, blurred};
use crate::rng::Rng;

pub use protocol::*;

/// Seed of the noise, as in the code of Vision DiffMask.
const NOISE_SEED: u64 = 123;

/// A picture that is measured on.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `[3, height, width]`, normalized.
    pub image: Vec<f32>,
    /// The class that the model names, and the right one.
    pub predicted: usize,
    /// The right class, where it is known.
    pub label: Option<usize>,
}

/// Makes masked copies, and asks the model about them in full batches.
pub struct Curves<'a> {
    /// Logits `[batch, classes]` of images `[batch, 3, height, width]`.
    ask: &'a dyn Fn(&Tensor) -> Result<Tensor>,
    geometry: Geometry,
    /// What black is in each channel of a normalized picture.
    black: [f32; 3],
    batch: usize,
    device: Device,
    noise: Vec<f32>,
}

/// A masked copy that waits for its answer.
struct Asked {
    curve: usize,
    point: usize,
    class: usize,
}

impl<'a> Curves<'a> {
    /// For pictures that are normalized by `mean` and `std`, `batch` copies at once; `ask` gives the logits
    /// `[batch, classes]` of images `[batch, 3, height, width]`.
    pub fn new(
        ask: &'a dyn Fn(&Tensor) -> Result<Tensor>,
        geometry: Geometry,
        (mean, std): ([f32; 3], [f32; 3]),
        batch: usize,
        device: &Device,
    ) -> Self {
        let mut rng = Rng::new(NOISE_SEED);
        let noise = (0..3 * geometry.n_pixels()).map(|_| 2.0 * rng.uniform() - 1.0);
        Self {
            ask,
            geometry,
            black: [0, 1, 2].map(|channel| -mean[channel] / std[channel]),
            batch: batch.max(1),
            device: device.clone(),
            noise: noise.collect(),
        }
    }

    /// One curve a subject, for its map of one score a patch.
    ///
    /// # Errors
    /// [`Error::Shape`] where a map or picture is of another size; [`Error::Data`] where the right class is asked for
    /// and not known; else what asking fails with.
    pub fn run(
        &self,
        protocol: &Protocol,
        run: &Run,
        subjects: &[Subject],
        maps: &[Vec<f32>],
    ) -> Result<Vec<Vec<f64>>> {
        let points = protocol.points(self.geometry);
        let mut curves = vec![vec![0.0; points.len()]; subjects.len()];
        let mut copies = Vec::with_capacity(self.batch * 3 * self.geometry.n_pixels());
        let mut asked = Vec::with_capacity(self.batch);
        for (curve, (subject, map)) in subjects.iter().zip(maps).enumerate() {
            self.check(subject, map)?;
            let class = match protocol.watched {
                Watched::Predicted => subject.predicted,
                Watched::Label => subject.label.ok_or_else(|| {
                    Error::Data(format!(
                        "protocol {:?} watches the right class, and pictures have no labels",
                        protocol.name
                    ))
                })?,
            };
            let order = protocol.order(map, run.first, self.geometry);
            let replaced = self.replaced(&subject.image, run.substrate);
            let (mut now, after) = match run.action {
                Action::Delete => (subject.image.clone(), &replaced),
                Action::Insert => (replaced.clone(), &subject.image),
            };
            let mut n_changed = 0;
            for (point, &n_pixels) in points.iter().enumerate() {
                self.change(&mut now, after, &order[n_changed..n_pixels]);
                n_changed = n_pixels;
                copies.extend_from_slice(&now);
                asked.push(Asked {
                    curve,
                    point,
                    class,
                });
                if asked.len() == self.batch {
                    self.answer(&mut copies, &mut asked, run.measure, &mut curves)?;
                }
            }
        }
        self.answer(&mut copies, &mut asked, run.measure, &mut curves)?;
        Ok(curves)
    }

    fn check(&self, subject: &Subject, map: &[f32]) -> Result<()> {
        let Geometry { grid, .. } = self.geometry;
        let expected = (3 * self.geometry.n_pixels(), grid.0 * grid.1);
        let got = (subject.image.len(), map.len());
        if expected != got {
            return Err(Error::Shape {
                expected: format!("{} values and a map of {} patches", expected.0, expected.1),
                got: format!("{} values and {} patches", got.0, got.1),
            });
        }
        Ok(())
    }

    /// Pixels of all channels.
    fn change(&self, now: &mut [f32], after: &[f32], pixels: &[usize]) {
        for channel in 0..3 {
            let start = channel * self.geometry.n_pixels();
            for pixel in pixels {
                now[start + pixel] = after[start + pixel];
            }
        }
    }

    fn replaced(&self, image: &[f32], substrate: Substrate) -> Vec<f32> {
        let n_pixels = self.geometry.n_pixels();
        match substrate {
            Substrate::Zeros => vec![0.0; image.len()],
            Substrate::Black => (self.black.iter())
                .flat_map(|&black| std::iter::repeat_n(black, n_pixels))
                .collect(),
            Substrate::Noise => self.noise.clone(),
            Substrate::Blur {
                kernel_px,
                sigma_px,
            } => (image.chunks(n_pixels))
                .flat_map(|channel| {
                    let size = (self.geometry.height_px, self.geometry.width_px);
                    // As PyTorch's convolution pads.
                    blurred(channel, size, (kernel_px, sigma_px), Beyond::Zeros)
                })
                .collect(),
        }
    }

    /// Asks about all copies that wait.
    fn answer(
        &self,
        copies: &mut Vec<f32>,
        asked: &mut Vec<Asked>,
        measure: Measure,
        curves: &mut [Vec<f64>],
    ) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let Geometry {
            height_px,
            width_px,
            ..
        } = self.geometry;
        let shape = (asked.len(), 3, height_px, width_px);
        let capacity = copies.capacity();
        let images = Tensor::from_vec(std::mem::take(copies), shape, &self.device)?;
        copies.reserve(capacity);
        let logits = (self.ask)(&images)?.to_vec2::<f32>()?;
        for (
            Asked {
                curve,
                point,
                class,
            },
            logits,
        ) in asked.drain(..).zip(logits)
        {
            curves[curve][point] = measured(&logits, class, measure)?;
        }
        Ok(())
    }
}

/// What a measure says of an answer.
fn measured(logits: &[f32], class: usize, measure: Measure) -> Result<f64> {
    let Some(&own) = logits.get(class) else {
        return Err(Error::Shape {
            expected: format!("a model with a class {class}"),
            got: format!("{} classes", logits.len()),
        });
    };
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = (logits.iter())
        .map(|logit| f64::from(logit - greatest).exp())
        .sum();
    let log_probability = f64::from(own - greatest) - sum.ln();
    let first = logits.iter().position(|logit| *logit == greatest);
    Ok(match measure {
        Measure::Probability => log_probability.exp(),
        Measure::Surprise => -log_probability,
        Measure::Named => f64::from(u8::from(first == Some(class))),
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const GEOMETRY: Geometry = Geometry {
        height_px: 8,
        width_px: 8,
        grid: (4, 4),
    };
    /// What the model of these tests looks at, and nothing else.
    const PATCH: usize = 6;

    /// Sure of class 1 where the patch is bright throughout, else of class 0.
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
            image: vec![1.0; 3 * 64],
            predicted: 1,
            label: Some(1),
        }
    }

    fn curves(batch: usize) -> Curves<'static> {
        Curves::new(
            &looks_at_one_patch,
            GEOMETRY,
            ([0.5; 3], [0.5; 3]),
            batch,
            &Device::Cpu,
        )
    }

    fn curve(run_idx: usize, map: &[f32]) -> (Vec<f64>, f64) {
        let run = PATCHES.runs[run_idx];
        let curve = curves(5).run(&PATCHES, &run, &[white()], &[map.to_vec()]);
        let curve = curve.unwrap().remove(0);
        let area = PATCHES.area(&curve, GEOMETRY).unwrap();
        (curve.iter().map(|value| value.round()).collect(), area)
    }

    /// A map that names the patch `rank`-th.
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
            // Half a step of the edge is under the line.
            assert!((area - (rank as f64 + 0.5) / 16.0).abs() < 1e-9, "{area}");
        }
    }

    #[test]
    fn a_blurred_patch_is_bright_when_it_and_its_surroundings_are_back() {
        let (inserted, _) = curve(1, &names(0));
        // Blurred white is dark at the border only: the patch is inside.
        assert_eq!(inserted[1..], [1.0; 16]);
    }

    #[test]
    fn what_matters_least_is_missed_least() {
        let asked = curves(7);
        let subjects = [white(), white()];
        let maps = [names(0), names(15)];
        let areas = |run: &Run| {
            let curves = asked.run(&CHEFER, run, &subjects, &maps).unwrap();
            let areas = curves
                .iter()
                .map(|curve| CHEFER.area(curve, GEOMETRY).unwrap());
            areas.collect::<Vec<f64>>()
        };
        let [positive, negative] = CHEFER.runs else {
            panic!("two runs");
        };
        let (positive, negative) = (areas(positive), areas(negative));
        assert!(positive[0] < positive[1] && negative[0] > negative[1]);
        // Between patches scores are mixed, so that its own pixels are not quite the last ones.
        assert!(negative[0] >= 70.0, "{negative:?}");
        assert!(positive[0] <= 10.0, "{positive:?}");
    }

    #[test]
    fn a_batch_is_no_difference() {
        let maps = [names(3), names(9), names(12)];
        let subjects = [white(), white(), white()];
        let all = |batch| {
            let run = DIFFMASK.runs[0];
            curves(batch)
                .run(&DIFFMASK, &run, &subjects, &maps)
                .unwrap()
        };
        assert_eq!(all(1), all(64));
        assert_eq!(all(7), all(64));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |protocol: &Protocol, subject: Subject, map: Vec<f32>| {
            let curves = curves(4).run(protocol, &protocol.runs[0], &[subject], &[map]);
            curves.unwrap_err().to_string()
        };
        let unknown = Subject {
            label: None,
            ..white()
        };
        let label = error(&TIS, unknown, names(0));
        assert!(
            label.contains("\"tis\"") && label.contains("no labels"),
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

    /// Written by `tests/fixtures/perturbation.py`, which does in PyTorch what the code of RISE does.
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
        let reference = include_str!("../../../tests/fixtures/perturbation.json");
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
        let curves = Curves::new(&linear, geometry, ([0.0; 3], [1.0; 3]), 5, &Device::Cpu);
        let subject = Subject {
            image: reference.image.clone(),
            predicted: reference.class,
            label: None,
        };
        let expected = [
            (&reference.deletion, reference.deletion_auc),
            (&reference.insertion, reference.insertion_auc),
        ];
        for (run, (expected, area)) in RISE.runs.iter().zip(expected) {
            let maps = [reference.map.clone()];
            let curve = curves.run(&RISE, run, std::slice::from_ref(&subject), &maps);
            let curve = curve.unwrap().remove(0);
            assert_eq!(curve.len(), expected.len());
            for (own, theirs) in curve.iter().zip(expected) {
                assert!((own - theirs).abs() < 1e-4, "{}: {own} {theirs}", run.name);
            }
            assert!(
                (RISE.area(&curve, geometry).unwrap() - area).abs() < 1e-4,
                "{}",
                run.name
            );
        }
    }

    /// Table 1 of arXiv:2304.06391 from the curves that its authors published.
    #[test]
    fn the_area_of_the_published_curves_is_that_of_the_table() {
        let published = include_str!("../../../tests/fixtures/vision_diffmask_table1.json");
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
}
