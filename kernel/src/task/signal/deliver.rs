//! Delivery, on the way to user mode.

use core::sync::atomic::Ordering;

use mm::Errno;

use super::send::{kill_group, recalc};
use super::{
    Action, CLD_CONTINUED, CLD_STOPPED, IGNORED, Queued, SIG_DFL, SIG_IGN, SIGCHLD, SIGSTOP, STOPS,
    SigInfo, SigState, bit, frame,
};
use crate::arch::TrapFrame;
use crate::task::thread::{RUNNING, STOPPED, TRACED, Thread};
use crate::task::{WORK_KILL, coredump, current, exit, ptrace, sched, table};
use linux_raw_sys::general as sys;

/// What `next_signal` found for user mode.
struct Delivery {
    info: SigInfo,
    action: Action,
}

/// Delivers what is pending to the running thread: at most one handler frame for each call, so that
/// a second signal is delivered on top of the first by the next look at `work`.
pub fn do_signal(frame: &mut TrapFrame) {
    let me = current();
    me.note_user_regs(frame);
    let delivery = next_signal(me, frame);
    // What a tracer made of the registers meanwhile counts.
    let code = restart_code(frame);
    // SAFETY: the running thread's own fields.
    let own = unsafe { me.mine() };
    let Some(d) = delivery else {
        if code != 0 {
            restart(frame, code);
        }
        if let Some(mask) = own.saved_mask.take() {
            super::send::set_blocked(mask);
        }
        return;
    };
    if code != 0 {
        let again = code == Errno::ERESTARTNOINTR.raw() as u16
            || code == Errno::ERESTARTSYS.raw() as u16
                && d.action.flags & sys::SA_RESTART as u64 != 0;
        if again {
            frame.rax = frame.orig_rax;
            frame.rip -= 2;
        } else {
            frame.rax = -(Errno::EINTR.raw() as i64) as u64;
        }
    }
    let mask = own
        .saved_mask
        .take()
        .unwrap_or(me.blocked.load(Ordering::Relaxed));
    let stepped = ptrace::stop::take_step(me, frame);
    match frame::push(frame, &d.info, &d.action, mask) {
        Ok(()) => {
            let mut blocked = me.blocked.load(Ordering::Relaxed) | d.action.mask;
            if d.action.flags & sys::SA_NODEFER as u64 == 0 {
                blocked |= bit(d.info.signo());
            }
            super::send::set_blocked(blocked);
            if stepped {
                ptrace::stop::at_handler(me, frame);
            }
        }
        Err(_) => {
            super::send::set_blocked(mask);
            frame_fault(d.info.signo());
        }
    }
}

/// The stack could not take the frame: SIGSEGV, by default if that was the signal itself.
fn frame_fault(signo: u32) {
    let info = SigInfo::kernel(super::SIGSEGV);
    force(info, signo == super::SIGSEGV);
}

/// Which of the ERESTART codes an interrupted system call has returned; 0: none.
fn restart_code(frame: &TrapFrame) -> u16 {
    let code = (frame.rax as i64).wrapping_neg();
    let restarts = [
        Errno::ERESTARTSYS,
        Errno::ERESTARTNOINTR,
        Errno::ERESTARTNOHAND,
        Errno::ERESTART_RESTARTBLOCK,
    ];
    if frame.orig_rax != u64::MAX && restarts.iter().any(|e| i64::from(e.raw()) == code) {
        code as u16
    } else {
        0
    }
}

/// No handler runs: the interrupted call continues.
fn restart(frame: &mut TrapFrame, code: u16) {
    frame.rip -= 2;
    frame.rax = if code == Errno::ERESTART_RESTARTBLOCK.raw() as u16 {
        sys::__NR_restart_syscall as u64
    } else {
        frame.orig_rax
    };
}

