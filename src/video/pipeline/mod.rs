//! The staged pipeline: decode → patchify → explain → composite → encode, with one named thread per stage.
//!
//! Bounded [edges](mod@edge) connect the threads: a slow stage slows down the source, and no frame is ever dropped. A
//! stage that fails returns its error. Its channel ends are dropped, its neighbors end quietly, and the run returns the
//! error together with the name of the stage.
//!
//! The work of each stage is in [`stages`], which the GStreamer element also uses. Only this module starts threads.

pub mod compositor;
pub mod crew;
pub mod edge;
mod picture;
mod report;
pub mod stages;
pub mod worker;

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

pub use report::{Counts, Report, STAGES};

use crate::media::{Sink, Source};
use crate::overlay::Overlay;
use compositor::Compositor;
use edge::{EdgeReceiver, EdgeSender, edge};
use stages::{Composited, Decoded, Explained, Patchified, View};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::StreamMemory;
use vitscope_core::frame::resize::Resizer;
use vitscope_core::frame::{Frame, Pts};
use vitscope_core::vit::Stop;

/// Capacity of an edge between two stages, in frames: 25 MB at 1080p and three bytes per pixel; four times that over
/// all edges.
const EDGE_FRAMES: usize = 4;

/// Maximum number of frames between source and sink, on the edges and in the explain stage.
pub const MOST_FRAMES: usize = 4 * EDGE_FRAMES + HELD_FRAMES;

/// Maximum number of frames that the explain stage holds while it fills a batch of every Nth frame: 200 MB at 1080p and
/// three bytes per pixel.
const HELD_FRAMES: usize = 32;

/// Called with each frame, in order, before the frame is encoded. Runs on the thread of the encode stage; an error ends
/// the run.
pub type OnFrame<'a> = Box<dyn FnMut(&Composited) -> Result<()> + Send + 'a>;

/// Everything between a [`Source`] and a [`Sink`].
///
/// ```
/// # mod vitscope { pub use vitscope_core::*; pub use vitscope_video::*; }
/// # std::env::set_current_dir("../..").expect("the repository");
/// use std::num::{NonZeroU64, NonZeroUsize};
/// use std::sync::Arc;
/// use std::sync::atomic::AtomicBool;
///
/// use candle_core::Device;
/// use vitscope::explain::{Method, Parts, Target};
/// use vitscope::media::memory::{MemorySink, MemorySource};
/// use vitscope::models;
/// use vitscope::overlay::{Overlay, frame_from_image};
/// use vitscope::pipeline::{Pipeline, stages::View};
///
/// let pipeline = Pipeline {
///     view: View {
///         model: Arc::new(models::open("tests/fixtures/vit_a", &Device::Cpu)?),
///         explainers: vec![Method::Rollout.build(Parts::default())?],
///         targets: vec![Target::Predicted],
///         reuse: None,
///     },
///     overlay: Overlay::default(),
///     every: NonZeroU64::MIN,
///     batch: NonZeroUsize::MIN,
///     is_video: true,
///     cancel: &AtomicBool::new(false),
///     on_frame: Box::new(|frame| {
///         println!("{}", frame.finding.as_ref().map_or_else(String::new, |found| found.answer()));
///         Ok(())
///     }),
/// };
/// let mut source = MemorySource::new(vec![frame_from_image(image::RgbImage::new(64, 48))]);
/// let sink = MemorySink::default();
/// let report = pipeline.run(&mut source, Box::new(sink.clone()))?;
/// assert_eq!((1, 1), (report.counts.explained, sink.take().len()));
/// # Ok::<(), vitscope::Error>(())
/// ```
pub struct Pipeline<'a> {
    /// Model, methods and target classes.
    pub view: View,
    /// How explanations are drawn.
    pub overlay: Overlay,
    /// Explain every Nth frame; the frames in between show its explanation.
    pub every: NonZeroU64,
    /// Batch size.
    pub batch: NonZeroUsize,
    /// Whether the frames belong to one video, so that methods may remember earlier frames. Otherwise each frame is an
    /// independent image.
    pub is_video: bool,
    /// Once this is true, the source is stopped and the frames already delivered are finished.
    pub cancel: &'a AtomicBool,
    /// Callback for each frame; feeds the sidecar, the contact sheet and the progress bar.
    pub on_frame: OnFrame<'a>,
}

