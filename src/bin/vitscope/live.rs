//! `vitscope live`: what a model looks at, while it happens.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use vitscope::live::{Address, Event, Live, Outputs, Status, Wanted};
use vitscope::overlay::Mode;

use crate::args::{DrawArgs, ExplainArgs, Upsample, positive, share};
use crate::exit::Exit;
use crate::side::is_stdout;
use crate::{interrupt, outputs, setup};

/// Options of `vitscope live`.
#[derive(Debug, clap::Args)]
pub struct LiveArgs {
    /// A camera by index, name or path (see `vitscope devices`), an rtsp:// or http:// address, `screen`, or `test:`
    /// with a pattern of GStreamer's videotestsrc.
    #[arg(value_name = "SRC", default_value = "0")]
    source: Address,
    /// Ask a camera for this size.
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<(u32, u32)>,
    /// Ask a camera for so many frames a second.
    #[arg(long, value_name = "N")]
    fps: Option<u32>,
    /// Which explanation a frame shows: the newest one, which no frame waits for, or exactly its own, for which all
    /// frames come later.
    #[arg(long, value_enum, default_value = "latest")]
    policy: Policy,
    /// Explain every Nth frame at most.
    #[arg(long, value_name = "N", default_value = "1")]
    every: std::num::NonZeroU32,
    /// With `--policy latest`, how old an explanation may be that is shown, in seconds; it fades until then.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = positive)]
    max_age: f64,
    /// How much of the explanation before stays in the next one, 0 to 1, until the scene changes.
    #[arg(long, default_value = "0", value_parser = share)]
    smoothing: f32,
    /// Show a window; what happens without any other output.
    #[arg(long)]
    window: bool,
    /// Show nothing.
    #[arg(long, conflicts_with = "window")]
    no_window: bool,
    /// Record to a Matroska file.
    #[arg(long, value_name = "FILE.mkv")]
    record: Option<PathBuf>,
    /// Be a camera for other programs, through this V4L2 loopback device.
    #[arg(long, value_name = "DEVICE")]
    v4l2_out: Option<PathBuf>,
    /// Write one JSON record a frame; `-` writes to standard output.
    #[arg(long, value_name = "FILE.jsonl")]
    scores: Option<PathBuf>,
    /// Replace outputs that exist.
    #[arg(long)]
    overwrite: bool,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    duration: Option<f64>,
    /// Print errors and warnings only.
    #[arg(long)]
    pub quiet: bool,
    #[command(flatten)]
    pub explain: ExplainArgs,
    #[command(flatten)]
    draw: DrawArgs,
}

/// Which explanation a frame shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Policy {
    Latest,
    Exact,
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once('x').and_then(|(width, height)| {
        let side = |text: &str| text.parse().ok().filter(|&px| px > 0);
        Some((side(width)?, side(height)?))
    });
    sides.ok_or_else(|| "expected width and height in pixels, as 640x480".into())
}

