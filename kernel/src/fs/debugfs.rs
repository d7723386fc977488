//! debugfs: files for whoever tests the kernel.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::attr::anonymous_dev;
use super::dentry::Dentry;
use super::pseudo::{FixedDir, Kindred, Text, TextInode, lasting_ino};
use super::{blockdev, compound, gup_test};
use crate::dev::iommu;
use mm::Errno;

/// A new tree; all of them have the same files.
pub fn new_root() -> Result<Arc<Dentry>, Errno> {
    let kin = Kindred {
        dev: anonymous_dev(),
        magic: 0x6462_6720,
    };
    let (root, test) = (lasting_ino(), lasting_ino());
    let make: fn(&mut Text) -> core::fmt::Result = |out| blockdev::report(out);
    let iommu: fn(&mut Text) -> core::fmt::Result = |out| iommu::report(out);
    let tree = Vec::from([
        ("block", TextInode::inode(kin, lasting_ino(), 0o444, make)),
        ("compound", compound::inode(kin, lasting_ino())),
        ("gup_test", gup_test::inode(kin, test)),
        ("iommu", TextInode::inode(kin, lasting_ino(), 0o444, iommu)),
    ]);
    Ok(Dentry::root(FixedDir::private(kin, root, root, tree)))
}
