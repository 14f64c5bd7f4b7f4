//! `vitscope eval gates`: how gates' masks preserve a model's answers.

use std::num::NonZeroUsize;

use anyhow::Context;
use vitscope::data::{self, Picture};
use vitscope::models::Preprocessor;
use vitscope::rng::Rng;
use vitscope_core::gates::MARGIN;
use vitscope_lab::eval::masks::{Choice, MaskScores, answers_by_choice};

use super::{AskedArgs, gates_of, tell_left_out, test_half};
use crate::args::{one_or_more, positive};
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct GatesArgs {
    #[command(flatten)]
    asked: AskedArgs,
    /// Pictures to mask: a data set (its test half), a folder of pictures or videos, or a video; labels are not needed.
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Use only the first N pictures.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = one_or_more::<NonZeroUsize>)]
    pictures: NonZeroUsize,
    /// Largest divergence, in nats, at which a masked answer counts as preserved.
    #[arg(long, value_name = "NATS", default_value_t = MARGIN, value_parser = positive)]
    margin: f64,
    /// Random seed of the random masks.
    #[arg(long, default_value = "0")]
    seed: u64,
}

pub(super) fn run(args: &GatesArgs) -> anyhow::Result<Exit> {
    let model = args.asked.open()?;
    let gates = gates_of(&model, &args.asked.model)?;
    let test = test_half(&args.data, &model.preprocessor)?;
    let Preprocessor { mean, std, .. } = model.preprocessor;
    let frozen = gates.freeze()?;
    let mut rng = Rng::new(args.seed);
    let mut by_choice = [const { Vec::new() }; Choice::ALL.len()];
    let indices: Vec<usize> = (0..test.len().min(args.pictures.get())).collect();
    for chunk in indices.chunks(args.asked.batch.get()) {
        let pictures = data::readable(&*test, chunk)?;
        let pictures: Vec<Picture> = pictures.into_iter().map(|(_, picture)| picture).collect();
        let images = data::images_from_pictures(&pictures, mean, std, model.vit.device())?;
        let gates = (&frozen, gates.removal());
        let answers = answers_by_choice(&model.vit, gates, &images, args.margin, &mut rng)
            .with_context(|| format!("model {:?}", args.asked.model))?;
        for (all, answers) in by_choice.iter_mut().zip(answers) {
            all.extend(answers);
        }
    }
    println!(
        "{} pictures, KL(original ‖ masked) in nats, margin {}\n\n{:25}    kept      KL  within  same class",
        by_choice[0].len(),
        args.margin,
        "masks"
    );
    for (choice, answers) in Choice::ALL.iter().zip(&by_choice) {
        let scores = MaskScores::of(answers, args.margin);
        println!(
            "{choice:25}  {:.4}  {:.4}  {:.4}      {:.4}",
            scores.kept, scores.kl, scores.within, scores.agreement
        );
    }
    tell_left_out(&*test);
    Ok(Exit::Whole)
}
