//! Augmented training images: shifted, mirrored, mixed, and with a share of their patches.

use candle_core::{Device, Tensor};

use super::ClassifierRecipe;
use crate::data::{Dataset, Picture, images_from_pictures, readable};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::rng::Rng;
use vitscope_core::vit::{KeepPatches, Vit};

/// Label of an augmented image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Label {
    pub(super) class: u32,
    /// Class of the image pasted into it.
    pub(super) other: u32,
    /// Share of the area that the pasted image covers.
    pub(super) other_share: f64,
}

/// Returns augmented images of an epoch as one model input, with their labels.
pub(super) fn augmented_batch(
    recipe: &ClassifierRecipe,
    data: &dyn Dataset,
    indices: &[usize],
    epoch: u64,
    (mean, std): ([f32; 3], [f32; 3]),
    device: &Device,
) -> Result<(Tensor, Vec<Label>)> {
    let (mut pictures, mut classes, mut rngs) = (Vec::new(), Vec::new(), Vec::new());
    for (index, picture) in readable(data, indices)? {
        let label = data.label(index).ok_or_else(|| {
            Error::Data(format!("picture {index} of {:?} has no label", data.name()))
        })?;
        let item = (epoch + 1) * data.len() as u64 + index as u64;
        let mut rng = Rng::for_item(recipe.seed, item);
        pictures.push(augment(recipe, picture, &mut rng));
        classes.push(label as u32);
        rngs.push(rng);
    }
    let (pictures, labels) = mixed(recipe.cutmix, &pictures, &classes, &mut rngs);
    let images = images_from_pictures(&pictures, mean, std, device)?;
    Ok((images, labels))
}

/// Pastes a rectangle of its neighbor into a share of the images. The area of the rectangle is uniform in 0 to 1 before
/// clipping to the image, as in CutMix with α = 1.
fn mixed(
    share: f64,
    pictures: &[Picture],
    classes: &[u32],
    rngs: &mut [Rng],
) -> (Vec<Picture>, Vec<Label>) {
    let neighbors = pictures.iter().zip(classes).cycle().skip(1);
    let all = pictures.iter().zip(classes).zip(neighbors).zip(rngs);
    all.map(|(((picture, &class), (neighbor, &other)), rng)| {
        let mut picture = picture.clone();
        let mut label = Label {
            class,
            other,
            other_share: 0.0,
        };
        // No random number is drawn needlessly, so recipes without this option reproduce their earlier runs.
        if share > 0.0 && f64::from(rng.uniform()) < share {
            let n_pixels = paste(&mut picture, neighbor, rng);
            let area = picture.size.width_px * picture.size.height_px;
            label.other_share = n_pixels as f64 / area as f64;
        }
        (picture, label)
    })
    .unzip()
}

/// Copies a random rectangle; returns its number of pixels.
fn paste(picture: &mut Picture, from: &Picture, rng: &mut Rng) -> usize {
    let FrameSize {
        width_px,
        height_px,
    } = picture.size;
    let edge = f64::from(rng.uniform()).sqrt();
    let mut span = |length: usize| {
        let center = f64::from(rng.uniform()) * length as f64;
        let half = edge * length as f64 / 2.0;
        let first = (center - half).round().max(0.0) as usize;
        let end = (center + half).round().min(length as f64) as usize;
        first..end.max(first)
    };
    let (rows, columns) = (span(height_px), span(width_px));
    for row in rows.clone() {
        let bytes = 3 * (row * width_px + columns.start)..3 * (row * width_px + columns.end);
        picture.rgb[bytes.clone()].copy_from_slice(&from.rgb[bytes]);
    }
    rows.len() * columns.len()
}

/// Shifts an image at random, filling with gray, and mirrors it half of the time.
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

/// Creates a tap that keeps a random share of the patches, the same for the whole batch.
pub(super) fn drop_patches(
    vit: &Vit,
    images: &Tensor,
    keep: f64,
    rng: &mut Rng,
) -> Result<KeepPatches> {
    let n_patches = vit.n_patches(images)?;
    let mut patches: Vec<u32> = (0..n_patches as u32).collect();
    rng.shuffle(&mut patches);
    patches.truncate(((n_patches as f64 * keep).round() as usize).max(1));
    patches.sort_unstable();
    let n_special = vit.config().n_special_tokens();
    Ok(KeepPatches::new(&patches, n_special, images.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(value: u8) -> Picture {
        let size = FrameSize {
            width_px: 20,
            height_px: 10,
        };
        Picture {
            size,
            rgb: vec![value; 3 * 20 * 10],
        }
    }

    #[test]
    fn a_mixed_picture_shows_as_much_of_the_other_as_its_label_says() {
        let pictures = [flat(0), flat(1), flat(2)];
        let mut shares = Vec::new();
        for seed in 0..100 {
            let mut rngs = [0, 1, 2].map(|item| Rng::for_item(seed, item));
            let (mixed, labels) = mixed(0.5, &pictures, &[7, 8, 9], &mut rngs);
            for (idx, (picture, label)) in mixed.iter().zip(&labels).enumerate() {
                let [own, other] = [idx as u8, (idx as u8 + 1) % 3];
                assert_eq!(
                    (label.class, label.other),
                    (7 + u32::from(own), 7 + u32::from(other))
                );
                let of_other = picture.rgb.iter().filter(|value| **value == other).count();
                assert!(picture.rgb.iter().all(|value| [own, other].contains(value)));
                assert_eq!(
                    label.other_share,
                    of_other as f64 / picture.rgb.len() as f64
                );
                shares.push(label.other_share);
            }
        }
        let mixed = shares.iter().filter(|share| **share > 0.0).count();
        assert!((120..180).contains(&mixed), "{mixed} of 300");
    }
}
