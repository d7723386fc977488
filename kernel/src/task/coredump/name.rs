//! A core file's name, from `/proc/sys/kernel/core_pattern` and `core_uses_pid`.

use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex as Spin;

use super::super::process::RLIMIT_CORE;
use super::super::thread::Thread;

/// Longest pattern, as on Linux.
const MAX: usize = 127;

/// The pattern.
pub struct Pattern {
    text: [u8; MAX],
    len: usize,
}

pub static PATTERN: Spin<Pattern> = Spin::new(Pattern::new());
/// Whether `.PID` is added to a pattern without `%p`.
pub static USES_PID: AtomicBool = AtomicBool::new(false);

impl Pattern {
    const fn new() -> Pattern {
        let mut text = [0; MAX];
        let core = b"core";
        let mut i = 0;
        while i < core.len() {
            text[i] = core[i];
            i += 1;
        }
        Pattern {
            text,
            len: core.len(),
        }
    }

    pub fn text(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// Replaces it; what is too long is cut.
    pub fn set(&mut self, text: &[u8]) {
        self.len = text.len().min(MAX);
        self.text[..self.len].copy_from_slice(&text[..self.len]);
    }
}

/// The name of the file that `me`, which `signo` kills, leaves; `None` if the pattern gives none.
pub(super) fn path(me: &Thread, signo: u32) -> Option<Vec<u8>> {
    let mut pattern = [0; MAX];
    let len = {
        let p = PATTERN.lock();
        pattern[..p.len].copy_from_slice(p.text());
        p.len
    };
    let pattern = &pattern[..len];
    if pattern.first() == Some(&b'|') {
        crate::klog!("core_pattern names a pipe, which gets no core file here");
        return None;
    }
    let p = &*me.process;
    let creds = p.creds();
    let mut out = Vec::new();
    let mut has_pid = false;
    let mut at = pattern.iter();
    while let Some(&c) = at.next() {
        if c != b'%' {
            out.push(c);
            continue;
        }
        let mut number = |n: u64| out.extend_from_slice(format!("{n}").as_bytes());
        match at.next() {
            None => break,
            Some(b'%') => out.push(b'%'),
            Some(b'p' | b'P') => {
                has_pid = true;
                number(u64::from(p.pid));
            }
            Some(b'i' | b'I') => number(u64::from(me.tid())),
            Some(b'u') => number(u64::from(creds.uid)),
            Some(b'g') => number(u64::from(creds.gid)),
            Some(b'd') => number(u64::from(p.dumpable.load(Ordering::Relaxed))),
            Some(b's') => number(u64::from(signo)),
            Some(b't') => number(super::super::time::realtime_ns() / 1_000_000_000),
            Some(b'c') => number(p.limit(RLIMIT_CORE).soft),
            Some(b'h') => part(&mut out, crate::fs::caller::hostname().as_bytes()),
            Some(b'e') => {
                let comm = *me.comm.lock();
                let len = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
                part(&mut out, &comm[..len]);
            }
            Some(letter @ (b'E' | b'f')) => {
                let path = p.exe().map(|f| f.path_text()).unwrap_or_default();
                let from = match letter {
                    b'f' => path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1),
                    _ => 0,
                };
                part(&mut out, &path[from..]);
            }
            Some(_) => {}
        }
    }
    if !has_pid && USES_PID.load(Ordering::Relaxed) {
        out.extend_from_slice(format!(".{}", p.pid).as_bytes());
    }
    (!out.is_empty()).then_some(out)
}

/// What a program chose is one component of the path, whatever it holds.
fn part(out: &mut Vec<u8>, text: &[u8]) {
    if text == b"." || text == b".." {
        out.push(b'!');
        out.extend_from_slice(&text[1..]);
        return;
    }
    out.extend(text.iter().map(|&b| if b == b'/' { b'!' } else { b }));
}
