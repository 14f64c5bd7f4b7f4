//! A GStreamer buffer as a [`Frame`]: mapped, written in place if not shared, and passed on without a copy.

use std::any::Any;
use std::sync::Arc;

use gstreamer as gst;
use gstreamer_video as gst_video;
use gstreamer_video::{VideoColorMatrix, VideoColorRange, VideoFormat};

use vitscope_core::error::{Error, Result};
use vitscope_core::frame::{
    ColorMatrix, ColorTags, Frame, FrameSize, PixelFormat, PixelLayout, Pixels, Plane, Pts,
};

/// Formats of 8-bit frames; other formats are first converted to one of these.
pub(super) const FORMATS: [VideoFormat; 2] = [VideoFormat::I420, VideoFormat::Nv12];
/// Format of frames with more bits.
pub(super) const DEEP: VideoFormat = VideoFormat::I42010le;

/// A mapped buffer.
pub(super) enum BufferPixels {
    /// Read-only, as received from the decoder.
    Shared(gst::MappedBuffer<gst::buffer::Readable>),
    /// Writable.
    Own(gst::MappedBuffer<gst::buffer::Writable>),
    /// Intermediate state, also after a failed mapping.
    Unmapped,
}

impl BufferPixels {
    /// Maps `buffer` for reading.
    pub(super) fn new(buffer: gst::Buffer) -> Result<Self> {
        match buffer.into_mapped_buffer_readable() {
            Ok(mapped) => Ok(Self::Shared(mapped)),
            Err(_) => Err(Error::Media(
                "cannot map a decoded frame for reading".into(),
            )),
        }
    }

    /// Returns the buffer.
    pub(super) fn into_buffer(self) -> Option<gst::Buffer> {
        match self {
            Self::Shared(mapped) => Some(mapped.into_buffer()),
            Self::Own(mapped) => Some(mapped.into_buffer()),
            Self::Unmapped => None,
        }
    }
}

impl Pixels for BufferPixels {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(mapped) => mapped.as_slice(),
            Self::Own(mapped) => mapped.as_slice(),
            Self::Unmapped => &[],
        }
    }

    fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        if let Self::Shared(_) = self {
            let Self::Shared(mapped) = std::mem::replace(self, Self::Unmapped) else {
                return Err(unmapped());
            };
            let mut buffer = mapped.into_buffer();
            // Copies only if the decoder still holds the buffer as a reference frame.
            buffer.make_mut();
            *self = Self::Own(
                buffer
                    .into_mapped_buffer_writable()
                    .map_err(|_| Error::Media("cannot map a decoded frame for writing".into()))?,
            );
        }
        match self {
            Self::Own(mapped) => Ok(mapped.as_mut_slice()),
            _ => Err(unmapped()),
        }
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

fn unmapped() -> Error {
    Error::Media("a decoded frame is no longer mapped".into())
}

/// Wraps a buffer with caps `info` as the frame of number `seq`. A buffer without a timestamp gets timestamp zero.
///
/// # Errors
/// [`Error::Media`] if the format is none of [`PixelFormat`] or the buffer cannot be mapped, [`Error::Shape`] if it is
/// too short.
pub fn frame_from_buffer(
    seq: u64,
    buffer: gst::Buffer,
    info: &gst_video::VideoInfo,
) -> Result<Frame> {
    let layout = Arc::new(layout(info, &buffer)?);
    let pts = Pts(buffer.pts().map_or(0, gst::ClockTime::nseconds));
    let duration = buffer.duration().map(Into::into);
    let pixels = BufferPixels::new(buffer)?;
    Frame::new(seq, pts, duration, layout, Box::new(pixels))
}

/// Returns the buffer of a frame from [`frame_from_buffer`], with all of its metadata.
///
/// # Errors
/// [`Error::Media`] if the frame is of another origin.
pub fn buffer_from_frame(frame: Frame) -> Result<gst::Buffer> {
    let pixels = frame.into_pixels().into_any().downcast::<BufferPixels>();
    pixels
        .ok()
        .and_then(|pixels| pixels.into_buffer())
        .ok_or_else(unmapped)
}

/// Returns the layout of `buffer`, whose caps are `info`.
///
/// A buffer's own [`VideoMeta`](gst_video::VideoMeta) takes precedence over the caps: decoders pad their rows.
pub(super) fn layout(info: &gst_video::VideoInfo, buffer: &gst::BufferRef) -> Result<PixelLayout> {
    let format = match info.format() {
        VideoFormat::I420 => PixelFormat::I420,
        DEEP => PixelFormat::I420Deep,
        VideoFormat::Nv12 => PixelFormat::Nv12,
        VideoFormat::Rgb => PixelFormat::Rgb,
        VideoFormat::Bgr => PixelFormat::Bgr,
        VideoFormat::Rgba => PixelFormat::Rgba,
        VideoFormat::Bgrx => PixelFormat::Bgrx,
        other => {
            return Err(Error::Media(format!(
                "frames must be I420, NV12, RGB, BGR, RGBA or BGRx, not {other:?}"
            )));
        }
    };
    let meta = buffer.meta::<gst_video::VideoMeta>();
    let (offsets, strides) = match &meta {
        Some(meta) => (meta.offset(), meta.stride()),
        None => (info.offset(), info.stride()),
    };
    let planes = offsets
        .iter()
        .zip(strides)
        .map(|(&offset, &stride)| {
            let stride = usize::try_from(stride)
                .map_err(|_| Error::Media(format!("a frame has a negative stride: {stride}")))?;
            Ok(Plane { offset, stride })
        })
        .collect::<Result<_>>()?;
    let par = info.par();
    Ok(PixelLayout {
        format,
        size: FrameSize {
            width_px: info.width() as usize,
            height_px: info.height() as usize,
        },
        planes,
        color: color_tags(info),
        hdr: None,
        pixel_aspect: (par.numer().max(1) as u32, par.denom().max(1) as u32),
    })
}

