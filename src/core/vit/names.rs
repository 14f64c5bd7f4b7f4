//! Tensor names: maps all naming schemes of checkpoints to one.
//!
//! The canonical names are Hugging Face's for ViT without the prefix `vit.`, as in
//! `encoder.layer.3.attention.attention.query.weight`. Also supported are the names of each family (`family`), those of
//! transformers 5 in memory (`layers.3.attention.q_proj`), and those of timm and the original DINO
//! (`blocks.3.attn.qkv`, which is split in three). A tensor that belongs to no part of the model is an error, because
//! it implies another computation. Only parts that classification does not use (mask token, pooler, CLIP's text
//! encoder) are skipped.

use std::collections::HashMap;

use candle_core::Tensor;

use super::config::{Head, Heads, VitConfig};
use super::family::{Architecture, Family, Naming};
use crate::{Error, Result};

/// Query, key and value, stacked.
const JOINT_QKV: &str = "attn.qkv";

/// Prefixes of a block's number: in Hugging Face's files, in transformers' memory (two), in timm.
const BLOCKS: [&str; 4] = ["encoder.layer.", "encoder.layers.", "layers.", "blocks."];

/// Tensors outside blocks, or pairs of weight and bias.
const OUTSIDE: [&str; 11] = [
    "embeddings.cls_token",
    "embeddings.distillation_token",
    "embeddings.register_tokens",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection",
    "pre_layernorm",
    "layernorm",
    "visual_projection",
    "logit_scale",
    "classifier",
    "distillation_classifier",
];

/// Tensors of a block, or pairs of weight and bias.
const IN_BLOCK: [&str; 10] = [
    "layernorm_before",
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "layer_scale1.lambda1",
    "layernorm_after",
    "intermediate.dense",
    "output.dense",
    "layer_scale2.lambda1",
];

/// Names in timm, the original DINO and transformers' models in memory.
const OUTSIDE_IN_LIBRARIES: [Naming; 9] = [
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("register_tokens", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("norm", "layernorm"),
    ("head", "classifier"),
    ("head_dist", "distillation_classifier"),
];
const IN_BLOCK_IN_LIBRARIES: [Naming; 11] = [
    ("norm1", "layernorm_before"),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("attn.proj", "attention.output.dense"),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("ls2.gamma", "layer_scale2.lambda1"),
];

/// Name and shape of each tensor of the model, in the order of the forward pass.
pub fn expected_shapes(config: &VitConfig) -> Vec<(String, Vec<usize>)> {
    let dim = config.hidden_size;
    let inner = config.intermediate_size;
    let patch = config.patch_size;
    let mut shapes = Vec::new();
    let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));

    add("embeddings.cls_token".into(), &[1, 1, dim]);
    if config.distilled {
        add("embeddings.distillation_token".into(), &[1, 1, dim]);
    }
    if config.registers > 0 {
        let shape = [1, config.registers, dim];
        add("embeddings.register_tokens".into(), &shape);
    }
    let shape = [1, config.n_positions(), dim];
    add("embeddings.position_embeddings".into(), &shape);
    let projection = "embeddings.patch_embeddings.projection";
    let shape = [dim, config.num_channels, patch, patch];
    add(format!("{projection}.weight"), &shape);
    if config.patch_bias() {
        add(format!("{projection}.bias"), &[dim]);
    }
    if config.pre_norm() {
        add("pre_layernorm.weight".into(), &[dim]);
        add("pre_layernorm.bias".into(), &[dim]);
    }

    for block_idx in 0..config.num_hidden_layers {
        let block = format!("encoder.layer.{block_idx}");
        add(format!("{block}.layernorm_before.weight"), &[dim]);
        add(format!("{block}.layernorm_before.bias"), &[dim]);
        for part in ["query", "key", "value"] {
            let part = format!("{block}.attention.attention.{part}");
            add(format!("{part}.weight"), &[dim, dim]);
            if config.qkv_bias {
                add(format!("{part}.bias"), &[dim]);
            }
        }
        let output = format!("{block}.attention.output.dense");
        add(format!("{output}.weight"), &[dim, dim]);
        add(format!("{output}.bias"), &[dim]);
        if config.layer_scale {
            add(format!("{block}.layer_scale1.lambda1"), &[dim]);
        }
        add(format!("{block}.layernorm_after.weight"), &[dim]);
        add(format!("{block}.layernorm_after.bias"), &[dim]);
        add(format!("{block}.intermediate.dense.weight"), &[inner, dim]);
        add(format!("{block}.intermediate.dense.bias"), &[inner]);
        add(format!("{block}.output.dense.weight"), &[dim, inner]);
        add(format!("{block}.output.dense.bias"), &[dim]);
        if config.layer_scale {
            add(format!("{block}.layer_scale2.lambda1"), &[dim]);
        }
    }

    add("layernorm.weight".into(), &[dim]);
    add("layernorm.bias".into(), &[dim]);
    let n_classes = config.n_classes();
    let (heads, width): (&[&str], usize) = match config.head() {
        None => (&[], 0),
        Some(Head::ClassToken) => (&["classifier"], dim),
        Some(Head::ClassTokenAndPatchMean) => (&["classifier"], 2 * dim),
        Some(Head::ClassAndDistillationTokens) => (&["classifier", "distillation_classifier"], dim),
        Some(Head::ImageEmbedding { projection_dim }) => {
            add("visual_projection.weight".into(), &[projection_dim, dim]);
            add("logit_scale".into(), &[]);
            add("classifier.weight".into(), &[n_classes, projection_dim]);
            (&[], 0)
        }
    };
    for head in heads {
        add(format!("{head}.weight"), &[n_classes, width]);
        add(format!("{head}.bias"), &[n_classes]);
    }
    shapes
}

