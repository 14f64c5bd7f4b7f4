//! Cuts the picture to its range behind the decoder.
//!
//! A decoder would leave out what ends before the range by the length that each picture is said to have. Containers round
//! lengths, and an mp4 tells them in the order in which pictures are stored. But a picture is shown until the next one is,
//! so what a range begins with is known once that has come.

use std::sync::{Arc, Mutex};

use gstreamer as gst;
use gstreamer::prelude::*;

use super::session::lock;
use super::timeline::Segment;

/// Less than this of a picture is none: the coarsest step in which containers count.
const SLIVER: gst::ClockTime = gst::ClockTime::from_mseconds(1);

/// Keeps the segment of `stored` from the decoder, and cuts what comes out of it at `decoded` to that segment.
pub(super) fn behind_the_decoder(stored: &gst::Pad, decoded: &gst::Pad) {
    let cut = Arc::new(Mutex::new(Cut::default()));
    let told = Arc::clone(&cut);
    let kinds = gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::EVENT_FLUSH;
    stored.add_probe(kinds, move |_, info| {
        match info.event().map(|event| (event.view(), event.seqnum())) {
            Some((gst::EventView::FlushStop(_), _)) => *lock(&told) = Cut::default(),
            Some((gst::EventView::Segment(segment), seqnum)) => {
                lock(&told).range = segment.segment().downcast_ref::<gst::ClockTime>().cloned();
                let all = Segment::new();
                let all = gst::event::Segment::builder(&all).seqnum(seqnum).build();
                info.data = Some(gst::PadProbeData::Event(all));
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    decoded.add_probe(kinds, move |pad, info| {
        if let Some(event) = info.event() {
            match event.type_() {
                gst::EventType::Segment => {
                    if let Some(range) = &lock(&cut).range {
                        let range = gst::event::Segment::builder(range);
                        let range = range.seqnum(event.seqnum()).build();
                        info.data = Some(gst::PadProbeData::Event(range));
                    }
                }
                gst::EventType::Eos => show(pad, &cut, None),
                _ => {}
            }
            return gst::PadProbeReturn::Ok;
        }
        let Some(pts) = info.buffer().and_then(|buffer| buffer.pts()) else {
            return gst::PadProbeReturn::Ok;
        };
        let (is_early, stop) = {
            let cut = lock(&cut);
            let Some(range) = cut.range.as_ref().filter(|_| !cut.passing) else {
                return gst::PadProbeReturn::Ok;
            };
            (range.start().is_some_and(|start| pts < start), range.stop())
        };
        if is_early {
            lock(&cut).shown = info.take_buffer();
            return gst::PadProbeReturn::Handled;
        }
        show(pad, &cut, Some(pts));
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

/// Where a stream's picture is cut.
#[derive(Default)]
struct Cut {
    range: Option<Segment>,
    /// The last picture before the range, which may be shown where it begins.
    shown: Option<gst::Buffer>,
    /// While that one is let go.
    passing: bool,
}

/// Lets go what `pad` shows where the range begins, up to the `next` picture, or as long as it is said to be.
fn show(pad: &gst::Pad, cut: &Mutex<Cut>, next: Option<gst::ClockTime>) {
    let first = {
        let mut cut = lock(cut);
        let start = cut.range.as_ref().and_then(|range| range.start());
        let shown = cut.shown.take().zip(start);
        let first = shown.and_then(|(mut shown, start)| {
            let told = shown.duration().unwrap_or_default();
            let end = next.or_else(|| Some(shown.pts()? + told))?;
            let left = end.checked_sub(start)?;
            // Of many pictures a second, half of one is less.
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
        // An element that takes nothing more says so itself.
        let _ = pad.chain(first);
        lock(cut).passing = false;
    }
}
