//! The GStreamer element in a harness and in whole pipelines: order, times, pixels, metas, latency, model swaps,
//! errors.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use candle_core::{Device, Tensor};
use crossbeam_channel::{Receiver, Sender};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_check::Harness;
use gstreamer_controller::prelude::*;
use gstreamer_video as gst_video;
use vitscope::explain::{Explainer, Method, Pass, Target};
use vitscope::frame::placement::{Placement, ResizeRule};
use vitscope::frame::{Frame, FrameSize};
use vitscope::media::memory::MemorySink;
use vitscope::media::pixels::frame_from_buffer;
use vitscope::media::{self, Source};
use vitscope::models;
use vitscope::overlay::{Overlay, Range};
use vitscope::pipeline::stages::{Certainty, View};
use vitscope::plugin::{self, Coloring, Found, SyncMode, VitScope};
use vitscope::vit::Arithmetic;
use vitscope::{Error, Result};

use crate::common::{clip, fixture};

/// A frame's number multiplied by this is the gray it is painted with.
const GRAY_A_FRAME: u8 = 5;

const FPS: u64 = 25;
const FRAME: gst::ClockTime = gst::ClockTime::from_mseconds(1000 / FPS);

fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        plugin::register(None).unwrap();
    });
}

/// Scores every patch by the brightness of its image, from 0 to 1, once it is allowed to.
#[derive(Clone, Default)]
struct Brightness {
    /// Each message lets one batch through; without a gate, all batches pass.
    gate: Option<Receiver<()>>,
    batches: Arc<Mutex<Vec<usize>>>,
    panics: bool,
}

impl Brightness {
    fn gated() -> (Self, Sender<()>) {
        let (open, gate) = crossbeam_channel::bounded(1000);
        let explainer = Self {
            gate: Some(gate),
            ..Self::default()
        };
        (explainer, open)
    }

    fn scores(pass: &Pass<'_>) -> Result<Tensor> {
        let images = pass.images();
        let (batch, _, height_px, width_px) = images.dims4()?;
        let (rows, columns) = pass.vit().grid(height_px, width_px);
        // The fixture normalizes to -1..1.
        let brightness = ((images.flatten_from(1)?.mean_keepdim(1)? + 1.0)? / 2.0)?;
        Ok(brightness
            .broadcast_as((batch, rows * columns))?
            .contiguous()?)
    }
}

impl Explainer for Brightness {
    fn name(&self) -> &'static str {
        "brightness"
    }

    fn range(&self) -> Range {
        Range::Unit
    }

    fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Self::scores(pass).map(Some)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        assert!(!self.panics, "this explainer panics");
        if let Some(gate) = &self.gate {
            // When the test has ended, all batches pass.
            let _ = gate.recv();
        }
        let scores = Self::scores(pass)?;
        self.batches.lock().unwrap().push(scores.dims()[0]);
        Ok(scores)
    }
}

/// Runs the model repeatedly until it is allowed to finish, like methods of many passes, and then scores by brightness.
#[derive(Clone)]
struct Tireless {
    gate: Receiver<()>,
    passes: Arc<AtomicUsize>,
}

impl Tireless {
    fn gated() -> (Self, Sender<()>) {
        let (open, gate) = crossbeam_channel::bounded(1);
        let passes = Arc::default();
        (Self { gate, passes }, open)
    }

    fn wait_until_it_runs(&self) {
        while self.passes.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }
}

impl Explainer for Tireless {
    fn name(&self) -> &'static str {
        "tireless"
    }

    fn range(&self) -> Range {
        Range::Unit
    }

    fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Brightness::scores(pass).map(Some)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        while self.gate.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
            pass.vit().forward(pass.images())?;
            self.passes.fetch_add(1, Ordering::SeqCst);
        }
        Brightness::scores(pass)
    }
}

fn tireless_element(explainer: &Tireless) -> VitScope {
    let element = element(&Brightness::default());
    let explainer = explainer.clone();
    element.set_view(move || {
        let mut view = view(&Brightness::default(), None)?;
        view.explainers = vec![Box::new(explainer.clone())];
        Ok(view)
    });
    element.set_property("attach-meta", true);
    element
}

fn view(explainer: &Brightness, rule: Option<ResizeRule>) -> Result<View> {
    let mut model = models::open(fixture("vit_a").to_str().unwrap(), &Device::Cpu)?;
    if let Some(rule) = rule {
        model.preprocessor.rule = rule;
    }
    Ok(View {
        model: Arc::new(model),
        explainers: vec![Box::new(explainer.clone())],
        targets: vec![Target::Predicted],
        reuse: None,
    })
}

fn element(explainer: &Brightness) -> VitScope {
    init();
    let element: VitScope = gst::ElementFactory::make("vitscope")
        .property("show-hud", false)
        .build()
        .unwrap()
        .downcast()
        .unwrap();
    let explainer = explainer.clone();
    element.set_view(move || view(&explainer, None));
    element
}

fn caps(format: &str, width: u32, height: u32) -> gst::Caps {
    let caps = format!(
        "video/x-raw,format={format},width={width},height={height},framerate={FPS}/1,colorimetry=bt601"
    );
    caps.parse().unwrap()
}

fn harness(element: &VitScope, caps: &gst::Caps) -> Harness {
    let mut harness = Harness::with_element(element, Some("sink"), Some("src"));
    harness.set_caps(caps.clone(), caps.clone());
    harness
}

/// Returns a frame painted with the gray of its number.
fn numbered(number: u64, caps: &gst::Caps) -> gst::Buffer {
    let info = gst_video::VideoInfo::from_caps(caps).unwrap();
    let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
    {
        let buffer = buffer.get_mut().unwrap();
        buffer.set_pts(FRAME * number);
        buffer.set_duration(FRAME);
        let mut map = buffer.map_writable().unwrap();
        map.fill(number as u8 * GRAY_A_FRAME);
    }
    buffer
}

fn number_of(buffer: &gst::BufferRef) -> u64 {
    let first = buffer.map_readable().unwrap()[0];
    u64::from(first / GRAY_A_FRAME)
}

fn mean(found: &Found) -> f32 {
    found.mask.iter().sum::<f32>() / found.mask.len() as f32
}

fn wait_for(bus: &gst::Bus, kinds: &[gst::MessageType]) -> gst::Message {
    bus.timed_pop_filtered(gst::ClockTime::from_seconds(20), kinds)
        .expect("a message that must come")
}

/// Returns the bus of an element that has no pipeline.
fn bus_of(element: &VitScope) -> gst::Bus {
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    bus
}

#[test]
fn in_lossless_every_frame_leaves_in_order_with_its_time_and_its_own_explanation() {
    let explainer = Brightness::default();
    let element = element(&explainer);
    element.set_property("attach-meta", true);
    element.set_property_from_str("mode", "original");
    let caps = caps("RGB", 40, 20);
    let mut harness = harness(&element, &caps);
    for number in 0..50 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    for number in 0..50 {
        let buffer = harness.pull().unwrap();
        assert_eq!(buffer.pts(), Some(FRAME * number));
        assert_eq!(buffer.duration(), Some(FRAME));
        assert_eq!(number_of(&buffer), number);
        let found = Found::of(&buffer).unwrap();
        assert_eq!((found.frame, found.pts), (number, FRAME * number));
        let gray = f32::from(number as u8 * GRAY_A_FRAME) / 255.0;
        assert!(
            (mean(&found) - gray).abs() < 1e-3,
            "mask {number} is on its frame"
        );
    }
    assert!(harness.try_pull().is_none());
}

