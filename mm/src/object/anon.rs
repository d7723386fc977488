//! Anonymous families: all spaces that descend from one another by fork without an exec between share
//! one family, and every VMA of theirs that may hold anonymous pages has an edge in it. An anonymous
//! folio carries its family's address and its page offset there; `rmap` finds its mappers through the
//! edges, by offset, and by looking at the entry (docs/decisions/0002-one-family-per-fork-tree.md).
//!
//! A space holds a reference to its family for its whole life, so a VMA needs none. Families live in
//! type-stable memory: whoever reads a folio's owner word with interrupts off may [`try_get`](AnonFamily::try_get)
//! it and then look at the word again.

use super::edges::EdgeList;
use crate::phys::folio::MAPPING_ANON;
use crate::phys::{Folio, Hw, slab};
use crate::sync::Class;
use crate::sync::atomic::{AtomicU64, Ordering::*};
use core::marker::PhantomData;
use core::ptr::NonNull;

/// See the module.
#[repr(C, align(64))]
pub struct AnonFamily<H: Hw> {
    refs: AtomicU64,
    edges: EdgeList,
    _hw: PhantomData<H>,
}

impl<H: Hw> AnonFamily<H> {
    /// Who may map its folios.
    #[inline]
    pub fn edges(&self) -> &EdgeList {
        &self.edges
    }

    /// What an anonymous folio's owner word is made from.
    #[inline]
    pub fn word(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// The family of a mapped anonymous folio that the caller keeps alive.
    pub fn of_folio(hw: H, folio: Folio<H>) -> Option<FamilyRef<H>> {
        let irq = hw.irq_save();
        let word = folio.mapping();
        let mapped = || folio.mapping() == word && folio.desc().map_count() > 0;
        let found = (word & MAPPING_ANON != 0 && mapped()).then(|| {
            // SAFETY: mapped with interrupts off: a member of the family existed at that moment, so the
            // memory under the word is not given back before this CPU takes interrupts again.
            unsafe { &*((word & !MAPPING_ANON) as *const Self) }.try_get(hw)
        });
        hw.irq_restore(irq);
        found.flatten().filter(|_| mapped())
    }

    /// A reference, unless the family is gone.
    pub fn try_get(&self, hw: H) -> Option<FamilyRef<H>> {
        self.refs
            .fetch_update(Acquire, Relaxed, |n| (n != 0).then_some(n + 1))
            .ok()?;
        Some(FamilyRef {
            hw,
            family: NonNull::from(self),
        })
    }
}

// SAFETY: number 1 is the families'; all fields are atomics or a lock.
unsafe impl<H: Hw> slab::SlabObject for AnonFamily<H> {
    const SLAB: usize = 1;
    fn fresh() -> Self {
        Self {
            refs: AtomicU64::new(0),
            edges: EdgeList::new(Class::AnonEdges),
            _hw: PhantomData,
        }
    }
}

/// A counted reference to a family.
pub struct FamilyRef<H: Hw> {
    hw: H,
    family: NonNull<AnonFamily<H>>,
}

// SAFETY: a count on an object that is all atomics and locks.
unsafe impl<H: Hw> Send for FamilyRef<H> {}
// SAFETY: as above.
unsafe impl<H: Hw> Sync for FamilyRef<H> {}

impl<H: Hw> AnonFamily<H> {
    /// A new family without members. `None` without memory.
    pub fn create(hw: H) -> Option<FamilyRef<H>> {
        let family: NonNull<Self> = slab::alloc(hw)?;
        // SAFETY: ours, from the slab; late readers see the count only.
        unsafe { family.as_ref() }.refs.store(1, Release);
        Some(FamilyRef { hw, family })
    }
}

impl<H: Hw> core::ops::Deref for FamilyRef<H> {
    type Target = AnonFamily<H>;
    #[inline]
    fn deref(&self) -> &AnonFamily<H> {
        // SAFETY: our count keeps it.
        unsafe { self.family.as_ref() }
    }
}

impl<H: Hw> Clone for FamilyRef<H> {
    fn clone(&self) -> Self {
        self.refs.fetch_add(1, Relaxed);
        Self {
            hw: self.hw,
            family: self.family,
        }
    }
}

impl<H: Hw> Drop for FamilyRef<H> {
    fn drop(&mut self) {
        if self.refs.fetch_sub(1, AcqRel) == 1 {
            // SAFETY: that was the last count: every space that was in it, and so every edge, is gone.
            unsafe { slab::free(self.hw, self.family) };
        }
    }
}
