//! epoll: a set of files to wait for, kept between waits.
//!
//! Every watched file has an `Item`, registered with the file as a watcher. A notification arms the item and wakes
//! the waiters; a wait polls armed items only. A level-triggered item that was ready stays armed; an edge-triggered
//! one is disarmed before it is polled, so that a change during the poll arms it again. Items hold the file weakly:
//! the last close of a watched file takes it out of the set. What is left of it, which keeps its address from being
//! used again, is swept out when the set has doubled.
#![forbid(unsafe_code)]

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use linux_raw_sys::general as sys;

use super::anon::AnonNode;
use super::file::File;
use super::inode::FileOps;
use super::poll::{Notify, PollQueue, Ready};
use crate::sync::Mutex;
use crate::task::{Sleep, WaitError, WaitQueue};
use mm::Errno;

/// How deep epolls may watch epolls.
const MAX_DEPTH: usize = 5;

/// An epoll set.
pub struct Epoll {
    shared: Arc<Shared>,
    /// By file and descriptor number, as Linux keys them.
    items: Mutex<BTreeMap<(usize, i32), Entry>>,
    /// The size of `items` that asks for the next sweep.
    sweep_at: AtomicUsize,
}

/// Entries before the first sweep.
const FIRST_SWEEP: usize = 64;

struct Entry {
    item: Arc<Item>,
    file: Weak<File>,
    events: u32,
    data: u64,
}

/// What items wake.
struct Shared {
    armed: AtomicBool,
    waiters: WaitQueue,
    watchers: PollQueue,
}

struct Item {
    armed: AtomicBool,
    shared: Weak<Shared>,
}

impl Notify for Item {
    fn notify(&self) {
        self.armed.store(true, Ordering::SeqCst);
        if let Some(s) = self.shared.upgrade() {
            s.armed.store(true, Ordering::SeqCst);
            s.waiters.wake_all();
            s.watchers.notify();
        }
    }
}

/// What `epoll_wait` hands out.
pub struct Event {
    pub events: u32,
    pub data: u64,
}

impl Epoll {
    /// An open file on a new set.
    pub fn open() -> Result<Arc<File>, Errno> {
        crate::memory::headroom()?;
        let shared = Shared {
            armed: AtomicBool::new(false),
            waiters: WaitQueue::new(),
            watchers: PollQueue::new(),
        };
        let epoll = Epoll {
            shared: Arc::new(shared),
            items: Mutex::new(BTreeMap::new()),
            sweep_at: AtomicUsize::new(FIRST_SWEEP),
        };
        Ok(File::new(
            AnonNode::path(b"anon_inode:[eventpoll]"),
            Arc::new(epoll),
            sys::O_RDWR,
        ))
    }

    /// How many levels of epoll are below, `None` when `target` is among them or they are too many.
    fn depth(&self, target: *const Epoll, left: usize) -> Option<usize> {
        if core::ptr::eq(self, target) || left == 0 {
            return None;
        }
        let files: Vec<Arc<File>> = self
            .items
            .lock()
            .values()
            .filter_map(|e| e.file.upgrade())
            .collect();
        let mut deepest = 0;
        for file in files {
            if let Some(inner) = file.ops_as::<Epoll>() {
                deepest = deepest.max(inner.depth(target, left - 1)?);
            }
        }
        Some(deepest + 1)
    }

