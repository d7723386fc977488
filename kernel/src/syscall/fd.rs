//! Descriptors themselves: duplicating, flags, fcntl, ioctl, locks.

use linux_raw_sys::{general as sys, ioctl as io};

use super::Handler;
use super::args::{file, only, real_file};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{Pod, get_user, put_user};
use crate::fs::attr::Kind;
use crate::fs::pipe::PipeEnd;
use crate::fs::records::{self, Record};
use crate::fs::{File, caller, flock as locks, tmpfs};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_dup, dup),
    (sys::__NR_dup2, dup2),
    (sys::__NR_dup3, dup3),
    (sys::__NR_fcntl, fcntl),
    (sys::__NR_close_range, close_range),
    (sys::__NR_ioctl, ioctl),
    (sys::__NR_flock, flock),
];

fn dup(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    Ok(caller::files().install(file, false)? as usize)
}

fn replace(old: u64, new: u64, cloexec: bool) -> SysResult {
    let new = new as u32 as usize;
    let file = file(old)?;
    if new > i32::MAX as usize {
        return Err(Errno::EBADF);
    }
    caller::files().replace(new, file, cloexec)?;
    Ok(new)
}

fn dup2(f: &mut TrapFrame) -> SysResult {
    if f.arg(0) as u32 == f.arg(1) as u32 {
        file(f.arg(0))?;
        return Ok(f.arg(0) as u32 as usize);
    }
    replace(f.arg(0), f.arg(1), false)
}

fn dup3(f: &mut TrapFrame) -> SysResult {
    let flags = only(f.arg(2), sys::O_CLOEXEC)?;
    if f.arg(0) as u32 == f.arg(1) as u32 {
        return Err(Errno::EINVAL);
    }
    replace(f.arg(0), f.arg(1), flags != 0)
}

fn fcntl(f: &mut TrapFrame) -> SysResult {
    const F_SETPIPE_SZ: u32 = 1031;
    const F_GETPIPE_SZ: u32 = 1032;
    const F_ADD_SEALS: u32 = 1033;
    const F_GET_SEALS: u32 = 1034;
    let (fd, cmd, arg) = (f.arg(0) as i32, f.arg(1) as u32, f.arg(2));
    let files = caller::files();
    let file = files.get(fd)?;
    match cmd {
        sys::F_DUPFD | sys::F_DUPFD_CLOEXEC => {
            if arg as usize >= caller::nofile_limit() {
                return Err(Errno::EINVAL);
            }
            Ok(files.install_from(file, cmd == sys::F_DUPFD_CLOEXEC, arg as usize)? as usize)
        }
        sys::F_GETFD => Ok(usize::from(files.cloexec(fd)?)),
        sys::F_SETFD => files
            .set_cloexec(fd, arg as u32 & sys::FD_CLOEXEC != 0)
            .map(|()| 0),
        sys::F_GETFL => Ok(file.flags() as usize),
        _ if file.is_path_only() => Err(Errno::EBADF),
        sys::F_SETFL => {
            file.set_flags(arg as u32);
            Ok(0)
        }
        sys::F_GETLK | sys::F_SETLK | sys::F_SETLKW => record_lock(&file, cmd, arg, false),
        sys::F_OFD_GETLK | sys::F_OFD_SETLK | sys::F_OFD_SETLKW => {
            record_lock(&file, cmd - sys::F_OFD_GETLK + sys::F_GETLK, arg, true)
        }
        F_GETPIPE_SZ => Ok(file
            .ops_as::<PipeEnd>()
            .ok_or(Errno::EBADF)?
            .pipe
            .capacity()),
        F_SETPIPE_SZ => file
            .ops_as::<PipeEnd>()
            .ok_or(Errno::EBADF)?
            .pipe
            .set_capacity(arg as u32 as usize),
        F_ADD_SEALS => {
            if !file.writable() {
                return Err(Errno::EPERM);
            }
            node(&file)?.add_seals(arg as u32).map(|()| 0)
        }
        F_GET_SEALS => Ok(node(&file)?.seals()? as usize),
        _ => Err(Errno::EINVAL),
    }
}

/// `struct flock`.
#[derive(Clone, Copy)]
#[repr(C)]
struct UserLock {
    kind: i16,
    whence: i16,
    pad: u32,
    start: i64,
    len: i64,
    pid: i32,
    pad2: u32,
}

// SAFETY: integers, the holes spelt out.
unsafe impl Pod for UserLock {}

