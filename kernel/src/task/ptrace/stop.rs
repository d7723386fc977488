//! The tracee's side: it stops and says why.

use core::sync::atomic::Ordering;

use super::super::signal::send::recalc;
use super::super::signal::{self, CLD_STOPPED, CLD_TRAPPED, Queued, SIG_IGN, SIGCHLD, SIGTRAP};
use super::super::signal::{SigInfo, SigState, bit};
use super::super::thread::{RUNNING, TRACED, Thread};
use super::super::{WORK_KILL, current, sched, table};
use super::{HOOK_CALLS, HOOK_DEBUG, Stop, TRAP_BRKPT, TRAP_FLAG, TRAP_HWBKPT, TRAP_TRACE, sys};
use crate::arch::debug::{DebugRegs, HITS, STATUS_CLEAR, STEP};
use crate::arch::{self, TrapFrame};
use linux_raw_sys::general::SA_NOCLDSTOP;
use mm::Errno;

/// What kind of stop, hence who is told and what ends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// At a signal, a call or an event.
    Trap,
    /// For job control.
    Group,
    /// On the way to its end. If it must die already, only SIGKILL or another thread's exec end the stop.
    Exit { dying: bool },
}

/// Stands still with `status` until the tracer lets it go: the signal it is to go on with, and what the tracer left
/// of `info`. `None` when it did not stop, because nobody traces it (any more) or it must die.
fn stand(
    me: &Thread,
    frame: &mut TrapFrame,
    kind: Kind,
    status: u32,
    info: Option<SigInfo>,
    message: u64,
) -> Option<(u32, Option<SigInfo>)> {
    let node = Queued::new(SigInfo::new(SIGCHLD, 0));
    let mut s = me.process.sig.lock();
    // SAFETY: the signal lock is held.
    let tr = unsafe { me.trace.get() };
    if tr.tracer().is_none() || must_go(&s, me, kind) {
        return None;
    }
    let stopped = kind == Kind::Group && signal::deliver::participate(&mut s, me);
    let group = s.stop_sig;
    tr.interrupt = false;
    if info.is_some_and(|i| i.code() >> 8 == sys::PTRACE_EVENT_STOP as i32) {
        tr.notify = false;
    }
    tr.moving = false;
    tr.go = false;
    tr.inject = 0;
    tr.report = status;
    tr.stop = Some(Stop {
        frame,
        info,
        message,
    });
    me.state.swap(TRACED, Ordering::SeqCst);
    drop(s);
    let code = if kind == Kind::Group {
        CLD_STOPPED
    } else {
        CLD_TRAPPED
    };
    let left = tell_tracer(me, node, code, status);
    if stopped && !traced_by_parent(me) {
        signal::deliver::tell_parent(me, CLD_STOPPED, group);
    }
    let s = loop {
        sched::schedule();
        let s = me.process.sig.lock();
        // SAFETY: the signal lock is held.
        if unsafe { me.trace.get() }.go || must_go(&s, me, kind) {
            break s;
        }
        me.state.swap(TRACED, Ordering::SeqCst);
    };
    me.state.store(RUNNING, Ordering::Relaxed);
    // SAFETY: the signal lock is held.
    let tr = unsafe { me.trace.get() };
    let info = tr.stop.take().and_then(|stop| stop.info);
    let inject = core::mem::take(&mut tr.inject);
    tr.report = 0;
    tr.listening = false;
    recalc(&s, me);
    drop(s);
    drop(left);
    arch::full_frame_return();
    Some((inject, info))
}

/// Whether death ends the stop, or forbids it.
fn must_go(s: &SigState, me: &Thread, kind: Kind) -> bool {
    match kind {
        Kind::Exit { dying: true } => s.killed || !s.exec.is_null(),
        _ => me.work.load(Ordering::Relaxed) & WORK_KILL != 0,
    }
}

