//! Conversion of decoder output to video that frames can hold: progressive, opaque and of standard dynamic range.
//!
//! ```text
//! decoder ! (colors completed) videoconvert ! formats ! (made plain, in place) videoflip ! videoconvert ! I420 or NV12
//! ```
//!
//! Only the decoder knows the color description of a bitstream. GStreamer 1.22 discards all of it, including the range,
//! if the matrix is missing, so the gaps are filled before any element reads it.

use std::sync::{Arc, Mutex};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;
use gstreamer_video::prelude::*;
use gstreamer_video::{
    VideoBufferFlags, VideoColorMatrix, VideoColorPrimaries, VideoColorRange, VideoColorimetry,
    VideoFieldOrder, VideoFormat, VideoInfo, VideoInterlaceMode, VideoTransferFunction,
};

use super::bus::Failure;
use super::deinterlace::{FirstField, deinterlace, deinterlace_deep};
use super::opaque::over_black;
use super::pixels::{self, DEEP};
use super::session::lock;
use super::tap::Tap;
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::tone_map::{DeepPlane, ToneMap, USUAL_PEAK_NITS};
use vitscope_core::frame::{Hdr, Transfer};

/// The input's color description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Described {
    #[default]
    Nothing,
    /// Only that code values span 0–255 (full range).
    Range,
    /// More than the range.
    Colors,
}

/// Properties of a stream that are not in its decoder's caps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// True for VP8, which is BT.601 by definition (RFC 6386, section 9.2).
    pub(super) is_vp8: bool,
    /// True if the container states that code values span 0–255 (full range), which GStreamer 1.22 does not read.
    pub(super) is_full_range: bool,
    /// True if alpha is stored separately from the video, which not every decoder reads.
    pub(super) has_alpha_beside: bool,
}

/// Properties beyond plain video that frames keep.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// Up to 10 bits per sample.
    pub(super) depth: bool,
    /// High dynamic range.
    pub(super) hdr: bool,
}

/// Completes the colors of the input of `raw`, and makes `filter` pass the formats that can be made plain.
pub(super) fn describe(
    raw: &gst::Pad,
    filter: &gst::Element,
    origin: Origin,
    kept: Kept,
    tap: &Arc<Tap>,
) {
    let filter = filter.downgrade();
    let tap = Arc::clone(tap);
    raw.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(event) = info.event()
            && let gst::EventView::Caps(caps) = event.view()
            && let Ok(decoded) = VideoInfo::from_caps(caps.caps())
        {
            let (colors, described) = completed(caps.caps(), &decoded, origin);
            tap.describe(described);
            match (decoded.comp_depth(0), hdr_transfer(&colors)) {
                (9.., _) if decoded.has_alpha() => tap.say(
                    "the video has more than 8 bits per sample and transparency, writing 8 bits",
                ),
                (9.., None) if !kept.depth => tap.say(
                    "the video has more than 8 bits per sample, writing 8; a 10-bit encoder \
                     (`--codec x265`, vp9 in WebM) keeps 10",
                ),
                (11.., _) if kept.depth => {
                    tap.say("the video has more than 10 bits per sample, writing 10");
                }
                _ => {}
            }
            if origin.has_alpha_beside && !decoded.has_alpha() {
                tap.say("the video has transparency, which is dropped");
            }
            if let Some(sentence) = halved_colors(&decoded) {
                tap.say(sentence);
            }
            if let Some(filter) = filter.upgrade() {
                filter.set_property("caps", wanted(&decoded, &colors, kept));
            }
            if !decoded.is_rgb() {
                let mut caps = caps.caps_owned();
                caps.make_mut().set("colorimetry", colors.to_string());
                info.data = Some(gst::PadProbeData::Event(gst::event::Caps::new(&caps)));
            }
        }
        gst::PadProbeReturn::Ok
    });
}

