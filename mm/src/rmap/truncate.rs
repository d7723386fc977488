//! Making a file shorter, or punching a hole: the three steps of the protocol in object/cache.rs.

use super::{Copies, unmap_file_range};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE};
use crate::hw::Park;
use crate::object::FileObject;
use crate::phys::{Folio, Hw};
use crate::wait::CanWait;

/// Pages taken out of a cache between two yield points.
const BATCH: usize = 32;

/// Whether only the cache has a page, and can have it again: then nobody else gets it (rule 7 of object/cache.rs).
fn free_to_go<H: Hw>(folio: Folio<H>) -> bool {
    let desc = folio.desc();
    if folio.is_dirty() || !desc.freeze() {
        return false;
    }
    let clean = !folio.is_dirty();
    if !clean {
        desc.thaw();
    }
    clean
}

impl<H: Hw> FileObject<H> {
    /// Sets the size. Pages beyond it lose their mappings (SIGBUS from then on, private copies included)
    /// and their content; the rest of the last page reads as zeroes. With the size it has, drops what
    /// lies beyond. What it gets more reads as zeroes. Sleeps; the caller holds the inode's lock and no mmap lock.
    pub fn set_size(&self, wait: &mut CanWait<H>, size: u64) {
        while self.resize.write(wait, Park::Uninterruptible).is_err() {}
        self.clear_tail(size);
        let old = self.store_size(size);
        if size <= old {
            self.begin_epoch();
            let first = size.div_ceil(PAGE_SIZE);
            unmap_file_range(self, (first, u64::MAX), Copies::Drop, wait);
            self.drop_pages((first, u64::MAX), |_| true, wait);
            self.zero_in_page(size, first << PAGE_SHIFT);
        }
        self.resize.unlock_write(self.hw());
    }

    /// Before the file grows, to be written from `to` on or to end there: what was stored behind its end, through mappings of its
    /// last page, is no part of it. The caller holds the inode's lock.
    pub fn clear_tail(&self, to: u64) {
        self.zero_in_page(self.size(), to);
    }

    /// Makes `start..end` (bytes) read as zeroes; whole pages inside become holes. The size stays. Private
    /// copies stay. Sleeps, as [`Self::set_size`].
    pub fn punch_hole(&self, wait: &mut CanWait<H>, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while self.resize.write(wait, Park::Uninterruptible).is_err() {}
        self.begin_epoch();
        let (first, last) = (start.div_ceil(PAGE_SIZE), end >> PAGE_SHIFT);
        if first > last {
            // Inside one page.
            self.zero_in_page(start, end);
        } else {
            unmap_file_range(self, (first, last), Copies::Keep, wait);
            self.drop_pages((first, last), |_| true, wait);
            self.zero_in_page(start, first << PAGE_SHIFT);
            self.zero_in_page(last << PAGE_SHIFT, end);
        }
        self.resize.unlock_write(self.hw());
    }

    /// The source of pages `first..end` has changed: what was read of it before is forgotten, by mappings too. Private copies
    /// stay, and so does what others hold of the old pages. Dirty pages stay, too, and will be written: who does not want
    /// that writes back first, and keeps writers away ([`FileObject::write_back`]). Sleeps, as [`Self::set_size`].
    pub fn invalidate(&self, wait: &mut CanWait<H>, first: u64, end: u64) {
        while self.resize.write(wait, Park::Uninterruptible).is_err() {}
        self.begin_epoch();
        unmap_file_range(self, (first, end), Copies::Keep, wait);
        let tracked = self.is_tracked();
        self.drop_pages((first, end), |folio| !tracked || !folio.is_dirty(), wait);
        self.resize.unlock_write(self.hw());
    }

    /// Lets go of clean pages that can be read in again and that only the cache holds; with `mapped`, takes them from their
    /// mappings first. Returns how many. Pages without a source, and pinned ones, stay. Sleeps, as [`Self::set_size`].
    pub fn shrink(&self, wait: &mut CanWait<H>, mapped: bool) -> u64 {
        self.let_go(wait, (0, u64::MAX), mapped)
    }

    /// As [`Self::shrink`] of those of `first..end` that nobody has mapped.
    pub fn forget(&self, wait: &mut CanWait<H>, first: u64, end: u64) {
        self.let_go(wait, (first, end), false);
    }

    fn let_go(&self, wait: &mut CanWait<H>, range: (u64, u64), mapped: bool) -> u64 {
        if !self.is_paged() || self.pages() == 0 {
            return 0;
        }
        while self.resize.write(wait, Park::Uninterruptible).is_err() {}
        let had = self.pages();
        if mapped {
            unmap_file_range(self, range, Copies::Keep, wait);
        }
        self.drop_pages(range, free_to_go, wait);
        self.resize.unlock_write(self.hw());
        had.saturating_sub(self.pages())
    }

    /// Takes pages out of the cache; a mapping that came after the unmap is found by its count.
    fn drop_pages(
        &self,
        (first, end): (u64, u64),
        which: impl Fn(Folio<H>) -> bool,
        wait: &mut CanWait<H>,
    ) {
        let mut out = [const { None }; BATCH];
        let mut from = first;
        loop {
            let n = self.evict_some(from, end, &which, &mut out);
            for slot in &mut out[..n] {
                if let Some((index, folio)) = slot.take() {
                    from = index + 1;
                    if folio.desc().map_count() > 0 {
                        unmap_file_range(self, (index, index + 1), Copies::Keep, wait);
                    }
                    drop(folio);
                }
            }
            if n < BATCH {
                return;
            }
            self.hw().cond_resched();
        }
    }

    /// Zeroes bytes of one page, if it is in the cache.
    fn zero_in_page(&self, start: u64, end: u64) {
        let at = start & (PAGE_SIZE - 1);
        if start >= end {
            return;
        }
        let len = (end - start).min(PAGE_SIZE - at);
        if let Some(folio) = self.lookup(start >> PAGE_SHIFT) {
            // SAFETY: inside the page's 4096 bytes, which our reference keeps; who maps the page writes
            // it with machine stores of its own, as it may to any shared page.
            unsafe { folio.ptr().add(at as usize).write_bytes(0, len as usize) };
        }
    }
}
