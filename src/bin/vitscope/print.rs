//! Standard output and error. A reader that has seen enough and closed its end is no failure.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};

use crate::exit::Exit;

/// `std::println`, which panics where nobody reads.
macro_rules! println {
    () => {
        $crate::print::out(format_args!("\n"))
    };
    ($($what:tt)*) => {
        $crate::print::out(format_args!("{}\n", format_args!($($what)*)))
    };
}

/// `std::print`, which panics where nobody reads.
macro_rules! print {
    ($($what:tt)*) => {
        $crate::print::out(format_args!($($what)*))
    };
}

/// `std::eprintln`, which panics where nobody reads.
macro_rules! eprintln {
    ($($what:tt)*) => {
        $crate::print::err(format_args!("{}\n", format_args!($($what)*)))
    };
}

/// Writes to standard output. If that fails, as on a full disk, the program ends; if the reader has gone, it goes on,
/// for it may write files too.
pub fn out(text: Arguments<'_>) {
    match stdout().write_fmt(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to standard output: {error}");
            std::process::exit(Exit::Failed as i32);
        }
        _ => (),
    }
}

/// Writes to standard error, where it can be written.
pub fn err(text: Arguments<'_>) {
    let _ = stderr().write_fmt(text);
}
