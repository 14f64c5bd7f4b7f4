//! TOML files that a user wrote.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;

/// What the file at `path` says, which is called `what`.
///
/// # Errors
/// Where it cannot be read, or says something else; with the line.
pub fn read<T: DeserializeOwned>(path: &Path, what: &str) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{path:?}"))?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = match error.message().trim() {
            // A number that no value of TOML holds.
            message if message.contains("i128") => "a number is too large",
            message => message,
        };
        anyhow!("{what} is malformed: {message}: {path:?}, line {line}")
    })
}
