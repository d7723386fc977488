//! Empties entries: take, harvest what the machine noted in them, uncount, hand to the batch.

use super::each_table;
use crate::addr::{PAGE_SHIFT, UserRange};
use crate::phys::{Folio, Hw, flag};
use crate::race::planted;
use crate::space::{AddressSpace, RssKind, Vma, VmaFlags};
use crate::table::{PtGuard, Pte, StableVma, TlbBatch};

/// Empties every entry of `range`, which lies in `vma`; a yield point after each table.
pub(crate) fn zap_range<H: Hw, G: StableVma<H>>(
    space: &AddressSpace<H>,
    batch: &mut TlbBatch<'_, H>,
    permit: &G,
    vma: &Vma<H>,
    range: UserRange,
) {
    each_table(space, permit, range, |mut pt, piece| {
        let (anon, file, tracked) = if batch.is_dead() {
            zap_table::<H, true>(&mut pt, piece, batch, vma)
        } else {
            zap_table::<H, false>(&mut pt, piece, batch, vma)
        };
        if tracked {
            // Who cleans such a page writes it once he has had this table: no CPU may store to it after that.
            batch.flush();
        }
        drop(pt);
        if anon != 0 {
            space.add_rss(RssKind::Anon, -anon);
        }
        if file != 0 {
            space.add_rss(vma.file_rss(), -file);
        }
    });
}

/// One table: how many anonymous and how many file pages went, and whether a CPU may still store to one of a file that is
/// written back. `DEAD`: no CPU remembers the space.
#[inline]
fn zap_table<H: Hw, const DEAD: bool>(
    pt: &mut PtGuard<H>,
    piece: UserRange,
    batch: &mut TlbBatch<'_, H>,
    vma: &Vma<H>,
) -> (i64, i64, bool) {
    let hw = batch.hw();
    let harvest_young = !vma
        .flags()
        .intersects(VmaFlags::RAND_READ | VmaFlags::SEQ_READ);
    let first = PtGuard::<H>::index(piece.start());
    let end = first + piece.pages() as usize;
    let Some(first) = pt.first_used(first..end) else {
        return (0, 0, false);
    };
    let base = pt.base();
    batch.note(piece.start(), piece.end());
    // It was full and flushed: what comes after is not noted any more.
    let note_again = |batch: &mut TlbBatch<'_, H>, i: usize| {
        batch.note(base + ((i as u64) << PAGE_SHIFT), piece.end());
    };
    let (mut uncounted, mut file, mut tracked) = (0, 0, false);
    let frames = hw.frames_end();
    let taken = pt.take_each(first..end, |i, old| {
        let folio = Folio::new(hw, old.pfn());
        if !old.is_plain() || old.pfn().0 >= frames || planted(13) {
            let old = vma.believed(base + ((i as u64) << PAGE_SHIFT), old);
            if !old.is_counted() {
                uncounted += 1;
                return;
            }
            if old.mlocked() {
                folio.munlock();
            }
        }
        if !folio.is_anon() {
            file += 1;
            tracked |= !DEAD && old.writable() && folio.is_tracked();
            if harvest(folio, old, harvest_young) {
                if retire_tail(batch, folio) {
                    note_again(batch, i);
                }
                return;
            }
        }
        folio.desc().map_dec();
        if DEAD && folio.desc().ref_count() > 1 {
            // Nobody remembers the entry, and others keep the page: nothing to put off.
            folio.put();
        } else if DEAD {
            retire_dead(batch, folio);
        } else if batch.retire_folio(folio.pfn()) {
            note_again(batch, i);
        }
    });
    (taken - uncounted - file, file, tracked)
}

/// Out of the loop's way; a dead batch flushes nothing, so nothing need be noted again.
#[inline(never)]
fn retire_dead<H: Hw>(batch: &mut TlbBatch<'_, H>, folio: Folio<H>) {
    let _ = batch.retire_folio(folio.pfn());
}

/// A later page of a large folio: mapped by itself, referenced as a whole. As `retire_folio`.
#[cold]
fn retire_tail<H: Hw>(batch: &mut TlbBatch<'_, H>, page: Folio<H>) -> bool {
    page.desc().map_dec();
    batch.retire_folio(Folio::of_page(batch.hw(), page.pfn()).pfn())
}

/// What the machine noted in the entry of a file's page, or a driver's. Whether it is a later page of a large folio.
#[inline(never)]
fn harvest<H: Hw>(page: Folio<H>, old: Pte, young: bool) -> bool {
    let tail = page.desc().has(flag::TAIL);
    let folio = if tail {
        Folio::of_page(page.hw(), page.pfn())
    } else {
        page
    };
    if old.dirty() {
        folio.set_dirty();
    }
    if young && old.young() {
        folio.mark_accessed();
    }
    tail
}
