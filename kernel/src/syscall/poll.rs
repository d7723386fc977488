//! Waiting for files: poll, select, epoll.

use alloc::sync::Arc;
use alloc::vec::Vec;
use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{UserTime, deadline, deadline_in, file, only};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{copy_from_user, copy_to_user, get_user, put_user};
use crate::fs::epoll::Epoll;
use crate::fs::poll::{Notify, Poller, Ready};
use crate::fs::{File, caller};
use crate::task::{WaitError, signal};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_poll, poll),
    (sys::__NR_ppoll, ppoll),
    (sys::__NR_select, select),
    (sys::__NR_pselect6, pselect6),
    (sys::__NR_epoll_create, epoll_create),
    (sys::__NR_epoll_create1, epoll_create1),
    (sys::__NR_epoll_ctl, epoll_ctl),
    (sys::__NR_epoll_wait, epoll_wait),
    (sys::__NR_epoll_pwait, epoll_pwait),
    (sys::__NR_epoll_pwait2, epoll_pwait2),
];

/// One file to look at.
struct Watch {
    /// `None`: the descriptor is not open, or negative (then `events` is empty).
    file: Option<Arc<File>>,
    events: Ready,
    ready: Ready,
}

impl Watch {
    fn new(fd: i32, events: Ready) -> Self {
        if fd < 0 {
            return Watch {
                file: None,
                events: Ready::empty(),
                ready: Ready::empty(),
            };
        }
        match caller::files().get(fd) {
            Ok(f) => Watch {
                file: Some(f),
                events: events | Ready::ALWAYS,
                ready: Ready::empty(),
            },
            Err(_) => Watch {
                file: None,
                events: Ready::NVAL,
                ready: Ready::NVAL,
            },
        }
    }

    fn look(&mut self, watcher: Option<&Arc<dyn Notify>>) -> bool {
        if let Some(f) = &self.file {
            self.ready = f.poll(watcher) & self.events;
        }
        !self.ready.is_empty()
    }
}

/// Waits until one of `watches` is ready; how many are.
fn wait_for(watches: &mut [Watch], deadline: Option<u64>) -> SysResult {
    let count = |watches: &mut [Watch], watcher: Option<&Arc<dyn Notify>>| {
        watches
            .iter_mut()
            .fold(0, |n, w| n + usize::from(w.look(watcher)))
    };
    let n = count(watches, None);
    if n > 0 || deadline == Some(0) {
        return Ok(n);
    }
    let poller = Poller::new();
    let watcher: Arc<dyn Notify> = poller.clone();
    let mut register = Some(&watcher);
    loop {
        poller.reset();
        let n = count(watches, register.take());
        if n > 0 {
            return Ok(n);
        }
        match poller.wait(deadline) {
            Ok(()) => {}
            Err(WaitError::Timeout) => return Ok(count(watches, None)),
            Err(WaitError::Signal) => return Err(Errno::EINTR),
        }
    }
}

/// `struct pollfd` array in, results out.
fn do_poll(addr: u64, count: u64, deadline: Option<u64>) -> SysResult {
    if count as u32 as usize > caller::nofile_limit() {
        return Err(Errno::EINVAL);
    }
    let count = count as u32 as usize;
    let mut watches = Vec::new();
    watches
        .try_reserve_exact(count)
        .map_err(|_| Errno::ENOMEM)?;
    for i in 0..count {
        let [fd, events]: [i32; 2] = get_user(entry(addr, i)?)?;
        watches.push(Watch::new(
            fd,
            Ready::from_bits_retain(events as u32 & 0xffff),
        ));
    }
    let n = wait_for(&mut watches, deadline)?;
    for (i, w) in watches.iter().enumerate() {
        let revents = w.ready.bits() as u16;
        put_user(
            entry(addr, i)?.checked_add(6).ok_or(Errno::EFAULT)?,
            &revents,
        )?;
    }
    Ok(n)
}

fn entry(addr: u64, i: usize) -> Result<u64, Errno> {
    addr.checked_add(8 * i as u64).ok_or(Errno::EFAULT)
}

/// Milliseconds; negative is for ever, 0 does not wait.
fn millis(ms: u64) -> Option<u64> {
    match ms as i32 {
        0 => Some(0),
        ms if ms < 0 => None,
        ms => Some(deadline_in(ms as u64 * 1_000_000)),
    }
}

