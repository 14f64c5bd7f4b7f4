//! Explainers: each scores the patches of an image by how much they matter to the model.
//!
//! Each method family has one file, and [`Method`] lists all methods. Methods that read the same forward and backward
//! pass share it; see [`Pass`].

pub mod agcam;
pub mod attention;
pub mod beyond_intuition;
pub mod chefer;
#[cfg(feature = "lrp")]
pub mod chefer_lrp;
pub mod diffmask;
pub mod gradcam;
pub mod gradients;
pub mod gradmask;
pub mod iavit;
pub mod kernel_shap;
pub mod legrad;
pub mod lrp;
pub mod masked;
pub(crate) mod memory;
pub(crate) mod methods;
pub mod motion;
pub mod occlusion;
pub(crate) mod pass;
mod range;
pub mod recipro_cam;
pub(crate) mod reuse;
pub mod rise;
pub mod rollout;
pub mod score_cam;
pub mod shapley;
pub mod tam;
mod temporal;
pub mod tis;
pub mod vit_cx;

use candle_core::Tensor;

pub use memory::{MapMemory, Remembered, SharedMemory, StreamMemory, Streams};
pub use methods::{Entry, Method, MethodOption, Pace, Parts};
pub use pass::{Forward, Needs, Pass};
pub use range::Range;
pub use reuse::Reuse;

use crate::error::{Error, Result};
use crate::vit::{Site, Vit};

/// The class to explain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The class with the highest logit.
    #[default]
    Predicted,
    /// A class by index.
    Class(usize),
    /// Evidence for the first class and against the second.
    Contrast(usize, usize),
}

/// The result of an explainer. It includes the logits, so the model need not run again.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// `[batch, patches]`, raw scores, higher is more important.
    pub attribution: Tensor,
    /// `[batch, classes]` of the unmasked images; `None` if the model has no head.
    pub logits: Option<Tensor>,
}

/// An attribution with details of its computation.
#[derive(Clone, Debug)]
pub struct Detailed {
    /// `[batch, patches]`, raw scores, higher is more important.
    pub attribution: Tensor,
    /// `[parts, batch, patches]`, in [0, 1]: the score of each patch by each part of the method (DiffMask's gates), if
    /// requested.
    pub votes: Option<Tensor>,
    /// `[batch, patches]`: the attribution of each image alone, if the method smooths over the frames of a video.
    pub unsmoothed: Option<Tensor>,
}

impl From<Tensor> for Detailed {
    /// An attribution without details.
    fn from(attribution: Tensor) -> Self {
        Self {
            attribution,
            votes: None,
            unsmoothed: None,
        }
    }
}

/// Scores the patches of an image by their importance.
///
/// An explainer does not change the model and returns the same result for the same image and target. Methods for videos
/// get their memory of previous frames [as an argument](Self::follow).
pub trait Explainer: Send + Sync {
    /// Name on the command line and in the sidecar: lower case, no spaces.
    fn name(&self) -> &'static str;

    /// True if the method distinguishes classes; other methods support only [`Target::Predicted`].
    fn explains_classes(&self) -> bool {
        false
    }

    /// Range of attributions that is mapped to colors.
    fn range(&self) -> Range {
        Range::Percentile
    }

    /// Tensors that the method reads from the shared pass; only the logits if it runs the model itself.
    fn needs(&self, _vit: &Vit) -> Needs {
        Needs::default()
    }

    /// Explains each image of a batch from a pass that recorded what the method [`needs`](Self::needs).
    ///
    /// # Shapes
    /// - result: `[batch, patches]`, raw scores, higher is more important
    ///
    /// # Errors
    /// Fails if the method does not support the model.
    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor>;

    /// The attribution with the method's details.
    ///
    /// # Errors
    /// As [`attribution`](Self::attribution).
    fn detailed(&self, pass: &Pass<'_>) -> Result<Detailed> {
        self.attribution(pass).map(Detailed::from)
    }

    /// Explains frames of videos, each with the memory of its video's previous frames. Methods without memory explain
    /// each frame alone.
    ///
    /// # Errors
    /// As [`attribution`](Self::attribution).
    fn follow(&self, pass: &Pass<'_>, _remembered: &mut Remembered<'_>) -> Result<Detailed> {
        self.detailed(pass)
    }

