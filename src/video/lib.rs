//! Video in, explanations over it, video out.
//!
//! A module imports from the layers below its own only.
//!
//! | layer | modules |
//! |---|---|
//! | 2 | [`pipeline`]: the stages and their threads |
//! | 1 | [`media`]: GStreamer |
//! | 0 | [`overlay`]: what is drawn; [`sidecar`]: JSON Lines; [`demux`]: containers' own tables |
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod demux;
pub mod media;
pub mod overlay;
pub mod pipeline;
pub mod sidecar;
