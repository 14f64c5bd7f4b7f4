//! The progress of a training run on standard error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use vitscope::train::Progress;

/// Shows a run on standard error and ends it on Ctrl-C.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    interrupted: Arc<AtomicBool>,
    /// Running means of the values, because single steps are noisy.
    means: Vec<f64>,
    /// When the last line was printed, if standard error is not a terminal.
    printed: Option<Instant>,
}

/// Time between two lines if standard error is not a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Weight of the newest step in a running mean.
const NEWEST: f64 = 0.05;

impl Shown {
    pub(super) fn new(interrupted: Arc<AtomicBool>) -> Self {
        Self {
            bar: None,
            interrupted,
            means: Vec::new(),
            printed: None,
        }
    }

    pub(super) fn step(&mut self, progress: &Progress<'_>) -> bool {
        self.means.resize(progress.values.len(), f64::NAN);
        let shown = self.means.iter_mut().zip(progress.values);
        for ((mean, value), name) in shown.zip(progress.names) {
            // Values that are measured only occasionally are shown as last measured.
            if mean.is_nan() || (name.starts_with("test") && value.is_finite()) {
                *mean = *value;
            } else if value.is_finite() {
                *mean += NEWEST * (value - *mean);
            }
        }
        let line: Vec<String> = progress
            .names
            .iter()
            .zip(&self.means)
            .filter(|(_, mean)| mean.is_finite())
            .map(|(name, mean)| format!("{name} {mean:.3}"))
            .collect();
        let line = line.join("  ");
        let bar = self.bar.get_or_insert_with(|| bar(progress));
        bar.set_position(progress.step);
        let is_due = |printed: Instant| printed.elapsed() >= PLAIN_EVERY;
        let is_last = progress.step == progress.n_steps;
        if bar.is_hidden() && (is_last || self.printed.is_none_or(is_due)) {
            self.printed = Some(Instant::now());
            eprintln!("{}/{}  {line}", progress.step, progress.n_steps);
        }
        bar.set_message(line);
        !self.interrupted.load(Ordering::SeqCst)
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

fn bar(progress: &Progress<'_>) -> ProgressBar {
    let bar = ProgressBar::new(progress.n_steps);
    // Do not count the steps of an earlier run into the speed of a resumed one.
    bar.set_position(progress.step.saturating_sub(1));
    bar.reset_eta();
    let template = "{wide_bar} {pos}/{len}  {per_sec}  {eta} left\n{msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
