//! Who runs where: one run queue for each CPU, round robin, idle CPUs pull.
//!
//! A run queue's lock is taken with interrupts off and held across the switch: it is released by
//! the thread that comes to run (`finish_switch`). A thread's `on_rq` and the decision to leave the
//! CPU are made under the lock of the queue `thread.cpu`; `thread.cpu` changes only while the
//! thread is runnable and in no queue, by whoever took it out.
//! An idle CPU announces itself in `IDLE` before it looks at the other queues a last time and
//! halts with `sti; hlt`; a waker enqueues first and looks at `IDLE` afterwards.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use super::acct::TICK_NS;
use super::thread::{DEAD, RUNNING, Thread};
use super::{WORK_RESCHED, acct, clone, current, switch, timer};
use crate::arch::{self, MAX_CPUS};

/// How long a thread runs while others wait.
const SLICE_NS: u64 = 4_000_000;

/// CPUs that have nothing to run.
static IDLE: AtomicU64 = AtomicU64::new(0);
/// CPUs whose scheduler runs.
static ONLINE: AtomicU64 = AtomicU64::new(0);

/// One CPU's run queue.
#[repr(align(64))]
pub(super) struct RunQueue {
    locked: AtomicBool,
    /// Threads in the queue (the running one is not).
    queued: AtomicU32,
    inner: UnsafeCell<Inner>,
}

pub(super) struct Inner {
    head: *const Thread,
    tail: *const Thread,
    pub(super) idle: *const Thread,
    /// The thread that was switched away from; for `finish_switch`.
    prev: *const Thread,
    /// It is runnable but may not run on this CPU any more.
    homeless: bool,
    /// When the running thread got the CPU.
    slice_start: u64,
    /// The alarm that is set in the local APIC.
    alarm: u64,
    ticks: u32,
    pub(super) local: switch::Local,
}

// SAFETY: `inner` is touched with `locked` held, or (alarm, ticks, local) by its own CPU with
// interrupts off.
unsafe impl Sync for RunQueue {}

static QUEUES: [RunQueue; MAX_CPUS] = [const {
    RunQueue {
        locked: AtomicBool::new(false),
        queued: AtomicU32::new(0),
        inner: UnsafeCell::new(Inner {
            head: ptr::null(),
            tail: ptr::null(),
            idle: ptr::null(),
            prev: ptr::null(),
            homeless: false,
            slice_start: 0,
            alarm: u64::MAX,
            ticks: 0,
            local: switch::Local::new(),
        }),
    }
}; MAX_CPUS];

impl RunQueue {
    fn try_lock(&self) -> bool {
        !self.locked.swap(true, Ordering::Acquire)
    }

    fn lock(&self) {
        while !self.try_lock() {
            while self.locked.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        }
    }

    fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }

    /// The guarded part: used with the queue locked, or its CPU's own fields with interrupts off.
    fn inner(&self) -> *mut Inner {
        self.inner.get()
    }

    /// Appends a runnable thread.
    ///
    /// # Safety
    /// The queue is locked; `t` is alive, `on_rq` and in no queue.
    unsafe fn push(&self, t: &Thread) {
        // SAFETY: the caller's promise.
        unsafe {
            let q = &mut *self.inner();
            let l = t.sched.get();
            l.next = ptr::null();
            l.prev = q.tail;
            match q.tail.as_ref() {
                Some(last) => last.sched.get().next = t,
                None => q.head = t,
            }
            q.tail = t;
        }
        self.queued
            .store(self.queued.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Takes a queued thread out.
    ///
    /// # Safety
    /// The queue is locked and `t` is in it.
    unsafe fn remove(&self, t: &Thread) {
        // SAFETY: the caller's promise.
        unsafe {
            let q = &mut *self.inner();
            let (prev, next) = (t.sched.get().prev, t.sched.get().next);
            match prev.as_ref() {
                Some(p) => p.sched.get().next = next,
                None => q.head = next,
            }
            match next.as_ref() {
                Some(n) => n.sched.get().prev = prev,
                None => q.tail = prev,
            }
        }
        self.queued
            .store(self.queued.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// The first thread that may run on `cpu`, taken out.
    ///
    /// # Safety
    /// The queue is locked.
    unsafe fn take_for(&self, cpu: usize) -> Option<&'static Thread> {
        // SAFETY: the caller's promise; queued threads are alive.
        unsafe {
            let mut t = (*self.inner()).head;
            while let Some(thread) = t.as_ref() {
                if thread.affinity.load(Ordering::Relaxed) & (1 << cpu) != 0 {
                    self.remove(thread);
                    return Some(thread);
                }
                t = thread.sched.get().next;
            }
            None
        }
    }
}

/// This CPU's queue. Interrupts are off, or the caller accepts a hint.
#[inline]
fn this_rq() -> &'static RunQueue {
    &QUEUES[arch::cpu_id()]
}

/// CPUs whose scheduler runs.
pub fn online() -> u64 {
    ONLINE.load(Ordering::Relaxed)
}

/// Runnable threads, the running ones included (`/proc/loadavg`, `/proc/stat`).
pub fn runnable() -> usize {
    let online = online();
    let queued: u32 = QUEUES
        .iter()
        .map(|q| q.queued.load(Ordering::Relaxed))
        .sum();
    queued as usize + (online & !IDLE.load(Ordering::Relaxed)).count_ones() as usize
}

/// Makes `t` runnable if it sleeps in one of the states of `mask`. True when this call woke it.
/// `t` is alive: the caller holds a reference or a lock that `t` takes before it goes away.
pub fn wake(t: &Thread, mask: u32) -> bool {
    fence(Ordering::SeqCst);
    if t.state.load(Ordering::Relaxed) & mask == 0 {
        return false;
    }
    let was_on = arch::irq_save();
    let woken = loop {
        let home = t.cpu.load(Ordering::Acquire) as usize;
        let rq = &QUEUES[home];
        rq.lock();
        if t.cpu.load(Ordering::Relaxed) as usize != home {
            rq.unlock();
            continue;
        }
        let state = t.state.load(Ordering::Relaxed);
        if state & mask == 0
            || t.state
                .compare_exchange(state, RUNNING, Ordering::SeqCst, Ordering::Relaxed)
                .is_err()
        {
            // The only other writer is the thread itself, which no longer wants to sleep.
            rq.unlock();
            break false;
        }
        // SAFETY: the lock of queue `t.cpu` is held.
        let l = unsafe { t.sched.get() };
        if l.on_rq {
            // Still on its CPU: it finds itself running.
            rq.unlock();
            break true;
        }
        l.on_rq = true;
        let target = select(t, home);
        if target == home {
            // SAFETY: locked; the thread is runnable and in no queue.
            unsafe { rq.push(t) };
            rq.unlock();
        } else {
            rq.unlock();
            enqueue(t, target);
            break true;
        }
        kick(t, target);
        break true;
    };
    arch::irq_restore(was_on);
    woken
}

/// Whether a sleeping thread's registers are saved: it has left its CPU. True lasts until it is woken.
pub(super) fn has_left_cpu(t: &Thread) -> bool {
    let was_on = arch::irq_save();
    let left = loop {
        let home = t.cpu.load(Ordering::Acquire) as usize;
        let rq = &QUEUES[home];
        rq.lock();
        if t.cpu.load(Ordering::Relaxed) as usize == home {
            // SAFETY: the lock of queue `t.cpu` is held, from before a switch until after it.
            let left = !unsafe { t.sched.get() }.on_rq;
            rq.unlock();
            break left;
        }
        rq.unlock();
    };
    arch::irq_restore(was_on);
    left
}

/// Where a thread that was last on `home` should run.
fn select(t: &Thread, home: usize) -> usize {
    let allowed = t.affinity.load(Ordering::Relaxed) & online();
    let idle = IDLE.load(Ordering::Relaxed) & allowed;
    if idle & (1 << home) != 0 {
        return home;
    }
    if idle != 0 {
        return idle.trailing_zeros() as usize;
    }
    if allowed & (1 << home) != 0 || allowed == 0 {
        return home;
    }
    allowed.trailing_zeros() as usize
}

/// Puts a runnable thread that is in no queue into the queue of `cpu`. Interrupts off.
fn enqueue(t: &Thread, cpu: usize) {
    let rq = &QUEUES[cpu];
    rq.lock();
    t.cpu.store(cpu as u32, Ordering::Release);
    // SAFETY: locked; the caller owns the runnable thread.
    unsafe { rq.push(t) };
    rq.unlock();
    kick(t, cpu);
}

/// After an enqueue on `cpu`: makes that CPU, or an idle one, look.
fn kick(t: &Thread, cpu: usize) {
    fence(Ordering::SeqCst);
    let idle = IDLE.load(Ordering::Relaxed);
    if idle == 0 {
        return;
    }
    let here = arch::cpu_id();
    let wanted = if idle & (1 << cpu) != 0 {
        cpu
    } else {
        let others = idle & t.affinity.load(Ordering::Relaxed);
        if others == 0 {
            return;
        }
        others.trailing_zeros() as usize
    };
    if wanted != here {
        arch::send_resched(wanted);
    } else {
        // An interrupt handler woke somebody over an idle loop; it looks again after the handler.
        current().set_work(WORK_RESCHED);
    }
}

/// Starts a new thread. The scheduler takes over one reference, given back when it is dead.
pub(super) fn start(t: alloc::sync::Arc<Thread>) {
    let raw = alloc::sync::Arc::into_raw(t);
    // SAFETY: the reference just leaked keeps it alive.
    let t = unsafe { &*raw };
    let was_on = arch::irq_save();
    let here = arch::cpu_id();
    // SAFETY: nobody else knows the thread's scheduler state yet.
    unsafe { t.sched.get().on_rq = true };
    let allowed = t.affinity.load(Ordering::Relaxed) & online();
    let idle = IDLE.load(Ordering::Relaxed) & allowed;
    let target = if idle != 0 {
        idle.trailing_zeros() as usize
    } else {
        least_loaded(allowed).unwrap_or(here)
    };
    enqueue(t, target);
    arch::irq_restore(was_on);
}

fn least_loaded(allowed: u64) -> Option<usize> {
    (0..arch::ncpus())
        .filter(|c| allowed & (1 << c) != 0)
        .min_by_key(|&c| {
            (
                QUEUES[c].queued.load(Ordering::Relaxed),
                c != arch::cpu_id(),
            )
        })
}

/// Gives up the CPU: for good if the thread's state says so, else to whoever waits.
/// Interrupts are on, no lock is held.
pub fn schedule() {
    mm::sync::lockdep::may_sleep(arch::X86);
    let was_on = arch::irq_save();
    debug_assert!(was_on);
    let cpu = arch::cpu_id();
    let rq = &QUEUES[cpu];
    let prev = current();
    rq.lock();
    let q = rq.inner();
    prev.work.fetch_and(!WORK_RESCHED, Ordering::Relaxed);
    // SAFETY: locked.
    let idle = unsafe { (*q).idle };
    let is_idle = ptr::eq(prev, idle);
    let state = prev.state.load(Ordering::SeqCst);
    if state != RUNNING {
        // SAFETY: the lock of queue `prev.cpu` is held.
        unsafe { prev.sched.get().on_rq = false };
    } else if rq.queued.load(Ordering::Relaxed) == 0
        && prev.affinity.load(Ordering::Relaxed) & (1 << cpu) != 0
    {
        // Nobody else wants to run.
        rq.unlock();
        arch::irq_restore(was_on);
        return;
    }
    // SAFETY: locked.
    let next = unsafe {
        match rq.take_for(cpu) {
            Some(t) => t,
            None => match steal_locked(cpu) {
                Some(t) => t,
                None => &*idle,
            },
        }
    };
    let mut homeless = false;
    if state == RUNNING && !is_idle {
        homeless = prev.affinity.load(Ordering::Relaxed) & (1 << cpu) == 0;
        if !homeless {
            // SAFETY: locked; it is runnable and in no queue.
            unsafe { rq.push(prev) };
        }
    }
    if ptr::eq(prev, next) {
        // Only the idle thread: another thread is taken only if it was queued.
        rq.unlock();
        arch::irq_restore(was_on);
        return;
    }
    let now = arch::time::now_ns();
    acct::switched(prev, next, now, state == RUNNING);
    // SAFETY: locked, own CPU.
    let q = unsafe { &mut *q };
    q.slice_start = now;
    q.prev = prev;
    q.homeless = homeless;
    if ptr::eq(next, idle) {
        IDLE.fetch_or(1 << cpu, Ordering::SeqCst);
    } else if is_idle {
        IDLE.fetch_and(!(1 << cpu), Ordering::SeqCst);
        alarm_at_most(q, now + TICK_NS);
    } else if q.alarm == u64::MAX {
        alarm_at_most(q, now + TICK_NS);
    }
    // SAFETY: interrupts are off, the queue is locked, `next` is alive, runnable and in no queue.
    unsafe { switch::switch_to(&mut q.local, cpu, prev, next) };
    // SAFETY: we are the thread that came to run.
    unsafe { finish_switch() };
}

/// The second half of a switch, on the new thread's stack: releases the queue, turns interrupts on,
/// and buries a thread that has ended.
///
/// # Safety
/// Called once after each switch by the thread that was switched to, interrupts off.
pub(super) unsafe fn finish_switch() {
    let cpu = arch::cpu_id();
    let rq = &QUEUES[cpu];
    // SAFETY: the queue is still locked from before the switch.
    let (prev, homeless) = unsafe {
        let q = &mut *rq.inner();
        (&*core::mem::replace(&mut q.prev, ptr::null()), q.homeless)
    };
    let dead = prev.state.load(Ordering::Relaxed) == DEAD;
    rq.unlock();
    if homeless {
        // It may no longer run here and was left out of the queue.
        enqueue(prev, select(prev, cpu));
    }
    arch::irq_enable();
    if dead {
        clone::bury(prev);
    }
}

/// A thread of another queue that may run here; our own queue is locked, so the others are only
/// tried.
fn steal_locked(cpu: usize) -> Option<&'static Thread> {
    for step in 1..arch::ncpus() {
        let victim = (cpu + step) % arch::ncpus();
        let other = &QUEUES[victim];
        if other.queued.load(Ordering::Relaxed) == 0 || !other.try_lock() {
            continue;
        }
        // SAFETY: locked.
        let found = unsafe { other.take_for(cpu) };
        other.unlock();
        if let Some(t) = found {
            t.cpu.store(cpu as u32, Ordering::Release);
            return Some(t);
        }
    }
    None
}

