//! The page in a browser: what a user sees when a slider moves, in headless Chromium driven by WebDriver.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use vitscope::explain::Method;
use vitscope::live::{Address, Audience, Event, Live, Page, Teach, Wanted};
use vitscope::plugin::{Settings, SyncMode};

use crate::common::connect;

/// Time after which an expected event counts as missing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The Home key in WebDriver's notation: a slider goes to its lowest value.
const HOME: &str = "\u{e011}";
const END: &str = "\u{e010}";

/// A browser, driven over HTTP.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
}

impl Browser {
    /// Starts a browser; `None` if there is none to drive. `make test` installs one on Debian.
    fn start() -> Option<Self> {
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn();
        if driver
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            return None;
        }
        let mut driver = driver.unwrap();
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let mut browser = Self {
            driver,
            address: ([127, 0, 0, 1], port.unwrap()).into(),
            session: String::new(),
        };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
        ];
        let options =
            json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let session = browser.call("POST", "/session", &options);
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let path = format!("{}{path}", self.session);
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let mut stream = connect(self.address);
        stream.write_all(request.as_bytes()).unwrap();
        let json = body_of_answer(BufReader::new(stream));
        let json: Value = serde_json::from_slice(&json).unwrap();
        let value = &json["value"];
        assert!(value["error"].is_null(), "{path}: {value}");
        value.clone()
    }

    fn run(&self, script: &str) -> Value {
        self.call(
            "POST",
            "/execute/sync",
            &json!({"script": script, "args": []}),
        )
    }

    /// Returns the path of the element that a selector finds.
    fn element(&self, selector: &str) -> String {
        let found = json!({"using": "css selector", "value": selector});
        let found = self.call("POST", "/element", &found);
        let id = found.as_object().unwrap().values().next().unwrap();
        format!("/element/{}", id.as_str().unwrap())
    }

    fn press(&self, selector: &str, keys: &str) {
        let path = format!("{}/value", self.element(selector));
        self.call("POST", &path, &json!({"text": keys}));
    }

    fn click(&self, selector: &str) {
        let path = format!("{}/click", self.element(selector));
        self.call("POST", &path, &json!({}));
    }

    fn png(&self, path: &str) -> Vec<u8> {
        let png = self.call("GET", path, &json!({}));
        STANDARD.decode(png.as_str().unwrap()).unwrap()
    }

    /// Returns the video as shown on the screen.
    fn video(&self) -> image::RgbImage {
        let path = format!("{}/screenshot", self.element("#video"));
        image::load_from_memory(&self.png(&path)).unwrap().to_rgb8()
    }

    /// Returns the video as soon as it is as `expected`.
    fn video_when(&self, mut expected: impl FnMut(&image::RgbImage) -> bool) -> image::RgbImage {
        let started = Instant::now();
        loop {
            let video = self.video();
            if expected(&video) {
                return video;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{}",
                self.run("return document.body.innerText")
            );
        }
    }

    /// Waits for a condition on the page.
    fn wait(&self, condition: &str) {
        let started = Instant::now();
        while self.run(&format!("return Boolean({condition})")) != Value::Bool(true) {
            let text = self.run("return document.body.innerText");
            assert!(started.elapsed() < PATIENCE, "{condition}: {text}");
        }
    }
}

