//! The lockless walk: interrupts off, read, count, read again (FAST-1 to FAST-21).
//!
//! Protocol. With interrupts off this CPU acknowledges no shootdown, and whoever frees a table or a page of the space
//! it has loaded awaits that acknowledgement first (`table/tlb.rs`, rules 1 and 2: the other half of this). So every
//! table on the way stays, and what an entry named a moment ago is still a frame with a descriptor, though
//! perhaps not the same page any more. Therefore:
//! 1. read the entry; it must let the user do what is wanted, and be counted;
//! 2. count on the frame it names, unless it is free (PIN-3);
//! 3. read the entry and the one above it again: unchanged means that the page was mapped here after it was
//!    counted, so whoever takes it away sees the count when he looks (FAST-13: he empties the entry and
//!    flushes first). Changed means: undo, stop;
//! 4. only now trust what the descriptor says, and undo if it says no.
//!
//! The entry's second reading does not show a fork, which leaves the parent's read-only entries as they are: a
//! pin counts and then looks whether the page is its process's alone, fork clears that mark and then looks for
//! pins (`Folio::try_share`); and while fork's sequence is odd, or if it has changed, no pin stands (FAST-14).
//!
//! No lock, no wait, no allocation, no fault. A section with interrupts off handles one table or one huge leaf, at
//! most 512 entries; then they come on for a moment. Whatever is not plain is left to the slow path.

#![forbid(unsafe_code)]

use super::flags::{GupFlags, Want};
use super::follow::pinnable;
use super::pinned::{PageSlot, check};
use super::slow::announce_pins;
use crate::addr::{Order, PAGE_SHIFT, Pfn};
use crate::phys::count::PIN_BIAS;
use crate::phys::folio::MAPPING_ANON;
use crate::phys::{Folio, FrameDesc, Hw, Zone, flag};
use crate::race::{Point, planted, point};
use crate::space::AddressSpace;
use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::atomic::fence;
use crate::table::pte::bit;
use crate::table::walk::{self, ENTRIES, Found};
use crate::table::{Pte, PteCell};
use crate::wait::{CanWait, IrqOff};

/// Entries looked at in one section.
pub const MOST: usize = ENTRIES;

/// The space that this CPU has loaded, for as long as interrupts are off (FAST-20).
///
/// ```compile_fail,E0505
/// fn f<H: mm::Hw>(s: &mm::AddressSpace<H>, w: &mut mm::CanWait<H>) {
///     let irq = w.irq_off();
///     let active = mm::gup::ActiveSpace::of(&irq, s);
///     drop(irq);
///     let _ = active.is_some();
/// }
/// ```
pub struct ActiveSpace<'i, 'w, H: Hw> {
    space: &'i AddressSpace<H>,
    irq: &'i IrqOff<'w, H>,
}

impl<'i, 'w, H: Hw> ActiveSpace<'i, 'w, H> {
    /// `None`: another space is loaded, or none. What is loaded is read with interrupts off, so it stays.
    #[inline]
    pub fn of(irq: &'i IrqOff<'w, H>, space: &'i AddressSpace<H>) -> Option<Self> {
        (irq.hw().loaded_root() == space.tlb.root()).then_some(Self { space, irq })
    }
}

/// As many of the pages from `start` on as can be had without a lock, in sections.
#[inline(always)]
pub(super) fn walk<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    want: Want,
    start: u64,
    slots: &mut [PageSlot],
) -> usize {
    match (want.pin(), want.write()) {
        (false, false) => sections::<H, false, false>(space, wait, want, start, slots),
        (false, true) => sections::<H, false, true>(space, wait, want, start, slots),
        (true, false) => sections::<H, true, false>(space, wait, want, start, slots),
        (true, true) => sections::<H, true, true>(space, wait, want, start, slots),
    }
}

#[inline(never)]
fn sections<H: Hw, const PIN: bool, const WRITE: bool>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    want: Want,
    start: u64,
    slots: &mut [PageSlot],
) -> usize {
    if PIN {
        announce_pins(space);
        // The mark before the sequence; fork makes the sequence odd before it looks at the mark.
        fence(SeqCst);
    }
    let mut done = 0;
    while let Some(rest) = slots.get_mut(done..).filter(|s| !s.is_empty()) {
        let at = start + ((done as u64) << PAGE_SHIFT);
        let mut n = 0;
        let void;
        let whole = {
            let irq = wait.irq_off();
            let Some(active) = ActiveSpace::of(&irq, space) else {
                break;
            };
            let seq = if PIN { space.fork_seq.read() } else { 0 };
            if PIN && seq & 1 != 0 && !planted(7) {
                break; // fork is under way: its lock is where to wait
            }
            let whole = section::<H, PIN, WRITE>(&active, want, at, rest, &mut n);
            void = PIN && n != 0 && space.fork_seq.changed(seq) && !planted(7);
            whole
        };
        if void {
            for slot in &rest[..n] {
                Folio::of_page(wait.hw(), slot.pfn()).unpin(1);
            }
            break;
        }
        if PIN && n != 0 {
            for slot in &rest[..n] {
                check(wait.hw(), slot.pfn());
            }
            wait.hw().phys().count_pinned(wait.hw().cpu(), n as u64);
        }
        done += n;
        if !whole {
            break;
        }
    }
    done
}