/// SIGCHLD about a stop, for the tracer, and a wake-up for its `wait`. What is left of the node is returned.
fn tell_tracer(
    me: &Thread,
    mut node: alloc::boxed::Box<Queued>,
    code: i32,
    status: u32,
) -> Option<alloc::boxed::Box<Queued>> {
    let usage = me.process.usage();
    node.set(SigInfo::child(
        SIGCHLD,
        code,
        me.tid(),
        me.process.creds().uid,
        (status & 0x7f) as i32,
        usage.user_ns / 10_000_000,
        usage.system_ns / 10_000_000,
    ));
    let _tasks = table::lock();
    // SAFETY: the table is locked.
    let Some(tracer) = (unsafe { &*me.trace.ptr() }).tracer() else {
        return Some(node);
    };
    let p = &*tracer.process;
    let act = p.sig.lock().actions.get(SIGCHLD);
    let left = if act.handler != SIG_IGN && act.flags & u64::from(SA_NOCLDSTOP) == 0 {
        signal::send::send_prepared(p, None, SIGCHLD, node)
    } else {
        Some(node)
    };
    p.child_wait.wake_all();
    left
}

/// Whether the tracer belongs to the parent, who then hears of a stop as tracer only.
fn traced_by_parent(me: &Thread) -> bool {
    let tasks = table::lock();
    let tracer = super::tracer_process(me, &tasks);
    tasks
        .parent(&me.process)
        .is_some_and(|p| core::ptr::eq(p, tracer))
}

/// A stop with SIGTRAP; the signal that the tracer sends along.
fn trap(me: &Thread, frame: &mut TrapFrame, kind: Kind, code: u32, message: u64) -> u32 {
    let uid = me.process.creds().uid;
    let info = SigInfo::user(SIGTRAP, code as i32, me.tid(), uid);
    stand(me, frame, kind, code, Some(info), message).map_or(0, |(inject, _)| inject)
}

/// A signal is about to be delivered: what the tracer makes of it.
pub(in crate::task) fn at_signal(
    me: &Thread,
    frame: &mut TrapFrame,
    info: SigInfo,
) -> Option<SigInfo> {
    let signo = info.signo();
    let Some((inject, left)) = stand(me, frame, Kind::Trap, signo, Some(info), 0) else {
        return Some(info);
    };
    if inject == 0 {
        return None;
    }
    let mut info = left.unwrap_or(info);
    if inject != info.signo() {
        let (pid, uid) = {
            let s = me.process.sig.lock();
            // SAFETY: the signal lock is held.
            let tracer = unsafe { me.trace.get() }.tracer();
            let who = tracer.map_or((0, 0), |t| (t.process.pid, t.process.creds().uid));
            drop(s);
            who
        };
        info = SigInfo::user(inject, signal::SI_USER, pid, uid);
    }
    if me.blocked.load(Ordering::Relaxed) & bit(inject) & !signal::UNBLOCKABLE != 0 {
        signal::send_to_thread(me, info);
        return None;
    }
    Some(info)
}

/// A stop that no signal of this thread caused: job control's, or one that the tracer asked for.
pub(in crate::task) fn at_job_control(me: &Thread, frame: &mut TrapFrame) {
    let mut s = me.process.sig.lock();
    // SAFETY: the signal lock is held.
    let tr = unsafe { me.trace.get() };
    let signo = if s.stop_sig != 0 { s.stop_sig } else { SIGTRAP };
    if tr.seized {
        drop(s);
        let status = signo | sys::PTRACE_EVENT_STOP << 8;
        let uid = me.process.creds().uid;
        let info = SigInfo::user(signo, status as i32, me.tid(), uid);
        stand(me, frame, Kind::Group, status, Some(info), 0);
    } else if s.stop_sig != 0 {
        drop(s);
        stand(me, frame, Kind::Group, signo, None, 0);
    } else {
        // The group went on before this thread got here.
        tr.interrupt = false;
        tr.notify = false;
        tr.moving = false;
        signal::deliver::participate(&mut s, me);
    }
}

