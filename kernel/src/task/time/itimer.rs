//! Interval timers: ITIMER_REAL, which `alarm` uses, too, by the clock; ITIMER_VIRTUAL and ITIMER_PROF by
//! the ticks of the process's threads, and RLIMIT_CPU as two timers of the same kind.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::time::now_ns;
use crate::sync::IrqLock;
use crate::task::process::{Limit, Process};
use crate::task::signal::{self, SIGALRM, SIGKILL, SIGPROF, SIGVTALRM};
use crate::task::timer::{self, Timer};
use linux_raw_sys::general as sys;

/// Callback of `Process::real_timer`; interrupts off.
pub(in crate::task) fn expired(t: &Timer) -> Option<u64> {
    let offset = core::mem::offset_of!(Process, real_timer);
    // SAFETY: this callback is used for the timer inside a `Process` only, which cancels it before
    // its last thread ends.
    let p = unsafe { &*((t as *const Timer as usize - offset) as *const Process) };
    signal::send::send_from_irq(p, SIGALRM);
    let interval = p.real_interval.load(Ordering::Relaxed);
    (interval != 0).then(|| now_ns() + interval)
}

/// Sets the timer to expire in `value` ns (0: stop) and then every `interval` ns; the old time left
/// and interval.
pub fn set(p: &Process, value: u64, interval: u64) -> (u64, u64) {
    // Two threads must not start the timer at once.
    let _one = p.timers.lock();
    let left = timer::cancel(&p.real_timer).map_or(0, |d| d.saturating_sub(now_ns()).max(1));
    let old = p.real_interval.swap(interval, Ordering::Relaxed);
    if value != 0 {
        timer::start(&p.real_timer, now_ns().saturating_add(value));
    }
    (left, old)
}

/// Time left and interval.
pub fn get(p: &Process) -> (u64, u64) {
    let left = timer::deadline_of(&p.real_timer).map_or(0, |d| d.saturating_sub(now_ns()).max(1));
    (left, p.real_interval.load(Ordering::Relaxed))
}

/// A timer that runs while the process does: time left (0: stopped) and interval.
#[derive(Clone, Copy, Default)]
struct CpuTimer {
    left: u64,
    interval: u64,
}

/// ITIMER_VIRTUAL, ITIMER_PROF, and the soft and hard RLIMIT_CPU of a process.
pub struct CpuTimers {
    /// Whether one of them runs: looked at by every tick.
    running: AtomicBool,
    timers: IrqLock<[CpuTimer; KINDS]>,
}

/// Their places, and their signals.
pub const VIRTUAL: usize = 0;
pub const PROF: usize = 1;
const SOFT: usize = 2;
const HARD: usize = 3;
const KINDS: usize = 4;
const SIGNALS: [u32; KINDS] = [SIGVTALRM, SIGPROF, sys::SIGXCPU, SIGKILL];
const SECOND: u64 = 1_000_000_000;

impl CpuTimers {
    /// Of a new process: none runs but what RLIMIT_CPU asks for.
    pub fn under(limit: Limit) -> CpuTimers {
        let timers = CpuTimers {
            running: AtomicBool::new(false),
            timers: IrqLock::new(
                [CpuTimer {
                    left: 0,
                    interval: 0,
                }; KINDS],
            ),
        };
        if limit.soft != u64::MAX || limit.hard != u64::MAX {
            timers.set_limit(limit, 0);
        }
        timers
    }

    /// Sets one; what was left and the old interval.
    pub fn set(&self, which: usize, value: u64, interval: u64) -> (u64, u64) {
        let mut t = self.timers.lock();
        let old = core::mem::replace(
            &mut t[which],
            CpuTimer {
                left: value,
                interval,
            },
        );
        self.running
            .store(t.iter().any(|t| t.left != 0), Ordering::Relaxed);
        (old.left, old.interval)
    }

    /// RLIMIT_CPU becomes `limit`, in seconds, when `used` ns are over: a signal then and every second after.
    pub fn set_limit(&self, limit: Limit, used: u64) {
        let timer = |seconds: u64| match seconds {
            u64::MAX => CpuTimer::default(),
            n => CpuTimer {
                left: n.max(1).saturating_mul(SECOND).saturating_sub(used).max(1),
                interval: SECOND,
            },
        };
        let mut t = self.timers.lock();
        t[SOFT] = timer(limit.soft);
        t[HARD] = timer(limit.hard);
        self.running
            .store(t.iter().any(|t| t.left != 0), Ordering::Relaxed);
    }

    /// Time left and interval.
    pub fn get(&self, which: usize) -> (u64, u64) {
        let t = self.timers.lock()[which];
        (t.left, t.interval)
    }
}

/// A tick of `ns` hit a thread of `p`. Interrupts off.
pub(in crate::task) fn tick(p: &Process, user: bool, ns: u64) {
    if !p.cpu_timers.running.load(Ordering::Relaxed) {
        return;
    }
    let mut due = [false; KINDS];
    {
        let mut timers = p.cpu_timers.timers.lock();
        for (i, t) in timers.iter_mut().enumerate() {
            if t.left == 0 || (i == VIRTUAL && !user) {
                continue;
            }
            t.left = t.left.saturating_sub(ns);
            if t.left == 0 {
                due[i] = true;
                t.left = t.interval;
            }
        }
        let any = timers.iter().any(|t| t.left != 0);
        p.cpu_timers.running.store(any, Ordering::Relaxed);
    }
    for (signo, due) in SIGNALS.into_iter().zip(due) {
        if due {
            signal::send::send_from_irq(p, signo);
        }
    }
}
