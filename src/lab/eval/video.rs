//! Methods on videos: temporal stability of maps, next to faithfulness, since a map that never changes is perfectly
//! stable.

use rayon::prelude::*;

use super::batched::BatchedModel;
use super::perturbation::{PATCHES, Substrate, change, curves};
use super::statistics::trapezoid_unit;
use super::suite::{Mapper, Measure, Score, Subject};
use super::temporal::{self, Answer, Map, alike, relative_stability, total_variation};
use crate::data::Picture;
use vitscope_core::error::{Error, Result};
use vitscope_core::flow::{Flow, FlowOptions, Gray, flow, visibility};
use vitscope_core::frame::normalize::Normalization;
use vitscope_core::gates::ranking;
use vitscope_core::rng::Rng;
use vitscope_core::vit::Vit;

/// Number of equal steps in which a whole video is removed, or restored.
const STEPS: usize = 20;
/// Fill that RISE uses for parts that are not inserted yet.
const BLUR: Substrate = Substrate::Blur {
    kernel_px: 11,
    sigma_px: 5.0,
};
/// Number of copies of a still frame that differ only by noise.
const STILL_FRAMES: usize = 16;
/// Standard deviation of simulated sensor noise, relative to a range of 1.
const NOISE: f32 = 2.0 / 255.0;

/// Frames of a video and the motion between them.
pub struct Video {
    /// Frames as model input: `[3, height, width]`, normalized.
    images: Vec<Vec<f32>>,
    /// Divisors of the model's normalization.
    std: [f32; 3],
    /// The same frames for optical flow, possibly larger.
    grays: Vec<Gray>,
    /// Flow from each frame to the next one.
    flows: Vec<Flow>,
    /// Which pixels of a frame are visible in the next one.
    visible: Vec<Vec<bool>>,
}

impl Video {
    /// Estimates the motion between the `larger` images, which show the same frames as `pictures`, the model's input.
    ///
    /// # Errors
    /// [`Error::Data`] if there are fewer than two frames; [`Error::Shape`] if numbers or sizes of frames differ.
    pub fn new(
        pictures: &[Picture],
        larger: &[Picture],
        (mean, std): ([f32; 3], [f32; 3]),
    ) -> Result<Self> {
        if pictures.len() < 2 {
            return Err(Error::Data("a video needs two frames at least".into()));
        }
        if pictures.len() != larger.len() {
            return Err(Error::Shape {
                expected: format!("{} frames", pictures.len()),
                got: larger.len().to_string(),
            });
        }
        let normalization = Normalization::new(mean, std);
        let image = |picture: &Picture| {
            let mut planes = Vec::with_capacity(picture.rgb.len());
            normalization.append_planes(&picture.rgb, &mut planes);
            planes
        };
        let grays = larger.iter().map(gray).collect::<Result<Vec<Gray>>>()?;
        let options = FlowOptions::default();
        let flows = grays.par_windows(2).map(|pair| {
            let forth = flow(&pair[0], &pair[1], &options)?;
            let visible = visibility(&forth, &flow(&pair[1], &pair[0], &options)?)?;
            Ok((forth, visible))
        });
        let (flows, visible) = flows.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Self {
            images: pictures.iter().map(image).collect(),
            std,
            flows,
            visible,
            grays,
        })
    }
}

fn gray(picture: &Picture) -> Result<Gray> {
    let of_pixel =
        |rgb: &[u8]| rgb.iter().map(|&value| f32::from(value)).sum::<f32>() / (3.0 * 255.0);
    let values = picture.rgb.chunks_exact(3).map(of_pixel).collect();
    Gray::new(picture.size.width_px, picture.size.height_px, values)
}

