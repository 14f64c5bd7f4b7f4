//! The work of the patchify, explain and composite stages: one function each, without threads or channels.
//!
//! A frame is [`Decoded`], then [`Patchified`], [`Explained`] and [`Composited`]. Each type is made from the previous
//! one, so a stage cannot be skipped.
//!
//! A frame that cannot be explained does not end a video: the failure is logged, and the frame passes unexplained.

use std::sync::Arc;

use candle_core::Tensor;

use super::compositor::Compositor;
use crate::overlay::{Heat, Range, script};
use crate::sidecar;
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::{
    Explainer, Explanations, Reuse, StreamMemory, Streams, Target, follow_all, rehearse_all,
};
use vitscope_core::frame::placement::Placement;
use vitscope_core::frame::resize::Resizer;
use vitscope_core::frame::scene::Thumbnail;
use vitscope_core::frame::{Frame, FrameSize};
use vitscope_core::models::Model;
use vitscope_core::request::Request;
use vitscope_core::vit::{Link, Stop};

/// Maximum number of classes in a finding.
pub const LIKELIEST: usize = 5;

/// Minimum probability at which an independently scored class applies.
const APPLIES: f32 = 0.5;

/// Model, methods and targets of the explain stage.
pub struct View {
    /// Model that classifies the frames.
    pub model: Arc<Model>,
    /// Explanation methods.
    pub explainers: Vec<Box<dyn Explainer>>,
    /// Classes that each method explains.
    pub targets: Vec<Target>,
    /// How much is reused from one frame of a video to the next; `None` for nothing.
    pub reuse: Option<Reuse>,
}

/// A frame as delivered by the source.
pub struct Decoded {
    /// The frame itself.
    pub frame: Frame,
    /// Whether the frame goes through the model instead of repeating an earlier explanation.
    pub due: bool,
}

/// State of a frame's explanation.
pub enum Turn<T> {
    /// The frame goes through the model as `T`.
    Due(T),
    /// The frame shows the explanation of an earlier frame.
    Between,
    /// The frame was due, but failed.
    Missed,
}

/// A frame as the model's input.
pub struct Image {
    /// RGB pixels at the model's input size, in row-major order.
    pub rgb: Vec<u8>,
    /// Position of the image within the frame.
    pub placement: Placement,
}

impl Image {
    /// Returns the thumbnail used to detect scene cuts.
    pub fn thumbnail(&self) -> Thumbnail {
        Thumbnail::of_rgb(&self.rgb, self.placement.image.width_px)
    }
}

/// A frame together with its model input.
pub struct Patchified {
    /// The frame itself.
    pub frame: Frame,
    /// Model input of the frame, if the frame is to be explained.
    pub turn: Turn<Image>,
}

/// A frame together with the explanation it shows.
pub struct Explained {
    /// The frame itself.
    pub frame: Frame,
    /// Explanation of this frame or of an earlier one; `None` if explaining failed.
    pub finding: Option<Arc<Finding>>,
}

/// A frame with its explanation drawn on it.
pub struct Composited {
    /// The frame as it is encoded.
    pub frame: Frame,
    /// The explanation drawn on the frame.
    pub finding: Option<Arc<Finding>>,
}

/// A class and its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Index of the logit.
    pub index: usize,
    /// Name of the class, if the model has class names.
    pub label: Option<String>,
    /// Probability that the model's [`Link`] computes from the logit, in 0–1.
    pub probability: f32,
}

/// Reliability of an answer, according to the model's own threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// At or above the threshold.
    Sure,
    /// The probability of the class is below the threshold.
    NotSure,
    /// The probability reaches the threshold, but the frame is unlike the training pictures of that class.
    Unfamiliar,
}

impl Certainty {
    /// Converts a pair of flags: whether the answer is not sure, and whether that is because the frame is unfamiliar.
    pub fn from_flags(not_sure: bool, unfamiliar: bool) -> Self {
        match (not_sure, unfamiliar) {
            (false, _) => Self::Sure,
            (true, false) => Self::NotSure,
            (true, true) => Self::Unfamiliar,
        }
    }

    /// Returns whether the answer is below the threshold, for either reason.
    pub fn is_not_sure(self) -> bool {
        self != Self::Sure
    }

