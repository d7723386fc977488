//! Wait queues.
//!
//! A waiter puts a node (on its own stack) into the queue and stores its sleep state, both with the queue locked, looks at
//! its condition and gives up the CPU. A waker makes the condition true first and then calls
//! `wake_one` or `wake_all`; the full barrier on each side means that one of them sees the other.
//! A woken node leaves the queue; a waiter that leaves for another reason takes its node out itself.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering, fence};

use super::thread::{INTERRUPTIBLE, KILLABLE, NORMAL, RUNNING, Thread, UNINTERRUPTIBLE};
use super::{WORK_KILL, WORK_SIGNAL, current, sched, timer};
use crate::sync::IrqLock;

/// What may end a sleep besides the wake-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sleep {
    /// Any signal.
    Interruptible,
    /// A fatal signal.
    Killable,
    /// Nothing.
    Uninterruptible,
}

impl Sleep {
    fn state(self) -> u32 {
        match self {
            Sleep::Interruptible => INTERRUPTIBLE,
            Sleep::Killable => KILLABLE,
            Sleep::Uninterruptible => UNINTERRUPTIBLE,
        }
    }

    /// The work bits that end this sleep.
    fn breakers(self) -> u32 {
        match self {
            Sleep::Interruptible => WORK_SIGNAL | WORK_KILL,
            Sleep::Killable => WORK_KILL,
            Sleep::Uninterruptible => 0,
        }
    }
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitError {
    Signal,
    Timeout,
}

/// A thread's place in a queue.
struct Node {
    next: *mut Node,
    prev: *mut Node,
    thread: *const Thread,
    queued: bool,
}

impl Node {
    const fn new(thread: *const Thread) -> Node {
        Node {
            next: ptr::null_mut(),
            prev: ptr::null_mut(),
            thread,
            queued: false,
        }
    }
}

struct List {
    tail: *mut Node,
}

// SAFETY: nodes are reached with the queue's lock held only.
unsafe impl Send for List {}

/// Threads that wait for something.
pub struct WaitQueue {
    /// First node; written with `list` locked, read without a lock to see that nobody waits.
    head: AtomicPtr<Node>,
    list: IrqLock<List>,
}

impl Default for WaitQueue {
    fn default() -> Self {
        WaitQueue::new()
    }
}

impl WaitQueue {
    pub const fn new() -> Self {
        WaitQueue {
            head: AtomicPtr::new(ptr::null_mut()),
            list: IrqLock::new(List {
                tail: ptr::null_mut(),
            }),
        }
    }

    /// Appends; the lock is held.
    ///
    /// # Safety
    /// `list` is this queue's, locked; `node` stays where it is until it has left the queue.
    unsafe fn push(&self, list: &mut List, node: *mut Node) {
        // SAFETY: the caller's promise; queued nodes are alive.
        unsafe {
            (*node).next = ptr::null_mut();
            (*node).prev = list.tail;
            (*node).queued = true;
            if list.tail.is_null() {
                self.head.store(node, Ordering::Relaxed);
            } else {
                (*list.tail).next = node;
            }
        }
        list.tail = node;
    }

    /// Takes a queued node out; the lock is held.
    ///
    /// # Safety
    /// `list` is this queue's, locked, and `node` is in it.
    unsafe fn remove(&self, list: &mut List, node: *mut Node) {
        // SAFETY: the caller's promise.
        unsafe {
            let (prev, next) = ((*node).prev, (*node).next);
            if prev.is_null() {
                self.head.store(next, Ordering::Relaxed);
            } else {
                (*prev).next = next;
            }
            if next.is_null() {
                list.tail = prev;
            } else {
                (*next).prev = prev;
            }
            (*node).queued = false;
        }
    }

    /// Wakes the `max` longest waiters; how many were woken.
    pub fn wake_some(&self, max: usize) -> usize {
        fence(Ordering::SeqCst);
        if self.head.load(Ordering::Relaxed).is_null() {
            return 0;
        }
        let mut list = self.list.lock();
        let mut n = 0;
        while n < max {
            let node = self.head.load(Ordering::Relaxed);
            if node.is_null() {
                break;
            }
            // SAFETY: the lock is held, so the node and its thread (asleep, or on its way out of
            // the wait and about to take this lock) are alive.
            unsafe {
                self.remove(&mut list, node);
                sched::wake(&*(*node).thread, NORMAL);
            }
            n += 1;
        }
        n
    }

