//! Processes: making, replacing, ending, waiting for them; groups and sessions.

use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::Errno;

use super::Calls;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{copy_from_user, copy_to_user, put_user, read_cstr};
use crate::task::acct::Usage;
use crate::task::clone::{self, CloneArgs};
use crate::task::reap::{self, Event, Who};
use crate::task::signal::SIGCHLD;
use crate::task::time::Timeval;
use crate::task::{current, exit, pidfd, table};
use linux_raw_sys::general as sys;

pub const CALLS: Calls = &[
    (sys::__NR_fork, fork),
    (sys::__NR_vfork, vfork),
    (sys::__NR_clone, sys_clone),
    (sys::__NR_clone3, clone3),
    (sys::__NR_execve, execve),
    (sys::__NR_execveat, execveat),
    (sys::__NR_exit, sys_exit),
    (sys::__NR_exit_group, exit_group),
    (sys::__NR_wait4, wait4),
    (sys::__NR_waitid, waitid),
    (sys::__NR_getpid, getpid),
    (sys::__NR_gettid, gettid),
    (sys::__NR_getppid, getppid),
    (sys::__NR_getpgrp, getpgrp),
    (sys::__NR_getpgid, getpgid),
    (sys::__NR_setpgid, setpgid),
    (sys::__NR_getsid, getsid),
    (sys::__NR_setsid, setsid),
    (sys::__NR_set_tid_address, set_tid_address),
    (sys::__NR_unshare, unshare),
    (sys::__NR_pidfd_open, pidfd_open),
];

fn fork(f: &mut TrapFrame) -> SysResult {
    clone::clone(
        f,
        &CloneArgs {
            exit_signal: SIGCHLD,
            ..CloneArgs::default()
        },
    )
}

fn vfork(f: &mut TrapFrame) -> SysResult {
    clone::clone(
        f,
        &CloneArgs {
            flags: (sys::CLONE_VFORK | sys::CLONE_VM) as u64,
            exit_signal: SIGCHLD,
            ..CloneArgs::default()
        },
    )
}

fn sys_clone(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(0);
    let args = CloneArgs {
        flags: flags & 0xffff_ff00,
        exit_signal: flags as u32 & 0xff,
        stack: f.arg(1),
        parent_tid: f.arg(2),
        pidfd: f.arg(2),
        child_tid: f.arg(3),
        tls: f.arg(4),
    };
    // The two results share a place here.
    let both = (sys::CLONE_PIDFD | sys::CLONE_PARENT_SETTID) as u64;
    if flags & both == both {
        return Err(Errno::EINVAL);
    }
    clone::clone(f, &args)
}

