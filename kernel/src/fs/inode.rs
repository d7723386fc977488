//! `Inode`: what a file system puts behind a name. `FileOps`: what an open file can do.
//!
//! The naming layer (`dentry`, `path`) calls the directory operations of `Inode`, one at a time for a directory. They
//! happen under the dentry's spin lock, and do not sleep, unless the file system says that it does (`sleeps`). An
//! inode that leaves its last name is returned to the caller, to be dropped when no lock is held.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::ops::Range;
use core::sync::atomic::AtomicI32;

use super::attr::{Attr, AttrChange, Kind};
use super::file::File;
use super::iobuf::IoBuf;
use super::path::Path;
use super::pipe::PipeBuf;
use super::poll::{Notify, Ready};
use crate::SysResult;
use crate::dev::flight::Job;
use mm::Errno;
use mm::phys::FolioRef;
use mm::table::Caching;

/// Shared page cache of a regular file.
pub type Object = mm::object::FileObject<crate::arch::X86>;

/// Where a symbolic link leads.
pub enum Link {
    /// To this path.
    Text(Vec<u8>),
    /// Straight to this file (`/proc/PID/fd/N`), whatever its name; the text is what `readlink` shows.
    Jump(Path),
}

/// What a mapping of a file is made from.
pub enum Mappable {
    /// The file's page cache.
    Object(Arc<Object>),
    /// Memory that begins at the offset that was asked for.
    Window(Arc<Object>),
    /// A folio that the kernel has made.
    Buffer(FolioRef<crate::arch::X86>),
    /// Physical memory: where, how many bytes from the offset on, and how it is cached.
    Raw {
        first: u64,
        len: u64,
        caching: Caching,
    },
    /// Zero pages of the mapping's own (`/dev/zero`).
    Anonymous,
}

/// Facts for `statfs`.
#[derive(Clone, Copy, Debug)]
pub struct FsStat {
    pub magic: u64,
    pub blocks: u64,
    pub free: u64,
    pub files: u64,
    pub files_free: u64,
}

/// A file as the file system knows it, without a name and without being open.
pub trait Inode: Send + Sync + Any {
    fn attr(&self) -> Attr;

    fn kind(&self) -> Kind {
        Kind::of_mode(self.attr().mode).unwrap_or(Kind::Regular)
    }

    fn set_attr(&self, _change: &AttrChange) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// Whether dentries of this directory's children may be kept: false where names come and go by themselves.
    fn cacheable(&self) -> bool {
        true
    }

    /// Whether the directory operations sleep. All inodes of a file system say the same.
    fn sleeps(&self) -> bool {
        false
    }

    /// A mount whose root this is has come or gone (`by` is 1 or -1).
    fn mounted(&self, _by: isize) {}

