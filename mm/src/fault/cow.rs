//! A write to an entry that is present and not writable: reuse, or copy.
//!
//! Replacing a page under a present entry: the old entry is taken out, every CPU forgets it, and only
//! then the new one is installed, all under the table lock; otherwise one thread could still read the
//! old page while another already writes the new one. The lock's holder has interrupts on, as has
//! everybody who spins on it, so the acknowledgements come.
//!
//! No CPU caches a translation whose accessed bit is clear (it sets the bit first), and whoever clears the
//! bit flushes before it lets go of its locks. So an entry that is taken out without the bit is in no cache, and
//! nobody need be told: after a fork that is the common case, and it spares an interrupt for every page.

#![forbid(unsafe_code)]

use super::file::needs_notice;
use super::unshare::is_ours;
use super::{Cx, Missing, Signal, Step, Stop, WRITTEN, spurious};
use crate::addr::Pfn;
use crate::phys::{Folio, FolioRef, Frame, Hw, NoFrame, Use, Zeroed};
use crate::race::{Point, planted, point};
use crate::space::{RssKind, VmaFlags};
use crate::table::pte::bit;
use crate::table::{LeafBits, MayInstall, PtGuard, Pte};

/// The write fault on a present entry.
#[inline]
pub(super) fn write_protected<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Step {
    let Some(mut pt) = cx.space.tables.pte_table(cx.va, cx.permit) else {
        return Ok(()); // gone meanwhile
    };
    let i = PtGuard::<H>::index(cx.va);
    let old = pt.get(i);
    if !old.present() {
        return Ok(());
    }
    if old.writable() {
        drop(pt);
        return spurious();
    }
    let allow = WRITTEN | bit::A;
    // A raw frame that looks like our own page is another's (BUG-35).
    let raw = cx.vma.shown(cx.va, old).is_err() && !planted(35);
    if cx.vma.flags().contains(VmaFlags::SHARED) {
        let folio = Folio::new(cx.hw, old.pfn());
        if !raw && needs_notice(cx.vma.object().map(|o| &**o), folio) {
            drop(pt);
            return Err(Stop::Absent(Missing::Notice));
        }
        pt.set_bits(i, allow);
        drop(pt);
        return spurious();
    }
    let folio = Folio::new(cx.hw, old.pfn());
    if !raw && folio.is_anon() {
        if is_ours(folio) {
            pt.set_bits(i, allow);
            drop(pt);
            return spurious();
        }
    } else if raw || cx.vma.folio(cx.va, old).is_err() {
        drop(pt);
        return replace(cx, old, Source::uncounted(cx.hw, old.pfn()), cx.own_bits());
    }
    let source = folio.get();
    drop(pt);
    replace(cx, old, Source::Folio(source), cx.own_bits())
}

/// Exclusive, not writable. `false`: nothing is mapped there.
pub(super) fn unshare<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Result<bool, Stop> {
    let Some(pt) = cx.space.tables.pte_table(cx.va, cx.permit) else {
        return Ok(false);
    };
    let old = pt.get(PtGuard::<H>::index(cx.va));
    if !old.present() {
        return Ok(false);
    }
    // Not a write: what was known to be written still is, and nothing else.
    let bits = LeafBits(cx.vma.prot_bits().0 | old.0 & bit::SOFT_DIRTY);
    let Ok(folio) = cx.vma.folio(cx.va, old) else {
        drop(pt);
        replace(cx, old, Source::uncounted(cx.hw, old.pfn()), bits)?;
        return Ok(true);
    };
    if folio.is_anon() && is_ours(folio) {
        return Ok(true);
    }
    let source = folio.get();
    drop(pt);
    replace(cx, old, Source::Folio(source), bits)?;
    Ok(true)
}

/// The entry says that its page was written, without letting it be: a forced write follows.
pub(super) fn mark_written<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) {
    if let Some(mut pt) = cx.space.tables.pte_table(cx.va, cx.permit) {
        let i = PtGuard::<H>::index(cx.va);
        if pt.get(i).is_counted() {
            pt.set_bits(i, bit::SOFT_DIRTY);
        }
    }
}

