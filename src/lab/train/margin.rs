//! Size of the smallest sets of patches that preserve a prediction.

use candle_core::Tensor;

use super::Subject;
use crate::eval::masked_answers;
use crate::eval::masks::MaskScores;
use vitscope_core::error::Result;
use vitscope_core::gates::{Removal, masks_within_margin};

/// Number of test images per measurement.
const CHUNK: usize = 64;

/// Scores minimal sets of top-ranked patches by their effect on the model's outputs for test images.
///
/// `rate` returns logits, `[batch, classes]`, and scores, `[batch, patches]`, for images, `[batch, 3, height, width]`.
pub(super) fn cut_at_margin(
    subject: Subject<'_>,
    n_pictures: usize,
    margin: f64,
    rate: impl Fn(&Tensor) -> Result<(Tensor, Tensor)>,
) -> Result<MaskScores> {
    let (vit, removal) = (subject.vit, Removal::Drop);
    let mut answers = Vec::new();
    for indices in subject.test_chunks(n_pictures, CHUNK) {
        let images = subject.images(subject.test, &indices)?;
        let (original, scores) = rate(&images)?;
        let scores: Vec<Vec<f32>> = scores.to_vec2()?;
        let masks = masks_within_margin(vit, &images, &original, &scores, &removal, margin)?;
        answers.extend(masked_answers(vit, &images, &original, &masks, &removal)?);
    }
    Ok(MaskScores::of(&answers, margin))
}
