//! The web page: live video with its explanation, the model's answer, and controls.
//!
//! The server binds to the loopback address; any other address requires a token. It answers one request per connection:
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page, which loads nothing else from the network |
//! | `GET /stream.mjpg` | the video, as `multipart/x-mixed-replace` |
//! | `GET /events` | server-sent events `settings`, `status`, `explained` and `teaching`, each with JSON |
//! | `GET /about` | [`About`] as JSON |
//! | `GET /snapshot.png` | the current picture |
//! | `POST /control` | accepts a [`Change`] as JSON; 204, or 400 and the reason |
//! | `POST /teach` | accepts a [`Lesson`] as JSON; 204, or 400 and the reason |
//!
//! The [`Host`] provides the pictures and makes the changes.

mod feed;
mod http;
mod routes;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use vitscope_core::error::{Error, Result};
use vitscope_video::pipeline::crew::Crew;

pub use feed::{Feed, Topic};

/// Maximum number of simultaneous connections. A page holds two, and briefly a third for each change.
const MOST_CLIENTS: usize = 32;
/// Maximum wait for a free connection slot.
const FOR_ROOM: Duration = Duration::from_millis(500);
/// Minimum length of a token, so that it cannot be guessed by trial and error.
const LEAST_TOKEN: usize = 8;

/// Settings that can be changed while the video runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Opacity of the hottest patch, 0 to 1.
    pub alpha: f32,
    /// Minimum heat of a patch to keep, 0 to 1.
    pub threshold: f32,
    /// Share of the previous explanation, 0 to 1.
    pub smoothing: f32,
    /// Colormap of the heatmap.
    pub colormap: String,
    /// The drawing mode.
    pub mode: String,
    /// The explanation methods; several are shown on a grid.
    pub methods: Vec<String>,
    /// The class to explain.
    pub target: String,
    /// Whether the picture is frozen.
    pub frozen: bool,
    /// Whether to report the vote of each DiffMask gate on each patch.
    pub votes: bool,
}

/// New values for some of the [`Settings`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as those of `Settings`")]
pub struct Change {
    pub alpha: Option<f32>,
    pub threshold: Option<f32>,
    pub smoothing: Option<f32>,
    pub colormap: Option<String>,
    pub mode: Option<String>,
    pub methods: Option<Vec<String>>,
    pub target: Option<String>,
    pub frozen: Option<bool>,
    pub votes: Option<bool>,
}

/// A teaching request, such as `{"example": 0}`, `"undo"`, `"save"`, `{"add": "cup"}` or `{"rename": [0, "mug"]}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lesson {
    /// The current picture is an example of this class.
    Example(usize),
    /// Undo the last example.
    Undo,
    /// Save the taught head.
    Save,
    /// Add a class of this name.
    Add(String),
    /// Rename a class.
    Rename(usize, String),
}

/// Information about the run and the available choices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct About {
    /// Version of this library.
    pub version: &'static str,
    /// Where the video comes from.
    pub source: String,
    /// The model.
    pub model: String,
    /// Its classes.
    pub labels: Vec<String>,
    /// Methods that work with the model.
    pub methods: Vec<AboutMethod>,
    /// Available colormaps.
    pub colormaps: Vec<&'static str>,
    /// Available drawing modes.
    pub modes: Vec<&'static str>,
}

/// An available method.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AboutMethod {
    /// Its name.
    pub name: &'static str,
    /// A one-line summary.
    pub summary: &'static str,
}

/// Provides what the page shows and carries out its requests.
pub trait Host: Send + Sync {
    /// Information for the page; `None` while the model is not open.
    fn about(&self) -> Option<About>;

    /// Applies a change completely or not at all.
    ///
    /// # Errors
    /// Reports why the change cannot be made.
    fn change(&self, change: &Change) -> Result<()>;

    /// Applies a lesson completely or not at all.
    ///
    /// # Errors
    /// Reports why the lesson cannot be applied.
    fn teach(&self, lesson: &Lesson) -> Result<()>;

    /// Returns the current picture as PNG.
    ///
    /// # Errors
    /// Fails if there is none.
    fn snapshot(&self) -> Result<Vec<u8>>;
}

/// The server; dropping it ends all connections.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Thread that accepts connections.
    _listening: Crew,
}

/// State shared by all connections.
struct Shared {
    host: Arc<dyn Host>,
    feed: Arc<Feed>,
    token: Option<String>,
    /// Connections whose request has not arrived yet, oldest first; they are closed to make room for others.
    waiting: Mutex<VecDeque<(u64, TcpStream)>>,
    ended: AtomicBool,
}

impl Server {
    /// Listens on `address` and serves all clients from then on.
    ///
    /// # Errors
    /// [`Error::Config`] if other machines could connect without a token, or the token is too simple;
    /// [`Error::Media`] if the address is in use or does not belong to this machine.
    pub fn start(
        address: SocketAddr,
        token: Option<String>,
        host: Arc<dyn Host>,
        feed: Arc<Feed>,
    ) -> Result<Self> {
        match &token {
            None if !address.ip().is_loopback() => {
                return Err(Error::Config(format!(
                    "other machines can reach {address}, expected a token (--token) or the address 127.0.0.1"
                )));
            }
            Some(token) if !is_good_token(token) => {
                return Err(Error::Config(format!(
                    "expected a token of at least {LEAST_TOKEN} letters, digits, - or _"
                )));
            }
            _ => (),
        }
        let failed = |error| Error::Media(format!("cannot serve at {address}: {error}"));
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            host,
            feed,
            token,
            waiting: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let listening = Crew::new("serve", 1);
        let of_thread = Arc::clone(&shared);
        listening.start(move || listen(&listener, &of_thread))?;
        Ok(Self {
            address,
            shared,
            _listening: listening,
        })
    }

    /// Returns the address it listens on, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.feed.end();
        for (_, stream) in self.shared.waiting().drain(..) {
            // The client may already be gone.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Connect once more to wake up the accepting thread.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, TcpStream)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Closes the oldest connection that has not sent its request yet; returns `false` if there is none.
    fn make_room(&self) -> bool {
        let oldest = self.waiting().pop_front();
        if let Some((_, stream)) = &oldest {
            let _ = stream.shutdown(Shutdown::Both);
        }
        oldest.is_some()
    }
}

fn is_good_token(token: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    token.len() >= LEAST_TOKEN && token.bytes().all(is_plain)
}

/// Serves each connection on its own thread until the server ends.
fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    let crew = Crew::new("serve-client", MOST_CLIENTS);
    for number in 0_u64.. {
        let accepted = listener.accept();
        if shared.has_ended() {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // For example, out of file descriptors: other connections will close some.
                tracing::debug!("a connection failed: {error}");
                crew.wait_for_room(FOR_ROOM);
                continue;
            }
        };
        let has_room = crew.wait_for_room(Duration::ZERO)
            || (shared.make_room() && crew.wait_for_room(FOR_ROOM));
        if !has_room {
            routes::turn_away(stream);
            continue;
        }
        // Register the connection before its thread runs, so that the next one can take its place.
        if let Ok(waiting) = stream.try_clone() {
            shared.waiting().push_back((number, waiting));
        }
        let of_client = Arc::clone(shared);
        let started = crew.start(move || routes::serve(stream, number, &of_client));
        if let Err(error) = started {
            tracing::debug!("a connection is not served: {error}");
            shared.waiting().retain(|(waiting, _)| *waiting != number);
        }
    }
}
