//! The element: buffers in, explained buffers out, in order.
//!
//! A buffer is handed to the worker in `submit_input_buffer` and leaves in `generate_output`, when its explanation is
//! there or, live, when its time has come. What is held leaves before EOS, SEGMENT, CAPS and GAP, and is discarded by
//! a flush. No setting is locked while the model works.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base as gst_base;
use gstreamer_base::prelude::*;
use gstreamer_base::subclass::prelude::*;
use gstreamer_video as gst_video;

use super::latency::Delay;
use super::meta::{self, Found};
use super::records::Records;
use super::scores;
use super::settings::{Asked, Settings, SyncMode, properties};
use super::shared::{self, Taught};
use super::smoothing::{Smoothing, Thumbnail};
use super::statistics::{Recent, Statistics};
use crate::error::{Error, Result};
use crate::explain::SharedMemory;
use crate::frame::Frame;
use crate::frame::resize::Resizer;
use crate::media::pixels::{buffer_from_frame, frame_from_buffer};
use crate::models::{LinearHead, Model};
use crate::pipeline::compositor::Compositor;
use crate::pipeline::stages::{
    Composited, Decoded, Finding, Image, Patchified, Turn, View, patchify,
};
use crate::pipeline::worker::{Abandon, Answer, Ready, Ticket, Worker};
use crate::sidecar;

/// Frames that `lossless` holds beside those of a batch, so that drawing and explaining overlap.
const HELD: usize = 3;

/// What a frame lasts where the caps do not say.
const FRAME: Duration = Duration::from_millis(40);

/// A frame waits for the model if that is expected to be free within this share of a frame, else the next one is soon
/// there and newer. Above a half, so that a model of any speed is idle for a fifth of the time at most.
const WORTH_WAITING: f64 = 0.6;

/// Frames that a live stream is said to be delayed by before the model has been timed.
const DELAY_AT_FIRST: usize = 2;

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "vitscope",
        gst::DebugColorFlags::empty(),
        Some("explanations of Vision Transformers"),
    )
});

type Open = dyn Fn() -> Result<View> + Send + Sync;
type Observe = dyn Fn(&Arc<Finding>, gst::ClockTime) + Send + Sync;

#[derive(Default)]
pub struct VitScope {
    settings: Mutex<Settings>,
    /// A program's own views.
    open: Mutex<Option<Arc<Open>>>,
    /// Who is told of each explanation.
    observe: Mutex<Option<Arc<Observe>>>,
    workers: Mutex<Workers>,
    /// A classifier in place of the model's own.
    head: Arc<Mutex<Option<Taught>>>,
    /// A line that is written into the picture.
    note: Mutex<String>,
    /// Of the streaming thread.
    stream: Mutex<Stream>,
    stats: Mutex<Statistics>,
    /// What a live stream is delayed by, nanoseconds.
    latency_ns: AtomicU64,
    /// Running time before which a frame is too late to be explained, nanoseconds.
    earliest_ns: AtomicU64,
    /// No frame waits for a model: a flush is under way, or the element stops.
    gives_up: AtomicBool,
    /// Ends the wait of the frame that is to leave.
    waiting: Mutex<Option<Abandon>>,
}

/// What becomes of a model's classifier.
pub enum Lesson {
    /// It stays.
    Nothing,
    /// The model's own answers again.
    Forget,
    /// This one answers.
    Learned(LinearHead),
}

#[derive(Default)]
struct Workers {
    current: Option<(Asked, Arc<Worker>)>,
    /// Takes its place when it is ready.
    next: Option<(Asked, Arc<Worker>)>,
}

#[derive(Default)]
struct Stream {
    info: Option<gst_video::VideoInfo>,
    /// Frames so far.
    n_frames: u64,
    held: VecDeque<Held>,
    resizer: Option<(Arc<Model>, Resizer)>,
    newest: Option<Newest>,
    /// In `latest`, the frame that the worker has, and the newest one after it.
    asked: VecDeque<Question>,
    /// What the model has taken for an image, of late.
    work: Recent,
    delay: Option<Delay>,
    smoothing: Smoothing,
    /// What the methods remember of the scene.
    memory: SharedMemory,
    /// Maps per explained frame; none before the model is open.
    n_maps: usize,
    scores: Option<Records>,
}

/// What was explained last.
#[derive(Clone)]
struct Newest {
    finding: Arc<Finding>,
    /// Time of the frame that was explained.
    of: gst::ClockTime,
    /// Time of the frame that first shows it.
    arrived: gst::ClockTime,
    /// In `latest`, how long after that it has faded out.
    fades_within: Duration,
}

/// A frame that the worker was asked about, and that has left meanwhile.
struct Question {
    ticket: Ticket,
    /// Position of the frame.
    seq: u64,
    thumbnail: Thumbnail,
    time: gst::ClockTime,
}

