//! Files: names, open files, and the file systems behind them.
//!
//! Rooms: `attr inode` what a file is · `dentry mount path` names · `file fdtable context flock records` what a process
//! has open and where it stands · `access` what it may · `iobuf direct` the caller's memory · `poll epoll eventfd` waiting for several things ·
//! `content tmpfs secretmem` files in memory · `ext4 writeback` files on disks · `pipe fifo socketpair packets` streams · `devfs blockdev devmem edu fb console tty ldisc random` devices · `procfs sysfs
//! debugfs` the kernel's own facts · `gup_test compound` mm::gup for tests · `cpio boot` where the root comes from · `caller` what we ask of `task`.
//!
//! Lock order, outermost first: rename lock → file position → inode (content resize, pipe ring, terminal input;
//! all sleeping) → dentry children → tmpfs directory entries → attributes. The last three are spin locks: nothing
//! is copied from or to user memory, and no inode or dentry is dropped, while one is held.

pub mod access;
pub mod anon;
pub mod attr;
pub mod blockdev;
mod boot;
pub mod caller;
pub mod compound;
pub mod console;
pub mod content;
pub mod context;
pub mod cpio;
pub mod debugfs;
pub mod dentry;
pub mod devfs;
pub mod devmem;
mod direct;
pub mod edu;
pub mod epoll;
pub mod eventfd;
pub mod ext4;
pub mod fb;
pub mod fdtable;
pub mod fifo;
pub mod file;
pub mod flock;
pub mod gup_test;
pub mod inode;
pub mod iobuf;
pub mod ldisc;
pub mod mapped;
pub mod mount;
pub mod names;
pub mod packets;
pub mod path;
pub mod pipe;
pub mod poll;
pub mod procfs;
pub mod pseudo;
pub mod random;
pub mod records;
pub mod secretmem;
pub mod socketpair;
pub mod sysfs;
pub mod tmpfs;
pub mod tty;
pub mod writeback;

use crate::dev::block::Known;

/// What is dirty in memory is on disks, and stays there; errors are for who asks for one file or file system.
pub fn sync() {
    writeback::sync(&mut crate::task::space::can_wait());
    ext4::sync();
    blockdev::sync();
}

/// Before a disk goes: the same for what is on it. A file system that is mounted from it is left clean, and answers `EIO` from then on.
pub fn sync_disk(known: Known) {
    ext4::leave(known.disk);
    known.cache.write_back();
    let _ = known.disk.flush();
}

/// Before the machine is switched off.
pub fn shut_down() {
    sync();
    ext4::shut_down();
    blockdev::sync();
}

pub use boot::{initial_files, mount_root};
pub use context::FsContext;
pub use fdtable::FdTable;
pub use file::File;
pub use inode::{Mappable, Object};
pub use iobuf::{IoBuf, Kept, KeptSpan, LongPin, UserSpan};
pub use names::{lookup_kernel, open_exec};
pub use path::Path;
