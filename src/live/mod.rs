//! Live video: from a camera, a network stream or the screen, through the element
//! [`VitScope`](plugin::VitScope), to a window and a file.
//!
//! Two pipelines share a clock. One is the connection to the source, and is built again where that was lost; the other one
//! explains, shows and records, and goes on meanwhile:
//!
//! ```text
//! source ! decode ! appsink   →   appsrc ! vitscope ! tee ! queue ! window
//!                                                         ! queue ! encoder ! matroskamux ! file
//! ```

mod address;
mod capture;
mod outputs;

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;

use crate::error::{Error, Result};
use crate::media::elements::{add_chain, make};
use crate::plugin;
use capture::{Base, Capture};

pub use address::Address;
pub use capture::{Camera, Wanted, cameras};
pub use outputs::Outputs;

/// Frames between the two pipelines.
const WAITING: u64 = 4;
/// How often the buses are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Without a frame for so long, a source that has sent some is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// Without a first frame for so long, a source is not there.
const FIRST_FRAME: Duration = Duration::from_secs(15);
/// Until a lost source is tried again; twice as long after each failure.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// What writing the end of a recording may take.
const ENDING: Duration = Duration::from_secs(10);
const AFTER_WINDOW: Duration = Duration::from_millis(500);

/// What to show of which source.
#[derive(Clone, Debug)]
pub struct Live {
    /// Where the video comes from.
    pub address: Address,
    /// What is asked of a camera.
    pub wanted: Wanted,
    /// Properties of the element `vitscope`, as texts.
    pub properties: Vec<(&'static str, String)>,
    /// Where it goes.
    pub outputs: Outputs,
}

/// What a user may want to know while it runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Frames come.
    Connected,
    /// They come no more; the source is tried again after a wait.
    Lost {
        /// What happened, in a sentence.
        reason: String,
        /// Until the next attempt.
        wait: Duration,
    },
    /// How it goes, once a second.
    Status(Status),
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    /// Frames that were shown.
    pub frames: u64,
    /// Frames that were explained.
    pub explained: u64,
    /// Frames whose turn to be explained came while the model was busy.
    pub skipped: u64,
    /// Median time from a frame's arrival at the model to its explanation.
    pub median: Duration,
    /// 99th percentile of it.
    pub p99: Duration,
}

impl Live {
    /// Runs until `cancel` is set, the window is closed, or a source that cannot come back has ended.
    ///
    /// # Errors
    /// Fails where the source is not there to begin with, and where the model or an output fails.
    pub fn run(&self, cancel: &AtomicBool, on_event: &mut dyn FnMut(Event)) -> Result<Status> {
        crate::media::init()?;
        plugin::register(None).map_err(|error| Error::Media(error.to_string()))?;
        let player = Player::start(self)?;
        // Where something failed, there is nobody to wait for; what was recorded can be played all the same.
        let status = self.watch(&player, cancel, on_event)?;
        player.end()?;
        Ok(status)
    }

    /// Keeps the source connected until there is a reason to end.
    fn watch(
        &self,
        player: &Player,
        cancel: &AtomicBool,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Status> {
        let mut connection = Connection::new(self, player)?;
        let mut told = Instant::now();
        loop {
            if cancel.load(Ordering::SeqCst) || !player.check(TICK)? {
                return Ok(player.status());
            }
            match connection.check(self, player)? {
                Some(Event::Lost { reason, .. }) if !self.comes_back() => {
                    tracing::info!("{reason}");
                    return Ok(player.status());
                }
                Some(event) => on_event(event),
                None => (),
            }
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                on_event(Event::Status(player.status()));
            }
        }
    }

    /// Cameras are plugged in again and servers come back; screens and patterns do not.
    fn comes_back(&self) -> bool {
        !matches!(self.address, Address::Screen | Address::Test(_))
    }
}

/// The source, connected or waited for.
struct Connection {
    capture: Option<Capture>,
    /// When it was connected, or lost.
    since: Instant,
    /// Frames of this connection, and when they were counted.
    counted: (u64, Instant),
    /// Until the next attempt.
    wait: Duration,
    ever_connected: bool,
}

impl Connection {
    fn new(live: &Live, player: &Player) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            capture: Some(player.capture(live)?),
            since: now,
            counted: (0, now),
            wait: FIRST_WAIT,
            ever_connected: false,
        })
    }

    /// What has happened to the source since the last time.
    ///
    /// # Errors
    /// Fails where no frame has ever come, and none will.
    fn check(&mut self, live: &Live, player: &Player) -> Result<Option<Event>> {
        let Some(capture) = &self.capture else {
            if self.since.elapsed() < self.wait {
                return Ok(None);
            }
            let now = Instant::now();
            (self.since, self.counted) = (now, (0, now));
            return match player.capture(live) {
                Ok(capture) => {
                    self.capture = Some(capture);
                    Ok(None)
                }
                Err(error) => Ok(Some(self.lose(error.to_string()))),
            };
        };
        let n_frames = capture.n_frames();
        let connected = self.counted.0 == 0 && n_frames > 0;
        if n_frames > self.counted.0 {
            self.counted = (n_frames, Instant::now());
        }
        let patience = if n_frames == 0 { FIRST_FRAME } else { SILENCE };
        let silence = self.counted.1.elapsed();
        let lost = match capture.check() {
            Err(error) => Some(error.to_string()),
            Ok(()) if silence > patience => Some(format!(
                "{}: no frame for {} s",
                live.address,
                patience.as_secs()
            )),
            Ok(()) => None,
        };
        if connected {
            (self.ever_connected, self.wait) = (true, FIRST_WAIT);
        }
        match lost {
            Some(reason) if !self.ever_connected => Err(Error::Media(reason)),
            Some(reason) => Ok(Some(self.lose(reason))),
            None => Ok(connected.then_some(Event::Connected)),
        }
    }

    fn lose(&mut self, reason: String) -> Event {
        let wait = self.wait;
        self.capture = None;
        self.since = Instant::now();
        self.wait = (wait * 2).min(LONGEST_WAIT);
        Event::Lost { reason, wait }
    }
}

