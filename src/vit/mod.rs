//! The Vision Transformer: tensors in, tensors out.

pub mod config;
pub mod names;

pub use config::{Activation, Family, Head, VitConfig};
