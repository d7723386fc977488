//! Open files: what descriptors refer to.
//!
//! A `File` is Linux's open file description: path, flags and position, shared by everything that was duplicated
//! or inherited from one `open`. The position has a sleeping lock, held while a read or write that uses it runs,
//! so that two of them do not overlap.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use linux_raw_sys::general as sys;

use super::attr::Kind;
use super::dentry::Dentry;
use super::inode::{FileOps, Inode, Mappable};
use super::iobuf::IoBuf;
use super::mount;
use super::path::Path;
use super::poll::{Notify, Ready};
use crate::SysResult;
use crate::sync::Mutex;
use mm::Errno;

/// The last position that does not look like an errno.
const HIGHEST: u64 = -4096i64 as u64;
/// Flags that F_SETFL can change.
const CHANGEABLE: u32 =
    sys::O_APPEND | sys::O_NONBLOCK | sys::O_NOATIME | sys::FASYNC | sys::O_DIRECT;
/// Flags that F_GETFL shows: not those that only the open itself obeyed.
const SHOWN: u32 = !(sys::O_CREAT | sys::O_EXCL | sys::O_NOCTTY | sys::O_TRUNC | sys::O_CLOEXEC);

/// A claim on an inode: written, or run. The two exclude each other (ETXTBSY); each may be held many times.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    Write = 1,
    Run = -1,
}

impl Claim {
    fn take(self, inode: &Arc<dyn Inode>) -> Result<Option<Claim>, Errno> {
        let Some(count) = inode.writers() else {
            return Ok(None);
        };
        let step = self as i32;
        let free = |n: i32| (n.signum() != -step).then_some(n + step);
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free)
            .map_err(|_| Errno::ETXTBSY)?;
        Ok(Some(self))
    }

    fn give_back(self, inode: &Arc<dyn Inode>) {
        if let Some(count) = inode.writers() {
            count.fetch_sub(self as i32, Ordering::Relaxed);
        }
    }
}

/// ETXTBSY while somebody runs the file.
pub fn not_running(inode: &Arc<dyn Inode>) -> Result<(), Errno> {
    match inode.writers() {
        Some(n) if n.load(Ordering::Relaxed) < 0 => Err(Errno::ETXTBSY),
        _ => Ok(()),
    }
}

/// An open file.
pub struct File {
    path: Path,
    ops: Arc<dyn FileOps>,
    flags: AtomicU32,
    pos: Mutex<u64>,
    /// Somebody called `flock` on it: the last close must look.
    pub(super) flocked: AtomicBool,
    /// Given back by the last close.
    claim: Option<Claim>,
    /// The failures to write that its users know of ([`FileOps::failures`]).
    heard: AtomicU64,
}

impl File {
    /// A file opened with `flags`, its operations made by the inode.
    pub fn new(path: Path, ops: Arc<dyn FileOps>, flags: u32) -> Arc<Self> {
        File::with_claim(path, ops, flags, None)
    }

    fn with_claim(
        path: Path,
        ops: Arc<dyn FileOps>,
        flags: u32,
        claim: Option<Claim>,
    ) -> Arc<Self> {
        Arc::new(File {
            path,
            heard: AtomicU64::new(ops.failures()),
            ops,
            flags: AtomicU32::new(flags & SHOWN),
            pos: Mutex::new(0),
            flocked: AtomicBool::new(false),
            claim,
        })
    }

    /// Opens `path` itself.
    pub fn open(path: Path, flags: u32) -> Result<Arc<Self>, Errno> {
        crate::memory::headroom()?;
        let inode = path.inode().clone();
        if flags & sys::O_PATH != 0 {
            return Ok(File::new(path, Arc::new(PathOnly), flags));
        }
        let claim = match flags & sys::O_ACCMODE {
            sys::O_RDONLY => None,
            _ => Claim::Write.take(&inode)?,
        };
        File::open_claimed(path, inode, flags, claim)
    }

    /// Opens a program: nobody writes it while this file is open.
    pub fn open_to_run(path: Path) -> Result<Arc<Self>, Errno> {
        crate::memory::headroom()?;
        let inode = path.inode().clone();
        let claim = Claim::Run.take(&inode)?;
        File::open_claimed(path, inode, sys::O_RDONLY, claim)
    }

