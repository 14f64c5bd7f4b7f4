//! ViT (Dosovitskiy et al., arXiv:2010.11929). Includes plain DeiT and the first DINO.

use super::Architecture;
use crate::vit::config::Head;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["vit"],
    class_prefix: "ViT",
    tensor_prefix: "vit.",
    names: &[],
    names_in_block: &[],
    unused: &["embeddings.mask_token", "pooler.", "decoder."],
    image_processor: "ViT",
    reads: Head::ClassToken,
    layer_norm_eps: 1e-12,
    layer_scale: false,
    distilled: false,
    patch_bias: true,
    pre_norm: false,
    antialiased_positions: false,
    saved: true,
    fields: Ok,
    mlp_width: |fields, _| fields.size("intermediate_size"),
    read: |_, _| Ok(()),
    check: |_| Ok(()),
    write: |_, _| (),
};
