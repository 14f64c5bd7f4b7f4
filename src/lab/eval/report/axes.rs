//! Axes of a chart as SVG, with colors and font from the page.

use std::error::Error as StdError;
use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::text::{escaped, number};
use vitscope_core::error::{Error, Result};

/// Width and height of a chart, in pixels if there is enough room.
const SIZE_PX: (u32, u32) = (720, 430);
/// Margin around the chart, into which tick labels may extend.
const MARGIN_PX: u32 = 10;
/// Width of the labels beside the vertical axis, height of those below the horizontal axis.
const AXES_PX: (u32, u32) = (58, 42);
/// Padding around the values, as a fraction of their span.
const PADDING: f64 = 0.06;
/// Maximum number of mesh lines.
const N_TICKS: usize = 7;
/// Area of the values: left to right and top to bottom.
pub(super) const PLOT_PX: (Range<i32>, Range<i32>) = (
    (MARGIN_PX + AXES_PX.0) as i32..(SIZE_PX.0 - MARGIN_PX) as i32,
    MARGIN_PX as i32..(SIZE_PX.1 - MARGIN_PX - AXES_PX.1) as i32,
);
/// Maximum number of decimals of a tick.
const MAX_DECIMALS: usize = 6;
/// Color that plotters draws in, which the page replaces by its own ink.
const INK: (RGBColor, &str) = (BLACK, "#000000");

/// One axis of a chart.
#[derive(Clone)]
pub(super) struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
    /// Text of each tick.
    texts: Vec<String>,
    label: String,
}

impl Axis {
    /// Creates an axis that shows all of `values`; `None` if none is finite.
    pub(super) fn linear(values: impl Iterator<Item = f64>, label: &str) -> Option<Self> {
        let (low, high) = extent(values)?;
        Self::over(padded(low, high), label)
    }

    /// Like [`Self::linear`], but without padding around the values.
    pub(super) fn tight(values: impl Iterator<Item = f64>, label: &str) -> Option<Self> {
        let (low, high) = extent(values)?;
        Self::over(low..high, label)
    }

    /// Like [`Self::linear`], for negated values: shows the original values, with the smallest at the end.
    pub(super) fn negated(values: impl Iterator<Item = f64>, label: &str) -> Option<Self> {
        let mut axis = Self::linear(values, label)?;
        axis.texts = texts(axis.ticks.iter().map(|tick| -tick));
        Some(axis)
    }

    /// Like [`Self::linear`], for decimal logarithms, with ticks at 1, 2 and 5 of each decade.
    pub(super) fn logarithmic(logs: impl Iterator<Item = f64>, label: &str) -> Option<Self> {
        let (low, high) = extent(logs)?;
        let range = padded(low, high);
        let steps: &[f64] = match high - low {
            n_decades if n_decades > 3.0 => &[1.0],
            _ => &[1.0, 2.0, 5.0],
        };
        let decades = range.start.floor() as i32..=range.end.ceil() as i32;
        let ticks = decades.flat_map(|decade| {
            let of_step = move |step: &f64| step.log10() + f64::from(decade);
            steps.iter().map(of_step)
        });
        let ticks: Vec<f64> = ticks.filter(|tick| range.contains(tick)).collect();
        let text = |tick: &f64| texts(std::iter::once(10_f64.powf(*tick))).concat();
        Some(Self {
            texts: ticks.iter().map(text).collect(),
            ticks,
            range,
            label: label.to_owned(),
        })
    }

    fn over(range: Range<f64>, label: &str) -> Option<Self> {
        // The span of the greatest numbers overflows.
        let is_finite = (range.end - range.start).is_finite();
        let ticks = is_finite.then(|| RangedCoordf64::from(range.clone()).key_points(N_TICKS))?;
        Some(Self {
            texts: texts(ticks.iter().copied()),
            ticks,
            range,
            label: label.to_owned(),
        })
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            Vec::new()
        } else {
            self.ticks.clone()
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let mut texts = self.ticks.iter().zip(&self.texts);
        let text = texts.find(|(tick, _)| *tick == value);
        text.map(|(_, text)| text.clone()).unwrap_or_default()
    }
}

/// Draws both axes, then the result of `marks`, which receives a function from values to SVG coordinates.
///
/// `title` is the accessible name of the chart.
///
/// # Errors
/// [`Error::Data`] if plotters cannot draw the axes.
pub(super) fn chart(
    title: &str,
    x: &Axis,
    y: &Axis,
    marks: impl FnOnce(&dyn Fn(f64, f64) -> (i32, i32)) -> String,
) -> Result<String> {
    draw(title, x, y, marks)
        .map_err(|error| Error::Data(format!("the chart {title:?} cannot be drawn: {error}")))
}

