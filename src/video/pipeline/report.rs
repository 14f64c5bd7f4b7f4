//! Summary of a pipeline run: frames, explanations and the working time of each stage.

use std::time::Duration;

use vitscope_core::frame::Pts;
use vitscope_core::wording::counted;

/// Names of the stages, and of their threads, in processing order.
pub const STAGES: [&str; 5] = [
    "vitscope-decode",
    "vitscope-patchify",
    "vitscope-explain",
    "vitscope-composite",
    "vitscope-encode",
];

/// Numbers of output frames by the explanation drawn on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Output frames; the sum of the other three counts.
    pub frames: u64,
    /// Frames that show their own explanation.
    pub explained: u64,
    /// Frames that show the explanation of an earlier frame, as requested by `every`.
    pub held: u64,
    /// Frames without an explanation, because explaining failed.
    pub unexplained: u64,
}

/// Outcome of a completed run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Frame counts by the explanation drawn.
    pub counts: Counts,
    /// Share of patches that the model computed; `None` if none could be reused.
    pub computed: Option<f64>,
    /// End of the output, if the run was cancelled before the source ended.
    pub interrupted_at: Option<Pts>,
    /// Working time of each of [`STAGES`], without waiting.
    pub busy: [Duration; STAGES.len()],
    /// Time from the start of the first thread to the end of the last one.
    pub wall: Duration,
}

impl Report {
    /// Returns the number of output frames per second of wall time.
    pub fn frames_fps(&self) -> f64 {
        let secs = self.wall.as_secs_f64();
        if secs > 0.0 {
            self.counts.frames as f64 / secs
        } else {
            0.0
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts {
            frames,
            explained,
            held,
            unexplained,
        } = self.counts;
        write!(f, "{}, {explained} explained", counted(frames, "frame"))?;
        if held > 0 {
            write!(f, ", {held} with the last explanation")?;
        }
        if unexplained > 0 {
            write!(f, ", {unexplained} unexplained")?;
        }
        if let Some(computed) = self.computed {
            write!(f, ", {:.0} % of the patches computed", 100.0 * computed)?;
        }
        let (wall_secs, fps) = (self.wall.as_secs_f64(), self.frames_fps());
        write!(f, "; {wall_secs:.1} s, {fps:.1} frames/s (")?;
        for (stage_idx, (name, busy)) in STAGES.iter().zip(self.busy).enumerate() {
            let comma = if stage_idx > 0 { ", " } else { "" };
            let short = name.trim_start_matches("vitscope-");
            write!(f, "{comma}{short} {:.1} s", busy.as_secs_f64())?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_one_line() {
        let report = Report {
            counts: Counts {
                frames: 30,
                explained: 10,
                held: 18,
                unexplained: 2,
            },
            computed: Some(0.314),
            interrupted_at: None,
            busy: [100, 200, 300, 400, 500].map(Duration::from_millis),
            wall: Duration::from_secs(2),
        };
        assert_eq!(
            "30 frames, 10 explained, 18 with the last explanation, 2 unexplained, 31 % of the patches \
             computed; \
             2.0 s, 15.0 frames/s \
             (decode 0.1 s, patchify 0.2 s, explain 0.3 s, composite 0.4 s, encode 0.5 s)",
            report.to_string()
        );
    }
}
