//! A process: what threads share.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering,
};

use mm::Errno;
use spin::Mutex as Spin;

use super::acct::Usage;
use super::own::Own;
use super::signal::{SigHand, SigState};
use super::space::Space;
use super::thread::Thread;
use super::time::posix::PosixTimers;
use super::timer::Timer;
use super::wait::WaitQueue;
use crate::fs::File;
use crate::fs::poll::PollQueue;
use crate::sync::IrqLock;

/// It lives.
pub const ALIVE: u8 = 0;
/// All its threads have ended; its parent may ask for the status.
pub const ZOMBIE: u8 = 1;
/// Gone.
pub const REAPED: u8 = 2;

/// Kinds of limits.
pub const NRLIMITS: usize = 16;
pub use linux_raw_sys::general::{
    RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE,
    RLIMIT_NICE, RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_RSS, RLIMIT_RTPRIO, RLIMIT_SIGPENDING,
    RLIMIT_STACK,
};

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

const fn default_limits() -> [Limit; NRLIMITS] {
    const INF: Limit = Limit {
        soft: u64::MAX,
        hard: u64::MAX,
    };
    const fn both(n: u64) -> Limit {
        Limit { soft: n, hard: n }
    }
    let mut l = [INF; NRLIMITS];
    l[RLIMIT_STACK as usize] = Limit {
        soft: 8 << 20,
        hard: u64::MAX,
    };
    l[RLIMIT_CORE as usize] = Limit {
        soft: 0,
        hard: u64::MAX,
    };
    l[RLIMIT_NPROC as usize] = both(super::table::PID_MAX as u64 / 2);
    l[RLIMIT_NOFILE as usize] = Limit {
        soft: 1024,
        hard: 4096,
    };
    l[RLIMIT_MEMLOCK as usize] = both(8 << 20);
    l[RLIMIT_SIGPENDING as usize] = both(4096);
    l[RLIMIT_MSGQUEUE as usize] = both(819_200);
    l[RLIMIT_NICE as usize] = both(0);
    l[RLIMIT_RTPRIO as usize] = both(0);
    l
}

/// Supplementary groups held.
pub const NGROUPS: usize = 32;

/// Whose rights a process has.
#[derive(Clone, Copy, Debug)]
pub struct Creds {
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub gid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    pub ngroups: usize,
    pub groups: [u32; NGROUPS],
    pub cap_effective: u64,
    pub cap_permitted: u64,
    pub cap_inheritable: u64,
    pub cap_bounding: u64,
    pub cap_ambient: u64,
    pub securebits: u32,
    pub no_new_privs: bool,
}

/// Every capability Linux 6.12 knows.
pub const CAP_ALL: u64 = (1 << 41) - 1;

impl Creds {
    pub const ROOT: Creds = Creds {
        uid: 0,
        euid: 0,
        suid: 0,
        fsuid: 0,
        gid: 0,
        egid: 0,
        sgid: 0,
        fsgid: 0,
        ngroups: 0,
        groups: [0; NGROUPS],
        cap_effective: CAP_ALL,
        cap_permitted: CAP_ALL,
        cap_inheritable: 0,
        cap_bounding: CAP_ALL,
        cap_ambient: 0,
        securebits: 0,
        no_new_privs: false,
    };

    /// Whether capability `cap` (its number) is effective.
    pub fn capable(&self, cap: u32) -> bool {
        self.cap_effective & (1 << cap) != 0
    }

    /// Whether `gid` is the file system group or a supplementary one.
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups[..self.ngroups].contains(&gid)
    }
}

/// Family links, guarded by the task table's lock.
pub struct Family {
    pub(super) parent: *const Process,
    pub(super) first_child: *const Process,
    pub(super) next_sibling: *const Process,
    pub(super) prev_sibling: *const Process,
    /// All processes.
    pub(super) next_all: *const Process,
    pub(super) prev_all: *const Process,
    /// What waited-for children used.
    pub(super) children_usage: Usage,
}

