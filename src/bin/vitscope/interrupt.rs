//! Ctrl-C: the first one ends the run cleanly, the second one at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::exit::Exit;

/// Returns a flag that the first interrupt sets; `unfinished` lists what a second one leaves behind.
pub fn flag(unfinished: Vec<PathBuf>) -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if !raised.swap(true, Ordering::SeqCst) {
            eprintln!("interrupted: finishing; press Ctrl-C again to abort");
            return;
        }
        for path in unfinished.iter().filter(|path| path.exists()) {
            eprintln!("interrupted again: unfinished output left in {path:?}");
        }
        std::process::exit(Exit::Interrupted as i32);
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}
