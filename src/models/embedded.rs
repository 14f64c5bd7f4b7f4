//! The models that are part of the program.
//!
//! Each is a folder under `models/`, compiled in file by file; `README.md` there says what they are.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::folder::{Files, PREPROCESSOR};

/// One model, as its files.
pub(super) struct Embedded {
    pub(super) name: &'static str,
    weights: Weights,
    preprocessor: &'static [u8],
    head: Option<&'static [u8]>,
    /// Weights and card.
    gates: Option<(&'static [u8], &'static [u8])>,
    /// Weights and card.
    interpreter: Option<(&'static [u8], &'static [u8])>,
    familiarity: Option<&'static [u8]>,
}

/// What a model consists of.
#[cfg_attr(
    not(feature = "embedded-models"),
    expect(dead_code, reason = "without embedded models, none is made")
)]
enum Weights {
    Own {
        config: &'static [u8],
        weights: &'static [u8],
    },
    /// A head on another of the embedded models.
    Of(&'static Embedded),
}

/// The files of `models/NAME`, which may bring gates and an interpreter along.
#[cfg(feature = "embedded-models")]
macro_rules! embed {
    ($name:literal) => {
        Embedded {
            name: $name,
            weights: Weights::Own {
                config: embed!($name, "config.json"),
                weights: embed!($name, "model.safetensors"),
            },
            preprocessor: embed!($name, "preprocessor_config.json"),
            head: None,
            gates: None,
            interpreter: None,
            familiarity: None,
        }
    };
    ($name:literal on $backbone:ident with gates) => {
        Embedded {
            name: $name,
            weights: Weights::Of(&$backbone),
            preprocessor: embed!($name, "preprocessor_config.json"),
            head: Some(embed!($name, "head.safetensors")),
            gates: Some((
                embed!($name, "gates.safetensors"),
                embed!($name, "gates.json"),
            )),
            interpreter: None,
            familiarity: None,
        }
    };
    ($name:literal with gates and familiarity) => {
        Embedded {
            familiarity: Some(embed!($name, "familiarity.safetensors")),
            ..embed!($name with gates)
        }
    };
    ($name:literal with gates and interpreter) => {
        Embedded {
            interpreter: Some((
                embed!($name, "interpreter.safetensors"),
                embed!($name, "interpreter.json"),
            )),
            ..embed!($name with gates)
        }
    };
    ($name:literal with gates) => {
        Embedded {
            gates: Some((
                embed!($name, "gates.safetensors"),
                embed!($name, "gates.json"),
            )),
            ..embed!($name)
        }
    };
    ($name:literal, $file:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/models/",
            $name,
            "/",
            $file
        ))
    };
}

#[cfg(feature = "embedded-models")]
static EVERYDAY: Embedded = embed!("everyday" with gates and familiarity);
#[cfg(feature = "embedded-models")]
static CIFAR10: Embedded = embed!("cifar10" with gates and interpreter);
#[cfg(feature = "embedded-models")]
static CIFAR10_224: Embedded = embed!("cifar10-224" on EVERYDAY with gates);
#[cfg(feature = "embedded-models")]
static RED_PATCHES: Embedded = embed!("red-patches" with gates and interpreter);

/// The embedded models, the [default](super::DEFAULT) first; statics, for constants would be there once for each crate
/// that they are inlined into.
#[cfg(feature = "embedded-models")]
pub(super) static MODELS: &[&Embedded] = &[&EVERYDAY, &CIFAR10, &CIFAR10_224, &RED_PATCHES];

/// Without the feature `embedded-models` there are none.
#[cfg(not(feature = "embedded-models"))]
pub(super) static MODELS: &[&Embedded] = &[];

impl Embedded {
    /// The files, under paths that say where they are.
    pub(super) fn files(&self) -> Files {
        let (origin, config, weights) = self.config_and_weights();
        Files {
            origin,
            config: Cow::Borrowed(config),
            preprocessor: Cow::Borrowed(self.preprocessor),
            preprocessor_file: PREPROCESSOR,
            preprocessor_folder: self.folder(),
            adapter: None,
            weights: Cow::Borrowed(weights),
            additions: self.folder(),
            head: self.head.map(Cow::Borrowed),
            gates: self.gates.map(borrowed),
            backbone_gates: None,
            interpreter: self.interpreter.map(borrowed),
            familiarity: self.familiarity.map(Cow::Borrowed),
        }
    }

    /// Its own, or those of what it stands on, and the folder that they are in.
    fn config_and_weights(&self) -> (PathBuf, &'static [u8], &'static [u8]) {
        match self.weights {
            Weights::Own { config, weights } => (self.folder(), config, weights),
            Weights::Of(backbone) => backbone.config_and_weights(),
        }
    }

    fn folder(&self) -> PathBuf {
        Path::new("embedded").join(self.name)
    }
}

/// Weights and card, as files that need not be read.
fn borrowed(
    (weights, card): (&'static [u8], &'static [u8]),
) -> (Cow<'static, [u8]>, Cow<'static, [u8]>) {
    (Cow::Borrowed(weights), Cow::Borrowed(card))
}
