//! Replacement of hidden pixels in ROAD (remove and debias): noisy linear imputation.
//!
//! Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022,
//! arXiv:2202.00449. Matches `noisy_linear_imputation` of Quantus 0.6.0, which follows the authors' code.
//!
//! The outline of black or gray pixels reveals to a model which pixels are hidden. Here, a hidden pixel i is the
//! weighted mean of its neighbors j, known or hidden, that lie inside the image:
//!
//! Σ_j w_ij (x_i − x_j) = 0, with w = 1/6 for the four edge neighbors and 1/12 for the four diagonal neighbors.
//!
//! The smoothness of the fill would again reveal the hidden pixels, so noise is added.
//!
//! The system is symmetric, and positive definite if at least one pixel is known. It is solved by conjugate gradients,
//! preconditioned by multigrid over groups of 2 × 2 cells (Braess, "Towards algebraic multigrid for elliptic problems
//! of second order", Computing 55, 1995), so large holes take no more steps than small ones.

use std::ops::{Mul, SubAssign};

use super::mean;
use vitscope_core::error::{Error, Result};
use vitscope_core::rng::Rng;

/// 12 w to the east, southwest, south and southeast. Whole numbers, so that sums on coarser grids are exact in f32.
const WEIGHTS: [f32; 4] = [2.0, 1.0, 2.0, 1.0];
/// Error at which conjugate gradients stop: in the norm of the system, relative to the initial error.
const TOLERANCE: f64 = 2e-7;
/// Five are enough for most images, whatever is hidden.
const MAX_STEPS: usize = 100;
/// Jacobi's method converges on every grid with any factor below 1. With 0.8, images one pixel high need several times
/// as many steps.
const RELAXATION: f32 = 2.0 / 3.0;
/// One value per group makes coarser grids too stiff, so their corrections are scaled up.
const OVERCORRECTION: f32 = 1.5;

/// Fills hidden pixels from known ones, separately for each channel, and adds normal noise to them.
///
/// The result is within 1e-5 of the exact solution for an image normalized to a standard deviation of 1. Noise is drawn
/// for hidden pixels only, channel by channel and row by row. If all pixels are hidden, nothing determines them
/// (Quantus returns 0 or NaN, depending on rounding): they become the mean of their channel plus noise.
///
/// # Shapes
/// - `image`, result: `[channels, height, width]`
/// - `size_px`: height, width
/// - `hidden`: `[height, width]`
/// - `noise`: standard deviation in units of the image, 0.01 by default in Quantus
///
/// # Errors
/// [`Error::Shape`] if there are no pixels, or if the number of flags or values does not match the size;
/// [`Error::Data`] if a value is not finite; [`Error::Config`] if the standard deviation is negative or not finite.
pub fn imputed(
    image: &[f32],
    size_px: (usize, usize),
    hidden: &[bool],
    noise: f32,
    rng: &mut Rng,
) -> Result<Vec<f32>> {
    check(image, size_px, hidden, noise)?;
    let all_hidden = hidden.iter().all(|&is_hidden| is_hidden);
    let system = System::new(size_px, hidden);
    let mut filled = image.to_vec();
    for channel in filled.chunks_exact_mut(hidden.len()) {
        let pixels = channel.iter().zip(hidden);
        let counted: Vec<f64> = pixels
            .filter(|&(_, &is_hidden)| !is_hidden || all_hidden)
            .map(|(&value, _)| f64::from(value))
            .collect();
        let mean = mean(counted.into_iter());
        let differences = system.solve(channel, mean);
        for ((value, difference), &is_hidden) in channel.iter_mut().zip(differences).zip(hidden) {
            if is_hidden {
                *value = (mean + difference) as f32 + noise * rng.normal();
            }
        }
    }
    Ok(filled)
}

fn check(
    image: &[f32],
    (height, width): (usize, usize),
    hidden: &[bool],
    noise: f32,
) -> Result<()> {
    if hidden.is_empty() || height.checked_mul(width) != Some(hidden.len()) {
        return Err(Error::Shape {
            expected: format!("a flag for each of {height} x {width} pixels"),
            got: format!("{} flags", hidden.len()),
        });
    }
    if image.is_empty() || !image.len().is_multiple_of(hidden.len()) {
        return Err(Error::Shape {
            expected: format!("channels of {height} x {width} values"),
            got: format!("{} values", image.len()),
        });
    }
    if let Some(idx) = image.iter().position(|value| !value.is_finite()) {
        let value = image[idx];
        return Err(Error::Data(format!(
            "value {idx} of the picture is {value}"
        )));
    }
    if !(noise.is_finite() && noise >= 0.0) {
        return Err(Error::Config(format!(
            "noise has a standard deviation of {noise}, expected a finite one of at least 0"
        )));
    }
    Ok(())
}

