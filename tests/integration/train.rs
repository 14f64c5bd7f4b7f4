//! Training: exact resume, reproducible runs, refusals.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use vitscope::data::red_patches::RedPatches;
use vitscope::data::{Dataset, Picture, Split, images_from_pictures};
use vitscope::eval::classification::{count_by_class, total};
use vitscope::explain::attention::RawAttention;
use vitscope::explain::chefer::Chefer;
use vitscope::explain::{Explainer, Forward, Needs, Target};
use vitscope::frame::FrameSize;
use vitscope::interpreter::{Interpreter, Pooling};
use vitscope::models::{self, Precision, Preprocessor, Reference, save_folder, save_head};
use vitscope::rng::Rng;
use vitscope::train::classifier::{
    self, ClassifierRecipe, NORMALIZATION, Start, TrainedClassifier,
};
use vitscope::train::diffmask::{self, DiffMaskRecipe, RemovalKind, Sparsity, TrainedGates};
use vitscope::train::iavit::{self, Alignment, IaVitRecipe, Teacher, TrainedInterpreter};
use vitscope::train::order::{self, OrderRecipe, order_of, rollout_of_halves, rollout_of_patches};
use vitscope::train::probe::{self, ProbeRecipe, TrainedProbe};
use vitscope::train::shapley::{self, Fill, ShapleyRecipe};
use vitscope::train::{Checkpoint, Subject};
use vitscope::vit::{Head, Vit, VitConfig, init};
use vitscope_core::gates::{ClassStream, OrderGates, RankingGates, Removal, clean_pass, features};
use vitscope_core::weights::tensors_from_bytes;
use vitscope_lab::eval::class_names::classes_by_name;
use vitscope_lab::eval::masked_answers;

use crate::common::{fixture, small_config, small_vit};

const SIDE_PX: usize = 12;

fn vit() -> Vit {
    let config = VitConfig {
        image_size: SIDE_PX,
        patch_size: 4,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 32,
        labels: (0..10).map(|count| format!("{count} red")).collect(),
        ..VitConfig::default()
    };
    let weights = init::init(&config, &mut Rng::new(1)).unwrap();
    Vit::load(config, &weights).unwrap()
}

fn grids(len: usize, split: Split) -> RedPatches {
    RedPatches::new(3, SIDE_PX / 3, len, 0, split).unwrap()
}

/// Returns the first `n_pictures` pictures, as a [`subject`] shows them.
fn first_images(data: &dyn Dataset, n_pictures: usize) -> Tensor {
    let pictures: Vec<_> = (0..n_pictures)
        .map(|index| data.picture(index).unwrap())
        .collect();
    images_from_pictures(&pictures, [0.5; 3], [0.5; 3], &Device::Cpu).unwrap()
}

/// Returns the small model with these grids.
fn subject<'a>(vit: &'a Vit, train: &'a dyn Dataset, test: &'a dyn Dataset) -> Subject<'a> {
    Subject {
        vit,
        size: FrameSize {
            width_px: SIDE_PX,
            height_px: SIDE_PX,
        },
        base_sha256: "ab12",
        mean: [0.5; 3],
        std: [0.5; 3],
        train,
        test,
    }
}

fn recipe() -> DiffMaskRecipe {
    DiffMaskRecipe {
        seed: 5,
        steps: 9,
        batch: 4,
        warmup_steps: 2,
        test_steps: 2,
        test_pictures: 8,
        checkpoint_steps: 4,
        ..DiffMaskRecipe::default()
    }
}

/// Returns a recipe with everything that differs from the paper.
fn dropping_recipe() -> DiffMaskRecipe {
    DiffMaskRecipe {
        removal: RemovalKind::Drop,
        sparsity: Sparsity::Probability,
        standardize: true,
        masked_share: Some(0.2),
        whole_depth_share: 0.5,
        ..recipe()
    }
}

/// Trains in `folder`; `watch` receives the step and returns whether to continue.
fn train(
    recipe: &DiffMaskRecipe,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedGates> {
    let (vit, train, test) = (vit(), grids(10, Split::Train), grids(8, Split::Test));
    let subject = subject(&vit, &train, &test);
    diffmask::train(recipe, subject, folder, &mut |progress| {
        watch(progress.step)
    })
}

/// Returns values by name, for comparison bit by bit.
fn bits<'a>(
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> BTreeMap<String, Vec<u32>> {
    tensors
        .into_iter()
        .map(|(name, tensor)| {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            (name.clone(), values.into_iter().map(f32::to_bits).collect())
        })
        .collect()
}

#[test]
fn a_run_that_was_killed_and_resumed_gives_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let killed = tempfile::tempdir().unwrap();
    let uninterrupted = train(&recipe(), whole.path(), &mut |step| {
        if step == 7 {
            // A kill at step 7 leaves the checkpoint of step 4.
            let file = Checkpoint::path(Path::new(""));
            std::fs::copy(whole.path().join(&file), killed.path().join(&file)).unwrap();
        }
        true
    });
    let mut first_step = None;
    let resumed = train(&recipe(), killed.path(), &mut |step| {
        first_step.get_or_insert(step);
        true
    });
    assert_eq!(first_step, Some(5));
    let (uninterrupted, resumed) = (uninterrupted.unwrap(), resumed.unwrap());
    assert_eq!(bits(&uninterrupted.tensors), bits(&resumed.tensors));
    assert_eq!(uninterrupted.card, resumed.card);
}

#[test]
fn a_run_that_is_ended_early_goes_on_where_it_was() {
    for recipe in [recipe(), dropping_recipe()] {
        let whole = tempfile::tempdir().unwrap();
        let ended = tempfile::tempdir().unwrap();
        let uninterrupted = train(&recipe, whole.path(), &mut |_| true).unwrap();
        let first = train(&recipe, ended.path(), &mut |step| step < 3).unwrap();
        assert!(!first.complete && uninterrupted.complete);
        let resumed = train(&recipe, ended.path(), &mut |_| true).unwrap();
        assert_eq!(bits(&uninterrupted.tensors), bits(&resumed.tensors));
        let csv = |folder: &Path| std::fs::read_to_string(folder.join("gates.csv")).unwrap();
        assert_eq!(csv(whole.path()), csv(ended.path()));
        assert!(whole.path().join("gates.png").exists());
    }
}

