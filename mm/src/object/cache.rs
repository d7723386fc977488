//! The page cache: of files in memory (tmpfs, memfd, shared anonymous memory, program images), and of what is paged in
//! from elsewhere.
//!
//! A page is in the cache from its first use until it is truncated, punched out, or the object goes; an
//! offset without one is a hole and reads as zeroes. `read`, `write` and mappings see the same frames. The
//! cache holds one reference to each of its folios; a folio's owner word and index say where it belongs as
//! long as it does.
//!
//! Finding a page needs no lock: interrupts off, peek, take a reference unless the frame is free, look at
//! owner word and index again. Only a removal that raced makes this miss; who must know takes the lock.
//!
//! Size and pages, against truncation (`rmap`'s `set_size`, `punch_hole`):
//! 1. Truncation stores the size first, then zaps all mappings beyond it, then takes each page out of the
//!    cache under its lock: it clears the owner word, and then looks at the mapping count; where that is
//!    not zero, it zaps again.
//! 2. Creating looks at the size under the cache's lock. So no page comes into being beyond the end.
//! 3. Mapping a page (under the table lock): raise the mapping count, then look at the owner word
//!    ([`FileObject::owns`]); if it is gone, lower the count and start over. Both sides are locked
//!    read-modify-writes before the look, so one of them sees the other; the second zap waits for the table
//!    lock, hence for the entry.
//! 4. A fault looks at the size before it looks for the page (SIGBUS past the last page).
//!
//! An object with a [`Source`] has no holes: a page that is not in the cache is [`CacheError::Absent`], and who wants it lets
//! go of every lock and calls [`FileObject::page_in`]. A page is filled before it can be found, so there is none
//! with half of its content. Against changes of the source (`rmap`'s `invalidate`, which follows the change):
//!
//! 5. Who reads remembers the epoch first, and puts in what it read, under the cache's lock, if that is still the epoch.
//!    Who invalidates moves the epoch, and then takes the pages out. So what was read before the change is
//!    either taken out or never put in. Truncation and hole punching do so, too.
//!
//! Where the source can be written ([`Source::writable`]) the object is *tracked*: a page that differs from the source is
//! dirty, and is written back (`rmap/clean.rs`). Before it becomes dirty the source has made room for it:
//!
//! 6. A page may be written through an entry only while it is dirty. A write fault on a page that is not lets go of every
//!    lock and calls [`FileObject::make_writable`]; under the table lock it looks at the mark again. Who cleans
//!    takes the mark away first and then the right to write from every entry. `write` copies first, then raises the size, then
//!    marks ([`FileObject::wrote`]), and holds a reference meanwhile.
//!    Dirty pages are found by their marks in the tree, which are set after the page's own and taken away by who is about to clean
//!    it, and holds `resize`: so who looks for dirty pages, and waits for it, misses none.
//! 7. A page that can be read in again is let go of only clean, and only while nobody but the cache has it: under the
//!    cache's lock, its references frozen. So no write goes to a page that has left.

mod dirty;
mod source;

pub use source::{AHEAD, Dirty, Source, Unfilled, WINDOW};

use super::edges::EdgeList;
use super::radix::Radix;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::errno::Errno;
use crate::phys::{Folio, FolioRef, Frame, Hw, NoFrame, Use, Zeroed, flag};
use crate::race::{Point, point_unlocked};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::*};
use crate::sync::{Class, RwSem, SpinLock};
use crate::wait::CanWait;
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};

/// Why there is no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheError {
    /// No frame, or no node.
    NoFrame,
    /// Past the end of the object: SIGBUS.
    Beyond,
    /// It must be read in first ([`FileObject::page_in`]).
    Absent,
}

impl From<NoFrame> for CacheError {
    fn from(_: NoFrame) -> Self {
        Self::NoFrame
    }
}

