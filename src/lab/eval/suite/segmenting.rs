//! Maps as segmentations of the object, as measured by Chefer et al. on ImageNet-Segmentation.

use std::sync::Arc;

use super::{Batch, Mapper, Measure, Score, Statistic, Suite};
use crate::data::masked::Masked;
use crate::eval::localization::PixelMap;
use crate::eval::segmentation::{Segmentation, mean_iou, pixel_accuracy};
use vitscope_core::error::Result;

/// Pixel accuracy, mean IoU and mean average precision of the bilinear map.
pub struct Segmenting {
    /// Images with their masks.
    pub pictures: Arc<Masked>,
}

impl Suite for Segmenting {
    fn measures(&self) -> Vec<Measure> {
        let settings =
            "foreground where the map is above its mean; pixels without a label do not count";
        let counted = |name, pool| Measure {
            statistic: Statistic::Pooled(pool),
            ..Measure::mean("segmentation", name, Some(true), settings)
        };
        vec![
            counted("pixel accuracy", |counts| {
                pixel_accuracy(&counted_pixels(counts))
            }),
            counted("mean IoU", |counts| mean_iou(&counted_pixels(counts))),
            Measure::mean("segmentation", "mAP", Some(true), settings),
        ]
    }

    fn score(&self, batch: &Batch<'_>, _mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let geometry = batch.model.geometry;
        let of_picture = batch.subjects.iter().zip(batch.pixel_maps());
        of_picture
            .map(|(subject, map)| {
                let labels = self.pictures.labels(subject.index)?;
                if labels.iter().all(Option::is_none) {
                    return Ok(vec![Score::default(); 3]);
                }
                let map = PixelMap::new(&map, geometry.height_px, geometry.width_px)?;
                let mut segmentation = Segmentation::default();
                segmentation.add(&map, &labels)?;
                let confusion = segmentation.confusion();
                let points: Vec<f32> = confusion.as_flattened().iter().map(|&n| n as f32).collect();
                let counted = |value: f64| Score {
                    value: Some(value),
                    points: points.clone(),
                };
                let precision = segmentation
                    .scores()
                    .map(|scores| scores.mean_average_precision);
                Ok(vec![
                    counted(pixel_accuracy(&confusion)),
                    counted(mean_iou(&confusion)),
                    precision.into(),
                ])
            })
            .collect()
    }
}

/// Extracts the pixels by label and prediction from a score's points.
fn counted_pixels(points: &[f64]) -> [[u64; 2]; 2] {
    let count = |idx: usize| points.get(idx).copied().unwrap_or_default() as u64;
    [[count(0), count(1)], [count(2), count(3)]]
}
