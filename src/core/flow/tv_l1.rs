//! TV-L1 on one level of the pyramid.

use std::array::from_fn;

use super::{Flow, FlowOptions, Gray};

/// Linearized difference of gray values, as a function of a pixel's vector near an estimate: `offset + slope · vector`.
#[derive(Clone, Copy, Default)]
struct Residual {
    offset: f32,
    slope: [f32; 2],
}

/// The dual variables: for both components of each pixel's vector, a gradient of length at most 1.
struct Duals {
    /// `[height, width, 2]`, flat, like `along_y`.
    along_x: Vec<f32>,
    along_y: Vec<f32>,
}

/// Step length of both variables: the largest for which algorithm 1 converges, since `|grad|^2 <= 8`.
const STEP: f32 = 0.353_553_4;

impl Gray {
    /// Value, slope along x and slope along y at a position inside the picture.
    fn cubic(&self, (x, y): (f32, f32)) -> [f32; 3] {
        let (left, top) = (x as usize, y as usize);
        let rows: [(f32, f32); 4] =
            from_fn(|down| catmull_rom(samples(self.row(top + down, 1), left), x - left as f32));
        let share = y - top as f32;
        let (value, slope_y) = catmull_rom(rows.map(|(value, _)| value), share);
        let (slope_x, _) = catmull_rom(rows.map(|(_, slope)| slope), share);
        [value, slope_x, slope_y]
    }

    /// Like [`cubic`](Self::cubic), at all pixels, where the slopes are central differences.
    fn slopes(&self) -> Vec<[f32; 3]> {
        let mut slopes = Vec::with_capacity(self.values.len());
        for y in 0..self.height_px {
            let [above, here, below] = from_fn(|down| self.row(y + down, 1));
            for x in 0..self.width_px {
                let (left, right) = (x.saturating_sub(1), (x + 1).min(self.width_px - 1));
                let slope_x = 0.5 * (here[right] - here[left]);
                slopes.push([here[x], slope_x, 0.5 * (below[x] - above[x])]);
            }
        }
        slopes
    }
}

/// Four values of a row, starting one to the left of `x`, clamped to the row.
fn samples(row: &[f32], x: usize) -> [f32; 4] {
    let inside = x
        .checked_sub(1)
        .and_then(|first| row[first..].first_chunk());
    match inside {
        Some(samples) => *samples,
        None => from_fn(|right| row[(x + right).saturating_sub(1).min(row.len() - 1)]),
    }
}

impl Flow {
    pub(super) fn refine(&mut self, from: &Gray, to: &Gray, options: &FlowOptions) {
        let mut duals = Duals {
            along_x: vec![0.0; 2 * self.vectors.len()],
            along_y: vec![0.0; 2 * self.vectors.len()],
        };
        let own = from.slopes();
        for _ in 0..options.warps {
            let residuals = self.linearize(&own, to);
            let mut ahead = self.vectors.clone();
            for _ in 0..options.iterations {
                duals.ascend(ahead.as_flattened(), 2 * self.width_px);
                self.descend(&duals, &residuals, options.lambda, &mut ahead);
            }
            self.vectors = self.medians();
        }
    }

    /// Linearizes the data term. `own` holds value and slopes of each pixel of the frame that the flow starts from.
    fn linearize(&self, own: &[[f32; 3]], to: &Gray) -> Vec<Residual> {
        let pixels = self.vectors.iter().zip(own).enumerate();
        let residuals = pixels.map(|(pixel, ([x, y], [own, own_x, own_y]))| {
            let place = self.place(pixel);
            if !self.holds(place) {
                return Residual::default();
            }
            let [value, value_x, value_y] = to.cubic(place);
            let slope = [0.5 * (value_x + own_x), 0.5 * (value_y + own_y)];
            Residual {
                offset: value - own - slope[0] * x - slope[1] * y,
                slope,
            }
        });
        residuals.collect()
    }

