//! The element's streaming thread: submits frames to the worker and lets them leave in order.
//!
//! A frame leaves when its explanation is available or, in live modes, when its time has come. Held frames leave before
//! EOS, SEGMENT, CAPS and GAP events and are discarded by a flush. The settings are not locked while the model works.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base::prelude::*;
use gstreamer_video as gst_video;

use super::element::{CAT, VitScope, lock};
use super::meta::Found;
use super::records::Records;
use super::settings::{Settings, SyncMode};
use super::stream::{News, Next, Stream};
use super::workers::Handed;
use vitscope_core::frame::Frame;
use vitscope_core::frame::resize::Resizer;
use vitscope_core::models::Model;
use vitscope_video::pipeline::stages::{Decoded, Finding, Patchified, patchify};
use vitscope_video::pipeline::worker::{Answer, Ready};

/// State of the streaming thread.
#[derive(Default)]
pub(super) struct Streaming {
    pub(super) info: Option<gst_video::VideoInfo>,
    /// Number of frames so far.
    pub(super) n_frames: u64,
    resizer: Option<(Arc<Model>, Resizer)>,
    /// Number of maps per explained frame; zero before the model is open.
    pub(super) n_maps: usize,
    pub(super) frames: Stream<Handed, gst::Buffer>,
    pub(super) scores: Option<Records>,
}

impl VitScope {
    /// Announces the delay of a live stream from now on.
    pub(super) fn announce(&self, n_frames: usize, frame: Duration) {
        let latency = u64::try_from(frame.as_nanos()).unwrap_or(0) * n_frames as u64;
        let before = self.latency_ns.swap(latency, Ordering::SeqCst);
        if before != latency {
            gst::info!(CAT, imp = self, "latency is {n_frames} frames");
            let message = gst::message::Latency::builder().src(&*self.obj()).build();
            let _ = self.obj().post_message(message);
        }
    }

    /// Takes a frame and submits its image to the current model if the frame is due.
    pub(super) fn hand_over(
        &self,
        settings: &Arc<Settings>,
        streaming: &mut Streaming,
        frame: Frame,
        running_time: Option<gst::ClockTime>,
    ) -> std::result::Result<(), gst::FlowError> {
        let (worker, is_new) = self.worker().ok_or(gst::FlowError::Flushing)?;
        if is_new {
            streaming.frames.begin_explaining();
        }
        let ready = match settings.sync_mode {
            SyncMode::Latest => worker.ready(),
            SyncMode::Lossless | SyncMode::Exact => {
                let ready = worker.wait_ready(&self.gives_up);
                Some(ready.ok_or(gst::FlowError::Flushing)?)
            }
        };
        match ready {
            None => {
                streaming.frames.miss(settings, frame);
                return Ok(());
            }
            // The error has already been reported on the bus.
            Some(Err(_)) => return Err(gst::FlowError::Error),
            Some(Ok(ready)) => streaming.use_model(settings, &ready),
        }
        streaming.frames.collect_newest(settings, frame.pts);
        let due = frame
            .seq
            .is_multiple_of(u64::from(settings.interval.max(1)));
        let late = settings.sync_mode != SyncMode::Lossless && self.is_late(running_time);
        let resizer = match &mut streaming.resizer {
            Some((_, resizer)) if !(due && late) => resizer,
            _ => {
                lock(&self.stats).skipped += u64::from(due && late);
                streaming.frames.miss(settings, frame);
                return Ok(());
            }
        };
        let Patchified { frame, turn } = patchify(Decoded { frame, due }, resizer);
        let now = Instant::now();
        streaming.frames.push(settings, frame, turn, &worker, now);
        Ok(())
    }

    fn is_late(&self, running_time: Option<gst::ClockTime>) -> bool {
        let earliest = self.earliest_ns.load(Ordering::SeqCst);
        running_time.is_some_and(|time| time.nseconds() < earliest)
    }

