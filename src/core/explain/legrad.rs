//! LeGrad: sensitivity of the class score, read directly after each block, to the attention of that block.
//!
//! Paper: Bousselham et al., "LeGrad", ICCV 2025, arXiv:2404.03214.
//! The final norm and the head are applied to the output of every block; the gradient of that score is propagated
//! through that block only.
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | sₗ | class score after block l | head(norm(output of block l)) |
//! | Gₗ | its gradient | (∂sₗ/∂Aₗ)⁺ |
//! | map | | Σₗ mean over heads and queries of Gₗ\[·, ·, patches\] |
//!
//! Cost: 2 forwards, 1 backward. The graph is cut between blocks, so this pass cannot be shared. **Deviations**: the
//! class token is read, like the model's head does, whereas the paper's models pool tokens; `blocks` is all by default,
//! as in the paper (the last 2 in the released code). Requires no trained weights.

use candle_core::{D, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::{Explainer, Pass, no_blocks};
use crate::error::{Error, Result};
use crate::vit::{NoTap, Probe, Site, Tap};
use vitscope_kernels as kernels;

/// Explains by the blocks' own gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeGrad {
    /// Number of last blocks that count; 0 counts all.
    pub blocks: usize,
}

/// Probes attention, and detaches each block's input from the graph.
struct Cut {
    probe: Probe,
    /// Inputs of the blocks before detaching, which are the outputs of the preceding blocks.
    hidden: Vec<(usize, Tensor)>,
}

impl Tap for Cut {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Hidden(_)) || self.probe.wants(site)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> candle_core::Result<Tensor> {
        match site {
            Site::Hidden(block_idx) => {
                let cut = xs.detach();
                self.hidden.push((block_idx, xs));
                Ok(cut)
            }
            _ => self.probe.at(site, xs),
        }
    }
}

impl Options for LeGrad {
    const ENTRY: Entry = Entry {
        name: "legrad",
        summary: "gradient of each block's class score with respect to its attention",
        paper: "LeGrad, arXiv:2404.03214",
        forwards: "2",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for LeGrad {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let vit = pass.vit();
        let n_blocks = vit.n_blocks();
        let first = match self.blocks {
            0 => 0,
            blocks => n_blocks.saturating_sub(blocks),
        };
        let sites = (first..n_blocks).map(Site::Attention);
        let mut cut = Cut {
            probe: Probe::new(sites.clone()),
            hidden: Vec::new(),
        };
        vit.forward_with(pass.images(), &mut cut)?;
        let mut score: Option<Tensor> = None;
        for (block_idx, hidden) in &cut.hidden {
            if *block_idx <= first {
                continue;
            }
            let logits = vit.forward_from(n_blocks, hidden, &mut NoTap)?.logits;
            let logits = logits.ok_or_else(|| Error::Model("the model has no head".into()))?;
            let of_block = (logits * pass.weights()?)?.sum_all()?;
            score = Some(match score {
                Some(score) => (score + of_block)?,
                None => of_block,
            });
        }
        let score = score.ok_or_else(no_blocks)?;
        let grads = kernels::in_pool(|| score.backward())?;
        let mut map: Option<Tensor> = None; // [batch, tokens]
        for site in sites {
            let of_block = cut.probe.gradient(site, &grads)?.relu()?.mean((1, 2))?;
            map = Some(match map {
                Some(map) => (map + of_block)?,
                None => of_block,
            });
        }
        pass.patches_of(&map.ok_or_else(no_blocks)?, D::Minus1)
    }
}
