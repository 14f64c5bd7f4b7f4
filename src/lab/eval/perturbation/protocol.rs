//! Perturbation protocols, paper by paper: what is changed, by how much, and which quantity is reported.

use std::fmt;

use super::super::resized;
use super::super::statistics::trapezoid;
use vitscope_core::error::{Error, Result, unknown};

/// Replacement for removed pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Substrate {
    /// Zeros of the normalized image: the mean color of the data set.
    Zeros,
    /// Black.
    Black,
    /// Mean color of the image.
    Mean,
    /// The image, blurred by a Gaussian of this size.
    Blur {
        /// Edge of the kernel.
        kernel_px: usize,
        /// Standard deviation.
        sigma_px: f32,
    },
    /// Uniform noise from −1 to 1 in the normalized image, the same at every point of a curve.
    Noise,
}

/// Amount changed per step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Steps {
    /// As many pixels as a row has, until none are left.
    Rows,
    /// One patch at a time.
    Patches,
    /// Up to these shares of all pixels.
    Shares(&'static [f64]),
    /// This many equal shares of all pixels.
    Equal(usize),
}

/// Class that a protocol observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The class that the model predicts for the whole image.
    Predicted,
    /// The true class.
    Label,
}

/// Quantity reported for the observed class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Probability of the class.
    Probability,
    /// 1 if the model predicts the class, else 0.
    Named,
    /// −ln of its probability, which is KL(one-hot ‖ output), in nats.
    Surprise,
}

/// Which patches or pixels change first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Those with the highest scores.
    Greatest,
    /// Those with the lowest scores.
    Least,
}

/// What is done in the order of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Removes the image.
    Delete,
    /// Restores the image.
    Insert,
}

/// Reduction of a curve to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Trapezoids over the changed share, from 0 to at most 1.
    Trapezoid,
    /// Trapezoids of width 1.
    UnitSteps,
    /// Mean of all points.
    Mean,
}

impl fmt::Display for Substrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::Black => f.write_str("black"),
            Self::Mean => f.write_str("the picture's mean color"),
            Self::Blur {
                kernel_px,
                sigma_px,
            } => write!(
                f,
                "the picture with a Gaussian blur of {kernel_px} px, σ {sigma_px} px"
            ),
            Self::Noise => f.write_str("uniform noise"),
        }
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows => f.write_str("one row's number of pixels at a time"),
            Self::Patches => f.write_str("one patch at a time"),
            Self::Shares(shares) => {
                let shares: Vec<String> = shares.iter().map(ToString::to_string).collect();
                write!(f, "at shares of {}", shares.join(", "))
            }
            Self::Equal(n_steps) => write!(f, "in {n_steps} equal steps"),
        }
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Predicted => "the predicted class",
            Self::Label => "the true class",
        })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probability => "probability",
            Self::Named => "accuracy",
            Self::Surprise => "negative log-likelihood",
        })
    }
}

impl fmt::Display for First {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greatest => "the highest",
            Self::Least => "the lowest",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delete => "deletes",
            Self::Insert => "inserts",
        })
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trapezoid => "area by the trapezoidal rule over the share changed",
            Self::UnitSteps => "area by the trapezoidal rule with unit steps",
            Self::Mean => "mean of all points",
        })
    }
}

/// One curve of a protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Name of the curve.
    pub name: &'static str,
    /// Whether parts are removed or restored.
    pub action: Action,
    /// Which parts change first.
    pub first: First,
    /// Replacement for removed parts.
    pub substrate: Substrate,
    /// Quantity reported for the observed class.
    pub quantity: Quantity,
    /// True if a larger area means a better map.
    pub higher_is_better: bool,
}

impl Run {
    /// Returns true if the other run evaluates the same images.
    pub(super) fn changes_as(&self, other: &Self) -> bool {
        (self.action, self.first, self.substrate) == (other.action, other.first, other.substrate)
    }
}

/// A way of measuring maps, as defined by one paper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Protocol {
    /// Name of the protocol.
    pub name: &'static str,
    /// Amount changed per step.
    pub steps: Steps,
    /// Whether to omit the point before the first step.
    pub skips_start: bool,
    /// Class to observe.
    pub watched: Watched,
    /// Reduction of a curve to a number.
    pub area: Area,
    /// Factor of the areas.
    pub scale: f64,
    /// Curves of the protocol.
    pub runs: &'static [Run],
}

