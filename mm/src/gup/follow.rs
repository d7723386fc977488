//! The lookup: what stands in the tables, under their locks, and whether it will do (WALK-1 to WALK-7).
//!
//! Each entry is read once; what is decided about it is decided on the copy, under the lock of its table, where
//! only the MMU's A and D can still change. Nothing here sleeps, faults or allocates. On any failure the page at
//! hand is not held; those before it are.

#![forbid(unsafe_code)]

use super::flags::{GupFlags, Hold, Want};
use super::pinned::{PageSlot, check, range_run};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::errno::Errno;
use crate::fault::Need;
use crate::phys::{Folio, Hw, Zone, flag};
use crate::race::planted;
use crate::space::{AddressSpace, Vma, VmaFlags};
use crate::table::pte::bit;
use crate::table::{Leaves, MayInstall, PtGuard, Pte, walk};

/// What to do about one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Take hold of the page.
    Take,
    /// Nothing counts what is behind it (PFN-10).
    Raw,
    /// Fault, then look again.
    Fault(Need),
    /// No, and a fault would not help.
    Refuse(Errno),
}

/// What a page's descriptor says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Page {
    pub anon: bool,
    pub exclusive: bool,
}

/// The write that makes an entry writable; where the VMA does not let it be written, an exclusive page that is
/// known to be written is all that a forced write needs.
fn write_need(vma: VmaFlags, present: bool) -> Need {
    if vma.contains(VmaFlags::WRITE) {
        Need::Write { present }
    } else {
        Need::Forced
    }
}

/// Whether a read-only pin must have a page of its own first (UNSH-1): it would stay behind when the process
/// writes and gets another. Pages of files only matter to pins that last.
pub(super) fn must_unshare(want: Want, page: Page, cow: bool) -> bool {
    if want.hold != Hold::Pin || want.write() || planted(6) {
        return false;
    }
    if page.anon {
        !page.exclusive
    } else {
        want.has(GupFlags::LONGTERM) && cow
    }
}

/// The order of WALK-4, up to the reference. `page` is asked only where a folio stands behind the entry.
pub(super) fn judge(
    e: Pte,
    want: Want,
    vma: VmaFlags,
    zero: Pfn,
    page: impl FnOnce() -> Page,
) -> Verdict {
    if !e.present() {
        return Verdict::Fault(if want.write() {
            write_need(vma, false)
        } else {
            Need::Read
        });
    }
    let counted = e.is_counted();
    if counted && (e.writable() || !want.write() && want.hold != Hold::Pin) {
        return Verdict::Take; // whatever page it is
    }
    let page = if counted { page() } else { Page::default() };
    if want.write() && !may_write(e, want, vma, counted, page) {
        return Verdict::Fault(write_need(vma, true));
    }
    if !counted {
        if e.pfn() != zero {
            return Verdict::Raw;
        }
        if want.has(GupFlags::DUMP) {
            return Verdict::Refuse(Errno::EFAULT); // DUMP-2
        }
    }
    if !e.writable() && must_unshare(want, page, vma.is_cow()) {
        return Verdict::Fault(Need::Unshare);
    }
    Verdict::Take
}

/// WALK-6: an entry that its user may write; or, for a debugger, one to which only this process has the page.
fn may_write(e: Pte, want: Want, vma: VmaFlags, counted: bool, page: Page) -> bool {
    e.writable()
        || planted(14) && want.has(GupFlags::FORCE)
        || vma.is_shadow_stack() && e.is_shadow_stack()
        || want.has(GupFlags::FORCE)
            && vma.is_cow()
            && !vma.contains(VmaFlags::WRITE)
            && counted
            && page.anon
            && page.exclusive
            && (!vma.tracks_writes() || e.soft_dirty()) // SOFTD-1
}

/// How far a lookup came, and why no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The end of the range.
    Reached,
    /// The next page needs this.
    Fault(Need),
    /// The next page cannot be had.
    Refused(Errno),
}

