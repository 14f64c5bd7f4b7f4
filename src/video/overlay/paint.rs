//! Blending of colors into a frame in its own pixel format, in place, with integer arithmetic.
//!
//! The painted area is a [`Stencil`] with one level per pixel; a [`Palette`] assigns each of the 256 levels a color and
//! an opacity. A chroma sample of 4:2:0 gets the mean of the colors of its 2 x 2 pixels; pixels outside of the stencil
//! count as unpainted. Opacity 0 leaves a sample bit for bit unchanged.

use rayon::prelude::*;

use vitscope_core::error::Result;
use vitscope_core::frame::placement::PixelRect;
use vitscope_core::frame::{Frame, PixelFormat, PixelLayout, rows};

/// One level per pixel, over a part of the frame.
pub(super) struct Stencil {
    /// Part of the frame.
    pub(super) rect: PixelRect,
    /// `rect.width * rect.height` levels, in row-major order.
    pub(super) levels: Vec<u8>,
}

impl Stencil {
    /// Creates a stencil with the same level everywhere.
    pub(super) fn flat(rect: PixelRect, level: u8) -> Self {
        Self {
            rect,
            levels: vec![level; rect.width * rect.height],
        }
    }

    /// Returns the levels of frame row `y`, if the stencil covers it.
    fn row(&self, y: usize) -> Option<&[u8]> {
        let start = y.checked_sub(self.rect.top)? * self.rect.width;
        self.levels.get(start..start + self.rect.width)
    }
}

/// A sample of a plane, in its memory representation.
pub(super) trait Sample: Copy + Send {
    /// Returns the samples of a row.
    fn of_row(row: &[u8]) -> &[Self];

    /// Returns the samples of a row, mutably.
    fn of_row_mut(row: &mut [u8]) -> &mut [Self];

    /// Returns the code value.
    fn value(self) -> u32;

    /// Returns the sample of a code value, which must fit its depth.
    fn from_value(value: u32) -> Self;

    /// Returns the bytes of the sample.
    fn as_bytes(&self) -> &[u8];
}

/// 8-bit samples.
impl Sample for u8 {
    fn of_row(row: &[u8]) -> &[Self] {
        row
    }

    fn of_row_mut(row: &mut [u8]) -> &mut [Self] {
        row
    }

    #[inline]
    fn value(self) -> u32 {
        self.into()
    }

    #[inline]
    fn from_value(value: u32) -> Self {
        value as Self
    }

    fn as_bytes(&self) -> &[u8] {
        std::slice::from_ref(self)
    }
}

/// 10-bit samples in two bytes, little endian.
impl Sample for [u8; 2] {
    fn of_row(row: &[u8]) -> &[Self] {
        row.as_chunks().0
    }

    fn of_row_mut(row: &mut [u8]) -> &mut [Self] {
        row.as_chunks_mut().0
    }

    #[inline]
    fn value(self) -> u32 {
        u16::from_le_bytes(self).into()
    }

    #[inline]
    fn from_value(value: u32) -> Self {
        (value as u16).to_le_bytes()
    }

    fn as_bytes(&self) -> &[u8] {
        self
    }
}

/// In 256ths: the share of the sample that a level keeps, then the amounts that it adds to each of three channels.
type Entry = [u32; 4];

/// Opacity 1.
const WHOLE: u32 = 256;

/// Entry of an unpainted pixel.
const UNTOUCHED: Entry = [WHOLE, 0, 0, 0];

/// A color and an opacity for each level, prepared for one pixel format.
struct Palette([Entry; 256]);

