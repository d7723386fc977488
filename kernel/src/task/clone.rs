//! Making threads and processes; burying them.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::process::Process;
use super::signal::{Queued, SigInfo};
use super::thread::{AltStack, DEAD, Thread};
use super::wait::{Sleep, WaitError};
use super::{acct, current, ptrace, sched, signal, switch, table, wait};
use crate::SysResult;
use crate::arch::uaccess::put_user;
use crate::arch::{self, TrapFrame, fpu::FpuState};
use crate::memory::kspace::KernelStack;
use linux_raw_sys::general as sys;
use linux_raw_sys::ptrace::PTRACE_EVENT_VFORK_DONE;

/// What `clone` and its kind ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    /// Where CLONE_PIDFD's descriptor is stored.
    pub pidfd: u64,
    pub exit_signal: u32,
    /// The child's stack pointer; 0: the parent's.
    pub stack: u64,
    pub tls: u64,
}

const NAMESPACES: u64 = (sys::CLONE_NEWNS
    | sys::CLONE_NEWCGROUP
    | sys::CLONE_NEWUTS
    | sys::CLONE_NEWIPC
    | sys::CLONE_NEWUSER
    | sys::CLONE_NEWPID
    | sys::CLONE_NEWNET) as u64
    | sys::CLONE_NEWTIME as u64;

const PIDFD: u64 = sys::CLONE_PIDFD as u64;
const VM: u64 = sys::CLONE_VM as u64;
const FS: u64 = sys::CLONE_FS as u64;
const FILES: u64 = sys::CLONE_FILES as u64;
const SIGHAND: u64 = sys::CLONE_SIGHAND as u64;
const THREAD: u64 = sys::CLONE_THREAD as u64;
const VFORK: u64 = sys::CLONE_VFORK as u64;
const UNTRACED: u64 = sys::CLONE_UNTRACED as u64;
const PTRACE: u64 = sys::CLONE_PTRACE as u64;
const PARENT: u64 = sys::CLONE_PARENT as u64;

/// Checks a combination of flags; pure.
pub fn check_flags(flags: u64, exit_signal: u32) -> Result<(), Errno> {
    let has = |bits: u64| flags & bits != 0;
    let bad = has(THREAD) && !has(SIGHAND)
        || has(SIGHAND) && !has(VM)
        || has(SIGHAND) && has(sys::CLONE_CLEAR_SIGHAND)
        || has(NAMESPACES)
        || has(PIDFD) && has(THREAD | sys::CLONE_DETACHED as u64)
        || has(sys::CLONE_INTO_CGROUP)
        || exit_signal > signal::NSIG;
    if bad { Err(Errno::EINVAL) } else { Ok(()) }
}

