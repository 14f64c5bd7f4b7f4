//! Conversion of one video file to another: checks, then one GStreamer pipeline behind a source and a sink.

use std::path::Path;
use std::time::Duration;

use gstreamer as gst;

use super::audio::AudioTrack;
use super::container::Container;
use super::elements;
use super::encoder::{Settings, VideoCodec};
use super::job::{AudioMode, FileJob, HdrMode};
use super::rendition::Kept;
use super::session::{Shared, lock};
use super::sink::{FileSink, Plan};
use super::source::FileSource;
use super::tap::Picture;
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::FrameSize;

/// Initializes GStreamer; repeated calls have no effect.
///
/// # Errors
/// [`Error::Media`] if GStreamer cannot be initialized.
pub fn init() -> Result<()> {
    gst::init().map_err(|err| Error::Media(format!("gstreamer does not start: {err}")))
}

/// Redirects log messages of GStreamer and GLib to [`tracing`] at debug level; a failure that ends a run is reported as
/// an error anyway.
pub fn log_to_tracing() {
    // When debugging GLib, its own messages are needed.
    if std::env::var_os("G_DEBUG").is_some() {
        return;
    }
    gst::glib::log_set_default_handler(|domain, _level, text| {
        tracing::debug!(domain = domain.unwrap_or_default(), "{text}");
    });
}

/// Returns the version of GStreamer.
pub fn version() -> String {
    let (major, minor, micro, _) = gst::version();
    format!("{major}.{minor}.{micro}")
}

/// Properties of an input file and of its encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Size of the video after rotation.
    pub size: FrameSize,
    /// Frame rate as a ratio; `None` if it varies or the container does not specify it.
    pub framerate: Option<(u32, u32)>,
    /// Duration of the requested range according to the container.
    pub duration: Option<Duration>,
    /// Human-readable descriptions of the audio tracks of the output.
    pub audio: Vec<String>,
    /// Whether every audio track is copied packet by packet.
    pub audio_copied: bool,
    /// Name of the element that encodes the video.
    pub encoder: &'static str,
}

impl Default for StreamInfo {
    fn default() -> Self {
        Self {
            size: FrameSize {
                width_px: 0,
                height_px: 0,
            },
            framerate: None,
            duration: None,
            audio: Vec::new(),
            audio_copied: true,
            encoder: "",
        }
    }
}

impl StreamInfo {
    pub(super) fn new(
        job: &FileJob,
        picture: &Picture,
        claimed: Option<Duration>,
        shared: &Shared,
    ) -> Self {
        let info = &picture.info;
        let fps = info.fps();
        let start = Duration::from_nanos(job.start.unwrap_or_default().0);
        let end = job.end.map(|end| Duration::from_nanos(end.0));
        let tracks = lock(&shared.tracks);
        let tracks = tracks.as_deref().unwrap_or_default();
        Self {
            size: FrameSize {
                width_px: info.width() as usize,
                height_px: info.height() as usize,
            },
            framerate: match (u32::try_from(fps.numer()), u32::try_from(fps.denom())) {
                (Ok(numer), Ok(denom)) if numer > 0 => Some((numer, denom)),
                _ => None,
            },
            duration: claimed
                .map(|claimed| end.map_or(claimed, |end| end.min(claimed)))
                .map(|end| end.saturating_sub(start)),
            audio: tracks.iter().map(AudioTrack::description).collect(),
            audio_copied: tracks.iter().all(|track| track.copied),
            encoder: "",
        }
    }
}

/// Opens the input and prepares the output, which is not touched before the first frame is pushed.
///
/// The source's timestamps are those of the output: they start where the input's presentation (or the range) starts.
///
/// # Errors
/// [`Error::Config`] if a path, a range or an option is invalid; [`Error::Media`] if the input is not a playable video
/// or an element is missing.
pub fn open(job: &FileJob) -> Result<(FileSource, FileSink)> {
    init()?;
    let container = job.check()?;
    Settings::checked_crf(job.crf)?;
    if !elements::available(container.muxer()) {
        return Err(elements::missing(&[container.muxer()]));
    }
    let codec = VideoCodec::choose(container, job.codec, job.hdr)?;
    let kept = Kept {
        depth: codec.is_deep(),
        hdr: job.hdr == HdrMode::Keep,
    };
    let (mut source, picture) = FileSource::open(job, container, kept)?;
    source.info_mut().encoder = codec.element();
    let session = source.session();
    let plan = Plan::new(job, container, codec, picture, &session.shared)?;
    let sink = FileSink::new(job, plan, source.unread(), session);
    Ok((source, sink))
}

/// Opens a video to read only its frames.
///
/// # Errors
/// [`Error::Config`] if there is no such file; [`Error::Media`] if it is not a playable video or an element is missing.
pub fn read(input: &Path) -> Result<FileSource> {
    init()?;
    let job = FileJob {
        audio: AudioMode::Drop,
        ..FileJob::new(input, "")
    };
    job.check_input()?;
    // Audio is dropped, so no container has to accept it.
    let (source, _) = FileSource::open(&job, Container::Matroska, Kept::default())?;
    Ok(source)
}