/// What procfs says about an object.
#[derive(Clone, Default)]
pub struct Label {
    /// Path, as `/proc/PID/maps` shows it.
    pub path: Option<Arc<str>>,
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// See the module.
pub struct FileObject<H: Hw> {
    hw: H,
    id: u64,
    size: AtomicU64,
    pages: AtomicU64,
    tree: Radix,
    edges: EdgeList,
    /// One truncation at a time.
    pub(crate) resize: RwSem,
    /// VMAs through which it may be written; negative: none may come (a write seal).
    writable: AtomicI64,
    label: SpinLock<Label>,
    /// Its pages leave the direct map.
    secret: bool,
    source: Option<Box<dyn Source<H>>>,
    /// Rule 5.
    epoch: AtomicU64,
    /// Rule 6.
    tracked: bool,
    /// The source knows that there are dirty pages.
    listed: AtomicBool,
    /// How often writing back has failed, and, in the lower half, why the last time.
    failed: AtomicU64,
    me: Weak<Self>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
/// Pages of files in memory, of all machines (a test process may run several).
static CACHED: AtomicI64 = AtomicI64::new(0);

/// Pages of files in memory: `Shmem` of meminfo.
pub fn cached_pages() -> u64 {
    CACHED.load(Relaxed).max(0) as u64
}

/// The same of what is paged in from elsewhere.
static PAGED: AtomicI64 = AtomicI64::new(0);

/// Pages that can be read again.
pub fn paged_pages() -> u64 {
    PAGED.load(Relaxed).max(0) as u64
}

impl<H: Hw> FileObject<H> {
    /// An empty object.
    pub fn new(hw: H) -> Option<Arc<Self>> {
        Some(Self::build(hw, false, None))
    }
    /// An empty object of secret memory (VMA-11): while a page is in the cache the kernel cannot reach its bytes,
    /// and when the last reference goes they are cleared.
    pub fn new_secret(hw: H) -> Arc<Self> {
        Self::build(hw, true, None)
    }
    /// An object of `size` bytes that are read from `source`.
    pub fn new_paged(hw: H, source: Box<dyn Source<H>>, size: u64) -> Arc<Self> {
        let object = Self::build(hw, false, Some(source));
        object.extend(size);
        object
    }

    fn build(hw: H, secret: bool, source: Option<Box<dyn Source<H>>>) -> Arc<Self> {
        let tracked = source.as_ref().is_some_and(|source| source.writable());
        Arc::new_cyclic(|me| Self {
            hw,
            id: NEXT_ID.fetch_add(1, Relaxed),
            size: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            tree: Radix::new(),
            edges: EdgeList::new(Class::FileEdges),
            resize: RwSem::new(Class::Resize),
            writable: AtomicI64::new(0),
            label: SpinLock::new(Class::Wait, Label::default()),
            secret,
            source,
            epoch: AtomicU64::new(0),
            tracked,
            listed: AtomicBool::new(false),
            failed: AtomicU64::new(0),
            me: me.clone(),
        })
    }

    /// Whether it is secret memory.
    #[inline]
    pub fn is_secret(&self) -> bool {
        self.secret
    }

    /// Whether what is not in the cache has to be read in.
    #[inline]
    pub fn is_paged(&self) -> bool {
        self.source.is_some()
    }

    /// Whether pages are written back (rule 6).
    #[inline]
    pub fn is_tracked(&self) -> bool {
        self.tracked
    }

    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.hw
    }
    /// A number that no other object has or had.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }
    /// Bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size.load(Acquire)
    }
    /// Pages up to the end, holes included: offsets below this may be mapped.
    #[inline]
    pub fn end_page(&self) -> u64 {
        let size = self.size();
        (size >> PAGE_SHIFT) + u64::from(size & (PAGE_SIZE - 1) != 0)
    }
    /// Pages in the cache.
    pub fn pages(&self) -> u64 {
        self.pages.load(Relaxed)
    }
    /// Who maps it.
    #[inline]
    pub fn edges(&self) -> &EdgeList {
        &self.edges
    }
    /// Its folios' owner word.
    #[inline]
    pub fn word(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }
    /// Whether the folio is (still) this object's page `index` (rule 3).
    #[inline]
    pub fn owns(&self, folio: Folio<H>, index: u64) -> bool {
        folio.mapping() == self.word() && folio.index() == index
    }

    /// What procfs says about it.
    pub fn label(&self) -> Label {
        self.label.lock(self.hw).clone()
    }
    /// Sets what procfs says about it.
    pub fn set_label(&self, label: Label) {
        let old = core::mem::replace(&mut *self.label.lock(self.hw), label);
        drop(old);
    }

    /// Counts VMAs through which it may be written.
    pub(crate) fn count_writable(&self, delta: i64) {
        self.writable.fetch_add(delta, Relaxed);
    }
    /// Whether it may be written through some VMA.
    pub fn has_writable_mappings(&self) -> bool {
        self.writable.load(Relaxed) > 0
    }

    /// The page at `index`, if it is in the cache.
    #[inline]
    pub fn lookup(&self, index: u64) -> Option<FolioRef<H>> {
        let irq = self.hw.irq_save();
        let found = self.tree.peek(index).and_then(|p| self.grab(p, index));
        self.hw.irq_restore(irq);
        found
    }

