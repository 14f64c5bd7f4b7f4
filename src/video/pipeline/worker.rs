//! A bounded worker: a view on its own thread, for hosts that already have threads, such as GStreamer.
//!
//! The thread opens the view first, so a host need not wait for a model to load. Waiting images are explained together,
//! regardless of the sender: streams that share a worker share its batches, and each stream brings its own memory. Work
//! that nobody waits for is not finished.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};

use super::stages::{Finding, Image, View};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::{SharedMemory, StreamMemory, Streams};
use vitscope_core::models::Model;
use vitscope_core::vit::Stop;

/// A view on its own thread. Dropping the worker waits until all images with a waiting [`Ticket`] are finished.
pub struct Worker {
    /// Dropped first, which ends the thread.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    opened: Arc<Opened>,
    /// Ends the trial of a view that is no longer needed.
    trial: Stop,
}

/// Properties of an opened view.
#[derive(Clone)]
pub struct Ready {
    /// Model that classifies the images.
    pub model: Arc<Model>,
    /// Time to explain one image.
    pub one_image: Duration,
    /// Number of maps per image.
    pub n_maps: usize,
}

/// Outcome of opening the view, once known.
#[derive(Default)]
struct Opened {
    outcome: Mutex<Option<std::result::Result<Ready, String>>>,
    changed: Condvar,
}

/// Request to the thread.
enum Request {
    Explain(Explain),
    Change(Box<Change>, Sender<()>),
}

/// Makes another view from the current one, or returns `None` to keep it.
type Change = dyn FnOnce(&View) -> Option<View> + Send;

type Explain = Arc<Mutex<Order>>;

/// A submitted image and the channel for its answer.
struct Order {
    image: Handed,
    /// `None` once nobody waits for the answer.
    answer: Option<Sender<Answer>>,
}

enum Handed {
    Waits(Waiting),
    /// Start time of the work and the batch that the image belongs to.
    Taken(Instant, Arc<Batch>),
    Abandoned,
}

/// Images that are explained together.
struct Batch {
    stop: Stop,
    /// Number of images with a waiting client, plus one while the batch is being assembled.
    awaited: AtomicUsize,
}

impl Batch {
    fn new() -> Self {
        Self {
            stop: Stop::default(),
            awaited: AtomicUsize::new(1),
        }
    }

    /// Removes one waiting client, and stops the batch if it was the last one.
    fn abandon_one(&self) {
        if self.awaited.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.stop.request();
        }
    }
}

struct Waiting {
    seq: u64,
    image: Image,
    /// Memory of the image's stream.
    memory: SharedMemory,
    sent: Instant,
}

impl Waiting {
    fn new(seq: u64, image: Image, memory: &SharedMemory) -> Self {
        Self {
            seq,
            image,
            memory: Arc::clone(memory),
            sent: Instant::now(),
        }
    }
}

/// The worker's answer for an image.
pub struct Answer {
    /// Time of the work itself, without the wait for it.
    pub work: Duration,
    /// `None` if the image could not be explained.
    pub finding: Option<Arc<Finding>>,
    /// Time from submission of the image to the answer.
    pub took: Duration,
}

/// An image submitted to the worker. Dropping the ticket cancels the work on the image.
pub struct Ticket {
    answer: Receiver<Answer>,
    order: Explain,
}

/// Ends the wait for an answer from another thread.
pub struct Abandon(Explain);

impl Abandon {
    /// Ends the [wait](Ticket::wait).
    pub fn now(&self) {
        abandon(&self.0);
    }
}

impl Ticket {
    /// Waits for the answer; `None` if the worker ended without one or the image was [abandoned](Self::abandon).
    pub fn wait(self) -> Option<Answer> {
        self.answer.recv().ok()
    }

    /// Like [`wait`](Self::wait), but also returns `None` if there is no answer by `deadline`.
    pub fn wait_until(self, deadline: Instant) -> Option<Answer> {
        self.answer.recv_deadline(deadline).ok()
    }

    /// Returns a handle that ends the wait.
    pub fn abandon(&self) -> Abandon {
        Abandon(Arc::clone(&self.order))
    }

    /// Returns the answer if it is available; `Ok(None)` if the worker ended without one.
    ///
    /// # Errors
    /// Returns the ticket while there is no answer.
    pub fn try_wait(self) -> std::result::Result<Option<Answer>, Self> {
        match self.answer.try_recv() {
            Ok(answer) => Ok(Some(answer)),
            Err(TryRecvError::Disconnected) => Ok(None),
            Err(TryRecvError::Empty) => Err(self),
        }
    }

