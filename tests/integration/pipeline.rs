//! The staged pipeline between a source and a sink in memory: order, times, batches, errors, canceling.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::num::{NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{Device, Tensor};
use vitscope::explain::Remembered;
use vitscope::explain::{Detailed, Explainer, Method, Parts, Pass, Target};
use vitscope::frame::{Frame, FrameSize, PixelFormat, PixelLayout, Pts};
use vitscope::media::memory::{MemorySink, MemorySource};
use vitscope::media::{Sink, Source};
use vitscope::overlay::{Mode, Overlay, Range};
use vitscope::pipeline::stages::View;
use vitscope::pipeline::{Counts, OnFrame, Pipeline, Report};
use vitscope::sidecar::Record;
use vitscope::{Error, Result, models};

use crate::common::fixture;

/// Gray of the frame that the fake explainer cannot explain.
const BAD: u8 = 255;

/// Creates a frame of one gray, at times that are not evenly spaced.
fn frame(seq: u64, gray: u8) -> Frame {
    let size = FrameSize {
        width_px: 24,
        height_px: 18,
    };
    let layout = PixelLayout::packed(PixelFormat::Rgb, size);
    let bytes = vec![gray; layout.min_len()];
    let duration = Some(Duration::from_nanos(40 + seq));
    Frame::new(seq, pts(seq), duration, Arc::new(layout), Box::new(bytes)).unwrap()
}

fn pts(seq: u64) -> Pts {
    Pts(1_000 + 50 * seq + seq % 3)
}

/// Creates frames that differ in their gray.
fn frames(n_frames: u64) -> Vec<Frame> {
    (0..n_frames).map(|seq| frame(seq, gray(seq))).collect()
}

fn gray(seq: u64) -> u8 {
    (2 * seq % 200) as u8
}

/// Scores every patch by the brightness of its image, and records its batch sizes.
#[derive(Clone, Default)]
struct Brightness {
    batches: Arc<Mutex<Vec<usize>>>,
}

impl Explainer for Brightness {
    fn name(&self) -> &'static str {
        "brightness"
    }

    fn range(&self) -> Range {
        Range::MinMax
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let images = pass.images();
        let (batch, _, height_px, width_px) = images.dims4()?;
        self.batches.lock().unwrap().push(batch);
        let brightness = images.flatten_from(1)?.mean_keepdim(1)?; // [batch, 1]
        // The fixture normalizes to -1..1.
        if brightness.max_all()?.to_scalar::<f32>()? > 0.99 {
            return Err(Error::Model("too bright".into()));
        }
        let (rows, columns) = pass.vit().grid(height_px, width_px);
        Ok(brightness
            .broadcast_as((batch, rows * columns))?
            .contiguous()?)
    }
}

/// Scores every patch by the number of frames seen in its stream, and fails if one is too bright.
struct Counting(Brightness);

impl Explainer for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        self.0.attribution(pass)
    }

    fn follow(&self, pass: &Pass<'_>, remembered: &mut Remembered<'_>) -> Result<Detailed> {
        let (batch, _, height_px, width_px) = pass.images().dims4()?;
        let (rows, columns) = pass.vit().grid(height_px, width_px);
        let mut counts = Vec::new();
        for image_idx in 0..batch {
            let memory = remembered.of_image(image_idx)?;
            let n_frames = memory.take::<u32>().unwrap_or(0) + 1;
            memory.keep(n_frames);
            counts.push(n_frames as f32);
        }
        self.0.attribution(pass)?;
        let counts = Tensor::from_vec(counts, (batch, 1), pass.images().device())?;
        Ok(Detailed {
            attribution: counts.broadcast_as((batch, rows * columns))?.contiguous()?,
            votes: None,
            unsmoothed: None,
        })
    }
}

