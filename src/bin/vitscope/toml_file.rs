//! TOML files written by users.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;

/// Reads the file at `path`; errors call it `what`.
///
/// # Errors
/// Fails if the file cannot be read or is malformed; the latter error includes the line.
pub fn read<T: DeserializeOwned>(path: &Path, what: &str) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{path:?}"))?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = match error.message().trim() {
            // A number that does not fit any TOML value.
            message if message.contains("i128") => "a number is too large",
            message => message,
        };
        anyhow!("{what} is malformed: {message}: {path:?}, line {line}")
    })
}
