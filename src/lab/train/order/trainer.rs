//! A run of training for ordering gates: its steps, measurements and checkpoints.

use std::collections::BTreeMap;

use candle_core::{IndexOp, Tensor, Var};

use super::OrderRecipe;
use super::teacher::{order_of, rollout_of_halves};
use crate::eval;
use crate::eval::masks::MaskScores;
use crate::train::diffmask::TrainedGates;
use crate::train::margin::cut_at_margin;
use crate::train::most_explained::MostExplained;
use crate::train::optim::AdamW;
use crate::train::run::{Trainer, finite_loss, recipe_options};
use crate::train::{Batches, Checkpoint, Subject, copies, cosine_schedule, over, variables};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::{Forward, Needs, Target};
use vitscope_core::gates::{
    ClassStream, DEFAULT_STRETCH, EMPTY_ANSWER, GateCard, GateSizes, Objective, OrderGates,
    OrderSizes, SCALE, answer_without_patches, features, stream_sites,
};
use vitscope_core::rng::Rng;
use vitscope_core::vit::Vit;
use vitscope_kernels::in_pool;

/// Number of images per forward and backward pass.
pub(super) const CHUNK: usize = 32;
/// Minimum spread of a feature, as a fraction of a mean share; features below it are not scaled to a deviation of 1.
const LEAST_SPREAD: f32 = 1e-3;

/// State of a run between two steps.
pub(super) struct OrderTrainer<'a> {
    recipe: &'a OrderRecipe,
    subject: Subject<'a>,
    grid: (usize, usize),
    vars: BTreeMap<String, Var>,
    /// Tensors that are not learned, by name.
    constants: BTreeMap<String, Tensor>,
    /// Gates over `vars` and `constants`.
    gates: OrderGates,
    optim: AdamW,
    step: u64,
    /// Images to make lessons from.
    pictures: Batches,
    /// One per chunk; merged into one once all chunks are processed.
    lessons: Vec<Lesson>,
    /// Lessons of the test images, from the first measurement on.
    test_lessons: Vec<Lesson>,
    /// Best gates according to test images.
    best: MostExplained,
}

/// Inputs of the gates for a batch of images, and the teacher's targets.
struct Lesson {
    /// `[batch, patches, features]`
    features: Tensor,
    /// t, `[batch, patches]`
    taught: Tensor,
}

impl<'a> OrderTrainer<'a> {
    pub(super) fn new(recipe: &'a OrderRecipe, subject: Subject<'a>) -> Result<Self> {
        let vit = subject.vit;
        let sizes = OrderSizes::new(vit.config(), recipe.hidden);
        let mut rng = Rng::new(recipe.seed);
        let mut tensors = OrderGates::initial_tensors(sizes, &mut rng, subject.device())?;
        let grid = vit.grid(subject.size.height_px, subject.size.width_px);
        let any = subject.images(subject.train, &[0])?;
        let emptied = answer_without_patches(vit, &any)?;
        tensors.remove(EMPTY_ANSWER);
        let mut constants = BTreeMap::from([(EMPTY_ANSWER.to_owned(), emptied.squeeze(0)?)]);
        constants.extend(tensors.remove_entry(SCALE));
        let vars: BTreeMap<String, Var> = variables(tensors, subject.device())?;
        Ok(Self {
            recipe,
            subject,
            grid,
            gates: gates_over(vit, recipe.hidden, &vars, &constants)?,
            optim: AdamW::decaying_matrices(&vars, recipe.weight_decay),
            vars,
            constants,
            step: 0,
            pictures: Batches::new(recipe.seed, subject.train.len(), CHUNK),
            lessons: Vec::new(),
            test_lessons: Vec::new(),
            best: MostExplained::default(),
        })
    }

    /// Queries the teacher about the next images; after the last ones, computes the spread of the features.
    fn study(&mut self) -> Result<()> {
        let mut indices = self.pictures.at(self.step);
        indices.truncate(self.recipe.pictures - self.step as usize * CHUNK);
        let images = self.subject.images(self.subject.train, &indices)?;
        let mut rng = Rng::for_item(self.recipe.seed, self.step);
        self.lessons.push(self.lesson(&images, &mut rng)?);
        self.step += 1;
        if self.step == self.recipe.study_steps(self.subject.train.len()) {
            self.sum_up()?;
        }
        Ok(())
    }