/// A failed batch is retried image by image, after its effect on the memory has been undone.
#[test]
fn a_frame_is_remembered_once_even_where_its_batch_fails() {
    let grays = [10, 20, BAD, 30, 40, 50, 60];
    let frames: Vec<Frame> = (0..)
        .zip(grays)
        .map(|(seq, gray)| frame(seq, gray))
        .collect();
    let mut counted = Vec::new();
    let pipeline = Pipeline {
        view: view(Counting(Brightness::default())),
        overlay: Overlay::default(),
        every: NonZeroU64::MIN,
        batch: NonZeroUsize::new(4).unwrap(),
        is_video: true,
        cancel: &NEVER,
        on_frame: Box::new(|frame| {
            let maps = frame.record().maps;
            counted.push(maps.map(|maps| maps[0].attribution[0]));
            Ok(())
        }),
    };
    let mut source = MemorySource::new(frames);
    pipeline
        .run(&mut source, Box::new(MemorySink::default()))
        .unwrap();
    let expected = [
        Some(1.0),
        Some(2.0),
        None,
        Some(3.0),
        Some(4.0),
        Some(5.0),
        Some(6.0),
    ];
    assert_eq!(expected, *counted);
}

fn view(explainer: impl Explainer + 'static) -> View {
    View {
        model: Arc::new(models::open(fixture("vit_a").to_str().unwrap(), &Device::Cpu).unwrap()),
        explainers: vec![Box::new(explainer)],
        targets: vec![Target::Predicted],
        reuse: None,
    }
}

/// A method that sums over frames does not sum over two scenes, wherever the cut lies in a batch.
#[test]
fn nothing_of_the_scene_before_a_cut_is_in_the_maps_behind_it() {
    let maps = |grays: &[u8], batch: usize| -> Vec<Vec<f32>> {
        let options = "spread = 3".parse().unwrap();
        let explainer = Method::GradMask
            .build_with(Parts::default(), options)
            .unwrap();
        let mut maps = Vec::new();
        let pipeline = Pipeline {
            view: View {
                explainers: vec![explainer],
                ..view(Brightness::default())
            },
            overlay: Overlay {
                mode: Mode::Original,
                ..Overlay::default()
            },
            every: NonZeroU64::MIN,
            batch: NonZeroUsize::new(batch).unwrap(),
            is_video: true,
            cancel: &NEVER,
            on_frame: Box::new(|frame| {
                let finding = frame.finding.as_ref().unwrap();
                maps.push(finding.maps[0].attribution.clone());
                Ok(())
            }),
        };
        let frames = grays.iter().zip(0..).map(|(gray, seq)| frame(seq, *gray));
        let mut source = MemorySource::new(frames.collect());
        pipeline
            .run(&mut source, Box::new(MemorySink::default()))
            .unwrap();
        maps
    };
    let (dark, bright) = ([20, 22, 24, 26, 24], [200, 204, 208, 212]);
    let alone = maps(&bright, 1);
    assert_ne!(alone[0], alone[1], "the method remembers frames");
    for batch in [1, 4, 5] {
        let both = maps(&[&dark[..], &bright].concat(), batch);
        for (map, expected) in both[dark.len()..].iter().zip(&alone) {
            for (score, expected) in map.iter().zip(expected) {
                assert!((score - expected).abs() < 1e-5, "{batch}: {map:?}");
            }
        }
    }
}

/// Settings that differ between runs of a test.
struct Setting<'a> {
    every: u64,
    batch: usize,
    cancel: &'a AtomicBool,
    on_frame: OnFrame<'a>,
    explainer: Brightness,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl Default for Setting<'_> {
    fn default() -> Self {
        Self {
            every: 1,
            batch: 4,
            cancel: &NEVER,
            on_frame: Box::new(|_| Ok(())),
            explainer: Brightness::default(),
        }
    }
}

impl Setting<'_> {
    fn run(self, mut source: impl Source, sink: impl Sink + 'static) -> Result<Report> {
        let pipeline = Pipeline {
            view: view(self.explainer),
            overlay: Overlay {
                mode: Mode::Original,
                ..Overlay::default()
            },
            every: NonZeroU64::new(self.every).unwrap(),
            batch: NonZeroUsize::new(self.batch).unwrap(),
            is_video: true,
            cancel: self.cancel,
            on_frame: self.on_frame,
        };
        pipeline.run(&mut source, Box::new(sink))
    }
}

/// Runs `source` and returns the report and the records of all frames.
fn records(source: impl Source, every: u64, batch: usize) -> (Report, Vec<Record>) {
    let mut records = Vec::new();
    let setting = Setting {
        every,
        batch,
        on_frame: Box::new(|frame| {
            records.push(frame.record());
            Ok(())
        }),
        ..Setting::default()
    };
    let report = setting.run(source, MemorySink::default()).unwrap();
    (report, records)
}

