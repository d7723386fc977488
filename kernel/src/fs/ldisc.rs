//! The line discipline: what a terminal does to bytes on their way in and out. Pure: no locks, no device.
//!
//! Input goes byte by byte through `input`, which edits the line being typed and says what to echo and which
//! signal to send. In canonical mode a line becomes readable when its delimiter arrives; in raw mode each byte
//! does. `read` takes what is readable. Output goes through `output`, which applies OPOST.
//! Readable bytes are held as 16-bit cells: the low byte is the character, `END` marks the end of a line and
//! `EOF_MARK` an end that carries no character (VEOF).
#![forbid(unsafe_code)]

extern crate alloc;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most bytes held unread, as Linux's N_TTY: further input is dropped.
const LIMIT: usize = 4096;
const END: u16 = 0x100;
const EOF_MARK: u16 = 0x200;

/// Indices into `Termios::cc`.
pub const VINTR: usize = 0;
pub const VQUIT: usize = 1;
pub const VERASE: usize = 2;
pub const VKILL: usize = 3;
pub const VEOF: usize = 4;
pub const VTIME: usize = 5;
pub const VMIN: usize = 6;
pub const VSUSP: usize = 10;
pub const VEOL: usize = 11;
pub const VREPRINT: usize = 12;
pub const VWERASE: usize = 14;
pub const VLNEXT: usize = 15;
pub const VEOL2: usize = 16;

// c_iflag
const ISTRIP: u32 = 0o40;
const INLCR: u32 = 0o100;
const IGNCR: u32 = 0o200;
const ICRNL: u32 = 0o400;
const IUCLC: u32 = 0o1000;
const IXON: u32 = 0o2000;
const IUTF8: u32 = 0o40000;
// c_oflag
const OPOST: u32 = 0o1;
const ONLCR: u32 = 0o4;
const OCRNL: u32 = 0o10;
const ONLRET: u32 = 0o40;
// c_lflag
const ISIG: u32 = 0o1;
const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const ECHOE: u32 = 0o20;
const ECHOK: u32 = 0o40;
const ECHONL: u32 = 0o100;
const NOFLSH: u32 = 0o200;
/// Background writes get SIGTTOU.
pub const TOSTOP: u32 = 0o400;
const ECHOCTL: u32 = 0o1000;
const ECHOKE: u32 = 0o4000;
const IEXTEN: u32 = 0o100000;

/// The settings of a terminal, laid out as the kernel's `struct termios`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
}

impl Default for Termios {
    fn default() -> Self {
        let mut cc = [0; 19];
        cc[VINTR] = 3;
        cc[VQUIT] = 0x1c;
        cc[VERASE] = 0x7f;
        cc[VKILL] = 0x15;
        cc[VEOF] = 4;
        cc[VMIN] = 1;
        cc[8] = 0x11;
        cc[9] = 0x13;
        cc[VSUSP] = 0x1a;
        cc[VREPRINT] = 0x12;
        cc[13] = 0x0f;
        cc[VWERASE] = 0x17;
        cc[VLNEXT] = 0x16;
        Termios {
            iflag: ICRNL | IXON,
            oflag: OPOST | ONLCR,
            cflag: 0o2275, // B9600 | CS8 | CREAD | HUPCL
            lflag: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
            line: 0,
            cc,
        }
    }
}

/// A signal that a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySignal {
    Int,
    Quit,
    Suspend,
}

/// What became of an input byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Send this to the foreground process group.
    pub signal: Option<KeySignal>,
    /// A reader may have something to take now.
    pub readable: bool,
}

/// The state of one terminal's input side.
#[derive(Default)]
pub struct Ldisc {
    termios: Termios,
    line: Vec<u8>,
    ready: VecDeque<u16>,
    /// Delimiters among `ready`: lines that a canonical read can take.
    lines: usize,
    literal: bool,
    column: usize,
}

impl Ldisc {
    pub fn termios(&self) -> &Termios {
        &self.termios
    }

    pub fn canonical(&self) -> bool {
        self.termios.lflag & ICANON != 0
    }

    /// New settings. Leaving canonical mode makes a half-typed line readable.
    pub fn set_termios(&mut self, new: Termios) {
        let was = self.canonical();
        self.termios = new;
        if was && !self.canonical() {
            self.ready.retain(|c| c & EOF_MARK == 0);
            let line = core::mem::take(&mut self.line);
            self.ready.extend(line.into_iter().map(u16::from));
        } else if !was && self.canonical() {
            // What was typed raw is one unfinished line that a read may take.
            if let Some(last) = self.ready.back_mut() {
                *last |= END;
            }
        }
        self.lines = self.ready.iter().filter(|c| **c & END != 0).count();
    }