/// A frame that waits to leave.
enum Held {
    /// As it came.
    Untouched(gst::Buffer),
    /// With the settings of its time: controlled ones may have moved on when it leaves.
    Frame(Frame, Turn<Awaited>, Arc<Settings>),
}

/// The answer that a held frame waits for.
struct Awaited {
    ticket: Ticket,
    since: Instant,
    thumbnail: Thumbnail,
    /// Another worker may have taken over.
    worker: Arc<Worker>,
}

/// The lock; what a panicked thread left is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives controlled properties the values of a buffer's time.
pub(super) fn sync_values(element: &impl IsA<gst_base::BaseTransform>, buffer: &gst::BufferRef) {
    let element = element.upcast_ref();
    let segment = element.segment();
    let segment = segment.downcast_ref::<gst::ClockTime>();
    if let Some(time) = segment.and_then(|segment| segment.to_stream_time(buffer.pts()?)) {
        let _ = element.sync_values(time);
    }
}

/// What the caps of a pad say of its frames.
pub(super) fn video_info(
    caps: &gst::Caps,
) -> std::result::Result<gst_video::VideoInfo, gst::LoggableError> {
    gst_video::VideoInfo::from_caps(caps)
        .map_err(|_| gst::loggable_error!(CAT, "no video in {caps}"))
}

impl VitScope {
    pub(super) fn set_view(&self, open: impl Fn() -> Result<View> + Send + Sync + 'static) {
        *lock(&self.open) = Some(Arc::new(open));
    }

    pub(super) fn set_observer(
        &self,
        observe: impl Fn(&Arc<Finding>, gst::ClockTime) + Send + Sync + 'static,
    ) {
        *lock(&self.observe) = Some(Arc::new(observe));
    }

    pub(super) fn model(&self) -> Option<Arc<Model>> {
        let (_, worker) = lock(&self.workers).current.clone()?;
        Some(worker.ready()?.ok()?.model)
    }

    pub(super) fn change(&self, properties: &[(&str, String)]) -> Result<()> {
        let mut changed = self.settings();
        for (name, text) in properties {
            let value = (self.obj().find_property(name))
                .and_then(|spec| glib::Value::deserialize_with_pspec(text, &spec).ok());
            let taken = value.map(|value| changed.set(name, &value));
            if !matches!(taken, Some(Ok(_))) {
                return Err(Error::Config(format!(
                    "property {name:?} does not take {text:?}"
                )));
            }
        }
        let before = std::mem::replace(&mut *lock(&self.settings), changed.clone());
        self.obj().set_passthrough(changed.is_idle());
        if changed.asked != before.asked {
            self.start_next(false);
        }
        Ok(())
    }

    pub(super) fn reload(&self) {
        self.start_next(true);
    }

    pub(super) fn set_note(&self, note: String) {
        *lock(&self.note) = note;
    }

    pub(super) fn teach(
        &self,
        learn: impl FnOnce(&Arc<Model>) -> Lesson + Send + 'static,
    ) -> Result<Receiver<()>> {
        if lock(&self.open).is_some() {
            return Err(Error::Config(
                "a program's own views take no other classifier".into(),
            ));
        }
        let Some((asked, worker)) = lock(&self.workers).current.clone() else {
            return Err(Error::Config("the element is not running".into()));
        };
        let head = Arc::clone(&self.head);
        let element = self.obj().downgrade();
        let taken = worker.change(move |view| {
            let taught = match learn(&view.model) {
                Lesson::Nothing => return None,
                Lesson::Forget => None,
                Lesson::Learned(head) => Some((head, view.model.backbone_sha256.clone())),
            };
            lock(&head).clone_from(&taught);
            let element = element.upgrade()?;
            let element = element.imp();
            element.teach_next();
            element.reopened(&asked, view)
        });
        taken.ok_or_else(|| Error::Config("the model is busy, try again".into()))
    }

    /// Gives the newest classifier to a worker that has not taken over yet.
    fn teach_next(&self) {
        let Some((asked, worker)) = lock(&self.workers).next.clone() else {
            return;
        };
        let element = self.obj().downgrade();
        // No images wait for it, and so there is room.
        worker.change(move |view| {
            let element = element.upgrade()?;
            element.imp().reopened(&asked, view)
        });
    }

    /// The view of these settings under the newest classifier; `None`, with a warning, where that does not go.
    fn reopened(&self, asked: &Asked, view: &View) -> Option<View> {
        let head = lock(&self.head).clone();
        match shared::open(asked, Some(Arc::clone(&view.model)), head.as_ref()) {
            Ok(view) => Some(view),
            Err(error) => {
                gst::element_imp_warning!(
                    self,
                    gst::LibraryError::Settings,
                    ("what was taught does not take over: {error}")
                );
                None
            }
        }
    }

