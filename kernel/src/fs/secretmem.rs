//! memfd_secret: files whose pages the kernel itself cannot reach.
//!
//! Their bytes are reached through shared mappings only. The object takes each page out of the direct map when a
//! fault makes it (`mm::object`), so nothing here may look at one: no read, no write, no private mapping to be copied
//! from, and a size that is set once and leaves no page to be cut.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use super::attr::{Attr, AttrCell, AttrChange, Kind, anonymous_dev};
use super::content::MAX_SIZE;
use super::file::File;
use super::inode::{FileOps, FsStat, Inode, Mappable, Object};
use super::mapped;
use super::path::Path;
use crate::arch::X86;
use crate::sync::Mutex;
use mm::Errno;

struct Secret {
    attrs: AttrCell,
    object: Arc<Object>,
    /// Held while the size is looked at and set.
    resize: Mutex<()>,
}

/// A new one, of no size.
pub fn create(flags: u32) -> Result<Arc<File>, Errno> {
    static DEV: spin::Once<u64> = spin::Once::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let ino = NEXT.fetch_add(1, Ordering::Relaxed);
    let dev = *DEV.call_once(anonymous_dev);
    let node = Arc::new(Secret {
        attrs: AttrCell::new(dev, ino, Kind::Regular, 0o600, 0),
        object: Object::new_secret(X86),
        resize: Mutex::new(()),
    });
    let path = Path::unnamed(node.clone() as Arc<dyn Inode>, b"/secretmem", true);
    Ok(File::new(path, node, flags))
}

impl Inode for Secret {
    fn attr(&self) -> Attr {
        self.attrs.get(self.object.size(), 0)
    }

    fn set_attr(&self, change: &AttrChange) -> Result<(), Errno> {
        self.attrs.set(change);
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), Errno> {
        let _held = self.resize.lock();
        if self.object.size() != 0 {
            return Err(Errno::EINVAL);
        }
        if len > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        self.object.extend(len);
        Ok(())
    }

    fn statfs(&self) -> FsStat {
        FsStat {
            magic: linux_raw_sys::general::SECRETMEM_MAGIC.into(),
            blocks: 0,
            free: 0,
            files: 0,
            files_free: 0,
        }
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        Err(Errno::ENXIO)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl FileOps for Secret {
    fn seekable(&self) -> bool {
        false
    }

    fn mmap(&self, file: &File) -> Result<Mappable, Errno> {
        mapped::remember(&self.object, file, self.attrs.dev(), self.attrs.ino());
        Ok(Mappable::Object(self.object.clone()))
    }
}
