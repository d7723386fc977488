//! Waiting for children and tracees: `wait4`, `waitid`.
//!
//! A child that its parent traces is waited for as a tracee. The end of one that somebody else traces shows only
//! after that tracer has waited for it or let it go.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::acct::Usage;
use super::process::{Process, ZOMBIE};
use super::signal::{self, CLD_CONTINUED, CLD_STOPPED, CLD_TRAPPED, SIGCHLD, SIGCONT};
use super::table::{self, Tasks};
use super::thread::Thread;
use super::wait::{Sleep, WaitError};
use super::{current, exit, ptrace};
use linux_raw_sys::general as sys;

/// Which children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Any,
    Pid(u32),
    Group(u32),
}

/// What a child did.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub pid: u32,
    pub uid: u32,
    /// As `wait4` reports it.
    pub status: u32,
    /// As `waitid` reports it.
    pub code: i32,
    pub value: i32,
    pub usage: Usage,
}

enum Scan {
    Found(Event, Vec<Arc<Thread>>),
    Nothing,
    NoChild,
}

/// Waits for an event of `options` (WEXITED, WSTOPPED, WCONTINUED, WNOHANG, WNOWAIT, __WALL,
/// __WCLONE). `Ok(None)`: WNOHANG, and nothing has happened.
pub fn wait_for(who: Who, options: u32) -> Result<Option<Event>, Errno> {
    let me = current();
    let p = &*me.process;
    let mut found = Scan::Nothing;
    let mut look = || {
        found = scan(p, who, options);
        matches!(found, Scan::Nothing)
    };
    if options & sys::WNOHANG != 0 {
        look();
    } else {
        match p.child_wait.wait_while(Sleep::Interruptible, None, look) {
            Ok(()) => {}
            Err(WaitError::Signal | WaitError::Timeout) => return Err(Errno::ERESTARTSYS),
        }
    }
    match found {
        Scan::Found(event, gone) => {
            drop(gone);
            Ok(Some(event))
        }
        Scan::Nothing => Ok(None),
        Scan::NoChild => Err(Errno::ECHILD),
    }
}

fn scan(p: &Process, who: Who, options: u32) -> Scan {
    let mut tasks = table::lock();
    let mut any = false;
    let mut hit: Option<(*const Process, Event, bool)> = None;
    for c in tasks.children(p) {
        let tracer = c.tracer.load(Ordering::Relaxed);
        if ptr::eq(tracer, p) {
            continue;
        }
        let matches = who.is(c.pid, c);
        let is_clone = c.exit_signal.load(Ordering::Relaxed) != SIGCHLD;
        let kind = options & sys::__WALL != 0 || (options & sys::__WCLONE != 0) == is_clone;
        if !matches || !kind {
            continue;
        }
        any = true;
        if !tracer.is_null() && c.state.load(Ordering::Acquire) == ZOMBIE {
            continue;
        }
        if let Some((event, ended)) = event_of(c, options) {
            hit = Some((c, event, ended));
            break;
        }
    }
    match hit {
        Some((c, event, true)) if options & sys::WNOWAIT == 0 => {
            // SAFETY: the table is still locked, so the child is alive.
            let gone = exit::reap(&mut tasks, unsafe { &*c }, Some(p));
            Scan::Found(event, gone.into_iter().collect())
        }
        Some((_, event, _)) => Scan::Found(event, Vec::new()),
        None => scan_tracees(&mut tasks, p, who, options, any),
    }
}

/// As `scan`, among what the caller's process traces. `any`: it has a child.
fn scan_tracees(tasks: &mut Tasks, p: &Process, who: Who, options: u32, mut any: bool) -> Scan {
    let mut hit: Option<(Arc<Thread>, Event, bool)> = None;
    for t in ptrace::tracees(tasks, p).filter(|t| who.is(t.tid(), &t.process)) {
        let leader = t.tid() == t.process.pid;
        // A dead thread stops no more; its end may have to wait for other threads' ends.
        any |=
            options & (sys::WEXITED | sys::WCONTINUED) != 0 || !t.exiting.load(Ordering::Relaxed);
        if let Some((event, ended)) = tracee_event(t, leader, options) {
            hit = Some((t.arc(), event, ended));
            break;
        }
    }
    let Some((t, event, ended)) = hit else {
        return if any { Scan::Nothing } else { Scan::NoChild };
    };
    let mut gone = Vec::new();
    if ended && options & sys::WNOWAIT == 0 {
        ptrace::unlink(tasks, &t, 0);
        let child = &t.process;
        if t.tid() != child.pid {
            exit::release_thread(tasks, &t, &mut gone);
        } else if tasks.parent(child).is_some_and(|q| ptr::eq(q, p)) {
            gone.extend(exit::reap(tasks, child, Some(p)));
        } else {
            exit::after_tracer(tasks, child, p, &mut gone);
        }
    }
    gone.push(t);
    Scan::Found(event, gone)
}

