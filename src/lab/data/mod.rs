//! Labeled images for training and evaluation.
//!
//! A [`Dataset`] provides 8-bit RGB images of one size, by index and in any order, so a training loop only needs to
//! remember a seeded shuffle of indices. Augmentation happens elsewhere.

pub mod biased;
pub mod boxes;
pub mod celeba;
pub mod cifar;
pub mod clip;
pub mod folder;
pub mod masked;
pub mod red_patches;
pub(crate) mod source;

pub use source::{BIASED_PATCHES, Halves, RED_PATCHES, open, open_grouped, open_labeled};

use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::RgbImage;

use vitscope_core::error::{Error, Result};
use vitscope_core::frame::normalize::Normalization;
use vitscope_core::frame::placement::ResizeRule;
use vitscope_core::frame::resize::{Resampling, Resizer};
use vitscope_core::frame::{Frame, FrameSize, PixelFormat, PixelLayout, Pts};

/// An image as stored: 8 bits per channel, not normalized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Size in pixels.
    pub size: FrameSize,
    /// `[height, width, 3]`, red first.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Converts the image to a type of the crate `image`.
    ///
    /// # Errors
    /// [`Error::Data`] if the number of bytes does not match the size.
    pub fn into_image(self) -> Result<RgbImage> {
        let (width_px, height_px) = (self.size.width_px as u32, self.size.height_px as u32);
        RgbImage::from_raw(width_px, height_px, self.rgb)
            .ok_or_else(|| Error::Data("picture's number of bytes does not match its size".into()))
    }

    /// Resizes the image by `rule`.
    ///
    /// # Errors
    /// Fails if the image is too small to be resized.
    pub fn resized(self, rule: ResizeRule, resampling: Resampling) -> Result<Self> {
        let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, self.size));
        let frame = Frame::new(0, Pts(0), None, layout, Box::new(self.rgb))?;
        let (rgb, _) = Resizer::new(rule, resampling).rgb_from_frame(&frame)?;
        Ok(Self {
            size: rule.image_size(),
            rgb,
        })
    }
}

/// Half of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Training half.
    Train,
    /// Test half, never used for training.
    Test,
}

/// Images of one size, some or all with the index of their class.
pub trait Dataset: Send + Sync {
    /// Name in messages and records.
    fn name(&self) -> &str;

    /// Number of images.
    fn len(&self) -> usize;

    /// Returns true if there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of every image.
    fn size(&self) -> FrameSize;

    /// Class names by index; empty if the images have no labels.
    fn classes(&self) -> &[String];

    /// Returns the image at `index`, the same on every call.
    ///
    /// # Errors
    /// [`Error::Data`] if `index` is out of range or the image cannot be read.
    fn picture(&self, index: usize) -> Result<Picture>;

    /// Returns the class of the image at `index`, if known.
    fn label(&self, index: usize) -> Option<usize>;

    /// Returns the images found to be unreadable so far, which are left out, each with the reason.
    fn unreadable(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Images of which some belong to a group.
pub trait Grouped: Dataset {
    /// Attribute that defines the group.
    fn attribute(&self) -> &str;

    /// Returns whether the image at `index` belongs to the group, if known.
    fn in_group(&self, index: usize) -> Option<bool>;
}

/// Reads images by index and skips unreadable ones; returns each with its index.
///
/// # Errors
/// Returns the first failure if none of them can be read.
pub fn readable(data: &dyn Dataset, indices: &[usize]) -> Result<Vec<(usize, Picture)>> {
    let mut pictures = Vec::with_capacity(indices.len());
    let mut failure = None;
    for &index in indices {
        match data.picture(index) {
            Ok(picture) => pictures.push((index, picture)),
            Err(error) => _ = failure.get_or_insert(error),
        }
    }
    match failure {
        Some(error) if pictures.is_empty() => Err(error),
        _ => Ok(pictures),
    }
}

/// Reads images by index into one model input on `device`, with their labels, skipping unreadable images.
///
/// # Shapes
/// - images: `[images, 3, height, width]`
///
/// # Errors
/// As for [`readable`] and [`images_from_pictures`].
pub fn labeled_images(
    data: &dyn Dataset,
    indices: &[usize],
    (mean, std): ([f32; 3], [f32; 3]),
    device: &Device,
) -> Result<(Tensor, Vec<Option<usize>>)> {
    let (indices, pictures): (Vec<usize>, Vec<Picture>) =
        readable(data, indices)?.into_iter().unzip();
    let labels = indices.iter().map(|&index| data.label(index)).collect();
    let images = images_from_pictures(&pictures, mean, std, device)?;
    Ok((images, labels))
}

/// Converts images to one model input. Each channel is shifted by `mean` and divided by `std`, both in units of the
/// brightest value.
///
/// # Shapes
/// - result: `[images, 3, height, width]`
///
/// # Errors
/// [`Error::Data`] if there are no images, [`Error::Shape`] if their sizes differ.
pub fn images_from_pictures(
    pictures: &[Picture],
    mean: [f32; 3],
    std: [f32; 3],
    device: &Device,
) -> Result<Tensor> {
    let size = pictures
        .first()
        .ok_or_else(|| Error::Data("a batch needs at least one picture".into()))?
        .size;
    let n_pixels = size.width_px * size.height_px;
    let normalization = Normalization::new(mean, std);
    let mut planes = Vec::with_capacity(pictures.len() * 3 * n_pixels);
    for picture in pictures {
        if picture.size != size || picture.rgb.len() != 3 * n_pixels {
            return Err(Error::Shape {
                expected: format!("{size:?} with {} bytes", 3 * n_pixels),
                got: format!("{:?} with {} bytes", picture.size, picture.rgb.len()),
            });
        }
        normalization.append_planes(&picture.rgb, &mut planes);
    }
    let shape = (pictures.len(), 3, size.height_px, size.width_px);
    Ok(Tensor::from_vec(planes, shape, device)?)
}

/// Creates the error for an index past the end.
fn out_of_range(name: &str, index: usize, len: usize) -> Error {
    Error::Data(format!(
        "{name} has {len} pictures and none at index {index}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width_px: usize, rgb: &[u8]) -> Picture {
        let height_px = rgb.len() / 3 / width_px;
        Picture {
            size: FrameSize {
                width_px,
                height_px,
            },
            rgb: rgb.to_vec(),
        }
    }

    #[test]
    fn channels_become_planes_and_black_and_white_become_minus_one_and_one() {
        let pictures = [picture(2, &[0, 255, 0, 255, 0, 0])];
        let images =
            images_from_pictures(&pictures, [0.5; 3], [0.5; 3], &Device::Cpu).expect("one size");
        assert_eq!(images.dims(), [1, 3, 1, 2]);
        let values: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [-1.0, 1.0, 1.0, -1.0, -1.0, -1.0]);
    }

    #[test]
    fn pictures_of_two_sizes_make_no_batch() {
        let pictures = [picture(1, &[0; 3]), picture(2, &[0; 6])];
        let result = images_from_pictures(&pictures, [0.5; 3], [0.5; 3], &Device::Cpu);
        assert!(matches!(result, Err(Error::Shape { .. })));
    }

    #[test]
    fn no_pictures_make_no_batch() {
        let result = images_from_pictures(&[], [0.5; 3], [0.5; 3], &Device::Cpu);
        assert!(matches!(result, Err(Error::Data(_))));
    }
}
