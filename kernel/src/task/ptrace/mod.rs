//! Tracing (`ptrace`): one thread, the tracer, watches another, the tracee, and stops it.
//!
//! What the two share is the tracee's [`Tracing`]. Its process's signal lock guards it; who the tracer is and the
//! list of a process's tracees change with the task table locked as well, so either lock is enough to read them.
//! A tracer lets its tracees go before it leaves the task table: a pointer to one, read under a lock, is good.
//!
//! A stop: the tracee writes down where it stands and stores the state `TRACED` under the signal lock, tells the
//! tracer, and gives up the CPU until the tracer says `go`, or it must die. Whoever wakes a `TRACED` thread holds
//! that lock. Hence [`request::with_stopped`]: under the lock, a tracee that is `TRACED` and has left its CPU stays
//! so, and its registers (the frame on its kernel stack, the saved extended state) belong to the tracer meanwhile.
//! It looks at them again only after it has taken the lock to see why it was woken. After a stop the whole frame
//! is checked and loaded by IRET, so that a tracer may write what it likes.
//!
//! System calls of a thread that is not watched cost nothing: a thread whose calls are to be reported, or that is
//! stepped, enters by another address (`hooked`, loaded by the switch), which leads to [`stop::system_call`].

pub mod attach;
pub mod regs;
pub mod request;
pub mod stop;

use core::ptr;
use core::sync::atomic::Ordering;

use super::process::Process;
use super::signal::{SigInfo, SigState};
use super::table::Tasks;
use super::thread::Thread;
use super::{WORK_SIGNAL, sched};
use crate::arch::TrapFrame;
use crate::arch::debug::{DebugRegs, STATUS_CLEAR};

pub use linux_raw_sys::ptrace as sys;

/// Traps of the CPU's trap flag, in the saved flags.
pub const TRAP_FLAG: u64 = 1 << 8;
/// `si_code`s of SIGTRAP.
pub const TRAP_BRKPT: i32 = 1;
pub const TRAP_TRACE: i32 = 2;
pub const TRAP_HWBKPT: i32 = 4;

/// In `Thread::hooked`: system calls take the watched entry; the debug registers hold something.
pub(super) const HOOK_CALLS: u8 = 1;
pub(super) const HOOK_DEBUG: u8 = 2;

/// Where a tracee stands.
pub(super) struct Stop {
    frame: *mut TrapFrame,
    info: Option<SigInfo>,
    message: u64,
}

/// How a thread is traced; see the module's head. The last two fields serve job control of every thread.
pub struct Tracing {
    tracer: *const Thread,
    /// The next tracee of the tracer's process.
    next: *const Thread,
    seized: bool,
    options: u32,
    pub(super) stop: Option<Stop>,
    /// It may leave its stop.
    go: bool,
    /// With which signal.
    inject: u32,
    /// The stop's status, until the tracer's `wait` takes it.
    report: u32,
    /// It stands still for job control while the tracer waits for the next event (PTRACE_LISTEN).
    listening: bool,
    /// A stop was asked for (PTRACE_INTERRUPT).
    interrupt: bool,
    /// Job control has changed since the tracer was told.
    notify: bool,
    /// It stood still when it was attached to, and is on its way from there into a stop.
    moving: bool,
    /// System calls are reported.
    syscalls: bool,
    /// It runs one instruction; `forced`: the trap flag is ours, not the program's.
    step: bool,
    forced: bool,
    /// What the CPU watches for it, and what it saw last (DR6).
    pub(super) debug: DebugRegs,
    debug_status: u64,
    /// It has ended with this status and its tracer has not asked yet.
    pub(super) dead: Option<u32>,
    /// It has stopped for the group's stop.
    pub(super) stood: bool,
    /// It took a stop signal that no SIGCONT has overtaken.
    pub(super) stop_taken: bool,
}

// SAFETY: the raw links are guarded by the locks that the module's head names.
unsafe impl Send for Tracing {}

impl Tracing {
    pub(super) const fn new() -> Tracing {
        Tracing {
            tracer: ptr::null(),
            next: ptr::null(),
            seized: false,
            options: 0,
            stop: None,
            go: false,
            inject: 0,
            report: 0,
            listening: false,
            interrupt: false,
            notify: false,
            moving: false,
            syscalls: false,
            step: false,
            forced: false,
            debug: DebugRegs::NONE,
            debug_status: STATUS_CLEAR,
            dead: None,
            stood: false,
            stop_taken: false,
        }
    }

    pub(super) fn seized(&self) -> bool {
        self.seized
    }

    /// Whether a stop is due for another reason than a signal.
    pub(super) fn trap_due(&self) -> bool {
        self.interrupt || self.notify
    }

