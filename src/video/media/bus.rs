//! Conversion of bus messages to one-sentence [`Error`]s.

use std::path::Path;

use gstreamer as gst;
use gstreamer::prelude::*;

use super::elements::factory_name;
use vitscope_core::error::Error;

/// Reason why the pipeline stopped.
pub struct Failure {
    /// Element and reason, without a path.
    pub reason: String,
    /// True if a file could not grow.
    pub disk_full: bool,
    /// True if a demuxer or parser failed.
    reader: bool,
    /// True if an encoder, a muxer or the file failed.
    pub writer: bool,
}

impl Failure {
    /// Creates a failure of this crate's own part of the pipeline.
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            disk_full: false,
            reader: false,
            writer: false,
        }
    }

    /// Converts an element's error message.
    pub fn from_message(message: &gst::message::Error) -> Self {
        let element = message
            .src()
            .and_then(|src| src.downcast_ref::<gst::Element>())
            .map_or_else(|| "pipeline".to_owned(), factory_name);
        let error = message.error();
        let disk_full = error.matches(gst::ResourceError::NoSpaceLeft);
        // GStreamer's second, inner text has the details if the first one only states that something failed.
        let detail = message.debug().unwrap_or_default();
        let detail = detail.lines().nth(1).unwrap_or_default().trim();
        let text = error.message().trim().trim_end_matches('.').to_owned();
        let generic = text.starts_with("Internal data stream error")
            || text.starts_with("Could not")
            || text.starts_with("GStreamer encountered");
        // These elements detect the type of a file; only their failure to find one is of interest.
        let seeks = ["parsebin", "typefind"].contains(&element.as_str());
        // The project's own element reports complete sentences.
        let speaks_for_itself = seeks || element == "vitscope";
        let reason = match (generic && !detail.is_empty(), speaks_for_itself) {
            _ if detail.contains("timestamps are drifting") => {
                "the sound has gaps, which the output cannot hold in uncompressed sound; use --audio encode".into()
            }
            (true, _) => format!("{element}: {text} ({})", detail.trim_end_matches('.')),
            (false, false) => format!("{element}: {text}"),
            (false, true) => text,
        };
        let factory = message
            .src()
            .and_then(|src| src.downcast_ref::<gst::Element>())
            .and_then(|element| element.factory());
        let reader = seeks
            || factory.as_ref().is_some_and(|factory| {
                factory.has_type(gst::ElementFactoryType::DEMUXER)
                    || factory.has_type(gst::ElementFactoryType::PARSER)
            });
        let writer = factory.as_ref().is_some_and(|factory| {
            factory.has_type(gst::ElementFactoryType::ENCODER)
                || factory.has_type(gst::ElementFactoryType::MUXER)
                || factory.has_type(gst::ElementFactoryType::SINK)
        });
        Self {
            reason,
            disk_full,
            reader,
            writer,
        }
    }

    /// Converts the failure to the error for the reader of `input` or the writer of `output`.
    pub(super) fn to_error(&self, input: &Path, output: &Path) -> Error {
        if self.disk_full {
            return Error::Media(format!("no space left on the disk: {output:?}"));
        }
        // Failures of demuxers and parsers concern the file itself, others its processing.
        if self.reader {
            return Error::Media(format!("not a playable video ({}): {input:?}", self.reason));
        }
        Error::Media(format!("{}: {input:?}", self.reason))
    }
}

/// Returns the sentence for a video that nothing decodes; `name` is GStreamer's for the missing decoder.
pub(super) fn no_decoder(name: &str) -> String {
    if let Some((_, code)) = name.split_once("x-gst-fourcc-") {
        let code = code.split(' ').next().unwrap_or_default();
        return format!("GStreamer has no decoder for the video's codec {code:?}");
    }
    if name.contains("unknown") {
        return "GStreamer's demuxer does not know the codec of the video".into();
    }
    not_installed(&[name.to_owned()])
}

/// Returns the sentence for streams that no installed plugin handles.
pub(super) fn not_installed(names: &[String]) -> String {
    format!(
        "{} is not installed (Debian package \"gstreamer1.0-libav\" provides most decoders)",
        names.join(", ")
    )
}

/// Returns the name of the missing plugin if `message` states that no installed plugin handles a stream.
pub(super) fn missing_plugin(message: &gst::message::Element) -> Option<String> {
    let structure = message.structure()?;
    if structure.name() != "missing-plugin" {
        return None;
    }
    structure.get::<String>("name").ok()
}
