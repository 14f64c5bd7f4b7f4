//! The page's server: its responses, its access control, and its robustness against any input.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vitscope::{Error, Result};
use vitscope_live::serve::{About, Change, Feed, Host, Lesson, Server, Topic};

use crate::common::{HTTP_PATIENCE as PATIENCE, ask, connect};

const TOKEN: &str = "let-me-in-2026";

/// Accepts every change except opacities above 1, and examples of the first eight classes.
#[derive(Default)]
struct Recorder(Mutex<Vec<Change>>, Mutex<Vec<Lesson>>);

impl Host for Recorder {
    fn about(&self) -> Option<About> {
        None
    }

    fn change(&self, change: &Change) -> Result<()> {
        if change.alpha.is_some_and(|alpha| alpha > 1.0) {
            return Err(Error::Config("alpha is too much".into()));
        }
        self.0.lock().unwrap().push(change.clone());
        Ok(())
    }

    fn teach(&self, lesson: &Lesson) -> Result<()> {
        if *lesson == Lesson::Example(8) {
            return Err(Error::Config("no such class".into()));
        }
        self.1.lock().unwrap().push(lesson.clone());
        Ok(())
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(b"png".to_vec())
    }
}

struct Served {
    host: Arc<Recorder>,
    feed: Arc<Feed>,
    server: Server,
}

fn serve(token: Option<&str>) -> Served {
    let (host, feed) = (Arc::new(Recorder::default()), Arc::new(Feed::default()));
    let address = "127.0.0.1:0".parse().unwrap();
    let owned = token.map(str::to_owned);
    let server = Server::start(address, owned, host.clone(), Arc::clone(&feed)).unwrap();
    Served { host, feed, server }
}

fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    ask(address, request.as_bytes())
}

fn post(address: SocketAddr, json: &str, headers: &str) -> String {
    post_to("/control", address, json, headers)
}

fn post_to(path: &str, address: SocketAddr, json: &str, headers: &str) -> String {
    let length = json.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{headers}\r\n{json}"
    );
    ask(address, request.as_bytes())
}