    /// Starts the worker that is to take over, if one is there already; a `fresh` one opens its model again.
    fn start_next(&self, fresh: bool) {
        if lock(&self.workers).current.is_none() {
            return;
        }
        match self.start_worker(fresh) {
            Ok(next) => {
                let old = lock(&self.workers).next.replace(next);
                drop(old);
                // It may have been opened before the newest example was learned.
                if lock(&self.head).is_some() {
                    self.teach_next();
                }
            }
            Err(error) => {
                gst::element_imp_error!(self, gst::LibraryError::Settings, ("{error}"));
            }
        }
    }

    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    /// Starts a worker of what the settings ask for, and tells the bus how that goes.
    ///
    /// One that cannot be opened is an error, or a warning where another one goes on.
    fn start_worker(&self, fresh: bool) -> Result<(Asked, Arc<Worker>)> {
        let asked = self.settings().asked;
        let goes_on = lock(&self.workers).current.is_some();
        let own = lock(&self.open).clone();
        let model = self.open_model(&asked).filter(|_| !fresh);
        let element = self.obj().downgrade();
        let text = format!("loading {}", asked.model);
        self.post_progress(gst::ProgressType::Start, &text);
        let name = asked.model.clone();
        let on_opened = move |outcome: std::result::Result<&Ready, &str>| {
            let Some(element) = element.upgrade() else {
                return;
            };
            let element = element.imp();
            match outcome {
                Ok(ready) => {
                    gst::info!(
                        CAT,
                        imp = element,
                        "{name} is loaded, a frame takes {:?}",
                        ready.one_image
                    );
                    element
                        .post_progress(gst::ProgressType::Complete, &format!("{name} is loaded"));
                }
                Err(reason) if goes_on => {
                    element.post_progress(gst::ProgressType::Error, reason);
                    gst::element_imp_warning!(
                        element,
                        gst::LibraryError::Settings,
                        ("model {name:?} does not take over: {reason}")
                    );
                }
                Err(reason) => {
                    element.post_progress(gst::ProgressType::Error, reason);
                    gst::element_imp_error!(
                        element,
                        gst::LibraryError::Settings,
                        ("model {name:?}: {reason}")
                    );
                }
            }
        };
        let open_asked = asked.clone();
        let head = Arc::clone(&self.head);
        let open = move || match own {
            Some(open) => open(),
            None => {
                let head = lock(&head).clone();
                shared::open(&open_asked, model, head.as_ref())
            }
        };
        let worker = shared::worker(&asked, open, on_opened)?;
        Ok((asked, worker))
    }

    /// The model of these settings, if it is open already.
    fn open_model(&self, asked: &Asked) -> Option<Arc<Model>> {
        let (before, worker) = lock(&self.workers).current.clone()?;
        let ready = worker.ready()?.ok()?;
        let of = |asked: &Asked| {
            (
                asked.model.clone(),
                asked.backbone.clone(),
                asked.gates.clone(),
                asked.input(),
                asked.device.clone(),
            )
        };
        (of(&before) == of(asked)).then_some(ready.model)
    }

    fn post_progress(&self, kind: gst::ProgressType, text: &str) {
        let message = gst::message::Progress::builder(kind, "model", text);
        let _ = self.obj().post_message(message.src(&*self.obj()).build());
    }

    /// The worker of this moment: the next one as soon as it is ready.
    fn worker(&self, stream: &mut Stream) -> Option<Arc<Worker>> {
        let mut workers = lock(&self.workers);
        let next = workers.next.as_ref();
        if let Some(Ok(_)) = next.and_then(|(_, next)| next.ready()) {
            let next = workers.next.take();
            let old = std::mem::replace(&mut workers.current, next);
            let current = workers.current.clone();
            drop(workers);
            // What it works on would be the answer to another question; frames that are held keep it.
            stream.asked.clear();
            stream.memory = SharedMemory::default();
            drop(old);
            gst::info!(CAT, imp = self, "swapped the model");
            return current.map(|(_, worker)| worker);
        }
        workers
            .current
            .as_ref()
            .map(|(_, worker)| Arc::clone(worker))
    }

    /// How long a frame lasts.
    fn frame_duration(info: Option<&gst_video::VideoInfo>) -> Duration {
        let fps = info.map(gst_video::VideoInfo::fps);
        fps.filter(|fps| fps.numer() > 0).map_or(FRAME, |fps| {
            Duration::from_secs_f64(f64::from(fps.denom()) / f64::from(fps.numer()))
        })
    }