/// A sink that can fail, and records whether it was finished.
#[derive(Clone, Default)]
struct Watched {
    pushed: Arc<AtomicU64>,
    finished: Arc<AtomicBool>,
    fails_at: Option<u64>,
    fails_to_finish: bool,
}

impl Sink for Watched {
    fn push(&mut self, frame: Frame) -> Result<()> {
        if self.fails_at == Some(frame.seq) {
            return Err(Error::Media("disk full".into()));
        }
        self.pushed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.finished.store(true, Ordering::SeqCst);
        if self.fails_to_finish {
            return Err(Error::Media("no moov".into()));
        }
        Ok(())
    }
}

/// Supplies frames until it is stopped, then two more that were on their way.
#[derive(Default)]
struct Endless {
    next_seq: u64,
    stops: Arc<AtomicU64>,
    left: Option<u64>,
    /// Number of frames that have left at the other end.
    pushed: Arc<AtomicU64>,
    /// Maximum number of frames between the two ends.
    under_way: Arc<AtomicU64>,
}

impl Source for Endless {
    fn next(&mut self) -> Result<Option<Frame>> {
        match &mut self.left {
            Some(0) => return Ok(None),
            Some(left) => *left -= 1,
            None => {}
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        let under_way = seq - self.pushed.load(Ordering::SeqCst).min(seq);
        self.under_way.fetch_max(under_way, Ordering::SeqCst);
        Ok(Some(frame(seq, gray(seq))))
    }

    fn stop(&mut self) -> Result<()> {
        self.stops.fetch_add(1, Ordering::SeqCst);
        self.left = Some(2);
        Ok(())
    }
}

/// A source that fails after three frames.
struct Broken(fn() -> Result<Option<Frame>>, u64);

impl Source for Broken {
    fn next(&mut self) -> Result<Option<Frame>> {
        self.1 += 1;
        match self.1 {
            1..=3 => Ok(Some(frame(self.1 - 1, 7))),
            _ => self.0(),
        }
    }
}

#[test]
fn frames_leave_in_order_with_the_times_they_came_with() {
    let sink = MemorySink::default();
    let report = Setting::default()
        .run(MemorySource::new(frames(50)), sink.clone())
        .unwrap();
    let left = sink.take();
    assert_eq!(50, left.len());
    for (seq, left) in (0..).zip(left) {
        let came = frame(seq, gray(seq));
        assert_eq!(
            (came.seq, came.pts, came.duration),
            (left.seq, left.pts, left.duration)
        );
        assert_eq!(came.bytes(), left.bytes());
    }
    let expected = Counts {
        frames: 50,
        explained: 50,
        held: 0,
        unexplained: 0,
    };
    assert_eq!((expected, None), (report.counts, report.interrupted_at));
}

#[test]
fn each_frame_shows_its_own_explanation() {
    let (_, records) = records(MemorySource::new(frames(23)), 1, 4);
    for (seq, record) in (0..).zip(records) {
        assert_eq!(
            (seq, true, Some(seq)),
            (record.seq, record.explained, record.shows)
        );
        let brightness = f32::from(gray(seq)) / 127.5 - 1.0;
        let [map] = record.maps.unwrap().try_into().unwrap();
        let attribution = map.attribution;
        assert!(!attribution.is_empty());
        for score in attribution {
            assert!(
                (score - brightness).abs() < 1e-3,
                "frame {seq}: {score}, not {brightness}"
            );
        }
    }
}

#[test]
fn between_every_third_frame_the_last_explanation_stays() {
    let (report, records) = records(MemorySource::new(frames(11)), 3, 2);
    let shown: Vec<_> = records.iter().map(|record| record.shows.unwrap()).collect();
    assert_eq!(vec![0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9], shown);
    for record in &records {
        assert_eq!(record.seq % 3 == 0, record.explained);
        assert_eq!(record.explained, record.maps.is_some());
    }
    let expected = Counts {
        frames: 11,
        explained: 4,
        held: 7,
        unexplained: 0,
    };
    assert_eq!(expected, report.counts);
}

/// An explanation does not fit a frame of another size.
#[test]
fn the_first_frame_of_another_size_is_explained() {
    let mut frames = frames(11);
    let size = FrameSize {
        width_px: 24,
        height_px: 16,
    };
    let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, size));
    for frame in &mut frames[4..7] {
        let bytes = Box::new(vec![90; layout.min_len()]);
        *frame = Frame::new(
            frame.seq,
            frame.pts,
            frame.duration,
            Arc::clone(&layout),
            bytes,
        )
        .unwrap();
    }
    let (report, records) = records(MemorySource::new(frames), 10, 2);
    let shown: Vec<_> = records.iter().map(|record| record.shows.unwrap()).collect();
    assert_eq!(vec![0, 0, 0, 0, 4, 4, 4, 7, 7, 7, 10], shown);
    assert_eq!(report.counts.unexplained, 0);
}

