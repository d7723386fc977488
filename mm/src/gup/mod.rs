//! Taking hold of the pages behind a user's addresses (Linux's `mm/gup.c`).
//!
//! Which function?
//! - You will touch bytes, or a device will: **pin**. [`pin_user_pages_fast`] for the running process's own memory,
//!   [`pin_user_pages_remote`] for another's (it works for one's own as well), [`pin_longterm`] if user mode decides
//!   when it ends. `A` is [`Read`] or [`Write`]; writing needs the latter, and it dirties the pages at the end.
//! - You only need the page, to find out or to pass on which it is: **get**. [`get_user_pages_fast`],
//!   [`get_user_pages_remote`]; with interrupts off already [`get_user_pages_fast_only`], which finds what is mapped
//!   right now and no more. A reference says nothing of bytes: the process may get another page in its place.
//! - You want bytes copied, from or to another process: `ops::access`.
//! - You hold the mmap lock and must not lose it: [`get_user_pages`], [`pin_user_pages`].
//!
//! Units are pages, from the page that `start` lies in; as many as the caller's slots. A short count is no error;
//! no page at all is one: `EFAULT` not mapped or not allowed, `ENOMEM`, `EINTR` a signal, `EINVAL` a call that
//! makes no sense. What is returned lets go of itself when it is dropped. All entries but `..._fast_only` may sleep and
//! want no lock held but the one they name.
//!
//! `flags` words · `fast` without locks · `follow` what stands in the tables · `slow` faults until followed · `pinned` holding and letting go ·
//! `bytes` reading and writing what is held · `longterm`
//! for pins that last.

pub(crate) mod bytes;
mod fast;
mod flags;
mod follow;
mod longterm;
mod pinned;
mod slow;

pub use fast::{ActiveSpace, MOST};
pub use flags::GupFlags;
pub use longterm::{LongtermPin, pin_longterm};
pub use pinned::{
    Access, HeldPages, PageSlot, PinnedPages, Read, Slots, Write, pin_again, put_pages,
    unpin_user_page_range_dirty_lock, unpin_user_pages, unpin_user_pages_dirty_lock,
};

use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{AddressSpace, MmapReadGuard, Vmas};
use crate::table::MayInstall;
use crate::wait::CanWait;
use core::ops::Deref;
use flags::{Hold, Want, refuse};
use slow::Job;

/// A pin's wishes: whether to write is said by its type.
fn pin_want<H: Hw, A: Access>(hw: H, flags: GupFlags, touch: bool) -> Result<Want, Errno> {
    if flags.contains(GupFlags::WRITE) && !A::WRITE {
        return Err(refuse(hw));
    }
    let write = if A::WRITE {
        GupFlags::WRITE
    } else {
        GupFlags::empty()
    };
    Want::new(hw, flags | write, Hold::Pin, touch)
}

/// What the fast entries accept (ARG-9). `FORCE` does not help the walk, only what follows it.
const FAST: GupFlags = GupFlags::WRITE
    .union(GupFlags::LONGTERM)
    .union(GupFlags::FORCE)
    .union(GupFlags::NOFAULT);

/// ARG-8, ARG-9: nothing of the kernel's half ever comes near the lockless walk. The first page's address.
#[inline]
fn fast_range<H: Hw>(hw: H, start: u64, nr: usize, flags: GupFlags) -> Result<u64, Errno> {
    if !FAST.contains(flags) {
        return Err(refuse(hw));
    }
    let start = crate::addr::page_down(start);
    let room = crate::addr::USER_END.checked_sub(start);
    if room.is_none_or(|room| nr as u64 > room >> crate::addr::PAGE_SHIFT) {
        return outside(start, nr);
    }
    Ok(start)
}

/// Not all user's: an address that counts no pages is anybody's.
#[cold]
#[inline(never)]
fn outside(start: u64, nr: usize) -> Result<u64, Errno> {
    check_len(start, nr as u64)?;
    if nr == 0 {
        Ok(start)
    } else {
        Err(Errno::EFAULT)
    }
}

/// The lockless walk, and the slow path for what it left (FAST-17).
#[inline(always)]
fn fast<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    want: Want,
    slots: &mut [PageSlot],
) -> Result<usize, Errno> {
    let start = fast_range(wait.hw(), start, slots.len(), want.flags)?;
    let done = fast::walk(space, wait, want, start, slots);
    if done == slots.len() {
        return Ok(done);
    }
    fast_rest(space, wait, start, want, slots, done)
}

