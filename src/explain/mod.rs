//! Explainers: each scores the patches of an image by how much they matter to the model.

use candle_core::Tensor;

use crate::error::Result;
use crate::vit::Vit;

/// The class that is explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The class with the highest logit.
    #[default]
    Predicted,
    /// A class by index.
    Class(usize),
}

/// What an explainer found. The logits come along so that nobody runs the model twice.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// `[batch, patches]`, raw scores, higher is more important.
    pub attribution: Tensor,
    /// `[batch, classes]` of the unmasked images; `None` where the model has no head.
    pub logits: Option<Tensor>,
}

/// Scores the patches of an image by their importance.
///
/// An explainer does not change the model, and gives the same answer for the same image and target.
pub trait Explainer: Send {
    /// Name on the command line and in the sidecar: lower case, no spaces.
    fn name(&self) -> &'static str;

    /// Explains a batch.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`, normalized for `vit`
    ///
    /// # Errors
    /// Fails where `images` does not fit the model, or the target has no meaning for the method.
    fn explain(&self, vit: &Vit, images: &Tensor, target: Target) -> Result<Explanation>;
}
