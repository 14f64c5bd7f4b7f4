//! Reuse of passes from one frame of a video to the next: only patches that change are computed.
//!
//! A patch keeps its pixels until they differ by more than a bound, and its tokens until then. Each frame also
//! computes some patches in turn, whether they changed or not. The distance between their old and new tokens tells how
//! far the kept tokens have drifted; beyond the limit, the frame is computed whole. Changes are measured in pixels
//! because hidden states change everywhere with the slightest noise.
//!
//! | symbol | here |
//! |---|---|
//! | limit | [`Reuse::limit`]: mean over the patches in turn of 1 − cos(old, new token after the final norm) |
//! | bound | `BOUND` · limit: root mean square difference of a patch's pixels |
//!
//! A frame is also computed whole if it follows a cut, and if most of its patches changed. Frames that are computed
//! whole share a batch, and so do partial passes of several streams.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::memory::Streams;
use super::pass::{Forward, Needs};
use super::{Explainer, Method};
use crate::error::{Error, Result};
use crate::vit::{Held, Output, Site, Vit};

/// Bound of a patch's change per unit of the limit, on a scale of 255: 1.5 for a limit of 0.01.
const BOUND: f32 = 150.0;

/// Share of computed patches above which a frame is computed whole.
const MOST: f32 = 0.7;

/// Every frame computes at least one of this many patches, in turn.
const TURNS: usize = 24;

/// Largest ratio of computed patches between an image of a batch and the one with the next lower number. Images with
/// fewer compute more patches in turn, so that all compute as many.
const UNEVEN: f32 = 1.5;

/// Largest number of frames in a row that drifted too far, after which 2ⁿ − 1 frames are computed whole: trying costs as
/// much as what it computes.
const MOST_DOUBLINGS: u32 = 4;

/// How much is reused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reuse {
    limit: f32,
    /// Standard deviation by which the channels of images are normalized.
    std: [f32; 3],
}

impl Reuse {
    /// Reuse up to a drift of `limit`, for images normalized by `std`; `None` if the limit is 0.
    ///
    /// # Errors
    /// [`Error::Config`] if the limit is not from 0 to 1.
    pub fn up_to(limit: f32, std: [f32; 3]) -> Result<Option<Self>> {
        match limit {
            0.0 => Ok(None),
            _ if (0.0..=1.0).contains(&limit) => Ok(Some(Self { limit, std })),
            _ => Err(Error::Config(format!(
                "reuse is {limit}, expected a number from 0 to 1"
            ))),
        }
    }

    /// Checks that a method only reads what a forward pass computes.
    ///
    /// # Errors
    /// [`Error::Config`] with the name of a method that does.
    pub fn check(explainer: &dyn Explainer, vit: &Vit) -> Result<()> {
        match explainer.needs(vit).is_forward_only() {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "method {:?} needs passes of its own for every frame, which cannot be reused; {}, {} and {} only read \
                 the model's forward pass",
                explainer.name(),
                Method::DiffMask,
                Method::Rollout,
                Method::RawAttention
            ))),
        }
    }

    /// The patches of a frame to compute, those in turn from `next` on, if the pixels before it are kept; `None` if they
    /// are too many.
    fn plan(self, before: &[f32], after: &[f32], sizes: Sizes, next: usize) -> Option<Plan> {
        let bound = BOUND * self.limit;
        let differences = self.differences(before, after, sizes).into_iter();
        let patches = differences.enumerate();
        let changed = patches.filter_map(|(patch, by)| (by > bound).then_some(patch));
        let mut plan = Plan {
            changed: changed.collect(),
            in_turn: Vec::new(),
        };
        let n_patches = sizes.n_patches();
        plan.fill(n_patches.div_ceil(TURNS), next, n_patches);
        (plan.n_computed() as f32 <= MOST * n_patches as f32).then_some(plan)
    }

    /// Root mean square difference of the pixels of each patch, on a scale of 255.
    fn differences(self, a: &[f32], b: &[f32], sizes: Sizes) -> Vec<f32> {
        let Sizes {
            width_px, patch_px, ..
        } = sizes;
        let (rows, columns) = sizes.grid();
        let plane_len = a.len() / self.std.len();
        let mut sums = vec![0f32; rows * columns];
        let planes = a.chunks_exact(plane_len).zip(b.chunks_exact(plane_len));
        for ((a, b), std) in planes.zip(self.std) {
            let lines = a.chunks_exact(width_px).zip(b.chunks_exact(width_px));
            for (y, (a, b)) in lines.enumerate() {
                let sums = &mut sums[y / patch_px * columns..][..columns];
                let pieces = a.chunks_exact(patch_px).zip(b.chunks_exact(patch_px));
                for (sum, (a, b)) in sums.iter_mut().zip(pieces) {
                    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
                    *sum += std * std * squares.sum::<f32>();
                }
            }
        }
        let n_values = (self.std.len() * patch_px * patch_px) as f32;
        sums.into_iter()
            .map(|sum| 255.0 * (sum / n_values).sqrt())
            .collect()
    }
}

