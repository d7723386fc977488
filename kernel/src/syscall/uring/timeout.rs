//! Timeouts of rings, kept by the kernel's thread for deferred things: it sleeps until the first is due.
#![forbid(unsafe_code)]

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use spin::Mutex as Spin;

use super::queues::Queues;
use crate::arch::time::now_ns;
use mm::Errno;

/// One timeout.
pub struct Timeout {
    pub user_data: u64,
    /// In nanoseconds of the monotonic clock.
    pub deadline: u64,
    /// The number of the completion that ends it earlier.
    pub target: Option<u64>,
}

impl Timeout {
    pub fn counted(&self, posted: u64) -> bool {
        self.target.is_some_and(|target| posted >= target)
    }
}

/// Rings that have had a timeout.
static RINGS: Spin<Vec<Weak<Queues>>> = Spin::new(Vec::new());
static CHANGED: AtomicBool = AtomicBool::new(false);

/// The ring will have timeouts: they will be looked for. EAGAIN.
pub fn keep(queues: &Arc<Queues>) -> Result<(), Errno> {
    if queues.kept.load(SeqCst) {
        return Ok(());
    }
    let mut rings = RINGS.lock();
    if !queues.kept.load(SeqCst) {
        rings.try_reserve(1).map_err(|_| Errno::EAGAIN)?;
        rings.push(Arc::downgrade(queues));
        queues.kept.store(true, SeqCst);
    }
    Ok(())
}

/// A ring that is kept has a new timeout.
pub fn added() {
    CHANGED.store(true, SeqCst);
    crate::task::signal::wake_deferred();
}

/// A ring is gone. Those behind it have other places now, so whoever walks the list may miss one: he walks it again.
pub fn forget() {
    let mut rings = RINGS.lock();
    rings.retain(|ring| ring.strong_count() > 0);
    if rings.is_empty() {
        *rings = Vec::new();
    }
    drop(rings);
    added();
}

/// Whether there is something new since `run` began.
pub fn changed() -> bool {
    CHANGED.load(SeqCst)
}

/// Ends what is due; when the next timeout is.
pub fn run() -> Option<u64> {
    CHANGED.store(false, SeqCst);
    let mut next = u64::MAX;
    let mut i = 0;
    loop {
        let ring = match RINGS.lock().get(i) {
            Some(ring) => ring.upgrade(),
            None => break,
        };
        if let Some(queues) = ring {
            queues.expire(now_ns());
            next = next.min(queues.due.load(SeqCst));
        }
        i += 1;
    }
    (next != u64::MAX).then_some(next)
}
