//! Upsampling of the patch grid to the frame's pixels, nearest-neighbor or bilinear.
//!
//! Each axis has its own table, so that a pixel costs one interpolation between two values. Bilinear interpolation runs
//! between patch centers and stays constant beyond the outermost ones (`align_corners = false`).

use std::ops::Range;

use rayon::prelude::*;

use super::paint::Stencil;
use vitscope_core::frame::placement::Placement;

/// Fractional bits of weights.
const WEIGHT_BITS: u32 = 8;

/// Fractional bits of levels between the two axes.
const LEVEL_BITS: u32 = 8;

/// Source of a pixel's value: patch `lower` and, with a weight of `weight`/256, the one after it.
#[derive(Clone, Copy)]
struct Tap {
    lower: usize,
    weight: i32,
}

/// Computes the heat of each frame pixel that the model's image shows.
///
/// `heat` holds `grid.0 * grid.1` values from 0 to 1, in row-major order; level 255 is 1.
pub(super) fn stencil_from_grid(
    heat: &[f32],
    grid: (usize, usize),
    placement: &Placement,
    smooth: bool,
) -> Stencil {
    /// Minimum number of rows worth a separate task.
    const MIN_ROWS: usize = 16;

    let rect = placement.pixels();
    let mut stencil = Stencil::flat(rect, 0);
    let (n_rows, n_columns) = grid;
    if stencil.levels.is_empty() || heat.is_empty() || heat.len() != n_rows * n_columns {
        return stencil;
    }
    let row_taps = taps(&placement.rows_in_grid(n_rows), n_rows, smooth);
    let column_taps = taps(&placement.columns_in_grid(n_columns), n_columns, smooth);
    let weights: Vec<i32> = column_taps.iter().map(|tap| tap.weight).collect();
    let runs = runs(&column_taps);
    let full_scale = (255 << LEVEL_BITS) as f32;
    let fixed: Vec<i32> = heat
        .iter()
        .map(|value| (value * full_scale) as i32)
        .collect();
    let grid_row = |row: usize| {
        let row = row.min(n_rows - 1);
        &fixed[row * n_columns..(row + 1) * n_columns]
    };

    stencil
        .levels
        .par_chunks_mut(rect.width)
        .zip(&row_taps)
        .with_min_len(MIN_ROWS)
        .for_each_init(Vec::new, |line: &mut Vec<i32>, (levels, tap)| {
            line.clear();
            let upper_and_lower = grid_row(tap.lower).iter().zip(grid_row(tap.lower + 1));
            line.extend(
                upper_and_lower.map(|(&a, &b)| a + (((b - a) * tap.weight) >> WEIGHT_BITS)),
            );
            for (lower, run) in &runs {
                let from = line[*lower];
                let to = line.get(lower + 1).copied().unwrap_or(from);
                let base = (from << WEIGHT_BITS) + (1 << (WEIGHT_BITS + LEVEL_BITS - 1));
                for (level, weight) in levels[run.clone()].iter_mut().zip(&weights[run.clone()]) {
                    *level = ((base + (to - from) * weight) >> (WEIGHT_BITS + LEVEL_BITS)) as u8;
                }
            }
        });
    stencil
}

/// Returns the taps of pixels at `positions` in a grid of `n_patches`.
fn taps(positions: &[f64], n_patches: usize, smooth: bool) -> Vec<Tap> {
    let last = n_patches.saturating_sub(1);
    positions
        .iter()
        .map(|&position| {
            if smooth {
                let from_centre = (position - 0.5).clamp(0.0, last as f64);
                let lower = from_centre as usize;
                let weight = (from_centre - lower as f64) * f64::from(1 << WEIGHT_BITS);
                Tap {
                    lower,
                    weight: weight.round() as i32,
                }
            } else {
                Tap {
                    lower: (position as usize).min(last),
                    weight: 0,
                }
            }
        })
        .collect()
}

/// Groups neighboring pixels between the same two patches, along which the value is linear.
fn runs(taps: &[Tap]) -> Vec<(usize, Range<usize>)> {
    let mut start = 0;
    taps.chunk_by(|a, b| a.lower == b.lower)
        .map(|run| {
            let range = start..start + run.len();
            start = range.end;
            (run[0].lower, range)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope_core::frame::FrameSize;
    use vitscope_core::frame::placement::ResizeRule;

    #[track_caller]
    fn check(heat: &[f32], width_px: usize, smooth: bool, expected: &[u8]) {
        let image = FrameSize {
            width_px: 8,
            height_px: 8,
        };
        let frame = FrameSize {
            width_px,
            height_px: 1,
        };
        let placement = Placement::new(&ResizeRule::Stretch(image), frame).unwrap();
        let stencil = stencil_from_grid(heat, (1, heat.len()), &placement, smooth);
        assert_eq!(stencil.levels, expected);
    }

    #[test]
    fn nearest_gives_each_pixel_its_patch() {
        check(&[0.0, 1.0, 0.2], 6, false, &[0, 0, 255, 255, 51, 51]);
        // The middle pixel of five belongs to the second patch by half a pixel.
        check(&[0.0, 1.0], 5, false, &[0, 0, 255, 255, 255]);
    }

    #[test]
    fn bilinear_meets_the_patch_at_its_centre_and_is_flat_beyond() {
        // Centers at 1.5 and 4.5 pixels, that is in the pixels 1 and 4.
        check(&[0.0, 1.0], 6, true, &[0, 0, 85, 170, 255, 255]);
        check(&[1.0], 3, true, &[255, 255, 255]);
    }

    #[test]
    fn a_frame_smaller_than_the_grid_still_gets_a_level_a_pixel() {
        check(&[0.0, 0.5, 1.0], 1, false, &[128]);
    }
}
