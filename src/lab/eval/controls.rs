//! Model-independent maps: a method that scores no better than these explains nothing.

use std::fmt;

use super::perturbation::Geometry;
use vitscope_core::rng::Rng;

/// A map that depends on the image alone, or on nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// A random score for each patch.
    Random,
    /// High in the center, where photographs have their objects: a Gaussian with a deviation of a quarter of the edge.
    Center,
    /// Amount of brightness change within a patch.
    Edges,
    /// The same score for every patch, so patches are in image order.
    Constant,
}

impl Control {
    /// All controls.
    pub const ALL: [Self; 4] = [Self::Random, Self::Center, Self::Edges, Self::Constant];

    /// Like [`Self::map`], for one of several images, with random draws seeded by its index.
    pub(super) fn map_of_item(
        self,
        image: &[f32],
        geometry: Geometry,
        seed: u64,
        index: usize,
    ) -> Vec<f32> {
        self.map(image, geometry, &mut Rng::for_item(seed, index as u64))
    }

    /// Returns one score per patch.
    ///
    /// # Shapes
    /// - `image`: `[3, height, width]`, normalized
    pub fn map(self, image: &[f32], geometry: Geometry, rng: &mut Rng) -> Vec<f32> {
        let (n_rows, n_columns) = geometry.grid;
        let patches = 0..n_rows * n_columns;
        match self {
            Self::Random => patches.map(|_| rng.uniform()).collect(),
            Self::Center => {
                let distance = |place: usize, n: usize| {
                    let from_middle = (place as f32 + 0.5) / n as f32 - 0.5;
                    // In standard deviations.
                    4.0 * from_middle
                };
                let squared = |patch: usize| {
                    let down = distance(patch / n_columns, n_rows);
                    let across = distance(patch % n_columns, n_columns);
                    down * down + across * across
                };
                patches.map(|patch| (-0.5 * squared(patch)).exp()).collect()
            }
            Self::Edges => {
                let edges = edges(image, geometry);
                let of_patch = |patch| -> f32 {
                    let pixels = geometry.pixels_of_patch(patch);
                    let (sum, n) = pixels.fold((0.0, 0), |(sum, n), pixel| {
                        (sum + edges.get(pixel).copied().unwrap_or_default(), n + 1)
                    });
                    sum / n.max(1) as f32
                };
                patches.map(of_patch).collect()
            }
            Self::Constant => patches.map(|_| 0.0).collect(),
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Random => "random",
            Self::Center => "center",
            Self::Edges => "edges",
            Self::Constant => "constant",
        })
    }
}

/// Length of the gradient of an image's mean channel at each pixel, by forward differences.
fn edges(image: &[f32], geometry: Geometry) -> Vec<f32> {
    let (height, width) = (geometry.height_px, geometry.width_px);
    let n_pixels = height * width;
    let gray = |y: usize, x: usize| -> f32 {
        let at = |channel: usize| image.get(channel * n_pixels + y * width + x);
        (0..3).filter_map(at).sum::<f32>() / 3.0
    };
    (0..n_pixels)
        .map(|pixel| {
            let (y, x) = (pixel / width, pixel % width);
            let here = gray(y, x);
            let across = gray(y, (x + 1).min(width - 1)) - here;
            let down = gray((y + 1).min(height - 1), x) - here;
            across.hypot(down)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        height_px: 8,
        width_px: 8,
        grid: (4, 4),
    };

    fn map(control: Control, image: &[f32]) -> Vec<f32> {
        control.map(image, GEOMETRY, &mut Rng::new(5))
    }

    #[test]
    fn edges_are_where_brightness_changes() {
        let mut image = vec![0.0; 3 * 64];
        // White from column 4 on: the change is detected at column 3, in the second column of patches.
        for pixel in (0..3 * 64).filter(|pixel| pixel % 8 >= 4) {
            image[pixel] = 1.0;
        }
        let edges = map(Control::Edges, &image);
        for (patch, score) in edges.iter().enumerate() {
            assert_eq!(*score, if patch % 4 == 1 { 0.5 } else { 0.0 }, "{patch}");
        }
    }

    #[test]
    fn the_center_is_highest_in_the_middle_and_the_same_all_around() {
        let center = map(Control::Center, &[]);
        for (patch, score) in center.iter().enumerate() {
            assert_eq!(*score, center[15 - patch]);
            assert!(*score <= center[5]);
        }
        assert!(center[5] > center[1] && center[1] > center[0]);
    }

    #[test]
    fn random_scores_depend_on_the_seed_alone() {
        assert_eq!(map(Control::Random, &[]), map(Control::Random, &[]));
        let other = Control::Random.map(&[], GEOMETRY, &mut Rng::new(6));
        assert_ne!(map(Control::Random, &[]), other);
        assert_eq!(map(Control::Constant, &[]), [0.0; 16]);
    }
}
