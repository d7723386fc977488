//! Where a file's bytes are, and their way to the page cache.
//!
//! Protocol: who moves bytes between memory and the blocks of a file holds `blocks` shared from the look at the map until the
//! device is done; who gives the file blocks, or takes them away, holds it alone and forgets the map. So no transfer
//! meets a block that has become another file's.
//!
//! A transfer that ends by itself ([`Flight`]) holds no lock: the disk's thread ends it, and must not wait for who waits for that. It is
//! begun under the node's `io`, and counted. Blocks that are initialised are taken away by nobody but who holds `io` alone,
//! or by who frees an inode when its page cache has gone. The former waits first until nothing is in flight
//! ([`Bytes::still`], Linux's `inode_dio_wait`), before it takes any other lock; a flight keeps the page cache. So does who copies into
//! cached pages: a flight that has written drops them when it ends. Only whole blocks that are all there are begun; what meets a hole,
//! blocks that nobody has written, or the block that the file ends in is done while its caller waits.
//!
//! Bytes go straight from their frames to blocks that the file has and that hold bytes of it already. Others go through
//! `rsext4`, which gives the file the block and marks it as written once the bytes are there ([`Lent`](super::io::Lent)). So do
//! the bytes of a block that the file ends in: who makes a file longer changes the size with them.
//! `rsext4` keeps copies of blocks that it has changed itself, and does not see what goes straight. Where it is about to change a
//! part of a block (the end of a file that is cut, the edges of a hole), it is given all of it first ([`Bytes::refresh`]).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use mm::object::cache::{Dirty, Source, Unfilled};
use mm::phys::dirty_pages;
use mm::wait::CanWait;
use mm::{Errno, PAGE_SIZE};
use rsext4::file::{FileExtentState, FileExtentTarget, PreallocationOptions, RangeOperation};
use rsext4::{Ext4Result, InodeNumber};
use spin::Mutex as Spin;

use super::Fs;
use super::call::Volume;
use super::io::{LENT, errno};
use crate::arch::X86;
use crate::dev::block::{Bounce, Memory, SECTOR, Way};
use crate::fs::content::pages_of;
use crate::fs::inode::Object;
use crate::fs::writeback;
use crate::sync::RwLock;
use crate::task::space::can_wait;
use crate::task::{Sleep, WaitQueue};

/// Bytes of a file that are looked up at once, and extents: a list of them fits into a page.
const WINDOW: u64 = 64 << 20;
pub const RUNS: usize = 100;
/// Of those that `rsext4` knows.
const MAX_BLOCK: usize = 4096;

/// The bytes of a regular file on the disk.
pub struct Bytes {
    pub fs: Arc<Fs>,
    pub number: InodeNumber,
    /// See the module.
    pub blocks: RwLock<()>,
    /// The size that the disk has; the page cache's may be larger.
    pub size: AtomicU64,
    /// The inode has lost its last name: it goes with the page cache.
    pub unnamed: AtomicBool,
    map: Spin<Option<Arc<Map>>>,
    /// There are blocks for these bytes, perhaps behind the end.
    kept: Spin<Range<u64>>,
    /// The node knows how many blocks there are.
    pub counted: AtomicBool,
    /// Transfers that end by themselves, and who waits for the last.
    flights: AtomicU32,
    landed: WaitQueue,
}

/// Where the bytes of `range` are; what is in no run is a hole or was never written, and reads as zeroes.
pub struct Map {
    range: Range<u64>,
    runs: Vec<Run>,
}

struct Run {
    logical: Range<u64>,
    place: Place,
}

/// Copies bytes out of memory, from an offset in it on.
pub type Copier<'a> = &'a dyn Fn(u64, &mut [u8]);

/// Where bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Hole,
    /// The file has blocks for them that nobody has written.
    Kept,
    /// At this byte of the disk.
    At(u64),
}

impl Map {
    /// Bytes from here on are in other maps.
    pub fn end(&self) -> u64 {
        self.range.end
    }

