//! Detects when the gates of a folder are rewritten.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vitscope_core::gates::Gates;

/// Length and modification time of each file; `None` if it does not exist.
type Look = Vec<Option<(u64, SystemTime)>>;

/// Files that are polled for changes.
pub(super) struct Watch {
    files: Vec<PathBuf>,
    /// The state that was adopted last.
    known: Look,
    last: Look,
}

impl Watch {
    /// Watches the gates in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        let files = Gates::files(folder).to_vec();
        let known = look(&files);
        Self {
            files,
            last: known.clone(),
            known,
        }
    }

    /// Returns `true` once after a change, when all files exist and have not been written to since the last look.
    pub(super) fn has_changed(&mut self) -> bool {
        let now = look(&self.files);
        let before = std::mem::replace(&mut self.last, now.clone());
        let settled = now == before && now.iter().all(Option::is_some);
        let changed = settled && now != self.known;
        if changed {
            self.known = now;
        }
        changed
    }
}

fn look(files: &[PathBuf]) -> Look {
    let look = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    };
    files.iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_that_are_written_anew_are_noticed_once_when_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(folder.path());
        assert!(!watch.has_changed());
        let [weights, card] = Gates::files(folder.path());
        fs::write(&weights, "a").unwrap();
        assert!(
            !watch.has_changed() && !watch.has_changed(),
            "without a card"
        );
        fs::write(&card, "b").unwrap();
        assert!(!watch.has_changed(), "it may still be written to");
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        fs::write(&weights, "longer").unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
    }
}
