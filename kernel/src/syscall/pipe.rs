//! Pipes, eventfd, and connected socket pairs.

use alloc::sync::Arc;
use linux_raw_sys::{general as sys, net};

use super::Handler;
use super::args::{MAX_RW, check_range, file, only};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::put_user;
use crate::fs::eventfd::EventFd;
use crate::fs::pipe::Pipe;
use crate::fs::socketpair::Socket;
use crate::fs::{File, IoBuf, caller};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_pipe, pipe),
    (sys::__NR_pipe2, pipe2),
    (sys::__NR_eventfd, eventfd),
    (sys::__NR_eventfd2, eventfd2),
    (sys::__NR_socket, socket),
    (sys::__NR_socketpair, socketpair),
    (sys::__NR_sendto, sendto),
    (sys::__NR_recvfrom, recvfrom),
    (sys::__NR_shutdown, shutdown),
];

/// Installs two files and stores their numbers at `addr`.
fn give_pair(addr: u64, a: Arc<File>, b: Arc<File>, cloexec: bool) -> SysResult {
    let files = caller::files();
    let (first, second) = files.install_pair(a, b, cloexec)?;
    if let Err(e) = put_user(addr, &[first, second]) {
        let _ = files.close(first);
        let _ = files.close(second);
        return Err(e);
    }
    Ok(0)
}

fn do_pipe(addr: u64, flags: u32) -> SysResult {
    let (reads, writes) = Pipe::pair(flags)?;
    give_pair(addr, reads, writes, flags & sys::O_CLOEXEC != 0)
}

fn pipe(f: &mut TrapFrame) -> SysResult {
    do_pipe(f.arg(0), 0)
}

fn pipe2(f: &mut TrapFrame) -> SysResult {
    // O_DIRECT's packets are not built.
    do_pipe(f.arg(0), only(f.arg(1), sys::O_CLOEXEC | sys::O_NONBLOCK)?)
}

fn do_eventfd(count: u64, flags: u32) -> SysResult {
    const SEMAPHORE: u32 = 1;
    if flags & !(sys::O_CLOEXEC | sys::O_NONBLOCK | SEMAPHORE) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = EventFd::open(
        count & 0xffff_ffff,
        flags & SEMAPHORE != 0,
        flags & sys::O_NONBLOCK != 0,
    )?;
    Ok(caller::files().install(file, flags & sys::O_CLOEXEC != 0)? as usize)
}

fn eventfd(f: &mut TrapFrame) -> SysResult {
    do_eventfd(f.arg(0), 0)
}

fn eventfd2(f: &mut TrapFrame) -> SysResult {
    do_eventfd(f.arg(0), f.arg(1) as u32)
}

const AF_UNIX: u64 = 1;
const AF_MAX: u64 = 46;
const SOCK_STREAM: u32 = 1;
const SOCK_SEQPACKET: u32 = 5;

/// No sockets but the connected pairs below.
fn socket(_: &mut TrapFrame) -> SysResult {
    Err(Errno::EAFNOSUPPORT)
}

fn socketpair(f: &mut TrapFrame) -> SysResult {
    let kind = f.arg(1) as u32;
    let flags = kind & (sys::O_CLOEXEC | sys::O_NONBLOCK);
    if f.arg(0) != AF_UNIX {
        return Err(if f.arg(0) < AF_MAX {
            Errno::EAFNOSUPPORT
        } else {
            Errno::EINVAL
        });
    }
    let stream = match kind & !flags {
        SOCK_STREAM => true,
        SOCK_SEQPACKET => false,
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    };
    if f.arg(2) > 1 {
        return Err(Errno::EPROTONOSUPPORT);
    }
    let (a, b) = Socket::pair(stream, flags & sys::O_NONBLOCK != 0)?;
    give_pair(f.arg(3), a, b, flags & sys::O_CLOEXEC != 0)
}

fn sendto(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    let socket = file.ops_as::<Socket>().ok_or(Errno::ENOTSOCK)?;
    let flags = f.arg(3) as u32;
    if f.arg(4) != 0 {
        return Err(Errno::EISCONN);
    }
    if flags & !(net::MSG_DONTWAIT | net::MSG_NOSIGNAL) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    check_range(f.arg(1), f.arg(2))?;
    let mut buf = IoBuf::user(f.arg(1), (f.arg(2) as usize).min(MAX_RW));
    let nonblock = file.nonblocking() || flags & net::MSG_DONTWAIT != 0;
    socket.send(&mut buf, nonblock, flags & net::MSG_NOSIGNAL == 0)
}

fn recvfrom(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    let socket = file.ops_as::<Socket>().ok_or(Errno::ENOTSOCK)?;
    let flags = f.arg(3) as u32;
    if flags & !net::MSG_DONTWAIT != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    check_range(f.arg(1), f.arg(2))?;
    let mut buf = IoBuf::user(f.arg(1), (f.arg(2) as usize).min(MAX_RW));
    let n = socket.receive(
        &mut buf,
        file.nonblocking() || flags & net::MSG_DONTWAIT != 0,
    )?;
    if f.arg(4) != 0 && f.arg(5) != 0 {
        // The peer has no name.
        put_user(f.arg(5), &0u32)?;
    }
    Ok(n)
}

fn shutdown(f: &mut TrapFrame) -> SysResult {
    let file = file(f.arg(0))?;
    let socket = file.ops_as::<Socket>().ok_or(Errno::ENOTSOCK)?;
    match f.arg(1) {
        0 => socket.shutdown(true, false),
        1 => socket.shutdown(false, true),
        2 => socket.shutdown(true, true),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}
