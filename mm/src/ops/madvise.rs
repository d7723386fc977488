//! madvise: what is not built answers EINVAL, as a kernel without it does.

use super::{populate, zap};
use crate::addr::{PAGE_SIZE, UserRange, page_up};
use crate::errno::Errno;
use crate::fault::Access;
use crate::phys::Hw;
use crate::space::{AddressSpace, VmaFlags};
use crate::table::TlbBatch;
use crate::wait::CanWait;
use linux_raw_sys::general as sys;

enum Advice {
    /// Flags to clear and to set.
    Flags(VmaFlags, VmaFlags),
    /// Of locked memory as well?
    DontNeed(bool),
    /// Nothing to read ahead: the objects are in memory.
    WillNeed,
    Populate(Access),
}

const AHEAD: VmaFlags = VmaFlags::RAND_READ.union(VmaFlags::SEQ_READ);

fn advice(n: u32) -> Option<Advice> {
    let none = VmaFlags::empty();
    Some(match n {
        sys::MADV_NORMAL => Advice::Flags(AHEAD, none),
        sys::MADV_RANDOM => Advice::Flags(AHEAD, VmaFlags::RAND_READ),
        sys::MADV_SEQUENTIAL => Advice::Flags(AHEAD, VmaFlags::SEQ_READ),
        sys::MADV_WILLNEED => Advice::WillNeed,
        sys::MADV_DONTNEED => Advice::DontNeed(false),
        sys::MADV_DONTNEED_LOCKED => Advice::DontNeed(true),
        sys::MADV_POPULATE_READ => Advice::Populate(Access::Read),
        sys::MADV_POPULATE_WRITE => Advice::Populate(Access::Write),
        sys::MADV_DONTFORK => Advice::Flags(none, VmaFlags::DONTCOPY),
        sys::MADV_DOFORK => Advice::Flags(VmaFlags::DONTCOPY, none),
        sys::MADV_DONTDUMP => Advice::Flags(none, VmaFlags::DONTDUMP),
        sys::MADV_DODUMP => Advice::Flags(VmaFlags::DONTDUMP, none),
        sys::MADV_WIPEONFORK => Advice::Flags(none, VmaFlags::WIPEONFORK),
        sys::MADV_KEEPONFORK => Advice::Flags(VmaFlags::WIPEONFORK, none),
        _ => return None,
    })
}

/// Holes are skipped and make the answer `ENOMEM` in the end; an error in a VMA ends it there.
pub fn madvise<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
    what: u32,
) -> Result<(), Errno> {
    let how = advice(what).ok_or(Errno::EINVAL)?;
    if addr & (PAGE_SIZE - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    let end = page_up(len)
        .and_then(|l| addr.checked_add(l))
        .ok_or(Errno::EINVAL)?;
    if end == addr {
        return Ok(());
    }
    match how {
        Advice::Flags(clear, set) => change(space, wait, (addr, end), what, clear, set),
        Advice::Populate(access) => populate::populate_access(space, wait, addr, end, access),
        Advice::WillNeed => will_need(space, wait, addr, end),
        Advice::DontNeed(locked) => {
            let refused = match locked {
                true => VmaFlags::PFNMAP,
                false => VmaFlags::PFNMAP.union(VmaFlags::LOCKED),
            };
            let guard = space.mmap_read_killable(wait)?;
            let mut batch = TlbBatch::begin(wait, &space.tlb);
            let mut hole = false;
            let mut at = addr;
            while at < end {
                let Some(vma) = guard.find_from(at).filter(|v| v.start() < end) else {
                    return Err(Errno::ENOMEM);
                };
                hole |= vma.start() > at;
                let part =
                    UserRange::new(at.max(vma.start()), vma.end().min(end)).ok_or(Errno::EINVAL)?;
                at = part.end();
                if vma.flags().intersects(refused) {
                    return Err(Errno::EINVAL);
                }
                zap::zap_range(space, &mut batch, &guard, vma, part);
            }
            batch.flush();
            if hole { Err(Errno::ENOMEM) } else { Ok(()) }
        }
    }
}

/// Reads in what is mapped from files that are paged in, a VMA at a time, without a lock.
fn will_need<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let mut hole = false;
    let mut at = start;
    while at < end {
        let guard = space.mmap_read_killable(wait)?;
        let Some(vma) = guard.find_from(at).filter(|v| v.start() < end) else {
            return Err(Errno::ENOMEM);
        };
        hole |= vma.start() > at;
        let part = UserRange::new(at.max(vma.start()), vma.end().min(end)).ok_or(Errno::EINVAL)?;
        at = part.end();
        let object = vma.object().cloned();
        let first = vma.index_of(part.start());
        drop(guard);
        if let Some(object) = object {
            object.read_ahead(wait, first, first + part.pages());
        }
    }
    if hole { Err(Errno::ENOMEM) } else { Ok(()) }
}

fn change<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    (start, end): (u64, u64),
    what: u32,
    clear: VmaFlags,
    set: VmaFlags,
) -> Result<(), Errno> {
    let mut guard = space.mmap_write_killable(wait)?;
    let mut hole = false;
    let mut at = start;
    while at < end {
        let Some(vma) = guard.find_from(at).filter(|v| v.start() < end) else {
            return Err(Errno::ENOMEM);
        };
        hole |= vma.start() > at;
        let part = UserRange::new(at.max(vma.start()), vma.end().min(end)).ok_or(Errno::EINVAL)?;
        at = part.end();
        let old = vma.flags();
        let special = match what {
            sys::MADV_DOFORK => VmaFlags::IO,
            sys::MADV_DODUMP => VmaFlags::SPECIAL,
            _ => VmaFlags::empty(),
        };
        if old.intersects(special) {
            return Err(Errno::EINVAL);
        }
        // Only private anonymous memory can be given to a child as zeroes.
        if what == sys::MADV_WIPEONFORK
            && (vma.object().is_some() || old.contains(VmaFlags::SHARED))
        {
            return Err(Errno::EINVAL);
        }
        let new = (old - clear) | set;
        if new != old {
            guard.change(part, |_| new)?;
        }
    }
    if hole { Err(Errno::ENOMEM) } else { Ok(()) }
}
