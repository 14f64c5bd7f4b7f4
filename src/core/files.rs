//! Files that are there whole or not at all.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where a file or folder is until it is whole: `NAME.part`, next to it.
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".part");
    path.with_file_name(name)
}

/// True for what is meant as an address of the network, as `rtsp://camera` or `user:password@camera`, and names no file
/// that is there.
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

/// True for a name that only a folder can have: it ends in a slash.
pub fn is_folder_name(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Writes `bytes` beside `path` under the name with `.part` and moves them there, so that nobody sees half a file.
///
/// What exists and is no regular file, as a pipe or `/dev/null`, is written to where it is: a move would put a file in
/// the place of the device.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; nothing is left of it then, and an older one stays.
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
        // The reason is told by `source`; a part that cannot be removed either changes nothing.
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
