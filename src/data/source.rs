//! Data sets by reference: what a command line or a recipe names.
//!
//! `red-patches` is generated; a folder is CIFAR-10 if it holds its files, else pictures. Of pictures in
//! `train` and `test` sub-folders each is one half; otherwise every tenth picture is held out.

use std::path::Path;
use std::sync::Arc;

use super::cifar::{self, Cifar};
use super::folder::Folder;
use super::red_patches::RedPatches;
use super::{Dataset, Picture, Split, out_of_range};
use crate::error::Result;
use crate::frame::FrameSize;
use crate::frame::placement::ResizeRule;
use crate::frame::resize::Resampling;

/// The reference of the generated task.
pub const RED_PATCHES: &str = "red-patches";

/// Rows and columns of a generated grid, as in the paper.
const GRID: usize = 3;
/// Edge of a generated cell in pixels, as in the paper.
const CELL_PX: usize = 16;
/// Generated grids to learn from; eight epochs of the paper's.
const TRAIN_GRIDS: usize = 4_800;
/// Generated grids to measure on.
const TEST_GRIDS: usize = 1_000;
/// One picture of so many is held out where a folder has no halves of its own.
const HELD_OUT_EVERY: usize = 10;

/// Both halves of a data set.
#[derive(Clone)]
pub struct Halves {
    /// To learn from.
    pub train: Arc<dyn Dataset>,
    /// To measure on.
    pub test: Arc<dyn Dataset>,
}

/// Opens a data set; `rule` and `resampling` bring pictures of a folder to the model's size, `seed` draws
/// generated ones.
///
/// # Errors
/// [`crate::Error::Data`] where there is no such data set, or it is empty or damaged.
pub fn open(
    reference: &str,
    rule: ResizeRule,
    resampling: Resampling,
    seed: u64,
) -> Result<Halves> {
    if reference == RED_PATCHES {
        let half = |len, split| RedPatches::new(GRID, CELL_PX, len, seed, split);
        return Ok(Halves {
            train: Arc::new(half(TRAIN_GRIDS, Split::Train)?),
            test: Arc::new(half(TEST_GRIDS, Split::Test)?),
        });
    }
    let folder = Path::new(reference);
    if cifar::is_cifar(folder) {
        return Ok(Halves {
            train: Arc::new(Cifar::open(folder, Split::Train)?),
            test: Arc::new(Cifar::open(folder, Split::Test)?),
        });
    }
    let halves = [folder.join("train"), folder.join("test")];
    if halves.iter().all(|half| half.is_dir()) {
        let [train, test] = halves.map(|half| Folder::open(&half, rule, resampling));
        return Ok(Halves {
            train: Arc::new(train?),
            test: Arc::new(test?),
        });
    }
    let all: Arc<dyn Dataset> = Arc::new(Folder::open(folder, rule, resampling)?);
    let held_out = |index: &usize| index.is_multiple_of(HELD_OUT_EVERY);
    let (test, train) = (0..all.len()).partition(held_out);
    let half = |indices| Subset {
        all: Arc::clone(&all),
        indices,
    };
    Ok(Halves {
        train: Arc::new(half(train)),
        test: Arc::new(half(test)),
    })
}

/// Some pictures of a data set.
struct Subset {
    all: Arc<dyn Dataset>,
    indices: Vec<usize>,
}

impl Dataset for Subset {
    fn name(&self) -> &str {
        self.all.name()
    }

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn size(&self) -> FrameSize {
        self.all.size()
    }

    fn classes(&self) -> &[String] {
        self.all.classes()
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let index = self
            .indices
            .get(index)
            .ok_or_else(|| out_of_range(self.name(), index, self.len()))?;
        self.all.picture(*index)
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.all.label(*self.indices.get(index)?)
    }
}
