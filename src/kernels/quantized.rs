//! Products with a matrix of 8-bit integers: `lhs · rhs + bias`, exact in integers.
//!
//! The weights of an output feature share a scale, as do the values of a token, which are quantized for each product
//! (dynamic quantization per token and per channel, as in Dettmers et al., arXiv:2208.07339, section 2). Features of
//! large values are divided by a factor that their weights are multiplied with (Xiao et al., arXiv:2211.10438).
//!
//! With `x ≈ a (u - z)` and `w ≈ b v`, the product is `a b (Σ u v - z Σ v)`. `u` is unsigned and `v` signed, as the
//! instruction for 8-bit integers (`vpdpbusd`) requires; and because `z` depends on the token, the values behind an
//! activation, which are hardly ever negative, use the whole range. Every instruction set gives the same sums.

use std::sync::{Arc, OnceLock};

use multiversion::multiversion;
use rayon::prelude::*;

use super::packed::{Piece, Start, for_each_piece, for_rows, with_whole_lines};
use super::workspace::{self, Workspace};
use super::{LANES, MatrixView, PARALLEL_MIN_ELEMENTS, SharedOutput, Spread};

/// Depths that one instruction adds up.
const GROUP: usize = 4;
/// Columns of a line.
const LINE_COLS: usize = 16;
/// Rows and lines of the largest tile.
const MOST_ROWS: usize = 8;
const MOST_LINES: usize = 3;
/// Largest magnitude of a quantized weight.
const LARGEST_WEIGHT: f32 = 127.0;
/// Steps between the smallest and the largest value of a row; one fewer than there are, because both are rounded.
const STEPS: f32 = 254.0;
/// Adding 1.5 · 2²³ to a small number rounds it to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Standard deviations from its mean within which a value is expected.
const REACH_SDS: f32 = 3.0;
/// Depth up to which sums of products fit into 32 bits.
const DEEPEST: usize = 1 << 15;

/// The instruction set that tiles are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// The instruction sets of this processor, the fastest first.
    fn all() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                found.push(Self::Avx512Vnni);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni") {
                found.push(Self::AvxVnni);
            }
            if is_x86_feature_detected!("avx2") {
                found.push(Self::Avx2);
            }
        }
        found.push(Self::Portable);
        found
    }

    fn detect() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| Self::all().first().copied().unwrap_or(Self::Portable))
    }

    /// Rows and lines of a tile.
    fn tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => (MOST_ROWS, MOST_LINES),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => (6, 1),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => (3, 1),
            Self::Portable => (4, 1),
        }
    }
}

/// 4 depths of 16 columns, column by column.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; GROUP * LINE_COLS]);

/// The right-hand side of products: a `[depth, cols]` matrix in panels of columns.
///
/// A panel stores its lines side by side for depths 0 to 3, then for depths 4 to 7, and so on.
pub(super) struct Quantized {
    lines: Vec<Line>,
    /// Sum of each column.
    col_sums: Vec<i32>,
    scales: Vec<f32>,
    /// What each value of the left-hand side is multiplied with.
    factors: Arc<[f32]>,
    depth: usize,
    cols: usize,
    isa: Isa,
}

impl Quantized {
    /// Quantizes the transposed rows of `weight`, `[cols, depth]`; `None` if 8 bits cannot represent one of them: if a
    /// value is not finite, or one is so large that most others become zero.
    ///
    /// Matrices with the same `factors`, `[depth]`, can be [multiplied together](multiply_each).
    pub(super) fn new(
        weight: &[f32],
        (cols, depth): (usize, usize),
        factors: &Arc<[f32]>,
    ) -> Option<Self> {
        let is_whole = weight.len() == cols * depth && factors.len() == depth;
        if depth == 0 || depth > DEEPEST || !is_whole {
            return None;
        }
        Self::with(Isa::detect(), weight, (cols, depth), factors)
    }

