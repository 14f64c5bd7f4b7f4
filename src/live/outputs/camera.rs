//! A virtual camera that other programs read.

use std::path::PathBuf;

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::prelude::*;

use super::{Output, newest};
use crate::{Key, utf8};
use vitscope_core::error::Result;
use vitscope_video::media::elements::make;

/// Outputs to this V4L2 loopback device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualCamera(pub PathBuf);

impl Output for VirtualCamera {
    fn elements(&self, _keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        let Self(device) = self;
        let sink = make("v4l2sink")?;
        sink.set_property("device", utf8(device)?);
        sink.set_property("sync", false);
        Ok(vec![newest()?, make("videoconvert")?, sink])
    }
}