/// One process.
pub struct Process {
    pub pid: u32,
    pub(super) family: Own<Family>,
    /// Parent's pid, group and session: written with the task table locked, read without.
    pub(super) ppid: AtomicU32,
    /// The thread that made it.
    pub(super) forker: AtomicU32,
    /// What its threads trace; guarded by the task table's lock.
    pub(super) tracees: Own<*const Thread>,
    /// The process that traces its leader; written with the task table locked.
    pub(super) tracer: AtomicPtr<Process>,
    pub(super) pgid: AtomicU32,
    pub(super) sid: AtomicU32,
    /// Signals and the list of threads.
    pub sig: IrqLock<SigState>,
    /// Threads that have not begun to exit.
    pub(super) live: AtomicU32,
    /// Parents sleep here until a child changes state.
    pub child_wait: WaitQueue,
    /// Who polls descriptors of this process.
    pub(super) watchers: PollQueue,
    /// Threads of this process wait here for the others to go (exec).
    pub(super) thread_gone: WaitQueue,
    pub(super) space: Spin<Option<Arc<Space>>>,
    creds: Spin<Creds>,
    limits: Spin<[Limit; NRLIMITS]>,
    /// RLIMIT_FSIZE among them, for every write.
    file_limit: AtomicU64,
    exe: Spin<Option<Arc<File>>>,
    pub(super) exit_signal: AtomicU32,
    /// Wait status, valid for a zombie.
    pub(super) exit_status: AtomicU32,
    pub(super) state: AtomicU8,
    pub(super) did_exec: AtomicBool,
    pub subreaper: AtomicBool,
    pub dumpable: AtomicU8,
    /// What of its memory a core file holds.
    pub core_filter: AtomicU32,
    pub personality: AtomicU32,
    /// Kinds of membarrier it has registered for.
    pub membarrier: AtomicU32,
    pub death_signal: AtomicU32,
    pub oom_score_adj: AtomicI32,
    pub nice: AtomicI32,
    pub start_ns: u64,
    /// ITIMER_REAL.
    pub(super) real_timer: Timer,
    pub(super) real_interval: AtomicU64,
    pub(super) timers: Spin<PosixTimers>,
    /// ITIMER_VIRTUAL and ITIMER_PROF.
    pub cpu_timers: super::time::itimer::CpuTimers,
    pub timer_slack: AtomicU64,
}

// SAFETY: the raw links are guarded by the task table's lock.
unsafe impl Send for Process {}
// SAFETY: as above; all else is atomic, locked or an `Own` with its rule.
unsafe impl Sync for Process {}

impl Process {
    /// A process without threads and without a place in the family.
    pub(super) fn build(
        pid: u32,
        actions: Arc<SigHand>,
        creds: Creds,
        limits: [Limit; NRLIMITS],
    ) -> Process {
        Process {
            pid,
            family: Own::new(Family {
                parent: core::ptr::null(),
                first_child: core::ptr::null(),
                next_sibling: core::ptr::null(),
                prev_sibling: core::ptr::null(),
                next_all: core::ptr::null(),
                prev_all: core::ptr::null(),
                children_usage: Usage::default(),
            }),
            ppid: AtomicU32::new(0),
            forker: AtomicU32::new(0),
            tracees: Own::new(core::ptr::null()),
            tracer: AtomicPtr::new(core::ptr::null_mut()),
            pgid: AtomicU32::new(0),
            sid: AtomicU32::new(0),
            sig: IrqLock::new(SigState::new(actions)),
            live: AtomicU32::new(0),
            child_wait: WaitQueue::new(),
            watchers: PollQueue::new(),
            thread_gone: WaitQueue::new(),
            space: Spin::new(None),
            creds: Spin::new(creds),
            limits: Spin::new(limits),
            file_limit: AtomicU64::new(limits[RLIMIT_FSIZE as usize].soft),
            exe: Spin::new(None),
            exit_signal: AtomicU32::new(linux_raw_sys::general::SIGCHLD),
            exit_status: AtomicU32::new(0),
            state: AtomicU8::new(ALIVE),
            did_exec: AtomicBool::new(false),
            subreaper: AtomicBool::new(false),
            dumpable: AtomicU8::new(1),
            core_filter: AtomicU32::new(super::coredump::DEFAULT_FILTER),
            personality: AtomicU32::new(0),
            membarrier: AtomicU32::new(0),
            death_signal: AtomicU32::new(0),
            oom_score_adj: AtomicI32::new(0),
            nice: AtomicI32::new(0),
            start_ns: crate::arch::time::now_ns(),
            real_timer: Timer::new(super::time::itimer::expired),
            real_interval: AtomicU64::new(0),
            timers: Spin::new(PosixTimers::new()),
            cpu_timers: super::time::itimer::CpuTimers::under(limits[RLIMIT_CPU as usize]),
            timer_slack: AtomicU64::new(50_000),
        }
    }

    /// The kernel's own process, pid 0.
    pub(super) fn kernel() -> Process {
        Process::build(0, SigHand::new(), Creds::ROOT, default_limits())
    }

    pub fn ppid(&self) -> u32 {
        self.ppid.load(Ordering::Relaxed)
    }

    pub fn pgid(&self) -> u32 {
        self.pgid.load(Ordering::Relaxed)
    }

    pub fn sid(&self) -> u32 {
        self.sid.load(Ordering::Relaxed)
    }

    pub fn is_session_leader(&self) -> bool {
        self.sid() == self.pid
    }

