//! Live video from a camera, a network stream or the screen, explained by the element
//! [`VitScope`](vitscope_element::VitScope) and sent to a window, a web page, files and other machines.
//!
//! Two pipelines share a clock. One reads the source and is rebuilt when the connection is lost. The other explains,
//! displays and records, and keeps running:
//!
//! ```text
//! source ! decode ! appsink   →   appsrc ! vitscope ! tee ! queue ! window
//!                                                         ! queue ! jpegenc ! page
//!                                                         ! queue ! encoder ! matroskamux ! file
//! ```

#![warn(missing_docs, unreachable_pub, unused_lifetimes)]
mod address;
mod capture;
mod collect;
mod connection;
mod controls;
mod explained;
mod freeze;
mod outputs;
mod peek;
mod player;
pub mod serve;
mod teaching;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::serve::{Feed, Host, Server, Topic};
use collect::Collector;
use connection::Connection;
use player::{News, Player};
use teaching::Teaching;
use vitscope_core::error::{Error, Result};
use vitscope_core::models;
use watch::Watch;

pub use address::{Address, without_secrets};
pub use capture::{Camera, Wanted, cameras, plugin_file};
pub use collect::Collect;
pub use controls::Key;
pub use outputs::{Frames, HlsFolder, Output, Recording, RtspPush, VirtualCamera, Window};
pub use teaching::{Answers, ClassProgress, Progress, Teach};
pub use vitscope_element::Figures as Status;

/// Interval between checks of the buses.
const TICK: Duration = Duration::from_millis(100);
/// Interval between status updates of the page and checks of files.
const SECOND: Duration = Duration::from_secs(1);

/// Settings of a live run.
#[derive(Clone, Debug)]
pub struct Live {
    /// Where the video comes from.
    pub address: Address,
    /// Restarts a file whenever it has ended.
    pub again: bool,
    /// Format requested from a camera.
    pub wanted: Wanted,
    /// Settings of the element `vitscope`. Options of methods that are not selected wait until they are.
    pub settings: vitscope_element::Settings,
    /// Where the result goes; with no output and no page, only the model runs.
    pub outputs: Vec<Arc<dyn Output>>,
    /// The web page, if any.
    pub page: Option<Page>,
    /// How to store original frames, if at all.
    pub collect: Option<Collect>,
    /// A folder with gates to reload whenever they change.
    pub gates: Option<PathBuf>,
    /// Classes to teach.
    pub teach: Option<Teach>,
}

/// The web page, see [`serve`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The address to listen on; port 0 selects a free port.
    pub address: SocketAddr,
    /// The token that browsers must present; required if other machines can connect.
    pub token: Option<String>,
}

/// Receives the events of a run and may control it.
pub trait Audience {
    /// Receives an event.
    fn event(&mut self, event: Event);

    /// Returns a pressed key, if any.
    fn key(&mut self) -> Option<Key> {
        None
    }

    /// Receives a snapshot as PNG.
    ///
    /// # Errors
    /// Fails if the snapshot cannot be saved.
    fn snapshot(&mut self, _png: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// An event to report to the user during a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The web page is available at this address.
    Serving(SocketAddr),
    /// Frames are arriving.
    Connected,
    /// The source is lost; vitscope reconnects after a wait.
    Lost {
        /// The reason, in one sentence.
        reason: String,
        /// Time until the next attempt.
        wait: Duration,
    },
    /// Something failed, but the video continues.
    Problem(String),
    /// Gates have changed and are being reloaded.
    Reloading,
    /// An example was added or undone, or the head was saved.
    Taught(Progress),
    /// Status, once per second.
    Status(Status),
    /// Outputs are being finished.
    Ending,
}

impl Live {
    /// Runs until `cancel` is set, the window is closed, the user quits, or a source that cannot be reopened ends.
    ///
    /// # Errors
    /// Fails if the source is unavailable at the start, or if the model or an output fails.
    pub fn run(&self, cancel: &AtomicBool, audience: &mut dyn Audience) -> Result<Status> {
        vitscope_video::media::init()?;
        if let Some(teach) = &self.teach {
            models::check_head_folder(&teach.folder)?;
        }
        vitscope_element::register(None).map_err(|error| Error::Media(error.to_string()))?;
        let feed = Arc::new(Feed::default());
        let player = Player::start(self, &feed)?;
        // Start the server before the source, so that an address that cannot be served is reported at once.
        let server = self.page.clone().map(|page| {
            let host: Arc<dyn Host> = player.controls();
            Server::start(page.address, page.token, host, Arc::clone(&feed))
        });
        let server = server.transpose()?;
        if let Some(server) = &server {
            audience.event(Event::Serving(server.address()));
        }
        // On failure, do not finish the outputs: an unfinished recording can still be played.
        let status = self.watch(&player, &feed, cancel, audience)?;
        drop(server);
        let progress = player
            .controls()
            .teaching()
            .ok()
            .and_then(Teaching::progress);
        if progress.is_some_and(|progress| progress.unsaved) {
            let lost = "examples added since the last save are lost (press w to save)";
            audience.event(Event::Problem(lost.into()));
        }
        audience.event(Event::Ending);
        player.end()?;
        Ok(status)
    }

