//! Vma: one range with one meaning.
//!
//! VMAs live in a type-stable slab. The tree's part and the lock words may be read by anybody at any
//! time ([`VmaTree::peek`](super::tree::VmaTree::peek)); everything else is read under the mmap lock, the
//! VMA's read lock or the lock of a list that its edge is in, and changes only while the VMA is
//! write-locked (or in no tree) and, what the edges tell, also under their lists' locks. A freed
//! VMA keeps its lock words: a reader that came late still undoes its count there.

use super::address_space::{AddressSpace, RssKind};
use super::flags::VmaFlags;
use super::tree::VmaNode;
use crate::addr::{PAGE_SHIFT, UserRange};
use crate::object::anon::AnonFamily;
use crate::object::cache::FileObject;
use crate::object::edges::MapEdge;
use crate::phys::{Hw, NoFrame, slab};
use crate::sync::SectionLock;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::*};
use crate::table::LeafBits;
use crate::table::pte::bit;
use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::{NonNull, null_mut};

/// See the module.
#[repr(C, align(64))]
pub struct Vma<H: Hw> {
    node: VmaNode,
    /// The read lock; closed by the space's write section.
    pub(super) lock: SectionLock,
    /// Whether `anon_edge` is in the family's list.
    joined: AtomicBool,
    flags: AtomicU64,
    leaf: AtomicU64,
    pgoff: AtomicU64,
    object: UnsafeCell<Option<Arc<FileObject<H>>>>,
    space: AtomicPtr<AddressSpace<H>>,
    file_edge: MapEdge,
    anon_edge: MapEdge,
}

// SAFETY: all fields are atomics but `object`, which only `init` and `dissolve` write, while the VMA is
// in no tree and no list and nobody holds its lock (their contracts); readers hold one of the module's locks.
unsafe impl<H: Hw> Sync for Vma<H> {}
// SAFETY: as above.
unsafe impl<H: Hw> Send for Vma<H> {}

// SAFETY: number 0 is the VMAs'; the module says who reads what.
unsafe impl<H: Hw> slab::SlabObject for Vma<H> {
    const SLAB: usize = 0;
    fn fresh() -> Self {
        Self {
            node: VmaNode::new(0, 0, 0),
            lock: SectionLock::new(),
            joined: AtomicBool::new(false),
            flags: AtomicU64::new(0),
            leaf: AtomicU64::new(0),
            pgoff: AtomicU64::new(0),
            object: UnsafeCell::new(None),
            space: AtomicPtr::new(null_mut()),
            file_edge: MapEdge::new(),
            anon_edge: MapEdge::new(),
        }
    }
}

/// What a new mapping shall be.
pub struct NewVma<H: Hw> {
    /// Where; free.
    pub range: UserRange,
    /// What it allows.
    pub flags: VmaFlags,
    /// Offset of `range.start()` in the object, in pages; for private anonymous memory the address of
    /// its birth, in pages (Linux's rule), so that neighbours merge by one test.
    pub pgoff: u64,
    /// What it maps; `None`: private anonymous memory.
    pub object: Option<Arc<FileObject<H>>>,
}

impl<H: Hw> Vma<H> {
    /// First byte.
    #[inline]
    pub fn start(&self) -> u64 {
        self.node.start()
    }
    /// One past the last byte.
    #[inline]
    pub fn end(&self) -> u64 {
        self.node.end()
    }
    /// Pages.
    #[inline]
    pub fn pages(&self) -> u64 {
        (self.end() - self.start()) >> PAGE_SHIFT
    }
    /// From start to end.
    #[inline]
    pub fn range(&self) -> UserRange {
        // A VMA's bounds are page aligned and ordered from its birth on; empty is never reached.
        UserRange::new(self.start(), self.end()).unwrap_or_else(|| unreachable!())
    }
    /// What it allows.
    #[inline]
    pub fn flags(&self) -> VmaFlags {
        VmaFlags::from_bits_retain(self.flags.load(Relaxed))
    }
    /// Bits of a leaf that a read fault installs ([`VmaFlags::leaf_bits`]).
    #[inline]
    pub fn prot_bits(&self) -> LeafBits {
        LeafBits(self.leaf.load(Relaxed))
    }
    /// Offset of the start in the object, in pages.
    #[inline]
    pub fn pgoff(&self) -> u64 {
        self.pgoff.load(Relaxed)
    }
    /// Offset of the page of `va` in the object (or family), in pages.
    #[inline]
    pub fn index_of(&self, va: u64) -> u64 {
        self.pgoff() + ((va - self.start()) >> PAGE_SHIFT)
    }
    /// The address of page `index` of the object, if it lies inside.
    #[inline]
    pub fn va_of(&self, index: u64) -> Option<u64> {
        let off = index.checked_sub(self.pgoff())?;
        (off < self.pages()).then(|| self.start() + (off << PAGE_SHIFT))
    }
    /// What it maps; `None`: private anonymous memory.
    #[inline]
    pub fn object(&self) -> Option<&Arc<FileObject<H>>> {
        // SAFETY: written only while nobody can hold a lock that lends out `&Vma` (see `Sync` above).
        unsafe { &*self.object.get() }.as_ref()
    }
    /// As what its object's pages are counted.
    #[inline]
    pub fn file_rss(&self) -> RssKind {
        match self.object() {
            Some(object) if object.is_paged() => RssKind::File,
            _ => RssKind::Shmem,
        }
    }
    /// Whether pages of it are private anonymous memory from the start.
    #[inline]
    pub fn is_anon(&self) -> bool {
        self.object().is_none()
    }
    /// The space it belongs to.
    #[inline]
    pub fn space(&self) -> &AddressSpace<H> {
        // SAFETY: set by `init` to the space whose tree (or `Detached`) owns it; a space is dropped only
        // after its last VMA was freed.
        unsafe { &*self.space.load(Relaxed) }
    }