/// The objective is composed of the curves: λ · (KL − margin) + sparsity.
#[test]
fn what_is_made_small_is_the_expected_kept_share_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = DiffMaskRecipe {
        steps: 1,
        lambda: 3.0,
        margin: 0.25,
        ..dropping_recipe()
    };
    train(&recipe, folder.path(), &mut |_| true).unwrap();
    let csv = std::fs::read_to_string(folder.path().join("gates.csv")).unwrap();
    let first = csv.lines().nth(1).unwrap().split(',').skip(1);
    let first: Vec<f64> = first.map(|value| value.parse().unwrap()).collect();
    let [loss, kl, kept, ..] = first[..] else {
        panic!("{csv}");
    };
    assert!((loss - (3.0 * (kl - 0.25) + kept)).abs() < 1e-4, "{csv}");
    assert!(kept > 0.5 && kept < 1.0, "{csv}");
}

/// Untrained gates keep all patches, so a multiplier falls in every step that involves it.
#[test]
fn multipliers_are_one_a_depth_or_one_for_all() {
    let multipliers = |per_depth| -> Vec<(f64, f64)> {
        let folder = tempfile::tempdir().unwrap();
        let recipe = DiffMaskRecipe {
            per_depth,
            ..recipe()
        };
        train(&recipe, folder.path(), &mut |_| true).unwrap();
        let csv = std::fs::read_to_string(folder.path().join("gates.csv")).unwrap();
        let number = |line: &str, column: usize| -> f64 {
            line.split(',').nth(column).unwrap().parse().unwrap()
        };
        let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
        let column = |name| header.iter().position(|column| *column == name).unwrap();
        let (lambda, depth) = (column("lambda"), column("depth"));
        csv.lines()
            .skip(1)
            .map(|line| (number(line, depth), number(line, lambda)))
            .collect()
    };
    let shared = multipliers(false);
    assert!(
        shared.windows(2).all(|pair| pair[1].1 < pair[0].1),
        "{shared:?}"
    );
    let own = multipliers(true);
    for (idx, (depth, lambda)) in own.iter().enumerate() {
        let before = own[..idx]
            .iter()
            .filter(|(other, _)| other == depth)
            .count();
        // It has come as far as the shared multiplier in as many steps.
        assert!(
            (lambda - shared[before].1).abs() < 0.05,
            "{own:?} {shared:?}"
        );
    }
}

#[test]
fn gates_depend_on_the_seed_and_on_nothing_else() {
    let gates = |seed| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = DiffMaskRecipe { seed, ..recipe() };
        bits(
            &train(&recipe, folder.path(), &mut |_| true)
                .unwrap()
                .tensors,
        )
    };
    assert_eq!(gates(5), gates(5));
    assert_ne!(gates(5), gates(6));
}

#[test]
fn a_checkpoint_of_another_recipe_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    train(&recipe(), folder.path(), &mut |step| step < 2).unwrap();
    let other = DiffMaskRecipe {
        margin: 0.2,
        ..recipe()
    };
    let message = train(&other, folder.path(), &mut |_| true).err().unwrap();
    assert!(message.to_string().contains("another recipe"));
}

#[test]
fn the_start_masks_the_share_that_is_asked_for() {
    let pictures: Vec<_> = (0..10)
        .map(|index| grids(10, Split::Train).picture(index).unwrap())
        .collect();
    let images = vitscope::data::images_from_pictures(
        &pictures,
        [0.5; 3],
        [0.5; 3],
        &candle_core::Device::Cpu,
    );
    let clean = vitscope_core::gates::clean_pass(&vit(), &images.unwrap()).unwrap();
    for standardize in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = DiffMaskRecipe {
            steps: 1,
            batch: 10,
            standardize,
            masked_share: Some(0.3),
            lr: 1e-12,
            lr_baseline: 1e-12,
            ..recipe()
        };
        let trained = train(&recipe, folder.path(), &mut |_| true).unwrap();
        let sizes = vitscope_core::gates::GateSizes::new(vit().config());
        let tensors = trained.tensors.into_iter().collect();
        let gates =
            vitscope_core::gates::VotingGates::load(sizes, recipe.stretch, &tensors).unwrap();
        let kept = gates.mask(&clean.states).unwrap().mean_all().unwrap();
        let kept: f32 = kept.to_scalar().unwrap();
        assert!((kept - 0.7).abs() < 1e-3, "{kept}");
    }
}

#[test]
fn pictures_of_another_size_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (vit, test) = (vit(), grids(8, Split::Test));
    let large = RedPatches::new(3, 16, 8, 0, Split::Train).unwrap();
    let subject = subject(&vit, &large, &test);
    let message = diffmask::train(&recipe(), subject, folder.path(), &mut |_| true).err();
    let message = message.unwrap().to_string();
    assert!(
        message.contains("12×12 pixels") && message.contains("48×48"),
        "{message}"
    );
}

#[test]
fn recipes_without_sense_are_refused() {
    for recipe in [
        DiffMaskRecipe {
            batch: 0,
            ..recipe()
        },
        DiffMaskRecipe {
            margin: 0.0,
            ..recipe()
        },
        DiffMaskRecipe {
            masked_share: Some(1.0),
            ..recipe()
        },
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert!(train(&recipe, folder.path(), &mut |_| true).is_err());
    }
}

fn classifier_recipe() -> ClassifierRecipe {
    ClassifierRecipe {
        seed: 3,
        patch_size: 4,
        hidden_size: 16,
        blocks: 2,
        heads: 2,
        epochs: 3,
        batch: 4,
        muon_lr: Some(2e-3),
        warmup_steps: 2,
        shift_px: 1,
        checkpoint_steps: 4,
        ..ClassifierRecipe::default()
    }
}