    /// Returns whether the answer is below the threshold because the frame is unlike the training pictures.
    pub fn is_unfamiliar(self) -> bool {
        self == Self::Unfamiliar
    }

    /// Returns the label of an unreliable answer.
    fn doubt(self) -> Option<&'static str> {
        match self {
            Self::Sure => None,
            Self::NotSure => Some("not sure"),
            Self::Unfamiliar => Some("unfamiliar"),
        }
    }
}

/// The explanation of one frame by all methods.
pub struct Finding {
    /// Number of the explained frame.
    pub seq: u64,
    /// Rows and columns of the patch grid.
    pub grid: (usize, usize),
    /// Position of the patch grid within the frame.
    pub placement: Placement,
    /// The most probable classes, at most [`LIKELIEST`]; empty if the model has no head.
    pub likeliest: Vec<Class>,
    /// Whether exactly one class applies, or any number of them.
    pub link: Link,
    /// Reliability of the answer; `None` if the model has no threshold.
    pub certainty: Option<Certainty>,
    /// Maps of the first method, one per target, followed by those of the second method, and so on.
    pub maps: Vec<Map>,
}

/// The map of one method for one target.
#[derive(Clone, Debug)]
pub struct Map {
    /// Name of the method.
    pub method: &'static str,
    /// How the attribution is mapped to color.
    pub range: Range,
    /// Raw scores of the patches, in row-major order.
    pub attribution: Vec<f32>,
    /// Scores that each of the method's parts gives each patch, if requested; see
    /// [`Detailed::votes`](vitscope_core::explain::Detailed::votes).
    pub votes: Option<Vec<Vec<f32>>>,
    /// Attribution of this frame alone, if the displayed one is smoothed; see
    /// [`Detailed::unsmoothed`](vitscope_core::explain::Detailed::unsmoothed).
    pub unsmoothed: Option<Vec<f32>>,
    /// The explained class; `None` if the model has no head.
    pub target: Option<Class>,
    /// The class that the target is contrasted with.
    pub against: Option<Class>,
}

/// Extracts the model's input from a frame that is to be explained.
pub fn patchify(input: Decoded, resizer: &mut Resizer) -> Patchified {
    let Decoded { frame, due } = input;
    let turn = if due {
        match resizer.rgb_from_frame(&frame) {
            Ok((rgb, placement)) => Turn::Due(Image { rgb, placement }),
            Err(error) => {
                warn_unexplained(frame.seq, &error);
                Turn::Missed
            }
        }
    } else {
        Turn::Between
    };
    Patchified { frame, turn }
}

/// State that a stream of frames carries from one batch to the next.
#[derive(Default)]
pub struct Past {
    /// Explanation that stays on screen.
    pub last: Option<Arc<Finding>>,
    /// What the methods remember; `None` if each frame is an independent picture.
    pub memory: Option<StreamMemory>,
}

/// Runs the model and the explainers on all images of `inputs` at once; see [`View::findings`].
///
/// Once `stop` is requested, frames stay unexplained.
pub fn explain(
    inputs: Vec<Patchified>,
    view: &View,
    Past { last, memory }: &mut Past,
    stop: &Stop,
) -> Vec<Explained> {
    let mut images = Vec::new();
    let waiting: Vec<(Frame, Turn<()>)> = inputs
        .into_iter()
        .map(|Patchified { frame, turn }| {
            let turn = match turn {
                Turn::Due(image) => {
                    images.push((frame.seq, image));
                    Turn::Due(())
                }
                Turn::Between => Turn::Between,
                Turn::Missed => Turn::Missed,
            };
            (frame, turn)
        })
        .collect();
    let mut of_pictures = Vec::new();
    let mut streams = match memory {
        Some(memory) => Streams::one(memory, images.len()),
        None => {
            of_pictures.resize_with(images.len(), StreamMemory::default);
            Streams::several(
                of_pictures.iter_mut().collect(),
                (0..images.len()).collect(),
            )
        }
    };
    let mut findings = view.findings(images, &mut streams, stop).into_iter();
    waiting
        .into_iter()
        .map(|(frame, turn)| {
            *last = match turn {
                Turn::Due(()) => findings.next().flatten(),
                // The grid does not match the geometry of a frame of another size.
                Turn::Between => last
                    .take()
                    .filter(|finding| finding.placement.frame == frame.size()),
                // An explanation older than requested would pass for a new one.
                Turn::Missed => None,
            };
            Explained {
                finding: last.clone(),
                frame,
            }
        })
        .collect()
}

