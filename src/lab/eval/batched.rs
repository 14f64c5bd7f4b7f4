//! A model that processes many images in full batches.

use candle_core::{Device, Tensor};

use super::perturbation::Geometry;
use vitscope_core::error::{Error, Result};
use vitscope_core::models::Model;
use vitscope_core::vit::Link;

/// Function that returns logits `[batch, classes]` for images `[batch, 3, height, width]`.
type Ask<'a> = dyn Fn(&Tensor) -> Result<Tensor> + 'a;

/// A model that runs in batches.
pub struct BatchedModel<'a> {
    ask: Box<Ask<'a>>,
    /// Size of the images and their patches.
    pub geometry: Geometry,
    /// Value of black in each channel of a normalized image.
    pub black: [f32; 3],
    /// Number of images per forward pass.
    pub batch: usize,
    /// Device that the model runs on.
    pub device: Device,
    /// Link function that converts its logits to probabilities.
    pub link: Link,
}

impl<'a> BatchedModel<'a> {
    /// Creates a model from `ask`, which returns the logits `[batch, classes]` for images `[batch, 3, height, width]`
    /// that are normalized by `mean` and `std`; it processes `batch` images at once.
    pub fn new(
        ask: impl Fn(&Tensor) -> Result<Tensor> + 'a,
        geometry: Geometry,
        (mean, std): ([f32; 3], [f32; 3]),
        batch: usize,
        device: &Device,
    ) -> Self {
        Self {
            ask: Box::new(ask),
            geometry,
            black: [0, 1, 2].map(|channel| -mean[channel] / std[channel]),
            batch: batch.max(1),
            device: device.clone(),
            link: Link::default(),
        }
    }

    /// Wraps a whole model with its classifier.
    pub fn of(model: &'a Model, batch: usize) -> Self {
        let preprocessor = &model.preprocessor;
        let size = preprocessor.image_size();
        let geometry = Geometry {
            height_px: size.height_px,
            width_px: size.width_px,
            grid: model.grid(),
        };
        let link = model.vit.config().link();
        let asked = Self::new(
            |images| super::logits(model.vit.forward(images)?.logits),
            geometry,
            (preprocessor.mean, preprocessor.std),
            batch,
            model.vit.device(),
        );
        Self { link, ..asked }
    }

    /// Returns the logits of any number of images, `[batch, classes]`.
    ///
    /// # Errors
    /// Any error of the model.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        (self.ask)(images)
    }

    /// Returns the logits of `n` images, one after the other. `append` adds the normalized values `[3, height, width]`
    /// of the next image to the buffer.
    ///
    /// # Errors
    /// [`Error::Shape`] if an image has another size; otherwise any error of the model.
    pub fn answers(
        &self,
        n: usize,
        append: &mut dyn FnMut(usize, &mut Vec<f32>),
    ) -> Result<Vec<Vec<f32>>> {
        let Geometry {
            height_px,
            width_px,
            ..
        } = self.geometry;
        let len = 3 * height_px * width_px;
        let mut answers = Vec::with_capacity(n);
        while answers.len() < n {
            let n_asked = self.batch.min(n - answers.len());
            let mut pixels = Vec::with_capacity(n_asked * len);
            for nth in 0..n_asked {
                append(answers.len() + nth, &mut pixels);
                if pixels.len() != (nth + 1) * len {
                    return Err(Error::Shape {
                        expected: format!("{len} values per picture"),
                        got: (pixels.len() - nth * len).to_string(),
                    });
                }
            }
            let shape = (n_asked, 3, height_px, width_px);
            let images = Tensor::from_vec(pixels, shape, &self.device)?;
            answers.extend(self.logits(&images)?.to_vec2::<f32>()?);
        }
        Ok(answers)
    }

    /// Like [`answers`](Self::answers), but returns the probability of one class for each image.
    ///
    /// # Errors
    /// As for [`answers`](Self::answers); [`Error::Shape`] if the model does not have the class.
    pub fn probabilities(
        &self,
        classes: &[usize],
        append: &mut dyn FnMut(usize, &mut Vec<f32>),
    ) -> Result<Vec<f64>> {
        let answers = self.answers(classes.len(), append)?;
        let of_class = answers.iter().zip(classes);
        of_class
            .map(|(logits, &class)| Ok(self.log_probability(logits, class)?.exp()))
            .collect()
    }

    /// Returns ln p of a class, computed from logits.
    ///
    /// # Errors
    /// [`Error::Shape`] if the class does not exist.
    pub fn log_probability(&self, logits: &[f32], class: usize) -> Result<f64> {
        let found = self.link.log_probability(logits, class);
        found.ok_or_else(|| Error::Shape {
            expected: format!("a model with a class {class}"),
            got: format!("{} classes", logits.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        height_px: 1,
        width_px: 2,
        grid: (1, 2),
    };

    /// Returns 0 and the first value of each image as logits; accepts batches of at most 3.
    fn first_value(images: &Tensor) -> Result<Tensor> {
        assert!(images.dim(0)? <= 3);
        let first = images.flatten_from(1)?.narrow(1, 0, 1)?;
        Ok(Tensor::cat(&[&first.zeros_like()?, &first], 1)?)
    }

    fn model() -> BatchedModel<'static> {
        BatchedModel::new(
            first_value,
            GEOMETRY,
            ([0.5; 3], [0.25; 3]),
            3,
            &Device::Cpu,
        )
    }

    #[test]
    fn answers_come_in_order_whatever_the_batch() {
        let answers = model()
            .answers(7, &mut |nth, pixels| pixels.extend([nth as f32; 6]))
            .unwrap();
        let expected: Vec<Vec<f32>> = (0..7).map(|nth| vec![0.0, nth as f32]).collect();
        assert_eq!(answers, expected);
    }

    #[test]
    fn probabilities_are_those_of_the_class_that_is_asked_for() {
        // e³ : 1 is 3 : 1 if the logit is ln 3.
        let found = model().probabilities(&[0, 1], &mut |_, pixels| {
            pixels.extend([3_f32.ln(); 6]);
        });
        let found = found.unwrap();
        assert!((found[0] - 0.25).abs() < 1e-6 && (found[1] - 0.75).abs() < 1e-6);
        assert_eq!(model().black, [-2.0; 3]);
    }

    #[test]
    fn a_picture_of_another_size_and_a_class_that_is_not_there_are_refused() {
        let short = model().answers(1, &mut |_, pixels| pixels.push(0.0));
        assert!(short.unwrap_err().to_string().contains("6 values"));
        let error = model().log_probability(&[0.0, 1.0], 2);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("a class 2"), "{error}");
    }
}
