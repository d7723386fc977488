//! One descriptor for every frame, and the frame as an owned value.

use crate::addr::{Order, Pfn};
use crate::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::marker::PhantomData;

/// Bits of [`FrameDesc::flags`].
pub mod flag {
    /// The folio lock.
    pub const LOCKED: u64 = 1 << 0;
    /// Content newer than its backing store.
    pub const DIRTY: u64 = 1 << 1;
    /// Used since aging last looked.
    pub const REFERENCED: u64 = 1 << 2;
    /// On the active list (when LRU is set).
    pub const ACTIVE: u64 = 1 << 3;
    /// On an aging list.
    pub const LRU: u64 = 1 << 4;
    /// Never to be reclaimed (mlock).
    pub const UNEVICTABLE: u64 = 1 << 5;
    /// Anonymous and belongs to one process only (UNSH-3).
    pub const ANON_EXCLUSIVE: u64 = 1 << 6;
    /// Content is valid.
    pub const UPTODATE: u64 = 1 << 7;
    /// On its way to the backing store.
    pub const WRITEBACK: u64 = 1 << 8;
    /// First frame of a folio of more than one.
    pub const HEAD: u64 = 1 << 9;
    /// Later frame of such a folio; `head` says whose.
    pub const TAIL: u64 = 1 << 10;
    /// Free, in the buddy lists, as the first frame of a block of `ORDER`.
    pub const BUDDY: u64 = 1 << 11;
    /// Free, in a per-CPU cache.
    pub const CACHED: u64 = 1 << 12;
    /// A page-table page.
    pub const TABLE: u64 = 1 << 13;
    /// Carved into objects.
    pub const SLAB: u64 = 1 << 14;
    /// Anonymous or memory-backed file: reclaimed to swap, not to a file.
    pub const SWAPBACKED: u64 = 1 << 15;
    /// Somebody sleeps on the folio lock.
    pub const WAITERS: u64 = 1 << 16;
    /// Secret memory: never reachable by side doors.
    pub const SECRET: u64 = 1 << 17;
    /// Nobody can have it, so that no entry that is counted shows it: the zero page, and what the allocator was never given, be it
    /// memory or not (PFN-8).
    pub const RESERVED: u64 = 1 << 18;
    /// A page of a file that is written back (VMA-13): its DIRTY is counted.
    pub const TRACKED: u64 = 1 << 19;
    /// Four bits: order of a BUDDY block or a HEAD folio.
    pub const ORDER_SHIFT: u32 = 24;
    /// See [`ORDER_SHIFT`].
    pub const ORDER_MASK: u64 = 0xf << ORDER_SHIFT;
    /// Two bits: `zone::Zone`. Set once at boot.
    pub const ZONE_SHIFT: u32 = 28;
    /// See [`ZONE_SHIFT`].
    pub const ZONE_MASK: u64 = 3 << ZONE_SHIFT;
    /// Allocator knows this frame: RAM that was handed to it. Set once at boot.
    pub const MANAGED: u64 = 1 << 30;
    /// Eight bits: NUMA node. Set once at boot.
    pub const NODE_MASK: u64 = 0xff << 32;
    /// Three bits: which CPU's aging lists hold it.
    pub const SHARD_SHIFT: u32 = 40;
    /// See [`SHARD_SHIFT`].
    pub const SHARD_MASK: u64 = 7 << SHARD_SHIFT;
    /// What survives from one life of the frame to the next.
    pub const FIXED: u64 = ZONE_MASK | NODE_MASK | MANAGED;
}

/// What the kernel knows of one frame: 64 bytes, so that two folios never share a cache line.
///
/// `RESERVED` and nothing else until the allocator gets its frame.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct FrameDesc {
    /// References; free at 0. Pins of small folios add 1024 each.
    pub refs: AtomicI32,
    /// Page-table entries that map this frame.
    pub maps: AtomicI32,
    /// [`flag`].
    pub flags: AtomicU64,
    /// Whose page: 0 nobody, family address | 1 anonymous, file object address, table's or slab's owner.
    pub mapping: AtomicUsize,
    /// Offset in `mapping`, in pages.
    pub index: AtomicU64,
    /// Links of the one list this frame is on (aging list, buddy list): frame numbers, 0 ends.
    pub prev: AtomicU32,
    /// See `prev`.
    pub next: AtomicU32,
    /// Swap entry, table's live count, driver's word.
    pub private: AtomicU64,
    /// Exact pins of a large folio.
    pub pins: AtomicI32,
    /// Mappings of a large folio as a whole.
    pub entire_maps: AtomicI32,
    /// A page-table page's split lock; of a user page, how many entries lock it in memory (count.rs).
    pub lock: AtomicU32,
    /// A tail's head.
    pub head: AtomicU32,
}