    /// Takes a step of the primal variable, and writes its extrapolation to `ahead`.
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
                // Moves to where the difference vanishes, but at most by the limit: the thresholding of Zach et al.
                let least = difference / (slope_x * slope_x + slope_y * slope_y).max(1e-12);
                let step = least.clamp(-limit, limit);
                let next = [moved[0] - step * slope_x, moved[1] - step * slope_y];
                *ahead = [2.0 * next[0] - vector[0], 2.0 * next[1] - vector[1]];
                *vector = next;
            }
        }
    }

    /// Medians of 3 x 3 vectors, with positions clamped to the frame.
    fn medians(&self) -> Vec<[f32; 2]> {
        let len = 2 * self.width_px;
        let rows: Vec<&[f32]> = self.vectors.as_flattened().chunks_exact(len).collect();
        let mut medians = vec![[0.0; 2]; self.vectors.len()];
        let mut columns = Columns::new(len);
        let filtered = medians.as_flattened_mut().chunks_exact_mut(len);
        for (y, filtered) in filtered.enumerate() {
            let below = rows.get(y + 1).unwrap_or(&rows[y]);
            columns.sort(rows[y.saturating_sub(1)], rows[y], below);
            columns.medians(filtered);
        }
        medians
    }
}

/// Three vertically adjacent vectors for each column of a frame, sorted component by component.
///
/// The median of the nine values is the median of three: the largest of the columns' minima, the median of their middle
/// values, and the smallest of their maxima.
struct Columns {
    /// `[1 + width + 1, 2]`, flat, like the next two; the outermost columns are duplicated.
    least: Vec<f32>,
    middle: Vec<f32>,
    greatest: Vec<f32>,
}

impl Columns {
    /// Creates columns for rows of length `len`.
    fn new(len: usize) -> Self {
        Self {
            least: vec![0.0; len + 4],
            middle: vec![0.0; len + 4],
            greatest: vec![0.0; len + 4],
        }
    }

    fn sort(&mut self, above: &[f32], here: &[f32], below: &[f32]) {
        let len = here.len();
        let (above, below) = (&above[..len], &below[..len]);
        let least = &mut self.least[2..][..len];
        let middle = &mut self.middle[2..][..len];
        let greatest = &mut self.greatest[2..][..len];
        for idx in 0..len {
            let values = [above[idx], here[idx], below[idx]];
            least[idx] = values[0].min(values[1]).min(values[2]);
            middle[idx] = median(values);
            greatest[idx] = values[0].max(values[1]).max(values[2]);
        }
        for column in [&mut self.least, &mut self.middle, &mut self.greatest] {
            column.copy_within(2..4, 0);
            column.copy_within(len..len + 2, len + 2);
        }
    }

    fn medians(&self, medians: &mut [f32]) {
        let len = medians.len();
        let columns = [&self.least, &self.middle, &self.greatest];
        let [least, middle, greatest] = columns.map(|column| &column[..len + 4]);
        for idx in 0..len {
            medians[idx] = median([
                least[idx].max(least[idx + 2]).max(least[idx + 4]),
                median([middle[idx], middle[idx + 2], middle[idx + 4]]),
                greatest[idx].min(greatest[idx + 2]).min(greatest[idx + 4]),
            ]);
        }
    }
}

fn median([a, b, c]: [f32; 3]) -> f32 {
    a.max(b).min(a.min(b).max(c))
}

impl Duals {
    /// Takes a step along the gradient of the vectors, `[height, width, 2]`, whose rows have length `len`.
    fn ascend(&mut self, vectors: &[f32], len: usize) {
        /// Changes of the flow up to this, in pixels per pixel, have a quadratic rather than an absolute penalty.
        const HUBER: f32 = 0.03;
        const SHRINK: f32 = 1.0 / (1.0 + STEP * HUBER);

        let rows = vectors.chunks_exact(len);
        // The last row is paired with itself, so its difference is zero. The same applies to the last column.
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

    /// Moves a row of vectors by a step along the divergence.
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

/// Value and slope at `share` of the distance between the second and the third of four samples.
fn catmull_rom([before, from, to, after]: [f32; 4], share: f32) -> (f32, f32) {
    let linear = 0.5 * (to - before);
    let square = before - 2.5 * from + 2.0 * to - 0.5 * after;
    let cube = 0.5 * (after - before) + 1.5 * (from - to);
    let value = from + share * (linear + share * (square + share * cube));
    let slope = linear + share * (2.0 * square + share * 3.0 * cube);
    (value, slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubics_are_exact_on_parabolas() {
        assert_eq!(catmull_rom([1.0, 0.0, 1.0, 4.0], 0.25), (0.0625, 0.5));
    }
}
