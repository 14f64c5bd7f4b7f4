//! Results of one protocol: its table, its curves and the rows that differ.

use std::fmt::Write;

use super::curves::{self, Keys, ranked};
use super::text::{DASH, arrow, decimals, escaped, number, opened_region, shown_name};
use crate::eval::summary::{LEVEL, Pair, Scored, Summary};
use vitscope_core::error::Result;

/// Renders the section of one protocol.
pub(super) fn section(measures: &[&Summary], keys: &Keys<'_>) -> Result<String> {
    let mut body = table(measures);
    for &summary in measures {
        body += &curves::figure(summary, keys)?;
    }
    let differences: String = measures
        .iter()
        .map(|summary| differences(summary))
        .collect();
    if !differences.is_empty() {
        let _ = write!(body, "<h3>Significant differences</h3>\n{differences}");
    }
    Ok(body)
}

/// Renders one row per method, then one row per control; one column per measure.
fn table(measures: &[&Summary]) -> String {
    let mut names: Vec<(&str, bool)> = Vec::new();
    for row in measures.iter().flat_map(|summary| &summary.rows) {
        let name = (row.name.as_str(), row.control);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort_by_key(|&(_, is_control)| is_control);

    let mut table = opened_region(&format!(
        "Results for {}",
        measures.first().map_or("", |m| &m.protocol)
    ));
    table += "<table>\n<thead><tr><th scope=\"col\">method</th>";
    for summary in measures {
        let _ = write!(
            table,
            "<th scope=\"col\">{}{}<small>{}</small></th>",
            escaped(&summary.measure),
            arrow(summary.higher_is_better),
            images(summary)
        );
    }
    table += "</tr></thead>\n<tbody>\n";
    for (name, is_control) in names {
        let class = if is_control { " class=\"control\"" } else { "" };
        let _ = write!(
            table,
            "<tr{class}><th scope=\"row\">{}</th>",
            shown_name(name, is_control)
        );
        for summary in measures {
            let mut rows = summary.rows.iter();
            let row = rows.find(|row| row.name == name && row.control == is_control);
            let _ = write!(
                table,
                "<td>{}</td>",
                row.map_or(DASH.into(), |row| cell(summary, row))
            );
        }
        table += "</tr>\n";
    }
    table += "</tbody>\n</table>\n</div>\n";
    table + &settings(measures)
}

/// Renders mean, star and interval.
fn cell(summary: &Summary, row: &Scored) -> String {
    if !row.mean.is_finite() {
        return format!("<span class=\"number\">{DASH}</span>");
    }
    let n_decimals = decimals(summary.rows.iter().map(|row| row.mean));
    let mean = number(row.mean, n_decimals);
    let mean = if best(summary) == Some(row.mean) {
        format!("<strong>{mean}</strong>")
    } else {
        mean
    };
    let star = if summary.beats_controls(row) {
        "<abbr title=\"beats every control\">★</abbr>"
    } else {
        ""
    };
    let (low, high) = (number(row.low, n_decimals), number(row.high, n_decimals));
    format!(
        "<span class=\"number\">{mean}</span><span class=\"star\">{star}</span><small>[{low}, {high}]</small>"
    )
}

/// Returns the best mean of a measure that has a direction.
fn best(summary: &Summary) -> Option<f64> {
    let means = summary.rows.iter().map(|row| row.mean);
    let means = means.filter(|mean| mean.is_finite());
    if summary.higher_is_better? {
        means.max_by(f64::total_cmp)
    } else {
        means.min_by(f64::total_cmp)
    }
}

/// Describes the number of images behind the rows.
fn images(summary: &Summary) -> String {
    let counts = || summary.rows.iter().map(|row| row.images);
    match (counts().min(), counts().max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most} images"),
        (_, most) => format!("{} images", most.unwrap_or(0)),
    }
}

/// Renders the settings of the measures, only once if they are all equal.
fn settings(measures: &[&Summary]) -> String {
    let Some(first) = measures.first() else {
        return String::new();
    };
    if measures
        .iter()
        .all(|summary| summary.settings == first.settings)
    {
        return match first.settings.as_str() {
            "" => String::new(),
            alike => format!("<p class=\"soft\">{}</p>\n", escaped(alike)),
        };
    }
    let of_measure = |summary: &&Summary| {
        let (name, value) = (escaped(&summary.measure), escaped(&summary.settings));
        format!("<dt>{name}</dt><dd>{value}</dd>\n")
    };
    let all: String = measures.iter().map(of_measure).collect();
    format!("<dl class=\"soft\">\n{all}</dl>\n")
}

