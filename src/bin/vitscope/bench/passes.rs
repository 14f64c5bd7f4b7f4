//! Timed passes of pictures through models.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use candle_core::{D, Device, Tensor};
use serde::Serialize;
use vitscope::eval::perturbation::{Protocol, RISE, Steps, curves};
use vitscope::eval::suite::Subject;
use vitscope::explain::{Explainer, Method, Target};
use vitscope::models::Model;
use vitscope::rng::Rng;
use vitscope::vit::{Probe, Site};
use vitscope_lab::eval::batched::BatchedModel;

use super::{BenchArgs, width};

/// Name of a case that explains nothing.
const FORWARD: &str = "forward";
/// Name of a case that computes the gradient of the strongest class at every site that a method may read.
const BACKWARD: &str = "backward";
/// Name of a case that masks as many copies of a picture as fit into one pass, in the order of a map.
const MASKED: &str = "masked";

/// Number of runs of each case before the first that counts.
const WARM_UP: usize = 3;

/// A run that takes longer than this is warm after a part of it.
const COLD_SECS: f64 = 2.0;

/// The work done on pictures.
enum Work {
    Forward,
    Backward,
    Masked(Box<Subject>, Vec<f32>),
    Explain(Box<dyn Explainer>),
}

/// One row of the table.
struct Case<'a> {
    model: &'a Model,
    work: Work,
    images: Tensor,
    /// Duration of each repetition in seconds.
    secs: Vec<f64>,
    /// Duration of all runs in seconds.
    spent_secs: f64,
}

/// Results of a case.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) model: String,
    pub(super) method: String,
    pub(super) batch: usize,
    repetitions: usize,
    /// Median over the repetitions.
    pub(super) ms_per_image: f64,
    /// 95th percentile.
    ms_per_image_p95: f64,
    pub(super) images_per_s: f64,
    /// Time relative to that of the plain model with the same batch size, if that was timed, too.
    over_forward: Option<f64>,
}

/// Times all cases, interleaved.
pub(super) fn measure(
    args: &BenchArgs,
    models: &[Arc<Model>],
    device: &Device,
) -> anyhow::Result<Vec<Figures>> {
    let mut cases = Vec::new();
    for model in models {
        for &batch in &args.batch {
            for method in names(&args.method, model) {
                cases.push(Case::new(model, method, batch.get(), device)?);
            }
        }
    }
    for round in 0..WARM_UP + args.repeat.get() {
        for case in &mut cases {
            if case.spent_secs > args.limit && !case.secs.is_empty() {
                continue;
            }
            let start = Instant::now();
            case.run(device)?;
            let secs = start.elapsed().as_secs_f64();
            case.spent_secs += secs;
            if round >= WARM_UP || secs > COLD_SECS {
                case.secs.push(secs);
            }
        }
    }
    let mut figures: Vec<Figures> = cases.iter_mut().map(Case::figures).collect();
    for figure_idx in 0..figures.len() {
        let case = &figures[figure_idx];
        let bare = figures.iter().find(|other| {
            (&other.model, other.batch) == (&case.model, case.batch) && other.method == FORWARD
        });
        let ratio = bare.map(|bare| case.ms_per_image / bare.ms_per_image);
        figures[figure_idx].over_forward = ratio;
    }
    Ok(figures)
}

/// Returns the names of the cases; `all` stands for `forward` and all methods whose trained parts the model has.
pub(super) fn names<'a>(asked: &'a [String], model: &Model) -> Vec<&'a str> {
    let methods = Method::ALL.iter();
    let built = methods.filter(|method| method.build(model.parts()).is_ok());
    let all = std::iter::once(FORWARD).chain(built.map(|method| method.name()));
    let named = asked.iter().flat_map(|name| match name.as_str() {
        "all" => all.clone().collect(),
        name => vec![name],
    });
    named.collect()
}

/// Returns the method of that name; `None` for passes that explain nothing.
pub(super) fn method(name: &str) -> anyhow::Result<Option<Method>> {
    if [FORWARD, BACKWARD, MASKED].contains(&name) {
        return Ok(None);
    }
    let Ok(method) = name.parse() else {
        bail!(
            "unknown method {name:?}, expected {FORWARD}, {BACKWARD}, {MASKED}, all, or a method listed by \
             `vitscope methods`"
        );
    };
    Ok(Some(method))
}