/// Trains a classifier in `folder`; `watch` receives the step and returns whether to continue.
fn train_classifier(
    recipe: &ClassifierRecipe,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedClassifier> {
    train_from(recipe, None, None, folder, watch)
}

/// Trains a classifier with an interpreter.
fn train_jointly(
    recipe: &ClassifierRecipe,
    interpreter: Option<&IaVitRecipe>,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedClassifier> {
    train_from(recipe, None, interpreter, folder, watch)
}

/// Trains a classifier from an existing model.
fn train_from(
    recipe: &ClassifierRecipe,
    start: Option<&Start>,
    interpreter: Option<&IaVitRecipe>,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedClassifier> {
    let (train, test) = (grids(10, Split::Train), grids(8, Split::Test));
    classifier::train(
        recipe,
        start,
        interpreter,
        (&train, &test),
        &Device::Cpu,
        folder,
        &mut |progress| watch(progress.step),
    )
}

/// The run stops in the middle of an epoch, whose order of pictures must continue where it stopped.
#[test]
fn a_classifier_that_is_ended_early_goes_on_where_it_was() {
    let whole = tempfile::tempdir().unwrap();
    let ended = tempfile::tempdir().unwrap();
    let uninterrupted =
        train_classifier(&classifier_recipe(), whole.path(), &mut |_| true).unwrap();
    let first = train_classifier(&classifier_recipe(), ended.path(), &mut |step| step < 5).unwrap();
    assert!(!first.complete && uninterrupted.complete);
    let resumed = train_classifier(&classifier_recipe(), ended.path(), &mut |_| true).unwrap();
    assert_eq!(bits(&uninterrupted.weights), bits(&resumed.weights));
    assert_ne!(bits(&uninterrupted.weights), bits(&first.weights));
}

/// Muon trains only the blocks' matrices.
#[test]
fn the_optimizer_of_the_blocks_changes_their_matrices_alone() {
    let after_one_step = |muon_lr| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = ClassifierRecipe {
            muon_lr,
            // Clipping uses the norm of everything that AdamW trains.
            max_norm: f64::INFINITY,
            ..classifier_recipe()
        };
        train_classifier(&recipe, folder.path(), &mut |_| false).unwrap()
    };
    let (adamw, muon) = (after_one_step(None), after_one_step(Some(2e-3)));
    let (adamw, muon) = (bits(&adamw.weights), bits(&muon.weights));
    for (name, bits) in &adamw {
        let is_matrix = name.starts_with("encoder.") && name.ends_with("dense.weight")
            || ["query.weight", "key.weight", "value.weight"]
                .iter()
                .any(|end| name.ends_with(end));
        assert_eq!(muon[name] != *bits, is_matrix, "{name}");
    }
}

fn interpreter_recipe() -> IaVitRecipe {
    IaVitRecipe {
        steps: 9,
        batch: 4,
        warmup_steps: 2,
        test_steps: 4,
        test_pictures: 8,
        checkpoint_steps: 4,
        ..IaVitRecipe::default()
    }
}

fn train_interpreter(
    recipe: &IaVitRecipe,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedInterpreter> {
    let (vit, train, test) = (vit(), grids(64, Split::Train), grids(32, Split::Test));
    let subject = subject(&vit, &train, &test);
    iavit::train(recipe, subject, folder, &mut |progress| {
        watch(progress.step)
    })
}

#[test]
fn an_interpreter_that_is_ended_early_goes_on_where_it_was() {
    let (whole, ended) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let recipe = IaVitRecipe {
        smallest_crop: 0.3,
        ..interpreter_recipe()
    };
    let uninterrupted = train_interpreter(&recipe, whole.path(), &mut |_| true).unwrap();
    let first = train_interpreter(&recipe, ended.path(), &mut |step| step < 6).unwrap();
    assert!(!first.complete && uninterrupted.complete);
    let resumed = train_interpreter(&recipe, ended.path(), &mut |_| true).unwrap();
    assert_eq!(bits(&uninterrupted.tensors), bits(&resumed.tensors));
    assert_eq!(uninterrupted.card, resumed.card);
}

#[test]
fn an_interpreter_learns_to_answer_as_the_model_does() {
    let after = |steps| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = IaVitRecipe {
            steps,
            batch: 16,
            lr: 1e-2,
            ..interpreter_recipe()
        };
        let done = train_interpreter(&recipe, folder.path(), &mut |_| true).unwrap();
        assert_eq!(done.card.agreement, done.fidelity.agreement);
        done.fidelity
    };
    let (early, late) = (after(1), after(150));
    assert!(late.kl < 0.5 * early.kl, "{early:?} {late:?}");
    assert!(late.agreement > early.agreement, "{early:?} {late:?}");
}

/// The same pictures, with their classes listed in reverse order.
struct Reversed {
    data: RedPatches,
    classes: Vec<String>,
}

impl Dataset for Reversed {
    fn name(&self) -> &str {
        self.data.name()
    }

    fn len(&self) -> usize {
        self.data.len()
    }

    fn size(&self) -> FrameSize {
        self.data.size()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn picture(&self, index: usize) -> vitscope::Result<Picture> {
        self.data.picture(index)
    }

    fn label(&self, index: usize) -> Option<usize> {
        Some(self.classes.len() - 1 - self.data.label(index)?)
    }
}

/// The accuracy on test pictures shows this.
#[test]
fn an_interpreter_is_measured_on_classes_by_their_names() {
    let config = VitConfig {
        labels: grids(1, Split::Test).classes().to_vec(),
        ..vit().config().clone()
    };
    let weights = init::init(&config, &mut Rng::new(1)).unwrap();
    let vit = Vit::load(config, &weights).unwrap();
    let data = grids(256, Split::Test);
    let classes = data.classes().iter().rev().cloned().collect();
    let (train, reversed) = (grids(64, Split::Train), Reversed { data, classes });
    let accuracy = |test: &dyn Dataset| {
        let folder = tempfile::tempdir().unwrap();
        let subject = subject(&vit, &train, test);
        let recipe = IaVitRecipe {
            test_pictures: 256,
            ..interpreter_recipe()
        };
        let done = iavit::train(&recipe, subject, folder.path(), &mut |_| true).unwrap();
        done.fidelity.accuracy
    };
    let expected = accuracy(&grids(256, Split::Test));
    assert!(expected > 0.0, "{expected}");
    assert_eq!(accuracy(&reversed), expected);
}

/// If the values are the patches, the logits are those of the model's classifier for the mean of the patches, weighted
/// by attention.
#[test]
fn an_interpreter_can_begin_with_the_classifier_of_its_model() {
    let recipe = IaVitRecipe {
        start: iavit::Start::Model,
        steps: 1,
        lr: 1e-12,
        ..interpreter_recipe()
    };
    let folder = tempfile::tempdir().unwrap();
    let done = train_interpreter(&recipe, folder.path(), &mut |_| true).unwrap();
    let interpreter =
        Interpreter::load(done.card.shape, &done.tensors.into_iter().collect()).unwrap();
    let vit = vit();
    let images = first_images(&grids(4, Split::Test), 4);
    let output = vit.forward(&images).unwrap();
    let n_special = vit.config().n_special_tokens();
    let n_patches = output.tokens.dim(1).unwrap() - n_special;
    let patches = output.tokens.narrow(1, n_special, n_patches).unwrap();
    let reading = interpreter.read(&patches.contiguous().unwrap()).unwrap();
    let attended = reading.attention.mean_keepdim(1).unwrap(); // [batch, 1, patches]
    let mixed = attended.matmul(&patches.contiguous().unwrap()).unwrap();
    let class_weights = vit.class_weights().unwrap().unwrap();
    let expected = mixed
        .squeeze(1)
        .unwrap()
        .matmul(&class_weights.t().unwrap());
    check_close(&reading.logits, &expected.unwrap(), 1e-4);
}

#[test]
fn recipes_of_interpreters_are_refused_in_one_sentence() {
    let refused = |recipe: IaVitRecipe| {
        let folder = tempfile::tempdir().unwrap();
        let error = train_interpreter(&recipe, folder.path(), &mut |_| true).err();
        error.unwrap().to_string()
    };
    for smallest_crop in [0.0, 1.5, f64::NAN] {
        let message = refused(IaVitRecipe {
            smallest_crop,
            ..interpreter_recipe()
        });
        assert_eq!(
            message,
            format!("smallest-crop must be above 0 and at most 1, got {smallest_crop}")
        );
    }
    let message = refused(IaVitRecipe {
        start: iavit::Start::Model,
        pooling: Pooling::Position,
        ..interpreter_recipe()
    });
    assert_eq!(
        message,
        "start = \"model\" requires a model with one linear classifier, and pooling = \"mean\""
    );
}

#[test]
fn every_alignment_trains_and_its_recipe_is_in_the_card() {
    use Alignment::{JensenShannon, Mmd, None, Released};
    for alignment in [None, Mmd, JensenShannon, Released] {
        for teacher in [Teacher::ClassToken, Teacher::Patches] {
            let recipe = IaVitRecipe {
                alignment,
                teacher,
                steps: 2,
                ..interpreter_recipe()
            };
            let folder = tempfile::tempdir().unwrap();
            let done = train_interpreter(&recipe, folder.path(), &mut |_| true).unwrap();
            let expected = serde_json::to_value(alignment).unwrap();
            assert_eq!(done.card.recipe["alignment"], expected);
            assert!(done.fidelity.kl.is_finite());
        }
    }
}

#[test]
fn a_model_and_its_interpreter_that_are_ended_early_go_on_where_they_were() {
    let (whole, ended) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (recipe, interpreter) = (classifier_recipe(), interpreter_recipe());
    let train = |folder: &Path, watch: &mut dyn FnMut(u64) -> bool| {
        train_jointly(&recipe, Some(&interpreter), folder, watch).unwrap()
    };
    let uninterrupted = train(whole.path(), &mut |_| true);
    assert!(!train(ended.path(), &mut |step| step < 5).complete);
    let resumed = train(ended.path(), &mut |_| true);
    assert_eq!(bits(&uninterrupted.weights), bits(&resumed.weights));
    let [first, again] = [uninterrupted, resumed].map(|done| done.interpreter.unwrap());
    assert_eq!(bits(&first.tensors), bits(&again.tensors));
    assert_eq!(first.fidelity, again.fidelity);
}

/// Returns the model of a run, to start from.
fn start_from(trained: &TrainedClassifier) -> Start {
    Start {
        config: trained.config.clone(),
        weights: trained.weights.clone(),
        normalization: NORMALIZATION,
        sha256: "of these weights".into(),
    }
}

#[test]
fn training_that_goes_on_from_a_model_changes_the_last_blocks_alone() {
    let folder = |_| tempfile::tempdir().unwrap();
    let [first, whole, ended] = [0, 1, 2].map(folder);
    let trained = train_classifier(&classifier_recipe(), first.path(), &mut |_| true).unwrap();
    let start = start_from(&trained);
    let recipe = ClassifierRecipe {
        last_blocks: Some(1),
        seed: 5,
        ..classifier_recipe()
    };
    let go_on = |folder: &Path, watch: &mut dyn FnMut(u64) -> bool| {
        train_from(&recipe, Some(&start), None, folder, watch).unwrap()
    };
    let uninterrupted = go_on(whole.path(), &mut |_| true);
    let last = format!("encoder.layer.{}.", start.config.num_hidden_layers - 1);
    let (before, after) = (bits(&start.weights), bits(&uninterrupted.weights));
    for (name, values) in &before {
        let is_trained = [&last, "layernorm.", "classifier."]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        assert_eq!(after[name] != *values, is_trained, "{name}");
    }
    assert!(!go_on(ended.path(), &mut |step| step < 5).complete);
    let resumed = go_on(ended.path(), &mut |_| true);
    assert_eq!(after, bits(&resumed.weights));
}

#[test]
fn consistency_draws_the_answer_to_some_patches_to_the_answer_to_all() {
    let divergence = |consistency| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = ClassifierRecipe {
            consistency,
            keep_patches: 0.5,
            whole_share: 1.0,
            epochs: 60,
            lr: 1e-2,
            muon_lr: None,
            label_smoothing: 0.0,
            ..classifier_recipe()
        };
        let trained = train_classifier(&recipe, folder.path(), &mut |_| true).unwrap();
        let vit = Vit::load(trained.config, &trained.weights).unwrap();
        let pictures = (0..8).map(|index| grids(8, Split::Test).picture(index).unwrap());
        let (mean, std) = NORMALIZATION;
        let pictures: Vec<_> = pictures.collect();
        let images = images_from_pictures(&pictures, mean, std, &Device::Cpu).unwrap();
        let original = vit.forward(&images).unwrap().logits.unwrap();
        let n_patches = vit.config().n_patches();
        let half: Vec<bool> = (0..n_patches).map(|patch| patch % 2 == 0).collect();
        let masks = vec![half; 8];
        let answers = masked_answers(&vit, &images, &original, &masks, &Removal::Drop).unwrap();
        answers.iter().map(|answer| answer.kl).sum::<f64>()
    };
    let (without, with) = (divergence(0.0), divergence(10.0));
    assert!(without > 0.01 && with < 0.5 * without, "{with}, {without}");
}

/// A checkpoint belongs to the weights that its run started with.
#[test]
fn a_run_goes_on_over_the_model_that_it_began_with() {
    let (first, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trained = train_classifier(&classifier_recipe(), first.path(), &mut |_| true).unwrap();
    let mut start = start_from(&trained);
    let recipe = classifier_recipe();
    train_from(&recipe, Some(&start), None, folder.path(), &mut |_| false).unwrap();
    start.sha256 = "of others".into();
    let refused = train_from(&recipe, Some(&start), None, folder.path(), &mut |_| true);
    assert!(refused.unwrap_err().to_string().contains("another recipe"));
}

#[test]
fn a_temperature_of_zero_is_refused_in_joint_training_too() {
    let folder = tempfile::tempdir().unwrap();
    let interpreter = IaVitRecipe {
        temperature: 0.0,
        ..interpreter_recipe()
    };
    let refused = train_jointly(
        &classifier_recipe(),
        Some(&interpreter),
        folder.path(),
        &mut |_| true,
    );
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("temperature must be above 0")
    );
}

/// The interpreter's losses shape the model, so that an interpreter can read its features.
#[test]
fn an_interpreter_shapes_the_model_that_it_is_trained_with() {
    let after = |interpreter: Option<IaVitRecipe>| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = classifier_recipe();
        train_jointly(&recipe, interpreter.as_ref(), folder.path(), &mut |_| true).unwrap()
    };
    let (alone, together) = (after(None), after(Some(interpreter_recipe())));
    assert!(alone.interpreter.is_none() && together.interpreter.is_some());
    assert_ne!(bits(&alone.weights), bits(&together.weights));
}

fn probe_recipe() -> ProbeRecipe {
    ProbeRecipe {
        epochs: 4,
        batch: 16,
        feature_batch: 8,
        checkpoint_steps: 5,
        lr: 1e-2,
        ..ProbeRecipe::default()
    }
}

fn train_probe(
    recipe: &ProbeRecipe,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedProbe> {
    let (vit, train, test) = (vit(), grids(64, Split::Train), grids(32, Split::Test));
    let subject = subject(&vit, &train, &test);
    probe::train(recipe, subject, folder, &mut |progress| {
        watch(progress.step)
    })
}

/// The run is stopped once during the features and once during the updates: 8 + 4 steps of features, 4 updates per
/// epoch.
#[test]
fn a_probe_that_is_ended_early_goes_on_where_it_was() {
    let (whole, ended) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let recipe = probe_recipe();
    let uninterrupted = train_probe(&recipe, whole.path(), &mut |_| true).unwrap();
    for last in [3, 17] {
        let early = train_probe(&recipe, ended.path(), &mut |step| step < last).unwrap();
        assert!(!early.complete);
    }
    let resumed = train_probe(&recipe, ended.path(), &mut |_| true).unwrap();
    let named = |probe: &TrainedProbe| {
        let tensors = [("weight", &probe.weight), ("bias", &probe.bias)];
        BTreeMap::from(tensors.map(|(name, tensor)| (name.to_owned(), tensor.clone())))
    };
    assert_eq!(bits(&named(&uninterrupted)), bits(&named(&resumed)));
    assert_eq!(uninterrupted.test, resumed.test);
}

/// The saved map includes the scaling of features, and answers as the map did on scaled features.
#[test]
fn a_saved_head_is_right_as_often_over_its_backbone_and_refuses_another() {
    let folder = tempfile::tempdir().unwrap();
    let [backbone, other, top] = ["backbone", "other", "top"].map(|name| folder.path().join(name));
    let preprocessor = Preprocessor::square(SIDE_PX);
    let mut hashes = Vec::new();
    for (seed, path) in [(1, &backbone), (2, &other)] {
        let config = vit().config().clone();
        let weights = init::init(&config, &mut Rng::new(seed)).unwrap();
        let hash = save_folder(path, &config, &preprocessor, &weights, Precision::F32).unwrap();
        hashes.push(hash);
    }
    let recipe = ProbeRecipe {
        epochs: 60,
        ..probe_recipe()
    };
    let done = train_probe(&recipe, &top, &mut |_| true).unwrap();
    assert!(done.test.share() > 0.1, "ten classes: {:?}", done.test);
    let test = grids(32, Split::Test);
    let labels = test.classes();
    save_head(&top, &done.weight, &done.bias, labels, &hashes[0]).unwrap();

    let open_over = |backbone: &Path| {
        let reference = Reference::over(top.to_str().unwrap(), backbone.to_str());
        models::open(reference, &Device::Cpu)
    };
    let model = open_over(&backbone).unwrap();
    let classes = classes_by_name(model.labels(), labels).unwrap();
    let normalization = (model.preprocessor.mean, model.preprocessor.std);
    let counts = count_by_class(&model.vit, &test, &classes, normalization, 8).unwrap();
    assert_eq!(total(&counts), done.test);

    let message = open_over(&other).err().unwrap().to_string();
    assert!(
        hashes.iter().all(|hash| message.contains(hash)),
        "{message}"
    );
}

#[test]
fn gates_that_keep_no_fewer_patches_any_more_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = DiffMaskRecipe {
        steps: 200,
        // Everything is kept, and nothing diverges: each measurement is within the margin and flat.
        offset: 60.0,
        lr: 1e-9,
        patience: 3,
        ..recipe()
    };
    let mut last = 0;
    let done = train(&recipe, folder.path(), &mut |step| {
        last = step;
        true
    });
    assert!(done.unwrap().complete);
    assert_eq!(last, 3 * recipe.test_steps);
}

/// The checkpoint is written to a file next to it first, which is replaced here by a device that accepts no bytes.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_checkpoint_before_it() {
    let (whole, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let recipe = classifier_recipe();
    let uninterrupted = train_classifier(&recipe, whole.path(), &mut |_| true).unwrap();
    train_classifier(&recipe, full.path(), &mut |step| step < 5).unwrap();
    let before = std::fs::read(Checkpoint::path(full.path())).unwrap();
    let part = full.path().join("checkpoint.safetensors.part");
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let refused = train_classifier(&recipe, full.path(), &mut |_| true);
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("checkpoint.safetensors"), "{message}");
    assert_eq!(
        std::fs::read(Checkpoint::path(full.path())).unwrap(),
        before
    );
    let resumed = train_classifier(&recipe, full.path(), &mut |_| true).unwrap();
    assert_eq!(bits(&uninterrupted.weights), bits(&resumed.weights));
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = ClassifierRecipe {
        lr: 1e30,
        muon_lr: None,
        warmup_steps: 0,
        checkpoint_steps: 1,
        ..classifier_recipe()
    };
    let mut last = 0;
    let failed = train_classifier(&recipe, folder.path(), &mut |step| {
        last = step;
        true
    });
    let message = failed.unwrap_err().to_string();
    assert!(message.contains("lower the learning rate"), "{message}");
    assert!(last > 0 && Checkpoint::path(folder.path()).exists());
}