/// Draws the explanations and their classes over the frame, leaving out an explanation that does not fit the frame.
///
/// # Errors
/// Fails if the frame's memory cannot be written.
pub fn composite(input: Explained, compositor: &Compositor) -> Result<Composited> {
    let Explained { frame, finding } = input;
    let finding = finding.filter(|finding| {
        let checked = finding.check(frame.size());
        if let Err(error) = &checked {
            warn_unexplained(frame.seq, error);
        }
        checked.is_ok()
    });
    let frame = compositor.draw(frame, finding.as_deref(), &[])?;
    Ok(Composited { frame, finding })
}

/// Votes and unsmoothed map.
type Details = (Option<Vec<Vec<f32>>>, Option<Vec<f32>>);

/// One image's share of [`Explanations`], copied out of the tensors.
pub(super) struct Scores {
    grid: (usize, usize),
    likeliest: Vec<Class>,
    certainty: Option<Certainty>,
    maps: Vec<Map>,
}

impl View {
    /// Opens the model of a request together with the requested methods and classes.
    ///
    /// # Errors
    /// As [`Request::open_model`] and [`of`](Self::of).
    pub fn open(request: &Request) -> Result<Self> {
        Self::of(request, Arc::new(request.open_model()?))
    }

    /// Like [`open`](Self::open), with a model that is already open.
    ///
    /// # Errors
    /// As [`Request::explainers`], [`Request::targets`] and [`Request::reuse`].
    pub fn of(request: &Request, model: Arc<Model>) -> Result<Self> {
        let explainers = request.explainers(&model)?;
        Ok(Self {
            targets: request.targets(&model)?,
            reuse: request.reuse(&model, &explainers)?,
            explainers,
            model,
        })
    }

    /// Explains one gray image, to detect before a run any error that would occur on every frame.
    ///
    /// # Errors
    /// Fails if the model, methods and targets are incompatible.
    pub fn check(&self) -> Result<()> {
        self.check_until(&Stop::default())
    }

    /// Like [`check`](Self::check), but also fails once `stop` is requested.
    pub(super) fn check_until(&self, stop: &Stop) -> Result<()> {
        if self.n_maps() == 0 {
            return Err(Error::Config("no method or no target is selected".into()));
        }
        let images = self.model.gray_image()?;
        let vit = self.model.vit.under(stop);
        let rehearsed = rehearse_all(&self.explainers, &vit, &images, &self.targets)?;
        let grid = self.grid(&images)?;
        for (attribution, (explainer, _)) in rehearsed.into_iter().zip(self.asked()) {
            if let Some(attribution) = attribution {
                checked_attribution(explainer.name(), &attribution, 1, grid)?;
            }
        }
        Ok(())
    }

    /// Returns the method and target of each map, in map order.
    fn asked(&self) -> impl Iterator<Item = (&dyn Explainer, Target)> {
        self.explainers.iter().flat_map(|explainer| {
            let targets = self.targets.iter();
            targets.map(move |&target| (&**explainer, target))
        })
    }

    /// Returns the number of rows and columns of the patch grid of `images`.
    fn grid(&self, images: &Tensor) -> Result<(usize, usize)> {
        let (_, _, height_px, width_px) = images.dims4()?;
        Ok(self.model.vit.grid(height_px, width_px))
    }

    /// Returns the number of maps per frame: one per method and target.
    pub fn n_maps(&self) -> usize {
        self.explainers.len() * self.targets.len()
    }

    /// Runs the model and the explainers on a batch of images, each given with its frame number.
    ///
    /// Returns one entry per image: `None` if the image cannot be explained, and `None` for all images once `stop` is
    /// requested. If the batch fails, its images are retried one by one. `streams` are the streams of the images.
    pub fn findings(
        &self,
        images: Vec<(u64, Image)>,
        streams: &mut Streams<'_>,
        stop: &Stop,
    ) -> Vec<Option<Arc<Finding>>> {
        let (mut pictures, mut seqs, mut placements) = (Vec::new(), Vec::new(), Vec::new());
        for (seq, Image { rgb, placement }) in images {
            pictures.push(rgb);
            seqs.push(seq);
            placements.push(placement);
        }
        let scores = self.scores(&pictures, &seqs, streams, stop);
        let of_images = scores.into_iter().zip(seqs.iter().zip(placements));
        of_images
            .map(|(scores, (&seq, placement))| {
                scores.map(|scores| Arc::new(self.finding(seq, scores, placement)))
            })
            .collect()
    }

