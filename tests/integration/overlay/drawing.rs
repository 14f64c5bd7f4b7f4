//! What is drawn lies where it should, and nothing else changes.

use proptest::prelude::*;
use vitscope::Error;
use vitscope::frame::placement::{PixelRect, Placement, ResizeRule};
use vitscope::frame::{Frame, FrameSize, PixelFormat, PixelLayout};
use vitscope::overlay::sheet::Sheet;
use vitscope::overlay::text::draw_caption;
use vitscope::overlay::{Colormap, Heat, Mode, Overlay, Range, frame_from_image, image_from_frame};

use super::{ALL_FORMATS, all_tags, frame, frame_from_rgb, noise, padded, size};

const GRID: (usize, usize) = (2, 3);

/// Cold and hot patches side by side.
const SCORES: [f32; 6] = [0.0, 1.0, 0.3, 0.9, 0.0, 0.6];

fn odd_sizes() -> [FrameSize; 4] {
    [size(1, 1), size(3, 5), size(321, 241), size(64, 48)]
}

fn rules() -> [ResizeRule; 3] {
    [
        ResizeRule::Stretch(size(32, 32)),
        ResizeRule::ShortestEdge {
            edge_px: 36,
            crop: size(24, 25),
        },
        ResizeRule::ShortestEdge {
            edge_px: 20,
            crop: size(33, 24),
        },
    ]
}

fn heat<'a>(placement: &'a Placement, scores: &'a [f32]) -> Heat<'a> {
    Heat {
        attribution: scores,
        grid: GRID,
        placement,
        range: Range::Unit,
    }
}

fn overlay(mode: Mode) -> Overlay {
    Overlay {
        mode,
        smooth: false,
        ..Overlay::default()
    }
}

/// Whether the line around what the model saw runs through a pixel; it is 2 px wide on frames as small as these.
fn is_border(placement: &Placement, (x, y): (usize, usize)) -> bool {
    let seen = placement.pixels();
    let distance = |at: usize, start: usize, len: usize| {
        let before = start.saturating_sub(at);
        before.max((at + 1).saturating_sub(start + len))
    };
    let across = distance(x, seen.left, seen.width);
    let down = distance(y, seen.top, seen.height);
    seen.width > 0 && seen.height > 0 && (1..=2).contains(&across.max(down))
}

/// For each byte of the frame: the pixels that it is a sample of; none for padding and alpha.
fn pixels_of_bytes(layout: &PixelLayout) -> Vec<Vec<(usize, usize)>> {
    let mut pixels = vec![Vec::new(); layout.min_len()];
    let FrameSize {
        width_px,
        height_px,
    } = layout.size;
    for (x, y) in (0..height_px).flat_map(|y| (0..width_px).map(move |x| (x, y))) {
        let at = |plane: usize, x: usize, y: usize| {
            layout.planes[plane].offset + y * layout.planes[plane].stride + x
        };
        let bytes = match layout.format {
            PixelFormat::I420 => vec![at(0, x, y), at(1, x / 2, y / 2), at(2, x / 2, y / 2)],
            PixelFormat::I420Deep => {
                let planes = [
                    at(0, 2 * x, y),
                    at(1, x / 2 * 2, y / 2),
                    at(2, x / 2 * 2, y / 2),
                ];
                planes.into_iter().flat_map(|low| [low, low + 1]).collect()
            }
            PixelFormat::Nv12 => {
                let u = at(1, x / 2 * 2, y / 2);
                vec![at(0, x, y), u, u + 1]
            }
            PixelFormat::Rgb | PixelFormat::Bgr => (0..3).map(|i| at(0, 3 * x + i, y)).collect(),
            PixelFormat::Rgba | PixelFormat::Bgrx => (0..3).map(|i| at(0, 4 * x + i, y)).collect(),
        };
        for byte in bytes {
            pixels[byte].push((x, y));
        }
    }
    pixels
}

