//! The shape of a Vision Transformer, read from and written to Hugging Face's `config.json`.
//!
//! Field names and defaults are those of `transformers`; each file in `family` handles the differences of its family.
//! Valid settings that this crate does not implement (other activations, SwiGLU) are refused by name. This module opens
//! no files; it reads and writes text.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Link;
use super::family::Family;
use super::fields::{self, Fields, MAX_SIZE};
use crate::{Error, Result};
use vitscope_kernels::Activation;

/// The input of the classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The class token.
    ClassToken,
    /// The class token and the mean of the patch tokens, concatenated (DINOv2).
    ClassTokenAndPatchMean,
    /// One classifier on the class token and one on the distillation token, with averaged logits.
    ClassAndDistillationTokens,
    /// The class token, projected and normalized to length 1; logits are cosines with one vector per class (CLIP).
    ImageEmbedding {
        /// Length of a class vector.
        projection_dim: usize,
    },
}

impl Head {
    /// Number of features that the classifier reads, given `dim` features per token.
    pub fn width(self, dim: usize) -> usize {
        match self {
            Self::ClassToken | Self::ClassAndDistillationTokens => dim,
            Self::ClassTokenAndPatchMean => 2 * dim,
            Self::ImageEmbedding { projection_dim } => projection_dim,
        }
    }
}

/// The classifiers in a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heads {
    /// A classifier of the class token.
    pub(crate) classifier: bool,
    /// A classifier of the distillation token.
    pub(crate) distillation: bool,
}

/// The shape of a Vision Transformer. [`Default`] is ViT-B/16 at 224 pixels without a classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Determines tensor names, special tokens and the classifier's input.
    pub family: Family,
    /// Edge of the square input that the position embeddings were trained for, in pixels.
    pub image_size: usize,
    /// Edge of a square patch, in pixels.
    pub patch_size: usize,
    /// Color channels of the input.
    pub num_channels: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of the self-attention; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Added to the variance in each layer norm.
    pub layer_norm_eps: f64,
    /// Whether query, key and value have a bias.
    pub qkv_bias: bool,
    /// Nonlinearity of the MLP.
    pub hidden_act: Activation,
    /// Register tokens between the class token and the patches.
    pub registers: usize,
    /// Whether each branch of a block is scaled by a learned vector.
    pub layer_scale: bool,
    /// Whether a distillation token follows the class token.
    pub distilled: bool,
    /// Class names in the order of the logits; empty without a classifier.
    pub labels: Vec<String>,
    /// Alternative names of labels, mapped to labels. Stored under `label_aliases`, a key specific to this crate.
    pub label_aliases: BTreeMap<String, String>,
    /// Whether several classes may apply at the same time; see [`VitConfig::link`].
    pub multi_label: bool,
    /// Input of the classifier; [`VitConfig::head`] is `None` if there is no classifier.
    pub reads: Head,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            family: Family::Vit,
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            layer_norm_eps: 1e-12,
            qkv_bias: true,
            hidden_act: Activation::Gelu,
            registers: 0,
            layer_scale: false,
            distilled: false,
            labels: Vec::new(),
            label_aliases: BTreeMap::new(),
            multi_label: false,
            reads: Head::ClassToken,
        }
    }
}

