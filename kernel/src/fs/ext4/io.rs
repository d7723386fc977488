//! A disk, as `rsext4` sees it.
//!
//! Metadata goes through a bounce buffer of our own. The bytes of files do not: `rsext4` decides where they go and in which
//! order, and their frames go to the device from where they are. It is handed a slice of [`Lent`]'s blank bytes in their
//! place, and the write that comes out here with a part of that slice is made from the same part of the frames.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::mem::transmute;
use core::sync::atomic::{AtomicUsize, Ordering};
use mm::Errno;
use rsext4::{
    BlockIo, DeviceCapabilities, DeviceGeometry, Ext4Error, Ext4ErrorKind, Ext4Result, SectorId,
};
use spin::Mutex as Spin;

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
    pub fn new() -> Arc<Self> {
        Arc::new(Lent {
            blank: vec![0; LENT].into_boxed_slice(),
            memory: Spin::new(None),
            moved: AtomicUsize::new(0),
        })
    }

    /// Calls `f` with `len` blank bytes that stand for `memory`; also says how many of them reached the device. One at a
    /// time: the caller has the file system's lock.
    pub fn lend<R>(
        &self,
        memory: Memory<'_>,
        len: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> (R, usize) {
        // SAFETY: only writes inside `f` use it, and it is gone before the borrow that it came with ends; panics abort.
        let memory = unsafe { transmute::<Memory<'_>, Memory<'static>>(memory) };
        self.moved.store(0, Ordering::Relaxed);
        *self.memory.lock() = Some(memory);
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
}

impl Io {
    pub fn new(disk: &'static dyn Disk, lent: Arc<Lent>) -> Result<Self, Errno> {
        let bounce = Bounce::new()?;
        Ok(Io { disk, bounce, lent })
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
        let mut sector = self.sector(block, buffer.len())?;
        if let Some(memory) = self.lent.behind(buffer) {
            return self
                .disk
                .transfer(sector, &memory)
                .map_err(|_| Ext4Error::io());
        }
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

    fn read(&mut self, buffer: &mut [u8], block: SectorId, _count: u32) -> Ext4Result<()> {
        let mut sector = self.sector(block, buffer.len())?;
        for part in buffer.chunks_mut(Bounce::LEN) {
            let memory = Memory::of_bounce(&mut self.bounce, Way::Fill, part.len());
            self.disk
                .transfer(sector, &memory)
                .map_err(|_| Ext4Error::io())?;
            part.copy_from_slice(&self.bounce.bytes()[..part.len()]);
            sector += part.len() as u64 / SECTOR;
        }
        Ok(())
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
        self.disk.flush().map_err(|_| Ext4Error::io())
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
