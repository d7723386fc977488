//! An access of the kernel's own that failed with page faults off, made good (FAULT-13, FAULT-14): for atomic
//! operations on user words, whose caller holds what a fault may not be taken under and has let go of it now.

#![forbid(unsafe_code)]

use super::{Access, Fault, FaultOutcome, handle, page_in};
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{MmapReadGuard, Vmas};
use crate::table::{PteState, walk};
use crate::wait::CanWait;

/// Makes one address readable, or writable, for the running process: always asks the fault handler, whatever stands
/// there. The lock is held again in the end; the second value tells whether it was given up meanwhile, so that what
/// the caller has looked up is void. A dying thread gives up with `EINTR` if `killable`.
///
/// `EFAULT` not mapped, not allowed or beyond the end; `ENOMEM`.
pub fn fixup_user_fault<'a, H: Hw>(
    mut guard: MmapReadGuard<'a, H>,
    wait: &mut CanWait<H>,
    va: u64,
    write: bool,
    killable: bool,
) -> (Result<(), Errno>, bool, MmapReadGuard<'a, H>) {
    let space = guard.space();
    let mut unlocked = false;
    loop {
        if let Err(errno) = permits(&guard, space.hw(), va, write) {
            return (Err(errno), unlocked, guard);
        }
        if killable && wait.hw().fatal_signal_pending() {
            return (Err(Errno::EINTR), unlocked, guard);
        }
        let (_, state) = walk::lookup(space.hw(), space.tables.root(), va, &guard);
        let fault = Fault {
            va,
            access: if write { Access::Write } else { Access::Read },
            user: false,
            present: matches!(state, PteState::Leaf(_)),
        };
        match handle(guard, space, wait, fault) {
            FaultOutcome::Mapped(g) => {
                wait.hw().count_fault();
                return (Ok(()), unlocked, g);
            }
            FaultOutcome::Signal(g, _) => return (Err(Errno::EFAULT), unlocked, g),
            FaultOutcome::Absent(what) => {
                let read = page_in(space, wait, va, what);
                unlocked = true;
                guard = space.mmap_read(wait);
                match read {
                    Ok(()) => {}
                    Err(Errno::EIO | Errno::ENOSPC) => {
                        return (Err(Errno::EFAULT), unlocked, guard);
                    }
                    Err(errno) => return (Err(errno), unlocked, guard),
                }
            }
            FaultOutcome::NoFrame => {
                let again = wait.hw().make_room(wait);
                unlocked = true;
                guard = space.mmap_read(wait);
                if !again {
                    return (Err(Errno::ENOMEM), unlocked, guard);
                }
            }
        }
    }
}

/// What the VMA lets its process do (FAULT-14). No force here.
fn permits<H: Hw>(vmas: &Vmas<H>, hw: H, va: u64, write: bool) -> Result<(), Errno> {
    use crate::space::VmaFlags;
    let vma = vmas.find(va).ok_or(Errno::EFAULT)?;
    let need = if write {
        VmaFlags::WRITE
    } else {
        VmaFlags::READ
    };
    if vma.flags().contains(need) && hw.pkey_allows(vma.flags().key(), write) {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}
