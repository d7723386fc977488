//! From what QEMU and the guest said to one exit status.

use crate::Mode;
use std::process::ExitStatus;

/// The time limit struck, as `timeout(1)` has it.
pub const TIMED_OUT: u8 = 124;
/// The kernel panicked, did not start, or ended without saying how.
pub const NO_VERDICT: u8 = 125;

/// How QEMU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Signalled(i32),
    /// The launcher ended it: time was up.
    TimedOut,
    /// The launcher ended it: the user said so.
    Quit,
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Signalled(signal.unwrap_or(0)),
        }
    }
}

/// Values that the guest writes to the debug-exit device; QEMU exits with twice the value plus one.
mod device {
    pub const POWER_OFF: i32 = 0x10;
    pub const PANIC: i32 = 0x11;
    pub const TESTS_FAILED: i32 = 0x12;
    pub const LOADER: std::ops::RangeInclusive<i32> = 0x20..=0x25;
}

/// The status to exit with, and what to tell about it. `record` is the guest's exit record.
pub fn of(end: End, record: Option<u8>, mode: Mode) -> (u8, Option<String>) {
    let lost = |why: String| (NO_VERDICT, Some(why));
    match end {
        End::TimedOut => (TIMED_OUT, Some("time limit reached".into())),
        End::Quit => (0, None),
        End::Signalled(signal) => lost(format!("QEMU was killed by signal {signal}")),
        End::Exited(code) if code & 1 == 1 && code >= device::POWER_OFF << 1 => match code >> 1 {
            device::POWER_OFF => (record.unwrap_or(0), None),
            device::PANIC => lost("the kernel panicked".into()),
            device::TESTS_FAILED => (1, None),
            value if device::LOADER.contains(&value) => {
                lost(format!("the loader gave up (code {value:#x})"))
            }
            value => lost(format!("the guest ended with the unknown code {value:#x}")),
        },
        End::Exited(0) => match record {
            Some(status) => (status, None),
            None => lost(format!(
                "the machine reset or ended without a word (mode {}): a triple fault?",
                mode.word()
            )),
        },
        End::Exited(code) => lost(format!("QEMU failed with status {code}")),
    }
}

/// Takes the log apart into lines for people and records for us.
#[derive(Default)]
pub struct LogReader {
    line: Vec<u8>,
    /// The last exit record seen.
    pub record: Option<u8>,
}

impl LogReader {
    /// Takes bytes as they come; returns the complete lines among them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::new();
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' {
                self.end_line(&mut shown);
            }
        }
        shown
    }

    /// What is left when the channel closes.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut shown = Vec::new();
        if !self.line.is_empty() {
            self.line.push(b'\n');
            self.end_line(&mut shown);
        }
        shown
    }

    fn end_line(&mut self, shown: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.line);
        // A record may follow a line that was never ended.
        let start = line.iter().position(|&b| b == 0x1e).unwrap_or(line.len());
        match record(&line[start..]) {
            Some(status) => {
                self.record = Some(status);
                if start > 0 {
                    shown.extend_from_slice(&line[..start]);
                    shown.push(b'\n');
                }
            }
            None => shown.extend_from_slice(&line),
        }
    }
}

fn record(line: &[u8]) -> Option<u8> {
    let text = str::from_utf8(line.strip_prefix(b"\x1e")?).ok()?;
    text.trim_end().strip_prefix("pinfold exit ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_status() {
        let status = |end, record| of(end, record, Mode::Exec).0;
        assert_eq!(status(End::Exited(33), Some(7)), 7);
        assert_eq!(status(End::Exited(33), Some(139)), 139);
        assert_eq!(status(End::Exited(33), None), 0);
        assert_eq!(status(End::Exited(35), Some(0)), 125);
        assert_eq!(status(End::Exited(37), None), 1);
        for loader in 0x20..=0x25 {
            assert_eq!(status(End::Exited(loader << 1 | 1), None), 125);
        }
        assert_eq!(status(End::Exited(0), None), 125);
        assert_eq!(status(End::Exited(0), Some(3)), 3);
        assert_eq!(status(End::Exited(1), None), 125);
        assert_eq!(status(End::Signalled(11), Some(0)), 125);
        assert_eq!(status(End::TimedOut, Some(0)), 124);
        assert_eq!(status(End::Quit, None), 0);
    }

    #[test]
    fn records_are_taken_out_of_the_log() {
        let mut log = LogReader::default();
        assert_eq!(log.push(b"one\ntw"), b"one\n");
        assert_eq!(log.push(b"o\n\x1epinfold ex"), b"two\n");
        assert_eq!(log.push(b"it 42\nthree"), b"");
        assert_eq!(log.record, Some(42));
        assert_eq!(log.push(b"\x1epinfold exit 139\r\n"), b"three\n");
        assert_eq!(log.record, Some(139));
        assert_eq!(
            log.push(b"\x1epinfold exit 256\nend"),
            b"\x1epinfold exit 256\n"
        );
        assert_eq!(log.finish(), b"end\n");
        assert_eq!((log.record, log.finish()), (Some(139), vec![]));
    }
}
