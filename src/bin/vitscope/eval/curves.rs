//! `vitscope eval insertion-deletion` and `vitscope eval perturbation`: methods and controls beside each other.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::bail;
use candle_core::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vitscope::eval::comparison::{Comparison, Row};
use vitscope::eval::perturbation::{PATCHES, Protocol, Run};
use vitscope::eval::statistics::{Interval, bootstrap_mean, holm, sign_flip_p_value};
use vitscope::explain::methods::Pace;
use vitscope::explain::{Explainer, Method};
use vitscope::files::write_whole;
use vitscope::models::Model;
use vitscope::rng::Rng;

use super::{AskedArgs, tell_left_out, test_half, usable};
use crate::exit::Exit;

/// Resamples of an interval.
const RESAMPLES: usize = 1000;
/// Sign patterns of a test: so many that the least p value is below the level also after Holm's correction, which
/// multiplies it by the number of pairs, 465 for all methods and controls.
const PERMUTATIONS: usize = 10_000;
/// Below it, a difference is said to be none of chance.
const LEVEL: f64 = 0.05;

#[derive(Debug, clap::Args)]
pub(super) struct CurvesArgs {
    #[command(flatten)]
    asked: AskedArgs,
    /// Pictures to measure on: the test half of a data set, or a folder.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// How it is measured, as the paper of that name does; several with commas.
    #[arg(long, value_name = "PROTOCOL,…", value_delimiter = ',')]
    protocol: Vec<String>,
    /// Methods, or `all` [default: those of a few passes that go with the model].
    #[arg(long, value_name = "METHOD,…", value_delimiter = ',')]
    methods: Vec<String>,
    /// So many pictures, the first ones.
    #[arg(long, value_name = "N", default_value = "1000")]
    images: NonZeroUsize,
    /// Seed of the random map, and of intervals.
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Write settings, means, intervals, curves and p values as JSON.
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
    /// Write the area of each picture as CSV.
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
}

/// Everything that is needed to get the same numbers again, and the numbers.
#[derive(Serialize)]
struct Report<'a> {
    command: String,
    version: &'static str,
    model: &'a str,
    sha256: &'a str,
    data: &'a str,
    images: usize,
    seed: u64,
    curves: Vec<Curve>,
}

/// All rows under one curve of a protocol.
#[derive(Serialize)]
struct Curve {
    protocol: &'static str,
    curve: &'static str,
    higher_is_better: bool,
    settings: String,
    rows: Vec<Scored>,
    /// Methods and controls whose means differ: Holm's p value of a paired sign-flip test.
    pairs: Vec<Pair>,
}

#[derive(Serialize)]
struct Scored {
    name: String,
    control: bool,
    mean: f64,
    low: f64,
    high: f64,
    points: Vec<f64>,
}

#[derive(Serialize)]
struct Pair {
    better: String,
    worse: String,
    p: f64,
}

/// Measures by the protocols that are asked for, or by `usual`.
pub(super) fn run(args: &CurvesArgs, suite: &str, known: &[Protocol]) -> anyhow::Result<Exit> {
    let model = args.asked.open()?;
    let protocols = protocols(&args.protocol, known)?;
    let explainers = explainers(&args.methods, &model)?;
    let test = test_half(&args.data, &model.preprocessor)?;
    let indices: Vec<usize> = (0..test.len().min(args.images.get())).collect();
    let comparison = Comparison {
        model: &model,
        device: &Device::Cpu,
        explainers: &explainers,
        protocols: &protocols,
        batch: args.asked.batch.get(),
        seed: args.seed,
    };
    let bar = bar(indices.len());
    let rows = comparison.run(&*test, &indices, &mut |n_done| {
        bar.set_position(n_done as u64)
    })?;
    bar.finish_and_clear();
    let runs = protocols
        .iter()
        .flat_map(|protocol| protocol.runs.iter().map(move |run| (protocol, run)));
    let curves = runs
        .enumerate()
        .map(|(place, (protocol, run))| curve(place, protocol, run, &rows, args.seed))
        .collect::<anyhow::Result<Vec<_>>>()?;
    println!("{} images, seed {}\n", indices.len(), args.seed);
    for protocol in &protocols {
        println!("{}", table(protocol, &curves));
    }
    println!("* better than every control, p < {LEVEL} by paired sign flips after Holm");
    tell_left_out(&*test);
    if let Some(path) = &args.csv {
        write_whole(path, csv(&protocols, &rows).as_bytes())?;
        println!("areas in {path:?}");
    }
    if let Some(path) = &args.json {
        let report = Report {
            command: command(args, suite, &protocols, &explainers),
            version: env!("CARGO_PKG_VERSION"),
            model: &args.asked.model,
            sha256: &model.weights_sha256,
            data: &args.data,
            images: indices.len(),
            seed: args.seed,
            curves,
        };
        let text = serde_json::to_string_pretty(&report)? + "\n";
        write_whole(path, text.as_bytes())?;
        println!("scores in {path:?}");
    }
    Ok(Exit::Whole)
}

