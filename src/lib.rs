//! Live explanations of Vision Transformers on video.
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod error;
pub mod frame;
pub mod media;
pub mod overlay;

pub use error::{Error, Result};
