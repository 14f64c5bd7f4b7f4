//! Explainers: each scores the patches of an image by how much they matter to the model.
//!
//! One file a method family; [`methods`] is the table of all. Methods that read the same forward and backward
//! pass share it: see [`pass`].

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
pub mod memory;
pub mod methods;
pub mod motion;
pub mod occlusion;
pub mod pass;
mod range;
pub mod recipro_cam;
pub mod rise;
pub mod rollout;
pub mod score_cam;
pub mod shapley;
pub mod tam;
mod temporal;
pub mod tis;
pub mod vit_cx;

use candle_core::Tensor;

use memory::Remembered;
pub use memory::{SharedMemory, StreamMemory, Streams};
pub use methods::{Method, MethodOption, Parts};
pub use pass::{Forward, Needs, Pass};
pub use range::Range;

use crate::error::{Error, Result};
use crate::vit::{Site, Vit};

/// The class that is explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The class with the highest logit.
    #[default]
    Predicted,
    /// A class by index.
    Class(usize),
    /// What speaks for the first class and against the second.
    Contrast(usize, usize),
}

/// What an explainer found. The logits come along so that nobody runs the model twice.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// `[batch, patches]`, raw scores, higher is more important.
    pub attribution: Tensor,
    /// `[batch, classes]` of the unmasked images; `None` where the model has no head.
    pub logits: Option<Tensor>,
}

/// An attribution, and how it came about.
#[derive(Clone, Debug)]
pub struct Detailed {
    /// `[batch, patches]`, raw scores, higher is more important.
    pub attribution: Tensor,
    /// `[parts, batch, patches]`, in [0, 1]: what each of the method's own parts says of each patch, where it was asked to
    /// tell: DiffMask's gates.
    pub votes: Option<Tensor>,
    /// `[batch, patches]`: the attribution of each image alone, where it is smoothed over the frames of a video.
    pub unsmoothed: Option<Tensor>,
}

impl From<Tensor> for Detailed {
    /// An attribution with nothing beside it.
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
/// An explainer does not change the model, and gives the same answer for the same image and target. What a method for
/// videos remembers of the frames before is [handed to it](Self::follow).
pub trait Explainer: Send + Sync {
    /// Name on the command line and in the sidecar: lower case, no spaces.
    fn name(&self) -> &'static str;

    /// True where the method tells classes apart; others are asked for [`Target::Predicted`] only.
    fn explains_classes(&self) -> bool {
        false
    }

    /// How attributions become colors.
    fn range(&self) -> Range {
        Range::Percentile
    }

    /// What it reads of the pass that all methods share; nothing but the logits where it runs the model itself.
    fn needs(&self, _vit: &Vit) -> Needs {
        Needs::default()
    }

    /// Explains a batch by a pass that kept what the method [`needs`](Self::needs), each image alone.
    ///
    /// # Shapes
    /// - result: `[batch, patches]`, raw scores, higher is more important
    ///
    /// # Errors
    /// Fails where model and method do not go together.
    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor>;

    /// The attribution, with what the method has to tell beside it.
    ///
    /// # Errors
    /// As [`attribution`](Self::attribution).
    fn detailed(&self, pass: &Pass<'_>) -> Result<Detailed> {
        self.attribution(pass).map(Detailed::from)
    }

    /// Explains frames of videos, each with what the frames before of its video have left; each alone, where the method
    /// remembers nothing.
    ///
    /// # Errors
    /// As [`attribution`](Self::attribution).
    fn follow(&self, pass: &Pass<'_>, _remembered: &mut Remembered<'_>) -> Result<Detailed> {
        self.detailed(pass)
    }

    /// Tries the method before a run, to find out what would fail on every image; those of many passes try less, and
    /// return nothing.
    ///
    /// # Shapes
    /// - result: as that of [`attribution`](Self::attribution)
    ///
    /// # Errors
    /// As [`attribution`](Self::attribution).
    fn rehearse(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        self.attribution(pass).map(Some)
    }

    /// Explains a batch by a pass of its own.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`, normalized for `vit`
    ///
    /// # Errors
    /// Fails where `images` does not fit the model, or the target has no meaning for the method.
    fn explain(&self, vit: &Vit, images: &Tensor, target: Target) -> Result<Explanation> {
        explain_by(self, vit, images, target, |pass| self.attribution(pass))
    }

