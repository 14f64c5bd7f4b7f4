//! The forward and backward passes that explainers share.
//!
//! Each explainer says which tensors and gradients it [`Needs`]. One [`Forward`] pass serves all of them,
//! and one backward pass per target, which makes a [`Pass`] of it.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::Target;
use crate::error::{Error, Result};
use crate::gates::weights_of_predicted;
use crate::vit::{KeepPatches, Output, Probe, Record, Site, Vit};
use vitscope_kernels as kernels;

/// What an explainer reads of a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    values: BTreeSet<Site>,
    gradients: BTreeSet<Site>,
}

impl Needs {
    /// The tensors at `sites`.
    pub fn values(sites: impl IntoIterator<Item = Site>) -> Self {
        Self {
            values: sites.into_iter().collect(),
            gradients: BTreeSet::new(),
        }
    }

    /// The gradients at `sites`, of the score that is explained.
    pub fn gradients(sites: impl IntoIterator<Item = Site>) -> Self {
        Self {
            values: BTreeSet::new(),
            gradients: sites.into_iter().collect(),
        }
    }

    /// What both need.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.values.extend(other.values);
        self.gradients.extend(other.gradients);
        self
    }
}

/// A forward pass, of which something was kept.
pub struct Forward<'a> {
    vit: &'a Vit,
    images: &'a Tensor,
    needs: Needs,
    record: Record,
    probe: Probe,
    /// `[batch, classes]`, part of the graph.
    logits: Option<Tensor>,
    /// `[batch, dim]`
    class_token: Tensor,
}

impl<'a> Forward<'a> {
    /// Runs the model and keeps what is needed.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`, normalized for `vit`
    ///
    /// # Errors
    /// Fails where `images` does not fit the model.
    pub fn run(vit: &'a Vit, images: &'a Tensor, needs: Needs) -> Result<Self> {
        Self::run_with(vit, images, needs, None)
    }

    /// The same where the model sees only some of the patches; what is kept of the pass has only these.
    ///
    /// # Errors
    /// As [`run`](Self::run), and where there are no such patches.
    pub fn run_on_patches(
        vit: &'a Vit,
        images: &'a Tensor,
        needs: Needs,
        patches: &[u32],
    ) -> Result<Self> {
        let n_special = vit.config().n_special_tokens();
        let keep = KeepPatches::new(patches, n_special, images.device())?;
        Self::run_with(vit, images, needs, Some(keep))
    }

    fn run_with(
        vit: &'a Vit,
        images: &'a Tensor,
        needs: Needs,
        keep: Option<KeepPatches>,
    ) -> Result<Self> {
        let record = Record::new(needs.values.iter().copied());
        let probe = Probe::new(needs.gradients.iter().copied());
        let mut taps = (keep, (record, probe));
        let Output { tokens, logits } = vit.forward_with(images, &mut taps)?;
        let (_, (record, probe)) = taps;
        Ok(Self {
            vit,
            images,
            needs,
            record,
            probe,
            logits,
            class_token: tokens.narrow(1, 0, 1)?.squeeze(1)?.detach(),
        })
    }

    /// `[batch, classes]`, without a graph; `None` where the model has no head.
    pub fn logits(&self) -> Option<Tensor> {
        self.logits.as_ref().map(Tensor::detach)
    }

    /// The class token after the final norm, `[batch, dim]`, without a graph.
    pub fn class_token(&self) -> Tensor {
        self.class_token.clone()
    }

    /// Fails where a method that explains a class meets a model without one.
    pub(super) fn check_head_for(&self, method: &str, explains_classes: bool) -> Result<()> {
        if explains_classes && self.logits.is_none() {
            return Err(Error::Model(format!(
                "method {method:?} explains a class, but the model has no head; use a method that needs no class, \
                 such as rollout"
            )));
        }
        Ok(())
    }

