//! Draws an attribution over a frame, in the frame's own pixel format.
//!
//! The attribution comes raw, one score a patch; [`Heat`] says where the patches lie in the frame
//! and how scores become heat from 0 to 1.
//! Heat is drawn on exactly the pixels that the model's image shows, in place and without
//! conversion: a sample that nothing is drawn on keeps its bits.
//! What was seen outside of the frame (black margins of a crop) is not shown, and what the model did
//! not see is left as it is, except by [`Mode::Heatmap`], which shows no picture at all. Where the model saw less than
//! the frame, a line runs around what it saw.

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

/// What is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The heatmap blended over the picture, the hotter the more opaque.
    #[default]
    Overlay,
    /// The picture as it is on the left, the overlay on the right; twice as wide.
    SideBySide,
    /// The heatmap alone, black where the model saw nothing.
    Heatmap,
    /// Patches below the threshold painted gray.
    Mask,
    /// The picture, the darker the colder.
    Dim,
    /// The picture as it is.
    Original,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 6] = [
        Self::Overlay,
        Self::SideBySide,
        Self::Heatmap,
        Self::Mask,
        Self::Dim,
        Self::Original,
    ];

    /// Name in TOML and on the command line.
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

/// An attribution and where it lies in the frame.
#[derive(Clone, Copy, Debug)]
pub struct Heat<'a> {
    /// Raw score a patch, row by row.
    pub attribution: &'a [f32],
    /// Rows and columns of the patch grid, which spans the model's whole image.
    pub grid: (usize, usize),
    /// Where the model's image lies in the frame.
    pub placement: &'a Placement,
    /// How scores become heat.
    pub range: Range,
}

impl Heat<'_> {
    /// Makes sure that the heat can be drawn on a frame of `size`: after this, [`Overlay::draw`]
    /// fails only for reasons of the frame's own.
    ///
    /// # Errors
    /// [`Error::Shape`] where the scores do not fill the grid, one is not finite, or the placement
    /// is for frames of another size.
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

    /// Heat of each patch, from 0 to 1.
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

/// The score below which the share `rank` of all scores lies, interpolated between two.
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
    /// What is drawn.
    pub mode: Mode,
    /// Colors of the heat.
    pub colormap: Colormap,
    /// Opacity of the greatest heat, from 0 to 1; in `dim`, what has no heat keeps `(1 - alpha)²` of
    /// its brightness.
    pub alpha: f32,
    /// Bilinear between patches, or each patch a flat rectangle. `mask` always has flat ones.
    pub smooth: bool,
    /// In `mask`, the heat from which on a patch is kept.
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
    /// Draws `heat` and `caption` on the frame, in place; [`Mode::SideBySide`] returns a new frame
    /// of twice the width, rounded up so that either half begins at an even column.
    ///
    /// Without heat the picture stays as it is; without a caption no box is drawn.
    ///
    /// # Errors
    /// [`Error::Shape`] where the frame's planes do not fit its format or [`Heat::check`] fails;
    /// whatever making the frame writable returns.
    pub fn draw(&self, frame: Frame, heat: Option<&Heat>, caption: &str) -> Result<Frame> {
        self.draw_with_lines(frame, heat, &[caption])
    }

    /// The same with several lines in place of the caption; empty ones are left out.
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

    /// Draws the heat on the part of the frame that `pane` is.
    fn draw_heat(&self, frame: &mut Frame, pane: PixelRect, heat: &Heat) -> Result<()> {
        /// What `mask` puts in place of patches: as bright as a dark picture, unlike any.
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
                // Darkening shows less than color of the same opacity does.
                let darkest = 1.0 - (1.0 - self.alpha.clamp(0.0, 1.0)).powi(2);
                paint(frame, &stencil(), |level| {
                    ([0; 3], darkest * (1.0 - unit(level)))
                })
            }
        }
    }
}

/// Draws a line just outside of what the model saw, on the sides where the frame goes on.
fn draw_border(frame: &mut Frame, pane: PixelRect, placement: &Placement) -> Result<()> {
    /// Of the shorter edge.
    const SHARE: usize = 240;
    const WHITE: [u8; 3] = [255; 3];
    const OPACITY: f32 = 0.8;

    let seen = placement.pixels();
    if seen.width == 0 || seen.height == 0 {
        return Ok(());
    }
    // Even, so that one line is no darker than the other where color has half of the samples.
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

/// How opaque heat is, from 0 to 1.
///
/// A uniform overlay turns the whole picture to mud and hides what the model looked at.
/// Here cold parts stay clear, and opacity is gained early, so that middling heat has a color too.
fn opacity(heat: f32) -> f32 {
    heat * (2.0 - heat)
}

/// The frame twice, side by side; either half starts at an even column.
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
                // An odd width leaves one column to fill; its neighbor is the least conspicuous.
                let last = bytes.len().saturating_sub(sample_len);
                if row.len() < row_len / 2 {
                    bytes.extend_from_within(last..);
                }
            }
        }
    }
    frame.redrawn(layout, bytes)
}
