//! Waiting for a signal without running its handler: `rt_sigtimedwait`.

use core::sync::atomic::Ordering;

use mm::Errno;

use super::send::recalc;
use super::{SigInfo, UNBLOCKABLE};
use crate::task::current;
use crate::task::wait::{Sleep, sleep_until};

/// Takes a pending signal of `set`, waiting until `deadline` (`None`: for ever).
pub fn timed_wait(set: u64, deadline: Option<u64>) -> Result<SigInfo, Errno> {
    let me = current();
    let set = set & !UNBLOCKABLE;
    loop {
        let mut s = me.process.sig.lock();
        // SAFETY: the process's signal lock is held.
        let taken = match unsafe { me.pending.get() }.take(set) {
            Some(t) => Some(t),
            None => s.shared.take(set),
        };
        if let Some((info, node)) = taken {
            me.waiting_for.store(0, Ordering::Relaxed);
            recalc(&s, me);
            drop(s);
            drop(node);
            return Ok(info);
        }
        let had = me.waiting_for.swap(set, Ordering::Relaxed) != 0;
        recalc(&s, me);
        drop(s);
        if deadline.is_some_and(|d| crate::arch::time::now_ns() >= d) {
            me.waiting_for.store(0, Ordering::Relaxed);
            return Err(Errno::EAGAIN);
        }
        if had && crate::task::signal_pending() {
            // Woken by something: one more look was taken above.
            me.waiting_for.store(0, Ordering::Relaxed);
            return Err(Errno::EINTR);
        }
        let _ = sleep_until(Sleep::Interruptible, deadline);
    }
}
