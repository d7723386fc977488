//! mount and umount: the file systems the kernel has, and bind mounts.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use linux_raw_sys::general as sys;

use super::Handler;
use super::args::path;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::read_cstr;
use crate::dev::block;
use crate::fs::attr::{Kind, major, minor};
use crate::fs::dentry::Dentry;
use crate::fs::mount::{self, KEPT_FLAGS};
use crate::fs::{caller, debugfs, devfs, ext4, names, procfs, sysfs, tmpfs, writeback};
use crate::task::space::can_wait;
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[(sys::__NR_mount, do_mount), (sys::__NR_umount2, umount2)];

/// Options are at most a page.
const DATA_MAX: usize = 4096;

fn text(addr: u64) -> Result<String, Errno> {
    if addr == 0 {
        return Ok(String::new());
    }
    let bytes = path(addr)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn do_mount(f: &mut TrapFrame) -> SysResult {
    if !caller::capable(caller::CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let (source, fstype) = (text(f.arg(0))?, text(f.arg(2))?);
    let at = names::resolve(sys::AT_FDCWD, &path(f.arg(1))?, true, false)?;
    // A magic number in the upper half, from before Linux 2.4, means nothing.
    let flags = match f.arg(3) as u32 {
        old if old >> 16 == 0xc0ed => old & 0xffff,
        new => new,
    };
    if flags & sys::MS_REMOUNT != 0 {
        if !Arc::ptr_eq(&at.dentry, &at.mnt.root) {
            return Err(Errno::EINVAL);
        }
        // What was mounted to be read only stays so.
        if flags & sys::MS_RDONLY == 0 && at.inode().read_only() {
            return Err(Errno::EROFS);
        }
        at.mnt.flags.store(flags & KEPT_FLAGS, Ordering::Relaxed);
        return Ok(0);
    }
    if flags & (sys::MS_SHARED | sys::MS_PRIVATE | sys::MS_SLAVE | sys::MS_UNBINDABLE) != 0 {
        // One namespace: every mount is private, and nothing else is offered.
        let private = flags & (sys::MS_SHARED | sys::MS_SLAVE | sys::MS_UNBINDABLE) == 0;
        let is_root = Arc::ptr_eq(&at.dentry, &at.mnt.root);
        return if private && is_root {
            Ok(0)
        } else {
            Err(Errno::EINVAL)
        };
    }
    if flags & sys::MS_MOVE != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & sys::MS_BIND != 0 {
        let from = names::resolve(sys::AT_FDCWD, source.as_bytes(), true, false)?;
        let inherited = from.mnt.flags.load(Ordering::Relaxed);
        mount::attach(
            at,
            from.dentry.clone(),
            from.mnt.fstype,
            &from.mnt.source,
            inherited,
        )?;
        return Ok(0);
    }
    crate::memory::headroom()?;
    let (root, name): (Arc<Dentry>, &'static str) = match fstype.as_str() {
        "tmpfs" => (
            Dentry::root(tmpfs::new_root(tmpfs_mode(f.arg(4))?)),
            "tmpfs",
        ),
        "proc" => (procfs::new_root()?, "proc"),
        "debugfs" => (debugfs::new_root()?, "debugfs"),
        "sysfs" => (sysfs::new_root()?, "sysfs"),
        "devtmpfs" => (devfs::root()?, "devtmpfs"),
        "ext4" => (ext4_root(&source, flags, f.arg(4))?, "ext4"),
        _ => return Err(Errno::ENODEV),
    };
    if !at.dentry.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let source = if source.is_empty() {
        "none"
    } else {
        source.as_str()
    };
    mount::attach(at, root, name, source, flags)?;
    Ok(0)
}

/// The file system on the disk that `source` names. Options: those that say what we do anyway.
fn ext4_root(source: &str, flags: u32, options: u64) -> Result<Arc<Dentry>, Errno> {
    if options != 0 {
        let options = read_cstr(options, DATA_MAX)?;
        let known = |o: &[u8]| {
            matches!(
                o,
                b"" | b"defaults" | b"errors=remount-ro" | b"data=ordered"
            )
        };
        if !options.split(|c| *c == b',').all(known) {
            return Err(Errno::EINVAL);
        }
    }
    let node = names::resolve(sys::AT_FDCWD, source.as_bytes(), true, false)?;
    if node.dentry.kind() != Kind::Block {
        return Err(Errno::ENOTBLK);
    }
    let rdev = node.inode().attr().rdev;
    let known = block::known(major(rdev), minor(rdev)).ok_or(Errno::ENXIO)?;
    ext4::mount(known, flags & sys::MS_RDONLY != 0)
}

/// The `mode=` among tmpfs's options; sizes are accepted and not enforced, unknown options are refused.
fn tmpfs_mode(addr: u64) -> Result<u32, Errno> {
    let mut mode = 0o1777;
    if addr == 0 {
        return Ok(mode);
    }
    let data = read_cstr(addr, DATA_MAX)?;
    let data = core::str::from_utf8(&data).map_err(|_| Errno::EINVAL)?;
    for option in data.split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some(("mode", v)) => {
                mode = u32::from_str_radix(v, 8).map_err(|_| Errno::EINVAL)? & 0o7777
            }
            Some(("size" | "nr_blocks" | "nr_inodes" | "uid" | "gid" | "huge" | "mpol", _)) => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(mode)
}

fn umount2(f: &mut TrapFrame) -> SysResult {
    const KNOWN: u32 = sys::MNT_FORCE | sys::MNT_DETACH | sys::MNT_EXPIRE | sys::UMOUNT_NOFOLLOW;
    let flags = f.arg(1) as u32;
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if !caller::capable(caller::CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let at = names::resolve(
        sys::AT_FDCWD,
        &path(f.arg(0))?,
        flags & sys::UMOUNT_NOFOLLOW == 0,
        false,
    )?;
    let _ = at.inode().sync_fs();
    mount::detach(at, flags & sys::MNT_DETACH != 0)?;
    // Dirty files, and work that is left, keep a file system.
    writeback::sync(&mut can_wait());
    ext4::settle();
    Ok(0)
}
