//! A thread: what runs.

use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use spin::Mutex as Spin;

use super::own::Own;
use super::process::Process;
use super::ptrace::Tracing;
use super::signal::Pending;
use super::space::Space;
use super::timer::Timer;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::fpu::FpuState;
use crate::arch::switch::Context;
use crate::fs::{FdTable, FsContext};
use crate::memory::kspace::KernelStack;

/// Runs, or waits in a run queue.
pub const RUNNING: u32 = 0;
/// Sleeps until woken or until a signal is pending.
pub const INTERRUPTIBLE: u32 = 1;
/// Sleeps until woken.
pub const UNINTERRUPTIBLE: u32 = 2;
/// Sleeps until woken or killed.
pub const KILLABLE: u32 = 4;
/// Stopped by job control.
pub const STOPPED: u32 = 8;
/// Has left its CPU for the last time.
pub const DEAD: u32 = 16;
/// Stands still for its tracer; woken with its process's signal lock held only.
pub const TRACED: u32 = 32;
/// What an ordinary wake-up ends.
pub const NORMAL: u32 = INTERRUPTIBLE | UNINTERRUPTIBLE | KILLABLE;

/// What `restart_syscall` continues.
#[derive(Clone, Copy)]
pub struct RestartBlock {
    pub func: fn(&[u64; 6]) -> SysResult,
    pub args: [u64; 6],
}

fn nothing_to_restart(_: &[u64; 6]) -> SysResult {
    Err(mm::Errno::EINTR)
}

impl RestartBlock {
    pub const NONE: RestartBlock = RestartBlock {
        func: nothing_to_restart,
        args: [0; 6],
    };
}

/// `sigaltstack` of a thread.
#[derive(Clone, Copy)]
pub struct AltStack {
    pub sp: u64,
    pub flags: u32,
    pub size: u64,
}

impl AltStack {
    pub const NONE: AltStack = AltStack {
        sp: 0,
        flags: linux_raw_sys::general::SS_DISABLE,
        size: 0,
    };
}

/// What a kernel thread runs, and its argument.
pub type KernelEntry = (fn(usize), usize);

/// Fields only the running thread itself uses.
pub struct Private {
    pub restart: RestartBlock,
    pub altstack: AltStack,
    /// The mask to come back to after `sigsuspend`, `ppoll`...
    pub saved_mask: Option<u64>,
    /// Vector, error code and address of the last fault, for signal frames.
    pub trap: [u64; 3],
    pub set_child_tid: u64,
    pub clear_child_tid: u64,
    pub robust_list: u64,
    pub space: Option<Arc<Space>>,
    pub files: Option<Arc<FdTable>>,
    pub fs: Option<Arc<FsContext>>,
    /// Bases at the last switch away.
    pub fs_base: u64,
    pub gs_base: u64,
}

/// Links and states of the scheduler; guarded by the lock of the run queue `cpu`.
pub struct SchedLinks {
    pub next: *const Thread,
    pub prev: *const Thread,
    /// Running or in a run queue.
    pub on_rq: bool,
}

/// One thread.
pub struct Thread {
    /// `WORK_*`: looked at before every return to user mode.
    pub work: AtomicU32,
    pub state: AtomicU32,
    pub(super) cpu: AtomicU32,
    pub(super) ctx: UnsafeCell<Context>,
    pub(super) sched: Own<SchedLinks>,
    pub(super) stack: Option<KernelStack>,
    pub(super) fpu: Own<Option<FpuState>>,
    /// The CPU whose registers still hold `fpu` (with that CPU's `fpu_owner`), or `u32::MAX`.
    pub(super) fpu_cpu: AtomicU32,
    /// Address of the space that must be loaded when this thread runs; null for kernel threads.
    pub(super) space_ptr: AtomicPtr<Space>,
    /// Thread id. A thread that executes a program takes over the leader's.
    tid: AtomicU32,
    pub process: Arc<Process>,
    /// Signals blocked; changed by the thread under its process's signal lock.
    pub blocked: AtomicU64,
    /// Signals `sigtimedwait` waits for although they are blocked.
    pub waiting_for: AtomicU64,
    /// Pending for this thread; guarded by the process's signal lock.
    pub(super) pending: Own<Pending>,
    /// Links of `Process::threads`; guarded by the process's signal lock.
    pub(super) next_thread: AtomicPtr<Thread>,
    pub private: Own<Private>,
    /// Taken by others who read `private.files` or `private.fs`, and by the thread to change them.
    pub(super) resources: Spin<()>,
    pub exiting: AtomicBool,
    /// Somebody traces it; how, and its part in job control, is guarded by the process's signal lock.
    pub(super) traced: AtomicBool,
    pub(super) trace: Own<Tracing>,
    /// What the switch sets up for its tracer (`ptrace::HOOK_*`).
    pub(super) hooked: AtomicU8,
    /// The registers of the entry from user mode that may end it; its own.
    pub(super) user_regs: AtomicPtr<TrapFrame>,
    pub min_flt: AtomicU64,
    pub maj_flt: AtomicU64,
    /// Nanoseconds run, and when the current stretch began.
    pub(super) runtime: AtomicU64,
    pub(super) run_start: AtomicU64,
    pub(super) user_ticks: AtomicU64,
    pub(super) system_ticks: AtomicU64,
    pub nvcsw: AtomicU64,
    pub nivcsw: AtomicU64,
    pub start_ns: u64,
    /// CPUs it may run on.
    pub affinity: AtomicU64,
    pub policy: AtomicU8,
    pub comm: Spin<[u8; 16]>,
    pub(super) sleep_timer: Timer,
    /// Token of `park`.
    pub(super) token: AtomicBool,
    /// Tid of the vfork child this thread waits for.
    pub(super) vfork_child: AtomicU32,
    /// The thread to release when this one drops its space (vfork); its Arc is held.
    pub(super) vfork_parent: Own<Option<Arc<Thread>>>,
    /// Locks of mm that it holds: they may be held across a sleep, hence across CPUs.
    #[cfg(feature = "test")]
    pub(crate) held: mm::sync::lockdep::Held,
    /// Entry of a kernel thread.
    pub(super) kernel_entry: Own<Option<KernelEntry>>,
}

