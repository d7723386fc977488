//! A disk, as `rsext4` sees it.
//!
//! Metadata goes through a bounce buffer of our own. The bytes of files do not: `rsext4` decides where they go and in which
//! order, and their frames go to the device from where they are. It is handed a slice of [`Lent`]'s blank bytes in their
//! place, and the write that comes out here with a part of that slice is made from the same part of the frames.
//!
//! The superblock comes last: what was written before the next flush is on the disk before it. `rsext4` 0.9.2 unmounts with one
//! transaction whose superblock says that the journal need not be looked at; its other blocks might be missing where a power cut
//! finds that one written.
//!
//! It is looked at before `rsext4` sees it ([`Size`]): who mounts asks whether there is memory for what it says, and a journal may not
//! bring more afterwards.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem::transmute;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use mm::{Errno, PAGE_SIZE};
use rsext4::{
    BlockIo, DeviceCapabilities, DeviceGeometry, ErrorContext, Ext4Error, Ext4ErrorKind,
    Ext4Result, SectorId,
};
use spin::Mutex as Spin;

use super::size::Size;
use crate::dev::block::{Bounce, Disk, Memory, SECTOR, Way};

/// Bytes of frames that can be lent at once.
pub const LENT: usize = 64 << 10;

/// Frames that stand behind blank bytes while a file system writes.
pub struct Lent {
    blank: Box<[u8]>,
    memory: Spin<Option<Memory<'static>>>,
    /// Bytes that went out of them.
    moved: AtomicUsize,
}

impl Lent {
    pub fn new() -> Result<Arc<Self>, Errno> {
        let mut blank = Vec::new();
        blank.try_reserve_exact(LENT).map_err(|_| Errno::ENOMEM)?;
        blank.resize(LENT, 0);
        Ok(Arc::new(Lent {
            blank: blank.into_boxed_slice(),
            memory: Spin::new(None),
            moved: AtomicUsize::new(0),
        }))
    }

    /// Calls `f` with `len` blank bytes that stand for `memory`; also says how many of them reached the device. One at a
    /// time: the caller has the file system's lock.
    pub fn lend<R>(
        &self,
        memory: Memory<'_>,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> (R, usize) {
        // SAFETY: only `behind` shows it to anybody, to writes that `f` waits for: the caller's lock keeps others away. It is gone
        // before the borrow that it came with ends; panics abort.
        let memory = unsafe { transmute::<Memory<'_>, Memory<'static>>(memory) };
        self.moved.store(0, Ordering::Relaxed);
        let before = self.memory.lock().replace(memory);
        assert!(before.is_none(), "two write at a time");
        let result = f(&self.blank[..len]);
        *self.memory.lock() = None;
        (result, self.moved.load(Ordering::Relaxed))
    }

    /// What `bytes` stand for, if they are of the blank ones.
    fn behind(&self, bytes: &[u8]) -> Option<Memory<'static>> {
        let at = (bytes.as_ptr() as usize).checked_sub(self.blank.as_ptr() as usize)?;
        if at >= self.blank.len() {
            return None;
        }
        let part = self
            .memory
            .lock()
            .as_ref()?
            .part(at as u64, bytes.len() as u64)?;
        self.moved.fetch_add(bytes.len(), Ordering::Relaxed);
        Some(part)
    }
}

/// See the module.
pub struct Io {
    disk: &'static dyn Disk,
    bounce: Bounce,
    lent: Arc<Lent>,
    /// The superblock's block, which waits for a flush: its first sector, and what it will hold.
    last: Option<(u64, Vec<u8>)>,
    /// What the superblock may say.
    size: Size,
}

/// The sectors of the superblock.
const SUPER: Range<u64> = 2..4;

