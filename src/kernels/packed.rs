//! Products with a matrix that is packed once and used often: `lhs · rhs + bias`.
//!
//! A general matrix product packs both operands at every call. A frozen weight stays packed, and the
//! activations need no packing: a tile reads them row by row. A tile of the result stays in registers
//! while it grows, by intrinsics for AVX-512 and AVX2; elsewhere the compiler vectorizes the same loop.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::{PARALLEL_MIN_ELEMENTS, SharedOutput};

/// Columns of a panel on each instruction set, and rows of a tile: what fills the registers.
/// Widths of Vision Transformers are multiples of 48 far more often than not.
const AVX512_COLS: usize = 48;
const AVX512_ROWS: usize = 8;
const AVX2_COLS: usize = 16;
const AVX2_ROWS: usize = 6;
const PORTABLE_COLS: usize = 16;
const PORTABLE_ROWS: usize = 4;

/// Depth of the piece of a panel that is multiplied at once: 48 columns of it fit in the first cache.
const DEPTH_BLOCK: usize = 192;
/// Rows that one piece of parallel work covers: with 768 features they fit in the second cache.
const ROW_BLOCK: usize = 192;

/// What the tiles are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    fn detect() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") {
                    return Self::Avx512;
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    return Self::Avx2;
                }
            }
            Self::Portable
        })
    }

    /// Rows and columns of a tile.
    fn tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => (AVX512_ROWS, AVX512_COLS),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => (AVX2_ROWS, AVX2_COLS),
            Self::Portable => (PORTABLE_ROWS, PORTABLE_COLS),
        }
    }
}

/// 16 values that begin a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The right-hand side of products: a `[depth, cols]` matrix in panels of columns.
///
/// A panel holds its columns side by side for depth 0, then for depth 1, and so on; the last one is
/// filled up with zeros.
pub(super) struct Packed {
    panels: Vec<Line>,
    depth: usize,
    cols: usize,
    isa: Isa,
}

/// Where element (depth, col) of a matrix lies: `depth · depth_stride + col · col_stride`.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub(super) depth: usize,
    pub(super) col: usize,
}

impl Packed {
    /// Packs a `[depth, cols]` matrix.
    pub(super) fn new(matrix: &[f32], (depth, cols): (usize, usize), strides: Strides) -> Self {
        Self::with(Isa::detect(), matrix, (depth, cols), strides)
    }

    fn with(isa: Isa, matrix: &[f32], (depth, cols): (usize, usize), strides: Strides) -> Self {
        let (_, panel_cols) = isa.tile();
        let lines = panel_cols / 16;
        let n_panels = cols.div_ceil(panel_cols);
        let mut panels = vec![Line([0.0; 16]); n_panels * depth * lines];
        for (panel_idx, panel) in panels.chunks_exact_mut((depth * lines).max(1)).enumerate() {
            for (row_idx, row) in panel.chunks_exact_mut(lines).enumerate() {
                let first = panel_idx * panel_cols;
                let values = row.iter_mut().flat_map(|line| &mut line.0);
                for (value, col) in values.zip(first..cols) {
                    *value = matrix[row_idx * strides.depth + col * strides.col];
                }
            }
        }
        Self {
            panels,
            depth,
            cols,
            isa,
        }
    }

    /// `out = lhs · self + bias`, then `finish` on every piece of a row of `out` as soon as it is complete.
    ///
    /// `finish` gets the row, the first column and the piece.
    ///
    /// # Shapes
    /// - `lhs`: `[rows, depth]`
    /// - `bias`: `[cols]`
    /// - `out`: `[rows, cols]`
    pub(super) fn multiply(
        &self,
        lhs: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        if self.cols == 0 || out.is_empty() {
            return;
        }
        let rows = out.len() / self.cols;
        assert!(lhs.len() == rows * self.depth && out.len() == rows * self.cols);
        assert!(bias.is_none_or(|bias| bias.len() == self.cols));
        let (tile_rows, panel_cols) = self.isa.tile();
        let n_panels = self.cols.div_ceil(panel_cols);
        // Row blocks of equal size, in whole tiles.
        let n_row_blocks = rows
            .div_ceil(ROW_BLOCK)
            .max(if n_panels < 8 { 2 } else { 1 });
        let block_rows = rows.div_ceil(n_row_blocks).next_multiple_of(tile_rows);
        let n_row_blocks = rows.div_ceil(block_rows);
        let shared = SharedOutput(out.as_mut_ptr());
        let work = |unit: usize| {
            let (block_idx, panel_idx) = (unit / n_panels, unit % n_panels);
            let first_row = block_idx * block_rows;
            let piece = Piece {
                rows: first_row..(first_row + block_rows).min(rows),
                panel_idx,
            };
            // SAFETY: pieces do not overlap, and `out` holds all of them.
            unsafe { self.multiply_piece(lhs, bias, shared, &piece, &finish) }
        };
        let n_units = n_row_blocks * n_panels;
        if rows * self.cols < PARALLEL_MIN_ELEMENTS {
            (0..n_units).for_each(work);
        } else {
            (0..n_units).into_par_iter().for_each(work);
        }
    }

