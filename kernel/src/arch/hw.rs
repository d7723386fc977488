//! `mm`'s door: what the memory subsystem asks of this machine.
//!
//! Address-space tags (PCID), where CPUID has them: each CPU keeps the last few spaces it ran under a tag,
//! with the flush generation it has caught up with. A CPU that left a space is no longer in its mask and
//! hears of no flush; it compares generations when it comes back, and starts with a clean tag if it is behind.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::hw::{AtomicCpuSet, Cpu, FlushRange, FlushReq, Park, Parked, Waiter, Warning};
use mm::phys::{Frame, FrameDesc, Owned, Phys};
use mm::{Hw, Pfn};

use super::{MAX_CPUS, cpu, fpu, ipi};
use crate::memory::{self, kspace};

/// This machine, as a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct X86;

const PAGES: u64 = 4096;
/// Longer ranges are flushed as a whole.
const MOST_PAGES: u64 = 33;
const NO_FLUSH: u64 = 1 << 63;
const TAGS: usize = 6;

/// What one CPU remembers of its tags: number n of `slots` is tag n + 1; 0 is the kernel's root.
struct Tags {
    slots: [(u64, u64); TAGS],
    loaded: usize,
    next: usize,
}

struct TagTable(UnsafeCell<[Tags; MAX_CPUS]>);
// SAFETY: each entry is used by its own CPU with interrupts off.
unsafe impl Sync for TagTable {}
static TAG_TABLE: TagTable = TagTable(UnsafeCell::new(
    [const {
        Tags {
            slots: [(u64::MAX, 0); TAGS],
            loaded: usize::MAX,
            next: 0,
        }
    }; MAX_CPUS],
));
static USE_TAGS: AtomicBool = AtomicBool::new(false);

/// Turns PCID on, where it is, on this CPU; the kernel's root is loaded.
pub(super) fn init_cpu() {
    if !cpu::features().pcid() {
        return;
    }
    // SAFETY: CR3's tag is 0 now, as turning it on asks.
    unsafe {
        let cr4: u64;
        asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) cr4 | 1 << 17, options(nostack, preserves_flags));
    }
    USE_TAGS.store(true, Ordering::Relaxed);
}

/// This CPU's tags. Interrupts off.
fn tags<'a>() -> &'a mut Tags {
    // SAFETY: own CPU's entry, and the callers have interrupts off and keep no second borrow.
    unsafe { &mut *TAG_TABLE.0.get().cast::<Tags>().add(super::cpu_id()) }
}

#[cold]
fn load_tagged(root: Pfn, id: u64, generation: u64) {
    let t = tags();
    let (slot, fresh) = match t.slots.iter().position(|(known, _)| *known == id) {
        Some(slot) => (slot, t.slots[slot].1 != generation),
        None => {
            let slot = t.next;
            t.next = (slot + 1) % TAGS;
            (slot, true)
        }
    };
    t.slots[slot] = (id, generation);
    t.loaded = slot;
    let keep = if fresh { 0 } else { NO_FLUSH };
    // SAFETY: a user root, whose kernel half is the kernel's.
    unsafe { cpu::set_cr3(root.0 << 12 | (slot as u64 + 1) | keep) };
}

/// A flush of the space that is loaded under a tag. Interrupts off.
#[cold]
fn flush_tagged(req: &FlushReq) {
    let t = tags();
    let Some((_, known)) = t.slots.get_mut(t.loaded) else {
        return;
    };
    if *known >= req.generation {
        return;
    }
    match req.range {
        FlushRange::Pages { start, end } if *known + 1 == req.generation && few(start, end) => {
            (start..end).step_by(PAGES as usize).for_each(cpu::invlpg);
        }
        // SAFETY: the root that is loaded; without NO_FLUSH its tag is emptied.
        _ => unsafe { cpu::set_cr3(cpu::cr3() & !NO_FLUSH) },
    }
    *known = req.generation;
}

fn few(start: u64, end: u64) -> bool {
    (end - start) / PAGES <= MOST_PAGES
}

/// Another CPU's shootdown arrived here. Interrupts off.
pub(super) fn on_shootdown(cpus: &AtomicCpuSet, req: FlushReq) {
    if X86.loaded_root() == req.root && crate::task::runs_without_space() {
        // Loaded lazily: leave it instead, before its tables may be freed.
        X86.load_kernel_root();
        cpus.remove(super::cpu_id());
        return;
    }
    X86.flush_local(req);
}

/// As many lines a minute, and how many were left out of the minute before.
struct Burst {
    since: AtomicU64,
    came: AtomicU64,
}

impl Burst {
    const MOST: u64 = 60;
    const MINUTE_NS: u64 = 60 * 1_000_000_000;

