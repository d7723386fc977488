//! Disks, and the memory that they may use.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Deref;
use core::ptr;
use mm::gup::{Access, PageSlot, PinnedPages, Slots, Write};
use mm::object::cache::{Dirty, Unfilled, WINDOW};
use mm::phys::Folio;
use mm::{Errno, PAGE_SHIFT, PAGE_SIZE, Pfn};
use spin::Mutex as Spin;

use super::flight::{self, Landing, Request};
use super::iommu::Dma;
use super::slots::Control;
use crate::arch::X86;
use crate::fs::blockdev::Cache;
use crate::fs::{self, devfs};
use crate::memory::{direct, frames};

/// What disks count in.
pub const SECTOR: u64 = 512;
/// Pages of memory in one transfer, and so its pieces at most.
pub const PIECES: usize = 64;
const _: () = assert!(WINDOW <= PIECES);

/// Bytes of memory in a row, by physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub pa: u64,
    pub len: u32,
}

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The device fills the memory.
    Fill,
    /// The device reads it.
    Drain,
}

/// Frames that somebody keeps in their place, in the order in which they are used.
#[derive(Clone, Copy)]
enum Frames<'a> {
    Pinned(&'a [PageSlot]),
    Unfilled(&'a Unfilled),
    Dirty(&'a Dirty<X86>),
    /// In a row.
    Row(&'a Bounce),
}

impl Frames<'_> {
    /// The address of frame `n`.
    fn pa(&self, n: usize) -> Option<u64> {
        let pfn = match self {
            Frames::Pinned(pages) => pages.get(n)?.pfn(),
            Frames::Unfilled(frames) => frames.pfn(n)?,
            Frames::Dirty(pages) => pages.pfn(n)?,
            Frames::Row(bounce) => return Some(bounce.0 + n as u64 * PAGE_SIZE),
        };
        Some(pfn.0 << PAGE_SHIFT)
    }

    fn count(&self) -> usize {
        match self {
            Frames::Pinned(pages) => pages.len(),
            Frames::Unfilled(frames) => frames.pfns().count(),
            Frames::Dirty(pages) => pages.pfns().count(),
            Frames::Row(_) => Bounce::LEN / PAGE_SIZE as usize,
        }
    }
}

/// Memory that a device may use for as long as this lives: it borrows what keeps the memory in its place. Only what may
/// be written can be filled. At most [`PIECES`] pages. Where they are is told by what lets a device reach them.
#[derive(Clone, Copy)]
pub struct Memory<'a> {
    frames: Frames<'a>,
    /// Bytes of the frames: those before it, and those from there on.
    skip: u64,
    len: u64,
    way: Way,
}

impl<'a> Memory<'a> {
    #[inline]
    fn new(way: Way, frames: Frames<'a>, skip: u64, len: u64) -> Option<Self> {
        let end = skip.checked_add(len)?;
        let pages = end.div_ceil(PAGE_SIZE) - skip / PAGE_SIZE;
        let there = end <= frames.count() as u64 * PAGE_SIZE && pages <= PIECES as u64;
        there.then_some(Memory {
            frames,
            skip,
            len,
            way,
        })
    }

    /// Pages of which these bytes were used before, by a call of [`Memory::to_fill`] or [`Memory::to_drain`].
    pub(super) fn again(way: Way, pages: &'a [PageSlot], skip: u64, len: u64) -> Self {
        Memory {
            frames: Frames::Pinned(pages),
            skip,
            len,
            way,
        }
    }

    /// `len` bytes of pinned pages, after the first `skip`, to be written by the device. `None`: they do not hold
    /// that many, or these lie in too many pages.
    pub fn to_fill<S: Slots>(
        pins: &'a PinnedPages<X86, Write, S>,
        skip: u64,
        len: u64,
    ) -> Option<Self> {
        Memory::new(Way::Fill, Frames::Pinned(pins.pages()), skip, len)
    }

    /// The same, to be read by the device.
    pub fn to_drain<A: Access, S: Slots>(
        pins: &'a PinnedPages<X86, A, S>,
        skip: u64,
        len: u64,
    ) -> Option<Self> {
        Memory::new(Way::Drain, Frames::Pinned(pins.pages()), skip, len)
    }

    /// `len` bytes, after the first `skip`, of frames that are about to enter the page cache, to be written by the device.
    /// `None`: they do not hold that many.
    pub fn of_unfilled(frames: &'a Unfilled, skip: u64, len: u64) -> Option<Self> {
        Memory::new(Way::Fill, Frames::Unfilled(frames), skip, len)
    }

    /// The same of pages that are written back, to be read by the device.
    pub fn of_dirty(pages: &'a Dirty<X86>, skip: u64, len: u64) -> Option<Self> {
        Memory::new(Way::Drain, Frames::Dirty(pages), skip, len)
    }

    /// The first `len` bytes of the kernel's own.
    pub fn of_bounce(bounce: &'a mut Bounce, way: Way, len: usize) -> Self {
        Memory {
            frames: Frames::Row(bounce),
            skip: 0,
            len: len.min(Bounce::LEN) as u64,
            way,
        }
    }

    /// All of a bounce that its owner keeps, and its bytes to himself, for as long as the memory is used.
    pub(super) fn of_kept(bounce: &'a Bounce, way: Way) -> Self {
        Memory {
            frames: Frames::Row(bounce),
            skip: 0,
            len: Bounce::LEN as u64,
            way,
        }
    }

    /// `len` of its bytes, after the first `skip`. `None`: there are not that many.
    pub fn part(&self, skip: u64, len: u64) -> Option<Self> {
        let there = skip.checked_add(len)? <= self.len;
        there.then_some(Memory {
            skip: self.skip + skip,
            len,
            ..*self
        })
    }

    pub fn bytes(&self) -> u64 {
        self.len
    }

    pub fn way(&self) -> Way {
        self.way
    }

    /// Where its bytes are: as few pieces as there can be.
    fn pieces(&self) -> impl Iterator<Item = Piece> + Clone + use<'a> {
        let (frames, mut at, end) = (self.frames, self.skip, self.skip + self.len);
        core::iter::from_fn(move || {
            let start = (at < end).then_some(at)?;
            let pa = frames.pa((at / PAGE_SIZE) as usize)? + at % PAGE_SIZE;
            loop {
                at = end.min((at / PAGE_SIZE + 1) * PAGE_SIZE);
                let next = || frames.pa((at / PAGE_SIZE) as usize);
                if at == end || next() != Some(pa + (at - start)) {
                    let len = (at - start) as u32;
                    return Some(Piece { pa, len });
                }
            }
        })
    }

    /// Lets a device reach it. `EIO`; `ENOMEM` of more than is read in or written back at once. May sleep.
    pub fn map(&self, dma: Dma) -> Result<Mapped<'a>, Errno> {
        dma.lend_surely(self.pieces(), self.way)?;
        let reached = Reached(*self);
        Ok(Mapped { reached, dma })
    }

    /// The same without sleeping, and `ENOMEM` of all; whoever calls this calls [`Memory::take_back`] when the device is done.
    pub(super) fn lend(&self, dma: Dma) -> Result<Reached<'a>, Errno> {
        dma.lend(self.pieces(), self.way)?;
        Ok(Reached(*self))
    }

    /// What [`Memory::lend`] said. Whoever calls this has lent it, and has not taken it back.
    pub(super) fn lent(&self) -> Reached<'a> {
        Reached(*self)
    }

    pub(super) fn take_back(&self, dma: Dma) {
        dma.take_back(self.pieces(), self.way);
    }

    fn lose(&self) {
        let mut frames = self.skip / PAGE_SIZE..(self.skip + self.len).div_ceil(PAGE_SIZE);
        if matches!(self.frames, Frames::Row(_)) {
            frames = 0..1; // one block, which its first frame stands for
        }
        for pa in frames.filter_map(|n| self.frames.pa(n as usize)) {
            let folio = Folio::of_page(X86, Pfn(pa >> PAGE_SHIFT));
            // What the device may write is nobody else's. A page that has no room for another pin has others.
            if self.way == Way::Drain || !folio.desc().pin(1) {
                let _ = folio.get().into_folio();
            }
        }
    }
}

