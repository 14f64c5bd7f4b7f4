//! The element `vitscopeoverlay`: draws explanations attached by an upstream element, after a queue or in another
//! branch.

use std::sync::{LazyLock, Mutex};

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::subclass::prelude::*;
use gstreamer_base as gst_base;
use gstreamer_base::prelude::*;
use gstreamer_base::subclass::base_transform::GenerateOutputSuccess;
use gstreamer_base::subclass::prelude::*;
use gstreamer_video as gst_video;

use super::element::{CAT, lock};
use super::meta::Found;
use super::pads::{pad_templates, sync_values, video_info};
use super::settings::{Settings, properties};
use vitscope_core::error::Result;
use vitscope_video::media::pixels::{buffer_from_frame, frame_from_buffer};
use vitscope_video::overlay::Heat;

/// Settings that affect drawing.
const DRAWING: [&str; 5] = ["mode", "colormap", "alpha", "threshold", "show-hud"];

#[derive(Default)]
pub struct VitScopeOverlay {
    settings: Mutex<Settings>,
    stream: Mutex<Stream>,
}

#[derive(Default)]
struct Stream {
    info: Option<gst_video::VideoInfo>,
    drawn: Option<gst::Buffer>,
}

/// Draws the explanation attached to a buffer.
fn drawn(
    buffer: gst::Buffer,
    info: &gst_video::VideoInfo,
    settings: &Settings,
) -> Result<gst::Buffer> {
    let Some(found) = Found::of(&buffer) else {
        return Ok(buffer);
    };
    let frame = frame_from_buffer(found.frame, buffer, info)?;
    let placement = found.placement(frame.size());
    let heat = Heat {
        attribution: &found.mask,
        grid: found.grid,
        placement: &placement,
        range: found.range,
    };
    let caption = if settings.show_hud {
        &*found.answer
    } else {
        ""
    };
    buffer_from_frame(settings.overlay().draw(frame, Some(&heat), caption)?)
}

#[glib::object_subclass]
impl ObjectSubclass for VitScopeOverlay {
    const NAME: &'static str = "GstVitscopeOverlay";
    type Type = super::VitScopeOverlay;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for VitScopeOverlay {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let mut all = properties();
            all.retain(|spec| DRAWING.contains(&spec.name()));
            all
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, spec: &glib::ParamSpec) {
        if let Err(reason) = lock(&self.settings).set(spec.name(), value) {
            gst::warning!(CAT, imp = self, "{}: {reason}", spec.name());
        }
    }

    fn property(&self, _id: usize, spec: &glib::ParamSpec) -> glib::Value {
        let value = lock(&self.settings).get(spec.name());
        value.unwrap_or_else(|| spec.default_value().clone())
    }

    fn constructed(&self) {
        self.parent_constructed();
        self.obj().set_qos(false);
    }
}

impl GstObjectImpl for VitScopeOverlay {}

impl ElementImpl for VitScopeOverlay {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Vision Transformer explanation overlay",
                "Filter/Effect/Video",
                "Draws the explanations that vitscope attached to frames",
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        pad_templates()
    }
}

impl BaseTransformImpl for VitScopeOverlay {
    const MODE: gst_base::subclass::BaseTransformMode =
        gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn stop(&self) -> std::result::Result<(), gst::ErrorMessage> {
        *lock(&self.stream) = Stream::default();
        Ok(())
    }

    fn set_caps(
        &self,
        incaps: &gst::Caps,
        _outcaps: &gst::Caps,
    ) -> std::result::Result<(), gst::LoggableError> {
        lock(&self.stream).info = Some(video_info(incaps)?);
        Ok(())
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> std::result::Result<(), gst::LoggableError> {
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        self.parent_propose_allocation(decide_query, query)
    }

    fn submit_input_buffer(
        &self,
        _is_discont: bool,
        buffer: gst::Buffer,
    ) -> std::result::Result<gst::FlowSuccess, gst::FlowError> {
        sync_values(&*self.obj(), &buffer);
        let settings = lock(&self.settings).clone();
        let mut stream = lock(&self.stream);
        let info = stream.info.clone().ok_or(gst::FlowError::NotNegotiated)?;
        let buffer = drawn(buffer, &info, &settings).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("{error}"));
            gst::FlowError::Error
        })?;
        stream.drawn = Some(buffer);
        Ok(gst::FlowSuccess::Ok)
    }

    fn generate_output(&self) -> std::result::Result<GenerateOutputSuccess, gst::FlowError> {
        Ok(match lock(&self.stream).drawn.take() {
            Some(buffer) => GenerateOutputSuccess::Buffer(buffer),
            None => GenerateOutputSuccess::NoOutput,
        })
    }
}
