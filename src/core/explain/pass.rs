//! The forward and backward passes that explainers share.
//!
//! Each explainer declares the tensors and gradients that it [`Needs`]. All of them share one [`Forward`] pass and one
//! backward pass per target, which yields a [`Pass`].

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::Target;
use crate::error::{Error, Result};
use crate::gates::weights_of_predicted;
use crate::vit::{KeepPatches, Output, Probe, Record, Site, Vit};
use vitscope_kernels as kernels;

/// The tensors and gradients that an explainer reads from a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    values: BTreeSet<Site>,
    gradients: BTreeSet<Site>,
}

impl Needs {
    /// Requests the tensors at `sites`.
    pub fn values(sites: impl IntoIterator<Item = Site>) -> Self {
        Self {
            values: sites.into_iter().collect(),
            gradients: BTreeSet::new(),
        }
    }

    /// Requests the gradients of the explained score at `sites`.
    pub fn gradients(sites: impl IntoIterator<Item = Site>) -> Self {
        Self {
            values: BTreeSet::new(),
            gradients: sites.into_iter().collect(),
        }
    }

    /// The sites of the requested tensors.
    pub(super) fn sites(&self) -> &BTreeSet<Site> {
        &self.values
    }

    /// True if tensors are requested, but no gradients.
    pub(super) fn is_forward_only(&self) -> bool {
        !self.values.is_empty() && self.gradients.is_empty()
    }

    /// The union of both needs.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.values.extend(other.values);
        self.gradients.extend(other.gradients);
        self
    }
}

/// A forward pass with its recorded tensors.
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
    /// Runs the model and records the requested tensors.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`, normalized for `vit`
    ///
    /// # Errors
    /// Fails if `images` does not fit the model.
    pub fn run(vit: &'a Vit, images: &'a Tensor, needs: Needs) -> Result<Self> {
        Self::run_with(vit, images, needs, None)
    }

    /// Like [`run`](Self::run), but the model sees only the given patches. Recorded tensors contain only these.
    ///
    /// # Errors
    /// As [`run`](Self::run), and if a patch does not exist.
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

    /// A pass that was run elsewhere, with the tensors that were requested of it.
    pub(super) fn of(
        vit: &'a Vit,
        images: &'a Tensor,
        output: Output,
        values: BTreeMap<Site, Tensor>,
    ) -> Result<Self> {
        Ok(Self {
            vit,
            images,
            needs: Needs::values(values.keys().copied()),
            record: Record::of(values),
            probe: Probe::new([]),
            logits: output.logits,
            class_token: output.tokens.narrow(1, 0, 1)?.squeeze(1)?.detach(),
        })
    }

    /// `[batch, classes]`, without a graph; `None` if the model has no head.
    pub fn logits(&self) -> Option<Tensor> {
        self.logits.as_ref().map(Tensor::detach)
    }

    /// The class token after the final norm, `[batch, dim]`, without a graph.
    pub fn class_token(&self) -> Tensor {
        self.class_token.clone()
    }

    /// Fails if the method explains a class, but the model has no head.
    pub(super) fn check_head_for(&self, method: &str, explains_classes: bool) -> Result<()> {
        if explains_classes && self.logits.is_none() {
            return Err(Error::Model(format!(
                "method {method:?} explains a class, but the model has no head; use a method that needs no class, \
                 such as rollout"
            )));
        }
        Ok(())
    }

    /// Runs the backward pass from the score of `target`.
    ///
    /// # Errors
    /// [`Error::Config`] if the model has no such class; [`Error::Model`] if gradients are needed and the model has no
    /// head.
    pub fn toward(&self, target: Target) -> Result<Pass<'_>> {
        let weights = self
            .logits
            .as_ref()
            .map(|logits| target.weights(logits))
            .transpose()?;
        self.toward_weights(weights)
    }

    /// Runs the backward pass from the sum of logits weighted by `weights`, `[batch, classes]`.
    ///
    /// # Errors
    /// As [`toward`](Self::toward).
    pub fn toward_weights(&self, weights: Option<Tensor>) -> Result<Pass<'_>> {
        let mut gradients = BTreeMap::new();
        if !self.needs.gradients.is_empty() {
            let (Some(logits), Some(weights)) = (&self.logits, &weights) else {
                return Err(headless());
            };
            // Images are independent, so the gradient of the sum contains the gradient of each image.
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

/// A forward pass with an explained score and its gradients.
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
    /// Fails if the images do not have four dimensions.
    pub fn grid(&self) -> Result<(usize, usize)> {
        let (_, _, height_px, width_px) = self.images().dims4()?;
        Ok(self.vit().grid(height_px, width_px))
    }

    /// The tensor at `site`, which the explainer must have declared in its needs.
    ///
    /// # Errors
    /// Fails if the explainer did not declare it.
    pub fn value(&self, site: Site) -> Result<Tensor> {
        Ok(self.forward.record.get(site)?.detach())
    }

    /// Gradient of the explained score with respect to the tensor at `site`.
    ///
    /// # Errors
    /// Fails if the explainer did not declare it.
    pub fn gradient(&self, site: Site) -> Result<&Tensor> {
        self.gradients
            .get(&site)
            .ok_or_else(|| Error::Model(format!("no gradient was requested at {site:?}")))
    }

    /// `[batch, classes]`: weights of the logits in the explained score.
    ///
    /// # Errors
    /// [`Error::Model`] if the model has no head.
    pub fn weights(&self) -> Result<&Tensor> {
        self.weights.as_ref().ok_or_else(headless)
    }

    /// The logits of the unmasked images, `[batch, classes]`; `None` if the model has no head.
    pub fn logits(&self) -> Option<Tensor> {
        self.forward.logits()
    }

    /// The patch tokens of `xs`.
    ///
    /// # Shapes
    /// - `xs`: `dim` is the dimension of tokens
    ///
    /// # Errors
    /// Fails if `dim` is too short for the special tokens.
    pub fn patches_of(&self, xs: &Tensor, dim: impl candle_core::shape::Dim) -> Result<Tensor> {
        let dim = dim.to_index(xs.shape(), "patches_of")?;
        let n_special = self.vit().config().n_special_tokens();
        Ok(xs.narrow(dim, n_special, xs.dim(dim)? - n_special)?)
    }
}

impl Target {
    /// Weights of the logits in the explained score.
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
