//! `report.html`: the results of a run in one self-contained file to view and share.

use std::fmt::Write;
use std::path::Path;

use candle_core::{D, Tensor};
use image::RgbImage;
use image::imageops::FilterType;

use super::{DiffMaskRecipe, TrainedGates};
use crate::data::{Picture, readable};
use crate::eval::report::{data_uri, escaped, png};
use crate::eval::{self, MaskedAnswer, masked_answers};
use crate::train::Subject;
use vitscope_core::error::{Error, Result};
use vitscope_core::files::write_whole;
use vitscope_core::frame::placement::{Placement, ResizeRule};
use vitscope_core::gates::{
    GateSizes, KEEP, VotingGates, binary_masks, clean_pass, masked_pass, tensor_from_masks,
};
use vitscope_video::overlay::{Heat, Mode, Overlay, Range, frame_from_image, image_from_frame};

/// File name in the run's folder.
const FILE: &str = "report.html";
/// Number of example images.
const SHOWN: usize = 8;
/// Side of an example image.
const SIDE_PX: u32 = 176;
/// Number of histogram bars.
const BINS: usize = 20;
/// Number of images per forward pass.
const CHUNK: usize = 16;

/// Results of gates on the test images.
struct Found {
    answers: Vec<MaskedAnswer>,
    /// Mean mask of each depth over images and patches.
    kept_by_depth: Vec<f64>,
    examples: Vec<Example>,
}

/// An image with its mask.
struct Example {
    picture: Picture,
    mask: Vec<f32>,
    before: (usize, f32),
    after: (usize, f32),
    answer: MaskedAnswer,
}

/// Writes the report of trained gates into `folder`, which holds the curves of the run.
pub(super) fn write(
    done: &TrainedGates,
    recipe: &DiffMaskRecipe,
    subject: Subject<'_>,
    folder: &Path,
) -> Result<()> {
    let tensors = done.tensors.clone().into_iter().collect();
    let gates = VotingGates::load(
        GateSizes::new(subject.vit.config()),
        done.card.stretch,
        &tensors,
    )?;
    let found = look(&gates, subject, recipe.test_pictures)?;
    let curves = folder.join("gates.png");
    let curves = std::fs::read(&curves).map_err(|error| Error::io(curves, error))?;
    let html = html(done, recipe.margin, subject, &found, &curves)?;
    write_whole(&folder.join(FILE), html.as_bytes())
}

fn look(gates: &VotingGates, subject: Subject<'_>, n_pictures: usize) -> Result<Found> {
    let n_states = gates.sizes().states;
    let mut found = Found {
        answers: Vec::new(),
        kept_by_depth: vec![0.0; n_states],
        examples: Vec::new(),
    };
    for indices in subject.test_chunks(n_pictures, CHUNK) {
        let pictures = readable(subject.test, &indices)?;
        let pictures: Vec<Picture> = pictures.into_iter().map(|(_, picture)| picture).collect();
        let images = subject.images_of(&pictures)?;
        let clean = clean_pass(subject.vit, &images)?;
        let original = eval::logits(clean.output.logits)?;
        let masks = gates.masks(&clean.states, n_states - 1)?;
        for (kept, mask) in found.kept_by_depth.iter_mut().zip(&masks) {
            let sum = mask.mean(D::Minus1)?.sum_all()?;
            *kept += f64::from(sum.to_scalar::<f32>()?);
        }
        let Some(mask) = masks.last() else {
            return Err(Error::Model("a model has at least two states".into()));
        };
        let mask: Vec<Vec<f32>> = mask.to_vec2()?;
        let binary = binary_masks(&mask);
        let answers = masked_answers(subject.vit, &images, &original, &binary, gates.removal())?;
        if found.examples.len() < SHOWN {
            let kept = tensor_from_masks(&binary, images.device())?;
            let masked = masked_pass(subject.vit, &images, &kept, gates.removal())?;
            let before = best(&original)?.into_iter();
            let after = best(&eval::logits(masked.logits)?)?;
            let of_answers = before.zip(after).zip(mask).zip(&answers);
            for (picture, (((before, after), mask), answer)) in pictures.into_iter().zip(of_answers)
            {
                found.examples.push(Example {
                    picture,
                    mask,
                    before,
                    after,
                    answer: *answer,
                });
            }
            found.examples.truncate(SHOWN);
        }
        found.answers.extend(answers);
    }
    let n_pictures = found.answers.len().max(1) as f64;
    for kept in &mut found.kept_by_depth {
        *kept /= n_pictures;
    }
    Ok(found)
}

