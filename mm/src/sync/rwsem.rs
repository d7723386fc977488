//! A sleeping read/write lock, first come first served.
//!
//! `state` counts readers and has two bits: WRITER (held for writing) and WAITERS (the queue is not
//! empty, so nobody overtakes). Waiters queue nodes on their own stacks under `queue`; whoever
//! releases the lock with WAITERS set grants it to the front (one writer, or all readers up to the
//! next writer) before it wakes them: ownership is handed over, never raced for. A granted waiter
//! takes `queue` once before it leaves, so its node and its thread outlive the granter's `unpark`.

use super::Class;
use super::atomic::{AtomicU32, Ordering};
use super::lockdep;
use super::spin::SpinLock;
use crate::hw::{Cpu, Park, Parked, Waiter};
use crate::wait::CanWait;
use core::cell::Cell;
use core::ptr;

const WRITER: u32 = 1 << 31;
const WAITERS: u32 = 1 << 30;
const READERS: u32 = WAITERS - 1;

/// A fatal signal ended the wait; the lock is not held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Killed;

struct Node {
    who: Waiter,
    write: bool,
    granted: AtomicU32,
    next: Cell<*const Node>,
}

struct Queue {
    head: *const Node,
    tail: *const Node,
}

// SAFETY: the nodes are reached only under the queue's lock, and each stays alive until its owner has
// left the queue under that lock (module protocol).
unsafe impl Send for Queue {}

/// The lock; it protects whatever its owner says.
pub struct RwSem {
    state: AtomicU32,
    class: Class,
    queue: SpinLock<Queue>,
}

impl RwSem {
    /// Free.
    pub const fn new(class: Class) -> Self {
        Self {
            state: AtomicU32::new(0),
            class,
            queue: SpinLock::new(
                Class::Wait,
                Queue {
                    head: ptr::null(),
                    tail: ptr::null(),
                },
            ),
        }
    }

    /// Takes it for reading if nobody writes or waits.
    #[inline]
    #[cfg_attr(feature = "lockdep", track_caller)]
    pub fn try_read<H: Cpu>(&self, hw: H) -> bool {
        let got = self.enter_read();
        if got {
            lockdep::acquired_at_once(hw, self.class);
        }
        got
    }
    #[inline]
    fn enter_read(&self) -> bool {
        let mut s = self.state.load(Ordering::Relaxed);
        while s & (WRITER | WAITERS) == 0 {
            match self
                .state
                .compare_exchange_weak(s, s + 1, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => s = now,
            }
        }
        false
    }
    /// Takes it for writing if it is free.
    #[inline]
    #[cfg_attr(feature = "lockdep", track_caller)]
    pub fn try_write<H: Cpu>(&self, hw: H) -> bool {
        let got = self.enter_write();
        if got {
            lockdep::acquired_at_once(hw, self.class);
        }
        got
    }
    #[inline]
    fn enter_write(&self) -> bool {
        self.state
            .compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }
    /// Sleeps until held for reading, or a fatal signal if `how` says so.
    #[inline]
    #[cfg_attr(feature = "lockdep", track_caller)]
    pub fn read<H: Cpu>(&self, wait: &mut CanWait<H>, how: Park) -> Result<(), Killed> {
        lockdep::acquire(wait.hw(), self.class);
        if self.enter_read() {
            return Ok(());
        }
        let got = self.slow(wait, false, how);
        if got.is_err() {
            lockdep::release(wait.hw(), self.class);
        }
        got
    }
    /// Sleeps until held for writing, or a fatal signal if `how` says so.
    #[inline]
    #[cfg_attr(feature = "lockdep", track_caller)]
    pub fn write<H: Cpu>(&self, wait: &mut CanWait<H>, how: Park) -> Result<(), Killed> {
        lockdep::acquire(wait.hw(), self.class);
        if self.enter_write() {
            return Ok(());
        }
        let got = self.slow(wait, true, how);
        if got.is_err() {
            lockdep::release(wait.hw(), self.class);
        }
        got
    }
    /// Releases a read hold.
    #[inline]
    pub fn unlock_read<H: Cpu>(&self, hw: H) {
        lockdep::release(hw, self.class);
        let s = self.state.fetch_sub(1, Ordering::Release) - 1;
        if s & WAITERS != 0 && s & READERS == 0 {
            self.hand_over(hw);
        }
    }
    /// Releases a write hold.
    #[inline]
    pub fn unlock_write<H: Cpu>(&self, hw: H) {
        lockdep::release(hw, self.class);
        let s = self.state.fetch_and(!WRITER, Ordering::Release);
        if s & WAITERS != 0 {
            self.hand_over(hw);
        }
    }
    /// Turns a write hold into a read hold.
    pub fn downgrade<H: Cpu>(&self, hw: H) {
        let s = self
            .state
            .fetch_sub(WRITER - 1, Ordering::Release)
            .wrapping_sub(WRITER - 1);
        if s & WAITERS != 0 {
            self.hand_over(hw);
        }
    }
    /// Whether somebody waits: a holder with long work may want to let go.
    pub fn contended(&self) -> bool {
        self.state.load(Ordering::Relaxed) & WAITERS != 0
    }
    /// Whether anybody holds it for writing.
    pub fn is_write_held(&self) -> bool {
        self.state.load(Ordering::Relaxed) & WRITER != 0
    }

