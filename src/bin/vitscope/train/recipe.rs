//! Recipe files and the command line's changes to them.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use vitscope::train::diffmask::DiffMaskRecipe;
use vitscope::train::order::OrderRecipe;
use vitscope::train::shapley::ShapleyRecipe;
use vitscope_core::changes;

use crate::toml_file;

/// A recipe file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RecipeFile {
    /// As for `--data`; a relative folder is resolved from the working directory.
    pub(super) data: Option<String>,
    /// Edge of the model's image in pixels, for pictures of a folder.
    pub(super) image_size: Option<usize>,
    pub(super) classifier: toml::Table,
    pub(super) probe: toml::Table,
    pub(super) diffmask: toml::Table,
    pub(super) ia_vit: toml::Table,
    /// The runs of `vitscope train FILE.toml`.
    pub(super) run: Vec<Run>,
}

/// One row of an ablation, for each of its seeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Run {
    /// Its folder and its name in the table.
    pub(super) name: String,
    /// What is trained.
    pub(super) train: Trained,
    /// The frozen model of gates, or of an interpreter that is not trained jointly.
    pub(super) model: Option<String>,
    /// The model that a classifier starts from, alone or with its interpreter.
    pub(super) init: Option<String>,
    /// One run per seed.
    #[serde(default = "one_seed")]
    pub(super) seeds: Vec<u64>,
    /// Changes to the tables of the file, as for `--set`.
    #[serde(default)]
    pub(super) set: toml::Table,
}

/// What a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Trained {
    Classifier,
    IaVit,
    Diffmask,
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

/// Edge of the model's image in pixels, if neither recipe nor data specify one.
pub(super) const DEFAULT_IMAGE_PX: usize = 64;

/// Name of IA-ViT's table in a recipe.
pub(super) const IA_VIT: &str = "ia-vit";

/// Reads a recipe file; without one, all values are defaults.
pub(super) fn read(path: Option<&Path>) -> anyhow::Result<RecipeFile> {
    let Some(path) = path else {
        return Ok(RecipeFile::default());
    };
    toml_file::read(path, "recipe")
}

/// Returns the changes made by `--set`.
pub(super) fn changed(set: &[String]) -> anyhow::Result<toml::Table> {
    let mut table = toml::Table::new();
    for change in set {
        for (key, value) in changes::parse(change).context("--set")? {
            match (table.get_mut(&key), value) {
                (Some(toml::Value::Table(known)), toml::Value::Table(more)) => known.extend(more),
                (_, value) => _ = table.insert(key, value),
            }
        }
    }
    Ok(table)
}

/// The recipe for training gates, by objective.
pub(super) enum GateRecipe {
    Published(DiffMaskRecipe),
    Shapley(ShapleyRecipe),
    Order(OrderRecipe),
}

impl GateRecipe {
    pub(super) fn seed(&self) -> u64 {
        match self {
            Self::Published(recipe) => recipe.seed,
            Self::Shapley(recipe) => recipe.seed,
            Self::Order(recipe) => recipe.seed,
        }
    }
}

/// Returns the gates table of a recipe file with the command line's changes; its `objective` determines the valid
/// options.
pub(super) fn gate_recipe(
    table: &toml::Table,
    changes: toml::Table,
    seed: Option<u64>,
    checkpoint: Option<u64>,
) -> anyhow::Result<GateRecipe> {
    const NAME: &str = "diffmask";
    let objective = changes.get("objective").or_else(|| table.get("objective"));
    Ok(match objective.and_then(toml::Value::as_str) {
        Some("shapley") => GateRecipe::Shapley(recipe(table, changes, seed, checkpoint, NAME)?),
        Some("order") => GateRecipe::Order(recipe(table, changes, seed, checkpoint, NAME)?),
        _ => GateRecipe::Published(recipe(table, changes, seed, checkpoint, NAME)?),
    })
}

/// Returns a table of a recipe file with the command line's changes.
pub(super) fn recipe<T: for<'de> Deserialize<'de>>(
    table: &toml::Table,
    changes: toml::Table,
    seed: Option<u64>,
    checkpoint: Option<u64>,
    name: &str,
) -> anyhow::Result<T> {
    let mut table = table.clone();
    table.extend(changes);
    let numbers = [("seed", seed), ("checkpoint-steps", checkpoint)];
    for (key, value) in numbers {
        if let Some(value) = value {
            let value = i64::try_from(value).with_context(|| format!("{key} is too large"))?;
            table.insert(key.into(), value.into());
        }
    }
    toml::Value::Table(table)
        .try_into()
        .map_err(|err: toml::de::Error| {
            // The error's second line names the key.
            anyhow!("recipe table {name:?}: {}", changes::in_words(&err))
        })
}