    const fn new() -> Self {
        Self {
            since: AtomicU64::new(0),
            came: AtomicU64::new(0),
        }
    }

    /// Another has come: whether it may have a line, and how many have had none. Callers that race may be a few too many.
    fn admit(&self, now_ns: u64) -> Option<u64> {
        if now_ns.saturating_sub(self.since.load(Ordering::Relaxed)) >= Self::MINUTE_NS {
            self.since.store(now_ns, Ordering::Relaxed);
            let before = self.came.swap(1, Ordering::Relaxed);
            return Some(before.saturating_sub(Self::MOST));
        }
        (self.came.fetch_add(1, Ordering::Relaxed) < Self::MOST).then_some(0)
    }
}

static BAD_ENTRIES: Burst = Burst::new();

/// A line in the log; an attempt to have the kernel grow a stack once an hour, bad entries in bursts, the others, which are bugs
/// of ours, once.
fn report(w: Warning) {
    static LAST_STACK: AtomicU64 = AtomicU64::new(0);
    static BUGS: AtomicU64 = AtomicU64::new(0);
    const HOUR_NS: u64 = 3600 * 1_000_000_000;
    let who = crate::task::try_current().map_or(0, |t| t.process.pid);
    let kind = match w {
        Warning::BelowStack { va, start } => {
            let (now, last) = (
                super::time::now_ns().max(1),
                LAST_STACK.load(Ordering::Relaxed),
            );
            if last == 0 || now - last >= HOUR_NS {
                LAST_STACK.store(now, Ordering::Relaxed);
                crate::warn!(
                    "process {who} reaches for {va:#x} below a stack at {start:#x}: it does not grow for that"
                );
            }
            return;
        }
        Warning::GupArguments => 1,
        Warning::UnpinCount => 2,
        Warning::PinnedShared(_) => 4,
        Warning::BadEntry {
            va,
            entry,
            flags,
            start,
            pgoff,
        } => {
            if let Some(unshown) = BAD_ENTRIES.admit(super::time::now_ns()) {
                let so_far = X86.phys().bad_entries();
                crate::error!(
                    "process {who}: bad page table entry {entry:#018x} of {va:#x}, in a mapping at {start:#x} with flags {flags:#x} and offset {pgoff:#x} ({so_far} so far, {unshown} not shown)"
                );
            }
            return;
        }
    };
    if BUGS.fetch_or(kind, Ordering::Relaxed) & kind == 0 {
        crate::error!("process {who}: mm warns of {w:?}");
    }
}

impl Cpu for X86 {
    type IrqState = bool;

    #[inline(always)]
    fn irq_save(self) -> bool {
        super::irq_save()
    }

    #[inline(always)]
    fn irq_restore(self, saved: bool) {
        super::irq_restore(saved);
    }

    #[inline]
    fn irqs_on(self) -> bool {
        super::irqs_on()
    }

    #[inline(always)]
    fn cpu(self) -> usize {
        super::cpu_id()
    }

    #[inline(always)]
    fn spin_hint(self) {
        core::hint::spin_loop();
    }

    #[inline]
    fn has_pkeys(self) -> bool {
        fpu::FpuState::pkru_at().is_some()
    }

    #[inline]
    fn pkey_allows(self, key: u32, write: bool) -> bool {
        if !self.has_pkeys() {
            return true;
        }
        let rights = fpu::pkru() >> (2 * (key & 15));
        rights & 1 == 0 && !(write && rights & 2 != 0)
    }

