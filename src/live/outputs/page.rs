//! Pictures for the web page.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;

use super::{Output, newest};
use crate::Key;
use crate::serve::Feed;
use vitscope_core::error::Result;
use vitscope_video::media::elements::{capsfilter, make, static_pad};

/// Maximum size of the page's pictures; larger ones are scaled down.
const PAGE_PX: (i32, i32) = (1280, 720);

/// Makes pictures for the page while it has viewers.
pub(crate) struct Pictures(pub(crate) Arc<Feed>);

impl fmt::Debug for Pictures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pictures").finish_non_exhaustive()
    }
}

impl Output for Pictures {
    fn elements(&self, _keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        let Self(feed) = self;
        let queue = newest()?;
        let watched = Arc::clone(feed);
        static_pad(&queue, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if watched.n_viewers() > 0 {
                return gst::PadProbeReturn::Ok;
            }
            info.data = None;
            gst::PadProbeReturn::Handled
        });
        let (width, height) = PAGE_PX;
        let filter = capsfilter(
            &gst::Caps::builder("video/x-raw")
                .field("width", gst::IntRange::new(1, width))
                .field("height", gst::IntRange::new(1, height))
                .field("pixel-aspect-ratio", gst::Fraction::new(1, 1))
                .build(),
        )?;
        let encoder = make("jpegenc")?;
        encoder.set_property("quality", 85_i32);
        let feed = Arc::clone(feed);
        let show = move |appsink: &gst_app::AppSink| {
            let sample = appsink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            let map = sample
                .buffer()
                .and_then(|buffer| buffer.map_readable().ok());
            if let Some(map) = map {
                feed.show(Arc::from(map.as_slice()));
            }
            Ok(gst::FlowSuccess::Ok)
        };
        let sink = gst_app::AppSink::builder()
            .sync(false)
            // Without viewers, no picture arrives, so do not wait for one.
            .async_(false)
            .max_buffers(1)
            .callbacks(
                gst_app::AppSinkCallbacks::builder()
                    .new_sample(show)
                    .build(),
            )
            .build();
        Ok(vec![
            queue,
            make("videoconvert")?,
            make("videoscale")?,
            filter,
            encoder,
            sink.upcast(),
        ])
    }
}
