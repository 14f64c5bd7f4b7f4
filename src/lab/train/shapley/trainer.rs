//! A run of Shapley regression: its steps, measurements and checkpoints.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor, Var};
use candle_nn::ops::softmax;

use super::subsets::{blobs, disturbed, draw_size, scattered};
use super::{Fill, ShapleyRecipe};
use crate::eval;
use crate::eval::batched::BatchedModel;
use crate::eval::masks::MaskScores;
use crate::eval::perturbation::{GRADMASK_BLUR, Geometry, Substrate, change};
use crate::train::diffmask::TrainedGates;
use crate::train::margin::cut_at_margin;
use crate::train::most_explained::MostExplained;
use crate::train::optim::AdamW;
use crate::train::run::{Trainer, finite_loss, recipe_options};
use crate::train::{Batches, Checkpoint, Subject, copies, cosine_schedule, over, variables};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::chefer::Chefer;
use vitscope_core::explain::{Explainer, Forward, Needs, Target};
use vitscope_core::gates::{
    EMPTY_ANSWER, GateCard, Objective, RankingGates, RankingSizes, answer_without_patches,
    best_kept, ranking, state_sites,
};
use vitscope_core::rng::Rng;
use vitscope_core::vit::{NoTap, Record};
use vitscope_kernels::in_pool;

/// Number of images per forward pass.
const CHUNK: usize = 64;
/// Number of subset pairs measured per test image, for each of [`TEST_FILLS`].
const TEST_PAIRS: usize = 4;
/// Fills used to measure on test images.
const TEST_FILLS: [Fill; 2] = [Fill::Black, Fill::Blur];

/// State of a run between two steps.
pub(super) struct RankingTrainer<'a> {
    recipe: &'a ShapleyRecipe,
    subject: Subject<'a>,
    geometry: Geometry,
    vars: BTreeMap<String, Var>,
    /// Gates over `vars`.
    gates: RankingGates,
    optim: AdamW,
    /// Source of random fills and subsets.
    rng: Rng,
    step: u64,
    batches: Batches,
    /// Sum of the model's outputs on emptied images over all images seen, and their number.
    empty: (Vec<f32>, f32),
    /// Best gates according to test images.
    best: MostExplained,
}

/// The model's outputs for the unmodified images of a batch.
struct Clean {
    /// `[batch, 3, height, width]`
    images: Tensor,
    /// Normalized pixels of each image.
    pictures: Vec<Vec<f32>>,
    /// States as taken by [`RankingGates::raw_scores`].
    states: Vec<Tensor>,
    /// `[batch, classes]`
    logits: Tensor,
    /// Class probabilities, `[batch, classes]`.
    answer: Tensor,
}

/// Subsets of the patches of each image, and the model's outputs for them.
struct Game {
    /// `[batch, subsets, patches]`
    kept: Tensor,
    /// `[batch, subsets, classes]`
    values: Tensor,
    /// `[batch, classes]`
    empty: Tensor,
}

impl<'a> RankingTrainer<'a> {
    pub(super) fn new(recipe: &'a ShapleyRecipe, subject: Subject<'a>) -> Result<Self> {
        let sizes = RankingSizes::new(subject.vit.config(), recipe.hidden);
        let mut rng = Rng::new(recipe.seed);
        let mut tensors = RankingGates::initial_tensors(sizes, &mut rng, subject.device())?;
        let empty_answer = tensors.remove(EMPTY_ANSWER);
        let vars: BTreeMap<String, Var> = variables(tensors, subject.device())?;
        let mut over_vars = over(&vars);
        over_vars.extend(empty_answer.map(|tensor| (EMPTY_ANSWER.to_owned(), tensor)));
        let geometry = Geometry {
            height_px: subject.size.height_px,
            width_px: subject.size.width_px,
            grid: subject
                .vit
                .grid(subject.size.height_px, subject.size.width_px),
        };
        Ok(Self {
            recipe,
            subject,
            geometry,
            gates: RankingGates::load(subject.vit, recipe.hidden, &over_vars)?,
            optim: AdamW::decaying_matrices(&vars, recipe.weight_decay),
            vars,
            rng,
            step: 0,
            batches: Batches::new(recipe.seed, subject.train.len(), recipe.batch),
            empty: (vec![0.0; sizes.classes], 0.0),
            best: MostExplained::default(),
        })
    }