#[track_caller]
fn check_status(answer: &str, status: u16) {
    let expected = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&expected), "expected {status}: {answer}");
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let served = serve(None);
    let page = get(served.server.address(), "/", "");
    check_status(&page, 200);
    assert!(page.contains("default-src 'none'"), "{page}");
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn a_change_is_made_or_refused_with_a_reason() {
    let served = serve(None);
    let address = served.server.address();
    check_status(&post(address, r#"{"alpha":0.25,"frozen":true}"#, ""), 204);
    let made = served.host.0.lock().unwrap().clone();
    let expected = Change {
        alpha: Some(0.25),
        frozen: Some(true),
        ..Change::default()
    };
    assert_eq!(vec![expected], made);
    for (json, reason) in [
        (r#"{"alpha":2}"#, "alpha is too much"),
        (r#"{"alpha":"much"}"#, "invalid type"),
        (r#"{"color":"red"}"#, "unknown field `color`"),
        ("{", "EOF"),
        ("", "EOF"),
    ] {
        let answer = post(address, json, "");
        check_status(&answer, 400);
        assert!(answer.contains(reason), "{json}: {answer}");
    }
    assert_eq!(1, served.host.0.lock().unwrap().len());
}

#[test]
fn a_lesson_is_taken_or_refused_with_a_reason() {
    let served = serve(None);
    let teach = |json: &str| post_to("/teach", served.server.address(), json, "");
    for json in [
        r#"{"example":0}"#,
        r#""undo""#,
        r#""save""#,
        r#"{"add":"cup"}"#,
        r#"{"rename":[1,"mug"]}"#,
    ] {
        check_status(&teach(json), 204);
    }
    let taken = served.host.1.lock().unwrap().clone();
    let expected = [
        Lesson::Example(0),
        Lesson::Undo,
        Lesson::Save,
        Lesson::Add("cup".into()),
        Lesson::Rename(1, "mug".into()),
    ];
    assert_eq!(taken, expected);
    for (json, reason) in [
        (r#"{"example":8}"#, "no such class"),
        (r#"{"example":-1}"#, "invalid value"),
        (r#""forget""#, "unknown variant `forget`"),
        ("", "EOF"),
    ] {
        let answer = teach(json);
        check_status(&answer, 400);
        assert!(answer.contains(reason), "{json}: {answer}");
    }
    check_status(&get(served.server.address(), "/teach", ""), 405);
    let served = serve(Some(TOKEN));
    let address = served.server.address();
    check_status(&post_to("/teach", address, r#""undo""#, ""), 401);
    let long = format!("{{\"add\":\"{}\"}}", "x".repeat(5000));
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    check_status(&post_to("/teach", address, &long, &bearer), 413);
    assert!(served.host.1.lock().unwrap().is_empty());
}

#[test]
fn pictures_and_events_come_as_they_are_shown() {
    let served = serve(None);
    let address = served.server.address();
    served.feed.tell(Topic::Status, r#"{"frames":1}"#);
    served.feed.show(Arc::from(*b"first"));
    std::thread::scope(|scope| {
        let (heard, first_event) = crossbeam_channel::bounded(1);
        let events = scope.spawn(move || {
            let mut stream = connect(address);
            let request = format!("GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            let mut buffer = [0; 512];
            loop {
                let n_bytes = stream.read(&mut buffer).unwrap();
                text.push_str(&String::from_utf8_lossy(&buffer[..n_bytes]));
                if n_bytes == 0 {
                    return text;
                }
                if text.contains("frames") {
                    // One event is enough.
                    let _ = heard.try_send(());
                }
            }
        });
        let pictures = scope.spawn(|| {
            let mut stream = connect(address);
            let request = format!("GET /stream.mjpg HTTP/1.1\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            let mut buffer = [0; 512];
            while !text.contains("second") {
                let n_bytes = stream.read(&mut buffer).unwrap();
                assert!(n_bytes > 0, "{text}");
                text.push_str(&String::from_utf8_lossy(&buffer[..n_bytes]));
                if text.contains("first") {
                    served.feed.show(Arc::from(*b"second"));
                }
            }
            text
        });
        let pictures = pictures.join().unwrap();
        assert!(pictures.contains("multipart/x-mixed-replace"), "{pictures}");
        first_event.recv().unwrap();
        // The stream ends with the server.
        drop(served.server);
        let events = events.join().unwrap();
        assert!(
            events.contains("event: status\ndata: {\"frames\":1}\n\n"),
            "{events}"
        );
    });
    assert_eq!(0, served.feed.n_viewers());
}

#[test]
fn only_who_shows_the_token_comes_in() {
    let served = serve(Some(TOKEN));
    let address = served.server.address();
    check_status(&get(address, "/", ""), 401);
    check_status(&get(address, "/?token=wrong-token", ""), 401);
    check_status(&get(address, "/", "Cookie: vitscope=wrong-token\r\n"), 401);
    check_status(&post(address, "{}", "Authorization: Bearer x\r\n"), 401);
    let answer = get(address, &format!("/?token={TOKEN}"), "");
    check_status(&answer, 303);
    let cookie = format!("set-cookie: vitscope={TOKEN}; HttpOnly; SameSite=Strict; Path=/");
    assert!(
        answer.contains(&cookie) && answer.contains("location: /\r\n"),
        "{answer}"
    );
    let cookie = format!("Cookie: other=1; vitscope={TOKEN}\r\n");
    check_status(&get(address, "/", &cookie), 200);
    check_status(&post(address, "{}", &cookie), 204);
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    check_status(&get(address, "/snapshot.png", &bearer), 200);
}

#[test]
fn other_machines_need_a_token_that_is_hard_to_guess() {
    let start = |address: &str, token: Option<&str>| {
        let host = Arc::new(Recorder::default());
        let token = token.map(str::to_owned);
        let served = Server::start(address.parse().unwrap(), token, host, Arc::default());
        served.map(|_| ()).map_err(|error| error.to_string())
    };
    let open = start("0.0.0.0:0", None).unwrap_err();
    assert!(
        open.contains("0.0.0.0:0") && open.contains("--token"),
        "{open}"
    );
    let simple = start("0.0.0.0:0", Some("1234")).unwrap_err();
    assert!(
        simple.contains("at least 8") && !simple.contains("1234"),
        "{simple}"
    );
    start("0.0.0.0:0", Some(TOKEN)).unwrap();
}

#[test]
fn a_port_that_is_taken_is_one_sentence() {
    let served = serve(None);
    let address = served.server.address();
    let again = Server::start(address, None, Arc::new(Recorder::default()), Arc::default());
    let error = again.err().unwrap().to_string();
    assert!(
        error.contains(&format!("cannot serve at {address}")) && error.contains("in use"),
        "{error}"
    );
}

/// Returns the number of connections at `address` that this side has not closed, from the system's own table.
fn open_connections(address: SocketAddr) -> usize {
    const OPEN: [&str; 2] = ["01", "08"];
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let of_server = |line: &&str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns[1].ends_with(&port) && OPEN.contains(&columns[3])
    };
    table.lines().skip(1).filter(of_server).count()
}

#[test]
fn it_goes_on_serving_whatever_comes() {
    let served = serve(Some(TOKEN));
    let address = served.server.address();
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    check_status(&get(address, "/", &bearer), 200);

    // Each request gets the appropriate response.
    let long = "x".repeat(9000);
    let many: String = (0..100).map(|i| format!("X-{i}: y\r\n")).collect();
    let length = |length: &str| {
        format!(
            "POST /control HTTP/1.1\r\nHost: h\r\n{bearer}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let head = |line: &str| format!("{line}\r\nHost: h\r\n{bearer}\r\n");
    let hostile = [
        (431, format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n")),
        (431, format!("GET /{long} HTTP/1.1\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{many}\r\n")),
        (400, "\u{0}\u{1}\u{2}\u{3}\r\n\r\n".into()),
        (400, "\u{16}\u{3}\u{1} TLS perhaps\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nno colon\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: h".into()),
        (400, "SSH-2.0-OpenSSH_9.2\r\n\r\n".into()),
        (401, "GET /../../etc/passwd HTTP/1.1\r\n\r\n".into()),
        (401, "GET / HTTP/1.0\r\n\r\n".into()),
        (404, head("GET /../../../../etc/passwd HTTP/1.1")),
        (404, head("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1")),
        (404, head("GET //etc/passwd HTTP/1.1")),
        (404, head("GET http://evil.example/ HTTP/1.1")),
        (405, head("DELETE / HTTP/1.1")),
        (405, head("POST /stream.mjpg HTTP/1.1")),
        (405, head("PUT /control HTTP/1.1")),
        (405, head("GET /control HTTP/1.1")),
        (415, head("POST /control HTTP/1.1")),
        (413, length("5000")),
        (413, length("18446744073709551615")),
        (400, length("-1")),
        (400, length("many")),
        (400, length("10")),
        (400, format!("{}{{\"alpha\":", length("9"))),
        (400, format!("{}[1,2,3]", length("7"))),
        (400, format!("{}\u{7f}\u{7f}\u{7f}", length("3"))),
        (
            411,
            format!(
                "POST /control HTTP/1.1\r\nHost: h\r\n{bearer}Transfer-Encoding: chunked\r\n\r\n5\r\n{{}}\r\n0\r\n\r\n"
            ),
        ),
        (
            403,
            format!("GET / HTTP/1.1\r\nHost: h\r\nOrigin: http://evil.example\r\n{bearer}\r\n"),
        ),
        (
            403,
            format!("GET / HTTP/1.1\r\nHost: h\r\nOrigin: null\r\n{bearer}\r\n"),
        ),
    ];
    for (status, request) in &hostile {
        check_status(&ask(address, request.as_bytes()), *status);
    }

    // Deep nesting, wrong tokens, and connections that send nothing or hang up.
    let nested = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    check_status(&post(address, &nested, &bearer), 400);
    for guess in 0..10 {
        check_status(
            &get(address, &format!("/?token=guess-{guess}-guess"), ""),
            401,
        );
    }
    for _ in 0..10 {
        drop(connect(address));
    }

    // 200 connections stay open, half of them with the beginning of a request: new requests are served all the same.
    let mut idle: Vec<TcpStream> = (0..200).map(|_| connect(address)).collect();
    for stream in idle.iter_mut().step_by(2) {
        // The connection may already have been closed.
        let _ = stream.write_all(b"GET / HT");
    }
    for _ in 0..5 {
        check_status(&get(address, "/", &bearer), 200);
    }
    drop(idle);

    // The server does not wait for a client that reads nothing.
    let mut stuck = connect(address);
    let request = format!("GET /stream.mjpg HTTP/1.1\r\nHost: h\r\n{bearer}\r\n");
    stuck.write_all(request.as_bytes()).unwrap();
    let picture: Arc<[u8]> = vec![0; 1 << 20].into();
    let started = Instant::now();
    while served.feed.n_viewers() == 0 {
        assert!(started.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    while served.feed.n_viewers() > 0 {
        assert!(started.elapsed() < PATIENCE);
        served.feed.show(Arc::clone(&picture));
        std::thread::yield_now();
    }
    check_status(&get(address, "/", &bearer), 200);
    drop(stuck);

    // All of them are gone, and every slot is free again.
    let started = Instant::now();
    while open_connections(address) > 0 {
        assert!(started.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let streams: Vec<TcpStream> = (0..30)
        .map(|_| {
            let mut stream = connect(address);
            let request = format!("GET /events HTTP/1.1\r\nHost: h\r\n{bearer}\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).unwrap();
            assert_eq!(b"HTTP/1.1 200", &status);
            stream
        })
        .collect();
    check_status(&get(address, "/", &bearer), 200);
    drop(streams);
}
