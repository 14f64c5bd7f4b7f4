//! Builds what the options request: device, model, methods and overlay.

use std::sync::Arc;

use anyhow::{Context, bail};
use vitscope::Request;
use vitscope::explain::{Explainer, Method, Target, rehearse_all};
use vitscope::models::Model;
use vitscope::overlay::Overlay;
use vitscope::pipeline::stages::View;
use vitscope_core::changes;

use crate::args::{DrawArgs, Upsample};

/// Loads the model and tries the methods on one image, so that wrong options fail before anything is written; `changes`
/// are those made by `--set`.
pub fn view(mut request: Request, changes: &[String]) -> anyhow::Result<View> {
    let model = request.open_model()?;
    // The methods that options may apply to are known only now.
    let methods = request.methods_for(&model);
    let is_asked = |name: &str| methods.iter().any(|method| method.name() == name);
    request.options = options_by_method(changes, is_asked)?;
    let view = View::of(&request, Arc::new(model))?;
    view.check()?;
    Ok(view)
}

/// Builds the explainers with the changes made by `--set`.
pub fn explainers(
    methods: &[Method],
    changes: &[String],
    model: &Model,
) -> anyhow::Result<Vec<Box<dyn Explainer>>> {
    let is_asked = |name: &str| methods.iter().any(|known| known.name() == name);
    let request = Request {
        methods: methods.to_vec(),
        options: options_by_method(changes, is_asked)?,
        ..Request::default()
    };
    Ok(request.explainers(model)?)
}

/// Groups the options in `--set METHOD.KEY=VALUE` by method; options of methods that are not selected are refused.
pub fn options_by_method(
    changes: &[String],
    is_asked: impl Fn(&str) -> bool,
) -> anyhow::Result<toml::Table> {
    let mut options = toml::Table::new();
    for change in changes {
        for (method, values) in changes::parse(change).context("--set")? {
            let toml::Value::Table(values) = values else {
                bail!("--set takes METHOD.KEY=VALUE, got {change:?}");
            };
            if !is_asked(&method) {
                // Reports a method that does not exist at all.
                method.parse::<Method>().context("--set")?;
                bail!("--set {change:?} is for a method that is not selected");
            }
            changes::set_options(&mut options, &method, values);
        }
    }
    Ok(options)
}

/// Checks that all methods work with the model, at the cost of about one pass.
pub fn rehearse(explainers: &[Box<dyn Explainer>], model: &Model) -> vitscope::Result<()> {
    let image = model.gray_image()?;
    rehearse_all(explainers, &model.vit, &image, &[Target::Predicted]).map(|_| ())
}

/// Returns the overlay that the drawing options describe.
pub fn overlay(args: &DrawArgs) -> Overlay {
    Overlay {
        mode: args.mode,
        colormap: args.colormap,
        alpha: args.alpha,
        smooth: args.upsample == Upsample::Bilinear,
        threshold: args.threshold,
    }
}
