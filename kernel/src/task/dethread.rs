//! What exec does to its process: the other threads end, the caller takes the leader's place, and the
//! new space replaces the old one.

use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::signal::SIGCHLD;
use super::signal::send::kill_thread;
use super::thread::{AltStack, RestartBlock, Thread};
use super::wait::Sleep;
use super::{Process, Space, current, exit, ptrace, switch, table, time};
use crate::arch;

/// Ends every other thread of the process; the caller becomes its leader.
pub fn dethread(me: &Thread) -> Result<(), Errno> {
    let p = &*me.process;
    {
        let mut s = p.sig.lock();
        if s.group_exit.is_some() || !s.exec.is_null() {
            return Err(Errno::ERESTARTNOINTR);
        }
        if s.nthreads == 1 && me.tid() == p.pid {
            return Ok(());
        }
        s.exec = me;
        for t in s.threads().filter(|t| !ptr::eq(*t, me)) {
            kill_thread(t);
        }
    }
    let alone = p
        .thread_gone
        .wait_while(Sleep::Killable, None, || p.sig.lock().nthreads > 1);
    p.sig.lock().exec = ptr::null();
    if alone.is_err() {
        return Err(Errno::EINTR);
    }
    if me.tid() != p.pid {
        take_over(me, p);
    }
    Ok(())
}

/// The old leader has ended; the caller takes over its id.
fn take_over(me: &Thread, p: &Process) {
    let (leader, _old) = {
        let mut tasks = table::lock();
        let leader = tasks.remove(p.pid);
        if let Some(leader) = &leader {
            // Its tracer is not told: the id goes on.
            ptrace::unlink(&mut tasks, leader, 0);
        }
        let own = tasks.remove(me.tid());
        me.set_tid(p.pid);
        tasks.replace(p.pid, me.arc());
        let tracer = ptrace::tracer_process(me, &tasks).cast_mut();
        p.tracer.store(tracer, Ordering::Relaxed);
        (leader, own)
    };
    drop(leader);
    p.exit_signal.store(SIGCHLD, Ordering::Relaxed);
}

/// Gives the running thread and its process `space`; the old one is let go.
pub fn replace_space(me: &Thread, space: Arc<Space>) {
    exit::release_user_memory(me);
    let p = &*me.process;
    let raw: *const Space = &*space;
    let shared = p.space.lock().replace(space.clone());
    // SAFETY: the running thread's own field.
    let old = unsafe { me.mine().space.replace(space) };
    switch::adopt_space(me, raw);
    if let Some(old) = &shared {
        let rss = old.max_rss_kib();
        let mut s = p.sig.lock();
        s.ended.max_rss_kib = s.ended.max_rss_kib.max(rss);
        drop(s);
        old.count_process(false);
    }
    drop(old);
    drop(shared);
}

/// Registers and per-thread settings as a new program has them.
pub fn reset_thread(me: &Thread) {
    debug_assert!(me.is_current());
    time::posix::clear(&me.process);
    ptrace::stop::forget_debug(me);
    switch::with_fpu(|st| {
        st.reset();
        ((), true)
    });
    let was_on = arch::irq_save();
    arch::set_fs_base(0);
    arch::set_user_gs_base(0);
    arch::irq_restore(was_on);
    // SAFETY: the running thread's own fields.
    let own = unsafe { current().mine() };
    own.altstack = AltStack::NONE;
    own.restart = RestartBlock::NONE;
    own.saved_mask = None;
    own.set_child_tid = 0;
}
