//! The models that are part of the program.
//!
//! Each is a folder under `models/`, compiled in file by file; `README.md` there says what they are.

use std::borrow::Cow;
use std::path::Path;

use super::folder::Files;

/// One model, as its files.
pub(super) struct Embedded {
    pub(super) name: &'static str,
    config: &'static [u8],
    preprocessor: &'static [u8],
    weights: &'static [u8],
    gates: &'static [u8],
    gate_card: &'static [u8],
    interpreter: &'static [u8],
    interpreter_card: &'static [u8],
}

/// The files of `models/NAME`.
#[cfg(feature = "embedded-models")]
macro_rules! embed {
    ($name:literal) => {
        Embedded {
            name: $name,
            config: embed!($name, "config.json"),
            preprocessor: embed!($name, "preprocessor_config.json"),
            weights: embed!($name, "model.safetensors"),
            gates: embed!($name, "gates.safetensors"),
            gate_card: embed!($name, "gates.json"),
            interpreter: embed!($name, "interpreter.safetensors"),
            interpreter_card: embed!($name, "interpreter.json"),
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

/// The embedded models, the default first.
#[cfg(feature = "embedded-models")]
pub(super) const MODELS: &[Embedded] = &[embed!("cifar10"), embed!("red-patches")];

/// Without the feature `embedded-models` there are none.
#[cfg(not(feature = "embedded-models"))]
pub(super) const MODELS: &[Embedded] = &[];

impl Embedded {
    /// The files, under a path that says where they are.
    pub(super) fn files(&self) -> Files {
        let origin = Path::new("embedded").join(self.name);
        Files {
            additions: origin.clone(),
            origin,
            config: Cow::Borrowed(self.config),
            preprocessor: Cow::Borrowed(self.preprocessor),
            weights: Cow::Borrowed(self.weights),
            head: None,
            gates: Some((Cow::Borrowed(self.gates), Cow::Borrowed(self.gate_card))),
            backbone_gates: None,
            interpreter: Some((
                Cow::Borrowed(self.interpreter),
                Cow::Borrowed(self.interpreter_card),
            )),
        }
    }
}
