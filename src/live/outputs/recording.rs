//! A recording that stays playable if it is interrupted.

use std::fs;
use std::path::{Path, PathBuf};

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::prelude::*;

use super::Output;
use super::encoded::{ENCODERS, Encoder, H264, encoded};
use crate::{Key, utf8};
use vitscope_core::error::{Error, Result};
use vitscope_core::files::part_path;
use vitscope_video::media::bus::Failure;
use vitscope_video::media::elements::make;

/// Records to a file, Matroska (`.mkv`) or fragmented MP4 (`.mp4`), which stays playable if the recording is
/// interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording(pub PathBuf);

impl Output for Recording {
    fn elements(&self, _keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        let Self(path) = self;
        let sink = make("filesink")?;
        // Temporary until a frame has been explained, so that a failed run does not replace an earlier recording.
        sink.set_property("location", utf8(&part_path(path))?);
        let (encoders, muxer) = container(path)?;
        let mut chain = encoded(encoders)?;
        chain.extend([muxer, sink]);
        Ok(chain)
    }

    fn failed(&self, _error: &gst::message::Error, failure: &Failure) -> Option<Error> {
        let Self(path) = self;
        written(path, failure)
    }

    fn keep(&self) -> Result<()> {
        let Self(path) = self;
        fs::rename(part_path(path), path).map_err(|error| Error::io(path, error))
    }

    fn discard(&self) {
        let Self(path) = self;
        // If the pipeline never started, there is no file.
        let _ = fs::remove_file(part_path(path));
    }
}

/// Returns the error of writing to `path`, if `failure` is a write failure.
pub(super) fn written(path: &Path, failure: &Failure) -> Option<Error> {
    if failure.disk_full {
        return Some(Error::Media(format!("no space left on the disk: {path:?}")));
    }
    let told = || Error::Media(format!("{}: {path:?}", failure.reason));
    failure.writer.then(told)
}

/// Returns the encoders that the container of this file supports, and its muxer.
fn container(path: &Path) -> Result<(&'static [Encoder], gst::Element)> {
    /// Maximum loss from an MP4 if the recording is interrupted.
    const FRAGMENT_MS: u32 = 1000;
    match path.extension().and_then(|end| end.to_str()) {
        Some("mkv") => Ok((&ENCODERS, make("matroskamux")?)),
        Some("mp4") => {
            let muxer = make("mp4mux")?;
            muxer.set_property("fragment-duration", FRAGMENT_MS);
            Ok((H264, muxer))
        }
        _ => Err(Error::Config(format!(
            "a recording is Matroska or MP4, expected a file name ending in .mkv or .mp4: {path:?}"
        ))),
    }
}
