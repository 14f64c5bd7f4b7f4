//! Trained gates, prepared for repeated use.

use candle_core::{Result, Tensor};

use super::hard_concrete::log_keep_from_logits;
use super::{OrderGates, RankingGates, VotingGates, clean_pass, weight_norm};
use crate::vit::{Output, Site, Tap, Vit};
use vitscope_kernels::{Linear, Products, Vote};

/// Trained gates, prepared for repeated use.
pub enum FrozenGates {
    /// Each gate votes for each patch.
    Voting(FrozenVotes),
    /// The gates jointly score each patch for each class.
    Ranking(RankingGates),
    /// The gates jointly order the patches for a class.
    Order(OrderGates),
}

impl FrozenGates {
    /// Runs the model on unmasked images, and computes their masks.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`
    ///
    /// # Errors
    /// Fails if `images` or the gates do not fit the model.
    pub fn pass(&self, vit: &Vit, images: &Tensor) -> crate::Result<VotedPass> {
        match self {
            Self::Voting(gates) => Ok(gates.pass(vit, images)?),
            Self::Ranking(gates) => {
                let clean = clean_pass(vit, images)?;
                let logits = super::logits(clean.output.logits.clone())?;
                let scores = gates.scores_of_predicted(&clean.states, &logits)?;
                Ok(VotedPass {
                    mask: RankingGates::mask_from_scores(&scores)?,
                    output: clean.output,
                })
            }
            Self::Order(gates) => {
                let (output, scores) = gates.pass(vit, images)?;
                Ok(VotedPass {
                    mask: RankingGates::mask_from_scores(&scores)?,
                    output,
                })
            }
        }
    }
}

/// Voting gates with weight norms applied. Each gate runs while its state is still in the cache.
pub struct FrozenVotes {
    votes: Vec<Vote>,
    stretch: f64,
    /// `[gates, 1, 1]`
    offsets: Tensor,
}

/// A model's output and the gates' mask from the same pass; detached from the graph.
#[derive(Clone, Debug)]
pub struct VotedPass {
    /// `[batch, patches]`, in [0, 1].
    pub mask: Tensor,
    /// The model's output for the unmasked images.
    pub output: Output,
}

impl VotingGates {
    /// Prepares the gates for repeated use: weight norms are applied once.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn freeze(&self) -> Result<FrozenVotes> {
        let (mut votes, mut offsets) = (Vec::new(), Vec::new());
        let dim = self.sizes.dim;
        for gate in &self.gates {
            let weight = weight_norm(&gate.hidden_direction, &gate.hidden_length)?.detach();
            let half = |which: usize| weight.narrow(1, which * dim, dim)?.contiguous();
            let bias = gate.hidden_bias.detach();
            let out = weight_norm(&gate.vote_direction, &gate.vote_length)?.detach();
            votes.push(Vote {
                own: Linear::new(half(1)?, bias.zeros_like()?),
                first: Linear::new(half(0)?, bias),
                out: Linear::new(out, gate.vote_bias.detach()),
            });
            offsets.push(gate.offset.detach());
        }
        Ok(FrozenVotes {
            offsets: Tensor::cat(&offsets, 0)?.reshape((votes.len(), 1, 1))?,
            votes,
            stretch: self.stretch,
        })
    }
}

impl FrozenVotes {
    /// Runs the model on unmasked images and evaluates each gate when its state is available.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`
    ///
    /// # Errors
    /// Fails if `images` or the gates do not fit the model.
    pub fn pass(&self, vit: &Vit, images: &Tensor) -> Result<VotedPass> {
        let mut votes = Votes {
            gates: self,
            first: None,
            votes: Vec::with_capacity(self.votes.len()),
            products: vit.products(),
        };
        self.check(vit.n_blocks() + 2)?;
        let Output { tokens, logits } = vit.forward_with(images, &mut votes)?;
        Ok(VotedPass {
            mask: self.log_keep_from_votes(&votes.votes)?.sum(0)?.exp()?,
            output: Output {
                tokens: tokens.detach(),
                logits: logits.map(|logits| logits.detach()),
            },
        })
    }

    /// The joint mask of all gates; equals [`VotingGates::mask`] up to rounding.
    ///
    /// # Shapes
    /// - `states`: each `[batch, patches, dim]`
    /// - result: `[batch, patches]`, in [0, 1]
    ///
    /// # Errors
    /// Fails if the states do not fit.
    pub fn mask(&self, states: &[Tensor], products: Products) -> Result<Tensor> {
        self.log_keep_from_votes(&self.votes(states, products)?)?
            .sum(0)?
            .exp()
    }

    /// The vote of each gate for each patch: the factors of the [mask](Self::mask).
    ///
    /// # Shapes
    /// - `states`: each `[batch, patches, dim]`
    /// - result: `[gates, batch, patches]`, keep probabilities in [0, 1]
    ///
    /// # Errors
    /// Fails if the states do not fit.
    pub fn keep(&self, states: &[Tensor], products: Products) -> Result<Tensor> {
        self.log_keep_from_votes(&self.votes(states, products)?)?
            .exp()
    }

    fn votes(&self, states: &[Tensor], products: Products) -> Result<Vec<Tensor>> {
        self.check(states.len())?;
        states
            .iter()
            .zip(&self.votes)
            .map(|(state, vote)| vote.forward(&states[0], state, products))
            .collect()
    }

    fn check(&self, n_states: usize) -> Result<()> {
        if n_states != self.votes.len() {
            candle_core::bail!(
                "got {} gates for {n_states} states, expected one per state",
                self.votes.len()
            );
        }
        Ok(())
    }

    /// # Shapes
    /// - `votes`: one per gate, each `[batch, patches]`
    /// - result: `[gates, batch, patches]`
    fn log_keep_from_votes(&self, votes: &[Tensor]) -> Result<Tensor> {
        let votes = Tensor::stack(votes, 0)?; // [gates, batch, patches]
        let logits = (votes * self.stretch)?.broadcast_add(&self.offsets)?;
        log_keep_from_logits(&logits)
    }
}

/// Collects the votes of a pass.
struct Votes<'a> {
    gates: &'a FrozenVotes,
    /// State 0: the patch embeddings.
    first: Option<Tensor>,
    votes: Vec<Tensor>,
    products: Products,
}

impl Tap for Votes<'_> {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::PatchEmbeddings | Site::Hidden(_))
    }

    fn at(&mut self, _site: Site, xs: Tensor) -> Result<Tensor> {
        let first = self.first.get_or_insert_with(|| xs.clone());
        if let Some(vote) = self.gates.votes.get(self.votes.len()) {
            self.votes.push(vote.forward(first, &xs, self.products)?);
        }
        Ok(xs)
    }
}