    fn with(
        isa: Isa,
        weight: &[f32],
        (cols, depth): (usize, usize),
        factors: &Arc<[f32]>,
    ) -> Option<Self> {
        let n_groups = depth.div_ceil(GROUP);
        let n_lines = cols.div_ceil(LINE_COLS);
        let mut quantized = Self {
            lines: vec![Line([0; GROUP * LINE_COLS]); n_groups * n_lines],
            col_sums: vec![0; n_lines * LINE_COLS],
            scales: vec![0.0; n_lines * LINE_COLS],
            factors: Arc::clone(factors),
            depth,
            cols,
            isa,
        };
        let mut row = vec![0; depth];
        let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
        for (col, values) in weight.chunks_exact(depth).enumerate() {
            let scale = quantize_weights(values, &inverse, &mut row);
            let nonzero = || values.iter().zip(&row).filter(|(value, _)| **value != 0.0);
            let n_lost = nonzero().filter(|(_, value)| **value == 0).count();
            if !scale.is_finite() || 2 * n_lost > nonzero().count() {
                return None;
            }
            let (panel_idx, lines) = quantized.panel_of(col / LINE_COLS);
            let first_line = panel_idx * isa.tile().1 * n_groups;
            let line_idx = col / LINE_COLS - panel_idx * isa.tile().1;
            for (depth_idx, value) in row.iter().enumerate() {
                let line = first_line + depth_idx / GROUP * lines + line_idx;
                let at = col % LINE_COLS * GROUP + depth_idx % GROUP;
                quantized.lines[line].0[at] = *value;
                quantized.col_sums[col] += i32::from(*value);
            }
            quantized.scales[col] = scale;
        }
        Some(quantized)
    }

    /// What each value of the left-hand side is multiplied with.
    pub(super) fn factors(&self) -> &Arc<[f32]> {
        &self.factors
    }

    /// True if this matrix can be multiplied together with others that have these factors.
    pub(super) fn shares(&self, factors: &Arc<[f32]>) -> bool {
        Arc::ptr_eq(&self.factors, factors)
    }

    /// Index and width, in lines, of the panel that contains a line.
    fn panel_of(&self, line_idx: usize) -> (usize, usize) {
        let (_, panel_lines) = self.isa.tile();
        let panel_idx = line_idx / panel_lines;
        let n_lines = self.cols.div_ceil(LINE_COLS);
        (
            panel_idx,
            panel_lines.min(n_lines - panel_idx * panel_lines),
        )
    }

    /// As [`RightHand::multiply`](super::packed::RightHand::multiply).
    pub(super) fn multiply(
        &self,
        lhs: (&[f32], MatrixView),
        start: Start<'_>,
        out: &mut [f32],
        spread: Spread,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        workspace::with(|buffers| {
            let left = Left::new(lhs, &self.factors, buffers, spread);
            self.multiply_left(&left, start, out, spread, finish);
        });
    }

    fn multiply_left(
        &self,
        left: &Left<'_>,
        start: Start<'_>,
        out: &mut [f32],
        spread: Spread,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        let rows = left.scales.len();
        assert_eq!(left.depth, self.depth);
        assert_eq!(out.len(), rows * self.cols);
        assert!(!matches!(start, Start::Bias(bias) if bias.len() != self.cols));
        if out.is_empty() {
            return;
        }
        let dst = SharedOutput(out.as_mut_ptr());
        let (tile_rows, tile_lines) = self.isa.tile();
        let n_panels = self.cols.div_ceil(tile_lines * LINE_COLS);
        let sizes = (rows, self.cols);
        for_each_piece(sizes, (n_panels, tile_rows), spread, |piece| {
            // SAFETY: `dst` is the whole result, which is borrowed exclusively, and pieces do not overlap.
            unsafe { self.multiply_piece(left, start, dst, &piece, &finish) }
        });
    }

