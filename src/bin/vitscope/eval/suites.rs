//! Common parts of the suites of `vitscope eval`, which compare methods and controls on the same pictures.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vitscope::data::Dataset;
use vitscope::eval::suite::{Measure, Suite};
use vitscope::eval::summary::{LEVEL, Summary};
use vitscope::explain::Pace;
use vitscope::explain::{Explainer, Method};
use vitscope::models::Model;
use vitscope_core::files::write_whole;
use vitscope_lab::eval::comparison::{Comparison, Row};
use vitscope_lab::eval::journal::Journal;
use vitscope_lab::eval::report::{self, Page};

use super::{AskedArgs, tables, tell_left_out, test_half, usable};
use crate::args::{one_or_more, report_path};
use crate::exit::Exit;
use crate::setup;

#[derive(Debug, clap::Args)]
pub(super) struct SuiteArgs {
    #[command(flatten)]
    pub compared: ComparedArgs,
    /// Pictures to evaluate on: a data set (its test half), or a folder.
    #[arg(long, value_name = "DATA")]
    pub data: String,
    /// Use only the first N pictures [default: 1000].
    #[arg(long, value_name = "N", value_parser = one_or_more::<NonZeroUsize>)]
    pub images: Option<NonZeroUsize>,
}

/// Maximum number of pictures without `--images`.
const MOST_IMAGES: usize = 1000;

/// What is compared, and where results go beside the terminal.
#[derive(Debug, clap::Args)]
pub(super) struct ComparedArgs {
    #[command(flatten)]
    pub asked: AskedArgs,
    /// Methods, comma-separated, or `all` [default: those that suit the model and take only a few passes];
    /// `METHOD+KEY=VALUE` sets an option.
    #[arg(
        long,
        visible_alias = "method",
        value_name = "METHOD,…",
        value_delimiter = ','
    )]
    methods: Vec<String>,
    /// Random seed of the random map and of noise.
    #[arg(long, default_value = "0")]
    pub seed: u64,
    /// Save progress to this file, and resume from it if it exists.
    #[arg(long, value_name = "FILE.jsonl", value_parser = report_path)]
    resume: Option<PathBuf>,
    /// Write settings, means, intervals, curves and p-values as JSON.
    #[arg(long, value_name = "FILE.json", value_parser = report_path)]
    json: Option<PathBuf>,
    /// Write the score of each picture as CSV.
    #[arg(long, value_name = "FILE.csv", value_parser = report_path)]
    csv: Option<PathBuf>,
    /// Write an HTML page with tables, curves, times and example pictures.
    #[arg(long, value_name = "FILE.html", value_parser = report_path)]
    html: Option<PathBuf>,
}

/// Number of pictures on the page.
const EXAMPLES: usize = 8;

/// The results, and everything needed to reproduce them.
#[derive(Serialize)]
struct Report<'a> {
    command: &'a str,
    version: &'static str,
    model: &'a str,
    sha256: &'a str,
    data: &'a str,
    #[serde(flatten)]
    samples: BTreeMap<&'a str, usize>,
    seed: u64,
    measures: &'a [Summary],
}

/// Results, and what they were measured on.
pub(super) struct Found<'a> {
    /// The subcommand.
    pub name: &'static str,
    /// The command that reproduces the numbers.
    pub command: String,
    pub model: &'a Model,
    pub data: String,
    pub n_samples: usize,
    /// What is counted: images or videos.
    pub of: &'static str,
    pub measures: Vec<Measure>,
    pub rows: Vec<Row>,
}

/// What is measured, and its command-line options besides [`SuiteArgs`].
pub(super) struct Measured {
    /// The subcommand.
    pub name: &'static str,
    /// What it measures.
    pub suite: Box<dyn Suite>,
    /// Its own options, as typed on the command line.
    pub options: String,
}