/// Follows `at..end` (pages, within `vma`, whose permissions the caller has checked) as far as it goes without a
/// fault. `out`: one slot for each page, or none if nothing is to be held. Returns the pages.
pub(super) fn follow<H: Hw, G: MayInstall<H>>(
    space: &AddressSpace<H>,
    permit: &G,
    vma: &Vma<H>,
    want: Want,
    (at, end): (u64, u64),
    mut out: Option<&mut [PageSlot]>,
) -> (usize, End) {
    let hw = space.hw();
    let mut done = 0;
    let mut counted = 0;
    let mut at = at;
    let why = loop {
        if at >= end {
            break End::Reached;
        }
        let slots = match &mut out {
            Some(all) => all.get_mut(done..),
            None => None,
        };
        let (n, why) = match space.tables.leaves(at, permit) {
            Leaves::Small(mut pt) => small(hw, &mut pt, vma, want, (at, end), slots, &mut counted),
            Leaves::Huge(mut pt, level, e) => {
                let span = (at, walk::next(at, level).min(end));
                huge(hw, &mut pt, e, level, vma, want, span, slots, &mut counted)
            }
            // A hole that would read as zeroes is not filled for a dump (WALK-1).
            Leaves::None if want.has(GupFlags::DUMP) && vma.is_anon() => {
                (0, End::Refused(Errno::EFAULT))
            }
            Leaves::None => match judge(Pte::EMPTY, want, vma.flags(), Pfn(0), Page::default) {
                Verdict::Fault(need) => (0, End::Fault(need)),
                _ => (0, End::Fault(Need::Read)),
            },
        };
        done += n;
        at += (n as u64) << PAGE_SHIFT;
        if why != End::Reached {
            break why;
        }
    };
    if counted != 0 {
        hw.phys().count_pinned(hw.cpu(), counted);
    }
    (done, why)
}

fn look<H: Hw>(hw: H, pfn: Pfn) -> Page {
    let folio = Folio::of_page(hw, pfn);
    Page {
        anon: folio.is_anon(),
        exclusive: folio.is_exclusive(),
    }
}

/// One level-1 table, from `at` to its end or `end`. `counted`: pins that were counted.
fn small<H: Hw>(
    hw: H,
    pt: &mut PtGuard<H>,
    vma: &Vma<H>,
    want: Want,
    (at, end): (u64, u64),
    mut slots: Option<&mut [PageSlot]>,
    counted: &mut u64,
) -> (usize, End) {
    let frames = hw.frames_end();
    let surely = if want.write() || want.pin() {
        bit::W
    } else {
        0
    };
    let first = PtGuard::<H>::index(at);
    let pages = ((end - at) >> PAGE_SHIFT).min((512 - first) as u64) as usize;
    for n in 0..pages {
        let e = pt.get(first + n);
        // Most need no judge.
        let plain = e.plain(surely, 0, frames);
        let (pfn, folio) = match plain.and_then(|pfn| Folio::new(hw, pfn).counted()) {
            Some(folio) => (e.pfn(), Some(folio)),
            None => match ask(pt, first + n, vma, e, want, slots.is_some()) {
                Ok(folio) => (e.pfn(), folio),
                Err(why) => return (n, why),
            },
        };
        if let Some(folio) = folio {
            if let Err(errno) = take(folio, 1, want, counted) {
                return (n, End::Refused(errno));
            }
            if want.touch {
                touch(folio, e, want);
            }
        }
        if let Some(slot) = slots.as_mut().and_then(|s| s.get_mut(n)) {
            *slot = PageSlot::new(pfn);
        }
    }
    (pages, End::Reached)
}

/// Asks the judge about entry `i`: the folio to take hold of; none if nothing is counted behind it, and there is no more to do.
#[inline(never)]
fn ask<H: Hw>(
    pt: &mut PtGuard<H>,
    i: usize,
    vma: &Vma<H>,
    mut e: Pte,
    want: Want,
    hold: bool,
) -> Result<Option<Folio<H>>, End> {
    let hw = vma.space().hw();
    if e.present()
        && let Err(bare) = vma.folio(pt.base() + ((i as u64) << PAGE_SHIFT), e)
    {
        e = bare;
    }
    let zero = hw.phys().zero_page();
    match judge(e, want, vma.flags(), zero, || look(hw, e.pfn())) {
        Verdict::Take if e.is_counted() => Ok(Some(Folio::of_page(hw, e.pfn()))),
        // The zero page's pins are not counted (PIN-7).
        Verdict::Take if want.hold != Hold::Get || hw.desc(zero).get_checked(1) => Ok(None),
        Verdict::Take => Err(End::Refused(Errno::ENOMEM)),
        Verdict::Raw if hold => Err(End::Refused(Errno::EEXIST)),
        Verdict::Raw => {
            touch_raw(pt, i, e, want);
            Ok(None)
        }
        Verdict::Fault(_) if !e.present() && want.has(GupFlags::DUMP) && vma.is_anon() => {
            Err(End::Refused(Errno::EFAULT)) // WALK-1
        }
        Verdict::Fault(need) => Err(End::Fault(need)),
        Verdict::Refuse(errno) => Err(End::Refused(errno)),
    }
}

