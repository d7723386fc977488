//! /proc: what the kernel knows of processes and of itself, in Linux's formats.
//!
//! The root lists fixed files and, after them, one directory for each process; those come and go, so nothing below
//! is kept in the dentry tree. A process's files hold its pid and look the process up when read: ESRCH once it is
//! gone.

mod clear_refs;
mod cpu;
mod kpage;
mod maps;
mod memory;
mod mounts;
mod opened;
mod pagemap;
mod process;
mod status;
mod system;

use alloc::sync::Arc;
use core::any::Any;
use spin::Once;

use super::attr::{Attr, AttrCell, Kind, anonymous_dev};
use super::caller;
use super::dentry::Dentry;
use super::file::File;
use super::inode::{DirSink, FileOps, FsStat, Inode, Link};
use super::path::Path;
use super::pseudo::{Kindred, LinkInode, dots, lasting_ino};
use alloc::vec::Vec;
use mm::Errno;

/// What /proc's inodes share.
pub fn kin() -> Kindred {
    static KIN: Once<Kindred> = Once::new();
    *KIN.call_once(|| Kindred {
        dev: anonymous_dev(),
        magic: 0x9fa0,
    })
}

/// Listing positions of processes begin here.
const PROCESSES: u64 = 256;

struct Root {
    attrs: AttrCell,
    fixed: Vec<(&'static str, Arc<dyn Inode>)>,
}

/// A new tree.
pub fn new_root() -> Result<Arc<Dentry>, Errno> {
    let ino = lasting_ino();
    let mut fixed = system::entries(ino);
    fixed.extend(kpage::entries());
    fixed.push((
        "self",
        LinkInode::inode(kin(), lasting_ino(), 0o777, || {
            Ok(Link::Text(alloc::format!("{}", caller::ids().pid).into()))
        }),
    ));
    fixed.push((
        "thread-self",
        LinkInode::inode(kin(), lasting_ino(), 0o777, || {
            let (pid, tid) = (caller::ids().pid, caller::tid());
            Ok(Link::Text(alloc::format!("{pid}/task/{tid}").into()))
        }),
    ));
    fixed.push((
        "mounts",
        LinkInode::inode(kin(), lasting_ino(), 0o777, || {
            Ok(Link::Text(b"self/mounts".to_vec()))
        }),
    ));
    let attrs = AttrCell::new(kin().dev, ino, Kind::Directory, 0o555, 0);
    Ok(Dentry::root(Arc::new(Root { attrs, fixed })))
}

/// A decimal number without leading zeros.
fn number(name: &[u8]) -> Option<u32> {
    if name.is_empty() || name.len() > 10 || name[0] == b'0' && name.len() > 1 {
        return None;
    }
    name.iter().try_fold(0u32, |n, c| {
        let digit = c.is_ascii_digit().then(|| u32::from(c - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

impl Inode for Root {
    fn attr(&self) -> Attr {
        self.attrs.get(0, 0)
    }

    fn kind(&self) -> Kind {
        Kind::Directory
    }

    fn cacheable(&self) -> bool {
        false
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        if let Some((_, inode)) = self.fixed.iter().find(|(n, _)| n.as_bytes() == name) {
            return Ok(inode.clone());
        }
        let pid = number(name).ok_or(Errno::ENOENT)?;
        process::directory(pid)
    }

    fn create(&self, _name: &[u8], _mode: u32, _rdev: u64) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::ENOENT)
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
        Ok(self)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl FileOps for Root {
    fn is_dir(&self) -> bool {
        true
    }

    fn readdir(&self, _file: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result<(), Errno> {
        let own = self.attrs.ino();
        if !dots(own, own, pos, sink) {
            return Ok(());
        }
        if *pos < PROCESSES {
            for (name, inode) in self.fixed.iter().skip(*pos as usize - 2) {
                if !sink.add(inode.attr().ino, *pos + 1, inode.kind(), name.as_bytes()) {
                    return Ok(());
                }
                *pos += 1;
            }
            *pos = PROCESSES;
        }
        while let Ok(from) = u32::try_from(*pos - PROCESSES) {
            let Some(p) = crate::task::table::next_process(from.max(1)) else {
                break;
            };
            let next = PROCESSES + u64::from(p.pid) + 1;
            let name = alloc::format!("{}", p.pid);
            if !sink.add(
                process::dir_ino(p.pid),
                next,
                Kind::Directory,
                name.as_bytes(),
            ) {
                break;
            }
            *pos = next;
        }
        Ok(())
    }
}