/// A relative time; zero does not wait.
fn timeout(addr: u64) -> Result<Option<u64>, Errno> {
    if addr != 0 {
        let t: UserTime = get_user(addr)?;
        if t.sec == 0 && t.nsec == 0 {
            return Ok(Some(0));
        }
    }
    deadline(addr)
}

/// Runs `wait` with the caller's signal mask replaced by the one at `addr`, if there is one.
pub fn with_mask(addr: u64, size: u64, wait: impl FnOnce() -> SysResult) -> SysResult {
    if addr == 0 {
        return wait();
    }
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    signal::set_user_mask(get_user(addr)?);
    let result = wait();
    signal::restore_user_mask(result == Err(Errno::EINTR));
    result
}

/// What is left until the deadline, as calls report it.
fn left(deadline: u64) -> u64 {
    deadline.saturating_sub(crate::arch::time::now_ns())
}

fn put_left_timespec(addr: u64, deadline: Option<u64>) {
    if let (true, Some(d)) = (addr != 0, deadline) {
        let ns = left(d);
        let t = UserTime {
            sec: (ns / 1_000_000_000) as i64,
            nsec: (ns % 1_000_000_000) as i64,
        };
        // A result that cannot be written does not change what the call returns, as on Linux.
        let _ = put_user(addr, &t);
    }
}

fn poll(f: &mut TrapFrame) -> SysResult {
    do_poll(f.arg(0), f.arg(1), millis(f.arg(2)))
}

fn ppoll(f: &mut TrapFrame) -> SysResult {
    let deadline = timeout(f.arg(2))?;
    let result = with_mask(f.arg(3), f.arg(4), || do_poll(f.arg(0), f.arg(1), deadline));
    put_left_timespec(f.arg(2), deadline);
    result
}

/// Descriptors that one select can name.
const FD_SETSIZE: usize = 1024;
const WORDS: usize = FD_SETSIZE / 64;
type FdSet = [u64; WORDS];

fn get_set(addr: u64, n: usize) -> Result<FdSet, Errno> {
    let mut set = [0; WORDS];
    if addr != 0 {
        let mut bytes = [0u8; FD_SETSIZE / 8];
        let len = n.div_ceil(64) * 8;
        copy_from_user(&mut bytes[..len], addr)?;
        for (word, b) in set.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(b.try_into().map_err(|_| Errno::EINVAL)?);
        }
    }
    Ok(set)
}

fn put_set(addr: u64, n: usize, set: &FdSet) -> Result<(), Errno> {
    if addr == 0 {
        return Ok(());
    }
    let mut bytes = [0u8; FD_SETSIZE / 8];
    for (b, word) in bytes.chunks_exact_mut(8).zip(set) {
        b.copy_from_slice(&word.to_ne_bytes());
    }
    copy_to_user(addr, &bytes[..n.div_ceil(64) * 8])
}

fn do_select(f: &TrapFrame, deadline: Option<u64>) -> SysResult {
    // What makes a file count as readable, writable and exceptional.
    let asks = [
        Ready::READ | Ready::RDBAND | Ready::HUP | Ready::ERR,
        Ready::WRITE | Ready::WRBAND | Ready::ERR,
        Ready::PRI,
    ];
    let n = f.arg(0) as i32;
    if n < 0 {
        return Err(Errno::EINVAL);
    }
    let n = (n as usize).min(FD_SETSIZE);
    let sets = [
        get_set(f.arg(1), n)?,
        get_set(f.arg(2), n)?,
        get_set(f.arg(3), n)?,
    ];
    let mut watches = Vec::new();
    let mut fds = Vec::new();
    for fd in 0..n {
        let asked = |set: &FdSet| set[fd / 64] >> (fd % 64) & 1 != 0;
        let mut events = Ready::empty();
        for (set, ask) in sets.iter().zip(asks) {
            if asked(set) {
                events |= ask;
            }
        }
        if !events.is_empty() {
            let file = caller::files().get(fd as i32)?;
            watches.push(Watch {
                file: Some(file),
                events,
                ready: Ready::empty(),
            });
            fds.push(fd);
        }
    }
    wait_for(&mut watches, deadline)?;
    let mut out = [[0; WORDS]; 3];
    let mut bits = 0;
    for (fd, w) in fds.iter().zip(&watches) {
        for (i, ask) in asks.into_iter().enumerate() {
            if sets[i][fd / 64] >> (fd % 64) & 1 != 0 && w.ready.intersects(ask) {
                out[i][fd / 64] |= 1 << (fd % 64);
                bits += 1;
            }
        }
    }
    for (i, set) in out.iter().enumerate() {
        put_set(f.arg(1 + i), n, set)?;
    }
    Ok(bits)
}