    /// Merges all lessons into one and fits the scale of the gates to it.
    fn sum_up(&mut self) -> Result<()> {
        let all = |part: fn(&Lesson) -> &Tensor| {
            let parts: Vec<&Tensor> = self.lessons.iter().map(part).collect();
            Tensor::cat(&parts, 0)
        };
        let lesson = Lesson {
            features: all(|lesson| &lesson.features)?,
            taught: all(|lesson| &lesson.taught)?,
        };
        let squares = lesson.features.sqr()?.flatten_to(1)?; // [pictures · patches, features]
        let scale = squares.mean(0)?.sqrt()?.clamp(LEAST_SPREAD, f32::MAX)?;
        self.constants.insert(SCALE.into(), scale);
        self.lessons = vec![lesson];
        let (vit, hidden) = (self.subject.vit, self.recipe.hidden);
        self.gates = gates_over(vit, hidden, &self.vars, &self.constants)?;
        Ok(())
    }

    /// Updates the gates once; returns the first two of [`COLUMNS`](super::COLUMNS).
    fn update(&mut self) -> Result<[f64; 2]> {
        let OrderRecipe {
            lr,
            warmup_steps,
            steps,
            seed,
            batch,
            ..
        } = *self.recipe;
        let Some(all) = self.lessons.first() else {
            return Err(Error::Data("there are no training pictures".into()));
        };
        let n_pictures = all.taught.dim(0)?;
        let update = self.step - self.recipe.study_steps(self.subject.train.len());
        let mut rng = Rng::for_item(seed, update);
        let drawn: Vec<u32> = (0..batch).map(|_| rng.below(n_pictures) as u32).collect();
        let drawn = Tensor::new(drawn, all.taught.device())?;
        let taught = all.taught.index_select(&drawn, 0)?;
        let order = self.gates.order(&all.features.index_select(&drawn, 0)?)?;
        let residual = (order - &taught)?;
        let loss = residual.sqr()?.mean_all()?;
        let grads = loss.backward()?;
        self.optim
            .step(&grads, lr * cosine_schedule(update, warmup_steps, steps))?;
        let loss = finite_loss(&loss, self.step, lr)?;
        self.step += 1;
        Ok([loss, explained(&residual, &taught)?.share()])
    }

    /// Queries the teacher about images, for the class that the model predicts.
    fn lesson(&self, images: &Tensor, rng: &mut Rng) -> Result<Lesson> {
        let vit = self.subject.vit;
        let forward = Forward::run(vit, images, Needs::values(stream_sites(vit)))?;
        let pass = forward.toward(Target::Predicted)?;
        let weights = pass.weights()?;
        let stream = ClassStream::follow(vit, |site| pass.value(site), weights)?;
        let rollout = rollout_of_halves(vit, images, weights, self.recipe.halvings, rng)?;
        let attention = &stream.attention; // [batch, followed, patches]
        let attention = attention.i((.., attention.dim(1)? - 1))?;
        Ok(Lesson {
            features: features(&stream, self.grid)?,
            taught: order_of(&rollout, &attention, self.grid, self.recipe)?,
        })
    }

