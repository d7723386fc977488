//! Descriptors that stand for a process: they outlive its pid, and become readable when it ends.

use alloc::sync::Arc;
use core::any::Any;
use core::fmt;

use mm::Errno;

use super::process::{Process, REAPED};
use super::{current, table};
use crate::fs::File;
use crate::fs::anon::AnonNode;
use crate::fs::inode::FileOps;
use crate::fs::poll::{Notify, Ready};
use core::sync::atomic::Ordering;
use linux_raw_sys::general as sys;

/// What the descriptor's file holds.
pub struct PidFd {
    process: Arc<Process>,
}

impl FileOps for PidFd {
    fn poll(&self, _file: &File, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        if let Some(w) = watcher {
            self.process.watchers.add(w);
        }
        if self.process.is_zombie() {
            Ready::READ
        } else {
            Ready::empty()
        }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn info(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let reaped = self.process.state.load(Ordering::Acquire) == REAPED;
        let pid = if reaped {
            -1
        } else {
            i64::from(self.process.pid)
        };
        write!(out, "Pid:\t{pid}\nNSpid:\t{pid}\n")
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

/// A file for `process`.
pub(super) fn file_for(process: &Arc<Process>, nonblock: bool) -> Arc<File> {
    let status = if nonblock { sys::O_NONBLOCK } else { 0 };
    File::new(
        AnonNode::path(b"anon_inode:[pidfd]"),
        Arc::new(PidFd {
            process: process.clone(),
        }),
        sys::O_RDWR | status,
    )
}

/// `pidfd_open`: a descriptor for the process whose leader is `pid`.
pub fn open(pid: u32, nonblock: bool) -> Result<i32, Errno> {
    crate::memory::headroom()?;
    let process = {
        let tasks = table::lock();
        let t = tasks.thread(pid).ok_or(Errno::ESRCH)?;
        if t.process.pid == 0 {
            return Err(Errno::ESRCH);
        }
        if t.process.pid != pid {
            // A thread that leads nothing.
            return Err(Errno::EINVAL);
        }
        t.process.clone()
    };
    current()
        .files()
        .install(file_for(&process, nonblock), true)
}

/// The process behind descriptor `fd`; EBADF if it is no such descriptor.
pub fn process_of(fd: i32) -> Result<Arc<Process>, Errno> {
    let file = current().files().get(fd)?;
    let pidfd = file.ops_as::<PidFd>().ok_or(Errno::EBADF)?;
    Ok(pidfd.process.clone())
}

/// As `process_of`, for what needs it to exist still.
pub fn living(fd: i32) -> Result<Arc<Process>, Errno> {
    let p = process_of(fd)?;
    if p.state.load(Ordering::Acquire) == REAPED {
        return Err(Errno::ESRCH);
    }
    Ok(p)
}
