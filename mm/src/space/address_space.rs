//! AddressSpace: VMAs, tables, the CPUs that use them, and what is counted about them.
//!
//! A space stays at one address for life (VMAs point back at it), so it is made in an `Arc`. The
//! scheduler calls [`AddressSpace::activate`] and, for the one it came from, [`AddressSpace::leave`];
//! a CPU that goes on to a kernel thread may keep the tables loaded and then stays in the CPU set until
//! it has loaded others, or until a shootdown asks it to (hw.rs). Counters of resident pages are
//! per CPU and written by their CPU only; readers add them up.

use super::flags::VmaFlags;
use super::keys::Keys;
use super::locks::Vmas;
use super::tree::VmaNode;
use crate::addr::PAGE_SHIFT;
use crate::hw::{FlushRange, MAX_CPUS};
use crate::object::anon::{AnonFamily, FamilyRef};
use crate::phys::{Hw, NoFrame};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, Ordering::*};
use crate::sync::{Class, RwSem, SeqCount};
use crate::table::{Tables, TlbState};
use crate::wait::{CanWait, IrqOff};
use alloc::sync::Arc;
use core::ptr::NonNull;

/// What a resident page is counted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum RssKind {
    /// Anonymous.
    Anon = 0,
    /// Of a file that is not shared memory.
    File = 1,
    /// Of shared memory: tmpfs, memfd, shared anonymous.
    Shmem = 2,
}

/// One CPU's share: written by that CPU only.
#[repr(align(64))]
#[derive(Default)]
struct PerCpu {
    rss: [AtomicI64; 3],
    /// The VMA that this CPU's last fault locked; good while the tree's count is `vma_seq`.
    vma: AtomicPtr<VmaNode>,
    vma_seq: AtomicU64,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$fdoc])* pub $field: AtomicU64,)* }
        impl $name {
            /// Every word, in the order of the fields.
            fn words(&self) -> impl Iterator<Item = &AtomicU64> {
                [$(&self.$field,)*].into_iter()
            }
        }
    };
}

fn copy<'a>(to: impl Iterator<Item = &'a AtomicU64>, from: impl Iterator<Item = &'a AtomicU64>) {
    for (to, from) in to.zip(from) {
        to.store(from.load(Relaxed), Relaxed);
    }
}

words! {
    /// Where things lie: set by exec, read by procfs and the calls that name them.
    Layout {
        /// Program text.
        start_code
        /// End of text.
        end_code
        /// Initialised data.
        start_data
        /// End of data.
        end_data
        /// Where the heap begins.
        start_brk
        /// Where it ends; bytes. Changed under the mmap write lock.
        brk
        /// First stack pointer.
        start_stack
        /// Argument strings.
        arg_start
        /// End of the argument strings.
        arg_end
        /// Environment strings.
        env_start
        /// End of the environment strings.
        env_end
        /// Gap search begins below this.
        mmap_base
    }
}

words! {
    /// Pages of address space, changed under the mmap write lock.
    Counts {
        /// All.
        total_vm
        /// Private writable.
        data_vm
        /// Executable, not writable.
        exec_vm
        /// Stacks.
        stack_vm
        /// Locked.
        locked_vm
        /// Most pages of `total_vm` so far.
        hiwater_vm
    }
}

impl Counts {
    /// Nothing is mapped any more.
    pub(super) fn reset(&self) {
        let peak = self.hiwater_vm.load(Relaxed);
        for c in self.words() {
            c.store(0, Relaxed);
        }
        self.hiwater_vm.store(peak, Relaxed);
    }
}

words! {
    /// Resource limits in bytes, as the kernel last set them.
    Limits {
        /// RLIMIT_AS.
        address_space
        /// RLIMIT_DATA.
        data
        /// RLIMIT_STACK.
        stack
        /// RLIMIT_MEMLOCK.
        memlock
    }
}