/// Moves one thread here when another CPU has at least two more than we.
fn pull() {
    let was_on = arch::irq_save();
    let cpu = arch::cpu_id();
    let mine = QUEUES[cpu].queued.load(Ordering::Relaxed);
    let busiest = (0..arch::ncpus())
        .filter(|&c| c != cpu)
        .max_by_key(|&c| QUEUES[c].queued.load(Ordering::Relaxed));
    if let Some(b) = busiest.filter(|&b| QUEUES[b].queued.load(Ordering::Relaxed) > mine + 1) {
        let other = &QUEUES[b];
        other.lock();
        // SAFETY: locked.
        let found = unsafe { other.take_for(cpu) };
        other.unlock();
        if let Some(t) = found {
            enqueue(t, cpu);
        }
    }
    arch::irq_restore(was_on);
}

/// What `WORK_RESCHED` asks for, on the way to user mode or at a yield point.
pub(super) fn resched_point() {
    let due = {
        let was_on = arch::irq_save();
        // SAFETY: own CPU, interrupts off.
        let due = unsafe { (*this_rq().inner()).ticks } & 15 == 0;
        arch::irq_restore(was_on);
        due
    };
    if due && arch::ncpus() > 1 {
        pull();
    }
    schedule();
}

/// Lets others run now.
pub fn yield_now() {
    schedule();
}

