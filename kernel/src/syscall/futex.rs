//! Futexes. Priority inheritance is absent: ENOSYS.

use alloc::vec::Vec;

use mm::Errno;

use super::Calls;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{Pod, get_user, put_user};
use crate::task::time::{self, Timespec};
use crate::task::{current, futex, table};
use linux_raw_sys::general as sys;

pub const CALLS: Calls = &[
    (sys::__NR_futex, sys_futex),
    (sys::__NR_futex_waitv, futex_waitv),
    (sys::__NR_set_robust_list, set_robust_list),
    (sys::__NR_get_robust_list, get_robust_list),
];

fn sys_futex(f: &mut TrapFrame) -> SysResult {
    let (addr, op, val) = (f.arg(0), f.arg(1) as u32, f.arg(2) as u32);
    let (addr2, val3) = (f.arg(4), f.arg(5) as u32);
    let private = op & sys::FUTEX_PRIVATE_FLAG != 0;
    let realtime = op & sys::FUTEX_CLOCK_REALTIME != 0;
    let cmd = op & !(sys::FUTEX_PRIVATE_FLAG | sys::FUTEX_CLOCK_REALTIME);
    if realtime && cmd != sys::FUTEX_WAIT_BITSET {
        return Err(Errno::ENOSYS);
    }
    match cmd {
        sys::FUTEX_WAKE => futex::wake(addr, private, count(val), futex::ANY),
        sys::FUTEX_WAKE_BITSET => futex::wake(addr, private, count(val), val3),
        sys::FUTEX_WAIT => {
            let deadline = time::timeout_at(f.arg(3))?;
            futex::wait_restartable(addr, private, val, futex::ANY, deadline)
        }
        sys::FUTEX_WAIT_BITSET => {
            let deadline = match f.arg(3) {
                0 => None,
                at => {
                    let ns = get_user::<Timespec>(at)?.to_ns()?;
                    Some(if realtime { time::monotonic_of(ns) } else { ns })
                }
            };
            futex::wait_restartable(addr, private, val, val3, deadline)
        }
        sys::FUTEX_REQUEUE | sys::FUTEX_CMP_REQUEUE => {
            let (wake, mv) = (val as i32, f.arg(3) as i32);
            if wake < 0 || mv < 0 {
                return Err(Errno::EINVAL);
            }
            let expected = (cmd == sys::FUTEX_CMP_REQUEUE).then_some(val3);
            let (woken, moved) =
                futex::requeue(addr, addr2, private, wake as u32, mv as u32, expected)?;
            Ok((woken + moved) as usize)
        }
        sys::FUTEX_WAKE_OP => futex::wake_op(
            addr,
            addr2,
            private,
            count(val),
            count(f.arg(3) as u32),
            val3,
        ),
        _ => Err(Errno::ENOSYS),
    }
}

/// `struct futex_waitv`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Waitv {
    val: u64,
    addr: u64,
    flags: u32,
    reserved: u32,
}

// SAFETY: integers without holes.
unsafe impl Pod for Waitv {}

fn futex_waitv(f: &mut TrapFrame) -> SysResult {
    const MOST: u64 = 128;
    const SIZE_U32: u32 = 2;
    const PRIVATE: u32 = 128;
    let (at, n, timeout) = (f.arg(0), f.arg(1) as u32 as u64, f.arg(3));
    if f.arg(2) as u32 != 0 || n == 0 || n > MOST || at == 0 {
        return Err(Errno::EINVAL);
    }
    let deadline = match timeout {
        0 => None,
        timeout => {
            let realtime = match f.arg(4) as u32 {
                sys::CLOCK_REALTIME => true,
                sys::CLOCK_MONOTONIC => false,
                _ => return Err(Errno::EINVAL),
            };
            let ns = get_user::<Timespec>(timeout)?.to_ns()?;
            Some(if realtime { time::monotonic_of(ns) } else { ns })
        }
    };
    let mut words = Vec::new();
    words
        .try_reserve_exact(n as usize)
        .map_err(|_| Errno::ENOMEM)?;
    for i in 0..n {
        let at = at.wrapping_add(i * size_of::<Waitv>() as u64);
        let w: Waitv = get_user(at)?;
        let val = u32::try_from(w.val).map_err(|_| Errno::EINVAL)?;
        // Words of 32 bits, private or shared, are all there are.
        if w.flags & !PRIVATE != SIZE_U32 || w.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        words.push(futex::Word {
            addr: w.addr,
            val,
            private: w.flags & PRIVATE != 0,
        });
    }
    futex::wait_many(&words, deadline)
}

/// Linux wakes one even for 0 or less.
fn count(n: u32) -> u32 {
    (n as i32).max(1) as u32
}

fn set_robust_list(f: &mut TrapFrame) -> SysResult {
    if f.arg(1) != 24 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the running thread's own field.
    unsafe { current().mine().robust_list = f.arg(0) };
    Ok(0)
}

fn get_robust_list(f: &mut TrapFrame) -> SysResult {
    let me = current();
    let tid = f.arg(0) as u32;
    if tid != 0 && tid != me.tid() {
        // Another thread's list pointer is its own; only whether it exists is told.
        return Err(if table::find_thread(tid).is_some() {
            Errno::EPERM
        } else {
            Errno::ESRCH
        });
    }
    // SAFETY: the running thread's own field.
    let head = unsafe { me.mine().robust_list };
    put_user(f.arg(1), &head)?;
    put_user(f.arg(2), &24u64)?;
    Ok(0)
}