/// Equations of all hidden pixels, A x = b.
struct System {
    /// A on each grid, finest first.
    grids: Vec<Grid>,
    /// Hidden pixel, known neighbor and the weight between them; b is built from these.
    borders: Vec<(usize, usize, f32)>,
}

impl System {
    fn new(size: (usize, usize), hidden: &[bool]) -> Self {
        let mut finest = Grid::untied(size);
        let mut borders = Vec::new();
        for pixel in 0..hidden.len() {
            for (direction, next) in next_neighbors(pixel, size) {
                let weight = WEIGHTS[direction];
                if hidden[pixel] {
                    finest.diagonal[pixel] += weight;
                }
                if hidden[next] {
                    finest.diagonal[next] += weight;
                }
                match (hidden[pixel], hidden[next]) {
                    (true, true) => finest.ties[direction][pixel] = weight,
                    (true, false) => borders.push((pixel, next, weight)),
                    (false, true) => borders.push((next, pixel, weight)),
                    (false, false) => {}
                }
            }
        }
        let mut grids = vec![finest];
        while let Some(coarser) = grids.last().and_then(Grid::coarser) {
            grids.push(coarser);
        }
        Self { grids, borders }
    }

    /// Returns the offsets of hidden pixels from `origin`, and 0 for all other pixels.
    fn solve(&self, channel: &[f32], origin: f64) -> Vec<f64> {
        let mut residual = vec![0.0; channel.len()];
        for &(pixel, known, weight) in &self.borders {
            residual[pixel] += f64::from(weight) * (f64::from(channel[known]) - origin);
        }
        let mut x = vec![0.0; channel.len()];
        let mut direction = self.precondition(&residual);
        let mut energy = dot(&residual, &direction);
        let enough = TOLERANCE.powi(2) * energy;
        for _ in 0..MAX_STEPS {
            if energy <= enough {
                break;
            }
            let product = self.grids[0].times(&direction);
            let step = energy / dot(&direction, &product);
            add_scaled(&mut x, step, &direction);
            add_scaled(&mut residual, -step, &product);
            let correction = self.precondition(&residual);
            let next_energy = dot(&residual, &correction);
            for (direction, correction) in direction.iter_mut().zip(correction) {
                *direction = correction + next_energy / energy * *direction;
            }
            energy = next_energy;
        }
        x
    }

    /// Approximates A⁻¹ b; single precision is enough for this.
    fn precondition(&self, right: &[f64]) -> Vec<f64> {
        let right: Vec<f32> = right.iter().map(|&b| b as f32).collect();
        let x = cycle(&self.grids[0], &self.grids[1..], &right);
        x.into_iter().map(f64::from).collect()
    }
}

/// Hidden pixels, or groups of them, and their couplings: (A x)_i = a_i x_i − Σ_j t_ij x_j.
struct Grid {
    size: (usize, usize),
    /// t_ij with the next cell to the east, southwest, south and southeast.
    ties: [Vec<f32>; 4],
    /// a_i, 0 where no pixel is hidden.
    diagonal: Vec<f32>,
}

impl Grid {
    fn untied((height, width): (usize, usize)) -> Self {
        Self {
            size: (height, width),
            ties: [(); 4].map(|()| vec![0.0; height * width]),
            diagonal: vec![0.0; height * width],
        }
    }

