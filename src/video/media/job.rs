//! Description of the work on one file, and all checks that need no decoder.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gstreamer::glib;
use image::ImageFormat;

use super::container::Container;
use super::encoder::VideoCodec;
use vitscope_core::error::{Error, Result, by_name};
use vitscope_core::files;
use vitscope_core::frame::Pts;

/// Handling of audio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AudioMode {
    /// Copies packets unchanged; re-encodes only audio that the container cannot hold, with a warning.
    #[default]
    Copy,
    /// Re-encodes the audio.
    Encode,
    /// Leaves out the audio.
    Drop,
}

impl AudioMode {
    const ALL: [Self; 3] = [Self::Copy, Self::Encode, Self::Drop];
}

impl fmt::Display for AudioMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Encode => "encode",
            Self::Drop => "drop",
        })
    }
}

impl FromStr for AudioMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(|mode| mode.to_string()).join(", ");
                Error::Config(format!(
                    "unknown audio mode {name:?}, expected one of {known}"
                ))
            })
    }
}

/// Handling of high dynamic range (HDR).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HdrMode {
    /// Tone-maps to standard dynamic range, as a player does for an ordinary screen.
    #[default]
    ToneMap,
    /// Keeps HDR, which requires a 10-bit encoder.
    Keep,
}

impl HdrMode {
    const ALL: [Self; 2] = [Self::ToneMap, Self::Keep];

    fn name(self) -> &'static str {
        match self {
            Self::ToneMap => "tone-map",
            Self::Keep => "keep",
        }
    }
}

impl fmt::Display for HdrMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HdrMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("HDR mode", name, &Self::ALL, Self::name)
    }
}

/// A job: one video file to read and one to write.
#[derive(Clone, Debug)]
pub struct FileJob {
    /// Video file to read.
    pub input: PathBuf,
    /// Video file to write; its extension selects the container.
    pub output: PathBuf,
    /// Start time in the input, which becomes zero in the output.
    pub start: Option<Pts>,
    /// End time in the input; frames and audio packets that begin here or later are left out.
    pub end: Option<Pts>,
    /// Handling of audio.
    pub audio: AudioMode,
    /// Video encoder; `None` selects the best one installed.
    pub codec: Option<VideoCodec>,
    /// Handling of high dynamic range.
    pub hdr: HdrMode,
    /// Quality on x264's scale, 0 (best) to 51; `None` means 21.
    pub crf: Option<u32>,
    /// Whether to replace an existing output.
    pub overwrite: bool,
}