/// Runs over one frame of 320 × 180 pixels with this threshold, and returns its record and the exact probability of its
/// best class. Checks that the frame bears the caption that `caption` makes for that class.
fn with_threshold(not_sure_below: Option<f32>, caption: fn(&str, f32) -> String) -> (Record, f32) {
    let mut view = view(Brightness::default());
    Arc::get_mut(&mut view.model).unwrap().not_sure_below = not_sure_below;
    let size = FrameSize {
        width_px: 320,
        height_px: 180,
    };
    let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, size));
    let gray = || {
        let bytes = vec![90; layout.min_len()];
        Frame::new(0, Pts(0), None, Arc::clone(&layout), Box::new(bytes)).unwrap()
    };
    let mut told = None;
    let sink = MemorySink::default();
    let pipeline = Pipeline {
        view,
        overlay: Overlay::default(),
        every: NonZeroU64::MIN,
        batch: NonZeroUsize::MIN,
        is_video: true,
        cancel: &NEVER,
        on_frame: Box::new(|frame| {
            let finding = frame.finding.as_deref().unwrap();
            let best = finding.predicted().unwrap();
            let caption = caption(best.label.as_deref().unwrap(), best.probability);
            // All patches are as bright as the picture.
            let caption = format!("{caption}, constant map");
            let heat = finding.heat(&finding.maps[0]);
            let expected = Overlay::default().draw(gray(), Some(&heat), &caption)?;
            assert!(frame.frame.bytes() == expected.bytes(), "not {caption:?}");
            told = Some((frame.record(), best.probability));
            Ok(())
        }),
    };
    pipeline
        .run(&mut MemorySource::new(vec![gray()]), Box::new(sink))
        .unwrap();
    told.unwrap()
}

#[test]
fn below_the_threshold_the_answer_is_not_sure_on_the_frame_and_in_the_sidecar() {
    let sure: fn(&str, f32) -> String =
        |label, probability| format!("{label} {:.0}%", 100.0 * probability);
    let not_sure: fn(&str, f32) -> String =
        |label, probability| format!("not sure ({label} {:.0}%)", 100.0 * probability);
    let (without, best) = with_threshold(None, sure);
    let line = serde_json::to_string(&without).unwrap();
    assert!(!line.contains("not_sure"), "{line}");

    let (at, _) = with_threshold(Some(best), sure);
    assert_eq!(at.not_sure, Some(false));
    let (above, _) = with_threshold(Some(best.next_up()), not_sure);
    assert_eq!(above.not_sure, Some(true));
    let without = Record {
        not_sure: Some(true),
        unfamiliar: Some(false),
        ..without
    };
    assert_eq!(above, without, "all else is as without a threshold");
}

#[test]
fn batches_are_filled_and_the_rest_is_flushed_at_the_end() {
    let check = |expected: &[usize], n_frames, every, batch| {
        let explainer = Brightness::default();
        let batches = Arc::clone(&explainer.batches);
        let setting = Setting {
            every,
            batch,
            explainer,
            ..Setting::default()
        };
        let source = MemorySource::new(frames(n_frames));
        setting.run(source, MemorySink::default()).unwrap();
        assert_eq!(expected, *batches.lock().unwrap());
    };
    check(&[8, 8, 4], 20, 1, 8);
    check(&[1], 1, 1, 8);
    check(&[2, 2, 1], 25, 5, 2);
    // Rare explanations do not make the stage hold an unlimited number of frames.
    check(&[2, 1, 1], 100, 30, 8);
}

