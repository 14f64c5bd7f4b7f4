//! `vitscope train FILE.toml`: the runs of an ablation, and the table of their results.
//!
//! Each run has its own folder, `OUT/NAME/SEED`. A finished run leaves `result.json` there and is not repeated, so that
//! the same command continues where it stopped.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use vitscope::train::Checkpoint;
use vitscope_core::files::write_whole;

use super::job::{Job, Joint, Measured, range};
use super::recipe::{self, RecipeFile, Run, Trained};
use super::{RunsArgs, interrupted};
use crate::exit::Exit;
use crate::interrupt;

/// File name in the folder of a finished run.
const RESULT: &str = "result.json";

/// Results and inputs of a run.
#[derive(Serialize, Deserialize)]
struct Done {
    recipe: String,
    measured: Measured,
}

pub(super) fn run(path: &Path, args: &RunsArgs) -> anyhow::Result<Exit> {
    let Some(out) = &args.out else {
        bail!("--out is required: the output folder for all runs");
    };
    let file = recipe::read(Some(path))?;
    if file.run.is_empty() {
        bail!("the recipe has no runs, expected [[run]] tables: {path:?}");
    }
    let folders: Vec<(&Run, u64, PathBuf)> = file
        .run
        .iter()
        .flat_map(|run| run.seeds.iter().map(move |&seed| (run, seed)))
        .map(|(run, seed)| (run, seed, out.join(&run.name).join(seed.to_string())))
        .collect();
    let checkpoints = folders
        .iter()
        .map(|(_, _, folder)| Checkpoint::path(folder));
    let stop = interrupt::flag(checkpoints.collect())?;
    let mut rows: Vec<(&str, Vec<Measured>)> = Vec::new();
    for (run, seed, folder) in &folders {
        let went_by = went_by(&file, run, *seed, args)?;
        let measured = match done_before(folder, &went_by)? {
            Some(measured) => measured,
            None => {
                println!("{}, seed {seed}", run.name);
                let job = Job {
                    file: &file,
                    data: args.data.as_deref(),
                    changes: run.set.clone(),
                    seed: Some(*seed),
                    checkpoint: None,
                    device: args.device.open()?,
                    out: folder,
                    stop: &stop,
                };
                let Some(measured) = train(job, run)? else {
                    return Ok(interrupted(folder));
                };
                let done = Done {
                    recipe: went_by,
                    measured,
                };
                let json = serde_json::to_string_pretty(&done)? + "\n";
                write_whole(&folder.join(RESULT), json.as_bytes())?;
                done.measured
            }
        };
        match rows.last_mut() {
            Some((name, of_seeds)) if *name == run.name => of_seeds.push(measured),
            _ => rows.push((&run.name, vec![measured])),
        }
    }
    let table = table(&rows);
    print!("\n{table}");
    write_whole(&out.join("runs.md"), table.as_bytes())?;
    Ok(Exit::Whole)
}

fn train(job: Job<'_>, run: &Run) -> anyhow::Result<Option<Measured>> {
    let init = run.init.as_deref();
    match (run.train, &run.model) {
        (_, Some(_)) if init.is_some() => {
            bail!("run {:?} has both `model` and `init`", run.name)
        }
        (Trained::Classifier, None) => job.classifier(Joint::Alone, init),
        (Trained::IaVit, None) => job.classifier(Joint::WithInterpreter, init),
        (Trained::IaVit, Some(model)) => job.interpreter(model.as_str().into()),
        (Trained::Diffmask, Some(model)) => job.gates(model.as_str().into()),
        (Trained::Classifier, Some(_)) => {
            bail!(
                "run {:?} trains a classifier, which starts from `init`, not `model`",
                run.name
            )
        }
        (Trained::Diffmask, None) => bail!("run {:?} requires `model`", run.name),
    }
}

/// Returns the text of everything that determines a run, except the weights of its model.
fn went_by(file: &RecipeFile, run: &Run, seed: u64, args: &RunsArgs) -> anyhow::Result<String> {
    let alone = RecipeFile {
        data: args.data.clone().or(file.data.clone()),
        run: vec![Run {
            seeds: vec![seed],
            ..run.clone()
        }],
        ..file.clone()
    };
    Ok(serde_json::to_string(&alone)?)
}

/// Returns the results of the run, if it has already finished with the same inputs.
fn done_before(folder: &Path, went_by: &str) -> anyhow::Result<Option<Measured>> {
    let path = folder.join(RESULT);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path:?}"))?;
    let done: Done = serde_json::from_str(&text).with_context(|| format!("{path:?}"))?;
    if done.recipe != went_by {
        bail!(
            "the run was trained with another recipe; remove its folder to train it again: {folder:?}"
        );
    }
    Ok(Some(done.measured))
}

/// Formats mean and range over the seeds of each run, in Markdown.
fn table(rows: &[(&str, Vec<Measured>)]) -> String {
    let mut names: Vec<&String> = rows
        .iter()
        .flat_map(|(_, seeds)| seeds.iter().flat_map(BTreeMap::keys))
        .collect();
    names.sort();
    names.dedup();
    let mut text = String::from("| run | seeds |");
    for name in &names {
        let _ = write!(text, " {name} |");
    }
    text += "\n|---|---|";
    text += &"---|".repeat(names.len());
    for (run, seeds) in rows {
        let _ = write!(text, "\n| {run} | {} |", seeds.len());
        for name in &names {
            let values: Vec<f64> = seeds
                .iter()
                .filter_map(|of| of.get(*name))
                .copied()
                .collect();
            text += &match values.as_slice() {
                [] => " |".to_owned(),
                [value] => format!(" {value:.4} |"),
                values => {
                    let mean = values.iter().sum::<f64>() / values.len() as f64;
                    let (low, high) = range(values.iter().copied());
                    format!(" {mean:.4} ({low:.4} to {high:.4}) |")
                }
            };
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_a_run_with_mean_and_range_of_its_seeds() {
        let of = |name: &str, value: f64| Measured::from([(name.to_owned(), value)]);
        let rows = [
            ("plain", vec![of("kl", 0.1), of("kl", 0.3)]),
            ("other", vec![of("kept", 0.5)]),
        ];
        let expected = "| run | seeds | kept | kl |\n|---|---|---|---|\n\
            | plain | 2 | | 0.2000 (0.1000 to 0.3000) |\n\
            | other | 1 | 0.5000 | |\n";
        assert_eq!(table(&rows), expected);
    }
}