impl Pipeline<'_> {
    /// Passes all frames of `source` through the stages into `sink` and closes the sink.
    ///
    /// Frames leave in order, with their original timestamp and duration. The sink is finished only if every stage ends
    /// without an error.
    ///
    /// # Errors
    /// [`Error::Stage`] with the first error of a stage, unless it concerns only the explanation of a single frame.
    /// Also fails if the source ends without a frame.
    pub fn run(self, source: &mut dyn Source, sink: Box<dyn Sink>) -> Result<Report> {
        let Self {
            view,
            overlay,
            every,
            batch,
            is_video,
            cancel,
            on_frame,
        } = self;
        let started = Instant::now();
        let failure = Failure::default();
        let failed = failure.raised.clone();
        let compositor = Compositor {
            overlay,
            n_maps: view.n_maps(),
            keeps_size: false,
            has_captions: true,
        };
        let preprocessor = &view.model.preprocessor;
        let resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
        let (to_patchify, decoded) = edge("decode to patchify", EDGE_FRAMES);
        let (to_explain, patchified) = edge("patchify to explain", EDGE_FRAMES);
        let (to_composite, explained) = edge("explain to composite", EDGE_FRAMES);
        let (to_encode, composited) = edge("composite to encode", EDGE_FRAMES);
        let (stopped, counted, computed, busy) = thread::scope(|scope| {
            let [decode, patchify, explain, composite, encode] = STAGES;
            let start = Start {
                scope,
                failure: &failure,
            };
            let decode = start.stage(decode, to_patchify, move |to, busy| {
                decode_loop(source, to, every, cancel, busy)
            })?;
            let patchify =
                start.stage(patchify, (decoded, to_explain), move |(from, to), busy| {
                    patchify_loop(resizer, from, to, busy);
                    Ok(())
                })?;
            let explain = start.stage(
                explain,
                (patchified, to_composite),
                move |(from, to), busy| {
                    let past = stages::Past {
                        last: None,
                        memory: is_video.then(StreamMemory::default),
                    };
                    let ends = (from, to);
                    Ok(explain_loop(&view, past, batch, ends, &failed, busy))
                },
            )?;
            let composite = start.stage(
                composite,
                (explained, to_encode),
                move |(from, to), busy| composite_loop(&compositor, from, to, busy),
            )?;
            let encode = start.stage(encode, composited, |from, busy| {
                encode_loop(sink, on_frame, from, &failure, busy)
            })?;
            let (stopped, decode_busy) = join(decode);
            let (_, patchify_busy) = join(patchify);
            let (computed, explain_busy) = join(explain);
            let (_, composite_busy) = join(composite);
            let (counted, encode_busy) = join(encode);
            let busy = [
                decode_busy,
                patchify_busy,
                explain_busy,
                composite_busy,
                encode_busy,
            ];
            Ok::<_, Error>((stopped, counted, computed.flatten(), busy))
        })?;
        if let Some(error) = failure.first.into_inner() {
            return Err(error);
        }
        let (stopped, (counts, end)) = (stopped.unwrap_or_default(), counted.unwrap_or_default());
        if counts.frames == 0 && !stopped {
            return Err(Error::Media("the source has no frames".into()));
        }
        Ok(Report {
            counts,
            computed,
            interrupted_at: stopped.then_some(end),
            busy,
            wall: started.elapsed(),
        })
    }
}

/// The first failure of a run, set before the failed stage's channel ends drop.
#[derive(Default)]
struct Failure {
    first: OnceLock<Error>,
    /// Also requested after a panic, which leaves no error; ends a running explanation.
    raised: Stop,
}

impl Failure {
    fn raise(&self, name: &'static str, error: Error) {
        // A later failure is usually a consequence of the first.
        let _ = self.first.set(Error::Stage {
            name,
            source: Box::new(error),
        });
        self.raised.request();
    }
}

/// Signals a failure if the stage that holds it panics.
struct PanicAlarm<'a>(&'a Failure);

impl Drop for PanicAlarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.raised.request();
        }
    }
}

/// Time that a stage has spent working.
#[derive(Default)]
struct Busy(Duration);

impl Busy {
    fn with<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let outcome = work();
        self.0 += started.elapsed();
        outcome
    }
}

type StageThread<'scope, T> = ScopedJoinHandle<'scope, (Option<T>, Duration)>;

/// Starts each stage on its own thread.
#[derive(Clone, Copy)]
struct Start<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    failure: &'env Failure,
}

impl<'scope, 'env> Start<'scope, 'env> {
    /// Runs `body` on a thread called `name`; `ends` are the stage's ends of its edges.
    fn stage<E: Send + 'scope, T: Send + 'scope>(
        self,
        name: &'static str,
        ends: E,
        body: impl FnOnce(&E, &mut Busy) -> Result<T> + Send + 'scope,
    ) -> Result<StageThread<'scope, T>> {
        let failure = self.failure;
        let run = move || {
            // Declared first and therefore dropped last: a stage that sees a closed edge also sees why it closed.
            let ends = ends;
            let _alarm = PanicAlarm(failure);
            let _span = tracing::debug_span!("stage", name).entered();
            let mut busy = Busy::default();
            let outcome = match body(&ends, &mut busy) {
                Ok(outcome) => Some(outcome),
                Err(error) => {
                    failure.raise(name, error);
                    None
                }
            };
            (outcome, busy.0)
        };
        thread::Builder::new()
            .name(name.into())
            .spawn_scoped(self.scope, run)
            .map_err(|error| Error::Stage {
                name,
                source: Box::new(Error::Config(format!("cannot start a thread: {error}"))),
            })
    }
}

