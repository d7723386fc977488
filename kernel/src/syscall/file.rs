//! Reading, writing and opening files.

use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{MAX_RW, check_range, file, offset, only, path, real_file, vector};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::get_user;
use crate::fs::attr::Kind;
use crate::fs::file::not_running;
use crate::fs::names::{self, OpenHow};
use crate::fs::path::Limits;
use crate::fs::{self, IoBuf, access, caller, devfs, tmpfs};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_read, read),
    (sys::__NR_write, write),
    (sys::__NR_readv, readv),
    (sys::__NR_writev, writev),
    (sys::__NR_pread64, pread),
    (sys::__NR_pwrite64, pwrite),
    (sys::__NR_preadv, preadv),
    (sys::__NR_pwritev, pwritev),
    (sys::__NR_preadv2, preadv2),
    (sys::__NR_pwritev2, pwritev2),
    (sys::__NR_open, open),
    (sys::__NR_openat, openat),
    (sys::__NR_openat2, openat2),
    (sys::__NR_creat, creat),
    (sys::__NR_close, close),
    (sys::__NR_lseek, lseek),
    (sys::__NR_truncate, truncate),
    (sys::__NR_ftruncate, ftruncate),
    (sys::__NR_fallocate, fallocate),
    (sys::__NR_fsync, fsync),
    (sys::__NR_fdatasync, fsync),
    (sys::__NR_sync, sync),
    (sys::__NR_syncfs, syncfs),
    (sys::__NR_sync_file_range, sync_file_range),
    (sys::__NR_fadvise64, fadvise),
    (sys::__NR_readahead, readahead),
    (sys::__NR_memfd_create, memfd_create),
    (sys::__NR_getrandom, getrandom),
];

/// A user buffer for one read or write.
#[inline]
fn user_buf(addr: u64, len: u64) -> Result<IoBuf<'static>, Errno> {
    check_range(addr, len)?;
    Ok(IoBuf::user(addr, (len as usize).min(MAX_RW)))
}

fn read(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    file.read(&mut user_buf(f.arg(1), f.arg(2))?)
}

fn write(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    file.write(&mut user_buf(f.arg(1), f.arg(2))?)
}

fn readv(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    let spans = vector(f.arg(1), f.arg(2))?;
    file.read(&mut IoBuf::user_vec(&spans))
}

fn writev(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    let spans = vector(f.arg(1), f.arg(2))?;
    file.write(&mut IoBuf::user_vec(&spans))
}

fn pread(f: &mut TrapFrame) -> SysResult {
    let pos = offset(f.arg(3))?;
    let file = file(f.arg(0))?;
    file.read_at(&mut user_buf(f.arg(1), f.arg(2))?, pos)
}

fn pwrite(f: &mut TrapFrame) -> SysResult {
    let pos = offset(f.arg(3))?;
    let file = file(f.arg(0))?;
    file.write_at(&mut user_buf(f.arg(1), f.arg(2))?, pos)
}

fn preadv(f: &mut TrapFrame) -> SysResult {
    let pos = offset(f.arg(3))?;
    let file = file(f.arg(0))?;
    let spans = vector(f.arg(1), f.arg(2))?;
    file.read_at(&mut IoBuf::user_vec(&spans), pos)
}

fn pwritev(f: &mut TrapFrame) -> SysResult {
    let pos = offset(f.arg(3))?;
    let file = file(f.arg(0))?;
    let spans = vector(f.arg(1), f.arg(2))?;
    file.write_at(&mut IoBuf::user_vec(&spans), pos)
}

/// RWF_ flags of writes that are on the medium when they return.
pub const RWF_SYNCED: u32 = sys::RWF_DSYNC | sys::RWF_SYNC;

/// EOPNOTSUPP for flags of one read or write that are not there.
pub fn vector_flags(flags: u64) -> Result<(), Errno> {
    if flags as u32 & !(RWF_SYNCED | sys::RWF_HIPRI) != 0 {
        Err(Errno::EOPNOTSUPP)
    } else {
        Ok(())
    }
}

