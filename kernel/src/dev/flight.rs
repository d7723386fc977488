//! Transfers that end by themselves.
//!
//! A [`Request`] owns the pins of its memory. Whoever has it answers for the device: the one who makes it, the driver from
//! [`Disk::begin`] until the device has said that it is done (or has been reset), then the list here. The interrupt handler only moves
//! it to that list, for unpinning may free pages, under locks that the interrupted thread may hold; the thread `disks` lets go of the
//! pages and then tells the [`Job`] that the request is a part of. So who hears that a job is over finds no pin of it.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use mm::Errno;
use mm::gup::{PageSlot, PinnedPages, Read, Write};
use spin::Once;

use super::block::{self, Disk, Memory, Reached, SECTOR, Way};
use super::iommu::Dma;
use crate::SysResult;
use crate::arch::X86;
use crate::arch::time::now_ns;
use crate::fs::{Kept, KeptSpan, Object, blockdev};
use crate::sync::IrqLock;
use crate::task::{Sleep, WaitQueue};

/// A request's own place for the pages that it has pinned.
pub type Own = Vec<PageSlot>;

/// What keeps the memory in its place.
enum Keeper {
    Fill(PinnedPages<X86, Write, Own>),
    /// And the cache of what is overwritten.
    Drain(PinnedPages<X86, Read, Own>, Arc<Object>),
    /// Who has the pins himself; and the cache, if something is overwritten.
    Kept(Arc<dyn Kept>, Option<Arc<Object>>),
}

impl Keeper {
    fn memory(&self, skip: u64, len: u64) -> Option<Memory<'_>> {
        match self {
            Keeper::Fill(pins) => Memory::to_fill(pins, skip, len),
            Keeper::Drain(pins, _) => Memory::to_drain(pins, skip, len),
            Keeper::Kept(owner, cache) => {
                let (pins, skip) = owner.pages(skip as usize)?;
                match cache {
                    Some(_) => Memory::to_drain(pins, skip as u64, len),
                    None => Memory::to_fill(pins, skip as u64, len),
                }
            }
        }
    }
}

const THERE: &str = "it was there when the request was made";

/// One transfer.
pub struct Request {
    pub sector: u64,
    /// Bytes of the pinned pages: those before it, and those that are moved.
    skip: u64,
    len: u64,
    keeper: Keeper,
    /// Who reaches them.
    lent: Option<Dma>,
    job: Arc<Job>,
    result: Result<(), Errno>,
    next: Option<Box<Request>>,
}

impl Request {
    fn new(job: &Arc<Job>, sector: u64, skip: u64, len: u64, keeper: Keeper) -> Option<Box<Self>> {
        keeper.memory(skip, len)?;
        job.parts.fetch_add(1, Ordering::Relaxed);
        Some(Box::new(Request {
            sector,
            skip,
            len,
            keeper,
            lent: None,
            job: job.clone(),
            result: Err(Errno::EIO),
            next: None,
        }))
    }

    /// A part of `job` that fills `len` bytes of pinned pages, after the first `skip`. `None`: they do not hold that many.
    pub fn fill(
        job: &Arc<Job>,
        sector: u64,
        pins: PinnedPages<X86, Write, Own>,
        skip: u64,
        len: u64,
    ) -> Option<Box<Request>> {
        Request::new(job, sector, skip, len, Keeper::Fill(pins))
    }

    /// The same, to be read by the device; whose cache forgets what is overwritten, also by one that failed.
    pub fn drain(
        job: &Arc<Job>,
        sector: u64,
        pins: PinnedPages<X86, Read, Own>,
        skip: u64,
        len: u64,
        cache: Arc<Object>,
    ) -> Option<Box<Request>> {
        Request::new(job, sector, skip, len, Keeper::Drain(pins, cache))
    }

    /// A part of `job` that uses `len` bytes of memory that is pinned already: what fills it has no `cache` to change. `None`: as
    /// above, or they lie in two pins.
    pub fn lent(
        job: &Arc<Job>,
        sector: u64,
        span: KeptSpan<'_>,
        len: u64,
        cache: Option<Arc<Object>>,
    ) -> Option<Box<Request>> {
        let keeper = Keeper::Kept(span.owner.clone(), cache);
        Request::new(job, sector, span.at as u64, len, keeper)
    }

    pub fn way(&self) -> Way {
        self.memory().way()
    }

