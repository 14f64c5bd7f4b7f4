//! Methods with a memory of the frames before, for live video.
//!
//! Neighboring frames have nearly the same masks. [`Spread`] asks the model about a part of GradMask's masks on each
//! frame, in turns, and keeps a moving sum: with S frames a turn,
//!
//! h ← (1 − 1/S) h + Σ w M over every S-th mask,
//!
//! which for a picture that stands still is GradMask's own map. The first frame is asked about all masks.
//! Cost a frame: 1 forward, 1 backward, and an S-th of the masked forwards.

use candle_core::Tensor;

use super::gradmask::{GradMask, Sums};
use super::masked::each_image;
use super::memory::Remembered;
use super::{Detailed, Explainer, Needs, Pass};
use crate::error::Result;
use crate::vit::Vit;

/// GradMask, spread over the frames of a video.
pub struct Spread {
    gradmask: GradMask,
}

/// What the frames before have left.
#[derive(Clone, Debug)]
struct Memory {
    /// Frames so far.
    n_frames: usize,
    sums: Sums,
}

impl Spread {
    /// Asks each frame about one mask in `gradmask.spread`.
    pub fn new(gradmask: GradMask) -> Self {
        Self { gradmask }
    }

    /// The next frame's share of the masks, on top of what is remembered.
    fn remember(
        &self,
        memory: Option<Memory>,
        pass: &Pass<'_>,
        image_idx: usize,
        masks: Vec<Vec<f32>>,
    ) -> Result<Memory> {
        let spread = self.gradmask.spread.max(1);
        let Some(Memory { n_frames, sums }) = memory else {
            return Ok(Memory {
                n_frames: 1,
                sums: self.gradmask.sums(pass, image_idx, masks)?,
            });
        };
        let turn = masks.into_iter().skip(n_frames % spread).step_by(spread);
        let fresh = self.gradmask.sums(pass, image_idx, turn.collect())?;
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

impl Explainer for Spread {
    fn name(&self) -> &'static str {
        self.gradmask.name()
    }

    fn explains_classes(&self) -> bool {
        self.gradmask.explains_classes()
    }

    fn needs(&self, vit: &Vit) -> Needs {
        self.gradmask.needs(vit)
    }

    fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        self.gradmask.rehearse(pass)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        self.gradmask.attribution(pass)
    }

    fn follow(&self, pass: &Pass<'_>, remembered: &mut Remembered<'_>) -> Result<Detailed> {
        let mut all_masks = self.gradmask.masks(pass)?.into_iter();
        let attribution = each_image(pass, |image_idx| {
            let masks = all_masks.next().unwrap_or_default();
            let n_patches = masks.first().map_or(0, Vec::len);
            let memory = remembered.of_image(image_idx)?;
            // A video that changes its size begins anew.
            let old = memory.take::<Memory>();
            let old = old.filter(|old| old.sums.covered.len() == n_patches);
            let new = self.remember(old, pass, image_idx, masks)?;
            let map = self.gradmask.map(&new.sums);
            memory.keep(new);
            Ok(map)
        })?;
        Ok(Detailed {
            attribution,
            votes: None,
            unsmoothed: None,
        })
    }
}
