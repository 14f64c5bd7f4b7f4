//! What source and sink of one file share: the GStreamer pipeline, its first failure, and the way to end it early.
//!
//! Every wait of this crate on GStreamer ends: each is a `select!` over what it waits for and [`Shared::aborted`],
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
use vitscope_core::error::{Error, Result};

/// State that callbacks on GStreamer's threads share with the source and the sink.
pub(super) struct Shared {
    input: PathBuf,
    output: PathBuf,
    /// The first thing that went wrong; later ones follow from it.
    failure: Mutex<Option<Failure>>,
    /// Streams that no installed plugin handles.
    missing: Mutex<Vec<String>>,
    /// Dropped to wake every wait.
    abort: Mutex<Option<Sender<Infallible>>>,
    /// Disconnects once something failed.
    pub(super) aborted: Receiver<Infallible>,
    /// Sound found by the demuxer, kept back until there is a container to put it in.
    ///
    /// `None` once that container is begun: it takes no further streams then.
    pub(super) tracks: Mutex<Option<Vec<AudioTrack>>>,
    /// Titles, chapters and the like.
    pub(super) announced: Mutex<Announced>,
    /// True once no further decoded frame is wanted.
    pub(super) stopped: AtomicBool,
    /// True once the input was read to its end (or to that of the range).
    pub(super) complete: AtomicBool,
    /// Presentation time in nanoseconds from which sound is cut off; `u64::MAX` keeps all.
    pub(super) sound_end: AtomicU64,
    /// Presentation time in nanoseconds at which the first packet of sound begins; `u64::MAX` where there is none.
    pub(super) sound_begin: AtomicU64,
    /// Presentation time in nanoseconds at which the last packet of sound so far ends.
    pub(super) sound_written: AtomicU64,
    /// Sound tracks that turned up after their container was begun.
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

    /// Keeps the first failure and wakes every wait.
    pub(super) fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
        lock(&self.abort).take();
    }

    /// The failure as an error.
    pub(super) fn error(&self) -> Error {
        match &*lock(&self.failure) {
            Some(failure) => failure.to_error(&self.input, &self.output),
            None => Error::Media(format!("the pipeline was abandoned: {:?}", self.input)),
        }
    }

    /// Fails where something has failed.
    pub(super) fn check(&self) -> Result<()> {
        if lock(&self.failure).is_some() {
            return Err(self.error());
        }
        Ok(())
    }

    /// Fails where something has failed that the sink does not speak of.
    ///
    /// Both wake at a failure; without this, which of them names it would be a matter of luck.
    pub(super) fn check_source(&self) -> Result<()> {
        let writer = lock(&self.failure)
            .as_ref()
            .is_some_and(|failure| failure.writer);
        if writer { Ok(()) } else { self.check() }
    }

    /// True where the disk was full.
    pub(super) fn disk_full(&self) -> bool {
        lock(&self.failure)
            .as_ref()
            .is_some_and(|failure| failure.disk_full)
    }

    /// Streams that no installed plugin handles, in words.
    pub(super) fn missing(&self) -> Vec<String> {
        lock(&self.missing).clone()
    }

    fn hear(&self, message: &gst::MessageRef) {
        match message.view() {
            gst::MessageView::Error(error) => self.fail(Failure::from_message(error)),
            gst::MessageView::Element(element) => {
                if let Some(name) = bus::missing_plugin(element) {
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

/// One pipeline from the input file to the `.part` file; stopped when source and sink are both gone.
pub(super) struct Session {
    pub(super) pipeline: gst::Pipeline,
    /// The `filesrc`: told to end early, because end of stream sent to the pipeline would also reach `appsrc`.
    pub(super) filesrc: gst::Element,
    pub(super) shared: Arc<Shared>,
}

impl Session {
    pub(super) fn new(pipeline: gst::Pipeline, filesrc: gst::Element, shared: Arc<Shared>) -> Self {
        if let Some(bus) = pipeline.bus() {
            let heard = Arc::clone(&shared);
            // Messages are taken where they are posted: nobody polls the bus, and a wait wakes at once.
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

    /// Asks the demuxer to end, whatever it has still to read.
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
        // Their probes hold `Shared`, which holds them.
        lock(&self.shared.tracks).take();
    }
}

/// Locks `mutex`; what a panicking thread left behind is still the best there is.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
