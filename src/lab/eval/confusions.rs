//! Classes that a model confuses with each other, as a list and as a chart.
//!
//! With hundreds of classes, a matrix shows little beyond its diagonal. The chart has one row for each of the most
//! often confused pairs of classes, with a bar for either direction.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::Path;

use image::{ImageFormat, RgbImage};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::classification::Prediction;
use vitscope_core::error::{Error, Result};
use vitscope_core::files::write_whole;
use vitscope_video::overlay::script::{Line, can_draw};
use vitscope_video::overlay::text::is_built_in;

/// Maximum number of pairs in the chart.
const MAX_ROWS: usize = 40;
/// Maximum number of characters of a label in the chart.
const MAX_LETTERS: usize = 24;
/// Name by which plotters knows the built-in font.
const FONT: &str = "hack";
const FONT_PX: i32 = 14;
const TITLE_PX: i32 = 18;
/// Margin around the chart.
const MARGIN_PX: i32 = 16;
/// Height of title, numbers and key above the rows.
const HEADING_PX: i32 = 104;
const ROW_PX: i32 = 22;
/// Height of a bar.
const BAR_PX: i32 = 14;
/// Width of a column of names.
const NAMES_PX: i32 = 212;
/// Gap between the columns.
const GAP_PX: i32 = 12;
/// Width of the longest bar.
const LONGEST_PX: i32 = 360;
/// Space after a bar for its numbers.
const NUMBERS_PX: i32 = 250;
const INK: RGBColor = RGBColor(40, 40, 40);
const FIRST: RGBColor = RGBColor(0, 90, 170);
const SECOND: RGBColor = RGBColor(190, 90, 0);

/// Two classes of a model that it confuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// The two classes; images of the first are mistaken more often.
    pub classes: [usize; 2],
    /// Number of images of each class that the model predicts as the other.
    pub counts: [usize; 2],
}

impl Confusion {
    fn total(&self) -> usize {
        self.counts.iter().sum()
    }
}

/// All wrong predictions on a set of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusions {
    /// Pairs of classes, most often confused first.
    pub pairs: Vec<Confusion>,
    /// Number of images per class of the model.
    pub pictures: BTreeMap<usize, usize>,
}

