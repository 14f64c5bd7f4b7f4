//! A recording, which stays playable if it breaks off.

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

/// Records to a file, Matroska (`.mkv`) or fragmented MP4 (`.mp4`), which stays playable if the recording breaks off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording(pub PathBuf);

impl Output for Recording {
    fn elements(&self, _keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        let Self(path) = self;
        let sink = make("filesink")?;
        // Until something of it has been explained, so that a run that fails takes no earlier recording away.
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
        // Where the pipeline never began, there is none.
        let _ = fs::remove_file(part_path(path));
    }
}

/// The failure to write to `path`, if that is what `failure` is.
pub(super) fn written(path: &Path, failure: &Failure) -> Option<Error> {
    if failure.disk_full {
        return Some(Error::Media(format!("no space left on the disk: {path:?}")));
    }
    let told = || Error::Media(format!("{}: {path:?}", failure.reason));
    failure.writer.then(told)
}

/// What a recording of this name is written by: the encoders that its container takes, and the muxer.
fn container(path: &Path) -> Result<(&'static [Encoder], gst::Element)> {
    /// What of an MP4 is lost at most where the recording breaks off.
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
