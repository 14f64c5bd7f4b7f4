//! Memory of methods for previous frames. It belongs to a stream of frames, never to the method: streams that are
//! explained together do not share memory, and a scene cut clears it.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};

use candle_core::Tensor;

use super::pass::{Forward, Needs};
use super::reuse::{Kept, Passes, Reuse};
use crate::error::{Error, Result};
use crate::frame::scene::Thumbnail;
use crate::vit::Vit;

/// Memory of one stream for each method and target; empty before the first frame.
///
/// Each video needs its own memory.
#[derive(Debug, Default)]
pub struct StreamMemory {
    maps: Vec<MapMemory>,
    /// The previous frame, for detecting cuts.
    last: Option<Thumbnail>,
    /// Parts of passes to be [reused](Streams::reusing).
    kept: Option<Kept>,
    n_computed_patches: u64,
    n_patches: u64,
}

/// A clone holds nothing to be reused.
impl Clone for StreamMemory {
    fn clone(&self) -> Self {
        Self {
            maps: self.maps.clone(),
            last: self.last.clone(),
            kept: None,
            n_computed_patches: self.n_computed_patches,
            n_patches: self.n_patches,
        }
    }
}

impl StreamMemory {
    /// Share of patches that were computed since the stream began; `None` if nothing could be reused.
    pub fn computed_share(&self) -> Option<f64> {
        (self.n_patches > 0).then(|| self.n_computed_patches as f64 / self.n_patches as f64)
    }
}

/// The memory of a stream whose images are queued on another thread.
pub type SharedMemory = Arc<Mutex<StreamMemory>>;

/// Memory of one method and target for one stream.
#[derive(Debug, Default)]
pub struct MapMemory(Option<Box<dyn State>>);

trait State: Any + Send + fmt::Debug {
    fn boxed_clone(&self) -> Box<dyn State>;
}

impl<T: Any + Send + Clone + fmt::Debug> State for T {
    fn boxed_clone(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl Clone for MapMemory {
    fn clone(&self) -> Self {
        // Clones the boxed state, not the box.
        Self(self.0.as_ref().map(|state| (**state).boxed_clone()))
    }
}

impl MapMemory {
    /// Takes the stored state; `None` if there is none, or if it has another type.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        let state: Box<dyn Any> = self.0.take()?;
        state.downcast().ok().map(|state| *state)
    }

    /// Stores state for the next frame.
    pub fn keep<T: Any + Send + Clone + fmt::Debug>(&mut self, state: T) {
        self.0 = Some(Box::new(state));
    }
}

/// The streams that the images of a batch belong to; the images of each stream are in order.
pub struct Streams<'a> {
    memories: Vec<&'a mut StreamMemory>,
    /// Stream index of each image.
    of_images: Vec<usize>,
    /// Whether each image starts a new scene.
    begins_scene: Vec<bool>,
    reuse: Option<Reuse>,
}

impl<'a> Streams<'a> {
    /// All images belong to one stream.
    pub fn one(memory: &'a mut StreamMemory, n_images: usize) -> Self {
        Self::several(vec![memory], vec![0; n_images])
    }

    /// Images of several streams; `of_images` gives the index into `memories` for each image.
    pub fn several(memories: Vec<&'a mut StreamMemory>, of_images: Vec<usize>) -> Self {
        Self {
            memories,
            begins_scene: vec![false; of_images.len()],
            of_images,
            reuse: None,
        }
    }

    /// Sets how much of earlier passes is reused.
    pub fn reusing(&mut self, reuse: Option<Reuse>) {
        self.reuse = reuse;
    }

    /// Marks images that follow a cut, so that their streams forget previous frames. There is one thumbnail per image.
    pub fn forget_at_cuts(&mut self, thumbnails: Vec<Thumbnail>) {
        let images = self.of_images.iter().zip(&mut self.begins_scene);
        for ((&stream_idx, begins_scene), thumbnail) in images.zip(thumbnails) {
            if let Some(memory) = self.memories.get_mut(stream_idx) {
                let last = memory.last.as_ref();
                *begins_scene = last.is_some_and(|last| thumbnail.is_of_another_scene(last));
                memory.last = Some(thumbnail);
            }
        }
    }