    fn open_claimed(
        path: Path,
        inode: Arc<dyn Inode>,
        flags: u32,
        claim: Option<Claim>,
    ) -> Result<Arc<Self>, Errno> {
        match inode.clone().open(&path, flags) {
            Ok(ops) => Ok(File::with_claim(path, ops, flags | sys::O_LARGEFILE, claim)),
            Err(e) => {
                if let Some(claim) = claim {
                    claim.give_back(&inode);
                }
                Err(e)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn dentry(&self) -> &Arc<Dentry> {
        &self.path.dentry
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.path.inode()
    }

    pub fn ops(&self) -> &Arc<dyn FileOps> {
        &self.ops
    }

    /// The concrete operations, if they are `T`.
    pub fn ops_as<T: 'static>(&self) -> Option<&T> {
        self.ops.as_any()?.downcast_ref()
    }

    /// As F_GETFL shows them.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// F_SETFL.
    pub fn set_flags(&self, new: u32) {
        let _ = self
            .flags
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                Some(old & !CHANGEABLE | new & CHANGEABLE)
            });
    }

    #[inline]
    pub fn readable(&self) -> bool {
        matches!(
            self.flags() & (sys::O_ACCMODE | sys::O_PATH),
            sys::O_RDONLY | sys::O_RDWR
        )
    }

    #[inline]
    pub fn writable(&self) -> bool {
        matches!(
            self.flags() & (sys::O_ACCMODE | sys::O_PATH),
            sys::O_WRONLY | sys::O_RDWR
        )
    }

    #[inline]
    pub fn nonblocking(&self) -> bool {
        self.flags() & sys::O_NONBLOCK != 0
    }

    pub fn append(&self) -> bool {
        self.flags() & sys::O_APPEND != 0
    }

    pub fn is_path_only(&self) -> bool {
        self.flags() & sys::O_PATH != 0
    }