    /// # Safety
    /// `dst` is a whole result, row by row, and no other thread touches this piece of it.
    unsafe fn multiply_piece(
        &self,
        left: &Left<'_>,
        start: Start<'_>,
        dst: SharedOutput,
        piece: &Piece,
        finish: &(impl Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let (tile_rows, tile_lines) = self.isa.tile();
        let n_groups = self.depth.div_ceil(GROUP);
        let first_line = piece.panel_idx * tile_lines;
        let (_, lines) = self.panel_of(first_line);
        let first_col = first_line * LINE_COLS;
        let cols = (lines * LINE_COLS).min(self.cols - first_col);
        let right = &self.lines[first_line * n_groups..][..n_groups * lines];
        let of_cols = first_col..first_col + lines * LINE_COLS;
        let keeps = matches!(start, Start::Destination);
        let mut bias = [0.0; MOST_LINES * LINE_COLS];
        if let Start::Bias(values) = start {
            bias[..cols].copy_from_slice(&values[first_col..first_col + cols]);
        }
        for first_row in piece.rows.clone().step_by(tile_rows) {
            let rows = tile_rows.min(piece.rows.end - first_row);
            // SAFETY: the caller guarantees the columns of these rows.
            let at = unsafe { dst.ptr().add(first_row * self.cols + first_col) };
            let bytes = &left.bytes[first_row * left.stride..][..rows * left.stride];
            let multiply = |dst: *mut f32, dst_stride: usize| {
                let tile = Tile {
                    left: bytes.as_ptr(),
                    stride: left.stride,
                    left_scales: &left.scales[first_row..first_row + rows],
                    right: right.as_ptr().cast(),
                    n_groups,
                    col_sums: &self.col_sums[of_cols.clone()],
                    col_scales: &self.scales[of_cols.clone()],
                    start: (!keeps).then_some(&bias[..lines * LINE_COLS]),
                    dst,
                    dst_stride,
                };
                // SAFETY: `left` has these rows of `4 n_groups` bytes, `right` has as many groups of lines, and the
                // destination has room for the tile.
                unsafe { self.isa.multiply(rows, lines, &tile) }
            };
            // SAFETY: the caller guarantees the columns of these rows.
            unsafe { with_whole_lines((at, self.cols), (rows, cols), keeps, multiply) };
            for row in 0..rows {
                // SAFETY: as above.
                let piece =
                    unsafe { std::slice::from_raw_parts_mut(at.add(row * self.cols), cols) };
                finish(first_row + row, first_col, piece);
            }
        }
    }
}

/// Products of the same rows with matrices that have the same factors, each with its bias.
///
/// # Shapes
/// - `lhs`: `[rows, depth]`
/// - each output: `[rows, cols]`, row by row
pub(super) fn multiply_each(
    factors: &Arc<[f32]>,
    lhs: (&[f32], MatrixView),
    products: &mut [(&Quantized, &[f32], &mut [f32])],
    spread: Spread,
) {
    workspace::with(|buffers| {
        let left = Left::new(lhs, factors, buffers, spread);
        for (right, bias, out) in products {
            assert!(right.shares(factors));
            right.multiply_left(&left, Start::Bias(bias), out, spread, |_, _, _| ());
        }
    });
}

/// The left-hand side of a product: quantized rows, padded to whole groups, with the scale and the zero of each.
struct Left<'a> {
    bytes: &'a [u8],
    scales: &'a [(f32, i32)],
    stride: usize,
    depth: usize,
}

impl<'a> Left<'a> {
    fn new(
        (lhs, view): (&[f32], MatrixView),
        factors: &[f32],
        buffers: &'a mut Workspace,
        spread: Spread,
    ) -> Self {
        let (rows, depth) = (view.rows, view.cols);
        assert_eq!((factors.len(), view.col_stride), (depth, 1));
        assert!(view.end() <= lhs.len());
        let stride = depth.next_multiple_of(GROUP);
        let bytes = buffers.bytes.of(rows * stride);
        let scales = buffers.steps.of(rows);
        let quantize = |(row, (left, scale)): (usize, (&mut [u8], &mut (f32, i32)))| {
            let row = &lhs[view.start + row * view.row_stride..][..depth];
            let (left, padding) = left.split_at_mut(depth);
            *scale = quantize_row(row, factors, left);
            padding.fill(0);
        };
        if depth == 0 {
            scales.fill((0.0, 0));
        } else if spread == Spread::Thread || rows * depth < PARALLEL_MIN_ELEMENTS {
            let rows = bytes.chunks_exact_mut(stride).zip(scales.iter_mut());
            rows.enumerate().for_each(quantize);
        } else {
            let rows = bytes
                .par_chunks_exact_mut(stride)
                .zip(scales.par_iter_mut());
            rows.enumerate().for_each(quantize);
        }
        Self {
            bytes,
            scales,
            stride,
            depth,
        }
    }
}

