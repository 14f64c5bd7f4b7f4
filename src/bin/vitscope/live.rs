//! `vitscope live`: explains live video.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use vitscope::Request;
use vitscope::explain::Method;
use vitscope::live::{
    Address, Audience, Collect, Event, HlsFolder, Key, Live, Output, Page, Recording, RtspPush,
    Status, Teach, VirtualCamera, Wanted, Window,
};
use vitscope::plugin::{Draw, Settings, SyncMode};
use vitscope_core::files;
use vitscope_core::wording::counted;

use crate::args::{DrawArgs, ExplainArgs, ReuseArgs, Upsample, one_or_more, positive, share};
use crate::exit::Exit;
use crate::keyboard::Keyboard;
use crate::side::is_stdout;
use crate::{interrupt, outputs, setup};

/// Options of `vitscope live`.
#[derive(Debug, clap::Args)]
pub struct LiveArgs {
    /// Camera by index, name or path (see `vitscope devices`), a video file, an rtsp:// or http:// URL, `screen`, or
    /// `test:` followed by a pattern of GStreamer's videotestsrc.
    #[arg(value_name = "SRC", default_value = "0")]
    source: Address,
    /// Loop a video file.
    #[arg(long = "loop")]
    again: bool,
    /// Request this frame size from the camera.
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<(u32, u32)>,
    /// Request this frame rate from the camera.
    #[arg(long, value_name = "N", value_parser = one_or_more::<NonZeroU32>)]
    fps: Option<NonZeroU32>,
    /// Explanation that each frame shows: the latest one, without delay, or exactly its own, which delays all frames.
    #[arg(long, value_enum, default_value = "latest")]
    policy: Policy,
    /// Explain at most every Nth frame.
    #[arg(long, value_name = "N", default_value = "1", value_parser = one_or_more::<NonZeroU32>)]
    every: NonZeroU32,
    /// With `--policy latest`, seconds until an explanation has faded out [default: 1, or twice the time per
    /// explanation, whichever is longer].
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    max_age: Option<f64>,
    /// Share of the previous explanation to blend into the next, 0 to 1; scene changes reset it.
    #[arg(long, default_value = "0", value_parser = share)]
    smoothing: f32,
    /// Show a window; the default if no other output is given.
    #[arg(long)]
    window: bool,
    /// Show no window.
    #[arg(long, conflicts_with = "window")]
    no_window: bool,
    /// Record the video, without sound, to this Matroska or MP4 file.
    #[arg(long, value_name = "FILE.mkv")]
    record: Option<PathBuf>,
    /// Output to this V4L2 loopback device, a virtual camera for other programs.
    #[arg(long, value_name = "DEVICE")]
    v4l2_out: Option<PathBuf>,
    /// Push the video to this RTSP URL.
    #[arg(long, value_name = "URL")]
    rtsp_out: Option<Address>,
    /// Write an HLS stream into this folder: live.m3u8 and the latest segments.
    #[arg(long, value_name = "FOLDER")]
    hls: Option<PathBuf>,
    /// Serve a web page with the video, controls and the model's answers; a port alone serves this machine only.
    #[arg(long, value_name = "HOST:PORT", num_args = 0..=1, default_missing_value = "8080", value_parser = served)]
    serve: Option<SocketAddr>,
    /// Token that browsers pass as /?token=TOKEN; required to serve other machines.
    #[arg(
        long,
        value_name = "TOKEN",
        requires = "serve",
        env = "VITSCOPE_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Draw statistics over the picture: kept share; rate, age and latency of explanations.
    #[arg(long)]
    stats: bool,
    /// Write one JSON record per frame to a file, `-` (standard output), tcp://HOST:PORT or unix:PATH.
    #[arg(long, value_name = "FILE.jsonl")]
    scores: Option<PathBuf>,
    /// Save frames into this folder at intervals, as training data for `vitscope train diffmask`.
    #[arg(long, value_name = "FOLDER")]
    collect: Option<PathBuf>,
    /// Interval between saved frames, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "collect", value_parser = positive)]
    collect_every: f64,
    /// Folder with DiffMask gates for the model; gates that change, here or in the model's folder, are reloaded.
    #[arg(long, value_name = "FOLDER")]
    gates: Option<PathBuf>,
    /// Teach the model your own classes, and save them as head.safetensors in this folder.
    ///
    /// Keys 1 to 9 (or the web page) add the current picture as an example of a class, u undoes the last example, and w
    /// saves. If the folder already contains a head, teaching continues from it.
    #[arg(long, value_name = "FOLDER")]
    teach: Option<PathBuf>,
    /// Names of the classes to teach, in the order of the keys; they follow those of an existing head.
    #[arg(long, value_name = "NAME,…", requires = "teach", value_delimiter = ',')]
    classes: Vec<String>,
    /// Overwrite existing outputs.
    #[arg(long)]
    overwrite: bool,
    /// Stop after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    duration: Option<f64>,
    /// Print only errors and warnings.
    #[arg(long)]
    pub quiet: bool,
    #[command(flatten)]
    pub explain: ExplainArgs,
    #[command(flatten)]
    reuse: ReuseArgs,
    #[command(flatten)]
    draw: DrawArgs,
}

