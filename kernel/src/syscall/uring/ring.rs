//! The file: what programs have a descriptor of.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::mem::take;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use linux_raw_sys::io_uring as sys;

use super::buffers::{self, Registered};
use super::queues::{Queues, Sqe};
use super::request::{self, Request, Transfer};
use super::timeout::{self, Timeout};
use crate::SysResult;
use crate::fs::anon::AnonNode;
use crate::fs::inode::FileOps;
use crate::fs::poll::{Notify, Ready};
use crate::fs::{File, Mappable};
use crate::sync::{Mutex, MutexGuard};
use crate::task::{Sleep, WaitError, cond_resched, fatal_signal_pending, signal_pending};
use mm::Errno;
use spin::Mutex as Spin;

/// A ring.
pub struct Ring {
    queues: Arc<Queues>,
    /// IORING_SETUP_*.
    flags: u32,
    transfers: Spin<Transfers>,
    registered: Mutex<Registered>,
}

/// Where transfers are that have not ended.
struct Transfers {
    parked: Vec<Transfer>,
    /// Those that somebody attempts, by name.
    running: Vec<(u64, Arc<Waker>)>,
}

impl Transfers {
    /// One that ran does no more.
    fn ran(&mut self, waker: &Arc<Waker>) {
        let mut running = self.running.iter();
        if let Some(i) = running.position(|r| Arc::ptr_eq(&r.1, waker)) {
            self.running.swap_remove(i);
        }
    }
}

/// A transfer as others see it: called when a file changes that it waits for, so that who can run it looks.
pub struct Waker {
    queues: Arc<Queues>,
    called: AtomicBool,
    /// It is not parked any more.
    cancelled: AtomicBool,
}

impl Waker {
    pub fn new(queues: &Arc<Queues>) -> Arc<Self> {
        Arc::new(Waker {
            queues: queues.clone(),
            called: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        })
    }

    pub fn is_called(&self) -> bool {
        self.called.load(SeqCst)
    }

    /// Forgets that it was called: before one looks at what it is called for.
    pub fn rest(&self) {
        if self.called.swap(false, SeqCst) {
            self.queues.count_called(false);
        }
    }
}

