//! Touch ahead, for MAP_POPULATE, mlock and MADV_POPULATE_*: the fault handler driven under the mmap lock, one
//! table at a time; between tables the lock is let go, and what the VMAs say is read anew (POP-2).
//!
//! A table is looked over once under its lock; the entries that do not allow the access are remembered in a
//! set, faulted in, and looked at again until none is left. So each page has been there at some moment, and a
//! thread that keeps taking pages away cannot take back one that was seen (LOOP-6). A dying thread stops before
//! the next page (FAULT-12).

#![forbid(unsafe_code)]

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, UserRange};
use crate::errno::Errno;
use crate::fault::{self, Access, Fault, Missing, Stop};
use crate::phys::Hw;
use crate::space::{AddressSpace, Ask, MmapReadGuard, Vma, VmaFlags};
use crate::table::pte::bit;
use crate::wait::CanWait;

/// Makes what is mapped in `range` present, up to the first page that fails: `EFAULT` if nobody may access
/// it or its object ends before, `ENOMEM` without a frame, `EINTR` for a dying thread. Holes are none
/// of its business. Private writable memory is made writable now, shared memory is not dirtied for nothing, and
/// what is locked only as it is touched stays as it is (POP-1, POP-4).
pub(crate) fn populate<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    range: UserRange,
) -> Result<(), Errno> {
    let mut at = range.start();
    while at < range.end() {
        at = step(space, wait, at, range.end(), VmaFlags::empty()).map_err(|(_, e)| e)?;
    }
    Ok(())
}

/// As [`populate`], but VMAs that fail are left for the next, and those without all of `only` are left out.
/// Fails only for a dying thread.
pub(crate) fn populate_all<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    range: UserRange,
    only: VmaFlags,
) -> Result<(), Errno> {
    let mut at = range.start();
    while at < range.end() {
        at = match step(space, wait, at, range.end(), only) {
            Ok(next) => next,
            Err((_, Errno::EINTR)) => return Err(Errno::EINTR),
            Err((next, _)) => next,
        };
    }
    Ok(())
}

/// The rest of one table's part of the first VMA at or after `at`; returns where to go on, which after an error is
/// the end of the VMA.
fn step<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    at: u64,
    end: u64,
    only: VmaFlags,
) -> Result<u64, (u64, Errno)> {
    let Ok(guard) = space.mmap_read_killable(wait) else {
        return Err((end, Errno::EINTR));
    };
    let Some(vma) = guard.find_from(at).filter(|v| v.start() < end) else {
        return Ok(end);
    };
    let flags = vma.flags();
    let vma_end = vma.end().min(end);
    let skipped = VmaFlags::IO | VmaFlags::PFNMAP | VmaFlags::LOCKONFAULT;
    if flags.intersects(skipped) || !flags.contains(only) {
        return Ok(vma_end);
    }
    let write = flags & (VmaFlags::WRITE | VmaFlags::SHARED) == VmaFlags::WRITE;
    // Whatever can be accessed at all; what nobody may read is not forced.
    let ask = Ask {
        write,
        force: flags.intersects(VmaFlags::ACCESS),
        ..Ask::default()
    };
    vma.allows(ask).map_err(|e| (vma_end, e))?;
    let access = if write { Access::Write } else { Access::Read };
    let done = part(space, wait, &guard, vma, at.max(vma.start()), end, access);
    drop(guard);
    wait.hw().cond_resched();
    goes_on(space, wait, done).map_err(|e| (vma_end, e))
}

/// Where to go on. No lock is held.
fn goes_on<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    done: Result<u64, Halt>,
) -> Result<u64, Errno> {
    match done {
        Ok(next) => Ok(next),
        Err(Halt::Failed(errno)) => Err(errno),
        Err(Halt::Absent(va, what)) => match fault::page_in(space, wait, va, what) {
            Ok(()) => Ok(va),
            Err(Errno::EIO | Errno::ENOSPC) => Err(Errno::EFAULT),
            Err(errno) => Err(errno),
        },
    }
}

