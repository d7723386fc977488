//! A folio: 2^n frames that live and die together, seen by its first frame.

use super::frame::{Frame, FrameDesc, FrameState, flag};
use super::{Hw, lru};
use crate::addr::{Order, Pfn};
use crate::sync::atomic::{
    AtomicI64,
    Ordering::{Relaxed, SeqCst},
};

/// Dirty pages of files that are written back.
static DIRTY_PAGES: AtomicI64 = AtomicI64::new(0);
const DIRTY_TRACKED: u64 = flag::DIRTY | flag::TRACKED;

/// Pages that must be written back, of all machines (a test process may run several): `Dirty` of meminfo.
pub fn dirty_pages() -> u64 {
    DIRTY_PAGES.load(Relaxed).max(0) as u64
}

/// Tag in `mapping`: the rest is an anonymous family.
pub const MAPPING_ANON: usize = 1;

/// A handle without a reference of its own: valid while a lock, an entry under its lock or a
/// [`FolioRef`] keeps the folio.
#[derive(Clone, Copy)]
pub struct Folio<H: Hw> {
    hw: H,
    pfn: Pfn,
}

impl<H: Hw> Folio<H> {
    /// The folio that starts at `pfn`.
    #[inline]
    pub fn new(hw: H, pfn: Pfn) -> Self {
        Self { hw, pfn }
    }
    /// First frame.
    #[inline]
    pub fn pfn(self) -> Pfn {
        self.pfn
    }
    /// The machine.
    #[inline]
    pub fn hw(self) -> H {
        self.hw
    }
    /// Its descriptor.
    #[inline]
    pub fn desc(self) -> &'static FrameDesc {
        self.hw.desc(self.pfn)
    }
    /// Its bytes.
    #[inline]
    pub fn ptr(self) -> *mut u8 {
        self.hw.frame_ptr(self.pfn)
    }

    /// A fresh anonymous page of `family` (address, tagged here): exclusive, swap-backed, mapped once,
    /// one reference (the mapping entry's). Not on an aging list yet.
    #[inline]
    pub fn init_anon<S: FrameState>(hw: H, f: Frame<S>, family: usize, index: u64) -> Self {
        let pfn = f.into_pfn();
        let d = hw.desc(pfn);
        d.mapping.store(family | MAPPING_ANON, Relaxed);
        d.index.store(index, Relaxed);
        d.maps.store(1, Relaxed);
        let fixed = d.flags.load(Relaxed) & flag::FIXED;
        d.flags.store(
            fixed | flag::ANON_EXCLUSIVE | flag::SWAPBACKED | flag::UPTODATE,
            Relaxed,
        );
        Self { hw, pfn }
    }
    /// A fresh page-cache page of `object` (address): one reference (the cache's), not mapped.
    #[inline]
    ///
    /// `swapbacked`: it has no file on a disk.
    pub fn init_file<S: FrameState>(
        hw: H,
        f: Frame<S>,
        object: usize,
        index: u64,
        swapbacked: bool,
    ) -> Self {
        let pfn = f.into_pfn();
        let d = hw.desc(pfn);
        d.mapping.store(object, Relaxed);
        d.index.store(index, Relaxed);
        d.maps.store(0, Relaxed);
        let fixed = d.flags.load(Relaxed) & flag::FIXED;
        let kind = if swapbacked { flag::SWAPBACKED } else { 0 };
        d.flags.store(fixed | kind | flag::UPTODATE, Relaxed);
        Self { hw, pfn }
    }

    /// 2^order fresh frames as one folio, for a driver to map (PIN-2): one reference, the caller's; not on an aging
    /// list, nobody's memory.
    pub fn make_large<S: FrameState>(hw: H, f: Frame<S>) -> FolioRef<H> {
        let (order, pfn) = (f.order(), f.into_pfn());
        let d = hw.desc(pfn);
        d.pins.store(0, Relaxed);
        d.mapping.store(0, Relaxed);
        if order != Order::ZERO {
            for tail in 1..order.pages() {
                let t = hw.desc(Pfn(pfn.0 + tail));
                t.head.store(pfn.0 as u32, Relaxed);
                t.set(flag::TAIL);
            }
            d.set(flag::HEAD);
        }
        d.set(flag::UPTODATE);
        FolioRef(Self { hw, pfn })
    }
    /// The folio that this frame is a part of; something holds it meanwhile.
    #[inline]
    pub fn of_page(hw: H, pfn: Pfn) -> Self {
        let d = hw.desc(pfn);
        if d.has(flag::TAIL) {
            return Self::new(hw, Pfn(d.head.load(Relaxed) as u64));
        }
        Self::new(hw, pfn)
    }
    /// The folio that this page, of an entry that is counted, is a part of; none if it is nobody's: then the entry cannot be (PFN-8).
    #[inline]
    pub fn counted(self) -> Option<Self> {
        if !self.desc().has_any(flag::TAIL | flag::RESERVED) {
            return Some(self);
        }
        (!self.is_nobodys()).then(|| Self::of_page(self.hw, self.pfn))
    }
    /// Whether nobody can have its frame: no entry that counts shows it (PFN-8).
    #[inline]
    pub fn is_nobodys(self) -> bool {
        self.desc().has(flag::RESERVED)
    }

    /// log2 of its pages.
    #[inline]
    pub fn order(self) -> Order {
        Order::new(self.desc().order() as u8).unwrap_or(Order::ZERO)
    }
    /// Whether it is anonymous memory.
    #[inline]
    pub fn is_anon(self) -> bool {
        self.desc().mapping.load(Relaxed) & MAPPING_ANON != 0
    }
    /// The tagged owner word.
    #[inline]
    pub fn mapping(self) -> usize {
        self.desc().mapping.load(SeqCst)
    }
    /// Offset in its owner, in pages.
    #[inline]
    pub fn index(self) -> u64 {
        self.desc().index.load(Relaxed)
    }
    /// Whether exactly one process has it (UNSH-3).
    #[inline]
    pub fn is_exclusive(self) -> bool {
        self.desc().flags.load(SeqCst) & flag::ANON_EXCLUSIVE != 0
    }
    /// It has one owner again.
    #[inline]
    pub fn set_exclusive(self) {
        self.desc().set(flag::ANON_EXCLUSIVE);
    }
    /// Fork shares it: refused (false) when it may be pinned, for then the child gets a copy. Fork clears
    /// the mark and then looks for pins; a fast pin counts itself and then looks at the mark: SeqCst on
    /// both sides, so that one of the two sees the other.
    #[inline]
    pub fn try_share(self) -> bool {
        let d = self.desc();
        if !d.has(flag::ANON_EXCLUSIVE) {
            return true;
        }
        if self.maybe_pinned() {
            return false;
        }
        d.flags.fetch_and(!flag::ANON_EXCLUSIVE, SeqCst);
        if self.maybe_pinned() {
            // Somebody pinned between look and clear: give the mark back.
            d.set(flag::ANON_EXCLUSIVE);
            return false;
        }
        true
    }
    /// Whether a device may be using its bytes.
    #[inline]
    pub fn maybe_pinned(self) -> bool {
        self.desc().maybe_pinned()
    }
    /// Content differs from the backing store.
    #[inline]
    pub fn set_dirty(self) {
        let d = self.desc();
        if !d.has(flag::DIRTY) {
            let old = d.flags.fetch_or(flag::DIRTY, SeqCst);
            if old & (flag::DIRTY | flag::TRACKED) == flag::TRACKED {
                DIRTY_PAGES.fetch_add(1, Relaxed);
            }
        }
    }
    /// Whether it does.
    #[inline]
    pub fn is_dirty(self) -> bool {
        self.desc().flags.load(SeqCst) & flag::DIRTY != 0
    }
    /// It will not: who calls this writes it back, after every mapping has lost the right to write (rmap/clean.rs).
    pub(crate) fn clear_dirty(self) {
        let old = self.desc().flags.fetch_and(!flag::DIRTY, SeqCst);
        if old & DIRTY_TRACKED == DIRTY_TRACKED {
            DIRTY_PAGES.fetch_sub(1, Relaxed);
        }
    }
    /// Whether it is a page of a file that is written back: writes to it are announced first, and no pin that lasts may
    /// write it (LT-9).
    #[inline]
    pub fn is_tracked(self) -> bool {
        self.desc().has(flag::TRACKED)
    }
    /// Used: first use marks, second use promotes when aging looks.
    #[inline]
    pub fn mark_accessed(self) {
        let d = self.desc();
        if !d.has(flag::REFERENCED) {
            d.set(flag::REFERENCED);
        }
    }
    /// A new anonymous page whose one entry will lock it; before it is listed.
    #[cold]
    pub(crate) fn begin_mlocked(self) {
        let d = self.desc();
        d.lock.store(1, Relaxed);
        d.flags
            .store(d.flags.load(Relaxed) | flag::UNEVICTABLE, Relaxed);
    }
    /// One more entry locks it in memory; under the entry's table lock, which has the bit MLOCKED.
    #[inline]
    pub(crate) fn mlock(self) {
        lru::mlock(self.hw, self.pfn);
    }
    /// An entry that locked it is gone, or locks it no longer.
    #[inline]
    pub(crate) fn munlock(self) {
        lru::munlock(self.hw, self.pfn);
    }
    /// One more reference, by a holder.
    #[inline]
    pub fn get(self) -> FolioRef<H> {
        self.desc().get();
        FolioRef(self)
    }
    /// One more reference unless the frame is free.
    #[inline]
    pub fn try_get(self) -> Option<FolioRef<H>> {
        // Not then_some: a `FolioRef` that is made and dropped gives a reference back.
        self.desc().try_get().then(|| FolioRef(self))
    }
    /// Gives up one reference that the caller answers for; frees the folio with the last.
    #[inline]
    pub fn put(self) {
        if self.desc().put_is_last(1) {
            self.free();
        }
    }
    /// Gives up `n` references.
    #[inline]
    pub fn put_many(self, n: i32) {
        if self.desc().put_is_last(n) {
            self.free();
        }
    }
    /// Nobody holds it any more: off the aging lists, back to the allocator.
    #[inline]
    pub(crate) fn free(self) {
        let d = self.desc();
        debug_assert_eq!(d.map_count(), 0, "freeing a mapped folio {:?}", self.pfn);
        debug_assert_eq!(d.mlock_count(), 0, "freeing a locked folio {:?}", self.pfn);
        if d.has(flag::LRU) {
            lru::del(self.hw, self.pfn);
        }
        self.free_unlisted();
    }
    /// As [`Folio::free`] for a folio that is on no aging list.
    #[inline]
    pub(crate) fn free_unlisted(self) {
        let d = self.desc();
        let flags = d.flags.load(Relaxed);
        d.mapping.store(0, Relaxed);
        if flags & DIRTY_TRACKED == DIRTY_TRACKED {
            DIRTY_PAGES.fetch_sub(1, Relaxed);
        }
        if flags & flag::SECRET != 0 {
            self.reveal();
        }
        let order = ((flags & flag::ORDER_MASK) >> flag::ORDER_SHIFT) as u8;
        let order = Order::new(order).unwrap_or(Order::ZERO);
        self.hw.phys().give_back(self.hw, self.pfn, order);
    }
    /// Makes a fresh folio of one frame secret: out of the direct map, and marked for those who hold it. `false`:
    /// nothing was done. Interrupts on.
    pub(crate) fn hide(self) -> bool {
        let hidden = self.hw.hide_frame(self.pfn);
        if hidden {
            self.desc().set(flag::SECRET);
        }
        hidden
    }
    /// The end of a secret: nobody has it any more, the next owner finds zeroes.
    #[cold]
    #[inline(never)]
    fn reveal(self) {
        self.hw.show_frame(self.pfn);
        self.hw.clear_frame(self.hw.frame_ptr(self.pfn));
    }
    /// Takes `n` pins back; frees the folio with its last reference.
    #[inline]
    pub fn unpin(self, n: i32) {
        if self.desc().unpin_is_last(n) {
            self.free();
        }
    }
    /// Puts it on its aging list.
    #[inline]
    pub fn lru_add(self) {
        lru::add(self.hw, self.pfn);
    }
}

