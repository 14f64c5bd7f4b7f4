//! A contact sheet: thumbnails of a video with times and captions, as one PNG or JPEG.
//!
//! The number of frames is not known in advance. The sheet keeps every frame until it is full, then every second one,
//! and so on; at any time it holds equally spaced frames from the first to almost the last.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::ImageFormat;

use super::text;
use vitscope_core::error::{Error, Result};
use vitscope_core::files::write_whole;
use vitscope_core::frame::placement::{PixelRect, ResizeRule};
use vitscope_core::frame::resize::{Resampling, Resizer};
use vitscope_core::frame::{Frame, FrameSize, PixelFormat, PixelLayout, Pts};

/// Longer edge of a thumbnail in pixels.
const THUMBNAIL_PX: usize = 320;

/// Gap between thumbnails, and around all of them, in pixels.
const GAP_PX: usize = 12;

/// Line height of a label in pixels.
const LABEL_PX: usize = 18;

/// Gray level of the background.
const BACKGROUND: u8 = 24;

/// Gray level of the labels.
const INK: u8 = 225;

/// Maximum number of letters in a name, so that room is left for a caption.
const NAME_LETTERS: usize = 18;

/// Collector of thumbnails of a video.
pub struct Sheet {
    max_thumbnails: usize,
    /// Frames from one thumbnail to the next, a power of two.
    every: u64,
    n_frames: u64,
    thumbnails: Vec<Thumbnail>,
}

struct Thumbnail {
    size: FrameSize,
    rgb: Vec<u8>,
    label: String,
}

impl Sheet {
    /// Creates a sheet of at most `max_thumbnails` thumbnails, and more than half as many for a long video.
    pub fn new(max_thumbnails: usize) -> Self {
        Self {
            max_thumbnails: max_thumbnails.max(1),
            every: 1,
            n_frames: 0,
            thumbnails: Vec::new(),
        }
    }

    /// Offers the next frame to the sheet, which decides whether to keep it. The label is `name`, or otherwise the
    /// timestamp.
    ///
    /// # Errors
    /// [`Error::Shape`] if the frame has no pixels or its planes do not fit its format.
    pub fn add(&mut self, frame: &Frame, name: Option<&str>, caption: &str) -> Result<()> {
        let frame_idx = self.n_frames;
        self.n_frames += 1;
        if !frame_idx.is_multiple_of(self.every) {
            return Ok(());
        }
        if self.thumbnails.len() == self.max_thumbnails {
            let mut thumbnail_idx = 0;
            self.thumbnails.retain(|_| {
                thumbnail_idx += 1;
                thumbnail_idx % 2 == 1
            });
            self.every *= 2;
            if !frame_idx.is_multiple_of(self.every) {
                return Ok(());
            }
        }
        let name = name.map_or_else(|| clock(frame.pts), shortened);
        let label = format!("{name}  {caption}");
        self.thumbnails.push(Thumbnail::new(frame, label)?);
        Ok(())
    }

    /// Returns the number of thumbnails kept so far.
    pub fn n_thumbnails(&self) -> usize {
        self.thumbnails.len()
    }

    /// Writes the sheet as an image file, atomically.
    ///
    /// # Errors
    /// [`Error::Media`] if no frame was added, [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path, format: ImageFormat) -> Result<()> {
        if self.thumbnails.is_empty() {
            return Err(Error::Media(format!(
                "there are no frames for the contact sheet: {path:?}"
            )));
        }
        let sheet = self.draw()?;
        let FrameSize {
            width_px,
            height_px,
        } = sheet.size();
        let failed = |e: image::ImageError| Error::io(path, std::io::Error::other(e));
        let too_large = |e| Error::io(path, std::io::Error::other(e));
        let mut bytes = Cursor::new(Vec::new());
        image::write_buffer_with_format(
            &mut bytes,
            sheet.bytes(),
            u32::try_from(width_px).map_err(too_large)?,
            u32::try_from(height_px).map_err(too_large)?,
            image::ExtendedColorType::Rgb8,
            format,
        )
        .map_err(failed)?;
        write_whole(path, bytes.get_ref())
    }

    /// Draws all thumbnails on one RGB frame.
    fn draw(&self) -> Result<Frame> {
        let n_columns = n_columns(self.thumbnails.len());
        let largest = |edge: fn(&FrameSize) -> usize| {
            self.thumbnails
                .iter()
                .map(|t| edge(&t.size))
                .max()
                .unwrap_or(0)
        };
        let (cell_width, picture_height) = (largest(|s| s.width_px), largest(|s| s.height_px));
        let cell_height = picture_height + LABEL_PX + GAP_PX / 2;
        let n_rows = self.thumbnails.len().div_ceil(n_columns);
        let size = FrameSize {
            width_px: n_columns * (cell_width + GAP_PX) + GAP_PX,
            height_px: n_rows * (cell_height + GAP_PX) + GAP_PX,
        };
        let background = vec![BACKGROUND; 3 * size.width_px * size.height_px];
        let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, size));
        let mut sheet = Frame::new(0, Pts(0), None, layout, Box::new(background))?;

        for (thumbnail_idx, thumbnail) in self.thumbnails.iter().enumerate() {
            let left = GAP_PX + thumbnail_idx % n_columns * (cell_width + GAP_PX);
            let top = GAP_PX + thumbnail_idx / n_columns * (cell_height + GAP_PX);
            let FrameSize {
                width_px,
                height_px,
            } = thumbnail.size;
            let rows = sheet.bytes_mut()?.chunks_exact_mut(3 * size.width_px);
            for (row, picture_row) in rows.skip(top).zip(thumbnail.rgb.chunks_exact(3 * width_px)) {
                row[3 * left..3 * (left + width_px)].copy_from_slice(picture_row);
            }
            let room = PixelRect {
                left,
                top: top + height_px + GAP_PX / 2,
                width: cell_width,
                height: LABEL_PX,
            };
            text::draw_label(&mut sheet, room, LABEL_PX as f32, INK, &thumbnail.label)?;
        }
        Ok(sheet)
    }
}