fn ranking_recipe() -> ShapleyRecipe {
    ShapleyRecipe {
        seed: 5,
        steps: 9,
        batch: 4,
        hidden: 8,
        warmup_steps: 2,
        test_steps: 2,
        test_pictures: 8,
        checkpoint_steps: 4,
        ..ShapleyRecipe::default()
    }
}

/// Trains ranking gates in `folder`; `watch` receives the step and returns whether to continue.
fn train_ranking(
    recipe: &ShapleyRecipe,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedGates> {
    let (vit, train, test) = (vit(), grids(10, Split::Train), grids(8, Split::Test));
    let subject = subject(&vit, &train, &test);
    shapley::train(recipe, subject, folder, &mut |progress| {
        watch(progress.step)
    })
}

#[test]
fn gates_that_rank_are_the_same_bits_after_a_kill() {
    // Killed during the steps that learn from a teacher, some of which are left.
    let recipe = ShapleyRecipe {
        teacher_steps: 6,
        ..ranking_recipe()
    };
    check_resumes(&[(7, 5)], &|folder, watch| {
        train_ranking(&recipe, folder, watch)
    });
}

type TrainGates<'a> =
    &'a dyn Fn(&Path, &mut dyn FnMut(u64) -> bool) -> vitscope::Result<TrainedGates>;

/// Checks runs that are killed: for each pair of `kills`, a run with the checkpoint that exists during the first step
/// resumes at the second one and ends with the same gates.
fn check_resumes(kills: &[(u64, u64)], train: TrainGates<'_>) {
    let file = Checkpoint::path(Path::new(""));
    let whole = tempfile::tempdir().unwrap();
    let killed: Vec<_> = kills.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let uninterrupted = train(whole.path(), &mut |step| {
        for (_, folder) in kills
            .iter()
            .zip(&killed)
            .filter(|((kill, _), _)| *kill == step)
        {
            std::fs::copy(whole.path().join(&file), folder.path().join(&file)).unwrap();
        }
        true
    });
    let uninterrupted = uninterrupted.unwrap();
    for ((_, goes_on_at), folder) in kills.iter().zip(&killed) {
        let mut first_step = None;
        let resumed = train(folder.path(), &mut |step| {
            first_step.get_or_insert(step);
            true
        });
        assert_eq!(first_step, Some(*goes_on_at));
        let resumed = resumed.unwrap();
        assert_eq!(bits(&uninterrupted.tensors), bits(&resumed.tensors));
        assert_eq!(uninterrupted.card, resumed.card);
    }
}

/// A model's answer to grids is no more a sum over their cells than any other answer; still, the scores learn a share
/// of it.
#[test]
fn scores_learn_what_masked_answers_differ_by() {
    let one_fill = |fill| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = ShapleyRecipe {
            steps: 150,
            batch: 8,
            lr: 1e-2,
            fills: BTreeMap::from([(fill, 1.0)]),
            test_steps: 50,
            ..ranking_recipe()
        };
        let (vit, train, test) = (vit(), grids(64, Split::Train), grids(32, Split::Test));
        let subject = subject(&vit, &train, &test);
        let trained = shapley::train(&recipe, subject, folder.path(), &mut |_| true);
        trained.unwrap().card.explained.unwrap()
    };
    let explained = one_fill(Fill::Black);
    assert!(explained > 0.2, "{explained}");
    assert!(one_fill(Fill::Drop).is_finite());
}

