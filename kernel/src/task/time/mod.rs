//! Clocks, sleeping, interval and POSIX timers.

pub mod itimer;
pub mod posix;

use core::sync::atomic::{AtomicI64, Ordering};

use mm::Errno;

use super::thread::RestartBlock;
use super::wait::{Sleep, WaitError, sleep_until};
use super::{acct, current, table};
use crate::SysResult;
use crate::arch::time::{now_ns, realtime_offset_ns};
use crate::arch::uaccess::{Pod, get_user, put_user};
use linux_raw_sys::general as sys;

pub const NS: u64 = 1_000_000_000;

/// Linux's `timespec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Timespec {
    pub sec: i64,
    pub nsec: i64,
}

// SAFETY: two integers, no padding.
unsafe impl Pod for Timespec {}

impl Timespec {
    pub fn from_ns(ns: u64) -> Timespec {
        Timespec {
            sec: (ns / NS) as i64,
            nsec: (ns % NS) as i64,
        }
    }

    /// Nanoseconds, saturating; EINVAL for what is no time span.
    pub fn to_ns(self) -> Result<u64, Errno> {
        if self.sec < 0 || !(0..NS as i64).contains(&self.nsec) {
            return Err(Errno::EINVAL);
        }
        Ok((self.sec as u64)
            .saturating_mul(NS)
            .saturating_add(self.nsec as u64))
    }
}

/// Linux's `timeval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Timeval {
    pub sec: i64,
    pub usec: i64,
}

// SAFETY: two integers, no padding.
unsafe impl Pod for Timeval {}

impl Timeval {
    pub fn from_ns(ns: u64) -> Timeval {
        Timeval {
            sec: (ns / NS) as i64,
            usec: (ns % NS / 1000) as i64,
        }
    }

    pub fn to_ns(self) -> Result<u64, Errno> {
        if self.sec < 0 || !(0..1_000_000).contains(&self.usec) {
            return Err(Errno::EINVAL);
        }
        Ok((self.sec as u64)
            .saturating_mul(NS)
            .saturating_add(self.usec as u64 * 1000))
    }
}

/// What `settimeofday` added to the boot clock's idea of the date.
static SHIFT: AtomicI64 = AtomicI64::new(0);

/// Nanoseconds since boot.
pub fn monotonic_ns() -> u64 {
    now_ns()
}

/// Nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    realtime_of(now_ns())
}

/// The date of a monotonic moment.
pub fn realtime_of(mono: u64) -> u64 {
    (mono + realtime_offset_ns()).wrapping_add_signed(SHIFT.load(Ordering::Relaxed))
}

/// The monotonic moment of a date; 0 for what was before boot.
pub fn monotonic_of(real: u64) -> u64 {
    let zero = realtime_of(0);
    real.saturating_sub(zero)
}

/// Sets the date.
pub fn set_realtime(ns: u64) {
    let natural = now_ns() + realtime_offset_ns();
    SHIFT.store(ns.wrapping_sub(natural) as i64, Ordering::Relaxed);
}

/// Reads a clock by its system call number.
pub fn read_clock(id: i32) -> Result<u64, Errno> {
    if id < 0 {
        return cpu_clock(id);
    }
    match id as u32 {
        sys::CLOCK_REALTIME
        | sys::CLOCK_REALTIME_COARSE
        | sys::CLOCK_TAI
        | sys::CLOCK_REALTIME_ALARM => Ok(realtime_ns()),
        sys::CLOCK_MONOTONIC
        | sys::CLOCK_MONOTONIC_RAW
        | sys::CLOCK_MONOTONIC_COARSE
        | sys::CLOCK_BOOTTIME
        | sys::CLOCK_BOOTTIME_ALARM => Ok(now_ns()),
        sys::CLOCK_PROCESS_CPUTIME_ID => {
            let u = current().process.usage();
            Ok(u.user_ns + u.system_ns)
        }
        sys::CLOCK_THREAD_CPUTIME_ID => Ok(acct::thread_runtime(current())),
        _ => Err(Errno::EINVAL),
    }
}

