//! A decoded video frame in its own pixel format and memory, and the placement of the model's image in it.
//!
//! A [`Frame`] moves through the pipeline without conversion or copying. Only [`resize`] and the overlay access pixels.
//! This module has no GStreamer types: `media` provides mapped buffers behind [`Pixels`].

#[doc(hidden)]
pub mod color;
#[doc(hidden)]
pub mod depth;
pub mod normalize;
pub mod placement;
pub mod resize;
#[doc(hidden)]
pub mod rows;
pub mod scene;
#[doc(hidden)]
pub mod tone_map;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};

/// Presentation timestamp in nanoseconds, as in GStreamer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pts(pub u64);

impl Pts {
    /// The timestamp in fractional seconds, for display.
    pub fn secs(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameSize {
    /// Columns.
    pub width_px: usize,
    /// Rows.
    pub height_px: usize,
}

/// Order, chroma subsampling and depth of a frame's samples, which are 8 bits deep unless stated otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Planar Y, U, V; chroma halved both ways, rounded up.
    I420,
    /// Like [`I420`](Self::I420), with 10 bits in two bytes, little-endian.
    I420Deep,
    /// Y plane, then interleaved U and V; chroma halved both ways, rounded up.
    Nv12,
    /// Packed, three bytes per pixel.
    Rgb,
    /// Packed, three bytes per pixel, blue first.
    Bgr,
    /// Packed, four bytes per pixel, alpha last.
    Rgba,
    /// Packed, four bytes per pixel, blue first, the last byte unused or alpha.
    Bgrx,
}

/// Location of a plane's samples in the frame's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Byte offset of the first sample.
    pub offset: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// Linear combination of R, G and B that forms luma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorMatrix {
    /// ITU-R BT.601, standard definition.
    Bt601,
    /// ITU-R BT.709, high definition.
    Bt709,
    /// ITU-R BT.2020, ultra high definition.
    Bt2020,
}

/// How YUV samples map to RGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColorTags {
    /// Luma coefficients.
    pub matrix: ColorMatrix,
    /// True if luma spans 0–255, false if it spans 16–235.
    pub full_range: bool,
}

/// Coding of light in a high dynamic range picture (ITU-R BT.2100).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hdr {
    /// Transfer function.
    pub transfer: Transfer,
    /// Peak luminance in cd/m²; variable only for PQ.
    pub peak_nits: u32,
}

/// Transfer function from light to code values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Perceptual quantizer, SMPTE ST 2084.
    Pq,
    /// Hybrid log-gamma, ARIB STD-B67.
    Hlg,
}

/// Everything needed to find and read the samples of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PixelLayout {
    /// Order and subsampling of the samples.
    pub format: PixelFormat,
    /// Size in pixels.
    pub size: FrameSize,
    /// One entry per plane: three for I420 of either depth, two for NV12, one for packed formats.
    pub planes: Vec<Plane>,
    /// Meaning of the samples; ignored for RGB formats.
    pub color: ColorTags,
    /// Coding of light, if the picture has a high dynamic range.
    pub hdr: Option<Hdr>,
    /// Pixel aspect ratio, as width and height.
    pub pixel_aspect: (u32, u32),
}

impl PixelLayout {
    /// Contiguous planes without padding, square pixels, limited-range BT.709.
    pub fn packed(format: PixelFormat, size: FrameSize) -> Self {
        let FrameSize {
            width_px: w,
            height_px: h,
        } = size;
        let (half_w, half_h) = (w.div_ceil(2), h.div_ceil(2));
        let plane = |offset, stride| Plane { offset, stride };
        let planes = match format {
            PixelFormat::I420 => vec![
                plane(0, w),
                plane(w * h, half_w),
                plane(w * h + half_w * half_h, half_w),
            ],
            PixelFormat::I420Deep => vec![
                plane(0, 2 * w),
                plane(2 * w * h, 2 * half_w),
                plane(2 * (w * h + half_w * half_h), 2 * half_w),
            ],
            PixelFormat::Nv12 => vec![plane(0, w), plane(w * h, 2 * half_w)],
            PixelFormat::Rgb | PixelFormat::Bgr => vec![plane(0, 3 * w)],
            PixelFormat::Rgba | PixelFormat::Bgrx => vec![plane(0, 4 * w)],
        };
        Self {
            format,
            size,
            planes,
            color: ColorTags {
                matrix: ColorMatrix::Bt709,
                full_range: false,
            },
            hdr: None,
            pixel_aspect: (1, 1),
        }
    }

    /// The same format and interpretation at another size, with contiguous planes without padding.
    pub fn resized(&self, size: FrameSize) -> Self {
        Self {
            color: self.color,
            hdr: self.hdr,
            pixel_aspect: self.pixel_aspect,
            ..Self::packed(self.format, size)
        }
    }

