//! The pointing game: does the map peak on the object, and how much of it lies there?

use std::sync::Arc;

use super::{Batch, Mapper, Measure, Score, Suite};
use crate::data::boxes::Boxed;
use crate::eval::localization::{PixelMap, PointingGame, PointingRules, mass_in_boxes};
use vitscope_core::error::Result;

/// Peak and mass of the bilinear map against boxes.
pub struct Pointing {
    /// Images with their boxes.
    pub pictures: Arc<Boxed>,
    /// Distance from a box at and beyond which a peak misses, in pixels of the model's input.
    pub tolerance_px: usize,
}

impl Suite for Pointing {
    fn measures(&self) -> Vec<Measure> {
        let tolerance = format!(
            "peak inside a box, or less than {} px from one",
            self.tolerance_px
        );
        [
            ("hit", tolerance.as_str()),
            (
                "hit (TiS)",
                "peak inside a box; pictures that boxes cover by half or more are skipped",
            ),
            ("energy", "share of the absolute map inside the boxes"),
        ]
        .map(|(name, settings)| Measure::mean("pointing", name, Some(true), settings))
        .to_vec()
    }

    fn score(&self, batch: &Batch<'_>, _mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let geometry = batch.model.geometry;
        let rules = PointingRules {
            tolerance_px: self.tolerance_px,
            max_coverage: None,
        };
        let play = |rules, map: &PixelMap<'_>, boxes: &[_]| {
            let hit = PointingGame::new(rules).add(map, boxes)?;
            Ok::<_, vitscope_core::Error>(Score::from(hit.map(|hit| f64::from(u8::from(hit)))))
        };
        let of_picture = batch.subjects.iter().zip(batch.pixel_maps());
        of_picture
            .map(|(subject, map)| {
                let boxes = self.pictures.boxes(subject.index)?;
                // A crop may have removed the entire object.
                if boxes.is_empty() {
                    return Ok(vec![Score::default(); 3]);
                }
                let map = PixelMap::new(&map, geometry.height_px, geometry.width_px)?;
                Ok(vec![
                    play(rules, &map, &boxes)?,
                    play(PointingRules::TIS, &map, &boxes)?,
                    mass_in_boxes(&map, &boxes)?.into(),
                ])
            })
            .collect()
    }
}
