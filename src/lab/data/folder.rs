//! Images on disk: a folder of PNG and JPEG files, or one subfolder per class.
//!
//! Files are read on demand, rotated according to their EXIF data, composited onto white if they are transparent, and
//! resized to the model's size. Headers are read once at the start. Files that are not images, or turn out to be
//! damaged or truncated later, are left out and reported by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Dataset, Picture, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;
use vitscope_core::frame::placement::ResizeRule;
use vitscope_core::frame::resize::Resampling;
use vitscope_core::picture::{self, FilePicture};

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Images of a folder, at one size.
pub struct Folder {
    name: String,
    size: FrameSize,
    rule: ResizeRule,
    resampling: Resampling,
    classes: Vec<String>,
    files: Vec<(PathBuf, Option<usize>)>,
    /// Reasons by path.
    unreadable: Mutex<BTreeMap<PathBuf, String>>,
}

impl Folder {
    /// Lists the images in `folder`, sorted by name, to be resized by `rule`.
    ///
    /// If there are subfolders, each is a class and `folder` itself holds no images; otherwise, images have no labels.
    ///
    /// # Errors
    /// [`Error::Data`] if the folder does not exist or holds no readable image, or if images lie next to the class
    /// folders.
    pub fn open(folder: &Path, rule: ResizeRule, resampling: Resampling) -> Result<Self> {
        Self::open_chosen(folder, rule, resampling, &|_| true)
    }

    /// Like [`Self::open`], but only for files whose names are chosen; classes may end up without images.
    ///
    /// # Errors
    /// As for [`Self::open`], and [`Error::Data`] if no file is chosen.
    pub fn open_chosen(
        folder: &Path,
        rule: ResizeRule,
        resampling: Resampling,
        is_chosen: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let (folders, loose) = list(folder)?;
        let mut classes = Vec::new();
        let mut files = Vec::new();
        if folders.is_empty() {
            files.extend(loose.into_iter().map(|path| (path, None)));
        } else {
            if let Some(path) = loose.first() {
                return Err(Error::Data(format!(
                    "picture lies beside the class folders, expected inside one of them: {path:?}"
                )));
            }
            for class in folders {
                let (_, pictures) = list(&class)?;
                if pictures.is_empty() {
                    return Err(Error::Data(format!("class has no pictures: {class:?}")));
                }
                files.extend(pictures.into_iter().map(|path| (path, Some(classes.len()))));
                classes.push(file_name(&class));
            }
        }
        if files.is_empty() {
            return Err(Error::Data(format!(
                "folder has no pictures, neither PNG nor JPEG: {folder:?}"
            )));
        }
        let n_files = files.len();
        files.retain(|(path, _)| is_chosen(&file_name(path)));
        if files.is_empty() {
            return Err(Error::Data(format!(
                "none of the {n_files} pictures has a requested file name: {folder:?}"
            )));
        }
        let mut unreadable = BTreeMap::new();
        files.retain(|(path, _)| match image::image_dimensions(path) {
            Ok(_) => true,
            Err(error) => {
                unreadable.insert(path.clone(), error.to_string());
                false
            }
        });
        if let (true, Some((path, error))) = (files.is_empty(), unreadable.first_key_value()) {
            return Err(unreadable_picture(path, error));
        }
        Ok(Self {
            unreadable: Mutex::new(unreadable),
            name: file_name(folder),
            size: rule.image_size(),
            rule,
            resampling,
            classes,
            files,
        })
    }

    /// Returns the path of each image.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }
}

impl Dataset for Folder {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn size(&self) -> FrameSize {
        self.size
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let (path, _) = self
            .files
            .get(index)
            .ok_or_else(|| out_of_range(&self.name, index, self.len()))?;
        let leave_out = |reason: String| {
            let error = unreadable_picture(path, &reason);
            let mut known = self
                .unreadable
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            known.insert(path.clone(), reason);
            error
        };
        let picture = decode(path).map_err(leave_out)?;
        let resized = picture.resized(self.rule, self.resampling);
        resized.map_err(|error| leave_out(error.to_string()))
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.files.get(index).and_then(|(_, label)| *label)
    }

    fn unreadable(&self) -> Vec<String> {
        let known = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let named = known
            .iter()
            .map(|(path, reason)| format!("{reason}: {path:?}"));
        named.collect()
    }
}

/// Returns true if the folder itself holds images.
pub(super) fn has_pictures(folder: &Path) -> Result<bool> {
    Ok(!list(folder)?.1.is_empty())
}

/// Returns the sorted subfolders and images of a folder, ignoring hidden and other files.
pub(super) fn list(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    if !folder.is_dir() {
        return Err(Error::Data(format!("no such folder: {folder:?}")));
    }
    let (mut folders, mut pictures) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(|err| Error::io(folder, err))? {
        let path = entry.map_err(|err| Error::io(folder, err))?.path();
        if file_name(&path).starts_with('.') {
            continue;
        }
        let extension = path
            .extension()
            .map(|extension| extension.to_ascii_lowercase());
        if path.is_dir() {
            folders.push(path);
        } else if EXTENSIONS
            .iter()
            .any(|known| extension.as_deref() == Some((*known).as_ref()))
        {
            pictures.push(path);
        }
    }
    folders.sort();
    pictures.sort();
    Ok((folders, pictures))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || "folder".into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Reads the image in a file, rotated upright.
///
/// # Errors
/// [`Error::Data`] if the image cannot be read.
pub(super) fn read_picture(path: &Path) -> Result<Picture> {
    decode(path).map_err(|reason| unreadable_picture(path, &reason))
}

fn decode(path: &Path) -> Result<Picture, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let FilePicture { image, is_whole } =
        picture::decode(&bytes).map_err(|error| error.to_string())?;
    if !is_whole {
        return Err("the file ends early".into());
    }
    Ok(Picture {
        size: FrameSize {
            width_px: image.width() as usize,
            height_px: image.height() as usize,
        },
        rgb: image.into_raw(),
    })
}

fn unreadable_picture(path: &Path, reason: &str) -> Error {
    Error::Data(format!("picture cannot be read: {reason}: {path:?}"))
}
