//! Inodes whose open files are made by a function: files of /proc that hold no text but words, at any offset.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::any::Any;

use super::super::attr::{Attr, AttrCell, Kind};
use super::super::inode::{FileOps, FsStat, Inode};
use super::super::iobuf::IoBuf;
use super::super::path::Path;
use super::kin;
use mm::Errno;

/// See the module.
pub struct Opened<F> {
    attrs: AttrCell,
    open: F,
}

impl<F: Fn() -> Result<Arc<dyn FileOps>, Errno> + Send + Sync + 'static> Opened<F> {
    pub fn inode(ino: u64, perm: u32, open: F) -> Arc<dyn Inode> {
        let attrs = AttrCell::new(kin().dev, ino, Kind::Regular, perm, 0);
        Arc::new(Opened { attrs, open })
    }
}

impl<F: Fn() -> Result<Arc<dyn FileOps>, Errno> + Send + Sync + 'static> Inode for Opened<F> {
    fn attr(&self) -> Attr {
        self.attrs.get(0, 0)
    }

    fn kind(&self) -> Kind {
        Kind::Regular
    }

    fn truncate(&self, _len: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn statfs(&self) -> FsStat {
        FsStat {
            magic: kin().magic,
            blocks: 0,
            free: 0,
            files: 0,
            files_free: 0,
        }
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        (self.open)()
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Words made before they are copied out.
pub const AT_ONCE: usize = 128;

/// Copies `words` out; how many arrived whole.
pub fn put_words(buf: &mut IoBuf<'_>, words: &[u64]) -> usize {
    let mut bytes = [0u8; AT_ONCE * 8];
    for (b, w) in bytes.chunks_exact_mut(8).zip(words) {
        b.copy_from_slice(&w.to_ne_bytes());
    }
    let len = words.len().min(AT_ONCE) * 8;
    buf.put(&bytes[..len]).unwrap_or(0) / 8
}
