//! The end of threads and processes.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::process::{ALIVE, Process, REAPED, ZOMBIE};
use super::signal::send::kill_group;
use super::signal::{
    self, CLD_DUMPED, CLD_EXITED, CLD_KILLED, Queued, SIG_IGN, SIGCHLD, SIGCONT, SIGHUP, SigInfo,
};
use super::table::Tasks;
use super::thread::{DEAD, Thread};
use super::{acct, clone, coredump, current, futex, ptrace, sched, switch, table, time, timer};
use crate::arch::uaccess::put_user;
use linux_raw_sys::general as sys;

/// Ends the whole process with a wait status (`code << 8`, or a signal's number).
pub fn exit_group(status: u32) -> ! {
    let me = current();
    let status = {
        let mut s = me.process.sig.lock();
        match s.group_exit {
            Some(status) => status,
            None => {
                kill_group(&mut s, status);
                status
            }
        }
    };
    exit_thread(status)
}

/// Ends the running thread; with the last one ends the process.
pub fn exit_thread(status: u32) -> ! {
    let me = current();
    let p = &*me.process;
    coredump::park(me);
    ptrace::stop::at_exit(me, status);
    leave_group(me);
    let last = p.live.fetch_sub(1, Ordering::AcqRel) == 1;
    if last {
        timer::cancel(&p.real_timer);
        time::posix::clear(p);
    }
    release_space(me);
    // Files may sleep and send signals while they close: before the process looks dead.
    drop(me.set_files(None));
    drop(me.set_fs(None));
    if last {
        // Whoever waits for us may write the program at once (ETXTBSY); a zombie has none.
        drop(p.set_exe(None));
    }
    if me.tid() == p.pid {
        p.exit_status.store(status, Ordering::Relaxed);
    }
    notify(me, status);
    signal::deliver::stop_after_exit(me);
    vanish()
}

/// Ends a kernel thread.
pub(super) fn exit_kernel_thread() -> ! {
    let me = current();
    drop(table::lock().remove(me.tid()));
    vanish()
}

/// Leaves the CPU for good.
fn vanish() -> ! {
    current().state.store(DEAD, Ordering::SeqCst);
    sched::schedule();
    unreachable!("a dead thread ran")
}

/// No more signals for this thread; what the process has pending goes to the others.
fn leave_group(me: &Thread) {
    let s = me.process.sig.lock();
    me.exiting.store(true, Ordering::Relaxed);
    if s.shared.set != 0 {
        for t in s.threads().filter(|t| !core::ptr::eq(*t, me)) {
            if s.shared.set & !t.blocked.load(Ordering::Relaxed) != 0 {
                t.set_work(super::WORK_SIGNAL);
                sched::wake(t, super::thread::INTERRUPTIBLE);
            }
        }
    }
}

/// What is due to user memory at the end of a thread or at exec: robust futexes, the cleared tid,
/// the parent that waits for a vfork.
pub(super) fn release_user_memory(me: &Thread) {
    // SAFETY: the running thread's own fields.
    let own = unsafe { me.mine() };
    let Some(space) = own.space.clone() else {
        return;
    };
    let head = core::mem::take(&mut own.robust_list);
    let clear = core::mem::take(&mut own.clear_child_tid);
    if head != 0 {
        futex::walk_robust_list(me, head);
    }
    if clear != 0 && (me.process.live.load(Ordering::Relaxed) != 0 || space.is_shared()) {
        let _ = put_user(clear, &0u32);
        futex::wake_address(clear, 1);
    }
    clone::vfork_done(me);
}

fn release_space(me: &Thread) {
    release_user_memory(me);
    let p = &*me.process;
    // SAFETY: the running thread's own field.
    let mine = unsafe { me.mine().space.take() };
    if let Some(space) = &mine {
        let rss = space.max_rss_kib();
        let mut s = p.sig.lock();
        s.ended.max_rss_kib = s.ended.max_rss_kib.max(rss);
    }
    switch::adopt_space(me, core::ptr::null());
    let shared = if p.live.load(Ordering::Acquire) == 0 {
        p.space.lock().take()
    } else {
        None
    };
    if let Some(space) = &shared {
        space.count_process(false);
    }
    // The last reference unmaps everything.
    drop(mine);
    drop(shared);
}