    /// The bytes from `at` on that lie in a row, up to `end`: how many, and where on the disk.
    pub fn run(&self, at: u64, end: u64) -> (u64, Place) {
        let next = self.runs.partition_point(|run| run.logical.end <= at);
        match self.runs.get(next) {
            Some(run) if run.logical.start <= at => {
                let place = match run.place {
                    Place::At(first) => Place::At(first + (at - run.logical.start)),
                    place => place,
                };
                (run.logical.end.min(end) - at, place)
            }
            Some(run) => (run.logical.start.min(end) - at, Place::Hole),
            None => (end - at, Place::Hole),
        }
    }
}

impl Bytes {
    pub fn new(fs: Arc<Fs>, number: InodeNumber, size: u64) -> Arc<Self> {
        Arc::new(Bytes {
            fs,
            number,
            blocks: RwLock::new(()),
            size: AtomicU64::new(size),
            unnamed: AtomicBool::new(false),
            map: Spin::new(None),
            kept: Spin::new(0..0),
            counted: AtomicBool::new(true),
            flights: AtomicU32::new(0),
            landed: WaitQueue::new(),
        })
    }

    /// Where `start..end`, or its first part, is. The caller holds `blocks`.
    pub fn map(&self, start: u64, end: u64) -> Result<Arc<Map>, Errno> {
        let covers = |map: &Arc<Map>| map.range.contains(&start);
        if let Some(map) = self.map.lock().clone().filter(covers) {
            return Ok(map);
        }
        let len = WINDOW.max(end - start);
        let target = FileExtentTarget::Data;
        let found = self
            .fs
            .must(|volume| volume.inode_extents(self.number, start, len, target, RUNS))?;
        let mut range = start..start.saturating_add(len);
        if !found.complete {
            let last = found.extents.last().ok_or(Errno::EUCLEAN)?;
            range.end = last.logical_start.saturating_add(last.length);
        }
        let mut runs: Vec<Run> = Vec::new();
        for extent in found.extents.iter() {
            let end = extent.logical_start.checked_add(extent.length);
            let stop = extent.physical_start.checked_add(extent.length);
            let (Some(end), Some(stop)) = (end, stop) else {
                return Err(Errno::EUCLEAN);
            };
            let before = runs.last().map_or(0, |run| run.logical.end);
            let on_disk = stop <= self.fs.disk.sectors() * SECTOR;
            if !on_disk || extent.logical_start < before || extent.physical_start % SECTOR != 0 {
                return Err(Errno::EUCLEAN);
            }
            let place = match extent.state {
                FileExtentState::Initialized => Place::At(extent.physical_start),
                FileExtentState::Unwritten => Place::Kept,
                FileExtentState::Inline => return Err(Errno::EOPNOTSUPP),
            };
            runs.push(Run {
                logical: extent.logical_start..end,
                place,
            });
        }
        let map = Arc::new(Map { range, runs });
        *self.map.lock() = Some(map.clone());
        Ok(map)
    }

    /// Whether all bytes of `range` are on the disk.
    pub fn are_there(&self, range: Range<u64>) -> Result<bool, Errno> {
        let _blocks = self.blocks.read();
        let mut all = true;
        self.parts(range, |_, _, place| {
            all &= matches!(place, Place::At(_));
            Ok(())
        })?;
        Ok(all)
    }

    /// Waits until nothing is in flight. The caller holds the node's `io` alone.
    pub fn still(&self) {
        let _ = self.landed.wait_while(Sleep::Uninterruptible, None, || {
            self.flights.load(Ordering::SeqCst) != 0
        });
    }

    /// The blocks are others now. The caller holds `blocks` alone.
    pub fn forget_map(&self) {
        *self.map.lock() = None;
        self.counted.store(false, Ordering::Release);
    }