/// Waits for a stage and resumes its panic, if any.
fn join<T>(stage: StageThread<'_, T>) -> (Option<T>, Duration) {
    stage
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns whether the source was stopped before its end.
fn decode_loop(
    source: &mut dyn Source,
    to_patchify: &EdgeSender<Decoded>,
    every: NonZeroU64,
    cancel: &AtomicBool,
    busy: &mut Busy,
) -> Result<bool> {
    let mut stopped = false;
    let mut last_size = None;
    for seq in 0.. {
        if !stopped && cancel.load(Ordering::SeqCst) {
            source.stop()?;
            stopped = true;
        }
        let Some(frame) = busy.with(|| source.next())? else {
            break;
        };
        if frame.seq != seq {
            return Err(Error::Media(format!(
                "the source delivered frame {} instead of frame {seq}",
                frame.seq
            )));
        }
        // No earlier explanation fits a frame of another size.
        let due = seq % every == 0 || last_size.is_some_and(|size| size != frame.size());
        last_size = Some(frame.size());
        if to_patchify.send(Decoded { frame, due }).is_err() {
            break;
        }
    }
    Ok(stopped)
}

fn patchify_loop(
    mut resizer: Resizer,
    decoded: &EdgeReceiver<Decoded>,
    to_explain: &EdgeSender<Patchified>,
    busy: &mut Busy,
) {
    while let Some(frame) = decoded.recv() {
        let patchified = busy.with(|| stages::patchify(frame, &mut resizer));
        if to_explain.send(patchified).is_err() {
            break;
        }
    }
}

/// Fills batches of due frames and keeps the frames in between. Returns the share of patches that were computed, if
/// patches can be reused.
fn explain_loop(
    view: &View,
    mut past: stages::Past,
    batch: NonZeroUsize,
    (patchified, to_composite): (&EdgeReceiver<Patchified>, &EdgeSender<Explained>),
    stop: &Stop,
    busy: &mut Busy,
) -> Option<f64> {
    let most_held = batch.get().max(HELD_FRAMES);
    let mut open = true;
    while open {
        let (mut held, mut n_due) = (Vec::new(), 0);
        while n_due < batch.get() && held.len() < most_held {
            let Some(frame) = patchified.recv() else {
                open = false;
                break;
            };
            n_due += usize::from(matches!(frame.turn, stages::Turn::Due(_)));
            held.push(frame);
        }
        for frame in busy.with(|| stages::explain(held, view, &mut past, stop)) {
            if to_composite.send(frame).is_err() {
                return None;
            }
        }
    }
    past.memory?.computed_share()
}

fn composite_loop(
    compositor: &Compositor,
    explained: &EdgeReceiver<Explained>,
    to_encode: &EdgeSender<Composited>,
    busy: &mut Busy,
) -> Result<()> {
    while let Some(frame) = explained.recv() {
        let composited = busy.with(|| stages::composite(frame, compositor))?;
        if to_encode.send(composited).is_err() {
            break;
        }
    }
    Ok(())
}

/// Returns the counts and the end of the last frame.
fn encode_loop(
    mut sink: Box<dyn Sink>,
    mut on_frame: OnFrame<'_>,
    composited: &EdgeReceiver<Composited>,
    failure: &Failure,
    busy: &mut Busy,
) -> Result<(Counts, Pts)> {
    let (mut counts, mut end) = (Counts::default(), Pts::default());
    while let Some(frame) = composited.recv() {
        debug_assert_eq!(counts.frames, frame.frame.seq, "frames leave in order");
        counts.frames += 1;
        match &frame.finding {
            Some(_) if frame.explained() => counts.explained += 1,
            Some(_) => counts.held += 1,
            None => counts.unexplained += 1,
        }
        end = end_of(&frame.frame);
        busy.with(|| {
            on_frame(&frame)?;
            sink.push(frame.frame)
        })?;
    }
    // The edge also closes after a failure; a partial video must not pass for a complete one.
    if counts.frames > 0 && !failure.raised.is_requested() {
        busy.with(|| sink.finish())?;
    }
    Ok((counts, end))
}

/// End of `frame` on the timeline; its own timestamp if it has no duration.
fn end_of(frame: &Frame) -> Pts {
    let nanos = frame.duration.unwrap_or_default().as_nanos();
    Pts(frame
        .pts
        .0
        .saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX)))
}