impl<'a> Case<'a> {
    fn new(model: &'a Model, name: &str, batch: usize, device: &Device) -> anyhow::Result<Self> {
        let size = model.preprocessor.image_size();
        let dims = (batch, 3, size.height_px, size.width_px);
        let images = Rng::new(1).normal_tensor(dims, device)?;
        let work = match method(name)? {
            Some(method) => Work::Explain(method.build(model.parts())?),
            None if name == BACKWARD => Work::Backward,
            None if name == MASKED => {
                let (rows, columns) = model.grid();
                let map = Rng::new(2).normal_tensor(rows * columns, &Device::Cpu)?;
                Work::Masked(Box::new(subject(&images)?), map.to_vec1()?)
            }
            None => Work::Forward,
        };
        Ok(Self {
            model,
            work,
            images,
            secs: Vec::new(),
            spent_secs: 0.0,
        })
    }

    /// Runs one pass, which ends when its result has arrived in CPU memory.
    fn run(&self, device: &Device) -> anyhow::Result<()> {
        let (vit, images) = (&self.model.vit, &self.images);
        let result = match &self.work {
            Work::Forward => vit.forward(images)?.tokens,
            Work::Backward => {
                let mut probe = Probe::new(Site::all(vit.n_blocks()));
                let logits = vit.forward_with(images, &mut probe)?.logits;
                let logits = logits.context(
                    "the model has no head, so there is no class score to differentiate",
                )?;
                let strongest = logits.max(D::Minus1)?.sum_all()?;
                let grads = vitscope_kernels::in_pool(|| strongest.backward())?;
                probe.gradient(Site::PatchEmbeddings, &grads)?
            }
            Work::Masked(subject, map) => {
                let batch = images.dim(0)?;
                let protocol = Protocol {
                    steps: Steps::Equal(batch.saturating_sub(1)),
                    runs: &RISE.runs[..1],
                    ..RISE
                };
                let batched = BatchedModel::of(self.model, batch);
                let subjects = std::slice::from_ref(&**subject);
                let curves = curves(&batched, &protocol, subjects, std::slice::from_ref(map))?;
                std::hint::black_box(curves);
                return Ok(());
            }
            Work::Explain(explainer) => {
                explainer
                    .explain(vit, images, Target::Predicted)?
                    .attribution
            }
        };
        std::hint::black_box(result);
        Ok(device.synchronize()?)
    }

    fn figures(&mut self) -> Figures {
        self.secs.sort_by(f64::total_cmp);
        let batch = self.images.dims().first().copied().unwrap_or(1);
        let at = |share: f64| {
            let last = self.secs.len().saturating_sub(1);
            let secs = self.secs.get((last as f64 * share).round() as usize);
            secs.copied().unwrap_or(f64::NAN) * 1e3 / batch as f64
        };
        let method = match &self.work {
            Work::Forward => FORWARD,
            Work::Backward => BACKWARD,
            Work::Masked(..) => MASKED,
            Work::Explain(explainer) => explainer.name(),
        };
        Figures {
            model: self.model.name.clone(),
            method: method.to_owned(),
            batch,
            repetitions: self.secs.len(),
            ms_per_image: at(0.5),
            ms_per_image_p95: at(0.95),
            images_per_s: 1e3 / at(0.5),
            over_forward: None,
        }
    }
}

/// Returns the first of some images, as a subject of measurement.
fn subject(images: &Tensor) -> candle_core::Result<Subject> {
    Ok(Subject {
        index: 0,
        image: images.narrow(0, 0, 1)?.flatten_all()?.to_vec1()?,
        predicted: 0,
        runner_up: 0,
        label: None,
    })
}

pub(super) fn table(figures: &[Figures]) -> String {
    let model = width(figures.iter().map(|row| row.model.as_str()));
    let method = width(figures.iter().map(|row| row.method.as_str()));
    let mut text = format!(
        "{:model$}  {:method$}  batch  ms/image      p95  images/s  of forward\n",
        "model", "method"
    );
    for row in figures {
        let ratio = row
            .over_forward
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        text += &format!(
            "{:model$}  {:method$}  {:5}  {:8.2}  {:7.2}  {:8.1}  {ratio:>10}\n",
            row.model,
            row.method,
            row.batch,
            row.ms_per_image,
            row.ms_per_image_p95,
            row.images_per_s
        );
    }
    text
}
