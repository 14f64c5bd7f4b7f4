//! Training: shared parts of all trainers, such as progress, checkpoints and the record of a run.
//!
//! A run is a function of its recipe, its data and its seed. A checkpoint holds everything that the next step reads. A
//! run that is killed and resumed is therefore bit-identical to an uninterrupted one, as long as the number of threads
//! is the same.

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

/// Progress reported after each step.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// Number of completed steps.
    pub step: u64,
    /// Total number of steps of the run.
    pub n_steps: u64,
    /// Names of the values, the same at every step.
    pub names: &'a [&'static str],
    /// Measurements at this step; `NaN` for values that are not measured at every step.
    pub values: &'a [f64],
}

/// Called after each step; returning `false` ends the run after a checkpoint.
pub type OnProgress<'a> = dyn FnMut(&Progress<'_>) -> bool + 'a;

/// Everything that the next step of a run reads.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Number of completed steps.
    pub step: u64,
    /// Current state of the generator.
    pub rng: Rng,
    /// Recipe as text: a run can be resumed only with the recipe that it was started with.
    pub recipe: String,
    /// Weights, moments and other state of the trainer, f32.
    pub tensors: HashMap<String, Tensor>,
}

/// Name of the checkpoint inside the output folder.
const FILE_NAME: &str = "checkpoint.safetensors";
/// Prefix of the names of the best tensors so far.
const BEST_PREFIX: &str = "best.";

impl Checkpoint {
    /// Returns the path of the checkpoint of the run that writes to `folder`.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(FILE_NAME)
    }

    /// Writes the checkpoint to a file next to it, then renames that file, so that a kill leaves either the old or the
    /// new one.
    ///
    /// # Errors
    /// Fails if `folder` cannot be written.
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

    /// Loads the checkpoint in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// Fails if the file is damaged, or if it belongs to a run with another recipe than `recipe`.
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

    /// Returns the tensors that [`best_tensors`] added to [`tensors`](Self::tensors), under their original names.
    fn best(&self) -> BTreeMap<String, Tensor> {
        let best = self.tensors.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(BEST_PREFIX)?;
            Some((name.to_owned(), tensor.clone()))
        });
        best.collect()
    }

    /// Removes the checkpoint of a finished run.
    ///
    /// # Errors
    /// Fails if the file exists and cannot be removed.
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

/// Returns the best tensors so far, under their names in a [`Checkpoint`].
fn best_tensors(best: &BTreeMap<String, Tensor>) -> impl Iterator<Item = (String, Tensor)> {
    best.iter()
        .map(|(name, tensor)| (format!("{BEST_PREFIX}{name}"), tensor.clone()))
}

/// Creates variables with these initial values on `device`, by name.
fn variables<C: FromIterator<(String, Var)>>(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    device: &Device,
) -> Result<C> {
    let variable = |(name, tensor): (String, Tensor)| {
        Ok((name, Var::from_tensor(&tensor.to_device(device)?)?))
    };
    tensors.into_iter().map(variable).collect()
}

/// Returns tensors that share the variables, so that a model built on them learns.
fn over<'a>(vars: impl IntoIterator<Item = (&'a String, &'a Var)>) -> HashMap<String, Tensor> {
    vars.into_iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect()
}

/// Copies the values of the variables, by name.
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

/// Linear warmup over `warmup` steps, then half a cosine down to zero at `n_steps`.
pub fn cosine_schedule(step: u64, warmup: u64, n_steps: u64) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / n_steps.saturating_sub(warmup).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}

/// Image indices of each step: every epoch has its own order, which depends only on the seed.
struct Batches {
    seed: u64,
    len: usize,
    batch: usize,
    /// Epoch of the current order, and the order.
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

    /// Returns the number of steps per epoch.
    fn per_epoch(&self) -> u64 {
        self.len.div_ceil(self.batch) as u64
    }

    /// Returns the image indices of a step; the last batch of an epoch may be smaller.
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
