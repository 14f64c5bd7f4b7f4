//! The GStreamer plugin `vitscope`, as the shared library `libgstvitscope.so`.
#![expect(
    missing_docs,
    reason = "the macro of gstreamer writes code without documentation"
)]

use gstreamer as gst;
use gstreamer::glib;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    vitscope_element::register(Some(plugin))
}

gst::plugin_define!(
    vitscope,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    env!("CARGO_PKG_VERSION"),
    // GStreamer knows few licenses by name; this one stands for both licenses of the project.
    "MIT/X11",
    "vitscope",
    "vitscope",
    env!("CARGO_PKG_REPOSITORY"),
    "2026-11-21"
);
