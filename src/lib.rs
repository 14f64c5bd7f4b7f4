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
//! # Packages
//!
//! This library gives the modules of its packages. A package depends on those below it only:
//!
//! | package | modules |
//! |---|---|
//! | `vitscope-live` | `live`: cameras and streams, through the element; `serve`: a page for the browser |
//! | `vitscope-gst` | the shared library that GStreamer loads |
//! | `vitscope-element` | `plugin`: the GStreamer element |
//! | `vitscope-lab` | [`data`]: data sets; [`train`]; [`eval`] |
//! | `vitscope-video` | [`pipeline`]: the stages and their threads; [`media`]: GStreamer; [`overlay`]: what is drawn; [`sidecar`]: JSON Lines; [`demux`]: containers' own tables |
//! | `vitscope-core` | [`models`]: model folders; [`explain`]: one file per method; [`vit`]: the model; [`gates`]: DiffMask; [`interpreter`]: IA-ViT; [`frame`], [`flow`]: motion between frames; [`rng`], [`files`], [`picture`], [`weights`], [`changes`], [`error`] |
//! | `vitscope-kernels` | [`kernels`]: fused operations on the CPU |
//!
//! # Invariants
//!
//! 1. `vit` and `kernels` know nothing of video: tensors in, tensors out.
//! 2. Only `media`, `vitscope-element`, `vitscope-gst` and `vitscope-live` import GStreamer; the rest builds with
//!    `--no-default-features`.
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

#[doc(inline)]
pub use vitscope_core::{
    Error, Result, changes, error, explain, files, flow, frame, gates, interpreter, models,
    picture, rng, vit, weights,
};
#[cfg(feature = "plugin")]
#[doc(inline)]
pub use vitscope_element as plugin;
#[doc(inline)]
pub use vitscope_kernels as kernels;
#[doc(inline)]
pub use vitscope_lab::{data, eval, train};
#[cfg(feature = "live")]
#[doc(inline)]
pub use vitscope_live::{self as live, serve};
#[doc(inline)]
pub use vitscope_video::{demux, media, overlay, pipeline, sidecar};

/// The README's example of the library is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
