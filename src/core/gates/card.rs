//! Gates on disk: `gates.safetensors` and `gates.json`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{DEFAULT_STRETCH, GateSizes, Gates, Objective, OrderGates, RankingGates, VotingGates};
use crate::companion::{self, Card};
use crate::error::{Error, Result};
use crate::vit::Vit;

/// Metadata of gates, stored in `gates.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateCard {
    /// Hash of the `model.safetensors` that the gates were trained for, in hexadecimal.
    pub base_sha256: String,
    /// Training objective.
    #[serde(default)]
    pub objective: Objective,
    /// Number of states that the gates read: the model's blocks + 2.
    pub states: usize,
    /// Features of a token.
    pub dim: usize,
    /// Hidden units of a gate.
    pub hidden: usize,
    /// Half-width m of the range of logits of voting gates.
    #[serde(default = "default_stretch")]
    pub stretch: f64,
    /// Seed of the training.
    pub seed: u64,
    /// All training options, by their names on the command line.
    pub recipe: BTreeMap<String, serde_json::Value>,
    /// Share of kept patches at the end of training; for ranking and order gates, with the cut at the margin.
    pub l0: f64,
    /// KL(original ‖ masked) in nats at the end of training.
    pub kl: f64,
    /// For ranking gates, share of the variance of the masked output that the sum of the kept patches' scores explains,
    /// on test pictures and random subsets. For order gates, share of the variance of the teacher's order that theirs
    /// explains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explained: Option<f64>,
}

fn default_stretch() -> f64 {
    DEFAULT_STRETCH
}

impl Card for GateCard {
    const NAME: &'static str = "gates";

    fn base_sha256(&self) -> &str {
        &self.base_sha256
    }
}

impl Gates {
    /// Reads gates from the bytes of `gates.safetensors` and `gates.json`, for a model whose weights hash to
    /// `base_sha256`.
    ///
    /// # Errors
    /// [`Error::Model`] if either is damaged, or if the gates belong to another model.
    pub fn from_bytes(
        weights: &[u8],
        card: &[u8],
        vit: &Vit,
        base_sha256: &str,
        device: &Device,
    ) -> Result<(Self, GateCard)> {
        let (tensors, card) = read(weights, card, vit, base_sha256, device)?;
        let gates = match card.objective {
            Objective::Published => Self::Voting(voting(&card, vit, &tensors)?),
            Objective::Shapley => Self::Ranking(RankingGates::load(vit, card.hidden, &tensors)?),
            Objective::Order => Self::Order(OrderGates::load(vit, card.hidden, &tensors)?),
        };
        Ok((gates, card))
    }

    /// Like [`from_bytes`](Self::from_bytes), for a model with another classifier than the gates were trained for, over
    /// weights that hash to `backbone_sha256`; `None` if that classifier reads other features, see
    /// [`under`](Self::under).
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub fn from_bytes_under(
        weights: &[u8],
        card: &[u8],
        vit: &Vit,
        backbone_sha256: &str,
        device: &Device,
    ) -> Result<Option<(Self, GateCard)>> {
        let (tensors, card) = read(weights, card, vit, backbone_sha256, device)?;
        let gates = match card.objective {
            Objective::Published => Some(Self::Voting(voting(&card, vit, &tensors)?)),
            Objective::Shapley => {
                RankingGates::load_under(vit, card.hidden, &tensors)?.map(Self::Ranking)
            }
            Objective::Order => Some(Self::Order(OrderGates::load_under(
                vit,
                card.hidden,
                &tensors,
            )?)),
        };
        Ok(gates.map(|gates| (gates, card)))
    }

    /// Reads `gates.safetensors` and `gates.json` from a folder; see [`from_bytes`](Self::from_bytes).
    ///
    /// # Errors
    /// As `from_bytes`, with the name of the folder; [`Error::Io`] if a file cannot be read.
    pub fn open(
        folder: &Path,
        vit: &Vit,
        base_sha256: &str,
        device: &Device,
    ) -> Result<(Self, GateCard)> {
        let (weights, card) = companion::read::<GateCard>(folder)?;
        Self::from_bytes(&weights, &card, vit, base_sha256, device).map_err(|err| match err {
            Error::Model(message) => Error::Model(format!("{message}: {folder:?}")),
            err => err,
        })
    }

    /// Paths of both files in a folder, weights first.
    pub fn files(folder: &Path) -> [PathBuf; 2] {
        companion::files::<GateCard>(folder)
    }

    /// Writes `gates.safetensors` and `gates.json` into a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written.
    pub fn save(tensors: &BTreeMap<String, Tensor>, card: &GateCard, folder: &Path) -> Result<()> {
        companion::save(tensors, card, folder)
    }
}

/// Reads tensors and card, which must fit the states of the model.
fn read(
    weights: &[u8],
    card: &[u8],
    vit: &Vit,
    base_sha256: &str,
    device: &Device,
) -> Result<(HashMap<String, Tensor>, GateCard)> {
    let (tensors, card): (_, GateCard) = companion::from_bytes(weights, card, base_sha256, device)?;
    let needed = GateSizes::new(vit.config());
    if (card.states, card.dim) != (needed.states, needed.dim) {
        return Err(Error::Model(format!(
            "gates are for {} states of {} features, but the model has {} states of {} features",
            card.states, card.dim, needed.states, needed.dim
        )));
    }
    Ok((tensors, card))
}

fn voting(card: &GateCard, vit: &Vit, tensors: &HashMap<String, Tensor>) -> Result<VotingGates> {
    let sizes = GateSizes {
        hidden: card.hidden,
        ..GateSizes::new(vit.config())
    };
    VotingGates::load(sizes, card.stretch, tensors)
}
