//! Drawing of an explanation over a frame, for files and elements alike.

use super::stages::{Finding, Map};
use crate::overlay::{Heat, Mode, Overlay};
use vitscope_core::error::Result;
use vitscope_core::frame::Frame;

/// How explanations are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Compositor {
    /// Style of the drawing.
    pub overlay: Overlay,
    /// Number of maps per frame. Several maps are drawn on a grid of smaller copies, which is also drawn without an
    /// explanation. While the number is zero, the frame is drawn whole.
    pub n_maps: usize,
    /// Whether the frame keeps its size, with the grid in its middle. Otherwise the frame becomes as large as the grid.
    pub keeps_size: bool,
    /// Whether the class is drawn over each map.
    pub has_captions: bool,
}

impl Compositor {
    /// Draws the maps of `finding` on `frame`, and `notes` below the caption of the only map or in the corner of the
    /// grid.
    ///
    /// # Errors
    /// Fails if a map does not fit the frame (see [`Finding::check`]) or the frame's memory cannot be written.
    pub fn draw(&self, frame: Frame, finding: Option<&Finding>, notes: &[String]) -> Result<Frame> {
        let caption = |finding: &Finding, map: &Map| match self.has_captions {
            true => finding.caption(map),
            false => String::new(),
        };
        let panes: Vec<(Option<Heat<'_>>, String)> = match finding {
            Some(finding) => (finding.maps.iter())
                .map(|map| (Some(finding.heat(map)), caption(finding, map)))
                .collect(),
            None => vec![(None, String::new()); self.n_maps.max(1)],
        };
        let notes = notes.iter().map(String::as_str);
        if let [(heat, caption)] = panes.as_slice() {
            let lines: Vec<&str> = std::iter::once(caption.as_str()).chain(notes).collect();
            return self.overlay.draw_with_lines(frame, heat.as_ref(), &lines);
        }
        let grid = match self.keeps_size {
            true => self.overlay.draw_grid_onto(frame, &panes)?,
            false => self.overlay.draw_grid(&frame, &panes)?,
        };
        let plain = Overlay {
            mode: Mode::Original,
            ..self.overlay
        };
        plain.draw_with_lines(grid, None, &notes.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::stages::Class;
    use super::*;
    use crate::overlay::Range;
    use vitscope_core::frame::placement::{Placement, ResizeRule};
    use vitscope_core::frame::{FrameSize, PixelFormat, PixelLayout, Pts, rows};
    use vitscope_core::vit::Link;

    const SIZE: FrameSize = FrameSize {
        width_px: 320,
        height_px: 240,
    };

    fn frame() -> Frame {
        let layout = PixelLayout::packed(PixelFormat::I420, SIZE);
        let bytes: Vec<u8> = (0..layout.min_len()).map(|i| (i % 251) as u8).collect();
        Frame::new(0, Pts(0), None, Arc::new(layout), Box::new(bytes)).unwrap()
    }

    fn finding(n_maps: usize) -> Finding {
        let class = Class {
            index: 1,
            label: Some("cat".into()),
            probability: 0.8,
        };
        let map = |map_idx: usize| Map {
            method: "chefer",
            range: Range::MinMax,
            attribution: vec![0.0, map_idx as f32 + 1.0, 0.5, 0.0],
            votes: None,
            unsmoothed: None,
            target: Some(class.clone()),
            against: None,
        };
        Finding {
            seq: 0,
            grid: (2, 2),
            placement: Placement::new(&ResizeRule::Stretch(SIZE), SIZE).unwrap(),
            likeliest: vec![class.clone()],
            link: Link::Softmax,
            certainty: None,
            maps: (0..n_maps).map(map).collect(),
        }
    }

    /// A file gets the grid alone; an element gets the same grid in a frame that keeps its size.
    #[test]
    fn a_grid_is_the_same_in_files_and_elements_with_and_without_an_explanation() {
        for n_maps in [2, 3, 4] {
            for finding in [Some(finding(n_maps)), None] {
                let compositor = Compositor {
                    overlay: Overlay::default(),
                    n_maps,
                    keeps_size: false,
                    has_captions: true,
                };
                let kept = Compositor {
                    keeps_size: true,
                    ..compositor
                };
                let grid = compositor.draw(frame(), finding.as_ref(), &[]).unwrap();
                let kept = kept.draw(frame(), finding.as_ref(), &[]).unwrap();
                assert_eq!(kept.size(), SIZE);
                let n_above = (SIZE.height_px - grid.size().height_px) / 2;
                let left = (SIZE.width_px - grid.size().width_px) / 2;
                let whole: Vec<_> = rows::rows(kept.bytes(), &kept.layout, 0).collect();
                let lines = rows::rows(grid.bytes(), &grid.layout, 0);
                for (line, row) in lines.zip(&whole[n_above..]) {
                    assert_eq!(line, &row[left..left + line.len()], "{n_maps} maps");
                }
            }
        }
    }

    #[test]
    fn one_map_is_drawn_over_the_frame_and_notes_stand_below_its_caption() {
        let compositor = Compositor {
            overlay: Overlay::default(),
            n_maps: 1,
            keeps_size: true,
            has_captions: true,
        };
        let bytes = |finding: Option<&Finding>, notes: &[&str]| {
            let notes: Vec<String> = notes.iter().map(|&note| note.into()).collect();
            let drawn = compositor.draw(frame(), finding, &notes).unwrap();
            drawn.bytes().to_vec()
        };
        let finding = finding(1);
        let overlay = Overlay::default();
        let map = &finding.maps[0];
        let expected = overlay.draw(frame(), Some(&finding.heat(map)), "cat 80%");
        assert!(bytes(Some(&finding), &[""]) == expected.unwrap().bytes());
        assert!(bytes(Some(&finding), &["25 frames/s"]) != bytes(Some(&finding), &[]));
        assert!(bytes(None, &[]) == frame().bytes());
        assert!(bytes(None, &["25 frames/s"]) != frame().bytes());
    }
}
