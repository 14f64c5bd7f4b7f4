//! Captures the next frame that passes a pad, on request; holds no frame otherwise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;
use image::RgbImage;

use vitscope_core::error::{Error, Result};
use vitscope_core::frame::Frame;
use vitscope_video::media::pixels::frame_from_buffer;
use vitscope_video::overlay::image_from_frame;

/// Maximum time until a camera's next frame.
const NEXT_FRAME: Duration = Duration::from_secs(2);

/// A pad and the pending request for its next frame.
#[derive(Clone)]
pub(super) struct Peek {
    pad: gst::Pad,
    wanted: Arc<Mutex<Option<Sender<gst::Buffer>>>>,
}

impl Peek {
    pub(super) fn new(pad: &gst::Pad) -> Self {
        let wanted: Arc<Mutex<Option<Sender<gst::Buffer>>>> = Arc::default();
        let asked = Arc::clone(&wanted);
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let (Some(asked), Some(buffer)) = (asked, info.buffer()) {
                // The receiver may be gone.
                let _ = asked.try_send(buffer.clone());
            }
            gst::PadProbeReturn::Ok
        });
        let pad = pad.clone();
        Self { pad, wanted }
    }

    /// Requests the next frame.
    pub(super) fn ask(&self) -> Receiver<gst::Buffer> {
        let (asked, next) = crossbeam_channel::bounded(1);
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
        next
    }

    /// Returns the next frame as a picture.
    ///
    /// # Errors
    /// [`Error::Media`] if none arrives.
    pub(super) fn picture(&self) -> Result<RgbImage> {
        let buffer = self.ask().recv_timeout(NEXT_FRAME);
        self.picture_from_buffer(buffer.map_err(|_| no_picture())?)
    }

    /// Returns a frame of this pad as a picture.
    ///
    /// # Errors
    /// [`Error::Media`] if its pixels cannot be read.
    pub(super) fn picture_from_buffer(&self, buffer: gst::Buffer) -> Result<RgbImage> {
        image_from_frame(&self.frame_from_buffer(buffer)?)
    }

    /// Returns the next frame as it is.
    ///
    /// # Errors
    /// [`Error::Media`] if none arrives.
    pub(super) fn frame(&self) -> Result<Frame> {
        let buffer = self.ask().recv_timeout(NEXT_FRAME);
        self.frame_from_buffer(buffer.map_err(|_| no_picture())?)
    }

    fn frame_from_buffer(&self, buffer: gst::Buffer) -> Result<Frame> {
        let caps = self.pad.current_caps();
        let info = caps.and_then(|caps| gst_video::VideoInfo::from_caps(&caps).ok());
        frame_from_buffer(0, buffer, &info.ok_or_else(no_picture)?)
    }
}

fn no_picture() -> Error {
    Error::Media("there is no picture yet".into())
}
