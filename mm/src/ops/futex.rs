//! What a futex word is known by, asked of the page that it lies in (FAST-16).
//!
//! The page is looked up with interrupts off, without a lock. What this process may write there and is not anonymous
//! belongs to a shared mapping: the file page itself says which object and offset it is. An anonymous page is
//! this process's alone. Whatever the lookup does not find (not there yet, read-only, shared since a fork,
//! truncated meanwhile) its VMA tells, with the same answer.

#![forbid(unsafe_code)]

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, USER_END};
use crate::errno::Errno;
use crate::gup::{GupFlags, PageSlot, get_user_pages_fast_only};
use crate::phys::{Folio, Hw};
use crate::space::{AddressSpace, FutexKey};
use crate::sync::atomic::Ordering::Relaxed;
use crate::wait::CanWait;

/// The key of the aligned word at `va` of the running process, not said to be private. `EFAULT` if it is not mapped.
pub fn futex_key<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    va: u64,
) -> Result<FutexKey, Errno> {
    if va.is_multiple_of(4) && va < USER_END {
        let irq = wait.irq_off();
        let found =
            get_user_pages_fast_only(&irq, space, va, GupFlags::WRITE, [PageSlot::EMPTY; 1])?;
        if let [slot] = *found.pages() {
            let folio = Folio::of_page(space.hw(), slot.pfn());
            if folio.is_anon() {
                let space = space.id();
                return Ok(FutexKey::Private { space, va });
            }
            // The object's number, as long as the page is the object's (`FileObject::create`).
            let object = folio.desc().private.load(Relaxed);
            if folio.mapping() != 0 {
                return Ok(FutexKey::Shared {
                    object,
                    offset: (folio.index() << PAGE_SHIFT) + va % PAGE_SIZE,
                });
            }
        }
    }
    space.futex_key(wait, va, false)
}
