//! One training run: its recipe, its data and its results.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::bail;
use candle_core::Device;
use serde::Deserialize;
use vitscope::data::{self, Halves};
use vitscope::eval::classification::Count;
use vitscope::frame::FrameSize;
use vitscope::frame::placement::ResizeRule;
use vitscope::frame::resize::Resampling;
use vitscope::interpreter::Interpreter;
use vitscope::models::{self, Model, Precision, Preprocessor, Reference};
use vitscope::train::classifier::{self, ClassifierRecipe, Start};
use vitscope::train::diffmask::{self, TrainedGates};
use vitscope::train::iavit::{self, Fidelity, IaVitRecipe};
use vitscope::train::order;
use vitscope::train::probe::{self, ProbeRecipe};
use vitscope::train::shapley;
use vitscope::train::{Checkpoint, Progress, Subject};
use vitscope::vit::{Link, VitConfig};
use vitscope_core::gates::Gates;

use super::recipe::{DEFAULT_IMAGE_PX, GateRecipe, IA_VIT, RecipeFile, gate_recipe, recipe};
use super::shown::Shown;

/// Results of a run on test pictures, by name.
pub(super) type Measured = BTreeMap<String, f64>;

/// Inputs of a run.
pub(super) struct Job<'a> {
    pub(super) file: &'a RecipeFile,
    /// The value of `--data`.
    pub(super) data: Option<&'a str>,
    /// The value of `--set`.
    pub(super) changes: toml::Table,
    pub(super) seed: Option<u64>,
    /// Steps between checkpoints.
    pub(super) checkpoint: Option<u64>,
    /// Folder for the trained parts and the run's files.
    pub(super) out: &'a Path,
    /// Device of the model.
    pub(super) device: Device,
    /// Set on Ctrl-C.
    pub(super) stop: &'a Arc<AtomicBool>,
}

/// Whether a classifier is trained alone or together with an interpreter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Joint {
    Alone,
    WithInterpreter,
}