/// The heatmap shows the brightness of the explained frame; the timestamp identifies the frame it is drawn on.
#[test]
fn in_exact_what_is_drawn_is_of_the_frame_that_it_is_drawn_on() {
    let explainer = Brightness::default();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Exact);
    element.set_property_from_str("mode", "heatmap");
    element.set_property_from_str("colormap", "gray");
    element.set_property("attach-meta", true);
    let caps = caps("RGB", 40, 20);
    let mut harness = harness(&element, &caps);
    for number in 0..50 {
        harness.push(numbered(number, &caps)).unwrap();
        // As fast as the model allows, and occasionally too fast for it.
        if number % 7 != 0 {
            let n_batches = explainer.batches.lock().unwrap().len();
            wait_for_answers(&explainer, n_batches.max(1));
        }
    }
    harness.push_event(gst::event::Eos::new());
    let mut explained = 0;
    for number in 0..50 {
        let buffer = harness.pull().unwrap();
        assert_eq!(buffer.pts(), Some(FRAME * number));
        let gray = number as u8 * GRAY_A_FRAME;
        let drawn = buffer.map_readable().unwrap()[0];
        // A frame without an explanation is unchanged, and so has the same gray.
        assert!(drawn.abs_diff(gray) <= 1, "{drawn} on frame {number}");
        if let Some(found) = Found::of(&buffer) {
            assert_eq!(found.frame, number);
            explained += 1;
        }
    }
    assert!(explained > 30, "{explained}");
}

#[test]
fn every_format_and_size_passes_bit_equal_outside_of_the_overlay() {
    let square = FrameSize {
        width_px: 32,
        height_px: 32,
    };
    let rule = ResizeRule::ShortestEdge {
        edge_px: 32,
        crop: square,
    };
    for format in ["I420", "NV12", "RGBA", "BGRx", "RGB", "BGR"] {
        for (width, height) in [(1, 1), (3, 5), (321, 241)] {
            init();
            let explainer = Brightness::default();
            let element = element(&explainer);
            element.set_view(move || view(&explainer, Some(rule)));
            element.set_property("alpha", 1.0_f32);
            let caps = caps(format, width, height);
            let mut harness = harness(&element, &caps);
            let mut buffer = numbered(40, &caps);
            // The overlay needs something to change, and a wrong stride would scatter noise.
            for (idx, byte) in
                (buffer.get_mut().unwrap().map_writable().unwrap().iter_mut()).enumerate()
            {
                *byte = 100 + (idx * 7 % 40) as u8;
            }
            let before = buffer.map_readable().unwrap().to_vec();
            harness.push(buffer).unwrap();
            harness.push_event(gst::event::Eos::new());
            let after = harness.pull().unwrap();
            let after = after.map_readable().unwrap();
            assert_eq!(before.len(), after.len());
            let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
            let size = FrameSize {
                width_px: width as usize,
                height_px: height as usize,
            };
            let shown = Placement::new(&rule, size).unwrap().pixels();
            let mut changed = 0;
            for plane in 0..info.n_planes() as usize {
                let (offset, stride) = (info.offset()[plane], info.stride()[plane] as usize);
                let rows = info.comp_height(plane.min(1) as u8) as usize;
                let columns = info.comp_width(plane.min(1) as u8) as i64;
                for row in 0..rows {
                    for byte in 0..stride {
                        let at = offset + row * stride + byte;
                        let pixel = byte as i64 / info.comp_pstride(plane.min(1) as u8) as i64;
                        // The model's square, and the line around it with its chroma.
                        let x = pixel * i64::from(width) / columns.max(1);
                        let y = row as i64 * i64::from(height) / rows as i64;
                        let inside = |at: i64, first: usize, length: usize| {
                            (first as i64 - 4..(first + length) as i64 + 4).contains(&at)
                        };
                        let across = inside(x, shown.left, shown.width);
                        let down = inside(y, shown.top, shown.height);
                        if across && down && pixel < columns {
                            changed += usize::from(before[at] != after[at]);
                        } else {
                            assert_eq!(
                                before[at], after[at],
                                "{format} {width}x{height}, byte {at}"
                            );
                        }
                    }
                }
            }
            assert!(changed > 0, "{format} {width}x{height} shows nothing");
        }
    }
}

#[test]
fn padded_rows_keep_their_padding_and_show_the_same_picture() {
    let drawn = |padding: usize| {
        let element = element(&Brightness::default());
        let caps = caps("RGB", 30, 20);
        let mut harness = harness(&element, &caps);
        let stride = 30 * 3 + padding;
        let mut bytes = vec![77_u8; stride * 20];
        for row in bytes.chunks_exact_mut(stride) {
            for (idx, byte) in row[..90].iter_mut().enumerate() {
                *byte = (idx * 2) as u8;
            }
        }
        let mut buffer = gst::Buffer::from_mut_slice(bytes);
        let writable = buffer.get_mut().unwrap();
        writable.set_pts(gst::ClockTime::ZERO);
        let flags = gst_video::VideoFrameFlags::empty();
        let format = gst_video::VideoFormat::Rgb;
        let strides = [stride as i32];
        gst_video::VideoMeta::add_full(writable, flags, format, 30, 20, &[0], &strides).unwrap();
        harness.push(buffer).unwrap();
        harness.push_event(gst::event::Eos::new());
        let buffer = harness.pull().unwrap();
        let bytes = buffer.map_readable().unwrap().to_vec();
        let rows = bytes.chunks_exact(stride);
        assert!(
            rows.clone()
                .all(|row| row[90..].iter().all(|byte| *byte == 77))
        );
        rows.flat_map(|row| row[..90].to_vec()).collect::<Vec<u8>>()
    };
    assert_eq!(drawn(0), drawn(38));
}

#[test]
fn with_nothing_to_draw_or_attach_buffers_pass_untouched() {
    let element = element(&Brightness::default());
    element.set_property_from_str("mode", "original");
    assert!(gstreamer_base::prelude::BaseTransformExt::is_passthrough(
        &element
    ));
    let caps = caps("NV12", 16, 16);
    let mut harness = harness(&element, &caps);
    let buffer = numbered(3, &caps);
    let pointer = buffer.as_ptr();
    let passed = harness.push_and_pull(buffer).unwrap();
    assert_eq!(passed.as_ptr(), pointer);
    element.set_property("attach-meta", true);
    assert!(!gstreamer_base::prelude::BaseTransformExt::is_passthrough(
        &element
    ));
}

#[test]
fn the_latency_of_exact_is_that_of_upstream_and_the_frames_that_are_held() {
    let element = element(&Brightness::default());
    element.set_property("sync-mode", SyncMode::Exact);
    let bus = bus_of(&element);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    harness.set_live(true);
    let upstream = gst::ClockTime::from_mseconds(10);
    harness.set_upstream_latency(upstream);
    assert_eq!(
        harness.query_latency(),
        Some(upstream + FRAME * 2),
        "before the model is timed"
    );
    harness.push(numbered(0, &caps)).unwrap();
    // The fixture takes much less time than a frame.
    assert_eq!(harness.query_latency(), Some(upstream + FRAME));
    wait_for(&bus, &[gst::MessageType::Latency]);
}

#[test]
fn latest_adds_no_latency() {
    let element = element(&Brightness::default());
    element.set_property("sync-mode", SyncMode::Latest);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    harness.set_live(true);
    let upstream = gst::ClockTime::from_mseconds(10);
    harness.set_upstream_latency(upstream);
    harness.push(numbered(0, &caps)).unwrap();
    assert_eq!(harness.query_latency(), Some(upstream));
}

