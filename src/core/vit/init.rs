//! Initial weights, for training from scratch and for missing parts of a trained model.
//!
//! Attention is initialized to resemble trained attention (mimetic initialization, Trockman and Kolter,
//! arXiv:2305.09828): `W_q W_kᵀ` near the identity, `W_v W_o` near its negative, sinusoidal positions. On small data
//! sets, this gives most of the benefit of longer training.
//!
//! **Deviation**: the paper factors its target products by singular value decomposition. Here, `W_k = W_q` is random
//! with orthogonal expectation, and `W_o = -W_vᵀ`; the products have the same expectation.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};

use super::VitConfig;
use super::names::expected_shapes;
use crate::rng::Rng;

/// Standard deviation of all other weights, as in BERT and ViT.
const WEIGHT_STD: f32 = 0.02;
/// Weight of the identity in `W_v W_o` (the paper's β).
const VALUE_GAIN: f32 = 0.4;
/// Weight of the identity in `W_q W_kᵀ` (the paper's α).
const QUERY_GAIN: f32 = 0.7;

/// Initial weights for `config` under canonical names, on the CPU.
///
/// # Errors
/// Fails if candle cannot allocate memory.
pub fn init(config: &VitConfig, rng: &mut Rng) -> Result<HashMap<String, Tensor>> {
    init_missing(config, HashMap::new(), rng)
}

/// Like [`init`], but keeps the tensors in `weights`.
///
/// # Errors
/// Fails if candle cannot allocate memory.
pub fn init_missing(
    config: &VitConfig,
    mut weights: HashMap<String, Tensor>,
    rng: &mut Rng,
) -> Result<HashMap<String, Tensor>> {
    for (name, shape) in expected_shapes(config) {
        if !weights.contains_key(&name) {
            let values = initial_values(config, &name, &shape, rng, &weights)?;
            weights.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
    }
    Ok(weights)
}

fn initial_values(
    config: &VitConfig,
    name: &str,
    shape: &[usize],
    rng: &mut Rng,
    done: &HashMap<String, Tensor>,
) -> Result<Vec<f32>> {
    let len = shape.iter().product();
    let dim = config.hidden_size as f32;
    let partner = |from: &str, to: &str| match done.get(&name.replace(from, to)) {
        Some(tensor) => Ok(tensor.clone()),
        None => candle_core::bail!("{name:?} is initialized from {to:?}, which comes later"),
    };
    if name.ends_with("attention.query.weight") {
        // The product q kᵀ sums over `dim` entries in total, but over head_dim in each head.
        let head_dim = dim / config.num_attention_heads as f32;
        return Ok(normal(len, (QUERY_GAIN / head_dim).sqrt(), rng));
    }
    if name.ends_with("attention.key.weight") {
        return partner(".key.", ".query.")?.flatten_all()?.to_vec1();
    }
    if name.ends_with("attention.value.weight") {
        return Ok(normal(len, (VALUE_GAIN / dim).sqrt(), rng));
    }
    if name.ends_with("attention.output.dense.weight") {
        let value = partner("attention.output.dense", "attention.attention.value")?;
        return value.t()?.neg()?.flatten_all()?.to_vec1();
    }
    if name == "embeddings.position_embeddings" {
        return Ok(sinusoidal_positions(config));
    }
    let is_norm = name.contains("norm");
    Ok(match () {
        () if name.ends_with("lambda1") || (is_norm && name.ends_with(".weight")) => vec![1.0; len],
        () if name.ends_with(".bias") => vec![0.0; len],
        // A patch has few pixels; unit-variance pixels should give unit-variance embeddings.
        () if name.ends_with("projection.weight") => {
            let pixels = shape[1..].iter().product::<usize>() as f32;
            normal(len, pixels.powf(-0.5), rng)
        }
        () => normal(len, WEIGHT_STD, rng),
    })
}

fn normal(len: usize, std: f32, rng: &mut Rng) -> Vec<f32> {
    (0..len).map(|_| rng.normal() * std).collect()
}

/// Two-dimensional sine and cosine positions (Chen et al., arXiv:2104.02057, section 4), zero for special tokens.
fn sinusoidal_positions(config: &VitConfig) -> Vec<f32> {
    const TEMPERATURE: f32 = 10_000.0;
    let (grid_h, grid_w) = config.grid();
    let dim = config.hidden_size;
    let quarter = dim / 4;
    let n_front = config.n_positions() - config.n_patches();
    let mut positions = vec![0f32; n_front * dim];
    for patch_idx in 0..grid_h * grid_w {
        let (row, column) = ((patch_idx / grid_w) as f32, (patch_idx % grid_w) as f32);
        positions.extend((0..dim).map(|i| {
            let (part, step) = (i / quarter.max(1), i % quarter.max(1));
            let omega = TEMPERATURE.powf(-(step as f32) / quarter.max(1) as f32);
            match part {
                0 => (column * omega).sin(),
                1 => (column * omega).cos(),
                2 => (row * omega).sin(),
                3 => (row * omega).cos(),
                _ => 0.0,
            }
        }));
    }
    positions
}
