//! Taught classes: from folders of pictures, and during live video.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use candle_core::{D, Device};
use image::{Rgb, RgbImage};
use vitscope::data::folder::Folder;
use vitscope::data::{Dataset, labeled_images};
use vitscope::explain::Method;
use vitscope::live::{Address, Audience, Event, Key, Live, Progress, Teach, Wanted};
use vitscope::models::{self, Reference};
use vitscope::plugin::{Draw, Settings, SyncMode};
use vitscope::sidecar::Record;
use vitscope::train::taught::{self, Taught};

use crate::common::{fixture, names_in};

/// Time after which a hanging run fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Output of a finished program.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the program in `folder`.
fn vitscope(folder: &Path, args: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_vitscope"))
        .args(args)
        .stdin(Stdio::null())
        .env_remove("RUST_LOG")
        .current_dir(folder)
        .output()
        .unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Creates a picture of one color with a darker square that moves.
fn picture(color: [u8; 3], number: u32) -> RgbImage {
    RgbImage::from_fn(40, 40, |x, y| {
        let is_dark = x / 10 == number % 4 && y / 10 == number / 4 % 4;
        Rgb(color.map(|sample| if is_dark { sample / 2 } else { sample }))
    })
}

const RED: [u8; 3] = [220, 30, 30];
const BLUE: [u8; 3] = [30, 30, 220];

/// Makes a folder of `n` pictures of each of these classes.
fn pictures(folder: &Path, classes: &[(&str, [u8; 3])], n: u32) {
    for (name, color) in classes {
        let class = folder.join(name);
        fs::create_dir_all(&class).unwrap();
        for number in 0..n {
            let path = class.join(format!("{number}.png"));
            picture(*color, number).save(path).unwrap();
        }
    }
}

fn model() -> String {
    fixture("vit_a").to_str().unwrap().to_owned()
}

/// Makes a folder with `pictures` and the head `head` taught from them.
fn taught() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pictures(
        &folder.path().join("pictures"),
        &[("blue", BLUE), ("red", RED)],
        3,
    );
    let args = ["teach", "pictures", "--out", "head", "--model", &model()];
    let ended = vitscope(folder.path(), &args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    folder
}

/// Returns the predicted classes of the pictures that `args` explains.
fn labels(folder: &Path, args: &[&str]) -> Vec<String> {
    let ended = vitscope(folder, args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    labels_in(&folder.join("scores.jsonl"))
}

/// Returns the predicted class of each explained frame in a sidecar.
fn labels_in(sidecar: &Path) -> Vec<String> {
    let text = fs::read_to_string(sidecar).unwrap_or_default();
    // The last line may be incomplete.
    let records = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Record>(line).ok());
    records
        .filter_map(|record| record.predicted?.label)
        .collect()
}

#[test]
fn a_folder_a_class_becomes_a_head_that_answers_other_pictures() {
    let folder = taught();
    let path = folder.path();
    let head = path.join("head");
    assert_eq!(names_in(&head), ["head.safetensors"]);
    picture(RED, 9).save(path.join("a.png")).unwrap();
    picture(BLUE, 10).save(path.join("b.png")).unwrap();
    fs::create_dir(path.join("out")).unwrap();
    let found = labels(
        path,
        &[
            "still",
            "a.png",
            "b.png",
            "out",
            "--model",
            "head",
            "--backbone",
            &model(),
            "--method",
            "chefer,gradcam",
            "--target",
            "red",
            "--scores",
            "scores.jsonl",
            "--quiet",
        ],
    );
    assert_eq!(found, ["red", "blue"]);
}

#[test]
fn teaching_says_how_many_examples_there_were_and_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    pictures(&path.join("pictures"), &[("blue", BLUE), ("red", RED)], 4);
    let args = ["teach", "pictures", "--out", "head", "--model", &model()];
    let ended = vitscope(path, &args);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..2], ["blue: 4 examples", "red: 4 examples"]);
    assert!(
        lines[2].starts_with("leave-one-out accuracy 1.0000 on 8 pictures"),
        "{lines:?}"
    );
    let usage = format!(
        "use it with: vitscope live --model head --backbone {}",
        model()
    );
    assert_eq!(lines[4], usage);
    let again = vitscope(path, &args);
    assert_eq!(again.code, Some(1));
    assert!(
        again
            .stderr
            .contains("use --overwrite to replace it: \"head/head.safetensors\""),
        "{}",
        again.stderr
    );
    let replaced = vitscope(path, &[&args[..], &["--overwrite"]].concat());
    assert_eq!(replaced.code, Some(0), "{}", replaced.stderr);
}

