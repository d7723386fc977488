//! One direction of a SOCK_SEQPACKET pair: messages, whole and in order. A read takes one and forgets what it has no
//! room for.
//!
//! Waiting as in pipes: a waiter queues itself and then looks at the atomics, the other side changes them under the
//! lock and then wakes.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::iobuf::IoBuf;
use super::poll::{Notify, PollQueue, Ready};
use super::socketpair::Lane;
use crate::SysResult;
use crate::sync::Mutex;
use crate::task::{Sleep, WaitQueue};
use mm::Errno;

/// What may be on its way (Linux's default send buffer), and what a message takes of it beside its bytes.
const ROOM: usize = 212_992;
const OVERHEAD: usize = 768;
/// The longest message.
const LONGEST: usize = ROOM - 32;

pub struct Packets {
    queue: Mutex<VecDeque<Box<[u8]>>>,
    messages: AtomicUsize,
    /// Bytes and overhead on their way.
    charged: AtomicUsize,
    readers: AtomicUsize,
    writers: AtomicUsize,
    read_wait: WaitQueue,
    write_wait: WaitQueue,
    watchers: PollQueue,
}

impl Packets {
    pub fn create() -> Result<Arc<Self>, Errno> {
        crate::memory::headroom()?;
        Ok(Arc::new(Packets {
            queue: Mutex::new(VecDeque::new()),
            messages: AtomicUsize::new(0),
            charged: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
            writers: AtomicUsize::new(0),
            read_wait: WaitQueue::new(),
            write_wait: WaitQueue::new(),
            watchers: PollQueue::new(),
        }))
    }

    fn empty(&self) -> bool {
        self.messages.load(SeqCst) == 0
    }
    fn full(&self) -> bool {
        self.charged.load(SeqCst) >= ROOM
    }
    fn gone(end: &AtomicUsize) -> bool {
        end.load(SeqCst) == 0
    }
}

impl Lane for Packets {
    fn read(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        if buf.left() == 0 {
            return Ok(0);
        }
        loop {
            if !nonblock {
                self.read_wait
                    .wait_while(Sleep::Interruptible, None, || {
                        self.empty() && !Self::gone(&self.writers)
                    })
                    .map_err(|_| Errno::ERESTARTSYS)?;
            }
            let mut queue = self.queue.lock();
            if let Some(message) = queue.pop_front() {
                self.messages.store(queue.len(), SeqCst);
                drop(queue);
                self.charged.fetch_sub(message.len() + OVERHEAD, SeqCst);
                self.write_wait.wake_all();
                self.watchers.notify();
                let n = message.len().min(buf.left());
                return match buf.put(&message[..n])? {
                    moved if moved < n => Err(Errno::EFAULT),
                    _ => Ok(n),
                };
            }
            drop(queue);
            if Self::gone(&self.writers) {
                return Ok(0);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
        }
    }

    fn write(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        let len = buf.left();
        if len > LONGEST {
            return Err(Errno::EMSGSIZE);
        }
        crate::memory::headroom()?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(len, 0);
        if buf.take(&mut bytes)? < len {
            return Err(Errno::EFAULT);
        }
        loop {
            let mut queue = self.queue.lock();
            if Self::gone(&self.readers) {
                return Err(Errno::EPIPE);
            }
            if !self.full() {
                queue.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                queue.push_back(bytes.into_boxed_slice());
                self.charged.fetch_add(len + OVERHEAD, SeqCst);
                self.messages.store(queue.len(), SeqCst);
                drop(queue);
                self.read_wait.wake_all();
                self.watchers.notify();
                return Ok(len);
            }
            drop(queue);
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            self.write_wait
                .wait_while(Sleep::Interruptible, None, || {
                    self.full() && !Self::gone(&self.readers)
                })
                .map_err(|_| Errno::ERESTARTSYS)?;
        }
    }

    fn enter(&self, reads: bool, writes: bool) {
        self.readers.fetch_add(usize::from(reads), SeqCst);
        self.writers.fetch_add(usize::from(writes), SeqCst);
    }

    fn leave(&self, reads: bool, writes: bool) {
        self.readers.fetch_sub(usize::from(reads), SeqCst);
        self.writers.fetch_sub(usize::from(writes), SeqCst);
        self.read_wait.wake_all();
        self.write_wait.wake_all();
        self.watchers.notify();
    }

    fn ready_to_read(&self) -> Ready {
        let mut r = Ready::empty();
        if !self.empty() {
            r |= Ready::READ;
        }
        if Self::gone(&self.writers) {
            r |= Ready::HUP;
        }
        r
    }

    fn ready_to_write(&self) -> Ready {
        let mut r = Ready::empty();
        if !self.full() {
            r |= Ready::WRITE;
        }
        if Self::gone(&self.readers) {
            r |= Ready::ERR;
        }
        r
    }

    fn watch(&self, watcher: &Arc<dyn Notify>) {
        self.watchers.add(watcher);
    }

    fn available(&self) -> usize {
        self.queue.lock().iter().map(|m| m.len()).sum()
    }
}
