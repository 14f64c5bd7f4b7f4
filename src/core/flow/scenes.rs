//! Test pictures and motions that are defined at subpixel positions.

use std::array::from_fn;
use std::f64::consts::TAU;

use super::{Flow, Gray, position};
use crate::rng::Rng;

/// Sum of waves of 6 to 80 pixels in all directions: smooth, and defined at subpixel positions.
pub(crate) fn texture(seed: u64) -> impl Fn(f64, f64) -> f64 {
    let mut rng = Rng::new(seed);
    let waves: [_; 60] = from_fn(|_| {
        let [length, direction, phase] = from_fn(|_| f64::from(rng.uniform()));
        let length = 6.0 * (80.0_f64 / 6.0).powf(length);
        let (sine, cosine) = (TAU * direction).sin_cos();
        let along = [cosine, sine].map(|share| TAU / length * share);
        (along, TAU * phase, 0.004 * length.sqrt())
    });
    move |x, y| {
        let wave = |([along_x, along_y], phase, height): &([f64; 2], f64, f64)| {
            height * (along_x * x + along_y * y + phase).sin()
        };
        0.5 + waves.iter().map(wave).sum::<f64>()
    }
}

/// Renders a picture; values are clamped to black and white.
pub(crate) fn picture((width, height): (usize, usize), value: impl Fn(f64, f64) -> f64) -> Gray {
    let values = (0..width * height).map(|pixel| {
        let (x, y) = position(pixel, width);
        value(x.into(), y.into()).clamp(0.0, 1.0) as f32
    });
    Gray::new(width, height, values.collect()).unwrap()
}

/// Two frames of a texture that rotates and scales around the center and is then shifted, and the true flow.
pub(crate) fn moving(
    (width, height): (usize, usize),
    degrees: f64,
    zoom: f64,
    shift: [f64; 2],
) -> (Gray, Gray, Flow) {
    let (center_x, center_y) = ((width - 1) as f64 / 2.0, (height - 1) as f64 / 2.0);
    let turned = |degrees: f64, zoom: f64, x: f64, y: f64| {
        let (sine, cosine) = degrees.to_radians().sin_cos();
        let (x, y) = (zoom * (x - center_x), zoom * (y - center_y));
        let (turned_x, turned_y) = (cosine * x - sine * y, sine * x + cosine * y);
        [center_x + turned_x, center_y + turned_y]
    };
    let texture = texture(7);
    let to = picture((width, height), |x, y| {
        let [x, y] = turned(-degrees, 1.0 / zoom, x - shift[0], y - shift[1]);
        texture(x, y)
    });
    let vectors = (0..width * height).map(|pixel| {
        let (x, y) = position(pixel, width);
        let [to_x, to_y] = turned(degrees, zoom, x.into(), y.into());
        [(to_x + shift[0]) as f32 - x, (to_y + shift[1]) as f32 - y]
    });
    let truth = Flow::new(width, height, vectors.collect()).unwrap();
    (picture((width, height), texture), to, truth)
}
