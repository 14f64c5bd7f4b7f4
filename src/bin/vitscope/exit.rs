//! Exit codes, and the only place where errors are printed.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use vitscope::Error;
use vitscope::live::without_secrets;

/// The outcome of a run; scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything requested is done.
    Whole = 0,
    /// An error; earlier output is either complete or removed.
    Failed = 1,
    /// The arguments are invalid.
    Usage = 2,
    /// The output exists, but frames or explanations are missing in it.
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
        // The address of a file or an output may contain a password.
        eprintln!("error: {}", without_secrets(&sentence(error)));
        Self::Failed
    }

    /// Prints the message of the argument parser: help, or what is wrong with the arguments.
    pub fn from_usage(usage: &clap::Error) -> Self {
        let text = usage.render().to_string();
        // An address may contain a password.
        match without_secrets(&text) {
            redacted if redacted != text && usage.use_stderr() => {
                eprintln!("{}", redacted.trim_end())
            }
            // If the output is closed, nothing can be reported.
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

/// Logs to standard error: warnings, and the program's own messages if `chatty`; `RUST_LOG` overrides this.
pub fn init_log(chatty: bool) {
    let usual = if chatty { "warn,vitscope=info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        // If standard error is closed, nothing can be reported.
        .log_internal_errors(false)
        .init();
}

/// Formats the error and its causes on one line, each fact once: some errors quote their cause, others leave it to the
/// chain.
///
/// The stage that found an invalid file is left out, because it does not help the user.
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
