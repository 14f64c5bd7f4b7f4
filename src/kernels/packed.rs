//! Products with a matrix that is packed once and reused: `lhs · rhs + bias`.
//!
//! A general matrix product packs both operands on every call. A frozen weight stays packed, and the activations need
//! no packing, because a tile reads them row by row. A tile of the result stays in registers while it accumulates,
//! using intrinsics for AVX-512 and AVX2; elsewhere, the compiler vectorizes the same loop.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::{MatrixView, PARALLEL_MIN_ELEMENTS, SharedOutput, Spread};

/// Columns of a panel and rows of a tile on each instruction set, chosen to fill the registers. The widths of most
/// Vision Transformers are multiples of 48.
const AVX512_COLS: usize = 48;
const AVX512_ROWS: usize = 8;
/// Rows of the tallest tile; pieces of work that are multiples of it leave no registers idle.
pub(super) const TILE_ROWS: usize = AVX512_ROWS;
const AVX2_COLS: usize = 16;
const AVX2_ROWS: usize = 6;
const PORTABLE_COLS: usize = 16;
const PORTABLE_ROWS: usize = 4;

/// Depth of the part of a panel that is multiplied at once: 48 columns of it fit in the L1 cache.
pub(super) const DEPTH_BLOCK: usize = 192;
/// Rows per piece of parallel work: with 768 features they fit in the L2 cache.
const ROW_BLOCK: usize = 192;

/// The instruction set that tiles are computed with.
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

/// 16 values aligned to a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The right-hand side of products: a `[depth, cols]` matrix in panels of columns.
///
/// A panel stores its columns side by side for depth 0, then for depth 1, and so on. The last panel is as narrow as
/// whole lines allow, and padded with zeros.
pub(super) struct Packed {
    lines: Vec<Line>,
    depth: usize,
    cols: usize,
    isa: Isa,
}

/// The values that a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zeros,
    /// The same values in every row, `[cols]`.
    Bias(&'a [f32]),
    /// The values in the destination.
    Destination,
}

/// The right-hand side of products: a `[depth, cols]` matrix in panels of columns.
pub(super) trait RightHand: Sync {
    /// Packs another matrix into the same memory, with columns of zeros until there are `cols`.
    fn fill_wider(&mut self, matrix: (&[f32], MatrixView), cols: usize);

    /// Number of columns.
    fn cols(&self) -> usize;

    /// `out = start + lhs · self`, then calls `finish` on every piece of a row of `out` as soon as it is complete.
    ///
    /// `finish` receives the row, the first column and the piece.
    ///
    /// # Shapes
    /// - `lhs`: `[rows, depth]`
    /// - `out`: `[rows, cols]`, row by row
    fn multiply(
        &self,
        lhs: (&[f32], MatrixView),
        start: Start<'_>,
        out: &mut [f32],
        spread: Spread,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        let out_view = MatrixView::row_major(lhs.1.rows, self.cols());
        assert_eq!(out.len(), out_view.end());
        let shared = SharedOutput(out.as_mut_ptr());
        // SAFETY: `out` is borrowed exclusively and holds all of `out_view`.
        unsafe { self.multiply_into((shared, out_view), lhs, start, spread, finish) }
    }

    /// [`multiply`](Self::multiply) into a part of a larger buffer.
    ///
    /// # Safety
    /// `dst` contains every element that `dst_view` names, each row is contiguous, and no other thread touches them.
    unsafe fn multiply_into(
        &self,
        dst: (SharedOutput, MatrixView),
        lhs: (&[f32], MatrixView),
        start: Start<'_>,
        spread: Spread,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    );
}

/// An empty matrix, to be filled.
impl Default for Packed {
    fn default() -> Self {
        Self::new((&[], MatrixView::row_major(0, 0)))
    }
}

impl Packed {
    /// Packs a matrix.
    pub(super) fn new(matrix: (&[f32], MatrixView)) -> Self {
        Self::with(Isa::detect(), matrix)
    }

    fn with(isa: Isa, matrix: (&[f32], MatrixView)) -> Self {
        let mut packed = Self {
            lines: Vec::new(),
            depth: 0,
            cols: 0,
            isa,
        };
        packed.fill(matrix);
        packed
    }

    /// Packs another matrix into the same memory.
    pub(super) fn fill(&mut self, matrix: (&[f32], MatrixView)) {
        self.fill_wider(matrix, matrix.1.cols);
    }

    fn n_panels(&self) -> usize {
        self.cols.div_ceil(self.isa.tile().1)
    }

    /// First column and number of columns of a panel.
    fn panel_cols(&self, panel_idx: usize) -> (usize, usize) {
        let (_, panel_cols) = self.isa.tile();
        let first_col = panel_idx * panel_cols;
        (first_col, panel_cols.min(self.cols - first_col))
    }

