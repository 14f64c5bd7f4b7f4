//! Video input and output: the traits [`Source`] and [`Sink`] and their GStreamer implementations.
//!
//! Apart from the plugin, this is the only module that imports GStreamer. The traits and [`memory`] build without it.

#[cfg(feature = "media")]
mod audio;
#[cfg(feature = "media")]
mod beside;
#[cfg(feature = "media")]
pub mod bus;
#[cfg(feature = "media")]
mod container;
#[cfg(feature = "media")]
mod cut;
#[cfg(feature = "media")]
mod deinterlace;
#[cfg(feature = "media")]
mod edits;
#[cfg(feature = "media")]
pub mod elements;
#[cfg(feature = "media")]
mod encoder;
#[cfg(feature = "media")]
mod even;
#[cfg(feature = "media")]
mod ffv1;
#[cfg(feature = "media")]
mod file;
#[cfg(feature = "media")]
mod fragments;
#[cfg(feature = "media")]
mod job;
#[cfg(feature = "media")]
mod judge;
#[cfg(feature = "media")]
mod loas;
#[cfg(feature = "media")]
mod matroska;
pub mod memory;
#[cfg(feature = "media")]
mod mp4;
#[cfg(feature = "media")]
mod opaque;
#[cfg(feature = "media")]
pub mod pixels;
#[cfg(feature = "media")]
mod program_clock;
#[cfg(feature = "media")]
mod range;
#[cfg(feature = "media")]
mod rendition;
#[cfg(feature = "media")]
mod session;
#[cfg(feature = "media")]
mod sink;
#[cfg(feature = "media")]
mod source;
#[cfg(feature = "media")]
mod splice;
#[cfg(feature = "media")]
mod tap;
#[cfg(feature = "media")]
mod temporal;
#[cfg(feature = "media")]
mod timeline;
#[cfg(feature = "media")]
mod transport;
#[cfg(feature = "media")]
pub mod verify;
#[cfg(feature = "media")]
mod vorbis;

#[cfg(feature = "media")]
pub use self::{
    container::Container,
    encoder::VideoCodec,
    file::{StreamInfo, init, log_to_tracing, open, read, version},
    job::{AudioMode, FileJob, HdrMode, local_file},
    sink::FileSink,
    source::FileSource,
};
use vitscope_core::error::Result;
use vitscope_core::frame::Frame;

/// Maximum number of frames held by a file source and a file sink together.
#[cfg(feature = "media")]
pub const MOST_FRAMES: usize = source::DECODED_FRAMES + sink::WAITING_FRAMES + 1;

/// A source of frames, in order.
pub trait Source: Send {
    /// Returns the next frame, or `None` at the end of the stream.
    ///
    /// # Errors
    /// Fails if the stream cannot be read or decoded any further.
    fn next(&mut self) -> Result<Option<Frame>>;

    /// Requests an early end: frames that are already decoded are still delivered, then `None`.
    ///
    /// # Errors
    /// Fails if the source cannot be stopped.
    fn stop(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A consumer of frames, in order.
pub trait Sink: Send {
    /// Passes on one frame.
    ///
    /// # Errors
    /// Fails if the frame cannot be encoded or written.
    fn push(&mut self, frame: Frame) -> Result<()>;

    /// Closes the container. The method is explicit because closing can fail, and `Drop` cannot report that.
    ///
    /// # Errors
    /// Fails if the container cannot be completed.
    fn finish(self: Box<Self>) -> Result<()>;
}
