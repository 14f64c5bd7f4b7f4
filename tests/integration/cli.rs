//! The program from the user's point of view: what it writes and prints, its exit codes, and what it refuses.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use vitscope::sidecar::Record;

use crate::common::{clip, ffmpeg, fixture, frame_times, names_in, run_tool};

/// A temporary folder with `in.mp4`, a clip of 320x240 pixels.
struct Bench {
    folder: tempfile::TempDir,
}

/// Output of a finished run.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new(frames: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        clip(&folder.path().join("in.mp4"), "320x240", frames);
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the command for the program in this folder, with a small model and the options in `args`.
    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vitscope"));
        command
            .args(args.split_whitespace())
            .stdin(Stdio::null())
            .env_remove("RUST_LOG")
            .current_dir(self.folder.path())
            .env("RUST_BACKTRACE", "1");
        let explains = args.starts_with("file") || args.starts_with("still");
        if explains && !args.contains("--model") && !args.contains("--help") {
            command.arg("--model").arg(fixture("vit_a"));
        }
        command
    }

    fn run(&self, args: &str) -> Ended {
        let output = self.command(args).output().unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn names(&self) -> Vec<String> {
        names_in(self.folder.path())
    }

    /// Checks that `args` ends with `code`, prints exactly `error`, and leaves the folder unchanged.
    fn check_refused(&self, args: &str, code: i32, error: &str) {
        self.check_refused_as_it_is(&format!("{args} --progress none"), code, error);
    }

    /// Checks the same for a subcommand that shows no progress.
    fn check_refused_as_it_is(&self, args: &str, code: i32, error: &str) {
        let before = self.names();
        let ended = self.run(args);
        assert_eq!(error, ended.stderr.trim_end(), "{args}");
        assert_eq!(Some(code), ended.code, "{args}");
        assert_eq!(before, self.names(), "{args}");
    }
}

/// A run whose progress is read line by line.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(bench: &Bench, args: &str) -> Self {
        let mut child = bench
            .command(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads until a line contains `text`.
    fn wait_for(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line.contains(text) {
                return line;
            }
            read.push(line);
        }
        panic!("no line with {text:?} in {read:#?}");
    }

    /// Reads progress until `secs` of the video are done.
    fn wait_for_secs(&mut self, secs: f64) {
        loop {
            let line = self.wait_for("\"frames\"");
            let progress: serde_json::Value = serde_json::from_str(&line).unwrap();
            if progress["secs"].as_f64().unwrap() >= secs {
                return;
            }
        }
    }

    fn signal(&self, name: &str) {
        // The shell's own `kill`, because the program `kill` is not installed everywhere.
        run_tool("sh", &["-c", &format!("kill -{name} {}", self.child.id())]);
    }

    /// Returns the exit code and the rest of standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let rest: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        (self.child.wait().unwrap().code(), rest.join("\n"))
    }
}

fn records(text: &str) -> Vec<Record> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Returns the number of frames that ffmpeg decodes from `file`.
fn decoded_frames(file: &Path) -> usize {
    frame_times(file).len()
}

#[test]
fn a_file_comes_out_with_sidecar_and_sheet() {
    let bench = Bench::new(30);
    let ended = bench.run("file in.mp4 out.mp4 --scores s.jsonl --sheet s.png --progress none");
    assert_eq!((Some(0), ""), (ended.code, ended.stderr.as_str()));
    let verified = "verified: frames 30 in, 30 out; largest time error 0.000 ms; ";
    assert!(ended.stdout.contains(verified), "{}", ended.stdout);
    assert!(
        ended.stdout.starts_with("30 frames, 30 explained; "),
        "{}",
        ended.stdout
    );
    for name in ["out.mp4", "s.jsonl", "s.png"] {
        assert!(
            ended.stdout.contains(&format!("wrote \"{name}\"")),
            "{}",
            ended.stdout
        );
    }
    assert_eq!(["in.mp4", "out.mp4", "s.jsonl", "s.png"], *bench.names());

    let records = records(&fs::read_to_string(bench.path("s.jsonl")).unwrap());
    let times: Vec<u64> = records.iter().map(|record| record.pts).collect();
    assert_eq!(frame_times(&bench.path("in.mp4")), times);
    assert_eq!(times, frame_times(&bench.path("out.mp4")));
    for (seq, record) in (0..).zip(&records) {
        assert_eq!((seq, true), (record.seq, record.explained));
        let [map] = record.maps.as_deref().unwrap() else {
            panic!("{record:?}")
        };
        assert_eq!("chefer", map.method);
        assert_eq!(Some((4, 4)), record.grid);
        assert_eq!(16, map.attribution.len());
        let class = map.class.as_ref().unwrap();
        assert!(class.index < 5 && class.label.is_some(), "{class:?}");
        assert!((0.2..=1.0).contains(&class.probability), "{class:?}");
    }
    assert!(image::open(bench.path("s.png")).unwrap().width() > 320);
}

#[test]
fn every_third_frame_is_explained_and_the_sidecar_says_which() {
    let bench = Bench::new(10);
    let args = "file in.mp4 out.mkv --every 3 --batch 2 --scores - --progress none";
    let ended = bench.run(args);
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("10 frames, 4 explained, 6 with the last explanation")
    );
    let shown: Vec<_> = records(&ended.stdout)
        .iter()
        .map(|record| record.shows)
        .collect();
    assert_eq!([0, 0, 0, 3, 3, 3, 6, 6, 6, 9].map(Some), *shown);
}

#[test]
fn start_and_end_cut_the_video() {
    let bench = Bench::new(50);
    let args = "file in.mp4 out.mp4 --start 0.4 --end 00:00:01.2 --scores - --progress none";
    let ended = bench.run(args);
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    let times: Vec<_> = records(&ended.stdout)
        .iter()
        .map(|record| record.pts)
        .collect();
    let expected: Vec<u64> = (0..20).map(|frame| 40_000_000 * frame).collect();
    assert_eq!(expected, times);
    assert_eq!(expected, frame_times(&bench.path("out.mp4")));
}

#[test]
fn side_by_side_is_twice_as_wide() {
    let bench = Bench::new(3);
    let ended = bench.run("file in.mp4 out.mp4 --mode side-by-side --progress none");
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    ffmpeg(
        &format!("-i {} -frames:v 1", bench.path("out.mp4").display()),
        &bench.path("out.png"),
    );
    assert_eq!(
        (640, 240),
        image::image_dimensions(bench.path("out.png")).unwrap()
    );
}

#[test]
fn a_shrunk_model_with_a_threshold_says_when_it_is_not_sure() {
    let bench = Bench::new(2);
    let shrink = format!("models shrink {} --out small", fixture("vit_a").display());
    let ended = bench.run(&shrink);
    assert_eq!((Some(0), ""), (ended.code, ended.stderr.as_str()));
    assert!(
        ended
            .stdout
            .starts_with("wrote \"small\": weights 0.0 MB (before: 0.1 MB), sha256 "),
        "{}",
        ended.stdout
    );
    let exists = "error: output folder exists already: \"small\"";
    bench.check_refused_as_it_is(&shrink, 1, exists);

    let config = fs::read_to_string(bench.path("small/config.json")).unwrap();
    let config = config.replacen('{', "{\"not_sure_below\": 0.999,", 1);
    fs::write(bench.path("small/config.json"), config).unwrap();
    let inspected = bench.run("models inspect small").stdout;
    let line = "threshold    \"not sure\" if the probability of the best class is below 0.999\n";
    assert!(inspected.contains(line), "{inspected}");
    let ended = bench.run("file in.mp4 out.mp4 --model small --scores - --progress none");
    let records = records(&ended.stdout);
    assert_eq!(records.len(), 2, "{}", ended.stderr);
    assert!(records.iter().all(|record| record.not_sure == Some(true)));
}

