//! Live video: from patterns and web servers to recordings, with sources that disappear and come back.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use vitscope::data::Dataset;
use vitscope::data::folder::Folder;
use vitscope::explain::Method;
use vitscope::frame::placement::ResizeRule;
use vitscope::frame::resize::Resampling;
use vitscope::frame::{Frame, FrameSize};
use vitscope::live::{
    Address, Audience, Collect, Event, Frames, HlsFolder, Key, Live, Output, Recording, RtspPush,
    Status, Wanted,
};
use vitscope::media::Sink;
use vitscope::plugin::{Draw, Settings, SyncMode};
use vitscope_live::serve::{About, Change, Feed, Host, Lesson, Server};

use crate::common::{clip, ffmpeg, fixture, frame_times, run_tool};

/// Time after which a hanging run fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn live(address: &str, folder: &Path) -> Live {
    let Ok(address) = address.parse::<Address>();
    let mut settings = Settings::default();
    settings.request.model = fixture("vit_a").to_str().unwrap().to_owned();
    settings.request.methods = vec![Method::Rollout];
    settings.sync_mode = SyncMode::Latest;
    Live {
        address,
        again: false,
        wanted: Wanted {
            size: Some((64, 48)),
            fps: Some(25),
        },
        settings,
        outputs: vec![Arc::new(Recording(folder.join("out.mkv")))],
        page: None,
        collect: None,
        gates: None,
        teach: None,
    }
}

/// Records events, presses keys, and ends the run when `enough` is true.
struct Watching<'a, F> {
    cancel: &'a AtomicBool,
    enough: F,
    keys: Vec<Key>,
    events: Vec<Event>,
    snapshots: Vec<Vec<u8>>,
    started: Instant,
}

impl<F: FnMut(&Event) -> bool> Audience for Watching<'_, F> {
    fn event(&mut self, event: Event) {
        assert!(self.started.elapsed() < PATIENCE, "{:?}", self.events);
        if (self.enough)(&event) {
            self.cancel.store(true, Ordering::SeqCst);
        }
        self.events.push(event);
    }

    fn key(&mut self) -> Option<Key> {
        // Press keys only once there is something to see.
        let explains =
            |event: &Event| matches!(event, Event::Status(status) if status.explained > 0);
        self.events.iter().any(explains).then(|| self.keys.pop())?
    }

    fn snapshot(&mut self, png: &[u8]) -> vitscope::Result<()> {
        self.snapshots.push(png.to_vec());
        Ok(())
    }
}

/// Runs until `enough` is true of an event.
fn run(live: &Live, enough: impl FnMut(&Event) -> bool) -> vitscope::Result<Vec<Event>> {
    let cancel = AtomicBool::new(false);
    run_until(live, &cancel, enough)
}

/// Runs the same way, with a flag that others may set, too.
fn run_until(
    live: &Live,
    cancel: &AtomicBool,
    enough: impl FnMut(&Event) -> bool,
) -> vitscope::Result<Vec<Event>> {
    let mut watching = watching(cancel, enough, &[]);
    live.run(cancel, &mut watching)?;
    Ok(watching.events)
}

fn watching<'a, F>(cancel: &'a AtomicBool, enough: F, keys: &[Key]) -> Watching<'a, F> {
    Watching {
        cancel,
        enough,
        keys: keys.iter().rev().copied().collect(),
        events: Vec::new(),
        snapshots: Vec::new(),
        started: Instant::now(),
    }
}

/// Returns the events and snapshots while keys are pressed one after the other; the last key should quit.
fn press(live: &Live, keys: &[Key]) -> (Vec<Event>, Vec<image::RgbImage>) {
    let cancel = AtomicBool::new(false);
    let mut watching = watching(&cancel, |_: &Event| false, keys);
    live.run(&cancel, &mut watching).unwrap();
    let pictures = watching.snapshots.iter();
    let pictures = pictures.map(|png| image::load_from_memory(png).unwrap().to_rgb8());
    (watching.events, pictures.collect())
}

fn problems(events: &[Event]) -> Vec<&str> {
    let problems = events.iter().filter_map(|event| match event {
        Event::Problem(problem) => Some(problem.as_str()),
        _ => None,
    });
    problems.collect()
}

/// Returns the last status of a run.
fn last_status(events: &[Event]) -> Status {
    let mut newest_first = events.iter().rev().filter_map(|event| match event {
        Event::Status(status) => Some(*status),
        _ => None,
    });
    newest_first.next().unwrap()
}