/// `clone`, `clone3`, `fork`, `vfork`: the child continues at `frame` with 0.
pub fn clone(frame: &mut TrapFrame, a: &CloneArgs) -> SysResult {
    check_flags(a.flags, a.exit_signal)?;
    let me = current();
    if a.flags & PARENT != 0 && me.process.pid == 1 {
        return Err(Errno::EINVAL);
    }
    if super::signal_pending() {
        // So that a signal to the group is either seen by both or by the parent before it forks.
        return Err(Errno::ERESTARTNOINTR);
    }
    crate::memory::headroom()?;
    let stack = KernelStack::new().ok_or(Errno::ENOMEM)?;
    let fpu = FpuState::new().ok_or(Errno::ENOMEM)?;
    // SAFETY: the running thread's own fields.
    let own = unsafe { me.mine() };
    let space = own.space.as_ref().ok_or(Errno::EINVAL)?;
    let files = if a.flags & FILES != 0 {
        me.files().clone()
    } else {
        Arc::new(me.files().try_clone()?)
    };
    let fs = if a.flags & FS != 0 {
        me.fs().clone()
    } else {
        Arc::new(me.fs().try_clone()?)
    };
    let space = if a.flags & VM != 0 {
        space.clone()
    } else {
        space.fork()?
    };
    let tid = {
        let mut tasks = table::lock();
        tasks.admit(&me.process)?;
        tasks.reserve_pid().ok_or(Errno::EAGAIN)?
    };
    let process = if a.flags & THREAD != 0 {
        me.process.clone()
    } else {
        new_process(tid, me, a, &space)
    };
    let child = Thread::build(tid, process, Some(stack), Some(fpu));
    switch::copy_user_state(me, &child);
    {
        // SAFETY: the thread is new; nobody else knows it.
        let c = unsafe { child.private.get() };
        c.space = Some(space);
        c.files = Some(files);
        c.fs = Some(fs);
        c.altstack = if a.flags & VM != 0 && a.flags & VFORK == 0 {
            AltStack::NONE
        } else {
            own.altstack
        };
        if a.flags & sys::CLONE_SETTLS as u64 != 0 {
            c.fs_base = a.tls;
        }
        if a.flags & sys::CLONE_CHILD_SETTID as u64 != 0 {
            c.set_child_tid = a.child_tid;
        }
        if a.flags & sys::CLONE_CHILD_CLEARTID as u64 != 0 {
            c.clear_child_tid = a.child_tid;
        }
        let space: *const super::Space = &**c.space.as_ref().expect("set above");
        child.space_ptr.store(space.cast_mut(), Ordering::Relaxed);
    }
    child
        .blocked
        .store(me.blocked.load(Ordering::Relaxed), Ordering::Relaxed);
    child
        .affinity
        .store(me.affinity.load(Ordering::Relaxed), Ordering::Relaxed);
    child
        .policy
        .store(me.policy.load(Ordering::Relaxed), Ordering::Relaxed);
    *child.comm.lock() = *me.comm.lock();
    if a.flags & VFORK != 0 {
        me.vfork_child.store(tid, Ordering::Relaxed);
        // SAFETY: the thread is new.
        unsafe { *child.vfork_parent.get() = Some(me.arc()) };
    }
    let mut regs = *frame;
    regs.rax = 0;
    regs.rflags = ptrace::stop::child_flags(me, regs.rflags);
    if a.stack != 0 {
        regs.rsp = a.stack;
    }
    // SAFETY: the frame lies at the top of the new thread's own stack, and `prepare` builds below it.
    unsafe {
        let at = child.user_frame();
        at.write(regs);
        *child.ctx.get() = arch::switch::prepare(at as u64 & !15, user_entry, 0);
    }
    let child = Arc::new(child);
    // There is no child after all.
    let unmake = |e| {
        table::lock().release_pid(tid);
        if a.flags & (VM | THREAD) == VM
            && let Some(space) = child.process.space()
        {
            space.count_process(false);
        }
        e
    };
    let pidfd = make_pidfd(me, &child, a).map_err(unmake)?;
    let event = if a.flags & UNTRACED == 0 {
        ptrace::stop::clone_event(me, a.flags & VFORK != 0, a.exit_signal)
    } else {
        None
    };
    let traced = event.is_some() || a.flags & PTRACE != 0;
    if let Err(e) = publish(me, &child, a, traced) {
        if let Some(fd) = pidfd {
            drop(me.files().remove(fd));
        }
        return Err(unmake(e));
    }
    if a.flags & sys::CLONE_PARENT_SETTID as u64 != 0 {
        let _ = put_user(a.parent_tid, &tid);
    }
    sched::start(child);
    if let Some(event) = event {
        ptrace::stop::at_event(frame, event, u64::from(tid));
    }
    if a.flags & VFORK != 0 && wait_for_vfork_child(me, tid) {
        ptrace::stop::at_event(frame, PTRACE_EVENT_VFORK_DONE, u64::from(tid));
    }
    Ok(tid as usize)
}

/// CLONE_PIDFD's descriptor, stored for the caller.
fn make_pidfd(me: &Thread, child: &Arc<Thread>, a: &CloneArgs) -> Result<Option<i32>, Errno> {
    if a.flags & PIDFD == 0 {
        return Ok(None);
    }
    let fd = me
        .files()
        .install(super::pidfd::file_for(&child.process, false), true)?;
    if let Err(e) = put_user(a.pidfd, &fd) {
        drop(me.files().remove(fd));
        return Err(e);
    }
    Ok(Some(fd))
}

