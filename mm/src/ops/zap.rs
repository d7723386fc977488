//! Empties entries: take, harvest what the machine noted in them, uncount, hand to the batch.

use super::each_table;
use crate::addr::{PAGE_SHIFT, UserRange};
use crate::phys::{Folio, Hw};
use crate::space::{AddressSpace, RssKind, Vma, VmaFlags};
use crate::table::pte::bit;
use crate::table::{Place, PtGuard, Pte, StableVma, TlbBatch};

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
    let (hw, frames) = (batch.hw(), batch.hw().frames_end());
    let first = PtGuard::<H>::index(piece.start());
    let end = first + piece.pages() as usize;
    let Some(first) = pt.first_used(first..end) else {
        return (0, 0, false);
    };
    let base = pt.base();
    batch.note(piece.start(), piece.end());
    let mut others = Others {
        vma,
        base,
        uncounted: 0,
        file: 0,
        tracked: false,
    };
    let taken = pt.take_each(first..end, |place, old| {
        let plain = old.plain(0, bit::MLOCKED, frames);
        let folio = match plain.map(|pfn| Folio::new(hw, pfn)) {
            Some(folio) if folio.is_anon() => {
                folio.desc().map_dec();
                folio
            }
            Some(page) => others.unmap(place, old, page),
            None => match others.odd(place, old) {
                Some(folio) => folio,
                None => return,
            },
        };
        if DEAD && folio.desc().ref_count() > 1 {
            // Nobody remembers the entry, and others keep the page: nothing to put off.
            folio.put();
        } else if DEAD {
            retire_dead(batch, folio);
        } else if batch.retire_folio(folio.pfn()) {
            // It was full and flushed: what comes after is not noted any more.
            batch.note(base + ((place.index() as u64) << PAGE_SHIFT), piece.end());
        }
    });
    let anon = taken - others.uncounted - others.file;
    (anon, others.file, others.tracked && !DEAD)
}

/// Out of the loop's way; a dead batch flushes nothing, so nothing need be noted again.
#[inline(never)]
fn retire_dead<H: Hw>(batch: &mut TlbBatch<'_, H>, folio: Folio<H>) {
    let _ = batch.retire_folio(folio.pfn());
}

/// The entries of a table that are not plainly of anonymous pages.
struct Others<'v, H: Hw> {
    vma: &'v Vma<H>,
    base: u64,
    uncounted: i64,
    file: i64,
    /// Whether a page of a file that is written back could be stored to.
    tracked: bool,
}

impl<H: Hw> Others<'_, H> {
    /// What the machine noted in `old` is noted of its page, and the mapping ends; the folio whose reference is still to go.
    #[inline(never)]
    fn unmap(&mut self, place: Place, old: Pte, page: Folio<H>) -> Folio<H> {
        // A later page of a large folio is mapped by itself and referenced as a whole.
        let Some(folio) = page.counted() else {
            return self.nobodys(place, old);
        };
        if !page.is_anon() {
            self.file += 1;
            self.tracked |= old.writable() && page.is_tracked();
            if old.dirty() {
                folio.set_dirty();
            }
            let read = VmaFlags::RAND_READ | VmaFlags::SEQ_READ;
            if old.young() && !self.vma.flags().intersects(read) {
                folio.mark_accessed();
            }
        }
        page.desc().map_dec();
        folio
    }

    /// Of a frame that nobody can have: it is reported, and in its place stands the zero page, with a reference to go.
    #[cold]
    #[inline(never)]
    fn nobodys(&mut self, place: Place, old: Pte) -> Folio<H> {
        let hw = self.vma.space().hw();
        self.vma.report(self.va(place), old);
        self.uncounted += 1;
        Folio::new(hw, hw.phys().zero_page()).get().into_folio()
    }

    /// The same of an entry that is not plain; `None`: nothing counts what was there.
    #[cold]
    #[inline(never)]
    fn odd(&mut self, place: Place, old: Pte) -> Option<Folio<H>> {
        let Ok(page) = self.vma.folio(self.va(place), old) else {
            self.uncounted += 1;
            return None;
        };
        if old.mlocked() {
            page.munlock();
        }
        Some(self.unmap(place, old, page))
    }

    fn va(&self, place: Place) -> u64 {
        self.base + ((place.index() as u64) << PAGE_SHIFT)
    }
}
