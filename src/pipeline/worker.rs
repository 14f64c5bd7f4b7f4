//! A bounded worker: a view on a thread of its own, for hosts that have threads already, as GStreamer has.
//!
//! The thread opens the view first, so that a host need not wait for a model to load. Images that wait are explained
//! together, whoever sent them: streams that share a worker share its batches.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};

use super::stages::{Finding, Image, View};
use crate::error::{Error, Result};
use crate::models::Model;

/// A view on a thread of its own; dropping it waits for the images that it was given.
pub struct Worker {
    /// Gone first, which ends the thread.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    opened: Arc<Opened>,
}

/// What is known of a view that was opened.
#[derive(Clone)]
pub struct Ready {
    /// The model that looks at the images.
    pub model: Arc<Model>,
    /// What one image took.
    pub one_image: Duration,
}

/// What becomes of the opening.
#[derive(Default)]
struct Opened {
    outcome: Mutex<Option<std::result::Result<Ready, String>>>,
    changed: Condvar,
}

/// What the thread is asked to do.
enum Request {
    Explain(Explain),
    Change(Box<Change>, Sender<()>),
}

/// Makes another view of the one that is there, or leaves it.
type Change = dyn FnOnce(&View) -> Option<View> + Send;

struct Explain {
    image: Arc<Mutex<Handed>>,
    answer: Sender<Answer>,
}

/// An image that was handed over.
enum Handed {
    Waits(Waiting),
    /// The thread works on it, since then.
    Taken(Instant),
}

struct Waiting {
    seq: u64,
    image: Image,
    sent: Instant,
}

impl Waiting {
    fn new(seq: u64, image: Image) -> Self {
        Self {
            seq,
            image,
            sent: Instant::now(),
        }
    }
}

/// What the worker says of an image.
pub struct Answer {
    /// What the work itself took, without waiting for it.
    pub work: Duration,
    /// `None` where the image could not be explained.
    pub finding: Option<Arc<Finding>>,
    /// From handing the image over to the answer.
    pub took: Duration,
}

/// An image that the worker was given.
pub struct Ticket {
    answer: Receiver<Answer>,
    image: Arc<Mutex<Handed>>,
}

impl Ticket {
    /// Waits for the answer; `None` where the worker ended without one.
    pub fn wait(self) -> Option<Answer> {
        self.answer.recv().ok()
    }

    /// The answer, if it is there: `Ok(None)` where the worker ended without one.
    ///
    /// # Errors
    /// Gives the ticket back while there is no answer.
    pub fn try_wait(self) -> std::result::Result<Option<Answer>, Self> {
        match self.answer.try_recv() {
            Ok(answer) => Ok(Some(answer)),
            Err(TryRecvError::Disconnected) => Ok(None),
            Err(TryRecvError::Empty) => Err(self),
        }
    }

    /// Puts a newer image into the place of the one that waits; false where the worker has it already.
    pub fn replace(&self, seq: u64, image: Image) -> bool {
        let mut handed = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = matches!(*handed, Handed::Waits(_));
        if waits {
            *handed = Handed::Waits(Waiting::new(seq, image));
        }
        waits
    }

    /// Since when the worker has the image; `None` while it waits.
    pub fn taken(&self) -> Option<Instant> {
        match *self.image.lock().unwrap_or_else(PoisonError::into_inner) {
            Handed::Waits(_) => None,
            Handed::Taken(since) => Some(since),
        }
    }
}

