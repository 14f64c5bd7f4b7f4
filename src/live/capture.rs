//! The pipeline from a source to frames, which is built again where the source was lost.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;

use super::address::Address;
use super::freeze::Freeze;
use super::utf8;
use crate::error::{Error, Result};
use crate::media::bus::Failure;
use crate::media::elements::{
    add_chain, capsfilter, drain_pad, link, link_chain, make, static_pad,
};

/// What is asked of a camera; others send what they send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// Frames a second.
    pub fps: Option<u32>,
}

/// A camera that GStreamer knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Camera {
    /// What it calls itself.
    pub name: String,
    /// Its path, where it has one.
    pub path: Option<String>,
    /// What it can send, a line each.
    pub formats: Vec<String>,
}

/// Cameras in the order of their index.
fn devices() -> Result<Vec<gst::Device>> {
    let monitor = gst::DeviceMonitor::new();
    monitor.add_filter(Some("Video/Source"), None);
    monitor
        .start()
        .map_err(|_| Error::Media("cannot look for cameras".into()))?;
    let devices = monitor.devices().into_iter().collect();
    monitor.stop();
    Ok(devices)
}

/// Cameras that GStreamer knows of, in the order of their index.
///
/// # Errors
/// Fails where GStreamer cannot look for them.
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

/// The clock of the pipeline that frames are for, and when it began.
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
    /// Frames that have come.
    n_frames: Arc<AtomicU64>,
}

impl Capture {
    /// Connects, and hands all frames to `appsrc` from then on, in the running time of `base`.
    ///
    /// # Errors
    /// Fails where there is no such source; what fails later is told by [`check`](Self::check).
    pub(super) fn start(
        address: &Address,
        wanted: Wanted,
        appsrc: &gst_app::AppSrc,
        base: &Base,
        freeze: Arc<Freeze>,
    ) -> Result<Self> {
        let pipeline = gst::Pipeline::new();
        let n_frames = Arc::new(AtomicU64::new(0));
        // A source that was lost begins again at 0, and goes on at the time that it is by now.
        let offset = base.running_time();
        let appsink = appsink(appsrc, offset, &n_frames, freeze);
        let convert = make("videoconvert")?;
        add_chain(&pipeline, &[convert.clone(), appsink.upcast()])?;
        match address {
            Address::Url(url) => {
                let decoder = make("uridecodebin")?;
                decoder.set_property("uri", url.as_str());
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
            Address::Index(_) | Address::Path(_) | Address::Name(_) => {
                let camera = camera(address)?;
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
            capture.check()?;
            return Err(Error::Media(format!("{address} does not start")));
        }
        Ok(capture)
    }

    /// Frames that have come so far.
    pub(super) fn n_frames(&self) -> u64 {
        self.n_frames.load(Ordering::Relaxed)
    }

    /// Fails where the source is lost or has ended.
    pub(super) fn check(&self) -> Result<()> {
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
        let Some(message) = self.pipeline.bus().and_then(|bus| bus.pop_filtered(&kinds)) else {
            return Ok(());
        };
        let reason = match message.view() {
            gst::MessageView::Error(error) => Failure::from_message(error).reason,
            _ => "the stream has ended".to_owned(),
        };
        let address = &self.address;
        let reason = address.redacted(&reason);
        // The web source of GStreamer 1.22 says no more than that, be the server gone or the page.
        let is_mute = reason.contains("Internal data stream error");
        Err(Error::Media(match is_mute && address.is_remote() {
            true => format!("{address} does not answer, or has no video ({reason})"),
            false => format!("{address}: {reason}"),
        }))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.pipeline.set_state(gst::State::Null).is_err() {
            tracing::warn!(source = %self.address, "the source does not stop");
        }
    }
}

/// Hands frames to `appsrc`, `offset` later in their running time.
fn appsink(
    appsrc: &gst_app::AppSrc,
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
        let (Some(time), Some(mut buffer)) = (time, sample.buffer_owned()) else {
            return Ok(gst::FlowSuccess::Ok);
        };
        let timed = buffer.make_mut();
        timed.set_pts(time + offset);
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
        // What comes faster than it plays, as a file from a web server, is shown as it plays.
        .sync(true)
        .max_buffers(2)
        .callbacks(
            gst_app::AppSinkCallbacks::builder()
                .new_sample(forward)
                .build(),
        )
        .build()
}

/// Links the first video of `decoder` to `target`, and drains what else is in the stream.
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
            tracing::warn!(pad = %pad.name(), "a stream beside the video cannot be left out");
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
        let nicks: Vec<&str> = nicks.map(glib::EnumValue::nick).collect();
        return Err(Error::Config(format!(
            "no such test pattern, known are {}: {pattern:?}",
            nicks.join(", ")
        )));
    };
    test.set_property_from_value("pattern", &value);
    Ok(())
}

/// The element of a camera.
fn camera(address: &Address) -> Result<gst::Element> {
    if let Address::Path(path) = address {
        if !path.exists() {
            return Err(Error::Media(format!("there is no camera: {path:?}")));
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
            .find(|device| device.display_name().contains(name.as_str())),
        _ => None,
    };
    let Some(device) = found else {
        return Err(Error::Media(match devices.len() {
            0 => format!("there is no {address}, and no other camera that GStreamer sees"),
            _ => format!("there is no {address}, `vitscope devices` lists those that there are"),
        }));
    };
    device
        .create_element(None)
        .map_err(|_| Error::Media(format!("{address} cannot be opened")))
}

/// Raw frames as they are wanted.
fn raw_caps(wanted: Wanted) -> gst::Caps {
    limited("video/x-raw", wanted).build()
}

/// What a camera may send, raw or compressed, as it is wanted.
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
