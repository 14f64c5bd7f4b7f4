//! The model's image is what its preprocessor would have made of the frame.

use std::path::Path;

use safetensors::SafeTensors;
use vitscope::frame::placement::ResizeRule;
use vitscope::frame::resize::{Resampling, Resizer};
use vitscope::frame::{Frame, PixelFormat, PixelLayout};

use super::{ALL_FORMATS, all_tags, frame, frame_from_rgb, padded, size};

/// A level is rounded once a pass and the weights have some twenty bits, in PIL as here; a value
/// next to a half may be rounded either way.
const MAX_ROUNDING: u8 = 1;

fn fixture() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize.safetensors");
    std::fs::read(path).unwrap()
}

fn picture(file: &SafeTensors) -> Frame {
    let tensor = file.tensor("picture").unwrap();
    let size = size(tensor.shape()[1], tensor.shape()[0]);
    frame(
        PixelLayout::packed(PixelFormat::Rgb, size),
        tensor.data().to_vec(),
    )
}

/// Compares every `step`-th row with what tests/fixtures/resize.py stored under `name`.
#[track_caller]
fn check_against_pil(name: &str, rule: ResizeRule, step: usize) {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let frame = picture(&file);
    for (filter, resampling, tolerance) in [
        ("nearest", Resampling::Nearest, 0),
        ("bilinear", Resampling::Bilinear, MAX_ROUNDING),
        ("bicubic", Resampling::Bicubic, MAX_ROUNDING),
        ("lanczos", Resampling::Lanczos, MAX_ROUNDING),
    ] {
        let (rgb, placement) = Resizer::new(rule, resampling)
            .rgb_from_frame(&frame)
            .unwrap();
        assert_eq!(placement.image, rule.image_size());
        let expected = file.tensor(&format!("{name}.{filter}")).unwrap();
        let row_len = 3 * placement.image.width_px;
        let got: Vec<u8> = rgb
            .chunks(row_len)
            .step_by(step)
            .flatten()
            .copied()
            .collect();
        assert_eq!(got.len(), expected.data().len(), "{name}.{filter}");
        let worst = got
            .iter()
            .zip(expected.data())
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(
            worst <= Some(tolerance),
            "{name}.{filter} differs by {worst:?}"
        );
    }
}

#[test]
fn stretching_matches_pil() {
    check_against_pil("stretch-24x16", ResizeRule::Stretch(size(24, 16)), 1);
    check_against_pil("stretch-100x70", ResizeRule::Stretch(size(100, 70)), 7);
}

#[test]
fn shortest_edge_and_centre_crop_match_transformers() {
    let rule = |edge_px, crop| ResizeRule::ShortestEdge { edge_px, crop };
    check_against_pil("shortest-edge-28-crop-24x24", rule(28, size(24, 24)), 1);
}

#[test]
fn a_crop_larger_than_the_picture_is_filled_up_as_transformers_does() {
    let rule = |edge_px, crop| ResizeRule::ShortestEdge { edge_px, crop };
    check_against_pil("shortest-edge-21-crop-25x24", rule(21, size(25, 24)), 1);
    check_against_pil("shortest-edge-10-crop-19x17", rule(10, size(19, 17)), 1);
}

#[test]
fn padding_matches_pil() {
    check_against_pil("pad-36x29", ResizeRule::Pad(size(36, 29)), 1);
}

#[test]
fn stretching_then_cropping_matches_transformers() {
    let rule = ResizeRule::StretchThenCrop {
        resize: size(33, 31),
        crop: size(24, 24),
    };
    check_against_pil("stretch-33x31-crop-24x24", rule, 1);
}

