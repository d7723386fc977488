//! Who traces whom: beginning, end, and who may.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::super::process::{Creds, Process, ZOMBIE};
use super::super::signal::{self, SIGKILL, SIGSTOP, SigInfo, send};
use super::super::table::{self, Tasks};
use super::super::thread::{STOPPED, Thread};
use super::super::wait::Sleep;
use super::super::{WORK_SIGNAL, current, exit, sched};
use super::{link, sys, tracees, unlink};

const CAP_SYS_PTRACE: u32 = 19;
/// Stopping is all that is left of seccomp's options, and there is no seccomp.
const OPTIONS: u32 = sys::PTRACE_O_MASK & !sys::PTRACE_O_SUSPEND_SECCOMP;

/// Which ids of the caller count: those of a system call on files, or the real ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `/proc`.
    Files,
    /// `ptrace`, `process_vm_readv`.
    Real,
}

/// Whether the running thread may look into and change process `p`.
pub fn may_access(p: &Process, mode: Mode) -> Result<(), Errno> {
    let me = &current().process;
    if ptr::eq(&**me, p) {
        return Ok(());
    }
    let (mine, theirs) = (me.creds(), p.creds());
    let dumpable = p.dumpable.load(Ordering::Relaxed) == 1;
    if allowed(&mine, &theirs, dumpable, mode) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

fn allowed(mine: &Creds, theirs: &Creds, dumpable: bool, mode: Mode) -> bool {
    if mine.capable(CAP_SYS_PTRACE) {
        return true;
    }
    let (uid, gid, caps) = match mode {
        Mode::Files => (mine.fsuid, mine.fsgid, mine.cap_effective),
        Mode::Real => (mine.uid, mine.gid, mine.cap_permitted),
    };
    let same = [theirs.uid, theirs.euid, theirs.suid]
        .iter()
        .all(|&u| u == uid)
        && [theirs.gid, theirs.egid, theirs.sgid]
            .iter()
            .all(|&g| g == gid);
    same && dumpable && theirs.cap_permitted & !caps == 0
}

/// PTRACE_TRACEME: the parent traces the running thread.
pub fn trace_me() -> Result<(), Errno> {
    let me = current();
    let p = &*me.process;
    let mut tasks = table::lock();
    if me.traced.load(Ordering::Relaxed) {
        return Err(Errno::EPERM);
    }
    let Some(tracer) = forker(&tasks, p) else {
        return Ok(());
    };
    let mut s = p.sig.lock();
    // SAFETY: it has not left the table, which is locked.
    link(&mut tasks, &mut s, me, unsafe { &*tracer }, (false, 0));
    Ok(())
}

/// The thread of the parent that made `p`; another one when that has ended, `None` when all have.
fn forker(tasks: &Tasks, p: &Process) -> Option<*const Thread> {
    let parent = tasks.parent(p).filter(|q| q.pid != 0)?;
    let tid = p.forker.load(Ordering::Relaxed);
    let s = parent.sig.lock();
    let mut alive = s.threads().filter(|t| !t.exiting.load(Ordering::Relaxed));
    let first = alive.next()?;
    let made = if first.tid() == tid {
        None
    } else {
        alive.find(|t| t.tid() == tid)
    };
    Some(made.unwrap_or(first))
}

/// The options of a request, checked.
pub fn options(bits: u64) -> Option<u32> {
    u32::try_from(bits).ok().filter(|b| b & !OPTIONS == 0)
}

/// PTRACE_ATTACH, or PTRACE_SEIZE with options.
pub fn attach(tid: u32, seize: Option<u32>) -> Result<(), Errno> {
    let me = current();
    let t = table::find_thread(tid).ok_or(Errno::ESRCH)?;
    let p = &*t.process;
    if p.pid == 0 || ptr::eq(p, &*me.process) {
        return Err(Errno::EPERM);
    }
    may_access(p, Mode::Real)?;
    {
        let mut tasks = table::lock();
        let mut s = p.sig.lock();
        // A thread that is on its way out is not listed for long.
        if t.exiting.load(Ordering::Relaxed) || t.traced.load(Ordering::Relaxed) {
            return Err(Errno::EPERM);
        }
        let how = (seize.is_some(), seize.unwrap_or(0));
        link(&mut tasks, &mut s, &t, me, how);
        if s.stop_sig != 0 && t.state.load(Ordering::Relaxed) == STOPPED {
            // SAFETY: the signal lock is held.
            let tr = unsafe { t.trace.get() };
            tr.interrupt = true;
            tr.moving = true;
            t.set_work(WORK_SIGNAL);
            sched::wake(&t, STOPPED);
        }
    }
    if seize.is_none() {
        signal::send_to_thread(&t, SigInfo::kernel(SIGSTOP));
    }
    // A thread that stood still already is in its stop when this returns.
    let _ = me.process.child_wait.wait_while(Sleep::Killable, None, || {
        let _s = p.sig.lock();
        // SAFETY: the signal lock is held.
        unsafe { t.trace.get() }.moving
    });
    Ok(())
}

/// A new thread is traced as its maker is: it stops before its first instruction. The child is not listed yet.
pub(in crate::task) fn inherit(
    tasks: &mut Tasks,
    me: &Thread,
    child: &Thread,
    stop: &mut Option<alloc::boxed::Box<signal::Queued>>,
) {
    let how = {
        let _s = me.process.sig.lock();
        // SAFETY: the signal lock is held.
        let tr = unsafe { me.trace.get() };
        tr.tracer()
            .map(|tracer| (tracer as *const Thread, tr.seized, tr.options))
    };
    let Some((tracer, seized, options)) = how else {
        return;
    };
    let mut s = child.process.sig.lock();
    // SAFETY: the table is locked since the tracer was read.
    link(tasks, &mut s, child, unsafe { &*tracer }, (seized, options));
    if seized {
        // SAFETY: the signal lock is held.
        unsafe { child.trace.get() }.interrupt = true;
    } else {
        // SAFETY: as above. It is new: the signal is not pending yet, so the node is taken.
        unsafe { child.pending.get() }.add(SIGSTOP, stop.take());
    }
    child.set_work(WORK_SIGNAL);
}

/// PTRACE_DETACH: the tracee, which stands still, goes on with signal `inject`.
pub fn detach(tid: u32, inject: u32) -> Result<(), Errno> {
    super::request::with_stopped(tid, |_, _, _| ())?;
    let mut gone = Vec::new();
    let mut tasks = table::lock();
    let Some(t) = tasks.thread(tid).cloned() else {
        return Err(Errno::ESRCH);
    };
    // It may have died meanwhile, but only this thread lets it go.
    let tracer = super::tracer_process(&t, &tasks);
    if ptr::eq(tracer, &*current().process) {
        let_go(&mut tasks, &t, inject, &mut gone);
    }
    drop(tasks);
    drop(gone);
    Ok(())
}

/// Ends the tracing of one thread; what is dead already goes to its parent, or goes away.
fn let_go(tasks: &mut Tasks, t: &Thread, inject: u32, gone: &mut Vec<Arc<Thread>>) {
    let tracer = super::tracer_process(t, tasks);
    unlink(tasks, t, inject);
    let p = &t.process;
    // SAFETY: the table is locked, under which a thread dies.
    if unsafe { (*t.trace.ptr()).dead }.is_some() {
        exit::release_thread(tasks, t, gone);
    } else if t.tid() == p.pid && p.state.load(Ordering::Relaxed) == ZOMBIE {
        exit::after_tracer(tasks, p, tracer, gone);
    }
}

/// The running thread ends: its tracees go on alone, or die with it.
pub(in crate::task) fn tracer_ends(tasks: &mut Tasks, me: &Thread, gone: &mut Vec<Arc<Thread>>) {
    loop {
        let mine = tracees(tasks, &me.process)
            // SAFETY: the table is locked.
            .find(|t| ptr::eq(unsafe { (*t.trace.ptr()).tracer }, me))
            .map(Thread::arc);
        let Some(t) = mine else {
            return;
        };
        // SAFETY: as above.
        if unsafe { (*t.trace.ptr()).options } & sys::PTRACE_O_EXITKILL != 0 {
            send::kill_process(&t.process, SIGKILL);
        }
        let_go(tasks, &t, 0, gone);
        gone.push(t);
    }
}
