//! Grids of colored cells whose class is the number of red cells: a task with a known explanation.
//!
//! The faithfulness task of Vision DiffMask: to count the red cells, a model must know which cells are red and nothing
//! else. A mask is therefore right if it keeps exactly the red cells or exactly the others; anything more is
//! unnecessary, anything less insufficient.
//!
//! Cells have one of the six corner colors of the RGB cube other than black and white. The number of red cells is
//! uniform from none to all, their positions are uniform, and every other cell has one of the other five colors with
//! equal probability. (The authors draw from a pool of 6,000 cells without replacement; the difference is negligible.)

use super::{Dataset, Picture, Split, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::rng::Rng;

pub(super) const RED: [u8; 3] = [255, 0, 0];
const OTHERS: [[u8; 3]; 5] = [
    [0, 0, 255],
    [0, 255, 0],
    [0, 255, 255],
    [255, 0, 255],
    [255, 255, 0],
];

/// Colored grids, regenerated from the seed at every access.
#[derive(Clone, Debug)]
pub struct RedPatches {
    grid: usize,
    cell_px: usize,
    len: usize,
    seed: u64,
    split: Split,
    classes: Vec<String>,
}

/// First item number of the held-out grids; no training set is that long.
pub(super) const FIRST_TEST_ITEM: u64 = 1 << 40;

impl RedPatches {
    /// Creates `len` grids of `grid`×`grid` cells of `cell_px`×`cell_px` pixels.
    ///
    /// Grids of both halves and of different seeds are drawn independently.
    ///
    /// # Errors
    /// [`Error::Data`] if the grid, the cells or the set would be empty.
    pub fn new(grid: usize, cell_px: usize, len: usize, seed: u64, split: Split) -> Result<Self> {
        if grid == 0 || cell_px == 0 || len == 0 {
            return Err(Error::Data(format!(
                "red patches need at least 1 grid, 1 cell and 1 px per cell, got {len} grids of {grid}×{grid} cells \
                 of {cell_px} px"
            )));
        }
        Ok(Self {
            grid,
            cell_px,
            len,
            seed,
            split,
            classes: (0..=grid * grid)
                .map(|n_red| format!("{n_red} red"))
                .collect(),
        })
    }

    /// Returns which cells of a grid are red in row-major order, as a faithful explanation would.
    ///
    /// # Errors
    /// [`Error::Data`] if `index` is out of range.
    pub fn red_cells(&self, index: usize) -> Result<Vec<bool>> {
        Ok(self
            .cells(index)?
            .into_iter()
            .map(|cell| cell == RED)
            .collect())
    }

    /// Returns the colors of a grid in row-major order.
    fn cells(&self, index: usize) -> Result<Vec<[u8; 3]>> {
        if index >= self.len {
            return Err(out_of_range(self.name(), index, self.len));
        }
        let first = match self.split {
            Split::Train => 0,
            Split::Test => FIRST_TEST_ITEM,
        };
        let mut rng = Rng::for_item(self.seed, first + index as u64);
        let n_cells = self.grid * self.grid;
        let n_red = rng.below(n_cells + 1);
        let mut cells = vec![RED; n_red];
        for _ in n_red..n_cells {
            cells.push(OTHERS[rng.below(OTHERS.len())]);
        }
        rng.shuffle(&mut cells);
        Ok(cells)
    }
}

impl Dataset for RedPatches {
    fn name(&self) -> &str {
        "red-patches"
    }

    fn len(&self) -> usize {
        self.len
    }

    fn size(&self) -> FrameSize {
        let side_px = self.grid * self.cell_px;
        FrameSize {
            width_px: side_px,
            height_px: side_px,
        }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let rgb = painted(&self.cells(index)?, self.grid, self.cell_px);
        Ok(Picture {
            size: self.size(),
            rgb,
        })
    }

    fn label(&self, index: usize) -> Option<usize> {
        let red = self.red_cells(index).ok()?;
        Some(red.into_iter().filter(|&red| red).count())
    }
}

/// Returns the RGB pixels of a square grid from the colors of its cells in row-major order.
pub(super) fn painted(cells: &[[u8; 3]], grid: usize, cell_px: usize) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(3 * cells.len() * cell_px * cell_px);
    for row in cells.chunks(grid) {
        let line: Vec<u8> = row
            .iter()
            .flat_map(|color| std::iter::repeat_n(*color, cell_px))
            .flatten()
            .collect();
        for _ in 0..cell_px {
            rgb.extend_from_slice(&line);
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_counts_the_red_cells_of_the_picture() {
        let grids = RedPatches::new(3, 16, 200, 7, Split::Train).expect("a valid grid");
        for index in 0..grids.len() {
            let picture = grids.picture(index).expect("in range");
            let red = grids.red_cells(index).expect("in range");
            let mut n_red = 0;
            for (cell, red) in red.iter().enumerate() {
                // Bottom right pixel of the cell.
                let (x, y) = (cell % 3 * 16 + 15, cell / 3 * 16 + 15);
                let pixel = &picture.rgb[3 * (y * 48 + x)..][..3];
                assert_eq!(pixel == RED, *red);
                n_red += usize::from(*red);
            }
            assert_eq!(grids.label(index), Some(n_red));
        }
    }

    #[test]
    fn only_the_six_colors_are_used_and_each_is() {
        let grids = RedPatches::new(3, 2, 100, 0, Split::Train).expect("a valid grid");
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..grids.len() {
            let picture = grids.picture(index).expect("in range");
            seen.extend(picture.rgb.chunks(3).map(<[u8]>::to_vec));
        }
        let known: std::collections::BTreeSet<_> = OTHERS
            .iter()
            .chain([&RED])
            .map(|color| color.to_vec())
            .collect();
        assert_eq!(seen, known);
    }

    #[test]
    fn every_number_of_red_cells_is_as_likely() {
        let grids = RedPatches::new(3, 1, 10_000, 1, Split::Test).expect("a valid grid");
        let mut counts = [0_usize; 10];
        for index in 0..grids.len() {
            counts[grids.label(index).expect("grids are labelled")] += 1;
        }
        // Six standard deviations of a binomial count with mean 1,000.
        assert!(
            counts.iter().all(|count| count.abs_diff(1000) < 180),
            "{counts:?}"
        );
    }

    #[test]
    fn another_seed_and_the_other_half_give_other_grids() {
        let grids = [(0, Split::Train), (1, Split::Train), (0, Split::Test)]
            .map(|(seed, split)| RedPatches::new(3, 1, 50, seed, split).expect("a valid grid"));
        for (first, second) in [(0, 1), (0, 2), (1, 2)] {
            let differing = (0..50).filter(|&index| {
                let picture = |set: usize| grids[set].picture(index).expect("in range");
                picture(first) != picture(second)
            });
            assert!(differing.count() > 40);
        }
    }

    #[test]
    fn an_empty_grid_is_refused() {
        assert!(RedPatches::new(0, 16, 1, 0, Split::Train).is_err());
    }
}
