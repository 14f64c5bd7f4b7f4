//! The red-patches task on explainers with scores computed by hand.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use vitscope::data::red_patches::RedPatches;
use vitscope::data::{Dataset, Split};
use vitscope::eval::faithfulness::{Entry, Outcome, Scores, Threshold, score};
use vitscope::explain::diffmask::{DiffMask, DiffMaskOptions};
use vitscope::explain::{Explainer, Pass};
use vitscope::rng::Rng;
use vitscope::vit::{Vit, VitConfig, init};
use vitscope_core::gates::{MARGIN, Removal};
use vitscope_lab::eval::gallery::{self, Column};

fn vit() -> Vit {
    let config = VitConfig {
        image_size: 12,
        patch_size: 4,
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 16,
        labels: vec!["few".into(), "many".into()],
        ..VitConfig::default()
    };
    let mut rng = Rng::new(1);
    let weights = init::init(&config, &mut rng).unwrap().into_iter();
    // Freshly initialized weights are so small that no mask changes an answer.
    let mut weights: HashMap<String, Tensor> = weights
        .map(|(name, weight)| {
            let grown = ["projection.weight", "value.weight", "dense.weight"]
                .iter()
                .any(|end| name.ends_with(end));
            let weight = if grown {
                (weight * 20.0).unwrap()
            } else {
                weight
            };
            (name, weight)
        })
        .collect();
    let classifier = rng.normal_tensor((2, 16), &Device::Cpu).unwrap();
    weights.insert("classifier.weight".into(), (classifier * 2.0).unwrap());
    Vit::load(config, &weights).unwrap()
}

/// Sees the color of each cell; what it keeps is a function of whether the cell is red.
struct Oracle(fn(&Tensor) -> candle_core::Result<Tensor>);

impl Explainer for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn attribution(&self, pass: &Pass<'_>) -> vitscope::Result<Tensor> {
        let images = pass.images();
        // The top-left pixel of each cell of 4 × 4 pixels.
        let corners = images.reshape((images.dim(0)?, 3, 3, 4, 3, 4))?;
        let corners = corners.narrow(3, 0, 1)?.narrow(5, 0, 1)?;
        let corners = corners.reshape((images.dim(0)?, 3, 9))?;
        let red = corners.narrow(1, 0, 1)?.gt(0.0)?.to_dtype(DType::F32)?;
        let others = corners.narrow(1, 1, 2)?.max(1)?.unsqueeze(1)?;
        let red = (red * others.lt(0.0)?.to_dtype(DType::F32)?)?.squeeze(1)?;
        Ok((self.0)(&red)?)
    }
}

fn scores(oracle: &Oracle) -> Scores {
    outcome(oracle).best
}

fn outcome(oracle: &Oracle) -> Outcome {
    let grids = RedPatches::new(3, 4, 200, 0, Split::Test).unwrap();
    let entry = Entry {
        name: "oracle".into(),
        explainer: oracle,
        thresholds: &[Threshold::Half],
    };
    let removal = Removal::Baseline(Tensor::zeros(16, DType::F32, &Device::Cpu).unwrap());
    let outcome = score(&vit(), &removal, &grids, &entry, 3).unwrap();
    let example = &outcome.example;
    assert_eq!((example.attributions.len(), example.masks.len()), (3, 3));
    outcome
}

#[test]
fn finding_the_red_cells_or_all_others_is_exact_and_consistent() {
    for oracle in [Oracle(|red| Ok(red.clone())), Oracle(|red| 1.0 - red)] {
        let scores = scores(&oracle);
        assert_eq!(scores.grids, 200);
        assert_eq!(
            (scores.exact, scores.iou, scores.consistency),
            (1.0, 1.0, 1.0)
        );
    }
}

#[test]
fn keeping_everything_is_exact_only_where_all_or_nothing_is_red() {
    let scores = scores(&Oracle(|red| red.ones_like()));
    let grids = RedPatches::new(3, 4, 200, 0, Split::Test).unwrap();
    let plain = (0..200)
        .filter(|&index| matches!(grids.label(index), Some(0 | 9)))
        .count();
    assert_eq!(scores.exact, plain as f64 / 200.0);
    assert_eq!((scores.kept, scores.agreement), (1.0, 1.0));
    assert!(scores.kl.abs() < 1e-6);
    assert!(scores.iou < 0.9);
}

