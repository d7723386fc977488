//! The one door to the machine.
//!
//! [`Cpu`] is what the lowest rooms need: interrupts, waiting, translation caches. `phys::Hw` adds memory.
//! Implemented by a zero-sized type in the kernel and by `&'static Sim` on the host, hence `Copy` and
//! by-value `self`.

use crate::addr::Pfn;
use crate::sync::atomic::{AtomicU64, Ordering};

/// CPUs that mm keeps per-CPU state for.
pub const MAX_CPUS: usize = 8;

/// What to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushRange {
    /// Leaves of `start..end` (bytes, page aligned) and nothing of the upper levels.
    Pages { start: u64, end: u64 },
    /// Everything that the space's tables ever said, cached upper levels included.
    All,
}

/// A flush of one space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushReq {
    /// The space's top-level table.
    pub root: Pfn,
    /// The space's number; never used twice.
    pub id: u64,
    /// The space's flush generation after this flush.
    pub generation: u64,
    /// What changed.
    pub range: FlushRange,
    /// Who asked: a mutation point of the simulated machine.
    #[cfg(feature = "sim")]
    pub site: &'static core::panic::Location<'static>,
    /// Tables were unhooked: upper levels matter.
    #[cfg(feature = "sim")]
    pub tables: bool,
}

/// A set of CPUs, at most 64.
#[derive(Debug, Default)]
pub struct AtomicCpuSet(AtomicU64);

impl AtomicCpuSet {
    /// Nobody.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    /// A snapshot, bit n for CPU n. Full barrier against the entry stores before it.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    /// Adds a CPU; full barrier, so that the table loads after it are seen by whoever clears entries.
    #[inline]
    pub fn insert(&self, cpu: usize) {
        self.0.fetch_or(1 << cpu, Ordering::SeqCst);
    }
    /// Removes a CPU, which must have stopped using the tables.
    #[inline]
    pub fn remove(&self, cpu: usize) {
        self.0.fetch_and(!(1 << cpu), Ordering::SeqCst);
    }
    /// Whether the CPU is in.
    #[inline]
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.load(Ordering::Relaxed) & (1 << cpu) != 0
    }
}

/// Names a thread to [`Cpu::unpark`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiter(pub usize);

/// How deep to sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Park {
    /// Only [`Cpu::unpark`] wakes.
    Uninterruptible,
    /// A fatal signal wakes, too.
    Killable,
}

/// Why a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parked {
    /// Somebody called `unpark`, or nobody did: callers re-check.
    Woken,
    /// A fatal signal is pending.
    Killed,
}

/// What somebody should read about, though mm goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warning {
    /// A call of `gup` with flags that it never takes (ARG-2).
    GupArguments,
    /// The kernel was asked for memory just below a stack, which only its own thread may grow (VMA-1).
    BelowStack {
        /// The address.
        va: u64,
        /// Where the stack begins.
        start: u64,
    },
    /// Somebody unpins as many pages as an error number says (PIN-9).
    UnpinCount,
    /// A pinned anonymous page is shared (PIN-13).
    PinnedShared(Pfn),
    /// A page table has an entry that nobody made (PFN-8).
    BadEntry {
        /// Of this address.
        va: u64,
        /// Its bits.
        entry: u64,
        /// Those of its VMA.
        flags: u64,
        /// Where that begins.
        start: u64,
        /// And with which page of its object.
        pgoff: u64,
    },
}

/// Interrupts, sleeping and translation caches of the CPU that runs this.
pub trait Cpu: Copy + Send + Sync + 'static {
    /// Saved interrupt state.
    type IrqState: Copy;
    /// Interrupts off; returns what they were.
    fn irq_save(self) -> Self::IrqState;
    /// Back to what `irq_save` returned.
    fn irq_restore(self, saved: Self::IrqState);
    /// Whether this CPU takes interrupts, hence acknowledges shootdowns.
    fn irqs_on(self) -> bool;
    /// This CPU's number, below [`MAX_CPUS`].
    fn cpu(self) -> usize;
    /// Called in spin loops.
    fn spin_hint(self);

    /// Whether the key register of this CPU lets the running thread read (or `write`) pages of protection key
    /// `key` (VMA-10, FAST-6). Data only: keys say nothing of instruction fetches. Yes where there are no keys.
    #[inline(always)]
    fn pkey_allows(self, _key: u32, _write: bool) -> bool {
        true
    }

    /// Whether it has protection keys.
    #[inline(always)]
    fn has_pkeys(self) -> bool {
        false
    }

    /// A mutation point: whether the machine wants the batch not to hear of what `site` noted.
    #[cfg(feature = "sim")]
    fn forgets_note(self, _site: &'static core::panic::Location<'static>) -> bool {
        false
    }

    /// What the running thread holds. A kernel whose threads sleep keeps a record in each.
    #[cfg(feature = "lockdep")]
    #[inline]
    fn held(self) -> &'static crate::sync::lockdep::Held {
        &crate::sync::lockdep::PER_CPU[self.cpu()]
    }

    /// The running thread.
    fn waiter(self) -> Waiter;
    /// Sleeps until unparked; an `unpark` that came first makes it return at once. No lock held, interrupts on.
    fn park(self, how: Park) -> Parked;
    /// Ends or forestalls a `park`. Any context but an interrupt handler.
    fn unpark(self, w: Waiter);
    /// Whether the running thread is dying.
    fn fatal_signal_pending(self) -> bool;
    /// Whether the running thread has any signal to take.
    #[inline]
    fn signal_pending(self) -> bool {
        self.fatal_signal_pending()
    }
    /// The running thread had a fault made good that no trap brought: on its behalf, in whatever space (FAULT-11).
    fn count_fault(self) {}
    /// Tells whoever reads the log. Any context; may drop what comes too often.
    fn warn(self, _: Warning) {}
    /// Whether the lockless walk is built in; a test may want to do without (FAST-21).
    #[cfg(feature = "sim")]
    fn walks_fast(self) -> bool {
        true
    }
    /// The machine's test hears of a pause point.
    #[cfg(feature = "sim")]
    fn pause(self, _: crate::race::Point) {}
    /// Whether the running thread may lock any amount of memory (CAP_IPC_LOCK).
    fn may_lock_any(self) -> bool {
        false
    }
    /// A named yield point: no lock that another thread of this CPU may want is held.
    fn cond_resched(self);

    /// Makes `root` this CPU's tables. `generation` tells an implementation with PCIDs whether what it
    /// kept of space `id` is stale. Interrupts off.
    fn load_root(self, root: Pfn, id: u64, generation: u64);
    /// Leaves user tables: the kernel's own root. Interrupts off.
    fn load_kernel_root(self);
    /// The root this CPU has loaded (the kernel's own when none).
    fn loaded_root(self) -> Pfn;
    /// Forgets on this CPU, if it has the space loaded (or tagged entries of it).
    fn flush_local(self, req: FlushReq);
    /// Makes every CPU of `cpus` but this one forget, and returns after all have acknowledged. A CPU
    /// that has the space loaded only lazily leaves it (loads the kernel root, removes itself from
    /// `cpus`) before it acknowledges. Interrupts on, or it may deadlock.
    fn shootdown(self, cpus: &AtomicCpuSet, req: FlushReq);
    /// Returns after every other CPU has taken an interrupt: whoever had them off is through.
    fn grace_period(self);
}
