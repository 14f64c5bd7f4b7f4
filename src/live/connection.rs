//! Keeps a source connected: a lost source is retried after increasingly long waits.

use std::time::{Duration, Instant};

use super::capture::Capture;
use super::player::Player;
use super::{Event, Live};
use vitscope_core::error::{Error, Result};

/// Time without a frame after which a source that has sent some is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// Time without a first frame after which a source is considered absent.
const FIRST_FRAME: Duration = Duration::from_secs(15);
/// Wait before a lost source is retried; doubled after each failure.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A source that is connected or awaited.
pub(super) struct Connection {
    capture: Option<Capture>,
    /// When it was connected or lost.
    since: Instant,
    /// Number of frames of this connection, and when they were counted.
    counted: (u64, Instant),
    /// Wait before the next attempt, and before the one after it.
    wait: Duration,
    next_wait: Duration,
    ever_connected: bool,
}

impl Connection {
    pub(super) fn new(live: &Live, player: &Player) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            capture: Some(player.capture(live)?),
            since: now,
            counted: (0, now),
            wait: FIRST_WAIT,
            next_wait: FIRST_WAIT,
            ever_connected: false,
        })
    }

    /// Returns what has happened to the source since the last call.
    ///
    /// # Errors
    /// Fails if no frame has ever arrived and none will.
    pub(super) fn check(&mut self, live: &Live, player: &Player) -> Result<Option<Event>> {
        let Some(capture) = &self.capture else {
            if self.since.elapsed() < self.wait {
                return Ok(None);
            }
            self.begin();
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
        let lost = match capture.has_ended() {
            Err(error) => Some(error.to_string()),
            Ok(true) if n_frames == 0 => Some(format!("{}: no video found", live.address)),
            Ok(true) if live.again => {
                self.begin();
                self.capture = Some(player.capture(live)?);
                return Ok(None);
            }
            Ok(true) => Some(format!("{}: the stream has ended", live.address)),
            Ok(false) if silence > patience => Some(format!(
                "{}: no frame for {} s",
                live.address,
                patience.as_secs()
            )),
            Ok(false) => None,
        };
        if connected {
            (self.ever_connected, self.next_wait) = (true, FIRST_WAIT);
        }
        match lost {
            Some(reason) if !self.ever_connected => Err(Error::Media(reason)),
            Some(reason) => Ok(Some(self.lose(reason))),
            None => Ok(connected.then_some(Event::Connected)),
        }
    }

    /// Restarts the counts.
    fn begin(&mut self) {
        let now = Instant::now();
        (self.since, self.counted) = (now, (0, now));
    }

    /// Returns whether frames are arriving.
    pub(super) fn is_up(&self) -> bool {
        self.capture.is_some() && self.counted.0 > 0
    }

    fn lose(&mut self, reason: String) -> Event {
        let wait = self.next_wait;
        self.capture = None;
        self.since = Instant::now();
        (self.wait, self.next_wait) = (wait, (wait * 2).min(LONGEST_WAIT));
        Event::Lost { reason, wait }
    }
}
