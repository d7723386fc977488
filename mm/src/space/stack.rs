//! Growing downward, and the gap kept below (SPEC VMA-1, POP-5, BUG-18, BUG-19).
//!
//! Only a real fault grows a stack, and only under the mmap write lock: the fault lets go of what it
//! holds, takes that, and looks again.

use super::flags::VmaFlags;
use super::locks::{MmapWriteGuard, Vmas};
use super::vma::Vma;
use crate::addr::{MMAP_MIN_ADDR, PAGE_SHIFT, PAGE_SIZE, page_down};
use crate::phys::Hw;
use crate::race::planted;
use crate::sync::atomic::Ordering::Relaxed;

/// Bytes kept free below a stack: 256 pages.
pub const GUARD_GAP: u64 = 256 * PAGE_SIZE;

/// Why a stack cannot grow to there: the access is a plain miss (SIGSEGV).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrowError {
    /// No stack above the address.
    NoStack,
    /// Too close to what lies below, or to address zero.
    Gap,
    /// RLIMIT_STACK, RLIMIT_AS or RLIMIT_MEMLOCK.
    Limit,
}

impl<H: Hw> Vmas<H> {
    /// The stack that would have to grow for `va` to be mapped: the first VMA above is one.
    pub fn growable(&self, va: u64) -> Option<&Vma<H>> {
        self.find_from(va)
            .filter(|v| va < v.start() && v.flags().contains(VmaFlags::GROWSDOWN))
    }
}

impl<H: Hw> MmapWriteGuard<'_, H> {
    /// Grows the stack above `va` down to its page. Already mapped (another thread was first) is success.
    pub fn expand_down(&mut self, va: u64) -> Result<&Vma<H>, GrowError> {
        let va = page_down(va);
        let v = self.find_from(va).ok_or(GrowError::NoStack)?;
        if v.start() <= va {
            return Ok(v);
        }
        if !v.flags().contains(VmaFlags::GROWSDOWN) {
            return Err(GrowError::NoStack);
        }
        if va < MMAP_MIN_ADDR {
            return Err(GrowError::Gap);
        }
        if let Some(below) = self.prev(v) {
            // An inaccessible neighbour is a guard that the program made itself; another stack cannot be
            // run into from here without crossing its own.
            let guarded = !planted(19)
                && !below.flags().contains(VmaFlags::GROWSDOWN)
                && below.flags().intersects(VmaFlags::ACCESS);
            let floor = below.end() + if guarded { GUARD_GAP } else { 0 };
            if va < floor {
                return Err(GrowError::Gap);
            }
        }
        let grow = (v.start() - va) >> PAGE_SHIFT;
        let pgoff = v.pgoff().checked_sub(grow).ok_or(GrowError::Gap)?;
        let (limits, counts) = (&self.space.limits, &self.space.counts);
        let over = |pages: u64, limit: u64| pages << PAGE_SHIFT > limit;
        if over(v.pages() + grow, limits.stack.load(Relaxed))
            || over(
                counts.total_vm.load(Relaxed) + grow,
                limits.address_space.load(Relaxed),
            )
            || !self.space.may_lock(v.flags(), grow)
        {
            return Err(GrowError::Limit);
        }
        self.write_lock_vma(v);
        self.grow(v, va, v.end(), pgoff);
        self.charge(v.flags(), grow as i64);
        Ok(v)
    }
}
