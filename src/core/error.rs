//! The library's error type, with one variant per kind of cause.

use std::path::PathBuf;

/// An error of the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, option or recipe provided by the user is wrong.
    #[error("{0}")]
    Config(String),
    /// A model folder, its weights or its gates are unusable.
    #[error("{0}")]
    Model(String),
    /// A data set is missing, empty or broken.
    #[error("{0}")]
    Data(String),
    /// A video could not be read, decoded, encoded or written.
    #[error("{0}")]
    Media(String),
    /// A pipeline stage failed.
    #[error("stage {name} failed: {source}")]
    Stage {
        /// Thread name of the stage.
        name: &'static str,
        /// The stage's error.
        source: Box<Error>,
    },
    /// A tensor does not have the expected shape.
    #[error("expected shape {expected}, got {got}")]
    Shape {
        /// As text or as a list of sizes.
        expected: String,
        /// As a list of sizes.
        got: String,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The operating system refused to read or write a file.
    #[error("{source}: {path:?}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}

impl Error {
    /// An I/O failure at `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The value with this name, or an error with suggestions.
pub fn by_name<T: Copy>(
    what: &str,
    name: &str,
    all: &[T],
    name_of: fn(T) -> &'static str,
) -> Result<T> {
    all.iter()
        .copied()
        .find(|&value| name_of(value) == name)
        .ok_or_else(|| Error::Config(unknown(what, name, all.iter().copied().map(name_of))))
}

/// Error message for a mistyped `name`, with the most similar names in `known`, or all of them if none is similar.
pub fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let is_near = |known: &&str| {
        let distance = strsim::levenshtein(known, name);
        !name.is_empty() && (known.contains(name) || distance <= 2 && 2 * distance <= name.len())
    };
    let mut near: Vec<&str> = known.iter().copied().filter(is_near).collect();
    near.sort_by_key(|known| strsim::levenshtein(known, name));
    near.truncate(MOST_NEAR);
    match near.as_slice() {
        [] => format!(
            "unknown {what} {name:?}, expected one of {}",
            known.join(", ")
        ),
        near => format!(
            "unknown {what} {name:?}; did you mean {}?",
            near.join(" or ")
        ),
    }
}

/// Largest number of suggested names.
const MOST_NEAR: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_told_the_near_ones_or_all() {
        let told = |name: &str| unknown("mode", name, ["overlay", "mask", "dim"].into_iter());
        assert_eq!(told("maks"), "unknown mode \"maks\"; did you mean mask?");
        assert_eq!(told("over"), "unknown mode \"over\"; did you mean overlay?");
        assert_eq!(told("dimm"), "unknown mode \"dimm\"; did you mean dim?");
        let all = "expected one of overlay, mask, dim";
        assert_eq!(told("min"), format!("unknown mode \"min\", {all}"));
        assert_eq!(told("heat"), format!("unknown mode \"heat\", {all}"));
        assert_eq!(told(""), format!("unknown mode \"\", {all}"));
    }
}
