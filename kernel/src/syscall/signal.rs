//! Signals.

use core::sync::atomic::Ordering;

use mm::Errno;

use super::Calls;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{copy_from_user, copy_to_user, get_user, put_user};
use crate::task::signal::frame::{self, altstack_state, set_altstack};
use crate::task::signal::pending::MAX_QUEUED;
use crate::task::signal::send::{may_signal, queued, set_blocked};
use crate::task::signal::{
    self, Action, NSIG, SI_TKILL, SI_USER, SIGKILL, SIGSTOP, SigInfo, UNBLOCKABLE, bit, is_ignored,
};
use crate::task::time::timeout_at;
use crate::task::wait::{Sleep, sleep_until};
use crate::task::{Process, Thread, current, pidfd, table};
use linux_raw_sys::general as sys;

pub const CALLS: Calls = &[
    (sys::__NR_rt_sigaction, rt_sigaction),
    (sys::__NR_rt_sigprocmask, rt_sigprocmask),
    (sys::__NR_rt_sigpending, rt_sigpending),
    (sys::__NR_rt_sigsuspend, rt_sigsuspend),
    (sys::__NR_rt_sigtimedwait, rt_sigtimedwait),
    (sys::__NR_rt_sigqueueinfo, rt_sigqueueinfo),
    (sys::__NR_rt_tgsigqueueinfo, rt_tgsigqueueinfo),
    (sys::__NR_rt_sigreturn, rt_sigreturn),
    (sys::__NR_sigaltstack, sigaltstack),
    (sys::__NR_kill, kill),
    (sys::__NR_tkill, tkill),
    (sys::__NR_tgkill, tgkill),
    (sys::__NR_pidfd_send_signal, pidfd_send_signal),
    (sys::__NR_pause, pause),
    (sys::__NR_restart_syscall, restart_syscall),
];

/// The size of a signal set that every call must name.
const SET_SIZE: u64 = 8;
/// The action flags this kernel knows; others are dropped, so that programs can tell.
const KNOWN_FLAGS: u64 = (sys::SA_NOCLDSTOP
    | sys::SA_NOCLDWAIT
    | sys::SA_SIGINFO
    | sys::SA_ONSTACK
    | sys::SA_RESTART
    | sys::SA_NODEFER
    | sys::SA_RESETHAND
    | sys::SA_RESTORER) as u64;

fn signo(n: u64) -> Result<u32, Errno> {
    match n as i32 {
        1..=64 => Ok(n as u32),
        _ => Err(Errno::EINVAL),
    }
}

fn rt_sigaction(f: &mut TrapFrame) -> SysResult {
    if f.arg(3) != SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let n = signo(f.arg(0))?;
    let (new, old) = (f.arg(1), f.arg(2));
    let action = if new != 0 {
        Some(get_user::<Action>(new)?)
    } else {
        None
    };
    if action.is_some() && (n == SIGKILL || n == SIGSTOP) {
        return Err(Errno::EINVAL);
    }
    let p = &current().process;
    let (before, gone) = {
        let mut s = p.sig.lock();
        match action {
            Some(mut a) => {
                a.mask &= !UNBLOCKABLE;
                a.flags &= KNOWN_FLAGS;
                let before = s.actions.set(n, a);
                // What becomes ignored is no longer pending.
                let gone =
                    is_ignored(n, a.handler).then(|| signal::send::flush_group(&mut s, bit(n)));
                (before, gone)
            }
            None => (s.actions.get(n), None),
        }
    };
    drop(gone);
    if old != 0 {
        put_user(old, &before)?;
    }
    Ok(0)
}

