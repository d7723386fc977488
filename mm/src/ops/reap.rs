//! The memory of a process that must die so that others have some, before it can leave by itself: it may be waiting for them.

use super::zap;
use crate::phys::Hw;
use crate::space::{AddressSpace, VmaFlags};
use crate::table::TlbBatch;
use crate::wait::CanWait;

/// Empties what is private, for good: no fault brings any of it back, so nobody reads zeroes where there was something else. How
/// many pages went; `None`: somebody holds the mmap lock, and only faults are refused. All users of the space have been killed.
pub fn reap<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>) -> Option<u64> {
    let before = space.rss_total();
    space.doom();
    let guard = space.try_mmap_write()?;
    // Faults that have not seen it are over when this returns; those that come later see it.
    for vma in guard.all() {
        guard.write_lock_vma(vma);
    }
    let guard = guard.downgrade();
    let mut batch = TlbBatch::begin(wait, &space.tlb);
    for vma in guard.all() {
        if !vma.flags().intersects(VmaFlags::SHARED | VmaFlags::PFNMAP) {
            zap::zap_range(space, &mut batch, &guard, vma, vma.range());
        }
    }
    batch.flush();
    drop(guard);
    Some(before.saturating_sub(space.rss_total()))
}
