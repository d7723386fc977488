//! Core files: what a fatal signal leaves of its process.
//!
//! The dumping thread makes the group end, as any fatal signal does, and names itself in the signal state. The other
//! threads come to their end's beginning and park there, registers saved, until the file is written. SIGKILL, which
//! otherwise finds nobody left to kill, ends the writing: then there is a part of a file, or none.
//!
//! `core_pattern` is a file's name: a pipe's (`|`) is refused, and nothing is dumped.

mod elf;
mod name;

use core::ptr;
use core::sync::atomic::Ordering;

use super::process::RLIMIT_CORE;
use super::signal::SigInfo;
use super::signal::send::kill_thread;
use super::thread::Thread;
use super::wait::Sleep;
use super::{WORK_SIGNAL, current, sched};
use crate::arch::TrapFrame;
use crate::fs::{File, IoBuf};
use alloc::sync::Arc;
use linux_raw_sys::general as sys;

pub use name::{PATTERN, USES_PID};

/// Shorter limits write nothing.
const LEAST: u64 = 4096;

/// `coredump_filter`: private and shared anonymous memory, ELF headers, private huge pages.
pub const DEFAULT_FILTER: u32 = 0x33;
pub const FILTER_MASK: u32 = 0x1ff;

/// The default action of a signal that dumps: writes the file and marks the group for its end.
#[cold]
#[inline(never)]
pub fn die(me: &Thread, frame: &mut TrapFrame, info: &SigInfo) {
    let p = &*me.process;
    let signo = info.signo();
    {
        let mut s = p.sig.lock();
        if s.group_exit.is_some() || !s.exec.is_null() {
            return;
        }
        s.group_exit = Some(signo);
        s.stop_sig = 0;
        s.dumper = me;
        for t in s.threads().filter(|t| !ptr::eq(*t, me)) {
            kill_thread(t);
        }
    }
    // A signal that is no SIGKILL does not disturb the writing.
    me.work.fetch_and(!WORK_SIGNAL, Ordering::SeqCst);
    let dumped = wanted(me) && alone(me) && write(me, frame, info);
    let mut s = p.sig.lock();
    s.dumper = ptr::null();
    if dumped {
        s.group_exit = Some(signo | 0x80);
    }
    kill_thread(me);
    drop(s);
    p.thread_gone.wake_all();
}

/// Whether there is to be a file at all.
fn wanted(me: &Thread) -> bool {
    let p = &*me.process;
    p.limit(RLIMIT_CORE).soft >= LEAST
        && p.dumpable.load(Ordering::Relaxed) == 1
        && me.space().is_some()
}

/// Waits until every other thread has parked or gone; false if SIGKILL came first.
fn alone(me: &Thread) -> bool {
    let p = &*me.process;
    let others = || {
        let s = p.sig.lock();
        s.parked + 1 < s.nthreads
    };
    if p.thread_gone
        .wait_while(Sleep::Killable, None, others)
        .is_err()
    {
        return false;
    }
    // Their registers are saved once they have left their CPUs; they may pass there again, but not user mode.
    loop {
        let s = p.sig.lock();
        if s.threads()
            .all(|t| ptr::eq(t, me) || sched::has_left_cpu(t))
        {
            return true;
        }
        drop(s);
        sched::cond_resched();
        core::hint::spin_loop();
    }
}

/// The running thread ends: if another one writes a core file, it stands still until that is done.
pub(super) fn park(me: &Thread) {
    let p = &*me.process;
    {
        let mut s = p.sig.lock();
        if s.dumper.is_null() || ptr::eq(s.dumper, me) {
            return;
        }
        s.parked += 1;
    }
    p.thread_gone.wake_all();
    let _ = p.thread_gone.wait_while(Sleep::Uninterruptible, None, || {
        !p.sig.lock().dumper.is_null()
    });
    p.sig.lock().parked -= 1;
}

/// The file, if it could be made; true when at least its beginning was written.
fn write(me: &Thread, frame: &mut TrapFrame, info: &SigInfo) -> bool {
    let Some(path) = name::path(me, info.signo()) else {
        return false;
    };
    let _ = crate::fs::names::unlink(sys::AT_FDCWD, &path, false);
    let how = crate::fs::names::OpenHow {
        flags: sys::O_CREAT | sys::O_EXCL | sys::O_WRONLY | sys::O_NOFOLLOW | sys::O_LARGEFILE,
        mode: 0o600,
        limits: Default::default(),
        in_root: false,
    };
    let Ok(file) = crate::fs::names::open(sys::AT_FDCWD, &path, &how) else {
        return false;
    };
    let mut out = Out {
        file,
        at: 0,
        written: 0,
        limit: me.process.limit(RLIMIT_CORE).soft,
        end: 0,
    };
    let begun = elf::write(me, frame, info, &mut out).is_some();
    out.close();
    begun || out.written > 0
}

/// A file with holes, written in order.
pub(super) struct Out {
    file: Arc<File>,
    at: u64,
    written: u64,
    limit: u64,
    /// Where written bytes end.
    end: u64,
}

impl Out {
    /// Writes all of `bytes`; `None` at the limit, at an error, or when SIGKILL came.
    fn put(&mut self, mut bytes: &[u8]) -> Option<()> {
        if self.written.checked_add(bytes.len() as u64)? > self.limit {
            return None;
        }
        while !bytes.is_empty() {
            if super::fatal_signal_pending() {
                return None;
            }
            let n = self
                .file
                .write_at(&mut IoBuf::kernel(bytes), self.at)
                .ok()?;
            if n == 0 {
                return None;
            }
            self.at += n as u64;
            self.written += n as u64;
            self.end = self.at;
            bytes = &bytes[n..];
        }
        Some(())
    }

    /// Leaves a hole.
    fn skip(&mut self, len: u64) -> Option<()> {
        self.at = self.at.checked_add(len)?;
        Some(())
    }

    /// A hole at the end counts, too: its last byte is written.
    fn close(&mut self) {
        if self.at > self.end && !super::fatal_signal_pending() {
            let last = self.at - 1;
            let _ = self.file.write_at(&mut IoBuf::kernel(&[0]), last);
        }
    }
}

/// The running thread, for what only it can tell.
fn is_dumper(t: &Thread) -> bool {
    ptr::eq(t, current())
}