    /// Returns the current tensors of the gates.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors: BTreeMap<String, Tensor> = copies(&self.vars)?;
        tensors.extend(self.constants.clone());
        Ok(tensors)
    }

    /// Returns the share of the teacher's targets on test images that the gates explain.
    fn measure(&mut self) -> Result<f64> {
        if self.test_lessons.is_empty() {
            let chunks = (self.subject).test_chunks(self.recipe.test_pictures, CHUNK);
            let lessons = chunks.zip(0..).map(|(indices, nth)| {
                let images = self.subject.images(self.subject.test, &indices)?;
                // Random halves that no training image uses.
                let mut rng = Rng::for_item(!self.recipe.seed, nth);
                self.lesson(&images, &mut rng)
            });
            self.test_lessons = lessons.collect::<Result<_>>()?;
        }
        let mut sum = Explained::default();
        for lesson in &self.test_lessons {
            let order = self.gates.order(&lesson.features)?.detach();
            let of_chunk = explained(&(order - &lesson.taught)?, &lesson.taught)?;
            sum.error += of_chunk.error;
            sum.spread += of_chunk.spread;
        }
        // Rounded to the precision of a checkpoint, so that a resumed run compares the same numbers.
        Ok(f64::from(sum.share() as f32))
    }

    /// Stores the current gates if they explain more than any before.
    fn learn_from(&mut self, explained: f64) -> Result<()> {
        let tensors = self.tensors()?;
        self.best.offer(explained, tensors);
        Ok(())
    }

    pub(super) fn finish(mut self, complete: bool) -> Result<TrainedGates> {
        if self.best.is_empty() {
            let explained = if complete { self.measure()? } else { 0.0 };
            self.learn_from(explained)?;
        }
        let (explained, tensors) = self.best.take()?;
        let (vit, recipe) = (self.subject.vit, self.recipe);
        let by_name = tensors.clone().into_iter().collect();
        let gates = OrderGates::load(vit, recipe.hidden, &by_name)?;
        // The scores of an interrupted run are not used and take a while to compute.
        let scores = match complete {
            true => cut_at_margin(
                self.subject,
                recipe.test_pictures,
                recipe.margin,
                |images| {
                    let (output, scores) = gates.pass(vit, images)?;
                    Ok((eval::logits(output.logits)?, scores))
                },
            )?,
            false => MaskScores::of(&[], recipe.margin),
        };
        let sizes = GateSizes::new(vit.config());
        Ok(TrainedGates {
            tensors,
            card: GateCard {
                base_sha256: self.subject.base_sha256.to_owned(),
                objective: Objective::Order,
                states: sizes.states,
                dim: sizes.dim,
                hidden: recipe.hidden,
                stretch: DEFAULT_STRETCH,
                seed: recipe.seed,
                recipe: recipe_options(recipe)?,
                l0: scores.kept,
                kl: scores.kl,
                explained: Some(explained),
            },
            agreement: scores.agreement,
            within: scores.within,
            complete,
        })
    }
}

/// Creates gates over learned variables and constants.
fn gates_over(
    vit: &Vit,
    hidden: usize,
    vars: &BTreeMap<String, Var>,
    constants: &BTreeMap<String, Tensor>,
) -> Result<OrderGates> {
    let mut tensors = over(vars);
    tensors.extend(constants.clone());
    OrderGates::load(vit, hidden, &tensors)
}

/// Sums of squares of the residual order, and of the teacher's order.
#[derive(Default)]
struct Explained {
    error: f64,
    spread: f64,
}

impl Explained {
    fn share(&self) -> f64 {
        1.0 - self.error / self.spread.max(f64::MIN_POSITIVE)
    }
}

fn explained(residual: &Tensor, taught: &Tensor) -> Result<Explained> {
    let squares = |xs: &Tensor| -> Result<f64> {
        Ok(f64::from(xs.detach().sqr()?.sum_all()?.to_scalar::<f32>()?))
    };
    Ok(Explained {
        error: squares(residual)?,
        spread: squares(taught)?,
    })
}

impl Trainer for OrderTrainer<'_> {
    fn steps_done(&self) -> u64 {
        self.step
    }

    fn step(&mut self) -> Result<Vec<f64>> {
        let study_steps = self.recipe.study_steps(self.subject.train.len());
        if self.step < study_steps {
            in_pool(|| self.study())?;
            return Ok(Vec::new());
        }
        let mut values = in_pool(|| self.update())?.to_vec();
        let updates = self.step - study_steps;
        let Self { recipe, .. } = *self;
        if updates.is_multiple_of(recipe.test_steps.max(1)) || updates == recipe.steps {
            let explained = in_pool(|| self.measure())?;
            self.learn_from(explained)?;
            values.push(explained);
        }
        Ok(values)
    }

    fn checkpoint(&self, recipe: &str) -> Result<Checkpoint> {
        let mut tensors = self.optim.state()?;
        for (idx, lesson) in self.lessons.iter().enumerate() {
            tensors.insert(format!("features.{idx}"), lesson.features.clone());
            tensors.insert(format!("taught.{idx}"), lesson.taught.clone());
        }
        tensors.extend(self.best.saved()?);
        Ok(Checkpoint {
            step: self.step,
            rng: Rng::new(self.recipe.seed),
            recipe: recipe.to_owned(),
            tensors,
        })
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.optim.restore(&checkpoint.tensors)?;
        self.best = MostExplained::of(&checkpoint)?;
        let saved = |name: String| checkpoint.tensors.get(&name).cloned();
        self.lessons = (0..)
            .map_while(|idx| {
                Some(Lesson {
                    features: saved(format!("features.{idx}"))?,
                    taught: saved(format!("taught.{idx}"))?,
                })
            })
            .collect();
        self.step = checkpoint.step;
        if self.step >= self.recipe.study_steps(self.subject.train.len()) {
            self.sum_up()?;
        }
        Ok(())
    }
}
