//! Preprocessing of pictures to a model's input, read from and written to `preprocessor_config.json`.
//!
//! `processor_config.json` of transformers 5 contains the same in its field `image_processor`.
//!
//! Supports the image processors of ViT, DeiT and DINO checkpoints: those of ViT, DeiT, BiT and CLIP, in their old and
//! new spellings, with the defaults of `transformers` for each. Settings that give pictures of varying sizes are
//! refused, because a video needs one size.

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::frame::FrameSize;
use crate::frame::normalize::Normalization;
use crate::frame::placement::{Fit, ResizeRule};
use crate::frame::resize::Resampling;
use crate::vit::Family;
use crate::vit::fields::{self, Fields, size_of};
use crate::{Error, Result};

/// Scales pixels from 0..=255 to 0..=1.
const RESCALE: f64 = 1.0 / 255.0;
/// `IMAGENET_STANDARD_MEAN` and `IMAGENET_STANDARD_STD` of `transformers`.
const HALF: [f64; 3] = [0.5; 3];
/// `OPENAI_CLIP_MEAN`.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// `OPENAI_CLIP_STD`.
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Preprocessing of pictures to a model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    /// The part of the picture that is used, and its target size.
    pub rule: ResizeRule,
    /// Resampling filter.
    pub resampling: Resampling,
    /// Mean of red, green and blue in 0..=1, which is subtracted.
    pub mean: [f32; 3],
    /// Standard deviation by which the difference is divided.
    pub std: [f32; 3],
}

/// Settings of the model's input that override its preprocessor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Input {
    /// The part of a picture that the model sees.
    pub fit: Option<Fit>,
    /// Edge of the square image, in pixels.
    pub edge_px: Option<usize>,
}

/// Defaults of `transformers` for missing fields.
struct Defaults {
    size: Value,
    crop_size: Option<Value>,
    resample: Resampling,
    mean: [f64; 3],
    std: [f64; 3],
    /// Whether a single number specifies both edges, not the shorter one.
    number_is_square: bool,
}

impl Preprocessor {
    /// Stretches pictures to a square and scales their values to -1..=1, like ViT's own processor.
    pub fn square(edge_px: usize) -> Self {
        Self {
            rule: ResizeRule::Stretch(FrameSize {
                width_px: edge_px,
                height_px: edge_px,
            }),
            resampling: Resampling::Bilinear,
            mean: [0.5; 3],
            std: [0.5; 3],
        }
    }

    /// Returns the same preprocessor for squares of another size; the cropped share stays the same.
    #[must_use]
    pub fn at_square(&self, edge_px: usize) -> Self {
        let square = FrameSize {
            width_px: edge_px,
            height_px: edge_px,
        };
        let in_proportion = |of_px: usize, to_px: usize| (of_px * edge_px).div_ceil(to_px.max(1));
        let rule = match self.rule {
            ResizeRule::Stretch(_) => ResizeRule::Stretch(square),
            ResizeRule::Pad(_) => ResizeRule::Pad(square),
            ResizeRule::StretchThenCrop { resize, crop } => ResizeRule::StretchThenCrop {
                resize: FrameSize {
                    width_px: in_proportion(resize.width_px, crop.width_px),
                    height_px: in_proportion(resize.height_px, crop.height_px),
                },
                crop: square,
            },
            ResizeRule::ShortestEdge {
                edge_px: shortest_px,
                crop,
            } => ResizeRule::ShortestEdge {
                edge_px: in_proportion(shortest_px, crop.width_px.min(crop.height_px)),
                crop: square,
            },
        };
        Self {
            rule,
            ..self.clone()
        }
    }

    /// Returns the same preprocessor with the requested input settings.
    #[must_use]
    pub fn with_input(&self, input: Input) -> Self {
        let mut asked = match input.edge_px {
            Some(edge_px) => self.at_square(edge_px),
            None => self.clone(),
        };
        if let Some(fit) = input.fit {
            asked.rule = fit.rule(asked.image_size());
        }
        asked
    }

