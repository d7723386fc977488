//! VMAs out of sight, in three steps that types keep in order.
//!
//! [`Detached`]: out of the tree and write-locked, so no fault reaches them; the reverse map still
//! does, and both may zap. [`Unreachable`]: out of the edges as well, so nobody does: the tables of the range
//! may be freed. Dropped: the VMAs are freed and let go of their objects.
//! The mmap lock is held, in some mode, until the tables are freed: only a writer could map something
//! between the bounds that were taken when the range was unlinked.

use super::address_space::AddressSpace;
use super::vma::Vma;
use crate::phys::Hw;
use crate::table::{MayFree, StableVma};
use core::ptr::NonNull;

/// What a smallest table covers.
const TABLE_BYTES: u64 = 2 << 20;

/// VMAs that no fault can reach. Their tables are not yet free to go, for the reverse map still leads there:
///
/// ```compile_fail,E0277
/// use mm::{Hw, space::Detached, table::TlbBatch};
/// fn early<H: Hw>(d: &Detached<'_, H>, b: &mut TlbBatch<'_, H>) {
///     d.space().tables.free_tables(d.span(), (0, 1 << 47), b, d);
/// }
/// ```
#[must_use = "zap what they map, then free"]
pub struct Detached<'a, H: Hw> {
    space: &'a AddressSpace<H>,
    first: Option<NonNull<Vma<H>>>,
    last: Option<NonNull<Vma<H>>>,
    linked: bool,
    bounds: (u64, u64),
}

/// VMAs that neither faults nor the reverse map can reach.
///
/// ```
/// use mm::{Hw, space::Detached, table::TlbBatch};
/// fn in_order<H: Hw>(d: Detached<'_, H>, b: &mut TlbBatch<'_, H>) {
///     let gone = d.unlink_edges();
///     gone.space().tables.free_tables(gone.span(), gone.bounds(), b, &gone);
/// }
/// ```
#[must_use = "free their tables first"]
pub struct Unreachable<'a, H: Hw>(Detached<'a, H>);

// SAFETY: out of the tree and write-locked: only this value's owner frees tables of their range.
unsafe impl<H: Hw> StableVma<H> for Detached<'_, H> {}
// SAFETY: as for `Detached`.
unsafe impl<H: Hw> StableVma<H> for Unreachable<'_, H> {}
// SAFETY: made by `unlink_edges` only: out of the tree, readers waited for, out of the lists.
unsafe impl<H: Hw> MayFree<H> for Unreachable<'_, H> {}

impl<'a, H: Hw> Detached<'a, H> {
    pub(super) fn new(space: &'a AddressSpace<H>) -> Self {
        Self {
            space,
            first: None,
            last: None,
            linked: true,
            bounds: (u64::MAX, 0),
        }
    }

    /// Adds a VMA above those that are there.
    ///
    /// # Safety
    /// Out of the tree, write-locked, its edges linked; its owner is this value from now on.
    pub(super) unsafe fn push(&mut self, vma: NonNull<Vma<H>>) {
        // SAFETY: the caller's.
        unsafe { vma.as_ref() }.node().chain(None);
        match self.last {
            // SAFETY: ours since it was pushed.
            Some(l) => unsafe { l.as_ref() }.node().chain(Some(vma.cast())),
            None => self.first = Some(vma),
        }
        self.last = Some(vma);
    }

    pub(super) fn widen(&mut self, (floor, ceiling): (u64, u64)) {
        self.bounds.0 = self.bounds.0.min(floor);
        self.bounds.1 = self.bounds.1.max(ceiling);
    }

    /// The space they were in.
    pub fn space(&self) -> &'a AddressSpace<H> {
        self.space
    }

    /// Whether nothing was there.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// In address order.
    pub fn iter(&self) -> impl Iterator<Item = &Vma<H>> {
        let mut at = self.first;
        core::iter::from_fn(move || {
            // SAFETY: pushed VMAs are ours and alive; `next` chains them (`push`).
            let v = unsafe { at?.as_ref() };
            at = v.node().next().map(NonNull::cast);
            Some(v)
        })
    }

    /// From the first start to the last end; empty if nothing was there.
    pub fn span(&self) -> (u64, u64) {
        match (self.first, self.last) {
            // SAFETY: ours.
            (Some(f), Some(l)) => unsafe { (f.as_ref().start(), l.as_ref().end()) },
            _ => (0, 0),
        }
    }

    /// Their entries are gone: leaves the reverse map.
    pub fn unlink_edges(mut self) -> Unreachable<'a, H> {
        self.unlink();
        Unreachable(self)
    }

    fn unlink(&mut self) {
        if core::mem::take(&mut self.linked) {
            for v in self.iter() {
                // SAFETY: linked since they entered the tree, and write-locked.
                unsafe { v.unlink_edges(self.space.hw()) };
            }
        }
    }
}

impl<H: Hw> Drop for Detached<'_, H> {
    fn drop(&mut self) {
        self.unlink();
        let mut at = self.first;
        while let Some(v) = at {
            // SAFETY: ours; the chain is read before its memory goes.
            at = unsafe { v.as_ref() }.node().next().map(NonNull::cast);
            // SAFETY: out of the tree and the lists, readers gone since it was write-locked.
            unsafe { Vma::dissolve(self.space.hw(), v) };
        }
    }
}

impl<'a, H: Hw> Unreachable<'a, H> {
    /// The space they were in.
    pub fn space(&self) -> &'a AddressSpace<H> {
        self.0.space
    }
    /// From the first start to the last end.
    pub fn span(&self) -> (u64, u64) {
        self.0.span()
    }
    /// The spans of those that lie so close together that they may share a smallest table, in order: what lies between
    /// the spans has no tables of its own.
    pub fn spans(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut vmas = self.0.iter().peekable();
        core::iter::from_fn(move || {
            let first = vmas.next()?;
            let (start, mut end) = (first.start(), first.end());
            while let Some(next) = vmas.next_if(|next| next.start() - end < TABLE_BYTES) {
                end = next.end();
            }
            Some((start, end))
        })
    }
    /// What the neighbours leave: tables wholly inside may be freed (`Tables::free_tables`).
    pub fn bounds(&self) -> (u64, u64) {
        self.0.bounds
    }
}
