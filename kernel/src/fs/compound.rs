//! /sys/kernel/debug/compound: a large folio of the kernel's own for programs to map, as a driver's buffer is. Each open file has
//! one, 2 MiB of zeroes in a row; its pages are counted on its head (PIN-2), by every process that maps or pins them.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::any::Any;

use super::attr::{Attr, AttrCell, Kind};
use super::file::File;
use super::inode::{FileOps, FsStat, Inode, Mappable};
use super::path::Path;
use super::pseudo::Kindred;
use crate::arch::X86;
use mm::Errno;
use mm::addr::Order;
use mm::phys::{Folio, FolioRef, Hw, Use};

const ORDER: u8 = 9;

pub fn inode(kin: Kindred, ino: u64) -> Arc<dyn Inode> {
    let attr = AttrCell::new(kin.dev, ino, Kind::Regular, 0o600, 0);
    Arc::new(Node(kin, attr))
}

struct Node(Kindred, AttrCell);

impl Inode for Node {
    fn attr(&self) -> Attr {
        self.1.get(0, 0)
    }

    fn statfs(&self) -> FsStat {
        self.0.stat()
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        let order = Order::new(ORDER).ok_or(Errno::EINVAL)?;
        let frame = X86.phys().alloc_order(X86, order, Use::Kernel);
        let frame = frame.ok_or(Errno::ENOMEM)?.zero(X86);
        Ok(Arc::new(Buffer(Folio::make_large(X86, frame))))
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

struct Buffer(FolioRef<X86>);

impl FileOps for Buffer {
    fn mmap(&self, _file: &File) -> Result<Mappable, Errno> {
        Ok(Mappable::Buffer(self.0.clone()))
    }
}
