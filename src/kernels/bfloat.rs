//! Products with a matrix of bfloat16 numbers: `lhs · rhs + bias`, added up in f32.
//!
//! A bfloat16 number is the upper half of an f32. One instruction (`vdpbf16ps`) multiplies two pairs of them and adds
//! both products to a sum in f32, so that a pass takes half of the instructions and of the memory for weights.

use std::sync::OnceLock;

use multiversion::multiversion;

use super::packed::{
    DEPTH_BLOCK, Piece, RightHand, Start, for_each_piece, for_rows, with_whole_lines,
};
use super::{MatrixView, SharedOutput, Spread, for_row_blocks, workspace};

/// Depths that one instruction adds up.
const PAIR: usize = 2;
/// Columns of a line.
const LINE_COLS: usize = 16;
/// Rows and lines of the largest tile.
const MOST_ROWS: usize = 8;
const MOST_LINES: usize = 3;
/// Pairs of a panel that are multiplied at once: as many bytes as in f32.
const PAIR_BLOCK: usize = DEPTH_BLOCK;

/// The instruction set that tiles are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    Portable,
}

impl Isa {
    fn detect() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
                return Self::Avx512Bf16;
            }
            Self::Portable
        })
    }
}

/// True if this processor has instructions for bfloat16.
pub(super) fn is_fast() -> bool {
    Isa::detect() != Isa::Portable
}

/// Two depths of 16 columns; the first of a column is in the lower half.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE_COLS]);

/// The right-hand side of products: a `[depth, cols]` matrix in panels of columns.
///
/// A panel stores its lines side by side for depths 0 and 1, then for depths 2 and 3, and so on. An odd depth and the
/// last line are padded with zeros.
pub(super) struct Bfloats {
    lines: Vec<Line>,
    depth: usize,
    cols: usize,
    isa: Isa,
}

/// An empty matrix, to be filled.
impl Default for Bfloats {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            depth: 0,
            cols: 0,
            isa: Isa::detect(),
        }
    }
}

impl Bfloats {
    /// Rounds and packs a matrix.
    pub(super) fn new(matrix: (&[f32], MatrixView)) -> Self {
        let mut packed = Self::default();
        packed.fill_wider(matrix, matrix.1.cols);
        packed
    }

    /// Index of the first pair of depths of a line, and the distance to the next pair.
    fn line(&self, line_idx: usize) -> (usize, usize) {
        let panel_idx = line_idx / MOST_LINES;
        let lines = self.panel_lines(panel_idx);
        let first = panel_idx * MOST_LINES * self.n_pairs();
        (first + line_idx % MOST_LINES, lines)
    }

    fn panel_lines(&self, panel_idx: usize) -> usize {
        MOST_LINES.min(self.cols.div_ceil(LINE_COLS) - panel_idx * MOST_LINES)
    }

    fn n_pairs(&self) -> usize {
        self.depth.div_ceil(PAIR)
    }