impl Thumbnail {
    fn new(frame: &Frame, label: String) -> Result<Self> {
        let size = thumbnail_size(&frame.layout);
        let mut resizer = Resizer::new(ResizeRule::Stretch(size), Resampling::Bilinear);
        let (rgb, _) = resizer.rgb_from_frame(frame)?;
        Ok(Self { size, rgb, label })
    }
}

/// Returns the display size of a frame with its longer edge at [`THUMBNAIL_PX`].
fn thumbnail_size(layout: &PixelLayout) -> FrameSize {
    let (par_width, par_height) = layout.pixel_aspect;
    let width = layout.size.width_px as f64 * f64::from(par_width.max(1));
    let height = layout.size.height_px as f64 * f64::from(par_height.max(1));
    let scale = THUMBNAIL_PX as f64 / width.max(height);
    FrameSize {
        width_px: ((width * scale).round() as usize).max(1),
        height_px: ((height * scale).round() as usize).max(1),
    }
}

/// Returns the number of columns of a sheet with about the shape of a wide video and few empty cells in its last row.
fn n_columns(n_thumbnails: usize) -> usize {
    let about = (1.5 * n_thumbnails as f64).sqrt().round().max(1.0) as usize;
    let n_empty = |n_columns: usize| n_thumbnails.next_multiple_of(n_columns) - n_thumbnails;
    [about, about + 1, about - 1]
        .into_iter()
        .filter(|&n_columns| n_columns > 0)
        .min_by_key(|&n_columns| n_empty(n_columns))
        .unwrap_or(about)
}

/// Shortens a long name in the middle: files of a series differ at the end.
fn shortened(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    match letters.len().checked_sub(NAME_LETTERS) {
        None | Some(0) => name.to_owned(),
        Some(n_left_out) => {
            let head = NAME_LETTERS / 3;
            let tail = letters.iter().skip(head + n_left_out + 1);
            letters
                .iter()
                .take(head)
                .chain(['…'].iter())
                .chain(tail)
                .collect()
        }
    }
}

/// Formats a time as `0:03.25`, or `1:02:03.25` from one hour on.
fn clock(pts: Pts) -> String {
    let hundredths = pts.0 / 10_000_000;
    let (secs, hundredths) = (hundredths / 100, hundredths % 100);
    let (minutes, secs) = (secs / 60, secs % 60);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    if hours == 0 {
        format!("{minutes}:{secs:02}.{hundredths:02}")
    } else {
        format!("{hours}:{minutes:02}:{secs:02}.{hundredths:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shortened("a.png"), "a.png");
        assert_eq!(shortened("eighteen-chars.png"), "eighteen-chars.png");
        assert_eq!(shortened("a_long_holiday_17.png"), "a_long…iday_17.png");
        assert_eq!(shortened("Straßenbahnhaltestelle.jpg").chars().count(), 18);
    }

    #[test]
    fn times_are_cut_to_hundredths() {
        assert_eq!(clock(Pts(0)), "0:00.00");
        assert_eq!(clock(Pts(63_259_999_999)), "1:03.25");
        assert_eq!(clock(Pts(3_723_000_000_000)), "1:02:03.00");
    }

    #[test]
    fn thumbnails_fill_their_rows_where_they_can() {
        let shapes = [(1, 1), (2, 2), (3, 3), (6, 3), (12, 4), (18, 6), (24, 6)];
        for (n_thumbnails, expected) in shapes {
            assert_eq!(
                n_columns(n_thumbnails),
                expected,
                "{n_thumbnails} thumbnails"
            );
        }
    }

    #[test]
    fn thumbnails_show_pixels_that_are_not_square_in_their_true_shape() {
        let size = FrameSize {
            width_px: 720,
            height_px: 576,
        };
        let mut layout = PixelLayout::packed(PixelFormat::I420, size);
        layout.pixel_aspect = (64, 45);
        let FrameSize {
            width_px,
            height_px,
        } = thumbnail_size(&layout);
        assert_eq!((width_px, height_px), (320, 180));
    }

    #[test]
    fn kept_frames_are_evenly_spread_whatever_the_length() {
        let size = FrameSize {
            width_px: 2,
            height_px: 2,
        };
        let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, size));
        for (n_frames, expected) in [(1, 1), (4, 4), (5, 3), (8, 4), (9, 3), (100, 4)] {
            let mut sheet = Sheet::new(4);
            for seq in 0..n_frames {
                let pixels = Box::new(vec![0; 12]);
                let pts = Pts(seq * 1_000_000_000);
                let frame = Frame::new(seq, pts, None, layout.clone(), pixels).unwrap();
                sheet.add(&frame, None, "").unwrap();
            }
            assert_eq!(sheet.n_thumbnails(), expected, "{n_frames} frames");
            for (idx, thumbnail) in sheet.thumbnails.iter().enumerate() {
                let pts = Pts(idx as u64 * sheet.every * 1_000_000_000);
                assert!(thumbnail.label.starts_with(&clock(pts)));
            }
        }
    }
}