#[test]
fn what_cannot_be_taught_is_one_sentence_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    pictures(&path.join("one"), &[("red", RED)], 2);
    pictures(path, &[("loose", RED)], 2);
    pictures(&path.join("broken"), &[("red", RED)], 2);
    fs::create_dir(path.join("broken/blue")).unwrap();
    fs::write(path.join("broken/blue/x.png"), "no picture").unwrap();
    let model = model();
    let check = |pictures: &str, out: &str, model: &str, expected: &str| {
        let ended = vitscope(path, &["teach", pictures, "--out", out, "--model", model]);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(expected),
            "{:?} lacks {expected:?}",
            ended.stderr
        );
        assert!(!path.join("head").exists());
    };
    check(
        "one",
        "head",
        &model,
        "only \"red\" has examples, expected an example of another class",
    );
    check(
        "loose",
        "head",
        &model,
        "expected one folder of pictures per class",
    );
    check(
        "broken",
        "head",
        &model,
        "class \"blue\" has no picture that can be read",
    );
    check("broken", "head", &model, "broken/blue/x.png");
    check("nosuch", "head", &model, "no such folder: \"nosuch\"");
    check(
        "one",
        &model,
        &model,
        "a head needs a folder of its own, but this folder contains a config.json",
    );
    let clip = fixture("clip");
    check(
        "one",
        "head",
        clip.to_str().unwrap(),
        "CLIP classifies by class vectors",
    );
}

#[test]
fn pictures_that_cannot_be_read_are_named_and_the_others_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    pictures(&path.join("pictures"), &[("blue", BLUE), ("red", RED)], 2);
    fs::write(path.join("pictures/red/half.png"), "no picture").unwrap();
    // The header is readable, the rest is cut off.
    let whole = fs::read(path.join("pictures/red/0.png")).unwrap();
    fs::write(path.join("pictures/red/cut.png"), &whole[..60]).unwrap();
    let args = ["teach", "pictures", "--out", "head", "--model", &model()];
    let ended = vitscope(path, &args);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stdout.contains("red: 2 examples"), "{}", ended.stdout);
    for name in ["half.png", "cut.png"] {
        assert!(ended.stderr.contains(name), "{}", ended.stderr);
    }
}

#[test]
fn a_head_for_other_weights_is_refused_with_both_hashes() {
    let folder = taught();
    let other = fixture("vit_b");
    let hash = |model: &Path| {
        let model = models::open(model.to_str().unwrap(), &Device::Cpu).unwrap();
        model.backbone_sha256
    };
    let head = folder.path().join("head");
    let reference = Reference::over(head.to_str().unwrap(), other.to_str());
    let error = models::open(reference, &Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains(&hash(&fixture("vit_a"))), "{error}");
    assert!(error.contains(&hash(&other)), "{error}");
}

#[test]
fn gates_of_the_backbone_explain_taught_classes_where_they_are_asked_to() {
    let folder = taught();
    let backbone = folder.path().join("backbone");
    fs::create_dir(&backbone).unwrap();
    for name in names_in(&fixture("vit_a")) {
        fs::copy(fixture("vit_a").join(&name), backbone.join(&name)).unwrap();
    }
    let sha256 = models::open(backbone.to_str().unwrap(), &Device::Cpu)
        .unwrap()
        .weights_sha256;
    crate::models::add_gates(&backbone, &sha256);
    let head = folder.path().join("head");
    let reference = Reference::over(head.to_str().unwrap(), backbone.to_str());
    let model = models::open(reference, &Device::Cpu).unwrap();
    assert_eq!(model.labels(), ["blue", "red"]);
    assert_ne!(model.weights_sha256, sha256);
    assert_eq!(model.gate_card.as_ref().unwrap().base_sha256, sha256);
    // The gates were trained to preserve other answers than those of the head.
    assert_eq!(model.default_method(), Method::Chefer);
    let diffmask = Method::DiffMask.build(model.parts()).unwrap();
    let images = model.gray_image().unwrap();
    let target = model.target("predicted").unwrap();
    let found = diffmask.explain(&model.vit, &images, target).unwrap();
    assert_eq!(found.attribution.dims(), [1, 16]);

    // Gates of other weights are refused, with or without a head.
    crate::models::add_gates(&backbone, "0123");
    let error = models::open(reference, &Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("\"0123\"") && error.contains("backbone/gates.safetensors"),
        "{error}"
    );
}

