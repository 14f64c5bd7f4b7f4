//! Golden images: one small picture through each mode.
//!
//! `UPDATE_GOLDEN=1` rewrites them; look at them before you commit.

use std::path::Path;

use image::RgbImage;
use vitscope::frame::placement::{Placement, ResizeRule};
use vitscope::frame::{Frame, PixelFormat, PixelLayout};
use vitscope::overlay::{Colormap, Heat, Mode, Overlay, Range, image_from_frame};

use super::{frame_from_rgb, size};

/// Rounding of floating-point numbers differs between machines.
const TOLERANCE: u8 = 1;

/// Compares with tests/golden/NAME.png; on failure what was drawn is under the target folder.
#[track_caller]
fn check(name: &str, got: &RgbImage) {
    let file = format!("{name}.png");
    let expected_path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(&file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        got.save(&expected_path).unwrap();
        return;
    }
    let got_path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&file);
    let expected = image::open(&expected_path)
        .unwrap_or_else(|e| panic!("{e}: {expected_path:?}"))
        .to_rgb8();
    let same_size = got.dimensions() == expected.dimensions();
    let worst = got
        .iter()
        .zip(expected.iter())
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    if !same_size || worst > Some(TOLERANCE) {
        got.save(&got_path).unwrap();
        panic!("{worst:?} levels off: {got_path:?}, expected {expected_path:?}");
    }
}

/// A disc before a sky and a meadow.
fn picture(format: PixelFormat, width: usize, height: usize) -> Frame {
    let layout = PixelLayout::packed(format, size(width, height));
    frame_from_rgb(layout, |x, y| {
        let (u, v) = (x as f64 / width as f64, y as f64 / height as f64);
        let distance = ((u - 0.65) * width as f64 / height as f64).hypot(v - 0.4);
        if distance < 0.25 {
            [190, 120, 70]
        } else if v < 0.6 {
            [120, 150, 210]
        } else {
            [80, 130, (60.0 + 80.0 * u) as u8]
        }
    })
}

/// Hot where the disc is, in a grid of six by six, with a little heat everywhere.
fn scores() -> Vec<f32> {
    let at = |row: usize, column: usize| {
        let (x, y) = ((column as f32 + 0.5) / 6.0, (row as f32 + 0.5) / 6.0);
        (-((x - 0.65).powi(2) + (y - 0.4).powi(2)) * 18.0).exp()
            + 0.05 * ((row + column) % 2) as f32
    };
    (0..36).map(|patch| at(patch / 6, patch % 6)).collect()
}

fn drawn(frame: Frame, rule: ResizeRule, overlay: Overlay, caption: &str) -> RgbImage {
    let placement = Placement::new(&rule, frame.size()).unwrap();
    let scores = scores();
    let heat = Heat {
        attribution: &scores,
        grid: (6, 6),
        placement: &placement,
        range: Range::MinMax,
    };
    image_from_frame(&overlay.draw(frame, Some(&heat), caption).unwrap()).unwrap()
}

fn stretch() -> ResizeRule {
    ResizeRule::Stretch(size(48, 48))
}

fn crop() -> ResizeRule {
    ResizeRule::ShortestEdge {
        edge_px: 52,
        crop: size(48, 48),
    }
}

fn overlay(mode: Mode) -> Overlay {
    Overlay {
        mode,
        ..Overlay::default()
    }
}

#[test]
fn each_mode_looks_as_before() {
    for mode in Mode::ALL {
        let frame = picture(PixelFormat::I420, 97, 65);
        check(
            &format!("mode-{mode}"),
            &drawn(frame, stretch(), overlay(mode), ""),
        );
    }
}

#[test]
fn cropped_images_look_as_before() {
    for mode in [Mode::Overlay, Mode::Heatmap] {
        let frame = picture(PixelFormat::Nv12, 97, 65);
        check(
            &format!("crop-{mode}"),
            &drawn(frame, crop(), overlay(mode), ""),
        );
    }
}

#[test]
fn flat_patches_look_as_before() {
    let flat = Overlay {
        smooth: false,
        colormap: Colormap::Viridis,
        ..overlay(Mode::Overlay)
    };
    let frame = picture(PixelFormat::Bgrx, 97, 65);
    check("flat-patches", &drawn(frame, stretch(), flat, ""));
}

#[test]
fn captions_look_as_before() {
    let frame = picture(PixelFormat::I420, 320, 240);
    let image = drawn(frame, stretch(), overlay(Mode::Overlay), "bird 93 %");
    check(
        "caption",
        &image::imageops::crop_imm(&image, 0, 0, 128, 48).to_image(),
    );
    let frame = picture(PixelFormat::Rgb, 160, 48);
    let long = "sulphur-crested cockatoo 93 %";
    check(
        "caption-shortened",
        &drawn(frame, stretch(), overlay(Mode::Original), long),
    );
}
