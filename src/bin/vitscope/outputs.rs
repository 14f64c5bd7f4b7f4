//! Files that appear under their names only when they are complete.
//!
//! `media` handles the video's own `.part` file; this module handles all others.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::bail;
use image::ImageFormat;
use vitscope_core::error::{Error, Result};
use vitscope_core::files::{is_address, is_folder_name, part_path};

/// Returns the format of a picture, given its file name.
///
/// # Errors
/// [`Error::Config`] if it is neither PNG nor JPEG.
pub fn picture_format(path: &Path) -> Result<ImageFormat> {
    match ImageFormat::from_path(path) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => Ok(format),
        _ => Err(Error::Config(format!(
            "unknown extension, expected png, jpg or jpeg: {path:?}"
        ))),
    }
}

/// A file that is written as `NAME.part` and renamed when it is complete.
pub struct Output {
    path: PathBuf,
    part: PathBuf,
    committed: bool,
}

impl Output {
    /// Claims the name without creating a file.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            part: part_path(path),
            committed: false,
        }
    }

    /// Opens the unfinished file for writing.
    pub fn create(&self) -> Result<File> {
        File::create(&self.part).map_err(|error| Error::io(&self.path, error))
    }

    /// Returns the path of the unfinished file.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Returns the final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the complete file its final name.
    pub fn commit(mut self) -> Result<()> {
        fs::rename(&self.part, &self.path).map_err(|error| Error::io(&self.path, error))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.committed {
            // The file may not have been created.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Refuses outputs that would overwrite an input, each other, or a file that may not be overwritten.
pub fn check(outputs: &[&Path], taken: &[&Path], overwrite: bool) -> anyhow::Result<()> {
    for (output_idx, output) in outputs.iter().enumerate() {
        if is_address(output) {
            bail!("the output is a URL, expected a file to write: {output:?}");
        }
        if is_folder_name(output) {
            bail!("the output is the name of a directory, expected a file to write: {output:?}");
        }
        let folder = folder_of(output);
        if !folder.is_dir() {
            bail!("the output directory does not exist: {output:?}");
        }
        // Renaming a complete file over a device would replace the device.
        if output.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            bail!("the output is not a regular file, expected a file to write: {output:?}");
        }
        if outputs[..output_idx].contains(output) {
            bail!("two outputs would have this name: {output:?}");
        }
        let mut others = taken.iter().chain(&outputs[..output_idx]);
        let collides = |other: &&&Path| {
            let (part, other_part) = (part_path(output), part_path(other));
            same(output, other) || same(&part, other) || same(output, &other_part)
        };
        if let Some(other) = others.find(collides) {
            if other.as_os_str() == output.as_os_str() {
                bail!("the command already uses this file: {output:?}");
            }
            bail!("the output would overwrite {other:?}: {output:?}");
        }
        if output.symlink_metadata().is_ok() && !overwrite {
            bail!("the output already exists; use --overwrite to replace it: {output:?}");
        }
    }
    Ok(())
}

/// Returns the folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Returns whether both names refer to the same file, even if it does not exist yet.
fn same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let folder = folder_of(path).canonicalize().ok()?;
            Some(folder.join(path.file_name()?))
        })
    };
    a == b || identity(a).is_some_and(|a| Some(a) == identity(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_appears_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let output = Output::new(&path);
        output.create().unwrap();
        assert!(output.part().exists() && !path.exists());
        drop(output);
        assert_eq!(0, fs::read_dir(&folder).unwrap().count());

        let output = Output::new(&path);
        output.create().unwrap();
        output.commit().unwrap();
        assert!(path.exists());
        assert_eq!(1, fs::read_dir(&folder).unwrap().count());
    }

    #[test]
    fn two_names_of_one_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (video, sidecar) = (folder.path().join("in.mp4"), folder.path().join("./in.mp4"));
        let error = check(&[&sidecar], &[&video], true).unwrap_err().to_string();
        assert!(error.starts_with("the output would overwrite"), "{error}");
        let error = check(&[&video, &sidecar], &[], true)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("two outputs"), "{error}");
    }

    #[test]
    fn an_output_is_not_written_over_an_unfinished_one() {
        let [a, part] = [Path::new("a"), Path::new("./a.part")];
        for (first, second) in [(a, part), (part, a)] {
            let error = check(&[first, second], &[], true).unwrap_err().to_string();
            assert!(error.starts_with("the output would overwrite"), "{error}");
        }
    }

    #[test]
    fn an_output_that_exists_needs_permission() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        assert!(check(&[&path], &[], false).is_ok());
        File::create(&path).unwrap();
        assert!(check(&[&path], &[], false).is_err());
        assert!(check(&[&path], &[], true).is_ok());
    }

    #[test]
    fn an_output_needs_its_directory() {
        let error = check(&[Path::new("/no/such/a.png")], &[], false).unwrap_err();
        assert_eq!(
            "the output directory does not exist: \"/no/such/a.png\"",
            error.to_string()
        );
    }
}