/// Checks weights with canonical names against the configuration, in the order of the forward pass.
///
/// # Errors
/// [`Error::Model`] for the first tensor that is missing or has the wrong shape (the message gives both shapes),
/// otherwise for the first tensor, by name, that the configuration does not have.
pub fn check(config: &VitConfig, weights: &HashMap<String, Tensor>) -> Result<()> {
    let expected = expected_shapes(config);
    for (name, shape) in &expected {
        let Some(tensor) = weights.get(name) else {
            return Err(Error::Model(format!(
                "tensor {name:?} of shape {shape:?} is missing"
            )));
        };
        if tensor.dims() == shape {
            continue;
        }
        let message = match (name.as_str(), tensor.dims(), shape.as_slice()) {
            ("classifier.weight", [found, width], [classes, expected]) if width == expected => {
                format!("weights have {found} classes, but config specifies {classes}")
            }
            (_, found, _) => {
                format!("tensor {name:?} has shape {found:?}, but config implies {shape:?}")
            }
        };
        return Err(Error::Model(message));
    }
    let known: Vec<&String> = expected.iter().map(|(name, _)| name).collect();
    let mut foreign: Vec<&String> = weights
        .keys()
        .filter(|name| !known.contains(name))
        .collect();
    foreign.sort();
    match foreign.first() {
        None => Ok(()),
        Some(name) => Err(Error::Model(format!(
            "tensor {name:?} does not belong to the model that config describes ({} blocks)",
            config.num_hidden_layers
        ))),
    }
}

/// Renames the tensors of a checkpoint and checks them.
///
/// A classifier that the configuration does not have is removed. If timm's position embeddings have none for the class
/// token, it gets a zero.
///
/// # Errors
/// As [`renamed`] and [`check`].
pub fn canonical_weights(
    config: &VitConfig,
    weights: HashMap<String, Tensor>,
) -> Result<HashMap<String, Tensor>> {
    let mut canonical = renamed(weights)?;
    canonical.retain(|name, _| !(config.labels.is_empty() && is_classifier(name)));
    if config.registers == 0 {
        // For zero registers, transformers stores an empty tensor.
        let registers = "embeddings.register_tokens";
        canonical.retain(|name, tensor| !(name == registers && tensor.elem_count() == 0));
    }
    pad_class_position(config, &mut canonical)?;
    check(config, &canonical)?;
    Ok(canonical)
}

