//! What /proc/PID/clear_refs asks: forget which pages were used, or which were written (SOFTD-1).
//!
//! A page is soft-dirty when its entry or its VMA says so. A new VMA says so; every entry that is made or becomes
//! writable for a write does (the bit goes with D). Clearing takes the bit and W from every entry, and the mark
//! from the VMAs: without it a VMA gives W to no entry before a write faulted (`VmaFlags::leaf_bits`), so the next
//! write to each page is seen. What may be pinned stays as it is: its writers do not come by here.

use super::each_table;
use crate::addr::UserRange;
use crate::errno::Errno;
use crate::hw::FlushRange;
use crate::phys::{Hw, flag};
use crate::space::{AddressSpace, MmapWriteGuard, VmaFlags};
use crate::sync::atomic::Ordering::Relaxed;
use crate::table::PtGuard;
use crate::table::pte::bit;
use crate::wait::CanWait;

/// What is written to the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClearRefs {
    /// 1: that pages were used.
    All,
    /// 2: the same in mappings of no file.
    Anon,
    /// 3: the same in mappings of files.
    Mapped,
    /// 4: that pages were written.
    SoftDirty,
    /// 5: the largest resident set so far.
    PeakRss,
}

/// See the module.
pub fn clear_refs<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    what: ClearRefs,
) -> Result<(), Errno> {
    let mut guard = space.mmap_write_killable(wait)?;
    if what == ClearRefs::PeakRss {
        space.reset_rss_peak();
        return Ok(());
    }
    let pinned = space.has_pinned.load(Relaxed);
    let mut at = 0;
    while let Some(vma) = guard.find_from(at) {
        let (range, flags, file) = (vma.range(), vma.flags(), vma.object().is_some());
        at = range.end();
        if what == ClearRefs::SoftDirty {
            // Neighbours that differ in nothing else are one already: nothing splits or merges.
            guard.change(range, |_| flags - VmaFlags::SOFTDIRTY)?;
        }
        let skip = match what {
            ClearRefs::Anon => file,
            ClearRefs::Mapped => !file,
            _ => false,
        };
        if skip || flags.contains(VmaFlags::PFNMAP) {
            continue;
        }
        if let Some(vma) = guard.find(range.start()) {
            guard.write_lock_vma(vma);
        }
        if what == ClearRefs::SoftDirty {
            forget_writes(space, &guard, range, pinned);
        } else {
            forget_uses(space, &guard, range);
        }
    }
    // Before faults come again. Not used means not remembered (`fault::cow`), hence for uses as well.
    space.tlb.flush(wait, FlushRange::All);
    Ok(())
}

fn forget_writes<H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapWriteGuard<'_, H>,
    range: UserRange,
    pinned: bool,
) {
    let hw = space.hw();
    each_table(space, guard, range, |mut pt, piece| {
        let first = PtGuard::<H>::index(piece.start());
        pt.update_each(first..first + piece.pages() as usize, |old| {
            if pinned
                && let Some(folio) = old.folio(hw)
                && folio.is_anon()
                && folio.maybe_pinned()
            {
                return old;
            }
            old.without(bit::W | bit::SOFT_DIRTY)
        });
    });
}

fn forget_uses<H: Hw>(space: &AddressSpace<H>, guard: &MmapWriteGuard<'_, H>, range: UserRange) {
    let hw = space.hw();
    each_table(space, guard, range, |mut pt, piece| {
        let first = PtGuard::<H>::index(piece.start());
        pt.update_each(first..first + piece.pages() as usize, |old| {
            let Some(folio) = old.folio(hw) else {
                return old;
            };
            folio.desc().clear(flag::REFERENCED);
            old.without(bit::A)
        });
    });
}