#[test]
fn a_bad_frame_passes_unexplained_and_leaves_its_neighbors_alone() {
    let mut source = frames(12);
    source[5] = frame(5, BAD);
    let sink = MemorySink::default();
    let mut shown = Vec::new();
    let setting = Setting {
        on_frame: Box::new(|frame| {
            shown.push(frame.record().shows);
            Ok(())
        }),
        ..Setting::default()
    };
    let report = setting
        .run(MemorySource::new(source), sink.clone())
        .unwrap();
    let expected: Vec<_> = (0..12).map(|seq| (seq != 5).then_some(seq)).collect();
    assert_eq!(expected, shown);
    assert_eq!(
        (12, 11, 1),
        (
            report.counts.frames,
            report.counts.explained,
            report.counts.unexplained
        )
    );
    assert_eq!(frame(5, BAD).bytes(), sink.take()[5].bytes());
}

#[test]
fn after_a_bad_frame_no_older_explanation_passes_for_its_own() {
    let mut source = frames(9);
    source[3] = frame(3, BAD);
    let (report, records) = records(MemorySource::new(source), 3, 1);
    let shown: Vec<_> = records.iter().map(|record| record.shows).collect();
    let some = Some;
    assert_eq!(
        vec![
            some(0),
            some(0),
            some(0),
            None,
            None,
            None,
            some(6),
            some(6),
            some(6)
        ],
        shown
    );
    assert_eq!(3, report.counts.unexplained);
}

#[test]
fn a_failing_source_is_named_and_the_sink_is_not_finished() {
    let sink = Watched::default();
    let source = Broken(|| Err(Error::Media("not a video".into())), 0);
    let error = Setting::default().run(source, sink.clone()).unwrap_err();
    assert_eq!(
        "stage vitscope-decode failed: not a video",
        error.to_string()
    );
    assert!(!sink.finished.load(Ordering::SeqCst));
}

#[test]
fn a_failing_sink_is_named_and_stops_an_endless_source() {
    let sink = Watched {
        fails_at: Some(30),
        ..Watched::default()
    };
    let source = Endless::default();
    let stops = Arc::clone(&source.stops);
    let error = Setting::default().run(source, sink.clone()).unwrap_err();
    assert_eq!("stage vitscope-encode failed: disk full", error.to_string());
    assert_eq!(30, sink.pushed.load(Ordering::SeqCst));
    assert!(!sink.finished.load(Ordering::SeqCst));
    assert_eq!(0, stops.load(Ordering::SeqCst));
}

#[test]
fn a_container_that_does_not_close_is_a_failure() {
    let sink = Watched {
        fails_to_finish: true,
        ..Watched::default()
    };
    let error = Setting::default()
        .run(MemorySource::new(frames(3)), sink)
        .unwrap_err();
    assert_eq!("stage vitscope-encode failed: no moov", error.to_string());
}

#[test]
fn whoever_watches_the_frames_can_end_the_run() {
    let sink = Watched::default();
    let setting = Setting {
        on_frame: Box::new(|_| Err(Error::Config("sidecar full".into()))),
        ..Setting::default()
    };
    let error = setting.run(Endless::default(), sink.clone()).unwrap_err();
    assert_eq!(
        "stage vitscope-encode failed: sidecar full",
        error.to_string()
    );
    assert_eq!(0, sink.pushed.load(Ordering::SeqCst));
}

#[test]
fn a_source_without_frames_is_a_failure() {
    let sink = Watched::default();
    let error = Setting::default()
        .run(MemorySource::new(Vec::new()), sink.clone())
        .unwrap_err();
    assert_eq!("the source has no frames", error.to_string());
    assert!(!sink.finished.load(Ordering::SeqCst));
}

#[test]
fn a_source_that_skips_a_number_is_refused() {
    let source = Broken(|| Ok(Some(frame(9, 0))), 0);
    let error = Setting::default()
        .run(source, MemorySink::default())
        .unwrap_err();
    assert_eq!(
        "stage vitscope-decode failed: the source delivered frame 9 instead of frame 3",
        error.to_string()
    );
}