    /// Returns the next frame to leave, drawn; `None` while all frames must wait.
    pub(super) fn leave(
        &self,
        settings: &Settings,
        streaming: &mut Streaming,
        drain: bool,
    ) -> std::result::Result<Option<gst::Buffer>, gst::FlowError> {
        let shown = match streaming.frames.next(settings, drain) {
            Next::Nothing => return Ok(None),
            Next::Untouched(buffer) => return Ok(Some(buffer)),
            Next::Frame(shown) => shown,
            Next::Wait {
                ticket,
                until,
                frame,
            } => {
                let answer = self.wait(ticket, until);
                streaming.frames.resume(settings, frame, answer)
            }
        };
        self.tell(settings, streaming);
        self.draw(streaming, shown).map(Some)
    }

    /// Waits for an answer, until `deadline` if there is one; `None` also if the element gives up meanwhile.
    fn wait(&self, handed: Handed, deadline: Option<Instant>) -> Option<Answer> {
        *lock(&self.waiting) = Some(handed.abandon());
        // Read the flag only after that, so that giving up meanwhile is not missed.
        let answer = match self.gives_up.load(Ordering::SeqCst) {
            true => None,
            false => handed.wait(deadline),
        };
        *lock(&self.waiting) = None;
        answer
    }

    /// Reports the news of the stream.
    pub(super) fn tell(&self, settings: &Settings, streaming: &mut Streaming) {
        for news in streaming.frames.take_news() {
            match news {
                News::Latency(n_frames) => {
                    self.announce(n_frames, streaming.frames.frame_duration());
                }
                News::Skipped => lock(&self.stats).skipped += 1,
                News::Took(took) => lock(&self.stats).took.push(took),
                News::Age(age) => lock(&self.stats).ages.push(age),
                News::Found(finding, of) => {
                    lock(&self.stats).explained(Instant::now());
                    if let Some(scores) = &mut streaming.scores {
                        scores.explain(&finding);
                    }
                    self.tell_of(&finding, gst::ClockTime::from_nseconds(of.0), settings);
                }
            }
        }
    }

    /// Reports a finding on the frame at time `of` to the bus and the observer.
    fn tell_of(&self, finding: &Arc<Finding>, of: gst::ClockTime, settings: &Settings) {
        if let (Some(map), true) = (finding.maps.first(), settings.post_messages) {
            let found = Found::new(finding, map, of).message();
            let message = gst::message::Element::builder(found);
            let _ = self.obj().post_message(message.src(&*self.obj()).build());
        }
        let observe = lock(&self.observe).clone();
        if let Some(observe) = observe {
            observe(finding, of);
        }
    }

    /// Lets all held frames leave.
    pub(super) fn drain(&self) {
        let settings = self.settings();
        let mut leaving = Vec::new();
        let mut streaming = lock(&self.streaming);
        while let Ok(Some(buffer)) = self.leave(&settings, &mut streaming, true) {
            leaving.push(buffer);
        }
        drop(streaming);
        for buffer in leaving {
            if let Err(error) = self.obj().src_pad().push(buffer) {
                gst::debug!(
                    CAT,
                    imp = self,
                    "downstream accepts no more buffers: {error}"
                );
                return;
            }
        }
    }

    /// Discards all held frames.
    pub(super) fn discard(&self) {
        lock(&self.streaming).frames.discard();
        self.earliest_ns.store(0, Ordering::SeqCst);
    }

    /// Ends the wait of a frame for a model.
    pub(super) fn give_up(&self) {
        self.gives_up.store(true, Ordering::SeqCst);
        if let Some(waiting) = &*lock(&self.waiting) {
            waiting.now();
        }
        let worker = lock(&self.workers).current.clone();
        if let Some((_, worker)) = worker {
            worker.wake();
        }
    }

    pub(super) fn running_time(&self, buffer: &gst::BufferRef) -> Option<gst::ClockTime> {
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>()?;
        segment.to_running_time(buffer.pts()?)
    }
}

impl Streaming {
    /// Prepares images for an open model.
    fn use_model(&mut self, settings: &Settings, ready: &Ready) {
        self.n_maps = ready.n_maps;
        // Another classifier with the same weights changes nothing here.
        let opened = ready.model.as_opened();
        let is_known =
            matches!(&self.resizer, Some((model, _)) if Arc::ptr_eq(&model.as_opened(), &opened));
        if !is_known {
            let preprocessor = &ready.model.preprocessor;
            let resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
            self.resizer = Some((Arc::clone(&ready.model), resizer));
            self.frames.begin_model();
        }
        self.frames.expect(settings, ready.one_image);
    }
}
