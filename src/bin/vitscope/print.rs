//! Standard output and error. A reader that closes its end early is not a failure.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};

use crate::exit::Exit;

/// Replaces `std::println`, which panics if nobody reads.
macro_rules! println {
    () => {
        $crate::print::out(format_args!("\n"))
    };
    ($($what:tt)*) => {
        $crate::print::out(format_args!("{}\n", format_args!($($what)*)))
    };
}

/// Replaces `std::print`, which panics if nobody reads.
macro_rules! print {
    ($($what:tt)*) => {
        $crate::print::out(format_args!($($what)*))
    };
}

/// Replaces `std::eprintln`, which panics if nobody reads.
macro_rules! eprintln {
    ($($what:tt)*) => {
        $crate::print::err(format_args!("{}\n", format_args!($($what)*)))
    };
}

/// Writes to standard output. If that fails, for example on a full disk, the program ends; if the reader is gone, it
/// continues, because it may also write files.
pub fn out(text: Arguments<'_>) {
    match stdout().write_fmt(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to standard output: {error}");
            std::process::exit(Exit::Failed as i32);
        }
        _ => (),
    }
}

/// Writes to standard error, if that is possible.
pub fn err(text: Arguments<'_>) {
    let _ = stderr().write_fmt(text);
}