    /// # Safety
    /// As for [`multiply_into`](Self::multiply_into), for the columns of this piece's rows.
    unsafe fn multiply_piece(
        &self,
        (dst, dst_view): (SharedOutput, MatrixView),
        (lhs, lhs_view): (&[f32], MatrixView),
        start: Start<'_>,
        piece: Piece,
        finish: &(impl Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let (tile_rows, _) = self.isa.tile();
        let (first_col, cols) = self.panel_cols(piece.panel_idx);
        let lines = cols.div_ceil(16);
        let mut bias = [Line([0.0; 16]); AVX512_COLS / 16];
        if let Start::Bias(values) = start {
            let padded = bias.iter_mut().flat_map(|line| &mut line.0);
            for (padded, value) in padded.zip(&values[first_col..first_col + cols]) {
                *padded = *value;
            }
        }
        let panel = &self.lines[first_col / 16 * self.depth..][..self.depth * lines];
        for first_depth in (0..self.depth.max(1)).step_by(DEPTH_BLOCK) {
            let depth = DEPTH_BLOCK.min(self.depth - first_depth);
            let rhs = &panel[first_depth * lines..][..depth * lines];
            let keeps = first_depth > 0 || matches!(start, Start::Destination);
            for first_row in piece.rows.clone().step_by(tile_rows) {
                let rows = tile_rows.min(piece.rows.end - first_row);
                let offset = dst_view.start + first_row * dst_view.row_stride + first_col;
                // SAFETY: the caller guarantees the columns of these rows.
                let at = unsafe { dst.ptr().add(offset) };
                let lhs_start = lhs_view.start
                    + first_row * lhs_view.row_stride
                    + first_depth * lhs_view.col_stride;
                let multiply = |dst: *mut f32, dst_stride: usize| {
                    let tile = Tile {
                        lhs: lhs.as_ptr().wrapping_add(lhs_start),
                        lhs_stride: lhs_view.row_stride,
                        lhs_depth_stride: lhs_view.col_stride,
                        rhs: rhs.as_ptr().cast(),
                        depth,
                        start: (!keeps).then_some(bias.as_ptr().cast()),
                        dst,
                        dst_stride,
                    };
                    // SAFETY: `lhs` has these rows and depths, as asserted; `rhs` has `depth` rows of the panel, `bias`
                    // has one, and the destination has room for the tile.
                    unsafe { self.isa.add_product(rows, lines, &tile) }
                };
                // SAFETY: the caller guarantees the columns of these rows.
                unsafe {
                    with_whole_lines((at, dst_view.row_stride), (rows, cols), keeps, multiply);
                }
                if first_depth + depth == self.depth {
                    for row in 0..rows {
                        // SAFETY: the caller guarantees these columns, and the tile has been written.
                        let piece = unsafe {
                            std::slice::from_raw_parts_mut(at.add(row * dst_view.row_stride), cols)
                        };
                        finish(first_row + row, first_col, piece);
                    }
                }
            }
        }
    }
}

impl RightHand for Packed {
    fn fill_wider(&mut self, (matrix, view): (&[f32], MatrixView), cols: usize) {
        let depth = view.rows;
        assert!(view.end() <= matrix.len() && view.cols <= cols);
        (self.depth, self.cols) = (depth, cols);
        let n_lines = depth * cols.div_ceil(16);
        self.lines.resize(n_lines, Line([0.0; 16]));
        for panel_idx in 0..self.n_panels() {
            let (first_col, width) = self.panel_cols(panel_idx);
            let lines_a_row = width.div_ceil(16);
            let first_line = first_col / 16 * depth;
            let panel = &mut self.lines[first_line..][..depth * lines_a_row];
            for (row_idx, row) in panel.chunks_exact_mut(lines_a_row).enumerate() {
                let start = view.start + row_idx * view.row_stride + first_col * view.col_stride;
                for (line_idx, line) in row.iter_mut().enumerate() {
                    let filled = view.cols.saturating_sub(first_col + 16 * line_idx);
                    let width = (width - 16 * line_idx).min(16).min(filled);
                    let start = start + 16 * line_idx * view.col_stride;
                    if view.col_stride == 1 && width > 0 {
                        line.0[..width].copy_from_slice(&matrix[start..start + width]);
                    } else {
                        for (col, value) in line.0[..width].iter_mut().enumerate() {
                            *value = matrix[start + col * view.col_stride];
                        }
                    }
                    line.0[width..].fill(0.0);
                }
            }
        }
    }

    fn cols(&self) -> usize {
        self.cols
    }

