//! A context: the requests of a process that are in flight, and the ring of events that it shares with the kernel.
//!
//! A request has a place in the ring from its submission on, so that its event finds one. The program may take events by itself: it
//! moves the head, which is a number to be reduced, never trusted; one who lies loses his own events.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

use super::super::uring::memory::Region;
use crate::arch::ncpus;
use crate::arch::uaccess::put_user;
use crate::sync::Mutex;
use crate::task::{Sleep, WaitError, WaitQueue};
use mm::object::cache::Label;
use mm::{Errno, PAGE_SIZE};

/// `struct aio_ring`, and `struct io_event` behind it.
mod at {
    pub const NR: usize = 4;
    pub const HEAD: usize = 8;
    pub const TAIL: usize = 12;
    pub const MAGIC: usize = 16;
    pub const COMPAT: usize = 20;
    pub const HEADER: usize = 28;
    pub const EVENTS: usize = 32;
}
const MAGIC: u32 = 0xa10a_10a1;
const EVENT: usize = 32;
/// Requests of all contexts (`/proc/sys/fs/aio-max-nr`).
const MOST: usize = 65536;
static ALL: AtomicUsize = AtomicUsize::new(0);

/// What an event says: `aio_data`, where the iocb is, the result.
pub struct Event(pub u64, pub u64, pub i64);

pub struct Context {
    region: Region,
    /// Events in the ring.
    nr: u32,
    asked: usize,
    /// Where the next event goes. Who submits or posts has it.
    next: Mutex<u32>,
    /// One reader at a time. User memory is touched under it: nobody who writes events takes it.
    reader: Mutex<()>,
    tail: AtomicU32,
    /// Requests without an event; counted up with `next` locked.
    flying: AtomicU32,
    /// The fewest events that a waiter waits for.
    wanted: AtomicU32,
    dead: AtomicBool,
    waiters: WaitQueue,
}

impl Context {
    /// For `asked` requests. EINVAL: more than a ring can have; EAGAIN: than all together may.
    pub fn new(asked: u32) -> Result<Context, Errno> {
        let nr = asked.max(4 * ncpus() as u32).wrapping_mul(2);
        if nr as usize > (1 << 28) / EVENT {
            return Err(Errno::EINVAL);
        }
        let asked = asked as usize;
        let more = |all: usize| all.checked_add(asked).filter(|all| *all <= MOST);
        ALL.fetch_update(Relaxed, Relaxed, more)
            .map_err(|_| Errno::EAGAIN)?;
        let bytes = (at::EVENTS + EVENT * (nr as usize + 2)).next_multiple_of(PAGE_SIZE as usize);
        let region = Region::new(bytes).inspect_err(|_| {
            ALL.fetch_sub(asked, Relaxed);
        })?;
        let nr = ((bytes - at::EVENTS) / EVENT) as u32;
        for (at, value) in [
            (at::NR, nr),
            (at::MAGIC, MAGIC),
            (at::COMPAT, 1),
            (at::HEADER, at::EVENTS as u32),
        ] {
            region.word(at).store(value, Relaxed);
        }
        region.object().set_label(Label {
            path: Some(Arc::from(String::from("/[aio] (deleted)"))),
            ..Label::default()
        });
        Ok(Context {
            region,
            nr,
            asked,
            next: Mutex::new(0),
            reader: Mutex::new(()),
            tail: AtomicU32::new(0),
            flying: AtomicU32::new(0),
            wanted: AtomicU32::new(u32::MAX),
            dead: AtomicBool::new(false),
            waiters: WaitQueue::new(),
        })
    }

    pub fn region(&self) -> &Region {
        &self.region
    }

    pub fn nr(&self) -> u32 {
        self.nr
    }

    fn head(&self) -> u32 {
        self.region.word(at::HEAD).load(Acquire) % self.nr
    }

    /// Events that nobody has taken.
    fn unread(&self) -> u32 {
        (self.tail.load(SeqCst) + self.nr - self.head()) % self.nr
    }

    /// A place for an event; EAGAIN if there is none. [`Context::post`] fills it, or [`Context::withdraw`] gives it back.
    pub fn reserve(&self) -> Result<(), Errno> {
        let _next = self.next.lock();
        if self.dead.load(SeqCst) {
            return Err(Errno::EINVAL);
        }
        if self.flying.load(SeqCst) + self.unread() + 1 >= self.nr {
            return Err(Errno::EAGAIN);
        }
        self.flying.fetch_add(1, SeqCst);
        Ok(())
    }

    pub fn withdraw(&self) {
        self.flying.fetch_sub(1, SeqCst);
        self.wake();
    }

