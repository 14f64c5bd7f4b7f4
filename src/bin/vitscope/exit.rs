//! Exit codes, and the one place where an error is printed.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use vitscope::Error;
use vitscope::live::without_secrets;

/// How a run ended; the numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for is done.
    Whole = 0,
    /// An error; what was written before it is whole or gone.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// The output is there, but frames or explanations are missing in it.
    Incomplete = 3,
    /// The user ended the run early.
    Interrupted = 130,
}

impl Exit {
    /// Prints `error` as one sentence.
    pub fn from_error(error: &anyhow::Error) -> Self {
        if let Some(usage) = error.downcast_ref::<clap::Error>() {
            return Self::from_usage(usage);
        }
        // A file or an output may be named by an address with a password in it.
        eprintln!("error: {}", without_secrets(&sentence(error)));
        Self::Failed
    }

    /// Prints what the parser of arguments has to say: help, or what is wrong with them.
    pub fn from_usage(usage: &clap::Error) -> Self {
        let text = usage.render().to_string();
        // An address may have a password in it.
        match without_secrets(&text) {
            redacted if redacted != text && usage.use_stderr() => {
                eprintln!("{}", redacted.trim_end())
            }
            // Nothing can be said where the output is closed.
            _ => drop(usage.print()),
        }
        match usage.use_stderr() {
            true => Self::Usage,
            false => Self::Whole,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Logs to standard error: warnings, and the program's own news if `chatty`; `RUST_LOG` overrides that.
pub fn init_log(chatty: bool) {
    let usual = if chatty { "warn,vitscope=info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        // Nothing can be said where standard error is closed.
        .log_internal_errors(false)
        .init();
}

/// The error and its causes in one line, each fact once: some errors quote their cause, others leave it to the chain.
///
/// Which stage met a file that is wrong helps nobody.
fn sentence(error: &anyhow::Error) -> String {
    if let Some(Error::Stage { source, .. }) = error.downcast_ref()
        && let Error::Media(_) | Error::Data(_) | Error::Io { .. } = **source
    {
        return source.to_string();
    }
    let mut sentence = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !sentence.contains(&cause) {
            sentence.push_str(": ");
            sentence.push_str(&cause);
        }
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stage: &'static str, source: Error) -> anyhow::Error {
        let source = Box::new(source);
        anyhow::Error::from(Error::Stage {
            name: stage,
            source,
        })
        .context("cannot explain \"in.mp4\"")
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_the_stage_that_met_it() {
        let disk_full = Error::Media("disk full: \"out.mp4\"".into());
        let error = failed("vitscope-encode", disk_full);
        assert_eq!("disk full: \"out.mp4\"", sentence(&error));
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = failed("vitscope-explain", Error::Config("no such class".into()));
        assert_eq!(
            "cannot explain \"in.mp4\": stage vitscope-explain failed: no such class",
            sentence(&error)
        );
    }
}