    /// The family, if anonymous pages may be mapped here: what fork must copy, and whose edge exists.
    #[inline]
    pub fn family(&self) -> Option<&AnonFamily<H>> {
        self.joined
            .load(Acquire)
            .then(|| self.space().anon_family())
    }

    /// The family, joined first if need be: before the first anonymous page is mapped here. Under any
    /// lock on the VMA. Interrupts on, no table lock held.
    #[inline]
    pub fn join_family(&self) -> &AnonFamily<H> {
        let family = self.space().anon_family();
        if !self.joined.load(Acquire) {
            self.join_slow(family);
        }
        family
    }

    #[cold]
    fn join_slow(&self, family: &AnonFamily<H>) {
        let mut list = family.edges().lock(self.space().hw());
        if !self.joined.load(Relaxed) {
            // SAFETY: not joined, so in no list; it leaves before the VMA is freed (`unlink_edges`).
            unsafe { list.link(self.anon_edge()) };
            self.joined.store(true, Release);
        }
    }

    /// Its place in the tree.
    #[inline]
    pub(super) fn node(&self) -> &VmaNode {
        &self.node
    }
    /// The VMA around a node.
    ///
    /// # Safety
    /// The node is a VMA's, and a lock of the module keeps it for `'a`.
    #[inline]
    pub(super) unsafe fn of<'a>(node: NonNull<VmaNode>) -> &'a Self {
        // SAFETY: `node` is the first field (repr(C)); the caller's lock keeps the VMA.
        unsafe { node.cast::<Self>().as_ref() }
    }
    /// The VMA whose file edge this is.
    ///
    /// # Safety
    /// It is one of a `Vma<H>`, in a list whose lock is held for `'a`.
    pub(crate) unsafe fn of_file_edge<'a>(e: NonNull<MapEdge>) -> &'a Self {
        // SAFETY: the edge is the `file_edge` field of a VMA that stays while the edge is linked.
        unsafe {
            e.byte_sub(offset_of!(Self, file_edge))
                .cast::<Self>()
                .as_ref()
        }
    }
    /// The VMA whose anonymous edge this is.
    ///
    /// # Safety
    /// As [`Self::of_file_edge`].
    pub(crate) unsafe fn of_anon_edge<'a>(e: NonNull<MapEdge>) -> &'a Self {
        // SAFETY: the edge is the `anon_edge` field of a VMA that stays while the edge is linked.
        unsafe {
            e.byte_sub(offset_of!(Self, anon_edge))
                .cast::<Self>()
                .as_ref()
        }
    }

    /// Its place in the tree, as a pointer that leads back here ([`Vma::of`]).
    #[inline]
    pub(super) fn node_ptr(&self) -> NonNull<VmaNode> {
        NonNull::from(self).cast()
    }
    /// Its edges, as pointers that lead back here.
    #[inline]
    pub(super) fn file_edge(&self) -> NonNull<MapEdge> {
        // SAFETY: the offset of a field.
        unsafe { NonNull::from(self).byte_add(offset_of!(Self, file_edge)) }.cast()
    }
    #[inline]
    pub(super) fn anon_edge(&self) -> NonNull<MapEdge> {
        // SAFETY: the offset of a field.
        unsafe { NonNull::from(self).byte_add(offset_of!(Self, anon_edge)) }.cast()
    }

    /// Memory for a VMA; give it to `init` or [`Vma::release`].
    pub(super) fn alloc(hw: H) -> Result<NonNull<Self>, NoFrame> {
        slab::alloc(hw).ok_or(NoFrame)
    }

