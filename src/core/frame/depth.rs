//! Conversion of 10-bit frames to 8 bits, for consumers that need no more.

use super::tone_map::{DeepPlane, ToneMap};
use super::{ColorMatrix, ColorTags, Frame, Hdr, PixelFormat, PixelLayout, rows};
use crate::error::Result;

/// Additional bits of 10-bit samples over 8-bit ones.
const MORE_BITS: u32 = 2;

/// Converts 10-bit frames to 8 bits, and high dynamic range to standard dynamic range.
#[derive(Default)]
pub struct Narrower {
    /// Tone map of the last frame that needed one, with its parameters.
    tone_map: Option<((Hdr, bool), ToneMap)>,
}

impl Narrower {
    /// Converts `frame`, which must be [`PixelFormat::I420Deep`], to [`PixelFormat::I420`] with standard dynamic range.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the frame's planes do not match its format.
    pub fn narrow(&mut self, frame: &Frame) -> Result<Frame> {
        let deep = &frame.layout;
        rows::check(deep)?;
        let n_planes = deep.planes.len();
        let mut planes: Vec<Vec<u8>> = (0..n_planes)
            .map(|plane_idx| {
                rows::rows(frame.bytes(), deep, plane_idx)
                    .collect::<Vec<_>>()
                    .concat()
            })
            .collect();
        let mut layout = PixelLayout::packed(PixelFormat::I420, deep.size);
        layout.color = deep.color;
        layout.pixel_aspect = deep.pixel_aspect;
        if let Some(hdr) = deep.hdr
            && let [y, u, v] = planes.as_mut_slice()
        {
            let plane = |bytes, plane_idx| DeepPlane {
                bytes,
                stride: deep.plane_extent(plane_idx).1,
            };
            let planes = [plane(y, 0), plane(u, 1), plane(v, 2)];
            self.tone_map(hdr, deep.color.full_range)
                .apply(deep.size.width_px, planes);
            layout.color = ColorTags {
                matrix: ColorMatrix::Bt709,
                full_range: false,
            };
        }
        let samples = planes.iter().flat_map(|plane| plane.as_chunks().0);
        let bytes: Vec<u8> = samples
            .map(|&sample| {
                let value = u32::from(u16::from_le_bytes(sample));
                let rounded = (value + (1 << (MORE_BITS - 1))) >> MORE_BITS;
                u8::try_from(rounded).unwrap_or(u8::MAX)
            })
            .collect();
        frame.redrawn(layout, bytes)
    }

    fn tone_map(&mut self, hdr: Hdr, full_range: bool) -> &ToneMap {
        let wanted = (hdr, full_range);
        let stale = self.tone_map.as_ref().is_none_or(|(of, _)| *of != wanted);
        if stale {
            self.tone_map = None;
        }
        let (_, tone_map) = self
            .tone_map
            .get_or_insert_with(|| (wanted, ToneMap::new(hdr, full_range)));
        tone_map
    }
}
