//! Models of the Hugging Face hub: a server next to the test plays the hub.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tiny_http::{Header, Request, Response, Server};

use crate::common::fixture;

/// A hub with the model `zoo/vit-a`, and the cache of its user.
struct Hub {
    server: Server,
    cache: tempfile::TempDir,
    /// The files of the model on the hub.
    files: &'static [&'static str],
    /// Contents of the files that differ from the fixture.
    texts: Vec<(&'static str, &'static str)>,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Hub {
    fn new(files: &'static [&'static str]) -> Self {
        Self::with(files, &[])
    }

    fn with(files: &'static [&'static str], texts: &[(&'static str, &'static str)]) -> Self {
        Self {
            texts: texts.to_vec(),
            server: Server::http("127.0.0.1:0").unwrap(),
            cache: tempfile::tempdir().unwrap(),
            files,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vitscope"));
        command
            .args(args)
            .env("HF_HOME", self.cache.path())
            .env(
                "HF_ENDPOINT",
                format!("http://{}", self.server.server_addr()),
            )
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Serves until the program has ended; returns what it printed and what it requested.
    fn serve(&self, args: &[&str]) -> (Output, Vec<String>) {
        let mut child: Child = self.command(args).spawn().unwrap();
        let mut asked = Vec::new();
        while child.try_wait().unwrap().is_none() {
            let request = self.server.recv_timeout(Duration::from_millis(20)).unwrap();
            if let Some(request) = request {
                asked.push(request.url().to_owned());
                self.answer(request);
            }
        }
        (child.wait_with_output().unwrap(), asked)
    }

    fn answer(&self, request: Request) {
        let header = |name: &str, value: &str| Header::from_bytes(name, value).unwrap();
        let url = request.url().to_owned();
        if url.starts_with("/api/models/zoo/vit-a") {
            let siblings: Vec<_> = self
                .files
                .iter()
                .map(|file| serde_json::json!({"rfilename": file}))
                .collect();
            let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
            return request
                .respond(Response::from_string(info.to_string()))
                .unwrap();
        }
        let file = url
            .strip_prefix("/zoo/vit-a/resolve/main/")
            .filter(|file| self.files.contains(file));
        let Some(file) = file else {
            return request.respond(Response::empty(404)).unwrap();
        };
        let text = self.texts.iter().find(|(name, _)| *name == file);
        let bytes = match text {
            Some((_, text)) => text.as_bytes().to_vec(),
            None => fs::read(fixture("vit_a").join(file)).unwrap(),
        };
        let range = request
            .headers()
            .iter()
            .find(|header| header.field.equiv("Range"))
            .unwrap();
        let (from, to) = range
            .value
            .as_str()
            .trim_start_matches("bytes=")
            .split_once('-')
            .unwrap();
        let from: usize = from.parse().unwrap();
        let to: usize = to.parse().map_or(bytes.len(), |last: usize| last + 1);
        let response = Response::from_data(&bytes[from..to])
            .with_status_code(206)
            .with_header(header("ETag", &format!("\"{file}\"")))
            .with_header(header("X-Repo-Commit", COMMIT))
            .with_header(header(
                "Content-Range",
                &format!("bytes {from}-{}/{}", to - 1, bytes.len()),
            ));
        request.respond(response).unwrap();
    }
}

const WHOLE: &[&str] = &[
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_model_of_the_hub_is_downloaded_once() {
    let hub = Hub::new(WHOLE);
    let (output, asked) = hub.serve(&["models", "inspect", "zoo/vit-a"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let described = text(&output.stdout);
    assert!(
        described.contains("5: airplane, bird, cat, dog, ship"),
        "{described}"
    );
    assert!(
        asked.iter().any(|url| url.ends_with("/model.safetensors")),
        "{asked:?}"
    );
    assert!(
        !asked.iter().any(|url| url.ends_with("README.md")),
        "what no one reads: {asked:?}"
    );

    let (output, asked) = hub.serve(&["models", "inspect", "zoo/vit-a"]);
    assert_eq!(text(&output.stdout), described);
    assert!(asked.is_empty(), "it is in the cache: {asked:?}");

    let (output, asked) = hub.serve(&["models", "pull", "zoo/vit-a"]);
    let folder = text(&output.stdout);
    let folder = Path::new(folder.trim_end());
    assert!(folder.starts_with(hub.cache.path()), "{folder:?}");
    assert!(folder.join("model.safetensors").exists());
    assert!(!asked.is_empty(), "a pull looks for a newer version");
}

#[test]
fn what_the_hub_does_not_give_is_said_in_one_sentence() {
    let hub = Hub::new(&[
        "config.json",
        "preprocessor_config.json",
        "pytorch_model.bin",
    ]);
    let refused = |args: &[&str], edit: fn(&mut Command) -> &mut Command, expected: &[&str]| {
        let mut command = hub.command(args);
        let output = edit(&mut command).output().unwrap();
        check_refusal(&output, expected);
    };
    let inspect = ["models", "inspect", "zoo/vit-a"];
    let (output, _) = hub.serve(&inspect);
    check_refusal(
        &output,
        &[
            "hub model has no model.safetensors, only pytorch_model.bin",
            "\"zoo/vit-a\"",
        ],
    );
    let (output, _) = hub.serve(&["models", "inspect", "zoo/none"]);
    check_refusal(
        &output,
        &["404", "the hub has no such model", "\"zoo/none\""],
    );
    refused(
        &inspect,
        |command| command.env("HF_HUB_OFFLINE", "1"),
        &["not in the cache", "HF_HUB_OFFLINE is set"],
    );
    // Nothing listens on port zero.
    refused(
        &["models", "pull", "zoo/vit-a"],
        |command| command.env("HF_ENDPOINT", "http://127.0.0.1:0"),
        &["could not be downloaded", "\"zoo/vit-a\""],
    );
}

#[test]
fn the_hubs_own_variables_say_where_its_cache_is() {
    let hub = Hub::new(WHOLE);
    let (output, _) = hub.serve(&["models", "pull", "zoo/vit-a"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let moved = tempfile::tempdir().unwrap();
    let [hubs, caches] = ["hubs", "caches"].map(|name| moved.path().join(name));
    fs::create_dir_all(caches.join("huggingface")).unwrap();
    fs::rename(hub.cache.path().join("hub"), &hubs).unwrap();
    let inspect = |variables: &[(&str, &Path)]| {
        let mut command = hub.command(&["models", "inspect", "zoo/vit-a"]);
        command
            .env("HF_HUB_OFFLINE", "1")
            .env("HOME", "/nonexistent");
        for name in [
            "HF_HOME",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "XDG_CACHE_HOME",
        ] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        command.output().unwrap().status.success()
    };
    assert!(!inspect(&[]));
    assert!(inspect(&[("HF_HUB_CACHE", &hubs), ("HF_HOME", &caches)]));
    assert!(inspect(&[("HUGGINGFACE_HUB_CACHE", &hubs)]));
    assert!(!inspect(&[
        ("HF_HUB_CACHE", &caches),
        ("HUGGINGFACE_HUB_CACHE", &hubs)
    ]));
    fs::rename(&hubs, caches.join("huggingface/hub")).unwrap();
    assert!(inspect(&[("XDG_CACHE_HOME", &caches)]));
}

#[test]
fn a_processors_file_is_pulled_and_a_model_of_another_kind_is_refused_as_such() {
    let files = [(
        "processor_config.json",
        r#"{"image_processor": {"size": 32}}"#,
    )];
    let hub = Hub::with(
        &["config.json", "model.safetensors", "processor_config.json"],
        &files,
    );
    let (output, _) = hub.serve(&["models", "inspect", "zoo/vit-a"]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let timm = [("config.json", r#"{"architecture": "vit_tiny_patch16_224"}"#)];
    let hub = Hub::with(&["config.json", "model.safetensors"], &timm);
    let (output, _) = hub.serve(&["models", "inspect", "zoo/vit-a"]);
    check_refusal(
        &output,
        &[
            "timm's configuration of \"vit_tiny_patch16_224\"",
            "\"zoo/vit-a\"",
        ],
    );
}

fn check_refusal(output: &Output, expected: &[&str]) {
    let error = text(&output.stderr);
    assert!(!output.status.success());
    for part in expected {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
}
