//! Effect of removing patches on a model's output, and minimal sets of patches that preserve the output.

use candle_core::{D, DType, Device, Result as TensorResult, Tensor};
use candle_nn::ops::{log_softmax, softmax};

use super::{KEEP, Removal, masked_pass};
use crate::error::{Error, Result};
use crate::vit::Vit;

/// The model's output for a masked image, compared with the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskedAnswer {
    /// KL(original ‖ masked) of the class probabilities, in nats.
    pub kl: f64,
    /// True if the same class has the highest logit with and without the mask.
    pub agrees: bool,
    /// Share of patches that the mask keeps.
    pub kept: f64,
}

/// KL(original ‖ masked) of the class probabilities of each image, in nats.
///
/// # Shapes
/// - `original`, `masked`: logits, `[batch, classes]`
/// - result: `[batch]`
///
/// # Errors
/// Fails if the shapes differ.
pub fn kl_from_logits(original: &Tensor, masked: &Tensor) -> TensorResult<Tensor> {
    let original = log_softmax(original, D::Minus1)?;
    let masked = log_softmax(masked, D::Minus1)?;
    (original.exp()? * (original - masked)?)?.sum(D::Minus1)
}

/// Whether each patch is more likely kept than not.
///
/// # Shapes
/// - `likely`: `[batch, patches]`
pub fn binary_masks(likely: &[Vec<f32>]) -> Vec<Vec<bool>> {
    let of_image = |likely: &Vec<f32>| likely.iter().map(|&keep| keep >= KEEP).collect();
    likely.iter().map(of_image).collect()
}

/// Converts masks to the masked pass's format: 1 keeps, 0 removes.
///
/// # Shapes
/// - result: `[batch, patches]`
pub fn tensor_from_masks(masks: &[Vec<bool>], device: &Device) -> TensorResult<Tensor> {
    let n_patches = masks.first().map_or(0, Vec::len);
    let values = masks
        .iter()
        .flatten()
        .map(|&keep| f32::from(u8::from(keep)));
    let values: Vec<f32> = values.collect();
    Tensor::from_vec(values, (masks.len(), n_patches), device)
}

/// Runs the model on masked images and compares its outputs with those of the whole images.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
/// - `original`: logits of the whole images, `[batch, classes]`
/// - `masks`: one value per patch, for each image; true keeps
///
/// # Errors
/// Fails if a shape does not fit the model, or if the model has no classifier.
pub fn masked_answers(
    vit: &Vit,
    images: &Tensor,
    original: &Tensor,
    masks: &[Vec<bool>],
    removal: &Removal,
) -> Result<Vec<MaskedAnswer>> {
    let mask = tensor_from_masks(masks, images.device())?;
    let n_patches = mask.dim(1)?;
    let masked = logits(masked_pass(vit, images, &mask, removal)?.logits)?;
    let kl: Vec<f32> = kl_from_logits(original, &masked)?.to_vec1()?;
    let before: Vec<u32> = original.argmax(D::Minus1)?.to_vec1()?;
    let after: Vec<u32> = masked.argmax(D::Minus1)?.to_vec1()?;
    let answers = kl.into_iter().zip(before.into_iter().zip(after)).zip(masks);
    Ok(answers
        .map(|((kl, (before, after)), mask)| MaskedAnswer {
            // Rounding can make a divergence of zero slightly negative.
            kl: f64::from(kl).max(0.0),
            agrees: before == after,
            kept: mask.iter().filter(|&&keep| keep).count() as f64 / n_patches.max(1) as f64,
        })
        .collect())
}

