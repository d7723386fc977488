//! The file: what programs have a descriptor of.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::mem::take;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use linux_raw_sys::io_uring as sys;

use super::buffers::{self, Registered};
use super::queues::{Queues, Sqe};
use super::request::{self, Request, Transfer};
use super::timeout::{self, Timeout};
use crate::fs::anon::AnonNode;
use crate::fs::inode::FileOps;
use crate::fs::poll::{Notify, Ready};
use crate::fs::{File, Mappable};
use crate::sync::{Mutex, MutexGuard};
use crate::task::{Sleep, WaitError, cond_resched, fatal_signal_pending, signal_pending};
use mm::Errno;

/// A ring.
pub struct Ring {
    queues: Arc<Queues>,
    /// IORING_SETUP_*.
    flags: u32,
    parked: Mutex<Vec<Transfer>>,
    /// Requests that are parked, or were and are being tried again.
    waiting: AtomicUsize,
    registered: Mutex<Registered>,
}

/// Calls for work when a file's state changes.
pub struct Waker(pub Arc<Queues>);

impl Notify for Waker {
    fn notify(&self) {
        self.0.call_for_work();
    }
}

impl Ring {
    /// An open file on a new ring. Both numbers are powers of two.
    pub fn open(sq_entries: u32, cq_entries: u32, flags: u32) -> Result<Arc<File>, Errno> {
        crate::memory::headroom()?;
        let ring = Ring {
            queues: Arc::new(Queues::new(sq_entries, cq_entries)?),
            flags,
            parked: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            registered: Mutex::new(Registered::new()),
        };
        Ok(File::new(
            AnonNode::path(b"anon_inode:[io_uring]"),
            Arc::new(ring),
            linux_raw_sys::general::O_RDWR,
        ))
    }