/// Renames the tensors of a checkpoint; timm's joint query, key and value are split in three.
///
/// # Errors
/// [`Error::Model`] if a name is unknown or maps to the same tensor as another.
pub fn renamed(weights: HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>> {
    let mut found: Vec<(String, Tensor)> = weights.into_iter().collect();
    // Sorted, so that the first of several errors is deterministic.
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut canonical = HashMap::with_capacity(found.len());
    for (name, tensor) in found {
        let parts = match rename(&name) {
            Name::Unused => continue,
            Name::Unknown => {
                return Err(Error::Model(format!(
                    "tensor {name:?} is not part of any supported Vision Transformer"
                )));
            }
            Name::One(to) => vec![(to.clone(), embedding_of_batch(&to, tensor)?)],
            Name::JointQkv { block, leaf } => split_qkv(&name, &block, leaf, &tensor)?,
        };
        for (to, tensor) in parts {
            if canonical.insert(to.clone(), tensor).is_some() {
                return Err(Error::Model(format!(
                    "two tensors map to {to:?}, one of them {name:?}"
                )));
            }
        }
    }
    Ok(canonical)
}

/// Converts a canonical name to the name in Hugging Face's files.
pub fn published_name(config: &VitConfig, canonical: &str) -> String {
    if is_classifier(canonical) {
        let teacher = config.head() == Some(Head::ClassAndDistillationTokens);
        return match canonical.strip_prefix("classifier.") {
            Some(leaf) if teacher => format!("cls_classifier.{leaf}"),
            _ => canonical.to_owned(),
        };
    }
    let family = config.family.architecture();
    let name = match number_and_rest(canonical) {
        Some((number, rest)) => {
            let own = published_part(rest, family.names_in_block);
            format!("encoder.layer.{number}.{own}")
        }
        None => published_part(canonical, family.names),
    };
    match config.head() {
        None => name,
        Some(_) => format!("{}{name}", family.tensor_prefix),
    }
}

/// A family's name of a tensor with this canonical name.
fn published_part(canonical: &str, names: &[Naming]) -> String {
    let own = |part: &str| {
        names
            .iter()
            .find(|(_, to)| *to == part)
            .map(|(own, _)| *own)
    };
    let pair = stem_and_leaf(canonical);
    let pair = pair.and_then(|(stem, leaf)| Some(format!("{}.{leaf}", own(stem)?)));
    pair.or_else(|| own(canonical).map(str::to_owned))
        .unwrap_or_else(|| canonical.to_owned())
}

/// Interpretation of a tensor name in a checkpoint.
#[derive(Debug, PartialEq)]
enum Name {
    /// One tensor, by canonical name.
    One(String),
    /// Query, key and value, stacked; `block` is like `encoder.layer.3`.
    JointQkv {
        block: String,
        leaf: &'static str,
    },
    /// A part that classification does not use.
    Unused,
    Unknown,
}

fn rename(name: &str) -> Name {
    let mut prefixes = architectures().map(|family| family.tensor_prefix);
    let name = prefixes
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name);
    let Some((number, rest)) = number_and_rest(name) else {
        let unused = architectures().flat_map(|family| family.unused);
        if name == "mask_token" || unused.into_iter().any(|begin| name.starts_with(begin)) {
            return Name::Unused;
        }
        let names = architectures().flat_map(|family| family.names);
        let canonical = canonical_part(name, &OUTSIDE, OUTSIDE_IN_LIBRARIES.iter().chain(names));
        return canonical.map_or(Name::Unknown, Name::One);
    };
    let block = format!("encoder.layer.{number}");
    if let Some((JOINT_QKV, leaf)) = stem_and_leaf(rest) {
        return Name::JointQkv { block, leaf };
    }
    let names = architectures().flat_map(|family| family.names_in_block);
    canonical_part(rest, &IN_BLOCK, IN_BLOCK_IN_LIBRARIES.iter().chain(names))
        .map_or(Name::Unknown, |part| Name::One(format!("{block}.{part}")))
}

