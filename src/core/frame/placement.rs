//! Placement of the model's image in the frame: resize, crop and their exact inverse.
//!
//! A [`ResizeRule`] describes how a Hugging Face preprocessor converts a picture to the model's size. Sizes and crop
//! positions match `transformers` 5.23 exactly: the longer edge is rounded down, the crop starts at `(size - crop) / 2`
//! rounded toward 0, and a crop larger than the picture is padded with black. A [`Placement`] is the inverse for one
//! frame size: the part of the frame that the image shows. [`super::resize`] handles the resampling of pixels.

use std::fmt;
use std::str::FromStr;

use super::FrameSize;
use crate::error::{Error, Result, by_name};

/// The part of a picture that the model sees, overriding its preprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The largest centered part with the aspect ratio of the model's image.
    Crop,
    /// The whole picture, distorted if its aspect ratio differs.
    Stretch,
    /// The whole picture at its aspect ratio, with black bars if necessary.
    Pad,
}

impl Fit {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Crop, Self::Stretch, Self::Pad];

    /// Name on the command line and in properties of elements.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crop => "crop",
            Self::Stretch => "stretch",
            Self::Pad => "pad",
        }
    }

    /// The rule that converts pictures to `image` with this fit.
    pub fn rule(self, image: FrameSize) -> ResizeRule {
        match self {
            Self::Crop => ResizeRule::ShortestEdge {
                edge_px: image.width_px.max(image.height_px),
                crop: image,
            },
            Self::Stretch => ResizeRule::Stretch(image),
            Self::Pad => ResizeRule::Pad(image),
        }
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fit {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("input rule", name, &Self::ALL, Self::name)
    }
}

/// How a picture is converted to the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeRule {
    /// Resizes both edges to the model's size, regardless of aspect ratio (`ViTImageProcessor`).
    Stretch(FrameSize),
    /// Resizes the shorter edge, then crops the center (`BitImageProcessor`, DINOv2).
    ShortestEdge {
        /// Length of the shorter edge after resizing.
        edge_px: usize,
        /// The model's size.
        crop: FrameSize,
    },
    /// Resizes both edges, then crops the center (`DeiTImageProcessor`).
    StretchThenCrop {
        /// Size after resizing.
        resize: FrameSize,
        /// The model's size.
        crop: FrameSize,
    },
    /// Resizes the picture to fit the model's size at its aspect ratio, and centers it on black.
    Pad(FrameSize),
}

/// A rectangle in frame pixels; may extend beyond the frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// Left edge; pixel 0 spans 0 to 1.
    pub left: f64,
    /// Top edge.
    pub top: f64,
    /// Width in pixels.
    pub width: f64,
    /// Height in pixels.
    pub height: f64,
}

/// A rectangle of whole pixels inside a frame; empty if width or height is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelRect {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

/// The part of a frame that the model's image shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Size of the frame.
    pub frame: FrameSize,
    /// Size of the model's image.
    pub image: FrameSize,
    /// The part of the frame that the image shows.
    pub region: Region,
}

/// One axis of a resize and crop: `frame` pixels become `resized`, of which `image` are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    frame: usize,
    resized: usize,
    image: usize,
}

impl ResizeRule {
    /// Size of the model's image.
    pub fn image_size(&self) -> FrameSize {
        match *self {
            Self::Stretch(size) | Self::Pad(size) => size,
            Self::ShortestEdge { crop, .. } | Self::StretchThenCrop { crop, .. } => crop,
        }
    }

    /// The same rule with all sizes multiplied by `factor`.
    #[must_use]
    pub fn times(&self, factor: usize) -> Self {
        let larger = |size: FrameSize| FrameSize {
            width_px: factor * size.width_px,
            height_px: factor * size.height_px,
        };
        match *self {
            Self::Stretch(size) => Self::Stretch(larger(size)),
            Self::Pad(size) => Self::Pad(larger(size)),
            Self::ShortestEdge { edge_px, crop } => Self::ShortestEdge {
                edge_px: factor * edge_px,
                crop: larger(crop),
            },
            Self::StretchThenCrop { resize, crop } => Self::StretchThenCrop {
                resize: larger(resize),
                crop: larger(crop),
            },
        }
    }