/// For each image, finds by bisection the smallest number of highest-ranked patches that preserves the output, and
/// returns the mask: KL(original ‖ masked) within `margin`, and the same top class.
///
/// Bisection assumes that more patches never hurt. Where they do, the number may be larger than the smallest, but the
/// mask never loses the output if keeping all patches preserves it.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
/// - `original`: logits of the whole images, `[batch, classes]`
/// - `attributions`: one value per patch, for each image
///
/// # Errors
/// Fails if a shape does not fit the model, or if the model has no classifier.
pub fn masks_within_margin(
    vit: &Vit,
    images: &Tensor,
    original: &Tensor,
    attributions: &[Vec<f32>],
    removal: &Removal,
    margin: f64,
) -> Result<Vec<Vec<bool>>> {
    let rankings: Vec<Vec<usize>> = attributions.iter().map(|scores| ranking(scores)).collect();
    // Lower bounds of the number of kept patches, and numbers that are known to suffice.
    let mut bounds: Vec<(usize, usize)> =
        rankings.iter().map(|ranking| (0, ranking.len())).collect();
    while bounds.iter().any(|(low, high)| low < high) {
        let tried: Vec<usize> = bounds.iter().map(|(low, high)| (low + high) / 2).collect();
        let masks: Vec<Vec<bool>> = rankings
            .iter()
            .zip(&tried)
            .map(|(ranking, &n_kept)| best_kept(ranking, n_kept))
            .collect();
        let answers = masked_answers(vit, images, original, &masks, removal)?;
        for ((bound, n_kept), answer) in bounds.iter_mut().zip(tried).zip(answers) {
            if bound.0 == bound.1 {
                continue;
            }
            if answer.kl <= margin && answer.agrees {
                bound.1 = n_kept;
            } else {
                bound.0 = n_kept + 1;
            }
        }
    }
    Ok(rankings
        .iter()
        .zip(bounds)
        .map(|(ranking, (_, n_kept))| best_kept(ranking, n_kept))
        .collect())
}

/// Patches by descending score; ties are in index order.
pub fn ranking(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// Mask of the first `n_kept` patches of a ranking.
pub fn best_kept(ranking: &[usize], n_kept: usize) -> Vec<bool> {
    let mut mask = vec![false; ranking.len()];
    for &patch in ranking.iter().take(n_kept) {
        mask[patch] = true;
    }
    mask
}

/// Returns the logits, or an error for a model without a classifier.
pub fn logits(logits: Option<Tensor>) -> Result<Tensor> {
    logits.ok_or_else(|| {
        Error::Model("the model has no classifier, so there is no output to preserve".into())
    })
}

/// Class probabilities of an image of the size of `images` without any patch, `[1, classes]`, detached from the graph.
pub fn answer_without_patches(vit: &Vit, images: &Tensor) -> Result<Tensor> {
    // A head that reads the mean of the patches is undefined without any; the masked pass lets the mean fade.
    let none = Tensor::zeros((1, vit.n_patches(images)?), DType::F32, images.device())?;
    let any = images.narrow(0, 0, 1)?;
    let emptied = logits(masked_pass(vit, &any, &none, &Removal::Drop)?.logits)?;
    Ok(softmax(&emptied, D::Minus1)?.detach())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_of_equal_answers_is_zero_and_of_others_is_the_sum() {
        let original = Tensor::new(&[[0.0_f32, 0.0], [0.0, 3.0_f32.ln()]], &Device::Cpu).unwrap();
        let masked = Tensor::new(&[[5.0_f32, 5.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let kl: Vec<f32> = kl_from_logits(&original, &masked)
            .unwrap()
            .to_vec1()
            .unwrap();
        // ¼ ln(¼ / ½) + ¾ ln(¾ / ½).
        let expected = 0.25 * 0.5_f32.ln() + 0.75 * 1.5_f32.ln();
        assert!(kl[0].abs() < 1e-6 && (kl[1] - expected).abs() < 1e-6);
    }

    #[test]
    fn the_best_rated_patches_are_kept_and_ties_go_to_the_earlier() {
        let ranking = ranking(&[0.5, 0.9, 0.5, 0.1]);
        assert_eq!(ranking, [1, 0, 2, 3]);
        assert_eq!(best_kept(&ranking, 2), [true, true, false, false]);
    }
}
