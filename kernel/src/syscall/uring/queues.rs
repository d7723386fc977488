//! The two queues of a ring: what the program asks, and what it is answered.
//!
//! The program owns the submission tail and the completion head, the kernel the other two; the kernel keeps its own in
//! `Inner` and only shows them. What the program writes is a number to be masked or compared, never trusted: a wild
//! tail submits old entries again, a wild head loses the program its own completions.
//!
//! A completion that finds no room waits in the backlog, shown by `IORING_SQ_CQ_OVERFLOW`; while `LONG` wait nothing
//! new is submitted (EBUSY), so what the kernel keeps for a program that does not listen has an end.
#![forbid(unsafe_code)]

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use linux_raw_sys::io_uring as sys;

use super::memory::Region;
use super::timeout::{self, Timeout};
use crate::fs::poll::PollQueue;
use crate::sync::Mutex;
use crate::task::WaitQueue;
use mm::Errno;

/// Offsets in the region of the rings.
pub mod at {
    pub const SQ_HEAD: usize = 0;
    pub const SQ_TAIL: usize = 4;
    pub const SQ_MASK: usize = 8;
    pub const SQ_ENTRIES: usize = 12;
    pub const SQ_FLAGS: usize = 16;
    pub const SQ_DROPPED: usize = 20;
    pub const CQ_HEAD: usize = 64;
    pub const CQ_TAIL: usize = 68;
    pub const CQ_MASK: usize = 72;
    pub const CQ_ENTRIES: usize = 76;
    pub const CQ_OVERFLOW: usize = 80;
    pub const CQ_FLAGS: usize = 84;
    pub const CQES: usize = 128;
}

/// Completions that may wait for room while new requests are made.
const LONG: usize = 4096;

const CQE: usize = 16;
const SQE: usize = 64;

/// A submission as the program wrote it: eight doubles, each loaded once.
pub type Sqe = [u64; SQE / 8];

#[derive(Clone, Copy)]
struct Cqe {
    user_data: u64,
    result: i32,
}

struct Inner {
    sq_head: u32,
    backlog: VecDeque<Cqe>,
    timeouts: Vec<Timeout>,
    /// Completions so far, timeouts not among them: what timeouts count.
    posted: u64,
}

/// What a ring is without the files and memory that its requests use.
pub struct Queues {
    rings: Region,
    sqes: Region,
    sq_entries: u32,
    cq_entries: u32,
    inner: Mutex<Inner>,
    cq_tail: AtomicU32,
    /// Something in the backlog.
    overflown: AtomicBool,
    /// Parked requests that are called.
    called: AtomicU32,
    /// How often somebody was told to look for them.
    calls: AtomicU64,
    /// When the first timeout is due; `u64::MAX`: there is none.
    pub(super) due: AtomicU64,
    /// Timeouts that are over, but for those that were removed.
    ended: AtomicU64,
    /// The timekeeper knows this ring.
    pub(super) kept: AtomicBool,
    pub waiters: WaitQueue,
    pub watchers: PollQueue,
}

impl Queues {
    /// Both numbers are powers of two.
    pub fn new(sq_entries: u32, cq_entries: u32) -> Result<Queues, Errno> {
        let (sq, cq) = (sq_entries as usize, cq_entries as usize);
        let made = Queues {
            rings: Region::new(at::CQES + cq * CQE + sq * 4)?,
            sqes: Region::new(sq * SQE)?,
            sq_entries,
            cq_entries,
            inner: Mutex::new(Inner {
                sq_head: 0,
                backlog: VecDeque::new(),
                timeouts: Vec::new(),
                posted: 0,
            }),
            cq_tail: AtomicU32::new(0),
            overflown: AtomicBool::new(false),
            called: AtomicU32::new(0),
            calls: AtomicU64::new(0),
            due: AtomicU64::new(u64::MAX),
            ended: AtomicU64::new(0),
            kept: AtomicBool::new(false),
            waiters: WaitQueue::new(),
            watchers: PollQueue::new(),
        };
        for (at, value) in [
            (at::SQ_MASK, sq_entries - 1),
            (at::SQ_ENTRIES, sq_entries),
            (at::CQ_MASK, cq_entries - 1),
            (at::CQ_ENTRIES, cq_entries),
        ] {
            made.rings.word(at).store(value, Relaxed);
        }
        Ok(made)
    }

