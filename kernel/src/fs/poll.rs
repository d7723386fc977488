//! Readiness: what a file is ready for, and telling those who watch it.
//!
//! A watchable object owns a `PollQueue`. Watchers register first and look at the state after; the object
//! changes its state first and notifies after: one of the two sees the other. Watchers are held weakly, so a
//! poll that returned leaves nothing but a dead entry, dropped at the next notification or registration.
//! Notifications come from threads, never from interrupt handlers.
#![forbid(unsafe_code)]

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use spin::Mutex as Spin;

use crate::task::{Sleep, WaitError, WaitQueue};

bitflags::bitflags! {
    /// Linux's POLL* bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ready: u32 {
        const IN = 0x1;
        const PRI = 0x2;
        const OUT = 0x4;
        const ERR = 0x8;
        const HUP = 0x10;
        const NVAL = 0x20;
        const RDNORM = 0x40;
        const RDBAND = 0x80;
        const WRNORM = 0x100;
        const WRBAND = 0x200;
        const RDHUP = 0x2000;
    }
}

impl Ready {
    /// Readable, as both bits say it.
    pub const READ: Ready = Ready::IN.union(Ready::RDNORM);
    /// Writable, as both bits say it.
    pub const WRITE: Ready = Ready::OUT.union(Ready::WRNORM);
    /// Reported whether asked for or not.
    pub const ALWAYS: Ready = Ready::ERR.union(Ready::HUP).union(Ready::NVAL);
}

/// Who wants to know of changes.
pub trait Notify: Send + Sync {
    fn notify(&self);
}

/// The watchers of one object.
pub struct PollQueue {
    count: AtomicUsize,
    list: Spin<Vec<Weak<dyn Notify>>>,
}

impl Default for PollQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl PollQueue {
    pub const fn new() -> Self {
        PollQueue {
            count: AtomicUsize::new(0),
            list: Spin::new(Vec::new()),
        }
    }

    /// Adds a watcher, unless it is here already.
    pub fn add(&self, watcher: &Arc<dyn Notify>) {
        let new = Arc::downgrade(watcher);
        let mut list = self.list.lock();
        list.retain(|w| w.strong_count() > 0 && !w.ptr_eq(&new));
        list.push(new);
        self.count.store(list.len(), Ordering::SeqCst);
    }

    /// Tells every watcher. Costs one load when there is none.
    #[inline]
    pub fn notify(&self) {
        if self.count.load(Ordering::SeqCst) != 0 {
            self.notify_all();
        }
    }

    #[cold]
    fn notify_all(&self) {
        // The watchers are called, and possibly dropped, without the lock: an epoll may be one of them and
        // notify in turn.
        let watchers: Vec<Arc<dyn Notify>> = {
            let mut list = self.list.lock();
            list.retain(|w| w.strong_count() > 0);
            self.count.store(list.len(), Ordering::SeqCst);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        for w in &watchers {
            w.notify();
        }
    }
}

/// A thread that waits for the first of several files.
pub struct Poller {
    hit: AtomicBool,
    queue: WaitQueue,
}

impl Poller {
    pub fn new() -> Arc<Self> {
        Arc::new(Poller {
            hit: AtomicBool::new(false),
            queue: WaitQueue::new(),
        })
    }

    /// Sleeps until a notification that came after the last `reset`.
    pub fn wait(&self, deadline: Option<u64>) -> Result<(), WaitError> {
        self.queue.wait_while(Sleep::Interruptible, deadline, || {
            !self.hit.load(Ordering::SeqCst)
        })
    }

    /// Forgets notifications; look at the files after this.
    pub fn reset(&self) {
        self.hit.store(false, Ordering::SeqCst);
    }
}

impl Notify for Poller {
    fn notify(&self) {
        self.hit.store(true, Ordering::SeqCst);
        self.queue.wake_all();
    }
}