/// Gates that have only followed their teacher order the patches roughly as it does.
#[test]
fn gates_learn_the_order_of_their_teacher() {
    let mut weights = init::init(vit().config(), &mut Rng::new(1)).unwrap();
    // Answers that hardly differ between pictures leave nothing to divide among patches.
    let sharpened = (&weights["classifier.weight"] * 60.0).unwrap();
    weights.insert("classifier.weight".into(), sharpened);
    let vit = Vit::load(vit().config().clone(), &weights).unwrap();
    let (train, test) = (grids(16, Split::Train), grids(8, Split::Test));
    let recipe = ShapleyRecipe {
        steps: 301,
        teacher_steps: 300,
        batch: 8,
        lr: 1e-2,
        test_steps: 400,
        ..ranking_recipe()
    };
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(&vit, &train, &test);
    let trained = shapley::train(&recipe, subject, folder.path(), &mut |_| true).unwrap();
    let tensors = trained.tensors.into_iter().collect();
    let gates = RankingGates::load(&vit, recipe.hidden, &tensors).unwrap();

    let images = first_images(&train, 16);
    let clean = clean_pass(&vit, &images).unwrap();
    let logits = clean.output.logits.unwrap();
    let scores = gates.scores_of_predicted(&clean.states, &logits).unwrap();
    let taught = Chefer {}.explain(&vit, &images, Target::Predicted).unwrap();
    let rows = |maps: &Tensor| maps.to_vec2::<f32>().unwrap();
    let of_pictures = rows(&scores).into_iter().zip(rows(&taught.attribution));
    let alike: Vec<f32> = of_pictures.map(|(a, b)| correlation(&a, &b)).collect();
    let mean = alike.iter().sum::<f32>() / alike.len() as f32;
    assert!(mean > 0.7, "{mean}: {alike:?}");
}

