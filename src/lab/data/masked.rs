//! Images with object masks: a folder of images, and one of PNG masks with the same names.
//!
//! In a mask, 0 is background and 128 is unlabeled; all other values are the object.

use std::path::{Path, PathBuf};

use super::folder::{Folder, file_name};
use super::{Dataset, Picture, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::frame::placement::{Placement, ResizeRule};
use vitscope_core::frame::resize::Resampling;

/// Mask value of an unlabeled pixel.
const UNLABELED: u8 = 128;

/// Images at one size, each with a mask.
pub struct Masked {
    pictures: Folder,
    rule: ResizeRule,
    masks: Vec<PathBuf>,
}

impl Masked {
    /// Lists the images in `folder`, resized by `rule`, and finds the mask of each in `masks`.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no images, or if one has no mask.
    pub fn open(
        folder: &Path,
        masks: &Path,
        rule: ResizeRule,
        resampling: Resampling,
    ) -> Result<Self> {
        let pictures = Folder::open(folder, rule, resampling)?;
        let mask = |path: &Path| {
            let mask = masks.join(file_name(path)).with_extension("png");
            match mask.is_file() {
                true => Ok(mask),
                false => Err(Error::Data(format!(
                    "picture has no mask {mask:?}: {path:?}"
                ))),
            }
        };
        let masks = pictures.paths().map(mask).collect::<Result<_>>()?;
        Ok(Self {
            pictures,
            rule,
            masks,
        })
    }

    /// Returns whether each pixel of the model's input shows the object, `[height, width]`; `None` if this is unknown,
    /// and outside of the image. The mask pixel at its center decides.
    ///
    /// # Errors
    /// [`Error::Data`] if `index` is out of range, or if the mask cannot be read.
    pub fn labels(&self, index: usize) -> Result<Vec<Option<bool>>> {
        let path =
            (self.masks.get(index)).ok_or_else(|| out_of_range(self.name(), index, self.len()))?;
        let mask = image::open(path)
            .map_err(|error| Error::Data(format!("mask cannot be read: {error}: {path:?}")))?
            .into_luma8();
        let frame = FrameSize {
            width_px: mask.width() as usize,
            height_px: mask.height() as usize,
        };
        let placement = Placement::new(&self.rule, frame)?;
        let FrameSize {
            width_px,
            height_px,
        } = placement.image;
        let label = |pixel: usize| {
            let (column, row) = (pixel % width_px, pixel / width_px);
            let (x, y) = placement.frame_point_from_image(column as f64 + 0.5, row as f64 + 0.5);
            let is_inside = x >= 0.0 && y >= 0.0;
            let value = mask
                .get_pixel_checked(x as u32, y as u32)
                .filter(|_| is_inside)?;
            (value.0 != [UNLABELED]).then_some(value.0 != [0])
        };
        Ok((0..width_px * height_px).map(label).collect())
    }
}

impl Dataset for Masked {
    fn name(&self) -> &str {
        self.pictures.name()
    }

    fn len(&self) -> usize {
        self.pictures.len()
    }

    fn size(&self) -> FrameSize {
        self.pictures.size()
    }

    fn classes(&self) -> &[String] {
        self.pictures.classes()
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        self.pictures.picture(index)
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.pictures.label(index)
    }

    fn unreadable(&self) -> Vec<String> {
        self.pictures.unreadable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: FrameSize = FrameSize {
        width_px: 2,
        height_px: 2,
    };

    fn folders() -> (tempfile::TempDir, tempfile::TempDir) {
        let (pictures, masks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        image::RgbImage::new(4, 4)
            .save(pictures.path().join("a.png"))
            .unwrap();
        // Object on the left, lower right corner unlabeled.
        let mask = image::GrayImage::from_fn(4, 4, |x, y| {
            image::Luma([match (x, y) {
                (0 | 1, _) => 1,
                (3, 3) => UNLABELED,
                _ => 0,
            }])
        });
        mask.save(masks.path().join("a.png")).unwrap();
        (pictures, masks)
    }

    #[test]
    fn labels_are_those_at_the_centers_of_the_model_s_pixels() {
        let (pictures, masks) = folders();
        let open = |rule| {
            let masked = Masked::open(pictures.path(), masks.path(), rule, Resampling::Bilinear);
            masked.unwrap().labels(0).unwrap()
        };
        let found = open(ResizeRule::Stretch(SIZE));
        assert_eq!(found, [Some(true), Some(false), Some(true), None]);
        let found = open(ResizeRule::StretchThenCrop {
            resize: FrameSize {
                width_px: 1,
                height_px: 1,
            },
            crop: SIZE,
        });
        // One pixel of the image and an unlabeled black margin.
        assert_eq!(found.iter().flatten().count(), 1);
    }

    #[test]
    fn a_picture_without_a_mask_is_refused_by_name() {
        let (pictures, masks) = folders();
        image::RgbImage::new(4, 4)
            .save(pictures.path().join("b.png"))
            .unwrap();
        let rule = ResizeRule::Stretch(SIZE);
        let error = Masked::open(pictures.path(), masks.path(), rule, Resampling::Bilinear);
        let error = error.err().unwrap().to_string();
        assert!(
            error.contains("has no mask") && error.contains("b.png"),
            "{error}"
        );
    }
}
