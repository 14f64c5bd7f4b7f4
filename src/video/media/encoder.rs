//! Choice of the video encoder, and its configuration for constant quality rather than a bit rate.

use std::fmt;
use std::str::FromStr;

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video::{VideoColorMatrix, VideoColorRange, VideoColorimetry, VideoTransferFunction};

use super::container::Container;
use super::job::HdrMode;
use super::rendition::Described;
use super::{elements, pixels};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;

/// Default quality, on x264's own scale; 18 is said to look like the original.
const DEFAULT_CRF: u32 = 21;
/// Worst quality on x264's scale.
const WORST_CRF: u32 = 51;
/// Worst quality on libvpx's scale.
const WORST_CQ: u32 = 63;
/// Maximum seconds between keyframes: the cost of a seek in a player, and the worst-case loss in a crash.
const KEY_FRAME_SECS: f64 = 2.0;
/// Bit rate ceiling for encoders whose constant-quality mode requires one; generous enough to have no effect.
const BITS_PER_PIXEL: f64 = 0.4;

/// A video encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoCodec {
    /// H.264 by x264 (GPL library); the best of the H.264 encoders.
    X264,
    /// H.264 by OpenH264 (BSD library), baseline profile.
    OpenH264,
    /// H.265 by x265 (GPL library), with 10 bits if the video has them.
    X265,
    /// VP8 by libvpx.
    Vp8,
    /// VP9 by libvpx, with 10 bits if the video has them.
    Vp9,
}

impl VideoCodec {
    const ALL: [Self; 5] = [Self::X264, Self::OpenH264, Self::X265, Self::Vp8, Self::Vp9];