#[cold]
#[inline(never)]
fn fast_rest<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    want: Want,
    slots: &mut [PageSlot],
    done: usize,
) -> Result<usize, Errno> {
    let at = start + ((done as u64) << crate::addr::PAGE_SHIFT);
    let rest = job(at, want, &mut slots[done..]);
    match slow::unlocked(space, wait, rest) {
        Ok(n) => Ok(done + n),
        // One page that may not stay, and none does (LT-3).
        Err(Errno::ENOMEM) if want.has(GupFlags::LONGTERM) => {
            unpin_user_pages(wait.hw(), slots, done as u64);
            Err(Errno::ENOMEM)
        }
        // What is there counts, and the caller answers for it (BUG-31).
        Err(_) if done != 0 && !crate::race::planted(31) => Ok(done),
        Err(errno) => Err(errno),
    }
}

/// References to pages of the running process (FAST-17): without a lock where possible.
///
/// No lock held, interrupts on; may sleep. `EINVAL` for flags but `WRITE`, `FORCE`, `NOFAULT`; `EFAULT`, also for a range
/// that reaches into the kernel's half; `EOVERFLOW` for one that wraps; `ENOMEM`; `EINTR` a dying thread.
#[inline(always)]
pub fn get_user_pages_fast<H, S>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> Result<HeldPages<H, S>, Errno>
where
    H: Hw,
    S: Slots,
{
    let want = Want::new(space.hw(), flags, Hold::Get, true)?;
    let n = fast(space, wait, start, want, slots.as_mut())?;
    Ok(HeldPages::adopt(space.hw(), slots, n))
}

