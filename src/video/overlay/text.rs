//! Antialiased lines of text: the caption in a frame's corner, and labels on the contact sheet.
//!
//! The font is Hack, which is compiled in, so no system font is needed for Latin, Greek and Cyrillic letters. It is
//! monospaced: whether a text fits follows from its number of characters. A caption takes about 0.2 ms with all letters
//! drawn anew, so none are cached. Lines with other letters are drawn with system fonts.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, InvalidFont, PxScale, ScaleFont};
use epaint_default_fonts::HACK_REGULAR;

use super::paint::{Stencil, paint};
use super::script;
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::Frame;
use vitscope_core::frame::placement::PixelRect;

/// Height of a caption line as a share of the frame's shorter side; small frames use the minimum size.
const CAPTION_SHARE: f32 = 1.0 / 22.0;

/// Height in pixels below which the letters of a line run together.
const LEAST_READABLE_PX: f32 = 14.0;

/// Height in pixels below which no caption is drawn.
const LEAST_PX: f32 = 7.0;

/// Opacity of the box behind a caption.
const BOX_OPACITY: f32 = 0.62;

/// Replacement for the part of a text that does not fit.
const ELLIPSIS: char = '…';

/// Draws white text on a translucent dark box into the top left corner of `pane`; like [`draw_lines`] with one line.
///
/// # Errors
/// As [`draw_lines`].
pub fn draw_caption(frame: &mut Frame, pane: PixelRect, caption: &str) -> Result<()> {
    draw_lines(frame, pane, &[caption])
}

/// Draws lines of white text on a translucent dark box into the top left corner of `pane`.
///
/// A line that is too long is shortened with `…`; a short last word, such as a percentage, is kept. A line that does
/// not fit even then is left out, and so are lines below the pane: the box never leaves it.
///
/// # Errors
/// [`Error::Shape`] if the frame's planes do not fit its format; also any error from making its memory writable.
pub fn draw_lines(frame: &mut Frame, pane: PixelRect, lines: &[&str]) -> Result<()> {
    let (pane_height, shorter) = (pane.height as f32, pane.height.min(pane.width) as f32);
    // The box takes 1.3 lines, the margins 0.35 each.
    let line_px = (shorter * CAPTION_SHARE)
        .max(LEAST_READABLE_PX)
        .min(pane_height / 2.0)
        .floor();
    if line_px < LEAST_PX || lines.iter().all(|line| line.trim().is_empty()) {
        return Ok(());
    }
    let letters = Letters::new(line_px)?;
    let even = |length: f32| 2 * (length / 2.0).round() as usize;
    let (margin, padding_x, padding_y) = (
        even(0.35 * line_px),
        even(0.4 * line_px),
        even(0.15 * line_px),
    );
    let Some(text_room) = pane.width.checked_sub(2 * (margin + padding_x)) else {
        return Ok(());
    };
    let height_px = letters.height().next_multiple_of(2);
    let room = pane.height.saturating_sub(2 * (margin + padding_y)) / height_px;
    let fitting = lines.iter().filter_map(|line| letters.fit(line, text_room));
    let lines: Vec<Line> = fitting.take(room.max(1)).collect();
    let Some(width_px) = lines.iter().map(|line| letters.width(line)).max() else {
        return Ok(());
    };

    // Even edges keep the box from sharing chroma samples with the image around it.
    let left = (pane.left + margin).next_multiple_of(2);
    let top = (pane.top + margin).next_multiple_of(2);
    let rect = PixelRect {
        left,
        top,
        width: (width_px.next_multiple_of(2) + 2 * padding_x)
            .min((pane.left + pane.width).saturating_sub(left)),
        height: (lines.len() * height_px + 2 * padding_y)
            .min((pane.top + pane.height).saturating_sub(top)),
    };
    let mut stencil = Stencil::flat(rect, 0);
    for (line_idx, line) in lines.iter().enumerate() {
        letters.draw(
            &mut stencil,
            padding_x,
            padding_y + line_idx * height_px,
            line,
        );
    }
    paint(frame, &stencil, |coverage| {
        // White of opacity `ink` over black of opacity `BOX_OPACITY` over the image, as one color.
        let ink = f32::from(coverage) / 255.0;
        let opacity = ink + BOX_OPACITY * (1.0 - ink);
        ([(255.0 * ink / opacity).round() as u8; 3], opacity)
    })
}

