//! A toy family: a ViT whose files call a norm otherwise and say its blocks' scale. One file and one line, besides `mod`.

use super::{Architecture, vit};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["toy_vit"],
    class_prefix: "ToyViT",
    tensor_prefix: "toy.",
    names_in_block: &[("calm", "layernorm_before")],
    layer_scale: true,
    layer_norm_eps: 1e-3,
    ..vit::ARCHITECTURE
};

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use crate::vit::{VitConfig, names};

    #[test]
    fn a_toy_family_is_read_and_written() {
        let text = r#"{"model_type": "toy_vit", "architectures": ["ToyViTForImageClassification"],
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "image_size": 4, "patch_size": 2}"#;
        let config = VitConfig::from_json(text).unwrap();
        assert!(config.layer_scale);
        assert_eq!(config.layer_norm_eps, 1e-3);
        assert_eq!(VitConfig::from_json(&config.to_json()).unwrap(), config);

        let canonical = "encoder.layer.0.layernorm_before.weight";
        let published = names::published_name(&config, canonical);
        assert_eq!(published, "toy.encoder.layer.0.calm.weight");
        let tensor = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
        let renamed = names::renamed(HashMap::from([(published, tensor)])).unwrap();
        assert_eq!(renamed.keys().next().unwrap(), canonical);
    }
}