    /// Returns one entry per image: `None` if the image cannot be explained.
    fn scores(
        &self,
        images: &[Vec<u8>],
        seqs: &[u64],
        streams: &mut Streams<'_>,
        stop: &Stop,
    ) -> Vec<Option<Scores>> {
        if images.is_empty() {
            return Vec::new();
        }
        match streams.attempt(|streams| self.try_scores(images, streams, stop)) {
            Ok(scores) => scores.into_iter().map(Some).collect(),
            Err(_) if stop.is_requested() => images.iter().map(|_| None).collect(),
            Err(error) if images.len() == 1 => {
                warn_unexplained(seqs.first().copied().unwrap_or_default(), &error);
                vec![None]
            }
            Err(_) => (images.chunks(1).zip(seqs.chunks(1)).enumerate())
                .flat_map(
                    |(image_idx, (image, seq))| match streams.of_image(image_idx) {
                        Ok(mut stream) => self.scores(image, seq, &mut stream, stop),
                        Err(_) => vec![None],
                    },
                )
                .collect(),
        }
    }

    pub(super) fn try_scores(
        &self,
        images: &[Vec<u8>],
        streams: &mut Streams<'_>,
        stop: &Stop,
    ) -> Result<Vec<Scores>> {
        let vit = self.model.vit.under(stop);
        let tensor = self.model.images_from_rgb(images)?; // [batch, 3, height, width]
        let (_, _, _, width_px) = tensor.dims4()?;
        let thumbnails = images.iter().map(|rgb| Thumbnail::of_rgb(rgb, width_px));
        streams.forget_at_cuts(thumbnails.collect());
        streams.reusing(self.reuse);
        let Explanations {
            attributions,
            votes,
            unsmoothed,
            logits,
            class_token,
        } = follow_all(&self.explainers, &vit, &tensor, &self.targets, streams)?;
        let grid = self.grid(&tensor)?;
        let attributions = attributions
            .iter()
            .zip(self.asked())
            .map(|(attribution, (explainer, _))| {
                checked_attribution(explainer.name(), attribution, images.len(), grid)
            })
            .collect::<Result<Vec<_>>>()?;
        let votes = votes
            .into_iter()
            .map(|votes| {
                votes
                    .map(|votes| votes.transpose(0, 1)?.to_vec3())
                    .transpose()
            })
            .collect::<candle_core::Result<Vec<Option<Vec<Vec<Vec<f32>>>>>>>()?; // [maps][batch][parts][patches]
        let unsmoothed = unsmoothed
            .into_iter()
            .map(|map| map.map(|map| map.to_vec2()).transpose())
            .collect::<candle_core::Result<Vec<Option<Vec<Vec<f32>>>>>>()?; // [maps][batch][patches]
        let logits = match logits {
            Some(logits) => logits.to_vec2::<f32>()?.into_iter().map(Some).collect(),
            None => vec![None; images.len()],
        };
        let scores = logits.into_iter().enumerate();
        let mut scores = scores
            .map(|(image_idx, logits)| {
                let details = votes.iter().zip(&unsmoothed);
                let of_image = attributions.iter().zip(details).map(|(maps, details)| {
                    let (votes, unsmoothed) = details;
                    let votes = votes.as_ref().map(|votes| votes[image_idx].clone());
                    let unsmoothed = unsmoothed.as_ref().map(|maps| maps[image_idx].clone());
                    (maps[image_idx].clone(), (votes, unsmoothed))
                });
                self.checked_scores(grid, of_image, logits)
            })
            .collect::<Result<Vec<_>>>()?;
        self.judge(&class_token, &mut scores)?;
        Ok(scores)
    }