    /// There are blocks for `start..end`: enough free ones for all that is dirty or, when they are few, the file's own. `ENOSPC`.
    pub fn reserve(&self, start: u64, end: u64) -> Result<(), Errno> {
        let plenty = || {
            let needed = dirty_pages() * PAGE_SIZE + (end - start);
            self.fs.free.load(Ordering::Relaxed) / 2 > needed
        };
        if plenty() {
            return Ok(());
        }
        // What is dirty already comes first.
        writeback::sync(&mut can_wait());
        if plenty() {
            return Ok(());
        }
        let has = |this: &Self| -> Result<bool, Errno> {
            let kept = this.kept.lock().clone();
            if kept.start <= start && end <= kept.end {
                return Ok(true);
            }
            // Of what lies behind the end, the disk does not tell.
            let mut all = end <= this.size.load(Ordering::Acquire);
            if all {
                this.parts(start..end, |_, _, place| {
                    all &= place != Place::Hole;
                    Ok(())
                })?;
            }
            Ok(all)
        };
        let blocks = self.blocks.read();
        if has(self)? {
            return Ok(());
        }
        drop(blocks);
        self.fs.ask()?;
        let _blocks = self.blocks.write();
        let keep = RangeOperation::Allocate(PreallocationOptions::KEEP_SIZE);
        let kept = self.fs.must_change(|volume| {
            volume.operate_inode_range(self.number, start, end - start, keep)
        });
        self.forget_map();
        kept?;
        let mut known = self.kept.lock();
        // Files grow at their end.
        *known = match known.end == start {
            true => known.start..end,
            false => start..end,
        };
        Ok(())
    }

    /// Writes `len` bytes of `memory` to the file from `at` on, the beginning of a block, and makes the file as long as that.
    /// `copy` copies bytes of it, from an offset in them on. `len` ends within a block only where the file ends then.
    /// `None`: no copies can be had; then nothing is written where one would be needed, and how many bytes come before that
    /// is the answer. The caller keeps other changes of the size away.
    pub fn store(
        &self,
        at: u64,
        memory: &Memory<'_>,
        len: u64,
        copy: Option<Copier<'_>>,
    ) -> Result<u64, Errno> {
        let end = at + len;
        let block = self.fs.block;
        let mut next = at;
        while next < end {
            let shared = self.blocks.read();
            let size = self.size.load(Ordering::Acquire);
            let map = self.map(next, end)?;
            let (run, place) = map.run(next, end.min(map.range.end));
            // Blocks that a file ends in, or will.
            let tail = |size: u64| !size.is_multiple_of(block) && next == size - size % block;
            if let (Place::At(first), false) = (place, tail(size)) {
                // Up to the block that the file ends in.
                let whole = (next + run).min(size - size % block).min(end - end % block);
                if whole > next {
                    let part = memory.part(next - at, whole - next).ok_or(Errno::EIO)?;
                    self.fs.disk.transfer(first / SECTOR, &part)?;
                    next = whole;
                    continue;
                }
            }
            drop(shared);
            let _alone = self.blocks.write();
            let size = self.size.load(Ordering::Acquire);
            let left = end - next;
            let map = self.map(next, end)?;
            let (run, place) = map.run(next, end.min(map.range.end));
            if matches!(place, Place::At(_)) && next + block <= size && left >= block {
                continue; // somebody was faster
            }
            if tail(size) || left < block {
                let Some(copy) = copy else { break };
                let mut bytes = [0; MAX_BLOCK];
                let bytes = bytes
                    .get_mut(..left.min(block) as usize)
                    .ok_or(Errno::EIO)?;
                copy(next - at, bytes);
                let stored = self
                    .fs
                    .must_change(|volume| volume.write_inode(self.number, next, bytes));
                self.forget_map();
                stored?;
                next += bytes.len() as u64;
            } else {
                let some = run.min(left).min(LENT as u64);
                let mut some = some - some % block;
                if size > next {
                    some = some.min((size - size % block) - next);
                }
                if some == 0 {
                    // The map has changed meanwhile, or is no map of blocks.
                    return Err(Errno::EUCLEAN);
                }
                self.store_new(next, &memory.part(next - at, some).ok_or(Errno::EIO)?, some)?;
                next += some;
            }
            self.size.fetch_max(next, Ordering::AcqRel);
        }
        Ok(next - at)
    }

