//! Explainers: each scores the patches of an image by how much they matter to the model.

pub mod attention;
pub mod diffmask;
pub mod rollout;

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::gates::Gates;
use crate::overlay::Range;
use crate::vit::Vit;

/// The class that is explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The class with the highest logit.
    #[default]
    Predicted,
    /// A class by index.
    Class(usize),
}

/// What an explainer found. The logits come along so that nobody runs the model twice.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// `[batch, patches]`, raw scores, higher is more important.
    pub attribution: Tensor,
    /// `[batch, classes]` of the unmasked images; `None` where the model has no head.
    pub logits: Option<Tensor>,
}

/// Scores the patches of an image by their importance.
///
/// An explainer does not change the model, and gives the same answer for the same image and target.
pub trait Explainer: Send {
    /// Name on the command line and in the sidecar: lower case, no spaces.
    fn name(&self) -> &'static str;

    /// Explains a batch.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`, normalized for `vit`
    ///
    /// # Errors
    /// Fails where `images` does not fit the model, or the target has no meaning for the method.
    fn explain(&self, vit: &Vit, images: &Tensor, target: Target) -> Result<Explanation>;
}

/// The built-in methods; [`Display`](fmt::Display) and [`FromStr`] use the names of the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Trained gates: [`diffmask::DiffMask`].
    #[default]
    DiffMask,
    /// Attention through all blocks: [`rollout::Rollout`].
    Rollout,
    /// Attention of the last block: [`attention::RawAttention`].
    RawAttention,
}

/// What a model brings along for the methods that need trained parts.
#[derive(Clone, Copy, Default)]
pub struct Parts<'a> {
    /// DiffMask gates for this model's weights.
    pub gates: Option<&'a Gates>,
}

impl Method {
    /// Every method, best known first.
    pub const ALL: [Self; 3] = [Self::DiffMask, Self::Rollout, Self::RawAttention];

    /// Name on the command line and in the sidecar.
    pub fn name(self) -> &'static str {
        match self {
            Self::DiffMask => "diffmask",
            Self::Rollout => "rollout",
            Self::RawAttention => "raw-attention",
        }
    }

    /// One line for a list of methods.
    pub fn summary(self) -> &'static str {
        match self {
            Self::DiffMask => "patches that the whole answer can be kept with, by trained gates",
            Self::Rollout => "attention followed through all blocks to the class token",
            Self::RawAttention => "attention of the class token in the last block",
        }
    }

    /// True where the method tells classes apart, so that a target has a meaning.
    pub fn explains_classes(self) -> bool {
        match self {
            Self::DiffMask | Self::Rollout | Self::RawAttention => false,
        }
    }

    /// True where the model must bring trained gates.
    pub fn needs_gates(self) -> bool {
        self == Self::DiffMask
    }

    /// How attributions of this method become colors: masks as they are, attention by its largest values.
    pub fn range(self) -> Range {
        match self {
            Self::DiffMask => Range::Unit,
            Self::Rollout | Self::RawAttention => Range::Percentile,
        }
    }

    /// The explainer.
    ///
    /// # Errors
    /// [`Error::Model`] where `parts` lacks what the method needs.
    pub fn build(self, parts: Parts<'_>) -> Result<Box<dyn Explainer>> {
        Ok(match self {
            Self::DiffMask => {
                let gates = parts.gates.ok_or_else(|| {
                    Error::Model(
                        "model has no gates, train them with `vitscope train diffmask` or choose another method"
                            .into(),
                    )
                })?;
                Box::new(diffmask::DiffMask::new(gates)?)
            }
            Self::Rollout => Box::new(rollout::Rollout::default()),
            Self::RawAttention => Box::new(attention::RawAttention),
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .or((name == "attention").then_some(Self::RawAttention))
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                Error::Config(format!("no such method, known are {known}: {name:?}"))
            })
    }
}

/// The error of methods that explain the whole answer when they are asked for one class.
fn refuse_class(method: &str, target: Target) -> Result<()> {
    match target {
        Target::Predicted => Ok(()),
        Target::Class(class) => Err(Error::Config(format!(
            "method {method:?} explains the whole answer, not one class, asked for class {class}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_name() {
        for method in Method::ALL {
            assert_eq!(method.to_string().parse::<Method>().ok(), Some(method));
        }
    }

    #[test]
    fn an_unknown_method_is_told_the_known_ones() {
        let message = "grad".parse::<Method>().err().map(|err| err.to_string());
        assert!(message.is_some_and(|message| message.contains("diffmask, rollout")));
    }

    #[test]
    fn diffmask_without_gates_is_refused() {
        assert!(Method::DiffMask.build(Parts::default()).is_err());
    }
}
