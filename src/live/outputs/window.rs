//! A window on the screen.

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;

use super::{Output, newest};
use crate::Key;
use vitscope_core::error::{Error, Result};
use vitscope_video::media::elements::{factory_name, make, static_pad};

/// Shows frames in a window, which also takes keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window;

impl Output for Window {
    fn elements(&self, keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        // Without a screen, autovideosink tries DirectFB last, which crashes the whole program.
        if let Some(directfb) = gst::ElementFactory::find("dfbvideosink") {
            directfb.set_rank(gst::Rank::NONE);
        }
        let sink = make("autovideosink")?;
        // Show the newest frame at once instead of waiting for its presentation time.
        sink.set_property("sync", false);
        let queue = newest()?;
        forward_keys(&queue, keys.clone())?;
        Ok(vec![queue, make("videoconvert")?, sink])
    }

    fn check(&self, pipeline: &gst::Pipeline) -> Result<()> {
        // autovideosink silently falls back to a fakesink if nothing else works.
        let blind = pipeline
            .iterate_all_by_element_factory_name("fakesink")
            .into_iter()
            .flatten()
            .filter_map(|sink| sink.parent()?.downcast::<gst::Element>().ok())
            .any(|parent| factory_name(&parent) == "autovideosink");
        match blind {
            true => Err(Error::Media(
                "no screen is available for a window: choose another output or --no-window".into(),
            )),
            false => Ok(()),
        }
    }
}

/// Returns whether the user has closed the window, which ends the run.
pub(crate) fn is_closed(error: &gst::message::Error) -> bool {
    let of_sink = error
        .src()
        .and_then(|src| src.downcast_ref::<gst::Element>())
        .is_some_and(|element| factory_name(element).contains("imagesink"));
    of_sink && error.error().matches(gst::ResourceError::NotFound)
}

/// Sends the keys pressed in the window behind `queue` to `keys`.
fn forward_keys(queue: &gst::Element, keys: Sender<Key>) -> Result<()> {
    let pad = static_pad(queue, "src")?;
    pad.add_probe(gst::PadProbeType::EVENT_UPSTREAM, move |_, info| {
        let event = info
            .event()
            .filter(|event| event.type_() == gst::EventType::Navigation);
        let event = event.and_then(|event| gst_video::NavigationEvent::parse(event).ok());
        if let Some(gst_video::NavigationEvent::KeyPress { key, .. }) = event {
            // Nobody presses keys faster than they are read.
            let _ = Key::from_name(&key).map(|key| keys.try_send(key));
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}
