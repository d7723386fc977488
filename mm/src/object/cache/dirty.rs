//! Dirty pages of a tracked object: how they become so and are found (rules 6 and 7). `rmap/clean.rs` writes them.

use super::{FileObject, Source, WINDOW};
use crate::errno::Errno;
use crate::phys::{Folio, FolioRef, Hw};
use crate::sync::atomic::Ordering::*;
use crate::wait::CanWait;

impl<H: Hw> FileObject<H> {
    /// Makes the page at `index` dirty, if it is there: a write through a mapping may follow (rule 6). Else reads it in; the
    /// fault comes again. Sleeps; no lock is held. `EIO`, `ENOSPC`, `ENOMEM`.
    pub fn make_writable(&self, wait: &mut CanWait<H>, index: u64) -> Result<(), Errno> {
        if index >= self.end_page() {
            return Ok(());
        }
        self.prepare(wait, index, 1)?;
        match self.lookup(index) {
            Some(folio) => self.mark_dirty(&folio),
            None => self.page_in(wait, index)?,
        }
        Ok(())
    }

    /// For `write`: there will be a place for `count` pages from `first` on. Sleeps. `EIO`, `ENOSPC`.
    pub fn prepare(&self, wait: &mut CanWait<H>, first: u64, count: u64) -> Result<(), Errno> {
        match &self.source {
            Some(source) if self.tracked => source.prepare(wait, first, count),
            _ => Ok(()),
        }
    }

    /// One of its pages, which was prepared and which the caller holds, has other content than the source. No spin lock is
    /// held.
    pub fn mark_dirty(&self, folio: &FolioRef<H>) {
        folio.set_dirty();
        if self.tracked {
            let frame = folio.pfn();
            self.tree.lock(self.hw).mark(folio.index(), frame);
        }
        // After the mark: who takes the object from the list and then looks for marks sees this one, or we list it again.
        if self.tracked
            && !self.listed.swap(true, SeqCst)
            && let (Some(source), Some(me)) = (&self.source, self.me.upgrade())
        {
            source.dirtied(me);
        }
    }

    /// For `write`: bytes up to `end` are in one of its pages, which was prepared and which the caller holds. The size first:
    /// who writes back takes what lies before it, and the mark with it.
    pub fn wrote(&self, folio: &FolioRef<H>, end: u64) {
        self.extend(end);
        self.mark_dirty(folio);
    }

    /// The next dirty page is told to the source again. Who calls this looks for dirty pages afterwards.
    pub fn unlist(&self) {
        self.listed.store(false, SeqCst);
    }

    /// How often writing back has failed (upper half), and why the last time (errno, lower half): who remembers the word
    /// and finds another one later has missed an error.
    pub fn failures(&self) -> u64 {
        self.failed.load(SeqCst)
    }

    pub(crate) fn note_failure(&self, errno: Errno) {
        let next = |old: u64| Some(((old >> 32) + 1) << 32 | errno.raw() as u64);
        let _ = self.failed.fetch_update(SeqCst, SeqCst, next);
    }

    /// The bytes of pages `first..end` as they are now stay, whatever happens to the machine (`fsync`, `msync`). Sleeps, as
    /// [`Self::write_back`]; errors as there.
    pub fn sync(&self, wait: &mut CanWait<H>, first: u64, end: u64) -> Result<(), Errno> {
        let written = self.write_back(wait, first, end);
        let flushed = self.source.as_ref().map_or(Ok(()), |source| source.flush());
        written.and(flushed)
    }

    /// Where it is written to, if it is tracked.
    pub(crate) fn sink(&self) -> Option<&dyn Source<H>> {
        self.source.as_deref().filter(|_| self.tracked)
    }

    /// The first dirty pages in a row of `first..end`, with references, at most [`WINDOW`], and where they begin. The caller, who
    /// holds `resize` for writing, cleans them all: the tree's marks are gone. `None`: there are no more.
    pub(crate) fn dirty_run(
        &self,
        first: u64,
        end: u64,
        out: &mut [Option<FolioRef<H>>; WINDOW],
    ) -> Option<(u64, usize)> {
        let mut tree = self.tree.lock(self.hw);
        let (mut at, mut n) = (first, 0);
        while n < WINDOW {
            let next = tree.next_marked(at).filter(|&(index, _)| index < end);
            let Some((index, p)) = next.filter(|&(index, _)| n == 0 || index == at) else {
                break;
            };
            let folio = Folio::new(self.hw, p);
            let dirty = folio.is_dirty();
            if n > 0 && !dirty {
                break;
            }
            tree.unmark(index);
            at = index + 1;
            if dirty {
                out[n] = Some(folio.get());
                n += 1;
            }
        }
        (n > 0).then_some((at - n as u64, n))
    }
}
