//! How much a space may map: RLIMIT_AS, RLIMIT_DATA, and what is obviously too much.

use crate::addr::PAGE_SHIFT;
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{AddressSpace, VmaFlags};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counted against RLIMIT_DATA: private and writable, and no stack.
pub(crate) fn is_data(flags: VmaFlags) -> bool {
    flags & (VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::GROWSDOWN) == VmaFlags::WRITE
}

fn over(have: &AtomicU64, more: u64, limit: &AtomicU64) -> bool {
    have.load(Relaxed).saturating_add(more) > limit.load(Relaxed) >> PAGE_SHIFT
}

/// Whether `pages` more of private writable memory keep within RLIMIT_DATA.
pub(crate) fn may_expand_data<H: Hw>(space: &AddressSpace<H>, pages: u64) -> bool {
    !over(&space.counts.data_vm, pages, &space.limits.data)
}

/// Whether `pages` more of this kind keep within the limits.
pub(crate) fn may_expand<H: Hw>(space: &AddressSpace<H>, flags: VmaFlags, pages: u64) -> bool {
    !over(&space.counts.total_vm, pages, &space.limits.address_space)
        && (!is_data(flags) || may_expand_data(space, pages))
}

/// ACCOUNT for a new mapping that promises memory.
pub(crate) fn account(flags: VmaFlags) -> VmaFlags {
    let promise = VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::NORESERVE;
    if flags & promise == VmaFlags::WRITE {
        VmaFlags::ACCOUNT
    } else {
        VmaFlags::empty()
    }
}

/// Heuristic overcommit: one mapping larger than the machine is refused, unless it says NORESERVE.
pub(crate) fn enough_memory<H: Hw>(hw: H, flags: VmaFlags, pages: u64) -> Result<(), Errno> {
    let promised = flags.contains(VmaFlags::WRITE) && !flags.contains(VmaFlags::NORESERVE);
    // Small requests need no exact figure.
    if promised && pages > 1 << 15 && pages > hw.phys().managed_frames(hw) {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}