    /// Returns the name of the element.
    pub fn element(self) -> &'static str {
        match self {
            Self::X264 => "x264enc",
            Self::OpenH264 => "openh264enc",
            Self::X265 => "x265enc",
            Self::Vp8 => "vp8enc",
            Self::Vp9 => "vp9enc",
        }
    }

    /// Returns the codecs that `container` can hold, best first.
    fn of(container: Container) -> &'static [Self] {
        match container {
            Container::Mp4 | Container::Mov | Container::MpegTs => {
                &[Self::X264, Self::OpenH264, Self::X265]
            }
            Container::Matroska => &Self::ALL,
            Container::Webm => &[Self::Vp8, Self::Vp9],
        }
    }

    /// True if the codec keeps 10 bits per sample.
    pub(super) fn is_deep(self) -> bool {
        matches!(self, Self::X265 | Self::Vp9)
    }

    /// Chooses the encoder for `container`: `forced`, or otherwise the best one that is installed.
    pub(super) fn choose(container: Container, forced: Option<Self>, hdr: HdrMode) -> Result<Self> {
        let possible = Self::of(container);
        let names = |codecs: &[Self]| {
            let names: Vec<_> = codecs.iter().map(Self::to_string).collect();
            match names.as_slice() {
                [only] => only.clone(),
                _ => format!("one of {}", names.join(", ")),
            }
        };
        if let Some(codec) = forced
            && !possible.contains(&codec)
        {
            return Err(Error::Config(format!(
                "codec {codec} cannot be stored in {container}, expected {}",
                names(possible)
            )));
        }
        let deep: Vec<Self> = possible
            .iter()
            .copied()
            .filter(|codec| codec.is_deep())
            .collect();
        let possible = match hdr {
            HdrMode::ToneMap => possible,
            HdrMode::Keep => &deep,
        };
        if let Some(codec) = forced {
            if !possible.contains(&codec) {
                return Err(Error::Config(format!(
                    "codec {codec} writes 8 bits per sample, which is too few to keep HDR, expected {}",
                    names(possible)
                )));
            }
            if !elements::available(codec.element()) {
                return Err(elements::missing(&[codec.element()]));
            }
            return Ok(codec);
        }
        let installed = possible
            .iter()
            .find(|codec| elements::available(codec.element()));
        let Some(&codec) = installed else {
            let wanted: Vec<_> = possible.iter().map(|codec| codec.element()).collect();
            return Err(elements::missing(&wanted));
        };
        if codec == possible[0] {
            tracing::debug!(encoder = codec.element(), "encoding");
        } else {
            tracing::warn!(
                encoder = codec.element(),
                missing = possible[0].element(),
                package = elements::package(possible[0].element()),
                "the preferred encoder is not installed, using another one"
            );
        }
        Ok(codec)
    }

    /// True if width and height must be even.
    pub(super) fn needs_even_size(self) -> bool {
        matches!(self, Self::X264 | Self::OpenH264 | Self::X265)
    }

    /// Returns the raw formats that the encoder accepts for video of more than 8 bits or not. All have chroma
    /// subsampled in both directions, which every player can show.
    pub(super) fn raw_formats(self, is_deep: bool) -> gst::List {
        match self {
            _ if is_deep && self.is_deep() => gst::List::new([pixels::DEEP.to_str()]),
            Self::X264 => gst::List::new(["I420", "NV12"]),
            Self::OpenH264 | Self::X265 | Self::Vp8 | Self::Vp9 => gst::List::new(["I420"]),
        }
    }

    /// Returns the colors in which to encode `colors`: the same, if the bitstream can signal them.
    pub(super) fn colors(self, colors: &VideoColorimetry, height: u32) -> VideoColorimetry {
        let matrix = match self {
            Self::X264 | Self::X265 | Self::Vp9 => return *colors,
            // VP8 supports no other matrix (RFC 6386, section 9.2).
            Self::Vp8 => VideoColorMatrix::Bt601,
            // GStreamer 1.22 does not let it signal any colors.
            Self::OpenH264 => pixels::usual_matrix(height),
        };
        VideoColorimetry::new(
            VideoColorRange::Range16_235,
            matrix,
            colors.transfer(),
            colors.primaries(),
        )
    }

    /// Returns the version of `colors` that is passed to the encoder itself, while the muxer gets all of them.
    ///
    /// GStreamer's `vp9enc` signals the matrix of BT.2020 in the bitstream only together with BT.2020's transfer
    /// function for 12 bits.
    pub(super) fn told(self, colors: &VideoColorimetry) -> VideoColorimetry {
        if self != Self::Vp9 || colors.matrix() != VideoColorMatrix::Bt2020 {
            return *colors;
        }
        VideoColorimetry::new(
            colors.range(),
            colors.matrix(),
            VideoTransferFunction::Bt202012,
            colors.primaries(),
        )
    }

    /// Creates the encoder, followed by a filter and a parser if the codec needs them.
    pub(super) fn build(self, settings: &Settings) -> Result<Vec<gst::Element>> {
        let encoder = elements::make(self.element())?;
        let crf = settings.crf;
        let fps = settings.fps();
        let key_frames = (KEY_FRAME_SECS * fps).ceil().clamp(1.0, 1000.0) as u32;
        match self {
            Self::X264 => {
                encoder.set_property_from_str("pass", "qual");
                // 0 would be lossless, which is another profile.
                encoder.set_property("quantizer", crf.clamp(1, 50));
                encoder.set_property_from_str("speed-preset", "veryfast");
                encoder.set_property("key-int-max", key_frames);
                if settings.described != Described::Colors {
                    // GStreamer would tag the output with colors guessed from the height. The pixel aspect ratio is
                    // part of the same structure, so it is passed another way.
                    encoder.set_property("insert-vui", false);
                    let (width, height) = settings.pixel_aspect;
                    let range = match settings.described {
                        Described::Range => ":fullrange=on",
                        _ => "",
                    };
                    encoder.set_property("option-string", format!("sar={width}/{height}{range}"));
                }
                let profile = gst::Caps::builder("video/x-h264").field("profile", "high");
                Ok(vec![
                    encoder,
                    elements::capsfilter(&profile.build())?,
                    elements::make("h264parse")?,
                ])
            }
            Self::OpenH264 => {
                encoder.set_property_from_str("rate-control", "quality");
                encoder.set_property("bitrate", settings.bitrate());
                encoder.set_property("qp-min", crf.min(WORST_CRF));
                encoder.set_property("gop-size", key_frames);
                encoder.set_property_from_str("complexity", "high");
                Ok(vec![encoder, elements::make("h264parse")?])
            }
            Self::X265 => {
                encoder.set_property_from_str("speed-preset", "veryfast");
                encoder.set_property("key-int-max", key_frames as i32);
                // As with x264, guessed colors are not signaled.
                let range = match settings.described {
                    Described::Range => ":range=full",
                    _ => "",
                };
                let colors = match settings.described {
                    Described::Colors => "",
                    _ => ":colorprim=unknown:transfer=unknown:colormatrix=unknown",
                };
                // GStreamer 1.22 occasionally damages the information message of x265, and loses the first frame with
                // it.
                let options = format!("crf={crf}:log-level=error:info=0{range}{colors}");
                encoder.set_property("option-string", options);
                let profile = if settings.is_deep { "main-10" } else { "main" };
                let profile = gst::Caps::builder("video/x-h265").field("profile", profile);
                Ok(vec![
                    encoder,
                    elements::capsfilter(&profile.build())?,
                    elements::make("h265parse")?,
                ])
            }
            Self::Vp8 | Self::Vp9 => {
                encoder.set_property_from_str("end-usage", "cq");
                let level = (crf * WORST_CQ / WORST_CRF) as i32;
                encoder.set_property("cq-level", level);
                // The default minimum is 4, and a level below the minimum is an error.
                encoder.set_property("min-quantizer", level.min(4));
                encoder.set_property("target-bitrate", settings.bitrate() as i32);
                encoder.set_property("keyframe-max-dist", key_frames as i32);
                encoder.set_property("cpu-used", 4_i32);
                encoder.set_property("threads", 4_i32);
                // libvpx counts time in ticks; with ticks of one frame, frames of uneven length would collide.
                encoder.set_property("timebase", gst::Fraction::new(1, 90_000));
                if self == Self::Vp9 {
                    // vp9enc 1.22 may lose lookahead frames at the end.
                    encoder.set_property("lag-in-frames", 0_i32);
                    encoder.set_property("row-mt", true);
                }
                Ok(vec![encoder])
            }
        }
    }
}

