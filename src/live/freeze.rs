//! A frozen picture: the frame at which the source was frozen replaces its later frames and takes their timestamps.
//! Later elements keep running, so that a still picture can be explained by other methods and drawn in other colors.

use std::sync::{Mutex, MutexGuard, PoisonError};

use gstreamer as gst;

/// Shared by the source and the controls that freeze it.
#[derive(Default)]
pub(super) struct Freeze(Mutex<State>);

#[derive(Default)]
struct State {
    frozen: bool,
    picture: Option<gst::Sample>,
}

impl Freeze {
    pub(super) fn set(&self, frozen: bool) {
        let mut state = self.lock();
        state.frozen = frozen;
        if !frozen {
            state.picture = None;
        }
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.lock().frozen
    }

    /// Returns the frame to show in place of `sample`: itself, or the first one after freezing.
    pub(super) fn shown(&self, sample: gst::Sample) -> gst::Sample {
        let mut state = self.lock();
        match state.frozen {
            true => state.picture.get_or_insert(sample).clone(),
            false => sample,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
