//! Explaining and drawing a single picture without a pipeline.

use image::RgbImage;

use super::compositor::Compositor;
use super::stages::{Finding, View};
use crate::overlay::{Overlay, frame_from_image, image_from_frame};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::{StreamMemory, Streams};
use vitscope_core::frame::resize::Resizer;
use vitscope_core::vit::Stop;

impl View {
    /// Explains a picture of any size: returns the model's answer and a map for each method and target.
    ///
    /// # Errors
    /// [`Error::Shape`] if the picture has no pixels; otherwise as [`View::check`].
    pub fn explain_image(&self, picture: &RgbImage) -> Result<Finding> {
        let preprocessor = &self.model.preprocessor;
        let mut resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
        let (rgb, placement) = resizer.rgb_from_frame(&frame_from_image(picture.clone()))?;
        let mut memory = StreamMemory::default();
        let mut streams = Streams::one(&mut memory, 1);
        let scores = self.try_scores(&[rgb], &mut streams, &Stop::default())?;
        let scores = scores.into_iter().next();
        let scores = scores.ok_or_else(|| Error::Model("the model gave no answer".into()))?;
        Ok(self.finding(0, scores, placement))
    }
}

impl Finding {
    /// Draws the maps and the answer over the explained picture; several maps become a grid of copies.
    ///
    /// # Errors
    /// [`Error::Shape`] if the picture has another size.
    pub fn draw(&self, picture: &RgbImage, overlay: Overlay) -> Result<RgbImage> {
        let frame = frame_from_image(picture.clone());
        self.check(frame.size())?;
        let compositor = Compositor {
            overlay,
            n_maps: self.maps.len(),
            keeps_size: false,
            has_captions: true,
        };
        image_from_frame(&compositor.draw(frame, Some(self), &[])?)
    }
}
