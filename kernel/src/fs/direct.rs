//! The caller's pages for a device (O_DIRECT): pinned for one transfer, or lent by who keeps them pinned for longer.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec;

use mm::gup::{
    Access, GupFlags, PageSlot, PinnedPages, Read, Slots, Write, pin_user_pages_fast, to_program,
};
use mm::{Errno, PAGE_SIZE};

use super::iobuf::{Front, IoBuf, KeptSpan, LongPin, UserSpan};
use crate::SysResult;
use crate::arch::X86;
use crate::dev::block::{Disk, Memory, PIECES, Way};
use crate::dev::flight::{Job, Landing, Request};
use crate::task::current;
use crate::task::space::can_wait;

/// Pinned pages, how many bytes of them to skip, how many to use.
pub type Part<P> = (P, u64, u64);

/// Pages of one transfer.
pub enum Pages<'a, A: Access> {
    Pinned(PinnedPages<X86, A, &'a mut [PageSlot]>),
    Kept(&'a LongPin),
}

impl Pages<'_, Write> {
    /// As [`Memory::to_fill`].
    pub fn to_fill(&self, skip: u64, len: u64) -> Option<Memory<'_>> {
        match self {
            Pages::Pinned(pins) => Memory::to_fill(pins, skip, len),
            Pages::Kept(pins) => Memory::to_fill(pins, skip, len),
        }
    }
}

impl<A: Access> Pages<'_, A> {
    /// As [`Memory::to_drain`].
    pub fn to_drain(&self, skip: u64, len: u64) -> Option<Memory<'_>> {
        match self {
            Pages::Pinned(pins) => Memory::to_drain(pins, skip, len),
            Pages::Kept(pins) => Memory::to_drain(pins, skip, len),
        }
    }
}

/// How many pages of `span` a transfer of at most `most` bytes uses.
pub fn pages(span: UserSpan, most: u64) -> usize {
    let end = span.addr % PAGE_SIZE + most.min(span.len as u64);
    end.div_ceil(PAGE_SIZE).min(PIECES as u64) as usize
}

/// Whole units of `len` bytes; EFAULT if not even one is there.
fn whole(len: u64, unit: u64) -> Result<u64, Errno> {
    match len - len % unit {
        0 => Err(Errno::EFAULT),
        len => Ok(len),
    }
}

/// As Linux, whose disks take any memory that begins on a sector. EINVAL.
pub fn aligned(disk: &dyn Disk, buf: &IoBuf<'_>, pos: u64) -> Result<(), Errno> {
    let mask = u64::from(disk.block()) - 1;
    match pos & mask == 0 && buf.is_aligned(mask) {
        true => Ok(()),
        false => Err(Errno::EINVAL),
    }
}

/// Pins the pages at the front of `span`, as many as there are slots: at most `most` bytes, and whole units. EFAULT.
pub fn pin<A: Access, S: Slots>(
    span: UserSpan,
    most: u64,
    unit: u64,
    slots: S,
) -> Result<Part<PinnedPages<X86, A, S>>, Errno> {
    let space = current().space().ok_or(Errno::EFAULT)?;
    let (wait, flags) = (&mut can_wait(), GupFlags::empty());
    let pins = pin_user_pages_fast(space, wait, span.addr, flags, slots).map_err(to_program)?;
    let skip = span.addr % PAGE_SIZE;
    let len = (pins.len() as u64 * PAGE_SIZE).saturating_sub(skip);
    let len = whole(len.min(most).min(span.len as u64), unit)?;
    Ok((pins, skip, len))
}

impl<'a> KeptSpan<'a> {
    /// The same of what is pinned already.
    pub fn part(self, most: u64, unit: u64) -> Result<Part<&'a LongPin>, Errno> {
        let (pins, at) = self.owner.pages(self.at).ok_or(Errno::EFAULT)?;
        let at = at as u64;
        let len = (pins.len() as u64 * PAGE_SIZE).saturating_sub(at);
        let room = PIECES as u64 * PAGE_SIZE - at % PAGE_SIZE;
        let len = whole(len.min(room).min(most).min(self.len as u64), unit)?;
        Ok((pins, at, len))
    }
}

impl<'a> Front<'a> {
    /// Pages for one transfer, pinned if they are not.
    pub fn pin<A: Access>(
        self,
        most: u64,
        unit: u64,
        slots: &'a mut [PageSlot; PIECES],
    ) -> Result<Part<Pages<'a, A>>, Errno> {
        match self {
            Front::User(span) => {
                let slots = &mut slots[..pages(span, most)];
                let (pins, skip, len) = pin(span, most, unit, slots)?;
                Ok((Pages::Pinned(pins), skip, len))
            }
            Front::Kept(span) => {
                let (pins, skip, len) = span.part(most, unit)?;
                Ok((Pages::Kept(pins), skip, len))
            }
        }
    }
}

/// Begins one transfer, of at most `most` bytes from or to `sector` on, as a part of `job`, which is told what comes of it: how many
/// bytes, or why their memory could not be pinned. `EAGAIN`: memory is short, and nobody knows when what has been begun will end.
pub fn launch(
    disk: &'static dyn Disk,
    landing: &'static Landing,
    front: Front<'_>,
    sector: u64,
    most: u64,
    way: Way,
    job: &Arc<Job>,
) -> SysResult {
    crate::memory::headroom().map_err(|_| Errno::EAGAIN)?;
    let unit = u64::from(disk.block());
    let (request, len) = match (front, way) {
        (Front::User(span), Way::Fill) => {
            let slots = vec![PageSlot::EMPTY; pages(span, most)];
            let (pins, skip, len) = pin::<Write, _>(span, most, unit, slots)?;
            let request = Request::fill(landing, job, sector, pins, skip, len);
            (request, len)
        }
        (Front::User(span), Way::Drain) => {
            let slots = vec![PageSlot::EMPTY; pages(span, most)];
            let (pins, skip, len) = pin::<Read, _>(span, most, unit, slots)?;
            let request = Request::drain(landing, job, sector, pins, skip, len);
            (request, len)
        }
        (Front::Kept(span), way) => {
            let (_, _, len) = span.part(most, unit)?;
            (Request::lent(landing, job, sector, span, way, len), len)
        }
    };
    disk.begin(request.ok_or(Errno::EFAULT)?);
    Ok(len as usize)
}

/// Begins up to `len` bytes of `buf`, each part by `step`, which hears how many came before it and says how many it has begun. How many all
/// have, and why no more; an error if not even one has.
pub fn launch_all(
    buf: &mut IoBuf<'_>,
    len: u64,
    step: impl Fn(Front<'_>, u64) -> SysResult,
) -> Result<(usize, Option<Errno>), Errno> {
    let mut done = 0;
    while (done as u64) < len
        && let Some(front) = buf.front()
    {
        match step(front, done as u64) {
            Ok(n) => {
                buf.skip(n);
                done += n;
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(errno) => return Ok((done, Some(errno))),
        }
    }
    Ok((done, None))
}
