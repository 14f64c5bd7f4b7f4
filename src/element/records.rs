//! Lines of the sidecar, each waiting for the explanation of its own frame.

use std::collections::VecDeque;

use vitscope_core::error::Result;
use vitscope_video::pipeline::stages::Finding;
use vitscope_video::sidecar::{Record, Writer};

/// Writes one record per frame, in the order of the frames.
///
/// In `latest`, a frame leaves before its explanation arrives, so its record waits, and later ones wait behind it.
pub(super) struct Records {
    writer: Writer,
    waiting: VecDeque<Record>,
}

impl Records {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            waiting: VecDeque::new(),
        }
    }

    /// Takes the record of a frame that leaves.
    pub(super) fn push(&mut self, record: Record) {
        self.waiting.push_back(record);
    }

    /// Adds an explanation to the record of its frame, if that record is waiting.
    pub(super) fn explain(&mut self, finding: &Finding) {
        let mut waiting = self.waiting.iter_mut();
        if let Some(record) = waiting.find(|record| record.seq == finding.seq) {
            finding.explain(record);
        }
    }

    /// Writes records up to the first whose explanation is pending.
    ///
    /// # Errors
    /// [`Error::Io`](vitscope_core::Error::Io) if they cannot be written.
    pub(super) fn write_settled(&mut self, is_awaited: impl Fn(u64) -> bool) -> Result<()> {
        let settled = self
            .waiting
            .iter()
            .take_while(|record| !is_awaited(record.seq));
        let n_settled = settled.count();
        for record in self.waiting.drain(..n_settled) {
            self.writer.write(&record)?;
        }
        Ok(())
    }

    /// Flushes the written records to the reader.
    ///
    /// # Errors
    /// See [`write_settled`](Self::write_settled).
    pub(super) fn flush(&mut self) -> Result<()> {
        self.writer.flush()
    }

    /// Writes all waiting records.
    ///
    /// # Errors
    /// See [`write_settled`](Self::write_settled).
    pub(super) fn finish(mut self) -> Result<()> {
        self.write_settled(|_| false)?;
        self.writer.finish()
    }
}