    unsafe fn multiply_into(
        &self,
        (dst, dst_view): (SharedOutput, MatrixView),
        lhs: (&[f32], MatrixView),
        start: Start<'_>,
        spread: Spread,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        let rows = lhs.1.rows;
        assert_eq!((rows, self.cols), (dst_view.rows, dst_view.cols));
        assert!(lhs.1.cols == self.depth && lhs.1.end() <= lhs.0.len());
        assert!(!matches!(start, Start::Bias(bias) if bias.len() != self.cols));
        if rows == 0 || self.cols == 0 {
            return;
        }
        let (tile_rows, _) = self.isa.tile();
        let sizes = (rows, self.cols);
        for_each_piece(sizes, (self.n_panels(), tile_rows), spread, |piece| {
            // SAFETY: pieces do not overlap, and the caller guarantees the requirements for all of them.
            unsafe { self.multiply_piece((dst, dst_view), lhs, start, piece, &finish) }
        });
    }
}

/// Calls `work` with a destination of whole lines, and its stride, for `rows` rows of `cols` columns, neither more than in
/// the largest tile: with `dst` or, since the last tile of a row may be wider than the rest of the result, with spare
/// memory that is then copied. `keeps` says that `work` reads the destination.
///
/// # Safety
/// These rows and columns of `dst` are valid, and no other thread touches them.
pub(super) unsafe fn with_whole_lines(
    (dst, stride): (*mut f32, usize),
    (rows, cols): (usize, usize),
    keeps: bool,
    work: impl FnOnce(*mut f32, usize),
) {
    if cols % 16 == 0 {
        return work(dst, stride);
    }
    let width = cols.next_multiple_of(16);
    let mut spare = [Line([0.0; 16]); AVX512_ROWS * AVX512_COLS / 16];
    let at = spare.as_mut_ptr().cast::<f32>();
    if keeps {
        for row in 0..rows {
            // SAFETY: the caller guarantees `dst`; `spare` has room for the largest tile.
            unsafe {
                std::ptr::copy_nonoverlapping(dst.add(row * stride), at.add(row * width), cols);
            }
        }
    }
    work(at, width);
    for row in 0..rows {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(at.add(row * width), dst.add(row * stride), cols) };
    }
}

/// Rows of the result, and the panel that gives its columns.
pub(super) struct Piece {
    pub(super) rows: std::ops::Range<usize>,
    pub(super) panel_idx: usize,
}

/// Runs `work` on the pieces of a result of `rows` × `cols`, which `n_panels` panels and tiles of `tile_rows` rows
/// compute.
pub(super) fn for_each_piece(
    (rows, cols): (usize, usize),
    (n_panels, tile_rows): (usize, usize),
    spread: Spread,
    work: impl Fn(Piece) + Sync,
) {
    // Row blocks of equal size, in whole tiles.
    let n_row_blocks = rows.div_ceil(ROW_BLOCK).max(match spread {
        Spread::Pool if n_panels < 8 => 2,
        _ => 1,
    });
    let block_rows = rows.div_ceil(n_row_blocks).next_multiple_of(tile_rows);
    let n_row_blocks = rows.div_ceil(block_rows);
    let work = |unit: usize| {
        let (block_idx, panel_idx) = (unit / n_panels, unit % n_panels);
        let first_row = block_idx * block_rows;
        work(Piece {
            rows: first_row..(first_row + block_rows).min(rows),
            panel_idx,
        });
    };
    let n_units = n_row_blocks * n_panels;
    if spread == Spread::Thread || rows * cols < PARALLEL_MIN_ELEMENTS {
        (0..n_units).for_each(work);
    } else {
        (0..n_units).into_par_iter().for_each(work);
    }
}

/// One tile of the result: `dst = (start or dst) + lhs · rhs`.
struct Tile {
    lhs: *const f32,
    lhs_stride: usize,
    lhs_depth_stride: usize,
    rhs: *const f32,
    depth: usize,
    start: Option<*const f32>,
    dst: *mut f32,
    dst_stride: usize,
}

/// Calls a function that is generic over the number of rows with the required number.
macro_rules! for_rows {
    ($rows:expr, $function:ident $(, $lines:literal)?; $tile:expr $(, $to:expr)?) => {
        match $rows {
            1 => $function::<1 $(, $lines)?>($tile $(, $to)?),
            2 => $function::<2 $(, $lines)?>($tile $(, $to)?),
            3 => $function::<3 $(, $lines)?>($tile $(, $to)?),
            4 => $function::<4 $(, $lines)?>($tile $(, $to)?),
            5 => $function::<5 $(, $lines)?>($tile $(, $to)?),
            6 => $function::<6 $(, $lines)?>($tile $(, $to)?),
            7 => $function::<7 $(, $lines)?>($tile $(, $to)?),
            _ => $function::<8 $(, $lines)?>($tile $(, $to)?),
        }
    };
}
pub(super) use for_rows;

