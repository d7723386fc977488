//! brk: the heap's end.

use super::{limits, munmap, populate};
use crate::addr::{PAGE_SHIFT, UserRange, page_up};
use crate::phys::Hw;
use crate::space::{AddressSpace, NewVma, VmaFlags};
use crate::sync::atomic::Ordering::Relaxed;
use crate::wait::CanWait;

const HEAP: VmaFlags = VmaFlags::READ
    .union(VmaFlags::WRITE)
    .union(VmaFlags::MAYREAD)
    .union(VmaFlags::MAYWRITE)
    .union(VmaFlags::MAYEXEC)
    .union(VmaFlags::ACCOUNT);

/// Bytes of initialised data: RLIMIT_DATA counts them with the heap.
fn data_len<H: Hw>(space: &AddressSpace<H>) -> u64 {
    let l = &space.layout;
    l.end_data
        .load(Relaxed)
        .saturating_sub(l.start_data.load(Relaxed))
}

/// Moves the break if that is possible; returns where it is then.
pub fn brk<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>, want: u64) -> u64 {
    let Ok(mut guard) = space.mmap_write_killable(wait) else {
        return space.layout.brk.load(Relaxed);
    };
    let (start, now) = (
        space.layout.start_brk.load(Relaxed),
        space.layout.brk.load(Relaxed),
    );
    if want < start {
        return now;
    }
    let (Some(from), Some(to)) = (page_up(now), page_up(want)) else {
        return now;
    };
    let mut locked = None;
    if to > from {
        let limit = space.limits.data.load(Relaxed);
        let (Some(r), hw) = (UserRange::new(from, to), wait.hw()) else {
            return now;
        };
        let grown = (want - start).saturating_add(data_len(space));
        let flags = HEAP | space.def_flags();
        if grown > limit
            || !space.may_lock(flags, r.pages())
            || !limits::may_expand(space, HEAP, r.pages())
            || limits::enough_memory(hw, HEAP, (to - from) >> PAGE_SHIFT).is_err()
            || !guard.fits(r)
        {
            return now;
        }
        let new = NewVma {
            range: r,
            flags,
            pgoff: from >> PAGE_SHIFT,
            object: None,
        };
        if guard.insert(new).is_err() {
            return now;
        }
        locked = flags.contains(VmaFlags::LOCKED).then_some(r);
    } else if to < from {
        let Some(r) = UserRange::new(to, from) else {
            return now;
        };
        if munmap::unmap(wait, &mut guard, r).is_err() {
            return now;
        }
    }
    space.layout.brk.store(want, Relaxed);
    drop(guard);
    if let Some(r) = locked {
        let _ = populate::populate_all(space, wait, r, VmaFlags::empty());
    }
    want
}
