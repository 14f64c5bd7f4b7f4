//! The work of the stages patchify, explain and composite: one function each, without threads or channels.
//!
//! A frame is [`Decoded`], then [`Patchified`], [`Explained`] and [`Composited`].
//! Each is made from the one before, so a stage cannot be skipped.
//! A frame that cannot be explained is no reason to end a video: it is logged, and passes without an explanation.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::explain::{Explainer, Explanation, Target};
use crate::frame::placement::Placement;
use crate::frame::resize::Resizer;
use crate::frame::{Frame, FrameSize};
use crate::models::Model;
use crate::overlay::{Heat, Overlay, Range};
use crate::sidecar;

/// What the explain stage works with, besides the frames.
pub struct View {
    /// The model that looks at the frames.
    pub model: Arc<Model>,
    /// The method that says what it looked at.
    pub explainer: Box<dyn Explainer>,
    /// The class that is explained.
    pub target: Target,
    /// How the method's attribution becomes color.
    pub range: Range,
}

/// A frame as the source gave it.
pub struct Decoded {
    /// The frame itself.
    pub frame: Frame,
    /// True for a frame that goes through the model, false for one between two of them.
    pub due: bool,
}

/// What is known about a frame's explanation.
pub enum Turn<T> {
    /// The frame goes through the model, as `T`.
    Due(T),
    /// It shows the explanation of an earlier frame.
    Between,
    /// It was due, but failed.
    Missed,
}

/// A frame as the model wants to see it.
pub struct Image {
    /// RGB at the model's size, row by row.
    pub rgb: Vec<u8>,
    /// Where the image lies in the frame.
    pub placement: Placement,
}

/// A frame beside its image for the model.
pub struct Patchified {
    /// The frame itself.
    pub frame: Frame,
    /// Its image, if it is its turn.
    pub turn: Turn<Image>,
}

/// A frame beside the explanation that it shows.
pub struct Explained {
    /// The frame itself.
    pub frame: Frame,
    /// Its own explanation, or an earlier frame's; `None` where explaining failed.
    pub finding: Option<Arc<Finding>>,
}

/// A frame with its explanation drawn on it.
pub struct Composited {
    /// The frame as it is encoded.
    pub frame: Frame,
    /// What is drawn on it.
    pub finding: Option<Arc<Finding>>,
}

/// A class and how sure the model is of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Index of the logit.
    pub index: usize,
    /// Its name, where the model has names.
    pub label: Option<String>,
    /// Softmax of the logit, in 0–1.
    pub probability: f32,
}

/// What the explainer found on one frame.
pub struct Finding {
    /// The frame that was explained.
    pub seq: u64,
    /// Name of the method.
    pub method: &'static str,
    /// How the attribution becomes color.
    pub range: Range,
    /// Rows and columns of the patch grid.
    pub grid: (usize, usize),
    /// Raw scores of the patches, row by row.
    pub attribution: Vec<f32>,
    /// Where the patch grid lies in the frame.
    pub placement: Placement,
    /// The class that is explained; `None` where the model has no head.
    pub target: Option<Class>,
    /// The most probable class; `None` where the model has no head.
    pub predicted: Option<Class>,
}

/// Cuts the model's image out of a frame whose turn it is.
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

/// Runs model and explainer over all images of `inputs` at once.
///
/// `last` is the explanation that stays on screen, from the call before to the next one.
/// Where the batch fails, its images are tried one by one, so that only the bad ones stay unexplained.
pub fn explain(
    inputs: Vec<Patchified>,
    view: &View,
    last: &mut Option<Arc<Finding>>,
) -> Vec<Explained> {
    let (mut images, mut seqs) = (Vec::new(), Vec::new());
    let waiting: Vec<(Frame, Turn<Placement>)> = inputs
        .into_iter()
        .map(|Patchified { frame, turn }| {
            let turn = match turn {
                Turn::Due(Image { rgb, placement }) => {
                    images.push(rgb);
                    seqs.push(frame.seq);
                    Turn::Due(placement)
                }
                Turn::Between => Turn::Between,
                Turn::Missed => Turn::Missed,
            };
            (frame, turn)
        })
        .collect();
    let mut scores = view.scores(&images, &seqs).into_iter();
    waiting
        .into_iter()
        .map(|(frame, turn)| {
            *last = match turn {
                Turn::Due(placement) => scores
                    .next()
                    .flatten()
                    .map(|scores| Arc::new(view.finding(frame.seq, scores, placement))),
                // A grid placed in a frame of another size would lie in the wrong place.
                Turn::Between => last
                    .take()
                    .filter(|finding| finding.placement.frame == frame.size()),
                // An explanation older than the user asked for would pass for a new one.
                Turn::Missed => None,
            };
            Explained {
                finding: last.clone(),
                frame,
            }
        })
        .collect()
}