    /// Marks the answers that are not sure: those whose trust, or else probability, is below the model's threshold.
    fn judge(&self, class_token: &Tensor, scores: &mut [Scores]) -> Result<()> {
        let Some(threshold) = self.model.sure_from() else {
            return Ok(());
        };
        let named = scores.iter().filter_map(|scores| scores.likeliest.first());
        let named: Vec<(usize, f32)> = named.map(|best| (best.index, best.probability)).collect();
        if named.len() != scores.len() {
            return Ok(());
        }
        let trust: Vec<f32> = match &self.model.familiarity {
            Some(familiarity) => familiarity.trust(class_token, &named)?,
            None => named.iter().map(|(_, probability)| *probability).collect(),
        };
        for ((scores, trust), (_, probability)) in scores.iter_mut().zip(trust).zip(named) {
            let (not_sure, is_likely) = (trust < threshold, probability >= threshold);
            scores.certainty = Some(Certainty::from_flags(not_sure, is_likely));
        }
        Ok(())
    }

    /// Builds the scores of one image; attributions and their details come in the order of [`asked`](Self::asked).
    fn checked_scores(
        &self,
        grid: (usize, usize),
        attributions: impl Iterator<Item = (Vec<f32>, Details)>,
        logits: Option<Vec<f32>>,
    ) -> Result<Scores> {
        let is_bad = |number: &f32| !number.is_finite();
        if let Some(number) = logits.iter().flatten().copied().find(is_bad) {
            return Err(Error::Model(format!("the model computed {number}")));
        }
        let link = self.model.vit.config().link();
        let probabilities = logits.map(|logits| link.probabilities(&logits));
        let class = |index| self.class(probabilities.as_deref(), index);
        let indices = likeliest(probabilities.as_deref().unwrap_or_default());
        let likeliest = (indices.into_iter())
            .filter_map(|index| class(Some(index)).transpose())
            .collect::<Result<Vec<_>>>()?;
        let maps = self
            .asked()
            .zip(attributions)
            .map(
                |((explainer, target), (attribution, (votes, unsmoothed)))| {
                    let (target, against) = match target {
                        Target::Predicted => (likeliest.first().cloned(), None),
                        Target::Class(index) => (class(Some(index))?, None),
                        Target::Contrast(index, other) => {
                            (class(Some(index))?, class(Some(other))?)
                        }
                    };
                    Ok(Map {
                        method: explainer.name(),
                        range: explainer.range(),
                        attribution,
                        votes,
                        unsmoothed,
                        target,
                        against,
                    })
                },
            )
            .collect::<Result<_>>()?;
        Ok(Scores {
            grid,
            likeliest,
            certainty: None,
            maps,
        })
    }

    /// Returns the class of this index; `None` if the model has no head.
    fn class(&self, probabilities: Option<&[f32]>, index: Option<usize>) -> Result<Option<Class>> {
        let (Some(probabilities), Some(index)) = (probabilities, index) else {
            return Ok(None);
        };
        let Some(&probability) = probabilities.get(index) else {
            return Err(Error::Config(format!(
                "target is class {index}, but the model has only {} classes",
                probabilities.len()
            )));
        };
        Ok(Some(Class {
            index,
            label: self.model.vit.config().labels.get(index).cloned(),
            probability,
        }))
    }

    pub(super) fn finding(&self, seq: u64, scores: Scores, placement: Placement) -> Finding {
        let Scores {
            grid,
            likeliest,
            certainty,
            maps,
        } = scores;
        Finding {
            seq,
            grid,
            placement,
            link: self.model.vit.config().link(),
            certainty,
            likeliest,
            maps,
        }
    }
}

impl Finding {
    /// Returns the most probable class; `None` if the model has no head.
    pub fn predicted(&self) -> Option<&Class> {
        self.likeliest.first()
    }

    /// Returns whether the answer is below the model's threshold; `None` if the model has no threshold.
    pub fn not_sure(&self) -> Option<bool> {
        self.certainty.map(Certainty::is_not_sure)
    }

    /// Returns whether the answer is below the threshold because the frame is unlike the training pictures; `None` if
    /// the model has no threshold.
    pub fn unfamiliar(&self) -> Option<bool> {
        self.certainty.map(Certainty::is_unfamiliar)
    }

    /// Returns the classes that apply: the most probable one and, if any number of classes may apply, the others with a
    /// probability of at least one half.
    pub fn applying(&self) -> &[Class] {
        let others = self.likeliest.iter().skip(1);
        let n_others = match self.link {
            Link::Softmax => 0,
            Link::Sigmoid => others
                .take_while(|class| class.probability >= APPLIES)
                .count(),
        };
        &self.likeliest[..self.likeliest.len().min(1 + n_others)]
    }

