//! Compositing of video with alpha over black.

/// Composites rows of packed A, Y, U and V over black, in place; returns true if a pixel was not opaque.
///
/// Rows are `stride` bytes apart, and `width` pixels of each are processed.
pub(crate) fn over_black(ayuv: &mut [u8], stride: usize, width: usize, full_range: bool) -> bool {
    let black = if full_range { 0 } else { 16 };
    let mut is_see_through = false;
    for row in ayuv.chunks_mut(stride.max(1)) {
        for [alpha, y, u, v] in row.as_chunks_mut().0.iter_mut().take(width) {
            if *alpha == 255 {
                continue;
            }
            // A conversion from 16 bits may round an opaque alpha down.
            is_see_through |= *alpha < 254;
            let opacity = i32::from(*alpha);
            for (sample, zero) in [(y, black), (u, 128), (v, 128)] {
                // A value between `zero` and a sample is a valid sample.
                *sample = (zero + (i32::from(*sample) - zero) * opacity / 255) as u8;
            }
            *alpha = 255;
        }
    }
    is_see_through
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_fade_to_black_with_their_alpha() {
        let mut row = [
            [255, 81, 90, 240],
            [0, 81, 90, 240],
            [51, 116, 28, 228],
            // Padding.
            [0, 1, 2, 3],
        ]
        .concat();
        assert!(over_black(&mut row, 16, 3, false));
        let expected = [
            [255, 81, 90, 240],
            [255, 16, 128, 128],
            [255, 36, 108, 148],
            [0, 1, 2, 3],
        ];
        assert_eq!(row, expected.concat());
        assert!(!over_black(&mut row, 16, 3, false));
    }
}
