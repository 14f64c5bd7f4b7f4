//! DINOv2 (Oquab et al., arXiv:2304.07193): layer scale, and a classifier that also reads the mean of the patches.

use serde_json::json;

use super::{Architecture, vit};
use crate::vit::config::{Head, refuse};
use crate::vit::fields::MAX_SIZE;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["dinov2"],
    class_prefix: "Dinov2",
    tensor_prefix: "dinov2.",
    names_in_block: &[
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ],
    image_processor: "Bit",
    reads: Head::ClassTokenAndPatchMean,
    layer_norm_eps: 1e-6,
    layer_scale: true,
    mlp_width: |fields, hidden_size| {
        let ratio = fields.number("mlp_ratio", 4.0)?;
        if !(ratio.fract() == 0.0 && (1.0..=MAX_SIZE as f64).contains(&ratio)) {
            return refuse(format!("mlp_ratio is {ratio}, not a whole positive number"));
        }
        Ok(hidden_size * ratio as usize)
    },
    check: |config| {
        if config.intermediate_size.is_multiple_of(config.hidden_size) {
            return Ok(());
        }
        refuse(format!(
            "intermediate_size {} is not a multiple of hidden_size {}, as dinov2 requires",
            config.intermediate_size, config.hidden_size
        ))
    },
    write: |config, root| {
        if let Some(fields) = root.as_object_mut() {
            fields.remove("intermediate_size");
        }
        // `check` ensures an integer ratio.
        let ratio = config.intermediate_size / config.hidden_size.max(1);
        root["mlp_ratio"] = json!(ratio);
        root["use_swiglu_ffn"] = json!(false);
        root["layerscale_value"] = json!(1.0);
    },
    ..vit::ARCHITECTURE
};
