//! Per-CPU data behind GS.
//!
//! In the kernel `GS.base` is this CPU's [`PerCpu`]; in user mode it is the program's and ours waits
//! in `KERNEL_GS_BASE` (SWAPGS). `entry.rs` names the first fields by offset.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::MAX_CPUS;

/// What belongs to one CPU.
#[repr(C, align(128))]
pub struct PerCpu {
    /// This structure's own address.
    pub this: u64,
    /// The running thread.
    pub current: *mut (),
    /// The running thread's work word, never null.
    pub work: *const AtomicU32,
    /// Where SYSCALL builds its frame: the kernel stack's top less 8, so that calls are aligned.
    pub syscall_rsp: u64,
    /// The user's stack pointer during the first instructions of SYSCALL.
    pub user_rsp: u64,
    pub id: u32,
    /// Not zero: a fault on user memory is an error at once (`uaccess` nofault).
    pub nofault: u32,
    pub apic_id: u32,
    /// Interrupts taken, for /proc.
    pub timer_irqs: AtomicU64,
    pub ipis: AtomicU64,
}

pub(super) const SYSCALL_RSP: usize = offset_of!(PerCpu, syscall_rsp);
pub(super) const USER_RSP: usize = offset_of!(PerCpu, user_rsp);
pub(super) const WORK: usize = offset_of!(PerCpu, work);
const CURRENT: usize = offset_of!(PerCpu, current);
const ID: usize = offset_of!(PerCpu, id);
const NOFAULT: usize = offset_of!(PerCpu, nofault);

struct Table(UnsafeCell<[PerCpu; MAX_CPUS]>);
// SAFETY: each entry is written by its own CPU, or by the boot CPU before that one starts.
unsafe impl Sync for Table {}

static NO_WORK: AtomicU32 = AtomicU32::new(0);

#[expect(
    clippy::declare_interior_mutable_const,
    reason = "the initial value of the table's entries"
)]
const EMPTY: PerCpu = PerCpu {
    this: 0,
    current: core::ptr::null_mut(),
    work: &raw const NO_WORK,
    syscall_rsp: 0,
    user_rsp: 0,
    id: 0,
    nofault: 0,
    apic_id: 0,
    timer_irqs: AtomicU64::new(0),
    ipis: AtomicU64::new(0),
};

static TABLE: Table = Table(UnsafeCell::new([EMPTY; MAX_CPUS]));
static NCPUS: AtomicUsize = AtomicUsize::new(1);

/// The entry of CPU `id`.
pub fn of(id: usize) -> *mut PerCpu {
    assert!(id < MAX_CPUS);
    TABLE.0.get().cast::<PerCpu>().wrapping_add(id)
}

/// Fills the entry of CPU `id` and makes it this CPU's.
///
/// # Safety
/// Runs on that CPU, once, before anything asks who it is.
pub(super) unsafe fn init(id: usize, apic_id: u32) {
    let p = of(id);
    // SAFETY: `p` is in the table and only this CPU uses it.
    unsafe {
        (*p).this = p as u64;
        (*p).id = id as u32;
        (*p).apic_id = apic_id;
        super::cpu::wrmsr(super::cpu::GS_BASE, p as u64);
        super::cpu::wrmsr(super::cpu::KERNEL_GS_BASE, 0);
    }
}

pub(super) fn set_ncpus(n: usize) {
    NCPUS.store(n, Ordering::Release);
}

/// The local APIC of a CPU.
pub fn apic_id(cpu: usize) -> u32 {
    // SAFETY: entries of CPUs that exist are filled before anybody asks.
    unsafe { (*of(cpu)).apic_id }
}

/// The number of the CPU we run on.
#[inline(always)]
pub fn cpu_id() -> usize {
    let id: u32;
    // SAFETY: reads this CPU's entry.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) id, const ID, options(nomem, nostack, preserves_flags))
    };
    id as usize
}

/// CPUs that run.
#[inline]
pub fn ncpus() -> usize {
    NCPUS.load(Ordering::Relaxed)
}

/// The running thread, as `set_current` left it. TASK casts it to its `Thread`.
/// `pure`: whoever reads the answer is that thread, on whatever CPU.
#[inline(always)]
pub fn current_ptr() -> *mut () {
    let p: *mut ();
    // SAFETY: reads this CPU's entry.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) p, const CURRENT, options(pure, nomem, nostack, preserves_flags))
    };
    p
}

/// Makes `thread` the running thread of this CPU; `work` is where its work word lives
/// (tested by the return to user mode without knowing the type).
#[inline(always)]
pub fn set_current(thread: *mut (), work: *const AtomicU32) {
    // SAFETY: writes this CPU's entry; interrupts between the two stores read either.
    unsafe {
        asm!("mov gs:[{}], {}", "mov gs:[{}], {}", const CURRENT, in(reg) thread, const WORK, in(reg) work,
            options(nostack, preserves_flags))
    };
}

/// Bit of the work word that belongs to `arch`: the frame was replaced, leave by the full path.
pub const WORK_FRAME: u32 = 1 << 31;

/// The running thread's work word.
#[inline(always)]
pub fn work() -> &'static AtomicU32 {
    let p: *const AtomicU32;
    // SAFETY: reads this CPU's entry.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) p, const WORK, options(nomem, nostack, preserves_flags))
    };
    // SAFETY: never null (EMPTY, set_current); it belongs to the running thread, which lives while it runs.
    unsafe { &*p }
}

/// Runs `f` with faults on user memory refused. `f` does not sleep.
#[inline(always)]
pub(super) fn nofault<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: writes this CPU's entry; the kernel is not preempted and `f` does not sleep.
    unsafe { asm!("inc dword ptr gs:[{}]", const NOFAULT, options(nostack)) };
    let r = f();
    // SAFETY: as above.
    unsafe { asm!("dec dword ptr gs:[{}]", const NOFAULT, options(nostack)) };
    r
}

/// Whether faults on user memory are refused just now.
#[inline]
pub fn in_nofault() -> bool {
    let n: u32;
    // SAFETY: reads this CPU's entry.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) n, const NOFAULT, options(nomem, nostack, preserves_flags))
    };
    n != 0
}

/// This CPU's entry.
pub fn this() -> &'static PerCpu {
    // SAFETY: the entry lives for ever; its plain fields change only on this CPU's entry paths.
    unsafe { &*of(cpu_id()) }
}

/// Where the next entry from user mode builds its frame: TSS.rsp0 and SYSCALL.
#[inline]
pub fn set_kernel_stack(top: u64) {
    // SAFETY: writes this CPU's entry.
    unsafe {
        asm!("mov gs:[{}], {}", const SYSCALL_RSP, in(reg) top - 8, options(nostack, preserves_flags))
    };
    super::gdt::set_rsp0(top);
}