/// Sizes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    height_px: usize,
    width_px: usize,
    patch_px: usize,
}

impl Sizes {
    fn grid(self) -> (usize, usize) {
        (
            self.height_px / self.patch_px,
            self.width_px / self.patch_px,
        )
    }

    fn n_patches(self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns
    }

    /// Copies a patch of an image of three channels.
    fn copy_patch(self, patch: usize, from: &[f32], to: &mut [f32]) {
        let (_, columns) = self.grid();
        let (row, column) = (patch / columns, patch % columns);
        for channel in 0..3 {
            for y in row * self.patch_px..(row + 1) * self.patch_px {
                let start = (channel * self.height_px + y) * self.width_px + column * self.patch_px;
                let line = start..start + self.patch_px;
                to[line.clone()].copy_from_slice(&from[line]);
            }
        }
    }
}

/// What is left of a stream's previous frames.
#[derive(Debug)]
pub(super) struct Kept {
    held: Held,
    /// The pixels that the held tokens were computed from, `[3, height, width]`.
    pixels: Vec<f32>,
    sizes: Sizes,
    /// The next patch in turn.
    next: usize,
    /// Number of frames in a row that drifted too far.
    n_drifted: u32,
    /// Number of frames that are computed whole without trying.
    n_whole: usize,
}

/// The patches of a frame that are computed.
struct Plan {
    /// In ascending order.
    changed: Vec<usize>,
    /// Patches in turn that did not change.
    in_turn: Vec<usize>,
}

impl Plan {
    fn n_computed(&self) -> usize {
        self.changed.len() + self.in_turn.len()
    }

    /// The tokens that are computed, in ascending order: special ones, then patches.
    fn tokens(&self, n_special: usize) -> Vec<u32> {
        let patches = self.changed.iter().chain(&self.in_turn);
        let patches = patches.map(|patch| patch + n_special);
        let mut tokens: Vec<u32> = (0..n_special).chain(patches).map(|it| it as u32).collect();
        tokens.sort_unstable();
        tokens
    }

    /// Sets the `n` patches in turn: unchanged ones, from patch `next` on.
    fn fill(&mut self, n: usize, next: usize, n_patches: usize) {
        let all = (next..n_patches).chain(0..next);
        let unchanged = all.filter(|patch| self.changed.binary_search(patch).is_err());
        self.in_turn = unchanged.take(n).collect();
    }
}

/// The results of one image.
struct Passed {
    output: Output,
    sites: BTreeMap<Site, Tensor>,
}

/// The passes over a batch.
pub(super) struct Passes<'a, 'b> {
    reuse: Reuse,
    vit: &'a Vit,
    images: &'a Tensor,
    needs: &'b Needs,
    sizes: Sizes,
    /// Of each image.
    pixels: Vec<Vec<f32>>,
    passed: Vec<Option<Passed>>,
}

