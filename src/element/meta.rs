//! What the element outputs besides pixels: a buffer meta, regions of interest and a bus message.
//!
//! The meta and the message have the same fields:
//!
//! | field | type | meaning |
//! |---|---|---|
//! | `frame` | `guint64` | number of the explained frame, from 0 |
//! | `pts` | `guint64` | its presentation timestamp in nanoseconds |
//! | `method` | `gchararray` | the explanation method |
//! | `class`, `label` | `gint`, `gchararray` | the explained class; −1 and empty for a model without classes |
//! | `score` | `gfloat` | its probability |
//! | `answer` | `gchararray` | map caption: explained class, the model's answer if different, and its reliability |
//! | `not-sure` | `gboolean` | whether the top class is below the model's threshold; absent if the model has none |
//! | `unfamiliar` | `gboolean` | whether the cause is a frame unlike the training data, not its probability; as above |
//! | `kept` | `gfloat` | mean of a mask's values; −1 for methods that produce no masks |
//! | `grid-width`, `grid-height` | `guint` | columns and rows of the patch grid |
//! | `x`, `y`, `width`, `height` | `gdouble` | position of the grid in the frame, in pixels |
//! | `frame-width`, `frame-height` | `guint` | size of that frame in pixels |
//! | `range` | `gchararray` | how scores map to heat: `unit`, `min-max`, `percentile`, `signed` |
//! | `mask` | `GBytes` | the raw attribution: one little-endian f32 per patch, row by row |

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::meta::CustomMeta;
use gstreamer_video as gst_video;

use vitscope_core::frame::FrameSize;
use vitscope_core::frame::placement::{Placement, Region};
use vitscope_video::overlay::Range;
use vitscope_video::pipeline::stages::{Certainty, Finding, Map};

/// Name of the meta and of its structure.
pub const META: &str = "GstVitscopeMeta";

/// Name of the bus message's structure.
pub(super) const MESSAGE: &str = "vitscope";

/// Kind of the regions of interest.
const REGION: &str = "vitscope";

/// Registers the meta; repeated calls have no effect.
pub(super) fn register() {
    if !CustomMeta::is_registered(META) {
        // The meta states the frame size it applies to, so the frame may be scaled, but not rotated.
        CustomMeta::register(META, &["video", "orientation"]);
    }
}

/// The content of a meta or a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Number of the explained frame.
    pub frame: u64,
    /// Its presentation timestamp.
    pub pts: gst::ClockTime,
    /// The explanation method.
    pub method: String,
    /// The explained class, with its name and probability; `None` for a model without classes.
    pub class: Option<(usize, String, f32)>,
    /// The caption over the map.
    pub answer: String,
    /// Whether the most probable class can be relied on; `None` for a model without a threshold.
    pub certainty: Option<Certainty>,
    /// Mean of a mask's values.
    pub kept: Option<f32>,
    /// Rows and columns of the patch grid.
    pub grid: (usize, usize),
    /// Its position in the frame.
    pub region: Region,
    /// Size of that frame.
    pub frame_size: FrameSize,
    /// How scores map to heat.
    pub range: Range,
    /// Raw score of each patch, row by row.
    pub mask: Vec<f32>,
}

impl Found {
    pub(super) fn new(finding: &Finding, map: &Map, pts: gst::ClockTime) -> Self {
        let class = map.target.as_ref();
        Self {
            frame: finding.seq,
            pts,
            method: map.method.into(),
            class: class.map(|class| {
                let label = class.label.clone().unwrap_or_default();
                (class.index, label, class.probability)
            }),
            answer: finding.caption(map),
            certainty: finding.certainty,
            kept: map.kept(),
            grid: finding.grid,
            region: finding.placement.region,
            frame_size: finding.placement.frame,
            range: map.range,
            mask: map.attribution.clone(),
        }
    }

    /// Reads the meta of a buffer.
    pub fn of(buffer: &gst::BufferRef) -> Option<Self> {
        let meta = CustomMeta::from_buffer(buffer, META).ok()?;
        Self::from_structure(meta.structure())
    }