/// Returns the measures that [`score`] computes, in its order; each value belongs to a video.
pub fn measures() -> Vec<Measure> {
    let mut measures = Vec::new();
    let mut add = |group: &str, settings: &str, named: &[(&str, bool)]| {
        for (name, higher_is_better) in named {
            measures.push(Measure::mean(
                group,
                name,
                Some(*higher_is_better),
                settings,
            ));
        }
    };
    add(
        "flicker",
        "half the absolute difference of consecutive maps normalized to sum 1; compensated: motion-compensated by \
         optical flow; still: one frame with noise of 2/255",
        &[
            ("flicker", false),
            ("compensated", false),
            ("still frame", false),
        ],
    );
    add(
        "warped error",
        "mean squared difference along the optical flow divided by the variance, for maps normalized to sum 1 and \
         maps scaled to 0 to 1",
        &[("of sum 1", false), ("0 to 1", false)],
    );
    add(
        "likeness",
        "of a map and the next one along the optical flow",
        &[("rank", true), ("top tenth", true), ("SSIM", true)],
    );
    add(
        "relative stability",
        "flicker divided by the mean change of gray values; alike: where the model's outputs are alike",
        &[("all", false), ("alike", false)],
    );
    add(
        "peak jitter",
        "distance from the peak's position predicted by optical flow, in pixels of the flow's picture",
        &[("median", false), ("95 %", false)],
    );
    add(
        "frames",
        "protocol patches, mean over all frames",
        &[
            ("deletion", false),
            ("insertion", true),
            ("insertion − deletion", true),
        ],
    );
    add(
        "video",
        "patches of all frames in one order, 20 steps, mean probability of the video's class; filled with zeros or \
         an 11 px blur",
        &[("deletion", false), ("insertion", true)],
    );
    measures
}

/// Scores a method on a video.
///
/// # Errors
/// Fails if model, method and video do not fit together.
pub fn score(
    model: &BatchedModel<'_>,
    vit: &Vit,
    video: &Video,
    mapper: &Mapper<'_>,
    seed: u64,
) -> Result<Vec<Score>> {
    let n_frames = video.images.len();
    let answers = model.answers(n_frames, &mut |nth, pixels| {
        pixels.extend_from_slice(&video.images[nth]);
    })?;
    let probabilities: Vec<Vec<f64>> = (answers.iter())
        .map(|logits| model.link.probabilities(logits))
        .map(|probabilities| probabilities.into_iter().map(f64::from).collect())
        .collect();
    let maps = mapper.maps_in_order(model, vit, &video.images)?;
    let mut scores = steadiness(model, video, &maps, &probabilities)?;
    let still = still_flicker(model, vit, video, mapper, seed)?;
    scores.insert(2, still.into());

    let subjects: Vec<Subject> = (video.images.iter().zip(&probabilities).enumerate())
        .map(|(index, (image, probabilities))| Subject {
            index,
            image: image.clone(),
            predicted: likeliest(probabilities),
            runner_up: 0,
            label: None,
        })
        .collect();
    let mut of_frames = Vec::new();
    for curves in curves(model, &PATCHES, &subjects, &maps)? {
        let areas = curves
            .iter()
            .map(|curve| PATCHES.area(curve, model.geometry));
        let areas = areas.collect::<Result<Vec<f64>>>()?;
        of_frames.push(areas.iter().sum::<f64>() / n_frames as f64);
    }
    scores.extend([of_frames[0], of_frames[1], of_frames[1] - of_frames[0]].map(Score::from));

    let n_classes = probabilities.first().map_or(0, Vec::len);
    let of_video: Vec<f64> = (0..n_classes)
        .map(|class| probabilities.iter().map(|of_frame| of_frame[class]).sum())
        .collect();
    let class = likeliest(&of_video);
    let steps = steps_of_patches(&maps, model.geometry.grid)?;
    for (substrate, is_deletion) in [(Substrate::Zeros, true), (BLUR, false)] {
        let curve = video_curve(model, video, &steps, class, substrate, is_deletion)?;
        scores.push(trapezoid_unit(&curve)?.into());
    }
    Ok(scores)
}

/// Computes the scores that depend only on the maps and the motion.
fn steadiness(
    model: &BatchedModel<'_>,
    video: &Video,
    maps: &[Vec<f32>],
    probabilities: &[Vec<f64>],
) -> Result<Vec<Score>> {
    let (width_px, height_px) = video.grays[0].size_px();
    let maps = maps_of(maps, model.geometry.grid)?;
    let upsampled = maps.iter().map(|map| map.upsampled(height_px, width_px));
    let upsampled = upsampled.collect::<Result<Vec<Map>>>()?;
    let found = temporal::score(&upsampled, &video.flows, &video.visible)?;
    let answers: Vec<Answer> = (probabilities.iter())
        .map(|probabilities| {
            let class = likeliest(probabilities);
            Answer {
                class,
                probability: probabilities[class] as f32,
            }
        })
        .collect();
    let stability = |kept: &[bool]| relative_stability(&maps, &video.grays, kept);
    Ok([
        Some(found.flicker),
        found.compensated_flicker,
        found.scale_free_warped_error,
        found.scale_free_ranged_warped_error,
        found.rank_stability,
        found.top_overlap,
        found.ssim,
        stability(&vec![true; video.flows.len()]),
        stability(&alike(&answers)),
        found.median_peak_jump_px,
        found.p95_peak_jump_px,
    ]
    .map(Score::from)
    .to_vec())
}

