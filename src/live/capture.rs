//! The pipeline from a source to frames; it is rebuilt when the source is lost.

use std::net::TcpStream;
use std::path::PathBuf;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use url::Url;

use super::address::Address;
use super::freeze::Freeze;
use super::utf8;
use vitscope_core::error::{Error, Result, unknown};
use vitscope_video::media::bus::Failure;
use vitscope_video::media::elements::{
    add_chain, capsfilter, drain_pad, factory_name, link, link_chain, make, static_pad,
};

/// The format requested from a camera; other sources choose their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// Frames per second.
    pub fps: Option<u32>,
}

/// A camera that GStreamer knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Camera {
    /// Its display name.
    pub name: String,
    /// Its path, if it has one.
    pub path: Option<String>,
    /// The formats it supports, one per line.
    pub formats: Vec<String>,
}

/// Returns the cameras in index order.
fn devices() -> Result<Vec<gst::Device>> {
    /// Tracks devices as they are plugged in and unplugged. It is never stopped: with the PipeWire of Debian 12,
    /// stopping it crashes the program about one time in five.
    static MONITOR: OnceLock<Option<gst::DeviceMonitor>> = OnceLock::new();
    let monitor = MONITOR.get_or_init(|| {
        let monitor = gst::DeviceMonitor::new();
        monitor.add_filter(Some("Video/Source"), None);
        monitor.start().ok().map(|()| monitor)
    });
    let monitor = monitor.as_ref();
    let monitor = monitor.ok_or_else(|| Error::Media("cannot search for cameras".into()))?;
    Ok(monitor.devices().into_iter().collect())
}

/// Returns the cameras that GStreamer knows of, in index order.
///
/// # Errors
/// Fails if GStreamer cannot search for them.
pub fn cameras() -> Result<Vec<Camera>> {
    let cameras = devices()?.into_iter().map(|device| {
        let properties = device.properties();
        let path = ["api.v4l2.path", "device.path"]
            .iter()
            .find_map(|key| properties.as_ref()?.get::<String>(*key).ok());
        let caps = device.caps();
        let formats = caps.iter().flat_map(|caps| caps.iter());
        let formats = formats.map(gst::StructureRef::to_string).collect();
        Camera {
            name: device.display_name().into(),
            path,
            formats,
        }
    });
    Ok(cameras.collect())
}

/// Returns the path of the plugin that other programs load; `None` if GStreamer does not find it.
pub fn plugin_file() -> Option<PathBuf> {
    let registry = gst::Registry::get();
    registry.find_plugin("vitscope")?.filename()
}

/// Clock and base time of the pipeline that receives the frames.
#[derive(Clone)]
pub(super) struct Base {
    pub(super) clock: gst::Clock,
    pub(super) time: gst::ClockTime,
}

impl Base {
    fn running_time(&self) -> gst::ClockTime {
        self.clock.time().saturating_sub(self.time)
    }
}

/// One connection to a source.
pub(super) struct Capture {
    pipeline: gst::Pipeline,
    address: Address,
    /// Number of frames received.
    n_frames: Arc<AtomicU64>,
}

