//! Pids, and the family of all processes, under one spin lock.
//!
//! A pid stays taken while a thread, a process group or a session goes by it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use mm::Errno;
use spin::{Mutex as Spin, MutexGuard};

use super::pids::next_free;
use super::process::{ALIVE, Process, RLIMIT_NPROC};
use super::thread::Thread;

/// One more than the largest pid.
pub const PID_MAX: usize = 32768;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
/// Where the search starts again after a wrap.
const RESERVED: u32 = 300;

/// The table; see the module's head.
pub struct Tasks {
    threads: [Option<Arc<Thread>>; PID_MAX],
    /// How many processes have the pid as group, and as session.
    groups: [u16; PID_MAX],
    last: u32,
    used: u32,
    first_process: *const Process,
    pub(super) processes: usize,
}

// SAFETY: the raw list is guarded by the lock around the table.
unsafe impl Send for Tasks {}

static TASKS: Spin<Tasks> = Spin::new(Tasks {
    threads: [const { None }; PID_MAX],
    groups: [0; PID_MAX],
    last: 0,
    used: 0,
    first_process: ptr::null(),
    processes: 0,
});

/// Locks the table. Held briefly; no sleep, no user memory.
pub fn lock() -> MutexGuard<'static, Tasks> {
    TASKS.lock()
}

/// Most threads that the machine may have: as on Linux, their kernel stacks take an eighth of the memory at most.
pub fn threads_max() -> u32 {
    static MAX: AtomicU32 = AtomicU32::new(0);
    match MAX.load(Ordering::Relaxed) {
        0 => {
            let max = (crate::memory::totals().0 / 32).clamp(20, PID_MAX as u64) as u32;
            MAX.store(max, Ordering::Relaxed);
            max
        }
        max => max,
    }
}

impl Tasks {
    /// Whether the machine, and the user of `p`, may have one more thread; EAGAIN if not.
    pub(super) fn admit(&self, p: &Process) -> Result<(), Errno> {
        if self.used >= threads_max() {
            return Err(Errno::EAGAIN);
        }
        // All threads are no fewer than the user's: counting those is left for when it matters.
        let limit = p.limit(RLIMIT_NPROC).soft;
        if u64::from(self.used) < limit {
            return Ok(());
        }
        let creds = p.creds();
        let exempt =
            creds.uid == 0 || creds.capable(CAP_SYS_RESOURCE) || creds.capable(CAP_SYS_ADMIN);
        let of_user = self
            .iter()
            .filter(|other| other.creds().uid == creds.uid)
            .map(|other| u64::from(other.thread_count().max(1)))
            .sum::<u64>();
        if exempt || of_user < limit {
            Ok(())
        } else {
            Err(Errno::EAGAIN)
        }
    }

    /// Takes a pid; `insert` or `release_pid` follows.
    pub(super) fn reserve_pid(&mut self) -> Option<u32> {
        let reserved = if self.last < RESERVED { 1 } else { RESERVED };
        let pid = next_free(self.last, PID_MAX as u32, reserved, |p| {
            self.threads[p as usize].is_none() && self.groups[p as usize] == 0
        })?;
        self.last = pid;
        self.groups[pid as usize] += 1;
        Some(pid)
    }

    /// Gives back a pid that was reserved and not used.
    pub(super) fn release_pid(&mut self, pid: u32) {
        self.groups[pid as usize] -= 1;
    }

    /// Enters a thread under its reserved pid.
    pub(super) fn insert(&mut self, pid: u32, t: Arc<Thread>) {
        self.groups[pid as usize] -= 1;
        self.replace(pid, t);
    }

    /// Enters a thread under a pid whose thread was removed with the table locked since.
    pub(super) fn replace(&mut self, pid: u32, t: Arc<Thread>) {
        debug_assert!(self.threads[pid as usize].is_none());
        self.threads[pid as usize] = Some(t);
        self.used += 1;
    }

    /// Takes a thread out; the caller drops it after unlocking.
    pub(super) fn remove(&mut self, pid: u32) -> Option<Arc<Thread>> {
        let t = self.threads[pid as usize].take();
        self.used -= t.is_some() as u32;
        t
    }