    /// The stream of a single image.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such image.
    pub fn of_image(&mut self, image_idx: usize) -> Result<Streams<'_>> {
        let Self {
            memories,
            of_images,
            reuse,
            ..
        } = self;
        let memory = of_images
            .get(image_idx)
            .and_then(|&idx| memories.get_mut(idx));
        match memory {
            Some(memory) => {
                let mut stream = Streams::one(memory, 1);
                stream.reusing(*reuse);
                Ok(stream)
            }
            None => Err(no_stream(image_idx)),
        }
    }

    /// Runs the model on the images, or only on what changed since the previous images of their streams.
    pub(super) fn forward<'m>(
        &mut self,
        vit: &'m Vit,
        images: &'m Tensor,
        needs: Needs,
    ) -> Result<Forward<'m>> {
        match self.reuse {
            Some(reuse) if needs.is_forward_only() => Passes::run(reuse, vit, images, &needs, self),
            _ => Forward::run(vit, images, needs),
        }
    }

    /// Indices of the `n_images` images of each stream, in order.
    pub(super) fn images_by_stream(&self, n_images: usize) -> Result<Vec<Vec<usize>>> {
        let mut images = vec![Vec::new(); self.memories.len()];
        for image_idx in 0..n_images {
            let stream = self.of_images.get(image_idx);
            match stream.and_then(|&stream_idx| images.get_mut(stream_idx)) {
                Some(of_stream) => of_stream.push(image_idx),
                None => return Err(no_stream(image_idx)),
            }
        }
        Ok(images)
    }

    pub(super) fn begins_scene(&self, image_idx: usize) -> bool {
        self.begins_scene.get(image_idx) == Some(&true)
    }

    pub(super) fn kept(&self, stream_idx: usize) -> Option<&Kept> {
        self.memories.get(stream_idx)?.kept.as_ref()
    }

    pub(super) fn take_kept(&mut self, stream_idx: usize) -> Option<Kept> {
        self.memories.get_mut(stream_idx)?.kept.take()
    }

    /// Keeps a pass for the next image of the stream, in which some of all patches were computed.
    pub(super) fn keep(&mut self, stream_idx: usize, kept: Kept, n_computed: usize, n: usize) {
        if let Some(memory) = self.memories.get_mut(stream_idx) {
            memory.kept = Some(kept);
            memory.n_computed_patches += n_computed as u64;
            memory.n_patches += n as u64;
        }
    }

    /// Runs `work`. If it fails, restores the memory of all streams.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before: Vec<StreamMemory> = self
            .memories
            .iter()
            .map(|memory| (**memory).clone())
            .collect();
        let outcome = work(self);
        if outcome.is_err() {
            for (memory, before) in self.memories.iter_mut().zip(before) {
                **memory = before;
            }
        }
        outcome
    }

    /// The memory of the streams for map `map_idx` of `n_maps`, one map per method and target.
    pub(super) fn of_map(&mut self, map_idx: usize, n_maps: usize) -> Remembered<'_> {
        let memories = self.memories.iter_mut().filter_map(|memory| {
            // A changed set of methods starts with empty memory.
            if memory.maps.len() != n_maps {
                memory.maps = vec![MapMemory::default(); n_maps];
            }
            memory.maps.get_mut(map_idx)
        });
        Remembered {
            memories: memories.collect(),
            of_images: &self.of_images,
            begins_scene: &self.begins_scene,
        }
    }
}

/// Memory of one method and target for each stream of a batch.
pub struct Remembered<'a> {
    memories: Vec<&'a mut MapMemory>,
    of_images: &'a [usize],
    begins_scene: &'a [bool],
}

