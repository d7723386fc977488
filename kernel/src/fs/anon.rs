//! Inodes for open files that have no name and no content of their own (eventfd, epoll, socket pairs).
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use super::attr::{Attr, AttrCell, Kind, anonymous_dev};
use super::inode::{FileOps, FsStat, Inode};
use super::path::Path;
use mm::Errno;

/// Such an inode: it shows in /proc/PID/fd and cannot be opened again.
pub struct AnonNode {
    attrs: AttrCell,
    magic: u64,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

fn dev() -> u64 {
    static DEV: spin::Once<u64> = spin::Once::new();
    *DEV.call_once(anonymous_dev)
}

impl AnonNode {
    /// A path to the one inode that all files without content share, shown as `name`.
    pub fn path(name: &[u8]) -> Path {
        static ONE: spin::Once<Arc<AnonNode>> = spin::Once::new();
        let node = ONE.call_once(|| {
            let ino = NEXT.fetch_add(1, Ordering::Relaxed);
            Arc::new(AnonNode {
                attrs: AttrCell::new(dev(), ino, Kind::Regular, 0o600, 0),
                magic: 0x0904_1934,
            })
        });
        Path::unnamed(node.clone(), name, false)
    }

    /// A path to a new socket inode.
    pub fn socket() -> Path {
        let ino = NEXT.fetch_add(1, Ordering::Relaxed);
        let attrs = AttrCell::new(dev(), ino, Kind::Socket, 0o777, 0);
        let name = alloc::format!("socket:[{ino}]");
        Path::unnamed(
            Arc::new(AnonNode {
                attrs,
                magic: 0x534f_434b,
            }),
            name.as_bytes(),
            false,
        )
    }
}

impl Inode for AnonNode {
    fn attr(&self) -> Attr {
        self.attrs.get(0, 0)
    }

    fn statfs(&self) -> FsStat {
        FsStat {
            magic: self.magic,
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
