//! Reads video, draws explanations over it and writes the result.
//!
//! A module imports only from the layers below its own.
//!
//! | layer | modules |
//! |---|---|
//! | 2 | [`pipeline`]: the stages and their threads |
//! | 1 | [`media`]: GStreamer |
//! | 0 | [`overlay`]: drawing; [`sidecar`]: JSON Lines; [`demux`]: container tables |
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]

pub mod demux;
pub mod media;
pub mod overlay;
pub mod pipeline;
pub mod sidecar;