    /// The thread with this id.
    pub fn thread(&self, tid: u32) -> Option<&Arc<Thread>> {
        self.threads.get(tid as usize)?.as_ref()
    }

    /// The process with this pid, zombies included.
    pub fn process(&self, pid: u32) -> Option<&Arc<Process>> {
        let t = self.thread(pid)?;
        (t.process.pid == pid && pid != 0).then_some(&t.process)
    }

    /// Threads and kernel threads.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The pid given out last (`/proc/loadavg`).
    pub fn last_pid(&self) -> u32 {
        self.last
    }

    /// Every process, zombies included.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        // SAFETY: the table is locked, so listed processes are alive: each is in the table.
        let mut next = unsafe { self.first_process.as_ref() };
        core::iter::from_fn(move || {
            let p = next?;
            // SAFETY: as above.
            next = unsafe { p.family.get().next_all.as_ref() };
            Some(p)
        })
    }

    /// The children of `p`.
    pub(super) fn children<'a>(&'a self, p: &'a Process) -> impl Iterator<Item = &'a Process> {
        // SAFETY: the table is locked; children are alive until they are unlinked.
        let mut next = unsafe { p.family.get().first_child.as_ref() };
        core::iter::from_fn(move || {
            let c = next?;
            // SAFETY: as above.
            next = unsafe { c.family.get().next_sibling.as_ref() };
            Some(c)
        })
    }

    /// The parent of `p`.
    pub(super) fn parent<'a>(&'a self, p: &'a Process) -> Option<&'a Process> {
        // SAFETY: the table is locked; a parent that dies gives its children away first.
        unsafe { p.family.get().parent.as_ref() }
    }

    /// Lists a new process as a child of `parent`.
    pub(super) fn link(&mut self, p: &Process, parent: Option<&Process>) {
        // SAFETY: the table is locked.
        unsafe {
            let f = p.family.get();
            f.prev_all = ptr::null();
            f.next_all = self.first_process;
            if let Some(n) = self.first_process.as_ref() {
                n.family.get().prev_all = p;
            }
        }
        self.first_process = p;
        self.processes += 1;
        if let Some(parent) = parent {
            self.adopt(p, parent);
        }
        self.groups[p.pgid() as usize] += 1;
        self.groups[p.sid() as usize] += 1;
    }

    /// Makes `p`, which has no parent, a child of `parent`.
    fn adopt(&mut self, p: &Process, parent: &Process) {
        // SAFETY: the table is locked.
        unsafe {
            let f = p.family.get();
            f.parent = parent;
            f.prev_sibling = ptr::null();
            f.next_sibling = parent.family.get().first_child;
            if let Some(n) = f.next_sibling.as_ref() {
                n.family.get().prev_sibling = p;
            }
            parent.family.get().first_child = p;
        }
        p.ppid.store(parent.pid, Ordering::Relaxed);
    }

    /// Takes `p` from its parent.
    fn orphan(&mut self, p: &Process) {
        // SAFETY: the table is locked.
        unsafe {
            let f = p.family.get();
            let (prev, next) = (f.prev_sibling, f.next_sibling);
            match prev.as_ref() {
                Some(s) => s.family.get().next_sibling = next,
                None => {
                    if let Some(parent) = f.parent.as_ref() {
                        parent.family.get().first_child = next;
                    }
                }
            }
            if let Some(s) = next.as_ref() {
                s.family.get().prev_sibling = prev;
            }
            f.parent = ptr::null();
            f.next_sibling = ptr::null();
            f.prev_sibling = ptr::null();
        }
    }

    /// Gives `p` a new parent.
    pub(super) fn reparent(&mut self, p: &Process, to: &Process) {
        self.orphan(p);
        self.adopt(p, to);
    }

    /// Removes a process from the family.
    pub(super) fn unlink(&mut self, p: &Process) {
        self.orphan(p);
        // SAFETY: the table is locked.
        unsafe {
            let f = p.family.get();
            let (prev, next) = (f.prev_all, f.next_all);
            match prev.as_ref() {
                Some(q) => q.family.get().next_all = next,
                None => self.first_process = next,
            }
            if let Some(q) = next.as_ref() {
                q.family.get().prev_all = prev;
            }
        }
        self.processes -= 1;
        self.groups[p.pgid() as usize] -= 1;
        self.groups[p.sid() as usize] -= 1;
    }

    /// Moves a process into another group and session.
    pub(super) fn set_group(&mut self, p: &Process, pgid: u32, sid: u32) {
        self.groups[p.pgid() as usize] -= 1;
        self.groups[p.sid() as usize] -= 1;
        p.pgid.store(pgid, Ordering::Relaxed);
        p.sid.store(sid, Ordering::Relaxed);
        self.groups[pgid as usize] += 1;
        self.groups[sid as usize] += 1;
    }

    /// Whether a process of `sid` is in group `pgid`.
    pub fn group_in_session(&self, pgid: u32, sid: u32) -> bool {
        self.iter().any(|p| p.pgid() == pgid && p.sid() == sid)
    }

    /// Whether nobody outside group `pgid`, but in its session, is parent of a member: then terminal
    /// stops are ignored. `leaving` does not count as a member.
    pub(super) fn is_orphaned_group(&self, pgid: u32, leaving: Option<u32>) -> bool {
        !self.iter().any(|p| {
            p.pgid() == pgid
                && Some(p.pid) != leaving
                && p.state.load(Ordering::Relaxed) == ALIVE
                && self
                    .parent(p)
                    .is_some_and(|q| q.pgid() != pgid && q.sid() == p.sid() && q.pid > 1)
        })
    }
}