    /// Calls `f` for each cached page of `first..=last`, which lie in one aligned run of 64. Interrupts
    /// are off meanwhile: `f` takes no lock and does not wait.
    #[inline]
    pub fn lookup_run(&self, first: u64, last: u64, mut f: impl FnMut(u64, FolioRef<H>)) {
        let irq = self.hw.irq_save();
        self.tree.peek_run(first, last, |index, p| {
            if let Some(folio) = self.grab(p, index) {
                f(index, folio);
            }
        });
        self.hw.irq_restore(irq);
    }

    /// A reference to what a peek showed, if it is what it should be.
    #[inline]
    fn grab(&self, p: Pfn, index: u64) -> Option<FolioRef<H>> {
        Folio::new(self.hw, p)
            .try_get()
            .filter(|f| self.owns(f.folio(), index))
    }

    /// The page at `index`, made (zero-filled) if it is a hole; never past the end (rule 2).
    #[inline]
    pub fn get_or_create(&self, index: u64) -> Result<FolioRef<H>, CacheError> {
        match self.lookup(index) {
            Some(f) => Ok(f),
            None => self.create(index, true),
        }
    }

    /// For `read`: the page at `index`; `None` is a hole, which reads as zeroes.
    #[inline]
    pub fn read_page(&self, index: u64) -> Option<FolioRef<H>> {
        self.lookup(index)
    }

    /// For `write`: the page at `index`, made if need be, also past the end. The caller holds the inode's
    /// lock, which it takes for `set_size`, too, and raises the size (or calls `set_size` with the
    /// old one, to drop what it made) before it gives the lock up.
    #[inline]
    pub fn write_page(&self, index: u64) -> Result<FolioRef<H>, CacheError> {
        match self.lookup(index) {
            Some(f) => Ok(f),
            None => self.create(index, false),
        }
    }

    #[inline(never)]
    fn create(&self, index: u64, inside: bool) -> Result<FolioRef<H>, CacheError> {
        if inside && index >= self.end_page() {
            return Err(CacheError::Beyond);
        }
        // Behind the end of a file that is written there is nothing to be read.
        if self.is_paged() && (!self.tracked || index < self.end_page()) {
            return Err(CacheError::Absent);
        }
        let hw = self.hw;
        let frame = match self.secret {
            false => hw.phys().alloc(hw, Use::Movable),
            true => hw.phys().alloc_unmovable(hw),
        };
        let frame = frame.ok_or(NoFrame)?.zero(hw);
        self.insert(index, frame, || !inside || index < self.end_page())
    }

    /// Puts a page in, if `wanted` says so under the lock (else it is [`CacheError::Beyond`]) and nobody was faster.
    fn insert(
        &self,
        index: u64,
        frame: Frame<Zeroed>,
        wanted: impl FnOnce() -> bool,
    ) -> Result<FolioRef<H>, CacheError> {
        let hw = self.hw;
        // Its one reference is ours until it is in the tree.
        let folio = Folio::init_file(hw, frame, self.word(), index, !self.is_paged());
        // Who finds the page through a mapping learns whose it is without reaching for us (`ops::futex_key`).
        folio.desc().private.store(self.id, Relaxed);
        if self.tracked {
            folio.desc().set(flag::TRACKED);
        }
        if self.secret && !folio.hide() {
            folio.put();
            return Err(CacheError::NoFrame);
        }
        let mut tree = self.tree.lock(hw);
        let lost = if !wanted() {
            Err(CacheError::Beyond)
        } else {
            match tree.insert(index, folio.pfn()) {
                Ok(None) => {
                    let found = folio.get();
                    drop(tree);
                    self.count(1);
                    folio.lru_add();
                    return Ok(found);
                }
                // Somebody was first; under the lock the cache's reference stands.
                Ok(Some(p)) => Ok(Folio::new(hw, p).get()),
                Err(NoFrame) => Err(CacheError::NoFrame),
            }
        };
        drop(tree);
        folio.put();
        lost
    }