impl FileJob {
    /// Creates a job for all of `input`, including its audio.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            input: input.into(),
            output: output.into(),
            start: None,
            end: None,
            audio: AudioMode::default(),
            codec: None,
            hdr: HdrMode::default(),
            crf: None,
            overwrite: false,
        }
    }

    /// Returns the path of the output until it is complete: `OUT.part`, next to it.
    pub fn part_path(&self) -> PathBuf {
        files::part_path(&self.output)
    }

    /// Returns whether only a part of the input is requested.
    pub(super) fn has_range(&self) -> bool {
        self.start.is_some_and(|start| start > Pts(0)) || self.end.is_some()
    }

    /// Checks everything that can be checked without opening a decoder.
    pub(super) fn check(&self) -> Result<Container> {
        self.check_input()?;
        self.check_output()?;
        let container = Container::from_path(&self.output)?;
        if let (start, Some(end)) = (self.start.unwrap_or_default(), self.end)
            && end <= start
        {
            return Err(Error::Config(format!(
                "the end at {} s is not after the start at {} s: {:?}",
                end.secs(),
                start.secs(),
                self.input
            )));
        }
        Ok(container)
    }

    pub(super) fn check_input(&self) -> Result<()> {
        let input = &self.input;
        check_is_path(input)?;
        let metadata = fs::metadata(input).map_err(|err| match err.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Config(format!("no such file, expected a video: {input:?}"))
            }
            _ => Error::io(input, err),
        })?;
        if metadata.is_dir() {
            return Err(Error::Config(format!(
                "the input is a directory, expected a video file: {input:?}"
            )));
        }
        if !metadata.is_file() {
            return Err(Error::Config(format!(
                "the input is a pipe or a device, which can be read only once, expected a file: {input:?}"
            )));
        }
        if metadata.len() == 0 {
            return Err(Error::Config(format!(
                "the file is empty, expected a video: {input:?}"
            )));
        }
        let mut head = Vec::new();
        fs::File::open(input)
            .and_then(|file| file.take(12).read_to_end(&mut head))
            .map_err(|err| Error::io(input, err))?;
        if head.starts_with(b"#EXTM3U") {
            return Err(Error::Config(format!(
                "the input is a playlist, expected a video file; use `vitscope live` to play it: {input:?}"
            )));
        }
        if let Some(pictures) = pictures(&head) {
            return Err(Error::Config(format!(
                "the input contains {pictures}, expected a video: {input:?}"
            )));
        }
        Ok(())
    }

    fn check_output(&self) -> Result<()> {
        let output = &self.output;
        if files::is_address(output) {
            return Err(Error::Config(format!(
                "the output is a URL, expected a file to write: {output:?}"
            )));
        }
        let part = self.part_path();
        for written in [output, &part] {
            if same_file(&self.input, written) {
                return Err(Error::Config(format!(
                    "the output would overwrite the input: {written:?}"
                )));
            }
            if written.is_dir() || files::is_folder_name(written) {
                return Err(Error::Config(format!(
                    "the output is a directory, expected a file to write: {written:?}"
                )));
            }
        }
        // Renaming a complete file over a device or a pipe would replace it.
        if output.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Error::Config(format!(
                "the output is not a regular file, expected a file to write: {output:?}"
            )));
        }
        // `symlink_metadata` also detects a dangling link.
        if output.symlink_metadata().is_ok() && !self.overwrite {
            return Err(Error::Config(format!(
                "the output already exists; use --overwrite to replace it: {output:?}"
            )));
        }
        let folder = match output.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(Error::Config(format!(
                "the output directory does not exist: {output:?}"
            )));
        }
        // Permission bits are not sufficient (root, read-only mounts): only an attempt is, and it leaves nothing
        // behind.
        tempfile::tempfile_in(folder).map_err(|err| {
            Error::Config(format!(
                "cannot write to the output directory ({err}): {folder:?}"
            ))
        })?;
        Ok(())
    }
}

/// Returns the path of the file that `input` refers to, by path or by a `file://` URL.
///
/// # Errors
/// [`Error::Config`] if the URL does not refer to a file on this machine.
pub fn local_file(input: &Path) -> Result<PathBuf> {
    match input.to_str() {
        Some(address) if address.starts_with("file://") => glib::filename_from_uri(address)
            .map(|(path, _)| path)
            .map_err(|err| Error::Config(format!("not a valid file URL ({err}): {address:?}"))),
        _ => Ok(input.into()),
    }
}

/// Fails for inputs that other programs accept in place of a path.
fn check_is_path(input: &Path) -> Result<()> {
    let complaint = if input == Path::new("-") {
        "standard input can be read only once, expected a file"
    } else if files::is_address(input) {
        "the input is a URL, expected a file; use `vitscope live` to read streams"
    } else {
        return Ok(());
    };
    if input.exists() {
        return Ok(());
    }
    Err(Error::Config(format!("{complaint}: {input:?}")))
}

/// Describes the contents of a file that begins with `head`, if they are images that GStreamer 1.22 does not read as a
/// video.
fn pictures(head: &[u8]) -> Option<&'static str> {
    match image::guess_format(head).ok()? {
        ImageFormat::Jpeg => Some("bare JPEG pictures without timestamps"),
        ImageFormat::Gif => Some("a GIF picture"),
        ImageFormat::Png => Some("a PNG picture"),
        ImageFormat::WebP => Some("a WebP picture"),
        _ => None,
    }
}

/// True if both paths refer to the same file, possibly through a symbolic or hard link.
fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_lies_next_to_the_output_with_its_whole_name() {
        let job = FileJob::new("in.mp4", "folder/out.mp4");
        assert_eq!(job.part_path(), Path::new("folder/out.mp4.part"));
    }

    #[test]
    fn audio_modes_parse_back() {
        for mode in AudioMode::ALL {
            assert_eq!(mode.to_string().parse::<AudioMode>().unwrap(), mode);
        }
        assert!("mute".parse::<AudioMode>().is_err());
    }
}