/// References alone, for a caller who has interrupts off himself and wants no more pages than he can answer for.
pub(super) fn walk_only<H: Hw>(
    active: &ActiveSpace<'_, '_, H>,
    want: Want,
    start: u64,
    slots: &mut [PageSlot],
) -> usize {
    let mut done = 0;
    while let Some(rest) = slots.get_mut(done..).filter(|s| !s.is_empty()) {
        let at = start + ((done as u64) << PAGE_SHIFT);
        let mut n = 0;
        let whole = if want.write() {
            section::<H, false, true>(active, want, at, rest, &mut n)
        } else {
            section::<H, false, false>(active, want, at, rest, &mut n)
        };
        done += n;
        if !whole {
            break;
        }
    }
    done
}

/// One table or one huge leaf. Whether to go on after it.
#[inline(always)]
fn section<H: Hw, const PIN: bool, const WRITE: bool>(
    active: &ActiveSpace<'_, '_, H>,
    want: Want,
    at: u64,
    slots: &mut [PageSlot],
    done: &mut usize,
) -> bool {
    #[cfg(feature = "sim")]
    if !active.irq.hw().walks_fast() {
        return false;
    }
    match walk::peek_slots(active.irq, active.space.tlb.root(), at) {
        Found::Table { cells, above } => {
            let first = walk::index(at, 1);
            let long = PIN && want.has(GupFlags::LONGTERM);
            let hw = active.irq.hw();
            if let [slot] = slots {
                let got = one::<H, PIN, WRITE>(hw, long, &cells[first], above, slot);
                *done = usize::from(got);
                return got;
            }
            let n = slots.len().min(ENTRIES - first);
            *done = small::<H, PIN, WRITE>(hw, long, &cells[first..], above, &mut slots[..n]);
            *done == n
        }
        Found::Huge { leaf, above, level } => {
            let n = slots.len().min(MOST);
            *done = huge::<H, PIN, WRITE>(
                active.irq.hw(),
                want,
                (leaf, above, level),
                at,
                &mut slots[..n],
            );
            *done != 0
        }
        Found::Nothing => false,
    }
}

/// What the user must be let do.
const fn right<const WRITE: bool>() -> u64 {
    if WRITE { bit::U | bit::W } else { bit::U }
}

/// FAST-6, of an entry that is not plain: a protection key may be all that is odd about it.
#[cold]
#[inline(never)]
fn keyed<H: Hw, const WRITE: bool>(hw: H, e: Pte) -> Option<Pfn> {
    if planted(17) && e.is_counted() {
        return Some(e.pfn());
    }
    e.plain(right::<WRITE>(), bit::DEVMAP, hw.frames_end())
        .filter(|_| hw.pkey_allows(e.key(), WRITE))
}

/// Entries of one table, slot by slot; how many.
#[inline(never)]
fn small<H: Hw, const PIN: bool, const WRITE: bool>(
    hw: H,
    long: bool,
    cells: &[PteCell],
    above: (&PteCell, Pte),
    slots: &mut [PageSlot],
) -> usize {
    for (n, (cell, slot)) in cells.iter().zip(slots.iter_mut()).enumerate() {
        if !one::<H, PIN, WRITE>(hw, long, cell, above, slot) {
            return n;
        }
    }
    slots.len()
}

/// One entry; whether its page is held now.
#[inline(always)]
fn one<H: Hw, const PIN: bool, const WRITE: bool>(
    hw: H,
    long: bool,
    cell: &PteCell,
    above: (&PteCell, Pte),
    slot: &mut PageSlot,
) -> bool {
    let e = cell.load();
    // FAST-6: whether the user may do it himself and something counted stands behind the entry.
    let plain = e.plain(right::<WRITE>(), bit::DEVMAP | bit::KEY, hw.frames_end());
    let Some(pfn) = plain.or_else(|| keyed::<H, WRITE>(hw, e)) else {
        return false;
    };
    let d = hw.desc(pfn);
    point(hw, Point::FastRead);
    // A tail has no references of its own.
    if !d.try_get_many(weight::<PIN>()) {
        if !large_page::<H, PIN, WRITE>(hw, long, cell, e, above) {
            return false;
        }
    } else {
        point(hw, Point::FastHeld);
        let same = (cell.load() == e || planted(12)) && (above.0.load() == above.1 || planted(10));
        let flags = d.flags.load(SeqCst);
        if !(same
            && flags & (flag::HEAD | flag::SECRET) == 0
            && (!PIN || pin_stands::<WRITE>(e, d, flags, long))
            && (!PIN || hw.make_accessible(pfn).is_ok()))
        {
            // The head of a large folio was counted as if it were small.
            if !undo::<H, PIN>(hw, pfn) || !large_page::<H, PIN, WRITE>(hw, long, cell, e, above) {
                return false;
            }
        } else if flags & flag::REFERENCED == 0 {
            d.set(flag::REFERENCED); // FAST-19
        }
    }
    *slot = PageSlot::new(pfn);
    true
}

