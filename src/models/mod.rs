//! Models by reference: embedded names and folders.

pub mod preprocessor;
pub mod weights;

pub use preprocessor::Preprocessor;
