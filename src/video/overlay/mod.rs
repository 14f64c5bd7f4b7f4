//! Drawing of an attribution over a frame, in the frame's own pixel format.
//!
//! The attribution is raw, with one score per patch. [`Heat`] specifies the position of the patches in the frame and
//! the mapping of scores to heat from 0 to 1. Heat is drawn exactly on the pixels that the model's image shows, in
//! place and without conversion: a sample that is not drawn on keeps its bits.
//!
//! Parts of the model's image outside of the frame (black margins of a crop) are not shown. Parts of the frame that the
//! model does not see stay unchanged, except in [`Mode::Heatmap`], which shows no video at all. If the model sees less
//! than the frame, a line surrounds the visible part.

mod colormap;
mod grid;
mod paint;
pub mod script;
pub mod sheet;
mod still;
pub mod text;
mod upsample;

use std::fmt;
use std::str::FromStr;

pub use colormap::Colormap;
pub use still::{frame_from_image, image_from_frame};
pub use vitscope_core::explain::Range;

use paint::{Stencil, paint};
use vitscope_core::error::{Error, Result, by_name};
use vitscope_core::frame::placement::{PixelRect, Placement};
use vitscope_core::frame::{Frame, FrameSize, rows};

/// Drawing mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The heatmap blended over the frame; hotter parts are more opaque.
    #[default]
    Overlay,
    /// The unchanged frame on the left, the overlay on the right; twice as wide.
    SideBySide,
    /// The heatmap alone, black where the model sees nothing.
    Heatmap,
    /// The frame with patches below the threshold painted gray.
    Mask,
    /// The frame with colder parts darkened.
    Dim,
    /// The unchanged frame.
    Original,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 6] = [
        Self::Overlay,
        Self::SideBySide,
        Self::Heatmap,
        Self::Mask,
        Self::Dim,
        Self::Original,
    ];

    /// Returns the name in TOML and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::SideBySide => "side-by-side",
            Self::Heatmap => "heatmap",
            Self::Mask => "mask",
            Self::Dim => "dim",
            Self::Original => "original",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("mode", name, &Self::ALL, Self::name)
    }
}

/// An attribution and its position in the frame.
#[derive(Clone, Copy, Debug)]
pub struct Heat<'a> {
    /// Raw scores of the patches, in row-major order.
    pub attribution: &'a [f32],
    /// Rows and columns of the patch grid, which spans the model's whole image.
    pub grid: (usize, usize),
    /// Position of the model's image in the frame.
    pub placement: &'a Placement,
    /// Mapping of scores to heat.
    pub range: Range,
}

impl Heat<'_> {
    /// Checks that the heat can be drawn on a frame of `size`. After this check, [`Overlay::draw`] fails only because
    /// of the frame itself.
    ///
    /// # Errors
    /// [`Error::Shape`] if the scores do not fill the grid, one is not finite, or the placement is for frames of
    /// another size.
    pub fn check(&self, size: FrameSize) -> Result<()> {
        let (n_rows, n_columns) = self.grid;
        let n_patches = n_rows.saturating_mul(n_columns);
        let error = |expected: String, got: String| Err(Error::Shape { expected, got });
        if n_patches == 0 || self.attribution.len() != n_patches {
            return error(
                format!("a score for each patch of a {n_rows} x {n_columns} grid"),
                format!("{} scores", self.attribution.len()),
            );
        }
        if let Some(patch) = self.attribution.iter().position(|score| !score.is_finite()) {
            return error(
                "finite scores".into(),
                format!("{} for patch {patch}", self.attribution[patch]),
            );
        }
        let placed = self.placement.frame;
        if placed != size {
            return error(
                format!(
                    "a frame of {} x {} pixels",
                    placed.width_px, placed.height_px
                ),
                format!("{} x {}", size.width_px, size.height_px),
            );
        }
        Ok(())
    }

    /// Returns the heat of each patch, from 0 to 1.
    fn unit_heat(&self) -> Vec<f32> {
        let (low, high) = match self.range {
            Range::Unit => (0.0, 1.0),
            Range::MinMax => (
                percentile(self.attribution, 0.0),
                percentile(self.attribution, 1.0),
            ),
            Range::Percentile => (
                percentile(self.attribution, 0.0),
                percentile(self.attribution, 0.99),
            ),
            Range::Signed => (0.0, percentile(self.attribution, 0.99)),
        };
        // The span of two finite scores may still overflow.
        let span = match self.range {
            range if range.is_constant(self.attribution) => 0.0,
            _ => f64::from(high) - f64::from(low),
        };
        self.attribution
            .iter()
            .map(|&score| {
                if span > 0.0 {
                    ((f64::from(score) - f64::from(low)) / span).clamp(0.0, 1.0) as f32
                } else {
                    0.0
                }
            })
            .collect()
    }
}