    /// Reads the text of a `preprocessor_config.json`; `family` determines the processor if the text names none.
    ///
    /// # Errors
    /// [`Error::Model`], naming the field, if the text is not JSON, if a field has the wrong type, or if the processor
    /// or one of its settings is not supported.
    pub fn from_json(text: &str, family: Family) -> Result<Self> {
        let root = fields::parse(text)?;
        let fields = Fields(&root);
        let defaults = defaults(fields, family)?;
        let (mean, std) = normalization(fields, &defaults)?;
        let rule = rule(fields, &defaults)?;
        check_padding(fields, rule.image_size())?;
        Ok(Self {
            rule,
            resampling: resampling(fields, &defaults)?,
            mean,
            std,
        })
    }

    /// The text of a `preprocessor_config.json` that `transformers` and [`Self::from_json`] read.
    ///
    /// # Errors
    /// [`Error::Config`] if pictures are padded, which the file cannot describe.
    pub fn to_json(&self) -> Result<String> {
        let size_json = |size: FrameSize| json!({"height": size.height_px, "width": size.width_px});
        let (kind, size, crop) = match self.rule {
            ResizeRule::Stretch(size) => ("ViTImageProcessor", size_json(size), None),
            ResizeRule::StretchThenCrop { resize, crop } => {
                ("DeiTImageProcessor", size_json(resize), Some(crop))
            }
            ResizeRule::ShortestEdge { edge_px, crop } => (
                "BitImageProcessor",
                json!({"shortest_edge": edge_px}),
                Some(crop),
            ),
            ResizeRule::Pad(_) => {
                let message = "preprocessor_config.json cannot describe padding of pictures";
                return Err(Error::Config(message.into()));
            }
        };
        let resample = match self.resampling {
            Resampling::Nearest => 0,
            Resampling::Lanczos => 1,
            Resampling::Bilinear => 2,
            Resampling::Bicubic => 3,
        };
        let mut root = json!({
            "image_processor_type": kind,
            "do_resize": true,
            "size": size,
            "resample": resample,
            "do_rescale": true,
            "rescale_factor": RESCALE,
            "do_normalize": true,
            "image_mean": self.mean.map(shortest_f64),
            "image_std": self.std.map(shortest_f64),
        });
        if let Some(crop) = crop {
            root["do_center_crop"] = json!(true);
            root["crop_size"] = size_json(crop);
        }
        Ok(format!("{root:#}\n"))
    }

    /// Size of the model's input.
    pub fn image_size(&self) -> FrameSize {
        self.rule.image_size()
    }

    /// Converts pictures of size [`Self::image_size`] to a normalized batch.
    ///
    /// # Shapes
    /// - `rgb`: one `[height, width, 3]` per picture, red first
    /// - result: `[batch, 3, height, width]`
    ///
    /// # Errors
    /// [`Error::Shape`] if a picture has the wrong number of bytes.
    pub fn images_from_rgb(&self, rgb: &[Vec<u8>], device: &Device) -> Result<Tensor> {
        let FrameSize {
            width_px,
            height_px,
        } = self.image_size();
        let n_pixels = width_px * height_px;
        let normalization = Normalization::new(self.mean, self.std);
        let mut values = Vec::with_capacity(rgb.len() * 3 * n_pixels);
        for picture in rgb {
            if picture.len() != 3 * n_pixels {
                return Err(Error::Shape {
                    expected: format!("[{height_px}, {width_px}, 3]"),
                    got: format!("{} bytes", picture.len()),
                });
            }
            normalization.append_planes(picture, &mut values);
        }
        let shape = (rgb.len(), 3, height_px, width_px);
        Ok(Tensor::from_vec(values, shape, device)?)
    }
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::Model(message))
}

