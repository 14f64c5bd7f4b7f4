//! Model folders: what opens, what is refused and with which message, and the cards of `models/`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use vitscope::explain::{Method, Target};
use vitscope::frame::placement::ResizeRule;
use vitscope::models::{
    self, Model, ModelCard, Precision, Preprocessor, Reference, Shrunk, save_folder,
    save_preprocessor,
};
use vitscope::rng::Rng;
use vitscope::vit::names::canonical_weights;
use vitscope_core::gates::{GateCard, GateSizes, Gates, Objective, VotingGates};
use vitscope_core::weights::{bytes_from_tensors, sha256_hex, tensors_from_bytes};

use crate::common::names_in;

/// Maximum size of the models embedded in the program.
const MAX_EMBEDDED_BYTES: u64 = 32 << 20;

/// Maximum size of the default model in it, including all parts trained for it.
const MAX_MODEL_BYTES: u64 = 24_000_000;

const FILES: [&str; 3] = [
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn open(folder: &Path) -> Result<Model, String> {
    models::open(folder.to_str().unwrap(), &Device::Cpu).map_err(|error| error.to_string())
}

/// Makes a copy of a fixture that a test may break.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in FILES {
        fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// Opens a copy of `vit_a` in which `edit` has changed `file`, and checks the refusal: one sentence that contains
/// `expected` and ends with the path.
fn check_refused(file: &str, edit: impl FnOnce(Vec<u8>) -> Vec<u8>, expected: &str) {
    let folder = copy_of("vit_a");
    let path = folder.path().join(file);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, edit(bytes)).unwrap();
    let message = open(folder.path()).err().unwrap();
    check_message(&message, expected, &path);
}

fn check_message(message: &str, expected: &str, path: &Path) {
    assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    assert!(message.ends_with(&format!("{path:?}")), "{message:?}");
    assert!(!message.contains('\n'), "{message:?}");
}

/// Returns an edit that replaces text.
fn replace(from: &'static str, to: &'static str) -> impl FnOnce(Vec<u8>) -> Vec<u8> {
    move |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(from), "{from:?} is not in {text}");
        text.replace(from, to).into_bytes()
    }
}

fn logits(model: &Model, images: &Tensor) -> Vec<Vec<f32>> {
    let logits = model.vit.forward(images).unwrap().logits.unwrap();
    logits.to_vec2().unwrap()
}

fn images_of(name: &str) -> Tensor {
    let bytes = fs::read(fixture(name).join("reference.safetensors")).unwrap();
    tensors_from_bytes(&bytes, &Device::Cpu).unwrap()["images"].clone()
}

#[test]
fn a_folder_opens_with_all_that_lies_in_it() {
    let model = open(&fixture("vit_a")).unwrap();
    assert_eq!(model.labels(), ["airplane", "bird", "cat", "dog", "ship"]);
    assert_eq!(model.class_index("Cat").unwrap(), 2);
    assert_eq!(model.grid(), (4, 4));
    assert!(model.gates.is_none());
    let weights = fs::read(fixture("vit_a").join("model.safetensors")).unwrap();
    assert_eq!(model.weights_sha256, sha256_hex(&weights));
    let images = model.images_from_rgb(&[vec![255; 32 * 32 * 3]]).unwrap();
    assert_eq!(images.dims(), [1, 3, 32, 32]);
    assert_eq!(images.max_all().unwrap().to_scalar::<f32>().unwrap(), 1.0);
}

#[test]
fn the_preprocessors_of_all_fixtures_are_understood() {
    let dinov2 = open(&fixture("dinov2_reg")).unwrap();
    let rule = dinov2.preprocessor.rule;
    assert!(matches!(rule, ResizeRule::ShortestEdge { edge_px: 32, .. }));
    let deit = open(&fixture("deit_distilled")).unwrap();
    let rule = deit.preprocessor.rule;
    assert!(matches!(rule, ResizeRule::StretchThenCrop { .. }));
    let vit = open(&fixture("vit_b")).unwrap();
    assert!(matches!(vit.preprocessor.rule, ResizeRule::Stretch(_)));
}

/// Returns the answers of `answers.py`, computed by transformers and peft.
fn published(name: &str) -> Vec<Vec<f32>> {
    let text = fs::read_to_string(fixture("answers.json")).unwrap();
    let answers: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(answers[name].clone()).unwrap()
}

fn check_near(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.concat().into_iter().zip(expected.concat()) {
        assert!((found - expected).abs() < 2e-5, "{found} is not {expected}");
    }
}

#[test]
fn labels_that_do_not_exclude_each_other_have_the_scores_of_transformers() {
    let scores = |folder: &Path| -> Vec<Vec<f32>> {
        let model = open(folder).unwrap();
        let link = model.vit.config().link();
        let logits = logits(&model, &images_of("vit_a"));
        (logits.iter())
            .map(|logits| link.probabilities(logits))
            .collect()
    };
    let folder = copy_of("vit_a");
    let path = folder.path().join("config.json");
    let kind = "{ \"problem_type\": \"multi_label_classification\",";
    let config = fs::read_to_string(&path).unwrap().replacen('{', kind, 1);
    fs::write(&path, config).unwrap();
    check_near(&scores(folder.path()), &published("multi_label"));

    // A single class, as a separate head.
    let bytes = fs::read(fixture("vit_a").join("model.safetensors")).unwrap();
    let tensors = tensors_from_bytes(&bytes, &Device::Cpu).unwrap();
    let first = |name: &str| tensors[name].narrow(0, 0, 1).unwrap();
    let folder = copy_of("vit_a");
    let (weight, bias) = (first("classifier.weight"), first("classifier.bias"));
    write_head(folder.path(), &[("weight", &weight), ("bias", &bias)], None);
    check_near(&scores(folder.path()), &published("one_output"));
}

