//! One file for each thing a process asks for. Errors below are small; this room speaks errno.
//!
//! Every operation that changes VMAs holds the mmap lock for writing and write-locks each VMA it
//! changes, for holding the former does not keep faults out (DESIGN 6.2). Between two yield points at
//! most [`BATCH`] entries are worked on.

#![forbid(unsafe_code)]

pub mod access;
pub mod brk;
pub mod clear_refs;
pub mod coredump;
pub mod exit;
pub mod fork;
pub mod futex;
pub mod insert;
pub mod limits;
pub mod madvise;
pub mod mincore;
pub mod mlock;
pub mod mmap;
pub mod mprotect;
pub mod mremap;
pub mod msync;
pub mod munmap;
pub mod pkey;
pub mod populate;
pub mod prefault;
pub mod reap;
pub(crate) mod zap;

#[cfg(all(test, feature = "sim"))]
mod tests;

/// Entries between two yield points: one table.
pub const BATCH: u64 = 512;

pub use brk::brk;
pub use clear_refs::{ClearRefs, clear_refs};
pub use exit::exit;
pub use fork::fork;
pub use futex::futex_key;
pub use madvise::madvise;
pub use mincore::mincore;
pub use mlock::{mlock, mlockall, munlock, munlockall};
pub use mmap::{FileMap, MmapArgs, mmap, mmap_buffer, mmap_mixed, mmap_raw, mmap_with_key};
pub use mprotect::{mprotect, pkey_mprotect};
pub use mremap::{MremapArgs, mremap};
pub use msync::msync;
pub use munmap::munmap;
pub use pkey::{Key, exec_only_key, pkey_alloc, pkey_free};
pub use reap::reap;

use crate::addr::{PAGE_SIZE, PMD_SIZE, USER_END, UserRange, page_up};
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::AddressSpace;
use crate::sync::rwsem::Killed;
use crate::table::{PtGuard, StableVma};

impl From<Killed> for Errno {
    fn from(_: Killed) -> Errno {
        Errno::EINTR
    }
}

impl From<crate::phys::NoFrame> for Errno {
    fn from(_: crate::phys::NoFrame) -> Errno {
        Errno::ENOMEM
    }
}

/// A page-aligned start and a length that is rounded up; what is wrong with them is `bad`.
pub(crate) fn range(addr: u64, len: u64, bad: Errno) -> Result<UserRange, Errno> {
    if addr & (PAGE_SIZE - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    let len = page_up(len).ok_or(bad)?;
    let end = addr.checked_add(len).ok_or(bad)?;
    if end > USER_END {
        return Err(bad);
    }
    UserRange::new(addr, end).ok_or(bad)
}

/// Calls `f` for every level-1 table that covers part of a range, locked, with that part; a yield point
/// after each.
#[inline]
pub(crate) fn each_table<H: Hw, G: StableVma<H>>(
    space: &AddressSpace<H>,
    permit: &G,
    range: UserRange,
    mut f: impl FnMut(PtGuard<H>, UserRange),
) {
    let (mut at, end) = (range.start(), range.end());
    while at < end {
        match space.tables.pte_table(at, permit) {
            Some(pt) => {
                let stop = (pt.base() + PMD_SIZE).min(end);
                if let Some(piece) = UserRange::new(at, stop) {
                    f(pt, piece);
                }
                at = stop;
                space.hw().cond_resched();
            }
            None => match space.tables.next_table(at, end, permit) {
                Some(next) => at = next,
                None => return,
            },
        }
    }
}

/// The 2 MiB pieces of a range, each within one level-1 table.
pub(crate) fn tables(r: UserRange) -> impl Iterator<Item = UserRange> {
    let mut at = r.start();
    core::iter::from_fn(move || {
        if at >= r.end() {
            return None;
        }
        let next = (at & !(crate::addr::PMD_SIZE - 1)) + crate::addr::PMD_SIZE;
        let piece = UserRange::new(at, next.min(r.end()));
        at = next;
        piece
    })
}