/// Renders the significantly different pairs of rows in a collapsed region.
fn differences(summary: &Summary) -> String {
    let differ = summary.pairs.iter().filter(|pair| pair.p < LEVEL);
    let mut differ: Vec<&Pair> = differ.collect();
    if summary.pairs.is_empty() {
        return String::new();
    }
    differ.sort_by(|a, b| a.p.total_cmp(&b.p));
    let measure = escaped(&summary.measure);
    let (n_differ, n_pairs) = (differ.len(), summary.pairs.len());
    let found =
        format!("{measure}: {n_differ} of {n_pairs} pairs differ, p&nbsp;&lt;&nbsp;{LEVEL}");
    if differ.is_empty() {
        return format!("<p>{found}</p>\n");
    }
    let name_of = |name: &str| {
        let is_control = summary
            .rows
            .iter()
            .any(|row| row.control && row.name == name);
        shown_name(name, is_control)
    };
    let mut list = format!("<details>\n<summary>{found}</summary>\n");
    list += &opened_region(&format!("Pairs that differ in {}", summary.measure));
    list += "<table>\n<thead><tr><th scope=\"col\">row</th><th scope=\"col\">is better than</th></tr></thead>\n\
             <tbody>\n";
    for row in ranked(summary) {
        let worse: Vec<(String, String)> = differ
            .iter()
            .filter(|pair| pair.better == row.name)
            .map(|pair| (p_text(pair.p), name_of(&pair.worse)))
            .collect();
        let alike = worse.chunk_by(|a, b| a.0 == b.0).map(|alike| {
            let names: Vec<&str> = alike.iter().map(|(_, name)| name.as_str()).collect();
            format!("{} <small>{}</small>", names.join(", "), alike[0].0)
        });
        let cell = alike.collect::<Vec<_>>().join("; ");
        if !cell.is_empty() {
            let name = shown_name(&row.name, row.control);
            let _ = writeln!(
                list,
                "<tr><th scope=\"row\">{name}</th><td>{cell}</td></tr>"
            );
        }
    }
    list + "</tbody>\n</table>\n</div>\n</details>\n"
}

fn p_text(p: f64) -> String {
    if p < 0.001 {
        "p &lt; 0.001".into()
    } else {
        format!("p = {p:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bare, body, control, pair, scored, summary};
    use super::*;

    #[test]
    fn pairs_that_differ_are_listed_by_p_and_others_are_not() {
        let rows = vec![scored("a", 0.9), scored("b", 0.8), control("x", 0.1)];
        let pairs = vec![
            pair("a", "b", 0.04),
            pair("a", "x", 0.0001),
            pair("b", "x", 0.05),
            pair("b", "x", f64::NAN),
        ];
        let summary = Summary {
            pairs,
            ..summary("m", Some(true), rows)
        };
        let list = differences(&summary);
        assert!(
            list.contains("m: 2 of 4 pairs differ, p&nbsp;&lt;&nbsp;0.05"),
            "{list}"
        );
        let cell = "(x) <small>p &lt; 0.001</small>; b <small>p = 0.040</small></td>";
        assert!(list.contains(cell), "{list}");
        assert_eq!(list.matches("scope=\"row\"").count(), 1);
    }

    #[test]
    fn a_star_is_for_those_who_beat_all_controls() {
        let rows = vec![
            scored("a", 0.9),
            scored("b", 0.8),
            control("x", 0.1),
            control("y", 0.2),
        ];
        let summary = Summary {
            pairs: vec![
                pair("a", "x", 0.01),
                pair("a", "y", 0.01),
                pair("b", "x", 0.01),
                pair("b", "y", 0.2),
            ],
            ..summary("m", Some(true), rows)
        };
        let html = bare(&[summary]);
        let row = |name| {
            html.split(&format!("<tr><th scope=\"row\">{name}</th>"))
                .nth(1)
                .unwrap()
        };
        let star = |name| row(name).split("</tr>").next().unwrap().contains('★');
        assert!(star("a") && !star("b"), "{html}");
    }

    #[test]
    fn settings_are_told_once_where_they_are_alike() {
        let first = summary("a", None, Vec::new());
        let second = Summary {
            settings: "black".into(),
            ..summary("b", None, Vec::new())
        };
        assert_eq!(
            bare(&[first.clone(), summary("c", None, Vec::new())])
                .matches("blurred")
                .count(),
            1
        );
        assert!(bare(&[first, second]).contains("<dt>b</dt><dd>black</dd>"));
    }

    #[test]
    fn each_protocol_has_a_table_and_a_row_that_it_lacks_is_a_dash() {
        let other = Summary {
            protocol: "chefer".into(),
            ..summary("positive", None, vec![scored("lrp", 0.5)])
        };
        let first = summary("deletion", None, vec![scored("tis", 0.5)]);
        let second = summary("insertion", None, vec![scored("rise", 0.5)]);
        let html = bare(&[first, other, second]);
        assert_eq!(html.matches("<table>").count(), 2);
        assert_eq!(html.matches("<td>–</td>").count(), 2, "{html}");
        assert!(
            !html.contains("<strong>"),
            "what has no direction has no best"
        );
    }

    #[test]
    fn every_row_has_its_number_and_interval_in_every_measure_once() {
        let rows = |shift: f64| {
            let control = control("random", 0.75 + shift);
            vec![
                control,
                scored("tis", 0.25 + shift),
                scored("rise", 0.5 + shift),
            ]
        };
        let summaries = [
            summary("deletion", Some(false), rows(0.0)),
            summary("insertion", Some(true), rows(0.125)),
        ];
        let html = bare(&summaries);
        assert_eq!(html.matches("<table>").count(), 1, "one table a protocol");
        for number in ["0.250", "0.500", "0.750", "0.375", "0.625", "0.875"] {
            assert_eq!(
                body(&html).matches(&format!(">{number}<")).count(),
                1,
                "{number}"
            );
        }
        assert!(html.contains("<strong>0.250</strong>") && html.contains("<strong>0.875</strong>"));
        assert_eq!(html.matches("<strong>").count(), 2);
        assert!(html.contains("[0.188, 0.312]"), "{html}");
        let places = ["tis", "rise", "(random)"];
        let places = places.map(|name| {
            html.find(&format!("<th scope=\"row\">{name}</th>"))
                .unwrap()
        });
        assert!(places.is_sorted(), "controls come last");
        assert!(html.contains("deletion <abbr title=\"lower is better\">↓</abbr><small>50 images"));
        assert!(html.contains("insertion <abbr title=\"higher is better\">↑</abbr>"));
    }
}
