//! Output containers: their file name extensions, muxers and permitted contents.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;

use super::elements;
use vitscope_core::error::{Error, Result};

/// Length of one fragment of an unfinished mp4: the maximum loss in a crash, besides the frames in the encoder.
const FRAGMENT_MILLIS: u32 = 1000;

/// Finest time step of an mp4's header, in ticks per second; represents 24, 25, 30, 60 and 30000/1001 fps.
pub(super) const CLOCK: u32 = 90_000;

/// Exceeds the pre-roll of any codec (AAC's is 2112 samples): audio that is hidden for longer was cut off.
///
/// If no edit list can hide that audio, it is left out. See also [`longest_run_in`](super::audio::longest_run_in).
pub(super) const LONGEST_RUN_IN: Duration = Duration::from_millis(150);

/// A container format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// `.mp4`, `.m4v`.
    Mp4,
    /// `.mov`.
    Mov,
    /// `.mkv`.
    Matroska,
    /// `.webm`.
    Webm,
    /// `.ts`.
    MpegTs,
}

/// Pairs of extension and container.
const EXTENSIONS: [(&str, Container); 6] = [
    ("mp4", Container::Mp4),
    ("m4v", Container::Mp4),
    ("mov", Container::Mov),
    ("mkv", Container::Matroska),
    ("webm", Container::Webm),
    ("ts", Container::MpegTs),
];

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mp4 => "MP4",
            Self::Mov => "MOV",
            Self::Matroska => "Matroska",
            Self::Webm => "WebM",
            Self::MpegTs => "MPEG-TS",
        })
    }
}

impl Container {
    /// Returns the container for the extension of `path`.
    ///
    /// # Errors
    /// [`Error::Config`] with the known extensions if the extension is none of them.
    pub fn from_path(path: &Path) -> Result<Self> {
        let extension = path
            .extension()
            .map(|extension| extension.to_string_lossy().to_lowercase())
            // Other suffixes are not extensions and may be part of an address.
            .filter(|extension| extension.chars().all(char::is_alphanumeric));
        EXTENSIONS
            .iter()
            .find(|(known, _)| extension.as_deref() == Some(*known))
            .map(|(_, container)| *container)
            .ok_or_else(|| {
                let known = EXTENSIONS.map(|(known, _)| known).join(", ");
                Error::Config(match extension {
                    Some(other) => format!(
                        "unknown output extension {other:?}, expected one of {known}: {path:?}"
                    ),
                    None => {
                        format!("the output has no extension, expected one of {known}: {path:?}")
                    }
                })
            })
    }

    /// Returns the name of the muxer element.
    pub(super) fn muxer(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4mux",
            Self::Mov => "qtmux",
            Self::Matroska => "matroskamux",
            Self::Webm => "webmmux",
            Self::MpegTs => "mpegtsmux",
        }
    }

    /// True if an edit list states which part of a track is shown.
    pub(super) fn has_edit_lists(self) -> bool {
        matches!(self, Self::Mp4 | Self::Mov)
    }

    /// True if the container can hold chapters and the length of a track's codec pre-roll.
    pub(super) fn is_matroska(self) -> bool {
        matches!(self, Self::Matroska | Self::Webm)
    }

    /// Creates a muxer that keeps an unfinished file readable.
    pub(super) fn make_muxer(self) -> Result<gst::Element> {
        let muxer = elements::make(self.muxer())?;
        if self.has_edit_lists() {
            muxer.set_property("fragment-duration", FRAGMENT_MILLIS);
            muxer.set_property_from_str("fragment-mode", "first-moov-then-finalise");
            muxer.set_property("movie-timescale", CLOCK);
        }
        Ok(muxer)
    }

    /// Requests an input of `muxer` for video, with timestamps in ticks of 1/`timescale` s if the container supports
    /// that.
    pub(super) fn video_pad(self, muxer: &gst::Element, timescale: u32) -> Result<gst::Pad> {
        let pad = self.request(muxer, "video_%u")?;
        if self.has_edit_lists() {
            pad.set_property("trak-timescale", timescale);
        }
        Ok(pad)
    }

    /// Requests an input of `muxer` for audio.
    pub(super) fn audio_pad(self, muxer: &gst::Element) -> Result<gst::Pad> {
        self.request(muxer, "audio_%u")
    }

    fn request(self, muxer: &gst::Element, template: &str) -> Result<gst::Pad> {
        let template = if self == Self::MpegTs {
            "sink_%d"
        } else {
            template
        };
        muxer.request_pad_simple(template).ok_or_else(|| {
            Error::Media(format!(
                "element {:?} accepts no more streams",
                self.muxer()
            ))
        })
    }

    /// Returns the caps of the audio that the container may hold.
    pub(super) fn audio_caps(self) -> Result<gst::Caps> {
        let template = if self == Self::MpegTs {
            "sink_%d"
        } else {
            "audio_%u"
        };
        let factory = gst::ElementFactory::find(self.muxer())
            .ok_or_else(|| elements::missing(&[self.muxer()]))?;
        factory
            .static_pad_templates()
            .iter()
            .find(|pad| pad.name_template() == template)
            .map(|pad| pad.caps())
            .ok_or_else(|| Error::Media(format!("element {:?} accepts no sound", self.muxer())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_decides_whatever_its_case() {
        let of = |name: &str| Container::from_path(Path::new(name)).ok();
        assert_eq!(of("a.mp4"), Some(Container::Mp4));
        assert_eq!(of("a.b.MKV"), Some(Container::Matroska));
        assert_eq!(of("a.gif"), None);
        assert_eq!(of("mp4"), None);
    }

    #[test]
    fn an_unknown_extension_is_answered_with_the_known_ones() {
        let error = Container::from_path(Path::new("a.gif")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown output extension \"gif\", expected one of mp4, m4v, mov, mkv, webm, ts: \"a.gif\""
        );
    }
}
