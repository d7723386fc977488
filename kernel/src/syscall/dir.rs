//! Names: directories, links, renaming, and where a process stands.

use alloc::vec::Vec;
use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{check_range, only, path, real_file};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::copy_to_user;
use crate::fs::attr::Kind;
use crate::fs::inode::{DirSink, Link};
use crate::fs::{Path, access, caller, mount, names};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_getdents64, getdents64),
    (sys::__NR_getcwd, getcwd),
    (sys::__NR_chdir, chdir),
    (sys::__NR_fchdir, fchdir),
    (sys::__NR_chroot, chroot),
    (sys::__NR_umask, umask),
    (sys::__NR_mkdir, mkdir),
    (sys::__NR_mkdirat, mkdirat),
    (sys::__NR_mknod, mknod),
    (sys::__NR_mknodat, mknodat),
    (sys::__NR_rmdir, rmdir),
    (sys::__NR_unlink, unlink),
    (sys::__NR_unlinkat, unlinkat),
    (sys::__NR_link, link),
    (sys::__NR_linkat, linkat),
    (sys::__NR_symlink, symlink),
    (sys::__NR_symlinkat, symlinkat),
    (sys::__NR_readlink, readlink),
    (sys::__NR_readlinkat, readlinkat),
    (sys::__NR_rename, rename),
    (sys::__NR_renameat, renameat),
    (sys::__NR_renameat2, renameat2),
];

/// `struct linux_dirent64` records, collected before they are copied out.
struct Records {
    bytes: Vec<u8>,
    limit: usize,
}

