//! The guards: what keeps a VMA as it is, and hence grants the permits of `table`.
//!
//! - [`MmapReadGuard`], [`MmapWriteGuard`]: the space's sleeping lock. Writing alone does not exclude
//!   faults: whoever changes a VMA or its tables write-locks that VMA first.
//! - [`VmaReadGuard`]: one VMA's read lock, which page faults use first. It is taken with interrupts off
//!   (an address found without a lock stays meaningful only so long), may be held with interrupts on, and
//!   its holder never sleeps: a fault that must sleep drops it and comes back under the mmap lock.
//!
//! A VMA's lock is a [`SectionLock`](crate::sync::SectionLock), closed by the space's write section: the end of
//! the section adds one to `write_seq` and so opens all of them at once. A reader that came in and then
//! finds the tree unchanged holds a VMA that is in this tree with the range it was found by. Its count
//! is not written by anybody else's use of other VMAs.

use super::address_space::AddressSpace;
use super::tree::{VmaNode, VmaTree};
use super::vma::Vma;
use crate::addr::UserRange;
use crate::hw::Park;
use crate::phys::Hw;
use crate::sync::atomic::Ordering::*;
use crate::sync::rwsem::Killed;
use crate::sync::{Class, lockdep};
use crate::table::{MayInstall, StableVma};
use crate::wait::{CanWait, IrqOff};
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

/// Where the tables of the user half end: past the last page, which is never mapped.
pub(super) const TABLES_END: u64 = 1 << 47;

/// The VMAs of a space, seen under its mmap lock (the guards dereference to this).
pub struct Vmas<H: Hw> {
    pub(super) tree: VmaTree,
    _h: PhantomData<H>,
}

impl<H: Hw> Vmas<H> {
    pub(super) const fn new() -> Self {
        Self {
            tree: VmaTree::new(),
            _h: PhantomData,
        }
    }

    #[inline]
    fn vma(&self, node: NonNull<VmaNode>) -> &Vma<H> {
        // SAFETY: `Vmas` is reached through mmap guards only, and the result is borrowed from them.
        unsafe { Vma::of(node) }
    }

    /// The VMA that contains `va`.
    #[inline]
    pub fn find(&self, va: u64) -> Option<&Vma<H>> {
        self.find_from(va).filter(|v| v.start() <= va)
    }

    /// The first VMA that ends after `va`.
    #[inline]
    pub fn find_from(&self, va: u64) -> Option<&Vma<H>> {
        self.tree.find(va).map(|n| self.vma(n))
    }

    /// The VMA after this one.
    #[inline]
    pub fn next<'a>(&'a self, vma: &'a Vma<H>) -> Option<&'a Vma<H>> {
        vma.node().next().map(|n| self.vma(n))
    }

    /// The VMA before this one.
    #[inline]
    pub fn prev<'a>(&'a self, vma: &'a Vma<H>) -> Option<&'a Vma<H>> {
        vma.node().prev().map(|n| self.vma(n))
    }

    /// The VMAs that overlap a range, in order.
    #[inline]
    pub fn iter(&self, range: UserRange) -> impl Iterator<Item = &Vma<H>> {
        let end = range.end();
        let mut at = (!range.is_empty())
            .then(|| self.find_from(range.start()))
            .flatten();
        core::iter::from_fn(move || {
            let v = at.filter(|v| v.start() < end)?;
            at = self.next(v);
            Some(v)
        })
    }

    /// All VMAs, in order.
    pub fn all(&self) -> impl Iterator<Item = &Vma<H>> {
        let mut at = self.tree.first().map(|n| self.vma(n));
        core::iter::from_fn(move || {
            let v = at?;
            at = self.next(v);
            Some(v)
        })
    }

    /// How many VMAs.
    #[inline]
    pub fn count(&self) -> u32 {
        self.tree.count()
    }

    /// Whether every page of the range is mapped.
    pub fn covers(&self, range: UserRange) -> bool {
        let mut at = range.start();
        for v in self.iter(range) {
            if v.start() > at {
                return false;
            }
            at = v.end();
        }
        at >= range.end()
    }

    /// Whether no page of the range is mapped.
    pub fn is_free(&self, range: UserRange) -> bool {
        self.iter(range).next().is_none()
    }

    /// Between which addresses the tables of a VMA's range may be freed: the neighbours' ends.
    pub(super) fn bounds_around(node: &VmaNode) -> (u64, u64) {
        // SAFETY: called under the mmap write lock on nodes of the tree: neighbours are VMAs.
        let floor = node.prev().map_or(0, |n| unsafe { Vma::<H>::of(n) }.end());
        // SAFETY: as above.
        let ceiling = node
            .next()
            .map_or(TABLES_END, |n| unsafe { Vma::<H>::of(n) }.start());
        (floor, ceiling)
    }
}

