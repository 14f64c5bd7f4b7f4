//! Placement, resizing and drawing: against PIL, by property, and by golden images.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod drawing;
mod golden;
mod placing;
mod resizing;

use std::sync::Arc;

use vitscope::frame::{
    ColorMatrix, ColorTags, Frame, FrameSize, PixelFormat, PixelLayout, Plane, Pts,
};

const ALL_FORMATS: [PixelFormat; 7] = [
    PixelFormat::I420,
    PixelFormat::I420Deep,
    PixelFormat::Nv12,
    PixelFormat::Rgb,
    PixelFormat::Bgr,
    PixelFormat::Rgba,
    PixelFormat::Bgrx,
];

fn size(width_px: usize, height_px: usize) -> FrameSize {
    FrameSize {
        width_px,
        height_px,
    }
}

/// Creates a layout with padding before the first plane and after each row, by amounts that fit no sample.
fn padded(format: PixelFormat, size: FrameSize) -> PixelLayout {
    let mut layout = PixelLayout::packed(format, size);
    let mut end = 5;
    for plane_idx in 0..layout.planes.len() {
        let (n_rows, row_len) = layout.plane_extent(plane_idx);
        let stride = row_len + 7;
        layout.planes[plane_idx] = Plane {
            offset: end,
            stride,
        };
        end += n_rows * stride;
    }
    layout
}

/// Creates a frame of `bytes`, cut to the length that the layout needs.
fn frame(layout: PixelLayout, mut bytes: Vec<u8>) -> Frame {
    bytes.truncate(layout.min_len());
    Frame::new(3, Pts(40), None, Arc::new(layout), Box::new(bytes)).unwrap()
}

/// Creates bytes without a pattern, the same on each run.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Converts an RGB picture to another format, with one color per 2 x 2 pixels in 4:2:0.
fn frame_from_rgb(layout: PixelLayout, rgb: impl Fn(usize, usize) -> [u8; 3]) -> Frame {
    let mut bytes = vec![0xee; layout.min_len()];
    let FrameSize {
        width_px,
        height_px,
    } = layout.size;
    let at = |plane: usize, x: usize, y: usize| {
        layout.planes[plane].offset + y * layout.planes[plane].stride + x
    };
    for (x, y) in (0..height_px).flat_map(|y| (0..width_px).map(move |x| (x, y))) {
        let [r, g, b] = rgb(x, y);
        let [luma, u, v] = yuv(layout.color, [r, g, b]);
        match layout.format {
            PixelFormat::Rgb => bytes[at(0, 3 * x, y)..][..3].copy_from_slice(&[r, g, b]),
            PixelFormat::Bgr => bytes[at(0, 3 * x, y)..][..3].copy_from_slice(&[b, g, r]),
            PixelFormat::Rgba => bytes[at(0, 4 * x, y)..][..3].copy_from_slice(&[r, g, b]),
            PixelFormat::Bgrx => bytes[at(0, 4 * x, y)..][..3].copy_from_slice(&[b, g, r]),
            PixelFormat::I420 => {
                bytes[at(0, x, y)] = luma;
                bytes[at(1, x / 2, y / 2)] = u;
                bytes[at(2, x / 2, y / 2)] = v;
            }
            PixelFormat::I420Deep => {
                // Two more bits, which are rounded off again when the picture is read.
                let mut put = |place: usize, value: u8| {
                    bytes[place..place + 2].copy_from_slice(&(4 * u16::from(value)).to_le_bytes());
                };
                put(at(0, 2 * x, y), luma);
                put(at(1, x / 2 * 2, y / 2), u);
                put(at(2, x / 2 * 2, y / 2), v);
            }
            PixelFormat::Nv12 => {
                bytes[at(0, x, y)] = luma;
                bytes[at(1, x / 2 * 2, y / 2)..][..2].copy_from_slice(&[u, v]);
            }
        }
    }
    frame(layout, bytes)
}

/// Computes the textbook conversion, independent of the crate's.
fn yuv(tags: ColorTags, rgb: [u8; 3]) -> [u8; 3] {
    let (kr, kb) = match tags.matrix {
        ColorMatrix::Bt601 => (0.299, 0.114),
        ColorMatrix::Bt709 => (0.2126, 0.0722),
        ColorMatrix::Bt2020 => (0.2627, 0.0593),
    };
    let [r, g, b] = rgb.map(f64::from);
    let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
    let u = (b - luma) / (2.0 - 2.0 * kb);
    let v = (r - luma) / (2.0 - 2.0 * kr);
    let values = if tags.full_range {
        [luma, 128.0 + u, 128.0 + v]
    } else {
        [
            16.0 + luma * 219.0 / 255.0,
            128.0 + u * 224.0 / 255.0,
            128.0 + v * 224.0 / 255.0,
        ]
    };
    values.map(|value| value.round() as u8)
}

fn all_tags() -> impl Iterator<Item = ColorTags> {
    [ColorMatrix::Bt601, ColorMatrix::Bt709, ColorMatrix::Bt2020]
        .into_iter()
        .flat_map(|matrix| [false, true].map(|full_range| ColorTags { matrix, full_range }))
}
