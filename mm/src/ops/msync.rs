//! msync: what is mapped shared from a file that is written back is written, and stays. Files in memory have no other
//! store: there only the arguments and the holes speak.

use super::range;
use crate::addr::PAGE_SHIFT;
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{AddressSpace, VmaFlags};
use crate::wait::CanWait;
use linux_raw_sys::general as sys;

/// `ENOMEM` if part of the range is not mapped, `EIO`, `ENOSPC` of the file. `MS_ASYNC` starts nothing: dirty pages are
/// written by and by anyway (as Linux has it). Sleeps.
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
    let mut at = r.start();
    let mut hole = false;
    while at < r.end() {
        let guard = space.mmap_read_killable(wait)?;
        let Some(vma) = guard.find_from(at).filter(|v| v.start() < r.end()) else {
            return Err(Errno::ENOMEM);
        };
        hole |= vma.start() > at;
        if flags & sys::MS_INVALIDATE != 0 && vma.flags().contains(VmaFlags::LOCKED) {
            return Err(Errno::EBUSY);
        }
        let (start, end) = (vma.start().max(at), vma.end().min(r.end()));
        let tracked = vma.object().filter(|o| {
            o.is_tracked() && flags & sys::MS_SYNC != 0 && vma.flags().contains(VmaFlags::SHARED)
        });
        let pages = tracked.map(|o| (o.clone(), vma.index_of(start)));
        at = vma.end();
        drop(guard);
        if let Some((object, first)) = pages {
            object.sync(wait, first, first + ((end - start) >> PAGE_SHIFT))?;
        }
    }
    if hole { Err(Errno::ENOMEM) } else { Ok(()) }
}
