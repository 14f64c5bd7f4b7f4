//! `vitscope eval temporal`: how steady and how faithful methods are on videos.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::bail;
use vitscope::data::Picture;
use vitscope::data::clip::first_frames;
use vitscope::eval::suite::Mapper;
use vitscope::eval::video::{self, Video};
use vitscope::frame::placement::ResizeRule;
use vitscope::media;
use vitscope::models::Model;
use vitscope_lab::eval::batched::BatchedModel;
use vitscope_lab::eval::journal::Journal;

use super::suites::{ComparedArgs, Found, bar};
use crate::args::one_or_more;
use crate::exit::Exit;

/// Minimum edge of the picture for finding motion, in pixels.
const FLOW_EDGE_PX: usize = 112;

#[derive(Debug, clap::Args)]
pub(super) struct TemporalArgs {
    #[command(flatten)]
    compared: ComparedArgs,
    /// Videos to evaluate on.
    #[arg(long, value_name = "VIDEO,…", value_delimiter = ',', required = true)]
    data: Vec<PathBuf>,
    /// Use only the first N frames of each video.
    #[arg(long, value_name = "N", default_value = "100", value_parser = one_or_more::<NonZeroUsize>)]
    frames: NonZeroUsize,
}

pub(super) fn run(args: &TemporalArgs) -> anyhow::Result<Exit> {
    let compared = &args.compared;
    let model = compared.asked.open()?;
    let explainers = compared.explainers(&model)?;
    let names = args.data.iter().map(|path| path.display().to_string());
    let names = names.collect::<Vec<_>>().join(",");
    let what = format!("temporal --frames {}", args.frames);
    let mut journal = compared.journal(&what, &model, &names)?;
    let mappers = Mapper::all(&explainers, compared.seed);
    let batched = BatchedModel::of(&model, compared.asked.batch.get());
    let bar = bar(args.data.len() * mappers.len());
    for (place, path) in args.data.iter().enumerate() {
        measure(
            args,
            &model,
            &batched,
            &mappers,
            (place, path),
            &mut journal,
            &bar,
        )?;
    }
    bar.finish_and_clear();
    let rows: Vec<_> = mappers
        .iter()
        .map(|mapper| mapper.row(0..args.data.len(), &journal))
        .collect();
    let found = Found {
        name: "temporal",
        command: compared.command(&what, &names, &explainers, ""),
        model: &model,
        data: names,
        n_samples: args.data.len(),
        of: "videos",
        measures: video::measures(),
        rows,
    };
    compared.tell(&found, None)
}

/// Measures one video with the methods whose scores are not in the journal.
fn measure(
    args: &TemporalArgs,
    model: &Model,
    batched: &BatchedModel<'_>,
    mappers: &[Mapper<'_>],
    (place, path): (usize, &Path),
    journal: &mut Journal,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<()> {
    let is_known =
        |mapper: &Mapper<'_>, journal: &Journal| journal.scores(&mapper.name(), place).is_some();
    if mappers.iter().all(|mapper| is_known(mapper, journal)) {
        bar.inc(mappers.len() as u64);
        return Ok(());
    }
    let preprocessor = &model.preprocessor;
    let size = preprocessor.image_size();
    let times = FLOW_EDGE_PX.div_ceil(size.width_px.min(size.height_px).max(1));
    let frames = |rule: ResizeRule| -> anyhow::Result<Vec<Picture>> {
        let mut source = media::read(path)?;
        let frames = first_frames(
            &mut source,
            rule,
            preprocessor.resampling,
            args.frames.get(),
        )?;
        if frames.len() < 2 {
            bail!("the video has only one frame, steadiness requires two: {path:?}");
        }
        Ok(frames)
    };
    let video = Video::new(
        &frames(preprocessor.rule)?,
        &frames(preprocessor.rule.times(times))?,
        (preprocessor.mean, preprocessor.std),
    )?;
    for mapper in mappers {
        if !is_known(mapper, journal) {
            let scores = video::score(batched, &model.vit, &video, mapper, args.compared.seed)?;
            journal.add(&mapper.name(), place, scores)?;
        }
        bar.inc(1);
    }
    Ok(())
}