impl Capture {
    /// Connects, and from then on pushes all frames to `appsrc`, in the running time of `base`.
    ///
    /// # Errors
    /// Fails if there is no such source; [`has_ended`](Self::has_ended) reports later failures.
    pub(super) fn start(
        address: &Address,
        wanted: Wanted,
        appsrc: &gst_app::AppSrc,
        base: &Base,
        freeze: Arc<Freeze>,
    ) -> Result<Self> {
        let pipeline = gst::Pipeline::new();
        let n_frames = Arc::new(AtomicU64::new(0));
        // A reconnected source starts at 0 again; shift its timestamps to the current running time.
        let offset = base.running_time();
        let times = Times {
            base: base.clone(),
            last: Mutex::new(None),
        };
        let appsink = appsink(appsrc, times, offset, &n_frames, freeze);
        let (convert, flip) = (make("videoconvert")?, make("videoflip")?);
        // Phone clips and cameras mounted upside down specify how to rotate the video.
        flip.set_property_from_str("video-direction", "auto");
        add_chain(&pipeline, &[convert.clone(), flip, appsink.upcast()])?;
        match address {
            Address::Url(_) | Address::File(_) => {
                let decoder = make("uridecodebin")?;
                decoder.set_property("uri", uri(address)?);
                let is_plain_rtsp = matches!(address, Address::Url(url) if url.scheme() == "rtsp");
                set_up_stream(&decoder, is_plain_rtsp);
                add_chain(&pipeline, slice::from_ref(&decoder))?;
                link_video(&decoder, static_pad(&convert, "sink")?);
            }
            Address::Screen => {
                let screen = make("ximagesrc")?;
                screen.set_property("use-damage", false);
                add_chain(&pipeline, slice::from_ref(&screen))?;
                link(&[screen, convert])?;
            }
            Address::Test(pattern) => {
                let test = make("videotestsrc")?;
                test.set_property("is-live", true);
                set_pattern(&test, pattern)?;
                let filter = capsfilter(&raw_caps(wanted))?;
                add_chain(&pipeline, &[test, filter.clone()])?;
                link(&[filter, convert])?;
            }
            Address::NotAnAddress(_) => {
                return Err(Error::Config(format!(
                    "not the address of a stream, expected SCHEME://HOST:PORT/PATH with a port of at most 65535: {address}"
                )));
            }
            Address::Index(_) | Address::Path(_) | Address::Name(_) => {
                let camera = camera(address, wanted)?;
                let decoder = make("decodebin")?;
                let filter = capsfilter(&camera_caps(wanted))?;
                link_chain(&pipeline, &[camera, filter, decoder.clone()])?;
                link_video(&decoder, static_pad(&convert, "sink")?);
            }
        }
        pipeline.use_clock(Some(&base.clock));
        pipeline.set_start_time(gst::ClockTime::NONE);
        pipeline.set_base_time(base.time + offset);
        let capture = Self {
            pipeline,
            address: address.clone(),
            n_frames,
        };
        if capture.pipeline.set_state(gst::State::Playing).is_err() {
            capture.has_ended()?;
            return Err(Error::Media(format!("{address} did not start")));
        }
        Ok(capture)
    }

    /// Returns the number of frames received so far.
    pub(super) fn n_frames(&self) -> u64 {
        self.n_frames.load(Ordering::Relaxed)
    }

    /// Returns whether the source has reached its end.
    ///
    /// # Errors
    /// Fails if the source is lost.
    pub(super) fn has_ended(&self) -> Result<bool> {
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
        let Some(message) = self.pipeline.bus().and_then(|bus| bus.pop_filtered(&kinds)) else {
            return Ok(false);
        };
        let address = &self.address;
        let gst::MessageView::Error(error) = message.view() else {
            return Ok(true);
        };
        let reason = reason(error, address);
        Err(Error::Media(format!(
            "{}: {address}",
            address.redacted(&reason)
        )))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.pipeline.set_state(gst::State::Null).is_err() {
            tracing::warn!(source = %self.address, "the source did not stop");
        }
    }
}

/// Returns why there is no video, in terms the user can act on.
fn reason(error: &gst::message::Error, address: &Address) -> String {
    let told = Failure::from_message(error).reason;
    let is = |kind: gst::ResourceError| error.error().matches(kind);
    if is(gst::ResourceError::NotAuthorized) {
        return "the server requires a valid user name and password, as in rtsp://USER:PASSWORD@HOST/"
            .into();
    }
    if is(gst::ResourceError::Busy) {
        return "another program is using it".into();
    }
    let Address::Url(url) = address else {
        return told;
    };
    if is(gst::ResourceError::NotFound) {
        // GStreamer reports the same if there is no server.
        let nothing = || format!("the server has no stream at {:?}", address.path());
        return unreachable(url).unwrap_or_else(nothing);
    }
    // GStreamer 1.22 reports little more than a failure, whether of the host, the server or the page.
    unreachable(url).unwrap_or(told)
}