/// Warns users about chroma that GStreamer's JPEG decoder silently discards, if the video of `caps` arrives through
/// `stored`.
pub(super) fn tell_of_lost_colors(stored: &gst::Pad, caps: &gst::CapsRef, tap: &Arc<Tap>) {
    let is_jpeg = caps
        .structure(0)
        .is_some_and(|fields| fields.name() == "image/jpeg");
    if !is_jpeg {
        return;
    }
    let tap = Arc::clone(tap);
    stored.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let Some(Ok(picture)) = info.buffer().map(|buffer| buffer.map_readable()) else {
            return gst::PadProbeReturn::Ok;
        };
        match sampling_of_jpeg(&picture) {
            Some((1, 1)) => tap.say(HALVED_BOTH_WAYS),
            Some((2, 1)) => tap.say(HALVED_IN_HEIGHT),
            _ => {}
        }
        gst::PadProbeReturn::Remove
    });
}

/// Returns the horizontal and vertical number of luma samples per chroma sample of a JPEG image (ITU-T T.81, B.2.2).
fn sampling_of_jpeg(picture: &[u8]) -> Option<(u8, u8)> {
    const BASELINE: u8 = 0xc0;
    const PROGRESSIVE: u8 = 0xc2;
    let mut rest = picture.strip_prefix(&[0xff, 0xd8])?;
    loop {
        let [0xff, kind, high, low, ..] = *rest else {
            return None;
        };
        if (BASELINE..=PROGRESSIVE).contains(&kind) {
            // Size and number of components, and three bytes of each component.
            let components = rest.get(9..)?;
            let [3, _, brightness, _, _, color, ..] = *components else {
                return None;
            };
            let per_color = |shift: u32| {
                let factor = |factors: u8| factors >> shift & 0xf;
                factor(brightness).checked_div(factor(color))
            };
            return per_color(4).zip(per_color(0));
        }
        rest = rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..)?;
    }
}

const HALVED_BOTH_WAYS: &str =
    "the video is 4:4:4, writing 4:2:0: color at half the width and height";
const HALVED_IN_HEIGHT: &str = "the video is 4:2:2, writing 4:2:0: color at half the height";

/// Returns the warning for video with more chroma than 4:2:0.
fn halved_colors(decoded: &VideoInfo) -> Option<&'static str> {
    let format = decoded.format_info();
    let n_colors = format.n_components() - u32::from(format.has_alpha());
    if n_colors < 3 {
        return None;
    }
    if format.is_rgb() {
        return Some("the video is RGB, writing 4:2:0: color at half the width and height");
    }
    match (format.w_sub().get(1), format.h_sub().get(1)) {
        (Some(0), Some(0)) => Some(HALVED_BOTH_WAYS),
        (Some(1), Some(0)) => Some(HALVED_IN_HEIGHT),
        _ => None,
    }
}

/// Returns the colors of video of `caps` with all gaps filled, and which of them were signaled.
fn completed(
    caps: &gst::CapsRef,
    decoded: &VideoInfo,
    origin: Origin,
) -> (VideoColorimetry, Described) {
    if decoded.is_rgb() {
        return (decoded.colorimetry(), Described::Colors);
    }
    let said = caps
        .structure(0)
        .and_then(|fields| fields.get::<&str>("colorimetry").ok())
        .and_then(|said| said.parse::<VideoColorimetry>().ok());
    let unknown = VideoColorimetry::new(
        VideoColorRange::Unknown,
        VideoColorMatrix::Unknown,
        VideoTransferFunction::Unknown,
        VideoColorPrimaries::Unknown,
    );
    let said = said.unwrap_or(unknown);
    let range = match said.range() {
        VideoColorRange::Range0_255 => VideoColorRange::Range0_255,
        _ if origin.is_full_range => VideoColorRange::Range0_255,
        // Gray has black at zero unless stated otherwise.
        VideoColorRange::Unknown if decoded.is_gray() => VideoColorRange::Range0_255,
        _ => VideoColorRange::Range16_235,
    };
    let (matrix, is_matrix_said) = match said.matrix() {
        VideoColorMatrix::Unknown if origin.is_vp8 => (VideoColorMatrix::Bt601, true),
        VideoColorMatrix::Unknown => (pixels::usual_matrix(decoded.height()), false),
        matrix => (matrix, true),
    };
    let described = if is_matrix_said
        || said.transfer() != VideoTransferFunction::Unknown
        || said.primaries() != VideoColorPrimaries::Unknown
    {
        Described::Colors
    } else if range == VideoColorRange::Range0_255 {
        Described::Range
    } else {
        Described::Nothing
    };
    let colors = VideoColorimetry::new(range, matrix, said.transfer(), said.primaries());
    (colors, described)
}

