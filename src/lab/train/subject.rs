//! A frozen model that something is trained for, with the pictures.

use candle_core::{Device, Tensor};

use crate::data::{Dataset, Picture, images_from_pictures, labeled_images};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::vit::Vit;

/// The frozen model that gates or an interpreter are trained for, with the pictures.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model, over plain tensors.
    pub vit: &'a Vit,
    /// Size of the pictures that it sees, which may be another than its position embeddings were made for.
    pub size: FrameSize,
    /// Hash of its weights' file, for the card of what is trained.
    pub base_sha256: &'a str,
    /// Mean that pictures are normalized with, by channel.
    pub mean: [f32; 3],
    /// Standard deviation that pictures are normalized with, by channel.
    pub std: [f32; 3],
    /// Pictures to learn from; labels are not used.
    pub train: &'a dyn Dataset,
    /// Pictures to measure on.
    pub test: &'a dyn Dataset,
}

impl Subject<'_> {
    /// Fails where there are no pictures, or not of the model's size.
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

    /// Patches of a picture.
    pub(super) fn n_patches(&self) -> usize {
        let (rows, columns) = self.vit.grid(self.size.height_px, self.size.width_px);
        rows * columns
    }

    /// Pictures of `data`, one of the two halves, as the model's input, without those that cannot be read.
    pub(super) fn images(&self, data: &dyn Dataset, indices: &[usize]) -> Result<Tensor> {
        Ok(self.labeled_images(data, indices)?.0)
    }

    /// Pictures as the model's input.
    pub(super) fn images_of(&self, pictures: &[Picture]) -> Result<Tensor> {
        images_from_pictures(pictures, self.mean, self.std, &Device::Cpu)
    }

    /// The same with their labels.
    pub(super) fn labeled_images(
        &self,
        data: &dyn Dataset,
        indices: &[usize],
    ) -> Result<(Tensor, Vec<Option<usize>>)> {
        labeled_images(data, indices, (self.mean, self.std))
    }

    /// Indices of the first so many pictures to measure on, in chunks of a size.
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
