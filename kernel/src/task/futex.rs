//! Futexes: user words to sleep on.
//!
//! A futex is known by the page it lies in: a private one by its space and address, a shared one by
//! its object and offset. Waiters stand in one of a fixed number of buckets, each with a spin lock.
//! A waiter reads the user word with its bucket locked (without faulting: on a fault it unlocks,
//! faults the page in and starts again), so a waker that changed the word before it locked the
//! bucket either finds the waiter or was seen by it. A waiter always takes its bucket's lock once
//! more before it returns, so a waker under that lock may use it to the end.

use alloc::vec::Vec;
use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering, fence};

use mm::Errno;
use spin::Mutex as Spin;

use super::space::{FutexKey as Key, futex_key, key_words};
use super::thread::{INTERRUPTIBLE, NORMAL, RUNNING, RestartBlock, Thread};
use super::{WORK_KILL, WORK_SIGNAL, current, sched, timer};
use crate::SysResult;
use crate::arch::time::now_ns;
use crate::arch::uaccess::{get_user, user_cmpxchg_u32, user_load_u32, user_load_u32_nofault};
use linux_raw_sys::general as sys;

const BUCKETS: usize = 256;
/// Matches every bitset.
pub const ANY: u32 = u32::MAX;

struct Waiter {
    key: Cell<Key>,
    bitset: u32,
    thread: *const Thread,
    next: Cell<*const Waiter>,
    prev: Cell<*const Waiter>,
    /// The bucket it stands in; changed by requeue with both buckets locked.
    bucket: AtomicPtr<Bucket>,
    woken: AtomicBool,
}

struct List {
    first: *const Waiter,
    last: *const Waiter,
}

// SAFETY: waiters are reached with the bucket locked.
unsafe impl Send for List {}

#[repr(align(64))]
struct Bucket {
    waiters: AtomicU32,
    list: Spin<List>,
}

static TABLE: [Bucket; BUCKETS] = [const {
    Bucket {
        waiters: AtomicU32::new(0),
        list: Spin::new(List {
            first: ptr::null(),
            last: ptr::null(),
        }),
    }
}; BUCKETS];

fn bucket_of(key: &Key) -> &'static Bucket {
    let (a, b) = key_words(key);
    let h = (a ^ b.rotate_left(32) ^ (b >> 2)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &TABLE[(h >> 56) as usize % BUCKETS]
}

