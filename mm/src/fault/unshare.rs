//! A private copy for a reader who is about to pin, and the one decision on which exclusivity rests.
//!
//! Life of AnonExclusive (UNSH-3): set when an anonymous page is made (first touch, copy on write) and
//! when its last sharer is found alone; cleared by fork when it shares, which a possible pin refuses.
//! An exclusive page may be made writable; a page that is not exclusive never is.

#![forbid(unsafe_code)]

use super::{Cx, Step, cow};
use crate::phys::{Folio, Hw};
use crate::race::planted;
use crate::space::VmaFlags;
use crate::table::MayInstall;

/// Whether this anonymous page, mapped by an entry whose table lock the caller holds, belongs to the
/// faulting process alone. The only reference is then the entry's own: nobody else can take one, as
/// lockless walkers re-read the entry and refuse a page that is not exclusive.
#[inline]
pub(super) fn is_ours<H: Hw>(folio: Folio<H>) -> bool {
    if folio.is_exclusive() {
        return true;
    }
    if folio.desc().ref_count() != 1 && !(planted(4) && folio.desc().map_count() == 1) {
        return false;
    }
    folio.set_exclusive();
    true
}

/// Makes the page exclusive without making it writable (UNSH-2): no permission to write is asked for, no
/// file is dirtied. Maps what is missing first.
pub(super) fn step<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Step {
    if cx.vma.flags().contains(VmaFlags::SHARED) || cow::unshare(cx)? {
        return Ok(());
    }
    super::dispatch(cx, false, false)?;
    cow::unshare(cx).map(drop)
}