#[test]
fn a_pattern_is_explained_and_recorded_until_it_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let live = live("test:ball", folder.path());
    let enough = |event: &Event| matches!(event, Event::Status(status) if status.explained > 5);
    let events = run(&live, enough).unwrap();
    assert_eq!(events[0], Event::Connected);
    let status = last_status(&events);
    let times = frame_times(&folder.path().join("out.mkv"));
    // Frames that arrive between the last check and the end are recorded, too.
    let recorded = status.frames as usize..status.frames as usize + 50;
    assert!(
        recorded.contains(&times.len()),
        "{} {status:?}",
        times.len()
    );
    // Matroska counts in milliseconds.
    let step = |pair: &[u64]| (pair[1] - pair[0]).abs_diff(40_000_000) <= 1_000_000;
    assert!(times.windows(2).all(step), "{times:?}");
}

/// A web server sends a clip to every client and hangs up.
#[test]
fn a_stream_that_breaks_off_is_connected_again_and_the_recording_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.mkv");
    clip(&input, "64x48", 10);
    let video = std::fs::read(input).unwrap();
    let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").unwrap());
    let address = format!("http://{}/in.mkv", server.server_addr());
    let mut connections = 0;
    std::thread::scope(|scope| {
        let serving = Arc::clone(&server);
        scope.spawn(move || {
            for request in serving.incoming_requests() {
                // A client that hangs up early has read enough.
                let _ = request.respond(tiny_http::Response::from_data(video.clone()));
            }
        });
        let live = live(&address, folder.path());
        let events = run(&live, |event| {
            connections += usize::from(*event == Event::Connected);
            connections == 3
        });
        server.unblock();
        let events = events.unwrap();
        let lost: Vec<&String> = events
            .iter()
            .filter_map(|event| match event {
                Event::Lost { reason, .. } => Some(reason),
                _ => None,
            })
            .collect();
        assert_eq!(lost.len(), 2, "{events:?}");
        assert!(
            lost.iter().all(|reason| reason.contains("has ended")),
            "{lost:?}"
        );
    });
    let times = frame_times(&folder.path().join("out.mkv"));
    assert!(times.len() > 20, "two whole clips at least: {times:?}");
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}

/// This holds if the source does not exist and if the run is ended before the first frame; an earlier recording and its
/// scores stay as they were.
#[test]
fn a_recording_without_frames_leaves_no_file_and_takes_none_away() {
    let folder = tempfile::tempdir().unwrap();
    let [recorded, scores] = ["out.mkv", "out.jsonl"].map(|name| folder.path().join(name));
    let to_both = |address: &str| {
        let mut live = live(address, folder.path());
        let path = scores.to_str().unwrap().to_owned();
        live.settings.scores_location = Some(path);
        live
    };
    // The server never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/x.mjpg", silent.local_addr().unwrap());
    let fail = || {
        run(&to_both("/dev/no-such-camera"), |_| true).unwrap_err();
        run(&to_both(&address), |_| true).unwrap();
    };
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    fail();
    assert_eq!(files(), 0);

    for path in [&recorded, &scores] {
        std::fs::write(path, "earlier").unwrap();
    }
    fail();
    assert_eq!(files(), 2);
    for path in [&recorded, &scores] {
        assert_eq!(std::fs::read_to_string(path).unwrap(), "earlier");
    }

    // Explained video replaces them.
    let enough = |event: &Event| matches!(event, Event::Status(status) if status.explained > 5);
    run(&to_both("test:ball"), enough).unwrap();
    assert_eq!(files(), 2);
    assert!(frame_times(&recorded).len() > 5);
    let lines = std::fs::read_to_string(&scores).unwrap();
    assert!(lines.starts_with("{\"seq\":0,"), "{lines}");
}

/// Returns the size as reported by ffprobe: `64x48`.
fn size_of(file: &Path) -> String {
    let args = "-v error -select_streams v:0 -show_entries stream=width,height -of csv=p=0:s=x";
    let mut args: Vec<&str> = args.split_whitespace().collect();
    args.push(file.to_str().unwrap());
    let size = String::from_utf8(run_tool("ffprobe", &args).stdout).unwrap();
    size.trim().to_owned()
}

