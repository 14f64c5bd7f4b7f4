//! The placement is the inverse of resize and crop, for any size.

use proptest::prelude::*;
use vitscope::frame::FrameSize;
use vitscope::frame::placement::{Placement, ResizeRule};

use super::size;

fn sizes(limit_px: usize) -> impl Strategy<Value = FrameSize> {
    (1..=limit_px, 1..=limit_px).prop_map(|(width, height)| size(width, height))
}

fn rules(limit_px: usize) -> impl Strategy<Value = ResizeRule> {
    prop_oneof![
        sizes(limit_px).prop_map(ResizeRule::Stretch),
        sizes(limit_px).prop_map(ResizeRule::Pad),
        (1..=limit_px, sizes(limit_px))
            .prop_map(|(edge_px, crop)| ResizeRule::ShortestEdge { edge_px, crop }),
        (sizes(limit_px), sizes(limit_px))
            .prop_map(|(resize, crop)| ResizeRule::StretchThenCrop { resize, crop }),
    ]
}

/// Resized length and the start of the crop, by the preprocessors' definition.
fn resized_and_start(rule: &ResizeRule, frame: FrameSize) -> [(i64, i64); 2] {
    let FrameSize {
        width_px: w,
        height_px: h,
    } = frame;
    let image = rule.image_size();
    let resized = match *rule {
        ResizeRule::Stretch(to) => to,
        ResizeRule::StretchThenCrop { resize, .. } => resize,
        ResizeRule::ShortestEdge { edge_px: e, .. } if w <= h => size(e, e * h / w),
        ResizeRule::ShortestEdge { edge_px: e, .. } => size(e * w / h, e),
        ResizeRule::Pad(to) => {
            let scale = (to.width_px as f64 / w as f64).min(to.height_px as f64 / h as f64);
            let scaled = |edge: usize| ((edge as f64 * scale).round() as usize).max(1);
            size(scaled(w), scaled(h))
        }
    };
    [
        (resized.width_px as i64, image.width_px as i64),
        (resized.height_px as i64, image.height_px as i64),
    ]
    .map(|(resized, image)| (resized, (resized - image) / 2))
}

/// The patch over a pixel's centre along one axis, by whole numbers, and whether the centre lies so
/// close to a border that rounding may decide.
fn patch_along(
    pixel: usize,
    frame: usize,
    (resized, start): (i64, i64),
    image: usize,
    n_patches: usize,
) -> (Option<usize>, bool) {
    let numerator =
        ((2 * pixel as i64 + 1) * resized - 2 * frame as i64 * start) * n_patches as i64;
    let denominator = 2 * frame as i64 * image as i64;
    let patch = numerator.div_euclid(denominator);
    let inside = (0..n_patches as i64).contains(&patch);
    let on_border = numerator.rem_euclid(denominator) == 0;
    (inside.then_some(patch as usize), on_border)
}

proptest! {
    #[test]
    fn image_and_frame_corners_meet_and_points_come_back(
        rule in rules(600),
        frame in sizes(4000),
        (x, y) in (-0.5..1.5, -0.5..1.5),
    ) {
        let placement = Placement::new(&rule, frame).unwrap();
        let region = placement.region;
        let close = |a: (f64, f64), b: (f64, f64)| {
            let scale = 1.0 + a.0.abs().max(a.1.abs());
            (a.0 - b.0).abs() < 1e-9 * scale && (a.1 - b.1).abs() < 1e-9 * scale
        };
        let corner = (placement.image.width_px as f64, placement.image.height_px as f64);
        prop_assert!(close(placement.frame_point_from_image(0.0, 0.0), (region.left, region.top)));
        prop_assert!(close(
            placement.frame_point_from_image(corner.0, corner.1),
            (region.left + region.width, region.top + region.height),
        ));

        let (x, y) = (x * frame.width_px as f64, y * frame.height_px as f64);
        let (u, v) = placement.image_point_from_frame(x, y);
        prop_assert!(close((x, y), placement.frame_point_from_image(u, v)));

        // A pixel of the resized picture is `frame / resized` frame pixels.
        let [(width, left), (height, top)] = resized_and_start(&rule, frame);
        let per_px = (frame.width_px as f64 / width as f64, frame.height_px as f64 / height as f64);
        prop_assert!(close(
            (left as f64 * per_px.0, top as f64 * per_px.1),
            (region.left, region.top),
        ));
    }

    #[test]
    fn each_pixel_of_the_region_belongs_to_one_patch_and_no_other_does(
        rule in rules(40),
        frame in sizes(40),
        grid in (1..9_usize, 1..9_usize),
    ) {
        let placement = Placement::new(&rule, frame).unwrap();
        let [horizontal, vertical] = resized_and_start(&rule, frame);
        let image = rule.image_size();
        for y in 0..frame.height_px {
            let (row, row_border) = patch_along(
                y, frame.height_px, vertical, image.height_px, grid.0,
            );
            for x in 0..frame.width_px {
                let (column, column_border) = patch_along(
                    x, frame.width_px, horizontal, image.width_px, grid.1,
                );
                if row_border || column_border {
                    continue;
                }
                prop_assert_eq!(placement.patch_at(x, y, grid), row.zip(column));
            }
        }
    }

    #[test]
    fn a_stretched_image_covers_every_pixel(image in sizes(300), frame in sizes(3000)) {
        let placement = Placement::new(&ResizeRule::Stretch(image), frame).unwrap();
        let rect = placement.pixels();
        prop_assert_eq!((rect.left, rect.top), (0, 0));
        prop_assert_eq!((rect.width, rect.height), (frame.width_px, frame.height_px));
    }
}