    /// EINVAL where the end of a transfer would not be an offset.
    #[inline]
    fn fits(&self, pos: u64, buf: &IoBuf<'_>) -> Result<(), Errno> {
        match pos.checked_add(buf.left() as u64) {
            Some(end) if end <= i64::MAX as u64 => Ok(()),
            Some(_) if self.ops.unsigned_offset() => Ok(()),
            None if self.ops.unsigned_offset() => Err(Errno::EOVERFLOW),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Moves bytes of `buf` at `pos`, or at the file's position.
    #[inline]
    fn at(
        &self,
        buf: &mut IoBuf<'_>,
        pos: Option<u64>,
        go: impl FnOnce(&mut IoBuf<'_>, &mut u64) -> SysResult,
    ) -> SysResult {
        match (pos, self.ops.seekable()) {
            (Some(_), false) => Err(Errno::ESPIPE),
            (None, false) => go(buf, &mut 0),
            (Some(mut pos), true) => {
                self.fits(pos, buf)?;
                go(buf, &mut pos)
            }
            (None, true) => {
                let mut pos = self.pos.lock();
                self.fits(*pos, buf)?;
                go(buf, &mut pos)
            }
        }
    }

    /// Reads at the file's position and moves it.
    #[inline]
    pub fn read(&self, buf: &mut IoBuf<'_>) -> SysResult {
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        self.read_from(buf, None)
    }

    /// Writes at the file's position and moves it.
    #[inline]
    pub fn write(&self, buf: &mut IoBuf<'_>) -> SysResult {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        self.at(buf, None, |buf, pos| self.ops.write(self, buf, pos))
    }

    /// Reads at `pos`, leaving the file's position alone.
    pub fn read_at(&self, buf: &mut IoBuf<'_>, pos: u64) -> SysResult {
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        self.read_from(buf, Some(pos))
    }

    /// Writes at `pos` (at the end with O_APPEND, as Linux does), leaving the file's position alone.
    pub fn write_at(&self, buf: &mut IoBuf<'_>, pos: u64) -> SysResult {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        self.at(buf, Some(pos), |buf, pos| self.ops.write(self, buf, pos))
    }

    /// Reads at `pos`, or at the file's position. The caller has looked whether it is readable.
    #[inline]
    pub fn read_from(&self, buf: &mut IoBuf<'_>, pos: Option<u64>) -> SysResult {
        self.at(buf, pos, |buf, pos| self.ops.read(self, buf, pos))
    }

    /// The same as far as nothing has to be waited for: EAGAIN, or EOPNOTSUPP where that cannot be said.
    pub fn read_now(&self, buf: &mut IoBuf<'_>, pos: Option<u64>) -> SysResult {
        let kind = self.dentry().kind();
        self.at(buf, pos, |buf, pos| match kind {
            Kind::Regular | Kind::Block => self.ops.read_cached(self, buf, pos),
            _ => self.ops.try_read(self, buf, pos),
        })
    }

    /// Writes at `pos`, or at the file's position, or to `append` at its end. The caller has looked whether it is writable.
    pub fn write_to(&self, buf: &mut IoBuf<'_>, pos: Option<u64>, append: bool) -> SysResult {
        self.at(buf, pos, |buf, pos| self.ops.put(self, buf, pos, append))
    }

    /// As [`File::read_now`].
    pub fn write_now(&self, buf: &mut IoBuf<'_>, pos: Option<u64>) -> SysResult {
        let kind = self.dentry().kind();
        self.at(buf, pos, |buf, pos| match kind {
            Kind::Regular => Err(Errno::EOPNOTSUPP),
            Kind::Block => Err(Errno::EAGAIN),
            _ => self.ops.try_write(self, buf, pos),
        })
    }

    /// fsync. What could not be written since somebody asked last is reported once to each open file.
    pub fn fsync(&self) -> Result<(), Errno> {
        let synced = self.ops.fsync();
        let now = self.ops.failures();
        if self.heard.swap(now, Ordering::AcqRel) == now {
            return synced;
        }
        synced.and(Err(Errno::new(now as u32).unwrap_or(Errno::EIO)))
    }

    /// Fills `buf` from `pos` for the kernel's own use (exec), whatever the file was opened for; returns how much
    /// there was.
    pub fn read_exact_at(&self, pos: u64, buf: &mut [u8]) -> SysResult {
        let (mut pos, mut done) = (pos, 0);
        while done < buf.len() {
            let n = self
                .ops
                .read(self, &mut IoBuf::kernel_mut(&mut buf[done..]), &mut pos)?;
            if n == 0 {
                break;
            }
            done += n;
        }
        Ok(done)
    }

    /// lseek.
    pub fn seek(&self, offset: i64, whence: u32) -> SysResult {
        if self.is_path_only() {
            return Err(Errno::EBADF);
        }
        if !self.ops.seekable() {
            return Err(Errno::ESPIPE);
        }
        let mut pos = self.pos.lock();
        if self.ops.unsigned_offset() {
            let new = match whence {
                sys::SEEK_SET => offset as u64,
                sys::SEEK_CUR => pos.wrapping_add(offset as u64),
                _ => return Err(Errno::EINVAL),
            };
            if new > HIGHEST {
                return Err(Errno::EOVERFLOW);
            }
            *pos = new;
            return Ok(new as usize);
        }
        let new = match whence {
            sys::SEEK_SET => offset,
            sys::SEEK_CUR => (*pos as i64).checked_add(offset).ok_or(Errno::EINVAL)?,
            sys::SEEK_END | sys::SEEK_DATA | sys::SEEK_HOLE if !self.ops.has_end() => {
                return Err(Errno::EINVAL);
            }
            sys::SEEK_END => (self.ops.size() as i64)
                .checked_add(offset)
                .ok_or(Errno::EINVAL)?,
            sys::SEEK_DATA | sys::SEEK_HOLE => {
                let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
                self.ops.seek_data(from, whence == sys::SEEK_HOLE)? as i64
            }
            _ => return Err(Errno::EINVAL),
        };
        *pos = u64::try_from(new).map_err(|_| Errno::EINVAL)?;
        Ok(*pos as usize)
    }

    /// The position.
    pub fn pos(&self) -> u64 {
        *self.pos.lock()
    }

    /// Runs `f` on the position, locked: for readdir and for copies that use the file's own position.
    pub fn with_pos<T>(&self, f: impl FnOnce(&mut u64) -> T) -> T {
        f(&mut self.pos.lock())
    }

    pub fn poll(&self, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        self.ops.poll(self, watcher)
    }

    /// What a mapping of `len` bytes from `offset` on of this file is made from.
    pub fn mmap(&self, offset: u64, len: u64) -> Result<Mappable, Errno> {
        if self.is_path_only() {
            return Err(Errno::EBADF);
        }
        self.ops.mmap_at(self, offset, len)
    }

    /// The path as text, seen from the root of the tree.
    pub fn path_text(&self) -> alloc::vec::Vec<u8> {
        self.path.display(&mount::root())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        super::records::forget(
            super::records::Owner(core::ptr::from_ref(self) as usize),
            None,
        );
        if self.flocked.load(Ordering::Relaxed) {
            super::flock::release(self);
        }
        if let Some(claim) = self.claim {
            claim.give_back(self.inode());
        }
        let ops = self.ops.clone();
        ops.release(self);
    }
}

/// What O_PATH gives: a place, not content.
struct PathOnly;

impl FileOps for PathOnly {
    fn poll(&self, _file: &File, _watcher: Option<&Arc<dyn Notify>>) -> Ready {
        Ready::NVAL
    }
}
