//! Builds what the options ask for: device, model, methods and overlay.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use vitscope::changes;
use vitscope::explain::{Explainer, Method, Parts, Target, rehearse_all};
use vitscope::models::{self, Model, Reference};
use vitscope::overlay::Overlay;
use vitscope::pipeline::stages::View;

use crate::args::{DrawArgs, ExplainArgs, Upsample};

/// Loads the model and tries the methods on one image, so that wrong options fail before anything is written.
pub fn view(args: &ExplainArgs) -> anyhow::Result<View> {
    let device = args.device.open()?;
    let reference = Reference {
        input: args.input.asked(),
        ..Reference::over(&args.model, args.backbone.as_deref())
    };
    let model = models::open(reference, &device)?;
    let default = [model.default_method()];
    let methods = match args.method.as_slice() {
        [] => &default,
        methods => methods,
    };
    let targets = args
        .target
        .iter()
        .map(|name| model.target(name))
        .collect::<vitscope::Result<_>>()?;
    let view = View {
        explainers: explainers(methods, &args.set, model.parts())?,
        model: Arc::new(model),
        targets,
    };
    view.check()?;
    Ok(view)
}

/// The explainers, with what `--set` changes of them.
pub fn explainers(
    methods: &[Method],
    changes: &[String],
    parts: Parts<'_>,
) -> anyhow::Result<Vec<Box<dyn Explainer>>> {
    let is_asked = |name: &str| methods.iter().any(|known| known.name() == name);
    let options = options_by_method(changes, is_asked)?;
    methods
        .iter()
        .map(|method| {
            let options = options.get(method.name()).cloned().unwrap_or_default();
            Ok(method.build_with(parts, options)?)
        })
        .collect()
}

/// What `--set METHOD.KEY=VALUE` says of each method; those that are not asked for are refused.
pub fn options_by_method(
    changes: &[String],
    is_asked: impl Fn(&str) -> bool,
) -> anyhow::Result<BTreeMap<String, toml::Table>> {
    let mut options: BTreeMap<String, toml::Table> = BTreeMap::new();
    for change in changes {
        for (method, values) in changes::parse(change).context("--set")? {
            let toml::Value::Table(values) = values else {
                bail!("--set takes METHOD.KEY=VALUE, got {change:?}");
            };
            if !is_asked(&method) {
                // Says so where there is no such method at all.
                method.parse::<Method>().context("--set")?;
                bail!("--set {change:?} is for a method that is not selected");
            }
            options.entry(method).or_default().extend(values);
        }
    }
    Ok(options)
}

/// Fails where a method does not go with the model, at the price of a pass or so.
pub fn rehearse(explainers: &[Box<dyn Explainer>], model: &Model) -> vitscope::Result<()> {
    let image = model.gray_image()?;
    rehearse_all(explainers, &model.vit, &image, &[Target::Predicted]).map(|_| ())
}

/// What the drawing options say.
pub fn overlay(args: &DrawArgs) -> Overlay {
    Overlay {
        mode: args.mode,
        colormap: args.colormap,
        alpha: args.alpha,
        smooth: args.upsample == Upsample::Bilinear,
        threshold: args.threshold,
    }
}