/// Measures with a suite that has no options of its own.
pub(super) fn run_plain(
    args: &SuiteArgs,
    name: &'static str,
    suite: impl Suite + 'static,
) -> anyhow::Result<Exit> {
    let (model, data) = open(args)?;
    let measured = Measured {
        name,
        suite: Box::new(suite),
        options: String::new(),
    };
    run(args, &model, &*data, &measured)
}

/// Measures all methods and controls, and reports the results.
pub(super) fn run(
    args: &SuiteArgs,
    model: &Model,
    data: &dyn Dataset,
    measured: &Measured,
) -> anyhow::Result<Exit> {
    let Measured {
        name,
        suite,
        options,
    } = measured;
    let compared = &args.compared;
    let explainers = compared.explainers(model)?;
    let n_wanted = args.images.map_or(MOST_IMAGES, NonZeroUsize::get);
    let indices: Vec<usize> = (0..data.len().min(n_wanted)).collect();
    if args.images.is_some() && indices.len() < n_wanted {
        eprintln!(
            "using only {} of {n_wanted} images: the test half of {:?} has no more",
            indices.len(),
            args.data
        );
    }
    let what = format!("{name}{options}");
    let mut journal = compared.journal(&what, model, &args.data)?;
    let comparison = Comparison {
        model,
        explainers: &explainers,
        suite: &**suite,
        batch: compared.asked.batch.get(),
        seed: compared.seed,
    };
    let bar = bar(indices.len());
    let rows = comparison.run(data, &indices, &mut journal, &mut |n_done| {
        bar.set_position(n_done as u64)
    })?;
    bar.finish_and_clear();
    let counted = format!(" --images {n_wanted}");
    let found = Found {
        name,
        command: compared.command(&what, &args.data, &explainers, &counted),
        model,
        data: args.data.clone(),
        n_samples: indices.len(),
        of: "images",
        measures: suite.measures(),
        rows,
    };
    let exit = compared.tell(&found, Some((&comparison, data)))?;
    tell_left_out(data);
    Ok(exit)
}

impl ComparedArgs {
    /// Opens the saved results of an earlier run of `what`, if any: one that agrees in everything that determines the
    /// score of a method on a picture.
    pub(super) fn journal(
        &self,
        what: &str,
        model: &Model,
        data: &str,
    ) -> vitscope::Result<Journal> {
        let Some(path) = &self.resume else {
            return Ok(Journal::default());
        };
        let identity = format!(
            "{what} of {}{} on {data:?}, seed {}, version {}",
            model.weights_sha256,
            self.asked.input.typed(),
            self.seed,
            env!("CARGO_PKG_VERSION")
        );
        Journal::open(path, &identity)
    }

    /// Returns the command that reproduces the numbers; `counted` gives the number of pictures if `what` does not.
    pub(super) fn command(
        &self,
        what: &str,
        data: &str,
        explainers: &[(String, Box<dyn Explainer>)],
        counted: &str,
    ) -> String {
        let methods: Vec<&str> = explainers.iter().map(|(name, _)| name.as_str()).collect();
        format!(
            "vitscope eval {what}{} --data {data} --methods {}{counted} --seed {}",
            self.asked.typed(),
            methods.join(","),
            self.seed
        )
    }