    /// Updates the gates once; returns the first two of [`COLUMNS`](super::COLUMNS).
    fn update(&mut self) -> Result<[f64; 2]> {
        if self.step < self.recipe.teacher_steps {
            return self.follow_teacher();
        }
        let indices = self.batches.at(self.step);
        let images = self.subject.images(self.subject.train, &indices)?;
        let clean = self.clean(&images)?;
        let raw = self.gates.raw_scores(&clean.states, &clean.answer)?;
        let fill = self.draw_fill();
        let mut rng = self.rng.clone();
        let policy = predicted_scores(&raw, &clean.answer)?;
        let game = self.play(&clean, fill, self.recipe.pairs, &policy, &mut rng)?;
        self.rng = rng;
        self.count_emptied(&game.empty)?;
        let residual = (predicted(&raw, &clean.answer, &game)? - &game.values)?;
        let loss = residual.sqr()?.sum(2)?.mean_all()?;
        let loss = self.descend(&loss)?;
        let (error, spread) = errors(&residual.detach(), &clean.answer, &game)?;
        Ok([loss, 1.0 - error / spread.max(f64::MIN_POSITIVE)])
    }

    /// Updates the gates once toward the teacher's scores of the predicted class. Returns the same as
    /// [`update`](Self::update), except that "explained" is the share of the teacher's scores explained by the gates.
    fn follow_teacher(&mut self) -> Result<[f64; 2]> {
        let indices = self.batches.at(self.step);
        let images = self.subject.images(self.subject.train, &indices)?;
        let vit = self.subject.vit;
        let needs = Chefer {}.needs(vit).and(Needs::values(state_sites(vit)));
        let forward = Forward::run(vit, &images, needs)?;
        let logits = eval::logits(forward.logits())?;
        let pass = forward.toward(Target::Predicted)?;
        let relevance = Chefer {}.attribution(&pass)?.detach();
        let states: Vec<Tensor> = state_sites(vit)
            .map(|site| pass.value(site))
            .collect::<Result<_>>()?;
        let answer = softmax(&logits, D::Minus1)?;
        self.count_emptied(&self.answers_without_tokens(&images)?)?;
        let class = logits.argmax_keepdim(D::Minus1)?; // [batch, 1]
        let probability = answer.gather(&class, 1)?; // [batch, 1]
        let total = (relevance.sum_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?;
        let shares = relevance.broadcast_div(&total)?; // [batch, patches]
        let taught = apart(&shares)?.broadcast_mul(&probability)?;
        let raw = self.gates.raw_scores(&states, &answer)?; // [batch, patches, classes]
        let n_patches = raw.dim(1)?;
        let of_class = class
            .unsqueeze(1)?
            .broadcast_as((raw.dim(0)?, n_patches, 1))?
            .contiguous()?;
        let raw = raw.contiguous()?.gather(&of_class, 2)?.squeeze(2)?; // [batch, patches]
        let residual = (apart(&raw)? - &taught)?;
        let loss = (residual.sqr()?.mean_all()? * (n_patches * n_patches) as f64)?;
        let error = f64::from(residual.sqr()?.sum_all()?.to_scalar::<f32>()?);
        let spread = f64::from(taught.sqr()?.sum_all()?.to_scalar::<f32>()?);
        let loss = self.descend(&loss)?;
        Ok([loss, 1.0 - error / spread.max(f64::MIN_POSITIVE)])
    }

    /// Adds the outputs for emptied images, `[batch, classes]`, to their running mean.
    fn count_emptied(&mut self, answers: &Tensor) -> Result<()> {
        for answer in answers.to_vec2::<f32>()? {
            for (sum, value) in self.empty.0.iter_mut().zip(answer) {
                *sum += value;
            }
            self.empty.1 += 1.0;
        }
        Ok(())
    }

    /// Runs one optimizer step and returns the loss.
    fn descend(&mut self, loss: &Tensor) -> Result<f64> {
        let grads = loss.backward()?;
        let ShapleyRecipe {
            lr,
            warmup_steps,
            teacher_steps,
            steps,
            ..
        } = *self.recipe;
        // The teacher phase and the main phase each have their own warmup and decay.
        let rate = match self.step.checked_sub(teacher_steps) {
            Some(step) => cosine_schedule(step, warmup_steps, steps - teacher_steps),
            None => cosine_schedule(self.step, warmup_steps, teacher_steps),
        };
        self.optim.step(&grads, lr * rate)?;
        let loss = finite_loss(loss, self.step, lr)?;
        self.step += 1;
        Ok(loss)
    }

    /// Returns the model, ready to evaluate masked copies.
    fn model(&self) -> BatchedModel<'a> {
        let vit = self.subject.vit;
        BatchedModel::new(
            move |images| eval::logits(vit.forward(images)?.logits),
            self.geometry,
            (self.subject.mean, self.subject.std),
            CHUNK,
            self.subject.device(),
        )
    }