/// Returns the score below which a share of `rank` of all scores lies, interpolated between two scores.
fn percentile(scores: &[f32], rank: f64) -> f32 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    let position = rank * sorted.len().saturating_sub(1) as f64;
    let at = |idx: f64| sorted.get(idx as usize).copied().map_or(0.0, f64::from);
    let (lower, upper) = (at(position.floor()), at(position.ceil()));
    (lower + (upper - lower) * position.fract()) as f32
}

/// How an attribution is drawn.
///
/// ```
/// # mod vitscope { pub use vitscope_core::*; pub use vitscope_video::*; }
/// use vitscope::frame::placement::{Placement, ResizeRule};
/// use vitscope::frame::FrameSize;
/// use vitscope::overlay::{Heat, Overlay, Range, frame_from_image, image_from_frame};
///
/// let frame = frame_from_image(image::RgbImage::new(64, 48));
/// let model_size = FrameSize { width_px: 32, height_px: 32 };
/// let placement = Placement::new(&ResizeRule::Stretch(model_size), frame.size())?;
/// // A grid of two by two patches, the last one is the important one.
/// let heat = Heat {
///     attribution: &[0.0, 0.0, 0.0, 1.0],
///     grid: (2, 2),
///     placement: &placement,
///     range: Range::Unit,
/// };
/// let drawn = Overlay::default().draw(frame, Some(&heat), "")?;
/// let image = image_from_frame(&drawn)?;
/// assert_eq!(image.get_pixel(0, 0).0, [0, 0, 0]);
/// assert!(image.get_pixel(63, 47).0[0] > 50);
/// # Ok::<(), vitscope::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlay {
    /// Drawing mode.
    pub mode: Mode,
    /// Colors of the heat.
    pub colormap: Colormap,
    /// Opacity of the greatest heat, from 0 to 1. In `dim`, parts without heat keep `(1 - alpha)²` of their brightness.
    pub alpha: f32,
    /// Whether to interpolate bilinearly between patches; otherwise, each patch is a flat rectangle. `mask` always uses
    /// flat rectangles.
    pub smooth: bool,
    /// In `mask`, the minimum heat of a patch that is kept.
    pub threshold: f32,
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            colormap: Colormap::default(),
            alpha: 0.5,
            smooth: true,
            threshold: 0.5,
        }
    }
}

impl Overlay {
    /// Draws `heat` and `caption` on the frame, in place. [`Mode::SideBySide`] returns a new frame of twice the width,
    /// rounded up so that both halves begin at an even column.
    ///
    /// Without heat, the frame stays unchanged; without a caption, no box is drawn.
    ///
    /// # Errors
    /// [`Error::Shape`] if the frame's planes do not fit its format or [`Heat::check`] fails; also any error from
    /// making the frame writable.
    pub fn draw(&self, frame: Frame, heat: Option<&Heat>, caption: &str) -> Result<Frame> {
        self.draw_with_lines(frame, heat, &[caption])
    }

    /// Like [`draw`](Self::draw), with several lines in place of the caption; empty lines are left out.
    ///
    /// # Errors
    /// As [`draw`](Self::draw).
    pub fn draw_with_lines(
        &self,
        frame: Frame,
        heat: Option<&Heat>,
        lines: &[&str],
    ) -> Result<Frame> {
        rows::check(&frame.layout)?;
        if let Some(heat) = heat {
            heat.check(frame.size())?;
        }
        let FrameSize {
            width_px,
            height_px,
        } = frame.size();
        let (mut frame, left) = if self.mode == Mode::SideBySide {
            (doubled(&frame)?, width_px.next_multiple_of(2))
        } else {
            (frame, 0)
        };
        let pane = PixelRect {
            left,
            top: 0,
            width: width_px,
            height: height_px,
        };
        if let Some(heat) = heat {
            self.draw_heat(&mut frame, pane, heat)?;
        }
        let lines: Vec<&str> = lines
            .iter()
            .copied()
            .filter(|line| !line.is_empty())
            .collect();
        text::draw_lines(&mut frame, pane, &lines)?;
        Ok(frame)
    }