/// A huge leaf: all its pages up to `end` at once (HUGE-4, WALK-9, LOOP-5).
#[allow(clippy::too_many_arguments, reason = "the walk's state, spelled out")]
fn huge<H: Hw>(
    hw: H,
    pt: &mut PtGuard<H>,
    mut e: Pte,
    level: walk::Level,
    vma: &Vma<H>,
    want: Want,
    (at, end): (u64, u64),
    mut slots: Option<&mut [PageSlot]>,
    counted: &mut u64,
) -> (usize, End) {
    // The entry that the page at hand would have.
    let page = Pte(e.0 + (at - walk::align_down(at, level)));
    let first = page.pfn();
    if e.is_counted() && page.folio(hw).is_none_or(|page| page.is_nobodys()) {
        vma.report(at, e);
        e = e.with(bit::SPECIAL);
    }
    let none = Pfn(u64::MAX); // there is no large zero page
    match judge(e, want, vma.flags(), none, || look(hw, first)) {
        Verdict::Take => {}
        // As in `small`; there need not be a descriptor.
        Verdict::Raw if slots.is_none() => {
            touch_raw(pt, walk::index(at, level), e, want);
            return (((end - at) >> PAGE_SHIFT) as usize, End::Reached);
        }
        Verdict::Raw => return (0, End::Refused(Errno::EEXIST)),
        Verdict::Fault(need) => return (0, End::Fault(need)),
        Verdict::Refuse(errno) => return (0, End::Refused(errno)),
    }
    // A leaf may span several folios.
    let (folio, pages) = range_run(hw, first, (end - at) / PAGE_SIZE);
    let pages = pages as usize;
    if let Err(errno) = take(folio, pages as i32, want, counted) {
        return (0, End::Refused(errno));
    }
    if want.touch {
        touch(folio, e, want);
    }
    if let Some(slots) = &mut slots {
        for (n, slot) in slots.iter_mut().take(pages).enumerate() {
            *slot = PageSlot::new(Pfn(first.0 + n as u64));
        }
    }
    (pages, End::Reached)
}

/// Nothing counts what is behind the entry, so the entry itself says that it was used; in one step, for the MMU may be
/// saying so too (PFN-10).
fn touch_raw<H: Hw>(pt: &mut PtGuard<H>, i: usize, e: Pte, want: Want) {
    let marks = if want.write() {
        bit::A | bit::D | bit::SOFT_DIRTY
    } else {
        bit::A
    };
    if want.touch && e.0 & marks != marks {
        pt.set_bits(i, marks);
    }
}

/// Takes hold of `n` pages of a folio (PIN-5); the table's lock keeps it.
#[inline]
fn take<H: Hw>(folio: Folio<H>, n: i32, want: Want, counted: &mut u64) -> Result<(), Errno> {
    let (hw, d) = (folio.hw(), folio.desc());
    match want.hold {
        Hold::No => return Ok(()),
        Hold::Get => return d.get_checked(n).then_some(()).ok_or(Errno::ENOMEM),
        Hold::Pin => {}
    }
    // Of memory that moves it would have to be moved first (LT-6), which nobody does yet.
    if want.has(GupFlags::LONGTERM) && !pinnable(folio) || !d.pin(n) {
        return Err(Errno::ENOMEM);
    }
    if let Err(errno) = hw.make_accessible(folio.pfn()) {
        folio.unpin(n);
        return Err(errno);
    }
    check(hw, folio.pfn());
    *counted += n as u64;
    Ok(())
}

/// No VMA, but perhaps the gate page (GATE-1): to be read only, whatever `FORCE` says, and where a level is missing it
/// is as nowhere (GATE-2).
#[cold]
#[inline(never)]
pub(super) fn follow_gate<H: Hw>(
    hw: H,
    va: u64,
    want: Want,
    slot: Option<&mut PageSlot>,
) -> Result<(), Errno> {
    if hw.gate_page() != Some(va) || want.write() && !planted(30) {
        return Err(Errno::EFAULT);
    }
    let e = walk::kernel_leaf(hw, va).filter(|e| e.user() && e.is_counted());
    let page = e.ok_or(Errno::EFAULT)?.pfn();
    let mut counted = 0;
    take(Folio::of_page(hw, page), 1, want, &mut counted)?;
    if counted != 0 {
        hw.phys().count_pinned(hw.cpu(), counted);
    }
    if let Some(slot) = slot {
        *slot = PageSlot::new(page);
    }
    Ok(())
}

/// Whether a pin may last on it (LT-4).
#[inline]
pub(super) fn pinnable<H: Hw>(folio: Folio<H>) -> bool {
    let zone = (folio.desc().flags() & flag::ZONE_MASK) >> flag::ZONE_SHIFT;
    zone != Zone::Movable as u64
}

