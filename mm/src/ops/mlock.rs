//! mlock: VMAs whose pages stay in memory (SPEC POP-3, POP-4).
//!
//! Locked is the VMA; its entries carry the bit MLOCKED and are counted in their folios (phys/lru.rs). Both
//! change together under the mmap lock for writing with the VMA write-locked, so whoever holds a lock on a VMA
//! finds them agreeing. The walkers of the reverse map hold none: they go by the bit of the entry that they take,
//! and whoever moves or replaces an entry carries it over. Only then the missing pages are brought in, as the VMAs
//! say by that time.

#![forbid(unsafe_code)]

use super::{each_table, populate};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, USER_END, UserRange, page_down, page_up};
use crate::errno::Errno;
use crate::phys::{Hw, NoFrame, lru::Mlocker};
use crate::space::{AddressSpace, MmapWriteGuard, VmaFlags};
use crate::sync::atomic::Ordering::Relaxed;
use crate::table::PtGuard;
use crate::wait::CanWait;
use linux_raw_sys::general as sys;

const ALL: UserRange = match UserRange::new(0, USER_END) {
    Some(r) => r,
    None => unreachable!(),
};

/// mlock and mlock2.
pub fn mlock<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
    flags: u32,
) -> Result<(), Errno> {
    let want = match flags {
        0 => VmaFlags::LOCKED,
        sys::MLOCK_ONFAULT => VmaFlags::LOCKED_MASK,
        _ => return Err(Errno::EINVAL),
    };
    may_lock_at_all(space)?;
    let (start, len) = whole_pages(addr, len);
    let mut guard = space.mmap_write_killable(wait)?;
    // What is locked already does not count twice.
    if !space.may_lock(want, len >> PAGE_SHIFT)
        && !space.may_lock(
            want,
            (len >> PAGE_SHIFT).saturating_sub(locked_in(&guard, start, len)),
        )
    {
        return Err(Errno::ENOMEM);
    }
    apply(&mut guard, start, len, want)?;
    drop(guard);
    let Some(r) = UserRange::from_len(start, len) else {
        return Ok(()); // of no length
    };
    populate::populate(space, wait, r).map_err(|e| match e {
        Errno::EFAULT => Errno::ENOMEM,
        Errno::ENOMEM => Errno::EAGAIN,
        e => e,
    })
}

/// munlock.
pub fn munlock<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
) -> Result<(), Errno> {
    let (start, len) = whole_pages(addr, len);
    let mut guard = space.mmap_write_killable(wait)?;
    apply(&mut guard, start, len, VmaFlags::empty())
}

/// mlockall. That some of what is mapped cannot be locked or brought in is no error.
pub fn mlockall<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    flags: u32,
) -> Result<(), Errno> {
    let has = |f: u32| flags & f != 0;
    let known = sys::MCL_CURRENT | sys::MCL_FUTURE | sys::MCL_ONFAULT;
    if flags & !known != 0 || !has(sys::MCL_CURRENT | sys::MCL_FUTURE) {
        return Err(Errno::EINVAL);
    }
    may_lock_at_all(space)?;
    let want = if has(sys::MCL_ONFAULT) {
        VmaFlags::LOCKED_MASK
    } else {
        VmaFlags::LOCKED
    };
    let mut guard = space.mmap_write_killable(wait)?;
    if has(sys::MCL_CURRENT) {
        let (total, limit) = (&space.counts.total_vm, &space.limits.memlock);
        if total.load(Relaxed) > limit.load(Relaxed) >> PAGE_SHIFT && !wait.hw().may_lock_any() {
            return Err(Errno::ENOMEM);
        }
    }
    guard.set_def_flags(if has(sys::MCL_FUTURE) {
        want
    } else {
        VmaFlags::empty()
    });
    if has(sys::MCL_CURRENT) {
        apply_all(&mut guard, want);
        drop(guard);
        let _ = populate::populate_all(space, wait, ALL, VmaFlags::empty());
    }
    Ok(())
}

