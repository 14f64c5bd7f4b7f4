//! Vision Transformers with inspectable internals, and the methods that explain them.
//!
//! A module imports only from the layers below its own.
//!
//! | layer | modules |
//! |---|---|
//! | 4 | [`request`]: requests, independent of the front end |
//! | 3 | [`models`]: model folders |
//! | 2 | [`explain`]: one file per method |
//! | 1 | [`vit`]: the model; [`gates`]: DiffMask; [`interpreter`]: IA-ViT |
//! | 0 | [`frame`], [`flow`]: motion between frames; [`rng`], [`files`], [`picture`] |
//! | 0 | [`weights`], [`changes`], [`wording`], [`error`] |
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod changes;
mod companion;
pub mod error;
pub mod explain;
pub mod files;
pub mod flow;
pub mod frame;
pub mod gates;
pub mod interpreter;
pub mod models;
pub mod picture;
pub mod request;
pub mod rng;
pub mod vit;
pub mod weights;
pub mod wording;

pub use error::{Error, Result};
pub use request::Request;