    /// Keeps the source connected until the run ends.
    fn watch(
        &self,
        player: &Player,
        feed: &Feed,
        cancel: &AtomicBool,
        audience: &mut dyn Audience,
    ) -> Result<Status> {
        let mut connection = Connection::new(self, player)?;
        let mut collector = match self.collect.clone() {
            Some(what) => Some(Collector::new(what, player.source()?)?),
            None => None,
        };
        let mut gates = self.gates.as_deref().map(Watch::new);
        let mut problem = None;
        let mut second = Instant::now();
        let mut before = player.status();
        loop {
            if cancel.load(Ordering::SeqCst) {
                return Ok(player.status());
            }
            player.keep_explained()?;
            match player.check(TICK)? {
                News::None => (),
                News::Over => return Ok(player.status()),
                News::Problem(text) => audience.event(Event::Problem(text)),
            }
            match connection.check(self, player)? {
                Some(Event::Lost { reason, .. }) if !self.comes_back() => {
                    tracing::info!("{reason}");
                    return Ok(player.status());
                }
                Some(event) => {
                    problem = match &event {
                        Event::Lost { reason, .. } => Some(reason.clone()),
                        _ => None,
                    };
                    audience.event(event);
                }
                None => (),
            }
            while let Some(key) = audience.key().or_else(|| player.key()) {
                match key {
                    Key::Quit => return Ok(player.status()),
                    Key::Snapshot => {
                        let taken = player.controls().snapshot();
                        if let Err(error) = taken.and_then(|png| audience.snapshot(&png)) {
                            audience.event(Event::Problem(error.to_string()));
                        }
                    }
                    key => {
                        if let Err(error) = player.controls().press(key) {
                            audience.event(Event::Problem(error.to_string()));
                        }
                        tell_taught(player, audience);
                    }
                }
            }
            if let Ok(teaching) = player.controls().teaching() {
                teaching.begin()?;
            }
            tell_taught(player, audience);
            if let Some(collector) = collector.as_mut().filter(|_| !player.is_frozen()) {
                collector.tick()?;
            }
            if second.elapsed() >= SECOND {
                let took = second.elapsed();
                second = Instant::now();
                if gates.as_mut().is_some_and(Watch::has_changed) {
                    player.reload();
                    audience.event(Event::Reloading);
                }
                let status = player.status();
                let fps = (status.frames - before.frames) as f64 / took.as_secs_f64();
                before = status;
                feed.tell(
                    Topic::Status,
                    &status_json(&status, fps, connection.is_up(), problem.as_deref()),
                );
                audience.event(Event::Status(status));
            }
        }
    }

    /// Returns whether a lost source may come back: cameras and servers do; the screen, test patterns and files do not.
    fn comes_back(&self) -> bool {
        !matches!(
            self.address,
            Address::Screen | Address::Test(_) | Address::File(_)
        )
    }
}

/// Reports the progress of teaching, unless it has been reported already.
fn tell_taught(player: &Player, audience: &mut dyn Audience) {
    let controls = player.controls();
    if let Some(progress) = controls.teaching().ok().and_then(Teaching::news) {
        audience.event(Event::Taught(progress));
    }
}

/// Returns the page's `status` event as JSON.
fn status_json(status: &Status, video_fps: f64, connected: bool, problem: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Percentiles {
        p50: f64,
        p95: f64,
    }
    #[derive(Serialize)]
    struct Told<'a> {
        connected: bool,
        problem: Option<&'a str>,
        frames: u64,
        explained: u64,
        dropped: u64,
        video_fps: f64,
        explanations_per_s: f64,
        mask_age_ms: Percentiles,
        latency_ms: Percentiles,
        delay_ms: f64,
    }
    let tenths = |value: f64| (10.0 * value).round() / 10.0;
    let ms = |duration: Duration| tenths(1e3 * duration.as_secs_f64());
    let told = Told {
        connected,
        problem,
        frames: status.frames,
        explained: status.explained,
        dropped: status.skipped,
        video_fps: tenths(video_fps),
        explanations_per_s: tenths(status.rate),
        mask_age_ms: Percentiles {
            p50: ms(status.age_median),
            p95: ms(status.age_p95),
        },
        latency_ms: Percentiles {
            p50: ms(status.median),
            p95: ms(status.p95),
        },
        delay_ms: ms(status.delay),
    };
    // Serializing plain data cannot fail.
    serde_json::to_string(&told).unwrap_or_default()
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::Media(format!("path is not UTF-8: {path:?}")))
}