/// Memory that its device reaches.
#[derive(Clone, Copy)]
pub struct Reached<'a>(Memory<'a>);

impl<'a> Reached<'a> {
    pub fn way(&self) -> Way {
        self.0.way
    }

    pub fn bytes(&self) -> u64 {
        self.0.len
    }

    /// As [`Memory::part`].
    pub fn part(&self, skip: u64, len: u64) -> Option<Self> {
        self.0.part(skip, len).map(Reached)
    }

    /// Where its bytes are: as few pieces as there can be.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<'a> {
        self.0.pieces()
    }

    /// The device may use it for ever: whoever has it may let go of it, and nobody gets it.
    pub fn lose(&self) {
        self.0.lose();
    }
}

/// The same, until this is dropped.
pub struct Mapped<'a> {
    reached: Reached<'a>,
    dma: Dma,
}

impl<'a> Deref for Mapped<'a> {
    type Target = Reached<'a>;

    fn deref(&self) -> &Reached<'a> {
        &self.reached
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        self.reached.0.take_back(self.dma);
    }
}

/// Pins that are lent to a device. Dropping lets go of them, unless the device has never said that it is done with the memory.
pub struct Lent<P>(Option<P>);

impl<P> Lent<P> {
    pub fn new(pins: P) -> Self {
        Lent(Some(pins))
    }