/// Which explanation a frame shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Policy {
    Latest,
    Exact,
}

/// Maximum side length in pixels that no camera exceeds and GStreamer's elements still accept.
const MOST_PX: u32 = 16_384;

fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once('x').and_then(|(width, height)| {
        let side = |text: &str| text.parse().ok().filter(|px| (1..=MOST_PX).contains(px));
        Some((side(width)?, side(height)?))
    });
    sides.ok_or_else(|| {
        format!("expected width and height in pixels, such as 640x480, each at most {MOST_PX}")
    })
}

/// Checks that `path` is a device that may accept frames, with clearer errors than those of its driver.
fn check_video_device(path: &Path) -> anyhow::Result<()> {
    match path.metadata() {
        Ok(metadata) if metadata.file_type().is_char_device() => Ok(()),
        Ok(_) => bail!("not a device, expected a v4l2loopback virtual camera: {path:?}"),
        Err(_) => bail!("no such device, expected a v4l2loopback virtual camera: {path:?}"),
    }
}

/// Parses the address to serve a page at: an IP address and port, a host name and port, or a port of this machine.
fn served(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let expected = || "expected PORT, HOST:PORT or IP:PORT".to_owned();
    let found: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| expected())?.collect();
    // Prefer IPv4: given a name, browsers try it too, and so do people.
    let older = found.iter().find(|address| address.is_ipv4());
    older.or(found.first()).copied().ok_or_else(expected)
}

/// Shows and records video until it is interrupted.
pub fn run(args: &LiveArgs) -> anyhow::Result<Exit> {
    let scores = args.scores.as_deref().filter(|path| !is_no_file(path));
    let outputs: Vec<&Path> = args.record.as_deref().into_iter().chain(scores).collect();
    let read: Vec<&Path> = match &args.source {
        Address::File(path) => vec![path],
        _ => Vec::new(),
    };
    outputs::check(&outputs, &read, args.overwrite)?;
    if let Some(folder) = args
        .gates
        .as_deref()
        .filter(|folder| !folder.join("gates.safetensors").is_file())
    {
        bail!("no gates.safetensors found, expected a folder with DiffMask gates: {folder:?}");
    }
    let folders = [&args.collect, &args.teach, &args.hls];
    if let Some(folder) = folders
        .into_iter()
        .flatten()
        .find(|folder| files::is_address(folder))
    {
        bail!("the output is a URL, expected a folder to write into: {folder:?}");
    }
    if let Some(folder) = args.hls.as_deref().filter(|folder| !folder.is_dir()) {
        bail!("the output directory does not exist: {folder:?}");
    }
    if let Some(device) = args.v4l2_out.as_deref() {
        check_video_device(device)?;
    }
    if args.again && !matches!(args.source, Address::File(_)) {
        bail!("--loop supports only video files, got {}", args.source);
    }
    let own_gates = Path::new(&args.explain.model);
    let live = Live {
        address: args.source.clone(),
        again: args.again,
        wanted: Wanted {
            size: args.size,
            fps: args.fps.map(NonZeroU32::get),
        },
        settings: settings(args)?,
        outputs: live_outputs(args),
        page: args.serve.map(|address| Page {
            address,
            token: args.token.clone(),
        }),
        collect: args.collect.clone().map(|folder| Collect {
            folder,
            every: Duration::from_secs_f64(args.collect_every),
        }),
        teach: args.teach.clone().map(|folder| Teach {
            folder,
            classes: args.classes.clone(),
        }),
        gates: (args.gates.clone()).or_else(|| own_gates.is_dir().then(|| own_gates.to_owned())),
    };
    let cancel = interrupt::flag(Vec::new())?;
    let mut front = Front {
        args,
        started: Instant::now(),
        cancel: Arc::clone(&cancel),
        keyboard: (!args.quiet).then(Keyboard::open).flatten(),
        unsaved: false,
    };
    let status = live.run(&cancel, &mut front)?;
    if !args.quiet {
        eprintln!("{}", summary(&status, front.started.elapsed()));
    }
    if status.frames == 0 {
        eprintln!("{}: no frame arrived", args.source);
        return Ok(Exit::Incomplete);
    }
    Ok(Exit::Whole)
}

