//! Families of Vision Transformers: what one differs in from the plain ViT is a file here, and a line of [`families!`].

mod clip;
mod deit;
mod dinov2;
mod dinov2_with_registers;
mod vit;

use serde_json::{Map, Value};

use super::config::{Head, VitConfig};
use super::fields::Fields;
use crate::{Error, Result};

/// A tensor's name, or what it begins with before `.weight` and `.bias`, in checkpoints of a family, and in [`super::names`].
pub(super) type Naming = (&'static str, &'static str);

/// A JSON object.
type Object = Map<String, Value>;

/// What a family's file says of it.
pub(super) struct Architecture {
    /// `model_type` in `config.json`: first the one that is written, then those of files that hold such a model.
    pub(super) model_types: &'static [&'static str],
    /// How `transformers` begins the names of its classes.
    pub(super) class_prefix: &'static str,
    /// In front of the base model's tensors inside a model with a head.
    pub(super) tensor_prefix: &'static str,
    /// Tensors outside blocks.
    pub(super) names: &'static [Naming],
    /// Tensors of a block, behind its number.
    pub(super) names_in_block: &'static [Naming],
    /// How names of tensors begin that do not take part in classifying.
    pub(super) unused: &'static [&'static str],
    /// The image processor that prepares its pictures where a folder names none.
    pub(super) image_processor: &'static str,
    /// What a classifier reads, unless there is one of the distillation token, too.
    pub(super) reads: Head,
    /// Added to the variance in layer norms where the file does not say.
    pub(super) layer_norm_eps: f64,
    /// Whether each branch of a block is scaled by a learned vector.
    pub(super) layer_scale: bool,
    /// Whether a distillation token follows the class token.
    pub(super) distilled: bool,
    /// Whether the patch embedding has a bias.
    pub(super) patch_bias: bool,
    /// Whether a norm stands before the first block.
    pub(super) pre_norm: bool,
    /// Whether position embeddings are antialiased when they are resized for another input size.
    pub(super) antialiased_positions: bool,
    /// Whether models of it can be written.
    pub(super) saved: bool,
    /// The fields of the image encoder, from those of the whole file.
    pub(super) fields: fn(Object) -> Result<Object>,
    /// Width inside the MLP, from the fields and the width of a token.
    pub(super) mlp_width: fn(Fields, usize) -> Result<usize>,
    /// Reads what no other family's file says.
    pub(super) read: fn(Fields, &mut VitConfig) -> Result<()>,
    /// Checks what only this family asks for.
    pub(super) check: fn(&VitConfig) -> Result<()>,
    /// Writes what the file of a ViT does not say, or says otherwise.
    pub(super) write: fn(&VitConfig, &mut Object),
}

macro_rules! families {
    ($($(#[$docs:meta])* $family:ident = $file:ident,)*) => {
        /// Which published architecture a checkpoint follows.
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
    /// DeiT with a distillation token behind the class token.
    Deit = deit,
    /// DINOv2: layer scale in each block.
    Dinov2 = dinov2,
    /// DINOv2 with register tokens between the class token and the patches.
    Dinov2WithRegisters = dinov2_with_registers,
    /// The image half of CLIP (Radford et al., arXiv:2103.00020): a norm before the first block.
    Clip = clip,
}

impl Family {
    /// The family's `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        self.architecture().model_types[0]
    }

    /// Whether models of the family can be written, and so trained.
    ///
    /// # Errors
    /// [`Error::Model`] where they can only be read.
    pub fn check_saved(self) -> Result<()> {
        match self.architecture().saved {
            true => Ok(()),
            false => Err(Error::Model(format!(
                "models of type {:?} can be read but not saved, so they cannot be trained; train a linear head instead",
                self.model_type()
            ))),
        }
    }

    /// The image processor that prepares its pictures where a folder names none: `transformers`' name up to `ImageProcessor`.
    pub(crate) fn image_processor(self) -> &'static str {
        self.architecture().image_processor
    }

    /// The family whose file `fields` are.
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
