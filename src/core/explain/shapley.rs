//! Shapley values of a game, by weighted least squares over pairs of complementary subsets.
//!
//! Papers: Lundberg and Lee, arXiv:1705.07874, Theorem 2; Covert and Lee, arXiv:2012.01536, for pairs and the stopping
//! criterion.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | v(z) | score of the subset z ∈ {0, 1}ᴺ with n of the N players; z̄ = 1 − z | |
//! | φ | values of the players | argmin Σ w(z) (v(0) + zᵀφ − v(z))², subject to 1ᵀφ = v(1) − v(0) |
//!
//! As z and z̄ have the same weight, only v(z) − v(z̄) matters. With φ = (v(1) − v(0)) / N + ψ, the constraint becomes
//! 1ᵀψ = 0, so z can be centered, x = z − n/N:
//!
//! ψ = argmin Σ w (xᵀψ − t)² + λ ‖ψ‖², t = (v(z) − v(z̄)) / 2 − (v(1) − v(0)) (n/N − ½), summed over pairs.
//!
//! No x has a component along 1, so neither has ψ. The constraint therefore holds exactly, and adding a multiple of 11ᵀ
//! to the normal matrix makes it invertible without changing the solution. The ridge λ shrinks toward equal shares.

/// Smallest λ, as a share of the normal matrix's mean diagonal. If the pairs do not determine the values, it selects
/// those closest to equal shares.
const LEAST_RIDGE: f64 = 1e-10;

/// The sampled scores of a game.
#[derive(Clone, Debug)]
pub struct Regression {
    n_players: usize,
    /// v(1) − v(0)
    total: f64,
    pairs: Vec<Pair>,
    /// Lower triangle of Σ w x xᵀ, `[players, players]`, row by row.
    normal: Vec<f64>,
    /// Σ w t x, `[players]`
    moments: Vec<f64>,
}

/// Two complementary subsets and their scores.
#[derive(Clone, Debug)]
struct Pair {
    /// x, `[players]`
    centered: Vec<f64>,
    /// w
    weight: f64,
    /// t
    target: f64,
}

/// The values of a game.
#[derive(Clone, Debug)]
pub struct Solution<'a> {
    regression: &'a Regression,
    factor: Cholesky,
    /// ψ, `[players]`
    uneven: Vec<f64>,
}

impl Regression {
    /// Creates a game without pairs, with the scores `empty` of no players and `whole` of all players.
    pub fn new(n_players: usize, empty: f64, whole: f64) -> Self {
        Self {
            n_players,
            total: whole - empty,
            pairs: Vec::new(),
            normal: vec![0.0; n_players * n_players],
            moments: vec![0.0; n_players],
        }
    }

    /// Number of pairs.
    pub fn n_pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Adds a pair.
    ///
    /// # Shapes
    /// - `subset`: `[players]`, 1 for each player in the subset and 0 for all others
    /// - `weight`: of each of the two subsets
    /// - `scores`: of the subset and of its complement
    pub fn add(&mut self, subset: &[f32], weight: f64, scores: (f64, f64)) {
        let share = subset.iter().copied().map(f64::from).sum::<f64>() / self.n_players as f64;
        let pair = Pair {
            centered: subset.iter().map(|&z| f64::from(z) - share).collect(),
            weight,
            target: (scores.0 - scores.1) / 2.0 - self.total * (share - 0.5),
        };
        let rows = self.normal.chunks_exact_mut(self.n_players);
        for (row_idx, (row, &x)) in rows.zip(&pair.centered).enumerate() {
            let until_diagonal = row.iter_mut().zip(&pair.centered).take(row_idx + 1);
            until_diagonal.for_each(|(entry, other)| *entry += weight * x * other);
        }
        for (moment, x) in self.moments.iter_mut().zip(&pair.centered) {
            *moment += weight * pair.target * x;
        }
        self.pairs.push(pair);
    }

    /// Solves for the values with a ridge of λ = `ridge`.
    pub fn solve(&self, ridge: f64) -> Solution<'_> {
        let n = self.n_players;
        let diagonal = || (0..n).map(|player| player * (n + 1));
        let mean = diagonal().map(|at| self.normal[at]).sum::<f64>() / n as f64;
        let least = (LEAST_RIDGE * mean).max(f64::MIN_POSITIVE);
        let mut matrix: Vec<f64> = self.normal.iter().map(|x| x + mean / n as f64).collect();
        diagonal().for_each(|at| matrix[at] += ridge.max(least));
        let factor = Cholesky::of(matrix, n, least);
        let mut uneven = factor.solve(&self.moments);
        // Removes the component along 1 that rounding leaves.
        let rest = uneven.iter().sum::<f64>() / n as f64;
        uneven.iter_mut().for_each(|value| *value -= rest);
        Solution {
            regression: self,
            factor,
            uneven,
        }
    }
}