/// The process object of a fork.
fn new_process(pid: u32, me: &Thread, a: &CloneArgs, space: &Arc<super::Space>) -> Arc<Process> {
    let p = &*me.process;
    let actions = p.sig.lock().actions.clone();
    let actions = if a.flags & SIGHAND != 0 {
        actions
    } else if a.flags & sys::CLONE_CLEAR_SIGHAND != 0 {
        actions.after_exec()
    } else {
        actions.copy()
    };
    let new = Process::build(pid, actions, p.creds(), p.limits());
    if a.flags & VM != 0 {
        space.count_process(true);
    }
    *new.space.lock() = Some(space.clone());
    new.set_exe(p.exe());
    new.exit_signal.store(a.exit_signal, Ordering::Relaxed);
    new.dumpable
        .store(p.dumpable.load(Ordering::Relaxed), Ordering::Relaxed);
    new.core_filter
        .store(p.core_filter.load(Ordering::Relaxed), Ordering::Relaxed);
    new.personality
        .store(p.personality.load(Ordering::Relaxed), Ordering::Relaxed);
    new.membarrier
        .store(p.membarrier.load(Ordering::Relaxed), Ordering::Relaxed);
    new.nice
        .store(p.nice.load(Ordering::Relaxed), Ordering::Relaxed);
    new.oom_score_adj
        .store(p.oom_score_adj.load(Ordering::Relaxed), Ordering::Relaxed);
    new.timer_slack
        .store(p.timer_slack.load(Ordering::Relaxed), Ordering::Relaxed);
    Arc::new(new)
}