    fn lookup(&self, _name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::ENOTDIR)
    }

    /// Makes a file, directory or node called `name`; `mode` has type and permission bits.
    fn create(&self, _name: &[u8], _mode: u32, _rdev: u64) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::EPERM)
    }

    /// Makes a regular file without a name (O_TMPFILE).
    fn create_unnamed(&self, _mode: u32) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn symlink(&self, _name: &[u8], _target: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::EPERM)
    }

    /// Gives `inode`, which is of this file system, another name.
    fn link(&self, _name: &[u8], _inode: &Arc<dyn Inode>) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// Takes a name away; `dir` says whether it must be a directory (then an empty one) or must not.
    fn unlink(&self, _name: &[u8], _dir: bool) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::EPERM)
    }

    /// Moves `old` of this directory to `new` of `to`; with `exchange` the two swap. Returns what was replaced.
    fn rename(
        &self,
        _old: &[u8],
        _to: &Arc<dyn Inode>,
        _new: &[u8],
        _exchange: bool,
    ) -> Result<Option<Arc<dyn Inode>>, Errno> {
        Err(Errno::EPERM)
    }

    fn readlink(&self) -> Result<Link, Errno> {
        Err(Errno::EINVAL)
    }

    fn truncate(&self, _len: u64) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// An extended attribute: its name as programs have it, `user.mime`. `ENODATA`: no such one. `EOPNOTSUPP`: none are kept here.
    fn xattr(&self, _name: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        Ok(Vec::new())
    }

    /// `flags` as `setxattr` has them.
    fn set_xattr(&self, _name: &[u8], _value: &[u8], _flags: u32) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn remove_xattr(&self, _name: &[u8]) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn statfs(&self) -> FsStat;

    /// The file system's data is where it stays (syncfs).
    fn sync_fs(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// The operations of a new open file on this inode. May sleep (a FIFO waits for its peer).
    fn open(self: Arc<Self>, path: &Path, flags: u32) -> Result<Arc<dyn FileOps>, Errno>;

    /// Whether opening for writing fails with EROFS.
    fn read_only(&self) -> bool {
        false
    }

    /// How many have the file open for writing or, below zero, how many run it. `None`: nobody asks.
    fn writers(&self) -> Option<&AtomicI32> {
        None
    }

    /// The concrete type, for file systems to find their own.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// Collects directory entries; `false` from `add` means the buffer is full.
pub trait DirSink {
    /// `next` is the position after this entry.
    fn add(&mut self, ino: u64, next: u64, kind: Kind, name: &[u8]) -> bool;
}

/// What an open file can do. `pos` is where to start and is moved by what was done; streams ignore it.
pub trait FileOps: Send + Sync {
    fn read(&self, _file: &File, _buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        Err(Errno::EINVAL)
    }

    fn write(&self, _file: &File, _buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        Err(Errno::EINVAL)
    }

    /// As `write`; to `append` is to write at the end, whatever the file's flags say. For files that have an end.
    fn put(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64, _append: bool) -> SysResult {
        self.write(file, buf, pos)
    }

    /// As `read`, of what is in memory: EAGAIN where it would wait for a disk. EOPNOTSUPP: the file does not tell.
    fn read_cached(&self, _file: &File, _buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        Err(Errno::EOPNOTSUPP)
    }

    /// As `read` and `write`, whatever O_NONBLOCK says: EAGAIN where they would wait for what another program does. For files that
    /// can make one wait for that.
    fn try_read(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.read(file, buf, pos)
    }

    fn try_write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.write(file, buf, pos)
    }

    /// Begins a transfer at `pos` of the front of `buf`, as parts of `job`. `None`: this one cannot end by itself, and nothing was begun.
    fn begin(
        &self,
        _file: &File,
        _buf: &mut IoBuf<'_>,
        _pos: u64,
        _write: bool,
        _job: &Arc<Job>,
    ) -> Option<SysResult> {
        None
    }

    /// Up to `most` bytes at `pos`, which moves, as a reference to a page; `None` at the end. `nonblock`: EAGAIN
    /// where a socket would wait. EINVAL: the file cannot be spliced from.
    fn splice_read(
        &self,
        file: &File,
        pos: &mut u64,
        most: usize,
        _nonblock: bool,
    ) -> Result<Option<PipeBuf>, Errno> {
        if !self.splices_by_copy() {
            return Err(Errno::EINVAL);
        }
        PipeBuf::copied(most, |buf| self.read(file, buf, pos))
    }

    /// Whether to splice is to read and to write, if the file does not say how it goes otherwise.
    fn splices_by_copy(&self) -> bool {
        false
    }

    /// As `write`, of bytes that come from a pipe or another file. EINVAL: the file cannot be spliced to.
    fn splice_write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        if !self.splices_by_copy() {
            return Err(Errno::EINVAL);
        }
        self.write(file, buf, pos)
    }

    /// Whether the file has a position: pipes and terminals have none (ESPIPE).
    fn seekable(&self) -> bool {
        true
    }

    /// Whether positions are addresses, of which the upper half is as good as the lower.
    fn unsigned_offset(&self) -> bool {
        false
    }

    /// The size that SEEK_END counts from.
    fn size(&self) -> u64 {
        0
    }

    /// Whether SEEK_END, SEEK_DATA and SEEK_HOLE mean anything (else EINVAL).
    fn has_end(&self) -> bool {
        true
    }

    /// SEEK_DATA (or, with `hole`, SEEK_HOLE) from `pos`.
    fn seek_data(&self, pos: u64, hole: bool) -> Result<u64, Errno> {
        let size = self.size();
        if pos >= size {
            return Err(Errno::ENXIO);
        }
        Ok(if hole { size } else { pos })
    }

    fn is_dir(&self) -> bool {
        false
    }

    /// Hands the entries from `*pos` on to `sink` and moves `*pos`.
    fn readdir(&self, _file: &File, _pos: &mut u64, _sink: &mut dyn DirSink) -> Result<(), Errno> {
        Err(Errno::ENOTDIR)
    }

    /// What the file is ready for. With `watcher` it is also told of later changes; register first, then look.
    fn poll(&self, _file: &File, _watcher: Option<&Arc<dyn Notify>>) -> Ready {
        Ready::IN | Ready::OUT
    }

    /// Whether epoll accepts the file (regular files and directories: EPERM).
    fn pollable(&self) -> bool {
        false
    }

    fn ioctl(&self, _file: &File, _cmd: u32, _arg: u64) -> SysResult {
        Err(Errno::ENOTTY)
    }

    fn mmap(&self, _file: &File) -> Result<Mappable, Errno> {
        Err(Errno::ENODEV)
    }

    /// The same for files that have several memories, told apart by the offset; and how many bytes are to be mapped.
    fn mmap_at(&self, file: &File, _offset: u64, _len: u64) -> Result<Mappable, Errno> {
        self.mmap(file)
    }

    /// Whether a shared mapping with write permission fails with EPERM (memfd seals).
    fn mmap_write_denied(&self) -> bool {
        false
    }

    fn fallocate(&self, _mode: u32, _offset: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn fsync(&self) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// How often its data could not be written, and why: `FileObject::failures`.
    fn failures(&self) -> u64 {
        0
    }

    /// Writes what is dirty of the bytes of `range`, without making sure that it stays (sync_file_range).
    fn write_back(&self, _range: Range<u64>) -> Result<(), Errno> {
        Ok(())
    }

    /// The bytes of `range` will be read soon or, if not `needed`, no more. Nothing is promised.
    fn advise(&self, _range: Range<u64>, _needed: bool) {}

    /// Further lines of /proc/PID/fdinfo.
    fn info(&self, _out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        Ok(())
    }

    /// The last reference to the open file goes.
    fn release(&self, _file: &File) {}

    /// The concrete type, where a system call needs it (pipe sizes, epoll, eventfd).
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}
