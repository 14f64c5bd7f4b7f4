//! Compares input and output after a run, by demuxing both again without decoding.
//!
//! Frames are counted as packets that a decoder would show; times are those of the packets, in order of presentation.
//! Whether a demuxer gave less than its container claims shows here too, whatever the reason.

use std::fmt;
use std::time::Duration;

use super::container::{Container, LONGEST_RUN_IN};
use super::job::FileJob;
use super::packets::{Packets, Track};
use super::timeline::Timeline;
use crate::error::Result;
use crate::frame::Pts;

/// Coarsest step in which a container counts time (Matroska's).
const TIME_STEP_NANOS: u64 = 1_000_000;

/// What may be missing at the end before a file counts as incomplete: containers round, and last packets have no length.
const END_TOLERANCE: Duration = Duration::from_millis(250);

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Frames of the input, in the wanted range.
    pub frames_in: u64,
    /// Frames of the output.
    pub frames_out: u64,
    /// Largest difference between a frame's time in the input and in the output, counted from a common frame.
    pub max_pts_error_nanos: u64,
    /// Sound packets of the input, in the wanted range.
    pub audio_packets_in: u64,
    /// Sound packets of the output.
    pub audio_packets_out: u64,
    /// Whether all sound packets are the same; `None` where sound was encoded anew, left out, or is not there.
    pub audio_equal: Option<bool>,
    /// From the beginning of the range to the end of the input's last packet in it.
    pub duration_in: Duration,
    /// To the end of the output's last packet.
    pub duration_out: Duration,
    /// How long the input's container says that the range is.
    pub claimed: Option<Duration>,
    /// Where the user ended the run, in the output's time.
    pub interrupted_at: Option<Pts>,
}

/// Reads both files of `job` and compares them.
///
/// With `interrupted_at` (where the last written frame ends, see [`FileSink::end`](super::FileSink::end)),
/// only what lies before it is expected in the output.
///
/// # Errors
/// Fails where one of the files cannot be demuxed.
pub fn compare(job: &FileJob, interrupted_at: Option<Pts>) -> Result<Verification> {
    super::init()?;
    let container = Container::from_path(&job.output)?;
    let mut input = Packets::read(&job.input, Timeline::of(job))?;
    let output = Packets::read(
        &job.output,
        Timeline::new(&job.output, (Duration::ZERO, None)),
    )?;
    let duration_in = input.end;
    let claimed = input.claimed.map(|claimed| {
        let nanos = |pts: Pts| Duration::from_nanos(pts.0);
        job.end
            .map_or(claimed, |end| claimed.min(nanos(end)))
            .saturating_sub(nanos(job.start.unwrap_or_default()))
    });
    if let Some(end) = interrupted_at {
        let end = i64::try_from(end.0).unwrap_or(i64::MAX);
        input.frames.retain(|time| *time < end);
    }
    if !container.has_edit_lists() {
        for track in &mut input.sound {
            track.cut_before(-(LONGEST_RUN_IN.as_nanos() as i64));
        }
    }
    let starts_in_a_frame = job.start.is_some_and(|start| start > Pts(0));
    Ok(Verification {
        frames_in: input.frames.len() as u64,
        frames_out: output.frames.len() as u64,
        max_pts_error_nanos: max_error(&input.frames, &output.frames, starts_in_a_frame),
        audio_packets_in: n_packets(&input.sound),
        audio_packets_out: n_packets(&output.sound),
        audio_equal: same_sound(&input.sound, &output.sound, interrupted_at.is_some()),
        duration_in,
        duration_out: output.end,
        claimed,
        interrupted_at,
    })
}

impl Verification {
    /// True where nothing is missing and nothing was moved.
    pub fn whole(&self) -> bool {
        self.complaint().is_none()
    }

