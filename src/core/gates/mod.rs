//! DiffMask's gates: small networks that decide, from hidden states, which patches a Vision Transformer does not need.
//!
//! There are three kinds, one per training [`Objective`]. [`VotingGates`], as published, vote for a minimal set of
//! patches that preserves the whole output. [`RankingGates`] score each patch by its Shapley value for a class, which
//! ranks the patches. [`OrderGates`] order patches by what the class token takes from each. All of them yield a minimal
//! set, see [`masks_within_margin`].
//!
//! # Voting gates
//!
//! Vision DiffMask (Nalmpantis et al., XAI4CV 2023), based on DiffMask (arXiv:2004.14992). A model of `blocks` blocks
//! has `blocks + 2` states: the patch embeddings before adding positions, the input of every block, and the output of
//! the last one. The gate of state i reads states 0 and i of a patch and returns a logit, which parametrizes a
//! hard-concrete variable in [0, 1). The product of the votes of gates 0 to k is the mask of depth k. Gates are trained
//! for one way of removing masked patches, their [`removal`](Gates::removal).
//!
//! | symbol | here | equation |
//! |---|---|---|
//! | u | logit | m·tanh(W₂ tanh(W₁\[h₀; hᵢ\] + b₁) + b₂) + a |
//! | m, a | [`stretch`](VotingGates::stretch), `offset` | m is constant, a is learned, one per gate |
//! | z | sample | clamp(s·(r−l)+l, 0, 1), s = σ((u + ln n − ln(1−n))/τ), n uniform |
//! | P(z≠0) | keep probability | σ(u − τ·ln(−l/r)) |
//! | q⁽ᵏ⁾ | mask of depth k | Πᵢ₌₀..ₖ P(zᵢ≠0) |
//! | b | [baseline](Removal::Baseline) | ê = z·e + (1−z)·b |
//! | a | attention, with [drop](Removal::Drop) instead of b | a'ᵢⱼ = zⱼ aᵢⱼ / Σₖ zₖ aᵢₖ |
//!
//! Deviations from the authors' code: class and register tokens have no gate, because their votes were discarded. The
//! two halves of a gate's input weights are applied separately, so the concatenation is never built. Both linear layers
//! are weight-normalized row by row, W = g·v/‖v‖.

mod answers;
mod card;
mod class_stream;
mod frozen;
mod hard_concrete;
mod order;
mod passes;
mod ranking;
mod tensors;
mod voting;

use candle_core::Result as TensorResult;
use serde::{Deserialize, Serialize};

use crate::vit::Vit;

pub use answers::{MaskedAnswer, kl_from_logits, masked_answers, masks_within_margin};
pub use answers::{
    answer_without_patches, best_kept, binary_masks, logits, ranking, tensor_from_masks,
};
pub use card::GateCard;
pub use class_stream::ClassStream;
pub use class_stream::stream_sites;
pub use frozen::{FrozenGates, FrozenVotes, VotedPass};
pub use hard_concrete::{
    STRETCH_HI, STRETCH_LO, TEMPERATURE, log_keep_from_logits, sample_from_logits,
};
pub use order::SCALE;
pub use order::{OrderGates, OrderSizes, features};
pub use passes::state_sites;
pub use passes::{CleanPass, Removal, clean_pass, masked_pass};
pub use ranking::weights_of_predicted;
pub use ranking::{EMPTY_ANSWER, RankingGates, RankingSizes};
pub use voting::weight_norm;
pub use voting::{BASELINE, DEFAULT_STRETCH, GateSizes, VotingGates};

/// Largest divergence in nats at which a masked output counts as preserved, as in the paper. Gates are trained for it.
pub const MARGIN: f64 = 0.1;
/// Smallest keep probability at which a binary mask keeps a patch.
pub const KEEP: f32 = 0.5;

/// Training objective of gates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// A minimal set of patches that preserves the whole output, as published: [`VotingGates`].
    #[default]
    Published,
    /// The Shapley value of each patch for each class: [`RankingGates`].
    Shapley,
    /// The order in which patches matter to a class: [`OrderGates`].
    Order,
}

/// Trained gates of a model.
#[derive(Clone)]
pub enum Gates {
    /// Trained for [`Objective::Published`].
    Voting(VotingGates),
    /// Trained for [`Objective::Shapley`].
    Ranking(RankingGates),
    /// Trained for [`Objective::Order`].
    Order(OrderGates),
}

impl Gates {
    /// The training objective.
    pub fn objective(&self) -> Objective {
        match self {
            Self::Voting(_) => Objective::Published,
            Self::Ranking(_) => Objective::Shapley,
            Self::Order(_) => Objective::Order,
        }
    }

    /// How masked patches are removed.
    pub fn removal(&self) -> &Removal {
        match self {
            Self::Voting(gates) => gates.removal(),
            // Their scores come from several ways of removal; dropping leaves nothing in place of a patch.
            Self::Ranking(_) | Self::Order(_) => &Removal::Drop,
        }
    }

    /// Returns the same gates for another classifier on the same features. Voting gates do not depend on classes;
    /// ranking and order gates take the classes from the classifier of `vit`. `None` if that is not possible.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn under(&self, vit: &Vit) -> TensorResult<Option<Self>> {
        Ok(match self {
            Self::Voting(_) => Some(self.clone()),
            Self::Ranking(gates) => gates.under(vit)?.map(Self::Ranking),
            Self::Order(gates) => Some(Self::Order(gates.under(vit)?)),
        })
    }

    /// Prepares the gates for repeated use.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn freeze(&self) -> TensorResult<FrozenGates> {
        Ok(match self {
            Self::Voting(gates) => FrozenGates::Voting(gates.freeze()?),
            Self::Ranking(gates) => FrozenGates::Ranking(gates.freeze()),
            Self::Order(gates) => FrozenGates::Order(gates.freeze()),
        })
    }
}
