//! The Vision Transformer against PyTorch: the fixtures of `tests/fixtures/vit_parity.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use vitscope::models::{self, Reference};
use vitscope::vit::{Arithmetic, Probe, Record, Site, Vit};
use vitscope_core::weights::tensors_from_bytes;
use vitscope_kernels::Products;

use crate::common::{check_close, fixture, largest_difference};

/// Sums of a few hundred f32 products in a different order; the values are of order 1.
const TOLERANCE: f32 = 1e-4;
/// Gradients multiply such errors through the blocks; the values are of order 1 at most.
const GRADIENT_TOLERANCE: f32 = 1e-4;
/// f16 weights of a model 12 blocks deep whose hidden states reach tens.
const REAL_TOLERANCE: f32 = 2e-3;

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    tensors_from_bytes(&fs::read(path).unwrap(), &Device::Cpu).unwrap()
}

fn load(folder: &Path) -> Vit {
    models::open(folder.to_str().unwrap(), &Device::Cpu)
        .unwrap()
        .vit
}

/// Returns the sites in the reference, with their names there.
fn sites(n_blocks: usize) -> Vec<(String, Site)> {
    let mut sites = vec![
        ("patch_embeddings".to_owned(), Site::PatchEmbeddings),
        ("tokens".to_owned(), Site::Tokens),
    ];
    for block_idx in 0..=n_blocks {
        sites.push((format!("hidden.{block_idx}"), Site::Hidden(block_idx)));
    }
    for block_idx in 0..n_blocks {
        sites.push((format!("attention.{block_idx}"), Site::Attention(block_idx)));
    }
    sites
}

fn check_parity(name: &str) {
    let vit = load(&fixture(name));
    let reference = tensors(&fixture(name.trim_end_matches("_timm")).join("reference.safetensors"));
    let images = &reference["images"];
    let sites = sites(vit.n_blocks());

    let plain = vit.forward(images).unwrap().logits.unwrap();
    check_close("plain logits", &plain, &reference["logits"], TOLERANCE);

    let mut record = Record::new(sites.iter().map(|(_, site)| *site));
    let output = vit.forward_with(images, &mut record).unwrap();
    let logits = output.logits.unwrap();
    check_close("logits", &logits, &reference["logits"], TOLERANCE);
    for (what, site) in &sites {
        check_close(
            what,
            record.get(*site).unwrap(),
            &reference[what],
            TOLERANCE,
        );
    }
}

fn check_gradients(name: &str) {
    let vit = load(&fixture(name));
    let reference = tensors(&fixture(name).join("reference.safetensors"));
    let sites = sites(vit.n_blocks());
    let mut probe = Probe::new(sites.iter().map(|(_, site)| *site));
    let output = vit.forward_with(&reference["images"], &mut probe).unwrap();
    let logit = output.logits.unwrap().get(0).unwrap().get(2).unwrap();
    let grads = logit.backward().unwrap();
    for (what, site) in &sites {
        // The CLIP of transformers passes only the class token through the final norm.
        let Some(expected) = reference.get(&format!("gradient.{what}")) else {
            assert_eq!((name, *site), ("clip", Site::Tokens));
            continue;
        };
        let found = probe.gradient(*site, &grads).unwrap();
        check_close(
            &format!("gradient of {what}"),
            &found,
            expected,
            GRADIENT_TOLERANCE,
        );
    }
}

fn check_other_size(name: &str) {
    let vit = load(&fixture(name));
    let reference = tensors(&fixture(name).join("reference.safetensors"));
    let logits = vit
        .forward(&reference["images_other_size"])
        .unwrap()
        .logits
        .unwrap();
    check_close(
        "logits",
        &logits,
        &reference["logits_other_size"],
        TOLERANCE,
    );
}

#[test]
fn vit_computes_what_transformers_computes() {
    check_parity("vit_a");
    check_parity("vit_b");
}

#[test]
fn timm_names_give_the_same_model() {
    check_parity("vit_a_timm");
}

#[test]
fn dinov2_with_registers_in_f16_computes_what_transformers_computes() {
    check_parity("dinov2_reg");
}

#[test]
fn distilled_deit_in_bf16_computes_what_transformers_computes() {
    check_parity("deit_distilled");
}

#[test]
fn clip_with_class_vectors_computes_what_transformers_computes() {
    check_parity("clip");
}

