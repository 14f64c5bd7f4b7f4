//! Several explanations of one frame: smaller copies on a grid, together about as large as the frame.

use std::sync::Arc;

use rayon::prelude::*;

use super::paint::{Sample, Stencil, paint};
use super::{Heat, Overlay};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::placement::{PixelRect, Placement, Region};
use vitscope_core::frame::{Frame, FrameSize, PixelFormat, rows};

/// Caption of the remaining copies, which show the frame without an explanation.
const PLAIN: &str = "original";

impl Overlay {
    /// Draws each of `panes`, a pair of heat and caption, on a copy of the frame, and arranges the copies row by row on
    /// a grid that is about as wide as high. Remaining cells show the plain frame.
    ///
    /// # Errors
    /// [`Error::Shape`] if the frame is too small for so many copies; otherwise as [`draw`](Self::draw).
    pub fn draw_grid(&self, frame: &Frame, panes: &[(Option<Heat<'_>>, String)]) -> Result<Frame> {
        rows::check(&frame.layout)?;
        let n_columns = (1..=panes.len()).find(|edge| edge * edge >= panes.len());
        let n_columns = n_columns.unwrap_or(1);
        let small = shrunk(frame, n_columns)?;
        let mut drawn = panes
            .iter()
            .map(|(heat, caption)| {
                if let Some(heat) = heat {
                    heat.check(frame.size())?;
                }
                let placement = heat.map(|heat| shrunk_placement(&heat, &small, n_columns));
                let heat = heat.zip(placement.as_ref());
                let heat = heat.map(|(heat, placement)| Heat { placement, ..heat });
                self.draw(copy(&small)?, heat.as_ref(), caption)
            })
            .collect::<Result<Vec<_>>>()?;
        while !drawn.len().is_multiple_of(n_columns) {
            drawn.push(self.draw(copy(&small)?, None, PLAIN)?);
        }
        tiled(frame, &drawn, n_columns)
    }

    /// Like [`draw_grid`](Self::draw_grid), but draws into the middle of the frame itself, in place.
    ///
    /// # Errors
    /// As [`draw_grid`](Self::draw_grid), and any error from making the frame writable.
    pub fn draw_grid_onto(
        &self,
        mut frame: Frame,
        panes: &[(Option<Heat<'_>>, String)],
    ) -> Result<Frame> {
        let grid = self.draw_grid(&frame, panes)?;
        center(&mut frame, &grid)?;
        Ok(frame)
    }
}

/// Copies `picture` into the middle of `frame`, in place, with black around it; it must not be larger.
fn center(frame: &mut Frame, picture: &Frame) -> Result<()> {
    let (outer, inner) = (frame.size(), picture.size());
    let whole = PixelRect {
        left: 0,
        top: 0,
        width: outer.width_px,
        height: outer.height_px,
    };
    paint(frame, &Stencil::flat(whole, 0), |_| ([0; 3], 1.0))?;
    // Even, so that chroma samples stay aligned.
    let left = (outer.width_px - inner.width_px) / 4 * 2;
    let top = (outer.height_px - inner.height_px) / 4 * 2;
    let layout = Arc::clone(&frame.layout);
    let bytes = frame.bytes_mut()?;
    for plane_idx in 0..layout.planes.len() {
        let is_color = plane_idx > 0;
        let indent = match (layout.format, is_color) {
            (PixelFormat::I420, true) => left / 2,
            (PixelFormat::I420Deep, true) => left,
            _ => left * layout.sample_len(0),
        };
        let first_row = if is_color { top / 2 } else { top };
        let lines: Vec<&[u8]> = rows::rows(picture.bytes(), &picture.layout, plane_idx).collect();
        rows::par_rows_mut(bytes, &layout, plane_idx, first_row, lines.len())
            .zip(lines)
            .for_each(|(row, line)| {
                if let Some(place) = row.get_mut(indent..indent + line.len()) {
                    place.copy_from_slice(line);
                }
            });
    }
    Ok(())
}

/// Returns the placement of the model's image in a frame of 1/`factor` of the size.
fn shrunk_placement(heat: &Heat<'_>, small: &Frame, factor: usize) -> Placement {
    let Region {
        left,
        top,
        width,
        height,
    } = heat.placement.region;
    let factor = factor as f64;
    Placement {
        frame: small.size(),
        image: heat.placement.image,
        region: Region {
            left: left / factor,
            top: top / factor,
            width: width / factor,
            height: height / factor,
        },
    }
}

/// Shrinks the frame to 1/`factor` of its width and height, rounded down to even numbers; each sample is the mean of
/// those that it covers.
fn shrunk(frame: &Frame, factor: usize) -> Result<Frame> {
    let from = &frame.layout;
    let even = |edge_px: usize| edge_px / factor / 2 * 2;
    let size = FrameSize {
        width_px: even(from.size.width_px),
        height_px: even(from.size.height_px),
    };
    if size.width_px == 0 || size.height_px == 0 {
        return Err(Error::Shape {
            expected: format!("a frame that can be shown {factor} times side by side"),
            got: format!("{} x {} pixels", from.size.width_px, from.size.height_px),
        });
    }
    let layout = from.resized(size);
    let mut bytes = Vec::with_capacity(layout.min_len());
    for plane_idx in 0..layout.planes.len() {
        let (n_rows, row_len) = layout.plane_extent(plane_idx);
        let step = layout.sample_len(plane_idx);
        let source: Vec<&[u8]> = rows::rows(frame.bytes(), from, plane_idx).collect();
        for lines in source.chunks(factor).take(n_rows) {
            match layout.format {
                PixelFormat::I420Deep => {
                    push_means::<[u8; 2]>(&mut bytes, lines, factor, row_len / 2, 1)
                }
                _ => push_means::<u8>(&mut bytes, lines, factor, row_len, step),
            }
        }
    }
    frame.redrawn(layout, bytes)
}

/// Appends a row of `n_samples`, each the mean of `factor` samples of every line, which are `step` samples apart.
fn push_means<S: Sample>(
    bytes: &mut Vec<u8>,
    lines: &[&[u8]],
    factor: usize,
    n_samples: usize,
    step: usize,
) {
    for place in 0..n_samples {
        let first = place / step * factor * step + place % step;
        let samples = lines.iter().flat_map(|line| {
            let line = S::of_row(line).get(first..).unwrap_or_default();
            line.iter().step_by(step).take(factor)
        });
        let (sum, n) = samples.fold((0, 0), |(sum, n), sample| (sum + sample.value(), n + 1));
        let mean = S::from_value((sum + n / 2).checked_div(n).unwrap_or(0));
        bytes.extend_from_slice(mean.as_bytes());
    }
}

/// Arranges `panes` of equal size row by row, with the timestamp of `frame`.
fn tiled(frame: &Frame, panes: &[Frame], n_columns: usize) -> Result<Frame> {
    let Some(pane) = panes.first() else {
        return Err(Error::Config(
            "there are no images to arrange in a grid".into(),
        ));
    };
    let size = FrameSize {
        width_px: pane.size().width_px * n_columns,
        height_px: pane.size().height_px * panes.len().div_ceil(n_columns),
    };
    let layout = pane.layout.resized(size);
    let mut bytes = Vec::with_capacity(layout.min_len());
    for plane_idx in 0..layout.planes.len() {
        for line in panes.chunks(n_columns) {
            let mut sources: Vec<_> = line
                .iter()
                .map(|pane| rows::rows(pane.bytes(), &pane.layout, plane_idx))
                .collect();
            let (n_rows, _) = pane.layout.plane_extent(plane_idx);
            for _ in 0..n_rows {
                for source in &mut sources {
                    bytes.extend_from_slice(source.next().unwrap_or_default());
                }
            }
        }
    }
    frame.redrawn(layout, bytes)
}

fn copy(frame: &Frame) -> Result<Frame> {
    frame.redrawn((*frame.layout).clone(), frame.bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{Mode, Range};
    use vitscope_core::frame::placement::ResizeRule;
    use vitscope_core::frame::{PixelLayout, Pts};

    fn frame(format: PixelFormat, (width_px, height_px): (usize, usize)) -> Frame {
        let layout = PixelLayout::packed(
            format,
            FrameSize {
                width_px,
                height_px,
            },
        );
        let bytes: Vec<u8> = (0..layout.min_len()).map(|i| (i % 251) as u8).collect();
        Frame::new(3, Pts(7), None, Arc::new(layout), Box::new(bytes)).unwrap()
    }

    #[test]
    fn a_shrunken_sample_is_the_mean_of_those_that_it_covers() {
        let small = shrunk(&frame(PixelFormat::Rgb, (4, 4)), 2).unwrap();
        assert_eq!((2, 2), (small.size().width_px, small.size().height_px));
        // Red of the first pixel: bytes 0, 3 of the first row and 12, 15 of the second.
        assert_eq!([8, 9, 10], small.bytes()[..3]); // 7.5 rounds up.
    }

    #[test]
    fn every_format_keeps_its_planes_and_odd_edges_are_cut() {
        for format in [
            PixelFormat::I420,
            PixelFormat::Nv12,
            PixelFormat::Rgb,
            PixelFormat::Bgrx,
        ] {
            let frame = frame(format, (27, 19));
            let panes = vec![(None, String::new()); 3];
            let grid = Overlay::default().draw_grid(&frame, &panes).unwrap();
            assert_eq!(
                (24, 16),
                (grid.size().width_px, grid.size().height_px),
                "{format:?}"
            );
            assert_eq!(grid.layout.min_len(), grid.bytes().len());
            assert_eq!((3, Pts(7)), (grid.seq, grid.pts));
        }
    }

    #[test]
    fn each_pane_shows_its_own_heat_where_the_frame_has_it() {
        let size = FrameSize {
            width_px: 64,
            height_px: 64,
        };
        let layout = PixelLayout::packed(PixelFormat::Rgb, size);
        let black = vec![0; layout.min_len()];
        let black = Frame::new(0, Pts(0), None, Arc::new(layout), Box::new(black)).unwrap();
        let placement = Placement::new(&ResizeRule::Stretch(size), size).unwrap();
        let (left, right) = ([1.0, 0.0], [0.0, 1.0]);
        let pane = |attribution| {
            let heat = Heat {
                attribution,
                grid: (1, 2),
                placement: &placement,
                range: Range::Unit,
            };
            (Some(heat), String::new())
        };
        let overlay = Overlay {
            mode: Mode::Mask,
            smooth: false,
            ..Overlay::default()
        };
        let grid = overlay
            .draw_grid(&black, &[pane(&left), pane(&right)])
            .unwrap();
        assert_eq!((64, 32), (grid.size().width_px, grid.size().height_px));
        let gray_from: Vec<bool> = (0..64)
            .map(|x| grid.bytes()[3 * (64 * 16 + x)] > 0)
            .collect();
        let expected: Vec<bool> = (0..64).map(|x| (16..48).contains(&x)).collect();
        assert_eq!(expected, gray_from);
    }

    #[test]
    fn a_grid_of_two_lies_in_the_middle_of_its_frame() {
        for format in [
            PixelFormat::I420,
            PixelFormat::Nv12,
            PixelFormat::Rgb,
            PixelFormat::Bgrx,
        ] {
            let frame = frame(format, (32, 24));
            let panes = vec![(None, String::new()); 2];
            let small = shrunk(&frame, 2).unwrap();
            let drawn = Overlay::default().draw_grid_onto(frame, &panes).unwrap();
            for plane_idx in 0..drawn.layout.planes.len() {
                let color = plane_idx > 0;
                let (first_row, n_rows) = if color { (3, 6) } else { (6, 12) };
                let lines: Vec<_> = rows::rows(drawn.bytes(), &drawn.layout, plane_idx).collect();
                let pane = rows::rows(small.bytes(), &small.layout, plane_idx);
                for (line, pane) in lines[first_row..].iter().zip(pane) {
                    assert_eq!(&[pane, pane].concat(), line, "{format:?} {plane_idx}");
                }
                // Black, uniform everywhere; the fourth byte of a pixel is not a color.
                let bars = [&lines[..first_row], &lines[first_row + n_rows..]].concat();
                let is_color = |place: usize| format != PixelFormat::Bgrx || place % 4 < 3;
                let samples = bars.iter().flat_map(|line| line.iter().enumerate());
                let black = bars[0][0];
                let all_black = (samples.filter(|(place, _)| is_color(*place)))
                    .all(|(_, sample)| *sample == black);
                assert!(all_black, "{format:?} {plane_idx}");
            }
        }
    }

    #[test]
    fn a_frame_without_room_for_the_panes_is_refused() {
        let panes = vec![(None, String::new()); 9];
        let drawn = Overlay::default().draw_grid(&frame(PixelFormat::I420, (4, 64)), &panes);
        assert!(matches!(drawn.err(), Some(Error::Shape { .. })));
    }
}