impl Palette {
    /// Creates the palette; `color` returns RGB and an opacity from 0 to 1.
    fn new(layout: &PixelLayout, color: impl Fn(u8) -> ([u8; 3], f32)) -> Self {
        let mut entries = [UNTOUCHED; 256];
        for (level, entry) in (0..=255).zip(&mut entries) {
            let (rgb, opacity) = color(level);
            let share = (opacity.clamp(0.0, 1.0) * WHOLE as f32).round() as u32;
            let channels = match (layout.format, layout.hdr) {
                (PixelFormat::I420 | PixelFormat::Nv12, _) => layout.color.yuv_from_rgb(rgb),
                (PixelFormat::I420Deep, None) => {
                    let unit = rgb.map(|value| f64::from(value) / 255.0);
                    layout.color.deep_yuv_from_unit_rgb(unit)
                }
                (PixelFormat::I420Deep, Some(hdr)) => {
                    layout.color.deep_yuv_from_unit_rgb(hdr.coded(rgb))
                }
                _ => rgb.map(f64::from),
            };
            let [x, y, z] = channels.map(|value| (value * f64::from(share)).round() as u32);
            *entry = [WHOLE - share, x, y, z];
        }
        Self(entries)
    }
}

/// Paints the `color` of each level of the stencil into the frame.
///
/// # Errors
/// [`vitscope_core::Error::Shape`] if the frame's planes do not fit its format; also any error from making its memory
/// writable.
pub(super) fn paint(
    frame: &mut Frame,
    stencil: &Stencil,
    color: impl Fn(u8) -> ([u8; 3], f32),
) -> Result<()> {
    if stencil.levels.is_empty() {
        return Ok(());
    }
    let layout = frame.layout.clone();
    rows::check(&layout)?;
    let bytes = frame.bytes_mut()?;
    let palette = &Palette::new(&layout, &color);
    match layout.format {
        PixelFormat::I420 => paint_planes::<u8>(bytes, &layout, stencil, palette),
        PixelFormat::I420Deep => paint_planes::<[u8; 2]>(bytes, &layout, stencil, palette),
        PixelFormat::Nv12 => {
            paint_luma::<u8>(bytes, &layout, stencil, palette);
            paint_chroma::<u8, 2>(bytes, &layout, 1, [2, 3], stencil, palette);
        }
        PixelFormat::Rgb => paint_packed::<3>(bytes, &layout, [0, 1, 2], stencil, palette),
        PixelFormat::Bgr => paint_packed::<3>(bytes, &layout, [2, 1, 0], stencil, palette),
        PixelFormat::Rgba => paint_packed::<4>(bytes, &layout, [0, 1, 2], stencil, palette),
        PixelFormat::Bgrx => paint_packed::<4>(bytes, &layout, [2, 1, 0], stencil, palette),
    }
    Ok(())
}

/// Blends one sample: keeps `keep` of it and adds `add`, both in 256ths.
#[inline]
fn blend<S: Sample>(sample: S, keep: u32, add: u32) -> S {
    S::from_value((sample.value() * keep + add + WHOLE / 2) / WHOLE)
}

/// Paints the luma plane and both chroma planes.
fn paint_planes<S: Sample>(
    bytes: &mut [u8],
    layout: &PixelLayout,
    stencil: &Stencil,
    palette: &Palette,
) {
    paint_luma::<S>(bytes, layout, stencil, palette);
    paint_chroma::<S, 1>(bytes, layout, 1, [2], stencil, palette);
    paint_chroma::<S, 1>(bytes, layout, 2, [3], stencil, palette);
}

fn paint_luma<S: Sample>(
    bytes: &mut [u8],
    layout: &PixelLayout,
    stencil: &Stencil,
    palette: &Palette,
) {
    let rect = stencil.rect;
    rows::par_rows_mut(bytes, layout, 0, rect.top, rect.height)
        .zip(stencil.levels.par_chunks(rect.width))
        .for_each(|(row, levels)| {
            let samples = S::of_row_mut(row).iter_mut().skip(rect.left);
            for (sample, &level) in samples.zip(levels) {
                let entry = &palette.0[usize::from(level)];
                *sample = blend(*sample, entry[0], entry[1]);
            }
        });
}