    /// Adds the finding to the record of the explained frame.
    pub fn explain(&self, record: &mut sidecar::Record) {
        let rounded = |scores: &Vec<f32>| scores.iter().copied().map(sidecar::rounded).collect();
        let map = |map: &Map| sidecar::Map {
            method: map.method.to_owned(),
            class: map.target.as_ref().map(Class::record),
            against: map.against.as_ref().map(Class::record),
            kept: map.kept().map(sidecar::rounded),
            constant: map.is_constant(),
            attribution: rounded(&map.attribution),
            unsmoothed: map.unsmoothed.as_ref().map(rounded),
            votes: (map.votes.as_ref()).map(|votes| votes.iter().map(rounded).collect()),
        };
        record.explained = true;
        record.predicted = self.predicted().map(Class::record);
        record.applying = match self.link {
            Link::Softmax => None,
            Link::Sigmoid => Some(self.applying().iter().map(Class::record).collect()),
        };
        record.not_sure = self.not_sure();
        record.unfamiliar = self.unfamiliar();
        record.grid = Some(self.grid);
        record.maps = Some(self.maps.iter().map(map).collect());
    }

    /// Checks that all maps can be drawn on a frame of `size`.
    ///
    /// # Errors
    /// As [`Heat::check`].
    pub fn check(&self, size: FrameSize) -> Result<()> {
        let mut maps = self.maps.iter();
        maps.try_for_each(|map| self.heat(map).check(size))
    }

    /// Converts one of the maps to the form that the overlay draws.
    pub fn heat<'a>(&'a self, map: &'a Map) -> Heat<'a> {
        Heat {
            attribution: &map.attribution,
            grid: self.grid,
            placement: &self.placement,
            range: map.range,
        }
    }

    /// Returns a map's caption: its class and, if different, the predicted one, as in `cat 12% (predicted dog 80%)`.
    ///
    /// The method comes first if there are several maps. If several classes apply, all of them are named. A map without
    /// differences is marked as constant. If the model is not sure, the caption says so, as in `not sure (cat 21%)` and
    /// `cat 12% (not sure, dog 21%)`. If only the frame is unfamiliar, it reads `unfamiliar (cat 98%)`. The caption is
    /// empty for the only map of a model without a head.
    pub fn caption(&self, map: &Map) -> String {
        let doubt = self.certainty.and_then(Certainty::doubt);
        let class = match (&map.target, &map.against, self.predicted()) {
            (Some(target), Some(against), _) => {
                let doubt = doubt.map_or_else(String::new, |doubt| format!(" ({doubt})"));
                format!("{target} against {against}{doubt}")
            }
            (Some(target), None, Some(predicted)) if target.index != predicted.index => {
                let standing =
                    doubt.map_or_else(|| "predicted".into(), |doubt| format!("{doubt},"));
                format!("{target} ({standing} {})", listed(self.applying()))
            }
            (Some(_), None, Some(_)) => self.model_answer(),
            (Some(target), None, None) => target.to_string(),
            (None, _, _) => String::new(),
        };
        let class = with_constancy(class, map.is_constant());
        match self.maps.as_slice() {
            [_] => class,
            _ if class.is_empty() => map.method.to_owned(),
            _ => format!("{}: {class}", map.method),
        }
    }

    /// Returns the model's answer for the frame; empty if the model has no head.
    pub fn answer(&self) -> String {
        match self.maps.as_slice() {
            [map] => self.caption(map),
            _ => self.model_answer(),
        }
    }

    /// Returns the applying classes as the model's answer; empty if the model has no head.
    fn model_answer(&self) -> String {
        match self.applying() {
            [] => String::new(),
            [class] => class.answer(self.certainty),
            classes => listed(classes),
        }
    }
}

fn listed(classes: &[Class]) -> String {
    let classes: Vec<String> = classes.iter().map(Class::to_string).collect();
    classes.join(", ")
}

