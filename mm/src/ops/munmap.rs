//! munmap: out of sight, then emptied, then the tables.

use super::{range, zap};
use crate::addr::UserRange;
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{AddressSpace, Detached, MmapWriteGuard};
use crate::table::TlbBatch;
use crate::wait::CanWait;

/// Unmaps; `ENOMEM` leaves the space as it was.
pub fn munmap<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
) -> Result<(), Errno> {
    let r = range(addr, len, Errno::EINVAL)?;
    if r.is_empty() {
        return Err(Errno::EINVAL);
    }
    let mut guard = space.mmap_write_killable(wait)?;
    unmap(wait, &mut guard, r)
}

/// The same under the lock.
pub(crate) fn unmap<H: Hw>(
    wait: &CanWait<H>,
    guard: &mut MmapWriteGuard<'_, H>,
    r: UserRange,
) -> Result<(), Errno> {
    let detached = guard.unlink(r)?;
    zap_detached(wait, detached);
    Ok(())
}

/// Empties and frees what is out of the tree already; the mmap lock is held.
pub(crate) fn zap_detached<H: Hw>(wait: &CanWait<H>, detached: Detached<'_, H>) {
    if detached.is_empty() {
        return;
    }
    let space = detached.space();
    let mut batch = TlbBatch::begin(wait, &space.tlb);
    free_detached(&mut batch, detached);
    batch.flush();
}

/// The part that exit shares: entries, edges, tables, VMAs.
pub(crate) fn free_detached<H: Hw>(batch: &mut TlbBatch<'_, H>, detached: Detached<'_, H>) {
    let space = detached.space();
    for vma in detached.iter() {
        zap::zap_range(space, batch, &detached, vma, vma.range());
    }
    let gone = detached.unlink_edges();
    for span in gone.spans() {
        space.tables.free_tables(span, gone.bounds(), batch, &gone);
    }
}
