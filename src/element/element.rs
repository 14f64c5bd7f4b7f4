//! The element as GStreamer sees it: properties, states, events, and buffers in and out, in order.
//!
//! `submit_input_buffer` takes a buffer and `generate_output` returns it; [`super::streaming`] decides when.

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

use super::pads::{frame_duration, pad_templates, sync_values, video_info};
use super::records::Records;
use super::scores;
use super::settings::{Settings, SyncMode, properties};
use super::shared::Taught;
use super::statistics::{Figures, Statistics};
use super::streaming::Streaming;
use super::workers::Workers;
use vitscope_core::error::Result;
use vitscope_video::media::pixels::frame_from_buffer;
use vitscope_video::pipeline::stages::{Finding, View};
use vitscope_video::pipeline::worker::Abandon;
use vitscope_video::sidecar;

/// Delay of a live stream, in frames, that is announced before the model has been timed.
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
    /// Views supplied by the program.
    pub(super) open: Mutex<Option<Arc<Open>>>,
    /// Callback for each explanation.
    pub(super) observe: Mutex<Option<Arc<Observe>>>,
    pub(super) workers: Mutex<Workers>,
    /// A classifier that replaces the model's own.
    pub(super) head: Arc<Mutex<Option<Taught>>>,
    /// A line of text drawn on the picture.
    pub(super) note: Mutex<String>,
    pub(super) streaming: Mutex<Streaming>,
    pub(super) stats: Mutex<Statistics>,
    /// Delay of a live stream in nanoseconds.
    pub(super) latency_ns: AtomicU64,
    /// Running time in nanoseconds before which a frame is too late to be explained.
    pub(super) earliest_ns: AtomicU64,
    /// Set while no frame may wait for a model: during a flush, or when the element stops.
    pub(super) gives_up: AtomicBool,
    /// Ends the wait of the frame that is to leave.
    pub(super) waiting: Mutex<Option<Abandon>>,
}

/// Locks `mutex`; the data stays valid if a thread has panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub(super) fn figures(&self) -> Figures {
        let delay = Duration::from_nanos(self.latency_ns.load(Ordering::SeqCst));
        lock(&self.stats).figures(Instant::now(), delay)
    }

    pub(super) fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }
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
        self.follow(settings, another);
    }

    fn property(&self, _id: usize, spec: &glib::ParamSpec) -> glib::Value {
        match lock(&self.settings).get(spec.name()) {
            Some(value) => value,
            None => self.figures().structure().to_value(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // Late frames lose their explanation but are never dropped.
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