#[test]
fn equal_scores_have_no_heat_unless_they_are_a_mask() {
    let placement = Placement::new(&rules()[0], size(64, 48)).unwrap();
    let drawn = |range, scores: &[f32; 6]| {
        let layout = PixelLayout::packed(PixelFormat::Rgb, size(64, 48));
        let before = frame_from_rgb(layout, |_, _| [90; 3]);
        let heat = Heat {
            range,
            ..heat(&placement, scores)
        };
        let after = overlay(Mode::Overlay)
            .draw(before, Some(&heat), "")
            .unwrap();
        after.bytes().iter().any(|&value| value != 90)
    };
    for range in [Range::MinMax, Range::Percentile, Range::Signed] {
        for equal in [0.0, 0.25, -3.0] {
            assert!(!drawn(range, &[equal; 6]), "{range:?} {equal}");
            let rounded = equal * (1.0 + f32::EPSILON);
            assert!(!drawn(
                range,
                &[equal, equal, rounded, equal, rounded, equal]
            ));
        }
        assert!(drawn(range, &SCORES), "{range:?}");
    }
    assert!(drawn(Range::Unit, &[1.0; 6]), "a mask that keeps all");
}

#[test]
fn samples_that_nothing_is_drawn_on_keep_their_bits() {
    for (format, rule) in ALL_FORMATS
        .into_iter()
        .flat_map(|f| rules().map(|rule| (f, rule)))
    {
        for size in odd_sizes() {
            let placement = Placement::new(&rule, size).unwrap();
            let layout = padded(format, size);
            let pixels = pixels_of_bytes(&layout);
            let before = noise(layout.min_len());
            for mode in [Mode::Overlay, Mode::Mask, Mode::Dim, Mode::Original] {
                let drawn = |(x, y): (usize, usize)| {
                    let Some((row, column)) = placement.patch_at(x, y, GRID) else {
                        return mode != Mode::Original && is_border(&placement, (x, y));
                    };
                    let score = SCORES[row * GRID.1 + column];
                    match mode {
                        Mode::Overlay => score > 0.0,
                        Mode::Mask => score < 0.5,
                        Mode::Dim => score < 1.0,
                        _ => false,
                    }
                };
                let after = overlay(mode)
                    .draw(
                        frame(layout.clone(), before.clone()),
                        Some(&heat(&placement, &SCORES)),
                        "",
                    )
                    .unwrap();
                for (byte, pixels) in pixels.iter().enumerate() {
                    if !pixels.iter().copied().any(drawn) {
                        assert_eq!(
                            after.bytes()[byte],
                            before[byte],
                            "{format:?} {size:?} {rule:?} {mode}: byte {byte}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_line_runs_around_what_the_model_saw() {
    for format in ALL_FORMATS {
        for (rule, frame_size) in [(rules()[1], size(320, 180)), (rules()[1], size(180, 320))] {
            let placement = Placement::new(&rule, frame_size).unwrap();
            for mode in [Mode::Overlay, Mode::Mask, Mode::Dim] {
                let black = frame_from_rgb(padded(format, frame_size), |_, _| [0; 3]);
                let keeping_all = heat(&placement, &[1.0; 6]);
                let mut overlay = overlay(mode);
                overlay.alpha = 0.0;
                let drawn = overlay.draw(black, Some(&keeping_all), "").unwrap();
                let image = image_from_frame(&drawn).unwrap();
                for (x, y, pixel) in image.enumerate_pixels() {
                    let expected = match is_border(&placement, (x as usize, y as usize)) {
                        true => 204,
                        false => 0,
                    };
                    let close = pixel.0.iter().all(|value| value.abs_diff(expected) <= 3);
                    assert!(
                        close,
                        "{format:?} {frame_size:?} {mode}: {pixel:?} at {x}, {y}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_patch_is_painted_on_exactly_its_pixels() {
    for (format, rule) in ALL_FORMATS
        .into_iter()
        .flat_map(|f| rules().map(|rule| (f, rule)))
    {
        let size = size(321, 241);
        let placement = Placement::new(&rule, size).unwrap();
        let white = frame_from_rgb(padded(format, size), |_, _| [255; 3]);
        let drawn = overlay(Mode::Mask)
            .draw(white, Some(&heat(&placement, &SCORES)), "")
            .unwrap();
        let image = image_from_frame(&drawn).unwrap();
        for (x, y, pixel) in image.enumerate_pixels() {
            let masked = placement
                .patch_at(x as usize, y as usize, GRID)
                .is_some_and(|(row, column)| SCORES[row * GRID.1 + column] < 0.5);
            let expected = if masked { 64 } else { 255 };
            // Luma and chroma are each rounded once.
            let close = pixel.0.iter().all(|value| value.abs_diff(expected) <= 2);
            assert!(close, "{format:?} {rule:?}: {pixel:?} at {x}, {y}");
        }
    }
}

#[test]
fn heat_has_its_color_in_every_format_matrix_and_range() {
    let size = size(10, 6);
    let placement = Placement::new(&ResizeRule::Stretch(size), size).unwrap();
    for format in ALL_FORMATS {
        for color in all_tags() {
            for score in [0.0, 0.25, 0.5, 0.75, 1.0] {
                let mut layout = padded(format, size);
                layout.color = color;
                let gray = frame_from_rgb(layout, |_, _| [100; 3]);
                let overlay = overlay(Mode::Heatmap);
                let scores = [score; 6];
                let drawn = overlay
                    .draw(gray, Some(&heat(&placement, &scores)), "")
                    .unwrap();
                let expected = overlay.colormap.table()[(score * 255.0).round() as usize];
                for pixel in image_from_frame(&drawn).unwrap().pixels() {
                    let close = pixel
                        .0
                        .iter()
                        .zip(expected)
                        .all(|(a, b)| a.abs_diff(b) <= 2);
                    assert!(
                        close,
                        "{format:?} {color:?} {score}: {pixel:?}, {expected:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn chroma_is_the_mean_over_its_pixels() {
    // The left one of two columns is painted gray, so a chroma sample is half of what it was.
    let layout = PixelLayout::packed(PixelFormat::I420, size(2, 2));
    let placement = Placement::new(&ResizeRule::Stretch(size(2, 2)), size(2, 2)).unwrap();
    let heat = Heat {
        attribution: &[0.0, 1.0],
        grid: (1, 2),
        placement: &placement,
        range: Range::Unit,
    };
    let frame = frame(layout, vec![200, 200, 200, 200, 28, 228]);
    let drawn = overlay(Mode::Mask).draw(frame, Some(&heat), "").unwrap();
    // Gray 64 is luma 16 + 64 * 219 / 255 = 71.
    assert_eq!(drawn.bytes(), [71, 200, 71, 200, 78, 178]);
}

#[test]
fn side_by_side_is_the_original_and_the_overlay() {
    for format in ALL_FORMATS {
        for from in [size(6, 4), size(5, 3), size(1, 1)] {
            let placement = Placement::new(&ResizeRule::Stretch(size(8, 8)), from).unwrap();
            let layout = padded(format, from);
            let bytes = noise(layout.min_len());
            let original = frame(layout, bytes);
            let original_image = image_from_frame(&original).unwrap();
            let copy =
                |frame: &Frame| super::frame((*frame.layout).clone(), frame.bytes().to_vec());
            let heat = heat(&placement, &SCORES);
            let single = overlay(Mode::Overlay)
                .draw(copy(&original), Some(&heat), "")
                .unwrap();
            let single_image = image_from_frame(&single).unwrap();
            let double = overlay(Mode::SideBySide)
                .draw(original, Some(&heat), "")
                .unwrap();
            assert_eq!((double.seq, double.pts), (single.seq, single.pts));

            let half = from.width_px.next_multiple_of(2);
            assert_eq!(double.size(), size(2 * half, from.height_px));
            let image = image_from_frame(&double).unwrap();
            for (x, y, pixel) in original_image.enumerate_pixels() {
                assert_eq!(pixel, image.get_pixel(x, y), "{format:?} {from:?}");
                let right = image.get_pixel(x + half as u32, y);
                let expected = single_image.get_pixel(x, y);
                // A last odd column shares its chroma with the column that fills up.
                let close = x as usize + 1 == from.width_px || right == expected;
                assert!(close, "{format:?} {from:?}: {right:?}, {expected:?}");
            }
        }
    }
}

#[test]
fn without_heat_the_picture_stays_and_side_by_side_is_still_wide() {
    for mode in Mode::ALL {
        let layout = PixelLayout::packed(PixelFormat::Nv12, size(8, 6));
        let bytes = noise(layout.min_len());
        let drawn = overlay(mode)
            .draw(frame(layout, bytes.clone()), None, "")
            .unwrap();
        if mode == Mode::SideBySide {
            assert_eq!(drawn.size(), size(16, 6));
        } else {
            assert_eq!(drawn.bytes(), bytes);
        }
    }
}

#[track_caller]
fn check_refused(scores: &[f32], grid: (usize, usize), message: &str) {
    let size = size(8, 6);
    let placement = Placement::new(&ResizeRule::Stretch(size), size).unwrap();
    let heat = Heat {
        attribution: scores,
        grid,
        placement: &placement,
        range: Range::MinMax,
    };
    for mode in Mode::ALL {
        let layout = PixelLayout::packed(PixelFormat::I420, size);
        let frame = frame(layout, vec![0; 100]);
        let error = overlay(mode).draw(frame, Some(&heat), "").unwrap_err();
        assert!(matches!(error, Error::Shape { .. }));
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn scores_that_are_no_grid_are_refused() {
    let expected =
        |grid, n| format!("expected shape a score for each patch of a {grid} grid, got {n} scores");
    check_refused(&[], (0, 0), &expected("0 x 0", 0));
    check_refused(&[0.0; 5], (2, 3), &expected("2 x 3", 5));
    check_refused(
        &[0.0; 5],
        (usize::MAX, 2),
        &expected(&format!("{} x 2", usize::MAX), 5),
    );
    let not_a_number = "expected shape finite scores, got NaN for patch 1";
    check_refused(&[0.0, f32::NAN], (1, 2), not_a_number);
    let infinite = "expected shape finite scores, got inf for patch 0";
    check_refused(&[f32::INFINITY, 0.0], (1, 2), infinite);
}

#[test]
fn a_placement_for_another_size_is_refused() {
    let placement = Placement::new(&ResizeRule::Stretch(size(8, 8)), size(9, 6)).unwrap();
    let frame = frame(
        PixelLayout::packed(PixelFormat::Rgb, size(8, 6)),
        vec![0; 144],
    );
    let error = overlay(Mode::Overlay)
        .draw(frame, Some(&heat(&placement, &SCORES)), "")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected shape a frame of 9 x 6 pixels, got 8 x 6"
    );
}

/// The heat of four scores, as levels of the gray heatmap.
#[track_caller]
fn check_range(range: Range, scores: [f32; 4], expected: [u8; 4]) {
    let size = size(4, 1);
    let placement = Placement::new(&ResizeRule::Stretch(size), size).unwrap();
    let heat = Heat {
        attribution: &scores,
        grid: (1, 4),
        placement: &placement,
        range,
    };
    let overlay = Overlay {
        colormap: Colormap::Gray,
        ..overlay(Mode::Heatmap)
    };
    let black = frame(PixelLayout::packed(PixelFormat::Rgb, size), vec![0; 12]);
    let drawn = overlay.draw(black, Some(&heat), "").unwrap();
    let levels: Vec<u8> = drawn.bytes().iter().step_by(3).copied().collect();
    assert_eq!(levels, expected);
}

#[test]
fn ranges_scale_as_they_say() {
    check_range(Range::Unit, [-1.0, 0.0, 0.4, 3.0], [0, 0, 102, 255]);
    check_range(Range::MinMax, [-1.0, 0.0, 0.0, 1.0], [0, 128, 128, 255]);
    check_range(Range::MinMax, [7.0; 4], [0; 4]);
    check_range(
        Range::MinMax,
        [f32::MIN, 0.0, 0.0, f32::MAX],
        [0, 128, 128, 255],
    );
    // The 99th percentile of four lies 0.97 of the way from the third to the last.
    check_range(Range::Percentile, [0.0, 0.0, 0.0, 1.0], [0, 0, 0, 255]);
    check_range(
        Range::Percentile,
        [0.0, 0.485, 0.97, 0.97],
        [0, 128, 255, 255],
    );
}

#[test]
fn frames_and_images_are_the_same_pixels() {
    let image = image::RgbImage::from_raw(5, 3, noise(45)).unwrap();
    let frame = frame_from_image(image.clone());
    assert_eq!(frame.size(), size(5, 3));
    assert_eq!(image_from_frame(&frame).unwrap(), image);
    assert_eq!(
        frame_from_image(image::RgbImage::new(0, 0)).size(),
        size(0, 0)
    );
}

#[test]
fn names_of_modes_are_read_back() {
    for mode in Mode::ALL {
        assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
    }
    assert_eq!(
        "sidebyside".parse::<Mode>().unwrap_err().to_string(),
        "unknown mode \"sidebyside\"; did you mean side-by-side?"
    );
}

proptest! {
    #[test]
    fn a_caption_stays_in_its_pane(
        format in proptest::sample::select(&ALL_FORMATS[..]),
        (width, height) in (1..200_usize, 1..120_usize),
        (left, top) in (0..40_usize, 0..20_usize),
        caption in ".{0,40}",
    ) {
        let layout = padded(format, size(left + width + 9, top + height + 9));
        let pixels = pixels_of_bytes(&layout);
        let before = noise(layout.min_len());
        let mut frame = frame(layout, before.clone());
        draw_caption(&mut frame, PixelRect { left, top, width, height }, &caption).unwrap();
        let inside = |&(x, y): &(usize, usize)| {
            (left..left + width).contains(&x) && (top..top + height).contains(&y)
        };
        for (byte, pixels) in pixels.iter().enumerate() {
            if !pixels.iter().any(inside) {
                prop_assert_eq!(frame.bytes()[byte], before[byte]);
            }
        }
    }

    #[test]
    fn any_mode_draws_on_any_size(
        format in proptest::sample::select(&ALL_FORMATS[..]),
        mode in proptest::sample::select(&Mode::ALL[..]),
        rule in proptest::sample::select(rules().to_vec()),
        (width, height) in (1..50_usize, 1..50_usize),
        smooth: bool,
        alpha in proptest::num::f32::ANY,
    ) {
        let size = size(width, height);
        let placement = Placement::new(&rule, size).unwrap();
        let layout = padded(format, size);
        let bytes = noise(layout.min_len());
        let overlay = Overlay { mode, smooth, alpha, ..Overlay::default() };
        let heat = heat(&placement, &SCORES);
        let drawn = overlay.draw(frame(layout, bytes), Some(&heat), "bird 93 %").unwrap();
        prop_assert_eq!(drawn.size().height_px, height);
    }
}

#[test]
fn a_sheet_is_saved_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sheet.png");
    let mut sheet = Sheet::new(6);
    let error = sheet.save(&path, image::ImageFormat::Png).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("there are no frames for the contact sheet: ")
    );

    for _ in 0..3 {
        let frame = frame_from_rgb(padded(PixelFormat::I420, size(64, 36)), |_, _| {
            [200, 30, 30]
        });
        sheet.add(&frame, None, "bird 93 %").unwrap();
    }
    sheet.save(&path, image::ImageFormat::Png).unwrap();
    let image = image::open(&path).unwrap().to_rgb8();
    let pixel = image.get_pixel(100, 100).0;
    let is_red = pixel
        .iter()
        .zip([200, 30, 30])
        .all(|(a, b)| a.abs_diff(b) <= 2);
    assert!(is_red, "{pixel:?}");

    let missing = folder.path().join("missing").join("sheet.png");
    assert!(matches!(
        sheet.save(&missing, image::ImageFormat::Png),
        Err(Error::Io { .. })
    ));
    let files: Vec<_> = folder
        .path()
        .read_dir()
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    assert_eq!(files, ["sheet.png"]);
}