    /// # Safety
    /// `out` holds `[rows, cols]`, and nobody else touches the columns of this piece's rows.
    unsafe fn multiply_piece(
        &self,
        lhs: &[f32],
        bias: Option<&[f32]>,
        out: SharedOutput,
        piece: &Piece,
        finish: &(impl Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let (tile_rows, panel_cols) = self.isa.tile();
        let first_col = piece.panel_idx * panel_cols;
        let cols = panel_cols.min(self.cols - first_col);
        let lines = panel_cols / 16;
        let mut start = [Line([0.0; 16]); AVX512_COLS / 16];
        if let Some(bias) = bias {
            let values = start.iter_mut().flat_map(|line| &mut line.0);
            for (value, bias) in values.zip(&bias[first_col..first_col + cols]) {
                *value = *bias;
            }
        }
        // A tile of the last panel may be wider than what is left of the result.
        let mut spare = [Line([0.0; 16]); AVX512_ROWS * AVX512_COLS / 16];
        let narrow = cols < panel_cols;
        let panel = &self.panels[piece.panel_idx * self.depth * lines..][..self.depth * lines];
        let depth_block = if narrow {
            self.depth.max(1)
        } else {
            DEPTH_BLOCK
        };
        for first_depth in (0..self.depth.max(1)).step_by(depth_block) {
            let depth = depth_block.min(self.depth - first_depth);
            let rhs = &panel[first_depth * lines..][..depth * lines];
            for first_row in piece.rows.clone().step_by(tile_rows) {
                let rows = tile_rows.min(piece.rows.end - first_row);
                let lhs = &lhs[first_row * self.depth..][..rows * self.depth];
                // SAFETY: the caller vouches for the columns of these rows.
                let at = unsafe { out.ptr().add(first_row * self.cols + first_col) };
                let (dst, dst_stride) = if narrow {
                    (spare.as_mut_ptr().cast::<f32>(), panel_cols)
                } else {
                    (at, self.cols)
                };
                let tile = Tile {
                    lhs: lhs.as_ptr().wrapping_add(first_depth),
                    lhs_stride: self.depth,
                    rhs: rhs.as_ptr().cast(),
                    depth,
                    start: (first_depth == 0).then_some(start.as_ptr().cast()),
                    dst,
                    dst_stride,
                };
                // SAFETY: `lhs` has `rows` rows of which `depth` elements are read from `first_depth` on,
                // `rhs` has `depth` rows of the panel, `start` one, and `dst` room for the tile.
                unsafe { self.isa.add_product(rows, &tile) };
                if narrow {
                    for row in 0..rows {
                        // SAFETY: `spare` has `rows` rows of `panel_cols`, `out` one of `cols` here.
                        unsafe {
                            std::ptr::copy_nonoverlapping(
                                dst.add(row * panel_cols),
                                at.add(row * self.cols),
                                cols,
                            );
                        }
                    }
                }
                if first_depth + depth == self.depth {
                    for row in 0..rows {
                        // SAFETY: the caller vouches for these columns; the tile is written.
                        let piece = unsafe {
                            std::slice::from_raw_parts_mut(at.add(row * self.cols), cols)
                        };
                        finish(first_row + row, first_col, piece);
                    }
                }
            }
        }
    }
}

/// Rows of the result, and the panel whose columns they are computed in.
struct Piece {
    rows: std::ops::Range<usize>,
    panel_idx: usize,
}

/// One tile of the result: `dst = (start or dst) + lhs · rhs`.
struct Tile {
    lhs: *const f32,
    lhs_stride: usize,
    rhs: *const f32,
    depth: usize,
    start: Option<*const f32>,
    dst: *mut f32,
    dst_stride: usize,
}

/// Calls a function that is generic over the number of rows with the one that is needed.
macro_rules! for_rows {
    ($rows:expr, $function:ident, $tile:expr) => {
        match $rows {
            1 => $function::<1>($tile),
            2 => $function::<2>($tile),
            3 => $function::<3>($tile),
            4 => $function::<4>($tile),
            5 => $function::<5>($tile),
            6 => $function::<6>($tile),
            7 => $function::<7>($tile),
            _ => $function::<8>($tile),
        }
    };
}

impl Isa {
    /// # Safety
    /// The processor has this instruction set, and all that the tile points to is there: `rows` rows of
    /// `lhs` and `dst`, `depth` rows of `rhs`, one row of `start`; `rows` is at most that of a whole tile.
    unsafe fn add_product(self, rows: usize, tile: &Tile) {
        // SAFETY: passed on.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => for_rows!(rows, tile_avx512, tile),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => for_rows!(rows, tile_avx2, tile),
                Self::Portable => for_rows!(rows, tile_portable, tile),
            }
        }
    }
}

