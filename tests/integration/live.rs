//! Live video: from patterns and web servers into recordings, with sources that go and come back.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vitscope::live::{Address, Audience, Event, Key, Live, Outputs, Status, Wanted};

use crate::common::{clip, fixture, frame_times};

/// A run that hangs fails in the end.
const PATIENCE: Duration = Duration::from_secs(60);

fn live(address: &str, folder: &Path) -> Live {
    let Ok(address) = address.parse::<Address>();
    let model = fixture("vit_a").to_str().unwrap().to_owned();
    Live {
        address,
        wanted: Wanted {
            size: Some((64, 48)),
            fps: Some(25),
        },
        properties: vec![
            ("model", model),
            ("method", "rollout".into()),
            ("sync-mode", "latest".into()),
        ],
        outputs: Outputs {
            record: Some(folder.join("out.mkv")),
            ..Outputs::default()
        },
        options: toml::Table::new(),
        page: None,
        collect: None,
        gates: None,
    }
}

/// Writes down what happens, presses keys, and ends the run when it is enough.
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
        // When there is something to see.
        let explains =
            |event: &Event| matches!(event, Event::Status(status) if status.explained > 0);
        self.events.iter().any(explains).then(|| self.keys.pop())?
    }

    fn snapshot(&mut self, png: &[u8]) -> vitscope::Result<()> {
        self.snapshots.push(png.to_vec());
        Ok(())
    }
}

/// Runs until `enough` says so of an event.
fn run(live: &Live, enough: impl FnMut(&Event) -> bool) -> vitscope::Result<Vec<Event>> {
    let cancel = AtomicBool::new(false);
    run_until(live, &cancel, enough)
}

/// The same with a flag that others may set too.
fn run_until(
    live: &Live,
    cancel: &AtomicBool,
    enough: impl FnMut(&Event) -> bool,
) -> vitscope::Result<Vec<Event>> {
    let mut watching = Watching {
        cancel,
        enough,
        keys: Vec::new(),
        events: Vec::new(),
        snapshots: Vec::new(),
        started: Instant::now(),
    };
    live.run(cancel, &mut watching)?;
    Ok(watching.events)
}

/// The last counts of a run.
fn last_status(events: &[Event]) -> Status {
    let statuses = events.iter().filter_map(|event| match event {
        Event::Status(status) => Some(*status),
        _ => None,
    });
    statuses.last().unwrap()
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
    // Frames that came between the last look and the end are recorded too.
    let recorded = status.frames as usize..status.frames as usize + 50;
    assert!(
        recorded.contains(&times.len()),
        "{} {status:?}",
        times.len()
    );
    // Matroska counts milliseconds.
    let step = |pair: &[u64]| (pair[1] - pair[0]).abs_diff(40_000_000) <= 1_000_000;
    assert!(times.windows(2).all(step), "{times:?}");
}

/// A web server that sends a clip to everyone who comes, and hangs up.
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
                // Who hangs up early has had enough.
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

#[test]
fn what_is_not_there_is_one_sentence_without_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let message = |address: &str| {
        let error = run(&live(address, folder.path()), |_| true).unwrap_err();
        error.to_string()
    };
    let camera = message("/dev/no-such-camera");
    assert!(
        camera.contains("there is no camera: \"/dev/no-such-camera\""),
        "{camera}"
    );
    let pattern = message("test:nosuch");
    assert!(
        pattern.contains("known are smpte") && pattern.contains("nosuch"),
        "{pattern}"
    );
    // Nothing listens on the port of a server that is gone.
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
    live.properties[0].1 = "./no-such-model".into();
    let error = run(&live, |_| false).unwrap_err().to_string();
    assert!(error.contains("no-such-model"), "{error}");
}