impl Confusions {
    /// Counts the wrong predictions.
    pub fn of(predictions: &[Prediction]) -> Self {
        let mut pictures = BTreeMap::new();
        let mut counts: BTreeMap<[usize; 2], [usize; 2]> = BTreeMap::new();
        for &Prediction { class, named, .. } in predictions {
            *pictures.entry(class).or_default() += 1;
            if named != class {
                let pair = [class.min(named), class.max(named)];
                counts.entry(pair).or_default()[usize::from(class > named)] += 1;
            }
        }
        let mut pairs: Vec<Confusion> = counts
            .into_iter()
            .map(|([low, high], [of_low, of_high])| match of_low >= of_high {
                true => Confusion {
                    classes: [low, high],
                    counts: [of_low, of_high],
                },
                false => Confusion {
                    classes: [high, low],
                    counts: [of_high, of_low],
                },
            })
            .collect();
        // Ties stay in class order.
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.total()));
        Self { pairs, pictures }
    }

    /// Draws the most often confused pairs; `labels` are the model's classes.
    ///
    /// # Errors
    /// [`Error::Io`] if `path` cannot be written.
    pub fn save_png(&self, labels: &[String], title: &str, path: &Path) -> Result<()> {
        let shown = &self.pairs[..self.pairs.len().min(MAX_ROWS)];
        let width = 2 * MARGIN_PX + 2 * NAMES_PX + 2 * GAP_PX + LONGEST_PX + NUMBERS_PX;
        let height = 2 * MARGIN_PX + HEADING_PX + ROW_PX * shown.len() as i32;
        let size = (width as u32, height as u32);
        let mut rgb = vec![0; 3 * size.0 as usize * size.1 as usize];
        let png = self
            .draw(shown, labels, title, (&mut rgb, size))
            .and_then(|()| {
                let mut png = std::io::Cursor::new(Vec::new());
                let image = RgbImage::from_raw(size.0, size.1, rgb).ok_or("its size is wrong")?;
                image.write_to(&mut png, ImageFormat::Png)?;
                Ok(png.into_inner())
            })
            .map_err(|error| {
                Error::Data(format!("confusions cannot be drawn: {error}: {path:?}"))
            })?;
        write_whole(path, &png)
    }

    fn draw(
        &self,
        shown: &[Confusion],
        labels: &[String],
        title: &str,
        (rgb, size): (&mut [u8], (u32, u32)),
    ) -> Result<(), Box<dyn StdError>> {
        plotters::style::register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
            .map_err(|_| "the built-in face is unreadable")?;
        let root = BitMapBackend::with_buffer(rgb, size).into_drawing_area();
        root.fill(&WHITE)?;
        let text = |text: &str, at: (i32, i32), size_px: i32, color: RGBColor, side: HPos| {
            if !is_built_in(text) {
                return draw_other(&root, text, at, size_px, color, side);
            }
            let style = TextStyle::from((FONT, size_px))
                .color(&color)
                .pos(Pos::new(side, VPos::Center));
            root.draw(&Text::new(text.to_owned(), at, style))
        };
        let bar = |left: i32, width: i32, middle: i32, color: RGBColor| {
            // A rectangle of width 0 would be drawn as a line.
            if width == 0 {
                return Ok(());
            }
            let (top, bottom) = (middle - BAR_PX / 2, middle + BAR_PX / 2);
            root.draw(&Rectangle::new(
                [(left, top), (left + width, bottom)],
                color.filled(),
            ))
        };

        let (left, top) = (MARGIN_PX, MARGIN_PX);
        text(title, (left, top + TITLE_PX / 2), TITLE_PX, INK, HPos::Left)?;
        let counted = self.counted(shown);
        text(&counted, (left, top + 36), FONT_PX, INK, HPos::Left)?;
        let keys = [
            (
                FIRST,
                "pictures of the left class misclassified as the right one",
            ),
            (
                SECOND,
                "pictures of the right class misclassified as the left one",
            ),
        ];
        for (row, (color, key)) in (0..).zip(keys) {
            let middle = top + 62 + 20 * row;
            bar(left, BAR_PX, middle, color)?;
            text(key, (left + BAR_PX + 8, middle), FONT_PX, color, HPos::Left)?;
        }

        let most = shown.first().map_or(1, Confusion::total) as f64;
        let length = |count: usize| (count as f64 / most * f64::from(LONGEST_PX)).round() as i32;
        let between = left + NAMES_PX;
        let zero = between + 2 * GAP_PX + NAMES_PX;
        for (row, pair) in (0..).zip(shown) {
            let middle = top + HEADING_PX + ROW_PX * row + ROW_PX / 2;
            let [first, second] = pair.classes.map(|class| {
                let label = labels.get(class).map_or("", String::as_str);
                match can_draw(label) {
                    true => shortened(label),
                    false => format!("class {class}"),
                }
            });
            text(&first, (between, middle), FONT_PX, FIRST, HPos::Right)?;
            text(
                &second,
                (between + GAP_PX, middle),
                FONT_PX,
                SECOND,
                HPos::Left,
            )?;
            let [width, width_back] = pair.counts.map(length);
            bar(zero, width, middle, FIRST)?;
            bar(zero + width, width_back, middle, SECOND)?;
            let at = (zero + width + width_back + 8, middle);
            text(&self.numbers(pair), at, FONT_PX, INK, HPos::Left)?;
        }
        root.present()?;
        Ok(())
    }

    /// Describes how many of the wrong predictions are shown.
    fn counted(&self, shown: &[Confusion]) -> String {
        let total = |pairs: &[Confusion]| pairs.iter().map(Confusion::total).sum::<usize>();
        let n_pictures: usize = self.pictures.values().sum();
        format!(
            "{} of {n_pictures} predictions are wrong, {} of them in the {} of {} class pairs shown",
            total(&self.pairs),
            total(shown),
            shown.len(),
            self.pairs.len()
        )
    }

    /// Formats how often each class is mistaken, and out of how many images.
    fn numbers(&self, pair: &Confusion) -> String {
        let of = |place: usize| {
            let n_pictures = self.pictures.get(&pair.classes[place]).unwrap_or(&0);
            format!("{} of {n_pictures}", pair.counts[place])
        };
        format!("{}, {}", of(0), of(1))
    }
}

