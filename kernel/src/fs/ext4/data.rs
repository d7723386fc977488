//! Open files of ext4.
//!
//! Who changes the size, or writes past the page cache, holds the node's `io` alone; so does `write`, as on Linux, and no copy into a
//! page runs while a direct write drops it. Direct reads share `io`; so does, while it is begun, what ends by itself ([`Flight`]).

use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::Ordering;
use linux_raw_sys::general as sys;
use mm::gup::{PageSlot, Read, Write};
use mm::{Errno, PAGE_SIZE};
use rsext4::file::{PreallocationOptions, RangeOperation, ZeroRangeOptions};

use super::file::{Flight, Place};
use super::node::{Body, Node, Regular};
use crate::SysResult;
use crate::dev::block::{PIECES, SECTOR, Way};
use crate::dev::flight::Job;
use crate::fs::blockdev::{copied, moved};
use crate::fs::caller;
use crate::fs::direct;
use crate::fs::file::File;
use crate::fs::inode::{DirSink, FileOps, Mappable};
use crate::fs::iobuf::{Front, IoBuf};
use crate::fs::mapped;
use crate::sync::WriteGuard;
use crate::task::space::can_wait;

impl Regular {
    /// `io` alone, and nothing is in flight.
    fn alone(&self) -> WriteGuard<'_, ()> {
        let io = self.io.write();
        self.bytes.still();
        io
    }

    /// Straight from the disk into the caller's pages, which it is the caller's affair to have aligned. Holes are zeroes.
    /// What fails, fails whole, as ext4 on Linux: no part of it counts.
    fn read_direct(&self, buf: &mut IoBuf<'_>, pos: &mut u64, end: u64) -> SysResult {
        let bytes = &self.bytes;
        let (start, mut at) = (*pos, *pos);
        while at < end {
            let blocks = bytes.blocks.read();
            let map = bytes.map(at, end)?;
            let (run, place) = map.run(at, end.min(map.end()));
            drop(blocks);
            at += if place == Place::Hole || place == Place::Kept {
                let len = run.min(buf.left() as u64) as usize;
                let n = buf.put_zeros(len);
                copied(n);
                if n < len {
                    return Err(Errno::EFAULT);
                }
                n
            } else {
                let sectors = (end - at).next_multiple_of(SECTOR);
                let Some(front) = buf.front() else {
                    break;
                };
                // 0: it was punched out meanwhile.
                let n = self.fill(front, sectors, at, end)?;
                buf.skip(n);
                n
            } as u64;
        }
        *pos = at;
        Ok((at - start) as usize)
    }

    /// One transfer of at most `most` bytes: as far as the file lies in a row there.
    fn fill(&self, front: Front<'_>, most: u64, pos: u64, end: u64) -> SysResult {
        let slots = &mut [PageSlot::EMPTY; PIECES];
        let (pages, skip, len) = front.pin::<Write>(most, SECTOR, slots)?;
        let bytes = &self.bytes;
        let _blocks = bytes.blocks.read();
        let map = bytes.map(pos, pos + len)?;
        let (run, place) = map.run(pos, (pos + len).min(map.end()));
        let Place::At(first) = place else {
            return Ok(0);
        };
        let run = run - run % SECTOR;
        let memory = pages.to_fill(skip, run).ok_or(Errno::EFAULT)?;
        bytes.fs.disk.transfer(first / SECTOR, &memory)?;
        // The last sector is read whole; the file has less.
        let n = run.min(end - pos) as usize;
        moved(n);
        Ok(n)
    }

    /// Straight from the caller's pages to the disk, as far as whole blocks go; all of that or, as ext4 on Linux, nothing that
    /// makes the file longer. The caller holds `io` alone.
    fn write_direct(&self, buf: &mut IoBuf<'_>, pos: &mut u64, end: u64) -> SysResult {
        let (start, mut at) = (*pos, *pos);
        while at < end {
            let Some(front) = buf.front() else {
                break;
            };
            match self.drain(front, end - at, at) {
                Ok(0) => break,
                Ok(n) => {
                    buf.skip(n);
                    at += n as u64;
                }
                Err(errno) => {
                    let size = self.content.size();
                    if self.bytes.size.load(Ordering::Acquire) > size {
                        self.bytes.resize(size)?;
                    }
                    return Err(errno);
                }
            }
        }
        self.content.object().extend(at);
        *pos = at;
        Ok((at - start) as usize)
    }

    fn drain(&self, front: Front<'_>, most: u64, pos: u64) -> SysResult {
        let slots = &mut [PageSlot::EMPTY; PIECES];
        let (pages, skip, len) = front.pin::<Read>(most, SECTOR, slots)?;
        let block = self.bytes.fs.block;
        let len = len - len % block;
        if len == 0 {
            // Less than a block is left of the piece, or can be pinned.
            return match front {
                Front::User(span) if most.min(span.len as u64) >= block => Err(Errno::EFAULT),
                _ => Ok(0),
            };
        }
        self.bytes.reserve(pos, pos + len)?;
        let memory = pages.to_drain(skip, len).ok_or(Errno::EFAULT)?;
        let n = self.bytes.store(pos, &memory, len, None)? as usize;
        moved(n);
        Ok(n)
    }

    /// Begins one transfer, as far as the file lies in a row there. The caller shares `io`, and all of `pos..end` is on the disk.
    fn launch(&self, front: Front<'_>, pos: u64, end: u64, way: Way, job: &Arc<Job>) -> SysResult {
        let bytes = &self.bytes;
        let blocks = bytes.blocks.read();
        let map = bytes.map(pos, end)?;
        let (run, place) = map.run(pos, end.min(map.end()));
        drop(blocks);
        let Place::At(first) = place else {
            return Err(Errno::EIO);
        };
        let (disk, landing) = (bytes.fs.disk, bytes.fs.landing);
        direct::launch(disk, landing, front, first / SECTOR, run, way, job)
    }

    /// The same through the cache, for what is no whole block, and then on the disk.
    fn write_edges(&self, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let start = *pos;
        let n = self.content.write(buf, pos, false, true)?;
        copied(n);
        self.content.write_back(start..*pos)?;
        self.content.invalidate(start..*pos);
        Ok(n)
    }
}

