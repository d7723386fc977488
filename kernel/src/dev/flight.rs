//! Transfers that end by themselves.
//!
//! A [`Request`] owns the pins of its memory. Whoever has it answers for the device: the one who makes it, the driver from
//! `Disk::begin` until the device has said that it is done (or has been reset, or is lost), then its disk's [`Landing`]. The interrupt handler only
//! moves it there, for unpinning may free pages, under locks that the interrupted thread may hold; the disk's own thread lets go of the
//! pages and then tells the [`Job`] that the request is a part of. So who hears that a job is over finds no pin of it, nor of what its
//! beginner has it [keep](Job::keep): whose end says that the bytes are others now, or that somebody may have the blocks.
//!
//! That thread also looks for what is not answered in time. It may have to wait for who writes to the disk's cache, and he for
//! the disk: so nobody relies on it alone. Who waits for the device gives it up himself.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::{self, ManuallyDrop};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use mm::Errno;
use mm::gup::{PageSlot, PinnedPages, Read, Write};
use mm::race::{Point, point};
use spin::Mutex as Spin;

use super::block::{self, Bounce, Memory, Reached, Way};
use super::iommu::Dma;
use crate::SysResult;
use crate::arch::X86;
use crate::arch::time::now_ns;
use crate::fs::blockdev::moved;
use crate::fs::{Kept, KeptSpan};
use crate::sync::IrqLock;
use crate::task::{Sleep, WaitQueue};

/// A request's own place for the pages that it has pinned.
pub type Own = Vec<PageSlot>;

/// What keeps the memory in its place.
enum Keeper {
    Fill(PinnedPages<X86, Write, Own>),
    Drain(PinnedPages<X86, Read, Own>),
    /// Who has the pins himself.
    Kept(Arc<dyn Kept>, Way),
    /// The kernel's own.
    Bounce(Bounce, Way),
}

impl Keeper {
    fn memory(&self, skip: u64, len: u64) -> Option<Memory<'_>> {
        match self {
            Keeper::Fill(pins) => Memory::to_fill(pins, skip, len),
            Keeper::Drain(pins) => Memory::to_drain(pins, skip, len),
            Keeper::Kept(owner, way) => {
                let (pins, skip) = owner.pages(skip as usize)?;
                match way {
                    Way::Drain => Memory::to_drain(pins, skip as u64, len),
                    Way::Fill => Memory::to_fill(pins, skip as u64, len),
                }
            }
            Keeper::Bounce(bounce, way) => Memory::of_kept(bounce, *way).part(skip, len),
        }
    }
}

const THERE: &str = "it was there when the request was made";

/// One transfer. Only its end lets go of the memory: one that were dropped would keep it for ever, for a device may have it.
pub struct Request {
    pub sector: u64,
    /// Bytes of what is kept: those before it, and those that are moved.
    skip: u64,
    len: u64,
    keeper: ManuallyDrop<Keeper>,
    /// Who reaches them.
    lent: Option<Dma>,
    landing: &'static Landing,
    job: Arc<Job>,
    result: Result<(), Errno>,
    next: Option<Box<Request>>,
}

impl Request {
    fn new(
        landing: &'static Landing,
        job: &Arc<Job>,
        sector: u64,
        skip: u64,
        len: u64,
        keeper: Keeper,
    ) -> Box<Self> {
        job.parts.fetch_add(1, Ordering::Relaxed);
        Box::new(Request {
            sector,
            skip,
            len,
            keeper: ManuallyDrop::new(keeper),
            lent: None,
            landing,
            job: job.clone(),
            result: Err(Errno::EIO),
            next: None,
        })
    }

