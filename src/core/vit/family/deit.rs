//! DeiT with distillation (Touvron et al., arXiv:2012.12877): a second token learns from a teacher.

use super::{Architecture, vit};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["deit"],
    class_prefix: "DeiT",
    tensor_prefix: "deit.",
    // If there is a classifier per token, this is the class token's.
    names: &[("cls_classifier", "classifier")],
    image_processor: "DeiT",
    distilled: true,
    ..vit::ARCHITECTURE
};
