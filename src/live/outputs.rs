//! Where explained frames go, each behind a queue of its own: a slow one delays no other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;

use super::Key;
use super::address::Address;
use super::utf8;
use crate::serve::Feed;
use vitscope_core::error::{Error, Result};
use vitscope_core::files::part_path;
use vitscope_video::media::bus::Failure;
use vitscope_video::media::elements::{
    add_chain, available, capsfilter, factory_name, link, make, missing, static_pad,
};

/// An encoder that keeps up with what it records.
struct Encoder {
    factory: &'static str,
    settings: &'static [(&'static str, &'static str)],
    parser: Option<&'static str>,
}

/// The best one first.
const ENCODERS: [Encoder; 3] = [
    Encoder {
        factory: "x264enc",
        settings: &[
            ("tune", "zerolatency"),
            ("speed-preset", "veryfast"),
            ("pass", "qual"),
            ("quantizer", "23"),
            ("key-int-max", "60"),
        ],
        parser: Some("h264parse"),
    },
    Encoder {
        factory: "openh264enc",
        settings: &[("complexity", "low")],
        parser: Some("h264parse"),
    },
    Encoder {
        factory: "vp8enc",
        settings: &[
            ("deadline", "1"),
            ("cpu-used", "8"),
            ("keyframe-max-dist", "60"),
            ("target-bitrate", "4000000"),
        ],
        parser: None,
    },
];

/// Those that HTTP live streaming takes.
const H264: &[Encoder] = ENCODERS.split_at(2).0;

/// The size up to which the page's pictures are sent as they are.
const PAGE_PX: (i32, i32) = (1280, 720);

/// How long an RTP session may take to say that it has ended.
const FAREWELL: gst::ClockTime = gst::ClockTime::from_mseconds(500);

/// Seconds of a segment of HTTP live streaming, and how many segments are kept.
const SEGMENT_SECS: u32 = 2;
const SEGMENTS: u32 = 6;

/// Outputs for explained frames; with none of them, only the model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outputs {
    /// Whether to show a window.
    pub window: bool,
    /// Records to this Matroska or fragmented MP4 file, which stays playable if the recording breaks off.
    pub record: Option<PathBuf>,
    /// Outputs to this V4L2 loopback device (a virtual camera).
    pub v4l2: Option<PathBuf>,
    /// Pushes to this address of an RTSP server.
    pub rtsp: Option<Address>,
    /// Writes an HTTP live stream to this folder: `live.m3u8` and the latest segments.
    pub hls: Option<PathBuf>,
}

impl Outputs {
    /// Puts them behind `tee`; keys that are pressed in the window go to `keys`, pictures for the page to `page`.
    pub(super) fn add(
        &self,
        pipeline: &gst::Pipeline,
        tee: &gst::Element,
        keys: Sender<Key>,
        page: Option<&Arc<Feed>>,
    ) -> Result<()> {
        let mut chains = Vec::new();
        if self.window {
            // Where there is no screen, it is tried last, and DirectFB takes the whole program with it.
            if let Some(directfb) = gst::ElementFactory::find("dfbvideosink") {
                directfb.set_rank(gst::Rank::NONE);
            }
            let sink = make("autovideosink")?;
            // What is newest is shown; nobody waits for a frame's time to come.
            sink.set_property("sync", false);
            let queue = newest()?;
            forward_keys(&queue, keys)?;
            chains.push(vec![queue, make("videoconvert")?, sink]);
        }
        if let Some(feed) = page {
            chains.push(pictures(feed)?);
        }
        if let Some(path) = &self.record {
            let sink = make("filesink")?;
            // Until something of it has been explained, so that a run that fails takes no earlier recording away.
            sink.set_property("location", utf8(&part_path(path))?);
            let (encoders, muxer) = container(path)?;
            let mut chain = encoded(encoders)?;
            chain.extend([muxer, sink]);
            chains.push(chain);
        }
        if let Some(address) = &self.rtsp {
            let Address::Url(url) = address else {
                return Err(not_rtsp(address));
            };
            if !matches!(url.scheme(), "rtsp" | "rtsps") {
                return Err(not_rtsp(address));
            }
            let sink = make("rtspclientsink")?;
            sink.set_property("location", url.as_str());
            if url.scheme() == "rtsp" {
                sink.set_property_from_str("protocols", "tcp");
            }
            end_without_farewell(&sink);
            let mut chain = encoded(&ENCODERS)?;
            chain.push(sink);
            chains.push(chain);
        }
        if let Some(folder) = &self.hls {
            let mut chain = encoded(H264)?;
            chain.push(hls(folder)?);
            chains.push(chain);
        }
        if let Some(path) = &self.v4l2 {
            let sink = make("v4l2sink")?;
            sink.set_property("device", utf8(path)?);
            sink.set_property("sync", false);
            chains.push(vec![newest()?, make("videoconvert")?, sink]);
        }
        if chains.is_empty() {
            let sink = make("fakesink")?;
            sink.set_property("sync", false);
            chains.push(vec![make("queue")?, sink]);
        }
        for chain in chains {
            add_chain(pipeline, &chain)?;
            if let Some(first) = chain.first() {
                link(&[tee.clone(), first.clone()])?;
            }
        }
        Ok(())
    }

