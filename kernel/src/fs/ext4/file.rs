//! Where a file's bytes are, and their way to the page cache.
//!
//! Protocol: who moves bytes between memory and the blocks of a file holds `blocks` shared from the look at the map until the
//! device is done; who gives the file blocks, or takes them away, holds it alone and forgets the map. So no transfer
//! meets a block that has become another file's.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use mm::object::cache::{Source, Unfilled};
use mm::wait::CanWait;
use mm::{Errno, PAGE_SIZE};
use rsext4::InodeNumber;
use rsext4::file::{FileExtentState, FileExtentTarget};
use spin::Mutex as Spin;

use super::Fs;
use crate::arch::X86;
use crate::dev::block::{Memory, SECTOR};
use crate::fs::blockdev::make_room;
use crate::sync::RwLock;

/// Bytes of a file that are looked up at once, and extents.
const WINDOW: u64 = 64 << 20;
const RUNS: usize = 512;

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
}

/// Where the bytes of `range` are; what is in no run is a hole or was never written, and reads as zeroes.
pub struct Map {
    range: Range<u64>,
    runs: Vec<Run>,
}

struct Run {
    logical: Range<u64>,
    physical: u64,
}

impl Map {
    /// The bytes from `at` on that lie in a row, up to `end`: how many, and where on the disk.
    pub fn run(&self, at: u64, end: u64) -> (u64, Option<u64>) {
        let next = self.runs.partition_point(|run| run.logical.end <= at);
        match self.runs.get(next) {
            Some(run) if run.logical.start <= at => {
                let len = run.logical.end.min(end) - at;
                (len, Some(run.physical + (at - run.logical.start)))
            }
            Some(run) => (run.logical.start.min(end) - at, None),
            None => (end - at, None),
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
            .with(|volume| volume.inode_extents(self.number, start, len, target, RUNS))?;
        let mut range = start..start.saturating_add(len);
        if !found.complete {
            let last = found.extents.last().ok_or(Errno::EUCLEAN)?;
            range.end = last.logical_start.saturating_add(last.length);
        }
        let written = |e: &&rsext4::file::FileExtent| e.state == FileExtentState::Initialized;
        let mut runs: Vec<Run> = Vec::new();
        for extent in found.extents.iter().filter(written) {
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
            runs.push(Run {
                logical: extent.logical_start..end,
                physical: extent.physical_start,
            });
        }
        let map = Arc::new(Map { range, runs });
        *self.map.lock() = Some(map.clone());
        Ok(map)
    }

    /// The blocks are others now. The caller holds `blocks` alone.
    #[expect(dead_code, reason = "for the writes that come next")]
    pub fn forget_map(&self) {
        *self.map.lock() = None;
    }

    /// Calls `f` for the parts of `range`, each in a row on the disk or without a place there. The caller holds `blocks`.
    fn parts(
        &self,
        range: Range<u64>,
        mut f: impl FnMut(u64, u64, Option<u64>) -> Result<(), Errno>,
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

/// A file's pages come from here.
pub struct FileSource(pub Arc<Bytes>);

impl Source<X86> for FileSource {
    fn read(&self, wait: &mut CanWait<X86>, first: u64, into: &Unfilled) -> Result<(), Errno> {
        make_room(wait)?;
        let bytes = &self.0;
        let _blocks = bytes.blocks.read();
        let start = first * PAGE_SIZE;
        let end = start + into.pfns().count() as u64 * PAGE_SIZE;
        bytes.parts(start..end, |at, len, place| {
            let Some(place) = place else {
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