fn select(f: &mut TrapFrame) -> SysResult {
    let addr = f.arg(4);
    let deadline = match addr {
        0 => None,
        _ => {
            let [sec, usec]: [i64; 2] = get_user(addr)?;
            if sec < 0 || usec < 0 {
                return Err(Errno::EINVAL);
            }
            match (sec as u64)
                .saturating_mul(1_000_000_000)
                .saturating_add((usec as u64).saturating_mul(1000))
            {
                0 => Some(0),
                ns => Some(deadline_in(ns)),
            }
        }
    };
    let result = do_select(f, deadline);
    if let Some(d) = deadline {
        let us = left(d) / 1000;
        let _ = put_user(addr, &[us / 1_000_000, us % 1_000_000]);
    }
    result
}

fn pselect6(f: &mut TrapFrame) -> SysResult {
    let deadline = timeout(f.arg(4))?;
    let [mask, size]: [u64; 2] = if f.arg(5) == 0 {
        [0, 0]
    } else {
        get_user(f.arg(5))?
    };
    let result = with_mask(mask, size, || do_select(f, deadline));
    put_left_timespec(f.arg(4), deadline);
    result
}

fn new_epoll(cloexec: bool) -> SysResult {
    Ok(caller::files().install(Epoll::open()?, cloexec)? as usize)
}

fn epoll_create(f: &mut TrapFrame) -> SysResult {
    if f.arg(0) as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    new_epoll(false)
}

fn epoll_create1(f: &mut TrapFrame) -> SysResult {
    new_epoll(only(f.arg(0), sys::EPOLL_CLOEXEC)? != 0)
}

fn epoll_ctl(f: &mut TrapFrame) -> SysResult {
    let op = f.arg(1) as u32;
    let (mut events, mut data) = (0, 0);
    if op != sys::EPOLL_CTL_DEL {
        // `struct epoll_event` is packed: 4 bytes of events, 8 of data.
        let bytes: [u8; 12] = get_user(f.arg(3))?;
        let [e0, e1, e2, e3, d @ ..] = bytes;
        events = u32::from_ne_bytes([e0, e1, e2, e3]);
        data = u64::from_ne_bytes(d);
    }
    let (set, target) = (file(f.arg(0))?, file(f.arg(2))?);
    let epoll = set.ops_as::<Epoll>().ok_or(Errno::EINVAL)?;
    if target.is_path_only() {
        return Err(Errno::EBADF);
    }
    epoll
        .control(op, f.arg(2) as i32, &target, events, data)
        .map(|()| 0)
}

fn do_epoll_wait(f: &TrapFrame, deadline: Option<u64>) -> SysResult {
    let max = f.arg(2) as i32;
    if max <= 0 {
        return Err(Errno::EINVAL);
    }
    let set = file(f.arg(0))?;
    let epoll = set.ops_as::<Epoll>().ok_or(Errno::EINVAL)?;
    let events = epoll.wait(max as usize, deadline)?;
    for (i, e) in events.iter().enumerate() {
        let at = f.arg(1).checked_add(12 * i as u64).ok_or(Errno::EFAULT)?;
        let mut bytes = [0u8; 12];
        bytes[..4].copy_from_slice(&e.events.to_ne_bytes());
        bytes[4..].copy_from_slice(&e.data.to_ne_bytes());
        copy_to_user(at, &bytes)?;
    }
    Ok(events.len())
}

fn epoll_wait(f: &mut TrapFrame) -> SysResult {
    do_epoll_wait(f, millis(f.arg(3)))
}

fn epoll_pwait(f: &mut TrapFrame) -> SysResult {
    with_mask(f.arg(4), f.arg(5), || do_epoll_wait(f, millis(f.arg(3))))
}

fn epoll_pwait2(f: &mut TrapFrame) -> SysResult {
    let deadline = timeout(f.arg(3))?;
    with_mask(f.arg(4), f.arg(5), || do_epoll_wait(f, deadline))
}
