//! Passes that compute only some tokens of an image, and take the others from the pass of an earlier image.
//!
//! Computed tokens attend to the keys and values of all tokens (Dutson et al., Eventful Transformers,
//! arXiv:2308.13494, section 4). If all tokens are computed, the result is that of [`Vit::forward_with`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{Output, Record, Site, Tap, Vit, VitConfig};

/// What passes over the images of one stream computed last, for each token.
#[derive(Debug)]
pub struct Held {
    /// The model's own, which no other model has.
    config: Arc<VitConfig>,
    /// With a batch of 1. Passes write into them, so none shares its memory.
    sites: BTreeMap<Site, Tensor>,
}

impl Held {
    /// The tensor at `site`, with a batch of 1; later passes write into it.
    ///
    /// # Errors
    /// Fails if the site is not held.
    pub fn get(&self, site: Site) -> Result<&Tensor> {
        match self.sites.get(&site) {
            Some(xs) => Ok(xs),
            None => candle_core::bail!("nothing is held at {site:?}"),
        }
    }

    /// True if everything that passes of `vit` and readers of `sites` need is held.
    pub fn has(&self, vit: &Vit, sites: &BTreeSet<Site>) -> bool {
        let mut needed = held_sites(vit, sites);
        Arc::ptr_eq(&self.config, &vit.config) && needed.all(|site| self.sites.contains_key(&site))
    }

    /// Replaces the rows of computed tokens.
    fn replace(&mut self, site: Site, rows: &Tensor, runs: &[Run]) -> Result<()> {
        let dim = match site {
            Site::Scores(_) | Site::Attention(_) => 2,
            _ => 1,
        };
        let held = self.get(site)?;
        for Run { tokens, first_row } in runs {
            let rows = rows.narrow(dim, *first_row, tokens.len())?;
            held.slice_set(&rows.contiguous()?, dim, tokens.start)?;
        }
        Ok(())
    }
}

/// Consecutive tokens, and the row of the first one among the computed rows.
struct Run {
    tokens: Range<usize>,
    first_row: usize,
}

/// Groups ascending tokens.
fn runs(tokens: &[u32]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (row, &token) in tokens.iter().enumerate() {
        let token = token as usize;
        match runs.last_mut() {
            Some(run) if run.tokens.end == token => run.tokens.end += 1,
            _ => runs.push(Run {
                tokens: token..token + 1,
                first_row: row,
            }),
        }
    }
    runs
}

/// The sites that passes need, and `sites`.
fn held_sites(vit: &Vit, sites: &BTreeSet<Site>) -> impl Iterator<Item = Site> {
    let of_block = |block_idx| [Site::Key(block_idx), Site::Value(block_idx)];
    (0..vit.n_blocks())
        .flat_map(of_block)
        .chain([Site::Tokens])
        .chain(sites.iter().copied())
}

impl Vit {
    /// Runs the model, and returns what later passes need and the tensors at `sites`, for each image.
    ///
    /// # Shapes
    /// - `images`: `[batch, channels, height, width]`, normalized
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_and_hold(
        &self,
        images: &Tensor,
        sites: &BTreeSet<Site>,
    ) -> Result<(Output, Vec<Held>)> {
        let mut record = Record::new(held_sites(self, sites));
        let output = self.forward_with(images, &mut record)?;
        let sites: BTreeSet<Site> = held_sites(self, sites).collect();
        let held = (0..images.dim(0)?).map(|image_idx| {
            let of_image = |&site: &Site| -> Result<(Site, Tensor)> {
                let own = record.get(site)?.narrow(0, image_idx, 1)?;
                Ok((site, own.force_contiguous()?))
            };
            let sites = sites.iter().map(of_image).collect::<Result<_>>()?;
            Ok(Held {
                config: Arc::clone(&self.config),
                sites,
            })
        });
        Ok((output, held.collect::<Result<_>>()?))
    }

    /// Runs the model on some tokens of each image, which replace those in `held`; the output has all tokens.
    ///
    /// # Shapes
    /// - `images`: `[batch, channels, height, width]`, normalized; only the patches of computed tokens matter
    /// - `tokens`: computed tokens of each image in ascending order, as many for each image
    /// - `held`: of each image
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn forward_some(
        &self,
        images: &Tensor,
        tokens: &[Vec<u32>],
        held: &mut [&mut Held],
    ) -> Result<Output> {
        let mut some = Partial {
            tokens,
            runs: tokens.iter().map(|tokens| runs(tokens)).collect(),
            held,
        };
        self.forward_with(images, &mut some)
    }
}

/// Removes the tokens that are not computed, and supplies what is held of them where all tokens are needed.
struct Partial<'a, 'b> {
    /// For each image.
    tokens: &'a [Vec<u32>],
    runs: Vec<Vec<Run>>,
    held: &'a mut [&'b mut Held],
}

impl Partial<'_, '_> {
    fn is_held(&self, site: Site) -> bool {
        self.held.iter().any(|held| held.sites.contains_key(&site))
    }

    /// Updates what is held at a site from the tensor of a pass.
    fn hold(&mut self, site: Site, xs: &Tensor) -> Result<()> {
        let images = self.held.iter_mut().zip(&self.runs).enumerate();
        for (image_idx, (held, runs)) in images {
            let own = xs.narrow(0, image_idx, 1)?;
            match site {
                // All tokens are there until the first block.
                Site::Pixels | Site::PatchEmbeddings | Site::Hidden(0) => {
                    held.sites.insert(site, own.force_contiguous()?);
                }
                _ => held.replace(site, &own, runs)?,
            }
        }
        Ok(())
    }

    /// The rows of computed tokens.
    ///
    /// # Shapes
    /// - `xs`: `[batch, tokens, dim]`
    /// - result: `[batch, computed, dim]`
    fn computed(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, n_tokens, dim) = xs.dims3()?;
        let images = self.tokens.iter().enumerate();
        let rows = images.flat_map(|(image_idx, tokens)| {
            let first = (image_idx * n_tokens) as u32;
            tokens.iter().map(move |token| first + token)
        });
        let rows: Vec<u32> = rows.collect();
        let computed = rows.len() / batch.max(1);
        xs.reshape((batch * n_tokens, dim))?
            .index_select(&Tensor::new(rows, xs.device())?, 0)?
            .reshape((batch, computed, dim))
    }

    /// What is held at a site, for all images.
    fn whole(&self, site: Site) -> Result<Tensor> {
        let all = self.held.iter().map(|held| held.get(site));
        Tensor::cat(&all.collect::<Result<Vec<_>>>()?, 0)
    }
}

impl Tap for Partial<'_, '_> {
    fn wants(&self, site: Site) -> bool {
        site == Site::Hidden(0) || self.is_held(site)
    }

    fn at(&mut self, site: Site, xs: Tensor) -> Result<Tensor> {
        if self.is_held(site) {
            self.hold(site, &xs)?;
        }
        match site {
            Site::Hidden(0) => self.computed(&xs),
            Site::Key(_) | Site::Value(_) | Site::Tokens => self.whole(site),
            _ => Ok(xs),
        }
    }
}