    /// Bytes a read would get now (FIONREAD); in canonical mode only whole lines count.
    pub fn available(&self) -> usize {
        if self.canonical() && self.lines == 0 {
            return 0;
        }
        self.ready.iter().filter(|c| **c & EOF_MARK == 0).count()
    }

    /// Whether a read would not block (VMIN and VTIME aside).
    pub fn readable(&self) -> bool {
        if self.canonical() {
            self.lines > 0
        } else {
            !self.ready.is_empty()
        }
    }

    /// Drops everything typed and not read.
    pub fn flush(&mut self) {
        self.line.clear();
        self.ready.clear();
        self.lines = 0;
    }

    /// Takes one byte from the device. `echo` receives what to show, already processed for output.
    pub fn input(&mut self, byte: u8, echo: &mut dyn FnMut(&[u8])) -> Outcome {
        let t = self.termios;
        let mut c = byte;
        if t.iflag & ISTRIP != 0 {
            c &= 0x7f;
        }
        if t.iflag & IUCLC != 0 && t.lflag & IEXTEN != 0 {
            c = c.to_ascii_lowercase();
        }
        if self.literal {
            self.literal = false;
            return self.store(c, echo);
        }
        match c {
            b'\r' if t.iflag & IGNCR != 0 => return Outcome::default(),
            b'\r' if t.iflag & ICRNL != 0 => c = b'\n',
            b'\n' if t.iflag & INLCR != 0 => c = b'\r',
            _ => {}
        }
        if t.lflag & ISIG != 0 {
            let signal = match Some(c) {
                k if k == self.key(VINTR) => Some(KeySignal::Int),
                k if k == self.key(VQUIT) => Some(KeySignal::Quit),
                k if k == self.key(VSUSP) => Some(KeySignal::Suspend),
                _ => None,
            };
            if signal.is_some() {
                if t.lflag & NOFLSH == 0 {
                    self.flush();
                }
                if t.lflag & ECHO != 0 {
                    self.show(c, echo);
                }
                return Outcome {
                    signal,
                    readable: false,
                };
            }
        }
        if t.lflag & ICANON == 0 {
            return self.store(c, echo);
        }
        self.edit(c, echo)
    }

    fn key(&self, index: usize) -> Option<u8> {
        Some(self.termios.cc[index]).filter(|k| *k != 0)
    }

    /// Canonical mode: editing keys, delimiters, then ordinary characters.
    fn edit(&mut self, c: u8, echo: &mut dyn FnMut(&[u8])) -> Outcome {
        let t = self.termios;
        let k = Some(c);
        let extended = t.lflag & IEXTEN != 0;
        if k == self.key(VERASE) {
            self.erase(1, echo);
        } else if k == self.key(VWERASE) && extended {
            let line = &self.line;
            let word_end = line
                .iter()
                .rposition(|b| !b.is_ascii_whitespace())
                .map_or(0, |i| i + 1);
            let start = line[..word_end]
                .iter()
                .rposition(|b| b.is_ascii_whitespace())
                .map_or(0, |i| i + 1);
            let chars = self.chars_from(start);
            self.erase(chars, echo);
        } else if k == self.key(VKILL) {
            let chars = self.chars_from(0);
            if t.lflag & ECHOKE != 0 && t.lflag & ECHOE != 0 {
                self.erase(chars, echo);
            } else {
                self.line.clear();
                if t.lflag & ECHO != 0 {
                    self.show(c, echo);
                    if t.lflag & ECHOK != 0 {
                        self.output(b"\n", echo);
                    }
                }
            }
        } else if k == self.key(VLNEXT) && extended {
            self.literal = true;
            if t.lflag & ECHO != 0 && t.lflag & ECHOCTL != 0 {
                echo(b"^\x08");
            }
        } else if k == self.key(VREPRINT) && extended {
            if t.lflag & ECHO != 0 {
                self.show(c, echo);
                self.output(b"\n", echo);
                let line = core::mem::take(&mut self.line);
                line.iter().for_each(|b| self.show(*b, echo));
                self.line = line;
            }
        } else if c == b'\n' {
            if t.lflag & (ECHO | ECHONL) != 0 {
                self.output(b"\n", echo);
            }
            return self.commit(u16::from(c) | END);
        } else if k == self.key(VEOF) {
            return self.commit(END | EOF_MARK);
        } else if k == self.key(VEOL) || (k == self.key(VEOL2) && extended) {
            if t.lflag & ECHO != 0 {
                self.show(c, echo);
            }
            return self.commit(u16::from(c) | END);
        } else {
            return self.store(c, echo);
        }
        Outcome::default()
    }