/// WALK-7. The entry's own bits stay the MMU's.
#[inline]
fn touch<H: Hw>(folio: Folio<H>, e: Pte, want: Want) {
    if want.write() && !e.dirty() {
        folio.set_dirty();
    }
    folio.mark_accessed();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::LeafBits;

    const ZERO: Pfn = Pfn(9);
    const RW: VmaFlags = VmaFlags::READ
        .union(VmaFlags::WRITE)
        .union(VmaFlags::MAYREAD)
        .union(VmaFlags::MAYWRITE);

    fn want(flags: GupFlags, hold: Hold) -> Want {
        Want {
            flags,
            hold,
            touch: false,
            remote: false,
        }
    }
    fn leaf(write: bool) -> Pte {
        Pte::leaf(Pfn(7), LeafBits::user(true, write, false))
    }
    fn ask(e: Pte, want: Want, vma: VmaFlags, anon: bool, exclusive: bool) -> Verdict {
        judge(e, want, vma, ZERO, || Page { anon, exclusive })
    }

    /// WALK-5, WALK-6, UNSH-1, SOFTD-1: every combination of what the decision depends on, against its rule in words.
    #[test]
    fn walk_4_the_decision_on_an_entry() {
        let ro = RW.difference(VmaFlags::WRITE);
        for n in 0..1 << 11 {
            let b = |i: u32| n >> i & 1 != 0;
            let (write, force, long) = (b(0), b(1), b(2));
            let hold = if b(3) { Hold::Pin } else { Hold::Get };
            let (anon, exclusive) = (b(4), b(4) && b(5));
            let vma = (if b(6) { RW } else { ro })
                | if b(7) {
                    VmaFlags::SHARED
                } else {
                    VmaFlags::empty()
                };
            // Soft-dirty as a whole, or the entry is.
            let vma = if b(9) { vma | VmaFlags::SOFTDIRTY } else { vma };
            let e = leaf(b(8)).with(if b(10) { bit::SOFT_DIRTY } else { 0 });
            let mut flags = GupFlags::empty();
            flags.set(GupFlags::WRITE, write);
            flags.set(GupFlags::FORCE, force);
            flags.set(GupFlags::LONGTERM, long);
            let got = ask(e, want(flags, hold), vma, anon, exclusive);
            let own_copy = anon && exclusive;
            let usable_for_write =
                e.writable() || force && own_copy && !b(6) && !b(7) && (b(9) || b(10));
            let expect = if write && !usable_for_write {
                Verdict::Fault(if b(6) {
                    Need::Write { present: true }
                } else {
                    Need::Forced
                })
            } else if hold == Hold::Pin
                && !write
                && !e.writable()
                && (anon && !exclusive || !anon && long && !b(7))
            {
                Verdict::Fault(Need::Unshare)
            } else {
                Verdict::Take
            };
            assert_eq!(got, expect, "{n:#x} {flags:?} {hold:?} {vma:?}");
        }
    }

    /// PFN-10, DUMP-2, PIN-7: what nothing counts.
    #[test]
    fn walk_4_entries_without_a_folio() {
        let (read, none) = (GupFlags::empty(), Page::default);
        let zero = Pte::leaf(ZERO, LeafBits::user(true, false, false)).with(bit::SPECIAL);
        let raw = leaf(true).with(bit::SPECIAL);
        for hold in [Hold::Get, Hold::Pin] {
            assert_eq!(judge(zero, want(read, hold), RW, ZERO, none), Verdict::Take);
            assert_eq!(judge(raw, want(read, hold), RW, ZERO, none), Verdict::Raw);
            assert_eq!(
                judge(zero, want(GupFlags::DUMP, hold), RW, ZERO, none),
                Verdict::Refuse(Errno::EFAULT)
            );
            assert_eq!(
                judge(zero, want(GupFlags::WRITE, hold), RW, ZERO, none),
                Verdict::Fault(Need::Write { present: true })
            );
        }
        assert_eq!(
            judge(zero, want(GupFlags::LONGTERM, Hold::Pin), RW, ZERO, none),
            Verdict::Fault(Need::Unshare)
        );
        for e in [
            Pte::EMPTY,
            Pte::swap(crate::table::pte::SwapEntry {
                slot: 3,
                exclusive: true,
            }),
        ] {
            assert_eq!(
                judge(e, want(read, Hold::Pin), RW, ZERO, none),
                Verdict::Fault(Need::Read)
            );
        }
    }
}
