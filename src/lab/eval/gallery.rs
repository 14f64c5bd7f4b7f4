//! An image of example grids with the attributions and masks of several methods side by side.
//!
//! One column per method, one row per grid. Attributions are gray, from the grid's minimum to its maximum (masks: from
//! 0 to 1); cells that the mask keeps are framed.

use std::path::Path;

use image::{Rgb, RgbImage};

use super::faithfulness::Example;
use crate::data::Picture;
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::placement::PixelRect;
use vitscope_video::overlay::{frame_from_image, image_from_frame, text};

/// Side of a grid in the image.
const SIDE_PX: u32 = 144;
const GAP_PX: u32 = 24;
const HEADING_PX: u32 = 40;
/// Width of the frame around kept cells.
const FRAME_PX: u32 = 3;
const PAPER: Rgb<u8> = Rgb([24; 3]);
/// Stands out from black, white and gray attributions.
const KEPT: Rgb<u8> = Rgb([0, 200, 80]);

/// A column of attributions.
pub struct Column<'a> {
    /// Heading.
    pub name: &'a str,
    /// Results of the method.
    pub example: &'a Example,
    /// Whether attributions lie in [0, 1] and are drawn on that scale.
    pub unit: bool,
}

/// Draws `pictures`, one per row, with the results of each method, as a PNG.
///
/// `grid` is the number of rows and columns of patches.
///
/// # Errors
/// [`Error::Io`] if `path` cannot be written.
pub fn save(
    pictures: &[Picture],
    columns: &[Column<'_>],
    grid: (usize, usize),
    path: &Path,
) -> Result<()> {
    let n_columns = columns.len() as u32 + 1;
    let n_rows = pictures.len() as u32;
    let mut sheet = RgbImage::from_pixel(
        GAP_PX + n_columns * (SIDE_PX + GAP_PX),
        HEADING_PX + n_rows * (SIDE_PX + GAP_PX),
        PAPER,
    );
    for (row, picture) in pictures.iter().enumerate() {
        let top = HEADING_PX + row as u32 * (SIDE_PX + GAP_PX);
        draw_picture(&mut sheet, GAP_PX, top, picture);
        for (column_idx, column) in columns.iter().enumerate() {
            let left = GAP_PX + (column_idx as u32 + 1) * (SIDE_PX + GAP_PX);
            let found = column.example.attributions.get(row);
            let mask = column.example.masks.get(row);
            if let (Some(attribution), Some(mask)) = (found, mask) {
                let shades = shades(attribution, column.unit);
                draw_cells(&mut sheet, (left, top), grid, &shades, mask);
            }
        }
    }
    let mut frame = frame_from_image(sheet);
    let names = std::iter::once("grid").chain(columns.iter().map(|column| column.name));
    for (column_idx, name) in names.enumerate() {
        let pane = PixelRect {
            left: (GAP_PX / 2) as usize + column_idx * (SIDE_PX + GAP_PX) as usize,
            top: 0,
            width: (SIDE_PX + GAP_PX) as usize,
            height: HEADING_PX as usize,
        };
        text::draw_caption(&mut frame, pane, name)?;
    }
    image_from_frame(&frame)?
        .save_with_format(path, image::ImageFormat::Png)
        .map_err(|err| match err {
            image::ImageError::IoError(err) => Error::io(path, err),
            err => Error::Data(format!("picture cannot be written: {err}: {path:?}")),
        })
}

fn draw_picture(sheet: &mut RgbImage, left: u32, top: u32, picture: &Picture) {
    let size = picture.size;
    for y in 0..SIDE_PX {
        for x in 0..SIDE_PX {
            let from_y = y as usize * size.height_px / SIDE_PX as usize;
            let from_x = x as usize * size.width_px / SIDE_PX as usize;
            let pixel = picture
                .rgb
                .chunks_exact(3)
                .nth(from_y * size.width_px + from_x);
            if let Some(&[red, green, blue]) = pixel {
                sheet.put_pixel(left + x, top + y, Rgb([red, green, blue]));
            }
        }
    }
}

fn draw_cells(
    sheet: &mut RgbImage,
    (left, top): (u32, u32),
    (rows, columns): (usize, usize),
    shades: &[u8],
    mask: &[bool],
) {
    let (cell_w, cell_h) = (SIDE_PX / columns as u32, SIDE_PX / rows as u32);
    for (cell, (&shade, &kept)) in shades.iter().zip(mask).enumerate() {
        let cell_left = left + (cell % columns) as u32 * cell_w;
        let cell_top = top + (cell / columns) as u32 * cell_h;
        for y in 0..cell_h {
            for x in 0..cell_w {
                let edge = x.min(y).min(cell_w - 1 - x).min(cell_h - 1 - y);
                let framed = kept && (1..=FRAME_PX).contains(&edge);
                let color = if framed { KEPT } else { Rgb([shade; 3]) };
                sheet.put_pixel(cell_left + x, cell_top + y, color);
            }
        }
    }
}

/// Returns the gray values of one grid's attributions.
fn shades(attribution: &[f32], unit: bool) -> Vec<u8> {
    let (low, high) = if unit {
        (0.0, 1.0)
    } else {
        let least = attribution.iter().copied().fold(f32::INFINITY, f32::min);
        let greatest = attribution
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        (least, greatest)
    };
    let span = (high - low).max(f32::MIN_POSITIVE);
    attribution
        .iter()
        .map(|score| (255.0 * (score - low) / span).round().clamp(0.0, 255.0) as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_scores_span_black_to_white_and_masks_keep_their_values() {
        assert_eq!(shades(&[2.0, 3.0, 4.0], false), [0, 128, 255]);
        assert_eq!(shades(&[0.0, 0.5, 1.0], true), [0, 128, 255]);
        assert_eq!(shades(&[0.5, 0.5], false), [0, 0]);
    }

    #[test]
    fn kept_cells_are_framed_and_others_are_not() {
        let mut sheet = RgbImage::new(SIDE_PX, SIDE_PX);
        draw_cells(&mut sheet, (0, 0), (1, 2), &[10, 20], &[false, true]);
        assert_eq!(sheet.get_pixel(1, 1).0, [10; 3]);
        assert_eq!(*sheet.get_pixel(SIDE_PX / 2 + 1, 1), KEPT);
        assert_eq!(sheet.get_pixel(SIDE_PX / 2 + 20, 40).0, [20; 3]);
    }
}