/// Draws one line of `line_px` height without a box, shortened to `room`, in one gray.
pub(super) fn draw_label(
    frame: &mut Frame,
    room: PixelRect,
    line_px: f32,
    gray: u8,
    label: &str,
) -> Result<()> {
    let letters = Letters::new(line_px)?;
    let Some(line) = letters.fit(label, room.width) else {
        return Ok(());
    };
    let mut stencil = Stencil::flat(room, 0);
    letters.draw(&mut stencil, 0, 0, &line);
    paint(frame, &stencil, |coverage| {
        ([gray; 3], f32::from(coverage) / 255.0)
    })
}

/// A line that fits.
enum Line {
    /// Letters of the built-in font.
    BuiltIn(String),
    /// Other letters.
    Other(script::Line),
}

/// Returns the built-in font.
fn face() -> Result<&'static FontRef<'static>> {
    static FACE: LazyLock<Result<FontRef<'static>, InvalidFont>> =
        LazyLock::new(|| FontRef::try_from_slice(HACK_REGULAR));

    let unreadable = |e| Error::Config(format!("cannot read the built-in font: {e}"));
    FACE.as_ref().map_err(unreadable)
}

/// Returns whether the built-in font contains all letters of a text.
pub fn is_built_in(text: &str) -> bool {
    face().is_ok_and(|face| has_all(face, text))
}

fn has_all(face: &FontRef<'_>, text: &str) -> bool {
    let mut letters = text.chars().filter(|letter| !letter.is_control());
    letters.all(|letter| face.glyph_id(letter).0 != 0)
}

/// The built-in font at one size.
struct Letters {
    font: FontRef<'static>,
    scale: PxScale,
    /// Distance from one letter to the next in pixels.
    advance: f32,
}

impl Letters {
    fn new(line_px: f32) -> Result<Self> {
        let font = face()?.clone();
        let scale = PxScale::from(line_px);
        let scaled = font.as_scaled(scale);
        let advance = scaled.h_advance(scaled.glyph_id('0'));
        Ok(Self {
            font,
            scale,
            advance,
        })
    }

    /// Returns the width of a line in pixels.
    fn width(&self, line: &Line) -> usize {
        match line {
            Line::BuiltIn(line) => (line.chars().count() as f32 * self.advance).ceil() as usize,
            Line::Other(line) => line.width_px,
        }
    }

    /// Returns the height of a line in pixels.
    fn height(&self) -> usize {
        self.scale.y.ceil() as usize
    }

    /// Returns `text` as one line, shortened to fit into `room_px`.
    fn fit(&self, text: &str, room_px: usize) -> Option<Line> {
        if has_all(&self.font, text) {
            return shorten(text, (room_px as f32 / self.advance) as usize).map(Line::BuiltIn);
        }
        // Letters differ in width, so shorter and shorter texts are tried.
        (1..=text.chars().count()).rev().find_map(|max_chars| {
            let line = script::Line::new(&shorten(text, max_chars)?, self.scale.y);
            (line.width_px <= room_px).then_some(Line::Other(line))
        })
    }

