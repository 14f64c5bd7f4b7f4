//! Times a video through the whole pipeline, as in `vitscope file`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use serde::Serialize;
use vitscope::Request;
use vitscope::explain::Method;
use vitscope::media::{self, FileJob};
use vitscope::models::Model;
use vitscope::overlay::Overlay;
use vitscope::pipeline::stages::View;
use vitscope::pipeline::{Pipeline, Report, STAGES};

use super::{BenchArgs, passes, width};

/// Results of one run through the pipeline.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    model: String,
    method: String,
    batch: usize,
    frames: u64,
    frames_per_s: f64,
    /// Frames per second relative to those of the explainer alone.
    of_explainer_alone: f64,
    /// Milliseconds per frame that each stage worked; the stages overlap.
    stage_ms: [f64; STAGES.len()],
}

/// Runs the video through the pipeline once for every model, method and batch size that was timed before.
pub(super) fn measure(
    args: &BenchArgs,
    path: &Path,
    models: &[Arc<Model>],
    timed: &[passes::Figures],
) -> anyhow::Result<Vec<Figures>> {
    let mut figures = Vec::new();
    for model in models {
        for &batch in &args.batch {
            for name in passes::names(&args.method, model) {
                let Some(method) = passes::method(name)? else {
                    continue;
                };
                let report = run(path, model, method, batch)
                    .with_context(|| format!("cannot explain {path:?}"))?;
                let alone = timed.iter().find(|row| {
                    (row.model.as_str(), row.method.as_str(), row.batch)
                        == (model.name.as_str(), method.name(), batch.get())
                });
                let alone = alone.map_or(f64::NAN, |row| row.images_per_s);
                let frames = report.counts.frames;
                figures.push(Figures {
                    model: model.name.clone(),
                    method: method.name().to_owned(),
                    batch: batch.get(),
                    frames,
                    frames_per_s: report.frames_fps(),
                    of_explainer_alone: report.frames_fps() / alone,
                    stage_ms: report
                        .busy
                        .map(|busy| busy.as_secs_f64() * 1e3 / frames.max(1) as f64),
                });
            }
        }
    }
    Ok(figures)
}

fn run(
    path: &Path,
    model: &Arc<Model>,
    method: Method,
    batch: NonZeroUsize,
) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    let job = FileJob::new(path, folder.path().join("bench.mkv"));
    let (mut source, sink) = media::open(&job)?;
    let request = Request {
        methods: vec![method],
        ..Request::default()
    };
    let pipeline = Pipeline {
        view: View::of(&request, Arc::clone(model))?,
        overlay: Overlay::default(),
        every: NonZeroU64::MIN,
        batch,
        is_video: true,
        cancel: &AtomicBool::new(false),
        on_frame: Box::new(|_| Ok(())),
    };
    Ok(pipeline.run(&mut source, Box::new(sink))?)
}

pub(super) fn table(figures: &[Figures]) -> String {
    let model = width(figures.iter().map(|row| row.model.as_str()));
    let method = width(figures.iter().map(|row| row.method.as_str()));
    let mut text = format!(
        "{:model$}  {:method$}  batch  frames  frames/s  of alone  ms per frame:",
        "model", "method"
    );
    for stage in STAGES {
        text += &format!(" {:>9}", stage.trim_start_matches("vitscope-"));
    }
    text += "\n";
    for row in figures {
        text += &format!(
            "{:model$}  {:method$}  {:5}  {:6}  {:8.1}  {:8.2}               ",
            row.model, row.method, row.batch, row.frames, row.frames_per_s, row.of_explainer_alone
        );
        for ms in row.stage_ms {
            text += &format!(" {ms:9.2}");
        }
        text += "\n";
    }
    text
}