    pub fn rings(&self) -> &Region {
        &self.rings
    }

    pub fn sqes(&self) -> &Region {
        &self.sqes
    }

    pub fn sq_entries(&self) -> u32 {
        self.sq_entries
    }

    pub fn cq_entries(&self) -> u32 {
        self.cq_entries
    }

    /// Where the array of submissions begins.
    pub fn array(&self) -> usize {
        at::CQES + self.cq_entries as usize * CQE
    }

    /// Submissions that the program has queued.
    pub fn queued(&self) -> u32 {
        let tail = self.rings.word(at::SQ_TAIL).load(Acquire);
        let head = self.rings.word(at::SQ_HEAD).load(Relaxed);
        tail.wrapping_sub(head).min(self.sq_entries)
    }

    /// The next submission; an index past the end is dropped, and ends the call.
    pub fn next(&self) -> Option<Sqe> {
        let mut inner = self.inner.lock();
        let head = inner.sq_head;
        if self.rings.word(at::SQ_TAIL).load(Acquire) == head {
            return None;
        }
        let slot = (head & (self.sq_entries - 1)) as usize;
        let index = self.rings.word(self.array() + 4 * slot).load(Relaxed);
        let sqe = (index < self.sq_entries).then(|| {
            let base = index as usize * SQE;
            let words: &[_; SQE / 8] = self.sqes.doubles(base);
            words.each_ref().map(|word| word.load(Relaxed))
        });
        inner.sq_head = head.wrapping_add(1);
        self.rings.word(at::SQ_HEAD).store(inner.sq_head, Release);
        if sqe.is_none() {
            self.rings.word(at::SQ_DROPPED).fetch_add(1, Relaxed);
        }
        sqe
    }

    /// Completions that the program has not taken.
    pub fn unread(&self) -> u32 {
        let head = self.rings.word(at::CQ_HEAD).load(Acquire);
        self.cq_tail.load(SeqCst).wrapping_sub(head)
    }

    pub fn is_overflown(&self) -> bool {
        self.overflown.load(SeqCst)
    }

    /// Whether so many completions wait for room that nothing new is done.
    pub fn is_full(&self) -> bool {
        self.is_overflown() && self.inner.lock().backlog.len() >= LONG
    }

    fn room(&self) -> bool {
        self.unread() < self.cq_entries
    }

    fn write(&self, cqe: Cqe) {
        let tail = self.cq_tail.load(Relaxed);
        let at = at::CQES + CQE * (tail & (self.cq_entries - 1)) as usize;
        let [user_data, result] = self.rings.doubles(at);
        user_data.store(cqe.user_data, Relaxed);
        result.store(u64::from(cqe.result as u32), Relaxed);
        let tail = tail.wrapping_add(1);
        self.rings.word(at::CQ_TAIL).store(tail, Release);
        self.cq_tail.store(tail, SeqCst);
    }

    fn complete(&self, inner: &mut Inner, user_data: u64, result: i32) {
        let cqe = Cqe { user_data, result };
        if inner.backlog.is_empty() && self.room() {
            return self.write(cqe);
        }
        if inner.backlog.try_reserve(1).is_err() {
            self.rings.word(at::CQ_OVERFLOW).fetch_add(1, Relaxed);
            return;
        }
        inner.backlog.push_back(cqe);
        self.overflown.store(true, SeqCst);
        let flags = self.rings.word(at::SQ_FLAGS);
        flags.fetch_or(sys::IORING_SQ_CQ_OVERFLOW, SeqCst);
    }

    /// Tells the program what came of a request.
    pub fn post(&self, user_data: u64, result: i32) {
        let mut inner = self.inner.lock();
        self.complete(&mut inner, user_data, result);
        inner.posted += 1;
        let posted = inner.posted;
        self.end_timeouts(&mut inner, 0, |t| t.counted(posted));
        drop(inner);
        self.announce();
    }

