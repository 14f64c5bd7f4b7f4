//! Atomic writing of files.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Path of a file or folder until it is complete: `NAME.part` beside it.
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".part");
    path.with_file_name(name)
}

/// True for a path that is meant as a network address, such as `rtsp://camera` or `user:password@camera`, and does not
/// exist as a file.
pub fn is_address(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let user = text
        .split('@')
        .next()
        .filter(|user| user.len() < text.len());
    let has_user = user.is_some_and(|user| user.contains(':') && !user.contains('/'));
    let is_meant = text.contains("://") || text.contains(":\\\\") || has_user;
    is_meant && !path.exists()
}

/// True for a name that only a folder can have, because it ends in a slash.
pub fn is_folder_name(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Writes `bytes` to a temporary file with the suffix `.part` beside `path`, then renames it, so that no reader sees a
/// partial file.
///
/// An existing path that is not a regular file, such as a pipe or `/dev/null`, is written directly, because renaming
/// would replace the device by a file.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written. Nothing is left of it then, and an older file is preserved.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let file = fs::OpenOptions::new().write(true).open(path);
        let written = file.and_then(|mut file| file.write_all(bytes));
        return written.map_err(|source| Error::io(path, source));
    }
    let part = part_path(path);
    let write = || {
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().map_err(|source: io::Error| {
        // `source` gives the reason; failing to remove the partial file changes nothing.
        let _ = fs::remove_file(&part);
        Error::io(path, source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_replaces_the_older_one_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().expect("a writable folder");
        let path = folder.path().join("scores.json");
        write_whole(&path, b"old").expect("a writable folder");
        write_whole(&path, b"new").expect("a writable folder");
        assert_eq!(fs::read(&path).expect("a file"), b"new");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn addresses_are_no_names_of_files() {
        for address in ["rtsp://a/b", "http:\\\\a:b@c", "admin:x@host"] {
            assert!(is_address(Path::new(address)), "{address}");
        }
        for name in ["a.mp4", "a@b.mp4", "folder/12:30@home.mp4", "12:30.mp4"] {
            assert!(!is_address(Path::new(name)), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_stays_a_pipe() {
        use std::os::unix::fs::FileTypeExt;
        use std::process::{Command, Stdio};

        let folder = tempfile::tempdir().expect("a writable folder");
        let path = folder.path().join("pipe");
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(made.success());
        let reader = Command::new("cat")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn();
        let reader = reader.expect("a reader");
        write_whole(&path, b"scores").expect("a reader is there");
        let read = reader.wait_with_output().expect("the reader ends");
        assert_eq!(read.stdout, b"scores");
        let kind = fs::metadata(&path).expect("the pipe").file_type();
        assert!(kind.is_fifo());
    }

    #[test]
    fn a_failed_write_leaves_nothing_and_names_the_file() {
        let folder = tempfile::tempdir().expect("a writable folder");
        let path = folder.path().join("taken");
        fs::create_dir(&path).expect("a writable folder");
        let error = write_whole(&path, b"new").expect_err("a folder is in the way");
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
