//! Fused, vectorized CPU operations as candle custom operations, each with a forward and a backward pass.
//!
//! candle's own `layer_norm` and `softmax_last_dim` silently stop gradients, and its elementwise CPU code is scalar and
//! single-threaded. The operations in this crate serve both training and inference, so there is only one copy of the
//! model. On other devices, each operation maps to the equivalent composition of candle's operations, which candle
//! differentiates itself.
//!
//! Vector code is compiled for several instruction sets and selected at run time. Work is split over rayon's current
//! pool such that results do not depend on the number of threads: sums over rows are computed in pieces of a fixed
//! size.
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]
#![expect(
    unsafe_code,
    reason = "gemm takes raw pointers, and vector dispatch calls functions with target features"
)]

pub mod activation;
pub mod attention;
mod bfloat;
mod learning_mlp;
pub mod linear;
pub mod mlp;
pub mod norm;
mod packed;
mod quantized;
pub mod self_attention;
pub mod softmax;
pub mod vote;
pub mod watch;
mod workspace;

pub use activation::Activation;
pub use attention::attention;
pub use linear::{Linear, linear};
pub use mlp::Mlp;
pub use norm::{LayerNorm, layer_norm};
pub use self_attention::FusedSelfAttention;
pub use softmax::softmax;
pub use vote::Vote;
pub use watch::Watch;

use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

/// Number of elements below which splitting work over threads costs more than it saves.
const PARALLEL_MIN_ELEMENTS: usize = 16 * 1024;

/// Lanes of running sums: one AVX-512 register of f32.
const LANES: usize = 16;

/// The vector instructions used on this processor.
pub fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    "no vector instructions of ours"
}

/// True if the fused operation applies: f32 on the CPU.
fn is_fused(xs: &Tensor) -> bool {
    xs.device().is_cpu() && xs.dtype() == DType::F32
}

/// The f32 elements of a contiguous CPU storage.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| Error::Msg("a fused operation needs contiguous operands".into()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `read` with the f32 elements of a contiguous CPU tensor.
fn with_f32<T>(xs: &Tensor, read: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let xs = xs.contiguous()?;
    let (storage, layout) = xs.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(f32_slice(storage, layout)?),
        _ => Err(Error::Msg("a fused operation needs CPU operands".into())),
    }
}

/// A copy of the f32 elements of a small CPU tensor.
fn values(xs: &Tensor) -> Result<Vec<f32>> {
    with_f32(xs, |xs| Ok(xs.to_vec()))
}

/// Which threads compute a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    /// All threads of the current pool, if the work is large enough.
    Pool,
    /// Only the calling thread, because others are busy with their own pieces.
    Thread,
}

/// The numbers that products are computed with; their sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// 32-bit floating point.
    #[default]
    F32,
    /// bfloat16: f32 rounded to 8 bits of precision.
    Bf16,
}

impl Products {
    /// bf16 if this processor has instructions for it, otherwise f32.
    pub fn fastest() -> Self {
        if bfloat::is_fast() {
            Self::Bf16
        } else {
            Self::F32
        }
    }
}

/// Number of pieces per thread from which an imbalance of one piece does not matter.
const MANY: usize = 4;

/// True if equal pieces keep all threads busy when each piece runs on one thread.
fn feeds_all_threads(n_pieces: usize) -> bool {
    let threads = rayon::current_num_threads();
    n_pieces >= MANY * threads || (n_pieces > 0 && n_pieces.is_multiple_of(threads))
}

/// Rows of a piece from which the weights that its thread reads are worth reading.
const WORTHWHILE_ROWS: usize = 64;

