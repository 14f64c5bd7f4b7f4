//! `vitscope eval classifier` on folders of pictures sorted by the model's answers.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use serde_json::Value;
use vitscope::models::{self, Precision, Preprocessor, save_folder};
use vitscope::rng::Rng;
use vitscope::vit::{VitConfig, init};

use crate::common::small_config;

const LABELS: [&str; 3] = ["Cup of coffee", "boat", "T-shirt"];
const EDGE_PX: u32 = 12;

/// Files of a folder, with the class that the model predicts for each.
type Folder = (&'static str, &'static [(&'static str, usize)]);

/// Eight of ten answers are right: a ferry is a boat, and the model knows neither a bed nor a book.
const FOLDERS: [Folder; 6] = [
    ("BOAT", &[("A_2.png", 1), ("B_tiny_3.png", 2)]),
    ("Ferry", &[("A_0.png", 1), ("A_1.png", 1)]),
    ("bed", &[("A_0.png", 0)]),
    ("book", &[("A_0.png", 1)]),
    (
        "cup_of-coffee",
        &[
            ("A_0.png", 0),
            ("A_1.png", 0),
            ("A_2.png", 0),
            ("B_tiny_3.png", 1),
        ],
    ),
    ("t shirt", &[("A_0.png", 2), ("A_1.png", 2)]),
];

fn run(args: &str, folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vitscope"))
        .args(args.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap()
}

fn stdout(args: &str, folder: &Path) -> String {
    let output = run(args, folder);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args}: {log}");
    String::from_utf8(output.stdout).unwrap()
}

fn check_refused(args: &str, folder: &Path, expected: &str) {
    let output = run(args, folder);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args}: {log}");
    assert!(
        log.starts_with("error: ") && log.lines().count() == 1,
        "{args}: {log}"
    );
    assert!(log.contains(expected), "{args}: {log}");
}

/// Returns the logits of single-color pictures.
fn logits(model: &models::Model, colors: &[[u8; 3]]) -> Vec<Vec<f32>> {
    let n_pixels = (EDGE_PX * EDGE_PX) as usize;
    let rgb: Vec<Vec<u8>> = colors.iter().map(|color| color.repeat(n_pixels)).collect();
    let images = model.images_from_rgb(&rgb).unwrap();
    let logits = model.vit.forward(&images).unwrap().logits.unwrap();
    logits.to_vec2().unwrap()
}

/// Saves a model that predicts each of its classes for about a third of all colors, and returns the colors by predicted
/// class, in order of increasing confidence.
fn save_model(folder: &Path) -> [Vec<[u8; 3]>; 3] {
    let aliases = [("ferry", "boat"), ("bed", "furniture")];
    let config = VitConfig {
        labels: LABELS.map(str::to_owned).into(),
        label_aliases: aliases
            .map(|(alias, label)| (alias.into(), label.into()))
            .into(),
        ..small_config()
    };
    let mut rng = Rng::new(5);
    let mut weights: HashMap<String, Tensor> = init::init(&config, &mut rng).unwrap();
    let classifier = rng.normal_tensor((3, config.hidden_size), &Device::Cpu);
    weights.insert("classifier.weight".into(), classifier.unwrap());
    let save = |weights: &HashMap<String, Tensor>| {
        let preprocessor = Preprocessor::square(EDGE_PX as usize);
        save_folder(folder, &config, &preprocessor, weights, Precision::F32).unwrap();
        models::open(folder.to_str().unwrap(), &Device::Cpu).unwrap()
    };
    let colors: Vec<[u8; 3]> = (0..600)
        .map(|_| [0; 3].map(|_: u8| rng.below(256) as u8))
        .collect();
    let found = logits(&save(&weights), &colors);
    let bias = [0, 1, 2].map(|class| {
        let sum: f32 = found.iter().map(|logits| logits[class]).sum();
        -sum / found.len() as f32
    });
    weights.insert(
        "classifier.bias".into(),
        Tensor::new(&bias, &Device::Cpu).unwrap(),
    );
    let mut by_class = [const { Vec::new() }; 3];
    for (color, logits) in colors.iter().zip(logits(&save(&weights), &colors)) {
        let mut order = [0, 1, 2];
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let others = logits.iter().map(|logit| (logit - logits[order[0]]).exp());
        by_class[order[0]].push((1.0 / others.sum::<f32>(), *color));
    }
    by_class.map(|mut colors| {
        colors.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        colors.into_iter().map(|(_, color)| color).collect()
    })
}

fn save_picture(path: &Path, color: [u8; 3]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(EDGE_PX, EDGE_PX, Rgb(color))
        .save(path)
        .unwrap();
}

/// Prepares a model in `m` and its pictures in `data`; the model is less sure of its wrong answers, whose file names
/// contain `tiny`.
fn prepare(folder: &Path) {
    let mut colors = save_model(&folder.join("m"));
    for (class, files) in FOLDERS {
        for (file, named) in files {
            let colors = &mut colors[*named];
            let place = match file.contains("tiny") {
                true => colors.len() / 2,
                false => colors.len() - 1,
            };
            let path = folder.join("data").join(class).join(file);
            save_picture(&path, colors.remove(place));
        }
    }
}

#[test]
fn a_folder_per_class_is_measured_by_label_alias_and_file_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let all = stdout(
        "eval classifier --model m --data data --json all.json --csv all.csv --confusions all.png",
        folder,
    );
    for expected in [
        "4 classes, 10 pictures\n",
        "top-1 accuracy 0.8000 on 10 pictures (95 % interval 0.4902 to 0.9433)\n",
        "top-5 accuracy 1.0000 on 10 pictures",
        "cup_of-coffee  0.7500 on 4  1.0000  boat, 1\n",
        "skipped 2 classes that the model does not know: bed, book\n",
    ] {
        assert!(all.contains(expected), "{expected:?} is not in\n{all}");
    }
    let csv = std::fs::read_to_string(folder.join("all.csv")).unwrap();
    let expected = "class,label,pictures,top1,top5,wrong_answer,wrong_count\n\
        BOAT,boat,2,0.5,1,T-shirt,1\n\
        Ferry,boat,2,1,1,,0\n\
        cup_of-coffee,Cup of coffee,4,0.75,1,boat,1\n\
        t shirt,T-shirt,2,1,1,,0\n";
    assert_eq!(csv, expected);
    assert!(image::open(folder.join("all.png")).unwrap().width() > 0);

    let json = std::fs::read_to_string(folder.join("all.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["unknown_classes"], serde_json::json!(["bed", "book"]));
    let pairs = serde_json::json!([
        {"labels": ["Cup of coffee", "boat"], "counts": [1, 0]},
        {"labels": ["boat", "T-shirt"], "counts": [1, 0]},
    ]);
    assert_eq!(json["confusions"], pairs);
    // Of three classes, the predicted one has a probability of at least one third.
    let coverage = json["coverage"].as_array().unwrap();
    let coverage: Vec<f64> = coverage
        .iter()
        .map(|sure| sure["coverage"].as_f64().unwrap())
        .collect();
    assert_eq!((coverage.len(), &coverage[..3]), (9, &[1.0; 3][..]));
    assert!(coverage.is_sorted_by(|a, b| a >= b), "{coverage:?}");
    let bins = json["confidence_bins"].as_array().unwrap();
    let in_bins: u64 = bins
        .iter()
        .map(|bin| bin["answers"].as_u64().unwrap())
        .sum();
    assert_eq!((bins.len(), in_bins), (15, 10));

    let sharp = stdout(
        "eval classifier --model m --data data --except *_tiny_*",
        folder,
    );
    let tier = stdout("eval classifier --model m --data data --only A_*", folder);
    assert!(
        sharp.contains("top-1 accuracy 1.0000 on 8 pictures"),
        "{sharp}"
    );
    assert_eq!(sharp, tier);
    let rest = stdout(
        "eval classifier --model m --data data --only B_* --only C_* --input crop --sure-accuracy 0.5",
        folder,
    );
    assert!(
        rest.contains("top-1 accuracy 0.0000 on 2 pictures"),
        "{rest}"
    );
    assert!(
        rest.contains("no threshold gives sure answers an accuracy of 0.5\n"),
        "{rest}"
    );
}

#[test]
fn the_printed_threshold_leaves_the_printed_share_of_right_answers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let args = "eval classifier --model m --data data --sure-accuracy 0.85 --json s.json";
    stdout(args, folder);
    let report = || -> Value {
        let json = std::fs::read_to_string(folder.join("s.json")).unwrap();
        serde_json::from_str(&json).unwrap()
    };
    let chosen = report()["chosen"].clone();
    let threshold = chosen["threshold"].as_f64().unwrap();
    assert!(chosen["right"]["accuracy"].as_f64().unwrap() >= 0.85);
    let again = stdout(&format!("{args} --not-sure-below {threshold}"), folder);
    assert_eq!(report()["not_sure_below"], chosen);
    let sure = format!("sure at or above {threshold}: ");
    assert!(again.contains(&sure), "{again}");
}

#[test]
fn unreadable_pictures_are_counted_and_named_and_end_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let cups = folder.join("data/cup_of-coffee");
    std::fs::write(cups.join("A_header.png"), "no picture").unwrap();
    let cut = cups.join("A_cut.png");
    let noise = |x: u32, y: u32| Rgb([(x * y * 31) as u8, (x * 57) as u8, (y * 91) as u8]);
    RgbImage::from_fn(32, 32, noise).save(&cut).unwrap();
    let whole = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    // With a batch of one, the unreadable picture makes an empty batch.
    let found = stdout("eval classifier --model m --data data --batch 1", folder);
    assert!(
        found.contains("top-1 accuracy 0.8000 on 10 pictures"),
        "{found}"
    );
    assert!(found.contains("skipped as unreadable: 2\n"), "{found}");
    assert!(
        found.contains("A_header.png") && found.contains("A_cut.png"),
        "{found}"
    );
    let others = stdout("eval classifier --model m --data data --only B_*", folder);
    assert!(!others.contains("unreadable"), "{others}");
    check_refused(
        "eval classifier --model m --data data --only *_cut.*",
        folder,
        "A_cut.png",
    );
}

#[test]
fn data_of_another_shape_are_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    save_model(&folder.join("m"));
    save_picture(&folder.join("split/train/boat/A.png"), [0; 3]);
    save_picture(&folder.join("split/val/boat/A.png"), [0; 3]);
    save_picture(&folder.join("flat/A.png"), [0; 3]);
    save_picture(&folder.join("beside/boat/A.png"), [0; 3]);
    save_picture(&folder.join("beside/B.png"), [0; 3]);
    save_picture(&folder.join("strange/bed/A.png"), [0; 3]);
    save_picture(&folder.join("some/bed/A.png"), [0; 3]);
    save_picture(&folder.join("some/boat/B.png"), [0; 3]);
    std::fs::create_dir(folder.join("empty")).unwrap();
    let check = |args: &str, expected: &str| {
        check_refused(
            &format!("eval classifier --model m --data {args}"),
            folder,
            expected,
        );
    };
    check(
        "split",
        "expected a folder per class, but \"train\" contains folders; pass the part to measure on: \"split\"",
    );
    check(
        "flat",
        "expected a folder per class, but the folder itself contains pictures: \"flat\"",
    );
    check("flat/A.png", "expected a folder per class, got a file");
    check("beside", "picture lies beside the class folders");
    check("empty", "folder has no pictures");
    check("gone", "no such folder: \"gone\"");
    check(
        "red-patches --only A_*",
        "pictures have no file names to select by",
    );
    check(
        "some --only C_*",
        "none of the 2 pictures has a requested file name: \"some\"",
    );
    check(
        "some --only A*",
        "no picture belongs to a class that the model knows: \"some\"",
    );
    check(
        "strange",
        "none of the data's 1 classes: the data have bed; the model has Cup of coffee, boat, T-shirt",
    );
    let output = run("eval classifier --model m --data some --only [", folder);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains("--only"), "{log}");
}

