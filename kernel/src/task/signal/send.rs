//! Sending.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::{
    NSIG, Queued, SI_KERNEL, SIGCONT, SIGKILL, STOPS, SigInfo, SigState, UNBLOCKABLE, bit,
    is_ignored,
};
use crate::sync::IrqLock;
use crate::syscall::uring;
use crate::task::process::Process;
use crate::task::thread::{INTERRUPTIBLE, KILLABLE, RUNNING, STOPPED, TRACED, Thread};
use crate::task::wait::{Sleep, WaitQueue};
use crate::task::{WORK_KILL, WORK_SIGNAL, current, ptrace, sched, table};

/// For one thread or for the whole process.
#[derive(Clone, Copy)]
enum Target<'a> {
    Thread(&'a Thread),
    Process,
}

/// Sends to a process: any thread that does not block the signal takes it.
pub fn send_to_process(p: &Process, info: SigInfo) {
    let node = node_for(&info);
    post(p, Target::Process, info.signo(), node);
}

/// Sends to a thread.
pub fn send_to_thread(t: &Thread, info: SigInfo) {
    let node = node_for(&info);
    post(&t.process, Target::Thread(t), info.signo(), node);
}

/// Kills a process from the kernel (out of memory).
pub fn kill_process(p: &Process, signo: u32) {
    post(p, Target::Process, signo, None);
}

/// Sends to every member of a process group. EPERM or ESRCH as `kill` says are the caller's.
/// True when there was a member.
pub fn send_to_pgrp(pgid: u32, info: SigInfo) -> bool {
    let tasks = table::lock();
    let mut any = false;
    for p in tasks.iter().filter(|p| p.pgid() == pgid && !p.is_zombie()) {
        send_to_process(p, info);
        any = true;
    }
    any
}

/// From a timer's callback: without information, hence without allocating.
pub(in crate::task) fn send_from_irq(p: &Process, signo: u32) {
    post(p, Target::Process, signo, None);
}

/// As `send_from_irq`, with a node that was allocated before. The node comes back if the signal was
/// pending already or is ignored.
pub(in crate::task) fn send_prepared(
    p: &Process,
    t: Option<&Thread>,
    signo: u32,
    node: Box<Queued>,
) -> Option<Box<Queued>> {
    post(
        p,
        t.map_or(Target::Process, Target::Thread),
        signo,
        Some(node),
    )
}

/// Signals that interrupt handlers (the terminal) want sent, done by a kernel thread.
struct Deferred {
    ring: [(u32, u32); 16],
    head: usize,
    len: usize,
}

static DEFERRED: IrqLock<Deferred> = IrqLock::new(Deferred {
    ring: [(0, 0); 16],
    head: 0,
    len: 0,
});
static DEFERRED_WAKE: WaitQueue = WaitQueue::new();

/// Sends `signo` to a process group soon; for interrupt handlers.
pub fn send_to_pgrp_from_irq(pgid: u32, signo: u32) {
    let mut d = DEFERRED.lock();
    if d.len < d.ring.len() {
        let at = (d.head + d.len) % d.ring.len();
        d.ring[at] = (pgid, signo);
        d.len += 1;
    }
    drop(d);
    DEFERRED_WAKE.wake_all();
}

/// There is something new for the thread below.
pub fn wake_deferred() {
    DEFERRED_WAKE.wake_all();
}

/// Body of the kernel thread that sends deferred signals and ends timeouts of rings.
pub(in crate::task) fn deferred_sender(_: usize) {
    loop {
        let next = {
            let mut d = DEFERRED.lock();
            (d.len > 0).then(|| {
                let item = d.ring[d.head];
                d.head = (d.head + 1) % d.ring.len();
                d.len -= 1;
                item
            })
        };
        match next {
            Some((pgid, signo)) => {
                send_to_pgrp(pgid, SigInfo::kernel(signo));
            }
            None => {
                let due = uring::run_timeouts();
                let _ = DEFERRED_WAKE.wait_while(Sleep::Uninterruptible, due, || {
                    DEFERRED.lock().len == 0 && !uring::timeouts_changed()
                });
            }
        }
    }
}

/// Where memory is short a signal goes without its information, as on Linux.
fn node_for(info: &SigInfo) -> Option<Box<Queued>> {
    let plain = info.code() == SI_KERNEL && info.words()[2..].iter().all(|&w| w == 0);
    let kept = !plain && info.signo() != SIGKILL && crate::memory::headroom().is_ok();
    kept.then(|| Queued::new(*info))
}

/// The one way a signal becomes pending. What is not kept of `node` is returned.
fn post(
    p: &Process,
    target: Target<'_>,
    signo: u32,
    node: Option<Box<Queued>>,
) -> Option<Box<Queued>> {
    debug_assert!((1..=NSIG).contains(&signo));
    let mut s = p.sig.lock();
    let mut freed: [Option<Box<Queued>>; 2] = [None, None];
    freed[0] = prepare(&mut s, signo);
    let result = post_locked(p, &mut s, target, signo, node);
    drop(s);
    // `freed` is dropped here, with interrupts as they were.
    drop(freed);
    result
}