/// Runs `work(first_row, rows_of_each_output, spread)` over all rows of outputs with `row_lens` values per row.
///
/// On the pool, each thread gets pieces of at most about `piece_rows` rows if there are enough rows; otherwise, all threads
/// work on all rows together. Pieces are multiples of `tile_rows`.
fn for_pieces<const N: usize>(
    outs: [(&mut [f32], usize); N],
    (tile_rows, piece_rows): (usize, usize),
    spread: Spread,
    work: impl Fn(usize, [&mut [f32]; N], Spread) + Sync,
) {
    let rows = outs
        .iter()
        .map(|(out, row_len)| out.len() / row_len.max(&1));
    let rows = rows.min().unwrap_or(0);
    if rows == 0 {
        return;
    }
    if spread == Spread::Thread {
        return work(0, outs.map(|(out, _)| out), spread);
    }
    let threads = rayon::current_num_threads();
    let n_tiles = rows.div_ceil(tile_rows);
    let n_pieces = rows.div_ceil(piece_rows);
    if !feeds_all_threads(n_pieces) && rows < WORTHWHILE_ROWS * threads {
        return work(0, outs.map(|(out, _)| out), Spread::Pool);
    }
    let n_pieces = n_pieces.next_multiple_of(threads).min(n_tiles);
    let mut pieces = Vec::with_capacity(n_pieces);
    let (mut rest, mut first_row) = (outs, 0);
    for piece_idx in 1..=n_pieces {
        let end_row = (piece_idx * n_tiles / n_pieces * tile_rows).min(rows);
        let piece = rest.each_mut().map(|(rest, row_len)| {
            let len = (end_row - first_row) * *row_len;
            rest.split_off_mut(..len).unwrap_or_default()
        });
        pieces.push((first_row, piece));
        first_row = end_row;
    }
    pieces
        .into_par_iter()
        .for_each(|(first_row, piece)| work(first_row, piece, Spread::Thread));
}

/// Runs `work(image_idx, outputs, spread)` on the outputs of each image: one image per thread if there are enough,
/// otherwise one after the other on all threads.
fn for_images<T: Send>(outputs: Vec<T>, work: impl Fn(usize, T, Spread) + Sync) {
    if feeds_all_threads(outputs.len()) {
        outputs
            .into_par_iter()
            .enumerate()
            .for_each(|(image_idx, outputs)| work(image_idx, outputs, Spread::Thread));
    } else {
        for (image_idx, outputs) in outputs.into_iter().enumerate() {
            work(image_idx, outputs, Spread::Pool);
        }
    }
}

/// Splits `xs` into images of `image_len` values.
fn images_mut(xs: &mut [f32], image_len: usize) -> Vec<&mut [f32]> {
    xs.chunks_exact_mut(image_len.max(1)).collect()
}

/// Runs `work(first_row, rows_of_out)` over blocks of `rows_per_block` rows of `out`, in parallel if worthwhile.
fn for_row_blocks<T: Send>(
    out: &mut [T],
    row_len: usize,
    rows_per_block: usize,
    spread: Spread,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if row_len == 0 {
        return;
    }
    if spread == Spread::Thread || out.len() < PARALLEL_MIN_ELEMENTS {
        return work(0, out);
    }
    out.par_chunks_mut(row_len * rows_per_block)
        .enumerate()
        .for_each(|(block_idx, block)| work(block_idx * rows_per_block, block));
}

/// A buffer into which several threads write at disjoint positions.
#[derive(Clone, Copy)]
struct SharedOutput(*mut f32);

// SAFETY: every piece of parallel work writes only its own elements.
unsafe impl Send for SharedOutput {}
// SAFETY: as above.
unsafe impl Sync for SharedOutput {}

impl SharedOutput {
    /// A method, so that closures capture the whole struct and not the raw pointer.
    fn ptr(self) -> *mut f32 {
        self.0
    }
}

