//! Where explained frames go, each behind a queue of its own: a slow one delays no other.

use std::path::{Path, PathBuf};

use gstreamer as gst;
use gstreamer::prelude::*;

use super::utf8;
use crate::error::{Error, Result};
use crate::media::bus::Failure;
use crate::media::elements::{
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

/// What is done with explained frames; none of it is to run the model alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outputs {
    /// Shown on the screen.
    pub window: bool,
    /// Written as Matroska, which can be played whenever the recording breaks off.
    pub record: Option<PathBuf>,
    /// Handed to this V4L2 loopback device, as a camera for other programs.
    pub v4l2: Option<PathBuf>,
}

impl Outputs {
    /// Puts them behind `tee`.
    pub(super) fn add(&self, pipeline: &gst::Pipeline, tee: &gst::Element) -> Result<()> {
        let mut chains = Vec::new();
        if self.window {
            let sink = make("autovideosink")?;
            // What is newest is shown; nobody waits for a frame's time to come.
            sink.set_property("sync", false);
            chains.push(vec![newest()?, make("videoconvert")?, sink]);
        }
        if let Some(path) = &self.record {
            chains.push(recording(path)?);
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

    /// What has become of them, or of what is before them.
    pub(super) fn failed(&self, error: &gst::message::Error) -> Error {
        let failure = Failure::from_message(error);
        match &self.record {
            Some(path) if failure.disk_full => {
                Error::Media(format!("no space left on the disk: {path:?}"))
            }
            Some(path) if failure.writer => Error::Media(format!("{}: {path:?}", failure.reason)),
            _ => Error::Media(failure.reason),
        }
    }
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

fn recording(path: &Path) -> Result<Vec<gst::Element>> {
    let Some(found) = ENCODERS.iter().find(|it| available(it.factory)) else {
        return Err(missing(&ENCODERS.map(|it| it.factory)));
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
    let sink = make("filesink")?;
    sink.set_property("location", utf8(path)?);
    let mut chain = vec![
        queue,
        make("videoconvert")?,
        make("videoscale")?,
        filter,
        encoder,
    ];
    chain.extend(found.parser.map(make).transpose()?);
    chain.extend([make("matroskamux")?, sink]);
    Ok(chain)
}

/// Keeps the size of the first frame: a source that comes back with another one does not break the recording.
fn keep_size(first: &gst::Element, filter: &gst::Element) -> Result<()> {
    let filter = filter.downgrade();
    let pad = static_pad(first, "sink")?;
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) else {
            return gst::PadProbeReturn::Ok;
        };
        if let (Some(filter), Some(structure)) = (filter.upgrade(), caps.caps().structure(0)) {
            let side = |name| structure.get::<i32>(name).ok();
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
