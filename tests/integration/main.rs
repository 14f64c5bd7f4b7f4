//! All integration tests in one binary, because each binary would link candle and GStreamer.

// Clips, models and programs that several tests need.
mod common;

// The page in a browser.
#[cfg(all(feature = "live", feature = "embedded-models"))]
mod browser;
// Classifiers on folders of pictures with known answers.
#[cfg(all(feature = "cli", feature = "live"))]
mod classifier;
// Data sets by reference, and folders of pictures.
mod data;
// Scores of explainers with scores computed by hand.
mod eval;
// Every method: against PyTorch, on a toy with a known answer, and what it refuses.
mod explain;
// Gates on whole models.
mod gates;
// IA-ViT's interpreter.
mod interpreter;
// KernelSHAP against the definition, shap and numpy.
mod kernel_shap;
// Contents of a file besides picture and sound.
#[cfg(feature = "media")]
mod beside;
// The fused operations against plain compositions: forward pass and gradient.
mod kernels;
// Files through GStreamer and back, checked by ffmpeg and ffprobe.
#[cfg(feature = "media")]
mod media;
// Properties of the picture: colors, dynamic range, fields, alpha, orientation.
#[cfg(feature = "media")]
mod picture;
// What is read, written and called verified, checked by containers' own tables and by ffprobe.
#[cfg(feature = "media")]
mod second_opinion;
// Opening models, and the errors for models that cannot be opened.
mod models;
// Cameras and streams.
#[cfg(feature = "live")]
mod live;
// Passes over video that compute only what changed.
mod reuse;
// The page's server.
#[cfg(feature = "live")]
mod serve;
// Drawings: content, position and colors.
mod overlay;
// Order, times, batches, errors, canceling.
mod pipeline;
// The GStreamer element.
#[cfg(feature = "plugin")]
mod plugin;
// Suites on models with a known answer.
mod suites;
// Training: reproducible, resumable, refusing invalid settings.
mod train;
// The model against PyTorch.
mod vit;

// The program: output, files and refusals.
#[cfg(all(feature = "cli", feature = "live"))]
mod cli;
// Models of the hub, from a server next to the test.
#[cfg(all(feature = "cli", feature = "hub", feature = "live"))]
mod hub;
// Classes that users teach.
#[cfg(all(feature = "cli", feature = "live"))]
mod teach;
// The layers and conventions of the sources.
mod tidy;