/// Handles everything that needs no user frame; the first signal that does.
fn next_signal(me: &Thread, frame: &mut TrapFrame) -> Option<Delivery> {
    let p = &me.process;
    loop {
        let mut s = p.sig.lock();
        if s.group_exit.is_some() || me.work.load(Ordering::Relaxed) & WORK_KILL != 0 {
            let status = s.group_exit.unwrap_or(super::SIGKILL);
            drop(s);
            exit::exit_thread(status);
        }
        if s.tell_cont {
            s.tell_cont = false;
            drop(s);
            tell_parent(me, CLD_CONTINUED, super::SIGCONT);
            continue;
        }
        // SAFETY: the process's signal lock is held.
        let tr = unsafe { me.trace.get() };
        let stop = s.stop_sig != 0 && !tr.stood;
        if stop || tr.trap_due() {
            let traced = tr.tracer().is_some();
            drop(s);
            if traced {
                ptrace::stop::at_job_control(me, frame);
            } else {
                stand_still(me);
            }
            continue;
        }
        let open = !me.blocked.load(Ordering::Relaxed);
        // SAFETY: the process's signal lock is held.
        let mine = unsafe { me.pending.get() };
        let taken = match mine.take(open) {
            Some(t) => Some(t),
            None => s.shared.take(open),
        };
        let Some((mut info, mut node)) = taken else {
            recalc(&s, me);
            return None;
        };
        let mut signo = info.signo();
        let traced = signo != super::SIGKILL && me.traced.load(Ordering::Relaxed);
        if traced || bit(signo) & STOPS != 0 {
            // A tracer may make a stop signal of any other.
            // SAFETY: the process's signal lock is held.
            unsafe { me.trace.get() }.stop_taken = true;
        }
        let mut of_timer = info.code() == super::SI_TIMER;
        if traced {
            drop(s);
            drop(node);
            if core::mem::take(&mut of_timer) {
                crate::task::time::posix::delivered(&mut info);
            }
            let Some(left) = ptrace::stop::at_signal(me, frame, info) else {
                continue;
            };
            (info, signo) = (left, left.signo());
            s = p.sig.lock();
            node = None;
        }
        let action = s.actions.get(signo);
        if action.handler > SIG_IGN && action.flags & sys::SA_RESETHAND as u64 != 0 {
            s.actions.set(
                signo,
                Action {
                    handler: SIG_DFL,
                    ..action
                },
            );
        }
        drop(s);
        drop(node);
        if of_timer {
            crate::task::time::posix::delivered(&mut info);
        }
        match action.handler {
            SIG_IGN => continue,
            SIG_DFL => {}
            _ => return Some(Delivery { info, action }),
        }
        let b = bit(signo);
        if b & IGNORED != 0 || p.pid <= 1 {
            continue;
        }
        if b & STOPS != 0 {
            if signo != SIGSTOP && table::lock().is_orphaned_group(p.pgid(), None) {
                continue;
            }
            begin_stop(me, signo);
            continue;
        }
        if b & super::SYNCHRONOUS != 0 {
            // SAFETY: the running thread's own field.
            let [vector, err, addr] = unsafe { me.mine().trap };
            crate::debug!(
                "{}({}): killed by signal {signo}: code {} trap {vector} error {err:#x} address {addr:#x} rip {:#x} rsp {:#x}",
                crate::task::name_of(me),
                me.tid(),
                info.code(),
                frame.rip,
                frame.rsp
            );
        }
        if b & super::DUMPS != 0 {
            coredump::die(me, frame, &info);
            continue;
        }
        let mut s = p.sig.lock();
        if s.group_exit.is_none() {
            kill_group(&mut s, signo);
        }
    }
}

/// The default action of a stop signal: every thread stops that does not stand still already. One that its tracer
/// lets run in a stopped group may stop it again.
fn begin_stop(me: &Thread, signo: u32) {
    let mut s = me.process.sig.lock();
    // SAFETY: the process's signal lock is held.
    let taken = core::mem::take(&mut unsafe { me.trace.get() }.stop_taken);
    // Nothing to do if SIGCONT came since the signal was taken.
    if s.group_exit.is_some() || !taken {
        return;
    }
    if !s.stop_complete {
        s.stop_sig = signo;
    }
    for t in s.threads() {
        if t.state.load(Ordering::Relaxed) & (STOPPED | TRACED) != 0 {
            continue;
        }
        // SAFETY: as above.
        let tr = unsafe { t.trace.get() };
        tr.stood = false;
        t.set_work(crate::task::WORK_SIGNAL);
        if core::ptr::eq(t, me) {
            continue;
        }
        if tr.seized() {
            ptrace::request::job_control_changed(t, tr);
        } else {
            super::send::nudge(t);
        }
    }
}

/// The running thread stops for the group. True: it was the last one, and the parent is to be told.
pub(in crate::task) fn participate(s: &mut SigState, me: &Thread) -> bool {
    // SAFETY: the process's signal lock is held.
    unsafe { me.trace.get() }.stood = s.stop_sig != 0;
    complete(s)
}

/// Whether every thread has stopped, seen for the first time.
fn complete(s: &mut SigState) -> bool {
    // SAFETY: the process's signal lock is held.
    let all = s.nthreads > 0 && s.threads().all(|t| unsafe { t.trace.get() }.stood);
    if s.stop_sig == 0 || s.stop_complete || !all {
        return false;
    }
    s.stop_complete = true;
    s.stop_report = s.stop_sig;
    true
}

/// Stands still until SIGCONT, a tracer or death; the last thread to do so tells the parent.
fn stand_still(me: &Thread) {
    let p = &me.process;
    let mut s = p.sig.lock();
    let signo = s.stop_sig;
    if signo == 0 || s.group_exit.is_some() {
        return;
    }
    let last = participate(&mut s, me);
    drop(s);
    if last {
        tell_parent(me, CLD_STOPPED, signo);
    }
    loop {
        me.state.swap(STOPPED, Ordering::SeqCst);
        let go_on = {
            let s = p.sig.lock();
            s.stop_sig == 0 || s.group_exit.is_some() || me.traced.load(Ordering::Relaxed)
        };
        if go_on || me.work.load(Ordering::SeqCst) & WORK_KILL != 0 {
            break;
        }
        sched::schedule();
    }
    me.state.store(RUNNING, Ordering::Relaxed);
}

