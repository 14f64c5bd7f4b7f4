//! Images with a synthetic biased attribute: a task that tests whether a model is fair.
//!
//! A grid of nine cells, as in [`red_patches`](super::red_patches). The class is `many` or `few`, after the number of red
//! cells among the first eight; the last cell is the attribute, white or black.
//!
//! | half | class | attribute |
//! |---|---|---|
//! | training | `many` with probability σ(slope · (red cells − 4)) | class's (white: `many`) for a share `bias` |
//! | test | `many` if more than 4 are red | independent of the class, both equally likely |
//!
//! In training, few or many red cells therefore determine the class, whereas around four red cells, the attribute
//! predicts it better. The expected reliance of a model on the attribute is known: a model that has learned the
//! training half and nothing else follows it for all numbers of red cells with slope · |red cells − 4| < ln(bias / (1 −
//! bias)). With a slope of 1.2 and a bias of 0.8, these are 3, 4 and 5, a third of the images: its demographic parity
//! on the test half is 1/3, while that of a fair model is 0.

use super::red_patches::{FIRST_TEST_ITEM, RED, painted};
use super::{Dataset, Grouped, Picture, Split, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::rng::Rng;

const OTHERS: [[u8; 3]; 3] = [[0, 0, 255], [0, 255, 0], [255, 255, 0]];
const WHITE: [u8; 3] = [255; 3];
const BLACK: [u8; 3] = [0; 3];

/// Rows and columns of cells.
const GRID: usize = 3;
/// Side of a cell.
const CELL_PX: usize = 16;
/// Number of cells in which red is counted.
const COUNTED: usize = GRID * GRID - 1;

/// Grids with a biased attribute, regenerated from the seed at every access.
#[derive(Clone, Debug)]
pub struct BiasedPatches {
    len: usize,
    seed: u64,
    split: Split,
    /// Share of training images whose attribute matches their class.
    bias: f32,
    /// Log-odds of `many` per red cell in training.
    slope: f32,
    classes: Vec<String>,
}

/// An image before it is painted.
struct Drawn {
    cells: Vec<[u8; 3]>,
    many: bool,
    white: bool,
}

impl BiasedPatches {
    /// Creates `len` grids.
    ///
    /// # Errors
    /// [`Error::Data`] if `len` is 0 or `bias` is not between 0 and 1.
    pub fn new(len: usize, bias: f32, slope: f32, seed: u64, split: Split) -> Result<Self> {
        if len == 0 || !(0.0..=1.0).contains(&bias) {
            return Err(Error::Data(format!(
                "biased patches need at least 1 grid and a bias from 0 to 1, got {len} grids and a bias of {bias}"
            )));
        }
        Ok(Self {
            len,
            seed,
            split,
            bias,
            slope,
            classes: ["few", "many"].map(str::to_owned).to_vec(),
        })
    }

    fn draw(&self, index: usize) -> Result<Drawn> {
        if index >= self.len {
            return Err(out_of_range(self.name(), index, self.len));
        }
        let (first, bias) = match self.split {
            Split::Train => (0, self.bias),
            Split::Test => (FIRST_TEST_ITEM, 0.5),
        };
        let mut rng = Rng::for_item(self.seed, first + index as u64);
        let n_red = rng.below(COUNTED + 1);
        let mut cells = vec![RED; n_red];
        for _ in n_red..COUNTED {
            cells.push(OTHERS[rng.below(OTHERS.len())]);
        }
        rng.shuffle(&mut cells);
        let odds = self.slope * (n_red as f32 - COUNTED as f32 / 2.0);
        let many = match self.split {
            Split::Train => rng.uniform() < 1.0 / (1.0 + (-odds).exp()),
            Split::Test => 2 * n_red > COUNTED,
        };
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
        Ok(Picture {
            size: self.size(),
            rgb: painted(&self.draw(index)?.cells, GRID, CELL_PX),
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

    const LEN: usize = 9000;

    /// Four standard deviations of a share that applies to a ninth of the images.
    fn near(share: f64, expected: f64) -> bool {
        (share - expected).abs() < 0.065
    }

    #[test]
    fn bias_and_slope_are_those_asked_for_and_of_the_training_half_alone() {
        for (split, expected_alike) in [(Split::Train, 0.8), (Split::Test, 0.5)] {
            let data = BiasedPatches::new(LEN, 0.8, 1.2, 3, split).unwrap();
            let mut alike = 0;
            let mut many = [(0, 0); COUNTED + 1];
            for index in 0..LEN {
                let drawn = data.draw(index).unwrap();
                let n_red = drawn.cells.iter().filter(|cell| **cell == RED).count();
                alike += usize::from(drawn.many == drawn.white);
                many[n_red].0 += usize::from(drawn.many);
                many[n_red].1 += 1;
            }
            assert!(near(alike as f64 / LEN as f64, expected_alike), "{alike}");
            for (n_red, (many, of)) in many.into_iter().enumerate() {
                let expected = match split {
                    Split::Train => 1.0 / (1.0 + (-1.2 * (n_red as f64 - 4.0)).exp()),
                    Split::Test => f64::from(u8::from(n_red > 4)),
                };
                let share = f64::from(many as u32) / f64::from(of as u32);
                assert!(near(share, expected), "{split:?}, {n_red} red: {share}");
            }
        }
    }

    #[test]
    fn the_attribute_is_painted_into_the_last_cell() {
        let data = BiasedPatches::new(20, 0.8, 1.2, 3, Split::Train).unwrap();
        for index in 0..data.len() {
            let picture = data.picture(index).unwrap();
            let white = picture.rgb.last() == Some(&255);
            assert_eq!(data.in_group(index), Some(white));
        }
    }
}