fn color_tags(info: &gst_video::VideoInfo) -> ColorTags {
    let colorimetry = info.colorimetry();
    let matrix = match colorimetry.matrix() {
        VideoColorMatrix::Unknown | VideoColorMatrix::Rgb => usual_matrix(info.height()),
        matrix => matrix,
    };
    ColorTags {
        matrix: match matrix {
            VideoColorMatrix::Bt709 => ColorMatrix::Bt709,
            VideoColorMatrix::Bt2020 => ColorMatrix::Bt2020,
            _ => ColorMatrix::Bt601,
        },
        full_range: colorimetry.range() == VideoColorRange::Range0_255,
    }
}

/// Returns the color matrix of video that does not state one: by convention BT.601 in standard definition, BT.709
/// above.
pub(super) fn usual_matrix(height: u32) -> VideoColorMatrix {
    if height <= 576 {
        VideoColorMatrix::Bt601
    } else {
        VideoColorMatrix::Bt709
    }
}

/// Returns the caps of raw frames in `layout`.
///
/// # Errors
/// Fails if the frame is larger than GStreamer can represent.
pub(super) fn caps(
    layout: &PixelLayout,
    framerate: gst::Fraction,
    colorimetry: &gst_video::VideoColorimetry,
) -> Result<gst::Caps> {
    let side = |px: usize| {
        i32::try_from(px)
            .map_err(|_| Error::Media(format!("a frame dimension of {px} px is too large")))
    };
    let (par_n, par_d) = layout.pixel_aspect;
    let par = gst::Fraction::new(
        i32::try_from(par_n).unwrap_or(1),
        i32::try_from(par_d).unwrap_or(1).max(1),
    );
    let mut caps = gst::Caps::builder("video/x-raw")
        .field("format", gst_format(layout.format).to_str())
        .field("width", side(layout.size.width_px)?)
        .field("height", side(layout.size.height_px)?)
        .field("framerate", framerate)
        .field("pixel-aspect-ratio", par)
        .field("interlace-mode", "progressive");
    let format = layout.format;
    if matches!(
        format,
        PixelFormat::I420 | PixelFormat::I420Deep | PixelFormat::Nv12
    ) {
        caps = caps.field("colorimetry", colorimetry.to_string());
    }
    Ok(caps.build())
}

fn gst_format(format: PixelFormat) -> VideoFormat {
    match format {
        PixelFormat::I420 => VideoFormat::I420,
        PixelFormat::I420Deep => DEEP,
        PixelFormat::Nv12 => VideoFormat::Nv12,
        PixelFormat::Rgb => VideoFormat::Rgb,
        PixelFormat::Bgr => VideoFormat::Bgr,
        PixelFormat::Rgba => VideoFormat::Rgba,
        PixelFormat::Bgrx => VideoFormat::Bgrx,
    }
}

/// Converts `pixels` to a buffer with metadata for its row layout.
///
/// Neither the buffer of a [`BufferPixels`] nor a `Vec<u8>` is copied.
///
/// # Errors
/// [`Error::Media`] if the pixels are backed by anything else.
pub(super) fn into_buffer(
    pixels: Box<dyn Pixels>,
    layout: &Arc<PixelLayout>,
) -> Result<gst::Buffer> {
    let mut buffer = match pixels.into_any().downcast::<BufferPixels>() {
        Ok(own) => own.into_buffer().ok_or_else(unmapped)?,
        Err(other) => match other.downcast::<Vec<u8>>() {
            Ok(bytes) => gst::Buffer::from_mut_slice(*bytes),
            Err(_) => {
                return Err(Error::Media(
                    "the sink accepts only frames from its own source or backed by a `Vec<u8>`"
                        .into(),
                ));
            }
        },
    };
    let stale = buffer.meta::<gst_video::VideoMeta>().is_none_or(|meta| {
        meta.width() as usize != layout.size.width_px
            || meta.height() as usize != layout.size.height_px
    });
    if stale {
        attach_meta(buffer.make_mut(), layout)?;
    }
    Ok(buffer)
}

fn attach_meta(buffer: &mut gst::BufferRef, layout: &PixelLayout) -> Result<()> {
    if let Some(meta) = buffer.meta_mut::<gst_video::VideoMeta>() {
        let _ = meta.remove();
    }
    let offsets: Vec<usize> = layout.planes.iter().map(|plane| plane.offset).collect();
    let strides: Vec<i32> = layout
        .planes
        .iter()
        .map(|plane| i32::try_from(plane.stride).unwrap_or(i32::MAX))
        .collect();
    gst_video::VideoMeta::add_full(
        buffer,
        gst_video::VideoFrameFlags::empty(),
        gst_format(layout.format),
        layout.size.width_px as u32,
        layout.size.height_px as u32,
        &offsets,
        &strides,
    )
    .map_err(|err| Error::Media(format!("cannot describe a frame to the encoder: {err}")))?;
    Ok(())
}