/// Leaves the process; if it was the last thread, the process becomes a zombie (or is reaped at
/// once) and its family is told. A traced thread that does not lead stays in the table until its tracer has
/// waited for it, and the process does not end before.
fn notify(me: &Thread, status: u32) {
    let p = &me.process;
    let node = Queued::new(SigInfo::new(SIGCHLD, 0));
    let mut gone: Vec<Arc<Thread>> = Vec::new();
    let mut own_entry = None;
    {
        let mut tasks = table::lock();
        ptrace::attach::tracer_ends(&mut tasks, me, &mut gone);
        let left = {
            let mut s = p.sig.lock();
            let usage = acct::of_thread(me);
            s.ended.add(&usage);
            acct::thread_ends(&usage);
            s.remove_thread(me);
            // SAFETY: the process's signal lock is held.
            let tr = unsafe { me.trace.get() };
            tr.ends();
            if me.tid() != p.pid && tr.tracer().is_some() {
                tr.dead = Some(status);
                s.zombies += 1;
            }
            s.nthreads + s.zombies
        };
        let tracer = ptrace::tracer_process(me, &tasks);
        if me.tid() != p.pid && tracer.is_null() {
            own_entry = tasks.remove(me.tid());
        }
        // SAFETY: the table is locked, so the tracer is alive.
        if let Some(tracer) = unsafe { tracer.as_ref() } {
            if me.tid() != p.pid {
                signal::send_to_process(tracer, child_info(p, me.tid(), SIGCHLD, status));
            }
            tracer.child_wait.wake_all();
        }
        if left == 0 {
            end_process(&mut tasks, p, node, &mut gone);
        }
    }
    p.thread_gone.wake_all();
    if p.is_zombie() {
        p.watchers.notify();
    }
    drop(own_entry);
    drop(gone);
}

fn end_process(
    tasks: &mut Tasks,
    p: &Arc<Process>,
    node: alloc::boxed::Box<Queued>,
    gone: &mut Vec<Arc<Thread>>,
) {
    let status = p.sig.lock().group_exit;
    if let Some(status) = status {
        p.exit_status.store(status, Ordering::Relaxed);
    }
    give_children_away(tasks, p, gone);
    if p.is_session_leader() {
        crate::fs::tty::leader_exits(p.sid());
    }
    orphan_groups(tasks, p);
    p.state.store(ZOMBIE, Ordering::Release);
    tell_family(tasks, p, node, gone);
}

/// SIGCHLD about the end of `p`, which is reaped at once if nobody wants to wait. A tracer that is not the parent
/// hears of it first, and the parent when that one has waited.
fn tell_family(
    tasks: &mut Tasks,
    p: &Process,
    mut node: alloc::boxed::Box<Queued>,
    gone: &mut Vec<Arc<Thread>>,
) {
    let status = p.exit_status.load(Ordering::Relaxed);
    let parent: *const Process = tasks.parent(p).map_or(core::ptr::null(), |q| q);
    let tracer: *const Process = p.tracer.load(Ordering::Relaxed);
    let foreign = !tracer.is_null() && !core::ptr::eq(tracer, parent);
    let (to, signo) = if foreign {
        (tracer, SIGCHLD)
    } else {
        (parent, p.exit_signal.load(Ordering::Relaxed))
    };
    // SAFETY: the table is locked, so the parent and the tracer are alive.
    let Some(to) = (unsafe { to.as_ref() }) else {
        return;
    };
    let mut auto = false;
    if signo != 0 {
        let act = to.sig.lock().actions.get(signo);
        let mut send = true;
        if signo == SIGCHLD && tracer.is_null() {
            auto = act.handler == SIG_IGN || act.flags & sys::SA_NOCLDWAIT as u64 != 0;
            send = act.handler != SIG_IGN;
        }
        if send {
            node.set(child_info(p, p.pid, signo, status));
            let _ = signal::send::send_prepared(to, None, signo, node);
        }
    }
    if auto {
        gone.extend(reap(tasks, p, None));
    }
    to.child_wait.wake_all();
}

/// A dead process's tracer has let it go: its parent hears of the end now, unless it was that tracer.
pub(super) fn after_tracer(
    tasks: &mut Tasks,
    p: &Process,
    tracer: *const Process,
    gone: &mut Vec<Arc<Thread>>,
) {
    let parent: *const Process = tasks.parent(p).map_or(core::ptr::null(), |q| q);
    if !core::ptr::eq(tracer, parent) {
        tell_family(tasks, p, Queued::new(SigInfo::new(SIGCHLD, 0)), gone);
        return;
    }
    // SAFETY: the table is locked.
    let ignored = unsafe { parent.as_ref() }.is_some_and(|parent| {
        let act = parent.sig.lock().actions.get(SIGCHLD);
        act.handler == SIG_IGN || act.flags & sys::SA_NOCLDWAIT as u64 != 0
    });
    if ignored {
        gone.extend(reap(tasks, p, None));
    }
}

/// A dead thread whose tracer has waited, or is gone, leaves the table; the process may have ended with it.
pub(super) fn release_thread(tasks: &mut Tasks, t: &Thread, gone: &mut Vec<Arc<Thread>>) {
    let p = &t.process;
    gone.extend(tasks.remove(t.tid()));
    let left = {
        let mut s = p.sig.lock();
        // SAFETY: the process's signal lock is held.
        unsafe { t.trace.get() }.dead = None;
        s.zombies -= 1;
        s.nthreads + s.zombies
    };
    if left == 0 {
        end_process(tasks, p, Queued::new(SigInfo::new(SIGCHLD, 0)), gone);
    }
}