fn protocols(asked: &[String], known: &[Protocol]) -> anyhow::Result<Vec<Protocol>> {
    if asked.is_empty() {
        // Patch by patch where there is that, for it is the cheapest and has no ties.
        let usual = known.iter().find(|known| known.name == PATCHES.name);
        return Ok(usual.map_or_else(|| known.to_vec(), |usual| vec![*usual]));
    }
    let asked = asked.iter().map(|name| Protocol::named(name, known));
    Ok(asked.collect::<vitscope::Result<_>>()?)
}

/// The methods that are asked for; of all, or of those of a few passes, what does not go with the model is left out.
fn explainers(asked: &[String], model: &Model) -> anyhow::Result<Vec<Box<dyn Explainer>>> {
    let is_all = matches!(asked, [all] if all == "all");
    if !asked.is_empty() && !is_all {
        let methods = asked.iter().map(|name| usable(name.parse()?, model));
        return methods.collect();
    }
    let mut explainers = Vec::new();
    for &method in Method::ALL {
        if !is_all && method.entry().pace != Pace::A {
            continue;
        }
        match usable(method, model) {
            Ok(explainer) => explainers.push(explainer),
            Err(error) => eprintln!("left out: {error}"),
        }
    }
    if explainers.is_empty() {
        bail!("no method goes with the model");
    }
    Ok(explainers)
}

fn bar(n_images: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} images, {eta} left");
    let bar = ProgressBar::new(n_images as u64);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The `place`-th curve of all rows, with intervals and tests.
fn curve(
    place: usize,
    protocol: &Protocol,
    run: &Run,
    rows: &[Row],
    seed: u64,
) -> anyhow::Result<Curve> {
    let mut rng = Rng::for_item(seed, place as u64);
    let mut draw = |n: usize| rng.below(n);
    let mut scored = Vec::new();
    for row in rows {
        let result = &row.results[place];
        let Interval { mean, low, high } = bootstrap_mean(&result.areas, RESAMPLES, &mut draw)?;
        scored.push(Scored {
            name: row.name.clone(),
            control: row.is_control,
            mean,
            low,
            high,
            points: result.curve.clone(),
        });
    }
    let is_better = |a: f64, b: f64| if run.higher_is_better { a > b } else { a < b };
    let (mut pairs, mut p_values) = (Vec::new(), Vec::new());
    for first in 0..rows.len() {
        for second in first + 1..rows.len() {
            let areas = [first, second].map(|row| &rows[row].results[place].areas);
            p_values.push(sign_flip_p_value(
                areas[0],
                areas[1],
                PERMUTATIONS,
                &mut draw,
            )?);
            let first_wins = is_better(scored[first].mean, scored[second].mean);
            pairs.push(match first_wins {
                true => (first, second),
                false => (second, first),
            });
        }
    }
    let pairs = pairs.into_iter().zip(holm(&p_values)?);
    Ok(Curve {
        protocol: protocol.name,
        curve: run.name,
        higher_is_better: run.higher_is_better,
        settings: format!(
            "{:?} {:?} by {:?}, {:?}, {:?} of {:?}, {:?} times {}",
            run.action,
            run.first,
            protocol.steps,
            run.substrate,
            run.measure,
            protocol.watched,
            protocol.area,
            protocol.scale
        ),
        pairs: pairs
            .map(|((better, worse), p)| Pair {
                better: rows[better].name.clone(),
                worse: rows[worse].name.clone(),
                p,
            })
            .collect(),
        rows: scored,
    })
}

impl Curve {
    /// True where a row is better than each control, and not by chance.
    fn beats_controls(&self, row: &Scored) -> bool {
        let mut controls = self.rows.iter().filter(|row| row.control);
        !row.control
            && controls.all(|control| {
                self.pairs.iter().any(|pair| {
                    pair.better == row.name && pair.worse == control.name && pair.p < LEVEL
                })
            })
    }
}

