//! A model's card: the table in the `README.md` of its folder.
//!
//! The card is Markdown with one machine-readable table:
//!
//! ```text
//! | field          | value                                        |
//! |----------------|----------------------------------------------|
//! | trained on     | CIFAR-10, 50,000 training images             |
//! | seed           | 1                                            |
//! | command        | `vitscope train classifier …`                |
//! | accuracy       | 81.2 % ± 0.8 % of 10,000 test images         |
//! | known failures | sees 32 x 32 px: small objects are lost      |
//! | licence        | MIT OR Apache-2.0                            |
//! | sha256         | `ba7816bf…` of `model.safetensors`           |
//! ```
//!
//! The table may have other rows, and the file other tables.

use std::fs;
use std::path::Path;

use super::folder::WEIGHTS;
use crate::weights::sha256_hex;
use crate::{Error, Result};

/// File name in a model's folder.
const FILE: &str = "README.md";

/// Contents of a model's card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// Training data.
    pub trained_on: String,
    /// Seed of the training.
    pub seed: u64,
    /// Command that reproduces the folder.
    pub command: String,
    /// Accuracy with its interval, as text.
    pub accuracy: String,
    /// Known failures of the model.
    pub known_failures: String,
    /// License of the weights.
    pub licence: String,
    /// Hash of `model.safetensors` in lower-case hexadecimal.
    pub sha256: String,
}

impl ModelCard {
    /// Reads the card in `text`.
    ///
    /// # Errors
    /// [`Error::Model`] for the first field that is missing, empty or malformed.
    pub fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| value_in_row(line, name))
                .filter(|value| !value.is_empty())
                .ok_or_else(|| Error::Model(format!("card has no field {name:?}")))
        };
        let seed = field("seed")?;
        let sha256 = field("sha256")?;
        let digest = sha256.split_whitespace().next().unwrap_or("");
        let digest = digest.trim_matches('`').to_lowercase();
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::Model(format!(
                "card's sha256 is {digest:?}, expected 64 hexadecimal digits"
            )));
        }
        Ok(Self {
            trained_on: field("trained on")?.to_owned(),
            seed: seed
                .trim_matches('`')
                .parse()
                .map_err(|_| Error::Model(format!("card's seed is {seed:?}, expected a number")))?,
            command: field("command")?.to_owned(),
            accuracy: field("accuracy")?.to_owned(),
            known_failures: field("known failures")?.to_owned(),
            licence: field("licence")?.to_owned(),
            sha256: digest,
        })
    }

    /// Reads the card of a model's folder and checks that it describes the weights in the folder.
    ///
    /// # Errors
    /// As [`Self::parse`], and [`Error::Model`] if the weights have another hash; [`Error::Io`] if a file cannot be
    /// read.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
        let card =
            Self::parse(&text).map_err(|error| Error::Model(format!("{error}: {path:?}")))?;
        let weights = folder.join(WEIGHTS);
        let bytes = fs::read(&weights).map_err(|error| Error::io(&weights, error))?;
        let found = sha256_hex(&bytes);
        if found != card.sha256 {
            return Err(Error::Model(format!(
                "weights have sha256 {found:?}, but the card states {:?}: {path:?}",
                card.sha256
            )));
        }
        Ok(card)
    }
}

/// Second cell of a table row whose first cell is `name`.
fn value_in_row<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let cells = line.trim().strip_prefix('|')?;
    let (first, rest) = cells.split_once('|')?;
    let matches = first.trim().eq_ignore_ascii_case(name);
    let value = rest.trim_end().strip_suffix('|').unwrap_or(rest);
    matches.then(|| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn card() -> String {
        format!(
            "# A model\n\nIt sees.\n\n| field | value |\n|---|---|\n| trained on | CIFAR-10 |\n\
             | seed | 7 |\n| command | `a | b` |\n| accuracy | 81 % |\n\
             | Known failures | boats |\n| licence | MIT |\n| sha256 | `{DIGEST}` of it |\n"
        )
    }

    fn check_refused(edit: (&str, &str), expected: &str) {
        let text = card().replace(edit.0, edit.1);
        let message = ModelCard::parse(&text).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }

    #[test]
    fn the_table_is_read_whatever_stands_around_it() {
        let card = ModelCard::parse(&card()).unwrap();
        assert_eq!(card.seed, 7);
        assert_eq!(card.command, "`a | b`");
        assert_eq!(card.known_failures, "boats");
        assert_eq!(card.sha256, DIGEST);
    }

    #[test]
    fn a_card_that_lacks_a_field_is_refused_by_its_name() {
        check_refused(("| licence | MIT |\n", ""), "\"licence\"");
        check_refused(("| MIT |", "|  |"), "\"licence\"");
        check_refused(("| 7 |", "| seven |"), "\"seven\"");
        check_refused(("ba7816bf", "ba78"), "64 hexadecimal digits");
    }
}
