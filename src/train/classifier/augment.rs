//! Pictures as training sees them: shifted, mirrored, and with a share of their patches.

use candle_core::{Device, Result as TensorResult, Tensor};

use super::ClassifierRecipe;
use crate::data::{Dataset, Picture, images_from_pictures, readable};
use crate::error::{Error, Result};
use crate::frame::FrameSize;
use crate::rng::Rng;
use crate::vit::{Replace, Site, Tap, Vit};

/// Pictures of an epoch as one model input, with their labels.
pub(super) fn augmented_batch(
    recipe: &ClassifierRecipe,
    data: &dyn Dataset,
    indices: &[usize],
    epoch: u64,
    (mean, std): ([f32; 3], [f32; 3]),
) -> Result<(Tensor, Vec<u32>)> {
    let (mut pictures, mut labels) = (Vec::new(), Vec::new());
    for (index, picture) in readable(data, indices)? {
        let label = data.label(index).ok_or_else(|| {
            Error::Data(format!("picture {index} of {:?} has no label", data.name()))
        })?;
        let item = (epoch + 1) * data.len() as u64 + index as u64;
        let mut rng = Rng::for_item(recipe.seed, item);
        pictures.push(augment(recipe, picture, &mut rng));
        labels.push(label as u32);
    }
    let images = images_from_pictures(&pictures, mean, std, &Device::Cpu)?;
    Ok((images, labels))
}

/// Shifts a picture at random, gray moving in, and mirrors every other one.
fn augment(recipe: &ClassifierRecipe, picture: Picture, rng: &mut Rng) -> Picture {
    if recipe.shift_px == 0 && !recipe.mirror {
        return picture;
    }
    const GRAY: u8 = 128;
    let FrameSize {
        width_px,
        height_px,
    } = picture.size;
    let mut shift = || rng.below(2 * recipe.shift_px + 1) as i64 - recipe.shift_px as i64;
    let (down, right) = (shift(), shift());
    let mirrored = recipe.mirror && rng.below(2) == 1;
    let mut rgb = vec![GRAY; picture.rgb.len()];
    for row in 0..height_px as i64 {
        for column in 0..width_px as i64 {
            let from_row = row - down;
            let from_column = if mirrored {
                width_px as i64 - 1 - column - right
            } else {
                column - right
            };
            if (0..height_px as i64).contains(&from_row)
                && (0..width_px as i64).contains(&from_column)
            {
                let from = 3 * (from_row as usize * width_px + from_column as usize);
                let to = 3 * (row as usize * width_px + column as usize);
                rgb[to..to + 3].copy_from_slice(&picture.rgb[from..from + 3]);
            }
        }
    }
    Picture {
        size: picture.size,
        rgb,
    }
}

/// A tap that keeps the special tokens and a random share of the patches, the same for the whole batch.
pub(super) fn drop_patches(
    vit: &Vit,
    images: &Tensor,
    keep: f64,
    rng: &mut Rng,
) -> Result<impl Tap + use<>> {
    let (_, _, height_px, width_px) = images.dims4()?;
    let (grid_h, grid_w) = vit.grid(height_px, width_px);
    let n_patches = grid_h * grid_w;
    let n_special = vit.config().n_special_tokens();
    let mut patches: Vec<u32> = (0..n_patches as u32).collect();
    rng.shuffle(&mut patches);
    patches.truncate(((n_patches as f64 * keep).round() as usize).max(1));
    patches.sort_unstable();
    let kept: Vec<u32> = (0..n_special as u32)
        .chain(patches.iter().map(|patch| patch + n_special as u32))
        .collect();
    let kept = Tensor::new(kept, images.device())?;
    Ok(Replace::new(
        Site::Hidden(0),
        move |xs: Tensor| -> TensorResult<Tensor> { xs.index_select(&kept, 1) },
    ))
}
