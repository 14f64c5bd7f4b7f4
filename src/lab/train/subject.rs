//! A frozen model to train for, with its images.

use candle_core::{Device, Tensor};

use crate::data::{Dataset, Picture, images_from_pictures, labeled_images};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::vit::Vit;

/// The frozen model that gates or an interpreter are trained for, with the images.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model, over plain tensors.
    pub vit: &'a Vit,
    /// Size of its input images, which may differ from the size of its position embeddings.
    pub size: FrameSize,
    /// Hash of its weights file, for the card of the trained parts.
    pub base_sha256: &'a str,
    /// Mean of the image normalization, by channel.
    pub mean: [f32; 3],
    /// Standard deviation of the image normalization, by channel.
    pub std: [f32; 3],
    /// Training images; labels are not used.
    pub train: &'a dyn Dataset,
    /// Test images.
    pub test: &'a dyn Dataset,
}

impl Subject<'_> {
    /// Fails if there are no images, or if they do not have the model's size.
    pub(super) fn check(&self) -> Result<()> {
        for data in [self.train, self.test] {
            if data.is_empty() {
                return Err(Error::Data(format!("{:?} has no pictures", data.name())));
            }
            let (size, expected) = (data.size(), self.size);
            if size != expected {
                return Err(Error::Data(format!(
                    "the model expects {}×{} pixels, but {:?} has {}×{}",
                    expected.width_px,
                    expected.height_px,
                    data.name(),
                    size.width_px,
                    size.height_px
                )));
            }
        }
        Ok(())
    }

    /// Returns the device of the model, on which training takes place.
    pub(super) fn device(&self) -> &Device {
        self.vit.device()
    }

    /// Returns the number of patches in an image.
    pub(super) fn n_patches(&self) -> usize {
        let (rows, columns) = self.vit.grid(self.size.height_px, self.size.width_px);
        rows * columns
    }

    /// Reads images of `data`, one of the two halves, as model input, skipping unreadable ones.
    pub(super) fn images(&self, data: &dyn Dataset, indices: &[usize]) -> Result<Tensor> {
        Ok(self.labeled_images(data, indices)?.0)
    }

    /// Converts images to model input.
    pub(super) fn images_of(&self, pictures: &[Picture]) -> Result<Tensor> {
        images_from_pictures(pictures, self.mean, self.std, self.device())
    }

    /// Like [`Self::images`], but also returns the labels.
    pub(super) fn labeled_images(
        &self,
        data: &dyn Dataset,
        indices: &[usize],
    ) -> Result<(Tensor, Vec<Option<usize>>)> {
        labeled_images(data, indices, (self.mean, self.std), self.device())
    }

    /// Returns the indices of the first `n_pictures` test images in chunks of size `chunk`.
    pub(super) fn test_chunks(
        &self,
        n_pictures: usize,
        chunk: usize,
    ) -> impl Iterator<Item = Vec<usize>> + use<> {
        let (n_pictures, chunk) = (self.test.len().min(n_pictures.max(1)), chunk.max(1));
        let starts = (0..n_pictures).step_by(chunk);
        starts.map(move |start| (start..(start + chunk).min(n_pictures)).collect())
    }
}