    /// What is lent. `None`: it is lost.
    pub fn get(&self) -> Option<&P> {
        self.0.as_ref()
    }

    /// The device may use the memory for ever: it stays pinned, and nobody's.
    pub fn lose(&mut self) {
        core::mem::forget(self.0.take());
    }
}

/// Memory of the kernel's own, for what cannot go straight.
pub struct Bounce(u64);

impl Bounce {
    const ORDER: u8 = 3;
    pub const LEN: usize = 4096 << Self::ORDER;

    pub fn new() -> Result<Self, Errno> {
        let mut bounce = frames::alloc(Self::ORDER)
            .map(Bounce)
            .ok_or(Errno::ENOMEM)?;
        // A device that says it has filled this, and has not, shows nobody what was here before.
        bounce.bytes().fill(0);
        Ok(bounce)
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our block, in the direct map, and borrowed from us; a `Memory` of it would borrow it, too.
        unsafe { core::slice::from_raw_parts_mut(direct(self.0) as *mut u8, Self::LEN) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: ours from `new`, and no device uses it: a `Memory` would borrow it. One that has it for ever has a reference (`lose`).
        unsafe { frames::free(self.0, Self::ORDER) };
    }
}

/// A disk. Calls may sleep, and return when the device is done.
pub trait Disk: Send + Sync {
    fn name(&self) -> &str;
    /// Its size.
    fn sectors(&self) -> u64;
    /// Bytes that it reads and writes at least; a power of two.
    fn block(&self) -> u32;
    fn read_only(&self) -> bool;
    /// Moves all of `memory` from or to `sector` on, which is inside. `EIO` when the device could not.
    fn transfer(&self, sector: u64, memory: &Memory<'_>) -> Result<(), Errno>;
    /// Begins a transfer, which ends by itself: the driver owns the request until the device has done with its memory, and
    /// then gives it to [`flight::done`]. May sleep until there is room.
    fn begin(&'static self, request: Box<Request>);
    /// Called now and then, where it may sleep: what has been begun and is not answered in time is given up.
    fn give_up(&self);
    /// What was written before is on the medium.
    fn flush(&self) -> Result<(), Errno>;
    /// The sectors' contents are wanted no more. `EOPNOTSUPP`.
    fn discard(&self, sector: u64, sectors: u64) -> Result<(), Errno>;
    /// How its device is stopped, which may have other disks, too.
    fn control(&self) -> &'static Control;
}

/// Which of Linux's majors a disk has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// One of those for local use; a disk and its partitions share sixteen minors.
    Virtio,
    /// The one for disks that have no other: minors as they come.
    Extended,
}

impl Family {
    pub const fn major(self) -> u32 {
        match self {
            Family::Virtio => 254,
            Family::Extended => 259,
        }
    }

