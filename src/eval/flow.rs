//! Dense optical flow between two gray frames, and which pixels both of them show.
//!
//! The flow `u` minimizes `sum |grad u| + lambda |I_to(x + u) - I_from(x)|` (TV-L1: Zach, Pock and Bischof, DAGM 2007;
//! Sánchez, Meinhardt-Llopis and Facciolo, IPOL 2013), coarse to fine on a pyramid (Burt and Adelson, 1983). On each
//! level, `I_to` is linearized around `x + u` by Catmull-Rom cubics, the linear problem solved by primal-dual
//! iterations (Chambolle and Pock, 2011, algorithm 1), and `u` filtered by medians of 3 x 3 (Wedel et al., 2009).
//!
//! **Deviations** from TV-L1: Huber's norm of `grad u` (Werlberger et al., BMVC 2009), since the plain one makes
//! staircases of rotations and zooms; the mean of both frames' gradients (Wedel et al., 2009), which errs less; no data
//! term where a pixel leaves the frame, which then moves as its neighbors do.
//!
//! Visibility is the test of Lai et al. (ECCV 2018), after Ruder, Dosovitskiy and Brox (GCPR 2016).
//!
//! Things are assumed to stay as bright as they are: nothing here withstands cuts, flashes or changes of exposure. One
//! thread works on a pair of frames, since pairs are many.

use std::array::from_fn;

use crate::error::{Error, Result};

/// A gray picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Gray {
    width_px: usize,
    height_px: usize,
    /// As many as pixels, of which there is at least one.
    values: Vec<f32>,
}

/// Where each pixel of a frame lies in another.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    width_px: usize,
    height_px: usize,
    /// As many as pixels, of which there is at least one.
    vectors: Vec<[f32; 2]>,
}

/// How [`flow`] is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowOptions {
    /// Weight of differences between gray values (0 to 1) against those between neighbors' vectors (pixels): the
    /// greater, the finer the motion that is followed, and the more noise.
    pub lambda: f32,
    /// Linearizations a level of the pyramid.
    pub warps: usize,
    /// Primal-dual iterations a linearization.
    pub iterations: usize,
}

impl Default for FlowOptions {
    /// Photographs that were moved, with noise, want a lesser `lambda`, a stereo pair a greater one; IPOL's is 38 here.
    fn default() -> Self {
        Self {
            lambda: 30.0,
            warps: 5,
            iterations: 30,
        }
    }
}

impl Gray {
    /// A picture of `values` from 0 (black) to 1 (white), row by row, `[height_px, width_px]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where there is no pixel or not one value a pixel, [`Error::Data`] where a value is not in
    /// 0..=1: [`FlowOptions::lambda`] means something else for other units.
    pub fn new(width_px: usize, height_px: usize, values: Vec<f32>) -> Result<Self> {
        check_len((width_px, height_px), values.len())?;
        if let Some(value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            let message = format!("gray values are from 0 to 1, not {value:?}");
            return Err(Error::Data(message));
        }
        Ok(Self {
            width_px,
            height_px,
            values,
        })
    }

    /// Pixels a row, and rows.
    pub fn size_px(&self) -> (usize, usize) {
        (self.width_px, self.height_px)
    }

    /// One value a pixel, row by row, `[height_px, width_px]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The value `before` pixels to the left of and above a place, or the nearest there is.
    fn nearest(&self, x: usize, y: usize, before: usize) -> f32 {
        let x = x.saturating_sub(before).min(self.width_px - 1);
        let y = y.saturating_sub(before).min(self.height_px - 1);
        self.values[y * self.width_px + x]
    }