fn rt_sigprocmask(f: &mut TrapFrame) -> SysResult {
    let (how, new, old) = (f.arg(0) as u32, f.arg(1), f.arg(2));
    if f.arg(3) != SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let now = current().blocked.load(Ordering::Relaxed);
    if new != 0 {
        let set: u64 = get_user(new)?;
        let mask = match how {
            sys::SIG_BLOCK => now | set,
            sys::SIG_UNBLOCK => now & !set,
            sys::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        set_blocked(mask);
    }
    if old != 0 {
        put_user(old, &now)?;
    }
    Ok(0)
}

fn rt_sigpending(f: &mut TrapFrame) -> SysResult {
    let size = f.arg(1);
    if size > SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let me = current();
    let set = signal::send::pending_of(me) & me.blocked.load(Ordering::Relaxed);
    copy_to_user(f.arg(0), &set.to_le_bytes()[..size as usize])?;
    Ok(0)
}

fn rt_sigsuspend(f: &mut TrapFrame) -> SysResult {
    if f.arg(1) != SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = get_user(f.arg(0))?;
    signal::set_user_mask(mask);
    let _ = sleep_until(Sleep::Interruptible, None);
    Err(Errno::ERESTARTNOHAND)
}

fn pause(_: &mut TrapFrame) -> SysResult {
    let _ = sleep_until(Sleep::Interruptible, None);
    Err(Errno::ERESTARTNOHAND)
}

fn rt_sigtimedwait(f: &mut TrapFrame) -> SysResult {
    if f.arg(3) != SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let set: u64 = get_user(f.arg(0))?;
    let deadline = timeout_at(f.arg(2))?;
    let info = signal::wait::timed_wait(set, deadline)?;
    if f.arg(1) != 0 {
        copy_to_user(f.arg(1), &info.bytes())?;
    }
    Ok(info.signo() as usize)
}

fn info_at(at: u64, n: u32) -> Result<SigInfo, Errno> {
    let mut bytes = [0u8; 128];
    copy_from_user(&mut bytes, at)?;
    let mut words = [0u64; 6];
    for (w, b) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *w = u64::from_le_bytes(b.try_into().unwrap_or([0; 8]));
    }
    if bytes[48..].iter().any(|&b| b != 0) {
        // More than this kernel keeps.
        return Err(Errno::E2BIG);
    }
    Ok(SigInfo::from_words(words).with_signo(n))
}