const RISE_BLUR: Substrate = Substrate::Blur {
    kernel_px: 11,
    sigma_px: 5.0,
};
/// Start of GradMask's insertion, and fill of its removal.
pub(crate) const GRADMASK_BLUR: Substrate = Substrate::Blur {
    kernel_px: 15,
    sigma_px: 7.0,
};

const fn deletion(substrate: Substrate) -> Run {
    Run {
        name: "deletion",
        action: Action::Delete,
        first: First::Greatest,
        substrate,
        quantity: Quantity::Probability,
        higher_is_better: false,
    }
}

const fn insertion(substrate: Substrate) -> Run {
    Run {
        name: "insertion",
        action: Action::Insert,
        first: First::Greatest,
        substrate,
        quantity: Quantity::Probability,
        higher_is_better: true,
    }
}

const fn perturbation(
    name: &'static str,
    first: First,
    substrate: Substrate,
    quantity: Quantity,
) -> Run {
    Run {
        name,
        action: Action::Delete,
        first,
        substrate,
        quantity,
        // Surprise has the opposite direction, and removing the least important patches should hurt least.
        higher_is_better: matches!(
            (first, quantity),
            (First::Greatest, Quantity::Surprise)
                | (First::Least, Quantity::Probability | Quantity::Named)
        ),
    }
}

const WHOLE: Protocol = Protocol {
    name: "rise",
    steps: Steps::Rows,
    skips_start: false,
    watched: Watched::Predicted,
    area: Area::Trapezoid,
    scale: 1.0,
    runs: &[deletion(Substrate::Zeros), insertion(RISE_BLUR)],
};

/// As implemented in the RISE code.
pub const RISE: Protocol = WHOLE;

/// As implemented in the TiS code.
pub const TIS: Protocol = Protocol {
    name: "tis",
    skips_start: true,
    watched: Watched::Label,
    area: Area::Mean,
    runs: &[deletion(RISE_BLUR), insertion(RISE_BLUR)],
    ..WHOLE
};

/// As implemented in the IA-ViT code.
pub const IA_VIT: Protocol = Protocol {
    name: "ia-vit",
    watched: Watched::Label,
    area: Area::Mean,
    runs: &[deletion(Substrate::Zeros), insertion(Substrate::Zeros)],
    ..WHOLE
};

