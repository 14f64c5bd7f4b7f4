//! The pipeline after the source: it explains, displays and records.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;

use super::capture::{Base, Capture};
use super::controls::{Controls, Key, options_of};
use super::explained::Explained;
use super::freeze::Freeze;
use super::outputs::{self, Outputs, Pictures};
use super::peek::Peek;
use super::teaching::Teaching;
use super::{Live, Status};
use crate::serve::{Feed, Topic};
use vitscope_core::error::{Error, Result};
use vitscope_element::VitScope;
use vitscope_video::media::elements::{add_chain, make, static_pad};

/// Maximum number of frames queued between the two pipelines.
const WAITING: u64 = 4;
/// Maximum number of pending keys.
const KEYS: usize = 16;
/// Maximum time to finish a recording.
const ENDING: Duration = Duration::from_secs(10);
const AFTER_WINDOW: Duration = Duration::from_millis(500);
/// Interval between checks of the bus during the end.
const TICK: Duration = Duration::from_millis(100);

/// Result of a check of the pipeline.
pub(super) enum News {
    None,
    /// The run is over.
    Over,
    /// Something failed, but the video continues.
    Problem(String),
}

/// The pipeline after the source.
pub(super) struct Player {
    pipeline: gst::Pipeline,
    appsrc: gst_app::AppSrc,
    element: VitScope,
    controls: Arc<Controls>,
    freeze: Arc<Freeze>,
    /// Keys pressed in the window.
    keys: Receiver<Key>,
    outputs: Outputs,
    /// Whether the files written by the outputs are kept.
    is_kept: Cell<bool>,
    /// Whether the user has closed the window.
    closed: Cell<bool>,
    base: Base,
}

impl Player {
    pub(super) fn start(live: &Live, feed: &Arc<Feed>) -> Result<Self> {
        let pipeline = gst::Pipeline::new();
        let appsrc = gst_app::AppSrc::builder()
            .is_live(true)
            .format(gst::Format::Time)
            .max_buffers(WAITING)
            // In `latest` and `exact`, the element keeps up; if it does not, the source drops frames as needed.
            .block(true)
            .build();
        let element = element(live)?;
        let told = Arc::clone(feed);
        element.on_explained(move |finding, time| {
            told.tell(Topic::Explained, &Explained::new(finding, time).json());
        });
        let tee = make("tee")?;
        let chain = [
            appsrc.clone().upcast(),
            element.clone().upcast(),
            tee.clone(),
        ];
        add_chain(&pipeline, &chain)?;
        let (pressed, keys): (Sender<Key>, _) = crossbeam_channel::bounded(KEYS);
        let pictures = live.page.as_ref().map(|_| Pictures(Arc::clone(feed)));
        let outputs = Outputs::new(&live.outputs, pictures);
        outputs.add(&pipeline, &tee, &pressed)?;
        let freeze = Arc::new(Freeze::default());
        let teaching = match live.teach.clone() {
            Some(what) => {
                let source = Peek::new(&static_pad(appsrc.upcast_ref(), "src")?);
                Some(Teaching::new(
                    what,
                    element.clone(),
                    source,
                    Arc::clone(feed),
                ))
            }
            None => None,
        };
        let controls = Controls::new(
            live.address.to_string(),
            element.clone(),
            Arc::clone(&freeze),
            Peek::new(&static_pad(&tee, "sink")?),
            Arc::clone(feed),
            live.settings.request.options.clone(),
            teaching,
        );
        let clock = gst::SystemClock::obtain();
        let time = clock.time();
        pipeline.use_clock(Some(&clock));
        pipeline.set_start_time(gst::ClockTime::NONE);
        pipeline.set_base_time(time);
        let player = Self {
            pipeline,
            appsrc,
            element,
            controls: Arc::new(controls),
            freeze,
            keys,
            outputs,
            is_kept: Cell::new(false),
            closed: Cell::new(false),
            base: Base { clock, time },
        };
        if player.pipeline.set_state(gst::State::Playing).is_err() {
            let bus = player.pipeline.bus();
            let message = bus.and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
            return Err(match message.as_ref().map(|message| message.view()) {
                Some(gst::MessageView::Error(error)) => player.outputs.failed(error),
                _ => Error::Media("the pipeline did not start".into()),
            });
        }
        player.outputs.check(&player.pipeline)?;
        Ok(player)
    }

    /// Connects to the source.
    ///
    /// # Errors
    /// See [`Capture::start`].
    pub(super) fn capture(&self, live: &Live) -> Result<Capture> {
        let freeze = Arc::clone(&self.freeze);
        Capture::start(&live.address, live.wanted, &self.appsrc, &self.base, freeze)
    }