/// If a data set has its own split, the test half is used, which training leaves out.
#[test]
fn a_split_that_training_knows_is_measured_on_its_test_half() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    save_model(&folder.join("m"));
    for file in ["train/boat/1.png", "train/boat/2.png", "test/boat/3.png"] {
        save_picture(&folder.join("halves").join(file), [9; 3]);
    }
    let found = stdout("eval classifier --model m --data halves", folder);
    assert!(found.contains("1 classes, 1 pictures"), "{found}");
}

/// Fits the familiarity with `data` named in the model's words, so that `eval classifier` counts the same answers.
fn fit_familiarity(folder: &Path, sure_accuracy: f64) -> String {
    let args = format!(
        "train familiarity --model m --data data --held-out data --except *_tiny_* --sure-accuracy {sure_accuracy}"
    );
    stdout(&args, folder)
}

#[test]
fn what_is_familiar_decides_which_answers_are_sure() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let told = fit_familiarity(folder, 1.0);
    assert!(
        told.starts_with("familiarity fitted on 10 pictures, 8 held out\n"),
        "{told}"
    );
    let trust = told.lines().find_map(|line| {
        let rest = line.strip_prefix("sure at a trust of at least ")?;
        rest.split_once(':').map(|(threshold, _)| threshold)
    });
    let threshold: f32 = trust.unwrap().parse().unwrap();
    let model = models::open(folder.join("m").to_str().unwrap(), &Device::Cpu).unwrap();
    let familiarity = model.familiarity.as_ref().unwrap();
    assert_eq!(familiarity.sure_from, threshold);
    assert_eq!(model.sure_from(), Some(threshold));

    // The measurement uses the same trust and the same threshold.
    let measured = stdout("eval classifier --model m --data data", folder);
    assert!(
        measured.contains(&format!("\nsure at or above {threshold}: ")),
        "{measured}"
    );
    let inspected = stdout("models inspect m", folder);
    assert!(
        inspected.contains("the picture's familiarity"),
        "{inspected}"
    );

    // A striped picture is unlike all the plain ones.
    let stripes = RgbImage::from_fn(EDGE_PX, EDGE_PX, |x, y| {
        Rgb([(x % 2 * 255) as u8, (y % 3 * 90) as u8, 255])
    });
    stripes.save(folder.join("stripes.png")).unwrap();
    let plain = folder.join("data/cup_of-coffee/A_0.png");
    std::fs::copy(plain, folder.join("plain.png")).unwrap();
    let trusts = ["stripes", "plain"].map(|name| {
        let args = format!(
            "still {name}.png {name}-map.png --model m --method rollout --scores {name}.jsonl"
        );
        stdout(&args, folder);
        let record = std::fs::read_to_string(folder.join(format!("{name}.jsonl"))).unwrap();
        let record: Value = serde_json::from_str(record.lines().last().unwrap()).unwrap();
        let picture = image::open(folder.join(format!("{name}.png")))
            .unwrap()
            .to_rgb8();
        let images = model.images_from_rgb(&[picture.into_raw()]).unwrap();
        let tokens = model.vit.forward(&images).unwrap().tokens;
        let token = tokens.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        let named = record["predicted"]["index"].as_u64().unwrap() as usize;
        let probability = record["predicted"]["probability"].as_f64().unwrap() as f32;
        let trust = familiarity.trust(&token, &[(named, probability)]).unwrap()[0];
        let distance = familiarity.distances(&token, &[named]).unwrap()[0];
        assert_eq!(record["not_sure"], trust < threshold, "{name} {trust}");
        let unfamiliar = trust < threshold && probability >= threshold;
        assert_eq!(record["unfamiliar"], unfamiliar, "{name} {probability}");
        (trust, distance)
    });
    let [(_, far), (_, near)] = trusts;
    assert!(far > 2.0 * near, "{far} {near}");
}

