//! What files need to know of processes and of the machine: the one place where this room asks `task` and `memory`.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;
use linux_raw_sys::general as sys;

use super::context::FsContext;
use super::fdtable::FdTable;
use mm::Errno;

use crate::arch::X86;
use crate::task::process::RLIMIT_NOFILE;
use crate::task::signal::{self, SigInfo};
use crate::task::space::can_wait;
use crate::task::{self, Process, Space, Thread, current};
use mm::Hw;
use mm::space::RssKind;
use mm::table::PtGuard;

/// The Linux version whose interface this kernel speaks, as `uname` says it.
pub const RELEASE: &str = "6.12.0";
/// What `uname -v` says.
pub const VERSION: &str = "#1 SMP Pinfold";

/// The machine's name.
pub fn hostname() -> String {
    String::from_utf8_lossy(&crate::syscall::misc::host_name()).into_owned()
}

/// kernel.pid_max.
pub const PID_MAX: u64 = task::table::PID_MAX as u64;

/// kernel.threads-max.
pub fn threads_max() -> u64 {
    u64::from(task::table::threads_max())
}

/// The caller's descriptors.
#[inline]
pub fn files() -> &'static Arc<FdTable> {
    current().files()
}

/// The caller's root, directory and umask.
#[inline]
pub fn fs() -> &'static Arc<FsContext> {
    current().fs()
}

/// RLIMIT_NOFILE.
pub fn nofile_limit() -> usize {
    current().process.limit(RLIMIT_NOFILE).soft as usize
}

/// Capability numbers.
pub const CAP_SYS_RAWIO: u32 = 17;
pub const CAP_SYS_CHROOT: u32 = 18;
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_SYS_RESOURCE: u32 = 24;
pub const CAP_MKNOD: u32 = 27;

/// Whether the caller has a capability.
pub fn capable(cap: u32) -> bool {
    current().process.creds().capable(cap)
}

/// EACCES unless the caller may see what `p` keeps in memory (Linux's PTRACE_MODE_READ_FSCREDS): one of its own,
/// or with CAP_SYS_PTRACE.
pub fn may_look_into(p: &Process) -> Result<(), mm::Errno> {
    use task::ptrace::attach::{Mode, may_access};
    may_access(p, Mode::Files).map_err(|_| mm::Errno::EACCES)
}

/// Gives the caller a descriptor table of its own.
pub fn unshare_files() -> Result<(), mm::Errno> {
    let own = files().try_clone()?;
    drop(current().set_files(Some(Arc::new(own))));
    Ok(())
}

/// Who the caller is.
#[derive(Clone, Copy)]
pub struct Ids {
    pub pid: u32,
    pub pgid: u32,
    pub sid: u32,
}

pub fn ids() -> Ids {
    let p = &current().process;
    Ids {
        pid: p.pid,
        pgid: p.pgid(),
        sid: p.sid(),
    }
}

pub fn tid() -> u32 {
    current().tid()
}

/// SIGPIPE to the caller.
#[cold]
pub fn send_sigpipe() {
    send_own(sys::SIGPIPE);
}

#[cold]
fn send_own(signo: u32) {
    let uid = current().process.creds().uid;
    let info = SigInfo::user(signo, signal::SI_USER, ids().pid, uid);
    signal::send_to_thread(current(), info);
}

/// RLIMIT_FSIZE.
pub fn file_limit() -> u64 {
    current().process.file_limit()
}

/// The caller's file would grow beyond RLIMIT_FSIZE: SIGXFSZ, and the errno.
#[cold]
pub fn file_too_large() -> Errno {
    send_own(sys::SIGXFSZ);
    Errno::EFBIG
}

/// Sends a terminal's signal to a process group; 0 is nobody.
pub fn signal_group(group: u32, signal: u32) {
    if group != 0 {
        signal::send_to_pgrp(group, SigInfo::kernel(signal));
    }
}

/// Whether a terminal's stop signal would not stop the caller.
pub fn ignores_or_blocks(signal: u32) -> bool {
    let bit = signal::bit(signal);
    let sets = signal_sets(&current().process, Some(&current().arc()));
    (sets.blocked | sets.ignored) & bit != 0
}

/// The session of the processes in `group`, if there are any.
pub fn session_of_group(group: u32) -> Option<u32> {
    task::table::lock()
        .iter()
        .find(|p| p.pgid() == group)
        .map(|p| p.sid())
}

/// Signal sets of a process and one of its threads.
#[derive(Default)]
pub struct SignalSets {
    pub shared: u64,
    pub blocked: u64,
    pub ignored: u64,
    pub caught: u64,
    pub queued: u64,
}

pub fn signal_sets(p: &Process, t: Option<&Arc<Thread>>) -> SignalSets {
    let (shared, queued, actions) = {
        let sig = p.sig.lock();
        (sig.shared.set, sig.shared.queued(), sig.actions.clone())
    };
    let handled = |a: &signal::Action| a.handler != signal::SIG_IGN && a.handler != signal::SIG_DFL;
    SignalSets {
        shared,
        blocked: t.map_or(0, |t| t.blocked.load(Relaxed)),
        ignored: actions.select(|a| a.handler == signal::SIG_IGN),
        caught: actions.select(handled),
        queued: u64::from(queued),
    }
}

/// Total and free frames.
pub fn frames() -> (u64, u64) {
    crate::memory::totals()
}

/// The machine's memory, in pages.
pub struct Memory {
    pub total: u64,
    pub free: u64,
    pub file: u64,
    pub active_anon: u64,
    pub inactive_anon: u64,
    pub active_file: u64,
    pub inactive_file: u64,
    pub unevictable: u64,
    pub slab: u64,
    pub stacks: u64,
    /// Taken and given back.
    pub pins: (u64, u64),
}

