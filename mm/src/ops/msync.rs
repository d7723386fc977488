//! msync: memory-backed objects have no other store, so only the arguments and the holes speak.

use super::range;
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{AddressSpace, VmaFlags};
use crate::wait::CanWait;
use linux_raw_sys::general as sys;

/// `ENOMEM` if part of the range is not mapped.
pub fn msync<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
    flags: u32,
) -> Result<(), Errno> {
    let known = sys::MS_ASYNC | sys::MS_INVALIDATE | sys::MS_SYNC;
    let both = sys::MS_ASYNC | sys::MS_SYNC;
    if flags & !known != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let r = range(addr, len, Errno::ENOMEM)?;
    let guard = space.mmap_read_killable(wait)?;
    let mut at = r.start();
    let mut hole = false;
    while at < r.end() {
        let Some(vma) = guard.find_from(at).filter(|v| v.start() < r.end()) else {
            return Err(Errno::ENOMEM);
        };
        hole |= vma.start() > at;
        if flags & sys::MS_INVALIDATE != 0 && vma.flags().contains(VmaFlags::LOCKED) {
            return Err(Errno::EBUSY);
        }
        at = vma.end();
    }
    if hole { Err(Errno::ENOMEM) } else { Ok(()) }
}