/// Returns the outputs; a window if there is no other output.
fn live_outputs(args: &LiveArgs) -> Vec<Arc<dyn Output>> {
    let mut outputs: Vec<Arc<dyn Output>> = Vec::new();
    let mut add = |output: Option<Arc<dyn Output>>| outputs.extend(output);
    add((args.record.clone()).map(|path| Arc::new(Recording(path)) as _));
    add((args.rtsp_out.clone()).map(|address| Arc::new(RtspPush(address)) as _));
    add((args.hls.clone()).map(|folder| Arc::new(HlsFolder(folder)) as _));
    add((args.v4l2_out.clone()).map(|device| Arc::new(VirtualCamera(device)) as _));
    let is_elsewhere = !outputs.is_empty() || args.serve.is_some();
    if args.window || !(args.no_window || is_elsewhere) {
        outputs.insert(0, Arc::new(Window));
    }
    outputs
}

/// The terminal, as the audience of a run.
struct Front<'a> {
    args: &'a LiveArgs,
    started: Instant,
    cancel: Arc<AtomicBool>,
    keyboard: Option<Keyboard>,
    /// Whether taught examples are not saved.
    unsaved: bool,
}

impl Audience for Front<'_> {
    fn event(&mut self, event: Event) {
        let duration = self.args.duration;
        if duration.is_some_and(|secs| self.started.elapsed().as_secs_f64() >= secs) {
            self.cancel.store(true, Ordering::SeqCst);
        }
        if event == Event::Ending {
            // Restore the terminal now, because a second Ctrl-C may end the program at once.
            self.keyboard = None;
        }
        if self.args.quiet {
            return;
        }
        let source = &self.args.source;
        match event {
            Event::Serving(address) => {
                let token = match self.args.token {
                    Some(_) => "?token=…",
                    None => "",
                };
                eprintln!("web page: http://{address}/{token}");
            }
            Event::Connected => {
                let keys = match self.keyboard {
                    Some(_) => {
                        "; keys: space freeze, s snapshot, m method, o opacity, t target, q quit"
                    }
                    None => "",
                };
                let teaching = match (&self.keyboard, &self.args.teach) {
                    (Some(_), Some(_)) => "; teaching: 1 to 9 add an example, u undo, w save",
                    _ => "",
                };
                eprintln!("showing {source}{keys}{teaching}");
            }
            Event::Lost { reason, wait } => {
                eprintln!("{reason}; retrying in {:.1} s", wait.as_secs_f64());
            }
            Event::Problem(problem) => eprintln!("{problem}"),
            Event::Taught(progress) => {
                let is_saved = self.unsaved && !progress.unsaved;
                self.unsaved = progress.unsaved;
                match &self.args.teach {
                    Some(folder) if is_saved => eprintln!(
                        "wrote {:?}; use it with: vitscope live {}",
                        folder.join("head.safetensors"),
                        head_usage(folder, &self.args.explain)
                    ),
                    _ => eprintln!("{progress}"),
                }
            }
            Event::Reloading => eprintln!("the gates have changed; reloading them"),
            Event::Ending => (),
            Event::Status(status) => tracing::debug!(
                frames = status.frames,
                explained = status.explained,
                skipped = status.skipped
            ),
        }
    }

    fn key(&mut self) -> Option<Key> {
        self.keyboard.as_mut()?.key()
    }

    fn snapshot(&mut self, png: &[u8]) -> vitscope::Result<()> {
        let free = (1_u32..)
            .map(|number| PathBuf::from(format!("vitscope-{number:03}.png")))
            .find(|path| !path.exists());
        let path = free.unwrap_or_else(|| "vitscope.png".into());
        files::write_whole(&path, png)?;
        if !self.args.quiet {
            eprintln!("wrote {}", path.display());
        }
        Ok(())
    }
}

