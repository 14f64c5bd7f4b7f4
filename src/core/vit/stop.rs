//! Ends a computation early, from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Result;

/// A request to end a computation that nobody waits for any more; its clones are one request.
///
/// A model [under it](super::Vit::under) looks at it before each block, so every method that runs the model ends with it,
/// by an error.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Makes the request, which cannot be taken back.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was made.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once it was made.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_requested() {
            candle_core::bail!(
                "the computation was canceled because its result is no longer needed"
            );
        }
        Ok(())
    }
}
