//! Motion-compensated smoothing of the masks of a video.
//!
//! Masks of successive frames are computed independently, and flicker. [`Smoother`] keeps a moving average of their
//! logits, warped along the motion of the picture, so that a mask neither flickers nor leaves a trail:
//!
//! s(p) = x(p) + keep · seen(p) · (s'(p + f(p)) − x(p))
//!
//! with the new logits x, the average s' of the previous frame and the flow f from the new frame back to it. `seen` is
//! the share of a patch's pixels that are also visible in the previous frame: those that the backward and forward flow
//! return to their origin ([`consistency`]) and that have the same brightness there. f is averaged over these pixels.
//! Content that enters the frame or was hidden has no history, and is not smoothed.
//!
//! If too little of a frame was visible before, it starts a new scene, and nothing of the previous frames remains. The
//! same applies to a frame lit by a flash and the one after it; slow fades are followed. A cut between two flat
//! pictures of equal brightness is not detected.
//!
//! The binary mask has hysteresis, like Canny's edges (PAMI 1986): entering or leaving takes more than staying.
//!
//! Smoothed masks are no longer the model's own. Callers that show them must check that the model's output survives
//! them, and otherwise return to the raw masks with [`Smoother::reset_to`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::flow::{Flow, FlowOptions, Gray, bilinear, consistency, flow, warp};

/// Largest magnitude of a logit: sigmoid(6.5) is 0.9985, which 8 bits cannot distinguish from 1. Without a limit, one
/// certain frame would outweigh any number of less certain later ones.
const LIMIT: f32 = 6.5;

/// Longer side of the pictures used for motion estimation: four pixels per patch of a grid of 16.
const LONGER_PX: usize = 64;

/// Largest brightness difference, on a scale of 1, between two views of the same content. Sensor noise is lower on
/// small pictures, whose pixels are means.
const SAME: f32 = 0.05;

/// How masks are smoothed along motion.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct Smoothing {
    /// Share of the old logit that is kept for a fully visible patch, from 0 (no smoothing) to below 1.
    pub keep: f32,
    /// Probability at which a patch enters the binary mask.
    pub enter: f32,
    /// Probability below which a patch leaves the mask. A patch without history is in the mask from the middle of
    /// `enter` and `leave` on.
    pub leave: f32,
    /// Smallest share of a frame's pixels that the previous frame also shows; below it, the frame starts a new scene.
    pub cut: f32,
}

impl Default for Smoothing {
    /// The influence of a frame halves in two frames. In two real videos, 0.6 to 0.98 of a frame is visible in the
    /// previous one, but less than 0.2 across cuts between the videos.
    fn default() -> Self {
        Self {
            keep: 0.7,
            enter: 0.6,
            leave: 0.4,
            cut: 0.4,
        }
    }
}

impl Smoothing {
    fn check(&self) -> Result<()> {
        let wrong = if !(0.0..1.0).contains(&self.keep) {
            format!("keep must be at least 0 and below 1, got {:?}", self.keep)
        } else if !(0.0 <= self.leave && self.leave <= self.enter && self.enter <= 1.0) {
            let (leave, enter) = (self.leave, self.enter);
            format!(
                "leave must not exceed enter, and both must be from 0 to 1, got {leave:?} and {enter:?}"
            )
        } else if !(0.0..=1.0).contains(&self.cut) {
            format!("cut must be from 0 to 1, got {:?}", self.cut)
        } else {
            return Ok(());
        };
        Err(Error::Config(format!("mask smoothing: {wrong}")))
    }
}

/// A frame's mask, smoothed.
#[derive(Clone, Debug, PartialEq)]
pub struct Smoothed {
    /// `[rows, columns]`, from -6.5 to 6.5.
    pub logits: Vec<f32>,
    /// Which patches are in the binary mask, `[rows, columns]`.
    pub mask: Vec<bool>,
    /// The frame starts a new scene, so no previous frame contributes.
    pub anew: bool,
}

impl Smoothed {
    /// Keep probabilities of the patches, `[rows, columns]`.
    pub fn probabilities(&self) -> Vec<f32> {
        self.logits.iter().map(|&logit| sigmoid(logit)).collect()
    }
}

