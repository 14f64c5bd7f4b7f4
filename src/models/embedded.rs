//! The models that are part of the program.
//!
//! Each is a folder under `models/`, compiled in file by file; `README.md` there says what they are.

use std::borrow::Cow;
use std::path::Path;

use super::folder::{Files, PREPROCESSOR};

/// One model, as its files.
pub(super) struct Embedded {
    pub(super) name: &'static str,
    config: &'static [u8],
    preprocessor: &'static [u8],
    weights: &'static [u8],
    /// Weights and card.
    gates: Option<(&'static [u8], &'static [u8])>,
    /// Weights and card.
    interpreter: Option<(&'static [u8], &'static [u8])>,
    familiarity: Option<&'static [u8]>,
}

/// The files of `models/NAME`, which may bring gates and an interpreter along.
#[cfg(feature = "embedded-models")]
macro_rules! embed {
    ($name:literal) => {
        Embedded {
            name: $name,
            config: embed!($name, "config.json"),
            preprocessor: embed!($name, "preprocessor_config.json"),
            weights: embed!($name, "model.safetensors"),
            gates: None,
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

/// The embedded models, the [default](super::DEFAULT) first; a static, for a constant would be there once for each crate
/// that it is inlined into.
#[cfg(feature = "embedded-models")]
pub(super) static MODELS: &[Embedded] = &[
    embed!("everyday" with gates and familiarity),
    embed!("cifar10" with gates and interpreter),
    embed!("red-patches" with gates and interpreter),
];

/// Without the feature `embedded-models` there are none.
#[cfg(not(feature = "embedded-models"))]
pub(super) static MODELS: &[Embedded] = &[];

impl Embedded {
    /// The files, under a path that says where they are.
    pub(super) fn files(&self) -> Files {
        let origin = Path::new("embedded").join(self.name);
        Files {
            additions: origin.clone(),
            origin,
            config: Cow::Borrowed(self.config),
            preprocessor: Cow::Borrowed(self.preprocessor),
            preprocessor_file: PREPROCESSOR,
            adapter: None,
            weights: Cow::Borrowed(self.weights),
            head: None,
            gates: self.gates.map(borrowed),
            backbone_gates: None,
            interpreter: self.interpreter.map(borrowed),
            familiarity: self.familiarity.map(Cow::Borrowed),
        }
    }
}

/// Weights and card, as files that need not be read.
fn borrowed(
    (weights, card): (&'static [u8], &'static [u8]),
) -> (Cow<'static, [u8]>, Cow<'static, [u8]>) {
    (Cow::Borrowed(weights), Cow::Borrowed(card))
}