    pub fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    pub fn registered(&self) -> MutexGuard<'_, Registered> {
        self.registered.lock()
    }

    /// IORING_REGISTER_BUFFERS; EBUSY if there are some.
    pub fn register_buffers(&self, array: u64, count: u32) -> Result<(), Errno> {
        if !self.registered().is_empty() {
            return Err(Errno::EBUSY);
        }
        // Pinned without the lock: faulting pages in takes as long as it likes.
        let fresh = buffers::register(array, count)?;
        let mut registered = self.registered();
        if !registered.is_empty() {
            drop(registered);
            return Err(Errno::EBUSY);
        }
        *registered = fresh;
        Ok(())
    }

    /// IORING_UNREGISTER_BUFFERS; ENXIO if there are none.
    pub fn unregister_buffers(&self) -> Result<(), Errno> {
        let gone = take(&mut *self.registered());
        if gone.is_empty() {
            return Err(Errno::ENXIO);
        }
        Ok(())
    }

    /// Runs up to `most` submissions; how many were taken. EBUSY while completions wait for room.
    pub fn submit(&self, most: u32) -> Result<u32, Errno> {
        self.work();
        let most = most.min(self.queues.queued());
        if most != 0 && self.queues.is_overflown() {
            return Err(Errno::EBUSY);
        }
        let mut done = 0;
        while done < most && !fatal_signal_pending() {
            let Some(sqe) = self.queues.next() else {
                break;
            };
            done += 1;
            if !self.start(&sqe) && self.flags & sys::IORING_SETUP_SUBMIT_ALL == 0 {
                break;
            }
            cond_resched();
        }
        Ok(done)
    }

    /// Begins a request; `false` if it was none.
    fn start(&self, sqe: &Sqe) -> bool {
        let user_data = request::user_data(sqe);
        let result = match request::parse(self, sqe) {
            Ok(request) => self.run(user_data, request),
            Err(e) => {
                self.queues.post(user_data, -e.raw());
                return false;
            }
        };
        match result {
            Ok(Some(n)) => self.queues.post(user_data, n as i32),
            Ok(None) => {}
            Err(e) => self.queues.post(user_data, -told(e)),
        }
        true
    }

    /// `None`: its completion comes later, or came already.
    fn run(&self, user_data: u64, request: Request) -> Result<Option<usize>, Errno> {
        match request {
            Request::Nop => Ok(Some(0)),
            Request::Fsync(file) => file.fsync().map(|()| Some(0)),
            Request::Timeout { deadline, count } => {
                let timeout = Timeout {
                    user_data,
                    deadline,
                    target: None,
                };
                self.queues.add_timeout(timeout, count)?;
                timeout::keep(&self.queues).map(|()| None)
            }
            Request::CancelTimeout(name) => self.queues.cancel_timeout(name).map(|()| Some(0)),
            Request::Cancel(name) => {
                let mut parked = self.parked.lock();
                let found = parked.iter().position(|t| t.user_data == name);
                let gone = found.map(|i| parked.swap_remove(i));
                drop(parked);
                if let Some(transfer) = gone {
                    self.end(&transfer, Err(Errno::ECANCELED));
                    return Ok(Some(0));
                }
                self.queues.cancel_timeout(name).map(|()| Some(0))
            }
            Request::Transfer(transfer) => match transfer.attempt() {
                Some(result) => result.map(Some),
                None => self.park(transfer).map(|()| None),
            },
        }
    }

    /// The first time; EAGAIN if too many wait.
    fn park(&self, transfer: Transfer) -> Result<(), Errno> {
        let most = self.queues.cq_entries() as usize;
        let more = |n: usize| (n < most).then_some(n + 1);
        self.waiting
            .fetch_update(Relaxed, Relaxed, more)
            .map_err(|_| Errno::EAGAIN)?;
        self.keep(transfer).map_err(|_| {
            self.waiting.fetch_sub(1, Relaxed);
            Errno::EAGAIN
        })
    }

    /// Into the list. Its file may have changed while it was in no list and nobody could find it: then there is work.
    fn keep(&self, transfer: Transfer) -> Result<(), Transfer> {
        let mut parked = self.parked.lock();
        if parked.try_reserve(1).is_err() {
            return Err(transfer);
        }
        let ready = transfer.is_here() && transfer.ready();
        parked.push(transfer);
        drop(parked);
        if ready {
            self.queues.call_for_work();
        }
        Ok(())
    }

    /// Ends one that was parked.
    fn end(&self, transfer: &Transfer, result: Result<usize, Errno>) {
        self.waiting.fetch_sub(1, Relaxed);
        let n = result.map_or_else(|e| -told(e), |n| n as i32);
        self.queues.post(transfer.user_data, n);
    }

    /// Gives waiting completions room and parked requests another try.
    fn work(&self) {
        self.queues.flush();
        if !self.queues.take_work() {
            return;
        }
        let parked = take(&mut *self.parked.lock());
        for transfer in parked {
            let result = if transfer.is_lost() {
                Some(Err(Errno::ECANCELED))
            } else if transfer.is_here() {
                transfer.attempt()
            } else {
                None
            };
            match result {
                Some(result) => self.end(&transfer, result),
                None => {
                    if let Err(transfer) = self.keep(transfer) {
                        self.end(&transfer, Err(Errno::ENOMEM));
                    }
                }
            }
        }
    }

    /// Waits until `least` completions are there to be taken. EINTR, ETIME.
    pub fn wait(&self, least: u32, deadline: Option<u64>) -> Result<(), Errno> {
        let queues = &self.queues;
        let least = least.min(queues.cq_entries());
        loop {
            self.work();
            if queues.unread() >= least {
                return Ok(());
            }
            // There may be work that a signal ends each time.
            if signal_pending() {
                return Err(Errno::EINTR);
            }
            queues
                .waiters
                .wait_while(Sleep::Interruptible, deadline, || {
                    queues.unread() < least && !queues.has_work()
                })
                .map_err(|e| match e {
                    WaitError::Timeout => Errno::ETIME,
                    WaitError::Signal => Errno::EINTR,
                })?;
        }
    }
}

/// As a completion says it.
fn told(e: Errno) -> i32 {
    match e {
        Errno::ERESTARTSYS => Errno::EINTR.raw(),
        e => e.raw(),
    }
}

impl FileOps for Ring {
    fn seekable(&self) -> bool {
        false
    }

    fn pollable(&self) -> bool {
        true
    }

    fn poll(&self, _file: &File, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        let queues = &self.queues;
        if let Some(w) = watcher {
            queues.watchers.add(w);
        }
        let mut ready = Ready::empty();
        if queues.unread() != 0 || queues.is_overflown() || queues.has_work() {
            ready |= Ready::READ;
        }
        if queues.queued() < queues.sq_entries() {
            ready |= Ready::WRITE;
        }
        ready
    }

    fn mmap_at(&self, _file: &File, offset: u64, _len: u64) -> Result<Mappable, Errno> {
        // As in Linux the low bits of the offset say nothing: a mapping begins where its memory does.
        let region = match offset as u32 & sys::IORING_OFF_MMAP_MASK {
            sys::IORING_OFF_SQ_RING | sys::IORING_OFF_CQ_RING => self.queues.rings(),
            sys::IORING_OFF_SQES => self.queues.sqes(),
            // What Linux says, where looking for a place to map at is what fails.
            _ => return Err(Errno::ENOMEM),
        };
        Ok(Mappable::Window(region.object().clone()))
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}