// SAFETY: raw pointers inside are links guarded by the locks their comments name.
unsafe impl Send for Thread {}
// SAFETY: as above; every other field is atomic, locked or an `Own` with its rule.
unsafe impl Sync for Thread {}

impl Thread {
    /// A thread that has not run. Its resources are filled in by the caller before it starts.
    pub(super) fn build(
        tid: u32,
        process: Arc<Process>,
        stack: Option<KernelStack>,
        fpu: Option<FpuState>,
    ) -> Thread {
        Thread {
            work: AtomicU32::new(0),
            state: AtomicU32::new(RUNNING),
            cpu: AtomicU32::new(0),
            ctx: UnsafeCell::new(Context::empty()),
            sched: Own::new(SchedLinks {
                next: core::ptr::null(),
                prev: core::ptr::null(),
                on_rq: false,
            }),
            stack,
            fpu: Own::new(fpu),
            fpu_cpu: AtomicU32::new(u32::MAX),
            space_ptr: AtomicPtr::new(core::ptr::null_mut()),
            tid: AtomicU32::new(tid),
            process,
            blocked: AtomicU64::new(0),
            waiting_for: AtomicU64::new(0),
            pending: Own::new(Pending::new()),
            next_thread: AtomicPtr::new(core::ptr::null_mut()),
            private: Own::new(Private {
                restart: RestartBlock::NONE,
                altstack: AltStack::NONE,
                saved_mask: None,
                trap: [0; 3],
                set_child_tid: 0,
                clear_child_tid: 0,
                robust_list: 0,
                space: None,
                files: None,
                fs: None,
                fs_base: 0,
                gs_base: 0,
            }),
            resources: Spin::new(()),
            exiting: AtomicBool::new(false),
            traced: AtomicBool::new(false),
            trace: Own::new(Tracing::new()),
            hooked: AtomicU8::new(0),
            user_regs: AtomicPtr::new(core::ptr::null_mut()),
            min_flt: AtomicU64::new(0),
            maj_flt: AtomicU64::new(0),
            runtime: AtomicU64::new(0),
            run_start: AtomicU64::new(0),
            user_ticks: AtomicU64::new(0),
            system_ticks: AtomicU64::new(0),
            nvcsw: AtomicU64::new(0),
            nivcsw: AtomicU64::new(0),
            start_ns: crate::arch::time::now_ns(),
            affinity: AtomicU64::new(u64::MAX),
            policy: AtomicU8::new(0),
            comm: Spin::new([0; 16]),
            sleep_timer: Timer::new(super::timer::wake_sleeper),
            token: AtomicBool::new(false),
            vfork_child: AtomicU32::new(0),
            vfork_parent: Own::new(None),
            #[cfg(feature = "test")]
            held: mm::sync::lockdep::Held::new(),
            kernel_entry: Own::new(None),
        }
    }

