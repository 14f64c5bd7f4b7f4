//! Independent verification of a finished run: compares the container tables of source and result, without GStreamer.
//!
//! A demuxer that loses frames loses them on every reading, so this module uses none: [`demux`] shares no code with the
//! run. It compares what a viewer gets: frames and their timestamps, audio packets, audio–video synchronization, and
//! durations. Properties that the tables do not specify are reported as not judged.

use std::fmt;
use std::time::Duration;

use super::container::Container;
use super::job::FileJob;
use super::judge::{Wanted, begin_of_result};
use crate::demux::{self, Contents, Kind, Track};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::Pts;
use vitscope_core::wording::counted;

/// Outcome of the verification of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Number of source frames in the requested range.
    pub frames_in: u64,
    /// Number of frames in the result.
    pub frames_out: u64,
    /// Largest difference between a frame's time in the source and in the result, relative to a common frame.
    pub max_pts_error_nanos: u64,
    /// Number of source audio packets in the requested range.
    pub audio_packets_in: u64,
    /// Number of audio packets in the result.
    pub audio_packets_out: u64,
    /// Whether all audio packets are identical; `None` if the audio was re-encoded, left out or missing.
    pub audio_equal: Option<bool>,
    /// Number of re-encoded audio packets in the result.
    pub audio_packets_encoded: u64,
    /// Largest shift of copied audio relative to the video.
    pub max_sound_shift_nanos: u64,
    /// Time from the start of the range to the end of the source's last packet in it.
    pub duration_in: Duration,
    /// Time to the end of the result's last packet.
    pub duration_out: Duration,
    /// Time at which the user ended the run, in the result's time.
    pub interrupted_at: Option<Pts>,
    /// Type of the source, if its tables cannot be read.
    pub unread_source: Option<String>,
    /// Parts of the source that could not be judged, with reasons.
    pub unjudged: Vec<String>,
    /// Problems found, the worst first.
    pub(super) complaints: Vec<String>,
}

/// Reads source and result of `job` and compares them.
///
/// With `interrupted_at` (the end of the last written frame, see [`FileSink::end`](super::FileSink::end)), the result
/// is expected to contain only the part before it.
///
/// # Errors
/// [`Error::Media`] if the result cannot be read.
pub fn compare(job: &FileJob, interrupted_at: Option<Pts>) -> Result<Verification> {
    let container = Container::from_path(&job.output)?;
    let result = demux::read(&job.output)
        .map_err(|err| Error::Media(format!("the result is {err}: {:?}", job.output)))?;
    let wanted = Wanted {
        start: nanos(job.start.unwrap_or_default()),
        end: job.end.map_or(i64::MAX, nanos),
        interrupted_at: interrupted_at.map(nanos),
        sound: job.audio,
        has_edit_lists: container.has_edit_lists(),
    };
    let mut verification = match demux::read(&job.input) {
        Ok(source) => wanted.judge(&source, &result),
        Err(err) => Verification {
            unread_source: Some(err.to_string()),
            ..Verification::of_result(&result)
        },
    };
    verification.interrupted_at = interrupted_at;
    Ok(verification)
}

fn nanos(pts: Pts) -> i64 {
    i64::try_from(pts.0).unwrap_or(i64::MAX)
}

impl Verification {
    /// Returns whether nothing is missing or shifted.
    pub fn whole(&self) -> bool {
        self.complaints.is_empty()
    }

    /// Returns a description of the first problem.
    pub fn complaint(&self) -> Option<String> {
        self.complaints.first().cloned()
    }

    /// Checks that the result contains all `n_frames` frames that the run wrote.
    #[must_use]
    pub fn with_written(mut self, n_frames: u64) -> Self {
        if self.frames_out != n_frames {
            self.complaints.push(format!(
                "{n_frames} frames were written, but the result contains {}",
                self.frames_out
            ));
        }
        self
    }

    /// Adds a complaint if `n_tracks` audio tracks appeared too late to be written.
    #[must_use]
    pub fn with_late_tracks(mut self, n_tracks: u64) -> Self {
        if n_tracks > 0 && self.unread_source.is_some() {
            self.complaints.push(format!(
                "{} started too late in the file to be written",
                counted(n_tracks, "audio track")
            ));
        }
        self
    }

    /// Summarizes the result alone.
    pub(super) fn of_result(result: &Contents) -> Self {
        let packets = |kind| result.of(kind).map(|track| track.packets.len() as u64);
        let begin = begin_of_result(result);
        let end = result.tracks.iter().filter_map(Track::end).max();
        Self {
            frames_out: packets(Kind::Picture).next().unwrap_or(0),
            audio_packets_out: packets(Kind::Sound).sum(),
            duration_out: duration(end.unwrap_or(begin).saturating_sub(begin)),
            ..Self::default()
        }
    }
}

pub(super) fn duration(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

pub(super) fn secs(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.unread_source {
            return write!(
                f,
                "not verified: the source is {source}, and its tables cannot be read; \
                 the result has {} frames, {} sound packets, {:.3} s",
                self.frames_out,
                self.audio_packets_out,
                self.duration_out.as_secs_f64()
            );
        }
        let head = match (self.whole(), self.unjudged.is_empty()) {
            (false, _) => "compared",
            (true, false) => "verified in part",
            (true, true) => "verified",
        };
        if self.frames_in == 0 && !self.unjudged.is_empty() {
            write!(f, "{head}: frames {} out; ", self.frames_out)?;
        } else {
            write!(
                f,
                "{head}: frames {} in, {} out; largest time error {:.3} ms; ",
                self.frames_in,
                self.frames_out,
                self.max_pts_error_nanos as f64 / 1e6
            )?;
        }
        match self.audio_equal {
            Some(true) => {
                let n_copied = self.audio_packets_out - self.audio_packets_encoded;
                let off = self.max_sound_shift_nanos as f64 / 1e6;
                let equal = counted(n_copied, "sound packet");
                write!(f, "{equal} equal, {off:.3} ms off the picture; ")?;
                if self.audio_packets_encoded > 0 {
                    write!(f, "other sound re-encoded; ")?;
                }
            }
            Some(false) => write!(
                f,
                "sound packets differ ({} in, {} out); ",
                self.audio_packets_in, self.audio_packets_out
            )?,
            None if self.audio_packets_in == 0 && self.unjudged.is_empty() => {
                write!(f, "no sound; ")?;
            }
            None if self.audio_packets_in == 0 => {}
            None if self.audio_packets_out == 0 => write!(f, "sound left out; ")?,
            None => write!(f, "sound re-encoded; ")?,
        }
        write!(
            f,
            "duration {:.3} s in, {:.3} s out",
            self.duration_in.as_secs_f64(),
            self.duration_out.as_secs_f64()
        )?;
        for unjudged in &self.unjudged {
            write!(f, "; not judged: {unjudged}")?;
        }
        if let Some(end) = self.interrupted_at {
            write!(f, "; interrupted at {:.3} s", end.secs())?;
        }
        Ok(())
    }
}