/// Each method trains to the end and returns the results, or `None` if it was interrupted.
impl Job<'_> {
    /// Trains a classifier; `init` is the model that training starts from.
    pub(super) fn classifier(
        mut self,
        joint: Joint,
        init: Option<&str>,
    ) -> anyhow::Result<Option<Measured>> {
        let interpreter: Option<IaVitRecipe> = match joint {
            Joint::Alone => None,
            Joint::WithInterpreter => {
                let changes = match self.changes.remove(IA_VIT) {
                    Some(toml::Value::Table(changes)) => changes,
                    Some(other) => bail!("--set takes {IA_VIT}.KEY=VALUE, got {other}"),
                    None => toml::Table::new(),
                };
                Some(recipe(&self.file.ia_vit, changes, self.seed, None, IA_VIT)?)
            }
        };
        let recipe: ClassifierRecipe = self.recipe(&self.file.classifier, "classifier")?;
        let (start, halves) = match init {
            Some(init) => {
                let model = models::open_weights(init, &self.device)?;
                let halves = self.open_data_for(&model.preprocessor, recipe.seed)?;
                let start = Start {
                    config: model.config,
                    weights: model.tensors,
                    normalization: (model.preprocessor.mean, model.preprocessor.std),
                    sha256: model.weights_sha256,
                };
                (Some((start, model.preprocessor)), halves)
            }
            None => {
                let side_px = self.file.image_size.unwrap_or(DEFAULT_IMAGE_PX);
                let rule = ResizeRule::Stretch(FrameSize {
                    width_px: side_px,
                    height_px: side_px,
                });
                let halves = self.open_data(rule, Resampling::Bilinear, recipe.seed)?;
                (None, halves)
            }
        };
        let (train, test) = (&*halves.train, &*halves.test);
        let mut shown = Shown::new(Arc::clone(self.stop));
        let done = classifier::train(
            &recipe,
            start.as_ref().map(|(start, _)| start),
            interpreter.as_ref(),
            (train, test),
            &self.device,
            self.out,
            &mut |progress| shown.step(progress),
        )?;
        shown.finish();
        if !done.complete {
            return Ok(None);
        }
        let preprocessor = match start {
            Some((_, preprocessor)) => preprocessor,
            None => Preprocessor::square(done.config.image_size),
        };
        let sha256 = models::save_folder(
            self.out,
            &done.config,
            &preprocessor,
            &done.weights,
            Precision::F16,
        )?;
        let mut measured = measured([("test accuracy", done.test_accuracy)]);
        if let (Some(recipe), Some(joint)) = (interpreter, done.interpreter) {
            let card = recipe.card(joint.shape, &sha256, joint.fidelity)?;
            Interpreter::save(&joint.tensors, &card, self.out)?;
            measured.extend(told(joint.fidelity));
        }
        Checkpoint::remove(self.out)?;
        println!(
            "test accuracy {:.4} on {} pictures",
            done.test_accuracy,
            halves.test.len()
        );
        print_unreadable(&halves);
        println!(
            "wrote {:?}, sha256 {sha256}",
            self.out.join("model.safetensors")
        );
        Ok(Some(measured))
    }

    pub(super) fn head(self, init: &str) -> anyhow::Result<Option<Measured>> {
        let recipe: ProbeRecipe = self.recipe(&self.file.probe, "probe")?;
        let mut model = open_without_parts(init.into(), &self.device)?;
        if model.own_head {
            bail!("the model has a separate head, so it cannot serve as a backbone: {init:?}");
        }
        if recipe.input_px > 0 {
            let patch_px = model.vit.config().patch_size;
            if !recipe.input_px.is_multiple_of(patch_px) {
                bail!(
                    "input-px is {}, expected a multiple of the model's patch size, {patch_px} px",
                    recipe.input_px
                );
            }
            model.preprocessor = model.preprocessor.at_square(recipe.input_px);
        }
        let frozen = self.with_pictures(model, recipe.seed)?;
        let mut shown = Shown::new(Arc::clone(self.stop));
        let subject = frozen.subject();
        let done = probe::train(&recipe, subject, self.out, &mut |progress| {
            shown.step(progress)
        })?;
        shown.finish();
        if !done.complete {
            return Ok(None);
        }
        let classes = subject.train.classes();
        // Save it before the head, which must never lie next to the input size of an earlier one.
        models::save_preprocessor(self.out, &frozen.model.preprocessor)?;
        models::save_head(
            self.out,
            &done.weight,
            &done.bias,
            classes,
            subject.base_sha256,
        )?;
        Checkpoint::remove(self.out)?;
        println!("test accuracy {}", accuracy(done.test));
        print_unreadable(&frozen.halves);
        println!(
            "wrote head to {:?}; use it with --backbone {init}",
            self.out.join("head.safetensors")
        );
        Ok(Some(measured([("test accuracy", done.test.share())])))
    }

    pub(super) fn gates(self, reference: Reference<'_>) -> anyhow::Result<Option<Measured>> {
        let recipe = gate_recipe(
            &self.file.diffmask,
            self.changes.clone(),
            self.seed,
            self.checkpoint,
        )?;
        let frozen = self.open_frozen(reference, recipe.seed())?;
        check_exclusive(frozen.model.vit.config())?;
        let subject = frozen.subject();
        let mut shown = Shown::new(Arc::clone(self.stop));
        let mut on_progress = |progress: &Progress<'_>| shown.step(progress);
        let done = match &recipe {
            GateRecipe::Published(recipe) => {
                diffmask::train(recipe, subject, self.out, &mut on_progress)?
            }
            GateRecipe::Shapley(recipe) => {
                shapley::train(recipe, subject, self.out, &mut on_progress)?
            }
            GateRecipe::Order(recipe) => order::train(recipe, subject, self.out, &mut on_progress)?,
        };
        shown.finish();
        if !done.complete {
            return Ok(None);
        }
        Gates::save(&done.tensors, &done.card, self.out)?;
        Checkpoint::remove(self.out)?;
        let measured = match &recipe {
            GateRecipe::Published(recipe) => told_of_voting(&done, recipe.margin),
            GateRecipe::Shapley(_) => {
                told_of_ranking(&done, "scores", "of the variance of masked answers")
            }
            GateRecipe::Order(_) => told_of_ranking(&done, "gates", "of the teacher's order"),
        };
        print_unreadable(&frozen.halves);
        print!("wrote gates to {:?}", self.out.join("gates.safetensors"));
        match &recipe {
            GateRecipe::Published(_) => println!(", report to {:?}", self.out.join("report.html")),
            GateRecipe::Shapley(_) | GateRecipe::Order(_) => println!(),
        }
        Ok(Some(measured))
    }

    pub(super) fn interpreter(self, reference: Reference<'_>) -> anyhow::Result<Option<Measured>> {
        let recipe: IaVitRecipe = self.recipe(&self.file.ia_vit, IA_VIT)?;
        let frozen = self.open_frozen(reference, recipe.seed)?;
        check_exclusive(frozen.model.vit.config())?;
        let mut shown = Shown::new(Arc::clone(self.stop));
        let done = iavit::train(&recipe, frozen.subject(), self.out, &mut |progress| {
            shown.step(progress)
        })?;
        shown.finish();
        if !done.complete {
            return Ok(None);
        }
        Interpreter::save(&done.tensors, &done.card, self.out)?;
        Checkpoint::remove(self.out)?;
        let measured = told(done.fidelity);
        print_unreadable(&frozen.halves);
        println!(
            "wrote interpreter to {:?}",
            self.out.join("interpreter.safetensors")
        );
        Ok(Some(measured))
    }

    /// Returns a table of the recipe file with the command line's changes.
    fn recipe<T: for<'de> Deserialize<'de>>(
        &self,
        table: &toml::Table,
        name: &str,
    ) -> anyhow::Result<T> {
        recipe(
            table,
            self.changes.clone(),
            self.seed,
            self.checkpoint,
            name,
        )
    }

    fn open_data(
        &self,
        rule: ResizeRule,
        resampling: Resampling,
        seed: u64,
    ) -> anyhow::Result<Halves> {
        let Some(reference) = self.data.or(self.file.data.as_deref()) else {
            bail!("no data, pass --data or a recipe with the key `data`");
        };
        Ok(data::open(reference, rule, resampling, seed)?)
    }

    fn open_frozen(&self, reference: Reference<'_>, seed: u64) -> anyhow::Result<Frozen> {
        self.with_pictures(open_without_parts(reference, &self.device)?, seed)
    }

    fn with_pictures(&self, model: Model, seed: u64) -> anyhow::Result<Frozen> {
        let halves = self.open_data_for(&model.preprocessor, seed)?;
        Ok(Frozen { model, halves })
    }

    /// Opens the pictures as a model requires them.
    fn open_data_for(&self, preprocessor: &Preprocessor, seed: u64) -> anyhow::Result<Halves> {
        let Preprocessor {
            rule, resampling, ..
        } = *preprocessor;
        let halves = self.open_data(rule, resampling, seed)?;
        Ok(halves.at_size(rule, resampling))
    }
}

