//! Seeded random numbers: the only source of randomness in the crate.
//!
//! candle's CPU generator cannot be seeded, so whatever is random is drawn here and handed to
//! `Tensor::from_vec`. The generator is ChaCha8, whose sequence is the same on every machine, and its
//! position is a number that a checkpoint can keep.

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
    /// A generator at the start of the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            inner: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// A generator of its own for each `(seed, index)`, so that what is drawn for one item does not depend on the items before it.
    pub fn for_item(seed: u64, index: u64) -> Self {
        let mut rng = Self::new(seed);
        rng.inner.set_stream(index.wrapping_add(1));
        rng
    }

    /// Continues a generator of `seed` at a position that [`Rng::position`] gave.
    pub fn resume(seed: u64, position: u128) -> Self {
        let mut rng = Self::new(seed);
        rng.inner.set_word_pos(position);
        rng
    }

    /// The seed it was made from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How far the sequence has been read, for [`Rng::resume`].
    pub fn position(&self) -> u128 {
        self.inner.get_word_pos()
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        // 24 bits, what an f32 holds exactly.
        (self.inner.random::<u32>() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in 0..n; 0 for n = 0.
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

    /// Puts `items` into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// A tensor of values uniform in [0, 1).
    ///
    /// # Errors
    /// Fails where the device cannot allocate.
    pub fn uniform_tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let values = (0..shape.elem_count()).map(|_| self.uniform()).collect();
        Tensor::from_vec::<_, f32>(values, shape, device)
    }

    /// A tensor of standard normal values.
    ///
    /// # Errors
    /// Fails where the device cannot allocate.
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