/// The shortest decimal for `value`: 0.485, not 0.48500001430511475.
fn shortest_f64(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn defaults(fields: Fields, family: Family) -> Result<Defaults> {
    let square = |edge: usize| json!({"height": edge, "width": edge});
    let stretch = |size, crop_size, resample| Defaults {
        size,
        crop_size,
        resample,
        mean: HALF,
        std: HALF,
        number_is_square: true,
    };
    let named = fields
        .value("image_processor_type")
        .or_else(|| fields.value("feature_extractor_type"));
    let kind = match named {
        Some(name) => name.as_str().unwrap_or(""),
        None => family.image_processor(),
    };
    let endings = ["Fast", "Pil", "ImageProcessor", "FeatureExtractor"];
    let kind = endings
        .iter()
        .fold(kind, |kind, ending| kind.trim_end_matches(ending));
    match kind {
        "ViT" => Ok(stretch(square(224), None, Resampling::Bilinear)),
        "DeiT" => Ok(stretch(square(256), Some(square(224)), Resampling::Bicubic)),
        "Bit" | "CLIP" => Ok(Defaults {
            size: json!({"shortest_edge": 224}),
            crop_size: Some(square(224)),
            resample: Resampling::Bicubic,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            number_is_square: false,
        }),
        _ => refuse(format!(
            "image_processor_type is {}, but only ViT, DeiT, Bit and CLIP image processors are supported",
            named.unwrap_or(&Value::Null)
        )),
    }
}

/// Reads the filter, by PIL's number or torchvision's name.
fn resampling(fields: Fields, defaults: &Defaults) -> Result<Resampling> {
    let Some(filter) = fields.given("resample")? else {
        return Ok(defaults.resample);
    };
    match (filter.as_u64(), filter.as_str()) {
        (Some(0), _) | (_, Some("nearest")) => Ok(Resampling::Nearest),
        (Some(1), _) | (_, Some("lanczos")) => Ok(Resampling::Lanczos),
        (Some(2), _) | (_, Some("bilinear")) => Ok(Resampling::Bilinear),
        (Some(3), _) | (_, Some("bicubic")) => Ok(Resampling::Bicubic),
        _ => refuse(format!(
            "field \"resample\" is {filter}, expected 0 (nearest), 1 (lanczos), 2 (bilinear) or 3 (bicubic)"
        )),
    }
}

/// Fails if pictures are padded to a size other than their own.
fn check_padding(fields: Fields, size: FrameSize) -> Result<()> {
    let pads = fields.flag("do_pad", false)?;
    match fields.value("pad_size") {
        Some(padded) if pads && both_edges("pad_size", padded)? != size => refuse(format!(
            "do_pad is true and pad_size is {padded}; padding {} x {} px is not supported",
            size.width_px, size.height_px
        )),
        _ => Ok(()),
    }
}

fn rule(fields: Fields, defaults: &Defaults) -> Result<ResizeRule> {
    if !fields.flag("do_resize", true)? {
        return refuse(
            "do_resize is false, but frames must be resized to the model's input size".into(),
        );
    }
    let size = fields.given("size")?.unwrap_or(&defaults.size);
    let resize = match (size, defaults.number_is_square) {
        (Value::Number(_), false) => Err(size_of("size", size)?),
        (Value::Object(edges), _) if edges.contains_key("shortest_edge") => {
            if edges
                .get("longest_edge")
                .is_some_and(|edge| !edge.is_null())
            {
                return refuse(format!(
                    "field \"size\" is {size}; longest_edge is not supported"
                ));
            }
            Err(Fields(edges).size("shortest_edge")?)
        }
        _ => Ok(both_edges("size", size)?),
    };
    let crop = if fields.flag("do_center_crop", defaults.crop_size.is_some())? {
        let given = fields.given("crop_size")?.or(defaults.crop_size.as_ref());
        let crop = given.map(|crop| both_edges("crop_size", crop));
        match crop {
            Some(crop) => Some(crop?),
            None => return refuse("do_center_crop is true, but crop_size is missing".into()),
        }
    } else {
        None
    };
    match (resize, crop) {
        (Ok(size), None) => Ok(ResizeRule::Stretch(size)),
        (Ok(resize), Some(crop)) => Ok(ResizeRule::StretchThenCrop { resize, crop }),
        (Err(edge_px), Some(crop)) => Ok(ResizeRule::ShortestEdge { edge_px, crop }),
        (Err(_), None) => refuse(format!(
            "size is {size} without a center crop, so the model's input would vary in size"
        )),
    }
}

/// Reads a size given as a number, as a list of height and width, or as named fields.
fn both_edges(field: &str, value: &Value) -> Result<FrameSize> {
    let (height, width) = match value {
        Value::Object(edges) => {
            let edges = Fields(edges);
            return match (edges.value("height"), edges.value("width")) {
                (Some(height), Some(width)) => Ok(FrameSize {
                    width_px: size_of(field, width)?,
                    height_px: size_of(field, height)?,
                }),
                _ => refuse(format!(
                    "field {field:?} is {value}, which has no height and width"
                )),
            };
        }
        Value::Array(edges) => match edges.as_slice() {
            [height, width] => (height, width),
            _ => return refuse(format!("field {field:?} is {value}, not two sizes")),
        },
        number => (number, number),
    };
    Ok(FrameSize {
        width_px: size_of(field, width)?,
        height_px: size_of(field, height)?,
    })
}

/// Mean and standard deviation for values in 0..=1, independent of the file's rescaling.
fn normalization(fields: Fields, defaults: &Defaults) -> Result<([f32; 3], [f32; 3])> {
    let scale = if fields.flag("do_rescale", true)? {
        fields.number("rescale_factor", RESCALE)? * 255.0
    } else {
        255.0
    };
    let (mean, std) = if fields.flag("do_normalize", true)? {
        (
            channels(fields, "image_mean", defaults.mean)?,
            channels(fields, "image_std", defaults.std)?,
        )
    } else {
        ([0.0; 3], [1.0; 3])
    };
    let finite = scale.is_finite() && scale > 0.0;
    if !finite || std.iter().any(|std| !(std.is_finite() && *std > 0.0)) {
        return refuse(format!(
            "image_std {std:?} and rescale_factor must be above 0"
        ));
    }
    // (x · scale - mean) / std = (x - mean / scale) / (std / scale)
    Ok((
        mean.map(|mean| (mean / scale) as f32),
        std.map(|std| (std / scale) as f32),
    ))
}

fn channels(fields: Fields, field: &str, default: [f64; 3]) -> Result<[f64; 3]> {
    let Some(value) = fields.given(field)? else {
        return Ok(default);
    };
    if let Some(number) = value.as_f64() {
        return Ok([number; 3]);
    }
    let numbers: Option<Vec<f64>> = value
        .as_array()
        .and_then(|values| values.iter().map(Value::as_f64).collect());
    match numbers.as_deref() {
        Some(&[red, green, blue]) => Ok([red, green, blue]),
        _ => refuse(format!("field {field:?} is {value}, not three numbers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn size(width_px: usize, height_px: usize) -> FrameSize {
        FrameSize {
            width_px,
            height_px,
        }
    }

    fn check_rule(text: &str, expected: ResizeRule) {
        let found = Preprocessor::from_json(text, Family::Vit).unwrap();
        assert_eq!(found.rule, expected, "{text}");
    }

    fn check_refused(text: &str, expected: &str) {
        let error = Preprocessor::from_json(text, Family::Vit).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }

    #[test]
    fn every_spelling_of_a_size_is_understood() {
        let stretch = ResizeRule::Stretch(size(48, 32));
        check_rule(r#"{"size": {"height": 32, "width": 48}}"#, stretch);
        check_rule(r#"{"size": [32, 48]}"#, stretch);
        let square = ResizeRule::Stretch(size(48, 48));
        check_rule(
            r#"{"feature_extractor_type": "ViTFeatureExtractor", "size": 48}"#,
            square,
        );
        check_rule(
            r#"{"image_processor_type": "ViTImageProcessorFast", "size": 48, "crop_size": null}"#,
            square,
        );
        let cropped = ResizeRule::StretchThenCrop {
            resize: size(256, 256),
            crop: size(224, 224),
        };
        check_rule(
            r#"{"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224}"#,
            cropped,
        );
        let shortest = ResizeRule::ShortestEdge {
            edge_px: 256,
            crop: size(224, 224),
        };
        check_rule(
            r#"{"image_processor_type": "BitImageProcessor", "size": 256, "crop_size": 224}"#,
            shortest,
        );
        check_rule(
            r#"{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}"#,
            shortest,
        );
    }

    /// Effect of `null` as a setting, as in transformers 5.24.
    #[test]
    fn null_switches_off_and_is_no_size() {
        check_rule(
            r#"{"do_center_crop": null, "crop_size": null, "size": 48}"#,
            ResizeRule::Stretch(size(48, 48)),
        );
        let plain = Preprocessor::from_json(r#"{"do_normalize": null}"#, Family::Vit).unwrap();
        assert_eq!((plain.mean, plain.std), ([0.0; 3], [1.0; 3]));
        check_refused(r#"{"do_resize": null}"#, "do_resize is false");
        for field in ["size", "resample", "image_mean", "rescale_factor"] {
            check_refused(
                &format!("{{\"{field}\": null}}"),
                &format!("{field:?} is null"),
            );
        }
    }

    #[test]
    fn filters_go_by_number_or_name_and_padding_by_size() {
        let read = |text: &str| Preprocessor::from_json(text, Family::Vit).unwrap();
        assert_eq!(
            read(r#"{"resample": "bicubic"}"#).resampling,
            Resampling::Bicubic
        );
        assert_eq!(read(r#"{"resample": 1}"#).resampling, Resampling::Lanczos);
        check_refused(r#"{"resample": "box"}"#, "\"resample\" is \"box\"");
        read(r#"{"do_pad": true}"#);
        read(r#"{"do_pad": true, "pad_size": {"height": 224, "width": 224}}"#);
        read(r#"{"do_pad": false, "pad_size": 300}"#);
        check_refused(r#"{"do_pad": true, "pad_size": 300}"#, "pad_size is 300");
    }

    #[test]
    fn a_family_names_the_processor_that_a_file_does_not() {
        let bit = Preprocessor::from_json("{}", Family::Dinov2).unwrap();
        assert_eq!(bit.resampling, Resampling::Bicubic);
        assert_eq!(bit.image_size(), size(224, 224));
        assert!((bit.mean[0] - 0.481_454_66).abs() < 1e-7);
    }

    #[test]
    fn scales_are_folded_into_the_normalization() {
        let text = r#"{"do_rescale": false, "image_mean": [127.5, 127.5, 127.5], "image_std": 51}"#;
        let raw = Preprocessor::from_json(text, Family::Vit).unwrap();
        assert_eq!((raw.mean, raw.std), ([0.5; 3], [0.2; 3]));
        let plain = Preprocessor::from_json(r#"{"do_normalize": false}"#, Family::Vit).unwrap();
        assert_eq!((plain.mean, plain.std), ([0.0; 3], [1.0; 3]));
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let crop = size(28, 14);
        let rules = [
            ResizeRule::Stretch(crop),
            ResizeRule::StretchThenCrop {
                resize: size(32, 32),
                crop,
            },
            ResizeRule::ShortestEdge { edge_px: 32, crop },
        ];
        for rule in rules {
            let written = Preprocessor {
                rule,
                resampling: Resampling::Lanczos,
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
            };
            let text = written.to_json().unwrap();
            assert!(text.contains("0.485,"), "{text}");
            let read = Preprocessor::from_json(&text, Family::Vit).unwrap();
            assert_eq!(read, written);
        }
    }

    #[test]
    fn errors_name_the_field() {
        check_refused("{", "not valid JSON");
        check_refused(r#"{"resample": 5}"#, "\"resample\" is 5");
        check_refused(r#"{"size": 0}"#, "\"size\" is 0");
        check_refused(r#"{"size": {"width": 4}}"#, "no height and width");
        check_refused(r#"{"size": {"shortest_edge": 4}}"#, "vary in size");
        check_refused(r#"{"do_resize": false}"#, "do_resize is false");
        check_refused(r#"{"do_center_crop": true}"#, "crop_size is missing");
        check_refused(r#"{"image_mean": [1, 2]}"#, "\"image_mean\" is [1,2]");
        check_refused(r#"{"image_std": [0, 1, 1]}"#, "image_std");
        check_refused(
            r#"{"image_processor_type": "PvtImageProcessor"}"#,
            "PvtImageProcessor",
        );
    }

    #[test]
    fn channels_are_planes_of_normalized_values() {
        let preprocessor = Preprocessor {
            rule: ResizeRule::Stretch(size(2, 1)),
            resampling: Resampling::Bilinear,
            mean: [0.0, 0.5, 1.0],
            std: [1.0, 0.5, 0.25],
        };
        let rgb = vec![vec![255, 0, 255, 0, 255, 0]];
        let images = preprocessor.images_from_rgb(&rgb, &Device::Cpu).unwrap();
        assert_eq!(images.dims(), [1, 3, 1, 2]);
        let values: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [1.0, 0.0, -1.0, 1.0, 0.0, -4.0]);
        let short = preprocessor.images_from_rgb(&[vec![0; 5]], &Device::Cpu);
        assert!(short.unwrap_err().to_string().contains("5 bytes"));
    }
}