/// Explains one gray picture of a model of a single class, whose probability would saturate.
#[test]
fn methods_that_ask_for_probabilities_explain_the_logit_of_a_single_class() {
    let folder = copy_of("vit_a");
    let (weight, bias) = (ramp(&[1, 32]), (ramp(&[1]) + 1e3).unwrap());
    write_head(folder.path(), &[("weight", &weight), ("bias", &bias)], None);
    let model = open(folder.path()).unwrap();
    let images = images_of("vit_a");
    let probability = model
        .vit
        .config()
        .link()
        .probabilities(&logits(&model, &images)[0]);
    assert_eq!(probability, [1.0]);
    for method in [
        Method::Occlusion,
        Method::ScoreCam,
        Method::GradMask,
        Method::KernelShap,
    ] {
        let found = method.build(model.parts()).unwrap();
        let found = found
            .explain(&model.vit, &images, Target::Predicted)
            .unwrap();
        let spread = |map: &Tensor| -> f32 {
            let range = (map.max_all().unwrap() - map.min_all().unwrap()).unwrap();
            range.to_scalar().unwrap()
        };
        let map = found.attribution.get(0).unwrap();
        assert!(spread(&map) > 1e-3, "{method} computed a constant map");
    }
}

#[test]
fn a_lora_adapter_beside_the_weights_is_applied() {
    let folder = copy_of("vit_a");
    let plain = open(folder.path()).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let to = folder.path().join(file);
        fs::copy(fixture("vit_a_lora").join(file), to).unwrap();
    }
    let model = open(folder.path()).unwrap();
    check_near(&logits(&model, &images_of("vit_a")), &published("lora"));
    assert_ne!(model.weights_sha256, plain.weights_sha256);
    assert_eq!(model.weights_sha256, model.backbone_sha256);

    let refused = models::shrink(
        folder.path().to_str().unwrap(),
        &folder.path().join("small"),
    );
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("the model has an adapter")
    );
    let settings = folder.path().join("adapter_config.json");
    let text = fs::read(&settings).unwrap();
    fs::write(
        &settings,
        replace("\"use_dora\": false", "\"use_dora\": true")(text),
    )
    .unwrap();
    let message = open(folder.path()).err().unwrap();
    let weights = folder.path().join("adapter_model.safetensors");
    check_message(
        &message,
        "\"use_dora\" is true, which is not supported",
        &settings,
    );
    fs::remove_file(&weights).unwrap();
    let message = open(folder.path()).err().unwrap();
    check_message(
        &message,
        "no adapter_model.safetensors, but it has adapter_config.json",
        folder.path(),
    );
    let message = open(&fixture("vit_a_lora")).err().unwrap();
    check_message(&message, "contains only an adapter", &fixture("vit_a_lora"));
}

#[test]
fn a_lora_adapter_goes_over_a_backbone() {
    let base = fixture("vit_a");
    let over = |folder: &Path, base: &Path| {
        let (folder, base) = (folder.to_str().unwrap(), base.to_str().unwrap());
        models::open(Reference::over(folder, Some(base)), &Device::Cpu)
            .map_err(|error| error.to_string())
    };
    let images = images_of("vit_a");
    let model = over(&fixture("vit_a_lora"), &base).unwrap();
    check_near(&logits(&model, &images), &published("lora"));
    let labels = open(&base).unwrap().labels().to_vec();
    assert_eq!(model.labels(), labels);

    // As peft writes it for other classes than the model's, or for a model without classes.
    let folder = tempfile::tempdir().unwrap();
    let settings = "adapter_config.json";
    fs::copy(
        fixture("vit_a_lora").join(settings),
        folder.path().join(settings),
    )
    .unwrap();
    let weights = "adapter_model.safetensors";
    let read = |path: PathBuf| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let mut tensors = read(fixture("vit_a_lora").join(weights));
    for leaf in ["weight", "bias"] {
        let classifier = tensors.get_mut(&format!("base_model.model.classifier.{leaf}"));
        let classifier = classifier.unwrap();
        *classifier = classifier.narrow(0, 1, 3).unwrap().copy().unwrap();
    }
    candle_core::safetensors::save(&tensors, folder.path().join(weights)).unwrap();
    let bare = copy_of("vit_a");
    let config = bare.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("ViTForImageClassification", "ViTModel"),
    )
    .unwrap();
    let expected = published("lora");
    let expected: Vec<Vec<f32>> = expected.iter().map(|row| row[1..4].to_vec()).collect();
    for base in [&base, bare.path()] {
        let model = over(folder.path(), base).unwrap();
        check_near(&logits(&model, &images), &expected);
        assert_eq!(model.labels(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
    }

    let adapted = copy_of("vit_a");
    for file in [settings, weights] {
        fs::copy(fixture("vit_a_lora").join(file), adapted.path().join(file)).unwrap();
    }
    let message = over(folder.path(), adapted.path()).err().unwrap();
    check_message(
        &message,
        "the backbone already has an adapter",
        folder.path(),
    );
}

#[test]
fn a_classifier_stays_under_a_class_name_of_the_users_own() {
    let whole = open(&fixture("vit_a")).unwrap();
    for name in ["MyClassifier", "ViTWithMore", ""] {
        let folder = copy_of("vit_a");
        let path = folder.path().join("config.json");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(&path, config.replace("ViTForImageClassification", name)).unwrap();
        let model = open(folder.path()).unwrap();
        assert_eq!(model.labels(), whole.labels(), "{name:?}");
        let images = images_of("vit_a");
        assert_eq!(logits(&model, &images), logits(&whole, &images));
    }
}

#[test]
fn zero_registers_are_none() {
    let folder = copy_of("dinov2_reg");
    let edit = |file: &str, edit: &dyn Fn(String) -> String| {
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, edit(text)).unwrap();
    };
    edit("config.json", &|text| {
        let zero = text.replace("\"num_register_tokens\": 4", "\"num_register_tokens\": 0");
        assert_ne!(zero, text);
        zero
    });
    let path = folder.path().join("model.safetensors");
    let tensors = tensors_from_bytes(&fs::read(&path).unwrap(), &Device::Cpu).unwrap();
    let mut tensors = BTreeMap::from_iter(tensors);
    let registers = "dinov2_with_registers.embeddings.register_tokens";
    let none = tensors[registers].narrow(1, 0, 0).unwrap();
    tensors.insert(registers.to_owned(), none);
    fs::write(&path, bytes_from_tensors(&tensors, Precision::F32).unwrap()).unwrap();
    let model = open(folder.path()).unwrap();
    assert_eq!(model.vit.config().n_special_tokens(), 1);
    let image = images_of("dinov2_reg").narrow(0, 0, 1).unwrap();
    assert!(
        logits(&model, &image)[0]
            .iter()
            .all(|logit| logit.is_finite())
    );
}

