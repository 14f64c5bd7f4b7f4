//! ViT-ReciproCAM: the class score if the last block sees only one neighborhood of patches.
//!
//! Paper: Byun and Lee, "ViT-ReciproCAM", arXiv:2310.02588.
//! For each patch, the normed tokens of the last block are multiplied by a 3 × 3 Gaussian around it; the class token is
//! kept. The class score of that copy is the patch's attribution.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | mₙⱼ | `masks` | 1/4, 1/8, 1/16 for patch n, beside it and diagonally, 0 elsewhere, 1 for special tokens |
//! | k′ⱼ, v′ⱼ | keys and values of copy n | mₙⱼ (W nⱼ) + b |
//! | map\[n\] | | class score of copy n |
//!
//! Cost: about 1.07 forwards. Masks act on normed tokens, where projections are linear. The projections are therefore
//! computed once, q · k′ⱼ = mₙⱼ (q · kⱼ − q · b) + q · b, and only the tokens that the head reads are processed
//! further. **Deviations**: this shortcut, which is exact for heads that read special tokens; other heads are
//! refused. Requires no gradients and no trained weights.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked::each_image;
use super::methods::{Entry, Options, Pace};
use super::{Explainer, Needs, Pass, last_block};
use crate::error::{Error, Result};
use crate::vit::{Head, NoTap, Site, Vit};

/// Explains by neighborhoods of patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReciproCam {}

impl Options for ReciproCam {
    const ENTRY: Entry = Entry {
        name: "recipro-cam",
        summary: "class score when the last block sees only one neighborhood",
        paper: "ViT-ReciproCAM, arXiv:2310.02588",
        forwards: "1.07",
        backwards: "0",
        pace: Pace::A,
    };
}

impl Explainer for ReciproCam {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        let sites = last_block(vit).map(|last| {
            [
                Site::Hidden(last),
                Site::Query(last),
                Site::Key(last),
                Site::Value(last),
            ]
        });
        Needs::values(sites.into_iter().flatten())
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let vit = pass.vit();
        if vit.config().head() == Some(Head::ClassTokenAndPatchMean) {
            return Err(Error::Model(
                "recipro-cam requires a head that reads only the class token, but the model's head also reads the \
                 patches"
                    .into(),
            ));
        }
        let last = last_block(vit)?;
        let n_special = vit.config().n_special_tokens();
        let masks = masks(pass.grid()?, n_special, pass)?;
        let weights = pass.weights()?;
        each_image(pass, |image_idx| {
            let hidden = copies_of_special(pass, last, image_idx, &masks)?; // [patches, special, dim]
            let logits = vit
                .forward_from(vit.n_blocks(), &hidden, &mut NoTap)?
                .logits;
            let logits = logits.ok_or_else(|| Error::Model("the model has no head".into()))?;
            let weights = weights.narrow(0, image_idx, 1)?;
            Ok(logits.broadcast_mul(&weights)?.sum(D::Minus1)?.to_vec1()?)
        })
    }
}

/// Output of the last block for the special tokens of each copy.
///
/// # Shapes
/// - `masks`: `[patches, tokens]`
/// - result: `[patches, special, dim]`
fn copies_of_special(
    pass: &Pass<'_>,
    last: usize,
    image_idx: usize,
    masks: &Tensor,
) -> Result<Tensor> {
    let vit = pass.vit();
    let config = vit.config();
    let (n_special, heads) = (config.n_special_tokens(), config.num_attention_heads);
    let (n_copies, n_tokens) = masks.dims2()?;
    let dim = config.hidden_size;
    let head_dim = dim / heads;
    let split = |xs: &Tensor| -> candle_core::Result<Tensor> {
        let n = xs.dim(0)?;
        xs.reshape((n, heads, head_dim))?
            .transpose(0, 1)?
            .contiguous() // [heads, n, head_dim]
    };
    let at = |site: Site| Ok::<_, Error>(pass.value(site)?.get(image_idx)?); // [tokens, dim]
    let (key_bias, value_bias) = vit.key_value_biases(last)?;
    let q = split(&at(Site::Query(last))?.narrow(0, 0, n_special)?)?; // [heads, special, head_dim]
    let k = split(&at(Site::Key(last))?)?;
    let v = split(&at(Site::Value(last))?.broadcast_sub(&value_bias)?)?;
    let key_bias = split(&key_bias.unsqueeze(0)?)?; // [heads, 1, head_dim]
    let scale = 1.0 / (head_dim as f64).sqrt();
    let of_bias = (q.matmul(&key_bias.t()?.contiguous()?)? * scale)?; // [heads, special, 1]
    let of_keys = (q.matmul(&k.t()?.contiguous()?)? * scale)?.broadcast_sub(&of_bias)?; // [heads, special, tokens]
    let masks = masks.reshape((n_copies, 1, 1, n_tokens))?;
    let scores = masks
        .broadcast_mul(&of_keys.unsqueeze(0)?)?
        .broadcast_add(&of_bias.unsqueeze(0)?)?; // [patches, heads, special, tokens]
    let attn = candle_nn::ops::softmax(&scores, D::Minus1)?.broadcast_mul(&masks)?;
    let mixed = attn
        .transpose(0, 1)?
        .reshape((heads, n_copies * n_special, n_tokens))?
        .matmul(&v)? // [heads, patches · special, head_dim]
        .transpose(0, 1)?
        .reshape((n_copies, n_special, dim))?
        .broadcast_add(&value_bias)?;
    let special = at(Site::Hidden(last))?.narrow(0, 0, n_special)?;
    let special = special
        .unsqueeze(0)?
        .broadcast_as((n_copies, n_special, dim))?
        .contiguous()?;
    Ok(vit.finish_block(last, &special, &mixed)?)
}

/// The mask of each copy over all tokens, `[patches, tokens]`.
fn masks((grid_h, grid_w): (usize, usize), n_special: usize, pass: &Pass<'_>) -> Result<Tensor> {
    let mut masks = Vec::new();
    for patch in 0..grid_h * grid_w {
        masks.extend(std::iter::repeat_n(1f32, n_special));
        let (row, column) = (patch / grid_w, patch % grid_w);
        for other in 0..grid_h * grid_w {
            let away = (other / grid_w)
                .abs_diff(row)
                .max((other % grid_w).abs_diff(column));
            let steps = (other / grid_w).abs_diff(row) + (other % grid_w).abs_diff(column);
            masks.push(match (away, steps) {
                (0, _) => 0.25,
                (1, 1) => 0.125,
                (1, _) => 0.0625,
                _ => 0.0,
            });
        }
    }
    let dims = (grid_h * grid_w, n_special + grid_h * grid_w);
    Ok(Tensor::from_vec(masks, dims, pass.images().device())?)
}
