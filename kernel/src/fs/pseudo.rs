//! Building blocks of /proc and /sys: directories with fixed entries, and files whose text is made when read.
//!
//! A text file is made anew whenever a read starts at offset 0, and kept by the open file for the reads after it,
//! so that one pass over it is consistent.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::attr::{Attr, AttrCell, Kind};
use super::file::File;
use super::inode::{DirSink, FileOps, FsStat, Inode, Link};
use super::iobuf::IoBuf;
use super::path::Path;
use super::pipe::PipeBuf;
use super::poll::{Notify, Ready};
use crate::SysResult;
use crate::sync::Mutex;
use mm::Errno;

/// Text in the making; running out of memory is an error, not a panic.
#[derive(Default)]
pub struct Text(pub Vec<u8>);

impl Text {
    pub fn bytes(&mut self, b: &[u8]) -> fmt::Result {
        self.0.try_reserve(b.len()).map_err(|_| fmt::Error)?;
        self.0.extend_from_slice(b);
        Ok(())
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.bytes(s.as_bytes())
    }
}

/// Makes a file's text.
pub trait Source: Send + Sync + 'static {
    fn make(&self, out: &mut Text) -> fmt::Result;

    /// ESRCH and the like, asked before `make`.
    fn check(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn write(&self, _text: &[u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
}

impl<F: Fn(&mut Text) -> fmt::Result + Send + Sync + 'static> Source for F {
    fn make(&self, out: &mut Text) -> fmt::Result {
        self(out)
    }
}

/// What a pseudo file system is.
#[derive(Clone, Copy)]
pub struct Kindred {
    pub dev: u64,
    pub magic: u64,
}

impl Kindred {
    pub fn stat(self) -> FsStat {
        FsStat {
            magic: self.magic,
            blocks: 0,
            free: 0,
            files: 0,
            files_free: 0,
        }
    }
}

/// A fresh inode number for a lasting pseudo inode. Numbers of short-lived ones lie above.
pub fn lasting_ino() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where the numbers of short-lived inodes begin.
pub const PASSING_INO: u64 = 1 << 32;

/// A file with made text.
pub struct TextInode {
    kin: Kindred,
    attrs: AttrCell,
    source: Box<dyn Source>,
}

impl TextInode {
    pub fn inode(kin: Kindred, ino: u64, perm: u32, source: impl Source) -> Arc<dyn Inode> {
        Arc::new(TextInode {
            kin,
            attrs: AttrCell::new(kin.dev, ino, Kind::Regular, perm, 0),
            source: Box::new(source),
        })
    }
}

impl Inode for TextInode {
    fn attr(&self) -> Attr {
        self.attrs.get(0, 0)
    }

    fn kind(&self) -> Kind {
        Kind::Regular
    }

    fn truncate(&self, _len: u64) -> Result<(), Errno> {
        // `echo x >/proc/...` truncates first.
        Ok(())
    }

    fn statfs(&self) -> FsStat {
        self.kin.stat()
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        self.source.check()?;
        Ok(Arc::new(TextFile {
            inode: self,
            text: Mutex::new(None),
        }))
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

struct TextFile {
    inode: Arc<TextInode>,
    text: Mutex<Option<Vec<u8>>>,
}

impl FileOps for TextFile {
    fn read(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let mut text = self.text.lock();
        if *pos == 0 || text.is_none() {
            self.inode.source.check()?;
            let mut fresh = Text::default();
            self.inode
                .source
                .make(&mut fresh)
                .map_err(|_| Errno::ENOMEM)?;
            *text = Some(fresh.0);
        }
        let bytes = text.as_deref().unwrap_or_default();
        let from = usize::try_from(*pos).unwrap_or(usize::MAX).min(bytes.len());
        if from == bytes.len() || buf.left() == 0 {
            return Ok(0);
        }
        let n = buf.put(&bytes[from..])?;
        *pos += n as u64;
        Ok(n)
    }

    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let mut bytes = [0u8; 256];
        let n = buf.take(&mut bytes)?;
        self.inode.source.write(&bytes[..n])?;
        *pos += n as u64;
        Ok(n)
    }

    fn splice_read(
        &self,
        file: &File,
        pos: &mut u64,
        most: usize,
        _nonblock: bool,
    ) -> Result<Option<PipeBuf>, Errno> {
        PipeBuf::copied(most, |buf| self.read(file, buf, pos))
    }

    fn poll(&self, _file: &File, _watcher: Option<&Arc<dyn Notify>>) -> Ready {
        Ready::READ | Ready::WRITE
    }
}

/// A directory whose entries never change.
pub struct FixedDir {
    kin: Kindred,
    attrs: AttrCell,
    parent: u64,
    entries: Vec<(&'static str, Arc<dyn Inode>)>,
}

impl FixedDir {
    pub fn inode(
        kin: Kindred,
        parent: u64,
        ino: u64,
        entries: Vec<(&'static str, Arc<dyn Inode>)>,
    ) -> Arc<dyn Inode> {
        Self::with_mode(kin, parent, ino, 0o555, entries)
    }

    /// A directory for root alone.
    pub fn private(
        kin: Kindred,
        parent: u64,
        ino: u64,
        entries: Vec<(&'static str, Arc<dyn Inode>)>,
    ) -> Arc<dyn Inode> {
        Self::with_mode(kin, parent, ino, 0o700, entries)
    }

    fn with_mode(
        kin: Kindred,
        parent: u64,
        ino: u64,
        perm: u32,
        entries: Vec<(&'static str, Arc<dyn Inode>)>,
    ) -> Arc<dyn Inode> {
        Arc::new(FixedDir {
            kin,
            attrs: AttrCell::new(kin.dev, ino, Kind::Directory, perm, 0),
            parent,
            entries,
        })
    }
}

impl Inode for FixedDir {
    fn attr(&self) -> Attr {
        let dirs = self
            .entries
            .iter()
            .filter(|(_, i)| i.kind() == Kind::Directory)
            .count() as u32;
        Attr {
            nlink: 2 + dirs,
            ..self.attrs.get(0, 0)
        }
    }

    fn kind(&self) -> Kind {
        Kind::Directory
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let found = self.entries.iter().find(|(n, _)| n.as_bytes() == name);
        found.map(|(_, i)| i.clone()).ok_or(Errno::ENOENT)
    }

    fn create(&self, _name: &[u8], mode: u32, _rdev: u64) -> Result<Arc<dyn Inode>, Errno> {
        match Kind::of_mode(mode) {
            Some(Kind::Regular) => Err(Errno::EACCES),
            _ => Err(Errno::EPERM),
        }
    }

    fn statfs(&self) -> FsStat {
        self.kin.stat()
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        Ok(self)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl FileOps for FixedDir {
    fn is_dir(&self) -> bool {
        true
    }

    fn readdir(&self, _file: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result<(), Errno> {
        if !dots(self.attrs.ino(), self.parent, pos, sink) {
            return Ok(());
        }
        for (name, inode) in self.entries.iter().skip(*pos as usize - 2) {
            if !sink.add(inode.attr().ino, *pos + 1, inode.kind(), name.as_bytes()) {
                break;
            }
            *pos += 1;
        }
        Ok(())
    }
}

/// Lists `.` and `..`, which take positions 0 and 1. False: the sink is full.
pub fn dots(own: u64, parent: u64, pos: &mut u64, sink: &mut dyn DirSink) -> bool {
    while *pos < 2 {
        let (ino, name): (u64, &[u8]) = if *pos == 0 {
            (own, b".")
        } else {
            (parent, b"..")
        };
        if !sink.add(ino, *pos + 1, Kind::Directory, name) {
            return false;
        }
        *pos += 1;
    }
    true
}

/// A symbolic link that is made when read.
pub struct LinkInode<F> {
    kin: Kindred,
    ino: u64,
    perm: u32,
    target: F,
}

impl<F: Fn() -> Result<Link, Errno> + Send + Sync + 'static> LinkInode<F> {
    pub fn inode(kin: Kindred, ino: u64, perm: u32, target: F) -> Arc<dyn Inode> {
        Arc::new(LinkInode {
            kin,
            ino,
            perm,
            target,
        })
    }
}

impl<F: Fn() -> Result<Link, Errno> + Send + Sync + 'static> Inode for LinkInode<F> {
    fn attr(&self) -> Attr {
        AttrCell::new(self.kin.dev, self.ino, Kind::Symlink, self.perm, 0).get(64, 0)
    }

    fn kind(&self) -> Kind {
        Kind::Symlink
    }

    fn readlink(&self) -> Result<Link, Errno> {
        (self.target)()
    }

    fn statfs(&self) -> FsStat {
        self.kin.stat()
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        Err(Errno::ELOOP)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
