//! Lines of text with letters that the built-in font lacks, drawn with system fonts.
//!
//! Fonts are found according to the fontconfig setup. Letters are joined and ordered as their script requires, and each
//! comes from the first font that contains it; color emoji are drawn in gray. The fonts are listed when they are first
//! needed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Once, OnceLock, PoisonError};

use cosmic_text::fontdb::Source;
use cosmic_text::{Attrs, Buffer, FontSystem, Metrics, Shaping, SwashCache, SwashContent, Wrap};
use epaint_default_fonts::{HACK_REGULAR, NOTO_EMOJI_REGULAR};

/// Fonts, and a cache of the letters drawn with them.
struct Fonts {
    system: FontSystem,
    letters: SwashCache,
}

fn fonts() -> MutexGuard<'static, Fonts> {
    static FONTS: OnceLock<Mutex<Fonts>> = OnceLock::new();
    let fonts = FONTS.get_or_init(|| {
        let built_in =
            [HACK_REGULAR, NOTO_EMOJI_REGULAR].map(|face| Source::Binary(Arc::new(face)));
        Mutex::new(Fonts {
            system: FontSystem::new_with_fonts(built_in),
            letters: SwashCache::new(),
        })
    });
    fonts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that is ready to be drawn.
pub struct Line {
    /// Width in pixels.
    pub width_px: usize,
    buffer: Buffer,
}

impl Line {
    /// Lays out a text in a line of height `line_px`.
    pub fn new(text: &str, line_px: f32) -> Self {
        let mut fonts = fonts();
        let mut buffer = Buffer::new_empty(Metrics::new(line_px / 1.2, line_px));
        buffer.set_wrap(Wrap::None);
        buffer.set_text(text, &Attrs::new(), Shaping::Advanced, None);
        buffer.shape_until_scroll(&mut fonts.system, false);
        let width = buffer
            .layout_runs()
            .map(|run| run.line_w)
            .fold(0.0, f32::max);
        Self {
            width_px: width.ceil() as usize,
            buffer,
        }
    }

    /// Returns whether a font was found for each letter.
    fn is_complete(&self) -> bool {
        let mut glyphs = self.buffer.layout_runs().flat_map(|run| run.glyphs);
        glyphs.all(|glyph| glyph.glyph_id != 0)
    }

    /// Calls `ink` with the position of each pixel, right and down from the top left corner of the line, and its
    /// coverage.
    pub fn draw(&self, mut ink: impl FnMut(i32, i32, u8)) {
        let Fonts { system, letters } = &mut *fonts();
        for run in self.buffer.layout_runs() {
            for glyph in run.glyphs {
                let glyph = glyph.physical((0.0, run.line_y), 1.0);
                let Some(image) = letters.get_image(system, glyph.cache_key) else {
                    continue;
                };
                let left = glyph.x + image.placement.left;
                let top = glyph.y - image.placement.top;
                let coverage: Vec<u8> = match image.content {
                    SwashContent::Mask => image.data.clone(),
                    SwashContent::Color | SwashContent::SubpixelMask => {
                        (image.data.chunks_exact(4)).map(gray).collect()
                    }
                };
                let width = image.placement.width.max(1) as usize;
                for (row, coverage) in (0..).zip(coverage.chunks(width)) {
                    for (column, &coverage) in (0..).zip(coverage) {
                        ink(left + column, top + row, coverage);
                    }
                }
            }
        }
    }
}

/// Converts a color pixel to coverage: brighter pixels cover more.
fn gray(rgba: &[u8]) -> u8 {
    let [red, green, blue, alpha] = [0, 1, 2, 3].map(|channel| u32::from(rgba[channel]));
    // Weights of Rec. 709, in 1/256.
    let luma = (54 * red + 183 * green + 19 * blue) / 256;
    (luma * alpha / 255) as u8
}

/// Isolates a name within a line, so that right-to-left letters do not reorder the text around them.
pub(crate) fn isolated(name: &str) -> Cow<'_, str> {
    match super::text::is_built_in(name) {
        true => Cow::Borrowed(name),
        // Unicode's first strong isolate, and its end.
        false => Cow::Owned(format!("\u{2068}{name}\u{2069}")),
    }
}

/// Returns whether the fonts of this machine contain all letters of a text. If not, a warning is logged once.
pub fn can_draw(text: &str) -> bool {
    static WARNED: Once = Once::new();
    /// Class names recur on every frame.
    static KNOWN: LazyLock<Mutex<HashMap<String, bool>>> = LazyLock::new(Mutex::default);

    // Letters of the built-in font need no lookup in the system fonts.
    if super::text::is_built_in(text) {
        return true;
    }
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&is_there) = known.get(text) {
        return is_there;
    }
    let is_there = Line::new(text, 16.0).is_complete();
    known.insert(text.to_owned(), is_there);
    drop(known);
    if !is_there {
        WARNED.call_once(|| {
            tracing::warn!(
                "no installed font has all characters of {text:?}, so such classes are shown by their index; the \
                 Debian packages fonts-noto-cjk and fonts-noto-core cover most characters"
            );
        });
    }
    is_there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_font_has_cannot_be_drawn_and_built_in_letters_can() {
        assert!(can_draw("Vogel, Größe, птица"));
        // A private-use character, which no published font contains.
        assert!(!can_draw("\u{10fffd}"));
    }

    /// The built-in emoji are available on any machine.
    #[test]
    fn a_line_is_as_wide_as_its_ink() {
        let line = Line::new("🐦 bird", 32.0);
        assert!(line.is_complete());
        let (mut covered, mut right) = (0_u32, 0);
        line.draw(|x, _, coverage| {
            covered += u32::from(coverage);
            if coverage > 0 {
                right = right.max(x);
            }
        });
        assert!(covered > 10_000, "{covered}");
        let width = line.width_px as i32;
        assert!(
            (width - 8..=width + 2).contains(&right),
            "{right} of {width}"
        );
    }
}