/// transformers 5 reads the processor's file first, and the image processor's file if that has no `image_processor`.
#[test]
fn a_processors_file_goes_before_that_of_its_image_processor() {
    let folder = copy_of("vit_a");
    let path = folder.path().join("processor_config.json");
    let mean = || open(folder.path()).map(|model| model.preprocessor.mean);
    let own = mean().unwrap();
    for none in [
        "{\"processor_class\": \"X\"}",
        "{\"image_processor\": null}",
    ] {
        fs::write(&path, none).unwrap();
        assert_eq!(mean().unwrap(), own);
    }
    let nested = r#"{"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 32,
        "image_mean": [0.25, 0.25, 0.25]}}"#;
    fs::write(&path, nested).unwrap();
    assert_eq!(mean().unwrap(), [0.25; 3]);
    fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
    assert_eq!(mean().unwrap(), [0.25; 3]);
    let parent = tempfile::tempdir().unwrap();
    let (small, _) = shrunk(folder.path(), parent.path());
    assert_eq!(open(&small).unwrap().preprocessor.mean, [0.25; 3]);
    fs::write(&path, nested.replace("\"size\": 32", "\"size\": 36")).unwrap();
    let message = open(folder.path()).err().unwrap();
    check_message(&message, "images are 36 x 36 px", &path);
}

