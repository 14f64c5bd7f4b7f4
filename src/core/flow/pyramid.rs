//! Coarse-to-fine estimation: motion is first estimated on small pictures, where it is short.

use std::array::from_fn;

use super::{Flow, Gray, check_same, position};
use crate::error::{Error, Result};

/// Options of [`flow`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowOptions {
    /// Weight of gray value differences (0 to 1) relative to differences between neighboring vectors (pixels). A larger
    /// weight follows finer motion, but also more noise.
    pub lambda: f32,
    /// Linearizations per level of the pyramid.
    pub warps: usize,
    /// Primal-dual iterations per linearization.
    pub iterations: usize,
}

impl Default for FlowOptions {
    /// Displaced photographs with noise need a smaller `lambda`, stereo pairs a larger one; IPOL's corresponds to 38.
    fn default() -> Self {
        Self {
            lambda: 30.0,
            warps: 5,
            iterations: 30,
        }
    }
}

impl FlowOptions {
    /// For small pictures in live video. At 64 x 64 pixels, takes a sixth of the default's time, with errors of up to a
    /// tenth of a pixel, or two tenths with noise of two gray levels.
    pub fn fast() -> Self {
        Self {
            warps: 2,
            iterations: 10,
            ..Self::default()
        }
    }
}

/// Estimates the flow from one frame to another of the same size.
///
/// # Errors
/// [`Error::Shape`] if the sizes differ, [`Error::Config`] if an option is not positive.
pub fn flow(from: &Gray, to: &Gray, options: &FlowOptions) -> Result<Flow> {
    /// Below this length of the shorter side, a level is not halved further, because too little would be left to
    /// compare.
    const COARSEST_PX: usize = 32;

    check_same(from.size_px(), to.size_px())?;
    let positive = options.lambda.is_finite() && options.lambda > 0.0;
    if !positive || options.warps == 0 || options.iterations == 0 {
        let message = format!("flow options must be positive, got {options:?}");
        return Err(Error::Config(message));
    }
    let mut finer = Vec::new();
    let mut level = (from.clone(), to.clone());
    while level.0.width_px.min(level.0.height_px) >= COARSEST_PX {
        let coarser = (level.0.halved(), level.1.halved());
        finer.push(std::mem::replace(&mut level, coarser));
    }
    let mut estimate = Flow::new(1, 1, vec![[0.0; 2]])?;
    for (from, to) in finer.iter().chain([&level]).rev() {
        estimate = estimate.doubled(from.size_px());
        estimate.refine(from, to, options);
    }
    Ok(estimate)
}

impl Gray {
    /// Shrinks the picture so that its longer side is at most `longer_px`; each pixel is the mean of the area that it
    /// covers. Returns a clone if the picture is already small enough.
    ///
    /// # Errors
    /// [`Error::Config`] if `longer_px` is 0.
    pub fn shrunk(&self, longer_px: usize) -> Result<Self> {
        if longer_px == 0 {
            return Err(Error::Config(
                "a picture cannot be shrunk to 0 pixels".into(),
            ));
        }
        let longer = self.width_px.max(self.height_px);
        if longer <= longer_px {
            return Ok(self.clone());
        }
        let scaled = |len: usize| (len * longer_px).div_ceil(longer);
        let (width_px, height_px) = (scaled(self.width_px), scaled(self.height_px));
        let columns: Vec<Vec<_>> = (0..width_px)
            .map(|x| covered(x, self.width_px, width_px).collect())
            .collect();
        let mut values = Vec::with_capacity(width_px * height_px);
        let mut mean = vec![0.0; self.width_px];
        for y in 0..height_px {
            mean.fill(0.0);
            for (row, share) in covered(y, self.height_px, height_px) {
                for (mean, value) in mean.iter_mut().zip(self.row(row, 0)) {
                    *mean += share * value;
                }
            }
            let means = columns.iter().map(|column| {
                let shares = column.iter().map(|&(x, share)| share * mean[x]);
                // Rounding must not exceed white.
                shares.sum::<f32>().min(1.0)
            });
            values.extend(means);
        }
        Ok(Self {
            width_px,
            height_px,
            values,
        })
    }

    /// Halves the size; pixel `x` of the result is at `2 x` of this picture.
    fn halved(&self) -> Self {
        const TAPS: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];
        let (width_px, height_px) = (self.width_px.div_ceil(2), self.height_px.div_ceil(2));
        let mut values = Vec::with_capacity(width_px * height_px);
        for y in 0..height_px {
            let rows: [&[f32]; 5] = from_fn(|down| self.row(2 * y + down, 2));
            for x in 0..width_px {
                let columns: [usize; 5] =
                    from_fn(|right| (2 * x + right).saturating_sub(2).min(self.width_px - 1));
                let mut value = 0.0;
                for (row, down) in rows.iter().zip(TAPS) {
                    for (&column, right) in columns.iter().zip(TAPS) {
                        value += right * down * row[column];
                    }
                }
                values.push(value);
            }
        }
        Self {
            width_px,
            height_px,
            values,
        }
    }
}

impl Flow {
    /// Converts the flow to pictures of twice the size.
    fn doubled(&self, (width_px, height_px): (usize, usize)) -> Self {
        let vectors = (0..width_px * height_px).map(|pixel| {
            let (x, y) = position(pixel, width_px);
            self.at((x / 2.0, y / 2.0)).map(|component| 2.0 * component)
        });
        Self {
            width_px,
            height_px,
            vectors: vectors.collect(),
        }
    }
}