pub fn memory() -> Memory {
    let (total, free) = frames();
    let [
        inactive_anon,
        active_anon,
        inactive_file,
        active_file,
        unevictable,
    ] = X86.phys().aging(X86);
    Memory {
        total,
        free,
        file: mm::object::cache::cached_pages(),
        active_anon,
        inactive_anon,
        active_file,
        inactive_file,
        unevictable,
        pins: X86.phys().pin_counts(),
        slab: mm::phys::slab::frames(X86),
        stacks: crate::memory::kspace::stack_frames() as u64,
    }
}

/// Page faults of all threads since boot, and how many of them were major.
pub fn faults() -> (u64, u64) {
    loop {
        let ended = task::acct::faults_of_ended();
        let (mut all, mut major) = ended;
        task::for_each_process(|p| {
            for t in p.threads() {
                let used = task::acct::of_thread(&t);
                all += used.min_flt + used.maj_flt;
                major += used.maj_flt;
            }
        });
        // A thread that ended meanwhile was counted twice or not at all.
        if task::acct::faults_of_ended() == ended {
            return (all, major);
        }
    }
}

/// Sizes of a space, in pages.
pub struct SpaceUsage {
    pub total: u64,
    pub peak: u64,
    pub anon: u64,
    pub file: u64,
    pub shmem: u64,
    pub max_rss_kib: u64,
    pub locked: u64,
    pub data: u64,
    pub stack: u64,
    pub exec: u64,
    pub tables: u64,
}

pub fn space_usage(s: &Space) -> SpaceUsage {
    let c = &s.counts;
    SpaceUsage {
        total: c.total_vm.load(Relaxed),
        peak: c.hiwater_vm.load(Relaxed),
        anon: s.rss(RssKind::Anon),
        file: s.rss(RssKind::File),
        shmem: s.rss(RssKind::Shmem),
        max_rss_kib: s.rss_peak() * 4,
        locked: c.locked_vm.load(Relaxed),
        data: c.data_vm.load(Relaxed),
        stack: c.stack_vm.load(Relaxed),
        exec: c.exec_vm.load(Relaxed),
        tables: 0,
    }
}

/// Where things lie in a space.
#[derive(Default)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

pub fn space_layout(s: &Arc<Space>) -> Layout {
    let l = &s.layout;
    Layout {
        start_code: l.start_code.load(Relaxed),
        end_code: l.end_code.load(Relaxed),
        start_data: l.start_data.load(Relaxed),
        end_data: l.end_data.load(Relaxed),
        start_brk: l.start_brk.load(Relaxed),
        start_stack: l.start_stack.load(Relaxed),
        arg_start: l.arg_start.load(Relaxed),
        arg_end: l.arg_end.load(Relaxed),
        env_start: l.env_start.load(Relaxed),
        env_end: l.env_end.load(Relaxed),
    }
}

/// Copies resident anonymous memory of another space; stops at the first page that is none. Bytes copied.
pub fn read_space(s: &Space, addr: u64, buf: &mut [u8]) -> usize {
    let mut wait = can_wait();
    let guard = s.mmap_read(&mut wait);
    let mut done = 0;
    while done < buf.len() {
        let va = addr + done as u64;
        let at = (va % 4096) as usize;
        let n = (4096 - at).min(buf.len() - done);
        let Some(vma) = guard.find(va).filter(|vma| vma.is_anon()) else {
            break;
        };
        let Some(table) = s.tables.pte_table(va, &guard) else {
            break;
        };
        let pte = table.get(PtGuard::<X86>::index(va));
        let is_page = || pte.pfn() == X86.phys().zero_page() || vma.folio(va, pte).is_ok();
        if !pte.present() || !is_page() {
            break;
        }
        // SAFETY: a page stands behind the entry and its table is locked, so the frame cannot go; `at + n` is within it. The
        // program may write it meanwhile: bytes are copied as they are.
        unsafe {
            let src = X86.frame_ptr(pte.pfn()).add(at);
            core::ptr::copy_nonoverlapping(src.cast_const(), buf[done..].as_mut_ptr(), n);
        }
        drop(table);
        done += n;
    }
    done
}

/// Threads that run, all threads, and the pid given out last.
pub fn task_counts() -> (u32, u32, u32) {
    let (mut running, mut all) = (0, 0);
    task::for_each_process(|p| {
        for t in p.threads() {
            all += 1;
            running += u32::from(t.state_letter() == b'R');
        }
    });
    (running.max(1), all, task::table::lock().last_pid())
}

/// Load averages in hundredths.
///
/// Brought up to date when asked for: the steps of five seconds since the last time count what runs now.
pub fn load_averages() -> [u64; 3] {
    const STEP_NS: u64 = 5_000_000_000;
    const ONE: u64 = 2048;
    /// e^(-5s/1min), e^(-5s/5min), e^(-5s/15min), in 2048ths.
    const DECAY: [u64; 3] = [1884, 2014, 2037];
    static STATE: spin::Mutex<(u64, [u64; 3])> = spin::Mutex::new((0, [0; 3]));
    let running = u64::from(task_counts().0 - 1) * ONE;
    let step = crate::arch::time::now_ns() / STEP_NS;
    let mut state = STATE.lock();
    for _ in 0..(step - state.0.min(step)).min(1000) {
        for (load, decay) in state.1.iter_mut().zip(DECAY) {
            *load = (*load * decay + running * (ONE - decay)) / ONE;
        }
    }
    state.0 = step;
    state.1.map(|l| l * 100 / ONE)
}

/// The kernel's command line.
pub fn kernel_cmdline() -> String {
    let bytes = crate::memory::boot_file("boot/cmdline").unwrap_or_default();
    String::from(String::from_utf8_lossy(bytes).trim())
}