const RWF_NOAPPEND: u32 = 0x20;

/// The flags of preadv2 and pwritev2, which are looked at only where there are bytes to move.
fn rwf(flags: u64) -> Result<u32, Errno> {
    const APPENDS: u32 = sys::RWF_APPEND | RWF_NOAPPEND;
    let flags = flags as u32;
    vector_flags(u64::from(flags & !(APPENDS | sys::RWF_NOWAIT)))?;
    match flags & APPENDS {
        APPENDS => Err(Errno::EINVAL),
        _ => Ok(flags),
    }
}

/// -1 is the file's own position.
fn own_or(at: u64) -> Result<Option<u64>, Errno> {
    match at {
        u64::MAX => Ok(None),
        at => offset(at).map(Some),
    }
}

fn preadv2(f: &mut TrapFrame) -> SysResult {
    let pos = own_or(f.arg(3))?;
    let file = file(f.arg(0))?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    let spans = vector(f.arg(1), f.arg(2))?;
    let mut buf = IoBuf::user_vec(&spans);
    if buf.left() == 0 {
        return Ok(0);
    }
    match rwf(f.arg(5))? & sys::RWF_NOWAIT != 0 {
        true => file.read_now(&mut buf, pos),
        false => file.read_from(&mut buf, pos),
    }
}

fn pwritev2(f: &mut TrapFrame) -> SysResult {
    let pos = own_or(f.arg(3))?;
    let file = file(f.arg(0))?;
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    let spans = vector(f.arg(1), f.arg(2))?;
    let mut buf = IoBuf::user_vec(&spans);
    if buf.left() == 0 {
        return Ok(0);
    }
    let flags = rwf(f.arg(5))?;
    let has = |flag| flags & flag != 0;
    let done = if has(sys::RWF_NOWAIT) {
        file.write_now(&mut buf, pos)?
    } else {
        let append = has(sys::RWF_APPEND) || file.append() && !has(RWF_NOAPPEND);
        file.write_to(&mut buf, pos, append)?
    };
    if has(RWF_SYNCED) && matches!(file.dentry().kind(), Kind::Regular | Kind::Block) {
        file.fsync()?;
    }
    Ok(done)
}

fn do_open(dirfd: i32, addr: u64, how: &OpenHow) -> SysResult {
    let path = path(addr)?;
    let file = names::open(dirfd, &path, how)?;
    let fd = caller::files().install(file, how.flags & sys::O_CLOEXEC != 0)?;
    Ok(fd as usize)
}

fn how(flags: u64, mode: u64) -> OpenHow {
    OpenHow {
        flags: flags as u32,
        mode: mode as u32 & 0o7777,
        limits: Limits::default(),
        in_root: false,
    }
}

fn open(f: &mut TrapFrame) -> SysResult {
    do_open(sys::AT_FDCWD, f.arg(0), &how(f.arg(1), f.arg(2)))
}

fn openat(f: &mut TrapFrame) -> SysResult {
    do_open(f.arg(0) as i32, f.arg(1), &how(f.arg(2), f.arg(3)))
}

fn creat(f: &mut TrapFrame) -> SysResult {
    let flags = sys::O_CREAT | sys::O_WRONLY | sys::O_TRUNC;
    do_open(sys::AT_FDCWD, f.arg(0), &how(u64::from(flags), f.arg(1)))
}