#[cfg(feature = "embedded-models")]
#[test]
fn a_taught_head_takes_the_place_of_an_embedded_model_s_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    pictures(&path.join("pictures"), &[("blue", BLUE), ("red", RED)], 2);
    // Voting gates know no classes; ranking gates know them by their rows of the classifier.
    voting(&path.join("voting"));
    picture(RED, 7).save(path.join("a.png")).unwrap();
    for (model, method) in [("cifar10", "chefer"), ("voting", "diffmask")] {
        let out = format!("head-{model}");
        let ended = vitscope(
            path,
            &["teach", "pictures", "--model", model, "--out", &out],
        );
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let found = labels(
            path,
            &[
                "still",
                "a.png",
                "b.png",
                "--model",
                &out,
                "--backbone",
                model,
                "--method",
                method,
                "--scores",
                "scores.jsonl",
                "--quiet",
                "--overwrite",
            ],
        );
        assert_eq!(found, ["red"], "{method}");
    }
}

/// Makes a folder of `cifar10` with its published gates.
fn voting(folder: &Path) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifar10");
    fs::create_dir(folder).unwrap();
    for file in [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    ] {
        fs::copy(models.join(file), folder.join(file)).unwrap();
    }
    for file in ["gates.json", "gates.safetensors"] {
        fs::copy(models.join("published").join(file), folder.join(file)).unwrap();
    }
}

#[test]
fn five_examples_a_class_answer_the_other_pictures_of_a_scene() {
    const GREEN: [u8; 3] = [30, 160, 60];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let classes = [("blue", BLUE), ("green", GREEN), ("red", RED)];
    pictures(path, &classes, 25);
    let model = Arc::new(models::open(&*model(), &Device::Cpu).unwrap());
    let preprocessor = &model.preprocessor;
    let all = Folder::open(path, preprocessor.rule, preprocessor.resampling).unwrap();
    let normalization = (preprocessor.mean, preprocessor.std);
    // From scattered positions among 25 pictures per class.
    let examples: Vec<usize> = (0..3)
        .flat_map(|class| [0, 4, 11, 17, 23].map(|number| 25 * class + number))
        .collect();
    let images =
        |indices: &[usize]| labeled_images(&all, indices, normalization, &Device::Cpu).unwrap();
    let mut taught = Taught::new(taught::width(model.vit.config()).unwrap());
    for name in all.classes() {
        taught.add_class(name).unwrap();
    }
    let (shown, labels) = images(&examples);
    for (features, label) in taught::features(&model.vit, &shown)
        .unwrap()
        .into_iter()
        .zip(labels)
    {
        taught.learn(features, label.unwrap()).unwrap();
    }
    let model = model.with_head(taught.head().unwrap().head).unwrap();
    let others: Vec<usize> = (0..all.len())
        .filter(|index| !examples.contains(index))
        .collect();
    let (others, labels) = images(&others);
    let logits = model.vit.forward(&others).unwrap().logits.unwrap();
    let answers: Vec<u32> = logits.argmax(D::Minus1).unwrap().to_vec1().unwrap();
    let right = answers
        .iter()
        .zip(labels)
        .filter(|(answer, label)| Some(**answer as usize) == *label);
    assert!(right.count() >= 57, "{answers:?}");
}

/// Teaches a blinking source: each frozen picture is an example of the class of its color.
struct Teacher {
    /// Keys still to press, in reverse order.
    keys: Vec<Key>,
    /// Number of examples still wanted of each class, `dark` and `light`.
    wanted: [u8; 2],
    sidecar: PathBuf,
    /// Color of the frozen picture.
    color: usize,
    /// Number of records when the last key was pressed.
    n_records: usize,
    /// The expected and the actual answers.
    answers: Vec<(usize, String)>,
    progress: Vec<Progress>,
    problems: Vec<String>,
    started: Instant,
}