impl DirSink for Records {
    fn add(&mut self, ino: u64, next: u64, kind: Kind, name: &[u8]) -> bool {
        let len = (19 + name.len() + 1).next_multiple_of(8);
        if self.bytes.len() + len > self.limit {
            return false;
        }
        let end = self.bytes.len() + len;
        self.bytes.extend_from_slice(&ino.to_ne_bytes());
        self.bytes.extend_from_slice(&next.to_ne_bytes());
        self.bytes.extend_from_slice(&(len as u16).to_ne_bytes());
        self.bytes.push(kind.dirent_type());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

fn getdents64(f: &mut TrapFrame) -> SysResult {
    let file = real_file(f.arg(0))?;
    if !file.ops().is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let limit = (f.arg(2) as u32 as usize).min(32 << 10);
    check_range(f.arg(1), limit as u64)?;
    if file.dentry().is_unlinked() {
        return Err(Errno::ENOENT);
    }
    let mut sink = Records {
        bytes: Vec::new(),
        limit,
    };
    sink.bytes
        .try_reserve_exact(limit)
        .map_err(|_| Errno::ENOMEM)?;
    file.with_pos(|pos| {
        let before = *pos;
        file.ops().readdir(&file, pos, &mut sink)?;
        if sink.bytes.is_empty() {
            // Nothing fits, or nothing is left: a second look with room tells which.
            let mut probe = Probe(false);
            file.ops().readdir(&file, &mut { before }, &mut probe)?;
            return if probe.0 { Err(Errno::EINVAL) } else { Ok(0) };
        }
        copy_to_user(f.arg(1), &sink.bytes).inspect_err(|_| *pos = before)?;
        Ok(sink.bytes.len())
    })
}

/// Whether there is an entry at all.
struct Probe(bool);

impl DirSink for Probe {
    fn add(&mut self, _ino: u64, _next: u64, _kind: Kind, _name: &[u8]) -> bool {
        self.0 = true;
        false
    }
}

fn getcwd(f: &mut TrapFrame) -> SysResult {
    let fs = caller::fs();
    let cwd = fs.cwd();
    if cwd.dentry.is_unlinked() {
        return Err(Errno::ENOENT);
    }
    let (mut text, reached) = cwd.text(&fs.root());
    if !reached {
        let mut outside = b"(unreachable)".to_vec();
        outside.append(&mut text);
        text = outside;
    }
    text.push(0);
    if text.len() > crate::fs::path::PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if text.len() as u64 > f.arg(1) {
        return Err(Errno::ERANGE);
    }
    copy_to_user(f.arg(0), &text)?;
    Ok(text.len())
}

fn directory(place: Path) -> Result<Path, Errno> {
    if !place.dentry.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    access::may(&place.inode().attr(), access::EXEC)?;
    Ok(place)
}

fn chdir(f: &mut TrapFrame) -> SysResult {
    let to = directory(names::resolve(
        sys::AT_FDCWD,
        &path(f.arg(0))?,
        true,
        false,
    )?)?;
    caller::fs().set_cwd(to);
    Ok(0)
}

fn fchdir(f: &mut TrapFrame) -> SysResult {
    let to = directory(super::args::file(f.arg(0))?.path().clone())?;
    caller::fs().set_cwd(to);
    Ok(0)
}

fn chroot(f: &mut TrapFrame) -> SysResult {
    let to = directory(names::resolve(
        sys::AT_FDCWD,
        &path(f.arg(0))?,
        true,
        false,
    )?)?;
    if !caller::capable(caller::CAP_SYS_CHROOT) {
        return Err(Errno::EPERM);
    }
    caller::fs().set_root(to);
    Ok(0)
}

fn umask(f: &mut TrapFrame) -> SysResult {
    Ok(caller::fs().set_umask(f.arg(0) as u32) as usize)
}

fn do_mkdir(dirfd: i32, addr: u64, mode: u64) -> SysResult {
    names::make(
        dirfd,
        &path(addr)?,
        Kind::Directory.bits() | mode as u32 & 0o1777,
        0,
    )
    .map(|()| 0)
}

fn mkdir(f: &mut TrapFrame) -> SysResult {
    do_mkdir(sys::AT_FDCWD, f.arg(0), f.arg(1))
}

fn mkdirat(f: &mut TrapFrame) -> SysResult {
    do_mkdir(f.arg(0) as i32, f.arg(1), f.arg(2))
}

fn do_mknod(dirfd: i32, addr: u64, mode: u64, dev: u64) -> SysResult {
    let mode = mode as u32;
    let mode = if mode & sys::S_IFMT == 0 {
        mode | sys::S_IFREG
    } else {
        mode
    };
    match Kind::of_mode(mode) {
        Some(Kind::Directory) => return Err(Errno::EPERM),
        None | Some(Kind::Symlink) => return Err(Errno::EINVAL),
        Some(Kind::Char | Kind::Block) if !caller::capable(caller::CAP_MKNOD) => {
            return Err(Errno::EPERM);
        }
        Some(_) => {}
    }
    // The call takes the 32-bit encoding of a device number.
    names::make(
        dirfd,
        &path(addr)?,
        mode & (sys::S_IFMT | 0o7777),
        dev as u32 as u64,
    )
    .map(|()| 0)
}

fn mknod(f: &mut TrapFrame) -> SysResult {
    do_mknod(sys::AT_FDCWD, f.arg(0), f.arg(1), f.arg(2))
}

fn mknodat(f: &mut TrapFrame) -> SysResult {
    do_mknod(f.arg(0) as i32, f.arg(1), f.arg(2), f.arg(3))
}

fn rmdir(f: &mut TrapFrame) -> SysResult {
    names::unlink(sys::AT_FDCWD, &path(f.arg(0))?, true).map(|()| 0)
}

fn unlink(f: &mut TrapFrame) -> SysResult {
    names::unlink(sys::AT_FDCWD, &path(f.arg(0))?, false).map(|()| 0)
}

fn unlinkat(f: &mut TrapFrame) -> SysResult {
    let flags = only(f.arg(2), sys::AT_REMOVEDIR)?;
    names::unlink(f.arg(0) as i32, &path(f.arg(1))?, flags != 0).map(|()| 0)
}

fn do_link(from: (u64, u64), to: (u64, u64), flags: u32) -> SysResult {
    if flags & !(sys::AT_SYMLINK_FOLLOW | sys::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let follow = flags & sys::AT_SYMLINK_FOLLOW != 0;
    let old = names::resolve(
        from.0 as i32,
        &path(from.1)?,
        follow,
        flags & sys::AT_EMPTY_PATH != 0,
    )?;
    names::link(old, to.0 as i32, &path(to.1)?).map(|()| 0)
}

const CWD: u64 = sys::AT_FDCWD as u64;

fn link(f: &mut TrapFrame) -> SysResult {
    do_link((CWD, f.arg(0)), (CWD, f.arg(1)), 0)
}

fn linkat(f: &mut TrapFrame) -> SysResult {
    do_link((f.arg(0), f.arg(1)), (f.arg(2), f.arg(3)), f.arg(4) as u32)
}

fn symlink(f: &mut TrapFrame) -> SysResult {
    names::symlink(&path(f.arg(0))?, sys::AT_FDCWD, &path(f.arg(1))?).map(|()| 0)
}

fn symlinkat(f: &mut TrapFrame) -> SysResult {
    names::symlink(&path(f.arg(0))?, f.arg(1) as i32, &path(f.arg(2))?).map(|()| 0)
}

fn do_readlink(dirfd: i32, addr: u64, buf: u64, size: u64) -> SysResult {
    if size as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let text = path(addr)?;
    let empty = text.is_empty() && dirfd != sys::AT_FDCWD;
    let place = names::resolve(dirfd, &text, false, empty)?;
    if place.dentry.kind() != Kind::Symlink {
        return Err(if empty { Errno::ENOENT } else { Errno::EINVAL });
    }
    let target = match place.inode().readlink()? {
        Link::Text(t) => t,
        Link::Jump(to) => to.display(&mount::root()),
    };
    let n = target.len().min(size as usize & 0x7fff_ffff);
    copy_to_user(buf, &target[..n])?;
    Ok(n)
}

fn readlink(f: &mut TrapFrame) -> SysResult {
    do_readlink(sys::AT_FDCWD, f.arg(0), f.arg(1), f.arg(2))
}

fn readlinkat(f: &mut TrapFrame) -> SysResult {
    do_readlink(f.arg(0) as i32, f.arg(1), f.arg(2), f.arg(3))
}

fn do_rename(from: (u64, u64), to: (u64, u64), flags: u32) -> SysResult {
    let (old, new) = (path(from.1)?, path(to.1)?);
    names::rename((from.0 as i32, &old), (to.0 as i32, &new), flags).map(|()| 0)
}

fn rename(f: &mut TrapFrame) -> SysResult {
    do_rename((CWD, f.arg(0)), (CWD, f.arg(1)), 0)
}

fn renameat(f: &mut TrapFrame) -> SysResult {
    do_rename((f.arg(0), f.arg(1)), (f.arg(2), f.arg(3)), 0)
}

fn renameat2(f: &mut TrapFrame) -> SysResult {
    do_rename((f.arg(0), f.arg(1)), (f.arg(2), f.arg(3)), f.arg(4) as u32)
}
