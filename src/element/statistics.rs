//! Counts and timings of the element.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gstreamer as gst;

/// Maximum number of values kept.
const REMEMBERED: usize = 100;

/// Time over which a rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// The most recent durations of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(VecDeque<Duration>);

impl Recent {
    pub(super) fn push(&mut self, duration: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(duration);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Duration> {
        self.0.iter()
    }

    /// Returns the duration that this share of them does not exceed.
    pub(super) fn percentile(&self, share: f64) -> Duration {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }
}

/// Counts since the element started.
#[derive(Clone, Debug, Default)]
pub(super) struct Statistics {
    pub(super) frames: u64,
    pub(super) explained: u64,
    pub(super) skipped: u64,
    pub(super) held: usize,
    /// Times from a frame's arrival at the model to its explanation.
    pub(super) took: Recent,
    /// Ages of explanations when they were drawn.
    pub(super) ages: Recent,
    /// When recent explanations arrived.
    came: VecDeque<Instant>,
    /// When the first explanation of all arrived.
    first_came: Option<Instant>,
}

impl Statistics {
    /// Counts an explanation.
    pub(super) fn explained(&mut self, now: Instant) {
        self.explained += 1;
        self.first_came.get_or_insert(now);
        self.came.push_back(now);
        self.forget_before(now);
    }

    fn forget_before(&mut self, now: Instant) {
        while (self.came.front()).is_some_and(|came| now.duration_since(*came) > RATE_WINDOW) {
            self.came.pop_front();
        }
    }

    /// Returns the recent number of explanations per second.
    pub(super) fn rate(&mut self, now: Instant) -> f64 {
        self.forget_before(now);
        let since_first = self.first_came.map_or(RATE_WINDOW, |first| now - first);
        // The first explanation does not end an interval.
        let n = match since_first < RATE_WINDOW {
            true => self.came.len().saturating_sub(1),
            false => self.came.len(),
        };
        let window = since_first.min(RATE_WINDOW).as_secs_f64();
        if window > 0.0 { n as f64 / window } else { 0.0 }
    }

    /// Formats the statistics for viewers.
    pub(super) fn lines(&mut self, kept: Option<f32>, now: Instant) -> [String; 2] {
        let ms = |duration: Duration| 1e3 * duration.as_secs_f64();
        let kept = kept.map(|kept| format!("kept {:.0}% · ", 100.0 * kept));
        let (took, ages) = (&self.took, &self.ages);
        let latency = format!(
            "latency {:.0}, p95 {:.0} ms · dropped {}",
            ms(took.percentile(0.5)),
            ms(took.percentile(0.95)),
            self.skipped,
        );
        let age = ms(ages.percentile(0.5));
        let rate = self.rate(now);
        let rate = format!("{}{rate:.1}/s · age {age:.0} ms", kept.unwrap_or_default());
        [rate, latency]
    }

    /// Returns all figures at one moment; frames are delayed by `delay`.
    pub(super) fn figures(&mut self, now: Instant, delay: Duration) -> Figures {
        Figures {
            frames: self.frames,
            explained: self.explained,
            skipped: self.skipped,
            held: self.held as u64,
            rate: self.rate(now),
            median: self.took.percentile(0.5),
            p95: self.took.percentile(0.95),
            p99: self.took.percentile(0.99),
            age_median: self.ages.percentile(0.5),
            age_p95: self.ages.percentile(0.95),
            delay,
        }
    }
}

/// Counts since the element started, and recent rates and delays.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Frames passed.
    pub frames: u64,
    /// Frames explained.
    pub explained: u64,
    /// Frames that were due for an explanation while the model was busy.
    pub skipped: u64,
    /// Frames that wait to leave.
    pub held: u64,
    /// Explanations per second.
    pub rate: f64,
    /// Median time from a frame's arrival at the model to its explanation.
    pub median: Duration,
    /// 95th percentile of that time.
    pub p95: Duration,
    /// 99th percentile of that time.
    pub p99: Duration,
    /// Median age of an explanation when it is drawn.
    pub age_median: Duration,
    /// 95th percentile of that age.
    pub age_p95: Duration,
    /// Delay of each frame for its explanation.
    pub delay: Duration,
}

impl Figures {
    /// Returns the figures as the property `stats`.
    pub(super) fn structure(&self) -> gst::Structure {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        gst::Structure::builder("vitscope-stats")
            .field("frames", self.frames)
            .field("explained", self.explained)
            .field("skipped", self.skipped)
            .field("held", self.held)
            .field("rate", self.rate)
            .field("median", nanos(self.median))
            .field("p95", nanos(self.p95))
            .field("p99", nanos(self.p99))
            .field("age-median", nanos(self.age_median))
            .field("age-p95", nanos(self.age_p95))
            .field("latency", nanos(self.delay))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_not_exceeded_by_its_share() {
        let mut recent = Recent::default();
        assert_eq!(recent.percentile(0.5), Duration::ZERO);
        for millis in 1..=200 {
            recent.push(Duration::from_millis(millis));
        }
        assert_eq!(recent.len(), REMEMBERED);
        assert_eq!(recent.percentile(0.5), Duration::from_millis(150));
        assert_eq!(recent.percentile(0.95), Duration::from_millis(195));
        assert_eq!(recent.percentile(1.0), Duration::from_millis(200));
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut statistics = Statistics::default();
        assert_eq!(statistics.rate(start), 0.0);
        for millis in (0..=1000).step_by(100) {
            statistics.explained(at(millis));
        }
        assert!((statistics.rate(at(1000)) - 10.0).abs() < 1e-9);
        assert_eq!(statistics.rate(at(60_000)), 0.0);
        assert_eq!(statistics.explained, 11);
    }
}