impl Class {
    /// Formats the class as the model's answer: `cat 80%`, or `not sure (cat 21%)` or `unfamiliar (cat 98%)` below the
    /// model's threshold.
    pub fn answer(&self, certainty: Option<Certainty>) -> String {
        match certainty.and_then(Certainty::doubt) {
            Some(doubt) => format!("{doubt} ({self})"),
            None => self.to_string(),
        }
    }

    /// Converts the class to its sidecar form.
    pub fn record(&self) -> sidecar::Class {
        sidecar::Class {
            index: self.index,
            label: self.label.clone(),
            probability: sidecar::rounded(self.probability),
        }
    }
}

impl Map {
    /// Returns whether all patches have the same score, which makes the map meaningless. A mask may keep all patches.
    pub fn is_constant(&self) -> bool {
        self.range.is_constant(&self.attribution)
    }

    /// Returns the mean of a mask's keep values, in 0–1; `None` for attributions that are not masks.
    pub fn kept(&self) -> Option<f32> {
        let n_patches = self.attribution.len() as f32;
        (self.range == Range::Unit).then(|| self.attribution.iter().sum::<f32>() / n_patches)
    }
}

/// Appends a note to `caption` if the map below it is constant.
fn with_constancy(caption: String, is_constant: bool) -> String {
    match (is_constant, caption.as_str()) {
        (false, _) => caption,
        (true, "") => "constant map".to_owned(),
        (true, _) => format!("{caption}, constant map"),
    }
}

impl Composited {
    /// Returns the frame's line in the sidecar.
    pub fn record(&self) -> sidecar::Record {
        let mut record = sidecar::Record {
            seq: self.frame.seq,
            file: None,
            pts: self.frame.pts.0,
            duration: self
                .frame
                .duration
                .and_then(|duration| u64::try_from(duration.as_nanos()).ok()),
            explained: false,
            shows: self.finding.as_deref().map(|finding| finding.seq),
            predicted: None,
            applying: None,
            not_sure: None,
            unfamiliar: None,
            grid: None,
            maps: None,
        };
        if let Some(own) = self.finding.as_deref().filter(|_| self.explained()) {
            own.explain(&mut record);
        }
        record
    }

    /// Returns whether the frame shows its own explanation, not an earlier one or none.
    pub fn explained(&self) -> bool {
        self.finding
            .as_deref()
            .is_some_and(|finding| finding.seq == self.frame.seq)
    }
}

/// Formats the class as drawn, by index if it has no name or if no font covers the letters of its name.
impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = 100.0 * self.probability;
        match self
            .label
            .as_deref()
            .filter(|label| script::can_draw(label))
        {
            Some(label) => write!(f, "{} {percent:.0}%", script::isolated(label)),
            None => write!(f, "class {} {percent:.0}%", self.index),
        }
    }
}

/// Returns the scores of each image after checking that there is one finite number per patch.
fn checked_attribution(
    method: &str,
    attribution: &Tensor,
    n_images: usize,
    (rows, columns): (usize, usize),
) -> Result<Vec<Vec<f32>>> {
    let expected = [n_images, rows * columns];
    if attribution.dims() != expected {
        return Err(Error::Shape {
            expected: format!("{expected:?} for the attribution"),
            got: format!("{:?}", attribution.dims()),
        });
    }
    let scores: Vec<Vec<f32>> = attribution.to_vec2()?;
    let is_bad = |score: &f32| !score.is_finite();
    match scores.iter().flatten().copied().find(is_bad) {
        Some(score) => Err(Error::Model(format!("method {method:?} computed {score}"))),
        None => Ok(scores),
    }
}

fn warn_unexplained(seq: u64, error: &Error) {
    tracing::warn!(frame = seq, "cannot explain the frame: {error}");
}

