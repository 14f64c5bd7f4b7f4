//! State shared by source and sink of one file: the GStreamer pipeline, its first failure, and the means to end it
//! early.
//!
//! Every wait of this crate on GStreamer ends: each is a `select!` over the awaited event and [`Shared::aborted`],
//! which disconnects at the first error on the bus.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use gstreamer as gst;
use gstreamer::prelude::*;

use super::audio::AudioTrack;
use super::beside::Announced;
use super::bus::{self, Failure};
use super::elements;
use vitscope_core::error::{Error, Result};

/// State that callbacks on GStreamer's threads share with the source and the sink.
pub(super) struct Shared {
    input: PathBuf,
    output: PathBuf,
    /// The first failure; later ones are its consequences.
    failure: Mutex<Option<Failure>>,
    /// Streams that no installed plugin handles.
    missing: Mutex<Vec<String>>,
    /// Dropped to wake all waiting threads.
    abort: Mutex<Option<Sender<Infallible>>>,
    /// Disconnects once anything fails.
    pub(super) aborted: Receiver<Infallible>,
    /// Audio tracks found by the demuxer, blocked until a container exists for them.
    ///
    /// `None` once that container is begun, because it accepts no further streams.
    pub(super) tracks: Mutex<Option<Vec<AudioTrack>>>,
    /// Titles, chapters and similar metadata.
    pub(super) announced: Mutex<Announced>,
    /// True once no further decoded frame is needed.
    pub(super) stopped: AtomicBool,
    /// True once the input is read to its end (or to that of the range).
    pub(super) complete: AtomicBool,
    /// Presentation time in nanoseconds from which audio is cut off; `u64::MAX` keeps all.
    pub(super) sound_end: AtomicU64,
    /// Presentation time in nanoseconds at which the first audio packet begins; `u64::MAX` without one.
    pub(super) sound_begin: AtomicU64,
    /// Presentation time in nanoseconds at which the last audio packet so far ends.
    pub(super) sound_written: AtomicU64,
    /// Number of audio tracks that appeared after their container was begun.
    pub(super) n_late_tracks: AtomicU64,
}

impl Shared {
    pub(super) fn new(input: PathBuf, output: PathBuf) -> Arc<Self> {
        let (abort, aborted) = bounded(0);
        Arc::new(Self {
            input,
            output,
            failure: Mutex::new(None),
            missing: Mutex::new(Vec::new()),
            abort: Mutex::new(Some(abort)),
            aborted,
            tracks: Mutex::new(Some(Vec::new())),
            announced: Mutex::default(),
            stopped: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            sound_end: AtomicU64::new(u64::MAX),
            sound_begin: AtomicU64::new(u64::MAX),
            sound_written: AtomicU64::new(0),
            n_late_tracks: AtomicU64::new(0),
        })
    }

    /// Records the first failure and wakes all waiting threads.
    pub(super) fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
        lock(&self.abort).take();
    }

    /// Returns the failure as an error.
    pub(super) fn error(&self) -> Error {
        match &*lock(&self.failure) {
            Some(failure) => failure.to_error(&self.input, &self.output),
            None => Error::Media(format!("the pipeline was abandoned: {:?}", self.input)),
        }
    }

    /// Returns the failure, if any, as an error.
    pub(super) fn check(&self) -> Result<()> {
        if lock(&self.failure).is_some() {
            return Err(self.error());
        }
        Ok(())
    }

    /// Like [`check`](Self::check), but ignores failures that the sink reports.
    ///
    /// A failure wakes both source and sink; without this check, it would be a matter of chance which of them reports
    /// it.
    pub(super) fn check_source(&self) -> Result<()> {
        let writer = lock(&self.failure)
            .as_ref()
            .is_some_and(|failure| failure.writer);
        if writer { Ok(()) } else { self.check() }
    }

    /// True if the disk is full.
    pub(super) fn disk_full(&self) -> bool {
        lock(&self.failure)
            .as_ref()
            .is_some_and(|failure| failure.disk_full)
    }

    /// Returns descriptions of the streams that no installed plugin handles.
    pub(super) fn missing(&self) -> Vec<String> {
        lock(&self.missing).clone()
    }

    fn hear(&self, message: &gst::MessageRef) {
        match message.view() {
            gst::MessageView::Error(error) => self.fail(Failure::from_message(error)),
            gst::MessageView::Element(element) => {
                let Some(name) = bus::missing_plugin(element) else {
                    return;
                };
                let of = element.src().and_then(|src| src.downcast_ref());
                if of.is_some_and(|of| elements::factory_name(of) == "decodebin3") {
                    // It decodes the video only. Without a decoder, and with audio beside it, nothing ever comes of it.
                    self.fail(Failure::new(bus::no_decoder(&name)));
                } else {
                    lock(&self.missing).push(name);
                }
            }
            gst::MessageView::Warning(warning) => {
                tracing::debug!(reason = %warning.error(), "gstreamer warns");
            }
            _ => {}
        }
    }
}

/// One pipeline from the input file to the `.part` file, stopped when source and sink are both gone.
pub(super) struct Session {
    pub(super) pipeline: gst::Pipeline,
    /// The `filesrc`, which receives the request to end early: end of stream sent to the pipeline would also reach
    /// `appsrc`.
    pub(super) filesrc: gst::Element,
    pub(super) shared: Arc<Shared>,
}

impl Session {
    pub(super) fn new(pipeline: gst::Pipeline, filesrc: gst::Element, shared: Arc<Shared>) -> Self {
        if let Some(bus) = pipeline.bus() {
            let heard = Arc::clone(&shared);
            // Messages are handled where they are posted: no thread polls the bus, and a waiting thread wakes at once.
            bus.set_sync_handler(move |_, message| {
                heard.hear(message);
                gst::BusSyncReply::Drop
            });
        }
        Self {
            pipeline,
            filesrc,
            shared,
        }
    }

    /// Requests the demuxer to end, however much is left to read.
    pub(super) fn stop(&self) {
        if !self.shared.stopped.swap(true, Ordering::SeqCst) {
            self.filesrc.send_event(gst::event::Eos::new());
        }
    }

    /// Ends all of GStreamer's threads and closes all files.
    pub(super) fn shut_down(&self) -> Result<()> {
        self.pipeline.set_state(gst::State::Null).map_err(|_| {
            Error::Media(format!(
                "the pipeline did not stop: {:?}",
                self.shared.input
            ))
        })?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Threads that wait inside a callback must leave it before GStreamer can join them.
        lock(&self.shared.abort).take();
        if self.pipeline.set_state(gst::State::Null).is_err() {
            tracing::warn!(input = ?self.shared.input, "the pipeline did not stop");
        }
        if let Some(bus) = self.pipeline.bus() {
            bus.unset_sync_handler();
        }
        // The probes of the tracks hold `Shared`, which holds the tracks.
        lock(&self.shared.tracks).take();
    }
}

/// Locks `mutex`, ignoring poisoning: the state left by a panicking thread is still the best available.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