    /// The picture at half the size; its pixel `x` lies at `2 x` of this one.
    fn halved(&self) -> Self {
        const TAPS: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];
        let (width_px, height_px) = (self.width_px.div_ceil(2), self.height_px.div_ceil(2));
        let values = (0..width_px * height_px).map(|pixel| {
            let (x, y) = (2 * (pixel % width_px), 2 * (pixel / width_px));
            let taps = (0..25).map(|tap| (tap % 5, tap / 5));
            taps.map(|(right, down)| {
                TAPS[right] * TAPS[down] * self.nearest(x + right, y + down, 2)
            })
            .sum()
        });
        Self {
            width_px,
            height_px,
            values: values.collect(),
        }
    }

    /// Value, slope along x and slope along y at a place inside the picture.
    fn cubic(&self, (x, y): (f32, f32)) -> [f32; 3] {
        let (left, top) = (x as usize, y as usize);
        let rows: [(f32, f32); 4] = from_fn(|down| {
            let samples = from_fn(|right| self.nearest(left + right, top + down, 1));
            catmull_rom(samples, x - left as f32)
        });
        let share = y - top as f32;
        let (value, slope_y) = catmull_rom(rows.map(|(value, _)| value), share);
        let (slope_x, _) = catmull_rom(rows.map(|(_, slope)| slope), share);
        [value, slope_x, slope_y]
    }
}

impl Flow {
    /// A flow of `vectors`, row by row, `[height_px, width_px]`: what lies at `(x, y)` of the one frame lies at
    /// `(x + vector[0], y + vector[1])` of the other, in pixels.
    ///
    /// # Errors
    /// [`Error::Shape`] where there is no pixel or not one vector a pixel, [`Error::Data`] where a vector is not
    /// finite.
    pub fn new(width_px: usize, height_px: usize, vectors: Vec<[f32; 2]>) -> Result<Self> {
        check_len((width_px, height_px), vectors.len())?;
        if let Some(vector) = vectors
            .iter()
            .find(|[x, y]| !(x.is_finite() && y.is_finite()))
        {
            return Err(Error::Data(format!("a vector of a flow is {vector:?}")));
        }
        Ok(Self {
            width_px,
            height_px,
            vectors,
        })
    }

    /// Pixels a row, and rows.
    pub fn size_px(&self) -> (usize, usize) {
        (self.width_px, self.height_px)
    }

    /// Displacement `[x, y]` of each pixel, in pixels, row by row, `[height_px, width_px]`.
    pub fn vectors(&self) -> &[[f32; 2]] {
        &self.vectors
    }

    /// Where a pixel lies in the other frame, in pixels from its first one.
    fn place(&self, pixel: usize) -> (f32, f32) {
        let ([right, down], (x, y)) = (self.vectors[pixel], position(pixel, self.width_px));
        (x + right, y + down)
    }

    /// Whether a place lies between the outermost pixels.
    fn holds(&self, (x, y): (f32, f32)) -> bool {
        let to_last = |len: usize| 0.0..=(len - 1) as f32;
        to_last(self.width_px).contains(&x) && to_last(self.height_px).contains(&y)
    }

    /// The vector at a place in pixels, bilinear, or at the nearest one in the frame.
    pub fn at(&self, place: (f32, f32)) -> [f32; 2] {
        from_fn(|axis| bilinear(self.size_px(), place, |pixel| self.vectors[pixel][axis]))
    }
}