/// Copies the sectors of `from` that `to` has as well; each begins at a sector of the disk.
fn overlay(to: &mut [u8], to_at: u64, from: &[u8], from_at: u64) {
    let end = |at: u64, bytes: &[u8]| at + bytes.len() as u64 / SECTOR;
    let both = to_at.max(from_at)..end(to_at, to).min(end(from_at, from));
    let within =
        |at: u64| ((both.start - at) * SECTOR) as usize..((both.end - at) * SECTOR) as usize;
    if !both.is_empty() {
        to[within(to_at)].copy_from_slice(&from[within(from_at)]);
    }
}

impl Io {
    /// `ENOMEM`: the file system is larger than `rsext4` can have it; `EIO`.
    pub fn new(disk: &'static dyn Disk, lent: Arc<Lent>) -> Result<Self, Errno> {
        let mut io = Io {
            disk,
            bounce: Bounce::new()?,
            lent,
            last: None,
            size: Size::default(),
        };
        let mut sector = [0; SECTOR as usize];
        io.bytes(SUPER.start * SECTOR, &mut sector)?;
        io.size = io.says(&sector)?;
        Ok(io)
    }

    /// How large the file system is.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The same, as a superblock's first sector says.
    fn says(&mut self, sector: &[u8]) -> Result<Size, Errno> {
        Size::of(sector, &mut |at, into| self.bytes(at, into))
    }

    /// Bytes of the disk, wherever they begin; behind its end, which `rsext4` does not pass, zeroes.
    fn bytes(&mut self, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        let block = u64::from(self.disk.block());
        let first = at - at % block;
        let end = at.saturating_add(into.len() as u64);
        if end > self.disk.sectors() * SECTOR {
            into.fill(0);
            return Ok(());
        }
        let len = (end - first).next_multiple_of(block);
        let memory = Memory::of_bounce(&mut self.bounce, Way::Fill, len as usize);
        self.disk.transfer(first / SECTOR, &memory)?;
        let from = &self.bounce.bytes()[(at - first) as usize..];
        into.copy_from_slice(&from[..into.len()]);
        Ok(())
    }

    /// Through the bounce buffer.
    fn put(&mut self, mut sector: u64, buffer: &[u8]) -> Ext4Result<()> {
        for part in buffer.chunks(Bounce::LEN) {
            self.bounce.bytes()[..part.len()].copy_from_slice(part);
            let memory = Memory::of_bounce(&mut self.bounce, Way::Drain, part.len());
            self.disk
                .transfer(sector, &memory)
                .map_err(|_| Ext4Error::io())?;
            sector += part.len() as u64 / SECTOR;
        }
        Ok(())
    }

    /// The device's sectors in a number of its blocks, if they are there.
    fn sector(&self, block: SectorId, bytes: usize) -> Ext4Result<u64> {
        let first = block.raw().checked_mul(u64::from(self.disk.block()));
        let end = first.and_then(|first| first.checked_add(bytes as u64));
        match (first, end) {
            (Some(first), Some(end)) if end <= self.disk.sectors() * SECTOR => Ok(first / SECTOR),
            _ => Err(Ext4Error::io()),
        }
    }
}

impl BlockIo for Io {
    fn write(&mut self, buffer: &[u8], block: SectorId, _count: u32) -> Ext4Result<()> {
        let sector = self.sector(block, buffer.len())?;
        if let Some(memory) = self.lent.behind(buffer) {
            return self
                .disk
                .transfer(sector, &memory)
                .map_err(|_| Ext4Error::io());
        }
        let end = sector + buffer.len() as u64 / SECTOR;
        if sector <= SUPER.start && end >= SUPER.end && buffer.len() as u64 <= PAGE_SIZE {
            match &mut self.last {
                // Before the size of its blocks is known it is written by itself.
                Some((at, bytes)) if *at <= sector && *at + bytes.len() as u64 / SECTOR >= end => {
                    overlay(bytes, *at, buffer, sector);
                }
                last => *last = Some((sector, buffer.to_vec())),
            }
            return Ok(());
        }
        self.put(sector, buffer)
    }