/// The mmap lock, held for reading. A VMA does not outlive it:
///
/// ```compile_fail,E0505
/// fn f<H: mm::Hw>(g: mm::space::MmapReadGuard<'_, H>) -> u64 {
///     let vma = g.find(0).unwrap();
///     drop(g);
///     vma.start()
/// }
/// ```
#[must_use]
pub struct MmapReadGuard<'a, H: Hw> {
    pub(super) space: &'a AddressSpace<H>,
    _here: PhantomData<*mut ()>,
}

/// The mmap lock, held for writing. Methods that change something are in `edit` and `stack`; a VMA looked up
/// before does not live through them:
///
/// ```compile_fail,E0502
/// fn f<H: mm::Hw>(mut g: mm::space::MmapWriteGuard<'_, H>, r: mm::UserRange) -> u64 {
///     let vma = g.find(r.start()).unwrap();
///     drop(g.unlink(r));
///     vma.start()
/// }
/// ```
#[must_use]
pub struct MmapWriteGuard<'a, H: Hw> {
    pub(super) space: &'a AddressSpace<H>,
    _here: PhantomData<*mut ()>,
}

/// One VMA's read lock. It may be taken only with interrupts off:
///
/// ```compile_fail,E0308
/// fn f<H: mm::Hw>(s: &mm::AddressSpace<H>, w: &mut mm::CanWait<H>) { let _ = s.vma_read(w, 0); }
/// ```
#[must_use]
pub struct VmaReadGuard<'a, H: Hw> {
    vma: &'a Vma<H>,
    _here: PhantomData<*mut ()>,
}

// SAFETY: a VMA is freed or reshaped only under the mmap lock for writing.
unsafe impl<H: Hw> StableVma<H> for MmapReadGuard<'_, H> {}
// SAFETY: `Detached` is made under the mmap lock for writing, and so is the tree; tables of a detached
// range are freed under the lock in some mode, by its only owner, inside its bounds (detach.rs).
unsafe impl<H: Hw> MayInstall<H> for MmapReadGuard<'_, H> {}
// SAFETY: the holder is the one who could free or reshape.
unsafe impl<H: Hw> StableVma<H> for MmapWriteGuard<'_, H> {}
// SAFETY: as for reading.
unsafe impl<H: Hw> MayInstall<H> for MmapWriteGuard<'_, H> {}
// SAFETY: who frees or reshapes the VMA write-locks it, and waits for this guard (module protocol).
unsafe impl<H: Hw> StableVma<H> for VmaReadGuard<'_, H> {}
// SAFETY: as above: it is in the tree until that wait is over.
unsafe impl<H: Hw> MayInstall<H> for VmaReadGuard<'_, H> {}

impl<H: Hw> Deref for MmapReadGuard<'_, H> {
    type Target = Vmas<H>;
    #[inline]
    fn deref(&self) -> &Vmas<H> {
        &self.space.vmas
    }
}

impl<H: Hw> Deref for MmapWriteGuard<'_, H> {
    type Target = Vmas<H>;
    #[inline]
    fn deref(&self) -> &Vmas<H> {
        &self.space.vmas
    }
}

impl<H: Hw> Deref for VmaReadGuard<'_, H> {
    type Target = Vma<H>;
    #[inline]
    fn deref(&self) -> &Vma<H> {
        self.vma
    }
}

impl<'a, H: Hw> MmapReadGuard<'a, H> {
    /// The space.
    #[inline]
    pub fn space(&self) -> &'a AddressSpace<H> {
        self.space
    }
}

impl<H: Hw> Drop for MmapReadGuard<'_, H> {
    #[inline]
    fn drop(&mut self) {
        self.space.sem.unlock_read(self.space.hw());
    }
}

impl<'a, H: Hw> MmapWriteGuard<'a, H> {
    /// The space.
    #[inline]
    pub fn space(&self) -> &'a AddressSpace<H> {
        self.space
    }

    /// Excludes faults from a VMA until the mmap lock is given up; waits for those under way.
    #[inline]
    pub fn write_lock_vma(&self, vma: &Vma<H>) {
        let section = self.space.write_seq.load(Relaxed);
        vma.lock.close(self.space.hw(), section);
    }

    /// Excludes faults from every VMA that overlaps the range.
    pub fn write_lock_range(&self, range: UserRange) {
        for v in self.iter(range) {
            self.write_lock_vma(v);
        }
    }

    /// Goes on with the lock held for reading: faults may enter the VMAs that were write-locked.
    pub fn downgrade(self) -> MmapReadGuard<'a, H> {
        let space = self.space;
        core::mem::forget(self);
        space.end_section();
        space.sem.downgrade(space.hw());
        MmapReadGuard {
            space,
            _here: PhantomData,
        }
    }
}