impl fmt::Display for VideoCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X264 => "x264",
            Self::OpenH264 => "openh264",
            Self::X265 => "x265",
            Self::Vp8 => "vp8",
            Self::Vp9 => "vp9",
        })
    }
}

impl FromStr for VideoCodec {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|codec| codec.to_string() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(|codec| codec.to_string()).join(", ");
                Error::Config(format!("unknown codec {name:?}, expected one of {known}"))
            })
    }
}

/// Parameters of an encoder.
pub(super) struct Settings {
    /// Quality on x264's scale, 0 (best) to 51.
    pub(super) crf: u32,
    /// Frame rate; zero if it varies.
    pub(super) framerate: gst::Fraction,
    /// Size in pixels.
    pub(super) size: FrameSize,
    /// Pixel aspect ratio, as width and height of one pixel.
    pub(super) pixel_aspect: (u32, u32),
    /// Part of the color description to signal.
    pub(super) described: Described,
    /// True if frames have more than 8 bits per sample.
    pub(super) is_deep: bool,
}

impl Settings {
    /// Returns the quality `crf`, or the default one.
    ///
    /// # Errors
    /// [`Error::Config`] if it is off the scale.
    pub(super) fn checked_crf(crf: Option<u32>) -> Result<u32> {
        match crf {
            Some(crf) if crf > WORST_CRF => Err(Error::Config(format!(
                "crf must be between 0 (best) and {WORST_CRF}, got {crf}"
            ))),
            _ => Ok(crf.unwrap_or(DEFAULT_CRF)),
        }
    }

    /// Returns the frame rate; 25 if it is unknown.
    fn fps(&self) -> f64 {
        if self.framerate.numer() <= 0 {
            return 25.0;
        }
        f64::from(self.framerate.numer()) / f64::from(self.framerate.denom())
    }

    /// Returns the maximum bit rate of constant quality, in bits per second.
    fn bitrate(&self) -> u32 {
        let FrameSize {
            width_px,
            height_px,
        } = self.size;
        let bits = width_px as f64 * height_px as f64 * self.fps() * BITS_PER_PIXEL;
        bits.clamp(1e6, 2e8) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for codec in VideoCodec::ALL {
            assert_eq!(codec.to_string().parse::<VideoCodec>().unwrap(), codec);
        }
        assert_eq!(
            "h264".parse::<VideoCodec>().unwrap_err().to_string(),
            "unknown codec \"h264\", expected one of x264, openh264, x265, vp8, vp9"
        );
    }

    #[test]
    fn a_codec_that_the_container_cannot_hold_is_refused() {
        let error = VideoCodec::choose(Container::Webm, Some(VideoCodec::X264), HdrMode::ToneMap)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "codec x264 cannot be stored in WebM, expected one of vp8, vp9"
        );
    }

    #[test]
    fn quality_off_the_scale_is_refused() {
        assert!(Settings::checked_crf(Some(51)).is_ok());
        assert!(Settings::checked_crf(Some(52)).is_err());
    }
}
