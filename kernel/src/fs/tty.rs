//! The console as a terminal (`mode=shell`): line discipline, reading and writing, job control.
//!
//! Input comes from the console thread (`console`), which runs the line discipline, echoes, sends signals and wakes
//! readers, so nothing of it happens in an interrupt handler. Locks: `Tty::input` (sleeping) for the line discipline;
//! `Tty::job` (spin) for session and foreground group.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use linux_raw_sys::{general as sys, ioctl};
use spin::Mutex as Spin;

pub use super::console::on_rx;
use super::console::{raw_write, write_chunks};
use super::file::File;
use super::inode::FileOps;
use super::iobuf::IoBuf;
use super::ldisc::{KeySignal, Ldisc, TOSTOP, Termios, VMIN, VTIME};
use super::poll::{Notify, PollQueue, Ready};
use super::{caller, console};
use crate::SysResult;
use crate::arch::uaccess::{Pod, get_user, put_user};
use crate::sync::Mutex;
use crate::task::{Sleep, WaitError, WaitQueue};
use mm::Errno;

// SAFETY: four u32 and twenty bytes: 36 bytes without padding, any bit pattern is a value.
unsafe impl Pod for Termios {}

/// `struct winsize`: rows, columns, and two unused sizes in pixels.
type WinSize = [u16; 4];

static TERMINAL: AtomicBool = AtomicBool::new(false);

/// The one terminal.
struct Tty {
    input: Mutex<Option<Ldisc>>,
    /// Bytes (or lines) a reader would get, for waiters to look at without the lock.
    ready: AtomicBool,
    job: Spin<Job>,
    size: Spin<WinSize>,
    readers: WaitQueue,
    watchers: PollQueue,
}

/// Who the terminal belongs to; 0 is nobody.
#[derive(Clone, Copy)]
struct Job {
    session: u32,
    foreground: u32,
}

static TTY: Tty = Tty {
    input: Mutex::new(None),
    ready: AtomicBool::new(false),
    job: Spin::new(Job {
        session: 0,
        foreground: 0,
    }),
    size: Spin::new([24, 80, 0, 0]),
    readers: WaitQueue::new(),
    watchers: PollQueue::new(),
};

/// Makes the console a terminal and starts its thread (`mode=shell`).
pub fn start_terminal() -> Result<(), Errno> {
    TERMINAL.store(true, Ordering::Release);
    crate::task::spawn_kernel_thread("console", console::thread, 0)
}

/// Whether the console is a terminal.
pub fn is_terminal() -> bool {
    TERMINAL.load(Ordering::Acquire)
}

/// Gives the terminal to a session, as the first process's start does.
pub fn give_to(session: u32, foreground: u32) {
    *TTY.job.lock() = Job {
        session,
        foreground,
    };
}

/// Whether `session` has the terminal (`tty_nr` of /proc/PID/stat), and its foreground group.
pub fn foreground_of(session: u32) -> Option<u32> {
    let job = *TTY.job.lock();
    (job.session == session && session != 0).then_some(job.foreground)
}

/// A session leader ends: the terminal is nobody's, its foreground group gets SIGHUP.
pub fn leader_exits(session: u32) {
    let group = {
        let mut job = TTY.job.lock();
        if job.session != session {
            return;
        }
        core::mem::replace(
            &mut *job,
            Job {
                session: 0,
                foreground: 0,
            },
        )
        .foreground
    };
    caller::signal_group(group, sys::SIGHUP);
    caller::signal_group(group, sys::SIGCONT);
}

/// Bytes typed.
pub(super) fn receive(bytes: &[u8]) {
    TTY.receive(bytes);
}

impl Tty {
    fn with_ldisc<T>(&self, f: impl FnOnce(&mut Ldisc) -> T) -> T {
        let mut input = self.input.lock();
        let ldisc = input.get_or_insert_with(Ldisc::default);
        let result = f(ldisc);
        self.ready.store(ldisc.readable(), Ordering::SeqCst);
        result
    }