/// The pixels of a row of `from` that one of `to` pixels covers, and their shares of it.
fn covered(idx: usize, from: usize, to: usize) -> impl Iterator<Item = (usize, f32)> {
    // In units in which a source pixel has length `to`, and a target pixel length `from`.
    let (start, end) = (idx * from, (idx + 1) * from);
    (start / to..end.div_ceil(to)).map(move |pixel| {
        let len = end.min((pixel + 1) * to) - start.max(pixel * to);
        (pixel, len as f32 / from as f32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::scenes::{moving, picture, texture};
    use crate::rng::Rng;

    const SIZE_PX: (usize, usize) = (192, 144);

    /// Mean endpoint error over all pixels, in pixels.
    fn mean_error(from: &Gray, to: &Gray, truth: &Flow, options: &FlowOptions) -> f32 {
        let found = flow(from, to, options).unwrap();
        let error =
            |([x, y], [true_x, true_y]): (&[f32; 2], &[f32; 2])| (x - true_x).hypot(y - true_y);
        let errors = found.vectors.iter().zip(&truth.vectors).map(error);
        errors.sum::<f32>() / truth.vectors.len() as f32
    }

    fn check_motion(degrees: f64, zoom: f64, shift: [f64; 2]) {
        let (from, to, truth) = moving(SIZE_PX, degrees, zoom, shift);
        let error = mean_error(&from, &to, &truth, &FlowOptions::default());
        assert!(error < 0.02, "{error} px: {degrees}, {zoom}, {shift:?}");
    }

    /// Adds uniform noise with a standard deviation of 2 of 255.
    fn make_noisy(frame: &mut Gray, rng: &mut Rng) {
        for value in &mut frame.values {
            *value += (rng.uniform() - 0.5) * 48.0_f32.sqrt() / 255.0;
        }
    }

    #[test]
    fn motion_is_found_to_a_fiftieth_of_a_pixel() {
        for (x, y) in [
            (0.3, 0.0),
            (0.5, -0.25),
            (1.7, 0.9),
            (5.0, -3.0),
            (12.0, 4.0),
        ] {
            check_motion(0.0, 1.0, [x, y]);
        }
        check_motion(2.0, 1.0, [0.0; 2]);
        check_motion(0.0, 1.03, [0.0; 2]);
    }

    #[test]
    fn noise_of_two_gray_levels_costs_less_than_a_tenth_of_a_pixel() {
        let mut rng = Rng::new(8);
        let (mut from, mut to, truth) = moving(SIZE_PX, 2.0, 1.0, [0.0; 2]);
        make_noisy(&mut from, &mut rng);
        make_noisy(&mut to, &mut rng);
        let error = mean_error(&from, &to, &truth, &FlowOptions::default());
        assert!(error < 0.1, "{error} px");
    }

    #[test]
    fn fast_options_err_by_a_tenth_of_a_pixel_or_two_with_noise() {
        let mut rng = Rng::new(9);
        let motions = [
            (0.0, 1.0, [0.5, -0.25]),
            (0.0, 1.0, [1.7, 0.9]),
            (0.0, 1.0, [4.0, 0.0]),
            (0.0, 1.0, [6.0, -3.0]),
            (3.0, 1.0, [0.0, 0.0]),
            (0.0, 1.05, [0.0, 0.0]),
        ];
        for (degrees, zoom, shift) in motions {
            let (mut from, mut to, truth) = moving((64, 64), degrees, zoom, shift);
            let error = mean_error(&from, &to, &truth, &FlowOptions::fast());
            make_noisy(&mut from, &mut rng);
            make_noisy(&mut to, &mut rng);
            let with_noise = mean_error(&from, &to, &truth, &FlowOptions::fast());
            let errors = format!("{error} and {with_noise} px: {degrees}, {zoom}, {shift:?}");
            assert!(error < 0.1 && with_noise < 0.2, "{errors}");
        }
    }

    #[test]
    fn a_shrunk_picture_has_the_mean_of_each_area() {
        let line = Gray::new(5, 1, vec![0.0, 0.25, 1.0, 0.5, 0.0]).unwrap();
        let shrunk = line.shrunk(2).unwrap();
        // Each side gets half of the middle pixel.
        assert_eq!(shrunk.size_px(), (2, 1));
        let expected = [0.75 / 2.5, 1.0 / 2.5];
        let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-6;
        assert!(!shrunk.values().iter().zip(&expected).any(far));
        assert_eq!(line.shrunk(5).unwrap(), line);
        assert!(matches!(line.shrunk(0), Err(Error::Config(_))));
    }

    #[test]
    fn shrinking_keeps_the_shape_and_the_mean() {
        let frame = picture(SIZE_PX, texture(7));
        let shrunk = frame.shrunk(64).unwrap();
        let mean = |frame: &Gray| frame.values.iter().sum::<f32>() / frame.values.len() as f32;
        assert_eq!(shrunk.size_px(), (64, 48));
        assert!((mean(&shrunk) - mean(&frame)).abs() < 1e-5);
    }

    #[test]
    fn nothing_moves_between_equal_frames_or_flat_ones() {
        let line = Gray::new(1, 3, vec![0.0, 0.5, 1.0]).unwrap();
        let (textured, dark, light) = (
            picture(SIZE_PX, texture(7)),
            picture(SIZE_PX, |_, _| 0.2),
            picture(SIZE_PX, |_, _| 0.8),
        );
        for (from, to) in [(&textured, &textured), (&line, &line), (&dark, &light)] {
            let found = flow(from, to, &FlowOptions::default()).unwrap();
            let mut components = found.vectors.as_flattened().iter();
            assert!(components.all(|component| component.abs() < 1e-4));
        }
    }
}
