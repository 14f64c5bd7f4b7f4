//! Mean curves of one measure, one line per row.

use std::collections::HashMap;
use std::fmt::Write;

use super::axes::{Axis, chart};
use super::text::{escaped, shown_name};
use crate::eval::summary::{Scored, Summary};
use vitscope_core::error::{Error, Result};

/// Hues of the lines in degrees, ordered so that neighbors differ strongly.
const HUES: [u16; 12] = [250, 30, 150, 330, 90, 200, 0, 120, 290, 60, 180, 310];
/// Dash patterns of controls, which have no hue.
const CONTROL_DASHES: [&str; 4] = ["2 3", "6 3", "9 3 2 3", "14 4"];

/// Renders the chart with its key; empty if no row has a curve.
///
/// # Errors
/// [`Error::Shape`] if a curve and the axis have different numbers of points.
pub(super) fn figure(summary: &Summary, keys: &Keys<'_>) -> Result<String> {
    let rows = ranked(summary).into_iter();
    let rows: Vec<&Scored> = rows.filter(|row| !row.points.is_empty()).collect();
    for row in &rows {
        if row.points.len() != summary.axis.len() {
            return Err(Error::Shape {
                expected: format!(
                    "{} points for {}, as on its axis",
                    summary.axis.len(),
                    row.name
                ),
                got: row.points.len().to_string(),
            });
        }
    }
    let values = rows.iter().flat_map(|row| row.points.iter().copied());
    let axes = Axis::tight(summary.axis.iter().copied(), summary.axis_name)
        .zip(Axis::linear(values, &summary.measure));
    let Some((x, y)) = axes else {
        return Ok(String::new());
    };
    let title = format!("Mean curves of {}, {}", summary.measure, summary.protocol);
    let svg = chart(&title, &x, &y, |place| {
        // The best rows are drawn on top.
        let rows = rows.iter().rev();
        rows.map(|row| line(row, &summary.axis, keys, place))
            .collect()
    })?;

    let measure = escaped(&summary.measure);
    let order = match summary.higher_is_better {
        Some(_) => ", best first",
        None => "",
    };
    let mut figure = format!(
        "<figure class=\"chart\">\n<figcaption><h3>{measure}</h3>\n<span class=\"soft\">Mean curve over images for \
         each row{order}. Point at a name to highlight its line.</span></figcaption>\n\
         <div class=\"plot\">\n{svg}</div>\n<ol class=\"key\">\n"
    );
    for row in rows {
        let _ = writeln!(
            figure,
            "<li class=\"row {}\"><svg viewBox=\"0 0 28 8\" aria-hidden=\"true\"><path d=\"M0,4H28\"/></svg>{}</li>",
            keys.class(row),
            shown_name(&row.name, row.control)
        );
    }
    figure += "</ol>\n</figure>\n";
    Ok(figure)
}

fn line(
    row: &Scored,
    axis: &[f64],
    keys: &Keys<'_>,
    place: &dyn Fn(f64, f64) -> (i32, i32),
) -> String {
    let mut path = String::new();
    let mut is_drawing = false;
    for (&x, &y) in axis.iter().zip(&row.points) {
        let is_finite = x.is_finite() && y.is_finite();
        if is_finite {
            let (x_px, y_px) = place(x, y);
            let command = if is_drawing { 'L' } else { 'M' };
            let _ = write!(path, "{command}{x_px},{y_px}");
        }
        is_drawing = is_finite;
    }
    format!(
        "<g class=\"row {}\"><title>{}</title><path d=\"{path}\"/></g>\n",
        keys.class(row),
        shown_name(&row.name, row.control)
    )
}

