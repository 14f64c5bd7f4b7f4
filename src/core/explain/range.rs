//! Conversion of scores to heat.

/// How scores are converted to heat from 0 to 1. Except for [`Unit`](Self::Unit), scores that are equal up to rounding
/// give no heat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Scores are already in [0, 1], like masks; values outside are clipped.
    Unit,
    /// The frame's minimum maps to 0, its maximum to 1.
    MinMax,
    /// The frame's minimum maps to 0, its 99th percentile to 1, so that a few outliers do not hide the rest.
    Percentile,
    /// Values up to 0 map to 0, the frame's 99th percentile to 1. For scores whose sign distinguishes evidence for and
    /// against.
    Signed,
}

impl Range {
    /// Whether scores differ by no more than rounding, so that heat would show noise. Masks are exempt, because they
    /// may keep all patches equally.
    pub fn is_constant(self, scores: &[f32]) -> bool {
        /// Several units in the last place of single precision.
        const ROUNDING: f32 = 1e-6;

        let low = scores.iter().copied().fold(f32::INFINITY, f32::min);
        let high = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self != Self::Unit && high - low <= ROUNDING * low.abs().max(high.abs())
    }
}