    /// Returns the same system with one value per group of 2 × 2 cells (Galerkin); `None` if there is only one cell.
    fn coarser(&self) -> Option<Self> {
        let (height, width) = self.size;
        if self.diagonal.len() == 1 {
            return None;
        }
        let mut coarser = Self::untied((height.div_ceil(2), width.div_ceil(2)));
        let group = |cell: usize| (cell / width / 2, cell % width / 2);
        let cell = |(row, column): (usize, usize)| row * coarser.size.1 + column;
        for fine in 0..self.diagonal.len() {
            let own = group(fine);
            coarser.diagonal[cell(own)] += self.diagonal[fine];
            for (direction, next) in next_neighbors(fine, self.size) {
                let tie = self.ties[direction][fine];
                let other = group(next);
                let (first, last) = (own.min(other), own.max(other));
                if first == last {
                    coarser.diagonal[cell(own)] -= 2.0 * tie;
                } else if first.0 == last.0 {
                    coarser.ties[0][cell(first)] += tie;
                } else {
                    coarser.ties[2 + last.1 - first.1][cell(first)] += tie;
                }
            }
        }
        Some(coarser)
    }

    /// Computes A x.
    fn times<T>(&self, x: &[T]) -> Vec<T>
    where
        T: Copy + From<f32> + Mul<Output = T> + SubAssign,
    {
        let products = self.diagonal.iter().zip(x);
        let mut products: Vec<T> = products.map(|(&a, &x)| T::from(a) * x).collect();
        for (ties, offset) in self.ties.iter().zip(offsets(self.size.1)) {
            // Couplings across the image border are 0, so it does not matter which cells these offsets reach.
            let ahead = x.get(offset..).unwrap_or_default();
            for ((product, &tie), &x) in products.iter_mut().zip(ties).zip(ahead) {
                *product -= T::from(tie) * x;
            }
            let behind = products.get_mut(offset..).unwrap_or_default();
            for ((product, &tie), &x) in behind.iter_mut().zip(ties).zip(x) {
                *product -= T::from(tie) * x;
            }
        }
        products
    }

    /// Computes b − A x.
    fn residual(&self, right: &[f32], x: &[f32]) -> Vec<f32> {
        let products = self.times(x).into_iter();
        products
            .zip(right)
            .map(|(product, b)| b - product)
            .collect()
    }

    /// Adds `factor` times the residual divided by the diagonal.
    fn relax(&self, x: &mut [f32], residual: &[f32], factor: f32) {
        for ((x, residual), &a) in x.iter_mut().zip(residual).zip(&self.diagonal) {
            *x += if a > 0.0 { factor * residual / a } else { 0.0 };
        }
    }

    /// Sums the cells of each group.
    fn group_sums(&self, cells: &[f32]) -> Vec<f32> {
        let (height, width) = self.size;
        let n_columns = width.div_ceil(2);
        let mut sums = vec![0.0; height.div_ceil(2) * n_columns];
        for (rows, sums) in cells.chunks(2 * width).zip(sums.chunks_mut(n_columns)) {
            for row in rows.chunks(width) {
                let (pairs, single) = row.as_chunks();
                for (sum, [left, right]) in sums.iter_mut().zip(pairs) {
                    *sum += left + right;
                }
                for (sum, cell) in sums[pairs.len()..].iter_mut().zip(single) {
                    *sum += cell;
                }
            }
        }
        sums
    }

    /// Adds the scaled-up value of its group to every cell.
    fn add_groups(&self, x: &mut [f32], groups: &[f32]) {
        let width = self.size.1;
        for (rows, groups) in x
            .chunks_mut(2 * width)
            .zip(groups.chunks(width.div_ceil(2)))
        {
            for row in rows.chunks_mut(width) {
                let (pairs, single) = row.as_chunks_mut();
                for ([left, right], group) in pairs.iter_mut().zip(groups) {
                    *left += OVERCORRECTION * group;
                    *right += OVERCORRECTION * group;
                }
                for (cell, group) in single.iter_mut().zip(&groups[pairs.len()..]) {
                    *cell += OVERCORRECTION * group;
                }
            }
        }
    }
}

/// Approximates A⁻¹ b by one multigrid W-cycle, symmetric as conjugate gradients require.
fn cycle(grid: &Grid, coarser: &[Grid], right: &[f32]) -> Vec<f32> {
    let mut x = vec![0.0; right.len()];
    let Some((next, coarsest)) = coarser.split_first() else {
        grid.relax(&mut x, right, 1.0);
        return x;
    };
    grid.relax(&mut x, right, RELAXATION);
    for _ in 0..2 {
        let sums = grid.group_sums(&grid.residual(right, &x));
        grid.add_groups(&mut x, &cycle(next, coarsest, &sums));
        let residual = grid.residual(right, &x);
        grid.relax(&mut x, &residual, RELAXATION);
    }
    x
}

