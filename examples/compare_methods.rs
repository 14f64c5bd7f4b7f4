//! Compares methods on one image: draws a grid of maps and prints how well the methods agree.
//!
//! ```sh
//! cargo run --release --example compare_methods -- IN.jpg OUT.png diffmask gradmask chefer gradcam
//! ```
//!
//! All methods share one forward and one backward pass. Agreement is Spearman's rank correlation over the patches: 1 if
//! two methods rank them identically, 0 if the rankings are unrelated.
#![expect(clippy::print_stdout, reason = "an example tells what it found")]

use std::path::Path;

use anyhow::bail;
use candle_core::Device;
use vitscope::explain::{Method, Target, explain_all};
use vitscope::frame::resize::Resizer;
use vitscope::models;
use vitscope::overlay::{self, Heat, Overlay};
use vitscope::picture;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, names @ ..] = args.as_slice() else {
        bail!("usage: compare_methods IN OUT METHOD...");
    };
    let model = models::open("cifar10", &Device::Cpu)?;
    let explainers = names
        .iter()
        .map(|name| name.parse::<Method>()?.build(model.parts()))
        .collect::<vitscope::Result<Vec<_>>>()?;

    let frame = overlay::frame_from_image(picture::read(Path::new(input))?.image);
    let preprocessor = &model.preprocessor;
    let mut resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
    let (rgb, placement) = resizer.rgb_from_frame(&frame)?;

    let images = model.images_from_rgb(&[rgb])?;
    let found = explain_all(&explainers, &model.vit, &images, &[Target::Predicted])?;
    let maps = found
        .attributions
        .iter()
        .map(|map| map.flatten_all()?.to_vec1())
        .collect::<candle_core::Result<Vec<Vec<f32>>>>()?;

    let panes: Vec<(Option<Heat<'_>>, String)> = explainers
        .iter()
        .zip(&maps)
        .map(|(explainer, attribution)| {
            let heat = Heat {
                attribution,
                grid: model.grid(),
                placement: &placement,
                range: explainer.range(),
            };
            (Some(heat), explainer.name().to_owned())
        })
        .collect();
    let drawn = Overlay::default().draw_grid(&frame, &panes)?;
    overlay::image_from_frame(&drawn)?.save(output)?;

    for (explainer, map) in explainers.iter().zip(&maps) {
        let agreement: Vec<String> = maps
            .iter()
            .map(|other| format!("{:6.2}", correlation(&ranks(map), &ranks(other))))
            .collect();
        println!("{:22} {}", explainer.name(), agreement.join(" "));
    }
    Ok(())
}

/// Rank of each value; ties get the mean of their ranks.
fn ranks(values: &[f32]) -> Vec<f64> {
    let rank = |value: &f32| {
        let below = values.iter().filter(|other| *other < value).count();
        let equal = values.iter().filter(|other| *other == value).count();
        below as f64 + (equal as f64 - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

/// Pearson correlation; 0 if one side is constant.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let centered = |values: &[f64]| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter().map(|value| value - mean).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (a, b) = (centered(a), centered(b));
    let lengths = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if lengths > 0.0 {
        dot(&a, &b) / lengths
    } else {
        0.0
    }
}