/// A named yield point: runs others if the slice is over. Holding no lock.
#[inline]
pub fn cond_resched() {
    if super::try_current().is_some_and(|t| t.work.load(Ordering::Relaxed) & WORK_RESCHED != 0) {
        resched_point();
    }
}

/// Makes a thread leave a CPU that it may no longer use.
pub fn affinity_changed(t: &Thread) {
    if t.is_current() {
        schedule();
    } else {
        let cpu = t.cpu.load(Ordering::Acquire) as usize;
        if t.affinity.load(Ordering::Relaxed) & (1 << cpu) != 0 {
            return;
        }
        let was_on = arch::irq_save();
        let rq = &QUEUES[cpu];
        rq.lock();
        // SAFETY: locked.
        let moved = unsafe {
            let mut p = (*rq.inner()).head;
            while !p.is_null() && !ptr::eq(p, t) {
                p = (*p).sched.get().next;
            }
            let found = !p.is_null();
            if found {
                rq.remove(t);
            }
            found
        };
        rq.unlock();
        if moved {
            enqueue(t, select(t, cpu));
        } else {
            // It runs there: its next look at `work` makes it leave.
            t.set_work(WORK_RESCHED);
            if cpu != arch::cpu_id() {
                arch::send_resched(cpu);
            }
        }
        arch::irq_restore(was_on);
    }
}

/// Makes a running thread look at its `work` soon.
pub(super) fn kick_thread(t: &Thread) {
    let was_on = arch::irq_save();
    let cpu = t.cpu.load(Ordering::Acquire) as usize;
    if cpu != arch::cpu_id() && t.state.load(Ordering::Relaxed) == RUNNING {
        arch::send_resched(cpu);
    }
    arch::irq_restore(was_on);
}

fn alarm_at_most(q: &mut Inner, deadline: u64) {
    if deadline < q.alarm {
        q.alarm = deadline;
        arch::time::set_timer(deadline);
    }
}

/// A timer was added on this CPU. Interrupts off.
pub(super) fn alarm_no_later_than(deadline: u64) {
    // SAFETY: own CPU, interrupts off; `alarm` is used by its own CPU only.
    let q = unsafe { &mut *this_rq().inner() };
    alarm_at_most(q, deadline);
}