/// Stop signals cancel a pending SIGCONT; SIGCONT cancels pending stops and continues the group.
fn prepare(s: &mut SigState, signo: u32) -> Option<Box<Queued>> {
    let b = bit(signo);
    if b & STOPS != 0 {
        return flush_all(s, bit(SIGCONT));
    }
    if signo == SIGCONT || signo == SIGKILL {
        let gone = if signo == SIGCONT {
            flush_all(s, STOPS)
        } else {
            None
        };
        if signo == SIGCONT {
            for t in s.threads() {
                // SAFETY: the process's signal lock is held.
                unsafe { t.trace.get() }.stop_taken = false;
            }
        }
        if s.stop_sig != 0 {
            s.stop_sig = 0;
            s.stop_report = 0;
            if core::mem::take(&mut s.stop_complete) && signo == SIGCONT {
                s.tell_cont = true;
                s.cont_report = true;
            }
            for t in s.threads() {
                // SAFETY: the process's signal lock is held.
                let tr = unsafe { t.trace.get() };
                tr.stood = false;
                t.set_work(WORK_SIGNAL);
                if tr.seized() {
                    ptrace::request::job_control_changed(t, tr);
                } else {
                    sched::wake(t, STOPPED);
                }
            }
        }
        return gone;
    }
    None
}

/// Drops `which` everywhere in the group; one chain of nodes is returned to be freed later. Chains of
/// further threads are spliced to it.
fn flush_all(s: &mut SigState, which: u64) -> Option<Box<Queued>> {
    let mut gone = s.shared.flush(which);
    for t in s.threads() {
        // SAFETY: the process's signal lock is held.
        let more = unsafe { t.pending.get() }.flush(which);
        if let Some(more) = more {
            let mut at = &mut gone;
            while let Some(q) = at {
                at = &mut q.next;
            }
            *at = Some(more);
        }
    }
    gone
}

fn post_locked(
    p: &Process,
    s: &mut SigState,
    target: Target<'_>,
    signo: u32,
    node: Option<Box<Queued>>,
) -> Option<Box<Queued>> {
    let b = bit(signo);
    let handler = s.actions.get(signo).handler;
    let blocked_somewhere = match target {
        Target::Thread(t) => {
            t.blocked.load(Ordering::Relaxed) & b != 0
                || t.waiting_for.load(Ordering::Relaxed) & b != 0
        }
        Target::Process => s.first_thread_blocks(b),
    };
    // pid 1 takes only what it has a handler for; the kernel's own process nothing.
    let protected = p.pid <= 1 && handler == super::SIG_DFL;
    // A tracer sees even what is ignored.
    let watched = match target {
        Target::Thread(t) => t.traced.load(Ordering::Relaxed),
        Target::Process => s
            .threads()
            .next()
            .is_some_and(|t| t.traced.load(Ordering::Relaxed)),
    };
    let ignored = is_ignored(signo, handler) && !blocked_somewhere && !watched;
    if protected || (ignored && signo != SIGKILL) {
        return node;
    }
    s.killed |= signo == SIGKILL;
    if s.group_exit.is_some() && s.exec.is_null() {
        // Everybody dies already; a tracer or a core file no longer holds it up.
        if signo == SIGKILL {
            s.threads().for_each(kill_thread);
        }
        return node;
    }
    let rest = match target {
        // SAFETY: the process's signal lock is held.
        Target::Thread(t) => unsafe { t.pending.get() }.add(signo, node),
        Target::Process => s.shared.add(signo, node),
    };
    let chosen: Option<&Thread> = match target {
        Target::Thread(t) => wants(t, signo).then_some(t),
        Target::Process => s.threads().find(|t| wants(t, signo)),
    };
    let Some(chosen) = chosen else {
        return rest;
    };
    // A signal that leaves a core file, or that a tracer sees first, kills when it is delivered.
    let fatal = handler == super::SIG_DFL
        && b & (STOPS | super::IGNORED | super::DUMPS) == 0
        && !chosen.traced.load(Ordering::Relaxed);
    if (fatal || signo == SIGKILL)
        && s.group_exit.is_none()
        && chosen.waiting_for.load(Ordering::Relaxed) & b == 0
    {
        kill_group(s, signo);
        return rest;
    }
    chosen.set_work(WORK_SIGNAL);
    nudge(chosen);
    rest
}

/// Makes a thread look at its work word: wakes it if signals may, or interrupts it.
pub(in crate::task) fn nudge(t: &Thread) {
    if !sched::wake(t, INTERRUPTIBLE) && t.state.load(Ordering::Relaxed) == RUNNING {
        sched::kick_thread(t);
    }
}