#[test]
fn a_model_without_a_head_shows_its_map_and_no_class() {
    let bench = Bench::new(3);
    fs::create_dir(bench.path("model")).unwrap();
    for name in names_in(&fixture("vit_a")) {
        fs::copy(
            fixture("vit_a").join(&name),
            bench.path("model").join(&name),
        )
        .unwrap();
    }
    let config = fs::read_to_string(bench.path("model/config.json")).unwrap();
    let headless = config.replace("ViTForImageClassification", "ViTModel");
    fs::write(bench.path("model/config.json"), headless).unwrap();
    let ended = bench.run("file in.mp4 out.mp4 --model model --scores - --progress none");
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    for record in records(&ended.stdout) {
        let maps = record.maps.unwrap();
        assert!(maps.len() == 1 && maps[0].class.is_none());
    }
    bench.check_refused(
        "file in.mp4 new.mp4 --model model --target bird",
        1,
        "error: model has no classifier, so it has no class \"bird\"",
    );
}

#[test]
fn wrong_usage_exits_with_two_and_names_the_option() {
    let bench = Bench::new(1);
    let check = |args: &str, option: &str| {
        let before = bench.names();
        let ended = bench.run(args);
        assert_eq!(Some(2), ended.code, "{args}");
        assert!(ended.stderr.contains(option), "{args}: {}", ended.stderr);
        assert_eq!(before, bench.names(), "{args}");
    };
    check("file in.mp4 out.mp4 --every 0", "--every <N>");
    check("file in.mp4 out.mp4 --batch 0", "--batch <N>");
    check("file in.mp4 out.mp4 --alpha 1.5", "--alpha <ALPHA>");
    check(
        "file in.mp4 out.mp4 --mode cloud",
        "[possible values: overlay, side-by-side",
    );
    check(
        "file in.mp4 out.mp4 --method magic",
        "[possible values: diffmask, ia-vit, gradmask",
    );
    check("file in.mp4 out.mp4 --start 1:99", "--start <TIME>");
    check("file in.mp4 out.mp4 --device tpu", "--device <DEVICE>");
    check(
        "file in.mp4 out.mp4 --precision int4",
        "--precision <NUMBERS>",
    );
    check("file in.mp4 out.mp4 --reuse 1.5", "--reuse <DRIFT>");
    check("file in.mp4", "<OUT>");
    check("still in.png", "<IN... OUT>");
    // Whatever stands between the pictures.
    check("still in.png --mode dim", "<IN... OUT>");
    check("still in.png --mode dimmer out.png", "--mode <MODE>");
    check("explain", "unrecognized subcommand");
}

#[test]
fn an_address_never_shows_its_password_in_a_refusal() {
    let bench = Bench::new(1);
    let address = "rtsp://admin:s3/cr#et@127.0.0.1:1/x?key=s3cr";
    for args in [
        format!("live 0 {address}"),
        format!("live --{address}"),
        format!("live --loop --model vit_a {address}"),
        format!("live test: --model vit_a --rtsp-out http{}", &address[4..]),
        format!("file {address} out.mp4 --model vit_a"),
        "file admin:s3cr#et@host/x.mp4 out.mp4 --model vit_a".to_owned(),
        format!("file in.mp4 {address}/out.mp4 --model vit_a"),
        format!("still {address} out.png --model vit_a"),
        format!("still in.png {address}.png --model vit_a"),
        format!("models inspect {address}"),
        format!("file in.mp4 out.mp4 --model {address}"),
        "live rtsp://admin:s3cr#et".to_owned(),
        "live rtsp://admin:s3cret:554/x".to_owned(),
        "live admin:s3cr#et".to_owned(),
        "live http://127.0.0.1:1/a?s3cr --no-window --duration 1".to_owned(),
        "live test: --model vit_a --rtsp-out rtsp://u:s3cret".to_owned(),
        "live test: --model vit_a --scores tcp://u:s3cret".to_owned(),
        "file rtsp://u:s3cret out.mp4 --model vit_a".to_owned(),
        "file in.mp4 out.mp4 --model vit_a --scores admin:s3cret@host".to_owned(),
        r"file in.mp4 out.mp4 --model vit_a --scores http:\\admin:s3cret@host".to_owned(),
        "file in.mp4 rtsp://admin:s3/cr#et@host/x.mp4 --model vit_a".to_owned(),
        "still in.png out.png --model vit_a --sheet admin:s3cret@host.png".to_owned(),
        "live test: --no-window --duration 1 --collect http://127.0.0.1:9/x?pw=s3cret".to_owned(),
        "live test: --no-window --duration 1 --teach rtsp://u:s3cret@127.0.0.1:9/x".to_owned(),
    ] {
        let ended = bench.run(&args);
        assert!(
            matches!(ended.code, Some(1 | 2)),
            "{args}: {}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("s3"), "{args}: {}", ended.stderr);
        assert!(!ended.stderr.contains("cr#et"), "{args}: {}", ended.stderr);
    }
}

#[test]
fn help_names_every_subcommand_and_option() {
    let bench = Bench::new(1);
    let help = bench.run("--help").stdout;
    for subcommand in [
        "file", "still", "train", "eval", "bench", "methods", "models",
    ] {
        assert!(help.contains(&format!("  {subcommand} ")), "{help}");
    }
    let help = bench.run("file --help").stdout;
    for option in [
        "model",
        "method",
        "target",
        "every",
        "batch",
        "start",
        "end",
        "mode",
        "colormap",
        "alpha",
        "threshold",
        "upsample",
        "scores",
        "sheet",
        "audio",
        "codec",
        "crf",
        "overwrite",
        "progress",
        "device",
        "precision",
        "reuse",
        "threads",
        "quiet",
    ] {
        assert!(help.contains(&format!("--{option}")), "{option}: {help}");
    }
}

#[test]
fn reuse_is_told_and_refused_for_methods_that_cannot() {
    let bench = Bench::new(6);
    let ended = bench.run("file in.mp4 out.mp4 --method rollout --reuse 0.05");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let told = " % of the patches computed; ";
    assert!(ended.stdout.contains(told), "{}", ended.stdout);
    bench.check_refused(
        "file in.mp4 other.mp4 --method rollout,chefer --reuse 0.05",
        1,
        "error: method \"chefer\" needs passes of its own for every frame, which cannot be reused; diffmask, rollout \
         and raw-attention only read the model's forward pass",
    );
}

#[test]
fn outputs_that_cannot_be_are_refused_before_anything_is_written() {
    let bench = Bench::new(3);
    fs::write(bench.path("old.mp4"), "old").unwrap();
    fs::write(bench.path("old.jsonl"), "old").unwrap();
    let refused =
        |args: &str, error: &str| bench.check_refused(args, 1, &format!("error: {error}"));
    refused(
        "file in.mp4 in.mp4 --overwrite",
        "the output would overwrite the input: \"in.mp4\"",
    );
    refused(
        "file in.mp4 no/out.mp4",
        "the output directory does not exist: \"no/out.mp4\"",
    );
    refused(
        "file in.mp4 old.mp4",
        "the output already exists; use --overwrite to replace it: \"old.mp4\"",
    );
    refused(
        "file in.mp4 out.mp4 --scores old.jsonl",
        "the output already exists; use --overwrite to replace it: \"old.jsonl\"",
    );
    refused(
        "file in.mp4 out.mp4 --sheet no/sheet.png",
        "the output directory does not exist: \"no/sheet.png\"",
    );
    refused(
        "file in.mp4 out.mp4 --scores in.mp4 --overwrite",
        "the command already uses this file: \"in.mp4\"",
    );
    refused(
        "file in.mp4 out.mp4 --sheet out.mp4",
        "the command already uses this file: \"out.mp4\"",
    );
    refused(
        "file in.mp4 out.mp4 --scores a --sheet ./a",
        "the output would overwrite \"a\": \"./a\"",
    );
    refused(
        "file in.mp4 new.mp4/",
        "the output is a directory, expected a file to write: \"new.mp4/\"",
    );
    let pipe = bench.path("pipe.mp4");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    refused(
        "file in.mp4 pipe.mp4 --overwrite",
        "the output is not a regular file, expected a file to write: \"pipe.mp4\"",
    );
    refused(
        "file in.mp4 out.mp4 --sheet sheet.png/",
        "the output is the name of a directory, expected a file to write: \"sheet.png/\"",
    );
    refused(
        "file in.mp4 out.mp4 --scores /dev/null --overwrite",
        "the output is not a regular file, expected a file to write: \"/dev/null\"",
    );
    assert_eq!("old", fs::read_to_string(bench.path("old.mp4")).unwrap());
}

/// `/dev/full` accepts no bytes, like a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_in_one_sentence_and_nothing_is_left() {
    let bench = Bench::new(30);
    std::os::unix::fs::symlink("/dev/full", bench.path("out.mp4.part")).unwrap();
    let ended = bench.run("file in.mp4 out.mp4 --progress none");
    assert_eq!(
        "error: no space left on the disk: \"out.mp4\"",
        ended.stderr.trim_end()
    );
    assert_eq!(Some(1), ended.code);
    assert_eq!(["in.mp4"], bench.names().as_slice());
}