/// The flow from one frame to another of the same size.
///
/// # Errors
/// [`Error::Shape`] where the sizes differ, [`Error::Config`] where an option is not positive.
pub fn flow(from: &Gray, to: &Gray, options: &FlowOptions) -> Result<Flow> {
    /// The shorter side of the coarsest level is not halved further: too little would be left to compare.
    const COARSEST_PX: usize = 32;

    check_same(from.size_px(), to.size_px())?;
    let positive = options.lambda.is_finite() && options.lambda > 0.0;
    if !positive || options.warps == 0 || options.iterations == 0 {
        let message = format!("options of a flow must be positive, got {options:?}");
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

/// What `flow` leads to, brought back to where it starts, bilinear: `warped(x) = values(x + flow(x))`.
///
/// Beyond the frame, the nearest value counts; [`visibility`] tells where.
///
/// # Shapes
/// - `values`: `[height_px, width_px]` of the flow, as the result
///
/// # Errors
/// [`Error::Shape`] where there is not one value a pixel.
pub fn warp(values: &[f32], flow: &Flow) -> Result<Vec<f32>> {
    check_len(flow.size_px(), values.len())?;
    let warped = (0..values.len())
        .map(|pixel| bilinear(flow.size_px(), flow.place(pixel), |pixel| values[pixel]));
    Ok(warped.collect())
}

/// Which pixels of the frame that `forward` starts from can be seen in the frame that it leads to.
///
/// With `f = forward(x)` and `b = backward(x + f)`, a pixel is hidden where `|f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5`,
/// and not to be trusted at a motion boundary, where `|grad f|^2 > 0.01 |f|^2 + 0.002` (Lai et al., ECCV 2018, whose
/// code is followed where it squares the magnitudes; differences to the neighbors on the right and below).
/// What leaves the frame is hidden too, which their code leaves to the first test.
///
/// # Shapes
/// - result: `[height_px, width_px]`
///
/// # Errors
/// [`Error::Shape`] where the sizes differ.
pub fn visibility(forward: &Flow, backward: &Flow) -> Result<Vec<bool>> {
    check_same(forward.size_px(), backward.size_px())?;
    let (width, height) = forward.size_px();
    let squared = |[x, y]: [f32; 2]| x * x + y * y;
    let visible = forward.vectors.iter().enumerate().map(|(pixel, &ahead)| {
        let place = forward.place(pixel);
        let back = backward.at(place);
        let returned = squared([ahead[0] + back[0], ahead[1] + back[1]]);
        let change = |exists: bool, neighbor: usize| {
            let [x, y] = forward.vectors[if exists { neighbor } else { pixel }];
            squared([x - ahead[0], y - ahead[1]])
        };
        let gradient = change(pixel % width + 1 < width, pixel + 1)
            + change(pixel / width + 1 < height, pixel + width);
        forward.holds(place)
            && returned <= 0.01 * (squared(ahead) + squared(back)) + 0.5
            && gradient <= 0.01 * squared(ahead) + 0.002
    });
    Ok(visible.collect())
}

fn check_len((width_px, height_px): (usize, usize), len: usize) -> Result<()> {
    if len > 0 && width_px.checked_mul(height_px) == Some(len) {
        return Ok(());
    }
    Err(Error::Shape {
        expected: format!("one value for each of {width_px} x {height_px} pixels"),
        got: format!("{len} values"),
    })
}

fn check_same(expected: (usize, usize), got: (usize, usize)) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape {
        expected: format!("{} x {} pixels", expected.0, expected.1),
        got: format!("{} x {}", got.0, got.1),
    })
}

fn position(pixel: usize, width: usize) -> (f32, f32) {
    ((pixel % width) as f32, (pixel / width) as f32)
}