impl Remembered<'_> {
    /// Runs `work` with empty memory, for images that are separate streams without previous frames.
    pub(super) fn nothing<T>(n_images: usize, work: impl FnOnce(&mut Remembered<'_>) -> T) -> T {
        let mut memories = vec![MapMemory::default(); n_images];
        let of_images: Vec<usize> = (0..n_images).collect();
        work(&mut Remembered {
            memories: memories.iter_mut().collect(),
            of_images: &of_images,
            begins_scene: &[],
        })
    }

    /// The memory of an image's stream, to be requested once per image.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such image.
    pub fn of_image(&mut self, image_idx: usize) -> Result<&mut MapMemory> {
        let stream = self.of_images.get(image_idx);
        let memory = stream
            .and_then(|&idx| self.memories.get_mut(idx))
            .ok_or_else(|| no_stream(image_idx))?;
        if self.begins_scene.get(image_idx) == Some(&true) {
            **memory = MapMemory::default();
        }
        Ok(memory)
    }
}

fn no_stream(image_idx: usize) -> Error {
    Error::Shape {
        expected: "one stream per image of the batch".into(),
        got: format!("no stream for image {image_idx}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the frames of a stream.
    fn count(remembered: &mut Remembered<'_>, image_idx: usize) -> usize {
        let memory = remembered.of_image(image_idx).unwrap();
        let n_frames = memory.take::<usize>().unwrap_or(0) + 1;
        memory.keep(n_frames);
        n_frames
    }

    #[test]
    fn each_stream_and_map_remembers_its_own() {
        let (mut one, mut other) = (StreamMemory::default(), StreamMemory::default());
        let mut streams = Streams::several(vec![&mut one, &mut other], vec![0, 1, 0]);
        let mut first = streams.of_map(0, 2);
        let counts: Vec<usize> = (0..3)
            .map(|image_idx| count(&mut first, image_idx))
            .collect();
        assert_eq!(counts, [1, 1, 2]);
        assert_eq!(count(&mut streams.of_map(1, 2), 0), 1);
        let mut again = Streams::one(&mut one, 1);
        assert_eq!(count(&mut again.of_map(0, 2), 0), 3);
        assert_eq!(
            count(&mut again.of_map(0, 1), 0),
            1,
            "other methods begin anew"
        );
        assert!(again.of_map(0, 1).of_image(1).is_err());
    }

    #[test]
    fn a_cut_within_a_batch_or_between_two_is_forgotten_for_every_map() {
        let (dark, bright) = (
            Thumbnail::of_rgb(&[20; 48], 4),
            Thumbnail::of_rgb(&[200; 48], 4),
        );
        let mut memory = StreamMemory::default();
        let mut counts = |thumbnails: &[&Thumbnail]| -> Vec<[usize; 2]> {
            let mut streams = Streams::one(&mut memory, thumbnails.len());
            streams.forget_at_cuts(thumbnails.iter().copied().cloned().collect());
            let images = 0..thumbnails.len();
            let of_map = |map_idx| -> Vec<usize> {
                let mut remembered = streams.of_map(map_idx, 2);
                images
                    .clone()
                    .map(|idx| count(&mut remembered, idx))
                    .collect()
            };
            let [first, second] = [0, 1].map(of_map);
            first.into_iter().zip(second).map(|(a, b)| [a, b]).collect()
        };
        assert_eq!(counts(&[&dark, &dark, &bright]), [[1, 1], [2, 2], [1, 1]]);
        assert_eq!(counts(&[&bright]), [[2, 2]]);
        assert_eq!(counts(&[&dark, &dark]), [[1, 1], [2, 2]]);
    }

    #[test]
    fn what_fails_leaves_no_trace() {
        let mut memory = StreamMemory::default();
        let mut streams = Streams::one(&mut memory, 1);
        let attempt = |streams: &mut Streams<'_>, fails: bool| {
            streams.attempt(|streams| {
                let n_frames = count(&mut streams.of_map(0, 1), 0);
                match fails {
                    true => Err(Error::Data("the image is broken".into())),
                    false => Ok(n_frames),
                }
            })
        };
        assert_eq!(attempt(&mut streams, false).unwrap(), 1);
        assert!(attempt(&mut streams, true).is_err());
        assert_eq!(attempt(&mut streams, false).unwrap(), 2);
    }

    #[test]
    fn something_else_is_not_taken_for_it() {
        let mut memory = MapMemory::default();
        memory.keep("text");
        assert_eq!(memory.clone().take(), Some("text"));
        assert_eq!(memory.take::<usize>(), None);
    }
}