    /// Runs the model on unmodified images.
    fn clean(&self, images: &Tensor) -> Result<Clean> {
        let vit = self.subject.vit;
        let mut record = Record::new(state_sites(vit));
        let output = vit.forward_with(images, &mut record)?;
        let states = state_sites(vit).map(|site| record.get(site).map(Tensor::detach));
        let logits = eval::logits(output.logits)?.detach();
        Ok(Clean {
            images: images.clone(),
            pictures: images.flatten_from(1)?.to_vec2()?,
            states: states.collect::<candle_core::Result<_>>()?,
            answer: softmax(&logits, D::Minus1)?,
            logits,
        })
    }

    fn draw_fill(&mut self) -> Fill {
        let total: f64 = self.recipe.fills.values().sum();
        let mut left = f64::from(self.rng.uniform()) * total;
        let drawn = self.recipe.fills.iter().find(|(_, weight)| {
            left -= **weight;
            left < 0.0
        });
        drawn.map_or(Fill::Black, |(fill, _)| *fill)
    }

    /// Draws subsets and evaluates the model on them.
    ///
    /// `policy`: current scores of each patch of each image.
    fn play(
        &self,
        clean: &Clean,
        fill: Fill,
        n_pairs: usize,
        policy: &[Vec<f32>],
        rng: &mut Rng,
    ) -> Result<Game> {
        let grid = self.geometry.grid;
        let n_patches = grid.0 * grid.1;
        // Within a pair, all images keep the same number of patches, so the remaining tokens form tensors of equal
        // length.
        let mut subsets: Vec<Vec<Vec<bool>>> = Vec::with_capacity(2 * n_pairs);
        for _ in 0..n_pairs {
            let n_kept = draw_size(n_patches, rng);
            let of_picture = |policy: &Vec<f32>| {
                let kind = f64::from(rng.uniform());
                let scores = if kind < self.recipe.policy_share {
                    disturbed(policy, rng)
                } else if kind < self.recipe.policy_share + self.recipe.blob_share {
                    blobs(grid, rng)
                } else {
                    scattered(n_patches, rng)
                };
                best_kept(&ranking(&scores), n_kept)
            };
            let kept: Vec<Vec<bool>> = policy.iter().map(of_picture).collect();
            let complement = |mask: &Vec<bool>| mask.iter().map(|keep| !keep).collect();
            subsets.push(kept.iter().map(complement).collect());
            subsets.push(kept);
        }
        let (values, empty) = match fill {
            Fill::Drop => self.values_of_tokens(clean, &subsets)?,
            fill => self.values_of_pixels(clean, fill, &subsets)?,
        };
        let (batch, n_subsets) = (policy.len(), subsets.len());
        let kept: Vec<f32> = subsets
            .iter()
            .flatten()
            .flatten()
            .map(|&keep| f32::from(u8::from(keep)))
            .collect();
        let kept = Tensor::from_vec(kept, (n_subsets, batch, n_patches), values.device())?;
        Ok(Game {
            kept: kept.transpose(0, 1)?.contiguous()?,
            values: values.transpose(0, 1)?.contiguous()?,
            empty,
        })
    }

