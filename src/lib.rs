//! Shows what a Vision Transformer looks at, on pictures and on moving pictures.
//!
//! Frames of a video go through five stages joined by bounded channels:
//!
//! ```text
//! source → decode → patchify → explain → composite → encode → sink
//! ```
//!
//! `patchify` brings a frame to the model's size, `explain` runs the model and a method that scores its
//! patches, `composite` draws the scores over the frame. Everything below the stages is a library of
//! tensors in, tensors out.
//!
//! # Modules
//!
//! A module imports from the layers below its own only.
//!
//! | layer | modules |
//! |---|---|
//! | 6 | `live`: cameras and streams, through the element |
//! | 5 | `plugin`: the GStreamer element |
//! | 4 | [`pipeline`]: the stages and their threads; `serve`: a page for the browser |
//! | 3 | [`models`]: model folders; [`train`]; [`eval`]; [`sidecar`]: JSON Lines |
//! | 2 | [`explain`]: one file a method; [`data`]: data sets; [`media`]: GStreamer |
//! | 1 | [`vit`]: the model; [`gates`]: DiffMask; [`interpreter`]: IA-ViT; [`overlay`]: what is drawn |
//! | 0 | [`frame`], [`flow`]: motion between frames; [`kernels`], [`rng`], [`files`], [`picture`], [`weights`], [`changes`], [`demux`]: containers' own tables, [`error`] |
//!
//! # Invariants
//!
//! 1. `vit` and `kernels` know nothing of video: tensors in, tensors out.
//! 2. Only `media`, `plugin` and `live` import GStreamer; the rest builds with `--no-default-features`.
//! 3. Only `pipeline` starts threads, and every channel is bounded.
//! 4. An explainer does not change the model, and gives the same answer for the same image.
//! 5. An attribution is raw: one f32 a patch, higher is more important. `overlay` scales it to color.
//! 6. Time passes through: a frame leaves with the time and duration that it came with, in order.
//! 7. Video is never dropped.
//! 8. The frozen model stays frozen: a trainer changes the variables it was given and no others.
//! 9. All randomness is seeded by the caller.
//! 10. Every tap site of the model passes gradients.
//!
//! # Example
//!
//! ```
//! use candle_core::Device;
//! use vitscope::explain::{Explainer, Target, rollout::Rollout};
//! use vitscope::rng::Rng;
//! use vitscope::vit::{Vit, VitConfig, init};
//!
//! # fn main() -> vitscope::Result<()> {
//! let config = VitConfig {
//!     image_size: 32,
//!     patch_size: 8,
//!     hidden_size: 48,
//!     num_hidden_layers: 2,
//!     num_attention_heads: 3,
//!     intermediate_size: 96,
//!     labels: vec!["cat".into(), "dog".into()],
//!     ..VitConfig::default()
//! };
//! let mut rng = Rng::new(0);
//! let weights = init::init(&config, &mut rng)?;
//! let vit = Vit::load(config, &weights)?;
//! let images = rng.normal_tensor((1, 3, 32, 32), &Device::Cpu)?;
//! let explanation = Rollout::default().explain(&vit, &images, Target::Predicted)?;
//! assert_eq!(explanation.attribution.dims(), [1, 16]);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod changes;
mod companion;
pub mod data;
pub mod demux;
pub mod error;
pub mod eval;
pub mod explain;
pub mod files;
pub mod flow;
pub mod frame;
pub mod gates;
pub mod interpreter;
pub mod kernels;
#[cfg(feature = "live")]
pub mod live;
pub mod media;
pub mod models;
pub mod overlay;
pub mod picture;
pub mod pipeline;
#[cfg(feature = "plugin")]
pub mod plugin;
pub mod rng;
#[cfg(feature = "live")]
pub mod serve;
pub mod sidecar;
pub mod train;
pub mod vit;
pub mod weights;

pub use error::{Error, Result};

/// The README's example of the library is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