/// Reads the body of a response; the driver neither closes a connection nor answers one that is half closed.
fn body_of_answer(mut stream: impl BufRead) -> Vec<u8> {
    let mut length = 0;
    let mut line = String::new();
    while stream.read_line(&mut line).unwrap() > 2 {
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    body
}

impl Drop for Browser {
    fn drop(&mut self) {
        // After a failure, do not also wait for a browser that does not end.
        if !self.session.is_empty() && !std::thread::panicking() {
            self.call("DELETE", "", &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Stores the address of the page, and ends the run with the test.
struct Serving<'a> {
    address: &'a Mutex<Option<SocketAddr>>,
    problems: Vec<String>,
}

impl Audience for Serving<'_> {
    fn event(&mut self, event: Event) {
        match event {
            Event::Serving(address) => *self.address.lock().unwrap() = Some(address),
            Event::Problem(problem) => self.problems.push(problem),
            _ => (),
        }
    }
}

/// Returns the mean difference of two pictures' samples, out of 255.
fn difference(a: &image::RgbImage, b: &image::RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let pairs = a.as_raw().iter().zip(b.as_raw());
    let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len() as f64
}

#[test]
fn moving_a_slider_changes_the_picture() {
    serve(&live("red-patches", None), try_page);
}

#[test]
fn classes_are_named_taught_and_saved_on_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    let teach = Teach {
        folder: head.clone(),
        classes: vec!["ball".into()],
    };
    if serve(&live("cifar10", Some(teach)), teach_on_page) {
        assert!(head.join("head.safetensors").is_file());
    }
}

fn live(model: &str, teach: Option<Teach>) -> Live {
    let Ok(source) = "test:ball".parse::<Address>();
    let mut settings = Settings::default();
    settings.request.model = model.into();
    settings.request.methods = vec![Method::Rollout];
    settings.sync_mode = SyncMode::Latest;
    Live {
        address: source,
        again: false,
        wanted: Wanted {
            size: Some((320, 240)),
            fps: Some(15),
        },
        settings,
        outputs: Vec::new(),
        page: Some(Page {
            address: "127.0.0.1:0".parse().unwrap(),
            token: None,
        }),
        collect: None,
        gates: None,
        teach,
    }
}

/// Runs until `try_page` has tried the page; returns `false` if there is no browser.
fn serve(live: &Live, try_page: impl Fn(&Browser) + Sync) -> bool {
    let (cancel, address) = (AtomicBool::new(false), Mutex::new(None));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut serving = Serving {
                address: &address,
                problems: Vec::new(),
            };
            let status = live.run(&cancel, &mut serving);
            assert!(serving.problems.is_empty(), "{:?}", serving.problems);
            status
        });
        let tried = scope.spawn(|| {
            let started = Instant::now();
            while address.lock().unwrap().is_none() {
                assert!(started.elapsed() < PATIENCE);
                std::thread::yield_now();
            }
            let address = address.lock().unwrap().unwrap();
            let browser = Browser::start();
            match &browser {
                Some(browser) => {
                    let url = format!("http://{address}/");
                    browser.call("POST", "/url", &json!({"url": url}));
                    try_page(browser);
                }
                None => eprintln!("there is no chromedriver, the page is not tried"),
            }
            browser.is_some()
        });
        let tried = tried.join();
        cancel.store(true, Ordering::SeqCst);
        running.join().unwrap().unwrap();
        tried.unwrap()
    })
}

fn teach_on_page(browser: &Browser) {
    browser.wait("!document.querySelector('#teach').hidden");
    browser.wait(
        "document.querySelector('#taught-note').innerText.includes('no class has an example')",
    );
    browser.press("#new-class", "other");
    browser.click("#add-class button");
    browser.wait("document.querySelectorAll('#taught li').length === 2");
    browser.click("#taught li:nth-child(1) button");
    browser.wait("document.querySelector('#taught-note').innerText.includes('only \"ball\"')");
    browser.click("#taught li:nth-child(2) button");
    browser.wait("document.querySelector('#taught-note').innerText === 'Not saved.'");
    // The model's answers and the selectable classes are the taught ones.
    browser.wait("/^(ball|other)/.test(document.querySelector('#bars').innerText)");
    browser.wait("[...document.querySelector('#target').options].map(({ text }) => text).join() === 'predicted,ball,other'");
    browser.press("#taught li:nth-child(2) input", "s\n");
    browser.wait("document.querySelector('#target').options[2].text === 'others'");
    browser.click("#taught li:nth-child(2) button");
    browser.wait("document.querySelector('#taught').innerText.includes('2 examples')");
    browser.click("#undo");
    browser.wait("!document.querySelector('#taught').innerText.includes('2 examples')");
    browser.click("#save");
    browser.wait("document.querySelector('#taught-note').innerText === ''");
    let shot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page-teach.png");
    fs::write(shot, browser.png("/screenshot")).unwrap();
}

fn try_page(browser: &Browser) {
    browser.wait("document.querySelector('#video').naturalWidth === 320");
    browser.wait("document.querySelector('#bars').innerText.includes('%')");
    browser.wait("document.querySelector('#status').innerText.includes('fps')");

    // A still picture changes only with the slider.
    browser.click("#freeze");
    browser.wait("document.querySelector('#freeze').getAttribute('aria-pressed') === 'true'");
    browser.press("#alpha", HOME);
    let mut last = browser.video();
    let plain = browser.video_when(|now| {
        let still = difference(now, &last) < 0.2;
        last = now.clone();
        still && difference(now, &gray(now)) < 1.0
    });
    browser.press("#alpha", END);
    let colored = browser.video_when(|now| difference(now, &plain) > 5.0);
    assert!(
        difference(&colored, &gray(&colored)) > 5.0,
        "heat has colors"
    );
    browser.press("#alpha", HOME);
    browser.video_when(|now| difference(now, &plain) < 0.5);

    // The votes of every gate are drawn, on one canvas per gate: two more than blocks.
    browser.press("#method", "diffmask");
    browser.click("#layers");
    browser.wait("document.querySelectorAll('#gates canvas').length === 6");
    browser.press("#alpha", END);

    let shot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png");
    fs::write(shot, browser.png("/screenshot")).unwrap();
}

/// Returns the picture without its colors.
fn gray(picture: &image::RgbImage) -> image::RgbImage {
    let gray = image::imageops::grayscale(picture);
    image::RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        image::Rgb([gray.get_pixel(x, y).0[0]; 3])
    })
}