/// The timer interrupt; `user` says what it interrupted. Interrupts off.
pub fn on_timer(user: bool) {
    let Some(me) = super::try_current() else {
        return;
    };
    let cpu = arch::cpu_id();
    let rq = &QUEUES[cpu];
    let now = arch::time::now_ns();
    let mut next = timer::run_expired(cpu, now);
    // SAFETY: own CPU, interrupts off; the fields used below belong to this CPU.
    let q = unsafe { &mut *rq.inner() };
    let idle = ptr::eq(me, q.idle);
    if !idle {
        q.ticks = q.ticks.wrapping_add(1);
        acct::tick(me, user);
        if rq.queued.load(Ordering::Relaxed) > 0 {
            if now.saturating_sub(q.slice_start) + SLICE_NS / 4 >= SLICE_NS {
                me.work.fetch_or(WORK_RESCHED, Ordering::Relaxed);
            }
            let idlers = IDLE.load(Ordering::Relaxed);
            if idlers != 0 {
                arch::send_resched(idlers.trailing_zeros() as usize);
            }
        } else if q.ticks & 15 == 0 && arch::ncpus() > 1 {
            me.work.fetch_or(WORK_RESCHED, Ordering::Relaxed);
        }
        next = next.min(now + TICK_NS);
    } else {
        acct::idle_tick(cpu);
    }
    q.alarm = next;
    arch::time::set_timer(next);
}

/// The end of boot on each CPU: this stack becomes the idle thread's.
pub fn start_scheduler(cpu: usize) -> ! {
    arch::irq_disable();
    let idle = clone::new_idle(cpu);
    idle.cpu.store(cpu as u32, Ordering::Relaxed);
    // SAFETY: nothing else runs on this CPU and the thread is new.
    unsafe {
        idle.sched.get().on_rq = true;
        (*QUEUES[cpu].inner()).idle = idle;
    }
    arch::set_current((idle as *const Thread).cast_mut().cast(), &idle.work);
    IDLE.fetch_or(1 << cpu, Ordering::SeqCst);
    ONLINE.fetch_or(1 << cpu, Ordering::SeqCst);
    if cpu == 0 {
        arch::irq_enable();
        super::init::start();
    }
    idle_loop(cpu)
}

/// Runs when nothing else does.
fn idle_loop(cpu: usize) -> ! {
    let rq = &QUEUES[cpu];
    loop {
        arch::irq_disable();
        if rq.queued.load(Ordering::Relaxed) == 0 && !others_have_work(cpu) {
            let next = timer::next_deadline(cpu);
            // SAFETY: own CPU, interrupts off.
            let q = unsafe { &mut *rq.inner() };
            if next < q.alarm {
                alarm_at_most(q, next);
            }
            acct::idle_begin(cpu);
            arch::halt_until_interrupt();
            acct::idle_end(cpu);
        }
        arch::irq_enable();
        current().work.fetch_and(!WORK_RESCHED, Ordering::Relaxed);
        if rq.queued.load(Ordering::Relaxed) == 0 {
            arch::irq_disable();
            if let Some(t) = steal_unlocked(cpu) {
                enqueue(t, cpu);
            }
            arch::irq_enable();
        }
        schedule();
    }
}

/// Whether another queue holds something that may run here. `IDLE` already shows this CPU.
fn others_have_work(cpu: usize) -> bool {
    fence(Ordering::SeqCst);
    (0..arch::ncpus()).any(|c| {
        let other = &QUEUES[c];
        if c == cpu || other.queued.load(Ordering::Relaxed) == 0 {
            return false;
        }
        other.lock();
        // SAFETY: locked; queued threads are alive.
        let found = unsafe {
            let mut p = (*other.inner()).head;
            while let Some(t) = p.as_ref() {
                if t.affinity.load(Ordering::Relaxed) & (1 << cpu) != 0 {
                    break;
                }
                p = t.sched.get().next;
            }
            !p.is_null()
        };
        other.unlock();
        found
    })
}

/// As `steal_locked`, with no queue locked. Interrupts off.
fn steal_unlocked(cpu: usize) -> Option<&'static Thread> {
    (1..arch::ncpus()).find_map(|step| {
        let other = &QUEUES[(cpu + step) % arch::ncpus()];
        if other.queued.load(Ordering::Relaxed) == 0 {
            return None;
        }
        other.lock();
        // SAFETY: locked.
        let found = unsafe { other.take_for(cpu) };
        other.unlock();
        found
    })
}