impl Solution<'_> {
    /// φ, `[players]`; the sum is v(1) − v(0).
    pub fn values(&self) -> Vec<f64> {
        let even = self.regression.total / self.regression.n_players as f64;
        self.uneven.iter().map(|value| even + value).collect()
    }

    /// Standard errors of the values, `[players]`, for independently drawn pairs.
    ///
    /// They come from a jackknife: each pair is left out once, and √(Σ δ²) is the error, with δ the change of a value.
    /// For least squares, this requires no further solutions: δ = w e (1 − h)⁻¹ B⁻¹ x, with B the normal matrix
    /// including the ridge, e = t − xᵀψ and h = w xᵀB⁻¹x. The bias due to the ridge is not included.
    pub fn standard_errors(&self) -> Vec<f64> {
        let mut variances = vec![0.0; self.uneven.len()];
        for pair in &self.regression.pairs {
            let direction = self.factor.solve(&pair.centered);
            let leverage = pair.weight * dot(&pair.centered, &direction);
            let residual = pair.target - dot(&pair.centered, &self.uneven);
            let step = pair.weight * residual / (1.0 - leverage);
            for (variance, along) in variances.iter_mut().zip(&direction) {
                *variance += (step * along).powi(2);
            }
        }
        variances.into_iter().map(f64::sqrt).collect()
    }

    /// True if the largest standard error is at most `tolerance` of the range of the values: the stopping criterion of
    /// Covert and Lee.
    pub fn is_within(&self, tolerance: f64) -> bool {
        let largest = |xs: &[f64]| xs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let least = self.uneven.iter().copied().fold(f64::INFINITY, f64::min);
        let errors = self.standard_errors();
        // NaN errors satisfy no tolerance.
        errors.iter().all(|error| error.is_finite())
            && largest(&errors) <= tolerance * (largest(&self.uneven) - least)
    }
}

/// L of a symmetric positive definite matrix LLᵀ.
#[derive(Clone, Debug)]
struct Cholesky {
    n: usize,
    /// `[n, n]`, row by row; entries above the diagonal are meaningless.
    lower: Vec<f64>,
}

impl Cholesky {
    /// Factors a matrix, given its lower triangle. Pivots that rounding makes smaller than `least_pivot` are set to it.
    fn of(mut matrix: Vec<f64>, n: usize, least_pivot: f64) -> Self {
        for row in 0..n {
            let (above, below) = matrix.split_at_mut(row * n);
            let current = &mut below[..n];
            for column in 0..row {
                let other = &above[column * n..][..=column];
                let known = dot(&current[..column], &other[..column]);
                current[column] = (current[column] - known) / other[column];
            }
            let known = dot(&current[..row], &current[..row]);
            current[row] = (current[row] - known).max(least_pivot).sqrt();
        }
        Self { n, lower: matrix }
    }

    /// Solves LLᵀx = b for x.
    fn solve(&self, b: &[f64]) -> Vec<f64> {
        let mut x = b.to_vec();
        let row = |idx: usize| &self.lower[idx * self.n..][..=idx];
        for idx in 0..self.n {
            let known = dot(&row(idx)[..idx], &x[..idx]);
            x[idx] = (x[idx] - known) / row(idx)[idx];
        }
        for idx in (0..self.n).rev() {
            x[idx] /= row(idx)[idx];
            let (before, at) = x.split_at_mut(idx);
            for (value, entry) in before.iter_mut().zip(row(idx)) {
                *value -= entry * at[0];
            }
        }
        x
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [[4, 2, 2], [2, 5, 3], [2, 3, 6]] = LLᵀ with L = [[2, 0, 0], [1, 2, 0], [1, 1, 2]].
    #[test]
    fn a_matrix_is_factored_and_solved_as_by_hand() {
        let matrix = vec![4.0, 0.0, 0.0, 2.0, 5.0, 0.0, 2.0, 3.0, 6.0];
        let factor = Cholesky::of(matrix, 3, 1e-12);
        let lower = [0, 3, 4, 6, 7, 8].map(|at| factor.lower[at]);
        assert_eq!([2.0, 1.0, 2.0, 1.0, 1.0, 2.0], lower);
        // x = [1, -1, 2] makes b = [6, 3, 11].
        assert_eq!(vec![1.0, -1.0, 2.0], factor.solve(&[6.0, 3.0, 11.0]));
    }

    /// A pair {0}, {1} with scores 3 and 1, v(0) = 0 and v(1) = 4: shares are 2 ± (3 − 1) / 2.
    #[test]
    fn two_players_share_by_the_difference_of_their_scores() {
        let mut regression = Regression::new(2, 0.0, 4.0);
        regression.add(&[1.0, 0.0], 1.0, (3.0, 1.0));
        let values = regression.solve(0.0).values();
        assert!(
            (values[0] - 3.0).abs() < 1e-8 && (values[1] - 1.0).abs() < 1e-8,
            "{values:?}"
        );
        // x xᵀ has the eigenvalue ½ along (1, −1), so a ridge of ½ halves the uneven part.
        let values = regression.solve(0.5).values();
        assert!((values[0] - 2.5).abs() < 1e-8, "{values:?}");
    }

    #[test]
    fn without_pairs_shares_are_even() {
        assert_eq!(
            vec![2.0; 3],
            Regression::new(3, 1.0, 7.0).solve(0.0).values()
        );
        assert_eq!(vec![6.0], Regression::new(1, 1.0, 7.0).solve(0.0).values());
    }
}