impl<H: Hw> Drop for MmapWriteGuard<'_, H> {
    #[inline]
    fn drop(&mut self) {
        self.space.end_section();
        self.space.sem.unlock_write(self.space.hw());
    }
}

impl<H: Hw> Drop for VmaReadGuard<'_, H> {
    #[inline]
    fn drop(&mut self) {
        lockdep::release(self.vma.space().hw(), Class::Vma);
        self.vma.lock.leave();
    }
}

impl<H: Hw> AddressSpace<H> {
    /// Sleeps until the mmap lock is held for reading.
    #[inline]
    pub fn mmap_read(&self, wait: &mut CanWait<H>) -> MmapReadGuard<'_, H> {
        while self.sem.read(wait, Park::Uninterruptible).is_err() {}
        self.read_guard()
    }
    /// The same, unless a fatal signal comes first.
    #[inline]
    pub fn mmap_read_killable(
        &self,
        wait: &mut CanWait<H>,
    ) -> Result<MmapReadGuard<'_, H>, Killed> {
        self.sem.read(wait, Park::Killable)?;
        Ok(self.read_guard())
    }
    /// The mmap lock for reading, if nobody writes or waits.
    #[inline]
    pub fn try_mmap_read(&self) -> Option<MmapReadGuard<'_, H>> {
        self.sem.try_read(self.hw()).then(|| self.read_guard())
    }
    /// Sleeps until the mmap lock is held for writing.
    #[inline]
    pub fn mmap_write(&self, wait: &mut CanWait<H>) -> MmapWriteGuard<'_, H> {
        while self.sem.write(wait, Park::Uninterruptible).is_err() {}
        self.write_guard()
    }
    /// The same, unless a fatal signal comes first.
    #[inline]
    pub fn mmap_write_killable(
        &self,
        wait: &mut CanWait<H>,
    ) -> Result<MmapWriteGuard<'_, H>, Killed> {
        self.sem.write(wait, Park::Killable)?;
        Ok(self.write_guard())
    }
    /// The mmap lock for writing, if it is free.
    #[inline]
    pub fn try_mmap_write(&self) -> Option<MmapWriteGuard<'_, H>> {
        self.sem.try_write(self.hw()).then(|| self.write_guard())
    }

    /// Whether somebody waits for the mmap lock: a holder with long work may want to let go.
    pub fn mmap_contended(&self) -> bool {
        self.sem.contended()
    }

    #[inline]
    fn read_guard(&self) -> MmapReadGuard<'_, H> {
        MmapReadGuard {
            space: self,
            _here: PhantomData,
        }
    }

    #[inline]
    fn write_guard(&self) -> MmapWriteGuard<'_, H> {
        MmapWriteGuard {
            space: self,
            _here: PhantomData,
        }
    }

    /// Releases every VMA's write lock.
    #[inline]
    fn end_section(&self) {
        let next = self.write_seq.load(Relaxed) + 1;
        self.write_seq.store(next, Release);
    }

    /// The VMA that contains `va`, read-locked; `None`: try under the mmap lock.
    #[inline]
    pub fn vma_read(&self, irq: &IrqOff<'_, H>, va: u64) -> Option<VmaReadGuard<'_, H>> {
        let hw = irq.hw();
        let tree = &self.vmas.tree;
        let seq = tree.seq();
        let cached = self.cached_vma(hw, seq, va);
        let node = match cached {
            Some(node) => node,
            None if seq & 1 != 0 => return None,
            None => tree.peek(va)?,
        };
        // SAFETY: interrupts are off, so the slab frame under the node is not given back
        // (`slab::shrink` waits for this CPU), and a Vma's atomics may be read at any time.
        let vma = unsafe { Vma::<H>::of(node) };
        if !vma.lock.enter(&self.write_seq) {
            return None;
        }
        if !tree.unchanged(seq) {
            vma.lock.leave();
            return None;
        }
        if cached.is_none() {
            self.cache_vma(hw, seq, node);
        }
        lockdep::acquired_at_once(hw, Class::Vma);
        Some(VmaReadGuard {
            vma,
            _here: PhantomData,
        })
    }
}

#[cfg(all(test, feature = "sim"))]
#[path = "locks_tests.rs"]
mod tests;
