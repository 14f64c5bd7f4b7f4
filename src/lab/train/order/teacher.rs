//! Relevance of each patch from backward passes on halves of an image.

use candle_core::{DType, Device, Tensor};

use super::OrderRecipe;
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::rollout::GradientRollout;
use vitscope_core::explain::{Explainer, Forward};
use vitscope_core::rng::Rng;
use vitscope_core::vit::Vit;

/// ε: addend in mean shares, so that a patch with a share of zero has a logarithm.
const LEAST_SHARE: f64 = 0.05;
/// Standard deviation of the Gaussian G, as a fraction of the map's side.
const BLUR: f64 = 3.0 / 16.0;

/// r: gradient rollout of random halves of the patches, in mean shares: rows have a mean of 1.
///
/// Each halving takes two passes, one per half, so every patch is in one of them. The halves are the same for all
/// images.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`
/// - `weights`: weights of the explained score, `[batch, classes]`
/// - result: `[batch, patches]`
///
/// # Errors
/// [`Error::Config`] if there is only one patch or no halving; also fails if a shape does not fit.
pub fn rollout_of_halves(
    vit: &Vit,
    images: &Tensor,
    weights: &Tensor,
    halvings: usize,
    rng: &mut Rng,
) -> Result<Tensor> {
    let n_patches = vit.n_patches(images)?;
    if n_patches < 2 || halvings == 0 {
        return Err(Error::Config(format!(
            "halving needs at least two patches and one halving, got {n_patches} patches and {halvings} halvings"
        )));
    }
    let mut patches: Vec<u32> = (0..n_patches as u32).collect();
    let shape = (images.dim(0)?, n_patches);
    let mut sum = Tensor::zeros(shape, DType::F32, images.device())?;
    for _ in 0..halvings {
        rng.shuffle(&mut patches);
        let (one, other) = patches.split_at_mut(n_patches / 2);
        for half in [one, other] {
            half.sort_unstable();
            let shares = rollout_of_patches(vit, images, weights, half)?;
            let places = Tensor::new(&*half, images.device())?;
            sum = sum.index_add(&places, &shares, 1)?;
        }
    }
    Ok((sum / halvings as f64)?)
}

/// Gradient rollout when the model sees only `patches`, in mean shares of them.
///
/// # Shapes
/// - result: `[batch, patches]`, in their order
///
/// # Errors
/// Fails if the model lacks one of the patches, or if a shape does not fit.
pub fn rollout_of_patches(
    vit: &Vit,
    images: &Tensor,
    weights: &Tensor,
    patches: &[u32],
) -> Result<Tensor> {
    let needs = GradientRollout {}.needs(vit);
    let forward = Forward::run_on_patches(vit, images, needs, patches)?;
    let pass = forward.toward_weights(Some(weights.clone()))?;
    let rollout = GradientRollout {}.attribution(&pass)?.detach();
    Ok(in_mean_shares(&rollout)?)
}

/// t: target order of the gates, log(r + ε) + β log(G r + ε) + γ log(a + ε), minus its mean over the patches.
///
/// # Shapes
/// - `rollout`: r, `[batch, patches]`
/// - `attention`: a in any unit, `[batch, patches]`
/// - `grid`: rows and columns of patches
/// - result: `[batch, patches]`
///
/// # Errors
/// Fails if `rollout` or `attention` does not fit `grid`.
pub fn order_of(
    rollout: &Tensor,
    attention: &Tensor,
    grid: (usize, usize),
    OrderRecipe {
        smoothness,
        attention_weight,
        ..
    }: &OrderRecipe,
) -> Result<Tensor> {
    let blurred = rollout.matmul(&gaussian(grid, rollout.device())?)?;
    let attended = in_mean_shares(attention)?;
    let log = |shares: &Tensor| (shares + LEAST_SHARE)?.log();
    let beside = ((log(&blurred)? * *smoothness)? + (log(&attended)? * *attention_weight)?)?;
    let order = (log(rollout)? + beside)?;
    Ok(order.broadcast_sub(&order.mean_keepdim(1)?)?)
}

/// Scales each row to a mean of 1.
fn in_mean_shares(xs: &Tensor) -> candle_core::Result<Tensor> {
    let total = (xs.sum_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?;
    xs.broadcast_div(&total)? * xs.dim(1)? as f64
}

/// G: column j averages over the patches around patch j, with more weight for closer ones; positions outside do not
/// count.
fn gaussian((rows, columns): (usize, usize), device: &Device) -> candle_core::Result<Tensor> {
    let n_patches = rows * columns;
    let near = |a: usize, b: usize, side: usize| {
        let deviations = a.abs_diff(b) as f64 / (BLUR * side as f64);
        (-0.5 * deviations * deviations).exp()
    };
    let mut mean = vec![0f32; n_patches * n_patches];
    for to in 0..n_patches {
        let weight = |from: usize| {
            near(from / columns, to / columns, rows) * near(from % columns, to % columns, columns)
        };
        let total: f64 = (0..n_patches).map(weight).sum();
        for from in 0..n_patches {
            mean[from * n_patches + to] = (weight(from) / total) as f32;
        }
    }
    Tensor::from_vec(mean, (n_patches, n_patches), device)
}