    /// # Safety
    /// As for [`multiply_into`](Self::multiply_into), for the columns of this piece's rows.
    unsafe fn multiply_piece(
        &self,
        (dst, dst_view): (SharedOutput, MatrixView),
        (left, stride): (&[u16], usize),
        start: Start<'_>,
        piece: &Piece,
        finish: &(impl Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let lines = self.panel_lines(piece.panel_idx);
        let first_col = piece.panel_idx * MOST_LINES * LINE_COLS;
        let cols = (lines * LINE_COLS).min(self.cols - first_col);
        let n_pairs = self.n_pairs();
        let panel = &self.lines[first_col / LINE_COLS * n_pairs..][..n_pairs * lines];
        let mut bias = [0.0; MOST_LINES * LINE_COLS];
        if let Start::Bias(values) = start {
            bias[..cols].copy_from_slice(&values[first_col..first_col + cols]);
        }
        for first_pair in (0..n_pairs.max(1)).step_by(PAIR_BLOCK) {
            let pairs = PAIR_BLOCK.min(n_pairs - first_pair);
            let right = &panel[first_pair * lines..][..pairs * lines];
            let keeps = first_pair > 0 || matches!(start, Start::Destination);
            for first_row in piece.rows.clone().step_by(MOST_ROWS) {
                let rows = MOST_ROWS.min(piece.rows.end - first_row);
                let offset = dst_view.start + first_row * dst_view.row_stride + first_col;
                let left = &left[first_row * stride + PAIR * first_pair..];
                assert!(left.len() >= (rows - 1) * stride + PAIR * pairs);
                // SAFETY: the caller guarantees the columns of these rows.
                let at = unsafe { dst.ptr().add(offset) };
                let multiply = |dst: *mut f32, dst_stride: usize| {
                    let tile = Tile {
                        left: left.as_ptr().cast(),
                        stride: stride / PAIR,
                        right: right.as_ptr().cast(),
                        pairs,
                        start: (!keeps).then_some(bias.as_ptr()),
                        dst,
                        dst_stride,
                    };
                    // SAFETY: `left` has these rows of pairs, as asserted, `right` has as many, and the destination has
                    // room for the tile.
                    unsafe { self.isa.add_product(rows, lines, &tile) }
                };
                // SAFETY: the caller guarantees the columns of these rows.
                unsafe {
                    with_whole_lines((at, dst_view.row_stride), (rows, cols), keeps, multiply);
                }
                if first_pair + pairs == n_pairs {
                    for row in 0..rows {
                        // SAFETY: the caller guarantees these columns.
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

impl RightHand for Bfloats {
    fn fill_wider(&mut self, (matrix, view): (&[f32], MatrixView), cols: usize) {
        assert!(view.end() <= matrix.len() && view.cols <= cols);
        assert!(view.rows == 0 || view.cols == 0 || view.row_stride == 1 || view.col_stride == 1);
        (self.depth, self.cols) = (view.rows, cols);
        let n_pairs = self.n_pairs();
        let n_lines = cols.div_ceil(LINE_COLS);
        self.lines.resize(n_pairs * n_lines, Line([0; LINE_COLS]));
        if n_pairs == 0 {
            return;
        }
        for line_idx in 0..n_lines {
            let (first, step) = self.line(line_idx);
            let first_col = line_idx * LINE_COLS;
            let width = LINE_COLS.min(view.cols.saturating_sub(first_col));
            let lines = &mut self.lines[first..];
            if width < LINE_COLS {
                let lines = lines.iter_mut().step_by(step).take(n_pairs);
                lines.for_each(|line| line.0.fill(0));
            }
            let part = MatrixView {
                start: view.start + first_col * view.col_stride,
                cols: width,
                ..view
            };
            if width == 0 {
                continue;
            } else if view.col_stride == 1 {
                fill_from_rows(matrix, part, lines, step);
            } else {
                fill_from_columns(matrix, part, lines, step);
            }
        }
    }

    fn cols(&self) -> usize {
        self.cols
    }

    unsafe fn multiply_into(
        &self,
        (dst, dst_view): (SharedOutput, MatrixView),
        (lhs, view): (&[f32], MatrixView),
        start: Start<'_>,
        spread: Spread,
        finish: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        assert_eq!((view.rows, self.cols), (dst_view.rows, dst_view.cols));
        assert!((view.cols, view.col_stride) == (self.depth, 1) && view.end() <= lhs.len());
        assert!(!matches!(start, Start::Bias(bias) if bias.len() != self.cols));
        if view.rows == 0 || self.cols == 0 {
            return;
        }
        let n_panels = self.cols.div_ceil(MOST_LINES * LINE_COLS);
        let sizes = (view.rows, self.cols);
        let stride = self.depth.next_multiple_of(PAIR);
        workspace::with(|buffers| {
            let left = buffers.halves.of(view.rows * stride);
            for_row_blocks(left, stride, MOST_ROWS, spread, |first_row, rows| {
                for (row_idx, row) in rows.chunks_exact_mut(stride).enumerate() {
                    let start = view.start + (first_row + row_idx) * view.row_stride;
                    let (row, padding) = row.split_at_mut(self.depth);
                    round(&lhs[start..start + self.depth], row);
                    padding.fill(0);
                }
            });
            let left = (&*left, stride);
            for_each_piece(sizes, (n_panels, MOST_ROWS), spread, |piece| {
                // SAFETY: pieces do not overlap, and the caller guarantees the requirements for all of them.
                unsafe { self.multiply_piece((dst, dst_view), left, start, &piece, &finish) }
            });
        });
    }
}

/// The bfloat16 number nearest to `x`; of two, the even one.
#[inline(always)]
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A number that is not one stays so.
    (if x.is_nan() {
        bits >> 16 | 0x40
    } else {
        nearest
    }) as u16
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn round(xs: &[f32], to: &mut [u16]) {
    for (x, to) in xs.iter().zip(to) {
        *to = rounded(*x);
    }
}

/// Rounds up to 16 columns whose rows are contiguous; each pair of depths of a line is `step` lines behind the previous
/// one.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn fill_from_rows(matrix: &[f32], view: MatrixView, lines: &mut [Line], step: usize) {
    const NO_ROW: [f32; LINE_COLS] = [0.0; LINE_COLS];
    for first_row in (0..view.rows).step_by(PAIR) {
        let line = &mut lines[first_row / PAIR * step].0;
        let row = |row: usize| match row < view.rows {
            true => &matrix[view.start + row * view.row_stride..][..view.cols],
            false => &NO_ROW[..view.cols],
        };
        let pairs = row(first_row).iter().zip(row(first_row + 1));
        for (pair, (low, high)) in line.iter_mut().zip(pairs) {
            *pair = u32::from(rounded(*low)) | u32::from(rounded(*high)) << 16;
        }
    }
}

/// As [`fill_from_rows`], for columns that are contiguous.
fn fill_from_columns(matrix: &[f32], view: MatrixView, lines: &mut [Line], step: usize) {
    const DEPTHS: usize = 64;
    let mut halves = [0; DEPTHS];
    for col in 0..view.cols {
        let start = view.start + col * view.col_stride;
        let column = &matrix[start..start + view.rows];
        for (block_idx, block) in column.chunks(DEPTHS).enumerate() {
            halves[block.len()..].fill(0);
            round(block, &mut halves);
            let first_pair = block_idx * DEPTHS / PAIR;
            let pairs = halves.as_chunks::<PAIR>().0;
            for (pair_idx, [low, high]) in pairs[..block.len().div_ceil(PAIR)].iter().enumerate() {
                let line = &mut lines[(first_pair + pair_idx) * step];
                line.0[col] = u32::from(*low) | u32::from(*high) << 16;
            }
        }
    }
}

/// One tile of the result: `dst = (start or dst) + left · right`.
struct Tile {
    left: *const u32,
    /// Pairs from a row to the next.
    stride: usize,
    right: *const u32,
    pairs: usize,
    start: Option<*const f32>,
    dst: *mut f32,
    dst_stride: usize,
}

impl Isa {
    /// # Safety
    /// The processor supports this instruction set, and everything that the tile points to is valid: `rows` rows of
    /// `pairs` pairs on the left, `pairs` times `lines` lines on the right, and `rows` rows of `lines` lines in the
    /// destination, and one of them at the start. Neither number exceeds that of a whole tile.
    unsafe fn add_product(self, rows: usize, lines: usize, tile: &Tile) {
        // SAFETY: the caller upholds the same requirements.
        unsafe {
            match (self, lines) {
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512Bf16, 1) => for_rows!(rows, tile_avx512, 1; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512Bf16, 2) => for_rows!(rows, tile_avx512, 2; tile),
                #[cfg(target_arch = "x86_64")]
                (Self::Avx512Bf16, _) => for_rows!(rows, tile_avx512, 3; tile),
                (Self::Portable, _) => tile_portable(rows, lines, tile),
            }
        }
    }
}

/// # Safety
/// As [`Isa::add_product`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_avx512<const ROWS: usize, const LINES: usize>(tile: &Tile) {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    // SAFETY: the caller guarantees that everything the tile points to is valid; registers of integers and of bfloat16
    // numbers are the same.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); LINES]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let from = match tile.start {
                Some(start) => start,
                None => tile.dst.add(row * tile.dst_stride).cast_const(),
            };
            for (line, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(from.add(LINE_COLS * line));
            }
        }
        let mut from = tile.right;
        for pair in 0..tile.pairs {
            let mut right = [_mm512_setzero_si512(); LINES];
            for (line, right) in right.iter_mut().enumerate() {
                *right = _mm512_load_si512(from.add(LINE_COLS * line).cast());
            }
            from = from.add(LINE_COLS * LINES);
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = tile.left.add(row * tile.stride + pair);
                let left = _mm512_set1_epi32(left.read_unaligned().cast_signed());
                let left = transmute::<__m512i, __m512bh>(left);
                for (sum, right) in sums.iter_mut().zip(right) {
                    let right = transmute::<__m512i, __m512bh>(right);
                    *sum = _mm512_dpbf16_ps(*sum, left, right);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (line, sum) in sums.iter().enumerate() {
                let to = tile.dst.add(row * tile.dst_stride + LINE_COLS * line);
                _mm512_storeu_ps(to, *sum);
            }
        }
    }
}

/// # Safety
/// As [`Isa::add_product`].
unsafe fn tile_portable(rows: usize, lines: usize, tile: &Tile) {
    let halves = |pair: u32| [pair << 16, pair & 0xffff_0000].map(f32::from_bits);
    for (row, col) in (0..rows).flat_map(|row| (0..lines * LINE_COLS).map(move |col| (row, col))) {
        // SAFETY: the caller guarantees that everything the tile points to is valid.
        unsafe {
            let to = tile.dst.add(row * tile.dst_stride + col);
            let mut sum = tile.start.map_or(*to, |start| *start.add(col));
            for pair in 0..tile.pairs {
                let left = halves(tile.left.add(row * tile.stride + pair).read_unaligned());
                let right = halves(*tile.right.add(pair * lines * LINE_COLS + col));
                sum += left[0] * right[0] + left[1] * right[1];
            }
            *to = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Isa> {
        let mut found = vec![Isa::Portable];
        if is_fast() {
            found.push(Isa::detect());
        }
        found
    }

    /// Numbers of up to 8 bits, which rounding does not change; their products and sums are exact in f32.
    fn numbers(len: usize, factor: usize) -> Vec<f32> {
        (0..len)
            .map(|index| ((index * factor) % 255) as f32 - 127.0)
            .collect()
    }

    fn check(isa: Isa, (rows, depth, cols): (usize, usize, usize), is_transposed: bool) {
        let (lhs, rhs) = (numbers(rows * depth, 7), numbers(depth * cols, 31));
        let view = if is_transposed {
            MatrixView::row_major(cols, depth).transposed()
        } else {
            MatrixView::row_major(depth, cols)
        };
        let mut packed = Bfloats {
            isa,
            ..Bfloats::default()
        };
        packed.fill_wider((&rhs, view), cols);
        let bias: Vec<f32> = (0..cols).map(|col| col as f32).collect();
        for start in [Start::Zeros, Start::Bias(&bias), Start::Destination] {
            let mut out = vec![2.0; rows * cols];
            let lhs_view = MatrixView::row_major(rows, depth);
            let finish = |row: usize, first_col: usize, piece: &mut [f32]| {
                for (col, value) in piece.iter_mut().enumerate() {
                    *value += (1000 * row + first_col + col) as f32;
                }
            };
            packed.multiply((&lhs, lhs_view), start, &mut out, Spread::Thread, finish);
            for (index, got) in out.into_iter().enumerate() {
                let (row, col) = (index / cols, index % cols);
                let product: f32 = (0..depth)
                    .map(|i| {
                        lhs[row * depth + i] * rhs[i * view.row_stride + col * view.col_stride]
                    })
                    .sum();
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
    fn products_of_any_size_equal_the_sums_that_they_stand_for() {
        for isa in all() {
            for is_transposed in [false, true] {
                for rows in [1, 2, 3, 5, 7, 8, 9, 17] {
                    for cols in [1, 15, 16, 17, 33, 48, 49, 100] {
                        check(isa, (rows, 5, cols), is_transposed);
                    }
                }
                for depth in [0, 1, 64, 65, 2 * PAIR_BLOCK, 2 * PAIR_BLOCK + 1, 900] {
                    check(isa, (9, depth, 50), is_transposed);
                }
            }
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_even() {
        for (x, want) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (1.0 + 1.1 / 256.0, 1.0 + 1.0 / 128.0),
            (-1.0 - 1.1 / 256.0, -1.0 - 1.0 / 128.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(f32::from_bits(u32::from(rounded(x)) << 16), want, "{x}");
        }
        let not_a_number = f32::from_bits(0x7f80_0001);
        assert!(f32::from_bits(u32::from(rounded(not_a_number)) << 16).is_nan());
    }

    #[test]
    fn another_matrix_leaves_nothing_of_the_previous_one() {
        let matrix = numbers(64 * 70, 7);
        let mut packed = Bfloats::new((&matrix, MatrixView::row_major(64, 70)));
        let small = MatrixView::row_major(3, 2);
        packed.fill_wider((&matrix, small), 20);
        let mut out = [0.0; 20];
        let lhs = (&[1.0; 3][..], MatrixView::row_major(1, 3));
        packed.multiply(lhs, Start::Zeros, &mut out, Spread::Thread, |_, _, _| ());
        let sums = [0, 1].map(|col| matrix[col] + matrix[2 + col] + matrix[4 + col]);
        assert_eq!(out[..2], sums);
        assert!(out[2..].iter().all(|x| *x == 0.0));
    }
}