#[test]
fn a_panic_in_a_stage_goes_on_and_half_a_video_is_not_finished() {
    let sink = Watched::default();
    let source = Broken(|| panic!("a bug in a decoder"), 0);
    let run = AssertUnwindSafe(|| Setting::default().run(source, sink.clone()));
    assert!(catch_unwind(run).is_err());
    assert!(!sink.finished.load(Ordering::SeqCst));
}

#[test]
fn cancelling_stops_the_source_once_and_finishes_what_it_gave() {
    let cancel = AtomicBool::new(false);
    let sink = Watched::default();
    let source = Endless::default();
    let stops = Arc::clone(&source.stops);
    let setting = Setting {
        cancel: &cancel,
        on_frame: Box::new(|frame| {
            if frame.frame.seq == 10 {
                cancel.store(true, Ordering::SeqCst);
            }
            Ok(())
        }),
        ..Setting::default()
    };
    let report = setting.run(source, sink.clone()).unwrap();
    assert_eq!(1, stops.load(Ordering::SeqCst));
    assert!(sink.finished.load(Ordering::SeqCst));
    let n_frames = report.counts.frames;
    assert!(n_frames > 11, "frames under way still come: {n_frames}");
    assert_eq!(n_frames, sink.pushed.load(Ordering::SeqCst));
    let last = frame(n_frames - 1, 0);
    let end = last.pts.0 + last.duration.unwrap().as_nanos() as u64;
    assert_eq!(Some(Pts(end)), report.interrupted_at);
}

#[test]
fn cancelling_before_the_first_frame_writes_nothing() {
    let cancel = AtomicBool::new(true);
    let sink = Watched::default();
    let source = Endless {
        left: Some(0),
        ..Endless::default()
    };
    /// A source that has nothing left once it is stopped.
    struct Idle(Endless);
    impl Source for Idle {
        fn next(&mut self) -> Result<Option<Frame>> {
            self.0.next()
        }
    }
    let setting = Setting {
        cancel: &cancel,
        ..Setting::default()
    };
    let report = setting.run(Idle(source), sink.clone()).unwrap();
    assert_eq!(
        (0, true),
        (report.counts.frames, report.interrupted_at.is_some())
    );
    assert!(!sink.finished.load(Ordering::SeqCst));
}

#[test]
fn the_source_is_held_back_so_that_memory_stays_bounded() {
    let cancel = AtomicBool::new(false);
    let sink = Watched::default();
    let source = Endless {
        pushed: Arc::clone(&sink.pushed),
        ..Endless::default()
    };
    let under_way = Arc::clone(&source.under_way);
    let setting = Setting {
        cancel: &cancel,
        on_frame: Box::new(|frame| {
            cancel.store(frame.frame.seq >= 200, Ordering::SeqCst);
            Ok(())
        }),
        ..Setting::default()
    };
    setting.run(source, sink).unwrap();
    // Four queues of four frames, a batch of four, and one frame in each of the other stages.
    let most = 4 * 4 + 4 + 4;
    let under_way = under_way.load(Ordering::SeqCst);
    assert!(under_way <= most, "{under_way} frames were under way");
}

#[test]
fn what_fails_on_every_image_fails_before_the_run() {
    struct Never;
    impl Explainer for Never {
        fn name(&self) -> &'static str {
            "never"
        }

        fn attribution(&self, _: &Pass<'_>) -> Result<Tensor> {
            Err(Error::Model("needs gates".into()))
        }
    }
    assert_eq!("needs gates", view(Never).check().unwrap_err().to_string());
    view(Brightness::default()).check().unwrap();
}

#[test]
fn an_explanation_of_another_shape_or_without_numbers_is_refused() {
    struct Fixed(usize, f32);
    impl Explainer for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }

        fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
            let images = pass.images();
            let shape = (images.dim(0)?, self.0);
            Ok(Tensor::full(self.1, shape, images.device())?)
        }
    }
    let error = view(Fixed(1, 0.0)).check().unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let (rows, columns) = view(Fixed(1, 0.0)).model.vit.config().grid();
    let error = view(Fixed(rows * columns, f32::NAN)).check().unwrap_err();
    assert_eq!("method \"fixed\" computed NaN", error.to_string());
}
