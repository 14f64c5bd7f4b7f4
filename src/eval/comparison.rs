//! Methods beside each other, and beside maps that know nothing of the model, under the same protocols on the same
//! pictures.

use candle_core::{Device, Tensor};

use super::controls::Control;
use super::perturbation::{Curves, Geometry, Protocol, Subject};
use crate::data::{self, Dataset, Picture};
use crate::error::Result;
use crate::explain::{Explainer, Target};
use crate::models::Model;
use crate::rng::Rng;

/// What one method, or control, scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the method or control.
    pub name: String,
    /// True for a control.
    pub is_control: bool,
    /// One for each curve of each protocol, in their order.
    pub results: Vec<RunResult>,
}

/// What came of one curve of a protocol.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunResult {
    /// Area under the curve of each picture.
    pub areas: Vec<f64>,
    /// Mean curve over all pictures.
    pub curve: Vec<f64>,
}

impl RunResult {
    fn add(&mut self, curves: &[Vec<f64>], area: impl Fn(&[f64]) -> Result<f64>) -> Result<()> {
        let before = self.areas.len() as f64;
        for (nth, curve) in curves.iter().enumerate() {
            self.areas.push(area(curve)?);
            self.curve.resize(curve.len(), 0.0);
            let n = before + nth as f64 + 1.0;
            for (mean, value) in self.curve.iter_mut().zip(curve) {
                *mean += (value - *mean) / n;
            }
        }
        Ok(())
    }
}

/// What is compared.
pub struct Comparison<'a> {
    /// The model that is explained.
    pub model: &'a Model,
    /// Where it runs.
    pub device: &'a Device,
    /// The methods.
    pub explainers: &'a [Box<dyn Explainer>],
    /// The protocols.
    pub protocols: &'a [Protocol],
    /// Masked copies that go through the model at once.
    pub batch: usize,
    /// Seed of the random map.
    pub seed: u64,
}

impl Comparison<'_> {
    /// Scores all methods and controls on the pictures at `indices`; `done` is told how many pictures are.
    ///
    /// The same pictures and seed give the same scores, whatever the batch.
    ///
    /// # Errors
    /// Fails where model, methods, protocols and pictures do not go together.
    pub fn run(
        &self,
        pictures: &dyn Dataset,
        indices: &[usize],
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Row>> {
        let mut rows = self.rows();
        let ask = |images: &Tensor| super::logits(self.model.vit.forward(images)?.logits);
        let geometry = self.geometry();
        let preprocessor = &self.model.preprocessor;
        let normalization = (preprocessor.mean, preprocessor.std);
        let device = self.device;
        let curves = Curves::new(&ask, geometry, normalization, self.batch, device);
        let mut n_done = 0;
        for chunk in indices.chunks(self.batch) {
            let read = data::readable(pictures, chunk)?;
            let (places, read): (Vec<usize>, Vec<Picture>) = read.into_iter().unzip();
            let images =
                data::images_from_pictures(&read, preprocessor.mean, preprocessor.std, device)?;
            let labels: Vec<_> = places.iter().map(|&place| pictures.label(place)).collect();
            let subjects = subjects(&images, &ask(&images)?, &labels)?;
            let maps = self.maps(&images, &subjects, &places)?;
            for (row, maps) in rows.iter_mut().zip(&maps) {
                let runs = (self.protocols.iter())
                    .flat_map(|protocol| protocol.runs.iter().map(move |run| (protocol, run)));
                for ((protocol, run), result) in runs.zip(&mut row.results) {
                    let of_run = curves.run(protocol, run, &subjects, maps)?;
                    result.add(&of_run, |curve| protocol.area(curve, geometry))?;
                }
            }
            n_done += chunk.len();
            done(n_done);
        }
        Ok(rows)
    }

    /// Size and grid of the model's pictures.
    pub fn geometry(&self) -> Geometry {
        let size = self.model.preprocessor.image_size();
        Geometry {
            height_px: size.height_px,
            width_px: size.width_px,
            grid: self.model.grid(),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let n_runs = self
            .protocols
            .iter()
            .map(|protocol| protocol.runs.len())
            .sum();
        let methods = self
            .explainers
            .iter()
            .map(|method| (method.name().to_owned(), false));
        let controls = Control::ALL
            .iter()
            .map(|control| (control.to_string(), true));
        methods
            .chain(controls)
            .map(|(name, is_control)| Row {
                name,
                is_control,
                results: vec![RunResult::default(); n_runs],
            })
            .collect()
    }

    /// Maps of all subjects by each method, then by each control.
    fn maps(
        &self,
        images: &Tensor,
        subjects: &[Subject],
        places: &[usize],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let geometry = self.geometry();
        let by_method = self.explainers.iter().map(|explainer| {
            // What was seen before is no part of this picture.
            explainer.forget();
            let explained = explainer.explain(&self.model.vit, images, Target::Predicted)?;
            Ok(explained.attribution.to_vec2::<f32>()?)
        });
        let by_control = Control::ALL.iter().map(|control| {
            let pairs = subjects.iter().zip(places);
            let maps = pairs.map(|(subject, &place)| {
                let mut rng = Rng::for_item(self.seed, place as u64);
                control.map(&subject.image, geometry, &mut rng)
            });
            Ok(maps.collect())
        });
        by_method.chain(by_control).collect()
    }
}

/// What the model says of each picture, beside what is right.
fn subjects(images: &Tensor, logits: &Tensor, labels: &[Option<usize>]) -> Result<Vec<Subject>> {
    let pictures = images.flatten_from(1)?.to_vec2::<f32>()?;
    let predicted = logits.argmax(candle_core::D::Minus1)?.to_vec1::<u32>()?;
    let all = pictures.into_iter().zip(predicted).zip(labels);
    Ok(all
        .map(|((image, predicted), &label)| Subject {
            image,
            predicted: predicted as usize,
            label,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_curve_is_that_of_all_pictures() {
        let mut result = RunResult::default();
        result
            .add(&[vec![0.0, 1.0], vec![1.0, 1.0]], |curve| Ok(curve[0]))
            .unwrap();
        result
            .add(&[vec![0.5, 0.25]], |curve| Ok(curve[0]))
            .unwrap();
        assert_eq!(result.areas, [0.0, 1.0, 0.5]);
        assert_eq!(result.curve, [0.5, 0.75]);
    }
}