    /// Adds the letters to the stencil, with the top left corner of the line at (`x`, `y`) in the stencil.
    fn draw(&self, stencil: &mut Stencil, x: usize, y: usize, line: &Line) {
        let line = match line {
            Line::BuiltIn(line) => line,
            Line::Other(line) => {
                let place = |from: usize, by: i32| from.checked_add_signed(by as isize);
                line.draw(|dx, dy, coverage| {
                    if let (Some(x), Some(y)) = (place(x, dx), place(y, dy)) {
                        add(stencil, x, y, coverage);
                    }
                });
                return;
            }
        };
        let scaled = self.font.as_scaled(self.scale);
        let baseline = y as f32 + scaled.ascent().round();
        for (letter_idx, letter) in line.chars().enumerate() {
            let position = ab_glyph::point(x as f32 + letter_idx as f32 * self.advance, baseline);
            let glyph = self
                .font
                .glyph_id(letter)
                .with_scale_and_position(self.scale, position);
            let Some(outline) = self.font.outline_glyph(glyph) else {
                continue;
            };
            let corner = outline.px_bounds().min;
            outline.draw(|dx, dy, coverage| {
                let (x, y) = (corner.x + dx as f32, corner.y + dy as f32);
                if x >= 0.0 && y >= 0.0 {
                    let coverage = (coverage.clamp(0.0, 1.0) * 255.0) as u8;
                    add(stencil, x as usize, y as usize, coverage);
                }
            });
        }
    }
}

/// Adds coverage to a pixel if it lies in the stencil.
fn add(stencil: &mut Stencil, x: usize, y: usize, coverage: u8) {
    let PixelRect { width, height, .. } = stencil.rect;
    if x < width && y < height {
        let level = &mut stencil.levels[y * width + x];
        *level = level.saturating_add(coverage);
    }
}

/// Returns `text` without line breaks in at most `max_chars` characters; `None` if too few remain to be meaningful.
fn shorten(text: &str, max_chars: usize) -> Option<String> {
    /// Minimum number of characters worth a box.
    const LEAST_CHARS: usize = 3;
    /// Maximum length of an ending that is kept: a space and a percentage.
    const LONGEST_ENDING: usize = 6;

    let text: Vec<char> = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.len() <= max_chars {
        return (!text.is_empty()).then(|| text.into_iter().collect());
    }
    if max_chars < LEAST_CHARS {
        return None;
    }
    // The ending begins at the leftmost space that leaves it short enough.
    let ending = (text.len() - LONGEST_ENDING.min(text.len())..text.len())
        .find(|&at| text[at] == ' ')
        .map_or(&[][..], |at| &text[at..]);
    let ending = if ending.len() + 2 <= max_chars {
        ending
    } else {
        &[]
    };
    let start: String = text[..max_chars - 1 - ending.len()].iter().collect();
    let start = start.trim_end();
    Some(
        start
            .chars()
            .chain([ELLIPSIS])
            .chain(ending.iter().copied())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, max_chars: usize, expected: Option<&str>) {
        assert_eq!(shorten(text, max_chars).as_deref(), expected);
    }

    #[test]
    fn a_text_that_fits_stays() {
        check("bird 93 %", 9, Some("bird 93 %"));
        check("two\nlines", 20, Some("two lines"));
        check("  ", 20, None);
    }

    #[test]
    fn a_long_class_name_is_cut_and_its_probability_kept() {
        check("sulphur-crested cockatoo 93 %", 15, Some("sulphur-c… 93 %"));
        check("sulphur-crested cockatoo 93%", 15, Some("sulphur-cr… 93%"));
    }

    #[test]
    fn a_long_last_word_is_cut_at_its_end() {
        check("greenhouse", 6, Some("green…"));
        check("a greenhouse", 6, Some("a gre…"));
    }

    #[test]
    fn too_little_room_gives_nothing() {
        check("bird 93 %", 2, None);
        check("bird 93 %", 3, Some("bi…"));
        check("bird 93 %", 0, None);
    }

    #[test]
    fn every_letter_of_a_caption_takes_the_same_width() {
        let letters = Letters::new(20.0).unwrap();
        let scaled = letters.font.as_scaled(letters.scale);
        for letter in "iWm0% …".chars() {
            let advance = scaled.h_advance(scaled.glyph_id(letter));
            assert!((advance - letters.advance).abs() < 1e-3, "{letter:?}");
        }
    }
}
