//! Environment variables that libraries read when the program starts: threads and memory.

use std::num::NonZeroUsize;

use anyhow::Context;

/// The variable from which rayon reads its number of threads.
#[cfg(unix)]
const RAYON: &str = "RAYON_NUM_THREADS";

/// Variables that are set unless the user has set them.
///
/// - All parallel work runs on rayon's pool. candle's own pool for elementwise operations gets no threads, because they
///   spin while they wait for work, on the cores that rayon's threads compute on: with them, a backward pass takes up
///   to half as long again.
/// - glibc would return the memory of large tensors at every free and take it again page by page for the next pass,
///   which costs a backward pass of ViT-S a third. Other C libraries ignore this.
#[cfg(unix)]
const DEFAULTS: [(&str, &str); 2] = [
    ("CANDLE_NUM_THREADS", "1"),
    (
        "GLIBC_TUNABLES",
        "glibc.malloc.mmap_threshold=67108864\
         :glibc.malloc.trim_threshold=4294967296\
         :glibc.malloc.top_pad=67108864",
    ),
];

/// Makes all computations use `threads` threads, or one per core; must be called before anything else.
///
/// The environment is read once and cannot be changed safely from inside the process, so the program replaces itself
/// with one that starts in the right environment.
#[cfg(unix)]
pub fn set(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;

    let mut wanted: Vec<_> = DEFAULTS
        .into_iter()
        .filter(|(name, _)| std::env::var_os(name).is_none())
        .map(|(name, value)| (name, value.to_owned()))
        .collect();
    if let Some(threads) = threads {
        let threads = threads.to_string();
        if std::env::var(RAYON).as_ref() != Ok(&threads) {
            wanted.push((RAYON, threads));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find the program's own executable")?;
    let error = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .envs(wanted)
        .exec();
    Err(error).context("cannot restart the program with its environment variables")
}

/// Makes rayon use `threads` threads; must be called before anything else.
#[cfg(not(unix))]
pub fn set(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()
        .context("cannot set the number of threads (--threads)")
}
