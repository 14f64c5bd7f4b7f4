//! Formats that the elements' pads accept, and information from caps and buffers.

use std::sync::LazyLock;
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_base as gst_base;
use gstreamer_base::prelude::*;
use gstreamer_video as gst_video;

use super::element::CAT;

/// Returns pad templates for video in the formats of [`vitscope_core::frame::PixelFormat`].
pub(super) fn pad_templates() -> &'static [gst::PadTemplate] {
    static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
        use gst_video::VideoFormat::{Bgr, Bgrx, I420, Nv12, Rgb, Rgba};
        let caps = gst_video::VideoCapsBuilder::new()
            .format_list([I420, Nv12, Rgba, Bgrx, Rgb, Bgr])
            .build();
        let template = |name, direction| {
            gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps)
        };
        let pads = [
            ("sink", gst::PadDirection::Sink),
            ("src", gst::PadDirection::Src),
        ];
        pads.into_iter()
            .filter_map(|(name, direction)| template(name, direction).ok())
            .collect()
    });
    &TEMPLATES
}

/// Returns the frame format that the caps of a pad describe.
pub(super) fn video_info(
    caps: &gst::Caps,
) -> std::result::Result<gst_video::VideoInfo, gst::LoggableError> {
    gst_video::VideoInfo::from_caps(caps)
        .map_err(|_| gst::loggable_error!(CAT, "no video in {caps}"))
}

/// Returns the frame duration according to the caps.
pub(super) fn frame_duration(info: &gst_video::VideoInfo) -> Option<Duration> {
    let fps = info.fps();
    let secs = f64::from(fps.denom()) / f64::from(fps.numer());
    (fps.numer() > 0).then(|| Duration::from_secs_f64(secs))
}

/// Sets controlled properties to their values at a buffer's time.
pub(super) fn sync_values(element: &impl IsA<gst_base::BaseTransform>, buffer: &gst::BufferRef) {
    let element = element.upcast_ref();
    let segment = element.segment();
    let segment = segment.downcast_ref::<gst::ClockTime>();
    if let Some(time) = segment.and_then(|segment| segment.to_stream_time(buffer.pts()?)) {
        let _ = element.sync_values(time);
    }
}
