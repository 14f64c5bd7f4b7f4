//! IA-ViT: the attention of an interpreter that was trained to imitate the model.
//!
//! Paper: Qiang et al., "Interpretability-Aware Vision Transformer", arXiv:2309.08035. See [`crate::interpreter`] for
//! the interpreter.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | a | map `attention` | mean over queries of the interpreter's attention |
//! | rᶜ | map `class` | contribution of each patch to the interpreter's logit of c, signed |
//!
//! Cost: 1 forward and the layer of the interpreter.
//!
//! **Deviations**: the map of a class is an addition; the paper uses the attention, which is the same for every class.
//! The method explains the interpreter, not the model; the interpreter's card states how often the two agree.
//!
//! Requires an interpreter trained for exactly this model's weights.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Listed, Pace};
use super::{Explainer, Needs, Parts, Pass};
use crate::error::{Error, Result};
use crate::interpreter::{Interpreter, Pooling};
use crate::vit::{Site, Vit};

/// The interpreter's map to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Map {
    /// Attention, independent of the class.
    #[default]
    Attention,
    /// Contribution of each patch to a class.
    Class,
}

/// Options of [`IaVit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IaVitOptions {
    /// Map to show: `attention`, or `class` for the contribution of each patch to a class.
    pub map: Map,
}

impl Listed for IaVitOptions {
    const ENTRY: Entry = Entry {
        name: "ia-vit",
        summary: "attention of a student layer trained to imitate the model",
        paper: "IA-ViT, arXiv:2309.08035",
        forwards: "1",
        backwards: "0",
        pace: Pace::A,
    };
    const TRAINED_PART: Option<&'static str> = Some("interpreter");

    fn build(self, parts: Parts<'_>) -> Result<Box<dyn Explainer>> {
        let interpreter = parts.interpreter.ok_or_else(|| {
            Error::Model(
                "model has no interpreter; train one with `vitscope train ia-vit` or choose another method".into(),
            )
        })?;
        Ok(Box::new(IaVit::new(interpreter, self)))
    }
}

/// Explains by an interpreter.
pub struct IaVit {
    interpreter: Interpreter,
    map: Map,
}

impl IaVit {
    /// Creates an explainer from `interpreter`.
    pub fn new(interpreter: &Interpreter, options: IaVitOptions) -> Self {
        Self {
            interpreter: interpreter.clone(),
            map: options.map,
        }
    }
}

impl Explainer for IaVit {
    fn name(&self) -> &'static str {
        IaVitOptions::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        self.map == Map::Class
    }

    fn needs(&self, _vit: &Vit) -> Needs {
        Needs::values([Site::Tokens])
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let tokens = pass.value(Site::Tokens)?;
        let patches = pass.patches_of(&tokens, 1)?.contiguous()?; // [batch, patches, dim]
        if self.map == Map::Attention {
            let attention = self.interpreter.attention(&patches)?;
            return Ok(Interpreter::attribution(&attention)?);
        }
        let (known, n_patches) = (self.interpreter.shape(), patches.dim(1)?);
        if known.pooling == Pooling::Position && n_patches != known.patches {
            return Err(Error::Model(format!(
                "interpreter has positions for {} patches, but the image has {n_patches} patches",
                known.patches
            )));
        }
        let reading = self.interpreter.read(&patches)?;
        Ok(self.interpreter.contributions(&reading, pass.weights()?)?)
    }
}