fn maps_of(maps: &[Vec<f32>], (rows, columns): (usize, usize)) -> Result<Vec<Map>> {
    let maps = maps.iter().map(|map| Map::new(rows, columns, map.clone()));
    maps.collect()
}

/// Measures flicker on a single frame repeated with sensor noise.
fn still_flicker(
    model: &BatchedModel<'_>,
    vit: &Vit,
    video: &Video,
    mapper: &Mapper<'_>,
    seed: u64,
) -> Result<Option<f64>> {
    let mut rng = Rng::new(seed);
    let n_pixels = video.images[0].len() / 3;
    let still: Vec<Vec<f32>> = (0..STILL_FRAMES)
        .map(|_| {
            let values = video.images[0].iter().enumerate();
            let noisy =
                values.map(|(idx, value)| value + NOISE / video.std[idx / n_pixels] * rng.normal());
            noisy.collect()
        })
        .collect();
    let maps = mapper.maps_in_order(model, vit, &still)?;
    let maps: Vec<Map> = maps_of(&maps, model.geometry.grid)?
        .iter()
        .map(Map::normalized)
        .collect();
    let flickers: Vec<f64> = (maps.windows(2))
        .filter_map(|pair| total_variation(pair[0].values(), pair[1].values()))
        .collect();
    Ok((!flickers.is_empty()).then(|| flickers.iter().sum::<f64>() / flickers.len() as f64))
}

/// Returns for each patch of each frame the step at which it changes, with the patches of all frames in one order.
fn steps_of_patches(maps: &[Vec<f32>], grid: (usize, usize)) -> Result<Vec<usize>> {
    let scores: Vec<f32> = (maps_of(maps, grid)?.iter())
        .flat_map(|map| map.normalized().values().to_vec())
        .collect();
    let mut steps = vec![0; scores.len()];
    for (rank, patch) in ranking(&scores).into_iter().enumerate() {
        steps[patch] = rank * STEPS / scores.len() + 1;
    }
    Ok(steps)
}

/// Returns the mean probability of a class over all frames while patches of all frames are removed, or restored, at
/// their `steps`.
fn video_curve(
    model: &BatchedModel<'_>,
    video: &Video,
    steps: &[usize],
    class: usize,
    substrate: Substrate,
    is_deletion: bool,
) -> Result<Vec<f64>> {
    let (rows, columns) = model.geometry.grid;
    let n_patches = rows * columns;
    let n_frames = video.images.len();
    let mut curve = vec![0.0; STEPS + 1];
    for (frame, image) in video.images.iter().enumerate() {
        let replaced = substrate.fill(image, model);
        let (before, after) = match is_deletion {
            true => (image, &replaced),
            false => (&replaced, image),
        };
        let of_frame = &steps[frame * n_patches..(frame + 1) * n_patches];
        let found = model.probabilities(&[class; STEPS + 1], &mut |step, pixels| {
            let start = pixels.len();
            pixels.extend_from_slice(before);
            for (patch, at) in of_frame.iter().enumerate() {
                if *at <= step {
                    let of_patch: Vec<usize> = model.geometry.pixels_of_patch(patch).collect();
                    change(&mut pixels[start..], after, &of_patch);
                }
            }
        })?;
        for (sum, probability) in curve.iter_mut().zip(found) {
            *sum += probability / n_frames as f64;
        }
    }
    Ok(curve)
}

