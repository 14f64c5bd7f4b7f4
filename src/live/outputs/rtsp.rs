//! A stream pushed to an RTSP server.

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;

use super::encoded::{ENCODERS, encoded};
use super::{Output, is_from};
use crate::Key;
use crate::address::Address;
use vitscope_core::error::{Error, Result};
use vitscope_video::media::bus::Failure;
use vitscope_video::media::elements::make;

/// Time that an RTP session may take to report its end.
const FAREWELL: gst::ClockTime = gst::ClockTime::from_mseconds(500);

/// Pushes to this address of an RTSP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RtspPush(pub Address);

impl Output for RtspPush {
    fn elements(&self, _keys: &Sender<Key>) -> Result<Vec<gst::Element>> {
        let Self(address) = self;
        let Address::Url(url) = address else {
            return Err(not_rtsp(address));
        };
        if !matches!(url.scheme(), "rtsp" | "rtsps") {
            return Err(not_rtsp(address));
        }
        let sink = make("rtspclientsink")?;
        sink.set_property("location", url.as_str());
        if url.scheme() == "rtsp" {
            sink.set_property_from_str("protocols", "tcp");
        }
        end_without_farewell(&sink);
        let mut chain = encoded(&ENCODERS)?;
        chain.push(sink);
        Ok(chain)
    }

    fn failed(&self, error: &gst::message::Error, failure: &Failure) -> Option<Error> {
        let Self(address) = self;
        let told = || {
            let reason = address.redacted(&failure.reason);
            Error::Media(format!("{address} does not accept the video: {reason}"))
        };
        is_from(error, "rtspclientsink").then(told)
    }
}

/// Reports the end of the stream for `sink` soon after its last frame, whether or not its RTP session does.
///
/// A session reports its end after sending its BYE. On a busy machine it sometimes never sends one (GStreamer 1.22),
/// and by then nothing is left to lose.
fn end_without_farewell(sink: &gst::Element) {
    sink.connect_pad_added(|sink, pad| {
        let sink = sink.downgrade();
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            let event = info.event().map(|event| event.type_());
            if event == Some(gst::EventType::Eos) && end_soon(sink.clone()).is_err() {
                tracing::warn!("the end of the pushed stream waits for its RTP session to end");
            }
            gst::PadProbeReturn::Ok
        });
    });
}

/// Reports the end of the stream for `sink` after [`FAREWELL`].
fn end_soon(sink: glib::WeakRef<gst::Element>) -> std::result::Result<(), gst::ClockError> {
    let clock = gst::SystemClock::obtain();
    let until = clock.time() + FAREWELL;
    let end = clock.new_single_shot_id(until).wait_async(move |_, _, _| {
        if let Some(sink) = sink.upgrade() {
            // If the real end was reported before, nothing listens anymore.
            let _ = sink.post_message(gst::message::Eos::builder().src(&sink).build());
        }
    });
    end.map(|_| ())
}

fn not_rtsp(address: &Address) -> Error {
    Error::Config(format!(
        "not an address to push to, expected rtsp:// or rtsps://: {address}"
    ))
}