/// munlockall.
pub fn munlockall<H: Hw>(space: &AddressSpace<H>, wait: &mut CanWait<H>) -> Result<(), Errno> {
    let mut guard = space.mmap_write_killable(wait)?;
    guard.set_def_flags(VmaFlags::empty());
    apply_all(&mut guard, VmaFlags::empty());
    Ok(())
}

/// Whether the running thread may lock anything (Linux's `can_do_mlock`).
pub(crate) fn may_lock_at_all<H: Hw>(space: &AddressSpace<H>) -> Result<(), Errno> {
    if space.limits.memlock.load(Relaxed) == 0 && !space.hw().may_lock_any() {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Whole pages that contain the bytes. As in Linux the length wraps around: 0 is then the answer for what no
/// space can hold.
fn whole_pages(addr: u64, len: u64) -> (u64, u64) {
    let bytes = len.wrapping_add(addr & (PAGE_SIZE - 1));
    (page_down(addr), page_up(bytes).unwrap_or(0))
}

/// Pages of the range that are locked.
fn locked_in<H: Hw>(guard: &MmapWriteGuard<'_, H>, start: u64, len: u64) -> u64 {
    let end = start.saturating_add(len).min(USER_END);
    let Some(r) = UserRange::new(start, end) else {
        return 0;
    };
    guard
        .iter(r)
        .filter(|v| v.flags().contains(VmaFlags::LOCKED))
        .filter_map(|v| v.range().intersect(r))
        .map(UserRange::pages)
        .sum()
}

/// Makes the VMAs of the range locked as `want` says, up to the first hole or failure.
fn apply<H: Hw>(
    guard: &mut MmapWriteGuard<'_, H>,
    start: u64,
    len: u64,
    want: VmaFlags,
) -> Result<(), Errno> {
    let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
    let mut at = start;
    while at < end {
        let vma = guard.find(at).ok_or(Errno::ENOMEM)?;
        let part = UserRange::new(at, vma.end().min(end)).ok_or(Errno::EINVAL)?;
        at = part.end();
        set(guard, part, want)?;
    }
    Ok(())
}

/// The same for all there is; one that cannot be changed stays as it is.
fn apply_all<H: Hw>(guard: &mut MmapWriteGuard<'_, H>, want: VmaFlags) {
    let mut at = 0;
    while let Some(vma) = guard.find_from(at) {
        let part = vma.range();
        at = part.end();
        let _ = set(guard, part, want);
        guard.space().hw().cond_resched();
    }
}

/// A part of one VMA.
fn set<H: Hw>(
    guard: &mut MmapWriteGuard<'_, H>,
    part: UserRange,
    want: VmaFlags,
) -> Result<(), NoFrame> {
    let Some(vma) = guard.find(part.start()) else {
        return Ok(());
    };
    let old = vma.flags();
    let new = (old - VmaFlags::LOCKED_MASK) | want;
    // Secret memory is locked from birth to death.
    if new == old || old.intersects(VmaFlags::SPECIAL) || old.is_secret() {
        return Ok(());
    }
    guard.change(part, |_| new)?;
    let space = guard.space();
    let hw = space.hw();
    match (
        old.contains(VmaFlags::LOCKED),
        new.contains(VmaFlags::LOCKED),
    ) {
        (false, true) => each_table(space, &*guard, part, |pt, r| mark::<H, true>(hw, pt, r)),
        (true, false) => each_table(space, &*guard, part, |pt, r| mark::<H, false>(hw, pt, r)),
        _ => {}
    }
    Ok(())
}

/// The entries of one table.
fn mark<H: Hw, const ON: bool>(hw: H, mut pt: PtGuard<H>, piece: UserRange) {
    let first = PtGuard::<H>::index(piece.start());
    let mut run = Mlocker::new(hw);
    pt.mlock_each::<ON>(first..first + piece.pages() as usize, |pfn| {
        if ON { run.lock(pfn) } else { run.unlock(pfn) }
    });
}