/// What there is to report about a tracee, and whether it has ended.
fn tracee_event(t: &Thread, leader: bool, options: u32) -> Option<(Event, bool)> {
    let c = &*t.process;
    if leader && c.is_zombie() {
        return event_of(c, options);
    }
    let make = |status: u32, (code, value): (i32, i32), usage: Usage| Event {
        pid: t.tid(),
        uid: c.creds().uid,
        status,
        code,
        value,
        usage,
    };
    let usage = super::acct::of_thread(t);
    let s = c.sig.lock();
    // SAFETY: the signal lock is held.
    let tr = unsafe { t.trace.get() };
    if let Some(own) = tr.dead {
        let status = s.group_exit.unwrap_or(own);
        drop(s);
        return (options & sys::WEXITED != 0)
            .then(|| (make(status, exit::end_code(status), usage), true));
    }
    let report = tr.take_report(options & sys::WNOWAIT != 0);
    drop(s);
    if report != 0 {
        let status = report << 8 | 0x7f;
        return Some((make(status, (CLD_TRAPPED, report as i32), usage), false));
    }
    // Its stops are told as a tracee's; that its process goes on is told once.
    event_of(c, options & !sys::WSTOPPED).filter(|_| leader)
}

impl Who {
    /// Whether thread `tid` of `p` is meant.
    fn is(self, tid: u32, p: &Process) -> bool {
        match self {
            Who::Any => true,
            Who::Pid(pid) => tid == pid,
            Who::Group(g) => p.pgid() == g,
        }
    }
}

/// What there is to report about a child, and whether it has ended.
fn event_of(c: &Process, options: u32) -> Option<(Event, bool)> {
    let make = |status: u32, code: i32, value: i32, usage: Usage| Event {
        pid: c.pid,
        uid: c.creds().uid,
        status,
        code,
        value,
        usage,
    };
    if c.state.load(Ordering::Acquire) == ZOMBIE {
        if options & sys::WEXITED == 0 {
            return None;
        }
        let status = c.exit_status.load(Ordering::Relaxed);
        let mut usage = c.sig.lock().ended;
        // SAFETY: the task table is locked by our caller.
        usage.add(unsafe { &c.family.get().children_usage });
        let (code, value) = exit::end_code(status);
        return Some((make(status, code, value, usage), true));
    }
    let keep = options & sys::WNOWAIT != 0;
    let mut s = c.sig.lock();
    if options & sys::WSTOPPED != 0 && s.stop_report != 0 {
        let signo = s.stop_report;
        if !keep {
            s.stop_report = 0;
        }
        let usage = s.ended;
        drop(s);
        return Some((
            make(signo << 8 | 0x7f, CLD_STOPPED, signo as i32, usage),
            false,
        ));
    }
    if options & sys::WCONTINUED != 0 && s.cont_report {
        if !keep {
            s.cont_report = false;
        }
        let usage = s.ended;
        drop(s);
        return Some((make(0xffff, CLD_CONTINUED, SIGCONT as i32, usage), false));
    }
    None
}

/// For the kernel's init: reaps `pid` and every orphan until `pid` has ended; its wait status.
pub(super) fn reap_until(pid: u32) -> u32 {
    loop {
        match wait_for(Who::Any, sys::WEXITED | sys::__WALL) {
            Ok(Some(e)) if e.pid == pid => return e.status,
            Err(Errno::ECHILD) => return 0,
            _ => {
                // A kernel thread has no handlers: what woke it is dropped.
                signal::send::forget_pending();
            }
        }
    }
}