#[test]
fn a_model_of_another_kind_is_refused_as_such_and_not_for_its_files() {
    let refused = |config: &str, expected: &str| {
        let folder = copy_of("vit_a");
        fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, config).unwrap();
        check_message(&open(folder.path()).err().unwrap(), expected, &path);
    };
    refused(
        r#"{"architecture": "vit_base_patch16_224", "num_classes": 1000, "global_pool": "avg"}"#,
        "timm's configuration of \"vit_base_patch16_224\"",
    );
    refused(r#"{"model_type": "yolos"}"#, "model_type is \"yolos\"");
    refused(r#"{"model_type": "vjepa2"}"#, "model_type is \"vjepa2\"");
}

#[test]
fn a_model_that_is_nowhere_is_answered_with_what_was_tried() {
    let refused = |reference: &str| {
        let error = models::open(reference, &Device::Cpu).err().unwrap();
        error.to_string()
    };
    let message = refused("no-such-model");
    assert!(message.contains("neither an embedded model ("), "{message}");
    assert!(
        message.ends_with("nor a folder: \"no-such-model\""),
        "{message}"
    );
    let file = fixture("vit_a").join("config.json");
    let message = refused(file.to_str().unwrap());
    assert!(message.contains("got a file"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    for file in FILES {
        let folder = copy_of("vit_a");
        fs::remove_file(folder.path().join(file)).unwrap();
        let message = open(folder.path()).err().unwrap();
        check_message(
            &message,
            &format!("model folder has no {file}"),
            folder.path(),
        );
    }
    let folder = copy_of("vit_a");
    let weights = folder.path().join("model.safetensors");
    fs::rename(weights, folder.path().join("pytorch_model.bin")).unwrap();
    let message = open(folder.path()).err().unwrap();
    check_message(&message, "only pytorch_model.bin", folder.path());
}

#[test]
fn broken_configurations_are_refused_by_field() {
    let config = "config.json";
    check_refused(config, |bytes| bytes[..99].to_vec(), "not valid JSON");
    check_refused(config, |_| vec![0xff, 0xfe], "not UTF-8");
    check_refused(
        config,
        replace("hidden_size", "size"),
        "\"hidden_size\" is missing",
    );
    check_refused(
        config,
        replace("\"vit\"", "\"swin\""),
        "model_type is \"swin\"",
    );
    check_refused(
        config,
        replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 5"),
        "hidden_size 32 is not a multiple of num_attention_heads 5",
    );
    let preprocessor = "preprocessor_config.json";
    check_refused(preprocessor, |_| b"[]".to_vec(), "not a JSON object");
    check_refused(
        preprocessor,
        replace("\"width\": 32", "\"width\": 36"),
        "images are 36 x 32 px, which is not a multiple of config's patch size of 8 px",
    );
}

#[test]
fn weights_that_do_not_fit_are_refused_by_their_first_tensor() {
    let refused = |from: &'static str, to: &'static str, expected: &str| {
        let folder = copy_of("vit_a");
        let config = folder.path().join("config.json");
        let text = replace(from, to)(fs::read(&config).unwrap());
        fs::write(&config, text).unwrap();
        let message = open(folder.path()).err().unwrap();
        check_message(&message, expected, &folder.path().join("model.safetensors"));
    };
    refused(
        "\"intermediate_size\": 64",
        "\"intermediate_size\": 96",
        "\"encoder.layer.0.intermediate.dense.weight\" has shape [64, 32], but config implies [96, 32]",
    );
    refused(
        "\"num_hidden_layers\": 3",
        "\"num_hidden_layers\": 4",
        "\"encoder.layer.3.layernorm_before.weight\" of shape [32] is missing",
    );
    refused(
        "\"num_hidden_layers\": 3",
        "\"num_hidden_layers\": 2",
        "does not belong to the model that config describes (2 blocks)",
    );
    refused(
        "\"4\": \"ship\"",
        "\"4\": \"ship\", \"5\": \"deer\"",
        "weights have 5 classes, but config specifies 6",
    );
    refused(
        "\"image_size\": 32",
        "\"image_size\": 64",
        "\"embeddings.position_embeddings\" has shape [1, 17, 32], but config implies [1, 65, 32]",
    );
}

#[test]
fn cut_weights_are_refused() {
    let weights = "model.safetensors";
    let expected = "not a complete safetensors file";
    check_refused(weights, |_| Vec::new(), expected);
    check_refused(weights, |bytes| bytes[..7].to_vec(), expected);
    check_refused(weights, |bytes| bytes[..1000].to_vec(), expected);
    check_refused(weights, |bytes| bytes[..bytes.len() - 1].to_vec(), expected);
    check_refused(weights, |_| b"version https://git-lfs".repeat(4), expected);
}

#[test]
fn a_saved_folder_is_the_same_model() {
    for name in ["vit_a", "dinov2_reg", "deit_distilled"] {
        let model = open(&fixture(name)).unwrap();
        let config = model.vit.config().clone();
        let bytes = fs::read(fixture(name).join("model.safetensors")).unwrap();
        let tensors = tensors_from_bytes(&bytes, &Device::Cpu).unwrap();
        let tensors = canonical_weights(&config, tensors).unwrap();
        let images = images_of(name);

        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new/folder");
        let precision = Precision::F32;
        let sha256 =
            save_folder(&folder, &config, &model.preprocessor, &tensors, precision).unwrap();
        let saved = open(&folder).unwrap();
        assert_eq!(saved.weights_sha256, sha256);
        assert_eq!(saved.preprocessor, model.preprocessor);
        assert_eq!(saved.vit.config(), &config);
        assert_eq!(logits(&saved, &images), logits(&model, &images));
        let mut files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(
            files,
            [
                "config.json",
                "model.safetensors",
                "preprocessor_config.json"
            ]
        );

        save_folder(
            &folder,
            &config,
            &model.preprocessor,
            &tensors,
            Precision::F16,
        )
        .unwrap();
        let halved = open(&folder).unwrap();
        assert_ne!(halved.weights_sha256, sha256);
        let (halved, whole) = (logits(&halved, &images), logits(&model, &images));
        for (halved, whole) in halved.concat().into_iter().zip(whole.concat()) {
            assert!(
                (halved - whole).abs() < 0.02,
                "{halved} is not near {whole}"
            );
        }
    }
}

/// Writes a `head.safetensors`, with the names of classes if given.
fn write_head(folder: &Path, tensors: &[(&str, &Tensor)], labels: Option<&str>) {
    let stored: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let mut bytes = Vec::new();
            tensor.write_bytes(&mut bytes).unwrap();
            (*name, tensor.dims().to_vec(), bytes)
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    let metadata = labels.map(|labels| HashMap::from([("labels".to_owned(), labels.to_owned())]));
    let bytes = safetensors::serialize(views, metadata).unwrap();
    fs::write(folder.join("head.safetensors"), bytes).unwrap();
}

/// Returns a tensor that counts up from -1 in small steps.
fn ramp(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|index| index as f32 / n as f32 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn a_head_of_its_own_reads_what_its_width_says() {
    // A DINOv2 without a classifier gets the one that was removed from it.
    let whole = open(&fixture("dinov2_reg")).unwrap();
    let bytes = fs::read(fixture("dinov2_reg").join("model.safetensors")).unwrap();
    let tensors = tensors_from_bytes(&bytes, &Device::Cpu).unwrap();
    let folder = copy_of("dinov2_reg");
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("ForImageClassification", "Model")).unwrap();
    let headless = open(folder.path()).unwrap();
    assert!(headless.labels().is_empty());
    let head = [
        ("linear.weight", &tensors["classifier.weight"]),
        ("linear.bias", &tensors["classifier.bias"]),
    ];
    write_head(folder.path(), &head, Some(r#"["a", "b", "c", "d"]"#));
    let headed = open(folder.path()).unwrap();
    let images = images_of("dinov2_reg");
    assert_eq!(logits(&headed, &images), logits(&whole, &images));
    assert_eq!(headed.labels(), ["a", "b", "c", "d"]);
    assert_ne!(headed.weights_sha256, headless.weights_sha256);

    // A ViT's own classifier is replaced by another one, which reads the class token and has no bias.
    let folder = copy_of("vit_a");
    let weight = ramp(&[3, 32]);
    write_head(folder.path(), &[("weight", &weight)], None);
    let model = open(folder.path()).unwrap();
    let images = images_of("vit_a");
    let class_tokens = model.vit.forward(&images).unwrap().tokens;
    let class_tokens = class_tokens.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    let expected = class_tokens.matmul(&weight.t().unwrap()).unwrap();
    let expected: Vec<Vec<f32>> = expected.to_vec2().unwrap();
    for (found, expected) in logits(&model, &images)
        .concat()
        .into_iter()
        .zip(expected.concat())
    {
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }
    assert_eq!(model.labels(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
}

#[test]
fn heads_that_do_not_fit_are_refused_in_words() {
    let check = |name: &str, tensors: &[(&str, &Tensor)], labels: Option<&str>, expected: &str| {
        let folder = copy_of(name);
        write_head(folder.path(), tensors, labels);
        let message = open(folder.path()).err().unwrap();
        check_message(&message, expected, &folder.path().join("head.safetensors"));
    };
    let (weight, bias) = (&ramp(&[3, 32]), &ramp(&[3]));
    let fits: &[(&str, &Tensor)] = &[("weight", weight)];
    check("vit_a", &[("bias", bias)], None, "\"weight\" is missing");
    let wide: &[(&str, &Tensor)] = &[("weight", &ramp(&[3, 96]))];
    check("vit_a", wide, None, "reads 96 features");
    let short: &[(&str, &Tensor)] = &[("weight", weight), ("bias", &ramp(&[2]))];
    check("vit_a", short, None, "\"bias\" has shape [2]");
    check("vit_a", fits, Some(r#"["a"]"#), "names 1 classes");
    check("vit_a", fits, Some("a, b, c"), "not a JSON list of names");
    let two: &[(&str, &Tensor)] = &[("a.weight", weight), ("b.weight", weight)];
    check(
        "vit_a",
        two,
        None,
        "expected one weight and at most one bias",
    );
    check("clip", fits, None, "has 20");
    let biased: &[(&str, &Tensor)] = &[("weight", &ramp(&[3, 20])), ("bias", bias)];
    check("clip", biased, None, "class vectors take no bias");
}

#[test]
fn a_folder_with_a_head_only_stands_on_its_backbone() {
    let whole = open(&fixture("clip")).unwrap();
    let (backbone, top) = (copy_of("clip"), tempfile::tempdir().unwrap());
    let (backbone, top) = (backbone.path(), top.path());
    fs::copy(
        fixture("clip").join("head.safetensors"),
        top.join("head.safetensors"),
    )
    .unwrap();
    let open_over = |model: &Path, backbone: &Path| {
        let reference = Reference::over(model.to_str().unwrap(), backbone.to_str());
        models::open(reference, &Device::Cpu).map_err(|error| error.to_string())
    };
    let stacked = open_over(top, backbone).unwrap();
    let images = images_of("clip");
    assert_eq!(logits(&stacked, &images), logits(&whole, &images));
    assert_eq!(stacked.weights_sha256, whole.weights_sha256);
    assert_eq!(stacked.labels(), ["a cat", "a dog", "a ship"]);
    assert!(open(backbone).unwrap().labels().is_empty());

    let message = open(top).err().unwrap();
    check_message(&message, "pass the model that the head was made for", top);
    let message = open_over(backbone, top).err().unwrap();
    assert!(message.contains("contains only a head"), "{message}");
    let message = open_over(backbone, backbone).err().unwrap();
    check_message(&message, "cannot be combined with a backbone", backbone);
    fs::remove_file(top.join("head.safetensors")).unwrap();
    let message = open_over(top, backbone).err().unwrap();
    check_message(
        &message,
        "no head.safetensors, no adapter_model.safetensors, no gates",
        top,
    );
}

/// Positions follow the grid, so a head may have learned from larger pictures than its backbone.
#[test]
fn a_head_says_at_which_size_it_looks() {
    let (backbone, top) = (copy_of("vit_a"), tempfile::tempdir().unwrap());
    write_head(top.path(), &[("weight", &ramp(&[3, 32]))], None);
    let reference = Reference::over(top.path().to_str().unwrap(), backbone.path().to_str());
    let open_over = || models::open(reference, &Device::Cpu).map_err(|error| error.to_string());
    let edge_px = || open_over().unwrap().preprocessor.image_size().width_px;
    assert_eq!(edge_px(), 32);
    let file = top.path().join("preprocessor_config.json");
    let own = open_over().unwrap().preprocessor.at_square(64);
    save_preprocessor(top.path(), &own).unwrap();
    assert_eq!(edge_px(), 64);
    assert_eq!(open_over().unwrap().preprocessor.mean, own.mean);

    let message = open(top.path()).err().unwrap();
    check_message(
        &message,
        "pass the model that the head was made for",
        top.path(),
    );
    save_preprocessor(top.path(), &own.at_square(63)).unwrap();
    check_message(&open_over().err().unwrap(), "63 x 63 px", &file);
    fs::write(&file, "{").unwrap();
    check_message(&open_over().err().unwrap(), "JSON", &file);
}

#[test]
fn half_a_clip_is_not_saved() {
    let model = open(&fixture("clip")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = model.vit.config();
    let (tensors, precision) = (HashMap::new(), Precision::F32);
    let refused = save_folder(
        folder.path(),
        config,
        &model.preprocessor,
        &tensors,
        precision,
    );
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("read but not saved")
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn tensors_of_another_model_are_not_saved() {
    let model = open(&fixture("vit_a")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let preprocessor = Preprocessor::square(32);
    let config = model.vit.config();
    let none = Default::default();
    let error = save_folder(&target, config, &preprocessor, &none, Precision::F16).unwrap_err();
    assert!(error.to_string().contains("embeddings.cls_token"));
    assert!(!target.exists());
}

/// Shrinks a folder into a new one next to it.
fn shrunk(folder: &Path, parent: &Path) -> (PathBuf, Shrunk) {
    let out = parent.join("small/model");
    let shrunk = models::shrink(folder.to_str().unwrap(), &out).unwrap();
    (out, shrunk)
}

/// Returns the types of the tensors in a file, by name.
fn dtypes(path: &Path) -> BTreeMap<String, Dtype> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, view.dtype())).collect()
}

#[test]
fn a_threshold_is_a_probability_for_the_models_own_classifier() {
    let config = "config.json";
    let with = |value: &str| {
        let field = format!("{{\"not_sure_below\": {value}, ");
        move |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replacen('{', &field, 1).into_bytes()
        }
    };
    for value in ["1", "-0.1", "0.99999999999", "\"0.42\"", "[0.42]", "true"] {
        let expected = format!(
            "field \"not_sure_below\" is {value}, expected a number of at least 0 and below 1"
        );
        check_refused(config, with(value), &expected);
    }
    let folder = copy_of("vit_a");
    let path = folder.path().join(config);
    let bytes = fs::read(&path).unwrap();
    for (value, expected) in [("0.42", Some(0.42)), ("0", Some(0.0)), ("null", None)] {
        fs::write(&path, with(value)(bytes.clone())).unwrap();
        assert_eq!(open(folder.path()).unwrap().not_sure_below, expected);
    }
    assert_eq!(open(&fixture("vit_a")).unwrap().not_sure_below, None);
    fs::write(&path, with("0.42")(bytes)).unwrap();
    write_head(folder.path(), &[("weight", &ramp(&[3, 32]))], None);
    assert_eq!(open(folder.path()).unwrap().not_sure_below, None);
}

#[test]
fn a_shrunk_model_answers_almost_as_before() {
    for name in [
        "vit_a",
        "vit_a_timm",
        "dinov2_reg",
        "deit_distilled",
        "clip",
    ] {
        let (whole, parent) = (open(&fixture(name)).unwrap(), tempfile::tempdir().unwrap());
        let (folder, told) = shrunk(&fixture(name), parent.path());
        let small = open(&folder).unwrap();
        assert_eq!(small.weights_sha256, told.weights_sha256);
        assert_ne!(small.weights_sha256, whole.weights_sha256);
        assert_eq!(small.labels(), whole.labels());
        assert_eq!(
            (told.left_out.len(), names_in(parent.path())),
            (0, vec!["small".to_owned()])
        );
        for file in ["config.json", "preprocessor_config.json"] {
            let [before, after] =
                [fixture(name), folder.clone()].map(|folder| fs::read(folder.join(file)).unwrap());
            assert_eq!(before, after, "{file}");
        }
        let images = images_of(name.trim_end_matches("_timm"));
        let (whole, small) = (
            logits(&whole, &images).concat(),
            logits(&small, &images).concat(),
        );
        let largest = whole.iter().fold(0f32, |max, logit| max.max(logit.abs()));
        for (small, whole) in small.into_iter().zip(whole) {
            assert!(
                (small - whole).abs() < 0.05 * largest,
                "{name}: {small} is not near {whole}"
            );
        }
    }
}

#[test]
fn shrinking_puts_weights_into_8_bits_and_the_rest_into_16() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, told) = shrunk(&fixture("dinov2_reg"), parent.path());
    let size = |folder: &Path| {
        fs::metadata(folder.join("model.safetensors"))
            .unwrap()
            .len()
    };
    assert_eq!(told.before as u64, size(&fixture("dinov2_reg")));
    assert_eq!(told.after as u64, size(&folder));
    let whole = dtypes(&folder.join("model.safetensors"));
    let of = |name: &str| whole[&format!("dinov2_with_registers.{name}")];
    for name in [
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.1.attention.attention.query.weight",
        "encoder.layer.1.attention.output.dense.weight",
        "encoder.layer.1.mlp.fc2.weight",
    ] {
        assert_eq!(
            (of(name), of(&format!("{name}.scale"))),
            (Dtype::I8, Dtype::F32),
            "{name}"
        );
    }
    for name in [
        "embeddings.cls_token",
        "embeddings.register_tokens",
        "embeddings.position_embeddings",
        "encoder.layer.1.norm1.weight",
        "encoder.layer.1.mlp.fc2.bias",
        "encoder.layer.1.layer_scale1.lambda1",
    ] {
        assert_eq!(of(name), Dtype::F16, "{name}");
    }
    assert_eq!(whole["classifier.weight"], Dtype::I8);
    // The mask token plays no part in classification.
    assert!(!whole.contains_key("dinov2_with_registers.embeddings.mask_token"));

    let folder = shrunk(&fixture("clip"), &parent.path().join("clip")).0;
    assert_eq!(
        dtypes(&folder.join("head.safetensors"))["weight"],
        Dtype::I8
    );
    let clip = dtypes(&folder.join("model.safetensors"));
    assert_eq!(
        clip["vision_model.embeddings.position_embedding.weight"],
        Dtype::F16
    );
    assert_eq!(clip["visual_projection.weight"], Dtype::I8);
}

#[test]
fn a_head_that_names_its_backbone_stands_on_the_shrunk_one() {
    let folder = copy_of("dinov2_reg");
    let whole = open(folder.path()).unwrap();
    let labels = ["a", "b"].map(str::to_owned);
    let weight = ramp(&[2, 2 * whole.vit.config().hidden_size]);
    models::save_head(
        folder.path(),
        &weight,
        &ramp(&[2]),
        &labels,
        &whole.weights_sha256,
    )
    .unwrap();
    let parent = tempfile::tempdir().unwrap();
    let small = open(&shrunk(folder.path(), parent.path()).0).unwrap();
    assert_eq!(small.labels(), labels);
}

#[test]
fn gates_are_left_out_until_the_weights_are_in_8_bits() {
    let (folder, parent) = (copy_of("vit_a"), tempfile::tempdir().unwrap());
    add_gates(folder.path(), &open(folder.path()).unwrap().weights_sha256);
    let (small, told) = shrunk(folder.path(), &parent.path().join("a"));
    assert_eq!(told.left_out, ["gates"]);
    assert_eq!(names_in(&small).len(), FILES.len());
    let refused = models::shrink(small.to_str().unwrap(), &parent.path().join("b")).unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("the model's weights are 8-bit already: ")
    );

    add_gates(&small, &told.weights_sha256);
    let (smaller, told) = shrunk(&small, &parent.path().join("c"));
    let of_both =
        [&small, &smaller].map(|folder| fs::read(folder.join("model.safetensors")).unwrap());
    assert_eq!(of_both[0], of_both[1]);
    assert!(told.left_out.is_empty() && told.after < told.before);
    let of_gates = dtypes(&smaller.join("gates.safetensors"));
    assert_eq!(of_gates["gates.0.hidden.direction"], Dtype::I8);
    assert!(open(&smaller).unwrap().gates.is_some());
    let [before, after] = [&small, &smaller].map(|folder| {
        let bytes = fs::read(folder.join("gates.safetensors")).unwrap();
        tensors_from_bytes(&bytes, &Device::Cpu).unwrap()
    });
    assert_eq!(before.len(), after.len());
    for (name, before) in BTreeMap::from_iter(before) {
        let largest = before.abs().unwrap().max_all().unwrap();
        let largest: f32 = largest.to_scalar().unwrap();
        let error = (&after[&name] - before).unwrap().abs().unwrap();
        let error: f32 = error.max_all().unwrap().to_scalar().unwrap();
        // Half a step of 1/127 of a row's largest weight; half precision is finer.
        assert!(error <= 0.50001 * largest / 127.0, "{name}: {error}");
    }
}

#[test]
fn what_cannot_be_shrunk_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let model = fixture("vit_a");
    let model = model.to_str().unwrap();
    let error = models::shrink(model, parent.path())
        .unwrap_err()
        .to_string();
    check_message(&error, "output folder exists already", parent.path());

    // 1e5 is finite in single precision, but not in half precision.
    let (folder, out) = (copy_of("vit_a"), parent.path().join("out"));
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = tensors_from_bytes(&bytes, &Device::Cpu).unwrap();
    let mut tensors = BTreeMap::from_iter(tensors);
    let bias = tensors.get_mut("vit.layernorm.bias").unwrap();
    *bias = (bias.ones_like().unwrap() * 1e5).unwrap();
    fs::write(&path, bytes_from_tensors(&tensors, Precision::F32).unwrap()).unwrap();
    let error = models::shrink(folder.path().to_str().unwrap(), &out)
        .unwrap_err()
        .to_string();
    let expected =
        "tensor \"vit.layernorm.bias\" contains values beyond ±65504, the limit of half precision";
    check_message(&error, expected, &path);
    assert!(names_in(parent.path()).is_empty());
}

/// Adds new gates to a folder, made for weights with this hash.
pub(crate) fn add_gates(folder: &Path, base_sha256: &str) {
    let model = open(&fixture("vit_a")).unwrap();
    let sizes = GateSizes::new(model.vit.config());
    let tensors = VotingGates::initial_tensors(sizes, 1.0, &mut Rng::new(1), &Device::Cpu).unwrap();
    let card = GateCard {
        base_sha256: base_sha256.to_owned(),
        objective: Objective::Published,
        states: sizes.states,
        dim: sizes.dim,
        hidden: sizes.hidden,
        stretch: 15.0,
        seed: 1,
        recipe: BTreeMap::new(),
        l0: 0.0,
        kl: 0.0,
        explained: None,
    };
    Gates::save(&tensors, &card, folder).unwrap();
}

#[test]
fn gates_open_with_their_weights_and_with_no_others() {
    let folder = copy_of("vit_a");
    let sha256 = open(folder.path()).unwrap().weights_sha256;
    add_gates(folder.path(), &sha256);
    let model = open(folder.path()).unwrap();
    assert!(model.gates.is_some());
    assert_eq!(model.gate_card.unwrap().seed, 1);

    let gates = folder.path().join("gates.safetensors");
    add_gates(folder.path(), &"0".repeat(64));
    let message = open(folder.path()).err().unwrap();
    check_message(
        &message,
        "gates.safetensors was trained for weights with sha256",
        &gates,
    );
    assert!(message.contains(&sha256), "{message}");

    fs::write(&gates, b"no gates").unwrap();
    assert!(open(folder.path()).is_err());
    fs::remove_file(&gates).unwrap();
    let message = open(folder.path()).err().unwrap();
    check_message(
        &message,
        "no gates.safetensors, but it has gates.json",
        folder.path(),
    );
}

/// Returns the folders of `models/` that contain weights.
fn shipped() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("models")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    folders
        .filter(|folder| folder.join("model.safetensors").exists())
        .collect()
}

#[test]
fn shipped_models_open_and_their_cards_are_complete_and_true() {
    for folder in shipped() {
        ModelCard::open(&folder).unwrap();
        let model = open(&folder).unwrap();
        let explains = model.gates.is_some() || model.interpreter.is_some();
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        let is_said = card.contains("It has no gates and no interpreter");
        assert!(
            explains != is_said,
            "{folder:?}: gates or an interpreter, or a card that says that there are none"
        );
        assert!(!model.labels().is_empty(), "{folder:?} has no classes");
        assert!(!model.labels()[0].starts_with("LABEL_"), "{folder:?}");
        let scores = folder.join("scores.json");
        assert!(scores.exists(), "{scores:?} is missing");
    }
}

/// A folder with only a head and gates belongs to one backbone, which its card names.
#[test]
fn a_shipped_head_refuses_another_backbone_with_both_hashes() {
    let folder = root().join("models/dinov2-small-cifar10");
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    let other = open(&root().join("models/cifar10")).unwrap().weights_sha256;
    let reference = Reference::over(folder.to_str().unwrap(), Some("cifar10"));
    let message = models::open(reference, &Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains(&other), "{message}");
    let wanted = message.split('"').nth(1).unwrap();
    assert_eq!(wanted.len(), 64, "{message}");
    assert!(card.contains(wanted), "{message}");
}

/// A folder with an adapter and a head goes with an embedded model, and matches its card.
#[test]
fn a_shipped_adapter_goes_over_everyday() {
    let folder = root().join("models/cifar10-224-holes");
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    let head = fs::read(folder.join("head.safetensors")).unwrap();
    let stated = card.split("| sha256 | `").nth(1).unwrap();
    assert!(stated.starts_with(&sha256_hex(&head)), "{stated:.64}");
    let reference = Reference::over(folder.to_str().unwrap(), Some("everyday"));
    let model = models::open(reference, &Device::Cpu).unwrap();
    assert_eq!(model.labels().len(), 10);
    let plain = models::open("everyday", &Device::Cpu).unwrap();
    assert_ne!(model.weights_sha256, plain.weights_sha256);
}

#[test]
fn embedded_models_are_the_shipped_ones_and_small() {
    let mut sizes = Vec::new();
    for name in models::embedded_names() {
        let folder = root().join("models").join(name);
        let embedded = models::open(name, &Device::Cpu).unwrap();
        let of_its_own = folder.join("config.json").exists();
        let backbone = (!of_its_own).then_some(models::DEFAULT);
        let reference = Reference::over(folder.to_str().unwrap(), backbone);
        let shipped = models::open(reference, &Device::Cpu).unwrap();
        assert_eq!(embedded.weights_sha256, shipped.weights_sha256);
        assert_eq!(embedded.preprocessor, shipped.preprocessor);
        let parts = |model: &Model| {
            (
                model.gates.is_some(),
                model.interpreter.is_some(),
                model.familiarity.is_some(),
            )
        };
        assert_eq!(parts(&embedded), parts(&shipped));
        assert_eq!(embedded.name, name);
        let files = ["model", "head", "gates", "interpreter", "familiarity"].map(|file| {
            let file = folder.join(file).with_extension("safetensors");
            // Not every model has all of these files.
            fs::metadata(file).map_or(0, |file| file.len())
        });
        sizes.push(files.iter().sum::<u64>());
    }
    let total = sizes.iter().sum::<u64>();
    assert!(total <= MAX_EMBEDDED_BYTES, "{total} bytes are embedded");
    let largest = sizes.iter().max().copied().unwrap_or_default();
    assert!(largest <= MAX_MODEL_BYTES, "one model takes {largest}");
}
