//! Subsets of kept patches, drawn in pairs with their complements.

use vitscope_core::rng::Rng;

/// Draws the size of a subset: half of the draws are uniform from 1 to all but one, half follow the Shapley kernel,
/// whose weight of a size n among N patches is 1 / (n (N − n)).
pub(super) fn draw_size(n_patches: usize, rng: &mut Rng) -> usize {
    let last = n_patches - 1;
    if rng.uniform() < 0.5 {
        return 1 + rng.below(last);
    }
    let weight = |n: usize| 1.0 / (n * (n_patches - n)) as f64;
    let total: f64 = (1..=last).map(weight).sum();
    let mut left = f64::from(rng.uniform()) * total;
    for n in 1..=last {
        left -= weight(n);
        if left <= 0.0 {
            return n;
        }
    }
    last
}

/// Returns scores whose top patches form a uniformly drawn subset.
pub(super) fn scattered(n_patches: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n_patches).map(|_| rng.uniform()).collect()
}

/// Scores whose best patches lie together: a sum of a few waves in random directions, of 0.3 to 1.5 periods.
pub(super) fn blobs((rows, columns): (usize, usize), rng: &mut Rng) -> Vec<f32> {
    const WAVES: usize = 4;
    let mut scores = vec![0f32; rows * columns];
    for _ in 0..WAVES {
        let angle = std::f32::consts::TAU * rng.uniform();
        let phase = std::f32::consts::TAU * rng.uniform();
        let periods = 0.3 + 1.2 * rng.uniform();
        let (along_y, along_x) = angle.sin_cos();
        for (patch, score) in scores.iter_mut().enumerate() {
            let y = (patch / columns) as f32 / rows as f32;
            let x = (patch % columns) as f32 / columns as f32;
            let at = std::f32::consts::TAU * periods * (along_y * y + along_x * x);
            *score += (at + phase).sin();
        }
    }
    scores
}

/// Adds noise of a random strength to scores: 0.2 to 1.5 times their own deviation.
pub(super) fn disturbed(scores: &[f32], rng: &mut Rng) -> Vec<f32> {
    let n = scores.len().max(1) as f32;
    let mean = scores.iter().sum::<f32>() / n;
    let variance = scores.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n;
    let noise = variance.sqrt().max(f32::MIN_POSITIVE) * (0.2 + 1.3 * rng.uniform());
    scores
        .iter()
        .map(|score| score + noise * rng.normal())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope_core::gates::{best_kept, ranking};

    #[test]
    fn sizes_are_those_of_the_mixture() {
        const PATCHES: usize = 5;
        const DRAWS: usize = 200_000;
        let mut rng = Rng::new(3);
        let mut counts = [0usize; PATCHES + 1];
        for _ in 0..DRAWS {
            counts[draw_size(PATCHES, &mut rng)] += 1;
        }
        // 1 / (n (5 − n)) for n = 1 … 4 is 1/4, 1/6, 1/6, 1/4, so the kernel's shares are 0.3, 0.2, 0.2, 0.3.
        let expected = [0.0, 0.275, 0.225, 0.225, 0.275, 0.0];
        for (count, expected) in counts.into_iter().zip(expected) {
            assert!((count as f64 / DRAWS as f64 - expected).abs() < 0.005);
        }
    }

    #[test]
    fn blobs_lie_together_more_than_scattered_patches() {
        let side = 12;
        let borders = |scores: &[f32]| {
            let mask = best_kept(&ranking(scores), side * side / 2);
            let differs = |a: usize, b: usize| usize::from(mask[a] != mask[b]);
            let along = (0..side * side).filter(|patch| patch % side + 1 < side);
            let across = 0..side * (side - 1);
            along.map(|patch| differs(patch, patch + 1)).sum::<usize>()
                + across
                    .map(|patch| differs(patch, patch + side))
                    .sum::<usize>()
        };
        let mut rng = Rng::new(1);
        let sum = |mut draw: Box<dyn FnMut() -> Vec<f32>>| -> usize {
            (0..20).map(|_| borders(&draw())).sum()
        };
        let mut other = Rng::new(2);
        let together = sum(Box::new(move || blobs((side, side), &mut rng)));
        let apart = sum(Box::new(move || scattered(side * side, &mut other)));
        assert!(3 * together < apart, "{together} {apart}");
    }
}