#[test]
fn every_rgb_order_stride_and_offset_gives_the_same_image() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let picture = picture(&file);
    let width = picture.size().width_px;
    let pixel = |x: usize, y: usize| {
        let at = 3 * (y * width + x);
        [0, 1, 2].map(|channel| picture.bytes()[at + channel])
    };
    let rule = ResizeRule::ShortestEdge {
        edge_px: 28,
        crop: size(24, 24),
    };
    let mut resizer = Resizer::new(rule, Resampling::Bicubic);
    let (expected, _) = resizer.rgb_from_frame(&picture).unwrap();
    for format in &ALL_FORMATS[3..] {
        let packed = PixelLayout::packed(*format, picture.size());
        // A stride of whole pixels is read in place, another is not; the bytes of the padding are
        // bright and would show.
        let mut whole_pixels = packed.clone();
        whole_pixels.planes[0].stride += 12;
        for layout in [packed, whole_pixels, padded(*format, picture.size())] {
            let frame = frame_from_rgb(layout, pixel);
            let (got, _) = resizer.rgb_from_frame(&frame).unwrap();
            assert_eq!(got, expected, "{:?}", frame.layout);
        }
    }
}

#[test]
fn yuv_gives_the_colors_its_tags_say_at_the_places_they_have() {
    // Four quarters of an odd-sized frame.
    let quarters = [[200, 40, 30], [30, 160, 60], [20, 60, 190], [220, 210, 200]];
    let (width, height) = (161, 121);
    let color_at = |x: usize, y: usize| {
        quarters[usize::from(x >= width / 2) + 2 * usize::from(y >= height / 2)]
    };
    let mut resizer = Resizer::new(ResizeRule::Stretch(size(16, 16)), Resampling::Bilinear);
    for format in [PixelFormat::I420, PixelFormat::Nv12] {
        for color in all_tags() {
            let mut layout = padded(format, size(width, height));
            layout.color = color;
            let frame = frame_from_rgb(layout, color_at);
            let (rgb, _) = resizer.rgb_from_frame(&frame).unwrap();
            for (quarter, (x, y)) in [(3, 3), (12, 3), (3, 12), (12, 12)].into_iter().enumerate() {
                let pixel = &rgb[3 * (16 * y + x)..][..3];
                let close = pixel
                    .iter()
                    .zip(quarters[quarter])
                    .all(|(a, b)| a.abs_diff(b) <= 2);
                assert!(
                    close,
                    "{format:?} {color:?}: {pixel:?}, {:?}",
                    quarters[quarter]
                );
            }
        }
    }
}

#[test]
fn one_pixel_makes_an_image_of_its_color() {
    for format in ALL_FORMATS {
        let frame = frame_from_rgb(padded(format, size(1, 1)), |_, _| [90, 120, 60]);
        for rule in [
            ResizeRule::Stretch(size(8, 8)),
            ResizeRule::ShortestEdge {
                edge_px: 9,
                crop: size(8, 8),
            },
        ] {
            let (rgb, _) = Resizer::new(rule, Resampling::Bicubic)
                .rgb_from_frame(&frame)
                .unwrap();
            assert_eq!(rgb.len(), 3 * 8 * 8);
            for pixel in rgb.chunks(3) {
                let close = pixel
                    .iter()
                    .zip([90, 120, 60])
                    .all(|(a, b)| a.abs_diff(b) <= 2);
                assert!(close, "{format:?}: {pixel:?}");
            }
        }
    }
}

#[test]
fn a_frame_that_cannot_be_read_is_an_error() {
    let mut resizer = Resizer::new(ResizeRule::Stretch(size(8, 8)), Resampling::Bilinear);
    for format in ALL_FORMATS {
        let empty = frame(PixelLayout::packed(format, size(0, 0)), Vec::new());
        assert!(resizer.rgb_from_frame(&empty).is_err());
        let mut layout = PixelLayout::packed(format, size(4, 4));
        layout.planes.pop();
        assert!(
            resizer
                .rgb_from_frame(&frame(layout, vec![0; 100]))
                .is_err()
        );
        let mut layout = PixelLayout::packed(format, size(4, 4));
        layout.planes[0].stride = 0;
        assert!(
            resizer
                .rgb_from_frame(&frame(layout, vec![0; 100]))
                .is_err()
        );
    }
}