/// Paints packed pixels of `BYTES` bytes, with red, green and blue at the offsets `order`.
fn paint_packed<const BYTES: usize>(
    bytes: &mut [u8],
    layout: &PixelLayout,
    order: [usize; 3],
    stencil: &Stencil,
    palette: &Palette,
) {
    let rect = stencil.rect;
    rows::par_rows_mut(bytes, layout, 0, rect.top, rect.height)
        .zip(stencil.levels.par_chunks(rect.width))
        .for_each(|(row, levels)| {
            let pixels = row.chunks_exact_mut(BYTES).skip(rect.left);
            for (pixel, &level) in pixels.zip(levels) {
                let entry = &palette.0[usize::from(level)];
                for (channel, offset) in order.into_iter().enumerate() {
                    pixel[offset] = blend(pixel[offset], entry[0], entry[channel + 1]);
                }
            }
        });
}

/// Paints a plane whose samples are `channels` of the palette, interleaved, with one sample per 2 x 2 pixels.
fn paint_chroma<S: Sample, const CHANNELS: usize>(
    bytes: &mut [u8],
    layout: &PixelLayout,
    plane_idx: usize,
    channels: [usize; CHANNELS],
    stencil: &Stencil,
    palette: &Palette,
) {
    let rect = stencil.rect;
    let (frame_width, frame_height) = (layout.size.width_px, layout.size.height_px);
    let first_row = rect.top / 2;
    let n_rows = (rect.top + rect.height).div_ceil(2) - first_row;
    let first = rect.left / 2;
    let end = (rect.left + rect.width).div_ceil(2);
    // Blocks whose columns all lie in the stencil, and thus in the frame.
    let inner_first = rect.left.div_ceil(2);
    let inner_end = ((rect.left + rect.width) / 2).max(inner_first);

    let mix = |samples: &mut [S], sum: Entry, n_pixels: u32| {
        for (sample, channel) in samples.iter_mut().zip(channels) {
            let total = sample.value() * sum[0] + sum[channel] + n_pixels * WHOLE / 2;
            *sample = S::from_value(total / (n_pixels * WHOLE));
        }
    };
    rows::par_rows_mut(bytes, layout, plane_idx, first_row, n_rows)
        .enumerate()
        .for_each(|(row_idx, row)| {
            let row = S::of_row_mut(row);
            let y = 2 * (first_row + row_idx);
            let (upper, lower) = (stencil.row(y), stencil.row(y + 1));
            let pixel = |levels: Option<&[u8]>, x: usize| {
                x.checked_sub(rect.left)
                    .and_then(|column| levels?.get(column))
                    .map_or(UNTOUCHED, |&level| palette.0[usize::from(level)])
            };
            let mut block = |column: usize| {
                let in_frame = (0..2)
                    .flat_map(|dy| (0..2).map(move |dx| (2 * column + dx, dy)))
                    .filter(|&(x, dy)| x < frame_width && y + dy < frame_height);
                let (mut sum, mut n_pixels) = ([0; 4], 0);
                for (x, dy) in in_frame {
                    sum = plus(sum, pixel(if dy == 0 { upper } else { lower }, x));
                    n_pixels += 1;
                }
                if let Some(samples) = row.get_mut(column * CHANNELS..(column + 1) * CHANNELS) {
                    mix(samples, sum, n_pixels);
                }
            };
            let (Some(upper), Some(lower)) = (upper, lower) else {
                (first..end).for_each(block);
                return;
            };
            (first..inner_first).for_each(&mut block);
            (inner_end..end).for_each(&mut block);
            let skipped = 2 * inner_first - rect.left;
            let blocks = upper[skipped..]
                .chunks_exact(2)
                .zip(lower[skipped..].chunks_exact(2));
            let samples = row
                .chunks_exact_mut(CHANNELS)
                .skip(inner_first)
                .take(inner_end - inner_first);
            for (samples, (upper, lower)) in samples.zip(blocks) {
                let entry = |level: u8| palette.0[usize::from(level)];
                let sum = plus(
                    plus(entry(upper[0]), entry(upper[1])),
                    plus(entry(lower[0]), entry(lower[1])),
                );
                mix(samples, sum, 4);
            }
        });
}

/// Adds two entries channel by channel.
#[inline]
fn plus(a: Entry, b: Entry) -> Entry {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
}
