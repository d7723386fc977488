//! Protection keys: handing them out. `mprotect` puts them on memory.

use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::AddressSpace;
use crate::wait::CanWait;

/// Which key `mprotect` gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// The one that each mapping has; what ceases to be execute-only goes back to key 0.
    Same,
    /// The caller's word, to be checked.
    Named(i32),
    /// From [`exec_only_key`].
    ExecOnly(u32),
}

/// A key that nobody has; `ENOSPC`. Without keys in the CPU `EINVAL`, as Linux says on x86 (its manual: `ENOSPC`).
pub fn pkey_alloc<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>) -> Result<u32, Errno> {
    let _guard = space.mmap_write(wait);
    if !space.hw().has_pkeys() {
        return Err(Errno::EINVAL);
    }
    space.keys.take().ok_or(Errno::ENOSPC)
}

/// Gives a key back, whatever memory still has it.
pub fn pkey_free<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    key: i32,
) -> Result<(), Errno> {
    let _guard = space.mmap_write(wait);
    let given = space.hw().has_pkeys() && space.keys.is_given(key);
    let key = u32::try_from(key).ok().filter(|_| given);
    space.keys.give_back(key.ok_or(Errno::EINVAL)?);
    Ok(())
}

/// The key of memory that may be executed and nothing else; the caller denies itself its data. `None`: no key is
/// left, such memory stays readable.
pub fn exec_only_key<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>) -> Option<u32> {
    if !space.hw().has_pkeys() {
        return None;
    }
    let _guard = space.mmap_write(wait);
    space.keys.exec_only()
}