/// Draws the explanation and the class over the frame.
///
/// An explanation that does not fit the frame is left out.
///
/// # Errors
/// Fails where the frame's memory cannot be written.
pub fn composite(input: Explained, overlay: &Overlay) -> Result<Composited> {
    let Explained { frame, finding } = input;
    let finding = finding.filter(|finding| match finding.heat().check(frame.size()) {
        Ok(()) => true,
        Err(error) => {
            warn_unexplained(frame.seq, &error);
            false
        }
    });
    let heat = finding.as_deref().map(Finding::heat);
    let caption = finding.as_deref().map(Finding::caption).unwrap_or_default();
    let frame = overlay.draw(frame, heat.as_ref(), &caption)?;
    Ok(Composited { frame, finding })
}

/// One image's share of an [`Explanation`], out of the tensors.
struct Scores {
    grid: (usize, usize),
    attribution: Vec<f32>,
    target: Option<Class>,
    predicted: Option<Class>,
}

impl View {
    /// Explains one gray image, to find out before a run what would fail on every frame of it.
    ///
    /// # Errors
    /// Fails where model, method and target do not go together.
    pub fn check(&self) -> Result<()> {
        let FrameSize {
            width_px,
            height_px,
        } = self.model.preprocessor.rule.image_size();
        let gray = vec![128; 3 * width_px * height_px];
        self.try_scores(&[gray]).map(|_| ())
    }

    /// One entry an image; `None` where it cannot be explained.
    fn scores(&self, images: &[Vec<u8>], seqs: &[u64]) -> Vec<Option<Scores>> {
        if images.is_empty() {
            return Vec::new();
        }
        match self.try_scores(images) {
            Ok(scores) => scores.into_iter().map(Some).collect(),
            Err(error) if images.len() == 1 => {
                warn_unexplained(seqs.first().copied().unwrap_or_default(), &error);
                vec![None]
            }
            Err(_) => images
                .chunks(1)
                .zip(seqs.chunks(1))
                .flat_map(|(image, seq)| self.scores(image, seq))
                .collect(),
        }
    }

    fn try_scores(&self, images: &[Vec<u8>]) -> Result<Vec<Scores>> {
        let vit = &self.model.vit;
        let tensor = self.model.images_from_rgb(images)?; // [batch, 3, height, width]
        let Explanation {
            attribution,
            logits,
        } = self.explainer.explain(vit, &tensor, self.target)?;
        let (_, _, height_px, width_px) = tensor.dims4()?;
        let grid @ (rows, columns) = vit.grid(height_px, width_px);
        let expected = [images.len(), rows * columns];
        if attribution.dims() != expected {
            return Err(Error::Shape {
                expected: format!("{expected:?} for the attribution"),
                got: format!("{:?}", attribution.dims()),
            });
        }
        let attribution = attribution.to_vec2::<f32>()?;
        let logits = match logits {
            Some(logits) => logits.to_vec2::<f32>()?.into_iter().map(Some).collect(),
            None => vec![None; attribution.len()],
        };
        attribution
            .into_iter()
            .zip(logits)
            .map(|(attribution, logits)| self.checked_scores(grid, attribution, logits))
            .collect()
    }

    fn checked_scores(
        &self,
        grid: (usize, usize),
        attribution: Vec<f32>,
        logits: Option<Vec<f32>>,
    ) -> Result<Scores> {
        let numbers = attribution.iter().chain(logits.iter().flatten());
        if let Some(number) = numbers.into_iter().find(|number| !number.is_finite()) {
            return Err(Error::Model(format!(
                "method {:?} computed {number}",
                self.explainer.name()
            )));
        }
        let Some(probabilities) = logits.map(|logits| softmax(&logits)) else {
            return Ok(Scores {
                grid,
                attribution,
                target: None,
                predicted: None,
            });
        };
        let predicted = argmax(&probabilities).and_then(|index| self.class(&probabilities, index));
        let target = match self.target {
            Target::Predicted => predicted.clone(),
            Target::Class(index) => Some(self.class(&probabilities, index).ok_or_else(|| {
                Error::Config(format!(
                    "target is class {index}, the model has {} classes",
                    probabilities.len()
                ))
            })?),
        };
        Ok(Scores {
            grid,
            attribution,
            target,
            predicted,
        })
    }