#[test]
fn odd_sizes_are_recorded_with_the_next_even_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = live("test:ball", folder.path());
    live.wanted.size = Some((65, 47));
    let enough = |event: &Event| matches!(event, Event::Status(status) if status.explained > 5);
    run(&live, enough).unwrap();
    assert_eq!(size_of(&folder.path().join("out.mkv")), "66x48");
}

#[test]
fn a_clip_that_says_how_to_turn_it_is_turned() {
    let folder = tempfile::tempdir().unwrap();
    let [flat, turned] = ["flat.mp4", "turned.mp4"].map(|name| folder.path().join(name));
    clip(&flat, "64x48", 10);
    let [from, to] = [&flat, &turned].map(|path| path.to_str().unwrap());
    ffmpeg(
        &format!("-i {from} -c copy -metadata:s:v rotate=90"),
        &turned,
    );
    run(&live(to, folder.path()), |_| false).unwrap();
    assert_eq!(size_of(&folder.path().join("out.mkv")), "48x64");
}

#[test]
fn what_is_not_there_is_one_sentence_without_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let message = |address: &str| {
        let error = run(&live(address, folder.path()), |_| true).unwrap_err();
        error.to_string()
    };
    let camera = message("/dev/no-such-camera");
    assert!(
        camera.contains("no such camera: \"/dev/no-such-camera\""),
        "{camera}"
    );
    let pattern = message("test:nosuch");
    assert!(
        pattern.contains("expected one of smpte") && pattern.contains("nosuch"),
        "{pattern}"
    );
    // Nothing listens on the port of a closed server.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let server = message(&format!("http://user:s3cret@{port}/stream"));
    assert!(
        server.contains("user:***@127.0.0.1") && !server.contains("s3cret"),
        "{server}"
    );
}

/// The file plays in real time to its end, and again if requested.
#[test]
fn a_file_is_shown_like_a_camera_once_or_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    let n_frames = 30;
    clip(&path, "64x48", n_frames);
    let mut file = live(path.to_str().unwrap(), folder.path());
    file.outputs = vec![Arc::new(Recording(folder.path().join("once.mp4")))];
    let events = run(&file, |_| false).unwrap();
    assert_eq!(events.last(), Some(&Event::Ending));
    let once = frame_times(&folder.path().join("once.mp4"));
    assert_eq!(once.len(), n_frames as usize);
    assert!(once.windows(2).all(|pair| pair[0] < pair[1]), "{once:?}");

    file.again = true;
    file.outputs = vec![Arc::new(Recording(folder.path().join("again.mkv")))];
    let twice = 2 * u64::from(n_frames);
    let events = run(
        &file,
        |event| matches!(event, Event::Status(status) if status.frames > twice),
    );
    let is_lost = |event: &Event| matches!(event, Event::Lost { .. });
    assert!(!events.unwrap().iter().any(is_lost));
    let again = frame_times(&folder.path().join("again.mkv"));
    assert!(again.len() > twice as usize, "{}", again.len());
    assert!(again.windows(2).all(|pair| pair[0] < pair[1]), "{again:?}");
}

#[test]
fn a_file_that_is_not_there_and_a_recording_of_no_known_kind_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = live("/no/such/clip.mp4", folder.path());
    let error = run(&missing, |_| true).unwrap_err().to_string();
    assert_eq!(error, "no such file: \"/no/such/clip.mp4\"");
    let mut recorded = live("test:", folder.path());
    recorded.outputs = vec![Arc::new(Recording(folder.path().join("out.avi")))];
    let error = run(&recorded, |_| true).unwrap_err().to_string();
    assert!(
        error.contains("ending in .mkv or .mp4") && error.contains("out.avi"),
        "{error}"
    );
    assert!(!folder.path().join("out.avi").exists());
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(&live("test:", &folder.path().join("nosuch")), |_| true).unwrap_err();
    assert!(error.to_string().contains("nosuch/out.mkv"), "{error}");
}

#[test]
fn a_model_that_is_not_there_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = live("test:", folder.path());
    live.settings.request.model = "./no-such-model".into();
    let error = run(&live, |_| false).unwrap_err().to_string();
    assert!(error.contains("no-such-model"), "{error}");
}