/// Mean and standard deviation of a feature over tokens.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    pub(super) mean: f32,
    pub(super) sd: f32,
}

impl Moments {
    /// The magnitude that the feature rarely exceeds.
    pub(super) fn reach(self) -> f32 {
        self.mean.abs() + REACH_SDS * self.sd
    }

    /// The value that the feature rarely exceeds.
    pub(super) fn upper_reach(self) -> f32 {
        self.mean + REACH_SDS * self.sd
    }
}

/// Factors of the left-hand side that make its values as large in their row as those of the weights, which are divided by
/// them, are in their column (arXiv:2211.10438, Eq. 4, α = 0.5).
///
/// `reach` is the magnitude that each value of a row of the left-hand side rarely exceeds, `[depth]`; each of the
/// weights is `[cols, depth]`.
pub(super) fn factors(weights: &[&[f32]], reach: &[f32]) -> Arc<[f32]> {
    let mut largest = vec![0_f32; reach.len()];
    for row in weights
        .iter()
        .flat_map(|weight| weight.chunks_exact(reach.len().max(1)))
    {
        for (largest, value) in largest.iter_mut().zip(row) {
            *largest = largest.max(value.abs());
        }
    }
    let factors = largest
        .iter()
        .zip(reach)
        .map(|(weight, value)| (weight / value).sqrt());
    // A feature without values or weights needs no factor.
    factors
        .map(|factor| if factor.is_normal() { factor } else { 1.0 })
        .collect()
}

/// Quantizes the weights of an output feature times `factors`; returns their scale, which is not finite if a value is
/// not.
fn quantize_weights(values: &[f32], factors: &[f32], to: &mut [i8]) -> f32 {
    let scaled = || {
        values
            .iter()
            .zip(factors)
            .map(|(value, factor)| value * factor)
    };
    if !scaled().all(f32::is_finite) {
        return f32::NAN;
    }
    let largest = scaled().fold(0.0, |most: f32, value| most.max(value.abs()));
    let scale = largest / LARGEST_WEIGHT;
    let per_step = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (to, value) in to.iter_mut().zip(scaled()) {
        *to = (value * per_step).round_ties_even() as i8;
    }
    scale
}

/// Quantizes a row times `factors`; returns its scale, which is not finite if a value is not, and the integer that stands
/// for zero.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn quantize_row(xs: &[f32], factors: &[f32], to: &mut [u8]) -> (f32, i32) {
    let scaled = || xs.iter().zip(factors).map(|(x, factor)| x * factor);
    let (low, high, is_finite) = extremes(xs, factors);
    if !is_finite {
        to.fill(0);
        return (f32::NAN, 0);
    }
    let scale = (high - low) / STEPS;
    let per_step = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let zero = (-low * per_step).round_ties_even();
    for (to, x) in to.iter_mut().zip(scaled()) {
        *to = (x * per_step + (zero + ROUND)).to_bits() as u8;
    }
    (scale, zero as i32)
}

