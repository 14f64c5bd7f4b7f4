//! Images with object boxes: a folder with a `boxes.json`.
//!
//! The file is a list of objects `{"image": FILE, "label": CLASS, "width": PX, "height": PX, "boxes_px": [[x0, y0, x1,
//! y1]]}`, where `x1` and `y1` are the first pixels outside of the box.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::folder::read_picture;
use super::{Dataset, Picture, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::frame::placement::{PixelRect, Placement, ResizeRule};
use vitscope_core::frame::resize::Resampling;

/// File name of the list of boxes in its folder.
pub const BOXES: &str = "boxes.json";

/// An image in the list.
#[derive(Deserialize)]
struct Entry {
    image: PathBuf,
    label: String,
    width: usize,
    height: usize,
    boxes_px: Vec<[f64; 4]>,
}

/// Images at one size, each with its class and the boxes of its objects.
pub struct Boxed {
    folder: PathBuf,
    name: String,
    rule: ResizeRule,
    resampling: Resampling,
    classes: Vec<String>,
    entries: Vec<Entry>,
}

impl Boxed {
    /// Reads the list of a folder; images are read on demand and resized by `rule`.
    ///
    /// # Errors
    /// [`Error::Data`] if the list does not exist, is empty or is malformed.
    pub fn open(folder: &Path, rule: ResizeRule, resampling: Resampling) -> Result<Self> {
        let list = folder.join(BOXES);
        let text = fs::read_to_string(&list).map_err(|err| Error::io(&list, err))?;
        let entries: Vec<Entry> = serde_json::from_str(&text)
            .map_err(|err| Error::Data(format!("list of boxes is malformed: {err}: {list:?}")))?;
        if entries.is_empty() {
            return Err(Error::Data(format!("list of boxes is empty: {list:?}")));
        }
        let classes: BTreeSet<String> = entries.iter().map(|entry| entry.label.clone()).collect();
        Ok(Self {
            folder: folder.to_owned(),
            name: super::folder::file_name(folder),
            rule,
            resampling,
            classes: classes.into_iter().collect(),
            entries,
        })
    }

    /// Returns the boxes of an image in pixels of the model's input, clipped to the crop. A pixel belongs to a box if
    /// its center lies inside.
    ///
    /// # Errors
    /// [`Error::Data`] if `index` is out of range; [`Error::Shape`] if the image has no size.
    pub fn boxes(&self, index: usize) -> Result<Vec<PixelRect>> {
        let entry = self.entry(index)?;
        let frame = FrameSize {
            width_px: entry.width,
            height_px: entry.height,
        };
        let placement = Placement::new(&self.rule, frame)?;
        let FrameSize {
            width_px,
            height_px,
        } = placement.image;
        let inside = entry.boxes_px.iter().map(|&[x0, y0, x1, y1]| {
            let (left, top) = placement.image_point_from_frame(x0, y0);
            let (right, bottom) = placement.image_point_from_frame(x1, y1);
            let pixel =
                |edge: f64, limit: usize| (edge - 0.5).ceil().clamp(0.0, limit as f64) as usize;
            let (left, top) = (pixel(left, width_px), pixel(top, height_px));
            PixelRect {
                left,
                top,
                width: pixel(right, width_px).saturating_sub(left),
                height: pixel(bottom, height_px).saturating_sub(top),
            }
        });
        Ok(inside
            .filter(|shown| shown.width > 0 && shown.height > 0)
            .collect())
    }

    fn entry(&self, index: usize) -> Result<&Entry> {
        let entry = self.entries.get(index);
        entry.ok_or_else(|| out_of_range(&self.name, index, self.len()))
    }
}

impl Dataset for Boxed {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn size(&self) -> FrameSize {
        self.rule.image_size()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let entry = self.entry(index)?;
        let path = self.folder.join(&entry.image);
        let picture = read_picture(&path)?;
        let size = (picture.size.width_px, picture.size.height_px);
        if size != (entry.width, entry.height) {
            return Err(Error::Data(format!(
                "picture is {} x {} pixels, but its boxes are for {} x {} pixels: {path:?}",
                size.0, size.1, entry.width, entry.height
            )));
        }
        picture.resized(self.rule, self.resampling)
    }

    fn label(&self, index: usize) -> Option<usize> {
        let label = &self.entries.get(index)?.label;
        self.classes.iter().position(|class| class == label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ResizeRule = ResizeRule::Stretch(FrameSize {
        width_px: 4,
        height_px: 2,
    });

    fn folder(list: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(BOXES), list).unwrap();
        image::RgbImage::from_pixel(8, 8, image::Rgb([9, 8, 7]))
            .save(folder.path().join("a.png"))
            .unwrap();
        folder
    }

    fn open(list: &str) -> Result<Boxed> {
        let folder = folder(list);
        let boxed = Boxed::open(folder.path(), RULE, Resampling::Bilinear);
        if let Ok(boxed) = &boxed {
            boxed.picture(0)?;
        }
        boxed
    }

    fn list(width: usize) -> String {
        format!(
            r#"[{{"image": "a.png", "label": "dog", "width": {width}, "height": 8,
                "boxes_px": [[2, 0, 5, 8], [7, 7, 8, 8]]}},
               {{"image": "b.png", "label": "cat", "width": 8, "height": 8, "boxes_px": []}}]"#
        )
    }

    /// 8 pixels become 4 columns and 2 rows: columns 1 to 2.5 contain one center, and a box of half a pixel none.
    #[test]
    fn boxes_are_in_pixels_of_the_model_s_picture() {
        let boxed = open(&list(8)).unwrap();
        let expected = PixelRect {
            left: 1,
            top: 0,
            width: 1,
            height: 2,
        };
        assert_eq!(boxed.boxes(0).unwrap(), [expected]);
        assert_eq!(boxed.boxes(1).unwrap(), []);
        assert_eq!(boxed.classes(), ["cat", "dog"]);
        assert_eq!((boxed.label(0), boxed.label(1)), (Some(1), Some(0)));
    }

    #[test]
    fn lists_that_are_no_lists_and_boxes_of_another_picture_are_refused() {
        let error = |list: &str| open(list).err().unwrap().to_string();
        assert!(error("[]").contains("is empty"));
        assert!(error("{}").contains("is malformed"));
        assert!(error(&list(9)).contains("8 x 8 pixels, but its boxes are for 9 x 8 pixels"));
        let folder = tempfile::tempdir().unwrap();
        assert!(Boxed::open(folder.path(), RULE, Resampling::Bilinear).is_err());
    }
}