/// Snapshots after which a frozen picture stands still, and records after which it has been explained again.
const STILL: usize = 8;
const EXPLAINED: usize = 12;

const CLASSES: [&str; 2] = ["dark", "light"];

impl Teacher {
    fn new(sidecar: PathBuf, n_examples: u8) -> Self {
        Self {
            keys: Vec::new(),
            wanted: [n_examples; 2],
            sidecar,
            color: 0,
            n_records: usize::MAX,
            answers: Vec::new(),
            progress: Vec::new(),
            problems: Vec::new(),
            started: Instant::now(),
        }
    }
}

impl Audience for Teacher {
    fn event(&mut self, event: Event) {
        assert!(self.started.elapsed() < PATIENCE, "{:?}", self.problems);
        match event {
            Event::Taught(progress) => self.progress.push(progress),
            Event::Problem(problem) => self.problems.push(problem),
            _ => (),
        }
    }

    fn key(&mut self) -> Option<Key> {
        if let Some(key) = self.keys.pop() {
            return Some(key);
        }
        let labels = labels_in(&self.sidecar);
        if self.progress.is_empty() || labels.is_empty() {
            return None;
        }
        if self.n_records == usize::MAX {
            // Freeze, and take snapshots until the picture stands still; sometimes one frame longer, or the color might
            // always be the same.
            self.keys = vec![Key::Snapshot; STILL + self.answers.len() % 2];
            self.n_records = labels.len();
            return Some(Key::Freeze);
        }
        if labels.len() < self.n_records + EXPLAINED {
            return None;
        }
        let answer = labels.last().unwrap().clone();
        self.answers.push((self.color, answer));
        self.n_records = usize::MAX;
        if self.wanted == [0, 0] {
            return Some(Key::Quit);
        }
        // Resume before freezing again.
        Some(Key::Freeze)
    }

    fn snapshot(&mut self, png: &[u8]) -> vitscope::Result<()> {
        let picture = image::load_from_memory(png).unwrap().to_luma8();
        self.color = usize::from(picture.get_pixel(32, 40).0[0] > 128);
        let still = self.keys.is_empty();
        if still && self.wanted[self.color] > 0 {
            self.wanted[self.color] -= 1;
            self.keys.push(Key::Example(self.color as u8 + 1));
        }
        Ok(())
    }
}

fn live(folder: &Path, model: &str) -> Live {
    let Ok(address) = "test:blink".parse::<Address>();
    let sidecar = folder.join("scores.jsonl");
    let mut settings = Settings::default();
    settings.request.model = model.into();
    settings.request.methods = vec![Method::Chefer];
    settings.draw = Draw::Original;
    settings.show_hud = false;
    settings.sync_mode = SyncMode::Exact;
    settings.scores_location = Some(sidecar.to_str().unwrap().into());
    Live {
        address,
        again: false,
        wanted: Wanted {
            size: Some((64, 48)),
            fps: Some(25),
        },
        settings,
        outputs: Vec::new(),
        page: None,
        collect: None,
        gates: None,
        teach: Some(Teach {
            folder: folder.join("head"),
            classes: CLASSES.map(str::to_owned).to_vec(),
        }),
    }
}

#[test]
fn a_blinking_light_is_taught_while_it_runs_and_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut teacher = Teacher::new(folder.path().join("scores.jsonl"), 2);
    let cancel = AtomicBool::new(false);
    live(folder.path(), &model())
        .run(&cancel, &mut teacher)
        .unwrap();
    let before = ["airplane", "bird", "cat", "dog", "ship"];
    let is_own = |(_, answer): &&(usize, String)| before.contains(&answer.as_str());
    // The model's own answers stay until both classes have an example.
    assert!(is_own(&&teacher.answers[0]), "{:?}", teacher.answers);
    let (color, answer) = teacher.answers.last().unwrap();
    assert_eq!(answer, CLASSES[*color], "{:?}", teacher.answers);
    let first = &teacher.progress[0];
    assert!(
        first
            .missing
            .as_ref()
            .unwrap()
            .contains("no class has an example"),
        "{first:?}"
    );
    let last = teacher.progress.last().unwrap();
    assert!(
        last.classes.iter().all(|class| class.examples == 2),
        "{last:?}"
    );
    assert!(last.missing.is_none() && last.unsaved, "{last:?}");
    assert_eq!(teacher.problems.len(), 1, "{:?}", teacher.problems);
    assert!(
        teacher.problems[0].contains("since the last save"),
        "{:?}",
        teacher.problems
    );
    assert!(!folder.path().join("head").exists());
}