    #[cfg(feature = "test")]
    #[inline]
    fn held(self) -> &'static mm::sync::lockdep::Held {
        match crate::task::try_current() {
            Some(t) => &t.held,
            None => &mm::sync::lockdep::PER_CPU[super::cpu_id()],
        }
    }

    fn waiter(self) -> Waiter {
        Waiter(crate::task::current_tid())
    }

    fn park(self, how: Park) -> Parked {
        let kind = match how {
            Park::Uninterruptible => crate::task::Sleep::Uninterruptible,
            Park::Killable => crate::task::Sleep::Killable,
        };
        match crate::task::park(kind) {
            Ok(()) => Parked::Woken,
            Err(_) => Parked::Killed,
        }
    }

    fn unpark(self, w: Waiter) {
        crate::task::unpark(w.0);
    }

    #[inline]
    fn fatal_signal_pending(self) -> bool {
        crate::task::fatal_signal_pending()
    }

    fn may_lock_any(self) -> bool {
        const CAP_IPC_LOCK: u32 = 14;
        crate::task::current().process.creds().capable(CAP_IPC_LOCK)
    }

    #[inline]
    fn signal_pending(self) -> bool {
        crate::task::signal_pending()
    }

    #[inline]
    fn count_fault(self) {
        crate::task::current().count_fault(false);
    }

    #[cold]
    fn warn(self, w: Warning) {
        report(w);
    }

    #[inline]
    fn cond_resched(self) {
        crate::task::cond_resched();
    }

    #[inline]
    fn load_root(self, root: Pfn, id: u64, generation: u64) {
        if USE_TAGS.load(Ordering::Relaxed) {
            return load_tagged(root, id, generation);
        }
        // SAFETY: a user root, whose kernel half is the kernel's.
        unsafe { cpu::set_cr3(root.0 << 12) };
    }

    fn load_kernel_root(self) {
        if USE_TAGS.load(Ordering::Relaxed) {
            tags().loaded = usize::MAX;
        }
        // SAFETY: the kernel's own.
        unsafe { cpu::set_cr3(kspace::kernel_root().0 << 12) };
    }

    #[inline(always)]
    fn loaded_root(self) -> Pfn {
        Pfn(cpu::cr3() >> 12)
    }

    #[inline]
    fn flush_local(self, req: FlushReq) {
        if self.loaded_root() != req.root {
            // Without tags nothing of it is cached; with them, the generation tells when it comes back.
            return;
        }
        if USE_TAGS.load(Ordering::Relaxed) {
            let on = super::irq_save();
            flush_tagged(&req);
            return super::irq_restore(on);
        }
        match req.range {
            FlushRange::Pages { start, end } if few(start, end) => {
                let mut va = start;
                while va < end {
                    cpu::invlpg(va);
                    va += PAGES;
                }
            }
            // SAFETY: the root that is loaded.
            _ => unsafe { cpu::set_cr3(req.root.0 << 12) },
        }
    }

    #[inline]
    fn shootdown(self, cpus: &AtomicCpuSet, req: FlushReq) {
        let others = cpus.load() & !(1 << super::cpu_id());
        if others != 0 {
            ipi::shootdown_space(others, cpus, req);
        }
    }

    fn grace_period(self) {
        ipi::run_on_all(|| {});
    }
}

impl Hw for X86 {
    #[inline(always)]
    fn frame_ptr(self, pfn: Pfn) -> *mut u8 {
        memory::direct(pfn.0 << 12) as *mut u8
    }

    #[inline(always)]
    fn desc(self, pfn: Pfn) -> &'static FrameDesc {
        let at = memory::VMEMMAP + pfn.0 * size_of::<FrameDesc>() as u64;
        // SAFETY: the descriptors of all frames up to the last of RAM are mapped there for ever, and are atomics.
        unsafe { &*(at as *const FrameDesc) }
    }

    fn frames_end(self) -> u64 {
        memory::frames_end()
    }

    #[inline(always)]
    fn phys(self) -> &'static Phys {
        &memory::PHYS
    }

    fn make_room(self, wait: &mut mm::CanWait<Self>) -> bool {
        crate::oom::out_of_memory(wait);
        !crate::task::fatal_signal_pending()
    }

    #[inline(always)]
    fn clear_frame(self, p: *mut u8) {
        // SAFETY: the caller's frame, 4096 bytes.
        unsafe {
            asm!("rep stosq", inout("rcx") 512u64 => _, inout("rdi") p => _, in("rax") 0u64,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn copy_frame(self, dst: *mut u8, src: *const u8) {
        // SAFETY: the caller's frames, 4096 bytes each.
        unsafe {
            asm!("rep movsq", inout("rcx") 512u64 => _, inout("rdi") dst => _, inout("rsi") src => _,
                options(nostack, preserves_flags));
        }
    }

    fn copy_raw(self, into: &mut Frame<Owned>, root: Pfn, va: u64) -> bool {
        // Elsewhere the address means something else.
        let space = crate::task::current().space();
        if space.is_none_or(|space| space.tables.root() != root) {
            return false;
        }
        // SAFETY: a frame of the caller's, 4096 bytes in the direct map.
        unsafe { super::uaccess::copy_registers_nofault(self.frame_ptr(into.pfn()), va, 4096) }
    }

    fn hide_frame(self, pfn: Pfn) -> bool {
        mm::sync::lockdep::may_await(self);
        kspace::hide(pfn)
    }

    fn show_frame(self, pfn: Pfn) {
        kspace::show(pfn);
    }

    fn gate_page(self) -> Option<u64> {
        crate::vsyscall::mode().map(|_| crate::vsyscall::PAGE)
    }

    #[inline(always)]
    fn kernel_root(self) -> Pfn {
        kspace::kernel_root()
    }
}