    /// A part of `job` that fills `len` bytes of pinned pages, after the first `skip`. `None`: they do not hold that many.
    pub fn fill(
        landing: &'static Landing,
        job: &Arc<Job>,
        sector: u64,
        pins: PinnedPages<X86, Write, Own>,
        skip: u64,
        len: u64,
    ) -> Option<Box<Request>> {
        Memory::to_fill(&pins, skip, len)?;
        let keeper = Keeper::Fill(pins);
        Some(Request::new(landing, job, sector, skip, len, keeper))
    }

    /// The same, to be read by the device.
    pub fn drain(
        landing: &'static Landing,
        job: &Arc<Job>,
        sector: u64,
        pins: PinnedPages<X86, Read, Own>,
        skip: u64,
        len: u64,
    ) -> Option<Box<Request>> {
        Memory::to_drain(&pins, skip, len)?;
        let keeper = Keeper::Drain(pins);
        Some(Request::new(landing, job, sector, skip, len, keeper))
    }

    /// A part that moves `len` bytes of the kernel's own.
    pub fn of_bounce(
        landing: &'static Landing,
        job: &Arc<Job>,
        sector: u64,
        (bounce, way): (Bounce, Way),
        len: u64,
    ) -> Option<Box<Request>> {
        let keeper = Keeper::Bounce(bounce, way);
        keeper.memory(0, len)?;
        Some(Request::new(landing, job, sector, 0, len, keeper))
    }

    /// A part of `job` that uses `len` bytes of memory that is pinned already. `None`: as above, or they lie in two pins.
    pub fn lent(
        landing: &'static Landing,
        job: &Arc<Job>,
        sector: u64,
        span: KeptSpan<'_>,
        way: Way,
        len: u64,
    ) -> Option<Box<Request>> {
        let (keeper, skip) = (Keeper::Kept(span.owner.clone(), way), span.at as u64);
        keeper.memory(skip, len)?;
        Some(Request::new(landing, job, sector, skip, len, keeper))
    }

    /// Lets a device reach the memory, until the end; once. `ENOMEM`, `EIO`.
    pub fn lend(&mut self, dma: Dma) -> Result<(), Errno> {
        assert!(self.lent.is_none());
        if dma.translates() {
            self.memory().lend(dma)?;
        }
        self.lent = Some(dma);
        Ok(())
    }

    /// The memory that a device has been let reach.
    pub fn reached(&self) -> Reached<'_> {
        assert!(self.lent.is_some());
        self.memory().lent()
    }

    /// How many bytes it moves.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    fn memory(&self) -> Memory<'_> {
        let (skip, len) = (self.skip, self.len);
        match &*self.keeper {
            Keeper::Fill(pins) => Memory::again(Way::Fill, pins.pages(), skip, len),
            Keeper::Drain(pins) => Memory::again(Way::Drain, pins.pages(), skip, len),
            keeper => keeper.memory(skip, len).expect(THERE),
        }
    }

    /// What came of it.
    pub fn answer(&mut self, result: Result<(), Errno>) {
        self.result = result;
    }

    /// Lets go of the memory, then tells the job. Where one may sleep.
    #[expect(clippy::boxed_local, reason = "by value it would be copied first")]
    fn end(self: Box<Self>) {
        point(X86, Point::Landed);
        if let Some(dma) = self.lent.filter(|dma| dma.translates()) {
            self.memory().take_back(dma);
        }
        let Request {
            keeper,
            job,
            result,
            len,
            ..
        } = *self;
        drop(ManuallyDrop::into_inner(keeper));
        job.part(result.map(|()| len).inspect(|&len| moved(len as usize)));
    }
}

/// Who hears what came of a job. Called where one may sleep.
pub trait Finish: Send + Sync {
    fn finish(&self, result: SysResult);
}

/// Requests that are one operation together: its bytes count if none has failed, as on Linux.
pub struct Job<T: ?Sized = dyn Finish> {
    /// Those in flight, and one for whoever begins them.
    parts: AtomicU32,
    bytes: AtomicU64,
    /// The first error, as a number.
    failed: AtomicI32,
    kept: Spin<Option<Box<dyn Send>>>,
    end: T,
}