    /// The first thing that is wrong, in words.
    pub fn complaint(&self) -> Option<String> {
        if let Some(claimed) = self.claimed
            && self.duration_in + END_TOLERANCE < claimed
        {
            return Some(format!(
                "the container claims {:.3} s, but its packets end at {:.3} s",
                claimed.as_secs_f64(),
                self.duration_in.as_secs_f64()
            ));
        }
        if self.frames_in != self.frames_out {
            return Some(format!(
                "{} frames went in, {} came out",
                self.frames_in, self.frames_out
            ));
        }
        if self.max_pts_error_nanos > TIME_STEP_NANOS {
            return Some(format!(
                "a frame was moved by {:.3} ms",
                self.max_pts_error_nanos as f64 / 1e6
            ));
        }
        if self.audio_equal == Some(false) {
            return Some(format!(
                "sound packets differ: {} went in, {} came out",
                self.audio_packets_in, self.audio_packets_out
            ));
        }
        None
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "frames {} in, {} out; largest time error {:.3} ms; ",
            self.frames_in,
            self.frames_out,
            self.max_pts_error_nanos as f64 / 1e6
        )?;
        match self.audio_equal {
            Some(true) => write!(f, "{} sound packets equal; ", self.audio_packets_out)?,
            Some(false) => write!(
                f,
                "sound packets differ ({} in, {} out); ",
                self.audio_packets_in, self.audio_packets_out
            )?,
            None if self.audio_packets_in == 0 => write!(f, "no sound; ")?,
            None if self.audio_packets_out == 0 => write!(f, "sound left out; ")?,
            None => write!(f, "sound encoded anew; ")?,
        }
        write!(
            f,
            "duration {:.3} s in, {:.3} s out",
            self.duration_in.as_secs_f64(),
            self.duration_out.as_secs_f64()
        )?;
        if let Some(end) = self.interrupted_at {
            write!(f, "; interrupted at {:.3} s", end.secs())?;
        }
        Ok(())
    }
}

/// Largest difference of times in nanoseconds, counted from the last frame that both have.
///
/// The first frame of a range may have been cut in two, and then begins where the range does.
fn max_error(input: &[i64], output: &[i64], starts_in_a_frame: bool) -> u64 {
    let n_both = input.len().min(output.len());
    let Some(last) = n_both.checked_sub(1) else {
        return 0;
    };
    let offset = output[last] - input[last];
    let pairs = input.iter().zip(output);
    pairs
        .skip(usize::from(starts_in_a_frame))
        .map(|(before, after)| (after - before - offset).unsigned_abs())
        .max()
        .unwrap_or(0)
}

fn n_packets(tracks: &[Track]) -> u64 {
    tracks.iter().map(|track| track.packets.len() as u64).sum()
}

fn same_sound(input: &[Track], output: &[Track], interrupted: bool) -> Option<bool> {
    if input.is_empty() || output.is_empty() {
        return None;
    }
    let copied =
        input.len() == output.len() && input.iter().zip(output).all(|(a, b)| a.codec == b.codec);
    if !copied {
        return None;
    }
    Some(
        input
            .iter()
            .zip(output)
            .all(|(a, b)| b.continues_as(a, interrupted)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Verification {
        Verification {
            frames_in: 50,
            frames_out: 50,
            max_pts_error_nanos: 0,
            audio_packets_in: 88,
            audio_packets_out: 88,
            audio_equal: Some(true),
            duration_in: Duration::from_secs(2),
            duration_out: Duration::from_secs(2),
            claimed: Some(Duration::from_secs(2)),
            interrupted_at: None,
        }
    }

    #[test]
    fn a_whole_run_has_no_complaint() {
        assert!(whole().whole());
        assert_eq!(
            whole().to_string(),
            "frames 50 in, 50 out; largest time error 0.000 ms; 88 sound packets equal; \
             duration 2.000 s in, 2.000 s out"
        );
    }

    #[test]
    fn each_loss_is_a_complaint() {
        let complaint = |change: fn(&mut Verification)| {
            let mut verification = whole();
            change(&mut verification);
            verification.complaint().unwrap()
        };
        assert_eq!(
            complaint(|v| v.claimed = Some(Duration::from_millis(3035))),
            "the container claims 3.035 s, but its packets end at 2.000 s"
        );
        assert_eq!(
            complaint(|v| v.frames_out = 49),
            "50 frames went in, 49 came out"
        );
        assert_eq!(
            complaint(|v| v.max_pts_error_nanos = 40_000_000),
            "a frame was moved by 40.000 ms"
        );
        assert_eq!(
            complaint(|v| v.audio_equal = Some(false)),
            "sound packets differ: 88 went in, 88 came out"
        );
    }

    #[test]
    fn times_are_compared_from_a_common_frame() {
        assert_eq!(max_error(&[0, 40, 80], &[23, 63, 103], false), 0);
        assert_eq!(max_error(&[0, 40, 80], &[23, 60, 103], false), 3);
        assert_eq!(max_error(&[-20, 40, 80], &[0, 40, 80], true), 0);
        assert_eq!(max_error(&[], &[1], false), 0);
    }
}