/// Draws text with characters that the built-in font lacks.
fn draw_other<DB: DrawingBackend>(
    root: &DrawingArea<DB, plotters::coord::Shift>,
    text: &str,
    (x, middle): (i32, i32),
    size_px: i32,
    color: RGBColor,
    side: HPos,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let line = Line::new(text, 1.2 * size_px as f32);
    let width = i32::try_from(line.width_px).unwrap_or(i32::MAX);
    let left = match side {
        HPos::Left => x,
        HPos::Right => x - width,
        HPos::Center => x - width / 2,
    };
    let top = middle - (0.6 * size_px as f32) as i32;
    let mut drawn = Ok(());
    line.draw(|right, down, coverage| {
        let ink = color.mix(f64::from(coverage) / 255.0);
        let pixel = root.draw_pixel((left + right, top + down), &ink);
        if drawn.is_ok() {
            drawn = pixel;
        }
    });
    drawn
}

/// Shortens a label to fit its column.
fn shortened(label: &str) -> String {
    if label.chars().count() <= MAX_LETTERS {
        return label.to_owned();
    }
    let kept = label.chars().take(MAX_LETTERS - 1);
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns this number of images of a class, all with the same prediction.
    fn answers(n_pictures: usize, class: usize, named: usize) -> Vec<Prediction> {
        let one = Prediction {
            label: class,
            class,
            named,
            confidence: 0.5,
            trust: 0.5,
            rank: usize::from(named != class),
            nll: 0.7,
        };
        vec![one; n_pictures]
    }

    fn confusions() -> Confusions {
        Confusions::of(
            &[
                answers(5, 0, 0),
                answers(1, 0, 2),
                answers(4, 2, 0),
                answers(1, 1, 2),
                answers(1, 2, 1),
                answers(2, 1, 0),
            ]
            .concat(),
        )
    }

    #[test]
    fn both_directions_make_a_pair_and_the_more_frequent_one_goes_first() {
        let found = confusions();
        let pair = |classes, counts| Confusion { classes, counts };
        let expected = [
            pair([2, 0], [4, 1]),
            pair([1, 0], [2, 0]),
            pair([1, 2], [1, 1]),
        ];
        assert_eq!(found.pairs, expected);
        assert_eq!(found.pictures, [(0, 6), (1, 3), (2, 5)].into());
        assert_eq!(found.numbers(&expected[0]), "4 of 5, 1 of 6");
        assert_eq!(
            found.counted(&expected[..1]),
            "9 of 14 predictions are wrong, 5 of them in the 1 of 3 class pairs shown"
        );
        assert!(Confusions::of(&answers(3, 1, 1)).pairs.is_empty());
    }

    #[test]
    fn bars_are_as_long_as_counts_in_the_color_of_their_class() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("confusions.png");
        let labels = ["cat", "dog", "owl"].map(str::to_owned);
        confusions().save_png(&labels, "a model", &path).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        let n_pixels = |row: i32, color: RGBColor| {
            let y = MARGIN_PX + HEADING_PX + ROW_PX * row + ROW_PX / 2 - BAR_PX / 2;
            let zero = MARGIN_PX + 2 * NAMES_PX + 2 * GAP_PX;
            let line = (zero..zero + LONGEST_PX + 1).map(|x| picture.get_pixel(x as u32, y as u32));
            line.filter(|pixel| pixel.0 == [color.0, color.1, color.2])
                .count()
        };
        // 360 px are 5 images; a rectangle includes its last column.
        assert!(n_pixels(0, FIRST).abs_diff(288) <= 1 && n_pixels(0, SECOND).abs_diff(72) <= 1);
        assert!(n_pixels(1, FIRST).abs_diff(144) <= 1);
        assert_eq!(
            picture.height() as i32,
            2 * MARGIN_PX + HEADING_PX + 3 * ROW_PX
        );
    }

    #[test]
    fn names_in_letters_that_the_built_in_face_lacks_are_drawn_or_shown_by_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let draw = |label: &str| {
            let path = folder.path().join("confusions.png");
            let labels = [label, "dog", "owl"].map(str::to_owned);
            confusions().save_png(&labels, "a model", &path).unwrap();
            image::open(&path).unwrap().into_rgb8()
        };
        // A private-use character, which no published font covers.
        assert!(draw("\u{10fffd}") == draw("class 0"));
        let bird = draw("🐦");
        assert!(bird != draw("") && bird != draw("class 0"));
    }

    #[test]
    fn long_labels_are_shortened() {
        assert_eq!(shortened("cup of coffee"), "cup of coffee");
        let long = shortened("graduation gown with a hood");
        assert_eq!(long, "graduation gown with a …");
        assert_eq!(long.chars().count(), MAX_LETTERS);
    }
}