#[cfg(unix)]
#[test]
fn the_number_of_threads_changes_no_pixel() {
    let bench = Bench::new(3);
    let pixels = |threads: u32| {
        let out = bench.path(&format!("{threads}.mp4"));
        let ended = bench.run(&format!(
            "file in.mp4 {threads}.mp4 --threads {threads} --progress none"
        ));
        assert_eq!(Some(0), ended.code, "{}", ended.stderr);
        let hashes = [
            "-v",
            "error",
            "-i",
            out.to_str().unwrap(),
            "-map",
            "0:v",
            "-f",
            "framemd5",
            "-",
        ];
        run_tool("ffmpeg", &hashes).stdout
    };
    assert_eq!(pixels(1), pixels(3));
}

#[test]
fn what_is_no_video_is_refused_in_one_sentence() {
    let bench = Bench::new(50);
    let whole = fs::read(bench.path("in.mp4")).unwrap();
    fs::write(bench.path("cut.mp4"), &whole[..whole.len() / 2]).unwrap();
    fs::write(bench.path("text.mp4"), "text").unwrap();
    fs::write(bench.path("empty.mp4"), "").unwrap();
    ffmpeg("-f lavfi -i sine=duration=1", &bench.path("sound.mp4"));
    let refused =
        |args: &str, error: &str| bench.check_refused(args, 1, &format!("error: {error}"));
    refused(
        "file no.mp4 out.mp4",
        "no such file, expected a video: \"no.mp4\"",
    );
    refused(
        "file text.mp4 out.mp4",
        "not a playable video (Could not determine type of stream): \"text.mp4\"",
    );
    refused(
        "file empty.mp4 out.mp4",
        "the file is empty, expected a video: \"empty.mp4\"",
    );
    refused(
        "file cut.mp4 out.mp4",
        "the file is truncated and has no header (moov): \"cut.mp4\"",
    );
    refused(
        "file sound.mp4 out.mp4",
        "the file has audio but no video that GStreamer can read, expected a video: \"sound.mp4\"",
    );
    refused(
        "file in.mp4 out.xyz",
        "unknown output extension \"xyz\", expected one of mp4, m4v, mov, mkv, webm, ts: \"out.xyz\"",
    );
    refused(
        "file in.mp4 out.mp4 --start 5",
        "the start at 5 s is past the end at 2 s: \"in.mp4\"",
    );
    refused(
        "file in.mp4 out.mp4 --start 1 --end 0.5",
        "the end at 0.5 s is not after the start at 1 s: \"in.mp4\"",
    );
}

#[test]
fn a_video_that_ends_before_its_container_says_is_incomplete() {
    let bench = Bench::new(50);
    ffmpeg(
        &format!(
            "-i {} -c copy -movflags +faststart",
            bench.path("in.mp4").display()
        ),
        &bench.path("fast.mp4"),
    );
    let whole = fs::read(bench.path("fast.mp4")).unwrap();
    fs::write(bench.path("cut.mp4"), &whole[..whole.len() * 3 / 4]).unwrap();
    let ended = bench.run("file cut.mp4 out.mp4 --progress none");
    assert_eq!(Some(3), ended.code, "{}", ended.stderr);
    let said = "incomplete: the container claims 2.000 s, but its packets end at";
    assert!(ended.stderr.starts_with(said), "{}", ended.stderr);
    assert!(frame_times(&bench.path("out.mp4")).len() < 50);
}

#[test]
fn the_commands_of_the_readme_run() {
    let bench = Bench::new(5);
    ffmpeg(
        &format!("-i {} -frames:v 1", bench.path("in.mp4").display()),
        &bench.path("in.png"),
    );
    let readme = include_str!("../../README.md");
    let commands: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("vitscope "))
        .collect();
    assert!(commands.len() >= 3, "{commands:?}");
    for command in commands {
        let ended = bench.run(command);
        assert_eq!(Some(0), ended.code, "vitscope {command}: {}", ended.stderr);
    }
}

#[test]
fn a_model_that_cannot_be_is_refused() {
    let bench = Bench::new(3);
    let ended = bench.run("file in.mp4 out.mp4 --model ./no-such-model --progress none");
    assert_eq!(Some(1), ended.code);
    assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("no-such-model"), "{}", ended.stderr);
    assert_eq!(1, ended.stderr.lines().count(), "{}", ended.stderr);
    assert_eq!(["in.mp4"], *bench.names());
}

#[test]
fn a_target_that_is_no_class_is_refused() {
    let bench = Bench::new(3);
    bench.check_refused(
        "file in.mp4 out.mp4 --target 5",
        1,
        "error: class index must be from 0 to 4, got 5",
    );
    bench.check_refused(
        "file in.mp4 out.mp4 --target brid",
        1,
        "error: expected one of the classes \"airplane\" (0), \"bird\" (1), \"cat\" (2), \"dog\" (3), \"ship\" (4), got \"brid\"",
    );
}

