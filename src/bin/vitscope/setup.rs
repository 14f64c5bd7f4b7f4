//! Builds what the options ask for: device, model, method and overlay.

use std::sync::Arc;

use anyhow::{Context, bail};
use candle_core::Device;
use vitscope::explain::{Method, Parts, Target};
use vitscope::models;
use vitscope::overlay::Overlay;
use vitscope::pipeline::stages::View;

use crate::args::{DeviceChoice, DrawArgs, ExplainArgs, Upsample};

/// Loads the model and tries the method on one image, so that wrong options fail before anything is written.
pub fn view(args: &ExplainArgs) -> anyhow::Result<View> {
    let device = device(args.device)?;
    let model = models::open(&args.model, &device)?;
    let method = args.method.unwrap_or(if model.gates.is_some() {
        Method::DiffMask
    } else {
        Method::Rollout
    });
    let target = match args.target.as_str() {
        "predicted" => Target::Predicted,
        class => Target::Class(model.class_index(class)?),
    };
    let view = View {
        explainer: method.build(Parts {
            gates: model.gates.as_ref(),
        })?,
        range: method.range(),
        model: Arc::new(model),
        target,
    };
    view.check()?;
    Ok(view)
}

/// The device that `--device` names.
pub fn device(choice: DeviceChoice) -> anyhow::Result<Device> {
    if !cfg!(feature = "cuda") && matches!(choice, DeviceChoice::Cuda(_)) {
        bail!("this program was built without CUDA, which takes `cargo build --features cuda`");
    }
    choice.open().context("no CUDA device")
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