/// # Safety
/// As [`Isa::add_product`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const ROWS: usize>(tile: &Tile) {
    use std::arch::x86_64::*;

    const LINES: usize = AVX512_COLS / 16;
    // SAFETY: the caller vouches for all that the tile points to.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); LINES]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let from = match tile.start {
                Some(start) => start,
                None => tile.dst.add(row * tile.dst_stride).cast_const(),
            };
            for (line, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(from.add(16 * line));
            }
        }
        let mut rhs = tile.rhs;
        for depth in 0..tile.depth {
            let mut right = [_mm512_setzero_ps(); LINES];
            for (line, right) in right.iter_mut().enumerate() {
                *right = _mm512_load_ps(rhs.add(16 * line));
            }
            rhs = rhs.add(AVX512_COLS);
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(*tile.lhs.add(row * tile.lhs_stride + depth));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm512_fmadd_ps(left, right, *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (line, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(tile.dst.add(row * tile.dst_stride + 16 * line), *sum);
            }
        }
    }
}

/// # Safety
/// As [`Isa::add_product`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const ROWS: usize>(tile: &Tile) {
    use std::arch::x86_64::*;

    const HALVES: usize = AVX2_COLS / 8;
    // SAFETY: the caller vouches for all that the tile points to.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); HALVES]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let from = match tile.start {
                Some(start) => start,
                None => tile.dst.add(row * tile.dst_stride).cast_const(),
            };
            for (half, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_loadu_ps(from.add(8 * half));
            }
        }
        let mut rhs = tile.rhs;
        for depth in 0..tile.depth {
            let right = [_mm256_load_ps(rhs), _mm256_load_ps(rhs.add(8))];
            rhs = rhs.add(AVX2_COLS);
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = _mm256_set1_ps(*tile.lhs.add(row * tile.lhs_stride + depth));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm256_fmadd_ps(left, right, *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(tile.dst.add(row * tile.dst_stride + 8 * half), *sum);
            }
        }
    }
}

/// # Safety
/// As [`Isa::add_product`].
unsafe fn tile_portable<const ROWS: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for all that the tile points to.
    unsafe {
        let mut sums = [[0f32; PORTABLE_COLS]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let from = match tile.start {
                Some(start) => start,
                None => tile.dst.add(row * tile.dst_stride).cast_const(),
            };
            *sums = from.cast::<[f32; PORTABLE_COLS]>().read_unaligned();
        }
        for depth in 0..tile.depth {
            let right = *tile.rhs.cast::<[f32; PORTABLE_COLS]>().add(depth);
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = *tile.lhs.add(row * tile.lhs_stride + depth);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum += left * right;
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let to = tile.dst.add(row * tile.dst_stride);
            to.cast::<[f32; PORTABLE_COLS]>().write_unaligned(*sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers: sums are exact, whatever their order.
    fn matrix(rows: usize, cols: usize, factor: usize) -> Vec<f32> {
        (0..rows * cols)
            .map(|index| ((index * factor) % 17) as f32 - 8.0)
            .collect()
    }

    fn check(isa: Isa, rows: usize, depth: usize, cols: usize) {
        let (lhs, rhs) = (matrix(rows, depth, 7), matrix(depth, cols, 5));
        let bias = matrix(1, cols, 3);
        let strides = Strides {
            depth: cols,
            col: 1,
        };
        let packed = Packed::with(isa, &rhs, (depth, cols), strides);
        let mut out = vec![f32::NAN; rows * cols];
        packed.multiply(&lhs, Some(&bias), &mut out, |row, first_col, piece| {
            for (col, value) in piece.iter_mut().enumerate() {
                *value += (1000 * row + first_col + col) as f32;
            }
        });
        for row in 0..rows {
            for col in 0..cols {
                let product: f32 = (0..depth)
                    .map(|k| lhs[row * depth + k] * rhs[k * cols + col])
                    .sum();
                let want = product + bias[col] + (1000 * row + col) as f32;
                let got = out[row * cols + col];
                assert_eq!(
                    got, want,
                    "{isa:?}, {rows}×{depth}×{cols} at ({row}, {col})"
                );
            }
        }
    }

    #[test]
    fn products_of_any_size_equal_the_sums_that_they_stand_for() {
        let sizes = [1, 2, 7, 8, 9, 13, 17];
        let mut isas = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                isas.push(Isa::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                isas.push(Isa::Avx2);
            }
        }
        for isa in isas {
            for rows in sizes {
                for cols in [1, 15, 16, 17, 48, 49, 100] {
                    check(isa, rows, 5, cols);
                }
            }
            check(isa, 3, 0, 20);
            check(isa, 0, 4, 20);
            check(isa, 3, 4, 0);
            check(isa, 5, 2 * DEPTH_BLOCK + 3, 64);
            check(isa, 2 * ROW_BLOCK + 5, 9, 96);
        }
    }
}
