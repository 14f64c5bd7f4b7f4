//! The page of an evaluation: a self-contained HTML file to view, print and share.
//!
//! All content, including images, is embedded, and the page works without scripts. This module does no file I/O.
//!
//! | part | where |
//! |---|---|
//! | settings, times, notes | here |
//! | tables and tests | `results` |
//! | mean curves | `curves` |
//! | time against score | `pareto` |
//! | axes of both | `axes` |
//! | example images | `pictures` |
//! | names and numbers | `text` |

mod axes;
mod curves;
mod pareto;
mod pictures;
mod results;
mod text;

use std::fmt::Write;

use image::RgbImage;

use self::curves::Keys;
pub(crate) use self::pictures::{data_uri, png};
pub(crate) use self::text::escaped;
use super::summary::Summary;
use vitscope_core::error::Result;

/// Style sheet of the page.
const STYLE: &str = include_str!("page.css");
/// Explanations of the numbers on the page.
const NOTES: &str = "<ul>
<li>Numbers are means over images unless a measure’s settings state otherwise. Brackets contain 95 % \
confidence intervals from a percentile bootstrap over images.</li>
<li>↑ means that higher is better, ↓ that lower is better. The best number in a column is bold.</li>
<li>★ marks rows that are better than every control, each with p &lt; 0.05.</li>
<li>Controls, in parentheses, do not use the model. A method that is no better than the controls \
explains nothing, whatever its score.</li>
<li>Pairs are compared on the same images by a two-sided sign-flip permutation test of the mean difference; p values \
are corrected for the number of pairs by Holm’s method. Numbers that are not means are not compared.</li>
</ul>
";

/// Content of the page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Heading.
    pub title: &'a str,
    /// Names and values of all settings needed to reproduce the results.
    pub settings: &'a [(String, String)],
    /// All measures; those of one protocol share a table.
    pub summaries: &'a [Summary],
    /// Example images, may be empty.
    pub gallery: &'a Gallery,
    /// Times per row, may be empty.
    pub speeds: &'a [Speed],
}

/// Example images with the maps of several methods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gallery {
    /// Names of the methods.
    pub methods: Vec<String>,
    /// One per image.
    pub rows: Vec<GalleryRow>,
}

/// An image and its maps.
#[derive(Clone, Debug, PartialEq)]
pub struct GalleryRow {
    /// Description of the image.
    pub caption: String,
    /// The image.
    pub picture: RgbImage,
    /// The drawn maps, one per method.
    pub maps: Vec<RgbImage>,
}

/// Time that a row takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// Name of the row.
    pub name: String,
    /// Median milliseconds per image.
    pub ms: f64,
}

/// Renders the page as HTML.
///
/// # Errors
/// [`Error::Shape`](vitscope_core::error::Error::Shape) if a curve and its axis differ in length, or if a row of the
/// gallery has not one map per method; [`Error::Data`](vitscope_core::error::Error::Data) if an image or a chart cannot
/// be drawn.
pub fn html(page: &Page<'_>) -> Result<String> {
    let keys = Keys::new(page.summaries);
    let mut sections: Vec<(String, String)> = Vec::new();
    for protocol in protocols(page.summaries) {
        sections.push((
            escaped(&protocol[0].protocol),
            results::section(&protocol, &keys)?,
        ));
    }
    sections.push(("Time".into(), times(page.summaries, page.speeds)?));
    sections.push(("Pictures".into(), pictures::section(page.gallery)?));
    sections.push(("Notes".into(), NOTES.into()));
    sections.retain(|(_, body)| !body.is_empty());

    let title = escaped(page.title);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
        keys.style()
    );
    if !page.settings.is_empty() {
        html += "<dl>\n";
        for (name, value) in page.settings {
            let _ = writeln!(
                html,
                "<dt>{}</dt><dd>{}</dd>",
                escaped(name),
                escaped(value)
            );
        }
        html += "</dl>\n";
    }
    html += "<nav aria-label=\"Contents\"><ul>\n";
    for (idx, (heading, _)) in sections.iter().enumerate() {
        let _ = writeln!(html, "<li><a href=\"#part-{idx}\">{heading}</a></li>");
    }
    html += "</ul></nav>\n";
    for (idx, (heading, body)) in sections.iter().enumerate() {
        let _ = write!(
            html,
            "<section>\n<h2 id=\"part-{idx}\">{heading}</h2>\n{body}</section>\n"
        );
    }
    html += "</main>\n</body>\n</html>\n";
    Ok(html)
}