#[test]
fn a_model_that_never_answers_holds_no_frame_back_in_latest() {
    let (explainer, open) = Brightness::gated();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Latest);
    element.set_property("attach-meta", true);
    let bus = bus_of(&element);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    wait_for_model(&bus);
    let mut number = 0;
    let mut next = |harness: &mut Harness| {
        harness.push(numbered(number % 50, &caps)).unwrap();
        let buffer = harness.pull().expect("no frame waits");
        assert_eq!(buffer.pts(), Some(FRAME * (number % 50)));
        number += 1;
        Found::of(&buffer).map(|found| found.frame)
    };
    let mut shown = None;
    for n_answers in 1..=4 {
        for _ in 0..10 {
            assert_eq!(
                next(&mut harness),
                shown,
                "nothing new is shown without an answer"
            );
        }
        open.send(()).unwrap();
        wait_for_answers(&explainer, n_answers);
        let newer = (0..100)
            .map(|_| next(&mut harness))
            .find(|found| *found != shown);
        assert!(newer.flatten() > shown, "{newer:?} after {shown:?}");
        shown = newer.flatten();
    }
    drop(open);
}

/// The worker has one frame; of those that arrive meanwhile, it gets the newest one, at once.
#[test]
fn in_latest_the_newest_frame_waits_for_the_model_and_older_ones_make_room() {
    let (explainer, open) = Brightness::gated();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Latest);
    let bus = bus_of(&element);
    let (told, found) = crossbeam_channel::bounded(10);
    element.on_explained(move |finding, _| told.send(finding.seq).unwrap());
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    wait_for_model(&bus);
    // The first frame is taken before the others arrive.
    harness.push(numbered(0, &caps)).unwrap();
    open.send(()).unwrap();
    wait_for_answers(&explainer, 1);
    harness.push(numbered(1, &caps)).unwrap();
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(100) {
        std::thread::yield_now();
    }
    for number in 2..6 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    open.send(()).unwrap();
    open.send(()).unwrap();
    wait_for_answers(&explainer, 3);
    harness.push(numbered(6, &caps)).unwrap();
    assert_eq!(found.try_iter().collect::<Vec<u64>>(), [0, 1, 5]);
    let stats = element.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("skipped").unwrap(), 3);
    drop(open);
}

#[test]
fn in_latest_an_explanation_is_in_the_record_of_its_own_frame() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.jsonl");
    let (explainer, open) = Brightness::gated();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Latest);
    element.set_property("scores-location", path.to_str().unwrap());
    let bus = bus_of(&element);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    wait_for_model(&bus);
    for number in 0..8 {
        harness.push(numbered(number, &caps)).unwrap();
        if number % 2 == 1 {
            open.send(()).unwrap();
            wait_for_answers(&explainer, number as usize / 2 + 1);
        }
    }
    drop(open);
    drop(harness);
    element.set_state(gst::State::Null).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let records: Vec<vitscope::sidecar::Record> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let seqs: Vec<u64> = records.iter().map(|record| record.seq).collect();
    assert_eq!(seqs, (0..8).collect::<Vec<u64>>());
    let explained: Vec<_> = records.iter().filter(|record| record.explained).collect();
    // The answer to the last submitted frame came after the last frame.
    assert!(explained.len() >= 3, "{text}");
    for record in explained {
        assert!(
            record.shows < Some(record.seq),
            "it has left before: {record:?}"
        );
        let of_own = (record.seq * u64::from(GRAY_A_FRAME)) as f32 / 255.0;
        let found = record.maps.as_ref().unwrap()[0].attribution[0];
        assert!((found - of_own).abs() < 0.01, "{found}, not {of_own}");
    }
}

fn wait_for_model(bus: &gst::Bus) {
    loop {
        let message = wait_for(bus, &[gst::MessageType::Progress]);
        let gst::MessageView::Progress(progress) = message.view() else {
            continue;
        };
        if progress.get().0 == gst::ProgressType::Complete {
            return;
        }
    }
}

/// Waits until this many batches are explained and their answers are on their way.
fn wait_for_answers(explainer: &Brightness, n_batches: usize) {
    while explainer.batches.lock().unwrap().len() < n_batches {
        std::thread::yield_now();
    }
    // What follows the recording of a batch takes some microseconds, but a busy machine may delay it.
    wait_a_moment();
}

/// Gives the worker time to take an image or to return its answer.
fn wait_a_moment() {
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(100) {
        std::thread::yield_now();
    }
}

#[test]
fn an_explanation_fades_and_is_gone_at_its_greatest_age() {
    let (explainer, open) = Brightness::gated();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Latest);
    element.set_property("max-age", 4 * FRAME.nseconds());
    element.set_property("alpha", 1.0_f32);
    element.set_property_from_str("colormap", "gray");
    let bus = bus_of(&element);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    wait_for_model(&bus);
    harness.push(numbered(40, &caps)).unwrap();
    harness.pull().unwrap();
    open.send(()).unwrap();
    wait_for_answers(&explainer, 1);
    let mut distances = Vec::new();
    for number in 41..46 {
        let mut buffer = numbered(number, &caps);
        buffer.get_mut().unwrap().map_writable().unwrap().fill(0);
        harness.push(buffer).unwrap();
        distances.push(harness.pull().unwrap().map_readable().unwrap()[0]);
    }
    assert!(distances.is_sorted_by(|a, b| a > b), "{distances:?}");
    assert_eq!(distances[4], 0, "{distances:?}");
    drop(open);
}

#[test]
fn an_explanation_that_comes_after_its_greatest_age_is_shown_all_the_same() {
    let (explainer, open) = Brightness::gated();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Latest);
    element.set_property("max-age", 4 * FRAME.nseconds());
    element.set_property("attach-meta", true);
    let bus = bus_of(&element);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    wait_for_model(&bus);
    let shown = |harness: &mut Harness, number| {
        harness.push(numbered(number, &caps)).unwrap();
        Found::of(&harness.pull().unwrap()).map(|found| found.frame)
    };
    assert_eq!(shown(&mut harness, 0), None);
    wait_a_moment();
    for number in 1..20 {
        assert_eq!(shown(&mut harness, number), None);
    }
    open.send(()).unwrap();
    wait_for_answers(&explainer, 1);
    let frames: Vec<_> = (20..25).map(|number| shown(&mut harness, number)).collect();
    // A failed assertion must not wait for the model forever.
    drop(open);
    assert_eq!(frames, [Some(0), Some(0), Some(0), Some(0), None]);
}

#[test]
fn in_exact_a_model_that_is_too_slow_costs_explanations_and_no_frame() {
    let (explainer, open) = Brightness::gated();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Exact);
    element.set_property("attach-meta", true);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    for number in 0..30 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    // Nothing was ever answered, and the number of held frames is limited; it depends on how long the trial took.
    assert!(harness.buffers_in_queue() >= 22);
    drop(open);
    harness.push_event(gst::event::Eos::new());
    for number in 0..30 {
        let buffer = harness.pull().unwrap();
        assert_eq!(buffer.pts(), Some(FRAME * number));
        assert!(Found::of(&buffer).is_none_or(|found| found.frame == number));
    }
    let stats: gst::Structure = element.property("stats");
    assert_eq!(stats.get::<u64>("frames"), Ok(30));
    let counted = stats.get::<u64>("explained").unwrap() + stats.get::<u64>("skipped").unwrap();
    assert_eq!(counted, 30);
}

/// Each frame that must leave without its explanation increases the number of frames held back, up to a limit.
#[test]
fn in_exact_explanations_that_come_too_late_are_waited_for_longer() {
    let (explainer, _open) = Tireless::gated();
    let element = tireless_element(&explainer);
    element.set_property("sync-mode", SyncMode::Exact);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    for number in 0..30 {
        harness.push(numbered(number, &caps)).unwrap();
        explainer.passes.store(0, Ordering::SeqCst);
        explainer.wait_until_it_runs();
    }
    // The worker has room for six of them.
    let n_held = 30 - harness.buffers_in_queue();
    assert!((5..=8).contains(&n_held), "{n_held}");
}

/// Ends a flush, after which only the frame with this number follows.
fn push_after_flush(harness: &mut Harness, number: u64, caps: &gst::Caps) {
    harness.push_event(gst::event::FlushStop::new(true));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    harness.push_event(gst::event::Segment::new(&segment));
    harness.push(numbered(number, caps)).unwrap();
    harness.push_event(gst::event::Eos::new());
}