/// Returns why a connection to the host of `url` is impossible; `None` if it is possible.
fn unreachable(url: &Url) -> Option<String> {
    /// Maximum response time of a host that is up.
    const PATIENCE: Duration = Duration::from_secs(2);
    let of_scheme = || match url.scheme() {
        "rtsp" | "rtspt" | "rtspu" => Some(554),
        _ => None,
    };
    let port = url.port_or_known_default().or_else(of_scheme)?;
    let Some(address) = url
        .socket_addrs(of_scheme)
        .ok()
        .and_then(|all| all.first().copied())
    else {
        return Some("the host was not found".into());
    };
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Some(format!("no server is listening on port {port}"))
        }
        Err(_) => Some("the host does not respond".into()),
    }
}

/// Returns the URI of a stream or a file.
fn uri(address: &Address) -> Result<String> {
    match address {
        Address::File(path) if !path.is_file() => {
            Err(Error::Media(format!("no such file: {path:?}")))
        }
        Address::File(path) => {
            let path = path.canonicalize().map_err(|e| Error::io(path, e))?;
            let uri = glib::filename_to_uri(&path, None);
            let uri = uri.map_err(|_| Error::Media(format!("cannot open the file: {path:?}")))?;
            Ok(uri.into())
        }
        Address::Url(url) => Ok(url.to_string()),
        _ => Err(Error::Media(format!("not a stream: {address}"))),
    }
}

/// Configures the elements that `decoder` creates for a network stream.
fn set_up_stream(decoder: &gst::Element, is_plain_rtsp: bool) {
    /// Time that frames are held back so that late packets can be put in order; the default is 2 s.
    const LATENCY_MS: u32 = 200;
    /// Time after which a silent server is given up; the default is 20 s.
    const SILENCE_US: u64 = 5_000_000;
    decoder.connect("source-setup", false, move |arguments| {
        let source = arguments[1].get::<gst::Element>().ok()?;
        if factory_name(&source) == "rtspsrc" {
            source.set_property("latency", LATENCY_MS);
            source.set_property("tcp-timeout", SILENCE_US);
            if is_plain_rtsp {
                // Datagrams that a firewall drops would cost five seconds before each picture.
                source.set_property_from_str("protocols", "tcp");
            }
        } else if let Some(pad) = source.static_pad("src") {
            begin_with_boundary(&pad);
        }
        None
    });
    let bin = decoder.downcast_ref::<gst::Bin>();
    if let Some(bin) = bin {
        bin.connect_deep_element_added(|_, _, element| {
            if factory_name(element) == "multipartdemux" {
                // It never signals that no other streams follow, so the decoder would wait for them.
                element.set_property("single-stream", true);
            }
        });
    }
}

/// Prepends a boundary to a multipart stream that has none before its first picture, as sent by some cameras. Without
/// the boundary, GStreamer would not recognize the stream or would mistake it for something else.
fn begin_with_boundary(pad: &gst::Pad) {
    let boundary = Mutex::new(None);
    let kinds = gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::BUFFER;
    pad.add_probe(kinds, move |_, info| {
        let mut boundary = boundary.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut info.data {
            Some(gst::PadProbeData::Event(event)) => {
                let told = event.structure().and_then(boundary_of);
                *boundary = told.or(boundary.take());
                gst::PadProbeReturn::Ok
            }
            Some(gst::PadProbeData::Buffer(buffer)) => {
                if let Some(boundary) = boundary.take().filter(|_| begins_with_headers(buffer)) {
                    let mut first = gst::Buffer::from_slice(format!("{boundary}\r\n"));
                    first.append(buffer.clone());
                    *buffer = first;
                }
                gst::PadProbeReturn::Remove
            }
            _ => gst::PadProbeReturn::Ok,
        }
    });
}

