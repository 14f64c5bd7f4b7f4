//! The image encoder of CLIP (Radford et al., arXiv:2103.00020), which compares pictures with vectors of the text
//! encoder.

use serde_json::{Value, json};

use super::{Architecture, Object, vit};
use crate::Result;
use crate::vit::config::{Head, architecture, refuse};
use crate::vit::fields::Fields;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_types: &[IMAGE_HALF, "clip"],
    class_prefix: "CLIPVision",
    tensor_prefix: "vision_model.",
    names: &[
        ("embeddings.class_embedding", "embeddings.cls_token"),
        (
            "embeddings.position_embedding.weight",
            "embeddings.position_embeddings",
        ),
        (
            "embeddings.patch_embedding",
            "embeddings.patch_embeddings.projection",
        ),
        // Misspelled in CLIP's files.
        ("pre_layrnorm", "pre_layernorm"),
        ("post_layernorm", "layernorm"),
    ],
    names_in_block: &[
        ("layer_norm1", "layernorm_before"),
        ("layer_norm2", "layernorm_after"),
        ("self_attn.q_proj", "attention.attention.query"),
        ("self_attn.k_proj", "attention.attention.key"),
        ("self_attn.v_proj", "attention.attention.value"),
        ("self_attn.out_proj", "attention.output.dense"),
    ],
    unused: &["embeddings.position_ids", "text_model.", "text_projection."],
    image_processor: "CLIP",
    reads: Head::ImageEmbedding {
        projection_dim: 512,
    },
    layer_norm_eps: 1e-5,
    patch_bias: false,
    pre_norm: true,
    saved: false,
    fields: image_half,
    read: |fields, config| {
        config.reads = Head::ImageEmbedding {
            projection_dim: fields.size("projection_dim")?,
        };
        Ok(())
    },
    write: |config, root| {
        root["architectures"] = json!(["CLIPVisionModelWithProjection"]);
        if let Head::ImageEmbedding { projection_dim } = config.reads {
            root["projection_dim"] = json!(projection_dim);
        }
    },
    ..vit::ARCHITECTURE
};

const IMAGE_HALF: &str = "clip_vision_model";

/// The fields of the image encoder, with defaults of `transformers` for missing ones.
fn image_half(root: Object) -> Result<Object> {
    let whole = Fields(&root);
    let architecture = architecture(whole)?;
    if architecture.contains("ForImageClassification") {
        return refuse(format!(
            "{architecture} is not supported; use the underlying CLIP model with separate class vectors"
        ));
    }
    let given = match whole.value("vision_config") {
        Some(Value::Object(vision)) => vision,
        Some(other) => return refuse(format!("field \"vision_config\" is {other}, not an object")),
        None => &root,
    };
    let defaults = json!({
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "image_size": 224,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "patch_size": 32,
        "projection_dim": 512,
    });
    let mut fields = Object::new();
    for object in [defaults.as_object(), Some(given)].into_iter().flatten() {
        fields.extend(object.clone());
    }
    // The projection of the whole model is shared by both encoders.
    if let Some(projection_dim) = whole.value("projection_dim") {
        fields.insert("projection_dim".into(), projection_dim.clone());
    }
    fields.insert("model_type".into(), json!(IMAGE_HALF));
    fields.remove("id2label");
    Ok(fields)
}