    /// Replaces the waiting image with a newer one; returns false if the worker has already taken it.
    pub fn replace(&self, seq: u64, image: Image) -> bool {
        let mut order = lock(&self.order);
        let Handed::Waits(waiting) = &mut order.image else {
            return false;
        };
        *waiting = Waiting::new(seq, image, &waiting.memory);
        true
    }

    /// Returns when the worker took the image; `None` while it waits.
    pub fn taken(&self) -> Option<Instant> {
        match lock(&self.order).image {
            Handed::Waits(_) | Handed::Abandoned => None,
            Handed::Taken(since, _) => Some(since),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        abandon(&self.order);
    }
}

fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

fn abandon(order: &Mutex<Order>) {
    let mut order = lock(order);
    order.answer = None;
    if let Handed::Taken(_, batch) = std::mem::replace(&mut order.image, Handed::Abandoned) {
        batch.abandon_one();
    }
}

impl Worker {
    /// Starts the thread, which opens the view, tries it and reports the outcome to `on_opened` unless the worker is
    /// dropped first.
    ///
    /// At most `capacity` images may wait: 150 KB each for a model with an input of 224 pixels. At most `batch` of them
    /// are explained at once.
    ///
    /// # Errors
    /// [`Error::Config`] if no thread can be started.
    pub fn start(
        capacity: NonZeroUsize,
        batch: NonZeroUsize,
        open: impl FnOnce() -> Result<View> + Send + 'static,
        on_opened: impl FnOnce(std::result::Result<&Ready, &str>) + Send + 'static,
    ) -> Result<Self> {
        let (requests, waiting) = crossbeam_channel::bounded(capacity.get());
        let opened = Arc::new(Opened::default());
        let outcome = Arc::clone(&opened);
        let trial = Stop::default();
        let stop = trial.clone();
        let work = move || {
            let tried = catch_unwind(AssertUnwindSafe(|| tried(open, &stop)));
            let tried = tried.unwrap_or_else(|panic| Err(told(&*panic)));
            let (view, found) = match tried {
                Ok((view, ready)) => (Some(view), Ok(ready)),
                Err(reason) => (None, Err(reason)),
            };
            // `on_opened` finds a ready worker ready, and a thread that sees the failure knows that `on_opened` already
            // has the reason.
            match &found {
                Ok(ready) => {
                    outcome.set(found.clone());
                    on_opened(Ok(ready));
                }
                Err(reason) => {
                    // A worker dropped in the meantime has not failed.
                    if !stop.is_requested() {
                        on_opened(Err(reason));
                    }
                    outcome.set(found);
                }
            }
            if let Some(view) = view {
                serve(view, &waiting, batch, &outcome);
            }
        };
        let thread = thread::Builder::new().name("explain".into()).spawn(work);
        let thread =
            thread.map_err(|error| Error::Config(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
            opened,
            trial,
        })
    }

    /// Waits until the view is open; `None` if `given_up` is set and [`wake`](Self::wake) called first.
    ///
    /// # Errors
    /// [`Error::Config`] if the view cannot be opened.
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

    /// Wakes waiting threads so that they check whether to give up.
    pub fn wake(&self) {
        // Taken so that no thread is between its check and its wait.
        let _outcome = self.opened.lock();
        self.opened.changed.notify_all();
    }

    /// Like [`wait_ready`](Self::wait_ready), without waiting: `None` while the view is being opened.
    pub fn ready(&self) -> Option<Result<Ready>> {
        let outcome = self.opened.lock();
        outcome
            .as_ref()
            .map(|found| found.clone().map_err(Error::Config))
    }

    /// Submits the image of frame `seq`, waiting while the queue is full; `None` if the worker has ended.
    ///
    /// `memory` belongs to the image's stream; images of a stream are explained in the order of submission.
    pub fn submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Ticket> {
        let (request, ticket) = request(Waiting::new(seq, image, memory));
        self.requests.as_ref()?.send(request).ok()?;
        Some(ticket)
    }

    /// Like [`submit`](Self::submit), without waiting: also returns `None` while the queue is full.
    pub fn try_submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Ticket> {
        let (request, ticket) = request(Waiting::new(seq, image, memory));
        match self.requests.as_ref()?.try_send(request) {
            Ok(()) => Some(ticket),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        }
    }