#[test]
fn what_is_familiar_belongs_to_the_weights_that_it_was_measured_with() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    fit_familiarity(folder, 0.7);
    let file = folder.join("m/familiarity.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let of_m = models::open(folder.join("m").to_str().unwrap(), &Device::Cpu).unwrap();
    let inspected = || stdout("models inspect m", folder);
    assert!(inspected().contains("the picture's familiarity"));

    // 8-bit weights are different weights: the familiarity is left out.
    let shrunk = stdout("models shrink m --out small", folder);
    assert!(shrunk.contains("familiarity"), "{shrunk}");
    assert!(!folder.join("small/familiarity.safetensors").exists());
    std::fs::write(folder.join("small/familiarity.safetensors"), &bytes).unwrap();
    let of_small = format!(
        "the familiarity file was made for weights with sha256 {:?}, but the model's weights have",
        of_m.weights_sha256
    );
    check_refused("models inspect small", folder, &of_small);

    // If it is measured again, the old file does not get in the way.
    let args = "train familiarity --model small --data data --held-out data --sure-accuracy 0.7";
    stdout(args, folder);
    assert!(stdout("models inspect small", folder).contains("the picture's familiarity"));

    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    check_refused("models inspect m", folder, "familiarity.safetensors");
}

#[test]
fn familiarity_without_pictures_of_the_models_classes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    save_picture(&folder.join("other/bed/0.png"), [3, 4, 5]);
    for (learned, held) in [("other", "data"), ("data", "other")] {
        let args = format!("train familiarity --model m --data {learned} --held-out {held}");
        check_refused(&args, folder, "class");
        assert!(!folder.join("m/familiarity.safetensors").exists());
    }
}
