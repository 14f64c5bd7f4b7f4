//! CelebA (Liu et al., ICCV 2015): faces with forty attributes, one of which is the class and another the group.
//!
//! A folder as published: `img_align_celeba/*.jpg`, `list_attr_celeba.txt` and `list_eval_partition.txt`. The
//! widespread `.csv` versions of the lists are supported, too. Attributes are 1 or -1, partitions 0 (train), 1
//! (validation, left out) and 2 (test).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::folder::read_picture;
use super::{Dataset, Grouped, Picture, Split, out_of_range};
use vitscope_core::error::{Error, Result, unknown};
use vitscope_core::frame::FrameSize;
use vitscope_core::frame::placement::ResizeRule;
use vitscope_core::frame::resize::Resampling;

const PICTURES: &str = "img_align_celeba";

/// Half of CelebA with one attribute as the class and one as the group.
pub struct CelebA {
    classes: Vec<String>,
    attribute: String,
    rule: ResizeRule,
    resampling: Resampling,
    faces: Vec<Face>,
}

struct Face {
    path: PathBuf,
    is_class: bool,
    in_group: bool,
}

impl CelebA {
    /// Reads the lists of `folder`; `class` and `group` are attribute names.
    ///
    /// # Errors
    /// [`Error::Data`] if a list is missing or malformed, or lacks the attribute.
    pub fn open(
        folder: &Path,
        class: &str,
        group: &str,
        split: Split,
        rule: ResizeRule,
        resampling: Resampling,
    ) -> Result<Self> {
        let (names, attributes) = table(folder, "list_attr_celeba")?;
        let column = |wanted: &str| {
            let found = names
                .iter()
                .position(|name| name.eq_ignore_ascii_case(wanted));
            found.ok_or_else(|| {
                let known = names.iter().map(String::as_str);
                Error::Data(unknown("attribute", wanted, known))
            })
        };
        let (class_column, group_column) = (column(class)?, column(group)?);
        let (_, partitions) = table(folder, "list_eval_partition")?;
        let partitions: HashMap<String, i32> = partitions
            .into_iter()
            .filter_map(|(file, values)| Some((file, *values.first()?)))
            .collect();
        let wanted = match split {
            Split::Train => 0,
            Split::Test => 2,
        };
        let faces: Vec<Face> = attributes
            .into_iter()
            .filter(|(file, _)| partitions.get(file) == Some(&wanted))
            .map(|(file, values)| Face {
                path: folder.join(PICTURES).join(file),
                is_class: values.get(class_column) == Some(&1),
                in_group: values.get(group_column) == Some(&1),
            })
            .collect();
        if faces.is_empty() {
            return Err(Error::Data(format!(
                "CelebA has no faces in this split: {folder:?}"
            )));
        }
        Ok(Self {
            classes: vec![format!("not {class}"), class.to_owned()],
            attribute: group.to_owned(),
            rule,
            resampling,
            faces,
        })
    }
}

/// Column names, if the list has a heading, and rows of numbers by file name.
type Table = (Vec<String>, Vec<(String, Vec<i32>)>);

/// Reads a list in the published format (separated by blanks) or as CSV.
fn table(folder: &Path, stem: &str) -> Result<Table> {
    let path = ["txt", "csv"]
        .map(|ending| folder.join(format!("{stem}.{ending}")))
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::Data(format!(
                "CelebA's folder has no {stem}.txt or .csv: {folder:?}"
            ))
        })?;
    let text = fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    for (line_idx, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line
            .split(|letter: char| letter == ',' || letter.is_whitespace())
            .filter(|cell| !cell.is_empty())
            .collect();
        let numbers: Option<Vec<i32>> =
            cells.iter().skip(1).map(|cell| cell.parse().ok()).collect();
        match (cells.first(), numbers) {
            (Some(file), Some(numbers)) if !numbers.is_empty() => {
                rows.push(((*file).to_owned(), numbers));
            }
            // The number of faces, or the heading, which starts with the file column in a CSV.
            _ if rows.is_empty() && line_idx < 2 => {
                let skipped = usize::from(cells.first() == Some(&"image_id"));
                names = cells
                    .iter()
                    .skip(skipped)
                    .map(|name| (*name).to_owned())
                    .collect();
            }
            _ if cells.is_empty() => (),
            _ => {
                return Err(Error::Data(format!(
                    "CelebA's list is malformed at line {}: {path:?}",
                    line_idx + 1
                )));
            }
        }
    }
    Ok((names, rows))
}

impl Dataset for CelebA {
    fn name(&self) -> &str {
        "celeba"
    }

    fn len(&self) -> usize {
        self.faces.len()
    }

    fn size(&self) -> FrameSize {
        self.rule.image_size()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn picture(&self, index: usize) -> Result<Picture> {
        let face = self.faces.get(index);
        let face = face.ok_or_else(|| out_of_range(self.name(), index, self.len()))?;
        read_picture(&face.path)?.resized(self.rule, self.resampling)
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.faces.get(index).map(|face| usize::from(face.is_class))
    }
}

impl Grouped for CelebA {
    fn attribute(&self) -> &str {
        &self.attribute
    }

    fn in_group(&self, index: usize) -> Option<bool> {
        self.faces.get(index).map(|face| face.in_group)
    }
}
