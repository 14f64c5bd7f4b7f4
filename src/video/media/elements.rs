//! Creation of GStreamer elements, and the Debian packages of missing ones.

use gstreamer as gst;
use gstreamer::prelude::*;

use vitscope_core::error::{Error, Result};

/// Debian 12 packages and the elements they contain (`dpkg -S` on each plugin file).
const PACKAGES: &[(&str, &[&str])] = &[
    (
        "libgstreamer1.0-0",
        &[
            "capsfilter",
            "fakesink",
            "filesink",
            "filesrc",
            "queue",
            "tee",
        ],
    ),
    (
        "gstreamer1.0-plugins-base",
        &[
            "appsrc",
            "audioconvert",
            "audioresample",
            "decodebin",
            "decodebin3",
            "opusenc",
            "parsebin",
            "uridecodebin",
            "videoconvert",
            "videoscale",
            "videotestsrc",
            "vorbisenc",
        ],
    ),
    (
        "gstreamer1.0-plugins-good",
        &[
            "aacparse",
            "autovideosink",
            "capssetter",
            "jpegenc",
            "matroskamux",
            "mp4mux",
            "mpegaudioparse",
            "qtmux",
            "rtspsrc",
            "souphttpsrc",
            "v4l2sink",
            "v4l2src",
            "videoflip",
            "vp8enc",
            "vp9enc",
            "webmmux",
            "ximagesrc",
        ],
    ),
    (
        "gstreamer1.0-plugins-bad",
        &[
            "h264parse",
            "h265parse",
            "hlssink2",
            "mpegtsmux",
            "openh264dec",
            "openh264enc",
            "opusparse",
            "voaacenc",
            "waylandsink",
            "x265enc",
        ],
    ),
    ("gstreamer1.0-plugins-ugly", &["x264enc"]),
    ("gstreamer1.0-libav", &["avdec_h264", "avenc_aac"]),
    ("gstreamer1.0-x", &["ximagesink", "xvimagesink"]),
    ("gstreamer1.0-gl", &["glimagesink"]),
    ("gstreamer1.0-pipewire", &["pipewiresrc"]),
    ("gstreamer1.0-libcamera", &["libcamerasrc"]),
    ("gstreamer1.0-rtsp", &["rtspclientsink"]),
];

/// Returns the Debian package that contains the element `factory`, if this crate uses it.
pub fn package(factory: &str) -> Option<&'static str> {
    PACKAGES
        .iter()
        .find(|(_, factories)| factories.contains(&factory))
        .map(|(package, _)| *package)
}

/// Returns whether the element `factory` is installed.
pub fn available(factory: &str) -> bool {
    gst::ElementFactory::find(factory).is_some()
}

/// Returns the error for a machine that lacks all of `factories`.
pub fn missing(factories: &[&str]) -> Error {
    let wanted: Vec<String> = factories
        .iter()
        .map(|factory| match package(factory) {
            Some(package) => format!("{factory:?} (Debian package {package:?})"),
            None => format!("{factory:?}"),
        })
        .collect();
    Error::Media(format!(
        "gstreamer element {} is not installed",
        wanted.join(" or ")
    ))
}

/// Creates an element.
pub fn make(factory: &str) -> Result<gst::Element> {
    gst::ElementFactory::make(factory)
        .build()
        .map_err(|_| missing(&[factory]))
}

/// Creates a filter that passes only `caps`.
pub fn capsfilter(caps: &gst::Caps) -> Result<gst::Element> {
    let filter = make("capsfilter")?;
    filter.set_property("caps", caps);
    Ok(filter)
}

/// Creates a sink that discards unused data, so that no pad stays unlinked, which would stop the whole pipeline.
pub(super) fn drain() -> Result<gst::Element> {
    let sink = make("fakesink")?;
    // Waits neither for the clock nor for a first buffer: the pipeline's state must not depend on it.
    sink.set_property("sync", false);
    sink.set_property("async", false);
    sink.set_property("enable-last-sample", false);
    Ok(sink)
}

/// Links `pad` to a sink that discards all data.
pub fn drain_pad(pipeline: &gst::Pipeline, pad: &gst::Pad) -> Result<()> {
    let sink = drain()?;
    add_chain(pipeline, std::slice::from_ref(&sink))?;
    pad.link(&static_pad(&sink, "sink")?)
        .map_err(|err| Error::Media(format!("cannot leave out a stream ({err})")))?;
    Ok(())
}

/// Adds `chain` to `pipeline`, links it in order and starts it.
pub fn add_chain(pipeline: &gst::Pipeline, chain: &[gst::Element]) -> Result<()> {
    link_chain(pipeline, chain)?;
    start_chain(chain)
}

/// Adds `chain` to `pipeline` and links it in order.
pub fn link_chain(pipeline: &gst::Pipeline, chain: &[gst::Element]) -> Result<()> {
    pipeline
        .add_many(chain)
        .map_err(|err| Error::Media(format!("cannot build the pipeline: {err}")))?;
    link(chain)
}

/// Links elements of one pipeline in order.
pub fn link(chain: &[gst::Element]) -> Result<()> {
    gst::Element::link_many(chain).map_err(|_| {
        let names: Vec<_> = chain.iter().map(factory_name).collect();
        Error::Media(format!("cannot link {}", names.join(" ! ")))
    })
}

/// Starts `chain` from its end backwards, so that no element pushes into one that is not running yet.
pub(super) fn start_chain(chain: &[gst::Element]) -> Result<()> {
    for element in chain.iter().rev() {
        element.sync_state_with_parent().map_err(|_| {
            Error::Media(format!("element {:?} did not start", factory_name(element)))
        })?;
    }
    Ok(())
}

/// Applies `change` to all caps that pass `pad`.
pub(super) fn rewrite_caps(
    pad: &gst::Pad,
    change: impl Fn(&mut gst::StructureRef) + Send + Sync + 'static,
) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(event) = info.event()
            && let gst::EventView::Caps(caps) = event.view()
        {
            let mut caps = caps.caps_owned();
            if let Some(fields) = caps.make_mut().structure_mut(0) {
                change(fields);
            }
            info.data = Some(gst::PadProbeData::Event(gst::event::Caps::new(&caps)));
        }
        gst::PadProbeReturn::Ok
    });
}

/// Returns the static pad `name` of `element`.
pub fn static_pad(element: &gst::Element, name: &str) -> Result<gst::Pad> {
    element.static_pad(name).ok_or_else(|| {
        Error::Media(format!(
            "element {:?} has no pad {name:?}",
            factory_name(element)
        ))
    })
}

/// Returns whether `caps` may be of the media type `name`.
pub(super) fn may_be(caps: &gst::CapsRef, name: &str) -> bool {
    gst::Caps::builder(name).build().can_intersect(caps)
}

/// Returns the element's documented name.
pub fn factory_name(element: &gst::Element) -> String {
    element.factory().map_or_else(
        || element.name().to_string(),
        |factory| factory.name().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_element_is_named_with_its_package() {
        let message = missing(&["x264enc", "openh264enc"]).to_string();
        assert_eq!(
            message,
            "gstreamer element \"x264enc\" (Debian package \"gstreamer1.0-plugins-ugly\") or \
             \"openh264enc\" (Debian package \"gstreamer1.0-plugins-bad\") is not installed"
        );
    }
}
