//! The tracer's side: requests about a tracee that stands still.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::super::signal::{SIGKILL, SigInfo, SigState, UNBLOCKABLE, send};
use super::super::thread::{TRACED, Thread};
use super::super::{Space, WORK_SIGNAL, current, sched, table};
use super::{HOOK_CALLS, HOOK_DEBUG, Stop, TRAP_FLAG, Tracing, sys};
use crate::arch::TrapFrame;

/// How a tracee goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    Free,
    ToCall,
    Step,
}

/// The running thread's tracee `tid`.
fn tracee(tid: u32) -> Result<Arc<Thread>, Errno> {
    let t = table::find_thread(tid).ok_or(Errno::ESRCH)?;
    let mine = {
        let _s = t.process.sig.lock();
        // SAFETY: the signal lock is held.
        let tracer = unsafe { t.trace.get() }.tracer;
        core::ptr::eq(tracer, current())
    };
    if mine { Ok(t) } else { Err(Errno::ESRCH) }
}

/// Calls `f` while the tracee stands still; ESRCH if it does not, or is not the caller's. `f` runs with the signal
/// lock held: no sleep, no user memory.
pub fn with_stopped<R>(
    tid: u32,
    f: impl FnOnce(&Thread, &mut SigState, &mut Tracing) -> R,
) -> Result<R, Errno> {
    let t = tracee(tid)?;
    loop {
        let mut s = t.process.sig.lock();
        // SAFETY: the signal lock is held.
        let tr = unsafe { t.trace.get() };
        let mine = core::ptr::eq(tr.tracer, current());
        let stands = t.state.load(Ordering::SeqCst) == TRACED && tr.stop.is_some();
        if !mine || !stands || tr.go || tr.listening {
            return Err(Errno::ESRCH);
        }
        if sched::has_left_cpu(&t) {
            return Ok(f(&t, &mut s, tr));
        }
        // It says so on another CPU, and is a few steps from leaving it.
        drop(s);
        sched::cond_resched();
        core::hint::spin_loop();
    }
}

impl Tracing {
    /// Where the tracee stands; for `with_stopped`.
    fn stop(&mut self) -> &mut Stop {
        self.stop.as_mut().expect("checked by with_stopped")
    }

    /// The user registers of a tracee that stands still.
    pub(super) fn frame(&mut self) -> &mut TrapFrame {
        // SAFETY: `with_stopped` found it off its CPU; the frame lies on its stack until it runs again.
        unsafe { &mut *self.stop().frame }
    }

    pub(super) fn forced_trap(&self) -> bool {
        self.forced
    }

    pub(super) fn own_trap(&mut self) {
        self.forced = false;
    }
}

/// PTRACE_CONT, PTRACE_SYSCALL, PTRACE_SINGLESTEP.
pub fn resume(tid: u32, how: How, inject: u32) -> Result<(), Errno> {
    with_stopped(tid, |t, _, tr| {
        if core::mem::take(&mut tr.forced) {
            tr.frame().rflags &= !TRAP_FLAG;
        }
        if how == How::Step && tr.frame().rflags & TRAP_FLAG == 0 {
            tr.frame().rflags |= TRAP_FLAG;
            tr.forced = true;
        }
        tr.step = how == How::Step;
        tr.syscalls = how == How::ToCall;
        let calls = if how == How::Free { 0 } else { HOOK_CALLS };
        let debug = if tr.debug.on() { HOOK_DEBUG } else { 0 };
        t.hooked.store(calls | debug, Ordering::Relaxed);
        tr.inject = inject;
        tr.report = 0;
        tr.go = true;
        sched::wake(t, TRACED);
    })
}

/// The memory of a tracee that stands still.
pub fn space(tid: u32) -> Result<Arc<Space>, Errno> {
    let process = with_stopped(tid, |t, _, _| t.process.clone())?;
    process.space().ok_or(Errno::EIO)
}

/// PTRACE_KILL.
pub fn kill(tid: u32) -> Result<(), Errno> {
    let t = tracee(tid)?;
    send::kill_process(&t.process, SIGKILL);
    Ok(())
}

/// PTRACE_SETOPTIONS.
pub fn set_options(tid: u32, options: u32) -> Result<(), Errno> {
    with_stopped(tid, |_, _, tr| tr.options = options)
}

/// PTRACE_GETEVENTMSG.
pub fn message(tid: u32) -> Result<u64, Errno> {
    with_stopped(tid, |_, _, tr| tr.stop().message)
}

/// PTRACE_GETSIGINFO.
pub fn siginfo(tid: u32) -> Result<SigInfo, Errno> {
    with_stopped(tid, |_, _, tr| tr.stop().info)?.ok_or(Errno::EINVAL)
}