/// The bytes that a request means.
fn range(file: &File, l: &UserLock) -> Result<(u64, u64), Errno> {
    let base = match l.whence as u32 {
        sys::SEEK_SET => 0,
        sys::SEEK_CUR => file.pos() as i64,
        sys::SEEK_END => file.ops().size() as i64,
        _ => return Err(Errno::EINVAL),
    };
    let start = base.checked_add(l.start).ok_or(Errno::EOVERFLOW)?;
    // A length of 0 reaches to the end, a negative one lies before the start.
    let (first, last) = match l.len {
        0 => (start, i64::MAX),
        n if n > 0 => (start, start.checked_add(n - 1).ok_or(Errno::EOVERFLOW)?),
        n => (start.checked_add(n).ok_or(Errno::EINVAL)?, start - 1),
    };
    if first < 0 {
        return Err(Errno::EINVAL);
    }
    Ok((first as u64, last as u64))
}

fn record_lock(file: &File, cmd: u32, arg: u64, of_file: bool) -> SysResult {
    let mut l: UserLock = get_user(arg)?;
    let (start, end) = range(file, &l)?;
    if of_file && l.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let (owner, pid) = match of_file {
        true => (records::Owner(core::ptr::from_ref(file) as usize), -1),
        false => (caller::files().lock_owner(), caller::ids().pid as i32),
    };
    let exclusive = l.kind as u32 == sys::F_WRLCK;
    let want = Record {
        start,
        end,
        exclusive,
        owner,
        pid,
    };
    let kind = l.kind as u32;
    if cmd == sys::F_GETLK {
        if kind != sys::F_RDLCK && kind != sys::F_WRLCK {
            return Err(Errno::EINVAL);
        }
        match records::test(file, &want) {
            None => l.kind = sys::F_UNLCK as i16,
            Some(r) => {
                l.kind = if r.exclusive {
                    sys::F_WRLCK
                } else {
                    sys::F_RDLCK
                } as i16;
                l.whence = sys::SEEK_SET as i16;
                l.start = r.start as i64;
                l.len = if r.end == i64::MAX as u64 {
                    0
                } else {
                    (r.end - r.start + 1) as i64
                };
                l.pid = r.pid;
            }
        }
        put_user(arg, &l)?;
        return Ok(0);
    }
    match kind {
        sys::F_UNLCK => records::release(file, want)?,
        sys::F_RDLCK if !file.readable() => return Err(Errno::EBADF),
        sys::F_WRLCK if !file.writable() => return Err(Errno::EBADF),
        sys::F_RDLCK | sys::F_WRLCK => records::acquire(file, want, cmd == sys::F_SETLKW)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn node(file: &File) -> Result<alloc::sync::Arc<tmpfs::Node>, Errno> {
    file.inode()
        .clone()
        .as_any()
        .downcast()
        .map_err(|_| Errno::EINVAL)
}

fn close_range(f: &mut TrapFrame) -> SysResult {
    const UNSHARE: u32 = 2;
    const MARK: u32 = 4;
    let flags = only(f.arg(2), UNSHARE | MARK)?;
    let (first, last) = (f.arg(0) as u32, f.arg(1) as u32);
    if first > last {
        return Err(Errno::EINVAL);
    }
    if flags & UNSHARE != 0 {
        caller::unshare_files()?;
    }
    caller::files().close_range(first as usize, last as usize, flags & MARK != 0);
    Ok(0)
}

fn ioctl(f: &mut TrapFrame) -> SysResult {
    let (cmd, arg) = (f.arg(1) as u32, f.arg(2));
    let file = real_file(f.arg(0))?;
    match cmd {
        io::FIOCLEX | io::FIONCLEX => {
            caller::files().set_cloexec(f.arg(0) as i32, cmd == io::FIOCLEX)?;
            Ok(0)
        }
        io::FIONBIO => {
            let on: i32 = get_user(arg)?;
            let flags = file.flags() & !sys::O_NONBLOCK | if on != 0 { sys::O_NONBLOCK } else { 0 };
            file.set_flags(flags);
            Ok(0)
        }
        io::FIONREAD if file.dentry().kind() == Kind::Regular => {
            let left = file
                .ops()
                .size()
                .saturating_sub(file.pos())
                .min(i32::MAX as u64) as i32;
            put_user(arg, &left)?;
            Ok(0)
        }
        _ => file.ops().ioctl(&file, cmd, arg),
    }
}

fn flock(f: &mut TrapFrame) -> SysResult {
    let file = real_file(f.arg(0))?;
    let op = f.arg(1) as u32;
    let wait = op & sys::LOCK_NB == 0;
    match op & !sys::LOCK_NB {
        sys::LOCK_SH => locks::acquire(&file, false, wait)?,
        sys::LOCK_EX => locks::acquire(&file, true, wait)?,
        sys::LOCK_UN => locks::release(&file),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}
