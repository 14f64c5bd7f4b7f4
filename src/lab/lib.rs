//! Data sets, training and evaluation of explanations.
//!
//! A module imports from the layers below its own only.
//!
//! | layer | modules |
//! |---|---|
//! | 2 | [`train`] |
//! | 1 | [`eval`] |
//! | 0 | [`data`]: data sets |
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod data;
pub mod eval;
pub mod train;
