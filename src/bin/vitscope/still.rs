//! `vitscope still`: reads pictures and writes them with their explanations.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use image::ImageFormat;
use vitscope::frame::{Frame, Pts};
use vitscope::media::{Sink, Source};
use vitscope::overlay;
use vitscope::picture::{self, FilePicture};
use vitscope::pipeline::Pipeline;
use vitscope_core::error::{Error, Result};
use vitscope_core::files::is_address;

use crate::args::{DrawArgs, ExplainArgs, OutputArgs};
use crate::exit::Exit;
use crate::outputs::{self, Output};
use crate::side::{self, Side, say};
use crate::{interrupt, setup};

/// Options of `vitscope still`.
#[derive(Debug, clap::Args)]
pub struct StillArgs {
    /// PNG or JPEG pictures to explain (transparent areas become white), then the picture to write or, for several
    /// pictures, an existing output folder.
    #[arg(value_name = "IN... OUT", num_args = 1.., required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    pub explain: ExplainArgs,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Explains the pictures.
pub fn run(args: &StillArgs) -> anyhow::Result<Exit> {
    let (out, inputs) = match args.paths.as_slice() {
        [inputs @ .., out] if !inputs.is_empty() => (out, inputs),
        alone => {
            let message = format!(
                "expected input pictures followed by the picture or folder to write (<IN... OUT>), got only {alone:?}\n"
            );
            return Err(clap::Error::raw(ErrorKind::TooFewValues, message).into());
        }
    };
    if let Some(folder) = inputs.iter().find(|input| input.is_dir()) {
        // Checked first, because its name would otherwise be refused as that of an output.
        picture::check_header(folder)?;
    }
    let targets = targets(inputs, out)?;
    let borrowed: Vec<&Path> = targets.iter().map(PathBuf::as_path).collect();
    let taken: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    outputs::check(&borrowed, &taken, args.outputs.overwrite)?;
    side::check(&args.outputs, &[borrowed, taken].concat())?;
    for input in inputs {
        if is_address(input) {
            bail!("the input is a URL, expected a picture file: {input:?}");
        }
        // The header is enough to refuse other files before anything is written.
        picture::check_header(input)?;
    }
    let view = setup::view(args.explain.request(), &args.explain.set)?;
    let mut side = Side::of_pictures(&args.outputs, inputs)?;
    let output =
        |path: &PathBuf| Ok::<_, Error>((outputs::picture_format(path)?, Output::new(path)));
    let outputs: VecDeque<(ImageFormat, Output)> =
        targets.iter().map(output).collect::<Result<_>>()?;
    let mut unfinished = side.unfinished();
    unfinished.extend(outputs.iter().map(|(_, output)| output.part().to_owned()));
    let cancel = interrupt::flag(unfinished)?;
    let pipeline = Pipeline {
        view,
        overlay: setup::overlay(&args.draw),
        every: NonZeroU64::MIN,
        batch: args.explain.batch,
        is_video: false,
        cancel: &cancel,
        on_frame: Box::new(|frame| side.frame(frame)),
    };
    let mut source = PictureSource {
        inputs: inputs.iter().cloned().collect(),
        next_seq: 0,
        cut: Vec::new(),
    };
    let sink = PictureSink {
        waiting: outputs,
        done: Vec::new(),
    };
    let report = pipeline
        .run(&mut source, Box::new(sink))
        .context("cannot explain the pictures")?;
    if report.counts.frames == 0 {
        eprintln!("interrupted before the first picture; no output was written");
        return Ok(Exit::Interrupted);
    }
    let beside = side.finish()?;
    say(&args.outputs, &report.to_string());
    let n_done = usize::try_from(report.counts.frames)?;
    for path in targets.iter().take(n_done).chain(&beside) {
        say(&args.outputs, &format!("wrote {path:?}"));
    }
    let unexplained = report.counts.unexplained;
    if unexplained > 0 {
        let noun = if unexplained == 1 {
            "picture has"
        } else {
            "pictures have"
        };
        eprintln!("incomplete: {unexplained} {noun} no explanation");
    }
    for path in &source.cut {
        eprintln!(
            "incomplete: the file is truncated, and its missing part was explained as gray: {path:?}"
        );
    }
    Ok(if report.interrupted_at.is_some() {
        eprintln!("interrupted after {n_done} of {} pictures", inputs.len());
        Exit::Interrupted
    } else if unexplained > 0 || !source.cut.is_empty() {
        Exit::Incomplete
    } else {
        Exit::Whole
    })
}

/// Returns the path to write each picture to.
fn targets(inputs: &[PathBuf], out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let targets = if inputs.len() == 1 && !out.is_dir() {
        vec![out.to_owned()]
    } else {
        if !out.is_dir() {
            bail!("expected an existing directory for the output of several pictures: {out:?}");
        }
        let target = |input: &PathBuf| {
            let name = input
                .file_name()
                .with_context(|| format!("the path has no file name: {input:?}"))?;
            Ok(out.join(name))
        };
        inputs.iter().map(target).collect::<anyhow::Result<_>>()?
    };
    for target in &targets {
        outputs::picture_format(target)?;
    }
    Ok(targets)
}

/// Supplies pictures one by one.
struct PictureSource {
    inputs: VecDeque<PathBuf>,
    next_seq: u64,
    /// Files that are truncated.
    cut: Vec<PathBuf>,
}

impl Source for PictureSource {
    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(path) = self.inputs.pop_front() else {
            return Ok(None);
        };
        let FilePicture { image, is_whole } = picture::read(&path)?;
        let mut frame = overlay::frame_from_image(image);
        if !is_whole {
            self.cut.push(path);
        }
        frame.seq = self.next_seq;
        frame.pts = Pts(0);
        self.next_seq += 1;
        Ok(Some(frame))
    }

    fn stop(&mut self) -> Result<()> {
        self.inputs.clear();
        Ok(())
    }
}

/// Writes pictures, which get their final names when all are complete.
struct PictureSink {
    waiting: VecDeque<(ImageFormat, Output)>,
    done: Vec<Output>,
}

impl Sink for PictureSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        let (format, output) = self
            .waiting
            .pop_front()
            .ok_or_else(|| Error::Media("more pictures arrived than were requested".into()))?;
        let picture = overlay::image_from_frame(&frame)?;
        let mut file = std::io::BufWriter::new(output.create()?);
        picture
            .write_to(&mut file, format)
            .map_err(|error| Error::Media(format!("{error}: {:?}", output.path())))?;
        std::io::Write::flush(&mut file).map_err(|error| Error::io(output.path(), error))?;
        self.done.push(output);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.done.into_iter().try_for_each(Output::commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_picture_goes_to_a_file_and_several_go_into_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = ["a/1.png", "b/2.jpg"].map(PathBuf::from);
        let out = folder.path();
        assert_eq!(
            vec![out.join("x.png")],
            targets(&inputs[..1], &out.join("x.png")).unwrap()
        );
        assert_eq!(vec![out.join("1.png")], targets(&inputs[..1], out).unwrap());
        assert_eq!(
            vec![out.join("1.png"), out.join("2.jpg")],
            targets(&inputs, out).unwrap()
        );
        assert!(targets(&inputs, &out.join("x.png")).is_err());
        assert!(targets(&inputs[..1], &out.join("x.gif")).is_err());
    }
}