/// The information that goes with a child's end.
pub(super) fn child_info(p: &Process, tid: u32, signo: u32, status: u32) -> SigInfo {
    let usage = p.sig.lock().ended;
    let (code, value) = end_code(status);
    SigInfo::child(
        signo,
        code,
        tid,
        p.creds().uid,
        value,
        usage.user_ns / 10_000_000,
        usage.system_ns / 10_000_000,
    )
}

/// An end's wait status as `si_code` and `si_status`.
pub(super) fn end_code(status: u32) -> (i32, i32) {
    let signo = (status & 0x7f) as i32;
    match (signo, status & 0x80) {
        (0, _) => (CLD_EXITED, (status >> 8 & 0xff) as i32),
        (_, 0) => (CLD_KILLED, signo),
        _ => (CLD_DUMPED, signo),
    }
}

/// Children go to the nearest subreaper, else to pid 1.
fn give_children_away(tasks: &mut Tasks, p: &Process, gone: &mut Vec<Arc<Thread>>) {
    // SAFETY: the table is locked.
    if unsafe { p.family.get().first_child.is_null() } {
        return;
    }
    let mut to = tasks.parent(p).map(|q| q as *const Process);
    // SAFETY: the table is locked; ancestors are alive.
    while let Some(q) = to.map(|q| unsafe { &*q }) {
        if q.subreaper.load(Ordering::Relaxed) && q.state.load(Ordering::Relaxed) == ALIVE {
            break;
        }
        to = tasks.parent(q).map(|q| q as *const Process);
    }
    let init = tasks.process(1).cloned();
    // SAFETY: as above.
    let heir: &Process = match (to.map(|q| unsafe { &*q }), &init) {
        (Some(q), _) => q,
        (None, Some(init)) => init,
        (None, None) => return,
    };
    let mut tell = false;
    // SAFETY: as above.
    while let Some(c) = unsafe { p.family.get().first_child.as_ref() } {
        tasks.reparent(c, heir);
        let death = c.death_signal.load(Ordering::Relaxed);
        if c.state.load(Ordering::Relaxed) == ALIVE {
            if death != 0 {
                signal::send_to_process(c, SigInfo::user(death, signal::SI_USER, p.pid, 0));
            }
            c.exit_signal.store(SIGCHLD, Ordering::Relaxed);
        } else {
            let act = heir.sig.lock().actions.get(SIGCHLD);
            if !c.tracer.load(Ordering::Relaxed).is_null() {
                // Its tracer waits first.
            } else if act.handler == SIG_IGN {
                gone.extend(reap(tasks, c, None));
            } else {
                tell = true;
                let status = c.exit_status.load(Ordering::Relaxed);
                signal::send_to_process(heir, child_info(c, c.pid, SIGCHLD, status));
            }
        }
    }
    if tell {
        heir.child_wait.wake_all();
    }
}

/// A group that loses its last link to its session while a member stands still gets SIGHUP and
/// SIGCONT.
fn orphan_groups(tasks: &Tasks, p: &Process) {
    let pgid = p.pgid();
    let member_stopped = |g: u32| {
        tasks.iter().any(|q| {
            q.pgid() == g
                && q.pid != p.pid
                && q.state.load(Ordering::Relaxed) == ALIVE
                && q.sig.lock().stop_sig != 0
        })
    };
    let linked = tasks
        .parent(p)
        .is_some_and(|q| q.pgid() != pgid && q.sid() == p.sid());
    if linked && member_stopped(pgid) && tasks.is_orphaned_group(pgid, Some(p.pid)) {
        for q in tasks.iter().filter(|q| q.pgid() == pgid && q.pid != p.pid) {
            signal::send_to_process(q, SigInfo::kernel(SIGHUP));
            signal::send_to_process(q, SigInfo::kernel(SIGCONT));
        }
    }
}

/// Removes a zombie for good; its leader's table entry is returned for the caller to drop after
/// unlocking. `into`: who waited for it and inherits its usage.
pub(super) fn reap(tasks: &mut Tasks, p: &Process, into: Option<&Process>) -> Option<Arc<Thread>> {
    if let Some(parent) = into {
        let own = p.sig.lock().ended;
        // SAFETY: the table is locked.
        unsafe {
            let sum = &mut parent.family.get().children_usage;
            sum.add(&own);
            sum.add(&p.family.get().children_usage);
        }
    }
    p.state.store(REAPED, Ordering::Release);
    tasks.unlink(p);
    tasks.remove(p.pid)
}
