//! Speed against quality: every method plotted by time and score.

use std::fmt::Write;

use super::Speed;
use super::axes::{Axis, PLOT_PX, chart};
use super::text::{arrow, decimals, escaped, number, shown_name};
use crate::eval::summary::{Scored, Summary};
use vitscope_core::error::Result;

/// Height of a label's box: the style sheet sets labels in 11 px.
const LABEL_HEIGHT_PX: i32 = 13;
const LETTER_WIDTH_PX: f64 = 6.3;
/// Side of a point's box.
const POINT_PX: i32 = 9;
/// Maximum number of steps by which a label moves up or down from its point.
const MAX_RISE: i32 = 14;

/// A row with a score and a time.
struct Point<'a> {
    row: &'a Scored,
    ms: f64,
    on_front: bool,
}

/// Returns the chart of one measure and its Pareto front as text; empty if the measure has no direction or no method
/// has both a score and a time.
///
/// # Errors
/// As for [`chart`].
pub(super) fn figure(summary: &Summary, speeds: &[Speed]) -> Result<String> {
    let Some(higher_is_better) = summary.higher_is_better else {
        return Ok(String::new());
    };
    let points = points(summary, speeds, higher_is_better);
    // Better values are higher up.
    let height = |row: &Scored| {
        if higher_is_better {
            row.mean
        } else {
            -row.mean
        }
    };
    let heights = points.iter().map(|point| height(point.row));
    let y = if higher_is_better {
        Axis::linear(heights, &format!("{} ↑", summary.measure))
    } else {
        Axis::negated(heights, &format!("{} ↓ (axis reversed)", summary.measure))
    };
    let x = Axis::logarithmic(points.iter().map(|point| point.ms.log10()), "ms per image");
    let front: Vec<&Point<'_>> = points.iter().filter(|point| point.on_front).collect();
    let (Some((x, y)), false) = (x.zip(y), front.is_empty()) else {
        return Ok(String::new());
    };
    let title = format!("{} against time, {}", summary.measure, summary.protocol);
    let svg = chart(&title, &x, &y, |place| {
        let placed = points.iter();
        let placed: Vec<(&Point<'_>, (i32, i32))> = placed
            .map(|point| (point, place(point.ms.log10(), height(point.row))))
            .collect();
        marks(&placed)
    })?;

    let n_decimals = decimals(front.iter().map(|point| point.row.mean));
    let mut figure = format!(
        "<figure class=\"chart\">\n<figcaption><h3>{}{} <span class=\"soft\">{}</span></h3></figcaption>\n\
         <div class=\"plot\">\n{svg}</div>\n<div class=\"front\">\n<p>On the Pareto front, where no other method is \
         both faster and better:</p>\n<table>\n<tbody>\n",
        escaped(&summary.measure),
        arrow(summary.higher_is_better),
        escaped(&summary.protocol),
    );
    for point in front {
        let _ = writeln!(
            figure,
            "<tr><th scope=\"row\">{}</th><td>{} ms</td><td>{}</td></tr>",
            escaped(&point.row.name),
            milliseconds(point.ms),
            number(point.row.mean, n_decimals)
        );
    }
    figure += "</tbody>\n</table>\n</div>\n</figure>\n";
    Ok(figure)
}

/// Formats a time with three significant digits.
pub(super) fn milliseconds(ms: f64) -> String {
    let n_decimals = decimals([ms].into_iter());
    number(ms, n_decimals.saturating_sub(usize::from(ms >= 1.0)))
}

/// Returns rows with a finite score and a positive time, fastest first.
fn points<'a>(summary: &'a Summary, speeds: &[Speed], higher_is_better: bool) -> Vec<Point<'a>> {
    let time_of = |row: &Scored| {
        let speed = speeds.iter().find(|speed| speed.name == row.name)?;
        (speed.ms.is_finite() && speed.ms > 0.0).then_some(speed.ms)
    };
    let rows = summary.rows.iter().filter(|row| row.mean.is_finite());
    let timed: Vec<(&Scored, f64)> = rows.filter_map(|row| Some((row, time_of(row)?))).collect();
    // A control is not a method: it explains nothing, however fast.
    let methods: Vec<(f64, f64)> = timed
        .iter()
        .filter(|(row, _)| !row.control)
        .map(|&(row, ms)| {
            (
                ms,
                if higher_is_better {
                    row.mean
                } else {
                    -row.mean
                },
            )
        })
        .collect();
    let mut on_front = pareto_front(&methods).into_iter();
    let mut points: Vec<Point<'_>> = timed
        .into_iter()
        .map(|(row, ms)| Point {
            row,
            ms,
            on_front: !row.control && on_front.next().unwrap_or_default(),
        })
        .collect();
    points.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    points
}