    /// A request is over.
    pub fn post(&self, event: &Event) {
        let mut next = self.next.lock();
        let at = at::EVENTS + EVENT * *next as usize;
        let words = [event.0, event.1, event.2 as u64, 0];
        let places: &[_; 4] = self.region.doubles(at);
        for (place, word) in places.iter().zip(words) {
            place.store(word, Relaxed);
        }
        *next = (*next + 1) % self.nr;
        self.region.word(at::TAIL).store(*next, Release);
        self.tail.store(*next, SeqCst);
        self.flying.fetch_sub(1, SeqCst);
        drop(next);
        self.wake();
    }

    fn wake(&self) {
        if self.dead.load(SeqCst) || self.unread() >= self.wanted.load(SeqCst) {
            // Who is woken and waits on says again for how many.
            self.wanted.store(u32::MAX, SeqCst);
            self.waiters.wake_all();
        }
    }

    /// Copies up to `most` events to `to` in user memory.
    fn take(&self, to: u64, most: usize) -> Result<usize, Errno> {
        let _reader = self.reader.lock();
        let (mut head, tail) = (self.head(), self.tail.load(SeqCst));
        let mut n = 0;
        while head != tail && n < most {
            let at = at::EVENTS + EVENT * head as usize;
            let words: &[_; 4] = self.region.doubles(at);
            let event = words.each_ref().map(|word| word.load(Relaxed));
            let to = to.checked_add((n * EVENT) as u64);
            put_user(to.ok_or(Errno::EFAULT)?, &event)?;
            head = (head + 1) % self.nr;
            n += 1;
        }
        self.region.word(at::HEAD).store(head, Release);
        Ok(n)
    }

    /// Copies events to `to` until there have been `least`; at most `most`. A signal or the deadline ends it: what there was.
    pub fn read(
        &self,
        least: usize,
        most: usize,
        to: u64,
        deadline: Option<u64>,
    ) -> Result<usize, Errno> {
        let mut n = 0;
        loop {
            let at = to.checked_add(n as u64 * EVENT as u64);
            match at
                .ok_or(Errno::EFAULT)
                .and_then(|at| self.take(at, most - n))
            {
                Ok(more) => n += more,
                Err(e) if n == 0 => return Err(e),
                Err(_) => return Ok(n),
            }
            if n >= least {
                return Ok(n);
            }
            let need = u32::try_from(least - n)
                .unwrap_or(u32::MAX)
                .min(self.nr - 1);
            let wait = || {
                self.wanted.fetch_min(need, SeqCst);
                self.unread() < need && !self.dead.load(SeqCst)
            };
            let ended = self
                .waiters
                .wait_while(Sleep::Interruptible, deadline, wait);
            if ended.is_ok() && !self.dead.load(SeqCst) {
                continue;
            }
            // What came meanwhile counts.
            let at = to.checked_add(n as u64 * EVENT as u64);
            n += at.and_then(|at| self.take(at, most - n).ok()).unwrap_or(0);
            return match ended {
                _ if n != 0 => Ok(n),
                Ok(()) => Err(Errno::EINVAL),
                Err(WaitError::Timeout) => Ok(0),
                Err(WaitError::Signal) => Err(Errno::EINTR),
            };
        }
    }

    /// Nothing is submitted any more, and everything is over when this returns.
    pub fn end(&self) {
        {
            let _next = self.next.lock();
            self.dead.store(true, SeqCst);
        }
        self.waiters.wake_all();
        let _ = self.waiters.wait_while(Sleep::Uninterruptible, None, || {
            self.flying.load(SeqCst) != 0
        });
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        ALL.fetch_sub(self.asked, Relaxed);
    }
}

/// The contexts of an address space, by the address of their ring.
pub struct Contexts(Mutex<Vec<(u64, Arc<Context>)>>);

impl Default for Contexts {
    fn default() -> Self {
        Contexts(Mutex::new(Vec::new()))
    }
}

impl Contexts {
    pub fn add(&self, id: u64, context: Arc<Context>) -> Result<(), Errno> {
        let mut all = self.0.lock();
        all.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        all.push((id, context));
        Ok(())
    }

    pub fn get(&self, id: u64) -> Option<Arc<Context>> {
        let all = self.0.lock();
        let found = all.iter().find(|(name, _)| *name == id);
        found.map(|(_, context)| context.clone())
    }

    pub fn remove(&self, id: u64) -> Option<Arc<Context>> {
        let mut all = self.0.lock();
        let i = all.iter().position(|(name, _)| *name == id)?;
        Some(all.swap_remove(i).1)
    }

    /// The space is going.
    pub fn end(&self) {
        for (_, context) in core::mem::take(&mut *self.0.lock()) {
            context.end();
        }
    }
}