/// The smallest and the largest of zero and the products of `xs` and `factors`, and whether all products are finite.
#[inline(always)]
fn extremes(xs: &[f32], factors: &[f32]) -> (f32, f32, bool) {
    // The compiler does not reorder comparisons of numbers that may be NaN, so that each lane has its own.
    let (mut lows, mut highs, mut products) = ([0_f32; LANES], [0_f32; LANES], [0_f32; LANES]);
    let (x_lanes, x_rest) = xs.as_chunks::<LANES>();
    let (factor_lanes, factor_rest) = factors.as_chunks::<LANES>();
    let mut add = |lane: usize, x: f32| {
        lows[lane] = if x < lows[lane] { x } else { lows[lane] };
        highs[lane] = if x > highs[lane] { x } else { highs[lane] };
        // Zero, unless `x` is infinite or NaN.
        products[lane] += x * 0.0;
    };
    for (xs, factors) in x_lanes.iter().zip(factor_lanes) {
        for lane in 0..LANES {
            add(lane, xs[lane] * factors[lane]);
        }
    }
    for (lane, (x, factor)) in x_rest.iter().zip(factor_rest).enumerate() {
        add(lane, x * factor);
    }
    (
        lows.into_iter().fold(0.0, f32::min),
        highs.into_iter().fold(0.0, f32::max),
        products.into_iter().sum::<f32>() == 0.0,
    )
}

/// `out += row_scale · col_scales ∘ (sums - zero · col_sums)`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn add_scaled(
    out: &mut [f32],
    sums: &[i32],
    (col_sums, col_scales): (&[i32], &[f32]),
    (row_scale, zero): (f32, i32),
) {
    let cols = col_sums.iter().zip(col_scales);
    for ((out, sum), (col_sum, col_scale)) in out.iter_mut().zip(sums).zip(cols) {
        *out += (sum - zero * col_sum) as f32 * (row_scale * col_scale);
    }
}

/// One tile: `dst = (start or dst) + left · right`.
struct Tile<'a> {
    left: *const u8,
    stride: usize,
    /// Scale and zero of each row, `[rows]`.
    left_scales: &'a [(f32, i32)],
    right: *const i8,
    n_groups: usize,
    /// `[16 lines]`
    col_sums: &'a [i32],
    /// `[16 lines]`
    col_scales: &'a [f32],
    /// `[16 lines]`
    start: Option<&'a [f32]>,
    dst: *mut f32,
    dst_stride: usize,
}

impl Tile<'_> {
    /// Writes the products that these sums stand for, `[rows, 16 lines]`.
    ///
    /// # Safety
    /// The destination has room for the tile.
    unsafe fn write(&self, sums: &[i32]) {
        let cols = self.col_sums.len();
        let rows = sums.chunks_exact(cols).zip(self.left_scales);
        for (row, (sums, left_scale)) in rows.enumerate() {
            // SAFETY: the caller guarantees these columns.
            let dst = unsafe {
                std::slice::from_raw_parts_mut(self.dst.add(row * self.dst_stride), cols)
            };
            if let Some(start) = self.start {
                dst.copy_from_slice(start);
            }
            add_scaled(dst, sums, (self.col_sums, self.col_scales), *left_scale);
        }
    }
}

impl Isa {
    /// # Safety
    /// The processor supports this instruction set, and everything that the tile points to is valid: `rows` rows of
    /// `4 n_groups` bytes on the left, `n_groups` groups of `lines` lines on the right, and room for the result. Neither
    /// number exceeds that of a whole tile.
    unsafe fn multiply(self, rows: usize, lines: usize, tile: &Tile<'_>) {
        let mut sums = [0; MOST_ROWS * LINE_COLS];
        let to = sums.as_mut_ptr();
        // SAFETY: the caller upholds the same requirements, and `sums` has room for those of one line.
        unsafe {
            match (self, lines) {
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512Vnni, 1) => return for_rows!(rows, tile_avx512, 1; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512Vnni, 2) => return for_rows!(rows, tile_avx512, 2; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512Vnni, _) => return for_rows!(rows, tile_avx512, 3; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::AvxVnni, _) => for_rows!(rows, sums_avx_vnni; tile, to),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx2, _) => for_rows!(rows, sums_avx2; tile, to),
                (Self::Portable, _) => for_rows!(rows, sums_portable; tile, to),
            }
            tile.write(&sums[..rows * LINE_COLS]);
        }
    }
}