fn architectures() -> impl Iterator<Item = &'static Architecture> + Clone {
    Family::ALL.iter().map(|family| family.architecture())
}

/// A block's number, and the rest of the name.
fn number_and_rest(name: &str) -> Option<(usize, &str)> {
    let behind = BLOCKS.iter().find_map(|blocks| name.strip_prefix(blocks))?;
    let (number, rest) = behind.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The canonical name of a tensor: one of `parts`, which are canonical already, or the mapping in `names`.
fn canonical_part<'a>(
    name: &str,
    parts: &[&'static str],
    names: impl Iterator<Item = &'a Naming> + Clone,
) -> Option<String> {
    let part = |name: &str| {
        let canonical = parts.iter().find(|part| **part == name).copied();
        let mut names = names.clone();
        canonical.or_else(|| names.find(|(own, _)| *own == name).map(|(_, to)| *to))
    };
    if let Some(whole) = part(name) {
        return Some(whole.to_owned());
    }
    let (stem, leaf) = stem_and_leaf(name)?;
    Some(format!("{}.{leaf}", part(stem)?))
}

fn stem_and_leaf(name: &str) -> Option<(&str, &'static str)> {
    let (stem, leaf) = name.rsplit_once('.')?;
    match leaf {
        "weight" => Some((stem, "weight")),
        "bias" => Some((stem, "bias")),
        _ => None,
    }
}

/// Whether a tensor with this canonical name belongs to the computation of logits from tokens.
fn is_classifier(name: &str) -> bool {
    let parts = [
        "classifier.",
        "distillation_classifier.",
        "visual_projection.",
        "logit_scale",
    ];
    parts.iter().any(|part| name.starts_with(part))
}

/// Adds the leading axes that CLIP's class token, `[dim]`, and positions, `[positions, dim]`, lack.
fn embedding_of_batch(name: &str, mut tensor: Tensor) -> Result<Tensor> {
    if matches!(
        name,
        "embeddings.cls_token" | "embeddings.position_embeddings"
    ) {
        while (1..3).contains(&tensor.rank()) {
            tensor = tensor.unsqueeze(0)?;
        }
    }
    Ok(tensor)
}

/// The classifiers in a checkpoint with these tensor names.
pub(crate) fn heads_among(names: &[String]) -> Heads {
    let holds = |wanted: &str| {
        names
            .iter()
            .any(|name| rename(name) == Name::One(wanted.into()))
    };
    Heads {
        classifier: holds("classifier.weight"),
        distillation: holds("distillation_classifier.weight"),
    }
}

/// Whether classification uses a tensor with this name in a checkpoint.
pub(crate) fn takes_part(name: &str) -> bool {
    rename(name) != Name::Unused
}

/// Whether a tensor with this name in a checkpoint is a multiplicative weight, not a bias or an embedding.
pub(crate) fn is_weight(name: &str) -> bool {
    match rename(name) {
        Name::One(to) => to.ends_with(".weight"),
        Name::JointQkv { leaf, .. } => leaf == "weight",
        Name::Unused | Name::Unknown => false,
    }
}

/// Splits `[3 · dim, ..]` into query, key and value, each `[dim, ..]`.
fn split_qkv(name: &str, block: &str, leaf: &str, joint: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let rows = joint.dims().first().copied().unwrap_or(0);
    if rows == 0 || !rows.is_multiple_of(3) {
        return Err(Error::Model(format!(
            "tensor {name:?} has shape {:?}, which cannot be split into query, key and value",
            joint.dims()
        )));
    }
    let parts = joint.chunk(3, 0)?; // 3 × [dim, ..]
    let names = ["query", "key", "value"].into_iter();
    names
        .zip(parts)
        .map(|(part, tensor)| {
            let name = format!("{block}.attention.attention.{part}.{leaf}");
            Ok((name, tensor.contiguous()?))
        })
        .collect()
}

/// Prepends a zero to position embeddings that cover only the patches. In timm's models with registers, the class token
/// already includes its position.
fn pad_class_position(config: &VitConfig, weights: &mut HashMap<String, Tensor>) -> Result<()> {
    let name = "embeddings.position_embeddings";
    let Some(positions) = weights.get(name) else {
        return Ok(());
    };
    let &[1, rows, dim] = positions.dims() else {
        return Ok(());
    };
    if config.distilled || rows != config.n_patches() {
        return Ok(());
    }
    let zero = Tensor::zeros((1, 1, dim), positions.dtype(), positions.device())?;
    let padded = Tensor::cat(&[&zero, positions], 1)?; // [1, 1 + patches, dim]
    weights.insert(name.into(), padded);
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::vit::Family;

    fn small() -> VitConfig {
        VitConfig {
            image_size: 4,
            patch_size: 2,
            hidden_size: 6,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 8,
            labels: vec!["a".into(), "b".into()],
            ..VitConfig::default()
        }
    }

    fn zeros(config: &VitConfig) -> HashMap<String, Tensor> {
        let shapes = expected_shapes(config).into_iter();
        shapes
            .map(|(name, shape)| {
                (
                    name,
                    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap(),
                )
            })
            .collect()
    }

    fn check_renamed(from: &str, to: &str) {
        assert_eq!(rename(from), Name::One(to.into()), "{from:?}");
    }

    fn check_refused(weights: HashMap<String, Tensor>, expected: &str) {
        let result = canonical_weights(&small(), weights);
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }

    #[test]
    fn canonical_names_stand_for_themselves_under_every_prefix() {
        let dinov2 = VitConfig {
            family: Family::Dinov2WithRegisters,
            registers: 4,
            layer_scale: true,
            ..small()
        };
        for (name, _) in expected_shapes(&dinov2) {
            check_renamed(&name, &name);
            for prefix in architectures().map(|family| family.tensor_prefix) {
                check_renamed(&format!("{prefix}{name}"), &name);
            }
        }
    }

    #[test]
    fn names_of_all_dialects_meet() {
        check_renamed(
            "vit.layers.11.attention.q_proj.weight",
            "encoder.layer.11.attention.attention.query.weight",
        );
        check_renamed(
            "dinov2.encoder.layer.0.norm1.bias",
            "encoder.layer.0.layernorm_before.bias",
        );
        check_renamed(
            "deit.layers.2.mlp.fc2.bias",
            "encoder.layer.2.output.dense.bias",
        );
        check_renamed(
            "blocks.7.attn.proj.weight",
            "encoder.layer.7.attention.output.dense.weight",
        );
        check_renamed("blocks.7.ls1.gamma", "encoder.layer.7.layer_scale1.lambda1");
        check_renamed("head_dist.weight", "distillation_classifier.weight");
        check_renamed("cls_classifier.weight", "classifier.weight");
        assert_eq!(rename("vit.pooler.dense.weight"), Name::Unused);
        assert_eq!(rename("fc_norm.weight"), Name::Unknown);
        assert_eq!(rename("blocks.0.attn.q_norm.weight"), Name::Unknown);
        assert_eq!(rename("blocks.x.norm1.weight"), Name::Unknown);
    }

    #[test]
    fn no_name_stands_for_two_tensors() {
        let outside = architectures().flat_map(|family| family.names);
        let in_block = architectures().flat_map(|family| family.names_in_block);
        let outside = OUTSIDE_IN_LIBRARIES.iter().chain(outside);
        let in_block = IN_BLOCK_IN_LIBRARIES.iter().chain(in_block);
        for (names, parts) in [
            (outside.collect::<Vec<_>>(), &OUTSIDE[..]),
            (in_block.collect(), &IN_BLOCK),
        ] {
            for (own, to) in &names {
                assert!(
                    parts.contains(to),
                    "{own:?} stands for {to:?}, which is none"
                );
                assert!(names.iter().all(|(name, other)| name != own || other == to));
            }
        }
    }

    #[test]
    fn published_names_lead_back() {
        let dinov2 = VitConfig {
            family: Family::Dinov2,
            layer_scale: true,
            ..small()
        };
        let deit = VitConfig {
            family: Family::Deit,
            distilled: true,
            reads: Head::ClassAndDistillationTokens,
            ..small()
        };
        for config in [small(), dinov2.clone(), deit] {
            for (name, _) in expected_shapes(&config) {
                check_renamed(&published_name(&config, &name), &name);
            }
        }
        assert_eq!(
            published_name(&dinov2, "encoder.layer.1.attention.output.dense.bias"),
            "dinov2.encoder.layer.1.attention.output.dense.bias"
        );
        assert_eq!(
            published_name(&dinov2, "encoder.layer.1.output.dense.bias"),
            "dinov2.encoder.layer.1.mlp.fc2.bias"
        );
    }

    #[test]
    fn joint_rows_are_query_then_key_then_value() {
        let mut weights = zeros(&small());
        for part in ["query", "key", "value"] {
            weights.remove(&format!("encoder.layer.0.attention.attention.{part}.bias"));
        }
        let rows = Tensor::arange(0f32, 18., &Device::Cpu).unwrap();
        weights.insert("blocks.0.attn.qkv.bias".into(), rows);
        let canonical = canonical_weights(&small(), weights).unwrap();
        let key = &canonical["encoder.layer.0.attention.attention.key.bias"];
        assert_eq!(key.to_vec1::<f32>().unwrap(), [6., 7., 8., 9., 10., 11.]);
    }

    #[test]
    fn positions_of_patches_alone_get_a_zero_for_the_class_token() {
        let mut weights = zeros(&small());
        let ones = Tensor::ones((1, 4, 6), DType::F32, &Device::Cpu).unwrap();
        weights.remove("embeddings.position_embeddings");
        weights.insert("pos_embed".into(), ones);
        let canonical = canonical_weights(&small(), weights).unwrap();
        let positions = &canonical["embeddings.position_embeddings"];
        let sums: Vec<f32> = positions.sum((0, 2)).unwrap().to_vec1().unwrap();
        assert_eq!(sums, [0., 6., 6., 6., 6.]);
    }

    #[test]
    fn a_headless_config_leaves_the_classifier_out() {
        let headless = VitConfig {
            labels: Vec::new(),
            ..small()
        };
        let canonical = canonical_weights(&headless, zeros(&small())).unwrap();
        assert!(!canonical.contains_key("classifier.weight"));
    }

    #[test]
    fn the_first_wrong_tensor_is_named_with_both_shapes() {
        let other = |edit: fn(&mut VitConfig)| {
            let mut config = small();
            edit(&mut config);
            zeros(&config)
        };
        let deeper = other(|config| config.num_hidden_layers = 3);
        check_refused(
            deeper,
            "\"encoder.layer.2.attention.attention.key.bias\" does not belong",
        );
        let shallower = other(|config| config.num_hidden_layers = 1);
        check_refused(
            shallower,
            "\"encoder.layer.1.layernorm_before.weight\" of shape [6] is missing",
        );
        let wider = other(|config| config.hidden_size = 8);
        check_refused(
            wider,
            "\"embeddings.cls_token\" has shape [1, 1, 8], but config implies [1, 1, 6]",
        );
        let classes = other(|config| config.labels.push("c".into()));
        check_refused(classes, "weights have 3 classes, but config specifies 2");
        let mut twice = zeros(&small());
        twice.insert("norm.bias".into(), twice["layernorm.bias"].clone());
        check_refused(twice, "two tensors map to \"layernorm.bias\"");
        let mut pooled = zeros(&small());
        pooled.insert("fc_norm.bias".into(), pooled["layernorm.bias"].clone());
        check_refused(pooled, "\"fc_norm.bias\" is not part");
    }
}
