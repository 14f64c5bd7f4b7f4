//! Interpreters on disk: `interpreter.safetensors` and `interpreter.json`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Interpreter, InterpreterShape};
use crate::companion::{self, Card};
use crate::error::{Error, Result};
use crate::vit::VitConfig;

/// Metadata of an interpreter, stored in `interpreter.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterpreterCard {
    /// Hash of the weights that the interpreter was trained for, in hexadecimal.
    pub base_sha256: String,
    /// The interpreter's shape.
    pub shape: InterpreterShape,
    /// Seed of the training.
    pub seed: u64,
    /// All training options, by their names on the command line.
    pub recipe: BTreeMap<String, serde_json::Value>,
    /// Share of test pictures for which interpreter and model predict the same class.
    pub agreement: f64,
    /// KL(model ‖ interpreter) in nats, mean over test pictures.
    pub kl: f64,
}

impl Card for InterpreterCard {
    const NAME: &'static str = "interpreter";

    fn base_sha256(&self) -> &str {
        &self.base_sha256
    }
}

impl Interpreter {
    /// Reads an interpreter from the bytes of `interpreter.safetensors` and `interpreter.json`, for a model whose
    /// weights hash to `base_sha256`.
    ///
    /// # Errors
    /// [`Error::Model`] if either is damaged, or if the interpreter belongs to another model.
    pub fn from_bytes(
        weights: &[u8],
        card: &[u8],
        config: &VitConfig,
        base_sha256: &str,
        device: &Device,
    ) -> Result<(Self, InterpreterCard)> {
        let (tensors, card): (_, InterpreterCard) =
            companion::from_bytes(weights, card, base_sha256, device)?;
        let found = card.shape;
        let needed = InterpreterShape {
            pooling: found.pooling,
            unscaled: found.unscaled,
            // The number of patches depends on the picture; classifiers that read by position check it then.
            ..InterpreterShape::new(config, found.patches)
        };
        if found != needed {
            return Err(Error::Model(format!(
                "interpreter is for {} features and {} classes, but the model has {} features and {} classes",
                found.dim, found.classes, needed.dim, needed.classes
            )));
        }
        Ok((Self::load(card.shape, &tensors)?, card))
    }

    /// Writes `interpreter.safetensors` and `interpreter.json` into a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written.
    pub fn save(
        tensors: &BTreeMap<String, Tensor>,
        card: &InterpreterCard,
        folder: &Path,
    ) -> Result<()> {
        companion::save(tensors, card, folder)
    }
}