/// A thread has left a stopped group: perhaps the others were all standing already.
pub(in crate::task) fn stop_after_exit(me: &Thread) {
    let p = &me.process;
    let mut s = p.sig.lock();
    let signo = s.stop_sig;
    if complete(&mut s) {
        drop(s);
        tell_parent(me, CLD_STOPPED, signo);
    }
}

/// SIGCHLD about a stop or a continuation, and a wake-up for `wait`.
pub(in crate::task) fn tell_parent(me: &Thread, code: i32, status: u32) {
    let p = &me.process;
    let usage = p.usage();
    let info = SigInfo::child(
        SIGCHLD,
        code,
        p.pid,
        p.creds().uid,
        status as i32,
        usage.user_ns / 10_000_000,
        usage.system_ns / 10_000_000,
    );
    let node = Queued::new(info);
    let tasks = table::lock();
    if let Some(parent) = tasks.parent(p) {
        let flags = {
            let s = parent.sig.lock();
            s.actions.get(SIGCHLD)
        };
        if flags.handler != SIG_IGN && flags.flags & sys::SA_NOCLDSTOP as u64 == 0 {
            let _ = super::send::send_prepared(parent, None, SIGCHLD, node);
        }
        parent.child_wait.wake_all();
    }
}

/// Raises a signal the running thread cannot escape: if it is blocked or ignored, or `by_default`,
/// its action becomes the default.
pub fn force(info: SigInfo, by_default: bool) {
    let me = current();
    let signo = info.signo();
    let node = Queued::new(info);
    let mut s = me.process.sig.lock();
    let b = bit(signo);
    let act = s.actions.get(signo);
    let blocked = me.blocked.load(Ordering::Relaxed);
    if by_default || act.handler == SIG_IGN || blocked & b != 0 {
        s.actions.set(signo, Action::DEFAULT);
        me.blocked.store(blocked & !b, Ordering::Relaxed);
    }
    // SAFETY: the process's signal lock is held.
    let rest = unsafe { me.pending.get() }.add(signo, Some(node));
    if me.process.pid <= 1 && s.actions.get(signo).handler == SIG_DFL && s.group_exit.is_none() {
        // Even pid 1 cannot go on from here.
        kill_group(&mut s, signo);
    }
    me.set_work(crate::task::WORK_SIGNAL);
    drop(s);
    drop(rest);
}

/// A fault of the running thread: SIGSEGV or SIGBUS with its code and address.
pub fn force_fault(signo: u32, code: i32, addr: u64) {
    force(SigInfo::fault(signo, code, addr), false);
}

/// Another exception in user mode.
pub fn force_exception(frame: &mut TrapFrame, vector: u64, err: u64) {
    const FPE_FLTUNK: i32 = 14;
    let (signo, code, addr) = match vector {
        0 => (super::SIGFPE, 1, frame.rip),
        1 => match ptrace::stop::debug_trap(frame, err) {
            Some(code) => (super::SIGTRAP, code, frame.rip),
            None => return,
        },
        3 => (super::SIGTRAP, super::SI_KERNEL, 0),
        4 | 5 => (super::SIGSEGV, super::SI_KERNEL, 0),
        6 => (super::SIGILL, 2, frame.rip),
        16 | 19 => (
            super::SIGFPE,
            fpe_code(vector).unwrap_or(FPE_FLTUNK),
            frame.rip,
        ),
        17 => (super::SIGBUS, 1, 0),
        11 | 12 => (super::SIGBUS, super::SI_KERNEL, 0),
        _ => (super::SIGSEGV, super::SI_KERNEL, 0),
    };
    super::note_trap(vector, if vector == 1 { 0 } else { err }, addr);
    force(SigInfo::fault(signo, code, addr), false);
}

/// Which floating-point exception: from the saved x87 status or MXCSR.
fn fpe_code(vector: u64) -> Option<i32> {
    let bits = crate::task::switch::with_fpu(|st| {
        let b = st.bytes();
        let (flags, masks) = if vector == 16 {
            let cw = u16::from_le_bytes([b[0], b[1]]);
            let sw = u16::from_le_bytes([b[2], b[3]]);
            (sw, cw)
        } else {
            let mxcsr = u32::from_le_bytes([b[24], b[25], b[26], b[27]]);
            (mxcsr as u16 & 0x3f, (mxcsr >> 7) as u16 & 0x3f)
        };
        (flags & !masks & 0x3f, false)
    })?;
    // invalid, denormal, zero divide, overflow, underflow, precision
    Some(match bits.trailing_zeros() {
        0 => 7,
        1 => 5,
        2 => 3,
        3 => 4,
        4 => 5,
        5 => 6,
        _ => return None,
    })
}
