//! Scheduling parameters.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::Calls;
use crate::SysResult;
use crate::arch::uaccess::{copy_from_user, copy_to_user, get_user, put_user};
use crate::arch::{self, TrapFrame};
use crate::task::time::Timespec;
use crate::task::{self, Thread, current, sched, table};
use linux_raw_sys::general as sys;

pub const CALLS: Calls = &[
    (sys::__NR_sched_yield, sched_yield),
    (sys::__NR_sched_setaffinity, sched_setaffinity),
    (sys::__NR_sched_getaffinity, sched_getaffinity),
    (sys::__NR_sched_getscheduler, sched_getscheduler),
    (sys::__NR_sched_setscheduler, sched_setscheduler),
    (sys::__NR_sched_getparam, sched_getparam),
    (sys::__NR_sched_setparam, sched_setparam),
    (sys::__NR_sched_get_priority_max, priority_max),
    (sys::__NR_sched_get_priority_min, priority_min),
    (sys::__NR_sched_rr_get_interval, rr_interval),
    (sys::__NR_getpriority, getpriority),
    (sys::__NR_setpriority, setpriority),
    (sys::__NR_getcpu, getcpu),
];

fn thread(tid: u64) -> Result<Arc<Thread>, Errno> {
    match tid as i32 {
        0 => Ok(current().arc()),
        n if n < 0 => Err(Errno::EINVAL),
        n => table::find_thread(n as u32).ok_or(Errno::ESRCH),
    }
}

fn sched_yield(_: &mut TrapFrame) -> SysResult {
    task::yield_now();
    Ok(0)
}

fn sched_setaffinity(f: &mut TrapFrame) -> SysResult {
    let mut bytes = [0u8; 8];
    let n = (f.arg(1) as usize).min(8);
    copy_from_user(&mut bytes[..n], f.arg(2))?;
    let t = thread(f.arg(0))?;
    let mask = u64::from_le_bytes(bytes) & ((1 << arch::ncpus()) - 1);
    if mask == 0 || t.process.pid == 0 {
        return Err(Errno::EINVAL);
    }
    t.affinity.store(mask, Ordering::SeqCst);
    sched::affinity_changed(&t);
    Ok(0)
}

fn sched_getaffinity(f: &mut TrapFrame) -> SysResult {
    let len = f.arg(1);
    if len < 8 || len & 7 != 0 {
        return Err(Errno::EINVAL);
    }
    let mask = thread(f.arg(0))?.affinity.load(Ordering::Relaxed) & ((1 << arch::ncpus()) - 1);
    put_user(f.arg(2), &mask)?;
    Ok(8)
}

fn sched_getscheduler(f: &mut TrapFrame) -> SysResult {
    Ok(thread(f.arg(0))?.policy.load(Ordering::Relaxed) as usize)
}

/// Everybody runs round robin; the policies without priorities are remembered, the real-time ones
/// are not to be had.
fn set_policy(t: &Thread, policy: u32, priority: i32) -> SysResult {
    match policy {
        sys::SCHED_NORMAL | sys::SCHED_BATCH | sys::SCHED_IDLE if priority == 0 => {
            t.policy.store(policy as u8, Ordering::Relaxed);
            Ok(0)
        }
        sys::SCHED_FIFO | sys::SCHED_RR if (1..=99).contains(&priority) => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

fn sched_setscheduler(f: &mut TrapFrame) -> SysResult {
    let priority: i32 = get_user(f.arg(2))?;
    let policy = f.arg(1) as u32 & !sys::SCHED_RESET_ON_FORK;
    set_policy(&*thread(f.arg(0))?, policy, priority)
}

fn sched_getparam(f: &mut TrapFrame) -> SysResult {
    thread(f.arg(0))?;
    put_user(f.arg(1), &0i32)?;
    Ok(0)
}

fn sched_setparam(f: &mut TrapFrame) -> SysResult {
    let priority: i32 = get_user(f.arg(1))?;
    let t = thread(f.arg(0))?;
    let policy = t.policy.load(Ordering::Relaxed) as u32;
    set_policy(&t, policy, priority)
}

fn priority_max(f: &mut TrapFrame) -> SysResult {
    match f.arg(0) as u32 {
        sys::SCHED_FIFO | sys::SCHED_RR => Ok(99),
        sys::SCHED_NORMAL | sys::SCHED_BATCH | sys::SCHED_IDLE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

fn priority_min(f: &mut TrapFrame) -> SysResult {
    Ok(priority_max(f)?.min(1))
}

fn rr_interval(f: &mut TrapFrame) -> SysResult {
    thread(f.arg(0))?;
    put_user(f.arg(1), &Timespec::from_ns(4_000_000))?;
    Ok(0)
}

/// The processes that `which` and `who` name.
fn each_priority(which: u32, who: u32, mut f: impl FnMut(&task::Process)) -> Result<(), Errno> {
    let me = &current().process;
    let mut any = false;
    let mut hit = |p: &task::Process| {
        any = true;
        f(p);
    };
    match which {
        sys::PRIO_PROCESS => {
            let t = thread(who as u64)?;
            hit(&t.process);
        }
        sys::PRIO_PGRP => {
            let g = if who == 0 { me.pgid() } else { who };
            table::lock()
                .iter()
                .filter(|p| p.pgid() == g)
                .for_each(&mut hit);
        }
        sys::PRIO_USER => {
            let u = if who == 0 { me.creds().uid } else { who };
            table::lock()
                .iter()
                .filter(|p| p.creds().uid == u)
                .for_each(&mut hit);
        }
        _ => return Err(Errno::EINVAL),
    }
    if any { Ok(()) } else { Err(Errno::ESRCH) }
}

fn getpriority(f: &mut TrapFrame) -> SysResult {
    let mut best = 0;
    each_priority(f.arg(0) as u32, f.arg(1) as u32, |p| {
        best = best.max(20 - p.nice.load(Ordering::Relaxed));
    })?;
    Ok(best as usize)
}

fn setpriority(f: &mut TrapFrame) -> SysResult {
    let nice = (f.arg(2) as i32).clamp(-20, 19);
    each_priority(f.arg(0) as u32, f.arg(1) as u32, |p| {
        p.nice.store(nice, Ordering::Relaxed)
    })?;
    Ok(0)
}

fn getcpu(f: &mut TrapFrame) -> SysResult {
    let cpu = arch::cpu_id() as u32;
    if f.arg(0) != 0 {
        copy_to_user(f.arg(0), &cpu.to_le_bytes())?;
    }
    if f.arg(1) != 0 {
        put_user(f.arg(1), &0u32)?;
    }
    Ok(0)
}
