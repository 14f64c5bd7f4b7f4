//! Encoders that keep up with live video.

use gstreamer as gst;
use gstreamer::prelude::*;

use vitscope_core::error::Result;
use vitscope_video::media::elements::{available, capsfilter, make, missing, static_pad};

/// An encoder that keeps up with live video.
pub(super) struct Encoder {
    factory: &'static str,
    settings: &'static [(&'static str, &'static str)],
    parser: Option<&'static str>,
}

/// The encoders, best first.
pub(super) const ENCODERS: [Encoder; 3] = [
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

/// Encoders that HTTP live streaming supports.
pub(super) const H264: &[Encoder] = ENCODERS.split_at(2).0;

/// Creates a queue and the first available encoder of `encoders`.
pub(super) fn encoded(encoders: &[Encoder]) -> Result<Vec<gst::Element>> {
    let Some(found) = encoders.iter().find(|it| available(it.factory)) else {
        let names: Vec<&str> = encoders.iter().map(|it| it.factory).collect();
        return Err(missing(&names));
    };
    let encoder = make(found.factory)?;
    for (name, value) in found.settings {
        encoder.set_property_from_str(name, value);
    }
    let queue = make("queue")?;
    // Two seconds: an encoder that is slow for longer slows down the source.
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

/// Keeps the size of the first frame, rounded up to even, as required by encoders that subsample chroma. A source that
/// comes back with a different size does not break the recording.
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
