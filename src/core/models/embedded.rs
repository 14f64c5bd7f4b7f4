//! The models embedded in the program.
//!
//! Each model is a folder under `models/`, whose files are compiled in. `models/README.md` describes them.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::folder::{Files, PREPROCESSOR};

/// An embedded model's files.
pub(super) struct Embedded {
    pub(super) name: &'static str,
    weights: Weights,
    preprocessor: &'static [u8],
    parts: Parts,
}

/// A model's own weights, or its head on a backbone.
#[cfg_attr(
    not(feature = "embedded-models"),
    expect(dead_code, reason = "without embedded models, none is made")
)]
enum Weights {
    Own {
        config: &'static [u8],
        weights: &'static [u8],
    },
    /// A head on another embedded model.
    On {
        backbone: &'static Embedded,
        head: &'static [u8],
    },
}

/// Parts trained for a model.
struct Parts {
    /// Weights and card.
    gates: Option<(&'static [u8], &'static [u8])>,
    /// Weights and card.
    interpreter: Option<(&'static [u8], &'static [u8])>,
    familiarity: Option<&'static [u8]>,
}

#[cfg(feature = "embedded-models")]
impl Parts {
    const NONE: Self = Self {
        gates: None,
        interpreter: None,
        familiarity: None,
    };
}

/// Embeds the files of `models/NAME`: a model, or a head on a model, with the parts trained for it.
#[cfg(feature = "embedded-models")]
macro_rules! embed {
    ($name:literal with $($part:ident),+) => {
        embed!($name, $($part),+; Weights::Own {
            config: embed!($name, "config.json"),
            weights: embed!($name, "model.safetensors"),
        })
    };
    ($name:literal on $backbone:ident with $($part:ident),+) => {
        embed!($name, $($part),+; Weights::On {
            backbone: &$backbone,
            head: embed!($name, "head.safetensors"),
        })
    };
    ($name:literal, $($part:ident),+; $weights:expr) => {
        Embedded {
            name: $name,
            weights: $weights,
            preprocessor: embed!($name, "preprocessor_config.json"),
            parts: Parts {
                $($part: Some(embed!($name, $part)),)+
                ..Parts::NONE
            },
        }
    };
    ($name:literal, gates) => {
        (embed!($name, "gates.safetensors"), embed!($name, "gates.json"))
    };
    ($name:literal, interpreter) => {
        (embed!($name, "interpreter.safetensors"), embed!($name, "interpreter.json"))
    };
    ($name:literal, familiarity) => {
        embed!($name, "familiarity.safetensors")
    };
    ($name:literal, $file:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/",
            $name,
            "/",
            $file
        ))
    };
}

#[cfg(feature = "embedded-models")]
#[expect(
    clippy::needless_update,
    reason = "it has all parts, other models do not"
)]
static EVERYDAY: Embedded = embed!("everyday" with gates, interpreter, familiarity);
#[cfg(feature = "embedded-models")]
static CIFAR10: Embedded = embed!("cifar10" with gates, interpreter);
#[cfg(feature = "embedded-models")]
static CIFAR10_224: Embedded = embed!("cifar10-224" on EVERYDAY with gates);
#[cfg(feature = "embedded-models")]
static RED_PATCHES: Embedded = embed!("red-patches" with gates, interpreter);

/// The embedded models, the [default](super::DEFAULT) first. They are statics because constants would be duplicated in
/// each crate that inlines them.
#[cfg(feature = "embedded-models")]
pub(super) static MODELS: &[&Embedded] = &[&EVERYDAY, &CIFAR10, &CIFAR10_224, &RED_PATCHES];

/// Without the feature `embedded-models`, there are none.
#[cfg(not(feature = "embedded-models"))]
pub(super) static MODELS: &[&Embedded] = &[];

impl Embedded {
    /// The model's files, with paths that identify their location in messages.
    pub(super) fn files(&self) -> Files {
        let (origin, config, weights) = self.config_and_weights();
        let head = match self.weights {
            Weights::Own { .. } => None,
            Weights::On { head, .. } => Some(head),
        };
        Files {
            origin,
            config: Cow::Borrowed(config),
            preprocessor: Cow::Borrowed(self.preprocessor),
            preprocessor_file: PREPROCESSOR,
            preprocessor_folder: self.folder(),
            adapter: None,
            adapter_folder: PathBuf::new(),
            weights: Cow::Borrowed(weights),
            additions: self.folder(),
            head: head.map(Cow::Borrowed),
            gates: self.parts.gates.map(borrowed),
            backbone_gates: None,
            interpreter: self.parts.interpreter.map(borrowed),
            familiarity: self.parts.familiarity.map(Cow::Borrowed),
        }
    }

    /// The model's own configuration and weights, or those of its backbone, and their folder.
    fn config_and_weights(&self) -> (PathBuf, &'static [u8], &'static [u8]) {
        match self.weights {
            Weights::Own { config, weights } => (self.folder(), config, weights),
            Weights::On { backbone, .. } => backbone.config_and_weights(),
        }
    }

    fn folder(&self) -> PathBuf {
        Path::new("embedded").join(self.name)
    }
}

/// Weights and card, as borrowed bytes.
fn borrowed(
    (weights, card): (&'static [u8], &'static [u8]),
) -> (Cow<'static, [u8]>, Cow<'static, [u8]>) {
    (Cow::Borrowed(weights), Cow::Borrowed(card))
}