/// # Safety
/// As [`Isa::multiply`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile_avx512<const ROWS: usize, const LINES: usize>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;

    // SAFETY: the caller guarantees that everything the tile points to is valid.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); LINES]; ROWS];
        let mut from = tile.right;
        for group in 0..tile.n_groups {
            let mut right = [_mm512_setzero_si512(); LINES];
            for (line, right) in right.iter_mut().enumerate() {
                *right = _mm512_load_si512(from.add(64 * line).cast());
            }
            from = from.add(64 * LINES);
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = tile
                    .left
                    .add(row * tile.stride + GROUP * group)
                    .cast::<i32>();
                let left = _mm512_set1_epi32(left.read_unaligned());
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm512_dpbusd_epi32(*sum, left, right);
                }
            }
        }
        // As `add_scaled`.
        let (col_sums, col_scales) = (tile.col_sums.as_ptr(), tile.col_scales.as_ptr());
        for (row, sums) in sums.iter().enumerate() {
            let (scale, zero) = *tile.left_scales.get_unchecked(row);
            let dst = tile.dst.add(row * tile.dst_stride);
            let start = tile.start.map_or(dst.cast_const(), <[f32]>::as_ptr);
            for (line, sum) in sums.iter().enumerate() {
                let col_sum = _mm512_loadu_si512(col_sums.add(LINE_COLS * line).cast());
                let shift = _mm512_mullo_epi32(_mm512_set1_epi32(zero), col_sum);
                let exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(*sum, shift));
                let col_scale = _mm512_loadu_ps(col_scales.add(LINE_COLS * line));
                let scale = _mm512_mul_ps(_mm512_set1_ps(scale), col_scale);
                let start = _mm512_loadu_ps(start.add(LINE_COLS * line));
                let result = _mm512_add_ps(start, _mm512_mul_ps(exact, scale));
                _mm512_storeu_ps(dst.add(LINE_COLS * line), result);
            }
        }
    }
}

/// # Safety
/// As [`Isa::multiply`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn sums_avx_vnni<const ROWS: usize>(tile: &Tile<'_>, to: *mut i32) {
    use std::arch::x86_64::*;

    // SAFETY: the caller guarantees that everything the tile points to is valid.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
        for group in 0..tile.n_groups {
            let from = tile.right.add(64 * group).cast::<__m256i>();
            let right = [_mm256_load_si256(from), _mm256_load_si256(from.add(1))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = tile
                    .left
                    .add(row * tile.stride + GROUP * group)
                    .cast::<i32>();
                let left = _mm256_set1_epi32(left.read_unaligned());
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, left, right);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                _mm256_storeu_si256(to.add(LINE_COLS * row + 8 * half).cast(), *sum);
            }
        }
    }
}

/// Multiplies 16-bit integers, because the instruction for 8-bit ones saturates.
///
/// # Safety
/// As [`Isa::multiply`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sums_avx2<const ROWS: usize>(tile: &Tile<'_>, to: *mut i32) {
    use std::arch::x86_64::*;

    // SAFETY: the caller guarantees that everything the tile points to is valid.
    unsafe {
        // Four columns each, of which each has two sums.
        let mut sums = [[_mm256_setzero_si256(); 4]; ROWS];
        for group in 0..tile.n_groups {
            let from = tile.right.add(64 * group).cast::<__m128i>();
            let mut left = [_mm256_setzero_si256(); ROWS];
            for (row, left) in left.iter_mut().enumerate() {
                let bytes = tile
                    .left
                    .add(row * tile.stride + GROUP * group)
                    .cast::<i32>();
                *left = _mm256_cvtepu8_epi16(_mm_set1_epi32(bytes.read_unaligned()));
            }
            for quarter in 0..4 {
                let right = _mm256_cvtepi8_epi16(_mm_load_si128(from.add(quarter)));
                for (sums, left) in sums.iter_mut().zip(left) {
                    let products = _mm256_madd_epi16(left, right);
                    sums[quarter] = _mm256_add_epi32(sums[quarter], products);
                }
            }
        }
        for (row, [a, b, c, d]) in sums.into_iter().enumerate() {
            for (half, [low, high]) in [[a, b], [c, d]].into_iter().enumerate() {
                // Adds neighbors within each half of a register, and restores the order of the columns.
                let pairs = _mm256_hadd_epi32(low, high);
                let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                _mm256_storeu_si256(to.add(LINE_COLS * row + 8 * half).cast(), ordered);
            }
        }
    }
}

