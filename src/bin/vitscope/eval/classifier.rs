//! `vitscope eval classifier`: how often a model predicts the right class, and how well it is calibrated.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use glob::Pattern;
use serde::Serialize;
use vitscope::data::{self, Dataset};
use vitscope::eval::calibration::{Bin, Calibration, sure_answers, threshold_for};
use vitscope::eval::classification::{Count, Prediction, predictions};
use vitscope::models::{Model, Preprocessor};
use vitscope_core::files::write_whole;
use vitscope_lab::eval::class_names::{listed, matched_classes};
use vitscope_lab::eval::confusions::{Confusion, Confusions};

use super::suites::bar;
use super::{AskedArgs, tell_left_out};
use crate::args::{decimal, png, probability, report_path};
use crate::exit::Exit;
use crate::train::accuracy;

/// Maximum number of rows shown in a terminal; with more classes, only the weakest are shown.
const MAX_ROWS: usize = 40;
/// Number of rows shown if there are more.
const WEAKEST: usize = 20;
/// Number of top answers of which one must be right.
const TOP: usize = 5;

#[derive(Debug, clap::Args)]
pub(super) struct ClassifierArgs {
    #[command(flatten)]
    asked: AskedArgs,
    /// CIFAR-10 (its test half), or a folder with one subfolder of pictures per class.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Use only pictures whose file names match, e.g. 'A_*'; repeat the option for more patterns.
    #[arg(long, value_name = "GLOB")]
    only: Vec<Pattern>,
    /// Skip pictures whose file names match; repeat the option for more patterns.
    #[arg(long, value_name = "GLOB")]
    except: Vec<Pattern>,
    /// Count answers below this probability as not sure, or below this trust if the model measures familiarity
    /// [default: the model's own threshold].
    #[arg(long, value_name = "P", value_parser = probability)]
    not_sure_below: Option<f64>,
    /// Print the smallest threshold at which sure answers reach this accuracy.
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = probability)]
    sure_accuracy: f64,
    /// Write all results as JSON, including accuracy by threshold and by confidence.
    #[arg(long, value_name = "FILE.json", value_parser = report_path)]
    json: Option<PathBuf>,
    /// Write one row per class as CSV.
    #[arg(long, value_name = "FILE.csv", value_parser = report_path)]
    csv: Option<PathBuf>,
    /// Draw the most confused pairs of classes.
    #[arg(long, value_name = "FILE.png", value_parser = png)]
    confusions: Option<PathBuf>,
}

/// Results of the model on one class of the data.
#[derive(Debug, PartialEq, Serialize)]
struct ClassScore<'a> {
    /// Its name in the data.
    class: &'a str,
    /// The model's name for it.
    label: &'a str,
    pictures: usize,
    top1: f64,
    top5: f64,
    /// The most frequent wrong answer.
    wrong_answer: Option<&'a str>,
    wrong_count: usize,
}

/// The results, and everything needed to reproduce them.
#[derive(Serialize)]
struct Report<'a> {
    command: String,
    version: &'static str,
    model: &'a str,
    sha256: &'a str,
    data: &'a str,
    pictures: usize,
    classes: usize,
    unknown_classes: &'a [&'a str],
    unreadable: Vec<String>,
    top1: ShareReport,
    top5: ShareReport,
    expected_calibration_error: f64,
    negative_log_likelihood_nats: f64,
    /// Answers by confidence, in bins of equal width.
    confidence_bins: Vec<BinReport>,
    coverage: Vec<SureReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_sure_below: Option<SureReport>,
    /// The smallest threshold that reaches `sure_accuracy`; `null` if none does.
    chosen: Option<SureReport>,
    sure_accuracy: f64,
    by_class: &'a [ClassScore<'a>],
    confusions: Vec<ConfusionReport<'a>>,
}

/// A share of right answers with its 95 % interval.
#[derive(Serialize)]
struct ShareReport {
    accuracy: f64,
    low: f64,
    high: f64,
}

#[derive(Serialize)]
struct BinReport {
    answers: usize,
    confidence: f64,
    accuracy: f64,
}

/// Answers at or above a threshold.
#[derive(Serialize)]
struct SureReport {
    threshold: f64,
    answers: usize,
    coverage: f64,
    /// `null` if there are no such answers.
    right: Option<ShareReport>,
}

#[derive(Serialize)]
struct ConfusionReport<'a> {
    labels: [&'a str; 2],
    /// Pictures of the first class that are predicted as the second, and vice versa.
    counts: [usize; 2],
}