/// The pipeline behind the source: it explains, shows and records.
struct Player {
    pipeline: gst::Pipeline,
    appsrc: gst_app::AppSrc,
    element: gst::Element,
    outputs: Outputs,
    /// The user has closed the window.
    closed: Cell<bool>,
    base: Base,
}

impl Player {
    fn start(live: &Live) -> Result<Self> {
        let pipeline = gst::Pipeline::new();
        let appsrc = gst_app::AppSrc::builder()
            .is_live(true)
            .format(gst::Format::Time)
            .max_buffers(WAITING)
            // The element keeps up in `latest` and `exact`; where it does not, the source drops what it must.
            .block(true)
            .build();
        let element = make("vitscope")?;
        for (name, value) in &live.properties {
            element.set_property_from_str(name, value);
        }
        let tee = make("tee")?;
        let chain = [appsrc.clone().upcast(), element.clone(), tee.clone()];
        add_chain(&pipeline, &chain)?;
        live.outputs.add(&pipeline, &tee)?;
        let clock = gst::SystemClock::obtain();
        let time = clock.time();
        pipeline.use_clock(Some(&clock));
        pipeline.set_start_time(gst::ClockTime::NONE);
        pipeline.set_base_time(time);
        let player = Self {
            pipeline,
            appsrc,
            element,
            outputs: live.outputs.clone(),
            closed: Cell::new(false),
            base: Base { clock, time },
        };
        if player.pipeline.set_state(gst::State::Playing).is_err() {
            let bus = player.pipeline.bus();
            let message = bus.and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
            return Err(match message.as_ref().map(|message| message.view()) {
                Some(gst::MessageView::Error(error)) => live.outputs.failed(error),
                _ => Error::Media("the pipeline does not start".into()),
            });
        }
        Ok(player)
    }

    fn capture(&self, live: &Live) -> Result<Capture> {
        Capture::start(&live.address, live.wanted, &self.appsrc, &self.base)
    }

    /// Waits up to `patience` for news; false where there is nothing more to do.
    ///
    /// # Errors
    /// Fails where the model or an output has failed.
    fn check(&self, patience: Duration) -> Result<bool> {
        let Some(bus) = self.pipeline.bus() else {
            return Ok(false);
        };
        let kinds = [
            gst::MessageType::Error,
            gst::MessageType::Eos,
            gst::MessageType::Latency,
        ];
        let patience = gst::ClockTime::try_from(patience).ok();
        match bus.timed_pop_filtered(patience, &kinds) {
            None => Ok(true),
            Some(message) => match message.view() {
                gst::MessageView::Error(error) if outputs::is_closed_window(error) => {
                    self.closed.set(true);
                    Ok(false)
                }
                gst::MessageView::Error(error) => Err(self.outputs.failed(error)),
                gst::MessageView::Latency(_) => {
                    // It is done by the time of the next frame; where it fails, frames come a little late.
                    let _ = self.pipeline.recalculate_latency();
                    Ok(true)
                }
                _ => Ok(false),
            },
        }
    }

    fn status(&self) -> Status {
        let stats = self.element.property::<gst::Structure>("stats");
        let count = |name| stats.get::<u64>(name).unwrap_or_default();
        Status {
            frames: count("frames"),
            explained: count("explained"),
            skipped: count("skipped"),
            median: Duration::from_nanos(count("median")),
            p99: Duration::from_nanos(count("p99")),
        }
    }

    /// Lets recordings be finished.
    fn end(self) -> Result<()> {
        self.appsrc
            .end_of_stream()
            .map_err(|error| Error::Media(format!("outputs cannot be finished: {error}")))?;
        // A closed window never says that it has come to its end; the recording takes a moment for its own.
        let closed = self.closed.get();
        let until = Instant::now() + if closed { AFTER_WINDOW } else { ENDING };
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let checked = self.check(left.min(TICK));
            // Whatever else fails behind a closed window follows from that.
            if !closed && !checked? {
                return Ok(());
            }
        }
        if closed {
            return Ok(());
        }
        Err(Error::Media(format!(
            "outputs are not finished after {} s",
            ENDING.as_secs()
        )))
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if self.pipeline.set_state(gst::State::Null).is_err() {
            tracing::warn!("the pipeline does not stop");
        }
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::Media(format!("path is not UTF-8: {path:?}")))
}