#[test]
fn at_the_margin_the_divergence_stays_within_it() {
    let oracle = Oracle(|red| Ok(red.clone()));
    let Outcome {
        best, at_margin, ..
    } = outcome(&oracle);
    assert!(best.kl > MARGIN, "masks must matter: {best:?}");
    let scores = at_margin;
    assert!(scores.kl > 0.0 && scores.kl <= MARGIN, "{scores:?}");
    assert!(scores.kept > 0.0 && scores.kept < 1.0, "{scores:?}");
}

#[test]
fn a_cell_too_many_is_not_exact() {
    // The first cell is always kept.
    let scores = scores(&Oracle(|red| {
        let first = Tensor::ones((red.dim(0)?, 1), DType::F32, red.device())?;
        Tensor::cat(&[&first, &red.narrow(D::Minus1, 1, 8)?], 1)
    }));
    assert!(scores.exact < 0.7 && scores.iou > 0.7);
}

#[test]
fn a_grid_of_another_size_than_the_model_s_is_refused() {
    let grids = RedPatches::new(2, 6, 10, 0, Split::Test).unwrap();
    let oracle = Oracle(|red| Ok(red.clone()));
    let entry = Entry {
        name: "oracle".into(),
        explainer: &oracle,
        thresholds: &[Threshold::Half],
    };
    let removal = Removal::Baseline(Tensor::zeros(16, DType::F32, &Device::Cpu).unwrap());
    let message = score(&vit(), &removal, &grids, &entry, 0).err().unwrap();
    assert!(
        message
            .to_string()
            .contains("4 cells, but the model sees 9 patches")
    );
}

#[test]
fn the_gallery_has_a_column_for_the_grid_and_one_a_method() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gallery.png");
    let grids = RedPatches::new(3, 4, 2, 0, Split::Test).unwrap();
    let pictures: Vec<_> = (0..2).map(|index| grids.picture(index).unwrap()).collect();
    let example = vitscope::eval::faithfulness::Example {
        attributions: vec![vec![0.5; 9]; 2],
        masks: vec![vec![true; 9]; 2],
    };
    let column = |name| Column {
        name,
        example: &example,
        unit: true,
    };
    gallery::save(&pictures, &[column("a"), column("b")], (3, 3), &path).unwrap();
    let sheet = image::open(&path).unwrap();
    assert_eq!(
        (sheet.width(), sheet.height()),
        (24 + 3 * 168, 40 + 2 * 168)
    );
}

/// Shipped gates find exactly the red cells; the bounds are those that the project promises.
#[test]
fn shipped_gates_of_every_seed_find_the_red_cells() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/red-patches");
    let model = vitscope::models::open(folder.to_str().unwrap(), &Device::Cpu).unwrap();
    let grids = RedPatches::new(3, 16, 500, 7, Split::Test).unwrap();
    let seeds = ["seeds/1", "seeds/2"].map(|seed| {
        let folder = folder.join(seed);
        vitscope_core::gates::Gates::open(&folder, &model.vit, &model.weights_sha256, &Device::Cpu)
            .unwrap()
            .0
    });
    for gates in model.gates.iter().chain(&seeds) {
        let method = DiffMask::new(gates, None, DiffMaskOptions::default()).unwrap();
        let entry = Entry {
            name: "diffmask".into(),
            explainer: &method,
            thresholds: &[Threshold::Half],
        };
        let scores = score(&model.vit, gates.removal(), &grids, &entry, 0)
            .unwrap()
            .best;
        assert!(scores.exact >= 0.95 && scores.iou >= 0.98, "{scores:?}");
        assert!(
            scores.agreement >= 0.98 && scores.consistency == 1.0,
            "{scores:?}"
        );
        assert!(scores.kl <= 0.1, "{scores:?}");
    }
}

#[cfg(all(feature = "cli", feature = "live"))]
mod program {
    use std::process::{Command, Output};

    /// Recipe table for a model too small to be right.
    const CLASSIFIER: &str = "[classifier]\nepochs = 1\nbatch = 800\nhidden-size = 16\nheads = 2\nblocks = 1\n\
        patch-size = 16\nshift-px = 0\nmirror = false\n";