/// Keeps a folio alive and says nothing about its bytes; drop gives the reference back.
///
/// ```compile_fail,E0599
/// fn f<H: mm::Hw>(r: mm::phys::FolioRef<H>) { r.write(0, b"x"); }
/// ```
#[must_use]
pub struct FolioRef<H: Hw>(Folio<H>);

impl<H: Hw> FolioRef<H> {
    /// Takes over one reference that the caller answers for.
    #[inline]
    pub fn adopt(f: Folio<H>) -> Self {
        Self(f)
    }
    /// The folio.
    #[inline]
    pub fn folio(&self) -> Folio<H> {
        self.0
    }
    /// Gives the reference to somebody who will `put` it.
    #[inline]
    pub fn into_folio(self) -> Folio<H> {
        let f = self.0;
        core::mem::forget(self);
        f
    }
}

impl<H: Hw> core::ops::Deref for FolioRef<H> {
    type Target = Folio<H>;
    #[inline]
    fn deref(&self) -> &Folio<H> {
        &self.0
    }
}

impl<H: Hw> Clone for FolioRef<H> {
    fn clone(&self) -> Self {
        self.0.get()
    }
}

impl<H: Hw> Drop for FolioRef<H> {
    #[inline]
    fn drop(&mut self) {
        self.0.put();
    }
}