    /// Says how far a live stream is delayed from now on.
    fn announce(&self, n_frames: usize, frame: Duration) {
        let latency = u64::try_from(frame.as_nanos()).unwrap_or(0) * n_frames as u64;
        let before = self.latency_ns.swap(latency, Ordering::SeqCst);
        if before != latency {
            gst::info!(CAT, imp = self, "latency is {n_frames} frames");
            let message = gst::message::Latency::builder().src(&*self.obj()).build();
            let _ = self.obj().post_message(message);
        }
    }

    /// Frames that leave no later than this many after them came.
    fn n_held(settings: &Settings, stream: &Stream) -> usize {
        match settings.sync_mode {
            SyncMode::Latest => 0,
            SyncMode::Lossless => settings.asked.batch as usize + HELD,
            SyncMode::Exact => stream.delay.as_ref().map_or(0, Delay::n_frames),
        }
    }

    /// Hands a frame to the worker, or says why it has no turn.
    fn hand_over(
        &self,
        settings: &Arc<Settings>,
        stream: &mut Stream,
        frame: Frame,
        buffer_time: Option<gst::ClockTime>,
    ) -> std::result::Result<Held, gst::FlowError> {
        let missed = |frame| Ok(Held::Frame(frame, Turn::Missed, Arc::clone(settings)));
        let worker = self.worker(stream).ok_or(gst::FlowError::Flushing)?;
        let ready = match settings.sync_mode {
            SyncMode::Latest => worker.ready(),
            SyncMode::Lossless | SyncMode::Exact => {
                let ready = worker.wait_ready(&self.gives_up);
                Some(ready.ok_or(gst::FlowError::Flushing)?)
            }
        };
        let ready = match ready {
            None => return missed(frame),
            // Told on the bus where it happened.
            Some(Err(_)) => return Err(gst::FlowError::Error),
            Some(Ok(ready)) => ready,
        };
        stream.n_maps = ready.n_maps;
        // Another classifier over the same weights changes nothing here.
        let opened = ready.model.as_opened();
        let is_new = !matches!(&stream.resizer, Some((model, _)) if Arc::ptr_eq(&model.as_opened(), &opened));
        if is_new {
            let preprocessor = &ready.model.preprocessor;
            let resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
            stream.resizer = Some((Arc::clone(&ready.model), resizer));
            stream.delay = None;
            stream.newest = None;
            stream.work.clear();
        }
        let frame_duration = Self::frame_duration(stream.info.as_ref());
        if stream.delay.is_none() {
            stream.delay = Some(Delay::new(ready.one_image, frame_duration));
            let n_held = Self::n_held(settings, stream);
            self.announce(n_held, frame_duration);
        }
        let now = gst::ClockTime::from_nseconds(frame.pts.0);
        self.collect_newest(settings, stream, now);
        let due = frame
            .seq
            .is_multiple_of(u64::from(settings.interval.max(1)));
        let late = settings.sync_mode != SyncMode::Lossless && self.is_late(buffer_time);
        if due && late {
            lock(&self.stats).skipped += 1;
            return missed(frame);
        }
        let Some((_, resizer)) = &mut stream.resizer else {
            return missed(frame);
        };
        let Patchified { frame, turn } = patchify(Decoded { frame, due }, resizer);
        let turn = match turn {
            Turn::Between => Turn::Between,
            Turn::Missed => Turn::Missed,
            Turn::Due(image) => {
                let thumbnail = Thumbnail::new(&image);
                let time = gst::ClockTime::from_nseconds(frame.pts.0);
                let ticket = match settings.sync_mode {
                    SyncMode::Latest => {
                        self.ask_for_newest(&worker, stream, (frame.seq, image), thumbnail, time);
                        return missed(frame);
                    }
                    SyncMode::Lossless => worker.submit(frame.seq, image, &stream.memory),
                    SyncMode::Exact => worker.try_submit(frame.seq, image, &stream.memory),
                };
                match ticket {
                    Some(ticket) => Turn::Due(Awaited {
                        ticket,
                        since: Instant::now(),
                        thumbnail,
                        worker,
                    }),
                    None => {
                        lock(&self.stats).skipped += 1;
                        Turn::Missed
                    }
                }
            }
        };
        Ok(Held::Frame(frame, turn, Arc::clone(settings)))
    }

    fn is_late(&self, running_time: Option<gst::ClockTime>) -> bool {
        let earliest = self.earliest_ns.load(Ordering::SeqCst);
        running_time.is_some_and(|time| time.nseconds() < earliest)
    }