    /// Fails where a window is asked for and `pipeline`, which has begun, found nowhere to show it.
    pub(super) fn check_window(&self, pipeline: &gst::Pipeline) -> Result<()> {
        // What autovideosink takes when nothing else works, without a word.
        let blind = pipeline
            .iterate_all_by_element_factory_name("fakesink")
            .into_iter()
            .flatten()
            .filter_map(|sink| sink.parent()?.downcast::<gst::Element>().ok())
            .any(|parent| factory_name(&parent) == "autovideosink");
        if self.window && blind {
            return Err(Error::Media(
                "no screen is available for a window: choose another output or --no-window".into(),
            ));
        }
        Ok(())
    }

    /// What has become of them, or of what is before them.
    pub(super) fn failed(&self, error: &gst::message::Error) -> Error {
        let failure = Failure::from_message(error);
        let pushed = self.rtsp.as_ref();
        if let Some(address) = pushed.filter(|_| is_from(error, "rtspclientsink")) {
            let reason = address.redacted(&failure.reason);
            return Error::Media(format!("{address} does not accept the video: {reason}"));
        }
        match self.record.as_ref().or(self.hls.as_ref()) {
            Some(path) if failure.disk_full => {
                Error::Media(format!("no space left on the disk: {path:?}"))
            }
            Some(path) if failure.writer => Error::Media(format!("{}: {path:?}", failure.reason)),
            _ => Error::Media(failure.reason),
        }
    }
}

/// Says that `sink` has come to its end soon after its last frame, whether or not its RTP session says so.
///
/// A session does when its BYE has been sent. Where the machine is busy it sometimes never sends one (GStreamer 1.22), and
/// by then there is nothing left that could be lost.
fn end_without_farewell(sink: &gst::Element) {
    sink.connect_pad_added(|sink, pad| {
        let sink = sink.downgrade();
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            let event = info.event().map(|event| event.type_());
            if event == Some(gst::EventType::Eos) && end_soon(sink.clone()).is_err() {
                tracing::warn!("the end of the pushed stream waits for its RTP session to end");
            }
            gst::PadProbeReturn::Ok
        });
    });
}

/// Says after [`FAREWELL`] that `sink` has come to its end.
fn end_soon(sink: glib::WeakRef<gst::Element>) -> std::result::Result<(), gst::ClockError> {
    let clock = gst::SystemClock::obtain();
    let until = clock.time() + FAREWELL;
    let end = clock.new_single_shot_id(until).wait_async(move |_, _, _| {
        if let Some(sink) = sink.upgrade() {
            // Where the real end was told before, nobody listens any more.
            let _ = sink.post_message(gst::message::Eos::builder().src(&sink).build());
        }
    });
    end.map(|_| ())
}

fn not_rtsp(address: &Address) -> Error {
    Error::Config(format!(
        "not an address to push to, expected rtsp:// or rtsps://: {address}"
    ))
}

/// What a recording of this name is written by: the encoders that its container takes, and the muxer.
fn container(path: &Path) -> Result<(&'static [Encoder], gst::Element)> {
    /// What of an MP4 is lost at most where the recording breaks off.
    const FRAGMENT_MS: u32 = 1000;
    match path.extension().and_then(|end| end.to_str()) {
        Some("mkv") => Ok((&ENCODERS, make("matroskamux")?)),
        Some("mp4") => {
            let muxer = make("mp4mux")?;
            muxer.set_property("fragment-duration", FRAGMENT_MS);
            Ok((H264, muxer))
        }
        _ => Err(Error::Config(format!(
            "a recording is Matroska or MP4, expected a file name ending in .mkv or .mp4: {path:?}"
        ))),
    }
}

/// True where the message comes from an element of this factory, or from one inside of it.
fn is_from(error: &gst::message::Error, factory: &str) -> bool {
    let mut object = error.src().cloned();
    while let Some(here) = object {
        let element = here.downcast_ref::<gst::Element>();
        if element.is_some_and(|element| factory_name(element) == factory) {
            return true;
        }
        object = here.parent();
    }
    false
}

/// True where the user has closed the window, which is how one says that it is enough.
pub(super) fn is_closed_window(error: &gst::message::Error) -> bool {
    let of_sink = error
        .src()
        .and_then(|src| src.downcast_ref::<gst::Element>())
        .is_some_and(|element| factory_name(element).contains("imagesink"));
    of_sink && error.error().matches(gst::ResourceError::NotFound)
}

/// A queue that holds the newest frames and drops older ones: who watches does not wait.
fn newest() -> Result<gst::Element> {
    let queue = make("queue")?;
    queue.set_property_from_str("leaky", "downstream");
    queue.set_property("max-size-buffers", 2_u32);
    Ok(queue)
}