    /// Returns the outputs `[subsets, batch, classes]` for images whose removed patches are replaced by pixels, and
    /// those for emptied images, `[batch, classes]`.
    fn values_of_pixels(
        &self,
        clean: &Clean,
        fill: Fill,
        subsets: &[Vec<Vec<bool>>],
    ) -> Result<(Tensor, Tensor)> {
        let substrate = match fill {
            Fill::Zeros | Fill::Drop => Substrate::Zeros,
            Fill::Black => Substrate::Black,
            Fill::Mean => Substrate::Mean,
            Fill::Blur => GRADMASK_BLUR,
        };
        let model = self.model();
        let fills: Vec<Vec<f32>> = clean
            .pictures
            .iter()
            .map(|picture| substrate.fill(picture, &model))
            .collect();
        let batch = fills.len();
        // If the replacement does not depend on the image, neither does the emptied image.
        let n_emptied = match substrate {
            Substrate::Zeros | Substrate::Black => 1,
            _ => batch,
        };
        let n_masked = subsets.len() * batch;
        let logits = model.answers(n_masked + n_emptied, &mut |nth, pixels| {
            let (subset_idx, picture_idx) = (nth / batch, nth % batch);
            let mut copy = fills[picture_idx].clone();
            if let Some(subset) = subsets.get(subset_idx) {
                for (patch, _) in subset[picture_idx]
                    .iter()
                    .enumerate()
                    .filter(|(_, keep)| **keep)
                {
                    let kept: Vec<usize> = self.geometry.pixels_of_patch(patch).collect();
                    change(&mut copy, &clean.pictures[picture_idx], &kept);
                }
            }
            pixels.extend_from_slice(&copy);
        })?;
        let n_classes = logits.first().map_or(0, Vec::len);
        let logits = Tensor::from_vec(
            logits.concat(),
            (n_masked + n_emptied, n_classes),
            self.subject.device(),
        )?;
        let answers = softmax(&logits, D::Minus1)?;
        let values = answers.narrow(0, 0, n_masked)?;
        let emptied = answers.narrow(0, n_masked, n_emptied)?;
        Ok((
            values.reshape((subsets.len(), batch, n_classes))?,
            emptied.broadcast_as((batch, n_classes))?.contiguous()?,
        ))
    }

    /// Like [`Self::values_of_pixels`], but for images whose tokens are dropped.
    fn values_of_tokens(
        &self,
        clean: &Clean,
        subsets: &[Vec<Vec<bool>>],
    ) -> Result<(Tensor, Tensor)> {
        let vit = self.subject.vit;
        let n_special = vit.config().n_special_tokens();
        let tokens = clean
            .states
            .get(1)
            .ok_or_else(|| Error::Model("a model has at least two states".into()))?;
        let answer = |masks: &[Vec<bool>]| -> Result<Tensor> {
            let of_picture = |(picture_idx, mask): (usize, &Vec<bool>)| -> Result<Tensor> {
                let kept = mask.iter().zip(n_special as u32..);
                let kept = kept.filter_map(|(keep, token)| keep.then_some(token));
                let kept: Vec<u32> = (0..n_special as u32).chain(kept).collect();
                let kept = Tensor::new(kept.as_slice(), tokens.device())?;
                Ok(tokens.get(picture_idx)?.index_select(&kept, 0)?)
            };
            let left: Vec<Tensor> = masks
                .iter()
                .enumerate()
                .map(of_picture)
                .collect::<Result<_>>()?;
            let logits = vit
                .forward_from(0, &Tensor::stack(&left, 0)?, &mut NoTap)?
                .logits;
            Ok(softmax(&eval::logits(logits)?, D::Minus1)?.detach())
        };
        let values: Vec<Tensor> = subsets
            .iter()
            .map(|masks| answer(masks))
            .collect::<Result<_>>()?;
        Ok((
            Tensor::stack(&values, 0)?,
            self.answers_without_tokens(&clean.images)?,
        ))
    }

