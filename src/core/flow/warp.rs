//! Warping of values along a flow, and the reliability of the result.

use super::{Flow, check_len, check_same};
use crate::error::Result;

/// Warps `values` from the target of `flow` back to its source, bilinearly: `warped(x) = values(x + flow(x))`.
///
/// Positions beyond the frame take the nearest value; [`visibility`] reports where.
///
/// # Shapes
/// - `values` and result: `[height_px, width_px]` of the flow
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if there is not one value per pixel.
pub fn warp(values: &[f32], flow: &Flow) -> Result<Vec<f32>> {
    check_len(flow.size_px(), values.len())?;
    let warped = (0..values.len())
        .map(|pixel| bilinear(flow.size_px(), flow.place(pixel), |pixel| values[pixel]));
    Ok(warped.collect())
}

/// Which pixels of the source frame of `forward` are visible in its target frame.
///
/// A pixel is visible if it is [consistent](consistency) and not at a motion boundary, where vectors are unreliable:
/// `|grad f|^2 > 0.01 |f|^2 + 0.002` with `f = forward(x)` (Lai et al., ECCV 2018; differences to the right and lower
/// neighbors).
///
/// # Shapes
/// - result: `[height_px, width_px]`
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the sizes differ.
pub fn visibility(forward: &Flow, backward: &Flow) -> Result<Vec<bool>> {
    let mut visible = consistency(forward, backward)?;
    let (width, height) = forward.size_px();
    for (pixel, (visible, &ahead)) in visible.iter_mut().zip(&forward.vectors).enumerate() {
        let change = |exists: bool, neighbor: usize| {
            let [x, y] = forward.vectors[if exists { neighbor } else { pixel }];
            squared([x - ahead[0], y - ahead[1]])
        };
        let gradient = change(pixel % width + 1 < width, pixel + 1)
            + change(pixel / width + 1 < height, pixel + width);
        *visible &= gradient <= 0.01 * squared(ahead) + 0.002;
    }
    Ok(visible)
}

/// Which pixels of the source frame of `forward` are returned to their position by `backward`.
///
/// With `f = forward(x)` and `b = backward(x + f)`, a pixel is hidden in the other frame if
/// `|f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5` (Lai et al., ECCV 2018; like their code, this squares the magnitudes).
/// Pixels that leave the frame are also hidden; their code leaves these to the test.
///
/// # Shapes
/// - result: `[height_px, width_px]`
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the sizes differ.
pub fn consistency(forward: &Flow, backward: &Flow) -> Result<Vec<bool>> {
    check_same(forward.size_px(), backward.size_px())?;
    let consistent = forward.vectors.iter().enumerate().map(|(pixel, &ahead)| {
        let place = forward.place(pixel);
        let back = backward.at(place);
        let returned = squared([ahead[0] + back[0], ahead[1] + back[1]]);
        forward.holds(place) && returned <= 0.01 * (squared(ahead) + squared(back)) + 0.5
    });
    Ok(consistent.collect())
}

fn squared([x, y]: [f32; 2]) -> f32 {
    x * x + y * y
}

/// Bilinear interpolation at a position, clamped to the frame. If all samples are equal, the result equals them
/// exactly.
pub fn bilinear(
    (width, height): (usize, usize),
    (x, y): (f32, f32),
    sample: impl Fn(usize) -> f32,
) -> f32 {
    let x = x.clamp(0.0, (width - 1) as f32);
    let y = y.clamp(0.0, (height - 1) as f32);
    let (left, top) = (x as usize, y as usize);
    let right = (left + 1).min(width - 1);
    let between = |from: f32, to: f32, share: f32| from + share * (to - from);
    let row = |y: usize| {
        let (from, to) = (sample(y * width + left), sample(y * width + right));
        between(from, to, x - left as f32)
    };
    between(row(top), row((top + 1).min(height - 1)), y - top as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::scenes::{moving, picture, texture};
    use crate::flow::{FlowOptions, flow};

    const SIZE_PX: (usize, usize) = (192, 144);

    #[test]
    fn warping_by_the_true_flow_gives_the_first_frame_back() {
        let (from, to, truth) = moving(SIZE_PX, 2.0, 1.0, [3.0, 0.0]);
        let warped = warp(&to.values, &truth).unwrap();
        let differs = |pixel: usize| (warped[pixel] - from.values[pixel]).abs() > 0.03;
        let seen = (0..warped.len()).filter(|&pixel| truth.holds(truth.place(pixel)));
        assert!(seen.clone().count() > 25_000 && !seen.into_iter().any(differs));
    }

    #[test]
    fn warping_takes_values_from_where_the_flow_leads() {
        let flow = Flow::new(3, 1, vec![[1.5, 0.0], [-0.25, 0.0], [9.0, 9.0]]).unwrap();
        assert_eq!(warp(&[0.0, 4.0, 8.0], &flow).unwrap(), [6.0, 3.0, 8.0]);
    }

    #[test]
    fn what_a_moving_square_covers_is_hidden() {
        let texture = texture(7);
        let frame = |left: f64| {
            picture(SIZE_PX, |x, y| {
                let on_square = (left..left + 48.0).contains(&x) && (48.0..96.0).contains(&y);
                // The square shows a distant part of the texture.
                texture(if on_square { x - left + 1e4 } else { x }, y)
            })
        };
        let (from, to) = (frame(60.0), frame(68.0));
        let options = FlowOptions::default();
        let forward = flow(&from, &to, &options).unwrap();
        let backward = flow(&to, &from, &options).unwrap();
        let visible = visibility(&forward, &backward).unwrap();
        let share = |columns: std::ops::Range<usize>, rows: std::ops::Range<usize>| {
            let n_pixels = columns.len() * rows.len();
            let pixels = rows.flat_map(|y| columns.clone().map(move |x| y * SIZE_PX.0 + x));
            pixels.filter(|&pixel| visible[pixel]).count() as f64 / n_pixels as f64
        };
        assert!(share(108..116, 50..94) < 0.25);
        assert!(share(16..176, 104..128) > 0.95 && share(64..104, 52..92) > 0.95);
    }

    #[test]
    fn what_does_not_return_or_leaves_or_lies_at_a_boundary_is_hidden() {
        let flow = |along_x: [f32; 6]| Flow::new(6, 1, along_x.map(|x| [x, 0.0]).to_vec()).unwrap();
        // Nothing returns from the target of the third pixel, the next two are beside another motion, and the last one
        // leaves.
        let forward = flow([1.0, 1.0, 1.0, 1.0, 0.0, 0.5]);
        let backward = flow([0.0, -1.0, -1.0, 0.0, -1.0, 0.0]);
        let visible = visibility(&forward, &backward).unwrap();
        assert_eq!(visible, [true, true, false, false, false, false]);
    }
}