/// Returns the caps of the plain video made from `decoded` video.
fn wanted(decoded: &VideoInfo, colors: &VideoColorimetry, kept: Kept) -> gst::Caps {
    let caps = gst::Caps::builder("video/x-raw");
    let mut caps = if hdr_transfer(colors).is_some() {
        caps.field("format", DEEP.to_str())
    } else if decoded.has_alpha() {
        caps.field("format", SEE_THROUGH.to_str())
    } else if kept.depth && decoded.comp_depth(0) > 8 {
        caps.field("format", DEEP.to_str())
    } else {
        caps.field(
            "format",
            gst::List::new(pixels::FORMATS.map(VideoFormat::to_str)),
        )
    };
    if decoded.is_rgb() {
        let colors = VideoColorimetry::new(
            VideoColorRange::Range16_235,
            pixels::usual_matrix(decoded.height()),
            colors.transfer(),
            colors.primaries(),
        );
        caps = caps.field("colorimetry", colors.to_string());
    }
    caps.build()
}

/// Format in which video with alpha is composited over black.
const SEE_THROUGH: VideoFormat = VideoFormat::Ayuv;

fn hdr_transfer(colors: &VideoColorimetry) -> Option<Transfer> {
    match colors.transfer() {
        VideoTransferFunction::Smpte2084 => Some(Transfer::Pq),
        VideoTransferFunction::AribStdB67 => Some(Transfer::Hlg),
        _ => None,
    }
}

/// Returns the HDR parameters of video of `caps`, if it has a high dynamic range.
pub(super) fn hdr_of(caps: &gst::CapsRef, info: &VideoInfo) -> Option<Hdr> {
    let transfer = hdr_transfer(&info.colorimetry()).filter(|_| info.format() == DEEP)?;
    Some(Hdr {
        transfer,
        peak_nits: peak_nits(caps),
    })
}