    /// Draws the heat on the part `pane` of the frame.
    fn draw_heat(&self, frame: &mut Frame, pane: PixelRect, heat: &Heat) -> Result<()> {
        /// Color of masked patches: as bright as a dark image, but unlike any.
        const GRAY: [u8; 3] = [64; 3];

        let mut unit_heat = heat.unit_heat();
        let smooth = self.smooth && self.mode != Mode::Mask;
        if self.mode == Mode::Mask {
            for value in &mut unit_heat {
                *value = if *value >= self.threshold { 1.0 } else { 0.0 };
            }
        }
        let stencil = || {
            let mut stencil =
                upsample::stencil_from_grid(&unit_heat, heat.grid, heat.placement, smooth);
            stencil.rect.left += pane.left;
            stencil
        };
        let table = self.colormap.table();
        let color = |level: u8| table[usize::from(level)];
        let unit = |level: u8| f32::from(level) / 255.0;
        if !matches!(self.mode, Mode::Original | Mode::Heatmap) {
            draw_border(frame, pane, heat.placement)?;
        }
        match self.mode {
            Mode::Original => Ok(()),
            Mode::Overlay | Mode::SideBySide => paint(frame, &stencil(), |level| {
                (color(level), self.alpha * opacity(unit(level)))
            }),
            Mode::Heatmap => {
                let stencil = stencil();
                if stencil.rect != pane {
                    paint(frame, &Stencil::flat(pane, 0), |_| ([0; 3], 1.0))?;
                }
                paint(frame, &stencil, |level| (color(level), 1.0))
            }
            Mode::Mask => paint(frame, &stencil(), |level| (GRAY, 1.0 - unit(level))),
            Mode::Dim => {
                // Darkening is less visible than color of the same opacity.
                let darkest = 1.0 - (1.0 - self.alpha.clamp(0.0, 1.0)).powi(2);
                paint(frame, &stencil(), |level| {
                    ([0; 3], darkest * (1.0 - unit(level)))
                })
            }
        }
    }
}

/// Draws a line just outside of the area that the model sees, on the sides where the frame extends beyond it.
fn draw_border(frame: &mut Frame, pane: PixelRect, placement: &Placement) -> Result<()> {
    /// Divisor of the shorter edge.
    const SHARE: usize = 240;
    const WHITE: [u8; 3] = [255; 3];
    const OPACITY: f32 = 0.8;

    let seen = placement.pixels();
    if seen.width == 0 || seen.height == 0 {
        return Ok(());
    }
    // Even, so that no line is darker than another where chroma is subsampled.
    let thickness = (pane.width.min(pane.height) / SHARE / 2 * 2).max(2);
    let (right, bottom) = (seen.left + seen.width, seen.top + seen.height);
    let before = |start: usize| (start.saturating_sub(thickness), start.min(thickness));
    let after = |end: usize, limit: usize| (end, limit.saturating_sub(end).min(thickness));
    let strip = |(left, width): (usize, usize), (top, height): (usize, usize)| PixelRect {
        left: pane.left + left,
        top: pane.top + top,
        width,
        height,
    };
    let (above, below) = (before(seen.top), after(bottom, pane.height));
    let (to_left, to_right) = (before(seen.left), after(right, pane.width));
    // The corners belong to the lines above and below.
    let across = (to_left.0, seen.width + to_left.1 + to_right.1);
    let down = (seen.top, seen.height);
    for rect in [
        strip(across, above),
        strip(across, below),
        strip(to_left, down),
        strip(to_right, down),
    ] {
        if rect.width > 0 && rect.height > 0 {
            paint(frame, &Stencil::flat(rect, 0), |_| (WHITE, OPACITY))?;
        }
    }
    Ok(())
}

/// Returns the opacity of heat, from 0 to 1.
///
/// A uniform overlay muddies the whole image and hides what the model looks at. Here cold parts stay clear, and opacity
/// rises early, so that medium heat is colored too.
fn opacity(heat: f32) -> f32 {
    heat * (2.0 - heat)
}

/// Returns the frame twice, side by side; both halves start at an even column.
fn doubled(frame: &Frame) -> Result<Frame> {
    let from = &frame.layout;
    let half_px = from.size.width_px.next_multiple_of(2);
    let size = FrameSize {
        width_px: 2 * half_px,
        height_px: from.size.height_px,
    };
    let layout = from.resized(size);
    let mut bytes = Vec::with_capacity(layout.min_len());
    for plane_idx in 0..layout.planes.len() {
        let (_, row_len) = layout.plane_extent(plane_idx);
        let sample_len = from.sample_len(plane_idx);
        for row in rows::rows(frame.bytes(), from, plane_idx) {
            for _ in 0..2 {
                bytes.extend_from_slice(row);
                // An odd width leaves one column to fill; repeating its neighbor is the least conspicuous.
                let last = bytes.len().saturating_sub(sample_len);
                if row.len() < row_len / 2 {
                    bytes.extend_from_within(last..);
                }
            }
        }
    }
    frame.redrawn(layout, bytes)
}