impl<'a, 'b> Passes<'a, 'b> {
    /// Runs the model on frames of videos, each with what is kept of its stream.
    ///
    /// # Errors
    /// As [`Forward::run`]. What is kept of the streams is then undefined.
    pub(super) fn run(
        reuse: Reuse,
        vit: &'a Vit,
        images: &'a Tensor,
        needs: &'b Needs,
        streams: &mut Streams<'_>,
    ) -> Result<Forward<'a>> {
        let (n_images, _, height_px, width_px) = images.dims4()?;
        let pixels = images.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2()?;
        let mut passes = Self {
            reuse,
            vit,
            images,
            needs,
            sizes: Sizes {
                height_px,
                width_px,
                patch_px: vit.config().patch_size,
            },
            pixels,
            passed: (0..n_images).map(|_| None).collect(),
        };
        let mut waiting = streams.images_by_stream(n_images)?;
        while waiting.iter().any(|images| !images.is_empty()) {
            passes.round(&mut waiting, streams)?;
        }
        passes.joined()
    }

    /// Computes the next frame of each stream, and those behind it that are also computed whole.
    fn round(&mut self, waiting: &mut [Vec<usize>], streams: &mut Streams<'_>) -> Result<()> {
        let mut whole = Vec::new();
        let mut partial: Vec<(usize, usize, Plan)> = Vec::new();
        for (stream_idx, images) in waiting.iter_mut().enumerate() {
            let Some(&first) = images.first() else {
                continue;
            };
            let plan = self.plan(stream_idx, first, streams);
            if let Some(plan) = plan {
                images.remove(0);
                partial.push((stream_idx, first, plan));
                continue;
            }
            let n_forced = streams.kept(stream_idx).map_or(0, |kept| kept.n_whole);
            let behind = images.windows(2).enumerate();
            let n_whole = behind
                .take_while(|(idx, pair)| {
                    idx + 1 < n_forced || self.is_whole_after(pair[0], pair[1], streams)
                })
                .count();
            whole.extend(images.drain(..=n_whole).map(|image| (stream_idx, image)));
        }
        self.compute_whole(&whole, streams)?;
        partial.sort_by_key(|(_, _, plan)| plan.n_computed());
        let is_even = |a: &(usize, usize, Plan), b: &(usize, usize, Plan)| {
            b.2.n_computed() as f32 <= UNEVEN * a.2.n_computed() as f32
        };
        for group in partial.chunk_by_mut(is_even) {
            self.compute_partially(group, streams)?;
        }
        Ok(())
    }

    fn plan(&self, stream_idx: usize, image: usize, streams: &Streams<'_>) -> Option<Plan> {
        let kept = streams.kept(stream_idx)?;
        let is_usable = kept.sizes == self.sizes && kept.held.has(self.vit, self.needs.sites());
        if streams.begins_scene(image) || !is_usable || kept.n_whole > 0 {
            return None;
        }
        let after = &self.pixels[image];
        self.reuse.plan(&kept.pixels, after, self.sizes, kept.next)
    }

    /// True if a frame is computed whole even if the frame before it is.
    fn is_whole_after(&self, before: usize, image: usize, streams: &Streams<'_>) -> bool {
        let (before, after) = (&self.pixels[before], &self.pixels[image]);
        streams.begins_scene(image) || self.reuse.plan(before, after, self.sizes, 0).is_none()
    }

    /// Computes whole frames, each given with its stream, in one batch.
    fn compute_whole(
        &mut self,
        images: &[(usize, usize)],
        streams: &mut Streams<'_>,
    ) -> Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = images.iter().map(|(_, image)| *image as u32).collect();
        let batch = self
            .images
            .index_select(&Tensor::new(rows, self.images.device())?, 0)?;
        let (output, held) = self.vit.forward_and_hold(&batch, self.needs.sites())?;
        for (row, (&(stream_idx, image), held)) in images.iter().zip(held).enumerate() {
            self.pass(image, &output, row, &held)?;
            let n_patches = self.sizes.n_patches();
            let before = streams.kept(stream_idx);
            let kept = Kept {
                held,
                pixels: self.pixels[image].clone(),
                sizes: self.sizes,
                next: before.map_or(0, |before| before.next),
                n_drifted: before.map_or(0, |before| before.n_drifted),
                n_whole: before.map_or(0, |before| before.n_whole.saturating_sub(1)),
            };
            streams.keep(stream_idx, kept, n_patches, n_patches);
        }
        Ok(())
    }

    /// Computes some patches of frames, each given with its stream, in one batch, and frames that drifted too far whole.
    fn compute_partially(
        &mut self,
        frames: &mut [(usize, usize, Plan)],
        streams: &mut Streams<'_>,
    ) -> Result<()> {
        let n_special = self.vit.config().n_special_tokens();
        let n_patches = self.sizes.n_patches();
        let most = frames.iter().map(|(_, _, plan)| plan.n_computed()).max();
        let mut kept = Vec::with_capacity(frames.len());
        for (stream_idx, image, plan) in frames.iter_mut() {
            let Some(mut own) = streams.take_kept(*stream_idx) else {
                return Err(Error::Model("a stream was forgotten within a batch".into()));
            };
            let n_in_turn = most.unwrap_or(0) - plan.changed.len();
            plan.fill(n_in_turn, own.next, n_patches);
            if let Some(last) = plan.in_turn.last() {
                own.next = (last + 1) % n_patches;
            }
            for &patch in plan.changed.iter().chain(&plan.in_turn) {
                let pixels = &self.pixels[*image];
                self.sizes.copy_patch(patch, pixels, &mut own.pixels);
            }
            kept.push(own);
        }
        let Sizes {
            height_px,
            width_px,
            ..
        } = self.sizes;
        let pixels: Vec<f32> = kept.iter().flat_map(|own| &own.pixels).copied().collect();
        let shape = (frames.len(), 3, height_px, width_px);
        let images = Tensor::from_vec(pixels, shape, self.images.device())?;
        let images = images.to_dtype(self.images.dtype())?;
        let tokens = frames.iter().map(|(_, _, plan)| plan.tokens(n_special));
        let tokens: Vec<Vec<u32>> = tokens.collect();
        let before = frames.iter().zip(&kept).map(|((_, _, plan), own)| {
            let tokens = own.held.get(Site::Tokens)?;
            rows_of(tokens, &plan.in_turn, n_special)
        });
        let before = before.collect::<Result<Vec<Tensor>>>()?;
        let mut held: Vec<&mut Held> = kept.iter_mut().map(|own| &mut own.held).collect();
        let output = self.vit.forward_some(&images, &tokens, &mut held)?;
        let results = frames.iter().zip(kept).zip(before).enumerate();
        let mut drifted = Vec::new();
        for (row, (((stream_idx, image, plan), mut own), before)) in results {
            let tokens = own.held.get(Site::Tokens)?;
            let after = rows_of(tokens, &plan.in_turn, n_special)?;
            if cosine_distance(&before, &after)? > self.reuse.limit {
                own.n_drifted = MOST_DOUBLINGS.min(own.n_drifted + 1);
                own.n_whole = (1 << own.n_drifted) - 1;
                drifted.push((*stream_idx, *image));
                streams.keep(*stream_idx, own, plan.n_computed(), 0);
            } else {
                self.pass(*image, &output, row, &own.held)?;
                own.n_drifted = 0;
                streams.keep(*stream_idx, own, plan.n_computed(), n_patches);
            }
        }
        self.compute_whole(&drifted, streams)
    }

    /// Copies the results of an image, which is row `row` of its batch.
    fn pass(&mut self, image: usize, output: &Output, row: usize, held: &Held) -> Result<()> {
        let own = |xs: &Tensor| xs.narrow(0, row, 1)?.force_contiguous();
        let sites = self.needs.sites().iter();
        let sites = sites.map(|&site| Ok((site, held.get(site)?.force_contiguous()?)));
        self.passed[image] = Some(Passed {
            output: Output {
                tokens: own(&output.tokens)?,
                logits: output.logits.as_ref().map(own).transpose()?,
            },
            sites: sites.collect::<Result<_>>()?,
        });
        Ok(())
    }

    /// The results of all images as one pass.
    fn joined(self) -> Result<Forward<'a>> {
        let passed: Vec<Passed> = self.passed.into_iter().flatten().collect();
        let joined = |part: &dyn Fn(&Passed) -> Option<Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<Tensor> = passed.iter().filter_map(part).collect();
            match parts.is_empty() {
                true => Ok(None),
                false => Ok(Some(Tensor::cat(&parts, 0)?)),
            }
        };
        let logits = joined(&|passed| passed.output.logits.clone())?;
        let Some(tokens) = joined(&|passed| Some(passed.output.tokens.clone()))? else {
            return Err(Error::Model("there are no images to explain".into()));
        };
        let mut values = BTreeMap::new();
        for &site in self.needs.sites() {
            if let Some(value) = joined(&|passed| passed.sites.get(&site).cloned())? {
                values.insert(site, value);
            }
        }
        let output = Output { tokens, logits };
        Forward::of(self.vit, self.images, output, values)
    }
}

/// The tokens of patches.
///
/// # Shapes
/// - `tokens`: `[1, tokens, dim]`
/// - result: `[patches, dim]`
fn rows_of(tokens: &Tensor, patches: &[usize], n_special: usize) -> Result<Tensor> {
    let rows = patches.iter().map(|patch| (patch + n_special) as u32);
    let rows = Tensor::new(rows.collect::<Vec<u32>>(), tokens.device())?;
    Ok(tokens.squeeze(0)?.index_select(&rows, 0)?)
}

/// Mean of 1 − cos over the rows; 0 without rows.
fn cosine_distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    if a.dim(0)? == 0 {
        return Ok(0.0);
    }
    let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(1);
    let lengths = (dot(a, a)? * dot(b, b)?)?.sqrt()?;
    let cosines = (dot(a, b)? / (lengths + f64::from(f32::MIN_POSITIVE))?)?;
    let mean = cosines.to_dtype(DType::F32)?.mean_all()?;
    Ok(1.0 - mean.to_scalar::<f32>()?)
}