fn clone3(f: &mut TrapFrame) -> SysResult {
    let (at, size) = (f.arg(0), f.arg(1) as usize);
    if size < sys::CLONE_ARGS_SIZE_VER0 as usize {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    const WORDS: usize = sys::CLONE_ARGS_SIZE_VER2 as usize / 8;
    let mut w = [0u64; WORDS];
    let known = size.min(WORDS * 8);
    {
        // SAFETY: integers as bytes, same extent.
        let bytes =
            unsafe { core::slice::from_raw_parts_mut(w.as_mut_ptr().cast::<u8>(), WORDS * 8) };
        copy_from_user(&mut bytes[..known], at)?;
    }
    let mut rest = at + known as u64;
    while rest < at + size as u64 {
        let mut b = [0u8; 1];
        copy_from_user(&mut b, rest)?;
        if b[0] != 0 {
            return Err(Errno::E2BIG);
        }
        rest += 1;
    }
    let [
        flags,
        pidfd,
        child_tid,
        parent_tid,
        exit_signal,
        stack,
        stack_size,
        tls,
        set_tid,
        set_tid_size,
        _cgroup,
    ] = w;
    if set_tid != 0 || set_tid_size != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & 0xff != 0 && flags & 0xff != sys::CLONE_NEWTIME as u64
        || flags & sys::CLONE_DETACHED as u64 != 0
    {
        return Err(Errno::EINVAL);
    }
    if (stack == 0) != (stack_size == 0) || exit_signal > 64 {
        return Err(Errno::EINVAL);
    }
    if flags & (sys::CLONE_THREAD | sys::CLONE_PARENT) as u64 != 0 && exit_signal != 0 {
        return Err(Errno::EINVAL);
    }
    let stack = if stack == 0 {
        0
    } else {
        stack
            .checked_add(stack_size)
            .filter(|&e| e <= mm::USER_END)
            .ok_or(Errno::EINVAL)?
    };
    clone::clone(
        f,
        &CloneArgs {
            flags,
            exit_signal: exit_signal as u32,
            stack,
            parent_tid,
            pidfd,
            child_tid,
            tls,
        },
    )
}

fn path_at(at: u64) -> Result<Vec<u8>, Errno> {
    read_cstr(at, sys::PATH_MAX as usize)
}

fn execve(f: &mut TrapFrame) -> SysResult {
    let path = path_at(f.arg(0))?;
    let (argv, envp) = (f.arg(1), f.arg(2));
    crate::exec::exec_user(f, sys::AT_FDCWD, path, argv, envp, 0)
}

fn execveat(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(4) as u32;
    if flags & !(sys::AT_EMPTY_PATH | sys::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let path = path_at(f.arg(1))?;
    let (dirfd, argv, envp) = (f.arg(0) as i32, f.arg(2), f.arg(3));
    crate::exec::exec_user(f, dirfd, path, argv, envp, flags)
}

fn sys_exit(f: &mut TrapFrame) -> SysResult {
    current().note_user_regs(f);
    exit::exit_thread((f.arg(0) as u32 & 0xff) << 8)
}

fn exit_group(f: &mut TrapFrame) -> SysResult {
    current().note_user_regs(f);
    exit::exit_group((f.arg(0) as u32 & 0xff) << 8)
}

/// `struct rusage` as 18 words.
pub(super) fn rusage(u: &Usage) -> [u64; 18] {
    let (user, system) = (Timeval::from_ns(u.user_ns), Timeval::from_ns(u.system_ns));
    let mut r = [0u64; 18];
    r[0] = user.sec as u64;
    r[1] = user.usec as u64;
    r[2] = system.sec as u64;
    r[3] = system.usec as u64;
    r[4] = u.max_rss_kib;
    r[8] = u.min_flt;
    r[9] = u.maj_flt;
    r[16] = u.nvcsw;
    r[17] = u.nivcsw;
    r
}

fn wait4(f: &mut TrapFrame) -> SysResult {
    let (pid, status, options, usage) = (f.arg(0) as i32, f.arg(1), f.arg(2) as u32, f.arg(3));
    let known = sys::WNOHANG
        | sys::WUNTRACED
        | sys::WCONTINUED
        | sys::__WNOTHREAD
        | sys::__WCLONE
        | sys::__WALL;
    if options & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let who = match pid {
        -1 => Who::Any,
        0 => Who::Group(current().process.pgid()),
        i32::MIN => return Err(Errno::ESRCH),
        n if n < 0 => Who::Group(-n as u32),
        n => Who::Pid(n as u32),
    };
    let Some(e) = reap::wait_for(who, options | sys::WEXITED)? else {
        return Ok(0);
    };
    if status != 0 {
        put_user(status, &e.status)?;
    }
    if usage != 0 {
        put_user(usage, &rusage(&e.usage))?;
    }
    Ok(e.pid as usize)
}

fn waitid(f: &mut TrapFrame) -> SysResult {
    let (kind, id, info, options, usage) = (
        f.arg(0) as u32,
        f.arg(1) as u32,
        f.arg(2),
        f.arg(3) as u32,
        f.arg(4),
    );
    let what = sys::WEXITED | sys::WSTOPPED | sys::WCONTINUED;
    let known = what | sys::WNOHANG | sys::WNOWAIT | sys::__WNOTHREAD | sys::__WCLONE | sys::__WALL;
    if options & !known != 0 || options & what == 0 {
        return Err(Errno::EINVAL);
    }
    // A descriptor that does not block: EAGAIN instead of waiting.
    let mut nonblock = false;
    let who = match kind {
        sys::P_ALL => Who::Any,
        sys::P_PID if id as i32 > 0 => Who::Pid(id),
        sys::P_PGID if id == 0 => Who::Group(current().process.pgid()),
        sys::P_PGID if id as i32 > 0 => Who::Group(id),
        sys::P_PIDFD if id as i32 >= 0 => match pidfd::living(id as i32) {
            Ok(p) => {
                nonblock = current().files().get(id as i32)?.nonblocking();
                Who::Pid(p.pid)
            }
            Err(Errno::ESRCH) => return Err(Errno::ECHILD),
            Err(e) => return Err(e),
        },
        _ => return Err(Errno::EINVAL),
    };
    let hang = if nonblock { sys::WNOHANG } else { 0 };
    let event: Option<Event> = reap::wait_for(who, options | hang)?;
    if event.is_none() && nonblock && options & sys::WNOHANG == 0 {
        return Err(Errno::EAGAIN);
    }
    if let Some(e) = &event
        && usage != 0
    {
        put_user(usage, &rusage(&e.usage))?;
    }
    if info != 0 {
        // Linux fills in these fields only.
        let mut words = [0u32; 7];
        if let Some(e) = &event {
            words = [SIGCHLD, 0, e.code as u32, 0, e.pid, e.uid, e.value as u32];
        }
        // SAFETY: integers as bytes, same extent.
        let bytes = unsafe { core::slice::from_raw_parts(words.as_ptr().cast::<u8>(), 28) };
        copy_to_user(info, bytes)?;
    }
    Ok(0)
}

fn getpid(_: &mut TrapFrame) -> SysResult {
    Ok(current().process.pid as usize)
}

fn gettid(_: &mut TrapFrame) -> SysResult {
    Ok(current().tid() as usize)
}

fn getppid(_: &mut TrapFrame) -> SysResult {
    Ok(current().process.ppid() as usize)
}

fn getpgrp(_: &mut TrapFrame) -> SysResult {
    Ok(current().process.pgid() as usize)
}

fn getpgid(f: &mut TrapFrame) -> SysResult {
    match f.arg(0) as i32 {
        0 => getpgrp(f),
        pid => Ok(table::find_process(pid as u32).ok_or(Errno::ESRCH)?.pgid() as usize),
    }
}

fn getsid(f: &mut TrapFrame) -> SysResult {
    match f.arg(0) as i32 {
        0 => Ok(current().process.sid() as usize),
        pid => Ok(table::find_process(pid as u32).ok_or(Errno::ESRCH)?.sid() as usize),
    }
}

fn setpgid(f: &mut TrapFrame) -> SysResult {
    let me = &current().process;
    let (pid, pgid) = (f.arg(0) as i32, f.arg(1) as i32);
    if pgid < 0 {
        return Err(Errno::EINVAL);
    }
    let pid = if pid == 0 { me.pid } else { pid as u32 };
    let pgid = if pgid == 0 { pid } else { pgid as u32 };
    table::set_pgid(me, pid, pgid)?;
    Ok(0)
}

fn setsid(_: &mut TrapFrame) -> SysResult {
    Ok(table::set_sid(&current().process)? as usize)
}

fn set_tid_address(f: &mut TrapFrame) -> SysResult {
    let me = current();
    // SAFETY: the running thread's own field.
    unsafe { me.mine().clear_child_tid = f.arg(0) };
    Ok(me.tid() as usize)
}

/// A table and a file system context of one's own. There are no namespaces, and threads cannot leave
/// their process.
fn unshare(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(0);
    let own = (sys::CLONE_FILES | sys::CLONE_FS | sys::CLONE_SYSVSEM) as u64;
    let together = (sys::CLONE_THREAD | sys::CLONE_SIGHAND | sys::CLONE_VM) as u64;
    let me = current();
    if flags & !(own | together) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & together != 0 && me.process.thread_count() > 1 {
        return Err(Errno::EINVAL);
    }
    let fs = if flags & sys::CLONE_FS as u64 != 0 {
        Some(Arc::new(me.fs().try_clone()?))
    } else {
        None
    };
    if flags & sys::CLONE_FILES as u64 != 0 && Arc::strong_count(me.files()) > 1 {
        let files = Arc::new(me.files().try_clone()?);
        drop(me.set_files(Some(files)));
    }
    if fs.is_some() {
        drop(me.set_fs(fs));
    }
    Ok(0)
}

fn pidfd_open(f: &mut TrapFrame) -> SysResult {
    let (pid, flags) = (f.arg(0) as i32, f.arg(1) as u32);
    if pid <= 0 || flags & !sys::O_NONBLOCK != 0 {
        return Err(Errno::EINVAL);
    }
    let fd = pidfd::open(pid as u32, flags != 0)?;
    Ok(fd as usize)
}
