//! Single keys from the terminal, without waiting for them.

use std::io::stdin;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr,
};
use vitscope::live::Key;

/// The terminal's keys, one by one and without echo; Ctrl-C still interrupts. Dropping it restores the terminal.
pub struct Keyboard {
    before: Termios,
}

impl Keyboard {
    /// Opens the keys of standard input; `None` if it is not a terminal.
    pub fn open() -> Option<Self> {
        let input = stdin();
        // A background process must leave the terminal alone.
        if !isatty(&input) || tcgetpgrp(&input).ok()? != rustix::process::getpgrp() {
            return None;
        }
        let before = tcgetattr(&input).ok()?;
        let mut single = before.clone();
        single.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        // Reading returns at once, whether or not a key was pressed.
        single.special_codes[SpecialCodeIndex::VMIN] = 0;
        single.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&input, OptionalActions::Now, &single).ok()?;
        Some(Self { before })
    }

    /// Returns a pressed key that has an action, if any.
    pub fn key(&mut self) -> Option<Key> {
        let mut letter = [0];
        while rustix::io::read(stdin(), &mut letter) == Ok(1) {
            let name = char::from(letter[0]).to_ascii_lowercase().to_string();
            if let Some(key) = Key::from_name(&name) {
                return Some(key);
            }
        }
        None
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        // If this fails, the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}
