//! Number of frames that `exact` holds back, based on how long explanations have taken.

use std::time::Duration;

use super::statistics::Recent;

/// Maximum number of frames held back, so that a slow model cannot delay a stream indefinitely.
const MOST_FRAMES: usize = 8;

/// Number of explanations that must have been faster before fewer frames are held back.
const PATIENCE: usize = 50;

/// The delay of a live stream, in frames.
///
/// The delay grows when one explanation in ten came too late, and shrinks only after a long time in which fewer frames
/// would have sufficed: viewers see each change as a hitch.
#[derive(Debug)]
pub(super) struct Delay {
    took: Recent,
    n_frames: usize,
    /// Number of explanations since the last change.
    since: usize,
}

impl Delay {
    /// Creates a delay that suffices for explanations that take `expected`.
    pub(super) fn new(expected: Duration, frame: Duration) -> Self {
        Self {
            took: Recent::default(),
            n_frames: frames(expected, frame),
            since: 0,
        }
    }

    /// Returns the number of frames held back.
    pub(super) fn n_frames(&self) -> usize {
        self.n_frames
    }

    /// Records how long an explanation took; returns `true` if the delay has changed.
    pub(super) fn learn(&mut self, took: Duration, frame: Duration) -> bool {
        self.took.push(took);
        self.since += 1;
        let late = self
            .took
            .iter()
            .filter(|took| frames(**took, frame) > self.n_frames)
            .count();
        let needed = frames(self.took.percentile(0.99), frame);
        let grows = needed > self.n_frames && 10 * late >= self.took.len();
        let shrinks = needed < self.n_frames && self.since >= PATIENCE;
        if grows || shrinks {
            self.n_frames = needed;
            self.since = 0;
            self.took.clear();
        }
        grows || shrinks
    }
}

/// Returns the number of frames that arrive during an explanation.
fn frames(took: Duration, frame: Duration) -> usize {
    let frame = frame.max(Duration::from_millis(1));
    let n_frames = took.as_nanos().div_ceil(frame.as_nanos());
    (n_frames as usize).clamp(1, MOST_FRAMES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Duration = Duration::from_millis(40);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_first_delay_is_what_the_first_explanation_needs() {
        assert_eq!(Delay::new(ms(0), FRAME).n_frames(), 1);
        assert_eq!(Delay::new(ms(40), FRAME).n_frames(), 1);
        assert_eq!(Delay::new(ms(41), FRAME).n_frames(), 2);
        assert_eq!(Delay::new(ms(9000), FRAME).n_frames(), MOST_FRAMES);
    }

    #[test]
    fn it_grows_when_explanations_are_late_and_not_for_a_single_one() {
        let mut delay = Delay::new(ms(30), FRAME);
        for _ in 0..50 {
            assert!(!delay.learn(ms(30), FRAME));
        }
        assert!(!delay.learn(ms(90), FRAME), "one in fifty is no reason");
        let changed = (0..20).position(|_| delay.learn(ms(90), FRAME));
        assert!(changed.is_some_and(|n| n < 10), "{changed:?}");
        assert_eq!(delay.n_frames(), 3);
    }

    #[test]
    fn it_shrinks_only_after_a_while() {
        let mut delay = Delay::new(ms(200), FRAME);
        assert_eq!(delay.n_frames(), 5);
        let changed = (1..=100).find(|_| delay.learn(ms(30), FRAME));
        assert_eq!(changed, Some(PATIENCE));
        assert_eq!(delay.n_frames(), 1);
    }
}