/// Only the kernel and `kill` may pretend to be them.
fn honest(info: &SigInfo, pid: u32) -> Result<(), Errno> {
    if (info.code() >= 0 || info.code() == SI_TKILL) && pid != current().process.pid {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Real-time signals that nobody can do without their information are not sent, to a process or one thread of it, where too many wait
/// or memory is short.
fn has_room(p: &Process, t: Option<&Thread>, info: &SigInfo) -> Result<(), Errno> {
    if info.signo() < sys::SIGRTMIN || info.code() == SI_USER {
        return Ok(());
    }
    if queued(p, t) >= MAX_QUEUED {
        return Err(Errno::EAGAIN);
    }
    crate::memory::headroom().map_err(|_| Errno::EAGAIN)
}

fn rt_sigqueueinfo(f: &mut TrapFrame) -> SysResult {
    let pid = f.arg(0) as u32;
    let n = f.arg(1) as u32;
    let info = info_at(f.arg(2), n)?;
    honest(&info, pid)?;
    let p = table::find_process(pid).ok_or(Errno::ESRCH)?;
    may_signal(&p, n)?;
    if n == 0 {
        return Ok(0);
    }
    signo(n as u64)?;
    has_room(&p, None, &info)?;
    signal::send_to_process(&p, info);
    Ok(0)
}

fn rt_tgsigqueueinfo(f: &mut TrapFrame) -> SysResult {
    let (tgid, tid, n) = (f.arg(0) as i32, f.arg(1) as i32, f.arg(2) as u32);
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = info_at(f.arg(3), n)?;
    honest(&info, tgid as u32)?;
    to_thread(Some(tgid as u32), tid as u32, n, info)
}

fn rt_sigreturn(f: &mut TrapFrame) -> SysResult {
    frame::sigreturn(f)
}

fn sigaltstack(f: &mut TrapFrame) -> SysResult {
    let (new, old) = (f.arg(0), f.arg(1));
    let me = current();
    // SAFETY: the running thread's own field.
    let before = unsafe { me.mine().altstack };
    if new != 0 {
        let w: [u64; 3] = get_user(new)?;
        set_altstack(w[0], w[1] as u32, w[2], f.rsp)?;
    }
    if old != 0 {
        let flags = altstack_state(&before, f.rsp) | before.flags & frame::SS_AUTODISARM;
        put_user(old, &[before.sp, flags as u64, before.size])?;
    }
    Ok(0)
}

fn user_info(n: u32, code: i32) -> SigInfo {
    let me = &current().process;
    SigInfo::user(n, code, me.pid, me.creds().uid)
}

fn kill(f: &mut TrapFrame) -> SysResult {
    let (pid, n) = (f.arg(0) as i32, f.arg(1) as i32);
    if !(0..=NSIG as i32).contains(&n) {
        return Err(Errno::EINVAL);
    }
    let n = n as u32;
    let info = user_info(n, SI_USER);
    let me = &current().process;
    if pid > 0 {
        let p = table::find_process(pid as u32).ok_or(Errno::ESRCH)?;
        may_signal(&p, n)?;
        if n != 0 {
            signal::send_to_process(&p, info);
        }
        return Ok(0);
    }
    let wanted = match pid {
        -1 => None,
        0 => Some(me.pgid()),
        i32::MIN => return Err(Errno::ESRCH),
        g => Some(-g as u32),
    };
    let tasks = table::lock();
    let (mut found, mut sent, mut error) = (false, false, Errno::EPERM);
    for p in tasks.iter() {
        let hit = match wanted {
            Some(g) => p.pgid() == g,
            None => p.pid > 1 && p.pid != me.pid,
        };
        if !hit {
            continue;
        }
        found = true;
        match may_signal(p, n) {
            Ok(()) => {
                sent = true;
                if n != 0 && !p.is_zombie() {
                    signal::send_to_process(p, info);
                }
            }
            Err(e) => error = e,
        }
    }
    match (found, sent) {
        (_, true) => Ok(0),
        (true, false) => Err(error),
        (false, false) => Err(Errno::ESRCH),
    }
}

fn to_thread(tgid: Option<u32>, tid: u32, n: u32, info: SigInfo) -> SysResult {
    let t = table::find_thread(tid).ok_or(Errno::ESRCH)?;
    if t.process.pid == 0 || tgid.is_some_and(|g| t.process.pid != g) {
        return Err(Errno::ESRCH);
    }
    may_signal(&t.process, n)?;
    if n != 0 {
        signo(n as u64)?;
        has_room(&t.process, Some(&t), &info)?;
        signal::send_to_thread(&t, info);
    }
    Ok(0)
}

fn tkill(f: &mut TrapFrame) -> SysResult {
    let (tid, n) = (f.arg(0) as i32, f.arg(1) as i32);
    if tid <= 0 || !(0..=NSIG as i32).contains(&n) {
        return Err(Errno::EINVAL);
    }
    to_thread(None, tid as u32, n as u32, user_info(n as u32, SI_TKILL))
}

fn tgkill(f: &mut TrapFrame) -> SysResult {
    let (tgid, tid, n) = (f.arg(0) as i32, f.arg(1) as i32, f.arg(2) as i32);
    if tgid <= 0 || tid <= 0 || !(0..=NSIG as i32).contains(&n) {
        return Err(Errno::EINVAL);
    }
    to_thread(
        Some(tgid as u32),
        tid as u32,
        n as u32,
        user_info(n as u32, SI_TKILL),
    )
}

fn pidfd_send_signal(f: &mut TrapFrame) -> SysResult {
    let (fd, n, info, flags) = (f.arg(0) as i32, f.arg(1) as i32, f.arg(2), f.arg(3) as u32);
    if flags != 0 || !(0..=NSIG as i32).contains(&n) {
        return Err(Errno::EINVAL);
    }
    let n = n as u32;
    let p = pidfd::living(fd)?;
    let info = if info == 0 {
        user_info(n, SI_USER)
    } else {
        let given = info_at(info, n)?;
        honest(&given, p.pid)?;
        given
    };
    may_signal(&p, n)?;
    if n != 0 {
        has_room(&p, None, &info)?;
        signal::send_to_process(&p, info);
    }
    Ok(0)
}

fn restart_syscall(_: &mut TrapFrame) -> SysResult {
    // SAFETY: the running thread's own field.
    let block = core::mem::replace(
        unsafe { &mut current().mine().restart },
        crate::task::thread::RestartBlock::NONE,
    );
    (block.func)(&block.args)
}