    /// Tries the method before a run, to find errors that would occur on every image. Methods of many passes try only a
    /// part and return no map.
    ///
    /// # Shapes
    /// - result: as for [`attribution`](Self::attribution)
    ///
    /// # Errors
    /// As [`attribution`](Self::attribution).
    fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        self.attribution(pass).map(Some)
    }

    /// Explains a batch with its own forward and backward pass.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`, normalized for `vit`
    ///
    /// # Errors
    /// Fails if `images` does not match the model, or if the method does not support the target.
    fn explain(&self, vit: &Vit, images: &Tensor, target: Target) -> Result<Explanation> {
        target.check_for(self.name(), self.explains_classes())?;
        let forward = Forward::run(vit, images, self.needs(vit))?;
        explained(self, &forward, target, |pass| self.attribution(pass))
    }

    /// Like [`explain`](Self::explain), for frames of videos, each with the memory of its video's previous frames.
    /// `streams` must not hold the memory of other methods.
    ///
    /// # Errors
    /// As [`explain`](Self::explain), and [`Error::Shape`] if `streams` and `images` do not match.
    fn explain_next(
        &self,
        vit: &Vit,
        images: &Tensor,
        target: Target,
        streams: &mut Streams<'_>,
    ) -> Result<Explanation> {
        target.check_for(self.name(), self.explains_classes())?;
        let forward = streams.forward(vit, images, self.needs(vit))?;
        let mut remembered = streams.of_map(0, 1);
        explained(self, &forward, target, |pass| {
            Ok(self.follow(pass, &mut remembered)?.attribution)
        })
    }
}

/// Runs a backward pass and explains it by `attribution`.
fn explained<E: Explainer + ?Sized>(
    explainer: &E,
    forward: &Forward<'_>,
    target: Target,
    attribution: impl FnOnce(&Pass<'_>) -> Result<Tensor>,
) -> Result<Explanation> {
    forward.check_head_for(explainer.name(), explainer.explains_classes())?;
    Ok(Explanation {
        attribution: attribution(&forward.toward(target)?)?.detach(),
        logits: forward.logits(),
    })
}

/// The results of several explainers on the same images.
#[derive(Clone, Debug)]
pub struct Explanations {
    /// `[batch, patches]` for each target of the first explainer, then of the second, and so on.
    pub attributions: Vec<Tensor>,
    /// [Votes](Detailed::votes) for each of them.
    pub votes: Vec<Option<Tensor>>,
    /// Each of them [without smoothing](Detailed::unsmoothed), if it is smoothed.
    pub unsmoothed: Vec<Option<Tensor>>,
    /// `[batch, classes]` of the unmasked images; `None` if the model has no head.
    pub logits: Option<Tensor>,
    /// `[batch, features]` of the unmasked images, after the final norm.
    pub class_token: Tensor,
}

/// Explains each image of a batch by all `explainers` for all `targets`, with one forward pass and one backward pass
/// per target.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`, normalized for `vit`
///
/// # Errors
/// As [`Explainer::explain`].
pub fn explain_all(
    explainers: &[Box<dyn Explainer>],
    vit: &Vit,
    images: &Tensor,
    targets: &[Target],
) -> Result<Explanations> {
    let needs = needs_of(explainers, vit, targets)?;
    let forward = Forward::run(vit, images, needs)?;
    let explain = |explainer: &dyn Explainer, pass: &Pass<'_>, _| explainer.detailed(pass);
    each(explainers, &forward, targets, explain).map(Explanations::from)
}

/// Like [`explain_all`], for frames of videos, each with the memory of its video's previous frames.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`, normalized for `vit`
///
/// # Errors
/// As [`Explainer::explain`], and [`Error::Shape`] if `streams` and `images` do not match. In that case, some frames
/// may already be in memory; see [`Streams::attempt`].
pub fn follow_all(
    explainers: &[Box<dyn Explainer>],
    vit: &Vit,
    images: &Tensor,
    targets: &[Target],
    streams: &mut Streams<'_>,
) -> Result<Explanations> {
    let needs = needs_of(explainers, vit, targets)?;
    let forward = streams.forward(vit, images, needs)?;
    let n_maps = explainers.len() * targets.len();
    let follow = |explainer: &dyn Explainer, pass: &Pass<'_>, map_idx| {
        explainer.follow(pass, &mut streams.of_map(map_idx, n_maps))
    };
    each(explainers, &forward, targets, follow).map(Explanations::from)
}