    fn receive(&self, bytes: &[u8]) {
        for &byte in bytes {
            let outcome = self.with_ldisc(|l| l.input(byte, &mut |echo| raw_write(echo)));
            if let Some(key) = outcome.signal {
                let signal = match key {
                    KeySignal::Int => sys::SIGINT,
                    KeySignal::Quit => sys::SIGQUIT,
                    KeySignal::Suspend => sys::SIGTSTP,
                };
                let group = self.job.lock().foreground;
                caller::signal_group(group, signal);
            }
            if outcome.readable {
                self.readers.wake_all();
                self.watchers.notify();
            }
        }
    }

    /// A process outside the foreground group is stopped by `signal`, unless it does not care.
    fn check_background(&self, signal: u32) -> Result<(), Errno> {
        let me = caller::ids();
        let job = *self.job.lock();
        if job.session != me.sid || job.foreground == me.pgid || job.foreground == 0 {
            return Ok(());
        }
        if caller::ignores_or_blocks(signal) {
            return if signal == sys::SIGTTIN {
                Err(Errno::EIO)
            } else {
                Ok(())
            };
        }
        caller::signal_group(me.pgid, signal);
        Err(Errno::ERESTARTSYS)
    }

    fn read(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        self.check_background(sys::SIGTTIN)?;
        let (canonical, min, time) = self.with_ldisc(|l| {
            let t = l.termios();
            (
                l.canonical(),
                usize::from(t.cc[VMIN]),
                u64::from(t.cc[VTIME]) * 100_000_000,
            )
        });
        // VMIN 0: what is there, after at most VTIME; VMIN > 0: that many, VTIME between two bytes.
        let want = if canonical { 1 } else { min.min(buf.left()) };
        let mut done = 0;
        while buf.left() > 0 {
            let mut chunk = [0u8; 256];
            let room = chunk.len().min(buf.left());
            if let Some(n) = self.with_ldisc(|l| l.read(&mut chunk[..room])) {
                let put = buf.put(&chunk[..n])?;
                done += put;
                let more_of_line = n == room
                    && n > 0
                    && chunk[n - 1] != b'\n'
                    && self.ready.load(Ordering::SeqCst);
                if canonical && !more_of_line {
                    return Ok(done);
                }
                continue;
            }
            if done >= want && (canonical || want > 0 || time == 0 || done > 0) {
                break;
            }
            if nonblock {
                return if done > 0 {
                    Ok(done)
                } else {
                    Err(Errno::EAGAIN)
                };
            }
            let timed = !canonical && time > 0 && (min == 0 || done > 0);
            let deadline = timed.then(|| crate::arch::time::now_ns() + time);
            match self.readers.wait_while(Sleep::Interruptible, deadline, || {
                !self.ready.load(Ordering::SeqCst)
            }) {
                Ok(()) => self.check_background(sys::SIGTTIN)?,
                Err(WaitError::Timeout) => break,
                Err(WaitError::Signal) => {
                    return if done > 0 {
                        Ok(done)
                    } else {
                        Err(Errno::ERESTARTSYS)
                    };
                }
            }
        }
        Ok(done)
    }

    fn write(&self, buf: &mut IoBuf<'_>) -> SysResult {
        let tostop = self.with_ldisc(|l| l.termios().lflag & TOSTOP != 0);
        if tostop {
            self.check_background(sys::SIGTTOU)?;
        }
        write_chunks(buf, |bytes| {
            self.with_ldisc(|l| l.output(bytes, &mut |out| raw_write(out)))
        })
    }

    fn set_termios(&self, new: Termios) -> SysResult {
        self.check_background(sys::SIGTTOU)?;
        self.with_ldisc(|l| l.set_termios(new));
        self.readers.wake_all();
        self.watchers.notify();
        Ok(0)
    }

