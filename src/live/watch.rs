//! Notices that the gates of a folder have been written anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vitscope_core::gates::Gates;

/// Length and time of each file; `None` where it is not there.
type Look = Vec<Option<(u64, SystemTime)>>;

/// Files that are looked at again and again.
pub(super) struct Watch {
    files: Vec<PathBuf>,
    /// What was taken over.
    known: Look,
    last: Look,
}

impl Watch {
    /// Looks at the gates in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        let files = Gates::files(folder).to_vec();
        let known = look(&files);
        Self {
            files,
            last: known.clone(),
            known,
        }
    }

    /// True once after a change, when the files are all there and nobody has written to them since the last look.
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