#[test]
fn gradients_at_the_taps_are_those_of_pytorch() {
    check_gradients("vit_a");
    check_gradients("dinov2_reg");
    check_gradients("clip");
}

#[test]
fn positions_for_another_input_size_are_those_of_transformers() {
    check_other_size("vit_a");
    check_other_size("dinov2_reg");
    check_other_size("clip");
}

/// Runs if the environment variable `VITSCOPE_DATA` names the folder with the real model, which is too large to be
/// committed.
#[test]
fn the_real_dinov2_of_vitscope_data_computes_what_transformers_computes() {
    let Some(data) = std::env::var_os("VITSCOPE_DATA") else {
        eprintln!("VITSCOPE_DATA is not set: the real DINOv2 is not compared");
        return;
    };
    let folder = Path::new(&data).join("models/dinov2-small-reg");
    let vit = load(&folder);
    let reference = tensors(&folder.join("reference.safetensors"));
    let images = &reference["pixel_values"];
    let last = Site::Attention(vit.n_blocks() - 1);
    let mut record = Record::new([Site::Hidden(6), last]);
    let tokens = vit.forward(images).unwrap().tokens;
    let tapped = vit.forward_with(images, &mut record).unwrap();
    assert!(tapped.logits.is_none());

    let hidden = record.get(Site::Hidden(6)).unwrap();
    let row = record
        .get(last)
        .unwrap()
        .narrow(2, 0, 1)
        .unwrap()
        .squeeze(2)
        .unwrap();
    let pairs = [
        ("last_hidden_state", &tokens),
        ("last_hidden_state", &tapped.tokens),
        ("hidden_state_6", hidden),
        ("attention_11_cls_row", &row),
    ];
    for (what, found) in pairs {
        eprintln!(
            "{what} differs by {}",
            largest_difference(found, &reference[what])
        );
        check_close(what, found, &reference[what], REAL_TOLERANCE);
    }
}

/// Opens a model that computes with these numbers.
fn load_with(arithmetic: Arithmetic, folder: &Path) -> Vit {
    let reference = Reference {
        arithmetic,
        ..Reference::from(folder.to_str().unwrap())
    };
    models::open(reference, &Device::Cpu).unwrap().vit
}

fn root_mean_square(xs: &Tensor) -> f32 {
    let mean = xs.sqr().unwrap().mean_all().unwrap();
    mean.to_scalar::<f32>().unwrap().sqrt()
}

#[test]
fn eight_bits_hardly_change_logits_and_gradients() {
    check_rounded_models(Arithmetic::Int8, 1e-6..0.05);
}

#[test]
fn bfloat16_hardly_changes_logits_and_gradients() {
    let least = match Products::fastest() {
        Products::Bf16 => 1e-5,
        // A processor without bfloat16 computes with f32.
        Products::F32 => 0.0,
    };
    check_rounded_models(Arithmetic::Bf16, least..0.02);
}

/// Checks that the errors of models that compute with these numbers, relative to PyTorch's f32, are in `errors`.
fn check_rounded_models(arithmetic: Arithmetic, errors: Range<f32>) {
    for name in ["vit_a", "vit_b", "dinov2_reg", "deit_distilled", "clip"] {
        let vit = load_with(arithmetic, &fixture(name));
        let reference = tensors(&fixture(name).join("reference.safetensors"));
        let images = &reference["images"];
        let check = |what: &str, found: &Tensor, exact: &Tensor| {
            let error = root_mean_square(&(found - exact).unwrap()) / root_mean_square(exact);
            assert!(errors.contains(&error), "{name}: {what} differs by {error}");
        };
        let plain = vit.forward(images).unwrap().logits.unwrap();
        check("plain logits", &plain, &reference["logits"]);
        // With taps, products are separate operations.
        let mut probe = Probe::new(Site::all(vit.n_blocks()));
        let logits = vit
            .forward_with(images, &mut probe)
            .unwrap()
            .logits
            .unwrap();
        check("logits", &logits, &reference["logits"]);
        let grads = logits.get(0).unwrap().get(2).unwrap().backward().unwrap();
        for block_idx in 0..vit.n_blocks() {
            let found = probe.gradient(Site::Attention(block_idx), &grads).unwrap();
            let what = format!("gradient.attention.{block_idx}");
            if let Some(exact) = reference.get(&what) {
                check(&what, &found, exact);
            }
        }
    }
}