/// Returns the indices of the largest values in descending order; equal values keep their order.
fn likeliest(values: &[f32]) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    indices.truncate(LIKELIEST);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_largest_values_wins() {
        assert_eq!(vec![1, 2, 0, 3], likeliest(&[0.1, 0.4, 0.4, 0.1]));
        assert_eq!(LIKELIEST, likeliest(&[0.0; 9]).len());
        assert!(likeliest(&[]).is_empty());
    }

    #[test]
    fn a_caption_says_what_is_explained_and_whether_the_model_is_sure() {
        let class = |index, label: &str, probability| Class {
            index,
            label: Some(label.into()),
            probability,
        };
        let (cat, dog) = (class(0, "cat", 0.21), class(1, "dog", 0.12));
        let captions = |target: &Class, against: Option<&Class>, n_maps| {
            [
                None,
                Some(Certainty::Sure),
                Some(Certainty::NotSure),
                Some(Certainty::Unfamiliar),
            ]
            .map(|certainty| {
                let size = vitscope_core::frame::FrameSize {
                    width_px: 8,
                    height_px: 8,
                };
                let rule = vitscope_core::frame::placement::ResizeRule::Stretch(size);
                let map = Map {
                    method: "chefer",
                    range: Range::MinMax,
                    attribution: vec![0.0, 1.0],
                    votes: None,
                    unsmoothed: None,
                    target: Some(target.clone()),
                    against: against.cloned(),
                };
                let finding = Finding {
                    seq: 0,
                    grid: (1, 2),
                    placement: Placement::new(&rule, size).unwrap(),
                    likeliest: vec![cat.clone(), dog.clone()],
                    link: Link::Softmax,
                    certainty,
                    maps: vec![map; n_maps],
                };
                (finding.caption(&finding.maps[0]), finding.answer())
            })
        };
        let check = |target, against, sure: &str, not_sure: &str| {
            let both = |caption: &str| (caption.to_owned(), caption.to_owned());
            let unfamiliar = not_sure.replace("not sure", "unfamiliar");
            let expected = [both(sure), both(sure), both(not_sure), both(&unfamiliar)];
            assert_eq!(captions(target, against, 1), expected);
        };
        check(&cat, None, "cat 21%", "not sure (cat 21%)");
        let (sure, not_sure) = ("dog 12% (predicted cat 21%)", "dog 12% (not sure, cat 21%)");
        check(&dog, None, sure, not_sure);
        let sure = "cat 21% against dog 12%";
        check(&cat, Some(&dog), sure, &format!("{sure} (not sure)"));

        let [_, sure, not_sure, _] = captions(&dog, None, 2);
        let sure_caption = "chefer: dog 12% (predicted cat 21%)".to_owned();
        assert_eq!(sure, (sure_caption, "cat 21%".to_owned()));
        let not_sure_caption = "chefer: dog 12% (not sure, cat 21%)".to_owned();
        assert_eq!(
            not_sure,
            (not_sure_caption, "not sure (cat 21%)".to_owned())
        );
    }

    #[test]
    fn several_classes_that_apply_are_named_and_a_constant_map_is() {
        let class = |index, label: &str, probability| Class {
            index,
            label: Some(label.into()),
            probability,
        };
        let classes = [
            class(2, "cat", 0.91),
            class(0, "dog", 0.5),
            class(1, "bird", 0.49),
        ];
        let size = vitscope_core::frame::FrameSize {
            width_px: 8,
            height_px: 8,
        };
        let rule = vitscope_core::frame::placement::ResizeRule::Stretch(size);
        let finding = |link, target: usize, attribution: [f32; 2]| Finding {
            seq: 0,
            grid: (1, 2),
            placement: Placement::new(&rule, size).unwrap(),
            likeliest: classes.to_vec(),
            link,
            certainty: None,
            maps: vec![Map {
                method: "chefer",
                range: Range::MinMax,
                attribution: attribution.to_vec(),
                votes: None,
                unsmoothed: None,
                target: Some(classes[target].clone()),
                against: None,
            }],
        };
        let check = |link, target, attribution, expected: &str| {
            assert_eq!(finding(link, target, attribution).answer(), expected);
        };
        check(Link::Softmax, 0, [0.0, 1.0], "cat 91%");
        check(Link::Sigmoid, 0, [0.0, 1.0], "cat 91%, dog 50%");
        let other = "bird 49% (predicted cat 91%, dog 50%)";
        check(Link::Sigmoid, 2, [0.0, 1.0], other);
        let constant = "cat 91%, dog 50%, constant map";
        check(Link::Sigmoid, 0, [0.3, 0.3], constant);
    }

    #[test]
    fn a_class_without_a_name_shows_its_index() {
        let class = |label: Option<&str>| Class {
            index: 7,
            label: label.map(str::to_owned),
            probability: 0.126,
        };
        assert_eq!("class 7 13%", class(None).to_string());
        assert_eq!("horse 13%", class(Some("horse")).to_string());
    }
}
