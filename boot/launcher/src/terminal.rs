//! The user's side of an interactive run: a raw terminal, and the keys that are for the launcher.
//!
//! `ctrl-a x` ends the machine, `ctrl-a ctrl-a` sends one ctrl-a, everything else (ctrl-c too) goes to the guest.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::stdin;

/// The terminal in raw mode, until this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// `None` when stdin is no terminal.
    pub fn enter() -> Option<Self> {
        if !isatty(stdin()) {
            return None;
        }
        let saved = tcgetattr(stdin()).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(saved))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

const CTRL_A: u8 = 1;

/// Watches for the escape key in what the user types.
#[derive(Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// What goes to the guest, and whether the user wants to end the machine.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut sent = Vec::with_capacity(typed.len());
        for &key in typed {
            match (self.escaped, key) {
                (true, b'x' | b'X') => return (sent, true),
                (true, CTRL_A) => sent.push(CTRL_A),
                (true, key) => sent.extend([CTRL_A, key]),
                (false, CTRL_A) => {
                    self.escaped = true;
                    continue;
                }
                (false, key) => sent.push(key),
            }
            self.escaped = false;
        }
        (sent, false)
    }
}

#[cfg(test)]
mod tests {
    use super::Keys;

    #[test]
    fn only_the_escape_is_ours() {
        let mut keys = Keys::default();
        assert_eq!(keys.filter(b"ls\x03\r"), (b"ls\x03\r".to_vec(), false));
        assert_eq!(keys.filter(b"\x01"), (vec![], false));
        assert_eq!(keys.filter(b"\x01a\x01b"), (b"\x01a\x01b".to_vec(), false));
        assert_eq!(keys.filter(b"q\x01xrest"), (b"q".to_vec(), true));
    }
}