/// The logit of a probability, clamped to the range of [`Smoother`], and thus finite for 0 and 1.
pub fn logit(probability: f32) -> f32 {
    (probability / (1.0 - probability))
        .ln()
        .clamp(-LIMIT, LIMIT)
}

/// Smooths the masks of one video, frame by frame.
#[derive(Clone, Debug)]
pub struct Smoother {
    options: Smoothing,
    last: Option<Last>,
}

/// State of the previous frame.
#[derive(Clone, Debug)]
struct Last {
    size_px: (usize, usize),
    /// Rows and columns of patches.
    grid: (usize, usize),
    small: Gray,
    logits: Vec<f32>,
    mask: Vec<bool>,
}

/// Position of a patch in the previous frame.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// In patches right of and below the center of the first patch.
    place: (f32, f32),
    /// Share of the patch's pixels that are also visible in the previous frame.
    seen: f32,
}

impl Smoother {
    /// Creates a smoother without history.
    ///
    /// # Errors
    /// [`Error::Config`] if an option is out of range.
    pub fn new(options: Smoothing) -> Result<Self> {
        options.check()?;
        Ok(Self {
            options,
            last: None,
        })
    }

    /// Smooths the mask of the next frame. Starts a new scene if the size of the frame or the grid changes.
    ///
    /// # Shapes
    /// - `gray`: the frame as seen by the model, fully covered by patches
    /// - `logits`: [`logit`]s of the keep probabilities, `[rows, columns]`
    /// - `grid`: rows and columns
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one logit per patch, [`Error::Data`] if one is not finite.
    pub fn next(&mut self, gray: &Gray, logits: &[f32], grid: (usize, usize)) -> Result<Smoothed> {
        check(logits, grid)?;
        let (size_px, small) = (gray.size_px(), gray.shrunk(LONGER_PX)?);
        let known =
            (self.last.as_ref()).filter(|last| last.size_px == size_px && last.grid == grid);
        let origins = match known {
            Some(last) => origins(&small, &last.small, grid, self.options.cut)?,
            None => None,
        };
        let smoothed = match known.zip(origins) {
            Some((last, origins)) => self.mixed(last, &origins, logits),
            None => self.raw(logits),
        };
        self.last = Some(Last {
            size_px,
            grid,
            small,
            logits: smoothed.logits.clone(),
            mask: smoothed.mask.clone(),
        });
        Ok(smoothed)
    }

    /// Replaces the smoothed logits of the last frame by `logits`, as if a scene started with it. Used if the smoothed
    /// mask does not preserve the model's output.
    ///
    /// # Shapes
    /// - `logits`: as for the last frame
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one logit per patch of the last frame, [`Error::Data`] if one is not finite.
    pub fn reset_to(&mut self, logits: &[f32]) -> Result<Smoothed> {
        check(logits, self.last.as_ref().map_or((0, 0), |last| last.grid))?;
        let smoothed = self.raw(logits);
        if let Some(last) = &mut self.last {
            last.logits.clone_from(&smoothed.logits);
            last.mask.clone_from(&smoothed.mask);
        }
        Ok(smoothed)
    }

    /// Forgets all previous frames. Call this before another video.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// A mask without history.
    fn raw(&self, logits: &[f32]) -> Smoothed {
        let logits: Vec<f32> = logits
            .iter()
            .map(|logit| logit.clamp(-LIMIT, LIMIT))
            .collect();
        let mask = logits.iter().map(|&logit| self.holds(logit, None));
        Smoothed {
            mask: mask.collect(),
            logits,
            anew: true,
        }
    }

    fn mixed(&self, last: &Last, origins: &[Origin], logits: &[f32]) -> Smoothed {
        let (rows, columns) = last.grid;
        let patches = origins.iter().zip(logits).map(|(origin, logit)| {
            let new = logit.clamp(-LIMIT, LIMIT);
            let old = bilinear((columns, rows), origin.place, |patch| last.logits[patch]);
            let mixed = new + self.options.keep * origin.seen * (old - new);
            let nearest = |place: f32, len: usize| (place.round() as usize).min(len - 1);
            let (x, y) = (
                nearest(origin.place.0, columns),
                nearest(origin.place.1, rows),
            );
            let was = (origin.seen >= 0.5).then(|| last.mask[y * columns + x]);
            (mixed, self.holds(mixed, was))
        });
        let (logits, mask) = patches.unzip();
        Smoothed {
            logits,
            mask,
            anew: false,
        }
    }