impl Isa {
    /// # Safety
    /// The processor supports this instruction set, and everything that the tile points to is valid: `rows` rows of
    /// `lhs` and `dst`, `depth` rows of `rhs`, and one row of `start`, each of `lines` lines. Neither number exceeds
    /// that of a whole tile.
    unsafe fn add_product(self, rows: usize, lines: usize, tile: &Tile) {
        // SAFETY: the caller upholds the same requirements.
        unsafe {
            match (self, lines) {
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512, 1) => for_rows!(rows, tile_avx512, 1; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512, 2) => for_rows!(rows, tile_avx512, 2; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512, _) => for_rows!(rows, tile_avx512, 3; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx2, _) => for_rows!(rows, tile_avx2; tile),
                (Self::Portable, _) => for_rows!(rows, tile_portable; tile),
            }
        }
    }
}

/// # Safety
/// As [`Isa::add_product`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const ROWS: usize, const LINES: usize>(tile: &Tile) {
    use std::arch::x86_64::*;

    // SAFETY: the caller guarantees that everything the tile points to is valid.
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
            rhs = rhs.add(16 * LINES);
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(
                    *tile
                        .lhs
                        .add(row * tile.lhs_stride + depth * tile.lhs_depth_stride),
                );
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
    // SAFETY: the caller guarantees that everything the tile points to is valid.
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
                let left = _mm256_set1_ps(
                    *tile
                        .lhs
                        .add(row * tile.lhs_stride + depth * tile.lhs_depth_stride),
                );
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
    // SAFETY: the caller guarantees that everything the tile points to is valid.
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
                let left = *tile
                    .lhs
                    .add(row * tile.lhs_stride + depth * tile.lhs_depth_stride);
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

    /// Small integers: sums are exact in any order.
    fn matrix(rows: usize, cols: usize, factor: usize) -> Vec<f32> {
        (0..rows * cols)
            .map(|index| ((index * factor) % 17) as f32 - 8.0)
            .collect()
    }

    /// Checks a product for every start, with both operands untransposed and transposed in memory.
    fn check(isa: Isa, rows: usize, depth: usize, cols: usize) {
        let (lhs, rhs) = (matrix(rows, depth, 7), matrix(depth, cols, 5));
        let bias = matrix(1, cols, 3);
        let product = |row: usize, col: usize| -> f32 {
            (0..depth)
                .map(|k| lhs[row * depth + k] * rhs[k * cols + col])
                .sum()
        };
        let lhs_t = transposed(&lhs, rows, depth);
        let rhs_t = transposed(&rhs, depth, cols);
        let lhs_sides = [
            (&lhs, MatrixView::row_major(rows, depth)),
            (&lhs_t, MatrixView::row_major(depth, rows).transposed()),
        ];
        let rhs_sides = [
            (&rhs, MatrixView::row_major(depth, cols)),
            (&rhs_t, MatrixView::row_major(cols, depth).transposed()),
        ];
        for ((lhs, lhs_view), (rhs, rhs_view)) in lhs_sides.into_iter().zip(rhs_sides) {
            let packed = Packed::with(isa, (rhs, rhs_view));
            for (start, spread) in [
                (Start::Zeros, Spread::Pool),
                (Start::Bias(&bias), Spread::Thread),
                (Start::Destination, Spread::Pool),
            ] {
                let mut out = vec![2.0; rows * cols];
                packed.multiply(
                    (lhs, lhs_view),
                    start,
                    &mut out,
                    spread,
                    |row, first_col, piece| {
                        for (col, value) in piece.iter_mut().enumerate() {
                            *value += (1000 * row + first_col + col) as f32;
                        }
                    },
                );
                for (index, got) in out.into_iter().enumerate() {
                    let (row, col) = (index / cols, index % cols);
                    let start = match start {
                        Start::Zeros => 0.0,
                        Start::Bias(bias) => bias[col],
                        Start::Destination => 2.0,
                    };
                    let want = start + product(row, col) + (1000 * row + col) as f32;
                    let what = format!("{isa:?}, {rows}×{depth}×{cols} at ({row}, {col})");
                    assert_eq!(got, want, "{what}");
                }
            }
        }
    }

    fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols)
            .map(|index| values[index % rows * cols + index / rows])
            .collect()
    }

    #[test]
    fn a_packed_matrix_is_filled_anew() {
        let (wide, small) = (matrix(9, 70, 7), matrix(2, 3, 5));
        let mut packed = Packed::new((&wide, MatrixView::row_major(9, 70)));
        packed.fill((&small, MatrixView::row_major(2, 3)));
        let mut out = [0.0; 3];
        let lhs = (&[1.0, 10.0][..], MatrixView::row_major(1, 2));
        packed.multiply(lhs, Start::Zeros, &mut out, Spread::Thread, |_, _, _| ());
        for (col, got) in out.into_iter().enumerate() {
            assert_eq!(got, small[col] + 10.0 * small[3 + col]);
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
                for cols in [1, 15, 16, 17, 33, 48, 49, 80, 100] {
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