    /// Reads the structure of a message.
    pub fn from_structure(structure: &gst::StructureRef) -> Option<Self> {
        let mask: glib::Bytes = structure.get("mask").ok()?;
        let class = structure.get::<i32>("class").ok()?;
        let class = usize::try_from(class).ok().map(|index| {
            Some((
                index,
                structure.get("label").ok()?,
                structure.get("score").ok()?,
            ))
        });
        let side = |name| Some(structure.get::<u32>(name).ok()? as usize);
        let length = |name| structure.get::<f64>(name).ok();
        Some(Self {
            frame: structure.get("frame").ok()?,
            pts: gst::ClockTime::from_nseconds(structure.get("pts").ok()?),
            method: structure.get("method").ok()?,
            class: class.flatten(),
            answer: structure.get("answer").ok()?,
            certainty: structure.get("not-sure").ok().map(|not_sure| {
                let unfamiliar = structure.get("unfamiliar").unwrap_or_default();
                Certainty::from_flags(not_sure, unfamiliar)
            }),
            kept: structure.get("kept").ok().filter(|kept| *kept >= 0.0),
            grid: (side("grid-height")?, side("grid-width")?),
            region: Region {
                left: length("x")?,
                top: length("y")?,
                width: length("width")?,
                height: length("height")?,
            },
            frame_size: FrameSize {
                width_px: side("frame-width")?,
                height_px: side("frame-height")?,
            },
            range: {
                let name: String = structure.get("range").ok()?;
                let ranges = [Range::Unit, Range::MinMax, Range::Percentile, Range::Signed];
                ranges
                    .into_iter()
                    .find(|range| range_name(*range) == name)?
            },
            mask: (mask.as_chunks::<4>().0.iter())
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
        })
    }

    fn fill(&self, structure: &mut gst::StructureRef) {
        let (class, label, score) = match &self.class {
            Some((index, label, score)) => (i32::try_from(*index).unwrap_or(-1), &**label, *score),
            None => (-1, "", 0.0),
        };
        let (rows, columns) = self.grid;
        let mask: Vec<u8> = self.mask.iter().flat_map(|v| v.to_le_bytes()).collect();
        structure.set("frame", self.frame);
        structure.set("pts", self.pts.nseconds());
        structure.set("method", &self.method);
        structure.set("class", class);
        structure.set("label", label);
        structure.set("score", score);
        structure.set("answer", &self.answer);
        if let Some(certainty) = self.certainty {
            structure.set("not-sure", certainty.is_not_sure());
            structure.set("unfamiliar", certainty.is_unfamiliar());
        }
        structure.set("kept", self.kept.unwrap_or(-1.0));
        structure.set("grid-width", columns as u32);
        structure.set("grid-height", rows as u32);
        structure.set("x", self.region.left);
        structure.set("y", self.region.top);
        structure.set("width", self.region.width);
        structure.set("height", self.region.height);
        structure.set("frame-width", self.frame_size.width_px as u32);
        structure.set("frame-height", self.frame_size.height_px as u32);
        structure.set("range", range_name(self.range));
        structure.set("mask", glib::Bytes::from_owned(mask));
    }

    /// Returns the position of the grid in a frame of `size`, which may have been scaled.
    pub(super) fn placement(&self, size: FrameSize) -> Placement {
        let across = size.width_px as f64 / self.frame_size.width_px.max(1) as f64;
        let down = size.height_px as f64 / self.frame_size.height_px.max(1) as f64;
        Placement {
            frame: size,
            image: size,
            region: Region {
                left: self.region.left * across,
                top: self.region.top * down,
                width: self.region.width * across,
                height: self.region.height * down,
            },
        }
    }

    /// Returns the structure of a bus message.
    pub(super) fn message(&self) -> gst::Structure {
        let mut structure = gst::Structure::new_empty(MESSAGE);
        self.fill(&mut structure);
        structure
    }

    /// Attaches the meta to a buffer, replacing an existing one.
    pub(super) fn attach(&self, buffer: &mut gst::BufferRef) -> Result<(), glib::BoolError> {
        if let Ok(old) = CustomMeta::from_mut_buffer(buffer, META) {
            let _ = old.remove();
        }
        let mut meta = CustomMeta::add(buffer, META)?;
        self.fill(meta.mut_structure());
        Ok(())
    }
}

/// Returns the name of a range in a structure.
fn range_name(range: Range) -> &'static str {
    match range {
        Range::Unit => "unit",
        Range::MinMax => "min-max",
        Range::Percentile => "percentile",
        Range::Signed => "signed",
    }
}

/// Left, top, width and height in pixels.
type Rectangle = (u32, u32, u32, u32);

/// Attaches regions of interest.
pub(super) fn attach_regions(buffer: &mut gst::BufferRef, regions: &[Rectangle]) {
    for region in regions {
        gst_video::VideoRegionOfInterestMeta::add(buffer, REGION, *region);
    }
}

