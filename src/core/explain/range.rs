//! How a method's scores become heat.

/// How scores become heat from 0 to 1. Except for [`Unit`](Self::Unit), scores that are equal up to rounding have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Scores lie in [0, 1] already, as masks do; what lies outside is clipped.
    Unit,
    /// The frame's least score is 0, its greatest 1.
    MinMax,
    /// The frame's least score is 0, its 99th percentile 1: a few outliers do not hide the rest.
    Percentile,
    /// 0 and what is below it is 0, the frame's 99th percentile 1: for scores whose sign says for or against.
    Signed,
}

impl Range {
    /// Whether scores differ by no more than rounding does, so that heat would show noise. A mask may keep all patches
    /// alike.
    pub fn is_constant(self, scores: &[f32]) -> bool {
        /// Several units in the last place of single precision.
        const ROUNDING: f32 = 1e-6;

        let low = scores.iter().copied().fold(f32::INFINITY, f32::min);
        let high = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self != Self::Unit && high - low <= ROUNDING * low.abs().max(high.abs())
    }
}