/// Returns the delimiter line between the parts of a multipart stream, from the headers of an HTTP response.
fn boundary_of(answer: &gst::StructureRef) -> Option<String> {
    let headers = answer.get::<gst::Structure>("response-headers").ok()?;
    let mut fields = headers.iter();
    let (_, value) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-type"))?;
    let content_type = value.get::<String>().ok()?;
    if !content_type.to_ascii_lowercase().starts_with("multipart/") {
        return None;
    }
    let (_, behind) = content_type.split_once("boundary=")?;
    let boundary = behind.split(';').next()?.trim().trim_matches('"');
    // Some servers specify the whole line, including the dashes.
    Some(format!("--{}", boundary.trim_start_matches("--")))
}

/// Returns whether a stream begins with the headers of a part.
fn begins_with_headers(buffer: &gst::Buffer) -> bool {
    const HEADER: &[u8] = b"content-";
    let map = buffer.map_readable();
    map.is_ok_and(|map| {
        let begin = map.trim_ascii_start().get(..HEADER.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(HEADER))
    })
}

/// Assigns frames their times in the receiving pipeline.
struct Times {
    base: Base,
    last: Mutex<Option<gst::ClockTime>>,
}

impl Times {
    /// Returns the time of the next frame, given its own `time`: the current time if it has none, and always later than
    /// the previous frame.
    ///
    /// PipeWire and MJPEG sources have no timestamps; RTSP gives all frames that waited for a lost packet the same one.
    fn next(&self, time: Option<gst::ClockTime>) -> gst::ClockTime {
        const LEAST: gst::ClockTime = gst::ClockTime::from_mseconds(1);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = last.map_or(gst::ClockTime::ZERO, |last| last + LEAST);
        let now = self.base.running_time();
        let time = match time {
            Some(time) if time >= earliest => time,
            _ => now.max(earliest),
        };
        *last = Some(time);
        time
    }
}

/// Returns a sink that pushes frames to `appsrc`, with `offset` added to their running time.
fn appsink(
    appsrc: &gst_app::AppSrc,
    times: Times,
    offset: gst::ClockTime,
    n_frames: &Arc<AtomicU64>,
    freeze: Arc<Freeze>,
) -> gst_app::AppSink {
    let (appsrc, n_frames) = (appsrc.clone(), Arc::clone(n_frames));
    let forward = move |appsink: &gst_app::AppSink| {
        let sample = appsink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let segment = sample
            .segment()
            .and_then(|segment| segment.downcast_ref::<gst::ClockTime>());
        let time = sample.buffer().and_then(gst::BufferRef::pts);
        let time = time.and_then(|time| segment?.to_running_time(time));
        let duration = sample.buffer().and_then(gst::BufferRef::duration);
        let sample = freeze.shown(sample);
        let Some(mut buffer) = sample.buffer_owned() else {
            return Ok(gst::FlowSuccess::Ok);
        };
        let timed = buffer.make_mut();
        timed.set_pts(times.next(time.map(|time| time + offset)));
        timed.set_dts(gst::ClockTime::NONE);
        timed.set_duration(duration);
        n_frames.fetch_add(1, Ordering::Relaxed);
        let caps = sample.caps_owned();
        let sample = gst::Sample::builder().buffer(&buffer);
        let sample = match &caps {
            Some(caps) => sample.caps(caps),
            None => sample,
        };
        appsrc.push_sample(&sample.build())
    };
    gst_app::AppSink::builder()
        .caps(
            &gst_video::VideoCapsBuilder::new()
                .format(gst_video::VideoFormat::I420)
                .build(),
        )
        // A source that arrives faster than it plays, such as a file from a web server, is shown at playback speed.
        .sync(true)
        .max_buffers(2)
        .callbacks(
            gst_app::AppSinkCallbacks::builder()
                .new_sample(forward)
                .build(),
        )
        .build()
}

