//! Frames for the calling program.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;

use super::{Output, newest};
use crate::Key;
use vitscope_core::error::{Error, Result};
use vitscope_video::media::Sink;
use vitscope_video::media::bus::Failure;
use vitscope_video::media::elements::{capsfilter, make};
use vitscope_video::media::pixels::frame_from_buffer;

/// Feeds a [`Sink`] with the newest frames, in RGB, and finishes it at the end.
///
/// A sink that takes longer than a frame lasts misses frames. If it fails, the run fails with its error.
pub struct Frames {
    fed: Arc<Mutex<Fed>>,
}

struct Fed {
    /// Present until it is finished or has failed.
    sink: Option<Box<dyn Sink>>,
    n_frames: u64,
    failure: Option<Error>,
}

impl Frames {
    /// Creates an output that feeds this sink.
    pub fn new(sink: impl Sink + 'static) -> Self {
        Self {
            fed: Arc::new(Mutex::new(Fed {
                sink: Some(Box::new(sink)),
                n_frames: 0,
                failure: None,
            })),
        }
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").finish_non_exhaustive()
    }
}

impl Fed {
    fn take(&mut self, sample: &gst::Sample) -> Result<()> {
        let info = sample
            .caps()
            .and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
        let (Some(info), Some(buffer)) = (info, sample.buffer_owned()) else {
            return Err(Error::Media("a frame has no format".into()));
        };
        let Some(sink) = &mut self.sink else {
            return Ok(());
        };
        sink.push(frame_from_buffer(self.n_frames, buffer, &info)?)?;
        self.n_frames += 1;
        Ok(())
    }

    /// Keeps the error for [`Output::failed`] and drops the sink.
    fn flow(&mut self, result: Result<()>) -> std::result::Result<(), gst::FlowError> {
        result.map_err(|error| {
            self.sink = None;
            self.failure = Some(error);
            gst::FlowError::Error
        })
    }
}

fn lock(fed: &Mutex<Fed>) -> MutexGuard<'_, Fed> {
    fed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output for Frames {
    fn elements(&self, _keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        let (taking, ending) = (Arc::clone(&self.fed), Arc::clone(&self.fed));
        let take = move |appsink: &gst_app::AppSink| {
            let sample = appsink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            let mut fed = lock(&taking);
            let taken = fed.take(&sample);
            fed.flow(taken).map(|()| gst::FlowSuccess::Ok)
        };
        let end = move |appsink: &gst_app::AppSink| {
            let mut fed = lock(&ending);
            let finished = fed.sink.take().map_or(Ok(()), Sink::finish);
            if fed.flow(finished).is_err() {
                gst::element_error!(appsink, gst::ResourceError::Close, ["the sink failed"]);
            }
        };
        let sink = gst_app::AppSink::builder()
            .sync(false)
            .max_buffers(1)
            .callbacks(
                gst_app::AppSinkCallbacks::builder()
                    .new_sample(take)
                    .eos(end)
                    .build(),
            )
            .build();
        let filter = capsfilter(
            &gst::Caps::builder("video/x-raw")
                .field("format", "RGB")
                .build(),
        )?;
        Ok(vec![
            newest()?,
            make("videoconvert")?,
            filter,
            sink.upcast(),
        ])
    }

    fn failed(&self, _error: &gst::message::Error, _failure: &Failure) -> Option<Error> {
        lock(&self.fed).failure.take()
    }
}