    pub fn is_zombie(&self) -> bool {
        self.state.load(Ordering::Relaxed) != ALIVE
    }

    /// Whether every thread has at least begun to exit.
    pub fn is_exiting(&self) -> bool {
        self.live.load(Ordering::Relaxed) == 0
    }

    /// The address space, for others than its own threads (procfs, OOM). `None` for kernel threads
    /// and after exit.
    pub fn space(&self) -> Option<Arc<Space>> {
        self.space.lock().clone()
    }

    /// A copy of the credentials.
    pub fn creds(&self) -> Creds {
        *self.creds.lock()
    }

    pub fn euid(&self) -> u32 {
        self.creds.lock().euid
    }

    /// Changes the credentials.
    pub fn with_creds<R>(&self, f: impl FnOnce(&mut Creds) -> R) -> R {
        let mut creds = self.creds.lock();
        let old = *creds;
        let r = f(&mut creds);
        let ids = |c: &Creds| [c.euid, c.egid, c.fsuid, c.fsgid];
        if ids(&old) != ids(&creds) || creds.cap_permitted & !old.cap_permitted != 0 {
            // What it knows may be more than its new rights give: no tracer of those rights, no core file.
            self.dumpable.store(0, Ordering::Relaxed);
        }
        r
    }

    pub fn limit(&self, which: u32) -> Limit {
        self.limits.lock()[which as usize]
    }

    /// RLIMIT_FSIZE.
    pub fn file_limit(&self) -> u64 {
        self.file_limit.load(Ordering::Relaxed)
    }

    pub fn limits(&self) -> [Limit; NRLIMITS] {
        *self.limits.lock()
    }

    /// Replaces a limit; the address space learns its own ones.
    pub fn set_limit(&self, which: u32, new: Limit) -> Result<Limit, Errno> {
        let mut limits = self.limits.lock();
        let slot = limits.get_mut(which as usize).ok_or(Errno::EINVAL)?;
        let old = core::mem::replace(slot, new);
        let copy = *limits;
        self.file_limit
            .store(copy[RLIMIT_FSIZE as usize].soft, Ordering::Relaxed);
        drop(limits);
        if which == RLIMIT_CPU {
            let used = self.usage();
            self.cpu_timers
                .set_limit(new, used.user_ns + used.system_ns);
        }
        if let Some(space) = self.space() {
            space.set_limits(&copy);
        }
        Ok(old)
    }

    /// The executable (`/proc/PID/exe`).
    pub fn exe(&self) -> Option<Arc<File>> {
        self.exe.lock().clone()
    }

    pub fn set_exe(&self, file: Option<Arc<File>>) -> Option<Arc<File>> {
        core::mem::replace(&mut *self.exe.lock(), file)
    }

    /// The threads, the leader first while it lives.
    pub fn threads(&self) -> Vec<Arc<super::Thread>> {
        let mut v = Vec::new();
        loop {
            let want = self.sig.lock().nthreads as usize;
            v.reserve(want);
            let sig = self.sig.lock();
            if sig.nthreads as usize <= v.capacity() {
                v.extend(sig.threads().map(|t| t.arc()));
                return v;
            }
        }
    }

    pub fn thread_count(&self) -> u32 {
        self.sig.lock().nthreads
    }

    /// The thread that stands for the process: its leader, or any other while the leader is gone.
    pub fn main_thread(&self) -> Option<Arc<super::Thread>> {
        let sig = self.sig.lock();
        sig.threads().next().map(|t| t.arc())
    }

    /// Used so far, ended threads included.
    pub fn usage(&self) -> Usage {
        super::acct::of_process(self)
    }

    /// Used by children that were waited for.
    pub fn children_usage(&self) -> Usage {
        let _tasks = super::table::lock();
        // SAFETY: the task table is locked.
        unsafe { self.family.get().children_usage }
    }

    /// It has replaced its program.
    pub fn executed(&self) {
        self.did_exec.store(true, Ordering::Relaxed);
        self.dumpable.store(1, Ordering::Relaxed);
        self.membarrier.store(0, Ordering::Relaxed);
    }

    /// Resident pages; 0 when it has no memory any more.
    pub fn resident_pages(&self) -> u64 {
        self.space().map_or(0, |s| s.rss_total())
    }

    /// Name as text, for messages.
    pub fn name(&self) -> alloc::string::String {
        let comm = self.comm();
        let len = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
        alloc::string::String::from_utf8_lossy(&comm[..len]).into_owned()
    }

    pub fn comm(&self) -> [u8; 16] {
        self.main_thread().map_or([0; 16], |t| *t.comm.lock())
    }
}

// As for `Thread`.
const _: () = assert!(core::mem::size_of::<Process>() + 16 <= 2048);
