//! Models by reference: embedded names and folders.

pub mod weights;
