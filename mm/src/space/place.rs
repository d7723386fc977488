//! Where a mapping goes when the caller leaves it open, and what is counted about those that are there.

use super::flags::VmaFlags;
use super::locks::MmapWriteGuard;
use crate::addr::{PAGE_SHIFT, UserRange};
use crate::phys::Hw;
use crate::sync::atomic::Ordering::Relaxed;

impl<H: Hw> MmapWriteGuard<'_, H> {
    /// Where `len` bytes fit inside `low..high`: at `hint`, else as low as possible (MAP_32BIT).
    pub fn find_gap_between(&self, len: u64, hint: u64, low: u64, high: u64) -> Option<u64> {
        if let Some(r) = UserRange::from_len(hint, len)
            && hint >= low
            && r.end() <= high
            && self.fits(r)
        {
            return Some(hint);
        }
        self.space.vmas.tree.gap_bottom_up(len, low, high)
    }

    /// Whether the range is free and leaves a stack above it its gap.
    pub fn fits(&self, r: UserRange) -> bool {
        let above = self.find_from(r.start());
        above.is_none_or(|v| r.end() <= v.node().guarded_start())
    }

    /// Where `len` bytes (page aligned) fit: at `hint` if that is free, else as high as possible below
    /// `mmap_base`, else as low as possible above a third of the address space (Linux's fallback).
    pub fn find_gap(&self, len: u64, hint: u64, lowest: u64) -> Option<u64> {
        let tree = &self.space.vmas.tree;
        if hint >= lowest
            && let Some(r) = UserRange::from_len(hint, len)
            && self.fits(r)
        {
            return Some(hint);
        }
        let base = self.space.layout.mmap_base.load(Relaxed);
        tree.gap_top_down(len, lowest, base).or_else(|| {
            let third = (crate::addr::USER_END / 3) >> PAGE_SHIFT << PAGE_SHIFT;
            tree.gap_bottom_up(len, third, crate::addr::USER_END)
        })
    }

    /// What new mappings get from now on (MCL_FUTURE).
    pub fn set_def_flags(&mut self, flags: VmaFlags) {
        self.space.def_flags.store(flags.bits(), Relaxed);
    }

    /// Counts pages of address space by what they are.
    pub(super) fn charge(&self, flags: VmaFlags, pages: i64) {
        let c = &self.space.counts;
        let add = |word: &crate::sync::atomic::AtomicU64| {
            word.store(word.load(Relaxed).wrapping_add_signed(pages), Relaxed);
        };
        add(&c.total_vm);
        let total = c.total_vm.load(Relaxed);
        if total > c.hiwater_vm.load(Relaxed) {
            c.hiwater_vm.store(total, Relaxed);
        }
        if flags.contains(VmaFlags::GROWSDOWN) {
            add(&c.stack_vm);
        } else if flags & (VmaFlags::WRITE | VmaFlags::SHARED) == VmaFlags::WRITE {
            add(&c.data_vm);
        } else if flags & (VmaFlags::WRITE | VmaFlags::EXEC) == VmaFlags::EXEC {
            add(&c.exec_vm);
        }
        if flags.contains(VmaFlags::LOCKED) {
            add(&c.locked_vm);
        }
    }
}