    fn class(&self, probabilities: &[f32], index: usize) -> Option<Class> {
        Some(Class {
            index,
            label: self.model.vit.config().labels.get(index).cloned(),
            probability: *probabilities.get(index)?,
        })
    }

    fn finding(&self, seq: u64, scores: Scores, placement: Placement) -> Finding {
        Finding {
            seq,
            method: self.explainer.name(),
            range: self.range,
            grid: scores.grid,
            attribution: scores.attribution,
            placement,
            target: scores.target,
            predicted: scores.predicted,
        }
    }
}

impl Finding {
    /// The attribution as the overlay draws it.
    pub fn heat(&self) -> Heat<'_> {
        Heat {
            attribution: &self.attribution,
            grid: self.grid,
            placement: &self.placement,
            range: self.range,
        }
    }

    /// The class that is explained and, if it is another one, the predicted class: `cat 12% (predicted dog 80%)`.
    ///
    /// Empty where the model has no head.
    pub fn caption(&self) -> String {
        match (&self.target, &self.predicted) {
            (Some(target), Some(predicted)) if target.index != predicted.index => {
                format!("{target} (predicted {predicted})")
            }
            (Some(target), _) => target.to_string(),
            (None, _) => String::new(),
        }
    }

    /// Mean of a mask's keep values, in 0–1; `None` for attributions that are not masks.
    pub fn kept(&self) -> Option<f32> {
        let n_patches = self.attribution.len() as f32;
        (self.range == Range::Unit).then(|| self.attribution.iter().sum::<f32>() / n_patches)
    }
}

impl Composited {
    /// The frame's line in the sidecar.
    pub fn record(&self) -> sidecar::Record {
        let own = self.finding.as_deref().filter(|_| self.explained());
        let class = |class: &Class| sidecar::Class {
            index: class.index,
            label: class.label.clone(),
            probability: sidecar::rounded(class.probability),
        };
        sidecar::Record {
            seq: self.frame.seq,
            pts: self.frame.pts.0,
            duration: self
                .frame
                .duration
                .and_then(|duration| u64::try_from(duration.as_nanos()).ok()),
            explained: own.is_some(),
            shows: self.finding.as_deref().map(|finding| finding.seq),
            method: own.map(|finding| finding.method.to_owned()),
            class: own.and_then(|finding| finding.target.as_ref().map(class)),
            predicted: own.and_then(|finding| finding.predicted.as_ref().map(class)),
            kept: own.and_then(Finding::kept).map(sidecar::rounded),
            grid: own.map(|finding| finding.grid),
            attribution: own.map(|finding| {
                let attribution = finding.attribution.iter().copied();
                attribution.map(sidecar::rounded).collect()
            }),
        }
    }

    /// True where the frame shows its own explanation, and not an earlier frame's or none.
    pub fn explained(&self) -> bool {
        self.finding
            .as_deref()
            .is_some_and(|finding| finding.seq == self.frame.seq)
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = 100.0 * self.probability;
        match &self.label {
            Some(label) => write!(f, "{label} {percent:.0}%"),
            None => write!(f, "class {} {percent:.0}%", self.index),
        }
    }
}

fn warn_unexplained(seq: u64, error: &Error) {
    tracing::warn!(frame = seq, "frame stays unexplained: {error}");
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The first index of the largest value.
fn argmax(values: &[f32]) -> Option<usize> {
    (0..values.len())
        .rev()
        .max_by(|&a, &b| values[a].total_cmp(&values[b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_of_large_logits_stays_finite_and_sums_to_one() {
        let probabilities = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(vec![0.5, 0.5, 0.0], probabilities);
    }

    #[test]
    fn the_first_of_equal_largest_values_wins() {
        assert_eq!(Some(1), argmax(&[0.1, 0.4, 0.4, 0.1]));
        assert_eq!(None, argmax(&[]));
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
