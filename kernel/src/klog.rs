//! Log lines with time and CPU on the log channel: COM2, or COM1 in `mode=shell`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use crate::arch::{cpu_id, serial, time};

/// How much is logged; `log=` on the command line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Reads `log=` and `mode=`.
pub fn init() {
    if let Some(level) = crate::memory::cmdline("log").and_then(parse) {
        LEVEL.store(level, Ordering::Relaxed);
    }
    set_console_log(crate::memory::cmdline("mode") == Some("shell"));
}

fn parse(text: &str) -> Option<u8> {
    match text {
        "off" => Some(0),
        "error" => Some(1),
        "warn" => Some(2),
        "info" => Some(3),
        "debug" => Some(4),
        number => number.parse().ok(),
    }
}

/// Whether log lines go to the console (COM1) instead of COM2.
pub fn set_console_log(on: bool) {
    serial::set_log_to_console(on);
}

/// A piece of text of limited length; what does not fit is cut.
pub(crate) struct Text<const N: usize> {
    buf: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Text {
            buf: [0; N],
            len: 0,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(N - self.len);
        self.buf[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Writes one line; use the macros.
#[cold]
pub fn log(level: Level, args: fmt::Arguments<'_>) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let us = time::now_ns() / 1000;
    let mut line = Text::<512>::new();
    let mark = if level <= Level::Warn { "! " } else { "" };
    let _ = write!(
        line,
        "[{:5}.{:06} {}] {mark}{args}",
        us / 1_000_000,
        us % 1_000_000,
        cpu_id()
    );
    line.len = line.len.min(511);
    let _ = line.write_str("\n");
    serial::write_log(line.bytes());
}

/// Logs at `Info`.
#[macro_export]
macro_rules! klog { ($($arg:tt)*) => { $crate::klog::log($crate::klog::Level::Info, format_args!($($arg)*)) }; }
/// Logs at `Info`.
#[macro_export]
macro_rules! info { ($($arg:tt)*) => { $crate::klog::log($crate::klog::Level::Info, format_args!($($arg)*)) }; }
/// Logs at `Warn`.
#[macro_export]
macro_rules! warn { ($($arg:tt)*) => { $crate::klog::log($crate::klog::Level::Warn, format_args!($($arg)*)) }; }
/// Logs at `Error`.
#[macro_export]
macro_rules! error { ($($arg:tt)*) => { $crate::klog::log($crate::klog::Level::Error, format_args!($($arg)*)) }; }
/// Logs at `Debug`.
#[macro_export]
macro_rules! debug { ($($arg:tt)*) => { $crate::klog::log($crate::klog::Level::Debug, format_args!($($arg)*)) }; }
