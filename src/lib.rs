//! Live explanations of Vision Transformers on video.
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod data;
pub mod error;
pub mod eval;
pub mod explain;
pub mod frame;
pub mod gates;
pub mod kernels;
pub mod media;
pub mod models;
pub mod overlay;
pub mod pipeline;
pub mod rng;
pub mod sidecar;
pub mod train;
pub mod vit;

pub use error::{Error, Result};

/// The README's example of the library is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