/// A matrix inside a larger buffer: element (i, j) is at `start + i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
struct MatrixView {
    start: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl MatrixView {
    /// A row-major matrix at the start of its buffer.
    fn row_major(rows: usize, cols: usize) -> Self {
        Self {
            start: 0,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// `rows` rows of this matrix.
    fn rows_from(self, first_row: usize, rows: usize) -> Self {
        assert!(first_row + rows <= self.rows);
        Self {
            start: self.start + first_row * self.row_stride,
            rows,
            ..self
        }
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// One past the last element, or `start` if the matrix is empty.
    fn end(self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return self.start;
        }
        self.start + (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// `dst = lhs · rhs` on all threads of the current pool, for operands that are not reused enough to pack them.
fn matmul(
    (dst, dst_view): (&mut [f32], MatrixView),
    (lhs, lhs_view): (&[f32], MatrixView),
    (rhs, rhs_view): (&[f32], MatrixView),
) {
    assert!(dst_view.end() <= dst.len());
    assert!(lhs_view.end() <= lhs.len() && rhs_view.end() <= rhs.len());
    assert_eq!(
        (dst_view.rows, dst_view.cols, lhs_view.cols),
        (lhs_view.rows, rhs_view.cols, rhs_view.rows)
    );
    if dst_view.rows == 0 || dst_view.cols == 0 {
        return;
    }
    let parallelism = match rayon::current_num_threads() {
        1 => gemm::Parallelism::None,
        threads => gemm::Parallelism::Rayon(threads),
    };
    // SAFETY: the assertions above ensure that every access is within the three slices.
    unsafe {
        gemm::gemm(
            dst_view.rows,
            dst_view.cols,
            lhs_view.cols,
            dst.as_mut_ptr().add(dst_view.start),
            dst_view.col_stride as isize,
            dst_view.row_stride as isize,
            false,
            lhs.as_ptr().add(lhs_view.start),
            lhs_view.col_stride as isize,
            lhs_view.row_stride as isize,
            rhs.as_ptr().add(rhs_view.start),
            rhs_view.col_stride as isize,
            rhs_view.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Runs `work` on a thread of rayon's pool.
///
/// From there, each parallel operation starts immediately. From any other thread, each one would wake the pool and
/// block until it is done.
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match rayon::current_thread_index() {
        Some(_) => work(),
        None => rayon::scope(|_| work()),
    }
}

/// `a · b + c`, rounded once if `fused`: without an instruction for it, that takes a hundred times as long.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32, fused: bool) -> f32 {
    if fused { a.mul_add(b, c) } else { a * b + c }
}

/// The polynomial of `x` with these coefficients, the highest first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N], fused: bool) -> f32 {
    let mut sum = 0.0;
    for coefficient in coefficients {
        sum = multiply_add(sum, x, coefficient, fused);
    }
    sum
}

/// e^x to about 2 ulp, written to vectorize; saturates instead of overflowing.
#[inline(always)]
fn exp(x: f32, fused: bool) -> f32 {
    // 1.5 · 2^23: adding it rounds to the nearest integer and leaves that integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, so that x - n ln 2 keeps its low bits.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Minimax polynomial of (e^r - r - 1) / r² on |r| <= ln 2 / 2 (Cephes, expf).
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    let x = x.clamp(-87.0, 88.0);
    let shifted = multiply_add(x, std::f32::consts::LOG2_E, ROUND, fused);
    let n = shifted - ROUND;
    let r = multiply_add(n, -LN2_HI, x, fused);
    let r = multiply_add(n, -LN2_LO, r, fused);
    let p = polynomial(r, POLYNOMIAL, fused);
    let p = multiply_add(p * r, r, r + 1.0, fused);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    p * f32::from_bits(1.0f32.to_bits().wrapping_add(exponent))
}

/// Σ xs, in [`LANES`] running sums for vectorization.
#[inline(always)]
fn sum(xs: &[f32]) -> f32 {
    sum_by(xs.len(), |i| xs[i])
}

/// Combines halves of the lanes until there is one value.
#[inline(always)]
fn halved(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| combine(lanes[i], lanes[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| combine(eight[i], eight[i + 4]));
    combine(combine(four[0], four[2]), combine(four[1], four[3]))
}

/// Σ term(i) for i in 0..len, in [`LANES`] running sums for vectorization.
#[inline(always)]
fn sum_by(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let blocks = len / LANES;
    for block_idx in 0..blocks {
        let terms: [f32; LANES] = std::array::from_fn(|lane| term(block_idx * LANES + lane));
        lanes = std::array::from_fn(|lane| lanes[lane] + terms[lane]);
    }
    let rest = (blocks * LANES..len).map(term);
    halved(lanes, |a, b| a + b) + rest.sum::<f32>()
}

/// The column sums of a row-major matrix.
///
/// Blocks of a fixed number of rows are summed first, so that the result does not depend on the number of threads.
fn column_sums(
    xs: &[f32],
    cols: usize,
    add_row: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    const ROWS_PER_BLOCK: usize = 256;
    if cols == 0 {
        return Vec::new();
    }
    let partial: Vec<Vec<f32>> = xs
        .par_chunks(cols * ROWS_PER_BLOCK)
        .enumerate()
        .map(|(block_idx, block)| {
            let mut sums = vec![0f32; cols];
            for (row_idx, row) in block.chunks_exact(cols).enumerate() {
                add_row(block_idx * ROWS_PER_BLOCK + row_idx, row, &mut sums);
            }
            sums
        })
        .collect();
    let mut total = vec![0f32; cols];
    for sums in partial {
        add_assign(&mut total, &sums);
    }
    total
}

/// `total += xs`, elementwise.
#[inline(always)]
fn add_assign(total: &mut [f32], xs: &[f32]) {
    for (total, x) in total.iter_mut().zip(xs) {
        *total += x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_standard_library() {
        for step in -8700..=8800 {
            let x = step as f32 * 0.01;
            for fused in [false, true] {
                let (got, want) = (exp(x, fused), x.exp());
                assert!(
                    (got - want).abs() <= 3e-7 * want,
                    "exp({x}) = {got}, want {want}"
                );
            }
        }
    }
}
