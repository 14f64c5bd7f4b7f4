//! Frames in a `Vec`, for tests and for embedding in other programs.

use std::sync::{Arc, Mutex};

use super::{Sink, Source};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::Frame;

/// A source that returns the frames of a `Vec`.
pub struct MemorySource(std::vec::IntoIter<Frame>);

impl MemorySource {
    /// Creates a source that returns `frames` in order.
    pub fn new(frames: Vec<Frame>) -> Self {
        Self(frames.into_iter())
    }
}

impl Source for MemorySource {
    fn next(&mut self) -> Result<Option<Frame>> {
        Ok(self.0.next())
    }
}

/// A sink that collects frames; clones share the collection.
#[derive(Clone, Default)]
pub struct MemorySink(Arc<Mutex<Vec<Frame>>>);

impl MemorySink {
    /// Removes and returns the frames collected so far.
    pub fn take(&self) -> Vec<Frame> {
        self.0
            .lock()
            .map(|mut frames| std::mem::take(&mut *frames))
            .unwrap_or_default()
    }
}

impl Sink for MemorySink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        let mut frames = self
            .0
            .lock()
            .map_err(|_| Error::Media("a reader of the memory sink panicked".into()))?;
        frames.push(frame);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