fn openat2(f: &mut TrapFrame) -> SysResult {
    const SIZE: u64 = 24;
    const FLAGS: u32 = sys::O_ACCMODE
        | sys::O_CREAT
        | sys::O_EXCL
        | sys::O_NOCTTY
        | sys::O_TRUNC
        | sys::O_APPEND
        | sys::O_NONBLOCK
        | sys::O_SYNC
        | sys::O_DSYNC
        | sys::FASYNC
        | sys::O_DIRECT
        | sys::O_LARGEFILE
        | sys::O_DIRECTORY
        | sys::O_NOFOLLOW
        | sys::O_NOATIME
        | sys::O_CLOEXEC
        | sys::O_PATH
        | sys::O_TMPFILE;
    const RESOLVE: u64 = (sys::RESOLVE_NO_XDEV
        | sys::RESOLVE_NO_MAGICLINKS
        | sys::RESOLVE_NO_SYMLINKS
        | sys::RESOLVE_BENEATH
        | sys::RESOLVE_IN_ROOT) as u64;
    let (at, size) = (f.arg(2), f.arg(3));
    if size < SIZE {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    // A newer caller's fields must be zero: what we do not know was not asked for.
    for i in SIZE..size {
        if get_user::<u8>(at.checked_add(i).ok_or(Errno::EFAULT)?)? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    let [flags, mode, resolve]: [u64; 3] = get_user(at)?;
    let bit = |b: u32| resolve & u64::from(b) != 0;
    let creates = flags as u32 & (sys::O_CREAT | (sys::O_TMPFILE & !sys::O_DIRECTORY)) != 0;
    if flags & !u64::from(FLAGS) != 0
        || resolve & !RESOLVE != 0
        || bit(sys::RESOLVE_BENEATH) && bit(sys::RESOLVE_IN_ROOT)
        || mode & !0o7777 != 0
        || mode != 0 && !creates
    {
        return Err(Errno::EINVAL);
    }
    let how = OpenHow {
        flags: flags as u32,
        mode: mode as u32,
        limits: Limits {
            no_symlinks: bit(sys::RESOLVE_NO_SYMLINKS),
            no_magic: bit(sys::RESOLVE_NO_MAGICLINKS),
            no_xdev: bit(sys::RESOLVE_NO_XDEV),
            beneath: bit(sys::RESOLVE_BENEATH),
        },
        in_root: bit(sys::RESOLVE_BENEATH) || bit(sys::RESOLVE_IN_ROOT),
    };
    do_open(f.arg(0) as i32, f.arg(1), &how)
}

fn close(f: &mut TrapFrame) -> SysResult {
    caller::files().close(f.arg(0) as i32).map(|()| 0)
}

fn lseek(f: &mut TrapFrame) -> SysResult {
    file(f.arg(0))?.seek(f.arg(1) as i64, f.arg(2) as u32)
}

fn truncate(f: &mut TrapFrame) -> SysResult {
    let len = offset(f.arg(1))?;
    let place = names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?;
    match place.dentry.kind() {
        Kind::Directory => return Err(Errno::EISDIR),
        Kind::Regular => {}
        _ => return Err(Errno::EINVAL),
    }
    if place.mnt.read_only() {
        return Err(Errno::EROFS);
    }
    access::may(&place.inode().attr(), access::WRITE)?;
    not_running(place.inode())?;
    place.inode().truncate(len).map(|()| 0)
}

fn ftruncate(f: &mut TrapFrame) -> SysResult {
    let len = offset(f.arg(1))?;
    let file = real_file(f.arg(0))?;
    if !file.writable() || file.dentry().kind() != Kind::Regular {
        return Err(Errno::EINVAL);
    }
    file.inode().truncate(len).map(|()| 0)
}

fn fallocate(f: &mut TrapFrame) -> SysResult {
    let (start, len) = (offset(f.arg(2))?, offset(f.arg(3))?);
    let file = real_file(f.arg(0))?;
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    match file.dentry().kind() {
        Kind::Regular => {}
        Kind::Directory => return Err(Errno::EISDIR),
        Kind::Fifo => return Err(Errno::ESPIPE),
        _ => return Err(Errno::ENODEV),
    }
    file.ops()
        .fallocate(f.arg(1) as u32, start, len)
        .map(|()| 0)
}

fn fsync(f: &mut TrapFrame) -> SysResult {
    real_file(f.arg(0))?.fsync().map(|()| 0)
}

fn sync(_: &mut TrapFrame) -> SysResult {
    fs::sync();
    Ok(0)
}

fn syncfs(f: &mut TrapFrame) -> SysResult {
    real_file(f.arg(0))?.path().mnt.root.inode().sync_fs()?;
    Ok(0)
}

fn sync_file_range(f: &mut TrapFrame) -> SysResult {
    let file = real_file(f.arg(0))?;
    only(f.arg(3), 7)?;
    let (start, len) = (offset(f.arg(1))?, offset(f.arg(2))?);
    start
        .checked_add(len)
        .filter(|e| *e <= i64::MAX as u64)
        .ok_or(Errno::EINVAL)?;
    match file.dentry().kind() {
        Kind::Regular | Kind::Directory | Kind::Block | Kind::Symlink => {}
        _ => return Err(Errno::ESPIPE),
    }
    // To the end of the file, where no length is given. To begin is to finish here.
    let end = if len == 0 { u64::MAX } else { start + len };
    if f.arg(3) != 0 {
        file.ops().write_back(start..end)?;
    }
    Ok(0)
}

fn fadvise(f: &mut TrapFrame) -> SysResult {
    let file = real_file(f.arg(0))?;
    if file.dentry().kind() == Kind::Fifo {
        return Err(Errno::ESPIPE);
    }
    let (start, len, advice) = (f.arg(1), f.arg(2), f.arg(3) as u32);
    if (len as i64) < 0 || advice > sys::POSIX_FADV_NOREUSE {
        return Err(Errno::EINVAL);
    }
    // No length is all the rest; so is too long a one.
    let end = start.checked_add(len).filter(|_| len != 0);
    let range = start..end.unwrap_or(u64::MAX);
    match advice {
        sys::POSIX_FADV_WILLNEED => file.ops().advise(range, true),
        sys::POSIX_FADV_DONTNEED => file.ops().advise(range, false),
        _ => {}
    }
    Ok(0)
}

fn readahead(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    match file.dentry().kind() {
        Kind::Regular | Kind::Block => {
            let end = f.arg(1).saturating_add(offset(f.arg(2))?);
            file.ops().advise(f.arg(1)..end, true);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn memfd_create(f: &mut TrapFrame) -> SysResult {
    const CLOEXEC: u32 = 1;
    const SEALING: u32 = 2;
    const NOEXEC: u32 = 8;
    const EXEC: u32 = 16;
    // Huge pages are not built: MFD_HUGETLB is an unknown flag.
    let flags = only(f.arg(1), CLOEXEC | SEALING | NOEXEC | EXEC)?;
    if flags & (NOEXEC | EXEC) == NOEXEC | EXEC {
        return Err(Errno::EINVAL);
    }
    let name = crate::arch::uaccess::read_cstr(f.arg(0), 250).map_err(|e| match e {
        Errno::ENAMETOOLONG => Errno::EINVAL,
        e => e,
    })?;
    let sealing = flags & (SEALING | NOEXEC) != 0;
    let file = tmpfs::memfd(
        &name,
        sealing,
        flags & NOEXEC == 0,
        sys::O_RDWR | sys::O_LARGEFILE,
    )?;
    Ok(caller::files().install(file, flags & CLOEXEC != 0)? as usize)
}

fn getrandom(f: &mut TrapFrame) -> SysResult {
    let flags = only(
        f.arg(2),
        sys::GRND_NONBLOCK | sys::GRND_RANDOM | sys::GRND_INSECURE,
    )?;
    if flags & (sys::GRND_RANDOM | sys::GRND_INSECURE) == sys::GRND_RANDOM | sys::GRND_INSECURE {
        return Err(Errno::EINVAL);
    }
    let len = (f.arg(1) as usize).min(i32::MAX as usize);
    check_range(f.arg(0), len as u64)?;
    devfs::read_random(&mut IoBuf::user(f.arg(0), len))
}