/// Returns the first class with the highest probability.
fn likeliest(probabilities: &[f64]) -> usize {
    let mut best = 0;
    for (class, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = class;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::eval::controls::Control;
    use crate::eval::perturbation::Geometry;
    use vitscope_core::frame::FrameSize;
    use vitscope_core::vit::{VitConfig, init};

    const EDGE_PX: usize = 32;
    const GEOMETRY: Geometry = Geometry {
        height_px: EDGE_PX,
        width_px: EDGE_PX,
        grid: (4, 4),
    };

    /// Returns frames of a texture that moves to the right, so consecutive frames overlap.
    fn pictures(n_frames: usize) -> Vec<Picture> {
        let picture = |shift: usize| {
            let pixel = |idx: usize| {
                let (x, y) = (
                    (idx % EDGE_PX) as f32 - shift as f32,
                    (idx / EDGE_PX) as f32,
                );
                let wave = (0.5 * x).sin() * (0.4 * y).cos() + (0.2 * x + 0.3 * y).sin();
                [(128.0 + 50.0 * wave) as u8; 3]
            };
            Picture {
                size: FrameSize {
                    width_px: EDGE_PX,
                    height_px: EDGE_PX,
                },
                rgb: (0..EDGE_PX * EDGE_PX).flat_map(pixel).collect(),
            }
        };
        (0..n_frames).map(picture).collect()
    }

    fn video() -> Video {
        let pictures = pictures(4);
        Video::new(&pictures, &pictures, ([0.5; 3], [0.5; 3])).unwrap()
    }

    /// Predicts class 1 with certainty if the first patch is not gray, else class 0.
    fn looks_at_the_first_patch(images: &Tensor) -> Result<Tensor> {
        let images = images.flatten_from(1)?.to_vec2::<f32>()?;
        let logits = images.iter().flat_map(|image| {
            let mut pixels = GEOMETRY.pixels_of_patch(0);
            match pixels.any(|pixel| image[pixel] != 0.0) {
                true => [0.0, 30.0],
                false => [30.0, 0.0],
            }
        });
        let logits: Vec<f32> = logits.collect();
        Ok(Tensor::from_vec(logits, (images.len(), 2), &Device::Cpu)?)
    }

    fn model() -> BatchedModel<'static> {
        let normalization = ([0.5; 3], [0.5; 3]);
        BatchedModel::new(
            looks_at_the_first_patch,
            GEOMETRY,
            normalization,
            8,
            &Device::Cpu,
        )
    }

    fn scored(control: Control) -> Vec<(String, Option<f64>)> {
        let config = VitConfig {
            image_size: EDGE_PX,
            patch_size: 8,
            hidden_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 8,
            ..VitConfig::default()
        };
        let weights = init::init(&config, &mut Rng::new(0)).unwrap();
        let vit = Vit::load(config, &weights).unwrap();
        let scores = score(&model(), &vit, &video(), &Mapper::Control(control, 3), 0).unwrap();
        let measures = measures();
        assert_eq!(measures.len(), scores.len());
        let names = measures.into_iter();
        let names = names.map(|measure| format!("{}: {}", measure.protocol, measure.name));
        names
            .zip(scores.into_iter().map(|score| score.value))
            .collect()
    }

    fn value(scores: &[(String, Option<f64>)], name: &str) -> f64 {
        let found = scores.iter().find(|(known, _)| known == name);
        found.unwrap().1.unwrap()
    }

    #[test]
    fn a_map_that_never_changes_is_perfectly_steady_and_one_of_noise_is_not() {
        let (center, random) = (scored(Control::Center), scored(Control::Random));
        assert_eq!(value(&center, "flicker: flicker"), 0.0);
        assert_eq!(value(&center, "flicker: still frame"), 0.0);
        assert_eq!(value(&center, "relative stability: all"), 0.0);
        for name in [
            "flicker: flicker",
            "flicker: still frame",
            "flicker: compensated",
        ] {
            assert!(value(&random, name) > 0.1, "{name}: {random:?}");
        }
        assert!(value(&random, "likeness: rank") < value(&center, "likeness: rank"));
    }

    /// The model depends on one patch; the curve falls at the position of that patch in the order.
    #[test]
    fn a_video_is_deleted_in_one_order_of_all_its_patches() {
        let video = video();
        let names_it = |place: usize| {
            let mut map: Vec<f32> = (0..16).map(|patch| 16.0 - patch as f32).collect();
            map.rotate_right(place);
            vec![map; 4]
        };
        let area = |maps: &[Vec<f32>]| {
            let steps = steps_of_patches(maps, GEOMETRY.grid).unwrap();
            let curve = video_curve(&model(), &video, &steps, 1, Substrate::Zeros, true).unwrap();
            assert_eq!(curve.len(), STEPS + 1);
            assert!(curve[0] > 0.99 && curve[STEPS] < 0.01, "{curve:?}");
            trapezoid_unit(&curve).unwrap()
        };
        // The first patch of all four frames lies in the first 1.25 of 20 steps, or in the last ones.
        assert!((area(&names_it(0)) - 0.045).abs() < 0.02);
        assert!((area(&names_it(1)) - 0.95).abs() < 0.06);
    }

    #[test]
    fn one_frame_is_no_video() {
        let pictures = pictures(2);
        let normalization = ([0.5; 3], [0.5; 3]);
        let error = Video::new(&pictures[..1], &pictures[..1], normalization);
        assert!(error.err().unwrap().to_string().contains("two frames"));
        assert!(Video::new(&pictures, &pictures[..1], normalization).is_err());
    }
}
