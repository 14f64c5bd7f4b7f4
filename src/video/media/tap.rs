//! Removal of decoded buffers from the last pad of the reading half, before its element sees them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Sender, select};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;

use super::bus::Failure;
use super::pixels;
use super::rendition::{self, Described};
use super::session::{Shared, lock};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::{Hdr, PixelLayout, Pts};

/// A decoded frame that is not mapped yet.
pub(super) struct Decoded {
    pub(super) pts: Pts,
    pub(super) duration: Option<Duration>,
    pub(super) layout: Arc<PixelLayout>,
    pub(super) buffer: gst::Buffer,
}

impl Decoded {
    /// Sets the duration if the decoder does not: up to the `next` frame, or otherwise that of the frame `before`.
    pub(super) fn complete_duration(&mut self, next: Option<Pts>, before: Option<Duration>) {
        let gap = next.and_then(|next| next.0.checked_sub(self.pts.0));
        let gap = gap.filter(|gap| *gap > 0).map(Duration::from_nanos);
        self.duration = self.duration.or(gap).or(before);
    }

    /// Extends the last frame beyond the decoder's duration up to the `end` in the header: parsers assume that all
    /// frames have the same length.
    pub(super) fn show_until(&mut self, end: Option<Duration>) {
        let left = end.and_then(|end| end.checked_sub(Duration::from_nanos(self.pts.0)));
        if let Some(left) = left
            && self.duration.is_none_or(|duration| duration < left)
        {
            self.duration = Some(left);
        }
    }
}

/// Message from the decoder's thread.
pub(super) enum Item {
    Frame(Decoded),
    /// A seek is complete: earlier items are void.
    Flushed,
    End,
}

/// Video of the input, as described by the container and the decoder.
#[derive(Clone)]
pub(super) struct Picture {
    pub(super) info: gst_video::VideoInfo,
    /// Caps from which `info` was parsed.
    pub(super) caps: gst::Caps,
    /// The input's color description.
    pub(super) described: Described,
}

/// Takes decoded buffers from the last pad of the reading half.
pub(super) struct Tap {
    pub(super) shared: Arc<Shared>,
    items: Sender<Item>,
    state: Mutex<TapState>,
    /// The last element, through which seeks travel upstream.
    pub(super) end: Mutex<Option<gst::glib::WeakRef<gst::Element>>>,
    pub(super) linked: AtomicBool,
    /// End of the video, if the header states it.
    pub(super) picture_end: OnceLock<Duration>,
    /// Warnings already shown to users.
    said: Mutex<Vec<&'static str>>,
    /// True from the decision to seek until the flush is complete.
    pub(super) discarding: AtomicBool,
}

#[derive(Default)]
struct TapState {
    format: Option<(gst::Caps, gst_video::VideoInfo)>,
    hdr: Option<Hdr>,
    segment: Option<gst::FormattedSegment<gst::ClockTime>>,
    layout: Option<Arc<PixelLayout>>,
    described: Described,
    ended: bool,
}

impl Tap {
    pub(super) fn new(items: Sender<Item>, shared: Arc<Shared>) -> Self {
        Self {
            shared,
            items,
            state: Mutex::default(),
            end: Mutex::new(None),
            linked: AtomicBool::new(false),
            picture_end: OnceLock::new(),
            said: Mutex::default(),
            discarding: AtomicBool::new(false),
        }
    }