    /// Prints tables and writes the requested files; pictures of the page come from a comparison.
    pub(super) fn tell(
        &self,
        found: &Found<'_>,
        examples: Option<(&Comparison<'_>, &dyn Dataset)>,
    ) -> anyhow::Result<Exit> {
        let summaries = (found.measures.iter().enumerate())
            .map(|(place, measure)| Summary::new(place, measure, &found.rows, self.seed))
            .collect::<vitscope::Result<Vec<Summary>>>()?;
        println!("{} {}, seed {}\n", found.n_samples, found.of, self.seed);
        for protocol in tables::protocols(&summaries) {
            println!("{}", tables::table(protocol, &summaries));
        }
        println!(
            "* better than every control, p < {LEVEL} (paired sign-flip tests with Holm correction)"
        );
        if let Some(path) = &self.csv {
            let text = tables::csv(&found.measures, &found.rows);
            write_whole(path, text.as_bytes())?;
            println!("wrote values to {path:?}");
        }
        if let Some(path) = &self.html {
            write_whole(path, self.page(found, &summaries, examples)?.as_bytes())?;
            println!("wrote page to {path:?}");
        }
        if let Some(path) = &self.json {
            let report = Report {
                command: &found.command,
                version: env!("CARGO_PKG_VERSION"),
                model: &self.asked.model,
                sha256: &found.model.weights_sha256,
                data: &found.data,
                samples: BTreeMap::from([(found.of, found.n_samples)]),
                seed: self.seed,
                measures: &summaries,
            };
            let text = serde_json::to_string_pretty(&report)? + "\n";
            write_whole(path, text.as_bytes())?;
            println!("wrote scores to {path:?}");
        }
        Ok(Exit::Whole)
    }

    /// Returns the HTML page, for which a few pictures are explained again.
    fn page(
        &self,
        found: &Found<'_>,
        summaries: &[Summary],
        examples: Option<(&Comparison<'_>, &dyn Dataset)>,
    ) -> anyhow::Result<String> {
        let (gallery, speeds) = match examples {
            None => Default::default(),
            Some((comparison, data)) => {
                let indices: Vec<usize> = (0..found.n_samples.min(EXAMPLES)).collect();
                (
                    comparison.gallery(data, &indices)?,
                    comparison.speeds(data, 0)?,
                )
            }
        };
        let settings = [
            ("Command", found.command.clone()),
            ("Version", env!("CARGO_PKG_VERSION").to_owned()),
            ("Model", self.asked.model.clone()),
            ("SHA-256 of the weights", found.model.weights_sha256.clone()),
            ("Data", found.data.clone()),
            ("Measured on", format!("{} {}", found.n_samples, found.of)),
            ("Seed", self.seed.to_string()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        Ok(report::html(&Page {
            title: &format!("{} of {}", found.name, self.asked.model),
            settings: &settings,
            summaries,
            gallery: &gallery,
            speeds: &speeds,
        })?)
    }

    /// Returns the requested methods, under the names used to request them; if all methods or those of a few passes are
    /// requested, the ones that do not work with the model are left out.
    pub(super) fn explainers(
        &self,
        model: &Model,
    ) -> anyhow::Result<Vec<(String, Box<dyn Explainer>)>> {
        let asked = self.methods.as_slice();
        let is_all = matches!(asked, [all] if all == "all");
        if !asked.is_empty() && !is_all {
            return asked.iter().map(|text| explainer(text, model)).collect();
        }
        let mut explainers = Vec::new();
        for &method in Method::ALL {
            if !is_all && method.entry().pace != Pace::A {
                continue;
            }
            match usable(method, model) {
                Ok(explainer) => explainers.push((method.to_string(), explainer)),
                Err(error) => eprintln!("skipped: {error}"),
            }
        }
        if explainers.is_empty() {
            bail!("no method works with this model");
        }
        Ok(explainers)
    }
}

/// Opens the requested model and pictures.
pub(super) fn open(args: &SuiteArgs) -> anyhow::Result<(Model, std::sync::Arc<dyn Dataset>)> {
    let model = args.compared.asked.open()?;
    let data = test_half(&args.data, &model.preprocessor)?;
    Ok((model, data))
}

/// Builds a method with the changes that follow its name.
fn explainer(text: &str, model: &Model) -> anyhow::Result<(String, Box<dyn Explainer>)> {
    let mut parts = text.split('+');
    let name = parts.next().unwrap_or_default();
    let changes: Vec<String> = parts.map(|change| format!("{name}.{change}")).collect();
    let explainers = setup::explainers(&[name.parse()?], &changes, model)?;
    setup::rehearse(&explainers, model)?;
    let explainer = explainers.into_iter().next();
    Ok((text.to_owned(), explainer.context("no method given")?))
}

/// Creates a progress bar for `n` pictures.
pub fn bar(n: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}, {eta} left");
    let bar = ProgressBar::new(n as u64);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