/// What a process sees.
pub struct AddressSpace<H: Hw> {
    /// Page tables.
    pub tables: Tables<H>,
    /// Translations: root, number, generation, CPU set.
    pub tlb: TlbState,
    pub(super) sem: RwSem,
    /// Ends of mmap write sections (locks.rs).
    pub(super) write_seq: AtomicU64,
    pub(super) vmas: Vmas<H>,
    family: FamilyRef<H>,
    cpu: [PerCpu; MAX_CPUS],
    /// Odd while fork write-protects: lockless pinners fall back (BUG-7).
    pub fork_seq: SeqCount,
    /// Whether a page of this space was ever pinned: fork looks closer then.
    pub has_pinned: AtomicBool,
    /// See [`Keys`].
    pub keys: Keys,
    /// See [`Layout`].
    pub layout: Layout,
    /// See [`Counts`].
    pub counts: Counts,
    /// See [`Limits`].
    pub limits: Limits,
    /// What `mlockall` adds to the flags of new mappings; changed under the mmap write lock.
    pub(super) def_flags: AtomicU64,
    hiwater_rss: AtomicU64,
    /// See [`AddressSpace::is_doomed`].
    doomed: AtomicBool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl<H: Hw> AddressSpace<H> {
    /// An empty space: a root with the kernel half, a family of its own.
    pub fn new(hw: H) -> Option<Arc<Self>> {
        Self::build(hw, AnonFamily::create(hw)?)
    }

    /// An empty space for a child of `parent`: its family, layout and limits.
    pub fn new_child(parent: &Self) -> Result<Arc<Self>, NoFrame> {
        let child = Self::build(parent.hw(), parent.family.clone()).ok_or(NoFrame)?;
        child.keys.copy(&parent.keys);
        copy(child.layout.words(), parent.layout.words());
        copy(child.limits.words(), parent.limits.words());
        Ok(child)
    }

    fn build(hw: H, family: FamilyRef<H>) -> Option<Arc<Self>> {
        let tables = Tables::new(hw).ok()?;
        let tlb = TlbState::new(tables.root(), NEXT_ID.fetch_add(1, Relaxed));
        let limits = Limits::default();
        for l in limits.words() {
            l.store(u64::MAX, Relaxed);
        }
        Some(Arc::new(Self {
            tables,
            tlb,
            sem: RwSem::new(Class::Mmap),
            write_seq: AtomicU64::new(1),
            vmas: Vmas::new(),
            family,
            cpu: Default::default(),
            fork_seq: SeqCount::new(),
            has_pinned: AtomicBool::new(false),
            keys: Keys::new(),
            layout: Layout::default(),
            counts: Counts::default(),
            limits,
            def_flags: AtomicU64::new(0),
            hiwater_rss: AtomicU64::new(0),
            doomed: AtomicBool::new(false),
        }))
    }

    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.tables.hw()
    }
    /// A number that no other space has or had.
    #[inline]
    pub fn id(&self) -> u64 {
        self.tlb.id()
    }
    /// The family of its anonymous pages.
    #[inline]
    pub fn anon_family(&self) -> &AnonFamily<H> {
        &self.family
    }

    /// Whether the running thread may have `pages` more of this kind locked in memory (RLIMIT_MEMLOCK).
    pub fn may_lock(&self, flags: VmaFlags, pages: u64) -> bool {
        let limit = self.limits.memlock.load(Relaxed) >> PAGE_SHIFT;
        !flags.contains(VmaFlags::LOCKED)
            || self
                .counts
                .locked_vm
                .load(Relaxed)
                .checked_add(pages)
                .is_some_and(|all| all <= limit)
            || self.hw().may_lock_any()
    }
    /// What new mappings get beside what they ask for (MCL_FUTURE).
    #[inline]
    pub fn def_flags(&self) -> VmaFlags {
        VmaFlags::from_bits_retain(self.def_flags.load(Relaxed))
    }