impl From<Count> for ShareReport {
    fn from(count: Count) -> Self {
        let (low, high) = count.interval();
        Self {
            accuracy: count.share(),
            low,
            high,
        }
    }
}

impl SureReport {
    fn new(predictions: &[Prediction], threshold: f64) -> Self {
        let sure = sure_answers(predictions, threshold);
        Self {
            threshold,
            answers: sure.of,
            coverage: sure.of as f64 / predictions.len().max(1) as f64,
            right: (sure.of > 0).then(|| sure.into()),
        }
    }
}

impl From<&Bin> for BinReport {
    fn from(bin: &Bin) -> Self {
        Self {
            answers: bin.count.of,
            confidence: bin.confidence,
            accuracy: bin.count.share(),
        }
    }
}

pub(super) fn run(args: &ClassifierArgs) -> anyhow::Result<Exit> {
    let model = args.asked.open()?;
    let Preprocessor {
        rule, resampling, ..
    } = model.preprocessor;
    let is_chosen = |name: &str| {
        let matches = |pattern: &Pattern| pattern.matches(name);
        (args.only.is_empty() || args.only.iter().any(matches)) && !args.except.iter().any(matches)
    };
    let is_part = !args.only.is_empty() || !args.except.is_empty();
    let is_chosen: Option<&dyn Fn(&str) -> bool> = is_part.then_some(&is_chosen);
    let data = &*data::open_labeled(&args.data, rule, resampling, is_chosen)?;
    let config = model.vit.config();
    let classes = matched_classes(&config.labels, &config.label_aliases, data.classes())?;
    let unknown = data.classes().iter().zip(&classes);
    let unknown: Vec<&str> = unknown
        .filter(|(_, class)| class.is_none())
        .map(|(name, _)| name.as_str())
        .collect();

    let bar = bar(data.len());
    let batch = args.asked.batch.get();
    let on_picture = &mut |n_done| bar.set_position(n_done as u64);
    let predictions = predictions(&model, data, &classes, batch, on_picture)?;
    bar.finish_and_clear();
    if predictions.is_empty() {
        bail!(
            "no picture belongs to a class that the model knows: {:?}",
            args.data
        );
    }
    let scores = scores_by_class(&predictions, data.classes(), &config.labels);
    let confusions = Confusions::of(&predictions);
    let found = Found {
        model: &model,
        data,
        unknown,
        calibration: Calibration::of(&predictions),
        predictions,
        scores,
        confusions,
        not_sure_below: (args.not_sure_below).or(model.sure_from().map(decimal)),
    };
    found.print(args);
    found.write(args)?;
    Ok(Exit::Whole)
}

/// Results of the measurement.
struct Found<'a> {
    model: &'a Model,
    data: &'a dyn Dataset,
    /// Classes of the data that the model does not know.
    unknown: Vec<&'a str>,
    predictions: Vec<Prediction>,
    calibration: Calibration,
    scores: Vec<ClassScore<'a>>,
    confusions: Confusions,
    /// The requested threshold, or the model's own.
    not_sure_below: Option<f64>,
}

