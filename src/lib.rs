//! Explains Vision Transformers on images and video.
//!
//! Video frames pass through five stages connected by bounded channels:
//!
//! ```text
//! source → decode → patchify → explain → composite → encode → sink
//! ```
//!
//! `patchify` resizes a frame to the model's input, `explain` runs the model and a method that scores its
//! patches, and `composite` draws the scores over the frame. Everything below the stages is a library of
//! functions on tensors.
//!
//! # Packages
//!
//! This library re-exports from its packages what programs need. A package depends only on those below it:
//!
//! | package | what programs use of it | inside |
//! |---|---|---|
//! | `vitscope-live` | `live`: cameras and streams, explained by the element | `serve`: the web page |
//! | `vitscope-gst` | the shared library that GStreamer loads | |
//! | `vitscope-element` | `plugin`: the GStreamer element | |
//! | `vitscope-lab` | [`data`]: data sets; [`train`]: training; [`eval`]: evaluation | |
//! | `vitscope-video` | [`View`]; [`pipeline`]: the stages and their threads; [`media`]: GStreamer; [`overlay`]: drawing; [`sidecar`]: JSON Lines | `demux`: container tables |
//! | `vitscope-core` | [`Request`]; [`models`]: model folders; [`explain`]: one file per method; [`vit`]: the model; [`gates`]: DiffMask; [`interpreter`]: IA-ViT; [`frame`]; [`picture`]; [`rng`] | `flow`: motion between frames; `files`, `weights`, `changes`, `wording`, `error` |
//! | `vitscope-kernels` | | fused operations on the CPU |
//!
//! # Invariants
//!
//! 1. `vit` and `kernels` know nothing about video; they take and return tensors.
//! 2. Only `media`, `vitscope-element`, `vitscope-gst` and `vitscope-live` import GStreamer. Everything else builds
//!    with `--no-default-features`.
//! 3. Only `pipeline` starts threads. Every channel is bounded.
//! 4. An explainer never changes the model and always returns the same explanation for the same image.
//! 5. An attribution is raw: one f32 per patch, higher is more important. `overlay` maps it to color.
//! 6. Timing is preserved: every frame leaves in order, with its original timestamp and duration.
//! 7. Video is never dropped.
//! 8. A frozen model stays frozen: a trainer changes only the variables it is given.
//! 9. The caller seeds all randomness.
//! 10. Gradients flow through every tap site of the model.
//!
//! # Examples
//!
//! A picture, its answer and its map; see [`Request`] for what can be asked, [`pipeline::Pipeline`] for videos:
//!
//! ```
//! use vitscope::{Request, View};
//! use vitscope::overlay::Overlay;
//!
//! # fn main() -> vitscope::Result<()> {
//! let model = "tests/fixtures/vit_a".to_owned();
//! let view = View::open(&Request { model, ..Request::default() })?;
//! let picture = vitscope::picture::read("tests/golden/mode-original.png".as_ref())?.image;
//! let found = view.explain_image(&picture)?;
//! let (rows, columns) = found.grid;
//! assert_eq!(found.maps[0].attribution.len(), rows * columns); // one score per patch
//! let drawn = found.draw(&picture, Overlay::default())?;
//! assert_eq!(drawn.dimensions(), picture.dimensions());
//! # Ok(())
//! # }
//! ```
//!
//! A model of one's own, and a method over its tensors:
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
    Error, Request, Result, explain, frame, interpreter, models, picture, rng, vit,
};
#[cfg(feature = "plugin")]
#[doc(inline)]
pub use vitscope_element as plugin;
#[doc(inline)]
pub use vitscope_lab::{data, train};
#[cfg(feature = "live")]
#[doc(inline)]
pub use vitscope_live as live;
#[doc(inline)]
pub use vitscope_video::{overlay, pipeline::stages::View, sidecar};

/// Gates of Vision DiffMask, trained by [`train`].
pub mod gates {
    #[doc(inline)]
    pub use vitscope_core::gates::{GateCard, Gates, Objective};
}

/// How faithful explanations are, and how right the model.
pub mod eval {
    #[doc(inline)]
    pub use vitscope_lab::eval::{
        calibration, classification, faithfulness, localization, map_metrics, perturbation,
        segmentation, suite, summary, temporal, video,
    };
}

/// Video files through GStreamer, and frames from and to a program's memory.
pub mod media {
    #[cfg(feature = "media")]
    #[doc(inline)]
    pub use vitscope_video::media::{
        AudioMode, Container, FileJob, FileSink, FileSource, HdrMode, MOST_FRAMES, StreamInfo,
        VideoCodec, bus, init, local_file, log_to_tracing, open, pixels, read, verify, version,
    };
    #[doc(inline)]
    pub use vitscope_video::media::{Sink, Source, memory};
}

/// The stages of a video and the threads that run them.
pub mod pipeline {
    #[doc(inline)]
    pub use vitscope_video::pipeline::{
        Counts, MOST_FRAMES, OnFrame, Pipeline, Report, STAGES, compositor, stages,
    };
}

/// Compiles and runs the README's library example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