impl Node {
    fn file(&self) -> Result<&Regular, Errno> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Dirty pages and times are on the disk.
    pub(super) fn write_all(&self) -> Result<(), Errno> {
        let written = match &self.body {
            Body::File(file) => file.content.write_back(0..!(PAGE_SIZE - 1)),
            _ => Ok(()),
        };
        written.and(self.write_times())
    }

    /// truncate.
    pub(super) fn cut(&self, file: &Regular, len: u64) -> Result<(), Errno> {
        self.fs.ask()?;
        let _io = file.alone();
        if len < file.content.size() {
            let old = file.content.size();
            file.content.truncate(len)?;
            if file.bytes.size.load(Ordering::Acquire) < old {
                // Blocks that were reserved for what is dirty go, too.
                file.bytes.resize(old)?;
            }
            file.bytes.resize(len)?;
        } else {
            if len > file.content.size() {
                if len > caller::file_limit() {
                    return Err(caller::file_too_large());
                }
                if len > self.fs.file_end {
                    return Err(Errno::EFBIG);
                }
                file.bytes.resize(len)?;
            }
            file.content.truncate(len)?;
        }
        self.modified();
        Ok(())
    }

    fn is_direct(&self, file: &File, buf: &IoBuf<'_>, pos: u64) -> Result<bool, Errno> {
        if file.flags() & sys::O_DIRECT == 0 || buf.front().is_none() {
            return Ok(false);
        }
        direct::aligned(self.fs.disk, buf, pos).map(|()| true)
    }