impl Found<'_> {
    /// Counts how often the right class is among the first `n_first` answers.
    fn top(&self, n_first: usize) -> Count {
        let predictions = self.predictions.iter();
        predictions
            .map(|prediction| prediction.rank < n_first)
            .collect()
    }

    fn print(&self, args: &ClassifierArgs) {
        print!("{}", table(&self.scores));
        let n_predictions = self.predictions.len();
        println!("{} classes, {n_predictions} pictures", self.scores.len());
        println!("top-1 accuracy {}", accuracy(self.top(1)));
        println!("top-5 accuracy {}", accuracy(self.top(TOP)));
        let Calibration { bins, ece, nll } = &self.calibration;
        println!("calibration error {ece:.4} (ECE, {} bins)", bins.len());
        println!("negative log-likelihood {nll:.4} nats");
        let print_sure = |name: &str, threshold: f64| {
            println!("{}", sure_line(name, &self.predictions, threshold));
        };
        if let Some(threshold) = self.not_sure_below {
            print_sure("sure at or above", threshold);
        }
        let wanted = args.sure_accuracy;
        match threshold_for(&self.predictions, wanted) {
            Some(threshold) => print_sure(&format!("accuracy {wanted} at or above"), threshold),
            None => println!("no threshold gives sure answers an accuracy of {wanted}"),
        }
        if !self.unknown.is_empty() {
            println!(
                "skipped {} classes that the model does not know: {}",
                self.unknown.len(),
                listed(&self.unknown)
            );
        }
        tell_left_out(self.data);
    }

    fn write(&self, args: &ClassifierArgs) -> anyhow::Result<()> {
        if let Some(path) = &args.csv {
            write_whole(path, csv(&self.scores).as_bytes())?;
            println!("wrote classes to {path:?}");
        }
        if let Some(path) = &args.confusions {
            let title = format!("Most confused classes of {}", self.model.name);
            self.confusions
                .save_png(self.model.labels(), &title, path)?;
            println!("wrote confusions to {path:?}");
        }
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(&self.report(args))? + "\n";
            write_whole(path, text.as_bytes())?;
            println!("wrote scores to {path:?}");
        }
        Ok(())
    }

    fn report<'a>(&'a self, args: &'a ClassifierArgs) -> Report<'a> {
        let sure = |threshold| SureReport::new(&self.predictions, threshold);
        let label = |class: usize| self.model.labels().get(class).map_or("", String::as_str);
        let confusions = self.confusions.pairs.iter();
        Report {
            command: args.typed(),
            version: env!("CARGO_PKG_VERSION"),
            model: &args.asked.model,
            sha256: &self.model.weights_sha256,
            data: &args.data,
            pictures: self.predictions.len(),
            classes: self.scores.len(),
            unknown_classes: &self.unknown,
            unreadable: self.data.unreadable(),
            top1: self.top(1).into(),
            top5: self.top(TOP).into(),
            expected_calibration_error: self.calibration.ece,
            negative_log_likelihood_nats: self.calibration.nll,
            confidence_bins: self.calibration.bins.iter().map(BinReport::from).collect(),
            coverage: (1..10)
                .map(|tenths| sure(f64::from(tenths) / 10.0))
                .collect(),
            not_sure_below: self.not_sure_below.map(sure),
            sure_accuracy: args.sure_accuracy,
            chosen: threshold_for(&self.predictions, args.sure_accuracy).map(sure),
            by_class: &self.scores,
            confusions: confusions
                .map(|&Confusion { classes, counts }| ConfusionReport {
                    labels: classes.map(label),
                    counts,
                })
                .collect(),
        }
    }
}

/// Describes how many answers are sure at this threshold, and how many of those are right.
pub fn sure_line(name: &str, predictions: &[Prediction], threshold: f64) -> String {
    let sure = sure_answers(predictions, threshold);
    let percent = 100.0 * sure.of as f64 / predictions.len() as f64;
    let right = match sure.of {
        0 => String::new(),
        _ => format!(", accuracy {}", accuracy(sure)),
    };
    format!("{name} {threshold}: {percent:.1} % of the answers{right}")
}

impl ClassifierArgs {
    /// Returns the command that reproduces the numbers.
    fn typed(&self) -> String {
        let mut typed = format!(
            "vitscope eval classifier{} --data {}",
            self.asked.typed(),
            self.data
        );
        for (name, patterns) in [("only", &self.only), ("except", &self.except)] {
            for pattern in patterns {
                typed += &format!(" --{name} '{pattern}'");
            }
        }
        if let Some(threshold) = self.not_sure_below {
            typed += &format!(" --not-sure-below {threshold}");
        }
        typed + &format!(" --sure-accuracy {}", self.sure_accuracy)
    }
}

/// Returns a row for each class of the data that has pictures, in the order of the data.
fn scores_by_class<'a>(
    predictions: &[Prediction],
    classes: &'a [String],
    labels: &'a [String],
) -> Vec<ClassScore<'a>> {
    let mut by_class: BTreeMap<usize, Vec<&Prediction>> = BTreeMap::new();
    for prediction in predictions {
        by_class
            .entry(prediction.label)
            .or_default()
            .push(prediction);
    }
    let name = |names: &'a [String], index: usize| names.get(index).map_or("", String::as_str);
    let scores = by_class.into_iter().map(|(class, own)| {
        let top = |n_first| -> Count {
            let own = own.iter();
            own.map(|prediction| prediction.rank < n_first).collect()
        };
        let mut wrong: BTreeMap<usize, usize> = BTreeMap::new();
        for prediction in own.iter().filter(|prediction| !prediction.is_right()) {
            *wrong.entry(prediction.named).or_default() += 1;
        }
        // Of equally frequent answers, take the first.
        let wrong = wrong.into_iter().min_by_key(|(_, count)| Reverse(*count));
        ClassScore {
            class: name(classes, class),
            label: own.first().map_or("", |own| name(labels, own.class)),
            pictures: own.len(),
            top1: top(1).share(),
            top5: top(TOP).share(),
            wrong_answer: wrong.map(|(named, _)| name(labels, named)),
            wrong_count: wrong.map_or(0, |(_, count)| count),
        }
    });
    scores.collect()
}