impl<T: Finish> Job<T> {
    pub fn new(end: T) -> Job<T> {
        Job {
            parts: AtomicU32::new(1),
            bytes: AtomicU64::new(0),
            failed: AtomicI32::new(0),
            kept: Spin::new(None),
            end,
        }
    }
}

impl Job {
    fn part(&self, moved: Result<u64, Errno>) {
        match moved {
            Ok(n) => {
                self.bytes.fetch_add(n, Ordering::Relaxed);
            }
            Err(_) => self.fail(Errno::EIO),
        }
        if self.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            let kept = self.kept.lock().take();
            drop(kept);
            self.end.finish(
                match Errno::new(self.failed.load(Ordering::Relaxed) as u32) {
                    Some(errno) => Err(errno),
                    None => Ok(self.bytes.load(Ordering::Relaxed) as usize),
                },
            );
        }
    }

    /// It is over without any part.
    pub fn over(&self, result: SysResult) {
        self.end.finish(result);
    }

    /// It has failed, whatever comes of what is in flight. Before [`Job::begun`].
    pub fn fail(&self, errno: Errno) {
        let _ = self
            .failed
            .compare_exchange(0, errno.raw(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// `guard` is dropped when all parts are over, before anybody hears of it; where one may sleep. Before [`Job::begun`].
    pub fn keep(&self, guard: impl Send + 'static) {
        *self.kept.lock() = Some(Box::new(guard));
    }

    /// All parts have been begun.
    pub fn begun(&self) {
        self.part(Ok(0));
    }
}

/// Requests in a row, the last first.
#[derive(Default)]
struct List(Option<Box<Request>>);

impl List {
    fn push(&mut self, mut request: Box<Request>) {
        request.next = self.0.take();
        self.0 = Some(request);
    }

    fn pop(&mut self) -> Option<Box<Request>> {
        let mut request = self.0.take()?;
        self.0 = request.next.take();
        Some(request)
    }

    fn reversed(mut self) -> List {
        let mut list = List(None);
        while let Some(request) = self.pop() {
            list.push(request);
        }
        list
    }
}

/// Where a disk's requests come down.
pub struct Landing {
    done: IrqLock<List>,
    call: WaitQueue,
}

impl Default for Landing {
    fn default() -> Landing {
        Landing {
            done: IrqLock::new(List(None)),
            call: WaitQueue::new(),
        }
    }
}

impl Landing {
    /// Ends what has come down. Where one may sleep.
    pub fn end_all(&self) {
        let mut landed = mem::take(&mut *self.done.lock()).reversed();
        while let Some(request) = landed.pop() {
            request.end();
        }
    }
}

/// The device has done with a request, or is quiet, or keeps the memory for ever. From interrupt handlers, too.
pub fn done(request: Box<Request>) {
    let landing = request.landing;
    let mut down = landing.done.lock();
    let first = down.0.is_none();
    down.push(request);
    drop(down);
    // The thread takes all that has come down: whoever was the first wakes it for the others, too.
    if first {
        landing.call.wake_one();
    }
}

/// How often disks look for what is not answered.
const LOOK_NS: u64 = 1_000_000_000;

/// The thread that ends the requests of disk `n`. `ENOMEM`.
pub(super) fn start(n: usize) -> Result<(), Errno> {
    crate::task::spawn_kernel_thread("disk", thread, n)
}

fn thread(n: usize) {
    let known = block::disk(n).expect("a disk stays");
    let landing = known.landing;
    let mut look = now_ns() + LOOK_NS;
    loop {
        let none = || landing.done.lock().0.is_none();
        let _ = landing
            .call
            .wait_while(Sleep::Uninterruptible, Some(look), none);
        landing.end_all();
        if now_ns() >= look {
            known.disk.give_up();
            look = now_ns() + LOOK_NS;
        }
    }
}