    /// Horizontal and vertical axis for a frame.
    ///
    /// # Errors
    /// [`Error::Shape`] if the frame or the rule has an edge of length 0, or one that overflows.
    pub(super) fn axes(&self, frame: FrameSize) -> Result<(Axis, Axis)> {
        let resized = match *self {
            Self::Stretch(size) => Some(size),
            Self::StretchThenCrop { resize, .. } => Some(resize),
            Self::ShortestEdge { edge_px, .. } => shortest_edge_to(edge_px, frame),
            Self::Pad(size) => inside_of(size, frame),
        };
        let image = self.image_size();
        let is_empty = |size: FrameSize| size.width_px == 0 || size.height_px == 0;
        match resized {
            Some(resized) if ![frame, resized, image].into_iter().any(is_empty) => {
                let axis = |frame, resized, image| Axis {
                    frame,
                    resized,
                    image,
                };
                Ok((
                    axis(frame.width_px, resized.width_px, image.width_px),
                    axis(frame.height_px, resized.height_px, image.height_px),
                ))
            }
            _ => Err(Error::Shape {
                expected: format!("a frame that {self:?} can resize"),
                got: format!("{} x {} pixels", frame.width_px, frame.height_px),
            }),
        }
    }
}

/// The size with a shorter edge of `edge_px`; the longer one is rounded down.
fn shortest_edge_to(edge_px: usize, frame: FrameSize) -> Option<FrameSize> {
    let (width, height) = (frame.width_px, frame.height_px);
    let (short, long) = (width.min(height), width.max(height));
    let long_px = edge_px.checked_mul(long)?.checked_div(short)?;
    let (width_px, height_px) = if width <= height {
        (edge_px, long_px)
    } else {
        (long_px, edge_px)
    };
    Some(FrameSize {
        width_px,
        height_px,
    })
}

/// The largest size with the frame's aspect ratio that fits in `size`, rounded to whole pixels.
fn inside_of(size: FrameSize, frame: FrameSize) -> Option<FrameSize> {
    let (width, height) = (frame.width_px, frame.height_px);
    let across = size.width_px.checked_mul(height)?;
    let down = size.height_px.checked_mul(width)?;
    let rounded = |product: usize, edge: usize| {
        let twice = product.checked_mul(2)?.checked_add(edge)?;
        Some(twice.checked_div(edge.checked_mul(2)?)?.max(1))
    };
    Some(if across <= down {
        FrameSize {
            width_px: size.width_px,
            height_px: rounded(across, width)?,
        }
    } else {
        FrameSize {
            width_px: rounded(down, height)?,
            height_px: size.height_px,
        }
    })
}

impl Axis {
    /// Start of the crop in the resized picture; negative if the crop is larger.
    fn crop_start(self) -> f64 {
        // torchvision, the default of transformers, rounds toward 0: for an odd difference, the larger black margin is
        // at the right and bottom.
        ((self.resized as f64 - self.image as f64) / 2.0).trunc()
    }

    /// Converts a position in the resized picture to frame pixels.
    fn frame_from_resized(self, position: f64) -> f64 {
        position * self.frame as f64 / self.resized as f64
    }

    /// Start and length of the region that the whole image shows, in frame pixels.
    fn region(self) -> (f64, f64) {
        (
            self.frame_from_resized(self.crop_start()),
            self.frame_from_resized(self.image as f64),
        )
    }

    /// First image pixel that shows the frame, and number of such pixels; the others are black.
    pub(super) fn shown(self) -> (usize, usize) {
        let first = (-self.crop_start()).max(0.0) as usize;
        (first, self.image.min(self.resized))
    }

    /// Start and length of the region that the pixels of [`Self::shown`] show, in frame pixels.
    pub(super) fn shown_region(self) -> (f64, f64) {
        let start = self.frame_from_resized(self.crop_start().max(0.0));
        let len = self.frame_from_resized(self.shown().1 as f64);
        (start, len.min(self.frame as f64 - start))
    }
}

