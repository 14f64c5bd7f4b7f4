//! The numbers that a model computes with.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The numbers that the blocks of a model compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// 32-bit floating point.
    #[default]
    F32,
    /// bfloat16, which is f32 rounded to 8 bits of precision, in the products of all blocks; f32 in everything else,
    /// including sums and gradients.
    Bf16,
    /// 8-bit integers in the linear maps of all blocks, with a scale per output feature of the weights and per token of
    /// the activations; bfloat16 in the other products, where the processor has instructions for it; 32-bit floating point
    /// in everything else, including sums and gradients.
    Int8,
}

impl Arithmetic {
    /// All kinds of numbers.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// The name of the numbers.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arithmetic {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|numbers| numbers.name() == text);
        found.ok_or_else(|| Error::Config(format!("expected f32, bf16 or int8, got {text:?}")))
    }
}
