//! exit: everything a space maps, at once, when its last user has left.

use super::munmap;
use crate::phys::Hw;
use crate::space::AddressSpace;
use crate::table::TlbBatch;
use crate::wait::CanWait;

/// Empties a space that no thread runs in any more: this CPU has loaded other tables, and those that still
/// have it lazily are made to leave. Nothing is flushed after that, as nobody remembers anything. Others
/// may still look at the (empty) space.
pub fn exit<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>) {
    let mut guard = space.mmap_write(wait);
    space.evict(wait);
    let detached = guard.unlink_all();
    let mut batch = TlbBatch::begin_dead(wait, &space.tlb);
    munmap::free_detached(&mut batch, detached);
    batch.flush();
}