fn draw(
    title: &str,
    x: &Axis,
    y: &Axis,
    marks: impl FnOnce(&dyn Fn(f64, f64) -> (i32, i32)) -> String,
) -> Result<String, Box<dyn StdError>> {
    let mut svg = String::new();
    let marks = {
        let root = SVGBackend::with_string(&mut svg, SIZE_PX).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(MARGIN_PX)
            .x_label_area_size(AXES_PX.1)
            .y_label_area_size(AXES_PX.0)
            .build_cartesian_2d(x.clone(), y.clone())?;
        // The page's own font; the style sheet sets its size.
        let face = ("inherit", 14);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(INK.0.mix(0.15))
            .axis_style(INK.0.mix(0.5))
            .label_style(face)
            .axis_desc_style(face)
            .x_desc(&x.label)
            .y_desc(&y.label)
            .draw()?;
        let marks = marks(&|x, y| chart.backend_coord(&(x, y)));
        root.present()?;
        marks
    };
    let (_, drawn) = svg.split_once(">\n").ok_or("there is no picture")?;
    let drawn = drawn.trim_end().trim_end_matches("</svg>");
    let (width, height) = SIZE_PX;
    Ok(format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n{}{marks}</svg>\n",
        escaped(title),
        drawn.replace(INK.1, "currentColor"),
    ))
}

/// Returns the minimum and maximum of the finite values, slightly widened if they are equal.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let bounds = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold(bounds, |(low, high), value| {
            (low.min(value), high.max(value))
        });
    let magnitude = low.abs().max(high.abs());
    match high - low {
        span if span < 0.0 => None,
        span if span > 1e-9 * magnitude => Some((low, high)),
        _ if magnitude > 0.0 => Some((low - 0.1 * magnitude, high + 0.1 * magnitude)),
        _ => Some((-1.0, 1.0)),
    }
}

/// Widens the range from `low` to `high` slightly.
fn padded(low: f64, high: f64) -> Range<f64> {
    let padding = PADDING * (high - low);
    low - padding..high + padding
}

/// Formats numbers, all with as many decimals as the one that needs the most.
fn texts(numbers: impl Iterator<Item = f64>) -> Vec<String> {
    let numbers: Vec<f64> = numbers.collect();
    let is_plain = |number: &f64| *number == 0.0 || (1e-4..1e6).contains(&number.abs());
    if !numbers
        .iter()
        .any(|number| *number != 0.0 && is_plain(number))
    {
        return numbers
            .iter()
            .map(|number| format!("{number:.1e}"))
            .collect();
    }
    let n_decimals = |number: &f64| {
        let text = format!("{number:.MAX_DECIMALS$}");
        let n_zeros = text.len() - text.trim_end_matches('0').len();
        MAX_DECIMALS.saturating_sub(n_zeros)
    };
    let n_decimals = numbers.iter().map(n_decimals).max().unwrap_or(0);
    let text = |&value: &f64| number(value, n_decimals);
    numbers.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_scales_and_has_the_ink_and_the_face_of_the_page() {
        let axis = |label| Axis::linear([0.0, 1.0].into_iter(), label).unwrap();
        let svg = chart("a < b", &axis("x"), &axis("y"), |_| "<g/>".into()).unwrap();
        let opening = "<svg viewBox=\"0 0 720 430\" role=\"img\" aria-label=\"a &lt; b\">\n";
        assert!(svg.starts_with(opening), "{svg}");
        assert!(svg.ends_with("<g/></svg>\n"), "{svg}");
        assert!(!svg.contains("#000000") && svg.contains("currentColor"));
        assert!(!svg.contains("font-family=\"sans"), "{svg}");
        assert_eq!(svg.matches("</svg>").count(), 1);
    }

    #[test]
    fn places_rise_with_values_and_those_of_negated_ones_fall() {
        let x = Axis::linear([0.0, 1.0].into_iter(), "").unwrap();
        let y = Axis::linear([0.0, 1.0].into_iter(), "").unwrap();
        chart("", &x, &y, |place| {
            let (low, high) = (place(0.0, 0.0), place(1.0, 1.0));
            assert!(low.0 < high.0 && low.1 > high.1, "{low:?} {high:?}");
            String::new()
        })
        .unwrap();
        let negated = Axis::negated([-0.25, -0.75].into_iter(), "").unwrap();
        assert!(negated.range.contains(&-0.75) && !negated.range.contains(&0.25));
        let ends = (
            negated.texts.first().unwrap(),
            negated.texts.last().unwrap(),
        );
        assert_eq!(ends, (&"0.7".to_owned(), &"0.3".to_owned()));
    }

    #[test]
    fn decades_are_divided_by_1_2_and_5() {
        let logs = [3.0_f64, 40.0].map(f64::log10);
        let axis = Axis::logarithmic(logs.into_iter(), "ms").unwrap();
        assert_eq!(axis.texts, ["5", "10", "20"]);
    }

    #[test]
    fn axes_need_finite_numbers_and_bear_equal_ones() {
        assert!(Axis::linear([f64::NAN].into_iter(), "").is_none());
        assert!(Axis::linear([f64::MIN, f64::MAX].into_iter(), "").is_none());
        for value in [0.0, 1.0, -3.0, 1e-12, 1e12] {
            let axis = || Axis::linear([value, value].into_iter(), "").unwrap();
            chart("", &axis(), &axis(), |place| {
                assert!(place(value, value).0 > 0);
                String::new()
            })
            .unwrap();
        }
    }

    #[test]
    fn ticks_have_as_many_digits_as_they_need() {
        let texts = |numbers: &[f64]| texts(numbers.iter().copied());
        assert_eq!(texts(&[0.1 + 0.2, -0.0, 0.25]), ["0.30", "0.00", "0.25"]);
        assert_eq!(texts(&[-10.0, 1500.0]), ["−10", "1500"]);
        assert_eq!(texts(&[2e-7, 4e-7]), ["2.0e-7", "4.0e-7"]);
    }
}