/// Shows and records until it is interrupted.
pub fn run(args: &LiveArgs) -> anyhow::Result<Exit> {
    let scores = args.scores.as_deref().filter(|path| !is_stdout(path));
    let outputs: Vec<&Path> = args.record.as_deref().into_iter().chain(scores).collect();
    outputs::check(&outputs, &[], args.overwrite)?;
    let live = Live {
        address: args.source.clone(),
        wanted: Wanted {
            size: args.size,
            fps: args.fps,
        },
        properties: properties(args)?,
        outputs: Outputs {
            window: args.window
                || !(args.no_window || args.record.is_some() || args.v4l2_out.is_some()),
            record: args.record.clone(),
            v4l2: args.v4l2_out.clone(),
        },
    };
    let cancel = interrupt::flag(Vec::new())?;
    let started = std::time::Instant::now();
    let status = live.run(&cancel, &mut |event| {
        let over = args
            .duration
            .is_some_and(|secs| started.elapsed().as_secs_f64() >= secs);
        if over {
            cancel.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        if !args.quiet {
            tell(&live.address, event);
        }
    })?;
    if !args.quiet {
        eprintln!("{}", summary(&status, started.elapsed()));
    }
    Ok(Exit::Whole)
}

fn tell(address: &Address, event: Event) {
    match event {
        Event::Connected => eprintln!("showing {address}"),
        Event::Lost { reason, wait } => {
            eprintln!("{reason}; trying again in {:.1} s", wait.as_secs_f64());
        }
        Event::Status(status) => tracing::debug!(
            frames = status.frames,
            explained = status.explained,
            skipped = status.skipped
        ),
    }
}

fn summary(status: &Status, took: Duration) -> String {
    let rate = |n: u64| n as f64 / took.as_secs_f64().max(1e-3);
    format!(
        "{} frames ({:.1} a second), {} explained ({:.1} a second), {} while the model was busy; an explanation takes \
         {:.0} ms, 99 of 100 at most {:.0} ms",
        status.frames,
        rate(status.frames),
        status.explained,
        rate(status.explained),
        status.skipped,
        1e3 * status.median.as_secs_f64(),
        1e3 * status.p99.as_secs_f64(),
    )
}

/// The arguments as properties of the element.
fn properties(args: &LiveArgs) -> anyhow::Result<Vec<(&'static str, String)>> {
    let (explain, draw) = (&args.explain, &args.draw);
    if explain.method.len() > 1 || explain.target.len() > 1 {
        bail!(
            "live video is explained by one method for one target, give --method and --target once"
        );
    }
    if draw.mode == Mode::SideBySide || draw.upsample == Upsample::Nearest {
        bail!("live video takes neither --mode side-by-side nor --upsample nearest");
    }
    let policy = match args.policy {
        Policy::Latest => "latest",
        Policy::Exact => "exact",
    };
    let mut properties = vec![
        ("model", explain.model.clone()),
        ("device", explain.device.to_string()),
        ("batch", "1".to_owned()),
        ("sync-mode", policy.to_owned()),
        ("interval", args.every.to_string()),
        ("max-age", ((1e9 * args.max_age) as u64).to_string()),
        ("smoothing", args.smoothing.to_string()),
        ("mode", draw.mode.to_string()),
        ("colormap", draw.colormap.to_string()),
        ("alpha", draw.alpha.to_string()),
        ("threshold", draw.threshold.to_string()),
    ];
    properties.extend(explain.backbone.clone().map(|model| ("backbone", model)));
    let method = explain.method.first();
    properties.extend(method.map(|method| ("method", method.to_string())));
    let target = explain.target.first();
    properties.extend(target.map(|target| ("target-class", target.clone())));
    let options = method_options(&explain.set, method.map(ToString::to_string).as_deref())?;
    properties.extend((!options.is_empty()).then_some(("method-options", options)));
    if let Some(path) = &args.scores {
        let path = match path.to_str() {
            Some(_) if is_stdout(path) => "/dev/stdout",
            Some(path) => path,
            None => bail!("path is not UTF-8: {path:?}"),
        };
        properties.push(("scores-location", path.to_owned()));
    }
    Ok(properties)
}

/// What `--set` says of the one method that is asked for, as the element takes it.
fn method_options(set: &[String], method: Option<&str>) -> anyhow::Result<String> {
    let by_method = setup::options_by_method(set, |of| method.is_none_or(|method| method == of))?;
    let options = by_method.values().flatten();
    let texts = options.map(|(key, value)| format!("{key} = {value}"));
    Ok(texts.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_one_method_become_a_list() {
        let set = [
            "gradmask.groups=12".to_owned(),
            "gradmask.weight=logit".to_owned(),
        ];
        let options = method_options(&set, Some("gradmask")).unwrap();
        assert_eq!(options, "groups = 12, weight = \"logit\"");
        assert!(method_options(&set, Some("rollout")).is_err());
    }

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(size("640x480"), Ok((640, 480)));
        assert!(size("640").is_err() && size("0x480").is_err());
    }
}