#[test]
fn a_frozen_picture_stands_still_and_is_explained_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = live("test:ball", folder.path());
    live.settings.draw = Draw::Original;
    live.settings.show_hud = false;
    live.settings.attach_meta = true;
    let mut keys = vec![Key::Snapshot; 2];
    keys.push(Key::Freeze);
    keys.extend([Key::Snapshot; 8]);
    keys.push(Key::Quit);
    let (events, pictures) = press(&live, &keys);
    assert_eq!(problems(&events), Vec::<&str>::new());
    assert_eq!(pictures.len(), 10);
    assert_eq!(pictures[0].dimensions(), (64, 48));
    assert_ne!(pictures[0], pictures[1], "the ball moves");
    // Frames that were on their way when the picture froze come first.
    assert_eq!(pictures[8], pictures[9]);
}

#[test]
fn keys_change_opacity_and_method_and_say_what_cannot_be_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = live("test:white", folder.path());
    live.settings.show_hud = false;
    live.settings.max_age = Duration::from_nanos(u64::MAX - 1);
    live.settings.alpha = 1.0;
    let keys = [
        // From 1 to 0, which leaves the picture unchanged.
        Key::Opacity,
        Key::Snapshot,
        Key::Target,
        Key::Method,
        Key::Target,
        Key::Quit,
    ];
    let (events, pictures) = press(&live, &keys);
    assert!(
        pictures[0]
            .pixels()
            .all(|pixel| pixel.0.iter().all(|&sample| sample > 230))
    );
    // Rollout explains no class; the next method does.
    let problems = problems(&events);
    let expected = "method \"rollout\" explains the whole output, not a single class, but class 0 was requested; \
                    chefer explains classes";
    assert_eq!(problems, [expected]);
}

#[test]
fn frames_are_collected_to_train_on_and_those_of_before_stay() {
    let folder = tempfile::tempdir().unwrap();
    let stored = folder.path().join("frames");
    let mut live = live("test:ball", folder.path());
    live.collect = Some(Collect {
        folder: stored.clone(),
        every: Duration::from_millis(200),
    });
    let enough = |event: &Event| matches!(event, Event::Status(status) if status.frames > 25);
    run(&live, enough).unwrap();
    let first = crate::common::names_in(&stored);
    assert!(first.len() > 2, "{first:?}");
    let picture = image::open(stored.join("frame-000000.jpg")).unwrap();
    assert_eq!((picture.width(), picture.height()), (64, 48));
    let bytes = std::fs::read(stored.join("frame-000000.jpg")).unwrap();
    live.outputs = Vec::new();
    run(&live, enough).unwrap();
    let second = crate::common::names_in(&stored);
    assert_eq!(first[..], second[..first.len()]);
    assert!(second.len() > first.len());
    assert_eq!(
        bytes,
        std::fs::read(stored.join("frame-000000.jpg")).unwrap()
    );
    // As `train diffmask` reads them.
    let size = FrameSize {
        width_px: 32,
        height_px: 32,
    };
    let pictures = Folder::open(&stored, ResizeRule::Stretch(size), Resampling::Bilinear);
    assert_eq!(pictures.unwrap().len(), second.len());
}

#[test]
fn gates_that_change_are_taken_over_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let cifar10 = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifar10");
    for name in [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "gates.json",
        "gates.safetensors",
    ] {
        std::fs::copy(cifar10.join(name), model.join(name)).unwrap();
    }
    let mut live = live("test:ball", folder.path());
    live.settings = Settings::default();
    live.settings.request.model = model.to_str().unwrap().into();
    live.settings.sync_mode = SyncMode::Latest;
    live.gates = Some(model.clone());
    let gates = model.join("gates.safetensors");
    let whole = std::fs::read(&gates).unwrap();
    let mut writes = vec![whole.clone(), whole[..whole.len() / 2].to_vec()].into_iter();
    let mut explained = 0;
    let events = run(&live, |event| match event {
        // Write a moment later, so that the file's modification time differs.
        Event::Status(status) => {
            if status.explained > 0 && explained == 0 {
                explained = status.explained;
                std::fs::write(&gates, writes.next_back().unwrap()).unwrap();
            }
            false
        }
        Event::Problem(_) => {
            std::fs::write(&gates, writes.next().unwrap()).unwrap();
            false
        }
        Event::Reloading => writes.len() == 0,
        _ => false,
    });
    let events = events.unwrap();
    let problems = problems(&events);
    assert_eq!(problems.len(), 1, "{events:?}");
    assert!(problems[0].contains("cannot switch to"), "{problems:?}");
    let reloads = events.iter().filter(|event| **event == Event::Reloading);
    assert_eq!(reloads.count(), 2);
}