/// Whether the tracer wants to hear of `event`.
fn wants(me: &Thread, event: u32) -> bool {
    if !me.traced.load(Ordering::Relaxed) {
        return false;
    }
    let _s = me.process.sig.lock();
    // SAFETY: the signal lock is held.
    let tr = unsafe { me.trace.get() };
    tr.tracer().is_some() && tr.options & 1 << event != 0
}

/// Which event a clone is, if the tracer wants to hear of it: then the child is traced, too.
#[inline]
pub(in crate::task) fn clone_event(me: &Thread, vfork: bool, exit_signal: u32) -> Option<u32> {
    if !me.traced.load(Ordering::Relaxed) {
        return None;
    }
    let event = if vfork {
        sys::PTRACE_EVENT_VFORK
    } else if exit_signal != SIGCHLD {
        sys::PTRACE_EVENT_CLONE
    } else {
        sys::PTRACE_EVENT_FORK
    };
    wants(me, event).then_some(event)
}

/// Stops at an event, if the tracer wants it, with a message.
#[inline]
pub fn at_event(frame: &mut TrapFrame, event: u32, message: u64) {
    let me = current();
    if wants(me, event) {
        trap(me, frame, Kind::Trap, SIGTRAP | event << 8, message);
    }
}

/// The end of an exec: an event, or SIGTRAP for a tracer of the old kind.
pub fn at_exec(frame: &mut TrapFrame, old_tid: u32) {
    let me = current();
    if !me.traced.load(Ordering::Relaxed) {
        return;
    }
    if wants(me, sys::PTRACE_EVENT_EXEC) {
        at_event(frame, sys::PTRACE_EVENT_EXEC, u64::from(old_tid));
        return;
    }
    let seized = {
        let _s = me.process.sig.lock();
        // SAFETY: the signal lock is held.
        let tr = unsafe { me.trace.get() };
        tr.seized || tr.tracer().is_none()
    };
    if !seized {
        let uid = me.process.creds().uid;
        signal::send_to_thread(
            me,
            SigInfo::user(SIGTRAP, signal::SI_USER, me.process.pid, uid),
        );
    }
}

/// The thread is about to end with `status`. One that SIGKILL ends, or another thread's exec, does not stop again.
pub(in crate::task) fn at_exit(me: &Thread, status: u32) {
    if !wants(me, sys::PTRACE_EVENT_EXIT) {
        return;
    }
    let executed = !me.process.sig.lock().exec.is_null();
    let frame = me.user_regs.load(Ordering::Relaxed);
    // SAFETY: the frame of the entry from user mode that led here, on this thread's own stack.
    if !executed && let Some(frame) = unsafe { frame.as_mut() } {
        let code = SIGTRAP | sys::PTRACE_EVENT_EXIT << 8;
        let dying = me.work.load(Ordering::Relaxed) & WORK_KILL != 0;
        trap(me, frame, Kind::Exit { dying }, code, u64::from(status));
    }
}

/// Before and after a call: the tracer's signal is sent. False: the thread must die.
fn report_call(me: &Thread, frame: &mut TrapFrame, message: u32) -> bool {
    let (on, good) = {
        let _s = me.process.sig.lock();
        // SAFETY: the signal lock is held.
        let tr = unsafe { me.trace.get() };
        (tr.syscalls, tr.options & sys::PTRACE_O_TRACESYSGOOD != 0)
    };
    if on {
        let code = SIGTRAP | if good { 0x80 } else { 0 };
        let signo = trap(me, frame, Kind::Trap, code, u64::from(message));
        if signo != 0 {
            signal::send_to_thread(me, SigInfo::kernel(signo));
        }
    }
    me.work.load(Ordering::Relaxed) & WORK_KILL == 0
}