/// Formats a table of all classes, or of those with the lowest accuracy.
fn table(scores: &[ClassScore<'_>]) -> String {
    let mut rows: Vec<&ClassScore<'_>> = scores.iter().collect();
    let mut text = String::new();
    if rows.len() > MAX_ROWS {
        rows.sort_by(|a, b| a.top1.total_cmp(&b.top1));
        rows.truncate(WEAKEST);
        text += &format!("the {WEAKEST} weakest classes; --csv writes all\n");
    }
    let names = rows.iter().map(|row| row.class.chars().count());
    let width = names.max().unwrap_or(0).max("class".len());
    let most = rows.iter().map(|row| row.pictures).max().unwrap_or(0);
    let digits = most.to_string().len();
    text += &format!(
        "{:width$}  {:w$}  top-5   most frequent wrong answer\n",
        "class",
        "top-1",
        w = "0.0000 on ".len() + digits
    );
    for row in rows {
        let wrong = row.wrong_answer.map_or(String::new(), |wrong| {
            format!("{wrong}, {}", row.wrong_count)
        });
        let line = format!(
            "{:width$}  {:.4} on {:digits$}  {:.4}  {wrong}",
            row.class, row.top1, row.pictures, row.top5
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Formats a CSV file with one row per class.
fn csv(scores: &[ClassScore<'_>]) -> String {
    let mut text = String::from("class,label,pictures,top1,top5,wrong_answer,wrong_count\n");
    for row in scores {
        let [class, label, wrong] =
            [row.class, row.label, row.wrong_answer.unwrap_or_default()].map(cell);
        text += &format!(
            "{class},{label},{},{},{},{wrong},{}\n",
            row.pictures, row.top1, row.top5, row.wrong_count
        );
    }
    text
}

/// Formats a text as a CSV cell (RFC 4180).
fn cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The second folder also holds pictures of the model's first class.
    #[test]
    fn a_class_has_a_row_with_its_most_frequent_wrong_answer() {
        let prediction = |label, class, named, rank| Prediction {
            label,
            class,
            named,
            confidence: 0.5,
            trust: 0.5,
            rank,
            nll: 0.7,
        };
        let predictions = [
            prediction(2, 0, 2, 6),
            prediction(2, 0, 1, 1),
            prediction(0, 2, 2, 0),
            prediction(2, 0, 1, 4),
            prediction(2, 0, 0, 0),
        ];
        let classes = names(&["dog", "empty", "face, front"]);
        let labels = names(&["person", "cat", "dog"]);
        let rows = scores_by_class(&predictions, &classes, &labels);
        assert_eq!(
            csv(&rows),
            "class,label,pictures,top1,top5,wrong_answer,wrong_count\n\
             dog,dog,1,1,1,,0\n\
             \"face, front\",person,4,0.25,0.75,cat,2\n"
        );
        assert_eq!(
            table(&rows),
            "class        top-1        top-5   most frequent wrong answer\n\
             dog          1.0000 on 1  1.0000\n\
             face, front  0.2500 on 4  0.7500  cat, 2\n"
        );
    }

    #[test]
    fn of_many_classes_the_weakest_are_shown() {
        let classes: Vec<String> = (0..41).map(|class| format!("thing {class}")).collect();
        let rows = classes.iter().enumerate().map(|(class, name)| ClassScore {
            class: name,
            label: name,
            pictures: 10,
            top1: 1.0 - class as f64 / 100.0,
            top5: 1.0,
            wrong_answer: None,
            wrong_count: 0,
        });
        let rows: Vec<ClassScore<'_>> = rows.collect();
        let all = table(&rows[..40]);
        assert_eq!(all.lines().count(), 41);
        assert!(all.contains("thing 0 "), "{all}");
        let weakest = table(&rows);
        assert_eq!(weakest.lines().count(), 22);
        assert!(
            weakest.starts_with("the 20 weakest classes") && weakest.contains("thing 40  0.6000"),
            "{weakest}"
        );
        assert!(!weakest.contains("thing 20 "), "{weakest}");
    }

    #[test]
    fn a_threshold_keeps_the_digits_that_were_typed() {
        assert_eq!(probability("0.45"), Ok(0.45));
        assert!(probability("1.5").is_err() && probability("half").is_err());
    }
}