    /// Reads in the page at `index`, and those after it in its window that are missing. Nobody promises that it is still there
    /// afterwards. Sleeps; no lock is held. `EIO`, `ENOMEM`; nothing to do is success.
    pub fn page_in(&self, wait: &mut CanWait<H>, index: u64) -> Result<(), Errno> {
        let Some(source) = &self.source else {
            return Ok(());
        };
        let hw = self.hw;
        let epoch = self.epoch.load(Acquire);
        let size = self.size();
        let window = (index | (WINDOW as u64 - 1)) + 1;
        // By the size that is compared below: the file may grow meanwhile.
        let end = window.min(size.div_ceil(PAGE_SIZE));
        let mut into = Unfilled {
            frames: [const { None }; WINDOW],
        };
        for (at, slot) in (index..end).zip(&mut into.frames) {
            if self.lookup(at).is_some() {
                break;
            }
            *slot = hw.phys().alloc(hw, Use::Movable);
            match slot {
                Some(frame) if size - (at << PAGE_SHIFT) < PAGE_SIZE => {
                    hw.clear_frame(hw.frame_ptr(frame.pfn()));
                }
                Some(_) => {}
                None if at == index => return Err(Errno::ENOMEM),
                None => break,
            }
        }
        if into.frames[0].is_none() {
            return Ok(());
        }
        let mut read = source.read(wait, index, &into);
        if read == Err(Errno::EIO) && into.pfns().nth(1).is_some() {
            // Perhaps it is one of those that nobody has asked for.
            for frame in into.frames[1..].iter_mut().filter_map(Option::take) {
                hw.phys().free(hw, frame);
            }
            read = source.read(wait, index, &into);
        }
        point_unlocked(wait, Point::PageRead);
        for (at, frame) in (index..end).zip(into.frames.into_iter().flatten()) {
            if read.is_err() {
                hw.phys().free(hw, frame);
                continue;
            }
            let fresh = || self.epoch.load(Acquire) == epoch;
            // Whoever comes too late for the epoch looks again.
            if let Err(CacheError::NoFrame) = self.insert(at, frame.assume_init(), fresh) {
                read = Err(Errno::ENOMEM);
            }
        }
        read
    }

    /// Reads in what is missing of pages `first..end`, or of their first [`AHEAD`]. A page that cannot be read ends it, and nobody
    /// is told. Sleeps, as [`Self::page_in`].
    pub fn read_ahead(&self, wait: &mut CanWait<H>, first: u64, end: u64) {
        let mut at = first;
        let end = end.min(first.saturating_add(AHEAD)).min(self.end_page());
        while self.is_paged() && at < end && self.page_in(wait, at).is_ok() {
            at += 1;
            while at < end && self.lookup(at).is_some() {
                at += 1;
            }
        }
    }

    /// What was read before this is not put in any more (rule 5).
    pub(crate) fn begin_epoch(&self) {
        self.epoch.fetch_add(1, SeqCst);
    }

    fn count(&self, pages: i64) {
        self.pages.fetch_add(pages as u64, Relaxed);
        let all = if self.is_paged() { &PAGED } else { &CACHED };
        all.fetch_add(pages, Relaxed);
    }

    /// The first page at or after `from` that is in the cache: SEEK_DATA.
    pub fn next_page(&self, from: u64) -> Option<u64> {
        self.tree.lock(self.hw).next(from).map(|(index, _)| index)
    }

    /// Raises the size; a smaller one is ignored (lowering needs `set_size`).
    pub fn extend(&self, size: u64) {
        self.size.fetch_max(size, SeqCst);
    }

    /// Truncation's first step (rule 1): returns the old size.
    pub(crate) fn store_size(&self, size: u64) -> u64 {
        self.size.swap(size, SeqCst)
    }

    /// Takes up to `out.len()` pages of `from..end` that `which` wants out of the cache, in order; what is returned holds the
    /// cache's references. The owner words are cleared (rule 1).
    pub(crate) fn evict_some(
        &self,
        from: u64,
        end: u64,
        which: impl Fn(Folio<H>) -> bool,
        out: &mut [Option<(u64, FolioRef<H>)>],
    ) -> usize {
        let mut tree = self.tree.lock(self.hw);
        let mut n = 0;
        let mut at = from;
        while n < out.len() {
            let Some((index, p)) = tree.next(at).filter(|&(i, _)| i < end) else {
                break;
            };
            let folio = Folio::new(self.hw, p);
            at = index + 1;
            if !which(folio) {
                continue;
            }
            tree.remove(index);
            folio.desc().mapping.swap(0, SeqCst);
            if folio.desc().ref_count() == 0 {
                // Frozen (rule 7): whoever found it meanwhile looks again, and it is not there.
                folio.desc().thaw();
            }
            out[n] = Some((index, FolioRef::adopt(folio)));
            n += 1;
        }
        drop(tree);
        self.count(-(n as i64));
        n
    }
}

impl<H: Hw> Drop for FileObject<H> {
    fn drop(&mut self) {
        // VMAs hold the object, so nothing maps it.
        let mut out = [const { None }; 32];
        let mut from = 0;
        loop {
            let n = self.evict_some(from, u64::MAX, |_| true, &mut out);
            for slot in &mut out[..n] {
                if let Some((index, folio)) = slot.take() {
                    from = index + 1;
                    drop(folio);
                }
            }
            if n < out.len() {
                break;
            }
        }
    }
}