/// Groups summaries by protocol, in order of first appearance.
fn protocols(summaries: &[Summary]) -> Vec<Vec<&Summary>> {
    let mut groups: Vec<Vec<&Summary>> = Vec::new();
    for summary in summaries {
        let of_same = |group: &&mut Vec<&Summary>| group[0].protocol == summary.protocol;
        match groups.iter_mut().find(of_same) {
            Some(group) => group.push(summary),
            None => groups.push(vec![summary]),
        }
    }
    groups
}

/// Renders time against score, and a table of all times.
fn times(summaries: &[Summary], speeds: &[Speed]) -> Result<String> {
    if speeds.is_empty() {
        return Ok(String::new());
    }
    let mut body =
        String::from("<p>Medians, valid only for the machine they were measured on.</p>\n");
    for summary in summaries {
        body += &pareto::figure(summary, speeds)?;
    }
    body +=
        "<details>\n<summary>Milliseconds per image</summary>\n<table class=\"times\">\n<tbody>\n";
    let mut speeds: Vec<&Speed> = speeds.iter().collect();
    speeds.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    for speed in speeds {
        let name = escaped(&speed.name);
        let ms = pareto::milliseconds(speed.ms);
        let _ = writeln!(body, "<tr><th scope=\"row\">{name}</th><td>{ms}</td></tr>");
    }
    Ok(body + "</tbody>\n</table>\n</details>\n")
}

#[cfg(test)]
mod tests {
    use super::super::summary::{Pair, Scored};
    use super::*;

    pub(super) fn scored(name: &str, mean: f64) -> Scored {
        Scored {
            name: name.into(),
            control: false,
            images: 50,
            mean,
            low: mean - 0.0625,
            high: mean + 0.0625,
            points: Vec::new(),
        }
    }

    pub(super) fn summary(
        measure: &str,
        higher_is_better: Option<bool>,
        rows: Vec<Scored>,
    ) -> Summary {
        Summary {
            protocol: "patches".into(),
            measure: measure.into(),
            higher_is_better,
            settings: "blurred".into(),
            axis: Vec::new(),
            axis_name: "",
            rows,
            pairs: Vec::new(),
        }
    }

    pub(super) fn control(name: &str, mean: f64) -> Scored {
        Scored {
            control: true,
            ..scored(name, mean)
        }
    }

    pub(super) fn pair(better: &str, worse: &str, p: f64) -> Pair {
        Pair {
            better: better.into(),
            worse: worse.into(),
            p,
        }
    }

    fn page_of(summaries: &[Summary], gallery: &Gallery, speeds: &[Speed]) -> String {
        let page = Page {
            title: "a title",
            settings: &[("seed".into(), "7".into())],
            summaries,
            gallery,
            speeds,
        };
        html(&page).unwrap()
    }

    pub(super) fn bare(summaries: &[Summary]) -> String {
        page_of(summaries, &Gallery::default(), &[])
    }

    /// Returns the page without its style sheet.
    pub(super) fn body(html: &str) -> &str {
        html.split_once("</style>").unwrap().1
    }

