//! All integration tests, in one binary because each would link candle and GStreamer.

// Model folders and the cards of `models/`.
mod models;
// Where the image lies in the frame, resizing, drawing.
mod overlay;

// The model against PyTorch.
mod vit;

// What several tests need.
mod common;
// Order, times, batches, errors, cancelling.
mod pipeline;
// The program: what it prints and writes, and what it refuses.
mod cli;
// The layers and habits of the sources.
mod tidy;
