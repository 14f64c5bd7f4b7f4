//! What libraries read from the environment when the program starts: threads and memory.

use std::num::NonZeroUsize;

use anyhow::Context;

/// Where rayon looks for the number of its threads.
#[cfg(unix)]
const RAYON: &str = "RAYON_NUM_THREADS";

/// What is set where the user has not.
///
/// - All parallel work runs on rayon's pool. candle's own pool for elementwise operations gets no threads,
///   because while they wait for work they spin, on the cores that rayon's threads compute on: a backward
///   pass takes up to half as long again with them.
/// - glibc would give the memory of large tensors back at every free, to take it again page by page for
///   the next pass, which costs a backward pass of ViT-S a third. Other C libraries ignore this.
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

/// Makes all that computes use `threads` threads, or one a core; to be called before anything else.
///
/// The environment is read once and cannot be changed safely from inside, so the program replaces itself
/// by one that begins with the right one.
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

/// Makes rayon use `threads` threads; to be called before anything else.
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
