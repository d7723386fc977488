//! Signals: sets, information, actions, what is pending.
//!
//! A process's signal lock guards its list of threads, what is pending for it and for each of its
//! threads, the masks' changes and the stop state. A sender marks the signal pending, sets
//! `WORK_SIGNAL` on the chosen thread and wakes it if it sleeps interruptibly; a fatal signal sets
//! `WORK_KILL` on every thread at once. Delivery happens on the way to user mode only.

pub mod deliver;
pub mod frame;
pub mod pending;
pub mod send;
pub mod wait;

use alloc::sync::Arc;
use core::mem::MaybeUninit;

use super::acct::Usage;
use super::thread::Thread;
use crate::sync::IrqLock;

pub use deliver::{force, force_exception, force_fault};
pub use pending::{
    CLD_CONTINUED, CLD_DUMPED, CLD_EXITED, CLD_KILLED, CLD_STOPPED, CLD_TRAPPED, DUMPS, IGNORED,
    NSIG, Pending, Queued, SI_KERNEL, SI_QUEUE, SI_TIMER, SI_TKILL, SI_USER, SIG_DFL, SIG_IGN,
    STOPS, SYNCHRONOUS, SigInfo, UNBLOCKABLE, bit, is_ignored,
};
pub use send::{
    kill_process, send_to_pgrp, send_to_pgrp_from_irq, send_to_process, send_to_thread,
    wake_deferred,
};

use linux_raw_sys::general as sys;
pub use sys::{
    SIGABRT, SIGALRM, SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGHUP, SIGILL, SIGINT, SIGKILL, SIGPIPE,
    SIGPROF, SIGQUIT, SIGSEGV, SIGSTOP, SIGTERM, SIGTRAP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG,
    SIGVTALRM, SIGWINCH,
};

/// Remembers a fault of the running thread for the frame that its signal will get.
pub fn note_trap(vector: u64, err: u64, addr: u64) {
    // SAFETY: the running thread's own field.
    unsafe { super::current().mine().trap = [vector, err, addr] };
}

/// `ppoll` and its kind: the running thread gets `mask` until the call ends.
pub fn set_user_mask(mask: u64) {
    let me = super::current();
    let old = send::set_blocked(mask);
    // SAFETY: the running thread's own field.
    unsafe { me.mine().saved_mask = Some(old) };
}

/// The end of such a call. When it was interrupted the old mask comes back after the handler has run.
pub fn restore_user_mask(interrupted: bool) {
    // SAFETY: the running thread's own field.
    let saved = unsafe { &mut super::current().mine().saved_mask };
    if !interrupted && let Some(mask) = saved.take() {
        send::set_blocked(mask);
    }
}

/// What a program wants done about a signal; the system call's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

// SAFETY: four integers, no padding.
unsafe impl crate::arch::uaccess::Pod for Action {}

impl Action {
    pub const DEFAULT: Action = Action {
        handler: SIG_DFL,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
}

/// The actions, shared by CLONE_SIGHAND.
pub struct SigHand {
    actions: IrqLock<Actions>,
}

/// Only what was set is there: a fork and an exec copy no more than that.
struct Actions {
    /// The signals whose action is not the default one.
    set: u64,
    /// Valid for the signals in `set`.
    table: [MaybeUninit<Action>; NSIG as usize],
}

impl Actions {
    fn get(&self, signo: u32) -> Action {
        if self.set & bit(signo) == 0 {
            return Action::DEFAULT;
        }
        // SAFETY: `put` wrote it before it set the bit.
        unsafe { self.table[signo as usize - 1].assume_init() }
    }

    fn put(&mut self, signo: u32, act: Action) {
        if act == Action::DEFAULT {
            self.set &= !bit(signo);
        } else {
            self.table[signo as usize - 1].write(act);
            self.set |= bit(signo);
        }
    }
}

impl SigHand {
    /// All actions are the default ones.
    pub fn new() -> Arc<SigHand> {
        let mut new = Arc::<SigHand>::new_uninit();
        let fresh = SigHand {
            actions: IrqLock::new(Actions {
                set: 0,
                table: [const { MaybeUninit::uninit() }; NSIG as usize],
            }),
        };
        if let Some(place) = Arc::get_mut(&mut new) {
            place.write(fresh);
        }
        // SAFETY: written just now: a new Arc has no other owner.
        unsafe { new.assume_init() }
    }

    /// A copy of those actions that `change` leaves.
    fn copy_with(&self, change: impl Fn(Action) -> Action) -> Arc<SigHand> {
        let mut new = SigHand::new();
        if let Some(to) = Arc::get_mut(&mut new) {
            let to = to.actions.get_mut();
            let from = self.actions.lock();
            let mut left = from.set;
            while left != 0 {
                let signo = left.trailing_zeros() + 1;
                to.put(signo, change(from.get(signo)));
                left &= left - 1;
            }
        }
        new
    }

