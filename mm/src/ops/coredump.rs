//! What a core file takes from memory (DUMP-1, DUMP-2).
//!
//! A page is looked up as a debugger would (`FORCE`) that wants holes left out (`DUMP`), and held by a reference: the
//! other threads stand still, so nobody writes it meanwhile. What was never touched, and the zero page, is a hole;
//! untouched pages of files are faulted in. A hole costs neither a frame nor a table, and what has no table is passed
//! over whole.

use crate::addr::PAGE_SIZE;
use crate::gup::{GupFlags, PageSlot, get_user_pages_remote};
use crate::phys::Hw;
use crate::space::AddressSpace;
use crate::table::pte::PteState;
use crate::table::walk;
use crate::wait::CanWait;

/// Entries looked at under the lock at a time.
const AT_ONCE: usize = 512;

/// The first page from `va` on, below `end`, that may hold something; `end` if none does. Both are page boundaries of
/// one mapping.
pub fn next<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>, mut va: u64, end: u64) -> u64 {
    while va < end {
        let guard = space.mmap_read(wait);
        for _ in 0..AT_ONCE {
            if va >= end || guard.find(va).is_none_or(|v| v.object().is_some()) {
                return va.min(end);
            }
            let (level, state) = walk::lookup(space.hw(), space.tlb.root(), va, &guard);
            if !matches!(state, PteState::Absent) {
                return va;
            }
            va = walk::next(va, level);
        }
        drop(guard);
        wait.hw().cond_resched();
    }
    end
}

/// Copies the page at `va`; false if it is a hole.
pub fn page<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>, va: u64, to: &mut [u8]) -> bool {
    let flags = GupFlags::FORCE | GupFlags::DUMP;
    debug_assert!(to.len() as u64 <= PAGE_SIZE);
    match get_user_pages_remote(space, wait, va, flags, [PageSlot::EMPTY]) {
        Ok(held) => held.copy_out(0, to) == to.len(),
        Err(_) => false,
    }
}