    /// In `latest`, hands an image over where the worker is free or soon will be; of those that wait, the newest does.
    fn ask_for_newest(
        &self,
        worker: &Worker,
        stream: &mut Stream,
        (seq, image): (u64, Image),
        thumbnail: Thumbnail,
        time: gst::ClockTime,
    ) {
        let frame_duration = Self::frame_duration(stream.info.as_ref());
        let since = stream.asked.back().map(|asked| asked.ticket.taken());
        let is_soon_free = |since: Instant| {
            let left = stream.work.percentile(0.5).saturating_sub(since.elapsed());
            left <= frame_duration.mul_f64(WORTH_WAITING)
        };
        match since {
            Some(Some(since)) if !is_soon_free(since) => lock(&self.stats).skipped += 1,
            None | Some(Some(_)) => match worker.try_submit(seq, image, &stream.memory) {
                Some(ticket) => stream.asked.push_back(Question {
                    ticket,
                    seq,
                    thumbnail,
                    time,
                }),
                None => lock(&self.stats).skipped += 1,
            },
            Some(None) => {
                lock(&self.stats).skipped += 1;
                if let Some(waiting) = stream.asked.back_mut()
                    && waiting.ticket.replace(seq, image)
                {
                    waiting.seq = seq;
                    waiting.thumbnail = thumbnail;
                    waiting.time = time;
                }
            }
        }
    }

    /// In `latest`, takes the explanations that have come since the frame before; `now` is the time of this one.
    fn collect_newest(&self, settings: &Settings, stream: &mut Stream, now: gst::ClockTime) {
        while let Some(asked) = stream.asked.pop_front() {
            match asked.ticket.try_wait() {
                Ok(answer) => {
                    self.learn(settings, stream, answer, (asked.thumbnail, asked.time), now);
                }
                Err(ticket) => {
                    stream.asked.push_front(Question { ticket, ..asked });
                    return;
                }
            }
            if let (Some(scores), Some(newest)) = (&mut stream.scores, &stream.newest) {
                scores.explain(&newest.finding);
            }
        }
    }

    /// Keeps what the worker found on a frame of time `of`, for frames from time `now` on.
    fn learn(
        &self,
        settings: &Settings,
        stream: &mut Stream,
        answer: Option<Answer>,
        (thumbnail, of): (Thumbnail, gst::ClockTime),
        now: gst::ClockTime,
    ) {
        let Some(Answer {
            work,
            finding,
            took,
        }) = answer
        else {
            stream.newest = None;
            return;
        };
        stream.work.push(work);
        lock(&self.stats).took.push(took);
        self.adapt_delay(settings, stream, took);
        stream.newest = finding.map(|finding| {
            lock(&self.stats).explained(Instant::now());
            Newest {
                finding: stream
                    .smoothing
                    .next(finding, thumbnail, settings.smoothing),
                of,
                arrived: now,
                fades_within: settings.fades_within(took),
            }
        });
        let Some(Newest { finding, of, .. }) = &stream.newest else {
            return;
        };
        if let (Some(map), true) = (finding.maps.first(), settings.post_messages) {
            let found = Found::new(finding, map, *of).message();
            let message = gst::message::Element::builder(found);
            let _ = self.obj().post_message(message.src(&*self.obj()).build());
        }
        let observe = lock(&self.observe).clone();
        if let Some(observe) = observe {
            observe(finding, *of);
        }
    }

    /// In `exact`, holds as many frames back as an explanation needs that took so long.
    fn adapt_delay(&self, settings: &Settings, stream: &mut Stream, took: Duration) {
        let frame_duration = Self::frame_duration(stream.info.as_ref());
        let Some(delay) = &mut stream.delay else {
            return;
        };
        let changed = delay.learn(took, frame_duration);
        if changed && settings.sync_mode == SyncMode::Exact {
            let n_held = Self::n_held(settings, stream);
            self.announce(n_held, frame_duration);
        }
    }

    /// The oldest frame, drawn; `None` while it has to wait.
    fn leave(
        &self,
        settings: &Settings,
        stream: &mut Stream,
        drain: bool,
    ) -> std::result::Result<Option<gst::Buffer>, gst::FlowError> {
        let must_leave = drain || stream.held.len() > Self::n_held(settings, stream);
        let (frame, turn, of_frame) = match stream.held.pop_front() {
            None => return Ok(None),
            Some(Held::Untouched(buffer)) => return Ok(Some(buffer)),
            Some(Held::Frame(frame, turn, of_frame)) => (frame, turn, of_frame),
        };
        let time = gst::ClockTime::from_nseconds(frame.pts.0);
        match turn {
            Turn::Between => (),
            // What is newest was found on another frame all the same.
            Turn::Missed if of_frame.sync_mode == SyncMode::Latest => (),
            Turn::Missed => stream.newest = None,
            Turn::Due(Awaited {
                ticket,
                since,
                thumbnail,
                worker,
            }) => match ticket.try_wait() {
                Ok(answer) => self.learn(&of_frame, stream, answer, (thumbnail, time), time),
                Err(ticket) if must_leave => {
                    let frame_duration = Self::frame_duration(stream.info.as_ref());
                    let longest = frame_duration * Self::n_held(settings, stream) as u32;
                    let answer = match settings.sync_mode {
                        SyncMode::Lossless => self.wait(ticket),
                        // At the end no longer than before it.
                        SyncMode::Exact | SyncMode::Latest if drain => {
                            ticket.wait_until(since + longest)
                        }
                        SyncMode::Exact | SyncMode::Latest => None,
                    };
                    match answer {
                        Some(_) => self.learn(&of_frame, stream, answer, (thumbnail, time), time),
                        None => {
                            lock(&self.stats).skipped += 1;
                            stream.newest = None;
                            self.adapt_delay(settings, stream, longest + frame_duration);
                        }
                    }
                }
                Err(ticket) => {
                    let turn = Turn::Due(Awaited {
                        ticket,
                        since,
                        thumbnail,
                        worker,
                    });
                    stream.held.push_front(Held::Frame(frame, turn, of_frame));
                    return Ok(None);
                }
            },
        }
        self.draw(&of_frame, stream, frame).map(Some)
    }

