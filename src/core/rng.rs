//! Seeded random numbers: the only source of randomness in the crate.
//!
//! candle's CPU generator cannot be seeded, so all random values are drawn here and passed to `Tensor::from_vec`. The
//! generator is ChaCha8, whose sequence is the same on every machine, and whose position is a number that a checkpoint
//! can store.

use candle_core::{Device, Result, Shape, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Rng {
    seed: u64,
    inner: ChaCha8Rng,
}

impl Rng {
    /// Creates a generator at the start of the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            inner: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Creates a separate generator for each `(seed, index)`, so that the values for one item do not depend on previous
    /// items.
    pub fn for_item(seed: u64, index: u64) -> Self {
        let mut rng = Self::new(seed);
        rng.inner.set_stream(index.wrapping_add(1));
        rng
    }

    /// Resumes a generator of `seed` at a position returned by [`Rng::position`].
    pub fn resume(seed: u64, position: u128) -> Self {
        let mut rng = Self::new(seed);
        rng.inner.set_word_pos(position);
        rng
    }

    /// The generator's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The position in the sequence, for [`Rng::resume`].
    pub fn position(&self) -> u128 {
        self.inner.get_word_pos()
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        // 24 bits, which an f32 represents exactly.
        (self.inner.random::<u32>() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in 0..n; 0 if n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 {
            0
        } else {
            self.inner.random_range(0..n)
        }
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles `items` randomly (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// A tensor of values uniform in [0, 1).
    ///
    /// # Errors
    /// Fails if the device cannot allocate memory.
    pub fn uniform_tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let values = (0..shape.elem_count()).map(|_| self.uniform()).collect();
        Tensor::from_vec::<_, f32>(values, shape, device)
    }

    /// A tensor of standard normal values.
    ///
    /// # Errors
    /// Fails if the device cannot allocate memory.
    pub fn normal_tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let values = (0..shape.elem_count()).map(|_| self.normal()).collect();
        Tensor::from_vec::<_, f32>(values, shape, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_generator_goes_on_where_it_was() {
        let mut rng = Rng::new(7);
        let _: f32 = (0..101).map(|_| rng.normal()).sum();
        let mut resumed = Rng::resume(rng.seed(), rng.position());
        let next: Vec<f32> = (0..50).map(|_| rng.uniform()).collect();
        let again: Vec<f32> = (0..50).map(|_| resumed.uniform()).collect();
        assert_eq!(next, again);
    }

    #[test]
    fn normal_values_have_mean_zero_and_variance_one() {
        let mut rng = Rng::new(1);
        let values: Vec<f64> = (0..100_000).map(|_| f64::from(rng.normal())).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02);
    }
}