    /// Thread id.
    #[inline]
    pub fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    pub(super) fn set_tid(&self, tid: u32) {
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// Whether this is the running thread.
    #[inline]
    pub fn is_current(&self) -> bool {
        core::ptr::eq(self, super::current())
    }

    /// The fields that belong to the running thread.
    ///
    /// # Safety
    /// `self` is the running thread, or one that has not started, and the caller holds no other
    /// reference into them.
    #[expect(clippy::mut_from_ref, reason = "owner-only cell")]
    #[inline(always)]
    pub unsafe fn mine(&self) -> &mut Private {
        // SAFETY: the caller's promise.
        unsafe { self.private.get() }
    }

    /// The user address space; `None` for kernel threads. Only for the running thread.
    #[inline]
    pub fn space(&self) -> Option<&Arc<Space>> {
        debug_assert!(self.is_current());
        // SAFETY: only the running thread changes its own space, and it does so in exec and exit
        // where no such reference is held.
        unsafe { (*self.private.ptr()).space.as_ref() }
    }

    /// The descriptor table. Only for the running thread; see [`Thread::files_of`].
    #[inline]
    pub fn files(&self) -> &Arc<FdTable> {
        debug_assert!(self.is_current());
        // SAFETY: as for `space`. Only a kernel thread or one past its exit has none, and neither
        // makes system calls.
        unsafe {
            (*self.private.ptr())
                .files
                .as_ref()
                .expect("a user thread has files")
        }
    }

    /// Root, current directory, umask. Only for the running thread; see [`Thread::fs_of`].
    #[inline]
    pub fn fs(&self) -> &Arc<FsContext> {
        debug_assert!(self.is_current());
        // SAFETY: as for `files`.
        unsafe {
            (*self.private.ptr())
                .fs
                .as_ref()
                .expect("a user thread has a file system context")
        }
    }

    /// Another thread's descriptor table (`/proc/PID/fd`).
    pub fn files_of(&self) -> Option<Arc<FdTable>> {
        let _lock = self.resources.lock();
        // SAFETY: `files` is changed with `resources` locked only.
        unsafe { (*self.private.ptr()).files.clone() }
    }

    /// Another thread's file system context.
    pub fn fs_of(&self) -> Option<Arc<FsContext>> {
        let _lock = self.resources.lock();
        // SAFETY: `fs` is changed with `resources` locked only.
        unsafe { (*self.private.ptr()).fs.clone() }
    }

    /// Replaces the descriptor table; the old one is returned for the caller to drop.
    pub(crate) fn set_files(&self, files: Option<Arc<FdTable>>) -> Option<Arc<FdTable>> {
        let _lock = self.resources.lock();
        // SAFETY: the running thread (or its creator) with `resources` locked.
        core::mem::replace(unsafe { &mut (*self.private.ptr()).files }, files)
    }

    /// Replaces the file system context; the old one is returned for the caller to drop.
    pub(crate) fn set_fs(&self, fs: Option<Arc<FsContext>>) -> Option<Arc<FsContext>> {
        let _lock = self.resources.lock();
        // SAFETY: as in `set_files`.
        core::mem::replace(unsafe { &mut (*self.private.ptr()).fs }, fs)
    }

    /// An owning reference to this thread.
    pub fn arc(&self) -> Arc<Thread> {
        // SAFETY: every thread is made by `Arc::new`, and `self` keeps it alive meanwhile.
        unsafe {
            Arc::increment_strong_count(self);
            Arc::from_raw(self)
        }
    }

    /// Where this thread's user registers are saved: the top of its stack.
    pub(super) fn user_frame(&self) -> *mut TrapFrame {
        let top = self
            .stack
            .as_ref()
            .expect("a user thread has a stack")
            .top();
        (top as *mut TrapFrame).wrapping_sub(1)
    }

    /// The running thread may end in what it does now: where its user registers are.
    #[inline]
    pub fn note_user_regs(&self, frame: &mut TrapFrame) {
        self.user_regs.store(frame, Ordering::Relaxed);
    }

    pub fn set_work(&self, bits: u32) {
        self.work.fetch_or(bits, Ordering::SeqCst);
    }

    /// Name as in `/proc/PID/comm`.
    pub fn set_comm(&self, name: &[u8]) {
        let mut comm = [0u8; 16];
        let n = name.len().min(15);
        comm[..n].copy_from_slice(&name[..n]);
        *self.comm.lock() = comm;
    }

    /// One minor or major fault of this thread.
    #[inline]
    pub fn count_fault(&self, major: bool) {
        let c = if major { &self.maj_flt } else { &self.min_flt };
        c.store(c.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// One letter as in `/proc/PID/stat`.
    pub fn state_letter(&self) -> u8 {
        if self.exiting.load(Ordering::Relaxed) {
            return b'Z';
        }
        match self.state.load(Ordering::Relaxed) {
            RUNNING => b'R',
            UNINTERRUPTIBLE | KILLABLE => b'D',
            STOPPED => b'T',
            TRACED => b't',
            DEAD => b'X',
            _ => b'S',
        }
    }
}

// With the counts of its `Arc` it must fit the largest slab class: threads never come from the arena.
const _: () = assert!(core::mem::size_of::<Thread>() + 16 <= 2048);
