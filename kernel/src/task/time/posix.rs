//! `timer_create` and its kind, with signals (SIGEV_SIGNAL, SIGEV_THREAD_ID) or none.
//!
//! An expiry sends a signal with information that was allocated beforehand. While that signal is
//! pending, further expiries only count; delivery takes the count and allocates anew.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm::Errno;

use crate::arch::time::now_ns;
use crate::sync::IrqLock;
use crate::task::current;
use crate::task::process::Process;
use crate::task::signal::{self, Queued, SigInfo};
use crate::task::thread::Thread;
use crate::task::timer::{self, Timer};

const MAX: usize = 256;

/// One timer.
struct PosixTimer {
    timer: Timer,
    process: *const Process,
    thread: Option<Arc<Thread>>,
    id: u32,
    /// 0: no signal.
    signo: u32,
    value: u64,
    is_date: bool,
    interval: AtomicU64,
    /// Expiries that found their signal still pending.
    missed: AtomicU32,
    /// What `timer_getoverrun` reports.
    last_overrun: AtomicU32,
    node: IrqLock<Option<Box<Queued>>>,
}

// SAFETY: `process` owns the timer and clears it before its last thread ends.
unsafe impl Send for PosixTimer {}
// SAFETY: as above.
unsafe impl Sync for PosixTimer {}

/// A process's timers by number.
pub struct PosixTimers {
    list: Vec<Option<Arc<PosixTimer>>>,
}

impl Default for PosixTimers {
    fn default() -> Self {
        PosixTimers::new()
    }
}

impl PosixTimers {
    pub const fn new() -> Self {
        PosixTimers { list: Vec::new() }
    }
}

fn expired(t: &Timer) -> Option<u64> {
    let offset = core::mem::offset_of!(PosixTimer, timer);
    // SAFETY: this callback is used for the timer inside a `PosixTimer` only.
    let pt = unsafe { &*((t as *const Timer as usize - offset) as *const PosixTimer) };
    if pt.signo != 0 {
        let node = pt.node.lock().take();
        match node {
            Some(node) => {
                // SAFETY: see the type.
                let p = unsafe { &*pt.process };
                if let Some(back) =
                    signal::send::send_prepared(p, pt.thread.as_deref(), pt.signo, node)
                {
                    *pt.node.lock() = Some(back);
                    pt.missed.fetch_add(1, Ordering::Relaxed);
                }
            }
            None => {
                pt.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let interval = pt.interval.load(Ordering::Relaxed);
    (interval != 0).then(|| now_ns() + interval)
}

/// How a new timer tells.
pub struct Notify {
    /// 0: not at all.
    pub signo: u32,
    /// `sigev_value`; `None`: the timer's number.
    pub value: Option<u64>,
    pub thread: Option<Arc<Thread>>,
}

/// A new timer; its number.
pub fn create(is_date: bool, how: Notify) -> Result<u32, Errno> {
    crate::memory::headroom().map_err(|_| Errno::EAGAIN)?;
    let p = &current().process;
    let mut timers = p.timers.lock();
    let id = match timers.list.iter().position(Option::is_none) {
        Some(i) => i,
        None if timers.list.len() < MAX => {
            timers.list.try_reserve(1).map_err(|_| Errno::EAGAIN)?;
            timers.list.push(None);
            timers.list.len() - 1
        }
        None => return Err(Errno::EAGAIN),
    };
    let value = how.value.unwrap_or(id as u64);
    timers.list[id] = Some(Arc::new(PosixTimer {
        timer: Timer::new(expired),
        process: &**p,
        thread: how.thread,
        id: id as u32,
        signo: how.signo,
        value,
        is_date,
        interval: AtomicU64::new(0),
        missed: AtomicU32::new(0),
        last_overrun: AtomicU32::new(0),
        node: IrqLock::new(Some(Queued::new(SigInfo::timer(
            how.signo, id as u32, 0, value,
        )))),
    }));
    Ok(id as u32)
}

fn find(p: &Process, id: u32) -> Result<Arc<PosixTimer>, Errno> {
    let timers = p.timers.lock();
    timers
        .list
        .get(id as usize)
        .and_then(Option::clone)
        .ok_or(Errno::EINVAL)
}

/// Sets a timer; what was left and the old interval. `value` 0 stops it.
pub fn set(id: u32, absolute: bool, value: u64, interval: u64) -> Result<(u64, u64), Errno> {
    let p = &current().process;
    let t = find(p, id)?;
    let _one = p.timers.lock();
    let left = timer::cancel(&t.timer).map_or(0, |d| d.saturating_sub(now_ns()).max(1));
    let old = t.interval.swap(interval, Ordering::Relaxed);
    t.missed.store(0, Ordering::Relaxed);
    if value != 0 {
        let deadline = match (absolute, t.is_date) {
            (true, true) => super::monotonic_of(value),
            (true, false) => value,
            (false, _) => now_ns().saturating_add(value),
        };
        timer::start(&t.timer, deadline);
    }
    Ok((left, old))
}

/// Time left and interval.
pub fn get(id: u32) -> Result<(u64, u64), Errno> {
    let t = find(&current().process, id)?;
    let left = timer::deadline_of(&t.timer).map_or(0, |d| d.saturating_sub(now_ns()).max(1));
    Ok((left, t.interval.load(Ordering::Relaxed)))
}

/// Expiries missed before the signal that was delivered last.
pub fn overrun(id: u32) -> Result<u32, Errno> {
    Ok(find(&current().process, id)?
        .last_overrun
        .load(Ordering::Relaxed))
}

/// Deletes a timer.
pub fn delete(id: u32) -> Result<(), Errno> {
    let p = &current().process;
    let gone = {
        let mut timers = p.timers.lock();
        let slot = timers.list.get_mut(id as usize).ok_or(Errno::EINVAL)?;
        slot.take().ok_or(Errno::EINVAL)?
    };
    timer::cancel(&gone.timer);
    Ok(())
}

/// Deletes all timers of a process: at exec and at its end.
pub(crate) fn clear(p: &Process) {
    let all = core::mem::take(&mut p.timers.lock().list);
    for t in all.iter().flatten() {
        timer::cancel(&t.timer);
    }
}

/// A timer's signal has left the queue: fills in its overrun and prepares the next one.
pub(in crate::task) fn delivered(info: &mut SigInfo) {
    let Ok(t) = find(&current().process, info.pid()) else {
        return;
    };
    let missed = t.missed.swap(0, Ordering::Relaxed);
    t.last_overrun.store(missed, Ordering::Relaxed);
    *info = SigInfo::timer(info.signo(), t.id, missed, t.value);
    let fresh = Queued::new(SigInfo::timer(t.signo, t.id, 0, t.value));
    let old = t.node.lock().replace(fresh);
    drop(old);
}
