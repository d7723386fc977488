//! Time.

use alloc::sync::Arc;

use mm::Errno;

use super::Calls;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{get_user, put_user};
use crate::task::signal::{SIGALRM, SIGCONT, STOPS, bit};
use crate::task::time::{self, NS, Timespec, Timeval, itimer, posix};
use crate::task::{current, table};
use linux_raw_sys::general as sys;

pub const CALLS: Calls = &[
    (sys::__NR_clock_gettime, clock_gettime),
    (sys::__NR_clock_getres, clock_getres),
    (sys::__NR_clock_settime, clock_settime),
    (sys::__NR_clock_nanosleep, clock_nanosleep),
    (sys::__NR_nanosleep, nanosleep),
    (sys::__NR_gettimeofday, gettimeofday),
    (sys::__NR_settimeofday, settimeofday),
    (sys::__NR_time, sys_time),
    (sys::__NR_times, times),
    (sys::__NR_alarm, alarm),
    (sys::__NR_setitimer, setitimer),
    (sys::__NR_getitimer, getitimer),
    (sys::__NR_timer_create, timer_create),
    (sys::__NR_timer_settime, timer_settime),
    (sys::__NR_timer_gettime, timer_gettime),
    (sys::__NR_timer_getoverrun, timer_getoverrun),
    (sys::__NR_timer_delete, timer_delete),
];

fn clock_gettime(f: &mut TrapFrame) -> SysResult {
    let ns = time::read_clock(f.arg(0) as i32)?;
    put_user(f.arg(1), &Timespec::from_ns(ns))?;
    Ok(0)
}

fn clock_getres(f: &mut TrapFrame) -> SysResult {
    let ns = time::clock_resolution(f.arg(0) as i32)?;
    if f.arg(1) != 0 {
        put_user(f.arg(1), &Timespec::from_ns(ns))?;
    }
    Ok(0)
}