impl Bucket {
    /// Appends; the bucket's `list` is locked.
    ///
    /// # Safety
    /// `w` is in no list and stays in place while it is in this one.
    unsafe fn push(&'static self, list: &mut List, w: &Waiter) {
        w.next.set(ptr::null());
        w.prev.set(list.last);
        // SAFETY: queued waiters are alive.
        match unsafe { list.last.as_ref() } {
            Some(l) => l.next.set(w),
            None => list.first = w,
        }
        list.last = w;
        w.bucket
            .store((self as *const Bucket).cast_mut(), Ordering::Release);
        self.waiters.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a waiter out; the bucket's `list` is locked.
    ///
    /// # Safety
    /// `w` is in this list.
    unsafe fn remove(&self, list: &mut List, w: &Waiter) {
        let (prev, next) = (w.prev.get(), w.next.get());
        // SAFETY: queued waiters are alive.
        unsafe {
            match prev.as_ref() {
                Some(p) => p.next.set(next),
                None => list.first = next,
            }
            match next.as_ref() {
                Some(n) => n.prev.set(prev),
                None => list.last = prev,
            }
        }
        self.waiters.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes up to `max` waiters of `key`; the list is locked.
    fn wake(&self, list: &mut List, key: &Key, max: u32, bitset: u32) -> u32 {
        let mut n = 0;
        let mut at = list.first;
        // SAFETY: queued waiters are alive while the list is locked; a woken one takes the lock
        // before it goes away.
        while let Some(w) = unsafe { at.as_ref() } {
            if n == max {
                break;
            }
            at = w.next.get();
            if w.key.get() == *key && w.bitset & bitset != 0 {
                // SAFETY: as above.
                unsafe { self.remove(list, w) };
                w.woken.store(true, Ordering::Release);
                // SAFETY: as above.
                sched::wake(unsafe { &*w.thread }, NORMAL);
                n += 1;
            }
        }
        n
    }
}

/// Wakes waiters of the futex at `addr`.
pub fn wake(addr: u64, private: bool, max: u32, bitset: u32) -> SysResult {
    if addr & 3 != 0 || bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let key = futex_key(addr, private)?;
    let bucket = bucket_of(&key);
    fence(Ordering::SeqCst);
    if bucket.waiters.load(Ordering::Relaxed) == 0 {
        return Ok(0);
    }
    let mut list = bucket.list.lock();
    Ok(bucket.wake(&mut list, &key, max, bitset) as usize)
}

/// Wakes waiters of an address of the running thread's space, private and shared; for exit.
pub(super) fn wake_address(addr: u64, max: u32) {
    // The kernel cleared the word; whoever waits used a shared futex on it (as pthread_join does).
    let _ = wake(addr, false, max, ANY);
    let _ = wake(addr, true, max, ANY);
}

impl Waiter {
    fn new(addr: u64, private: bool, bitset: u32) -> Result<Waiter, Errno> {
        Ok(Waiter {
            key: Cell::new(futex_key(addr, private)?),
            bitset,
            thread: current(),
            next: Cell::new(ptr::null()),
            prev: Cell::new(ptr::null()),
            bucket: AtomicPtr::new(ptr::null_mut()),
            woken: AtomicBool::new(false),
        })
    }

    /// Queues the waiter while the word at `addr` is `val`; EAGAIN if it is not.
    ///
    /// # Safety
    /// The waiter is in no list; it stays in place until it has left (`leave`).
    unsafe fn enter(&self, addr: u64, private: bool, val: u32) -> Result<(), Errno> {
        loop {
            let bucket = bucket_of(&self.key.get());
            let mut list = bucket.list.lock();
            // Announce ourselves before we look: a waker that changed the word counts waiters after.
            bucket.waiters.fetch_add(1, Ordering::SeqCst);
            let found = user_load_u32_nofault(addr);
            if found == Ok(val) {
                // SAFETY: the caller's promise.
                unsafe { bucket.push(&mut list, self) };
                bucket.waiters.fetch_sub(1, Ordering::Relaxed);
                return Ok(());
            }
            bucket.waiters.fetch_sub(1, Ordering::Relaxed);
            drop(list);
            match found {
                Ok(_) => return Err(Errno::EAGAIN),
                Err(_) => {
                    user_load_u32(addr)?;
                    self.key.set(futex_key(addr, private)?);
                }
            }
        }
    }

    /// Takes a queued waiter out of its list; whether somebody has woken it.
    fn leave(&self) -> bool {
        loop {
            let at = self.bucket.load(Ordering::Acquire);
            // SAFETY: buckets are static.
            let bucket: &'static Bucket = unsafe { &*at };
            let mut list = bucket.list.lock();
            if self.bucket.load(Ordering::Relaxed) != at {
                continue;
            }
            if self.woken.load(Ordering::Relaxed) {
                return true;
            }
            // SAFETY: locked, and nobody took it out.
            unsafe { bucket.remove(&mut list, self) };
            return false;
        }
    }
}

/// Sleeps until one of `waiters` is woken, a signal, or `deadline` (monotonic).
#[inline]
fn sleep(waiters: &[Waiter], deadline: Option<u64>) -> Result<(), Errno> {
    let me = current();
    let mut armed = false;
    let result = loop {
        me.state.swap(INTERRUPTIBLE, Ordering::SeqCst);
        if waiters.iter().any(|w| w.woken.load(Ordering::Acquire)) {
            break Ok(());
        }
        if me.work.load(Ordering::SeqCst) & (WORK_SIGNAL | WORK_KILL) != 0 {
            break Err(Errno::ERESTARTSYS);
        }
        if let Some(d) = deadline {
            if now_ns() >= d {
                break Err(Errno::ETIMEDOUT);
            }
            if !armed {
                timer::start(&me.sleep_timer, d);
                armed = true;
            }
        }
        sched::schedule();
    };
    me.state.store(RUNNING, Ordering::Relaxed);
    if armed {
        timer::cancel(&me.sleep_timer);
    }
    result
}

/// Sleeps while the word at `addr` is `val`, until woken or `deadline` (monotonic).
pub fn wait(
    addr: u64,
    private: bool,
    val: u32,
    bitset: u32,
    deadline: Option<u64>,
) -> Result<(), Errno> {
    if addr & 3 != 0 || bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let waiter = Waiter::new(addr, private, bitset)?;
    // SAFETY: it lives in this frame and leaves below.
    unsafe { waiter.enter(addr, private, val)? };
    let result = sleep(core::slice::from_ref(&waiter), deadline);
    if waiter.leave() { Ok(()) } else { result }
}

/// One word of `wait_many`.
#[derive(Clone, Copy)]
pub struct Word {
    pub addr: u64,
    pub val: u32,
    pub private: bool,
}

/// Sleeps while every word has its value, until one is woken: its place among `words`.
pub fn wait_many(words: &[Word], deadline: Option<u64>) -> SysResult {
    let mut waiters = Vec::new();
    waiters
        .try_reserve_exact(words.len())
        .map_err(|_| Errno::ENOMEM)?;
    for w in words {
        if w.addr & 3 != 0 {
            return Err(Errno::EINVAL);
        }
        waiters.push(Waiter::new(w.addr, w.private, ANY)?);
    }
    let (mut queued, mut result) = (0, Ok(()));
    for (w, waiter) in words.iter().zip(&waiters) {
        // SAFETY: the vector does not change any more; everyone queued leaves below.
        result = unsafe { waiter.enter(w.addr, w.private, w.val) };
        if result.is_err() {
            break;
        }
        queued += 1;
    }
    if result.is_ok() {
        result = sleep(&waiters, deadline);
    }
    let mut woken = None;
    for (i, waiter) in waiters[..queued].iter().enumerate() {
        if waiter.leave() {
            woken = Some(i);
        }
    }
    match (woken, result) {
        (Some(i), _) => Ok(i),
        (None, Err(e)) => Err(e),
        (None, Ok(())) => Err(Errno::EAGAIN),
    }
}

/// FUTEX_WAIT with a relative timeout restarts with the same deadline.
pub fn wait_restartable(
    addr: u64,
    private: bool,
    val: u32,
    bitset: u32,
    deadline: Option<u64>,
) -> SysResult {
    match wait(addr, private, val, bitset, deadline) {
        Ok(()) => Ok(0),
        Err(Errno::ERESTARTSYS) if deadline.is_some() => {
            // SAFETY: the running thread's own field.
            unsafe {
                current().mine().restart = RestartBlock {
                    func: restart_wait,
                    args: [
                        addr,
                        private as u64,
                        val as u64,
                        bitset as u64,
                        deadline.unwrap_or(0),
                        0,
                    ],
                }
            };
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        Err(e) => Err(e),
    }
}

fn restart_wait(a: &[u64; 6]) -> SysResult {
    wait_restartable(a[0], a[1] != 0, a[2] as u32, a[3] as u32, Some(a[4]))
}

/// Wakes some waiters of `from` and moves others to `to`, if the word at `from` is `expected`.
/// Returns how many were woken, and how many were moved.
pub fn requeue(
    from: u64,
    to: u64,
    private: bool,
    max_wake: u32,
    max_move: u32,
    expected: Option<u32>,
) -> Result<(u32, u32), Errno> {
    if from & 3 != 0 || to & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    loop {
        let (k1, k2) = (futex_key(from, private)?, futex_key(to, private)?);
        let (b1, b2) = (bucket_of(&k1), bucket_of(&k2));
        let same = ptr::eq(b1, b2);
        let (mut l1, mut l2) = if same {
            (b1.list.lock(), None)
        } else if (b1 as *const Bucket) < b2 as *const Bucket {
            let l1 = b1.list.lock();
            (l1, Some(b2.list.lock()))
        } else {
            let l2 = b2.list.lock();
            (b1.list.lock(), Some(l2))
        };
        if let Some(expected) = expected {
            match user_load_u32_nofault(from) {
                Ok(v) if v == expected => {}
                Ok(_) => return Err(Errno::EAGAIN),
                Err(_) => {
                    drop(l2);
                    drop(l1);
                    user_load_u32(from)?;
                    continue;
                }
            }
        }
        let woken = b1.wake(&mut l1, &k1, max_wake, ANY);
        let mut moved = 0;
        let mut at = l1.first;
        // SAFETY: queued waiters are alive while their list is locked.
        while let Some(w) = unsafe { at.as_ref() } {
            if moved == max_move {
                break;
            }
            at = w.next.get();
            if w.key.get() != k1 {
                continue;
            }
            w.key.set(k2);
            moved += 1;
            if let Some(l2) = &mut l2 {
                // SAFETY: both lists are locked.
                unsafe {
                    b1.remove(&mut l1, w);
                    b2.push(l2, w);
                }
            }
        }
        return Ok((woken, moved));
    }
}

/// FUTEX_WAKE_OP: changes the word at `to`, wakes waiters of `from`, and of `to` if the old value
/// passes the comparison.
pub fn wake_op(from: u64, to: u64, private: bool, max1: u32, max2: u32, op: u32) -> SysResult {
    if from & 3 != 0 || to & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    let old = atomic_op(to, op)?;
    let woken = wake(from, private, max1, ANY)?;
    let cmparg = sign_extend_12(op & 0xfff);
    let (old, arg) = (old as i32, cmparg);
    let pass = match op >> 24 & 15 {
        sys::FUTEX_OP_CMP_EQ => old == arg,
        sys::FUTEX_OP_CMP_NE => old != arg,
        sys::FUTEX_OP_CMP_LT => old < arg,
        sys::FUTEX_OP_CMP_LE => old <= arg,
        sys::FUTEX_OP_CMP_GT => old > arg,
        sys::FUTEX_OP_CMP_GE => old >= arg,
        _ => return Err(Errno::ENOSYS),
    };
    Ok(woken
        + if pass {
            wake(to, private, max2, ANY)?
        } else {
            0
        })
}

fn sign_extend_12(v: u32) -> i32 {
    ((v << 20) as i32) >> 20
}

fn atomic_op(addr: u64, op: u32) -> Result<u32, Errno> {
    let mut arg = sign_extend_12(op >> 12 & 0xfff) as u32;
    if op >> 28 & sys::FUTEX_OP_OPARG_SHIFT != 0 {
        arg = 1 << (arg & 31);
    }
    let kind = op >> 28 & 7;
    let mut old = user_load_u32(addr)?;
    loop {
        let new = match kind {
            sys::FUTEX_OP_SET => arg,
            sys::FUTEX_OP_ADD => old.wrapping_add(arg),
            sys::FUTEX_OP_OR => old | arg,
            sys::FUTEX_OP_ANDN => old & !arg,
            sys::FUTEX_OP_XOR => old ^ arg,
            _ => return Err(Errno::ENOSYS),
        };
        let found = user_cmpxchg_u32(addr, old, new)?;
        if found == old {
            return Ok(old);
        }
        old = found;
        if super::fatal_signal_pending() {
            return Err(Errno::EINTR);
        }
        super::cond_resched();
    }
}

/// Marks the robust futexes that a dying thread holds and wakes a waiter of each.
pub(super) fn walk_robust_list(me: &Thread, head: u64) {
    const LIMIT: usize = 2048;
    let read = |at: u64| get_user::<u64>(at);
    let (Ok(mut entry), Ok(offset), Ok(pending)) = (
        read(head),
        read(head.wrapping_add(8)),
        read(head.wrapping_add(16)),
    ) else {
        return;
    };
    for _ in 0..LIMIT {
        let at = entry & !1;
        if at == head {
            break;
        }
        let next = read(at);
        if at != pending & !1 && robust_death(me, at.wrapping_add(offset), false).is_err() {
            return;
        }
        let Ok(next) = next else { return };
        entry = next;
        super::cond_resched();
    }
    if pending & !1 != 0 {
        let _ = robust_death(me, (pending & !1).wrapping_add(offset), true);
    }
}

fn robust_death(me: &Thread, addr: u64, pending: bool) -> Result<(), Errno> {
    if addr & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut old = user_load_u32(addr)?;
    if pending && old == 0 {
        // It died between the unlock and the wake-up.
        let _ = wake(addr, false, 1, ANY);
        let _ = wake(addr, true, 1, ANY);
        return Ok(());
    }
    loop {
        if old & sys::FUTEX_TID_MASK != me.tid() {
            return Ok(());
        }
        let new = old & sys::FUTEX_WAITERS | sys::FUTEX_OWNER_DIED;
        let found = user_cmpxchg_u32(addr, old, new)?;
        if found == old {
            break;
        }
        old = found;
    }
    if old & sys::FUTEX_WAITERS != 0 {
        let _ = wake(addr, false, 1, ANY);
        let _ = wake(addr, true, 1, ANY);
    }
    Ok(())
}