    fn vitscope(args: &str, folder: &std::path::Path) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vitscope"))
            .args(args.split_whitespace())
            .current_dir(folder)
            .output()
            .unwrap()
    }

    fn stdout(args: &str, folder: &std::path::Path) -> String {
        let output = vitscope(args, folder);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args}: {log}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The class folders are numbered differently from the model's classes; with nothing removed, all pictures in the
    /// folder of the predicted class are right.
    #[test]
    fn labels_of_folders_are_the_model_s_classes_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let color = |rgb: [u8; 3]| image::RgbImage::from_pixel(32, 32, image::Rgb(rgb));
        let mut classes = Vec::new();
        for picture in [color([40, 90, 200]), color([200, 30, 30])] {
            picture.save(path.join("one.png")).unwrap();
            stdout(
                "still one.png out.png --model cifar10 --method raw-attention --scores one.jsonl --overwrite --quiet",
                path,
            );
            let record = std::fs::read_to_string(path.join("one.jsonl")).unwrap();
            let record: serde_json::Value = serde_json::from_str(&record).unwrap();
            let class = record["predicted"]["label"].as_str().unwrap().to_owned();
            std::fs::create_dir_all(path.join("data").join(&class)).unwrap();
            for number in 0..40 {
                let file = path.join("data").join(&class).join(format!("{number}.png"));
                picture.save(file).unwrap();
            }
            classes.push(record["predicted"]["index"].as_u64().unwrap());
        }
        classes.sort_unstable();
        assert_ne!(classes, [0, 1], "the folders' own numbers tell nothing");
        stdout(
            "eval perturbation --protocol chefer --model cifar10 --data data --methods raw-attention --images 4 --json s.json",
            path,
        );
        let fewer = vitscope(
            "eval perturbation --model cifar10 --data data --methods raw-attention --images 9",
            path,
        );
        let log = String::from_utf8(fewer.stderr).unwrap();
        assert!(
            log.contains("using only 4 of 9 images: the test half of \"data\""),
            "{log}"
        );
        let scores = std::fs::read_to_string(path.join("s.json")).unwrap();
        let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
        for measure in scores["measures"].as_array().unwrap() {
            assert_eq!(measure["rows"][0]["points"][0], 1.0, "{measure}");
        }
    }

    /// The whole way from nothing to a table, with a model too small to be right.
    #[test]
    fn a_model_is_trained_gets_gates_and_is_scored() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = format!(
            "data = \"red-patches\"\n\
            {CLASSIFIER}\
            [diffmask]\nsteps = 3\nwarmup-steps = 1\ntest-pictures = 8\n"
        );
        std::fs::write(folder.path().join("train.toml"), recipe).unwrap();
        let trained = stdout(
            "train classifier --recipe train.toml --out m",
            folder.path(),
        );
        assert!(trained.contains("test accuracy"), "{trained}");
        let trained = stdout(
            "train diffmask --recipe train.toml --model m --set steps=2 --seed 4",
            folder.path(),
        );
        assert!(trained.contains("wrote gates to"), "{trained}");
        for file in [
            "train.csv",
            "train.png",
            "gates.csv",
            "gates.png",
            "gates.json",
            "report.html",
        ] {
            assert!(folder.path().join("m").join(file).exists(), "{file}");
        }
        assert!(!folder.path().join("m/checkpoint.safetensors").exists());
        let card = std::fs::read_to_string(folder.path().join("m/gates.json")).unwrap();
        assert!(
            card.contains("\"seed\": 4") && card.contains("\"steps\": 2"),
            "{card}"
        );
        let table = stdout(
            "eval faithfulness --model m --grids 20 --method rollout,raw-attention --picture p.png --json s.json",
            folder.path(),
        );
        for method in ["diffmask, seed 4", "rollout", "raw-attention"] {
            assert!(table.contains(method), "{table}");
        }
        let scores = std::fs::read(folder.path().join("s.json")).unwrap();
        let scores: serde_json::Value = serde_json::from_slice(&scores).unwrap();
        assert_eq!(scores["scores"].as_array().unwrap().len(), 3);
        assert!(folder.path().join("p.png").exists());
        // Without names, all methods that work with the model are meant: GradMask has no use for its only block.
        let masks = stdout(
            "eval gates --model m --data red-patches --pictures 40 --margin 0.02",
            folder.path(),
        );
        let row = |name: &str| -> Vec<f64> {
            let line = masks
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.split_whitespace()
                .map(|number| number.parse().unwrap())
                .collect()
        };
        assert!(masks.starts_with("40 pictures"), "{masks}");
        assert_eq!(
            row("gates, from 0.5 on")[0],
            row("random, as many")[0],
            "{masks}"
        );
        for cut in ["gates, cut at the margin", "random, cut at the margin"] {
            let [_, kl, within, _] = row(cut)[..] else {
                panic!("{masks}")
            };
            assert!(kl <= 0.02 && within == 1.0, "{masks}");
        }
        let output = vitscope("eval faithfulness --model m --grids 2", folder.path());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && log.contains("skipped: gradmask"),
            "{log}"
        );
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(
            table.contains("chefer") && !table.contains("gradmask"),
            "{table}"
        );
    }

    /// A head, gates of two seeds and an interpreter for a model that stays unchanged, and a model trained together
    /// with its interpreter.
    #[test]
    fn parts_are_trained_for_a_model_and_all_are_found_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = format!(
            "data = \"red-patches\"\n\
            {CLASSIFIER}\
            [probe]\nepochs = 2\npictures = 96\ntest-pictures = 64\n\
            [diffmask]\nsteps = 2\nwarmup-steps = 1\ntest-pictures = 8\n\
            [ia-vit]\nsteps = 2\nbatch = 8\ntest-pictures = 8\n"
        );
        std::fs::write(folder.path().join("train.toml"), recipe).unwrap();
        let run = |args: &str| stdout(&format!("{args} --recipe train.toml"), folder.path());
        let joint = run("train ia-vit --out base --set ia-vit.alignment=jensen-shannon");
        assert!(joint.contains("interpreter on test pictures") && joint.contains("sha256"));
        let card = std::fs::read_to_string(folder.path().join("base/interpreter.json")).unwrap();
        assert!(card.contains("\"jensen-shannon\""), "{card}");

        let head = run("train classifier --init base --freeze --out top");
        assert!(head.contains("use it with --backbone base"), "{head}");
        let looks_at = || {
            let inspected = stdout("models inspect wide --backbone base", folder.path());
            let input = inspected.lines().find(|line| line.starts_with("input"));
            input.unwrap().to_owned()
        };
        run("train classifier --init base --freeze --out wide --set input-px=96");
        assert!(looks_at().contains("96 x 96 px"), "{}", looks_at());
        // Another head replaces the first one and its size.
        run("train classifier --init base --freeze --out wide");
        assert!(looks_at().contains("48 x 48 px"), "{}", looks_at());
        let gates = run("train diffmask --model top --backbone base --seeds 2 --seed 7");
        assert!(gates.contains("kept over 2 seeds"), "{gates}");
        assert!(folder.path().join("top/seeds/8/gates.json").exists());
        run("train ia-vit --model top --backbone base");
        run("train diffmask --model top --backbone base --out other --set seed=5");
        let card = std::fs::read_to_string(folder.path().join("other/gates.json")).unwrap();
        assert!(card.contains("\"seed\": 5"), "{card}");

        let show = |args: &str| stdout(args, folder.path());
        let inspected = show("models inspect top --backbone base");
        assert!(
            inspected.contains("2 states") || inspected.contains("3 states"),
            "{inspected}"
        );
        assert!(inspected.contains("interpreter  IA-ViT") && inspected.contains("ia-vit"));
        let scored = show("eval classifier --model top --backbone base --data red-patches");
        assert!(
            scored.contains("top-1 accuracy") && scored.contains("95 % interval"),
            "{scored}"
        );
        let refused = vitscope("models inspect top", folder.path());
        let log = String::from_utf8(refused.stderr).unwrap();
        assert!(
            log.contains("--backbone") || log.contains("backbone"),
            "{log}"
        );
    }

    #[test]
    fn the_runs_of_a_file_are_done_once_and_make_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = format!(
            "data = \"red-patches\"\n\
            {CLASSIFIER}\
            [diffmask]\nsteps = 2\nwarmup-steps = 1\ntest-pictures = 8\n\
            [[run]]\nname = \"plain\"\ntrain = \"classifier\"\nseeds = [0, 1]\n\
            [[run]]\nname = \"kd\"\ntrain = \"ia-vit\"\nset = {{ ia-vit = {{ alignment = \"none\" }} }}\n\
            [[run]]\nname = \"gates\"\ntrain = \"diffmask\"\nmodel = \"runs/plain/0\"\n"
        );
        std::fs::write(folder.path().join("runs.toml"), &recipe).unwrap();
        let run = || stdout("train runs.toml --out runs", folder.path());
        let first = run();
        assert!(first.contains("plain, seed 1"), "{first}");
        let table = std::fs::read_to_string(folder.path().join("runs/runs.md")).unwrap();
        assert_eq!(table.lines().count(), 5, "{table}");
        assert!(
            table.contains("| plain | 2 |") && table.contains("interpreter kl"),
            "{table}"
        );
        let card = folder.path().join("runs/kd/0/interpreter.json");
        assert!(
            std::fs::read_to_string(card)
                .unwrap()
                .contains("\"alignment\": \"none\"")
        );
        let again = run();
        assert!(
            !again.contains(", seed ") && again.trim() == table.trim(),
            "{again}"
        );

        let other = recipe.replace("seeds = [0, 1]", "seeds = [0, 1]\nset = { lr = 0.1 }");
        std::fs::write(folder.path().join("runs.toml"), other).unwrap();
        let refused = vitscope("train runs.toml --out runs", folder.path());
        let log = String::from_utf8(refused.stderr).unwrap();
        assert!(
            log.contains("trained with another recipe") && log.lines().count() == 1,
            "{log}"
        );
    }

    #[test]
    fn a_classifier_of_biased_pictures_is_measured_by_group() {
        let folder = tempfile::tempdir().unwrap();
        let args = "train classifier --data biased-patches --out m --set epochs=1 --set batch=800 \
            --set hidden-size=16 --set heads=2 --set blocks=1 --set patch-size=16";
        stdout(args, folder.path());
        let table = stdout(
            "eval fairness --model m --data biased-patches",
            folder.path(),
        );
        for part in ["favorable answer \"many\"", "without", "equalized odds"] {
            assert!(table.contains(part), "{table}");
        }
        let refused = vitscope("eval fairness --model m --data red-patches", folder.path());
        let log = String::from_utf8(refused.stderr).unwrap();
        assert!(
            log.contains("pictures have no groups") && log.lines().count() == 1,
            "{log}"
        );
    }

    /// Whenever the kill occurs, the last checkpoint is complete and the run resumes from it.
    #[test]
    fn a_run_that_was_killed_ends_in_the_weights_of_one_that_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let args = "train classifier --data red-patches --threads 1 --checkpoint 1 \
            --set epochs=1 --set batch=300 --set hidden-size=16 --set heads=2 --set blocks=1 \
            --set patch-size=16 --set keep-patches=0.5 --out";
        let run = |out: &str| stdout(&format!("{args} {out}"), folder.path());
        run("whole");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vitscope"));
        command.args(args.split_whitespace()).arg("killed");
        command
            .current_dir(folder.path())
            .stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let checkpoint = folder.path().join("killed/checkpoint.safetensors");
        while !checkpoint.exists() {
            assert!(child.try_wait().unwrap().is_none(), "the run ended unseen");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!folder.path().join("killed/model.safetensors").exists());
        run("killed");
        let weights = |out: &str| {
            let path = folder.path().join(out).join("model.safetensors");
            std::fs::read(path).unwrap()
        };
        assert!(weights("whole") == weights("killed"));
    }

    #[test]
    fn what_cannot_be_trained_on_is_refused_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("empty")).unwrap();
        for (args, expected) in [
            ("train classifier --out m", "error: no data"),
            (
                "train classifier --out m --data gone",
                "error: no such file or folder: \"gone\"",
            ),
            (
                "train classifier --out m --data empty",
                "error: folder has no pictures",
            ),
            (
                "train classifier --out m --data red-patches --set epochs=many",
                "error: recipe table \"classifier\"",
            ),
            (
                "train diffmask --model gone --data red-patches",
                "error: model is neither",
            ),
            ("eval faithfulness --model gone", "error: model is neither"),
            (
                "train diffmask --model red-patches --data red-patches",
                "error: training for a model that is not a folder requires --out: \"red-patches\"",
            ),
        ] {
            let output = vitscope(args, folder.path());
            let log = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{args}: {log}");
            assert!(
                log.starts_with(expected) && log.lines().count() == 1,
                "{args}: {log}"
            );
            assert!(!folder.path().join("m").exists(), "{args}");
        }
    }
}
