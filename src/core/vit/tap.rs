//! Taps: sites in the forward pass where tensors are recorded, probed for gradients or replaced.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};

use vitscope_kernels::Watch;

/// A site in the forward pass. `usize` is the index of the block, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// `[batch, channels, height, width]`, the model's input.
    Pixels,
    /// `[batch, patches, dim]`, before adding class token and positions.
    PatchEmbeddings,
    /// `[batch, tokens, dim]`, the input of a block; `Hidden(blocks)` is the output of the last block, before the final
    /// norm.
    Hidden(usize),
    /// `[batch, tokens, dim]`, after a block's first norm.
    Normed(usize),
    /// `[batch, tokens, dim]`, with bias, before the head split.
    Query(usize),
    /// `[batch, tokens, dim]`, with bias, before the head split.
    Key(usize),
    /// `[batch, tokens, dim]`, with bias, before the head split.
    Value(usize),
    /// `[batch, heads, tokens, tokens]`, scaled, before softmax.
    Scores(usize),
    /// `[batch, heads, tokens, tokens]`, after softmax; rows are queries.
    Attention(usize),
    /// `[batch, tokens, dim]`, after the final norm.
    Tokens,
}

impl Site {
    /// The sites inside a block's attention.
    pub(super) fn in_attention(block_idx: usize) -> [Self; 6] {
        [
            Self::Normed(block_idx),
            Self::Query(block_idx),
            Self::Key(block_idx),
            Self::Value(block_idx),
            Self::Scores(block_idx),
            Self::Attention(block_idx),
        ]
    }

    /// Every site of a model with this many blocks, in the order of the forward pass.
    pub fn all(n_blocks: usize) -> Vec<Self> {
        let in_block = |block_idx| {
            std::iter::once(Self::Hidden(block_idx)).chain(Self::in_attention(block_idx))
        };
        [Self::Pixels, Self::PatchEmbeddings]
            .into_iter()
            .chain((0..n_blocks).flat_map(in_block))
            .chain([Self::Hidden(n_blocks), Self::Tokens])
            .collect()
    }
}

/// Reads the tensors that it requests, and may replace them. It runs on the model's thread, which may be any.
pub trait Tap: Send {
    /// Whether the tap requests the tensor at `site`. Called first, so that the forward pass materializes only
    /// requested tensors.
    fn wants(&self, site: Site) -> bool;

    /// Receives the tensor at `site` and returns the one to continue with.
    ///
    /// # Errors
    /// Fails if the tap's computation fails.
    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor>;
}

/// Passes `xs` to the tap if it requests the site.
pub(super) fn tapped(tap: &mut dyn Tap, site: Site, xs: Tensor) -> Result<Tensor> {
    if tap.wants(site) {
        tap.at(site, xs)
    } else {
        Ok(xs)
    }
}

/// A tap that requests nothing.
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _site: Site) -> bool {
        false
    }

    fn at(&mut self, _site: Site, xs: Tensor) -> Result<Tensor> {
        Ok(xs)
    }
}

/// Records the tensors at some sites.
pub struct Record {
    sites: BTreeSet<Site>,
    kept: BTreeMap<Site, Tensor>,
}

impl Record {
    /// Records `sites`.
    pub fn new(sites: impl IntoIterator<Item = Site>) -> Self {
        Self {
            sites: sites.into_iter().collect(),
            kept: BTreeMap::new(),
        }
    }

    /// A record of these tensors.
    pub(crate) fn of(kept: BTreeMap<Site, Tensor>) -> Self {
        Self {
            sites: kept.keys().copied().collect(),
            kept,
        }
    }

    /// The tensor seen at `site` by the last forward pass.
    ///
    /// # Errors
    /// Fails if `site` was not requested or not reached.
    pub fn get(&self, site: Site) -> Result<&Tensor> {
        match self.kept.get(&site) {
            Some(xs) => Ok(xs),
            None => candle_core::bail!("nothing was recorded at {site:?}"),
        }
    }
}

