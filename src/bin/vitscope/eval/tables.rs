//! Results as text.

use std::fmt::Write as _;

use vitscope::eval::suite::Measure;
use vitscope::eval::summary::{Scored, Summary};
use vitscope_lab::eval::comparison::Row;

/// Returns each protocol once, in order.
pub(super) fn protocols(summaries: &[Summary]) -> Vec<&str> {
    let mut protocols: Vec<&str> = Vec::new();
    for summary in summaries {
        if !protocols.contains(&summary.protocol.as_str()) {
            protocols.push(&summary.protocol);
        }
    }
    protocols
}

/// Formats the measures of one protocol, one row per method.
pub(super) fn table(protocol: &str, summaries: &[Summary]) -> String {
    let own: Vec<&Summary> = summaries
        .iter()
        .filter(|summary| summary.protocol == protocol)
        .collect();
    let mut text = format!("{protocol:22}");
    for summary in &own {
        let arrow = match summary.higher_is_better {
            Some(true) => '↑',
            Some(false) => '↓',
            None => ' ',
        };
        let _ = write!(text, "  {:>24} {arrow}", summary.measure);
    }
    let names = own.first().map_or(&[][..], |summary| &summary.rows);
    for (place, Scored { name, control, .. }) in names.iter().enumerate() {
        let shown = match control {
            true => format!("({name})"),
            false => name.clone(),
        };
        let _ = write!(text, "\n{shown:22}");
        for summary in &own {
            let row = &summary.rows[place];
            let star = if summary.beats_controls(row) {
                '*'
            } else {
                ' '
            };
            let _ = write!(text, "  {:>24} {star}", interval(row));
        }
    }
    text.push('\n');
    text
}

/// Formats mean and interval.
fn interval(row: &Scored) -> String {
    let Scored {
        mean, low, high, ..
    } = row;
    if !mean.is_finite() {
        return "–".into();
    }
    let digits = if mean.abs() < 10.0 { 4 } else { 2 };
    format!("{mean:.digits$} ({low:.digits$}–{high:.digits$})")
}

/// Formats a CSV file with a line for each picture, method and measure that has a value.
pub(super) fn csv(measures: &[Measure], rows: &[Row]) -> String {
    let mut text = String::from("image,method,protocol,measure,value\n");
    for row in rows {
        for (place, measure) in measures.iter().enumerate() {
            for (image, score) in row.of_measure(place) {
                if let Some(value) = score.value {
                    let (name, protocol, measure) = (&row.name, &measure.protocol, &measure.name);
                    let _ = writeln!(text, "{image},{name},{protocol},{measure},{value}");
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope::eval::suite::{Score, Statistic};

    fn measure(protocol: &str) -> Measure {
        Measure {
            protocol: protocol.into(),
            name: "hits".into(),
            higher_is_better: Some(true),
            settings: String::new(),
            axis: Vec::new(),
            axis_name: "",
            statistic: Statistic::Mean,
        }
    }

    #[test]
    fn a_measure_without_a_value_is_a_dash_and_no_line() {
        let measures = [measure("a"), measure("b")];
        let rows = [Row {
            name: "rollout".into(),
            is_control: false,
            scores: vec![(7, vec![Score::from(0.5), Score::from(None)])],
        }];
        let summaries: Vec<Summary> = (measures.iter().enumerate())
            .map(|(place, measure)| Summary::new(place, measure, &rows, 0).unwrap())
            .collect();
        assert_eq!(protocols(&summaries), ["a", "b"]);
        assert!(table("a", &summaries).contains("0.5000 (0.5000–0.5000)"));
        assert!(table("b", &summaries).contains('–'));
        assert_eq!(
            csv(&measures, &rows),
            "image,method,protocol,measure,value\n7,rollout,a,hits,0.5\n"
        );
    }
}
