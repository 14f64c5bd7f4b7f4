//! HTTP live streaming.

use std::path::{Path, PathBuf};

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::prelude::*;

use super::Output;
use super::encoded::{H264, encoded};
use super::recording::written;
use crate::{Key, utf8};
use vitscope_core::error::{Error, Result};
use vitscope_video::media::bus::Failure;
use vitscope_video::media::elements::make;

/// Duration of an HTTP live streaming segment in seconds, and the number of segments kept.
const SEGMENT_SECS: u32 = 2;
const SEGMENTS: u32 = 6;

/// Writes an HTTP live stream to this folder: `live.m3u8` and the latest segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HlsFolder(pub PathBuf);

impl Output for HlsFolder {
    fn elements(&self, _keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        let Self(folder) = self;
        let mut chain = encoded(H264)?;
        chain.push(hls(folder)?);
        Ok(chain)
    }

    fn failed(&self, _error: &gst::message::Error, failure: &Failure) -> Option<Error> {
        let Self(folder) = self;
        written(folder, failure)
    }
}

/// Creates the sink that writes segments and their playlist to `folder`.
fn hls(folder: &Path) -> Result<gst::Element> {
    let sink = make("hlssink2")?;
    sink.set_property("location", utf8(&folder.join("segment%05d.ts"))?);
    sink.set_property("playlist-location", utf8(&folder.join("live.m3u8"))?);
    sink.set_property("target-duration", SEGMENT_SECS);
    sink.set_property("playlist-length", SEGMENTS);
    sink.set_property("max-files", SEGMENTS + 2);
    Ok(sink)
}
