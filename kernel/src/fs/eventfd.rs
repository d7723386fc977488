//! eventfd: a counter to wait on.

use alloc::sync::Arc;
use core::any::Any;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use linux_raw_sys::general as sys;

use super::anon::AnonNode;
use super::file::File;
use super::inode::FileOps;
use super::iobuf::IoBuf;
use super::poll::{Notify, PollQueue, Ready};
use crate::SysResult;
use crate::task::{Sleep, WaitQueue};
use mm::Errno;

const MAX: u64 = u64::MAX - 1;
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// The counter; changed by compare-and-swap, waiters look at it without a lock.
pub struct EventFd {
    count: AtomicU64,
    /// Its number, for /proc.
    id: u64,
    semaphore: bool,
    changed: WaitQueue,
    watchers: PollQueue,
}

impl EventFd {
    /// An open file on a new counter.
    pub fn open(initial: u64, semaphore: bool, nonblock: bool) -> Result<Arc<File>, Errno> {
        crate::memory::headroom()?;
        let event = EventFd {
            count: AtomicU64::new(initial),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            semaphore,
            changed: WaitQueue::new(),
            watchers: PollQueue::new(),
        };
        let status = if nonblock { sys::O_NONBLOCK } else { 0 };
        Ok(File::new(
            AnonNode::path(b"anon_inode:[eventfd]"),
            Arc::new(event),
            sys::O_RDWR | status,
        ))
    }

    fn announce(&self) {
        self.changed.wake_all();
        self.watchers.notify();
    }

    /// One more, for who cannot wait; at the most it stays.
    pub fn count_one(&self) {
        let add = |count: u64| (count < MAX).then_some(count + 1);
        let _ = self
            .count
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        self.announce();
    }

    /// Changes the count by `step` as soon as that gives something.
    fn update(&self, nonblock: bool, step: impl Fn(u64) -> Option<u64>) -> Result<u64, Errno> {
        loop {
            if let Ok(old) = self
                .count
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, &step)
            {
                self.announce();
                return Ok(old);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            self.changed
                .wait_while(Sleep::Interruptible, None, || {
                    step(self.count.load(Ordering::SeqCst)).is_none()
                })
                .map_err(|_| Errno::ERESTARTSYS)?;
        }
    }

    fn take(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        if buf.left() < 8 {
            return Err(Errno::EINVAL);
        }
        let old = self.update(nonblock, |c| match c {
            0 => None,
            c if self.semaphore => Some(c - 1),
            _ => Some(0),
        })?;
        let value = if self.semaphore { 1 } else { old };
        buf.put(&value.to_ne_bytes())
    }

    fn add(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        let mut bytes = [0; 8];
        buf.take_exact(&mut bytes)?;
        let add = u64::from_ne_bytes(bytes);
        if add == u64::MAX {
            return Err(Errno::EINVAL);
        }
        self.update(nonblock, |c| c.checked_add(add).filter(|n| *n <= MAX))?;
        Ok(8)
    }
}

impl FileOps for EventFd {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.take(buf, file.nonblocking())
    }

    fn write(&self, file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.add(buf, file.nonblocking())
    }

    fn try_read(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.take(buf, true)
    }

    fn try_write(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.add(buf, true)
    }

    fn seekable(&self) -> bool {
        false
    }

    fn poll(&self, _file: &File, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        if let Some(w) = watcher {
            self.watchers.add(w);
        }
        let count = self.count.load(Ordering::SeqCst);
        let mut ready = Ready::empty();
        if count > 0 {
            ready |= Ready::IN;
        }
        if count < MAX {
            ready |= Ready::OUT;
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn info(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(
            out,
            "eventfd-count: {:16x}",
            self.count.load(Ordering::SeqCst)
        )?;
        writeln!(out, "eventfd-id: {}", self.id)?;
        writeln!(out, "eventfd-semaphore: {}", u8::from(self.semaphore))
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}