/// A frame with the source's content; no source reads as zeroes.
#[inline]
pub(super) fn filled<H: Hw>(
    hw: H,
    from: Use,
    source: Option<&FolioRef<H>>,
) -> Result<Frame<Zeroed>, NoFrame> {
    let frame = hw.phys().alloc(hw, from).ok_or(NoFrame)?;
    Ok(match source {
        None => frame.zero(hw),
        Some(s) => {
            hw.copy_frame(hw.frame_ptr(frame.pfn()), s.ptr());
            frame.assume_init()
        }
    })
}

/// What a copy is made from.
enum Source<H: Hw> {
    /// Of the zero page.
    Zeroes,
    /// A frame that nobody counts (PFN-6): a device's, or what the owner of a window into memory cannot know.
    Raw,
    Folio(FolioRef<H>),
}

impl<H: Hw> Source<H> {
    /// What is behind a special entry.
    #[inline]
    fn uncounted(hw: H, pfn: Pfn) -> Self {
        if pfn == hw.phys().zero_page() {
            Source::Zeroes
        } else {
            Source::Raw
        }
    }
}

/// A copy of a bare frame. What cannot be read is no zeroes (PFN-7, BUG-27): if the entry is another by now, the access
/// comes again; if it is not, perhaps it was for a moment, so it is tried once more under the lock that lets nobody change it,
/// and then it cannot be had.
#[cold]
#[inline(never)]
fn raw_copy<H: Hw, G: MayInstall<H>>(
    cx: &Cx<'_, H, G>,
    old: Pte,
) -> Result<Option<Frame<Zeroed>>, Stop> {
    let hw = cx.hw;
    let mut frame = hw.phys().alloc(hw, G::FRAMES).ok_or(NoFrame)?;
    let mut copy = || hw.copy_raw(&mut frame, cx.space.tables.root(), cx.va);
    point(hw, Point::CowRaw);
    let mut copied = copy();
    let mut changed = false;
    if !copied {
        point(hw, Point::CowUnread);
        if planted(27) {
            return Ok(Some(frame.zero(hw)));
        }
        let pt = cx.space.tables.pte_table(cx.va, cx.permit);
        let now = pt.as_ref().map(|pt| pt.get(PtGuard::<H>::index(cx.va)));
        changed = now.is_none_or(|now| !now.shows_as(old));
        copied = !changed && copy();
    }
    if copied {
        return Ok(Some(frame.assume_init()));
    }
    hw.phys().free(hw, frame);
    if changed {
        Ok(None)
    } else {
        Err(Stop::Signal(Signal::Unreadable))
    }
}

/// Puts an anonymous copy in place of `old`, unless the entry is no longer `old`.
#[inline]
fn replace<H: Hw, G: MayInstall<H>>(
    cx: &Cx<'_, H, G>,
    old: Pte,
    source: Source<H>,
    bits: LeafBits,
) -> Step {
    let hw = cx.hw;
    let family = cx.vma.join_family();
    let frame = match &source {
        Source::Zeroes => filled(hw, G::FRAMES, None)?,
        Source::Folio(source) => filled(hw, G::FRAMES, Some(source))?,
        Source::Raw => match raw_copy(cx, old)? {
            Some(frame) => frame,
            None => return Ok(()),
        },
    };
    point(hw, Point::CowCopied);
    let i = PtGuard::<H>::index(cx.va);
    let table = cx.space.tables.pte_table(cx.va, cx.permit);
    let same = |pt: &PtGuard<H>| {
        let now = pt.get(i);
        now.shows_as(old) && !now.writable()
    };
    let Some(mut pt) = table.filter(same) else {
        hw.phys().free(hw, frame);
        return Ok(());
    };
    let folio = Folio::init_anon(hw, frame, family.word(), cx.index());
    cx.list(folio, bits);
    let taken = pt.take(i);
    if taken.young() {
        cx.forget_everywhere();
    }
    pt.install(i, Pte::leaf(folio.pfn(), bits));
    if taken.mlocked()
        && let Some(folio) = taken.folio(hw)
    {
        folio.munlock();
    }
    match source {
        Source::Zeroes | Source::Raw => cx.space.add_rss(RssKind::Anon, 1),
        Source::Folio(source) => {
            if !source.is_anon() {
                cx.space.add_rss(cx.vma.file_rss(), -1);
                cx.space.add_rss(RssKind::Anon, 1);
            }
            drop(pt);
            let source = source.into_folio();
            source.desc().map_dec();
            source.put_many(2); // the entry's and ours
        }
    }
    Ok(())
}
