//! Cutting of video to its range after the decoder.
//!
//! A decoder would drop frames that end before the range by their stated durations. Containers round durations, and an
//! mp4 states them in storage order. But a frame is shown until the next one is, so the first frame of a range is known
//! once the next one has arrived.

use std::sync::{Arc, Mutex};

use gstreamer as gst;
use gstreamer::prelude::*;

use super::session::lock;
use super::timeline;

/// Minimum part of a frame or packet that counts: the coarsest time step of containers.
pub(super) const SLIVER: gst::ClockTime = gst::ClockTime::from_mseconds(1);

/// Drops the frames of `stored` that follow a flush and precede the first key frame.
///
/// decodebin3 does so where a stream begins, but not behind a seek. There the decoder knows the stream's parameters, and
/// shows gray for references that are missing: at the beginning of a recording that was cut anywhere.
pub(super) fn await_key_frame(stored: &gst::Pad) {
    let wait = Mutex::new(Wait::default());
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
    stored.add_probe(kinds, move |_, info| {
        let mut wait = lock(&wait);
        if let Some(event) = info.event()
            && event.type_() == gst::EventType::FlushStop
        {
            wait.is_over = false;
            wait.is_flushed = true;
        }
        let Some(buffer) = info.buffer().filter(|_| !wait.is_over) else {
            return gst::PadProbeReturn::Ok;
        };
        wait.is_over = wait.is_ended_by(buffer);
        if wait.is_over || !wait.is_flushed {
            return gst::PadProbeReturn::Ok;
        }
        drop(info.take_buffer());
        gst::PadProbeReturn::Handled
    });
}

/// Search for the frame that decoding begins with.
#[derive(Default)]
struct Wait {
    /// Timestamp of the frame that decodebin3 begins with.
    first: Option<gst::ClockTime>,
    is_flushed: bool,
    is_over: bool,
}

impl Wait {
    fn is_ended_by(&mut self, buffer: &gst::BufferRef) -> bool {
        let flags = buffer.flags();
        let is_key = !flags.contains(gst::BufferFlags::DELTA_UNIT);
        let time = buffer.pts().or(buffer.dts());
        if !self.is_flushed {
            let begins = is_key || flags.contains(gst::BufferFlags::HEADER);
            self.first = self.first.or(time.filter(|_| begins));
            return begins;
        }
        // A parser may call the first frame behind a flush a key frame because the last one before it was.
        let rounded = |time| time + SLIVER;
        match (time, self.first) {
            (Some(time), Some(first)) => {
                rounded(time) >= first && (is_key || time <= rounded(first))
            }
            // The rest of a frame whose beginning is missing has no timestamp.
            (None, Some(_)) => false,
            (_, None) => is_key,
        }
    }
}

/// Hides the segment of `stored` from the decoder, and cuts its output at `decoded` to that segment.
pub(super) fn behind_the_decoder(stored: &gst::Pad, decoded: &gst::Pad) {
    let range = timeline::hide_segment(stored, decoded);
    let cut = Arc::new(Mutex::new(Cut::default()));
    let flushed = Arc::clone(&cut);
    stored.add_probe(gst::PadProbeType::EVENT_FLUSH, move |_, info| {
        if info.event().map(|event| event.type_()) == Some(gst::EventType::FlushStop) {
            *lock(&flushed) = Cut::default();
        }
        gst::PadProbeReturn::Ok
    });
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    decoded.add_probe(kinds, move |pad, info| {
        let Some((start, stop)) = lock(&range)
            .as_ref()
            .map(|range| (range.start(), range.stop()))
        else {
            return gst::PadProbeReturn::Ok;
        };
        if let Some(event) = info.event() {
            if event.type_() == gst::EventType::Eos {
                show(pad, &cut, (start, stop), None);
            }
            return gst::PadProbeReturn::Ok;
        }
        let Some(pts) = info.buffer().and_then(|buffer| buffer.pts()) else {
            return gst::PadProbeReturn::Ok;
        };
        if lock(&cut).passing {
            return gst::PadProbeReturn::Ok;
        }
        if start.is_some_and(|start| pts < start) {
            lock(&cut).shown = info.take_buffer();
            return gst::PadProbeReturn::Handled;
        }
        show(pad, &cut, (start, stop), Some(pts));
        let Some(stop) = stop else {
            return gst::PadProbeReturn::Ok;
        };
        if pts >= stop {
            drop(info.take_buffer());
            return gst::PadProbeReturn::Handled;
        }
        if let Some(buffer) = info.buffer_mut()
            && buffer
                .duration()
                .is_some_and(|duration| pts + duration > stop)
        {
            buffer.make_mut().set_duration(stop - pts);
        }
        gst::PadProbeReturn::Ok
    });
}

/// State of the cut.
#[derive(Default)]
struct Cut {
    /// Last frame before the range, which may be shown where it begins.
    shown: Option<gst::Buffer>,
    /// True while that frame is being released.
    passing: bool,
}

/// Releases the frame that `pad` shows where the range begins, lasting up to the `next` frame, or for its stated
/// duration, or to the end of the range.
fn show(
    pad: &gst::Pad,
    cut: &Mutex<Cut>,
    (start, stop): (Option<gst::ClockTime>, Option<gst::ClockTime>),
    next: Option<gst::ClockTime>,
) {
    let first = {
        let mut cut = lock(cut);
        let shown = cut.shown.take().zip(start);
        let first = shown.and_then(|(mut shown, start)| {
            let told = shown.duration().unwrap_or_default();
            let end = next.or_else(|| Some(shown.pts()? + told))?;
            let end = stop.map_or(end, |stop| end.min(stop));
            let left = end.checked_sub(start)?;
            // At high frame rates, half a frame is shorter.
            let sliver = match told {
                gst::ClockTime::ZERO => SLIVER,
                told => SLIVER.min(told / 2),
            };
            let buffer = shown.make_mut();
            buffer.set_pts(start);
            buffer.set_duration(left);
            (left > sliver).then_some(shown)
        });
        cut.passing = first.is_some();
        first
    };
    if let Some(first) = first {
        // An element that accepts no more data reports that itself.
        let _ = pad.chain(first);
        lock(cut).passing = false;
    }
}