    /// The status of a stop that the tracer has not asked for; 0 without one.
    pub(super) fn take_report(&mut self, keep: bool) -> u32 {
        if self.listening {
            return 0;
        }
        let report = self.report;
        if !keep {
            self.report = 0;
        }
        report
    }

    /// The thread has ended: it stops no more.
    pub(super) fn ends(&mut self) {
        self.interrupt = false;
        self.notify = false;
        self.moving = false;
        self.report = 0;
    }

    /// The tracer, if the thread is traced; one of its locks is held.
    pub(super) fn tracer(&self) -> Option<&Thread> {
        // SAFETY: see the module's head.
        unsafe { self.tracer.as_ref() }
    }
}

/// A tracer's process, or null; for a thread under the task table's lock.
pub(super) fn tracer_process(t: &Thread, _: &Tasks) -> *const Process {
    // SAFETY: the table is locked, so the field does not change and the tracer is alive.
    let tracer = unsafe { (*t.trace.ptr()).tracer.as_ref() };
    tracer.map_or(ptr::null(), |tracer| &*tracer.process)
}

/// The id of a thread's tracer, 0 without one (`/proc/PID/status`).
pub fn tracer_tid(t: &Thread) -> u32 {
    let _tasks = super::table::lock();
    // SAFETY: the table is locked.
    unsafe { (*t.trace.ptr()).tracer.as_ref() }.map_or(0, Thread::tid)
}

/// The tracees of a process; the table is locked.
pub(super) fn tracees<'a>(_: &'a Tasks, p: &'a Process) -> impl Iterator<Item = &'a Thread> {
    // SAFETY: the table is locked: the list stands still, and a tracee leaves it before it is freed.
    let mut next = unsafe { p.tracees.get().as_ref() };
    core::iter::from_fn(move || {
        let t = next?;
        // SAFETY: as above.
        next = unsafe { (*t.trace.ptr()).next.as_ref() };
        Some(t)
    })
}

/// Makes `t` a tracee of `tracer`. Both are alive, and neither has left the table.
pub(super) fn link(
    _tasks: &mut Tasks,
    _sig: &mut SigState,
    t: &Thread,
    tracer: &Thread,
    (seized, options): (bool, u32),
) {
    // SAFETY: the task table and the signal lock of `t` are held.
    unsafe {
        let tr = t.trace.get();
        *tr = Tracing {
            tracer,
            next: *tracer.process.tracees.get(),
            seized,
            options,
            stood: tr.stood,
            stop_taken: tr.stop_taken,
            ..Tracing::new()
        };
        *tracer.process.tracees.get() = t;
    }
    t.traced.store(true, Ordering::Relaxed);
    if t.tid() == t.process.pid {
        let tracer = (&*tracer.process as *const Process).cast_mut();
        t.process.tracer.store(tracer, Ordering::Relaxed);
    }
}

/// Ends the tracing of `t`: it leaves its stop with signal `inject`, or joins its group's stop.
pub(super) fn unlink(_tasks: &mut Tasks, t: &Thread, inject: u32) {
    let s = t.process.sig.lock();
    // SAFETY: the task table and the signal lock of `t` are held.
    let tr = unsafe { t.trace.get() };
    let Some(tracer) = tr.tracer() else {
        return;
    };
    // SAFETY: the table is locked; the list holds `t`.
    unsafe {
        let mut at = tracer.process.tracees.ptr();
        while !ptr::eq(*at, t) {
            at = &raw mut (*(**at).trace.ptr()).next;
        }
        *at = tr.next;
    }
    if tr.forced
        && let Some(stop) = &tr.stop
    {
        // SAFETY: it stands still, and takes the signal lock before it uses the frame.
        unsafe { (*stop.frame).rflags &= !TRAP_FLAG };
    }
    *tr = Tracing {
        stop: tr.stop.take(),
        go: true,
        inject,
        dead: tr.dead,
        stood: tr.stood,
        stop_taken: tr.stop_taken,
        ..Tracing::new()
    };
    t.traced.store(false, Ordering::Relaxed);
    t.hooked.store(0, Ordering::Relaxed);
    if t.tid() == t.process.pid {
        t.process.tracer.store(ptr::null_mut(), Ordering::Relaxed);
    }
    if s.stop_sig != 0 && s.group_exit.is_none() && !t.exiting.load(Ordering::Relaxed) {
        tr.stood = false;
        t.set_work(WORK_SIGNAL);
    }
    if tr.stop.is_some() {
        sched::wake(t, super::thread::TRACED);
    } else if !tr.stood && s.stop_sig != 0 {
        super::signal::send::nudge(t);
    }
}