/// The CPU clock of another process or thread: `~pid << 3 | thread << 2 | kind`.
fn cpu_clock(id: i32) -> Result<u64, Errno> {
    let pid = !(id >> 3) as u32;
    if id & 3 == 3 {
        return Err(Errno::EINVAL);
    }
    if id & 4 != 0 {
        let t = if pid == 0 {
            Some(current().arc())
        } else {
            table::find_thread(pid)
        };
        let t = t
            .filter(|t| core::ptr::eq(&*t.process, &*current().process))
            .ok_or(Errno::EINVAL)?;
        return Ok(acct::thread_runtime(&t));
    }
    let p = if pid == 0 {
        Some(current().process.clone())
    } else {
        table::find_process(pid)
    };
    let u = p.ok_or(Errno::EINVAL)?.usage();
    Ok(u.user_ns + u.system_ns)
}

/// Resolution of a clock.
pub fn clock_resolution(id: i32) -> Result<u64, Errno> {
    read_clock(id)?;
    Ok(match id as u32 {
        sys::CLOCK_REALTIME_COARSE | sys::CLOCK_MONOTONIC_COARSE => 4_000_000,
        _ => 1,
    })
}

/// Whether one can sleep on a clock; is it the date?
fn sleepable(id: i32) -> Result<bool, Errno> {
    match id as u32 {
        sys::CLOCK_REALTIME | sys::CLOCK_TAI | sys::CLOCK_REALTIME_ALARM => Ok(true),
        sys::CLOCK_MONOTONIC | sys::CLOCK_BOOTTIME | sys::CLOCK_BOOTTIME_ALARM => Ok(false),
        sys::CLOCK_PROCESS_CPUTIME_ID
        | sys::CLOCK_MONOTONIC_RAW
        | sys::CLOCK_REALTIME_COARSE
        | sys::CLOCK_MONOTONIC_COARSE => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

/// A deadline for a sleep of `t` on clock `id`.
pub fn deadline(id: i32, absolute: bool, t: Timespec) -> Result<u64, Errno> {
    let is_date = sleepable(id)?;
    let ns = t.to_ns()?;
    Ok(match (absolute, is_date) {
        (true, true) => monotonic_of(ns),
        (true, false) => ns,
        (false, _) => now_ns().saturating_add(ns),
    })
}

/// `nanosleep` and `clock_nanosleep`: `rem` gets what is left of a relative sleep.
pub fn nanosleep(id: i32, absolute: bool, t: Timespec, rem: u64) -> SysResult {
    let d = deadline(id, absolute, t)?;
    sleep(d, if absolute { None } else { Some(rem) })
}

fn sleep(deadline: u64, rem: Option<u64>) -> SysResult {
    match sleep_until(Sleep::Interruptible, Some(deadline)) {
        Ok(()) | Err(WaitError::Timeout) => Ok(0),
        Err(WaitError::Signal) => {
            let Some(rem) = rem else {
                return Err(Errno::ERESTARTNOHAND);
            };
            let left = deadline.saturating_sub(now_ns());
            if left == 0 {
                return Ok(0);
            }
            if rem != 0 {
                put_user(rem, &Timespec::from_ns(left))?;
            }
            // SAFETY: the running thread's own field.
            unsafe {
                current().mine().restart = RestartBlock {
                    func: restart_sleep,
                    args: [deadline, rem, 0, 0, 0, 0],
                }
            };
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
    }
}

fn restart_sleep(a: &[u64; 6]) -> SysResult {
    sleep(a[0], Some(a[1]))
}

/// An optional timeout in user memory: relative, as a monotonic deadline.
pub fn timeout_at(addr: u64) -> Result<Option<u64>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let ns = get_user::<Timespec>(addr)?.to_ns()?;
    Ok(Some(now_ns().saturating_add(ns)))
}