fn may_set() -> Result<(), Errno> {
    const CAP_SYS_TIME: u32 = 25;
    if current().process.creds().capable(CAP_SYS_TIME) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

fn clock_settime(f: &mut TrapFrame) -> SysResult {
    let t: Timespec = get_user(f.arg(1))?;
    if f.arg(0) as u32 != sys::CLOCK_REALTIME {
        return Err(Errno::EINVAL);
    }
    let ns = t.to_ns()?;
    may_set()?;
    time::set_realtime(ns);
    Ok(0)
}

fn settimeofday(f: &mut TrapFrame) -> SysResult {
    if f.arg(0) == 0 {
        return Ok(0);
    }
    let ns = get_user::<Timeval>(f.arg(0))?.to_ns()?;
    may_set()?;
    time::set_realtime(ns);
    Ok(0)
}

fn nanosleep(f: &mut TrapFrame) -> SysResult {
    let t: Timespec = get_user(f.arg(0))?;
    time::nanosleep(sys::CLOCK_MONOTONIC as i32, false, t, f.arg(1))
}

fn clock_nanosleep(f: &mut TrapFrame) -> SysResult {
    let absolute = f.arg(1) as u32 & sys::TIMER_ABSTIME != 0;
    let t: Timespec = get_user(f.arg(2))?;
    time::nanosleep(f.arg(0) as i32, absolute, t, f.arg(3))
}

fn gettimeofday(f: &mut TrapFrame) -> SysResult {
    if f.arg(0) != 0 {
        put_user(f.arg(0), &Timeval::from_ns(time::realtime_ns()))?;
    }
    if f.arg(1) != 0 {
        put_user(f.arg(1), &0u64)?;
    }
    Ok(0)
}

fn sys_time(f: &mut TrapFrame) -> SysResult {
    let now = time::realtime_ns() / NS;
    if f.arg(0) != 0 {
        put_user(f.arg(0), &now)?;
    }
    Ok(now as usize)
}

fn times(f: &mut TrapFrame) -> SysResult {
    const TICK: u64 = 10_000_000;
    if f.arg(0) != 0 {
        let p = &current().process;
        let (own, children) = (p.usage(), p.children_usage());
        let t = [
            own.user_ns,
            own.system_ns,
            children.user_ns,
            children.system_ns,
        ]
        .map(|ns| ns / TICK);
        put_user(f.arg(0), &t)?;
    }
    Ok((time::monotonic_ns() / TICK) as usize)
}

fn alarm(f: &mut TrapFrame) -> SysResult {
    let seconds = f.arg(0) as u32 as u64;
    let (left, _) = itimer::set(&current().process, seconds * NS, 0);
    // Rounded to seconds, but never down to "none was set".
    Ok(if left == 0 {
        0
    } else {
        ((left + NS / 2) / NS).max(1)
    } as usize)
}

fn interval_at(at: u64) -> Result<(u64, u64), Errno> {
    let w: [u64; 4] = get_user(at)?;
    let tv = |sec: u64, usec: u64| {
        Timeval {
            sec: sec as i64,
            usec: usec as i64,
        }
        .to_ns()
    };
    Ok((tv(w[2], w[3])?, tv(w[0], w[1])?))
}

fn put_interval(at: u64, (value, interval): (u64, u64)) -> Result<(), Errno> {
    let (v, i) = (Timeval::from_ns(value), Timeval::from_ns(interval));
    // What is left but under a microsecond must not read as "not running".
    let usec = if value != 0 && v.sec == 0 {
        v.usec.max(1)
    } else {
        v.usec
    };
    put_user(
        at,
        &[i.sec as u64, i.usec as u64, v.sec as u64, usec as u64],
    )
}

fn setitimer(f: &mut TrapFrame) -> SysResult {
    let p = &current().process;
    let which = f.arg(0) as u32;
    if which > sys::ITIMER_PROF {
        return Err(Errno::EINVAL);
    }
    let (value, interval) = if f.arg(1) == 0 {
        (0, 0)
    } else {
        interval_at(f.arg(1))?
    };
    let old = match which {
        sys::ITIMER_REAL => itimer::set(p, value, interval),
        sys::ITIMER_VIRTUAL => p.cpu_timers.set(itimer::VIRTUAL, value, interval),
        _ => p.cpu_timers.set(itimer::PROF, value, interval),
    };
    if f.arg(2) != 0 {
        put_interval(f.arg(2), old)?;
    }
    Ok(0)
}

fn getitimer(f: &mut TrapFrame) -> SysResult {
    let p = &current().process;
    let now = match f.arg(0) as u32 {
        sys::ITIMER_REAL => itimer::get(p),
        sys::ITIMER_VIRTUAL => p.cpu_timers.get(itimer::VIRTUAL),
        sys::ITIMER_PROF => p.cpu_timers.get(itimer::PROF),
        _ => return Err(Errno::EINVAL),
    };
    put_interval(f.arg(1), now)?;
    Ok(0)
}

fn timer_create(f: &mut TrapFrame) -> SysResult {
    let is_date = match f.arg(0) as u32 {
        sys::CLOCK_REALTIME => true,
        sys::CLOCK_MONOTONIC | sys::CLOCK_BOOTTIME => false,
        _ => return Err(Errno::EINVAL),
    };
    let how = if f.arg(1) == 0 {
        posix::Notify {
            signo: SIGALRM,
            value: None,
            thread: None,
        }
    } else {
        // sigevent: value, signo, notify, tid.
        let w: [u64; 3] = get_user(f.arg(1))?;
        let (signo, notify) = (w[1] as u32, (w[1] >> 32) as u32);
        let valid = (1..=64).contains(&signo) && bit(signo) & (STOPS | bit(SIGCONT)) == 0;
        let thread = if notify & sys::SIGEV_THREAD_ID != 0 {
            let t = table::find_thread(w[2] as u32).ok_or(Errno::EINVAL)?;
            if !Arc::ptr_eq(&t.process, &current().process) {
                return Err(Errno::EINVAL);
            }
            Some(t)
        } else {
            None
        };
        match notify & !sys::SIGEV_THREAD_ID {
            sys::SIGEV_NONE if thread.is_none() => posix::Notify {
                signo: 0,
                value: Some(w[0]),
                thread: None,
            },
            sys::SIGEV_SIGNAL | sys::SIGEV_THREAD if valid => posix::Notify {
                signo,
                value: Some(w[0]),
                thread,
            },
            _ => return Err(Errno::EINVAL),
        }
    };
    let id = posix::create(is_date, how)?;
    if let Err(e) = put_user(f.arg(2), &id) {
        let _ = posix::delete(id);
        return Err(e);
    }
    Ok(0)
}

fn put_spec(at: u64, (value, interval): (u64, u64)) -> Result<(), Errno> {
    let (v, i) = (Timespec::from_ns(value), Timespec::from_ns(interval));
    put_user(
        at,
        &[i.sec as u64, i.nsec as u64, v.sec as u64, v.nsec as u64],
    )
}

fn timer_settime(f: &mut TrapFrame) -> SysResult {
    let w: [u64; 4] = get_user(f.arg(2))?;
    let ts = |sec: u64, nsec: u64| {
        Timespec {
            sec: sec as i64,
            nsec: nsec as i64,
        }
        .to_ns()
    };
    let (interval, value) = (ts(w[0], w[1])?, ts(w[2], w[3])?);
    let absolute = f.arg(1) as u32 & sys::TIMER_ABSTIME != 0;
    let old = posix::set(f.arg(0) as u32, absolute, value, interval)?;
    if f.arg(3) != 0 {
        put_spec(f.arg(3), old)?;
    }
    Ok(0)
}

fn timer_gettime(f: &mut TrapFrame) -> SysResult {
    put_spec(f.arg(1), posix::get(f.arg(0) as u32)?)?;
    Ok(0)
}

fn timer_getoverrun(f: &mut TrapFrame) -> SysResult {
    Ok(posix::overrun(f.arg(0) as u32)? as usize)
}

fn timer_delete(f: &mut TrapFrame) -> SysResult {
    posix::delete(f.arg(0) as u32)?;
    Ok(0)
}