/// Presses keys one after the other, once frames are explained.
struct Presser {
    keys: Vec<Key>,
    events: Vec<Event>,
    started: Instant,
}

impl Audience for Presser {
    fn event(&mut self, event: Event) {
        assert!(self.started.elapsed() < PATIENCE, "{:?}", self.events);
        self.events.push(event);
    }

    fn key(&mut self) -> Option<Key> {
        let is_ready = |event: &Event| matches!(event, Event::Taught(_));
        self.events.iter().any(is_ready).then(|| self.keys.pop())?
    }
}

/// Returns the last progress, and the problems.
fn press(live: &Live, keys: &[Key]) -> vitscope::Result<(Progress, Vec<String>)> {
    let mut presser = Presser {
        keys: keys.iter().rev().copied().collect(),
        events: Vec::new(),
        started: Instant::now(),
    };
    live.run(&AtomicBool::new(false), &mut presser)?;
    let mut progress = None;
    let mut problems = Vec::new();
    for event in presser.events {
        match event {
            Event::Taught(taught) => progress = Some(taught),
            Event::Problem(problem) => problems.push(problem),
            _ => (),
        }
    }
    Ok((progress.unwrap(), problems))
}

fn counts(progress: &Progress) -> Vec<(&str, usize)> {
    let classes = progress.classes.iter();
    classes
        .map(|class| (class.name.as_str(), class.examples))
        .collect()
}

#[test]
fn examples_are_taken_back_saved_and_taught_on() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    let mut live = live(folder.path(), &model());
    let keys = [
        Key::Undo,
        Key::Example(1),
        Key::Save,
        Key::Example(3),
        Key::Example(2),
        Key::Example(2),
        Key::Undo,
        Key::Save,
        Key::Example(1),
        Key::Undo,
        Key::Quit,
    ];
    let (progress, problems) = press(&live, &keys).unwrap();
    assert_eq!(counts(&progress), [("dark", 1), ("light", 1)]);
    let expected = [
        "there is no example to undo",
        "only \"dark\" has examples",
        "class 3 does not exist, the head has 2 classes",
        "since the last save",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{problem}");
    }
    assert_eq!(names_in(&head), ["head.safetensors"]);
    let backbone = model();
    let reference = Reference::over(head.to_str().unwrap(), Some(&backbone));
    assert_eq!(
        models::open(reference, &Device::Cpu).unwrap().labels(),
        CLASSES
    );

    // Another run continues from there, with one more class.
    live.teach.as_mut().unwrap().classes = vec!["Light".into(), "off".into()];
    let (progress, problems) = press(&live, &[Key::Example(3), Key::Save, Key::Quit]).unwrap();
    assert_eq!(counts(&progress), [("dark", 1), ("light", 1), ("off", 1)]);
    assert!(!progress.unsaved && problems.is_empty(), "{problems:?}");
    let labels = models::open(reference, &Device::Cpu)
        .unwrap()
        .labels()
        .to_vec();
    assert_eq!(labels, ["dark", "light", "off"]);
    let sidecar = labels_in(&folder.path().join("scores.jsonl"));
    assert!(
        sidecar.iter().any(|label| labels.contains(label)),
        "{sidecar:?}"
    );

    // With other weights, it does not.
    let other = fixture("vit_b");
    live.settings.request.model = other.to_str().unwrap().into();
    let error = press(&live, &[Key::Quit]).unwrap_err().to_string();
    assert!(
        error.contains("the head was trained for weights with sha256"),
        "{error}"
    );
    assert!(
        error.contains(
            &models::open(&*backbone, &Device::Cpu)
                .unwrap()
                .backbone_sha256
        ),
        "{error}"
    );
}

#[test]
fn a_head_is_not_written_into_a_model_s_folder_by_live_video_either() {
    let folder = tempfile::tempdir().unwrap();
    let mut live = live(folder.path(), &model());
    live.teach.as_mut().unwrap().folder = fixture("vit_a");
    let error = press(&live, &[Key::Quit]).unwrap_err().to_string();
    assert!(
        error.contains("a head needs a folder of its own"),
        "{error}"
    );
}