    /// An ordinary character.
    fn store(&mut self, c: u8, echo: &mut dyn FnMut(&[u8])) -> Outcome {
        // One place is kept for the delimiter, so a full line can still be ended.
        if self.line.len() + self.ready.len() >= LIMIT - 1 {
            return Outcome::default();
        }
        if self.termios.lflag & ECHO != 0 {
            self.show(c, echo);
        }
        if self.canonical() {
            self.line.push(c);
            return Outcome::default();
        }
        self.ready.push_back(u16::from(c));
        Outcome {
            signal: None,
            readable: true,
        }
    }

    /// Ends the line being typed with the cell `end`.
    fn commit(&mut self, end: u16) -> Outcome {
        let line = core::mem::take(&mut self.line);
        self.ready.extend(line.into_iter().map(u16::from));
        self.ready.push_back(end);
        self.lines += 1;
        Outcome {
            signal: None,
            readable: true,
        }
    }

    /// How many characters the line holds from byte `start` on.
    fn chars_from(&self, start: usize) -> usize {
        self.line[start..]
            .iter()
            .filter(|b| !self.continues(**b))
            .count()
    }

    fn continues(&self, b: u8) -> bool {
        self.termios.iflag & IUTF8 != 0 && b & 0xc0 == 0x80
    }

    /// Removes `chars` characters from the end of the line and from the screen.
    fn erase(&mut self, chars: usize, echo: &mut dyn FnMut(&[u8])) {
        for _ in 0..chars {
            let Some(mut c) = self.line.pop() else { return };
            while self.continues(c) {
                match self.line.pop() {
                    Some(b) => c = b,
                    None => break,
                }
            }
            if self.termios.lflag & ECHO == 0 {
                continue;
            }
            if self.termios.lflag & ECHOE == 0 {
                let key = self.termios.cc[VERASE];
                self.show(key, echo);
                continue;
            }
            let width = if is_control(c) && c != b'\t' && self.termios.lflag & ECHOCTL != 0 {
                2
            } else {
                1
            };
            for _ in 0..width {
                echo(b"\x08 \x08");
            }
        }
    }

    /// Echoes one character as typed: controls as ^X.
    fn show(&mut self, c: u8, echo: &mut dyn FnMut(&[u8])) {
        if is_control(c) && c != b'\t' && c != b'\n' && self.termios.lflag & ECHOCTL != 0 {
            echo(&[b'^', c ^ 0x40]);
            self.column += 2;
        } else {
            self.output(&[c], echo);
        }
    }

    /// Takes up to `buf.len()` readable bytes: in canonical mode at most one line, a bare VEOF being an empty
    /// one. `None`: nothing to take.
    pub fn read(&mut self, buf: &mut [u8]) -> Option<usize> {
        if !self.readable() {
            return None;
        }
        let mut n = 0;
        while n < buf.len()
            || self
                .ready
                .front()
                .is_some_and(|c| c & EOF_MARK != 0 && n > 0)
        {
            let Some(cell) = self.ready.pop_front() else {
                break;
            };
            let end = cell & END != 0;
            if end {
                self.lines -= 1;
            }
            if cell & EOF_MARK == 0 {
                buf[n] = cell as u8;
                n += 1;
            }
            if end && self.canonical() {
                break;
            }
        }
        Some(n)
    }

    /// Output processing: hands `bytes` to `emit` in pieces, newlines as OPOST asks.
    pub fn output(&mut self, bytes: &[u8], emit: &mut dyn FnMut(&[u8])) {
        let o = self.termios.oflag;
        if o & OPOST == 0 || o & (ONLCR | OCRNL) == 0 {
            emit(bytes);
            return;
        }
        let mut from = 0;
        for (i, &c) in bytes.iter().enumerate() {
            let replacement: &[u8] = match c {
                b'\n' if o & ONLCR != 0 && o & ONLRET == 0 => b"\r\n",
                b'\r' if o & OCRNL != 0 => b"\n",
                _ => continue,
            };
            if from < i {
                emit(&bytes[from..i]);
            }
            emit(replacement);
            from = i + 1;
        }
        if from < bytes.len() {
            emit(&bytes[from..]);
        }
    }
}

fn is_control(c: u8) -> bool {
    c < 0x20 || c == 0x7f
}