/// Computes Pearson's correlation.
fn correlation(a: &[f32], b: &[f32]) -> f32 {
    let centered = |xs: &[f32]| -> Vec<f32> {
        let mean = xs.iter().sum::<f32>() / xs.len() as f32;
        xs.iter().map(|x| x - mean).collect()
    };
    let product = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let (a, b) = (centered(a), centered(b));
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

#[test]
fn recipes_of_gates_that_rank_are_refused_in_one_sentence() {
    let refused = |recipe: ShapleyRecipe| {
        let folder = tempfile::tempdir().unwrap();
        let error = train_ranking(&recipe, folder.path(), &mut |_| true).err();
        error.unwrap().to_string()
    };
    let message = refused(ShapleyRecipe {
        fills: BTreeMap::new(),
        ..ranking_recipe()
    });
    assert!(message.contains("fills"), "{message}");
    let message = refused(ShapleyRecipe {
        policy_share: 0.8,
        blob_share: 0.3,
        ..ranking_recipe()
    });
    assert!(message.contains("0.8 and 0.3"), "{message}");
    let message = refused(ShapleyRecipe {
        pairs: 0,
        ..ranking_recipe()
    });
    assert!(message.contains("at least 1"), "{message}");
    let message = refused(ShapleyRecipe {
        teacher_steps: 9,
        ..ranking_recipe()
    });
    assert!(message.contains("9 of 9"), "{message}");
}

/// The mean of no patches is not a number, and a run that drops all patches must not become one.
#[test]
fn a_head_that_reads_the_mean_of_the_patches_has_an_answer_to_none() {
    let config = VitConfig {
        reads: Head::ClassTokenAndPatchMean,
        ..small_config()
    };
    let (vit, folder) = (small_vit(config), tempfile::tempdir().unwrap());
    let (train, test) = (grids(10, Split::Train), grids(8, Split::Test));
    let recipe = ShapleyRecipe {
        steps: 3,
        fills: BTreeMap::from([(Fill::Drop, 1.0)]),
        ..ranking_recipe()
    };
    let subject = subject(&vit, &train, &test);
    let trained = shapley::train(&recipe, subject, folder.path(), &mut |_| true).unwrap();
    assert!(
        bits(&trained.tensors)
            .values()
            .flatten()
            .all(|bits| f32::from_bits(*bits).is_finite())
    );
}

fn order_recipe() -> OrderRecipe {
    OrderRecipe {
        seed: 5,
        pictures: 40,
        steps: 9,
        batch: 4,
        hidden: 8,
        warmup_steps: 2,
        test_steps: 2,
        test_pictures: 8,
        checkpoint_steps: 1,
        ..OrderRecipe::default()
    }
}

/// Trains ordering gates in `folder`; `watch` receives the step and returns whether to continue.
fn train_order(
    recipe: &OrderRecipe,
    folder: &Path,
    watch: &mut dyn FnMut(u64) -> bool,
) -> vitscope::Result<TrainedGates> {
    let (vit, train, test) = (vit(), grids(64, Split::Train), grids(8, Split::Test));
    let subject = subject(&vit, &train, &test);
    order::train(recipe, subject, folder, &mut |progress| {
        watch(progress.step)
    })
}

/// Killed while the teacher is queried, and killed during the updates.
#[test]
fn gates_that_order_are_the_same_bits_after_a_kill() {
    let recipe = order_recipe();
    check_resumes(&[(2, 2), (8, 8)], &|folder, watch| {
        train_order(&recipe, folder, watch)
    });
}

/// From the way back of one token, the gates predict most of what the teacher derives from all tokens.
#[test]
fn gates_that_order_learn_what_their_teacher_says() {
    let mut weights = init::init(vit().config(), &mut Rng::new(1)).unwrap();
    // Attention that is the same everywhere gives no order of patches.
    for block in 0..2 {
        for part in ["query", "key"] {
            let name = format!("encoder.layer.{block}.attention.attention.{part}.weight");
            let sharpened = (&weights[&name] * 5.0).unwrap();
            weights.insert(name, sharpened);
        }
    }
    let vit = Vit::load(vit().config().clone(), &weights).unwrap();
    let (train, test) = (grids(256, Split::Train), grids(32, Split::Test));
    let subject = subject(&vit, &train, &test);
    let folder = tempfile::tempdir().unwrap();
    let recipe = OrderRecipe {
        pictures: 256,
        steps: 400,
        batch: 16,
        lr: 1e-2,
        test_steps: 400,
        test_pictures: 32,
        ..order_recipe()
    };
    let trained = order::train(&recipe, subject, folder.path(), &mut |_| true).unwrap();
    let told = trained.card.explained.unwrap();

    // The same share, computed from the maps themselves.
    let gates =
        OrderGates::load(&vit, recipe.hidden, &trained.tensors.into_iter().collect()).unwrap();
    let images = first_images(&test, 32);
    let forward = Forward::run(&vit, &images, Needs::default()).unwrap();
    let pass = forward.toward(Target::Predicted).unwrap();
    let weights = pass.weights().unwrap();
    let grid = pass.grid().unwrap();
    // The halves used by the run's own measurement.
    let mut halves = Rng::for_item(!recipe.seed, 0);
    let rollout = rollout_of_halves(&vit, &images, weights, recipe.halvings, &mut halves).unwrap();
    let stream = ClassStream::of(&vit, &images, weights, OrderGates::first_block(&vit)).unwrap();
    let raw = RawAttention {};
    let forward = Forward::run(&vit, &images, raw.needs(&vit)).unwrap();
    let attention = (raw.attribution(&forward.toward(Target::Predicted).unwrap())).unwrap();
    let taught = order_of(&rollout, &attention, grid, &recipe).unwrap();
    let order = gates.order(&features(&stream, grid).unwrap()).unwrap();
    let rows = |maps: &Tensor| -> Vec<f32> { maps.flatten_all().unwrap().to_vec1().unwrap() };
    let (mut error, mut spread) = (0f32, 0f32);
    for (found, expected) in rows(&order.detach()).into_iter().zip(rows(&taught)) {
        error += (found - expected).powi(2);
        spread += expected.powi(2);
    }
    let explained = 1.0 - error / spread;
    assert!(
        (f64::from(explained) - told).abs() < 1e-3,
        "{explained} {told}"
    );
    assert!(explained > 0.5, "{explained}");
}

#[test]
fn the_teacher_s_rollout_and_order_are_those_of_pytorch() {
    let bytes = std::fs::read(fixture("class_stream.safetensors")).unwrap();
    let expected = tensors_from_bytes(&bytes, &Device::Cpu).unwrap();
    for name in ["vit_a", "deit_distilled"] {
        let model = models::open(fixture(name).to_str().unwrap(), &Device::Cpu).unwrap();
        let bytes = std::fs::read(fixture(name).join("reference.safetensors")).unwrap();
        let images = &tensors_from_bytes(&bytes, &Device::Cpu).unwrap()["images"];
        let forward = Forward::run(&model.vit, images, Needs::default()).unwrap();
        let pass = forward.toward(Target::Class(2)).unwrap();
        let (weights, seen) = (pass.weights().unwrap(), [0, 3, 4, 8]);
        let half = rollout_of_patches(&model.vit, images, weights, &seen).unwrap();
        check_close(&half, &expected[&format!("{name}/half")], 1e-4);
    }
    let recipe = OrderRecipe {
        smoothness: 0.5,
        attention_weight: 0.25,
        ..OrderRecipe::default()
    };
    let attention = &expected["class_attention"];
    let order = order_of(&expected["rollout"], attention, (4, 6), &recipe).unwrap();
    check_close(&order, &expected["order"], 1e-4);
}

#[track_caller]
fn check_close(found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims());
    let values = |xs: &Tensor| -> Vec<f32> { xs.flatten_all().unwrap().to_vec1().unwrap() };
    for (found, expected) in values(found).into_iter().zip(values(expected)) {
        assert!(
            (found - expected).abs() < tolerance,
            "{found} is not {expected}"
        );
    }
}