/// Marks the Pareto-optimal (cost, gain) pairs: no other pair has at most the same cost and at least the same gain with
/// one of them strictly better.
fn pareto_front(choices: &[(f64, f64)]) -> Vec<bool> {
    let dominates = |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 >= b.1 && a != b;
    let is_optimal = |choice| !choices.iter().any(|other| dominates(other, choice));
    choices.iter().map(is_optimal).collect()
}

/// A position in the chart in pixels.
type Place = (i32, i32);

/// Draws the points, the staircase line of the front and a label for each point.
fn marks(placed: &[(&Point<'_>, Place)]) -> String {
    let front = placed.iter().filter(|(point, _)| point.on_front);
    let corners = stairs(front.map(|&(_, place)| place));
    let mut marks = String::from("<polyline class=\"line\" points=\"");
    for (x, y) in &corners {
        let _ = write!(marks, "{x},{y} ");
    }
    marks += "\"/>\n";
    let points = placed.iter();
    let mut taken: Vec<Area> = points
        .map(|&(_, place)| Area::around(place, POINT_PX))
        .collect();
    taken.extend(corners.windows(2).map(|ends| Area::along(ends[0], ends[1])));
    let mut labels = String::new();
    // Labels of the front are placed first.
    let (front, others): (Vec<_>, Vec<_>) = placed.iter().partition(|(point, _)| point.on_front);
    for &(point, (x, y)) in front.into_iter().chain(others) {
        let name = shown_name(&point.row.name, point.row.control);
        let n_letters = point.row.name.chars().count() + 2 * usize::from(point.row.control);
        let label = Label::beside((x, y), n_letters, &taken);
        if label.is_far {
            let (to_x, to_y) = label.area.nearest((x, y));
            let _ = writeln!(
                marks,
                "<line class=\"leader\" x1=\"{x}\" y1=\"{y}\" x2=\"{to_x}\" y2=\"{to_y}\"/>"
            );
        }
        let _ = writeln!(
            marks,
            "<circle class=\"{}\" cx=\"{x}\" cy=\"{y}\" r=\"4\"><title>{name}: {} ms, {}</title></circle>",
            if point.on_front { "best" } else { "other" },
            milliseconds(point.ms),
            number(point.row.mean, decimals([point.row.mean].into_iter())),
        );
        let (anchor, text_x) = match label.side {
            Side::Right => ("start", label.area.left),
            Side::Middle => ("middle", x),
            Side::Left => ("end", label.area.left + label.area.width),
        };
        let _ = writeln!(
            labels,
            "<text class=\"{}\" text-anchor=\"{anchor}\" x=\"{text_x}\" y=\"{}\">{name}</text>",
            if point.on_front { "label on" } else { "label" },
            label.area.top + LABEL_HEIGHT_PX - 3,
        );
        taken.push(label.area);
    }
    marks + &labels
}

/// Returns the corners of a staircase line: level from each position to the x of the next, then up to it. All that the
/// positions dominate lies below the line.
fn stairs(places: impl Iterator<Item = Place>) -> Vec<Place> {
    let mut corners: Vec<Place> = Vec::new();
    for (x, y) in places {
        if let Some(&(_, level)) = corners.last() {
            corners.push((x, level));
        }
        corners.push((x, y));
    }
    corners
}

/// Side of its point on which a label is placed.
#[derive(Clone, Copy)]
enum Side {
    Right,
    Left,
    Middle,
}

/// Placement of a label.
struct Label {
    area: Area,
    side: Side,
    /// True if the label needs a leader line to its point.
    is_far: bool,
}

impl Label {
    /// Returns the free position nearest to a point inside the plot, or a position beside the point if none is free.
    fn beside(point: Place, n_letters: usize, taken: &[Area]) -> Self {
        let width = (n_letters as f64 * LETTER_WIDTH_PX).ceil() as i32;
        let at = |side: Side, rise: i32| {
            let left = match side {
                Side::Right => point.0 + POINT_PX,
                Side::Left => point.0 - POINT_PX - width,
                Side::Middle => point.0 - width / 2,
            };
            Self {
                area: Area {
                    left,
                    top: point.1 - rise - LABEL_HEIGHT_PX / 2,
                    width,
                    height: LABEL_HEIGHT_PX,
                },
                side,
                is_far: rise.abs() > LABEL_HEIGHT_PX,
            }
        };
        let rises = (0..=MAX_RISE).flat_map(|n| [n * LABEL_HEIGHT_PX, -n * LABEL_HEIGHT_PX]);
        let sides = [Side::Right, Side::Left, Side::Middle];
        let mut labels = rises.flat_map(|rise| sides.map(|side| at(side, rise)));
        let is_free = |label: &Self| {
            label.area.is_in_plot() && !taken.iter().any(|other| label.area.meets(other))
        };
        labels.find(is_free).unwrap_or_else(|| at(Side::Right, 0))
    }
}

/// A rectangle in the chart.
struct Area {
    left: i32,
    top: i32,
    width: i32,
    height: i32,
}

impl Area {
    fn around((x, y): Place, edge_px: i32) -> Self {
        Self {
            left: x - edge_px / 2,
            top: y - edge_px / 2,
            width: edge_px,
            height: edge_px,
        }
    }

    /// Returns the area covered by a horizontal or vertical line.
    fn along(from: Place, to: Place) -> Self {
        Self {
            left: from.0.min(to.0) - 1,
            top: from.1.min(to.1) - 1,
            width: (to.0 - from.0).abs() + 2,
            height: (to.1 - from.1).abs() + 2,
        }
    }

    fn is_in_plot(&self) -> bool {
        let (x, y) = PLOT_PX;
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        x.start <= self.left && right <= x.end && y.start <= self.top && bottom <= y.end
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.left + other.width
            && other.left < self.left + self.width
            && self.top < other.top + other.height
            && other.top < self.top + self.height
    }

    fn nearest(&self, (x, y): Place) -> Place {
        (
            x.clamp(self.left, self.left + self.width),
            y.clamp(self.top, self.top + self.height),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{scored, summary};
    use super::*;

    fn speeds(ms: &[(&str, f64)]) -> Vec<Speed> {
        let of = |&(name, ms): &(&str, f64)| Speed {
            name: name.into(),
            ms,
        };
        ms.iter().map(of).collect()
    }

    /// Returns the names on the front, fastest first.
    fn front(higher_is_better: bool, rows: &[(&str, f64, f64)]) -> Vec<String> {
        let scores = rows.iter().map(|&(name, _, mean)| scored(name, mean));
        let summary = summary("m", Some(higher_is_better), scores.collect());
        let times: Vec<(&str, f64)> = rows.iter().map(|&(name, ms, _)| (name, ms)).collect();
        let points = points(&summary, &speeds(&times), higher_is_better);
        let on_front = points.iter().filter(|point| point.on_front);
        on_front.map(|point| point.row.name.clone()).collect()
    }

    #[test]
    fn the_front_is_what_is_not_both_slower_and_worse() {
        let rows = [
            ("slow", 90.0, 0.9),
            ("middle", 20.0, 0.8),
            ("waste", 50.0, 0.7),
            ("fast", 1.0, 0.1),
        ];
        assert_eq!(front(true, &rows), ["fast", "middle", "slow"]);
        // The fastest one is also the best.
        assert_eq!(front(false, &rows), ["fast"]);
        let reversed = rows.map(|(name, ms, mean)| (name, ms, -mean));
        assert_eq!(front(false, &reversed), ["fast", "middle", "slow"]);
    }

    #[test]
    fn of_equals_in_one_the_better_in_the_other_is_on_the_front_and_twins_both_are() {
        let rows = [("a", 1.0, 0.5), ("b", 1.0, 0.6), ("c", 2.0, 0.6)];
        assert_eq!(front(true, &rows), ["b"]);
        assert_eq!(front(false, &rows), ["a"]);
        assert_eq!(front(true, &[("a", 1.0, 0.5), ("b", 1.0, 0.5)]), ["a", "b"]);
    }

    #[test]
    fn controls_and_what_is_not_finite_are_not_on_the_front() {
        let nan = f64::NAN;
        let rows = [
            ("a", nan, 0.9),
            ("b", 1.0, nan),
            ("c", 0.0, 0.9),
            ("d", 9.0, 0.1),
        ];
        assert_eq!(front(true, &rows), ["d"]);
        let control = Scored {
            control: true,
            ..scored("random", 0.9)
        };
        let summary = summary("m", Some(true), vec![control, scored("a", 0.5)]);
        let html = figure(&summary, &speeds(&[("random", 0.1), ("a", 3.0)])).unwrap();
        let on_front = "<tr><th scope=\"row\">a</th><td>3.00 ms</td><td>0.500</td></tr>";
        assert!(html.contains(on_front), "{html}");
        assert_eq!(html.matches("<tr>").count(), 1);
        assert_eq!(html.matches("class=\"best\"").count(), 1);
        assert_eq!(html.matches("class=\"other\"").count(), 1);
        assert!(html.contains(">(random)</text>"), "{html}");
    }

    #[test]
    fn better_is_up_in_either_direction() {
        for higher_is_better in [true, false] {
            let rows = vec![scored("low", 0.1), scored("high", 0.9)];
            let summary = summary("m", Some(higher_is_better), rows);
            let svg = figure(&summary, &speeds(&[("low", 1.0), ("high", 9.0)])).unwrap();
            let height = |name: &str| -> i32 {
                let end = svg.find(&format!("<title>{name}:")).unwrap();
                let from = svg[..end].rfind("cy=\"").unwrap() + 4;
                svg[from..].split('"').next().unwrap().parse().unwrap()
            };
            assert_eq!(height("high") < height("low"), higher_is_better, "{svg}");
        }
    }

    #[test]
    fn without_direction_or_times_there_is_no_chart() {
        let rows = || vec![scored("a", 0.5)];
        let times = speeds(&[("a", 1.0)]);
        assert_eq!(figure(&summary("m", None, rows()), &times).unwrap(), "");
        assert_eq!(figure(&summary("m", Some(true), rows()), &[]).unwrap(), "");
        assert_ne!(
            figure(&summary("m", Some(true), rows()), &times).unwrap(),
            ""
        );
    }

    #[test]
    fn times_have_three_digits() {
        let texts = [134.25, 12.345, 3.614, 0.3614, f64::NAN].map(milliseconds);
        assert_eq!(texts, ["134", "12.3", "3.61", "0.361", "–"]);
    }

    #[test]
    fn the_front_is_drawn_as_stairs() {
        let corners = stairs([(0, 9), (4, 5), (7, 1)].into_iter());
        assert_eq!(corners, [(0, 9), (4, 9), (4, 5), (7, 5), (7, 1)]);
    }

    #[test]
    fn names_meet_neither_points_nor_each_other() {
        let mut taken: Vec<Area> = (0..6)
            .map(|n| Area::around((300 + 4 * n, 200), POINT_PX))
            .collect();
        for n in 0..6 {
            let label = Label::beside((300 + 4 * n, 200), 9, &taken);
            assert!(label.area.is_in_plot());
            assert!(!taken.iter().any(|other| label.area.meets(other)));
            taken.push(label.area);
        }
    }
}
