//! Block special files: a disk as one long file.
//!
//! With `O_DIRECT` the caller's pages are pinned, if they are not already, and the device is given their addresses: nothing is copied. All must lie on
//! the disk's blocks then. Without it, and for the kernel's own buffers, reads and writes use the disk's page cache, which
//! mappings show too, and `writeback` writes what is dirty. A direct transfer has the dirty pages of its range written first; a
//! direct write takes what it has changed out of the cache (`mm::object::cache`, rule 5).
//!
//! The cache is there for as long as somebody has the disk open or mapped, or pages of it are dirty.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::fmt;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use linux_raw_sys::general as sys;

use super::attr::{major, minor};
use super::content::{Content, pages_of};
use super::file::File;
use super::inode::{FileOps, Mappable, Object};
use super::iobuf::{Front, IoBuf};
use super::{direct, mapped, writeback};
use crate::SysResult;
use crate::arch::X86;
use crate::arch::uaccess::{get_user, put_user};
use crate::dev::block::{self, Disk, Known, Memory, PIECES, SECTOR, Way};
use crate::dev::flight::Job;
use crate::sync::RwLock;
use crate::task::space::can_wait;
use mm::gup::{PageSlot, Read, Write};
use mm::object::cache::Dirty;
use mm::object::{Source, Unfilled};
use mm::{CanWait, Errno, PAGE_SIZE};
use spin::Mutex as Spin;

/// `ioctl` requests.
const BLKROGET: u32 = 0x125e;
const BLKGETSIZE: u32 = 0x1260;
const BLKFLSBUF: u32 = 0x1261;
const BLKSSZGET: u32 = 0x1268;
const BLKDISCARD: u32 = 0x1277;
const BLKIOMIN: u32 = 0x1278;
const BLKIOOPT: u32 = 0x1279;
const BLKALIGNOFF: u32 = 0x127a;
const BLKPBSZGET: u32 = 0x127b;
const BLKBSZGET: u32 = 0x8008_1270;
const BLKGETSIZE64: u32 = 0x8008_1272;

/// Pages of the caller's that Linux puts into one bio (BIO_MAX_VECS).
const BIO_PAGES: usize = 256;

/// Bytes that went straight between a device and its user, and those that the CPU copied.
static DIRECT: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);

