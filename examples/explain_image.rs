//! Explains one image with the embedded model and saves the overlay.
//!
//! ```text
//! image → resize → model + gates → attribution → overlay → PNG
//! ```
//!
//! Run: `cargo run --release --example explain_image -- IN.jpg OUT.png`
//! Prints the predicted class, its probability and the share of patches that the gates keep.
#![expect(clippy::print_stdout, reason = "an example tells what it found")]

use std::path::Path;

use anyhow::{Context, bail};
use candle_core::{D, Device};
use vitscope::explain::{Method, Target};
use vitscope::frame::resize::Resizer;
use vitscope::models;
use vitscope::overlay::{self, Heat, Overlay};
use vitscope::picture;

fn main() -> anyhow::Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = paths.as_slice() else {
        bail!("usage: explain_image IN OUT");
    };
    let model = models::open(models::DEFAULT, &Device::Cpu)?;
    let explainer = Method::DiffMask.build(model.parts())?;

    let frame = overlay::frame_from_image(picture::read(Path::new(input))?.image);
    let preprocessor = &model.preprocessor;
    let mut resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
    let (rgb, placement) = resizer.rgb_from_frame(&frame)?;

    let images = model.images_from_rgb(&[rgb])?;
    let explanation = explainer.explain(&model.vit, &images, Target::Predicted)?;
    let attribution: Vec<f32> = explanation.attribution.flatten_all()?.to_vec1()?;
    let logits = explanation.logits.context("the model has no classifier")?;
    let probabilities: Vec<f32> = candle_nn::ops::softmax(&logits, D::Minus1)?
        .flatten_all()?
        .to_vec1()?;
    let (class_idx, probability) = probabilities
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .context("the model has no classes")?;
    let caption = format!("{} {:.0} %", model.labels()[class_idx], 100.0 * probability);

    let heat = Heat {
        attribution: &attribution,
        grid: model.grid(),
        placement: &placement,
        range: explainer.range(),
    };
    let drawn = Overlay::default().draw(frame, Some(&heat), &caption)?;
    overlay::image_from_frame(&drawn)?.save(output)?;
    let kept = attribution.iter().sum::<f32>() / attribution.len() as f32;
    println!("{caption}, {:.0} % of the patches kept", 100.0 * kept);
    Ok(())
}
