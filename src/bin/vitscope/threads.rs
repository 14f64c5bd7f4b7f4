//! `--threads`: how many threads compute.

use std::num::NonZeroUsize;

use anyhow::Context;

/// Where rayon and candle look for the number of their threads, candle nowhere else.
#[cfg(unix)]
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Makes all that computes use `threads` threads; to be called before anything else.
///
/// The environment is read once and cannot be changed safely from inside, so the program replaces itself
/// by one that begins with the right one.
#[cfg(unix)]
pub fn limit(threads: NonZeroUsize) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;

    let wanted = threads.to_string();
    let is_set = |name: &&str| std::env::var(name).as_deref() == Ok(wanted.as_str());
    if VARIABLES.iter().all(is_set) {
        return Ok(());
    }
    let program = std::env::current_exe().context("--threads cannot be set")?;
    let error = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .envs(VARIABLES.map(|name| (name, wanted.as_str())))
        .exec();
    Err(error).context("--threads cannot be set")
}

/// Makes rayon use `threads` threads; to be called before anything else.
#[cfg(not(unix))]
pub fn limit(threads: NonZeroUsize) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()
        .context("--threads cannot be set")
}
