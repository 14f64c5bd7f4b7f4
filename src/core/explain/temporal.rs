//! GradMask on live video: the masks are spread over the frames.
//!
//! Neighboring frames have nearly the same masks. With `spread` above 1, the model runs on a different part of the
//! masks on each frame, in turn, and a moving sum is kept. With S frames per turn,
//!
//! h ← (1 − 1/S) h + Σ w M over every S-th mask,
//!
//! which for a static picture equals GradMask's own map. The first frame runs all masks. Cost per frame: 1 forward, 1
//! backward, and 1/S of the masked forwards.

use candle_core::Tensor;

use super::Pass;
use super::gradmask::{GradMask, Sums};
use super::masked::each_image;
use super::memory::Remembered;
use crate::error::Result;

/// State from the previous frames.
#[derive(Clone, Debug)]
struct Memory {
    /// Number of frames so far.
    n_frames: usize,
    sums: Sums,
}

impl GradMask {
    /// Computes the maps of successive frames, each from its share of the masks.
    ///
    /// # Shapes
    /// - result: `[batch, patches]`
    pub(super) fn spread_over(
        &self,
        pass: &Pass<'_>,
        remembered: &mut Remembered<'_>,
    ) -> Result<Tensor> {
        let mut all_masks = self.masks(pass)?.into_iter();
        each_image(pass, |image_idx| {
            let masks = all_masks.next().unwrap_or_default();
            let n_patches = masks.first().map_or(0, Vec::len);
            let memory = remembered.of_image(image_idx)?;
            // A video whose size changes starts over.
            let old = memory.take::<Memory>();
            let old = old.filter(|old| old.sums.covered.len() == n_patches);
            let new = self.remember(old, pass, image_idx, masks)?;
            let map = self.map(&new.sums);
            memory.keep(new);
            Ok(map)
        })
    }

    /// Adds the next frame's share of the masks to the remembered sums.
    fn remember(
        &self,
        memory: Option<Memory>,
        pass: &Pass<'_>,
        image_idx: usize,
        masks: Vec<Vec<f32>>,
    ) -> Result<Memory> {
        let spread = self.spread.max(1);
        let Some(Memory { n_frames, sums }) = memory else {
            return Ok(Memory {
                n_frames: 1,
                sums: self.sums(pass, image_idx, masks)?,
            });
        };
        let turn = masks.into_iter().skip(n_frames % spread).step_by(spread);
        let fresh = self.sums(pass, image_idx, turn.collect())?;
        let kept = 1.0 - 1.0 / spread as f32;
        let add = |old: Vec<f32>, new: Vec<f32>| {
            old.into_iter()
                .zip(new)
                .map(|(old, new)| kept * old + new)
                .collect()
        };
        Ok(Memory {
            n_frames: n_frames + 1,
            sums: Sums {
                weighted: add(sums.weighted, fresh.weighted),
                covered: add(sums.covered, fresh.covered),
            },
        })
    }
}