    /// The caller shares `io`. `None`: not all of it is on the disk, in whole blocks that stay what they are.
    fn begin_direct(
        &self,
        regular: &Regular,
        buf: &mut IoBuf<'_>,
        pos: u64,
        write: bool,
        job: &Arc<Job>,
    ) -> Result<Option<usize>, Errno> {
        let (bytes, object) = (&regular.bytes, regular.content.object());
        let wanted = pos.saturating_add(buf.left() as u64);
        let (way, unit, end) = match write {
            true => (Way::Drain, self.fs.block, wanted),
            false => {
                let end = wanted.min(regular.content.size());
                (Way::Fill, u64::from(self.fs.disk.block()), end)
            }
        };
        let whole = pos.is_multiple_of(unit) && end.is_multiple_of(unit);
        if pos >= end || !whole || write && end > caller::file_limit() {
            return Ok(None);
        }
        regular.content.write_back(pos..end)?;
        let size = bytes.size.load(Ordering::Acquire);
        if end > size - size % unit || !bytes.are_there(pos..end)? {
            return Ok(None);
        }
        let flight = Flight::new(bytes, object, write.then_some(pos..end));
        let (done, stopped) = direct::launch_all(buf, end - pos, |front, done| {
            regular.launch(front, pos + done, end, way, job)
        })?;
        if let Some(errno) = stopped {
            job.fail(errno);
        }
        job.keep(flight);
        Ok(Some(done))
    }

    fn write_locked(
        &self,
        regular: &Regular,
        file: &File,
        buf: &mut IoBuf<'_>,
        pos: &mut u64,
        append: bool,
    ) -> SysResult {
        if append {
            *pos = regular.content.size();
        }
        if !self.is_direct(file, buf, *pos)? {
            return regular
                .content
                .write(buf, pos, false, true)
                .inspect(|n| copied(*n));
        }
        let limit = caller::file_limit().min(self.fs.file_end);
        if *pos >= limit || !pos.is_multiple_of(self.fs.block) {
            return regular.write_edges(buf, pos);
        }
        let start = *pos;
        let end = limit.min(start.saturating_add(buf.left() as u64));
        regular.content.object().clear_tail(start);
        regular.content.write_back(start..end)?;
        let done = regular.write_direct(buf, pos, end);
        regular.content.invalidate(start..end);
        let done = done?;
        if *pos == end {
            return Ok(done);
        }
        // The end of the file.
        match regular.write_edges(buf, pos) {
            Ok(n) => Ok(done + n),
            Err(errno) if done == 0 => Err(errno),
            Err(_) => Ok(done),
        }
    }
}

