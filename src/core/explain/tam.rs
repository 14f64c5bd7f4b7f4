//! Transition attention maps: attention as a Markov chain from the last block backward, times integrated gradients.
//!
//! Paper: Yuan et al., "Explaining Information Flow Inside Vision Transformers Using Markov Chain", XAI4Debugging
//! workshop, NeurIPS 2021.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | s | `state` | class row of meanₕ(A_L); then s ← s · meanₕ(Aₗ) + s, l = L−1 … 1 |
//! | W | `integrated` | class row of meanₕ(((1/20) Σₖ ∇A_L(x · k/19))⁺), k = 0 … 19 |
//! | map | | s ∘ W |
//!
//! Cost: 21 forwards, 20 backwards through part of the last block. **Deviations**: none. Requires no trained weights.
//!
//! [Beyond Intuition](super::beyond_intuition) also uses the integrated gradient.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::pass::Forward;
use super::{Explainer, Needs, Pass, attention_sites, class_row, last_block, no_blocks};
use crate::error::Result;
use crate::vit::{Site, Vit};

/// Points on the line from a gray image to the image, as in the authors' code.
const STEPS: usize = 20;

/// Explains by attention as a Markov chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransitionAttention {}

impl Options for TransitionAttention {
    const ENTRY: Entry = Entry {
        name: "tam",
        summary: "attention as a Markov chain, times integrated gradients",
        paper: "Transition Attention Maps, NeurIPS workshop 2021",
        forwards: "21",
        backwards: "20",
        pace: Pace::C,
    };
}

impl Explainer for TransitionAttention {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values(attention_sites(vit))
    }

    fn rehearse(&self, _pass: &Pass<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let mut state: Option<Tensor> = None; // [batch, 1, tokens]
        for site in attention_sites(pass.vit()).rev() {
            let attn = pass.value(site)?.mean(1)?; // [batch, tokens, tokens]
            state = Some(match state {
                Some(state) => (state.matmul(&attn)? + state)?,
                None => attn.narrow(1, 0, 1)?.contiguous()?,
            });
        }
        let state = state.ok_or_else(no_blocks)?.squeeze(1)?;
        let map = (state * integrated_gradient(pass)?)?;
        pass.patches_of(&map, D::Minus1)
    }
}

/// Class row of the last block's attention gradient, averaged along the path from gray to the image.
///
/// # Shapes
/// - result: `[batch, tokens]`, not negative
pub(super) fn integrated_gradient(pass: &Pass<'_>) -> Result<Tensor> {
    let site = Site::Attention(last_block(pass.vit())?);
    let mut sum: Option<Tensor> = None; // [batch, heads, tokens]
    for step in 0..STEPS {
        let share = step as f64 / (STEPS - 1) as f64;
        let images = (pass.images() * share)?;
        let forward = Forward::run(pass.vit(), &images, Needs::gradients([site]))?;
        let faded = forward.toward_weights(Some(pass.weights()?.clone()))?;
        let gradient = class_row(faded.gradient(site)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
    }
    let mean = (sum.ok_or_else(no_blocks)? / STEPS as f64)?;
    Ok(mean.relu()?.mean(1)?)
}