/// PTRACE_SETSIGINFO.
pub fn set_siginfo(tid: u32, info: SigInfo) -> Result<(), Errno> {
    with_stopped(tid, |_, _, tr| match &mut tr.stop().info {
        Some(at) => {
            *at = info;
            Ok(())
        }
        None => Err(Errno::EINVAL),
    })?
}

/// One entry of what is pending for the tracee, or for its process: PTRACE_PEEKSIGINFO.
pub fn pending(tid: u32, shared: bool, n: u64) -> Result<Option<SigInfo>, Errno> {
    with_stopped(tid, |t, s, _| {
        if shared {
            s.shared.nth(n)
        } else {
            // SAFETY: the signal lock is held.
            unsafe { t.pending.get() }.nth(n)
        }
    })
}

/// PTRACE_GETSIGMASK.
pub fn mask(tid: u32) -> Result<u64, Errno> {
    with_stopped(tid, |t, _, _| {
        // SAFETY: the tracee stands still, off its CPU.
        let saved = unsafe { (*t.private.ptr()).saved_mask };
        saved.unwrap_or(t.blocked.load(Ordering::Relaxed))
    })
}

/// PTRACE_SETSIGMASK.
pub fn set_mask(tid: u32, mask: u64) -> Result<(), Errno> {
    with_stopped(tid, |t, s, _| {
        // SAFETY: the tracee stands still, off its CPU.
        unsafe { (*t.private.ptr()).saved_mask = None };
        t.blocked.store(mask & !UNBLOCKABLE, Ordering::Relaxed);
        send::recalc(s, t);
    })
}

/// PTRACE_INTERRUPT: a seized tracee stops soon, or again after the stop it is in.
pub fn interrupt(tid: u32) -> Result<(), Errno> {
    let t = tracee(tid)?;
    let _s = t.process.sig.lock();
    // SAFETY: the signal lock is held.
    let tr = unsafe { t.trace.get() };
    if !core::ptr::eq(tr.tracer, current()) {
        return Err(Errno::ESRCH);
    }
    if !tr.seized {
        return Err(Errno::EIO);
    }
    tr.interrupt = true;
    poke(&t, tr);
    Ok(())
}

/// PTRACE_LISTEN: a seized tracee in an event stop stays, and reports what happens next.
pub fn listen(tid: u32) -> Result<(), Errno> {
    with_stopped(tid, |t, _, tr| {
        let event = tr.stop().info.map_or(0, |i| i.code() >> 8);
        if !tr.seized || event != sys::PTRACE_EVENT_STOP as i32 {
            return Err(Errno::EIO);
        }
        tr.listening = true;
        if tr.notify {
            poke(t, tr);
        }
        Ok(())
    })?
}

/// A stop is due: wakes what sleeps and what listens. The signal lock is held.
fn poke(t: &Thread, tr: &mut Tracing) {
    t.set_work(WORK_SIGNAL);
    if tr.listening {
        tr.go = true;
        sched::wake(t, TRACED);
    } else {
        send::nudge(t);
    }
}

/// Job control begins or ends a stop: a seized tracee reports it. The signal lock is held.
pub(in crate::task) fn job_control_changed(t: &Thread, tr: &mut Tracing) {
    tr.notify = true;
    poke(t, tr);
}

/// `struct ptrace_syscall_info` up to its last filled byte: PTRACE_GET_SYSCALL_INFO.
pub fn call_info(tid: u32) -> Result<([u8; 80], usize), Errno> {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const SIGTRAP_GOOD: i32 = 5 | 0x80;
    with_stopped(tid, |_, _, tr| {
        let mut b = [0u8; 80];
        let mut put = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
        let code = tr.stop().info.map_or(0, |i| i.code());
        let message = tr.stop().message as u32;
        let f = *tr.frame();
        put(8, f.rip);
        put(16, f.rsp);
        let (op, len) = match message {
            sys::PTRACE_EVENTMSG_SYSCALL_ENTRY if code == SIGTRAP_GOOD => {
                put(24, f.orig_rax);
                for n in 0..6 {
                    put(32 + 8 * n, f.arg(n));
                }
                (sys::PTRACE_SYSCALL_INFO_ENTRY, 80)
            }
            sys::PTRACE_EVENTMSG_SYSCALL_EXIT if code == SIGTRAP_GOOD => {
                put(24, f.rax);
                put(32, u64::from(f.rax > -4096i64 as u64));
                (sys::PTRACE_SYSCALL_INFO_EXIT, 33)
            }
            _ => (sys::PTRACE_SYSCALL_INFO_NONE, 24),
        };
        b[0] = op as u8;
        b[4..8].copy_from_slice(&AUDIT_ARCH_X86_64.to_le_bytes());
        (b, len)
    })
}