impl Placement {
    /// Computes the placement of the image of `rule` in frames of size `frame`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the frame or the rule has an edge of length 0.
    pub fn new(rule: &ResizeRule, frame: FrameSize) -> Result<Self> {
        let (horizontal, vertical) = rule.axes(frame)?;
        let (left, width) = horizontal.region();
        let (top, height) = vertical.region();
        Ok(Self {
            frame,
            image: rule.image_size(),
            region: Region {
                left,
                top,
                width,
                height,
            },
        })
    }

    /// Converts an image position to a frame position, both in pixels from the top left corner.
    pub fn frame_point_from_image(&self, x: f64, y: f64) -> (f64, f64) {
        let Region {
            left,
            top,
            width,
            height,
        } = self.region;
        (
            left + x * width / self.image.width_px as f64,
            top + y * height / self.image.height_px as f64,
        )
    }

    /// Converts a frame position to an image position, both in pixels from the top left corner.
    pub fn image_point_from_frame(&self, x: f64, y: f64) -> (f64, f64) {
        let Region {
            left,
            top,
            width,
            height,
        } = self.region;
        (
            (x - left) * self.image.width_px as f64 / width,
            (y - top) * self.image.height_px as f64 / height,
        )
    }

    /// The frame pixels whose centers lie in the region.
    pub fn pixels(&self) -> PixelRect {
        let span = |start: f64, len: f64, limit: usize| {
            let first_centre_at = |edge: f64| (edge - 0.5).ceil().clamp(0.0, limit as f64) as usize;
            let (first, end) = (first_centre_at(start), first_centre_at(start + len));
            (first, end.saturating_sub(first))
        };
        let region = self.region;
        let (left, width) = span(region.left, region.width, self.frame.width_px);
        let (top, height) = span(region.top, region.height, self.frame.height_px);
        PixelRect {
            left,
            top,
            width,
            height,
        }
    }

    /// Position in the patch grid of each column of [`Self::pixels`]: 0 to `n_columns`, where patch `i` spans `i` to
    /// `i + 1`.
    pub fn columns_in_grid(&self, n_columns: usize) -> Vec<f64> {
        let PixelRect { left, width, .. } = self.pixels();
        positions(left, width, self.region.left, self.region.width, n_columns)
    }

    /// Position in the patch grid of each row of [`Self::pixels`].
    pub fn rows_in_grid(&self, n_rows: usize) -> Vec<f64> {
        let PixelRect { top, height, .. } = self.pixels();
        positions(top, height, self.region.top, self.region.height, n_rows)
    }

    /// Row and column of the patch at the center of frame pixel (`x`, `y`), in a grid of `(rows, columns)`; `None` for
    /// a pixel outside the region.
    pub fn patch_at(&self, x: usize, y: usize, grid: (usize, usize)) -> Option<(usize, usize)> {
        let shown = self.pixels();
        let along = |pixel: usize, first, len, start, extent, n_patches: usize| {
            let is_shown = (first..first + len).contains(&pixel) && n_patches > 0;
            is_shown
                .then(|| (position(pixel, start, extent, n_patches) as usize).min(n_patches - 1))
        };
        let region = self.region;
        Some((
            along(
                y,
                shown.top,
                shown.height,
                region.top,
                region.height,
                grid.0,
            )?,
            along(
                x,
                shown.left,
                shown.width,
                region.left,
                region.width,
                grid.1,
            )?,
        ))
    }
}

/// Grid positions of the centers of `len` pixels from `first` on.
fn positions(first: usize, len: usize, start: f64, extent: f64, n_patches: usize) -> Vec<f64> {
    (first..first + len)
        .map(|pixel| position(pixel, start, extent, n_patches))
        .collect()
}