impl FileOps for Node {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let regular = self.file()?;
        if *pos >= regular.content.size() {
            return Ok(0);
        }
        let n = match self.is_direct(file, buf, *pos)? {
            true => {
                let _io = regular.io.read();
                let size = regular.content.size();
                let end = size.min(pos.saturating_add(buf.left() as u64));
                if *pos >= end {
                    return Ok(0);
                }
                regular.content.write_back(*pos..end)?;
                regular.read_direct(buf, pos, end)?
            }
            false => regular.content.read(buf, pos).inspect(|n| copied(*n))?,
        };
        self.accessed(file);
        Ok(n)
    }

    fn read_cached(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let content = &self.file()?.content;
        match self.is_direct(file, buf, *pos)? {
            true => Err(Errno::EAGAIN),
            false => content.read_cached(buf, pos).inspect(|n| copied(*n)),
        }
    }

    fn write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.put(file, buf, pos, file.append())
    }

    fn put(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64, append: bool) -> SysResult {
        let regular = self.file()?;
        self.fs.ask()?;
        let io = regular.alone();
        let done = self.write_locked(regular, file, buf, pos, append);
        drop(io);
        let n = done?;
        if n > 0 {
            self.modified();
            if file.flags() & sys::O_DSYNC != 0 {
                self.fsync()?;
            }
        }
        Ok(n)
    }

    fn begin(
        &self,
        file: &File,
        buf: &mut IoBuf<'_>,
        pos: u64,
        write: bool,
        job: &Arc<Job>,
    ) -> Option<SysResult> {
        let regular = self.file().ok()?;
        let waits = file.flags() & sys::O_DSYNC != 0 || file.append();
        if write && waits || self.is_direct(file, buf, pos) != Ok(true) {
            return None;
        }
        let _io = regular.io.read();
        let begun = self.begin_direct(regular, buf, pos, write, job);
        let begun = begun.transpose()?;
        if begun.is_ok() && write {
            self.modified();
        } else if begun.is_ok() {
            self.accessed(file);
        }
        Some(begun)
    }

    fn size(&self) -> u64 {
        self.file().map_or(0, |file| file.content.size())
    }

    fn is_dir(&self) -> bool {
        Node::is_dir(self)
    }

    fn readdir(&self, file: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result<(), Errno> {
        self.accessed(file);
        self.entries(pos, sink)
    }

    fn splices_by_copy(&self) -> bool {
        !Node::is_dir(self)
    }

    /// Dirty pages are data: they are given blocks first.
    fn seek_data(&self, pos: u64, hole: bool) -> Result<u64, Errno> {
        let file = self.file()?;
        let size = file.content.size();
        if pos >= size {
            return Err(Errno::ENXIO);
        }
        file.content.write_back(pos..size)?;
        let _blocks = file.bytes.blocks.read();
        let mut at = pos;
        while at < size {
            let map = file.bytes.map(at, size)?;
            let (len, place) = map.run(at, size.min(map.end()));
            if matches!(place, Place::At(_)) != hole {
                return Ok(at);
            }
            at += len;
        }
        if hole { Ok(size) } else { Err(Errno::ENXIO) }
    }

    fn mmap(&self, file: &File) -> Result<Mappable, Errno> {
        let object = self.file().map_err(|_| Errno::ENODEV)?.content.object();
        self.accessed(file);
        mapped::remember(object, file, self.attrs.dev(), self.attrs.ino());
        Ok(Mappable::Object(object.clone()))
    }

    fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        const PUNCH: u32 = sys::FALLOC_FL_PUNCH_HOLE;
        const ZERO: u32 = sys::FALLOC_FL_ZERO_RANGE;
        let file = self.file().map_err(|_| Errno::ENODEV)?;
        let keep_size = mode & sys::FALLOC_FL_KEEP_SIZE != 0;
        let what = match mode & !sys::FALLOC_FL_KEEP_SIZE {
            0 => RangeOperation::Allocate(PreallocationOptions { keep_size }),
            PUNCH if keep_size => RangeOperation::PunchHole,
            ZERO => RangeOperation::Zero(ZeroRangeOptions { keep_size }),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.fs.file_end);
        let end = end.ok_or(Errno::EFBIG)?;
        self.fs.ask()?;
        let _io = file.alone();
        let grows = !keep_size && end > file.content.size();
        if grows && end > caller::file_limit() {
            return Err(caller::file_too_large());
        }
        let object = file.content.object();
        let hole = mode & (PUNCH | ZERO) != 0;
        if hole {
            object.punch_hole(&mut can_wait(), offset, end.min(object.size()));
        }
        file.bytes.operate(offset, end, what)?;
        if hole {
            // A mapping may have had pages read in before the disk's were gone.
            file.content.invalidate(offset..end);
        }
        if grows {
            object.clear_tail(end);
            object.extend(end);
        }
        self.modified();
        Ok(())
    }

    fn fsync(&self) -> Result<(), Errno> {
        let written = self.write_all();
        written.and(self.fs.commit())
    }

    fn failures(&self) -> u64 {
        self.file()
            .map_or(0, |file| file.content.object().failures())
    }

    fn write_back(&self, range: Range<u64>) -> Result<(), Errno> {
        self.file()
            .map_or(Ok(()), |file| file.content.write_back(range))
    }

    fn advise(&self, range: Range<u64>, needed: bool) {
        if let Ok(file) = self.file() {
            file.content.advise(range, needed);
        }
    }
}