    /// Gives unused memory back.
    ///
    /// # Safety
    /// From [`Vma::alloc`], not initialised or dissolved since.
    pub(super) unsafe fn release(hw: H, vma: NonNull<Self>) {
        // SAFETY: the caller's, from the slab; late readers find out by the sequence count (locks.rs).
        unsafe { slab::free(hw, vma) }
    }

    /// Makes a fresh or dissolved VMA what it shall be; in no tree and no list yet. The lock words stay.
    ///
    /// # Safety
    /// The caller owns it: from [`Vma::alloc`], in no tree.
    pub(super) unsafe fn init(
        &self,
        space: &AddressSpace<H>,
        start: u64,
        end: u64,
        flags: VmaFlags,
        pgoff: u64,
        object: Option<Arc<FileObject<H>>>,
    ) {
        self.node.prepare(start, end, flags.guard());
        self.space
            .store(core::ptr::from_ref(space).cast_mut(), Relaxed);
        self.joined.store(false, Relaxed);
        self.pgoff.store(pgoff, Relaxed);
        // SAFETY: the caller owns the VMA; late lockless readers do not look at the object.
        unsafe { *self.object.get() = object };
        self.set_flags(flags);
    }

    /// Drops what an unlinked VMA holds and gives its memory back.
    ///
    /// # Safety
    /// It is in no tree, its edges are in no list, its readers are gone.
    pub(super) unsafe fn dissolve(hw: H, vma: NonNull<Self>) {
        // SAFETY: nobody but the caller can hold a lock that lends it out; late lockless readers touch
        // only atomics.
        unsafe {
            *vma.as_ref().object.get() = None;
            slab::free(hw, vma);
        }
    }

    pub(super) fn set_flags(&self, flags: VmaFlags) {
        self.flags.store(flags.bits(), Relaxed);
        let bits = flags.leaf_bits().0;
        // Writes to a file that is written back are announced, page by page (object/cache.rs, rule 6).
        let tracked = self.object().is_some_and(|object| object.is_tracked());
        let announced = if tracked { bit::W } else { 0 };
        self.leaf.store(bits & !announced, Relaxed);
    }
    pub(super) fn set_pgoff(&self, pgoff: u64) {
        self.pgoff.store(pgoff, Relaxed);
    }

    /// Enters the lists that its object and (if `anon`) its family keep; the object's behind a VMA that it is
    /// about to get entries from.
    ///
    /// # Safety
    /// Initialised, in no list; `behind` is in the lists and maps the same object, if any; [`Self::unlink_edges`] comes before it is dissolved.
    pub(super) unsafe fn link_edges(&self, hw: H, anon: bool, behind: Option<&Self>) {
        if let Some(o) = self.object() {
            if self.writes_object() {
                o.count_writable(1);
            }
            let mut list = o.edges().lock(hw);
            // SAFETY: in no list; leaves in `unlink_edges`. `behind` maps the same object, so is in this one.
            unsafe {
                match behind {
                    Some(b) => list.link_behind(self.file_edge(), b.file_edge()),
                    None => list.link(self.file_edge()),
                }
            }
        }
        if anon {
            self.join_family();
        }
    }

    /// Leaves the lists. Its entries are gone by now (edges.rs, rule 2).
    ///
    /// # Safety
    /// Linked by [`Self::link_edges`], write-locked or out of the tree.
    pub(super) unsafe fn unlink_edges(&self, hw: H) {
        if let Some(o) = self.object() {
            // SAFETY: linked there since `link_edges`.
            unsafe { o.edges().lock(hw).unlink(self.file_edge()) };
            if self.writes_object() {
                o.count_writable(-1);
            }
        }
        if self.joined.load(Relaxed) {
            let mut list = self.space().anon_family().edges().lock(hw);
            // SAFETY: linked there when `joined` was set.
            unsafe { list.unlink(self.anon_edge()) };
            self.joined.store(false, Relaxed);
        }
    }

    fn writes_object(&self) -> bool {
        self.flags()
            .contains(VmaFlags::SHARED.union(VmaFlags::MAYWRITE))
    }

    /// Whether `upper`, which begins where this ends, continues it (the merge rule).
    pub(super) fn continues_into(&self, upper: &Self) -> bool {
        self.end() == upper.start()
            && self.accepts(
                upper.flags(),
                upper.pgoff(),
                upper.object(),
                self.pgoff() + self.pages(),
            )
    }

    /// Whether a mapping with these properties could be part of it; `here` is the offset that this
    /// VMA has at that place.
    pub(super) fn accepts(
        &self,
        flags: VmaFlags,
        pgoff: u64,
        object: Option<&Arc<FileObject<H>>>,
        here: u64,
    ) -> bool {
        let differ = (self.flags() ^ flags) - VmaFlags::SOFTDIRTY;
        differ.is_empty()
            && pgoff == here
            && !flags.intersects(VmaFlags::SPECIAL)
            && match (self.object(), object) {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                _ => false,
            }
    }
}