/// Enters the child into the table, the family and the list of threads; or refuses, because its group
/// or the caller's is ending.
fn publish(me: &Thread, child: &Arc<Thread>, a: &CloneArgs, traced: bool) -> Result<(), Errno> {
    let mut stop =
        traced.then(|| Queued::new(SigInfo::user(signal::SIGSTOP, signal::SI_USER, 0, 0)));
    let p = &child.process;
    let tid = child.tid();
    let mut tasks = table::lock();
    if a.flags & THREAD != 0 {
        let mut s = p.sig.lock();
        if s.group_exit.is_some() || !s.exec.is_null() {
            return Err(Errno::ERESTARTNOINTR);
        }
        s.add_thread(child);
        if s.stop_sig != 0 {
            // It joins the stop before its first instruction.
            child.set_work(super::WORK_SIGNAL);
        }
    } else if super::fatal_signal_pending() {
        // Who kills all that use a space (`oom`) finds the child or has killed us.
        return Err(Errno::ERESTARTNOINTR);
    } else {
        p.pgid.store(me.process.pgid(), Ordering::Relaxed);
        p.sid.store(me.process.sid(), Ordering::Relaxed);
        p.sig.lock().add_thread(child);
        let parent: *const Process = if a.flags & PARENT != 0 {
            tasks
                .parent(&me.process)
                .map_or(&*me.process as *const Process, |q| q)
        } else {
            &*me.process
        };
        // SAFETY: the table is locked, so the parent is alive.
        tasks.link(p, Some(unsafe { &*parent }));
        p.forker.store(me.tid(), Ordering::Relaxed);
        if a.flags & PARENT != 0 {
            p.exit_signal.store(
                me.process.exit_signal.load(Ordering::Relaxed),
                Ordering::Relaxed,
            );
        }
    }
    p.live.fetch_add(1, Ordering::Relaxed);
    tasks.insert(tid, child.clone());
    if traced {
        ptrace::attach::inherit(&mut tasks, me, child, &mut stop);
    }
    acct::FORKS.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Waits until the child has let go of the space (true), or a fatal signal came.
fn wait_for_vfork_child(me: &Thread, tid: u32) -> bool {
    loop {
        if me.vfork_child.load(Ordering::SeqCst) != tid {
            return true;
        }
        match wait::park(Sleep::Killable) {
            Ok(()) => {}
            Err(WaitError::Signal) | Err(WaitError::Timeout) => return false,
        }
    }
}

/// The child of a vfork no longer uses its parent's memory.
pub(super) fn vfork_done(me: &Thread) {
    // SAFETY: the running thread's own field.
    let Some(parent) = (unsafe { me.vfork_parent.get().take() }) else {
        return;
    };
    // The parent may wait for a later child already: then it does not wait for us.
    if parent
        .vfork_child
        .compare_exchange(me.tid(), 0, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
    {
        parent.token.store(true, Ordering::SeqCst);
        sched::wake(&parent, super::thread::NORMAL);
    }
}

/// First code of a new user thread.
extern "C" fn user_entry(_: usize) -> ! {
    // SAFETY: we were just switched to.
    unsafe { sched::finish_switch() };
    let me = current();
    // SAFETY: the running thread's own field.
    let at = unsafe { me.mine().set_child_tid };
    if at != 0 {
        let _ = put_user(at, &me.tid());
    }
    arch::return_to_user(me.user_frame())
}

/// First code of a kernel thread.
extern "C" fn kernel_entry(_: usize) -> ! {
    // SAFETY: we were just switched to.
    unsafe { sched::finish_switch() };
    let me = current();
    // SAFETY: the running thread's own field.
    if let Some((f, arg)) = unsafe { me.kernel_entry.get().take() } {
        f(arg);
    }
    super::exit::exit_kernel_thread()
}

/// The kernel's own process.
fn kernel_process() -> Arc<Process> {
    static KERNEL: spin::Once<Arc<Process>> = spin::Once::new();
    KERNEL.call_once(|| Arc::new(Process::kernel())).clone()
}

/// See [`super::spawn_kernel_thread`].
pub(super) fn spawn_kernel(name: &str, f: fn(usize), arg: usize) -> Result<(), Errno> {
    let stack = KernelStack::new().ok_or(Errno::ENOMEM)?;
    let tid = table::lock().reserve_pid().ok_or(Errno::EAGAIN)?;
    let t = Arc::new(new_kernel_thread(tid, kernel_process(), stack, f, arg));
    t.set_comm(name.as_bytes());
    table::lock().insert(tid, t.clone());
    sched::start(t);
    Ok(())
}

/// A thread that will call `f(arg)`.
pub(super) fn new_kernel_thread(
    tid: u32,
    process: Arc<Process>,
    stack: KernelStack,
    f: fn(usize),
    arg: usize,
) -> Thread {
    let top = stack.top();
    let t = Thread::build(tid, process, Some(stack), None);
    // SAFETY: the thread is new, its stack mapped and unused. Room for a user frame stays above, for
    // a thread that becomes a program.
    unsafe {
        *t.kernel_entry.get() = Some((f, arg));
        let below = top - core::mem::size_of::<TrapFrame>() as u64 - 64;
        *t.ctx.get() = arch::switch::prepare(below & !15, kernel_entry, 0);
    }
    t
}

/// The process and first thread of a program that the kernel starts: `f` runs in it and replaces
/// itself by the program.
pub(super) fn spawn_process(
    parent: Option<&Arc<Process>>,
    name: &str,
    f: fn(usize),
    arg: usize,
) -> Result<u32, Errno> {
    let stack = KernelStack::new().ok_or(Errno::ENOMEM)?;
    let pid = table::lock().reserve_pid().ok_or(Errno::EAGAIN)?;
    let kernel = kernel_process();
    let process = Arc::new(Process::build(
        pid,
        signal::SigHand::new(),
        kernel.creds(),
        kernel.limits(),
    ));
    let t = new_kernel_thread(pid, process.clone(), stack, f, arg);
    // SAFETY: the thread is new.
    unsafe { *t.fpu.get() = Some(FpuState::new().ok_or(Errno::ENOMEM)?) };
    t.set_comm(name.as_bytes());
    let t = Arc::new(t);
    let mut tasks = table::lock();
    let (pgid, sid) = parent.map_or((pid, pid), |p| (p.pgid(), p.sid()));
    process.pgid.store(pgid, Ordering::Relaxed);
    process.sid.store(sid, Ordering::Relaxed);
    process.live.store(1, Ordering::Relaxed);
    process.sig.lock().add_thread(&t);
    tasks.link(&process, parent.map(|p| &**p));
    tasks.insert(pid, t.clone());
    drop(tasks);
    sched::start(t);
    Ok(pid)
}

/// The idle thread of a CPU; never freed.
pub(super) fn new_idle(cpu: usize) -> &'static Thread {
    let t = Arc::new(Thread::build(0, kernel_process(), None, None));
    t.affinity.store(1 << cpu, Ordering::Relaxed);
    t.set_comm(b"idle");
    // SAFETY: the reference is leaked on purpose.
    unsafe { &*Arc::into_raw(t) }
}

/// Drops the scheduler's reference to a thread that has ended.
pub(super) fn bury(t: &Thread) {
    debug_assert!(t.state.load(Ordering::Relaxed) == DEAD);
    // SAFETY: the reference that `sched::start` leaked; the thread never runs again.
    drop(unsafe { Arc::from_raw(t as *const Thread) });
}
