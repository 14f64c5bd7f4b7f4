//! All integration tests, in one binary because each would link candle and GStreamer.

// Model folders and the cards of `models/`.
mod models;
// The model against PyTorch.
mod vit;

// Fused operations against their plain composition.
mod kernels;