/// Links the first video stream of `decoder` to `target` and drains all other streams.
fn link_video(decoder: &gst::Element, target: gst::Pad) {
    decoder.connect_pad_added(move |decoder, pad| {
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let is_video = caps
            .structure(0)
            .is_some_and(|it| it.name().starts_with("video/"));
        if is_video && !target.is_linked() && pad.link(&target).is_ok() {
            return;
        }
        let pipeline = decoder.parent().and_downcast::<gst::Pipeline>();
        let drained = pipeline.and_then(|pipeline| drain_pad(&pipeline, pad).ok());
        if drained.is_none() {
            tracing::warn!(pad = %pad.name(), "cannot discard an additional stream of the source");
        }
    });
}

fn set_pattern(test: &gst::Element, pattern: &str) -> Result<()> {
    let class = test.find_property("pattern");
    let class = class.and_then(|spec| glib::EnumClass::with_type(spec.value_type()));
    let Some(value) = class
        .as_ref()
        .and_then(|class| class.to_value_by_nick(pattern))
    else {
        let nicks = class.iter().flat_map(|class| class.values());
        let nicks = nicks.map(glib::EnumValue::nick);
        return Err(Error::Config(unknown("test pattern", pattern, nicks)));
    };
    test.set_property_from_value("pattern", &value);
    Ok(())
}

/// Creates the source element of a camera for the `wanted` format.
fn camera(address: &Address, wanted: Wanted) -> Result<gst::Element> {
    if let Address::Path(path) = address {
        if !path.exists() {
            return Err(Error::Media(format!("no such camera: {path:?}")));
        }
        let source = make("v4l2src")?;
        source.set_property("device", utf8(path)?);
        return Ok(source);
    }
    let devices = devices()?;
    let found = match address {
        Address::Index(index) => devices.get(*index),
        Address::Name(name) => devices
            .iter()
            .find(|device| contains(&device.display_name(), name)),
        _ => None,
    };
    let Some(device) = found else {
        return Err(Error::Media(match devices.len() {
            0 => format!("{address} was not found, and GStreamer sees no other camera"),
            _ => format!("{address} was not found, `vitscope devices` lists the available cameras"),
        }));
    };
    // Check first, because some cameras report an unsupported format only after half a minute.
    let caps = device.caps();
    if let Some(caps) = caps.filter(|caps| !caps.can_intersect(&camera_caps(wanted))) {
        let formats: Vec<_> = caps.iter().map(gst::StructureRef::to_string).collect();
        return Err(Error::Config(format!(
            "{address} does not support the requested size and frame rate, it supports {}",
            formats.join("; ")
        )));
    }
    device
        .create_element(None)
        .map_err(|_| Error::Media(format!("cannot open {address}")))
}

/// Returns whether `name` contains `part`, ignoring case.
fn contains(name: &str, part: &str) -> bool {
    name.to_lowercase().contains(&part.to_lowercase())
}

/// Returns the caps of raw frames in the wanted format.
fn raw_caps(wanted: Wanted) -> gst::Caps {
    limited("video/x-raw", wanted).build()
}

/// Returns the caps that a camera may send, raw or compressed, in the wanted format.
fn camera_caps(wanted: Wanted) -> gst::Caps {
    let mut caps = gst::Caps::new_empty();
    for media_type in ["video/x-raw", "image/jpeg", "video/x-h264"] {
        caps.merge(limited(media_type, wanted).build());
    }
    caps
}

fn limited(media_type: &str, wanted: Wanted) -> gst::caps::Builder<gst::caps::NoFeature> {
    let (width, height) = wanted.size.unzip();
    let side = |px: u32| i32::try_from(px).unwrap_or(i32::MAX);
    gst::Caps::builder(media_type)
        .field_if_some("width", width.map(side))
        .field_if_some("height", height.map(side))
        .field_if_some(
            "framerate",
            wanted.fps.map(|fps| gst::Fraction::new(side(fps), 1)),
        )
}
