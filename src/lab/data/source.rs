//! Data sets by reference, as named on the command line or in a recipe.
//!
//! `red-patches` and `biased-patches` are generated; `celeba:FOLDER,CLASS,GROUP` is CelebA. A folder is CIFAR-10 if it
//! holds that data set's files, otherwise images and videos; a file is a video. If images are in `train` and `test`
//! subfolders, each is one half. Otherwise, every tenth image and the last tenth of each video are held out.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::biased::BiasedPatches;
use super::celeba::CelebA;
use super::cifar::{self, Cifar};
#[cfg(feature = "media")]
use super::clip::{Clip, Sampling};
use super::folder::{self, Folder};
use super::red_patches::RedPatches;
use super::{Dataset, Grouped, Picture, Split, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::frame::placement::ResizeRule;
use vitscope_core::frame::resize::Resampling;

/// Reference of the generated task.
pub const RED_PATCHES: &str = "red-patches";

/// Reference of the generated task with a biased attribute.
pub const BIASED_PATCHES: &str = "biased-patches";
/// Prefix of references to CelebA: a folder and two attribute names follow.
const CELEBA: &str = "celeba:";

/// Share of training images of the biased task whose attribute matches their class.
const BIAS: f32 = 0.8;
/// Log-odds of its classes per red cell: around four red cells, the attribute is more informative.
const SLOPE: f32 = 1.2;

/// Rows and columns of a generated grid, as in the paper.
const GRID: usize = 3;
/// Edge of a generated cell in pixels, as in the paper.
const CELL_PX: usize = 16;
/// Number of generated training grids; eight epochs of the paper's.
const TRAIN_GRIDS: usize = 4_800;
/// Number of generated test grids.
const TEST_GRIDS: usize = 1_000;
/// One in this many images is held out if a folder is not split.
const HELD_OUT_EVERY: usize = 10;

/// Both halves of a data set.
#[derive(Clone)]
pub struct Halves {
    /// Training half.
    pub train: Arc<dyn Dataset>,
    /// Test half.
    pub test: Arc<dyn Dataset>,
}

/// Opens a data set. `rule` and `resampling` bring images of a folder to the model's size; `seed` draws generated
/// images.
///
/// # Errors
/// [`vitscope_core::Error::Data`] if the data set does not exist, is empty or is damaged.
pub fn open(
    reference: &str,
    rule: ResizeRule,
    resampling: Resampling,
    seed: u64,
) -> Result<Halves> {
    if reference == RED_PATCHES {
        let half = |len, split| RedPatches::new(GRID, CELL_PX, len, seed, split);
        return Ok(Halves {
            train: Arc::new(half(TRAIN_GRIDS, Split::Train)?),
            test: Arc::new(half(TEST_GRIDS, Split::Test)?),
        });
    }
    if is_grouped(reference) {
        let half = |split| -> Result<Arc<dyn Dataset>> {
            Ok(open_grouped(reference, split, rule, resampling, seed)?)
        };
        return Ok(Halves {
            train: half(Split::Train)?,
            test: half(Split::Test)?,
        });
    }
    let folder = Path::new(reference);
    if cifar::is_cifar(folder) {
        return Ok(Halves {
            train: Arc::new(Cifar::open(folder, Split::Train)?),
            test: Arc::new(Cifar::open(folder, Split::Test)?),
        });
    }
    let halves = [folder.join("train"), folder.join("test")];
    if halves.iter().all(|half| half.is_dir()) {
        let [train, test] = halves.map(|half| Folder::open(&half, rule, resampling));
        return Ok(Halves {
            train: Arc::new(train?),
            test: Arc::new(test?),
        });
    }
    let videos = videos(folder)?;
    if videos.is_empty() {
        return pictures(folder, rule, resampling);
    }
    let mut parts = Vec::new();
    let mut unreadable = Vec::new();
    for video in &videos {
        match clip(video, rule, resampling) {
            Ok(halves) => parts.push(halves),
            Err(error) if folder.is_file() => return Err(error),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    if folder.is_dir() && folder::has_pictures(folder)? {
        parts.push(pictures(folder, rule, resampling)?);
    }
    match (parts.is_empty(), unreadable.first()) {
        (true, Some(reason)) => Err(Error::Data(reason.clone())),
        _ => Ok(Halves::joined(folder, parts, unreadable)),
    }
}

/// Opens labeled images for evaluation: the test half if there is one, or all images of a folder with one folder per
/// class. In folders, only images whose file names satisfy `is_chosen` are used, if given.
///
/// # Errors
/// [`Error::Data`] as for [`open`], if images have no labels, or if there are no file names to choose by.
pub fn open_labeled(
    reference: &str,
    rule: ResizeRule,
    resampling: Resampling,
    is_chosen: Option<&dyn Fn(&str) -> bool>,
) -> Result<Arc<dyn Dataset>> {
    let folder = Path::new(reference);
    if reference == RED_PATCHES || is_grouped(reference) || cifar::is_cifar(folder) {
        if is_chosen.is_some() {
            return Err(Error::Data(format!(
                "pictures have no file names to select by, expected a folder per class: {reference:?}"
            )));
        }
        let halves = open(reference, rule, resampling, 0)?;
        return Ok(halves.at_size(rule, resampling).test);
    }
    if folder.is_file() {
        return Err(Error::Data(format!(
            "expected a folder per class, got a file: {folder:?}"
        )));
    }
    let halves = [folder.join("train"), folder.join("test")];
    let [_, test] = &halves;
    let folder = match halves.iter().all(|half| has_folders(half)) {
        true => test,
        false => folder,
    };
    let (classes, loose) = folder::list(folder)?;
    if classes.is_empty() && !loose.is_empty() {
        return Err(Error::Data(format!(
            "expected a folder per class, but the folder itself contains pictures: {folder:?}"
        )));
    }
    if let Some(part) = classes.iter().find(|class| has_folders(class)) {
        return Err(Error::Data(format!(
            "expected a folder per class, but {:?} contains folders; pass the part to measure on: {folder:?}",
            folder::file_name(part)
        )));
    }
    let is_chosen = is_chosen.unwrap_or(&|_| true);
    let folder = Folder::open_chosen(folder, rule, resampling, is_chosen)?;
    Ok(Arc::new(folder))
}

/// Returns true if a folder holds folders and no images, like a split of a data set.
fn has_folders(folder: &Path) -> bool {
    folder::list(folder).is_ok_and(|(folders, pictures)| !folders.is_empty() && pictures.is_empty())
}

fn is_grouped(reference: &str) -> bool {
    reference == BIASED_PATCHES || reference.starts_with(CELEBA)
}

/// Opens one half of a data set whose images belong to groups: `biased-patches`, or `celeba:FOLDER,CLASS,GROUP` with
/// two attribute names.
///
/// # Errors
/// [`vitscope_core::Error::Data`] if the data set does not exist or is damaged.
pub fn open_grouped(
    reference: &str,
    split: Split,
    rule: ResizeRule,
    resampling: Resampling,
    seed: u64,
) -> Result<Arc<dyn Grouped>> {
    let Some(rest) = reference.strip_prefix(CELEBA) else {
        if reference != BIASED_PATCHES {
            return Err(Error::Data(format!(
                "pictures have no groups, expected {BIASED_PATCHES} or {CELEBA}FOLDER,CLASS,GROUP: {reference:?}"
            )));
        }
        let len = match split {
            Split::Train => TRAIN_GRIDS,
            Split::Test => TEST_GRIDS,
        };
        return Ok(Arc::new(BiasedPatches::new(len, BIAS, SLOPE, seed, split)?));
    };
    let parts: Vec<&str> = rest.rsplitn(3, ',').collect();
    let [group, class, folder] = parts[..] else {
        return Err(Error::Data(format!(
            "expected {CELEBA}FOLDER,CLASS,GROUP with two attributes, got {reference:?}"
        )));
    };
    let folder = Path::new(folder);
    Ok(Arc::new(CelebA::open(
        folder, class, group, split, rule, resampling,
    )?))
}

/// Extensions of files that are treated as videos.
const VIDEOS: [&str; 8] = ["mp4", "mkv", "mov", "webm", "avi", "m4v", "mpg", "ts"];

/// Returns the video itself, or the sorted videos of a folder.
fn videos(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    if !path.is_dir() {
        return Err(Error::Data(format!("no such file or folder: {path:?}")));
    }
    let mut videos = Vec::new();
    for entry in fs::read_dir(path).map_err(|err| Error::io(path, err))? {
        let path = entry.map_err(|err| Error::io(path, err))?.path();
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        let is_video = |known: &&str| ending.as_deref() == Some((*known).as_ref());
        if path.is_file() && VIDEOS.iter().any(is_video) {
            videos.push(path);
        }
    }
    videos.sort();
    Ok(videos)
}

/// Opens a folder of images and holds out every tenth.
fn pictures(folder: &Path, rule: ResizeRule, resampling: Resampling) -> Result<Halves> {
    let all: Arc<dyn Dataset> = Arc::new(Folder::open(folder, rule, resampling)?);
    let held_out = |index: &usize| index.is_multiple_of(HELD_OUT_EVERY);
    let (test, train) = (0..all.len()).partition(held_out);
    Ok(Halves::of(&all, train, test))
}

/// Opens a video and holds out its last tenth, because neighboring frames look alike.
#[cfg(feature = "media")]
fn clip(path: &Path, rule: ResizeRule, resampling: Resampling) -> Result<Halves> {
    let mut source = vitscope_video::media::read(path)?;
    let name = folder::file_name(path);
    let clip = Clip::read(&mut source, &name, rule, resampling, Sampling::default())?;
    let all: Arc<dyn Dataset> = Arc::new(clip);
    let n_train = all.len() - all.len().div_ceil(HELD_OUT_EVERY);
    Ok(Halves::of(
        &all,
        (0..n_train).collect(),
        (n_train..all.len()).collect(),
    ))
}

/// Videos cannot be read without GStreamer.
#[cfg(not(feature = "media"))]
fn clip(path: &Path, _rule: ResizeRule, _resampling: Resampling) -> Result<Halves> {
    Err(Error::Data(format!(
        "this program was built without the feature `media`, which is needed to read videos: {path:?}"
    )))
}

impl Halves {
    fn of(all: &Arc<dyn Dataset>, train: Vec<usize>, test: Vec<usize>) -> Self {
        let half = |indices| -> Arc<dyn Dataset> {
            Arc::new(Subset {
                all: Arc::clone(all),
                indices,
            })
        };
        Self {
            train: half(train),
            test: half(test),
        }
    }

    /// Resizes the images to the size of `rule` if they have another.
    #[must_use]
    pub fn at_size(self, rule: ResizeRule, resampling: Resampling) -> Self {
        let resized = |all: Arc<dyn Dataset>| -> Arc<dyn Dataset> {
            if all.size() == rule.image_size() {
                return all;
            }
            Arc::new(Resized {
                all,
                rule,
                resampling,
            })
        };
        Self {
            train: resized(self.train),
            test: resized(self.test),
        }
    }

    /// Concatenates the parts, without labels.
    fn joined(path: &Path, parts: Vec<Self>, unreadable: Vec<String>) -> Self {
        let name = folder::file_name(path);
        let (train, test) = parts
            .into_iter()
            .map(|part| (part.train, part.test))
            .unzip();
        Self {
            train: Arc::new(Joined {
                name: name.clone(),
                parts: train,
                unreadable,
            }),
            test: Arc::new(Joined {
                name,
                parts: test,
                unreadable: Vec::new(),
            }),
        }
    }
}

/// Concatenation of data sets with the same image size; labels are dropped because their meanings differ.
struct Joined {
    name: String,
    parts: Vec<Arc<dyn Dataset>>,
    unreadable: Vec<String>,
}

impl Dataset for Joined {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    fn size(&self) -> FrameSize {
        let first = self.parts.first();
        first.map_or(
            FrameSize {
                width_px: 0,
                height_px: 0,
            },
            |part| part.size(),
        )
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let mut within = index;
        for part in &self.parts {
            if within < part.len() {
                return part.picture(within);
            }
            within -= part.len();
        }
        Err(out_of_range(&self.name, index, self.len()))
    }

    fn label(&self, _index: usize) -> Option<usize> {
        None
    }

    fn unreadable(&self) -> Vec<String> {
        let parts = self.parts.iter().flat_map(|part| part.unreadable());
        self.unreadable.iter().cloned().chain(parts).collect()
    }
}

/// Images of a data set, resized.
struct Resized {
    all: Arc<dyn Dataset>,
    rule: ResizeRule,
    resampling: Resampling,
}

impl Dataset for Resized {
    fn name(&self) -> &str {
        self.all.name()
    }

    fn len(&self) -> usize {
        self.all.len()
    }

    fn size(&self) -> FrameSize {
        self.rule.image_size()
    }

    fn classes(&self) -> &[String] {
        self.all.classes()
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        self.all.picture(index)?.resized(self.rule, self.resampling)
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.all.label(index)
    }

    fn unreadable(&self) -> Vec<String> {
        self.all.unreadable()
    }
}

/// Subset of the images of a data set.
struct Subset {
    all: Arc<dyn Dataset>,
    indices: Vec<usize>,
}

impl Dataset for Subset {
    fn name(&self) -> &str {
        self.all.name()
    }

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn size(&self) -> FrameSize {
        self.all.size()
    }

    fn classes(&self) -> &[String] {
        self.all.classes()
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let index = self
            .indices
            .get(index)
            .ok_or_else(|| out_of_range(self.name(), index, self.len()))?;
        self.all.picture(*index)
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.all.label(*self.indices.get(index)?)
    }

    fn unreadable(&self) -> Vec<String> {
        self.all.unreadable()
    }
}
