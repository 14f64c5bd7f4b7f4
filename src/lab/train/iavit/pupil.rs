//! An interpreter in training: its losses and its fidelity to the model.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::log_softmax;

use super::{Alignment, IaVitRecipe, Start, Teacher, alignment};
use crate::eval::{self, agreement, kl_from_logits};
use crate::train::{copies, over, variables};
use vitscope_core::error::{Error, Result};
use vitscope_core::interpreter::{Interpreter, InterpreterShape, Pooling};
use vitscope_core::rng::Rng;
use vitscope_core::vit::{Output, Record, Site, Vit};

/// Separates the seeds of model and interpreter, although both come from one number.
const SEED_OF_INTERPRETER: u64 = 0x1a;

/// An interpreter over trainable variables.
pub(in crate::train) struct Pupil<'a> {
    recipe: &'a IaVitRecipe,
    vars: BTreeMap<String, Var>,
    interpreter: Interpreter,
}

/// Losses of a batch.
pub(in crate::train) struct Lesson {
    /// `[]`, the weighted sum of the terms.
    pub(in crate::train) loss: Tensor,
    /// Distillation, alignment, and the share of images for which both predict the same class.
    pub(in crate::train) measured: [f64; 3],
}

/// Fidelity of an interpreter to its model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fidelity {
    /// KL(model ‖ interpreter) in nats, mean over images.
    pub kl: f64,
    /// Share of images for which both predict the same class.
    pub agreement: f64,
    /// Share of labeled images that the interpreter classifies correctly; `NaN` without labels.
    pub accuracy: f64,
}

impl<'a> Pupil<'a> {
    pub(in crate::train) fn new(
        recipe: &'a IaVitRecipe,
        vit: &Vit,
        n_patches: usize,
    ) -> Result<Self> {
        let config = vit.config();
        if config.n_classes() == 0 {
            return Err(Error::Model(
                "an interpreter learns the model's output, but the model has no classifier".into(),
            ));
        }
        let shape = recipe.shape(config, n_patches);
        let mut rng = Rng::for_item(recipe.seed, SEED_OF_INTERPRETER);
        let mut tensors = Interpreter::initial_tensors(&shape, &mut rng, &Device::Cpu)?;
        if recipe.start == Start::Model {
            tensors.extend(classifier_of(vit, recipe)?);
        }
        let vars: BTreeMap<String, Var> = variables(tensors, vit.device())?;
        Ok(Self {
            recipe,
            interpreter: Interpreter::load(shape, &over(&vars))?,
            vars,
        })
    }

    pub(in crate::train) fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    pub(in crate::train) fn shape(&self) -> &InterpreterShape {
        self.interpreter.shape()
    }

