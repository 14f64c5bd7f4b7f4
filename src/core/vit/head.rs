//! The classifier: the tokens that it reads and the logits that it computes.

use candle_core::{D, Result, Tensor};

use super::{Head, Rules, VitConfig, Weights, linear};
use vitscope_kernels::Linear;

/// Input of a linear classifier from the normed tokens, `[batch, tokens, dim]`, which start with `n_special` special
/// tokens: the class token and, for [`Head::ClassTokenAndPatchMean`], the mean of the patches after it.
///
/// # Shapes
/// - result: `[batch, dim]` or `[batch, 2 · dim]`
pub fn features(reads: Head, tokens: &Tensor, n_special: usize) -> Result<Tensor> {
    let class_token = tokens.narrow(1, 0, 1)?.squeeze(1)?;
    if reads != Head::ClassTokenAndPatchMean {
        return Ok(class_token);
    }
    let patches = tokens.narrow(1, n_special, tokens.dim(1)? - n_special)?;
    Tensor::cat(&[&class_token, &patches.mean(1)?], 1)
}

/// Computes logits from the normed tokens.
#[derive(Clone, Debug)]
pub(crate) enum Classifier {
    ClassToken(Linear),
    ClassTokenAndPatchMean(Linear),
    ClassAndDistillationTokens {
        class: Linear,
        distillation: Linear,
    },
    ImageEmbedding {
        projection: Linear,
        /// Logarithm of the cosines' scale, `[]`.
        logit_scale: Tensor,
        /// One row of length 1 per class.
        class_vectors: Linear,
    },
}

impl Classifier {
    /// `None` if the model has no classifier.
    pub(crate) fn load(config: &VitConfig, weights: &Weights<'_>) -> Result<Option<Self>> {
        let Some(head) = config.head() else {
            return Ok(None);
        };
        let classifier = |biased| linear("classifier", biased, weights);
        Ok(Some(match head {
            Head::ClassToken => Self::ClassToken(classifier(true)?),
            Head::ClassTokenAndPatchMean => Self::ClassTokenAndPatchMean(classifier(true)?),
            Head::ClassAndDistillationTokens => Self::ClassAndDistillationTokens {
                class: classifier(true)?,
                distillation: linear("distillation_classifier", true, weights)?,
            },
            Head::ImageEmbedding { .. } => Self::ImageEmbedding {
                projection: linear("visual_projection", false, weights)?,
                logit_scale: weights.tensor("logit_scale")?,
                class_vectors: classifier(false)?,
            },
        }))
    }

    /// Maps `[batch, tokens, dim]`, starting with `n_special` special tokens, to `[batch, classes]`.
    pub(crate) fn forward(
        &self,
        tokens: &Tensor,
        n_special: usize,
        rules: Option<Rules>,
    ) -> Result<Tensor> {
        let token = |token_idx: usize| tokens.narrow(1, token_idx, 1)?.squeeze(1); // [batch, dim]
        match self {
            Self::ClassToken(classifier) => classifier.forward(&token(0)?),
            Self::ClassTokenAndPatchMean(classifier) => {
                let read = features(Head::ClassTokenAndPatchMean, tokens, n_special)?;
                classifier.forward(&read)
            }
            Self::ClassAndDistillationTokens {
                class,
                distillation,
            } => (class.forward(&token(0)?)? + distillation.forward(&token(1)?)?)? / 2.0,
            Self::ImageEmbedding {
                projection,
                logit_scale,
                class_vectors,
            } => {
                let embedding = projection.forward(&token(0)?)?; // [batch, projection]
                let length = embedding.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
                // As in layer norm, modified backward rules treat the divisor as a constant.
                let length = if rules.is_some() {
                    length.detach()
                } else {
                    length
                };
                let cosines = class_vectors.forward(&embedding.broadcast_div(&length)?)?;
                cosines.broadcast_mul(&logit_scale.exp()?)
            }
        }
    }

    /// Weights of the features, one row per class, `[classes, width]`. Two classifiers are averaged.
    pub(crate) fn weight(&self) -> Result<Tensor> {
        let weight = |linear: &Linear| linear.parts()[0].clone();
        match self {
            Self::ClassToken(classifier) | Self::ClassTokenAndPatchMean(classifier) => {
                Ok(weight(classifier))
            }
            Self::ClassAndDistillationTokens {
                class,
                distillation,
            } => (weight(class) + weight(distillation))? / 2.0,
            Self::ImageEmbedding { class_vectors, .. } => Ok(weight(class_vectors)),
        }
    }

    /// The linear map, if it is the whole classifier.
    pub(crate) fn linear(&self) -> Option<&Linear> {
        match self {
            Self::ClassToken(classifier) | Self::ClassTokenAndPatchMean(classifier) => {
                Some(classifier)
            }
            _ => None,
        }
    }

    /// The linear map, if it reads only the class token.
    #[cfg(feature = "lrp")]
    pub(crate) fn of_class_token(&self) -> Option<&Linear> {
        match self {
            Self::ClassToken(classifier) => Some(classifier),
            _ => None,
        }
    }
}
