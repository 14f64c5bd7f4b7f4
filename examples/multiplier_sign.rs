//! Tests whether DiffMask's multipliers must rise or fall when the divergence exceeds the margin.
//!
//! ```sh
//! cargo run --release --example multiplier_sign -- multiplier_sign.png
//! ```
//!
//! Trains gates for the embedded `red-patches` model with three seeds in each direction, and plots the multipliers and
//! divergences. The objective is maximized over the multipliers, so they must ascend; the released Vision DiffMask
//! code loses the negation of their gradient, so they descend. Takes ten minutes on one core.
#![expect(clippy::print_stdout, reason = "an example tells what it found")]

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use vitscope::train::diffmask::{self, DiffMaskRecipe};
use vitscope::train::{History, Subject};
use vitscope::{data, models};

const SEEDS: u64 = 3;
const STEPS: u64 = 3000;

/// Plotted data: running means over steps, and the effect of binary masks on test images.
const COLUMNS: &[&str] = &["lambda", "kl of sampled masks", "test kl", "test kept"];

/// Weight of the newest step in a running mean.
const NEWEST: f64 = 0.02;

fn main() -> Result<()> {
    let path = std::env::args()
        .nth(1)
        .context("usage: multiplier_sign OUT.png")?;
    let model = models::open("red-patches", &Device::Cpu)?;
    let (rule, resampling) = (model.preprocessor.rule, model.preprocessor.resampling);
    let halves = data::open("red-patches", rule, resampling, 0)?;
    let subject = Subject {
        vit: &model.vit,
        size: model.preprocessor.image_size(),
        base_sha256: &model.weights_sha256,
        mean: model.preprocessor.mean,
        std: model.preprocessor.std,
        train: &*halves.train,
        test: &*halves.test,
    };
    let mut runs = Vec::new();
    for (label, ascend) in [("ascent", true), ("descent", false)] {
        for seed in 0..SEEDS {
            let recipe = DiffMaskRecipe {
                seed,
                ascend,
                steps: STEPS,
                test_steps: 100,
                // Run both directions to the end.
                patience: 0,
                ..DiffMaskRecipe::default()
            };
            let folder = tempfile::tempdir()?;
            let mut history = History::new(COLUMNS);
            let mut means = [f64::NAN; 2];
            let done = diffmask::train(&recipe, subject, folder.path(), &mut |progress| {
                let value = |name: &str| {
                    let column = progress.names.iter().position(|known| *known == name);
                    column.map_or(f64::NAN, |column| progress.values[column])
                };
                for (mean, name) in means.iter_mut().zip(["lambda", "kl"]) {
                    let value = value(name);
                    *mean += NEWEST * (value - *mean);
                    if mean.is_nan() {
                        *mean = value;
                    }
                }
                let [lambda, kl] = means;
                let row = [lambda, kl, value("test kl"), value("test kept")];
                history.push(progress.step, &row);
                true
            })?;
            let (card, agreement) = (done.card, done.agreement);
            println!(
                "{label} {seed}: binary masks kl {:.4}, kept {:.4}, agreement {agreement:.4}",
                card.kl, card.l0
            );
            runs.push((label, history));
        }
    }
    History::save_comparison_png(&runs, Path::new(&path), "DiffMask's multipliers")?;
    println!("curves in {path:?}");
    Ok(())
}
