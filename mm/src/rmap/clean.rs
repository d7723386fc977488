//! Writing dirty pages back to where they came from.
//!
//! Cleaning a page (rule 6 of object/cache.rs): its mark goes, then every entry that maps it loses the right to write, and
//! what CPUs remember of that right, then the source writes it. A store that comes before the last step is in what is written;
//! one that comes after it faults and marks the page again. A page that a device may be writing has no such fault: it
//! stays dirty until it is unpinned (BUG-15).

use super::{Owner, walk_folio};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE};
use crate::errno::Errno;
use crate::hw::{FlushRange, Park};
use crate::object::FileObject;
use crate::object::cache::{Dirty, WINDOW};
use crate::phys::{FolioRef, Hw};
use crate::race::{Point, planted, point};
use crate::table::pte::bit;
use crate::wait::CanWait;

impl<H: Hw> FileObject<H> {
    /// Writes the dirty pages of `first..end` and waits until the source has them. Whoever else was writing some of them
    /// has finished, too. Sleeps; no lock of this crate is held, and none that its [`Source`](crate::object::Source) takes.
    /// The first error; every one is also noted for those who ask later ([`Self::failures`]), but `ENOMEM`: then the pages are
    /// still dirty.
    pub fn write_back(&self, wait: &mut CanWait<H>, first: u64, end: u64) -> Result<(), Errno> {
        let Some(source) = self.sink() else {
            return Ok(());
        };
        let hw = self.hw();
        let mut result = Ok(());
        let mut at = first;
        loop {
            while self.resize.write(wait, Park::Uninterruptible).is_err() {}
            let mut run = Dirty {
                pages: [const { None }; WINDOW],
            };
            let found = self.dirty_run(at, end, &mut run.pages);
            let Some((start, n)) = found else {
                self.resize.unlock_write(hw);
                return result;
            };
            at = start + n as u64;
            for page in run.pages.iter().flatten() {
                self.clean(wait, page);
            }
            // Truncation is kept away, and a page that was here lies before the end.
            let len = self.size().saturating_sub(start << PAGE_SHIFT);
            let len = len.min((n as u64) * PAGE_SIZE);
            let written = if len > 0 {
                point(hw, Point::Writeback);
                source.write(wait, start, &run, len)
            } else {
                Ok(())
            };
            // No memory now, some later: nothing is lost.
            let stays = written == Err(Errno::ENOMEM);
            if let Err(errno) = written
                && !stays
            {
                self.note_failure(errno);
            }
            result = result.and(written);
            for page in run.pages.iter().flatten() {
                // The mark last: who unpins marks first. Whoever did meanwhile has told nobody.
                if stays || (page.maybe_pinned() || page.is_dirty()) && !planted(15) {
                    self.mark_dirty(page);
                }
            }
            self.resize.unlock_write(hw);
            hw.cond_resched();
        }
    }

    /// The page is not dirty, and nobody can write it through a mapping without marking it.
    fn clean(&self, wait: &CanWait<H>, page: &FolioRef<H>) {
        page.clear_dirty();
        // Also where the mapping count is 0: who has emptied the last entry may not have told the CPUs, and holds its
        // table's lock until he has (ops/zap.rs).
        walk_folio(
            self.hw(),
            Owner::File(self),
            page.folio(),
            |space, _, va, table, i| {
                let old = table.get(i);
                if old.writable() || old.dirty() {
                    table.clear_bits(i, bit::W | bit::D);
                    space.tlb.flush(
                        wait,
                        FlushRange::Pages {
                            start: va,
                            end: va + PAGE_SIZE,
                        },
                    );
                }
                true
            },
        );
    }
}