impl Notify for Waker {
    fn notify(&self) {
        // Counted first: never are more called than counted.
        self.queues.count_called(true);
        if self.called.swap(true, SeqCst) {
            self.queues.count_called(false);
        } else {
            self.queues.call_for_work();
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.rest();
    }
}

/// Transfers that are attempted in one go.
const BATCH: usize = 16;

impl Ring {
    /// An open file on a new ring. Both numbers are powers of two.
    pub fn open(sq_entries: u32, cq_entries: u32, flags: u32) -> Result<Arc<File>, Errno> {
        crate::memory::headroom()?;
        let ring = Ring {
            queues: Arc::new(Queues::new(sq_entries, cq_entries)?),
            flags,
            transfers: Spin::new(Transfers {
                parked: Vec::new(),
                running: Vec::new(),
            }),
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

    /// Runs up to `most` submissions; how many were taken. EBUSY while too many completions wait for room.
    pub fn submit(&self, most: u32) -> Result<u32, Errno> {
        self.work();
        let most = most.min(self.queues.queued());
        if most != 0 && self.queues.is_full() {
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
            Ok(Some(n)) => self.queues.post(user_data, told(Ok(n))),
            Ok(None) => {}
            Err(e) => self.queues.post(user_data, told(Err(e))),
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
                lasts()?;
                timeout::keep(&self.queues)?;
                self.queues.add_timeout(timeout, count)?;
                timeout::added();
                Ok(None)
            }
            Request::CancelTimeout(name) => self.queues.cancel_timeout(name).map(|()| Some(0)),
            Request::Cancel(name) => self.cancel(name).map(|()| Some(0)),
            Request::Transfer(transfer) => {
                if let Some(begun) = transfer.begin(&self.queues) {
                    return begun.map(|()| None);
                }
                self.runs(&transfer)?;
                self.attempt(transfer, true);
                Ok(None)
            }
        }
    }

    /// A transfer is attempted from now on: who cancels it finds it.
    fn runs(&self, transfer: &Transfer) -> Result<(), Errno> {
        let mut transfers = self.transfers.lock();
        let running = &mut transfers.running;
        running.try_reserve(1).map_err(|_| Errno::EAGAIN)?;
        running.push(transfer.named());
        Ok(())
    }

    /// Attempts a transfer that is among those that run; `first`: it has not been parked before.
    fn attempt(&self, transfer: Transfer, first: bool) {
        let (user_data, waker) = transfer.named();
        let result = if transfer.is_lost() {
            Err(Errno::ECANCELED)
        } else if let Some(result) = transfer.attempt() {
            result
        } else {
            match self.park(transfer, &waker, first) {
                Ok(()) => return,
                Err(errno) => Err(errno),
            }
        };
        // Told first: who cancels it and does not find it finds its completion.
        self.queues.post(user_data, told(result));
        self.transfers.lock().ran(&waker);
    }

    /// Parks one that runs, unless it was cancelled or, the first time, too many are or memory is short (EAGAIN): then it still runs.
    fn park(&self, transfer: Transfer, waker: &Arc<Waker>, first: bool) -> Result<(), Errno> {
        if first {
            lasts()?;
        }
        let mut transfers = self.transfers.lock();
        if waker.cancelled.load(SeqCst) {
            return Err(Errno::ECANCELED);
        }
        let parked = &mut transfers.parked;
        let full = first && parked.len() >= self.queues.cq_entries() as usize;
        if full || parked.try_reserve(1).is_err() {
            return Err(Errno::EAGAIN);
        }
        parked.push(transfer);
        transfers.ran(waker);
        drop(transfers);
        // Who was called for it while it was in no list has not found it.
        if waker.is_called() {
            self.queues.call_for_work();
        }
        Ok(())
    }

    /// Ends what is parked; what runs at the moment is only kept from parking (EALREADY).
    fn cancel(&self, name: u64) -> Result<(), Errno> {
        let mut transfers = self.transfers.lock();
        let parked = &mut transfers.parked;
        if let Some(i) = parked.iter().position(|t| t.user_data == name) {
            let gone = parked.remove(i);
            drop(transfers);
            self.queues.post(gone.user_data, -Errno::ECANCELED.raw());
            return Ok(());
        }
        if let Some((_, waker)) = transfers.running.iter().find(|r| r.0 == name) {
            waker.cancelled.store(true, SeqCst);
            return Err(Errno::EALREADY);
        }
        drop(transfers);
        self.queues.cancel_timeout(name)
    }

    /// Moves some of the parked transfers that the caller can run and shall to `batch`; how many.
    fn take(&self, batch: &mut [Option<Transfer>; BATCH]) -> usize {
        let mut transfers = self.transfers.lock();
        let Transfers { parked, running } = &mut *transfers;
        if running.try_reserve(BATCH).is_err() {
            return 0;
        }
        let mut n = 0;
        for (place, transfer) in batch.iter_mut().zip(parked.extract_if(.., |t| t.is_due())) {
            running.push(transfer.named());
            *place = Some(transfer);
            n += 1;
        }
        n
    }

    /// Gives waiting completions room and the caller's called transfers another try.
    fn work(&self) {
        self.queues.flush();
        if !self.queues.any_called() {
            return;
        }
        loop {
            let mut batch = [const { None }; BATCH];
            let n = self.take(&mut batch);
            for transfer in batch.into_iter().flatten() {
                self.attempt(transfer, false);
            }
            if n < BATCH || fatal_signal_pending() {
                return;
            }
            cond_resched();
        }
    }

    /// Whether there is work that the caller can do.
    fn has_work(&self) -> bool {
        self.queues.any_called() && self.transfers.lock().parked.iter().any(Transfer::is_due)
    }

    /// Waits until `least` completions are there to be taken, or a timeout of the ring is over. EINTR, ETIME if there are none.
    pub fn wait(&self, least: u32, deadline: Option<u64>) -> Result<(), Errno> {
        let queues = &self.queues;
        let least = least.min(queues.cq_entries());
        let ended = queues.ended();
        let enough = || queues.unread() >= least || queues.ended() != ended;
        let fails = |errno| match queues.unread() {
            0 => Err(errno),
            _ => Ok(()),
        };
        loop {
            let calls = queues.calls();
            self.work();
            if enough() {
                return Ok(());
            }
            // There may be work that a signal ends each time.
            if signal_pending() {
                return fails(Errno::EINTR);
            }
            let waited = queues
                .waiters
                .wait_while(Sleep::Interruptible, deadline, || {
                    !enough() && queues.calls() == calls && !queues.is_overflown()
                });
            match waited {
                Ok(()) => {}
                Err(WaitError::Timeout) => return fails(Errno::ETIME),
                Err(WaitError::Signal) => return fails(Errno::EINTR),
            }
        }
    }
}

/// Something that lasts is to be made for a program: EAGAIN while memory is short.
fn lasts() -> Result<(), Errno> {
    crate::memory::headroom().map_err(|_| Errno::EAGAIN)
}

/// As a completion says it.
pub fn told(result: SysResult) -> i32 {
    match result {
        Ok(n) => n as i32,
        // No call that could be restarted.
        Err(Errno::ERESTARTSYS) => -Errno::EINTR.raw(),
        Err(e) => -e.raw(),
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
        if queues.unread() != 0 || queues.is_overflown() || self.has_work() {
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