    /// The same for frames of videos, each with what the frames before of its video have left; `streams` remember nothing of
    /// other methods.
    ///
    /// # Errors
    /// As [`explain`](Self::explain), and [`Error::Shape`] where `streams` are not those of `images`.
    fn explain_next(
        &self,
        vit: &Vit,
        images: &Tensor,
        target: Target,
        streams: &mut Streams<'_>,
    ) -> Result<Explanation> {
        let mut remembered = streams.of_map(0, 1);
        explain_by(self, vit, images, target, |pass| {
            Ok(self.follow(pass, &mut remembered)?.attribution)
        })
    }
}

/// Explains by what `attribution` makes of a pass of its own.
fn explain_by<E: Explainer + ?Sized>(
    explainer: &E,
    vit: &Vit,
    images: &Tensor,
    target: Target,
    attribution: impl FnOnce(&Pass<'_>) -> Result<Tensor>,
) -> Result<Explanation> {
    let (name, explains_classes) = (explainer.name(), explainer.explains_classes());
    target.check_for(name, explains_classes)?;
    let forward = Forward::run(vit, images, explainer.needs(vit))?;
    forward.check_head_for(name, explains_classes)?;
    Ok(Explanation {
        attribution: attribution(&forward.toward(target)?)?.detach(),
        logits: forward.logits(),
    })
}

/// What several explainers found on the same images.
#[derive(Clone, Debug)]
pub struct Explanations {
    /// `[batch, patches]` for each target of the first explainer, then of the second, and so on.
    pub attributions: Vec<Tensor>,
    /// [Votes](Detailed::votes) for each of them.
    pub votes: Vec<Option<Tensor>>,
    /// What each of them is [without smoothing](Detailed::unsmoothed), where it is smoothed.
    pub unsmoothed: Vec<Option<Tensor>>,
    /// `[batch, classes]` of the unmasked images; `None` where the model has no head.
    pub logits: Option<Tensor>,
    /// `[batch, features]` of the unmasked images, after the final norm.
    pub class_token: Tensor,
}

/// Explains a batch by all `explainers` for all `targets`, each image alone: one forward pass, and one backward pass a
/// target.
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
    let explain = |explainer: &dyn Explainer, pass: &Pass<'_>, _| explainer.detailed(pass);
    each(explainers, vit, images, targets, explain).map(Explanations::from)
}

/// The same for frames of videos, each with what the frames before of its video have left.
///
/// # Shapes
/// - `images`: `[batch, 3, height, width]`, normalized for `vit`
///
/// # Errors
/// As [`Explainer::explain`], and [`Error::Shape`] where `streams` are not those of `images`. Some frames may be remembered
/// then; see [`Streams::attempt`].
pub fn follow_all(
    explainers: &[Box<dyn Explainer>],
    vit: &Vit,
    images: &Tensor,
    targets: &[Target],
    streams: &mut Streams<'_>,
) -> Result<Explanations> {
    let n_maps = explainers.len() * targets.len();
    let follow = |explainer: &dyn Explainer, pass: &Pass<'_>, map_idx| {
        explainer.follow(pass, &mut streams.of_map(map_idx, n_maps))
    };
    each(explainers, vit, images, targets, follow).map(Explanations::from)
}

/// What was found for each explainer and target, the logits and the class tokens.
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

/// Lets all `explainers` [rehearse](Explainer::rehearse) for all `targets`, in the order of [`Explanations`].
///
/// # Errors
/// As [`explain_all`].
pub fn rehearse_all(
    explainers: &[Box<dyn Explainer>],
    vit: &Vit,
    images: &Tensor,
    targets: &[Target],
) -> Result<Vec<Option<Tensor>>> {
    let rehearse = |explainer: &dyn Explainer, pass: &Pass<'_>, _| explainer.rehearse(pass);
    Ok(each(explainers, vit, images, targets, rehearse)?.0)
}

/// What `ask` returns for each explainer and target, which are counted in the order of [`Explanations`].
fn each<T>(
    explainers: &[Box<dyn Explainer>],
    vit: &Vit,
    images: &Tensor,
    targets: &[Target],
    mut ask: impl FnMut(&dyn Explainer, &Pass<'_>, usize) -> Result<T>,
) -> Result<Found<T>> {
    for explainer in explainers {
        for target in targets {
            target.check_for(explainer.name(), explainer.explains_classes())?;
        }
    }
    let needs = explainers.iter().map(|explainer| explainer.needs(vit));
    let forward = Forward::run(vit, images, needs.fold(Needs::default(), Needs::and))?;
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
    /// Fails where a method that explains the whole answer is asked for a class.
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

/// An explainer that is its own options, read from a table.
trait Options: Explainer {
    /// Fails where an option is out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Attention of all blocks, in order.
fn attention_sites(vit: &Vit) -> impl DoubleEndedIterator<Item = Site> + ExactSizeIterator + use<> {
    (0..vit.n_blocks()).map(Site::Attention)
}

/// The last block.
fn last_block(vit: &Vit) -> Result<usize> {
    vit.n_blocks().checked_sub(1).ok_or_else(no_blocks)
}

fn no_blocks() -> Error {
    Error::Model("the model has no blocks, so there is nothing to explain".into())
}

/// The rows of the class token's query.
///
/// # Shapes
/// - `attn`: `[batch, heads, tokens, tokens]`
/// - result: `[batch, heads, tokens]`
fn class_row(attn: &Tensor) -> candle_core::Result<Tensor> {
    attn.narrow(2, 0, 1)?.squeeze(2)?.contiguous()
}