    /// Whole blocks that the file does not have, or that nobody has written. The caller holds `blocks` alone.
    fn store_new(&self, at: u64, memory: &Memory<'_>, len: u64) -> Result<(), Errno> {
        let all = memory.part(0, len).ok_or(Errno::EIO)?;
        let (stored, moved) = self.fs.must_change(|volume| {
            Ok(self.fs.lent.lend(all, len as usize, |blank| {
                volume.write_inode(self.number, at, blank)
            }))
        })?;
        self.forget_map();
        stored.map_err(errno)?;
        if moved as u64 == len {
            return Ok(());
        }
        // Blocks behind the end that were written once, as on no disk that Linux has made.
        self.size.fetch_max(at + len, Ordering::AcqRel);
        self.parts(at..at + len, |part, n, place| {
            let Place::At(first) = place else {
                return Err(Errno::EUCLEAN);
            };
            let memory = memory.part(part - at, n).ok_or(Errno::EIO)?;
            self.fs.disk.transfer(first / SECTOR, &memory)
        })
    }

    /// `rsext4` knows what is in the block around `at` (see the module). The caller holds `blocks` alone.
    fn refresh(&self, at: u64) -> Result<(), Errno> {
        let block = self.fs.block;
        let size = self.size.load(Ordering::Acquire);
        let start = at - at % block;
        if at == start || start >= size {
            return Ok(());
        }
        let map = self.map(start, start + block)?;
        let (_, Place::At(first)) = map.run(start, start + block) else {
            return Ok(());
        };
        let mut bounce = Bounce::new()?;
        let memory = Memory::of_bounce(&mut bounce, Way::Fill, block as usize);
        self.fs.disk.transfer(first / SECTOR, &memory)?;
        let len = block.min(size - start) as usize;
        let bytes = &bounce.bytes()[..len];
        self.fs
            .must_change(|volume| volume.write_inode(self.number, start, bytes))
    }

    /// The file is as long as that on the disk, too; its pages behind that are gone already.
    pub fn resize(&self, len: u64) -> Result<(), Errno> {
        let _alone = self.blocks.write();
        let size = self.size.load(Ordering::Acquire);
        if len == size {
            return Ok(());
        }
        // The block that it ended in is cleared behind that; or the one that it will end in.
        self.refresh(len.min(size))?;
        let cut = self
            .fs
            .must_change(|volume| volume.truncate_inode(self.number, len));
        self.forget_map();
        *self.kept.lock() = 0..0;
        cut?;
        self.size.store(len, Ordering::Release);
        Ok(())
    }

    /// `rsext4` 0.9.2 cannot split an extent of an inode whose root is full; where it adds one, it makes the tree higher: one
    /// behind the end, for the moment.
    fn punch_split(&self, volume: &mut Volume, start: u64, end: u64, size: u64) -> Ext4Result<()> {
        let block = self.fs.block;
        let behind = size.next_multiple_of(block) + block;
        let keep = RangeOperation::Allocate(PreallocationOptions::KEEP_SIZE);
        volume.operate_inode_range(self.number, behind, block, keep)?;
        let done =
            volume.operate_inode_range(self.number, start, end - start, RangeOperation::PunchHole);
        volume.truncate_inode(self.number, behind + block)?;
        volume.truncate_inode(self.number, size)?;
        done
    }

    /// fallocate: an operation on a range, whose pages have been written or are gone.
    pub fn operate(&self, start: u64, end: u64, what: RangeOperation) -> Result<(), Errno> {
        let _alone = self.blocks.write();
        self.refresh(start)?;
        self.refresh(end)?;
        let size = self.size.load(Ordering::Acquire);
        self.refresh(size)?;
        let done = self.fs.must_change(|volume| {
            let done = volume.operate_inode_range(self.number, start, end - start, what);
            match done {
                Err(error) if error.is_corruption() && what == RangeOperation::PunchHole => {
                    self.punch_split(volume, start, end, size)
                }
                done => done,
            }
        });
        self.forget_map();
        *self.kept.lock() = 0..0;
        done?;
        let info = self.fs.must(|volume| volume.inode(self.number))?;
        self.size.store(info.size, Ordering::Release);
        Ok(())
    }