impl Tap for Record {
    fn wants(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        self.kept.insert(site, xs.clone());
        Ok(xs)
    }
}

/// Records the gradients at some sites, which candle otherwise drops after use.
pub struct Probe {
    sites: BTreeSet<Site>,
    kept: BTreeMap<Site, Kept>,
}

/// How the gradient of a site is recorded.
enum Kept {
    /// By adding a zero variable, which has the same gradient and starts a graph if there is none.
    Zeros(Var),
    /// By watching the graph.
    Watch(Watch),
}

impl Probe {
    /// Probes `sites`.
    pub fn new(sites: impl IntoIterator<Item = Site>) -> Self {
        Self {
            sites: sites.into_iter().collect(),
            kept: BTreeMap::new(),
        }
    }

    /// The gradient at `site` from the last backward pass, which returned `grads`.
    ///
    /// # Errors
    /// Fails if `site` was not probed, or if the differentiated value does not depend on it.
    pub fn gradient(&self, site: Site, grads: &GradStore) -> Result<Tensor> {
        let gradient = self.kept.get(&site).and_then(|kept| match kept {
            Kept::Zeros(zeros) => grads.get(zeros).cloned(),
            Kept::Watch(watch) => watch.gradient(),
        });
        match gradient {
            Some(gradient) => Ok(gradient),
            None => candle_core::bail!("no gradient reaches {site:?}"),
        }
    }
}

impl Tap for Probe {
    fn wants(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        let (ys, kept) = if Watch::applies_to(&xs) {
            let watch = Watch::default();
            (watch.watch(&xs)?, Kept::Watch(watch))
        } else {
            let zeros = Var::zeros(xs.shape(), xs.dtype(), xs.device())?;
            ((&xs + zeros.as_tensor())?, Kept::Zeros(zeros))
        };
        self.kept.insert(site, kept);
        Ok(ys)
    }
}

/// Replaces the tensor at one site by the result of a function.
pub struct Replace<F> {
    site: Site,
    make: F,
}

impl<F: FnMut(Tensor) -> Result<Tensor>> Replace<F> {
    /// Replaces the tensor at `site` by the result of `make`.
    pub fn new(site: Site, make: F) -> Self {
        Self { site, make }
    }
}

impl<F: FnMut(Tensor) -> Result<Tensor> + Send> Tap for Replace<F> {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn at(&mut self, _site: Site, xs: Tensor) -> Result<Tensor> {
        (self.make)(xs)
    }
}

/// Removes patches before the first block, the same ones in every image; special tokens remain.
pub struct KeepPatches {
    /// Indices of the tokens that remain.
    tokens: Tensor,
}

impl KeepPatches {
    /// Keeps `patches`, which follow `n_special` special tokens.
    ///
    /// # Errors
    /// Fails if the device runs out of memory.
    pub fn new(patches: &[u32], n_special: usize, device: &Device) -> Result<Self> {
        let n_special = n_special as u32;
        let patches = patches.iter().map(|patch| patch + n_special);
        let tokens: Vec<u32> = (0..n_special).chain(patches).collect();
        Ok(Self {
            tokens: Tensor::new(tokens, device)?,
        })
    }
}

impl Tap for KeepPatches {
    fn wants(&self, site: Site) -> bool {
        site == Site::Hidden(0)
    }

    fn at(&mut self, _site: Site, xs: Tensor) -> Result<Tensor> {
        xs.index_select(&self.tokens, 1)
    }
}

/// An optional tap.
impl<T: Tap> Tap for Option<T> {
    fn wants(&self, site: Site) -> bool {
        self.as_ref().is_some_and(|tap| tap.wants(site))
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        match self {
            Some(tap) => tap.at(site, xs),
            None => Ok(xs),
        }
    }
}

/// Two taps; the second receives the output of the first.
impl<A: Tap, B: Tap> Tap for (A, B) {
    fn wants(&self, site: Site) -> bool {
        self.0.wants(site) || self.1.wants(site)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        let xs = tapped(&mut self.0, site, xs)?;
        tapped(&mut self.1, site, xs)
    }
}