    /// Loads this space on this CPU. The caller then calls `leave` on the one that was loaded before.
    #[inline]
    pub fn activate(&self, irq: &IrqOff<'_, H>) {
        let hw = irq.hw();
        self.tlb.cpus.insert(hw.cpu());
        hw.load_root(self.tlb.root(), self.tlb.id(), self.tlb.generation());
    }
    /// This CPU has loaded other tables.
    #[inline]
    pub fn leave(&self, irq: &IrqOff<'_, H>) {
        let hw = irq.hw();
        debug_assert!(hw.loaded_root() != self.tlb.root());
        self.tlb.cpus.remove(hw.cpu());
    }
    /// The last user is gone, and this CPU has left: makes CPUs that keep the tables lazily leave, too,
    /// after which no CPU can reach them.
    pub fn evict(&self, wait: &CanWait<H>) {
        if self.tlb.cpus.load() != 0 {
            self.tlb.flush(wait, FlushRange::All);
        }
    }

    /// What is private in it has been taken away, or is about to be: its faults are refused, and so is fork (`ops::reap`).
    #[inline]
    pub fn is_doomed(&self) -> bool {
        self.doomed.load(Relaxed)
    }
    /// Before all locks of the space are taken, after which anything may go.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Relaxed);
    }

    /// Counts resident pages, on this CPU.
    #[inline]
    pub fn add_rss(&self, kind: RssKind, delta: i64) {
        let c = &self.cpu[self.hw().cpu()].rss[kind as usize];
        c.store(c.load(Relaxed) + delta, Relaxed);
    }
    /// Resident pages of one kind.
    pub fn rss(&self, kind: RssKind) -> u64 {
        let sum: i64 = self
            .cpu
            .iter()
            .map(|c| c.rss[kind as usize].load(Relaxed))
            .sum();
        sum.max(0) as u64
    }
    /// All resident pages.
    pub fn rss_total(&self) -> u64 {
        let now = self.rss(RssKind::Anon) + self.rss(RssKind::File) + self.rss(RssKind::Shmem);
        self.hiwater_rss.fetch_max(now, Relaxed);
        now
    }
    /// The most there were, as far as `rss_total` was called before pages were unmapped.
    pub fn rss_peak(&self) -> u64 {
        self.rss_total();
        self.hiwater_rss.load(Relaxed)
    }

    /// The peak is what is resident now.
    pub fn reset_rss_peak(&self) {
        self.hiwater_rss.store(0, Relaxed);
        self.rss_total();
    }

    /// The VMA that this CPU locked last, if it is still what it was and contains `va`.
    #[inline]
    pub(super) fn cached_vma(&self, hw: H, seq: u64, va: u64) -> Option<NonNull<VmaNode>> {
        let c = &self.cpu[hw.cpu()];
        if c.vma_seq.load(Relaxed) != seq {
            return None;
        }
        let node = NonNull::new(c.vma.load(Relaxed))?;
        // SAFETY: no edit began since the node was found in the tree (`seq`), and a VMA leaves the tree
        // by an edit before it is freed; if one begins now, interrupts off keep its memory.
        let n = unsafe { node.as_ref() };
        (n.start() <= va && va < n.end()).then_some(node)
    }
    #[inline]
    pub(super) fn cache_vma(&self, hw: H, seq: u64, node: NonNull<VmaNode>) {
        let c = &self.cpu[hw.cpu()];
        c.vma.store(node.as_ptr(), Relaxed);
        c.vma_seq.store(seq, Relaxed);
    }
}

impl<H: Hw> Drop for AddressSpace<H> {
    fn drop(&mut self) {
        #[cfg(feature = "sim")]
        if std::thread::panicking() {
            return; // the test's own message says more
        }
        assert!(
            self.vmas.tree.first().is_none(),
            "a space is dropped with mappings"
        );
        assert!(
            self.tlb.cpus.load() == 0,
            "a space is dropped while a CPU uses it"
        );
        // SAFETY: no VMA, so every table was freed with the last (detach.rs); no CPU has the root, and
        // nobody else has the space.
        unsafe { self.tables.destroy() };
    }
}
