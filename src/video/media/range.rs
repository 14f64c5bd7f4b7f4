//! Conversion of full-range code values (0–255) to limited range, for encoders that cannot signal the range.
//!
//! GStreamer 1.22 copies the samples if only the range differs, and labels them as limited.

use std::sync::Arc;

use rayon::prelude::*;

use vitscope_core::error::Result;
use vitscope_core::frame::{Frame, PixelFormat, rows};

/// Converts a full-range frame in I420 or NV12 to limited range, in place; other frames stay unchanged.
///
/// # Errors
/// [`vitscope_core::Error::Shape`] if the frame's planes do not fit its format; also any error from making its memory
/// writable.
pub(crate) fn limit(mut frame: Frame) -> Result<Frame> {
    let is_planar = matches!(frame.layout.format, PixelFormat::I420 | PixelFormat::Nv12);
    if !frame.layout.color.full_range || !is_planar {
        return Ok(frame);
    }
    rows::check(&frame.layout)?;
    let mut layout = (*frame.layout).clone();
    let bytes = frame.bytes_mut()?;
    let table = |zero: f64, limited_zero: f64, span: f64| -> Vec<u8> {
        let limited = |value: u8| limited_zero + (f64::from(value) - zero) * span / 255.0;
        (0..=255)
            .map(|value| limited(value).round() as u8)
            .collect()
    };
    let (luma, chroma) = (table(0.0, 16.0, 219.0), table(128.0, 128.0, 224.0));
    for plane_idx in 0..layout.planes.len() {
        let table = if plane_idx == 0 { &luma } else { &chroma };
        let (n_rows, _) = layout.plane_extent(plane_idx);
        rows::par_rows_mut(bytes, &layout, plane_idx, 0, n_rows).for_each(|row| {
            for sample in row {
                *sample = table[usize::from(*sample)];
            }
        });
    }
    layout.color.full_range = false;
    frame.layout = Arc::new(layout);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope_core::frame::{FrameSize, PixelLayout, Pts};

    #[test]
    fn colors_stay_within_a_level() {
        let size = FrameSize {
            width_px: 64,
            height_px: 32,
        };
        for format in [PixelFormat::I420, PixelFormat::Nv12] {
            let mut layout = PixelLayout::packed(format, size);
            layout.color.full_range = true;
            // All luma values, and chroma values that limited range can represent.
            let bytes = (0..layout.min_len()).map(|i| match i < 64 * 32 {
                true => (i % 256) as u8,
                false => (96 + i % 64) as u8,
            });
            let bytes: Vec<u8> = bytes.collect();
            let frame = || {
                let (layout, bytes) = (Arc::new(layout.clone()), Box::new(bytes.clone()));
                Frame::new(0, Pts(0), None, layout, bytes).unwrap()
            };
            let limited = limit(frame()).unwrap();
            assert!(!limited.layout.color.full_range);
            let before = frame();
            let (full, narrow) = (
                before.layout.color.rgb_from_yuv(),
                limited.layout.color.rgb_from_yuv(),
            );
            let n_lumas = 64 * 32;
            let lumas = before.bytes().iter().zip(limited.bytes()).take(n_lumas);
            for (&before, &after) in lumas {
                let [a, b] = [
                    full.convert(before, 128, 128),
                    narrow.convert(after, 128, 128),
                ];
                assert!(a[0].abs_diff(b[0]) <= 1, "{format:?}: {a:?} {b:?}");
            }
            let chromas = before.bytes().iter().zip(limited.bytes()).skip(n_lumas);
            for (&before, &after) in chromas {
                let [a, b] = [
                    full.convert(120, before, 128),
                    narrow.convert(119, after, 128),
                ];
                assert!(a[2].abs_diff(b[2]) <= 2, "{format:?}: {a:?} {b:?}");
            }
        }
    }
}
