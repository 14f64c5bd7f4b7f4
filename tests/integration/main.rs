//! All integration tests, in one binary because each would link candle and GStreamer.

// Clips, models and programs that several tests need.
mod common;

// The page in a browser.
#[cfg(all(feature = "live", feature = "embedded-models"))]
mod browser;
// Classifiers on folders of pictures whose answers are known.
#[cfg(all(feature = "cli", feature = "live"))]
mod classifier;
// Data sets by reference, and folders of pictures.
mod data;
// Scores on explainers whose score is known by hand.
mod eval;
// Every method: against PyTorch, on a toy whose answer is known, and what it refuses.
mod explain;
// Gates on whole models.
mod gates;
// IA-ViT's interpreter.
mod interpreter;
// KernelSHAP against the definition, shap and numpy.
mod kernel_shap;
// What stands in a file beside picture and sound.
#[cfg(feature = "media")]
mod beside;
// The fused operations against their plain composition: forward and gradient.
mod kernels;
// Files through GStreamer and back, judged by ffmpeg and ffprobe.
#[cfg(feature = "media")]
mod media;
// What a picture means: colors, dynamic range, fields, alpha, direction.
#[cfg(feature = "media")]
mod picture;
// What is read, written and called verified, judged by containers' own tables and by ffprobe.
#[cfg(feature = "media")]
mod second_opinion;
// Opening models, and what is said about those that cannot be opened.
mod models;
// Cameras and streams.
#[cfg(feature = "live")]
mod live;
// The page's server.
#[cfg(feature = "live")]
mod serve;
// What is drawn, where and in which colors.
mod overlay;
// Order, times, batches, errors, cancelling.
mod pipeline;
// The GStreamer element.
#[cfg(feature = "plugin")]
mod plugin;
// Suites on models whose answer is known.
mod suites;
// Training: reproducible, resumable, refusing what makes no sense.
mod train;
// The model against PyTorch.
mod vit;

// The program: what it prints and writes, and what it refuses.
#[cfg(all(feature = "cli", feature = "live"))]
mod cli;
// Models of the hub, from a server beside the test.
#[cfg(all(feature = "cli", feature = "hub", feature = "live"))]
mod hub;
// Classes that users teach.
#[cfg(all(feature = "cli", feature = "live"))]
mod teach;
// The layers and habits of the sources.
mod tidy;