/// A system call of a thread whose calls are watched, or that is stepped.
pub fn system_call(frame: &mut TrapFrame) {
    let me = current();
    frame.rax = -i64::from(Errno::ENOSYS.raw()) as u64;
    if !report_call(me, frame, sys::PTRACE_EVENTMSG_SYSCALL_ENTRY) {
        // It dies on the way out.
        return arch::full_frame_return();
    }
    // The tracer may have chosen another one, or none.
    if frame.orig_rax as i32 != -1 {
        crate::syscall::dispatch(frame);
    }
    let (on, step) = {
        let _s = me.process.sig.lock();
        // SAFETY: the signal lock is held.
        let tr = unsafe { me.trace.get() };
        (tr.syscalls, tr.step)
    };
    if step {
        signal::deliver::force(SigInfo::fault(SIGTRAP, TRAP_BRKPT, frame.rip), false);
    } else if on {
        report_call(me, frame, sys::PTRACE_EVENTMSG_SYSCALL_EXIT);
    } else {
        me.hooked.fetch_and(!HOOK_CALLS, Ordering::Relaxed);
    }
    arch::full_frame_return();
}

/// A debug trap of the running thread in user mode, with the CPU's status: the `si_code` of its SIGTRAP, or `None`
/// when what was hit is not watched any more.
pub(in crate::task) fn debug_trap(frame: &mut TrapFrame, status: u64) -> Option<i32> {
    const RESUME_FLAG: u64 = 1 << 16;
    let me = current();
    let _s = me.process.sig.lock();
    // SAFETY: the signal lock is held.
    let tr = unsafe { me.trace.get() };
    let hits = tr.debug.hits(status);
    tr.debug_status = STATUS_CLEAR | hits | status & STEP;
    if tr.debug.hit_instruction(status) {
        // It has not run yet, and is not to trap again when it does.
        frame.rflags |= RESUME_FLAG;
    }
    match (status & STEP != 0, hits != 0, status & HITS != 0) {
        (true, _, _) => Some(TRAP_TRACE),
        (false, true, _) => Some(TRAP_HWBKPT),
        (false, false, true) => None,
        _ => Some(TRAP_BRKPT),
    }
}

/// A new program is not watched.
pub(in crate::task) fn forget_debug(me: &Thread) {
    if me.hooked.load(Ordering::Relaxed) & HOOK_DEBUG == 0 {
        return;
    }
    let _s = me.process.sig.lock();
    // SAFETY: the signal lock is held.
    unsafe { me.trace.get() }.debug = DebugRegs::NONE;
    me.hooked.fetch_and(!HOOK_DEBUG, Ordering::Relaxed);
    // With interrupts off under the lock, this is the CPU that watches for it.
    arch::debug::clear();
}

/// The trap flag is the tracer's and must not show in what the program sees. True: the thread is being stepped.
pub(in crate::task) fn take_step(me: &Thread, frame: &mut TrapFrame) -> bool {
    if !me.traced.load(Ordering::Relaxed) {
        return false;
    }
    let _s = me.process.sig.lock();
    // SAFETY: the signal lock is held.
    let tr = unsafe { me.trace.get() };
    if core::mem::take(&mut tr.forced) {
        frame.rflags &= !TRAP_FLAG;
    }
    core::mem::take(&mut tr.step)
}

/// A handler's first instruction is a step's end.
pub(in crate::task) fn at_handler(me: &Thread, frame: &mut TrapFrame) {
    trap(me, frame, Kind::Trap, SIGTRAP, 0);
}

/// A child does not inherit the tracer's trap flag.
#[inline]
pub(in crate::task) fn child_flags(me: &Thread, flags: u64) -> u64 {
    if !me.traced.load(Ordering::Relaxed) {
        return flags;
    }
    let _s = me.process.sig.lock();
    // SAFETY: the signal lock is held.
    if unsafe { me.trace.get() }.forced {
        flags & !TRAP_FLAG
    } else {
        flags
    }
}