#[test]
fn a_folder_of_http_live_streaming_can_be_played() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = live("test:ball", folder.path());
    live.outputs = vec![Arc::new(HlsFolder(folder.path().to_owned()))];
    run(
        &live,
        |event| matches!(event, Event::Status(status) if status.frames > 130),
    )
    .unwrap();
    let times = frame_times(&folder.path().join("live.m3u8"));
    assert!(times.len() > 100, "{times:?}");
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}

/// Counts frames.
struct Counter {
    n_frames: Arc<AtomicUsize>,
    /// The index of the frame at which it fails.
    most: usize,
}

impl Sink for Counter {
    fn push(&mut self, frame: Frame) -> vitscope::Result<()> {
        let size = frame.size();
        assert_eq!((size.width_px, size.height_px), (64, 48));
        if self.n_frames.fetch_add(1, Ordering::SeqCst) < self.most {
            return Ok(());
        }
        Err(vitscope::Error::Config("the sink has enough".into()))
    }

    fn finish(self: Box<Self>) -> vitscope::Result<()> {
        self.n_frames.fetch_add(1000, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_sink_is_fed_live_and_finished() {
    let folder = tempfile::tempdir().unwrap();
    let n_frames = Arc::new(AtomicUsize::new(0));
    let fed = |most| {
        let n_frames = Arc::clone(&n_frames);
        Arc::new(Frames::new(Counter { n_frames, most }))
    };
    let mut live = live("test:ball", folder.path());
    let enough = |event: &Event| matches!(event, Event::Status(status) if status.frames > 30);
    live.outputs = vec![fed(usize::MAX)];
    run(&live, enough).unwrap();
    let n_frames = n_frames.swap(0, Ordering::SeqCst);
    assert!((1010..2000).contains(&n_frames), "{n_frames}");

    live.outputs = vec![fed(5)];
    let error = run(&live, enough).unwrap_err().to_string();
    assert_eq!(error, "the sink has enough");
}

/// An output unknown to the library, as users write them.
#[derive(Debug)]
struct Blind(AtomicBool);

impl Output for Blind {
    fn elements(
        &self,
        _keys: &crossbeam_channel::Sender<Key>,
    ) -> vitscope::Result<Vec<gst::Element>> {
        let make = |name| gst::ElementFactory::make(name).build().unwrap();
        let sink = make("fakesink");
        sink.set_property("sync", false);
        Ok(vec![make("queue"), sink])
    }

    fn keep(&self) -> vitscope::Result<()> {
        self.0.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn an_output_of_the_user_s_own_is_one_type() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = live("test:ball", folder.path());
    let blind = Arc::new(Blind(AtomicBool::new(false)));
    live.outputs = vec![blind.clone()];
    run(
        &live,
        |event| matches!(event, Event::Status(status) if status.explained > 0),
    )
    .unwrap();
    assert!(blind.0.load(Ordering::SeqCst));
}

/// A program of `tests/fixtures` that serves video over RTSP until it is killed.
struct RtspServer {
    process: Child,
    port: u16,
}

impl RtspServer {
    fn start(port: u16, options: &[&str]) -> Self {
        let mut process = Command::new("/usr/bin/python3")
            .arg(fixture("rtsp_server.py"))
            .arg(port.to_string())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        // Without Debian's gir1.2-gst-rtsp-server-1.0, it prints nothing.
        let port = line.trim().parse().unwrap();
        Self { process, port }
    }
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        // As with `kill -9`.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_rtsp_server_that_is_killed_and_comes_back_is_shown_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Some(RtspServer::start(0, &[]));
    let port = server.as_ref().unwrap().port;
    let live = live(&format!("rtsp://127.0.0.1:{port}/test"), folder.path());
    let (mut connections, mut since_connection) = (0, 0);
    let events = run(&live, |event| {
        match event {
            Event::Connected => (connections, since_connection) = (connections + 1, 0),
            Event::Status(_) => since_connection += 1,
            Event::Lost { .. } => server = Some(RtspServer::start(port, &[])),
            _ => (),
        }
        if connections == 1 && since_connection == 2 {
            server = None;
        }
        connections == 2 && since_connection == 2
    });
    let events = events.unwrap();
    let lost = |event: &&Event| matches!(event, Event::Lost { .. });
    assert!(events.iter().filter(lost).count() >= 1, "{events:?}");
    let times = frame_times(&folder.path().join("out.mkv"));
    assert!(times.len() > 60, "{}", times.len());
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}

#[test]
fn an_rtsp_server_that_refuses_is_told_without_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let server = RtspServer::start(0, &["--user", "eve", "--password", "s3cret"]);
    let message = |user: &str, path: &str| {
        let address = format!("rtsp://{user}127.0.0.1:{}/{path}", server.port);
        let error = run(&live(&address, folder.path()), |_| true).unwrap_err();
        let error = error.to_string();
        assert!(
            !error.contains("s3cret") && !error.contains("wr0ng"),
            "{error}"
        );
        error
    };
    for user in ["", "eve:wr0ng@"] {
        let refused = message(user, "test");
        assert!(
            refused.contains("a valid user name and password"),
            "{refused}"
        );
    }
    let nothing = message("eve:s3cret@", "nosuch");
    assert!(
        nothing.contains("has no stream at \"/nosuch\""),
        "{nothing}"
    );
    let live = live(
        &format!("rtsp://eve:s3cret@127.0.0.1:{}/test", server.port),
        folder.path(),
    );
    run(&live, |event| *event == Event::Connected).unwrap();
}

#[test]
fn video_is_pushed_to_an_rtsp_server() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken.ts");
    let server = RtspServer::start(0, &["--record-to", taken.to_str().unwrap()]);
    let mut live = live("test:ball", folder.path());
    live.wanted.size = Some((320, 240));
    let address = format!("rtsp://127.0.0.1:{}/record", server.port);
    live.outputs = vec![Arc::new(RtspPush(address.parse().unwrap()))];
    run(
        &live,
        |event| matches!(event, Event::Status(status) if status.frames > 60),
    )
    .unwrap();
    drop(server);
    let times = frame_times(&taken);
    assert!(times.len() > 30, "{}", times.len());
}

/// Returns a small red picture.
fn red_jpeg() -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(64, 48, image::Rgb([200, 30, 30]));
    let mut jpeg = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut jpeg, image::ImageFormat::Jpeg)
        .unwrap();
    jpeg.into_inner()
}