    fn control(&self, cmd: u32, arg: u64) -> SysResult {
        match cmd {
            ioctl::TCGETS => put_user(arg, &self.with_ldisc(|l| *l.termios())).map(|()| 0),
            ioctl::TCSETS | ioctl::TCSETSW => self.set_termios(get_user(arg)?),
            ioctl::TCSETSF => {
                let new = get_user(arg)?;
                self.set_termios(new)?;
                self.with_ldisc(Ldisc::flush);
                Ok(0)
            }
            ioctl::TIOCGWINSZ => {
                let size = *self.size.lock();
                put_user(arg, &size).map(|()| 0)
            }
            ioctl::TIOCSWINSZ => {
                let new: WinSize = get_user(arg)?;
                let old = core::mem::replace(&mut *self.size.lock(), new);
                if old != new {
                    caller::signal_group(self.job.lock().foreground, sys::SIGWINCH);
                }
                Ok(0)
            }
            ioctl::FIONREAD => {
                let n = self.with_ldisc(|l| l.available()) as i32;
                put_user(arg, &n).map(|()| 0)
            }
            ioctl::TIOCOUTQ => put_user(arg, &0i32).map(|()| 0),
            ioctl::TCFLSH => {
                if arg > 2 {
                    return Err(Errno::EINVAL);
                }
                if arg != 1 {
                    self.with_ldisc(Ldisc::flush);
                }
                Ok(0)
            }
            ioctl::TCSBRK | ioctl::TCSBRKP | ioctl::TCXONC => Ok(0),
            _ => self.job_control(cmd, arg),
        }
    }

    fn job_control(&self, cmd: u32, arg: u64) -> SysResult {
        let me = caller::ids();
        let job = *self.job.lock();
        let mine = job.session == me.sid;
        match cmd {
            ioctl::TIOCGPGRP if mine => put_user(arg, &(job.foreground as i32)).map(|()| 0),
            ioctl::TIOCGSID if mine => put_user(arg, &(job.session as i32)).map(|()| 0),
            ioctl::TIOCGPGRP | ioctl::TIOCGSID => Err(Errno::ENOTTY),
            ioctl::TIOCSPGRP => {
                if !mine {
                    return Err(Errno::ENOTTY);
                }
                self.check_background(sys::SIGTTOU)?;
                let group: i32 = get_user(arg)?;
                let group = u32::try_from(group).map_err(|_| Errno::EINVAL)?;
                match caller::session_of_group(group) {
                    None => Err(Errno::ESRCH),
                    Some(sid) if sid != me.sid => Err(Errno::EPERM),
                    Some(_) => {
                        self.job.lock().foreground = group;
                        Ok(0)
                    }
                }
            }
            ioctl::TIOCSCTTY => {
                if mine && me.pid == me.sid {
                    return Ok(0);
                }
                if me.pid != me.sid || job.session != 0 && arg != 1 {
                    return Err(Errno::EPERM);
                }
                give_to(me.sid, me.pgid);
                Ok(0)
            }
            ioctl::TIOCNOTTY => {
                if !mine {
                    return Err(Errno::ENOTTY);
                }
                if me.pid == me.sid {
                    leader_exits(me.sid);
                }
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}

/// An open file on the terminal.
struct TtyFile;

impl FileOps for TtyFile {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        TTY.read(buf, file.nonblocking())
    }

    fn try_read(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        TTY.read(buf, true)
    }

    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        TTY.write(buf)
    }

    fn splices_by_copy(&self) -> bool {
        true
    }

    fn seekable(&self) -> bool {
        false
    }

    fn poll(&self, _file: &File, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        if let Some(w) = watcher {
            TTY.watchers.add(w);
        }
        let input = if TTY.ready.load(Ordering::SeqCst) {
            Ready::READ
        } else {
            Ready::empty()
        };
        input | Ready::WRITE
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, _file: &File, cmd: u32, arg: u64) -> SysResult {
        TTY.control(cmd, arg)
    }
}

/// Opens /dev/console. A session leader without a terminal gets it, unless `noctty`.
pub fn open_console(noctty: bool) -> Result<Arc<dyn FileOps>, Errno> {
    if !is_terminal() {
        return Ok(Arc::new(console::RawConsole));
    }
    let me = caller::ids();
    if !noctty && me.pid == me.sid {
        let mut job = TTY.job.lock();
        if job.session == 0 {
            *job = Job {
                session: me.sid,
                foreground: me.pgid,
            };
        }
    }
    Ok(Arc::new(TtyFile))
}

/// Opens /dev/tty: the caller's terminal.
pub fn open_controlling() -> Result<Arc<dyn FileOps>, Errno> {
    match foreground_of(caller::ids().sid) {
        Some(_) => Ok(Arc::new(TtyFile)),
        None => Err(Errno::ENXIO),
    }
}
