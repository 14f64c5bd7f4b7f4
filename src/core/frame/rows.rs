//! Rows of a plane, for reading and modification, with any stride and offset.
//!
//! A layout is validated once by [`check`]; after that, each row has exactly the length of its samples.

use rayon::prelude::*;

use super::{PixelFormat, PixelLayout};
use crate::error::{Error, Result};

/// Checks that `layout` has the planes of its format, with rows that do not overlap.
///
/// # Errors
/// [`Error::Shape`] with the number of planes, or with the stride that is too short.
pub fn check(layout: &PixelLayout) -> Result<()> {
    let n_planes = match layout.format {
        PixelFormat::I420 | PixelFormat::I420Deep => 3,
        PixelFormat::Nv12 => 2,
        PixelFormat::Rgb | PixelFormat::Bgr | PixelFormat::Rgba | PixelFormat::Bgrx => 1,
    };
    if layout.planes.len() != n_planes {
        return Err(Error::Shape {
            expected: format!("{n_planes} planes for {:?}", layout.format),
            got: format!("{} planes", layout.planes.len()),
        });
    }
    for (plane_idx, plane) in layout.planes.iter().enumerate() {
        let (n_rows, row_len) = layout.plane_extent(plane_idx);
        if n_rows > 1 && plane.stride < row_len {
            return Err(Error::Shape {
                expected: format!("at least {row_len} bytes per row in plane {plane_idx}"),
                got: format!("stride {}", plane.stride),
            });
        }
    }
    Ok(())
}

/// Rows of plane `plane_idx`, without padding.
pub fn rows<'a>(
    bytes: &'a [u8],
    layout: &PixelLayout,
    plane_idx: usize,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let (n_rows, row_len) = layout.plane_extent(plane_idx);
    let (start, stride) = start_and_stride(layout, plane_idx, row_len);
    bytes
        .get(start..)
        .unwrap_or_default()
        .chunks(stride)
        .take(n_rows)
        .filter_map(move |row| row.get(..row_len))
}

/// `n_rows` rows of plane `plane_idx` from row `first_row` on, for parallel modification.
pub fn par_rows_mut<'a>(
    bytes: &'a mut [u8],
    layout: &PixelLayout,
    plane_idx: usize,
    first_row: usize,
    n_rows: usize,
) -> impl IndexedParallelIterator<Item = &'a mut [u8]> + use<'a> {
    /// Minimum number of rows per parallel task.
    const MIN_ROWS: usize = 16;

    let (total_rows, row_len) = layout.plane_extent(plane_idx);
    let (start, stride) = start_and_stride(layout, plane_idx, row_len);
    bytes
        .get_mut(start + first_row * stride..)
        .unwrap_or_default()
        .par_chunks_mut(stride)
        .take(n_rows.min(total_rows.saturating_sub(first_row)))
        .with_min_len(MIN_ROWS)
        .map(move |row| {
            let len = row_len.min(row.len());
            &mut row[..len]
        })
}

/// Byte offset of the first row, and stride in bytes, which is never 0.
fn start_and_stride(layout: &PixelLayout, plane_idx: usize, row_len: usize) -> (usize, usize) {
    layout.planes.get(plane_idx).map_or((usize::MAX, 1), |p| {
        (p.offset, p.stride.max(row_len).max(1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FrameSize, Plane};

    const SIZE: FrameSize = FrameSize {
        width_px: 3,
        height_px: 2,
    };

    #[test]
    fn padding_between_rows_is_left_out() {
        let mut layout = PixelLayout::packed(PixelFormat::I420, SIZE);
        layout.planes[0] = Plane {
            offset: 1,
            stride: 5,
        };
        let bytes: Vec<u8> = (0..20).collect();
        let got: Vec<&[u8]> = rows(&bytes, &layout, 0).collect();
        assert_eq!(got, [[1, 2, 3], [6, 7, 8]]);
    }

    #[test]
    fn a_stride_shorter_than_its_row_is_an_error() {
        let mut layout = PixelLayout::packed(PixelFormat::Rgb, SIZE);
        layout.planes[0].stride = 8;
        let error = check(&layout).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected shape at least 9 bytes per row in plane 0, got stride 8"
        );
    }

    #[test]
    fn a_missing_plane_is_an_error() {
        let mut layout = PixelLayout::packed(PixelFormat::Nv12, SIZE);
        layout.planes.pop();
        assert!(check(&layout).is_err());
    }
}