/// Attaches the same in the terms of GStreamer's analytics: the finding as a classification, and each region as an
/// object related to it.
#[cfg(feature = "v1_26")]
pub(super) fn attach_analytics(
    buffer: &mut gst::BufferRef,
    found: &Found,
    regions: &[Rectangle],
) -> Result<(), glib::BoolError> {
    use gstreamer_analytics::{AnalyticsRelationMeta, RelTypes, prelude::*};
    let mut meta = AnalyticsRelationMeta::add(buffer);
    let score = found.class.as_ref().map_or(0.0, |(_, _, score)| *score);
    let class = match &found.class {
        Some((_, label, _)) if !label.is_empty() => {
            let label = glib::Quark::from_str(label);
            Some(meta.add_one_cls_mtd(score, label)?.id())
        }
        _ => None,
    };
    let kind = glib::Quark::from_str(REGION);
    for &(x, y, width, height) in regions {
        let [x, y, width, height] =
            [x, y, width, height].map(|px| i32::try_from(px).unwrap_or(i32::MAX));
        let object = meta.add_od_mtd(kind, x, y, width, height, score)?.id();
        if let Some(class) = class {
            meta.set_relation(RelTypes::RELATE_TO, object, class)?;
        }
    }
    Ok(())
}

/// Returns the bounding boxes of connected patches of at least `threshold`; attributions without a fixed scale are cut
/// at that share of their range.
pub(super) fn regions(finding: &Finding, map: &Map, threshold: f32) -> Vec<Rectangle> {
    let (low, high) = match map.range {
        Range::Unit => (0.0, 1.0),
        Range::MinMax | Range::Percentile | Range::Signed => {
            let bound = |pick: fn(f32, f32) -> f32, start| {
                map.attribution.iter().copied().fold(start, pick)
            };
            let low = match map.range {
                Range::Signed => 0.0,
                _ => bound(f32::min, f32::INFINITY),
            };
            (low, bound(f32::max, f32::NEG_INFINITY))
        }
    };
    let kept: Vec<bool> = (map.attribution.iter())
        .map(|score| high > low && (score - low) / (high - low) >= threshold)
        .collect();
    let (rows, columns) = finding.grid;
    let region = finding.placement.region;
    let size = finding.placement.frame;
    let along = |patch: usize, n: usize, start: f64, length: f64, limit: usize| {
        (start + length * patch as f64 / n as f64)
            .round()
            .clamp(0.0, limit as f64) as u32
    };
    let x = |patch| along(patch, columns, region.left, region.width, size.width_px);
    let y = |patch| along(patch, rows, region.top, region.height, size.height_px);
    blobs(&kept, columns)
        .into_iter()
        .map(|[top, left, bottom, right]| (x(left), y(top), x(right), y(bottom)))
        .filter(|(x0, y0, x1, y1)| x1 > x0 && y1 > y0)
        .map(|(x0, y0, x1, y1)| (x0, y0, x1 - x0, y1 - y0))
        .collect()
}

/// Returns top, left, bottom and right of each group of kept patches that share edges; the latter two are exclusive.
fn blobs(kept: &[bool], columns: usize) -> Vec<[usize; 4]> {
    let mut seen = vec![false; kept.len()];
    let mut found = Vec::new();
    for start in 0..kept.len() {
        if !kept[start] || seen[start] {
            continue;
        }
        let (row, column) = (start / columns, start % columns);
        let mut rect = [row, column, row + 1, column + 1];
        let mut waiting = vec![start];
        seen[start] = true;
        while let Some(patch) = waiting.pop() {
            let (row, column) = (patch / columns, patch % columns);
            rect = [
                rect[0].min(row),
                rect[1].min(column),
                rect[2].max(row + 1),
                rect[3].max(column + 1),
            ];
            let mut neighbors = Vec::with_capacity(4);
            neighbors.extend(patch.checked_sub(columns));
            neighbors.extend((column > 0).then(|| patch - 1));
            neighbors.extend((column + 1 < columns).then_some(patch + 1));
            neighbors.push(patch + columns);
            for next in neighbors {
                if kept.get(next) == Some(&true) && !seen[next] {
                    seen[next] = true;
                    waiting.push(next);
                }
            }
        }
        found.push(rect);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_that_touch_side_by_side_are_one_region() {
        let grid = "\
            xx..x\
            .x...\
            ....x\
            x...x";
        let kept: Vec<bool> = grid.chars().map(|patch| patch == 'x').collect();
        let expected = [[0, 0, 2, 2], [0, 4, 1, 5], [2, 4, 4, 5], [3, 0, 4, 1]];
        assert_eq!(blobs(&kept, 5), expected);
        assert!(blobs(&[false; 6], 3).is_empty());
    }
}