    fn read(&mut self, buffer: &mut [u8], block: SectorId, _count: u32) -> Ext4Result<()> {
        let first = self.sector(block, buffer.len())?;
        let mut sector = first;
        for part in buffer.chunks_mut(Bounce::LEN) {
            let memory = Memory::of_bounce(&mut self.bounce, Way::Fill, part.len());
            self.disk
                .transfer(sector, &memory)
                .map_err(|_| Ext4Error::io())?;
            part.copy_from_slice(&self.bounce.bytes()[..part.len()]);
            sector += part.len() as u64 / SECTOR;
        }
        if let Some((at, bytes)) = &self.last {
            overlay(buffer, first, bytes, *at);
        }
        let at = SUPER
            .start
            .checked_sub(first)
            .map(|n| (n * SECTOR) as usize);
        let Some(sector) = at.and_then(|at| buffer.get(at..at + SECTOR as usize)) else {
            return Ok(());
        };
        match self.says(sector) {
            Ok(size) if size.fits(&self.size) => Ok(()),
            Err(Errno::EIO) => Err(Ext4Error::io()),
            _ => Err(Ext4Error::no_memory()),
        }
    }

    fn geometry(&self) -> DeviceGeometry {
        let block = self.disk.block();
        DeviceGeometry::new(block, self.disk.sectors() * SECTOR / u64::from(block))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        DeviceCapabilities {
            read_only: self.disk.read_only(),
            flush: true,
            barrier: false,
            fua: false,
            discard: false,
        }
    }

    fn flush(&mut self) -> Ext4Result<()> {
        self.disk.flush().map_err(|_| Ext4Error::io())?;
        let Some((sector, bytes)) = self.last.take() else {
            return Ok(());
        };
        let written = self.put(sector, &bytes);
        if written.is_err() {
            self.last = Some((sector, bytes));
        }
        written?;
        self.disk.flush().map_err(|_| Ext4Error::io())
    }
}

/// An error as the log has it: what, and where `rsext4` met it.
pub struct Said(pub Ext4Error);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.context() {
            Some(ErrorContext::Operation { op }) => write!(f, "{} ({op})", self.0.kind()),
            _ => write!(f, "{}", self.0.kind()),
        }
    }
}

/// What Linux says in the same case.
pub fn errno(error: Ext4Error) -> Errno {
    match error.kind() {
        Ext4ErrorKind::Corrupted | Ext4ErrorKind::ChecksumMismatch => Errno::EUCLEAN,
        Ext4ErrorKind::ReadOnly | Ext4ErrorKind::JournalAborted => Errno::EROFS,
        Ext4ErrorKind::NoSpace => Errno::ENOSPC,
        Ext4ErrorKind::NoMemory => Errno::ENOMEM,
        Ext4ErrorKind::TooManyLinks => Errno::EMLINK,
        Ext4ErrorKind::PermissionDenied => Errno::EPERM,
        Ext4ErrorKind::NotFound => Errno::ENOENT,
        Ext4ErrorKind::AlreadyExists => Errno::EEXIST,
        Ext4ErrorKind::NotDirectory => Errno::ENOTDIR,
        Ext4ErrorKind::IsDirectory => Errno::EISDIR,
        Ext4ErrorKind::NotEmpty => Errno::ENOTEMPTY,
        Ext4ErrorKind::Busy => Errno::EBUSY,
        Ext4ErrorKind::FileTooLarge | Ext4ErrorKind::Overflow => Errno::EFBIG,
        Ext4ErrorKind::Unsupported
        | Ext4ErrorKind::UnsupportedFeature
        | Ext4ErrorKind::UnsupportedCapability => Errno::EOPNOTSUPP,
        Ext4ErrorKind::InvalidInput
        | Ext4ErrorKind::BadSuperblock
        | Ext4ErrorKind::InvalidMagic => Errno::EINVAL,
        _ => Errno::EIO,
    }
}
