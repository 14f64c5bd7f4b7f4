//! Examples of a comparison: the maps of a few images, and the time that each method takes for one.

use std::time::Instant;

use image::RgbImage;
use image::imageops::{FilterType, resize};

use super::batched::BatchedModel;
use super::comparison::{Comparison, Shown};
use super::report::{Gallery, GalleryRow, Speed};
use super::suite::{Mapper, Subject};
use crate::data::{Dataset, Picture};
use vitscope_core::error::Result;
use vitscope_core::explain::Target;
use vitscope_core::frame::FrameSize;
use vitscope_core::frame::placement::{Placement, ResizeRule};
use vitscope_video::overlay::{Heat, Overlay, Range, frame_from_image, image_from_frame};

/// Minimum side of a drawn image, in pixels.
const EDGE_PX: u32 = 128;
/// Number of runs for the median time, after one warmup run with cold caches.
const RUNS: usize = 5;

impl Comparison<'_> {
    /// Draws the maps of all methods and controls over the images at `indices`.
    ///
    /// # Errors
    /// As for [`Comparison::run`].
    pub fn gallery(&self, pictures: &dyn Dataset, indices: &[usize]) -> Result<Gallery> {
        let model = BatchedModel::of(self.model, self.batch);
        let shown = self.shown(&model, pictures, &self.meant_by(pictures), indices)?;
        let mappers = Mapper::all(self.explainers, self.seed);
        let mut rows: Vec<GalleryRow> = (shown.pictures.iter().zip(&shown.subjects))
            .map(|(picture, subject)| {
                Ok(GalleryRow {
                    caption: self.caption(subject, pictures),
                    picture: enlarged(picture)?,
                    maps: Vec::new(),
                })
            })
            .collect::<Result<_>>()?;
        for mapper in &mappers {
            let maps = self.maps(mapper, &model, &shown)?;
            for (row, map) in rows.iter_mut().zip(maps) {
                let drawn = drawn(&row.picture, &map, model.geometry.grid, mapper.range())?;
                row.maps.push(drawn);
            }
        }
        Ok(Gallery {
            methods: mappers.iter().map(Mapper::name).collect(),
            rows,
        })
    }

    /// Returns the median time that each method takes for the single image at `index`, including the model's own pass.
    ///
    /// # Errors
    /// As for [`Comparison::run`].
    pub fn speeds(&self, pictures: &dyn Dataset, index: usize) -> Result<Vec<Speed>> {
        let model = BatchedModel::of(self.model, 1);
        let shown = self.shown(&model, pictures, &self.meant_by(pictures), &[index])?;
        let speed = |mapper: &Mapper<'_>| {
            self.maps(mapper, &model, &shown)?;
            let mut times_ms = Vec::with_capacity(RUNS);
            for _ in 0..RUNS {
                let start = Instant::now();
                self.maps(mapper, &model, &shown)?;
                times_ms.push(1e3 * start.elapsed().as_secs_f64());
            }
            times_ms.sort_by(f64::total_cmp);
            Ok(Speed {
                name: mapper.name(),
                ms: times_ms[RUNS / 2],
            })
        };
        let mappers = Mapper::all(self.explainers, self.seed);
        // Controls do not run the model, so their times are meaningless.
        let methods = mappers.iter().filter(|mapper| !mapper.is_control());
        methods.map(speed).collect()
    }

    fn maps(
        &self,
        mapper: &Mapper<'_>,
        model: &BatchedModel<'_>,
        shown: &Shown,
    ) -> Result<Vec<Vec<f32>>> {
        let Shown {
            images, subjects, ..
        } = shown;
        mapper.maps(model, &self.model.vit, images, subjects, Target::Predicted)
    }

    /// Describes the predicted class, and the true class if it is known and differs.
    fn caption(&self, subject: &Subject, pictures: &dyn Dataset) -> String {
        let labels = self.model.labels();
        let named = labels.get(subject.predicted);
        let named = named.map_or_else(|| format!("class {}", subject.predicted), String::clone);
        let right = pictures
            .label(subject.index)
            .and_then(|label| pictures.classes().get(label));
        match right {
            Some(right) if !right.eq_ignore_ascii_case(&named) => format!("{named}, not {right}"),
            _ => named,
        }
    }
}

/// Enlarges an image for viewing.
fn enlarged(picture: &Picture) -> Result<RgbImage> {
    let image = picture.clone().into_image()?;
    let (width, height) = image.dimensions();
    let times = EDGE_PX.div_ceil(width.min(height).max(1));
    Ok(resize(
        &image,
        times * width,
        times * height,
        FilterType::CatmullRom,
    ))
}

fn drawn(
    picture: &RgbImage,
    map: &[f32],
    grid: (usize, usize),
    range: Option<Range>,
) -> Result<RgbImage> {
    let size = FrameSize {
        width_px: picture.width() as usize,
        height_px: picture.height() as usize,
    };
    let heat = Heat {
        attribution: map,
        grid,
        placement: &Placement::new(&ResizeRule::Stretch(size), size)?,
        range: range.unwrap_or(Range::MinMax),
    };
    let frame = Overlay::default().draw(frame_from_image(picture.clone()), Some(&heat), "")?;
    image_from_frame(&frame)
}