/// Checks that the model's answer is a distribution over its classes, which is what gates and interpreters learn to
/// preserve.
fn check_exclusive(config: &VitConfig) -> anyhow::Result<()> {
    match config.link() {
        Link::Sigmoid if config.multi_label => bail!(
            "several classes of the model may apply at once, expected a model that predicts exactly one"
        ),
        Link::Sigmoid => bail!("the model has one class, expected at least two"),
        Link::Softmax => Ok(()),
    }
}

/// Opens a model to train something for it, without the parts trained for it before.
fn open_without_parts(reference: Reference<'_>, device: &Device) -> anyhow::Result<Model> {
    let reference = Reference {
        trained_parts: false,
        ..reference
    };
    Ok(models::open(reference, device)?)
}

/// A frozen model to train something for, and the pictures.
struct Frozen {
    model: Model,
    halves: Halves,
}

impl Frozen {
    fn subject(&self) -> Subject<'_> {
        Subject {
            vit: &self.model.vit,
            size: self.model.preprocessor.image_size(),
            base_sha256: &self.model.weights_sha256,
            mean: self.model.preprocessor.mean,
            std: self.model.preprocessor.std,
            train: &*self.halves.train,
            test: &*self.halves.test,
        }
    }
}

fn measured<const N: usize>(values: [(&str, f64); N]) -> Measured {
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Returns the minimum and the maximum of some values.
pub(super) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}

/// Prints how well an interpreter reproduces the answers of its model.
fn told(fidelity: Fidelity) -> Measured {
    print!(
        "interpreter on test pictures: kl {:.4}, agreement {:.4}",
        fidelity.kl, fidelity.agreement
    );
    if fidelity.accuracy.is_nan() {
        println!();
    } else {
        println!(", accuracy {:.4}", fidelity.accuracy);
    }
    measured([
        ("interpreter kl", fidelity.kl),
        ("interpreter agreement", fidelity.agreement),
        ("interpreter accuracy", fidelity.accuracy),
    ])
}

/// Prints how the binary masks of voting gates preserve the answers.
fn told_of_voting(done: &TrainedGates, margin: f64) -> Measured {
    let TrainedGates {
        card,
        agreement,
        within,
        ..
    } = done;
    println!(
        "binary masks on test pictures: kl {:.4}, kept {:.4}, agreement {agreement:.4}, within the margin {within:.4}",
        card.kl, card.l0
    );
    if card.kl > margin {
        println!(
            "the margin of {margin} is not met; train longer, or start with a different masked-share"
        );
    }
    measured([
        ("kl", card.kl),
        ("kept", card.l0),
        ("agreement", *agreement),
        ("within margin", *within),
    ])
}

/// Prints how much of `of_what` `who` explains, and how minimal sets of the top-rated patches preserve the answers.
fn told_of_ranking(done: &TrainedGates, who: &str, of_what: &str) -> Measured {
    let TrainedGates {
        card, agreement, ..
    } = done;
    let explained = card.explained.unwrap_or(f64::NAN);
    println!("{who} explain {explained:.4} {of_what} on test pictures");
    println!(
        "cut at the margin: kl {:.4}, kept {:.4}, agreement {agreement:.4}",
        card.kl, card.l0
    );
    measured([
        ("explained", explained),
        ("kept", card.l0),
        ("agreement", *agreement),
    ])
}

/// Formats a share of right answers with its interval.
pub fn accuracy(count: Count) -> String {
    let (low, high) = count.interval();
    format!(
        "{:.4} on {} pictures (95 % interval {low:.4} to {high:.4})",
        count.share(),
        count.of
    )
}

/// Prints the pictures that were left out.
fn print_unreadable(halves: &Halves) {
    let mut unreadable = halves.train.unreadable();
    unreadable.extend(halves.test.unreadable());
    unreadable.sort();
    unreadable.dedup();
    print_left_out(unreadable);
}

/// Prints the number and the names of pictures that could not be read, if any.
pub fn print_left_out(reasons: Vec<String>) {
    if reasons.is_empty() {
        return;
    }
    println!("skipped as unreadable: {}", reasons.len());
    for reason in reasons {
        println!("  {reason}");
    }
}
