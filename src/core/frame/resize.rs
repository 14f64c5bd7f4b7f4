//! Resizes frames with strided pixels to 8-bit RGB at the model's size.
//!
//! Filters, their order (rows first, then columns) and the 8-bit intermediate match PIL, so that the model's input
//! matches that of its preprocessor. The crop of a [`ResizeRule`] is not cut from a fully resized picture. Only the
//! cropped pixels are computed, with the filter still reading neighbors across the crop's edge, which gives the same
//! values for less work.
//!
//! Planes are resized in the frame's own format and converted to RGB at the model's size, with the frame's matrix and
//! range. Chroma is assumed to be sited at the center of its 2 x 2 pixels. Most video sites it half a frame pixel
//! further left, but frames do not specify this. Relative to a patch several frame pixels wide, half a pixel of chroma
//! is negligible.

use fast_image_resize as fir;
use fir::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fir::pixels::{U8, U8x2, U8x3, U8x4};

use super::depth::Narrower;
use super::placement::{Placement, ResizeRule};
use super::{Frame, FrameSize, PixelFormat, rows};
use crate::error::{Error, Result};

/// Resampling filter, named and defined as in PIL: antialiased when downscaling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resampling {
    /// The sample nearest to the center.
    Nearest,
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Cubic filter with a = -1/2.
    Bicubic,
    /// Lanczos filter with three lobes.
    Lanczos,
}

/// Resizes frames to the model's size; reuses its scratch memory across frames.
pub struct Resizer {
    rule: ResizeRule,
    narrower: Narrower,
    scaler: Scaler,
}

impl Resizer {
    /// Creates a resizer for one model.
    pub fn new(rule: ResizeRule, resampling: Resampling) -> Self {
        Self {
            rule,
            narrower: Narrower::default(),
            scaler: Scaler {
                resampling,
                inner: fir::Resizer::new(),
                tight: Vec::new(),
                between: Vec::new(),
            },
        }
    }

    /// The model's image of `frame`, and its placement in the frame.
    ///
    /// # Shapes
    /// Returns `[height, width, 3]` bytes, red first, of [`ResizeRule::image_size`].
    ///
    /// # Errors
    /// [`Error::Shape`] if the frame has no pixels or its planes do not match its format.
    pub fn rgb_from_frame(&mut self, frame: &Frame) -> Result<(Vec<u8>, Placement)> {
        rows::check(&frame.layout)?;
        let narrowed;
        let frame = match frame.layout.format {
            PixelFormat::I420Deep => {
                narrowed = self.narrower.narrow(frame)?;
                &narrowed
            }
            _ => frame,
        };
        let placement = Placement::new(&self.rule, frame.size())?;
        let (horizontal, vertical) = self.rule.axes(frame.size())?;
        let ((left, shown_width), (top, shown_height)) = (horizontal.shown(), vertical.shown());
        let ((x, region_width), (y, region_height)) =
            (horizontal.shown_region(), vertical.shown_region());
        let shown = FrameSize {
            width_px: shown_width,
            height_px: shown_height,
        };
        let window = Window {
            left: x,
            top: y,
            width: region_width,
            height: region_height,
        };
        let rgb = self.scaler.rgb(frame, window, shown)?;

        if shown == placement.image {
            return Ok((rgb, placement));
        }
        let FrameSize {
            width_px,
            height_px,
        } = placement.image;
        let mut image = vec![0; width_px * height_px * 3];
        for (row, shown_row) in image
            .chunks_exact_mut(3 * width_px)
            .skip(top)
            .zip(rgb.chunks_exact(3 * shown_width))
        {
            row[3 * left..3 * (left + shown_width)].copy_from_slice(shown_row);
        }
        Ok((image, placement))
    }
}

