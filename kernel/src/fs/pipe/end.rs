//! The ends of a pipe as open files.

use alloc::sync::Arc;
use core::any::Any;
use linux_raw_sys::general as sys;

use super::Pipe;
use crate::SysResult;
use crate::fs::caller;
use crate::fs::file::File;
use crate::fs::inode::FileOps;
use crate::fs::iobuf::IoBuf;
use crate::fs::poll::{Notify, Ready};
use mm::Errno;

/// An open file on a pipe or FIFO.
pub struct PipeEnd {
    pub pipe: Arc<Pipe>,
}

impl PipeEnd {
    pub(in crate::fs) fn open(pipe: &Arc<Pipe>, flags: u32) -> Arc<dyn FileOps> {
        let (reads, writes) = ends(flags);
        pipe.enter(reads, writes);
        Arc::new(PipeEnd { pipe: pipe.clone() })
    }

    fn put(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        let result = self.pipe.write(buf, nonblock);
        if result == Err(Errno::EPIPE) {
            caller::send_sigpipe();
        }
        result
    }
}

/// Whether an open file reads, and whether it writes.
pub(in crate::fs) fn ends(flags: u32) -> (bool, bool) {
    let mode = flags & sys::O_ACCMODE;
    (mode != sys::O_WRONLY, mode != sys::O_RDONLY)
}

impl FileOps for PipeEnd {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.pipe.read(buf, file.nonblocking())
    }

    fn write(&self, file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.put(buf, file.nonblocking())
    }

    fn try_read(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.pipe.read(buf, true)
    }

    fn try_write(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.put(buf, true)
    }

    fn seekable(&self) -> bool {
        false
    }

    fn poll(&self, file: &File, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        if let Some(w) = watcher {
            self.pipe.watchers.add(w);
        }
        let mut ready = Ready::empty();
        if file.readable() {
            ready |= self.pipe.ready_to_read();
        }
        if file.writable() {
            ready |= self.pipe.ready_to_write();
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, _file: &File, cmd: u32, arg: u64) -> SysResult {
        if cmd == linux_raw_sys::ioctl::FIONREAD {
            let n = self.pipe.available().min(i32::MAX as usize) as i32;
            crate::arch::uaccess::put_user(arg, &n)?;
            return Ok(0);
        }
        Err(Errno::ENOTTY)
    }

    fn release(&self, file: &File) {
        let (reads, writes) = ends(file.flags());
        self.pipe.leave(reads, writes);
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}