/// Returns the neighbors of a cell that follow it in row-major order, as direction and cell.
fn next_neighbors(
    cell: usize,
    (height, width): (usize, usize),
) -> impl Iterator<Item = (usize, usize)> {
    let (row, column) = (cell / width, cell % width);
    let (west, east, south) = (column > 0, column + 1 < width, row + 1 < height);
    let exists = [east, south && west, south, south && east];
    let neighbors = offsets(width).into_iter().enumerate();
    neighbors
        .filter(move |&(direction, _)| exists[direction])
        .map(move |(direction, offset)| (direction, cell + offset))
}

/// Returns the index offsets of the neighbors to the east, southwest, south and southeast.
fn offsets(width: usize) -> [usize; 4] {
    [1, width - 1, width, width + 1]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(sum: &mut [f64], scale: f64, terms: &[f64]) {
    for (sum, term) in sum.iter_mut().zip(terms) {
        *sum += scale * term;
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::resized;
    use super::*;

    /// Written by `tests/fixtures/road.py`, which calls Quantus.
    #[derive(Deserialize)]
    struct Reference {
        imputations: Vec<Imputation>,
        curve: Curve,
    }

    #[derive(Deserialize)]
    struct Imputation {
        channels: usize,
        height: usize,
        width: usize,
        image: Vec<f32>,
        hidden: Vec<usize>,
        imputed: Vec<f32>,
    }

    #[derive(Deserialize)]
    struct Curve {
        height: usize,
        width: usize,
        grid: (usize, usize),
        weights: Vec<f32>,
        images: Vec<Vec<f32>>,
        labels: Vec<usize>,
        maps: Vec<Vec<f32>>,
        percent: Vec<usize>,
        most: Hidden,
        least: Hidden,
    }

    #[derive(Deserialize)]
    struct Hidden {
        accuracy: Vec<f64>,
        probabilities: Vec<Vec<f64>>,
    }

    fn reference() -> Reference {
        serde_json::from_str(include_str!("../../../tests/fixtures/road.json")).unwrap()
    }

    fn flags(n_pixels: usize, hidden: &[usize]) -> Vec<bool> {
        (0..n_pixels).map(|pixel| hidden.contains(&pixel)).collect()
    }

    fn without_noise(image: &[f32], size: (usize, usize), hidden: &[bool]) -> Vec<f32> {
        imputed(image, size, hidden, 0.0, &mut Rng::new(1)).unwrap()
    }

    fn drawn(n_values: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..n_values).map(|_| rng.normal()).collect()
    }

    fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst <= tolerance, "{worst}");
    }

    #[test]
    fn pictures_are_filled_as_quantus_fills_them() {
        for case in reference().imputations {
            let size = (case.height, case.width);
            assert_eq!(case.image.len(), case.channels * case.height * case.width);
            let hidden = flags(case.height * case.width, &case.hidden);
            let found = without_noise(&case.image, size, &hidden);
            assert_close(&found, &case.imputed, 1e-5);
        }
    }

    /// The pixel order and the model's outputs are computed by hand; the test compares the images.
    #[test]
    fn curves_over_filled_pictures_are_those_of_quantus() {
        let curve = reference().curve;
        let size = (curve.height, curve.width);
        let n_pixels = curve.height * curve.width;
        for (sign, expected) in [(1.0, &curve.most), (-1.0, &curve.least)] {
            let mut n_right = vec![0; curve.percent.len()];
            for (idx, (image, map)) in curve.images.iter().zip(&curve.maps).enumerate() {
                let scores = resized(map, curve.grid, size);
                let mut order: Vec<usize> = (0..n_pixels).collect();
                order.sort_by(|&a, &b| (sign * scores[b]).total_cmp(&(sign * scores[a])));
                for (point, percent) in curve.percent.iter().enumerate() {
                    let hidden = flags(n_pixels, &order[..n_pixels * percent / 100]);
                    let filled = without_noise(image, size, &hidden);
                    let logits = curve.weights.chunks(filled.len()).map(|weights| {
                        let products = weights.iter().zip(&filled);
                        products.map(|(weight, value)| f64::from(weight * value))
                    });
                    let odds: Vec<f64> = logits.map(|terms| terms.sum::<f64>().exp()).collect();
                    let label = curve.labels[idx];
                    let probability = odds[label] / odds.iter().sum::<f64>();
                    let difference = probability - expected.probabilities[idx][point];
                    assert!(difference.abs() < 1e-5, "{idx}, {percent} %: {difference}");
                    n_right[point] += usize::from(odds.iter().all(|other| *other <= odds[label]));
                }
            }
            for (n_right, accuracy) in n_right.iter().zip(&expected.accuracy) {
                let found = *n_right as f64 / curve.images.len() as f64;
                assert!((found - accuracy).abs() < 1e-9, "{found} {accuracy}");
            }
        }
    }

    /// 25 at the edges and −3 at the corners: (4 · 25 / 6 − 4 · 3 / 12) / (4 / 6 + 4 / 12).
    #[test]
    fn a_single_hidden_pixel_is_the_weighted_mean_of_its_neighbors() {
        let image = [-3.0, 25.0, -3.0, 25.0, 99.0, 25.0, -3.0, 25.0, -3.0];
        let found = without_noise(&image, (3, 3), &flags(9, &[4]));
        assert!(
            (found[4] - (100.0 / 6.0 - 1.0)).abs() < 1e-5,
            "{}",
            found[4]
        );
        // At the corner three neighbors remain: (2 · 25 / 6 + 99 / 12) / (2 / 6 + 1 / 12).
        let found = without_noise(&image, (3, 3), &flags(9, &[0]));
        assert!((found[0] - 39.8).abs() < 1e-5, "{}", found[0]);
    }

    #[test]
    fn each_channel_is_filled_from_itself() {
        let image: Vec<f32> = [0.25, -7.5].iter().flat_map(|&value| [value; 20]).collect();
        let mut holed = image.clone();
        let hidden: Vec<bool> = (0..20).map(|pixel| pixel % 7 != 3).collect();
        for (idx, value) in holed.iter_mut().enumerate() {
            if hidden[idx % 20] {
                *value = 1e3;
            }
        }
        assert_eq!(without_noise(&holed, (4, 5), &hidden), image);
    }

    #[test]
    fn a_ramp_is_restored_inside_of_the_picture() {
        let (height, width) = (37, 50);
        let ramp = |pixel: usize| 0.03 * (pixel / width) as f32 - 0.05 * (pixel % width) as f32;
        let image: Vec<f32> = (0..height * width).map(ramp).collect();
        let is_inside = |pixel: usize| {
            (1..height - 1).contains(&(pixel / width)) && (1..width - 1).contains(&(pixel % width))
        };
        let hidden: Vec<bool> = (0..height * width).map(is_inside).collect();
        let mut holed = image.clone();
        for (value, _) in holed.iter_mut().zip(&hidden).filter(|(_, hidden)| **hidden) {
            *value = 0.0;
        }
        assert_close(
            &without_noise(&holed, (height, width), &hidden),
            &image,
            1e-5,
        );
    }

    /// Between two known pixels of a single row, the solution is a straight line.
    #[test]
    fn a_long_hole_in_a_row_is_a_line() {
        let n_pixels = 700;
        let mut image = vec![0.0; n_pixels];
        (image[0], image[n_pixels - 1]) = (-1.0, 2.0);
        let expected: Vec<f32> = (0..n_pixels)
            .map(|pixel| -1.0 + 3.0 * pixel as f32 / (n_pixels - 1) as f32)
            .collect();
        let hidden: Vec<bool> = (0..n_pixels)
            .map(|pixel| pixel != 0 && pixel != n_pixels - 1)
            .collect();
        for size in [(1, n_pixels), (n_pixels, 1)] {
            assert_close(&without_noise(&image, size, &hidden), &expected, 2e-5);
        }
    }

    /// Without a reference: compares each pixel with the mean of its own neighbors.
    #[test]
    fn large_pictures_with_little_known_satisfy_the_equation() {
        let (height, width) = (150, 131);
        let image = drawn(height * width, 3);
        let mut rng = Rng::new(4);
        let scattered: Vec<bool> = image.iter().map(|_| rng.uniform() < 0.9).collect();
        let edge: Vec<bool> = (0..image.len()).map(|pixel| pixel % width > 12).collect();
        let two: Vec<bool> = (0..image.len())
            .map(|pixel| pixel != 7 && pixel != 9000)
            .collect();
        for hidden in [scattered, edge, two] {
            let found = without_noise(&image, (height, width), &hidden);
            for pixel in (0..found.len()).filter(|&pixel| hidden[pixel]) {
                let (row, column) = (pixel / width, pixel % width);
                let (mut sum, mut weights) = (0.0, 0.0);
                for y in row.saturating_sub(1)..(row + 2).min(height) {
                    for x in column.saturating_sub(1)..(column + 2).min(width) {
                        let weight =
                            [0.0, 1.0 / 6.0, 1.0 / 12.0][row.abs_diff(y) + column.abs_diff(x)];
                        sum += weight * found[y * width + x];
                        weights += weight;
                    }
                }
                assert!((found[pixel] - sum / weights).abs() < 1e-5, "{pixel}");
            }
        }
    }

    #[test]
    fn where_nothing_is_hidden_nothing_changes() {
        let image = drawn(3 * 6 * 7, 5);
        let found = imputed(&image, (6, 7), &[false; 42], 0.5, &mut Rng::new(1)).unwrap();
        assert_eq!(found, image);
    }

    #[test]
    fn where_all_is_hidden_a_channel_is_its_mean() {
        let image = [1.0, 2.0, 3.0, 6.0, -1.0, -1.0, -2.0, 0.0];
        let found = without_noise(&image, (2, 2), &[true; 4]);
        assert_eq!(found, [3.0, 3.0, 3.0, 3.0, -1.0, -1.0, -1.0, -1.0]);
        assert_eq!(without_noise(&[0.5], (1, 1), &[true]), [0.5]);
    }

    #[test]
    fn noise_has_its_standard_deviation_and_is_on_hidden_pixels_only() {
        let image = vec![0.75; 3 * 80 * 90];
        let hidden: Vec<bool> = (0..80 * 90).map(|pixel| pixel % 10 != 0).collect();
        let found = imputed(&image, (80, 90), &hidden, 0.2, &mut Rng::new(8)).unwrap();
        let noise: Vec<f64> = found.iter().map(|value| f64::from(value - 0.75)).collect();
        let of = |wanted: bool| -> Vec<f64> {
            let noise = noise.iter().enumerate();
            let noise = noise.filter(|(idx, _)| hidden[idx % hidden.len()] == wanted);
            noise.map(|(_, noise)| *noise).collect()
        };
        assert!(of(false).iter().all(|noise| *noise == 0.0));
        let noise = of(true);
        let average = mean(noise.iter().copied());
        let deviation = mean(noise.iter().map(|noise| (noise - average).powi(2))).sqrt();
        assert!(average.abs() < 0.01, "{average}");
        assert!((deviation - 0.2).abs() < 0.01, "{deviation}");
    }

    #[test]
    fn noise_depends_on_the_seed_alone() {
        let image = drawn(3 * 64, 6);
        let hidden: Vec<bool> = (0..64).map(|pixel| pixel % 3 == 0).collect();
        let of = |seed| imputed(&image, (8, 8), &hidden, 0.01, &mut Rng::new(seed)).unwrap();
        assert_eq!(of(2), of(2));
        assert_ne!(of(2), of(3));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |image: &[f32], size, hidden: &[bool], noise| {
            let result = imputed(image, size, hidden, noise, &mut Rng::new(1));
            result.unwrap_err().to_string()
        };
        let flags = error(&[0.0; 12], (3, 4), &[true; 11], 0.0);
        assert!(
            flags.contains("3 x 4 pixels") && flags.contains("11 flags"),
            "{flags}"
        );
        let values = error(&[0.0; 13], (3, 4), &[true; 12], 0.0);
        assert!(
            values.contains("3 x 4 values") && values.contains("13 values"),
            "{values}"
        );
        assert!(error(&[], (3, 4), &[true; 12], 0.0).contains("0 values"));
        assert!(error(&[], (0, 4), &[], 0.0).contains("0 flags"));
        assert!(error(&[], (usize::MAX, 2), &[true; 2], 0.0).contains("2 flags"));
        assert!(error(&[0.0, f32::NAN], (1, 2), &[false; 2], 0.0).contains("value 1"));
        assert!(error(&[0.0; 2], (1, 2), &[false; 2], -0.1).contains("-0.1"));
        assert!(error(&[0.0; 2], (1, 2), &[false; 2], f32::INFINITY).contains("inf"));
    }
}
