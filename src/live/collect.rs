//! Stores original frames from the source, for training gates later.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use gstreamer as gst;
use image::codecs::jpeg::JpegEncoder;

use super::peek::Peek;
use vitscope_core::error::{Error, Result};
use vitscope_core::files::write_whole;

/// JPEG quality out of 100; training sees no difference from the camera's frames.
const QUALITY: u8 = 95;

/// Settings for storing original frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collect {
    /// Folder for `frame-000000.jpg` and so on; existing frames are kept.
    pub folder: PathBuf,
    /// Interval between frames.
    pub every: Duration,
}

/// Stores frames at intervals.
pub(super) struct Collector {
    what: Collect,
    source: Peek,
    /// A frame that has been requested.
    asked: Option<Receiver<gst::Buffer>>,
    since: Option<Instant>,
    number: u64,
}

impl Collector {
    /// # Errors
    /// [`Error::Io`] if the folder cannot be created or read.
    pub(super) fn new(what: Collect, source: Peek) -> Result<Self> {
        let failed = |error| Error::io(&what.folder, error);
        fs::create_dir_all(&what.folder).map_err(failed)?;
        let entries = fs::read_dir(&what.folder).map_err(failed)?.flatten();
        let numbers = entries.filter_map(|entry| number(entry.file_name().to_str()?));
        let number = numbers.max().map_or(0, |newest| newest + 1);
        Ok(Self {
            what,
            source,
            asked: None,
            since: None,
            number,
        })
    }

    /// Stores a frame if one is due.
    ///
    /// # Errors
    /// [`Error::Io`] if the frame cannot be written.
    pub(super) fn tick(&mut self) -> Result<()> {
        if let Some(asked) = self.asked.take() {
            match asked.try_recv() {
                Ok(buffer) => return self.store(buffer),
                Err(TryRecvError::Empty) => self.asked = Some(asked),
                Err(TryRecvError::Disconnected) => (),
            }
        }
        let is_time = self
            .since
            .is_none_or(|since| since.elapsed() >= self.what.every);
        if is_time && self.asked.is_none() {
            self.since = Some(Instant::now());
            self.asked = Some(self.source.ask());
        }
        Ok(())
    }

    fn store(&mut self, buffer: gst::Buffer) -> Result<()> {
        let picture = self.source.picture_from_buffer(buffer)?;
        let mut jpeg = Vec::new();
        let encoded = JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&picture);
        encoded.map_err(|error| Error::Media(format!("cannot encode the picture: {error}")))?;
        let name = format!("frame-{:06}.jpg", self.number);
        write_whole(&self.what.folder.join(name), &jpeg)?;
        self.number += 1;
        Ok(())
    }
}

/// Returns the number of a stored frame.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix("frame-")?
        .strip_suffix(".jpg")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_numbered() {
        assert_eq!(Some(12), number("frame-000012.jpg"));
        assert_eq!(None, number("frame-x.jpg"));
        assert_eq!(None, number("frame-000012.jpg.part"));
    }
}
