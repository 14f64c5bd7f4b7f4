//! The GStreamer elements: [`VitScope`] explains the video that flows through it, [`VitScopeOverlay`] draws elsewhere
//! what it attached.
//!
//! The plugin is a package of its own, `vitscope-gst`. A program that has vitscope as a library registers the elements
//! by [`register`].
//!
//! ```text
//! gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! videoconvert ! vitscope ! videoconvert ! autovideosink
//! ```
#![warn(missing_docs, unreachable_pub, unused_lifetimes)]
#![expect(
    missing_docs,
    reason = "the macros of glib and gstreamer write code without documentation"
)]

mod drawing;
mod element;
mod latency;
mod meta;
mod overlay;
mod records;
mod scores;
mod settings;
mod shared;
mod smoothing;
mod statistics;
mod stream;
mod workers;

use std::sync::Arc;

use crossbeam_channel::Receiver;
use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base as gst_base;

use vitscope_core::error::Result;
use vitscope_core::models::Model;
use vitscope_video::pipeline::stages::{Finding, View};

pub use meta::{Found, META};
pub use settings::{Coloring, Draw, SyncMode};
pub use workers::Lesson;

glib::wrapper! {
    /// The element `vitscope`.
    pub struct VitScope(ObjectSubclass<element::VitScope>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

impl VitScope {
    /// Explains by views of the program's own, instead of what the properties `model`, `gates`, `method` and
    /// `target-class` say.
    ///
    /// `open` is called on a thread of the element's, each time that it leaves the state NULL.
    pub fn set_view(&self, open: impl Fn() -> Result<View> + Send + Sync + 'static) {
        self.imp().set_view(open);
    }

    /// Tells `observe` of each explanation and the time of its frame; it is called on the streaming thread, which waits.
    pub fn on_explained(
        &self,
        observe: impl Fn(&Arc<Finding>, gst::ClockTime) + Send + Sync + 'static,
    ) {
        self.imp().set_observer(observe);
    }

    /// The model that looks at the frames, as soon as it is open.
    pub fn model(&self) -> Option<Arc<Model>> {
        self.imp().model()
    }

    /// Sets several properties at once, as texts: where they need another worker, it is one worker.
    ///
    /// # Errors
    /// [`Error::Config`](vitscope_core::Error::Config) where a property is not known or does not take its text; then none is set.
    pub fn change(&self, properties: &[(&str, String)]) -> Result<()> {
        self.imp().change(properties)
    }

    /// Runs `learn` on the thread that explains, between two frames; the classifier that it returns answers from then on,
    /// and all methods explain its classes. Frames go on meanwhile; the receiver hears when the classifier is there.
    ///
    /// # Errors
    /// [`Error::Config`](vitscope_core::Error::Config) where the element is not running, too many frames wait for it, or it has
    /// views of the program's own.
    pub fn teach(
        &self,
        learn: impl FnOnce(&Arc<Model>) -> Lesson + Send + 'static,
    ) -> Result<Receiver<()>> {
        self.imp().teach(learn)
    }

    /// Writes a line into the picture, below the class; none where it is empty.
    pub fn set_note(&self, note: String) {
        self.imp().set_note(note);
    }

    /// Opens model and gates again, from files that have changed; what is there goes on until they are ready, or where
    /// they cannot be opened. The same as the action signal `reload`.
    pub fn reload(&self) {
        self.imp().reload();
    }
}

glib::wrapper! {
    /// The element `vitscopeoverlay`.
    pub struct VitScopeOverlay(ObjectSubclass<overlay::VitScopeOverlay>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Registers both elements in this process, or for the plugin.
///
/// # Errors
/// Fails where GStreamer does not take it.
pub fn register(plugin: Option<&gst::Plugin>) -> std::result::Result<(), glib::BoolError> {
    meta::register();
    let elements = [
        ("vitscope", VitScope::static_type()),
        ("vitscopeoverlay", VitScopeOverlay::static_type()),
    ];
    for (name, element) in elements {
        gst::Element::register(plugin, name, gst::Rank::NONE, element)?;
    }
    Ok(())
}