    pub(super) fn install(self: &Arc<Self>, pad: &gst::Pad) {
        let tap = Arc::clone(self);
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.take_buffer() {
                tap.on_buffer(buffer);
            }
            gst::PadProbeReturn::Handled
        });
        let tap = Arc::clone(self);
        pad.add_probe(
            gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::EVENT_FLUSH,
            move |_, info| {
                if let Some(event) = info.event() {
                    tap.on_event(event);
                }
                gst::PadProbeReturn::Ok
            },
        );
        pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| {
            // Decoders pad their rows; without video metadata to describe that, they copy every frame.
            if let Some(query) = info.query_mut()
                && let gst::QueryViewMut::Allocation(allocation) = query.view_mut()
            {
                allocation.add_allocation_meta::<gst_video::VideoMeta>(None);
                return gst::PadProbeReturn::Handled;
            }
            gst::PadProbeReturn::Ok
        });
    }

    fn on_event(&self, event: &gst::EventRef) {
        match event.view() {
            gst::EventView::Caps(caps) => match gst_video::VideoInfo::from_caps(caps.caps()) {
                Ok(info) => {
                    let mut state = lock(&self.state);
                    state.hdr = rendition::hdr_of(caps.caps(), &info);
                    state.format = Some((caps.caps_owned(), info));
                    state.layout = None;
                }
                Err(err) => self.shared.fail(Failure::new(format!(
                    "the decoder's output format is unknown ({err})"
                ))),
            },
            gst::EventView::Segment(segment) => {
                lock(&self.state).segment =
                    segment.segment().downcast_ref::<gst::ClockTime>().cloned();
            }
            gst::EventView::FlushStop(_) => {
                lock(&self.state).ended = false;
                self.send(Item::Flushed);
                self.discarding.store(false, Ordering::SeqCst);
            }
            gst::EventView::Eos(_) => {
                if !self.shared.stopped.load(Ordering::SeqCst) {
                    self.shared.complete.store(true, Ordering::SeqCst);
                }
                self.end();
            }
            _ => {}
        }
    }

    fn on_buffer(&self, buffer: gst::Buffer) {
        if self.discarding.load(Ordering::SeqCst) {
            return;
        }
        if self.shared.stopped.load(Ordering::SeqCst) {
            self.end();
            return;
        }
        match self.decoded(buffer) {
            Ok(frame) => self.send(Item::Frame(frame)),
            Err(err) => self.shared.fail(Failure::new(err.to_string())),
        }
    }

    fn decoded(&self, buffer: gst::Buffer) -> Result<Decoded> {
        let mut state = lock(&self.state);
        let (Some((_, info)), Some(segment)) = (&state.format, &state.segment) else {
            return Err(Error::Media("a frame arrived before its format".into()));
        };
        let running = buffer
            .pts()
            .and_then(|pts| segment.to_running_time(pts))
            .ok_or_else(|| Error::Media("a frame has no presentation timestamp".into()))?;
        let layout = PixelLayout {
            hdr: state.hdr,
            ..pixels::layout(info, &buffer)?
        };
        let layout = match &state.layout {
            Some(known) if **known == layout => Arc::clone(known),
            _ => {
                let layout = Arc::new(layout);
                state.layout = Some(Arc::clone(&layout));
                layout
            }
        };
        Ok(Decoded {
            pts: Pts(running.nseconds()),
            duration: buffer.duration().map(Duration::from),
            layout,
            buffer,
        })
    }

    /// Signals once that no further frame follows.
    pub(super) fn end(&self) {
        if self.discarding.load(Ordering::SeqCst)
            || std::mem::replace(&mut lock(&self.state).ended, true)
        {
            return;
        }
        self.send(Item::End);
    }

    /// Waits for room; gives up once the run has failed.
    fn send(&self, item: Item) {
        select! {
            send(self.items, item) -> _ => {}
            recv(self.shared.aborted) -> _ => {}
        }
    }

    /// Records the input's color description.
    pub(super) fn describe(&self, described: Described) {
        lock(&self.state).described = described;
    }

    /// Warns users once about a change to the video.
    pub(super) fn say(&self, sentence: &'static str) {
        let mut said = lock(&self.said);
        if !said.contains(&sentence) {
            said.push(sentence);
            tracing::warn!("{sentence}");
        }
    }

    pub(super) fn seek(&self, event: gst::Event) -> bool {
        let end = lock(&self.end).as_ref().and_then(|end| end.upgrade());
        end.is_some_and(|end| end.send_event(event))
    }

    pub(super) fn picture(&self) -> Result<Picture> {
        let state = lock(&self.state);
        let (caps, info) = state
            .format
            .clone()
            .ok_or_else(|| Error::Media("the decoder reported no format".into()))?;
        Ok(Picture {
            info,
            caps,
            described: state.described,
        })
    }
}