    const fn minors(self) -> u32 {
        match self {
            Family::Virtio => 16,
            Family::Extended => 1,
        }
    }
}

/// A disk, its device number, and what there is of each disk's own: so nobody waits for another disk than his.
#[derive(Clone, Copy)]
pub struct Known {
    pub disk: &'static dyn Disk,
    /// Its device is going, or has gone: nobody opens it any more.
    pub gone: bool,
    pub major: u32,
    pub minor: u32,
    pub landing: &'static Landing,
    pub cache: &'static Cache,
}

static DISKS: Spin<Vec<Known>> = Spin::new(Vec::new());

/// The name of the next disk called `prefix` and a letter.
pub fn next_name(prefix: &str) -> Option<String> {
    let n = DISKS
        .lock()
        .iter()
        .filter(|d| d.disk.name().starts_with(prefix))
        .count();
    let letter = char::from(b'a' + u8::try_from(n).ok().filter(|n| *n < 26)?);
    Some(alloc::format!("{prefix}{letter}"))
}

/// A disk that stays. Without memory for its thread nobody will find it.
pub fn add(disk: &'static dyn Disk, family: Family) {
    crate::info!(
        "{}: {} MiB, blocks of {}{}",
        disk.name(),
        disk.sectors() >> 11,
        disk.block(),
        if disk.read_only() { ", read-only" } else { "" }
    );
    let landing = Box::leak(Box::<Landing>::default());
    let cache = Box::leak(Box::new(Cache::new(disk)));
    let mut disks = DISKS.lock();
    let major = family.major();
    let before = disks.iter().filter(|d| d.major == major).count() as u32;
    let n = disks.len();
    disks.push(Known {
        disk,
        gone: false,
        major,
        minor: before * family.minors(),
        landing,
        cache,
    });
    drop(disks);
    if flight::start(n).is_err() {
        crate::warn!("{}: there is no memory for its thread", disk.name());
        DISKS.lock()[n].gone = true;
    }
    crate::fs::writeback::start();
}

/// The disks, in the order in which they were found.
pub fn disk(n: usize) -> Option<Known> {
    DISKS.lock().get(n).copied()
}

/// The disk of a device number.
pub fn known(major: u32, minor: u32) -> Option<Known> {
    let disks = DISKS.lock();
    disks
        .iter()
        .find(|d| (d.major, d.minor) == (major, minor) && !d.gone)
        .copied()
}

/// A device is to go, and does so by `let_go`: nobody finds its disks any more, and they have what was written to them; afterwards they are
/// empty. Returns what `let_go` does. One that keeps its memory has nothing written to it any more: there it does nothing. May sleep.
pub fn depart(control: &Control, let_go: impl Fn() -> bool) -> bool {
    if control.is_lost() && !let_go() {
        return false;
    }
    let mut leaving = Vec::new();
    for known in DISKS.lock().iter_mut() {
        if ptr::eq(known.disk.control(), control) {
            known.gone = true;
            leaving.push(*known);
        }
    }
    for known in &leaving {
        devfs::forget(known.disk.name());
        fs::sync_disk(*known);
    }
    if !let_go() {
        return false;
    }
    for known in leaving {
        known.cache.empty();
        crate::info!("{}: has gone", known.disk.name());
    }
    true
}