/// Returns the most probable class and its probability for each image.
fn best(logits: &Tensor) -> Result<Vec<(usize, f32)>> {
    let probabilities: Vec<Vec<f32>> = candle_nn::ops::softmax(logits, D::Minus1)?.to_vec2()?;
    let of_image = |row: Vec<f32>| {
        let best = row.into_iter().enumerate();
        best.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
    };
    Ok(probabilities.into_iter().map(of_image).collect())
}

fn html(
    done: &TrainedGates,
    margin: f64,
    subject: Subject<'_>,
    found: &Found,
    curves: &[u8],
) -> Result<String> {
    let (card, labels) = (&done.card, &subject.vit.config().labels);
    let name = |class: usize| {
        let label = labels.get(class).map_or("?", String::as_str);
        escaped(label)
    };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>DiffMask gates</title>\n\
         <style>body{{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}}\
         table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:left}}\
         figure{{display:inline-block;margin:.3em}}figcaption{{font-size:13px}}\
         img.small{{width:{SIDE_PX}px;image-rendering:pixelated}}img.wide{{max-width:100%}}</style>\n\
         <h1>DiffMask gates</h1>\n"
    );
    let within = found.answers.iter().filter(|answer| answer.kl <= margin);
    let within = within.count() as f64 / found.answers.len().max(1) as f64;
    let rows = [
        (
            "training pictures",
            format!(
                "{} of {}",
                subject.train.len(),
                escaped(subject.train.name())
            ),
        ),
        ("test pictures", found.answers.len().to_string()),
        ("kept share of binary masks", format!("{:.3}", card.l0)),
        (
            "KL(original ‖ masked), nats",
            format!("{:.4}, at most {} allowed", card.kl, margin),
        ),
        (
            "pictures within the margin",
            format!("{:.1} %", 100.0 * within),
        ),
        (
            "same class as for the whole picture",
            format!("{:.1} %", 100.0 * done.agreement),
        ),
        ("seed", card.seed.to_string()),
        (
            "weights",
            format!("<code>{}</code>", escaped(&card.base_sha256)),
        ),
    ];
    page += "<table>\n";
    for (what, value) in rows {
        let _ = writeln!(page, "<tr><th>{what}<td>{value}");
    }
    page += "</table>\n<h2>Pictures</h2>\n<p>The whole picture, the heatmap, and the part that binary masks keep.\n";
    for example in &found.examples {
        page += &shown(example, subject, &name)?;
    }
    let kept: Vec<f64> = found.answers.iter().map(|answer| answer.kept).collect();
    let kl: Vec<f64> = found.answers.iter().map(|answer| answer.kl).collect();
    let highest = kl.iter().copied().fold(4.0 * margin, f64::max);
    let _ = write!(
        page,
        "<h2>Over all pictures</h2>\n{}\n{}\n",
        histogram("kept share", &kept, 1.0),
        histogram("KL(original ‖ masked), nats", &kl, highest)
    );
    page += "<h2>Votes by depth</h2>\n<p>Mean of the mask when only the gates up to a state vote. States are the \
             patch embeddings, the input of each block and the output of the last block.\n";
    page += &bars(&found.kept_by_depth, "state");
    let _ = write!(
        page,
        "<h2>Curves</h2>\n<img class=\"wide\" alt=\"curves of the run\" src=\"{}\">\n",
        data_uri(curves)
    );
    page += "<h2>Recipe</h2>\n<pre>";
    for (key, value) in &card.recipe {
        let _ = writeln!(page, "{} = {}", escaped(key), escaped(&value.to_string()));
    }
    page += "</pre>\n</html>\n";
    Ok(page)
}