/// Every patch is in one half of each halving, so what reaches the class token from all of them is 1 on average.
#[test]
fn halves_divide_the_whole_picture_however_many_patches_it_has() {
    let vit = vit();
    let images = first_images(&grids(4, Split::Train), 4);
    let forward = Forward::run(&vit, &images, Needs::default()).unwrap();
    let pass = forward.toward(Target::Predicted).unwrap();
    let of = |seed: u64| -> Vec<Vec<f32>> {
        let weights = pass.weights().unwrap();
        let rollout = rollout_of_halves(&vit, &images, weights, 3, &mut Rng::new(seed)).unwrap();
        rollout.to_vec2().unwrap()
    };
    for row in of(1) {
        let mean = row.iter().sum::<f32>() / row.len() as f32;
        assert!((mean - 1.0).abs() < 1e-4, "{mean}");
        assert!(row.iter().all(|share| *share > 0.0), "{row:?}");
    }
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn recipes_of_gates_that_order_are_refused_in_one_sentence() {
    let refused = |recipe: OrderRecipe| {
        let folder = tempfile::tempdir().unwrap();
        let error = train_order(&recipe, folder.path(), &mut |_| true).err();
        error.unwrap().to_string()
    };
    let message = refused(OrderRecipe {
        smoothness: -0.5,
        ..order_recipe()
    });
    assert_eq!(
        message,
        "smoothness must be at least 0 and finite, got -0.5"
    );
    let message = refused(OrderRecipe {
        attention_weight: f64::NAN,
        ..order_recipe()
    });
    assert_eq!(
        message,
        "attention-weight must be at least 0 and finite, got NaN"
    );
    let message = refused(OrderRecipe {
        halvings: 0,
        ..order_recipe()
    });
    assert!(message.contains("halvings"), "{message}");
    let message = refused(OrderRecipe {
        pictures: 0,
        ..order_recipe()
    });
    assert!(message.contains("must be at least 1"), "{message}");
}