/// The curves of one protocol, a row a method.
fn table(protocol: &Protocol, curves: &[Curve]) -> String {
    let own: Vec<&Curve> = curves
        .iter()
        .filter(|curve| curve.protocol == protocol.name)
        .collect();
    let mut text = format!("{:22}", protocol.name);
    for curve in &own {
        let arrow = if curve.higher_is_better { '↑' } else { '↓' };
        let _ = write!(text, "  {:>24} {arrow}", curve.curve);
    }
    let n_rows = own.first().map_or(0, |curve| curve.rows.len());
    for place in 0..n_rows {
        let name = &own[0].rows[place].name;
        let is_control = own[0].rows[place].control;
        let shown = if is_control {
            format!("({name})")
        } else {
            name.clone()
        };
        let _ = write!(text, "\n{shown:22}");
        for curve in &own {
            let row = &curve.rows[place];
            let star = if curve.beats_controls(row) { '*' } else { ' ' };
            let digits = if row.mean.abs() < 10.0 { 4 } else { 2 };
            let interval = format!(
                "{:.digits$} ({:.digits$}–{:.digits$})",
                row.mean, row.low, row.high
            );
            let _ = write!(text, "  {interval:>24} {star}");
        }
    }
    text.push('\n');
    text
}

/// A line for each picture, method and curve.
fn csv(protocols: &[Protocol], rows: &[Row]) -> String {
    let mut text = String::from("image,method,protocol,curve,area\n");
    for row in rows {
        let runs = protocols
            .iter()
            .flat_map(|protocol| protocol.runs.iter().map(move |run| (protocol, run)));
        for ((protocol, run), result) in runs.zip(&row.results) {
            for (image, area) in result.areas.iter().enumerate() {
                let name = &row.name;
                let _ = writeln!(text, "{image},{name},{},{},{area}", protocol.name, run.name);
            }
        }
    }
    text
}

/// The command that gives the same numbers.
fn command(
    args: &CurvesArgs,
    suite: &str,
    protocols: &[Protocol],
    explainers: &[Box<dyn Explainer>],
) -> String {
    let names: Vec<&str> = protocols.iter().map(|protocol| protocol.name).collect();
    let methods: Vec<&str> = explainers.iter().map(|method| method.name()).collect();
    let backbone = args.asked.backbone.as_ref();
    let backbone = backbone.map_or(String::new(), |backbone| format!(" --backbone {backbone}"));
    format!(
        "vitscope eval {suite} --model {}{backbone} --data {} --protocol {} --methods {} --images {} --seed {}",
        args.asked.model,
        args.data,
        names.join(","),
        methods.join(","),
        args.images,
        args.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope::eval::comparison::RunResult;
    use vitscope::eval::perturbation::INSERTION_DELETION;

    #[test]
    fn what_is_better_on_every_picture_beats_the_controls_and_what_is_not_does_not() {
        let row = |name: &str, is_control, shift: f64| Row {
            name: name.into(),
            is_control,
            results: vec![RunResult {
                areas: (0..40)
                    .map(|image| shift + f64::from(image % 7) / 10.0)
                    .collect(),
                curve: vec![0.0],
            }],
        };
        // As many rows as make as many pairs as there ever are.
        let mut rows = vec![row("good", false, -0.5), row("no better", false, 0.0)];
        rows.extend((0..25).map(|nth| row("method", false, f64::from(nth) / 100.0)));
        rows.extend((0..4).map(|_| row("control", true, 0.0)));
        let scored = curve(0, &PATCHES, &PATCHES.runs[0], &rows, 0).unwrap();
        assert!(!scored.higher_is_better && scored.beats_controls(&scored.rows[0]));
        assert!(!scored.beats_controls(&scored.rows[1]));
        assert!(!scored.beats_controls(&scored.rows[30]), "a control");
    }

    #[test]
    fn protocols_are_found_by_name_and_patches_are_the_usual_one() {
        let names = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
            let found = protocols(&asked, &INSERTION_DELETION);
            found.map(|found| found.iter().map(|known| known.name).collect::<Vec<_>>())
        };
        assert_eq!(vec!["patches"], names(&[]).unwrap());
        assert_eq!(vec!["tis", "rise"], names(&["tis", "rise"]).unwrap());
        let error = names(&["chefer"]).unwrap_err().to_string();
        assert!(
            error.starts_with("unknown protocol \"chefer\", known are rise"),
            "{error}"
        );
    }
}