#[test]
fn a_flush_discards_what_is_held() {
    let (explainer, open) = Brightness::gated();
    let element = element(&explainer);
    element.set_property_from_str("mode", "original");
    element.set_property("attach-meta", true);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    for number in 0..3 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    assert_eq!(harness.buffers_in_queue(), 0);
    harness.push_event(gst::event::FlushStart::new());
    drop(open);
    push_after_flush(&mut harness, 7, &caps);
    assert_eq!(number_of(&harness.pull().unwrap()), 7);
    assert!(harness.try_pull().is_none());
}

/// Creates an element with a method that remembers, with a shared worker if `id` names one.
fn remembering_element(id: Option<&str>) -> VitScope {
    init();
    gst::ElementFactory::make("vitscope")
        .property("model", fixture("vit_a").to_str().unwrap())
        .property("method", "gradmask")
        .property("method-options", "spread=4")
        .property("attach-meta", true)
        .property("model-instance-id", id)
        .build()
        .unwrap()
        .downcast()
        .unwrap()
}

/// Returns the next map that comes out.
fn next_mask(harness: &mut Harness) -> Vec<f32> {
    Found::of(&harness.pull().unwrap()).unwrap().mask
}

#[test]
fn streams_that_share_a_worker_remember_their_own_frames() {
    init();
    let caps = caps("RGB", 40, 20);
    let numbers = [0_u64, 1, 2, 3, 4, 5, 6, 7].map(|number| (5 * number, 49 - 6 * number));
    let alone = |numbers: [u64; 8]| {
        let mut harness = harness(&remembering_element(None), &caps);
        for number in numbers {
            harness.push(numbered(number, &caps)).unwrap();
        }
        harness.push_event(gst::event::Eos::new());
        numbers.map(|_| next_mask(&mut harness))
    };
    let (one, other) = (
        alone(numbers.map(|pair| pair.0)),
        alone(numbers.map(|pair| pair.1)),
    );
    let id = Some("remembered by a test");
    let shared = [remembering_element(id), remembering_element(id)];
    let mut harnesses = shared.each_ref().map(|element| harness(element, &caps));
    for (a, b) in numbers {
        harnesses[0].push(numbered(a, &caps)).unwrap();
        harnesses[1].push(numbered(b, &caps)).unwrap();
    }
    let together = harnesses.each_mut().map(|harness| {
        harness.push_event(gst::event::Eos::new());
        numbers.map(|_| next_mask(harness))
    });
    assert_ne!(one, other);
    assert_eq!(together, [one, other]);
}

#[test]
fn a_flush_forgets_the_scene() {
    init();
    let caps = caps("RGB", 40, 20);
    let first = {
        let mut harness = harness(&remembering_element(None), &caps);
        harness.push(numbered(7, &caps)).unwrap();
        harness.push_event(gst::event::Eos::new());
        next_mask(&mut harness)
    };
    let mut harness = harness(&remembering_element(None), &caps);
    for number in 20..50 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    let left = std::iter::from_fn(|| harness.try_pull());
    assert!(
        left.count() > 0,
        "frames have been explained before the flush"
    );
    harness.push_event(gst::event::FlushStart::new());
    push_after_flush(&mut harness, 7, &caps);
    assert_eq!(next_mask(&mut harness), first);
}

#[test]
fn a_flush_ends_the_wait_for_a_model() {
    let explainer = Brightness::default();
    let element = element(&explainer);
    element.set_property("attach-meta", true);
    let (open, gate) = crossbeam_channel::bounded::<()>(1);
    element.set_view(move || {
        // Ends when the test drops the other end.
        let _ = gate.recv();
        view(&explainer, None)
    });
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    let sink = element.static_pad("sink").unwrap();
    let first = numbered(0, &caps);
    let has_come = || {
        let stats: gst::Structure = element.property("stats");
        stats.get::<u64>("frames") == Ok(1)
    };
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| sink.chain(first));
        while !has_come() {
            std::thread::yield_now();
        }
        harness.push_event(gst::event::FlushStart::new());
        assert_eq!(waiting.join().unwrap(), Err(gst::FlowError::Flushing));
    });
    drop(open);
    push_after_flush(&mut harness, 7, &caps);
    let after = harness.pull().unwrap();
    assert_eq!(after.pts(), Some(FRAME * 7));
    assert!(Found::of(&after).is_some());
}

#[test]
fn an_element_that_stops_does_not_wait_for_an_explanation() {
    for mode in [SyncMode::Latest, SyncMode::Exact, SyncMode::Lossless] {
        let (explainer, _open) = Tireless::gated();
        let element = tireless_element(&explainer);
        element.set_property("sync-mode", mode);
        let bus = bus_of(&element);
        let caps = caps("RGB", 16, 16);
        let mut harness = harness(&element, &caps);
        wait_for_model(&bus);
        harness.push(numbered(0, &caps)).unwrap();
        explainer.wait_until_it_runs();
        let sink = element.static_pad("sink").unwrap();
        std::thread::scope(|threads| {
            // In `lossless`, the event waits for the frame.
            threads.spawn(|| sink.send_event(gst::event::Eos::new()));
            element.set_state(gst::State::Null).unwrap();
        });
    }
}

#[test]
fn another_view_takes_over_from_an_explanation_without_end() {
    let (explainer, _open) = Tireless::gated();
    let element = tireless_element(&explainer);
    element.set_property("sync-mode", SyncMode::Latest);
    let bus = bus_of(&element);
    let (told, found) = crossbeam_channel::bounded(1000);
    element.on_explained(move |finding, _| told.send(finding.maps[0].method).unwrap());
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    wait_for_model(&bus);
    harness.push(numbered(0, &caps)).unwrap();
    explainer.wait_until_it_runs();
    element.set_view(|| view(&Brightness::default(), None));
    element.reload();
    wait_for_model(&bus);
    while found.is_empty() {
        harness.push(numbered(1, &caps)).unwrap();
    }
    assert_eq!(found.recv(), Ok("brightness"));
}

#[test]
fn a_flush_ends_what_only_its_own_stream_waits_for() {
    init();
    let (explainer, open) = Tireless::gated();
    let caps = caps("RGB", 16, 16);
    let elements = [(); 2].map(|()| {
        let element = tireless_element(&explainer);
        element.set_property("model-instance-id", "flushed by a test");
        element.set_property("batch", 2_u32);
        element
    });
    let [mut flushed, mut other] = elements.each_ref().map(|element| harness(element, &caps));
    flushed.push(numbered(0, &caps)).unwrap();
    explainer.wait_until_it_runs();
    // Alone: no other stream waits for it.
    flushed.push_event(gst::event::FlushStart::new());
    flushed.push_event(gst::event::FlushStop::new(true));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    flushed.push_event(gst::event::Segment::new(&segment));
    explainer.passes.store(0, Ordering::SeqCst);
    // In one batch, or one after the other.
    flushed.push(numbered(1, &caps)).unwrap();
    other.push(numbered(2, &caps)).unwrap();
    explainer.wait_until_it_runs();
    flushed.push_event(gst::event::FlushStart::new());
    open.send(()).unwrap();
    drop(open);
    other.push_event(gst::event::Eos::new());
    let buffer = other.pull().unwrap();
    assert!(Found::of(&buffer).is_some());
}

