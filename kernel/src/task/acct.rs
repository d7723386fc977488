//! Who used how much time. Run time is exact (measured at every switch); its split into user and
//! system time follows the ticks.

use core::sync::atomic::{AtomicU64, Ordering};

use super::Process;
use super::thread::Thread;
use crate::arch::{self, MAX_CPUS};

/// Length of the scheduler's tick.
pub(super) const TICK_NS: u64 = 4_000_000;

struct CpuTimes {
    user: AtomicU64,
    system: AtomicU64,
    idle_ns: AtomicU64,
    idle_since: AtomicU64,
}

static CPUS: [CpuTimes; MAX_CPUS] = [const {
    CpuTimes {
        user: AtomicU64::new(0),
        system: AtomicU64::new(0),
        idle_ns: AtomicU64::new(0),
        idle_since: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Context switches since boot.
static SWITCHES: AtomicU64 = AtomicU64::new(0);
/// Processes and threads made since boot.
pub(super) static FORKS: AtomicU64 = AtomicU64::new(0);

/// Only the running thread's CPU changes these: no read-modify-write needed.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// At each switch; the run queue is locked.
pub(super) fn switched(prev: &Thread, next: &Thread, now: u64, preempted: bool) {
    let began = prev.run_start.load(Ordering::Relaxed);
    add(&prev.runtime, now.saturating_sub(began));
    prev.run_start.store(u64::MAX, Ordering::Relaxed);
    add(if preempted { &prev.nivcsw } else { &prev.nvcsw }, 1);
    next.run_start.store(now, Ordering::Relaxed);
    SWITCHES.fetch_add(1, Ordering::Relaxed);
}

/// A tick of the timer on a thread.
pub(super) fn tick(t: &Thread, user: bool) {
    let cpu = &CPUS[arch::cpu_id()];
    if user {
        add(&t.user_ticks, 1);
        add(&cpu.user, 1);
    } else {
        add(&t.system_ticks, 1);
        add(&cpu.system, 1);
    }
    super::time::itimer::tick(&t.process, user, TICK_NS);
}

/// A tick of the timer on an idle CPU.
pub(super) fn idle_tick(_cpu: usize) {}

pub(super) fn idle_begin(cpu: usize) {
    CPUS[cpu]
        .idle_since
        .store(arch::time::now_ns(), Ordering::Relaxed);
}

pub(super) fn idle_end(cpu: usize) {
    let since = CPUS[cpu].idle_since.load(Ordering::Relaxed);
    add(
        &CPUS[cpu].idle_ns,
        arch::time::now_ns().saturating_sub(since),
    );
}

/// User, system and idle time of one CPU in nanoseconds, for `/proc/stat`.
pub fn cpu_times(cpu: usize) -> (u64, u64, u64) {
    let c = &CPUS[cpu];
    (
        c.user.load(Ordering::Relaxed) * TICK_NS,
        c.system.load(Ordering::Relaxed) * TICK_NS,
        c.idle_ns.load(Ordering::Relaxed),
    )
}

/// Context switches and forks since boot, for `/proc/stat`.
pub fn totals() -> (u64, u64) {
    (
        SWITCHES.load(Ordering::Relaxed),
        FORKS.load(Ordering::Relaxed),
    )
}

/// What a thread, a process or its waited-for children have used.
#[derive(Clone, Copy, Default, Debug)]
pub struct Usage {
    pub user_ns: u64,
    pub system_ns: u64,
    pub min_flt: u64,
    pub maj_flt: u64,
    pub nvcsw: u64,
    pub nivcsw: u64,
    /// Largest resident set, in KiB.
    pub max_rss_kib: u64,
}

impl Usage {
    pub fn add(&mut self, o: &Usage) {
        self.user_ns += o.user_ns;
        self.system_ns += o.system_ns;
        self.min_flt += o.min_flt;
        self.maj_flt += o.maj_flt;
        self.nvcsw += o.nvcsw;
        self.nivcsw += o.nivcsw;
        self.max_rss_kib = self.max_rss_kib.max(o.max_rss_kib);
    }
}

/// Page faults of threads that have ended: all, and major ones.
static ENDED_FAULTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// A thread with this use ends; its process's signal lock is held.
pub(super) fn thread_ends(used: &Usage) {
    ENDED_FAULTS[0].fetch_add(used.min_flt + used.maj_flt, Ordering::SeqCst);
    ENDED_FAULTS[1].fetch_add(used.maj_flt, Ordering::SeqCst);
}

/// Page faults of threads that have ended: all, and major ones.
pub fn faults_of_ended() -> (u64, u64) {
    let [all, major] = &ENDED_FAULTS;
    (all.load(Ordering::SeqCst), major.load(Ordering::SeqCst))
}

/// Nanoseconds a thread has run.
pub fn thread_runtime(t: &Thread) -> u64 {
    let began = t.run_start.load(Ordering::Relaxed);
    let stretch = if began == u64::MAX || began == 0 {
        0
    } else {
        arch::time::now_ns().saturating_sub(began)
    };
    t.runtime.load(Ordering::Relaxed) + stretch
}

/// What a thread has used.
pub fn of_thread(t: &Thread) -> Usage {
    let run = thread_runtime(t);
    let (u, s) = (
        t.user_ticks.load(Ordering::Relaxed),
        t.system_ticks.load(Ordering::Relaxed),
    );
    let system_ns = if u + s == 0 {
        0
    } else {
        (run as u128 * s as u128 / (u + s) as u128) as u64
    };
    Usage {
        user_ns: run - system_ns,
        system_ns,
        min_flt: t.min_flt.load(Ordering::Relaxed),
        maj_flt: t.maj_flt.load(Ordering::Relaxed),
        nvcsw: t.nvcsw.load(Ordering::Relaxed),
        nivcsw: t.nivcsw.load(Ordering::Relaxed),
        max_rss_kib: 0,
    }
}

/// What a process has used: its threads, ended ones included.
pub fn of_process(p: &Process) -> Usage {
    let sig = p.sig.lock();
    let mut total = sig.ended;
    for t in sig.threads() {
        total.add(&of_thread(t));
    }
    drop(sig);
    if let Some(space) = p.space() {
        total.max_rss_kib = total.max_rss_kib.max(space.max_rss_kib());
    }
    total
}