/// Bilinear value at a place, or at the nearest one in the frame. Where all samples are equal, so is the result.
pub(super) fn bilinear(
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

/// Value and slope at `share` of the way from the second of four samples to the third.
fn catmull_rom([before, from, to, after]: [f32; 4], share: f32) -> (f32, f32) {
    let linear = 0.5 * (to - before);
    let square = before - 2.5 * from + 2.0 * to - 0.5 * after;
    let cube = 0.5 * (after - before) + 1.5 * (from - to);
    let value = from + share * (linear + share * (square + share * cube));
    let slope = linear + share * (2.0 * square + share * 3.0 * cube);
    (value, slope)
}

/// The difference of gray values where a pixel's vector is near an estimate: `offset + slope · vector`.
#[derive(Clone, Copy, Default)]
struct Residual {
    offset: f32,
    slope: [f32; 2],
}

/// The dual variables: for both components of each pixel's vector a gradient of length 1 at most.
struct Duals {
    /// `[height, width, 2]`, flat, as `along_y`.
    along_x: Vec<f32>,
    along_y: Vec<f32>,
}

/// Length of steps of both variables: the greatest for which algorithm 1 converges, since `|grad|^2 <= 8`.
const STEP: f32 = 0.353_553_4;

impl Flow {
    /// The same motion between pictures of twice the size.
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

    fn refine(&mut self, from: &Gray, to: &Gray, options: &FlowOptions) {
        let mut duals = Duals {
            along_x: vec![0.0; 2 * self.vectors.len()],
            along_y: vec![0.0; 2 * self.vectors.len()],
        };
        for _ in 0..options.warps {
            let residuals = self.linearize(from, to);
            let mut ahead = self.vectors.clone();
            for _ in 0..options.iterations {
                duals.ascend(ahead.as_flattened(), 2 * self.width_px);
                self.descend(&duals, &residuals, options.lambda, &mut ahead);
            }
            self.vectors = self.medians();
        }
    }

    fn linearize(&self, from: &Gray, to: &Gray) -> Vec<Residual> {
        let residuals = self.vectors.iter().enumerate().map(|(pixel, [x, y])| {
            let place = self.place(pixel);
            if !self.holds(place) {
                return Residual::default();
            }
            let [value, value_x, value_y] = to.cubic(place);
            let [own, own_x, own_y] = from.cubic(position(pixel, self.width_px));
            let slope = [0.5 * (value_x + own_x), 0.5 * (value_y + own_y)];
            Residual {
                offset: value - own - slope[0] * x - slope[1] * y,
                slope,
            }
        });
        residuals.collect()
    }

    /// A step of the primal variable, and its extrapolation `ahead`.
    fn descend(
        &mut self,
        duals: &Duals,
        residuals: &[Residual],
        lambda: f32,
        ahead: &mut [[f32; 2]],
    ) {
        let limit = STEP * lambda;
        let mut moved = vec![[0.0; 2]; self.width_px];
        let rows = self.vectors.chunks_exact_mut(self.width_px);
        let ahead = ahead.chunks_exact_mut(self.width_px);
        let residuals = residuals.chunks_exact(self.width_px);
        for (row, ((vectors, ahead), residuals)) in rows.zip(ahead).zip(residuals).enumerate() {
            duals.move_along_divergence(vectors.as_flattened(), row, moved.as_flattened_mut());
            let pixels = vectors.iter_mut().zip(ahead);
            for ((vector, ahead), (moved, residual)) in pixels.zip(moved.iter().zip(residuals)) {
                let [slope_x, slope_y] = residual.slope;
                let difference = residual.offset + slope_x * moved[0] + slope_y * moved[1];
                // To where nothing differs, but not further than the limit: the thresholding of Zach et al.
                let least = difference / (slope_x * slope_x + slope_y * slope_y).max(1e-12);
                let step = least.clamp(-limit, limit);
                let next = [moved[0] - step * slope_x, moved[1] - step * slope_y];
                *ahead = [2.0 * next[0] - vector[0], 2.0 * next[1] - vector[1]];
                *vector = next;
            }
        }
    }

    /// Medians of 3 x 3 vectors, where those beyond the frame are the nearest in it.
    fn medians(&self) -> Vec<[f32; 2]> {
        let (width, height) = self.size_px();
        let median = |pixel: usize, axis: usize| {
            let mut window: [f32; 9] = from_fn(|idx| {
                let x = (pixel % width + idx % 3).saturating_sub(1).min(width - 1);
                let y = (pixel / width + idx / 3).saturating_sub(1).min(height - 1);
                self.vectors[y * width + x][axis]
            });
            *window.select_nth_unstable_by(4, f32::total_cmp).1
        };
        let pixels = 0..self.vectors.len();
        pixels
            .map(|pixel| from_fn(|axis| median(pixel, axis)))
            .collect()
    }
}

impl Duals {
    /// A step along the gradient of the vectors, `[height, width, 2]`, whose rows are `len` long.
    fn ascend(&mut self, vectors: &[f32], len: usize) {
        /// Changes of flow up to this, in pixels a pixel, count squared and not absolute.
        const HUBER: f32 = 0.03;
        const SHRINK: f32 = 1.0 / (1.0 + STEP * HUBER);

        let rows = vectors.chunks_exact(len);
        // Nothing is below the last row: against itself, it does not change. So it is with the last column.
        let below = rows.clone().skip(1).chain(rows.clone().next_back());
        let along_x = self.along_x.chunks_exact_mut(len);
        let along_y = self.along_y.chunks_exact_mut(len);
        for ((row, below), (along_x, along_y)) in rows.zip(below).zip(along_x.zip(along_y)) {
            let (row, below) = (&row[..len], &below[..len]);
            let (along_x, along_y) = (&mut along_x[..len], &mut along_y[..len]);
            let mut step = |idx: usize, right: f32| {
                let x = SHRINK * (along_x[idx] + STEP * (right - row[idx]));
                let y = SHRINK * (along_y[idx] + STEP * (below[idx] - row[idx]));
                let length = (x * x + y * y).sqrt().max(1.0);
                (along_x[idx], along_y[idx]) = (x / length, y / length);
            };
            (0..len - 2).for_each(|idx| step(idx, row[idx + 2]));
            (len - 2..len).for_each(|idx| step(idx, row[idx]));
        }
    }

    /// A row of vectors, moved by a step along the divergence.
    fn move_along_divergence(&self, vectors: &[f32], row: usize, moved: &mut [f32]) {
        let len = vectors.len();
        let (along_x, along_y) = (&self.along_x[row * len..], &self.along_y[row * len..]);
        let here = along_x.iter().zip(along_y);
        for ((moved, vector), (x, y)) in moved.iter_mut().zip(vectors).zip(here) {
            *moved = vector + STEP * (x + y);
        }
        for (moved, x) in moved.iter_mut().skip(2).zip(along_x) {
            *moved -= STEP * x;
        }
        if let Some(above) = row.checked_sub(1) {
            for (moved, y) in moved.iter_mut().zip(&self.along_y[above * len..]) {
                *moved -= STEP * y;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::rng::Rng;

    const SIZE_PX: (usize, usize) = (192, 144);
    /// Waves of 6 to 80 pixels in all directions: smooth, and known between pixels too.
    fn texture() -> impl Fn(f64, f64) -> f64 {
        let mut rng = Rng::new(7);
        let waves: [_; 60] = from_fn(|_| {
            let [length, direction, phase] = from_fn(|_| f64::from(rng.uniform()));
            let length = 6.0 * (80.0_f64 / 6.0).powf(length);
            let (sine, cosine) = (TAU * direction).sin_cos();
            let along = [cosine, sine].map(|share| TAU / length * share);
            (along, TAU * phase, 0.004 * length.sqrt())
        });
        move |x, y| {
            let wave = |([along_x, along_y], phase, height): &([f64; 2], f64, f64)| {
                height * (along_x * x + along_y * y + phase).sin()
            };
            0.5 + waves.iter().map(wave).sum::<f64>()
        }
    }

    fn gray(value: impl Fn(f64, f64) -> f64) -> Gray {
        let (width, height) = SIZE_PX;
        let values = (0..width * height).map(|pixel| {
            let (x, y) = position(pixel, width);
            value(x.into(), y.into()).clamp(0.0, 1.0) as f32
        });
        Gray::new(width, height, values.collect()).unwrap()
    }

    /// Frames of a texture that turns and grows around their center and is shifted then, and the true flow.
    fn moving(degrees: f64, zoom: f64, shift: [f64; 2]) -> (Gray, Gray, Flow) {
        let (width, height) = SIZE_PX;
        let (center_x, center_y) = ((width - 1) as f64 / 2.0, (height - 1) as f64 / 2.0);
        let turned = |degrees: f64, zoom: f64, x: f64, y: f64| {
            let (sine, cosine) = degrees.to_radians().sin_cos();
            let (x, y) = (zoom * (x - center_x), zoom * (y - center_y));
            let (turned_x, turned_y) = (cosine * x - sine * y, sine * x + cosine * y);
            [center_x + turned_x, center_y + turned_y]
        };
        let texture = texture();
        let to = gray(|x, y| {
            let [x, y] = turned(-degrees, 1.0 / zoom, x - shift[0], y - shift[1]);
            texture(x, y)
        });
        let vectors = (0..width * height).map(|pixel| {
            let (x, y) = position(pixel, width);
            let [to_x, to_y] = turned(degrees, zoom, x.into(), y.into());
            [(to_x + shift[0]) as f32 - x, (to_y + shift[1]) as f32 - y]
        });
        let truth = Flow::new(width, height, vectors.collect()).unwrap();
        (gray(texture), to, truth)
    }

    /// Mean endpoint error over all pixels, in pixels.
    fn mean_error(from: &Gray, to: &Gray, truth: &Flow) -> f32 {
        let found = flow(from, to, &FlowOptions::default()).unwrap();
        let error =
            |([x, y], [true_x, true_y]): (&[f32; 2], &[f32; 2])| (x - true_x).hypot(y - true_y);
        let errors = found.vectors.iter().zip(&truth.vectors).map(error);
        errors.sum::<f32>() / truth.vectors.len() as f32
    }

    fn check_motion(degrees: f64, zoom: f64, shift: [f64; 2]) {
        let (from, to, truth) = moving(degrees, zoom, shift);
        let error = mean_error(&from, &to, &truth);
        assert!(error < 0.02, "{error} px: {degrees}, {zoom}, {shift:?}");
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
        let (mut from, mut to, truth) = moving(2.0, 1.0, [0.0; 2]);
        for value in from.values.iter_mut().chain(&mut to.values) {
            // Uniform, of a standard deviation of 2 of 255.
            *value += (rng.uniform() - 0.5) * 48.0_f32.sqrt() / 255.0;
        }
        let error = mean_error(&from, &to, &truth);
        assert!(error < 0.1, "{error} px");
    }

    #[test]
    fn cubics_are_exact_on_parabolas() {
        assert_eq!(catmull_rom([1.0, 0.0, 1.0, 4.0], 0.25), (0.0625, 0.5));
    }

    #[test]
    fn nothing_moves_between_equal_frames_or_flat_ones() {
        let line = Gray::new(1, 3, vec![0.0, 0.5, 1.0]).unwrap();
        let (textured, dark, light) = (gray(texture()), gray(|_, _| 0.2), gray(|_, _| 0.8));
        for (from, to) in [(&textured, &textured), (&line, &line), (&dark, &light)] {
            let found = flow(from, to, &FlowOptions::default()).unwrap();
            let mut components = found.vectors.as_flattened().iter();
            assert!(components.all(|component| component.abs() < 1e-4));
        }
    }

    #[test]
    fn warping_by_the_true_flow_gives_the_first_frame_back() {
        let (from, to, truth) = moving(2.0, 1.0, [3.0, 0.0]);
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
        let texture = texture();
        let frame = |left: f64| {
            gray(|x, y| {
                let on_square = (left..left + 48.0).contains(&x) && (48.0..96.0).contains(&y);
                // Far away, the texture is another one.
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
        // From where the third leads nothing returns, the next two lie beside another motion, the last one leaves.
        let forward = flow([1.0, 1.0, 1.0, 1.0, 0.0, 0.5]);
        let backward = flow([0.0, -1.0, -1.0, 0.0, -1.0, 0.0]);
        let visible = visibility(&forward, &backward).unwrap();
        assert_eq!(visible, [true, true, false, false, false, false]);
    }

    #[test]
    fn sizes_and_values_that_do_not_fit_are_refused() {
        let frame = |width, height| Gray::new(width, height, vec![0.5; width * height]);
        let (wide, high) = (frame(4, 3).unwrap(), frame(3, 4).unwrap());
        let options = FlowOptions::default();
        let mut none = options;
        none.lambda = 0.0;
        let still = |frame: &Gray| flow(frame, frame, &options).unwrap();
        let shape_errors = [
            flow(&wide, &high, &options).err(),
            frame(0, 3).err(),
            Gray::new(2, 2, vec![0.5; 3]).err(),
            warp(&[0.0; 3], &still(&wide)).err(),
            visibility(&still(&wide), &still(&high)).err(),
        ];
        let is_shape = |error| matches!(error, Some(Error::Shape { .. }));
        assert!(shape_errors.into_iter().all(is_shape));
        let data_errors = [
            Gray::new(1, 1, vec![f32::NAN]).err(),
            Gray::new(1, 1, vec![255.0]).err(),
            Flow::new(1, 1, vec![[0.0, f32::NAN]]).err(),
        ];
        let is_data = |error| matches!(error, Some(Error::Data(_)));
        assert!(data_errors.into_iter().all(is_data));
        assert!(matches!(flow(&wide, &wide, &none), Err(Error::Config(_))));
    }
}