    /// Waits for an answer, however long it takes; `None` where the element gives up meanwhile.
    fn wait(&self, ticket: Ticket) -> Option<Answer> {
        *lock(&self.waiting) = Some(ticket.abandon());
        // After that, so that whoever gives up meanwhile is not missed.
        let answer = match self.gives_up.load(Ordering::SeqCst) {
            true => None,
            false => ticket.wait(),
        };
        *lock(&self.waiting) = None;
        answer
    }

    /// What is to be read on a frame besides captions.
    fn notes(&self, settings: &Settings, finding: Option<&Finding>) -> Vec<String> {
        let mut lines = vec![lock(&self.note).clone()];
        if settings.show_stats {
            let kept = finding.and_then(|finding| finding.maps.first()?.kept());
            lines.extend(lock(&self.stats).lines(kept, Instant::now()));
        }
        lines
    }

    /// Draws what is newest on a frame, and attaches what is asked for.
    fn draw(
        &self,
        settings: &Settings,
        stream: &mut Stream,
        frame: Frame,
    ) -> std::result::Result<gst::Buffer, gst::FlowError> {
        let failed = |reason: String| {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("{reason}"));
            gst::FlowError::Error
        };
        let size = frame.size();
        let time = gst::ClockTime::from_nseconds(frame.pts.0);
        let mut overlay = settings.overlay();
        let shown = stream.newest.clone().filter(|newest| {
            let Newest { finding, .. } = newest;
            let fits = !finding.maps.is_empty() && finding.check(size).is_ok();
            if settings.sync_mode == SyncMode::Latest {
                let age: Duration = time.saturating_sub(newest.of).into();
                lock(&self.stats).ages.push(age);
                // However long it took, there is time to see it.
                let shown_for: Duration = time.saturating_sub(newest.arrived).into();
                let left = 1.0 - shown_for.as_secs_f32() / newest.fades_within.as_secs_f32();
                overlay.alpha *= left.max(0.0);
                return fits && left > 0.0;
            }
            fits
        });
        let (finding, of) = shown.map(|newest| (newest.finding, newest.of)).unzip();
        let compositor = Compositor {
            overlay,
            n_maps: stream.n_maps,
            keeps_size: true,
            has_captions: settings.show_hud,
        };
        let notes = self.notes(settings, finding.as_deref());
        let drawn = compositor.draw(frame, finding.as_deref(), &notes);
        let frame = drawn.map_err(|error| failed(error.to_string()))?;
        let composited = Composited { frame, finding };
        if let Some(scores) = &mut stream.scores {
            scores.push(composited.record());
            let is_awaited = |seq| stream.asked.iter().any(|asked| asked.seq == seq);
            let written = scores.write_settled(is_awaited);
            // Who reads along live wants each frame's line when it is there.
            let written = match settings.sync_mode {
                SyncMode::Lossless => written,
                SyncMode::Exact | SyncMode::Latest => written.and_then(|()| scores.flush()),
            };
            written.map_err(|error| failed(error.to_string()))?;
        }
        let Composited { frame, finding } = composited;
        let mut buffer = buffer_from_frame(frame).map_err(|error| failed(error.to_string()))?;
        if let (true, Some(finding)) = (settings.attach_meta, &finding)
            && let Some(map) = finding.maps.first()
        {
            let buffer = buffer.make_mut();
            let found = Found::new(finding, map, of.unwrap_or(time));
            let attached = found.attach(buffer);
            attached.map_err(|error| failed(error.to_string()))?;
            let regions = meta::regions(finding, map, settings.threshold);
            meta::attach_regions(buffer, &regions);
            #[cfg(feature = "v1_26")]
            meta::attach_analytics(buffer, &found, &regions)
                .map_err(|error| failed(error.to_string()))?;
        }
        Ok(buffer)
    }

    /// Lets all held frames leave.
    fn drain(&self) {
        let settings = self.settings();
        let mut leaving = Vec::new();
        let mut stream = lock(&self.stream);
        while let Ok(Some(buffer)) = self.leave(&settings, &mut stream, true) {
            leaving.push(buffer);
        }
        drop(stream);
        for buffer in leaving {
            if let Err(error) = self.obj().src_pad().push(buffer) {
                gst::debug!(CAT, imp = self, "downstream takes no more: {error}");
                return;
            }
        }
    }

    /// Forgets all held frames.
    fn discard(&self) {
        let mut stream = lock(&self.stream);
        stream.held.clear();
        stream.asked.clear();
        stream.newest = None;
        stream.smoothing.forget();
        stream.memory = SharedMemory::default();
        self.earliest_ns.store(0, Ordering::SeqCst);
    }

    /// Lets a frame that waits for a model wait no longer.
    fn give_up(&self) {
        self.gives_up.store(true, Ordering::SeqCst);
        if let Some(waiting) = &*lock(&self.waiting) {
            waiting.now();
        }
        let worker = lock(&self.workers).current.clone();
        if let Some((_, worker)) = worker {
            worker.wake();
        }
    }

    fn running_time(&self, buffer: &gst::BufferRef) -> Option<gst::ClockTime> {
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>()?;
        segment.to_running_time(buffer.pts()?)
    }
}