/// Bytes went straight between a device and its user.
pub fn moved(bytes: usize) {
    DIRECT.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// The CPU copied them.
pub fn copied(bytes: usize) {
    COPIED.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// What `/sys/kernel/debug/block` says.
pub fn report(out: &mut dyn fmt::Write) -> fmt::Result {
    writeln!(out, "direct {}", DIRECT.load(Ordering::Relaxed))?;
    writeln!(out, "copied {}", COPIED.load(Ordering::Relaxed))
}

/// Opens the disk of a node.
pub fn open(rdev: u64, flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
    let known = block::known(major(rdev), minor(rdev)).ok_or(Errno::ENXIO)?;
    if known.disk.read_only() && flags & sys::O_ACCMODE != sys::O_RDONLY {
        return Err(Errno::EACCES);
    }
    let content = Content::of_disk(known.cache.object()?);
    Ok(Arc::new(Device { known, content }))
}

struct Device {
    known: Known,
    content: Content,
}

/// A disk as what its cached pages are read from and written to.
struct Blocks {
    disk: &'static dyn Disk,
}

impl Source<X86> for Blocks {
    fn read(&self, wait: &mut CanWait<X86>, first: u64, into: &Unfilled) -> Result<(), Errno> {
        writeback::make_room(wait)?;
        let left = self.disk.sectors() * SECTOR - first * PAGE_SIZE;
        let len = left.min(into.pfns().count() as u64 * PAGE_SIZE);
        let memory = Memory::of_unfilled(into, 0, len).ok_or(Errno::EIO)?;
        self.disk.transfer(first * (PAGE_SIZE / SECTOR), &memory)
    }

    fn writable(&self) -> bool {
        !self.disk.read_only()
    }

    fn prepare(&self, wait: &mut CanWait<X86>, _first: u64, _count: u64) -> Result<(), Errno> {
        writeback::throttle(wait)
    }

    fn dirtied(&self, object: Arc<Object>) {
        writeback::dirtied(object);
    }

    fn flush(&self) -> Result<(), Errno> {
        self.disk.flush()
    }

    fn write(
        &self,
        _wait: &mut CanWait<X86>,
        first: u64,
        pages: &Dirty<X86>,
        len: u64,
    ) -> Result<(), Errno> {
        let memory = Memory::of_dirty(pages, 0, len).ok_or(Errno::EIO)?;
        self.disk.transfer(first * (PAGE_SIZE / SECTOR), &memory)
    }
}

/// The pages of one disk that are in memory.
pub struct Cache {
    disk: &'static dyn Disk,
    /// As long as the disk is in use.
    object: Spin<Weak<Object>>,
    emptied: AtomicBool,
    /// Shared by who copies into cached pages, held alone by who drops them because a direct write has come past them: so
    /// nobody copies into a page that has left. Who shares it may be waiting for the disk.
    copies: RwLock<()>,
}

impl Cache {
    pub fn new(disk: &'static dyn Disk) -> Cache {
        Cache {
            disk,
            object: Spin::new(Weak::new()),
            emptied: AtomicBool::new(false),
            copies: RwLock::new(()),
        }
    }

    /// `ENOMEM`.
    fn object(&self) -> Result<Arc<Object>, Errno> {
        if let Some(object) = self.used() {
            return Ok(object);
        }
        let (disk, size) = (self.disk, self.disk.sectors() * SECTOR);
        let new = Object::new_paged(X86, Box::new(Blocks { disk }), size);
        writeback::register(&new)?;
        let mut object = self.object.lock();
        if let Some(object) = object.upgrade() {
            return Ok(object);
        }
        *object = Arc::downgrade(&new);
        drop(object);
        // Who looked for the disk before it went, and comes after.
        if self.emptied.load(Ordering::SeqCst) {
            self.empty();
        }
        Ok(new)
    }

    fn used(&self) -> Option<Arc<Object>> {
        self.object.lock().upgrade()
    }

    /// The disk is given what is dirty; errors are for who asks for it (`fsync`).
    pub fn write_back(&self) {
        if let Some(object) = self.used() {
            let _ = object.write_back(&mut can_wait(), 0, u64::MAX);
        }
    }

    /// There is no disk any more: whoever has it open finds nothing in it, who has it mapped gets SIGBUS.
    pub fn empty(&self) {
        self.emptied.store(true, Ordering::SeqCst);
        let _copies = self.copies.write();
        if let Some(object) = self.used() {
            object.set_size(&mut can_wait(), 0);
        }
    }

    /// The bytes of `range` on the disk are others now.
    pub fn changed(&self, range: Range<u64>) {
        let _copies = self.copies.write();
        if let Some(object) = self.used() {
            let (first, end) = pages_of(&range);
            object.invalidate(&mut can_wait(), first, end);
        }
    }
}

/// A file system takes the disk over, or gives it back: the disk has what was written to it, and the cache what is on it. `ENOMEM`: some
/// of it is still to be written.
pub fn hand_over(disk: &'static dyn Disk) -> Result<(), Errno> {
    let mut all = (0..).map_while(block::disk);
    let known = all.find(|known| ptr::addr_eq(known.disk, disk));
    if let Some(cache) = known.map(|known| known.cache)
        && let Some(object) = cache.used()
    {
        let written = object.write_back(&mut can_wait(), 0, u64::MAX);
        // What is dirty stays there.
        cache.changed(0..object.size());
        if written == Err(Errno::ENOMEM) {
            return written;
        }
    }
    Ok(())
}

/// What was written to disks is on them; errors are for who asks for one disk (`fsync`).
pub fn sync() {
    for known in (0..).map_while(block::disk) {
        let _ = known.disk.flush();
    }
}

/// Bytes that are being overwritten past the cache, which forgets them when that is over, well or not.
struct Overwritten(&'static Cache, Range<u64>);

impl Drop for Overwritten {
    fn drop(&mut self) {
        self.0.changed(self.1.clone());
    }
}

impl Device {
    fn bytes(&self) -> u64 {
        self.content.size()
    }

    /// How much of `buf` lies on the disk.
    fn room(&self, buf: &IoBuf<'_>, pos: u64) -> usize {
        (buf.left() as u64).min(self.bytes().saturating_sub(pos)) as usize
    }

    /// Up to `len` bytes straight from or to the caller's pages, while he waits. What came before memory that cannot be pinned counts, if
    /// all of it would be one bio on Linux; what the disk cannot do is an error of all.
    fn wait_for(&self, buf: &mut IoBuf<'_>, pos: &mut u64, len: usize, way: Way) -> SysResult {
        direct::aligned(self.known.disk, buf, *pos)?;
        let long = buf.pages(len) > BIO_PAGES;
        let mut done = 0;
        while done < len
            && let Some(front) = buf.front()
        {
            match self.piece(front, *pos + done as u64, (len - done) as u64, way) {
                Ok(moved) => {
                    let n = moved?;
                    buf.skip(n);
                    done += n;
                }
                Err(errno) if long || done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        *pos += done as u64;
        Ok(done)
    }

    /// One transfer from or to what is in front; at most `most` bytes.
    fn piece(&self, front: Front<'_>, pos: u64, most: u64, way: Way) -> Result<SysResult, Errno> {
        let unit = u64::from(self.known.disk.block());
        let slots = &mut [PageSlot::EMPTY; PIECES];
        match way {
            Way::Fill => {
                let (pages, skip, len) = front.pin::<Write>(most, unit, slots)?;
                let memory = pages.to_fill(skip, len).ok_or(Errno::EFAULT)?;
                Ok(self.transfer(pos, &memory))
            }
            Way::Drain => {
                let (pages, skip, len) = front.pin::<Read>(most, unit, slots)?;
                let memory = pages.to_drain(skip, len).ok_or(Errno::EFAULT)?;
                Ok(self.transfer(pos, &memory))
            }
        }
    }

    fn transfer(&self, pos: u64, memory: &Memory<'_>) -> SysResult {
        self.known.disk.transfer(pos / SECTOR, memory)?;
        let n = memory.bytes() as usize;
        moved(n);
        Ok(n)
    }

    /// What is dirty of `range` is on the disk: a direct transfer follows.
    fn settle(&self, range: Range<u64>) -> Result<(), Errno> {
        self.content.write_back(range)
    }

    fn changed(&self, range: Range<u64>) {
        self.known.cache.changed(range);
    }

    fn is_direct(file: &File, buf: &IoBuf<'_>) -> bool {
        file.flags() & sys::O_DIRECT != 0 && buf.front().is_some()
    }
}

impl FileOps for Device {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let len = self.room(buf, *pos);
        if len == 0 {
            Ok(0)
        } else if Device::is_direct(file, buf) {
            self.settle(*pos..*pos + len as u64)?;
            self.wait_for(buf, pos, len, Way::Fill)
        } else {
            self.content.read(buf, pos).inspect(|&done| copied(done))
        }
    }

    fn read_cached(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        match Device::is_direct(file, buf) {
            true => Err(Errno::EAGAIN),
            false => self.content.read_cached(buf, pos).inspect(|&n| copied(n)),
        }
    }

    fn write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        if buf.left() == 0 {
            return Ok(0);
        }
        let len = self.room(buf, *pos);
        let done = if len == 0 {
            return Err(Errno::ENOSPC);
        } else if Device::is_direct(file, buf) {
            let start = *pos;
            self.settle(start..start + len as u64)?;
            let done = self.wait_for(buf, pos, len, Way::Drain);
            // Also of one that failed: nobody knows how far it came.
            self.changed(start..start + len as u64);
            done
        } else {
            let _copies = self.known.cache.copies.read();
            // It may have been emptied meanwhile: no write makes it longer.
            if self.room(buf, *pos) == 0 {
                return Err(Errno::ENOSPC);
            }
            self.content
                .write(buf, pos, false, true)
                .inspect(|&done| copied(done))
        }?;
        if file.flags() & sys::O_DSYNC != 0 {
            self.fsync()?;
        }
        Ok(done)
    }

    fn mmap(&self, file: &File) -> Result<Mappable, Errno> {
        let cache = self.content.object();
        let attr = file.inode().attr();
        mapped::remember(cache, file, attr.dev, attr.ino);
        Ok(Mappable::Object(cache.clone()))
    }

    fn begin(
        &self,
        file: &File,
        buf: &mut IoBuf<'_>,
        pos: u64,
        write: bool,
        job: &Arc<Job>,
    ) -> Option<SysResult> {
        let len = self.room(buf, pos);
        let flush = write && file.flags() & sys::O_DSYNC != 0;
        if len == 0 || flush || !Device::is_direct(file, buf) {
            return None;
        }
        let way = if write { Way::Drain } else { Way::Fill };
        let range = pos..pos + len as u64;
        let Known { disk, landing, .. } = self.known;
        let ready = self.settle(range.clone());
        if let Err(errno) = ready.and_then(|()| direct::aligned(disk, buf, pos)) {
            return Some(Err(errno));
        }
        let long = buf.pages(len) > BIO_PAGES;
        // Linux says no more of what would be several bios.
        let told = |errno| match errno {
            Errno::EFAULT if long => Errno::EIO,
            errno => errno,
        };
        let begun = direct::launch_all(buf, len as u64, |front, done| {
            let (sector, left) = ((pos + done) / SECTOR, len as u64 - done);
            direct::launch(disk, landing, front, sector, left, way, job)
        });
        let (done, stopped) = match begun {
            Ok(begun) => begun,
            Err(errno) => return Some(Err(told(errno))),
        };
        if let Some(errno) = stopped
            && long
        {
            job.fail(told(errno));
        }
        if write {
            job.keep(Overwritten(self.known.cache, range));
        }
        Some(Ok(done))
    }

    fn splices_by_copy(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        self.bytes()
    }

    fn fsync(&self) -> Result<(), Errno> {
        let cache = self.content.object();
        cache.sync(&mut can_wait(), 0, u64::MAX)
    }

    fn failures(&self) -> u64 {
        self.content.object().failures()
    }

    fn write_back(&self, range: Range<u64>) -> Result<(), Errno> {
        self.settle(range)
    }

    fn advise(&self, range: Range<u64>, needed: bool) {
        self.content.advise(range, needed);
    }

    fn ioctl(&self, file: &File, cmd: u32, arg: u64) -> SysResult {
        let block = self.known.disk.block();
        match cmd {
            BLKGETSIZE64 => put_user(arg, &self.bytes())?,
            BLKGETSIZE => put_user(arg, &(self.bytes() / SECTOR))?,
            BLKSSZGET | BLKPBSZGET | BLKIOMIN => put_user(arg, &block)?,
            BLKBSZGET => put_user(arg, &(PAGE_SIZE as u32))?,
            BLKIOOPT | BLKALIGNOFF => put_user(arg, &0u32)?,
            BLKROGET => put_user(arg, &u32::from(self.known.disk.read_only()))?,
            BLKFLSBUF => {
                self.fsync()?;
                self.changed(0..self.bytes());
            }
            BLKDISCARD => {
                if !file.writable() {
                    return Err(Errno::EBADF);
                }
                let [start, len]: [u64; 2] = get_user(arg)?;
                let end = start.checked_add(len).filter(|end| *end <= self.bytes());
                if end.is_none() || len == 0 || (start | len) & (u64::from(block) - 1) != 0 {
                    return Err(Errno::EINVAL);
                }
                self.settle(start..start + len)?;
                let gone = self.known.disk.discard(start / SECTOR, len / SECTOR);
                self.changed(start..start + len);
                gone?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }
}