/// As implemented in the GradMask code, whose axis is in percent; this one is in shares.
pub const GRADMASK: Protocol = Protocol {
    name: "gradmask",
    steps: Steps::Shares(&[0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    runs: &[deletion(Substrate::Black), insertion(GRADMASK_BLUR)],
    ..WHOLE
};

/// RISE's substrates, patch by patch: cheaper, and without ties within a patch.
pub const PATCHES: Protocol = Protocol {
    name: "patches",
    steps: Steps::Patches,
    ..WHOLE
};

/// Positive and negative perturbation by Chefer et al.; the area ends at 0.9.
pub const CHEFER: Protocol = Protocol {
    name: "chefer",
    steps: Steps::Shares(&[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
    watched: Watched::Label,
    scale: 100.0,
    runs: &[
        perturbation(
            "positive",
            First::Greatest,
            Substrate::Black,
            Quantity::Named,
        ),
        perturbation("negative", First::Least, Substrate::Black, Quantity::Named),
    ],
    ..WHOLE
};

/// Table 1 of Vision DiffMask, as computed by its code: what the table calls accuracy is a probability.
pub const DIFFMASK: Protocol = Protocol {
    name: "diffmask",
    steps: Steps::Equal(28),
    area: Area::UnitSteps,
    runs: &[
        perturbation(
            "positive KL",
            First::Greatest,
            Substrate::Noise,
            Quantity::Surprise,
        ),
        perturbation(
            "negative KL",
            First::Least,
            Substrate::Noise,
            Quantity::Surprise,
        ),
        perturbation(
            "positive",
            First::Greatest,
            Substrate::Noise,
            Quantity::Probability,
        ),
        perturbation(
            "negative",
            First::Least,
            Substrate::Noise,
            Quantity::Probability,
        ),
    ],
    ..WHOLE
};

/// Insertion and deletion protocols.
pub const INSERTION_DELETION: [Protocol; 5] = [RISE, TIS, IA_VIT, GRADMASK, PATCHES];
/// Perturbation protocols.
pub const PERTURBATION: [Protocol; 2] = [CHEFER, DIFFMASK];

/// Size of the images and their patch grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Height of the image in pixels.
    pub height_px: usize,
    /// Width of the image in pixels.
    pub width_px: usize,
    /// Rows and columns of the patch grid.
    pub grid: (usize, usize),
}

impl Geometry {
    pub(super) fn n_pixels(self) -> usize {
        self.height_px * self.width_px
    }

    /// Returns the indices of a patch's pixels.
    pub(crate) fn pixels_of_patch(self, patch: usize) -> impl Iterator<Item = usize> {
        let (n_rows, n_columns) = self.grid;
        let (row, column) = (patch / n_columns, patch % n_columns);
        let edge = |place: usize, n: usize, length: usize| place * length / n;
        let rows = edge(row, n_rows, self.height_px)..edge(row + 1, n_rows, self.height_px);
        let columns =
            edge(column, n_columns, self.width_px)..edge(column + 1, n_columns, self.width_px);
        rows.flat_map(move |y| columns.clone().map(move |x| y * self.width_px + x))
    }

    /// Resizes a map to the size of the image, bilinearly between patch centers, as in PyTorch.
    pub(in crate::eval) fn pixels_from_patches(self, map: &[f32]) -> Vec<f32> {
        resized(map, self.grid, (self.height_px, self.width_px))
    }
}

impl Protocol {
    /// Returns the protocol of this name among `known`.
    ///
    /// # Errors
    /// [`Error::Config`] if there is none.
    pub fn named(name: &str, known: &[Self]) -> Result<Self> {
        let found = known.iter().find(|known| known.name == name);
        found.copied().ok_or_else(|| {
            let names = known.iter().map(|known| known.name);
            Error::Config(unknown("protocol", name, names))
        })
    }

    /// Returns the number of changed pixels at each point of a curve.
    pub(super) fn points(&self, geometry: Geometry) -> Vec<usize> {
        let n_pixels = geometry.n_pixels();
        let equal = |n: usize| (0..=n).map(|step| step * n_pixels / n.max(1)).collect();
        let points: Vec<usize> = match self.steps {
            Steps::Rows => equal(geometry.height_px),
            Steps::Patches => equal(geometry.grid.0 * geometry.grid.1),
            Steps::Equal(n) => equal(n),
            Steps::Shares(shares) => (shares.iter())
                .map(|share| (share * n_pixels as f64).round() as usize)
                .collect(),
        };
        points
            .into_iter()
            .skip(usize::from(self.skips_start))
            .collect()
    }

    /// Returns the pixels in the order in which they change; ties keep image order.
    pub(super) fn order(&self, map: &[f32], first: First, geometry: Geometry) -> Vec<usize> {
        let ranked = |scores: &[f32]| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| match first {
                First::Greatest => scores[b].total_cmp(&scores[a]),
                First::Least => scores[a].total_cmp(&scores[b]),
            });
            order
        };
        match self.steps {
            Steps::Patches => (ranked(map).into_iter())
                .flat_map(|patch| geometry.pixels_of_patch(patch))
                .collect(),
            Steps::Rows | Steps::Equal(_) | Steps::Shares(_) => {
                ranked(&geometry.pixels_from_patches(map))
            }
        }
    }

    /// Returns the share of all pixels that are changed at each point of a curve.
    pub fn axis(&self, geometry: Geometry) -> Vec<f64> {
        let n_pixels = geometry.n_pixels().max(1) as f64;
        let points = self.points(geometry).into_iter();
        points
            .map(|n_changed| n_changed as f64 / n_pixels)
            .collect()
    }

    /// Computes the area under a curve as this protocol defines it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the curve and the protocol have different numbers of points.
    pub fn area(&self, curve: &[f64], geometry: Geometry) -> Result<f64> {
        let axis: Vec<f64> = match self.area {
            Area::Mean => {
                return Ok(self.scale * curve.iter().sum::<f64>() / curve.len().max(1) as f64);
            }
            Area::UnitSteps => (0..curve.len()).map(|point| point as f64).collect(),
            Area::Trapezoid => self.axis(geometry),
        };
        Ok(self.scale * trapezoid(&axis, curve)?)
    }
}