    /// Copies all values by name.
    pub(in crate::train) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        copies(&self.vars)
    }

    /// Returns the sites that a forward pass of the model must record for a lesson.
    pub(in crate::train) fn sites(&self, vit: &Vit) -> Vec<Site> {
        let blocks = match (self.recipe.alignment, self.recipe.teacher) {
            (Alignment::None, _) => vit.n_blocks()..vit.n_blocks(),
            (Alignment::Released, _) | (_, Teacher::Patches) => 0..vit.n_blocks(),
            (_, Teacher::ClassToken) => vit.n_blocks().saturating_sub(1)..vit.n_blocks(),
        };
        blocks.map(Site::Attention).collect()
    }

    /// Computes the losses of a batch from the model's output and its record at [`sites`](Self::sites).
    pub(in crate::train) fn lesson(
        &self,
        vit: &Vit,
        output: &Output,
        record: &Record,
    ) -> Result<Lesson> {
        let recipe = self.recipe;
        let reading = self.interpreter.read(&patches_of(vit, output)?)?;
        let teacher = eval::logits(output.logits.clone())?;
        let (teacher, answer) = match recipe.detach {
            true => (teacher.detach(), teacher.detach()),
            false => (teacher.clone(), teacher.detach()),
        };
        let distillation = distilled(&teacher, &reading.logits, recipe.temperature)?;
        let mut loss = (&distillation * recipe.distillation)?;
        let mut aligned = 0.0;
        if recipe.alignment != Alignment::None {
            let q = Interpreter::attribution(&reading.attention)?;
            let p = self.attention_of_model(vit, record)?;
            let term = match recipe.alignment {
                Alignment::Released => alignment::released(&p, &q)?,
                Alignment::JensenShannon => alignment::jensen_shannon(&p, &q)?,
                Alignment::Mmd | Alignment::None => alignment::mmd(&p, &q)?,
            };
            aligned = f64::from(term.to_scalar::<f32>()?);
            loss = (loss + (term * recipe.alignment_weight)?)?;
        }
        Ok(Lesson {
            loss,
            measured: [
                f64::from(distillation.to_scalar::<f32>()?),
                aligned,
                agreement(&answer, &reading.logits)?,
            ],
        })
    }

    /// Returns the model's attention to the patches, `[batch, patches]`; distributions, except for the released
    /// regularizer.
    fn attention_of_model(&self, vit: &Vit, record: &Record) -> Result<Tensor> {
        let released = self.recipe.alignment == Alignment::Released;
        let n_special = vit.config().n_special_tokens();
        let mut sum: Option<Tensor> = None;
        for site in self.sites(vit) {
            let attention = record.get(site)?.mean(1)?; // [batch, tokens, tokens]
            let n_patches = attention.dim(2)? - n_special;
            let (first, rows) = match self.recipe.teacher {
                Teacher::ClassToken if !released => (0, 1),
                _ => (n_special, n_patches),
            };
            let of_queries = attention.narrow(1, first, rows)?.mean(1)?;
            let to_patches = of_queries.narrow(1, n_special, n_patches)?; // [batch, patches]
            sum = Some(match sum {
                Some(sum) => (sum + to_patches)?,
                None => to_patches,
            });
        }
        let sum = sum.ok_or_else(|| Error::Model("the model has no blocks".into()))?;
        let sum = if self.recipe.detach {
            sum.detach()
        } else {
            sum
        };
        if released {
            return Ok(sum);
        }
        Ok(sum.broadcast_div(&sum.sum_keepdim(D::Minus1)?)?)
    }

    /// Measures the fidelity to `vit` over chunks of images with their labels.
    pub(in crate::train) fn fidelity(
        &self,
        vit: &Vit,
        chunks: impl Iterator<Item = Result<(Tensor, Vec<Option<usize>>)>>,
    ) -> Result<Fidelity> {
        let (mut kl, mut agreed, mut seen) = (0.0, 0.0, 0.0);
        let (mut right, mut labeled) = (0usize, 0usize);
        for chunk in chunks {
            let (images, labels) = chunk?;
            let output = vit.forward(&images)?;
            let logits = self.interpreter.read(&patches_of(vit, &output)?)?.logits;
            let teacher = eval::logits(output.logits)?;
            let n_images = images.dim(0)? as f64;
            let sum = kl_from_logits(&teacher, &logits)?.sum_all()?;
            kl += f64::from(sum.to_scalar::<f32>()?);
            agreed += n_images * agreement(&teacher, &logits)?;
            seen += n_images;
            let predicted: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
            for (predicted, label) in predicted.into_iter().zip(labels) {
                labeled += usize::from(label.is_some());
                right += usize::from(label == Some(predicted as usize));
            }
        }
        Ok(Fidelity {
            kl: kl / seen,
            agreement: agreed / seen,
            accuracy: right as f64 / labeled as f64,
        })
    }
}

/// Returns weights with which an interpreter classifies the mean of its attended patches as the model classifies its
/// class token.
fn classifier_of(vit: &Vit, recipe: &IaVitRecipe) -> Result<[(String, Tensor); 4]> {
    let (Some(classifier), Pooling::Mean) = (vit.linear_classifier(), recipe.pooling) else {
        return Err(Error::Config(
            "start = \"model\" requires a model with one linear classifier, and pooling = \"mean\""
                .into(),
        ));
    };
    let [weight, bias] = classifier.parts();
    let (n_classes, dim) = (weight.dim(0)?, vit.config().hidden_size);
    // The head's other input next to the class token is also a mean of patches.
    let weight = weight.detach().reshape((n_classes, (), dim))?.sum(1)?;
    let tensors = [
        (
            "value.weight",
            Tensor::eye(dim, DType::F32, weight.device())?,
        ),
        (
            "value.bias",
            Tensor::zeros(dim, DType::F32, weight.device())?,
        ),
        ("classifier.weight", weight.to_dtype(DType::F32)?),
        ("classifier.bias", bias.detach().to_dtype(DType::F32)?),
    ];
    Ok(tensors.map(|(name, tensor)| (name.to_owned(), tensor)))
}

/// Returns the tokens after the special ones.
fn patches_of(vit: &Vit, output: &Output) -> Result<Tensor> {
    let n_special = vit.config().n_special_tokens();
    let n_patches = output.tokens.dim(1)? - n_special;
    Ok(output
        .tokens
        .narrow(1, n_special, n_patches)?
        .contiguous()?)
}

/// T² · KL(softmax(u / T) ‖ softmax(v / T)), mean over the batch (Hinton et al., arXiv:1503.02531).
fn distilled(teacher: &Tensor, student: &Tensor, temperature: f64) -> Result<Tensor> {
    let teacher = log_softmax(&(teacher / temperature)?, D::Minus1)?;
    let student = log_softmax(&(student / temperature)?, D::Minus1)?;
    let kl = (teacher.exp()? * (&teacher - student)?)?.sum(D::Minus1)?;
    Ok((kl.mean_all()? * (temperature * temperature))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values from `tests/fixtures/interpreter_parity.py`.
    #[test]
    fn distillation_is_that_of_pytorch() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/interpreter.safetensors"
        );
        let reference = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let found = distilled(&reference["teacher"], &reference["student"], 3.0).unwrap();
        let found: f32 = found.to_scalar().unwrap();
        let expected: f32 = reference["distillation"].to_scalar().unwrap();
        assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
    }
}
