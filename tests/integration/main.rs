//! All integration tests, in one binary because each would link candle and GStreamer.

// Model folders and the cards of `models/`.
mod models;
// Where the image lies in the frame, resizing, drawing.
mod overlay;
// The model against PyTorch.
mod vit;