impl VitConfig {
    /// The standard sizes (arXiv:2010.11929, table 1; arXiv:2012.12877, table 1) with 1,000 classes: `vit-ti/16`,
    /// `vit-s/16` and `vit-b/16`.
    pub fn preset(name: &str) -> Option<Self> {
        let heads = match name {
            "vit-ti/16" => 3,
            "vit-s/16" => 6,
            "vit-b/16" => 12,
            _ => return None,
        };
        Some(Self {
            hidden_size: 64 * heads,
            num_attention_heads: heads,
            intermediate_size: 4 * 64 * heads,
            labels: (0..1000).map(|class| class.to_string()).collect(),
            ..Self::default()
        })
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Model`], naming the field, if the text is not JSON, if a field is missing or has the wrong type, if
    /// sizes do not divide, or if the kind of model is not supported.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::read(text, None)
    }

    /// Like [`from_json`](Self::from_json), for a checkpoint that contains `heads`. They determine the classifiers if
    /// the text does not name the class that wrote it.
    pub(crate) fn from_json_with(text: &str, heads: Heads) -> Result<Self> {
        Self::read(text, Some(heads))
    }

    fn read(text: &str, heads: Option<Heads>) -> Result<Self> {
        let whole = fields::parse(text)?;
        let fields = Fields(&whole);
        let timm = fields.value("architecture");
        if timm.is_some() || fields.value("pretrained_cfg").is_some() {
            let name = timm.map_or_else(String::new, |name| format!(" of {name}"));
            return refuse(format!(
                "expected a Hugging Face config.json, got timm's configuration{name}"
            ));
        }
        let family = Family::of(fields)?;
        let of_family = family.architecture();
        let root = (of_family.fields)(whole)?;
        let fields = Fields(&root);
        if let Some(pool) = fields
            .value("global_pool")
            .filter(|pool| pool.as_str() != Some("token"))
        {
            return refuse(format!(
                "global_pool is {pool}, but only \"token\" is supported: the classifier reads the class token"
            ));
        }
        if fields.flag("use_swiglu_ffn", false)? {
            return refuse("use_swiglu_ffn is true; SwiGLU is not supported".into());
        }
        let hidden_size = fields.size("hidden_size")?;
        let architecture = architecture(fields)?;
        let is_bare = HEADLESS
            .iter()
            .any(|ending| architecture.strip_prefix(of_family.class_prefix) == Some(ending));
        // A custom class, or none, does not determine whether there is a classifier. Without a checkpoint, a file that
        // names classes is assumed to have one.
        let classifies = match heads {
            _ if architecture.contains("ForImageClassification") => true,
            _ if is_bare => false,
            Some(heads) => heads.classifier,
            None => architecture.is_empty() && fields.value("id2label").is_some(),
        };
        let has_teacher = match heads {
            _ if architecture.contains("ForImageClassification") => {
                architecture.ends_with("WithTeacher")
            }
            _ => heads.is_some_and(|heads| heads.distillation),
        };
        let mut config = Self {
            family,
            image_size: fields.square("image_size")?,
            patch_size: fields.square("patch_size")?,
            num_channels: fields.size_or("num_channels", 3)?,
            hidden_size,
            num_hidden_layers: fields.size("num_hidden_layers")?,
            num_attention_heads: fields.size("num_attention_heads")?,
            intermediate_size: (of_family.mlp_width)(fields, hidden_size)?,
            layer_norm_eps: fields.number("layer_norm_eps", of_family.layer_norm_eps)?,
            qkv_bias: fields.flag("qkv_bias", true)?,
            hidden_act: activation(fields)?,
            registers: 0,
            layer_scale: of_family.layer_scale,
            distilled: of_family.distilled,
            labels: if classifies {
                labels(fields)?
            } else {
                Vec::new()
            },
            label_aliases: label_aliases(fields)?,
            multi_label: classifies && multi_label(fields)?,
            reads: match has_teacher && of_family.distilled {
                true => Head::ClassAndDistillationTokens,
                false => of_family.reads,
            },
        };
        (of_family.read)(fields, &mut config)?;
        config.validate()?;
        Ok(config)
    }

    /// The text of a `config.json` that `transformers` and [`VitConfig::from_json`] read.
    pub fn to_json(&self) -> String {
        let class = match self.head() {
            None => "Model",
            Some(Head::ClassAndDistillationTokens) => "ForImageClassificationWithTeacher",
            Some(_) => "ForImageClassification",
        };
        let mut root = json!({
            "architectures": [format!("{}{class}", self.family.architecture().class_prefix)],
            "attention_probs_dropout_prob": 0.0,
            "hidden_act": activation_name(self.hidden_act),
            "hidden_dropout_prob": 0.0,
            "hidden_size": self.hidden_size,
            "image_size": self.image_size,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "model_type": self.family.model_type(),
            "num_attention_heads": self.num_attention_heads,
            "num_channels": self.num_channels,
            "num_hidden_layers": self.num_hidden_layers,
            "patch_size": self.patch_size,
            "qkv_bias": self.qkv_bias,
        });
        (self.family.architecture().write)(self, &mut root);
        if !self.labels.is_empty() {
            let id2label = self.labels.iter().enumerate();
            let id2label = id2label.map(|(index, name)| (index.to_string(), json!(name)));
            root["id2label"] = id2label.collect();
            let label2id = self.labels.iter().enumerate();
            let label2id = label2id.map(|(index, name)| (name.clone(), json!(index)));
            root["label2id"] = label2id.collect();
        }
        if self.multi_label {
            root["problem_type"] = json!(MULTI_LABEL);
        }
        if !self.label_aliases.is_empty() {
            root["label_aliases"] = json!(self.label_aliases);
        }
        format!("{root:#}\n")
    }

    /// Replaces the classes, of which exactly one applies to a picture.
    pub fn set_classes(&mut self, labels: Vec<String>) {
        if self.labels != labels {
            self.label_aliases.clear();
        }
        self.labels = labels;
        self.multi_label = false;
    }

    /// Checks that the sizes are consistent.
    ///
    /// # Errors
    /// [`Error::Model`] with the contradictory values.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.num_channels),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
        ];
        for (field, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return refuse(format!("{field} is {size}, not between 1 and {MAX_SIZE}"));
            }
        }
        let (dim, heads) = (self.hidden_size, self.num_attention_heads);
        if !dim.is_multiple_of(heads) {
            return refuse(format!(
                "hidden_size {dim} is not a multiple of num_attention_heads {heads}"
            ));
        }
        let (image, patch) = (self.image_size, self.patch_size);
        if !image.is_multiple_of(patch) {
            return refuse(format!(
                "image_size {image} is not a multiple of patch_size {patch}"
            ));
        }
        let eps = self.layer_norm_eps;
        if !(eps.is_finite() && eps >= 0.0) {
            return refuse(format!("layer_norm_eps is {eps}, not a positive number"));
        }
        (self.family.architecture().check)(self)?;
        if self.reads == Head::ClassAndDistillationTokens && !self.distilled {
            return refuse("a teacher's classifier needs a distillation token".into());
        }
        Ok(())
    }

    /// Input of the classifier; `None` without a classifier.
    pub fn head(&self) -> Option<Head> {
        (!self.labels.is_empty()).then_some(self.reads)
    }

    /// How logits are converted to probabilities. A single class uses a sigmoid, because a softmax would always give 1.
    pub fn link(&self) -> Link {
        match self.multi_label || self.n_classes() == 1 {
            true => Link::Sigmoid,
            false => Link::Softmax,
        }
    }

    /// Number of classes; 0 without a classifier.
    pub fn n_classes(&self) -> usize {
        self.labels.len()
    }

    /// Rows and columns of the patch grid at the configured image size.
    pub fn grid(&self) -> (usize, usize) {
        let edge = self.image_size / self.patch_size.max(1);
        (edge, edge)
    }

    /// Number of patches at the configured image size.
    pub fn n_patches(&self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns
    }

    /// Tokens before the first patch: class token, distillation token, registers.
    pub fn n_special_tokens(&self) -> usize {
        1 + usize::from(self.distilled) + self.registers
    }

    /// Tokens that have a position embedding: class and distillation token, then the patches.
    pub fn n_positions(&self) -> usize {
        1 + usize::from(self.distilled) + self.n_patches()
    }

    /// Whether the patch embedding has a bias; false for CLIP.
    pub fn patch_bias(&self) -> bool {
        self.family.architecture().patch_bias
    }

    /// Whether there is a norm before the first block, as in CLIP.
    pub fn pre_norm(&self) -> bool {
        self.family.architecture().pre_norm
    }

    /// Whether position embeddings are antialiased when resized for another input size.
    ///
    /// `transformers` does this only for DINOv2 with registers.
    pub fn antialiased_positions(&self) -> bool {
        self.family.architecture().antialiased_positions
    }
}

pub(super) fn refuse<T>(message: String) -> Result<T> {
    Err(Error::Model(message))
}

fn activation(fields: Fields) -> Result<Activation> {
    let Some(name) = fields.given("hidden_act")? else {
        return Ok(Activation::Gelu);
    };
    let known = [Activation::Gelu, Activation::QuickGelu];
    let found = known
        .into_iter()
        .find(|known| name == activation_name(*known));
    found.ok_or_else(|| {
        let known = known.map(activation_name).join(" and ");
        Error::Model(format!(
            "hidden_act is {name}, but only {known} are supported"
        ))
    })
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Gelu => "gelu",
        Activation::QuickGelu => "quick_gelu",
    }
}

/// Suffixes of class names without a classifier in `transformers`.
const HEADLESS: [&str; 4] = [
    "Model",
    "ForMaskedImageModeling",
    "Backbone",
    "ModelWithProjection",
];

/// The first of `architectures`, or an empty string.
pub(super) fn architecture<'a>(fields: Fields<'a>) -> Result<&'a str> {
    let Some(value) = fields.value("architectures") else {
        return Ok("");
    };
    let Some(names) = value.as_array() else {
        return refuse(format!("field \"architectures\" is {value}, not a list"));
    };
    Ok(names.first().and_then(Value::as_str).unwrap_or(""))
}

/// Class names in the order of the logits; `LABEL_0` and so on if the file has none.
fn labels(fields: Fields) -> Result<Vec<String>> {
    let Some(value) = fields.value("id2label") else {
        // `transformers` omits `id2label` if it is the default, which has two classes.
        let n_classes = fields.count("num_labels", 2)?;
        return Ok((0..n_classes).map(|i| format!("LABEL_{i}")).collect());
    };
    // An empty map of labels means that the model has no classifier.
    let Some(names) = value.as_object() else {
        return refuse(format!("field \"id2label\" is {value}, not a map of names"));
    };
    let n_classes = names.len();
    (0..n_classes)
        .map(|index| match names.get(&index.to_string()) {
            Some(Value::String(name)) => Ok(name.clone()),
            Some(other) => refuse(format!(
                "id2label maps class {index} to {other}, expected a string"
            )),
            None => refuse(format!(
                "id2label has {n_classes} classes but no class {index}"
            )),
        })
        .collect()
}

/// The `problem_type` of models whose classes may apply at the same time.
const MULTI_LABEL: &str = "multi_label_classification";

/// Whether several classes may apply at the same time.
fn multi_label(fields: Fields) -> Result<bool> {
    match fields.value("problem_type") {
        None => Ok(false),
        Some(kind) if kind == MULTI_LABEL => Ok(true),
        Some(kind) if kind == "single_label_classification" => Ok(false),
        Some(kind) if kind == "regression" => refuse(
            "problem_type is \"regression\", but its outputs are not class probabilities".into(),
        ),
        Some(other) => refuse(format!(
            "problem_type is {other}, expected {MULTI_LABEL} or single_label_classification"
        )),
    }
}

/// Labels by alternative names; empty if the file has no `label_aliases`.
fn label_aliases(fields: Fields) -> Result<BTreeMap<String, String>> {
    let Some(value) = fields.value("label_aliases") else {
        return Ok(BTreeMap::new());
    };
    let Some(aliases) = value.as_object() else {
        return refuse(format!(
            "field \"label_aliases\" is {value}, not a map of names"
        ));
    };
    let aliases = aliases.iter().map(|(alias, label)| match label.as_str() {
        Some(label) => Ok((alias.clone(), label.to_owned())),
        None => refuse(format!(
            "label_aliases maps {alias:?} to {label}, expected a string"
        )),
    });
    aliases.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIT: &str = r#"{"architectures": ["ViTForImageClassification"], "model_type": "vit",
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 32, "patch_size": [8, 8], "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "id2label": {"0": "cat", "10": "k", "1": "dog", "2": "c",
        "3": "d", "4": "e", "5": "f", "6": "g", "7": "h", "8": "i", "9": "j"}}"#;

    fn check_refused(edit: (&str, &str), expected: &str) {
        let text = VIT.replace(edit.0, edit.1);
        assert_ne!(text, VIT, "the edit {edit:?} changes nothing");
        let message = VitConfig::from_json(&text).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }

    #[test]
    fn labels_are_in_the_order_of_their_numbers() {
        let config = VitConfig::from_json(VIT).unwrap();
        assert_eq!(config.labels[..3], ["cat", "dog", "c"]);
        assert_eq!(config.labels[10], "k");
        assert_eq!(config.head(), Some(Head::ClassToken));
        assert_eq!((config.grid(), config.n_positions()), ((4, 4), 17));
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let labels = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let vit = VitConfig {
            labels,
            label_aliases: [("d".to_owned(), "b".to_owned())].into(),
            ..VitConfig::default()
        };
        let deit = VitConfig {
            family: Family::Deit,
            distilled: true,
            reads: Head::ClassAndDistillationTokens,
            ..vit.clone()
        };
        let clip = VitConfig {
            family: Family::Clip,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            labels: Vec::new(),
            reads: Head::ImageEmbedding {
                projection_dim: 512,
            },
            ..vit.clone()
        };
        let dinov2 = VitConfig {
            family: Family::Dinov2WithRegisters,
            registers: 4,
            layer_scale: true,
            qkv_bias: false,
            layer_norm_eps: 1e-6,
            labels: Vec::new(),
            reads: Head::ClassTokenAndPatchMean,
            ..vit.clone()
        };
        for config in [vit, deit, dinov2, clip] {
            assert_eq!(VitConfig::from_json(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn a_bare_model_has_no_classes_even_if_names_are_given() {
        let text = VIT.replace("ViTForImageClassification", "ViTModel");
        assert_eq!(VitConfig::from_json(&text).unwrap().head(), None);
    }

    #[test]
    fn a_classifier_without_names_has_the_two_default_classes() {
        let text = VIT.replace("id2label", "other");
        let config = VitConfig::from_json(&text).unwrap();
        assert_eq!(config.labels, ["LABEL_0", "LABEL_1"]);
    }

    #[test]
    fn a_class_of_the_users_own_has_the_classifier_that_the_checkpoint_holds() {
        let with = |architectures: &str, classifier: bool| {
            let text = VIT.replace("[\"ViTForImageClassification\"]", architectures);
            let heads = Heads {
                classifier,
                distillation: false,
            };
            let config = VitConfig::from_json_with(&text, heads).unwrap();
            config.n_classes()
        };
        for architectures in ["[\"MyNet\"]", "[\"ViTWithStyle\"]", "[]", "null"] {
            assert_eq!(with(architectures, true), 11, "{architectures}");
            assert_eq!(with(architectures, false), 0, "{architectures}");
        }
        assert_eq!(with("[\"ViTModel\"]", true), 0);
        assert_eq!(with("[\"ViTForImageClassification\"]", false), 11);
    }

    /// Matches the function that `ImageClassificationPipeline` of transformers 5.24 applies.
    #[test]
    fn labels_that_do_not_exclude_each_other_are_linked_by_a_sigmoid() {
        let kind = |kind: &str| {
            let text = VIT.replacen('{', &format!("{{\"problem_type\": {kind}, "), 1);
            VitConfig::from_json(&text)
        };
        let link = |name: &str| kind(name).unwrap().link();
        assert_eq!(link("null"), Link::Softmax);
        assert_eq!(link("\"single_label_classification\""), Link::Softmax);
        assert_eq!(link("\"multi_label_classification\""), Link::Sigmoid);
        let message = kind("\"regression\"").unwrap_err().to_string();
        assert!(
            message.contains("its outputs are not class probabilities"),
            "{message}"
        );
        let one = VitConfig {
            labels: vec!["defect".into()],
            ..VitConfig::default()
        };
        assert_eq!(one.link(), Link::Sigmoid);
        for none in [
            "\"num_labels\": 0, \"other\"",
            "\"id2label\": {}, \"other\"",
        ] {
            let config = VitConfig::from_json(&VIT.replace("\"id2label\"", none)).unwrap();
            assert_eq!(config.head(), None);
        }
    }

    #[test]
    fn clip_is_read_from_its_image_half() {
        let text = r#"{"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 24,
            "text_config": {"hidden_size": 16}, "vision_config": {"hidden_size": 48,
            "num_attention_heads": 3, "projection_dim": 7, "patch_size": 16}}"#;
        let config = VitConfig::from_json(text).unwrap();
        assert_eq!((config.hidden_size, config.grid()), (48, (14, 14)));
        assert_eq!(config.hidden_act, Activation::QuickGelu);
        let projection_dim = 24;
        assert_eq!(config.reads, Head::ImageEmbedding { projection_dim });
        assert_eq!(config.head(), None, "class vectors come from elsewhere");
        let other = text.replace("CLIPModel", "CLIPForImageClassification");
        let message = VitConfig::from_json(&other).unwrap_err().to_string();
        assert!(
            message.contains("CLIPForImageClassification is not supported"),
            "{message}"
        );
    }

    #[test]
    fn errors_name_the_field_and_the_values() {
        check_refused(("{\"arch", "{,\"arch"), "not valid JSON");
        check_refused(("\"hidden_size\"", "\"x\""), "\"hidden_size\" is missing");
        check_refused(
            ("\"hidden_size\": 32", "\"hidden_size\": \"32\""),
            "hidden_size",
        );
        check_refused(
            ("\"hidden_size\": 32", "\"hidden_size\": 1e9"),
            "hidden_size",
        );
        check_refused(("\"hidden_size\": 32", "\"hidden_size\": -1"), "-1");
        check_refused(
            ("\"hidden_size\": 32", "\"hidden_size\": 30"),
            "hidden_size 30 is not a multiple of num_attention_heads 4",
        );
        check_refused(
            ("\"image_size\": 32", "\"image_size\": 33"),
            "image_size 33 is not a multiple of patch_size 8",
        );
        check_refused(("[8, 8]", "[8, 4]"), "[8,4]");
        check_refused(("\"gelu\"", "\"relu\""), "\"relu\"");
        check_refused(("\"vit\"", "\"swin\""), "\"swin\"");
        check_refused(("\"7\"", "\"11\""), "no class 7");
        check_refused(("{\"arch", "{\"use_swiglu_ffn\": true, \"arch"), "SwiGLU");
        check_refused(("{\"arch", "{\"pretrained_cfg\": {}, \"arch"), "timm");
        check_refused(
            ("{\"arch", "{\"architecture\": \"vit_tiny\", \"arch"),
            "timm's configuration of \"vit_tiny\"",
        );
        for pool in ["avg", "avgmax", "map"] {
            let edit = format!("{{\"global_pool\": \"{pool}\", \"arch");
            check_refused(("{\"arch", &edit), &format!("global_pool is \"{pool}\""));
        }
        check_refused(
            ("\"layer_norm_eps\": 1e-12", "\"layer_norm_eps\": null"),
            "\"layer_norm_eps\" is null",
        );
        check_refused(
            ("{\"arch", "{\"label_aliases\": {\"x\": 1}, \"arch"),
            "label_aliases maps \"x\" to 1",
        );
    }
}
