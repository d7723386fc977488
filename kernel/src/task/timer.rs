//! Alarms: a sorted list for each CPU, run by that CPU's timer interrupt.
//!
//! A timer is embedded in what it belongs to. Its callback runs with the list's lock held and
//! interrupts off, so `cancel` returns only when the callback is not running; it may wake threads
//! and send signals, and may not start or cancel timers (it returns the next deadline instead).

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use super::thread::{NORMAL, Thread};
use super::{own::Own, sched};
use crate::arch::{self, MAX_CPUS};
use crate::sync::IrqLock;

const IDLE: u32 = u32::MAX;

struct Links {
    next: *const Timer,
    prev: *const Timer,
    deadline: u64,
}

/// An alarm; inactive until `start`.
pub struct Timer {
    /// The list it is in, or `IDLE`.
    cpu: AtomicU32,
    /// Guarded by the lock of list `cpu`.
    links: Own<Links>,
    /// Called when it expires; the next deadline, or `None`.
    action: fn(&Timer) -> Option<u64>,
    /// For the owner: what the callback works on.
    pub data: UnsafeCell<usize>,
}

// SAFETY: links are guarded by the list's lock; `data` is set before the timer starts.
unsafe impl Send for Timer {}
// SAFETY: as above.
unsafe impl Sync for Timer {}

struct List {
    first: *const Timer,
}

// SAFETY: timers are reached with the lock held only.
unsafe impl Send for List {}

static LISTS: [IrqLock<List>; MAX_CPUS] =
    [const { IrqLock::new(List { first: ptr::null() }) }; MAX_CPUS];

impl Timer {
    pub const fn new(action: fn(&Timer) -> Option<u64>) -> Timer {
        Timer {
            cpu: AtomicU32::new(IDLE),
            links: Own::new(Links {
                next: ptr::null(),
                prev: ptr::null(),
                deadline: 0,
            }),
            action,
            data: UnsafeCell::new(0),
        }
    }

    /// Sets what the callback works on; only while the timer is inactive.
    pub fn set_data(&self, data: usize) {
        // SAFETY: inactive, so no callback reads it.
        unsafe { *self.data.get() = data };
    }

    /// What `set_data` stored.
    pub fn data(&self) -> usize {
        // SAFETY: written while the timer was inactive only.
        unsafe { *self.data.get() }
    }
}

/// Inserts in order of deadline.
///
/// # Safety
/// `list` is locked, `t` is in no list and stays in place until it leaves this one.
unsafe fn insert(list: &mut List, t: &Timer, deadline: u64) {
    // SAFETY: the caller's promise; everything in the list is alive.
    unsafe {
        let mut prev: *const Timer = ptr::null();
        let mut next = list.first;
        while let Some(n) = next.as_ref() {
            if n.links.get().deadline > deadline {
                break;
            }
            prev = next;
            next = n.links.get().next;
        }
        *t.links.get() = Links {
            next,
            prev,
            deadline,
        };
        if let Some(n) = next.as_ref() {
            n.links.get().prev = t;
        }
        match prev.as_ref() {
            Some(p) => p.links.get().next = t,
            None => list.first = t,
        }
    }
}

/// Takes a timer out.
///
/// # Safety
/// `list` is locked and `t` is in it.
unsafe fn remove(list: &mut List, t: &Timer) {
    // SAFETY: the caller's promise.
    unsafe {
        let (prev, next) = (t.links.get().prev, t.links.get().next);
        match prev.as_ref() {
            Some(p) => p.links.get().next = next,
            None => list.first = next,
        }
        if let Some(n) = next.as_ref() {
            n.links.get().prev = prev;
        }
    }
}

/// Starts `t` on this CPU. It must be inactive, and must not move or be freed before `cancel`.
pub fn start(t: &Timer, deadline: u64) {
    let was_on = arch::irq_save();
    let cpu = arch::cpu_id();
    {
        let mut list = LISTS[cpu].lock();
        debug_assert!(t.cpu.load(Ordering::Relaxed) == IDLE);
        // SAFETY: the list is locked, the timer inactive.
        unsafe { insert(&mut list, t, deadline) };
        t.cpu.store(cpu as u32, Ordering::Release);
    }
    sched::alarm_no_later_than(deadline);
    arch::irq_restore(was_on);
}

/// Stops `t`; when this returns its callback does not run. The time left, if it was active.
pub fn cancel(t: &Timer) -> Option<u64> {
    loop {
        let cpu = t.cpu.load(Ordering::Acquire);
        if cpu == IDLE {
            return None;
        }
        let mut list = LISTS[cpu as usize].lock();
        if t.cpu.load(Ordering::Relaxed) == cpu {
            // SAFETY: the list is locked and the timer is in it.
            let deadline = unsafe {
                remove(&mut list, t);
                t.links.get().deadline
            };
            t.cpu.store(IDLE, Ordering::Release);
            return Some(deadline);
        }
    }
}

/// When `t` expires, if it is active.
pub fn deadline_of(t: &Timer) -> Option<u64> {
    let cpu = t.cpu.load(Ordering::Acquire);
    if cpu == IDLE {
        return None;
    }
    let _list = LISTS[cpu as usize].lock();
    // SAFETY: the list is locked.
    (t.cpu.load(Ordering::Relaxed) == cpu).then(|| unsafe { t.links.get().deadline })
}

/// Runs what has expired on this CPU; the next deadline (`u64::MAX`: none). Interrupts off.
pub(super) fn run_expired(cpu: usize, now: u64) -> u64 {
    let mut list = LISTS[cpu].lock();
    loop {
        // SAFETY: the list is locked; what is in it is alive.
        let Some(t) = (unsafe { list.first.as_ref() }) else {
            return u64::MAX;
        };
        // SAFETY: as above.
        let deadline = unsafe { t.links.get().deadline };
        if deadline > now {
            return deadline;
        }
        // SAFETY: as above.
        unsafe { remove(&mut list, t) };
        match (t.action)(t) {
            // SAFETY: locked, and out of the list.
            Some(next) => unsafe { insert(&mut list, t, next) },
            None => t.cpu.store(IDLE, Ordering::Release),
        }
    }
}

/// The first deadline on this CPU. Interrupts off.
pub(super) fn next_deadline(cpu: usize) -> u64 {
    let list = LISTS[cpu].lock();
    // SAFETY: the list is locked.
    unsafe {
        list.first
            .as_ref()
            .map_or(u64::MAX, |t| t.links.get().deadline)
    }
}

/// Callback of `Thread::sleep_timer`.
pub(super) fn wake_sleeper(t: &Timer) -> Option<u64> {
    let offset = core::mem::offset_of!(Thread, sleep_timer);
    // SAFETY: this callback is used for the timer inside a `Thread` only, and a thread cancels its
    // timer before it can go away.
    let thread = unsafe { &*((t as *const Timer as usize - offset) as *const Thread) };
    sched::wake(thread, NORMAL);
    None
}
