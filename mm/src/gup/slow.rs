//! The core loop and the retry protocol (LOOP, LOCK): guard in, guard or its loss out.
//!
//! Look up as far as it goes, fault in what is missing, look again, until the range ends, something is refused
//! or a signal says stop. The mmap lock is held for reading throughout, except that a fault that finds no frame,
//! or must read its page in, lets it go: then that is done with no lock held, the lock is taken again, and the VMA is looked up and
//! asked for its permission anew, for another thread may have changed all of it. Whoever lent us the lock and does
//! not get it back knows thereby that what he looked up before is void (LOCK-6).
//!
//! Result: pages that were done, if there are any; else why not (LOOP-1).

#![forbid(unsafe_code)]

use super::flags::{GupFlags, Want};
use super::follow::{End, follow, follow_gate};
use super::pinned::{PageSlot, unpin_user_pages};
use crate::addr::{PAGE_SHIFT, page_down};
use crate::errno::Errno;
use crate::fault::{self, Fault, FaultOutcome, Need, Stop};
use crate::hw::Warning;
use crate::phys::Hw;
use crate::race::{Point, planted, point};
use crate::space::{AddressSpace, MmapReadGuard, Vma, VmaFlags, Vmas};
use crate::sync::atomic::Ordering::SeqCst;
use crate::table::{MayInstall, Unmovable, walk};
use crate::wait::CanWait;
use core::ops::Deref;

/// How far below a stack an access is called an attempt to grow it (VMA-1).
const BELOW_STACK: u64 = 64 << 10;

/// Pages wanted: `nr` from the page of `start` on, into `out` if they are to be held.
pub(super) struct Job<'s> {
    pub start: u64,
    pub nr: usize,
    pub out: Option<&'s mut [PageSlot]>,
    pub want: Want,
}

/// How far a job is.
struct Run<'j, 's> {
    job: &'j mut Job<'s>,
    done: usize,
}

/// What the next step needs.
enum Next {
    Finished,
    Refused(Errno),
    Fault { va: u64, need: Need },
}

/// A job's result and the lock, if it never went.
pub type Unlocked<'a, H> = (Result<usize, Errno>, Option<MmapReadGuard<'a, H>>);

impl Run<'_, '_> {
    /// LOOP-1; but a range that is to stay and in which a page cannot is let go of as a whole (LT-3).
    fn end<H: Hw>(&mut self, hw: H, why: Result<(), Errno>) -> Result<usize, Errno> {
        if why == Err(Errno::ENOMEM)
            && self.job.want.has(GupFlags::LONGTERM)
            && let Some(slots) = &self.job.out
        {
            unpin_user_pages(hw, slots, self.done as u64);
            self.done = 0;
        }
        match why {
            Err(e) if self.done == 0 => Err(e),
            _ => Ok(self.done),
        }
    }
    fn va(&self) -> u64 {
        // Wraps for nonsense only, and finds no VMA then.
        page_down(self.job.start).wrapping_add((self.done as u64) << PAGE_SHIFT)
    }

    /// Follows under a lock until a fault is needed. A VMA is asked when the walk enters it (VMA-2).
    fn advance<H: Hw, G: MayInstall<H> + Deref<Target = Vmas<H>>>(
        &mut self,
        space: &AddressSpace<H>,
        guard: &G,
    ) -> Next {
        let want = self.job.want;
        let hw = space.hw();
        while self.done < self.job.nr {
            // FAULT-12.
            if hw.fatal_signal_pending() || want.has(GupFlags::INTERRUPTIBLE) && hw.signal_pending()
            {
                return Next::Refused(Errno::EINTR);
            }
            let at = self.va();
            let Some(vma) = lookup(guard, hw, at) else {
                let slot = self.job.out.as_mut().map(|all| &mut all[self.done]);
                if let Err(errno) = follow_gate(hw, at, want, slot) {
                    return Next::Refused(errno);
                }
                self.done += 1;
                continue;
            };
            if let Err(errno) = vma.allows(want.ask()) {
                return Next::Refused(errno);
            }
            let left = (self.job.nr - self.done) as u64;
            // A table at a time, so that signals are seen.
            let end = at
                .saturating_add(left << PAGE_SHIFT)
                .min(vma.end())
                .min(walk::next(at, 2));
            let out = match &mut self.job.out {
                Some(all) => all.get_mut(self.done..),
                None => None,
            };
            let (n, why) = follow(space, guard, vma, want, (at, end), out);
            self.done += n;
            match why {
                End::Reached => {}
                End::Refused(errno) => return Next::Refused(errno),
                End::Fault(_) if want.has(GupFlags::NOFAULT) => {
                    return Next::Refused(Errno::EFAULT);
                }
                End::Fault(need) => {
                    point(hw, Point::SlowMissed);
                    return Next::Fault {
                        va: self.va(),
                        need,
                    };
                }
            }
        }
        Next::Finished
    }
}

/// The VMA at an address. The kernel's look never grows a stack (BUG-18); the try is worth a line in the log.
fn lookup<H: Hw>(vmas: &Vmas<H>, hw: H, at: u64) -> Option<&Vma<H>> {
    let above = vmas.find_from(at)?;
    if above.start() <= at {
        return Some(above);
    }
    if above.flags().contains(VmaFlags::GROWSDOWN) && above.start() - at <= BELOW_STACK {
        hw.warn(Warning::BelowStack {
            va: at,
            start: above.start(),
        });
    }
    None
}