    /// Wakes the longest waiter; how many were woken.
    #[inline]
    pub fn wake_one(&self) -> usize {
        self.wake_some(1)
    }

    /// Wakes everyone; how many were woken. Callable from interrupt handlers.
    #[inline]
    pub fn wake_all(&self) -> usize {
        self.wake_some(usize::MAX)
    }

    /// Whether somebody waits (a hint).
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Sleeps while `f` is true. `f` is called with interrupts on, may take spin locks, and may not
    /// sleep or touch user memory.
    pub fn wait_while<F: FnMut() -> bool>(
        &self,
        kind: Sleep,
        deadline_ns: Option<u64>,
        mut f: F,
    ) -> Result<(), WaitError> {
        if !f() {
            return Ok(());
        }
        let me = current();
        let mut node = UnsafeCell::new(Node::new(me));
        let mut armed = false;
        let result = loop {
            {
                let mut list = self.list.lock();
                // SAFETY: the node lives in this frame and is taken out below before it ends.
                unsafe {
                    if !(*node.get()).queued {
                        self.push(&mut list, node.get());
                    }
                }
                // With the queue locked: a waker that takes the node out finds a sleeper, and so makes it look again.
                me.state.swap(kind.state(), Ordering::SeqCst);
            }
            if !f() {
                break Ok(());
            }
            if me.work.load(Ordering::SeqCst) & kind.breakers() != 0 {
                break Err(WaitError::Signal);
            }
            if let Some(d) = deadline_ns {
                if crate::arch::time::now_ns() >= d {
                    break Err(WaitError::Timeout);
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
        let mut list = self.list.lock();
        // SAFETY: the queue's lock is held; `queued` says whether a waker took the node.
        let consumed = unsafe {
            let n = node.get_mut() as *mut Node;
            if (*n).queued {
                self.remove(&mut list, n);
                false
            } else {
                true
            }
        };
        drop(list);
        if result.is_err() && consumed {
            // A wake-up was spent on us and we leave for another reason: pass it on.
            self.wake_some(1);
        }
        result
    }
}

/// Sleeps until `deadline_ns` (or for ever), a signal as `kind` says, or a stray wake-up.
pub fn sleep_until(kind: Sleep, deadline_ns: Option<u64>) -> Result<(), WaitError> {
    let me = current();
    let mut armed = false;
    let result = loop {
        me.state.swap(kind.state(), Ordering::SeqCst);
        if me.work.load(Ordering::SeqCst) & kind.breakers() != 0 {
            break Err(WaitError::Signal);
        }
        if let Some(d) = deadline_ns {
            if crate::arch::time::now_ns() >= d {
                break Err(WaitError::Timeout);
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

/// Sleeps until somebody calls [`unpark`] for this thread; a token left earlier is taken at once.
/// `Err` when a signal that `kind` lets through came first.
pub fn park(kind: Sleep) -> Result<(), WaitError> {
    let me = current();
    let result = loop {
        if me.token.swap(false, Ordering::SeqCst) {
            break Ok(());
        }
        me.state.swap(kind.state(), Ordering::SeqCst);
        if me.token.swap(false, Ordering::SeqCst) {
            break Ok(());
        }
        if me.work.load(Ordering::SeqCst) & kind.breakers() != 0 {
            break Err(WaitError::Signal);
        }
        sched::schedule();
    };
    me.state.store(RUNNING, Ordering::Relaxed);
    result
}

/// Leaves the thread with this id its token and wakes it. A thread that has ended meanwhile is no
/// error: whoever unparks holds no reference to it. Not for interrupt handlers.
pub fn unpark(tid: usize) {
    let tasks = super::table::lock();
    if let Some(t) = tasks.thread(tid as u32) {
        t.token.store(true, Ordering::SeqCst);
        sched::wake(t, NORMAL);
    }
}