/// Marks the whole group for death by `status` (a wait status) and breaks its killable sleeps.
pub(in crate::task) fn kill_group(s: &mut SigState, status: u32) {
    s.group_exit = Some(status);
    s.stop_sig = 0;
    for t in s.threads() {
        kill_thread(t);
    }
}

/// Marks one thread for death.
pub(in crate::task) fn kill_thread(t: &Thread) {
    t.set_work(WORK_SIGNAL | WORK_KILL);
    if !sched::wake(t, INTERRUPTIBLE | KILLABLE | STOPPED | TRACED) {
        sched::kick_thread(t);
    }
}

/// Whether `t` would take the signal now.
fn wants(t: &Thread, signo: u32) -> bool {
    let b = bit(signo);
    !t.exiting.load(Ordering::Relaxed)
        && (t.blocked.load(Ordering::Relaxed) & b & !UNBLOCKABLE == 0
            || t.waiting_for.load(Ordering::Relaxed) & b != 0)
}

impl SigState {
    /// Whether the signal stays pending although it is ignored: some thread blocks or awaits it.
    fn first_thread_blocks(&self, b: u64) -> bool {
        self.threads().next().is_some_and(|t| {
            (t.blocked.load(Ordering::Relaxed) | t.waiting_for.load(Ordering::Relaxed)) & b != 0
        })
    }
}

/// Brings `WORK_SIGNAL` of `t` in line with what is pending. The process's signal lock is held.
pub(in crate::task) fn recalc(s: &SigState, t: &Thread) {
    let open = !t.blocked.load(Ordering::Relaxed);
    // SAFETY: the process's signal lock is held.
    let ready = (unsafe { t.pending.get() }.set | s.shared.set) & open != 0;
    // SAFETY: as above.
    let tr = unsafe { t.trace.get() };
    let stop = s.stop_sig != 0 && !tr.stood;
    if ready || stop || tr.trap_due() || s.group_exit.is_some() || s.tell_cont {
        t.set_work(WORK_SIGNAL);
    } else if t.work.load(Ordering::Relaxed) & WORK_KILL == 0 {
        t.work.fetch_and(!WORK_SIGNAL, Ordering::SeqCst);
    }
}

/// Changes the running thread's mask and looks at what that uncovers.
pub fn set_blocked(mask: u64) -> u64 {
    let me = current();
    let mask = mask & !UNBLOCKABLE;
    let old = me.blocked.load(Ordering::Relaxed);
    if old == mask {
        return old;
    }
    let s = me.process.sig.lock();
    me.blocked.store(mask, Ordering::Relaxed);
    recalc(&s, me);
    // Signals for the process that we now block may be taken by another thread.
    let newly = mask & !old & s.shared.set;
    if newly != 0 {
        for t in s.threads() {
            if !core::ptr::eq(t, me)
                && newly & !t.blocked.load(Ordering::Relaxed) != 0
                && !t.exiting.load(Ordering::Relaxed)
            {
                t.set_work(WORK_SIGNAL);
                if !sched::wake(t, INTERRUPTIBLE) {
                    sched::kick_thread(t);
                }
            }
        }
    }
    old
}

/// Whether the running thread may signal `p` (`kill`'s rule).
pub fn may_signal(p: &Process, signo: u32) -> Result<(), Errno> {
    let me = &current().process;
    if core::ptr::eq(&**me, p) {
        return Ok(());
    }
    let (mine, theirs) = (me.creds(), p.creds());
    const CAP_KILL: u32 = 5;
    if mine.capable(CAP_KILL)
        || [mine.euid, mine.uid]
            .iter()
            .any(|u| *u == theirs.suid || *u == theirs.uid)
        || signo == SIGCONT && me.sid() == p.sid()
    {
        return Ok(());
    }
    Err(Errno::EPERM)
}

/// Drops what is pending for the running kernel thread, which has no handlers.
pub(in crate::task) fn forget_pending() {
    let me = current();
    let mut s = me.process.sig.lock();
    let gone = flush_all(&mut s, u64::MAX);
    recalc(&s, me);
    drop(s);
    drop(gone);
}

/// Drops `which` from everything pending in the group; the nodes are freed by dropping the result
/// after unlocking.
pub fn flush_group(s: &mut SigState, which: u64) -> Option<Box<Queued>> {
    let gone = flush_all(s, which);
    for t in s.threads() {
        recalc(s, t);
    }
    gone
}

/// What is pending for a thread and its process.
pub fn pending_of(t: &Thread) -> u64 {
    let s = t.process.sig.lock();
    // SAFETY: the process's signal lock is held.
    s.shared.set | unsafe { t.pending.get() }.set
}

/// Signals that wait with their information for a process, or for one thread of it.
pub fn queued(p: &Process, t: Option<&Thread>) -> u32 {
    let s = p.sig.lock();
    match t {
        // SAFETY: the process's signal lock is held.
        Some(t) => unsafe { t.pending.get() }.queued(),
        None => s.shared.queued(),
    }
}