/// MADV_POPULATE_READ and MADV_POPULATE_WRITE (POP-6): as accesses would, hence nothing is forced; ends at
/// the first page that fails. `ENOMEM` also for a hole, `EINVAL` for a VMA that cannot be accessed so.
pub(crate) fn populate_access<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    mut at: u64,
    end: u64,
    access: Access,
) -> Result<(), Errno> {
    let ask = Ask {
        write: access == Access::Write,
        ..Ask::default()
    };
    while at < end {
        if wait.hw().fatal_signal_pending() {
            return Err(Errno::EINTR);
        }
        let guard = space.mmap_read_killable(wait)?;
        let vma = guard.find(at).ok_or(Errno::ENOMEM)?;
        vma.allows(ask).map_err(|_| Errno::EINVAL)?;
        let done = part(space, wait, &guard, vma, at, end, access);
        drop(guard);
        at = goes_on(space, wait, done)?;
        wait.hw().cond_resched();
    }
    Ok(())
}

/// Entries of one table.
type Set = [u64; 8];

/// Why a part is not all there.
enum Halt {
    Failed(Errno),
    /// The page at this address must be waited for, without locks.
    Absent(u64, Missing),
}

/// Makes present what one table covers of the VMA from `at` on, before `end`; returns where that stops.
fn part<'a, H: Hw>(
    space: &'a AddressSpace<H>,
    wait: &CanWait<H>,
    guard: &MmapReadGuard<'a, H>,
    vma: &Vma<H>,
    at: u64,
    end: u64,
    access: Access,
) -> Result<u64, Halt> {
    let base = at & !(PMD_SIZE - 1);
    let stop = (base + PMD_SIZE).min(vma.end()).min(end);
    let (first, last) = ((at - base) >> PAGE_SHIFT, (stop - base) >> PAGE_SHIFT);
    let mut wanted: Set = core::array::from_fn(|w| {
        let low = first.saturating_sub(64 * w as u64).min(64);
        let high = last.saturating_sub(64 * w as u64).min(64);
        below(high) & !below(low)
    });
    // Nothing but a fault (and what it dragged in) changes what is there, mostly: the first look finds most.
    loop {
        let present = look(space, guard, base, &mut wanted, access);
        if wanted == [0; 8] {
            return Ok(stop);
        }
        for (w, word) in wanted.iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                let k = left.trailing_zeros() as u64;
                left &= left - 1;
                if wait.hw().fatal_signal_pending() {
                    return Err(Halt::Failed(Errno::EINTR));
                }
                let fault = Fault {
                    va: base + ((64 * w as u64 + k) << PAGE_SHIFT),
                    access,
                    user: false,
                    present: present[w] >> k & 1 != 0,
                };
                match fault::resolve(space, wait, guard, vma, &fault) {
                    Ok(()) => wait.hw().count_fault(),
                    Err(Stop::Signal(_)) => return Err(Halt::Failed(Errno::EFAULT)),
                    Err(Stop::NoFrame) => return Err(Halt::Failed(Errno::ENOMEM)),
                    Err(Stop::Absent(what)) => return Err(Halt::Absent(fault.va, what)),
                }
            }
        }
    }
}

fn below(n: u64) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Takes out of `wanted` the entries that allow the access, which count as touched; returns those of the
/// others that are there.
fn look<'a, H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapReadGuard<'a, H>,
    base: u64,
    wanted: &mut Set,
    access: Access,
) -> Set {
    let mut present = [0; 8];
    let Some(mut pt) = space.tables.pte_table(base, guard) else {
        return present;
    };
    if pt.live() == 0 {
        return present;
    }
    let write = access == Access::Write;
    // What the access itself would leave in the entry.
    let written = bit::A | bit::D | bit::SOFT_DIRTY;
    let marks = if write { written } else { bit::A };
    for w in 0..8 {
        let mut left = wanted[w];
        while left != 0 {
            let k = left.trailing_zeros() as usize;
            left &= left - 1;
            let i = 64 * w + k;
            let entry = pt.get(i);
            if !entry.present() {
                continue;
            }
            if write && !entry.writable() {
                present[w] |= 1 << k;
                continue;
            }
            wanted[w] &= !(1 << k);
            if !entry.special() && entry.0 & marks != marks {
                pt.set_bits(i, marks);
            }
        }
    }
    present
}

const _: () = assert!(PMD_SIZE / PAGE_SIZE == 512);
