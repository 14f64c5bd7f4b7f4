//! `vitscope file`: reads a video file and writes the same video with its explanation.

use std::num::NonZeroU64;
use std::path::PathBuf;

use anyhow::{Context, bail};
use vitscope::frame::Pts;
use vitscope::media::{self, AudioMode, FileJob, HdrMode, VideoCodec, verify};
use vitscope::pipeline::Pipeline;

use crate::args::{DrawArgs, ExplainArgs, OutputArgs, ReuseArgs, one_or_more};
use crate::exit::Exit;
use crate::side::{self, Side, say};
use crate::{interrupt, outputs, setup};

/// Maximum number of pictures on a contact sheet.
const SHEET_PICTURES: usize = 24;

/// Options of `vitscope file`.
#[derive(Debug, clap::Args)]
pub struct FileArgs {
    /// Video to explain.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Video to write; its extension selects the container (mp4, mkv, webm, ...).
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Explain every Nth frame; the frames in between repeat its explanation.
    #[arg(long, value_name = "N", default_value = "1", value_parser = one_or_more::<NonZeroU64>)]
    every: NonZeroU64,
    /// Start time: seconds or HH:MM:SS.mmm.
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = pts_from_text)]
    start: Option<Pts>,
    /// End time: seconds or HH:MM:SS.mmm.
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = pts_from_text)]
    end: Option<Pts>,
    /// Sound: copy, encode or drop.
    #[arg(long, default_value = "copy")]
    audio: AudioMode,
    /// Video encoder: x264, openh264, x265, vp8 or vp9 [default: the best installed one that fits the container];
    /// x265 and vp9 keep 10 bits per sample.
    #[arg(long)]
    codec: Option<VideoCodec>,
    /// HDR video: tone-map it to SDR, or keep it and encode it as H.265 (VP9 in WebM).
    #[arg(long, value_name = "HOW", default_value = "tone-map")]
    hdr: HdrMode,
    /// Quantizer, 0 (best quality) to 51 [default: 21].
    #[arg(long)]
    crf: Option<u32>,
    #[command(flatten)]
    pub explain: ExplainArgs,
    #[command(flatten)]
    reuse: ReuseArgs,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Explains the file, checks the result, and reports it.
pub fn run(args: &FileArgs) -> anyhow::Result<Exit> {
    let input = media::local_file(&args.input)?;
    if outputs::picture_format(&input).is_ok() {
        bail!(
            "the input is a picture, expected a video; use `vitscope still` for pictures: {input:?}"
        );
    }
    let job = FileJob {
        input,
        output: args.output.clone(),
        start: args.start,
        end: args.end,
        audio: args.audio,
        codec: args.codec,
        hdr: args.hdr,
        crf: args.crf,
        overwrite: args.outputs.overwrite,
    };
    side::check(&args.outputs, &[&job.input, &args.output, &job.part_path()])?;
    let (mut source, sink) = media::open(&job)?;
    let request = args.reuse.added_to(args.explain.request());
    let view = setup::view(request, &args.explain.set)?;
    let mut side = Side::new(&args.outputs, source.info().duration, SHEET_PICTURES)?;
    let mut unfinished = side.unfinished();
    unfinished.push(job.part_path());
    let cancel = interrupt::flag(unfinished)?;
    let pipeline = Pipeline {
        view,
        overlay: setup::overlay(&args.draw),
        every: args.every,
        batch: args.explain.batch,
        is_video: true,
        cancel: &cancel,
        on_frame: Box::new(|frame| side.frame(frame)),
    };
    let report = pipeline
        .run(&mut source, Box::new(sink))
        .inspect_err(|_| {
            let part = job.part_path();
            if part.exists() {
                eprintln!("unfinished output left in {part:?}");
            }
        })
        .with_context(|| format!("cannot explain {:?}", args.input))?;
    let n_late_tracks = source.n_late_tracks();
    drop(source);
    if report.counts.frames == 0 {
        eprintln!("interrupted before the first frame; no output was written");
        return Ok(Exit::Interrupted);
    }
    let beside = side.finish()?;
    say(&args.outputs, &report.to_string());
    for path in std::iter::once(&args.output).chain(&beside) {
        say(&args.outputs, &format!("wrote {path:?}"));
    }
    let verification = verify::compare(&job, report.interrupted_at)
        .with_context(|| format!("cannot read back {:?}", args.output))?
        .with_written(report.counts.frames)
        .with_late_tracks(n_late_tracks);
    say(&args.outputs, &verification.to_string());
    let complaint = verification.complaint();
    if let Some(complaint) = &complaint {
        eprintln!("incomplete: {complaint}");
    }
    let unexplained = report.counts.unexplained;
    if unexplained > 0 {
        let noun = if unexplained == 1 {
            "frame has"
        } else {
            "frames have"
        };
        eprintln!("incomplete: {unexplained} {noun} no explanation");
    }
    Ok(if let Some(end) = report.interrupted_at {
        eprintln!("interrupted at {:.3} s", end.secs());
        Exit::Interrupted
    } else if complaint.is_some() || unexplained > 0 {
        Exit::Incomplete
    } else {
        Exit::Whole
    })
}

/// Parses `12.5` or `00:00:12.5` without floating-point arithmetic.
fn pts_from_text(text: &str) -> Result<Pts, String> {
    nanos_from_text(text)
        .map(Pts)
        .ok_or_else(|| "expected seconds or HH:MM:SS.mmm".into())
}

fn nanos_from_text(text: &str) -> Option<u64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = clock.split(':').collect();
    if parts.len() > 3 || !is_number(fraction) {
        return None;
    }
    let mut secs = 0_u64;
    for (part_idx, part) in parts.iter().enumerate() {
        let number: u64 = part.parse().ok().filter(|_| is_number(part))?;
        // Only the leading part may be 60 or more.
        if part_idx > 0 && number >= 60 {
            return None;
        }
        secs = secs.checked_mul(60)?.checked_add(number)?;
    }
    // Programs print numbers with more digits than there are nanoseconds.
    let nanos: u64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    secs.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_exactly() {
        let check = |expected, text: &str| assert_eq!(expected, nanos_from_text(text), "{text}");
        check(Some(0), "0");
        check(Some(12_500_000_000), "12.5");
        check(Some(90_000_000_000), "90");
        check(Some(83_040_000_000), "1:23.040");
        check(Some(3_723_000_000_001), "01:02:03.000000001");
        check(Some(1_722_999_999), "1.7229999999999999");
        check(None, "");
        check(None, "-1");
        check(None, "1e3");
        check(None, "1:60");
        check(None, "1:2:3:4");
        check(None, "1.");
        check(None, "99999999999999999999");
    }
}