    /// Whether the binary mask contains a patch. `was` is its previous state, if it has a history.
    fn holds(&self, logit: f32, was: Option<bool>) -> bool {
        let Smoothing { enter, leave, .. } = self.options;
        let threshold = match was {
            Some(true) => leave,
            Some(false) => enter,
            None => (enter + leave) / 2.0,
        };
        sigmoid(logit) >= threshold
    }
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

fn check(logits: &[f32], (rows, columns): (usize, usize)) -> Result<()> {
    if logits.is_empty() || rows.checked_mul(columns) != Some(logits.len()) {
        return Err(Error::Shape {
            expected: format!("one logit for each of {rows} x {columns} patches"),
            got: format!("{} logits", logits.len()),
        });
    }
    match logits.iter().find(|logit| !logit.is_finite()) {
        Some(logit) => Err(Error::Data(format!("a mask logit is {logit:?}"))),
        None => Ok(()),
    }
}

/// Position of each patch of a frame in the `old` one, `[rows, columns]`; `None` if less than the share `cut` of the
/// frame was visible there.
fn origins(
    new: &Gray,
    old: &Gray,
    (rows, columns): (usize, usize),
    cut: f32,
) -> Result<Option<Vec<Origin>>> {
    let options = FlowOptions::fast();
    let back = flow(new, old, &options)?;
    let seen = seen(new, old, &back, &flow(old, new, &options)?)?;
    let n_seen = seen.iter().filter(|&&seen| seen).count();
    if (n_seen as f32) < cut * seen.len() as f32 {
        return Ok(None);
    }
    let (width, height) = new.size_px();
    // The grid may be finer than the small picture.
    let pixels_of = |idx: usize, len_px: usize, len: usize| {
        let start = idx * len_px / len;
        start..((idx + 1) * len_px / len).max(start + 1)
    };
    let origin = |patch: usize| {
        let (row, column) = (patch / columns, patch % columns);
        let (ys, xs) = (
            pixels_of(row, height, rows),
            pixels_of(column, width, columns),
        );
        let n_pixels = ys.len() * xs.len();
        let pixels = ys.flat_map(|y| xs.clone().map(move |x| y * width + x));
        let (mut moved, mut n_seen) = ([0.0; 2], 0);
        for pixel in pixels.filter(|&pixel| seen[pixel]) {
            let [right, down] = back.vectors()[pixel];
            moved = [moved[0] + right, moved[1] + down];
            n_seen += 1;
        }
        let patches = |moved_px: f32, len_px: usize, len: usize| {
            moved_px / n_seen.max(1) as f32 * len as f32 / len_px as f32
        };
        Origin {
            place: (
                column as f32 + patches(moved[0], width, columns),
                row as f32 + patches(moved[1], height, rows),
            ),
            seen: n_seen as f32 / n_pixels as f32,
        }
    };
    Ok(Some((0..rows * columns).map(origin).collect()))
}

/// Which pixels of a frame are also visible in the `old` one.
fn seen(new: &Gray, old: &Gray, back: &Flow, forth: &Flow) -> Result<Vec<bool>> {
    let warped = warp(old.values(), back)?;
    let mut seen = consistency(back, forth)?;
    for (seen, (old, new)) in seen.iter_mut().zip(warped.iter().zip(new.values())) {
        *seen &= (old - new).abs() <= SAME;
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::scenes::{picture, texture};
    use crate::rng::Rng;

    /// Patches of 8 pixels.
    const GRID: (usize, usize) = (16, 16);
    const N_PATCHES: usize = GRID.0 * GRID.1;
    const SIZE_PX: (usize, usize) = (128, 128);
    const PATCH_PX: f64 = 8.0;

    /// The picture generated from `seed`, moved to the right and down.
    fn frame(seed: u64, right_px: f64, down_px: f64) -> Gray {
        let texture = texture(seed);
        picture(SIZE_PX, |x, y| texture(x - right_px, y - down_px))
    }

    fn with_noise(frame: &Gray, rng: &mut Rng) -> Gray {
        let (width, height) = frame.size_px();
        let noisy = |value: &f32| (value + rng.normal() * 2.0 / 255.0).clamp(0.0, 1.0);
        Gray::new(width, height, frame.values().iter().map(noisy).collect()).unwrap()
    }

    /// Logits of a mask of 6 x 5 patches that starts at column `right`.
    fn block(right: usize) -> Vec<f32> {
        let inside = |patch: usize| {
            let (row, column) = (patch / GRID.1, patch % GRID.1);
            (4..10).contains(&row) && (right..right + 5).contains(&column)
        };
        let logits = (0..N_PATCHES).map(|patch| if inside(patch) { 4.0 } else { -4.0 });
        logits.collect()
    }

    fn smoother(options: Smoothing) -> Smoother {
        Smoother::new(options).unwrap()
    }

    fn positive(logits: &[f32]) -> Vec<bool> {
        logits.iter().map(|&logit| logit > 0.0).collect()
    }

    #[test]
    fn a_mask_that_moves_with_the_picture_stays_itself() {
        let mut moved = smoother(Smoothing::default());
        for step in 0..6 {
            let logits = block(2 + step);
            let gray = frame(3, PATCH_PX * step as f64, 0.0);
            let smoothed = moved.next(&gray, &logits, GRID).unwrap();
            assert_eq!(smoothed.anew, step == 0);
            assert_eq!(smoothed.mask, positive(&logits));
            let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1.0;
            let n_far = (smoothed.logits.iter().zip(&logits)).filter(|&pair| far(pair));
            assert_eq!(n_far.count(), 0, "step {step}");
        }
    }

    #[test]
    fn a_mask_that_moves_without_the_picture_leaves_a_trail() {
        let mut moved = smoother(Smoothing::default());
        let gray = frame(3, 0.0, 0.0);
        moved.next(&gray, &block(2), GRID).unwrap();
        let smoothed = moved.next(&gray, &block(3), GRID).unwrap();
        assert!(smoothed.mask[5 * GRID.1 + 2] && smoothed.logits[5 * GRID.1 + 2] > 1.0);
    }

    #[test]
    fn noise_on_a_still_picture_flickers_less_than_half() {
        let mut rng = Rng::new(1);
        let mut smoother = smoother(Smoothing::default());
        let still = frame(4, 0.0, 0.0);
        let (mut raw, mut smooth) = (Vec::new(), Vec::new());
        for step in 0..12 {
            let logits: Vec<f32> = (0..N_PATCHES).map(|_| 1.5 * rng.normal()).collect();
            let smoothed = smoother.next(&with_noise(&still, &mut rng), &logits, GRID);
            let smoothed = smoothed.unwrap();
            // The first averages contain few frames and still vary.
            if step >= 3 {
                raw.push(logits.iter().map(|&logit| sigmoid(logit)).collect());
                smooth.push(smoothed.probabilities());
            }
        }
        let variation = |maps: &[Vec<f32>]| {
            let changes = maps
                .windows(2)
                .flat_map(|pair| pair[0].iter().zip(&pair[1]));
            changes.map(|(a, b)| (a - b).abs()).sum::<f32>()
        };
        let share = variation(&smooth) / variation(&raw);
        assert!(share < 0.5, "{share}");
    }

    #[test]
    fn nothing_of_the_old_scene_remains_after_a_cut() {
        for seed in 0..8 {
            let mut smoother = smoother(Smoothing::default());
            smoother
                .next(&frame(2 * seed, 0.0, 0.0), &block(2), GRID)
                .unwrap();
            let (next, logits) = (frame(2 * seed + 1, 0.0, 0.0), block(9));
            let smoothed = smoother.next(&next, &logits, GRID).unwrap();
            assert!(smoothed.anew, "seed {seed}");
            assert_eq!(
                (smoothed.logits, smoothed.mask),
                (logits.clone(), positive(&logits))
            );
        }
    }

    #[test]
    fn motion_noise_and_fades_are_no_cuts() {
        let mut rng = Rng::new(2);
        let anew = |next: Gray, first: Gray| {
            let mut smoother = smoother(Smoothing::default());
            let logits = [0.0; N_PATCHES];
            smoother.next(&first, &logits, GRID).unwrap();
            smoother.next(&next, &logits, GRID).unwrap().anew
        };
        for (right_px, down_px) in [
            (0.0, 0.0),
            (0.7, 0.3),
            (3.0, -2.0),
            (12.0, 7.0),
            (20.0, 0.0),
        ] {
            let pan = frame(5, right_px, down_px);
            assert!(
                !anew(with_noise(&pan, &mut rng), frame(5, 0.0, 0.0)),
                "{right_px}, {down_px}"
            );
        }
        let lit = |light: f64| {
            let texture = texture(6);
            picture(SIZE_PX, |x, y| light * texture(x, y))
        };
        assert!(!anew(lit(0.95), lit(1.0)) && !anew(lit(0.25), lit(0.3)));
        assert!(
            anew(lit(1.7), lit(1.0)) && anew(lit(1.0), lit(1.7)),
            "a flash"
        );
    }

    #[test]
    fn static_noise_on_frames_that_are_not_shrunk_is_no_cut() {
        let mut rng = Rng::new(3);
        let texture = texture(8);
        let still = picture((32, 32), |x, y| texture(4.0 * x, 4.0 * y));
        let mut smoother = smoother(Smoothing::default());
        smoother.next(&still, &[0.0; 64], (8, 8)).unwrap();
        for _ in 0..8 {
            let noisy = with_noise(&still, &mut rng);
            assert!(!smoother.next(&noisy, &[0.0; 64], (8, 8)).unwrap().anew);
        }
    }

    #[test]
    fn patches_that_enter_the_frame_are_raw() {
        let mut smoother = smoother(Smoothing::default());
        smoother
            .next(&frame(7, 0.0, 0.0), &[4.0; N_PATCHES], GRID)
            .unwrap();
        let pan = frame(7, PATCH_PX, 0.0);
        let smoothed = smoother.next(&pan, &[-4.0; N_PATCHES], GRID).unwrap();
        for row in smoothed.logits.chunks_exact(GRID.1) {
            assert_eq!(row[0], -4.0);
            let others = row[2..].iter().sum::<f32>() / (GRID.1 - 2) as f32;
            assert!(others > 0.5, "{row:?}");
        }
    }

    #[test]
    fn what_was_hidden_is_nearly_raw() {
        let texture = texture(7);
        let at = |left: f64| {
            picture(SIZE_PX, |x, y| {
                let on_square = (left..left + 48.0).contains(&x) && (40.0..88.0).contains(&y);
                texture(if on_square { x - left + 1e4 } else { x }, y)
            })
        };
        let mut smoother = smoother(Smoothing::default());
        smoother.next(&at(40.0), &[4.0; N_PATCHES], GRID).unwrap();
        let smoothed = smoother.next(&at(56.0), &[-4.0; N_PATCHES], GRID).unwrap();
        let mean = |columns: std::ops::Range<usize>| {
            let n_patches = (6 * columns.len()) as f32;
            let rows = (5..11).map(|row| &smoothed.logits[row * GRID.1..][columns.clone()]);
            rows.flatten().sum::<f32>() / n_patches
        };
        let (behind, on_square) = (mean(5..7), mean(8..12));
        assert!(behind < -2.5 && on_square > 1.0, "{behind} and {on_square}");
    }

    #[test]
    fn a_patch_in_doubt_does_not_toggle_and_a_sure_one_does() {
        let mut smoother = smoother(Smoothing {
            keep: 0.0,
            ..Smoothing::default()
        });
        let still = frame(9, 0.0, 0.0);
        let mut held = |logit: f32| {
            let smoothed = smoother.next(&still, &[logit; N_PATCHES], GRID).unwrap();
            assert!(smoothed.mask.iter().all(|held| *held == smoothed.mask[0]));
            smoothed.mask[0]
        };
        // Probabilities of 0.45 and 0.55, and of 0.27 and 0.73.
        let logits = [0.2, -0.2, 0.2, -0.2, -1.0, 0.2, -0.2, 0.2, 1.0, -0.2];
        let expected = [
            true, true, true, true, false, false, false, false, true, true,
        ];
        assert_eq!(logits.map(&mut held), expected);
    }

    #[test]
    fn what_is_in_the_mask_stays_in_it_where_it_moves() {
        let mut smoother = smoother(Smoothing {
            keep: 0.0,
            ..Smoothing::default()
        });
        smoother.next(&frame(3, 0.0, 0.0), &block(4), GRID).unwrap();
        let doubt = [-0.1; N_PATCHES];
        let smoothed = smoother
            .next(&frame(3, PATCH_PX, 0.0), &doubt, GRID)
            .unwrap();
        assert_eq!(smoothed.mask, positive(&block(5)));
    }

    #[test]
    fn without_a_share_that_stays_masks_are_raw() {
        let mut rng = Rng::new(4);
        let mut smoother = smoother(Smoothing {
            keep: 0.0,
            ..Smoothing::default()
        });
        for step in 0..3 {
            let logits: Vec<f32> = (0..N_PATCHES).map(|_| 5.0 * rng.normal()).collect();
            let smoothed = smoother
                .next(&frame(3, f64::from(step), 0.0), &logits, GRID)
                .unwrap();
            let clamped: Vec<f32> = logits
                .iter()
                .map(|logit| logit.clamp(-LIMIT, LIMIT))
                .collect();
            assert_eq!(smoothed.logits, clamped);
        }
    }

    #[test]
    fn a_frame_that_is_certain_is_forgotten_in_a_few() {
        let mut smoother = smoother(Smoothing::default());
        let still = frame(3, 0.0, 0.0);
        smoother.next(&still, &[1e30; N_PATCHES], GRID).unwrap();
        let n_frames = (1..100).find(|_| {
            let smoothed = smoother.next(&still, &[-1.5; N_PATCHES], GRID).unwrap();
            !smoothed.mask.contains(&true)
        });
        assert!(n_frames.unwrap() <= 6);
    }

    #[test]
    fn a_reset_is_what_the_next_frame_remembers() {
        let still = frame(3, 0.0, 0.0);
        let mut smoother = smoother(Smoothing::default());
        assert!(matches!(
            smoother.reset_to(&[0.0; N_PATCHES]),
            Err(Error::Shape { .. })
        ));
        smoother.next(&still, &[4.0; N_PATCHES], GRID).unwrap();
        assert!(matches!(
            smoother.reset_to(&[0.0; 3]),
            Err(Error::Shape { .. })
        ));
        let reset = smoother.reset_to(&[-4.0; N_PATCHES]).unwrap();
        assert!(reset.anew && reset.logits == [-4.0; N_PATCHES] && !reset.mask.contains(&true));
        let smoothed = smoother.next(&still, &[0.2; N_PATCHES], GRID).unwrap();
        let expected = 0.3 * 0.2 - 0.7 * 4.0;
        assert!(
            smoothed
                .logits
                .iter()
                .all(|logit| (logit - expected).abs() < 1e-4)
        );
        assert!(!smoothed.anew && !smoothed.mask.contains(&true));
    }

    #[test]
    fn another_size_or_grid_or_video_begins_anew() {
        let texture = texture(3);
        let still = |side: usize| {
            let scale = 128.0 / side as f64;
            picture((side, side), |x, y| texture(scale * x, scale * y))
        };
        let mut smoother = smoother(Smoothing::default());
        let mut anew = |side: usize, grid: (usize, usize)| {
            let logits = vec![0.0; grid.0 * grid.1];
            smoother.next(&still(side), &logits, grid).unwrap().anew
        };
        assert_eq!([anew(128, (4, 8)), anew(128, (4, 8))], [true, false]);
        assert_eq!([anew(128, (8, 4)), anew(128, (8, 4))], [true, false]);
        assert_eq!([anew(160, (8, 4)), anew(160, (8, 4))], [true, false]);
        // The grid is finer than the pictures used for motion estimation.
        assert_eq!([anew(160, (80, 80)), anew(160, (80, 80))], [true, false]);
        smoother.forget();
        assert!(
            smoother
                .next(&still(160), &[0.0; 6400], (80, 80))
                .unwrap()
                .anew
        );
    }

    #[test]
    fn logits_that_are_not_finite_or_do_not_fit_are_refused_and_change_nothing() {
        let still = frame(3, 0.0, 0.0);
        let mut smoother = smoother(Smoothing::default());
        smoother.next(&still, &[1.0; N_PATCHES], GRID).unwrap();
        let mut unaware = smoother.clone();
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = [0.0; N_PATCHES];
            logits[7] = wrong;
            assert!(matches!(
                smoother.next(&still, &logits, GRID),
                Err(Error::Data(_))
            ));
            assert!(matches!(smoother.reset_to(&logits), Err(Error::Data(_))));
        }
        for (len, grid) in [(N_PATCHES - 1, GRID), (0, (0, 0)), (4, (2, usize::MAX))] {
            let error = smoother.next(&still, &vec![0.0; len], grid).err();
            assert!(matches!(error, Some(Error::Shape { .. })));
        }
        let next =
            |smoother: &mut Smoother| smoother.next(&still, &[0.0; N_PATCHES], GRID).unwrap();
        assert_eq!(next(&mut smoother), next(&mut unaware));
    }

    #[test]
    fn options_out_of_range_are_refused_and_missing_ones_are_defaults() {
        let defaults = Smoothing::default();
        let (keep, enter, leave, cut) = (1.0, 0.3, 0.7, 1.5);
        let wrong = [
            Smoothing { keep, ..defaults },
            Smoothing {
                keep: f32::NAN,
                ..defaults
            },
            Smoothing {
                keep: -0.1,
                ..defaults
            },
            Smoothing { enter, ..defaults },
            Smoothing { leave, ..defaults },
            Smoothing {
                enter: 1.1,
                ..defaults
            },
            Smoothing {
                leave: -0.1,
                ..defaults
            },
            Smoothing { cut, ..defaults },
        ];
        for options in wrong {
            assert!(
                matches!(Smoother::new(options), Err(Error::Config(_))),
                "{options:?}"
            );
        }
        let read: Smoothing = toml::from_str("keep = 0.5").unwrap();
        assert_eq!(
            read,
            Smoothing {
                keep: 0.5,
                ..defaults
            }
        );
    }

    #[test]
    fn logits_of_probabilities_are_finite_and_lead_back() {
        assert_eq!([logit(0.0), logit(0.5), logit(1.0)], [-LIMIT, 0.0, LIMIT]);
        assert!((sigmoid(logit(0.3)) - 0.3).abs() < 1e-6 && logit(f32::NAN).is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn smoothed_logits_lie_between_the_old_and_the_new_ones(
            seed in 0..1000_u64,
            (right_px, down_px) in (-6.0..6.0, -6.0..6.0),
            keep in 0.0..0.999_f32,
            scale in 0.01..100.0_f32,
        ) {
            let mut rng = Rng::new(seed);
            let mut draw = || -> Vec<f32> { (0..64).map(|_| scale * rng.normal()).collect() };
            let (first, second) = (draw(), draw());
            let texture = texture(seed);
            let at = |right: f64, down: f64| picture((32, 32), |x, y| texture(x - right, y - down));
            let (from, to) = (at(0.0, 0.0), at(right_px, down_px));
            let mut smoother = smoother(Smoothing { keep, cut: 0.0, ..Smoothing::default() });
            let old = smoother.next(&from, &first, (8, 8)).unwrap().logits;
            let smoothed = smoother.next(&to, &second, (8, 8)).unwrap().logits;
            let origins = origins(&to, &from, (8, 8), 0.0).unwrap().unwrap();
            for ((mixed, new), origin) in smoothed.iter().zip(second).zip(origins) {
                let new = new.clamp(-LIMIT, LIMIT);
                let old = bilinear((8, 8), origin.place, |patch| old[patch]);
                prop_assert!((0.0..=1.0).contains(&origin.seen));
                prop_assert!(new.min(old) - 1e-5 <= *mixed && *mixed <= new.max(old) + 1e-5);
            }
        }
    }
}
