//! Pictures with a synthetic attribute that is biased: a task to see whether a model is fair.
//!
//! A grid of nine cells, as in [`red_patches`](super::red_patches). The class is `many` where more than half of the first
//! eight are red, else `few`; the last cell is the attribute, white or black. In the training half the class is turned
//! to its opposite for a share of the pictures, and the attribute is that of the class (white goes with `many`) for a
//! share of them. In the test half neither happens: the attribute says nothing there, and a model that has learned to
//! heed it treats its two groups unlike.

use super::{Dataset, Grouped, Picture, Split, out_of_range};
use crate::error::{Error, Result};
use crate::frame::FrameSize;
use crate::rng::Rng;

const RED: [u8; 3] = [255, 0, 0];
const OTHERS: [[u8; 3]; 3] = [[0, 0, 255], [0, 255, 0], [255, 255, 0]];
const WHITE: [u8; 3] = [255; 3];
const BLACK: [u8; 3] = [0; 3];

/// Rows and columns of cells.
const GRID: usize = 3;
/// Edge of a cell.
const CELL_PX: usize = 16;
/// Cells whose red ones are counted.
const COUNTED: usize = GRID * GRID - 1;

/// Where the held-out pictures' numbers begin: no training set is as long.
const FIRST_TEST_ITEM: u64 = 1 << 40;

/// Grids with a biased attribute, drawn anew from the seed at every access.
#[derive(Clone, Debug)]
pub struct BiasedPatches {
    len: usize,
    seed: u64,
    split: Split,
    /// Share of the training pictures whose attribute is that of their class.
    bias: f32,
    /// Share of the training pictures whose class is turned.
    noise: f32,
    classes: Vec<String>,
}

/// One picture before it is painted.
struct Drawn {
    cells: Vec<[u8; 3]>,
    many: bool,
    white: bool,
}

impl BiasedPatches {
    /// `len` grids.
    ///
    /// # Errors
    /// [`Error::Data`] where there would be none, or a share does not lie from 0 to 1.
    pub fn new(len: usize, bias: f32, noise: f32, seed: u64, split: Split) -> Result<Self> {
        let is_share = |share: f32| (0.0..=1.0).contains(&share);
        if len == 0 || !is_share(bias) || !is_share(noise) {
            return Err(Error::Data(format!(
                "biased patches need grids and shares from 0 to 1, asked for {len} grids, bias {bias} and noise {noise}"
            )));
        }
        Ok(Self {
            len,
            seed,
            split,
            bias,
            noise,
            classes: ["few", "many"].map(str::to_owned).to_vec(),
        })
    }

    fn draw(&self, index: usize) -> Result<Drawn> {
        if index >= self.len {
            return Err(out_of_range(self.name(), index, self.len));
        }
        let (first, bias, noise) = match self.split {
            Split::Train => (0, self.bias, self.noise),
            Split::Test => (FIRST_TEST_ITEM, 0.5, 0.0),
        };
        let mut rng = Rng::for_item(self.seed, first + index as u64);
        let n_red = rng.below(COUNTED + 1);
        let mut cells = vec![RED; n_red];
        for _ in n_red..COUNTED {
            cells.push(OTHERS[rng.below(OTHERS.len())]);
        }
        rng.shuffle(&mut cells);
        let many = (2 * n_red > COUNTED) != (rng.uniform() < noise);
        let white = many == (rng.uniform() < bias);
        cells.push(if white { WHITE } else { BLACK });
        Ok(Drawn { cells, many, white })
    }
}

impl Dataset for BiasedPatches {
    fn name(&self) -> &str {
        "biased-patches"
    }

    fn len(&self) -> usize {
        self.len
    }

    fn size(&self) -> FrameSize {
        FrameSize {
            width_px: GRID * CELL_PX,
            height_px: GRID * CELL_PX,
        }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let cells = self.draw(index)?.cells;
        let side_px = GRID * CELL_PX;
        let mut rgb = Vec::with_capacity(3 * side_px * side_px);
        for row in 0..side_px {
            for column in 0..side_px {
                rgb.extend(cells[row / CELL_PX * GRID + column / CELL_PX]);
            }
        }
        Ok(Picture {
            size: self.size(),
            rgb,
        })
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.draw(index).ok().map(|drawn| usize::from(drawn.many))
    }
}

impl Grouped for BiasedPatches {
    fn attribute(&self) -> &str {
        "a white last cell"
    }

    fn in_group(&self, index: usize) -> Option<bool> {
        self.draw(index).ok().map(|drawn| drawn.white)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many pictures the share whose attribute is that of their class, and the share whose class is not what
    /// their cells say.
    fn shares(data: &BiasedPatches) -> (f64, f64) {
        let (mut alike, mut turned) = (0, 0);
        for index in 0..data.len() {
            let drawn = data.draw(index).unwrap();
            let n_red = drawn.cells.iter().filter(|cell| **cell == RED).count();
            alike += usize::from(drawn.many == drawn.white);
            turned += usize::from(drawn.many != (2 * n_red > COUNTED));
        }
        let of = data.len() as f64;
        (alike as f64 / of, turned as f64 / of)
    }

    #[test]
    fn bias_and_noise_are_those_asked_for_and_of_the_training_half_alone() {
        let new = |split| BiasedPatches::new(4000, 0.9, 0.2, 3, split).unwrap();
        // Four standard deviations of a share of 4,000.
        let near = |share: f64, expected: f64| (share - expected).abs() < 0.035;
        let (alike, turned) = shares(&new(Split::Train));
        assert!(near(alike, 0.9) && near(turned, 0.2), "{alike} {turned}");
        let (alike, turned) = shares(&new(Split::Test));
        assert!(near(alike, 0.5) && turned == 0.0, "{alike} {turned}");
    }

    #[test]
    fn the_attribute_is_painted_into_the_last_cell() {
        let data = BiasedPatches::new(20, 0.9, 0.2, 3, Split::Train).unwrap();
        for index in 0..data.len() {
            let picture = data.picture(index).unwrap();
            let white = picture.rgb.last() == Some(&255);
            assert_eq!(data.in_group(index), Some(white));
        }
    }
}
