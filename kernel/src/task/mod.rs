//! Threads, processes, scheduling, signals, futexes, time.
//!
//! Locks of this room, outermost first: the task table ([`table::lock`], a spin lock, interrupts on) ->
//! a process's signal lock ([`process::Process::sig`], interrupts off) -> signal actions ->
//! wait queue or timer queue -> run queue. The task table guards pids and every family link (parent,
//! children, process group, session); the signal lock guards a process's list of threads, pending
//! signals and stop state. Neither is held across a user copy or a sleep.
//!
//! A thread sleeps by storing a state other than `RUNNING`, looking at its condition once more and
//! calling [`sched::schedule`]; whoever makes the condition true wakes it afterwards. The decision
//! "does it leave the CPU" is taken under the run queue's lock, and that lock is held until the next
//! thread's stack is in use, so a waker never enqueues a thread whose registers are not yet saved.

pub mod acct;
pub mod clone;
pub mod coredump;
pub mod dethread;
pub mod exit;
pub mod futex;
pub mod init;
pub mod locked;
pub mod own;
pub mod pidfd;
pub mod pids;
pub mod process;
pub mod ptrace;
pub mod reap;
pub mod sched;
pub mod signal;
pub mod space;
pub mod switch;
pub mod table;
pub mod thread;
pub mod time;
pub mod timer;
pub mod wait;

pub use init::drop_caches;
pub use process::{Creds, Process};
pub use sched::{cond_resched, on_timer, start_scheduler, yield_now};
pub use space::Space;
pub use table::{find_process, for_each_process};
pub use thread::Thread;
pub use wait::{Sleep, WaitError, WaitQueue, park, unpark};

use core::sync::atomic::Ordering;

use crate::arch::{self, TrapFrame};

/// The scheduler should run before user code does.
pub const WORK_RESCHED: u32 = 1;
/// A signal, a stop or a saved signal mask is to be looked at.
pub const WORK_SIGNAL: u32 = 2;
/// The thread must die (SIGKILL or group exit): breaks killable sleeps.
pub const WORK_KILL: u32 = 4;

/// The running thread; the idle thread of this CPU when nothing else runs.
#[inline(always)]
pub fn current() -> &'static Thread {
    // SAFETY: `switch` stores the running thread there before it runs, and a thread cannot be freed
    // while it runs; the caller is that thread, so the reference outlives every use it can make.
    unsafe { &*arch::current_ptr().cast::<Thread>() }
}

/// The running thread, or `None` before the scheduler has started on this CPU.
pub fn try_current() -> Option<&'static Thread> {
    let p = arch::current_ptr().cast::<Thread>();
    // SAFETY: as in `current`.
    unsafe { p.as_ref() }
}

/// Whether the running thread must die; killable sleeps end with it.
#[inline]
pub fn fatal_signal_pending() -> bool {
    try_current().is_some_and(|t| t.work.load(Ordering::SeqCst) & WORK_KILL != 0)
}

/// Whether the running thread has a signal to look at; interruptible sleeps end with it.
#[inline]
pub fn signal_pending() -> bool {
    try_current().is_some_and(|t| t.work.load(Ordering::SeqCst) & (WORK_SIGNAL | WORK_KILL) != 0)
}

/// What is to be done before user mode is entered again; interrupts on. The caller looks at
/// `work` again with interrupts off.
pub fn exit_work(frame: &mut TrapFrame) {
    let t = current();
    let work = t.work.load(Ordering::Relaxed);
    if work & WORK_RESCHED != 0 {
        sched::resched_point();
    }
    if work & (WORK_SIGNAL | WORK_KILL) != 0 {
        signal::deliver::do_signal(frame);
    }
}

/// Whether the running thread has no space of its own: what is loaded is loaded lazily.
pub fn runs_without_space() -> bool {
    try_current().is_none_or(|t| t.space_ptr.load(Ordering::Relaxed).is_null())
}

/// The running thread's id, by which [`unpark`] finds it.
pub fn current_tid() -> usize {
    try_current().map_or(0, |t| t.tid() as usize)
}

/// Who runs, for panic reports: takes no lock.
pub fn describe_current(out: &mut dyn core::fmt::Write) {
    let Some(t) = try_current() else {
        let _ = write!(out, "no thread");
        return;
    };
    let comm = t.comm.try_lock().map(|c| *c).unwrap_or([b'?'; 16]);
    let name = core::str::from_utf8(&comm)
        .unwrap_or("?")
        .trim_end_matches('\0');
    let _ = write!(
        out,
        "thread {} of process {} ({name})",
        t.tid(),
        t.process.pid
    );
}

/// Starts a thread that runs `f(arg)` in the kernel and ends when `f` returns.
pub fn spawn_kernel_thread(name: &str, f: fn(usize), arg: usize) -> Result<(), mm::Errno> {
    clone::spawn_kernel(name, f, arg)
}

/// A thread's name as text, for messages.
pub fn name_of(t: &Thread) -> alloc::string::String {
    let comm = *t.comm.lock();
    let len = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
    alloc::string::String::from_utf8_lossy(&comm[..len]).into_owned()
}
