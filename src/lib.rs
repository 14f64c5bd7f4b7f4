//! Live explanations of Vision Transformers on video.
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod data;
pub mod error;
pub mod frame;
pub mod media;
pub mod vit;

pub use error::{Error, Result};
