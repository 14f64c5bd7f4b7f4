//! Padding of frames of odd size to an even one, for encoders that subsample chroma and cannot represent half a chroma
//! sample.
//!
//! H.264 with subsampled chroma has no odd sizes: 321×241 becomes 322×242, with the last column and row repeated.

use std::sync::Arc;

use vitscope_core::frame::{FrameSize, PixelLayout};

/// True if width or height is odd.
pub(super) fn is_odd(layout: &PixelLayout) -> bool {
    layout.size.width_px % 2 == 1 || layout.size.height_px % 2 == 1
}

/// Returns `layout` unchanged if its size is even, otherwise one of the next even size.
pub(super) fn layout(layout: &PixelLayout) -> PixelLayout {
    if !is_odd(layout) {
        return layout.clone();
    }
    let size = FrameSize {
        width_px: layout.size.width_px.next_multiple_of(2),
        height_px: layout.size.height_px.next_multiple_of(2),
    };
    layout.resized(size)
}

/// Returns `bytes` of `odd` with the last column and row repeated up to an even size.
pub(super) fn pad(odd: &PixelLayout, bytes: &[u8]) -> (Vec<u8>, Arc<PixelLayout>) {
    let even = layout(odd);
    let mut padded = vec![0; even.min_len()];
    for plane_idx in 0..odd.planes.len() {
        let sample_len = odd.sample_len(plane_idx);
        let (rows, row_len) = odd.plane_extent(plane_idx);
        let (even_rows, even_row_len) = even.plane_extent(plane_idx);
        let (from, to) = (odd.planes[plane_idx], even.planes[plane_idx]);
        for row in 0..even_rows {
            let source = from.offset + row.min(rows - 1) * from.stride;
            let source = &bytes[source..source + row_len];
            let target = to.offset + row * to.stride;
            let target = &mut padded[target..target + even_row_len];
            target[..row_len].copy_from_slice(source);
            if even_row_len > row_len {
                target[row_len..].copy_from_slice(&source[row_len - sample_len..]);
            }
        }
    }
    (padded, Arc::new(even))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope_core::frame::PixelFormat;

    fn size(width_px: usize, height_px: usize) -> FrameSize {
        FrameSize {
            width_px,
            height_px,
        }
    }

    #[test]
    fn the_last_column_and_row_are_repeated() {
        let odd = PixelLayout::packed(PixelFormat::I420, size(3, 1));
        let (bytes, even) = pad(&odd, &[1, 2, 3, 10, 11, 20, 21]);
        assert_eq!(even.size, size(4, 2));
        assert_eq!(bytes, [1, 2, 3, 3, 1, 2, 3, 3, 10, 11, 20, 21]);
    }

    #[test]
    fn interleaved_channels_stay_together() {
        let odd = PixelLayout::packed(PixelFormat::Rgb, size(1, 1));
        let (bytes, _) = pad(&odd, &[7, 8, 9]);
        assert_eq!(bytes, [7, 8, 9].repeat(4));
    }

    #[test]
    fn even_frames_keep_their_layout() {
        let even = PixelLayout::packed(PixelFormat::Nv12, size(4, 2));
        assert_eq!(layout(&even), even);
    }
}
