//! Frames of a video as unlabeled images: some per second, skipping frames that barely differ from the previous one.

use super::{Dataset, Picture, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::placement::ResizeRule;
use vitscope_core::frame::resize::{Resampling, Resizer};
use vitscope_core::frame::{FrameSize, Pts};
use vitscope_video::media::Source;

/// Rules for selecting frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Minimum time between two frames, in seconds.
    pub spacing_secs: f64,
    /// Minimum mean difference from the previously kept frame, as a fraction of the brightest value.
    pub least_change: f64,
    /// Maximum number of frames; longer videos are halved by dropping every second frame as often as needed. At 224 px,
    /// 2,048 frames take 308 MB.
    pub most: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            spacing_secs: 0.2,
            least_change: 0.01,
            most: 2048,
        }
    }
}

/// Frames of a video at the model's size, in memory.
pub struct Clip {
    name: String,
    size: FrameSize,
    frames: Vec<Vec<u8>>,
}

impl Clip {
    /// Reads `source` to its end and keeps some of its frames, resized by `rule`.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no frames; otherwise any error of the source.
    pub fn read(
        source: &mut dyn Source,
        name: &str,
        rule: ResizeRule,
        resampling: Resampling,
        sampling: Sampling,
    ) -> Result<Self> {
        let mut resizer = Resizer::new(rule, resampling);
        let mut frames: Vec<(Pts, Vec<u8>)> = Vec::new();
        let mut spacing = Pts((1e9 * sampling.spacing_secs) as u64);
        while let Some(frame) = source.next()? {
            let last = frames.last();
            if last.is_some_and(|(at, _)| frame.pts.0 < at.0 + spacing.0) {
                continue;
            }
            let (rgb, _) = resizer.rgb_from_frame(&frame)?;
            if last.is_some_and(|(_, last)| mean_difference(last, &rgb) < sampling.least_change) {
                continue;
            }
            frames.push((frame.pts, rgb));
            if frames.len() > sampling.most.max(1) {
                spacing = thin_out(&mut frames);
            }
        }
        if frames.is_empty() {
            return Err(Error::Data(format!("video has no frames: {name:?}")));
        }
        Ok(Self {
            name: name.to_owned(),
            size: rule.image_size(),
            frames: frames.into_iter().map(|(_, rgb)| rgb).collect(),
        })
    }
}

/// Returns the first `n` frames of a video, resized by `rule`; fewer if the video is shorter.
///
/// # Errors
/// Fails if the source fails or a frame cannot be resized.
pub fn first_frames(
    source: &mut dyn Source,
    rule: ResizeRule,
    resampling: Resampling,
    n: usize,
) -> Result<Vec<Picture>> {
    let mut resizer = Resizer::new(rule, resampling);
    let mut frames = Vec::new();
    while frames.len() < n {
        let Some(frame) = source.next()? else { break };
        let (rgb, _) = resizer.rgb_from_frame(&frame)?;
        frames.push(Picture {
            size: rule.image_size(),
            rgb,
        });
    }
    Ok(frames)
}

/// Drops every second frame and returns the smallest spacing of the remaining ones.
fn thin_out(frames: &mut Vec<(Pts, Vec<u8>)>) -> Pts {
    let mut stays = false;
    frames.retain(|_| {
        stays = !stays;
        stays
    });
    let gaps = frames.windows(2).map(|pair| pair[1].0.0 - pair[0].0.0);
    Pts(gaps.min().unwrap_or_default())
}

/// Mean absolute difference of two images, as a fraction of the brightest value.
fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    let sum: u64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / (255.0 * a.len().max(1) as f64)
}

impl Dataset for Clip {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.frames.len()
    }

    fn size(&self) -> FrameSize {
        self.size
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let rgb = self.frames.get(index);
        let rgb = rgb.ok_or_else(|| out_of_range(&self.name, index, self.len()))?;
        Ok(Picture {
            size: self.size,
            rgb: rgb.clone(),
        })
    }

    fn label(&self, _index: usize) -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use vitscope_core::frame::{Frame, PixelFormat, PixelLayout};
    use vitscope_video::media::memory::MemorySource;

    const SIZE: FrameSize = FrameSize {
        width_px: 8,
        height_px: 8,
    };

    /// Returns uniform gray frames at 10 per second.
    fn source(grays: impl IntoIterator<Item = u8>) -> MemorySource {
        let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, SIZE));
        let frames = grays.into_iter().enumerate().map(|(index, gray)| {
            let pts = Pts(index as u64 * 100_000_000);
            let bytes = Box::new(vec![gray; 3 * 64]);
            Frame::new(index as u64, pts, None, Arc::clone(&layout), bytes).unwrap()
        });
        MemorySource::new(frames.collect())
    }

    fn grays(source: &mut MemorySource, sampling: Sampling) -> Vec<u8> {
        let rule = ResizeRule::Stretch(SIZE);
        let clip = Clip::read(source, "clip", rule, Resampling::Nearest, sampling).unwrap();
        assert!((0..clip.len()).all(|index| clip.label(index).is_none()));
        clip.frames.iter().map(|frame| frame[0]).collect()
    }

    #[test]
    fn frames_are_as_far_apart_as_asked() {
        let sampling = Sampling {
            spacing_secs: 0.3,
            ..Sampling::default()
        };
        let found = grays(&mut source((0..10).map(|index| 20 * index)), sampling);
        assert_eq!(found, [0, 60, 120, 180]);
    }

    #[test]
    fn a_still_scene_is_one_picture_and_a_slow_change_shows_in_time() {
        let sampling = Sampling {
            spacing_secs: 0.0,
            least_change: 4.0 / 255.0,
            ..Sampling::default()
        };
        let found = grays(&mut source([9, 9, 9, 10, 11, 12, 13, 14, 200]), sampling);
        assert_eq!(found, [9, 13, 200]);
    }

    #[test]
    fn a_long_video_is_thinned_out_evenly() {
        let sampling = Sampling {
            spacing_secs: 0.0,
            least_change: 0.0,
            most: 4,
        };
        let found = grays(&mut source(0..=16), sampling);
        assert!(found.len() <= 4 && found[0] == 0, "{found:?}");
        let gaps: Vec<u8> = found.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap == gaps[0]), "{found:?}");
    }

    #[test]
    fn a_video_without_frames_is_refused() {
        let rule = ResizeRule::Stretch(SIZE);
        let sampling = Sampling::default();
        let read = Clip::read(
            &mut source([]),
            "empty",
            rule,
            Resampling::Nearest,
            sampling,
        );
        assert!(matches!(read, Err(Error::Data(_))));
    }
}