/// The part of a plane to resize, in samples of the plane.
#[derive(Clone, Copy)]
struct Window {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Window {
    /// The same part in a plane of half the size.
    fn halved(self) -> Self {
        Self {
            left: self.left / 2.0,
            top: self.top / 2.0,
            width: self.width / 2.0,
            height: self.height / 2.0,
        }
    }
}

/// Resizes single planes.
struct Scaler {
    resampling: Resampling,
    inner: fir::Resizer,
    /// Rows without padding, if the padding prevents reading them in place.
    tight: Vec<u8>,
    /// Intermediate result, with only the rows resized.
    between: Vec<u8>,
}

impl Scaler {
    /// Resizes `window` of the frame to RGB of size `to`.
    fn rgb(&mut self, frame: &Frame, window: Window, to: FrameSize) -> Result<Vec<u8>> {
        match frame.layout.format {
            PixelFormat::Rgb => self.plane::<U8x3>(frame, 0, window, to),
            PixelFormat::Bgr => {
                let mut rgb = self.plane::<U8x3>(frame, 0, window, to)?;
                rgb.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
                Ok(rgb)
            }
            PixelFormat::Rgba => Ok(self
                .plane::<U8x4>(frame, 0, window, to)?
                .chunks_exact(4)
                .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
                .collect()),
            PixelFormat::Bgrx => Ok(self
                .plane::<U8x4>(frame, 0, window, to)?
                .chunks_exact(4)
                .flat_map(|pixel| [pixel[2], pixel[1], pixel[0]])
                .collect()),
            PixelFormat::I420Deep => Err(Error::Shape {
                expected: "an 8-bit picture".into(),
                got: "10 bits".into(),
            }),
            PixelFormat::I420 => {
                let luma = self.plane::<U8>(frame, 0, window, to)?;
                let u = self.plane::<U8>(frame, 1, window.halved(), to)?;
                let v = self.plane::<U8>(frame, 2, window.halved(), to)?;
                let convert = frame.layout.color.rgb_from_yuv();
                Ok(luma
                    .iter()
                    .zip(u.iter().zip(&v))
                    .flat_map(|(&y, (&u, &v))| convert.convert(y, u, v))
                    .collect())
            }
            PixelFormat::Nv12 => {
                let luma = self.plane::<U8>(frame, 0, window, to)?;
                let uv = self.plane::<U8x2>(frame, 1, window.halved(), to)?;
                let convert = frame.layout.color.rgb_from_yuv();
                Ok(luma
                    .iter()
                    .zip(uv.chunks_exact(2))
                    .flat_map(|(&y, uv)| convert.convert(y, uv[0], uv[1]))
                    .collect())
            }
        }
    }

    /// Resizes `window` of one plane to `to`; the result contains contiguous samples of type `P`.
    fn plane<P: fir::PixelTrait>(
        &mut self,
        frame: &Frame,
        plane_idx: usize,
        window: Window,
        to: FrameSize,
    ) -> Result<Vec<u8>> {
        let layout = &frame.layout;
        let sample_len = P::size();
        let (n_rows, row_len) = layout.plane_extent(plane_idx);
        let plane = layout.planes[plane_idx];

        // The resizer steps by whole samples and requires the last row to be as long as the others.
        let in_place = frame
            .bytes()
            .get(plane.offset..)
            .and_then(|bytes| bytes.get(..plane.stride.checked_mul(n_rows)?))
            .filter(|_| plane.stride.is_multiple_of(sample_len) && plane.stride >= row_len);
        let (bytes, stride) = match in_place {
            Some(bytes) => (bytes, plane.stride),
            None => {
                self.tight.clear();
                for row in rows::rows(frame.bytes(), layout, plane_idx) {
                    self.tight.extend_from_slice(row);
                }
                (self.tight.as_slice(), row_len)
            }
        };

        let (width, height) = (count(row_len / sample_len)?, count(n_rows)?);
        let (to_width, to_height) = (count(to.width_px)?, count(to.height_px)?);
        let padded = TypedImageRef::<P>::from_buffer(count(stride / sample_len)?, height, bytes)
            .map_err(unfit)?;
        // The filter must not read the padding, so this uses a view instead of a crop box.
        let view = TypedCroppedImage::from_ref(&padded, 0, 0, width, height).map_err(unfit)?;

        let mut resized = vec![0; to.width_px * to.height_px * sample_len];
        let filter = match self.resampling {
            Resampling::Nearest => None,
            Resampling::Bilinear => Some(fir::FilterType::Bilinear),
            Resampling::Bicubic => Some(fir::FilterType::CatmullRom),
            Resampling::Lanczos => Some(fir::FilterType::Lanczos3),
        };
        let options = fir::ResizeOptions::new()
            .resize_alg(filter.map_or(fir::ResizeAlg::Nearest, fir::ResizeAlg::Convolution))
            .use_alpha(false);
        let mut target =
            TypedImage::<P>::from_buffer(to_width, to_height, &mut resized).map_err(unfit)?;
        let Window {
            left,
            top,
            width: window_width,
            height: window_height,
        } = window;

        if filter.is_none() {
            let options = options.crop(left, top, window_width, window_height);
            self.inner
                .resize_typed(&view, &mut target, &options)
                .map_err(unfit)?;
            return Ok(resized);
        }
        // A single call would resize columns first. PIL resizes rows first, and rounding and clipping in between differ
        // by several levels at sharp edges.
        self.between.resize(to.width_px * n_rows * sample_len, 0);
        let mut between =
            TypedImage::<P>::from_buffer(to_width, height, &mut self.between).map_err(unfit)?;
        let rows_only = options.crop(left, 0.0, window_width, f64::from(height));
        self.inner
            .resize_typed(&view, &mut between, &rows_only)
            .map_err(unfit)?;
        let columns_only = options.crop(0.0, top, f64::from(to_width), window_height);
        self.inner
            .resize_typed(&between, &mut target, &columns_only)
            .map_err(unfit)?;
        Ok(resized)
    }
}

/// Converts a length to the resizer's type.
fn count(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(unfit)
}

/// Error for a picture whose size the resizer rejects.
fn unfit(error: impl std::fmt::Display) -> Error {
    Error::Shape {
        expected: "a picture that can be resized".into(),
        got: error.to_string(),
    }
}