/// The results for each explainer and target, the logits and the class tokens.
type Found<T> = (Vec<T>, Option<Tensor>, Tensor);

impl From<Found<Detailed>> for Explanations {
    fn from((answers, logits, class_token): Found<Detailed>) -> Self {
        let mut explanations = Explanations {
            attributions: Vec::new(),
            votes: Vec::new(),
            unsmoothed: Vec::new(),
            logits,
            class_token,
        };
        for answer in answers {
            explanations.attributions.push(answer.attribution.detach());
            explanations.votes.push(answer.votes);
            explanations.unsmoothed.push(answer.unsmoothed);
        }
        explanations
    }
}

/// [Rehearses](Explainer::rehearse) all `explainers` for all `targets`, in the order of [`Explanations`].
///
/// # Errors
/// As [`explain_all`].
pub fn rehearse_all(
    explainers: &[Box<dyn Explainer>],
    vit: &Vit,
    images: &Tensor,
    targets: &[Target],
) -> Result<Vec<Option<Tensor>>> {
    let needs = needs_of(explainers, vit, targets)?;
    let forward = Forward::run(vit, images, needs)?;
    let rehearse = |explainer: &dyn Explainer, pass: &Pass<'_>, _| explainer.rehearse(pass);
    Ok(each(explainers, &forward, targets, rehearse)?.0)
}

/// What all explainers need, after checking that they support the targets.
fn needs_of(explainers: &[Box<dyn Explainer>], vit: &Vit, targets: &[Target]) -> Result<Needs> {
    for explainer in explainers {
        for target in targets {
            target.check_for(explainer.name(), explainer.explains_classes())?;
        }
    }
    let needs = explainers.iter().map(|explainer| explainer.needs(vit));
    Ok(needs.fold(Needs::default(), Needs::and))
}

/// Calls `ask` for each explainer and target and collects the results. The index counts maps in the order of
/// [`Explanations`].
fn each<T>(
    explainers: &[Box<dyn Explainer>],
    forward: &Forward<'_>,
    targets: &[Target],
    mut ask: impl FnMut(&dyn Explainer, &Pass<'_>, usize) -> Result<T>,
) -> Result<Found<T>> {
    for explainer in explainers {
        forward.check_head_for(explainer.name(), explainer.explains_classes())?;
    }
    let mut by_explainer: Vec<Vec<T>> = explainers.iter().map(|_| Vec::new()).collect();
    for (target_idx, &target) in targets.iter().enumerate() {
        let pass = forward.toward(target)?;
        let explainers = explainers.iter().zip(&mut by_explainer).enumerate();
        for (explainer_idx, (explainer, answers)) in explainers {
            let map_idx = explainer_idx * targets.len() + target_idx;
            answers.push(ask(&**explainer, &pass, map_idx)?);
        }
    }
    let answers = by_explainer.into_iter().flatten().collect();
    Ok((answers, forward.logits(), forward.class_token()))
}

impl Target {
    /// Fails if a class is requested from a method that explains the whole output.
    pub fn check_for(self, method: &str, explains_classes: bool) -> Result<()> {
        let asked = match self {
            _ if explains_classes => return Ok(()),
            Self::Predicted => return Ok(()),
            Self::Class(class) => format!("class {class}"),
            Self::Contrast(class, other) => format!("class {class} against class {other}"),
        };
        Err(Error::Config(format!(
            "method {method:?} explains the whole output, not a single class, but {asked} was requested; {} explains \
             classes",
            Method::Chefer
        )))
    }
}

/// Attention of all blocks, in order.
fn attention_sites(vit: &Vit) -> impl DoubleEndedIterator<Item = Site> + ExactSizeIterator + use<> {
    (0..vit.n_blocks()).map(Site::Attention)
}

/// Index of the last block.
fn last_block(vit: &Vit) -> Result<usize> {
    vit.n_blocks().checked_sub(1).ok_or_else(no_blocks)
}

fn no_blocks() -> Error {
    Error::Model("the model has no blocks, so there is nothing to explain".into())
}

/// The rows of attention of the class token's query.
///
/// # Shapes
/// - `attn`: `[batch, heads, tokens, tokens]`
/// - result: `[batch, heads, tokens]`
fn class_row(attn: &Tensor) -> candle_core::Result<Tensor> {
    attn.narrow(2, 0, 1)?.squeeze(2)?.contiguous()
}