    /// Ends the timeouts that are over, each looked at once: a program has many.
    fn end_timeouts(&self, inner: &mut Inner, result: i32, over: impl Fn(&Timeout) -> bool) {
        let mut i = 0;
        while let Some(t) = inner.timeouts.get(i) {
            if over(t) {
                let t = inner.timeouts.swap_remove(i);
                self.complete(inner, t.user_data, result);
                self.ended.fetch_add(1, SeqCst);
            } else {
                i += 1;
            }
        }
    }

    /// Moves what waits in the backlog to where there is room now. Who waits for the ring may have slept through what was
    /// there before.
    pub fn flush(&self) {
        if !self.is_overflown() {
            return;
        }
        let mut inner = self.inner.lock();
        let before = self.cq_tail.load(Relaxed);
        while self.room()
            && let Some(cqe) = inner.backlog.pop_front()
        {
            self.write(cqe);
        }
        if inner.backlog.is_empty() {
            self.overflown.store(false, SeqCst);
            let flags = self.rings.word(at::SQ_FLAGS);
            flags.fetch_and(!sys::IORING_SQ_CQ_OVERFLOW, SeqCst);
        }
        let moved = self.cq_tail.load(Relaxed) != before;
        drop(inner);
        if moved {
            self.announce();
        }
    }

    /// Changes by each timeout that is over.
    pub fn ended(&self) -> u64 {
        self.ended.load(SeqCst)
    }

    fn announce(&self) {
        self.waiters.wake_all();
        self.watchers.notify();
    }

    /// A request that waited may go on: who waits for the ring looks whether it is his.
    pub fn call_for_work(&self) {
        self.calls.fetch_add(1, SeqCst);
        self.announce();
    }

    /// Changes by each call for work: who has looked for work and saw the same before need not look again.
    pub fn calls(&self) -> u64 {
        self.calls.load(SeqCst)
    }

    /// One more parked request is called, or one less. The program sees whether there are any.
    pub fn count_called(&self, more: bool) {
        match more {
            true => self.called.fetch_add(1, SeqCst),
            false => self.called.fetch_sub(1, SeqCst),
        };
        // Who writes the flag looks once more: others count meanwhile, and what is written last has to be right.
        let flags = self.rings.word(at::SQ_FLAGS);
        loop {
            let any = self.any_called();
            match any {
                true => flags.fetch_or(sys::IORING_SQ_TASKRUN, SeqCst),
                false => flags.fetch_and(!sys::IORING_SQ_TASKRUN, SeqCst),
            };
            if self.any_called() == any {
                return;
            }
        }
    }

    /// Whether some are called, or are just being told so.
    pub fn any_called(&self) -> bool {
        self.called.load(SeqCst) != 0
    }

    /// Adds a timeout that ends after `count` further completions, if that is not 0; EAGAIN when there are too many.
    pub fn add_timeout(&self, mut t: Timeout, count: u32) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        if inner.timeouts.len() >= self.cq_entries as usize {
            return Err(Errno::EAGAIN);
        }
        inner.timeouts.try_reserve(1).map_err(|_| Errno::EAGAIN)?;
        t.target = (count != 0).then(|| inner.posted + u64::from(count));
        self.due.fetch_min(t.deadline, SeqCst);
        inner.timeouts.push(t);
        Ok(())
    }

    /// Ends the timeout of that name; ENOENT.
    pub fn cancel_timeout(&self, user_data: u64) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let found = inner.timeouts.iter().position(|t| t.user_data == user_data);
        inner.timeouts.swap_remove(found.ok_or(Errno::ENOENT)?);
        self.complete(&mut inner, user_data, -Errno::ECANCELED.raw());
        drop(inner);
        self.announce();
        Ok(())
    }

    /// Ends the timeouts that are due, and finds out when the next one is.
    pub fn expire(&self, now: u64) {
        if self.due.load(SeqCst) > now {
            return;
        }
        let mut inner = self.inner.lock();
        self.end_timeouts(&mut inner, -Errno::ETIME.raw(), |t| t.deadline <= now);
        let next = inner.timeouts.iter().map(|t| t.deadline).min();
        self.due.store(next.unwrap_or(u64::MAX), SeqCst);
        drop(inner);
        self.announce();
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        if self.kept.load(Relaxed) {
            timeout::forget();
        }
    }
}
