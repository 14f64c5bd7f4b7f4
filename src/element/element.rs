//! The element: buffers in, explained buffers out, in order.
//!
//! A buffer is handed to the worker in `submit_input_buffer` and leaves in `generate_output`, when its explanation is
//! there or, live, when its time has come. What is held leaves before EOS, SEGMENT, CAPS and GAP, and is discarded by
//! a flush. No setting is locked while the model works.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base as gst_base;
use gstreamer_base::prelude::*;
use gstreamer_base::subclass::prelude::*;
use gstreamer_video as gst_video;

use super::meta::Found;
use super::records::Records;
use super::scores;
use super::settings::{Settings, SyncMode, properties};
use super::shared::Taught;
use super::statistics::Statistics;
use super::stream::{News, Next, Stream};
use super::workers::{Handed, Workers};
use vitscope_core::error::Result;
use vitscope_core::frame::Frame;
use vitscope_core::frame::resize::Resizer;
use vitscope_core::models::Model;
use vitscope_video::media::pixels::frame_from_buffer;
use vitscope_video::pipeline::stages::{Decoded, Finding, Patchified, View, patchify};
use vitscope_video::pipeline::worker::{Abandon, Answer, Ready};
use vitscope_video::sidecar;

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
    pub(super) settings: Mutex<Settings>,
    /// A program's own views.
    pub(super) open: Mutex<Option<Arc<Open>>>,
    /// Who is told of each explanation.
    observe: Mutex<Option<Arc<Observe>>>,
    pub(super) workers: Mutex<Workers>,
    /// A classifier in place of the model's own.
    pub(super) head: Arc<Mutex<Option<Taught>>>,
    /// A line that is written into the picture.
    pub(super) note: Mutex<String>,
    streaming: Mutex<Streaming>,
    pub(super) stats: Mutex<Statistics>,
    /// What a live stream is delayed by, nanoseconds.
    latency_ns: AtomicU64,
    /// Running time before which a frame is too late to be explained, nanoseconds.
    earliest_ns: AtomicU64,
    /// No frame waits for a model: a flush is under way, or the element stops.
    gives_up: AtomicBool,
    /// Ends the wait of the frame that is to leave.
    waiting: Mutex<Option<Abandon>>,
}

/// What the streaming thread works with.
#[derive(Default)]
pub(super) struct Streaming {
    info: Option<gst_video::VideoInfo>,
    /// Frames so far.
    n_frames: u64,
    resizer: Option<(Arc<Model>, Resizer)>,
    /// Maps per explained frame; none before the model is open.
    pub(super) n_maps: usize,
    pub(super) frames: Stream<Handed, gst::Buffer>,
    pub(super) scores: Option<Records>,
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
    pub(super) fn set_observer(
        &self,
        observe: impl Fn(&Arc<Finding>, gst::ClockTime) + Send + Sync + 'static,
    ) {
        *lock(&self.observe) = Some(Arc::new(observe));
    }

    pub(super) fn set_note(&self, note: String) {
        *lock(&self.note) = note;
    }