/// Line styles of the rows, the same in all charts.
pub(super) struct Keys<'a> {
    /// Position among methods, or among controls.
    places: HashMap<(&'a str, bool), usize>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(summaries: &'a [Summary]) -> Self {
        let mut places = HashMap::new();
        let mut n_known = [0, 0];
        for row in summaries.iter().flat_map(|summary| &summary.rows) {
            places
                .entry((row.name.as_str(), row.control))
                .or_insert_with(|| {
                    let next = &mut n_known[usize::from(row.control)];
                    *next += 1;
                    *next - 1
                });
        }
        Self { places }
    }

    /// Returns the name of the row's class in the style sheet.
    fn class(&self, row: &Scored) -> String {
        let place = self.places.get(&(row.name.as_str(), row.control));
        let kind = if row.control { 'c' } else { 'm' };
        format!("{kind}{}", place.unwrap_or(&0))
    }

    /// Returns the rules for all classes: hues first, then the other tone of each, then dashes; controls are gray and
    /// dashed.
    pub(super) fn style(&self) -> String {
        let n_controls = self
            .places
            .keys()
            .filter(|(_, is_control)| *is_control)
            .count();
        let n_methods = self.places.len() - n_controls;
        let mut style = String::new();
        for idx in 0..n_methods {
            let (hue, turn) = (HUES[idx % HUES.len()], idx / HUES.len());
            let tone = if turn % 2 == 0 { "deep" } else { "pale" };
            let dash = if turn < 2 { "none" } else { "10 3" };
            let _ = writeln!(
                style,
                ".m{idx} {{ --hue: {hue}; --tone: var(--{tone}); --dash: {dash}; }}"
            );
        }
        for idx in 0..n_controls {
            let dash = CONTROL_DASHES[idx % CONTROL_DASHES.len()];
            let _ = writeln!(
                style,
                ".c{idx} {{ --hue: 0; --chroma: 0; --tone: var(--pale); --dash: {dash}; }}"
            );
        }
        let methods = (0..n_methods).map(|idx| format!("m{idx}"));
        for class in methods.chain((0..n_controls).map(|idx| format!("c{idx}"))) {
            let _ = writeln!(
                style,
                ".chart:has(.{class}:hover) .row:not(.{class}) {{ opacity: .15; }}"
            );
        }
        style
    }
}

/// Returns the rows of a measure, best first if it has a direction; non-finite means come last.
pub(super) fn ranked(summary: &Summary) -> Vec<&Scored> {
    let mut rows: Vec<&Scored> = summary.rows.iter().collect();
    if let Some(higher_is_better) = summary.higher_is_better {
        let cost = |row: &Scored| match row.mean {
            mean if !mean.is_finite() => f64::INFINITY,
            mean if higher_is_better => -mean,
            mean => mean,
        };
        rows.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::tests::{scored, summary};
    use super::*;

    fn curves(axis: &[f64], points: &[&[f64]]) -> Result<String> {
        let rows = points.iter().enumerate().map(|(idx, points)| Scored {
            points: points.to_vec(),
            ..scored(&format!("row {idx}"), idx as f64)
        });
        let summary = Summary {
            axis: axis.to_vec(),
            ..summary("deletion", Some(false), rows.collect())
        };
        figure(&summary, &Keys::new(std::slice::from_ref(&summary)))
    }

    #[test]
    fn every_curve_is_a_line_and_an_entry_of_the_key_in_the_same_color() {
        let html = curves(&[0.0, 0.5, 1.0], &[&[1.0, 0.5, 0.0], &[1.0, 0.2, 0.0]]).unwrap();
        for (class, name) in [("m0", "row 0"), ("m1", "row 1")] {
            assert_eq!(html.matches(&format!("class=\"row {class}\"")).count(), 2);
            assert_eq!(html.matches(name).count(), 2, "{html}");
        }
    }

    #[test]
    fn what_is_not_finite_is_a_gap() {
        let points = [1.0, 0.5, f64::NAN, 0.25, 0.0];
        let html = curves(&[0.0, 0.25, 0.5, 0.75, 1.0], &[&points]).unwrap();
        let path = html.split("<path d=\"").nth(1).unwrap();
        let path = path.split('"').next().unwrap();
        assert_eq!(
            (path.matches('M').count(), path.matches('L').count()),
            (2, 2),
            "{path}"
        );
    }

    #[test]
    fn without_points_there_is_no_chart_and_too_few_are_refused() {
        assert_eq!(curves(&[], &[&[], &[]]).unwrap(), "");
        assert_eq!(curves(&[0.0, 1.0], &[&[f64::NAN, f64::NAN]]).unwrap(), "");
        assert!(matches!(
            curves(&[0.0, 1.0], &[&[1.0]]),
            Err(Error::Shape { .. })
        ));
    }

    #[test]
    fn a_row_has_one_color_on_the_whole_page_and_no_other_row_has_it() {
        let rows: Vec<Scored> = (0..30)
            .map(|idx| scored(&format!("row {idx}"), 0.5))
            .collect();
        let mut reversed = rows.clone();
        reversed.reverse();
        let summaries = [
            summary("a", None, rows.clone()),
            summary("b", None, reversed),
        ];
        let keys = Keys::new(&summaries);
        let style = keys.style();
        let mut looks: Vec<&str> = rows
            .iter()
            .map(|row| {
                let rule = style
                    .split(&format!(".{} {{", keys.class(row)))
                    .nth(1)
                    .unwrap();
                rule.split('}').next().unwrap()
            })
            .collect();
        looks.sort_unstable();
        looks.dedup();
        assert_eq!(looks.len(), 30);
    }
}
