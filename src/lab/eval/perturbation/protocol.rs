//! How maps are measured, paper by paper: what is changed, by how much, and what is said of it.

use std::fmt;

use super::super::resized;
use super::super::statistics::trapezoid;
use vitscope_core::error::{Error, Result, unknown};

/// What stands where something was taken away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Substrate {
    /// Zeros of the normalized picture: its mean color over all data.
    Zeros,
    /// Black.
    Black,
    /// The mean color of the picture.
    Mean,
    /// The picture, blurred by a Gaussian of so many pixels.
    Blur {
        /// Edge of the kernel.
        kernel_px: usize,
        /// Standard deviation.
        sigma_px: f32,
    },
    /// Uniform noise from −1 to 1 in the normalized picture, the same at every point of a curve.
    Noise,
}

/// What is taken away at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Steps {
    /// As many pixels as a row has, until none are left.
    Rows,
    /// One patch after the other.
    Patches,
    /// At these shares of all pixels.
    Shares(&'static [f64]),
    /// So many equal shares of all pixels.
    Equal(usize),
}

/// Which class is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The one that the model names for the whole picture.
    Predicted,
    /// The right one.
    Label,
}

/// What is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Its probability.
    Probability,
    /// 1 where the model names it, else 0.
    Named,
    /// −ln of its probability, which is KL(one-hot ‖ answer), in nats.
    Surprise,
}

/// What is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// What the map scores highest.
    Greatest,
    /// What it scores lowest.
    Least,
}

/// What happens in the order of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The picture is taken away.
    Delete,
    /// It is put back.
    Insert,
}

/// How a curve becomes a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Trapezoids over the share that is changed, from 0 to 1 at most.
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
    /// What the curve is called.
    pub name: &'static str,
    /// What happens.
    pub action: Action,
    /// What is first.
    pub first: First,
    /// What stands where something was taken away.
    pub substrate: Substrate,
    /// What is said of the watched class.
    pub quantity: Quantity,
    /// True where a larger area is a better map.
    pub higher_is_better: bool,
}

impl Run {
    /// Whether the other run asks about the same pictures.
    pub(super) fn changes_as(&self, other: &Self) -> bool {
        (self.action, self.first, self.substrate) == (other.action, other.first, other.substrate)
    }
}

/// A way to measure maps, as one paper does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Protocol {
    /// What it is called.
    pub name: &'static str,
    /// What is changed at once.
    pub steps: Steps,
    /// Without the point before the first step.
    pub skips_start: bool,
    /// Which class is watched.
    pub watched: Watched,
    /// How a curve becomes a number.
    pub area: Area,
    /// What areas are multiplied by.
    pub scale: f64,
    /// Its curves.
    pub runs: &'static [Run],
}

const RISE_BLUR: Substrate = Substrate::Blur {
    kernel_px: 11,
    sigma_px: 5.0,
};
/// What GradMask puts back from, and what it leaves where it takes away.
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
        // Surprise is the other way round; and what matters least should be missed least.
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

/// As the code of RISE does it.
pub const RISE: Protocol = WHOLE;

/// As the code of TiS does it.
pub const TIS: Protocol = Protocol {
    name: "tis",
    skips_start: true,
    watched: Watched::Label,
    area: Area::Mean,
    runs: &[deletion(RISE_BLUR), insertion(RISE_BLUR)],
    ..WHOLE
};

/// As the code of IA-ViT does it.
pub const IA_VIT: Protocol = Protocol {
    name: "ia-vit",
    watched: Watched::Label,
    area: Area::Mean,
    runs: &[deletion(Substrate::Zeros), insertion(Substrate::Zeros)],
    ..WHOLE
};

/// As the code of GradMask does it; its axis counts percent, ours shares.
pub const GRADMASK: Protocol = Protocol {
    name: "gradmask",
    steps: Steps::Shares(&[0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    runs: &[deletion(Substrate::Black), insertion(GRADMASK_BLUR)],
    ..WHOLE
};

/// RISE's substrates, patch by patch: cheaper, and without ties inside of a patch.
pub const PATCHES: Protocol = Protocol {
    name: "patches",
    steps: Steps::Patches,
    ..WHOLE
};

/// Positive and negative perturbation of Chefer et al.; the area ends at 0.9.
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

/// Table 1 of Vision DiffMask, as its code computes it: what the table calls accuracy is a probability.
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

/// Protocols of insertion and deletion.
pub const INSERTION_DELETION: [Protocol; 5] = [RISE, TIS, IA_VIT, GRADMASK, PATCHES];
/// Protocols of perturbation.
pub const PERTURBATION: [Protocol; 2] = [CHEFER, DIFFMASK];

/// The size of pictures, and of the patches in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Of the picture, pixels.
    pub height_px: usize,
    /// Of the picture, pixels.
    pub width_px: usize,
    /// Rows and columns of the patch grid.
    pub grid: (usize, usize),
}

impl Geometry {
    pub(super) fn n_pixels(self) -> usize {
        self.height_px * self.width_px
    }

    /// The pixels of a patch.
    pub(crate) fn pixels_of_patch(self, patch: usize) -> impl Iterator<Item = usize> {
        let (n_rows, n_columns) = self.grid;
        let (row, column) = (patch / n_columns, patch % n_columns);
        let edge = |place: usize, n: usize, length: usize| place * length / n;
        let rows = edge(row, n_rows, self.height_px)..edge(row + 1, n_rows, self.height_px);
        let columns =
            edge(column, n_columns, self.width_px)..edge(column + 1, n_columns, self.width_px);
        rows.flat_map(move |y| columns.clone().map(move |x| y * self.width_px + x))
    }

    /// A map at the size of the picture: bilinear between the centers of patches, as PyTorch interpolates.
    pub(in crate::eval) fn pixels_from_patches(self, map: &[f32]) -> Vec<f32> {
        resized(map, self.grid, (self.height_px, self.width_px))
    }
}

impl Protocol {
    /// The one of this name among `known`.
    ///
    /// # Errors
    /// [`Error::Config`] where there is none.
    pub fn named(name: &str, known: &[Self]) -> Result<Self> {
        let found = known.iter().find(|known| known.name == name);
        found.copied().ok_or_else(|| {
            let names = known.iter().map(|known| known.name);
            Error::Config(unknown("protocol", name, names))
        })
    }

    /// How many pixels are changed at each point of a curve.
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

    /// Pixels in the order in which they are changed; equal scores in the order of the picture.
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

    /// Share of all pixels that are changed at each point of a curve.
    pub fn axis(&self, geometry: Geometry) -> Vec<f64> {
        let n_pixels = geometry.n_pixels().max(1) as f64;
        let points = self.points(geometry).into_iter();
        points
            .map(|n_changed| n_changed as f64 / n_pixels)
            .collect()
    }

    /// The area under a curve, by this protocol.
    ///
    /// # Errors
    /// [`Error::Shape`] where the curve has not as many points as the protocol.
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