    /// Returns the outputs for images without any patch token, `[batch, classes]`.
    fn answers_without_tokens(&self, images: &Tensor) -> Result<Tensor> {
        let empty = answer_without_patches(self.subject.vit, images)?;
        let empty = empty.broadcast_as((images.dim(0)?, empty.dim(1)?))?;
        Ok(empty.contiguous()?)
    }

    /// Returns the current tensors of the gates.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors: BTreeMap<String, Tensor> = copies(&self.vars)?;
        let (sum, n) = &self.empty;
        let mean: Vec<f32> = sum.iter().map(|sum| sum / n.max(1.0)).collect();
        tensors.insert(
            EMPTY_ANSWER.into(),
            Tensor::from_vec(mean, sum.len(), self.subject.device())?,
        );
        Ok(tensors)
    }

    /// Returns the share of the variance of the predicted class's value that the scores explain beyond the subset size,
    /// on test images. Every measurement uses the same subsets.
    fn measure(&self) -> Result<f64> {
        let mut rng = Rng::for_item(self.recipe.seed, u64::MAX);
        let (mut error, mut spread) = (0.0, 0.0);
        for indices in self.subject.test_chunks(self.recipe.test_pictures, CHUNK) {
            let images = self.subject.images(self.subject.test, &indices)?;
            let clean = self.clean(&images)?;
            let raw = self
                .gates
                .raw_scores(&clean.states, &clean.answer)?
                .detach();
            // The subsets must not depend on the gates, so no policy is used.
            let policy = vec![vec![0.0; raw.dim(1)?]; raw.dim(0)?];
            for fill in TEST_FILLS {
                let game = self.play(&clean, fill, TEST_PAIRS, &policy, &mut rng)?;
                let residual = (predicted(&raw, &clean.answer, &game)? - &game.values)?;
                let (of_error, of_spread) = errors(&residual, &clean.answer, &game)?;
                error += of_error;
                spread += of_spread;
            }
        }
        // Rounded to the precision of a checkpoint, so that a resumed run compares the same numbers.
        Ok(f64::from(
            (1.0 - error / spread.max(f64::MIN_POSITIVE)) as f32,
        ))
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
        let sizes = self.gates.sizes();
        let gates = RankingGates::load(
            self.subject.vit,
            sizes.hidden,
            &tensors.clone().into_iter().collect(),
        )?;
        // The scores of an interrupted run are not used and take a while to compute.
        let scores = match complete {
            true => {
                let recipe = self.recipe;
                cut_at_margin(
                    self.subject,
                    recipe.test_pictures,
                    recipe.margin,
                    |images| {
                        let clean = self.clean(images)?;
                        let scores = gates.scores_of_predicted(&clean.states, &clean.logits)?;
                        Ok((clean.logits, scores))
                    },
                )?
            }
            false => MaskScores::of(&[], self.recipe.margin),
        };
        Ok(TrainedGates {
            tensors,
            card: GateCard {
                base_sha256: self.subject.base_sha256.to_owned(),
                objective: Objective::Shapley,
                states: sizes.states,
                dim: sizes.dim,
                hidden: sizes.hidden,
                stretch: vitscope_core::gates::DEFAULT_STRETCH,
                seed: self.recipe.seed,
                recipe: recipe_options(self.recipe)?,
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

/// Centers the scores: subtracts their mean over the patches, `[batch, patches]`.
fn apart(scores: &Tensor) -> Result<Tensor> {
    Ok(scores.broadcast_sub(&scores.mean_keepdim(1)?)?)
}

/// Returns the scores of the class with the highest probability, one per patch.
///
/// # Shapes
/// - `raw`: `[batch, patches, classes]`
/// - `answer`: `[batch, classes]`
fn predicted_scores(raw: &Tensor, answer: &Tensor) -> Result<Vec<Vec<f32>>> {
    let raw: Vec<Vec<Vec<f32>>> = raw.detach().to_vec3()?;
    let classes: Vec<u32> = answer.argmax(D::Minus1)?.to_vec1()?;
    let of_picture = |(rows, class): (Vec<Vec<f32>>, u32)| {
        rows.into_iter().map(|row| row[class as usize]).collect()
    };
    Ok(raw.into_iter().zip(classes).map(of_picture).collect())
}

/// Predicts the value of each subset from the scores: v(0) + Σ_j z_j φ_j.
///
/// # Shapes
/// - `raw`: `[batch, patches, classes]`
/// - `answer`: `[batch, classes]`
/// - result: `[batch, subsets, classes]`
fn predicted(raw: &Tensor, answer: &Tensor, game: &Game) -> Result<Tensor> {
    let gain = (answer - &game.empty)?; // v(1) − v(0)
    let missing = ((gain - raw.sum(1)?)? / raw.dim(1)? as f64)?; // [batch, classes]
    let scores = raw.broadcast_add(&missing.unsqueeze(1)?)?;
    let sums = game.kept.matmul(&scores)?; // [batch, subsets, classes]
    Ok(sums.broadcast_add(&game.empty.unsqueeze(1)?)?)
}

/// Sums the squared residuals of the predicted class, and those that equal scores for all patches would leave.
fn errors(residual: &Tensor, answer: &Tensor, game: &Game) -> Result<(f64, f64)> {
    let class = answer.argmax_keepdim(D::Minus1)?; // [batch, 1]
    let gain = (answer - &game.empty)?.unsqueeze(1)?; // [batch, 1, classes]
    let share = game.kept.mean_keepdim(2)?; // [batch, subsets, 1]
    let by_size = share
        .broadcast_mul(&gain)?
        .broadcast_add(&game.empty.unsqueeze(1)?)?;
    let of_class = |values: &Tensor| -> Result<f64> {
        let n_subsets = values.dim(1)?;
        let class = class
            .unsqueeze(1)?
            .broadcast_as((class.dim(0)?, n_subsets, 1))?;
        let values = values.contiguous()?.gather(&class.contiguous()?, 2)?;
        Ok(f64::from(values.sqr()?.sum_all()?.to_scalar::<f32>()?))
    };
    Ok((of_class(residual)?, of_class(&(by_size - &game.values)?)?))
}

impl Trainer for RankingTrainer<'_> {
    fn steps_done(&self) -> u64 {
        self.step
    }

    fn step(&mut self) -> Result<Vec<f64>> {
        let mut values = in_pool(|| self.update())?.to_vec();
        let Self { recipe, step, .. } = *self;
        if step.is_multiple_of(recipe.test_steps.max(1)) || step == recipe.steps {
            let explained = self.measure()?;
            self.learn_from(explained)?;
            values.push(explained);
        }
        Ok(values)
    }

    fn checkpoint(&self, recipe: &str) -> Result<Checkpoint> {
        let mut tensors = self.optim.state()?;
        let (sum, n) = &self.empty;
        let mut empty = sum.clone();
        empty.push(*n);
        tensors.insert("empty".into(), Tensor::new(empty.as_slice(), &Device::Cpu)?);
        tensors.extend(self.best.saved()?);
        Ok(Checkpoint {
            step: self.step,
            rng: self.rng.clone(),
            recipe: recipe.to_owned(),
            tensors,
        })
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.optim.restore(&checkpoint.tensors)?;
        let saved = |name: &str| -> Result<Option<Vec<f32>>> {
            let tensor = checkpoint.tensors.get(name);
            Ok(tensor.map(Tensor::to_vec1).transpose()?)
        };
        let Some(mut empty) = saved("empty")? else {
            return Err(Error::Config(
                "the checkpoint lacks the outputs for emptied pictures".into(),
            ));
        };
        let n = empty.pop().unwrap_or(0.0);
        self.empty = (empty, n);
        self.best = MostExplained::of(&checkpoint)?;
        self.rng = checkpoint.rng;
        self.step = checkpoint.step;
        Ok(())
    }
}