/// References to what is mapped this moment, without a lock, a wait or a fault; interrupts may be off, and stay so
/// for as long as the caller's pages take (FAST-16). Fewer, or none, is no error; nor is it if `space` is not the
/// one that is loaded here. Read references of private memory are not to be taken for its process's (WALK-10).
pub fn get_user_pages_fast_only<H, S>(
    irq: &crate::wait::IrqOff<'_, H>,
    space: &AddressSpace<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> Result<HeldPages<H, S>, Errno>
where
    H: Hw,
    S: Slots,
{
    let want = Want::new(irq.hw(), flags, Hold::Get, true)?;
    let start = fast_range(irq.hw(), start, slots.as_ref().len(), flags)?;
    let n = match ActiveSpace::of(irq, space) {
        Some(active) => fast::walk_only(&active, want, start, slots.as_mut()),
        None => 0,
    };
    Ok(HeldPages::adopt(irq.hw(), slots, n))
}

/// Pins of pages of the running process (FAST-18).
///
/// No lock held, interrupts on; may sleep. Errors as [`get_user_pages_fast`]; `LONGTERM` is taken as well.
#[inline(always)]
pub fn pin_user_pages_fast<A, H, S>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> Result<PinnedPages<H, A, S>, Errno>
where
    H: Hw,
    A: Access,
    S: Slots,
{
    let want = pin_want::<H, A>(space.hw(), flags, true)?;
    let n = fast(space, wait, start, want, slots.as_mut())?;
    Ok(PinnedPages::adopt(space.hw(), slots, n))
}

/// What a program hears if its pages could not be taken hold of: to it a bare frame (`EEXIST`) is an address like any that has no
/// memory (PFN-10).
#[cold]
pub fn to_program(errno: Errno) -> Errno {
    match errno {
        Errno::EEXIST => Errno::EFAULT,
        other => other,
    }
}

/// References to pages of a space whose mmap lock the caller holds, in either mode, and keeps (LOCK-1).
///
/// Interrupts on. `EFAULT`, `EEXIST` a raw frame, `ENOMEM` at once, for under this lock nobody makes room; `EINTR`.
pub fn get_user_pages<H, G, S>(
    guard: &G,
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> Result<HeldPages<H, S>, Errno>
where
    H: Hw,
    G: MayInstall<H> + Deref<Target = Vmas<H>>,
    S: Slots,
{
    let want = Want::new(space.hw(), flags, Hold::Get, true)?;
    let n = slow::held(space, guard, wait, job(start, want, slots.as_mut()))?;
    Ok(HeldPages::adopt(space.hw(), slots, n))
}

/// Pins, likewise: same lock, same errors.
pub fn pin_user_pages<H, G, A, S>(
    guard: &G,
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> Result<PinnedPages<H, A, S>, Errno>
where
    H: Hw,
    A: Access,
    G: MayInstall<H> + Deref<Target = Vmas<H>>,
    S: Slots,
{
    let want = pin_want::<H, A>(space.hw(), flags, false)?;
    let n = slow::held(space, guard, wait, job(start, want, slots.as_mut()))?;
    Ok(PinnedPages::adopt(space.hw(), slots, n))
}

/// References to pages of any space, whose mmap lock the caller lends (LOCK-2): it comes back if it was never
/// given up meanwhile.
///
/// Interrupts on; may sleep. `EFAULT`, `EEXIST` a raw frame, `ENOMEM`, `EINTR`, `EINVAL` the flags. With `NOWAIT` the lock
/// always comes back, and no page at all is no error.
#[allow(clippy::type_complexity, reason = "a result and a lock")]
pub fn get_user_pages_locked<'a, H, S>(
    guard: MmapReadGuard<'a, H>,
    wait: &mut CanWait<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> (Result<HeldPages<H, S>, Errno>, Option<MmapReadGuard<'a, H>>)
where
    H: Hw,
    S: Slots,
{
    let hw = wait.hw();
    let want = match Want::new(hw, flags, Hold::Get, true) {
        Ok(want) => want.remote(),
        Err(e) => return (Err(e), Some(guard)),
    };
    let (n, guard) = slow::unlockable(guard, wait, job(start, want, slots.as_mut()));
    (n.map(|n| HeldPages::adopt(hw, slots, n)), guard)
}

/// References to pages of any space; the lock is taken and given back here (LOCK-4).
///
/// No lock held, interrupts on; may sleep. `EFAULT`, `EEXIST` a raw frame, `ENOMEM`, `EINTR` (any signal with
/// `INTERRUPTIBLE`, else a fatal one), `EINVAL` the flags.
pub fn get_user_pages_remote<H, S>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> Result<HeldPages<H, S>, Errno>
where
    H: Hw,
    S: Slots,
{
    let want = Want::new(space.hw(), flags, Hold::Get, true)?.remote();
    let n = slow::unlocked(space, wait, job(start, want, slots.as_mut()))?;
    Ok(HeldPages::adopt(space.hw(), slots, n))
}

/// Pins of pages of any space (LOCK-10), likewise: no lock held, the same errors.
pub fn pin_user_pages_remote<A, H, S>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    flags: GupFlags,
    mut slots: S,
) -> Result<PinnedPages<H, A, S>, Errno>
where
    H: Hw,
    A: Access,
    S: Slots,
{
    let want = pin_want::<H, A>(space.hw(), flags, true)?.remote();
    let n = slow::unlocked(space, wait, job(start, want, slots.as_mut()))?;
    Ok(PinnedPages::adopt(space.hw(), slots, n))
}

/// Makes `nr` pages present (and writable with `WRITE`) without holding them (LOOP-3); returns how many are.
///
/// No lock held, interrupts on; may sleep. `EOVERFLOW` for more pages than an address can count, else as
/// [`get_user_pages_remote`] but that a raw frame will do.
pub fn fault_in_pages<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    nr: u64,
    flags: GupFlags,
) -> Result<u64, Errno> {
    let want = Want::new(space.hw(), flags, Hold::No, true)?;
    check_len(start, nr)?;
    let job = Job {
        start,
        nr: nr as usize,
        out: None,
        want,
    };
    Ok(slow::unlocked(space, wait, job)? as u64)
}

fn job(start: u64, want: Want, slots: &mut [PageSlot]) -> Job<'_> {
    Job {
        start,
        nr: slots.len(),
        out: Some(slots),
        want,
    }
}

/// ARG-6: as many pages as an address can count.
fn check_len(start: u64, nr: u64) -> Result<u64, Errno> {
    let len = nr
        .checked_mul(crate::addr::PAGE_SIZE)
        .ok_or(Errno::EOVERFLOW)?;
    crate::addr::page_down(start)
        .checked_add(len)
        .ok_or(Errno::EOVERFLOW)
}
