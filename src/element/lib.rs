//! The GStreamer elements: [`VitScope`] explains the video that flows through it, and [`VitScopeOverlay`] draws
//! explanations that it attached to frames.
//!
//! The plugin is a separate package, `vitscope-gst`. A program that uses vitscope as a library registers the elements
//! with [`register`].
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
mod pads;
mod records;
mod scores;
mod settings;
mod shared;
mod smoothing;
mod statistics;
mod stream;
mod streaming;
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
pub use settings::{Coloring, Draw, Settings, SyncMode};
pub use statistics::Figures;
pub use workers::Lesson;

glib::wrapper! {
    /// The element `vitscope`.
    pub struct VitScope(ObjectSubclass<element::VitScope>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

impl VitScope {
    /// Explains with the program's own views instead of those given by the properties `model`, `gates`, `method` and
    /// `target-class`.
    ///
    /// The element calls `open` on one of its own threads each time it leaves the state NULL.
    pub fn set_view(&self, open: impl Fn() -> Result<View> + Send + Sync + 'static) {
        self.imp().set_view(open);
    }

    /// Calls `observe` with each explanation and the timestamp of its frame, on the streaming thread.
    pub fn on_explained(
        &self,
        observe: impl Fn(&Arc<Finding>, gst::ClockTime) + Send + Sync + 'static,
    ) {
        self.imp().set_observer(observe);
    }

    /// Returns the model in use, once it is open.
    pub fn model(&self) -> Option<Arc<Model>> {
        self.imp().model()
    }

    /// Returns the values of the properties.
    pub fn settings(&self) -> Settings {
        self.imp().settings()
    }

    /// Changes several settings at once. If they require a new worker, only one is started.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        self.imp().change(change);
    }

    /// Returns counts since the element started, and recent rates and delays.
    pub fn statistics(&self) -> Figures {
        self.imp().figures()
    }

    /// Runs `learn` on the explaining thread, between two frames.
    ///
    /// From then on, the model answers with the returned classifier, and all methods explain its classes. Video keeps
    /// flowing meanwhile; the receiver is notified once the classifier is in use.
    ///
    /// # Errors
    /// [`Error::Config`](vitscope_core::Error::Config) if the element is not running, too many frames are waiting,
    /// or the program has set its own views.
    pub fn teach(
        &self,
        learn: impl FnOnce(&Arc<Model>) -> Lesson + Send + 'static,
    ) -> Result<Receiver<()>> {
        self.imp().teach(learn)
    }

    /// Draws a line of text below the class; an empty string removes it.
    pub fn set_note(&self, note: String) {
        self.imp().set_note(note);
    }

    /// Reloads the model and gates from changed files.
    ///
    /// The old ones stay in use until the new ones are ready, or if these cannot be opened. The action signal `reload`
    /// does the same.
    pub fn reload(&self) {
        self.imp().reload();
    }
}

glib::wrapper! {
    /// The element `vitscopeoverlay`.
    pub struct VitScopeOverlay(ObjectSubclass<overlay::VitScopeOverlay>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Registers both elements for `plugin`, or in this process if it is `None`.
///
/// # Errors
/// Fails if GStreamer rejects the registration.
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