impl Worker {
    /// Starts the thread, which opens the view, tries it, and tells `on_opened` how that went.
    ///
    /// `capacity` images may wait: 150 KB each for a model of 224 pixels. At most `batch` of them are explained at once.
    ///
    /// # Errors
    /// [`Error::Config`] where no thread can start.
    pub fn start(
        capacity: NonZeroUsize,
        batch: NonZeroUsize,
        open: impl FnOnce() -> Result<View> + Send + 'static,
        on_opened: impl FnOnce(std::result::Result<&Ready, &str>) + Send + 'static,
    ) -> Result<Self> {
        let (requests, waiting) = crossbeam_channel::bounded(capacity.get());
        let opened = Arc::new(Opened::default());
        let outcome = Arc::clone(&opened);
        let work = move || {
            let tried = catch_unwind(AssertUnwindSafe(|| tried(open)));
            let tried = tried.unwrap_or_else(|panic| Err(told(&*panic)));
            let (view, found) = match tried {
                Ok((view, ready)) => (Some(view), Ok(ready)),
                Err(reason) => (None, Err(reason)),
            };
            // Who hears that it is ready finds it ready, and who finds that it failed has heard why.
            match &found {
                Ok(ready) => {
                    outcome.set(found.clone());
                    on_opened(Ok(ready));
                }
                Err(reason) => {
                    on_opened(Err(reason));
                    outcome.set(found);
                }
            }
            if let Some(view) = view {
                serve(view, &waiting, batch, &outcome);
            }
        };
        let thread = thread::Builder::new().name("explain".into()).spawn(work);
        let thread =
            thread.map_err(|error| Error::Config(format!("no thread could start: {error}")))?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
            opened,
        })
    }

    /// Waits until the view is open; `None` where `given_up` was set and [`wake`](Self::wake) was called before.
    ///
    /// # Errors
    /// [`Error::Config`] where it could not be opened.
    pub fn wait_ready(&self, given_up: &AtomicBool) -> Option<Result<Ready>> {
        let mut outcome = self.opened.lock();
        while !given_up.load(Ordering::SeqCst) {
            if let Some(found) = &*outcome {
                return Some(found.clone().map_err(Error::Config));
            }
            let waited = self.opened.changed.wait(outcome);
            outcome = waited.unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Lets those who wait look whether they are to give up.
    pub fn wake(&self) {
        // Under the lock, so that nobody is between looking and waiting.
        let _outcome = self.opened.lock();
        self.opened.changed.notify_all();
    }

    /// The same without waiting: `None` while the view is being opened.
    pub fn ready(&self) -> Option<Result<Ready>> {
        let outcome = self.opened.lock();
        outcome
            .as_ref()
            .map(|found| found.clone().map_err(Error::Config))
    }

    /// Hands the image of frame `seq` over, waiting while too many wait already; `None` where the worker has ended.
    pub fn submit(&self, seq: u64, image: Image) -> Option<Ticket> {
        let (request, ticket) = request(seq, image);
        self.requests.as_ref()?.send(request).ok()?;
        Some(ticket)
    }

    /// The same without waiting: `None` also while too many wait already.
    pub fn try_submit(&self, seq: u64, image: Image) -> Option<Ticket> {
        let (request, ticket) = request(seq, image);
        match self.requests.as_ref()?.try_send(request) {
            Ok(()) => Some(ticket),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        }
    }

    /// Runs `change` on the thread, between images; the view that it returns looks at all images after it.
    ///
    /// The receiver hears when that is so. `None` where too many images wait already, or the worker has ended: then it
    /// does not run.
    pub fn change(
        &self,
        change: impl FnOnce(&View) -> Option<View> + Send + 'static,
    ) -> Option<Receiver<()>> {
        let (done, changed) = crossbeam_channel::bounded(1);
        let request = Request::Change(Box::new(change), done);
        self.requests.as_ref()?.try_send(request).ok()?;
        Some(changed)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests = None;
        let own = self.thread.take();
        // The last owner may be what the thread itself calls.
        if let Some(thread) = own.filter(|it| it.thread().id() != thread::current().id()) {
            // What it panicked with was told already.
            let _ = thread.join();
        }
    }
}

impl Opened {
    fn set(&self, found: std::result::Result<Ready, String>) {
        *self.lock() = Some(found);
        self.changed.notify_all();
    }

    fn set_model(&self, model: &Arc<Model>) {
        if let Some(Ok(ready)) = &mut *self.lock() {
            ready.model = Arc::clone(model);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<std::result::Result<Ready, String>>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn request(seq: u64, image: Image) -> (Request, Ticket) {
    let (answer, answered) = crossbeam_channel::bounded(1);
    let image = Arc::new(Mutex::new(Handed::Waits(Waiting::new(seq, image))));
    let request = Request::Explain(Explain {
        image: Arc::clone(&image),
        answer,
    });
    let ticket = Ticket {
        answer: answered,
        image,
    };
    (request, ticket)
}

/// Opens a view and tries it on one image.
fn tried(open: impl FnOnce() -> Result<View>) -> std::result::Result<(View, Ready), String> {
    let tried = || {
        let view = open()?;
        view.check()?;
        let started = Instant::now();
        view.check()?;
        let ready = Ready {
            model: Arc::clone(&view.model),
            one_image: started.elapsed(),
        };
        Ok((view, ready))
    };
    tried().map_err(|error: Error| error.to_string())
}

/// Explains what comes until nobody is left to send.
fn serve(mut view: View, waiting: &Receiver<Request>, batch: NonZeroUsize, opened: &Opened) {
    let mut next = None;
    while let Some(request) = next.take().or_else(|| waiting.recv().ok()) {
        let mut requests = match request {
            Request::Explain(first) => vec![first],
            Request::Change(change, done) => {
                if let Some(changed) = changed(&view, change) {
                    view = changed;
                    opened.set_model(&view.model);
                }
                // Whoever asked may have gone.
                let _ = done.send(());
                continue;
            }
        };
        while requests.len() < batch.get() && next.is_none() {
            match waiting.try_recv() {
                Ok(Request::Explain(request)) => requests.push(request),
                // After the images that came before it.
                Ok(change) => next = Some(change),
                Err(_) => break,
            }
        }
        let (mut images, mut answers) = (Vec::new(), Vec::new());
        let started = Instant::now();
        for Explain { image, answer } in requests {
            let mut handed = image.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = std::mem::replace(&mut *handed, Handed::Taken(started));
            drop(handed);
            if let Handed::Waits(Waiting { seq, image, sent }) = taken {
                images.push((seq, image));
                answers.push((sent, answer));
            }
        }
        let found = catch_unwind(AssertUnwindSafe(|| view.findings(images)));
        let mut found = found.unwrap_or_else(|panic| {
            tracing::error!("frames stay unexplained: {}", told(&*panic));
            Vec::new()
        });
        found.resize(answers.len(), None);
        for (finding, (sent, answer)) in found.into_iter().zip(answers) {
            let (took, work) = (sent.elapsed(), started.elapsed());
            // Whoever asked may have gone.
            let _ = answer.send(Answer {
                work,
                finding,
                took,
            });
        }
    }
}

/// What `change` makes of a view; nothing where it panics.
fn changed(view: &View, change: Box<Change>) -> Option<View> {
    let changed = catch_unwind(AssertUnwindSafe(|| change(view)));
    changed.unwrap_or_else(|panic| {
        tracing::error!("the model stays as it is: {}", told(&*panic));
        None
    })
}

/// What a panic says.
fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("explaining panicked: {}", text.unwrap_or("no reason given"))
}