/// Makes frames that pass `pad` plain in place, except for the properties in `kept`.
pub(super) fn make_plain(pad: &gst::Pad, kept: Kept, tap: &Arc<Tap>) {
    let plain: Mutex<Option<Plain>> = Mutex::new(None);
    let tap = Arc::clone(tap);
    let kinds = gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::BUFFER;
    pad.add_probe(kinds, move |_, info| {
        match &mut info.data {
            Some(gst::PadProbeData::Event(event)) => {
                if let gst::EventView::Caps(caps) = event.view()
                    && let Ok(source) = VideoInfo::from_caps(caps.caps())
                {
                    let made = Plain::new(source, caps.caps(), kept, &tap);
                    let caps = made.caps(caps.caps_owned());
                    *lock(&plain) = Some(made);
                    *event = gst::event::Caps::new(&caps);
                }
            }
            Some(gst::PadProbeData::Buffer(buffer)) => {
                if let Some(plain) = &*lock(&plain)
                    && let Err(err) = plain.apply(buffer, &tap)
                {
                    tap.shared.fail(Failure::new(err.to_string()));
                }
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Converter that makes frames of one format plain.
struct Plain {
    source: VideoInfo,
    tone_map: Option<ToneMap>,
}

impl Plain {
    fn new(source: VideoInfo, caps: &gst::CapsRef, kept: Kept, tap: &Tap) -> Self {
        let hdr = hdr_of(caps, &source).filter(|_| !kept.hdr);
        if let Some(Hdr { transfer, .. }) = hdr {
            tap.say(match transfer {
                Transfer::Pq => "the video is HDR (PQ), tone-mapping it to SDR",
                Transfer::Hlg => "the video is HDR (HLG), tone-mapping it to SDR",
            });
        }
        let is_full_range = source.colorimetry().range() == VideoColorRange::Range0_255;
        Self {
            source,
            tone_map: hdr.map(|hdr| ToneMap::new(hdr, is_full_range)),
        }
    }

    /// Returns the caps of the plain video.
    fn caps(&self, mut caps: gst::Caps) -> gst::Caps {
        if let Some(fields) = caps.make_mut().structure_mut(0) {
            fields.set("interlace-mode", "progressive");
            fields.remove_fields(["field-order"]);
            if self.tone_map.is_some() {
                fields.set("colorimetry", "bt709");
                fields.remove_fields(LIGHT_FIELDS);
            }
        }
        caps
    }

    fn apply(&self, buffer: &mut gst::Buffer, tap: &Tap) -> Result<()> {
        let first_field = self.first_field(buffer);
        let is_see_through = self.source.format() == SEE_THROUGH;
        if first_field.is_none() && !is_see_through && self.tone_map.is_none() {
            return Ok(());
        }
        let mut frame =
            gst_video::VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), &self.source)
                .map_err(|_| Error::Media("cannot map a decoded frame for writing".into()))?;
        let width = self.source.width() as usize;
        let mut strides = [0; 4];
        for (stride, said) in strides.iter_mut().zip(frame.plane_stride()) {
            *stride = usize::try_from(*said)
                .map_err(|_| Error::Media(format!("a frame has a negative stride: {said}")))?;
        }
        if let Some(first) = first_field {
            tap.say("the video is interlaced, producing one frame per pair of fields");
            for (plane, stride) in frame.planes_data_mut().into_iter().zip(strides) {
                match self.source.format() {
                    DEEP => deinterlace_deep(plane, stride, first),
                    _ => deinterlace(plane, stride, first),
                }
            }
        }
        let [a, b, c, _] = frame.planes_data_mut();
        if is_see_through {
            let range = self.source.colorimetry().range();
            let is_full_range = range == VideoColorRange::Range0_255;
            if over_black(a, strides[0], width, is_full_range) {
                tap.say("the video has transparency, compositing it over black");
            }
        }
        if let Some(tone_map) = &self.tone_map {
            let plane = |bytes, plane_idx: usize| DeepPlane {
                bytes,
                stride: strides[plane_idx],
            };
            tone_map.apply(width, [plane(a, 0), plane(b, 1), plane(c, 2)]);
        }
        Ok(())
    }

    /// Returns the field of `buffer` that was captured first; `None` if both were captured together.
    fn first_field(&self, buffer: &gst::BufferRef) -> Option<FirstField> {
        // The flags of a plain buffer omit those specific to video.
        let flags = buffer.video_flags();
        // A stream that begins with progressive frames is marked progressive to its end.
        let is_interlaced = self.source.interlace_mode() == VideoInterlaceMode::Interleaved
            || flags.contains(VideoBufferFlags::INTERLACED);
        let is_top_first = flags.contains(VideoBufferFlags::TFF)
            || self.source.field_order() == VideoFieldOrder::TopFieldFirst;
        is_interlaced.then_some(match is_top_first {
            true => FirstField::Top,
            false => FirstField::Bottom,
        })
    }
}

/// Caps fields that describe the mastering display and the content light level of HDR video.
const LIGHT_FIELDS: [&str; 2] = ["mastering-display-info", "content-light-level"];

/// Returns `caps` with the light levels of `of`.
pub(super) fn with_light(mut caps: gst::Caps, of: &gst::CapsRef) -> gst::Caps {
    if let (Some(fields), Some(said)) = (caps.make_mut().structure_mut(0), of.structure(0)) {
        for name in LIGHT_FIELDS {
            if let Ok(value) = said.value(name) {
                fields.set_value(name, value.clone());
            }
        }
    }
    caps
}

/// Returns the display info that GStreamer's matroskamux 1.22 needs in order to write `said`: it divides both
/// luminances by five.
pub(super) fn for_matroskamux(said: &str) -> Option<String> {
    let mut numbers: Vec<u32> = said
        .split(':')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    // Three primaries and the white point come first, followed by the maximum and minimum luminance.
    for light in numbers.get_mut(8..10)? {
        *light = light.checked_mul(5)?;
    }
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    Some(numbers.join(":"))
}

/// Returns the peak luminance of the mastering display in cd/m², as stated by the input.
fn peak_nits(caps: &gst::CapsRef) -> u32 {
    gst_video::VideoMasteringDisplayInfo::from_caps(caps)
        .map(|screen| screen.max_display_mastering_luminance() / 10_000)
        .ok()
        .filter(|nits| *nits > 0)
        .unwrap_or(USUAL_PEAK_NITS)
}