impl FrameDesc {
    /// The order in `flags`.
    #[inline]
    pub fn order(&self) -> u32 {
        ((self.flags.load(Relaxed) & flag::ORDER_MASK) >> flag::ORDER_SHIFT) as u32
    }
    /// [`flag`]s now.
    #[inline]
    pub fn flags(&self) -> u64 {
        self.flags.load(Relaxed)
    }
    /// Whether all bits of `f` are set.
    #[inline]
    pub fn has(&self, f: u64) -> bool {
        self.flags.load(Relaxed) & f == f
    }
    /// Whether any bit of `f` is set.
    #[inline]
    pub fn has_any(&self, f: u64) -> bool {
        self.flags.load(Relaxed) & f != 0
    }
    /// Sets bits, atomically.
    #[inline]
    pub fn set(&self, f: u64) {
        self.flags.fetch_or(f, Relaxed);
    }
    /// Clears bits, atomically.
    #[inline]
    pub fn clear(&self, f: u64) {
        self.flags.fetch_and(!f, Relaxed);
    }
}

mod sealed {
    pub trait Sealed {}
}
/// Typestates of [`Frame`].
pub trait FrameState: sealed::Sealed {}
/// Contents unknown.
#[derive(Debug)]
pub enum Owned {}
/// All bytes zero.
#[derive(Debug)]
pub enum Zeroed {}
impl sealed::Sealed for Owned {}
impl sealed::Sealed for Zeroed {}
impl FrameState for Owned {}
impl FrameState for Zeroed {}

/// One block of 2^order frames with exactly one owner and one reference. Not `Clone`; give it back with
/// `Hw::free` or make a folio of it.
///
/// ```compile_fail,E0599
/// fn twice(f: mm::phys::Frame<mm::phys::Owned>) { let _g = f.clone(); }
/// ```
#[must_use = "a frame that is dropped is lost: free it or map it"]
#[derive(Debug)]
pub struct Frame<S: FrameState> {
    pfn: Pfn,
    order: Order,
    _s: PhantomData<S>,
}

impl<S: FrameState> Frame<S> {
    #[inline]
    pub(in crate::phys) fn new(pfn: Pfn, order: Order) -> Self {
        Self {
            pfn,
            order,
            _s: PhantomData,
        }
    }
    /// Which (the first of the block).
    #[inline]
    pub fn pfn(&self) -> Pfn {
        self.pfn
    }
    /// How many.
    #[inline]
    pub fn order(&self) -> Order {
        self.order
    }
    /// Gives up ownership for a bare number: somebody else now answers for the reference.
    #[inline]
    pub fn into_pfn(self) -> Pfn {
        self.pfn
    }
}

impl Frame<Owned> {
    /// Takes ownership back after [`Frame::into_pfn`].
    ///
    /// # Safety
    /// The caller answers for the block's only reference.
    #[inline]
    pub unsafe fn from_raw(pfn: Pfn, order: Order) -> Self {
        Self::new(pfn, order)
    }
}

impl Frame<Zeroed> {
    /// A table page comes back: every entry was emptied before it was unhooked.
    #[inline]
    pub(crate) fn from_table(pfn: Pfn) -> Self {
        Self::new(pfn, Order::ZERO)
    }
}

impl Frame<Owned> {
    /// Fills it with zeroes.
    #[inline]
    pub fn zero<H: super::Hw>(self, hw: H) -> Frame<Zeroed> {
        if self.order == Order::ZERO {
            hw.clear_frame(hw.frame_ptr(self.pfn));
            return Frame::new(self.pfn, Order::ZERO);
        }
        for i in 0..self.order.pages() {
            hw.clear_frame(hw.frame_ptr(Pfn(self.pfn.0 + i)));
        }
        Frame::new(self.pfn, self.order)
    }
    /// The caller has filled every byte.
    #[inline]
    pub fn assume_init(self) -> Frame<Zeroed> {
        Frame::new(self.pfn, self.order)
    }
}