    /// epoll_ctl; `events` and `data` are ignored by EPOLL_CTL_DEL.
    pub fn control(
        &self,
        op: u32,
        fd: i32,
        file: &Arc<File>,
        events: u32,
        data: u64,
    ) -> Result<(), Errno> {
        if !file.ops().pollable() {
            return Err(Errno::EPERM);
        }
        if let Some(inner) = file.ops_as::<Epoll>() {
            if core::ptr::eq(inner, self) {
                return Err(Errno::EINVAL);
            }
            if op == sys::EPOLL_CTL_ADD && inner.depth(self, MAX_DEPTH).is_none() {
                return Err(Errno::ELOOP);
            }
        }
        let key = (Arc::as_ptr(file) as usize, fd);
        let always = (Ready::ERR | Ready::HUP).bits();
        let events = events | always;
        let mut items = self.items.lock();
        if items.len() >= self.sweep_at.load(Ordering::Relaxed) {
            items.retain(|_, e| e.file.strong_count() > 0);
            let next = FIRST_SWEEP.max(2 * items.len());
            self.sweep_at.store(next, Ordering::Relaxed);
        }
        match op {
            sys::EPOLL_CTL_ADD => {
                if items.contains_key(&key) {
                    return Err(Errno::EEXIST);
                }
                crate::memory::headroom()?;
                let item = Arc::new(Item {
                    armed: AtomicBool::new(true),
                    shared: Arc::downgrade(&self.shared),
                });
                let watcher: Arc<dyn Notify> = item.clone();
                let ready = file.poll(Some(&watcher));
                items.insert(
                    key,
                    Entry {
                        item,
                        file: Arc::downgrade(file),
                        events,
                        data,
                    },
                );
                drop(items);
                self.kick(ready);
            }
            sys::EPOLL_CTL_MOD => {
                let e = items.get_mut(&key).ok_or(Errno::ENOENT)?;
                e.events = events;
                e.data = data;
                e.item.armed.store(true, Ordering::SeqCst);
                drop(items);
                self.kick(Ready::all());
            }
            sys::EPOLL_CTL_DEL => {
                let gone = items.remove(&key).ok_or(Errno::ENOENT)?;
                drop(items);
                drop(gone);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn kick(&self, ready: Ready) {
        if !ready.is_empty() {
            self.shared.armed.store(true, Ordering::SeqCst);
            self.shared.waiters.wake_all();
            self.shared.watchers.notify();
        }
    }

    /// Moves up to `max` events to `out`.
    fn harvest(&self, out: &mut Vec<Event>, max: usize) {
        let mut items = self.items.lock();
        self.shared.armed.store(false, Ordering::SeqCst);
        let mut again = false;
        for entry in items.values_mut() {
            if !entry.item.armed.load(Ordering::SeqCst) {
                continue;
            }
            if out.len() == max {
                again = true;
                break;
            }
            let Some(file) = entry.file.upgrade() else {
                continue;
            };
            let edge = entry.events & sys::EPOLLET != 0;
            entry.item.armed.store(false, Ordering::SeqCst);
            let ready = file.poll(None).bits() & entry.events;
            if ready == 0 {
                continue;
            }
            out.push(Event {
                events: ready,
                data: entry.data,
            });
            if entry.events & sys::EPOLLONESHOT != 0 {
                // Off until EPOLL_CTL_MOD.
                entry.events &=
                    sys::EPOLLET | sys::EPOLLONESHOT | sys::EPOLLWAKEUP | sys::EPOLLEXCLUSIVE;
            } else if !edge {
                entry.item.armed.store(true, Ordering::SeqCst);
                again = true;
            }
        }
        if again {
            self.shared.armed.store(true, Ordering::SeqCst);
        }
    }

    /// epoll_wait: up to `max` events, or none at the deadline.
    pub fn wait(&self, max: usize, deadline: Option<u64>) -> Result<Vec<Event>, Errno> {
        let mut out = Vec::new();
        out.try_reserve(max.min(64)).map_err(|_| Errno::ENOMEM)?;
        let max = out.capacity().min(max);
        loop {
            self.harvest(&mut out, max);
            if !out.is_empty() {
                return Ok(out);
            }
            let idle = || !self.shared.armed.load(Ordering::SeqCst);
            match self
                .shared
                .waiters
                .wait_while(Sleep::Interruptible, deadline, idle)
            {
                Ok(()) => {}
                Err(WaitError::Timeout) => return Ok(out),
                Err(WaitError::Signal) => return Err(Errno::EINTR),
            }
        }
    }
}

impl FileOps for Epoll {
    fn seekable(&self) -> bool {
        false
    }

    fn poll(&self, _file: &File, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        if let Some(w) = watcher {
            self.shared.watchers.add(w);
        }
        let items = self.items.lock();
        let ready = items.values().any(|e| {
            e.item.armed.load(Ordering::SeqCst)
                && e.file
                    .upgrade()
                    .is_some_and(|f| f.poll(None).bits() & e.events != 0)
        });
        if ready { Ready::READ } else { Ready::empty() }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}
