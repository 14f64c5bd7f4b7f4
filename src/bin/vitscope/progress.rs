//! Progress on standard error: a bar, occasional lines, or JSON Lines.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A progress bar on a terminal, otherwise `plain`.
    Auto,
    /// One line every five seconds.
    Plain,
    /// JSON Lines: four objects per second, and one for the last frame.
    Json,
    /// No progress.
    None,
}

/// Shows the progress of a run.
pub struct Progress {
    shown: Shown,
    total: Option<Duration>,
    started: Instant,
    /// When the last line was printed.
    printed: Option<Instant>,
    state: State,
}

enum Shown {
    Bar(ProgressBar),
    Lines { every: Duration, json: bool },
    Nothing,
}

/// One line of `--progress json`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct State {
    /// Frames done.
    frames: u64,
    /// Seconds of video done.
    secs: f64,
    /// Part of the video done, if its duration is known.
    percent: Option<f64>,
    /// Frames done per second.
    frames_fps: f64,
    /// Seconds until the end at this speed.
    eta_secs: Option<f64>,
}

impl Progress {
    /// `total` is the duration of the video, if known.
    pub fn new(mode: ProgressMode, total: Option<Duration>) -> Self {
        let shown = match mode {
            ProgressMode::Auto if std::io::stderr().is_terminal() => Shown::Bar(bar()),
            ProgressMode::Auto | ProgressMode::Plain => Shown::Lines {
                every: Duration::from_secs(5),
                json: false,
            },
            ProgressMode::Json => Shown::Lines {
                every: Duration::from_millis(250),
                json: true,
            },
            ProgressMode::None => Shown::Nothing,
        };
        Self {
            shown,
            total: total.filter(|total| !total.is_zero()),
            started: Instant::now(),
            printed: None,
            state: State::default(),
        }
    }

    /// Counts another finished frame; the video is done up to `position`.
    pub fn frame(&mut self, position: Duration) {
        let frames = self.state.frames + 1;
        self.state = State::new(frames, position, self.total, self.started.elapsed());
        let every = match &self.shown {
            Shown::Bar(_) => Duration::from_millis(100),
            Shown::Lines { every, .. } => *every,
            Shown::Nothing => return,
        };
        if self
            .printed
            .is_none_or(|printed| printed.elapsed() >= every)
        {
            self.print();
            self.printed = Some(Instant::now());
        }
    }

    /// Shows the state of the last frame; a bar disappears.
    pub fn finish(self) {
        if matches!(self.shown, Shown::Lines { .. }) {
            self.print();
        }
    }

    fn print(&self) {
        let line = match &self.shown {
            Shown::Bar(bar) => {
                bar.set_message(self.state.to_string());
                bar.set_position((10.0 * self.state.percent.unwrap_or_default()) as u64);
                return;
            }
            // Serializing a struct of numbers cannot fail.
            Shown::Lines { json: true, .. } => {
                serde_json::to_string(&self.state).unwrap_or_default()
            }
            Shown::Lines { .. } | Shown::Nothing => self.state.to_string(),
        };
        // A closed standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

impl Drop for Progress {
    /// Clears the bar, also after a failure, so that the error is not printed into it.
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

impl State {
    fn new(frames: u64, position: Duration, total: Option<Duration>, elapsed: Duration) -> Self {
        let share = total.map(|total| (position.as_secs_f64() / total.as_secs_f64()).min(1.0));
        let elapsed_secs = elapsed.as_secs_f64();
        Self {
            frames,
            secs: to_millis(position.as_secs_f64()),
            percent: share.map(|share| to_millis(100.0 * share)),
            frames_fps: to_millis(frames as f64 / elapsed_secs.max(1e-3)),
            eta_secs: share
                .filter(|share| *share > 0.0)
                .map(|share| to_millis(elapsed_secs * (1.0 - share) / share)),
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            frames,
            secs,
            percent,
            frames_fps,
            eta_secs,
        } = *self;
        if let Some(percent) = percent {
            write!(f, "{percent:.0}%, ")?;
        }
        write!(f, "frame {frames}, {secs:.1} s, {frames_fps:.1} frames/s")?;
        match eta_secs {
            Some(eta_secs) => write!(f, ", {eta_secs:.0} s left"),
            None => Ok(()),
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1000);
    // A template that does not parse is a bug; the default style still shows progress.
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn to_millis(value: f64) -> f64 {
    (1000.0 * value).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(total_secs: Option<u64>) -> State {
        State::new(
            100,
            Duration::from_secs(4),
            total_secs.map(Duration::from_secs),
            Duration::from_secs(2),
        )
    }

    #[test]
    fn the_time_left_follows_from_what_is_done() {
        assert_eq!(
            "40%, frame 100, 4.0 s, 50.0 frames/s, 3 s left",
            state(Some(10)).to_string()
        );
    }

    #[test]
    fn without_a_duration_no_share_is_made_up() {
        assert_eq!("frame 100, 4.0 s, 50.0 frames/s", state(None).to_string());
    }

    #[test]
    fn a_stream_longer_than_claimed_stays_at_its_end() {
        assert_eq!(
            r#"{"frames":100,"secs":4.0,"percent":100.0,"frames_fps":50.0,"eta_secs":0.0}"#,
            serde_json::to_string(&state(Some(3))).unwrap()
        );
    }
}