fn summary(status: &Status, took: Duration) -> String {
    let rate = |n: u64| n as f64 / took.as_secs_f64().max(1e-3);
    let frames = format!(
        "{} ({:.1} per second)",
        counted(status.frames, "frame"),
        rate(status.frames)
    );
    if status.explained == 0 {
        return format!("{frames}, none explained");
    }
    let delay = match status.delay.as_millis() {
        0 => String::new(),
        millis => format!("; this delays each frame by {millis} ms"),
    };
    format!(
        "{frames}, {} explained ({:.1} per second), {} skipped while the model was busy; explanation time: \
         median {:.0} ms, p99 {:.0} ms{delay}",
        status.explained,
        rate(status.explained),
        status.skipped,
        1e3 * status.median.as_secs_f64(),
        1e3 * status.p99.as_secs_f64(),
    )
}

/// Converts the arguments to settings of the element.
fn settings(args: &LiveArgs) -> anyhow::Result<Settings> {
    let (explain, draw) = (&args.explain, &args.draw);
    if explain.target.len() > 1 {
        bail!("live video supports one target, use --target only once");
    }
    let shown = Draw::of(draw.mode).filter(|_| draw.upsample == Upsample::Bilinear);
    let Some(shown) = shown else {
        bail!(
            "live video supports neither --mode side-by-side (use two methods) nor --upsample nearest"
        );
    };
    // An option may be for a method that is selected later.
    let options = setup::options_by_method(&explain.set, |name| name.parse::<Method>().is_ok())?;
    let mut settings = Settings::default();
    settings.request = Request {
        gates: args.gates.clone(),
        batch: NonZeroUsize::MIN,
        options,
        ..args.reuse.added_to(explain.request())
    };
    settings.sync_mode = match args.policy {
        Policy::Latest => SyncMode::Latest,
        Policy::Exact => SyncMode::Exact,
    };
    settings.interval = args.every.get();
    settings.max_age = Duration::from_nanos((1e9 * args.max_age.unwrap_or(0.0)) as u64);
    settings.smoothing = args.smoothing;
    settings.draw = shown;
    settings.coloring = draw.colormap.into();
    settings.alpha = draw.alpha;
    settings.threshold = draw.threshold;
    settings.show_stats = args.stats;
    if let Some(path) = &args.scores {
        let path = match path.to_str() {
            Some(_) if is_stdout(path) => "/dev/stdout",
            Some(path) => path,
            None => bail!("path is not UTF-8: {path:?}"),
        };
        settings.scores_location = Some(path.to_owned());
    }
    Ok(settings)
}

/// Returns the options for explaining with the head in `folder`.
fn head_usage(folder: &Path, explain: &ExplainArgs) -> String {
    let backbone = explain.backbone.as_ref().unwrap_or(&explain.model);
    format!("--model {} --backbone {backbone}", folder.display())
}

/// Returns whether `path` is neither a file nor the name of one.
fn is_no_file(path: &Path) -> bool {
    let has_scheme = path.to_str().is_some_and(|text| {
        ["tcp://", "unix:"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    });
    is_stdout(path) || has_scheme
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_served_at_a_port_a_name_or_an_address() {
        let at = |text: &str| served(text).map(|address| address.to_string());
        assert_eq!(at("8080").as_deref(), Ok("127.0.0.1:8080"));
        assert_eq!(at("localhost:8081").as_deref(), Ok("127.0.0.1:8081"));
        assert_eq!(at("0.0.0.0:80").as_deref(), Ok("0.0.0.0:80"));
        assert_eq!(at("[::1]:80").as_deref(), Ok("[::1]:80"));
        for text in ["", "localhost", "99999", "a b:80"] {
            assert_eq!(
                at(text),
                Err("expected PORT, HOST:PORT or IP:PORT".into()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_summary_gives_no_duration_of_explanations_that_were_not_made() {
        let mut status = Status {
            frames: 29,
            ..Status::default()
        };
        let told = |status: &Status| summary(status, Duration::from_secs(1));
        assert_eq!(told(&status), "29 frames (29.0 per second), none explained");
        status.explained = 1;
        assert!(told(&status).contains("explanation time: median"));
    }

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(size("640x480"), Ok((640, 480)));
        assert!(size("640").is_err() && size("0x480").is_err() && size("99999x99").is_err());
    }
}
