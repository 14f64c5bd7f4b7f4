//! Families of Vision Transformers. Each file describes the differences from the plain ViT; [`families!`] lists the
//! families.

mod clip;
mod deit;
mod dinov2;
mod dinov2_with_registers;
mod vit;

use serde_json::{Map, Value};

use super::config::{Head, VitConfig};
use super::fields::Fields;
use crate::{Error, Result};

/// A tensor's name, or its prefix before `.weight` and `.bias`, in checkpoints of a family and in [`super::names`].
pub(super) type Naming = (&'static str, &'static str);

/// A JSON object.
type Object = Map<String, Value>;

/// Properties of a family.
pub(super) struct Architecture {
    /// `model_type` in `config.json`: first the one that is written, then others that contain such a model.
    pub(super) model_types: &'static [&'static str],
    /// Prefix of class names in `transformers`.
    pub(super) class_prefix: &'static str,
    /// Prefix of the base model's tensors in a model with a head.
    pub(super) tensor_prefix: &'static str,
    /// Tensors outside blocks.
    pub(super) names: &'static [Naming],
    /// Tensors of a block, after its number.
    pub(super) names_in_block: &'static [Naming],
    /// Prefixes of tensors that classification does not use.
    pub(super) unused: &'static [&'static str],
    /// Default image processor, if a folder names none.
    pub(super) image_processor: &'static str,
    /// Input of the classifier, unless there is also one of the distillation token.
    pub(super) reads: Head,
    /// Default epsilon of layer norms, added to the variance.
    pub(super) layer_norm_eps: f64,
    /// Whether each branch of a block is scaled by a learned vector.
    pub(super) layer_scale: bool,
    /// Whether a distillation token follows the class token.
    pub(super) distilled: bool,
    /// Whether the patch embedding has a bias.
    pub(super) patch_bias: bool,
    /// Whether there is a norm before the first block.
    pub(super) pre_norm: bool,
    /// Whether position embeddings are antialiased when resized for another input size.
    pub(super) antialiased_positions: bool,
    /// Whether models of this family can be saved.
    pub(super) saved: bool,
    /// Extracts the fields of the image encoder from those of the whole file.
    pub(super) fields: fn(Object) -> Result<Object>,
    /// Computes the width inside the MLP from the fields and the width of a token.
    pub(super) mlp_width: fn(Fields, usize) -> Result<usize>,
    /// Reads fields that are specific to this family.
    pub(super) read: fn(Fields, &mut VitConfig) -> Result<()>,
    /// Checks constraints that are specific to this family.
    pub(super) check: fn(&VitConfig) -> Result<()>,
    /// Adds or changes fields that differ from those of a ViT.
    pub(super) write: fn(&VitConfig, &mut Value),
}

macro_rules! families {
    ($($(#[$docs:meta])* $family:ident = $file:ident,)*) => {
        /// The published architecture that a checkpoint follows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Family {
            $($(#[$docs])* $family,)*
        }

        impl Family {
            pub(super) const ALL: &[Self] = &[$(Self::$family,)*];

            pub(super) fn architecture(self) -> &'static Architecture {
                match self {
                    $(Self::$family => &$file::ARCHITECTURE,)*
                }
            }
        }
    };
}

families! {
    /// ViT, plain DeiT and the first DINO.
    Vit = vit,
    /// DeiT with a distillation token after the class token.
    Deit = deit,
    /// DINOv2: layer scale in each block.
    Dinov2 = dinov2,
    /// DINOv2 with register tokens between the class token and the patches.
    Dinov2WithRegisters = dinov2_with_registers,
    /// The image encoder of CLIP (Radford et al., arXiv:2103.00020): a norm before the first block.
    Clip = clip,
}

impl Family {
    /// The family's `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        self.architecture().model_types[0]
    }

    /// Checks that models of the family can be saved, and thus trained.
    ///
    /// # Errors
    /// [`Error::Model`] if they can only be read.
    pub fn check_saved(self) -> Result<()> {
        match self.architecture().saved {
            true => Ok(()),
            false => Err(Error::Model(format!(
                "models of type {:?} can be read but not saved, so they cannot be trained; train a linear head instead",
                self.model_type()
            ))),
        }
    }

    /// Default image processor, if a folder names none: the name in `transformers` without `ImageProcessor`.
    pub(crate) fn image_processor(self) -> &'static str {
        self.architecture().image_processor
    }

    /// Determines the family from the `fields` of a file.
    pub(super) fn of(fields: Fields) -> Result<Self> {
        let name = fields.required("model_type")?;
        let holds = |types: &[&str]| types.iter().any(|known| name.as_str() == Some(known));
        let mut families = Self::ALL.iter();
        let found = families.find(|family| holds(family.architecture().model_types));
        found.copied().ok_or_else(|| {
            let types = Self::ALL
                .iter()
                .flat_map(|family| family.architecture().model_types);
            let known: Vec<&str> = types.copied().collect();
            Error::Model(format!(
                "model_type is {name}, expected one of {}",
                known.join(", ")
            ))
        })
    }
}