    pub(super) fn controls(&self) -> Arc<Controls> {
        Arc::clone(&self.controls)
    }

    /// Returns a key pressed in the window, if any.
    pub(super) fn key(&self) -> Option<Key> {
        self.keys.try_recv().ok()
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.freeze.is_frozen()
    }

    /// Returns a view of the frames as they come from the source.
    ///
    /// # Errors
    /// Fails if GStreamer's element has no pad.
    pub(super) fn source(&self) -> Result<Peek> {
        Ok(Peek::new(&static_pad(self.appsrc.upcast_ref(), "src")?))
    }

    /// Reloads the model and gates.
    pub(super) fn reload(&self) {
        self.element.reload();
    }

    /// Waits up to `patience` for news.
    ///
    /// # Errors
    /// Fails if the model or an output has failed.
    pub(super) fn check(&self, patience: Duration) -> Result<News> {
        let Some(bus) = self.pipeline.bus() else {
            return Ok(News::Over);
        };
        let kinds = [
            gst::MessageType::Error,
            gst::MessageType::Warning,
            gst::MessageType::Progress,
            gst::MessageType::Eos,
            gst::MessageType::Latency,
        ];
        let patience = gst::ClockTime::try_from(patience).ok();
        match bus.timed_pop_filtered(patience, &kinds) {
            None => Ok(News::None),
            Some(message) => match message.view() {
                gst::MessageView::Error(error) if outputs::is_closed(error) => {
                    self.closed.set(true);
                    Ok(News::Over)
                }
                gst::MessageView::Error(error) => Err(self.outputs.failed(error)),
                gst::MessageView::Warning(warning) => {
                    Ok(News::Problem(warning.error().message().to_owned()))
                }
                gst::MessageView::Progress(_) => {
                    // A model was opened, so the available choices may be known.
                    self.controls.tell();
                    Ok(News::None)
                }
                gst::MessageView::Latency(_) => {
                    // It is done by the time of the next frame; if it fails, frames arrive slightly late.
                    let _ = self.pipeline.recalculate_latency();
                    Ok(News::None)
                }
                _ => Ok(News::Over),
            },
        }
    }

    /// Keeps the files written by the outputs as soon as a frame has been explained.
    ///
    /// # Errors
    /// Fails if an output cannot keep its files.
    pub(super) fn keep_explained(&self) -> Result<()> {
        if !self.is_kept.get() && self.status().explained > 0 {
            self.keep()?;
        }
        Ok(())
    }

    fn keep(&self) -> Result<()> {
        match self.is_kept.replace(true) {
            true => Ok(()),
            false => self.outputs.keep(),
        }
    }

    pub(super) fn status(&self) -> Status {
        self.element.statistics()
    }

    /// Ends the stream and waits until recordings are finished.
    pub(super) fn end(self) -> Result<()> {
        // A user who ends the run wants to keep the recording, explained or not.
        if self.status().frames > 0 {
            self.keep()?;
        }
        self.appsrc
            .end_of_stream()
            .map_err(|error| Error::Media(format!("cannot finish the outputs: {error}")))?;
        // A closed window never reports the end of the stream; the recording needs a moment for its own end.
        let closed = self.closed.get();
        let until = Instant::now() + if closed { AFTER_WINDOW } else { ENDING };
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let checked = self.check(left.min(TICK));
            // Any other failure after the window is closed is a consequence of that.
            if !closed && matches!(checked?, News::Over) {
                return Ok(());
            }
        }
        if closed {
            return Ok(());
        }
        Err(Error::Media(format!(
            "the outputs did not finish within {} s",
            ENDING.as_secs()
        )))
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if self.pipeline.set_state(gst::State::Null).is_err() {
            tracing::warn!("the pipeline did not stop");
        }
        if !self.is_kept.get() {
            self.outputs.discard();
        }
    }
}

/// Creates the element with the settings of the run.
fn element(live: &Live) -> Result<VitScope> {
    let element = make("vitscope")?
        .downcast::<VitScope>()
        .map_err(|_| Error::Media("another element is already named \"vitscope\"".into()))?;
    element.change(|settings| {
        *settings = live.settings.clone();
        let request = &mut settings.request;
        // Without a given method, keep all options: the model's default method may be any of them.
        if !request.methods.is_empty() {
            request.options = options_of(&request.methods, &request.options);
        }
    });
    Ok(element)
}
