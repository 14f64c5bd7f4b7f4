//! Data sets, training and evaluation of explanations.
//!
//! A module imports only from layers below its own.
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