    pub(super) fn settings(&self) -> Settings {
        lock(&self.settings).clone()
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

    /// Takes a frame, whose image the model of this moment gets where its turn has come.
    fn hand_over(
        &self,
        settings: &Arc<Settings>,
        streaming: &mut Streaming,
        frame: Frame,
        running_time: Option<gst::ClockTime>,
    ) -> std::result::Result<(), gst::FlowError> {
        let (worker, is_new) = self.worker().ok_or(gst::FlowError::Flushing)?;
        if is_new {
            streaming.frames.begin_explaining();
        }
        let ready = match settings.sync_mode {
            SyncMode::Latest => worker.ready(),
            SyncMode::Lossless | SyncMode::Exact => {
                let ready = worker.wait_ready(&self.gives_up);
                Some(ready.ok_or(gst::FlowError::Flushing)?)
            }
        };
        match ready {
            None => {
                streaming.frames.miss(settings, frame);
                return Ok(());
            }
            // Told on the bus where it happened.
            Some(Err(_)) => return Err(gst::FlowError::Error),
            Some(Ok(ready)) => streaming.use_model(settings, &ready),
        }
        streaming.frames.collect_newest(settings, frame.pts);
        let due = frame
            .seq
            .is_multiple_of(u64::from(settings.interval.max(1)));
        let late = settings.sync_mode != SyncMode::Lossless && self.is_late(running_time);
        let resizer = match &mut streaming.resizer {
            Some((_, resizer)) if !(due && late) => resizer,
            _ => {
                lock(&self.stats).skipped += u64::from(due && late);
                streaming.frames.miss(settings, frame);
                return Ok(());
            }
        };
        let Patchified { frame, turn } = patchify(Decoded { frame, due }, resizer);
        let now = Instant::now();
        streaming.frames.push(settings, frame, turn, &worker, now);
        Ok(())
    }

    fn is_late(&self, running_time: Option<gst::ClockTime>) -> bool {
        let earliest = self.earliest_ns.load(Ordering::SeqCst);
        running_time.is_some_and(|time| time.nseconds() < earliest)
    }

    /// The frame that leaves, drawn; `None` while all have to wait.
    fn leave(
        &self,
        settings: &Settings,
        streaming: &mut Streaming,
        drain: bool,
    ) -> std::result::Result<Option<gst::Buffer>, gst::FlowError> {
        let shown = match streaming.frames.next(settings, drain) {
            Next::Nothing => return Ok(None),
            Next::Untouched(buffer) => return Ok(Some(buffer)),
            Next::Frame(shown) => shown,
            Next::Wait {
                ticket,
                until,
                frame,
            } => {
                let answer = self.wait(ticket, until);
                streaming.frames.resume(settings, frame, answer)
            }
        };
        self.tell(settings, streaming);
        self.draw(streaming, shown).map(Some)
    }

    /// Waits for an answer, until `deadline` where there is one; `None` also where the element gives up meanwhile.
    fn wait(&self, handed: Handed, deadline: Option<Instant>) -> Option<Answer> {
        *lock(&self.waiting) = Some(handed.abandon());
        // After that, so that whoever gives up meanwhile is not missed.
        let answer = match self.gives_up.load(Ordering::SeqCst) {
            true => None,
            false => handed.wait(deadline),
        };
        *lock(&self.waiting) = None;
        answer
    }

    /// Tells everybody what the stream has to tell.
    fn tell(&self, settings: &Settings, streaming: &mut Streaming) {
        for news in streaming.frames.take_news() {
            match news {
                News::Latency(n_frames) => {
                    self.announce(n_frames, streaming.frames.frame_duration());
                }
                News::Skipped => lock(&self.stats).skipped += 1,
                News::Took(took) => lock(&self.stats).took.push(took),
                News::Age(age) => lock(&self.stats).ages.push(age),
                News::Found(finding, of) => {
                    lock(&self.stats).explained(Instant::now());
                    if let Some(scores) = &mut streaming.scores {
                        scores.explain(&finding);
                    }
                    self.tell_of(&finding, gst::ClockTime::from_nseconds(of.0), settings);
                }
            }
        }
    }

    /// Tells the bus and the observer what was found on the frame of time `of`.
    fn tell_of(&self, finding: &Arc<Finding>, of: gst::ClockTime, settings: &Settings) {
        if let (Some(map), true) = (finding.maps.first(), settings.post_messages) {
            let found = Found::new(finding, map, of).message();
            let message = gst::message::Element::builder(found);
            let _ = self.obj().post_message(message.src(&*self.obj()).build());
        }
        let observe = lock(&self.observe).clone();
        if let Some(observe) = observe {
            observe(finding, of);
        }
    }

    /// Lets all held frames leave.
    fn drain(&self) {
        let settings = self.settings();
        let mut leaving = Vec::new();
        let mut streaming = lock(&self.streaming);
        while let Ok(Some(buffer)) = self.leave(&settings, &mut streaming, true) {
            leaving.push(buffer);
        }
        drop(streaming);
        for buffer in leaving {
            if let Err(error) = self.obj().src_pad().push(buffer) {
                gst::debug!(
                    CAT,
                    imp = self,
                    "downstream accepts no more buffers: {error}"
                );
                return;
            }
        }
    }

    /// Forgets all held frames.
    fn discard(&self) {
        lock(&self.streaming).frames.discard();
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

impl Streaming {
    /// Prepares for images of a model that is open.
    fn use_model(&mut self, settings: &Settings, ready: &Ready) {
        self.n_maps = ready.n_maps;
        // Another classifier over the same weights changes nothing here.
        let opened = ready.model.as_opened();
        let is_known =
            matches!(&self.resizer, Some((model, _)) if Arc::ptr_eq(&model.as_opened(), &opened));
        if !is_known {
            let preprocessor = &ready.model.preprocessor;
            let resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
            self.resizer = Some((Arc::clone(&ready.model), resizer));
            self.frames.begin_model();
        }
        self.frames.expect(settings, ready.one_image);
    }
}

/// How long frames last by what the caps say.
fn frame_duration(info: &gst_video::VideoInfo) -> Option<Duration> {
    let fps = info.fps();
    let secs = f64::from(fps.denom()) / f64::from(fps.numer());
    (fps.numer() > 0).then(|| Duration::from_secs_f64(secs))
}

/// Pads for video in the formats of [`vitscope_core::frame::PixelFormat`].
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
            *lock(&self.streaming) = Streaming::default();
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
        let mut streaming = Streaming::default();
        if let Some(path) = settings.scores_location {
            let out = scores::open(&path).map_err(|error| {
                gst::error_msg!(
                    gst::ResourceError::OpenWrite,
                    ("cannot write the scores: {error}: {path:?}")
                )
            })?;
            streaming.scores = Some(Records::new(sidecar::Writer::new(out, path)));
        }
        *lock(&self.streaming) = streaming;
        *lock(&self.stats) = Statistics::default();
        self.earliest_ns.store(0, Ordering::SeqCst);
        self.gives_up.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn stop(&self) -> std::result::Result<(), gst::ErrorMessage> {
        let streaming = std::mem::take(&mut *lock(&self.streaming));
        if let Some(scores) = streaming.scores {
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
        let mut streaming = lock(&self.streaming);
        streaming.frames.set_frame_duration(frame_duration(&info));
        let frame = streaming.frames.frame_duration();
        streaming.info = Some(info);
        drop(streaming);
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
                lock(&self.streaming).frames.forget_scene();
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
        let mut streaming = lock(&self.streaming);
        lock(&self.stats).frames += 1;
        let seq = streaming.n_frames;
        streaming.n_frames += 1;
        if settings.is_idle() {
            streaming.frames.pass(buffer);
            return Ok(gst::FlowSuccess::Ok);
        }
        let info = streaming
            .info
            .clone()
            .ok_or(gst::FlowError::NotNegotiated)?;
        let running_time = self.running_time(&buffer);
        let frame = frame_from_buffer(seq, buffer, &info).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{error}"));
            gst::FlowError::Error
        })?;
        let handed = self.hand_over(&settings, &mut streaming, frame, running_time);
        self.tell(&settings, &mut streaming);
        handed?;
        lock(&self.stats).held = streaming.frames.n_waiting();
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
        let mut streaming = lock(&self.streaming);
        Ok(match self.leave(&settings, &mut streaming, false)? {
            Some(buffer) => GenerateOutputSuccess::Buffer(buffer),
            None => GenerateOutputSuccess::NoOutput,
        })
    }
}