    /// fork's copy.
    pub fn copy(&self) -> Arc<SigHand> {
        self.copy_with(|act| act)
    }

    /// exec's, and CLONE_CLEAR_SIGHAND's: handlers go, ignored stays ignored.
    pub fn after_exec(&self) -> Arc<SigHand> {
        self.copy_with(|act| Action {
            handler: if act.handler == SIG_IGN {
                SIG_IGN
            } else {
                SIG_DFL
            },
            ..Action::DEFAULT
        })
    }

    pub fn get(&self, signo: u32) -> Action {
        self.actions.lock().get(signo)
    }

    pub fn set(&self, signo: u32, act: Action) -> Action {
        let mut actions = self.actions.lock();
        let before = actions.get(signo);
        actions.put(signo, act);
        before
    }

    /// The signals a test selects, as a set (`/proc/PID/status`).
    pub fn select(&self, f: impl Fn(&Action) -> bool) -> u64 {
        let a = self.actions.lock();
        (1..=NSIG)
            .filter(|&n| f(&a.get(n)))
            .map(bit)
            .fold(0, |s, b| s | b)
    }
}

/// What the signal lock guards.
pub struct SigState {
    pub shared: Pending,
    pub actions: Arc<SigHand>,
    /// Wait status that the whole group ends with.
    pub group_exit: Option<u32>,
    /// The thread that is replacing the program; the others end.
    pub exec: *const Thread,
    /// SIGKILL was sent: nothing holds up the end any more.
    pub killed: bool,
    /// The thread that writes a core file, and how many of the others stand still for it.
    pub(in crate::task) dumper: *const Thread,
    pub(in crate::task) parked: u32,
    /// Ended threads that their tracers have not waited for.
    pub(in crate::task) zombies: u32,
    /// The signal that stops the group, while it is stopped.
    pub stop_sig: u32,
    /// Every thread has stopped for it (a traced one may run again since).
    pub stop_complete: bool,
    /// Not yet reported to the parent: the signal, until `wait` takes it.
    pub stop_report: u32,
    pub cont_report: bool,
    /// The parent is still to be told that we go on.
    pub tell_cont: bool,
    pub nthreads: u32,
    pub(in crate::task) first_thread: *const Thread,
    /// Used by threads that have ended.
    pub(in crate::task) ended: Usage,
}

// SAFETY: the raw pointers are links guarded by the lock around this value.
unsafe impl Send for SigState {}

impl SigState {
    pub fn new(actions: Arc<SigHand>) -> SigState {
        SigState {
            shared: Pending::new(),
            actions,
            group_exit: None,
            exec: core::ptr::null(),
            killed: false,
            dumper: core::ptr::null(),
            parked: 0,
            zombies: 0,
            stop_sig: 0,
            stop_complete: false,
            stop_report: 0,
            cont_report: false,
            tell_cont: false,
            nthreads: 0,
            first_thread: core::ptr::null(),
            ended: Usage::default(),
        }
    }

    /// The threads, alive while the lock is held.
    pub fn threads(&self) -> impl Iterator<Item = &Thread> {
        // SAFETY: a thread leaves the list, under this lock, before it can be freed.
        let mut next = unsafe { self.first_thread.as_ref() };
        core::iter::from_fn(move || {
            let t = next?;
            // SAFETY: as above.
            next = unsafe {
                t.next_thread
                    .load(core::sync::atomic::Ordering::Relaxed)
                    .as_ref()
            };
            Some(t)
        })
    }

    /// Lists a thread; the first one (the leader) stays first.
    pub(in crate::task) fn add_thread(&mut self, t: &Thread) {
        use core::sync::atomic::Ordering::Relaxed;
        let new = (t as *const Thread).cast_mut();
        // SAFETY: as in `threads`.
        match unsafe { self.first_thread.as_ref() } {
            Some(first) => {
                t.next_thread
                    .store(first.next_thread.load(Relaxed), Relaxed);
                first.next_thread.store(new, Relaxed);
            }
            None => {
                t.next_thread.store(core::ptr::null_mut(), Relaxed);
                self.first_thread = new;
            }
        }
        self.nthreads += 1;
    }

    /// Removes a thread.
    pub(in crate::task) fn remove_thread(&mut self, t: &Thread) {
        use core::sync::atomic::Ordering::Relaxed;
        let next = t.next_thread.load(Relaxed);
        if core::ptr::eq(self.first_thread, t) {
            self.first_thread = next;
        } else if let Some(before) = self
            .threads()
            .find(|p| core::ptr::eq(p.next_thread.load(Relaxed), t))
        {
            before.next_thread.store(next, Relaxed);
        } else {
            return;
        }
        self.nthreads -= 1;
    }
}