    /// Goes backward from the score of `target`.
    ///
    /// # Errors
    /// [`Error::Config`] where the model has no such class; [`Error::Model`] where gradients are needed and the
    /// model has no head.
    pub fn toward(&self, target: Target) -> Result<Pass<'_>> {
        let weights = self
            .logits
            .as_ref()
            .map(|logits| target.weights(logits))
            .transpose()?;
        self.toward_weights(weights)
    }

    /// Goes backward from the sum of logits by `weights`, `[batch, classes]`.
    ///
    /// # Errors
    /// As [`toward`](Self::toward).
    pub fn toward_weights(&self, weights: Option<Tensor>) -> Result<Pass<'_>> {
        let mut gradients = BTreeMap::new();
        if !self.needs.gradients.is_empty() {
            let (Some(logits), Some(weights)) = (&self.logits, &weights) else {
                return Err(headless());
            };
            // Images do not interact, so the gradient of the sum is each image's own.
            let grads = kernels::in_pool(|| logits.broadcast_mul(weights)?.sum_all()?.backward())?;
            for &site in &self.needs.gradients {
                gradients.insert(site, self.probe.gradient(site, &grads)?);
            }
        }
        Ok(Pass {
            forward: self,
            weights,
            gradients,
        })
    }
}

/// A forward pass with what it is asked about, and the gradients of that.
pub struct Pass<'a> {
    forward: &'a Forward<'a>,
    weights: Option<Tensor>,
    gradients: BTreeMap<Site, Tensor>,
}

impl<'a> Pass<'a> {
    /// The model.
    pub fn vit(&self) -> &'a Vit {
        self.forward.vit
    }

    /// `[batch, 3, height, width]`, normalized.
    pub fn images(&self) -> &'a Tensor {
        self.forward.images
    }

    /// Rows and columns of the patch grid.
    ///
    /// # Errors
    /// Fails where the images have no four dimensions.
    pub fn grid(&self) -> Result<(usize, usize)> {
        let (_, _, height_px, width_px) = self.images().dims4()?;
        Ok(self.vit().grid(height_px, width_px))
    }

    /// What was at `site`, which the explainer said to need.
    ///
    /// # Errors
    /// Fails where it did not.
    pub fn value(&self, site: Site) -> Result<Tensor> {
        Ok(self.forward.record.get(site)?.detach())
    }

    /// Gradient of the explained score with respect to what was at `site`.
    ///
    /// # Errors
    /// Fails where the explainer did not say that it needs it.
    pub fn gradient(&self, site: Site) -> Result<&Tensor> {
        self.gradients
            .get(&site)
            .ok_or_else(|| Error::Model(format!("no gradient was requested at {site:?}")))
    }

    /// `[batch, classes]`: the explained score is the sum of the logits by these.
    ///
    /// # Errors
    /// [`Error::Model`] where the model has no head.
    pub fn weights(&self) -> Result<&Tensor> {
        self.weights.as_ref().ok_or_else(headless)
    }

    /// The model's answer to the unmasked images, `[batch, classes]`; `None` where it has no head.
    pub fn logits(&self) -> Option<Tensor> {
        self.forward.logits()
    }

    /// The tokens of `xs` that stand for patches.
    ///
    /// # Shapes
    /// - `xs`: a dimension of tokens
    ///
    /// # Errors
    /// Fails where `dim` is too short for the special tokens.
    pub fn patches_of(&self, xs: &Tensor, dim: impl candle_core::shape::Dim) -> Result<Tensor> {
        let dim = dim.to_index(xs.shape(), "patches_of")?;
        let n_special = self.vit().config().n_special_tokens();
        Ok(xs.narrow(dim, n_special, xs.dim(dim)? - n_special)?)
    }
}

impl Target {
    /// Weights whose sum with the logits is the explained score.
    ///
    /// # Shapes
    /// - `logits` and result: `[batch, classes]`
    fn weights(self, logits: &Tensor) -> Result<Tensor> {
        let (batch, n_classes) = logits.dims2()?;
        let mut weights = vec![0f32; batch * n_classes];
        let mut add = |image_idx: usize, class: usize, weight: f32| {
            if class >= n_classes {
                return Err(Error::Config(format!(
                    "target is class {class}, but the model has only {n_classes} classes"
                )));
            }
            weights[image_idx * n_classes + class] += weight;
            Ok(())
        };
        match self {
            Self::Predicted => return Ok(weights_of_predicted(logits)?),
            Self::Class(class) => {
                (0..batch).try_for_each(|image_idx| add(image_idx, class, 1.0))?;
            }
            Self::Contrast(class, other) => {
                for image_idx in 0..batch {
                    add(image_idx, class, 1.0)?;
                    add(image_idx, other, -1.0)?;
                }
            }
        }
        Ok(Tensor::from_vec(
            weights,
            (batch, n_classes),
            logits.device(),
        )?)
    }
}

fn headless() -> Error {
    Error::Model("the method explains a class, but the model has no head".into())
}