/// As network cameras send it: pictures without timestamps, one after the other, for as long as a client watches.
#[test]
fn motion_jpeg_is_shown_as_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let feed = Arc::new(Feed::default());
    let host = Arc::new(NoHost);
    let server = Server::start(
        "127.0.0.1:0".parse().unwrap(),
        None,
        host,
        Arc::clone(&feed),
    );
    let server = server.unwrap();
    let jpeg: Arc<[u8]> = red_jpeg().into();
    let address = format!("http://{}/stream.mjpg", server.address());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                feed.show(Arc::clone(&jpeg));
                std::thread::yield_now();
            }
        });
        let enough = |event: &Event| matches!(event, Event::Status(status) if status.explained > 5);
        let events = run(&live(&address, folder.path()), enough);
        done.store(true, Ordering::SeqCst);
        assert_eq!(events.unwrap()[0], Event::Connected);
    });
    let times = frame_times(&folder.path().join("out.mkv"));
    assert!(
        times.len() > 5 && times.windows(2).all(|pair| pair[0] < pair[1]),
        "{times:?}"
    );
}

/// As some small cameras send it: the first picture has no boundary before it.
#[test]
fn motion_jpeg_without_a_first_boundary_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let jpeg = red_jpeg();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/stream", listener.local_addr().unwrap());
    let camera = move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut head = BufReader::new(connection.try_clone().unwrap()).lines();
            while head.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n";
            let part = format!(
                "Content-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n",
                jpeg.len()
            );
            let part = [part.as_bytes(), &jpeg, b"\r\n--frame\r\n"].concat();
            connection.write_all(answer.as_bytes()).unwrap();
            // Until the client is gone.
            while connection.write_all(&part).is_ok() {}
        }
    };
    let camera = std::thread::Builder::new()
        .name("camera".into())
        .spawn(camera);
    camera.unwrap();
    let enough = |event: &Event| matches!(event, Event::Status(status) if status.explained > 5);
    let events = run(&live(&address, folder.path()), enough).unwrap();
    assert_eq!(events[0], Event::Connected);
}

/// Only its pictures are requested.
struct NoHost;

impl Host for NoHost {
    fn about(&self) -> Option<About> {
        None
    }

    fn change(&self, _: &Change) -> vitscope::Result<()> {
        Ok(())
    }

    fn teach(&self, _: &Lesson) -> vitscope::Result<()> {
        Ok(())
    }

    fn snapshot(&self) -> vitscope::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}
