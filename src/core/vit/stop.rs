//! Cancellation of a computation from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Result;

/// A request to cancel a computation whose result is no longer needed. Clones share the request.
///
/// A model [under it](super::Vit::under) checks it before each block, so every method that runs the model fails with an
/// error.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Requests cancellation, which is irreversible.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether cancellation was requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails if cancellation was requested.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_requested() {
            candle_core::bail!(
                "the computation was canceled because its result is no longer needed"
            );
        }
        Ok(())
    }
}
