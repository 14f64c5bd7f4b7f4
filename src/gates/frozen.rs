//! Trained gates, prepared to be asked often.

use candle_core::{Result, Tensor};

use super::hard_concrete::log_keep_from_logits;
use super::{Gates, weight_norm};

impl Gates {
    /// The same gates, prepared to be asked often: weight norms are applied once.
    ///
    /// # Errors
    /// Fails where the device runs out of memory.
    pub fn freeze(&self) -> Result<FrozenGates> {
        let (mut first, mut states, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        let (mut votes, mut vote_biases, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        for gate in &self.gates {
            let weight = weight_norm(&gate.hidden_direction, &gate.hidden_length)?.detach();
            first.push(weight.narrow(1, 0, self.sizes.dim)?);
            let state = weight.narrow(1, self.sizes.dim, self.sizes.dim)?;
            states.push(state.t()?.contiguous()?);
            biases.push(gate.hidden_bias.detach());
            votes.push(weight_norm(&gate.vote_direction, &gate.vote_length)?.detach());
            vote_biases.push(gate.vote_bias.detach());
            offsets.push(gate.offset.detach());
        }
        Ok(FrozenGates {
            hidden: self.sizes.hidden,
            stretch: self.stretch,
            first: Tensor::cat(&first, 0)?.t()?.contiguous()?, // [dim, gates·hidden]
            bias: Tensor::cat(&biases, 0)?,                    // [gates·hidden]
            states,
            votes: Tensor::cat(&votes, 0)?.unsqueeze(2)?, // [gates, hidden, 1]
            vote_biases: Tensor::cat(&vote_biases, 0)?.reshape((self.gates.len(), 1))?,
            offsets: Tensor::cat(&offsets, 0)?.reshape((self.gates.len(), 1))?,
        })
    }
}

/// Gates with their weight norms applied and their common input multiplied at once.
pub struct FrozenGates {
    hidden: usize,
    stretch: f64,
    /// What all gates do with state 0, `[dim, gates·hidden]`.
    first: Tensor,
    bias: Tensor,
    /// What each gate does with its own state, `[dim, hidden]`.
    states: Vec<Tensor>,
    votes: Tensor,
    vote_biases: Tensor,
    offsets: Tensor,
}

impl FrozenGates {
    /// The mask of all gates together; equals [`Gates::mask`] to rounding.
    ///
    /// # Shapes
    /// - `states`: each `[batch, patches, dim]`
    /// - result: `[batch, patches]`, in [0, 1]
    ///
    /// # Errors
    /// Fails where the states do not fit.
    pub fn mask(&self, states: &[Tensor]) -> Result<Tensor> {
        if states.len() != self.states.len() {
            candle_core::bail!(
                "there are {} gates for {} states",
                self.states.len(),
                states.len()
            );
        }
        let (b, n_patches, dim) = states[0].dims3()?;
        let rows = (b * n_patches, dim);
        let common = states[0]
            .reshape(rows)?
            .matmul(&self.first)?
            .broadcast_add(&self.bias)?; // [batch·patches, gates·hidden]
        let hidden = states
            .iter()
            .zip(&self.states)
            .enumerate()
            .map(|(gate_idx, (state, weight))| {
                let own = state.reshape(rows)?.matmul(weight)?;
                common.narrow(1, gate_idx * self.hidden, self.hidden)? + own
            })
            .collect::<Result<Vec<_>>>()?;
        let hidden = Tensor::stack(&hidden, 0)?.tanh()?; // [gates, batch·patches, hidden]
        let votes = hidden
            .matmul(&self.votes)?
            .squeeze(2)?
            .broadcast_add(&self.vote_biases)?
            .tanh()?; // [gates, batch·patches]
        let logits = (votes * self.stretch)?.broadcast_add(&self.offsets)?;
        log_keep_from_logits(&logits)?
            .sum(0)?
            .exp()?
            .reshape((b, n_patches))
    }
}