/// Renders an image three times: original, with its heat map, and masked.
fn shown(
    example: &Example,
    subject: Subject<'_>,
    name: &dyn Fn(usize) -> String,
) -> Result<String> {
    let size = example.picture.size;
    let raw = RgbImage::from_raw(
        size.width_px as u32,
        size.height_px as u32,
        example.picture.rgb.clone(),
    );
    let Some(raw) = raw else {
        return Err(Error::Data(
            "a picture's number of bytes does not match its size".into(),
        ));
    };
    let scale = f64::from(SIDE_PX) / size.width_px.max(size.height_px) as f64;
    let scaled = |edge: usize| ((edge as f64 * scale).round() as u32).max(1);
    let (width, height) = (scaled(size.width_px), scaled(size.height_px));
    let large = image::imageops::resize(&raw, width, height, FilterType::Triangle);
    let rule = ResizeRule::Stretch(size);
    let mut figures = String::new();
    let captions = [
        (
            Mode::Original,
            format!(
                "{} {:.0} %",
                name(example.before.0),
                100.0 * example.before.1
            ),
        ),
        (Mode::Overlay, format!("KL {:.3}", example.answer.kl)),
        (
            Mode::Mask,
            format!(
                "{} {:.0} %, keeps {:.0} %",
                name(example.after.0),
                100.0 * example.after.1,
                100.0 * example.answer.kept
            ),
        ),
    ];
    for (mode, caption) in captions {
        let frame = frame_from_image(large.clone());
        let placement = Placement::new(&rule, frame.size())?;
        let heat = Heat {
            attribution: &example.mask,
            grid: subject.vit.grid(size.height_px, size.width_px),
            placement: &placement,
            range: Range::Unit,
        };
        let overlay = Overlay {
            mode,
            threshold: KEEP,
            ..Overlay::default()
        };
        let drawn = image_from_frame(&overlay.draw(frame, Some(&heat), "")?)?;
        let _ = write!(
            figures,
            "<figure><img class=\"small\" alt=\"\" src=\"{}\"><figcaption>{caption}</figcaption></figure>",
            data_uri(&png(&drawn)?)
        );
    }
    Ok(format!("<div>{figures}</div>\n"))
}
/// Renders a histogram of values between 0 and `highest` as SVG.
fn histogram(what: &str, values: &[f64], highest: f64) -> String {
    let mut counts = [0.0; BINS];
    for value in values {
        let bin = (value / highest * BINS as f64) as usize;
        counts[bin.min(BINS - 1)] += 1.0;
    }
    let most = counts.iter().copied().fold(1.0, f64::max);
    let shares: Vec<f64> = counts.iter().map(|count| count / most).collect();
    format!(
        "<figure>{}<figcaption>{what}, 0 to {highest:.2}</figcaption></figure>",
        columns(&shares)
    )
}

/// Renders values from 0 to 1 as labeled bars.
fn bars(values: &[f64], what: &str) -> String {
    let mut rows = String::from("<table>\n");
    for (index, value) in values.iter().enumerate() {
        let _ = writeln!(
            rows,
            "<tr><th>{what} {index}<td><svg width=\"300\" height=\"14\"><rect width=\"{:.1}\" height=\"14\" \
             fill=\"#36c\"/></svg><td>{value:.3}",
            300.0 * value
        );
    }
    rows + "</table>\n"
}

/// Renders columns of heights from 0 to 1 as SVG.
fn columns(heights: &[f64]) -> String {
    let (width, height) = (400.0, 120.0);
    let step = width / heights.len().max(1) as f64;
    let mut svg = format!("<svg width=\"{width}\" height=\"{height}\">");
    for (index, share) in heights.iter().enumerate() {
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#36c\"/>",
            index as f64 * step,
            height * (1.0 - share),
            step - 1.0,
            height * share
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_in_their_bins_and_the_highest_in_the_last() {
        let svg = histogram("x", &[0.0, 0.01, 0.5, 1.0], 1.0);
        // Two values in the first bin make it the tallest; the others are half as high.
        assert_eq!(svg.matches("height=\"120.0\"").count(), 1, "{svg}");
        assert_eq!(svg.matches("height=\"60.0\"").count(), 2, "{svg}");
    }

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escaped("<b> & \"c\""), "&lt;b&gt; &amp; &quot;c&quot;");
    }
}
