//! What files are: stat, access, file system facts.

use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{at_flags, file, path};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{Pod, put_user};
use crate::fs::attr::{Attr, Kind, Stamp, major, minor};
use crate::fs::{Path, access, names};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_stat, stat),
    (sys::__NR_lstat, lstat),
    (sys::__NR_fstat, fstat),
    (sys::__NR_newfstatat, newfstatat),
    (sys::__NR_statx, statx),
    (sys::__NR_access, access_call),
    (sys::__NR_faccessat, faccessat),
    (sys::__NR_faccessat2, faccessat2),
    (sys::__NR_statfs, statfs),
    (sys::__NR_fstatfs, fstatfs),
];

/// `struct stat`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Stat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: i64,
    blksize: i64,
    blocks: i64,
    times: [u64; 6],
    unused: [i64; 3],
}

const _: () = assert!(size_of::<Stat>() == size_of::<sys::stat>());
// SAFETY: integers without padding between them: 144 bytes, as asserted.
unsafe impl Pod for Stat {}

fn put_stat(addr: u64, a: &Attr) -> SysResult {
    let t = |s: Stamp| [s.sec as u64, u64::from(s.nsec)];
    let ([a0, a1], [m0, m1], [c0, c1]) = (t(a.atime), t(a.mtime), t(a.ctime));
    let st = Stat {
        dev: a.dev,
        ino: a.ino,
        nlink: u64::from(a.nlink),
        mode: a.mode,
        uid: a.uid,
        gid: a.gid,
        pad: 0,
        rdev: a.rdev,
        size: a.size as i64,
        blksize: 4096,
        blocks: a.blocks as i64,
        times: [a0, a1, m0, m1, c0, c1],
        unused: [0; 3],
    };
    put_user(addr, &st).map(|()| 0)
}

fn stat(f: &mut TrapFrame) -> SysResult {
    let place = names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?;
    put_stat(f.arg(1), &place.inode().attr())
}

fn lstat(f: &mut TrapFrame) -> SysResult {
    let place = names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, false, false)?;
    put_stat(f.arg(1), &place.inode().attr())
}

fn fstat(f: &mut TrapFrame) -> SysResult {
    put_stat(f.arg(1), &file(f.arg(0))?.inode().attr())
}

fn newfstatat(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(3) as u32;
    if flags & !(sys::AT_EMPTY_PATH | sys::AT_SYMLINK_NOFOLLOW | sys::AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL);
    }
    let (empty, follow) = at_flags(flags);
    let text = path(f.arg(1))?;
    if text.is_empty() && empty && f.arg(0) as i32 != sys::AT_FDCWD {
        return put_stat(f.arg(2), &file(f.arg(0))?.inode().attr());
    }
    let place = names::resolve(f.arg(0) as i32, &text, follow, empty)?;
    put_stat(f.arg(2), &place.inode().attr())
}

fn statx(f: &mut TrapFrame) -> SysResult {
    const KNOWN: u32 = sys::AT_EMPTY_PATH
        | sys::AT_SYMLINK_NOFOLLOW
        | sys::AT_NO_AUTOMOUNT
        | sys::AT_STATX_SYNC_TYPE;
    let flags = f.arg(2) as u32;
    let both = sys::AT_STATX_FORCE_SYNC | sys::AT_STATX_DONT_SYNC;
    if flags & !KNOWN != 0 || flags & both == both || f.arg(3) as u32 & 0x8000_0000 != 0 {
        return Err(Errno::EINVAL);
    }
    let (empty, follow) = at_flags(flags);
    // A null path with AT_EMPTY_PATH is an empty one.
    let text = if f.arg(1) == 0 && empty {
        alloc::vec::Vec::new()
    } else {
        path(f.arg(1))?
    };
    let place = names::resolve(f.arg(0) as i32, &text, follow, empty)?;
    let a = place.inode().attr();
    let is_root = alloc::sync::Arc::ptr_eq(&place.dentry, &place.mnt.root);
    put_user(f.arg(4), &statx_words(&a, place.mnt.id, is_root)).map(|()| 0)
}

