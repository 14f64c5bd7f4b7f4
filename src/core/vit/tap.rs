//! Taps: places in the forward pass where tensors are recorded, probed for gradients or replaced.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};

use vitscope_kernels::Watch;

/// A place in the forward pass. `usize` is the block, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// `[batch, channels, height, width]`, what the model is given.
    Pixels,
    /// `[batch, patches, dim]`, before class token and positions.
    PatchEmbeddings,
    /// `[batch, tokens, dim]`, the input of a block; `Hidden(blocks)`: after the last block, before the final norm.
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

/// Sees every tensor it wants and may replace it, on whatever thread the model runs.
pub trait Tap: Send {
    /// Asked first, so that the forward pass materializes nothing in vain.
    fn wants(&self, site: Site) -> bool;

    /// Takes the tensor at `site` and returns the one to go on with.
    ///
    /// # Errors
    /// What the tap computes may fail.
    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor>;
}

/// Hands `xs` to the tap where it wants it.
pub(super) fn tapped(tap: &mut dyn Tap, site: Site, xs: Tensor) -> Result<Tensor> {
    if tap.wants(site) {
        tap.at(site, xs)
    } else {
        Ok(xs)
    }
}

/// Wants nothing.
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _site: Site) -> bool {
        false
    }

    fn at(&mut self, _site: Site, xs: Tensor) -> Result<Tensor> {
        Ok(xs)
    }
}

/// Keeps the tensors of some sites.
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

    /// The tensor seen at `site` by the last forward pass.
    ///
    /// # Errors
    /// Fails where `site` was not asked for or not reached.
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

/// Keeps the gradients of some sites, which candle drops after use.
pub struct Probe {
    sites: BTreeSet<Site>,
    kept: BTreeMap<Site, Kept>,
}

/// How the gradient of a site is kept.
enum Kept {
    /// By a zero variable that was added: it has the same gradient, and begins a graph where there is none.
    Zeros(Var),
    /// By a watch on the graph.
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

    /// The gradient at `site`, from the last backward pass, which gave `grads`.
    ///
    /// # Errors
    /// Fails where `site` was not probed, or where the differentiated value does not depend on it.
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

/// Puts what a function makes of the tensor at one site in its place.
pub struct Replace<F> {
    site: Site,
    make: F,
}

impl<F: FnMut(Tensor) -> Result<Tensor>> Replace<F> {
    /// Replaces the tensor at `site` by what `make` returns for it.
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

/// Takes patches away before the first block, the same ones of every image; the special tokens stay.
pub struct KeepPatches {
    /// Indices of the tokens that stay.
    tokens: Tensor,
}

impl KeepPatches {
    /// Keeps `patches`, behind `n_special` special tokens.
    ///
    /// # Errors
    /// Fails where the device runs out of memory.
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

/// A tap that may be left out.
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

/// Two taps, the second of which sees what the first returned.
impl<A: Tap, B: Tap> Tap for (A, B) {
    fn wants(&self, site: Site) -> bool {
        self.0.wants(site) || self.1.wants(site)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        let xs = tapped(&mut self.0, site, xs)?;
        tapped(&mut self.1, site, xs)
    }
}