/// What one page is counted by.
#[inline(always)]
const fn weight<const PIN: bool>() -> i32 {
    if PIN { PIN_BIAS } else { 1 }
}

/// Undoes one count. Whether the frame may be a part of a large folio.
#[cold]
#[inline(never)]
fn undo<H: Hw, const PIN: bool>(hw: H, pfn: Pfn) -> bool {
    let large = hw.desc(pfn).has(flag::HEAD);
    Folio::new(hw, pfn).put_many(weight::<PIN>());
    large
}

/// The rules for pins, on a page that is counted and still mapped: a page of its own before it is only read
/// (UNSH-1), unmovable memory and no tracked file for those that last (LT-8, LT-9).
#[inline(always)]
fn pin_stands<const WRITE: bool>(e: Pte, d: &FrameDesc, flags: u64, long: bool) -> bool {
    if !WRITE && !e.writable() {
        let anon = d.mapping.load(SeqCst) & MAPPING_ANON != 0;
        // Without the VMA nobody knows whether a file's page is mapped privately.
        if anon && flags & flag::ANON_EXCLUSIVE == 0 || !anon && long {
            return planted(6);
        }
    }
    !long || lasts::<WRITE>(d, flags)
}

#[cold]
#[inline(never)]
fn lasts<const WRITE: bool>(d: &FrameDesc, flags: u64) -> bool {
    if flags & flag::ZONE_MASK == (Zone::Movable as u64) << flag::ZONE_SHIFT {
        return false;
    }
    // Truncated meanwhile, or nobody's memory: the slow path asks the VMA.
    !WRITE || d.mapping.load(SeqCst) != 0 && flags & flag::TRACKED == 0
}

/// One page of a large folio behind a small entry, if it is that.
#[cold]
#[inline(never)]
fn large_page<H: Hw, const PIN: bool, const WRITE: bool>(
    hw: H,
    long: bool,
    cell: &PteCell,
    e: Pte,
    above: (&PteCell, Pte),
) -> bool {
    hw.desc(e.pfn()).has_any(flag::HEAD | flag::TAIL)
        && large::<H, PIN, WRITE>(hw, long, e.pfn(), 1, (cell, e), above) == 1
}

/// Takes hold of the folio that `page` belongs to, `n` times at most: not past its end. How many times.
fn large<H: Hw, const PIN: bool, const WRITE: bool>(
    hw: H,
    long: bool,
    page: Pfn,
    n: usize,
    leaf: (&PteCell, Pte),
    above: (&PteCell, Pte),
) -> usize {
    let folio = Folio::of_page(hw, page);
    let d = folio.desc();
    point(hw, Point::FastRead);
    if !d.try_get_many(1) {
        return 0;
    }
    // Held now: it is what it is, if it is still this page's (PIN-3), and not a block that is none yet.
    let whole = d.has(flag::HEAD) == (folio.order() != Order::ZERO);
    let end = folio.pfn().0 + folio.order().pages();
    let pages = end.saturating_sub(page.0).min(n as u64);
    if !whole || pages == 0 || Folio::of_page(hw, page).pfn() != folio.pfn() {
        folio.put();
        return 0;
    }
    let refs = pages as i32;
    if PIN {
        if !d.pin(refs) {
            folio.put();
            return 0;
        }
        folio.put();
    } else if refs > 1 && !d.get_checked(refs - 1) {
        folio.put();
        return 0;
    }
    point(hw, Point::FastHeld);
    let give_back = || {
        if PIN {
            folio.unpin(refs);
        } else {
            folio.put_many(refs);
        }
        0
    };
    if (leaf.0.load() != leaf.1 || above.0.load() != above.1) && !planted(11) {
        return give_back();
    }
    let flags = d.flags.load(SeqCst);
    let stands = !PIN
        || pin_stands::<WRITE>(leaf.1, d, flags, long)
            && (!long || pinnable(folio))
            && hw.make_accessible(folio.pfn()).is_ok();
    if flags & flag::SECRET != 0 || !stands {
        return give_back();
    }
    folio.mark_accessed();
    refs as usize
}

/// A huge leaf (FAST-8): as many pages as were asked for and its folio has.
fn huge<H: Hw, const PIN: bool, const WRITE: bool>(
    hw: H,
    want: Want,
    (leaf, above, level): ((&PteCell, Pte), (&PteCell, Pte), walk::Level),
    at: u64,
    slots: &mut [PageSlot],
) -> usize {
    let e = leaf.1;
    let inside = at - walk::align_down(at, level);
    let left = (walk::next(at, level) - at) >> PAGE_SHIFT;
    let n = slots.len().min(left as usize);
    // As the entry that the first of them would have.
    let Some(page) = keyed::<H, WRITE>(hw, Pte(e.0 + inside)) else {
        return 0;
    };
    let long = want.has(GupFlags::LONGTERM);
    let n = large::<H, PIN, WRITE>(hw, long, page, n, leaf, above);
    for (i, slot) in slots.iter_mut().take(n).enumerate() {
        *slot = PageSlot::new(Pfn(page.0 + i as u64));
    }
    n
}