/// The process with this pid (zombies included).
pub fn find_process(pid: u32) -> Option<Arc<Process>> {
    lock().process(pid).cloned()
}

/// The thread with this id.
pub fn find_thread(tid: u32) -> Option<Arc<Thread>> {
    lock().thread(tid).cloned()
}

/// Calls `f` for every process, in order of pid, without the table locked.
pub fn for_each_process(mut f: impl FnMut(&Arc<Process>)) {
    let mut at = 0;
    while let Some(p) = next_process(at) {
        at = p.pid + 1;
        f(&p);
    }
}

/// The process with the lowest pid that is at least `from`.
pub fn next_process(from: u32) -> Option<Arc<Process>> {
    let tasks = lock();
    let pid = tasks
        .iter()
        .map(|p| p.pid)
        .filter(|&pid| pid >= from)
        .min()?;
    tasks.process(pid).cloned()
}

/// The pids of all processes, sorted.
pub fn pids() -> Vec<u32> {
    let mut v = Vec::new();
    for_each_process(|p| v.push(p.pid));
    v
}

/// `setpgid`: puts process `pid`, the caller or its child, into group `pgid`.
pub fn set_pgid(me: &Process, pid: u32, pgid: u32) -> Result<(), Errno> {
    let mut tasks = lock();
    let p = tasks.process(pid).cloned().ok_or(Errno::ESRCH)?;
    if !ptr::eq(&*p, me) {
        if !tasks.parent(&p).is_some_and(|q| ptr::eq(q, me)) {
            return Err(Errno::ESRCH);
        }
        if p.sid() != me.sid() {
            return Err(Errno::EPERM);
        }
        if p.did_exec.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
    }
    if p.is_session_leader() {
        return Err(Errno::EPERM);
    }
    if pgid != p.pid && !tasks.group_in_session(pgid, me.sid()) {
        return Err(Errno::EPERM);
    }
    if p.pgid() != pgid {
        let sid = p.sid();
        tasks.set_group(&p, pgid, sid);
    }
    drop(tasks);
    Ok(())
}

/// `setsid`: the caller leads a new session and group.
pub fn set_sid(me: &Process) -> Result<u32, Errno> {
    let mut tasks = lock();
    let taken = tasks.iter().any(|p| p.pgid() == me.pid);
    if taken {
        return Err(Errno::EPERM);
    }
    tasks.set_group(me, me.pid, me.pid);
    Ok(me.pid)
}