    /// Lets a device reach the memory, until the end; once. `ENOMEM`, `EIO`.
    pub fn lend(&mut self, dma: Dma) -> Result<Reached<'_>, Errno> {
        assert!(self.lent.is_none());
        let memory = self.keeper.memory(self.skip, self.len).expect(THERE);
        let reached = memory.lend(dma)?;
        self.lent = Some(dma);
        Ok(reached)
    }

    fn memory(&self) -> Memory<'_> {
        self.keeper.memory(self.skip, self.len).expect(THERE)
    }

    /// What came of it.
    pub fn answer(&mut self, result: Result<(), Errno>) {
        self.result = result;
    }

    /// Lets go of the memory, then tells the job. Where one may sleep.
    fn end(self) {
        if let Some(dma) = self.lent {
            self.memory().take_back(dma);
        }
        let Request {
            sector,
            keeper,
            job,
            result,
            len,
            ..
        } = self;
        if let Keeper::Drain(_, cache) | Keeper::Kept(_, Some(cache)) = &keeper {
            let (first, end) = (sector * SECTOR, sector * SECTOR + len);
            blockdev::changed(cache, first..end);
        }
        drop(keeper);
        job.part(result.map(|()| len));
    }
}

/// Who hears what came of a job. Called where one may sleep.
pub trait Finish: Send + Sync {
    fn finish(&self, result: SysResult);
}

/// Requests that are one operation together: its bytes count if none has failed, as with Linux's block devices.
pub struct Job<T: ?Sized = dyn Finish> {
    /// Those in flight, and one for whoever begins them.
    parts: AtomicU32,
    bytes: AtomicU64,
    failed: AtomicBool,
    end: T,
}

impl<T: Finish> Job<T> {
    pub fn new(end: T) -> Job<T> {
        Job {
            parts: AtomicU32::new(1),
            bytes: AtomicU64::new(0),
            failed: AtomicBool::new(false),
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
            Err(_) => self.failed.store(true, Ordering::Relaxed),
        }
        if self.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end.finish(match self.failed.load(Ordering::Relaxed) {
                true => Err(Errno::EIO),
                false => Ok(self.bytes.load(Ordering::Relaxed) as usize),
            });
        }
    }

    /// It is over without any part.
    pub fn over(&self, result: SysResult) {
        self.end.finish(result);
    }

    /// All parts have been begun.
    pub fn begun(&self) {
        self.part(Ok(0));
    }
}

/// Begins it, or, where the driver cannot, does it.
pub fn begin(disk: &dyn Disk, request: Box<Request>) {
    if let Err(mut request) = disk.begin(request) {
        let result = disk.transfer(request.sector, &request.memory());
        request.answer(result);
        request.end();
    }
}

/// Requests in a row, the last first.
#[derive(Default)]
pub struct List {
    head: Option<Box<Request>>,
    len: usize,
}

impl List {
    pub const fn new() -> List {
        List { head: None, len: 0 }
    }

    pub fn push(&mut self, mut request: Box<Request>) {
        request.next = self.head.take();
        self.head = Some(request);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<Box<Request>> {
        let mut request = self.head.take()?;
        self.head = request.next.take();
        self.len -= 1;
        Some(request)
    }

    fn reversed(mut self) -> List {
        let mut list = List::new();
        while let Some(request) = self.pop() {
            list.push(request);
        }
        list
    }
}

static DONE: IrqLock<List> = IrqLock::new(List::new());
static CALL: WaitQueue = WaitQueue::new();

/// The device has done with a request, or is quiet. From interrupt handlers, too.
pub fn done(request: Box<Request>) {
    let mut one = List::new();
    one.push(request);
    done_all(one);
}

/// The same of several; how many.
pub fn done_all(mut landed: List) -> usize {
    let n = landed.len;
    if n != 0 {
        landed = landed.reversed();
        let mut all = DONE.lock();
        while let Some(request) = landed.pop() {
            all.push(request);
        }
        drop(all);
        CALL.wake_all();
    }
    n
}

/// How often disks look for what is not answered.
const LOOK_NS: u64 = 1_000_000_000;

/// The thread that ends requests; once.
pub(super) fn start() {
    static STARTED: Once<()> = Once::new();
    STARTED.call_once(|| {
        crate::task::spawn_kernel_thread("disks", thread, 0).expect("a kernel thread")
    });
}

fn thread(_: usize) {
    let mut look = now_ns() + LOOK_NS;
    loop {
        let none = || DONE.lock().head.is_none();
        let _ = CALL.wait_while(Sleep::Uninterruptible, Some(look), none);
        let mut landed = core::mem::take(&mut *DONE.lock()).reversed();
        while let Some(request) = landed.pop() {
            request.end();
        }
        if now_ns() >= look {
            (0..)
                .map_while(block::disk)
                .for_each(|known| known.disk.give_up());
            look = now_ns() + LOOK_NS;
        }
    }
}