/// Pins are announced before the first is tried: fork looks at every page from then on (LOCK-11).
#[inline]
pub(super) fn announce_pins<H: Hw>(space: &AddressSpace<H>) {
    if !space.has_pinned.load(SeqCst) {
        space.has_pinned.store(true, SeqCst);
    }
}

/// Under a lock that is not given up, whatever happens (LOCK-1).
pub(super) fn held<H: Hw, G: MayInstall<H> + Deref<Target = Vmas<H>>>(
    space: &AddressSpace<H>,
    guard: &G,
    wait: &CanWait<H>,
    mut job: Job<'_>,
) -> Result<usize, Errno> {
    if job.want.pin() {
        announce_pins(space);
    }
    let mut run = Run {
        job: &mut job,
        done: 0,
    };
    loop {
        match run.advance(space, guard) {
            Next::Finished => return Ok(run.done),
            Next::Refused(errno) => return run.end(space.hw(), Err(errno)),
            Next::Fault { va, need } => {
                match fault_in(space, guard, wait, va, need, run.job.want) {
                    Ok(()) => {}
                    // To be read in, and the lock may not go: what there is (FAULT-5).
                    Err(Errno::EBUSY) => return run.end(space.hw(), Ok(())),
                    Err(why) => return run.end(space.hw(), Err(why)),
                }
            }
        }
    }
}

fn fault_in<H: Hw, G: MayInstall<H> + Deref<Target = Vmas<H>>>(
    space: &AddressSpace<H>,
    guard: &G,
    wait: &CanWait<H>,
    va: u64,
    need: Need,
    want: Want,
) -> Result<(), Errno> {
    let vma = guard.find(va).ok_or(Errno::EFAULT)?;
    let step = if want.has(GupFlags::LONGTERM) {
        fault::need(space, wait, &Unmovable(guard), vma, va, need)
    } else {
        fault::need(space, wait, guard, vma, va, need)
    };
    step.map_err(|why| match why {
        Stop::Signal(_) => Errno::EFAULT,
        Stop::NoFrame => Errno::ENOMEM,
        Stop::Absent(_) => Errno::EBUSY,
    })
}

/// Under a lock that may go (LOCK-2 with an indicator, LOCK-5). With `NOWAIT` it does not: then there are as many
/// pages as could be had at once, perhaps none (FAULT-3).
pub(super) fn unlockable<'a, H: Hw>(
    guard: MmapReadGuard<'a, H>,
    wait: &mut CanWait<H>,
    mut job: Job<'_>,
) -> Unlocked<'a, H> {
    let space = guard.space();
    let want = job.want;
    if want.pin() {
        announce_pins(space);
    }
    let mut run = Run {
        job: &mut job,
        done: 0,
    };
    let mut guard = guard;
    let mut lost = false;
    let why = loop {
        let (va, need) = match run.advance(space, &guard) {
            Next::Finished => break Ok(()),
            Next::Refused(errno) => break Err(errno),
            Next::Fault { va, need } => (va, need),
        };
        if want.has(GupFlags::NOWAIT) {
            match fault_in(space, &guard, wait, va, need, want) {
                Ok(()) => continue,
                // To wait for memory, or for a disk, is what was not wanted: 0 is no error here.
                Err(Errno::ENOMEM | Errno::EBUSY) => break Ok(()),
                Err(errno) => break Err(errno),
            }
        }
        let unmovable = want.has(GupFlags::LONGTERM);
        match fault::handle_need(guard, space, wait, va, need, unmovable) {
            FaultOutcome::Mapped(g) => {
                point(wait.hw(), Point::SlowFaulted);
                if planted(1) {
                    run.job.want.flags.remove(GupFlags::WRITE);
                }
                guard = g;
            }
            FaultOutcome::Signal(g, _) => {
                guard = g;
                break Err(Errno::EFAULT); // FAULT-7
            }
            what @ (FaultOutcome::NoFrame | FaultOutcome::Absent(_)) => {
                lost = true;
                if let Err(errno) = without_lock(space, wait, va, what) {
                    return (run.end(wait.hw(), Err(errno)), None);
                }
                match space.mmap_read_killable(wait) {
                    Ok(g) => guard = g,
                    Err(_) => return (run.end(wait.hw(), Err(Errno::EINTR)), None),
                }
            }
        }
    };
    (run.end(wait.hw(), why), (!lost).then_some(guard))
}

/// What a fault needed and could not do under a lock.
#[cold]
fn without_lock<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    va: u64,
    what: FaultOutcome<MmapReadGuard<'_, H>>,
) -> Result<(), Errno> {
    if let FaultOutcome::Absent(what) = what {
        match fault::page_in(space, wait, va, what) {
            Err(Errno::EIO | Errno::ENOSPC) => return Err(Errno::EFAULT), // FAULT-7
            Err(Errno::ENOMEM) => {}
            other => return other,
        }
    }
    wait.hw().make_room(wait).then_some(()).ok_or(Errno::ENOMEM)
}

/// The lock is taken here and given back (LOCK-4, LOCK-7).
pub(super) fn unlocked<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    job: Job<'_>,
) -> Result<usize, Errno> {
    if job.nr == 0 {
        return Ok(0);
    }
    if planted(18) {
        let _ = fault::user_fault(
            space,
            wait,
            Fault {
                va: job.start,
                access: fault::Access::Read,
                user: true,
                present: false,
            },
        );
    }
    point(wait.hw(), Point::SlowStart);
    let guard = space.mmap_read_killable(wait).map_err(|_| Errno::EINTR)?;
    unlockable(guard, wait, job).0
}