/// Pads for video in the formats of [`crate::frame::PixelFormat`].
pub(super) fn pad_templates() -> &'static [gst::PadTemplate] {
    static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
        use gst_video::VideoFormat::{Bgr, Bgrx, I420, Nv12, Rgb, Rgba};
        let caps = gst_video::VideoCapsBuilder::new()
            .format_list([I420, Nv12, Rgba, Bgrx, Rgb, Bgr])
            .build();
        let template = |name, direction| {
            gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps)
        };
        let pads = [
            ("sink", gst::PadDirection::Sink),
            ("src", gst::PadDirection::Src),
        ];
        pads.into_iter()
            .filter_map(|(name, direction)| template(name, direction).ok())
            .collect()
    });
    &TEMPLATES
}

#[glib::object_subclass]
impl ObjectSubclass for VitScope {
    const NAME: &'static str = "GstVitscope";
    type Type = super::VitScope;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for VitScope {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(properties);
        &PROPERTIES
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(|| {
            let reload = glib::subclass::Signal::builder("reload")
                .action()
                .class_handler(|arguments| {
                    if let Ok(element) = arguments[0].get::<super::VitScope>() {
                        element.reload();
                    }
                    None
                });
            vec![reload.build()]
        });
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, spec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        let another = match settings.set(spec.name(), value) {
            Ok(another) => another,
            Err(reason) => {
                gst::warning!(CAT, imp = self, "{}: {reason}", spec.name());
                return;
            }
        };
        let idle = settings.is_idle();
        drop(settings);
        self.obj().set_passthrough(idle);
        if another {
            self.start_next(false);
        }
    }

    fn property(&self, _id: usize, spec: &glib::ParamSpec) -> glib::Value {
        match lock(&self.settings).get(spec.name()) {
            Some(value) => value,
            None => {
                let mut structure = lock(&self.stats).structure(Instant::now());
                structure.set("latency", self.latency_ns.load(Ordering::SeqCst));
                structure.to_value()
            }
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // Late frames lose their explanation, and are never dropped.
        self.obj().set_qos(false);
    }
}

impl GstObjectImpl for VitScope {}

impl ElementImpl for VitScope {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Vision Transformer explainer",
                "Filter/Analyzer/Effect/Video",
                env!("CARGO_PKG_DESCRIPTION"),
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        pad_templates()
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> std::result::Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::NullToReady {
            match self.start_worker(false) {
                Ok(worker) => lock(&self.workers).current = Some(worker),
                Err(error) => {
                    gst::element_imp_error!(self, gst::LibraryError::Settings, ("{error}"));
                    return Err(gst::StateChangeError);
                }
            }
        }
        if transition == gst::StateChange::PausedToReady {
            self.give_up();
        }
        let changed = self.parent_change_state(transition);
        if transition == gst::StateChange::ReadyToNull {
            let Workers { current, next } = std::mem::take(&mut *lock(&self.workers));
            *lock(&self.stream) = Stream::default();
            drop((current, next));
        }
        changed
    }
}

