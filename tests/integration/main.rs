//! All integration tests, in one binary because each would link candle and GStreamer.

// Data sets by reference, and folders of pictures.
mod data;
// Scores on explainers whose score is known by hand.
mod eval;
// Gates on whole models, and the methods that explain.
mod gates;
// Model folders and the cards of `models/`.
mod models;
// Training: reproducible, resumable, refusing what makes no sense.
mod train;
// The model against PyTorch.
mod vit;