/// Grid position of a pixel's center, in a region of `extent` pixels that starts at `start`.
fn position(pixel: usize, start: f64, extent: f64, n_patches: usize) -> f64 {
    (pixel as f64 + 0.5 - start) * n_patches as f64 / extent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width_px: usize, height_px: usize) -> FrameSize {
        FrameSize {
            width_px,
            height_px,
        }
    }

    #[track_caller]
    fn check(rule: ResizeRule, frame: FrameSize, expected: [f64; 4]) {
        let region = Placement::new(&rule, frame).unwrap().region;
        let got = [region.left, region.top, region.width, region.height];
        for (got, expected) in got.into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-9, "{region:?}");
        }
    }

    #[test]
    fn a_stretched_image_shows_the_whole_frame() {
        check(
            ResizeRule::Stretch(size(224, 224)),
            size(321, 241),
            [0.0, 0.0, 321.0, 241.0],
        );
    }

    #[test]
    fn the_long_edge_is_rounded_down_before_the_centre_is_cut_out() {
        // 256 * 321 / 241 = 340.98, so 340 columns; the crop starts at column 58 and row 16.
        let rule = ResizeRule::ShortestEdge {
            edge_px: 256,
            crop: size(224, 224),
        };
        let (x, y) = (321.0 / 340.0, 241.0 / 256.0);
        check(
            rule,
            size(321, 241),
            [58.0 * x, 16.0 * y, 224.0 * x, 224.0 * y],
        );
    }

    #[test]
    fn a_crop_larger_than_the_picture_reaches_outside_of_the_frame() {
        let rule = ResizeRule::ShortestEdge {
            edge_px: 20,
            crop: size(25, 25),
        };
        // 20 x 20; two black pixels at the left and top, three at the other sides.
        check(rule, size(40, 40), [-4.0, -4.0, 50.0, 50.0]);
    }

    #[test]
    fn a_padded_image_shows_the_whole_frame_between_bars() {
        // 112 x 63 of 112 rows: 24 black ones above, 25 below.
        let rule = Fit::Pad.rule(size(112, 112));
        check(
            rule,
            size(1280, 720),
            [0.0, -24.0 * 80.0 / 7.0, 1280.0, 1280.0],
        );
        check(
            rule,
            size(720, 1280),
            [-24.0 * 80.0 / 7.0, 0.0, 1280.0, 1280.0],
        );
        check(rule, size(500, 500), [0.0, 0.0, 500.0, 500.0]);
        // Even the thinnest frame remains visible.
        let placement = Placement::new(&rule, size(4000, 1)).unwrap();
        assert_eq!(placement.pixels().width, 4000);
    }

    #[test]
    fn a_fit_is_called_as_it_is_written() {
        for fit in Fit::ALL {
            assert_eq!(fit.to_string().parse::<Fit>().unwrap(), fit);
        }
        let error = "squeeze".parse::<Fit>().unwrap_err().to_string();
        assert!(error.contains("crop, stretch, pad"), "{error}");
    }

    #[test]
    fn a_frame_without_pixels_is_an_error() {
        let rule = ResizeRule::ShortestEdge {
            edge_px: 256,
            crop: size(224, 224),
        };
        for frame in [size(0, 0), size(0, 5), size(5, 0)] {
            assert!(matches!(
                Placement::new(&rule, frame),
                Err(Error::Shape { .. })
            ));
        }
        assert!(Placement::new(&ResizeRule::Stretch(size(0, 4)), size(5, 5)).is_err());
        assert!(Placement::new(&rule, size(1, usize::MAX)).is_err());
    }

    #[test]
    fn a_pixel_belongs_to_the_patch_over_its_centre() {
        let placement = Placement::new(&ResizeRule::Stretch(size(8, 8)), size(10, 5)).unwrap();
        // Two columns of five pixels; two rows of two and a half. The center of the middle row is on the border and
        // belongs to the lower patch.
        assert_eq!(placement.patch_at(4, 1, (2, 2)), Some((0, 0)));
        assert_eq!(placement.patch_at(5, 2, (2, 2)), Some((1, 1)));
        assert_eq!(placement.patch_at(10, 0, (2, 2)), None);
    }
}
