//! Outputs besides the pictures: sidecar, contact sheet and progress.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::ImageFormat;
use vitscope::Result;
use vitscope::overlay::sheet::Sheet;
use vitscope::pipeline::stages::Composited;
use vitscope::sidecar;

use crate::args::OutputArgs;
use crate::outputs::{self, Output};
use crate::progress::{Progress, ProgressMode};

/// Follows a run frame by frame.
pub struct Side {
    scores: Option<(sidecar::Writer, Option<Output>)>,
    sheet: Option<(Sheet, ImageFormat, Output)>,
    progress: Progress,
    /// The files of the next frames, if frames are pictures.
    files: VecDeque<PathBuf>,
}

/// Checks the files requested by `args`, which must not overwrite `taken` or each other.
pub fn check(args: &OutputArgs, taken: &[&Path]) -> anyhow::Result<()> {
    let scores = args.scores.as_deref().filter(|path| !is_stdout(path));
    let wanted: Vec<&Path> = scores.into_iter().chain(args.sheet.as_deref()).collect();
    outputs::check(&wanted, taken, args.overwrite)?;
    if let Some(sheet) = &args.sheet {
        outputs::picture_format(sheet)?;
    }
    Ok(())
}

impl Side {
    /// Creates the outputs for a video of duration `total`, if known; the sheet has at most `sheet_pictures` pictures.
    pub fn new(args: &OutputArgs, total: Option<Duration>, sheet_pictures: usize) -> Result<Self> {
        let scores = match args.scores.as_deref() {
            Some(path) if is_stdout(path) => {
                Some((sidecar::Writer::new(Box::new(stdout()), path), None))
            }
            Some(path) => {
                let output = Output::new(path);
                let file = output.create()?;
                Some((sidecar::Writer::new(Box::new(file), path), Some(output)))
            }
            None => None,
        };
        let mode = if args.quiet {
            ProgressMode::None
        } else {
            args.progress
        };
        let sheet = match args.sheet.as_deref() {
            Some(path) => {
                let format = outputs::picture_format(path)?;
                Some((Sheet::new(sheet_pictures), format, Output::new(path)))
            }
            None => None,
        };
        Ok(Self {
            scores,
            sheet,
            progress: Progress::new(mode, total),
            files: VecDeque::new(),
        })
    }

    /// Creates the outputs for pictures, which go by the names of their files.
    pub fn of_pictures(args: &OutputArgs, files: &[PathBuf]) -> Result<Self> {
        Ok(Self {
            files: files.iter().cloned().collect(),
            ..Self::new(args, None, files.len())?
        })
    }

    /// Returns the files that exist while the run is not finished.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let scores = self.scores.iter().flat_map(|(_, output)| output);
        scores.map(|output| output.part().to_owned()).collect()
    }

    /// Records a frame.
    pub fn frame(&mut self, frame: &Composited) -> Result<()> {
        let file = self.files.pop_front();
        if let Some((writer, _)) = &mut self.scores {
            writer.write(&sidecar::Record {
                file: file.as_ref().map(|path| path.display().to_string()),
                ..frame.record()
            })?;
        }
        if let Some((sheet, ..)) = &mut self.sheet {
            let name = file.as_deref().and_then(Path::file_name);
            let name = name.map(OsStr::to_string_lossy);
            let caption = frame.finding.as_deref().map(|finding| finding.answer());
            sheet.add(&frame.frame, name.as_deref(), &caption.unwrap_or_default())?;
        }
        let start = Duration::from_nanos(frame.frame.pts.0);
        let end = start + frame.frame.duration.unwrap_or_default();
        self.progress.frame(end);
        Ok(())
    }

    /// Completes all files and returns them for the summary.
    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        self.progress.finish();
        let mut written = Vec::new();
        if let Some((writer, output)) = self.scores.take() {
            writer.finish()?;
            if let Some(output) = output {
                written.push(output.path().to_owned());
                output.commit()?;
            }
        }
        if let Some((sheet, format, output)) = self.sheet.take() {
            sheet.save(output.part(), format)?;
            written.push(output.path().to_owned());
            output.commit()?;
        }
        Ok(written)
    }
}

/// Prints a line for the user: to standard output, or to standard error if standard output carries the sidecar.
pub fn say(args: &OutputArgs, line: &str) {
    if args.quiet {
        return;
    }
    // A summary that cannot be printed is no failure.
    let _ = if args.scores.as_deref().is_some_and(is_stdout) {
        writeln!(std::io::stderr(), "{line}")
    } else {
        writeln!(stdout(), "{line}")
    };
}

pub fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}