/// Held frames are drawn later than they arrive, but with the property values of their own time.
#[test]
fn a_controlled_property_has_for_each_frame_the_value_of_its_time() {
    let element = element(&Brightness::default());
    element.set_property_from_str("mode", "heatmap");
    element.set_property_from_str("colormap", "gray");
    element.set_property("attach-meta", true);
    let values = gstreamer_controller::InterpolationControlSource::new();
    values.set_mode(gstreamer_controller::InterpolationMode::None);
    let shown = |number: u64| number % 3 == 1;
    for number in 0..20 {
        values.set(FRAME * number, if shown(number) { 1.0 } else { 0.0 });
    }
    let binding = gstreamer_controller::DirectControlBinding::new(&element, "smoothing", &values);
    element.add_control_binding(&binding).unwrap();
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    for number in 0..20 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let gray = |number: u64| number as f32 * f32::from(GRAY_A_FRAME) / 255.0;
    for number in 0..20 {
        let found = Found::of(&harness.pull().unwrap()).unwrap();
        // With a smoothing of 1, the previous explanation stays unchanged.
        let expected = gray(if shown(number) { number - 1 } else { number });
        assert!((mean(&found) - expected).abs() < 1e-3, "frame {number}");
    }
}

#[test]
fn smoothing_mixes_explanations_until_the_scene_changes() {
    let element = element(&Brightness::default());
    element.set_property_from_str("mode", "original");
    element.set_property("attach-meta", true);
    element.set_property("smoothing", 0.75_f32);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    let numbers = [0, 1, 2, 3, 40, 41];
    for number in numbers {
        harness.push(numbered(number, &caps)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let mut expected = 0.0;
    for number in numbers {
        let found = Found::of(&harness.pull().unwrap()).unwrap();
        let now = number as f32 * f32::from(GRAY_A_FRAME) / 255.0;
        expected = match number {
            0 | 40 => now,
            _ => 0.75 * expected + 0.25 * now,
        };
        assert!((mean(&found) - expected).abs() < 1e-3, "frame {number}");
    }
}

#[test]
fn frames_leave_before_caps_change() {
    let element = element(&Brightness::default());
    let (small, large) = (caps("RGB", 16, 16), caps("NV12", 64, 32));
    let mut harness = harness(&element, &small);
    for number in 0..3 {
        harness.push(numbered(number, &small)).unwrap();
    }
    harness.set_sink_caps(large.clone());
    harness.set_src_caps(large.clone());
    for number in 3..6 {
        harness.push(numbered(number, &large)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let sizes: Vec<usize> = (0..6).map(|_| harness.pull().unwrap().size()).collect();
    let [a, b] = [16 * 16 * 3, 64 * 32 * 3 / 2];
    assert_eq!(sizes, [a, a, a, b, b, b]);
}

#[test]
fn late_frames_lose_their_explanation_and_are_not_dropped() {
    let explainer = Brightness::default();
    let element = element(&explainer);
    element.set_property("sync-mode", SyncMode::Exact);
    element.set_property("attach-meta", true);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    harness.push(numbered(0, &caps)).unwrap();
    wait_for_answers(&explainer, 1);
    let late = gst::event::Qos::builder(gst::QOSType::Underflow, 2.0, 5 * FRAME.nseconds() as i64)
        .timestamp(FRAME)
        .build();
    harness.push_upstream_event(late);
    for number in 1..20 {
        harness.push(numbered(number, &caps)).unwrap();
        wait_for_answers(&explainer, 1 + number.saturating_sub(10) as usize);
    }
    harness.push_event(gst::event::Eos::new());
    let explained: Vec<bool> = (0..20)
        .map(|_| Found::of(&harness.pull().unwrap()).is_some())
        .collect();
    // Late until frame 1 + 2 · 5.
    assert!(
        explained[0] && !explained[1..11].contains(&true) && explained[19],
        "{explained:?}"
    );
}

#[test]
fn messages_and_metas_say_the_same() {
    let element = element(&Brightness::default());
    element.set_property("attach-meta", true);
    element.set_property("post-messages", true);
    element.set_property("threshold", 0.1_f32);
    let bus = bus_of(&element);
    let caps = caps("RGB", 40, 20);
    let mut harness = harness(&element, &caps);
    harness.push(numbered(30, &caps)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let buffer = harness.pull().unwrap();
    let found = Found::of(&buffer).unwrap();
    let message = wait_for(&bus, &[gst::MessageType::Element]);
    let structure = message.structure().unwrap();
    assert_eq!(structure.name(), "vitscope");
    assert_eq!(Found::from_structure(structure).unwrap(), found);
    assert_eq!((found.grid, found.mask.len()), ((4, 4), 16));
    assert_eq!(found.method, "brightness");
    assert!(found.class.is_some_and(|(_, _, score)| score > 0.0));
    let regions: Vec<_> = buffer
        .iter_meta::<gst_video::VideoRegionOfInterestMeta>()
        .map(|region| region.rect())
        .collect();
    assert_eq!(regions, [(0, 0, 40, 20)], "all patches are kept and touch");
}

#[test]
fn metas_and_messages_say_that_the_model_is_not_sure() {
    for (threshold, expected) in [
        (None, None),
        (Some(0.0), Some(Certainty::Sure)),
        (Some(0.999), Some(Certainty::NotSure)),
    ] {
        let element = element(&Brightness::default());
        element.set_view(move || {
            let mut view = view(&Brightness::default(), None)?;
            let model = Arc::get_mut(&mut view.model);
            model.expect("it is new").not_sure_below = threshold;
            Ok(view)
        });
        element.set_property("attach-meta", true);
        element.set_property("post-messages", true);
        let bus = bus_of(&element);
        let caps = caps("RGB", 40, 20);
        let mut harness = harness(&element, &caps);
        harness.push(numbered(30, &caps)).unwrap();
        harness.push_event(gst::event::Eos::new());
        let found = Found::of(&harness.pull().unwrap()).unwrap();
        assert_eq!(found.certainty, expected);
        let message = wait_for(&bus, &[gst::MessageType::Element]);
        let structure = message.structure().unwrap();
        assert_eq!(structure.has_field("not-sure"), expected.is_some());
        assert_eq!(Found::from_structure(structure).unwrap(), found);
    }
}

/// Requires GStreamer 1.26.
#[cfg(feature = "v1_26")]
#[test]
fn analytics_say_the_class_and_where_its_patches_are() {
    use gstreamer_analytics::prelude::*;
    use gstreamer_analytics::{
        AnalyticsClassificationMtd, AnalyticsODMtd, AnalyticsRelationMeta, RelTypes,
    };

    let element = element(&Brightness::default());
    element.set_property("attach-meta", true);
    element.set_property("threshold", 0.1_f32);
    let caps = caps("RGB", 40, 20);
    let mut harness = harness(&element, &caps);
    harness.push(numbered(30, &caps)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let buffer = harness.pull().unwrap();
    let (_, label, score) = Found::of(&buffer).unwrap().class.unwrap();

    let meta = buffer.meta::<AnalyticsRelationMeta>().unwrap();
    let classes: Vec<_> = meta.iter::<AnalyticsClassificationMtd>().collect();
    let [class] = &classes[..] else {
        panic!("{} classifications", classes.len());
    };
    assert_eq!((class.len(), class.level(0)), (1, score));
    assert_eq!(class.quark(0).as_str().as_str(), label);
    let objects: Vec<_> = meta.iter::<AnalyticsODMtd>().collect();
    let [object] = &objects[..] else {
        panic!("{} objects", objects.len());
    };
    let place = object.location().unwrap();
    assert_eq!((place.x, place.y, place.w, place.h), (0, 0, 40, 20));
    assert_eq!(meta.relation(object.id(), class.id()), RelTypes::RELATE_TO);
}

#[test]
fn elements_of_one_id_share_a_model_and_its_batches() {
    init();
    let opened = Arc::new(AtomicUsize::new(0));
    let (explainer, open) = Brightness::gated();
    let shared = || {
        let element = element(&explainer);
        element.set_property("model-instance-id", "shared by a test");
        element.set_property("batch", 8_u32);
        let (opened, explainer) = (Arc::clone(&opened), explainer.clone());
        element.set_view(move || {
            opened.fetch_add(1, Ordering::SeqCst);
            view(&explainer, None)
        });
        element
    };
    let elements = [shared(), shared()];
    let caps = caps("RGB", 16, 16);
    let mut harnesses = elements.each_ref().map(|element| harness(element, &caps));
    for number in 0..4 {
        for harness in &mut harnesses {
            harness.push(numbered(number, &caps)).unwrap();
        }
    }
    drop(open);
    for harness in &mut harnesses {
        harness.push_event(gst::event::Eos::new());
        for number in 0..4 {
            assert_eq!(harness.pull().unwrap().pts(), Some(FRAME * number));
        }
    }
    assert_eq!(opened.load(Ordering::SeqCst), 1);
    let batches = explainer.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().sum::<usize>(), 8);
    assert!(
        batches.iter().any(|size| *size > 4),
        "streams are explained together: {batches:?}"
    );

    let other = element(&explainer);
    other.set_property("model-instance-id", "shared by a test");
    let bus = bus_of(&other);
    assert!(other.set_state(gst::State::Ready).is_err());
    let message = wait_for(&bus, &[gst::MessageType::Error]).to_string_of_error();
    assert!(message.contains("must have the same model"), "{message}");
}

trait ErrorText {
    fn to_string_of_error(&self) -> String;
}

impl ErrorText for gst::Message {
    fn to_string_of_error(&self) -> String {
        match self.view() {
            gst::MessageView::Error(error) => error.error().to_string(),
            gst::MessageView::Warning(warning) => warning.error().to_string(),
            _ => String::new(),
        }
    }
}

#[test]
fn another_method_or_input_takes_over_while_frames_flow() {
    init();
    let element: VitScope = gst::ElementFactory::make("vitscope")
        .property("model", fixture("vit_a").to_str().unwrap())
        .property("method", "rollout")
        .property("attach-meta", true)
        .build()
        .unwrap()
        .downcast()
        .unwrap();
    let bus = bus_of(&element);
    let caps = caps("RGB", 40, 20);
    let mut harness = harness(&element, &caps);
    let by_attention = |found: &Found| found.method == "raw-attention";
    let mut number = 0;
    let mut until = |wanted: &dyn Fn(&Found) -> bool, harness: &mut Harness| {
        for _ in 0..10_000 {
            harness.push(numbered(number % 50, &caps)).unwrap();
            number += 1;
            while let Some(buffer) = harness.try_pull() {
                let found = Found::of(&buffer).expect("a frame without an explanation is a hole");
                if wanted(&found) {
                    return true;
                }
            }
        }
        false
    };
    assert!(until(&|found| found.method == "rollout", &mut harness));
    element.set_property("method", "raw-attention");
    assert!(until(&by_attention, &mut harness));
    element.set_property_from_str("input", "pad");
    element.set_property("input-size", 64_u32);
    assert!(until(&|found| found.grid == (8, 8), &mut harness));
    element.set_property("method", "nosuch");
    let message = wait_for(&bus, &[gst::MessageType::Warning]).to_string_of_error();
    assert!(message.contains("nosuch"), "{message}");
    assert!(until(&by_attention, &mut harness), "what worked goes on");
}

/// A cut keeps either all or nothing of a patch, and nothing at all if any answer counts as the same.
#[test]
fn options_reach_the_method_and_wrong_ones_are_an_error_on_the_bus() {
    init();
    let element = |options: &str| -> VitScope {
        gst::ElementFactory::make("vitscope")
            .property("method", "diffmask")
            .property("method-options", options)
            .property("attach-meta", true)
            .build()
            .unwrap()
            .downcast()
            .unwrap()
    };
    let caps = caps("RGB", 40, 20);
    let mask = |options: &str| {
        let mut harness = harness(&element(options), &caps);
        harness.push(numbered(30, &caps)).unwrap();
        harness.push_event(gst::event::Eos::new());
        let buffer = harness.pull().unwrap();
        Found::of(&buffer).unwrap().mask
    };
    assert!(
        mask("cut=margin")
            .iter()
            .all(|&keep| keep == 0.0 || keep == 1.0)
    );
    let kept = |margin: &str| {
        mask(&format!("cut=margin, margin={margin}"))
            .iter()
            .sum::<f32>()
    };
    assert!(kept("1e9") < kept("1e-9"));

    let wrong = element("cut=half");
    let bus = bus_of(&wrong);
    let _harness = harness(&wrong, &caps);
    let message = wait_for(&bus, &[gst::MessageType::Error]).to_string_of_error();
    assert!(
        message.contains("diffmask") && message.contains("half"),
        "{message}"
    );
}

#[test]
fn several_methods_share_the_frame_which_keeps_its_size() {
    init();
    let element: VitScope = gst::ElementFactory::make("vitscope")
        .property("model", fixture("vit_a").to_str().unwrap())
        .property("method", "rollout, raw-attention")
        .property("show-hud", false)
        .build()
        .unwrap()
        .downcast()
        .unwrap();
    let caps = caps("RGB", 40, 20);
    let mut harness = harness(&element, &caps);
    harness.push(numbered(30, &caps)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let buffer = harness.pull().unwrap();
    let map = buffer.map_readable().unwrap();
    let rows: Vec<&[u8]> = map.chunks(120).collect();
    assert_eq!(rows.len(), 20);
    // Two panes of 20 x 10 in the middle, with black above and below.
    assert!(
        rows[..4]
            .iter()
            .chain(&rows[14..])
            .all(|row| row.iter().all(|&sample| sample == 0))
    );
    assert!(
        rows[4..14]
            .iter()
            .all(|row| row.iter().any(|&sample| sample > 0))
    );
}

#[test]
fn options_of_several_methods_name_their_method() {
    init();
    let outcome = |options: &str| {
        let element: VitScope = gst::ElementFactory::make("vitscope")
            .property("method", "diffmask,rollout")
            .property("method-options", options)
            .build()
            .unwrap()
            .downcast()
            .unwrap();
        let bus = bus_of(&element);
        let _harness = harness(&element, &caps("RGB", 40, 20));
        let kinds = [gst::MessageType::Error, gst::MessageType::Progress];
        loop {
            let message = wait_for(&bus, &kinds);
            match message.view() {
                gst::MessageView::Error(_) => return Err(message.to_string_of_error()),
                gst::MessageView::Progress(progress)
                    if progress.get().0 == gst::ProgressType::Complete =>
                {
                    return Ok(());
                }
                _ => (),
            }
        }
    };
    outcome("diffmask.cut=margin").unwrap();
    let flat = outcome("cut=margin").unwrap_err();
    assert!(
        flat.contains("METHOD.KEY") && flat.contains("cut"),
        "{flat}"
    );
}

#[test]
fn settings_changed_at_once_are_those_of_the_properties() {
    let element = element(&Brightness::default());
    element.change(|settings| {
        settings.alpha = 0.25;
        settings.coloring = Coloring::Jet;
        settings.request.methods = vec![Method::Rollout, Method::GradMask];
        settings.request.options = toml::toml! { gradmask = { groups = 12 } };
        settings.request.input.edge_px = Some(64);
        settings.request.arithmetic = Arithmetic::Int8;
        settings.request.reuse = 0.25;
    });
    assert_eq!(element.property::<f32>("alpha"), 0.25);
    assert_eq!(element.property::<Coloring>("colormap"), Coloring::Jet);
    assert_eq!(element.property::<String>("method"), "rollout,gradmask");
    assert_eq!(element.property::<u32>("input-size"), 64);
    assert_eq!(element.property::<String>("precision"), "int8");
    assert_eq!(element.property::<f32>("reuse"), 0.25);
    element.set_property("reuse", 0.5_f32);
    assert_eq!(element.settings().request.reuse, 0.5);
    let options: String = element.property("method-options");
    element.set_property("method-options", &options);
    let groups = &element.settings().request.options["gradmask"]["groups"];
    assert_eq!(groups.as_integer(), Some(12), "{options}");
    // An invalid text is returned as it was set.
    element.set_property("method", "nosuch");
    assert_eq!(element.property::<String>("method"), "nosuch");
    element.set_property("method", "auto");
    assert!(element.settings().request.methods.is_empty());
}

#[test]
fn scores_go_to_a_socket_line_by_line_and_its_end_is_not_that_of_the_video() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let explainer = Brightness::default();
    let element = element(&explainer);
    element.set_property("scores-location", format!("unix:{}", path.display()));
    element.set_property("sync-mode", SyncMode::Latest);
    let bus = bus_of(&element);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    let (reader, _) = listener.accept().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(reader));
    wait_for_model(&bus);
    harness.push(numbered(0, &caps)).unwrap();
    for number in 0..3 {
        wait_for_answers(&explainer, number + 1);
        harness.push(numbered(number as u64 + 1, &caps)).unwrap();
        // The line is available as soon as the frame's explanation is.
        let line = lines.next().unwrap().unwrap();
        let record: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record["seq"], number);
        assert_eq!(record["explained"], true);
    }
    drop(lines);
    for number in 4..20 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    drop(harness);
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_model_that_is_not_there_is_an_error_on_the_bus() {
    init();
    let element: VitScope = gst::ElementFactory::make("vitscope")
        .property("model", "./no-such-model")
        .build()
        .unwrap()
        .downcast()
        .unwrap();
    let bus = bus_of(&element);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    let message = wait_for(&bus, &[gst::MessageType::Error]).to_string_of_error();
    assert!(message.contains("no-such-model"), "{message}");
    assert_eq!(harness.push(numbered(0, &caps)), Err(gst::FlowError::Error));
}

#[test]
fn a_panic_of_an_explainer_costs_an_explanation() {
    let explainer = Brightness {
        panics: true,
        ..Brightness::default()
    };
    let element = element(&explainer);
    element.set_property("attach-meta", true);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    for number in 0..3 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    for number in 0..3 {
        let buffer = harness.pull().unwrap();
        assert_eq!(number_of(&buffer), number);
        assert!(Found::of(&buffer).is_none());
    }
}

#[test]
fn scores_are_a_line_a_frame() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.jsonl");
    let element = element(&Brightness::default());
    element.set_property("scores-location", path.to_str().unwrap());
    element.set_property("interval", 2_u32);
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    for number in 0..6 {
        harness.push(numbered(number, &caps)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    drop(harness);
    element.set_state(gst::State::Null).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let shows: Vec<(bool, u64)> = text
        .lines()
        .map(|line| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            (
                record["explained"] == true,
                record["shows"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = [
        (true, 0),
        (false, 0),
        (true, 2),
        (false, 2),
        (true, 4),
        (false, 4),
    ];
    assert_eq!(shows, expected);
}

#[test]
fn scores_that_cannot_be_written_are_told_before_the_first_frame() {
    let element = element(&Brightness::default());
    element.set_property("scores-location", "/no/such/folder/scores.jsonl");
    let bus = bus_of(&element);
    assert!(element.set_state(gst::State::Paused).is_err());
    let message = wait_for(&bus, &[gst::MessageType::Error]).to_string_of_error();
    assert!(
        message.contains("/no/such/folder/scores.jsonl"),
        "{message}"
    );
    element.set_state(gst::State::Null).unwrap();
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn two_hundred_starts_leave_nothing_behind() {
    let explainer = Brightness::default();
    let models: Arc<Mutex<Vec<std::sync::Weak<models::Model>>>> = Arc::default();
    let element = element(&explainer);
    let seen = Arc::clone(&models);
    element.set_view(move || {
        let view = view(&explainer, None)?;
        seen.lock().unwrap().push(Arc::downgrade(&view.model));
        Ok(view)
    });
    let caps = caps("RGB", 16, 16);
    let mut before = 0;
    for start in 0..200 {
        let mut harness = harness(&element, &caps);
        harness.push(numbered(1, &caps)).unwrap();
        harness.push_event(gst::event::Eos::new());
        assert_eq!(number_of(&harness.pull().unwrap()), 1);
        drop(harness);
        element.set_state(gst::State::Null).unwrap();
        if start == 10 {
            before = threads();
        }
    }
    assert_eq!(threads(), before);
    let models = models.lock().unwrap();
    assert_eq!(models.len(), 200);
    assert!(models.iter().all(|model| model.strong_count() == 0));
}

/// Returns the frames of a file as `vitscope file` would encode them.
fn frames_of_the_program(path: &Path) -> Vec<Vec<u8>> {
    let model = models::open(fixture("vit_a").to_str().unwrap(), &Device::Cpu).unwrap();
    let view = View {
        explainers: vec![
            vitscope::explain::Method::Rollout
                .build(model.parts())
                .unwrap(),
        ],
        targets: vec![Target::Predicted],
        reuse: None,
        model: Arc::new(model),
    };
    struct Frames(Box<dyn Source>);
    impl Source for Frames {
        fn next(&mut self) -> Result<Option<Frame>> {
            self.0.next()
        }
    }
    let sink = MemorySink::default();
    let pipeline = vitscope::pipeline::Pipeline {
        view,
        overlay: Overlay::default(),
        every: std::num::NonZeroU64::MIN,
        batch: std::num::NonZeroUsize::MIN,
        is_video: true,
        cancel: &std::sync::atomic::AtomicBool::new(false),
        on_frame: Box::new(|_| Ok(())),
    };
    let mut source = Frames(Box::new(media::read(path).unwrap()));
    pipeline.run(&mut source, Box::new(sink.clone())).unwrap();
    sink.take().iter().map(visible).collect()
}

/// Returns the visible bytes of a frame, plane by plane.
fn visible(frame: &Frame) -> Vec<u8> {
    let layout = &frame.layout;
    let mut bytes = Vec::new();
    for (plane_idx, plane) in layout.planes.iter().enumerate() {
        let (rows, row_len) = layout.plane_extent(plane_idx);
        for row in 0..rows {
            let start = plane.offset + row * plane.stride;
            bytes.extend_from_slice(&frame.bytes()[start..start + row_len]);
        }
    }
    bytes
}

#[test]
fn the_element_draws_what_the_program_draws() {
    init();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    clip(&path, "320x240", 30);
    let frames = Arc::new(Mutex::new(Vec::new()));
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! videoconvert ! video/x-raw,format=I420 ! \
         vitscope model={} method=rollout batch=4 ! fakesink name=sink signal-handoffs=true",
        path.display(),
        fixture("vit_a").display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let seen = Arc::clone(&frames);
    let sink = pipeline.by_name("sink").unwrap();
    sink.connect("handoff", false, move |values| {
        let buffer: gst::Buffer = values[1].get().unwrap();
        let pad: gst::Pad = values[2].get().unwrap();
        let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
        let frame = frame_from_buffer(0, buffer, &info).unwrap();
        seen.lock().unwrap().push(visible(&frame));
        None
    });
    run_to_eos(&pipeline);
    let frames = frames.lock().unwrap();
    let expected = frames_of_the_program(&path);
    assert_eq!(frames.len(), 30);
    assert!(*frames == expected, "pixels differ");
}

fn run_to_eos(pipeline: &gst::Pipeline) {
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let message = wait_for(&bus, &[gst::MessageType::Eos, gst::MessageType::Error]);
    let text = message.to_string_of_error();
    assert_eq!(message.type_(), gst::MessageType::Eos, "{text}");
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn an_explainer_that_fails_leaves_frames_unexplained() {
    struct Failing;
    impl Explainer for Failing {
        fn name(&self) -> &'static str {
            "failing"
        }
        fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
            Brightness::scores(pass).map(Some)
        }
        fn attribution(&self, _pass: &Pass<'_>) -> Result<Tensor> {
            Err(Error::Model("it fails".into()))
        }
    }
    let element = element(&Brightness::default());
    element.set_property("attach-meta", true);
    element.set_view(|| {
        let mut view = view(&Brightness::default(), None)?;
        view.explainers = vec![Box::new(Failing)];
        Ok(view)
    });
    let caps = caps("RGB", 16, 16);
    let mut harness = harness(&element, &caps);
    harness.push(numbered(2, &caps)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let buffer = harness.pull().unwrap();
    assert_eq!((number_of(&buffer), Found::of(&buffer)), (2, None));
}

/// Returns a command line of `pipelines/`, with a clip in place of its file, test pictures in place of cameras and
/// servers, and its outputs in `folder`.
fn runnable(path: &Path, folder: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let line: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(text.starts_with("# "), "{path:?} says what it is for");
    let mut line = line.join(" ");
    let test = "videotestsrc num-buffers=10 is-live=true ! video/x-raw,width=320,height=240,framerate=25/1";
    for (theirs, ours) in [
        ("v4l2src", test),
        ("uridecodebin uri=rtsp://camera.example/stream", test),
        (
            "rtspclientsink location=rtsp://server.example/explained",
            "fakesink",
        ),
        ("autovideosink", "fakesink"),
    ] {
        line = line.replace(theirs, ours);
    }
    for file in [
        "in.mp4",
        "out.mp4",
        "out.mkv",
        "scores.jsonl",
        "segment%05d.ts",
        "playlist.m3u8",
    ] {
        let ours = format!("location={}", folder.join(file).display());
        line = line.replace(&format!("location={file}"), &ours);
    }
    line
}

fn pipelines() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let files = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gst"));
    files.sort();
    files
}

#[test]
fn every_pipeline_of_the_folder_runs() {
    init();
    let files = pipelines();
    assert!(files.len() >= 8);
    for path in files {
        let folder = tempfile::tempdir().unwrap();
        clip(&folder.path().join("in.mp4"), "320x240", 10);
        let line = runnable(&path, folder.path());
        let pipeline =
            gst::parse::launch(&line).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let element = pipeline
            .iterate_all_by_element_factory_name("vitscope")
            .next()
            .unwrap()
            .unwrap();
        run_to_eos(&pipeline);
        let stats: gst::Structure = element.property("stats");
        assert_eq!(stats.get::<u64>("frames"), Ok(10), "{path:?}");
        let outputs = std::fs::read_dir(folder.path()).unwrap();
        for file in outputs.map(|file| file.unwrap()) {
            assert!(
                file.metadata().unwrap().len() > 0,
                "{path:?} leaves {:?} empty",
                file.path()
            );
        }
    }
}

/// Copies the plugin that was built with this test binary to a folder of its own.
fn install_plugin(folder: &Path) -> std::path::PathBuf {
    let program = std::env::current_exe().unwrap();
    let built = program.with_file_name("libgstvitscope.so");
    let plugins = folder.join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::fs::copy(&built, plugins.join("libgstvitscope.so"))
        .unwrap_or_else(|error| panic!("{built:?}: {error}"));
    plugins
}

fn gst_tool(program: &str, args: &[&str], folder: &Path) -> std::process::Output {
    std::process::Command::new(program)
        .args(args)
        .env("GST_PLUGIN_PATH", install_plugin(folder))
        .env("GST_REGISTRY", folder.join("registry.bin"))
        .env("G_DEBUG", "fatal_warnings")
        // candle's threads spin while they wait, on cores where other tests compute.
        .env("CANDLE_NUM_THREADS", "1")
        .output()
        .unwrap_or_else(|error| panic!("{program} does not start, the tests need it: {error}"))
}

#[test]
fn gst_launch_runs_the_plugin_on_a_real_file() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.mp4");
    clip(&input, "320x240", 40);
    let line = runnable(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/file-to-file.gst"),
        folder.path(),
    );
    let mut args = vec!["-e", "-q"];
    args.extend(line.split_whitespace());
    let output = gst_tool("gst-launch-1.0", &args, folder.path());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let times = crate::common::frame_times(&folder.path().join("out.mp4"));
    assert_eq!(times.len(), 40);
}

#[test]
fn gst_inspect_documents_every_property() {
    let folder = tempfile::tempdir().unwrap();
    let output = gst_tool("gst-inspect-1.0", &["vitscope"], folder.path());
    let text = String::from_utf8(output.stdout).unwrap();
    init();
    let element = gst::ElementFactory::make("vitscope").build().unwrap();
    for spec in element.list_properties() {
        assert!(text.contains(spec.name()), "{}", spec.name());
        let blurb = spec.blurb().unwrap_or_default();
        assert!(blurb.len() > 10, "{} says {blurb:?}", spec.name());
    }
    for nick in ["lossless", "exact", "latest"] {
        assert!(text.contains(nick));
    }
}

/// A picture drawn after a queue equals one drawn at once.
#[test]
fn the_overlay_draws_what_the_element_attached() {
    init();
    let frames = |line: &str| -> Vec<Vec<u8>> {
        let frames = Arc::new(Mutex::new(Vec::new()));
        let pipeline = gst::parse::launch(&format!(
            "videotestsrc pattern=ball num-buffers=5 ! video/x-raw,format=NV12,width=200,height=100 ! {line} ! \
             fakesink name=sink signal-handoffs=true"
        ));
        let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
        let seen = Arc::clone(&frames);
        let sink = pipeline.by_name("sink").unwrap();
        sink.connect("handoff", false, move |values| {
            let buffer: gst::Buffer = values[1].get().unwrap();
            let bytes = buffer.map_readable().unwrap().to_vec();
            seen.lock().unwrap().push(bytes);
            None
        });
        run_to_eos(&pipeline);
        let frames = frames.lock().unwrap();
        frames.clone()
    };
    // Captions of one class, of a class other than the predicted one, and of two classes.
    for target in ["predicted", "1", "2", "contrast:0,1"] {
        let element = format!(
            "vitscope model={} method=gradcam target-class={target}",
            fixture("vit_a").display()
        );
        let at_once = frames(&element);
        let later = frames(&format!(
            "{element} mode=original show-hud=false attach-meta=true ! queue ! vitscopeoverlay"
        ));
        assert_eq!(at_once.len(), 5);
        assert!(at_once == later, "{target}: pixels differ");
        let elsewhere = frames(&format!("{element} mode=original show-hud=false"));
        assert!(at_once != elsewhere, "{target}: nothing is drawn");
    }
}

/// The examples in C and Python read a meta and receive a message for each frame.
#[test]
fn other_languages_read_metas_and_messages() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.mp4");
    clip(&input, "320x240", 10);
    let input = input.to_str().unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let program = folder.path().join("read_meta");
    let compile = format!(
        "cc -Wall -Werror {} -o {} $(pkg-config --cflags --libs gstreamer-1.0)",
        examples.join("read_meta.c").display(),
        program.display()
    );
    crate::common::run_tool("sh", &["-c", &compile]);
    let in_c = folder.path().join("c");
    let in_python = folder.path().join("python");
    let script = examples.join("read_meta.py");
    for (place, program, args) in [
        (&in_c, program.to_str().unwrap(), vec![input]),
        // The interpreter that Debian's python3-gi belongs to; there may be others before it in the path.
        (
            &in_python,
            "/usr/bin/python3",
            vec![script.to_str().unwrap(), input],
        ),
    ] {
        std::fs::create_dir(place).unwrap();
        let output = gst_tool(program, &args, place);
        let text = String::from_utf8(output.stdout).unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {log}");
        let frames: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("frame "))
            .collect();
        assert_eq!(frames.len(), 10, "{program}: {text}");
        assert!(frames[9].starts_with("frame 9: ") && frames[9].contains("hottest patch in row"));
        assert!(text.ends_with("10 messages\n"), "{program}: {text}");
    }
}
