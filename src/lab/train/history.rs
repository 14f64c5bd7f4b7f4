//! Record of a run: a table of measurements, saved as CSV and as a plot of its curves.

use std::path::Path;

use plotters::prelude::*;

use vitscope_core::error::{Error, Result};
use vitscope_core::files::write_whole;

/// Width and height of one panel in pixels; each curve has its own panel.
const PANEL_PX: (u32, u32) = (960, 240);
/// Name by which plotters knows the built-in font.
const FONT: &str = "hack";
/// Colors of the lines, one per label.
const COLORS: [RGBColor; 4] = [BLUE, RED, RGBColor(0, 140, 60), RGBColor(150, 90, 0)];

/// Steps and values of one line.
type Points = Vec<(u64, f64)>;

/// Measured values by step.
#[derive(Clone, Debug, Default)]
pub struct History {
    names: Vec<&'static str>,
    rows: Vec<(u64, Vec<f64>)>,
}

impl History {
    /// Creates an empty table with these columns.
    pub fn new(names: &[&'static str]) -> Self {
        Self {
            names: names.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds the measurements at `step`; `NaN` marks missing values.
    pub fn push(&mut self, step: u64, values: &[f64]) {
        self.rows.push((step, values.to_vec()));
    }

    /// Returns the measured values of one column, with their steps.
    pub fn column(&self, name: &str) -> Vec<(u64, f64)> {
        let Some(column_idx) = self.names.iter().position(|known| *known == name) else {
            return Vec::new();
        };
        self.rows
            .iter()
            .filter_map(|(step, values)| Some((*step, *values.get(column_idx)?)))
            .filter(|(_, value)| value.is_finite())
            .collect()
    }

    /// Reads the rows up to `last_step` of a table written by [`History::save_csv`]; empty if the file does not exist.
    ///
    /// # Errors
    /// Fails if the file has other columns or is not a table of numbers.
    pub fn load_csv(names: &[&'static str], path: &Path, last_step: u64) -> Result<Self> {
        let mut history = Self::new(names);
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(history),
            Err(error) => return Err(Error::io(path, error)),
        };
        let broken =
            |line: &str| Error::Config(format!("{line:?} is not a row of this run: {path:?}"));
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        if header != history.header() {
            return Err(broken(header));
        }
        for line in lines {
            let mut cells = line.split(',');
            let step: u64 = cells
                .next()
                .and_then(|cell| cell.parse().ok())
                .ok_or_else(|| broken(line))?;
            let values = cells
                .map(|cell| match cell {
                    "" => Ok(f64::NAN),
                    number => number.parse(),
                })
                .collect::<Result<Vec<f64>, _>>()
                .map_err(|_| broken(line))?;
            if step <= last_step {
                history.rows.push((step, values));
            }
        }
        Ok(history)
    }

    /// Writes the table, with an empty cell for each missing value.
    ///
    /// # Errors
    /// Fails if `path` cannot be written.
    pub fn save_csv(&self, path: &Path) -> Result<()> {
        let mut text = self.header() + "\n";
        for (step, values) in &self.rows {
            text += &step.to_string();
            for value in values {
                text.push(',');
                if value.is_finite() {
                    text += &value.to_string();
                }
            }
            text.push('\n');
        }
        write_whole(path, text.as_bytes())
    }

    /// Draws one panel per column.
    ///
    /// # Errors
    /// Fails if `path` cannot be written.
    pub fn save_png(&self, path: &Path, title: &str) -> Result<()> {
        Self::save_comparison_png(&[("", self.clone())], path, title)
    }

    fn header(&self) -> String {
        let mut header = "step".to_owned();
        for name in &self.names {
            header.push(',');
            header += name;
        }
        header
    }

    /// Draws one panel per column with a line for each run; runs with the same label share a color.
    ///
    /// # Errors
    /// Fails if `path` cannot be written.
    pub fn save_comparison_png(runs: &[(&str, Self)], path: &Path, title: &str) -> Result<()> {
        Self::draw(runs, path, title)
            .map_err(|error| Error::Config(format!("cannot draw the curves, {error}: {path:?}")))
    }

    fn draw(
        runs: &[(&str, Self)],
        path: &Path,
        title: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        plotters::style::register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
            .map_err(|_| "the built-in face is unreadable")?;
        let names = runs.first().map_or(&[][..], |(_, first)| &first.names);
        let columns: Vec<(&str, Vec<Points>)> = names
            .iter()
            .map(|name| {
                (
                    *name,
                    runs.iter().map(|(_, run)| run.column(name)).collect(),
                )
            })
            .filter(|(_, lines): &(_, Vec<Points>)| lines.iter().any(|line| !line.is_empty()))
            .collect();
        let mut labels: Vec<&str> = runs.iter().map(|(label, _)| *label).collect();
        labels.dedup();
        let color = |label: &str| {
            let index = labels.iter().position(|known| *known == label);
            COLORS[index.unwrap_or(0) % COLORS.len()]
        };
        let n_panels = columns.len().max(1);
        let size = (PANEL_PX.0, PANEL_PX.1 * n_panels as u32);
        let root = BitMapBackend::new(path, size).into_drawing_area();
        root.fill(&WHITE)?;
        let panels = root.split_evenly((n_panels, 1));
        for (panel_idx, ((name, lines), panel)) in columns.iter().zip(&panels).enumerate() {
            let points = || lines.iter().flatten();
            let last_step = points().map(|(step, _)| *step).max().unwrap_or(1).max(1);
            let bounds = (f64::MAX, f64::MIN);
            let (low, high) = points().fold(bounds, |(low, high), (_, value)| {
                (low.min(*value), high.max(*value))
            });
            let margin = ((high - low) * 0.05).max(1e-6);
            let caption = if panel_idx == 0 {
                format!("{title}: {name}")
            } else {
                (*name).to_string()
            };
            let mut chart = ChartBuilder::on(panel)
                .caption(caption, (FONT, 18))
                .margin(8)
                .x_label_area_size(28)
                .y_label_area_size(64)
                .build_cartesian_2d(0..last_step, low - margin..high + margin)?;
            chart
                .configure_mesh()
                .light_line_style(WHITE)
                .label_style((FONT, 12))
                .draw()?;
            for ((label, _), line) in runs.iter().zip(lines) {
                let color = color(label);
                let series = LineSeries::new(line.iter().copied(), &color);
                chart.draw_series(series)?;
            }
            if labels.len() > 1 {
                for label in &labels {
                    let color = color(label);
                    chart
                        .draw_series(LineSeries::new(std::iter::empty(), &color))?
                        .label(*label)
                        .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
                }
                chart
                    .configure_series_labels()
                    .label_font((FONT, 12))
                    .background_style(WHITE)
                    .border_style(BLACK)
                    .draw()?;
            }
        }
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_read_back_up_to_a_step_is_the_same_up_to_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.csv");
        let mut history = History::new(&["loss", "accuracy"]);
        history.push(1, &[0.5, f64::NAN]);
        history.push(2, &[0.25, 0.75]);
        history.push(3, &[0.125, 1.0]);
        history.save_csv(&path).unwrap();
        let back = History::load_csv(&["loss", "accuracy"], &path, 2).unwrap();
        assert_eq!(back.column("loss"), [(1, 0.5), (2, 0.25)]);
        assert_eq!(back.column("accuracy"), [(2, 0.75)]);
    }

    #[test]
    fn curves_become_a_picture_with_a_panel_for_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curve.png");
        let mut history = History::new(&["loss", "accuracy"]);
        (1..10).for_each(|step| history.push(step, &[1.0 / step as f64, step as f64]));
        history.save_png(&path, "a run").unwrap();
        let picture = image::open(&path).unwrap();
        assert_eq!((picture.width(), picture.height()), (960, 480));
    }
}