    /// Bytes between consecutive samples of the same kind in plane `plane_idx`.
    pub fn sample_len(&self, plane_idx: usize) -> usize {
        match (self.format, plane_idx) {
            (PixelFormat::Rgb | PixelFormat::Bgr, _) => 3,
            (PixelFormat::Rgba | PixelFormat::Bgrx, _) => 4,
            (PixelFormat::Nv12, 1) | (PixelFormat::I420Deep, _) => 2,
            (PixelFormat::I420 | PixelFormat::Nv12, _) => 1,
        }
    }

    /// Number of rows in plane `plane_idx`, and number of bytes in each row without padding.
    pub fn plane_extent(&self, plane_idx: usize) -> (usize, usize) {
        let FrameSize {
            width_px: w,
            height_px: h,
        } = self.size;
        match (self.format, plane_idx) {
            (PixelFormat::I420 | PixelFormat::Nv12, 0) => (h, w),
            (PixelFormat::I420, _) => (h.div_ceil(2), w.div_ceil(2)),
            (PixelFormat::I420Deep, 0) => (h, 2 * w),
            (PixelFormat::I420Deep, _) => (h.div_ceil(2), 2 * w.div_ceil(2)),
            (PixelFormat::Nv12, _) => (h.div_ceil(2), 2 * w.div_ceil(2)),
            (PixelFormat::Rgb | PixelFormat::Bgr, _) => (h, 3 * w),
            (PixelFormat::Rgba | PixelFormat::Bgrx, _) => (h, 4 * w),
        }
    }

    /// Minimum size of a buffer with this layout, in bytes.
    pub fn min_len(&self) -> usize {
        (0..self.planes.len())
            .map(|plane_idx| {
                let (rows, row_len) = self.plane_extent(plane_idx);
                let Plane { offset, stride } = self.planes[plane_idx];
                if rows == 0 {
                    offset
                } else {
                    offset + (rows - 1) * stride + row_len
                }
            })
            .max()
            .unwrap_or(0)
    }
}

/// The memory behind a frame.
pub trait Pixels: Send {
    /// All planes, for reading.
    fn bytes(&self) -> &[u8];

    /// All planes, for modification in place; copied only if the memory is shared.
    ///
    /// # Errors
    /// Fails if the memory cannot be made writable.
    fn bytes_mut(&mut self) -> Result<&mut [u8]>;

    /// Returns the memory to a consumer that knows its concrete type.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl Pixels for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        Ok(self)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// A decoded frame, in the decoder's own pixel format and memory.
pub struct Frame {
    /// Position in the stream, from 0, without gaps.
    pub seq: u64,
    /// Presentation timestamp; unchanged throughout the pipeline.
    pub pts: Pts,
    /// Duration, if the source specifies it.
    pub duration: Option<Duration>,
    /// Interpretation of the bytes.
    pub layout: Arc<PixelLayout>,
    pixels: Box<dyn Pixels>,
}

impl Frame {
    /// Creates a frame from `pixels`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `pixels` is shorter than `layout` requires.
    pub fn new(
        seq: u64,
        pts: Pts,
        duration: Option<Duration>,
        layout: Arc<PixelLayout>,
        pixels: Box<dyn Pixels>,
    ) -> Result<Self> {
        let (need, have) = (layout.min_len(), pixels.bytes().len());
        if have < need {
            return Err(Error::Shape {
                expected: format!("at least {need} bytes for {layout:?}"),
                got: format!("{have} bytes"),
            });
        }
        Ok(Self {
            seq,
            pts,
            duration,
            layout,
            pixels,
        })
    }

    /// Creates a frame with other pixels, but the same position and timing.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn redrawn(&self, layout: PixelLayout, bytes: Vec<u8>) -> Result<Self> {
        let (layout, pixels) = (Arc::new(layout), Box::new(bytes));
        Self::new(self.seq, self.pts, self.duration, layout, pixels)
    }

    /// Size in pixels.
    pub fn size(&self) -> FrameSize {
        self.layout.size
    }

    /// All planes, for reading.
    pub fn bytes(&self) -> &[u8] {
        self.pixels.bytes()
    }

    /// All planes, for modification in place.
    ///
    /// # Errors
    /// Fails if the memory cannot be made writable.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        self.pixels.bytes_mut()
    }

    /// Returns the memory, for a sink that knows its concrete type.
    pub fn into_pixels(self) -> Box<dyn Pixels> {
        self.pixels
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("seq", &self.seq)
            .field("pts", &self.pts)
            .field("duration", &self.duration)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}