#[cfg(not(feature = "cuda"))]
#[test]
fn evaluations_and_trainings_run_on_the_device_that_is_named() {
    let bench = Bench::new(3);
    let model = fixture("vit_a");
    let model = model.display();
    for command in [
        format!("eval saco --model {model} --data in.mp4"),
        format!("eval sanity --model {model} --data in.mp4"),
        format!("eval fairness --model {model} --data biased-patches"),
        format!("eval faithfulness --model {model}"),
        format!("train diffmask --model {model} --data in.mp4 --out out"),
        format!("train classifier --init {model} --data red-patches --out out"),
        "train classifier --data red-patches --out out".to_owned(),
    ] {
        bench.check_refused_as_it_is(
            &format!("{command} --device cuda"),
            1,
            "error: this program was built without CUDA; rebuild it with `cargo build --features cuda`",
        );
    }
    let ended = bench.run("eval sparseness --data red-patches --model red-patches --images 2 --method rollout --device cpu");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn an_interrupted_file_is_finished_where_it_is() {
    let bench = Bench::new(1000);
    let mut running = Running::start(
        &bench,
        "file in.mp4 out.mp4 --scores s.jsonl --progress json",
    );
    running.wait_for_secs(0.5);
    running.signal("INT");
    let (code, rest) = running.end();
    assert_eq!(Some(130), code, "{rest}");
    let last = rest.lines().last().unwrap();
    assert!(last.starts_with("interrupted at "), "{rest}");
    assert_eq!(["in.mp4", "out.mp4", "s.jsonl"], *bench.names());
    let records = records(&fs::read_to_string(bench.path("s.jsonl")).unwrap());
    let frames = decoded_frames(&bench.path("out.mp4"));
    assert_eq!(records.len(), frames);
    assert!((12..1000).contains(&frames), "{frames}");
    let end_secs = frames as f64 / 25.0;
    assert_eq!(format!("interrupted at {end_secs:.3} s"), last);
}

#[test]
fn a_second_interrupt_stops_at_once_and_names_what_is_left() {
    let bench = Bench::new(1000);
    // Large batches of large pictures, so that much work is left when the first interrupt comes.
    let args = "file in.mp4 out.mp4 --batch 256 --mode side-by-side --progress json";
    let mut running = Running::start(&bench, args);
    running.wait_for_secs(0.5);
    running.signal("INT");
    running.wait_for("press Ctrl-C again to abort");
    running.signal("INT");
    let (code, rest) = running.end();
    assert_eq!(Some(130), code, "{rest}");
    assert!(
        rest.contains("unfinished output left in \"out.mp4.part\""),
        "{rest}"
    );
    assert_eq!(["in.mp4", "out.mp4.part"], *bench.names());
}

#[test]
fn a_killed_run_leaves_a_file_that_plays() {
    let bench = Bench::new(1000);
    let mut running = Running::start(&bench, "file in.mp4 out.mp4 --progress json");
    // The encoder looks ahead by a few seconds before the first fragment is complete.
    running.wait_for_secs(10.0);
    running.signal("KILL");
    running.end();
    assert_eq!(["in.mp4", "out.mp4.part"], *bench.names());
    let frames = decoded_frames(&bench.path("out.mp4.part"));
    assert!((25..1000).contains(&frames), "{frames}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let bench = Bench::new(300);
    let mut child = bench
        .command("file in.mp4 out.mp4 --scores - --progress none --quiet")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!("", String::from_utf8(output.stderr).unwrap());
    assert_eq!(Some(0), output.status.code());
    assert_eq!(300, decoded_frames(&bench.path("out.mp4")));
}

#[test]
fn progress_is_a_json_object_a_line() {
    let bench = Bench::new(30);
    let ended = bench.run("file in.mp4 out.mp4 --progress json");
    let lines: Vec<serde_json::Value> = ended
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(1, lines.first().unwrap()["frames"]);
    let last = lines.last().unwrap();
    assert_eq!(
        (30, 100.0),
        (
            last["frames"].as_i64().unwrap(),
            last["percent"].as_f64().unwrap()
        )
    );
}

#[test]
fn quiet_prints_nothing() {
    let bench = Bench::new(3);
    let ended = bench.run("file in.mp4 out.mp4 --quiet");
    assert_eq!(
        (Some(0), "", ""),
        (ended.code, &*ended.stdout, &*ended.stderr)
    );
}

#[test]
fn stills_keep_their_size_and_format() {
    let bench = Bench::new(1);
    let input = bench.path("in.mp4").display().to_string();
    ffmpeg(&format!("-i {input} -frames:v 1"), &bench.path("a.png"));
    ffmpeg(
        &format!("-i {input} -vf scale=321:241 -frames:v 1"),
        &bench.path("b.jpg"),
    );
    fs::create_dir(bench.path("out")).unwrap();
    let ended = bench.run("still a.png b.jpg out --scores s.jsonl --sheet s.png");
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    assert_eq!(["a.png", "b.jpg"], *names_in(&bench.path("out")));
    assert_eq!(
        (320, 240),
        image::image_dimensions(bench.path("out/a.png")).unwrap()
    );
    assert_eq!(
        (321, 241),
        image::image_dimensions(bench.path("out/b.jpg")).unwrap()
    );
    let explained = image::open(bench.path("out/a.png")).unwrap();
    assert_ne!(
        image::open(bench.path("a.png")).unwrap().to_rgb8(),
        explained.to_rgb8()
    );
    let scores = records(&fs::read_to_string(bench.path("s.jsonl")).unwrap());
    let files: Vec<&str> = scores.iter().filter_map(|it| it.file.as_deref()).collect();
    assert_eq!(["a.png", "b.jpg"], *files);

    // Pictures are independent of each other, whatever a method remembers on video.
    let map_of_b = |pictures: &str| {
        let line = format!("still {pictures} out --scores m.jsonl --overwrite --quiet");
        let ended = bench.run(&format!("{line} --method gradmask --set gradmask.spread=4"));
        assert_eq!((Some(0), ""), (ended.code, &*ended.stderr));
        let text = fs::read_to_string(bench.path("m.jsonl")).unwrap();
        records(&text)
            .pop()
            .unwrap()
            .maps
            .unwrap()
            .remove(0)
            .attribution
    };
    let (alone, after) = (map_of_b("b.jpg"), map_of_b("a.png b.jpg"));
    let furthest = alone.iter().zip(&after).map(|(a, b)| (a - b).abs());
    assert!(furthest.fold(0.0, f32::max) < 1e-4, "{alone:?} {after:?}");

    let ended = bench.run("still a.png new.png --mode original --quiet");
    assert_eq!((Some(0), ""), (ended.code, &*ended.stderr));
    assert_eq!(
        (320, 240),
        image::image_dimensions(bench.path("new.png")).unwrap()
    );
}

/// The outline around the model's input, and the sidecar's grid, show what the model received.
#[test]
fn a_picture_of_another_shape_is_cropped_stretched_or_padded() {
    let bench = Bench::new(1);
    ffmpeg(
        "-f lavfi -i color=black:size=320x160 -frames:v 1",
        &bench.path("wide.png"),
    );
    let seen = |options: &str| {
        let ended = bench.run(&format!(
            "still wide.png out.png --mode dim --alpha 0 --scores s.jsonl --overwrite --quiet {options}"
        ));
        assert_eq!((Some(0), ""), (ended.code, &*ended.stderr), "{options}");
        let drawn = image::open(bench.path("out.png")).unwrap().to_rgb8();
        let is_white = |x: u32| drawn.get_pixel(x, 150).0.iter().all(|level| *level > 180);
        let white: Vec<u32> = (0..320).filter(|&x| is_white(x)).collect();
        let sidecar = fs::read_to_string(bench.path("s.jsonl")).unwrap();
        (white, records(&sidecar)[0].grid.unwrap())
    };
    let whole = |side| (Vec::new(), (side, side));
    assert_eq!(seen(""), whole(4), "the model's own rule");
    assert_eq!(seen("--input stretch"), whole(4));
    assert_eq!(seen("--input pad --input-size 64"), whole(8));
    assert_eq!(seen("--input crop"), (vec![78, 79, 240, 241], (4, 4)));

    for (size, error) in [
        (
            "30",
            "error: input size is 30 px, expected a multiple of the model's patch size 8, from 8 to 512",
        ),
        (
            "520",
            "error: input size is 520 px, expected a multiple of the model's patch size 8, from 8 to 512",
        ),
    ] {
        bench.check_refused(
            &format!("still wide.png new.png --input-size {size}"),
            1,
            error,
        );
    }
}

#[test]
fn pictures_that_cannot_be_are_refused() {
    let bench = Bench::new(1);
    fs::write(bench.path("text.png"), "text").unwrap();
    let input = bench.path("in.mp4").display().to_string();
    ffmpeg(&format!("-i {input} -frames:v 1"), &bench.path("a.png"));
    let whole = fs::read(bench.path("a.png")).unwrap();
    fs::write(bench.path("cut.png"), &whole[..whole.len() / 2]).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    let refused = |args: &str, begin: &str, end: &str| {
        let before = bench.names();
        let ended = bench.run(args);
        let error = ended.stderr.trim_end();
        assert!(error.starts_with(&format!("error: {begin}")), "{error}");
        assert!(error.ends_with(end), "{error}");
        assert_eq!(Some(1), ended.code);
        assert_eq!(
            (before, 0),
            (bench.names(), names_in(&bench.path("out")).len())
        );
    };
    refused(
        "still no.png b.png",
        "no such file, expected a picture: ",
        "\"no.png\"",
    );
    refused(
        "still in.mp4 b.png",
        "expected a picture, got a video; use `vitscope file` to explain a video: ",
        "\"in.mp4\"",
    );
    refused(
        "still text.png b.png",
        "not a readable picture",
        "\"text.png\"",
    );
    refused(
        "still a.png cut.png out --quiet",
        "not a readable picture (unexpected end of file)",
        "\"cut.png\"",
    );
    refused("still a.png b.gif", "unknown extension", "\"b.gif\"");
    refused(
        "still a.png a.png",
        "the command already uses this file",
        "\"a.png\"",
    );
    for out in ["folder.png", "."] {
        refused(
            &format!("still . {out}"),
            "expected a picture, got a folder",
            "\".\"",
        );
    }
    refused(
        "still a.png text.png new",
        "expected an existing directory",
        "\"new\"",
    );
    refused(
        "still a.png ./a.png out",
        "two outputs would have this name",
        "\"out/a.png\"",
    );
}

#[test]
fn bench_times_every_case_and_says_what_a_method_costs_over_the_bare_model() {
    let bench = Bench::new(5);
    let ended = bench.run(&format!(
        "bench --model {} --method rollout,forward,backward --batch 1,2 --repeat 2 --video in.mp4 \
         --json figures.json",
        fixture("vit_a").display()
    ));
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    let figures = fs::read_to_string(bench.path("figures.json")).unwrap();
    let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
    let cases = |table: &str| -> Vec<(String, u64)> {
        let rows = figures[table].as_array().unwrap().iter();
        rows.map(|row| {
            let method = row["method"].as_str().unwrap().to_owned();
            (method, row["batch"].as_u64().unwrap())
        })
        .collect()
    };
    let expected = |methods: &[&str]| -> Vec<(String, u64)> {
        let batches = [1, 2].into_iter();
        batches
            .flat_map(|batch| {
                methods
                    .iter()
                    .map(move |method| (method.to_string(), batch))
            })
            .collect()
    };
    assert_eq!(
        expected(&["rollout", "forward", "backward"]),
        cases("passes")
    );
    for row in figures["passes"].as_array().unwrap() {
        let (ms, ratio) = (&row["ms_per_image"], &row["over_forward"]);
        assert!(ms.as_f64().unwrap() > 0.0 && ratio.as_f64().unwrap() > 0.0);
        assert_eq!(2, row["repetitions"]);
    }
    assert_eq!(expected(&["rollout"]), cases("videos"));
    for row in figures["videos"].as_array().unwrap() {
        assert_eq!(5, row["frames"]);
        assert!(row["frames_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(5, row["stage_ms"].as_array().unwrap().len());
    }
    assert_eq!(["figures.json", "in.mp4"], *bench.names());
    // Two tables with their headers, an empty line between them, and the path of the figures.
    let lines = ended.stdout.lines().count();
    assert_eq!(7 + 1 + 3 + 1, lines, "{}", ended.stdout);
}

#[test]
fn several_methods_and_targets_share_a_grid_and_the_sidecar_has_them_all() {
    let bench = Bench::new(6);
    let ended = bench.run(
        "file in.mp4 out.mp4 --method chefer,gradmask,occlusion --target bird --target contrast:cat,dog \
         --set gradmask.groups=2 --set gradmask.spread=3 --scores s.jsonl --progress none"
    );
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    let records = records(&fs::read_to_string(bench.path("s.jsonl")).unwrap());
    for record in &records {
        let maps = record.maps.as_deref().unwrap();
        let names: Vec<(&str, &str, bool)> = maps
            .iter()
            .map(|map| {
                let class = map.class.as_ref().and_then(|class| class.label.as_deref());
                (map.method.as_str(), class.unwrap(), map.against.is_some())
            })
            .collect();
        let of = |method| [(method, "bird", false), (method, "cat", true)];
        assert_eq!(
            [of("chefer"), of("gradmask"), of("occlusion")].concat(),
            names
        );
    }
    // Six maps in three columns: panes of a third of the width, rounded down to even.
    let edges = |name: &str| -> Vec<usize> {
        let file = bench.path(name);
        let args = "-v error -show_entries stream=width,height -of csv=p=0 -select_streams v";
        let args: Vec<&str> = args.split(' ').chain(file.to_str()).collect();
        let shown = String::from_utf8(run_tool("ffprobe", &args).stdout).unwrap();
        shown
            .trim()
            .split(',')
            .map(|edge| edge.parse().unwrap())
            .collect()
    };
    let (before, shown) = (edges("in.mp4"), edges("out.mp4"));
    assert_eq!(
        vec![before[0] / 3 / 2 * 2 * 3, before[1] / 3 / 2 * 2 * 2],
        shown
    );
}

#[test]
fn methods_and_models_are_listed() {
    let bench = Bench::new(1);
    let methods = bench.run("methods");
    assert_eq!(Some(0), methods.code);
    for method in vitscope::explain::Method::ALL {
        assert!(
            methods
                .stdout
                .lines()
                .any(|line| line.starts_with(method.name())),
            "{method}"
        );
    }
    let listed = bench.run("models list");
    assert!(listed.stdout.contains("cifar10") && listed.stdout.contains("10 classes, gates"));
    let inspected = bench.run("models inspect cifar10").stdout;
    assert!(
        inspected.contains("8 x 8 patches of 4 px, plus 1 special"),
        "{inspected}"
    );
    assert!(
        inspected.contains("10: airplane, automobile"),
        "{inspected}"
    );
    bench.check_refused_as_it_is(
        "models inspect nothing",
        1,
        "error: model is neither an embedded model (everyday, cifar10, cifar10-224, red-patches) nor a folder: \"nothing\"",
    );
}

#[test]
fn the_table_of_methods_fits_a_hundred_columns() {
    let methods = Bench::new(1).run("methods").stdout;
    for line in methods.lines() {
        assert!(line.chars().count() <= 100, "{line:?}");
    }
}

#[test]
fn a_listing_that_nobody_reads_to_the_end_ends_quietly() {
    let bench = Bench::new(1);
    for args in ["methods", "--help"] {
        let mut child = bench
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(Some(0), output.status.code(), "{args}");
        assert_eq!("", String::from_utf8_lossy(&output.stderr), "{args}");
    }
}

#[test]
fn a_picture_given_as_a_video_is_sent_to_still() {
    let bench = Bench::new(1);
    image::RgbImage::new(8, 8)
        .save(bench.path("a.png"))
        .unwrap();
    bench.check_refused(
        "file a.png out.mp4",
        1,
        "error: the input is a picture, expected a video; use `vitscope still` for pictures: \"a.png\"",
    );
}

#[test]
fn a_recording_is_not_written_over_what_it_shows() {
    let bench = Bench::new(5);
    let before = fs::read(bench.path("in.mp4")).unwrap();
    std::os::unix::fs::symlink(bench.path("in.mp4"), bench.path("link.mp4")).unwrap();
    let over = |out: &str| format!("the output would overwrite \"in.mp4\": {out:?}");
    for (out, told) in [
        (
            "in.mp4",
            "the command already uses this file: \"in.mp4\"".to_owned(),
        ),
        ("./in.mp4", over("./in.mp4")),
        ("link.mp4", over("link.mp4")),
    ] {
        let ended = bench.run(&format!(
            "live in.mp4 --record {out} --overwrite --no-window"
        ));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert_eq!(ended.stderr.trim_end(), format!("error: {told}"));
    }
    assert!(fs::read(bench.path("in.mp4")).unwrap() == before);
}

#[test]
fn a_run_is_read_from_a_file() {
    let bench = Bench::new(5);
    let model = fixture("vit_a");
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let run = format!(
        "run {} --model {} --method rollout",
        pipelines.join("file.toml").display(),
        model.display()
    );
    let ended = bench.run(&run);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("verified: frames 5 in, 5 out"),
        "{}",
        ended.stdout
    );
    for name in ["explained.mp4", "explained.jsonl", "explained.png"] {
        assert!(bench.path(name).exists(), "{name}");
    }
    let check = |text: &str, expected: &str| {
        fs::write(bench.path("run.toml"), text).unwrap();
        let ended = bench.run("run run.toml");
        assert_eq!(
            ended.stderr.trim_end(),
            format!("error: \"run.toml\": {expected}")
        );
        assert_eq!(ended.code, Some(1));
    };
    check(
        "command = \"file\"\nin = \"in.mp4\"\nout = \"o.mp4\"\nevery = 0",
        "invalid value '0' for '--every <N>': expected 1 or more",
    );
    check(
        "command = \"file\"\nin = \"in.mp4\"\nout = \"o.mp4\"\nalhpa = 0.5",
        "unknown key \"alhpa\"; did you mean alpha?",
    );
    fs::write(bench.path("run.toml"), "command = \"file\"\nin =").unwrap();
    let ended = bench.run("run run.toml");
    assert!(
        ended
            .stderr
            .starts_with("error: the run file is malformed: "),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.trim_end().ends_with(": \"run.toml\", line 2"),
        "{}",
        ended.stderr
    );
    assert!(!bench.path("o.mp4").exists());
}

#[test]
fn a_sheet_has_the_format_of_its_name() {
    let bench = Bench::new(3);
    let ended = bench.run("file in.mp4 out.mp4 --sheet s.jpg --progress none");
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    let bytes = fs::read(bench.path("s.jpg")).unwrap();
    let format = image::guess_format(&bytes).unwrap();
    assert_eq!(image::ImageFormat::Jpeg, format);
    bench.check_refused(
        "file in.mp4 other.mp4 --sheet s.gif",
        1,
        "error: unknown extension, expected png, jpg or jpeg: \"s.gif\"",
    );
}

#[test]
fn a_jpeg_that_ends_early_is_explained_and_the_run_incomplete() {
    let bench = Bench::new(1);
    let picture = image::RgbImage::from_fn(96, 96, |x, y| {
        image::Rgb([(2 * x) as u8, (2 * y) as u8, (x * y) as u8])
    });
    picture.save(bench.path("whole.jpg")).unwrap();
    let bytes = fs::read(bench.path("whole.jpg")).unwrap();
    fs::write(bench.path("cut.jpg"), &bytes[..2 * bytes.len() / 3]).unwrap();
    let ended = bench.run("still whole.jpg a.png --progress none");
    assert_eq!((Some(0), ""), (ended.code, ended.stderr.as_str()));
    let ended = bench.run("still cut.jpg b.png --progress none");
    assert_eq!(Some(3), ended.code, "{}", ended.stderr);
    assert_eq!(
        "incomplete: the file is truncated, and its missing part was explained as gray: \"cut.jpg\"",
        ended.stderr.trim_end()
    );
    assert!(bench.path("b.png").exists());
}

#[test]
fn classes_that_apply_at_once_are_all_in_the_sidecar() {
    let bench = Bench::new(1);
    for file in [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    ] {
        fs::create_dir_all(bench.path("many")).unwrap();
        fs::copy(fixture("vit_a").join(file), bench.path("many").join(file)).unwrap();
    }
    let config = bench.path("many/config.json");
    let kind = "{ \"problem_type\": \"multi_label_classification\",";
    let text = fs::read_to_string(&config).unwrap().replacen('{', kind, 1);
    fs::write(&config, text).unwrap();
    image::RgbImage::from_pixel(40, 40, image::Rgb([200, 90, 30]))
        .save(bench.path("a.png"))
        .unwrap();
    let record = |model: &str| {
        let ended = bench.run(&format!(
            "still a.png b.png --model {model} --scores - --quiet --overwrite"
        ));
        assert_eq!(Some(0), ended.code, "{}", ended.stderr);
        records(&ended.stdout).remove(0)
    };
    let many = record("many");
    let applying = many.applying.unwrap();
    assert_eq!(Some(&applying[0]), many.predicted.as_ref());
    assert!(
        applying[1..].iter().all(|class| class.probability >= 0.5),
        "{applying:?}"
    );
    let one = record(fixture("vit_a").to_str().unwrap());
    assert_eq!(None, one.applying);
    assert_eq!(one.predicted.unwrap().index, applying[0].index);

    let refused = bench.run("train diffmask --model many --data red-patches --out gates");
    assert_eq!(Some(1), refused.code);
    assert!(
        refused
            .stderr
            .contains("several classes of the model may apply at once"),
        "{}",
        refused.stderr
    );
}

#[test]
fn options_of_methods_that_cannot_be_are_refused_before_anything_is_written() {
    let bench = Bench::new(1);
    let refused = |options: &str, part: &str| {
        bench.check_refused(&format!("file in.mp4 out.mp4 {options}"), 1, part);
    };
    refused(
        "--method gradmask --set gradmask.groups=0",
        "error: gradmask: groups must be at least 1, got 0",
    );
    refused(
        "--method gradmask --set rollout.discard=0.5",
        "error: --set \"rollout.discard=0.5\" is for a method that is not selected",
    );
    refused(
        "--method rollout --target cat",
        "error: method \"rollout\" explains the whole output, not a single class, but class 2 was requested; chefer \
         explains classes",
    );
    refused(
        "--method chefer --target contrast:cat",
        "error: expected contrast:A,B with two classes, got \"contrast:cat\"",
    );
    refused(
        "--method chefer --target contrast:cat,2",
        "error: a class has no contrast with itself, expected contrast:A,B with two classes, got \"contrast:cat,2\"",
    );
}

#[test]
fn bench_names_the_methods_that_there_are() {
    let bench = Bench::new(1);
    let model = fixture("vit_a");
    bench.check_refused_as_it_is(
        &format!("bench --model {} --method none", model.display()),
        1,
        "error: unknown method \"none\", expected forward, backward, masked, all, or a method listed by \
         `vitscope methods`",
    );
}

#[test]
fn doctor_says_what_is_there() {
    let bench = Bench::new(2);
    let ended = bench.run("doctor");
    assert_eq!((Some(0), ""), (ended.code, ended.stderr.as_str()));
    for line in [
        "GStreamer     1.",
        "x264enc               H.264, GPL library",
        "read video files      yes",
    ] {
        assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
    }
}

#[test]
fn live_refuses_what_makes_no_sense_before_anything_starts() {
    let bench = Bench::new(2);
    let refused = |args: &str, code: i32, error: &str| {
        bench.check_refused_as_it_is(&format!("live test: {args}"), code, error);
    };
    refused(
        "--serve 0.0.0.0:0",
        1,
        "error: other machines can reach 0.0.0.0:0, expected a token (--token) or the address 127.0.0.1",
    );
    refused(
        "--serve 127.0.0.1:0 --token short",
        1,
        "error: expected a token of at least 8 letters, digits, - or _",
    );
    refused(
        "--hls nosuch",
        1,
        "error: the output directory does not exist: \"nosuch\"",
    );
    refused(
        "--gates nosuch",
        1,
        "error: no gates.safetensors found, expected a folder with DiffMask gates: \"nosuch\"",
    );
    refused(
        "--v4l2-out nosuch",
        1,
        "error: no such device, expected a v4l2loopback virtual camera: \"nosuch\"",
    );
    refused(
        "--v4l2-out in.mp4",
        1,
        "error: not a device, expected a v4l2loopback virtual camera: \"in.mp4\"",
    );
    refused(
        "--target cat --target dog",
        1,
        "error: live video supports one target, use --target only once",
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    refused(
        &format!("--serve {address} --no-window"),
        1,
        &format!("error: cannot serve at {address}: Address already in use (os error 98)"),
    );
}

/// A camera of a separate PipeWire, if Debian's packages for it are installed; exit code 77 says that they are not.
#[test]
fn a_camera_that_is_unplugged_is_shown_again_when_it_is_back() {
    const MISSING: Option<i32> = Some(77);
    let bench = Bench::new(2);
    // First what the test needs to know about the camera, then the program in place of the shell.
    let script = "echo \"$$ $FAKE_CAMERA_PID $FAKE_CAMERA\" >&2; exec \"$@\"";
    let mut child = Command::new(fixture("fake_camera.sh"))
        .args(["sh", "-c", script, "sh", env!("CARGO_BIN_EXE_vitscope")])
        .args([
            "live",
            "fakecam",
            "--no-window",
            "--record",
            "out.mkv",
            "--size",
            "640x480",
        ])
        .args(["--fps", "30", "--method", "rollout", "--model"])
        .arg(fixture("vit_a"))
        .current_dir(bench.folder.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut running = Running { child, lines };
    let Some(Ok(first)) = running.lines.next() else {
        assert_eq!(MISSING, running.child.wait().unwrap().code());
        return;
    };
    let known: Vec<&str> = first.split(' ').collect();
    let [program, camera, plug_in] = known[..] else {
        let (code, rest) = running.end();
        assert_eq!(MISSING, code, "{first} {rest}");
        return;
    };
    let kill = |signal: &str, process: &str| {
        run_tool("sh", &["-c", &format!("kill -{signal} {process}")]);
    };
    running.wait_for("showing camera \"fakecam\"");
    kill("KILL", camera);
    let lost = running.wait_for("retrying in");
    assert!(lost.contains("camera \"fakecam\""), "{lost}");
    let mut again = Command::new(plug_in)
        .env("XDG_RUNTIME_DIR", Path::new(plug_in).parent().unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    running.wait_for("showing camera \"fakecam\"");
    kill("INT", program);
    let (code, rest) = running.end();
    assert_eq!(Some(0), code, "{rest}");
    again.kill().unwrap();
    again.wait().unwrap();
    let times = frame_times(&bench.path("out.mkv"));
    assert!(
        times.len() > 2 && times.windows(2).all(|pair| pair[0] < pair[1]),
        "{times:?}"
    );
}

/// Makes a folder with pictures of two classes, as `--data` accepts it.
fn pictures(bench: &Bench) {
    for half in ["train", "test"] {
        for (class, color) in [("cat", 40), ("dog", 200)] {
            let folder = bench.path("data").join(half).join(class);
            fs::create_dir_all(&folder).unwrap();
            for nth in 0_u8..3 {
                let paint = |x: u32, y: u32| image::Rgb([color, (8 * x) as u8, nth * 40 + y as u8]);
                let picture = image::RgbImage::from_fn(32, 32, paint);
                picture.save(folder.join(format!("{nth}.png"))).unwrap();
            }
        }
    }
}

#[test]
fn insertion_and_deletion_are_measured_beside_controls_and_come_out_the_same_again() {
    let bench = Bench::new(2);
    pictures(&bench);
    let measure = |batch: &str, name: &str| {
        let ended = bench.run(&format!(
            "eval insertion-deletion --model {} --data data --methods rollout,chefer --protocol patches,gradmask \
             --images 5 --batch {batch} --json {name}.json --csv {name}.csv",
            fixture("vit_a").display()
        ));
        assert_eq!(Some(0), ended.code, "{}", ended.stderr);
        ended.stdout
    };
    let table = measure("4", "a");
    for name in [
        "rollout",
        "chefer",
        "(random)",
        "(center)",
        "(edges)",
        "(constant)",
        "insertion ↑",
    ] {
        assert!(table.contains(name), "{name}: {table}");
    }
    measure("64", "b");
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(bench.path(name)).unwrap()).unwrap()
    };
    let (a, b) = (read("a.json"), read("b.json"));
    let rows =
        |report: &serde_json::Value| report["measures"][0]["rows"].as_array().unwrap().clone();
    assert_eq!(rows(&a).len(), 6);
    for (a, b) in rows(&a).iter().zip(rows(&b)) {
        let mean = |row: &serde_json::Value| row["mean"].as_f64().unwrap();
        assert!((mean(a) - mean(&b)).abs() < 1e-4, "{a} {b}");
        let (low, high) = (a["low"].as_f64().unwrap(), a["high"].as_f64().unwrap());
        assert!(low <= mean(a) && mean(a) <= high, "{a}");
    }
    // Two protocols of two curves, six rows, five pictures, and a header line.
    let csv = fs::read_to_string(bench.path("a.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 2 * 2 * 6 * 5);
}

#[test]
fn every_suite_measures_methods_and_controls_and_writes_a_page_of_it() {
    let bench = Bench::new(2);
    pictures(&bench);
    let model = fixture("vit_a");
    for (suite, measure) in [
        ("road", "least relevant first"),
        ("saco", "saco"),
        ("sufficiency", "ADCC"),
        ("sensitivity", "max sensitivity"),
        ("sanity", "class sensitivity"),
        ("sparseness", "gini"),
        ("latency", "p95 ms"),
    ] {
        let ended = bench.run(&format!(
            "eval {suite} --model {} --data data --methods rollout,chefer --images 3 --json {suite}.json \
             --html {suite}.html",
            model.display()
        ));
        assert_eq!(Some(0), ended.code, "{suite}: {}", ended.stderr);
        let text = fs::read_to_string(bench.path(&format!("{suite}.json"))).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let measures = report["measures"].as_array().unwrap();
        let named = measures.iter().find(|found| found["measure"] == measure);
        let rows = named.unwrap()["rows"].as_array().unwrap();
        let names: Vec<&str> = rows
            .iter()
            .map(|row| row["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["rollout", "chefer", "random", "center", "edges", "constant"],
            "{suite}"
        );
        let page = fs::read_to_string(bench.path(&format!("{suite}.html"))).unwrap();
        assert!(
            page.contains(measure) && page.contains("data:image/png"),
            "{suite}"
        );
    }
}

#[test]
fn examples_are_captioned_by_their_own_label_whatever_number_the_model_gives_it() {
    let bench = Bench::new(2);
    pictures(&bench);
    let folders = ["bird", "dog", "ship"];
    for (half, folder) in ["train", "test"]
        .iter()
        .flat_map(|half| folders.map(|folder| (half, folder)))
    {
        let folder = bench.path("labeled").join(half).join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(bench.path("data/test/cat/0.png"), folder.join("a.png")).unwrap();
    }
    let ended = bench.run(&format!(
        "eval sparseness --model {} --data labeled --methods rollout --images 3 --html page.html",
        fixture("vit_a").display()
    ));
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    let page = fs::read_to_string(bench.path("page.html")).unwrap();
    // Of one picture under three labels, at most one answer is right.
    let wrong = folders.map(|folder| page.contains(&format!(", not {folder}")));
    assert!(
        wrong.iter().filter(|wrong| **wrong).count() >= 2,
        "{wrong:?}"
    );
}

#[test]
fn a_page_tells_how_curves_are_measured_in_words() {
    let bench = Bench::new(2);
    pictures(&bench);
    let ended = bench.run(&format!(
        "eval insertion-deletion --model {} --data data --methods rollout --images 2 --html page.html",
        fixture("vit_a").display()
    ));
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    let page = fs::read_to_string(bench.path("page.html")).unwrap();
    assert!(
        page.contains("probability of the predicted class"),
        "{page}"
    );
    // Rust's debug output of a value has a name followed by a bracket.
    for debug in ["Blur {", "Shares(", "Equal(", "Some(", "&quot;Predicted"] {
        assert!(!page.contains(debug), "{debug}");
    }
}

#[test]
fn nothing_is_said_before_an_error() {
    let bench = Bench::new(1);
    for args in ["file in.mp4 out.mp4 --target none", "still in.mp4 out.png"] {
        let ended = bench.run(args);
        assert_eq!(Some(1), ended.code, "{args}");
        assert!(
            ended.stderr.starts_with("error: "),
            "{args}: {}",
            ended.stderr
        );
        assert_eq!(1, ended.stderr.lines().count(), "{args}: {}", ended.stderr);
    }
}

#[test]
fn a_run_that_was_cut_off_goes_on_and_says_the_same() {
    let bench = Bench::new(2);
    pictures(&bench);
    let measure = |images: usize, more: &str| {
        let ended = bench.run(&format!(
            "eval saco --model {} --data data --methods rollout --images {images} --batch 2 {more}",
            fixture("vit_a").display()
        ));
        assert_eq!(Some(0), ended.code, "{}", ended.stderr);
        ended.stdout
    };
    let whole = measure(5, "");
    measure(2, "--resume run.jsonl");
    let path = bench.path("run.jsonl");
    let known = fs::read_to_string(&path).unwrap();
    // Results in the file are not measured again; otherwise, another number would come out.
    let first = known.lines().nth(1).unwrap();
    assert!(first.contains("rollout"), "{first}");
    fs::write(&path, &known[..known.len() - 3]).unwrap();
    assert_eq!(whole, measure(5, "--resume run.jsonl"));
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .starts_with(known.lines().next().unwrap())
    );
    let ended = bench.run(&format!(
        "eval saco --model {} --data data --methods rollout --seed 1 --resume run.jsonl",
        fixture("vit_a").display()
    ));
    assert_eq!(Some(1), ended.code);
    let refusal = "error: file belongs to another run, expected one with settings";
    assert!(ended.stderr.starts_with(refusal), "{}", ended.stderr);
}

#[test]
fn methods_with_other_options_are_rows_of_their_own() {
    let bench = Bench::new(2);
    pictures(&bench);
    let ended = bench.run(&format!(
        "eval sparseness --model {} --data data --methods rollout,rollout+discard=0.9 --images 2",
        fixture("vit_a").display()
    ));
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("\nrollout+discard=0.9 "),
        "{}",
        ended.stdout
    );
}

#[cfg(feature = "embedded-models")]
#[test]
fn a_window_without_a_screen_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_vitscope"))
        .args([
            "live",
            "test:ball",
            "--window",
            "--duration",
            "5",
            "--method",
            "rollout",
        ])
        .args(["--model", fixture("vit_a").to_str().unwrap()])
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    let said = "error: no screen is available for a window: choose another output or --no-window";
    assert!(log.contains(said), "{log}");
    assert_eq!(output.status.code(), Some(1), "{log}");
}

#[test]
fn options_may_stand_between_pictures_and_output() {
    let bench = Bench::new(1);
    pictures(&bench);
    let ended = bench.run(&format!(
        "still data/test/cat/0.png --mode dim --model {} --method rollout dimmed.png",
        fixture("vit_a").display()
    ));
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    assert!(bench.path("dimmed.png").exists());
}

/// They are refused before any measurement: the data of these commands does not exist.
#[test]
fn reports_into_folders_that_are_not_there_are_refused_at_once() {
    let bench = Bench::new(1);
    for command in [
        "eval sparseness --data nowhere --json no/such/report.json",
        "eval sparseness --data nowhere --csv no/such/report.csv",
        "eval sparseness --data nowhere --html no/such/report.html",
        "eval sparseness --data nowhere --resume no/such/report.jsonl",
        "eval classifier --data nowhere --confusions no/such/report.png",
        "eval faithfulness --json no/such/report.json",
        "bench --json no/such/report.json",
    ] {
        let ended = bench.run(command);
        assert_eq!(ended.code, Some(2), "{command}: {}", ended.stderr);
        let said = "its directory does not exist: \"no/such\"";
        assert!(ended.stderr.contains(said), "{command}: {}", ended.stderr);
    }
}

#[test]
fn videos_are_measured_frame_by_frame_and_as_a_whole() {
    let bench = Bench::new(6);
    let ended = bench.run(
        "eval temporal --model cifar10 --data in.mp4 --methods diffmask+smooth=0.7 --frames 2 \
         --json scores.json",
    );
    assert_eq!(Some(0), ended.code, "{}", ended.stderr);
    for name in [
        "compensated",
        "insertion − deletion",
        "diffmask+smooth=0.7",
        "(center)",
    ] {
        assert!(ended.stdout.contains(name), "{name}: {}", ended.stdout);
    }
    let text = fs::read_to_string(bench.path("scores.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["videos"], 1);
    bench.check_refused_as_it_is(
        "eval temporal --model cifar10 --data in.mp4 --methods diffmask --frames 1",
        1,
        "error: the video has only one frame, steadiness requires two: \"in.mp4\"",
    );
}

#[test]
fn protocols_that_make_no_sense_are_refused() {
    let bench = Bench::new(2);
    pictures(&bench);
    let model = fixture("vit_a");
    let refused = |args: &str, error: &str| {
        let args = format!("eval {args} --model {} --data data", model.display());
        bench.check_refused_as_it_is(&args, 1, error);
    };
    refused(
        "perturbation --methods rollout --protocol rise",
        "error: unknown protocol \"rise\", expected one of chefer, diffmask, soft-mask",
    );
    let ended = bench.run(&format!(
        "eval insertion-deletion --methods nosuch --model {} --data data",
        model.display()
    ));
    assert_eq!(Some(1), ended.code);
    assert!(
        ended
            .stderr
            .starts_with("error: unknown method \"nosuch\", expected one of diffmask"),
        "{}",
        ended.stderr
    );
}