impl BaseTransformImpl for VitScope {
    const MODE: gst_base::subclass::BaseTransformMode =
        gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> std::result::Result<(), gst::ErrorMessage> {
        let settings = self.settings();
        let mut stream = Stream::default();
        if let Some(path) = settings.scores_location {
            let out = scores::open(&path).map_err(|error| {
                gst::error_msg!(
                    gst::ResourceError::OpenWrite,
                    ("scores-location cannot be written: {error}: {path:?}")
                )
            })?;
            stream.scores = Some(Records::new(sidecar::Writer::new(out, path)));
        }
        *lock(&self.stream) = stream;
        *lock(&self.stats) = Statistics::default();
        self.earliest_ns.store(0, Ordering::SeqCst);
        self.gives_up.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn stop(&self) -> std::result::Result<(), gst::ErrorMessage> {
        let stream = std::mem::take(&mut *lock(&self.stream));
        if let Some(scores) = stream.scores {
            scores
                .finish()
                .map_err(|error| gst::error_msg!(gst::ResourceError::Write, ("{error}")))?;
        }
        Ok(())
    }

    fn set_caps(
        &self,
        incaps: &gst::Caps,
        _outcaps: &gst::Caps,
    ) -> std::result::Result<(), gst::LoggableError> {
        let info = video_info(incaps)?;
        let mut stream = lock(&self.stream);
        stream.delay = None;
        let frame = Self::frame_duration(Some(&info));
        stream.info = Some(info);
        drop(stream);
        let settings = self.settings();
        if settings.sync_mode != SyncMode::Latest && self.latency_ns.load(Ordering::SeqCst) == 0 {
            self.announce(DELAY_AT_FIRST, frame);
        }
        Ok(())
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> std::result::Result<(), gst::LoggableError> {
        // Rows may be padded.
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        self.parent_propose_allocation(decide_query, query)
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        if !BaseTransformImplExt::parent_query(self, direction, query) {
            return false;
        }
        if direction == gst::PadDirection::Src
            && let gst::QueryViewMut::Latency(latency) = query.view_mut()
        {
            let (live, min, max) = latency.result();
            if live {
                let own = gst::ClockTime::from_nseconds(self.latency_ns.load(Ordering::SeqCst));
                latency.set(live, min + own, max.map(|max| max + own));
            }
        }
        true
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::Eos(_)
            | gst::EventView::Segment(_)
            | gst::EventView::Caps(_)
            | gst::EventView::Gap(_) => self.drain(),
            gst::EventView::StreamStart(_) => {
                self.drain();
                lock(&self.stream).memory = SharedMemory::default();
            }
            gst::EventView::FlushStart(_) => self.give_up(),
            gst::EventView::FlushStop(_) => {
                self.discard();
                self.gives_up.store(false, Ordering::SeqCst);
            }
            _ => (),
        }
        self.parent_sink_event(event)
    }

    fn src_event(&self, event: gst::Event) -> bool {
        if let gst::EventView::Qos(qos) = event.view() {
            let (_, _, jitter, timestamp) = qos.get();
            if let Some(timestamp) = timestamp {
                let late = u64::try_from(jitter.max(0)).unwrap_or(0);
                let earliest = match late {
                    0 => 0,
                    late => timestamp.nseconds().saturating_add(2 * late),
                };
                self.earliest_ns.store(earliest, Ordering::SeqCst);
            }
        }
        self.parent_src_event(event)
    }

    fn submit_input_buffer(
        &self,
        _is_discont: bool,
        buffer: gst::Buffer,
    ) -> std::result::Result<gst::FlowSuccess, gst::FlowError> {
        sync_values(&*self.obj(), &buffer);
        let settings = Arc::new(self.settings());
        let mut stream = lock(&self.stream);
        lock(&self.stats).frames += 1;
        let seq = stream.n_frames;
        stream.n_frames += 1;
        if settings.is_idle() {
            stream.held.push_back(Held::Untouched(buffer));
            return Ok(gst::FlowSuccess::Ok);
        }
        let info = stream.info.clone().ok_or(gst::FlowError::NotNegotiated)?;
        let running_time = self.running_time(&buffer);
        let frame = frame_from_buffer(seq, buffer, &info).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{error}"));
            gst::FlowError::Error
        })?;
        let held = self.hand_over(&settings, &mut stream, frame, running_time)?;
        stream.held.push_back(held);
        lock(&self.stats).held = stream.held.len();
        Ok(gst::FlowSuccess::Ok)
    }

    fn generate_output(
        &self,
    ) -> std::result::Result<
        gst_base::subclass::base_transform::GenerateOutputSuccess,
        gst::FlowError,
    > {
        use gst_base::subclass::base_transform::GenerateOutputSuccess;
        let settings = self.settings();
        let mut stream = lock(&self.stream);
        Ok(match self.leave(&settings, &mut stream, false)? {
            Some(buffer) => GenerateOutputSuccess::Buffer(buffer),
            None => GenerateOutputSuccess::NoOutput,
        })
    }
}