    /// Calls `f` for the parts of `range`, each in a row on the disk or without a place there. The caller holds `blocks`.
    fn parts(
        &self,
        range: Range<u64>,
        mut f: impl FnMut(u64, u64, Place) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            let map = self.map(at, range.end)?;
            let (len, place) = map.run(at, range.end.min(map.range.end));
            f(at, len, place)?;
            at += len;
        }
        Ok(())
    }
}

/// A direct transfer that ends by itself.
pub struct Flight {
    bytes: Arc<Bytes>,
    /// As long as it is there, the inode is.
    object: Arc<Object>,
    /// What it overwrites.
    written: Option<Range<u64>>,
}

impl Flight {
    /// The caller holds the node's `io`.
    pub fn new(bytes: &Arc<Bytes>, object: &Arc<Object>, written: Option<Range<u64>>) -> Flight {
        bytes.flights.fetch_add(1, Ordering::SeqCst);
        Flight {
            bytes: bytes.clone(),
            object: object.clone(),
            written,
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Also of one that failed: nobody knows how far it came.
        if let Some((first, end)) = self.written.as_ref().map(pages_of) {
            self.object.invalidate(&mut can_wait(), first, end);
        }
        if self.bytes.flights.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.bytes.landed.wake_all();
        }
    }
}

/// A file's pages come from here.
pub struct FileSource(pub Arc<Bytes>);

impl Source<X86> for FileSource {
    fn read(&self, wait: &mut CanWait<X86>, first: u64, into: &Unfilled) -> Result<(), Errno> {
        writeback::make_room(wait)?;
        let bytes = &self.0;
        let _blocks = bytes.blocks.read();
        let start = first * PAGE_SIZE;
        let end = start + into.pfns().count() as u64 * PAGE_SIZE;
        bytes.parts(start..end, |at, len, place| {
            let Place::At(place) = place else {
                into.clear(X86, at - start, len);
                return Ok(());
            };
            let memory = Memory::of_unfilled(into, at - start, len).ok_or(Errno::EIO)?;
            bytes.fs.disk.transfer(place / SECTOR, &memory)
        })?;
        // What a disk has there is nobody's.
        let size = bytes.size.load(Ordering::Acquire).clamp(start, end);
        into.clear(X86, size - start, end - size);
        Ok(())
    }

    fn writable(&self) -> bool {
        !self.0.fs.read_only
    }

    fn prepare(&self, wait: &mut CanWait<X86>, first: u64, count: u64) -> Result<(), Errno> {
        writeback::throttle(wait)?;
        let (start, end) = (first * PAGE_SIZE, (first + count) * PAGE_SIZE);
        self.0.reserve(start, end)
    }

    fn dirtied(&self, object: Arc<Object>) {
        writeback::dirtied(object);
    }

    fn flush(&self) -> Result<(), Errno> {
        self.0.fs.commit()
    }

    fn write(
        &self,
        _wait: &mut CanWait<X86>,
        first: u64,
        pages: &Dirty<X86>,
        len: u64,
    ) -> Result<(), Errno> {
        let memory = Memory::of_dirty(pages, 0, pages.bytes()).ok_or(Errno::EIO)?;
        let copy = |skip: u64, out: &mut [u8]| pages.copy(skip, out);
        let stored = self.0.store(first * PAGE_SIZE, &memory, len, Some(&copy))?;
        (stored == len).then_some(()).ok_or(Errno::EIO)
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        let bytes = &self.0;
        bytes.fs.left(bytes.number);
        if bytes.unnamed.load(Ordering::Acquire) {
            bytes.fs.free_later(bytes.number);
        }
    }
}