    /// Runs `change` on the thread, between images; all later images are explained by the view it returns.
    ///
    /// The receiver is notified when the new view is in use. Returns `None`, without running `change`, if the queue is
    /// full or the worker has ended.
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
        self.trial.request();
        self.requests = None;
        let own = self.thread.take();
        // The thread itself may hold the last owner, through a callback.
        if let Some(thread) = own.filter(|it| it.thread().id() != thread::current().id()) {
            // The panic has already been reported.
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

fn request(waiting: Waiting) -> (Request, Ticket) {
    let (answer, answered) = crossbeam_channel::bounded(1);
    let order = Arc::new(Mutex::new(Order {
        image: Handed::Waits(waiting),
        answer: Some(answer),
    }));
    let request = Request::Explain(Arc::clone(&order));
    let ticket = Ticket {
        answer: answered,
        order,
    };
    (request, ticket)
}

/// Opens a view and tries it on one image.
fn tried(
    open: impl FnOnce() -> Result<View>,
    stop: &Stop,
) -> std::result::Result<(View, Ready), String> {
    let tried = || {
        let view = open()?;
        view.check_until(stop)?;
        let started = Instant::now();
        view.check_until(stop)?;
        let ready = Ready {
            model: Arc::clone(&view.model),
            one_image: started.elapsed(),
            n_maps: view.n_maps(),
        };
        Ok((view, ready))
    };
    tried().map_err(|error: Error| error.to_string())
}

/// Serves requests until all senders are gone.
fn serve(mut view: View, waiting: &Receiver<Request>, most: NonZeroUsize, opened: &Opened) {
    let mut next = None;
    while let Some(request) = next.take().or_else(|| waiting.recv().ok()) {
        let mut requests = match request {
            Request::Explain(first) => vec![first],
            Request::Change(change, done) => {
                if let Some(changed) = changed(&view, change) {
                    view = changed;
                    opened.set_model(&view.model);
                }
                // The requester may be gone.
                let _ = done.send(());
                continue;
            }
        };
        while requests.len() < most.get() && next.is_none() {
            match waiting.try_recv() {
                Ok(Request::Explain(request)) => requests.push(request),
                // Applies after the images submitted before it.
                Ok(change) => next = Some(change),
                Err(_) => break,
            }
        }
        let (mut images, mut orders, mut memories) = (Vec::new(), Vec::new(), Vec::new());
        let started = Instant::now();
        let batch = Arc::new(Batch::new());
        for request in requests {
            let mut order = lock(&request);
            let taken = Handed::Taken(started, Arc::clone(&batch));
            match std::mem::replace(&mut order.image, taken) {
                Handed::Waits(Waiting {
                    seq,
                    image,
                    memory,
                    sent,
                }) => {
                    batch.awaited.fetch_add(1, Ordering::SeqCst);
                    images.push((seq, image));
                    memories.push(memory);
                    drop(order);
                    orders.push((sent, request));
                }
                other => order.image = other,
            }
        }
        batch.abandon_one();
        let mut found = findings(&view, images, &memories, &batch.stop);
        found.resize(orders.len(), None);
        for (finding, (sent, order)) in found.into_iter().zip(orders) {
            let (took, work) = (sent.elapsed(), started.elapsed());
            let answer = Answer {
                work,
                finding,
                took,
            };
            if let Some(waits) = lock(&order).answer.take() {
                // The channel has room for the one answer.
                let _ = waits.send(answer);
            }
        }
    }
}

/// Explains images, each with the memory of its stream; returns an empty vector if that panics.
fn findings(
    view: &View,
    images: Vec<(u64, Image)>,
    memories: &[SharedMemory],
    stop: &Stop,
) -> Vec<Option<Arc<Finding>>> {
    let mut streams: Vec<&SharedMemory> = Vec::new();
    let of_images = memories.iter().map(|memory| {
        let known = streams.iter().position(|known| Arc::ptr_eq(known, memory));
        known.unwrap_or_else(|| {
            streams.push(memory);
            streams.len() - 1
        })
    });
    let of_images: Vec<usize> = of_images.collect();
    let mut locked: Vec<MutexGuard<'_, StreamMemory>> = streams
        .iter()
        .map(|memory| memory.lock().unwrap_or_else(PoisonError::into_inner))
        .collect();
    let look = || {
        let memories = locked.iter_mut().map(|memory| &mut **memory).collect();
        view.findings(images, &mut Streams::several(memories, of_images), stop)
    };
    catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|panic| {
        tracing::error!("cannot explain the frames: {}", told(&*panic));
        Vec::new()
    })
}

/// Returns the view that `change` makes of `view`; `None` if it panics.
fn changed(view: &View, change: Box<Change>) -> Option<View> {
    let changed = catch_unwind(AssertUnwindSafe(|| change(view)));
    changed.unwrap_or_else(|panic| {
        tracing::error!("the model is unchanged: {}", told(&*panic));
        None
    })
}

/// Returns the message of a panic.
fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("explaining panicked: {}", text.unwrap_or("no reason given"))
}
