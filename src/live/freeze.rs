//! A picture that stands still: the source's frames are replaced by the one at which it was frozen, in their own time.
//! What comes behind goes on, so that a still picture can be explained in other ways and drawn in other colors.

use std::sync::{Mutex, MutexGuard, PoisonError};

use gstreamer as gst;

/// Shared by the source and whoever freezes it.
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

    /// What is shown in place of `sample`: itself, or the first one that came after freezing.
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
