//! Made accessible ahead of a copy that may not fault (ADJ-1): it holds a page lock or has faults off, fails, lets go of
//! what it holds, asks here, and tries again.
//!
//! Each returns the bytes that could *not* be made accessible: 0 is success, and a copy of what lies before them may
//! succeed. Nothing promises that the pages are still there when the copy runs.

use crate::addr::{PAGE_SIZE, USER_END, page_down};
use crate::fault::fixup::fixup_user_fault;
use crate::fault::{self, Access, Fault, FaultResult};
use crate::phys::Hw;
use crate::space::AddressSpace;
use crate::table::PteState;
use crate::table::walk;
use crate::wait::CanWait;

/// As if the running program had read a byte of each page: stacks grow.
pub fn fault_in_readable<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    at: u64,
    len: u64,
) -> u64 {
    each_page(at, len, |va| touch(space, wait, va, Access::Read))
}

/// As if it had written one, without changing what is there.
pub fn fault_in_writeable<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    at: u64,
    len: u64,
) -> u64 {
    each_page(at, len, |va| touch(space, wait, va, Access::Write))
}

/// Writable, for who must not be seen as the program itself: under the mmap lock, and no stack grows.
pub fn fault_in_safe_writeable<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    at: u64,
    len: u64,
) -> u64 {
    each_page(at, len, |va| {
        let Ok(guard) = space.mmap_read_killable(wait) else {
            return false;
        };
        fixup_user_fault(guard, wait, va, true, true).0.is_ok()
    })
}

/// Stops at the first page that `f` refuses, at the end of the user's half and where addresses wrap.
fn each_page(at: u64, len: u64, mut f: impl FnMut(u64) -> bool) -> u64 {
    let end = at.saturating_add(len);
    let mut va = at;
    while va < end {
        if va >= USER_END || !f(va) {
            break;
        }
        va = (page_down(va) + PAGE_SIZE).min(end);
    }
    // From the byte that failed; all of it where nothing was wanted of the last pages of all.
    len - (va - at).min(len)
}

fn touch<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>, va: u64, access: Access) -> bool {
    loop {
        let seen = {
            let irq = wait.irq_off();
            let seen = walk::peek(&irq, space.tables.root(), va);
            seen.pte.state(seen.level)
        };
        let present = matches!(seen, PteState::Leaf(_));
        let fault = Fault {
            va,
            access,
            user: false,
            present,
        };
        match fault::user_fault(space, wait, fault) {
            FaultResult::Done { .. } => return true,
            FaultResult::Oom => {
                if !wait.hw().make_room(wait) {
                    return false;
                }
            }
            FaultResult::Segv { .. } | FaultResult::Bus { .. } | FaultResult::Killed => {
                return false;
            }
        }
    }
}
