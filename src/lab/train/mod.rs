//! Training: what all trainers share, that is progress, checkpoints and the record of a run.
//!
//! A run is a function of its recipe, its data and its seed. A checkpoint holds everything that the next
//! step reads, so a run that was killed and resumed gives the same bits as one that was not, as long as
//! it runs on the same number of threads.

mod cholesky;
pub mod classifier;
mod crop;
pub mod diffmask;
pub mod familiarity;
pub mod history;
pub mod iavit;
mod margin;
mod most_explained;
pub mod optim;
pub mod order;
pub mod probe;
mod run;
pub mod shapley;
mod subject;
pub mod taught;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use vitscope_core::error::{Error, Result};
use vitscope_core::files::write_whole;
use vitscope_core::rng::Rng;

pub use history::History;
pub use subject::Subject;

/// What a trainer tells after each step.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// Steps done.
    pub step: u64,
    /// Steps that the run will have.
    pub n_steps: u64,
    /// Names of the values, the same at every step.
    pub names: &'a [&'static str],
    /// What was measured at this step, `NaN` where a value is not measured at every step.
    pub values: &'a [f64],
}

/// Called after each step; returning `false` ends the run after a checkpoint.
pub type OnProgress<'a> = dyn FnMut(&Progress<'_>) -> bool + 'a;

/// Everything that the next step of a run reads.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Steps done.
    pub step: u64,
    /// The generator, where it stands.
    pub rng: Rng,
    /// The recipe as text: a run is resumed only with the one that it began with.
    pub recipe: String,
    /// Weights, moments and whatever else the trainer keeps, f32.
    pub tensors: HashMap<String, Tensor>,
}

/// Name of the checkpoint inside the output folder.
const FILE_NAME: &str = "checkpoint.safetensors";
/// Before the names of the tensors that measured best so far.
const BEST_PREFIX: &str = "best.";

impl Checkpoint {
    /// Where the checkpoint of the run that writes to `folder` lies.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(FILE_NAME)
    }

    /// Writes the checkpoint beside its place, then renames it, so that a kill leaves the old or the new one.
    ///
    /// # Errors
    /// Fails where `folder` cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        let mut names: Vec<&String> = self.tensors.keys().collect();
        names.sort();
        let values = names
            .iter()
            .map(|name| {
                let tensor = &self.tensors[*name];
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                Ok((name.as_str(), tensor.dims().to_vec(), bytes))
            })
            .collect::<Result<Vec<_>>>()?;
        let views = values
            .iter()
            .map(|(name, dims, bytes)| {
                let view = TensorView::new(Dtype::F32, dims.clone(), bytes);
                view.map(|view| (*name, view))
                    .map_err(|error| unusable(&path, error))
            })
            .collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([
            ("step".to_owned(), self.step.to_string()),
            ("seed".to_owned(), self.rng.seed().to_string()),
            ("rng".to_owned(), self.rng.position().to_string()),
            ("recipe".to_owned(), self.recipe.clone()),
        ]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|error| unusable(&path, error))?;
        write_whole(&path, &bytes)
    }

    /// The checkpoint in `folder`, or `None` where there is none.
    ///
    /// # Errors
    /// Fails where the file is damaged, or where it was begun with another recipe than `recipe`.
    pub fn load(folder: &Path, recipe: &str) -> Result<Option<Self>> {
        let path = Self::path(folder);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, error)),
        };
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| unusable(&path, error))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let field = |name: &str| {
            metadata
                .get(name)
                .ok_or_else(|| unusable(&path, format!("{name:?} is missing")))
        };
        let number = |name: &str| {
            field(name)?
                .parse::<u128>()
                .map_err(|error| unusable(&path, format!("{name:?}: {error}")))
        };
        if field("recipe")? != recipe {
            return Err(Error::Config(format!(
                "the checkpoint belongs to another recipe; remove it to start over: {path:?}"
            )));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|error| unusable(&path, error))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            let values: Vec<f32> = view
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect();
            let tensor = Tensor::from_vec(values, view.shape(), &Device::Cpu)?;
            tensors.insert(name, tensor);
        }
        Ok(Some(Self {
            step: number("step")? as u64,
            rng: Rng::resume(number("seed")? as u64, number("rng")?),
            recipe: recipe.to_owned(),
            tensors,
        }))
    }

    /// What [`best_tensors`] put into [`tensors`](Self::tensors), by the names before that.
    fn best(&self) -> BTreeMap<String, Tensor> {
        let best = self.tensors.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(BEST_PREFIX)?;
            Some((name.to_owned(), tensor.clone()))
        });
        best.collect()
    }

    /// Removes the checkpoint of a run that is done.
    ///
    /// # Errors
    /// Fails where the file is there and cannot be removed.
    pub fn remove(folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(path, error))
            }
            _ => Ok(()),
        }
    }
}

/// The tensors that measured best so far, by the names that they have in a [`Checkpoint`].
fn best_tensors(best: &BTreeMap<String, Tensor>) -> impl Iterator<Item = (String, Tensor)> {
    best.iter()
        .map(|(name, tensor)| (format!("{BEST_PREFIX}{name}"), tensor.clone()))
}

/// Variables with these values to start from, by name.
fn variables<C: FromIterator<(String, Var)>>(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<C> {
    let variable = |(name, tensor)| Ok((name, Var::from_tensor(&tensor)?));
    tensors.into_iter().map(variable).collect()
}

/// What a model or a part is built over, so that it learns with the variables.
fn over<'a>(vars: impl IntoIterator<Item = (&'a String, &'a Var)>) -> HashMap<String, Tensor> {
    vars.into_iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect()
}

/// Copies of the variables' values, by name.
fn copies<'a, C: FromIterator<(String, Tensor)>>(
    vars: impl IntoIterator<Item = (&'a String, &'a Var)>,
) -> Result<C> {
    vars.into_iter()
        .map(|(name, var)| Ok((name.clone(), var.as_tensor().detach().copy()?)))
        .collect()
}

fn unusable(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Config(format!("the checkpoint is unusable ({reason}): {path:?}"))
}

/// Linear warm-up over `warmup` steps, then half a cosine down to zero at `n_steps`.
pub fn cosine_schedule(step: u64, warmup: u64, n_steps: u64) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / n_steps.saturating_sub(warmup).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}

/// Which pictures each step sees: every epoch has an order of its own, which depends on the seed alone.
struct Batches {
    seed: u64,
    len: usize,
    batch: usize,
    /// Epoch of the order at hand, and the order.
    order: Option<(u64, Vec<usize>)>,
}

impl Batches {
    fn new(seed: u64, len: usize, batch: usize) -> Self {
        Self {
            seed,
            len,
            batch,
            order: None,
        }
    }

    /// Steps of an epoch.
    fn per_epoch(&self) -> u64 {
        self.len.div_ceil(self.batch) as u64
    }

    /// Indices of the pictures of a step; the last batch of an epoch may be smaller.
    fn at(&mut self, step: u64) -> Vec<usize> {
        let (epoch, batch_idx) = (step / self.per_epoch(), step % self.per_epoch());
        let (_, order) = match self.order.take() {
            Some(order) if order.0 == epoch => self.order.insert(order),
            _ => {
                let mut order: Vec<usize> = (0..self.len).collect();
                Rng::for_item(self.seed, epoch).shuffle(&mut order);
                self.order.insert((epoch, order))
            }
        };
        let start = batch_idx as usize * self.batch;
        order[start..(start + self.batch).min(self.len)].to_vec()
    }
}
