//! What may be believed of an entry (Linux's `vm_normal_page`; PFN-1).
//!
//! The entry itself says whether a folio stands behind it: special means that nobody counts its frame, and everything else
//! that is present is counted. Where it is mapped does not matter, except to tell what cannot be: the first of a row of
//! bare frames is known in a private VMA (PFN-12), and only VMAs of drivers have bare frames but the zero page. An
//! entry that cannot be, of a frame that the allocator never had or not present and of no kind that anybody makes, was written by
//! nobody of us. It is reported (PFN-8), nothing behind it is touched, and everybody goes on as if nothing counted it.

#![forbid(unsafe_code)]

use super::flags::VmaFlags;
use super::vma::Vma;
use crate::addr::Pfn;
use crate::hw::Warning;
use crate::phys::{Folio, Hw};
use crate::race::planted;
use crate::table::Pte;
use crate::table::pte::bit;

impl<H: Hw> Vma<H> {
    /// The folio behind the entry `e` of `va`, which is not empty; `Err`: what the rest may make of it, which is not counted.
    /// Loops ask [`Pte::plain`] first.
    #[inline]
    pub fn folio(&self, va: u64, e: Pte) -> Result<Folio<H>, Pte> {
        let folio = self.shown(va, e)?;
        if folio.is_nobodys() {
            return Err(self.bare(va, e));
        }
        Ok(folio)
    }

    /// The same, and it may be nobody's: for those who use it only if it is anonymous, which such a one is not.
    #[inline]
    pub fn shown(&self, va: u64, e: Pte) -> Result<Folio<H>, Pte> {
        match e.folio(self.space().hw()) {
            Some(folio) if !(planted(13) && self.would_show(va, e.pfn())) => Ok(folio),
            _ => Err(self.bare(va, e)),
        }
    }

    /// Whether a row of bare frames that began with the VMA would show `pfn` at `va`. True of every bare frame of a private
    /// VMA with PFNMAP, and perhaps of a copy as well: the frame of a copy may be any (BUG-13).
    #[inline]
    pub fn would_show(&self, va: u64, pfn: Pfn) -> bool {
        self.flags().contains(VmaFlags::PFNMAP)
            && self.flags().is_cow()
            && self.index_of(va) == pfn.0
    }

    /// Nothing is counted behind it, or nothing can be.
    #[cold]
    #[inline(never)]
    fn bare(&self, va: u64, e: Pte) -> Pte {
        if !self.may_be_bare(va, e) {
            self.report(va, e);
        }
        // What is not present has other bits there.
        if e.present() { e.with(bit::SPECIAL) } else { e }
    }

    fn may_be_bare(&self, va: u64, e: Pte) -> bool {
        let flags = self.flags();
        e.special()
            && (e.pfn() == self.space().hw().phys().zero_page()
                || flags.contains(VmaFlags::MIXEDMAP)
                || flags.contains(VmaFlags::PFNMAP)
                    && (!flags.is_cow() || self.would_show(va, e.pfn())))
    }

    /// Reports an entry that cannot be (Linux's `print_bad_pte`; PFN-8).
    #[cold]
    #[inline(never)]
    pub fn report(&self, va: u64, e: Pte) {
        let hw = self.space().hw();
        hw.phys().count_bad_entry();
        hw.warn(Warning::BadEntry {
            va,
            entry: e.0,
            flags: self.flags().bits(),
            start: self.start(),
            pgoff: self.pgoff(),
        });
    }
}