/// Sends the keys that are pressed in the window behind `queue` to `keys`.
fn forward_keys(queue: &gst::Element, keys: Sender<Key>) -> Result<()> {
    let pad = static_pad(queue, "src")?;
    pad.add_probe(gst::PadProbeType::EVENT_UPSTREAM, move |_, info| {
        let event = info
            .event()
            .filter(|event| event.type_() == gst::EventType::Navigation);
        let event = event.and_then(|event| gst_video::NavigationEvent::parse(event).ok());
        if let Some(gst_video::NavigationEvent::KeyPress { key, .. }) = event {
            // Nobody presses more keys than are looked at.
            let _ = Key::from_name(&key).map(|key| keys.try_send(key));
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// Makes pictures for the page while somebody watches it.
fn pictures(feed: &Arc<Feed>) -> Result<Vec<gst::Element>> {
    let queue = newest()?;
    let watched = Arc::clone(feed);
    static_pad(&queue, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if watched.n_viewers() > 0 {
            return gst::PadProbeReturn::Ok;
        }
        info.data = None;
        gst::PadProbeReturn::Handled
    });
    let (width, height) = PAGE_PX;
    let filter = capsfilter(
        &gst::Caps::builder("video/x-raw")
            .field("width", gst::IntRange::new(1, width))
            .field("height", gst::IntRange::new(1, height))
            .field("pixel-aspect-ratio", gst::Fraction::new(1, 1))
            .build(),
    )?;
    let encoder = make("jpegenc")?;
    encoder.set_property("quality", 85_i32);
    let feed = Arc::clone(feed);
    let show = move |appsink: &gst_app::AppSink| {
        let sample = appsink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let map = sample
            .buffer()
            .and_then(|buffer| buffer.map_readable().ok());
        if let Some(map) = map {
            feed.show(Arc::from(map.as_slice()));
        }
        Ok(gst::FlowSuccess::Ok)
    };
    let sink = gst_app::AppSink::builder()
        .sync(false)
        // Without anybody who watches, no picture comes, and nobody waits for one.
        .async_(false)
        .max_buffers(1)
        .callbacks(
            gst_app::AppSinkCallbacks::builder()
                .new_sample(show)
                .build(),
        )
        .build();
    Ok(vec![
        queue,
        make("videoconvert")?,
        make("videoscale")?,
        filter,
        encoder,
        sink.upcast(),
    ])
}

/// What writes segments and their list into `folder`.
fn hls(folder: &Path) -> Result<gst::Element> {
    let sink = make("hlssink2")?;
    sink.set_property("location", utf8(&folder.join("segment%05d.ts"))?);
    sink.set_property("playlist-location", utf8(&folder.join("live.m3u8"))?);
    sink.set_property("target-duration", SEGMENT_SECS);
    sink.set_property("playlist-length", SEGMENTS);
    sink.set_property("max-files", SEGMENTS + 2);
    Ok(sink)
}

/// A queue and an encoder that keeps up, the first of `encoders` that there is.
fn encoded(encoders: &[Encoder]) -> Result<Vec<gst::Element>> {
    let Some(found) = encoders.iter().find(|it| available(it.factory)) else {
        let names: Vec<&str> = encoders.iter().map(|it| it.factory).collect();
        return Err(missing(&names));
    };
    let encoder = make(found.factory)?;
    for (name, value) in found.settings {
        encoder.set_property_from_str(name, value);
    }
    let queue = make("queue")?;
    // Two seconds: an encoder that is slow for longer slows the source down.
    queue.set_property("max-size-time", 2_000_000_000_u64);
    queue.set_property("max-size-bytes", 0_u32);
    let filter = capsfilter(
        &gst::Caps::builder("video/x-raw")
            .field("format", "I420")
            .build(),
    )?;
    keep_size(&queue, &filter)?;
    let mut chain = vec![
        queue,
        make("videoconvert")?,
        make("videoscale")?,
        filter,
        encoder,
    ];
    chain.extend(found.parser.map(make).transpose()?);
    Ok(chain)
}

/// Keeps the size of the first frame, or the next even one, which encoders that halve chroma need: a source that comes
/// back with another one does not break the recording.
fn keep_size(first: &gst::Element, filter: &gst::Element) -> Result<()> {
    let filter = filter.downgrade();
    let pad = static_pad(first, "sink")?;
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) else {
            return gst::PadProbeReturn::Ok;
        };
        if let (Some(filter), Some(structure)) = (filter.upgrade(), caps.caps().structure(0)) {
            let side = |name| structure.get::<i32>(name).ok().map(|px| px + px % 2);
            let caps = gst::Caps::builder("video/x-raw")
                .field("format", "I420")
                .field_if_some("width", side("width"))
                .field_if_some("height", side("height"))
                .build();
            filter.set_property("caps", caps);
        }
        gst::PadProbeReturn::Remove
    });
    Ok(())
}