/// `struct statx` as 32 words.
fn statx_words(a: &Attr, mount: u64, is_root: bool) -> [u64; 32] {
    const MOUNT_ROOT: u64 = 0x2000;
    let two = |lo: u32, hi: u32| u64::from(lo) | u64::from(hi) << 32;
    let mask = sys::STATX_BASIC_STATS | sys::STATX_BTIME | sys::STATX_MNT_ID;
    let mut w = [0u64; 32];
    w[0] = two(mask, 4096);
    w[1] = if is_root { MOUNT_ROOT } else { 0 };
    w[2] = two(a.nlink, a.uid);
    w[3] = two(a.gid, a.mode);
    w[4] = a.ino;
    w[5] = a.size;
    w[6] = a.blocks;
    w[7] = MOUNT_ROOT;
    for (i, t) in [a.atime, a.btime, a.ctime, a.mtime].into_iter().enumerate() {
        w[8 + 2 * i] = t.sec as u64;
        w[9 + 2 * i] = u64::from(t.nsec);
    }
    w[16] = two(major(a.rdev), minor(a.rdev));
    w[17] = two(major(a.dev), minor(a.dev));
    w[18] = mount;
    w
}

/// access: asks for the real ids, or with `effective` for those that opening would use.
fn check_access(place: &Path, mode: u32, effective: bool) -> SysResult {
    if mode & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    if mode & sys::W_OK != 0
        && matches!(
            place.dentry.kind(),
            Kind::Regular | Kind::Directory | Kind::Symlink
        )
        && (place.mnt.read_only() || place.inode().read_only())
    {
        return Err(Errno::EROFS);
    }
    let mut who = crate::task::current().process.creds();
    if !effective {
        who.cap_effective = if who.uid == 0 { who.cap_permitted } else { 0 };
        (who.fsuid, who.fsgid) = (who.uid, who.gid);
    }
    access::check(&place.inode().attr(), mode, &who).map(|()| 0)
}

fn do_access(dirfd: u64, addr: u64, mode: u64, flags: u32) -> SysResult {
    let (empty, follow) = at_flags(flags);
    let place = names::resolve(dirfd as i32, &path(addr)?, follow, empty)?;
    check_access(&place, mode as u32, flags & sys::AT_EACCESS != 0)
}

fn access_call(f: &mut TrapFrame) -> SysResult {
    do_access(sys::AT_FDCWD as u64, f.arg(0), f.arg(1), 0)
}

fn faccessat(f: &mut TrapFrame) -> SysResult {
    do_access(f.arg(0), f.arg(1), f.arg(2), 0)
}

fn faccessat2(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(3) as u32;
    if flags & !(sys::AT_EACCESS | sys::AT_SYMLINK_NOFOLLOW | sys::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    do_access(f.arg(0), f.arg(1), f.arg(2), flags)
}

/// `struct statfs`.
fn put_statfs(addr: u64, place: &Path) -> SysResult {
    let s = place.inode().statfs();
    let dev = place.inode().attr().dev;
    let flags = place.mnt.flags.load(core::sync::atomic::Ordering::Relaxed);
    const VALID: u64 = 0x20;
    let words: [u64; 15] = [
        s.magic,
        4096,
        s.blocks,
        s.free,
        s.free,
        s.files,
        s.files_free,
        dev,
        255,
        4096,
        VALID | u64::from(flags & 0xf) | u64::from(flags & sys::MS_NOATIME),
        0,
        0,
        0,
        0,
    ];
    put_user(addr, &words).map(|()| 0)
}

fn statfs(f: &mut TrapFrame) -> SysResult {
    put_statfs(
        f.arg(1),
        &names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?,
    )
}

fn fstatfs(f: &mut TrapFrame) -> SysResult {
    put_statfs(f.arg(1), file(f.arg(0))?.path())
}
