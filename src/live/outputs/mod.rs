//! Outputs for explained frames, each behind its own queue, so that a slow one does not delay the others.

mod camera;
mod encoded;
mod frames;
mod hls;
mod page;
mod recording;
mod rtsp;
mod window;

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Sender;
use gstreamer as gst;
use gstreamer::prelude::*;

pub use camera::VirtualCamera;
pub use frames::Frames;
pub use hls::HlsFolder;
pub(super) use page::Pictures;
pub use recording::Recording;
pub use rtsp::RtspPush;
pub use window::Window;
pub(super) use window::is_closed;

use super::Key;
use vitscope_core::error::{Error, Result};
use vitscope_video::media::bus::Failure;
use vitscope_video::media::elements::{add_chain, factory_name, link, make};

/// An output for explained frames.
pub trait Output: fmt::Debug + Send + Sync {
    /// Creates the elements that accept raw video frames, first to last; the first is a queue.
    ///
    /// Keys pressed in a window are sent to `keys`.
    ///
    /// # Errors
    /// Fails if an element is not installed or the output is not of the expected kind.
    fn elements(&self, keys: &Sender<Key>) -> Result<Vec<gst::Element>>;

    /// Checks the pipeline once it plays.
    ///
    /// # Errors
    /// Fails if nothing can be shown or written after all.
    fn check(&self, _pipeline: &gst::Pipeline) -> Result<()> {
        Ok(())
    }

    /// Describes `error` if it comes from this output; `failure` is the same error in readable form.
    fn failed(&self, _error: &gst::message::Error, _failure: &Failure) -> Option<Error> {
        None
    }

    /// Keeps the written data: a frame was explained, or the user ended the run. Called once.
    ///
    /// # Errors
    /// Fails if the data cannot be kept.
    fn keep(&self) -> Result<()> {
        Ok(())
    }

    /// Removes the written data, because no frame was explained.
    fn discard(&self) {}
}

/// The outputs of a run; if there are none, only the model runs.
#[derive(Clone, Debug)]
pub(super) struct Outputs(Vec<Arc<dyn Output>>);

impl Outputs {
    pub(super) fn new(outputs: &[Arc<dyn Output>], pictures: Option<Pictures>) -> Self {
        let pictures = pictures.map(|pictures| Arc::new(pictures) as Arc<dyn Output>);
        Self(outputs.iter().cloned().chain(pictures).collect())
    }

    /// Adds the outputs after `tee`.
    pub(super) fn add(
        &self,
        pipeline: &gst::Pipeline,
        tee: &gst::Element,
        keys: &Sender<Key>,
    ) -> Result<()> {
        let chains = self.0.iter().map(|output| output.elements(keys));
        let mut chains = chains.collect::<Result<Vec<_>>>()?;
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

    pub(super) fn check(&self, pipeline: &gst::Pipeline) -> Result<()> {
        self.0.iter().try_for_each(|output| output.check(pipeline))
    }

    /// Returns the error of an output, or of an element before the outputs.
    pub(super) fn failed(&self, error: &gst::message::Error) -> Error {
        let failure = Failure::from_message(error);
        let mut outputs = self.0.iter();
        let told = outputs.find_map(|output| output.failed(error, &failure));
        told.unwrap_or(Error::Media(failure.reason))
    }

    pub(super) fn keep(&self) -> Result<()> {
        self.0.iter().try_for_each(|output| output.keep())
    }

    pub(super) fn discard(&self) {
        self.0.iter().for_each(|output| output.discard());
    }
}

/// Returns whether the message comes from an element of this factory or from one inside it.
fn is_from(error: &gst::message::Error, factory: &str) -> bool {
    let mut object = error.src().cloned();
    while let Some(here) = object {
        let element = here.downcast_ref::<gst::Element>();
        if element.is_some_and(|element| factory_name(element) == factory) {
            return true;
        }
        object = here.parent();
    }
    false
}

/// Creates a queue that holds the newest frames and drops older ones, so that viewers never wait.
fn newest() -> Result<gst::Element> {
    let queue = make("queue")?;
    queue.set_property_from_str("leaky", "downstream");
    queue.set_property("max-size-buffers", 2_u32);
    Ok(queue)
}