    #[test]
    fn what_users_write_is_text() {
        let evil = "<script>alert('\"')</script>&";
        let mut row = scored(evil, 0.5);
        row.points = vec![0.0, 1.0];
        let summaries = [Summary {
            protocol: evil.into(),
            measure: evil.into(),
            settings: evil.into(),
            axis: vec![0.0, 1.0],
            axis_name: "share",
            pairs: vec![pair(evil, evil, 0.01)],
            ..summary("", Some(true), vec![row, control(evil, 0.1)])
        }];
        let gallery = Gallery {
            methods: vec![evil.into()],
            rows: vec![GalleryRow {
                caption: evil.into(),
                picture: RgbImage::new(2, 2),
                maps: vec![RgbImage::new(2, 2)],
            }],
        };
        let page = Page {
            title: evil,
            settings: &[(evil.into(), evil.into())],
            summaries: &summaries,
            gallery: &gallery,
            speeds: &[Speed {
                name: evil.into(),
                ms: 1.0,
            }],
        };
        let html = html(&page).unwrap();
        assert!(!html.contains("<script") && !html.contains("&<"), "{html}");
        assert!(!html.contains("alert('"), "quotes end attributes");
        assert!(html.contains("&lt;script&gt;alert(&#39;&quot;&#39;)&lt;/script&gt;&amp;"));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let row = Scored {
            points: vec![1.0, 0.5],
            ..scored("a", 0.5)
        };
        let summaries = [Summary {
            axis: vec![0.0, 1.0],
            axis_name: "share",
            ..summary("deletion", Some(false), vec![row])
        }];
        let html = page_of(
            &summaries,
            &gallery(),
            &[Speed {
                name: "a".into(),
                ms: 2.0,
            }],
        );
        for elsewhere in [
            "http:", "https:", "//", "@import", "url(", "<link", "<script",
        ] {
            // Base64 also uses slashes.
            let text = without_pictures(&html);
            assert!(!text.contains(elsewhere), "{elsewhere}");
        }
        assert_eq!(
            html.matches("src=").count(),
            html.matches("src=\"data:image/png;base64,").count()
        );
        assert_eq!(html.matches("<svg viewBox=\"0 0 720").count(), 2);
    }

    fn without_pictures(html: &str) -> String {
        let mut parts = html.split("base64,");
        let mut text = parts.next().unwrap().to_owned();
        text.extend(parts.map(|part| part.split_once('"').unwrap().1));
        text
    }

    pub(super) fn gallery() -> Gallery {
        let picture =
            |shade: u8| RgbImage::from_fn(3, 2, |x, y| image::Rgb([shade, x as u8, y as u8]));
        Gallery {
            methods: vec!["a".into(), "b".into()],
            rows: vec![GalleryRow {
                caption: "a cat".into(),
                picture: picture(1),
                maps: vec![picture(2), picture(3)],
            }],
        }
    }

    #[test]
    fn what_is_empty_has_no_part() {
        let html = bare(&[summary("m", Some(true), vec![scored("a", 0.5)])]);
        let html = body(&html);
        for absent in [
            "Pictures",
            ">Time",
            "Which rows",
            "<figure",
            "<details",
            "<img",
            "<svg",
        ] {
            assert!(!html.contains(absent), "{absent} in {html}");
        }
        assert!(body(&bare(&[])).contains("Notes"));
    }

    #[test]
    fn what_is_no_number_is_a_dash_and_never_the_best() {
        let nan = Scored {
            low: f64::NAN,
            high: f64::NAN,
            ..scored("a", f64::NAN)
        };
        let wide = Scored {
            high: f64::INFINITY,
            ..scored("b", -0.5)
        };
        let rows = vec![nan, wide, scored("c", f64::INFINITY)];
        let speeds = [f64::NAN, 1.0, 2.0].into_iter().zip(["a", "b", "c"]);
        let speeds = speeds.map(|(ms, name)| Speed {
            name: name.into(),
            ms,
        });
        let html = page_of(
            &[summary("m", Some(true), rows)],
            &Gallery::default(),
            &speeds.collect::<Vec<_>>(),
        );
        assert_eq!(
            html.matches("<span class=\"number\">–</span>").count(),
            2,
            "{html}"
        );
        assert!(
            html.contains("<strong>−0.500</strong>") && html.contains("[−0.562, –]"),
            "{html}"
        );
        assert!(
            html.contains("<th scope=\"row\">a</th><td>–</td>"),
            "{html}"
        );
        assert!(
            !body(&html).contains("NaN") && !body(&html).contains("inf"),
            "{html}"
        );
    }
}