/// # Safety
/// As [`Isa::multiply`].
unsafe fn sums_portable<const ROWS: usize>(tile: &Tile<'_>, to: *mut i32) {
    // SAFETY: the caller guarantees that everything the tile points to is valid.
    unsafe {
        let mut sums = [[0_i32; LINE_COLS]; ROWS];
        for group in 0..tile.n_groups {
            let right = *tile.right.cast::<[[i8; GROUP]; LINE_COLS]>().add(group);
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = tile.left.add(row * tile.stride + GROUP * group);
                let left = *left.cast::<[u8; GROUP]>();
                for (sum, right) in sums.iter_mut().zip(right) {
                    for (left, right) in left.into_iter().zip(right) {
                        *sum += i32::from(left) * i32::from(right);
                    }
                }
            }
        }
        to.cast::<[[i32; LINE_COLS]; ROWS]>().write_unaligned(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of integers from -127 to 127, which begin with both: quantization does not change them.
    fn integers(rows: usize, depth: usize, factor: usize) -> Vec<f32> {
        (0..rows * depth)
            .map(|index| match index % depth {
                0 => 127.0,
                1 => -127.0,
                _ => ((index * factor) % 255) as f32 - 127.0,
            })
            .collect()
    }

    fn ones(len: usize) -> Arc<[f32]> {
        vec![1.0; len].into()
    }

    fn check(isa: Isa, (rows, depth, cols): (usize, usize, usize), spread: Spread) {
        let (lhs, weight) = (integers(rows, depth, 7), integers(cols, depth, 31));
        let bias: Vec<f32> = (0..cols).map(|col| col as f32).collect();
        let quantized = Quantized::with(isa, &weight, (cols, depth), &ones(depth)).unwrap();
        let view = MatrixView::row_major(rows, depth);
        for start in [Start::Zeros, Start::Bias(&bias), Start::Destination] {
            let mut out = vec![2.0; rows * cols];
            let finish = |row: usize, first_col: usize, piece: &mut [f32]| {
                for (col, value) in piece.iter_mut().enumerate() {
                    *value += (1000 * row + first_col + col) as f32;
                }
            };
            quantized.multiply((&lhs, view), start, &mut out, spread, finish);
            for (index, got) in out.into_iter().enumerate() {
                let (row, col) = (index / cols, index % cols);
                let pairs = lhs[row * depth..][..depth]
                    .iter()
                    .zip(&weight[col * depth..]);
                let product: f32 = pairs.map(|(left, right)| left * right).sum();
                let start = match start {
                    Start::Zeros => 0.0,
                    Start::Bias(bias) => bias[col],
                    Start::Destination => 2.0,
                };
                let want = start + product + (1000 * row + col) as f32;
                assert_eq!(
                    got, want,
                    "{isa:?}, {rows}×{depth}×{cols} at ({row}, {col})"
                );
            }
        }
    }

    #[test]
    fn a_row_is_rounded_to_the_nearest_step() {
        for (shift, factor) in [(0.0, 1.0), (3.6, 0.1), (-50.0, 1.0), (1e-30, 1e-20)] {
            let x = |i: usize| ((i as f32 * 0.37).sin() * 3.7 + shift) * factor;
            let row: Vec<f32> = (0..1000).map(x).collect();
            let mut bytes = vec![0; row.len()];
            let (scale, zero) = quantize_row(&row, &vec![1.0; row.len()], &mut bytes);
            for (x, byte) in row.iter().zip(bytes) {
                let error = f64::from(*x) - f64::from(i32::from(byte) - zero) * f64::from(scale);
                assert!(
                    error.abs() <= 0.5001 * f64::from(scale),
                    "{x} became {byte}"
                );
            }
        }
        let mut bytes = [9; 3];
        let (scale, zero) = quantize_row(&[0.0; 3], &[1.0; 3], &mut bytes);
        assert_eq!((scale, zero, bytes), (0.0, 0, [0; 3]));
    }

    #[test]
    fn factors_cancel_out() {
        let (rows, depth, cols) = (3, 64, 20);
        let (lhs, weight) = (integers(rows, depth, 7), integers(cols, depth, 31));
        let reach: Vec<f32> = (0..depth)
            .map(|i| [0.0, 0.8, 1.5, f32::NAN][i % 4])
            .collect();
        let product = |reach: &[f32]| {
            let quantized =
                Quantized::new(&weight, (cols, depth), &factors(&[&weight], reach)).unwrap();
            let mut out = vec![0.0; rows * cols];
            let lhs = (&lhs[..], MatrixView::row_major(rows, depth));
            quantized.multiply(lhs, Start::Zeros, &mut out, Spread::Thread, |_, _, _| ());
            out
        };
        let exact = product(&vec![1.0; depth]);
        for (got, want) in product(&reach).iter().zip(exact) {
            assert!(
                (got - want).abs() < 0.03 * 127.0 * 127.0 * 8.0,
                "{got} is not {want}"
            );
        }
    }

    #[test]
    fn products_of_any_size_equal_the_sums_that_they_stand_for() {
        for isa in Isa::all() {
            for rows in [1, 2, 3, 5, 7, 8, 9, 17] {
                for cols in [1, 15, 16, 17, 33, 48, 49, 100] {
                    check(isa, (rows, 6, cols), Spread::Thread);
                }
            }
            check(isa, (400, 768, 96), Spread::Pool);
        }
    }

    #[test]
    fn the_largest_values_do_not_saturate() {
        for isa in Isa::all() {
            let (depth, cols) = (8, 16);
            let quantized =
                Quantized::with(isa, &[1.0; 8 * 16], (cols, depth), &ones(depth)).unwrap();
            let mut out = [0.0; 16];
            let lhs = (&[1.0; 8][..], MatrixView::row_major(1, depth));
            quantized.multiply(lhs, Start::Zeros, &mut out, Spread::Thread, |_, _, _| ());
            for got in out {
                assert!((got - 8.0).abs() < 1e-5, "{isa:?}: {got}");
            }
        }
    }

    #[test]
    fn weights_that_8_bits_cannot_represent_are_refused() {
        let mut weight = integers(4, 64, 7);
        assert!(Quantized::new(&weight, (4, 64), &ones(64)).is_some());
        weight[70] = 1e12;
        assert!(Quantized::new(&weight, (4, 64), &ones(64)).is_none());
        weight[70] = f32::NAN;
        assert!(Quantized::new(&weight, (4, 64), &ones(64)).is_none());
        weight[70] = f32::INFINITY;
        assert!(Quantized::new(&weight, (4, 64), &ones(64)).is_none());
    }

    #[test]
    fn a_value_that_is_not_a_number_is_not_lost() {
        let quantized = Quantized::new(&integers(4, 8, 7), (4, 8), &ones(8)).unwrap();
        let mut lhs = integers(2, 8, 5);
        lhs[3] = f32::NAN;
        let mut out = [0.0; 8];
        let view = MatrixView::row_major(2, 8);
        quantized.multiply(
            (&lhs, view),
            Start::Zeros,
            &mut out,
            Spread::Thread,
            |_, _, _| (),
        );
        assert!(out[..4].iter().all(|x| x.is_nan()));
        assert!(out[4..].iter().all(|x| x.is_finite()));
    }
}