    #[cold]
    fn slow<H: Cpu>(&self, wait: &mut CanWait<H>, write: bool, how: Park) -> Result<(), Killed> {
        let hw = wait.hw();
        let node = Node {
            who: hw.waiter(),
            write,
            granted: AtomicU32::new(0),
            next: Cell::new(ptr::null()),
        };
        debug_assert_eq!(node.granted.load(Ordering::Relaxed), 0);
        {
            let mut q = self.queue.lock(hw);
            if q.head.is_null() {
                q.head = &node;
            } else {
                // SAFETY: queued nodes are alive while we hold the queue (module protocol).
                unsafe { (*q.tail).next.set(&node) };
            }
            q.tail = &node;
            self.state.fetch_or(WAITERS, Ordering::Relaxed);
            // The holder may have left before it could see WAITERS.
            self.grant(&mut q, hw);
        }
        loop {
            if node.granted.load(Ordering::Acquire) != 0 {
                drop(self.queue.lock(hw)); // the granter is done with `node`
                return Ok(());
            }
            if hw.park(how) == Parked::Killed {
                let mut q = self.queue.lock(hw);
                if node.granted.load(Ordering::Acquire) != 0 {
                    return Ok(());
                }
                unlink(&mut q, &node);
                if q.head.is_null() {
                    self.state.fetch_and(!WAITERS, Ordering::Relaxed);
                }
                // Readers behind a writer that gave up may go now.
                self.grant(&mut q, hw);
                return Err(Killed);
            }
        }
    }

    #[cold]
    fn hand_over<H: Cpu>(&self, hw: H) {
        let mut q = self.queue.lock(hw);
        self.grant(&mut q, hw);
    }

    /// Gives the lock to the front of the queue as far as it is free. WAITERS keeps others out.
    fn grant<H: Cpu>(&self, q: &mut Queue, hw: H) {
        while !q.head.is_null() {
            // SAFETY: queued nodes are alive while we hold the queue (module protocol).
            let node = unsafe { &*q.head };
            let s = self.state.load(Ordering::Relaxed);
            if s & WRITER != 0 || (node.write && s & READERS != 0) {
                return;
            }
            let next = node.next.get();
            q.head = next;
            let mut to = if node.write { s | WRITER } else { s + 1 };
            if next.is_null() {
                to &= !WAITERS;
            }
            // Only departures can race with us: nobody enters past WAITERS. A lost race is re-read.
            if self
                .state
                .compare_exchange(s, to, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
            {
                q.head = node;
                continue;
            }
            if next.is_null() {
                q.tail = ptr::null();
            }
            let who = node.who;
            node.granted.store(1, Ordering::Release);
            hw.unpark(who);
        }
    }
}

fn unlink(q: &mut Queue, node: &Node) {
    let mut prev: *const Node = ptr::null();
    let mut at = q.head;
    while !at.is_null() {
        // SAFETY: queued nodes are alive while we hold the queue (module protocol).
        let n = unsafe { &*at };
        if ptr::eq(n, node) {
            if prev.is_null() {
                q.head = n.next.get();
            } else {
                // SAFETY: as above.
                unsafe { (*prev).next.set(n.next.get()) };
            }
            if ptr::eq(q.tail, node) {
                q.tail = prev;
            }
            return;
        }
        prev = at;
        at = n.next.get();
    }
}
